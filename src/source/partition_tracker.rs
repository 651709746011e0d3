//! The bookkeeping of a worker's partitions of one source: it follows their offsets, watermarks, ends and idleness, and
//! collects what each epoch commits. Records are accepted or rejected in `records`.
//!
//! Invariants: offsets of a partition only grow; what an epoch commits is exactly what was taken since the epoch before;
//! nothing here reads a clock.

mod records;

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::durable::journal::{ContentCheck, JournaledRecord, PartitionProgress, TopicPartition};
use crate::metrics::{LatestRecord, SourceMetrics};
use crate::record::{Event, Origin, Record};
#[cfg(feature = "kafka")]
use crate::source::message_store::MessageStore;
use crate::source::options::{Options, TimeOf, time_of};
use crate::source::rejected::DeadLetter;
use crate::source::watermark_view::WatermarkView;
use crate::status::PartitionStatus;
use crate::time::watermark::{PartitionClock, PartitionId, WorkerWatermark};
use crate::time::{Epoch, EventTime, Span};
pub use records::RawRecord;

/// Event time of all records of a table.
const TIMELESS: EventTime = EventTime::from_millis(0);

/// One worker's input of an epoch, and the state of its partitions at the epoch's end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct EpochInput {
    /// Progress of the partitions that changed, for the journal.
    pub partitions: Vec<PartitionProgress>,
    /// The worker's contribution to the stream's watermark.
    pub watermark: WorkerWatermark,
}

impl EpochInput {
    /// Creates the input of an epoch: the progress of the partitions that changed, and the worker's contribution to the
    /// stream's watermark. [`PartitionTracker::close_epoch`] makes both for all tracked partitions.
    pub fn new(partitions: Vec<PartitionProgress>, watermark: WorkerWatermark) -> Self {
        EpochInput { partitions, watermark }
    }
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

/// A partition that a worker reads.
#[derive(Debug)]
struct TrackedPartition {
    id: u32,
    clock: PartitionClock,
    /// Offset of the next record to take.
    next: u64,
    /// The same at the end of the last epoch that was closed.
    committed: u64,
    found_at: Option<u64>,
    /// Epoch at which the partition was found or activated, while its activation watermark may still have an effect.
    unresolved_since: Option<Epoch>,
    activated: bool,
    idle: bool,
    until: Option<u64>,
    ended: bool,
    changed: bool,
    /// Number of offsets that were skipped because their records had expired.
    expired: u64,
    /// Fingerprint of the data read so far.
    check: Option<ContentCheck>,
    /// Records of the current epoch; `None` if the journal does not keep them by value.
    values: Option<Vec<JournaledRecord>>,
    /// Offsets of records of the current epoch that could not be decoded yet.
    rejected_for_now: Vec<u64>,
    /// Place and number for people, if they are not the source's own.
    label: Option<(String, u32)>,
    /// Its topic, if that does not follow from its number.
    topic: Option<TopicPartition>,
    /// Its first watermark; watermark alignment compares with it while the stream has no watermark.
    first_watermark: Option<EventTime>,
}

/// Handle of a partition within an intake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartitionHandle(usize);

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
    pub rejects: Vec<Event<DeadLetter>>,
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
    /// Bytes of the messages that were kept since then.
    kept: usize,
    /// Messages of the worker's records in flight; `None` if nobody can ask for them.
    #[cfg(feature = "kafka")]
    messages: Option<Rc<MessageStore>>,
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
        metrics.notices.note_place(&place);
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
            kept: 0,
            #[cfg(feature = "kafka")]
            messages: None,
            stream,
            metrics,
        }
    }

    /// Keeps the messages of accepted records for steps that make dead letters of them.
    #[cfg(feature = "kafka")]
    #[must_use]
    pub(crate) fn keep_messages(mut self, messages: Rc<MessageStore>) -> Self {
        self.messages = Some(messages);
        self
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

    /// `true` if no record of a file has had an event time that great so far.
    pub(crate) fn is_peak(&self, time: EventTime) -> bool {
        self.metrics.notices.is_peak(time)
    }

    /// Keeps the place of the record with the greatest event time of a file.
    pub(crate) fn note_peak(&self, time: EventTime, offset: u64, line: Option<u64>) {
        self.metrics.notices.note_peak(LatestRecord { time, place: self.place.clone(), offset, line });
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
            committed: start,
            found_at: Some(start),
            unresolved_since: late_comer.then_some(epoch),
            activated: late_comer,
            idle: false,
            until,
            ended: until.is_some_and(|until| start >= until),
            changed: true,
            expired: 0,
            check: None,
            values: None,
            rejected_for_now: Vec::new(),
            label: None,
            topic: None,
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
            committed: progress.next_offset,
            found_at: None,
            unresolved_since: (*activation_watermark > progress.watermark).then_some(epoch),
            activated: false,
            idle: progress.idle,
            until: progress.end_offset,
            ended: progress.ended,
            changed: false,
            expired: 0,
            check: progress.check,
            values: None,
            rejected_for_now: Vec::new(),
            label: None,
            topic: None,
            first_watermark: (progress.watermark > EventTime::MIN).then_some(progress.watermark),
        });
        PartitionHandle(self.partitions.len() - 1)
    }

    /// Marks the stream as begun even if this worker has found no partition: those found later get an activation
    /// watermark.
    pub fn begin(&mut self, epoch: Epoch) {
        self.first_epoch.get_or_insert(epoch);
    }

    /// Sets the place and the number by which people know the partition, if a source has several of one number.
    pub fn set_label(&mut self, slot: PartitionHandle, place: String, number: u32) {
        self.partitions[slot.0].label = Some((place, number));
    }

    /// Sets the partition's topic, which the journal and manifests name: for a source whose numbers of partitions do not
    /// tell it.
    pub fn set_topic(&mut self, slot: PartitionHandle, topic: TopicPartition) {
        self.partitions[slot.0].topic = Some(topic);
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

    /// Skips the offsets before `to`, whose records are gone though they were still to be read, and counts them as
    /// expired. The journal names `to` as a start offset. Returns `false`, and skips nothing, if the epoch has other
    /// input of the partition before: a replay could not tell where the gap began. The caller then tries again in the
    /// next epoch.
    pub fn skip_expired(&mut self, slot: PartitionHandle, to: u64) -> bool {
        let partition = &mut self.partitions[slot.0];
        if partition.found_at.is_some() || partition.next != partition.committed {
            return false;
        }
        partition.found_at = Some(to);
        let count = to.saturating_sub(partition.next);
        partition.expired += count;
        self.metrics.expired.add(count);
        self.skip_to(slot, to);
        true
    }

    /// Ends the partition before the record at `offset`, which is not taken.
    pub fn end_before(&mut self, slot: PartitionHandle, offset: u64) {
        self.skip_to(slot, offset);
        let partition = &mut self.partitions[slot.0];
        partition.until = Some(offset);
        partition.ended = true;
        partition.changed = true;
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
            partition.committed = partition.next;
            if std::mem::take(&mut partition.changed) {
                let topic = partition.topic.as_ref().filter(|_| partition.found_at.is_some());
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
                    topic: topic.cloned(),
                    rejected_for_now: std::mem::take(&mut partition.rejected_for_now),
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
            topic: partition.topic.as_ref().map(TopicPartition::to_string),
            watermark: partition.clock.watermark(),
            next: partition.next,
            end: partition.until,
            idle: partition.idle,
            ended: partition.ended,
            rests: self.is_paused(PartitionHandle(at)),
            expired: partition.expired,
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
    pub fn finish_poll(&mut self) -> (usize, &mut Vec<Event<D>>, &mut Vec<Event<DeadLetter>>) {
        let bytes = std::mem::take(&mut self.held);
        self.metrics.read.add(std::mem::take(&mut self.taken));
        self.metrics.bytes.add(bytes as u64);
        self.metrics.accepted.add(self.events.len() as u64);
        self.metrics.skipped.add(std::mem::take(&mut self.skipped));
        let space = self.events.len() * size_of::<Event<D>>() + self.rejects.len() * size_of::<Event<DeadLetter>>();
        (bytes + space + std::mem::take(&mut self.kept), &mut self.events, &mut self.rejects)
    }
}
