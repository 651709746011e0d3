//! Joins of records that are in the same window.
//!
//! The windows are those of a windowed aggregate that are fixed on the line of event time, and so is lateness: a record is
//! late for a window if that has closed for its partition, and late for the join if it is late for all of its windows. When
//! a window closes, each left record of a key in it is paired with each right one, and those of either side that have no
//! other are emitted by outer joins. Rows happen in the window's last millisecond.
//!
//! A record is kept once, however many windows it is in ([`super::side`]), with the end of the first window that it is on
//! time for; and is removed when the last one has closed. Keys are woken at the end of their next window.
//!
//! Invariant: the first window of a key that has not closed is one of the earliest record of either side, as later records
//! are in no earlier window.

use std::cell::Cell;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use super::joined::{JoinInputs, Joined, moment};
use super::side::{self, JoinKind, JoinSide, KeyRecords, SavedRecord, WaitingRecord};
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
            rule: WindowedRule { kind, row, windows, last: Cell::new(LocatedPane::EMPTY) },
            keys: WaitingKeys::new(true, start.closed, start.durable),
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
    fn emit<K, L: Record, R: Record, O>(
        &self,
        key: &K,
        records: &WindowRecords<L, R>,
        end: EventTime,
        rows: &mut Vec<(EventTime, O)>,
    ) where
        M: Fn(Interval, &K, Option<&L>, Option<&R>) -> O,
    {
        let window = self.windows.interval(end);
        let last = EventTime::from_millis(end.millis().saturating_sub(1));
        let time = moment(last);
        let (left, right) = (records.left.within(window.start, last), records.right.within(window.start, last));
        let left = || records.left.data_of(left.clone()).filter(|(first, _)| *first <= end).map(|(_, data)| data);
        let right = || records.right.data_of(right.clone()).filter(|(first, _)| *first <= end).map(|(_, data)| data);
        let [no_left, no_right] = [left().next().is_none(), right().next().is_none()];
        for left in left() {
            rows.extend(right().map(|right| (time, (self.row)(window, key, Some(left), Some(right)))));
            if no_right && self.kind.emits_left_alone() {
                rows.push((time, (self.row)(window, key, Some(left), None)));
            }
        }
        if no_left && self.kind.emits_right_alone() {
            rows.extend(right().map(|right| (time, (self.row)(window, key, None, Some(right)))));
        }
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
            self.emit(key, records, end, rows);
            closed = end;
            removed += records.left.remove_while(|left| self.pane(left.time()).last <= end);
            removed += records.right.remove_while(|right| self.pane(right.time()).last <= end);
        }
        removed
    }
}

/// The state of a join in windows on one worker.
struct WindowedState<K, L, R, O, M> {
    rule: WindowedRule<M>,
    keys: WaitingKeys<K, FromWindow<L>, FromWindow<R>>,
    /// Windows that end at or before this time have closed.
    closed: EventTime,
    lateness: Span,
    metrics: Arc<StepMetrics>,
    results: PhantomData<fn() -> O>,
}

impl<K: Record, L: Record, R: Record, O, M> WindowedState<K, L, R, O, M> {
    /// Adds a record of a key whose next window ends at `end`, and wakes the key then at the latest.
    #[inline]
    fn insert(
        &mut self,
        key: K,
        part: JoinSide<WaitingRecord<FromWindow<L>>, WaitingRecord<FromWindow<R>>>,
        (end, is_new): (EventTime, bool),
    ) {
        let added = AddedRecord { is_new, over_at: EventTime::MAX };
        self.keys.update(key, added, |_, records| {
            match part {
                JoinSide::Left(record) => records.left.insert(record),
                JoinSide::Right(record) => records.right.insert(record),
            }
            end
        });
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

    fn tracks_changes(&self) -> bool {
        false
    }

    fn absorb(&mut self, records: &mut Vec<RoutedRecordOf<Self>>) {
        for (key, (stamp, first), part) in records.drain(..) {
            let part = match part {
                JoinSide::Left(data) => JoinSide::Left(WaitingRecord::new(stamp, (first, data))),
                JoinSide::Right(data) => JoinSide::Right(WaitingRecord::new(stamp, (first, data))),
            };
            // A record that is on time is so for windows that are open.
            self.insert(key, part, (first, true));
        }
    }

    fn absorb_tracked(
        &mut self,
        _epoch: u64,
        mut records: Vec<RoutedRecordOf<Self>>,
        _results: &mut StepResultsOf<Self>,
    ) {
        self.absorb(&mut records);
    }

    fn load(&mut self, _epoch: u64, mut rows: Vec<Self::SavedRow>, _results: &mut StepResultsOf<Self>) {
        side::consolidate(&mut rows);
        for ((key, stamp, part), change) in rows {
            let (count, matched_at) = change.parts();
            let pane = self.rule.windows.find(stamp.0);
            let windows = PaneRange::new(pane.first, pane.last);
            let Some(end) = self.rule.windows.ends(windows, self.closed, EventTime::MAX).next() else { continue };
            self.metrics.loaded.add(u64::from(count));
            for _ in 0..count {
                let part = match part.clone() {
                    JoinSide::Left(data) => JoinSide::Left(WaitingRecord::loaded(stamp, data, matched_at)),
                    JoinSide::Right(data) => JoinSide::Right(WaitingRecord::loaded(stamp, data, matched_at)),
                };
                self.insert(key.clone(), part, (end, false));
            }
        }
    }

    fn seal(&mut self, _epoch: u64) -> (EventTime, Option<RowChunks<Self::SavedRow>>) {
        let until = |time| self.rule.windows.find(time).last;
        (self.closed, self.keys.seal(self.closed, &(until, until)))
    }

    fn advance(&mut self, _epoch: u64, watermark: EventTime, results: &mut StepResultsOf<Self>) {
        let (rule, closed, to) = (&self.rule, self.closed, watermark.minus(self.lateness));
        let close = |key: &K, records: &mut _| rule.close(key, records, (closed, to), &mut results.closed);
        let removed = self.keys.advance(to, close, |records| rule.next_end(records, to));
        self.closed = closed.max(to);
        self.metrics.counted.add(removed);
    }
}

/// Counts the records that are still held: in = counted + late holds whenever a job stops.
impl<K, L, R, O, M> Drop for WindowedState<K, L, R, O, M> {
    fn drop(&mut self) {
        self.metrics.counted.add(self.keys.held() as u64);
    }
}
