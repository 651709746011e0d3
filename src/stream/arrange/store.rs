//! The rows of a windowed step on one worker: a differential arrangement with a memtable.
//!
//! This is the only module that knows differential's trace types. Those that it uses are public there:
//! `TraceAgent::new`, `TraceWriter`, `KeyBuilder`.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::rc::Rc;
use std::sync::Arc;

use differential_dataflow::batcher::merge::Sealer;
use differential_dataflow::difference::{IsZero, Semigroup};
use differential_dataflow::operators::arrange::{TraceAgent, TraceWriter};
use differential_dataflow::trace::cursor::CursorList;
use differential_dataflow::trace::implementations::ord_neu::OrdKeyBatch;
use differential_dataflow::trace::implementations::{KeyBuilder, KeySpine, Vector};
use differential_dataflow::trace::{Cursor, Description, Navigable, Span, Trace, TraceReader};
use foldhash::fast::FixedState;
use timely::dataflow::Scope;
use timely::dataflow::operators::generic::OperatorInfo;
use timely::progress::{Antichain, Stamp};

use super::pane_row::{PaneRow, Saved};
use crate::metrics::{MOST_WINDOWS, StepMetrics, WindowRows, WorkerWindows};
use crate::record::Record;
use crate::stream::aggregate::{Accumulator, Aggregate};
use crate::stream::assign::RoutedRecord;
use crate::stream::checkpoint::RowChunks;
use crate::stream::counted::Counted;
use crate::stream::interval::Interval;
use crate::stream::panes::{Pane, WindowAssigner};
use crate::time::EventTime;

/// The number of emptied maps that are kept.
const SPARE: usize = 16;

type RowSpine<T, K, S> = KeySpine<PaneRow<T, K>, u64, Counted<S>>;
type RowBatch<T, K, S> = OrdKeyBatch<Vector<RowUpdate<T, K, S>>>;
type RowUpdate<T, K, S> = ((PaneRow<T, K>, ()), u64, Counted<S>);
/// The rows of one pane, or of one window, by key.
pub(super) type PaneMap<K, S> = HashMap<K, Counted<S>, FixedState>;

/// Yields the rows of a batch, without those of panes whose last window ends at or before `closed`.
pub(super) fn batch_rows<T: Pane, K: Record, S: Accumulator>(
    batch: Rc<RowBatch<T, K, S>>,
    closed: EventTime,
) -> RowChunks<Saved<T, K, S>> {
    let mut cursor = batch.cursor();
    Box::new(move |most, give| {
        for _ in 0..most {
            let Some(row) = cursor.get_key(&batch) else { return false };
            if row.0.last() > closed {
                let mut total = None;
                cursor.map_times(&batch, |_, part| add(&mut total, part));
                if let Some(total) = total.filter(|total| !total.is_zero()) {
                    give((row.clone(), total));
                }
            }
            cursor.step_key(&batch);
        }
        true
    })
}

/// The number of rows that a pane has in the trace.
#[derive(Clone, Copy, Debug, Default)]
struct SealedRows {
    /// The sum over all batches: a row may be in several.
    rows: u64,
    batches: u64,
}

/// The rows of one step on one worker.
pub(super) struct PaneStore<T: Pane, K: Record, S: Accumulator> {
    /// The memtable: changes since the last seal, of open panes.
    memtable: BTreeMap<T, PaneMap<K, S>>,
    /// Emptied maps: growing a new one costs more than filling it.
    spare: Vec<PaneMap<K, S>>,
    /// The size of the map that was last added to, used as capacity of new maps: consecutive windows have about as
    /// many rows.
    usual_size: usize,
    /// Retractions of the trace's rows that have closed since the last seal, in order: windows close in order.
    retracted: Vec<RowUpdate<T, K, S>>,
    /// Open panes that have rows in the trace.
    sealed: BTreeSet<T>,
    /// The number of rows in the trace of each of these panes.
    sealed_rows: BTreeMap<T, SealedRows>,
    /// Windows that end at or before this time are closed; the retractions of their rows in the trace are in
    /// `retracted`.
    pub(super) closed: EventTime,
    pub(super) windows: WindowAssigner,
    trace: TraceAgent<RowSpine<T, K, S>>,
    writer: TraceWriter<RowSpine<T, K, S>>,
    /// The first epoch that no batch of the trace covers.
    lower: u64,
    metrics: Arc<StepMetrics>,
}

impl<T: Pane, K: Record, S: Accumulator> PaneStore<T, K, S> {
    pub(super) fn new(
        scope: Scope<'_, u64>,
        info: OperatorInfo,
        closed: EventTime,
        windows: WindowAssigner,
        metrics: Arc<StepMetrics>,
    ) -> Self {
        let logger = scope.worker().logger_for("differential/arrange").map(Into::into);
        let activator = Some(scope.activator_for(Rc::clone(&info.address)));
        let (trace, writer) = TraceAgent::new(RowSpine::new(info.clone(), logger.clone(), activator), info, logger);
        PaneStore {
            memtable: BTreeMap::new(),
            spare: Vec::new(),
            usual_size: 0,
            retracted: Vec::new(),
            sealed: BTreeSet::new(),
            sealed_rows: BTreeMap::new(),
            closed,
            windows,
            trace,
            writer,
            lower: 0,
            metrics,
        }
    }

    pub(super) fn absorb<D, A: Aggregate<D, Sum = S>>(
        &mut self,
        records: &mut Vec<RoutedRecord<K, T, A::Part>>,
        aggregate: &A,
    ) {
        let mut records = records.drain(..);
        while let Some(&(_, pane, _)) = records.as_slice().first() {
            debug_assert!(pane.first() > self.closed, "a record that is on time never touches a closed window");
            // Neighbours are mostly of one pane: look the map up once a run.
            let map = self.memtable.entry(pane).or_insert_with(|| {
                let spare = self.spare.pop();
                spare.unwrap_or_else(|| PaneMap::with_capacity_and_hasher(self.usual_size, FixedState::default()))
            });
            let run = records.as_slice().iter().take_while(|record| record.1 == pane).count();
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
            self.usual_size = map.len();
        }
    }

    /// Returns what the memtable has of a window's row.
    pub(super) fn memtable_row(&self, (end, key): &PaneRow<EventTime, K>) -> Option<Counted<S>> {
        let mut total = None;
        let panes = self.memtable.iter().filter(|(pane, _)| pane.has(*end));
        panes.filter_map(|(_, map)| map.get(key)).for_each(|part| add(&mut total, part));
        total
    }

    /// Moves all changes through `epoch` into one batch of the trace; returns the batch, if there were any.
    pub(super) fn seal(&mut self, epoch: u64) -> Option<Rc<RowBatch<T, K, S>>> {
        if epoch < self.lower {
            return None; // Nothing can have changed since.
        }
        let mut rows = std::mem::take(&mut self.retracted);
        for (&pane, map) in &mut self.memtable {
            let from = rows.len();
            if !map.is_empty() {
                self.sealed.insert(pane);
                let sealed = self.sealed_rows.entry(pane).or_default();
                sealed.rows += map.len() as u64;
                sealed.batches += 1;
            }
            rows.extend(map.drain().map(|(key, total)| (((pane, key), ()), epoch, total)));
            rows[from..].sort_unstable_by(|a, b| a.0.cmp(&b.0));
        }
        self.insert(rows, epoch)
    }

    /// Adds sorted rows to the trace, as its batch through `epoch`.
    fn insert(&mut self, rows: Vec<RowUpdate<T, K, S>>, epoch: u64) -> Option<Rc<RowBatch<T, K, S>>> {
        let (lower, upper) = (Antichain::from_elem(self.lower), Antichain::from_elem(epoch + 1));
        let batch: Option<Rc<RowBatch<T, K, S>>> =
            KeyBuilder::<PaneRow<T, K>, u64, Counted<S>>::seal(&mut vec![rows]).map(Into::into);
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

    /// Loads the rows of a snapshot at `epoch`, which are of open panes and in no order. Returns them added up by
    /// key.
    pub(super) fn load(&mut self, mut rows: Vec<Saved<T, K, S>>, epoch: u64) -> Vec<Saved<T, K, S>> {
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
            debug_assert!(row.0.last() > self.closed, "what is dead is not loaded");
            self.metrics.loaded.add(total.count.unsigned_abs());
            if self.sealed.last() != Some(&row.0) {
                self.sealed.insert(row.0);
            }
            let sealed = self.sealed_rows.entry(row.0).or_default();
            (sealed.rows, sealed.batches) = (sealed.rows + 1, 1);
        }
        self.insert(rows.iter().map(|(row, total)| ((row.clone(), ()), epoch, total.clone())).collect(), epoch);
        rows
    }

    /// Calls `each` with the trace's sum of every row of panes up to `through`, in order.
    fn scan_trace(&mut self, through: T, mut each: impl FnMut(&mut Self, &PaneRow<T, K>, Counted<S>)) {
        if self.sealed.is_empty() && self.lower == 0 {
            return;
        }
        let Some(batches) = self.trace.batches_through(Antichain::from_elem(self.lower).borrow()) else {
            unreachable!("the last seal ended there");
        };
        let mut cursor = CursorList::new(batches.iter().map(Navigable::cursor).collect(), &batches);
        while let Some(row) = cursor.get_key(&batches).filter(|row| row.0 <= through).cloned() {
            let mut total = None;
            cursor.map_times(&batches, |_, part| add(&mut total, part));
            if let Some(total) = total.filter(|total| !total.is_zero()) {
                assert!(total.count > 0, "a row of the trace counts {} records", total.count);
                each(self, &row, total);
            }
            cursor.step_key(&batches);
        }
    }

    /// Returns the trace's sum of one open window's row.
    pub(super) fn trace_row(&mut self, (end, key): &PaneRow<EventTime, K>) -> Option<Counted<S>> {
        let panes: Vec<T> = self.sealed.iter().copied().filter(|pane| pane.has(*end)).collect();
        if panes.is_empty() {
            return None;
        }
        let batches = self.trace.batches_through(Antichain::from_elem(self.lower).borrow())?;
        let mut cursor = CursorList::new(batches.iter().map(Navigable::cursor).collect(), &batches);
        let mut total = None;
        for pane in panes {
            let row = (pane, key.clone());
            cursor.seek_key(&batches, &row);
            if cursor.get_key(&batches) == Some(&row) {
                cursor.map_times(&batches, |_, part| add(&mut total, part));
            }
        }
        total.filter(|total| !total.is_zero())
    }

    /// Returns the ends of windows that have rows, after `after` and not after `through`, in order.
    pub(super) fn ends(&self, after: EventTime, through: EventTime) -> Vec<EventTime> {
        self.windows.ends_of_panes(self.memtable.keys().chain(&self.sealed).copied(), after, through)
    }

    /// Returns the first open windows with the numbers of their rows, and the number of all.
    pub(super) fn open_windows(&self) -> WorkerWindows {
        let ends = self.ends(self.closed, EventTime::MAX);
        let first = ends.iter().take(MOST_WINDOWS).map(|&end| {
            let (mut rows, mut parts) = (0, 0);
            for (_, map) in self.memtable.iter().filter(|(pane, map)| pane.has(end) && !map.is_empty()) {
                (rows, parts) = (rows + map.len() as u64, parts + 1);
            }
            for (_, sealed) in self.sealed_rows.iter().filter(|(pane, _)| pane.has(end)) {
                (rows, parts) = (rows + sealed.rows, parts + sealed.batches);
            }
            let Interval { start, end } = self.windows.interval(end);
            WindowRows { start, end, rows, exact: parts <= 1 }
        });
        WorkerWindows { first: first.collect(), open: ends.len() as u64, ..WorkerWindows::default() }
    }

    /// Returns the rows of an open window, by key; [`PaneStore::give_back`] takes the map back.
    pub(super) fn window(&mut self, end: EventTime) -> PaneMap<K, S> {
        let mut totals = self.spare.pop().unwrap_or_default();
        for map in self.memtable.iter().filter(|(pane, _)| pane.has(end)).map(|(_, map)| map) {
            if totals.is_empty() {
                totals.extend(map.iter().map(|(key, total)| (key.clone(), total.clone())));
            } else {
                map.iter().for_each(|(key, total)| add_to(&mut totals, key, total));
            }
        }
        if let Some(&through) = self.sealed.iter().rev().find(|pane| pane.has(end)) {
            self.scan_trace(through, |_, (pane, key), total| {
                if pane.has(end) {
                    add_to(&mut totals, key, &total);
                }
            });
        }
        totals
    }

    /// Takes back a map that is no longer needed.
    pub(super) fn give_back(&mut self, mut map: PaneMap<K, S>) {
        map.clear();
        if self.spare.len() < SPARE {
            self.spare.push(map);
        }
    }

    /// Returns the number of the memtable's rows of panes whose last window ends at or before `watermark`.
    pub(super) fn memtable_rows_through(&self, watermark: EventTime) -> usize {
        self.memtable.range(..=T::last_until(watermark)).map(|(_, map)| map.len()).sum()
    }

    /// Calls `each` with every row of windows that end at or before `watermark`, and removes the panes that have
    /// closed.
    pub(super) fn close(&mut self, watermark: EventTime, epoch: u64, mut each: impl FnMut(EventTime, K, &Counted<S>)) {
        if T::IN_SEVERAL_WINDOWS {
            for end in self.ends(self.closed, watermark) {
                let mut totals = self.window(end);
                totals.drain().for_each(|(key, total)| each(end, key, &total));
                self.give_back(totals);
            }
            self.forget(watermark, epoch, |_, _, _| {});
        } else {
            self.forget(watermark, epoch, |pane, key, total| each(pane.last(), key, total));
        }
    }

    /// Calls `each` with every row of panes whose last window ends at or before `watermark`, and removes them.
    fn forget(&mut self, watermark: EventTime, epoch: u64, mut each: impl FnMut(T, K, &Counted<S>)) {
        let open = if watermark == EventTime::MAX {
            BTreeMap::new()
        } else {
            self.memtable.split_off(&T::first_after(watermark))
        };
        let mut closing = std::mem::replace(&mut self.memtable, open);
        let mut counted = 0;
        if self.sealed.first().is_some_and(|pane| pane.last() <= watermark) {
            self.sealed.retain(|pane| pane.last() > watermark);
            self.sealed_rows.retain(|pane, _| pane.last() > watermark);
            let closed = self.closed;
            self.scan_trace(T::last_until(watermark), |store, row, mut total| {
                if row.0.last() <= closed {
                    return; // Retracted in the next batch.
                }
                store.retracted.push(((row.clone(), ()), epoch + 1, total.retraction()));
                if let Some(part) = closing.get_mut(&row.0).and_then(|map| map.remove(&row.1)) {
                    total.plus_equals(&part);
                }
                counted += total.count;
                each(row.0, row.1.clone(), &total);
            });
        }
        self.closed = watermark;
        for (pane, mut map) in closing {
            for (key, total) in map.drain() {
                counted += total.count;
                each(pane, key, &total);
            }
            self.give_back(map);
        }
        self.metrics.counted.add(counted.unsigned_abs());
    }
}

/// Adds to a sum that may be empty.
fn add<S: Accumulator>(total: &mut Option<Counted<S>>, part: &Counted<S>) {
    match total {
        None => *total = Some(part.clone()),
        Some(total) => total.plus_equals(part),
    }
}

/// Adds to the row of a key.
fn add_to<K: Record, S: Accumulator>(totals: &mut PaneMap<K, S>, key: &K, part: &Counted<S>) {
    match totals.get_mut(key) {
        Some(total) => total.plus_equals(part),
        None => drop(totals.insert(key.clone(), part.clone())),
    }
}

/// Counts the records that are still held: in = counted + late holds whenever a job stops.
impl<T: Pane, K: Record, S: Accumulator> Drop for PaneStore<T, K, S> {
    fn drop(&mut self) {
        let hot: i64 = self.memtable.values().flat_map(HashMap::values).map(|total| total.count).sum();
        let (mut held, closed) = (0, self.closed);
        let all = T::last_until(EventTime::MAX);
        self.scan_trace(all, |_, row, total| held += if row.0.last() > closed { total.count } else { 0 });
        self.metrics.counted.add((hot + held).unsigned_abs());
    }
}
