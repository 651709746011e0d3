//! Running aggregates: for each record, the aggregate of the records of its key shortly before it, as in SQL's
//! `OVER (PARTITION BY key ORDER BY time ROWS | RANGE … PRECEDING)`.
//!
//! * Records of a key wait until the watermark has passed them, so that they are aggregated in the order of event time,
//!   whatever the order of arrival; those of equal time are ordered by source, partition and offset.
//! * A record's **frame** is the records that are aggregated with it: [`Preceding`]. A frame of rows counts them; a frame
//!   of time also has the records of equal time that come after it in that order, as `RANGE` has in SQL.
//! * A frame moves on by two stacks, so that it needs no inverse of the aggregate, and about two merges a record however
//!   long it is: records are added to the newer part, with its running total; the older part has, for each of its
//!   records, the total from that record to its end. Leaving the frame is popping from the older part; when it is empty,
//!   the newer part is turned over into it.
//!
//! Invariant: results, and the rows that snapshots keep, are a function of the key's records, not of epochs: which total
//! is where depends on the order of event time alone.

use std::fmt;
use std::marker::PhantomData;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use differential_dataflow::difference::Semigroup;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::record::{Event, Record};
use crate::stream::Stream;
use crate::stream::aggregate::{Accumulator, Aggregate, AggregateNames, Each, describe_filters};
use crate::stream::assign::EventStamp;
use crate::stream::counted::Counted;
use crate::stream::interval::Interval;
use crate::stream::keyed_rows::{self, KeyedOperator};
use crate::stream::keyed_stream::Keyed;
use crate::stream::panes::whole_millis;
use crate::stream::value_reporter::ValueReporter;
use crate::stream::waiting_records::WaitingRecords;
use crate::stream::window_operator::StepOutputs;
use crate::time::{EventTime, Span};

/// The records of a key that are aggregated with a record: itself, and some of those before it in event time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Preceding(FrameKind);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FrameKind {
    Rows(u64),
    Range(Duration),
    Unbounded,
}

impl Preceding {
    /// The record, and up to `preceding` records before it: `ROWS preceding PRECEDING` in SQL.
    pub const fn rows(preceding: u64) -> Self {
        Preceding(FrameKind::Rows(preceding))
    }

    /// The records whose event time is at most `preceding` before the record's own, and not after it: `RANGE preceding
    /// PRECEDING` in SQL. Records of equal time are in each other's frames. `preceding` is a whole number of
    /// milliseconds; zero is the records of equal time.
    pub const fn range(preceding: Duration) -> Self {
        Preceding(FrameKind::Range(preceding))
    }

    /// The record and all before it: `ROWS UNBOUNDED PRECEDING` in SQL. One total is kept for each key, for ever.
    pub const fn unbounded() -> Self {
        Preceding(FrameKind::Unbounded)
    }

    /// Checks the frame, and converts its length.
    fn limit(self) -> Result<FrameLimit> {
        match self.0 {
            FrameKind::Rows(preceding) => Ok(FrameLimit::Rows(i64::try_from(preceding).unwrap_or(i64::MAX))),
            FrameKind::Unbounded => Ok(FrameLimit::Unbounded),
            FrameKind::Range(preceding) => {
                let millis = whole_millis("range", preceding).map_err(|_| {
                    let written = humantime::format_duration(preceding);
                    Error::usage(format!("a frame of {written} is not a whole number of milliseconds"))
                })?;
                Ok(FrameLimit::Range(Span::saturating_from_millis(millis)))
            }
        }
    }
}

/// The length of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FrameLimit {
    /// Preceding records.
    Rows(i64),
    /// Time before the record's own.
    Range(Span),
    Unbounded,
}

impl fmt::Display for FrameLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FrameLimit::Rows(preceding) => write!(f, "over {preceding} preceding records"),
            FrameLimit::Range(preceding) => write!(f, "over {} ms preceding", preceding.millis()),
            FrameLimit::Unbounded => f.write_str("over all preceding records"),
        }
    }
}

/// The records of a key that the watermark has passed and that later frames may have.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(bound = "S: Record")]
struct PassedRecords<S> {
    /// For each record of the older part, the oldest one last: its time, and the total from it to the part's end.
    older: Vec<(EventTime, Counted<S>)>,
    /// Each record of the newer part, the oldest one first: its time and its accumulator. Empty in unbounded frames.
    newer: Vec<(EventTime, S)>,
    /// The total of the newer part.
    newer_total: Option<Counted<S>>,
    /// The time from which on no frame has any of them; [`EventTime::MAX`] if there is none.
    expires: EventTime,
}

impl<S: Accumulator> PassedRecords<S> {
    const fn empty() -> Self {
        PassedRecords { older: Vec::new(), newer: Vec::new(), newer_total: None, expires: EventTime::MAX }
    }

    fn is_empty(&self) -> bool {
        self.older.is_empty() && self.newer_total.is_none()
    }

    /// Adds a record; `keep` if it can leave the frame.
    fn push(&mut self, time: EventTime, sum: S, keep: bool) {
        let one = Counted { count: 1, sum };
        match &mut self.newer_total {
            Some(total) => total.plus_equals(&one),
            none => *none = Some(one.clone()),
        }
        if keep {
            self.newer.push((time, one.sum));
        }
    }

    /// Removes the oldest record.
    fn pop(&mut self) {
        if self.older.is_empty() {
            let mut total: Option<Counted<S>> = None;
            for (time, sum) in self.newer.drain(..).rev() {
                let mut from = Counted { count: 1, sum };
                if let Some(total) = &total {
                    from.plus_equals(total);
                }
                self.older.push((time, from.clone()));
                total = Some(from);
            }
            self.newer_total = None;
        }
        self.older.pop();
    }

    fn oldest(&self) -> Option<EventTime> {
        self.older.last().map(|(time, _)| *time).or(self.newer.first().map(|(time, _)| *time))
    }

    fn total(&self) -> Option<Counted<S>> {
        match (self.older.last(), &self.newer_total) {
            (Some((_, older)), Some(newer)) => {
                let mut total = older.clone();
                total.plus_equals(newer);
                Some(total)
            }
            (Some((_, older)), None) => Some(older.clone()),
            (None, newer) => newer.clone(),
        }
    }

    fn count(&self) -> i64 {
        self.older.last().map_or(0, |(_, older)| older.count) + self.newer_total.as_ref().map_or(0, |newer| newer.count)
    }
}

/// The row of a key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(bound = "D: Record, P: Record, S: Record")]
pub(crate) struct RunningState<D: Ord, P: Ord, S> {
    passed: PassedRecords<S>,
    /// Records that the watermark has not passed, with what the aggregate needs of them.
    waiting: WaitingRecords<(EventStamp, (D, P))>,
}

/// Aggregates the frame of each record.
struct RunningAggregate<K, D, A> {
    frame: FrameLimit,
    reporter: ValueReporter<A>,
    types: PhantomData<fn(K, D)>,
}

/// A record with its event time and the value of its frame.
type ValuedRecord<D, V> = (EventTime, (D, V));

impl<K: Record, D: Record, A: Aggregate<D>> RunningAggregate<K, D, A> {
    /// Removes the records that are not in the frame of a record at `time`, which has been added.
    fn leave(&self, passed: &mut PassedRecords<A::Sum>, time: EventTime) {
        match self.frame {
            FrameLimit::Unbounded => {}
            FrameLimit::Rows(preceding) => {
                while passed.count() - 1 > preceding {
                    passed.pop();
                }
            }
            FrameLimit::Range(preceding) => {
                let from = time.minus(preceding);
                while passed.oldest().is_some_and(|oldest| oldest < from) {
                    passed.pop();
                }
                passed.expires = time.plus(preceding).next();
            }
        }
    }

    fn value(&self, key: &K, time: EventTime, passed: &PassedRecords<A::Sum>) -> Option<A::Value> {
        let moment = Interval { start: time, end: time.next() };
        self.reporter.value(moment, key, &passed.total()?)
    }
}

impl<K: Record, D: Record, A: Aggregate<D>> KeyedOperator for RunningAggregate<K, D, A> {
    type Key = K;
    type Part = (D, A::Part);
    type Row = RunningState<D, A::Part, A::Sum>;
    type Closed = ValuedRecord<D, A::Value>;
    type Value = ();

    const EXPIRES: bool = false;

    fn expires_at(_row: &Self::Row) -> EventTime {
        EventTime::MAX
    }

    fn begin(&self, stamp: EventStamp, part: Self::Part) -> Self::Row {
        RunningState { passed: PassedRecords::empty(), waiting: WaitingRecords::of((stamp, part)) }
    }

    fn absorb(&self, row: &mut Self::Row, stamp: EventStamp, part: Self::Part) {
        row.waiting.insert((stamp, part));
    }

    fn due(row: &Self::Row) -> EventTime {
        row.waiting.due().min(row.passed.expires)
    }

    fn advance(&self, key: &K, row: &mut Self::Row, to: EventTime, closed: &mut Vec<Self::Closed>) -> i64 {
        let RunningState { passed, waiting } = row;
        let mut done = 0;
        let keep = self.frame != FrameLimit::Unbounded;
        while let Some(((time, _), (data, part))) = waiting.pop_passed(to) {
            done += 1;
            passed.push(time, self.reporter.aggregate.lift(part), keep);
            let mut peers = vec![data];
            if matches!(self.frame, FrameLimit::Range(_)) {
                while let Some((_, (data, part))) = waiting.pop_at(time) {
                    done += 1;
                    passed.push(time, self.reporter.aggregate.lift(part), keep);
                    peers.push(data);
                }
            }
            self.leave(passed, time);
            let Some(value) = self.value(key, time, passed) else { continue };
            closed.extend(peers.into_iter().map(|data| (time, (data, value.clone()))));
        }
        if passed.expires <= to || to == EventTime::MAX {
            *passed = PassedRecords::empty();
        }
        done
    }

    fn is_finished(row: &Self::Row) -> bool {
        row.passed.is_empty() && row.waiting.is_empty()
    }

    fn count(row: &Self::Row) -> i64 {
        row.waiting.len() as i64
    }
}

/// The results of a running aggregate.
pub struct Running<'f, K: Record, D: Record, V: Record> {
    made: StepOutputs<'f, ValuedRecord<D, V>, K, (), D>,
}

impl<K: Record, D: Record, V: Record> fmt::Debug for Running<'_, K, D, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Running<{}, {}>", std::any::type_name::<D>(), std::any::type_name::<V>())
    }
}

impl<'f, K: Record, D: Record, V: Record> Running<'f, K, D, V> {
    /// Returns each record with the value of its frame, when the watermark has passed the record. As an event it happens
    /// when the record does, and is never late downstream.
    pub fn values(&self) -> Stream<'f, (D, V)> {
        self.made.events(self.made.results.closed.clone(), "Over", |valued| valued)
    }

    /// Returns the late records: those whose time had been passed when they arrived. They are in no frame.
    pub fn late(&self) -> Stream<'f, D> {
        self.made.late()
    }
}

/// Fails if aggregates have names, by which nothing would find them.
fn no_names(names: &AggregateNames) -> Result<()> {
    if *names == AggregateNames::default() {
        return Ok(());
    }
    Err(Error::usage("aggregates of `over` have no names")
        .help("remove `each.named`: they are found by their positions"))
}

impl<'f, K: Record, D: Record> Keyed<'f, K, D> {
    /// Aggregates, for each record, the records of its key [`Preceding`] it, and itself: a moving average, the sum of the
    /// last minute at each payment, the balance after each. In SQL this is `OVER (PARTITION BY key ORDER BY time ROWS n
    /// PRECEDING)`, or `RANGE`. Records of equal time are ordered by source, partition and offset.
    ///
    /// The step's name is unique in the query: state and metrics are found by it. What later frames need is durable.
    /// Results are a function of the records: one is emitted when the watermark, less the
    /// [allowed lateness](Keyed::allowed_lateness), has passed its record, and a record that comes later than that is
    /// late. A frame of rows keeps that many records for each key for ever; a frame of time, until they are too old.
    /// For each record in a frame an accumulator of it, or of it and some after it, is kept: aggregates that keep all
    /// values, such as `collect`, are for short frames.
    ///
    /// ```
    /// use tidegate::Real;
    /// use tidegate::source::memory::MemorySource;
    /// use tidegate::stream::Preceding;
    /// use tidegate::testing::{Captured, TestRun};
    ///
    /// # fn main() -> tidegate::Result<()> {
    /// // (station, degrees, event time in ms): the mean of each reading and the two before it, in order of event time.
    /// let readings = vec![("north", 10, 0), ("north", 40, 3_000), ("north", 20, 1_000), ("north", 30, 2_000)];
    /// let readings = readings.into_iter().map(|(station, degrees, at)| (station.to_string(), degrees, at)).collect();
    /// let source = MemorySource::new(vec![readings], |reading: &(String, i32, i64)| reading.2);
    /// let means = Captured::<(i64, Real)>::new();
    /// let output = means.clone();
    /// TestRun::new().run(move |flow| {
    ///     let readings = flow.read("readings", &source).key_by(|reading| reading.0.clone());
    ///     let running = readings.over("mean", Preceding::rows(2), |each| each.mean(|reading| reading.1));
    ///     running.values().map(|((_, _, at), mean)| (at, mean)).write("means", &output);
    /// })?;
    /// let expected = [(0, 10.0), (1_000, 15.0), (2_000, 20.0), (3_000, 30.0)];
    /// assert_eq!(means.all(), expected.map(|(at, mean)| (at, Real::new(mean))));
    /// # Ok(()) }
    /// ```
    pub fn over<A: Aggregate<D>>(
        self,
        name: &str,
        frame: Preceding,
        build: impl FnOnce(Each<D>) -> A,
    ) -> Running<'f, K, D, A::Value> {
        let flow = Rc::clone(&self.stream.flow.build);
        let lateness = whole_millis("allowed lateness", self.lateness);
        let aggregate = Rc::new(build(Each::new()));
        let checked = aggregate
            .check()
            .and_then(|()| no_names(&aggregate.names()))
            .and_then(|()| Ok((frame.limit()?, lateness?)));
        let (frame, lateness) = checked.unwrap_or_else(|error| {
            flow.failure.set(error.at_step(name));
            (FrameLimit::Unbounded, 0)
        });
        let of_some = describe_filters(aggregate.filters());
        let (part, failure) = (Rc::clone(&aggregate), Arc::clone(&flow.failure));
        let reporter = ValueReporter { name: name.to_owned(), aggregate, failure };
        let operator = RunningAggregate { frame, reporter, types: PhantomData };
        let lateness = Span::saturating_from_millis(lateness);
        let part = move |event: &Event<D>| (event.data.clone(), part.part(event));
        Running { made: keyed_rows::step(self, (name, &format!("{frame}{of_some}")), lateness, operator, part) }
    }
}
