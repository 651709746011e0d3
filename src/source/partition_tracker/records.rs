//! Judgement of records: a record is accepted with its event time and watermark, rejected with a reason, or skipped.
//!
//! Invariants: a record is counted once, as read and as one of accepted, rejected and skipped; each of them moves its
//! partition's offset and activates an idle partition; only an accepted one moves the watermark. Nothing here reads a
//! clock.

use std::time::Duration;

use super::{PartitionHandle, PartitionTracker, TIMELESS, TrackedPartition};
use crate::error::{Error, ErrorKind, Result, shortened};
use crate::metrics::RejectExample;
use crate::record::{Event, Origin, Record};
#[cfg(feature = "kafka")]
use crate::source::rejected::RejectedMessage;
use crate::source::rejected::{DeadLetter, Rejected};
use crate::source::watermark_view::WatermarkView;
use crate::time::{Epoch, EventTime};

/// Longest reason in the status of a job, in characters.
const MAX_EXAMPLE: usize = 200;

/// A record as read, before it is accepted or rejected.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
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

impl<'a> RawRecord<'a> {
    /// Creates a record of a source that counts its records: the following one has the next offset. It has no line and
    /// no timestamp.
    pub fn new(offset: u64, bytes: &'a [u8]) -> Self {
        RawRecord { offset, next: offset + 1, stamped: None, line: 0, bytes }
    }

    /// Sets the offset of the following record.
    #[must_use]
    pub fn next(mut self, next: u64) -> Self {
        self.next = next;
        self
    }

    /// Sets the Kafka timestamp, in milliseconds since 1970.
    #[must_use]
    pub fn stamped(mut self, timestamp: i64) -> Self {
        self.stamped = Some(timestamp);
        self
    }

    /// Sets the line in the file, from 1.
    #[must_use]
    pub fn line(mut self, line: u64) -> Self {
        self.line = line;
        self
    }
}

impl<D: Record> PartitionTracker<D> {
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
            let found = RawRecord::new(offset, &[]);
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

    /// Warns once per source if an event time looks like seconds since 1970.
    pub(crate) fn notice_unit(&self, time: EventTime) {
        // Seconds of the years 2001 to 2286; milliseconds of January to April 1970.
        if (1_000_000_000..10_000_000_000).contains(&time.millis()) && self.metrics.notices.should_log_unit() {
            let (seconds, place) = (time.millis(), &self.place);
            tracing::warn!(
                "the event times of {place} look like seconds since 1970 and are taken as milliseconds: the first one, \
                 {seconds}, is {time}; multiply them by 1000 if that is wrong"
            );
        }
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
        let partition = &self.partitions[slot.0];
        let (number, mark) = (partition.id, partition.clock.watermark());
        let label = partition.label.clone().unwrap_or_else(|| (self.place.clone(), number));
        self.advance_to(slot, found.next);
        self.reject_labelled((number, mark), label, found, reason)
    }

    /// Takes a record that cannot be used yet, such as one whose schema nobody knows: the journal names it, for a replay to
    /// reject it as well (see [`PartitionProgress::rejected_for_now`](crate::durable::journal::PartitionProgress)).
    ///
    /// # Errors
    /// Fails if rejects fail the job.
    pub fn reject_for_now(
        &mut self,
        epoch: Epoch,
        slot: PartitionHandle,
        found: RawRecord<'_>,
        reason: &str,
    ) -> Result<()> {
        self.partitions[slot.0].rejected_for_now.push(found.offset);
        self.reject(epoch, slot, found, reason)
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
        self.reject_labelled((partition, watermark), (self.place.clone(), partition), found, reason)
    }

    /// Rejects a record of a partition that people know by this place and number.
    fn reject_labelled(
        &mut self,
        (partition, watermark): (u32, EventTime),
        (place, number): (String, u32),
        found: RawRecord<'_>,
        reason: &str,
    ) -> Result<()> {
        self.count_taken(found.bytes.len());
        let rejected = Rejected::new(&self.name, (&place, number, found.offset), reason, found.bytes);
        let rejected = Rejected { line: found.line, ..rejected };
        let reason = &rejected.reason;
        if self.fail_on_reject {
            let line = if found.line > 0 { format!(", line {}", found.line) } else { String::new() };
            let place = format!("{place}, partition {number}, offset {}{line}", found.offset);
            let error = Error::of(ErrorKind::RecordRejected, "a record was rejected").at(place).because(reason);
            return Err(error.help("correct it, or omit --fail-on-reject to count rejected records and go on"));
        }
        if self.metrics.notices.should_log_reject() {
            let line = if found.line > 0 { format!(", line {}", found.line) } else { String::new() };
            let place = format!("{place}, partition {number}, offset {}{line}", found.offset);
            tracing::warn!(
                "a record was rejected ({place}): {reason}; such records are only counted: --rejects FILE.ndjson keeps them all"
            );
        }
        self.metrics.recent_rejects.extend([RejectExample {
            reason: shortened(reason, MAX_EXAMPLE).into_owned(),
            offset: found.offset,
            line: found.line,
            partition: number,
            place,
        }]);
        let origin = Origin { source: self.index, unresolved: false, raised: false, partition, offset: found.offset };
        let letter = DeadLetter { rejected, message: None };
        self.rejects.push(Event { time: EventTime::MIN, watermark, origin, data: letter });
        self.metrics.rejected.add(1);
        Ok(())
    }

    /// Keeps the rest of a message with its reject, if it was rejected: `before` rejects were there before the message
    /// was offered.
    #[cfg(feature = "kafka")]
    pub(crate) fn keep_if_rejected(&mut self, before: usize, message: impl FnOnce() -> RejectedMessage) {
        if self.rejects.len() > before
            && let Some(letter) = self.rejects.last_mut()
        {
            letter.data.message = Some(message());
        }
    }

    /// Keeps the message of a record for dead letters, if it was accepted and some step makes any: `before` events were
    /// there before the message was offered. `write` appends the message.
    #[cfg(feature = "kafka")]
    #[inline]
    pub(crate) fn keep_if_accepted(&mut self, epoch: Epoch, before: usize, write: impl FnOnce(&mut Vec<u8>)) {
        let Some(messages) = self.messages.as_ref().filter(|messages| messages.is_wanted()) else { return };
        if let Some(event) = self.events.get(before) {
            self.kept += messages.add(epoch, event, write);
        }
    }

    #[inline]
    fn count_taken(&mut self, bytes: usize) {
        self.held += bytes;
        self.taken += 1;
    }
}
