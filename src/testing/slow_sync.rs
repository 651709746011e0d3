//! A journal whose syncs are delayed.
//!
//! Invariant: what a run publishes before its epoch is synced is an error of the run.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use crate::durable::journal::{Frame, Journal, MemoryJournal};
use crate::error::{Error, Result};
use crate::time::Epoch;

/// Delays the syncs of a run's journal, and tracks which epochs are synced. Clones share their state.
///
/// ```
/// use tidegate::testing::{TestRun, SlowSync};
/// use tidegate::{source::memory::MemorySource, stream::Observer};
///
/// # fn main() -> tidegate::Result<()> {
/// let (input, sync) = (MemorySource::new(vec![vec![1i64, 2, 3]], |at| *at), SlowSync::new(20));
/// TestRun::new().slow_sync(&sync).run(move |flow| {
///     let sync = sync.clone();
///     flow.read("input", &input).write("output", &Observer::new(move |epoch, _rows| sync.check_published(epoch)));
/// })?;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct SlowSync {
    turns: u32,
    inner: Arc<Mutex<SyncState>>,
}

#[derive(Debug, Default)]
struct SyncState {
    workers: BTreeMap<usize, WorkerSync>,
    /// Greatest epoch of which a sink has published rows.
    shown: Option<Epoch>,
}

#[derive(Debug, Default)]
struct WorkerSync {
    /// Epochs that are not synced yet, oldest first, each with the number of loop turns that its sync still takes.
    waiting: VecDeque<(Epoch, u32)>,
    /// Last epoch that is synced.
    synced: Option<Epoch>,
}

impl SlowSync {
    /// Creates a journal delay: a sync takes `turns` turns of the loop of the worker that waits for it.
    pub fn new(turns: u32) -> Self {
        SlowSync { turns, inner: Arc::default() }
    }

    /// Checks a publication: a sink calls it when it publishes `epoch`.
    ///
    /// # Errors
    /// Fails if the epoch, or an earlier one, is not synced.
    pub fn check_published(&self, epoch: Epoch) -> Result<()> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.shown = inner.shown.max(Some(epoch));
        for (worker, sync) in &inner.workers {
            if let Some((early, _)) = sync.waiting.front().filter(|waiting| waiting.0 <= epoch) {
                let error = Error::new(format!("epoch {epoch} is published, but epoch {early} is not on record"));
                return Err(error.at(format!("worker {worker}")));
            }
        }
        Ok(())
    }

    fn append(&self, worker: usize, epoch: Epoch) -> Result<()> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(shown) = inner.shown.filter(|shown| *shown >= epoch) {
            return Err(Error::new(format!("epoch {epoch} is committed after epoch {shown} was published")));
        }
        inner.workers.entry(worker).or_default().waiting.push_back((epoch, self.turns));
        Ok(())
    }

    fn synced(&self, worker: usize) -> Option<Epoch> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let sync = inner.workers.entry(worker).or_default();
        if let Some((_, left)) = sync.waiting.front_mut() {
            *left = left.saturating_sub(1);
        }
        if let Some((epoch, _)) = sync.waiting.pop_front_if(|(_, left)| *left == 0) {
            sync.synced = Some(epoch);
        }
        sync.synced
    }
}

/// Keeps frames in memory, and reports them as synced when a [`SlowSync`] does.
pub(super) struct SlowJournal(pub(super) Arc<MemoryJournal>, pub(super) SlowSync);

impl Journal for SlowJournal {
    fn append(&self, worker: usize, frame: Frame) -> Result<()> {
        self.1.append(worker, frame.epoch)?;
        self.0.append(worker, frame)
    }

    fn synced(&self, worker: usize) -> Option<Epoch> {
        self.1.synced(worker)
    }
}
