//! Counters that every layer may raise, and the check of their totals at the end of a run.
//!
//! A [`Metrics`] belongs to one job in one process, and is shared by the job's workers there; the figures of several
//! processes are added up at the end. Counters only grow. [`JobSummary::check_conservation`] compares counters that are
//! raised in *different* places of the code, so that a record lost or duplicated between them is noticed: a source's
//! records read are those accepted, rejected and skipped; a window step's records received, and those in the rows of the
//! snapshot that the job resumed from, are those counted in rows and those that were late.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::time::EventTime;

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `count`.
    #[inline]
    pub fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    /// Returns the sum of all that was added.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A gauge of an event time.
#[derive(Debug)]
pub struct TimeGauge(AtomicI64);

impl Default for TimeGauge {
    fn default() -> Self {
        TimeGauge(AtomicI64::new(EventTime::MIN.millis()))
    }
}

impl TimeGauge {
    /// Sets the gauge, forward or back.
    pub fn set(&self, time: EventTime) {
        self.0.store(time.millis(), Ordering::Relaxed);
    }

    /// Advances the gauge to `time`, unless it is at or past that.
    pub fn raise(&self, time: EventTime) {
        self.0.fetch_max(time.millis(), Ordering::Relaxed);
    }

    /// Returns the current value; [`EventTime::MIN`] before the first.
    pub fn get(&self) -> EventTime {
        EventTime::from_millis(self.0.load(Ordering::Relaxed))
    }
}

/// A duration in milliseconds that is set once; zero before.
#[derive(Debug, Default)]
pub struct DurationSetting(AtomicU64);

impl DurationSetting {
    /// Sets the duration, truncated to whole milliseconds.
    pub fn set(&self, length: Duration) {
        self.0.store(u64::try_from(length.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Returns the duration in milliseconds.
    pub fn millis(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A flag that is set once; `false` before.
#[derive(Debug, Default)]
pub struct Flag(AtomicBool);

impl Flag {
    /// Sets the flag.
    pub fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Returns `true` if the flag is set.
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// The counters of a source.
#[derive(Debug, Default)]
pub struct SourceMetrics {
    /// Records read from the source, valid or not.
    pub read: Counter,
    /// Bytes of those records, as the source stores them.
    pub bytes: Counter,
    /// Records passed to the flow.
    pub accepted: Counter,
    /// Records rejected.
    pub rejected: Counter,
    /// Records that the source left out on purpose.
    pub skipped: Counter,
    /// The watermark of the source's stream.
    pub watermark: TimeGauge,
    /// The time without records after which a partition of the source is idle.
    pub idle_after: DurationSetting,
    /// `true` if the source is read as a table, whose watermark has no meaning.
    pub is_timeless: Flag,
    /// Notices that are logged once.
    pub notices: Notices,
}

/// The record with the greatest event time of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LatestRecord {
    /// The record's event time.
    pub time: EventTime,
    /// The file.
    pub place: String,
    /// The position of the record's first byte.
    pub offset: u64,
    /// The record's line, from 1; `None` if unknown.
    pub line: Option<u64>,
}

/// Notices of a source, each logged once, by the worker that sees it first.
#[derive(Debug, Default)]
pub struct Notices {
    rejects_are_kept: AtomicBool,
    reject_told: AtomicBool,
    unit_told: AtomicBool,
    /// The greatest event time as its [`rank`]; 0 before the first.
    peak_time: AtomicU64,
    peak: Mutex<Option<LatestRecord>>,
}

impl Notices {
    /// Suppresses the notice of the first rejected record: rejected records go to a sink.
    pub fn suppress_reject_notice(&self) {
        self.rejects_are_kept.store(true, Ordering::Relaxed);
    }

    /// Returns `true` if a rejected record must be logged: once, if rejected records go to no sink.
    pub fn should_log_reject(&self) -> bool {
        !self.rejects_are_kept.load(Ordering::Relaxed) && !self.reject_told.swap(true, Ordering::Relaxed)
    }

    /// Returns `true` if the unit of event times must be logged: once.
    pub fn should_log_unit(&self) -> bool {
        !self.unit_told.swap(true, Ordering::Relaxed)
    }

    /// `true` if `time` is greater than every event time noted so far.
    pub fn is_peak(&self, time: EventTime) -> bool {
        rank(time) > self.peak_time.load(Ordering::Relaxed)
    }

    /// Notes a record with a great event time; of records with equal times the first stays.
    pub fn note_peak(&self, peak: LatestRecord) {
        let mut known = self.peak.lock().unwrap_or_else(PoisonError::into_inner);
        if known.as_ref().is_none_or(|known| known.time < peak.time) {
            self.peak_time.store(rank(peak.time), Ordering::Relaxed);
            *known = Some(peak);
        }
    }

    /// Returns the noted record with the greatest event time; `None` if there is none.
    pub fn peak(&self) -> Option<LatestRecord> {
        self.peak.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// An event time as a number that is 0 for the least one.
fn rank(time: EventTime) -> u64 {
    time.millis().wrapping_sub(i64::MIN) as u64
}

/// The counters of a window step.
#[derive(Debug, Default)]
pub struct StepMetrics {
    /// Records received, each counted once, however many windows it belongs to.
    pub received: Counter,
    /// Records counted in the rows of the snapshot that the job resumed from.
    pub loaded: Counter,
    /// Received and loaded records that are counted in a row of a window.
    pub counted: Counter,
    /// Received records that were late for all their windows.
    pub late: Counter,
    /// Late records that were in the order of their own partition: late only by an activation watermark, because the
    /// partition or its stream had been idle, or was found late.
    pub late_after_idle: Counter,
    /// Rows of windows that have closed.
    pub closed_rows: Counter,
    /// The watermark that the step has reached.
    pub watermark: TimeGauge,
    /// Time for which a window is kept open after its end, in milliseconds; set when the step is created.
    pub lateness_ms: AtomicU64,
}

/// The counters of a table.
#[derive(Debug, Default)]
pub struct TableMetrics {
    /// Records received.
    pub received: Counter,
    /// Records that were compared with the table's rows.
    pub compared: Counter,
    /// Rows loaded from the snapshot that the job resumed from; a key may have several.
    pub loaded: Counter,
    /// Row changes: rows retracted and rows added.
    pub changes: Counter,
}

/// The counters of a sink.
#[derive(Debug, Default)]
pub struct SinkMetrics {
    /// Rows published.
    pub rows: Counter,
    /// Epochs in which rows were published.
    pub epochs: Counter,
}

/// The cost of a journal's syncs.
#[derive(Debug, Default)]
pub struct SyncMetrics {
    /// Number of syncs.
    pub count: Counter,
    /// Bytes written.
    pub bytes: Counter,
    micros: Counter,
}

impl SyncMetrics {
    /// Counts a sync of `bytes` bytes that took `took`.
    pub fn add(&self, bytes: u64, took: Duration) {
        self.count.add(1);
        self.bytes.add(bytes);
        self.micros.add(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
    }

    /// Total duration of writing and syncing.
    pub fn time(&self) -> Duration {
        Duration::from_micros(self.micros.get())
    }
}

/// The figures of one snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Snapshot {
    /// The snapshot's epoch.
    pub epoch: u64,
    /// Time from the end of the epoch until the manifest was durable.
    pub took: Duration,
    /// Rows that had changed since the previous snapshot.
    pub rows: u64,
    /// Bytes of the segments with those rows.
    pub bytes: u64,
}

/// The counters of snapshots.
#[derive(Debug, Default)]
pub struct SnapshotMetrics {
    /// Snapshots taken.
    pub taken: Counter,
    /// Rows in the segments written for snapshots.
    pub rows: Counter,
    /// Bytes of the segments written for snapshots.
    pub bytes: Counter,
    /// Bytes of segments written by background merges.
    pub merged: Counter,
    /// The last snapshots, each with the time at which it was counted.
    recent: Mutex<VecDeque<(Instant, Snapshot)>>,
}

impl SnapshotMetrics {
    /// Number of snapshots that are kept for inspection.
    const RECENT: usize = 256;

    /// Counts a snapshot.
    pub fn add(&self, snapshot: Snapshot) {
        self.taken.add(1);
        self.rows.add(snapshot.rows);
        self.bytes.add(snapshot.bytes);
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        if recent.len() == Self::RECENT {
            recent.pop_front();
        }
        recent.push_back((Instant::now(), snapshot));
    }

    /// Time since the last snapshot; `None` before the first.
    pub fn age(&self) -> Option<Duration> {
        let recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        recent.back().map(|(counted, _)| counted.elapsed())
    }

    /// The last few snapshots, oldest first.
    pub fn recent(&self) -> Vec<Snapshot> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner).iter().map(|(_, snapshot)| *snapshot).collect()
    }
}

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
                })
                .collect(),
            sinks: (self.sinks.all().into_iter())
                .map(|(name, sink)| SinkSummary { name, rows: sink.rows.get(), epochs: sink.epochs.get() })
                .collect(),
        }
    }
}

/// The figures of a source in a [`JobSummary`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct SourceSummary {
    /// The name under which the flow reads it.
    pub name: String,
    /// Records read from the source.
    pub read: u64,
    /// Bytes of those records.
    pub bytes: u64,
    /// Records passed to the flow.
    pub accepted: u64,
    /// Records rejected.
    pub rejected: u64,
    /// Records that the source left out on purpose, such as messages that a decoder skips.
    #[serde(default)]
    pub skipped: u64,
    /// The watermark of the source's stream.
    pub watermark: EventTime,
}

/// The figures of a window step in a [`JobSummary`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct StepSummary {
    /// The step's name.
    pub name: String,
    /// Records received, each counted once, however many windows it belongs to.
    #[serde(rename = "taken")]
    pub received: u64,
    /// Records counted in the rows of the snapshot that the job resumed from.
    pub loaded: u64,
    /// Received and loaded records that are counted in a row of a window.
    pub counted: u64,
    /// Received records that were late for all their windows.
    pub late: u64,
    /// Late records that were late only because their partition, or its stream, had been idle or was found late.
    #[serde(default)]
    pub late_after_idle: u64,
    /// Rows of windows that have closed.
    pub closed_rows: u64,
}

/// The figures of a table in a [`JobSummary`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct TableSummary {
    /// The step's name.
    pub name: String,
    /// Records received.
    #[serde(rename = "taken")]
    pub received: u64,
    /// Records that were compared with the table's rows.
    #[serde(rename = "folded")]
    pub compared: u64,
    /// Rows loaded from the snapshot that the job resumed from.
    pub loaded: u64,
    /// Row changes: rows retracted and rows added.
    pub changes: u64,
}

/// The figures of a sink in a [`JobSummary`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct SinkSummary {
    /// The name under which the flow writes it.
    pub name: String,
    /// Rows published.
    pub rows: u64,
    /// Epochs in which rows were published.
    pub epochs: u64,
}

/// The figures of snapshots in a [`JobSummary`]; zero in a job without state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct SnapshotSummary {
    /// Snapshots taken.
    pub taken: u64,
    /// Rows in the segments written for snapshots.
    pub rows: u64,
    /// Bytes of the segments written for snapshots.
    pub bytes: u64,
    /// Bytes of segments written by background merges.
    pub merged: u64,
}

/// The figures of a job, at its end or so far.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct JobSummary {
    /// Epochs begun.
    pub epochs: u64,
    /// The sources, in the flow's order.
    pub sources: Vec<SourceSummary>,
    /// The window steps, in the flow's order.
    pub steps: Vec<StepSummary>,
    /// The tables, in the flow's order.
    pub tables: Vec<TableSummary>,
    /// The sinks, in the flow's order.
    pub sinks: Vec<SinkSummary>,
    /// Snapshots of the job's state.
    pub snapshots: SnapshotSummary,
}

impl JobSummary {
    /// Adds the figures of another process of the job.
    pub fn add(&mut self, other: JobSummary) {
        let JobSummary { epochs, sources, steps, tables, sinks, snapshots } = other;
        self.epochs += epochs;
        add_by_name(
            &mut self.sources,
            sources,
            |source| &source.name,
            |known, other| {
                known.read += other.read;
                known.bytes += other.bytes;
                known.accepted += other.accepted;
                known.rejected += other.rejected;
                known.skipped += other.skipped;
                known.watermark = known.watermark.max(other.watermark);
            },
        );
        add_by_name(
            &mut self.steps,
            steps,
            |step| &step.name,
            |known, other| {
                known.received += other.received;
                known.loaded += other.loaded;
                known.counted += other.counted;
                known.late += other.late;
                known.late_after_idle += other.late_after_idle;
                known.closed_rows += other.closed_rows;
            },
        );
        add_by_name(
            &mut self.tables,
            tables,
            |table| &table.name,
            |known, other| {
                known.received += other.received;
                known.compared += other.compared;
                known.loaded += other.loaded;
                known.changes += other.changes;
            },
        );
        add_by_name(
            &mut self.sinks,
            sinks,
            |sink| &sink.name,
            |known, other| {
                known.rows += other.rows;
                known.epochs += other.epochs;
            },
        );
        self.snapshots.taken += snapshots.taken;
        self.snapshots.rows += snapshots.rows;
        self.snapshots.bytes += snapshots.bytes;
        self.snapshots.merged += snapshots.merged;
    }

    /// Checks that no record was lost or counted twice: at every source, read = accepted + rejected; at every window
    /// step, received + loaded = counted + late; at every table, received = compared.
    ///
    /// # Errors
    /// Fails if the figures disagree, with the name of the source or step. That is a fault of Tidegate, never of the
    /// data.
    pub fn check_conservation(&self) -> Result<()> {
        let fault = |place: String, figures: String| {
            let error = Error::new("records were lost or counted twice").at(place).because(figures);
            Err(error.help("this is a fault in Tidegate: do not use the results, and report it with these figures"))
        };
        for source in &self.sources {
            if source.read != source.accepted + source.rejected + source.skipped {
                let SourceSummary { read, accepted, rejected, skipped, .. } = source;
                let skipped = if *skipped > 0 { format!(" and {skipped} skipped") } else { String::new() };
                let figures = format!("{read} read, but {accepted} accepted and {rejected} rejected{skipped}");
                return fault(format!("source `{}`", source.name), figures);
            }
        }
        for step in &self.steps {
            if step.received + step.loaded != step.counted + step.late {
                let StepSummary { received, loaded, counted, late, .. } = step;
                let loaded = if *loaded > 0 { format!(" and {loaded} from the snapshot") } else { String::new() };
                let figures = format!("{received} in{loaded}, but {counted} counted and {late} late");
                return fault(format!("step `{}`", step.name), figures);
            }
        }
        for TableSummary { name, received, compared, .. } in &self.tables {
            if received != compared {
                return fault(format!("table `{name}`"), format!("{received} in, but {compared} folded"));
            }
        }
        Ok(())
    }
}

/// Explains why `late` records were late although they were in order, and names the remedy.
pub(crate) fn after_idle(late: u64) -> String {
    format!(
        "{late} of the late ones were in order and came after their partition had been idle, when their windows had \
         closed: a longer --idle-timeout waits for them"
    )
}

/// Adds figures to those of the same name; figures of a new name are appended.
fn add_by_name<T>(all: &mut Vec<T>, others: Vec<T>, name: fn(&T) -> &str, add: fn(&mut T, &T)) {
    for other in others {
        match all.iter_mut().find(|known| name(known) == name(&other)) {
            Some(known) => add(known, &other),
            None => all.push(other),
        }
    }
}

/// One line for each source, step, table and sink.
impl fmt::Display for JobSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut lines = Vec::new();
        for source in &self.sources {
            let SourceSummary { name, read, accepted, rejected, skipped, .. } = source;
            let skipped = if *skipped > 0 { format!(" + {skipped} skipped") } else { String::new() };
            lines.push(format!("{name}: {read} records read = {accepted} accepted + {rejected} rejected{skipped}"));
        }
        for step in &self.steps {
            let StepSummary { name, received, loaded, counted, late, late_after_idle, closed_rows } = step;
            let loaded = if *loaded > 0 { format!(" + {loaded} from the snapshot") } else { String::new() };
            let idle = if *late_after_idle > 0 { format!("; {}", after_idle(*late_after_idle)) } else { String::new() };
            lines.push(format!(
                "{name}: {received} in{loaded} = {counted} counted + {late} late; {closed_rows} rows closed{idle}"
            ));
        }
        for table in &self.tables {
            let TableSummary { name, received, compared, loaded, changes } = table;
            let loaded = if *loaded > 0 { format!("; {loaded} rows from the snapshot") } else { String::new() };
            lines.push(format!("{name}: {received} in = {compared} folded{loaded}; {changes} changes"));
        }
        for sink in &self.sinks {
            let SinkSummary { name, rows, epochs } = sink;
            lines.push(format!("{name}: {rows} rows written in {epochs} of {} epochs", self.epochs));
        }
        let SnapshotSummary { taken, rows, bytes, merged } = self.snapshots;
        if taken > 0 {
            lines.push(format!("state: {taken} snapshots of {rows} rows in {bytes} bytes; {merged} bytes merged"));
        }
        f.write_str(&lines.join("\n"))
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
