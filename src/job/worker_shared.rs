//! The state that the workers of a process share, and the flow that each of them builds.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use timely::dataflow::operators::probe;
use timely::worker::Worker;

use crate::durable::Incarnation;
use crate::durable::declared_changes::Rename;
use crate::durable::journal::{Frame, Journal};
use crate::durable::migration::StepRows;
use crate::durable::sources::KnownPartitions;
use crate::error::Result;
use crate::job::cluster::control_channel::ControlChannel;
use crate::job::commit::Snapshots;
use crate::job::graph::{GraphCollector, JobGraph};
use crate::job::history::ProcessHistory;
use crate::job::monitor::JobMonitor;
use crate::job::pacing::Pace;
use crate::job::profile::Profile;
use crate::job::stop_handle::StopHandle;
use crate::metrics::Metrics;
use crate::sink::SinkContext;
use crate::source::WorkerContext;
use crate::status::StatusBoard;
use crate::stream::{
    BuildContext, BuildMode, DurableContext, Flow, InjectedFault, JobFailure, OpenedSinks, PlannedStep, SnapshotEpochs,
    SourceValues, StepRegistry,
};
use crate::time::Epoch;
use crate::view::Views;

/// State shared by all workers of a process.
pub(crate) struct WorkerShared {
    pub(crate) place: WorkerContext,
    pub(crate) epoch: Duration,
    /// Test hook: subtracted from the wall clock.
    pub(crate) clock_behind: Duration,
    pub(crate) in_flight: usize,
    pub(crate) synchronous: bool,
    pub(crate) stop: StopHandle,
    pub(crate) failure: Arc<JobFailure>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) journal: Arc<dyn Journal>,
    /// Epochs of a journal to replay.
    pub(crate) replay_frames: Vec<Frame>,
    /// `true` if the job reads live input after the replay; the replayed epochs are in its state's journal already.
    pub(crate) continues_live: bool,
    /// The greatest epoch of all earlier incarnations.
    pub(crate) last: Epoch,
    pub(crate) snapshots: Option<Arc<Snapshots>>,
    /// Minimum interval between two snapshots.
    pub(crate) snapshot_every: Duration,
    pub(crate) durable: Option<DurableContext>,
    pub(crate) opened: Arc<OpenedSinks>,
    pub(crate) source_values: Arc<SourceValues>,
    pub(crate) incarnation: Incarnation,
    pub(crate) shard: SinkContext,
    pub(crate) views: Arc<Views>,
    /// `true` if input was committed since the last snapshot was announced.
    pub(crate) dirty: AtomicBool,
    pub(crate) pace: Pace,
    pub(crate) seals: Vec<Epoch>,
    pub(crate) fault: InjectedFault,
    /// `true` if a worker's epoch is full: worker 0 ends it early.
    pub(crate) early_tick: AtomicBool,
    /// Number of workers of this process that have read all they will read in this incarnation, of sources that have
    /// not ended.
    pub(crate) caught_up: AtomicUsize,
    /// Number of workers of this process that have read, and committed, what is read first.
    pub(crate) read_first: AtomicUsize,
    /// The status that workers report.
    pub(crate) board: Arc<StatusBoard>,
    /// The profile of this process, if profiling is enabled.
    pub(crate) profile: Option<Arc<Profile>>,
    /// The graph of the query.
    pub(crate) graph: Arc<OnceLock<JobGraph>>,
}

impl WorkerShared {
    /// Returns the parts that can be observed from outside the job while it runs.
    pub(crate) fn watch(&self, channel: Option<Arc<ControlChannel>>) -> JobMonitor {
        JobMonitor {
            job: self.place.job.clone(),
            process: self.board.process(),
            processes: self.place.processes(),
            board: Arc::clone(&self.board),
            metrics: Arc::clone(&self.metrics),
            channel,
            syncs: self.journal.syncs(),
            idle_timeout: self.place.options.idle_timeout,
            profile: self.profile.clone(),
            graph: Arc::clone(&self.graph),
            history: ProcessHistory::default(),
            views: Arc::clone(&self.views),
            failure: Arc::clone(&self.failure),
            address: OnceLock::new(),
            wrong_tokens: OnceLock::new(),
        }
    }
}

/// The inputs for building a flow on an idle worker, without running it.
pub(crate) struct PlanBuild {
    pub(crate) place: WorkerContext,
    pub(crate) mode: BuildMode,
    pub(crate) opened: Arc<OpenedSinks>,
    pub(crate) shard: SinkContext,
    pub(crate) views: Arc<Views>,
    /// The recovered state, if the sources are to be asked for data beyond it.
    pub(crate) durable: Option<DurableContext>,
}

/// A query, shared by the threads that build it.
pub(crate) type Query = Arc<dyn Fn(&Flow<'_>) + Send + Sync>;

/// The plan of a query.
pub(crate) struct QueryPlan {
    pub(crate) steps: Vec<PlannedStep>,
    /// The earlier names of steps, sources and outputs.
    pub(crate) renames: Vec<Rename>,
    /// The stored rows of steps.
    pub(crate) rows: Vec<StepRows>,
    /// The data flow between the steps, if the flow was built to collect them; else empty.
    pub(crate) graph: JobGraph,
}

/// Builds the flow on an idle worker, and returns its plan.
pub(crate) fn build_plan(worker: &mut Worker, dry: PlanBuild, query: &dyn Fn(&Flow<'_>)) -> Result<QueryPlan> {
    let PlanBuild { place, mode, opened, shard, views, durable } = dry;
    let build = Rc::new(BuildContext {
        place,
        mode,
        failure: Arc::default(),
        metrics: Arc::default(),
        board: Arc::new(StatusBoard::new(0, 0, Arc::default())),
        drivers: RefCell::default(),
        plan: RefCell::default(),
        probe: probe::Handle::new(),
        snapshot_epochs: SnapshotEpochs::default(),
        fault: InjectedFault::default(),
        durable,
        known_partitions: KnownPartitions::default(),
        opened,
        source_values: Arc::default(),
        incarnation: Incarnation::without_state(),
        shard,
        views,
        registry: StepRegistry::default(),
        #[cfg(feature = "kafka")]
        messages: Rc::default(),
    });
    // Other builds are for what they open.
    let collector = (mode == BuildMode::CollectSteps).then(|| GraphCollector::listen(worker));
    worker.dataflow(|scope| {
        let flow = Flow::new(scope, Rc::clone(&build));
        query(&flow);
        drop(flow.snapshot_acks());
    });
    for dataflow in worker.installed_dataflows() {
        worker.drop_dataflow(dataflow);
    }
    if let Some(error) = build.failure.get() {
        return Err(error.clone());
    }
    let steps = build.plan.take();
    let graph = collector.map(|collector| collector.borrow().graph(&steps, &build.registry.source_inputs()));
    let graph = graph.unwrap_or_default();
    Ok(QueryPlan { steps, renames: build.registry.take_renames(), rows: build.registry.take_rows(), graph })
}
