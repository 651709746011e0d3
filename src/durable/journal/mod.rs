//! The journal: the log that binds each epoch to its inputs.
//!
//! * A [`Bound`] says what one epoch took from one partition: up to which offset, and with which watermark and flags.
//! * A [`Check`] in it tells later whether the partition is still the one that it was.
//! * A [`Frame`] is all that one worker bound to one epoch. Workers with nothing to bind append nothing, but for the
//!   first epoch of a life, to which every worker appends a frame.
//! * [`JournalEnds`] are the last frames of all workers: kept by sinks, they prove that a journal is whole.
//! * [`FileJournal`] keeps frames in files, [`JournalFile`] reads those back, [`FileId`] names them.
//!
//! Invariants: a worker appends the frames of its epochs in order; a worker's capability for an epoch outlives the sync
//! of its frame for that epoch; equal frames give equal output, on any number of workers.

mod ends;
mod format;
mod reader;
mod writer;

pub use ends::{JournalEnds, WorkerEnd};
#[cfg(test)]
pub(in crate::durable) use format::KIND;
pub use format::{Before, Entry, FileId, Header};
pub use reader::JournalFile;
#[cfg(test)]
pub(in crate::durable) use writer::Writer;
pub use writer::{FileJournal, Place};

use std::sync::{Arc, Mutex, PoisonError};
use std::thread::Thread;

use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::metrics::SyncMetrics;
use crate::time::{Epoch, EventTime};

/// What an epoch took from a partition.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Bound {
    /// The name under which the flow reads the source.
    pub source: String,
    /// The partition.
    pub partition: u32,
    /// Where reading began, if the partition was found in this epoch.
    pub found_at: Option<u64>,
    /// The offset of the first record that the epoch did not take.
    pub next: u64,
    /// The partition's watermark after the epoch's records.
    pub watermark: EventTime,
    /// Whether the partition is idle at the end of the epoch.
    pub idle: bool,
    /// The offset at which the partition ends for this job, where that was fixed.
    pub until: Option<u64>,
    /// Whether it has reached that offset.
    pub ended: bool,
    /// What the partition is known again by; `None` if nothing was taken of it, or its kind of source has no such thing.
    pub check: Option<Check>,
    /// The records themselves, of a source that may not have them any more when the epoch is replayed; `None` of all others.
    /// They are in the journal alone, in no manifest.
    #[serde(skip)]
    pub values: Option<Vec<Value>>,
}

/// A record that is kept by value.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Value {
    /// Its offset.
    pub offset: u64,
    /// Write time, in milliseconds since the Unix epoch; `None` if unknown.
    pub stamped: Option<i64>,
    /// Its bytes; `None` if it has none.
    pub payload: Option<Vec<u8>>,
}

/// A checksum of something that a partition has before a bound's `next`, from `at` on: of bytes of a file, of a record of
/// a topic. A partition that has something else there is not the one that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Check {
    /// The offset.
    pub at: u64,
    /// The checksum: CRC-32.
    pub sum: u32,
}

/// What one worker bound to one epoch.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Frame {
    /// The epoch.
    pub epoch: Epoch,
    /// What it took, from the partitions in which something changed.
    pub bounds: Vec<Bound>,
}

/// Where frames go. Shared by the workers of a process.
pub trait Journal: Send + Sync {
    /// Takes a frame of `worker`, without waiting for the disk. The first epoch of a life is bound by all its workers,
    /// even to nothing: what the life binds counts only then.
    ///
    /// # Errors
    /// When the journal can take no more.
    fn append(&self, worker: usize, frame: Frame) -> Result<()>;

    /// The greatest epoch of `worker` whose frame, and all before it, are on record for good; `None` before the first.
    fn synced(&self, worker: usize) -> Option<Epoch>;

    /// Has `thread` woken, by unparking it, whenever [`Journal::synced`] of `worker` has changed, and when the journal
    /// has failed.
    fn wake(&self, _worker: usize, _thread: Thread) {}

    /// Whether it still takes frames.
    ///
    /// # Errors
    /// What it failed with.
    fn check(&self) -> Result<()> {
        Ok(())
    }

    /// Says that no epoch up to `through` will be replayed, so that what binds only those can go.
    fn cut(&self, _through: Epoch) {}

    /// Where it counts what its syncs cost.
    fn syncs(&self) -> Arc<SyncMetrics> {
        Arc::default()
    }

    /// Puts all frames on record for good and takes no more.
    ///
    /// # Errors
    /// Fails with what the journal failed with, now or before.
    fn close(&self) -> Result<()> {
        self.check()
    }
}

/// A journal that holds what it is told in memory: at once "synced", and gone with the process.
#[derive(Debug, Default)]
pub struct MemoryJournal {
    inner: Mutex<Inner>,
    forgetful: bool,
}

#[derive(Debug, Default)]
struct Inner {
    frames: Vec<Frame>,
    synced: Vec<Option<Epoch>>,
}

impl MemoryJournal {
    /// A journal that only acknowledges: for a job without state, where nothing would read the frames.
    pub fn forgetful() -> Self {
        MemoryJournal { forgetful: true, ..MemoryJournal::default() }
    }

    /// The frames so far, of all workers, by epoch; those of one epoch as one frame, bounds sorted.
    pub fn frames(&self) -> Vec<Frame> {
        let mut by_epoch = std::collections::BTreeMap::<Epoch, Vec<Bound>>::new();
        for frame in &self.inner.lock().unwrap_or_else(PoisonError::into_inner).frames {
            by_epoch.entry(frame.epoch).or_default().extend(frame.bounds.iter().cloned());
        }
        let merged = by_epoch.into_iter().map(|(epoch, mut bounds)| {
            bounds.sort();
            Frame { epoch, bounds }
        });
        merged.collect()
    }
}

impl Journal for MemoryJournal {
    fn append(&self, worker: usize, frame: Frame) -> Result<()> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if inner.synced.len() <= worker {
            inner.synced.resize(worker + 1, None);
        }
        assert!(inner.synced[worker] < Some(frame.epoch), "a worker binds its epochs in order, each once");
        inner.synced[worker] = Some(frame.epoch);
        if !self.forgetful {
            inner.frames.push(frame);
        }
        Ok(())
    }

    fn synced(&self, worker: usize) -> Option<Epoch> {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.synced.get(worker).copied().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(epoch: u64, partition: u32) -> Frame {
        let bound = Bound {
            source: "s".into(),
            partition,
            found_at: None,
            next: 7,
            watermark: EventTime::MIN,
            idle: false,
            until: None,
            ended: false,
            check: None,
            values: None,
        };
        Frame { epoch: Epoch(epoch), bounds: vec![bound] }
    }

    #[test]
    fn frames_of_an_epoch_are_read_back_as_one() {
        let journal = MemoryJournal::default();
        assert_eq!(journal.synced(1), None);
        journal.append(1, frame(2, 1)).unwrap();
        journal.append(0, frame(2, 0)).unwrap();
        journal.append(0, frame(4, 0)).unwrap();
        assert_eq!((journal.synced(0), journal.synced(1)), (Some(Epoch(4)), Some(Epoch(2))));
        let read: Vec<_> =
            journal.frames().iter().map(|f| (f.epoch.0, f.bounds.iter().map(|b| b.partition).collect())).collect();
        assert_eq!(read, [(2, vec![0, 1]), (4, vec![0])]);
    }

    #[test]
    #[should_panic(expected = "in order")]
    fn an_epoch_is_bound_once() {
        let journal = MemoryJournal::default();
        journal.append(0, frame(4, 0)).unwrap();
        journal.append(0, frame(4, 0)).unwrap();
    }
}
