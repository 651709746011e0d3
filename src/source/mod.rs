//! Sources: where records come from, and how their partitions are followed.
//!
//! * A [`Source`] is a value made before a job runs; each worker opens a [`Reader`] of it.
//! * A reader takes records of its partitions, in order of offset, and hands them to its [`Intake`], which decides what
//!   is rejected, follows the partitions' watermarks and keeps what is bound to the current epoch.
//! * [`Rejected`] is what is kept of a record that cannot be used.
//!
//! Invariants: of every partition, each epoch takes a contiguous piece, and pieces of later epochs come later; a
//! record's place (source, partition, offset) is unique; a reader reads no clock to decide what a record means.
//! A source does not know timely: it is driven by whoever owns the intake.

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

use crate::durable::journal::{Bound, Check, Value};
use crate::error::{Error, Result, shortened};
use crate::metrics::{Peak, SourceMetrics};
use crate::record::{Event, Origin, Record};
use crate::status::PartitionStatus;
use crate::time::watermark::{PartitionClock, PartitionId, WorkerMark};
use crate::time::{Epoch, EventTime, Span};

/// Function that returns a record's event time.
pub type TimeOf<D> = Arc<dyn Fn(&D) -> EventTime + Send + Sync>;

/// Wraps a function whose result stands for an event time: milliseconds since 1970, a [`SystemTime`](std::time::SystemTime), a
/// [`jiff::Timestamp`].
pub fn time_of<D, E: Into<EventTime>>(event_time: impl Fn(&D) -> E + Send + Sync + 'static) -> TimeOf<D> {
    Arc::new(move |record| event_time(record).into())
}

/// Where records come from: a value made before a job runs, shared by its workers.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a source",
    label = "not a `Source`",
    note = "sources are values such as `csv::Input`, `ndjson::Input`, `kafka::Topic` and `source::memory::Records`",
    note = "an input without `.event_time(|record: &YourRecord| …)` is not a source yet: nothing says what its records are"
)]
pub trait Source: Send + Sync + 'static {
    /// What a record of it is.
    type Item: Record;

    /// What it is, for people: "topic transaction at localhost:9092".
    fn describe(&self) -> String;

    /// The record's event time.
    fn event_time(&self) -> TimeOf<Self::Item>;

    /// How far records may be behind the greatest event time of their partition; `None` to go by the job's options.
    fn out_of_order(&self) -> Option<Duration>;

    /// The time that a partition is silent, at its end, before it no longer holds the watermark back: before it is **idle**;
    /// `None` to go by the job's options.
    fn idle_after(&self) -> Option<Duration> {
        None
    }

    /// Opens it for one worker: connects, finds the partitions and decides which of them are the worker's.
    ///
    /// # Errors
    /// When the source is not there or cannot be read.
    fn open(&self, at: &Place) -> Result<Box<dyn Reader<Self::Item>>>;

    /// Returns the source's identity, whatever its place and name: a topic's id, a file's format. A state is recovered
    /// only with the source that it has read. Called before the source is opened; `None` if no identity is known.
    ///
    /// # Errors
    /// Fails if the source is not there or cannot be asked.
    fn identity(&self, at: &Place) -> Result<Option<String>> {
        let _ = at;
        Ok(None)
    }

    /// The topic that is read, if it is one: a job is refused that writes to it too.
    fn topic(&self) -> Option<TopicAddress> {
        None
    }

    /// Whether there is more by now than a state that has ended took, which is never read on: what came, for people, such
    /// as "partition 2 has records from offset 120 on". `bounds` are all that the state knows of this source. Nothing has
    /// to be open for it; a source that cannot grow says `None`.
    ///
    /// # Errors
    /// When the source is not there, cannot be asked, or is not the one that it was.
    fn grown_since(&self, at: &Place, bounds: &[Bound]) -> Result<Option<String>> {
        let _ = (at, bounds);
        Ok(None)
    }
}

/// Which worker opens a source, and what all of a job's sources go by.
#[derive(Clone, Debug)]
pub struct Place {
    /// This worker, from 0.
    pub worker: usize,
    /// All workers of the job, in all of its processes.
    pub workers: usize,
    /// The workers of each process: worker `w` is one of process `w / threads`.
    pub threads: usize,
    /// The job's name.
    pub job: String,
    /// What holds for all sources of the job.
    pub options: Options,
}

impl Place {
    /// Whether a partition is this worker's to read.
    pub fn owns(&self, partition: u32) -> bool {
        partition as usize % self.workers == self.worker
    }

    /// Whether this is a worker of the first process, which alone reads what is not there for the others, such as files.
    pub fn is_in_first_process(&self) -> bool {
        self.worker < self.threads
    }
}

/// What all sources of a job go by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Stop at the end that the source had at the start.
    pub until_end: bool,
    /// How far records may be behind the greatest event time of their partition, where the source does not say.
    pub out_of_order: Duration,
    /// After how long at its end, without records, a partition no longer holds the watermark back, where the source does not
    /// say.
    pub idle_timeout: Duration,
    /// How far a partition's watermark may be ahead of the stream's before the partition is paused.
    pub max_drift: Duration,
    /// How far an event time may be ahead of the record's own Kafka timestamp; more is rejected.
    pub max_ahead: Duration,
    /// `true` if `max_ahead` holds for files too, whose records have no timestamp of their own: an event time may then be so far
    /// ahead of the greatest one before it in the file.
    pub max_ahead_in_files: bool,
    /// The length of the longest record of a file in bytes, the end of its line included; a longer one is rejected.
    pub max_record: u64,
    /// End the job at the first rejected record.
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
            max_record: file::dispenser::LONGEST as u64,
            fail_on_reject: false,
        }
    }
}

/// What a reader did when it was polled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Polled {
    /// The epoch that the intake's new events belong to: the one polled with, or an earlier one that is not bound yet.
    pub epoch: Epoch,
    /// Whether there may be more to read at once.
    pub busy: bool,
}

/// What one worker bound to an epoch, and what it says of its partitions at the end of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Binding {
    /// For the journal: the partitions in which something changed.
    pub bounds: Vec<Bound>,
    /// For the stream's watermark.
    pub mark: WorkerMark,
}

/// Where a snapshot has a partition.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Resumed {
    /// What the epochs up to the snapshot took of it.
    pub bound: Bound,
    /// Its floor; [`EventTime::MIN`] if it has none. It decides as long as it is above the partition's own watermark.
    pub floor: EventTime,
}

/// Reads one worker's part of a source.
///
/// The caller polls with epochs that never go back. `bind` is called for each epoch, in order: first after the last poll
/// with it and before any poll with a later one, then again while it answers `None`. A reader that is to go on with a
/// state gets `resume` if there is a snapshot, then `replay` for the epochs of the journal behind it, then `poll`.
pub trait Reader<D: Record> {
    /// Takes up this worker's partitions where a snapshot has them, and reads nothing. Called at most once, before
    /// `replay` and `poll`, with what the snapshot at `epoch` knows of all partitions of the source, whoever read them
    /// then. Partitions that have ended are taken up too. One that a state does not name was added later: it is found by
    /// the first `poll`, and read from its first record, but never by a job that stops at an end, as that was fixed before.
    /// If a state names none at all, all are found as at a first start.
    ///
    /// # Errors
    /// When the source no longer has what comes after the snapshot, or is not the one that it was.
    fn resume(&mut self, epoch: Epoch, places: &[Resumed], intake: &mut Intake<D>) -> Result<()>;

    /// Takes what is there, about `budget` records at most, into the intake, without waiting.
    ///
    /// # Errors
    /// When the source fails for good, or a record is rejected and that is to end the job.
    fn poll(&mut self, epoch: Epoch, budget: usize, intake: &mut Intake<D>) -> Result<Polled>;

    /// Hands over what was read before and held back, without reading anything new; the epoch of it, if there is any.
    /// Called instead of `poll` while the flow is to get no new records: what is held back would keep its epoch open.
    ///
    /// # Errors
    /// When the source fails for good, or a record is rejected and that is to end the job.
    fn deliver(&mut self, _intake: &mut Intake<D>) -> Result<Option<Epoch>> {
        Ok(None)
    }

    /// Ends an epoch. `None` while records of it are still being read on another thread: the caller asks again, and
    /// goes on polling with later epochs meanwhile.
    ///
    /// # Errors
    /// When the source fails for good.
    fn bind(&mut self, epoch: Epoch, intake: &mut Intake<D>) -> Result<Option<Binding>> {
        Ok(Some(intake.bind(epoch)))
    }

    /// Takes what an epoch of a journal took: for each partition of `bounds` that this worker owns, everything before
    /// `next` that was not taken yet. Answers whether all of it has been taken; if not, the caller asks again.
    ///
    /// # Errors
    /// When what the journal names is no longer there.
    fn replay(&mut self, epoch: Epoch, bounds: &[Bound], intake: &mut Intake<D>) -> Result<bool>;

    /// Whether this worker will never read anything more: an epoch then ends at once, rather than at the next tick.
    fn exhausted(&self, intake: &Intake<D>) -> bool {
        intake.exhausted()
    }

    /// Returns the identity of the opened source, as [`Source::identity`] does; `None` if none is known.
    fn identity(&self) -> Option<String> {
        None
    }

    /// Whether this worker reads nothing more in this life, though the source is not over: the job stops when that is so for
    /// all of its workers and sources, and a later start reads on.
    fn caught_up(&self) -> bool {
        false
    }

    /// Says that everything up to this epoch has been shown by all sinks; for monitors only.
    fn shown(&mut self, _epoch: Epoch) {}

    /// Returns the status of this worker's partitions, without times, for who watches the job.
    fn partitions(&self, intake: &Intake<D>) -> Vec<PartitionStatus> {
        let mut partitions: Vec<_> = intake.partitions().collect();
        for Note { partition, position, end, note } in self.notes() {
            if let Some(known) = partitions.iter_mut().find(|known| known.partition == partition) {
                known.next = known.next.max(position.unwrap_or(0));
                (known.end, known.note) = (end, note);
            }
        }
        partitions
    }

    /// What the source says of this worker's partitions, for who watches the job.
    fn notes(&self) -> Vec<Note> {
        Vec::new()
    }
}

/// What a source says of a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// The partition.
    pub partition: u32,
    /// An offset before which nothing is left to take, where that is behind the next record's: behind transaction markers.
    pub position: Option<u64>,
    /// The offset of the next record to come, as far as it is known.
    pub end: Option<u64>,
    /// Why no records come of it, where that is not that there are none.
    pub note: Option<String>,
}

/// The reader of a worker that has no part in a source, and never will.
#[derive(Clone, Copy, Debug)]
pub struct Elsewhere;

impl<D: Record> Reader<D> for Elsewhere {
    fn resume(&mut self, _epoch: Epoch, _places: &[Resumed], _intake: &mut Intake<D>) -> Result<()> {
        Ok(())
    }

    fn poll(&mut self, epoch: Epoch, _budget: usize, _intake: &mut Intake<D>) -> Result<Polled> {
        Ok(Polled { epoch, busy: false })
    }

    fn bind(&mut self, _epoch: Epoch, _intake: &mut Intake<D>) -> Result<Option<Binding>> {
        Ok(Some(Binding { bounds: Vec::new(), mark: WorkerMark::without_partitions() }))
    }

    fn replay(&mut self, _epoch: Epoch, _bounds: &[Bound], _intake: &mut Intake<D>) -> Result<bool> {
        Ok(true)
    }

    fn exhausted(&self, _intake: &Intake<D>) -> bool {
        true
    }
}

/// What a flow publishes of a stream's watermark to the worker's readers, for pausing and floors.
#[derive(Debug, Default)]
pub struct StreamView {
    watermark: Cell<Option<EventTime>>,
    complete: Cell<Option<Epoch>>,
}

impl StreamView {
    /// Says that the stream's watermark is known at all epochs up to `epoch`, and is `watermark`.
    pub fn publish(&self, epoch: Epoch, watermark: EventTime) {
        self.watermark.set(Some(watermark));
        self.complete.set(Some(epoch));
    }

    /// The stream's watermark, as far as this worker knows; [`EventTime::MIN`] before anything is known.
    pub fn watermark(&self) -> EventTime {
        self.watermark.get().unwrap_or(EventTime::MIN)
    }

    /// The last epoch at which it is known.
    pub fn complete(&self) -> Option<Epoch> {
        self.complete.get()
    }
}

/// A record that could not be used, where it was, and why.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Rejected {
    /// The name under which the flow reads the source.
    pub source: String,
    /// The file, or the topic.
    pub place: String,
    /// The partition; 0 for a file.
    pub partition: u32,
    /// Kafka's offset, or the position of the first byte in the file.
    pub offset: u64,
    /// The line in the file, from 1; 0 where there are no lines.
    pub line: u64,
    /// Why it was rejected.
    pub reason: String,
    /// How `record` is written: `text`, or `hex` if the bytes are not UTF-8.
    pub encoding: String,
    /// The record itself.
    pub record: String,
}

/// A partition that a worker reads.
#[derive(Debug)]
struct Partition {
    id: u32,
    clock: PartitionClock,
    /// The offset of the next record to take.
    next: u64,
    found_at: Option<u64>,
    /// When the partition was found or woken, while its floor may still matter.
    fresh_since: Option<Epoch>,
    woken: bool,
    idle: bool,
    until: Option<u64>,
    ended: bool,
    changed: bool,
    /// What it is known again by.
    check: Option<Check>,
    /// The records of the current epoch, if they are to be kept by value.
    values: Option<Vec<Value>>,
    /// Its first watermark: what drift is measured from while the stream has none.
    first_mark: Option<EventTime>,
}

/// Which of an intake's partitions is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot(usize);

/// A record as a reader found it, before it is judged.
#[derive(Clone, Copy, Debug)]
pub struct Found<'a> {
    /// Its offset in the partition.
    pub offset: u64,
    /// The offset of the record after it, as far as is known: one more in Kafka, the next line's position in a file.
    pub next: u64,
    /// When the broker or the producer says it was written, in milliseconds since 1970, where that is known.
    pub stamped: Option<i64>,
    /// The line in a file, from 1; 0 where there are no lines.
    pub line: u64,
    /// Its bytes, for the rejects file and for counting.
    pub bytes: &'a [u8],
}

/// Characters of a reason that are kept: a library may quote a whole record in it.
const REASON: usize = 500;

/// Takes one worker's records of one source in: judges, stamps and binds them.
pub struct Intake<D> {
    /// Events for the flow, of the epoch that the last poll named. Whoever drives the reader takes them out.
    pub events: Vec<Event<D>>,
    /// Rejected records, likewise.
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
    partitions: Vec<Partition>,
    first_epoch: Option<Epoch>,
    all_found: bool,
    /// Records taken and not handed over yet, and their bytes: the shared counters are raised once a poll.
    taken: u64,
    held: usize,
    stream: Rc<StreamView>,
    metrics: Arc<SourceMetrics>,
}

impl<D: Record> Intake<D> {
    /// The intake of the flow's `index`-th source, read under `name`.
    pub fn new(
        name: &str,
        index: u16,
        source: &impl Source<Item = D>,
        options: &Options,
        stream: Rc<StreamView>,
        metrics: Arc<SourceMetrics>,
    ) -> Self {
        metrics.idle_after.set(source.idle_after().unwrap_or(options.idle_timeout));
        Intake {
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

    /// The name under which the flow reads the source.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How far records may be behind the greatest event time of their partition.
    pub fn disorder(&self) -> Span {
        self.disorder
    }

    /// The span by which an event time may be ahead of the greatest one before it in a file, if that is judged.
    pub fn ahead_in_files(&self) -> Option<Span> {
        self.ahead_in_files.then_some(self.ahead)
    }

    /// Judges an event time by `greatest`, the greatest one before it in the file; the reason for a rejection, if it is one.
    pub fn ahead_of(&self, time: EventTime, greatest: EventTime) -> Option<String> {
        (time > greatest.plus(self.ahead)).then(|| {
            let ahead = humantime::format_duration(Duration::from_millis(self.ahead.millis().unsigned_abs()));
            format!(
                "its event time {time} is more than {ahead} ahead of the greatest one before it, {greatest} (--max-ahead)"
            )
        })
    }

    /// `true` if no record of a file had so great an event time yet.
    pub fn is_peak(&self, time: EventTime) -> bool {
        self.metrics.notices.is_peak(time)
    }

    /// Keeps where the record with the greatest event time of a file is.
    pub fn note_peak(&self, time: EventTime, offset: u64, line: Option<u64>) {
        self.metrics.notices.note_peak(Peak { time, place: self.place.clone(), offset, line });
    }

    /// Warns, once a source, if an event time looks like seconds since 1970.
    pub fn notice_unit(&self, time: EventTime) {
        // Seconds of the years 2001 to 2286; milliseconds of January to April 1970.
        if (1_000_000_000..10_000_000_000).contains(&time.millis()) && self.metrics.notices.tell_of_unit() {
            let (seconds, place) = (time.millis(), &self.place);
            tracing::warn!(
                "the event times of {place} look like seconds since 1970 and are taken as milliseconds: the first one, \
                 {seconds}, is {time}; multiply them by 1000 if that is wrong"
            );
        }
    }

    /// What the flow knows of the stream's watermark.
    pub fn stream(&self) -> &StreamView {
        &self.stream
    }

    /// Says that no partition will be found any more: the worker has ended when all it has have ended.
    pub fn all_found(&mut self) {
        self.all_found = true;
    }

    /// Begins to follow a partition that is found in `epoch`, from the record at `start` on, up to `until` if that is
    /// fixed.
    pub fn find(&mut self, epoch: Epoch, id: u32, start: u64, until: Option<u64>) -> Slot {
        // What a stream begins with has no floor: nothing can have closed before.
        let first = *self.first_epoch.get_or_insert(epoch);
        let late_comer = epoch > first;
        self.partitions.push(Partition {
            id,
            clock: PartitionClock::new(EventTime::MIN, self.disorder),
            next: start,
            found_at: Some(start),
            fresh_since: late_comer.then_some(epoch),
            woken: late_comer,
            idle: false,
            until,
            ended: until.is_some_and(|until| start >= until),
            changed: true,
            check: None,
            values: None,
            first_mark: None,
        });
        Slot(self.partitions.len() - 1)
    }

    /// Follows a partition again from where a snapshot at `epoch` has it.
    pub fn resume(&mut self, epoch: Epoch, place: &Resumed) -> Slot {
        self.begin(epoch);
        let Resumed { bound, floor } = place;
        let mut clock = PartitionClock::new(EventTime::MIN, self.disorder);
        clock.raise(bound.watermark);
        self.partitions.push(Partition {
            id: bound.partition,
            clock,
            next: bound.next,
            found_at: None,
            fresh_since: (*floor > bound.watermark).then_some(epoch),
            woken: false,
            idle: bound.idle,
            until: bound.until,
            ended: bound.ended,
            changed: false,
            check: bound.check,
            values: None,
            first_mark: (bound.watermark > EventTime::MIN).then_some(bound.watermark),
        });
        Slot(self.partitions.len() - 1)
    }

    /// Says that the stream has begun, though this worker may have found nothing in it: later finds are late comers.
    pub fn begin(&mut self, epoch: Epoch) {
        self.first_epoch.get_or_insert(epoch);
    }

    /// The offset of the next record to take.
    pub fn next(&self, slot: Slot) -> u64 {
        self.partitions[slot.0].next
    }

    /// Where the partition ends for this job, if that is fixed.
    pub fn until(&self, slot: Slot) -> Option<u64> {
        self.partitions[slot.0].until
    }

    /// Fixes where the partition ends, if that is not fixed yet.
    pub fn limit(&mut self, slot: Slot, until: u64) {
        let partition = &mut self.partitions[slot.0];
        if partition.until.is_none() {
            partition.until = Some(until);
            partition.ended |= partition.next >= until;
            partition.changed = true;
        }
    }

    /// Says what the partition is known again by, after the records that were taken of it.
    pub fn remember(&mut self, slot: Slot, check: Check) {
        self.partitions[slot.0].check = Some(check);
    }

    /// Has the journal keep by value what is taken of the partition: see [`Intake::keep_value`].
    pub fn keep_values(&mut self, slot: Slot) {
        self.partitions[slot.0].values.get_or_insert_default();
    }

    /// Keeps a record that was taken by value, if that is wanted of its partition.
    pub fn keep_value(&mut self, slot: Slot, value: impl FnOnce() -> Value) {
        if let Some(values) = &mut self.partitions[slot.0].values {
            values.push(value());
        }
    }

    /// What the partition is known again by.
    pub fn check(&self, slot: Slot) -> Option<Check> {
        self.partitions[slot.0].check
    }

    /// Whether the partition has reached its end.
    pub fn ended(&self, slot: Slot) -> bool {
        self.partitions[slot.0].ended
    }

    /// Whether every partition has been found and has reached its end.
    pub fn exhausted(&self) -> bool {
        self.all_found && self.partitions.iter().all(|partition| partition.ended)
    }

    /// The partition's watermark.
    pub fn watermark(&self, slot: Slot) -> EventTime {
        self.partitions[slot.0].clock.watermark()
    }

    /// Whether the partition is so far ahead of the stream that it should rest.
    pub fn drifted(&self, slot: Slot) -> bool {
        let partition = &self.partitions[slot.0];
        let stream = self.stream.watermark();
        let from = if stream > EventTime::MIN { Some(stream) } else { partition.first_mark };
        from.is_some_and(|from| partition.clock.watermark() > from.plus(self.drift))
    }

    /// Wakes the partition if it was idle, as a record of it is taken in `epoch`.
    fn wake(&mut self, slot: Slot, epoch: Epoch) {
        let partition = &mut self.partitions[slot.0];
        if partition.idle {
            partition.idle = false;
            partition.woken = true;
            partition.fresh_since = Some(epoch);
        }
    }

    fn passed(&mut self, slot: Slot, next: u64) {
        let partition = &mut self.partitions[slot.0];
        debug_assert!(next >= partition.next, "offsets grow");
        partition.next = next;
        partition.changed = true;
        if partition.until.is_some_and(|until| next >= until) {
            partition.ended = true;
        }
    }

    /// Takes a record that was parsed.
    ///
    /// # Errors
    /// When its event time is impossible and rejects are to end the job.
    #[inline]
    pub fn accept(&mut self, epoch: Epoch, slot: Slot, found: Found<'_>, data: D) -> Result<()> {
        let time = (self.time_of)(&data);
        if !time.is_writable() || self.is_ahead(time, found.stamped) {
            return self.reject(epoch, slot, found, &self.why_not(time, found.stamped));
        }
        self.took(found.bytes.len());
        if self.partitions[slot.0].idle {
            self.wake(slot, epoch);
        }
        let partition = &mut self.partitions[slot.0];
        let mark = partition.clock.observe(time);
        let is_first = partition.first_mark.is_none();
        if is_first {
            partition.first_mark = Some(partition.clock.watermark());
        }
        let fresh = partition.fresh_since.is_some() && Self::still_fresh(partition, mark, &self.stream);
        let origin = Origin { source: self.index, fresh, raised: false, partition: partition.id, offset: found.offset };
        self.events.push(Event { time, mark, origin, data });
        self.passed(slot, found.next);
        if is_first {
            self.notice_unit(time);
        }
        Ok(())
    }

    /// Takes records that follow one another from the offset `first` on, each the size of its type and without a
    /// timestamp of its own.
    ///
    /// # Errors
    /// As [`Intake::accept`].
    pub fn accept_all(&mut self, epoch: Epoch, slot: Slot, first: u64, records: &[D]) -> Result<()> {
        let mut rest = records;
        let mut offset = first;
        while let Some((record, others)) = rest.split_first() {
            // The first one by the long way: it may wake the partition, be fresh, or be refused.
            let found = Found { offset, next: offset + 1, stamped: None, line: 0, bytes: &[] };
            self.accept(epoch, slot, found, record.clone())?;
            rest = others;
            offset += 1;
            let partition = &mut self.partitions[slot.0];
            if partition.fresh_since.is_some() || partition.idle {
                continue;
            }
            let (mut clock, time_of, id, source) = (partition.clock.clone(), &*self.time_of, partition.id, self.index);
            let before = self.events.len();
            let usual = rest.iter().map_while(|record| {
                let time = time_of(record);
                if !time.is_writable() {
                    return None;
                }
                let mark = clock.observe(time);
                let origin = Origin { source, fresh: false, raised: false, partition: id, offset };
                offset += 1;
                Some(Event { time, mark, origin, data: record.clone() })
            });
            self.events.extend(usual);
            let taken = self.events.len() - before;
            partition.clock = clock;
            rest = &rest[taken..];
            self.taken += taken as u64;
            self.passed(slot, offset);
        }
        Ok(())
    }

    /// A fresh partition's floor is known once the epoch of its waking is complete, and is at most the stream's
    /// watermark since; from the record on whose own mark is there, the floor decides nothing any more.
    fn still_fresh(partition: &mut Partition, mark: EventTime, stream: &StreamView) -> bool {
        let known = stream.complete() >= partition.fresh_since;
        if known && mark >= stream.watermark() {
            partition.fresh_since = None;
        }
        partition.fresh_since.is_some()
    }

    #[inline]
    fn is_ahead(&self, time: EventTime, stamped: Option<i64>) -> bool {
        stamped.is_some_and(|stamped| time > EventTime::from_millis(stamped).plus(self.ahead))
    }

    fn why_not(&self, time: EventTime, stamped: Option<i64>) -> String {
        match stamped {
            _ if !time.is_writable() => {
                // Microseconds of the year 2001 are milliseconds of the year 33658.
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

    /// The event time that a record has, if it is one that a record may have.
    ///
    /// # Errors
    /// Says why the time cannot be.
    pub fn time_of(&self, data: &D) -> std::result::Result<EventTime, String> {
        let time = EventTime::from_millis((self.time_of)(data));
        if time.is_writable() { Ok(time) } else { Err(self.why_not(time, None)) }
    }

    /// Takes a record that cannot be used.
    ///
    /// # Errors
    /// When rejects are to end the job.
    pub fn reject(&mut self, epoch: Epoch, slot: Slot, found: Found<'_>, reason: &str) -> Result<()> {
        if self.partitions[slot.0].idle {
            self.wake(slot, epoch);
        }
        let (partition, mark) = (self.partitions[slot.0].id, self.partitions[slot.0].clock.watermark());
        self.passed(slot, found.next);
        self.reject_at(partition, mark, found, reason)
    }

    /// Takes a record that cannot be used, of a partition that is followed elsewhere.
    ///
    /// # Errors
    /// When rejects are to end the job.
    pub fn reject_at(&mut self, partition: u32, mark: EventTime, found: Found<'_>, reason: &str) -> Result<()> {
        self.took(found.bytes.len());
        let reason = &*shortened(reason, REASON);
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
            let error = Error::new("a record was rejected").at(place).because(reason);
            return Err(error.help("mend it, or leave --fail-on-reject away to count it and go on"));
        }
        if self.metrics.notices.tell_of_reject() {
            let line = if found.line > 0 { format!(", line {}", found.line) } else { String::new() };
            let place = format!("{}, partition {partition}, offset {}{line}", self.place, found.offset);
            tracing::warn!(
                "a record was rejected ({place}): {reason}; such records are only counted: --rejects FILE.ndjson keeps them all"
            );
        }
        let origin = Origin { source: self.index, fresh: false, raised: false, partition, offset: found.offset };
        self.rejects.push(Event { time: EventTime::MIN, mark, origin, data: rejected });
        self.metrics.rejected.add(1);
        Ok(())
    }

    #[inline]
    fn took(&mut self, bytes: usize) {
        self.held += bytes;
        self.taken += 1;
    }

    /// Counts records that were taken without `accept`, by a reader that makes its events itself.
    pub fn count_read(&mut self, records: u64, bytes: u64) {
        self.held += bytes as usize;
        self.taken += records;
    }

    /// The origin of a record of this source whose partition has no floor.
    pub fn origin(&self, partition: u32, offset: u64) -> Origin {
        Origin { source: self.index, fresh: false, raised: false, partition, offset }
    }

    /// Moves over offsets that hold no record: transaction markers, compacted records.
    pub fn skip_to(&mut self, slot: Slot, next: u64) {
        if next > self.partitions[slot.0].next {
            self.passed(slot, next);
        }
    }

    /// Says that the partition has reached its end for this job, whatever its offset.
    pub fn end(&mut self, slot: Slot) {
        let partition = &mut self.partitions[slot.0];
        partition.changed |= !partition.ended;
        partition.ended = true;
    }

    /// Says that the partition is idle: it holds the watermark back no longer, until its next record.
    pub fn set_idle(&mut self, slot: Slot) {
        let partition = &mut self.partitions[slot.0];
        partition.changed |= !partition.idle;
        partition.idle = true;
    }

    /// Raises the partition's watermark to what other workers have read of it.
    pub fn raise(&mut self, slot: Slot, watermark: EventTime, next: u64) {
        self.partitions[slot.0].clock.raise(watermark);
        if next > self.partitions[slot.0].next {
            self.passed(slot, next);
        }
    }

    /// Ends an epoch: what changed in it, and where the worker's partitions are.
    pub fn bind(&mut self, epoch: Epoch) -> Binding {
        self.begin(epoch);
        let mut binding = Binding::default();
        for partition in &mut self.partitions {
            if std::mem::take(&mut partition.woken) {
                let source = u32::from(self.index);
                binding.mark.woken.push(PartitionId { source, partition: partition.id });
            }
            if !partition.idle && !partition.ended {
                let watermark = partition.clock.watermark();
                binding.mark.least = Some(binding.mark.least.map_or(watermark, |least| least.min(watermark)));
            }
            if std::mem::take(&mut partition.changed) {
                binding.bounds.push(Bound {
                    source: self.name.clone(),
                    partition: partition.id,
                    found_at: partition.found_at.take(),
                    next: partition.next,
                    watermark: partition.clock.watermark(),
                    idle: partition.idle,
                    until: partition.until,
                    ended: partition.ended,
                    check: partition.check,
                    values: partition.values.as_mut().map(std::mem::take),
                });
            }
        }
        binding.mark.ended = self.exhausted();
        if binding.mark.least.is_none() {
            binding.mark.greatest = self.partitions.iter().map(|partition| partition.clock.watermark()).max();
        }
        binding
    }

    /// What the partitions are at, without times and what only the reader knows.
    pub fn partitions(&self) -> impl Iterator<Item = PartitionStatus> + '_ {
        self.partitions.iter().enumerate().map(|(at, partition)| PartitionStatus {
            source: self.name.clone(),
            partition: partition.id,
            watermark: partition.clock.watermark(),
            next: partition.next,
            end: partition.until,
            idle: partition.idle,
            ended: partition.ended,
            rests: self.drifted(Slot(at)),
            ..PartitionStatus::default()
        })
    }

    /// Brings the flags of a partition to what a journal's epoch had at its end.
    pub fn repeat(&mut self, slot: Slot, bound: &Bound) {
        let partition = &mut self.partitions[slot.0];
        partition.idle = bound.idle;
        partition.ended = bound.ended;
        partition.until = bound.until;
        partition.check = bound.check;
        partition.changed = true;
        if bound.next > partition.next {
            partition.next = bound.next;
        }
    }

    /// Ends a poll: an estimate of the memory that the records taken in it hold, and the events and rejects, to be taken
    /// away. Here the counters that others see are raised.
    pub fn hand_over(&mut self) -> (usize, &mut Vec<Event<D>>, &mut Vec<Event<Rejected>>) {
        let bytes = std::mem::take(&mut self.held);
        self.metrics.read.add(std::mem::take(&mut self.taken));
        self.metrics.bytes.add(bytes as u64);
        self.metrics.accepted.add(self.events.len() as u64);
        let space = self.events.len() * size_of::<Event<D>>() + self.rejects.len() * size_of::<Event<Rejected>>();
        (bytes + space, &mut self.events, &mut self.rejects)
    }
}
