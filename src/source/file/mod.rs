//! Files as sources: one file is one partition, however many workers parse it side by side.
//!
//! * A [`RecordFormat`] finds the ends of records and decodes them; nothing else differs between kinds of files.
//! * A [`FileSource`] is the source: the file's path, the event time of its records, their disorder.
//! * `chunks` splits the file into **chunks** of whole records and hands them out in order, each to the worker that
//!   asks and in that worker's epoch. It also carries the watermark from chunk to chunk.
//! * A `FileReader` belongs to one worker: it parses its chunks, and passes their records on once the watermark
//!   before them is known.
//! * `record_reader` reads the same formats without a job, also from a pipe.
//!
//! A record's offset is the position of its first byte. The partition begins at byte 0, so a byte order mark or a
//! header before the first record belongs to the first chunk and holds no records. Worker 0 is the **owner**: it alone
//! commits the partition's progress and reports its watermark.
//!
//! Invariants: chunks are whole records and cover the file without gap or overlap; the epochs of successive chunks
//! never go back; an event's watermark is the one just before it as if one thread had read the file from its first byte
//! on. So the records and watermarks of a file are a function of its bytes alone, and an epoch's share of them is a
//! function of the position at which the epoch ends. A state recognises a file by its length and by a checksum of the
//! last few KiB before the position that was reached; a change further before is not noticed.
//!
//! All workers that open an input must be threads of one process: workers of several processes would each read the
//! whole file. Watermark alignment (`--max-drift`) does not pause a file, as it is the only partition of its stream.
//! Nothing here knows timely, nor the journal's files.

pub(crate) mod chunks;
mod foreign_kinds;
pub(crate) mod format;
mod reader;
#[cfg(feature = "cli")]
pub(crate) mod record_reader;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::durable::journal::PartitionProgress;
use crate::error::{Error, Result};
use crate::record::Record;
use crate::source::{NullReader, Reader, Source, TimeOf, WorkerContext, time_of};
use crate::time::EventTime;

use chunks::{FileLimits, SharedFile};
pub use format::RecordFormat;
use reader::FileReader;

/// Number of the next value.
static VALUES: AtomicU64 = AtomicU64::new(0);

/// Record type of a [`FileSource`] that has no event time yet.
#[derive(Debug)]
pub enum Untimed {}

/// A file to read records from. [`event_time`](FileSource::event_time) sets the record type and its event time, which
/// makes it a [`Source`].
///
/// The same value may be used for several runs, one after the other: each reads the file from its beginning.
pub struct FileSource<F: RecordFormat, T = Untimed> {
    path: PathBuf,
    time_of: Option<TimeOf<T>>,
    out_of_order: Option<Duration>,
    idle_after: Option<Duration>,
    sizes: FileLimits,
    pending_open: Mutex<Option<PendingOpen<F>>>,
    format: F,
    /// Number of this value.
    number: u64,
}

/// A run whose file some workers have opened, but not all.
struct PendingOpen<F: RecordFormat> {
    job: String,
    opened: Vec<bool>,
    shared: Arc<SharedFile<F>>,
}

impl<F: RecordFormat> FileSource<F> {
    /// Creates an input from the file at `path`; nothing is opened yet.
    pub fn new(path: impl AsRef<Path>) -> Self {
        Self::of(path.as_ref().to_owned(), F::default(), None, (None, None))
    }

    /// Sets the record type, and the function that returns a record's event time in milliseconds since 1970.
    #[must_use]
    pub fn event_time<T: Record, E: Into<EventTime>>(
        self,
        event_time: impl Fn(&T) -> E + Send + Sync + 'static,
    ) -> FileSource<F, T> {
        FileSource::of(self.path, self.format, Some(time_of(event_time)), (self.out_of_order, self.idle_after))
    }
}

impl<F: RecordFormat, T> FileSource<F, T> {
    fn of(
        path: PathBuf,
        format: F,
        time_of: Option<TimeOf<T>>,
        (out_of_order, idle_after): (Option<Duration>, Option<Duration>),
    ) -> Self {
        let (sizes, pending_open) = (FileLimits::default(), Mutex::new(None));
        let number = VALUES.fetch_add(1, Ordering::Relaxed);
        FileSource { path, time_of, out_of_order, idle_after, sizes, pending_open, format, number }
    }

    /// Replaces the format by one with other options.
    #[must_use]
    pub(crate) fn with_format(mut self, format: F) -> Self {
        self.format = format;
        self
    }

    /// Sets the allowed disorder: how far an event time may be behind the greatest one before it.
    #[must_use]
    pub fn out_of_order(mut self, disorder: Duration) -> Self {
        self.out_of_order = Some(disorder);
        self
    }

    /// Sets the idle timeout: a followed file that is at its end for this long without growing no longer holds the
    /// watermark back. Without it, the job's `idle_timeout` holds.
    #[must_use]
    pub fn idle_after(mut self, silence: Duration) -> Self {
        self.idle_after = Some(silence);
        self
    }
}

impl<F: RecordFormat, T> fmt::Debug for FileSource<F, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileSource").field("path", &self.path).field("out_of_order", &self.out_of_order).finish()
    }
}

impl<F: RecordFormat, T: Record> FileSource<F, T> {
    /// Returns the state that the workers of a process share. The first worker creates it; once the last one has it,
    /// the input forgets it.
    ///
    /// A second call by the same worker, or one of another job, shows that an earlier run failed to start: the state is
    /// created anew.
    fn shared_file(&self, at: &WorkerContext) -> Result<Arc<SharedFile<F>>> {
        let mut opening = self.pending_open.lock().unwrap_or_else(PoisonError::into_inner);
        let joins = |of: &PendingOpen<F>| {
            of.job == at.job && of.opened.len() == at.threads && !of.opened[at.worker] && !of.shared.abandoned()
        };
        if !opening.as_ref().is_some_and(joins) {
            let sizes = self.sizes.with_longest(at.options.max_record);
            let shared = SharedFile::open::<T>(self.format.clone(), &self.path, at.options.until_end, sizes)?;
            let shared = Arc::new(shared.idle_after(self.idle_after.unwrap_or(at.options.idle_timeout)));
            *opening = Some(PendingOpen { job: at.job.clone(), opened: vec![false; at.threads], shared });
        }
        let Some(of) = opening.as_mut() else { return Err(Error::new("the file was not opened")) };
        of.opened[at.worker] = true;
        let shared = Arc::clone(&of.shared);
        if of.opened.iter().all(|opened| *opened) {
            *opening = None;
        }
        Ok(shared)
    }
}

// Makes rustc report an input without `event_time` as no source, rather than `Untimed` as no record.
#[diagnostic::do_not_recommend]
impl<F: RecordFormat, T: Record> Source for FileSource<F, T> {
    type Item = T;

    fn describe(&self) -> String {
        self.path.display().to_string()
    }

    fn event_time(&self) -> TimeOf<T> {
        match &self.time_of {
            Some(time_of) => Arc::clone(time_of),
            // Unreachable: only `event_time` makes an input of a record type.
            None => Arc::new(|_| EventTime::MIN),
        }
    }

    fn out_of_order(&self) -> Option<Duration> {
        self.out_of_order
    }

    fn idle_after(&self) -> Option<Duration> {
        self.idle_after
    }

    fn open(&self, at: &WorkerContext) -> Result<Box<dyn Reader<T>>> {
        // The file is read by the threads of one process only: other machines may not have it.
        if !at.is_in_first_process() {
            return Ok(Box::new(NullReader));
        }
        self.format.identity()?;
        Ok(Box::new(FileReader::<F, T>::new(self.shared_file(at)?, at.worker == 0)))
    }

    fn identity(&self, _at: &WorkerContext) -> Result<Option<String>> {
        self.format.identity().map(Some)
    }

    fn value_number(&self) -> Option<u64> {
        Some(self.number)
    }

    fn has_new_data(&self, _at: &WorkerContext, bounds: &[PartitionProgress]) -> Result<Option<String>> {
        chunks::grown_since(&self.path, self.sizes, bounds)
    }
}

#[cfg(test)]
mod tests;
