//! What a job is at: where its partitions, workers, processes and sinks are, and since when.
//!
//! * [`Board`]: where workers and sinks of one process write what they are at; they never wait for who reads it.
//! * [`ProcessStatus`]: what one process is at. It goes to process 0 with the signs of life; [`JobStatus`] is all of them.
//! * [`why`]: what holds a window back, or the job: a pure function of a [`JobStatus`].
//!
//! Times of the machine's clock are lengths of time up to the moment at which a status was taken, so clocks of several
//! machines are never compared.

mod board;
mod why;

use serde::{Deserialize, Serialize, Serializer};

pub(crate) use board::{Board, WorkerNow};
pub use why::{Cause, Hold, Why, why, window_end};

use crate::time::{Epoch, EventTime};

/// What a job is at.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobStatus {
    /// Its name.
    pub job: String,
    /// Its processes, by number, as far as anything is known of them.
    pub processes: Vec<ProcessStatus>,
    /// Its sources, in the flow's order.
    pub streams: Vec<StreamStatus>,
    /// Its window steps, in the flow's order.
    pub steps: Vec<StepStatus>,
    /// After how many milliseconds without records, at its end, a partition holds nothing any more.
    pub idle_timeout_ms: u64,
}

/// What one process is at.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessStatus {
    /// Which one, from 0.
    pub process: usize,
    /// Milliseconds since it was heard of.
    pub silent_ms: u64,
    /// Its connections to the other processes, for the dataflow.
    pub connections: Vec<ConnectionStatus>,
    /// Its workers.
    pub workers: Vec<WorkerStatus>,
    /// The sinks that it writes.
    pub sinks: Vec<SinkStatus>,
    /// The snapshots that it makes; nothing in other processes than the first, and in jobs without state.
    pub snapshot: Option<SnapshotStatus>,
    /// Milliseconds since a sink of it last showed rows, or since it began.
    pub shown_ms: u64,
}

/// What a process hears on its connection to another one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionStatus {
    /// The other process.
    pub process: usize,
    /// Milliseconds since anything came from there; each process gives a sign twice a second.
    pub silent_ms: u64,
}

/// What one worker is at.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerStatus {
    /// Which one, from 0, of all workers of the job.
    pub worker: usize,
    /// Milliseconds since the last turn of its loop.
    pub turned_ms: u64,
    /// The named step that it is in, if it is in one.
    pub step: Option<String>,
    /// Whether it repeats what the journal has.
    pub repeats: bool,
    /// The last epoch that all sinks have shown.
    pub shown: Option<Epoch>,
    /// The oldest epoch that not all sinks have shown.
    pub front: Option<FrontStatus>,
    /// How many bytes of records it has read that are not yet shown.
    pub in_flight_bytes: u64,
    /// How many epochs it has begun that are not yet shown.
    pub in_flight_epochs: u64,
    /// Whether it reads nothing because too much is in flight.
    pub waits_for_sinks: bool,
    /// The partitions that it reads.
    pub partitions: Vec<PartitionStatus>,
}

/// Where the oldest epoch of a worker is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FrontStatus {
    /// The epoch.
    pub epoch: Epoch,
    /// How far it is on this worker.
    pub stage: Stage,
    /// Milliseconds since it has been there.
    pub since_ms: u64,
}

/// The stages of an epoch on a worker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// Records are added to it.
    #[default]
    Reading,
    /// It is over, and what it took is not known yet.
    Binding,
    /// What it took is not on disk yet.
    Syncing,
    /// This worker has let go of it: it is on its way through the steps, here or elsewhere, and to the sinks.
    Flowing,
}

/// What a partition is at.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionStatus {
    /// The name under which the flow reads the source.
    pub source: String,
    /// The partition.
    pub partition: u32,
    /// Its watermark; `EventTime::MIN` before its first record.
    #[serde(serialize_with = "in_words")]
    pub watermark: EventTime,
    /// The offset of the next record to take.
    pub next: u64,
    /// The offset of the next record to come, where the source knows it.
    pub end: Option<u64>,
    /// `true` if offsets are positions in bytes, as in a file, rather than numbers of records.
    pub in_bytes: bool,
    /// Whether it is idle, and so holds nothing.
    pub idle: bool,
    /// Whether it has ended, and so holds nothing.
    pub ended: bool,
    /// Whether it rests, as it is too far ahead of the others.
    pub rests: bool,
    /// Milliseconds since its last record was taken, or since it was found.
    pub moved_ms: u64,
    /// What its source says of it, such as that its broker does not answer.
    pub note: Option<String>,
}

impl PartitionStatus {
    /// Whether the stream's watermark waits for it.
    pub fn holds(&self) -> bool {
        !self.idle && !self.ended
    }

    /// The number of records, or bytes, that were not taken yet, where the source knows it.
    pub fn lag(&self) -> Option<u64> {
        self.end.map(|end| end.saturating_sub(self.next))
    }
}

/// What a sink is at.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SinkStatus {
    /// The name under which the flow writes it.
    pub name: String,
    /// The oldest epoch that was given to it and is not shown.
    pub waiting: Option<Epoch>,
    /// Milliseconds since that has been the oldest.
    pub since_ms: u64,
}

/// What snapshots are at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotStatus {
    /// The last one that was announced in this life; 0 before the first.
    pub announced: Epoch,
    /// Milliseconds since it was announced.
    pub announced_ms: u64,
    /// The last one of this life that is on disk; 0 before the first.
    pub committed: Epoch,
}

/// What a source's stream is at.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamStatus {
    /// The name under which the flow reads the source.
    pub source: String,
    /// The stream's watermark.
    #[serde(serialize_with = "in_words")]
    pub watermark: EventTime,
    /// Milliseconds without records, at its end, after which a partition of it is idle; 0 where that is not known.
    #[serde(default)]
    pub idle_after_ms: u64,
}

/// What a window step is at.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepStatus {
    /// Its name.
    pub name: String,
    /// The watermark that it has come to.
    #[serde(serialize_with = "in_words")]
    pub watermark: EventTime,
    /// How long after its end a window is kept open.
    pub lateness_ms: u64,
    /// Records that were late only because their partition, or its stream, had been idle; as far as process 0 has read them.
    #[serde(default)]
    pub late_after_idle: u64,
}

/// A watermark as people read it, where people read.
fn in_words<S: Serializer>(time: &EventTime, serializer: S) -> Result<S::Ok, S::Error> {
    if serializer.is_human_readable() { serializer.collect_str(time) } else { time.serialize(serializer) }
}
