//! The API that queries are written with: streams, windows, aggregates and collections.
//!
//! * [`Flow`]: the query under construction; it reads sources. It is built once on every worker.
//! * [`Stream`]: append-only events, each with an event time and its partition's watermark.
//! * [`Keyed`], [`Windowed`], [`Aggregated`]: the steps from a stream to windowed results ([`window`]).
//! * [`Collection`]: a differential collection, a multiset that changes by insertions and retractions.
//!   [`Keyed::last_by_key`] makes one of a stream, a **table**; [`Keyed::join_table`] joins a stream with one.
//!
//! The epoch, timely's timestamp, stays hidden: users see event time, and each epoch is published atomically.
//!
//! Invariant: **equal journals give equal output**, epoch by epoch. No operator reads a clock, a random hash or the
//! order of arrival: an epoch's records are used when the epoch is complete, and the rows that a sink writes are
//! sorted.
//!
//! A stream travels as two timely streams: its events and its watermark updates. Watermark updates are the same on
//! every worker: one message at each epoch at which the watermark moved or a partition got an activation watermark.
//! An epoch's events and its watermark update arrive before the frontier passes the epoch, so an operator that waits
//! for both frontiers has the whole epoch.

pub mod aggregate;
mod arrange;
mod assign;
pub(crate) mod checkpoint;
mod collection;
mod count;
mod counted;
mod ends;
pub(crate) mod epochs;
mod fault;
mod input;
mod interval;
mod keyed_rows;
mod keyed_stream;
mod lookup;
mod output;
mod panes;
mod route;
mod session;
pub mod state;
mod table;
mod value_reporter;
mod view;
mod watermarks;
pub mod window;
mod window_operator;
mod window_row;
mod window_type;

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;
use serde::de::DeserializeOwned;
use timely::container::CapacityContainerBuilder;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::core::Concatenate;
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use timely::dataflow::operators::generic::operator::{Operator, empty};
use timely::dataflow::operators::probe;
use timely::dataflow::{Scope, Stream as TimelyStream};

use crate::durable::codec::{Codec, Postcard};
use crate::durable::recovery::ReportedSink;
use crate::durable::{Incarnation, PublishedEpoch, sources};
use crate::error::{Error, Result};
use crate::metrics::Metrics;
use crate::record::{Event, Record};
use crate::sink::{SinkContext, SinkWriter};
use crate::source::TopicAddress;
use crate::source::{Rejected, Source, WatermarkView, WorkerContext};
use crate::status::StatusBoard;
pub(crate) use crate::thread::JobFailure;
use crate::time::Epoch;
use crate::view::Views;

pub(crate) use arrange::merge_while_idle;
pub(crate) use checkpoint::{DurableContext, SnapshotAck};
pub use collection::{Collection, Observer};
pub(crate) use ends::{EndMessage, EndsInput};
#[cfg(feature = "testing")]
pub use fault::Fault;
#[cfg(not(feature = "testing"))]
pub(crate) use fault::Fault;
pub(crate) use fault::InjectedFault;
pub(crate) use input::Driver;
pub use interval::Interval;
pub use keyed_stream::Keyed;
pub use state::{StateContext, Stateful};
pub(crate) use watermarks::WatermarkStream;
pub use window::{Aggregated, Window, Windowed};
pub use window_row::{Closed, Open};

/// The epochs at which checkpointed operators are sealed: the same on every worker, known before they are complete.
#[derive(Clone, Debug, Default)]
pub(crate) struct SnapshotEpochs(Rc<RefCell<BTreeSet<u64>>>);

impl SnapshotEpochs {
    /// Adds an epoch that is not complete yet.
    pub(crate) fn add(&self, epoch: Epoch) {
        self.0.borrow_mut().insert(epoch.0);
    }

    /// Removes the epochs before `epoch`, which are sealed.
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

/// A step of the flow, as the plan describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PlannedStep {
    /// `source`, `window`, `table`, `sink` or `view`.
    pub kind: &'static str,
    /// The step's name, unique among steps of its kind.
    pub name: String,
    /// A description of the step's work, with the types of its state.
    pub detail: String,
    /// Fingerprint of the types of the step's state, or of the rows of a sink that gets changes: equal types have equal
    /// fingerprints. For a source, the fingerprint of its identity if that was requested. Zero for all other steps.
    pub fingerprint: u64,
}

/// The reason for which a flow is built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BuildMode {
    /// Collects the steps; opens nothing.
    CollectSteps,
    /// Opens the sinks to read what they have published, and reads the identities of the sources.
    OpenSinks,
    /// Asks the sources whether they have new data since the state ended.
    AskNewData,
    /// Runs the job.
    Run,
}

/// The context that the workers of a job share while one of them builds the flow.
pub(crate) struct BuildContext {
    pub(crate) place: WorkerContext,
    /// The reason for which the flow is built.
    pub(crate) mode: BuildMode,
    pub(crate) failure: Arc<JobFailure>,
    pub(crate) metrics: Arc<Metrics>,
    /// The board on which workers and sinks report their progress.
    pub(crate) board: Arc<StatusBoard>,
    pub(crate) drivers: RefCell<Vec<Box<dyn Driver>>>,
    pub(crate) plan: RefCell<Vec<PlannedStep>>,
    /// Probe behind every step, sink and view: an epoch that it has passed is published.
    pub(crate) probe: probe::Handle<u64>,
    pub(crate) snapshot_epochs: SnapshotEpochs,
    pub(crate) fault: InjectedFault,
    /// The job's durable state; `None` in a job without state.
    pub(crate) durable: Option<DurableContext>,
    /// Writers that are open already, by sink name.
    pub(crate) opened: Arc<OpenedSinks>,
    /// The incarnation that writers begin with.
    pub(crate) incarnation: Incarnation,
    /// Template of the sinks' contexts, without name and kind of rows.
    pub(crate) shard: SinkContext,
    pub(crate) views: Arc<Views>,
}

/// Writers of sinks that were opened before the flow is built: a job with state reads what all of them have published
/// before it decides where to resume.
#[derive(Default)]
pub(crate) struct OpenedSinks(Mutex<BTreeMap<String, OpenedSink>>);

/// An opened sink.
pub(crate) struct OpenedSink {
    /// The last epoch that the sink has published, if it knows one.
    pub(crate) published: Option<PublishedEpoch>,
    /// `true` if the sink gets the changes of a collection.
    pub(crate) on_change: bool,
    /// The writer, a `Box<dyn SinkWriter<D>>`.
    writer: Box<dyn Any + Send>,
}

impl OpenedSinks {
    fn put(&self, name: &str, sink: OpenedSink) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), sink);
    }

    fn take<D: Record>(&self, name: &str) -> Option<(Option<PublishedEpoch>, Box<dyn SinkWriter<D>>)> {
        let opened = self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(name)?;
        let writer = opened.writer.downcast::<Box<dyn SinkWriter<D>>>().ok()?;
        Some((opened.published, *writer))
    }

    /// Returns what each sink has published, by name.
    pub(crate) fn published(&self) -> Vec<ReportedSink> {
        let opened = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let found = |(name, sink): (&String, &OpenedSink)| ReportedSink {
            name: name.clone(),
            published: sink.published.clone(),
            on_change: sink.on_change,
        };
        opened.iter().map(found).collect()
    }
}

impl BuildContext {
    /// Records a step in the plan. Fails the job if its kind already has a step of that name, or if another step with
    /// durable rows has it: snapshots find rows by name.
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

/// A stream of one operator's contributions to manifests.
pub(crate) type SnapshotAckStream<'f> = TimelyStream<'f, u64, Vec<SnapshotAck>>;

/// The events and watermark updates of a stream of rejected records. It does not hold its flow, as the flow holds it:
/// such a cycle would leak what the flow owns, such as open files.
type RejectStream<'f> = watermarks::EventsAndWatermarks<'f, Rejected>;

/// The result of a function that builds a query: nothing, or a [`Result`] whose error fails the job before it starts.
pub trait QueryResult {
    /// Converts to a [`Result`].
    ///
    /// # Errors
    /// Fails if the query cannot be built.
    fn into_result(self) -> Result<()>;
}

impl QueryResult for () {
    fn into_result(self) -> Result<()> {
        Ok(())
    }
}

impl QueryResult for Result<()> {
    fn into_result(self) -> Result<()> {
        self
    }
}

/// A query under construction.
///
/// The closure that a job runs is called once on every worker, and once more before that to learn the query's steps:
/// it must do nothing but build the query.
#[derive(Clone)]
pub struct Flow<'f> {
    scope: Scope<'f, u64>,
    build: Rc<BuildContext>,
    rejects: Rc<RefCell<Vec<RejectStream<'f>>>>,
    /// The topics that are read, and the topics that are written to.
    topics: Rc<RefCell<(Vec<TopicAddress>, Vec<TopicAddress>)>>,
    /// The streams of all the flow's contributions to manifests.
    snapshot_acks: Rc<RefCell<Vec<SnapshotAckStream<'f>>>>,
    /// The journal ends of all workers; `None` in a job without state.
    ends: Option<TimelyStream<'f, u64, Vec<EndMessage>>>,
}

impl fmt::Debug for Flow<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Flow").field("steps", &self.build.plan.borrow()).finish_non_exhaustive()
    }
}

impl<'f> Flow<'f> {
    pub(crate) fn new(scope: Scope<'f, u64>, build: Rc<BuildContext>) -> Self {
        Flow { scope, build, rejects: Rc::default(), topics: Rc::default(), snapshot_acks: Rc::default(), ends: None }
    }

    /// Adds the stream of journal ends, which the sinks keep.
    pub(crate) fn with_ends(self, ends: TimelyStream<'f, u64, Vec<EndMessage>>) -> Self {
        Flow { ends: Some(ends), ..self }
    }

    /// Records topics that are read and written. Fails the job if a topic is both.
    fn register_topics(&self, read: Option<TopicAddress>, written: Vec<TopicAddress>) {
        // Once is enough, and before anything is opened.
        if self.build.mode != BuildMode::CollectSteps {
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

    /// Reads a source. The name is unique among the query's sources.
    pub fn read<S: Source>(&self, name: &str, source: &S) -> Stream<'f, S::Item> {
        self.build.step("source", name, source.describe(), self.identity(source));
        self.register_topics(source.topic(), Vec::new());
        let (stream, Stream { events, marks, .. }) = input::read(self, name, source);
        self.rejects.borrow_mut().push((events, marks));
        stream
    }

    /// Returns the fingerprint of a source's identity; zero unless the flow is built to open sinks.
    fn identity<S: Source>(&self, source: &S) -> u64 {
        if self.build.mode != BuildMode::OpenSinks {
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

    /// Adds the output of an operator's contributions to manifests; `None` in a job without state.
    fn snapshot_output(
        &self,
        builder: &mut OperatorBuilder<'f, u64>,
    ) -> Option<OutputBuilder<u64, CapacityContainerBuilder<Vec<SnapshotAck>>>> {
        self.build.durable.as_ref()?;
        let (snapshot_acks, stream) = builder.new_output();
        self.snapshot_acks.borrow_mut().push(stream);
        Some(OutputBuilder::from(snapshot_acks))
    }

    /// Builds a query; its error fails the job.
    pub(crate) fn build<R: QueryResult>(&self, query: impl Fn(&Flow<'f>) -> R) {
        if let Err(error) = query(self).into_result() {
            self.build.failure.set(error);
        }
    }

    /// Returns `true` if the job's views can be read. Otherwise steps that only feed views can be left out. The
    /// answer is the same on all workers and processes, but steps that have state or write to sinks must not depend
    /// on it.
    pub fn has_views(&self) -> bool {
        self.build.views.is_enabled()
    }

    /// Returns the records rejected by the sources that were read so far. Unless they are written to a sink, they are
    /// only counted.
    pub fn rejects(&self) -> Stream<'f, Rejected> {
        let stream = |(events, marks)| Stream { events, marks, flow: self.clone(), pool: ContainerPool::default() };
        self.build.metrics.sources().iter().for_each(|(_, source)| source.notices.suppress_reject_notice());
        let rejects = self.rejects.borrow().clone().into_iter().map(stream).reduce(Stream::concat);
        rejects.unwrap_or_else(|| stream((empty(self.scope), WatermarkStream::none(self))))
    }

    /// Returns the contributions of all operators to all manifests. Call it once, after the flow is built.
    pub(crate) fn snapshot_acks(&self) -> TimelyStream<'f, u64, Vec<SnapshotAck>> {
        self.scope.concatenate(self.snapshot_acks.take())
    }

    /// Fails the job if it has several processes and values of this type cannot be serialized for another process.
    /// `what` and `name` name the step that exchanges them.
    pub(crate) fn check_exchangeable<T: Serialize + DeserializeOwned + Send + 'static>(&self, what: &str, name: &str) {
        let place = &self.build.place;
        if self.build.mode == BuildMode::CollectSteps
            && place.threads < place.workers
            && let Err(why) = Codec::<T>::check(&Postcard)
        {
            let error = Error::usage("a value cannot be sent to another process").at(format!("{what} `{name}`"));
            self.build.failure.set(error.because(why).help("map such values to strings or numbers before it"));
        }
    }

    pub(crate) fn has_fault(&self, fault: Fault) -> bool {
        self.build.fault.is(fault)
    }
}

/// A pool of emptied containers that are filled again: their memory is in the processor's cache and need not be
/// allocated anew. It belongs to one worker and keeps at most `KEPT` containers.
pub(crate) struct ContainerPool<T>(Rc<RefCell<Vec<Vec<T>>>>);

impl<T> Default for ContainerPool<T> {
    fn default() -> Self {
        ContainerPool(Rc::default())
    }
}

impl<T> Clone for ContainerPool<T> {
    fn clone(&self) -> Self {
        ContainerPool(Rc::clone(&self.0))
    }
}

impl<T> ContainerPool<T> {
    const KEPT: usize = 16;

    /// Returns an empty container, with memory if the pool has one.
    fn take(&self) -> Vec<T> {
        self.0.borrow_mut().pop().unwrap_or_default()
    }

    /// Returns a container to the pool.
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
    pub(crate) marks: WatermarkStream<'f>,
    pub(crate) flow: Flow<'f>,
    /// The pool that the events' containers come from.
    pub(crate) pool: ContainerPool<Event<D>>,
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
    /// Maps the events container by container; the watermark updates stay the same.
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
        Stream { events, marks, flow, pool: ContainerPool::default() }
    }

    /// Changes each record.
    pub fn map<D2: Record>(self, change: impl Fn(D) -> D2 + 'static) -> Stream<'f, D2> {
        self.transform("Map", move |events, made| made.extend(events.drain(..).map(|event| event.with(&change))))
    }

    /// Keeps the records for which `keep` returns `true`.
    pub fn filter(self, keep: impl Fn(&D) -> bool + 'static) -> Stream<'f, D> {
        self.transform("Filter", move |events, made| {
            events.retain(|event| keep(&event.data));
            std::mem::swap(events, made);
        })
    }

    /// Changes each record into any number of records, all with its event time.
    pub fn flat_map<I: IntoIterator<Item: Record>>(self, change: impl Fn(D) -> I + 'static) -> Stream<'f, I::Item> {
        self.transform("FlatMap", move |events, made| {
            for Event { time, watermark, origin, data } in events.drain(..) {
                made.extend(change(data).into_iter().map(|data| Event { time, watermark, origin, data }));
            }
        })
    }

    /// Calls `look` with each record as it passes, for debugging. After a crash it is called again with records that
    /// are replayed.
    pub fn inspect(self, look: impl Fn(&D) + 'static) -> Stream<'f, D> {
        self.transform("Inspect", move |events, made| {
            events.iter().for_each(|event| look(&event.data));
            std::mem::swap(events, made);
        })
    }

    /// Merges both streams. The watermark is the lesser of the two; whether a record is late is still decided by its
    /// own partition.
    ///
    /// A stream is **idle** when each of its partitions is idle or has ended. An idle stream does not hold the
    /// watermark back, as it would otherwise delay all results of the other stream. When both are idle, the watermark
    /// is the greater of the two. A stream that becomes active again gets the watermark of the epoch before as its
    /// activation watermark: its records are late for windows that have closed meanwhile. `--idle-timeout` sets the
    /// time without records after which a partition is idle, for all sources;
    /// [`kafka::Source::idle_after`](crate::kafka::Source::idle_after) or
    /// [`FileSource::idle_after`](crate::source::file::FileSource::idle_after) set it for one.
    #[must_use]
    pub fn concat(self, other: Stream<'f, D>) -> Stream<'f, D> {
        let (events, marks) = watermarks::concat(&self.flow, (self.events, self.marks), (other.events, other.marks));
        Stream { events, marks, flow: self.flow, pool: self.pool }
    }
}

/// A flag that tells an operator that a result has a consumer; set while the flow is built, read while it runs.
type ConsumerFlag = Rc<Cell<bool>>;

/// The stream's watermark as the worker's source readers see it.
type SharedWatermarkView = Rc<WatermarkView>;
