//! Collections of a stream's events: all of them, or those of the last while.
//!
//! * A collection of **all** events only grows ([`Stream::collect`]).
//! * An event that **lives** for a time is in the collection from the epoch in which it comes until the stream's watermark
//!   is that far past its event time ([`Stream::live_for`]): it **expires** at its event time plus that time.
//!
//! An event is late if it expired before it came: if it expires at or before the greater of its partition's watermark just
//! before it and the partition's activation watermark. So which events are in the collection at a watermark depends on the
//! data alone. When the stream ends, its watermark is greater than all times, but nothing expires by that: the events stay
//! that are not over at the time that the stream has reached, the greatest watermark of any partition.
//!
//! Both are checkpointed operators, on the worker of the event: a row is an event with the time at which it expires and the
//! number of times that it came; rows are added up. In memory are the rows that will expire, and those that came since the
//! last seal; the rows of events that live for ever are in segments only. When a job resumes from a snapshot at c, all rows
//! enter the flow at c.
//!
//! Invariants:
//! * The rows of a segment are those of (last seal, this one] that have not expired; a row is retracted once, at the epoch
//!   whose watermark is at or past the time at which it expires.
//! * In = counted + late: an event counts when it expires, when the step ends, or, if it lives for ever, when it comes.

use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use foldhash::fast::FixedState;
use timely::dataflow::operators::Probe;

use crate::error::{Error, Result};
use crate::metrics::StepMetrics;
use crate::record::{Event, Record};
use crate::stream::assign::RecordRouter;
use crate::stream::checkpoint::{self, RowChunks, RowOps, chunks_of};
use crate::stream::interval::Interval;
use crate::stream::keyed_stream::Keyed;
use crate::stream::operator_state::{OperatorState, RoutedRecordOf, StepResultsOf, Subscriptions};
use crate::stream::panes::whole_millis;
use crate::stream::window_operator::{self, StepOutputs};
use crate::stream::{Collection, Stream};
use crate::time::{EventTime, Span};

/// Routes events by the time at which they expire; `None` if they live for ever, and are never late.
struct ExpiryRouter(Option<Span>);

impl<D> RecordRouter<D> for ExpiryRouter {
    type Routing = EventTime;

    #[inline]
    fn route_record(&mut self, event: &Event<D>, mark: EventTime) -> Option<EventTime> {
        let Some(life) = self.0 else { return Some(EventTime::MAX) };
        Some(event.time.plus(life)).filter(|expires| *expires > mark)
    }
}

/// Events and how often each came, by the time at which they expire.
type EventsByExpiry<D> = BTreeMap<EventTime, HashMap<D, i64, FixedState>>;

/// A row as snapshots keep it: when it expires, the event, how often it came.
type SavedEvent<D> = ((EventTime, D), i64);

/// The events of one worker.
struct LiveEvents<D> {
    /// Those that will expire.
    rows: EventsByExpiry<D>,
    /// Those that came since the last seal; `None` in a job without state.
    unsealed: Option<EventsByExpiry<D>>,
    /// Events that expire at or before this time have expired.
    closed: EventTime,
    metrics: Arc<StepMetrics>,
}

fn add<D: Record>(events: &mut EventsByExpiry<D>, expires: EventTime, event: D, times: i64) {
    *events.entry(expires).or_default().entry(event).or_default() += times;
}

/// Removes the events that expire at or before a time, and returns them.
fn take_through<D>(events: &mut EventsByExpiry<D>, time: EventTime) -> EventsByExpiry<D> {
    let left = events.split_off(&time.next());
    std::mem::replace(events, left)
}

impl<D: Record> LiveEvents<D> {
    /// Adds an event to the rows in memory, and to the results.
    fn insert(&mut self, epoch: u64, (expires, event): (EventTime, D), times: i64, results: &mut StepResultsOf<Self>) {
        debug_assert!(expires > self.closed, "an event that is on time has not expired");
        results.live.push((shown(expires, event.clone()), epoch, times as isize));
        if expires < EventTime::MAX {
            add(&mut self.rows, expires, event, times);
        } else {
            self.metrics.counted.add(times.unsigned_abs());
        }
    }
}

/// Returns an event as a row of the step's results.
fn shown<D>(expires: EventTime, event: D) -> (Interval, D, ()) {
    (Interval { start: expires, end: expires }, event, ())
}

impl<D: Record> OperatorState for LiveEvents<D> {
    type Key = D;
    type Place = EventTime;
    type Part = ();
    type SavedRow = SavedEvent<D>;
    type Closed = ();
    type Value = ();

    const CLOSES_AT_END: bool = false;

    fn saved_rows() -> RowOps<SavedEvent<D>> {
        RowOps {
            order: |a, b| a.0.cmp(&b.0),
            add: |a, b| a.1 += b.1,
            is_zero: |row| row.1 == 0,
            is_tombstone: |_| false,
            window: |row| row.0.0,
        }
    }

    fn key_of(saved: &SavedEvent<D>) -> &D {
        &saved.0.1
    }

    fn tracks_changes(&self) -> bool {
        true
    }

    fn absorb(&mut self, records: &mut Vec<RoutedRecordOf<Self>>) {
        unreachable!("changes are tracked, but {} records are applied without", records.len());
    }

    fn absorb_tracked(&mut self, epoch: u64, records: Vec<RoutedRecordOf<Self>>, results: &mut StepResultsOf<Self>) {
        for (event, expires, ()) in records {
            if let Some(unsealed) = &mut self.unsealed {
                add(unsealed, expires, event.clone(), 1);
            }
            self.insert(epoch, (expires, event), 1, results);
        }
    }

    fn load(&mut self, epoch: u64, rows: Vec<SavedEvent<D>>, results: &mut StepResultsOf<Self>) {
        for (row, times) in rows {
            self.metrics.loaded.add(times.unsigned_abs());
            self.insert(epoch, row, times, results);
        }
    }

    fn seal(&mut self, _epoch: u64) -> (EventTime, Option<RowChunks<SavedEvent<D>>>) {
        let unsealed = self.unsealed.as_mut().map(std::mem::take).unwrap_or_default();
        let mut rows = Vec::new();
        for (expires, events) in unsealed {
            let from = rows.len();
            rows.extend(events.into_iter().map(|(event, times)| ((expires, event), times)));
            rows[from..].sort_unstable();
        }
        (self.closed, if rows.is_empty() { None } else { Some(chunks_of(rows)) })
    }

    fn advance(&mut self, epoch: u64, watermark: EventTime, results: &mut StepResultsOf<Self>) {
        if let Some(unsealed) = &mut self.unsealed {
            // They came and went between two seals: nobody will load them.
            take_through(unsealed, watermark);
        }
        for (expires, events) in take_through(&mut self.rows, watermark) {
            for (event, times) in events {
                self.metrics.counted.add(times.unsigned_abs());
                results.live.push((shown(expires, event), epoch, -(times as isize)));
            }
        }
        self.closed = self.closed.max(watermark);
    }
}

/// Counts the events that are still held: in = counted + late holds whenever a job stops.
impl<D> Drop for LiveEvents<D> {
    fn drop(&mut self) {
        let held: i64 = self.rows.values().flat_map(HashMap::values).sum();
        self.metrics.counted.add(held.unsigned_abs());
    }
}

impl<'f, D: Record> Stream<'f, D> {
    /// Returns the collection of all events of the stream: a multiset that only grows. No event is late for it. The step's
    /// name is unique in the query: state and metrics are found by it.
    ///
    /// Snapshots keep every event, and a job that resumes reads all of them. For a state that does not grow for ever, keep
    /// the last while ([`Stream::live_for`]) or the last record of each key
    /// ([`Keyed::last_by_key`](crate::stream::Keyed::last_by_key)).
    ///
    /// ```
    /// use tidegate::testing::{Captured, TestRun};
    /// use tidegate::source::memory::MemorySource;
    ///
    /// # fn main() -> tidegate::Result<()> {
    /// let visits = vec!["a", "b", "a"].into_iter().map(String::from).collect();
    /// let visits = MemorySource::new(vec![visits], |_| 0);
    /// let counts = Captured::new();
    /// let output = counts.clone();
    /// TestRun::new().run(move |flow| flow.read("visits", &visits).collect("visits").count().write("counts", &output))?;
    /// assert_eq!(counts.all(), [("a".to_string(), 2), ("b".to_string(), 1)]);
    /// # Ok(()) }
    /// ```
    pub fn collect(self, name: &str) -> Collection<'f, D> {
        into_collection(&live_step(self.key_by(D::clone), name, Ok(None)))
    }

    /// Returns the collection of the events of the last while: an event is in it until the stream's watermark is at least
    /// `life` past its event time. The step's name is unique in the query: state and metrics are found by it.
    ///
    /// An event that comes when it is over already is late: it is counted, and not in the collection; see
    /// [`Stream::live_for_with_late`]. When the stream ends, the events of the last while before its end stay.
    ///
    /// The collection is durable, and deterministic in event time: at a watermark it has the events that are not late and
    /// not over, whatever the number of workers and wherever epochs begin. (In which epoch a watermark is reached depends on
    /// how the input was divided into epochs, which the journal keeps.)
    ///
    /// A `life` that is not a whole, positive number of milliseconds fails the job.
    ///
    /// ```
    /// use tidegate::testing::{Captured, TestRun};
    /// use tidegate::source::memory::MemorySource;
    /// use std::time::Duration;
    ///
    /// # fn main() -> tidegate::Result<()> {
    /// // (page, event time): which pages were visited in the last ten seconds?
    /// let visits = [("a", 0), ("b", 4_000), ("c", 9_000), ("d", 12_000)];
    /// let visits = visits.map(|(page, at)| (page.to_string(), at)).to_vec();
    /// let source = MemorySource::new(vec![visits], |visit: &(String, i64)| visit.1);
    /// let pages = Captured::new();
    /// let output = pages.clone();
    /// TestRun::new().run(move |flow| {
    ///     let recent = flow.read("visits", &source).live_for("recent", Duration::from_secs(10));
    ///     recent.map(|(page, _)| page).write("pages", &output);
    /// })?;
    /// assert_eq!(pages.all(), ["b".to_string(), "c".into(), "d".into()]);
    /// # Ok(()) }
    /// ```
    pub fn live_for(self, name: &str, life: Duration) -> Collection<'f, D> {
        into_collection(&live_step(self.key_by(D::clone), name, span_of(life)))
    }

    /// Like [`Stream::live_for`], but keeps what `row` returns for an event, and returns the late events, too.
    pub fn live_for_with_late<R: Record>(
        self,
        name: &str,
        life: Duration,
        row: impl Fn(&D) -> R + 'static,
    ) -> (Collection<'f, R>, Stream<'f, D>) {
        let step = live_step(self.key_by(row), name, span_of(life));
        (into_collection(&step), step.late())
    }
}

/// Converts the time for which events live.
fn span_of(life: Duration) -> Result<Option<Span>> {
    match whole_millis("life", life)? {
        0 => Err(Error::usage("events cannot live for 0 ms").help("make it at least a millisecond")),
        millis => Ok(Some(Span::saturating_from_millis(millis))),
    }
}

type LiveStep<'f, R, D> = StepOutputs<'f, (), R, (), D>;

/// Builds both operators of the step; the keys are the rows that it keeps.
fn live_step<'f, R: Record, D: Record>(
    events: Keyed<'f, R, D>,
    name: &str,
    life: Result<Option<Span>>,
) -> LiveStep<'f, R, D> {
    let build = Rc::clone(&events.stream.flow.build);
    let life = life.unwrap_or_else(|error| {
        build.failure.set(error.at_step(name));
        None
    });
    let detail = match life {
        None => String::from("all events"),
        Some(life) => format!("events for {} ms", life.millis()),
    };
    let (subscriptions, metrics) = (Subscriptions::default(), build.metrics.step(name));
    window_operator::step(
        events,
        (name, detail),
        (subscriptions, Span::ZERO),
        checkpoint::postcard(),
        ExpiryRouter(life),
        |_event| (),
        move |start| LiveEvents {
            rows: BTreeMap::new(),
            unsealed: start.durable.then(BTreeMap::new),
            closed: start.closed,
            metrics,
        },
    )
}

fn into_collection<'f, R: Record, D: Record>(step: &LiveStep<'f, R, D>) -> Collection<'f, R> {
    // Back-pressure includes this step: a query may have no sink behind it.
    let live = step.results.live.clone().probe_with(&step.flow().build.probe);
    step.collection(live, "Live").map(|open| open.key)
}
