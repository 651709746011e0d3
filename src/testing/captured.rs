//! A sink that keeps its rows in memory.
//!
//! Invariant: epochs are written in order; what was published is remembered, as by a durable sink.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::durable::journal::JournalEnds;
use crate::durable::{Incarnation, PublishedEpoch};
use crate::error::Result;
use crate::record::Record;
use crate::sink::{Sink, SinkContext, SinkWriter};
use crate::time::Epoch;

/// Rows of a sink, by epoch.
type RowsByEpoch<D> = BTreeMap<Epoch, Vec<(D, isize)>>;

/// A sink that keeps its rows in memory for reading, and remembers what it has published as a durable sink does.
#[derive(Clone)]
pub struct Captured<D>(Arc<Mutex<CapturedState<D>>>);

/// Contents of a [`Captured`].
#[derive(Clone)]
struct CapturedState<D> {
    rows: RowsByEpoch<D>,
    incarnation: u64,
    ends: JournalEnds,
}

impl<D> Default for Captured<D> {
    fn default() -> Self {
        Captured(Arc::new(Mutex::new(CapturedState {
            rows: BTreeMap::new(),
            incarnation: 0,
            ends: JournalEnds::default(),
        })))
    }
}

impl<D> fmt::Debug for Captured<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Captured<{}>", std::any::type_name::<D>())
    }
}

impl<D: Record> Captured<D> {
    /// Creates an empty sink. Clones share their contents.
    pub fn new() -> Self {
        Captured::default()
    }

    /// Returns the rows of every epoch that had any, consolidated and sorted, each with its difference.
    pub fn epochs(&self) -> BTreeMap<Epoch, Vec<(D, isize)>> {
        self.lock().rows.clone()
    }

    /// Returns a copy of the present contents, which does not share later rows.
    #[must_use]
    pub fn fork(&self) -> Self {
        Captured(Arc::new(Mutex::new(self.lock().clone())))
    }

    fn lock(&self) -> MutexGuard<'_, CapturedState<D>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns all rows of all epochs as one sorted multiset.
    ///
    /// # Panics
    /// Panics if the differences of a row add up to less than zero: rows were retracted that were not there.
    pub fn all(&self) -> Vec<D> {
        self.at(Epoch(u64::MAX))
    }

    /// Returns the rows that exist at an epoch, sorted: the sum of all changes up to it.
    ///
    /// # Panics
    /// Panics as [`Captured::all`] does.
    pub fn at(&self, epoch: Epoch) -> Vec<D> {
        let mut sums = BTreeMap::<D, isize>::new();
        for (row, diff) in self.epochs().into_iter().filter(|(at, _)| *at <= epoch).flat_map(|(_, rows)| rows) {
            *sums.entry(row).or_default() += diff;
        }
        let mut rows = Vec::new();
        for (row, count) in sums {
            assert!(count >= 0, "at epoch {epoch} there are {count} of {row:?}");
            rows.extend(std::iter::repeat_n(row, count.unsigned_abs()));
        }
        rows
    }
}

impl<D: Record> Sink<D> for Captured<D> {
    fn describe(&self) -> String {
        String::from("rows kept in memory")
    }

    fn open(&self, _at: &SinkContext) -> Result<Box<dyn SinkWriter<D>>> {
        Ok(Box::new(self.clone()))
    }
}

impl<D: Record> SinkWriter<D> for Captured<D> {
    fn remembers(&self) -> bool {
        true
    }

    fn published(&mut self) -> Result<Option<PublishedEpoch>> {
        let CapturedState { rows, incarnation, ends } = &*self.lock();
        let published = |epoch: &Epoch| PublishedEpoch { incarnation: *incarnation, epoch: *epoch, ends: ends.clone() };
        Ok(rows.keys().next_back().map(published))
    }

    fn begin(&mut self, life: &Incarnation) -> Result<()> {
        let mut capture = self.lock();
        (capture.incarnation, capture.ends) = (life.incarnation, JournalEnds::default());
        Ok(())
    }

    fn publish(&mut self, ends: &JournalEnds) -> Result<()> {
        self.lock().ends = ends.clone();
        Ok(())
    }

    fn write(&mut self, epoch: Epoch, rows: &[(D, isize)]) -> Result<()> {
        let mut capture = self.lock();
        if let Some(last) = capture.rows.keys().next_back() {
            assert!(*last < epoch, "epoch {epoch} is published after epoch {last}");
        }
        capture.rows.insert(epoch, rows.to_vec());
        Ok(())
    }

    fn finish(&mut self) -> Result<()> {
        Ok(())
    }
}
