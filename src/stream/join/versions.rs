//! The versions of a key of an as-of join: the rule by which the version of a record is found, and the row that snapshots
//! keep. See [`JoinAsOf`](super::JoinAsOf).

use serde::{Deserialize, Serialize};

use crate::record::Record;
use crate::stream::assign::EventStamp;
use crate::stream::waiting_records::WaitingRecords;
use crate::time::{EventTime, Span};

/// The side of a record on which its version is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    Backward,
    Forward,
    Nearest,
}

/// The rule by which the version of a record is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct AsOfRule {
    pub(super) direction: Direction,
    pub(super) tolerance: Option<Span>,
}

/// Returns how far two times are from each other.
fn distance(a: EventTime, b: EventTime) -> Span {
    let apart = a.millis().abs_diff(b.millis());
    Span::saturating_from_millis(i64::try_from(apart).unwrap_or(i64::MAX))
}

impl AsOfRule {
    /// Returns the preferred one of a key's versions, which are in order; and the last time at which one could come that
    /// would be preferred to it.
    pub(super) fn find<R>(self, versions: &[(EventStamp, R)], time: EventTime) -> (Option<&R>, EventTime) {
        let last_through = |time: EventTime| {
            let after = versions.partition_point(|((at, _), _)| *at <= time);
            after.checked_sub(1).map(|last| &versions[last])
        };
        let backward = last_through(time).filter(|_| self.direction != Direction::Forward);
        let forward = || {
            let from = versions.partition_point(|((at, _), _)| *at < time);
            // The last one of those at the first time.
            versions.get(from).and_then(|((first, _), _)| last_through(*first))
        };
        let forward = if self.direction == Direction::Backward { None } else { forward() };
        let nearest = match (backward, forward) {
            (Some(one), Some(other)) if distance(one.0.0, time) > distance(other.0.0, time) => Some(other),
            (one, other) => one.or(other),
        };
        let found = nearest.filter(|((at, _), _)| self.tolerance.is_none_or(|most| distance(*at, time) <= most));
        let certain = match (self.direction, found, self.tolerance) {
            (Direction::Backward, ..) => time,
            (_, Some(((at, _), _)), _) => time.plus(distance(*at, time)),
            (_, None, Some(tolerance)) => time.plus(tolerance),
            (_, None, None) => EventTime::MAX,
        };
        (found.map(|(_, version)| version), certain)
    }

    /// Returns how many of a key's versions no record at `from` or later needs.
    pub(super) fn unneeded<R>(self, versions: &[(EventStamp, R)], from: EventTime) -> usize {
        let superseded = match self.direction {
            Direction::Forward => versions.partition_point(|((at, _), _)| *at < from),
            _ => versions.partition_point(|((at, _), _)| *at <= from).saturating_sub(1),
        };
        let too_old = |tolerance: Span| versions.partition_point(|((at, _), _)| at.plus(tolerance) < from);
        superseded.max(self.tolerance.map_or(0, too_old))
    }

    /// Returns the least time that makes the first of a key's versions unneeded.
    fn unneeded_at<R>(self, versions: &[(EventStamp, R)]) -> EventTime {
        let first = versions.first().map(|((at, _), _)| *at);
        let superseded = match self.direction {
            Direction::Forward => first.map(EventTime::next),
            _ => versions.get(1).map(|((at, _), _)| *at),
        };
        let too_old = self.tolerance.zip(first).map(|(tolerance, first)| first.plus(tolerance).next());
        superseded.into_iter().chain(too_old).min().unwrap_or(EventTime::MAX)
    }

    /// Returns the least time that has an effect when a key with these records is advanced to it.
    pub(super) fn due<L: Ord, R>(
        self,
        versions: &[(EventStamp, R)],
        waiting: &WaitingRecords<(EventStamp, L)>,
    ) -> EventTime {
        match waiting.first_time() {
            Some(time) => self.find(versions, time).1.next(),
            None => self.unneeded_at(versions),
        }
    }
}

/// The records of a key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(bound = "L: Record, R: Record")]
pub(crate) struct AsOfRecords<L: Ord, R> {
    /// The least time that has an effect when the key is advanced to it.
    pub(super) due: EventTime,
    /// Versions that may be needed, in order.
    pub(super) versions: Vec<(EventStamp, R)>,
    /// Records that are not decided.
    pub(super) waiting: WaitingRecords<(EventStamp, L)>,
}

/// Inserts a version in order; most come in order.
pub(super) fn insert_version<R: Ord>(versions: &mut Vec<(EventStamp, R)>, version: (EventStamp, R)) {
    let at = match versions.last() {
        Some(last) if *last > version => versions.partition_point(|other| *other <= version),
        _ => versions.len(),
    };
    versions.insert(at, version);
}
