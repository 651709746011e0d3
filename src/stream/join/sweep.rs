//! The times at which all keys of a join are looked at for what is over.
//!
//! Records that are over, and of which nothing is emitted, may be removed at any time. To wake each key for them costs
//! more than to look at all keys, one behind the other in memory, when as many records have come as there were left the
//! last time: so a record costs one look, and no more than half of what is held is over. All of it is removed when all is
//! over, however few records come.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash};

use crate::time::EventTime;

/// Number of records before which keys are not looked at.
const LEAST: usize = 32;

/// The records that came since all keys were looked at, and those that were left then.
#[derive(Debug, Default)]
pub(super) struct SweepSchedule {
    added: usize,
    left: usize,
    /// The least time at which all records are over; `None` if there are none.
    all_over_at: Option<EventTime>,
}

impl SweepSchedule {
    /// Notes a record that came, and the least time at which it is over.
    #[inline]
    pub(super) fn note(&mut self, over_at: EventTime) {
        self.added += 1;
        self.all_over_at = self.all_over_at.max(Some(over_at));
    }

    /// Returns `true` if all keys are to be looked at when the join has come to a time.
    pub(super) fn is_due(&self, to: EventTime) -> bool {
        self.added >= LEAST.max(self.left) || self.all_over_at.is_some_and(|over_at| over_at <= to)
    }

    /// Notes that all keys have been looked at, and the number of records that were left.
    pub(super) fn swept(&mut self, left: usize) {
        (self.added, self.left) = (0, left);
        if left == 0 {
            self.all_over_at = None;
        }
    }
}

/// Releases the memory of a map that has far fewer keys than it had: to look at all of them takes as long as the map is large.
pub(super) fn release<K: Eq + Hash, V, S: BuildHasher>(keys: &mut HashMap<K, V, S>) {
    if keys.len() < keys.capacity() / 8 {
        keys.shrink_to(keys.len() * 2);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: i64) -> EventTime {
        EventTime::from_millis(millis)
    }

    #[test]
    fn keys_are_looked_at_when_many_records_have_come_or_all_are_over() {
        let mut sweep = SweepSchedule::default();
        assert!(!sweep.is_due(at(10)), "there is nothing");
        sweep.note(at(20));
        sweep.note(at(15));
        assert!(!sweep.is_due(at(19)) && sweep.is_due(at(20)));
        sweep.swept(0);
        assert!(!sweep.is_due(at(100)));
        (0..LEAST).for_each(|_| sweep.note(at(1_000)));
        assert!(sweep.is_due(at(100)));
        sweep.swept(3 * LEAST);
        (0..3 * LEAST - 1).for_each(|_| sweep.note(at(500)));
        assert!(!sweep.is_due(at(999)) && sweep.is_due(at(1_000)));
        sweep.note(at(500));
        assert!(sweep.is_due(at(100)));
    }
}
