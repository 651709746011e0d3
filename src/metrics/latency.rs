//! Histogram of durations, from which quantiles of an interval are computed.
//!
//! Sixteen buckets for each power of two of microseconds: a quantile is at most a sixteenth above the exact value.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Binary logarithm of the number of buckets for each power of two.
const SUB_BITS: u32 = 4;
/// Number of buckets; the last one takes all longer durations, which are more than a week.
const BUCKETS: usize = 37 << SUB_BITS;

/// Counts of durations by length. Adding one costs a single atomic addition.
#[derive(Debug)]
pub(crate) struct LatencyHistogram(Box<[AtomicU64]>);

impl Default for LatencyHistogram {
    fn default() -> Self {
        LatencyHistogram((0..BUCKETS).map(|_| AtomicU64::new(0)).collect())
    }
}

impl LatencyHistogram {
    /// Counts a duration.
    pub(crate) fn add(&self, latency: Duration) {
        let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        self.0[bucket_of(micros)].fetch_add(1, Ordering::Relaxed);
    }

    /// Returns the counts so far.
    pub(crate) fn counts(&self) -> LatencyCounts {
        LatencyCounts(self.0.iter().map(|count| count.load(Ordering::Relaxed)).collect())
    }
}

/// The counts of a histogram at one time.
#[derive(Clone, Debug, Default)]
pub(crate) struct LatencyCounts(Vec<u64>);

impl LatencyCounts {
    /// Returns the counts that were added since earlier ones.
    pub(crate) fn since(&self, earlier: &LatencyCounts) -> LatencyCounts {
        let before = earlier.0.iter().copied().chain(std::iter::repeat(0));
        LatencyCounts(self.0.iter().zip(before).map(|(now, before)| now.saturating_sub(before)).collect())
    }

    /// Returns the duration that a part `quantile` of all durations, from 0 to 1, does not exceed; `None` if there are
    /// none.
    pub(crate) fn quantile(&self, quantile: f64) -> Option<Duration> {
        let all: u64 = self.0.iter().sum();
        let rank = ((all as f64 * quantile).ceil() as u64).clamp(1, all.max(1));
        let mut seen = 0;
        let bucket = self.0.iter().position(|count| {
            seen += count;
            seen >= rank
        })?;
        Some(Duration::from_micros(greatest_of(bucket)))
    }
}

fn bucket_of(micros: u64) -> usize {
    let exponent = (63 - (micros | 1).leading_zeros()).max(SUB_BITS);
    // Below 2^SUB_BITS each number has a bucket of its own.
    let first = if micros < 1 << SUB_BITS { 0 } else { (exponent - SUB_BITS + 1) << SUB_BITS } as usize;
    let within = (micros >> (exponent - SUB_BITS)) & ((1 << SUB_BITS) - 1);
    (first + within as usize).min(BUCKETS - 1)
}

/// Returns the greatest number of microseconds in a bucket.
fn greatest_of(bucket: usize) -> u64 {
    let (group, within) = (bucket >> SUB_BITS, (bucket & ((1 << SUB_BITS) - 1)) as u64);
    match group.checked_sub(1) {
        None => within,
        Some(shift) => (((1 << SUB_BITS) + within + 1) << shift) - 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_duration_is_in_the_bucket_that_ends_at_or_after_it() {
        for bits in 0..36 {
            for micros in [1_u64 << bits, (1 << bits) + (1 << bits) / 3, (2 << bits) - 1] {
                let bucket = bucket_of(micros);
                let greatest = greatest_of(bucket);
                assert!((micros..=micros + micros / 16).contains(&greatest), "{micros} is in {bucket}, to {greatest}");
                assert!(bucket == 0 || greatest_of(bucket - 1) < micros, "{micros} is in {bucket}");
            }
        }
        assert_eq!(bucket_of(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn quantiles_are_of_what_was_added_since() {
        let histogram = LatencyHistogram::default();
        assert_eq!(histogram.counts().quantile(0.5), None);
        histogram.add(Duration::from_secs(9));
        let before = histogram.counts();
        (1..=100).for_each(|millis| histogram.add(Duration::from_millis(millis)));
        let added = histogram.counts().since(&before);
        for (quantile, exact) in [(0.0, 1), (0.5, 50), (0.99, 99), (1.0, 100)] {
            let found = added.quantile(quantile).unwrap().as_micros();
            let exact = exact * 1_000;
            assert!((exact..=exact + exact / 16).contains(&found), "{quantile}: {found}");
        }
        assert_eq!(before.since(&before).quantile(0.5), None);
    }
}
