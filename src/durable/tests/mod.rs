//! Tests of a state's files, on a disk that can lose power.

mod decide;
mod journal;
mod savepoint;
mod simulation;
mod state;

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use super::declared_changes::DeclaredChanges;
use super::journal::{FileId, Frame, JournalConfig, JournalFile, PartitionProgress, WorkerEnd};
use super::manifest::{Manifest, QueryFingerprint, SinkState, SourceState, StepFingerprint};
use super::recovery::{Claim, RecoveryDecision, RecoveryInput, ReportedSink, StateScan, claimed, decide};
use super::state::StateDir;
use super::test_disk::{CrashingDisk, HookedDisk, OperationKind};
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
        topic: None,
        rejected_for_now: Vec::new(),
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

fn new_state() -> (CrashingDisk, StateDir) {
    let disk = CrashingDisk::new();
    let state = StateDir::open(disk.shared(), "state", false).unwrap();
    (disk, state)
}

/// Makes operations of a disk fail, after `acts` more of them, as on a full disk.
fn fail_after(disk: &CrashingDisk, acts: usize) {
    disk.fail_from(disk.operations() + acts);
}

/// Returns the disk after its process was killed; with `power`, after a loss of power.
fn crashed(disk: &CrashingDisk, power: bool, seed: u64) -> CrashingDisk {
    if power { disk.survivors(seed) } else { disk.after_kill() }
}

/// A function that is called after a listing of `lives`.
#[derive(Clone, Default)]
struct Interruption(Arc<Mutex<Option<(usize, InterruptionFn)>>>);

type InterruptionFn = Box<dyn FnOnce() + Send>;

impl Interruption {
    /// Calls a function once, after the next listing but `skip`.
    fn set(&self, skip: usize, interrupt: impl FnOnce() + Send + 'static) {
        *self.0.lock().unwrap() = Some((skip, Box::new(interrupt)));
    }

    /// Counts a listing; returns the function if it is to be called now.
    fn next(&self) -> Option<InterruptionFn> {
        let mut waiting = self.0.lock().unwrap();
        let due = waiting.take_if(|(skip, _)| *skip == 0);
        if let Some((skip, _)) = &mut *waiting {
            *skip -= 1;
        }
        due.map(|(_, interrupt)| interrupt)
    }
}

/// Returns a state whose listings of `lives` can be interrupted.
fn interruptible_state() -> (Interruption, StateDir) {
    let interruption = Interruption::default();
    let listed = interruption.clone();
    let disk = HookedDisk::new(CrashingDisk::new().shared(), move |operation, act| {
        act()?;
        if operation.kind == OperationKind::List
            && operation.path.ends_with("lives")
            && let Some(interrupt) = listed.next()
        {
            interrupt();
        }
        Ok(())
    });
    (interruption, StateDir::open(disk.shared(), "state", false).unwrap())
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
        changes: &DeclaredChanges::default(),
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
