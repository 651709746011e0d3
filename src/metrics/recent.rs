//! The last records that were left out: rejected by a source, or late for a step.
//!
//! Invariants: a ring keeps the last [`KEPT`] records; their texts are short.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use crate::time::EventTime;

/// Number of records that a ring keeps.
pub(crate) const KEPT: usize = 8;

/// A record that a source has rejected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RejectExample {
    /// Topic, or path of the file.
    pub(crate) place: String,
    pub(crate) partition: u32,
    pub(crate) offset: u64,
    /// Line in the file, from 1; 0 if the source has no lines.
    pub(crate) line: u64,
    pub(crate) reason: String,
}

/// A record that was late for a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LateExample {
    /// Number of its source, in the order in which the flow reads sources.
    pub(crate) source: u16,
    pub(crate) partition: u32,
    pub(crate) offset: u64,
    pub(crate) time: EventTime,
    /// The watermark that made it late.
    pub(crate) watermark: EventTime,
}

/// The last few of some records, each with the time at which it was noted.
#[derive(Debug)]
pub(crate) struct RecentRing<T>(Mutex<VecDeque<(Instant, T)>>);

impl<T> Default for RecentRing<T> {
    fn default() -> Self {
        RecentRing(Mutex::default())
    }
}

impl<T: Clone> RecentRing<T> {
    /// Adds records; the oldest ones are dropped.
    pub(crate) fn extend(&self, records: impl IntoIterator<Item = T>) {
        let now = Instant::now();
        let mut ring = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        ring.extend(records.into_iter().map(|record| (now, record)));
        let surplus = ring.len().saturating_sub(KEPT);
        ring.drain(..surplus);
    }

    /// Returns the records, oldest first, with the times at which they were noted.
    pub(crate) fn all(&self) -> Vec<(Instant, T)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_keeps_the_last_ones_in_order() {
        let ring = RecentRing::default();
        ring.extend(0..5);
        ring.extend(5..30);
        ring.extend([30]);
        let kept: Vec<i32> = ring.all().into_iter().map(|(_, record)| record).collect();
        assert_eq!(kept, (30 - KEPT as i32 + 1..=30).collect::<Vec<_>>());
    }
}
