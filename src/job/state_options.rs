//! Durable state of a job as a user asks for it: `State::at("directory")`, with its options in any order.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::durable::disk::{Disk, OsDisk};
use crate::durable::journal::JournalConfig;

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
    pub(crate) dropped_steps: BTreeSet<String>,
    pub(crate) dropped_outputs: BTreeSet<String>,
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
            dropped_steps: BTreeSet::new(),
            dropped_outputs: BTreeSet::new(),
            savepoint: None,
            journal_file: JournalConfig::DEFAULT_FILE_LIMIT,
        }
    }

    /// Sets the minimum interval between two snapshots. Results do not wait for snapshots; input after the last one is
    /// replayed after a crash.
    #[must_use]
    pub fn snapshot_every(mut self, every: Duration) -> Self {
        self.snapshot_every = every;
        self
    }

    /// Sets the number of snapshots to keep; at least 1.
    #[must_use]
    pub fn keep_snapshots(mut self, count: usize) -> Self {
        self.keep_snapshots = count.max(1);
        self
    }

    /// Starts without the locks of the state and the outputs, which a suspended process may still hold. When that process
    /// resumes, it finds that it was replaced.
    #[must_use]
    pub fn take_over(mut self, take_over: bool) -> Self {
        self.take_over = take_over;
        self
    }

    /// Resumes from the state of a changed query or program, also where epochs are to be replayed or a collection's rows
    /// retracted. Results that were published stay as they are.
    #[must_use]
    pub fn accept_changed_query(mut self, accept: bool) -> Self {
        self.accept_changed_query = accept;
        self
    }

    /// Resumes although the query's sources differ from those that the state has read. Progress of a removed source is
    /// dropped. A new source is read from its start, so the records of a source that was only renamed are counted twice. A
    /// replaced source resumes at the same offset, if the last record before it is unchanged.
    #[must_use]
    pub fn accept_changed_sources(mut self, accept: bool) -> Self {
        self.accept_changed_sources = accept;
        self
    }

    /// Drops the rows that the state has of a step that is no longer in the query. Without it, a state with rows of a step
    /// that the query lacks is refused, as the step may only have been renamed (see [`Stream::was`](crate::Stream::was)).
    ///
    /// It may stay: a state without rows of the step is resumed as if nothing were said. A step that the query has cannot
    /// be dropped. The rows are gone for good with the last snapshot that has them.
    #[must_use]
    pub fn drop_step(mut self, name: &str) -> Self {
        self.dropped_steps.insert(name.to_owned());
        self
    }

    /// Forgets an output of the state that is no longer in the query, and leaves what it has published as it is. The rules of
    /// [`State::drop_step`] hold. An output that was dropped cannot be written again under its name: it lacks what happened
    /// meanwhile.
    #[must_use]
    pub fn drop_output(mut self, name: &str) -> Self {
        self.dropped_outputs.insert(name.to_owned());
        self
    }

    /// Starts a new state from a savepoint, an exported snapshot. Outputs must be new: existing ones belong to the
    /// savepoint's state. Results up to and including the savepoint's epoch are not published again, except the rows of a
    /// live collection, which are all published as of that epoch.
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

    /// Sets the size in bytes at which a journal file is closed and the next one is started.
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
