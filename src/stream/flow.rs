//! [`Flow`]: a query under construction.
//!
//! It is built once on every worker. Reading of sources is in `input.rs`, and each other step in the file that has its
//! operator.
//!
//! Invariant: no topic is both read and written to.

use std::cell::RefCell;
use std::fmt;
use std::rc::Rc;

use serde::Serialize;
use serde::de::DeserializeOwned;
use timely::container::CapacityContainerBuilder;
use timely::dataflow::operators::core::Concatenate;
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use timely::dataflow::{Scope, Stream as TimelyStream};

use super::build_context::{BuildContext, BuildMode};
use super::durable_context::SnapshotAck;
use super::ends::EndMessage;
use super::fault::Fault;
use super::watermark_stream::EventsAndWatermarks;
use crate::durable::codec::{Codec, Postcard};
use crate::durable::sources;
use crate::error::{Error, Result};
use crate::source::{DeadLetter, Source, TopicAddress};

/// A stream of one operator's contributions to manifests.
pub(crate) type SnapshotAckStream<'f> = TimelyStream<'f, u64, Vec<SnapshotAck>>;

/// The events and watermark updates of a stream of rejected records. It does not hold its flow, as the flow holds it:
/// such a cycle would leak what the flow owns, such as open files.
pub(super) type RejectStream<'f> = EventsAndWatermarks<'f, DeadLetter>;

/// The result of a function that builds a query: nothing, or a [`Result`] whose error fails the job before it starts.
#[diagnostic::on_unimplemented(
    message = "a query returns nothing, or `tidegate::Result<()>`, and not `{Self}`",
    label = "the closure returns `{Self}`",
    note = "end the closure with `;`; or with `Ok(())` if it has a `?`, so that its error fails the job before it starts",
    note = "other errors become one of a job by `.map_err(|why| tidegate::Error::new(\"what failed\").caused_by(why))?`"
)]
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
    pub(super) scope: Scope<'f, u64>,
    pub(super) build: Rc<BuildContext>,
    pub(super) rejects: Rc<RefCell<Vec<RejectStream<'f>>>>,
    /// The topics that are read, and the topics that are written to.
    pub(super) topics: Rc<RefCell<(Vec<TopicAddress>, Vec<TopicAddress>)>>,
    /// The streams of all the flow's contributions to manifests.
    pub(super) snapshot_acks: Rc<RefCell<Vec<SnapshotAckStream<'f>>>>,
    /// The journal ends of all workers; `None` in a job without state.
    pub(super) ends: Option<TimelyStream<'f, u64, Vec<EndMessage>>>,
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
    pub(super) fn register_topics(&self, read: Vec<TopicAddress>, written: Vec<TopicAddress>) {
        // Once is enough, and before anything is opened.
        if self.build.mode != BuildMode::CollectSteps {
            return;
        }
        let mut topics = self.topics.borrow_mut();
        topics.0.extend(read);
        topics.1.extend(written);
        let (reads, writes) = &*topics;
        let is_both = |topic: &&TopicAddress| reads.iter().any(|read| read.is_same_as(topic));
        if let Some(topic) = writes.iter().find(is_both) {
            let error = Error::usage(format!("the {topic} is both read and written to"));
            let why = "the job would read its own results, without end";
            self.build.failure.set(error.because(why).help("write them to another topic"));
        }
    }

    /// Returns the fingerprint of a source's identity; zero unless the flow is built to open sinks.
    pub(super) fn identity<S: Source>(&self, source: &S) -> u64 {
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
    pub(super) fn snapshot_output(
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
