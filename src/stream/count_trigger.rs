//! Windows that also fire by count: an intermediate result after every n records of a key, and the final one.
//!
//! * Records of a key wait until the watermark has passed them, and are then counted in the order of event time; those of
//!   equal time are ordered by source, partition and offset. So the n-th record is the same one on any number of workers,
//!   and every [`Firing`] is a function of the records: nothing depends on epochs.
//! * An **accumulating** window emits what it holds so far; a **discarding** one emits what has come since its last
//!   firing, so that all of its firings add up to the window's result.
//! * A window closes when the watermark, less the allowed lateness, has reached its end, and fires for the last time.
//!
//! Records are judged late by their own time, as by all steps that count in the order of event time.

use std::fmt;
use std::marker::PhantomData;
use std::rc::Rc;
use std::sync::Arc;

use differential_dataflow::difference::Semigroup;
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::record::{Event, Record};
use crate::stream::Stream;
use crate::stream::aggregate::{Aggregate, Each, describe_filters};
use crate::stream::assign::EventStamp;
use crate::stream::counted::Counted;
use crate::stream::interval::Interval;
use crate::stream::keyed_rows::{self, KeyedOperator};
use crate::stream::panes::{Pane, PaneRange, WindowAssigner, whole_millis};
use crate::stream::value_reporter::ValueReporter;
use crate::stream::waiting_records::WaitingRecords;
use crate::stream::window::Windowed;
use crate::stream::window_operator::StepOutputs;
use crate::stream::window_type::FixedWindows;
use crate::time::{EventTime, Span};

/// A result of a window that fires by count.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Firing<K, V> {
    /// The window.
    pub window: Interval,
    /// The key.
    pub key: K,
    /// The number of the window's firings with that key before this one.
    pub number: u64,
    /// `true` if the window has closed: it fires no more.
    pub is_final: bool,
    /// The aggregate's value: of all of the window's records with that key so far, or of those since the last firing.
    pub value: V,
}

/// A window of a key that has not closed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
struct FiringWindow<S> {
    end: EventTime,
    /// The number of firings so far.
    fired: u64,
    /// The number of records since the last firing.
    since: u64,
    /// The total to emit next; `None` if a discarding window has got nothing since its last firing.
    total: Option<Counted<S>>,
}

/// The row of a key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(bound = "S: Record")]
pub(crate) struct FiringState<S: Ord> {
    /// Ordered by their ends.
    open: Vec<FiringWindow<S>>,
    /// The accumulators of the records that the watermark has not passed.
    waiting: WaitingRecords<(EventStamp, S)>,
}

/// Aggregates windows that fire after every `every` records.
struct CountTrigger<K, D, A> {
    every: u64,
    discarding: bool,
    windows: WindowAssigner,
    reporter: ValueReporter<A>,
    types: PhantomData<fn(K, D)>,
}

/// A firing with its event time.
type TimedFiring<K, V> = (EventTime, Firing<K, V>);

impl<K: Record, D: 'static, A: Aggregate<D>> CountTrigger<K, D, A> {
    /// Emits a window's total, if it has one.
    fn fire(
        &self,
        key: &K,
        open: &mut FiringWindow<A::Sum>,
        at: EventTime,
        is_final: bool,
        closed: &mut Vec<TimedFiring<K, A::Value>>,
    ) {
        let window = self.windows.interval(open.end);
        let value = open.total.as_ref().and_then(|total| self.reporter.value(window, key, total));
        let number = open.fired;
        closed.extend(value.map(|value| (at, Firing { window, key: key.clone(), number, is_final, value })));
        (open.fired, open.since) = (open.fired + 1, 0);
        if self.discarding {
            open.total = None;
        }
    }

    /// Closes the windows that end at or before a time.
    fn close(
        &self,
        key: &K,
        open: &mut Vec<FiringWindow<A::Sum>>,
        to: EventTime,
        closed: &mut Vec<TimedFiring<K, A::Value>>,
    ) {
        let over = open.iter().take_while(|window| window.end <= to).count();
        for mut window in open.drain(..over) {
            let last_moment = EventTime::from_millis(window.end.millis().saturating_sub(1));
            self.fire(key, &mut window, last_moment, true, closed);
        }
    }

    /// Adds a record to its windows; those that it fills fire.
    fn add(
        &self,
        key: &K,
        open: &mut Vec<FiringWindow<A::Sum>>,
        (time, sum): (EventTime, &A::Sum),
        closed: &mut Vec<TimedFiring<K, A::Value>>,
    ) {
        let found = self.windows.find(time);
        let range = PaneRange::new(found.first, found.last);
        for end in self.windows.ends(range, EventTime::MIN, EventTime::MAX) {
            let at = match open.binary_search_by_key(&end, |window| window.end) {
                Ok(at) => at,
                Err(at) => {
                    open.insert(at, FiringWindow { end, fired: 0, since: 0, total: None });
                    at
                }
            };
            let window = &mut open[at];
            let one = Counted { count: 1, sum: sum.clone() };
            match &mut window.total {
                Some(total) => total.plus_equals(&one),
                none => *none = Some(one),
            }
            window.since += 1;
            if window.since >= self.every {
                self.fire(key, window, time, false, closed);
            }
        }
    }
}

impl<K: Record, D: 'static, A: Aggregate<D>> KeyedOperator for CountTrigger<K, D, A> {
    type Key = K;
    type Part = A::Part;
    type Row = FiringState<A::Sum>;
    type Closed = TimedFiring<K, A::Value>;
    type Value = ();

    const EXPIRES: bool = false;

    fn expires_at(_row: &Self::Row) -> EventTime {
        EventTime::MAX
    }

    fn begin(&self, stamp: EventStamp, part: A::Part) -> Self::Row {
        FiringState { open: Vec::new(), waiting: WaitingRecords::of((stamp, self.reporter.aggregate.lift(part))) }
    }

    fn absorb(&self, row: &mut Self::Row, stamp: EventStamp, part: A::Part) {
        row.waiting.insert((stamp, self.reporter.aggregate.lift(part)));
    }

    fn due(row: &Self::Row) -> EventTime {
        row.open.first().map_or(EventTime::MAX, |window| window.end).min(row.waiting.due())
    }

    fn advance(&self, key: &K, row: &mut Self::Row, to: EventTime, closed: &mut Vec<Self::Closed>) -> i64 {
        let FiringState { open, waiting } = row;
        let mut passed = 0;
        while let Some(((time, _), sum)) = waiting.pop_passed(to) {
            passed += 1;
            self.close(key, open, time, closed);
            self.add(key, open, (time, &sum), closed);
        }
        self.close(key, open, to, closed);
        passed
    }

    fn is_finished(row: &Self::Row) -> bool {
        row.open.is_empty() && row.waiting.is_empty()
    }

    fn count(row: &Self::Row) -> i64 {
        row.waiting.len() as i64
    }
}

/// A stream in windows that also fire by count: see [`Windowed::every_n`].
pub struct CountTriggered<'f, K, D, W> {
    windowed: Windowed<'f, K, D, W>,
    every: u64,
    discarding: bool,
}

impl<K, D, W: fmt::Debug> fmt::Debug for CountTriggered<'_, K, D, W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CountTriggered {{ every: {}, discarding: {} }} {:?}", self.every, self.discarding, self.windowed)
    }
}

/// The results of windows that also fire by count.
pub struct Firings<'f, K: Record, D: Record, V: Record> {
    made: StepOutputs<'f, TimedFiring<K, V>, K, (), D>,
}

impl<K: Record, D: Record, V: Record> fmt::Debug for Firings<'_, K, D, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Firings<{}, {}>", std::any::type_name::<K>(), std::any::type_name::<V>())
    }
}

impl<'f, K: Record, D: Record, V: Record> Firings<'f, K, D, V> {
    /// Returns the firings of all windows. As an event, an intermediate one happens when the record does that filled the
    /// window, and a final one in the window's last millisecond; none is ever late downstream.
    pub fn all(&self) -> Stream<'f, Firing<K, V>> {
        self.made.events(self.made.results.closed.clone(), "Firings", |firing| firing)
    }

    /// Returns the late records: those whose time had been passed when they arrived. They are in no firing.
    pub fn late(&self) -> Stream<'f, D> {
        self.made.late()
    }
}

impl<'f, K: Record, D: Record, W: FixedWindows> Windowed<'f, K, D, W> {
    /// Lets each window emit an intermediate result after every `count` records of a key, at least one, beside its final
    /// result.
    ///
    /// Records are counted in the order of event time, when the watermark, less the allowed lateness, has passed them. So
    /// each result is a function of the data: of [`Aggregated::on_change`](super::Aggregated::on_change), whose rows come
    /// sooner, it depends on epochs which states are seen. The price is that a record is late when its own time is, as
    /// for sessions, even if its window is still open: let `out_of_order` of the source or
    /// [`Windowed::allowed_lateness`] be as long as records may be behind. A record is counted in each window that it is
    /// in, at a cost that grows with the overlap.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tidegate::Window;
    /// use tidegate::source::memory::MemorySource;
    /// use tidegate::testing::{Captured, TestRun};
    ///
    /// # fn main() -> tidegate::Result<()> {
    /// let payments = [3, 4, 5, 6, 7].iter().map(|cents| (*cents, i64::from(*cents) * 100)).collect();
    /// let source = MemorySource::new(vec![payments], |payment: &(i32, i64)| payment.1);
    /// let (so_far, since) = (Captured::<(u64, i128)>::new(), Captured::<(u64, i128)>::new());
    /// let outputs = (so_far.clone(), since.clone());
    /// TestRun::new().run(move |flow| {
    ///     let payments = flow.read("payments", &source);
    ///     let seconds =
    ///         || payments.clone().key_by(|_| ()).window(Window::tumbling(Duration::from_secs(1))).every_n(2);
    ///     let sums = seconds().aggregate("so far", |each| each.sum(|payment| payment.0)).all();
    ///     sums.map(|firing| (firing.number, firing.value)).write("so far", &outputs.0);
    ///     let sums = seconds().discarding().aggregate("since", |each| each.sum(|payment| payment.0)).all();
    ///     sums.map(|firing| (firing.number, firing.value)).write("since", &outputs.1);
    /// })?;
    /// assert_eq!(so_far.all(), [(0, 7), (1, 18), (2, 25)]);
    /// assert_eq!(since.all(), [(0, 7), (1, 11), (2, 7)]);
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn every_n(self, count: u64) -> CountTriggered<'f, K, D, W> {
        CountTriggered { windowed: self, every: count, discarding: false }
    }
}

impl<'f, K: Record, D: Record, W: FixedWindows> CountTriggered<'f, K, D, W> {
    /// Lets each firing have the records since the one before only, not all of the window's. The last one is left out if
    /// there are none.
    #[must_use]
    pub fn discarding(self) -> Self {
        CountTriggered { discarding: true, ..self }
    }

    /// Aggregates the records of each firing. The step's name is unique in the query: state and metrics are found by it.
    pub fn aggregate<A: Aggregate<D>>(
        self,
        name: &str,
        build: impl FnOnce(Each<D>) -> A,
    ) -> Firings<'f, K, D, A::Value> {
        let CountTriggered { windowed: Windowed { keyed, window }, every, discarding } = self;
        let flow = Rc::clone(&keyed.stream.flow.build);
        let aggregate = Rc::new(build(Each::new()));
        let counted = match every {
            0 => Err(Error::usage("a window cannot fire every 0 records").help("let it fire after at least one")),
            every => Ok(every),
        };
        let names = aggregate.names().0;
        let checked = aggregate
            .check()
            .and_then(|()| names.check())
            .and_then(|()| Ok((counted?, window.windows()?, whole_millis("allowed lateness", keyed.lateness)?)));
        let (every, windows, lateness) = checked.unwrap_or_else(|error| {
            flow.failure.set(error.at_step(name));
            (1, WindowAssigner::Global, 0)
        });
        flow.registry.name_aggregates(name, names);
        let mode = if discarding { "discarding" } else { "accumulating" };
        let detail = format!("{windows:?}, {mode} every {every} records{}", describe_filters(aggregate.filters()));
        let (part, failure) = (Rc::clone(&aggregate), Arc::clone(&flow.failure));
        let reporter = ValueReporter { name: name.to_owned(), aggregate, failure };
        let operator = CountTrigger { every, discarding, windows, reporter, types: PhantomData };
        let lateness = Span::saturating_from_millis(lateness);
        let part = move |event: &Event<D>| part.part(event);
        Firings { made: keyed_rows::step(keyed, (name, &detail), lateness, operator, part) }
    }
}
