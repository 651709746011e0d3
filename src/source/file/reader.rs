//! One worker's reader of a file: parses the chunks that it is dealt, and passes their records on in order.
//!
//! A chunk is parsed as soon as it is dealt, with watermarks that count from its own first record. It is **held** until
//! the watermark before it is known; then its events' watermarks are raised to that one. A reader holds few chunks, and
//! never waits.
//!
//! With `--max-ahead`, an event time is compared with the greatest one before it: a chunk is checked when the watermark
//! before it is known, and summed up only then. Such chunks are parsed in parallel, but checked one after the other.
//!
//! Invariants: held chunks are passed on in the order in which they were dealt, and so in order of epochs; an epoch is
//! not committed while a chunk of it is held; the events of one poll are of one epoch. The module does not know where
//! chunks end, nor the bytes of a record.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use crate::durable::journal::PartitionProgress;
use crate::error::{Error, Result};
use crate::record::{Event, Record};
use crate::source::{Binding, Found, Intake, Polled, Reader, Resumed};
use crate::status::PartitionStatus;
use crate::time::watermark::{PartitionClock, WorkerWatermark};
use crate::time::{Epoch, EventTime};

use super::Format;
use super::dispenser::{Chunk, Dealt, Progress, Share, Shared, Summary};

/// Number of a file's only partition.
const PARTITION: u32 = 0;

/// Largest number of chunks that a reader holds while the watermark before them is unknown.
const AHEAD: usize = 4;

/// Reads one worker's chunks of a file.
pub struct FileReader<F: Format, T> {
    shared: Arc<Shared<F>>,
    scratch: F::Scratch,
    owner: bool,
    held: VecDeque<Held<T>>,
    spare: Vec<Event<T>>,
}

/// A parsed chunk that has not been passed on.
struct Held<T> {
    chunk: Chunk,
    /// Its events; until the chunk is settled, their watermarks count from the chunk's beginning.
    events: Vec<Event<T>>,
    rejects: Vec<Reject>,
    /// End of each event's record in the chunk, and total bytes of these records; `None` if event times need no check,
    /// or are checked.
    unjudged: Option<(Vec<usize>, u64)>,
    /// Greatest event time, and offset of the first record that has it.
    peak: Option<(EventTime, u64)>,
    settled: bool,
}

/// A record of a chunk that cannot be used: its range in the chunk, the watermark before it, and the reason.
struct Reject {
    place: Range<usize>,
    mark: EventTime,
    reason: String,
}

impl<F: Format, T> FileReader<F, T> {
    /// Creates the reader of one worker; `owner` is `true` for the worker that commits the partition's progress.
    pub fn new(shared: Arc<Shared<F>>, owner: bool) -> Self {
        FileReader { shared, scratch: F::Scratch::default(), owner, held: VecDeque::new(), spare: Vec::new() }
    }
}

impl<F: Format, T> Drop for FileReader<F, T> {
    fn drop(&mut self) {
        self.shared.abandon();
    }
}

impl<F: Format, T: Record> FileReader<F, T> {
    /// Parses a chunk and holds it.
    fn take(&mut self, chunk: Chunk, intake: &mut Intake<T>) -> Result<()> {
        if let Some(length) = chunk.too_long {
            return self.take_too_long(chunk, length);
        }
        let Some(layout) = self.shared.layout() else {
            return Err(Error::new("a chunk was dealt before the file's beginning was read"));
        };
        let records = &chunk.bytes[chunk.skip..];
        let first = chunk.start + chunk.skip as u64;
        let mut events = std::mem::take(&mut self.spare);
        let mut rejects = Vec::new();
        let mut clock = PartitionClock::new(EventTime::MIN, intake.disorder());
        let (mut bytes, mut peak) = (0, None);
        let mut ends = intake.ahead_in_files().map(|_| Vec::new());
        F::parse::<T>(layout, &mut self.scratch, records, |place, parsed| {
            match parsed.and_then(|data| Ok((intake.time_of(&data)?, data))) {
                Ok((time, data)) => {
                    bytes += (place.end - place.start) as u64;
                    let offset = first + place.start as u64;
                    if peak.is_none_or(|(greatest, _)| time > greatest) {
                        peak = Some((time, offset));
                    }
                    if let Some(ends) = &mut ends {
                        ends.push(place.end + chunk.skip);
                    }
                    let origin = intake.origin(PARTITION, offset);
                    events.push(Event { time, watermark: clock.observe(time), origin, data });
                }
                Err(reason) => {
                    let place = place.start + chunk.skip..place.end + chunk.skip;
                    rejects.push(Reject { place, mark: clock.watermark(), reason });
                }
            }
        });
        if let Some(event) = events.first().filter(|_| chunk.index == 0) {
            intake.notice_unit(event.time);
        }
        let unjudged = match ends {
            Some(ends) => Some((ends, bytes)),
            None => {
                intake.count_read(events.len() as u64, bytes);
                self.sum_up(&chunk, clock.watermark())?;
                None
            }
        };
        self.held.push_back(Held { chunk, events, rejects, unjudged, peak, settled: false });
        Ok(())
    }

    /// Holds the beginning of a record that is too long, to be rejected.
    fn take_too_long(&mut self, chunk: Chunk, length: u64) -> Result<()> {
        let reason = format!(
            "it has {length} bytes, more than a record may have (--max-record): what is kept here is the first of it"
        );
        let reject = Reject { place: 0..chunk.bytes.len(), mark: EventTime::MIN, reason };
        let lines = self.shared.lines_within(chunk.start, length)?;
        self.shared.sum_up(chunk.index, Summary { watermark: EventTime::MIN, lines })?;
        let (events, rejects) = (Vec::new(), vec![reject]);
        self.held.push_back(Held { chunk, events, rejects, unjudged: None, peak: None, settled: false });
        Ok(())
    }

    fn sum_up(&self, chunk: &Chunk, watermark: EventTime) -> Result<()> {
        let lines = memchr::memchr_iter(b'\n', &chunk.bytes).count() as u64;
        self.shared.sum_up(chunk.index, Summary { watermark, lines })
    }

    /// Checks the event times of the first held chunk, and sums the chunk up.
    fn judge(&mut self, intake: &mut Intake<T>) -> Result<()> {
        let Some(held) = self.held.front_mut() else { return Ok(()) };
        let Some(carry) = held.chunk.carry.get().copied() else { return Ok(()) };
        let Some((ends, bytes)) = held.unjudged.take() else { return Ok(()) };
        let watermark = held.judge(&ends, carry.watermark, intake);
        intake.count_read(held.events.len() as u64, bytes);
        let lines = memchr::memchr_iter(b'\n', &held.chunk.bytes).count() as u64;
        self.shared.sum_up(held.chunk.index, Summary { watermark, lines })
    }

    /// Passes on the events of the first held chunk if the watermark before it is known, and returns their epoch. A
    /// chunk is passed on whole: moving part of it would cost more than it gains.
    fn give(&mut self, intake: &mut Intake<T>) -> Result<Option<Epoch>> {
        #[cfg(test)]
        self.shared.dawdle();
        self.judge(intake)?;
        let Some(held) = self.held.front_mut() else { return Ok(None) };
        let Some(carry) = held.chunk.carry.get().copied() else { return Ok(None) };
        if !held.settled {
            let lines = if held.rejects.is_empty() { 0 } else { self.shared.lines_before()? + carry.lines };
            held.settle(lines, carry.watermark, intake)?;
            if let Some((time, offset)) = held.peak.filter(|(time, _)| intake.is_peak(*time)) {
                let before = &held.chunk.bytes[..(offset - held.chunk.start) as usize];
                let line = carry.lines + memchr::memchr_iter(b'\n', before).count() as u64 + 1;
                intake.note_peak(time, offset, self.shared.begins_at_beginning().then_some(line));
            }
        }
        let epoch = held.chunk.epoch;
        if intake.events.is_empty() {
            std::mem::swap(&mut held.events, &mut intake.events);
            self.spare = std::mem::take(&mut held.events);
        } else {
            intake.events.append(&mut held.events);
        }
        if let Some(held) = self.held.pop_front() {
            self.shared.reuse(held.chunk.bytes);
        }
        Ok(Some(epoch))
    }

    /// `true` if no chunk of the epoch, or of an earlier one, is held.
    fn clear(&self, epoch: Epoch) -> bool {
        self.held.front().is_none_or(|held| held.chunk.epoch > epoch)
    }
}

impl<T: Record> Held<T> {
    /// Rejects records whose event time is too far ahead of the greatest one before them. `ends` are the ends of the
    /// events' records in the chunk, `watermark` is the one before the chunk. Returns the watermark after the remaining
    /// events.
    fn judge(&mut self, ends: &[usize], watermark: EventTime, intake: &Intake<T>) -> EventTime {
        let (start, disorder) = (self.chunk.start, intake.disorder());
        let mut clock = PartitionClock::new(watermark, disorder);
        let mut rejects = std::mem::take(&mut self.rejects).into_iter().peekable();
        let mut kept = Vec::with_capacity(self.events.len());
        self.peak = None;
        for (mut event, end) in self.events.drain(..).zip(ends) {
            let at = (event.origin.offset - start) as usize;
            while let Some(reject) = rejects.next_if(|reject| reject.place.start < at) {
                self.rejects.push(Reject { mark: clock.watermark(), ..reject });
            }
            let greatest =
                Some(clock.watermark()).filter(|mark| *mark > EventTime::MIN).map(|mark| mark.plus(disorder));
            if let Some(reason) = greatest.and_then(|greatest| intake.ahead_of(event.time, greatest)) {
                self.rejects.push(Reject { place: at..*end, mark: clock.watermark(), reason });
                continue;
            }
            if self.peak.is_none_or(|(greatest, _)| event.time > greatest) {
                self.peak = Some((event.time, event.origin.offset));
            }
            event.watermark = clock.observe(event.time);
            kept.push(event);
        }
        self.rejects.extend(rejects.map(|reject| Reject { mark: clock.watermark(), ..reject }));
        self.events = kept;
        clock.watermark()
    }

    /// Raises its events' watermarks to the one before the chunk, and passes its rejected records on; `lines` end
    /// before the chunk.
    fn settle(&mut self, mut lines: u64, watermark: EventTime, intake: &mut Intake<T>) -> Result<()> {
        self.settled = true;
        // Watermarks never go back, so those below `watermark` are the first ones.
        for event in self.events.iter_mut().take_while(|event| event.watermark < watermark) {
            event.watermark = watermark;
        }
        let (bytes, mut counted) = (&self.chunk.bytes, 0);
        for Reject { place, mark, reason } in self.rejects.drain(..) {
            lines += memchr::memchr_iter(b'\n', &bytes[counted..place.start]).count() as u64;
            counted = place.start;
            let found = Found {
                offset: self.chunk.start + place.start as u64,
                next: self.chunk.start + place.end as u64,
                stamped: None,
                line: lines + 1,
                bytes: &bytes[place],
            };
            intake.reject_at(PARTITION, mark.max(watermark), found, &reason)?;
        }
        Ok(())
    }
}

impl<F: Format, T: Record> Reader<T> for FileReader<F, T> {
    fn resume(&mut self, epoch: Epoch, places: &[Resumed], intake: &mut Intake<T>) -> Result<()> {
        // In a stream with one partition, the activation watermark is never above the partition's own watermark.
        let Some(place) = places.iter().find(|place| place.bound.partition == PARTITION) else { return Ok(()) };
        intake.begin(epoch);
        self.shared.resume(epoch, &place.bound)
    }

    fn poll(&mut self, epoch: Epoch, _budget: usize, intake: &mut Intake<T>) -> Result<Polled> {
        intake.begin(epoch);
        intake.all_found();
        if let Some(epoch) = self.give(intake)? {
            return Ok(Polled { epoch, busy: true });
        }
        if self.held.len() >= AHEAD {
            // The worker that has the chunk before may be waiting for this core.
            std::thread::yield_now();
            return Ok(Polled { epoch, busy: true });
        }
        match self.shared.deal::<T>(epoch)? {
            Dealt::Chunk(chunk) => {
                self.take(chunk, intake)?;
                Ok(Polled { epoch: self.give(intake)?.unwrap_or(epoch), busy: true })
            }
            Dealt::Behind => Ok(Polled { epoch, busy: true }),
            Dealt::Nothing => Ok(Polled { epoch, busy: !self.held.is_empty() }),
        }
    }

    fn bind(&mut self, epoch: Epoch, intake: &mut Intake<T>) -> Result<Option<Binding>> {
        intake.begin(epoch);
        intake.all_found();
        let clear = self.clear(epoch);
        if !self.owner {
            let mark = WorkerWatermark::without_partitions();
            return Ok(clear.then(|| Binding { bounds: Vec::new(), mark }));
        }
        let Some(share) = self.shared.bind(epoch, clear)? else { return Ok(None) };
        let Share { next, watermark, until, ended, idle, check, found_at, changed } = share;
        let active = !ended && !idle;
        let (least, greatest) = (active.then_some(watermark), (!active).then_some(watermark));
        let source = intake.name().to_owned();
        let partition = PARTITION;
        let values = None;
        let bound = PartitionProgress {
            source,
            partition,
            start_offset: found_at,
            next_offset: next,
            watermark,
            idle,
            end_offset: until,
            ended,
            check,
            values,
        };
        let bounds = if changed { vec![bound] } else { Vec::new() };
        // A file that wakes needs no activation watermark: in a stream with one partition it is never above the
        // partition's own.
        Ok(Some(Binding { bounds, mark: WorkerWatermark { least, greatest, ended, activated: Vec::new() } }))
    }

    fn deliver(&mut self, intake: &mut Intake<T>) -> Result<Option<Epoch>> {
        self.give(intake)
    }

    fn partitions(&self, intake: &Intake<T>) -> Vec<PartitionStatus> {
        if !self.owner {
            return Vec::new();
        }
        let Progress { next, end, watermark, ended, idle, partial } = self.shared.progress();
        let note = partial.map(|at| format!("the record at offset {at} has no end yet"));
        vec![PartitionStatus {
            source: intake.name().to_owned(),
            partition: PARTITION,
            watermark,
            next,
            end: Some(end),
            in_bytes: true,
            idle,
            ended,
            note,
            ..PartitionStatus::default()
        }]
    }

    fn exhausted(&self, _intake: &Intake<T>) -> bool {
        self.held.is_empty() && self.shared.exhausted()
    }

    fn replay(&mut self, epoch: Epoch, bounds: &[PartitionProgress], intake: &mut Intake<T>) -> Result<bool> {
        intake.begin(epoch);
        intake.all_found();
        let Some(bound) = bounds.iter().find(|bound| bound.partition == PARTITION) else {
            self.shared.pass_again(epoch);
            return Ok(true);
        };
        self.give(intake)?;
        if self.held.len() >= AHEAD {
            return Ok(false);
        }
        if let Dealt::Chunk(chunk) = self.shared.deal_again::<T>(epoch, bound)? {
            self.take(chunk, intake)?;
            self.give(intake)?;
            return Ok(false);
        }
        Ok(self.held.is_empty())
    }
}
