//! Files as sources: one file is one partition, however many workers parse it side by side.
//!
//! * A [`Format`] says where records end and how one is decoded; it is all that differs between kinds of files.
//! * An [`Input`] is the source: the file's path, the event time of its records, their disorder.
//! * The [`dispenser`] cuts the file into **chunks** of whole records and hands them out in order, each to the worker
//!   that asks and in that worker's epoch. It also carries the watermark from chunk to chunk.
//! * A [`reader`] belongs to one worker: it parses its chunks, and gives their records on when the watermark before
//!   them is known.
//! * [`pieces`] read the same formats without a job, from a pipe too.
//!
//! A record's offset is the position of its first byte; the partition begins at byte 0, so what stands before the first
//! record (a byte order mark, a header) is a part of its first chunk that holds no records. Worker 0 is the **owner**:
//! it alone binds the partition and speaks for its watermark.
//!
//! Invariants: chunks are whole records and cover the file without gap or overlap; the epochs of successive chunks never
//! go back; an event's mark is the watermark just before it as if one thread had read the file from its first byte on.
//! So what a file gives is a function of its bytes alone, and each epoch's share of it of the epoch's end alone.
//! A state knows a file again by the last few KiB before the place that it came to, as well as by its length; a change
//! further before is not noticed.
//!
//! All workers that open an input must be threads of one process: workers of several processes would each read the
//! whole file. Partitions are not paused for being ahead of the stream (`--max-drift`): the file is the only partition
//! of its stream. Nothing here knows timely, nor the journal's files.

pub mod dispenser;
mod kind;
pub mod pieces;
pub mod reader;

use std::fmt;
use std::marker::PhantomData;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::durable::journal::Bound;
use crate::error::{Error, Result};
use crate::record::Record;
use crate::time::EventTime;
use crate::source::{Elsewhere, Place, Reader, Source, TimeOf, time_of};

use dispenser::{Shared, Sizes, Within};
use reader::FileReader;

/// What some programs write before UTF-8 text. It is no part of a record.
pub(crate) const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// A kind of file: where records end, and how one is decoded.
pub trait Format: Send + Sync + 'static {
    /// Names it, for people and in states: "csv file".
    const NAME: &'static str;

    /// What the beginning of a file says about the rest of it, and how a record type is found in it.
    type Layout: fmt::Debug + Send + Sync + 'static;

    /// What one worker keeps between chunks, to allocate less.
    type Scratch: Default;

    /// Reads what stands before the first record: the layout, and how many bytes that took. `bytes` are the first of
    /// the file, `whole` if there are no more. `None` if more are needed to tell, never when they are whole.
    ///
    /// # Errors
    /// When files like this cannot give records of type `T`.
    fn lay_out<T: Record>(bytes: &[u8], whole: bool) -> Result<Option<(Self::Layout, usize)>>;

    /// The position after the last complete record of bytes that begin at a record; `None` if there is none.
    fn last_end(bytes: &[u8]) -> Option<usize>;

    /// The position in `bytes` behind the end of the record that `within` says where they are in; `None` if it goes on, and
    /// `within` is then where it does. For records that are too long to be held.
    fn end_of(within: &mut Within, bytes: &[u8]) -> Option<usize>;

    /// Decodes bytes of whole records: for each record its place in them, without what ends it, and the record or why
    /// it is none.
    fn parse<T: Record>(
        layout: &Self::Layout,
        scratch: &mut Self::Scratch,
        bytes: &[u8],
        take: impl FnMut(Range<usize>, std::result::Result<T, String>),
    );
}

/// Stands for the record type of an [`Input`] whose event time has not been given yet.
#[derive(Debug)]
pub enum Untimed {}

/// A file to read records from. [`event_time`](Input::event_time) says what a record is and when it happened, and so
/// makes it a [`Source`].
///
/// The same value may be used for several runs, one after the other: each reads the file from its beginning.
pub struct Input<F: Format, T = Untimed> {
    path: PathBuf,
    time_of: Option<TimeOf<T>>,
    out_of_order: Option<Duration>,
    idle_after: Option<Duration>,
    sizes: Sizes,
    opening: Mutex<Option<Opening<F>>>,
    format: PhantomData<fn() -> F>,
}

/// A run of which some workers have opened the file, but not all.
struct Opening<F: Format> {
    job: String,
    opened: Vec<bool>,
    shared: Arc<Shared<F>>,
}

impl<F: Format> Input<F> {
    /// The file at `path`; nothing is opened yet.
    pub fn new(path: impl AsRef<Path>) -> Self {
        Self::of(path.as_ref().to_owned(), None, (None, None))
    }

    /// Sets the type of the records and the function that returns a record's event time: milliseconds since 1970, a
    /// `SystemTime`, a `jiff::Timestamp` or an [`EventTime`].
    #[must_use]
    pub fn event_time<T: Record, E: Into<EventTime>>(
        self,
        event_time: impl Fn(&T) -> E + Send + Sync + 'static,
    ) -> Input<F, T> {
        Input::of(self.path, Some(time_of(event_time)), (self.out_of_order, self.idle_after))
    }
}

impl<F: Format, T> Input<F, T> {
    fn of(
        path: PathBuf,
        time_of: Option<TimeOf<T>>,
        (out_of_order, idle_after): (Option<Duration>, Option<Duration>),
    ) -> Self {
        let (sizes, opening) = (Sizes::default(), Mutex::new(None));
        Input { path, time_of, out_of_order, idle_after, sizes, opening, format: PhantomData }
    }

    /// How far records may be behind the greatest event time before them.
    #[must_use]
    pub fn out_of_order(mut self, disorder: Duration) -> Self {
        self.out_of_order = Some(disorder);
        self
    }

    /// Sets the time that a followed file is at its end, without more, before it no longer holds the watermark back: before it is
    /// idle. Without it, the job's `idle_timeout` holds.
    #[must_use]
    pub fn idle_after(mut self, silence: Duration) -> Self {
        self.idle_after = Some(silence);
        self
    }
}

impl<F: Format, T> fmt::Debug for Input<F, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Input").field("path", &self.path).field("out_of_order", &self.out_of_order).finish()
    }
}

impl<F: Format, T: Record> Input<F, T> {
    /// What the workers of a process share: made by the first that opens, given up here when the last has it.
    ///
    /// A worker that opens twice, or one of another job, shows that an earlier run never came to be: it begins anew.
    fn join(&self, at: &Place) -> Result<Arc<Shared<F>>> {
        let mut opening = self.opening.lock().unwrap_or_else(PoisonError::into_inner);
        let joins = |of: &Opening<F>| {
            of.job == at.job && of.opened.len() == at.threads && !of.opened[at.worker] && !of.shared.abandoned()
        };
        if !opening.as_ref().is_some_and(joins) {
            let sizes = self.sizes.with_longest(at.options.max_record);
            let shared = Shared::open::<T>(&self.path, at.options.until_end, sizes)?;
            let shared = Arc::new(shared.idle_after(self.idle_after.unwrap_or(at.options.idle_timeout)));
            *opening = Some(Opening { job: at.job.clone(), opened: vec![false; at.threads], shared });
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

// So that an input without `event_time` is told that it is no source, rather than that `Untimed` is not a record.
#[diagnostic::do_not_recommend]
impl<F: Format, T: Record> Source for Input<F, T> {
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

    fn open(&self, at: &Place) -> Result<Box<dyn Reader<T>>> {
        // Its bytes are dealt out to the threads of one process: other machines may not have it.
        if !at.is_in_first_process() {
            return Ok(Box::new(Elsewhere));
        }
        Ok(Box::new(FileReader::<F, T>::new(self.join(at)?, at.worker == 0)))
    }

    fn identity(&self, _at: &Place) -> Result<Option<String>> {
        Ok(Some(F::NAME.to_owned()))
    }

    fn grown_since(&self, _at: &Place, bounds: &[Bound]) -> Result<Option<String>> {
        dispenser::grown_since(&self.path, self.sizes, bounds)
    }
}

#[cfg(test)]
mod tests;
