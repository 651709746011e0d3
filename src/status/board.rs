//! The board on which the workers and sinks of one process write their status.
//!
//! Invariants: a writer waits for a lock only while another thread copies a few values; a worker's status is as old as
//! its last report, which a stuck worker's `turned` time reveals.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::left_out::left_out;
use super::windows::StepWindows;
use super::{FrontStatus, PartitionStatus, ProcessStatus, SinkStatus, SnapshotStatus, Stage, WorkerStatus};
use crate::metrics::Metrics;
use crate::time::Epoch;

/// The current status of a process, written by its workers and sinks.
#[derive(Debug)]
pub(crate) struct StatusBoard {
    process: usize,
    first_worker: usize,
    begun: Instant,
    /// The counters of the process.
    metrics: Arc<Metrics>,
    workers: Vec<WorkerCell>,
    /// Names of steps; a worker refers to its current one by number.
    steps: Mutex<Vec<String>>,
    sinks: Mutex<Vec<(String, Arc<SinkCell>)>>,
    snapshot: Mutex<Option<(Epoch, Instant)>>,
    /// The epoch of the last snapshot that is on disk.
    committed: AtomicU64,
    /// Milliseconds from the start until rows were last published.
    shown: AtomicU64,
}

#[derive(Debug, Default)]
struct WorkerCell {
    /// Milliseconds from the start until the last iteration of its loop.
    turned: AtomicU64,
    /// The step that it is executing, counted from 1; 0 for none.
    step: AtomicUsize,
    now: Mutex<Option<WorkerReport>>,
    partitions: Mutex<BTreeMap<(String, u32), ReachedOffset>>,
}

/// The offset of a partition, and the time at which it was reached.
#[derive(Clone, Copy, Debug)]
struct ReachedOffset {
    next: u64,
    since: Instant,
}

/// A worker's own part of its status.
#[derive(Clone, Debug)]
pub(crate) struct WorkerReport {
    pub(crate) repeats: bool,
    pub(crate) shown: Option<Epoch>,
    pub(crate) front: Option<(Epoch, Stage)>,
    /// The time at which `front` last changed.
    pub(crate) since: Instant,
    pub(crate) in_flight_bytes: u64,
    pub(crate) in_flight_epochs: u64,
    pub(crate) waits_for_sinks: bool,
    pub(crate) reads_first: bool,
    /// The partitions that it reads, without their times.
    pub(crate) partitions: Vec<PartitionStatus>,
}

/// The status of a sink: the oldest epoch that it has not published, and the time since which.
#[derive(Debug, Default)]
pub(crate) struct SinkCell(Mutex<Option<(Epoch, Instant)>>);

impl SinkCell {
    /// Sets the oldest epoch that is not published; `None` if there is none.
    pub(crate) fn waits(&self, epoch: Option<Epoch>) {
        let mut waiting = locked(&self.0);
        if waiting.map(|(waiting, _)| waiting) != epoch {
            *waiting = epoch.map(|epoch| (epoch, Instant::now()));
        }
    }
}

/// Guard that marks a worker as executing a step until it is dropped.
pub(crate) struct StepGuard<'a>(&'a AtomicUsize);

impl Drop for StepGuard<'_> {
    fn drop(&mut self) {
        // The step in which a worker has panicked is kept for the report.
        if !std::thread::panicking() {
            self.0.store(0, Ordering::Relaxed);
        }
    }
}

impl StatusBoard {
    /// Creates a board for the `threads` workers of a process, which raise `metrics`.
    pub(crate) fn new(process: usize, threads: usize, metrics: Arc<Metrics>) -> Self {
        StatusBoard {
            process,
            first_worker: process * threads,
            begun: Instant::now(),
            metrics,
            workers: (0..threads).map(|_| WorkerCell::default()).collect(),
            steps: Mutex::default(),
            sinks: Mutex::default(),
            snapshot: Mutex::default(),
            committed: AtomicU64::new(0),
            shown: AtomicU64::new(0),
        }
    }

    /// Returns the number of the process.
    pub(crate) fn process(&self) -> usize {
        self.process
    }

    fn millis(&self) -> u64 {
        self.begun.elapsed().as_millis() as u64
    }

    fn cell(&self, worker: usize) -> Option<&WorkerCell> {
        worker.checked_sub(self.first_worker).and_then(|at| self.workers.get(at))
    }

    /// Notes that a worker's loop has made an iteration.
    pub(crate) fn turned(&self, worker: usize, now: Instant) {
        if let Some(cell) = self.cell(worker) {
            cell.turned.store((now - self.begun).as_millis() as u64, Ordering::Relaxed);
        }
    }

    /// Stores a worker's status.
    pub(crate) fn put(&self, worker: usize, now: WorkerReport) {
        let Some(cell) = self.cell(worker) else { return };
        let at = Instant::now();
        let mut known = locked(&cell.partitions);
        for partition in &now.partitions {
            let moved = known.entry((partition.source.clone(), partition.partition));
            let moved = moved.or_insert(ReachedOffset { next: partition.next, since: at });
            if moved.next != partition.next {
                *moved = ReachedOffset { next: partition.next, since: at };
            }
        }
        drop(known);
        *locked(&cell.now) = Some(now);
    }

    /// `true` once every worker has reported its status.
    #[cfg(feature = "cli")]
    pub(crate) fn has_begun(&self) -> bool {
        self.workers.iter().all(|worker| locked(&worker.now).is_some())
    }

    /// Returns the number of a step's name, for [`StatusBoard::enter`].
    pub(crate) fn number(&self, step: &str) -> usize {
        let mut steps = locked(&self.steps);
        let known = steps.iter().position(|known| known == step);
        known.unwrap_or_else(|| {
            steps.push(step.to_owned());
            steps.len() - 1
        }) + 1
    }

    /// Marks a worker as executing a step until the guard is dropped.
    pub(crate) fn enter(&self, worker: usize, step: usize) -> Option<StepGuard<'_>> {
        let cell = self.cell(worker)?;
        cell.step.store(step, Ordering::Relaxed);
        Some(StepGuard(&cell.step))
    }

    /// Describes a worker with the step that it is executing, if any, as in "`worker 2` in step `totals`".
    pub(crate) fn describe_worker(&self, worker: usize) -> String {
        let step = self.cell(worker).and_then(|cell| cell.step.load(Ordering::Relaxed).checked_sub(1));
        match step.and_then(|step| locked(&self.steps).get(step).cloned()) {
            Some(step) => format!("`worker {worker}` in step `{step}`"),
            None => format!("`worker {worker}`"),
        }
    }

    /// Adds a sink, and returns the cell of its status.
    pub(crate) fn sink(&self, name: &str) -> Arc<SinkCell> {
        let cell = Arc::<SinkCell>::default();
        locked(&self.sinks).push((name.to_owned(), Arc::clone(&cell)));
        cell
    }

    /// Notes that rows were published.
    pub(crate) fn shown(&self) {
        self.shown.store(self.millis(), Ordering::Relaxed);
    }

    /// Notes that a snapshot was announced.
    pub(crate) fn announced(&self, epoch: Epoch) {
        *locked(&self.snapshot) = Some((epoch, Instant::now()));
    }

    /// Stores the epoch of the last snapshot that is on disk.
    pub(crate) fn committed(&self, epoch: Epoch) {
        self.committed.store(epoch.0, Ordering::Relaxed);
    }

    /// Returns the current status of the process.
    pub(crate) fn status(&self) -> ProcessStatus {
        let now = self.millis();
        let snapshot = locked(&self.snapshot).map(|(announced, at)| SnapshotStatus {
            announced,
            announced_ms: millis_since(at),
            committed: Epoch(self.committed.load(Ordering::Relaxed)),
        });
        let sinks = locked(&self.sinks);
        let sinks = sinks.iter().map(|(name, cell)| {
            let waiting = *locked(&cell.0);
            SinkStatus {
                name: name.clone(),
                waiting: waiting.map(|(epoch, _)| epoch),
                since_ms: waiting.map_or(0, |(_, since)| millis_since(since)),
            }
        });
        let windows = self.metrics.steps().into_iter();
        let windows = windows.filter_map(|(name, step)| StepWindows::of_workers(&name, step.windows.all()));
        ProcessStatus {
            windows: windows.collect(),
            left_out: left_out(&self.metrics, |source, partition| self.place(source, partition)),
            process: self.process,
            silent_ms: 0,
            connections: Vec::new(),
            workers: (0..self.workers.len()).map(|at| self.worker(at, now)).collect(),
            sinks: sinks.collect(),
            snapshot,
            shown_ms: now.saturating_sub(self.shown.load(Ordering::Relaxed)),
        }
    }

    /// Returns the topic or file of a partition, and its number there; `None` if it is not known. The flag is `true` if
    /// its offsets are positions in bytes.
    fn place(&self, source: &str, partition: u32) -> (Option<(String, u32)>, bool) {
        let sources = self.metrics.sources();
        let named = sources.iter().find(|(name, _)| name == source);
        let named = named.and_then(|(_, source)| Some((source.notices.place()?.to_owned(), partition)));
        let of_worker = |worker: &WorkerCell| {
            let now = locked(&worker.now);
            let mut known = now.iter().flat_map(|now| &now.partitions);
            let known = known.find(|known| known.source == source && known.partition == partition)?;
            let label = known.topic.as_ref().and_then(|topic| topic.rsplit_once('/'));
            let label = label.and_then(|(topic, number)| Some((topic.to_owned(), number.parse().ok()?)));
            Some((label, known.in_bytes))
        };
        let (label, in_bytes) = self.workers.iter().find_map(of_worker).unwrap_or_default();
        (label.or(named), in_bytes)
    }

    fn worker(&self, at: usize, now: u64) -> WorkerStatus {
        let cell = &self.workers[at];
        let turned_ms = now.saturating_sub(cell.turned.load(Ordering::Relaxed));
        let step = cell.step.load(Ordering::Relaxed).checked_sub(1);
        let step = step.and_then(|step| locked(&self.steps).get(step).cloned());
        let empty = WorkerStatus { worker: self.first_worker + at, turned_ms, step, ..WorkerStatus::default() };
        let Some(known) = locked(&cell.now).clone() else { return empty };
        let moved = locked(&cell.partitions);
        let partitions = known.partitions.into_iter().map(|partition| {
            let moved = moved.get(&(partition.source.clone(), partition.partition));
            PartitionStatus { moved_ms: moved.map_or(0, |moved| millis_since(moved.since)), ..partition }
        });
        let since_ms = millis_since(known.since);
        WorkerStatus {
            repeats: known.repeats,
            shown: known.shown,
            front: known.front.map(|(epoch, stage)| FrontStatus { epoch, stage, since_ms }),
            in_flight_bytes: known.in_flight_bytes,
            in_flight_epochs: known.in_flight_epochs,
            waits_for_sinks: known.waits_for_sinks,
            reads_first: known.reads_first,
            partitions: partitions.collect(),
            ..empty
        }
    }
}

fn millis_since(since: Instant) -> u64 {
    since.elapsed().as_millis() as u64
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn now(next: u64) -> WorkerReport {
        WorkerReport {
            repeats: false,
            shown: Some(Epoch(4)),
            front: Some((Epoch(6), Stage::Syncing)),
            since: Instant::now(),
            in_flight_bytes: 10,
            in_flight_epochs: 1,
            waits_for_sinks: false,
            reads_first: false,
            partitions: vec![PartitionStatus { source: "s".into(), partition: 3, next, ..PartitionStatus::default() }],
        }
    }

    #[test]
    fn what_is_written_is_read_with_the_time_since() {
        let board = StatusBoard::new(1, 2, Arc::default());
        assert_eq!(board.status().workers[1].worker, 3);
        board.put(3, now(7));
        std::thread::sleep(Duration::from_millis(30));
        board.turned(3, Instant::now());
        board.put(3, now(7));
        let sink = board.sink("totals");
        sink.waits(Some(Epoch(6)));
        {
            let _doing = board.enter(2, board.number("totals"));
            assert_eq!(board.status().workers[0].step.as_deref(), Some("totals"));
        }
        let status = board.status();
        assert_eq!(status.workers[0].step, None);
        let worker = &status.workers[1];
        assert!(worker.turned_ms + 25 <= status.workers[0].turned_ms, "{status:?}");
        assert!(worker.partitions[0].moved_ms >= 30, "the offset is the same");
        assert_eq!(worker.front.map(|front| (front.epoch, front.stage)), Some((Epoch(6), Stage::Syncing)));
        assert_eq!((status.sinks[0].waiting, &*status.sinks[0].name), (Some(Epoch(6)), "totals"));
        let moved = Instant::now();
        board.put(3, now(8));
        sink.waits(None);
        let status = board.status();
        assert!(u128::from(status.workers[1].partitions[0].moved_ms) <= moved.elapsed().as_millis());
        assert_eq!(status.sinks[0].waiting, None);
    }
}
