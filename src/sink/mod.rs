//! Sinks: where results go, epoch by epoch.
//!
//! * A [`Sink`] is a value made before a job runs; the worker that owns a shard of it opens a [`Writer`].
//! * An epoch is **shown** when others can read its rows. A writer shows an epoch whole, or not at all.
//!
//! Invariants: epochs are shown in order, each once; the rows of an epoch come consolidated and sorted; what was shown
//! is known by the sink itself ([`Writer::shown`]), never by the job's own state. A sink does not know timely.

pub mod csv;
pub(crate) mod encode;
pub(crate) mod fields;
mod file;
pub mod kafka;
pub mod ndjson;
pub mod stdout;

use crate::error::Result;
use crate::record::Record;
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

    /// Opens it for writing.
    ///
    /// # Errors
    /// When the target cannot be written to.
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
}

/// Shows the epochs of one shard of a sink.
pub trait Writer<D: Record> {
    /// The last epoch that was shown, as the target itself knows it; `None` if it knows none.
    ///
    /// # Errors
    /// When the target cannot be asked.
    fn shown(&mut self) -> Result<Option<Epoch>>;

    /// Shows an epoch. `rows` are sorted and consolidated; a difference is never zero, and 1 for events.
    ///
    /// # Errors
    /// When the target fails; the epoch is then not shown.
    fn show(&mut self, epoch: Epoch, rows: &[(D, isize)]) -> Result<()>;

    /// Makes sure that everything shown is where it should be; called once, at the end of a job.
    ///
    /// # Errors
    /// When the target fails.
    fn finish(&mut self) -> Result<()>;
}
