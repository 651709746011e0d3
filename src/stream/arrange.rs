//! Windowed aggregates as a differential arrangement whose newest batch is hot.
//!
//! * A **row** is `((window end, key), epoch, Counted)`: the value is in the difference, so that the arrangement's own
//!   consolidation does the aggregating. Keys are window-major, so closing is the scan of a prefix.
//! * The **hot** part is one hash map for each open window: what has changed since the last seal.
//! * A **seal** sorts the maps into one batch of the trace: the consolidated updates of (last seal, this one].
//!
//! Input is insert-only. A row is retracted once, when it closes: by adding its negated count, in the next batch, at the
//! odd epoch behind the one that closed it. Rows born and closed between two seals never reach the trace: they would
//! cancel in that batch.
//!
//! Invariants:
//! * Epochs are folded in order: an epoch's records, then its seal, then its watermark. So what a window shows is a
//!   function of what the epochs hold, whenever seals happen. Records of the *oldest incomplete* epoch are folded as they
//!   come: every epoch before it has been folded, sealed and closed, seals are known before their epoch is complete, and
//!   nothing reads the maps until this epoch is complete too. Later epochs wait. (`on_change` compares a row before and
//!   after an epoch, so with it an epoch is folded at once.)
//! * Every closed row is the sum of trace and map. After all, counts of rows are ≥ 0; a zero count is no row.
//! * Rows are emitted under the capability of the watermark message that closed them, so windows close even when no
//!   records came.
//! * Rows that a snapshot at epoch c has are one batch of the trace, through c. What closes exactly at c is in it, as c was
//!   sealed before it closed, and closes again: sinks and cuts behind it drop what they had. Counts are then ≥ 1.
//!
//! This is the only module that knows differential's trace types. The trace types used are public there:
//! `TraceAgent::new`, `TraceWriter`, `KeyBuilder`.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::hash::{BuildHasher, Hash};
use std::rc::Rc;
use std::sync::Arc;
use std::vec::Drain;

use differential_dataflow::batcher::merge::Sealer;
use differential_dataflow::difference::{IsZero, Semigroup};
use differential_dataflow::operators::arrange::{TraceAgent, TraceWriter};
use differential_dataflow::trace::cursor::CursorList;
use differential_dataflow::trace::implementations::ord_neu::OrdKeyBatch;
use differential_dataflow::trace::implementations::{KeyBuilder, KeySpine, Vector};
use differential_dataflow::trace::{Cursor, Description, Navigable, Span, Trace, TraceReader};
use foldhash::fast::FixedState;
use serde::{Deserialize, Serialize};
use timely::container::CapacityContainerBuilder;
use timely::dataflow::channels::pact::{Exchange, Pipeline};
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use timely::dataflow::operators::generic::{OperatorInfo, OutputBuilder};
use timely::dataflow::operators::{Capability, InputCapability};
use timely::dataflow::{Scope, Stream};
use timely::progress::frontier::MutableAntichain;
use timely::progress::{Antichain, Stamp};

use crate::error::Result;
use crate::metrics::StepMetrics;
use crate::record::Record;
use crate::stream::aggregate::{Accumulator, Aggregate};
use crate::stream::cut::{self, CodecCell, Durable, Part, RowKind, RowsOut, Saver};
use crate::stream::{Failure, Fault, Flow, Pool, Seals};
use crate::time::EventTime;
use crate::time::watermark::Mark;

/// How many closed rows are emitted at a time.
const PIECE: usize = 2048;

/// A row's key: window-major.
pub(crate) type Row<K> = (EventTime, K);
type State<K, S> = KeySpine<Row<K>, u64, Counted<S>>;
type Batch<K, S> = OrdKeyBatch<Vector<Update<K, S>>>;
type Update<K, S> = ((Row<K>, ()), u64, Counted<S>);
/// A row as snapshots keep it.
pub(crate) type Saved<K, S> = (Row<K>, Counted<S>);
type Hot<K, S> = HashMap<K, Counted<S>, FixedState>;
/// A record on its way to the worker of its key: key, window end, what the aggregate needs of it.
pub(crate) type Routed<K, P> = (K, EventTime, P);
/// Records for a worker, and which: so that they cross threads as they are, many at a time.
pub(crate) type Parcel<K, P> = (u64, Vec<Routed<K, P>>);

/// An accumulator and how many records it holds; nothing when that is zero.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct Counted<S> {
    count: i64,
    sum: S,
}

#[cfg(feature = "abomonation")]
crate::in_place!(Counted<S> { count, sum });

impl<S: Accumulator> Counted<S> {
    /// What takes this row back: only its count matters.
    fn retraction(&self) -> Self {
        Counted { count: -self.count, sum: self.sum.clone() }
    }
}

impl<S> IsZero for Counted<S> {
    #[inline]
    fn is_zero(&self) -> bool {
        self.count == 0
    }
}

impl<S: Accumulator> Semigroup for Counted<S> {
    #[inline]
    fn plus_equals(&mut self, other: &Self) {
        self.count += other.count;
        self.sum.merge(&other.sum);
    }
}

/// How saved rows are ordered, added up and judged.
pub(crate) fn saved_rows<K: Record, S: Accumulator>() -> RowKind<Saved<K, S>> {
    RowKind {
        order: |a, b| a.0.cmp(&b.0),
        add: |a, b| a.1.plus_equals(&b.1),
        is_zero: |row| row.1.is_zero(),
        window: |row| row.0.0,
    }
}

/// Gives the rows of a batch out, those of windows that end at `closed` or before left out.
fn rows_of<K: Record, S: Accumulator>(batch: Rc<Batch<K, S>>, closed: EventTime) -> RowsOut<Saved<K, S>> {
    let mut cursor = batch.cursor();
    Box::new(move |most, give| {
        for _ in 0..most {
            let Some(row) = cursor.get_key(&batch) else { return false };
            if row.0 > closed {
                let mut total: Option<Counted<S>> = None;
                cursor.map_times(&batch, |_, part| match &mut total {
                    None => total = Some(part.clone()),
                    Some(total) => total.plus_equals(part),
                });
                if let Some(total) = total.filter(|total| !total.is_zero()) {
                    give((row.clone(), total));
                }
            }
            cursor.step_key(&batch);
        }
        true
    })
}

/// Which worker has a key, before it is taken modulo their number. Its own seed and the upper half of the hash: maps
/// behind the exchange must not use the bits that are equal on a worker.
#[inline]
pub(crate) fn route<K: Hash>(key: &K) -> u64 {
    FixedState::with_seed(7).hash_one(key) >> 32
}

/// The worker that has a key, of so many.
#[inline]
pub(crate) fn worker_of<K: Hash>(key: &K, peers: u64) -> u64 {
    if peers.is_power_of_two() { route(key) & (peers - 1) } else { route(key) % peers }
}

/// The rows of one step on one worker.
struct Store<K: Record, S: Accumulator> {
    /// Changes since the last seal, of windows still open, by window end.
    hot: BTreeMap<EventTime, Hot<K, S>>,
    /// Emptied maps: growing a new one costs more than filling it.
    spare: Vec<Hot<K, S>>,
    /// How many rows the map has that was last added to: windows side by side have about as many.
    usual: usize,
    /// Rows of the trace that have closed since the last seal, in order: windows close in order.
    retracted: Vec<Update<K, S>>,
    /// Ends of open windows that have rows in the trace.
    sealed: BTreeSet<EventTime>,
    /// Windows that end here or before are closed; what the trace still has of them is in `retracted`.
    closed: EventTime,
    trace: TraceAgent<State<K, S>>,
    writer: TraceWriter<State<K, S>>,
    /// The first epoch that no batch of the trace covers.
    lower: u64,
    metrics: Arc<StepMetrics>,
}

impl<K: Record, S: Accumulator> Store<K, S> {
    fn new(scope: Scope<'_, u64>, info: OperatorInfo, closed: EventTime, metrics: Arc<StepMetrics>) -> Self {
        let logger = scope.worker().logger_for("differential/arrange").map(Into::into);
        let activator = Some(scope.activator_for(Rc::clone(&info.address)));
        let (trace, writer) = TraceAgent::new(State::new(info.clone(), logger.clone(), activator), info, logger);
        Store {
            hot: BTreeMap::new(),
            spare: Vec::new(),
            usual: 0,
            retracted: Vec::new(),
            sealed: BTreeSet::new(),
            closed,
            trace,
            writer,
            lower: 0,
            metrics,
        }
    }

    fn absorb<D, A: Aggregate<D, Sum = S>>(&mut self, records: &mut Vec<Routed<K, A::Part>>, aggregate: &A) {
        let mut records = records.drain(..);
        while let Some(&(_, end, _)) = records.as_slice().first() {
            debug_assert!(end > self.closed, "a record that is on time never touches a closed window");
            // Neighbours are mostly of one window: look the map up once a run.
            let map = self.hot.entry(end).or_insert_with(|| {
                let spare = self.spare.pop();
                spare.unwrap_or_else(|| Hot::with_capacity_and_hasher(self.usual, FixedState::default()))
            });
            let run = records.as_slice().iter().take_while(|record| record.1 == end).count();
            for (key, _, part) in records.by_ref().take(run) {
                match map.entry(key) {
                    Entry::Occupied(row) => {
                        let row = row.into_mut();
                        row.count += 1;
                        aggregate.absorb(&mut row.sum, part);
                    }
                    Entry::Vacant(row) => {
                        row.insert(Counted { count: 1, sum: aggregate.lift(part) });
                    }
                }
            }
            self.usual = map.len();
        }
    }

    fn hot_row(&self, (end, key): &Row<K>) -> Option<&Counted<S>> {
        self.hot.get(end).and_then(|map| map.get(key))
    }

    /// Makes all changes through `epoch` one batch of the trace, and answers with it if there were any.
    fn seal(&mut self, epoch: u64) -> Option<Rc<Batch<K, S>>> {
        if epoch < self.lower {
            return None; // Nothing can have changed since.
        }
        let mut rows = std::mem::take(&mut self.retracted);
        for (&end, map) in &mut self.hot {
            let from = rows.len();
            if !map.is_empty() {
                self.sealed.insert(end);
            }
            rows.extend(map.drain().map(|(key, total)| (((end, key), ()), epoch, total)));
            rows[from..].sort_unstable_by(|a, b| a.0.cmp(&b.0));
        }
        self.insert(rows, epoch)
    }

    /// Adds sorted rows to the trace, as all there is through `epoch`.
    fn insert(&mut self, rows: Vec<Update<K, S>>, epoch: u64) -> Option<Rc<Batch<K, S>>> {
        let (lower, upper) = (Antichain::from_elem(self.lower), Antichain::from_elem(epoch + 1));
        let batch: Option<Rc<Batch<K, S>>> =
            KeyBuilder::<Row<K>, u64, Counted<S>>::seal(&mut vec![rows]).map(Into::into);
        let sealed = batch.clone();
        let span = Span::new(Description::new(lower, upper.clone(), Antichain::from_elem(epoch)), batch);
        let hint = if span.has_updates() { Stamp::from_elem(self.lower) } else { Stamp::new() };
        self.writer.insert(span, hint);
        // Nobody reads before `upper` again. Logical first: the merges that physical compaction starts use it.
        self.trace.set_logical_compaction(upper.borrow());
        self.trace.set_physical_compaction(upper.borrow());
        self.lower = epoch + 1;
        sealed
    }

    /// Begins with what a snapshot at `epoch` has: rows of open windows, in no order. Answers with them, each once.
    fn load(&mut self, mut rows: Vec<Saved<K, S>>, epoch: u64) -> Vec<Saved<K, S>> {
        rows.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        rows.dedup_by(|next, row| {
            let equal = next.0 == row.0;
            if equal {
                row.1.plus_equals(&next.1);
            }
            equal
        });
        for (row, total) in &rows {
            assert!(total.count > 0, "a row of the snapshot counts {} records", total.count);
            debug_assert!(row.0 > self.closed, "what is dead is not loaded");
            self.metrics.loaded.add(total.count.unsigned_abs());
            if self.sealed.last() != Some(&row.0) {
                self.sealed.insert(row.0);
            }
        }
        self.insert(rows.iter().map(|(row, total)| ((row.clone(), ()), epoch, total.clone())).collect(), epoch);
        rows
    }

    /// Calls `each` with the sum that the trace has of every row of windows up to `through`, in order.
    fn scan_trace(&mut self, through: EventTime, mut each: impl FnMut(&mut Self, &Row<K>, Counted<S>)) {
        if self.sealed.is_empty() && self.lower == 0 {
            return;
        }
        let Some(batches) = self.trace.batches_through(Antichain::from_elem(self.lower).borrow()) else {
            unreachable!("the last seal ended there");
        };
        let mut cursor = CursorList::new(batches.iter().map(Navigable::cursor).collect(), &batches);
        while let Some(row) = cursor.get_key(&batches).filter(|row| row.0 <= through).cloned() {
            let mut total: Option<Counted<S>> = None;
            cursor.map_times(&batches, |_, part| match &mut total {
                None => total = Some(part.clone()),
                Some(total) => total.plus_equals(part),
            });
            if let Some(total) = total.filter(|total| !total.is_zero()) {
                assert!(total.count > 0, "a row of the trace counts {} records", total.count);
                each(self, &row, total);
            }
            cursor.step_key(&batches);
        }
    }

    /// The sum that the trace has of one row that is still open.
    fn trace_row(&mut self, row: &Row<K>) -> Option<Counted<S>> {
        if !self.sealed.contains(&row.0) {
            return None;
        }
        let batches = self.trace.batches_through(Antichain::from_elem(self.lower).borrow())?;
        let mut cursor = CursorList::new(batches.iter().map(Navigable::cursor).collect(), &batches);
        cursor.seek_key(&batches, row);
        let mut total: Option<Counted<S>> = None;
        if cursor.get_key(&batches) == Some(row) {
            cursor.map_times(&batches, |_, part| match &mut total {
                None => total = Some(part.clone()),
                Some(total) => total.plus_equals(part),
            });
        }
        total.filter(|total| !total.is_zero())
    }

    /// How many rows the maps have of windows that end at `watermark` or before.
    fn hot_through(&self, watermark: EventTime) -> usize {
        self.hot.range(..=watermark).map(|(_, map)| map.len()).sum()
    }

    /// Calls `each` with every row of windows that end at `watermark` or before, and forgets them.
    fn close(&mut self, watermark: EventTime, epoch: u64, mut each: impl FnMut(Row<K>, &Counted<S>)) {
        let open = if watermark == EventTime::MAX {
            BTreeMap::new()
        } else {
            self.hot.split_off(&EventTime::from_millis(watermark.millis() + 1))
        };
        let mut closing = std::mem::replace(&mut self.hot, open);
        let mut counted = 0;
        if self.sealed.first().is_some_and(|end| *end <= watermark) {
            self.sealed.retain(|end| *end > watermark);
            let closed = self.closed;
            self.scan_trace(watermark, |store, row, mut total| {
                if row.0 <= closed {
                    return; // Retracted in the next batch.
                }
                store.retracted.push(((row.clone(), ()), epoch + 1, total.retraction()));
                if let Some(part) = closing.get_mut(&row.0).and_then(|map| map.remove(&row.1)) {
                    total.plus_equals(&part);
                }
                counted += total.count;
                each(row.clone(), &total);
            });
        }
        self.closed = watermark;
        for (end, mut map) in closing {
            for (key, total) in map.drain() {
                counted += total.count;
                each((end, key), &total);
            }
            self.spare.push(map);
        }
        self.metrics.counted.add(counted.unsigned_abs());
    }
}

/// What a step still holds when it ends is counted too: in = counted + late holds whenever a job stops.
impl<K: Record, S: Accumulator> Drop for Store<K, S> {
    fn drop(&mut self) {
        let hot: i64 = self.hot.values().flat_map(HashMap::values).map(|total| total.count).sum();
        let (mut held, closed) = (0, self.closed);
        self.scan_trace(EventTime::MAX, |_, row, total| held += if row.0 > closed { total.count } else { 0 });
        self.metrics.counted.add((hot + held).unsigned_abs());
    }
}

/// What a windowed step needs besides its records.
pub(crate) struct Step<K, P, S, A> {
    pub(crate) name: String,
    pub(crate) aggregate: Rc<A>,
    /// Whether anybody wants the live rows; asked at the first epoch, when the whole flow is built.
    pub(crate) live: Rc<std::cell::Cell<bool>>,
    pub(crate) seals: Seals,
    pub(crate) failure: Arc<Failure>,
    pub(crate) metrics: Arc<StepMetrics>,
    pub(crate) fault: Option<Fault>,
    /// How saved rows are bytes.
    pub(crate) codec: CodecCell<Saved<K, S>>,
    /// Where emptied containers go: to the worker's own sending, whoever filled them.
    pub(crate) pool: Pool<Routed<K, P>>,
}

/// The two results of a windowed step: rows of closed windows, each at the epoch whose watermark closed it; and the
/// changes of the live rows.
pub(crate) type Results<'f, K, V> =
    (Stream<'f, u64, Vec<(Row<K>, V)>>, Stream<'f, u64, Vec<((Row<K>, V), u64, isize)>>);

/// Everything that happens at one epoch.
struct Turn<K, P, S> {
    records: Vec<Vec<Routed<K, P>>>,
    /// What a snapshot at this epoch has.
    loaded: Vec<Saved<K, S>>,
    /// A capability for each output; `None` while nothing has come that could be shown at this epoch.
    capabilities: Option<(Capability<u64>, Capability<u64>)>,
    mark: Option<EventTime>,
}

impl<K, P, S> Default for Turn<K, P, S> {
    fn default() -> Self {
        Turn { records: Vec::new(), loaded: Vec::new(), capabilities: None, mark: None }
    }
}

/// Rows of windows that have closed.
type ClosedRows<K, V> = Vec<(Row<K>, V)>;
/// Some of them, on their way out.
type Piece<'a, K, V> = Drain<'a, (Row<K>, V)>;
/// What is emitted, with the capability to emit it under.
type Under<T> = (Capability<u64>, T);
/// Changes of live rows, for `on_change`.
type Changes<K, V> = Vec<((Row<K>, V), u64, isize)>;

impl<K: Record, P, S, A> Step<K, P, S, A> {
    /// What is shown of a row; `None` if it cannot be told, which ends the job.
    fn value<D: 'static>(&self, row: &Row<K>, total: &Counted<A::Sum>) -> Option<A::Value>
    where
        A: Aggregate<D>,
    {
        assert!(total.count > 0, "a row counts {} records", total.count);
        let value: Result<A::Value> = self.aggregate.value(total.count, &total.sum);
        let place = || format!("step `{}`, window ending {}, key {:?}", self.name, row.0, row.1);
        value.map_err(|error| self.failure.set(error.at(place()))).ok()
    }
}

/// What one worker does of a windowed step.
struct Windows<K: Record, D, A: Aggregate<D>> {
    store: Store<K, A::Sum>,
    step: Step<K, A::Part, A::Sum, A>,
    /// Closed rows that are still to be emitted, each batch under its capability.
    leaving: VecDeque<Under<ClosedRows<K, A::Value>>>,
    /// Emptied batches.
    spare: Vec<ClosedRows<K, A::Value>>,
    /// The epoch of the snapshot that the job goes on from.
    begins_at: Option<u64>,
    /// Makes segments of what is sealed, in a job with state.
    saver: Option<Saver<Saved<K, A::Sum>>>,
    data: std::marker::PhantomData<fn(D)>,
}

impl<K: Record, D: 'static, A: Aggregate<D>> Windows<K, D, A> {
    /// Begins on a worker; in a job with state, with the capability of its parts.
    fn begin(
        scope: Scope<'_, u64>,
        info: OperatorInfo,
        durable: Option<(&Durable, Capability<u64>)>,
        step: Step<K, A::Part, A::Sum, A>,
    ) -> Self {
        let state = durable.as_ref().and_then(|(durable, _)| durable.step(&step.name));
        let (dead, begins_at) = (state.map(|state| state.closed), durable.as_ref().and_then(|(d, _)| d.gate()));
        let saver = durable.map(|(durable, capability)| {
            let address = &info.address;
            let wake = scope.worker().sync_activator_for(address.to_vec());
            let activators = (scope.activator_for(Rc::clone(address)), wake);
            Saver::new(&step.name, durable.clone(), saved_rows(), Rc::clone(&step.codec), capability, activators)
        });
        let store = Store::new(scope, info, dead.unwrap_or(EventTime::MIN), Arc::clone(&step.metrics));
        let (leaving, spare, data) = (VecDeque::new(), Vec::new(), std::marker::PhantomData);
        Windows { store, step, leaving, spare, begins_at, saver, data }
    }

    /// Whether the segment of an earlier seal is not written yet.
    fn is_saving(&self) -> bool {
        self.saver.as_ref().is_some_and(Saver::is_busy)
    }

    /// Folds records in, and gives their container back.
    fn absorb(&mut self, mut records: Vec<Routed<K, A::Part>>) {
        self.store.absorb(&mut records, &*self.step.aggregate);
        self.step.pool.give(records);
    }

    /// Folds an epoch's records in, and tells how the live rows changed by them.
    fn fold(&mut self, epoch: u64, records: Vec<Vec<Routed<K, A::Part>>>) -> Changes<K, A::Value> {
        if !self.step.live.get() {
            for records in records {
                self.absorb(records);
            }
            return Vec::new();
        }
        let touched: BTreeSet<Row<K>> = records.iter().flatten().map(|(key, end, _)| (*end, key.clone())).collect();
        let before: Vec<_> = (touched.into_iter())
            .map(|row| {
                let hot = self.store.hot_row(&row).cloned();
                (row, hot)
            })
            .collect();
        for records in records {
            self.absorb(records);
        }
        let mut changes = Vec::with_capacity(2 * before.len());
        for (row, old) in before {
            let sealed = self.store.trace_row(&row).filter(|_| self.step.fault != Some(Fault::ForgetSealed));
            let new = self.store.hot_row(&row).cloned();
            let whole = |hot: Option<Counted<A::Sum>>| match (sealed.clone(), hot) {
                (Some(mut total), Some(hot)) => {
                    total.plus_equals(&hot);
                    Some(total)
                }
                (sealed, hot) => sealed.or(hot),
            };
            for (total, diff) in [(whole(old), -1), (whole(new), 1)] {
                if let Some(value) = total.and_then(|total| self.step.value(&row, &total)) {
                    changes.push(((row.clone(), value), epoch, diff));
                }
            }
        }
        if self.step.fault == Some(Fault::SkipRetraction) {
            changes.retain(|change| change.2 > 0);
        }
        changes
    }

    /// Begins with what a snapshot has; the live rows that it makes.
    fn load(&mut self, epoch: u64, loaded: Vec<Saved<K, A::Sum>>) -> Changes<K, A::Value> {
        let rows = self.store.load(loaded, epoch);
        if !self.step.live.get() {
            return Vec::new();
        }
        let shown = rows.into_iter().filter_map(|(row, total)| {
            let value = self.step.value(&row, &total)?;
            Some(((row, value), epoch, 1))
        });
        shown.collect()
    }

    /// Ends an epoch: folds its records in, seals if it is to be sealed, closes what its watermark closes. The changes of
    /// live rows, with the capability to emit them under.
    fn complete(
        &mut self,
        epoch: u64,
        turn: Turn<K, A::Part, A::Sum>,
        sealed: bool,
    ) -> Option<Under<Changes<K, A::Value>>> {
        let mut changes =
            if self.begins_at == Some(epoch) { self.load(epoch, turn.loaded) } else { self.fold(epoch, turn.records) };
        if sealed {
            let batch = self.store.seal(epoch);
            if let Some(saver) = &mut self.saver {
                let closed = self.store.closed;
                saver.begin(epoch, closed, batch.map(|batch| rows_of(batch, closed)));
            }
        }
        let watermark = turn.mark.filter(|watermark| *watermark > self.store.closed);
        let rows = watermark.map(|watermark| self.close(epoch, watermark)).unwrap_or_default();
        let (for_closed, for_changed) = turn.capabilities?;
        if self.step.live.get() {
            // The window of all time never closes: its stream ends, and its rows stay as they are.
            let closing = rows.iter().filter(|row| row.0.0 < EventTime::MAX);
            changes.extend(closing.map(|row| (row.clone(), epoch, -1)));
        }
        if !rows.is_empty() {
            self.leaving.push_back((for_closed, rows));
        } else if rows.capacity() > 0 {
            self.spare.push(rows);
        }
        Some((for_changed, changes))
    }

    /// The next piece of what has closed, with the capability to emit it under. Rows leave from the end of their batch:
    /// their order within an epoch means nothing.
    fn next_piece(&mut self) -> Option<Under<Piece<'_, K, A::Value>>> {
        while self.leaving.front().is_some_and(|(_, rows)| rows.is_empty()) {
            self.spare.extend(self.leaving.pop_front().map(|(_, rows)| rows));
            self.spare.truncate(2);
        }
        let (capability, rows) = self.leaving.front_mut()?;
        Some((capability.clone(), rows.drain(rows.len().saturating_sub(PIECE)..)))
    }

    /// Closes what the watermark closes: the rows, for `on_close`.
    fn close(&mut self, epoch: u64, watermark: EventTime) -> Vec<(Row<K>, A::Value)> {
        let (mut rows, step) = (self.spare.pop().unwrap_or_default(), &self.step);
        rows.reserve(self.store.hot_through(watermark));
        self.store.close(watermark, epoch, |row, total| {
            if let Some(value) = step.value(&row, total) {
                rows.push((row, value));
            }
        });
        self.step.metrics.closed_rows.add(rows.len() as u64);
        if self.step.fault == Some(Fault::LoseRow) {
            rows.pop();
        }
        rows
    }
}

/// A capability for each output, at an epoch.
fn both(capability: &InputCapability<u64>, epoch: u64) -> (Capability<u64>, Capability<u64>) {
    (capability.delayed(&epoch, 0), capability.delayed(&epoch, 1))
}

/// Aggregates records by window and key.
///
/// `records` are those that are on time, in parcels for the [`worker_of`] their keys; `marks` is the stream's watermark as every worker has
/// it, already moved back by the allowed lateness.
pub(crate) fn windowed<'f, K: Record, D: 'static, A: Aggregate<D>>(
    flow: &Flow<'f>,
    records: Stream<'f, u64, Vec<Parcel<K, A::Part>>>,
    marks: Stream<'f, u64, Vec<Mark>>,
    step: Step<K, A::Part, A::Sum, A>,
) -> Results<'f, K, A::Value> {
    let scope = records.scope();
    let durable = flow.build.durable.clone();
    let loaded = cut::load(flow, &step.name, saved_rows::<K, A::Sum>(), Rc::clone(&step.codec));
    let mut builder = OperatorBuilder::new(format!("Windowed: {}", step.name), scope);
    let to_worker = Exchange::new(|parcel: &Parcel<K, A::Part>| parcel.0);
    let mut records = builder.new_input(records, to_worker);
    let mut marks = builder.new_input(marks, Pipeline);
    let by_key = Exchange::new(|((_, key), _): &Saved<K, A::Sum>| route(key));
    let mut loaded = loaded.map(|loaded| builder.new_input(loaded, by_key));
    let (closed, closed_stream) = builder.new_output();
    let (changed, changed_stream) = builder.new_output();
    let mut closed = OutputBuilder::<_, CapacityContainerBuilder<_>>::from(closed);
    let mut changed = OutputBuilder::<_, CapacityContainerBuilder<_>>::from(changed);
    let mut parts = durable.is_some().then(|| {
        let (parts, stream) = builder.new_output();
        flow.parts.borrow_mut().push(stream);
        OutputBuilder::<_, CapacityContainerBuilder<Vec<Part>>>::from(parts)
    });
    let info = builder.operator_info();
    builder.build(move |mut capabilities| {
        let again = scope.activator_for(Rc::clone(&info.address));
        let mut windows = Windows::<K, D, A>::begin(scope, info, durable.as_ref().zip(capabilities.pop()), step);
        drop(capabilities);
        let mut turns = BTreeMap::<u64, Turn<K, A::Part, A::Sum>>::new();
        turns.extend(windows.begins_at.map(|epoch| (epoch, Turn::default())));
        let mut sealed_through = windows.begins_at.unwrap_or(0);

        move |frontiers| {
            records.for_each(|capability, parcels| {
                let Some(&epoch) = capability.least() else { return };
                let turn = turns.entry(epoch).or_default();
                if windows.step.live.get() && turn.capabilities.is_none() {
                    turn.capabilities = Some(both(&capability, epoch));
                }
                turn.records.extend(parcels.drain(..).map(|(_, records)| records));
            });
            marks.for_each(|capability, marks| {
                let Some(&epoch) = capability.least() else { return };
                let turn = turns.entry(epoch).or_default();
                turn.capabilities = Some(both(&capability, epoch));
                turn.mark = turn.mark.max(marks.iter().map(|mark| mark.watermark).max());
            });
            if let Some(loaded) = &mut loaded {
                loaded.for_each(|capability, rows| {
                    let Some(&epoch) = capability.least() else { return };
                    let turn = turns.entry(epoch).or_default();
                    turn.capabilities = Some(both(&capability, epoch));
                    turn.loaded.append(rows);
                });
            }
            let waits_for = if windows.step.fault == Some(Fault::CloseEarly) { &frontiers[1..] } else { frontiers };
            let incomplete = |epoch: u64| waits_for.iter().any(|frontier| frontier.less_equal(&epoch));
            for epoch in windows.step.seals.after(sealed_through) {
                turns.entry(epoch).or_default();
            }
            let (mut closed, mut changed) = (closed.activate(), changed.activate());
            while let Some(turn) = turns.first_entry().filter(|turn| !incomplete(*turn.key())) {
                let sealed = windows.step.seals.contains(*turn.key());
                if sealed && windows.is_saving() {
                    break;
                }
                let (epoch, turn) = turn.remove_entry();
                sealed_through = if sealed { epoch } else { sealed_through };
                if let Some((capability, changes)) = windows.complete(epoch, turn, sealed) {
                    changed.session(&capability).give_iterator(changes.into_iter());
                }
            }
            // What has closed leaves piece by piece: who takes it can keep up, and a window that closes needs no memory
            // for all of its rows in all of their forms.
            if let Some((capability, rows)) = windows.next_piece() {
                closed.session(&capability).give_iterator(rows);
                again.activate();
            }
            // What has come of the oldest incomplete epoch is folded while it is in the processor's cache.
            if let Some(mut oldest) = turns.first_entry()
                && !windows.step.live.get()
                && frontiers.iter().all(|frontier| !frontier.less_than(oldest.key()))
            {
                for records in oldest.get_mut().records.drain(..) {
                    windows.absorb(records);
                }
            }
            if let (Some(saver), Some(parts)) = (&mut windows.saver, &mut parts) {
                if let Some((capability, part)) = saver.work() {
                    parts.activate().session(&capability).give(part);
                }
                if frontiers.iter().all(MutableAntichain::is_empty) && turns.is_empty() {
                    saver.close();
                }
            }
        }
    });
    (closed_stream, changed_stream)
}
