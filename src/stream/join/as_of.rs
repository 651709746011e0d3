//! Joins of each record with the version of another stream at the record's time (as-of joins).
//!
//! * The records of the other stream are **versions** of what their key has: the version at a time is the one with the
//!   greatest time that is not later. Of several versions at one time the last by source, partition and offset counts, as
//!   in tables.
//! * A join looks for the last version up to the record's time (backward, the default), for the first from it on (forward),
//!   or for the nearest of both, the earlier one if both are equally far; and not farther away than the tolerance.
//! * A record is **decided** when the watermark of both streams has passed the last time at which a version could come
//!   that would be preferred: the record's own time in a backward join; else as long after it as the version that was
//!   found is away from it, or as the tolerance says if there is none. The result happens at that time: so it is never
//!   late downstream, and depends on the data alone.
//!
//! A version is removed when no record that is on time can need it: in a backward join the last one of a key stays, as the
//! row of a table does, unless there is a tolerance.
//!
//! Invariant: the records of a key are decided in the order of their times. For two records the later one's preferred
//! version is no earlier, so neither is the time at which it is certain.

use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::joined::{JoinInputs, Joined, moment};
use super::side::JoinSide;
use crate::record::Record;
use crate::stream::assign::{EventStamp, TimeRouter};
use crate::stream::keyed_rows::{KeyedOperator, KeyedRows};
use crate::stream::keyed_stream::Keyed;
use crate::stream::operator_state::Subscriptions;
use crate::stream::waiting_records::WaitingRecords;
use crate::time::{EventTime, Span};

impl<'f, K: Record, L: Record> Keyed<'f, K, L> {
    /// Joins each record with the version that another stream has of its key at the record's **event time**: the last one
    /// that is not later. Methods of the returned builder look forward or to both sides instead, set a tolerance, and say
    /// what is emitted. The step's name is unique in the query: state and metrics are found by it.
    ///
    /// The result is a function of the data, unlike that of [`Keyed::join_table`]: a record waits until the watermark of
    /// both streams has passed its time. Late records of either stream are left out. The last version of each key stays in
    /// the state, as a row of a table does, unless there is a [tolerance](JoinAsOf::tolerance).
    ///
    /// ```
    /// use tidegate::source::memory::MemorySource;
    /// use tidegate::testing::{Captured, TestRun};
    ///
    /// # fn main() -> tidegate::Result<()> {
    /// // (currency, rate, event time), and (currency, amount, event time): each sale at the rate of its time.
    /// let rates = MemorySource::new(vec![vec![('$', 90, 0), ('$', 95, 70)]], |rate: &(char, i64, i64)| rate.2);
    /// let sales = MemorySource::new(vec![vec![('$', 2, 30), ('$', 4, 80)]], |sale: &(char, i64, i64)| sale.2);
    /// let prices = Captured::<i64>::new();
    /// let output = prices.clone();
    /// TestRun::new().run(move |flow| {
    ///     let rates = flow.read("rates", &rates).key_by(|rate| rate.0);
    ///     flow.read("sales", &sales)
    ///         .key_by(|sale| sale.0)
    ///         .join_as_of("prices", rates)
    ///         .inner(|_, (_, amount, _), (_, rate, _)| amount * rate)
    ///         .results()
    ///         .write("prices", &output);
    /// })?;
    /// assert_eq!(prices.all(), [180, 380]);
    /// # Ok(()) }
    /// ```
    pub fn join_as_of<R: Record>(self, name: &str, versions: Keyed<'f, K, R>) -> JoinAsOf<'f, K, L, R> {
        let inputs = JoinInputs { name: name.to_owned(), left: self, right: versions };
        JoinAsOf { inputs, rule: AsOfRule { direction: Direction::Backward, tolerance: None } }
    }
}

/// A join with the version at the time of each record: see [`Keyed::join_as_of`].
pub struct JoinAsOf<'f, K, L, R> {
    inputs: JoinInputs<'f, K, L, R>,
    rule: AsOfRule,
}

impl<K, L, R> fmt::Debug for JoinAsOf<'_, K, L, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [key, left, right] = [std::any::type_name::<K>(), std::any::type_name::<L>(), std::any::type_name::<R>()];
        write!(f, "JoinAsOf<{key}, {left}, {right}> {:?}", self.rule)
    }
}

impl<'f, K: Record, L: Record, R: Record> JoinAsOf<'f, K, L, R> {
    /// Looks for the first version that is not earlier than the record, instead of the last that is not later. The result
    /// happens at the version's time. Without a [tolerance](JoinAsOf::tolerance) a record waits for a version until the
    /// streams end.
    #[must_use]
    pub fn forward(mut self) -> Self {
        self.rule.direction = Direction::Forward;
        self
    }

    /// Looks for the version whose time is nearest to the record's; the earlier one of two that are equally far away. The
    /// result happens as long after the record as the version is away from it: only then it is certain. Without a
    /// [tolerance](JoinAsOf::tolerance) a record without an earlier version waits for a later one until the streams end.
    #[must_use]
    pub fn nearest(mut self) -> Self {
        self.rule.direction = Direction::Nearest;
        self
    }

    /// Ignores versions whose times are farther from the record's than this, a whole number of milliseconds. Versions are
    /// then removed when they are that old.
    #[must_use]
    pub fn tolerance(mut self, tolerance: Duration) -> Self {
        self.rule.tolerance = Some(self.inputs.span("tolerance", tolerance));
        self
    }

    /// Emits what `row` returns for each record that has a version.
    pub fn inner<O: Record>(self, row: impl Fn(&K, &L, &R) -> O + 'static) -> Joined<'f, L, R, O> {
        self.build("inner", move |key, left, right| right.map(|right| row(key, left, right)))
    }

    /// Emits what `row` returns for each record, with its version if it has one.
    pub fn left_outer<O: Record>(self, row: impl Fn(&K, &L, Option<&R>) -> O + 'static) -> Joined<'f, L, R, O> {
        self.build("left outer", move |key, left, right| Some(row(key, left, right)))
    }

    fn build<O: Record>(
        self,
        kind: &str,
        row: impl Fn(&K, &L, Option<&R>) -> Option<O> + 'static,
    ) -> Joined<'f, L, R, O> {
        let JoinAsOf { inputs, rule } = self;
        let lateness = inputs.lateness();
        let metrics = inputs.left.stream.flow.build.metrics.step(&inputs.name);
        let tolerance = rule.tolerance.map(|span| format!(" within {} ms", span.millis())).unwrap_or_default();
        let detail = format!("{kind} join with versions, {:?}{tolerance}", rule.direction);
        inputs.step(&detail, lateness, (TimeRouter(lateness), TimeRouter(lateness)), move |start| {
            let versions = Versions { rule, row, types: PhantomData };
            KeyedRows::begin(versions, (start.closed, start.durable), (Subscriptions::default(), lateness), metrics)
        })
    }
}

/// The side of a record on which its version is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    Backward,
    Forward,
    Nearest,
}

/// The rule by which the version of a record is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct AsOfRule {
    direction: Direction,
    tolerance: Option<Span>,
}

/// Returns how far two times are from each other.
fn distance(a: EventTime, b: EventTime) -> Span {
    let apart = a.millis().abs_diff(b.millis());
    Span::saturating_from_millis(i64::try_from(apart).unwrap_or(i64::MAX))
}

impl AsOfRule {
    /// Returns the preferred one of a key's versions, which are in order; and the last time at which one could come that
    /// would be preferred to it.
    fn find<R>(self, versions: &[(EventStamp, R)], time: EventTime) -> (Option<&R>, EventTime) {
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
    fn unneeded<R>(self, versions: &[(EventStamp, R)], from: EventTime) -> usize {
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
}

/// The records of a key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(bound = "L: Record, R: Record")]
pub(crate) struct AsOfRecords<L: Ord, R> {
    /// The least time that has an effect when the key is advanced to it.
    due: EventTime,
    /// Versions that may be needed, in order.
    versions: Vec<(EventStamp, R)>,
    /// Records that are not decided.
    waiting: WaitingRecords<(EventStamp, L)>,
}

/// Inserts a version in order; most come in order.
fn insert_version<R: Ord>(versions: &mut Vec<(EventStamp, R)>, version: (EventStamp, R)) {
    let at = match versions.last() {
        Some(last) if *last > version => versions.partition_point(|other| *other <= version),
        _ => versions.len(),
    };
    versions.insert(at, version);
}

/// Finds versions, and makes rows of records and versions.
struct Versions<K, L, R, O, M> {
    rule: AsOfRule,
    row: M,
    types: PhantomData<fn(K, L, R) -> O>,
}

impl<K, L: Record, R: Record, O, M> Versions<K, L, R, O, M> {
    fn due_of(&self, records: &AsOfRecords<L, R>) -> EventTime {
        match records.waiting.first_time() {
            Some(time) => self.rule.find(&records.versions, time).1.next(),
            None => self.rule.unneeded_at(&records.versions),
        }
    }
}

impl<K, L, R, O, M> KeyedOperator for Versions<K, L, R, O, M>
where
    K: Record,
    L: Record,
    R: Record,
    O: Record,
    M: Fn(&K, &L, Option<&R>) -> Option<O> + 'static,
{
    type Key = K;
    type Part = JoinSide<L, R>;
    type Row = AsOfRecords<L, R>;
    type Closed = (EventTime, O);
    type Value = ();

    const EXPIRES: bool = false;

    fn expires_at(_row: &Self::Row) -> EventTime {
        EventTime::MAX
    }

    fn begin(&self, stamp: EventStamp, part: Self::Part) -> Self::Row {
        let mut row = AsOfRecords { due: EventTime::MAX, versions: Vec::new(), waiting: WaitingRecords::empty() };
        self.absorb(&mut row, stamp, part);
        row
    }

    fn absorb(&self, row: &mut Self::Row, stamp: EventStamp, part: Self::Part) {
        match part {
            JoinSide::Left(record) => row.waiting.insert((stamp, record)),
            JoinSide::Right(version) => insert_version(&mut row.versions, (stamp, version)),
        }
        row.due = self.due_of(row);
    }

    fn due(row: &Self::Row) -> EventTime {
        row.due
    }

    fn advance(&self, key: &K, row: &mut Self::Row, to: EventTime, closed: &mut Vec<Self::Closed>) -> i64 {
        let AsOfRecords { versions, waiting, .. } = row;
        let mut decided = 0;
        while let Some(((time, _), record)) = waiting.first() {
            let (version, certain) = self.rule.find(versions, *time);
            if certain >= to && to != EventTime::MAX {
                break;
            }
            decided += 1;
            closed.extend((self.row)(key, record, version).map(|made| (moment(certain), made)));
            waiting.pop_first();
        }
        let needed_from = waiting.first_time().map_or(to, |time| to.min(time));
        let unneeded = if to == EventTime::MAX { versions.len() } else { self.rule.unneeded(versions, needed_from) };
        versions.drain(..unneeded);
        row.due = self.due_of(row);
        (decided + unneeded) as i64
    }

    fn is_finished(row: &Self::Row) -> bool {
        row.versions.is_empty() && row.waiting.is_empty()
    }

    fn count(row: &Self::Row) -> i64 {
        (row.versions.len() + row.waiting.len()) as i64
    }
}
