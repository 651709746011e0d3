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

use super::open_ranges::OpenRanges;
use super::pane_row::{PaneMap, PaneRow, Saved};
use super::running_window::{RunningWindow, remove_from};
use super::spare_maps::SpareMaps;
use crate::metrics::{MOST_WINDOWS, StepMetrics, WindowRows, WorkerWindows};
use crate::record::Record;
use crate::stream::aggregate::{Accumulator, Aggregate};
use crate::stream::assign::RoutedRecord;
use crate::stream::checkpoint::RowChunks;
use crate::stream::counted::Counted;
use crate::stream::interval::Interval;
use crate::stream::look_ahead;
use crate::stream::panes::{Pane, WindowAssigner};
use crate::time::EventTime;

/// One in so many rows of a window may be looked up in its panes one by one.
const LOOKUP: usize = 4;

type RowSpine<T, K, S> = KeySpine<PaneRow<T, K>, u64, Counted<S>>;
type RowBatch<T, K, S> = OrdKeyBatch<Vector<RowUpdate<T, K, S>>>;
type RowUpdate<T, K, S> = ((PaneRow<T, K>, ()), u64, Counted<S>);

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

/// An open pane that has rows in the trace.
struct SealedPane<K> {
    /// The least key of these rows.
    least: K,
    /// The number of rows, as the sum over all batches: a row may be in several.
    rows: u64,
    batches: u64,
}

/// The rows of one step on one worker.
pub(super) struct PaneStore<T: Pane, K: Record, S: Accumulator> {
    /// The memtable: changes since the last seal, of open panes.
    memtable: BTreeMap<T, PaneMap<K, S>>,
    spare: SpareMaps<K, S>,
    /// The size of the map that was last added to, used as capacity of new maps: consecutive windows have about as
    /// many rows.
    usual_size: usize,
    /// Retractions of the trace's rows that have closed since the last seal, in order: windows close in order.
    retracted: Vec<RowUpdate<T, K, S>>,
    sealed: BTreeMap<T, SealedPane<K>>,
    running: RunningWindow<T, K, S>,
    open: OpenRanges,
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
            spare: SpareMaps::new(),
            usual_size: 0,
            retracted: Vec::new(),
            sealed: BTreeMap::new(),
            running: RunningWindow::new(),
            open: OpenRanges::default(),
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
                self.running.note(pane, self.closed);
                self.open.note(&self.windows, pane, self.closed);
                let spare = self.spare.take();
                spare.unwrap_or_else(|| PaneMap::with_capacity_and_hasher(self.usual_size, FixedState::default()))
            });
            let mut left = records.as_slice().iter().take_while(|record| record.1 == pane).count();
            while left > 0 {
                let group = left.min(look_ahead::GROUP);
                left -= group;
                look_ahead::read_entries(map, records.as_slice()[..group].iter().map(|(key, ..)| key), |row| row.count);
                for (key, _, part) in records.by_ref().take(group) {
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
            }
            self.usual_size = map.len();
        }
    }

    /// Returns what the memtable has of a window's row.
    pub(super) fn memtable_row(&self, (end, key): &PaneRow<EventTime, K>) -> Option<Counted<S>> {
        let mut total = None;
        let panes = panes_of(&self.memtable, &self.windows, *end);
        panes.filter_map(|(_, map)| map.get(key)).for_each(|part| add(&mut total, part));
        total
    }

    /// Moves all changes through `epoch` into one batch of the trace; returns the batch, if there were any.
    pub(super) fn seal(&mut self, epoch: u64) -> Option<Rc<RowBatch<T, K, S>>> {
        if epoch < self.lower {
            return None; // Nothing can have changed since.
        }
        let mut rows = std::mem::take(&mut self.retracted);
        let (sealed, spare, closed) = (&mut self.sealed, &mut self.spare, self.closed);
        self.memtable.retain(|&pane, map| {
            let from = rows.len();
            rows.extend(map.drain().map(|(key, total)| (((pane, key), ()), epoch, total)));
            let added = &mut rows[from..];
            added.sort_unstable_by(|a, b| a.0.cmp(&b.0));
            if let Some((((_, least), ()), ..)) = added.first() {
                let sealed = note_key(sealed, pane, least);
                (sealed.rows, sealed.batches) = (sealed.rows + added.len() as u64, sealed.batches + 1);
            }
            // A pane whose first window has closed gets no more records.
            let is_open = pane.first() > closed;
            if !is_open {
                spare.give(std::mem::take(map), added.len());
            }
            is_open
        });
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
            if self.sealed.last_key_value().is_none_or(|(pane, _)| *pane != row.0) {
                self.running.note(row.0, self.closed);
                self.open.note(&self.windows, row.0, self.closed);
            }
            let sealed = note_key(&mut self.sealed, row.0, &row.1);
            (sealed.rows, sealed.batches) = (sealed.rows + 1, 1);
        }
        self.insert(rows.iter().map(|(row, total)| ((row.clone(), ()), epoch, total.clone())).collect(), epoch);
        rows
    }

    /// Calls `each` with the trace's sum of every row of some panes, in order. The panes are in order, each with the least
    /// key that it has there.
    fn scan_trace(
        &mut self,
        panes: impl IntoIterator<Item = PaneRow<T, K>>,
        mut each: impl FnMut(&mut Self, &PaneRow<T, K>, Counted<S>),
    ) {
        let mut panes = panes.into_iter().peekable();
        if panes.peek().is_none() {
            return;
        }
        let Some(batches) = self.trace.batches_through(Antichain::from_elem(self.lower).borrow()) else {
            unreachable!("the last seal ended there");
        };
        let mut cursor = CursorList::new(batches.iter().map(Navigable::cursor).collect(), &batches);
        for first in panes {
            cursor.seek_key(&batches, &first);
            while let Some(row) = cursor.get_key(&batches).filter(|row| row.0 == first.0) {
                let mut total = None;
                cursor.map_times(&batches, |_, part| add(&mut total, part));
                if let Some(total) = total.filter(|total| !total.is_zero()) {
                    assert!(total.count > 0, "a row of the trace counts {} records", total.count);
                    each(self, row, total);
                }
                cursor.step_key(&batches);
            }
        }
    }

    /// Calls `each` with the trace's sum of each of some rows, which are in order, if there is one.
    fn look_up(&mut self, rows: Vec<PaneRow<T, K>>, mut each: impl FnMut(PaneRow<T, K>, Counted<S>)) {
        if rows.is_empty() {
            return;
        }
        let Some(batches) = self.trace.batches_through(Antichain::from_elem(self.lower).borrow()) else {
            unreachable!("the last seal ended there");
        };
        let mut cursor = CursorList::new(batches.iter().map(Navigable::cursor).collect(), &batches);
        for row in rows {
            cursor.seek_key(&batches, &row);
            if cursor.get_key(&batches) == Some(&row) {
                let mut total = None;
                cursor.map_times(&batches, |_, part| add(&mut total, part));
                if let Some(total) = total.filter(|total| !total.is_zero()) {
                    each(row, total);
                }
            }
        }
    }

    /// Returns the trace's sum of one open window's row.
    pub(super) fn trace_row(&mut self, (end, key): &PaneRow<EventTime, K>) -> Option<Counted<S>> {
        let panes = panes_of(&self.sealed, &self.windows, *end).map(|(pane, _)| (*pane, key.clone()));
        let mut sum = None;
        self.look_up(panes.collect(), |_, total| add(&mut sum, &total));
        sum
    }

    /// Returns the ends of windows that have rows, after `after` and not after `through`, in order.
    pub(super) fn ends(&self, after: EventTime, through: EventTime) -> Vec<EventTime> {
        self.open.ends(&self.windows, after, through).collect()
    }

    /// Returns the first open windows with the numbers of their rows, and the number of all.
    pub(super) fn open_windows(&self) -> WorkerWindows {
        let first = self.open.ends(&self.windows, self.closed, EventTime::MAX).take(MOST_WINDOWS).map(|end| {
            let (mut rows, mut parts) = (0, 0);
            for (_, map) in panes_of(&self.memtable, &self.windows, end).filter(|(_, map)| !map.is_empty()) {
                (rows, parts) = (rows + map.len() as u64, parts + 1);
            }
            for (_, sealed) in panes_of(&self.sealed, &self.windows, end) {
                (rows, parts) = (rows + sealed.rows, parts + sealed.batches);
            }
            let Interval { start, end } = self.windows.interval(end);
            WindowRows { start, end, rows, exact: parts <= 1 }
        });
        WorkerWindows { first: first.collect(), open: self.open.count(), ..WorkerWindows::default() }
    }

    /// Returns the rows of an open window, by key; [`PaneStore::give_back`] takes the map back.
    pub(super) fn window(&mut self, end: EventTime) -> PaneMap<K, S> {
        let mut totals = self.spare.take().unwrap_or_default();
        for (_, map) in panes_of(&self.memtable, &self.windows, end) {
            if totals.is_empty() {
                totals.extend(map.iter().map(|(key, total)| (key.clone(), total.clone())));
            } else {
                map.iter().for_each(|(key, total)| add_to(&mut totals, key, total));
            }
        }
        let sealed = panes_of(&self.sealed, &self.windows, end).map(|(pane, sealed)| (*pane, sealed.least.clone()));
        self.scan_trace(sealed.collect::<Vec<_>>(), |_, (_, key), total| add_to(&mut totals, key, &total));
        totals
    }

    /// Takes back a map that is no longer needed, and had so many rows.
    pub(super) fn give_back(&mut self, map: PaneMap<K, S>, rows: usize) {
        self.spare.give(map, rows);
    }

    /// Returns the number of the memtable's rows of panes whose last window ends at or before `watermark`.
    pub(super) fn memtable_rows_through(&self, watermark: EventTime) -> usize {
        self.memtable.range(..=T::last_until(watermark)).map(|(_, map)| map.len()).sum()
    }

    /// Calls `each` with every row of windows that end at or before `watermark`, and removes the panes that have
    /// closed.
    pub(super) fn close(&mut self, watermark: EventTime, epoch: u64, mut each: impl FnMut(EventTime, K, &Counted<S>)) {
        if RunningWindow::<T, K, S>::USED {
            self.close_running(watermark, epoch, each);
        } else if T::IN_SEVERAL_WINDOWS {
            for end in self.ends(self.closed, watermark) {
                let mut totals = self.window(end);
                let rows = totals.len();
                totals.drain().for_each(|(key, total)| each(end, key, &total));
                self.give_back(totals, rows);
            }
            self.forget(watermark, epoch, |_, _, _| {});
        } else {
            self.forget(watermark, epoch, |pane, key, total| each(pane.last(), key, total));
        }
        self.open.close(&self.windows, self.closed);
    }

    /// Closes windows one after the other, each by what enters and leaves: see [`super::running_window`].
    fn close_running(&mut self, watermark: EventTime, epoch: u64, mut each: impl FnMut(EventTime, K, &Counted<S>)) {
        loop {
            let mut totals = self.running.take().unwrap_or_else(|| self.totals_of_entered());
            // A pane that has entered, and is open, is in the next window.
            let next = if totals.is_empty() { None } else { Some(self.windows.end_after(self.closed)) };
            let next = next.into_iter().chain(self.running.first_ahead()).min();
            let Some(end) = next.filter(|end| *end <= watermark) else {
                self.running.put(totals);
                break;
            };
            let entering = self.running.entering(end);
            self.add_panes(&mut totals, &entering);
            totals.iter().for_each(|(key, total)| each(end, key.clone(), total));
            let mut unknown = Vec::new();
            self.forget(end, epoch, |_, key, total| unknown.extend(remove_from(&mut totals, key, total)));
            // Looking a row up in each pane costs more than adding it up with all the others.
            if unknown.len() <= totals.len() / LOOKUP {
                self.add_rows(&mut totals, unknown);
                self.running.put(totals);
            }
        }
        self.closed = self.closed.max(watermark);
    }

    /// Returns the open panes whose first window has closed.
    fn entered(&self) -> BTreeSet<T> {
        let panes = self.memtable.keys().chain(self.sealed.keys()).copied();
        panes.filter(|pane| pane.first() <= self.closed).collect()
    }

    /// Adds up the open panes whose first window has closed.
    fn totals_of_entered(&mut self) -> PaneMap<K, S> {
        let (mut totals, entered) = (PaneMap::default(), self.entered());
        self.add_panes(&mut totals, &entered);
        totals
    }

    /// Adds up the rows of some keys in the open panes whose first window has closed.
    fn add_rows(&mut self, totals: &mut PaneMap<K, S>, mut keys: Vec<K>) {
        if keys.is_empty() {
            return;
        }
        keys.sort_unstable();
        let mut stored = Vec::new();
        for pane in self.entered() {
            if let Some(map) = self.memtable.get(&pane) {
                keys.iter()
                    .filter_map(|key| Some((key, map.get(key)?)))
                    .for_each(|(key, row)| add_to(totals, key, row));
            }
            if self.sealed.contains_key(&pane) {
                stored.extend(keys.iter().map(|key| (pane, key.clone())));
            }
        }
        self.look_up(stored, |(_, key), total| add_to(totals, &key, &total));
    }

    /// Adds the rows of some panes, which are in order, to those of a window.
    fn add_panes(&mut self, totals: &mut PaneMap<K, S>, panes: &BTreeSet<T>) {
        for map in panes.iter().filter_map(|pane| self.memtable.get(pane)) {
            let mut rows = map.iter();
            while rows.len() > 0 {
                let group = rows.clone().take(look_ahead::GROUP);
                look_ahead::read_entries(totals, group.map(|(key, _)| key), |row| row.count);
                rows.by_ref().take(look_ahead::GROUP).for_each(|(key, total)| add_to(totals, key, total));
            }
        }
        let sealed = panes.iter().filter_map(|pane| Some((*pane, self.sealed.get(pane)?.least.clone())));
        self.scan_trace(sealed.collect::<Vec<_>>(), |_, (_, key), total| add_to(totals, key, &total));
    }

    /// Calls `each` with every row of panes whose last window ends at or before `watermark`, and removes them.
    fn forget(&mut self, watermark: EventTime, epoch: u64, mut each: impl FnMut(T, K, &Counted<S>)) {
        let mut closing = take_through(&mut self.memtable, watermark);
        let sealed = take_through(&mut self.sealed, watermark);
        let mut counted = 0;
        self.scan_trace(least_rows(sealed), |store, row, mut total| {
            store.retracted.push(((row.clone(), ()), epoch + 1, total.retraction()));
            if let Some(part) = closing.get_mut(&row.0).and_then(|map| map.remove(&row.1)) {
                total.plus_equals(&part);
            }
            counted += total.count;
            each(row.0, row.1.clone(), &total);
        });
        self.closed = watermark;
        for (pane, mut map) in closing {
            let rows = map.len();
            for (key, total) in map.drain() {
                counted += total.count;
                each(pane, key, &total);
            }
            self.give_back(map, rows);
        }
        self.metrics.counted.add(counted.unsigned_abs());
    }
}

/// Returns the panes of a window, with what is kept of each.
fn panes_of<'a, T: Pane, V>(
    panes: &'a BTreeMap<T, V>,
    windows: &WindowAssigner,
    end: EventTime,
) -> impl Iterator<Item = (&'a T, &'a V)> {
    let possible = panes.range(T::new(EventTime::MIN, end)..=T::last_until(windows.last_of_panes(end)));
    possible.filter(move |(pane, _)| pane.has(end))
}

/// Removes and returns what is kept of the panes whose last window ends at or before `watermark`.
fn take_through<T: Pane, V>(panes: &mut BTreeMap<T, V>, watermark: EventTime) -> BTreeMap<T, V> {
    if watermark == EventTime::MAX {
        return std::mem::take(panes);
    }
    let open = panes.split_off(&T::first_after(watermark));
    std::mem::replace(panes, open)
}

/// Returns the panes in order, each with the least key that it has in the trace.
fn least_rows<T: Pane, K>(sealed: BTreeMap<T, SealedPane<K>>) -> impl Iterator<Item = PaneRow<T, K>> {
    sealed.into_iter().map(|(pane, sealed)| (pane, sealed.least))
}

/// Notes a key of a pane in the trace, and returns what is known of the pane.
fn note_key<'a, T: Pane, K: Record>(
    sealed: &'a mut BTreeMap<T, SealedPane<K>>,
    pane: T,
    key: &K,
) -> &'a mut SealedPane<K> {
    let known = sealed.entry(pane).or_insert_with(|| SealedPane { least: key.clone(), rows: 0, batches: 0 });
    if *key < known.least {
        known.least = key.clone();
    }
    known
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
        let (mut held, sealed) = (0, std::mem::take(&mut self.sealed));
        self.scan_trace(least_rows(sealed), |_, _, total| held += total.count);
        self.metrics.counted.add((hot + held).unsigned_abs());
    }
}
