//! The state of a step by key alone: a row for each key, driven by the records' own times. Sessions, count windows
//! and keyed state with timers are built on it.
//!
//! * A [`KeyedOperator`] defines the rows: a row takes records in any order, and is then advanced to a time, which
//!   processes whatever was due until then in the order of event time. So results are a function of the records.
//! * A row is **woken** when the watermark reaches the time at which the row is next due. An index maps wake times to
//!   keys. It is lazy: a row that is due later by now is rescheduled when its entry fires, and an entry that an earlier
//!   one has replaced is skipped.
//! * Snapshots keep **versions** of rows: a segment has the rows that have changed since the last seal, as they are
//!   then, each with the epoch. The latest of several versions of a row counts, so any segments may be merged, in any
//!   order. A row that is removed leaves a tombstone, unless its last version expires by the watermark; a merge of
//!   the oldest segments drops tombstones.
//!
//! Invariant: records that are on time never touch what a row has already done: they happen at the time that it was
//! advanced to, or later.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use foldhash::fast::FixedState;
use serde::{Deserialize, Serialize};

use crate::metrics::{StepMetrics, WorkerWindows};
use crate::record::{Event, Record};
use crate::stream::assign::{EventStamp, TimeRouter};
use crate::stream::checkpoint::{self, RowChunks, RowOps, chunks_of};
use crate::stream::keyed_stream::Keyed;
use crate::stream::look_ahead;
use crate::stream::operator_state::{OperatorStart, OperatorState, RoutedRecordOf, StepResultsOf, Subscriptions};
use crate::stream::window_operator::{self, StepOutputs};
use crate::stream::window_row::WindowRow;
use crate::time::{EventTime, Span};

/// The rows of a step, and the operations on them.
pub(crate) trait KeyedOperator: 'static {
    type Key: Record;
    /// The part of a record that the step needs.
    type Part: Record;
    /// The row of a key.
    type Row: Record;
    /// A final result.
    type Closed: Clone + 'static;
    /// The value of a window's row; `()` for steps without windows.
    type Value: Record;

    /// `true` if the row itself tells when it expires. Otherwise the removal of a row is saved as a tombstone.
    const EXPIRES: bool;

    /// Returns the time at which nothing of the row is left; [`EventTime::MAX`] if it is not known.
    fn expires_at(row: &Self::Row) -> EventTime;

    /// Creates a row from its first record.
    fn begin(&self, stamp: EventStamp, part: Self::Part) -> Self::Row;

    /// Adds a record, in any order.
    fn absorb(&self, row: &mut Self::Row, stamp: EventStamp, part: Self::Part);

    /// Returns the least time that has an effect when the row is advanced to it; [`EventTime::MAX`] if there is none.
    fn due(row: &Self::Row) -> EventTime;

    /// Advances the row to a time and appends the results to `closed`; returns the number of records that are done
    /// with.
    fn advance(&self, key: &Self::Key, row: &mut Self::Row, to: EventTime, closed: &mut Vec<Self::Closed>) -> i64;

    /// Removes what had closed at time `closed` in an earlier incarnation; nothing by default, as in steps whose rows are
    /// advanced to each watermark.
    fn prune(_row: &mut Self::Row, _closed: EventTime) {}

    /// Returns `true` if nothing of the row is left.
    fn is_finished(row: &Self::Row) -> bool;

    /// Returns the number of records that the row holds.
    fn count(row: &Self::Row) -> i64;

    /// Calls `each` with the row's windows that end after the first of two times and not after the second. By default, and
    /// in the next two, the step has no windows.
    fn show(
        &self,
        _key: &Self::Key,
        _row: &Self::Row,
        _between: (EventTime, EventTime),
        _each: &mut dyn FnMut(WindowRow<Self::Key, Self::Value>),
    ) {
    }

    /// Returns the end of the row's first window that ends after `time`; `None` if there is none.
    fn end_after(&self, _row: &Self::Row, _time: EventTime) -> Option<EventTime> {
        None
    }

    /// Returns the window of a final result; `None` for steps without windows.
    fn window_of(_closed: &Self::Closed) -> Option<WindowRow<Self::Key, Self::Value>> {
        None
    }
}

/// A row as it was at an epoch; `None` is a tombstone.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct Version<R> {
    epoch: u64,
    row: Option<R>,
}

/// A row of a key as snapshots keep it.
pub(crate) type SavedVersion<K, R> = (K, Version<R>);

impl<R> Version<R> {
    /// Creates the version of a row at an epoch; `None` is a tombstone.
    pub(crate) fn new(epoch: u64, row: Option<R>) -> Self {
        Version { epoch, row }
    }

    /// Converts the row.
    pub(crate) fn map<T>(self, convert: impl FnOnce(R) -> T) -> Version<T> {
        Version { epoch: self.epoch, row: self.row.map(convert) }
    }
}

impl<R: Record> Version<R> {
    /// Returns the latest row of each key, of versions that come in no order; none of a key whose latest is a tombstone.
    pub(crate) fn latest<K: Record>(rows: Vec<SavedVersion<K, R>>) -> impl Iterator<Item = (K, R)> {
        let mut latest = KeyedMap::<K, Version<R>>::default();
        for (key, version) in rows {
            match latest.entry(key) {
                Entry::Occupied(known) if *known.get() >= version => {}
                Entry::Occupied(mut known) => drop(known.insert(version)),
                Entry::Vacant(place) => drop(place.insert(version)),
            }
        }
        latest.into_iter().filter_map(|(key, version)| Some((key, version.row?)))
    }
}

/// Returns the functions that order, add and classify rows of keys, of a type that has its own end or none.
pub(crate) fn saved_versions<K: Record, R: Record>(
    window: fn(&SavedVersion<K, R>) -> EventTime,
) -> RowOps<SavedVersion<K, R>> {
    RowOps {
        order: |a, b| a.0.cmp(&b.0),
        add: checkpoint::keep_newest,
        is_zero: |_| false,
        is_tombstone: |saved| saved.1.row.is_none(),
        window,
    }
}

/// Returns the end of a row's window: its own, or none.
pub(crate) fn end_of_version<K, R>(saved: &SavedVersion<K, R>, end: impl FnOnce(&R) -> EventTime) -> EventTime {
    saved.1.row.as_ref().map_or(EventTime::MAX, end)
}

/// A row in memory.
struct KeyedEntry<R> {
    row: R,
    /// The watermark at which the row is woken; [`EventTime::MAX`] if it is not.
    wake: EventTime,
    /// `true` if the row has changed since the last seal.
    unsealed: bool,
}

type KeyedMap<K, R> = HashMap<K, R, FixedState>;

/// Builds both operators of a step by key: see [`window_operator::step`]. `detail` describes the step's work for the
/// plan, without the allowed lateness; `part` extracts the part of a record that the step needs.
pub(crate) fn step<'f, D: Record, B: KeyedOperator>(
    keyed: Keyed<'f, B::Key, D>,
    (name, detail): (&str, &str),
    lateness: Span,
    operator: B,
    part: impl Fn(&Event<D>) -> B::Part + 'static,
) -> StepOutputs<'f, B::Closed, B::Key, B::Value, D> {
    let (subscriptions, metrics) = (Subscriptions::default(), keyed.stream.flow.build.metrics.step(name));
    let of_step = subscriptions.clone();
    let begin = move |start: OperatorStart<'_>| {
        KeyedRows::begin(operator, (start.closed, start.durable), (of_step, lateness), metrics)
    };
    window_operator::step(
        keyed,
        (name, format!("{detail}{}", window_operator::describe_lateness(lateness))),
        (subscriptions, lateness),
        checkpoint::postcard(),
        TimeRouter(lateness),
        part,
        begin,
    )
}

/// The rows of one worker.
pub(crate) struct KeyedRows<B: KeyedOperator> {
    operator: B,
    rows: KeyedMap<B::Key, KeyedEntry<B::Row>>,
    /// Keys by wake time; entries of rows that are due at another time by now are stale.
    wakes: BTreeMap<EventTime, Vec<B::Key>>,
    /// Keys of rows that records were added to, and that may have to fire earlier; empty between two calls.
    unscheduled: Vec<B::Key>,
    /// The keys of rows that have changed or were removed since the last seal; `None` in a job without state.
    unsealed: Option<Vec<B::Key>>,
    /// The time that rows have been advanced to.
    closed: EventTime,
    /// Windows that end at or before this time have fired.
    fired: EventTime,
    lateness: Span,
    subscriptions: Subscriptions,
    metrics: Arc<StepMetrics>,
}

impl<B: KeyedOperator> KeyedRows<B> {
    pub(crate) fn begin(
        operator: B,
        (closed, durable): (EventTime, bool),
        (subscriptions, lateness): (Subscriptions, Span),
        metrics: Arc<StepMetrics>,
    ) -> Self {
        let (rows, wakes, unsealed) = (HashMap::default(), BTreeMap::new(), durable.then(Vec::new));
        KeyedRows {
            operator,
            rows,
            wakes,
            unscheduled: Vec::new(),
            unsealed,
            closed,
            fired: EventTime::MIN,
            lateness,
            subscriptions,
            metrics,
        }
    }

    /// Adds a record.
    fn add(&mut self, key: B::Key, stamp: EventStamp, part: B::Part) {
        let held = match self.rows.entry(key.clone()) {
            Entry::Occupied(held) => {
                let held = held.into_mut();
                self.operator.absorb(&mut held.row, stamp, part);
                held
            }
            Entry::Vacant(place) => {
                let row = self.operator.begin(stamp, part);
                place.insert(KeyedEntry { row, wake: EventTime::MAX, unsealed: false })
            }
        };
        if let Some(unsealed) = self.unsealed.as_mut().filter(|_| !held.unsealed) {
            held.unsealed = true;
            unsealed.push(key.clone());
        }
        if self.subscriptions.corrections(self.lateness) {
            // When a row fires is a question to all of its records: it is asked once for all that come together.
            self.unscheduled.push(key);
            return;
        }
        let wake = wake_time(&self.operator, &held.row, false, self.fired, self.lateness);
        schedule_earlier(&mut self.wakes, held, wake, key);
    }

    /// Reads the rows of the next group of keys.
    fn read_ahead<'a>(&self, keys: impl Iterator<Item = &'a B::Key>) {
        look_ahead::read_entries(&self.rows, keys.take(look_ahead::GROUP), |held| B::due(&held.row).millis());
    }

    /// Schedules the rows that may fire earlier by what was added.
    fn schedule_added(&mut self) {
        let mut keys = std::mem::take(&mut self.unscheduled);
        keys.sort_unstable();
        keys.dedup();
        for key in keys.drain(..) {
            let Some(held) = self.rows.get_mut(&key) else { continue };
            let wake = wake_time(&self.operator, &held.row, true, self.fired, self.lateness);
            schedule_earlier(&mut self.wakes, held, wake, key);
        }
        self.unscheduled = keys;
    }

    /// Returns the windows of a key that end at or before `through`, in order.
    fn shown(&self, key: &B::Key, through: EventTime) -> Vec<WindowRow<B::Key, B::Value>> {
        let mut shown = Vec::new();
        if let Some(held) = self.rows.get(key) {
            let between = (self.closed, through);
            self.operator.show(key, &held.row, between, &mut |row| shown.push(row));
        }
        shown
    }
}

/// Schedules a key. A key that has nothing more to do is not scheduled: only a record or the end of the stream can
/// change that.
fn schedule_at<K>(wakes: &mut BTreeMap<EventTime, Vec<K>>, time: EventTime, key: K) {
    if time < EventTime::MAX {
        wakes.entry(time).or_default().push(key);
    }
}

/// Schedules a row at a time, unless it is scheduled at an earlier one.
fn schedule_earlier<K, R>(wakes: &mut BTreeMap<EventTime, Vec<K>>, held: &mut KeyedEntry<R>, wake: EventTime, key: K) {
    if wake < held.wake {
        held.wake = wake;
        schedule_at(wakes, wake, key);
    }
}

/// Returns the watermark at which a row is next due, to close or to fire.
fn wake_time<B: KeyedOperator>(
    operator: &B,
    row: &B::Row,
    corrects: bool,
    fired: EventTime,
    lateness: Span,
) -> EventTime {
    let closes = B::due(row).plus(lateness);
    let fires = if corrects { operator.end_after(row, fired) } else { None };
    fires.map_or(closes, |fires| fires.min(closes))
}

/// Calls `each` with the items that are in one list only: with -1 for `old`, with 1 for `new`.
fn differences<T: Ord + Clone>(old: &[T], new: &[T], mut each: impl FnMut(T, isize)) {
    let (before, after) = (BTreeSet::from_iter(old), BTreeSet::from_iter(new));
    before.difference(&after).for_each(|row| each((*row).clone(), -1));
    after.difference(&before).for_each(|row| each((*row).clone(), 1));
}

impl<B: KeyedOperator> OperatorState for KeyedRows<B> {
    type Key = B::Key;
    type Place = EventStamp;
    type Part = B::Part;
    type SavedRow = (B::Key, Version<B::Row>);
    type Closed = B::Closed;
    type Value = B::Value;

    fn saved_rows() -> RowOps<Self::SavedRow> {
        saved_versions(|saved| end_of_version(saved, B::expires_at))
    }

    fn key_of(saved: &Self::SavedRow) -> &B::Key {
        &saved.0
    }

    fn tracks_changes(&self) -> bool {
        self.subscriptions.live.get() || self.subscriptions.corrections(self.lateness)
    }

    fn absorb(&mut self, records: &mut Vec<RoutedRecordOf<Self>>) {
        let mut records = records.drain(..);
        while !records.as_slice().is_empty() {
            self.read_ahead(records.as_slice().iter().map(|(key, ..)| key));
            for (key, stamp, part) in records.by_ref().take(look_ahead::GROUP) {
                self.add(key, stamp, part);
            }
        }
        self.schedule_added();
    }

    fn absorb_tracked(
        &mut self,
        epoch: u64,
        mut records: Vec<RoutedRecordOf<Self>>,
        results: &mut StepResultsOf<Self>,
    ) {
        let keys = records.iter().map(|(key, ..)| key.clone()).collect::<BTreeSet<_>>();
        let through = if self.subscriptions.live.get() { EventTime::MAX } else { self.fired };
        let before: Vec<_> = keys.into_iter().map(|key| (self.shown(&key, through), key)).collect();
        self.absorb(&mut records);
        for (old, key) in before {
            let new = self.shown(&key, through);
            let fired = |rows: &[WindowRow<B::Key, B::Value>]| {
                rows.iter().filter(|row| row.0.end <= self.fired).cloned().collect::<Vec<_>>()
            };
            if self.subscriptions.corrections(self.lateness) {
                differences(&fired(&old), &fired(&new), |row, diff| results.fired.push((row, epoch, diff)));
            }
            if self.subscriptions.live.get() {
                differences(&old, &new, |row, diff| results.live.push((row, epoch, diff)));
            }
        }
    }

    fn load(&mut self, epoch: u64, rows: Vec<Self::SavedRow>, results: &mut StepResultsOf<Self>) {
        for (key, mut row) in Version::latest(rows) {
            B::prune(&mut row, self.closed);
            if B::is_finished(&row) {
                continue;
            }
            self.metrics.loaded.add(B::count(&row).unsigned_abs());
            if self.subscriptions.live.get() {
                let all = (self.closed, EventTime::MAX);
                self.operator.show(&key, &row, all, &mut |shown| results.live.push((shown, epoch, 1)));
            }
            let wake = wake_time(
                &self.operator,
                &row,
                self.subscriptions.corrections(self.lateness),
                self.fired,
                self.lateness,
            );
            schedule_at(&mut self.wakes, wake, key.clone());
            self.rows.insert(key, KeyedEntry { row, wake, unsealed: false });
        }
    }

    fn open_windows(&self) -> Option<WorkerWindows> {
        let (keys, next_at) = (self.rows.len() as u64, self.wakes.keys().next().copied());
        Some(WorkerWindows { keys: Some(keys), next_at, ..WorkerWindows::default() })
    }

    fn seal(&mut self, epoch: u64) -> (EventTime, Option<RowChunks<Self::SavedRow>>) {
        let Some(unsealed) = &mut self.unsealed else { return (self.closed, None) };
        let mut keys = std::mem::take(unsealed);
        keys.sort_unstable();
        keys.dedup();
        let mut rows = Vec::with_capacity(keys.len());
        for key in keys {
            let row = self.rows.get_mut(&key).map(|held| {
                held.unsealed = false;
                held.row.clone()
            });
            if row.is_some() || !B::EXPIRES {
                rows.push((key, Version { epoch, row }));
            }
        }
        (self.closed, if rows.is_empty() { None } else { Some(chunks_of(rows)) })
    }

    fn advance(&mut self, epoch: u64, watermark: EventTime, results: &mut StepResultsOf<Self>) {
        let (to, before, corrects) =
            (watermark.minus(self.lateness), self.fired, self.subscriptions.corrections(self.lateness));
        let live = self.subscriptions.live.get();
        let fires = self.subscriptions.fired.get() && !corrects;
        self.fired = watermark;
        let mut counted = 0;
        if watermark == EventTime::MAX {
            // The stream has ended: rows that nothing else wakes end too.
            let rest = self.rows.iter().filter(|(_, held)| held.wake == EventTime::MAX);
            let rest: Vec<_> = rest.map(|(key, _)| key.clone()).collect();
            self.wakes.insert(EventTime::MAX, rest);
        }
        while let Some(entry) = self.wakes.first_entry().filter(|entry| *entry.key() <= watermark) {
            let (time, keys) = entry.remove_entry();
            let mut keys = keys.into_iter();
            while !keys.as_slice().is_empty() {
                self.read_ahead(keys.as_slice().iter());
                for key in keys.by_ref().take(look_ahead::GROUP) {
                    let Some(held) = self.rows.get_mut(&key).filter(|held| held.wake == time) else { continue };
                    if corrects {
                        let between = (before.max(self.closed), watermark);
                        self.operator.show(&key, &held.row, between, &mut |row| results.fired.push((row, epoch, 1)));
                    }
                    let from = results.closed.len();
                    if B::due(&held.row) <= to {
                        counted += self.operator.advance(&key, &mut held.row, to, &mut results.closed);
                        if let Some(unsealed) = self.unsealed.as_mut().filter(|_| !B::EXPIRES && !held.unsealed) {
                            held.unsealed = true;
                            unsealed.push(key.clone());
                        }
                    }
                    for row in results.closed[from..].iter().filter_map(B::window_of) {
                        if live {
                            results.live.push((row.clone(), epoch, -1));
                        }
                        if fires {
                            results.fired.push((row, epoch, 1));
                        }
                    }
                    if B::is_finished(&held.row) {
                        self.rows.remove(&key);
                    } else {
                        held.wake = wake_time(&self.operator, &held.row, corrects, watermark, self.lateness);
                        schedule_at(&mut self.wakes, held.wake, key);
                    }
                }
            }
        }
        self.closed = self.closed.max(to);
        self.metrics.counted.add(counted.unsigned_abs());
        for (period, at) in self.subscriptions.ticks(before, watermark) {
            for (key, held) in &self.rows {
                let all = (self.closed, EventTime::MAX);
                self.operator.show(key, &held.row, all, &mut |row| results.ticked.push((period, at, row)));
            }
        }
    }
}

/// Counts the records that are still held: in = counted + late holds whenever a job stops.
impl<B: KeyedOperator> Drop for KeyedRows<B> {
    fn drop(&mut self) {
        let held: i64 = self.rows.values().map(|held| B::count(&held.row)).sum();
        self.metrics.counted.add(held.unsigned_abs());
    }
}
