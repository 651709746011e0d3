//! A run's file, shared by the workers: all that they ask of it, under one lock.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use super::chunk::{Chunk, ChunkSummary, NextChunk};
use super::chunk_assigner::{ChunkAssigner, PendingChunk};
use super::chunk_splitter::ChunkBytes;
use super::file_progress::{FileEpochEnd, FileProgress};
use super::input_file::InputFile;
use super::limits::FileLimits;
use crate::durable::journal::PartitionProgress;
use crate::error::Result;
use crate::record::Record;
use crate::source::file::foreign_kinds;
use crate::source::file::format::RecordFormat;
use crate::time::Epoch;

/// State of a run's file that the workers share.
#[derive(Debug)]
pub(crate) struct SharedFile<F: RecordFormat> {
    format: F,
    state: Mutex<ChunkAssigner>,
    layout: OnceLock<F::Layout>,
    /// Number of lines that end before the position where reading began; counted when first asked for.
    lines_before: OnceLock<u64>,
    /// Held by the worker that counts them: the others do not count the same lines.
    counting: Mutex<()>,
    abandoned: AtomicBool,
}

impl<F: RecordFormat> SharedFile<F> {
    /// Opens the file for a run, and reads its header if it is there.
    ///
    /// # Errors
    /// Fails if the file cannot be read, or cannot give records of type `T`.
    pub(crate) fn open<T: Record>(format: F, path: &Path, until_end: bool, sizes: FileLimits) -> Result<Self> {
        let shared = SharedFile {
            format,
            state: Mutex::new(ChunkAssigner::open(path, until_end, sizes)?),
            layout: OnceLock::new(),
            lines_before: OnceLock::new(),
            counting: Mutex::new(()),
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

    /// Returns the file's format.
    pub(crate) fn format(&self) -> &F {
        &self.format
    }

    /// Returns the file's layout; never `None` once a chunk has been dealt.
    pub(crate) fn layout(&self) -> Option<&F::Layout> {
        self.layout.get()
    }

    /// Reads the file's header, unless that is done or the header is incomplete.
    fn lay_out<T: Record>(&self, state: &mut ChunkAssigner) -> Result<()> {
        if state.head.is_some() || state.file.length == 0 || state.partial_at == Some(state.file.length) {
            return Ok(());
        }
        let (end, mut size) = (state.until.or(state.end_at_start), state.file.limits.block);
        loop {
            let limit = end.unwrap_or(state.file.length);
            let bytes = state.file.read(0, size.min(limit as usize))?;
            let all = bytes.len() as u64 == limit;
            foreign_kinds::check(&bytes).map_err(|error| error.at(state.file.path.display()))?;
            if let Some((layout, head)) = self
                .format
                .read_layout::<T>(&bytes, all && end.is_some())
                .map_err(|error| error.at(state.file.path.display()))?
            {
                state.head = Some(head as u64);
                // Set once: the header is read under the lock, and only while it is unknown.
                let _ = self.layout.set(layout);
                return Ok(());
            }
            if all {
                state.partial_at = Some(state.file.length);
                return Ok(());
            }
            size = state.file.grow(0, size)?;
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
            state.file.poll_length(false, state.position, state.partial_at)?;
        }
        let limit = state.until.unwrap_or(state.file.length);
        let dealt = self.deal_until::<T>(state, epoch, limit, state.until.is_some())?;
        match dealt {
            NextChunk::Nothing => state.idle_detector.at_end(state.file.polled_at, state.file.length),
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
        let Some(ChunkBytes { bytes, skip, too_long }) =
            state.splitter.next(&self.format, &mut state.file, state.position, head, limit, last)?
        else {
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
        let (end, ended) = (state.until.unwrap_or(state.file.length), state.last_share.is_some_and(|said| said.ended));
        let partial = (state.partial_at == Some(end)).then_some(state.position);
        let idle = state.last_share.is_some_and(|said| said.idle);
        FileProgress { next: state.position, end, watermark: state.carry.watermark, ended, idle, partial }
    }

    /// Counts the lines that end in `length` bytes from position `from` on: those of a record that is too long.
    ///
    /// # Errors
    /// Fails if the file cannot be read.
    pub(crate) fn lines_within(&self, from: u64, length: u64) -> Result<u64> {
        let counter = self.lock().file.line_counter();
        counter.count(from, length)
    }

    /// `true` if reading began at the file's beginning.
    pub(crate) fn begins_at_beginning(&self) -> bool {
        self.lock().started_at == 0
    }

    /// Returns the position up to which chunks were dealt, the file's length when it was opened, and `true` if no whole
    /// record before that is left to deal.
    pub(crate) fn initial_progress(&self) -> (u64, u64, bool) {
        let state = self.lock();
        let end = state.until.map_or(state.opened_length, |until| until.min(state.opened_length));
        let is_dealt = state.position >= end || state.partial_at >= Some(end);
        (state.position.min(end), end, is_dealt)
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
        if state.file.limits.slow.is_some() {
            return state.check_failure();
        }
        state.advance();
        state.check_failure()
    }

    /// Processes the recorded summaries at random times.
    #[cfg(test)]
    pub(crate) fn advance_at_random(&self) {
        let state = &mut *self.lock();
        if let Some(seed) = state.file.limits.slow.as_mut() {
            let mut rng = fastrand::Rng::with_seed(*seed);
            *seed = rng.u64(..);
            if rng.u8(0..3) == 0 {
                state.advance();
            }
        }
    }

    /// Takes back the buffer of a chunk.
    pub(crate) fn reuse(&self, bytes: Vec<u8>) {
        self.lock().file.keep(bytes);
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

    /// Returns the number of lines that end before the position where reading began. They are counted once; other workers
    /// read on meanwhile, unless they need the number, too.
    ///
    /// # Errors
    /// Fails if the file cannot be read.
    pub(crate) fn lines_before(&self) -> Result<u64> {
        if let Some(lines) = self.lines_before.get() {
            return Ok(*lines);
        }
        let _counting = self.counting.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lines) = self.lines_before.get() {
            return Ok(*lines);
        }
        let (counter, began_at) = {
            let state = self.lock();
            (state.file.line_counter(), state.started_at)
        };
        let lines = counter.count(0, began_at)?;
        Ok(*self.lines_before.get_or_init(|| lines))
    }
}

/// Describes what a file has beyond the end of a state; `None` if it has not grown.
///
/// # Errors
/// Fails if the file does not exist, or is not the one that the state was written from.
pub(crate) fn grown_since(path: &Path, sizes: FileLimits, bounds: &[PartitionProgress]) -> Result<Option<String>> {
    let mut file = InputFile::open(path, sizes)?;
    let Some(bound) = bounds.first() else { return Ok((file.length > 0).then(|| String::from("it was never read"))) };
    file.verify_identity(bound, 0)?;
    let end = bound.end_offset.unwrap_or(bound.next_offset);
    Ok((file.length > end).then(|| format!("it has {} bytes more, from offset {end} on", file.length - end)))
}
