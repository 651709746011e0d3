//! The second operator of a step that groups by key and event time, on the worker of the key: it applies each epoch's
//! records to the step's state and emits the results.
//!
//! An [`OperatorState`] is the state of a step on one worker: rows by window and key ([`super::arrange`]), or by key
//! alone ([`super::keyed_rows`]). The operator here calls it in the one order that makes its results a function of the
//! epochs' contents: an epoch's records, then its seal, then its watermark.
//!
//! Invariants:
//! * Epochs are applied in order, each when it is complete. Records of the *oldest incomplete* epoch are applied as
//!   they arrive: every epoch before it has been applied, sealed and closed, seals are known before their epoch is
//!   complete, and nothing reads the state until this epoch is complete too. Later epochs wait. (An `OperatorState`
//!   that watches its rows compares each before and after an epoch; its epochs are applied at once.)
//! * Rows are emitted under the capability of the watermark update that caused them, so windows close even when no
//!   records arrive.
//! * A job that resumes from a snapshot at c loads its rows at c. Windows that close exactly at c are among them, as
//!   c was sealed before it closed, and close again: sinks and checkpointed operators downstream drop what they have
//!   already.

use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use differential_dataflow::AsCollection;
use timely::container::CapacityContainerBuilder;
use timely::dataflow::channels::pact::{Exchange, Pipeline};
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use timely::dataflow::operators::generic::operator::Operator;
use timely::dataflow::operators::generic::{OperatorInfo, OutputBuilder};
use timely::dataflow::operators::{Capability, InputCapability, Probe};
use timely::dataflow::{Scope, Stream};
use timely::progress::frontier::MutableAntichain;

use crate::durable::codec::{Codec, NamedPostcard};
use crate::durable::declared_changes::NameScope;
use crate::error::Error;
use crate::metrics::StepMetrics;
use crate::record::{Event, Origin, Record};
use crate::stream::assign::{AssignConfig, ConsumerFlag, RecordRouter, assign};
use crate::stream::checkpoint::{self, CodecCell, SegmentBuilder};
use crate::stream::epochs::{self, EpochBuffer};
use crate::stream::keyed_stream::Keyed;
use crate::stream::operator_state::{
    OperatorStart, OperatorState, RecordBatchOf, RoutedRecordOf, StepResults, StepResultsOf, Subscriptions,
};
use crate::stream::panes::whole_millis;
use crate::stream::window_row::{Open, PeriodicRow, WindowRowChange};
use crate::stream::{
    Collection, ContainerPool, DurableContext, Fault, Flow, InjectedFault, SnapshotEpochs, WatermarkStream,
};
use crate::time::watermark::WatermarkUpdate;
use crate::time::{EventTime, Span};

/// Closed rows that are emitted per activation.
const PIECE: usize = 2048;

/// Shortest time between two reports of the open windows.
const REPORT_INTERVAL: Duration = Duration::from_millis(250);

/// The configuration of a step, apart from its records and its `OperatorState`.
struct StepConfig<F: OperatorState> {
    name: String,
    seals: SnapshotEpochs,
    metrics: Arc<StepMetrics>,
    fault: InjectedFault,
    /// The codec of saved rows.
    codec: CodecCell<F::SavedRow>,
    /// The pool for emptied containers: that of this worker's own first operator, whichever worker filled them.
    pool: ContainerPool<RoutedRecordOf<F>>,
    /// The step's number on the status board.
    number: usize,
}

/// Describes the allowed lateness for the plan; empty if it is zero.
pub(crate) fn describe_lateness(lateness: Span) -> String {
    if lateness == Span::ZERO { String::new() } else { format!(", {} ms late allowed", lateness.millis()) }
}

/// The outputs of a step.
pub(crate) struct StepOutputs<'f, R: Clone + 'static, K: Record, V: Record, D> {
    pub(crate) results: ResultStreams<'f, R, K, V>,
    late: Stream<'f, u64, Vec<Event<D>>>,
    marks: WatermarkStream<'f>,
    flow: Flow<'f>,
    pub(crate) subscriptions: Subscriptions,
    lateness: Span,
    /// The step's name.
    pub(super) name: String,
}

/// Builds both operators of a step: see [`assign`](super::assign) and [`OperatorState`].
pub(crate) fn step<'f, F: OperatorState, D: Record>(
    keyed: Keyed<'f, F::Key, D>,
    (name, detail): (&str, String),
    (subscriptions, lateness): (Subscriptions, Span),
    codec: CodecCell<F::SavedRow>,
    router: impl RecordRouter<D, Routing = F::Place>,
    part: impl Fn(&Event<D>) -> F::Part + 'static,
    begin: impl FnOnce(OperatorStart<'_>) -> F + 'static,
) -> StepOutputs<'f, F::Closed, F::Key, F::Value, D> {
    let (flow, marks, pool) =
        (keyed.stream.flow.clone(), keyed.stream.marks.clone(), ContainerPool::<RoutedRecordOf<F>>::default());
    register::<F>(&flow, name, detail);
    let (records, late) = assigned::<F, D>(keyed, (name, lateness), &subscriptions.late, router, part, pool.clone());
    operate(flow, name, (records, late, marks), (subscriptions, lateness), (codec, pool), begin)
}

/// Adds a step to the plan, and checks that its rows can be stored and its records exchanged.
pub(super) fn register<F: OperatorState>(flow: &Flow<'_>, name: &str, detail: String) {
    let codec = NamedPostcard::new(flow.build.registry.aggregate_names(name));
    flow.build.step("window", name, detail, Codec::<F::SavedRow>::fingerprint(&codec));
    checkpoint::check_rows::<F::SavedRow>(flow, name);
    flow.check_exchangeable::<(F::Key, F::Place, F::Part)>("step", name);
}

/// The records of a step that are on time, in batches for the workers of their keys.
pub(super) type AssignedRecords<'f, F> = Stream<'f, u64, Vec<RecordBatchOf<F>>>;

/// Builds the first operator of a step; returns the records that are on time, and the late ones.
pub(super) fn assigned<'f, F: OperatorState, D: Record>(
    keyed: Keyed<'f, F::Key, D>,
    (name, lateness): (&str, Span),
    late_subscribed: &ConsumerFlag,
    router: impl RecordRouter<D, Routing = F::Place>,
    part: impl Fn(&Event<D>) -> F::Part + 'static,
    pool: ContainerPool<RoutedRecordOf<F>>,
) -> (AssignedRecords<'f, F>, Stream<'f, u64, Vec<Event<D>>>) {
    let Keyed { stream, keys, .. } = keyed;
    let flow = stream.flow.clone();
    let resumed = flow.build.durable.as_ref().and_then(|durable| durable.step(name));
    let to_assign = AssignConfig {
        keys,
        router,
        part,
        late_subscribed: Rc::clone(late_subscribed),
        metrics: flow.build.metrics.step(name),
        ignore_activation_watermark: flow.has_fault(Fault::IgnoreActivationWatermark),
        gate: flow.build.durable.as_ref().and_then(DurableContext::gate).filter(|_| !flow.has_fault(Fault::SkipGate)),
        resumed: resumed.map_or(EventTime::MIN, |step| step.closed.plus(lateness)),
        peers: flow.scope.peers(),
    };
    assign(stream, name, to_assign, pool)
}

/// Builds the second operator of a step. `pool` is that of the first operator.
pub(super) fn operate<'f, F: OperatorState, D: Record>(
    flow: Flow<'f>,
    name: &str,
    (records, late, marks): (AssignedRecords<'f, F>, Stream<'f, u64, Vec<Event<D>>>, WatermarkStream<'f>),
    (subscriptions, lateness): (Subscriptions, Span),
    (codec, pool): (CodecCell<F::SavedRow>, ContainerPool<RoutedRecordOf<F>>),
    begin: impl FnOnce(OperatorStart<'_>) -> F + 'static,
) -> StepOutputs<'f, F::Closed, F::Key, F::Value, D> {
    let (seals, fault, metrics) = (flow.build.snapshot_epochs.clone(), flow.build.fault, flow.build.metrics.step(name));
    metrics.lateness_ms.fetch_max(lateness.millis().unsigned_abs(), Ordering::Relaxed);
    let number = flow.build.board.number(name);
    let step = StepConfig { name: name.to_owned(), seals, metrics, fault, codec, pool, number };
    let mut results = build_operator(&flow, records, marks.stream.clone(), step, begin);
    // Back-pressure includes this step: a query may have no sink behind it.
    results.closed = results.closed.probe_with(&flow.build.probe);
    StepOutputs { results, late, marks, flow, subscriptions, lateness, name: name.to_owned() }
}

impl<'f, R: Clone + 'static, K: Record, V: Record, D: Record> StepOutputs<'f, R, K, V, D> {
    pub(crate) fn flow(&self) -> &Flow<'f> {
        &self.flow
    }

    /// Records an earlier name of the step.
    pub(crate) fn record_earlier_name(&self, old: &str) {
        self.flow.build.registry.rename(NameScope::Step, &self.name, old);
    }

    /// Turns rows into events, each with its time; none of them is ever late. The stream's watermark is the step's,
    /// less the allowed lateness: every further row happens at it or later.
    pub(crate) fn events<T: Clone + 'static, D2: Record>(
        &self,
        rows: Stream<'f, u64, Vec<T>>,
        name: &str,
        event: impl Fn(T) -> (EventTime, D2) + 'static,
    ) -> super::Stream<'f, D2> {
        let events = rows.unary(Pipeline, name, move |_capability, _info| {
            let mut outputs = Vec::new();
            move |input, output| {
                input.for_each(|capability, rows| {
                    outputs.extend(rows.drain(..).map(|row| {
                        let (time, data) = event(row);
                        Event { time, watermark: time, origin: Origin::default(), data }
                    }));
                    output.session(&capability).give_container(&mut outputs);
                    outputs.clear();
                });
            }
        });
        self.flow.build.registry.add_output(events.name(), NameScope::Step, &self.name);
        let marks = self.marks.clone().derived(self.lateness);
        super::Stream { events, marks, flow: self.flow.clone(), pool: ContainerPool::default() }
    }

    /// Turns changes into a collection.
    pub(crate) fn collection(
        &self,
        changes: Stream<'f, u64, Vec<WindowRowChange<K, V>>>,
        name: &str,
    ) -> Collection<'f, Open<K, V>> {
        let changes = changes.unary(Pipeline, name, move |_capability, _info| {
            let mut outputs = Vec::new();
            move |input, output| {
                input.for_each(|capability, changes| {
                    let open = |(window, key, value)| Open { window, key, value };
                    outputs.extend(changes.drain(..).map(|(shown, epoch, diff)| (open(shown), epoch, diff)));
                    output.session(&capability).give_container(&mut outputs);
                    outputs.clear();
                });
            }
        });
        self.flow.build.registry.add_output(changes.name(), NameScope::Step, &self.name);
        Collection::new(changes.as_collection(), self.flow.clone())
    }

    /// Registers a period of `every`; returns its index. A period that is not a whole, positive number of
    /// milliseconds fails the job.
    pub(crate) fn period(&self, period: Duration) -> usize {
        let millis = whole_millis("period", period).and_then(|millis| match millis {
            0 => Err(Error::usage("rows cannot be emitted every 0 ms").help("make the period at least a millisecond")),
            millis => Ok(millis),
        });
        let millis = millis.unwrap_or_else(|error| {
            self.flow.build.failure.set(error);
            1
        });
        let mut periods = self.subscriptions.periods.borrow_mut();
        periods.push(millis);
        periods.len() - 1
    }

    /// Returns the late records, unchanged.
    pub(crate) fn late(&self) -> super::Stream<'f, D> {
        self.subscriptions.late.set(true);
        self.late_unsubscribed()
    }

    /// Returns the stream of late records, which has none before they are subscribed to.
    pub(crate) fn late_unsubscribed(&self) -> super::Stream<'f, D> {
        let (events, marks) = (self.late.clone(), self.marks.clone());
        super::Stream { events, marks, flow: self.flow.clone(), pool: ContainerPool::default() }
    }
}

/// The result streams of a step: final results, each at the epoch whose watermark closed it; the changes of the rows
/// of open windows and of fired ones; and rows period by period.
pub(crate) struct ResultStreams<'f, R: Clone + 'static, K: Record, V: Record> {
    pub(crate) closed: Stream<'f, u64, Vec<R>>,
    pub(crate) live: Stream<'f, u64, Vec<WindowRowChange<K, V>>>,
    pub(crate) fired: Stream<'f, u64, Vec<WindowRowChange<K, V>>>,
    pub(crate) ticked: Stream<'f, u64, Vec<PeriodicRow<K, V>>>,
}

/// The input of one epoch that is not complete yet.
struct PendingEpoch<F: OperatorState> {
    records: Vec<Vec<RoutedRecordOf<F>>>,
    /// Rows of a snapshot at this epoch.
    loaded: Vec<F::SavedRow>,
    /// A capability for each output; `None` while nothing has arrived that could lead to output at this epoch.
    capabilities: Option<[Capability<u64>; 4]>,
    mark: Option<EventTime>,
}

impl<F: OperatorState> Default for PendingEpoch<F> {
    fn default() -> Self {
        PendingEpoch { records: Vec::new(), loaded: Vec::new(), capabilities: None, mark: None }
    }
}

/// Returns a capability for each output, at an epoch.
fn capabilities_at(capability: &InputCapability<u64>, epoch: u64) -> [Capability<u64>; 4] {
    [0, 1, 2, 3].map(|output| capability.delayed(&epoch, output))
}

/// The results of an epoch and the capabilities to emit them under; `None` if nothing can be emitted.
type EpochResults<F> = Option<([Capability<u64>; 4], StepResultsOf<F>)>;

/// The second operator of a step, on one worker.
struct WindowOperator<F: OperatorState> {
    operator_state: F,
    step: StepConfig<F>,
    /// Input of epochs that have not been applied yet.
    pending: EpochBuffer<PendingEpoch<F>>,
    sealed_through: u64,
    watermark: EventTime,
    /// Closed rows that are still to be emitted, each batch under its capability.
    outgoing: VecDeque<(Capability<u64>, Vec<F::Closed>)>,
    /// Emptied batches.
    spare: Vec<Vec<F::Closed>>,
    /// The epoch of the snapshot that the job resumes from.
    resumes_at: Option<u64>,
    /// Builds segments of what is sealed; `None` in a job without state.
    saver: Option<SegmentBuilder<F::SavedRow>>,
    /// The time of the last report of the open windows.
    reported: Option<Instant>,
    /// `true` if an epoch has been completed since then.
    is_report_due: bool,
}

impl<F: OperatorState> WindowOperator<F> {
    /// Creates the operator's state; in a job with state, with the capability for its contributions to manifests.
    fn begin(
        scope: Scope<'_, u64>,
        info: OperatorInfo,
        durable: Option<(&DurableContext, Capability<u64>)>,
        step: StepConfig<F>,
        begin: impl FnOnce(OperatorStart<'_>) -> F,
    ) -> Self {
        let state = durable.as_ref().and_then(|(durable, _)| durable.step(&step.name));
        let closed = state.map_or(EventTime::MIN, |state| state.closed);
        let resumes_at = durable.as_ref().and_then(|(durable, _)| durable.gate());
        let segment_builder = durable.map(|(durable, capability)| {
            let address = &info.address;
            let wake = scope.worker().sync_activator_for(address.to_vec());
            let activators = (scope.activator_for(Rc::clone(address)), wake);
            SegmentBuilder::new(
                &step.name,
                durable.clone(),
                F::saved_rows(),
                Rc::clone(&step.codec),
                capability,
                activators,
            )
        });
        let operator_state = begin(OperatorStart { scope, info, closed, durable: segment_builder.is_some() });
        let mut pending = EpochBuffer::<PendingEpoch<F>>::default();
        if let Some(epoch) = resumes_at {
            pending.at(epoch);
        }
        let (outgoing, spare, watermark) = (VecDeque::new(), Vec::new(), EventTime::MIN);
        let sealed_through = resumes_at.unwrap_or(0);
        WindowOperator {
            operator_state,
            step,
            pending,
            sealed_through,
            watermark,
            outgoing,
            spare,
            resumes_at,
            saver: segment_builder,
            reported: None,
            is_report_due: false,
        }
    }

    /// Stores records of an epoch.
    fn take(&mut self, capability: &InputCapability<u64>, batches: &mut Vec<RecordBatchOf<F>>) {
        let Some(&epoch) = capability.least() else { return };
        let epoch_input = self.pending.at(epoch);
        let is_reported = F::REPORTS_RECORDS || self.operator_state.tracks_changes();
        if is_reported && epoch_input.capabilities.is_none() {
            epoch_input.capabilities = Some(capabilities_at(capability, epoch));
        }
        epoch_input.records.extend(batches.drain(..).map(|(_, records)| records));
    }

    /// Stores the watermark of an epoch.
    fn take_marks(&mut self, capability: &InputCapability<u64>, marks: &[WatermarkUpdate]) {
        let Some(&epoch) = capability.least() else { return };
        let epoch_input = self.pending.at(epoch);
        epoch_input.capabilities = Some(capabilities_at(capability, epoch));
        let time = |mark: &WatermarkUpdate| if F::CLOSES_AT_END { mark.watermark } else { mark.reached() };
        epoch_input.mark = epoch_input.mark.max(marks.iter().map(time).max());
    }

    /// Stores rows of a snapshot at an epoch.
    fn take_loaded(&mut self, capability: &InputCapability<u64>, rows: &mut Vec<F::SavedRow>) {
        let Some(&epoch) = capability.least() else { return };
        let epoch_input = self.pending.at(epoch);
        epoch_input.capabilities = Some(capabilities_at(capability, epoch));
        epoch_input.loaded.append(rows);
    }

    /// Completes the next epoch if all of its input has arrived, and returns its results except the closed rows,
    /// which [`WindowOperator::next_piece`] returns. `None` if there is no such epoch, or if its seal has to wait until
    /// the segment of the previous one is durable.
    fn next(&mut self, frontiers: &[MutableAntichain<u64>]) -> Option<EpochResults<F>> {
        let sealed = self.step.seals.contains(self.pending.first_complete(frontiers)?);
        if sealed && self.saver.as_ref().is_some_and(SegmentBuilder::is_busy) {
            return None;
        }
        let (epoch, epoch_input) = self.pending.next_complete(frontiers)?;
        self.sealed_through = if sealed { epoch } else { self.sealed_through };
        self.is_report_due = true;
        Some(self.complete(epoch, epoch_input, sealed))
    }

    /// Applies the records of the oldest incomplete epoch while they are in the processor's cache.
    fn fold_oldest(&mut self, frontiers: &[MutableAntichain<u64>]) {
        if self.operator_state.tracks_changes() {
            return;
        }
        let Some((epoch, oldest)) = self.pending.first_mut() else { return };
        if epochs::is_complete_before(frontiers, epoch) {
            let records = std::mem::take(&mut oldest.records);
            records.into_iter().for_each(|records| self.absorb(records));
        }
    }

    /// Applies records, and returns their container to the pool.
    fn absorb(&mut self, mut records: Vec<RoutedRecordOf<F>>) {
        self.operator_state.absorb(&mut records);
        self.step.pool.give(records);
    }

    /// Completes an epoch: applies its records, seals if `sealed`, and closes what its watermark closes. Returns the
    /// results, except closed rows, with the capabilities to emit them under.
    fn complete(
        &mut self,
        epoch: u64,
        epoch_input: PendingEpoch<F>,
        sealed: bool,
    ) -> Option<([Capability<u64>; 4], StepResultsOf<F>)> {
        let closed = self.spare.pop().unwrap_or_default();
        let mut results = StepResults { closed, ..StepResults::default() };
        if self.resumes_at == Some(epoch) {
            self.operator_state.load(epoch, epoch_input.loaded, &mut results);
        } else if self.operator_state.tracks_changes() {
            self.operator_state.absorb_tracked(
                epoch,
                epoch_input.records.into_iter().flatten().collect(),
                &mut results,
            );
        } else {
            epoch_input.records.into_iter().for_each(|records| self.absorb(records));
            self.operator_state.report(&mut results);
        }
        if sealed {
            let (closed, rows) = self.operator_state.seal(epoch);
            if let Some(segment_builder) = &mut self.saver {
                segment_builder.begin(epoch, closed, rows);
            }
        }
        if let Some(watermark) = epoch_input.mark.filter(|watermark| *watermark > self.watermark) {
            self.watermark = watermark;
            self.step.metrics.watermark.raise(watermark);
            self.operator_state.advance(epoch, watermark, &mut results);
        }
        if self.step.fault.is(Fault::LoseRow) {
            results.closed.pop();
        }
        if self.step.fault.is(Fault::SkipRetraction) {
            results.live.retain(|change| change.2 > 0);
            results.fired.retain(|change| change.2 > 0);
        }
        let capabilities = epoch_input.capabilities?;
        let mut closed = std::mem::take(&mut results.closed);
        if !closed.is_empty() {
            self.step.metrics.closed_rows.add(closed.len() as u64);
            // The memory of a much larger window is released.
            if closed.capacity() / 4 > closed.len().max(PIECE) {
                closed.shrink_to(closed.len() * 2);
            }
            self.outgoing.push_back((capabilities[0].clone(), closed));
        } else if closed.capacity() > 0 {
            self.spare.push(closed);
        }
        Some((capabilities, results))
    }

    /// Reports the open windows for the status of the job, if they may have changed and the last report is old enough.
    fn report_windows(&mut self, worker: usize, has_ended: bool) {
        let is_recent = self.reported.is_some_and(|reported| reported.elapsed() < REPORT_INTERVAL);
        if !self.is_report_due || is_recent && !has_ended {
            return;
        }
        if let Some(windows) = self.operator_state.open_windows() {
            self.step.metrics.windows.put(worker, windows);
        }
        (self.reported, self.is_report_due) = (Some(Instant::now()), false);
    }

    /// Returns the next piece of the closed rows, with the capability to emit it under. Rows are taken from the end
    /// of their batch: their order within an epoch is not significant.
    fn next_piece(&mut self) -> Option<(Capability<u64>, std::vec::Drain<'_, F::Closed>)> {
        while self.outgoing.front().is_some_and(|(_, rows)| rows.is_empty()) {
            self.spare.extend(self.outgoing.pop_front().map(|(_, rows)| rows));
            self.spare.truncate(2);
        }
        let (capability, rows) = self.outgoing.front_mut()?;
        Some((capability.clone(), rows.drain(rows.len().saturating_sub(PIECE)..)))
    }
}

/// Builds the second operator of a step.
///
/// `records` are the records that are on time, in batches for the workers of their keys; `marks` is the stream's
/// watermark, which is the same on every worker.
fn build_operator<'f, F: OperatorState>(
    flow: &Flow<'f>,
    records: Stream<'f, u64, Vec<RecordBatchOf<F>>>,
    marks: Stream<'f, u64, Vec<WatermarkUpdate>>,
    step: StepConfig<F>,
    begin: impl FnOnce(OperatorStart<'_>) -> F + 'static,
) -> ResultStreams<'f, F::Closed, F::Key, F::Value> {
    let scope = flow.scope;
    let durable = flow.build.durable.clone();
    let loaded = checkpoint::load(flow, &step.name, F::saved_rows(), Rc::clone(&step.codec));
    let mut builder = OperatorBuilder::new(format!("Fold: {}", step.name), scope);
    let to_worker = Exchange::new(|parcel: &RecordBatchOf<F>| parcel.0);
    let mut records = builder.new_input(records, to_worker);
    let mut marks = builder.new_input(marks, Pipeline);
    let by_key = Exchange::new(|saved: &F::SavedRow| super::route::route(F::key_of(saved)));
    let mut loaded = loaded.map(|loaded| builder.new_input(loaded, by_key));
    let (closed, closed_stream) = builder.new_output();
    let (live, live_stream) = builder.new_output();
    let (fired, fired_stream) = builder.new_output();
    let (ticked, ticked_stream) = builder.new_output();
    let mut closed = OutputBuilder::<_, CapacityContainerBuilder<_>>::from(closed);
    let mut live = OutputBuilder::<_, CapacityContainerBuilder<_>>::from(live);
    let mut fired = OutputBuilder::<_, CapacityContainerBuilder<_>>::from(fired);
    let mut ticked = OutputBuilder::<_, CapacityContainerBuilder<_>>::from(ticked);
    let mut snapshot_acks = flow.snapshot_output(&mut builder);
    let info = builder.operator_info();
    let (board, worker) = (Arc::clone(&flow.build.board), scope.index());
    builder.build(move |mut capabilities| {
        let activator = scope.activator_for(Rc::clone(&info.address));
        let durable = durable.as_ref().zip(capabilities.pop().filter(|_| snapshot_acks.is_some()));
        drop(capabilities);
        let mut operator = WindowOperator::begin(scope, info, durable, step, begin);
        move |frontiers| {
            let _doing = board.enter(worker, operator.step.number);
            records.for_each(|capability, batches| operator.take(&capability, batches));
            marks.for_each(|capability, marks| operator.take_marks(&capability, marks));
            if let Some(loaded) = &mut loaded {
                loaded.for_each(|capability, rows| operator.take_loaded(&capability, rows));
            }
            for epoch in operator.step.seals.after(operator.sealed_through) {
                operator.pending.at(epoch);
            }
            let waits_for = if operator.step.fault.is(Fault::CloseEarly) { &frontiers[1..] } else { frontiers };
            let (mut closed, mut live) = (closed.activate(), live.activate());
            let (mut fired, mut ticked) = (fired.activate(), ticked.activate());
            while let Some(shows) = operator.next(waits_for) {
                if let Some(([_, for_live, for_fired, for_ticked], results)) = shows {
                    live.session(&for_live).give_iterator(results.live.into_iter());
                    fired.session(&for_fired).give_iterator(results.fired.into_iter());
                    ticked.session(&for_ticked).give_iterator(results.ticked.into_iter());
                }
            }
            // Closed rows are emitted piece by piece, so that downstream operators keep up and a closing window never
            // needs memory for all of its rows in all of their forms.
            if let Some((capability, rows)) = operator.next_piece() {
                closed.session(&capability).give_iterator(rows);
                activator.activate();
            }
            operator.fold_oldest(frontiers);
            operator.report_windows(worker, epochs::has_ended(frontiers));
            if let (Some(segment_builder), Some(snapshot_acks)) = (&mut operator.saver, &mut snapshot_acks) {
                if let Some((capability, part)) = segment_builder.work() {
                    snapshot_acks.activate().session(&capability).give(part);
                }
                if epochs::has_ended(frontiers) && operator.pending.is_empty() {
                    segment_builder.close();
                }
            }
        }
    });
    ResultStreams { closed: closed_stream, live: live_stream, fired: fired_stream, ticked: ticked_stream }
}
