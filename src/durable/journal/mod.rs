//! The journal: the durable log that commits the input of each epoch.
//!
//! * A [`PartitionProgress`] is the progress of one partition in one epoch: offset, watermark and flags after the
//!   epoch's records.
//! * A [`ContentCheck`] in it verifies later that the partition still has the same content.
//! * A [`Frame`] is all the input that one worker committed to one epoch. A worker without input appends nothing,
//!   except for the first epoch of an incarnation, for which every worker appends a frame.
//! * [`JournalEnds`] are the last frames of all workers: kept by sinks, they prove that a journal is complete.
//! * `FileJournal` writes frames to files, `JournalFile` reads those back, `FileId` names them.
//!
//! Invariants: a worker appends the frames of its epochs in order; a worker keeps its capability for an epoch until its
//! frame for that epoch is synced; equal frames give equal output, on any number of workers.

mod ends;
mod format;
mod reader;
mod writer;

pub use ends::{JournalEnds, WorkerEnd};
#[cfg(test)]
pub(in crate::durable) use format::ENVELOPE;
pub(crate) use format::{FileId, JournalEntry};
#[cfg(test)]
pub(in crate::durable) use format::{JournalHeader, PreviousFile};
pub(crate) use reader::JournalFile;
#[cfg(test)]
pub(in crate::durable) use writer::JournalWriter;
pub(crate) use writer::{FileJournal, JournalConfig};

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::Thread;

use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::metrics::SyncMetrics;
use crate::time::{Epoch, EventTime};

/// The progress of a partition in one epoch.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PartitionProgress {
    /// The name under which the flow reads the source.
    pub source: String,
    /// The partition's number in its source.
    pub partition: u32,
    /// The offset at which reading began, if the partition was found in this epoch; of a partition that was found
    /// before, the offset at which it went on in this epoch, because the records before it had expired.
    #[serde(rename = "found_at")]
    pub start_offset: Option<u64>,
    /// The offset of the first record after the epoch.
    #[serde(rename = "next")]
    pub next_offset: u64,
    /// The partition's watermark after the epoch's records.
    pub watermark: EventTime,
    /// `true` if the partition is idle at the end of the epoch.
    pub idle: bool,
    /// The offset at which the job stops reading the partition; `None` if none was fixed.
    #[serde(rename = "until")]
    pub end_offset: Option<u64>,
    /// `true` if the partition has reached that offset.
    pub ended: bool,
    /// A checksum that identifies the partition on recovery; `None` if no record was read, or if the kind of source has
    /// none.
    pub check: Option<ContentCheck>,
    /// The records themselves, if the source may not have them any more on replay; `None` for all other sources. They
    /// are in the journal only, in no manifest.
    #[serde(skip)]
    pub values: Option<Vec<JournaledRecord>>,
    /// The topic that the partition is of, if that does not follow from its number: in the journal where
    /// `start_offset` is, and in every manifest. `None` for all other sources, and in later epochs of the journal.
    #[serde(skip)]
    pub topic: Option<TopicPartition>,
    /// The offsets of the epoch's records that could not be decoded yet, in order: a replay rejects the same ones, whatever
    /// can be decoded by then. They are in the journal only, in no manifest.
    #[serde(skip)]
    pub rejected_for_now: Vec<u64>,
}

/// A partition of a topic, as states know it whose sources read topics by a pattern.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TopicPartition {
    /// The topic's name.
    pub topic: String,
    /// The topic's id; `None` if the brokers assign none.
    pub id: Option<String>,
    /// The partition's number in its topic.
    pub number: u32,
}

/// The topic and the number, such as `orders.eu/3`.
impl fmt::Display for TopicPartition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.topic, self.number)
    }
}

/// A record that the journal keeps by value: a message of a topic, with everything that a decoder can see of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct JournaledRecord {
    /// The record's offset.
    pub offset: u64,
    /// Write time, in milliseconds since the Unix epoch; `None` if unknown.
    #[serde(rename = "stamped")]
    pub timestamp: Option<i64>,
    /// The payload; `None` if the record has none.
    pub payload: Option<Vec<u8>>,
    /// `true` if the broker set the timestamp; `false` if the producer did, or if it is unknown.
    pub is_log_append_time: bool,
    /// The key; `None` if the record has none.
    pub key: Option<Vec<u8>>,
    /// The headers, in their order: names with values, which may be absent.
    pub headers: Vec<(String, Option<Vec<u8>>)>,
}

/// A checksum of content at offset `at`, before a bound's `next_offset`: of bytes of a file, or of a record of a topic.
/// A partition with other content there is not the one that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ContentCheck {
    /// The offset.
    pub at: u64,
    /// The CRC-32 checksum.
    pub sum: u32,
}

/// The input that one worker committed to one epoch.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Frame {
    /// The epoch.
    pub epoch: Epoch,
    /// The progress of the partitions that changed.
    #[serde(rename = "bounds")]
    pub progress: Vec<PartitionProgress>,
}

/// A log of frames, shared by the workers of a process.
pub(crate) trait Journal: Send + Sync {
    /// Queues a frame of `worker`, without waiting for the disk. Every worker must append a frame, even an empty one,
    /// for the first epoch of an incarnation: until all have, recovery ignores the incarnation's own input.
    ///
    /// # Errors
    /// Fails if the journal has failed before, or if the frame cannot be encoded.
    fn append(&self, worker: usize, frame: Frame) -> Result<()>;

    /// The greatest epoch of `worker` whose frame, and all before it, are durable; `None` before the first.
    fn synced(&self, worker: usize) -> Option<Epoch>;

    /// Registers `thread` to be unparked whenever [`Journal::synced`] of `worker` changes, and when the journal fails.
    fn wake(&self, _worker: usize, _thread: Thread) {}

    /// Checks that the journal has not failed.
    ///
    /// # Errors
    /// Fails with the error that the journal failed with.
    fn check(&self) -> Result<()> {
        Ok(())
    }

    /// Allows the journal to drop input of epochs up to `through`, which will not be replayed.
    fn truncate(&self, _through: Epoch) {}

    /// The metrics of the journal's syncs.
    fn syncs(&self) -> Arc<SyncMetrics> {
        Arc::default()
    }

    /// Makes all frames durable and accepts no more.
    ///
    /// # Errors
    /// Fails with the journal's failure, now or before.
    fn close(&self) -> Result<()> {
        self.check()
    }
}

/// A journal in memory: frames count as synced at once, and are lost with the process.
#[derive(Debug, Default)]
pub(crate) struct MemoryJournal {
    inner: Mutex<MemoryFrames>,
    forgetful: bool,
}

#[derive(Debug, Default)]
struct MemoryFrames {
    frames: Vec<Frame>,
    synced: Vec<Option<Epoch>>,
}

impl MemoryJournal {
    /// A journal that only acknowledges frames: for a job without state, where nothing would read them.
    pub(crate) fn discarding() -> Self {
        MemoryJournal { forgetful: true, ..MemoryJournal::default() }
    }

    /// Returns the frames so far, of all workers, in order of epochs; those of one epoch merged, with bounds sorted.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn frames(&self) -> Vec<Frame> {
        let mut by_epoch = std::collections::BTreeMap::<Epoch, Vec<PartitionProgress>>::new();
        for frame in &self.inner.lock().unwrap_or_else(PoisonError::into_inner).frames {
            by_epoch.entry(frame.epoch).or_default().extend(frame.progress.iter().cloned());
        }
        let merged = by_epoch.into_iter().map(|(epoch, mut progress)| {
            progress.sort();
            Frame { epoch, progress }
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
        let bound = PartitionProgress {
            source: "s".into(),
            partition,
            start_offset: None,
            next_offset: 7,
            watermark: EventTime::MIN,
            idle: false,
            end_offset: None,
            ended: false,
            check: None,
            values: None,
            topic: None,
            rejected_for_now: Vec::new(),
        };
        Frame { epoch: Epoch(epoch), progress: vec![bound] }
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
            journal.frames().iter().map(|f| (f.epoch.0, f.progress.iter().map(|b| b.partition).collect())).collect();
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
