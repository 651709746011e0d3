//! Throttle of a worker's status reports, and the time since which its oldest epoch is in one stage.

use std::time::{Duration, Instant};

use crate::status::Stage;
use crate::time::Epoch;

/// The time of the last status report, and the oldest epoch at that time.
pub(super) struct ReportThrottle {
    at: Option<Instant>,
    front: Option<(Epoch, Stage)>,
    /// Start of the current stage of the oldest epoch.
    pub(super) since: Instant,
}

impl Default for ReportThrottle {
    fn default() -> Self {
        ReportThrottle { at: None, front: None, since: Instant::now() }
    }
}

impl ReportThrottle {
    /// Interval between two status reports.
    const EVERY: Duration = Duration::from_millis(50);

    /// `true` if a report is due.
    pub(super) fn is_due(&mut self, front: Option<(Epoch, Stage)>, now: Instant) -> bool {
        if self.front != front {
            (self.front, self.since) = (front, now);
        }
        if self.at.is_some_and(|at| now - at < Self::EVERY) {
            return false;
        }
        self.at = Some(now);
        true
    }
}
