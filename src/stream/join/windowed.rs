//! Joins of records that are in the same window.
//!
//! The windows are those of a windowed aggregate that are fixed on the line of event time, and so is lateness: a record is
//! late for a window if that has closed for its partition, and late for the join if it is late for all of its windows. When
//! a window closes, each left record of a key in it is paired with each right one, and those of either side that have no
//! other are emitted by outer joins. Rows happen in the window's last millisecond.
//!
//! Of windows that overlap, a record is kept once, however many windows it is in ([`super::side`]), with the end of the first
//! window that it is on time for; and is removed when the last one has closed. Keys are woken at the end of their next
//! window. If windows do not overlap, records are kept by window ([`super::single_windows`]).
//!
//! Invariant: the first window of a key that has not closed is one of the earliest record of either side, as later records
//! are in no earlier window.

use std::cell::Cell;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use super::joined::{JoinInputs, Joined, moment};
use super::side::{self, JoinKind, JoinSide, KeyRecords, SavedRecord, WaitingRecord};
use super::single_windows::SingleWindows;
use super::waiting_keys::{AddedRecord, WaitingKeys};
use crate::metrics::StepMetrics;
use crate::record::{Event, Record};
use crate::stream::assign::{EventStamp, PaneRouter, RecordRouter};
use crate::stream::checkpoint::{RowChunks, RowOps};
use crate::stream::interval::Interval;
use crate::stream::keyed_stream::Keyed;
use crate::stream::operator_state::{OperatorState, RoutedRecordOf, StepResultsOf};
use crate::stream::panes::{LocatedPane, Pane, PaneRange, WindowAssigner};
use crate::stream::window::{Window, WindowType};
use crate::time::{EventTime, Span};

impl<'f, K: Record, L: Record> Keyed<'f, K, L> {
    /// Joins each record with the records of another stream that have its key and are in the same window. A method of the
    /// returned builder says which join it is. The windows may be tumbling, sliding, cumulative, days, months, or all time;
    /// of windows that overlap, each has rows of its own. The step's name is unique in the query: state and metrics are
    /// found by it.
    ///
    /// The rows of a window are emitted when it closes, as those of an aggregate are, and happen in its last millisecond.
    /// Records that are late for all of their windows are left out. [`Keyed::allowed_lateness`] on either stream keeps
    /// windows open for longer.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tidegate::Window;
    /// use tidegate::source::memory::MemorySource;
    /// use tidegate::testing::{Captured, TestRun};
    ///
    /// # fn main() -> tidegate::Result<()> {
    /// // (key, event time in ms)
    /// let clicks = MemorySource::new(vec![vec![('a', 1_000), ('b', 2_000)]], |click: &(char, i64)| click.1);
    /// let views = MemorySource::new(vec![vec![('a', 9_000), ('b', 11_000)]], |view: &(char, i64)| view.1);
    /// let both = Captured::<(i64, char)>::new();
    /// let output = both.clone();
    /// TestRun::new().run(move |flow| {
    ///     let views = flow.read("views", &views).key_by(|view| view.0);
    ///     flow.read("clicks", &clicks)
    ///         .key_by(|click| click.0)
    ///         .join_windowed("both", views, Window::tumbling(Duration::from_secs(10)))
    ///         .inner(|window, key, _, _| (window.end.millis(), *key))
    ///         .results()
    ///         .write("both", &output);
    /// })?;
    /// assert_eq!(both.all(), [(10_000, 'a')]);
    /// # Ok(()) }
    /// ```
    pub fn join_windowed<R: Record, W: WindowType>(
        self,
        name: &str,
        other: Keyed<'f, K, R>,
        window: Window<W>,
    ) -> JoinWindowed<'f, K, L, R> {
        let windows = window.fixed().unwrap_or_else(|error| {
            self.stream.flow.build.failure.set(error.at_step(name));
            WindowAssigner::Global
        });
        JoinWindowed { inputs: JoinInputs { name: name.to_owned(), left: self, right: other }, windows }
    }
}

/// A join of records that are in the same window: see [`Keyed::join_windowed`]. Its methods say what is emitted.
pub struct JoinWindowed<'f, K, L, R> {
    inputs: JoinInputs<'f, K, L, R>,
    windows: WindowAssigner,
}

impl<K, L, R> fmt::Debug for JoinWindowed<'_, K, L, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [key, left, right] = [std::any::type_name::<K>(), std::any::type_name::<L>(), std::any::type_name::<R>()];
        write!(f, "JoinWindowed<{key}, {left}, {right}> {:?}", self.windows)
    }
}

impl<'f, K: Record, L: Record, R: Record> JoinWindowed<'f, K, L, R> {
    /// Emits what `pair` returns for each pair of a window.
    pub fn inner<O: Record>(self, pair: impl Fn(Interval, &K, &L, &R) -> O + 'static) -> Joined<'f, L, R, O> {
        self.build(JoinKind::Inner, move |window, key, left, right| match (left, right) {
            (Some(left), Some(right)) => pair(window, key, left, right),
            _ => unreachable!("an inner join has pairs alone"),
        })
    }

    /// Like [`JoinWindowed::inner`], and emits left records without a right one in the window, with `None`.
    pub fn left_outer<O: Record>(
        self,
        row: impl Fn(Interval, &K, &L, Option<&R>) -> O + 'static,
    ) -> Joined<'f, L, R, O> {
        self.build(JoinKind::LeftOuter, move |window, key, left, right| match left {
            Some(left) => row(window, key, left, right),
            None => unreachable!("each row has a left record"),
        })
    }

    /// Like [`JoinWindowed::inner`], and emits right records without a left one in the window, with `None`.
    pub fn right_outer<O: Record>(
        self,
        row: impl Fn(Interval, &K, Option<&L>, &R) -> O + 'static,
    ) -> Joined<'f, L, R, O> {
        self.build(JoinKind::RightOuter, move |window, key, left, right| match right {
            Some(right) => row(window, key, left, right),
            None => unreachable!("each row has a right record"),
        })
    }

    /// Like [`JoinWindowed::inner`], and emits the records of both streams without one of the other in the window. At least
    /// one of the two records is there.
    pub fn full_outer<O: Record>(
        self,
        row: impl Fn(Interval, &K, Option<&L>, Option<&R>) -> O + 'static,
    ) -> Joined<'f, L, R, O> {
        self.build(JoinKind::FullOuter, row)
    }

    fn build<O: Record>(
        self,
        kind: JoinKind,
        row: impl Fn(Interval, &K, Option<&L>, Option<&R>) -> O + 'static,
    ) -> Joined<'f, L, R, O> {
        let JoinWindowed { inputs, windows } = self;
        let lateness = inputs.lateness();
        let metrics = inputs.left.stream.flow.build.metrics.step(&inputs.name);
        let detail = format!("{kind:?} join in windows, {windows:?}");
        let router = || WindowRouter(PaneRouter::<PaneRange>::new(windows.clone(), lateness));
        let routers = (router(), router());
        inputs.step(&detail, lateness, routers, move |start| WindowedState {
            records: match windows.overlap() {
                true => WindowedRecords::Shared(WaitingKeys::new(true, start.closed, start.durable)),
                false => WindowedRecords::Single(SingleWindows::new(start.durable)),
            },
            rule: WindowedRule { kind, row, windows, last: Cell::new(LocatedPane::EMPTY) },
            closed: start.closed,
            lateness,
            metrics,
            results: PhantomData,
        })
    }
}

/// The position of a record, and the end of the first window that it is on time for.
type WindowPlace = (EventStamp, EventTime);

/// Routes records by event time, with the first window that they are on time for. A record is late when all of its windows
/// have closed.
struct WindowRouter(PaneRouter<PaneRange>);

impl<D> RecordRouter<D> for WindowRouter {
    type Routing = WindowPlace;

    fn route_record(&mut self, event: &Event<D>, mark: EventTime) -> Option<WindowPlace> {
        let pane = self.0.route_record(event, mark)?;
        Some(((event.time, event.origin.tie_breaker()), pane.first()))
    }
}

/// A record with the end of the first window that it is on time for.
type FromWindow<D> = (EventTime, D);

/// The waiting records of a key.
type WindowRecords<L, R> = KeyRecords<FromWindow<L>, FromWindow<R>>;

/// The rule of a join in windows: the rows that it emits, and when.
struct WindowedRule<M> {
    kind: JoinKind,
    /// Makes a row of a pair, or of a record without one.
    row: M,
    windows: WindowAssigner,
    /// The pane that was found last; most records belong to it too.
    last: Cell<LocatedPane>,
}

impl<M> WindowedRule<M> {
    /// Returns the pane of a time.
    #[inline]
    fn pane(&self, time: EventTime) -> LocatedPane {
        let last = self.last.get();
        if time >= last.times.start && time < last.times.end {
            return last;
        }
        let found = self.windows.find(time);
        self.last.set(found);
        found
    }

    /// Returns the end of a key's first window that ends after `closed`; [`EventTime::MAX`] if there are no records.
    fn next_end<L: Record, R: Record>(&self, records: &WindowRecords<L, R>, closed: EventTime) -> EventTime {
        let times = [records.left.first().map(WaitingRecord::time), records.right.first().map(WaitingRecord::time)];
        let end = |time: EventTime| {
            let pane = self.pane(time);
            if pane.first > closed {
                return Some(pane.first);
            }
            self.windows.ends(PaneRange::new(pane.first, pane.last), closed, EventTime::MAX).next()
        };
        times.into_iter().flatten().filter_map(end).min().unwrap_or(EventTime::MAX)
    }

    /// Emits the rows of a key in the window that ends at `end`.
    fn emit<'a, K, L: Record, R: Record, O>(
        &self,
        (key, end): (&K, EventTime),
        left: impl Iterator<Item = &'a L> + Clone,
        right: impl Iterator<Item = &'a R> + Clone,
        rows: &mut Vec<(EventTime, O)>,
    ) where
        M: Fn(Interval, &K, Option<&L>, Option<&R>) -> O,
    {
        let window = self.windows.interval(end);
        let time = moment(EventTime::from_millis(end.millis().saturating_sub(1)));
        let [no_left, no_right] = [left.clone().next().is_none(), right.clone().next().is_none()];
        for left in left {
            rows.extend(right.clone().map(|right| (time, (self.row)(window, key, Some(left), Some(right)))));
            if no_right && self.kind.emits_left_alone() {
                rows.push((time, (self.row)(window, key, Some(left), None)));
            }
        }
        if no_left && self.kind.emits_right_alone() {
            rows.extend(right.map(|right| (time, (self.row)(window, key, None, Some(right)))));
        }
    }

    /// Emits the rows of a key in the window that ends at `end`, of records that may be in others too.
    fn emit_shared<K, L: Record, R: Record, O>(
        &self,
        key: &K,
        records: &WindowRecords<L, R>,
        end: EventTime,
        rows: &mut Vec<(EventTime, O)>,
    ) where
        M: Fn(Interval, &K, Option<&L>, Option<&R>) -> O,
    {
        let (start, last) = (self.windows.interval(end).start, EventTime::from_millis(end.millis().saturating_sub(1)));
        let (left, right) = (records.left.within(start, last), records.right.within(start, last));
        let left = records.left.data_of(left).filter(|(first, _)| *first <= end).map(|(_, data)| data);
        let right = records.right.data_of(right).filter(|(first, _)| *first <= end).map(|(_, data)| data);
        self.emit((key, end), left, right, rows);
    }

    /// Closes a key's windows that end after `closed` and not after `to`, and removes records whose windows have all
    /// closed; returns their number.
    fn close<K, L: Record, R: Record, O>(
        &self,
        key: &K,
        records: &mut WindowRecords<L, R>,
        (mut closed, to): (EventTime, EventTime),
        rows: &mut Vec<(EventTime, O)>,
    ) -> u64
    where
        M: Fn(Interval, &K, Option<&L>, Option<&R>) -> O,
    {
        let mut removed = 0;
        while !records.is_empty() {
            let end = self.next_end(records, closed);
            if end > to {
                break;
            }
            self.emit_shared(key, records, end, rows);
            closed = end;
            removed += records.left.remove_while(|left| self.pane(left.time()).last <= end);
            removed += records.right.remove_while(|right| self.pane(right.time()).last <= end);
        }
        removed
    }
}

/// The records of a join in windows on one worker.
enum WindowedRecords<K, L, R> {
    /// Each is in one window.
    Single(SingleWindows<K, L, R>),
    /// Windows overlap.
    Shared(WaitingKeys<K, FromWindow<L>, FromWindow<R>>),
}

/// The state of a join in windows on one worker.
struct WindowedState<K, L, R, O, M> {
    rule: WindowedRule<M>,
    records: WindowedRecords<K, L, R>,
    /// Windows that end at or before this time have closed.
    closed: EventTime,
    lateness: Span,
    metrics: Arc<StepMetrics>,
    results: PhantomData<fn() -> O>,
}

impl<K: Record, L: Record, R: Record> WindowedRecords<K, L, R> {
    /// Adds a record of a key, whose first window that is open ends at `end`. `is_new` if it is in no segment yet.
    #[inline]
    fn insert(
        &mut self,
        (key, part): (K, JoinSide<FromWindow<L>, FromWindow<R>>),
        stamp: EventStamp,
        (end, is_new): (EventTime, bool),
    ) {
        match self {
            WindowedRecords::Single(windows) => {
                let part = match part {
                    JoinSide::Left((_, data)) => JoinSide::Left(WaitingRecord::kept(stamp, data, is_new)),
                    JoinSide::Right((_, data)) => JoinSide::Right(WaitingRecord::kept(stamp, data, is_new)),
                };
                windows.insert(key, part, (end, is_new));
            }
            WindowedRecords::Shared(keys) => {
                keys.update(key, AddedRecord { is_new, over_at: EventTime::MAX }, |_, records| {
                    match part {
                        JoinSide::Left(data) => records.left.insert(WaitingRecord::kept(stamp, data, is_new)),
                        JoinSide::Right(data) => records.right.insert(WaitingRecord::kept(stamp, data, is_new)),
                    }
                    end
                });
            }
        }
    }
}

impl<K, L, R, O, M> OperatorState for WindowedState<K, L, R, O, M>
where
    K: Record,
    L: Record,
    R: Record,
    O: Record,
    M: Fn(Interval, &K, Option<&L>, Option<&R>) -> O + 'static,
{
    type Key = K;
    type Place = WindowPlace;
    type Part = JoinSide<L, R>;
    type SavedRow = SavedRecord<K, FromWindow<L>, FromWindow<R>>;
    type Closed = (EventTime, O);
    type Value = ();

    fn saved_rows() -> RowOps<Self::SavedRow> {
        side::saved_records()
    }

    fn key_of(saved: &Self::SavedRow) -> &K {
        &saved.0.0
    }

    fn absorb(&mut self, records: &mut Vec<RoutedRecordOf<Self>>) {
        for (key, (stamp, first), part) in records.drain(..) {
            let part = match part {
                JoinSide::Left(data) => JoinSide::Left((first, data)),
                JoinSide::Right(data) => JoinSide::Right((first, data)),
            };
            // A record that is on time is so for windows that are open.
            self.records.insert((key, part), stamp, (first, true));
        }
    }

    fn load(&mut self, _epoch: u64, mut rows: Vec<Self::SavedRow>, _results: &mut StepResultsOf<Self>) {
        side::consolidate(&mut rows);
        for ((key, stamp, part), change) in rows {
            let (count, _) = change.parts();
            let pane = self.rule.windows.find(stamp.0);
            let windows = PaneRange::new(pane.first, pane.last);
            let Some(end) = self.rule.windows.ends(windows, self.closed, EventTime::MAX).next() else { continue };
            self.metrics.loaded.add(u64::from(count));
            for _ in 0..count {
                self.records.insert((key.clone(), part.clone()), stamp, (end, false));
            }
        }
    }

    fn seal(&mut self, _epoch: u64) -> (EventTime, Option<RowChunks<Self::SavedRow>>) {
        let until = |time| self.rule.windows.find(time).last;
        let rows = match &mut self.records {
            WindowedRecords::Single(windows) => windows.seal(),
            WindowedRecords::Shared(keys) => keys.seal(self.closed, &(until, until)),
        };
        (self.closed, rows)
    }

    fn advance(&mut self, _epoch: u64, watermark: EventTime, results: &mut StepResultsOf<Self>) {
        let (rule, closed, to) = (&self.rule, self.closed, watermark.minus(self.lateness));
        let rows = &mut results.closed;
        let removed = match &mut self.records {
            WindowedRecords::Single(windows) => {
                let mut removed = 0;
                windows.close(to, |end, key, sides| {
                    removed += sides.len() as u64;
                    let (left, right) = (sides.left.iter(), sides.right.iter());
                    rule.emit((key, end), left.map(|left| &left.data), right.map(|right| &right.data), rows);
                });
                removed
            }
            WindowedRecords::Shared(keys) => {
                let close = |key: &K, records: &mut _| rule.close(key, records, (closed, to), rows);
                keys.advance(to, close, |records| rule.next_end(records, to))
            }
        };
        self.closed = closed.max(to);
        self.metrics.counted.add(removed);
    }
}

/// Counts the records that are still held: in = counted + late holds whenever a job stops.
impl<K, L, R, O, M> Drop for WindowedState<K, L, R, O, M> {
    fn drop(&mut self) {
        let held = match &self.records {
            WindowedRecords::Single(windows) => windows.held(),
            WindowedRecords::Shared(keys) => keys.held(),
        };
        self.metrics.counted.add(held as u64);
    }
}
