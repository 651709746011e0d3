//! The state of an as-of join that looks back: each record gets the last version that is not later.
//!
//! Such a record is decided when the watermark has passed its own time, whatever versions there are. So it waits in a
//! wheel by time, apart from the versions of its key, and its key is looked up once: when it is decided. A seal puts the
//! records that still wait to the versions of their keys, where the rows of snapshots have them; so it costs what has
//! come since the last one.
//!
//! Versions that no record needs any more are removed when their key gets another, and when all keys are looked at (see
//! [`SweepSchedule`]): nothing depends on when.
//!
//! Invariant: records that wait, and those that come, happen at the time that the join has been advanced to, or later.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::marker::PhantomData;
use std::sync::Arc;

use foldhash::fast::FixedState;

use super::joined::moment;
use super::side::JoinSide;
use super::sweep::{self, SweepSchedule};
use super::time_wheel::TimeWheel;
use super::versions::{AsOfRecords, AsOfRule, insert_version};
use crate::metrics::{StepMetrics, WorkerWindows};
use crate::record::Record;
use crate::stream::assign::{EventStamp, SourcePosition};
use crate::stream::checkpoint::{RowChunks, RowOps, chunks_of};
use crate::stream::keyed_rows::{SavedVersion, Version, saved_versions};
use crate::stream::operator_state::{OperatorState, RoutedRecordOf, StepResultsOf};
use crate::stream::waiting_records::WaitingRecords;
use crate::time::{EventTime, Span};

/// The records of a key that waited at a seal.
struct SealedRecords<L> {
    records: WaitingRecords<(EventStamp, L)>,
    /// The time of the entry by which the key is woken: that of the earliest record.
    wake: EventTime,
}

/// The versions of a key, and its records that are in a snapshot.
struct KeyVersions<L, R> {
    /// Versions that may be needed, in order.
    versions: Vec<(EventStamp, R)>,
    /// Most keys have none.
    waiting: Option<Box<SealedRecords<L>>>,
    /// `true` if the row has changed since the last seal.
    unsealed: bool,
}

impl<L, R> Default for KeyVersions<L, R> {
    fn default() -> Self {
        KeyVersions { versions: Vec::new(), waiting: None, unsealed: false }
    }
}

impl<L, R> KeyVersions<L, R> {
    fn is_empty(&self) -> bool {
        self.versions.is_empty() && self.waiting.is_none()
    }

    /// Returns the number of versions and records.
    fn len(&self) -> usize {
        self.versions.len() + self.waiting.as_ref().map_or(0, |waiting| waiting.records.len())
    }

    /// Removes the versions that neither a record at `from` or later needs nor one that waits; returns their number.
    fn prune(&mut self, rule: AsOfRule, from: EventTime) -> usize {
        let from = self.waiting.as_ref().map_or(from, |waiting| waiting.wake.min(from));
        self.versions.drain(..rule.unneeded(&self.versions, from)).len()
    }
}

/// A record that waits, with its key and its position; its time is that of its entry.
type RecentRecord<K, L> = (K, SourcePosition, L);

/// The state of the join on one worker.
pub(super) struct BackwardState<K, L, R, O, M> {
    rule: AsOfRule,
    /// Makes a row of a record and its version, if it has one.
    row: M,
    keys: HashMap<K, KeyVersions<L, R>, FixedState>,
    /// Records that came since the last seal and wait.
    recent: TimeWheel<RecentRecord<K, L>>,
    /// The keys of records that waited at a seal; entries that an earlier one has replaced are stale.
    wakes: TimeWheel<K>,
    /// Keys that are woken; empty between two calls: its memory is used again.
    woken: Vec<(EventTime, K)>,
    sweep: SweepSchedule,
    /// The keys of rows that have changed or were removed since the last seal; `None` in a job without state.
    unsealed: Option<Vec<K>>,
    /// Versions that were removed since the last watermark.
    removed: usize,
    /// The time that the join has been advanced to: the watermark, less the allowed lateness.
    closed: EventTime,
    lateness: Span,
    metrics: Arc<StepMetrics>,
    results: PhantomData<fn() -> O>,
}

/// Notes that a key's row has changed since the last seal.
fn note_change<K: Clone, L, R>(unsealed: &mut Option<Vec<K>>, key: &K, held: &mut KeyVersions<L, R>) {
    if let Some(unsealed) = unsealed.as_mut().filter(|_| !held.unsealed) {
        held.unsealed = true;
        unsealed.push(key.clone());
    }
}

impl<K, L, R, O, M> BackwardState<K, L, R, O, M>
where
    K: Record,
    L: Record,
    R: Record,
    O: Record,
    M: Fn(&K, &L, Option<&R>) -> Option<O> + 'static,
{
    pub(super) fn begin(
        (rule, row): (AsOfRule, M),
        (closed, is_durable): (EventTime, bool),
        lateness: Span,
        metrics: Arc<StepMetrics>,
    ) -> Self {
        BackwardState {
            rule,
            row,
            keys: HashMap::default(),
            recent: TimeWheel::new(closed),
            wakes: TimeWheel::new(closed),
            woken: Vec::new(),
            sweep: SweepSchedule::default(),
            unsealed: is_durable.then(Vec::new),
            removed: 0,
            closed,
            lateness,
            metrics,
            results: PhantomData,
        }
    }

    /// Returns the least time at which a version is of no use to any record.
    fn over_at(&self, version: EventTime) -> EventTime {
        self.rule.tolerance.map_or(EventTime::MAX, |tolerance| version.plus(tolerance).next())
    }

    fn add_version(&mut self, key: &K, stamp: EventStamp, version: R) {
        self.sweep.note(self.over_at(stamp.0));
        let held = match self.keys.get_mut(key) {
            Some(held) => held,
            None => self.keys.entry(key.clone()).or_default(),
        };
        if held.versions.len() == held.versions.capacity() {
            self.removed += held.prune(self.rule, self.closed);
        }
        insert_version(&mut held.versions, (stamp, version));
        note_change(&mut self.unsealed, key, held);
    }

    /// Puts records that wait to the versions of their keys.
    fn seal_recent(&mut self) {
        let BackwardState { keys, recent, wakes, unsealed, .. } = self;
        recent.take_all(|time, (key, position, record)| {
            let held = keys.entry(key.clone()).or_default();
            note_change(unsealed, &key, held);
            let none = || Box::new(SealedRecords { records: WaitingRecords::empty(), wake: EventTime::MAX });
            let waiting = held.waiting.get_or_insert_with(none);
            waiting.records.insert(((time, position), record));
            if time < waiting.wake {
                waiting.wake = time;
                wakes.add(time, key);
            }
        });
    }

    /// Decides the records that waited at a seal and that a time has passed; returns their number.
    fn decide_sealed(&mut self, to: EventTime, rows: &mut Vec<(EventTime, O)>) -> usize {
        let BackwardState { rule, row, keys, wakes, woken, unsealed, .. } = self;
        let mut decided = 0;
        wakes.take_before(to, |time, key| woken.push((time, key)));
        for (time, key) in woken.drain(..) {
            let Entry::Occupied(mut entry) = keys.entry(key) else { continue };
            let key = entry.key().clone();
            let held = entry.get_mut();
            let Some(waiting) = held.waiting.as_mut().filter(|waiting| waiting.wake == time) else { continue };
            while let Some(((time, _), record)) = waiting.records.pop_passed(to) {
                decided += 1;
                let (version, certain) = rule.find(&held.versions, time);
                rows.extend(row(&key, &record, version).map(|made| (moment(certain), made)));
            }
            match waiting.records.first_time() {
                Some(next) => {
                    waiting.wake = next;
                    wakes.add(next, key.clone());
                }
                None => held.waiting = None,
            }
            note_change(unsealed, &key, held);
            if held.is_empty() {
                entry.remove();
            }
        }
        decided
    }

    /// Removes whatever is left when the stream has ended; returns the number of versions.
    fn end(&mut self) -> usize {
        let mut left = 0;
        for (key, mut held) in std::mem::take(&mut self.keys) {
            left += held.len();
            note_change(&mut self.unsealed, &key, &mut held);
        }
        left
    }

    /// Removes the versions of all keys that no record needs; returns their number.
    fn sweep(&mut self) -> usize {
        let BackwardState { rule, keys, sweep: schedule, unsealed, closed, .. } = self;
        let (mut removed, mut left) = (0, 0);
        keys.retain(|key, held| {
            // The last version of a key stays if it can be of any age.
            if held.versions.len() > 1 || rule.tolerance.is_some() {
                removed += held.prune(*rule, *closed);
            }
            left += held.versions.len();
            if held.is_empty() {
                // A snapshot may have the row. One that has only become shorter is saved when it changes.
                note_change(unsealed, key, held);
            }
            !held.is_empty()
        });
        schedule.swept(left);
        sweep::release(keys);
        removed
    }
}

impl<K, L, R, O, M> OperatorState for BackwardState<K, L, R, O, M>
where
    K: Record,
    L: Record,
    R: Record,
    O: Record,
    M: Fn(&K, &L, Option<&R>) -> Option<O> + 'static,
{
    type Key = K;
    type Place = EventStamp;
    type Part = JoinSide<L, R>;
    type SavedRow = SavedVersion<K, AsOfRecords<L, R>>;
    type Closed = (EventTime, O);
    type Value = ();

    fn saved_rows() -> RowOps<Self::SavedRow> {
        saved_versions(|_| EventTime::MAX)
    }

    fn key_of(saved: &Self::SavedRow) -> &K {
        &saved.0
    }

    fn absorb(&mut self, records: &mut Vec<RoutedRecordOf<Self>>) {
        for (key, stamp, part) in records.drain(..) {
            match part {
                JoinSide::Left(record) => self.recent.add(stamp.0, (key, stamp.1, record)),
                JoinSide::Right(version) => self.add_version(&key, stamp, version),
            }
        }
    }

    fn load(&mut self, _epoch: u64, rows: Vec<Self::SavedRow>, _results: &mut StepResultsOf<Self>) {
        for (key, row) in Version::latest(rows) {
            let AsOfRecords { versions, waiting, .. } = row;
            let wake = waiting.first_time();
            if let Some(wake) = wake {
                self.wakes.add(wake, key.clone());
            }
            versions.iter().for_each(|((time, _), _)| self.sweep.note(self.over_at(*time)));
            let waiting = wake.map(|wake| Box::new(SealedRecords { records: waiting, wake }));
            let held = KeyVersions { versions, waiting, unsealed: false };
            self.metrics.loaded.add(held.len() as u64);
            if !held.is_empty() {
                self.keys.insert(key, held);
            }
        }
    }

    fn open_windows(&self) -> Option<WorkerWindows> {
        let first = [self.recent.first_time(), self.wakes.first_time()].into_iter().flatten().min();
        let next_at = first.map(|time| time.next().plus(self.lateness));
        Some(WorkerWindows { keys: Some(self.keys.len() as u64), next_at, ..WorkerWindows::default() })
    }

    fn seal(&mut self, epoch: u64) -> (EventTime, Option<RowChunks<Self::SavedRow>>) {
        if self.unsealed.is_none() {
            return (self.closed, None);
        }
        self.seal_recent();
        let mut keys = self.unsealed.as_mut().map(std::mem::take).unwrap_or_default();
        keys.sort_unstable();
        keys.dedup();
        let mut rows = Vec::with_capacity(keys.len());
        for key in keys {
            let row = self.keys.get_mut(&key).and_then(|held| {
                held.unsealed = false;
                self.removed += held.prune(self.rule, self.closed);
                let waiting = held.waiting.as_ref().map(|waiting| waiting.records.clone());
                let (versions, waiting) = (held.versions.clone(), waiting.unwrap_or(WaitingRecords::empty()));
                let due = self.rule.due(&versions, &waiting);
                (!held.is_empty()).then_some(AsOfRecords { due, versions, waiting })
            });
            if row.is_none() {
                self.keys.remove(&key);
            }
            rows.push((key, Version::new(epoch, row)));
        }
        (self.closed, if rows.is_empty() { None } else { Some(chunks_of(rows)) })
    }

    fn advance(&mut self, _epoch: u64, watermark: EventTime, results: &mut StepResultsOf<Self>) {
        let to = watermark.minus(self.lateness);
        let rows = &mut results.closed;
        let mut decided = 0;
        let BackwardState { rule, row, keys, recent, .. } = self;
        let decide = |time, (key, _, record): RecentRecord<K, L>| {
            decided += 1;
            let versions = keys.get(&key).map_or(&[][..], |held| &held.versions[..]);
            let (version, certain) = rule.find(versions, time);
            rows.extend(row(&key, &record, version).map(|made| (moment(certain), made)));
        };
        recent.take_before(to, decide);
        decided += self.decide_sealed(to, rows);
        self.closed = self.closed.max(to);
        let mut removed = std::mem::take(&mut self.removed);
        if to == EventTime::MAX {
            removed += self.end();
        } else if self.sweep.is_due(to) {
            removed += self.sweep();
        }
        self.metrics.counted.add((decided + removed) as u64);
    }
}

/// Counts the records that are still held: in = counted + late holds whenever a job stops.
impl<K, L, R, O, M> Drop for BackwardState<K, L, R, O, M> {
    fn drop(&mut self) {
        let held: usize = self.keys.values().map(KeyVersions::len).sum();
        self.metrics.counted.add((held + self.recent.len() + self.removed) as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::super::versions::Direction;
    use super::*;

    /// Key, record and version.
    type IdRow = (u8, u32, Option<u32>);
    type TestState = BackwardState<u8, u32, u32, IdRow, fn(&u8, &u32, Option<&u32>) -> Option<IdRow>>;

    fn begin(rule: AsOfRule, closed: EventTime) -> TestState {
        let row: fn(&u8, &u32, Option<&u32>) -> Option<IdRow> = |key, left, right| Some((*key, *left, right.copied()));
        BackwardState::begin((rule, row), (closed, true), Span::ZERO, Arc::default())
    }

    /// The rows of all records up to a time, computed from all records that there are.
    fn expected(
        records: &[(u8, EventStamp, JoinSide<u32, u32>)],
        to: EventTime,
        rule: AsOfRule,
    ) -> Vec<(EventTime, IdRow)> {
        let mut rows = Vec::new();
        for (key, (time, _), part) in records {
            let JoinSide::Left(left) = part else { continue };
            let versions = records.iter().filter_map(|(of, stamp, part)| match part {
                JoinSide::Right(right) if of == key && stamp.0 <= *time => Some((*stamp, *right)),
                _ => None,
            });
            let last = versions.max().filter(|((at, _), _)| rule.tolerance.is_none_or(|most| at.plus(most) >= *time));
            if *time < to {
                rows.push((*time, (*key, *left, last.map(|(_, right)| right))));
            }
        }
        rows.sort_unstable();
        rows
    }

    /// Compares with a computation of all records, through seals, snapshots that are loaded again, and sweeps.
    #[test]
    fn rows_are_those_of_all_records_whatever_is_sealed_loaded_and_removed() {
        for seed in 0..200 {
            let mut random = fastrand::Rng::with_seed(seed);
            let tolerance = random.bool().then(|| Span::saturating_from_millis(random.i64(0..60)));
            let rule = AsOfRule { direction: Direction::Backward, tolerance };
            let (mut now, disorder, keys) = (EventTime::from_millis(0), random.i64(1..80), random.u8(1..30));
            let (mut state, mut all, mut found) =
                (begin(rule, EventTime::MIN), Vec::new(), Vec::<(EventTime, IdRow)>::new());
            let (mut saved, mut next) = (Vec::<SavedVersion<u8, AsOfRecords<u32, u32>>>::new(), 0);
            for epoch in 1..random.u64(2..40) {
                let mut records = Vec::new();
                for _ in 0..random.u32(0..60) {
                    next += 1;
                    let time = EventTime::from_millis(now.millis() + random.i64(0..=disorder));
                    let part = if random.bool() { JoinSide::Left(next) } else { JoinSide::Right(next) };
                    records.push((random.u8(0..keys), (time, (0, 0, u64::from(next))), part));
                }
                all.extend(records.iter().cloned());
                state.absorb(&mut records);
                let is_sealed = random.u8(0..4) == 0;
                if is_sealed && let (_, Some(mut rows)) = state.seal(epoch) {
                    while rows(1_000, &mut |row| saved.push(row)) {}
                }
                if is_sealed && random.bool() {
                    // A life that begins with the snapshot: what it has closed is closed.
                    state = begin(rule, state.closed);
                    random.shuffle(&mut saved);
                    let mut results = StepResultsOf::<TestState>::default();
                    state.load(epoch, saved.clone(), &mut results);
                }
                now = EventTime::from_millis(now.millis() + random.i64(0..40));
                let mut results = StepResultsOf::<TestState>::default();
                state.advance(epoch, now, &mut results);
                found.append(&mut results.closed);
                found.sort_unstable();
                assert_eq!(found, expected(&all, now, rule), "seed {seed}, epoch {epoch}");
            }
            let mut results = StepResultsOf::<TestState>::default();
            state.advance(99, EventTime::MAX, &mut results);
            found.append(&mut results.closed);
            found.sort_unstable();
            assert_eq!(found, expected(&all, EventTime::MAX, rule), "seed {seed}");
            assert!(state.keys.is_empty() && state.recent.len() == 0 && state.wakes.first_time().is_none());
        }
    }

    #[test]
    fn versions_that_no_record_needs_are_removed() {
        let tolerance = Some(Span::saturating_from_millis(10));
        for tolerance in [None, tolerance] {
            let rule = AsOfRule { direction: Direction::Backward, tolerance };
            let mut state = begin(rule, EventTime::MIN);
            let mut most = 0_usize;
            for epoch in 0..2_000 {
                let version =
                    |key: u8| (key, (EventTime::from_millis(epoch), (0, 0, epoch as u64)), JoinSide::Right(0));
                state.absorb(&mut (0..4).map(version).collect());
                let mut results = StepResultsOf::<TestState>::default();
                state.advance(epoch as u64, EventTime::from_millis(epoch), &mut results);
                most = most.max(state.keys.values().map(KeyVersions::len).sum());
            }
            assert!(most < 4 * 40, "{most} versions of 4 keys are held");
            state.seal(5_000);
            let mut results = StepResultsOf::<TestState>::default();
            state.advance(6_000, EventTime::from_millis(1_000_000), &mut results);
            // Without a tolerance the last version of a key stays; with one, the row goes from the next snapshot too.
            let (_, rows) = state.seal(6_002);
            let mut tombstones = 0;
            if let Some(mut rows) = rows {
                while rows(10, &mut |row| tombstones += u64::from((TestState::saved_rows().is_tombstone)(&row))) {}
            }
            let left = if tolerance.is_some() { (0, 4) } else { (4, 0) };
            assert_eq!((state.keys.len(), tombstones), left);
        }
    }
}
