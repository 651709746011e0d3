//! Sources: the trait that connectors implement, and the bookkeeping of a worker's partitions.
//!
//! * A [`Source`] is a value made before a job runs; each worker opens a [`Reader`] of it.
//! * A reader takes the records of its partitions in offset order and hands them to its [`PartitionTracker`], which
//!   rejects unusable ones, follows the partitions' watermarks and collects what the current epoch commits.
//! * [`Rejected`] describes a record that cannot be used.
//!
//! Invariants: the epochs of a job take contiguous, successive pieces of every partition; a record's place (source,
//! partition, offset) is unique; a reader reads no clock to decide what a record means. A source does not know timely:
//! the owner of the intake drives it.

pub mod csv;
pub mod file;
pub mod generator;
#[cfg(feature = "kafka")]
pub mod kafka;
pub mod memory;
pub mod ndjson;
mod topic_address;

pub use topic_address::TopicAddress;

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::durable::journal::{ContentCheck, JournaledRecord, PartitionProgress};
use crate::error::{Error, ErrorKind, Result, shortened};
use crate::metrics::{LatestRecord, SourceMetrics};
use crate::record::{Event, Origin, Record};
use crate::status::PartitionStatus;
use crate::time::watermark::{PartitionClock, PartitionId, WorkerWatermark};
use crate::time::{Epoch, EventTime, Span};

/// Function that returns a record's event time.
pub type TimeOf<D> = Arc<dyn Fn(&D) -> EventTime + Send + Sync>;

/// Wraps a function whose result stands for an event time: milliseconds since 1970, a [`SystemTime`](std::time::SystemTime), a
/// [`jiff::Timestamp`].
pub fn time_of<D, E: Into<EventTime>>(event_time: impl Fn(&D) -> E + Send + Sync + 'static) -> TimeOf<D> {
    Arc::new(move |record| event_time(record).into())
}

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

    /// Returns the function that gives a record's event time.
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

    /// Returns the topic that is read, `None` if the source is no topic. A job that also writes to it is refused.
    fn topic(&self) -> Option<TopicAddress> {
        None
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

    fn topic(&self) -> Option<TopicAddress> {
        (**self).topic()
    }

    fn has_new_data(&self, at: &WorkerContext, bounds: &[PartitionProgress]) -> Result<Option<String>> {
        (**self).has_new_data(at, bounds)
    }
}

/// The worker that opens a source, and the settings of its job.
#[derive(Clone, Debug)]
pub struct WorkerContext {
    /// Index of this worker, from 0.
    pub worker: usize,
    /// Number of workers of the job, over all processes.
    pub workers: usize,
    /// Number of workers per process: worker `w` belongs to process `w / threads`.
    pub threads: usize,
    /// Name of the job.
    pub job: String,
    /// Options that all sources of the job share.
    pub options: Options,
}

impl WorkerContext {
    /// `true` if this worker reads the partition.
    pub fn owns(&self, partition: u32) -> bool {
        partition as usize % self.workers == self.worker
    }

    /// `true` if this worker belongs to the first process, which alone reads inputs that other machines may not have,
    /// such as files.
    pub fn is_in_first_process(&self) -> bool {
        self.worker < self.threads
    }
}

/// Options of all sources of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// `true` to stop at the end that the source had when the job first started.
    pub until_end: bool,
    /// Default disorder: how far an event time may be behind the greatest one of its partition.
    pub out_of_order: Duration,
    /// Default idle timeout: a partition that is at its end for this long without records no longer holds the watermark
    /// back.
    pub idle_timeout: Duration,
    /// Watermark alignment: a partition pauses when its watermark is further than this ahead of the stream's.
    pub max_drift: Duration,
    /// Records whose event time is further than this ahead of their own Kafka timestamp are rejected.
    pub max_ahead: Duration,
    /// `true` to apply `max_ahead` to files too. Their records have no timestamp of their own, so an event time is
    /// compared with the greatest one before it in the file.
    pub max_ahead_in_files: bool,
    /// Length in bytes of the longest record of a file, line end included; longer ones are rejected.
    pub max_record: u64,
    /// `true` to fail the job at the first rejected record.
    pub fail_on_reject: bool,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            until_end: false,
            out_of_order: Duration::from_secs(2),
            idle_timeout: Duration::from_secs(30),
            max_drift: Duration::from_secs(3600),
            max_ahead: Duration::from_secs(24 * 3600),
            max_ahead_in_files: false,
            max_record: file::chunks::MAX_RECORD as u64,
            fail_on_reject: false,
        }
    }
}

/// Result of polling a reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Polled {
    /// Epoch of the events that the poll added to the intake: the polled one, or an earlier one that is not committed
    /// yet.
    pub epoch: Epoch,
    /// `true` if more may be readable at once.
    pub busy: bool,
}

/// One worker's input of an epoch, and the state of its partitions at the epoch's end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EpochInput {
    /// Progress of the partitions that changed, for the journal.
    pub partitions: Vec<PartitionProgress>,
    /// The worker's contribution to the stream's watermark.
    pub watermark: WorkerWatermark,
}

/// Position of a partition in a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RestoredPartition {
    /// Progress of the partition up to the snapshot.
    #[serde(rename = "bound")]
    pub progress: PartitionProgress,
    /// Activation watermark of the partition; [`EventTime::MIN`] if it has none. It has an effect only while it is
    /// above the partition's own watermark.
    #[serde(rename = "floor")]
    pub activation_watermark: EventTime,
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
        Ok(Some(EpochInput { partitions: Vec::new(), watermark: WorkerWatermark::without_partitions() }))
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

/// A stream's watermark as the flow publishes it to the worker's readers, for watermark alignment and activation
/// watermarks.
#[derive(Debug, Default)]
pub struct WatermarkView {
    watermark: Cell<Option<EventTime>>,
    complete: Cell<Option<Epoch>>,
}

impl WatermarkView {
    /// Publishes the stream's watermark, which is final for all epochs up to `epoch`.
    pub fn publish(&self, epoch: Epoch, watermark: EventTime) {
        self.watermark.set(Some(watermark));
        self.complete.set(Some(epoch));
    }

    /// Returns the stream's watermark as far as this worker knows; [`EventTime::MIN`] before the first one.
    pub fn watermark(&self) -> EventTime {
        self.watermark.get().unwrap_or(EventTime::MIN)
    }

    /// Returns the last epoch at which the watermark is known; `None` before the first.
    pub fn complete(&self) -> Option<Epoch> {
        self.complete.get()
    }
}

/// A record that could not be used, with its place and the reason.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Rejected {
    /// Name under which the flow reads the source.
    pub source: String,
    /// Path of the file, or name of the topic.
    pub place: String,
    /// Partition number; 0 for a file.
    pub partition: u32,
    /// Kafka offset, or position of the record's first byte in the file.
    pub offset: u64,
    /// Line in the file, from 1; 0 if the source has no lines.
    pub line: u64,
    /// Reason for the rejection.
    pub reason: String,
    /// Encoding of `record`: `text`, or `hex` if the bytes are not UTF-8.
    pub encoding: String,
    /// The record itself.
    pub record: String,
}

/// A partition that a worker reads.
#[derive(Debug)]
struct TrackedPartition {
    id: u32,
    clock: PartitionClock,
    /// Offset of the next record to take.
    next: u64,
    found_at: Option<u64>,
    /// Epoch at which the partition was found or activated, while its activation watermark may still have an effect.
    unresolved_since: Option<Epoch>,
    activated: bool,
    idle: bool,
    until: Option<u64>,
    ended: bool,
    changed: bool,
    /// Fingerprint of the data read so far.
    check: Option<ContentCheck>,
    /// Records of the current epoch; `None` if the journal does not keep them by value.
    values: Option<Vec<JournaledRecord>>,
    /// Its first watermark; watermark alignment compares with it while the stream has no watermark.
    first_watermark: Option<EventTime>,
}

/// Handle of a partition within an intake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartitionHandle(usize);

/// A record as read, before it is accepted or rejected.
#[derive(Clone, Copy, Debug)]
pub struct RawRecord<'a> {
    /// Offset in the partition.
    pub offset: u64,
    /// Offset of the following record as far as it is known: one more in Kafka, the position of the next line in a
    /// file.
    pub next: u64,
    /// Kafka timestamp in milliseconds since 1970; `None` if the record has none.
    pub stamped: Option<i64>,
    /// Line in the file, from 1; 0 if the source has no lines.
    pub line: u64,
    /// Bytes of the record, for the rejects sink and the counters.
    pub bytes: &'a [u8],
}

/// Longest reason that is kept, in characters: a library may quote a whole record in it.
const MAX_REASON: usize = 500;

/// Tracks the partitions that one worker reads of one source: accepts or rejects their records, and collects each
/// epoch's input.
pub struct PartitionTracker<D> {
    /// Accepted events of the epoch that the last poll returned. The driver of the reader drains them.
    pub events: Vec<Event<D>>,
    /// Rejected records of the same epoch, drained likewise.
    pub rejects: Vec<Event<Rejected>>,
    name: String,
    place: String,
    index: u16,
    time_of: TimeOf<D>,
    disorder: Span,
    drift: Span,
    ahead: Span,
    ahead_in_files: bool,
    fail_on_reject: bool,
    partitions: Vec<TrackedPartition>,
    first_epoch: Option<Epoch>,
    all_found: bool,
    /// Records taken since the last [`PartitionTracker::finish_poll`], and their bytes in `held`: the shared counters
    /// are raised once a poll.
    taken: u64,
    held: usize,
    stream: Rc<WatermarkView>,
    metrics: Arc<SourceMetrics>,
}

impl<D: Record> PartitionTracker<D> {
    /// Creates the tracker of the flow's `index`-th source, which is read under `name`.
    pub fn new(
        name: &str,
        index: u16,
        source: &impl Source<Item = D>,
        options: &Options,
        stream: Rc<WatermarkView>,
        metrics: Arc<SourceMetrics>,
    ) -> Self {
        metrics.idle_after.set(source.idle_after().unwrap_or(options.idle_timeout));
        PartitionTracker {
            events: Vec::new(),
            rejects: Vec::new(),
            name: name.to_owned(),
            place: source.describe(),
            index,
            time_of: source.event_time(),
            disorder: source.out_of_order().unwrap_or(options.out_of_order).into(),
            drift: options.max_drift.into(),
            ahead: options.max_ahead.into(),
            ahead_in_files: options.max_ahead_in_files,
            fail_on_reject: options.fail_on_reject,
            partitions: Vec::new(),
            first_epoch: None,
            all_found: false,
            taken: 0,
            held: 0,
            stream,
            metrics,
        }
    }

    /// Returns the name under which the flow reads the source.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the allowed disorder: how far an event time may be behind the greatest one of its partition.
    pub fn disorder(&self) -> Span {
        self.disorder
    }

    /// Returns how far an event time may be ahead of the greatest one before it in a file; `None` if that is not
    /// checked.
    pub fn ahead_in_files(&self) -> Option<Span> {
        self.ahead_in_files.then_some(self.ahead)
    }

    /// Checks an event time against `greatest`, the greatest one before it in the file. Returns the reason if it is to
    /// be rejected.
    pub fn check_ahead(&self, time: EventTime, greatest: EventTime) -> Option<String> {
        (time > greatest.plus(self.ahead)).then(|| {
            let ahead = humantime::format_duration(Duration::from_millis(self.ahead.millis().unsigned_abs()));
            format!(
                "its event time {time} is more than {ahead} ahead of the greatest one before it, {greatest} (--max-ahead)"
            )
        })
    }

    /// `true` if no record of a file has had an event time that great so far.
    pub fn is_peak(&self, time: EventTime) -> bool {
        self.metrics.notices.is_peak(time)
    }

    /// Keeps the place of the record with the greatest event time of a file.
    pub fn note_peak(&self, time: EventTime, offset: u64, line: Option<u64>) {
        self.metrics.notices.note_peak(LatestRecord { time, place: self.place.clone(), offset, line });
    }

    /// Warns once per source if an event time looks like seconds since 1970.
    pub fn notice_unit(&self, time: EventTime) {
        // Seconds of the years 2001 to 2286; milliseconds of January to April 1970.
        if (1_000_000_000..10_000_000_000).contains(&time.millis()) && self.metrics.notices.should_log_unit() {
            let (seconds, place) = (time.millis(), &self.place);
            tracing::warn!(
                "the event times of {place} look like seconds since 1970 and are taken as milliseconds: the first one, \
                 {seconds}, is {time}; multiply them by 1000 if that is wrong"
            );
        }
    }

    /// Returns the flow's view of the stream's watermark.
    pub fn stream(&self) -> &WatermarkView {
        &self.stream
    }

    /// Declares that no further partitions will be found: the worker has ended once all of its partitions have ended.
    pub fn all_found(&mut self) {
        self.all_found = true;
    }

    /// Starts to track a partition that was found in `epoch`, from offset `start` on, to `end_offset` if its end is
    /// fixed.
    pub fn track(&mut self, epoch: Epoch, id: u32, start: u64, until: Option<u64>) -> PartitionHandle {
        // Partitions of a stream's first epoch have no activation watermark: nothing can have closed before.
        let first = *self.first_epoch.get_or_insert(epoch);
        let late_comer = epoch > first;
        self.partitions.push(TrackedPartition {
            id,
            clock: PartitionClock::new(EventTime::MIN, self.disorder),
            next: start,
            found_at: Some(start),
            unresolved_since: late_comer.then_some(epoch),
            activated: late_comer,
            idle: false,
            until,
            ended: until.is_some_and(|until| start >= until),
            changed: true,
            check: None,
            values: None,
            first_watermark: None,
        });
        PartitionHandle(self.partitions.len() - 1)
    }

    /// Continues a partition from its position in a snapshot at `epoch`.
    pub fn resume(&mut self, epoch: Epoch, place: &RestoredPartition) -> PartitionHandle {
        self.begin(epoch);
        let RestoredPartition { progress, activation_watermark } = place;
        let mut clock = PartitionClock::new(EventTime::MIN, self.disorder);
        clock.raise(progress.watermark);
        self.partitions.push(TrackedPartition {
            id: progress.partition,
            clock,
            next: progress.next_offset,
            found_at: None,
            unresolved_since: (*activation_watermark > progress.watermark).then_some(epoch),
            activated: false,
            idle: progress.idle,
            until: progress.end_offset,
            ended: progress.ended,
            changed: false,
            check: progress.check,
            values: None,
            first_watermark: (progress.watermark > EventTime::MIN).then_some(progress.watermark),
        });
        PartitionHandle(self.partitions.len() - 1)
    }

    /// Marks the stream as begun even if this worker has found no partition: those found later get an activation
    /// watermark.
    pub fn begin(&mut self, epoch: Epoch) {
        self.first_epoch.get_or_insert(epoch);
    }

    /// Returns the offset of the next record to take.
    pub fn next(&self, slot: PartitionHandle) -> u64 {
        self.partitions[slot.0].next
    }

    /// Returns the offset at which the partition ends for this job; `None` if no end is fixed.
    pub fn until(&self, slot: PartitionHandle) -> Option<u64> {
        self.partitions[slot.0].until
    }

    /// Fixes the partition's end, unless it is fixed already.
    pub fn fix_end(&mut self, slot: PartitionHandle, until: u64) {
        let partition = &mut self.partitions[slot.0];
        if partition.until.is_none() {
            partition.until = Some(until);
            partition.ended |= partition.next >= until;
            partition.changed = true;
        }
    }

    /// Sets the partition's fingerprint, which covers the records taken so far.
    pub fn set_fingerprint(&mut self, slot: PartitionHandle, check: ContentCheck) {
        self.partitions[slot.0].check = Some(check);
    }

    /// Makes the journal keep the partition's records by value: see [`PartitionTracker::keep_value`].
    pub fn keep_values(&mut self, slot: PartitionHandle) {
        self.partitions[slot.0].values.get_or_insert_default();
    }

    /// Keeps a taken record by value, if the journal keeps this partition's records so.
    pub fn keep_value(&mut self, slot: PartitionHandle, value: impl FnOnce() -> JournaledRecord) {
        if let Some(values) = &mut self.partitions[slot.0].values {
            values.push(value());
        }
    }

    /// Returns the partition's fingerprint; `None` if there is none.
    pub fn fingerprint(&self, slot: PartitionHandle) -> Option<ContentCheck> {
        self.partitions[slot.0].check
    }

    /// `true` if the partition has reached its end.
    pub fn ended(&self, slot: PartitionHandle) -> bool {
        self.partitions[slot.0].ended
    }

    /// `true` if all partitions have been found and have reached their ends.
    pub fn exhausted(&self) -> bool {
        self.all_found && self.partitions.iter().all(|partition| partition.ended)
    }

    /// Returns the partition's watermark.
    pub fn watermark(&self, slot: PartitionHandle) -> EventTime {
        self.partitions[slot.0].clock.watermark()
    }

    /// `true` if the partition's watermark is so far ahead of the stream's that reading must pause.
    pub fn is_paused(&self, slot: PartitionHandle) -> bool {
        let partition = &self.partitions[slot.0];
        let stream = self.stream.watermark();
        let from = if stream > EventTime::MIN { Some(stream) } else { partition.first_watermark };
        from.is_some_and(|from| partition.clock.watermark() > from.plus(self.drift))
    }

    /// Activates the partition if it was idle, because a record of it is taken in `epoch`.
    fn activate(&mut self, slot: PartitionHandle, epoch: Epoch) {
        let partition = &mut self.partitions[slot.0];
        if partition.idle {
            partition.idle = false;
            partition.activated = true;
            partition.unresolved_since = Some(epoch);
        }
    }

    fn advance_to(&mut self, slot: PartitionHandle, next: u64) {
        let partition = &mut self.partitions[slot.0];
        debug_assert!(next >= partition.next, "offsets grow");
        partition.next = next;
        partition.changed = true;
        if partition.until.is_some_and(|until| next >= until) {
            partition.ended = true;
        }
    }

    /// Takes a record that was parsed. One with an impossible event time is rejected.
    ///
    /// # Errors
    /// Fails if the record is rejected and rejects fail the job.
    #[inline]
    pub fn accept(&mut self, epoch: Epoch, slot: PartitionHandle, found: RawRecord<'_>, data: D) -> Result<()> {
        let time = (self.time_of)(&data);
        if !time.is_writable() || self.is_ahead(time, found.stamped) {
            return self.reject(epoch, slot, found, &self.invalid_time_reason(time, found.stamped));
        }
        self.count_taken(found.bytes.len());
        if self.partitions[slot.0].idle {
            self.activate(slot, epoch);
        }
        let partition = &mut self.partitions[slot.0];
        let watermark = partition.clock.observe(time);
        let is_first = partition.first_watermark.is_none();
        if is_first {
            partition.first_watermark = Some(partition.clock.watermark());
        }
        let unresolved =
            partition.unresolved_since.is_some() && Self::is_unresolved(partition, watermark, &self.stream);
        let origin =
            Origin { source: self.index, unresolved, raised: false, partition: partition.id, offset: found.offset };
        self.events.push(Event { time, watermark, origin, data });
        self.advance_to(slot, found.next);
        if is_first {
            self.notice_unit(time);
        }
        Ok(())
    }

    /// Takes consecutive records from offset `first` on. They have no timestamps of their own, and their bytes are not
    /// counted.
    ///
    /// # Errors
    /// Fails if a record is rejected and rejects fail the job.
    pub fn accept_all(&mut self, epoch: Epoch, slot: PartitionHandle, first: u64, records: &[D]) -> Result<()> {
        let mut rest = records;
        let mut offset = first;
        while let Some((record, others)) = rest.split_first() {
            // The first one takes the long way: it may activate the partition, be unresolved, or be rejected.
            let found = RawRecord { offset, next: offset + 1, stamped: None, line: 0, bytes: &[] };
            self.accept(epoch, slot, found, record.clone())?;
            rest = others;
            offset += 1;
            let partition = &mut self.partitions[slot.0];
            if partition.unresolved_since.is_some() || partition.idle {
                continue;
            }
            let (mut clock, time_of, id, source) = (partition.clock.clone(), &*self.time_of, partition.id, self.index);
            let before = self.events.len();
            let usual = rest.iter().map_while(|record| {
                let time = time_of(record);
                if !time.is_writable() {
                    return None;
                }
                let watermark = clock.observe(time);
                let origin = Origin { source, unresolved: false, raised: false, partition: id, offset };
                offset += 1;
                Some(Event { time, watermark, origin, data: record.clone() })
            });
            self.events.extend(usual);
            let taken = self.events.len() - before;
            partition.clock = clock;
            rest = &rest[taken..];
            self.taken += taken as u64;
            self.advance_to(slot, offset);
        }
        Ok(())
    }

    /// `true` if the activation watermark may still decide whether a record is late. It is known once the epoch of the
    /// activation is complete, and is at most the stream's watermark since. From the record on whose own watermark has
    /// reached that, it has no effect.
    fn is_unresolved(partition: &mut TrackedPartition, mark: EventTime, stream: &WatermarkView) -> bool {
        let known = stream.complete() >= partition.unresolved_since;
        if known && mark >= stream.watermark() {
            partition.unresolved_since = None;
        }
        partition.unresolved_since.is_some()
    }

    #[inline]
    fn is_ahead(&self, time: EventTime, stamped: Option<i64>) -> bool {
        stamped.is_some_and(|stamped| time > EventTime::from_millis(stamped).plus(self.ahead))
    }

    fn invalid_time_reason(&self, time: EventTime, stamped: Option<i64>) -> String {
        match stamped {
            _ if !time.is_writable() => {
                // Microseconds of the year 2001, read as milliseconds, are in the year 33658.
                let unit = match time.millis() {
                    1_000_000_000_000_000..10_000_000_000_000_000 => ": are they microseconds? divide them by 1000",
                    1_000_000_000_000_000_000.. if time < EventTime::MAX => {
                        ": are they nanoseconds? divide them by 1000000"
                    }
                    _ => "",
                };
                format!("its event time, {} ms since 1970, is outside the years 1 to 9998{unit}", time.millis())
            }
            Some(stamped) => format!(
                "its event time {time} is more than {} ahead of its Kafka timestamp {} (--max-ahead)",
                humantime::format_duration(Duration::from_millis(self.ahead.millis().unsigned_abs())),
                EventTime::from_millis(stamped),
            ),
            None => String::from("its event time cannot be"),
        }
    }

    /// Returns a record's event time if it is a possible one.
    ///
    /// # Errors
    /// Fails with the reason if the event time is impossible.
    pub fn time_of(&self, data: &D) -> std::result::Result<EventTime, String> {
        let time = (self.time_of)(data);
        if time.is_writable() { Ok(time) } else { Err(self.invalid_time_reason(time, None)) }
    }

    /// Takes a record that cannot be used.
    ///
    /// # Errors
    /// Fails if rejects fail the job.
    pub fn reject(&mut self, epoch: Epoch, slot: PartitionHandle, found: RawRecord<'_>, reason: &str) -> Result<()> {
        if self.partitions[slot.0].idle {
            self.activate(slot, epoch);
        }
        let (partition, mark) = (self.partitions[slot.0].id, self.partitions[slot.0].clock.watermark());
        self.advance_to(slot, found.next);
        self.reject_at(partition, mark, found, reason)
    }

    /// Takes a record that cannot be used, of a partition that this intake does not track.
    ///
    /// # Errors
    /// Fails if rejects fail the job.
    pub fn reject_at(
        &mut self,
        partition: u32,
        watermark: EventTime,
        found: RawRecord<'_>,
        reason: &str,
    ) -> Result<()> {
        self.count_taken(found.bytes.len());
        let reason = &*shortened(reason, MAX_REASON);
        let (encoding, record) = match std::str::from_utf8(found.bytes) {
            Ok(text) => ("text", text.to_owned()),
            Err(_) => ("hex", found.bytes.iter().map(|byte| format!("{byte:02x}")).collect()),
        };
        let rejected = Rejected {
            source: self.name.clone(),
            place: self.place.clone(),
            partition,
            offset: found.offset,
            line: found.line,
            reason: reason.to_owned(),
            encoding: encoding.to_owned(),
            record,
        };
        if self.fail_on_reject {
            let line = if found.line > 0 { format!(", line {}", found.line) } else { String::new() };
            let place = format!("{}, partition {partition}, offset {}{line}", self.place, found.offset);
            let error = Error::of(ErrorKind::RecordRejected, "a record was rejected").at(place).because(reason);
            return Err(error.help("correct it, or omit --fail-on-reject to count rejected records and go on"));
        }
        if self.metrics.notices.should_log_reject() {
            let line = if found.line > 0 { format!(", line {}", found.line) } else { String::new() };
            let place = format!("{}, partition {partition}, offset {}{line}", self.place, found.offset);
            tracing::warn!(
                "a record was rejected ({place}): {reason}; such records are only counted: --rejects FILE.ndjson keeps them all"
            );
        }
        let origin = Origin { source: self.index, unresolved: false, raised: false, partition, offset: found.offset };
        self.rejects.push(Event { time: EventTime::MIN, watermark, origin, data: rejected });
        self.metrics.rejected.add(1);
        Ok(())
    }

    #[inline]
    fn count_taken(&mut self, bytes: usize) {
        self.held += bytes;
        self.taken += 1;
    }

    /// Counts records of a reader that makes its events itself, without [`PartitionTracker::accept`].
    pub fn count_read(&mut self, records: u64, bytes: u64) {
        self.held += bytes as usize;
        self.taken += records;
    }

    /// Returns the origin of a record of this source whose partition has no activation watermark.
    pub fn origin(&self, partition: u32, offset: u64) -> Origin {
        Origin { source: self.index, unresolved: false, raised: false, partition, offset }
    }

    /// Skips offsets that hold no record: transaction markers, compacted records.
    pub fn skip_to(&mut self, slot: PartitionHandle, next: u64) {
        if next > self.partitions[slot.0].next {
            self.advance_to(slot, next);
        }
    }

    /// Marks the partition as ended for this job, at whatever offset.
    pub fn mark_ended(&mut self, slot: PartitionHandle) {
        let partition = &mut self.partitions[slot.0];
        partition.changed |= !partition.ended;
        partition.ended = true;
    }

    /// Marks the partition as idle: it no longer holds the watermark back, until its next record.
    pub fn set_idle(&mut self, slot: PartitionHandle) {
        let partition = &mut self.partitions[slot.0];
        partition.changed |= !partition.idle;
        partition.idle = true;
    }

    /// Raises the partition's watermark and next offset to what other workers have read of it.
    pub fn raise(&mut self, slot: PartitionHandle, watermark: EventTime, next: u64) {
        self.partitions[slot.0].clock.raise(watermark);
        if next > self.partitions[slot.0].next {
            self.advance_to(slot, next);
        }
    }

    /// Closes an epoch: returns the progress of the partitions that changed, and the worker's contribution to the
    /// watermark.
    pub fn close_epoch(&mut self, epoch: Epoch) -> EpochInput {
        self.begin(epoch);
        let mut binding = EpochInput::default();
        for partition in &mut self.partitions {
            if std::mem::take(&mut partition.activated) {
                let source = u32::from(self.index);
                binding.watermark.activated.push(PartitionId { source, partition: partition.id });
            }
            if !partition.idle && !partition.ended {
                let watermark = partition.clock.watermark();
                binding.watermark.least = Some(binding.watermark.least.map_or(watermark, |least| least.min(watermark)));
            }
            if std::mem::take(&mut partition.changed) {
                binding.partitions.push(PartitionProgress {
                    source: self.name.clone(),
                    partition: partition.id,
                    start_offset: partition.found_at.take(),
                    next_offset: partition.next,
                    watermark: partition.clock.watermark(),
                    idle: partition.idle,
                    end_offset: partition.until,
                    ended: partition.ended,
                    check: partition.check,
                    values: partition.values.as_mut().map(std::mem::take),
                });
            }
        }
        binding.watermark.ended = self.exhausted();
        if binding.watermark.least.is_none() {
            binding.watermark.greatest = self.partitions.iter().map(|partition| partition.clock.watermark()).max();
        }
        binding
    }

    /// Returns the status of the partitions, without times and without what only the reader knows.
    pub fn partitions(&self) -> impl Iterator<Item = PartitionStatus> + '_ {
        self.partitions.iter().enumerate().map(|(at, partition)| PartitionStatus {
            source: self.name.clone(),
            partition: partition.id,
            watermark: partition.clock.watermark(),
            next: partition.next,
            end: partition.until,
            idle: partition.idle,
            ended: partition.ended,
            rests: self.is_paused(PartitionHandle(at)),
            ..PartitionStatus::default()
        })
    }

    /// Sets a partition's flags to those that a replayed epoch of the journal had at its end.
    pub fn replay_flags(&mut self, slot: PartitionHandle, bound: &PartitionProgress) {
        let partition = &mut self.partitions[slot.0];
        partition.idle = bound.idle;
        partition.ended = bound.ended;
        partition.until = bound.end_offset;
        partition.check = bound.check;
        partition.changed = true;
        if bound.next_offset > partition.next {
            partition.next = bound.next_offset;
        }
    }

    /// Ends a poll: returns an estimate of the memory that its records hold, and the events and rejects for the caller
    /// to drain. Raises the shared counters.
    pub fn finish_poll(&mut self) -> (usize, &mut Vec<Event<D>>, &mut Vec<Event<Rejected>>) {
        let bytes = std::mem::take(&mut self.held);
        self.metrics.read.add(std::mem::take(&mut self.taken));
        self.metrics.bytes.add(bytes as u64);
        self.metrics.accepted.add(self.events.len() as u64);
        let space = self.events.len() * size_of::<Event<D>>() + self.rejects.len() * size_of::<Event<Rejected>>();
        (bytes + space, &mut self.events, &mut self.rejects)
    }
}
