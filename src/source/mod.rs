//! Sources: the traits that connectors implement.
//!
//! * A [`Source`] is a value made before a job runs; each worker opens a [`Reader`] of it.
//! * A reader takes the records of its partitions in offset order and hands them to its [`PartitionTracker`], which
//!   rejects unusable ones, follows the partitions' watermarks and collects what the current epoch commits.
//! * [`Rejected`] describes a record that cannot be used.
//!
//! Invariants: the epochs of a job take contiguous, successive pieces of every partition; a record's place (source,
//! partition, offset) is unique; a reader reads no clock to decide what a record means. A source does not know timely:
//! the owner of the intake drives it.

pub mod channel;
mod checked_change;
pub mod csv;
pub mod file;
pub mod generator;
mod indexed;
#[cfg(feature = "kafka")]
pub mod kafka;
pub mod memory;
#[cfg(feature = "kafka")]
mod message_store;
pub mod ndjson;
mod options;
mod partition_tracker;
mod rejected;
mod topic_address;
mod watermark_view;

pub use checked_change::{ChangeDifference, CheckedChange, RowBefore};
pub use topic_address::TopicAddress;

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use crate::durable::journal::PartitionProgress;
use crate::error::Result;
use crate::metrics::SourceMetrics;
use crate::record::Record;
use crate::source::partition_tracker::TrackedSource;
use crate::status::PartitionStatus;
use crate::time::Epoch;
use crate::time::watermark::WorkerWatermark;

#[cfg(feature = "kafka")]
pub(crate) use message_store::MessageStore;
#[cfg(feature = "kafka")]
use options::TOPIC_STRIDE;
pub use options::{Options, TimeOf, WorkerContext, time_of};
pub use partition_tracker::{EpochInput, PartitionHandle, PartitionTracker, RawRecord, RestoredPartition};
pub use rejected::{DeadLetter, Rejected, RejectedMessage};
pub use watermark_view::WatermarkView;

/// A source of records: a value made before a job runs and shared by its workers.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a source",
    label = "not a `Source`",
    note = "sources are values such as `csv::Source`, `ndjson::Source`, `kafka::Source` and `source::memory::MemorySource`",
    note = "an input without `.event_time(|record: &YourRecord| …)` is not a source yet: nothing says what its records are"
)]
pub trait Source: Send + Sync + 'static {
    /// Type of the source's records.
    type Item: Record;

    /// Returns a description for people, such as "topic transaction at localhost:9092".
    fn describe(&self) -> String;

    /// Returns the function that gives a record's event time. Readers that know event times otherwise pass them with the
    /// records: see [`PartitionTracker::accept_at`].
    fn event_time(&self) -> TimeOf<Self::Item>;

    /// Returns the allowed disorder: how far a record's event time may be behind the greatest one of its partition.
    /// `None`: the job's option holds.
    fn out_of_order(&self) -> Option<Duration>;

    /// Returns the idle timeout: the time after which a silent partition that is at its end becomes **idle** and no
    /// longer holds the watermark back. `None`: the job's option holds.
    fn idle_after(&self) -> Option<Duration> {
        None
    }

    /// Opens the source for one worker: connects, finds the partitions and assigns the worker's share.
    ///
    /// # Errors
    /// Fails if the source does not exist or cannot be read.
    fn open(&self, at: &WorkerContext) -> Result<Box<dyn Reader<Self::Item>>>;

    /// Returns the source's identity, which does not depend on its location or name: a topic's id, a file's format. A
    /// state is recovered only with the source that it was read from. Called before the source is opened. `None`: no
    /// identity is known.
    ///
    /// # Errors
    /// Fails if the source does not exist or does not answer.
    fn identity(&self, at: &WorkerContext) -> Result<Option<String>> {
        let _ = at;
        Ok(None)
    }

    /// Returns a number that no other value has, if the workers of a process share their work by the value: a file is dealt
    /// out to those that were lent the same one. `None`: workers need not have the same value.
    fn value_number(&self) -> Option<u64> {
        None
    }

    /// Returns the topic that is read, `None` if the source is no topic. A job that also writes to it is refused.
    fn topic(&self) -> Option<TopicAddress> {
        None
    }

    /// Returns all topics that are read, of a source that reads several. A job that also writes to one of them is refused.
    fn topics(&self) -> Vec<TopicAddress> {
        self.topic().into_iter().collect()
    }

    /// Describes the data that has arrived since a state ended, such as "partition 2 has records from offset 120 on";
    /// `None` if there is none, or if the source cannot grow. An ended state is never continued. `bounds` is the
    /// progress that the state has for this source. The source need not be open.
    ///
    /// # Errors
    /// Fails if the source does not exist, does not answer, or is not the one that the state was read from.
    fn has_new_data(&self, at: &WorkerContext, bounds: &[PartitionProgress]) -> Result<Option<String>> {
        let _ = (at, bounds);
        Ok(None)
    }
}

/// A source that is chosen while the program runs.
impl<S: Source + ?Sized> Source for Box<S> {
    type Item = S::Item;

    fn describe(&self) -> String {
        (**self).describe()
    }

    fn event_time(&self) -> TimeOf<S::Item> {
        (**self).event_time()
    }

    fn out_of_order(&self) -> Option<Duration> {
        (**self).out_of_order()
    }

    fn idle_after(&self) -> Option<Duration> {
        (**self).idle_after()
    }

    fn open(&self, at: &WorkerContext) -> Result<Box<dyn Reader<S::Item>>> {
        (**self).open(at)
    }

    fn identity(&self, at: &WorkerContext) -> Result<Option<String>> {
        (**self).identity(at)
    }

    fn value_number(&self) -> Option<u64> {
        (**self).value_number()
    }

    fn topic(&self) -> Option<TopicAddress> {
        (**self).topic()
    }

    fn topics(&self) -> Vec<TopicAddress> {
        (**self).topics()
    }

    fn has_new_data(&self, at: &WorkerContext, bounds: &[PartitionProgress]) -> Result<Option<String>> {
        (**self).has_new_data(at, bounds)
    }
}

/// Creates the tracker of a source's partitions on one worker: of the flow's `index`-th source, which is read under
/// `name`.
pub fn track<S: Source>(
    source: &S,
    (name, index): (&str, u16),
    options: &Options,
    stream: Rc<WatermarkView>,
    metrics: Arc<SourceMetrics>,
) -> PartitionTracker<S::Item> {
    let (place, time_of) = (source.describe(), source.event_time());
    let source = TrackedSource { place, time_of, out_of_order: source.out_of_order(), idle_after: source.idle_after() };
    PartitionTracker::new(name, index, source, options, stream, metrics)
}

/// Result of polling a reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Polled {
    /// Epoch of the events that the poll added to the intake: the polled one, or an earlier one that is not committed
    /// yet.
    pub epoch: Epoch,
    /// `true` if more may be readable at once.
    pub busy: bool,
}

impl Polled {
    /// Creates the result of a poll that added events of `epoch`; `busy` is `true` if more may be readable at once.
    pub fn new(epoch: Epoch, busy: bool) -> Self {
        Polled { epoch, busy }
    }
}

/// Progress of one worker's partitions towards the ends that they had when the reader was opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InitialProgress {
    /// `true` once every record that this worker's partitions had then was taken.
    pub is_done: bool,
    /// Partition, what was taken of it, and what there is to take before that end; in offsets.
    pub partitions: Vec<(u32, u64, u64)>,
}

/// Reads one worker's share of a source.
///
/// Polled epochs never go back. `close_epoch` is called for each epoch, in order: first after the last poll with that
/// epoch and before any poll with a later one, then again for as long as it returns `None`. A reader that continues a
/// state gets `resume` if there is a snapshot, then `replay` for the journal's epochs after it, then `poll`.
pub trait Reader<D: Record> {
    /// Restores this worker's partitions to their positions in a snapshot, and reads nothing. Called at most once,
    /// before `replay` and `poll`, with the positions of all partitions of the source at `epoch`, whichever worker read
    /// them. Ended partitions are restored too. A partition that the state does not name was added later: the first
    /// `poll` finds it and reads it from its first record, except in a job that stops at an end, because that end was
    /// fixed earlier. If the state names no partition at all, all are found as at a first start.
    ///
    /// # Errors
    /// Fails if the source no longer has the records after the snapshot, or is not the one that the state was read
    /// from.
    fn resume(&mut self, epoch: Epoch, places: &[RestoredPartition], intake: &mut PartitionTracker<D>) -> Result<()>;

    /// Moves available records, about `budget` of them at most, into the intake without waiting.
    ///
    /// # Errors
    /// Fails if the source is broken for good, or if a record is rejected and rejects fail the job.
    fn poll(&mut self, epoch: Epoch, budget: usize, intake: &mut PartitionTracker<D>) -> Result<Polled>;

    /// Called instead of `poll` while other sources are to be read first: finds partitions, so that their starts are in
    /// the journal, and serves connections, but takes no record. The default polls with a budget of 0.
    ///
    /// # Errors
    /// Fails if the source is broken for good.
    fn keep_alive(&mut self, epoch: Epoch, intake: &mut PartitionTracker<D>) -> Result<()> {
        self.poll(epoch, 0, intake).map(drop)
    }

    /// Returns how far this worker's partitions are read towards the ends that they had when the reader was opened. The
    /// default is for sources that end: they are done when they are exhausted.
    fn initial_progress(&self, intake: &PartitionTracker<D>) -> InitialProgress {
        let known = intake.partitions().map(|known| (known.partition, known.next, known.end.unwrap_or(known.next)));
        InitialProgress { is_done: self.exhausted(intake), partitions: known.collect() }
    }

    /// Hands over records that were read earlier and held back, and reads nothing new. Returns their epoch, `None` if
    /// there were none. Called instead of `poll` while back-pressure keeps new records out: held records would keep
    /// their epoch open.
    ///
    /// # Errors
    /// Fails if the source is broken for good, or if a record is rejected and rejects fail the job.
    fn deliver(&mut self, _intake: &mut PartitionTracker<D>) -> Result<Option<Epoch>> {
        Ok(None)
    }

    /// Closes an epoch and returns its input. `None` while another thread still reads records of it: the caller tries
    /// again, and meanwhile polls with later epochs.
    ///
    /// # Errors
    /// Fails if the source is broken for good.
    fn close_epoch(&mut self, epoch: Epoch, intake: &mut PartitionTracker<D>) -> Result<Option<EpochInput>> {
        Ok(Some(intake.close_epoch(epoch)))
    }

    /// Replays an epoch of the journal: for each partition of `bounds` that this worker owns, takes everything before
    /// `next` that was not taken yet. Returns `true` when all of it has been taken; until then the caller calls again.
    ///
    /// # Errors
    /// Fails if records that the journal names no longer exist.
    fn replay(&mut self, epoch: Epoch, bounds: &[PartitionProgress], intake: &mut PartitionTracker<D>) -> Result<bool>;

    /// `true` if this worker will never read anything more. An epoch then ends at once instead of at the next tick.
    fn exhausted(&self, intake: &PartitionTracker<D>) -> bool {
        intake.exhausted()
    }

    /// Returns the identity of the opened source, as [`Source::identity`] does; `None` if none is known.
    fn identity(&self) -> Option<String> {
        None
    }

    /// `true` if this worker reads nothing more in this incarnation, though the source has not ended. The job stops
    /// when this holds for all of its workers and sources, and a later start reads on.
    fn caught_up(&self) -> bool {
        false
    }

    /// Reports that all sinks have published everything up to this epoch; used for monitoring only.
    fn notify_published(&mut self, _epoch: Epoch) {}

    /// Returns the status of this worker's partitions for monitoring, without times.
    fn partitions(&self, intake: &PartitionTracker<D>) -> Vec<PartitionStatus> {
        let mut partitions: Vec<_> = intake.partitions().collect();
        for PartitionNote { partition, position, end, note } in self.partition_notes() {
            if let Some(known) = partitions.iter_mut().find(|known| known.partition == partition) {
                known.next = known.next.max(position.unwrap_or(0));
                (known.end, known.note) = (end, note);
            }
        }
        partitions
    }

    /// Returns the source's notes on this worker's partitions, for monitoring.
    fn partition_notes(&self) -> Vec<PartitionNote> {
        Vec::new()
    }
}

/// Monitoring data that a source adds to the status of a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PartitionNote {
    /// The partition.
    pub partition: u32,
    /// Position that reading has reached, if it is past the next offset to take: transaction markers lie between.
    /// `None` if unknown.
    pub position: Option<u64>,
    /// Offset that the next record to arrive will have; `None` if unknown.
    pub end: Option<u64>,
    /// Reason why no records arrive from the partition, other than that it has none.
    pub note: Option<String>,
}

impl PartitionNote {
    /// Creates a note on a partition of which nothing is known.
    pub fn new(partition: u32) -> Self {
        PartitionNote { partition, position: None, end: None, note: None }
    }

    /// Sets the position that reading has reached.
    #[must_use]
    pub fn position(mut self, position: u64) -> Self {
        self.position = Some(position);
        self
    }

    /// Sets the offset that the next record to arrive will have.
    #[must_use]
    pub fn end(mut self, end: u64) -> Self {
        self.end = Some(end);
        self
    }

    /// Sets the reason why no records arrive, such as "no broker leads it".
    #[must_use]
    pub fn note(mut self, note: impl Into<String>) -> Self {
        self.note = Some(note.into());
        self
    }
}

/// A reader that has no partitions and never will: the source is read by other workers.
#[derive(Clone, Copy, Debug)]
pub struct NullReader;

impl<D: Record> Reader<D> for NullReader {
    fn resume(
        &mut self,
        _epoch: Epoch,
        _places: &[RestoredPartition],
        _intake: &mut PartitionTracker<D>,
    ) -> Result<()> {
        Ok(())
    }

    fn poll(&mut self, epoch: Epoch, _budget: usize, _intake: &mut PartitionTracker<D>) -> Result<Polled> {
        Ok(Polled { epoch, busy: false })
    }

    fn close_epoch(&mut self, _epoch: Epoch, _intake: &mut PartitionTracker<D>) -> Result<Option<EpochInput>> {
        Ok(Some(EpochInput::new(Vec::new(), WorkerWatermark::without_partitions())))
    }

    fn replay(
        &mut self,
        _epoch: Epoch,
        _bounds: &[PartitionProgress],
        _intake: &mut PartitionTracker<D>,
    ) -> Result<bool> {
        Ok(true)
    }

    fn exhausted(&self, _intake: &PartitionTracker<D>) -> bool {
        true
    }
}
