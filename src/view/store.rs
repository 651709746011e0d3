//! One view: its writing side for the dataflow, and its reading side.
//!
//! * A [`ViewWriter`] is the writing side: it belongs to one worker, which gives it the changes of complete epochs.
//! * A [`ViewStore`] is shared by both sides: the rows, and the epoch up to which they are complete.
//! * A [`SubscriptionQueue`] holds the changes that a subscriber has not taken yet.
//!
//! An answer is of one epoch: changes are applied in one critical section, which sets the epoch at its end, and a
//! reader takes rows and epoch in one critical section, too. An epoch without changes is set outside of it, as the rows
//! are valid for it already. A reader holds the lock only while it copies a pointer, and searches for its rows
//! afterwards.
//!
//! A subscriber misses no change and gets none twice: it takes its first rows, and is added to the subscribers, in one
//! critical section; the changes of each later one are put into its queue. The epoch is set after that. So a subscriber
//! that has seen the epoch, and then finds its queue empty, has all changes up to it.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::record::Record;
use crate::sink::ndjson::Encoder;
use crate::time::Epoch;
use crate::view::answer::{self, Answer, ViewRows};
use crate::view::key::{self, RequestedKeys, ViewKeyFn};
use crate::view::refusal::Refusal;
use crate::view::table::{KeyedChange, ViewTable};
use crate::view::update::{SubscriptionEnd, ViewUpdate};

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A view of some row type, as readers see it.
pub(super) trait ViewReader: Send + Sync {
    fn get(&self, key: Option<&str>) -> std::result::Result<Answer, Refusal>;

    fn subscribe(
        self: Arc<Self>,
        key: Option<&str>,
        most: usize,
    ) -> std::result::Result<Box<dyn UpdateReader>, Refusal>;

    /// Returns the epoch up to which the view is complete, if there is one; whether it answers; and the number of its
    /// rows.
    fn status(&self) -> (Option<Epoch>, bool, usize);
}

/// A subscription to a view of some row type.
pub(super) trait UpdateReader: Send {
    fn wait(&mut self, most: Duration) -> Option<ViewUpdate>;

    /// Returns the next update without waiting; if there is none, `waker` is woken when one arrives.
    /// [`ViewUpdate::Progress`] is returned only with `progress`.
    fn poll(&mut self, waker: &Waker, progress: bool) -> Poll<ViewUpdate>;
}

/// The state shared by the writer and the readers of a view.
struct ViewStore<D> {
    name: String,
    key: Box<ViewKeyFn<D>>,
    encoder: Encoder,
    /// The epoch up to which the rows are complete; 0 before there is one.
    through: AtomicU64,
    /// The epoch that the view must reach before it answers, if known when the incarnation starts; else its first one.
    needs: Option<Epoch>,
    ready: AtomicBool,
    held: Mutex<ViewState<D>>,
}

struct ViewState<D> {
    table: Arc<ViewTable<D>>,
    subscribers: Vec<Weak<SubscriptionQueue<D>>>,
    over: bool,
}

impl<D: Record> ViewStore<D> {
    fn through(&self) -> Option<Epoch> {
        Some(Epoch(self.through.load(Ordering::Acquire))).filter(|through| through.0 > 0)
    }

    /// Checks that the view answers, and returns its epoch.
    fn answers(&self) -> std::result::Result<Epoch, Refusal> {
        let (view, reached, needs) = (self.name.clone(), self.through(), self.needs);
        match reached.filter(|_| self.ready.load(Ordering::Acquire)) {
            Some(epoch) => Ok(epoch),
            None if lock(&self.held).over => Err(Refusal::Over { view }),
            None => Err(Refusal::NotReady { view, reached, needs }),
        }
    }

    /// Returns the rows of a key, or all rows.
    fn rows(&self, table: &ViewTable<D>, asked: Option<&RequestedKeys>) -> Vec<(D, isize)> {
        let mut rows = Vec::new();
        match asked {
            None => {
                rows.reserve(table.len());
                table.each(|row, count| rows.push((row.clone(), count)));
            }
            Some(asked) => {
                for hash in asked.hashes() {
                    table.bucket(hash).of(hash, |row, count| {
                        if self.is_requested(row, asked) {
                            rows.push((row.clone(), count));
                        }
                    });
                }
            }
        }
        rows
    }

    fn is_requested(&self, row: &D, asked: &RequestedKeys) -> bool {
        let mut key = Vec::new();
        (self.key)(row, &mut key).is_ok() && asked.is(&key)
    }

    fn answer(&self, epoch: Epoch, rows: Vec<(D, isize)>) -> Answer {
        Answer { view: self.name.clone(), epoch, rows: ViewRows::new(rows, self.encoder.clone()) }
    }
}

impl<D: Record> ViewReader for ViewStore<D> {
    fn get(&self, key: Option<&str>) -> std::result::Result<Answer, Refusal> {
        self.answers()?;
        let asked = key.map(RequestedKeys::new);
        let (table, epoch) = {
            let held = lock(&self.held);
            (Arc::clone(&held.table), self.through().unwrap_or_default())
        };
        let rows = self.rows(&table, asked.as_ref());
        drop(table);
        Ok(self.answer(epoch, rows))
    }

    fn subscribe(
        self: Arc<Self>,
        key: Option<&str>,
        most: usize,
    ) -> std::result::Result<Box<dyn UpdateReader>, Refusal> {
        self.answers()?;
        let asked = key.map(RequestedKeys::new);
        let queue = Arc::new(SubscriptionQueue { asked, most, waiting: Mutex::default(), arrived: Condvar::new() });
        let (table, epoch) = {
            let mut held = lock(&self.held);
            if held.over {
                lock(&queue.waiting).end = Some(SubscriptionEnd::Over);
            } else {
                held.subscribers.retain(|subscriber| subscriber.strong_count() > 0);
                held.subscribers.push(Arc::downgrade(&queue));
            }
            (Arc::clone(&held.table), self.through().unwrap_or_default())
        };
        let first = self.rows(&table, queue.asked.as_ref());
        Ok(Box::new(Subscriber { store: self, queue, first: Some(first), told: epoch }))
    }

    fn status(&self) -> (Option<Epoch>, bool, usize) {
        let rows = lock(&self.held).table.len();
        (self.through(), self.ready.load(Ordering::Acquire), rows)
    }
}

/// The changes of one epoch, ordered by hash.
type PublishedChanges<D> = Arc<Vec<KeyedChange<D>>>;

/// The changes queued for a subscriber.
struct SubscriptionQueue<D> {
    asked: Option<RequestedKeys>,
    /// Maximum number of queued changes, where each epoch counts as one more.
    most: usize,
    waiting: Mutex<QueuedChanges<D>>,
    arrived: Condvar,
}

struct QueuedChanges<D> {
    batches: VecDeque<(Epoch, PublishedChanges<D>)>,
    changes: usize,
    end: Option<SubscriptionEnd>,
    /// Woken once, when something arrives.
    waker: Option<Waker>,
}

impl<D> Default for QueuedChanges<D> {
    fn default() -> Self {
        QueuedChanges { batches: VecDeque::new(), changes: 0, end: None, waker: None }
    }
}

impl<D: Record> SubscriptionQueue<D> {
    /// Queues the changes of an epoch; returns `false` once the subscriber is cut off. More than `most` changes are
    /// queued only if they are all of one epoch.
    fn push(&self, store: &ViewStore<D>, epoch: Epoch, batch: &PublishedChanges<D>) -> bool {
        let own = match &self.asked {
            None => Arc::clone(batch),
            // A copy, so that a few rows do not keep all the others in memory.
            Some(asked) => Arc::new(of_key(store, asked, batch)),
        };
        if own.is_empty() {
            return true;
        }
        let mut waiting = lock(&self.waiting);
        let changes = waiting.changes + own.len() + 1;
        let waker = waiting.waker.take();
        if changes > self.most && !waiting.batches.is_empty() {
            *waiting =
                QueuedChanges { end: Some(SubscriptionEnd::Behind { most: self.most }), ..QueuedChanges::default() };
        } else {
            waiting.batches.push_back((epoch, own));
            waiting.changes = changes;
        }
        let goes_on = waiting.end.is_none();
        drop(waiting);
        self.wake(waker);
        goes_on
    }

    fn end(&self, end: SubscriptionEnd) {
        let mut waiting = lock(&self.waiting);
        waiting.end.get_or_insert(end);
        let waker = waiting.waker.take();
        drop(waiting);
        self.wake(waker);
    }

    fn wake(&self, waker: Option<Waker>) {
        self.arrived.notify_one();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// Returns the changes of the requested keys.
fn of_key<D: Record>(store: &ViewStore<D>, asked: &RequestedKeys, batch: &[KeyedChange<D>]) -> Vec<KeyedChange<D>> {
    let mut own = Vec::new();
    for hash in asked.hashes() {
        let from = batch.partition_point(|change| change.0 < hash);
        let changes = batch[from..].iter().take_while(|change| change.0 == hash);
        own.extend(changes.filter(|change| store.is_requested(&change.1, asked)).cloned());
    }
    own
}

/// The reading side of one subscription.
struct Subscriber<D> {
    store: Arc<ViewStore<D>>,
    queue: Arc<SubscriptionQueue<D>>,
    /// The initial rows, until they are taken.
    first: Option<Vec<(D, isize)>>,
    /// The last epoch that the subscriber was told of.
    told: Epoch,
}

impl<D: Record> Subscriber<D> {
    /// Returns the initial rows first, then the changes that have waited longest; `None` if there are none.
    fn next(&mut self) -> Option<ViewUpdate> {
        if let Some(rows) = self.first.take() {
            return Some(ViewUpdate::State(self.store.answer(self.told, rows)));
        }
        let mut waiting = lock(&self.queue.waiting);
        let (epoch, batch) = waiting.batches.pop_front()?;
        waiting.changes -= batch.len() + 1;
        drop(waiting);
        let rows = Arc::unwrap_or_clone(batch).into_iter().map(|(_, row, diff)| (row, diff)).collect();
        self.told = epoch;
        Some(ViewUpdate::Changes(self.store.answer(epoch, rows)))
    }

    /// Returns the epoch up to which nothing else has changed, or else the end; to be called after the queue was found
    /// empty. `Err` if something has arrived meanwhile, which must be returned first.
    fn progress(&mut self) -> std::result::Result<Option<ViewUpdate>, ()> {
        let end = lock(&self.queue.waiting).end;
        // A subscriber that was cut off may have missed changes before that epoch.
        let behind = matches!(end, Some(SubscriptionEnd::Behind { .. }));
        let through = self.store.through().unwrap_or_default();
        let waiting = lock(&self.queue.waiting);
        if !waiting.batches.is_empty() || waiting.end != end {
            return Err(());
        }
        if through > self.told && !behind {
            self.told = through;
            return Ok(Some(ViewUpdate::Progress(through)));
        }
        Ok(end.map(ViewUpdate::End))
    }
}

impl<D: Record> UpdateReader for Subscriber<D> {
    fn wait(&mut self, most: Duration) -> Option<ViewUpdate> {
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
                drop(self.queue.arrived.wait_timeout(waiting, left).unwrap_or_else(PoisonError::into_inner));
                continue;
            }
            drop(waiting);
            if let Ok(update) = self.progress() {
                return update;
            }
        }
    }

    fn poll(&mut self, waker: &Waker, progress: bool) -> Poll<ViewUpdate> {
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

/// The writing side of a view.
pub(crate) struct ViewWriter<D: Record> {
    store: Arc<ViewStore<D>>,
    /// `true` once a first row was encoded, to check that rows can be JSON.
    tried: bool,
}

impl<D: Record> ViewWriter<D> {
    /// Creates a view without rows; `needs` is the epoch that it must reach before it answers, if known.
    ///
    /// # Errors
    /// Fails if rows of this type cannot be published in a view.
    pub(super) fn new(name: &str, key: Box<ViewKeyFn<D>>, needs: Option<Epoch>) -> Result<(Self, Arc<dyn ViewReader>)> {
        let held = ViewState { table: Arc::new(ViewTable::new()), subscribers: Vec::new(), over: false };
        let store = Arc::new(ViewStore {
            name: name.to_owned(),
            key,
            encoder: encoder::<D>()?,
            through: AtomicU64::new(0),
            needs,
            ready: AtomicBool::new(false),
            held: Mutex::new(held),
        });
        Ok((ViewWriter { store: Arc::clone(&store), tried: false }, store))
    }

    /// Applies the changes of complete epochs, in order and consolidated; the view is complete up to `through` then,
    /// which is at least the last of them. `first_is_over` is `true` if an epoch of this incarnation is complete.
    ///
    /// # Errors
    /// Fails if a row or its key cannot be JSON.
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
            let ViewState { table, subscribers, .. } = &mut *held;
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
            // Before the lock is released: readers take rows and epoch together.
            store.through.fetch_max(through.0, Ordering::AcqRel);
        } else {
            store.through.fetch_max(through.0, Ordering::AcqRel);
        }
        if store.needs.map_or(first_is_over, |needs| needs <= through) {
            store.ready.store(true, Ordering::Release);
        }
        Ok(())
    }

    /// Adds the hashes of the keys to changes, and sorts by them.
    fn keyed(&self, rows: Vec<(D, isize)>) -> Result<Vec<KeyedChange<D>>> {
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

/// Ends all subscriptions.
impl<D: Record> Drop for ViewWriter<D> {
    fn drop(&mut self) {
        let mut held = lock(&self.store.held);
        held.over = true;
        for queue in held.subscribers.drain(..).filter_map(|subscriber| subscriber.upgrade()) {
            queue.end(SubscriptionEnd::Over);
        }
    }
}

/// Returns the JSON encoder for rows of a type.
///
/// # Errors
/// Fails if a field of theirs has the name of the `diff` column.
pub(super) fn encoder<D: Record>() -> Result<Encoder> {
    Encoder::new::<D>(crate::sink::SinkRows::Changes)
}
