//! One view: the side that the dataflow writes, and the side that readers read.
//!
//! * A [`Keeper`] is the writing side: one worker has it, and gives it the changes of complete epochs.
//! * A [`Store`] is what both share: the rows, and how far they have come.
//! * A [`Queue`] has what a subscriber has yet to take.
//!
//! How an answer is of one epoch: changes are applied in one critical section, at the end of which the epoch is set; who
//! reads takes rows and epoch in one, too. Where an epoch changes nothing it is set alone, as the rows are its rows already.
//! A reader holds the lock for as long as it takes to copy a pointer, and looks for its rows behind it.
//!
//! How a subscriber misses nothing and gets nothing twice: it takes its first rows, and is put on the list, in one critical
//! section, and the changes of each later one are put into its queue. The epoch is set after that; so whoever has seen the
//! epoch, and then finds its queue empty, has all changes up to it.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::record::Record;
use crate::sink::ndjson::Encoder;
use crate::time::Epoch;
use crate::view::answer::{self, Answer, Rows};
use crate::view::key::{self, Asked, KeyOf};
use crate::view::table::{Change, Table};
use crate::view::{End, Refusal, Update};

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A view of some type of rows, as readers see it.
pub(super) trait View: Send + Sync {
    fn get(&self, key: Option<&str>) -> std::result::Result<Answer, Refusal>;

    fn subscribe(self: Arc<Self>, key: Option<&str>, most: usize) -> std::result::Result<Box<dyn Subscribed>, Refusal>;

    /// The epoch up to which all is in it, if there is one; whether that is enough to answer; how many rows there are.
    fn status(&self) -> (Option<Epoch>, bool, usize);
}

/// A subscription to a view of some type of rows.
pub(super) trait Subscribed: Send {
    fn wait(&mut self, most: Duration) -> Option<Update>;

    /// The next update without waiting; if there is none, `waker` is woken when one comes. [`Update::Progress`] is answered
    /// only if it is asked for.
    fn poll(&mut self, waker: &Waker, progress: bool) -> Poll<Update>;
}

/// What the writer and the readers of a view share.
struct Store<D> {
    name: String,
    key: Box<KeyOf<D>>,
    encoder: Encoder,
    /// The epoch up to which all is in the rows; 0 before there is one.
    through: AtomicU64,
    /// The epoch that it has to come to before it answers, if that is known when the life begins; else its first one.
    needs: Option<Epoch>,
    ready: AtomicBool,
    held: Mutex<Held<D>>,
}

struct Held<D> {
    table: Arc<Table<D>>,
    subscribers: Vec<Weak<Queue<D>>>,
    over: bool,
}

impl<D: Record> Store<D> {
    fn through(&self) -> Option<Epoch> {
        Some(Epoch(self.through.load(Ordering::Acquire))).filter(|through| through.0 > 0)
    }

    /// The epoch of an answer.
    fn answers(&self) -> std::result::Result<Epoch, Refusal> {
        let (view, reached, needs) = (self.name.clone(), self.through(), self.needs);
        match reached.filter(|_| self.ready.load(Ordering::Acquire)) {
            Some(epoch) => Ok(epoch),
            None if lock(&self.held).over => Err(Refusal::Over { view }),
            None => Err(Refusal::NotReady { view, reached, needs }),
        }
    }

    /// The rows of a key, or all.
    fn rows(&self, table: &Table<D>, asked: Option<&Asked>) -> Vec<(D, isize)> {
        let mut rows = Vec::new();
        match asked {
            None => {
                rows.reserve(table.len());
                table.each(|row, count| rows.push((row.clone(), count)));
            }
            Some(asked) => {
                for hash in asked.hashes() {
                    table.bucket(hash).of(hash, |row, count| {
                        if self.is_asked(row, asked) {
                            rows.push((row.clone(), count));
                        }
                    });
                }
            }
        }
        rows
    }

    fn is_asked(&self, row: &D, asked: &Asked) -> bool {
        let mut key = Vec::new();
        (self.key)(row, &mut key).is_ok() && asked.is(&key)
    }

    fn answer(&self, epoch: Epoch, rows: Vec<(D, isize)>) -> Answer {
        Answer { view: self.name.clone(), epoch, rows: Rows::new(rows, self.encoder.clone()) }
    }
}

impl<D: Record> View for Store<D> {
    fn get(&self, key: Option<&str>) -> std::result::Result<Answer, Refusal> {
        self.answers()?;
        let asked = key.map(Asked::new);
        let (table, epoch) = {
            let held = lock(&self.held);
            (Arc::clone(&held.table), self.through().unwrap_or_default())
        };
        let rows = self.rows(&table, asked.as_ref());
        drop(table);
        Ok(self.answer(epoch, rows))
    }

    fn subscribe(self: Arc<Self>, key: Option<&str>, most: usize) -> std::result::Result<Box<dyn Subscribed>, Refusal> {
        self.answers()?;
        let asked = key.map(Asked::new);
        let queue = Arc::new(Queue { asked, most, waiting: Mutex::default(), news: Condvar::new() });
        let (table, epoch) = {
            let mut held = lock(&self.held);
            if held.over {
                lock(&queue.waiting).end = Some(End::Over);
            } else {
                held.subscribers.retain(|subscriber| subscriber.strong_count() > 0);
                held.subscribers.push(Arc::downgrade(&queue));
            }
            (Arc::clone(&held.table), self.through().unwrap_or_default())
        };
        let first = self.rows(&table, queue.asked.as_ref());
        Ok(Box::new(Following { store: self, queue, first: Some(first), told: epoch }))
    }

    fn status(&self) -> (Option<Epoch>, bool, usize) {
        let rows = lock(&self.held).table.len();
        (self.through(), self.ready.load(Ordering::Acquire), rows)
    }
}

/// What one epoch changed, in the order of the hashes.
type Batch<D> = Arc<Vec<Change<D>>>;

/// What a subscriber has yet to take.
struct Queue<D> {
    asked: Option<Asked>,
    /// How many changes may wait, an epoch counted as one more.
    most: usize,
    waiting: Mutex<Waiting<D>>,
    news: Condvar,
}

struct Waiting<D> {
    batches: VecDeque<(Epoch, Batch<D>)>,
    changes: usize,
    end: Option<End>,
    /// Woken when something comes, once.
    waker: Option<Waker>,
}

impl<D> Default for Waiting<D> {
    fn default() -> Self {
        Waiting { batches: VecDeque::new(), changes: 0, end: None, waker: None }
    }
}

impl<D: Record> Queue<D> {
    /// Takes in what an epoch changed; answers whether the subscriber is still there. What has to wait is not more than is
    /// allowed, but for what one epoch changed, if that waits alone.
    fn push(&self, store: &Store<D>, epoch: Epoch, batch: &Batch<D>) -> bool {
        let own = match &self.asked {
            None => Arc::clone(batch),
            // A copy: a few rows are not to keep all the others in memory.
            Some(asked) => Arc::new(of_key(store, asked, batch)),
        };
        if own.is_empty() {
            return true;
        }
        let mut waiting = lock(&self.waiting);
        let changes = waiting.changes + own.len() + 1;
        let waker = waiting.waker.take();
        if changes > self.most && !waiting.batches.is_empty() {
            *waiting = Waiting { end: Some(End::Behind { most: self.most }), ..Waiting::default() };
        } else {
            waiting.batches.push_back((epoch, own));
            waiting.changes = changes;
        }
        let goes_on = waiting.end.is_none();
        drop(waiting);
        self.wake(waker);
        goes_on
    }

    fn end(&self, end: End) {
        let mut waiting = lock(&self.waiting);
        waiting.end.get_or_insert(end);
        let waker = waiting.waker.take();
        drop(waiting);
        self.wake(waker);
    }

    fn wake(&self, waker: Option<Waker>) {
        self.news.notify_one();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// The changes of a key.
fn of_key<D: Record>(store: &Store<D>, asked: &Asked, batch: &[Change<D>]) -> Vec<Change<D>> {
    let mut own = Vec::new();
    for hash in asked.hashes() {
        let from = batch.partition_point(|change| change.0 < hash);
        let changes = batch[from..].iter().take_while(|change| change.0 == hash);
        own.extend(changes.filter(|change| store.is_asked(&change.1, asked)).cloned());
    }
    own
}

/// A subscriber.
struct Following<D> {
    store: Arc<Store<D>>,
    queue: Arc<Queue<D>>,
    /// What it begins with.
    first: Option<Vec<(D, isize)>>,
    /// The last epoch that it was told of.
    told: Epoch,
}

impl<D: Record> Following<D> {
    /// What it begins with, or else the changes that have waited longest.
    fn next(&mut self) -> Option<Update> {
        if let Some(rows) = self.first.take() {
            return Some(Update::State(self.store.answer(self.told, rows)));
        }
        let mut waiting = lock(&self.queue.waiting);
        let (epoch, batch) = waiting.batches.pop_front()?;
        waiting.changes -= batch.len() + 1;
        drop(waiting);
        let rows = Arc::unwrap_or_clone(batch).into_iter().map(|(_, row, diff)| (row, diff)).collect();
        self.told = epoch;
        Some(Update::Changes(self.store.answer(epoch, rows)))
    }

    /// The epoch up to which nothing else has changed, or else the end, after the queue was found empty. `Err` if
    /// something came meanwhile: it is told before.
    fn progress(&mut self) -> std::result::Result<Option<Update>, ()> {
        let end = lock(&self.queue.waiting).end;
        // Of one that was cut off, what it missed may be before the epoch.
        let behind = matches!(end, Some(End::Behind { .. }));
        let through = self.store.through().unwrap_or_default();
        let waiting = lock(&self.queue.waiting);
        if !waiting.batches.is_empty() || waiting.end != end {
            return Err(());
        }
        if through > self.told && !behind {
            self.told = through;
            return Ok(Some(Update::Progress(through)));
        }
        Ok(end.map(Update::End))
    }
}

impl<D: Record> Subscribed for Following<D> {
    fn wait(&mut self, most: Duration) -> Option<Update> {
        let until = Instant::now().checked_add(most);
        loop {
            if let Some(update) = self.next() {
                return Some(update);
            }
            let left = until.map_or(Duration::from_secs(3600), |until| until.saturating_duration_since(Instant::now()));
            let waiting = lock(&self.queue.waiting);
            if !waiting.batches.is_empty() {
                continue;
            }
            if waiting.end.is_none() && !left.is_zero() {
                drop(self.queue.news.wait_timeout(waiting, left).unwrap_or_else(PoisonError::into_inner));
                continue;
            }
            drop(waiting);
            if let Ok(update) = self.progress() {
                return update;
            }
        }
    }

    fn poll(&mut self, waker: &Waker, progress: bool) -> Poll<Update> {
        loop {
            if let Some(update) = self.next() {
                return Poll::Ready(update);
            }
            let has_ended = {
                let mut waiting = lock(&self.queue.waiting);
                if !waiting.batches.is_empty() {
                    continue;
                }
                waiting.waker = Some(waker.clone());
                waiting.end.is_some()
            };
            if !progress && !has_ended {
                return Poll::Pending;
            }
            match self.progress() {
                Ok(Some(update)) => return Poll::Ready(update),
                Ok(None) => return Poll::Pending,
                Err(()) => {}
            }
        }
    }
}

/// Writes a view.
pub(crate) struct Keeper<D: Record> {
    store: Arc<Store<D>>,
    /// Whether rows have been found to be rows that can be JSON.
    tried: bool,
}

impl<D: Record> Keeper<D> {
    /// A view without rows; with the epoch that it has to come to before it answers, if that is known.
    ///
    /// # Errors
    /// When rows of this type cannot be shown.
    pub(super) fn new(name: &str, key: Box<KeyOf<D>>, needs: Option<Epoch>) -> Result<(Self, Arc<dyn View>)> {
        let held = Held { table: Arc::new(Table::new()), subscribers: Vec::new(), over: false };
        let store = Arc::new(Store {
            name: name.to_owned(),
            key,
            encoder: encoder::<D>()?,
            through: AtomicU64::new(0),
            needs,
            ready: AtomicBool::new(false),
            held: Mutex::new(held),
        });
        Ok((Keeper { store: Arc::clone(&store), tried: false }, store))
    }

    /// Takes in what some epochs changed, in order and consolidated; then all is in it up to `through`, which is at least
    /// the last of them. `first_is_over` says whether an epoch of this life is complete.
    ///
    /// # Errors
    /// When a row or its key cannot be JSON.
    pub(crate) fn advance(
        &mut self,
        epochs: Vec<(Epoch, Vec<(D, isize)>)>,
        through: Epoch,
        first_is_over: bool,
    ) -> Result<()> {
        let store = &*self.store;
        let mut batches = Vec::new();
        for (epoch, rows) in epochs {
            if let Some((row, diff)) = rows.first().filter(|_| !std::mem::replace(&mut self.tried, true)) {
                answer::text(&mut store.encoder.clone(), row, *diff)?;
            }
            batches.push((epoch, self.keyed(rows)?));
        }
        if batches.iter().any(|(_, batch)| !batch.is_empty()) {
            let mut held = lock(&store.held);
            let Held { table, subscribers, .. } = &mut *held;
            let table = Arc::make_mut(table);
            for (epoch, batch) in batches {
                if subscribers.is_empty() {
                    table.apply(batch);
                } else {
                    let shared = Arc::new(batch);
                    subscribers.retain(|subscriber| {
                        subscriber.upgrade().is_some_and(|queue| queue.push(store, epoch, &shared))
                    });
                    table.apply(Arc::unwrap_or_clone(shared));
                }
            }
            // Before the lock is given up: rows and epoch are read in one.
            store.through.fetch_max(through.0, Ordering::AcqRel);
        } else {
            store.through.fetch_max(through.0, Ordering::AcqRel);
        }
        if store.needs.map_or(first_is_over, |needs| needs <= through) {
            store.ready.store(true, Ordering::Release);
        }
        Ok(())
    }

    /// Changes in the order of the hashes of their keys.
    fn keyed(&self, rows: Vec<(D, isize)>) -> Result<Vec<Change<D>>> {
        let mut key = Vec::new();
        let changes = rows.into_iter().map(|(row, diff)| {
            key.clear();
            (self.store.key)(&row, &mut key).map_err(|why| Error::new("a row's key cannot be JSON").because(why))?;
            Ok((key::hash(&key), row, diff))
        });
        let mut changes: Vec<_> = changes.collect::<Result<_>>()?;
        changes.sort_unstable_by_key(|change| change.0);
        Ok(changes)
    }
}

/// Nothing comes any more.
impl<D: Record> Drop for Keeper<D> {
    fn drop(&mut self) {
        let mut held = lock(&self.store.held);
        held.over = true;
        for queue in held.subscribers.drain(..).filter_map(|subscriber| subscriber.upgrade()) {
            queue.end(End::Over);
        }
    }
}

/// What makes JSON of rows of a type.
///
/// # Errors
/// When they cannot have the column of differences.
pub(super) fn encoder<D: Record>() -> Result<Encoder> {
    Encoder::new::<D>(crate::sink::Rows::Changes)
}
