//! How far a file is read: for monitoring, and for the journal.

use crate::durable::journal::ContentCheck;
use crate::time::EventTime;

/// Progress of reading a file, for monitoring.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FileProgress {
    /// Position after the chunks that were dealt.
    pub next: u64,
    /// Length of the file when it was last polled, or the fixed end.
    pub end: u64,
    /// Watermark after the chunks that are summed up.
    pub watermark: EventTime,
    /// `true` if the fixed end was reached.
    pub ended: bool,
    /// `true` if the file is idle and does not hold the watermark back.
    pub idle: bool,
    /// Position of the last record if it is incomplete; `None` otherwise.
    pub partial: Option<u64>,
}

/// State of the partition at the end of an epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FileEpochEnd {
    /// Position after the epoch's records.
    pub next: u64,
    /// Watermark after them.
    pub watermark: EventTime,
    /// Position at which the file ends for this job; `None` if no end is fixed.
    pub until: Option<u64>,
    /// `true` if that end was reached.
    pub ended: bool,
    /// `true` if the file is idle.
    pub idle: bool,
    /// Fingerprint of the file before `next_offset`; `None` if nothing was read.
    pub check: Option<ContentCheck>,
    /// Position where reading began; `Some` in the first committed epoch only.
    pub start_offset: Option<u64>,
    /// `true` if this differs from the epoch before.
    pub changed: bool,
}
