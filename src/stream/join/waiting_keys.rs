//! The keys of a join whose records wait: the records, the times at which keys are woken, and what is not sealed yet.

use std::collections::HashMap;

use foldhash::fast::FixedState;

use super::key_times::KeyTimes;
use super::side::{self, KeyRecords, SavedRecord};
use crate::record::Record;
use crate::stream::checkpoint::{RowChunks, chunks_of};
use crate::time::{EventTime, Span};

/// The waiting records of all keys of a join on one worker.
pub(super) struct WaitingKeys<K, L, R> {
    keys: HashMap<K, KeyRecords<L, R>, FixedState>,
    times: KeyTimes<K>,
    /// The keys with records that have changed since the last seal; `None` in a job without state.
    unsealed: Option<Vec<K>>,
}

impl<K: Record, L: Record, R: Record> WaitingKeys<K, L, R> {
    /// Creates the keys of a join that wakes them at multiples of `granularity`; `is_durable` if records are sealed.
    pub(super) fn new(granularity: Span, is_durable: bool) -> Self {
        WaitingKeys { keys: HashMap::default(), times: KeyTimes::new(granularity), unsealed: is_durable.then(Vec::new) }
    }

    /// Changes the records of a key and wakes it at the time that `change` returns. `is_new` if the next seal has to look
    /// at the key.
    pub(super) fn update(&mut self, key: K, is_new: bool, change: impl FnOnce(&K, &mut KeyRecords<L, R>) -> EventTime) {
        let records = match self.keys.get_mut(&key) {
            Some(records) => records,
            None => self.keys.entry(key.clone()).or_default(),
        };
        let due = change(&key, records);
        if let Some(unsealed) = self.unsealed.as_mut().filter(|_| is_new && !records.unsealed) {
            records.unsealed = true;
            unsealed.push(key.clone());
        }
        let wake = self.times.round(due);
        if wake < records.wake {
            records.wake = wake;
            self.times.add(wake, key);
        }
    }

    /// Closes the keys that are woken until `to`, all of them at the end of time, and wakes them again when `due` says;
    /// returns the sum of what `close` returns.
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
        }
        while let Some((time, keys)) = self.times.next(to) {
            for key in keys {
                let Some(records) = self.keys.get_mut(&key).filter(|records| records.wake == time) else { continue };
                sum += close(&key, records);
                if records.is_empty() {
                    self.keys.remove(&key);
                    continue;
                }
                let wake = self.times.round(due(records));
                records.wake = wake;
                self.times.add(wake, key);
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
