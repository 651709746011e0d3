//! One worker's reader of a file: parses the chunks that it is dealt, and passes their records on in order.
//!
//! A chunk is parsed as soon as it is dealt, with watermarks that count from its own first record. It is **held** until
//! the watermark before it is known; then its events' watermarks are raised to that one. A reader holds few chunks, and
//! never waits.
//!
//! With `--max-ahead`, an event time is compared with the greatest one before it: a chunk is checked when the watermark
//! before it is known, and summed up only then. Such chunks are parsed in parallel, but checked one after the other.
//! That is looked up once for each chunk, as another worker may make it known meanwhile: a chunk that was
//! passed on without a check would never be summed up, and nobody would read on.
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
use crate::source::{EpochInput, InitialProgress, PartitionTracker, Polled, RawRecord, Reader, RestoredPartition};
use crate::status::PartitionStatus;
use crate::time::watermark::{PartitionClock, WorkerWatermark};
use crate::time::{Epoch, EventTime};

use super::chunks::{Chunk, ChunkStart, ChunkSummary, FileEpochEnd, FileProgress, NextChunk, SharedFile};
use super::format::RecordFormat;

/// Number of a file's only partition.
const PARTITION: u32 = 0;

/// Largest number of chunks that a reader holds while the watermark before them is unknown.
const MAX_HELD_CHUNKS: usize = 4;

/// Reads one worker's chunks of a file.
pub(super) struct FileReader<F: RecordFormat, T> {
    shared: Arc<SharedFile<F>>,
    scratch: F::Scratch,
    owner: bool,
    held: VecDeque<ParsedChunk<T>>,
    spare: Vec<Event<T>>,
}

/// A parsed chunk that has not been passed on.
struct ParsedChunk<T> {
    chunk: Chunk,
    /// Its events; until the chunk is settled, their watermarks count from the chunk's beginning.
    events: Vec<Event<T>>,
    rejects: Vec<ChunkReject>,
    /// End of each event's record in the chunk, and total bytes of these records; `None` if event times need no check,
    /// or are checked.
    unjudged: Option<(Vec<usize>, u64)>,
    /// Greatest event time, and offset of the first record that has it.
    peak: Option<(EventTime, u64)>,
    settled: bool,
}

/// A record of a chunk that cannot be used: its range in the chunk, the watermark before it, and the reason.
struct ChunkReject {
    place: Range<usize>,
    mark: EventTime,
    reason: String,
}

impl<F: RecordFormat, T> FileReader<F, T> {
    /// Creates the reader of one worker; `owner` is `true` for the worker that commits the partition's progress.
    pub(super) fn new(shared: Arc<SharedFile<F>>, owner: bool) -> Self {
        FileReader { shared, scratch: F::Scratch::default(), owner, held: VecDeque::new(), spare: Vec::new() }
    }
}

impl<F: RecordFormat, T> Drop for FileReader<F, T> {
    fn drop(&mut self) {
        self.shared.reader_dropped();
    }
}

impl<F: RecordFormat, T: Record> FileReader<F, T> {
    /// Parses a chunk and holds it.
    fn take(&mut self, chunk: Chunk, intake: &mut PartitionTracker<T>) -> Result<()> {
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
        self.shared.format().parse::<T>(layout, &mut self.scratch, records, |place, parsed| {
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
                    rejects.push(ChunkReject { place, mark: clock.watermark(), reason });
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
        self.held.push_back(ParsedChunk { chunk, events, rejects, unjudged, peak, settled: false });
        Ok(())
    }

    /// Holds the beginning of a record that is too long, to be rejected.
    fn take_too_long(&mut self, chunk: Chunk, length: u64) -> Result<()> {
        let reason = format!(
            "it has {length} bytes, more than a record may have (--max-record): what is kept here is the first of it"
        );
        let reject = ChunkReject { place: 0..chunk.bytes.len(), mark: EventTime::MIN, reason };
        let lines = self.shared.lines_within(chunk.start, length)?;
        self.shared.summarize(chunk.index, ChunkSummary { watermark: EventTime::MIN, lines })?;
        let (events, rejects) = (Vec::new(), vec![reject]);
        self.held.push_back(ParsedChunk { chunk, events, rejects, unjudged: None, peak: None, settled: false });
        Ok(())
    }

    fn sum_up(&self, chunk: &Chunk, watermark: EventTime) -> Result<()> {
        let lines = memchr::memchr_iter(b'\n', &chunk.bytes).count() as u64;
        self.shared.summarize(chunk.index, ChunkSummary { watermark, lines })
    }

    /// Returns the watermark and the lines before the first held chunk; `None` if there is none, or they are not known yet.
    fn first_carry(&self) -> Option<ChunkStart> {
        let carry = self.held.front()?.chunk.carry.get().copied();
        // Another worker may make it known at any time: between two looks, if there were two.
        #[cfg(test)]
        self.shared.advance_at_random();
        carry
    }

    /// Checks the event times of the first held chunk, before which is `carry`, and sums the chunk up.
    fn judge(&mut self, carry: ChunkStart, intake: &mut PartitionTracker<T>) -> Result<()> {
        let Some(held) = self.held.front_mut() else { return Ok(()) };
        let Some((ends, bytes)) = held.unjudged.take() else { return Ok(()) };
        let watermark = held.judge(&ends, carry.watermark, intake);
        intake.count_read(held.events.len() as u64, bytes);
        let lines = memchr::memchr_iter(b'\n', &held.chunk.bytes).count() as u64;
        self.shared.summarize(held.chunk.index, ChunkSummary { watermark, lines })
    }

    /// Passes on the events of the first held chunk if the watermark before it is known, and returns their epoch. A
    /// chunk is passed on whole: moving part of it would cost more than it gains.
    fn pass_on(&mut self, intake: &mut PartitionTracker<T>) -> Result<Option<Epoch>> {
        #[cfg(test)]
        self.shared.advance_at_random();
        // It is looked up once: a chunk that is passed on has been checked.
        let Some(carry) = self.first_carry() else { return Ok(None) };
        self.judge(carry, intake)?;
        let Some(held) = self.held.front_mut() else { return Ok(None) };
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
    fn holds_none_of(&self, epoch: Epoch) -> bool {
        self.held.front().is_none_or(|held| held.chunk.epoch > epoch)
    }
}

impl<T: Record> ParsedChunk<T> {
    /// Rejects records whose event time is too far ahead of the greatest one before them. `ends` are the ends of the
    /// events' records in the chunk, `watermark` is the one before the chunk. Returns the watermark after the remaining
    /// events.
    fn judge(&mut self, ends: &[usize], watermark: EventTime, intake: &PartitionTracker<T>) -> EventTime {
        let (start, disorder) = (self.chunk.start, intake.disorder());
        let mut clock = PartitionClock::new(watermark, disorder);
        let mut rejects = std::mem::take(&mut self.rejects).into_iter().peekable();
        let mut kept = Vec::with_capacity(self.events.len());
        self.peak = None;
        for (mut event, end) in self.events.drain(..).zip(ends) {
            let at = (event.origin.offset - start) as usize;
            while let Some(reject) = rejects.next_if(|reject| reject.place.start < at) {
                self.rejects.push(ChunkReject { mark: clock.watermark(), ..reject });
            }
            let greatest =
                Some(clock.watermark()).filter(|mark| *mark > EventTime::MIN).map(|mark| mark.plus(disorder));
            if let Some(reason) = greatest.and_then(|greatest| intake.check_ahead(event.time, greatest)) {
                self.rejects.push(ChunkReject { place: at..*end, mark: clock.watermark(), reason });
                continue;
            }
            if self.peak.is_none_or(|(greatest, _)| event.time > greatest) {
                self.peak = Some((event.time, event.origin.offset));
            }
            event.watermark = clock.observe(event.time);
            kept.push(event);
        }
        self.rejects.extend(rejects.map(|reject| ChunkReject { mark: clock.watermark(), ..reject }));
        self.events = kept;
        clock.watermark()
    }

    /// Raises its events' watermarks to the one before the chunk, and passes its rejected records on; `lines` end
    /// before the chunk.
    fn settle(&mut self, mut lines: u64, watermark: EventTime, intake: &mut PartitionTracker<T>) -> Result<()> {
        self.settled = true;
        // Watermarks never go back, so those below `watermark` are the first ones.
        for event in self.events.iter_mut().take_while(|event| event.watermark < watermark) {
            event.watermark = watermark;
        }
        let (bytes, mut counted) = (&self.chunk.bytes, 0);
        for ChunkReject { place, mark, reason } in self.rejects.drain(..) {
            lines += memchr::memchr_iter(b'\n', &bytes[counted..place.start]).count() as u64;
            counted = place.start;
            let found = RawRecord {
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

impl<F: RecordFormat, T: Record> Reader<T> for FileReader<F, T> {
    fn resume(&mut self, epoch: Epoch, places: &[RestoredPartition], intake: &mut PartitionTracker<T>) -> Result<()> {
        // In a stream with one partition, the activation watermark is never above the partition's own watermark.
        let Some(place) = places.iter().find(|place| place.progress.partition == PARTITION) else { return Ok(()) };
        intake.begin(epoch);
        self.shared.resume(epoch, &place.progress)
    }

    fn poll(&mut self, epoch: Epoch, _budget: usize, intake: &mut PartitionTracker<T>) -> Result<Polled> {
        intake.begin(epoch);
        intake.all_found();
        if let Some(epoch) = self.pass_on(intake)? {
            return Ok(Polled { epoch, busy: true });
        }
        if self.held.len() >= MAX_HELD_CHUNKS {
            // The worker that has the chunk before may be waiting for this core.
            std::thread::yield_now();
            return Ok(Polled { epoch, busy: true });
        }
        match self.shared.deal::<T>(epoch)? {
            NextChunk::Chunk(chunk) => {
                self.take(chunk, intake)?;
                Ok(Polled { epoch: self.pass_on(intake)?.unwrap_or(epoch), busy: true })
            }
            NextChunk::EpochTooEarly => Ok(Polled { epoch, busy: true }),
            NextChunk::Nothing => Ok(Polled { epoch, busy: !self.held.is_empty() }),
        }
    }

    fn keep_alive(&mut self, epoch: Epoch, intake: &mut PartitionTracker<T>) -> Result<()> {
        intake.begin(epoch);
        intake.all_found();
        Ok(())
    }

    fn initial_progress(&self, _intake: &PartitionTracker<T>) -> InitialProgress {
        let (next, end, is_dealt) = self.shared.initial_progress();
        let partitions = if self.owner { vec![(PARTITION, next, end)] } else { Vec::new() };
        InitialProgress { is_done: is_dealt && self.held.is_empty(), partitions }
    }

    fn close_epoch(&mut self, epoch: Epoch, intake: &mut PartitionTracker<T>) -> Result<Option<EpochInput>> {
        intake.begin(epoch);
        intake.all_found();
        let clear = self.holds_none_of(epoch);
        if !self.owner {
            let mark = WorkerWatermark::without_partitions();
            return Ok(clear.then(|| EpochInput { partitions: Vec::new(), watermark: mark }));
        }
        let Some(share) = self.shared.close_epoch(epoch, clear)? else { return Ok(None) };
        let FileEpochEnd { next: next_offset, watermark, until: end_offset, ended, idle, check, start_offset, changed } =
            share;
        let active = !ended && !idle;
        let (least, greatest) = (active.then_some(watermark), (!active).then_some(watermark));
        let source = intake.name().to_owned();
        let partition = PARTITION;
        let values = None;
        let bound = PartitionProgress {
            source,
            partition,
            start_offset,
            next_offset,
            watermark,
            idle,
            end_offset,
            ended,
            check,
            values,
            topic: None,
            rejected_for_now: Vec::new(),
        };
        let partitions = if changed { vec![bound] } else { Vec::new() };
        // A file that wakes needs no activation watermark: in a stream with one partition it is never above the
        // partition's own.
        Ok(Some(EpochInput {
            partitions,
            watermark: WorkerWatermark { least, greatest, ended, activated: Vec::new() },
        }))
    }

    fn deliver(&mut self, intake: &mut PartitionTracker<T>) -> Result<Option<Epoch>> {
        self.pass_on(intake)
    }

    fn partitions(&self, intake: &PartitionTracker<T>) -> Vec<PartitionStatus> {
        if !self.owner {
            return Vec::new();
        }
        let FileProgress { next, end, watermark, ended, idle, partial } = self.shared.progress();
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

    fn exhausted(&self, _intake: &PartitionTracker<T>) -> bool {
        self.held.is_empty() && self.shared.exhausted()
    }

    fn replay(&mut self, epoch: Epoch, bounds: &[PartitionProgress], intake: &mut PartitionTracker<T>) -> Result<bool> {
        intake.begin(epoch);
        intake.all_found();
        let Some(bound) = bounds.iter().find(|bound| bound.partition == PARTITION) else {
            self.shared.skip_replay(epoch);
            return Ok(true);
        };
        self.pass_on(intake)?;
        if self.held.len() >= MAX_HELD_CHUNKS {
            return Ok(false);
        }
        if let NextChunk::Chunk(chunk) = self.shared.deal_replay::<T>(epoch, bound)? {
            self.take(chunk, intake)?;
            self.pass_on(intake)?;
            return Ok(false);
        }
        Ok(self.held.is_empty())
    }
}
