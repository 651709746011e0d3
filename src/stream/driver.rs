//! The interface between the worker's loop and a source.

use crate::durable::journal::PartitionProgress;
use crate::error::Result;
use crate::status::PartitionStatus;
use crate::time::Epoch;

/// A source as driven by the worker's loop.
pub(crate) trait Driver {
    /// Begins an epoch: what is read from now on belongs to it.
    fn begin(&mut self, epoch: Epoch);

    /// Reads what is available, about `budget` records at most.
    fn poll(&mut self, budget: usize) -> Result<PollResult>;

    /// `true` if the source is one of those that are read first: see [`Driver::note_read_first`].
    fn is_first(&self) -> bool;

    /// Name under which the flow reads the source.
    fn name(&self) -> &str;

    /// Serves the source instead of polling it while other sources are read first.
    fn keep_alive(&mut self) -> Result<()>;

    /// `true` once this worker has read its share of the source up to the end that it had at the start.
    fn has_reached_initial_end(&self) -> bool;

    /// Commits, with the input of `epoch`, that the source was read first. From then on every snapshot says so.
    fn note_read_first(&mut self, epoch: Epoch);

    /// `true` if the source is one that was noted to have been read first.
    fn is_noted(&self) -> bool;

    /// Sends what was read and held back earlier, without reading anything new; returns its size in bytes.
    fn deliver(&mut self) -> Result<usize>;

    /// Resumes the partitions at their positions in the snapshot that the job resumes from; does nothing without one.
    fn resume(&mut self) -> Result<()>;

    /// Replays the input of a journalled epoch; returns `true` when all of it has been read, and the size in bytes of
    /// what was read.
    fn replay(&mut self, bounds: &[PartitionProgress]) -> Result<(bool, usize)>;

    /// Returns the input of an epoch that is over; `None` while it is not known yet.
    fn commit_input(&mut self, epoch: Epoch) -> Result<Option<Vec<PartitionProgress>>>;

    /// Releases an epoch, whose frame is durable, and all before it.
    fn release(&mut self, epoch: Epoch);

    /// Releases all capabilities: no epoch follows.
    fn close(&mut self);

    /// Returns `true` if the stream is complete: its watermark is past all events.
    fn is_complete(&self) -> bool;

    /// Informs the source that all sinks have published everything through `epoch`.
    fn shown(&mut self, epoch: Epoch);

    /// Returns the status of the partitions that this worker reads, without times.
    fn partitions(&self) -> Vec<PartitionStatus>;
}

/// The result of a poll.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct PollResult {
    /// Estimated memory of the records, in bytes.
    pub(crate) bytes: usize,
    /// `true` if more may be readable at once.
    pub(crate) busy: bool,
    /// `true` if this worker will never read anything more of the source.
    pub(crate) exhausted: bool,
    /// `true` if this worker will read nothing more of it in this incarnation.
    pub(crate) caught_up: bool,
}
