//! The times of event time at which the keys of a join have something to do.

use std::collections::BTreeMap;

use crate::time::{EventTime, Span};

/// Times at which keys are woken. A key has one entry that counts, the earliest; later ones are stale and skipped.
pub(super) struct KeyTimes<K> {
    by_time: BTreeMap<EventTime, Vec<K>>,
    /// Times are rounded up to multiples of it, in milliseconds; at least one.
    granularity: i64,
}

impl<K> KeyTimes<K> {
    pub(super) fn new(granularity: Span) -> Self {
        KeyTimes { by_time: BTreeMap::new(), granularity: granularity.millis().max(1) }
    }

    /// Returns the time at which a key is woken for what is due at `due`.
    pub(super) fn round(&self, due: EventTime) -> EventTime {
        match due.millis().rem_euclid(self.granularity) {
            0 => due,
            over => EventTime::from_millis(due.millis().saturating_add(self.granularity - over)),
        }
    }

    /// Wakes a key at a time. What is due at the end of time is done when the stream ends.
    pub(super) fn add(&mut self, time: EventTime, key: K) {
        if time < EventTime::MAX {
            self.by_time.entry(time).or_default().push(key);
        }
    }

    /// Removes the first time if it is not after `to`, with its keys.
    pub(super) fn next(&mut self, to: EventTime) -> Option<(EventTime, Vec<K>)> {
        Some(self.by_time.first_entry().filter(|first| *first.key() <= to)?.remove_entry())
    }
}
