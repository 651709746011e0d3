//! Counters that every layer may raise, and the account at the end of a run.
//!
//! A [`Metrics`] belongs to one job in one process; all of its workers share it; those of several processes are added up at
//! the end. Counters only grow. The account that
//! [`Summary::check_conservation`] makes compares counters that are raised in *different* places of the code, so that a
//! record lost or doubled between them is seen: what a source read is what it gave on and what it rejected; what came
//! into a window step, and what the snapshot had that the job went on from, is what its rows counted and what was late.

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

    /// The sum of all that was added.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A point of event time that moves.
#[derive(Debug)]
pub struct TimeGauge(AtomicI64);

impl Default for TimeGauge {
    fn default() -> Self {
        TimeGauge(AtomicI64::new(EventTime::MIN.millis()))
    }
}

impl TimeGauge {
    /// Moves it.
    pub fn set(&self, time: EventTime) {
        self.0.store(time.millis(), Ordering::Relaxed);
    }

    /// Moves it forward, if it is not there yet.
    pub fn raise(&self, time: EventTime) {
        self.0.fetch_max(time.millis(), Ordering::Relaxed);
    }

    /// Where it is.
    pub fn get(&self) -> EventTime {
        EventTime::from_millis(self.0.load(Ordering::Relaxed))
    }
}

/// A length of time that is set once; zero before.
#[derive(Debug, Default)]
pub struct Setting(AtomicU64);

impl Setting {
    /// Sets it, in whole milliseconds.
    pub fn set(&self, length: Duration) {
        self.0.store(u64::try_from(length.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Its milliseconds.
    pub fn millis(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What happened at a source.
#[derive(Debug, Default)]
pub struct SourceMetrics {
    /// Records that were taken from the source, good or bad.
    pub read: Counter,
    /// Bytes of those records, as the source holds them.
    pub bytes: Counter,
    /// Records that were given on to the flow.
    pub accepted: Counter,
    /// Records that were rejected.
    pub rejected: Counter,
    /// The watermark of the source's stream.
    pub watermark: TimeGauge,
    /// The time without records after which a partition of it is idle.
    pub idle_after: Setting,
    /// Notices that are told once.
    pub notices: Notices,
}

/// A record with the greatest event time of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peak {
    /// Its event time.
    pub time: EventTime,
    /// The file.
    pub place: String,
    /// The position of its first byte.
    pub offset: u64,
    /// Its line, from 1, where it is known.
    pub line: Option<u64>,
}

/// Notices of a source, each told once, by whichever of its workers sees it first.
#[derive(Debug, Default)]
pub struct Notices {
    rejects_are_kept: AtomicBool,
    reject_told: AtomicBool,
    unit_told: AtomicBool,
    /// Milliseconds of the greatest event time, less `i64::MIN`: 0 before the first.
    peak_time: AtomicU64,
    peak: Mutex<Option<Peak>>,
}

impl Notices {
    /// Says that rejected records go to a sink: the first one need not be told.
    pub fn keep_rejects(&self) {
        self.rejects_are_kept.store(true, Ordering::Relaxed);
    }

    /// Answers whether a rejected record is to be told: `true` once, if rejected records go nowhere.
    pub fn tell_of_reject(&self) -> bool {
        !self.rejects_are_kept.load(Ordering::Relaxed) && !self.reject_told.swap(true, Ordering::Relaxed)
    }

    /// Answers whether the unit of event times is to be told: `true` once.
    pub fn tell_of_unit(&self) -> bool {
        !self.unit_told.swap(true, Ordering::Relaxed)
    }

    /// `true` if no greater or equal event time was noted.
    pub fn is_peak(&self, time: EventTime) -> bool {
        rank(time) > self.peak_time.load(Ordering::Relaxed)
    }

    /// Notes a record with a great event time; of equal ones the first that is noted stays.
    pub fn note_peak(&self, peak: Peak) {
        let mut known = self.peak.lock().unwrap_or_else(PoisonError::into_inner);
        if known.as_ref().is_none_or(|known| known.time < peak.time) {
            self.peak_time.store(rank(peak.time), Ordering::Relaxed);
            *known = Some(peak);
        }
    }

    /// The record with the greatest event time that was noted.
    pub fn peak(&self) -> Option<Peak> {
        self.peak.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// An event time as a number that is 0 for the least one.
fn rank(time: EventTime) -> u64 {
    time.millis().wrapping_sub(i64::MIN) as u64
}

/// What happened at a window step.
#[derive(Debug, Default)]
pub struct StepMetrics {
    /// Records that came in, each counted once for every window it belongs to.
    pub taken: Counter,
    /// Records that rows of a snapshot counted, when the job went on from one.
    pub loaded: Counter,
    /// Of both, the ones that are counted in a row of a window.
    pub counted: Counter,
    /// Of those, the ones that were late.
    pub late: Counter,
    /// Of the late ones, those in the order of their partition that were late by a floor alone: the partition, or its stream,
    /// had been idle, or was found late.
    pub late_after_idle: Counter,
    /// Rows of windows that closed.
    pub closed_rows: Counter,
    /// The watermark that the step has come to.
    pub watermark: TimeGauge,
    /// How long after its end a window is kept open, in milliseconds; raised once, when the step is made.
    pub lateness_ms: AtomicU64,
}

/// What happened at a table.
#[derive(Debug, Default)]
pub struct TableMetrics {
    /// Records that came in.
    pub taken: Counter,
    /// Of those, the ones that were compared with what the table had.
    pub folded: Counter,
    /// Rows that came from a snapshot, when the job went on from one: of a key there may be several.
    pub loaded: Counter,
    /// Rows taken back and new rows.
    pub changes: Counter,
}

/// What happened at a sink.
#[derive(Debug, Default)]
pub struct SinkMetrics {
    /// Rows that were shown.
    pub rows: Counter,
    /// Epochs in which rows were shown.
    pub epochs: Counter,
}

/// What the syncs of a journal have cost.
#[derive(Debug, Default)]
pub struct SyncMetrics {
    /// How many there were.
    pub count: Counter,
    /// The bytes that were written.
    pub bytes: Counter,
    micros: Counter,
}

impl SyncMetrics {
    /// Counts a sync of so many bytes that took so long.
    pub fn add(&self, bytes: u64, took: Duration) {
        self.count.add(1);
        self.bytes.add(bytes);
        self.micros.add(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
    }

    /// The time that writing and syncing took.
    pub fn time(&self) -> Duration {
        Duration::from_micros(self.micros.get())
    }
}

/// One snapshot that was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Its epoch.
    pub epoch: u64,
    /// From the end of the epoch to its manifest on disk.
    pub took: Duration,
    /// Rows that had changed since the one before.
    pub rows: u64,
    /// Bytes of the segments that were written of them.
    pub bytes: u64,
}

/// What snapshots did.
#[derive(Debug, Default)]
pub struct SnapshotMetrics {
    /// Snapshots that were taken.
    pub taken: Counter,
    /// Rows in the segments written for them.
    pub rows: Counter,
    /// Bytes of the segments written for them.
    pub bytes: Counter,
    /// Bytes of segments that were merged of others, in the background.
    pub merged: Counter,
    /// Each with when it was counted.
    recent: Mutex<VecDeque<(Instant, Snapshot)>>,
}

impl SnapshotMetrics {
    /// How many snapshots are kept for looking at.
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

    /// How long ago the last one was taken, if one was.
    pub fn age(&self) -> Option<Duration> {
        let recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        recent.back().map(|(counted, _)| counted.elapsed())
    }

    /// The last few, oldest first.
    pub fn recent(&self) -> Vec<Snapshot> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner).iter().map(|(_, snapshot)| *snapshot).collect()
    }
}

/// A list of named things of one kind, in the order in which they were first asked for.
#[derive(Debug)]
struct Named<M>(Mutex<Vec<(String, Arc<M>)>>);

impl<M> Default for Named<M> {
    fn default() -> Self {
        Named(Mutex::new(Vec::new()))
    }
}

impl<M: Default> Named<M> {
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
    sources: Named<SourceMetrics>,
    steps: Named<StepMetrics>,
    tables: Named<TableMetrics>,
    sinks: Named<SinkMetrics>,
    begun: OnceLock<Instant>,
    /// Epochs that were begun.
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

    /// How many rows all sinks have shown.
    pub fn shown_rows(&self) -> u64 {
        self.sinks.all().iter().map(|(_, sink)| sink.rows.get()).sum()
    }

    /// Explains why most records of a window step were late, in a line for each source whose file has a record that did it:
    /// one with an event time far ahead makes all that follow late.
    pub fn explain_late(&self) -> Vec<String> {
        let mostly_late = |step: &StepMetrics| step.late.get() > (step.taken.get() + step.loaded.get()) / 2;
        let steps = self.steps.all();
        let Some((name, step)) = steps.iter().find(|(_, step)| mostly_late(step)) else { return Vec::new() };
        let (late, all) = (step.late.get(), step.taken.get() + step.loaded.get());
        let peaks = self.sources.all().into_iter().filter_map(|(_, source)| source.notices.peak());
        let line = |Peak { time, place, offset, line }| {
            let line = line.map_or(String::new(), |line| format!(", line {line}"));
            format!(
                "{late} of {all} records were late in {name}: the record at offset {offset}{line} of {place} moved the \
                 watermark to its event time, {time}; if that time is wrong, --max-ahead TIME rejects such records"
            )
        };
        peaks.map(line).collect()
    }

    /// Says that the job begins to work.
    pub(crate) fn begin(&self) {
        self.begun.get_or_init(Instant::now);
    }

    /// How long the job has been at work, in this process; nothing before its workers have begun. It does not count the
    /// time in which several processes wait for each other.
    pub fn working_for(&self) -> Duration {
        self.begun.get().map_or(Duration::ZERO, Instant::elapsed)
    }

    /// The figures as they are now.
    pub fn summary(&self) -> Summary {
        Summary {
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
                    watermark: source.watermark.get(),
                })
                .collect(),
            steps: (self.steps.all().into_iter())
                .map(|(name, step)| StepSummary {
                    name,
                    taken: step.taken.get(),
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
                    taken: table.taken.get(),
                    folded: table.folded.get(),
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

/// The figures of a source in a [`Summary`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceSummary {
    /// The name under which the flow reads it.
    pub name: String,
    /// Records taken from the source.
    pub read: u64,
    /// Bytes of those.
    pub bytes: u64,
    /// Records given on.
    pub accepted: u64,
    /// Records rejected.
    pub rejected: u64,
    /// The watermark of its stream.
    pub watermark: EventTime,
}

/// The figures of a window step in a [`Summary`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepSummary {
    /// The step's name.
    pub name: String,
    /// Records that came in, once for every window they belong to.
    pub taken: u64,
    /// Records that rows of a snapshot counted, when the job went on from one.
    pub loaded: u64,
    /// Of both, the ones counted in a row.
    pub counted: u64,
    /// Of those, the late ones.
    pub late: u64,
    /// Of the late ones, those that were late only because their partition, or its stream, had been idle.
    #[serde(default)]
    pub late_after_idle: u64,
    /// Rows of closed windows.
    pub closed_rows: u64,
}

/// The figures of a table in a [`Summary`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableSummary {
    /// The step's name.
    pub name: String,
    /// Records that came in.
    pub taken: u64,
    /// Of those, the ones that were compared with what the table had.
    pub folded: u64,
    /// Rows that came from a snapshot, when the job went on from one.
    pub loaded: u64,
    /// Rows taken back and new rows.
    pub changes: u64,
}

/// The figures of a sink in a [`Summary`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SinkSummary {
    /// The name under which the flow writes it.
    pub name: String,
    /// Rows shown.
    pub rows: u64,
    /// Epochs in which rows were shown.
    pub epochs: u64,
}

/// The figures of snapshots in a [`Summary`]: zeros in a job without state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotSummary {
    /// Snapshots taken.
    pub taken: u64,
    /// Rows written for them.
    pub rows: u64,
    /// Bytes of segments written for them.
    pub bytes: u64,
    /// Bytes of segments merged in the background.
    pub merged: u64,
}

/// What a job has done, at the end or so far.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// Epochs that were begun.
    pub epochs: u64,
    /// The sources, in the flow's order.
    pub sources: Vec<SourceSummary>,
    /// The window steps, in the flow's order.
    pub steps: Vec<StepSummary>,
    /// The tables, in the flow's order.
    pub tables: Vec<TableSummary>,
    /// The sinks, in the flow's order.
    pub sinks: Vec<SinkSummary>,
    /// Snapshots of its state.
    pub snapshots: SnapshotSummary,
}

impl Summary {
    /// Adds what another process of the job has done.
    pub fn add(&mut self, other: Summary) {
        let Summary { epochs, sources, steps, tables, sinks, snapshots } = other;
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
                known.watermark = known.watermark.max(other.watermark);
            },
        );
        add_by_name(
            &mut self.steps,
            steps,
            |step| &step.name,
            |known, other| {
                known.taken += other.taken;
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
                known.taken += other.taken;
                known.folded += other.folded;
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
    /// step, in = counted + late; at every table, in = folded.
    ///
    /// # Errors
    /// Names the source or step whose figures disagree. That is a fault of Tidegate, never of the data.
    pub fn check_conservation(&self) -> Result<()> {
        let fault = |place: String, figures: String| {
            let error = Error::new("records were lost or counted twice").at(place).because(figures);
            Err(error.help("this is a fault in Tidegate: do not use the results, and report it with these figures"))
        };
        for source in &self.sources {
            if source.read != source.accepted + source.rejected {
                let SourceSummary { read, accepted, rejected, .. } = source;
                let figures = format!("{read} read, but {accepted} accepted and {rejected} rejected");
                return fault(format!("source `{}`", source.name), figures);
            }
        }
        for step in &self.steps {
            if step.taken + step.loaded != step.counted + step.late {
                let StepSummary { taken, loaded, counted, late, .. } = step;
                let loaded = if *loaded > 0 { format!(" and {loaded} from the snapshot") } else { String::new() };
                let figures = format!("{taken} in{loaded}, but {counted} counted and {late} late");
                return fault(format!("step `{}`", step.name), figures);
            }
        }
        for TableSummary { name, taken, folded, .. } in &self.tables {
            if taken != folded {
                return fault(format!("table `{name}`"), format!("{taken} in, but {folded} folded"));
            }
        }
        Ok(())
    }
}

/// Says why so many records were late, and what to do.
pub(crate) fn after_idle(late: u64) -> String {
    format!(
        "{late} of the late ones were in order and came after their partition had been idle, when their windows had \
         closed: a longer --idle-timeout waits for them"
    )
}

/// Adds figures to those of the same name; those of a new name are put behind them.
fn add_by_name<T>(all: &mut Vec<T>, others: Vec<T>, name: fn(&T) -> &str, add: fn(&mut T, &T)) {
    for other in others {
        match all.iter_mut().find(|known| name(known) == name(&other)) {
            Some(known) => add(known, &other),
            None => all.push(other),
        }
    }
}

/// One line for each source, step, table and sink.
impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut lines = Vec::new();
        for source in &self.sources {
            let SourceSummary { name, read, accepted, rejected, .. } = source;
            lines.push(format!("{name}: {read} records read = {accepted} accepted + {rejected} rejected"));
        }
        for step in &self.steps {
            let StepSummary { name, taken, loaded, counted, late, late_after_idle, closed_rows } = step;
            let loaded = if *loaded > 0 { format!(" + {loaded} from the snapshot") } else { String::new() };
            let idle = if *late_after_idle > 0 { format!("; {}", after_idle(*late_after_idle)) } else { String::new() };
            lines.push(format!(
                "{name}: {taken} in{loaded} = {counted} counted + {late} late; {closed_rows} rows closed{idle}"
            ));
        }
        for table in &self.tables {
            let TableSummary { name, taken, folded, loaded, changes } = table;
            let loaded = if *loaded > 0 { format!("; {loaded} rows from the snapshot") } else { String::new() };
            lines.push(format!("{name}: {taken} in = {folded} folded{loaded}; {changes} changes"));
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
        other.step("totals").taken.add(7);
        one.sink("out").rows.add(2);
        one.epochs.add(9);
        let mut sum = one.summary();
        sum.add(other.summary());
        let read: Vec<_> = sum.sources.iter().map(|source| (source.name.as_str(), source.read)).collect();
        assert_eq!(read, [("a", 7), ("b", 5)]);
        assert_eq!((sum.epochs, sum.steps[0].taken, sum.sinks[0].rows), (9, 7, 2));
    }

    #[test]
    fn a_lost_record_is_named() {
        let metrics = Metrics::default();
        metrics.step("totals").taken.add(10);
        metrics.step("totals").counted.add(7);
        metrics.step("totals").late.add(3);
        assert_eq!(metrics.summary().check_conservation(), Ok(()));
        metrics.step("totals").taken.add(1);
        let error = metrics.summary().check_conservation().unwrap_err().to_string();
        assert!(error.contains("step `totals`") && error.contains("11 in, but 7 counted and 3 late"), "{error}");
    }
}
