//! Counters of sources, steps, tables, sinks, journals and snapshots.
//!
//! Invariant: a counter only grows; a reader needs no lock.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::notices::Notices;
use super::recent::{LateExample, RecentRing, RejectExample};
use super::windows::WindowReports;
use crate::time::EventTime;

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `count`.
    #[inline]
    pub(crate) fn add(&self, count: u64) {
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
    pub(crate) fn set(&self, time: EventTime) {
        self.0.store(time.millis(), Ordering::Relaxed);
    }

    /// Advances the gauge to `time`, unless it is at or past that.
    pub(crate) fn raise(&self, time: EventTime) {
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
    pub(crate) fn set(&self, length: Duration) {
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
#[non_exhaustive]
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
    /// Offsets that were skipped because their records had expired before they were read.
    pub expired: Counter,
    /// The watermark of the source's stream.
    pub watermark: TimeGauge,
    /// The time without records after which a partition of the source is idle.
    pub idle_after: DurationSetting,
    /// `true` if the source is read as a table, whose watermark has no meaning.
    pub is_timeless: Flag,
    /// Notices that are logged once.
    pub(crate) notices: Notices,
    /// The last records rejected.
    pub(crate) recent_rejects: RecentRing<RejectExample>,
}

/// The counters of a window step.
#[derive(Debug, Default)]
#[non_exhaustive]
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
    pub(crate) lateness_ms: AtomicU64,
    /// The last records that were late.
    pub(crate) recent_late: RecentRing<LateExample>,
    /// The open windows, as the workers last reported them.
    pub(crate) windows: WindowReports,
}

/// The counters of a table.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct TableMetrics {
    /// Records received.
    pub received: Counter,
    /// Records that were compared with the table's rows.
    pub compared: Counter,
    /// Rows loaded from the snapshot that the job resumed from; a key may have several.
    pub loaded: Counter,
    /// Row changes: rows retracted and rows added.
    pub changes: Counter,
    /// Checked changes that did not fit the table's row.
    pub differences: Counter,
}

/// The counters of a sink.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct SinkMetrics {
    /// Rows published.
    pub rows: Counter,
    /// Epochs in which rows were published.
    pub epochs: Counter,
}

/// The cost of a journal's syncs.
#[derive(Debug, Default)]
pub(crate) struct SyncMetrics {
    /// Number of syncs.
    pub(crate) count: Counter,
    /// Bytes written.
    pub(crate) bytes: Counter,
    micros: Counter,
}

impl SyncMetrics {
    /// Counts a sync of `bytes` bytes that took `took`.
    pub(crate) fn add(&self, bytes: u64, took: Duration) {
        self.count.add(1);
        self.bytes.add(bytes);
        self.micros.add(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
    }

    /// Total duration of writing and syncing.
    pub(crate) fn time(&self) -> Duration {
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
    pub(crate) fn add(&self, snapshot: Snapshot) {
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
