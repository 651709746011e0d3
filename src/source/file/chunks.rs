//! Splits a file into chunks of whole records, deals them out to workers, and carries the watermark along.
//!
//! * A [`Chunk`] is dealt to one worker, in the epoch in which the worker asked.
//! * Its [`ChunkSummary`] is the result of parsing it: the greatest watermark of its own records, and its number of
//!   lines.
//! * A [`ChunkStart`] is the watermark and line number just before a chunk: the summaries of all chunks before it
//!   combined.
//!
//! Invariants: chunks are dealt in order of position, and epochs of successive chunks never go back; an epoch that the
//! owner has closed gets no more chunks; the carry of a chunk is set once, when all chunks before it have been summed
//! up; an epoch is committed when all its chunks have been summed up. A record longer than [`FileLimits::longest`] is a
//! chunk of its own, of which only the beginning is held: it is rejected, and reading goes on after it.
//!
//! A followed file is the one that was opened: when its path names another file, all of the old one is read, and then
//! the job fails. It is **idle** when its length was polled throughout the idle timeout and did not change, and
//! everything in it is committed; it stays idle until it grows. In replayed epochs it is idle where the journal says
//! so.
//!
//! The clock is read only to limit how often the length of a followed file is polled, to judge idleness, and to time
//! how long its path has named another file. The module knows neither record types nor events.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use crate::durable::journal::{ContentCheck, PartitionProgress};
use crate::error::{Error, ErrorKind, Result};
use crate::record::Record;
use crate::time::{Epoch, EventTime};

use super::format::RecordFormat;
pub(crate) use super::format::ScanState;

/// Limits of the bytes that are held in memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FileLimits {
    /// Number of bytes to read at a time: small enough for a chunk and its records to stay in a core's cache, large
    /// enough for the lock and the system call to cost little.
    pub block: usize,
    /// Length in bytes of the longest record that is accepted, line end included: a record must be held in memory
    /// whole.
    pub longest: usize,
    /// Seed of random delays before summaries are processed, as if workers were slow.
    #[cfg(test)]
    pub slow: Option<u64>,
}

impl FileLimits {
    /// Sets the length of the longest record; 0 is taken as 1. A block is never longer.
    #[must_use]
    pub(crate) fn with_longest(mut self, longest: u64) -> Self {
        self.longest = usize::try_from(longest).unwrap_or(usize::MAX).max(1);
        self.block = self.block.min(self.longest);
        self
    }
}

impl Default for FileLimits {
    fn default() -> Self {
        FileLimits {
            block: 128 << 10,
            longest: MAX_RECORD,
            #[cfg(test)]
            slow: None,
        }
    }
}

/// Default length of the longest record of a file, in bytes.
pub(crate) const MAX_RECORD: usize = 16 << 20;

/// Number of bytes that are kept of a record that is too long.
const KEPT_OF_LONG_RECORD: usize = 1 << 10;

/// Number of bytes before a position that a file's fingerprint covers.
const FINGERPRINT_BYTES: u64 = 4 << 10;

/// Interval at which the length of a followed file is polled.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Longest pause between two polls of a file's length that still counts as continuous; after a longer one the idle
/// timeout starts anew.
const MAX_POLL_GAP: Duration = Duration::from_secs(1);
/// Time for which the path of a followed file may name no file, or another one, before the job fails: editors and
/// rotations take a moment.
const MISSING_TIMEOUT: Duration = Duration::from_secs(2);

/// Watermark and line number just before a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ChunkStart {
    /// Watermark of the partition.
    pub watermark: EventTime,
    /// Number of lines that end between the position where reading began and the chunk.
    pub lines: u64,
}

/// Result of parsing a chunk.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ChunkSummary {
    /// Watermark after its records, computed from its records alone.
    pub watermark: EventTime,
    /// Number of lines that end in it.
    pub lines: u64,
}

/// A piece of the file that consists of whole records.
#[derive(Debug)]
pub(crate) struct Chunk {
    /// Number of the chunk, counted from 0.
    pub index: u64,
    /// Epoch of its records.
    pub epoch: Epoch,
    /// Position of its first byte.
    pub start: u64,
    /// Number of bytes at its beginning that belong to no record: the header.
    pub skip: usize,
    /// Bytes of the chunk.
    pub bytes: Vec<u8>,
    /// Length of its only record, if that is too long; `bytes` then holds only the beginning.
    pub too_long: Option<u64>,
    /// Watermark and line number before it, once they are known.
    pub carry: Arc<OnceLock<ChunkStart>>,
}

/// Bytes of the next chunk, split off the unread rest of the file.
#[derive(Debug)]
struct ChunkBytes {
    bytes: Vec<u8>,
    skip: usize,
    too_long: Option<u64>,
}

/// A search for the end of a record that is too long.
#[derive(Debug)]
struct EndSearch {
    start: u64,
    at: u64,
    state: ScanState,
}

/// Progress of reading a file, for monitoring.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FileProgress {
    /// Position after the chunks that were dealt.
    pub next: u64,
    /// Length of the file when it was last polled, or the fixed end.
    pub end: u64,
    /// Watermark after the chunks that are summed up.
    pub watermark: EventTime,
    /// `true` if the fixed end was reached.
    pub ended: bool,
    /// `true` if the file is idle and does not hold the watermark back.
    pub idle: bool,
    /// Position of the last record if it is incomplete; `None` otherwise.
    pub partial: Option<u64>,
}

/// Answer to a worker that asks for a chunk.
#[derive(Debug)]
pub(crate) enum NextChunk {
    /// The next chunk.
    Chunk(Chunk),
    /// No chunk: the worker's epoch is behind that of the others.
    EpochTooEarly,
    /// No chunk: there is nothing more at the moment, or for good.
    Nothing,
}

/// State of the partition at the end of an epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FileEpochEnd {
    /// Position after the epoch's records.
    pub next: u64,
    /// Watermark after them.
    pub watermark: EventTime,
    /// Position at which the file ends for this job; `None` if no end is fixed.
    pub until: Option<u64>,
    /// `true` if that end was reached.
    pub ended: bool,
    /// `true` if the file is idle.
    pub idle: bool,
    /// Fingerprint of the file before `next_offset`; `None` if nothing was read.
    pub check: Option<ContentCheck>,
    /// Position where reading began; `Some` in the first committed epoch only.
    pub start_offset: Option<u64>,
    /// `true` if this differs from the epoch before.
    pub changed: bool,
}

/// State of a run's file that the workers share.
#[derive(Debug)]
pub(crate) struct SharedFile<F: RecordFormat> {
    state: Mutex<ChunkAssigner>,
    layout: OnceLock<F::Layout>,
    /// Number of lines that end before the position where reading began; counted when first asked for.
    lines_before: OnceLock<u64>,
    abandoned: AtomicBool,
}

/// A dealt chunk that is not summed up yet, or that follows one that is not.
#[derive(Debug)]
struct PendingChunk {
    epoch: Epoch,
    end: u64,
    summary: Option<ChunkSummary>,
    carry: Arc<OnceLock<ChunkStart>>,
}

/// Tracks how long a followed file has been at its end, to judge whether it is idle.
#[derive(Debug)]
struct IdleDetector {
    after: Duration,
    /// Time and file length of the first poll of the current stay at the end; `None` while there is more to deal.
    since: Option<(Instant, u64)>,
    looked: Option<Instant>,
}

impl IdleDetector {
    /// Notes a poll of the file's length at a time when nothing is left to deal.
    fn at_end(&mut self, looked: Instant, length: u64) {
        let paused = self.looked.is_none_or(|last| looked.saturating_duration_since(last) > MAX_POLL_GAP);
        if paused || self.since.is_none_or(|(_, known)| known != length) {
            self.since = Some((looked, length));
        }
        self.looked = Some(looked);
    }

    /// Notes that the file had more to deal.
    fn moved(&mut self) {
        (self.since, self.looked) = (None, None);
    }

    /// `true` if the file was at its end throughout the idle timeout.
    fn is_idle(&self) -> bool {
        let Some(((since, _), looked)) = self.since.zip(self.looked) else { return false };
        looked.saturating_duration_since(since) >= self.after
    }
}

#[derive(Debug)]
struct ChunkAssigner {
    limits: FileLimits,
    path: PathBuf,
    file: File,
    /// Length of the file when it was last polled.
    length: u64,
    polled_at: Instant,
    /// End of a run that stops at the end, unless the journal has one.
    end_at_start: Option<u64>,
    until: Option<u64>,
    /// Position where the next chunk begins.
    position: u64,
    /// Number of bytes at the file's beginning that hold no records; `None` while it is unknown.
    head: Option<u64>,
    /// File length at which the rest of the file held no complete record.
    partial_at: Option<u64>,
    /// Search for the end of a record that is too long and still incomplete.
    scan: Option<EndSearch>,
    /// Time since which the path has not named the open file.
    gone_since: Option<Instant>,
    /// Least epoch that a new chunk may have.
    least_epoch: Epoch,
    /// Epoch of the snapshot, or the last epoch that was replayed from the journal.
    replayed_through: Option<Epoch>,
    idle_detector: IdleDetector,
    /// Idle flags of epochs that are being replayed.
    replayed_idle: VecDeque<(Epoch, bool)>,
    /// Watermarks that the journal has for positions, to be compared.
    expected: VecDeque<(u64, EventTime)>,
    dealt: u64,
    pending: VecDeque<PendingChunk>,
    /// Watermark and line number after the chunks that are summed up.
    carry: ChunkStart,
    /// Ends of epochs whose chunks are summed up but not committed: position and watermark.
    ends: VecDeque<(Epoch, u64, EventTime)>,
    /// Position where reading began: 0, or that of the snapshot.
    started_at: u64,
    /// Position and watermark after the chunks that are committed.
    bound: (u64, EventTime),
    /// Share that was returned when the last epoch was committed.
    last_share: Option<FileEpochEnd>,
    failure: Option<Error>,
    spare: Vec<Vec<u8>>,
}

impl<F: RecordFormat> SharedFile<F> {
    /// Opens the file for a run, and reads its header if it is there.
    ///
    /// # Errors
    /// Fails if the file cannot be read, or cannot give records of type `T`.
    pub(crate) fn open<T: Record>(path: &Path, until_end: bool, sizes: FileLimits) -> Result<Self> {
        let shared = SharedFile {
            state: Mutex::new(ChunkAssigner::open(path, until_end, sizes)?),
            layout: OnceLock::new(),
            lines_before: OnceLock::new(),
            abandoned: AtomicBool::new(false),
        };
        shared.lay_out::<T>(&mut shared.lock())?;
        Ok(shared)
    }

    /// Sets the idle timeout of a followed file. Without it, the file never becomes idle.
    #[must_use]
    pub(crate) fn idle_after(self, after: Duration) -> Self {
        self.lock().idle_detector.after = after;
        self
    }

    fn lock(&self) -> MutexGuard<'_, ChunkAssigner> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a reader was dropped, which abandons the run unless all chunks have been dealt: a worker may be
    /// done before another has begun.
    pub(crate) fn reader_dropped(&self) {
        let state = self.lock();
        if state.until.is_none_or(|until| state.position < until) {
            self.abandoned.store(true, Ordering::Relaxed);
        }
    }

    /// `true` if a reader was dropped before all chunks were dealt.
    pub(crate) fn abandoned(&self) -> bool {
        self.abandoned.load(Ordering::Relaxed)
    }

    /// Returns the file's layout; never `None` once a chunk has been dealt.
    pub(crate) fn layout(&self) -> Option<&F::Layout> {
        self.layout.get()
    }

    /// Reads the file's header, unless that is done or the header is incomplete.
    fn lay_out<T: Record>(&self, state: &mut ChunkAssigner) -> Result<()> {
        if state.head.is_some() || state.length == 0 || state.partial_at == Some(state.length) {
            return Ok(());
        }
        let (end, mut size) = (state.until.or(state.end_at_start), state.limits.block);
        loop {
            let limit = end.unwrap_or(state.length);
            let bytes = state.read(0, size.min(limit as usize))?;
            let all = bytes.len() as u64 == limit;
            super::foreign_kinds::check(&bytes).map_err(|error| error.at(state.path.display()))?;
            if let Some((layout, head)) =
                F::read_layout::<T>(&bytes, all && end.is_some()).map_err(|error| error.at(state.path.display()))?
            {
                state.head = Some(head as u64);
                // Set once: the header is read under the lock, and only while it is unknown.
                let _ = self.layout.set(layout);
                return Ok(());
            }
            if all {
                state.partial_at = Some(state.length);
                return Ok(());
            }
            size = state.grow(0, size)?;
        }
    }

    /// Deals the next chunk to a worker that is in `epoch`.
    ///
    /// # Errors
    /// Fails if the file cannot be read, has become shorter, was moved or removed while it was followed, has an
    /// unusable or too long header, or is not the one that the journal was written from.
    pub(crate) fn deal<T: Record>(&self, epoch: Epoch) -> Result<NextChunk> {
        let state = &mut *self.lock();
        state.go_live()?;
        if state.until.is_none() {
            state.poll_length(false)?;
        }
        let limit = state.until.unwrap_or(state.length);
        let dealt = self.deal_until::<T>(state, epoch, limit, state.until.is_some())?;
        match dealt {
            NextChunk::Nothing => state.idle_detector.at_end(state.polled_at, state.length),
            NextChunk::Chunk(_) | NextChunk::EpochTooEarly => state.idle_detector.moved(),
        }
        Ok(dealt)
    }

    fn deal_until<T: Record>(
        &self,
        state: &mut ChunkAssigner,
        epoch: Epoch,
        limit: u64,
        last: bool,
    ) -> Result<NextChunk> {
        if state.position >= limit || (!last && state.partial_at == Some(limit)) {
            return Ok(NextChunk::Nothing);
        }
        if epoch < state.least_epoch {
            return Ok(NextChunk::EpochTooEarly);
        }
        self.lay_out::<T>(state)?;
        let Some(head) = state.head else { return Ok(NextChunk::Nothing) };
        let Some(ChunkBytes { bytes, skip, too_long }) = state.cut::<F>(head, limit, last)? else {
            state.partial_at = Some(limit);
            return Ok(NextChunk::Nothing);
        };
        let carry = Arc::new(OnceLock::new());
        if state.pending.is_empty() {
            let _ = carry.set(state.carry);
        }
        let (index, start) = (state.dealt, state.position);
        let chunk = Chunk { index, epoch, start, skip, bytes, too_long, carry: Arc::clone(&carry) };
        state.position += chunk.too_long.unwrap_or(chunk.bytes.len() as u64);
        state.pending.push_back(PendingChunk { epoch, end: state.position, summary: None, carry });
        (state.dealt, state.partial_at) = (state.dealt + 1, None);
        state.least_epoch = epoch;
        Ok(NextChunk::Chunk(chunk))
    }

    /// Returns the progress of reading the file, for monitoring.
    pub(crate) fn progress(&self) -> FileProgress {
        let state = self.lock();
        let (end, ended) = (state.until.unwrap_or(state.length), state.last_share.is_some_and(|said| said.ended));
        let partial = (state.partial_at == Some(end)).then_some(state.position);
        let idle = state.last_share.is_some_and(|said| said.idle);
        FileProgress { next: state.position, end, watermark: state.carry.watermark, ended, idle, partial }
    }

    /// Counts the lines that end in `length` bytes from position `from` on: those of a record that is too long.
    ///
    /// # Errors
    /// Fails if the file cannot be read.
    pub(crate) fn lines_within(&self, from: u64, length: u64) -> Result<u64> {
        self.lock().count_lines(from, length)
    }

    /// `true` if reading began at the file's beginning.
    pub(crate) fn begins_at_beginning(&self) -> bool {
        self.lock().started_at == 0
    }

    /// `true` if the end is fixed and all chunks before it have been dealt.
    pub(crate) fn exhausted(&self) -> bool {
        let state = self.lock();
        state.until.is_some_and(|until| state.position >= until)
    }

    /// Restores the position of a snapshot at `epoch`. Every worker calls it before anything else; only the first call
    /// has an effect.
    ///
    /// # Errors
    /// Fails if the file cannot be read, or is not the one that the snapshot was taken of.
    pub(crate) fn resume(&self, epoch: Epoch, bound: &PartitionProgress) -> Result<()> {
        let state = &mut *self.lock();
        if state.replayed_through.is_none() {
            state.resume(bound)?;
            state.replayed_through = Some(epoch);
        }
        Ok(())
    }

    /// Deals the next chunk of an epoch that is replayed from the journal; [`NextChunk::Nothing`] once all of it has
    /// been dealt.
    ///
    /// # Errors
    /// Fails as [`SharedFile::deal`] does, and if the file is not the one that the journal was written from.
    pub(crate) fn deal_replay<T: Record>(&self, epoch: Epoch, bound: &PartitionProgress) -> Result<NextChunk> {
        let state = &mut *self.lock();
        state.check_failure()?;
        if state.replayed_through < Some(epoch) {
            state.replay(epoch, bound)?;
        }
        self.deal_until::<T>(state, epoch, bound.next_offset, true)
    }

    /// Replays an epoch of the journal that took nothing from the file.
    pub(crate) fn skip_replay(&self, epoch: Epoch) {
        let state = &mut *self.lock();
        state.replayed_through = state.replayed_through.max(Some(epoch));
    }

    /// Stores the result of parsing a chunk.
    ///
    /// # Errors
    /// Fails if the result shows that the file is not the one that the journal was written from.
    pub(crate) fn summarize(&self, index: u64, summary: ChunkSummary) -> Result<()> {
        let mut state = self.lock();
        let first = state.dealt - state.pending.len() as u64;
        state.pending[(index - first) as usize].summary = Some(summary);
        #[cfg(test)]
        if state.limits.slow.is_some() {
            return state.check_failure();
        }
        state.advance();
        state.check_failure()
    }

    /// Processes the recorded summaries at random times.
    #[cfg(test)]
    pub(crate) fn advance_at_random(&self) {
        let state = &mut *self.lock();
        if let Some(seed) = state.limits.slow.as_mut() {
            let mut rng = fastrand::Rng::with_seed(*seed);
            *seed = rng.u64(..);
            if rng.u8(0..3) == 0 {
                state.advance();
            }
        }
    }

    /// Takes back the buffer of a chunk.
    pub(crate) fn reuse(&self, bytes: Vec<u8>) {
        self.lock().keep(bytes);
    }

    /// Closes an epoch: it gets no more chunks. Returns what it took; `None` while some of its chunks are not summed
    /// up, or while the owner is not `ready`.
    ///
    /// # Errors
    /// Fails if the file is not the one that the journal was written from, or cannot be read for its fingerprint.
    pub(crate) fn close_epoch(&self, epoch: Epoch, ready: bool) -> Result<Option<FileEpochEnd>> {
        let state = &mut *self.lock();
        state.least_epoch = state.least_epoch.max(Epoch(epoch.0 + 1));
        if state.replayed_through < Some(epoch) {
            state.go_live()?;
        }
        state.check_failure()?;
        if !ready || state.pending.front().is_some_and(|chunk| chunk.epoch <= epoch) {
            return Ok(None);
        }
        state.close_epoch(epoch).map(Some)
    }

    /// Returns the number of lines that end before the position where reading began.
    ///
    /// # Errors
    /// Fails if the file cannot be read.
    pub(crate) fn lines_before(&self) -> Result<u64> {
        if let Some(lines) = self.lines_before.get() {
            return Ok(*lines);
        }
        let mut state = self.lock();
        let found_at = state.started_at;
        let lines = state.count_lines(0, found_at)?;
        Ok(*self.lines_before.get_or_init(|| lines))
    }
}

/// Describes what a file has beyond the end of a state; `None` if it has not grown.
///
/// # Errors
/// Fails if the file does not exist, or is not the one that the state was written from.
pub(crate) fn grown_since(path: &Path, sizes: FileLimits, bounds: &[PartitionProgress]) -> Result<Option<String>> {
    let mut file = ChunkAssigner::open(path, false, sizes)?;
    let Some(bound) = bounds.first() else { return Ok((file.length > 0).then(|| String::from("it was never read"))) };
    file.verify_identity(bound)?;
    let end = bound.end_offset.unwrap_or(bound.next_offset);
    Ok((file.length > end).then(|| format!("it has {} bytes more, from offset {end} on", file.length - end)))
}

/// Formats a number of bytes for people.
pub(crate) fn format_bytes(bytes: usize) -> String {
    bytesize::ByteSize::b(bytes as u64).display().iec().to_string()
}

impl ChunkAssigner {
    fn open(path: &Path, until_end: bool, limits: FileLimits) -> Result<Self> {
        let refused = |why: &dyn std::fmt::Display| {
            Error::of(ErrorKind::SourceUnreachable, "cannot open the input").at(path.display()).because(why)
        };
        // The type is checked before opening: opening a pipe would block until another process writes to it.
        let found = path.metadata().map_err(|why| refused(&why).help("check the path"))?;
        if !found.is_file() {
            return Err(refused(&"it is not a regular file").help("write it to a file first"));
        }
        let file = File::open(path).map_err(|why| refused(&why).help("check the path"))?;
        let found = file.metadata().map_err(|why| refused(&why))?;
        Ok(ChunkAssigner {
            limits,
            path: path.to_owned(),
            file,
            length: found.len(),
            polled_at: Instant::now(),
            end_at_start: until_end.then_some(found.len()),
            until: None,
            position: 0,
            head: None,
            partial_at: None,
            scan: None,
            gone_since: None,
            least_epoch: Epoch(0),
            replayed_through: None,
            idle_detector: IdleDetector { after: Duration::MAX, since: None, looked: None },
            replayed_idle: VecDeque::new(),
            expected: VecDeque::new(),
            dealt: 0,
            pending: VecDeque::new(),
            carry: ChunkStart { watermark: EventTime::MIN, lines: 0 },
            ends: VecDeque::new(),
            started_at: 0,
            bound: (0, EventTime::MIN),
            last_share: None,
            failure: None,
            spare: Vec::new(),
        })
    }

    /// Keeps a buffer for reuse, unless it held an exceptionally long record.
    fn keep(&mut self, mut bytes: Vec<u8>) {
        if bytes.capacity() <= 2 * self.limits.block {
            bytes.clear();
            self.spare.push(bytes);
        }
    }

    fn check_failure(&self) -> Result<()> {
        self.failure.clone().map_or(Ok(()), Err)
    }

    /// Ends replay: what is read from now on is new. Fixes the end at which the job stops, if the journal has none.
    fn go_live(&mut self) -> Result<()> {
        if self.until.is_none() {
            self.until = self.end_at_start;
        }
        self.check_failure()
    }

    /// Polls the file's length: always if `now`, else only if nothing is left to deal and the last poll is old enough.
    fn poll_length(&mut self, now: bool) -> Result<()> {
        if !now
            && (self.position < self.length && self.partial_at.is_none() || self.polled_at.elapsed() < POLL_INTERVAL)
        {
            return Ok(());
        }
        self.polled_at = Instant::now();
        let found = self.file.metadata().map_err(|why| self.broken(&why))?;
        self.length = found.len();
        if self.length < self.position {
            return Err(self.shorter(self.position));
        }
        // Whatever was written to the old file before it was moved is read first.
        if now || self.position < self.length && self.partial_at != Some(self.length) {
            return Ok(());
        }
        self.check_path(&found)
    }

    /// Fails if the path of a followed file has named another file, or none, for longer than [`MISSING_TIMEOUT`].
    fn check_path(&mut self, opened: &std::fs::Metadata) -> Result<()> {
        let why = match self.path.metadata() {
            Ok(found) if (found.dev(), found.ino()) == (opened.dev(), opened.ino()) => {
                self.gone_since = None;
                return Ok(());
            }
            Ok(_) => String::from("another file has its name now"),
            Err(why) => why.to_string(),
        };
        if self.gone_since.get_or_insert_with(Instant::now).elapsed() < MISSING_TIMEOUT {
            return Ok(());
        }
        let place = format!("{}, offset {}", self.path.display(), self.position);
        let error = Error::of(ErrorKind::SourceChanged, "the input was moved or removed while it was followed")
            .at(place)
            .because(why);
        Err(error.help("all of the old file up to there was read; to read the new one, start again with a new --state"))
    }

    /// Counts the lines that end in a piece of the file.
    fn count_lines(&mut self, from: u64, length: u64) -> Result<u64> {
        let (mut at, mut lines) = (from, 0);
        while at < from + length {
            let count = self.limits.block.min((from + length - at) as usize);
            let bytes = self.read(at, count)?;
            at += count as u64;
            lines += memchr::memchr_iter(b'\n', &bytes).count() as u64;
            self.keep(bytes);
        }
        Ok(lines)
    }

    fn broken(&self, why: &dyn std::fmt::Display) -> Error {
        Error::of(ErrorKind::SourceUnreachable, "cannot read the input").at(self.path.display()).because(why)
    }

    fn shorter(&self, position: u64) -> Error {
        let place = format!("{}, offset {position}", self.path.display());
        let error = Error::of(ErrorKind::SourceChanged, "the file ends before what was already read of it").at(place);
        error.help("files that are read may only grow; restore it, or start without the old state")
    }

    /// Reads exactly `count` bytes, which the file is known to have had.
    fn read(&mut self, from: u64, count: usize) -> Result<Vec<u8>> {
        let mut bytes = self.spare.pop().unwrap_or_default();
        self.read_into(&mut bytes, from, count)?;
        Ok(bytes)
    }

    fn read_into(&mut self, bytes: &mut Vec<u8>, from: u64, count: usize) -> Result<()> {
        bytes.reserve_exact(count);
        self.file.seek(SeekFrom::Start(from)).map_err(|why| self.broken(&why))?;
        let read = (&self.file).take(count as u64).read_to_end(bytes).map_err(|why| self.broken(&why))?;
        if read < count { Err(self.shorter(from + count as u64)) } else { Ok(()) }
    }

    /// Returns the next larger number of bytes to read when `size` bytes do not hold the whole header; fails if it may
    /// not be larger.
    fn grow(&self, position: u64, size: usize) -> Result<usize> {
        if size < self.limits.longest {
            return Ok((size * 2).min(self.limits.longest));
        }
        let place = format!("{}, offset {position}", self.path.display());
        let error = Error::new(format!("the header is longer than {}", format_bytes(self.limits.longest))).at(place);
        Err(error.help("look for a quote that is never closed, or for lines that do not end; --max-record allows more"))
    }

    /// Returns the next chunk; `None` if no record is complete before `limit`. If `last`, the file ends at `limit`, and
    /// so does its last record.
    fn cut<F: RecordFormat>(&mut self, head: u64, limit: u64, last: bool) -> Result<Option<ChunkBytes>> {
        let (rest, mut size) = (usize::try_from(limit - self.position).unwrap_or(usize::MAX), self.limits.block);
        let mut bytes = self.spare.pop().unwrap_or_default();
        loop {
            let want = size.min(rest);
            let had = bytes.len();
            self.read_into(&mut bytes, self.position + had as u64, want - had)?;
            let skip = (head.saturating_sub(self.position) as usize).min(want);
            if want == rest && last {
                return Ok(Some(ChunkBytes { bytes, skip, too_long: None }));
            }
            let end = F::last_record_end(&bytes[skip..]).map(|end| end + skip).or((skip > 0).then_some(skip));
            if let Some(end) = end {
                bytes.truncate(end);
                return Ok(Some(ChunkBytes { bytes, skip, too_long: None }));
            }
            if want == rest {
                self.keep(bytes);
                return Ok(None);
            }
            if size >= self.limits.longest {
                let Some(length) = self.long_record::<F>(limit, last)? else { return Ok(None) };
                // The end of the record may be one that shows only with the byte after it.
                let fits = length <= bytes.len() as u64;
                bytes.truncate(if fits { length as usize } else { KEPT_OF_LONG_RECORD });
                bytes.shrink_to_fit();
                return Ok(Some(ChunkBytes { bytes, skip: 0, too_long: (!fits).then_some(length) }));
            }
            size = (size * 2).min(self.limits.longest);
        }
    }

    /// Returns the length of the next record, which is too long to be held; `None` if it has no end before `limit`.
    fn long_record<F: RecordFormat>(&mut self, limit: u64, last: bool) -> Result<Option<u64>> {
        let start = self.position;
        let known = self.scan.take().filter(|scan| scan.start == start && scan.at <= limit);
        let begun = known.is_none();
        let mut scan = known.unwrap_or(EndSearch { start, at: start, state: ScanState::FieldStart });
        while scan.at < limit {
            let count = self.limits.block.min((limit - scan.at) as usize);
            let bytes = self.read(scan.at, count)?;
            let end = F::record_end(&mut scan.state, &bytes);
            self.keep(bytes);
            if let Some(end) = end {
                return Ok(Some(scan.at + end as u64 - start));
            }
            scan.at += count as u64;
        }
        if last {
            return Ok(Some(limit - start));
        }
        if begun {
            let (path, longest) = (self.path.display(), format_bytes(self.limits.longest));
            tracing::warn!(
                "the record at offset {start} of {path} is longer than {longest}, and has no end yet: is a quote never closed?"
            );
        }
        self.scan = Some(scan);
        Ok(None)
    }

    /// Verifies that the file can be the one that `bound` was written from: by its length and its fingerprint.
    fn verify_identity(&mut self, bound: &PartitionProgress) -> Result<()> {
        let end = bound.next_offset.max(bound.end_offset.unwrap_or(0));
        if end > self.length {
            self.poll_length(true)?;
        }
        if end > self.length {
            let place = format!("{}, offset {end}", self.path.display());
            let error = Error::of(ErrorKind::SourceChanged, "the state names records that are not there").at(place);
            let length = format!("the file has {} bytes", self.length);
            return Err(error.because(length).help("restore the file, or start without the old state"));
        }
        let Some(check) = bound.check else { return Ok(()) };
        if check.at <= bound.next_offset && self.fingerprint_of(check.at, bound.next_offset)? == check {
            return Ok(());
        }
        let place = format!("{}, before offset {}", self.path.display(), bound.next_offset);
        let error = Error::of(ErrorKind::SourceChanged, "the file was changed since the state was written").at(place);
        Err(error.help("restore the file, or start without the old state; files that are read may only grow"))
    }

    /// Computes the fingerprint of the bytes from `at` to `end`.
    fn fingerprint_of(&mut self, at: u64, end: u64) -> Result<ContentCheck> {
        let (mut position, mut sum) = (at, crc32fast::Hasher::new());
        while position < end {
            let count = self.limits.block.min((end - position) as usize);
            let bytes = self.read(position, count)?;
            sum.update(&bytes);
            position += count as u64;
            self.keep(bytes);
        }
        Ok(ContentCheck { at, sum: sum.finalize() })
    }

    /// Restores the position of a snapshot.
    fn resume(&mut self, bound: &PartitionProgress) -> Result<()> {
        self.verify_identity(bound)?;
        let &PartitionProgress { next_offset, watermark, idle, end_offset, ended, check, .. } = bound;
        (self.started_at, self.position, self.bound, self.until) =
            (next_offset, next_offset, (next_offset, watermark), end_offset);
        self.carry.watermark = watermark;
        self.last_share = Some(FileEpochEnd {
            next: next_offset,
            watermark,
            until: end_offset,
            ended,
            idle,
            check,
            start_offset: None,
            changed: false,
        });
        Ok(())
    }

    /// Prepares the replay of an epoch of the journal.
    fn replay(&mut self, epoch: Epoch, bound: &PartitionProgress) -> Result<()> {
        self.verify_identity(bound)?;
        self.until = bound.end_offset;
        self.expected.push_back((bound.next_offset, bound.watermark));
        self.replayed_idle.push_back((epoch, bound.idle));
        self.replayed_through = Some(epoch);
        self.advance();
        Ok(())
    }

    /// Moves the carry over the leading chunks that are summed up.
    fn advance(&mut self) {
        while let Some(&PendingChunk { epoch, end, summary: Some(summary), .. }) = self.pending.front() {
            self.pending.pop_front();
            self.carry.watermark = self.carry.watermark.max(summary.watermark);
            self.carry.lines += summary.lines;
            match self.ends.back_mut() {
                Some(last) if last.0 == epoch => *last = (epoch, end, self.carry.watermark),
                _ => self.ends.push_back((epoch, end, self.carry.watermark)),
            }
            if let Some(next) = self.pending.front() {
                let _ = next.carry.set(self.carry);
            }
            self.compare(end);
        }
        if self.pending.is_empty() {
            self.compare(self.position);
        }
    }

    /// Compares the watermark at a position with the journal's.
    fn compare(&mut self, position: u64) {
        while let Some((_, watermark)) = self.expected.pop_front_if(|(next, _)| *next <= position) {
            if watermark != self.carry.watermark && self.failure.is_none() {
                let place = format!("{}, before offset {position}", self.path.display());
                let error =
                    Error::of(ErrorKind::SourceChanged, "the file is not what the journal was written from").at(place);
                let why = format!("its watermark there is {}, the journal's {watermark}", self.carry.watermark);
                self.failure = Some(error.because(why).help("restore the file, or start without the old state"));
            }
        }
    }

    fn close_epoch(&mut self, epoch: Epoch) -> Result<FileEpochEnd> {
        while let Some((_, end, watermark)) = self.ends.pop_front_if(|(of, _, _)| *of <= epoch) {
            self.bound = (end, watermark);
        }
        let (next, watermark) = self.bound;
        let ended = self.until.is_some_and(|until| next >= until);
        let check = match self.last_share {
            Some(said) if said.next == next => said.check,
            _ if next == 0 => None,
            _ => Some(self.fingerprint_of(next.saturating_sub(FINGERPRINT_BYTES), next)?),
        };
        let idle = self.is_idle(epoch, next);
        let share =
            FileEpochEnd { next, watermark, until: self.until, ended, idle, check, start_offset: None, changed: false };
        let before = self.last_share.replace(share);
        let start_offset = before.is_none().then_some(self.started_at);
        Ok(FileEpochEnd { start_offset, changed: before != Some(share), ..share })
    }

    /// `true` if the file is idle at the end of an epoch that took everything before `next`.
    fn is_idle(&mut self, epoch: Epoch, next: u64) -> bool {
        let mut repeated = None;
        while let Some((_, idle)) = self.replayed_idle.pop_front_if(|(of, _)| *of <= epoch) {
            repeated = Some(idle);
        }
        let stays = self.last_share.is_some_and(|said| said.idle && said.next == next);
        let all_bound = self.pending.is_empty() && self.ends.is_empty();
        let becomes = self.until.is_none() && all_bound && self.idle_detector.is_idle();
        repeated.unwrap_or(stays || becomes)
    }
}
