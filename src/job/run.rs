//! The run of a job in one process, from the check of its query to its report.
//!
//! The process that leads, the only one or process 0 of several, starts the incarnation of the state; the others follow
//! its decision. Then all of them build the flow on their workers and run it ([`super::worker`]).

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::durable::declared_changes::DeclaredChanges;
use crate::durable::manifest::{Manifest, QueryFingerprint};
use crate::durable::recovery::RecoveryInput;
use crate::durable::state::StateDir;
use crate::durable::{Incarnation, StateId};
use crate::error::{Error, Result};
use crate::job::cluster::messages::JoinRequest;
use crate::job::cluster::{Gathered, Mesh, StartDecision};
use crate::job::monitor::MonitorHandle;
use crate::job::start::{JobContext, StartOutcome, StartedRun};
use crate::job::state_check::CheckRequest;
use crate::job::worker_shared::{PlanBuild, Query, QueryPlan, WorkerShared};
use crate::job::{Cluster, Ending, Job, RunReport, State, StopHandle, start, worker, worker_shared};
use crate::metrics::SPAN_TARGET;
use crate::sink::{SinkContext, SinkRows};
use crate::source;
use crate::status::StatusBoard;
use crate::stream::{BuildMode, DurableContext, Fault, Flow, OpenedSinks, PlannedStep, QueryResult, merge_while_idle};
use crate::thread::{JobFailure, guard};
use crate::time::Epoch;
use crate::view::http::Endpoint;

impl Job {
    /// Returns the steps of a query, without opening or running anything.
    ///
    /// # Errors
    /// Fails if the query itself is invalid: two steps of a kind with one name, a window of zero length, rows that a
    /// sink cannot hold.
    pub fn plan<R: QueryResult>(
        &self,
        query: impl Fn(&Flow<'_>) -> R + Send + Sync + 'static,
    ) -> Result<Vec<PlannedStep>> {
        self.query_plan(query).map(|plan| plan.steps)
    }

    /// Returns the plan of a query, whose declared changes are checked.
    pub(super) fn query_plan<R: QueryResult>(
        &self,
        query: impl Fn(&Flow<'_>) -> R + Send + Sync + 'static,
    ) -> Result<QueryPlan> {
        let query = move |flow: &Flow<'_>| flow.build(&query);
        if self.workers == 0 {
            return Err(Error::usage("a job needs at least one worker").help("use -w 1 or more"));
        }
        let plan = self.build_plan(BuildMode::CollectSteps, Arc::default(), self.shard(None), None, query)?;
        if !plan.steps.iter().any(|step| step.kind == "source") {
            return Err(Error::usage("the query reads no source").help("begin it with flow.read(…)"));
        }
        self.declared_changes(&plan).check(plan.steps.iter().map(|step| (step.kind, &*step.name)))?;
        Ok(plan)
    }

    /// Returns the changes that the query and the state's options declare.
    pub(super) fn declared_changes(&self, plan: &QueryPlan) -> DeclaredChanges {
        let renames = plan.renames.clone();
        let Some(State { dropped_steps: dropped, dropped_outputs, .. }) = self.state.clone() else {
            return DeclaredChanges { renames, ..DeclaredChanges::default() };
        };
        DeclaredChanges { renames, dropped, dropped_outputs }
    }

    /// Builds the flow on an idle worker, without running it.
    fn build_plan(
        &self,
        mode: BuildMode,
        opened: Arc<OpenedSinks>,
        shard: SinkContext,
        durable: Option<DurableContext>,
        query: impl Fn(&Flow<'_>) + Send + Sync + 'static,
    ) -> Result<QueryPlan> {
        let views = Arc::clone(&self.views);
        let dry = PlanBuild { place: self.place(0), mode, opened, shard, views, durable };
        let dry = || timely::execute_directly(move |worker| worker_shared::build_plan(worker, dry, &query));
        guard(dry).map_err(|panic| panic.error("that builds the query"))?
    }

    fn place(&self, worker: usize) -> source::WorkerContext {
        let (job, options) = (self.name.clone(), self.options.clone());
        let (workers, known_partitions) = (self.all_workers(), Arc::default());
        source::WorkerContext { worker, workers, threads: self.workers, job, options, known_partitions }
    }

    /// Returns the number of workers of all processes.
    fn all_workers(&self) -> usize {
        self.workers * self.cluster.as_ref().map_or(1, Cluster::processes)
    }

    /// Returns the context that all sinks of the job share.
    fn shard(&self, state: Option<StateId>) -> SinkContext {
        let shard = SinkContext {
            state,
            sync_on_publish: self.synchronous,
            ..SinkContext::new(&self.name, "", SinkRows::Events)
        };
        match &self.state {
            Some(state) => SinkContext { take_over: state.take_over, disk: Arc::clone(&state.disk), ..shard },
            None => shard,
        }
    }

    /// Returns the query's fingerprint, for the state and the other processes, and the changes that it declares; `None`
    /// if there are neither.
    fn fingerprint_and_changes(&self, query: &Query) -> Result<Option<(QueryFingerprint, DeclaredChanges)>> {
        let planned = Arc::clone(query);
        let plan = self.query_plan(move |flow| planned(flow))?;
        let views = plan.steps.iter().filter(|step| step.kind == "view");
        self.views.set_names(views.map(|step| step.name.clone()));
        // Set once: a job runs once.
        let _ = self.graph.set(plan.graph.clone());
        if self.state.is_none() && self.cluster.is_none() {
            return Ok(None);
        }
        Ok(Some((start::query_fingerprint(&plan.steps, &self.flags())?, self.declared_changes(&plan))))
    }

    /// Starts an incarnation of the job's state; `None` in a job without state.
    fn begin(
        &self,
        query: &Query,
        changes: &DeclaredChanges,
        opened: &Arc<OpenedSinks>,
        failure: &Arc<JobFailure>,
    ) -> Result<Option<StartOutcome>> {
        let Some(options) = &self.state else { return Ok(None) };
        let started = self.start_incarnation(options, query, changes, opened, failure);
        started.map(Some).map_err(|error| failure.explained(error))
    }

    fn start_incarnation(
        &self,
        options: &State,
        query: &Query,
        changes: &DeclaredChanges,
        opened: &Arc<OpenedSinks>,
        failure: &Arc<JobFailure>,
    ) -> Result<StartOutcome> {
        let dir = StateDir::open(Arc::clone(&options.disk), &options.directory, options.take_over)?;
        let savepoint = start::savepoint(options, &dir)?;
        let mut incarnation = dir.begin_incarnation()?;
        let dir = Arc::new(dir);
        let (opening, shard) = (Arc::clone(query), self.shard(Some(dir.id())));
        let plan = self.build_plan(BuildMode::OpenSinks, Arc::clone(opened), shard, None, move |flow| opening(flow))?;
        // Its sources have reported their fingerprints now.
        let print = &start::query_fingerprint(&plan.steps, &self.flags())?;
        let sinks = opened.published();
        let State { accept_changed_query, accept_changed_sources, .. } = *options;
        if let Some(savepoint) = savepoint {
            let scan = &savepoint.scan_after_restore(&dir, incarnation);
            let next = incarnation + 1;
            let found = RecoveryInput {
                incarnation: next,
                survey: scan,
                sinks: &sinks,
                query: print,
                changes,
                accept_changed_query,
                accept_changed_sources,
            };
            start::restore(&savepoint, &dir, incarnation, &found, &plan.rows)?;
            incarnation = dir.begin_incarnation()?;
        }
        start::explain_failures(&dir, incarnation, failure);
        let found = RecoveryInput {
            incarnation,
            survey: &dir.scan_and_sync()?,
            sinks: &sinks,
            query: print,
            changes,
            accept_changed_query,
            accept_changed_sources,
        };
        let job =
            JobContext { name: &self.name, rows: &plan.rows, workers: self.all_workers(), metrics: &self.metrics };
        start::begin(options, &job, &dir, &found, failure)
    }

    /// Returns the settings outside the query that affect its output.
    pub(super) fn flags(&self) -> BTreeMap<String, String> {
        let mut flags = self.flags.clone();
        let written = |duration: Duration| humantime::format_duration(duration).to_string();
        flags.insert("out-of-order".into(), written(self.options.out_of_order));
        flags.insert("max-ahead".into(), written(self.options.max_ahead));
        // Defaults have no entry, so that states written before a setting existed still match.
        if self.options.max_ahead_in_files {
            flags.insert("max-ahead-in-files".into(), "yes".into());
        }
        if self.options.max_record != source::Options::default().max_record {
            flags.insert("max-record".into(), self.options.max_record.to_string());
        }
        flags
    }

    /// Runs a query. The closure builds it: once on every worker, and several times before that to learn its steps and
    /// to open its sinks, so it must have no side effects.
    ///
    /// # Errors
    /// Fails if the query is invalid, a source or sink fails, a computed value cannot be represented, the state cannot
    /// be resumed, or user code panics.
    pub fn run<R: QueryResult>(self, query: impl Fn(&Flow<'_>) -> R + Send + Sync + 'static) -> Result<RunReport> {
        let query = move |flow: &Flow<'_>| flow.build(&query);
        let views = Arc::clone(&self.views);
        let failure = JobFailure::within_current();
        failure.set_stop(self.stop.flag());
        let entered = failure.enter();
        let process = self.cluster.as_ref().map_or(0, Cluster::process);
        let span = tracing::debug_span!(
            target: SPAN_TARGET, "incarnation", job = self.name.as_str(), process, number = tracing::field::Empty
        );
        let report = span.in_scope(|| guard(|| self.run_query(Arc::new(query), &failure)));
        drop(entered);
        views.end();
        let report = report.unwrap_or_else(|panic| Err(panic.error("that runs the job")));
        // The first failure counts; threads may fail after the report is complete.
        failure.get().map_or(report, |error| Err(error.clone()))
    }

    fn run_query(self, query: Query, failure: &Arc<JobFailure>) -> Result<RunReport> {
        if let Some(request) = CheckRequest::from_environment() {
            return Err(self.answer(&query, &request));
        }
        self.http.check()?;
        let (print, changes) = self.fingerprint_and_changes(&query)?.unzip();
        let changes = changes.unwrap_or_default();
        let gathered = match self.cluster.as_ref().zip(print.as_ref()) {
            None => None,
            Some((cluster, print)) => match cluster.gather(&self.hello(cluster, print), &self.stop, failure)? {
                None => return Ok(RunReport::without_work(Ending::Stopped)),
                gathered => gathered,
            },
        };
        let is_first = self.cluster.as_ref().is_none_or(|cluster| cluster.process() == 0);
        match gathered {
            None => self.run_as_leader(query, &changes, None, failure),
            Some(gathered) if is_first => self.run_as_leader(query, &changes, Some(gathered), failure),
            Some(gathered) => self.run_as_follower(&query, &changes, gathered, failure),
        }
    }

    fn hello(&self, cluster: &Cluster, print: &QueryFingerprint) -> JoinRequest {
        JoinRequest {
            process: cluster.process(),
            processes: cluster.processes(),
            threads: self.workers,
            job: self.name.clone(),
            keeps: self.state.is_some(),
            query: print.clone(),
        }
    }

    /// Runs the query in the process that starts the incarnation: the only process, or process 0 of several.
    fn run_as_leader(
        self,
        query: Query,
        changes: &DeclaredChanges,
        gathered: Option<Gathered>,
        failure: &Arc<JobFailure>,
    ) -> Result<RunReport> {
        let opened = Arc::new(OpenedSinks::new(changes.outputs()));
        let Some(mut gathered) = gathered else {
            return match self.begin(&query, changes, &opened, failure)? {
                None => self.run_incarnation(&query, None, opened, failure, None),
                Some(StartOutcome::Started(begun)) => self.run_incarnation(&query, Some(*begun), opened, failure, None),
                Some(StartOutcome::Complete(last)) => self.report_complete(query, *last),
            };
        };
        let begun = match self.begin(&query, changes, &opened, failure) {
            Err(error) => return Err(gathered.refuse(error)),
            Ok(Some(StartOutcome::Complete(last))) => {
                let report = self.report_complete(query, *last).map_err(|error| gathered.refuse(error))?;
                return gathered.ended().map(|()| report);
            }
            Ok(Some(StartOutcome::Started(begun))) => Some(*begun),
            Ok(None) => None,
        };
        let decided = gathered.begin(begun.as_ref().map(|begun| begun.life.incarnation), self.views.is_enabled())?;
        self.connect_and_run(&query, (decided, gathered), begun, opened, failure)
    }

    /// Runs the query in a process other than process 0.
    fn run_as_follower(
        self,
        query: &Query,
        changes: &DeclaredChanges,
        mut gathered: Gathered,
        failure: &Arc<JobFailure>,
    ) -> Result<RunReport> {
        let decided = gathered.decided(&self.stop)?;
        let begun = match (decided, &self.state, &self.cluster) {
            (StartDecision::Run { life: Some(incarnation), .. }, Some(options), Some(cluster)) => {
                let process = cluster.process() as u32;
                let joined = start::join(options, incarnation, changes, (process, self.all_workers()), failure);
                Some(joined.map_err(|error| gathered.refuse(error))?)
            }
            _ => None,
        };
        self.connect_and_run(query, (decided, gathered), begun, Arc::default(), failure)
    }

    /// Connects with the other processes, and runs the query.
    fn connect_and_run(
        self,
        query: &Query,
        (decided, gathered): (StartDecision, Gathered),
        begun: Option<StartedRun>,
        opened: Arc<OpenedSinks>,
        failure: &Arc<JobFailure>,
    ) -> Result<RunReport> {
        let number = match decided {
            StartDecision::Run { number, views, .. } => {
                if self.cluster.as_ref().is_some_and(|cluster| cluster.process() > 0) {
                    self.views.set_remote(views);
                }
                number
            }
            StartDecision::Ended => return Ok(RunReport::without_work(Ending::WasComplete)),
            StartDecision::Stopped => return Ok(RunReport::without_work(Ending::Stopped)),
        };
        // A stop after all processes have started is handled by their workers, on all of them; none leaves the others
        // here.
        match gathered.connect(number, &StopHandle::default())? {
            None => Ok(RunReport::without_work(Ending::Stopped)),
            mesh => self.run_incarnation(query, begun, opened, failure, mesh),
        }
    }

    /// Runs one incarnation of the job, from its start to its end.
    fn run_incarnation(
        self,
        query: &Query,
        begun: Option<StartedRun>,
        opened: Arc<OpenedSinks>,
        failure: &Arc<JobFailure>,
        mesh: Option<Mesh>,
    ) -> Result<RunReport> {
        let metrics = Arc::clone(&self.metrics);
        let http = Some(self.http.clone()).filter(Endpoint::is_some);
        let (stall_report_after, watcher) = (self.stall_report_after, self.watcher.clone());
        metrics.begin();
        if let Some(begun) = &begun {
            // Of the span that `run` has opened.
            tracing::Span::current().record("number", begun.life.incarnation);
        }
        let (shared, dir) = self.shared(begun, opened, Arc::clone(failure));
        let (snapshots, journal) = (shared.snapshots.clone(), Arc::clone(&shared.journal));
        let channel = mesh.as_ref().map(|mesh| Arc::clone(&mesh.channel));
        let is_first = mesh.as_ref().is_none_or(|mesh| mesh.process == 0);
        if let Some(channel) = &channel {
            channel.attach_board(Arc::clone(&shared.board));
        }
        let profile = shared.profile.clone();
        let watch = Arc::new(shared.watch(channel.clone()));
        watcher.begin(Arc::clone(&watch));
        // After the start a failure in one process fails all of them.
        let watching =
            MonitorHandle::start(&watch, http.as_ref(), stall_report_after).map_err(|error| failure.set(error)).ok();
        let told = watching.as_ref().and_then(MonitorHandle::url).filter(|_| is_first);
        if let Some((dir, url)) = dir.as_ref().zip(told.as_deref()) {
            // An address alone is one of HTTP, as earlier versions read it.
            dir.record_address(Some(url.strip_prefix("http://").unwrap_or(url)));
        }
        let endings = run_workers(shared, query, mesh);
        // The last manifest is on disk once its thread has ended; only then may another process take the state.
        if let Some(snapshots) = snapshots {
            snapshots.finish();
        }
        let endings = endings.unwrap_or_else(|error| {
            failure.set(error);
            Vec::new()
        });
        // A journal that cannot be closed fails the job, like any other error of the journal.
        if let Err(error) = journal.close() {
            failure.set(error);
        }
        if let Some(dir) = dir.as_ref().filter(|_| told.is_some()) {
            dir.record_address(None);
        }
        drop((watching, watch));
        let mut summary = metrics.summary();
        if let Some(channel) = &channel {
            if !is_first {
                channel.done(summary.clone());
            } else if let Some(others) = channel.wait_for_summaries() {
                others.into_iter().for_each(|other| summary.add(other));
            }
        }
        drop(dir);
        if let Some(channel) = &channel {
            channel.close();
        }
        if let Some(error) = failure.get() {
            return Err(error.clone());
        }
        if is_first {
            summary.check_conservation()?;
            metrics.explain_late().iter().for_each(|line| tracing::warn!("{line}"));
        }
        let ending = if endings.contains(&Ending::Stopped) { Ending::Stopped } else { Ending::Complete };
        let profile = profile.map(|profile| profile.now()).unwrap_or_default();
        Ok(RunReport { ending, summary, profile })
    }

    /// Builds the state that the workers share, and returns it with the state directory, if there is one.
    fn shared(
        self,
        begun: Option<StartedRun>,
        opened: Arc<OpenedSinks>,
        failure: Arc<JobFailure>,
    ) -> (WorkerShared, Option<Arc<StateDir>>) {
        let process = self.cluster.as_ref().map_or(0, Cluster::process);
        let board = StatusBoard::new(process, self.workers, Arc::clone(&self.metrics));
        let mut shared = WorkerShared {
            place: self.place(0),
            epoch: self.epoch,
            clock_behind: self.clock_behind,
            in_flight: usize::try_from(self.in_flight).unwrap_or(usize::MAX),
            synchronous: self.synchronous,
            shard: self.shard(None),
            snapshot_every: self.state.as_ref().map_or(Duration::MAX, |state| state.snapshot_every),
            stop: self.stop,
            failure,
            metrics: self.metrics,
            journal: self.journal,
            replay_frames: self.repeat,
            continues_live: false,
            last: Epoch::default(),
            snapshots: None,
            durable: None,
            opened,
            source_values: Arc::default(),
            incarnation: Incarnation::without_state(),
            views: self.views,
            dirty: AtomicBool::new(false),
            pace: self.pace,
            seals: self.seals,
            fault: self.fault,
            early_tick: AtomicBool::new(false),
            board: Arc::new(board),
            profile: self.profile,
            graph: self.graph,
            caught_up: AtomicUsize::new(0),
            read_first: AtomicUsize::new(0),
        };
        let Some(StartedRun { dir, journal, snapshots, durable, life: incarnation, replay, last }) = begun else {
            return (shared, None);
        };
        shared.shard.state = incarnation.state;
        shared.journal = journal;
        shared.dirty = AtomicBool::new(!replay.is_empty());
        (shared.replay_frames, shared.continues_live, shared.last) = (replay, true, last);
        (shared.snapshots, shared.durable, shared.incarnation) = (snapshots, Some(durable), incarnation);
        let on_record = shared.replay_frames.last().map(|frame| frame.epoch).max(shared.incarnation.resumed_from);
        shared.views.begin(on_record.filter(|_| !shared.fault.is(Fault::AnswerUnready)));
        (shared, Some(dir))
    }

    /// Reports a job whose state is complete; fails if its sources have grown since.
    fn report_complete(self, query: Query, last: Manifest) -> Result<RunReport> {
        let durable = DurableContext::ended(self.all_workers(), last)?;
        self.build_plan(BuildMode::AskNewData, Arc::default(), self.shard(None), Some(durable), move |flow| {
            query(flow);
        })?;
        Ok(RunReport::without_work(Ending::WasComplete))
    }
}

/// Runs the workers of this process to their ends, then drops their shared state.
fn run_workers(shared: WorkerShared, query: &Query, mesh: Option<Mesh>) -> Result<Vec<Ending>> {
    let shared = Arc::new(shared);
    let cannot = |why: String| Error::new("cannot start the workers").because(why);
    let threads = shared.place.threads;
    let (builders, connections) = match mesh {
        None => {
            let config = match threads {
                1 => timely::CommunicationConfig::Thread,
                threads => timely::CommunicationConfig::Process(threads),
            };
            (config.try_build().map_err(cannot)?.0, None)
        }
        Some(mesh) => {
            let (builders, connections) = mesh.builders(threads)?;
            (builders, Some(connections))
        }
    };
    let endings = Arc::new(Mutex::new(Vec::new()));
    let (ended, own, query) = (Arc::clone(&endings), Arc::clone(&shared), Arc::clone(query));
    let mut config = timely::WorkerConfig::default();
    merge_while_idle(&mut config);
    let guards = timely::execute::execute_from(builders, Box::new(()), config, move |timely_worker| {
        let _entered = own.failure.enter();
        match guard(|| worker::run(timely_worker, &own, &*query)) {
            Ok(ending) => ended.lock().unwrap_or_else(PoisonError::into_inner).extend(ending),
            Err(panic) => {
                own.failure.set(panic.error(own.board.describe_worker(timely_worker.index())));
                // The rest of the dataflow is in an unknown state: it must not be run to its end. Its operators may
                // panic when they are dropped.
                for dataflow in timely_worker.installed_dataflows() {
                    let _ = guard(|| timely_worker.drop_dataflow(dataflow));
                }
            }
        }
    });
    for worker in guards.map_err(cannot)?.join() {
        if let Err(why) = worker {
            shared.failure.set(Error::new("a worker ended before its time").because(why));
        }
    }
    if let Some(connections) = connections {
        connections.finish(&shared.failure);
    }
    let endings = endings.lock().unwrap_or_else(PoisonError::into_inner).clone();
    Ok(endings)
}
