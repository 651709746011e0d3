//! The context in which a flow is built, and the plan of its steps.
//!
//! Invariant: steps whose rows are durable have names of their own, as snapshots find rows by name.

use std::cell::RefCell;
#[cfg(feature = "kafka")]
use std::rc::Rc;
use std::sync::Arc;

use timely::dataflow::operators::probe;

use super::driver::Driver;
use super::durable_context::DurableContext;
use super::fault::InjectedFault;
use super::opened_sinks::OpenedSinks;
use super::snapshot_epochs::SnapshotEpochs;
use super::source_values::SourceValues;
use super::step_registry::StepRegistry;
use crate::durable::Incarnation;
use crate::durable::sources::KnownPartitions;
use crate::error::Error;
use crate::metrics::Metrics;
use crate::sink::SinkContext;
#[cfg(feature = "kafka")]
use crate::source::MessageStore;
use crate::source::WorkerContext;
use crate::status::StatusBoard;
use crate::thread::JobFailure;
use crate::view::Views;

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
    /// Partitions that the state knows by a number and a topic.
    pub(crate) known_partitions: KnownPartitions,
    /// Writers that are open already, by sink name.
    pub(crate) opened: Arc<OpenedSinks>,
    /// The values by which the workers read sources.
    pub(crate) source_values: Arc<SourceValues>,
    /// The incarnation that writers begin with.
    pub(crate) incarnation: Incarnation,
    /// Template of the sinks' contexts, without name and kind of rows.
    pub(crate) shard: SinkContext,
    pub(crate) views: Arc<Views>,
    /// The steps' outputs and earlier names.
    pub(crate) registry: StepRegistry,
    /// The messages of this worker's records in flight.
    #[cfg(feature = "kafka")]
    pub(crate) messages: Rc<MessageStore>,
}

impl BuildContext {
    /// Records a step in the plan. Fails the job if its kind already has a step of that name, or if another step with
    /// durable rows has it: snapshots find rows by name.
    pub(super) fn step(&self, kind: &'static str, name: &str, detail: String, fingerprint: u64) {
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
