//! What is dealt of a file, what is summed up, and what is committed.
//!
//! Invariants: chunks are dealt in order of position, and epochs of successive chunks never go back; an epoch that the
//! owner has closed gets no more chunks; the carry of a chunk is set once, when all chunks before it have been summed
//! up; an epoch is committed when all its chunks have been summed up.
//!
//! A followed file is **idle** when it is at its end for the idle timeout and everything in it is committed; it stays idle
//! until it grows. In replayed epochs it is idle where the journal says so.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use super::chunk::{ChunkStart, ChunkSummary};
use super::chunk_splitter::ChunkSplitter;
use super::file_progress::FileEpochEnd;
use super::idle_detector::IdleDetector;
use super::input_file::InputFile;
use super::limits::FileLimits;
use crate::durable::journal::PartitionProgress;
use crate::error::{Error, ErrorKind, Result};
use crate::time::{Epoch, EventTime};

/// Number of bytes before a position that a file's fingerprint covers.
const FINGERPRINT_BYTES: u64 = 4 << 10;

/// A dealt chunk that is not summed up yet, or that follows one that is not.
#[derive(Debug)]
pub(super) struct PendingChunk {
    pub(super) epoch: Epoch,
    pub(super) end: u64,
    pub(super) summary: Option<ChunkSummary>,
    pub(super) carry: Arc<OnceLock<ChunkStart>>,
}

/// State of reading a file.
#[derive(Debug)]
pub(super) struct ChunkAssigner {
    pub(super) file: InputFile,
    pub(super) splitter: ChunkSplitter,
    /// End of a run that stops at the end, unless the journal has one.
    pub(super) end_at_start: Option<u64>,
    /// Length of the file when it was opened.
    pub(super) opened_length: u64,
    pub(super) until: Option<u64>,
    /// Position where the next chunk begins.
    pub(super) position: u64,
    /// Number of bytes at the file's beginning that hold no records; `None` while it is unknown.
    pub(super) head: Option<u64>,
    /// File length at which the rest of the file held no complete record.
    pub(super) partial_at: Option<u64>,
    /// Least epoch that a new chunk may have.
    pub(super) least_epoch: Epoch,
    /// Epoch of the snapshot, or the last epoch that was replayed from the journal.
    pub(super) replayed_through: Option<Epoch>,
    pub(super) idle_detector: IdleDetector,
    /// Idle flags of epochs that are being replayed.
    replayed_idle: VecDeque<(Epoch, bool)>,
    /// Watermarks that the journal has for positions, to be compared.
    expected: VecDeque<(u64, EventTime)>,
    pub(super) dealt: u64,
    pub(super) pending: VecDeque<PendingChunk>,
    /// Watermark and line number after the chunks that are summed up.
    pub(super) carry: ChunkStart,
    /// Ends of epochs whose chunks are summed up but not committed: position and watermark.
    ends: VecDeque<(Epoch, u64, EventTime)>,
    /// Position where reading began: 0, or that of the snapshot.
    pub(super) started_at: u64,
    /// Position and watermark after the chunks that are committed.
    bound: (u64, EventTime),
    /// Share that was returned when the last epoch was committed.
    pub(super) last_share: Option<FileEpochEnd>,
    pub(super) failure: Option<Error>,
}

impl ChunkAssigner {
    pub(super) fn open(path: &Path, until_end: bool, limits: FileLimits) -> Result<Self> {
        let file = InputFile::open(path, limits)?;
        Ok(ChunkAssigner {
            end_at_start: until_end.then_some(file.length),
            opened_length: file.length,
            file,
            splitter: ChunkSplitter::default(),
            until: None,
            position: 0,
            head: None,
            partial_at: None,
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
        })
    }

    pub(super) fn check_failure(&self) -> Result<()> {
        self.failure.clone().map_or(Ok(()), Err)
    }

    /// Ends replay: what is read from now on is new. Fixes the end at which the job stops, if the journal has none.
    pub(super) fn go_live(&mut self) -> Result<()> {
        if self.until.is_none() {
            self.until = self.end_at_start;
        }
        self.check_failure()
    }

    /// Restores the position of a snapshot.
    pub(super) fn resume(&mut self, bound: &PartitionProgress) -> Result<()> {
        self.file.verify_identity(bound, self.position)?;
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
    pub(super) fn replay(&mut self, epoch: Epoch, bound: &PartitionProgress) -> Result<()> {
        self.file.verify_identity(bound, self.position)?;
        self.until = bound.end_offset;
        self.expected.push_back((bound.next_offset, bound.watermark));
        self.replayed_idle.push_back((epoch, bound.idle));
        self.replayed_through = Some(epoch);
        self.advance();
        Ok(())
    }

    /// Moves the carry over the leading chunks that are summed up.
    pub(super) fn advance(&mut self) {
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
    pub(super) fn compare(&mut self, position: u64) {
        while let Some((_, watermark)) = self.expected.pop_front_if(|(next, _)| *next <= position) {
            if watermark != self.carry.watermark && self.failure.is_none() {
                let place = format!("{}, before offset {position}", self.file.path.display());
                let error =
                    Error::of(ErrorKind::SourceChanged, "the file is not what the journal was written from").at(place);
                let why = format!("its watermark there is {}, the journal's {watermark}", self.carry.watermark);
                self.failure = Some(error.because(why).help("restore the file, or start without the old state"));
            }
        }
    }

    pub(super) fn close_epoch(&mut self, epoch: Epoch) -> Result<FileEpochEnd> {
        while let Some((_, end, watermark)) = self.ends.pop_front_if(|(of, _, _)| *of <= epoch) {
            self.bound = (end, watermark);
        }
        let (next, watermark) = self.bound;
        let ended = self.until.is_some_and(|until| next >= until);
        let check = match self.last_share {
            Some(said) if said.next == next => said.check,
            _ if next == 0 => None,
            _ => Some(self.file.fingerprint_of(next.saturating_sub(FINGERPRINT_BYTES), next)?),
        };
        let idle = self.is_idle(epoch, next);
        let share =
            FileEpochEnd { next, watermark, until: self.until, ended, idle, check, start_offset: None, changed: false };
        let before = self.last_share.replace(share);
        let start_offset = before.is_none().then_some(self.started_at);
        Ok(FileEpochEnd { start_offset, changed: before != Some(share), ..share })
    }

    /// `true` if the file is idle at the end of an epoch that took everything before `next`.
    pub(super) fn is_idle(&mut self, epoch: Epoch, next: u64) -> bool {
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
