//! The keys of a join whose records wait: the records, the times at which something is due, and what is not sealed yet.
//!
//! Keys are **woken** if something is emitted at a time: a wheel has an entry for the time at which each is next due. A
//! key has one entry that counts, the earliest; later ones are stale and skipped. Otherwise records are removed when they
//! are in the way: when their key gets another, and when all keys are looked at (see [`SweepSchedule`]).

use std::collections::HashMap;

use foldhash::fast::FixedState;

use super::side::{self, KeyRecords, SavedRecord, WaitingRecord};
use super::sweep::{self, SweepSchedule};
use super::time_wheel::TimeWheel;
use crate::record::Record;
use crate::stream::checkpoint::{RowChunks, chunks_of};
use crate::stream::look_ahead;
use crate::time::EventTime;

/// The way in which keys with something due are found.
enum DueKeys<K> {
    /// Each is woken at the time. The list is empty between two calls: its memory is used again.
    Woken(TimeWheel<K>, Vec<(EventTime, K)>),
    /// All keys are looked at from time to time.
    Swept(SweepSchedule),
}

/// The waiting records of all keys of a join on one worker.
pub(super) struct WaitingKeys<K, L, R> {
    keys: HashMap<K, KeyRecords<L, R>, FixedState>,
    due: DueKeys<K>,
    /// The keys with records that have changed since the last seal; `None` in a job without state.
    unsealed: Option<Vec<K>>,
}

/// A record that is added to its key.
#[derive(Clone, Copy, Debug)]
pub(super) struct AddedRecord {
    /// `true` if it is in no segment yet: the next seal has to look at its key.
    pub(super) is_new: bool,
    /// The least time at which it is over.
    pub(super) over_at: EventTime,
}

impl<K: Record, L: Record, R: Record> WaitingKeys<K, L, R> {
    /// Creates the keys of a join that has been advanced to `closed`. `is_woken` if something is emitted when a time is
    /// reached; `is_durable` if records are sealed.
    pub(super) fn new(is_woken: bool, closed: EventTime, is_durable: bool) -> Self {
        let due = match is_woken {
            true => DueKeys::Woken(TimeWheel::new(closed), Vec::new()),
            false => DueKeys::Swept(SweepSchedule::default()),
        };
        WaitingKeys { keys: HashMap::default(), due, unsealed: is_durable.then(Vec::new) }
    }

    /// Reads the records of the next group of keys.
    pub(super) fn read_ahead<'a>(&self, keys: impl Iterator<Item = &'a K>) {
        look_ahead::read_entries(&self.keys, keys.take(look_ahead::GROUP), |records| {
            let time = |first: Option<EventTime>| first.map_or(0, EventTime::millis);
            let (left, right) = (records.left.first(), records.right.first());
            time(left.map(WaitingRecord::time)).wrapping_add(time(right.map(WaitingRecord::time)))
        });
    }

    /// Changes the records of a key. `change` adds the record and returns the time at which something of the key is due.
    #[inline]
    pub(super) fn update(
        &mut self,
        key: K,
        added: AddedRecord,
        change: impl FnOnce(&K, &mut KeyRecords<L, R>) -> EventTime,
    ) {
        let records = match self.keys.get_mut(&key) {
            Some(records) => records,
            None => self.keys.entry(key.clone()).or_default(),
        };
        let due = change(&key, records);
        if let Some(unsealed) = self.unsealed.as_mut().filter(|_| added.is_new && !records.unsealed) {
            records.unsealed = true;
            unsealed.push(key.clone());
        }
        match &mut self.due {
            DueKeys::Swept(sweep) => {
                records.due = due;
                sweep.note(added.over_at);
            }
            DueKeys::Woken(wheel, _) if due < records.due => {
                records.due = due;
                wheel.add(due, key);
            }
            DueKeys::Woken(..) => {}
        }
    }

    /// Closes the keys with something due until `to`, all of them at the end of time; keys that are looked at from time to
    /// time, only if that is due. `due` says when something of a key is due next. Returns the sum of what `close` returns.
    pub(super) fn advance(
        &mut self,
        to: EventTime,
        mut close: impl FnMut(&K, &mut KeyRecords<L, R>) -> u64,
        due: impl Fn(&KeyRecords<L, R>) -> EventTime,
    ) -> u64 {
        let mut sum = 0;
        if to == EventTime::MAX {
            // The stream has ended, and with it the time of keys that nothing else wakes.
            for (key, mut records) in std::mem::take(&mut self.keys) {
                sum += close(&key, &mut records);
            }
            match &mut self.due {
                DueKeys::Woken(wheel, _) => wheel.take_all(|_, _| ()),
                DueKeys::Swept(sweep) => sweep.swept(0),
            }
            return sum;
        }
        let WaitingKeys { keys, due: due_keys, .. } = self;
        match due_keys {
            DueKeys::Swept(schedule) if !schedule.is_due(to) => {}
            DueKeys::Swept(schedule) => {
                let mut left = 0;
                keys.retain(|key, records| {
                    if records.due <= to {
                        sum += close(key, records);
                        records.due = due(records);
                    }
                    left += records.len();
                    !records.is_empty()
                });
                schedule.swept(left);
                sweep::release(keys);
            }
            DueKeys::Woken(wheel, woken) => {
                wheel.take_before(to.next(), |time, key| woken.push((time, key)));
                if woken.len() > keys.capacity() / 8 {
                    // To look at all keys, one behind the other in memory, costs less than to look these up.
                    woken.clear();
                    keys.retain(|key, records| {
                        if records.due <= to {
                            sum += close(key, records);
                            records.due = due(records);
                            if records.due < EventTime::MAX {
                                wheel.add(records.due, key.clone());
                            }
                        }
                        !records.is_empty()
                    });
                }
                for (time, key) in woken.drain(..) {
                    let Some(records) = keys.get_mut(&key).filter(|records| records.due == time) else { continue };
                    sum += close(&key, records);
                    if records.is_empty() {
                        keys.remove(&key);
                        continue;
                    }
                    records.due = due(records);
                    if records.due < EventTime::MAX {
                        wheel.add(records.due, key);
                    }
                }
            }
        }
        sum
    }

    /// Returns the changes of all records since the last seal that have not expired when the step has closed `closed`.
    /// `until` says when a left and a right record of a time expire.
    pub(super) fn seal(
        &mut self,
        closed: EventTime,
        until: &(impl Fn(EventTime) -> EventTime, impl Fn(EventTime) -> EventTime),
    ) -> Option<RowChunks<SavedRecord<K, L, R>>> {
        let mut rows = Vec::new();
        for key in self.unsealed.as_mut().map(std::mem::take).unwrap_or_default() {
            if let Some(records) = self.keys.get_mut(&key) {
                records.seal(&key, (&until.0, &until.1), &mut rows);
            }
        }
        // Where nothing is emitted at the end, records are removed some time after they are over.
        rows.retain(|(_, change)| !change.is_expired(closed));
        side::consolidate(&mut rows);
        if rows.is_empty() { None } else { Some(chunks_of(rows)) }
    }
}

impl<K, L, R> WaitingKeys<K, L, R> {
    /// Returns the number of records that wait.
    pub(super) fn held(&self) -> usize {
        self.keys.values().map(KeyRecords::len).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: i64) -> EventTime {
        EventTime::from_millis(millis)
    }

    /// Records that are over a while after their time, added and advanced at random: each is closed at the right time, or, where
    /// nothing is emitted, no more of them are held than the schedule says.
    #[test]
    fn records_that_are_over_are_closed_in_time_or_soon() {
        for seed in 0..200 {
            let mut random = fastrand::Rng::with_seed(seed);
            let (is_woken, span, keys) = (random.bool(), random.i64(0..50), random.u16(1..300));
            let mut waiting = WaitingKeys::<u16, u32, u32>::new(is_woken, at(0), false);
            let (mut open, mut now, mut most) = (Vec::<(i64, u32)>::new(), 0, 0_usize);
            for epoch in 0..random.u32(1..60) {
                for number in 0..random.u32(0..100) {
                    let (time, id) = (now + random.i64(0..60), epoch * 1_000 + number);
                    let over_at = at(time + span + 1);
                    waiting.update(random.u16(0..keys), AddedRecord { is_new: true, over_at }, |_, records| {
                        records.left.insert(WaitingRecord::new((at(time), (0, 0, 0)), id));
                        records.left.first().map_or(EventTime::MAX, |first| at(first.time().millis() + span + 1))
                    });
                    open.push((time + span + 1, id));
                }
                now += random.i64(0..40);
                let (to, mut closed) = (at(now), Vec::new());
                let close = |_: &u16, records: &mut KeyRecords<u32, u32>| {
                    let mut count = 0;
                    while let Some(record) = records.left.next_if(|first| at(first.time().millis() + span + 1) <= to) {
                        closed.push((record.time().millis() + span + 1, record.data));
                        count += 1;
                    }
                    count
                };
                let due = |records: &KeyRecords<u32, u32>| {
                    records.left.first().map_or(EventTime::MAX, |first| at(first.time().millis() + span + 1))
                };
                let count = waiting.advance(to, close, due);
                assert_eq!(count, closed.len() as u64, "seed {seed}");
                closed.sort_unstable();
                let mut over: Vec<_> = open.iter().filter(|(over_at, _)| *over_at <= now).copied().collect();
                over.sort_unstable();
                if is_woken {
                    assert_eq!(closed, over, "seed {seed}");
                } else {
                    let held = over.len() - closed.len();
                    assert!(held <= most.max(32) + 100, "seed {seed}: {held} of {} that are over are held", over.len());
                    most = most.max(open.len());
                }
                open.retain(|record| !closed.contains(record));
                assert_eq!(waiting.held(), open.len(), "seed {seed}");
            }
            waiting.advance(EventTime::MAX, |_, records| records.len() as u64, |_| EventTime::MAX);
            assert_eq!(waiting.held(), 0);
        }
    }
}
