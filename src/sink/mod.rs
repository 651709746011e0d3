//! Sinks: where results go, epoch by epoch.
//!
//! * A [`Sink`] is a value made before a job runs; a [`Writer`] of a shard of it is opened once a life.
//! * An epoch is **shown** when others can read its rows. A writer shows an epoch whole, or not at all.
//!
//! The life of a writer: it is opened, which locks or fences the target and changes nothing that readers see; it is
//! asked what it has [`Writer::shown`]; it is told to [`Writer::begin`]; then epochs are written, in order, and shown,
//! one or several at a time; at the end it is told to [`Writer::finish`].
//!
//! Invariants: epochs are written in order, each once; the rows of an epoch come consolidated and sorted; what was shown
//! is known by the sink itself, never by the job's own state, and the number of an epoch is shown in the same atomic act
//! as its rows. A sink does not know timely.

pub mod csv;
pub(crate) mod encode;
pub(crate) mod fields;
mod file;
#[cfg(feature = "kafka")]
pub mod kafka;
pub mod ndjson;
pub mod stdout;

use std::path::Path;
use std::sync::Arc;

use crate::durable::disk::{Disk, OsDisk};
use crate::durable::journal::JournalEnds;
use crate::durable::recovery::SinkFound;
use crate::durable::{Life, Published, StateId};
use crate::error::Result;
use crate::record::Record;
use crate::source::TopicAddress;
use crate::time::Epoch;

/// Where results go: a value made before a job runs, shared by its workers.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a sink of `{D}` rows",
    label = "not a `Sink<{D}>`",
    note = "sinks are values such as `csv::File`, `ndjson::File`, `kafka::Output`, `stream::Observer` and `testing::Captured`"
)]
pub trait Sink<D: Record>: Send + Sync + 'static {
    /// What it is, for people: "file totals.csv".
    fn describe(&self) -> String;

    /// Refuses what can never work before anything is written: a row type that the format cannot hold.
    ///
    /// # Errors
    /// Says what is wrong with the row type or the target.
    fn check(&self, _rows: Rows) -> Result<()> {
        Ok(())
    }

    /// The topics that are written to, if any are: a job is refused that reads one of them too.
    fn topics(&self) -> Vec<TopicAddress> {
        Vec::new()
    }

    /// Opens it for writing: locks or fences it, and changes nothing in it that readers see.
    ///
    /// # Errors
    /// When the target cannot be written to, or another process writes to it.
    fn open(&self, at: &Shard) -> Result<Box<dyn Writer<D>>>;
}

/// What kind of rows a sink gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rows {
    /// Events of a stream: each row is there to stay.
    Events,
    /// Changes of a collection: each row comes with a difference, shown in a last column `diff`.
    Changes,
}

/// Which part of a sink is opened, and by whom.
#[derive(Clone, Debug)]
pub struct Shard {
    /// The job's name.
    pub job: String,
    /// The name under which the flow writes the sink.
    pub name: String,
    /// What kind of rows it gets.
    pub rows: Rows,
    /// The job's state, if it has one: what was shown is then kept by the sink, and read back when it is opened again.
    pub state: Option<StateId>,
    /// What is shown is to be on the disk when it is, though there is no state.
    pub synced: bool,
    /// Do not stop at a lock that another process holds: it may be one that sleeps.
    pub take_over: bool,
    /// Where files are.
    pub disk: Arc<dyn Disk>,
}

impl Shard {
    /// The shard of a job without state, its files on the operating system's disk.
    pub fn new(job: &str, name: &str, rows: Rows) -> Self {
        let (job, name, disk) = (job.to_owned(), name.to_owned(), OsDisk::shared());
        Shard { job, name, rows, state: None, synced: false, take_over: false, disk }
    }
}

/// Reads what a results file of a job with state has published, by its commit file: the state that wrote it, and what a
/// recovery of that state would find. `None` if it has no commit file. Nothing is locked or written.
///
/// # Errors
/// Fails if the commit file is damaged, or cannot be read.
pub(crate) fn published_in(disk: &Arc<dyn Disk>, file: &Path) -> Result<Option<(StateId, SinkFound)>> {
    file::published_in(disk, file)
}

/// Shows the epochs of one shard of a sink.
pub trait Writer<D: Record>: Send {
    /// The last epoch that was shown, as the target itself knows it, with the proof that was written with it; `None` if it
    /// knows none. Asked once, before [`Writer::begin`].
    ///
    /// # Errors
    /// When the target cannot be asked, or belongs to another state, or is not what it was when it was last shown.
    fn shown(&mut self) -> Result<Option<Published>>;

    /// Begins a life: drops what was written and not shown; without a state, or where nothing was ever shown, begins
    /// anew. Called once, before anything is written.
    ///
    /// # Errors
    /// When the target cannot be written to.
    fn begin(&mut self, life: &Life) -> Result<()>;

    /// Takes an epoch in, to be shown by the next call of [`Writer::show`]. `rows` are sorted and consolidated; a
    /// difference is never zero, and 1 or more for events.
    ///
    /// # Errors
    /// When the target fails; the epoch is then never shown.
    fn write(&mut self, epoch: Epoch, rows: &[(D, isize)]) -> Result<()>;

    /// Shows all epochs that were written since the last call, at once, and for good. A target that remembers what was shown
    /// keeps `ends`, the ends of the journals at the last of those epochs, in the same atomic act, and tells them by
    /// [`Writer::shown`]; [`Writer::begin`] makes them empty.
    ///
    /// # Errors
    /// When the target fails, or a later life of the state has begun; the epochs are then not shown.
    fn show(&mut self, ends: &JournalEnds) -> Result<()>;

    /// Makes sure that everything shown is where it should be; called once, at the end of a job.
    ///
    /// # Errors
    /// When the target fails.
    fn finish(&mut self) -> Result<()>;

    /// Whether what was shown outlives a job and is told by [`Writer::shown`]: a state then counts on it.
    fn remembers(&self) -> bool {
        self.waits()
    }

    /// Whether showing waits for a disk or a network: it is then done on a thread of its own.
    fn waits(&self) -> bool {
        false
    }
}
