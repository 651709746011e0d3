//! Tests of a state's files, on a disk that can lose power.

mod decide;
mod journal;
mod savepoint;
mod simulation;
mod state;

use std::path::PathBuf;
use std::sync::Arc;

use super::journal::{FileId, Frame, JournalConfig, JournalFile, PartitionProgress, WorkerEnd};
use super::manifest::{Manifest, QueryFingerprint, SinkState, SourceState, StepFingerprint};
use super::memory_disk::MemoryDisk;
use super::recovery::{Claim, RecoveryDecision, RecoveryInput, ReportedSink, StateScan, claimed, decide};
use super::state::StateDir;
use super::{FencingCheck, PublishedEpoch, StateId};
use crate::error::Result;
use crate::time::{Epoch, EventTime};

/// The progress of a partition that was read up to `next`.
fn bound(partition: u32, next_offset: u64) -> PartitionProgress {
    PartitionProgress {
        source: "s".into(),
        partition,
        start_offset: None,
        next_offset,
        watermark: EventTime::from_millis(next_offset as i64),
        idle: false,
        end_offset: None,
        ended: false,
        check: None,
        values: None,
    }
}

fn frame(epoch: u64, bounds: &[(u32, u64)]) -> Frame {
    Frame { epoch: Epoch(epoch), progress: bounds.iter().map(|(partition, next)| bound(*partition, *next)).collect() }
}

fn print() -> QueryFingerprint {
    let step =
        StepFingerprint { kind: "aggregate".into(), name: "t".into(), detail: "tumbling 10s".into(), fingerprint: 7 };
    let source = StepFingerprint { kind: "source".into(), name: "s".into(), detail: "topic s".into(), fingerprint: 0 };
    let flags = vec![("--epoch".into(), "100ms".into())];
    QueryFingerprint { build: "b1".into(), flags, steps: vec![step, source] }
}

fn manifest(state: StateId, incarnation: u64, epoch: u64) -> Manifest {
    Manifest {
        state,
        job: "j".into(),
        incarnation,
        epoch: Epoch(epoch),
        created_ms: 0,
        ended: false,
        query: print(),
        sources: vec![SourceState {
            name: "s".into(),
            progress: vec![],
            watermark: EventTime::MIN,
            activation_watermarks: vec![],
        }],
        steps: vec![],
        sinks: vec![],
    }
}

fn always() -> FencingCheck {
    Arc::new(|| Ok(()))
}

fn new_state() -> (MemoryDisk, StateDir) {
    let disk = MemoryDisk::default();
    let state = StateDir::open(Arc::new(disk.clone()), "state", false).unwrap();
    (disk, state)
}

fn sink(name: &str, shown: Option<u64>) -> ReportedSink {
    ReportedSink { name: name.into(), published: shown.map(|epoch| published(epoch, 0, [])), on_change: false }
}

/// A sink's report of what it has published; `ends` are those of the journals.
fn published(epoch: u64, incarnation: u64, ends: impl IntoIterator<Item = WorkerEnd>) -> PublishedEpoch {
    PublishedEpoch { incarnation, epoch: Epoch(epoch), ends: ends.into_iter().collect() }
}

/// Decides for incarnation `incarnation`, with one sink `out`.
fn decided(scan: &StateScan, incarnation: u64, shown: Option<u64>) -> Result<RecoveryDecision> {
    let (sinks, query) = (&[sink("out", shown)], &print());
    decide(&RecoveryInput {
        incarnation,
        survey: scan,
        sinks,
        query,
        accept_changed_query: false,
        accept_changed_sources: false,
    })
}

/// Starts an incarnation with a new sink.
fn begin_incarnation(state: &StateDir) -> (Claim, RecoveryDecision) {
    let number = state.begin_incarnation().unwrap();
    let decision = decided(&state.scan_and_sync().unwrap(), number, None).unwrap();
    (state.claim(&decision, &print()).unwrap().unwrap(), decision)
}

fn path_of(id: FileId) -> PathBuf {
    PathBuf::from(format!("state/journal/{id}"))
}

fn first_file(incarnation: u64) -> FileId {
    FileId { incarnation, process: 0, number: 0 }
}

/// Epochs, each with the partitions' next offsets.
fn short(frames: &[Frame]) -> Vec<(u64, Vec<(u32, u64)>)> {
    let bounds = |frame: &Frame| frame.progress.iter().map(|bound| (bound.partition, bound.next_offset)).collect();
    frames.iter().map(|frame| (frame.epoch.0, bounds(frame))).collect()
}
