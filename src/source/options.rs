//! Settings of sources: those of a job, of a worker, and the function that gives a record's event time.

use std::sync::Arc;
use std::time::Duration;

use crate::durable::journal::TopicPartition;
use crate::source::file::chunks::MAX_RECORD;
use crate::time::EventTime;

/// Function that returns a record's event time.
pub type TimeOf<D> = Arc<dyn Fn(&D) -> EventTime + Send + Sync>;

/// Wraps a function whose result stands for an event time: milliseconds since 1970, a [`SystemTime`](std::time::SystemTime), a
/// [`jiff::Timestamp`].
pub fn time_of<D, E: Into<EventTime>>(event_time: impl Fn(&D) -> E + Send + Sync + 'static) -> TimeOf<D> {
    Arc::new(move |record| event_time(record).into())
}

/// Distance between the first partition numbers of two topics of one source. It is a power of ten, so that people see a
/// partition's own number in it.
pub(crate) const TOPIC_STRIDE: u32 = 1_000_000;

/// The worker that opens a source, and the settings of its job.
#[derive(Clone, Debug)]
pub struct WorkerContext {
    /// Index of this worker, from 0.
    pub worker: usize,
    /// Number of workers of the job, over all processes.
    pub workers: usize,
    /// Number of workers per process: worker `w` belongs to process `w / threads`.
    pub threads: usize,
    /// Name of the job.
    pub job: String,
    /// Options that all sources of the job share.
    pub options: Options,
    /// Partitions that the state knows by a number and a topic, of the source that is opened: those of the snapshot and
    /// of the journal's epochs after it, whichever worker read them. Empty for a source that needs no such numbers.
    pub known_partitions: Arc<[(u32, TopicPartition)]>,
}

impl WorkerContext {
    /// `true` if this worker reads the partition. Each topic of a list is dealt out from another worker on.
    pub fn owns(&self, partition: u32) -> bool {
        self.owner(partition) == self.worker
    }

    /// Returns the worker that reads the partition.
    pub(crate) fn owner(&self, partition: u32) -> usize {
        let (topic, number) = (partition / TOPIC_STRIDE, partition % TOPIC_STRIDE);
        (topic as usize + number as usize) % self.workers
    }

    /// Returns the number of the job's processes.
    pub(crate) fn processes(&self) -> usize {
        self.workers / self.threads
    }

    /// `true` if this worker belongs to the first process, which alone reads inputs that other machines may not have,
    /// such as files.
    pub fn is_in_first_process(&self) -> bool {
        self.worker < self.threads
    }
}

/// Options of all sources of a job.
///
/// ```
/// use tidegate::source::Options;
///
/// let options = Options::default().until_end(true).max_record(1 << 20);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Options {
    /// `true` to stop at the end that the source had when the job first started.
    pub until_end: bool,
    /// Default disorder: how far an event time may be behind the greatest one of its partition.
    pub out_of_order: Duration,
    /// Default idle timeout: a partition that is at its end for this long without records no longer holds the watermark
    /// back.
    pub idle_timeout: Duration,
    /// Watermark alignment: a partition pauses when its watermark is further than this ahead of the stream's.
    pub max_drift: Duration,
    /// Records whose event time is further than this ahead of their own Kafka timestamp are rejected.
    pub max_ahead: Duration,
    /// `true` to apply `max_ahead` to files too. Their records have no timestamp of their own, so an event time is
    /// compared with the greatest one before it in the file.
    pub max_ahead_in_files: bool,
    /// Length in bytes of the longest record of a file, line end included; longer ones are rejected.
    pub max_record: u64,
    /// `true` to fail the job at the first rejected record.
    pub fail_on_reject: bool,
}

impl Options {
    /// Sets [`Options::until_end`](#structfield.until_end).
    #[must_use]
    pub fn until_end(mut self, until_end: bool) -> Self {
        self.until_end = until_end;
        self
    }

    /// Sets [`Options::out_of_order`](#structfield.out_of_order).
    #[must_use]
    pub fn out_of_order(mut self, out_of_order: Duration) -> Self {
        self.out_of_order = out_of_order;
        self
    }

    /// Sets [`Options::idle_timeout`](#structfield.idle_timeout).
    #[must_use]
    pub fn idle_timeout(mut self, idle_timeout: Duration) -> Self {
        self.idle_timeout = idle_timeout;
        self
    }

    /// Sets [`Options::max_drift`](#structfield.max_drift).
    #[must_use]
    pub fn max_drift(mut self, max_drift: Duration) -> Self {
        self.max_drift = max_drift;
        self
    }

    /// Sets [`Options::max_ahead`](#structfield.max_ahead).
    #[must_use]
    pub fn max_ahead(mut self, max_ahead: Duration) -> Self {
        self.max_ahead = max_ahead;
        self
    }

    /// Sets [`Options::max_ahead_in_files`](#structfield.max_ahead_in_files).
    #[must_use]
    pub fn max_ahead_in_files(mut self, max_ahead_in_files: bool) -> Self {
        self.max_ahead_in_files = max_ahead_in_files;
        self
    }

    /// Sets [`Options::max_record`](#structfield.max_record).
    #[must_use]
    pub fn max_record(mut self, max_record: u64) -> Self {
        self.max_record = max_record;
        self
    }

    /// Sets [`Options::fail_on_reject`](#structfield.fail_on_reject).
    #[must_use]
    pub fn fail_on_reject(mut self, fail_on_reject: bool) -> Self {
        self.fail_on_reject = fail_on_reject;
        self
    }
}

impl Default for Options {
    fn default() -> Self {
        Options {
            until_end: false,
            out_of_order: Duration::from_secs(2),
            idle_timeout: Duration::from_secs(30),
            max_drift: Duration::from_secs(3600),
            max_ahead: Duration::from_secs(24 * 3600),
            max_ahead_in_files: false,
            max_record: MAX_RECORD as u64,
            fail_on_reject: false,
        }
    }
}
