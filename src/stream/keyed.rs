//! What a step keeps by key alone: a row for each key, which the records' own times drive. Sessions are made of it, and state
//! with timers.
//!
//! * What a row is and does, a [`Behaviour`] says: it takes records in any order, and is then brought forward to a time, in
//!   which whatever was due until then happens in the order of event time. So results are a function of the records.
//! * A row is **woken** when the watermark comes to the time at which it next has something to do. An index by time has the
//!   keys; it is lazy: a row that has moved on is woken in vain, and put where it belongs now.
//! * Snapshots keep **versions** of rows: a segment has the rows that have changed since the last seal, as they are then, each
//!   with the epoch. Of several versions of a row the latest counts, so any segments may be merged, in any order. A row that is
//!   gone is a version, too, unless the watermark tells that its last version is dead; a merge of the oldest segments drops it.
//!
//! Invariant: records that are on time never touch what a row has done: they happen at the time that it was brought forward to,
//! or later.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use foldhash::fast::FixedState;
use serde::{Deserialize, Serialize};

use crate::metrics::StepMetrics;
use crate::record::Record;
use crate::stream::assign::{Routed, Stamp};
use crate::stream::cut::{RowKind, RowsOut, give_out};
use crate::stream::fold::{Fold, ResultsOf, RoutedOf, Shown, Wants};
use crate::time::{EventTime, Span};

/// What a step keeps of a key, and does with it.
pub(crate) trait Behaviour: 'static {
    type Key: Record;
    /// What is there of a record.
    type Part: Record;
    /// What is kept of a key.
    type Row: Record;
    /// What is shown when it is final.
    type Closed: Clone + 'static;
    /// What windows show; nothing for steps that have none.
    type Value: Record;

    /// Whether a row is over at a time that is known from the row; else its end is kept as a version of its own.
    const DIES: bool;

    /// When nothing of the row is left, if that is known.
    fn dead_at(row: &Self::Row) -> EventTime;

    /// What one record makes.
    fn begin(&self, stamp: Stamp, part: Self::Part) -> Self::Row;

    /// Adds a record, in any order.
    fn absorb(&self, row: &mut Self::Row, stamp: Stamp, part: Self::Part);

    /// The least time that brings something about, when the row is brought forward to it.
    fn due(row: &Self::Row) -> EventTime;

    /// Brings the row forward to a time; tells what comes of it, and answers how many records are done with.
    fn advance(&self, key: &Self::Key, row: &mut Self::Row, to: EventTime, closed: &mut Vec<Self::Closed>) -> i64;

    /// Forgets what had closed at a time in an earlier life.
    fn prune(row: &mut Self::Row, closed: EventTime);

    /// Whether nothing is left.
    fn is_over(row: &Self::Row) -> bool;

    /// How many records the row holds.
    fn count(row: &Self::Row) -> i64;

    /// The windows that the row has, of those that end after one time and not after another.
    fn show(
        &self,
        key: &Self::Key,
        row: &Self::Row,
        between: (EventTime, EventTime),
        each: &mut dyn FnMut(Shown<Self::Key, Self::Value>),
    );

    /// The end of the first window of the row that ends after a time.
    fn end_after(&self, row: &Self::Row, time: EventTime) -> Option<EventTime>;

    /// The window that was closed, where it is one.
    fn window_of(closed: &Self::Closed) -> Option<Shown<Self::Key, Self::Value>>;
}

/// Puts a record where it belongs; most come about in their order.
pub(crate) fn in_order<T: Ord>(records: &mut Vec<T>, record: T) {
    let later = records.iter().rev().take_while(|other| **other > record).count();
    records.insert(records.len() - later, record);
}

/// When the first of some records that wait, in order, is passed; never if there is none.
pub(crate) fn first_passed<T>(waiting: &[(Stamp, T)]) -> EventTime {
    waiting.first().map_or(EventTime::MAX, |((time, _), _)| time.next())
}

/// How many records that wait, in order, a time has passed.
pub(crate) fn passed<T>(waiting: &[(Stamp, T)], to: EventTime) -> usize {
    waiting.iter().take_while(|((time, _), _)| *time < to).count()
}

/// A row as it was at an epoch; `None` when it was over.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct Version<R> {
    epoch: u64,
    row: Option<R>,
}

/// A row in memory.
struct Held<R> {
    row: R,
    /// When it is woken.
    wake: EventTime,
    /// It has changed since the last seal.
    unsealed: bool,
}

type Map<K, R> = HashMap<K, R, FixedState>;

/// The rows of one worker.
pub(crate) struct Rows<B: Behaviour> {
    behaviour: B,
    rows: Map<B::Key, Held<B::Row>>,
    /// Keys by the time at which they are woken.
    wakes: BTreeMap<EventTime, Vec<B::Key>>,
    /// The keys of rows that have changed, or are over, since the last seal; `None` in a job without state.
    unsealed: Option<Vec<B::Key>>,
    /// What rows have been brought forward to.
    closed: EventTime,
    /// Windows that end here or before have fired.
    fired: EventTime,
    lateness: Span,
    wants: Wants,
    metrics: Arc<StepMetrics>,
}

impl<B: Behaviour> Rows<B> {
    pub(crate) fn begin(
        behaviour: B,
        (closed, durable): (EventTime, bool),
        (wants, lateness): (Wants, Span),
        metrics: Arc<StepMetrics>,
    ) -> Self {
        let (rows, wakes, unsealed) = (HashMap::default(), BTreeMap::new(), durable.then(Vec::new));
        Rows { behaviour, rows, wakes, unsealed, closed, fired: EventTime::MIN, lateness, wants, metrics }
    }

    /// Takes a record.
    fn add(&mut self, key: B::Key, stamp: Stamp, part: B::Part) {
        let (corrects, fired, lateness) = (self.wants.corrections(self.lateness), self.fired, self.lateness);
        let held = match self.rows.entry(key.clone()) {
            Entry::Occupied(held) => {
                let held = held.into_mut();
                self.behaviour.absorb(&mut held.row, stamp, part);
                held
            }
            Entry::Vacant(place) => {
                let row = self.behaviour.begin(stamp, part);
                place.insert(Held { row, wake: EventTime::MAX, unsealed: false })
            }
        };
        if let Some(unsealed) = self.unsealed.as_mut().filter(|_| !held.unsealed) {
            held.unsealed = true;
            unsealed.push(key.clone());
        }
        let wake = wake_of(&self.behaviour, &held.row, corrects, fired, lateness);
        if wake < held.wake {
            held.wake = wake;
            wake_at(&mut self.wakes, wake, key);
        }
    }

    /// The windows of a key that end at a time or before, in order.
    fn shown(&self, key: &B::Key, through: EventTime) -> Vec<Shown<B::Key, B::Value>> {
        let mut shown = Vec::new();
        if let Some(held) = self.rows.get(key) {
            let between = (self.closed, through);
            self.behaviour.show(key, &held.row, between, &mut |row| shown.push(row));
        }
        shown
    }
}

/// Has a key woken. One that has nothing more to do is not: only a record can change that, or the end of the stream.
fn wake_at<K>(wakes: &mut BTreeMap<EventTime, Vec<K>>, time: EventTime, key: K) {
    if time < EventTime::MAX {
        wakes.entry(time).or_default().push(key);
    }
}

/// When a row is to be woken, by the watermark.
fn wake_of<B: Behaviour>(behaviour: &B, row: &B::Row, corrects: bool, fired: EventTime, lateness: Span) -> EventTime {
    let closes = B::due(row).plus(lateness);
    let fires = if corrects { behaviour.end_after(row, fired) } else { None };
    fires.map_or(closes, |fires| fires.min(closes))
}

/// What of one list is not in the other; both are in order.
fn differences<T: Ord + Clone>(old: &[T], new: &[T], mut each: impl FnMut(T, isize)) {
    let (before, after) = (BTreeSet::from_iter(old), BTreeSet::from_iter(new));
    before.difference(&after).for_each(|row| each((*row).clone(), -1));
    after.difference(&before).for_each(|row| each((*row).clone(), 1));
}

impl<B: Behaviour> Fold for Rows<B> {
    type Key = B::Key;
    type Place = Stamp;
    type Part = B::Part;
    type Saved = (B::Key, Version<B::Row>);
    type Closed = B::Closed;
    type Value = B::Value;

    fn saved_rows() -> RowKind<Self::Saved> {
        RowKind {
            order: |a, b| a.0.cmp(&b.0),
            add: |a, b| {
                if b.1 > a.1 {
                    a.1.clone_from(&b.1);
                }
            },
            is_zero: |_| false,
            is_over: |saved| saved.1.row.is_none(),
            window: |saved| saved.1.row.as_ref().map_or(EventTime::MAX, B::dead_at),
        }
    }

    fn key_of(saved: &Self::Saved) -> &B::Key {
        &saved.0
    }

    fn watches(&self) -> bool {
        self.wants.live.get() || self.wants.corrections(self.lateness)
    }

    fn absorb(&mut self, records: &mut Vec<RoutedOf<Self>>) {
        records.drain(..).for_each(|(key, stamp, part): Routed<_, _, _>| self.add(key, stamp, part));
    }

    fn absorb_watching(&mut self, epoch: u64, mut records: Vec<RoutedOf<Self>>, results: &mut ResultsOf<Self>) {
        let keys = records.iter().map(|(key, ..)| key.clone()).collect::<BTreeSet<_>>();
        let through = if self.wants.live.get() { EventTime::MAX } else { self.fired };
        let before: Vec<_> = keys.into_iter().map(|key| (self.shown(&key, through), key)).collect();
        self.absorb(&mut records);
        for (old, key) in before {
            let new = self.shown(&key, through);
            let fired = |rows: &[Shown<B::Key, B::Value>]| {
                rows.iter().filter(|row| row.0.end <= self.fired).cloned().collect::<Vec<_>>()
            };
            if self.wants.corrections(self.lateness) {
                differences(&fired(&old), &fired(&new), |row, diff| results.fired.push((row, epoch, diff)));
            }
            if self.wants.live.get() {
                differences(&old, &new, |row, diff| results.live.push((row, epoch, diff)));
            }
        }
    }

    fn load(&mut self, epoch: u64, rows: Vec<Self::Saved>, results: &mut ResultsOf<Self>) {
        let mut latest = Map::<B::Key, Version<B::Row>>::default();
        for (key, version) in rows {
            match latest.entry(key) {
                Entry::Occupied(known) if *known.get() >= version => {}
                Entry::Occupied(mut known) => drop(known.insert(version)),
                Entry::Vacant(place) => drop(place.insert(version)),
            }
        }
        let loaded = latest.into_iter().filter_map(|(key, version)| Some((key, version.row?)));
        for (key, mut row) in loaded {
            B::prune(&mut row, self.closed);
            if B::is_over(&row) {
                continue;
            }
            self.metrics.loaded.add(B::count(&row).unsigned_abs());
            if self.wants.live.get() {
                let all = (self.closed, EventTime::MAX);
                self.behaviour.show(&key, &row, all, &mut |shown| results.live.push((shown, epoch, 1)));
            }
            let wake = wake_of(&self.behaviour, &row, self.wants.corrections(self.lateness), self.fired, self.lateness);
            wake_at(&mut self.wakes, wake, key.clone());
            self.rows.insert(key, Held { row, wake, unsealed: false });
        }
    }

    fn seal(&mut self, epoch: u64) -> (EventTime, Option<RowsOut<Self::Saved>>) {
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
            if row.is_some() || !B::DIES {
                rows.push((key, Version { epoch, row }));
            }
        }
        (self.closed, if rows.is_empty() { None } else { Some(give_out(rows)) })
    }

    fn advance(&mut self, epoch: u64, watermark: EventTime, results: &mut ResultsOf<Self>) {
        let (to, before, corrects) =
            (watermark.minus(self.lateness), self.fired, self.wants.corrections(self.lateness));
        let live = self.wants.live.get();
        let fires = self.wants.fired.get() && !corrects;
        self.fired = watermark;
        let mut counted = 0;
        if watermark == EventTime::MAX {
            // The stream is over, and with it what nothing else ends.
            let rest = self.rows.iter().filter(|(_, held)| held.wake == EventTime::MAX);
            let rest: Vec<_> = rest.map(|(key, _)| key.clone()).collect();
            self.wakes.insert(EventTime::MAX, rest);
        }
        while let Some(entry) = self.wakes.first_entry().filter(|entry| *entry.key() <= watermark) {
            let (time, keys) = entry.remove_entry();
            for key in keys {
                let Some(held) = self.rows.get_mut(&key).filter(|held| held.wake == time) else { continue };
                if corrects {
                    let between = (before.max(self.closed), watermark);
                    self.behaviour.show(&key, &held.row, between, &mut |row| results.fired.push((row, epoch, 1)));
                }
                let from = results.closed.len();
                if B::due(&held.row) <= to {
                    counted += self.behaviour.advance(&key, &mut held.row, to, &mut results.closed);
                    if let Some(unsealed) = self.unsealed.as_mut().filter(|_| !B::DIES && !held.unsealed) {
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
                if B::is_over(&held.row) {
                    self.rows.remove(&key);
                } else {
                    held.wake = wake_of(&self.behaviour, &held.row, corrects, watermark, self.lateness);
                    wake_at(&mut self.wakes, held.wake, key);
                }
            }
        }
        self.closed = self.closed.max(to);
        self.metrics.counted.add(counted.unsigned_abs());
        for (period, at) in self.wants.ticks(before, watermark) {
            for (key, held) in &self.rows {
                let all = (self.closed, EventTime::MAX);
                self.behaviour.show(key, &held.row, all, &mut |row| results.ticked.push((period, at, row)));
            }
        }
    }
}

/// What is still held is counted too: in = counted + late holds whenever a job stops.
impl<B: Behaviour> Drop for Rows<B> {
    fn drop(&mut self) {
        let held: i64 = self.rows.values().map(|held| B::count(&held.row)).sum();
        self.metrics.counted.add(held.unsigned_abs());
    }
}
