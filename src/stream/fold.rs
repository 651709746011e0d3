//! The second operator of a step that groups by key and event time, on the worker of the key: it folds each epoch's
//! records into what the step keeps, and shows what comes of it.
//!
//! A [`Fold`] is what a step keeps on one worker: rows by window and key ([`super::arrange`]), or by key alone
//! ([`super::keyed`]). The operator here gives it what happens, in the one order that makes its results a function of what
//! the epochs hold: an epoch's records, then its seal, then its watermark.
//!
//! Invariants:
//! * Epochs are folded in order, each when it is complete. Records of the *oldest incomplete* epoch are folded as they
//!   come: every epoch before it has been folded, sealed and closed, seals are known before their epoch is complete, and
//!   nothing reads what is kept until this epoch is complete too. Later epochs wait. (A fold that watches its rows compares
//!   each before and after an epoch; its epochs are folded at once.)
//! * Rows are emitted under the capability of the watermark message that brought them forth, so windows close even when no
//!   records came.
//! * A job that goes on from a snapshot at c loads its rows at c. What closes exactly at c is in them, as c was sealed
//!   before it closed, and closes again: sinks and cuts behind it drop what they had.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use differential_dataflow::AsCollection;
use timely::container::CapacityContainerBuilder;
use timely::dataflow::channels::pact::{Exchange, Pipeline};
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use timely::dataflow::operators::generic::operator::Operator;
use timely::dataflow::operators::generic::{OperatorInfo, OutputBuilder};
use timely::dataflow::operators::{Capability, InputCapability, Probe};
use timely::dataflow::{Scope, Stream};
use timely::progress::frontier::MutableAntichain;

use crate::durable::codec::{Codec, Postcard};
use crate::error::Error;
use crate::metrics::StepMetrics;
use crate::record::{Event, Origin, Record};
use crate::stream::assign::{Assign, Judge, Parcel, Routed, assign};
use crate::stream::cut::{self, CodecCell, Durable, Part, RowKind, RowsOut, Saver};
use crate::stream::slot::whole_millis;
use crate::stream::window::{Interval, Keyed, Open};
use crate::stream::{Collection, Fault, Flow, Marks, Pool, Seals, Wanted};
use crate::time::watermark::Mark;
use crate::time::{EventTime, Span};

/// How many closed rows are emitted at a time.
const PIECE: usize = 2048;

/// What a window shows for a key.
pub(crate) type Shown<K, V> = (Interval, K, V);
/// A change of what is shown.
pub(crate) type Change<K, V> = (Shown<K, V>, u64, isize);
/// What a window shows for a key when the watermark came past a time: which of the periods, and that time.
pub(crate) type Ticked<K, V> = (usize, EventTime, Shown<K, V>);

/// What a step shows at one epoch.
pub(crate) struct Results<R, K, V> {
    /// What is final.
    pub(crate) closed: Vec<R>,
    /// Changes of the rows of open windows.
    pub(crate) live: Vec<Change<K, V>>,
    /// Changes of the rows of windows that have fired.
    pub(crate) fired: Vec<Change<K, V>>,
    /// Rows of open windows, period by period.
    pub(crate) ticked: Vec<Ticked<K, V>>,
}

/// Which results anybody wants: set while the flow is built, read when it runs.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wants {
    pub(crate) live: Wanted,
    pub(crate) fired: Wanted,
    pub(crate) late: Wanted,
    /// The periods of `every`, in milliseconds.
    pub(crate) periods: Rc<RefCell<Vec<i64>>>,
}

impl Wants {
    /// Whether windows that have fired may still be corrected, and somebody wants to see it.
    pub(crate) fn corrections(&self, lateness: Span) -> bool {
        self.fired.get() && lateness > Span::ZERO
    }

    /// Which periods have passed between two watermarks, each with the last multiple of it that has been passed.
    pub(crate) fn ticks(&self, before: EventTime, now: EventTime) -> Vec<(usize, EventTime)> {
        if before == EventTime::MIN || now == EventTime::MAX {
            return Vec::new();
        }
        let periods = self.periods.borrow();
        let passed = periods.iter().enumerate().filter_map(|(index, period)| {
            let multiple = now.millis() - now.millis().rem_euclid(*period);
            (multiple > before.millis()).then(|| (index, EventTime::from_millis(multiple)))
        });
        passed.collect()
    }
}

/// What a step keeps of its records on one worker.
pub(crate) trait Fold: 'static {
    /// What its records are grouped by.
    type Key: Record;
    /// Where a record belongs: see [`Judge`](super::assign::Judge).
    type Place: Record + Copy;
    /// What is there of a record.
    type Part: Record;
    /// A row as snapshots keep it.
    type Saved: Record;
    /// What is shown when it is final.
    type Closed: Clone + 'static;
    /// What windows show.
    type Value: Record;

    /// How saved rows are ordered, added up and judged.
    fn saved_rows() -> RowKind<Self::Saved>;

    /// The key of a saved row.
    fn key_of(saved: &Self::Saved) -> &Self::Key;

    /// Whether rows are compared before and after an epoch: its records are then folded at once, when it is complete.
    fn watches(&self) -> bool;

    /// Folds records in.
    fn absorb(&mut self, records: &mut Vec<Routed<Self::Key, Self::Place, Self::Part>>);

    /// Folds an epoch's records in, and tells how rows changed by them; only for a fold that watches.
    fn absorb_watching(&mut self, epoch: u64, records: Vec<RoutedOf<Self>>, results: &mut ResultsOf<Self>);

    /// Begins with what a snapshot has, in no order.
    fn load(&mut self, epoch: u64, rows: Vec<Self::Saved>, results: &mut ResultsOf<Self>);

    /// Ends what has changed since the last seal: what a segment of it has. What ends at the time that it answers with, or
    /// before, has closed.
    fn seal(&mut self, epoch: u64) -> (EventTime, Option<RowsOut<Self::Saved>>);

    /// The stream's watermark has come so far, which is farther than before.
    fn advance(&mut self, epoch: u64, watermark: EventTime, results: &mut ResultsOf<Self>);
}

/// A record of a fold.
pub(crate) type RoutedOf<F> = Routed<<F as Fold>::Key, <F as Fold>::Place, <F as Fold>::Part>;
/// Records of a fold, on their way.
pub(crate) type ParcelOf<F> = Parcel<<F as Fold>::Key, <F as Fold>::Place, <F as Fold>::Part>;
/// What a fold shows.
pub(crate) type ResultsOf<F> = Results<<F as Fold>::Closed, <F as Fold>::Key, <F as Fold>::Value>;

/// What a fold begins with on a worker.
pub(crate) struct Start<'a> {
    pub(crate) scope: Scope<'a, u64>,
    pub(crate) info: OperatorInfo,
    /// What ends here or before has closed in an earlier life.
    pub(crate) closed: EventTime,
    /// Whether what changes is to be noted for snapshots.
    pub(crate) durable: bool,
}

/// What a step needs besides its records and its fold.
struct Step<F: Fold> {
    name: String,
    seals: Seals,
    metrics: Arc<StepMetrics>,
    fault: Option<Fault>,
    /// How saved rows are bytes.
    codec: CodecCell<F::Saved>,
    /// Where emptied containers go: to the worker's own sending, whoever filled them.
    pool: Pool<RoutedOf<F>>,
    /// The step's number on the board.
    number: usize,
}

/// The allowed lateness, for the plan.
pub(crate) fn said(lateness: Span) -> String {
    if lateness == Span::ZERO { String::new() } else { format!(", {} ms late allowed", lateness.millis()) }
}

/// What comes of a step.
pub(crate) struct Made<'f, R: Clone + 'static, K: Record, V: Record, D> {
    pub(crate) results: Streams<'f, R, K, V>,
    late: Stream<'f, u64, Vec<Event<D>>>,
    marks: Marks<'f>,
    flow: Flow<'f>,
    pub(crate) wants: Wants,
    lateness: Span,
}

/// Makes both operators of a step: see [`assign`](super::assign) and [`Fold`].
pub(crate) fn step<'f, F: Fold, D: Record>(
    keyed: Keyed<'f, F::Key, D>,
    (name, detail): (&str, String),
    (wants, lateness): (Wants, Span),
    codec: CodecCell<F::Saved>,
    judge: impl Judge<D, Place = F::Place>,
    part: impl Fn(&Event<D>) -> F::Part + 'static,
    begin: impl FnOnce(Start<'_>) -> F + 'static,
) -> Made<'f, F::Closed, F::Key, F::Value, D> {
    let Keyed { stream, keys, .. } = keyed;
    let flow = stream.flow.clone();
    flow.build.step("window", name, detail, Codec::<F::Saved>::fingerprint(&Postcard));
    cut::check_rows::<F::Saved>(&flow, name);
    flow.check_travels::<(F::Key, F::Place, F::Part)>("step", name);
    let (metrics, pool) = (flow.build.metrics.step(name), Pool::default());
    let to_assign = Assign {
        keys,
        judge,
        part,
        wants_late: Rc::clone(&wants.late),
        metrics: Arc::clone(&metrics),
        forget_floor: flow.fault(Fault::ForgetFloor),
        gate: flow.build.durable.as_ref().and_then(Durable::gate).filter(|_| !flow.fault(Fault::OpenGate)),
        peers: flow.scope.peers(),
    };
    let marks = stream.marks.clone();
    let (records, late) = assign(stream, name, to_assign, pool.clone());
    let (seals, fault) = (flow.build.seals.clone(), flow.build.fault);
    metrics.lateness_ms.fetch_max(lateness.millis().unsigned_abs(), Ordering::Relaxed);
    let number = flow.build.board.number(name);
    let step = Step { name: name.to_owned(), seals, metrics, fault, codec, pool, number };
    let mut results = fold(&flow, records, marks.stream.clone(), step, begin);
    // Reading waits for this step too: it may be all there is to wait for.
    results.closed = results.closed.probe_with(&flow.build.probe);
    Made { results, late, marks, flow, wants, lateness }
}

impl<'f, R: Clone + 'static, K: Record, V: Record, D: Record> Made<'f, R, K, V, D> {
    pub(crate) fn flow(&self) -> &Flow<'f> {
        &self.flow
    }

    /// Rows as events, each with its time; none of them is ever late. The stream's watermark is the step's, less the allowed
    /// lateness: whatever is still to be shown happens at it or later.
    pub(crate) fn events<T: Clone + 'static, D2: Record>(
        &self,
        rows: Stream<'f, u64, Vec<T>>,
        name: &str,
        event: impl Fn(T) -> (EventTime, D2) + 'static,
    ) -> super::Stream<'f, D2> {
        let events = rows.unary(Pipeline, name, move |_capability, _info| {
            let mut made = Vec::new();
            move |input, output| {
                input.for_each(|capability, rows| {
                    made.extend(rows.drain(..).map(|row| {
                        let (time, data) = event(row);
                        Event { time, mark: time, origin: Origin::default(), data }
                    }));
                    output.session(&capability).give_container(&mut made);
                    made.clear();
                });
            }
        });
        let marks = self.marks.clone().derived(self.lateness);
        super::Stream { events, marks, flow: self.flow.clone(), pool: Pool::default() }
    }

    /// Changes as a collection.
    pub(crate) fn collection(
        &self,
        changes: Stream<'f, u64, Vec<Change<K, V>>>,
        name: &str,
    ) -> Collection<'f, Open<K, V>> {
        let changes = changes.unary(Pipeline, name, move |_capability, _info| {
            let mut made = Vec::new();
            move |input, output| {
                input.for_each(|capability, changes| {
                    let open = |(window, key, value)| Open { window, key, value };
                    made.extend(changes.drain(..).map(|(shown, epoch, diff)| (open(shown), epoch, diff)));
                    output.session(&capability).give_container(&mut made);
                    made.clear();
                });
            }
        });
        Collection::new(changes.as_collection(), self.flow.clone())
    }

    /// The number of a period, for `every`.
    pub(crate) fn period(&self, period: Duration) -> usize {
        let millis = whole_millis("period", period).and_then(|millis| match millis {
            0 => Err(Error::usage("rows cannot be shown every 0 ms").help("make the period at least a millisecond")),
            millis => Ok(millis),
        });
        let millis = millis.unwrap_or_else(|error| {
            self.flow.build.failure.set(error);
            1
        });
        let mut periods = self.wants.periods.borrow_mut();
        periods.push(millis);
        periods.len() - 1
    }

    /// The records that came too late, as they are.
    pub(crate) fn late(&self) -> super::Stream<'f, D> {
        self.wants.late.set(true);
        let (events, marks) = (self.late.clone(), self.marks.clone());
        super::Stream { events, marks, flow: self.flow.clone(), pool: Pool::default() }
    }
}

/// The results of a step: what is final, each at the epoch whose watermark brought it forth; the changes of live rows and
/// of fired ones; and rows period by period.
pub(crate) struct Streams<'f, R: Clone + 'static, K: Record, V: Record> {
    pub(crate) closed: Stream<'f, u64, Vec<R>>,
    pub(crate) live: Stream<'f, u64, Vec<Change<K, V>>>,
    pub(crate) fired: Stream<'f, u64, Vec<Change<K, V>>>,
    pub(crate) ticked: Stream<'f, u64, Vec<Ticked<K, V>>>,
}

/// Everything that happens at one epoch.
struct Turn<F: Fold> {
    records: Vec<Vec<RoutedOf<F>>>,
    /// What a snapshot at this epoch has.
    loaded: Vec<F::Saved>,
    /// A capability for each output; `None` while nothing has come that could be shown at this epoch.
    capabilities: Option<[Capability<u64>; 4]>,
    mark: Option<EventTime>,
}

impl<F: Fold> Default for Turn<F> {
    fn default() -> Self {
        Turn { records: Vec::new(), loaded: Vec::new(), capabilities: None, mark: None }
    }
}

/// A capability for each output, at an epoch.
fn each(capability: &InputCapability<u64>, epoch: u64) -> [Capability<u64>; 4] {
    [0, 1, 2, 3].map(|output| capability.delayed(&epoch, output))
}

/// What an epoch shows, with the capabilities to emit it under; `None` where nothing can be shown.
type Shows<F> = Option<([Capability<u64>; 4], ResultsOf<F>)>;

/// What one worker does of a step.
struct Folding<F: Fold> {
    fold: F,
    step: Step<F>,
    /// What has come of epochs that are not folded yet.
    turns: BTreeMap<u64, Turn<F>>,
    sealed_through: u64,
    watermark: EventTime,
    /// Closed rows that are still to be emitted, each batch under its capability.
    leaving: VecDeque<(Capability<u64>, Vec<F::Closed>)>,
    /// Emptied batches.
    spare: Vec<Vec<F::Closed>>,
    /// The epoch of the snapshot that the job goes on from.
    begins_at: Option<u64>,
    /// Makes segments of what is sealed, in a job with state.
    saver: Option<Saver<F::Saved>>,
}

impl<F: Fold> Folding<F> {
    /// Begins on a worker; in a job with state, with the capability of its parts.
    fn begin(
        scope: Scope<'_, u64>,
        info: OperatorInfo,
        durable: Option<(&Durable, Capability<u64>)>,
        step: Step<F>,
        begin: impl FnOnce(Start<'_>) -> F,
    ) -> Self {
        let state = durable.as_ref().and_then(|(durable, _)| durable.step(&step.name));
        let closed = state.map_or(EventTime::MIN, |state| state.closed);
        let begins_at = durable.as_ref().and_then(|(durable, _)| durable.gate());
        let saver = durable.map(|(durable, capability)| {
            let address = &info.address;
            let wake = scope.worker().sync_activator_for(address.to_vec());
            let activators = (scope.activator_for(Rc::clone(address)), wake);
            Saver::new(&step.name, durable.clone(), F::saved_rows(), Rc::clone(&step.codec), capability, activators)
        });
        let fold = begin(Start { scope, info, closed, durable: saver.is_some() });
        let turns = begins_at.map(|epoch| (epoch, Turn::default())).into_iter().collect();
        let (leaving, spare, watermark) = (VecDeque::new(), Vec::new(), EventTime::MIN);
        let sealed_through = begins_at.unwrap_or(0);
        Folding { fold, step, turns, sealed_through, watermark, leaving, spare, begins_at, saver }
    }

    /// Takes records of an epoch.
    fn take(&mut self, capability: &InputCapability<u64>, parcels: &mut Vec<ParcelOf<F>>) {
        let Some(&epoch) = capability.least() else { return };
        let turn = self.turns.entry(epoch).or_default();
        if self.fold.watches() && turn.capabilities.is_none() {
            turn.capabilities = Some(each(capability, epoch));
        }
        turn.records.extend(parcels.drain(..).map(|(_, records)| records));
    }

    /// Takes the watermark of an epoch.
    fn take_marks(&mut self, capability: &InputCapability<u64>, marks: &[Mark]) {
        let Some(&epoch) = capability.least() else { return };
        let turn = self.turns.entry(epoch).or_default();
        turn.capabilities = Some(each(capability, epoch));
        turn.mark = turn.mark.max(marks.iter().map(|mark| mark.watermark).max());
    }

    /// Takes rows of a snapshot at an epoch.
    fn take_loaded(&mut self, capability: &InputCapability<u64>, rows: &mut Vec<F::Saved>) {
        let Some(&epoch) = capability.least() else { return };
        let turn = self.turns.entry(epoch).or_default();
        turn.capabilities = Some(each(capability, epoch));
        turn.loaded.append(rows);
    }

    /// Ends the next epoch, if it is complete: what it shows, but for what has closed, with the capabilities to emit it
    /// under; `None` if there is no such epoch, or its seal has to wait for the segment of the one before.
    fn next(&mut self, incomplete: impl Fn(u64) -> bool) -> Option<Shows<F>> {
        let turn = self.turns.first_entry().filter(|turn| !incomplete(*turn.key()))?;
        let sealed = self.step.seals.contains(*turn.key());
        if sealed && self.saver.as_ref().is_some_and(Saver::is_busy) {
            return None;
        }
        let (epoch, turn) = turn.remove_entry();
        self.sealed_through = if sealed { epoch } else { self.sealed_through };
        Some(self.complete(epoch, turn, sealed))
    }

    /// Folds what has come of the oldest incomplete epoch while it is in the processor's cache.
    fn fold_oldest(&mut self, frontiers: &[MutableAntichain<u64>]) {
        if self.fold.watches() {
            return;
        }
        let Some(mut oldest) = self.turns.first_entry() else { return };
        if frontiers.iter().all(|frontier| !frontier.less_than(oldest.key())) {
            let records = std::mem::take(&mut oldest.get_mut().records);
            records.into_iter().for_each(|records| self.absorb(records));
        }
    }

    /// Folds records in, and gives their container back.
    fn absorb(&mut self, mut records: Vec<RoutedOf<F>>) {
        self.fold.absorb(&mut records);
        self.step.pool.give(records);
    }

    /// Ends an epoch: folds its records in, seals if it is to be sealed, closes what its watermark closes. What it shows,
    /// but for what has closed, with the capabilities to emit it under.
    fn complete(&mut self, epoch: u64, turn: Turn<F>, sealed: bool) -> Option<([Capability<u64>; 4], ResultsOf<F>)> {
        let closed = self.spare.pop().unwrap_or_default();
        let mut results = Results { closed, live: Vec::new(), fired: Vec::new(), ticked: Vec::new() };
        if self.begins_at == Some(epoch) {
            self.fold.load(epoch, turn.loaded, &mut results);
        } else if self.fold.watches() {
            self.fold.absorb_watching(epoch, turn.records.into_iter().flatten().collect(), &mut results);
        } else {
            turn.records.into_iter().for_each(|records| self.absorb(records));
        }
        if sealed {
            let (closed, rows) = self.fold.seal(epoch);
            if let Some(saver) = &mut self.saver {
                saver.begin(epoch, closed, rows);
            }
        }
        if let Some(watermark) = turn.mark.filter(|watermark| *watermark > self.watermark) {
            self.watermark = watermark;
            self.step.metrics.watermark.raise(watermark);
            self.fold.advance(epoch, watermark, &mut results);
        }
        match self.step.fault {
            Some(Fault::LoseRow) => drop(results.closed.pop()),
            Some(Fault::SkipRetraction) => {
                results.live.retain(|change| change.2 > 0);
                results.fired.retain(|change| change.2 > 0);
            }
            _ => {}
        }
        let capabilities = turn.capabilities?;
        let closed = std::mem::take(&mut results.closed);
        if !closed.is_empty() {
            self.step.metrics.closed_rows.add(closed.len() as u64);
            self.leaving.push_back((capabilities[0].clone(), closed));
        } else if closed.capacity() > 0 {
            self.spare.push(closed);
        }
        Some((capabilities, results))
    }

    /// The next piece of what has closed, with the capability to emit it under. Rows leave from the end of their batch:
    /// their order within an epoch means nothing.
    fn next_piece(&mut self) -> Option<(Capability<u64>, std::vec::Drain<'_, F::Closed>)> {
        while self.leaving.front().is_some_and(|(_, rows)| rows.is_empty()) {
            self.spare.extend(self.leaving.pop_front().map(|(_, rows)| rows));
            self.spare.truncate(2);
        }
        let (capability, rows) = self.leaving.front_mut()?;
        Some((capability.clone(), rows.drain(rows.len().saturating_sub(PIECE)..)))
    }
}

/// Folds records by key.
///
/// `records` are those that are on time, in parcels for the workers of their keys; `marks` is the stream's watermark as
/// every worker has it.
fn fold<'f, F: Fold>(
    flow: &Flow<'f>,
    records: Stream<'f, u64, Vec<ParcelOf<F>>>,
    marks: Stream<'f, u64, Vec<Mark>>,
    step: Step<F>,
    begin: impl FnOnce(Start<'_>) -> F + 'static,
) -> Streams<'f, F::Closed, F::Key, F::Value> {
    let scope = flow.scope;
    let durable = flow.build.durable.clone();
    let loaded = cut::load(flow, &step.name, F::saved_rows(), Rc::clone(&step.codec));
    let mut builder = OperatorBuilder::new(format!("Fold: {}", step.name), scope);
    let to_worker = Exchange::new(|parcel: &ParcelOf<F>| parcel.0);
    let mut records = builder.new_input(records, to_worker);
    let mut marks = builder.new_input(marks, Pipeline);
    let by_key = Exchange::new(|saved: &F::Saved| super::route::route(F::key_of(saved)));
    let mut loaded = loaded.map(|loaded| builder.new_input(loaded, by_key));
    let (closed, closed_stream) = builder.new_output();
    let (live, live_stream) = builder.new_output();
    let (fired, fired_stream) = builder.new_output();
    let (ticked, ticked_stream) = builder.new_output();
    let mut closed = OutputBuilder::<_, CapacityContainerBuilder<_>>::from(closed);
    let mut live = OutputBuilder::<_, CapacityContainerBuilder<_>>::from(live);
    let mut fired = OutputBuilder::<_, CapacityContainerBuilder<_>>::from(fired);
    let mut ticked = OutputBuilder::<_, CapacityContainerBuilder<_>>::from(ticked);
    let mut parts = durable.is_some().then(|| {
        let (parts, stream) = builder.new_output();
        flow.parts.borrow_mut().push(stream);
        OutputBuilder::<_, CapacityContainerBuilder<Vec<Part>>>::from(parts)
    });
    let info = builder.operator_info();
    let (board, worker) = (Arc::clone(&flow.build.board), scope.index());
    builder.build(move |mut capabilities| {
        let again = scope.activator_for(Rc::clone(&info.address));
        let durable = durable.as_ref().zip(capabilities.pop().filter(|_| parts.is_some()));
        drop(capabilities);
        let mut folding = Folding::begin(scope, info, durable, step, begin);
        move |frontiers| {
            let _doing = board.enter(worker, folding.step.number);
            records.for_each(|capability, parcels| folding.take(&capability, parcels));
            marks.for_each(|capability, marks| folding.take_marks(&capability, marks));
            if let Some(loaded) = &mut loaded {
                loaded.for_each(|capability, rows| folding.take_loaded(&capability, rows));
            }
            for epoch in folding.step.seals.after(folding.sealed_through) {
                folding.turns.entry(epoch).or_default();
            }
            let waits_for = if folding.step.fault == Some(Fault::CloseEarly) { &frontiers[1..] } else { frontiers };
            let incomplete = |epoch: u64| waits_for.iter().any(|frontier| frontier.less_equal(&epoch));
            let (mut closed, mut live) = (closed.activate(), live.activate());
            let (mut fired, mut ticked) = (fired.activate(), ticked.activate());
            while let Some(shows) = folding.next(incomplete) {
                if let Some(([_, for_live, for_fired, for_ticked], results)) = shows {
                    live.session(&for_live).give_iterator(results.live.into_iter());
                    fired.session(&for_fired).give_iterator(results.fired.into_iter());
                    ticked.session(&for_ticked).give_iterator(results.ticked.into_iter());
                }
            }
            // What has closed leaves piece by piece: who takes it can keep up, and a window that closes needs no memory
            // for all of its rows in all of their forms.
            if let Some((capability, rows)) = folding.next_piece() {
                closed.session(&capability).give_iterator(rows);
                again.activate();
            }
            folding.fold_oldest(frontiers);
            if let (Some(saver), Some(parts)) = (&mut folding.saver, &mut parts) {
                if let Some((capability, part)) = saver.work() {
                    parts.activate().session(&capability).give(part);
                }
                if frontiers.iter().all(MutableAntichain::is_empty) && folding.turns.is_empty() {
                    saver.close();
                }
            }
        }
    });
    Streams { closed: closed_stream, live: live_stream, fired: fired_stream, ticked: ticked_stream }
}
