//! Two streams of keyed records, made up from a seed.

use serde::{Deserialize, Serialize};

/// Number of partitions of a stream.
pub(crate) const PARTITIONS: usize = 2;

/// Maximum disorder within a partition, in milliseconds; no record is late.
pub(crate) const DISORDER: i64 = 2_000;

/// An event time in milliseconds, with a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct Moment {
    pub(crate) at: i64,
    pub(crate) value: i64,
}

/// A record: key and moment.
pub(crate) type Keyed = (u32, Moment);

/// The records of two streams by partition; all records of a key are in one partition.
#[derive(Clone, Debug)]
pub(crate) struct Streams {
    pub(crate) left: Vec<Vec<Keyed>>,
    pub(crate) right: Vec<Vec<Keyed>>,
}

impl Streams {
    /// Generates `records` records in total, a hundred thousand a second of event time.
    pub(crate) fn generate(records: u64, keys: u64) -> Self {
        let partitions = 2 * PARTITIONS as u64;
        let stream = |seed: u64| {
            let partition = |number: usize| {
                // A sequence of pseudo-random numbers (xorshift64).
                let mut state = 88_172_645_463_325_252 + (seed * 16 + number as u64) * 7_919;
                let mut next = || {
                    state ^= state << 13;
                    state ^= state >> 7;
                    state ^= state << 17;
                    state
                };
                let record = |index: u64| {
                    let key = next() % (keys / PARTITIONS as u64).max(1) * PARTITIONS as u64 + number as u64;
                    let at = (index * partitions / 100) as i64 + DISORDER - (next() % DISORDER as u64) as i64;
                    (key as u32, Moment { at, value: (next() % 20_000) as i64 })
                };
                (0..records / partitions).map(record).collect()
            };
            (0..PARTITIONS).map(partition).collect()
        };
        Streams { left: stream(1), right: stream(2) }
    }
}
