//! The status of a job: the progress of its partitions, workers, processes and sinks, and the time since their last
//! step.
//!
//! * `StatusBoard`: the workers and sinks of one process write their status here; readers never block them for long.
//! * [`ProcessStatus`]: the status of one process. It is sent to process 0 with the heartbeats; a [`JobStatus`] holds
//!   all of them.
//! * [`why`]: computes what holds back a window, or the job, as a pure function of a [`JobStatus`].
//!
//! Wall-clock times are given as durations up to the moment at which a status was taken, so clocks of several machines
//! are never compared.

mod blocker;
mod board;
mod first;
mod in_words;
mod left_out;
mod why;
mod windows;

use serde::{Deserialize, Serialize};

pub use blocker::{Blocker, BlockerKind, Why};
pub(crate) use board::{StatusBoard, WorkerReport};
pub(crate) use left_out::left_out_of_job;
pub use left_out::{LeftOut, LeftOutKind, LeftOutRecord};
pub use why::{why, window_end};
pub(crate) use windows::windows_of_job;
pub use windows::{ClosedWindow, OpenWindow, StepWindows};

use crate::time::{Epoch, EventTime};

/// The status of a job.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct JobStatus {
    /// The name of the job.
    pub job: String,
    /// Its processes, ordered by number; only those known to the process that answers.
    pub processes: Vec<ProcessStatus>,
    /// The streams of its sources, in the flow's order.
    pub streams: Vec<StreamStatus>,
    /// Its window steps, in the flow's order.
    pub steps: Vec<StepStatus>,
    /// Milliseconds without records, at its end, after which a partition is idle and holds back no watermark.
    pub idle_timeout_ms: u64,
    /// The open windows of its steps, of all processes that are known.
    #[serde(default)]
    pub windows: Vec<StepWindows>,
    /// The records that its sources have rejected, and those that were late for its steps, of all processes that are known.
    #[serde(default)]
    pub left_out: Vec<LeftOut>,
}

/// The status of one process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ProcessStatus {
    /// Its number, from 0.
    pub process: usize,
    /// Milliseconds since anything was received from it.
    pub silent_ms: u64,
    /// Its connections to the other processes, for the dataflow.
    pub connections: Vec<ConnectionStatus>,
    /// Its workers.
    pub workers: Vec<WorkerStatus>,
    /// The sinks that it writes to.
    pub sinks: Vec<SinkStatus>,
    /// The snapshots that it takes; `None` in processes other than process 0, and in jobs without state.
    pub snapshot: Option<SnapshotStatus>,
    /// Milliseconds since its sinks last published rows, or since it started.
    pub shown_ms: u64,
    /// The open windows of its workers.
    #[serde(default)]
    pub windows: Vec<StepWindows>,
    /// The records that its workers have left out.
    #[serde(default)]
    pub left_out: Vec<LeftOut>,
}

/// Silence of a process's connection to another one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ConnectionStatus {
    /// The other process.
    pub process: usize,
    /// Milliseconds since anything was received from it; each process sends a heartbeat twice a second.
    pub silent_ms: u64,
}

/// The status of one worker.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct WorkerStatus {
    /// Its number, from 0, among all workers of the job.
    pub worker: usize,
    /// Milliseconds since the last iteration of its loop.
    pub turned_ms: u64,
    /// The named step that it is executing, if any.
    pub step: Option<String>,
    /// `true` while it replays the journal.
    pub repeats: bool,
    /// The last epoch that all sinks have published.
    pub shown: Option<Epoch>,
    /// The oldest epoch that not all sinks have published.
    pub front: Option<FrontStatus>,
    /// Bytes of records that it has read and that are not published yet.
    pub in_flight_bytes: u64,
    /// Number of epochs with records that it has started and that are not published yet.
    pub in_flight_epochs: u64,
    /// `true` while it reads nothing because too much is in flight.
    pub waits_for_sinks: bool,
    /// `true` while it reads only the sources that are read first.
    pub reads_first: bool,
    /// The partitions that it reads.
    pub partitions: Vec<PartitionStatus>,
}

/// The progress of a worker's oldest epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct FrontStatus {
    /// The epoch.
    pub epoch: Epoch,
    /// The stage that it has reached on this worker.
    pub stage: Stage,
    /// Milliseconds since it reached the stage.
    pub since_ms: u64,
}

/// The stages of an epoch on a worker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Stage {
    /// Records are being added to it.
    #[default]
    Reading,
    /// It has ended, and its input is not committed yet.
    Binding,
    /// Its input is committed and not on disk yet.
    Syncing,
    /// The worker has released it: it flows through the steps, on any worker, and to the sinks.
    Flowing,
}

/// The status of a partition.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct PartitionStatus {
    /// The name under which the flow reads the source.
    pub source: String,
    /// The number of the partition.
    pub partition: u32,
    /// Its topic and its number in that, such as `orders.eu/3`, if the number does not tell: of a source that reads topics
    /// by a pattern.
    pub topic: Option<String>,
    /// Its watermark; `EventTime::MIN` before its first record.
    #[serde(with = "in_words")]
    pub watermark: EventTime,
    /// The offset of the next record to read.
    pub next: u64,
    /// The offset after the last record of the partition, if the source knows it.
    pub end: Option<u64>,
    /// `true` if offsets are positions in bytes, as in a file, rather than numbers of records.
    pub in_bytes: bool,
    /// `true` if it is idle, and so holds back no watermark.
    pub idle: bool,
    /// `true` if it has ended, and so holds back no watermark.
    pub ended: bool,
    /// `true` while it is paused by watermark alignment, as it is too far ahead of the others.
    pub rests: bool,
    /// What was read, and what there is to read, before the sources that wait for this one are read; `None` if none
    /// does.
    pub initial: Option<(u64, u64)>,
    /// Offsets that were skipped in this incarnation because their records had expired before they were read.
    #[serde(default)]
    pub expired: u64,
    /// Milliseconds since its last record was read, or since it was found.
    pub moved_ms: u64,
    /// A note of its source, such as that its broker does not answer.
    pub note: Option<String>,
}

impl PartitionStatus {
    /// `true` if the stream's watermark waits for it.
    pub fn holds(&self) -> bool {
        !self.idle && !self.ended
    }

    /// Returns the number of records, or bytes, that have not been read yet; `None` if the source does not know it.
    pub fn lag(&self) -> Option<u64> {
        self.end.map(|end| end.saturating_sub(self.next))
    }
}

/// The status of a sink.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct SinkStatus {
    /// The name under which the flow writes it.
    pub name: String,
    /// The oldest epoch that was given to it and is not published.
    pub waiting: Option<Epoch>,
    /// Milliseconds since that became the oldest.
    pub since_ms: u64,
}

/// The status of snapshots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct SnapshotStatus {
    /// The epoch of the last snapshot announced in this incarnation; 0 before the first.
    pub announced: Epoch,
    /// Milliseconds since it was announced.
    pub announced_ms: u64,
    /// The epoch of the last snapshot of this incarnation that is on disk; 0 before the first.
    pub committed: Epoch,
}

/// The status of a source's stream.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct StreamStatus {
    /// The name under which the flow reads the source.
    pub source: String,
    /// The stream's watermark.
    #[serde(with = "in_words")]
    pub watermark: EventTime,
    /// Milliseconds without records, at its end, after which a partition of it is idle; 0 if not known.
    #[serde(default)]
    pub idle_after_ms: u64,
}

/// The status of a window step.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct StepStatus {
    /// Its name.
    pub name: String,
    /// The watermark that it has reached.
    #[serde(with = "in_words")]
    pub watermark: EventTime,
    /// Allowed lateness: milliseconds of event time for which a window is kept open after its end.
    pub lateness_ms: u64,
    /// Number of records that were late only because their partition, or its stream, had been idle; as far as process 0
    /// has read them.
    #[serde(default)]
    pub late_after_idle: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_read_back_from_its_json() {
        let window = |start, end| OpenWindow { start, end, rows: 3, ..OpenWindow::default() };
        let at = EventTime::from_millis;
        let open = vec![window(at(5), at(1_000)), window(EventTime::MIN, EventTime::MAX)];
        let status = JobStatus {
            job: "totals".into(),
            streams: vec![StreamStatus { watermark: EventTime::MIN, ..StreamStatus::default() }],
            steps: vec![StepStatus { watermark: EventTime::MAX, ..StepStatus::default() }],
            windows: vec![StepWindows { open, next_at: Some(at(7)), ..StepWindows::default() }],
            processes: vec![ProcessStatus { left_out: vec![LeftOut::default()], ..ProcessStatus::default() }],
            ..JobStatus::default()
        };
        let text = serde_json::to_string(&status).unwrap();
        assert!(text.contains("before all events") && text.contains("1970-01-01T00:00:01"), "{text}");
        assert_eq!(serde_json::from_str::<JobStatus>(&text).unwrap(), status);
    }
}
