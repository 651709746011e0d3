//! Durable state of a job as a user asks for it: `State::at("directory")`, with its options in any order.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::durable::disk::{Disk, OsDisk};
use crate::durable::journal::Place;

/// Durable state of a job: its directory, and how it is kept. See [`Job::state`](crate::Job::state).
///
/// ```
/// # use std::time::Duration;
/// use tidegate::{Job, State};
///
/// let job = Job::new("totals").state(State::at("state").snapshot_every(Duration::from_secs(5)).keep_snapshots(10));
/// ```
#[derive(Clone, Debug)]
pub struct State {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) directory: PathBuf,
    pub(crate) snapshot_every: Duration,
    pub(crate) keep_snapshots: usize,
    pub(crate) take_over: bool,
    pub(crate) accept_changed_query: bool,
    pub(crate) accept_changed_sources: bool,
    pub(crate) savepoint: Option<PathBuf>,
    pub(crate) journal_file: u64,
}

impl State {
    /// Creates the options of a state in this directory, which need not exist: a snapshot every second, of which three are
    /// kept.
    pub fn at(directory: impl Into<PathBuf>) -> Self {
        State {
            disk: OsDisk::shared(),
            directory: directory.into(),
            snapshot_every: Duration::from_secs(1),
            keep_snapshots: 3,
            take_over: false,
            accept_changed_query: false,
            accept_changed_sources: false,
            savepoint: None,
            journal_file: Place::LIMIT,
        }
    }

    /// Sets the minimum time between two snapshots. Results do not wait for snapshots; after a crash the epochs since the last
    /// one are replayed.
    #[must_use]
    pub fn snapshot_every(mut self, every: Duration) -> Self {
        self.snapshot_every = every;
        self
    }

    /// Sets the number of snapshots that are kept, at least one.
    #[must_use]
    pub fn keep_snapshots(mut self, count: usize) -> Self {
        self.keep_snapshots = count.max(1);
        self
    }

    /// Goes on without the locks of the state and the results, which a stopped process may hold: that process finds out that
    /// it was replaced when it continues.
    #[must_use]
    pub fn take_over(mut self, take_over: bool) -> Self {
        self.take_over = take_over;
        self
    }

    /// Goes on from the state of another query or program. Published results stay as they are.
    #[must_use]
    pub fn accept_changed_query(mut self, accept: bool) -> Self {
        self.accept_changed_query = accept;
        self
    }

    /// Goes on from the state although the query's sources are not those that the state has read. The progress of a source
    /// that is gone is dropped. A new source is read from its start, so one that was only renamed is counted twice. A source
    /// that has become another is read on at the same offset, if the last record before it is the same.
    #[must_use]
    pub fn accept_changed_sources(mut self, accept: bool) -> Self {
        self.accept_changed_sources = accept;
        self
    }

    /// Begins a new state with a savepoint, an exported snapshot. Outputs have to be new: those of the savepoint's state
    /// belong to that state. Results of the savepoint's epoch and before are not published again, but all rows of a live
    /// collection are, as it is then.
    #[must_use]
    pub fn from_savepoint(mut self, savepoint: impl Into<PathBuf>) -> Self {
        self.savepoint = Some(savepoint.into());
        self
    }

    /// Keeps the state on another disk than the file system.
    #[must_use]
    pub fn disk(mut self, disk: Arc<dyn Disk>) -> Self {
        self.disk = disk;
        self
    }

    /// Sets the length in bytes of a journal file after which the next one is begun.
    #[must_use]
    pub fn journal_file(mut self, bytes: u64) -> Self {
        self.journal_file = bytes;
        self
    }
}

/// State in this directory, with the default options.
impl From<&str> for State {
    fn from(directory: &str) -> Self {
        State::at(directory)
    }
}

/// State in this directory, with the default options.
impl From<&Path> for State {
    fn from(directory: &Path) -> Self {
        State::at(directory)
    }
}

/// State in this directory, with the default options.
impl From<PathBuf> for State {
    fn from(directory: PathBuf) -> Self {
        State::at(directory)
    }
}
