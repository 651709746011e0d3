//! The interface between the operator of a step and the step's state: [`OperatorState`], what it starts from and what it
//! reports.
//!
//! Invariant: the state of a step is called in one order: an epoch's records, then its seal, then its watermark. So its
//! results are a function of the epochs' contents.

use std::cell::RefCell;
use std::rc::Rc;

use timely::dataflow::Scope;
use timely::dataflow::operators::generic::OperatorInfo;

use crate::metrics::WorkerWindows;
use crate::record::Record;
use crate::stream::assign::{ConsumerFlag, RecordBatch, RoutedRecord};
use crate::stream::checkpoint::{RowChunks, RowOps};
use crate::stream::window_row::{PeriodicRow, WindowRowChange};
use crate::time::{EventTime, Span};

/// The results of a step at one epoch.
pub(crate) struct StepResults<R, K, V> {
    /// Final results.
    pub(crate) closed: Vec<R>,
    /// Changes of the rows of open windows.
    pub(crate) live: Vec<WindowRowChange<K, V>>,
    /// Changes of the rows of windows that have fired.
    pub(crate) fired: Vec<WindowRowChange<K, V>>,
    /// Rows of open windows, period by period.
    pub(crate) ticked: Vec<PeriodicRow<K, V>>,
}

impl<R, K, V> Default for StepResults<R, K, V> {
    fn default() -> Self {
        StepResults { closed: Vec::new(), live: Vec::new(), fired: Vec::new(), ticked: Vec::new() }
    }
}

/// The results of a step that have a consumer: set while the flow is built, read while it runs.
#[derive(Clone, Debug, Default)]
pub(crate) struct Subscriptions {
    pub(crate) live: ConsumerFlag,
    pub(crate) fired: ConsumerFlag,
    pub(crate) late: ConsumerFlag,
    /// The periods of `every`, in milliseconds.
    pub(crate) periods: Rc<RefCell<Vec<i64>>>,
}

impl Subscriptions {
    /// Returns `true` if fired rows have a consumer and late records may still correct them.
    pub(crate) fn corrections(&self, lateness: Span) -> bool {
        self.fired.get() && lateness > Span::ZERO
    }

    /// Returns the periods of which a multiple lies between two watermarks, by index, each with the last such
    /// multiple.
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

/// The state of a step on one worker.
pub(crate) trait OperatorState: 'static {
    /// The key that records are grouped by.
    type Key: Record;
    /// The routing of a record to its pane or position in time: see [`RecordRouter`](super::assign::RecordRouter).
    type Place: Record + Copy;
    /// The part of a record that the step needs.
    type Part: Record;
    /// A row as snapshots keep it.
    type SavedRow: Record;
    /// A final result.
    type Closed: Clone + 'static;
    /// The value of a window's row; `()` for steps without windows.
    type Value: Record;

    /// `true` if everything closes when the stream ends; `false` if rows stay that are not over at the time that the
    /// stream has reached.
    const CLOSES_AT_END: bool = true;

    /// `true` if records lead to final results in their own epoch, whatever its watermark is: see
    /// [`OperatorState::report`].
    const REPORTS_RECORDS: bool = false;

    /// Returns the functions that order, add and classify saved rows.
    fn saved_rows() -> RowOps<Self::SavedRow>;

    /// Returns the key of a saved row.
    fn key_of(saved: &Self::SavedRow) -> &Self::Key;

    /// Returns `true` if rows are compared before and after an epoch. The epoch's records are then applied at once,
    /// when it is complete. They are not by default.
    fn tracks_changes(&self) -> bool {
        false
    }

    /// Applies records, in any order, and leaves the vector empty.
    fn absorb(&mut self, records: &mut Vec<RoutedRecord<Self::Key, Self::Place, Self::Part>>);

    /// Applies all records of an epoch, and reports how they changed the rows; by default there is nothing to report. Only
    /// called if `tracks_changes` returns `true`.
    fn absorb_tracked(
        &mut self,
        _epoch: u64,
        mut records: Vec<RoutedRecordOf<Self>>,
        _results: &mut StepResultsOf<Self>,
    ) {
        self.absorb(&mut records);
    }

    /// Moves the final results of the records of an epoch that is complete into `results`, which are empty; nothing by
    /// default.
    fn report(&mut self, _results: &mut StepResultsOf<Self>) {}

    /// Loads the rows of a snapshot, which come in no order.
    fn load(&mut self, epoch: u64, rows: Vec<Self::SavedRow>, results: &mut StepResultsOf<Self>);

    /// Seals the changes since the last seal, and returns the rows of their segment. The returned time is the one
    /// through which windows have closed.
    fn seal(&mut self, epoch: u64) -> (EventTime, Option<RowChunks<Self::SavedRow>>);

    /// Advances to a watermark that is greater than the one before.
    fn advance(&mut self, epoch: u64, watermark: EventTime, results: &mut StepResultsOf<Self>);

    /// Returns the open windows for the status of the job, from numbers that are there anyway; `None` for a step that
    /// has no windows.
    fn open_windows(&self) -> Option<WorkerWindows> {
        None
    }
}

/// A record as a `OperatorState` receives it.
pub(crate) type RoutedRecordOf<F> =
    RoutedRecord<<F as OperatorState>::Key, <F as OperatorState>::Place, <F as OperatorState>::Part>;

/// Records for one worker, in transit.
pub(crate) type RecordBatchOf<F> =
    RecordBatch<<F as OperatorState>::Key, <F as OperatorState>::Place, <F as OperatorState>::Part>;

/// The results of a `OperatorState` at one epoch.
pub(crate) type StepResultsOf<F> =
    StepResults<<F as OperatorState>::Closed, <F as OperatorState>::Key, <F as OperatorState>::Value>;

/// The arguments that a `OperatorState` is created from on a worker.
pub(crate) struct OperatorStart<'a> {
    pub(crate) scope: Scope<'a, u64>,
    pub(crate) info: OperatorInfo,
    /// Windows that end at or before this time have closed in an earlier incarnation.
    pub(crate) closed: EventTime,
    /// `true` if changes must be tracked for snapshots.
    pub(crate) durable: bool,
}
