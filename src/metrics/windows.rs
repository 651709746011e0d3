//! The open windows of a step, as its workers last reported them.
//!
//! A report is bounded: it has the first windows by their ends, and the number of all. It is made a few times a second,
//! from numbers that the step keeps anyway: no row is looked at, and no window but the first ones.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use crate::time::EventTime;

/// The number of windows that a report has at most.
pub(crate) const MOST_WINDOWS: usize = 24;

/// A window, and its rows on one worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WindowRows {
    pub(crate) start: EventTime,
    pub(crate) end: EventTime,
    /// Number of its rows; at most that many, unless `exact`.
    pub(crate) rows: u64,
    /// `true` if `rows` is exact. Rows that are partly in segments and partly in memory may be counted twice.
    pub(crate) exact: bool,
}

/// The windows of a step on one worker.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct WorkerWindows {
    /// The first open windows by their ends, at most [`MOST_WINDOWS`].
    pub(crate) first: Vec<WindowRows>,
    /// Number of all open windows.
    pub(crate) open: u64,
    /// The last window that has closed with rows in this incarnation, and the time at which it did.
    pub(crate) closed: Option<(WindowRows, Instant)>,
    /// Number of keys, if the step keeps its rows by key alone, as sessions are.
    pub(crate) keys: Option<u64>,
    /// The least watermark at which one of these keys may have results.
    pub(crate) next_at: Option<EventTime>,
}

/// The last reports of a step's workers, by their numbers.
#[derive(Debug, Default)]
pub(crate) struct WindowReports(Mutex<BTreeMap<usize, WorkerWindows>>);

impl WindowReports {
    /// Stores the report of a worker, instead of its last one.
    pub(crate) fn put(&self, worker: usize, windows: WorkerWindows) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(worker, windows);
    }

    /// Returns the last report of each worker; none for a step without windows.
    pub(crate) fn all(&self) -> Vec<WorkerWindows> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }
}
