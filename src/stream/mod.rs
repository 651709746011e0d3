//! What users write queries with: streams, windows, aggregates and collections.
//!
//! * [`Flow`]: the query under construction; it reads sources. It is built once on every worker.
//! * [`Stream`]: append-only events, each with an event time and its partition's watermark.
//! * [`Keyed`], [`Windowed`], [`Aggregated`]: the way from a stream to windowed results ([`window`]).
//! * [`Collection`]: differential's own, a multiset that changes by insertions and retractions. [`Keyed::last_by_key`] makes
//!   one of a stream, a **table**; [`Keyed::join_table`] joins a stream with one.
//!
//! The epoch, timely's timestamp, stays hidden: what users see is event time, and that every epoch is shown whole.
//!
//! Promise kept here: **equal journals give equal output**, epoch by epoch. No operator reads a clock, a random hash or
//! the order of arrival: an epoch's records are used when the epoch is complete, and what leaves by a sink is sorted.
//!
//! A stream travels as two timely streams: its events, and its marks. Marks are the same on every worker: one message at
//! each epoch at which the watermark moved or a partition got a floor. An epoch's events and mark are both there before
//! the frontier passes it, so whoever waits for both frontiers knows the epoch whole.

pub mod aggregate;
mod arrange;
mod assign;
mod collection;
mod count;
pub(crate) mod cut;
mod ends;
mod fold;
mod input;
mod keyed;
mod lookup;
mod marks;
mod output;
mod route;
mod session;
mod slot;
pub mod state;
mod table;
mod view;
pub mod window;

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;
use serde::de::DeserializeOwned;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::core::Concatenate;
use timely::dataflow::operators::generic::operator::{Operator, empty};
use timely::dataflow::operators::probe;
use timely::dataflow::{Scope, Stream as TimelyStream};

use crate::durable::codec::{Codec, Postcard};
use crate::durable::recovery::SinkFound;
use crate::durable::{Life, Published, sources};
use crate::error::Error;
use crate::metrics::Metrics;
use crate::record::{Event, Record};
use crate::sink::{Shard, Writer};
use crate::source::TopicAddress;
use crate::source::{Place, Rejected, Source, StreamView};
use crate::status::Board;
pub(crate) use crate::thread::Failure;
use crate::time::Epoch;
use crate::view::Views;

pub(crate) use arrange::merge_at_rest;
pub use collection::{Collection, Observer};
pub(crate) use cut::{Durable, Part};
pub(crate) use ends::{EndMessage, EndsInput};
pub(crate) use input::Driver;
pub(crate) use marks::Marks;
pub use state::{Moment, Stateful};
pub use window::{Aggregated, Closed, Interval, Keyed, Open, Window, Windowed};

/// Faults that tests put into the engine on purpose, to see that a check finds them. Never set outside tests.
///
/// Every promise that a test of the engine in memory holds has at least one here; `tests/faults.rs` names the check that
/// finds each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// A closed row is not emitted.
    LoseRow,
    /// `on_change` does not take old rows back.
    SkipRetraction,
    /// Records are judged late by the stream's floor never.
    ForgetFloor,
    /// A sink shows rows of an epoch before the epoch is complete.
    ShowEarly,
    /// A worker releases its capability for an epoch before the epoch is on record.
    ReleaseEarly,
    /// A record is dropped between the source and the flow.
    LoseRecord,
    /// A window closes by its watermark before all records of the epoch are there.
    CloseEarly,
    /// What a seal has put into the trace is not seen by `on_change` any more.
    ForgetSealed,
    /// A worker may find the partitions that are there from the start after the first epoch.
    FindLate,
    /// Records lose their offsets, which break ties.
    ForgetOffsets,
    /// A sink shows again what it has shown in an earlier life.
    ShowAgain,
    /// A segment of the snapshot is not loaded.
    LoseSegment,
    /// A cut takes what its snapshot has counted.
    OpenGate,
    /// A sink says at a snapshot's epoch that it has shown what it has not.
    SnapshotEarly,
    /// A table forgets the deletes that its snapshot has.
    ForgetDeletes,
    /// A stream is joined with a table that is not complete yet.
    LookUpEarly,
    /// A view has changes of an epoch before the epoch is complete.
    AnswerEarly,
    /// A view answers before what was on record is in it again.
    AnswerUnready,
}

impl Fault {
    /// All of them.
    pub const ALL: [Fault; 18] = [
        Fault::LoseRow,
        Fault::SkipRetraction,
        Fault::ForgetFloor,
        Fault::ShowEarly,
        Fault::ReleaseEarly,
        Fault::LoseRecord,
        Fault::CloseEarly,
        Fault::ForgetSealed,
        Fault::FindLate,
        Fault::ForgetOffsets,
        Fault::ShowAgain,
        Fault::LoseSegment,
        Fault::OpenGate,
        Fault::SnapshotEarly,
        Fault::ForgetDeletes,
        Fault::LookUpEarly,
        Fault::AnswerEarly,
        Fault::AnswerUnready,
    ];
}

/// The epochs at which arrangements are sealed: the same on every worker, known before they are complete.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seals(Rc<RefCell<BTreeSet<u64>>>);

impl Seals {
    /// Adds an epoch that is not complete yet.
    pub(crate) fn add(&self, epoch: Epoch) {
        self.0.borrow_mut().insert(epoch.0);
    }

    /// Forgets epochs before this one: they are sealed.
    pub(crate) fn forget_before(&self, epoch: Epoch) {
        let mut seals = self.0.borrow_mut();
        *seals = seals.split_off(&epoch.0);
    }

    fn contains(&self, epoch: u64) -> bool {
        self.0.borrow().contains(&epoch)
    }

    fn after(&self, epoch: u64) -> Vec<u64> {
        self.0.borrow().range(epoch + 1..).copied().collect()
    }
}

/// What a step of the flow is, for the plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedStep {
    /// `source`, `window`, `table`, `sink` or `view`.
    pub kind: &'static str,
    /// Its name, unique among steps of its kind.
    pub name: String,
    /// What it does, with the types of its state.
    pub detail: String,
    /// Of the types of its state: equal types, equal fingerprints; of a source's identity, where that was asked for. Zero for
    /// steps without.
    pub fingerprint: u64,
}

/// Why a flow is built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// To learn its steps: nothing is opened.
    Plan,
    /// To open its sinks and ask what they have shown, and to ask its sources what they are known by.
    OpenSinks,
    /// To ask its sources whether they have grown since the state ended.
    AskGrown,
    /// To run.
    Run,
}

/// What the workers of a job share while the flow is built on one of them.
pub(crate) struct Build {
    pub(crate) place: Place,
    /// Why it is built.
    pub(crate) purpose: Purpose,
    pub(crate) failure: Arc<Failure>,
    pub(crate) metrics: Arc<Metrics>,
    /// Where workers and sinks say what they are at.
    pub(crate) board: Arc<Board>,
    pub(crate) drivers: RefCell<Vec<Box<dyn Driver>>>,
    pub(crate) plan: RefCell<Vec<PlannedStep>>,
    /// Behind every sink: an epoch that it has passed is shown.
    pub(crate) probe: probe::Handle<u64>,
    pub(crate) seals: Seals,
    pub(crate) fault: Option<Fault>,
    /// The job's durable state, if it has one.
    pub(crate) durable: Option<Durable>,
    /// Writers that were opened already, by the names of their sinks.
    pub(crate) opened: Arc<OpenedSinks>,
    /// What writers begin with.
    pub(crate) life: Life,
    /// Where sinks' shards come from, without their name and kind.
    pub(crate) shard: Shard,
    pub(crate) views: Arc<Views>,
}

/// Writers of sinks that were opened before the flow is built: in a job with state, all are asked what they have shown
/// before it is decided where the job goes on.
#[derive(Default)]
pub(crate) struct OpenedSinks(Mutex<BTreeMap<String, OpenedSink>>);

/// An opened sink.
pub(crate) struct OpenedSink {
    /// What it has shown.
    pub(crate) shown: Option<Published>,
    /// Whether it gets the changes of a collection.
    pub(crate) on_change: bool,
    /// Its writer, a `Box<dyn Writer<D>>`.
    writer: Box<dyn Any + Send>,
}

impl OpenedSinks {
    fn put(&self, name: &str, sink: OpenedSink) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), sink);
    }

    fn take<D: Record>(&self, name: &str) -> Option<(Option<Published>, Box<dyn Writer<D>>)> {
        let opened = self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(name)?;
        let writer = opened.writer.downcast::<Box<dyn Writer<D>>>().ok()?;
        Some((opened.shown, *writer))
    }

    /// What each has shown, by name.
    pub(crate) fn shown(&self) -> Vec<SinkFound> {
        let opened = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let found = |(name, sink): (&String, &OpenedSink)| SinkFound {
            name: name.clone(),
            published: sink.shown.clone(),
            on_change: sink.on_change,
        };
        opened.iter().map(found).collect()
    }
}

impl Build {
    /// Notes a step; a name that its kind has already fails the job, and so does one that another step with rows has:
    /// snapshots find rows by name.
    fn step(&self, kind: &'static str, name: &str, detail: String, fingerprint: u64) {
        let mut plan = self.plan.borrow_mut();
        let keeps_rows = |kind| matches!(kind, "window" | "table");
        let collides = |known| known == kind || (keeps_rows(known) && keeps_rows(kind));
        if let Some(known) = plan.iter().find(|step| step.name == name && collides(step.kind)) {
            let what = if known.kind == kind {
                format!("two {kind} steps of the query are named `{name}`")
            } else {
                format!("a {} step and a {kind} step of the query are both named `{name}`", known.kind)
            };
            let help = "give each a name of its own: state and metrics are found by it";
            self.failure.set(Error::usage(what).help(help));
        }
        plan.push(PlannedStep { kind, name: name.to_owned(), detail, fingerprint });
    }
}

/// What one operator contributes to manifests.
pub(crate) type Parts<'f> = TimelyStream<'f, u64, Vec<Part>>;

/// A stream of rejected records, its events and its marks. It has no flow, which has it: what the flow holds, open files for
/// one, would live for ever.
type Rejects<'f> = marks::Parts<'f, Rejected>;

/// A query under construction.
///
/// The closure that a job runs is called once on every worker, and once more before that to learn the query's steps: it
/// must not do anything but build the query.
#[derive(Clone)]
pub struct Flow<'f> {
    scope: Scope<'f, u64>,
    build: Rc<Build>,
    rejects: Rc<RefCell<Vec<Rejects<'f>>>>,
    /// Topics that are read, and topics that are written to.
    topics: Rc<RefCell<(Vec<TopicAddress>, Vec<TopicAddress>)>>,
    /// What every writer of the flow contributes to manifests.
    parts: Rc<RefCell<Vec<Parts<'f>>>>,
    /// Ends of the journals of all workers; `None` in a job without state.
    ends: Option<TimelyStream<'f, u64, Vec<EndMessage>>>,
}

impl fmt::Debug for Flow<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Flow").field("steps", &self.build.plan.borrow()).finish_non_exhaustive()
    }
}

impl<'f> Flow<'f> {
    pub(crate) fn new(scope: Scope<'f, u64>, build: Rc<Build>) -> Self {
        Flow { scope, build, rejects: Rc::default(), topics: Rc::default(), parts: Rc::default(), ends: None }
    }

    /// A query whose sinks keep what the workers tell of their journals.
    pub(crate) fn with_ends(self, ends: TimelyStream<'f, u64, Vec<EndMessage>>) -> Self {
        Flow { ends: Some(ends), ..self }
    }

    /// Takes note of topics that are read and written; fails the job if one of them is both.
    fn know_topics(&self, read: Option<TopicAddress>, written: Vec<TopicAddress>) {
        // Once is enough, and before anything is opened.
        if self.build.purpose != Purpose::Plan {
            return;
        }
        let mut topics = self.topics.borrow_mut();
        topics.0.extend(read);
        topics.1.extend(written);
        let (reads, writes) = &*topics;
        let is_both = |topic: &&TopicAddress| writes.iter().any(|written| written.is_same_as(topic));
        if let Some(topic) = reads.iter().find(is_both) {
            let error = Error::usage(format!("the {topic} is both read and written to"));
            let why = "the job would read its own results, without end";
            self.build.failure.set(error.because(why).help("write them to another topic"));
        }
    }

    /// Reads a source, under a name of its own.
    pub fn read<S: Source>(&self, name: &str, source: &S) -> Stream<'f, S::Item> {
        self.build.step("source", name, source.describe(), self.identity(source));
        self.know_topics(source.topic(), Vec::new());
        let (stream, Stream { events, marks, .. }) = input::read(self, name, source);
        self.rejects.borrow_mut().push((events, marks));
        stream
    }

    /// The fingerprint of what a source is known by, where that is asked for.
    fn identity<S: Source>(&self, source: &S) -> u64 {
        if self.build.purpose != Purpose::OpenSinks {
            return 0;
        }
        match source.identity(&self.build.place) {
            Ok(identity) => identity.as_deref().map_or(0, sources::fingerprint),
            Err(error) => {
                self.build.failure.set(error);
                0
            }
        }
    }

    /// Whether somebody can read the job's views: what only a view shows can be left out if not. It is the same on all workers
    /// and processes; but what has state, or is written, must not depend on it.
    pub fn has_views(&self) -> bool {
        self.build.views.is_wanted()
    }

    /// The records that the sources read so far have rejected: write them somewhere, or they are only counted.
    pub fn rejects(&self) -> Stream<'f, Rejected> {
        let stream = |(events, marks)| Stream { events, marks, flow: self.clone(), pool: Pool::default() };
        self.build.metrics.sources().iter().for_each(|(_, source)| source.notices.keep_rejects());
        let rejects = self.rejects.borrow().clone().into_iter().map(stream).reduce(Stream::concat);
        rejects.unwrap_or_else(|| stream((empty(self.scope), Marks::none(self))))
    }

    /// All parts of all manifests; to be asked when the flow is built.
    pub(crate) fn parts(&self) -> TimelyStream<'f, u64, Vec<Part>> {
        self.scope.concatenate(self.parts.take())
    }

    /// Fails the job if it has several processes, and values of this type, which go from worker to worker for what is
    /// named, could not be read in another one.
    pub(crate) fn check_travels<T: Serialize + DeserializeOwned + Send + 'static>(&self, what: &str, name: &str) {
        let place = &self.build.place;
        if self.build.purpose == Purpose::Plan
            && place.threads < place.workers
            && let Err(why) = Codec::<T>::check(&Postcard)
        {
            let error = Error::usage("a value cannot go from process to process").at(format!("{what} `{name}`"));
            self.build.failure.set(error.because(why).help("map such values to texts or numbers before it"));
        }
    }

    pub(crate) fn fault(&self, fault: Fault) -> bool {
        self.build.fault == Some(fault)
    }
}

/// Emptied containers on their way back to where they are filled: memory that is in the processor's cache, and that need
/// not be asked of the operating system again. One worker's own; it keeps only a few.
pub(crate) struct Pool<T>(Rc<RefCell<Vec<Vec<T>>>>);

impl<T> Default for Pool<T> {
    fn default() -> Self {
        Pool(Rc::default())
    }
}

impl<T> Clone for Pool<T> {
    fn clone(&self) -> Self {
        Pool(Rc::clone(&self.0))
    }
}

impl<T> Pool<T> {
    const KEPT: usize = 16;

    /// An empty container, with memory if there is one.
    fn take(&self) -> Vec<T> {
        self.0.borrow_mut().pop().unwrap_or_default()
    }

    /// Takes a container back.
    fn give(&self, mut container: Vec<T>) {
        let mut kept = self.0.borrow_mut();
        if container.capacity() > 0 && kept.len() < Self::KEPT {
            container.clear();
            kept.push(container);
        }
    }
}

/// Append-only events, each with an event time and its partition's watermark.
pub struct Stream<'f, D> {
    pub(crate) events: TimelyStream<'f, u64, Vec<Event<D>>>,
    pub(crate) marks: Marks<'f>,
    pub(crate) flow: Flow<'f>,
    /// Where the events' containers come from.
    pub(crate) pool: Pool<Event<D>>,
}

impl<D: Record> Clone for Stream<'_, D> {
    fn clone(&self) -> Self {
        Stream {
            events: self.events.clone(),
            marks: self.marks.clone(),
            flow: self.flow.clone(),
            pool: self.pool.clone(),
        }
    }
}

impl<D> fmt::Debug for Stream<'_, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Stream<{}>", std::any::type_name::<D>())
    }
}

impl<'f, D: Record> Stream<'f, D> {
    /// The stream of other events with the same marks, made container by container.
    fn transform<D2: Record>(
        self,
        name: &str,
        mut logic: impl FnMut(&mut Vec<Event<D>>, &mut Vec<Event<D2>>) + 'static,
    ) -> Stream<'f, D2> {
        let Stream { events, marks, flow, pool } = self;
        let events = events.unary(Pipeline, name, move |_capability, _info| {
            let mut made = Vec::new();
            move |input, output| {
                input.for_each(|capability, events| {
                    logic(events, &mut made);
                    pool.give(std::mem::take(events));
                    if !made.is_empty() {
                        let mut session = output.session(&capability);
                        session.give_container(&mut made);
                        made.clear();
                    }
                });
            }
        });
        Stream { events, marks, flow, pool: Pool::default() }
    }

    /// Each record changed.
    pub fn map<D2: Record>(self, change: impl Fn(D) -> D2 + 'static) -> Stream<'f, D2> {
        self.transform("Map", move |events, made| made.extend(events.drain(..).map(|event| event.with(&change))))
    }

    /// The records that `keep` holds for.
    pub fn filter(self, keep: impl Fn(&D) -> bool + 'static) -> Stream<'f, D> {
        self.transform("Filter", move |events, made| {
            events.retain(|event| keep(&event.data));
            std::mem::swap(events, made);
        })
    }

    /// Each record changed into any number of records, all with its event time.
    pub fn flat_map<I: IntoIterator<Item: Record>>(self, change: impl Fn(D) -> I + 'static) -> Stream<'f, I::Item> {
        self.transform("FlatMap", move |events, made| {
            for Event { time, mark, origin, data } in events.drain(..) {
                made.extend(change(data).into_iter().map(|data| Event { time, mark, origin, data }));
            }
        })
    }

    /// Calls `look` with each record as it passes: for debugging. After a crash it sees records again.
    pub fn inspect(self, look: impl Fn(&D) + 'static) -> Stream<'f, D> {
        self.transform("Inspect", move |events, made| {
            events.iter().for_each(|event| look(&event.data));
            std::mem::swap(events, made);
        })
    }

    /// The records of both streams. Its watermark is the lesser of the two; whether a record is late is still decided
    /// by its own partition.
    ///
    /// A stream that is **idle**, as all of its partitions are idle or have ended, does not hold the watermark back: else a
    /// quiet stream would keep all results from the other. When both are, the watermark is the greater. A stream that wakes
    /// has the watermark at the epoch before as its floor: its records are late for windows that have closed meanwhile.
    /// After how long without records that happens, `--idle-timeout` says for all sources and
    /// [`Topic::idle_after`](crate::kafka::Topic::idle_after) or [`Input::idle_after`](crate::source::file::Input::idle_after)
    /// for one.
    #[must_use]
    pub fn concat(self, other: Stream<'f, D>) -> Stream<'f, D> {
        let (events, marks) = marks::concat(&self.flow, (self.events, self.marks), (other.events, other.marks));
        Stream { events, marks, flow: self.flow, pool: self.pool }
    }

    /// Groups the records by a key.
    pub fn key_by<K: Record>(self, key: impl Fn(&D) -> K + 'static) -> Keyed<'f, K, D> {
        Keyed::new(self, key)
    }
}

/// A cell that tells an operator whether somebody uses a result; set while the flow is built, read while it runs.
type Wanted = Rc<Cell<bool>>;

/// The view of a stream's watermark that the worker's readers get.
type View = Rc<StreamView>;
