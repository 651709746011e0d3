//! Notices of a source that are logged once in a process, by the worker that has the reason first.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use crate::time::EventTime;

/// The record with the greatest event time of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LatestRecord {
    /// The record's event time.
    pub(crate) time: EventTime,
    /// The file.
    pub(crate) place: String,
    /// The position of the record's first byte.
    pub(crate) offset: u64,
    /// The record's line, from 1; `None` if unknown.
    pub(crate) line: Option<u64>,
}

/// Notices of a source, each logged once, by the worker that sees it first.
#[derive(Debug, Default)]
pub(crate) struct Notices {
    rejects_are_kept: AtomicBool,
    reject_told: AtomicBool,
    unit_told: AtomicBool,
    /// The greatest event time as its [`rank`]; 0 before the first.
    peak_time: AtomicU64,
    peak: Mutex<Option<LatestRecord>>,
    /// Topic, or path of the file.
    place: OnceLock<String>,
}

impl Notices {
    /// Suppresses the notice of the first rejected record: rejected records go to a sink.
    pub(crate) fn suppress_reject_notice(&self) {
        self.rejects_are_kept.store(true, Ordering::Relaxed);
    }

    /// Returns `true` if a rejected record must be logged: once, if rejected records go to no sink.
    pub(crate) fn should_log_reject(&self) -> bool {
        !self.rejects_are_kept.load(Ordering::Relaxed) && !self.reject_told.swap(true, Ordering::Relaxed)
    }

    /// Notes the topic or file of the source.
    pub(crate) fn note_place(&self, place: &str) {
        self.place.get_or_init(|| place.to_owned());
    }

    /// Returns the topic or file of the source; `None` before a worker reads it.
    pub(crate) fn place(&self) -> Option<&str> {
        self.place.get().map(String::as_str)
    }

    /// Returns `true` if the unit of event times must be logged: once.
    pub(crate) fn should_log_unit(&self) -> bool {
        !self.unit_told.swap(true, Ordering::Relaxed)
    }

    /// `true` if `time` is greater than every event time noted so far.
    pub(crate) fn is_peak(&self, time: EventTime) -> bool {
        rank(time) > self.peak_time.load(Ordering::Relaxed)
    }

    /// Notes a record with a great event time; of records with equal times the first stays.
    pub(crate) fn note_peak(&self, peak: LatestRecord) {
        let mut known = self.peak.lock().unwrap_or_else(PoisonError::into_inner);
        if known.as_ref().is_none_or(|known| known.time < peak.time) {
            self.peak_time.store(rank(peak.time), Ordering::Relaxed);
            *known = Some(peak);
        }
    }

    /// Returns the noted record with the greatest event time; `None` if there is none.
    pub(crate) fn peak(&self) -> Option<LatestRecord> {
        self.peak.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// An event time as a number that is 0 for the least one.
fn rank(time: EventTime) -> u64 {
    time.millis().wrapping_sub(i64::MIN) as u64
}
