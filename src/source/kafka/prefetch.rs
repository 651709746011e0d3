//! Limits of what is fetched ahead of reading: a budget of a source in a process, shared by its partitions.
//!
//! Each partition has a queue of its own, which the client library fills up to these limits, and past them by one fetch.
//!
//! Invariant: the more partitions, the less for each, down to a floor that keeps every partition moving.

/// Bytes that the queues of a source's partitions hold in a process.
const BUDGET: usize = 64 << 20;

/// Greatest and least size in bytes of a partition's queue.
const MOST: usize = 8 << 20;
const LEAST: usize = 16 << 10;

/// Greatest number of messages in a partition's queue, and bytes a message that are reckoned for them otherwise: the
/// client library needs some hundred bytes for each, however small it is.
const MOST_MESSAGES: usize = 50_000;
const MESSAGE: usize = 512;

/// Greatest and least size in bytes of what is fetched of a partition at once. A larger message is still fetched, alone.
const MOST_FETCHED: usize = 1 << 20;
const LEAST_FETCHED: usize = 8 << 10;

/// Limits of a partition's queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PrefetchLimits {
    /// Number of messages from which on nothing more is fetched.
    pub(super) messages: usize,
    /// Kilobytes from which on nothing more is fetched.
    pub(super) kbytes: usize,
    /// Bytes that are fetched at once.
    pub(super) fetch_bytes: usize,
}

impl PrefetchLimits {
    /// Returns the limits for a process that reads so many partitions of a source.
    pub(super) fn of(partitions: usize) -> Self {
        let bytes = (BUDGET / partitions.max(1)).clamp(LEAST, MOST);
        let messages = if bytes == MOST { MOST_MESSAGES } else { bytes / MESSAGE };
        let fetch_bytes = (bytes / 8).clamp(LEAST_FETCHED, MOST_FETCHED);
        PrefetchLimits { messages, kbytes: bytes >> 10, fetch_bytes }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_share_a_budget_down_to_a_floor() {
        let of = |partitions| {
            let PrefetchLimits { messages, kbytes, fetch_bytes } = PrefetchLimits::of(partitions);
            (messages, kbytes, fetch_bytes)
        };
        assert_eq!([0, 8].map(of), [(50_000, 8192, 1 << 20); 2]);
        assert_eq!(of(64), (2048, 1024, 128 << 10));
        assert_eq!(of(1024), (128, 64, 8 << 10));
        assert_eq!(of(100_000), (32, 16, 8 << 10));
        for partitions in 9..=4096 {
            assert!(of(partitions).1 * partitions <= BUDGET >> 10, "{partitions}");
        }
    }
}
