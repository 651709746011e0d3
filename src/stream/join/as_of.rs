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

use super::backward::BackwardState;
use super::joined::{JoinInputs, Joined, moment};
use super::side::JoinSide;
use super::versions::{AsOfRecords, AsOfRule, Direction, insert_version};
use crate::record::Record;
use crate::stream::assign::{EventStamp, TimeRouter};
use crate::stream::keyed_rows::{KeyedOperator, KeyedRows};
use crate::stream::keyed_stream::Keyed;
use crate::stream::operator_state::Subscriptions;
use crate::stream::waiting_records::WaitingRecords;
use crate::time::EventTime;

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
        let routers = (TimeRouter(lateness), TimeRouter(lateness));
        if rule.direction == Direction::Backward {
            return inputs.step(&detail, lateness, routers, move |start| {
                BackwardState::begin((rule, row), (start.closed, start.durable), lateness, metrics)
            });
        }
        inputs.step(&detail, lateness, routers, move |start| {
            let versions = Versions { rule, row, types: PhantomData };
            KeyedRows::begin(versions, (start.closed, start.durable), (Subscriptions::default(), lateness), metrics)
        })
    }
}

/// Finds versions, and makes rows of records and versions.
struct Versions<K, L, R, O, M> {
    rule: AsOfRule,
    row: M,
    types: PhantomData<fn(K, L, R) -> O>,
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
        row.due = self.rule.due(&row.versions, &row.waiting);
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
        row.due = self.rule.due(&row.versions, &row.waiting);
        (decided + unneeded) as i64
    }

    fn is_finished(row: &Self::Row) -> bool {
        row.versions.is_empty() && row.waiting.is_empty()
    }

    fn count(row: &Self::Row) -> i64 {
        (row.versions.len() + row.waiting.len()) as i64
    }
}
