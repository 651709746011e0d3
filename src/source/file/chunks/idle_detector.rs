//! Judging whether a followed file is idle.
//!
//! Invariant: a file is idle only when its length was polled throughout the idle timeout and did not change. A pause in
//! polling is no idleness.

use std::time::{Duration, Instant};

/// Longest pause between two polls of a file's length that still counts as continuous; after a longer one the idle
/// timeout starts anew.
const MAX_POLL_GAP: Duration = Duration::from_secs(1);

/// Tracks how long a followed file has been at its end, to judge whether it is idle.
#[derive(Debug)]
pub(super) struct IdleDetector {
    pub(super) after: Duration,
    /// Time and file length of the first poll of the current stay at the end; `None` while there is more to deal.
    pub(super) since: Option<(Instant, u64)>,
    pub(super) looked: Option<Instant>,
}

impl IdleDetector {
    /// Notes a poll of the file's length at a time when nothing is left to deal.
    pub(super) fn at_end(&mut self, looked: Instant, length: u64) {
        let paused = self.looked.is_none_or(|last| looked.saturating_duration_since(last) > MAX_POLL_GAP);
        if paused || self.since.is_none_or(|(_, known)| known != length) {
            self.since = Some((looked, length));
        }
        self.looked = Some(looked);
    }

    /// Notes that the file had more to deal.
    pub(super) fn moved(&mut self) {
        (self.since, self.looked) = (None, None);
    }

    /// `true` if the file was at its end throughout the idle timeout.
    pub(super) fn is_idle(&self) -> bool {
        let Some(((since, _), looked)) = self.since.zip(self.looked) else { return false };
        looked.saturating_duration_since(since) >= self.after
    }
}
