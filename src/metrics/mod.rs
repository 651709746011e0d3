//! Counters that every layer may raise, and the check of their totals at the end of a run.
//!
//! A [`Metrics`] belongs to one job in one process, and is shared by the job's workers there; the figures of several
//! processes are added up at the end. Counters only grow. [`JobSummary::check_conservation`] compares counters that are
//! raised in *different* places of the code, so that a record lost or duplicated between them is noticed: a source's
//! records read are those accepted, rejected and skipped; a window step's records received, and those in the rows of the
//! snapshot that the job resumed from, are those counted in rows and those that were late.

mod counters;
mod latency;
mod notices;
mod recent;
mod summary;
mod windows;

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use crate::time::EventTime;
pub(crate) use counters::SyncMetrics;
pub use counters::{
    Counter, DurationSetting, Flag, SinkMetrics, Snapshot, SnapshotMetrics, SourceMetrics, StepMetrics, TableMetrics,
    TimeGauge,
};
pub(crate) use latency::{LatencyCounts, LatencyHistogram};
pub(crate) use notices::LatestRecord;
pub(crate) use recent::{KEPT, LateExample, RejectExample};
pub(crate) use summary::after_idle;
pub use summary::{JobSummary, SinkSummary, SnapshotSummary, SourceSummary, StepSummary, TableSummary};
pub(crate) use windows::{MOST_WINDOWS, WindowRows, WorkerWindows};

/// Target of the spans that a job makes with the crate `tracing`, at level debug. Without a subscriber that wants them they
/// cost nothing that could be measured.
///
/// | span | from | to | fields |
/// | --- | --- | --- | --- |
/// | `incarnation` | [`Job::run`](crate::Job::run) | its end | `job`, `process`; `number`, in a job with state |
/// | `epoch_commit` | the journal has input of epochs to write | it is synced | `incarnation`, `process`, the last `epoch`, `frames` |
/// | `publish` | a sink has complete epochs to write | they are published | `sink`, the last `epoch`, `rows` |
/// | `snapshot` | the snapshot's epoch has ended | its manifest is on disk, and what it replaces is removed | `incarnation`, `epoch`, `rows`, `bytes` |
///
/// `incarnation` is a child of the span in which the job is run, if there is one. The others are roots: a trace of a whole
/// incarnation would grow without end.
pub const SPAN_TARGET: &str = "tidegate::span";

/// Metrics of one kind by name, in the order in which they were first requested.
#[derive(Debug)]
struct MetricsByName<M>(Mutex<Vec<(String, Arc<M>)>>);

impl<M> Default for MetricsByName<M> {
    fn default() -> Self {
        MetricsByName(Mutex::new(Vec::new()))
    }
}

impl<M: Default> MetricsByName<M> {
    fn get(&self, name: &str) -> Arc<M> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, found)) = all.iter().find(|(known, _)| known == name) {
            return Arc::clone(found);
        }
        let new = Arc::<M>::default();
        all.push((name.to_owned(), Arc::clone(&new)));
        new
    }

    fn all(&self) -> Vec<(String, Arc<M>)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// All counters of a job in this process.
#[derive(Debug, Default)]
pub struct Metrics {
    sources: MetricsByName<SourceMetrics>,
    steps: MetricsByName<StepMetrics>,
    tables: MetricsByName<TableMetrics>,
    sinks: MetricsByName<SinkMetrics>,
    begun: OnceLock<Instant>,
    /// Epochs begun.
    pub epochs: Counter,
    /// Snapshots of a job with state.
    pub snapshots: SnapshotMetrics,
    /// Times from the start of an epoch until it was published.
    pub(crate) epoch_latency: LatencyHistogram,
}

impl Metrics {
    /// The counters of the source that the flow reads under `name`.
    pub fn source(&self, name: &str) -> Arc<SourceMetrics> {
        self.sources.get(name)
    }

    /// The counters of the window step of this name.
    pub fn step(&self, name: &str) -> Arc<StepMetrics> {
        self.steps.get(name)
    }

    /// The counters of the table of this name.
    pub fn table(&self, name: &str) -> Arc<TableMetrics> {
        self.tables.get(name)
    }

    /// The counters of the sink that the flow writes under `name`.
    pub fn sink(&self, name: &str) -> Arc<SinkMetrics> {
        self.sinks.get(name)
    }

    /// All sources, in the flow's order.
    pub fn sources(&self) -> Vec<(String, Arc<SourceMetrics>)> {
        self.sources.all()
    }

    /// All window steps, in the flow's order.
    pub fn steps(&self) -> Vec<(String, Arc<StepMetrics>)> {
        self.steps.all()
    }

    /// Number of rows that all sinks have published.
    pub fn published_rows(&self) -> u64 {
        self.sinks.all().iter().map(|(_, sink)| sink.rows.get()).sum()
    }

    /// Explains why most records of a window step were late: one line for each source whose file has a record with a
    /// great event time, which makes all records after it late. Empty if no step has mostly late records.
    pub fn explain_late(&self) -> Vec<String> {
        let mostly_late = |step: &StepMetrics| step.late.get() > (step.received.get() + step.loaded.get()) / 2;
        let steps = self.steps.all();
        let Some((name, step)) = steps.iter().find(|(_, step)| mostly_late(step)) else { return Vec::new() };
        let (late, all) = (step.late.get(), step.received.get() + step.loaded.get());
        let peaks = self.sources.all().into_iter().filter_map(|(_, source)| source.notices.peak());
        let line = |LatestRecord { time, place, offset, line }| {
            let line = line.map_or(String::new(), |line| format!(", line {line}"));
            format!(
                "{late} of {all} records were late in {name}: the record at offset {offset}{line} of {place} moved the \
                 watermark to its event time, {time}; if that time is wrong, --max-ahead TIME rejects such records"
            )
        };
        peaks.map(line).collect()
    }

    /// Starts the clock of [`Metrics::working_for`]; only the first call counts.
    pub(crate) fn begin(&self) {
        self.begun.get_or_init(Instant::now);
    }

    /// Time since the job's workers started in this process; zero before. It does not include the time in which several
    /// processes wait for each other.
    pub fn working_for(&self) -> Duration {
        self.begun.get().map_or(Duration::ZERO, Instant::elapsed)
    }

    /// The current figures.
    pub fn summary(&self) -> JobSummary {
        JobSummary {
            epochs: self.epochs.get(),
            snapshots: SnapshotSummary {
                taken: self.snapshots.taken.get(),
                rows: self.snapshots.rows.get(),
                bytes: self.snapshots.bytes.get(),
                merged: self.snapshots.merged.get(),
            },
            sources: (self.sources.all().into_iter())
                .map(|(name, source)| SourceSummary {
                    name,
                    read: source.read.get(),
                    bytes: source.bytes.get(),
                    accepted: source.accepted.get(),
                    rejected: source.rejected.get(),
                    skipped: source.skipped.get(),
                    expired: source.expired.get(),
                    watermark: if source.is_timeless.is_set() { EventTime::MIN } else { source.watermark.get() },
                })
                .collect(),
            steps: (self.steps.all().into_iter())
                .map(|(name, step)| StepSummary {
                    name,
                    received: step.received.get(),
                    loaded: step.loaded.get(),
                    counted: step.counted.get(),
                    late: step.late.get(),
                    late_after_idle: step.late_after_idle.get(),
                    closed_rows: step.closed_rows.get(),
                })
                .collect(),
            tables: (self.tables.all().into_iter())
                .map(|(name, table)| TableSummary {
                    name,
                    received: table.received.get(),
                    compared: table.compared.get(),
                    loaded: table.loaded.get(),
                    changes: table.changes.get(),
                    differences: table.differences.get(),
                })
                .collect(),
            sinks: (self.sinks.all().into_iter())
                .map(|(name, sink)| SinkSummary { name, rows: sink.rows.get(), epochs: sink.epochs.get() })
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_of_processes_are_added_by_name() {
        let (one, other) = (Metrics::default(), Metrics::default());
        one.source("a").read.add(3);
        other.source("b").read.add(5);
        other.source("a").read.add(4);
        other.step("totals").received.add(7);
        one.sink("out").rows.add(2);
        one.epochs.add(9);
        let mut sum = one.summary();
        sum.add(other.summary());
        let read: Vec<_> = sum.sources.iter().map(|source| (source.name.as_str(), source.read)).collect();
        assert_eq!(read, [("a", 7), ("b", 5)]);
        assert_eq!((sum.epochs, sum.steps[0].received, sum.sinks[0].rows), (9, 7, 2));
    }

    #[test]
    fn a_lost_record_is_named() {
        let metrics = Metrics::default();
        metrics.step("totals").received.add(10);
        metrics.step("totals").counted.add(7);
        metrics.step("totals").late.add(3);
        assert_eq!(metrics.summary().check_conservation(), Ok(()));
        let source = metrics.source("ticks");
        for (counter, count) in [(&source.read, 9), (&source.accepted, 4), (&source.rejected, 3), (&source.skipped, 2)]
        {
            counter.add(count);
        }
        assert_eq!(metrics.summary().check_conservation(), Ok(()));
        assert!(
            metrics.summary().to_string().starts_with("ticks: 9 records read = 4 accepted + 3 rejected + 2 skipped\n")
        );
        source.skipped.add(1);
        let error = metrics.summary().check_conservation().unwrap_err().to_string();
        assert!(error.contains("9 read, but 4 accepted and 3 rejected and 3 skipped"), "{error}");
        source.read.add(1);
        metrics.step("totals").received.add(1);
        let error = metrics.summary().check_conservation().unwrap_err().to_string();
        assert!(error.contains("step `totals`") && error.contains("11 in, but 7 counted and 3 late"), "{error}");
    }
}
