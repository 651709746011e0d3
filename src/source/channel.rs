//! Records that another thread of the program sends: `channel(capacity)`.
//!
//! * A [`ChannelSender`] waits while `capacity` records are in the channel: the job's back-pressure reaches whoever sends.
//! * A record's **position** is the number of records sent before it, over all incarnations of a state. It is the offset in
//!   the one partition that the source has.
//! * The journal keeps the records **by value**, as nobody else has them. So a record is durable when its epoch's input is
//!   synced, and it is **acknowledged** when all sinks have published that epoch ([`ChannelSender::published`]). Those that
//!   are not acknowledged may be lost with the process: a job that is started again asks for the records from a position on
//!   ([`ChannelSender::position`]), which is never before an acknowledged one.
//!
//! Invariant: a record is taken at the position that [`ChannelSender::send`] has returned for it, or never.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::durable::codec::{Codec, Postcard};
use crate::durable::journal::{JournaledRecord, PartitionProgress};
use crate::error::{Error, ErrorKind, Result};
use crate::record::Record;
use crate::source::{
    PartitionHandle, PartitionTracker, Polled, RawRecord, Reader, RestoredPartition, Source, TimeOf, WorkerContext,
    time_of,
};
use crate::time::{Epoch, EventTime};

/// The only partition.
const PARTITION: u32 = 0;

/// The state that sender and reader share.
struct SharedState<T> {
    queue: VecDeque<T>,
    capacity: usize,
    /// Position of the next record to be sent; `None` until the job knows.
    next: Option<u64>,
    /// Records before this position are published.
    published: u64,
    /// `true` if nothing more is sent.
    is_closed: bool,
    /// Reason why nothing more is read; `None` while the job reads, or may begin to.
    over: Option<&'static str>,
}

struct SharedChannel<T> {
    state: Mutex<SharedState<T>>,
    /// Wakes senders that wait for the job.
    changed: Condvar,
}

impl<T> SharedChannel<T> {
    fn lock(&self) -> MutexGuard<'_, SharedState<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `ready` returns a value.
    fn wait<R>(&self, mut ready: impl FnMut(&mut SharedState<T>) -> Option<R>) -> R {
        let mut state = self.lock();
        loop {
            if let Some(found) = ready(&mut state) {
                return found;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn end(&self, why: &'static str) {
        self.lock().over.get_or_insert(why);
        self.changed.notify_all();
    }
}

fn over(why: &str) -> Error {
    Error::new("nobody reads the channel").because(why).help("start a job that reads it, and send from its position on")
}

/// Creates a channel: the end that sends records, and the end that a job reads.
///
/// `capacity` is the number of records, at least one, that may wait in the channel.
///
/// ```
/// use std::thread;
/// use tidegate::Job;
/// use tidegate::source::channel;
/// use tidegate::testing::Captured;
///
/// # fn main() -> tidegate::Result<()> {
/// let (sender, source) = channel::channel::<(String, i64)>(1_000);
/// let source = source.event_time(|word| word.1);
/// let words = Captured::<String>::new();
/// let output = words.clone();
/// let sending = thread::spawn(move || {
///     // With a state, a job that is started again asks for the records from there on.
///     let all = [("tide", 1_000), ("gate", 2_000)];
///     for (word, at) in &all[sender.position()? as usize..] {
///         sender.send((word.to_string(), *at))?;
///     }
///     sender.close();
///     sender.wait_until_published(all.len() as u64)
/// });
/// Job::new("words").run(move |flow| flow.read("words", &source).map(|word| word.0).write("words", &output))?;
/// sending.join().expect("it does not panic")?;
/// assert_eq!(words.all(), ["gate", "tide"]);
/// # Ok(()) }
/// ```
pub fn channel<T: Record>(capacity: usize) -> (ChannelSender<T>, ChannelEnd<T>) {
    let state = SharedState {
        queue: VecDeque::new(),
        capacity: capacity.max(1),
        next: None,
        published: 0,
        is_closed: false,
        over: None,
    };
    let shared = Arc::new(SharedChannel { state: Mutex::new(state), changed: Condvar::new() });
    let lease = Arc::new(ReadingEnd(Arc::clone(&shared)));
    (ChannelSender(shared), ChannelEnd(lease))
}

/// The end of a channel that sends records. Clones send into the same channel.
///
/// Its functions wait for a job, so they belong on another thread than the one that runs it. In a job of several processes
/// only the first one reads.
pub struct ChannelSender<T>(Arc<SharedChannel<T>>);

impl<T> Clone for ChannelSender<T> {
    fn clone(&self) -> Self {
        ChannelSender(Arc::clone(&self.0))
    }
}

impl<T> fmt::Debug for ChannelSender<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.0.lock();
        f.debug_struct("ChannelSender").field("next", &state.next).field("published", &state.published).finish()
    }
}

impl<T> ChannelSender<T> {
    /// Returns the position of the next record to be sent; waits until the job has begun to read. Of a job that goes on
    /// with a state it is the first position whose record the state does not have.
    ///
    /// # Errors
    /// Fails if nobody reads the channel any more.
    pub fn position(&self) -> Result<u64> {
        self.0.wait(|state| state.over.map(|why| Err(over(why))).or_else(|| state.next.map(Ok)))
    }

    /// Sends a record, and returns its position. Waits until the job has begun to read, and while the channel is full.
    ///
    /// # Errors
    /// Fails if nobody reads the channel any more, or if it has been closed.
    pub fn send(&self, record: T) -> Result<u64> {
        let mut record = Some(record);
        self.0.wait(|state| state.offer(&mut record))
    }

    /// Sends a record if the job reads and there is space; otherwise returns it.
    ///
    /// # Errors
    /// Fails as [`ChannelSender::send`] does.
    pub fn try_send(&self, record: T) -> Result<std::result::Result<u64, T>> {
        let mut record = Some(record);
        let sent = self.0.lock().offer(&mut record).transpose()?;
        Ok(match (sent, record) {
            (None, Some(record)) => Err(record),
            (sent, _) => Ok(sent.unwrap_or_default()),
        })
    }

    /// Says that nothing more is sent: the source ends after what is in the channel.
    pub fn close(&self) {
        self.0.lock().is_closed = true;
        self.0.changed.notify_all();
    }

    /// Returns the position up to which records are published: their epochs are durable in a job with state, and all
    /// sinks have published what came of them. Records before it are never asked for again.
    pub fn published(&self) -> u64 {
        self.0.lock().published
    }

    /// Waits until the records before a position are published.
    ///
    /// # Errors
    /// Fails if the job ends before.
    pub fn wait_until_published(&self, position: u64) -> Result<()> {
        self.0.wait(|state| match state.over {
            _ if state.published >= position => Some(Ok(())),
            Some(why) => Some(Err(over(why))),
            None => None,
        })
    }
}

impl<T> SharedState<T> {
    /// Takes the record into the queue, if it can be; returns its position. `None`: not now.
    fn offer(&mut self, record: &mut Option<T>) -> Option<Result<u64>> {
        if let Some(why) = self.over {
            return Some(Err(over(why)));
        }
        if self.is_closed {
            return Some(Err(Error::usage("the channel is closed").help("send all records before it is closed")));
        }
        let position = self.next.filter(|_| self.queue.len() < self.capacity)?;
        self.queue.extend(record.take());
        self.next = Some(position + 1);
        Some(Ok(position))
    }
}

/// Ends the channel when neither a source nor a reader of it is left.
struct ReadingEnd<T>(Arc<SharedChannel<T>>);

impl<T> Drop for ReadingEnd<T> {
    fn drop(&mut self) {
        self.0.end("the job that read it has ended");
    }
}

/// The end of a channel that a job reads, before it is known when records happen.
pub struct ChannelEnd<T>(Arc<ReadingEnd<T>>);

impl<T> fmt::Debug for ChannelEnd<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ChannelEnd<{}>", std::any::type_name::<T>())
    }
}

impl<T: Record> ChannelEnd<T> {
    /// Sets the function that returns a record's event time: milliseconds since 1970, a `SystemTime`, a
    /// `jiff::Timestamp` or an [`EventTime`].
    pub fn event_time<E: Into<EventTime>>(
        self,
        event_time: impl Fn(&T) -> E + Send + Sync + 'static,
    ) -> ChannelSource<T> {
        ChannelSource { lease: self.0, time_of: time_of(event_time), out_of_order: None, idle_after: None }
    }
}

/// The end of a channel that a job reads. A job reads it once: in one place of its query, and in one run.
pub struct ChannelSource<T> {
    lease: Arc<ReadingEnd<T>>,
    time_of: TimeOf<T>,
    out_of_order: Option<Duration>,
    idle_after: Option<Duration>,
}

impl<T> fmt::Debug for ChannelSource<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ChannelSource<{}>", std::any::type_name::<T>())
    }
}

impl<T> ChannelSource<T> {
    /// Sets the allowed disorder: how far an event time may be behind the greatest one before it.
    #[must_use]
    pub fn out_of_order(self, disorder: Duration) -> Self {
        ChannelSource { out_of_order: Some(disorder), ..self }
    }

    /// Sets the idle timeout: how long the channel may be empty before it no longer holds the watermark back.
    #[must_use]
    pub fn idle_after(self, timeout: Duration) -> Self {
        ChannelSource { idle_after: Some(timeout), ..self }
    }
}

impl<T: Record> Source for ChannelSource<T> {
    type Item = T;

    fn describe(&self) -> String {
        "records of a channel".to_owned()
    }

    fn event_time(&self) -> TimeOf<T> {
        Arc::clone(&self.time_of)
    }

    fn out_of_order(&self) -> Option<Duration> {
        self.out_of_order
    }

    fn idle_after(&self) -> Option<Duration> {
        self.idle_after
    }

    fn open(&self, at: &WorkerContext) -> Result<Box<dyn Reader<T>>> {
        if at.owns(PARTITION) {
            Codec::<T>::check(&Postcard)
                .map_err(|why| Error::usage("the records of a channel cannot be kept in a journal").because(why))?;
            let idle_after = self.idle_after.unwrap_or(at.options.idle_timeout);
            return Ok(Box::new(ChannelReader::new(Arc::clone(&self.lease), idle_after)));
        }
        if !at.is_in_first_process() {
            self.lease.0.end("only the first process of a job reads it");
        }
        Ok(Box::new(super::NullReader))
    }

    fn identity(&self, _at: &WorkerContext) -> Result<Option<String>> {
        Ok(Some(format!("a channel of records of the shape {:016x}", Codec::<T>::fingerprint(&Postcard))))
    }
}

/// Reads a channel.
struct ChannelReader<T> {
    lease: Arc<ReadingEnd<T>>,
    /// The partition, once it is found.
    partition: Option<PartitionHandle>,
    idle_after: Duration,
    /// The time since which the channel has been empty.
    empty_since: Option<Instant>,
    /// The positions that were reached in epochs that are not published yet.
    unpublished: VecDeque<(Epoch, u64)>,
    /// Records to be taken: those that are handed over together.
    batch: Vec<T>,
}

impl<T: Record> ChannelReader<T> {
    fn new(lease: Arc<ReadingEnd<T>>, idle_after: Duration) -> Self {
        let (unpublished, batch) = (VecDeque::new(), Vec::new());
        ChannelReader { lease, partition: None, idle_after, empty_since: None, unpublished, batch }
    }

    /// Returns the partition; finds it in `epoch` if there is none.
    fn partition(&mut self, epoch: Epoch, intake: &mut PartitionTracker<T>) -> PartitionHandle {
        intake.all_found();
        *self.partition.get_or_insert_with(|| {
            let partition = intake.track(epoch, PARTITION, 0, None);
            intake.keep_values(partition);
            partition
        })
    }

    /// Takes a record, with its serialization for the journal.
    fn accept(
        epoch: Epoch,
        partition: PartitionHandle,
        (record, bytes): (T, &[u8]),
        intake: &mut PartitionTracker<T>,
    ) -> Result<()> {
        let offset = intake.next(partition);
        intake.accept(epoch, partition, RawRecord::new(offset, bytes), record)?;
        intake.keep_value(partition, || JournaledRecord {
            offset,
            payload: Some(bytes.to_vec()),
            ..JournaledRecord::default()
        });
        Ok(())
    }
}

impl<T: Record> Reader<T> for ChannelReader<T> {
    fn resume(&mut self, epoch: Epoch, places: &[RestoredPartition], intake: &mut PartitionTracker<T>) -> Result<()> {
        let Some(place) = places.iter().find(|place| place.progress.partition == PARTITION) else { return Ok(()) };
        let partition = intake.resume(epoch, place);
        intake.keep_values(partition);
        self.partition = Some(partition);
        Ok(())
    }

    fn poll(&mut self, epoch: Epoch, budget: usize, intake: &mut PartitionTracker<T>) -> Result<Polled> {
        let partition = self.partition(epoch, intake);
        if intake.ended(partition) {
            return Ok(Polled::new(epoch, false));
        }
        let shared = Arc::clone(&self.lease.0);
        let (is_closed, is_empty) = {
            let mut state = shared.lock();
            state.next.get_or_insert_with(|| intake.next(partition));
            let most = if intake.is_paused(partition) { 0 } else { budget.min(state.queue.len()) };
            self.batch.extend(state.queue.drain(..most));
            (state.is_closed, state.queue.is_empty())
        };
        shared.changed.notify_all();
        let took = !self.batch.is_empty();
        for record in std::mem::take(&mut self.batch) {
            let bytes = postcard::to_allocvec(&record)
                .map_err(|why| Error::new("a record of a channel cannot be serialized for the journal").because(why))?;
            Self::accept(epoch, partition, (record, &bytes), intake)?;
        }
        if took {
            self.empty_since = None;
            self.unpublished.push_back((epoch, intake.next(partition)));
        } else if is_empty {
            if is_closed {
                intake.mark_ended(partition);
            } else if self.empty_since.get_or_insert_with(Instant::now).elapsed() >= self.idle_after {
                intake.set_idle(partition);
            }
        }
        Ok(Polled::new(epoch, took && !is_empty))
    }

    fn replay(&mut self, epoch: Epoch, bounds: &[PartitionProgress], intake: &mut PartitionTracker<T>) -> Result<bool> {
        let Some(bound) = bounds.iter().find(|bound| bound.partition == PARTITION) else { return Ok(true) };
        let partition = self.partition(epoch, intake);
        let kept = bound.values.iter().flatten().filter(|kept| kept.offset >= intake.next(partition));
        for kept in kept.collect::<Vec<_>>() {
            let bytes = kept.payload.as_deref().unwrap_or_default();
            let record = postcard::from_bytes(bytes).map_err(|why| {
                let place = format!("source `{}`, position {}", intake.name(), kept.offset);
                let error = Error::of(ErrorKind::SourceChanged, "a record of the journal cannot be read").at(place);
                error.because(why).help("start the program whose type of records the state was written with")
            })?;
            Self::accept(epoch, partition, (record, bytes), intake)?;
        }
        intake.replay_flags(partition, bound);
        self.unpublished.push_back((epoch, intake.next(partition)));
        Ok(true)
    }

    fn notify_published(&mut self, epoch: Epoch) {
        let done = self.unpublished.iter().take_while(|(taken, _)| *taken <= epoch).count();
        let Some((_, position)) = self.unpublished.drain(..done).next_back() else { return };
        let mut state = self.lease.0.lock();
        state.published = state.published.max(position);
        drop(state);
        self.lease.0.changed.notify_all();
    }
}
