//! Views: collections that can be read by key while the job runs.
//!
//! * A **view** is a collection that the query publishes under a name
//!   ([`Collection::view`](crate::stream::Collection::view)), kept in the memory of process 0 as rows with their
//!   counts.
//! * [`Views`] holds all views of a job in one incarnation; any thread may read them
//!   ([`Job::views`](crate::job::Job::views)).
//! * An [`Answer`] is rows and their **epoch**: the rows include all changes at or before it, and none after it. It is
//!   the greatest complete epoch, rounded down to an odd one: retractions that operators make by themselves happen at
//!   the odd epoch after the even one that caused them. It never decreases within an incarnation.
//! * A [`Subscription`] starts with the rows of an epoch, and then yields the changes of each later epoch, as a
//!   [`ViewUpdate`] each.
//! * A [`Refusal`] is the reason for which a view does not answer.
//!
//! Promises kept here: **an answer is of one complete epoch**, never of several, and an epoch is complete only when it
//! is in the journal, so an answer survives a crash. **Views answer only after replay**: in a job that resumes after a
//! crash when the view contains all journalled input again; in any other job when its first epoch is complete.
//! **Readers never hold the dataflow back**: a subscriber that is too far behind is cut off.
//!
//! [`crate::stream`] feeds the changes to a view. `http` serves requests from outside; it knows nothing of views.

mod answer;
pub(crate) mod http;
mod key;
mod refusal;
mod store;
mod table;
mod update;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};
use std::time::Duration;

use serde::Serialize;

use crate::error::Result;
use crate::record::Record;
use crate::time::Epoch;

pub use self::answer::{Answer, ViewRows};
use self::key::ViewKeyFn;
pub use self::refusal::Refusal;
pub(crate) use self::store::ViewWriter;
use self::store::{UpdateReader, ViewReader};
pub use self::update::{SubscriptionEnd, ViewUpdate};

/// Default of the number of changes that may be queued for a subscriber.
const DEFAULT_QUEUE: usize = 1 << 18;

/// All views of a job, in one incarnation.
#[derive(Default)]
pub struct Views {
    /// `true` if the views may be read.
    wanted: AtomicBool,
    registry: Mutex<Registry>,
}

#[derive(Default)]
struct Registry {
    stage: RegistryStage,
    /// The views of the query, by name; `None` for a view that is not built yet.
    views: BTreeMap<String, Option<Arc<dyn ViewReader>>>,
    /// The epoch that the views must reach before they answer, in a job that resumes after a crash.
    needs: Option<Epoch>,
    /// `true` if the views cannot be rebuilt.
    lost: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum RegistryStage {
    /// The query is not known yet.
    #[default]
    Unknown,
    /// The query is known, and is being built, or runs.
    Known,
    /// The views are in another process.
    Elsewhere,
    /// The job is over.
    Over,
}

/// The progress of a view.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ViewStatus {
    /// The name of the view.
    pub view: String,
    /// `true` if the view answers.
    pub ready: bool,
    /// The epoch up to which the view is complete, if there is one.
    pub reached: Option<Epoch>,
    /// Number of distinct rows.
    pub rows: usize,
}

impl fmt::Debug for Views {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Views").field("views", &self.status()).finish_non_exhaustive()
    }
}

impl Views {
    /// Returns the rows of a view with a key, or all rows, as of one epoch. A row's key is its first column, or what
    /// the query's function returns. `key` is a string as it is, or any other value as compact JSON. An unknown key has
    /// no rows.
    ///
    /// # Errors
    /// Fails if there is no such view, the view is not ready, or it is in another process.
    pub fn get(&self, view: &str, key: Option<&str>) -> std::result::Result<Answer, Refusal> {
        self.find(view)?.get(key)
    }

    /// Subscribes to the rows of a view that have a key, or to all of them.
    ///
    /// # Errors
    /// Fails like [`Views::get`].
    pub fn subscribe(&self, view: &str, key: Option<&str>) -> std::result::Result<Subscription, Refusal> {
        self.subscribe_within(view, key, DEFAULT_QUEUE)
    }

    /// Like [`Views::subscribe`]; the subscriber is cut off when more than `most` changes are queued for it, where each
    /// epoch with changes counts as one more. The changes of a single epoch may always be queued, if nothing else is.
    ///
    /// # Errors
    /// Fails like [`Views::get`].
    pub fn subscribe_within(
        &self,
        view: &str,
        key: Option<&str>,
        most: usize,
    ) -> std::result::Result<Subscription, Refusal> {
        self.find(view)?.subscribe(key, most).map(Subscription)
    }

    /// Returns the names of the views, in order. Empty before the query is known, and in processes other than process
    /// 0.
    pub fn names(&self) -> Vec<String> {
        self.lock().views.keys().cloned().collect()
    }

    /// Returns the progress of each view, by name.
    pub fn status(&self) -> Vec<ViewStatus> {
        let registry = self.lock();
        let status = registry.views.iter().map(|(name, view)| {
            let (reached, ready, rows) = view.as_ref().map_or((None, false, 0), |view| view.status());
            ViewStatus { view: name.clone(), ready: ready && !registry.lost, reached, rows }
        });
        status.collect()
    }

    fn lock(&self) -> MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, name: &str) -> std::result::Result<Arc<dyn ViewReader>, Refusal> {
        let (registry, view) = (self.lock(), name.to_owned());
        match (registry.stage, registry.views.get(name)) {
            (_, Some(Some(_))) if registry.lost => Err(Refusal::NotRecoverable { view }),
            (_, Some(Some(view))) => Ok(Arc::clone(view)),
            (RegistryStage::Elsewhere, _) => Err(Refusal::OtherProcess { view }),
            (RegistryStage::Over, Some(None)) => Err(Refusal::Over { view }),
            (RegistryStage::Unknown, _) | (_, Some(None)) => {
                Err(Refusal::NotReady { view, reached: None, needs: registry.needs })
            }
            (_, None) => Err(Refusal::Unknown { view, known: registry.views.keys().cloned().collect() }),
        }
    }

    /// Notes that the views may be read, and have to be maintained.
    pub(crate) fn enable(&self) {
        self.wanted.store(true, Ordering::Release);
    }

    /// `true` if the views may be read; otherwise they need not be maintained.
    pub(crate) fn is_enabled(&self) -> bool {
        self.wanted.load(Ordering::Acquire)
    }

    /// Sets the names of the query's views.
    pub(crate) fn set_names(&self, names: impl Iterator<Item = String>) {
        let mut registry = self.lock();
        registry.stage = RegistryStage::Known;
        registry.views = names.map(|name| (name, None)).collect();
    }

    /// Notes that the views are in another process, and whether they may be read there.
    pub(crate) fn set_remote(&self, wanted: bool) {
        self.wanted.store(wanted, Ordering::Release);
        let mut registry = self.lock();
        registry.stage = RegistryStage::Elsewhere;
        registry.views.clear();
    }

    /// Starts an incarnation; `last` is the last epoch in its journal, if there is one.
    pub(crate) fn begin(&self, last: Option<Epoch>) {
        self.lock().needs = last;
    }

    /// Notes that the views cannot be rebuilt, as rows are in no snapshot any more.
    pub(crate) fn mark_not_recoverable(&self) {
        self.lock().lost = true;
    }

    /// Notes that the job is over. Views that are ready still answer, with their last rows.
    pub(crate) fn end(&self) {
        let mut registry = self.lock();
        if registry.stage != RegistryStage::Elsewhere {
            registry.stage = RegistryStage::Over;
        }
    }

    /// Creates a view, and returns its writer.
    ///
    /// # Errors
    /// Fails if rows of this type cannot be published in a view.
    pub(crate) fn open<D: Record>(&self, name: &str, key: ViewKey<D>) -> Result<ViewWriter<D>> {
        let mut registry = self.lock();
        let (keeper, view) = ViewWriter::new(name, key.0, registry.needs)?;
        registry.views.insert(name.to_owned(), Some(view));
        Ok(keeper)
    }
}

/// Checks that rows of a type can be published in a view.
///
/// # Errors
/// Fails if they have a field with the name of the `diff` column.
pub(crate) fn check<D: Record>() -> Result<()> {
    store::encoder::<D>().map(drop)
}

/// The key by which rows of a view are looked up.
pub(crate) struct ViewKey<D>(Box<ViewKeyFn<D>>);

impl<D: Record> ViewKey<D> {
    /// Returns the default key, the first column.
    pub(crate) fn default_key() -> Self {
        ViewKey(Box::new(key::default_key::<D>))
    }

    /// Returns the key that a function computes.
    pub(crate) fn by<K: Serialize>(key: impl Fn(&D) -> K + Send + Sync + 'static) -> Self {
        ViewKey(Box::new(move |row, out| serde_json::to_writer(out, &key(row))))
    }
}

/// The changes of a view, epoch by epoch. A subscriber that does not take them in time is cut off.
pub struct Subscription(Box<dyn UpdateReader>);

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription").finish_non_exhaustive()
    }
}

impl Subscription {
    /// Waits for the next update, at most for `most`. Returns `None` if there is none, not even
    /// [`ViewUpdate::Progress`].
    ///
    /// The first update is [`ViewUpdate::State`]. Then [`ViewUpdate::Changes`] follow, epoch by epoch; their sum always
    /// equals the rows that [`Views::get`] answers with for that epoch. [`ViewUpdate::Progress`] is returned when the
    /// time is up, and so tells how far an unchanged view has come. After [`ViewUpdate::End`] only `End` is returned.
    pub fn wait(&mut self, most: Duration) -> Option<ViewUpdate> {
        self.0.wait(most)
    }

    /// Like [`Subscription::wait`], without waiting: if there is no update, `waker` is woken when one arrives.
    /// [`ViewUpdate::Progress`] is returned only with `progress`.
    pub(crate) fn poll(&mut self, waker: &Waker, progress: bool) -> Poll<ViewUpdate> {
        self.0.poll(waker, progress)
    }
}
