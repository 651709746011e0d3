//! An epoch between its start and its publication, as one worker sees it.

use std::time::Instant;

use crate::durable::journal::PartitionProgress;
use crate::status::Stage;
use crate::time::Epoch;

/// An epoch that this worker has started and that is not published yet.
pub(super) struct OpenEpoch {
    pub(super) epoch: Epoch,
    /// The time at which it was started.
    pub(super) since: Instant,
    /// For each source, the input committed to the epoch; `None` until it is known.
    pub(super) bound: Vec<Option<Vec<PartitionProgress>>>,
    /// `true` if nothing is added to it any more.
    pub(super) closed: bool,
    /// `true` if the journal has its frame, or it needs none.
    pub(super) written: bool,
    pub(super) needs_sync: bool,
    pub(super) released: bool,
    pub(super) bytes: usize,
}

impl OpenEpoch {
    pub(super) fn stage(&self) -> Stage {
        match (self.closed, self.written, self.released) {
            (false, ..) => Stage::Reading,
            (true, false, _) => Stage::Binding,
            (true, true, false) => Stage::Syncing,
            (true, true, true) => Stage::Flowing,
        }
    }
}
