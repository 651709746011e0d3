//! A sink that keeps its rows in memory.
//!
//! Invariant: epochs are written in order; what was published is remembered, as by a durable sink, and an incarnation that
//! was overtaken adds nothing to it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::durable::journal::JournalEnds;
use crate::durable::{Incarnation, PublishedEpoch};
use crate::error::{Error, ErrorKind, Result};
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
        Ok(Box::new(CapturedWriter { captured: self.clone(), incarnation: 0, found: None }))
    }
}

/// The writer of an incarnation.
struct CapturedWriter<D> {
    captured: Captured<D>,
    /// Number of the incarnation; 0 before it has begun.
    incarnation: u64,
    /// The last epoch as it was told; `None` if nobody has asked.
    found: Option<Option<Epoch>>,
}

impl<D: Record> CapturedWriter<D> {
    /// Returns the contents, which are this incarnation's to change.
    ///
    /// # Errors
    /// Fails if a later incarnation has begun.
    fn own(&self) -> Result<MutexGuard<'_, CapturedState<D>>> {
        let capture = self.captured.lock();
        if capture.incarnation > self.incarnation {
            return Err(Error::of(ErrorKind::Superseded, "another process has taken over the rows kept in memory"));
        }
        Ok(capture)
    }
}

impl<D: Record> SinkWriter<D> for CapturedWriter<D> {
    fn remembers(&self) -> bool {
        true
    }

    fn published(&mut self) -> Result<Option<PublishedEpoch>> {
        let capture = self.captured.lock();
        let CapturedState { rows, incarnation, ends } = &*capture;
        let last = rows.keys().next_back().copied();
        let told = last.map(|epoch| PublishedEpoch { incarnation: *incarnation, epoch, ends: ends.clone() });
        drop(capture);
        self.found = Some(last);
        Ok(told)
    }

    fn begin(&mut self, life: &Incarnation) -> Result<()> {
        let mut capture = self.captured.lock();
        let last = capture.rows.keys().next_back().copied();
        if self.found.is_some_and(|found| found != last) {
            return Err(Error::of(ErrorKind::SinkFailed, "cannot begin with the rows kept in memory")
                .because("another process wrote to it meanwhile")
                .help("start again"));
        }
        (capture.incarnation, capture.ends) = (life.incarnation, JournalEnds::default());
        drop(capture);
        self.incarnation = life.incarnation;
        Ok(())
    }

    fn publish(&mut self, ends: &JournalEnds) -> Result<()> {
        self.own()?.ends = ends.clone();
        Ok(())
    }

    fn write(&mut self, epoch: Epoch, rows: &[(D, isize)]) -> Result<()> {
        let mut capture = self.own()?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_was_overtaken_adds_nothing_and_who_overtakes_begins_with_what_it_was_told() {
        let captured = Captured::<u8>::new();
        let open = || captured.open(&SinkContext::new("job", "rows", crate::sink::SinkRows::Events)).unwrap();
        let life = |incarnation| Incarnation { incarnation, ..Incarnation::without_state() };
        let (mut first, mut second) = (open(), open());
        first.published().unwrap();
        first.begin(&life(1)).unwrap();
        first.write(Epoch(2), &[(7, 1)]).unwrap();
        assert_eq!(second.published().unwrap().map(|found| found.epoch), Some(Epoch(2)));
        first.write(Epoch(4), &[(8, 1)]).unwrap();
        let why = second.begin(&life(2)).unwrap_err().to_string();
        assert!(why.contains("another process wrote to it meanwhile; start again"), "{why}");
        assert_eq!(second.published().unwrap().map(|found| found.epoch), Some(Epoch(4)));
        second.begin(&life(2)).unwrap();
        assert_eq!(first.write(Epoch(6), &[(9, 1)]).unwrap_err().kind(), ErrorKind::Superseded);
        assert_eq!(first.publish(&JournalEnds::default()).unwrap_err().kind(), ErrorKind::Superseded);
        second.write(Epoch(6), &[(9, 1)]).unwrap();
        assert_eq!(captured.all(), [7, 8, 9]);
    }
}
