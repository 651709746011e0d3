//! The result of a run: the way it ended, and its figures.

use crate::job::profile::JobProfile;
use crate::metrics::JobSummary;

/// The way a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// All sources have ended, and every window has closed.
    Complete,
    /// A stop was requested.
    Stopped,
    /// The state was complete before this run: nothing was done.
    WasComplete,
}

/// The result of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RunReport {
    /// The way the run ended.
    pub ending: Ending,
    /// The counters of the run.
    pub summary: JobSummary,
    /// Time spent in this process, by step; empty unless profiling was enabled with
    /// [`Job::profile`](crate::Job::profile).
    pub profile: JobProfile,
}

impl RunReport {
    /// Returns the report of a run that ended before it did any work.
    pub(super) fn without_work(ending: Ending) -> Self {
        RunReport { ending, summary: JobSummary::default(), profile: JobProfile::default() }
    }
}
