//! The interface between a job and its sinks: [`Sink`], opened with a [`SinkContext`], and [`SinkWriter`].
//!
//! The calls of a writer: opening it locks or fences the target and changes nothing that readers see;
//! [`SinkWriter::published`] returns what the target has published; [`SinkWriter::begin`] starts the incarnation; then
//! epochs are written in order and published, one or several at a time; [`SinkWriter::finish`] ends the job.
//!
//! Invariants: epochs are written in order, each once; the rows of an epoch are consolidated and sorted; what was
//! published is known from the sink itself, never from the job's own state, and the number of an epoch is published in
//! the same atomic act as its rows. A sink does not know timely.

use std::fmt;
use std::sync::Arc;

use crate::durable::disk::{Disk, OsDisk};
use crate::durable::journal::JournalEnds;
use crate::durable::{Incarnation, PublishedEpoch, StateId};
use crate::error::Result;
use crate::record::Record;
use crate::sink::UniqueKey;
use crate::source::TopicAddress;
use crate::time::Epoch;

/// A sink of results: a value made before a job runs and shared by its workers.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a sink of `{D}` rows",
    label = "not a `Sink<{D}>`",
    note = "sinks are values such as `csv::Sink`, `ndjson::Sink`, `kafka::Sink`, `stream::Observer` and `testing::Captured`"
)]
pub trait Sink<D: Record>: Send + Sync + 'static {
    /// Returns a description for people, such as "file totals.csv".
    fn describe(&self) -> String;

    /// Checks, before anything is written, that the sink can hold such rows.
    ///
    /// # Errors
    /// Fails if the format cannot hold the row type, or if the target can never be written to.
    fn check(&self, _rows: SinkRows) -> Result<()> {
        Ok(())
    }

    /// Returns the topics that are written to; empty if there are none. A job that also reads one of them is refused.
    fn topics(&self) -> Vec<TopicAddress> {
        Vec::new()
    }

    /// Returns the function that gives a row's key, if a collection that is written must have at most one row of each
    /// key at every epoch; `None` if it need not. The job checks it, and fails before an epoch with a second row is
    /// written.
    fn unique_key(&self) -> Option<UniqueKey<D>> {
        None
    }

    /// Returns the sink with an encoder of events, if each is bytes of its own in it, such as a line of a file: events are
    /// then encoded where they are read, and opened is the sink of the bytes. `None`: they are encoded by the writer.
    ///
    /// # Errors
    /// Fails as [`Sink::check`] does.
    fn encoded(&self) -> Result<Option<EncodedSink<D>>> {
        Ok(None)
    }

    /// Opens the sink for writing: locks or fences the target, and changes nothing that readers see.
    ///
    /// # Errors
    /// Fails if the target cannot be written to, or if another process writes to it.
    fn open(&self, at: &SinkContext) -> Result<Box<dyn SinkWriter<D>>>;
}

/// A sink that is chosen while the program runs.
impl<D: Record, S: Sink<D> + ?Sized> Sink<D> for Box<S> {
    fn describe(&self) -> String {
        (**self).describe()
    }

    fn check(&self, rows: SinkRows) -> Result<()> {
        (**self).check(rows)
    }

    fn topics(&self) -> Vec<TopicAddress> {
        (**self).topics()
    }

    fn unique_key(&self) -> Option<UniqueKey<D>> {
        (**self).unique_key()
    }

    fn encoded(&self) -> Result<Option<EncodedSink<D>>> {
        (**self).encoded()
    }

    fn open(&self, at: &SinkContext) -> Result<Box<dyn SinkWriter<D>>> {
        (**self).open(at)
    }
}

/// A function that appends the bytes of an event.
pub(crate) type EncodeEvent<D> = dyn FnMut(&D, &mut Vec<u8>) -> Result<()>;

/// A sink that gets events as bytes, with their encoder: see [`Sink::encoded`].
pub struct EncodedSink<D> {
    /// Appends the bytes of an event; fails as the sink's own writer would.
    pub(crate) encode: Box<EncodeEvent<D>>,
    /// The sink of the bytes.
    pub(crate) lines: Box<dyn Sink<Vec<u8>>>,
}

impl<D> EncodedSink<D> {
    /// Creates a sink of events that `encode` appends the bytes of, as the sink's own writer would; `lines` gets the bytes
    /// of each.
    pub fn new(encode: impl FnMut(&D, &mut Vec<u8>) -> Result<()> + 'static, lines: impl Sink<Vec<u8>>) -> Self {
        EncodedSink { encode: Box::new(encode), lines: Box::new(lines) }
    }
}

impl<D> fmt::Debug for EncodedSink<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EncodedSink({})", self.lines.describe())
    }
}

/// Kind of the rows that a sink gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SinkRows {
    /// Events of a stream: rows are never retracted.
    Events,
    /// Changes of a collection: each row comes with a difference, which is written in a last column `diff`.
    Changes,
}

/// The shard of a sink to open, and its job.
#[derive(Clone, Debug)]
pub struct SinkContext {
    /// Name of the job.
    pub job: String,
    /// Name under which the flow writes the sink.
    pub name: String,
    /// Kind of the rows that the sink gets.
    pub rows: SinkRows,
    /// Id of the job's state; `None` without a state. With a state, the sink keeps what was published, and reads it
    /// back when it is opened again.
    pub state: Option<StateId>,
    /// `true` to sync rows when they are published even without a state.
    pub sync_on_publish: bool,
    /// `true` to go on although another process holds the lock: it may be suspended.
    pub take_over: bool,
    /// Disk on which files are written.
    pub disk: Arc<dyn Disk>,
}

impl SinkContext {
    /// Creates the shard of a job without a state, with its files on the operating system's disk.
    pub fn new(job: &str, name: &str, rows: SinkRows) -> Self {
        let (job, name, disk) = (job.to_owned(), name.to_owned(), OsDisk::shared());
        SinkContext { job, name, rows, state: None, sync_on_publish: false, take_over: false, disk }
    }
}

/// Writes and publishes the epochs of one shard of a sink.
///
/// A target without a record of what was published, such as standard output, may show rows to readers in
/// [`SinkWriter::write`] already.
pub trait SinkWriter<D: Record>: Send {
    /// Returns the last epoch that was published, as recorded in the target itself, with the ends of the journals that
    /// were written with it; `None` if the target has no record. Called once, before [`SinkWriter::begin`].
    ///
    /// # Errors
    /// Fails if the target cannot be read, belongs to another state, or was changed since it was last published.
    fn published(&mut self) -> Result<Option<PublishedEpoch>>;

    /// Starts an incarnation: drops whatever was written but not published. Without a state, or if nothing was ever
    /// published, the sink starts afresh; a file is then emptied. Called once, before anything is written.
    ///
    /// # Errors
    /// Fails if the target cannot be written to.
    fn begin(&mut self, life: &Incarnation) -> Result<()>;

    /// Writes an epoch, to be published by the next call of [`SinkWriter::publish`]. `rows` are sorted and
    /// consolidated; a difference is never zero, and at least 1 for events.
    ///
    /// # Errors
    /// Fails if the target fails; the epoch is then never published.
    fn write(&mut self, epoch: Epoch, rows: &[(D, isize)]) -> Result<()>;

    /// Publishes all epochs that were written since the last call, atomically and durably. `ends` are the ends of the
    /// journals at the last of those epochs. A target that remembers what was published keeps them in the same atomic
    /// act, and [`SinkWriter::published`] returns them; [`SinkWriter::begin`] clears them.
    ///
    /// # Errors
    /// Fails if the target fails, or if a later incarnation of the state has started; the epochs are then not
    /// published.
    fn publish(&mut self, ends: &JournalEnds) -> Result<()>;

    /// Completes everything that was published; called once, at the end of a job.
    ///
    /// # Errors
    /// Fails if the target fails.
    fn finish(&mut self) -> Result<()>;

    /// `true` if what was published outlives the job and [`SinkWriter::published`] returns it; a state then relies on
    /// it.
    fn remembers(&self) -> bool {
        self.is_blocking()
    }

    /// `true` if publishing waits for a disk or a network; it is then done on a thread of its own.
    fn is_blocking(&self) -> bool {
        false
    }
}
