//! Windowed aggregates as a differential arrangement with a memtable.
//!
//! * A **row** is `((pane, key), epoch, Counted)`: the value is in the difference, so that the arrangement's own
//!   consolidation does the aggregating. Keys are pane-major, and panes are ordered by their last window, so closing
//!   scans a prefix. For windows that do not overlap, a pane is a window; the row of a window that is covered by
//!   several panes is their sum ([`super::panes`]).
//! * The **memtable** has one hash map for each open pane: the changes since the last seal.
//! * A **seal** sorts the maps into one batch of the trace: the consolidated updates of (last seal, this one].
//!
//! Input is insert-only. A row is retracted once, when the last window of its pane closes: by adding its negated
//! count, in the next batch, at the odd epoch after the one that closed it. Rows that were inserted and closed
//! between two seals never reach the trace: they would cancel out in that batch.
//!
//! A window **fires** when the watermark reaches its end, and **closes** when it is past that by the allowed
//! lateness. Rows that have fired but not closed may be corrected: `on_fire` retracts the old row and inserts the new
//! one.
//!
//! Invariants, besides those of [`super::window_operator`]:
//! * Every closed row is the sum of trace and memtable. That sum has a count ≥ 0; a row of count zero does not exist.
//! * Rows of a snapshot at epoch c are one batch of the trace, through c. Their counts are ≥ 1.

mod idle_merge;
mod open_ranges;
mod pane_row;
mod running_window;
mod spare_maps;
mod store;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use differential_dataflow::difference::{IsZero, Semigroup};

pub(crate) use self::idle_merge::merge_while_idle;
pub(crate) use self::pane_row::Saved;
use self::store::PaneStore;
use crate::metrics::{StepMetrics, WindowRows, WorkerWindows};
use crate::record::Record;
use crate::stream::aggregate::{Accumulator, Aggregate};
use crate::stream::checkpoint::{RowChunks, RowOps};
use crate::stream::counted::Counted;
use crate::stream::interval::Interval;
use crate::stream::operator_state::{OperatorStart, OperatorState, RoutedRecordOf, StepResultsOf, Subscriptions};
use crate::stream::panes::{Pane, WindowAssigner};
use crate::stream::value_reporter::ValueReporter;
use crate::stream::window_row::WindowRow;
use crate::stream::{Fault, InjectedFault};
use crate::time::{EventTime, Span};

/// Returns the functions that order, add and classify the rows of panes.
pub(crate) fn pane_rows<T: Pane, K: Record, S: Accumulator>() -> RowOps<Saved<T, K, S>> {
    RowOps {
        order: |a, b| a.0.cmp(&b.0),
        add: |a, b| a.1.plus_equals(&b.1),
        is_zero: |row| row.1.is_zero(),
        is_tombstone: |_| false,
        window: |row| row.0.0.last(),
    }
}

/// The state of a windowed step on one worker.
pub(crate) struct PaneState<T: Pane, K: Record, D, A: Aggregate<D>> {
    store: PaneStore<T, K, A::Sum>,
    reporter: ValueReporter<A>,
    subscriptions: Subscriptions,
    lateness: Span,
    forget_sealed: bool,
    /// Windows that end at or before this time have fired.
    fired: EventTime,
    /// The last window that has closed with rows, and the time at which it did.
    last_closed: Option<(WindowRows, Instant)>,
    data: std::marker::PhantomData<fn(D)>,
}

impl<T: Pane, K: Record, D: 'static, A: Aggregate<D>> PaneState<T, K, D, A> {
    pub(crate) fn begin(
        start: OperatorStart<'_>,
        windows: WindowAssigner,
        reporter: ValueReporter<A>,
        subscriptions: Subscriptions,
        lateness: Span,
        metrics: Arc<StepMetrics>,
        fault: InjectedFault,
    ) -> Self {
        let OperatorStart { scope, info, closed, .. } = start;
        let store = PaneStore::new(scope, info, closed, windows, metrics);
        let forget_sealed = fault.is(Fault::IgnoreSealed);
        let (fired, data) = (EventTime::MIN, std::marker::PhantomData);
        PaneState { store, reporter, subscriptions, lateness, forget_sealed, fired, last_closed: None, data }
    }

    /// Calls `each` with the current rows of an open window.
    fn show(&mut self, end: EventTime, mut each: impl FnMut(WindowRow<K, A::Value>)) {
        let (window, mut totals) = (self.store.windows.interval(end), self.store.window(end));
        let rows = totals.len();
        for (key, total) in totals.drain() {
            if let Some(value) = self.reporter.value(window, &key, &total) {
                each((window, key, value));
            }
        }
        self.store.give_back(totals, rows);
    }
}

impl<T: Pane, K: Record, D: 'static, A: Aggregate<D>> OperatorState for PaneState<T, K, D, A> {
    type Key = K;
    type Place = T;
    type Part = A::Part;
    type SavedRow = Saved<T, K, A::Sum>;
    type Closed = WindowRow<K, A::Value>;
    type Value = A::Value;

    fn saved_rows() -> RowOps<Self::SavedRow> {
        pane_rows()
    }

    fn key_of(saved: &Self::SavedRow) -> &K {
        &saved.0.1
    }

    fn tracks_changes(&self) -> bool {
        self.subscriptions.live.get() || self.subscriptions.corrections(self.lateness)
    }

    fn absorb(&mut self, records: &mut Vec<RoutedRecordOf<Self>>) {
        self.store.absorb(records, &*self.reporter.aggregate);
    }

    fn absorb_tracked(
        &mut self,
        epoch: u64,
        mut records: Vec<RoutedRecordOf<Self>>,
        results: &mut StepResultsOf<Self>,
    ) {
        let through = if self.subscriptions.live.get() { EventTime::MAX } else { self.fired };
        let mut touched = BTreeSet::new();
        for (key, pane, _) in &records {
            let ends = self.store.windows.ends(*pane, self.store.closed, through);
            touched.extend(ends.map(|end| (end, key.clone())));
        }
        let before = touched.into_iter().map(|row| (self.store.memtable_row(&row), row)).collect::<Vec<_>>();
        self.absorb(&mut records);
        for (old, row) in before {
            let sealed = self.store.trace_row(&row).filter(|_| !self.forget_sealed);
            let new = self.store.memtable_row(&row);
            let whole = |hot: Option<Counted<A::Sum>>| match (sealed.clone(), hot) {
                (Some(mut total), Some(hot)) => {
                    total.plus_equals(&hot);
                    Some(total)
                }
                (sealed, hot) => sealed.or(hot),
            };
            let window = self.store.windows.interval(row.0);
            for (total, diff) in [(whole(old), -1), (whole(new), 1)] {
                let Some(value) = total.and_then(|total| self.reporter.value(window, &row.1, &total)) else { continue };
                let shown = (window, row.1.clone(), value);
                if self.subscriptions.corrections(self.lateness) && row.0 <= self.fired {
                    results.fired.push((shown.clone(), epoch, diff));
                }
                if self.subscriptions.live.get() {
                    results.live.push((shown, epoch, diff));
                }
            }
        }
    }

    fn load(&mut self, epoch: u64, rows: Vec<Self::SavedRow>, results: &mut StepResultsOf<Self>) {
        let rows = self.store.load(rows, epoch);
        if !self.subscriptions.live.get() {
            return;
        }
        if T::IN_SEVERAL_WINDOWS {
            for end in self.store.ends(self.store.closed, EventTime::MAX) {
                self.show(end, |shown| results.live.push((shown, epoch, 1)));
            }
            return;
        }
        for ((pane, key), total) in rows {
            let window = self.store.windows.interval(pane.last());
            if let Some(value) = self.reporter.value(window, &key, &total) {
                results.live.push(((window, key, value), epoch, 1));
            }
        }
    }

    fn open_windows(&self) -> Option<WorkerWindows> {
        Some(WorkerWindows { closed: self.last_closed, ..self.store.open_windows() })
    }

    fn seal(&mut self, epoch: u64) -> (EventTime, Option<RowChunks<Self::SavedRow>>) {
        let (batch, closed) = (self.store.seal(epoch), self.store.closed);
        (closed, batch.map(|batch| store::batch_rows(batch, closed)))
    }

    fn advance(&mut self, epoch: u64, watermark: EventTime, results: &mut StepResultsOf<Self>) {
        let (closed, before) = (watermark.minus(self.lateness), self.fired);
        if self.subscriptions.corrections(self.lateness) {
            for end in self.store.ends(before.max(self.store.closed), watermark) {
                self.show(end, |shown| results.fired.push((shown, epoch, 1)));
            }
        }
        self.fired = watermark;
        if closed > self.store.closed {
            let (reporter, windows) = (&self.reporter, self.store.windows.clone());
            let (live, fired) =
                (self.subscriptions.live.get(), self.subscriptions.fired.get() && self.lateness == Span::ZERO);
            let (mut window, mut last) = (Interval::NOTHING, None::<WindowRows>);
            results.closed.reserve(self.store.memtable_rows_through(closed));
            self.store.close(closed, epoch, |end, key, total| {
                if window.end != end {
                    window = windows.interval(end);
                }
                let Some(value) = reporter.value(window, &key, total) else { return };
                match &mut last {
                    Some(last) if last.end == end => last.rows += 1,
                    Some(last) if last.end > end => {}
                    _ => last = Some(WindowRows { start: window.start, end, rows: 1, exact: true }),
                }
                let shown = (window, key, value);
                // The window of all time never closes: its stream ends, and its rows stay as they are.
                if live && end < EventTime::MAX {
                    results.live.push((shown.clone(), epoch, -1));
                }
                if fired {
                    results.fired.push((shown.clone(), epoch, 1));
                }
                results.closed.push(shown);
            });
            if let Some(last) = last {
                self.last_closed = Some((last, Instant::now()));
            }
        }
        for (period, at) in self.subscriptions.ticks(before, watermark) {
            for end in self.store.ends(self.store.closed, EventTime::MAX) {
                self.show(end, |shown| results.ticked.push((period, at, shown)));
            }
        }
    }
}
