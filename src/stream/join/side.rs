//! The records of one side of a join that wait for records of the other side, in the order of event time.
//!
//! A record is found by binary search; most records are appended at the end, and leave at the front. Snapshots keep each
//! record as a row of its own: a segment has the records that came since the last seal, and those that found their first
//! match since then. So a seal writes what has changed, however many records a key has.
//!
//! Records that are equal in stream, position and content, such as results of windows, are one saved row with a count.

use std::collections::VecDeque;
use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::record::Record;
use crate::stream::assign::EventStamp;
use crate::stream::checkpoint::RowOps;
use crate::time::EventTime;

/// The rows that a join emits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum JoinKind {
    Inner,
    LeftOuter,
    RightOuter,
    FullOuter,
    Semi,
    Anti,
}

impl JoinKind {
    pub(super) fn emits_pairs(self) -> bool {
        !matches!(self, JoinKind::Semi | JoinKind::Anti)
    }

    pub(super) fn emits_left_alone(self) -> bool {
        matches!(self, JoinKind::LeftOuter | JoinKind::FullOuter | JoinKind::Anti)
    }

    pub(super) fn emits_right_alone(self) -> bool {
        matches!(self, JoinKind::RightOuter | JoinKind::FullOuter)
    }

    /// Returns `true` if rows are emitted when the watermark has passed a time.
    pub(super) fn emits_at_the_end(self) -> bool {
        self != JoinKind::Inner
    }
}

/// A record of either stream.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(bound = "L: Record, R: Record")]
pub(crate) enum JoinSide<L, R> {
    Left(L),
    Right(R),
}

/// A saved record of either stream: its key, its position and the record; with what has changed of it.
pub(crate) type SavedRecord<K, L, R> = ((K, EventStamp, JoinSide<L, R>), SavedChange);

/// The change of a saved record since the segment before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct SavedChange {
    /// The record is expired when the step has closed this time.
    until: EventTime,
    /// The number of equal records that were added.
    count: u32,
    /// The event time of the earliest pair that the record is in; [`EventTime::MAX`] if there is none.
    matched_at: EventTime,
}

/// Returns the functions that order, add and classify saved records.
pub(crate) fn saved_records<K: Record, L: Record, R: Record>() -> RowOps<SavedRecord<K, L, R>> {
    RowOps {
        order: |a, b| a.0.cmp(&b.0),
        add: |(_, sum), (_, other)| sum.add(*other),
        is_zero: |_| false,
        is_tombstone: |_| false,
        window: |(_, change)| change.until,
    }
}

impl SavedChange {
    fn add(&mut self, other: SavedChange) {
        self.until = self.until.max(other.until);
        self.count = self.count.saturating_add(other.count);
        self.matched_at = self.matched_at.min(other.matched_at);
    }

    pub(super) fn is_expired(self, closed: EventTime) -> bool {
        self.until <= closed
    }

    /// Returns the number of equal records, and the time of their earliest pair.
    pub(super) fn parts(self) -> (u32, EventTime) {
        (self.count, self.matched_at)
    }
}

/// Sorts saved records, and adds those of one record.
pub(super) fn consolidate<K: Record, L: Record, R: Record>(rows: &mut Vec<SavedRecord<K, L, R>>) {
    rows.sort_unstable_by(|a, b| a.0.cmp(&b.0));
    rows.dedup_by(|next, kept| {
        let is_same = next.0 == kept.0;
        if is_same {
            kept.1.add(next.1);
        }
        is_same
    });
}

/// The part of a record that is not in a segment yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unsealed {
    Nothing,
    Match,
    Record,
}

/// A record that waits for others.
#[derive(Debug)]
pub(super) struct WaitingRecord<D> {
    pub(super) data: D,
    /// The event time of the earliest pair that the record is in; [`EventTime::MAX`] if there is none.
    pub(super) matched_at: EventTime,
    // An `EventStamp`, as its parts: so there is room for what is not sealed between them.
    time: EventTime,
    offset: u64,
    partition: u32,
    source: u16,
    unsealed: Unsealed,
}

impl<D: Record> WaitingRecord<D> {
    /// Creates a record that is in no segment yet.
    pub(super) fn new(stamp: EventStamp, data: D) -> Self {
        Self::with(stamp, data, EventTime::MAX, Unsealed::Record)
    }

    /// Creates a record that was read from a segment.
    pub(super) fn loaded(stamp: EventStamp, data: D, matched_at: EventTime) -> Self {
        Self::with(stamp, data, matched_at, Unsealed::Nothing)
    }

    /// Creates a record without a pair; `is_new` if it is in no segment yet.
    pub(super) fn kept(stamp: EventStamp, data: D, is_new: bool) -> Self {
        Self::with(stamp, data, EventTime::MAX, if is_new { Unsealed::Record } else { Unsealed::Nothing })
    }

    #[inline]
    fn with(stamp: EventStamp, data: D, matched_at: EventTime, unsealed: Unsealed) -> Self {
        let (time, (source, partition, offset)) = stamp;
        WaitingRecord { data, matched_at, time, offset, partition, source, unsealed }
    }

    pub(super) fn time(&self) -> EventTime {
        self.time
    }

    fn stamp(&self) -> EventStamp {
        (self.time, (self.source, self.partition, self.offset))
    }

    /// Notes a pair that happens at a time.
    #[inline]
    pub(super) fn note_match(&mut self, at: EventTime) {
        if at < self.matched_at {
            self.matched_at = at;
            if self.unsealed == Unsealed::Nothing {
                self.unsealed = Unsealed::Match;
            }
        }
    }

    /// Returns the record's change since the last seal, and the record itself; `None` if it has not changed.
    pub(super) fn seal(&mut self, until: EventTime) -> Option<(EventStamp, D, SavedChange)> {
        let count = match std::mem::replace(&mut self.unsealed, Unsealed::Nothing) {
            Unsealed::Nothing => return None,
            Unsealed::Match => 0,
            Unsealed::Record => 1,
        };
        Some((self.stamp(), self.data.clone(), SavedChange { until, count, matched_at: self.matched_at }))
    }
}

/// The waiting records of a key of one side, in the order of event time.
#[derive(Debug)]
pub(super) struct SideRecords<D>(VecDeque<WaitingRecord<D>>);

impl<D> Default for SideRecords<D> {
    fn default() -> Self {
        SideRecords(VecDeque::new())
    }
}

impl<D: Record> SideRecords<D> {
    /// Adds a record where it belongs.
    pub(super) fn insert(&mut self, record: WaitingRecord<D>) {
        if self.0.back().is_none_or(|last| last.stamp() <= record.stamp()) {
            self.0.push_back(record);
        } else {
            let at = self.0.partition_point(|other| other.stamp() <= record.stamp());
            self.0.insert(at, record);
        }
    }

    /// Returns the records whose times are from `first` to `last`, both included.
    pub(super) fn between(
        &mut self,
        first: EventTime,
        last: EventTime,
    ) -> impl Iterator<Item = &mut WaitingRecord<D>> + '_ {
        let from = self.0.partition_point(|record| record.time() < first);
        self.0.range_mut(from..).take_while(move |record| record.time() <= last)
    }

    /// Returns the numbers of the records whose times are from `first` to `last`, both included.
    pub(super) fn within(&self, first: EventTime, last: EventTime) -> Range<usize> {
        let from = self.0.partition_point(|record| record.time() < first);
        let records = self.0.range(from..);
        from..from + records.take_while(|record| record.time() <= last).count()
    }

    /// Returns the records of these numbers, without their positions.
    pub(super) fn data_of(&self, numbers: Range<usize>) -> impl Iterator<Item = &D> + Clone + '_ {
        self.0.range(numbers).map(|record| &record.data)
    }

    /// Returns the earliest record.
    pub(super) fn first(&self) -> Option<&WaitingRecord<D>> {
        self.0.front()
    }

    /// Removes the earliest record if `is_over` returns `true` for it.
    pub(super) fn next_if(&mut self, is_over: impl FnOnce(&WaitingRecord<D>) -> bool) -> Option<WaitingRecord<D>> {
        self.0.pop_front_if(|first| is_over(first))
    }

    /// Removes the earliest records, as many as `is_over` returns `true` for; returns their number.
    pub(super) fn remove_while(&mut self, mut is_over: impl FnMut(&WaitingRecord<D>) -> bool) -> u64 {
        let over = self.0.iter().take_while(|record| is_over(record)).count();
        if over == self.0.len() {
            self.0.clear();
        } else {
            self.0.drain(..over);
        }
        over as u64
    }

    /// Calls `each` with the changes of all records since the last seal. `until` says when a record of a time expires.
    fn seal(&mut self, until: impl Fn(EventTime) -> EventTime, each: impl FnMut((EventStamp, D, SavedChange))) {
        self.0.iter_mut().filter_map(|record| record.seal(until(record.time()))).for_each(each);
    }
}

impl<D> SideRecords<D> {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// The waiting records of a key.
pub(super) struct KeyRecords<L, R> {
    pub(super) left: SideRecords<L>,
    pub(super) right: SideRecords<R>,
    /// The least time at which something is due; of a key that is woken, the time at which it is, which may be earlier.
    pub(super) due: EventTime,
    /// `true` if a record has changed since the last seal.
    pub(super) unsealed: bool,
}

impl<L, R> Default for KeyRecords<L, R> {
    fn default() -> Self {
        let (left, right) = (SideRecords::default(), SideRecords::default());
        KeyRecords { left, right, due: EventTime::MAX, unsealed: false }
    }
}

impl<L, R> KeyRecords<L, R> {
    pub(super) fn len(&self) -> usize {
        self.left.len() + self.right.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.left.is_empty() && self.right.is_empty()
    }
}

impl<L: Record, R: Record> KeyRecords<L, R> {
    /// Appends the changes of all records since the last seal. `until` says when a left and a right record of a time
    /// expires.
    pub(super) fn seal<K: Record>(
        &mut self,
        key: &K,
        until: (impl Fn(EventTime) -> EventTime, impl Fn(EventTime) -> EventTime),
        rows: &mut Vec<SavedRecord<K, L, R>>,
    ) {
        self.unsealed = false;
        self.left
            .seal(until.0, |(stamp, data, change)| rows.push(((key.clone(), stamp, JoinSide::Left(data)), change)));
        self.right
            .seal(until.1, |(stamp, data, change)| rows.push(((key.clone(), stamp, JoinSide::Right(data)), change)));
    }
}
