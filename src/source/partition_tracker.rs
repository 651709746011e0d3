//! The bookkeeping of a worker's partitions of one source: it accepts or rejects their records, follows their watermarks
//! and collects what each epoch commits.
//!
//! Invariants: offsets of a partition only grow; what an epoch commits is exactly what was taken since the epoch before;
//! nothing here reads a clock.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::durable::journal::{ContentCheck, JournaledRecord, PartitionProgress};
use crate::error::{Error, ErrorKind, Result, shortened};
use crate::metrics::{LatestRecord, SourceMetrics};
use crate::record::{Event, Origin, Record};
use crate::source::options::{Options, TimeOf, time_of};
use crate::status::PartitionStatus;
use crate::time::watermark::{PartitionClock, PartitionId, WorkerWatermark};
use crate::time::{Epoch, EventTime, Span};

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
#[non_exhaustive]
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

/// Event time of all records of a table.
const TIMELESS: EventTime = EventTime::from_millis(0);

/// Longest reason that is kept, in characters: a library may quote a whole record in it.
const MAX_REASON: usize = 500;

/// What a tracker needs of its source.
pub(crate) struct TrackedSource<D> {
    /// Description of the source, for people.
    pub(crate) place: String,
    pub(crate) time_of: TimeOf<D>,
    /// Allowed disorder; `None`: the job's option holds.
    pub(crate) out_of_order: Option<Duration>,
    /// Idle timeout; `None`: the job's option holds.
    pub(crate) idle_after: Option<Duration>,
}

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
    /// `true` if event times have no meaning, as in a table: see [`PartitionTracker::timeless`].
    timeless: bool,
    partitions: Vec<TrackedPartition>,
    first_epoch: Option<Epoch>,
    all_found: bool,
    /// Records taken since the last [`PartitionTracker::finish_poll`], and their bytes in `held`: the shared counters
    /// are raised once a poll.
    taken: u64,
    held: usize,
    /// Records skipped since then.
    skipped: u64,
    stream: Rc<WatermarkView>,
    metrics: Arc<SourceMetrics>,
}

impl<D: Record> PartitionTracker<D> {
    /// Creates the tracker of the flow's `index`-th source, which is read under `name`.
    pub(crate) fn new(
        name: &str,
        index: u16,
        source: TrackedSource<D>,
        options: &Options,
        stream: Rc<WatermarkView>,
        metrics: Arc<SourceMetrics>,
    ) -> Self {
        let TrackedSource { place, time_of, out_of_order, idle_after } = source;
        metrics.idle_after.set(idle_after.unwrap_or(options.idle_timeout));
        PartitionTracker {
            events: Vec::new(),
            rejects: Vec::new(),
            name: name.to_owned(),
            place,
            index,
            time_of,
            disorder: out_of_order.unwrap_or(options.out_of_order).into(),
            drift: options.max_drift.into(),
            ahead: options.max_ahead.into(),
            ahead_in_files: options.max_ahead_in_files,
            fail_on_reject: options.fail_on_reject,
            timeless: false,
            partitions: Vec::new(),
            first_epoch: None,
            all_found: false,
            taken: 0,
            held: 0,
            skipped: 0,
            stream,
            metrics,
        }
    }

    /// Gives all records the same event time, 1970: no record is rejected for its time, none is late, and no partition
    /// pauses.
    #[must_use]
    pub(crate) fn timeless(mut self) -> Self {
        self.time_of = time_of(|_| TIMELESS);
        self.timeless = true;
        self
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
        self.accept_at(epoch, slot, found, time, data)
    }

    /// Takes a record that was parsed and has this event time, whatever the source's function gives. One with an
    /// impossible event time is rejected.
    ///
    /// # Errors
    /// Fails if the record is rejected and rejects fail the job.
    #[inline]
    pub fn accept_at(
        &mut self,
        epoch: Epoch,
        slot: PartitionHandle,
        found: RawRecord<'_>,
        time: EventTime,
        data: D,
    ) -> Result<()> {
        let (time, found) =
            if self.timeless { (TIMELESS, RawRecord { stamped: None, ..found }) } else { (time, found) };
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

    /// Takes a record that the source leaves out on purpose. Like any other record, it wakes its partition; it does not
    /// move the watermark.
    pub fn skip(&mut self, epoch: Epoch, slot: PartitionHandle, found: RawRecord<'_>) {
        if self.partitions[slot.0].idle {
            self.activate(slot, epoch);
        }
        self.advance_to(slot, found.next);
        self.count_taken(found.bytes.len());
        self.skipped += 1;
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
        self.metrics.skipped.add(std::mem::take(&mut self.skipped));
        let space = self.events.len() * size_of::<Event<D>>() + self.rejects.len() * size_of::<Event<Rejected>>();
        (bytes + space, &mut self.events, &mut self.rejects)
    }
}
