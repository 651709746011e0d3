//! Views: collections that can be read by key while the job runs.
//!
//! * A **view** is a collection that the query shows under a name ([`Collection::view`](crate::stream::Collection::view)),
//!   kept in the memory of process 0 as rows with their counts.
//! * [`Views`] has all views of a job in one life; any thread may read them ([`Job::views`](crate::job::Job::views)).
//! * An [`Answer`] is rows and their **epoch**: all that happened at it and before is in them, nothing that happened later is.
//!   It is the greatest epoch such that it and all before it are complete, rounded down to an odd one: what operators retract
//!   by themselves happens at the odd epoch behind the one that brought it about. In one life it never goes back.
//! * A [`Subscription`] begins with the rows of an epoch, and tells what each later epoch changes.
//!
//! Promises kept here: **an answer is of one complete epoch**, never of several, and an epoch is complete only when it is
//! on record, so what was answered survives a crash. **It comes only after replay**: in a job that goes on after a crash
//! when all that was on record is in the view again; in any other when its first epoch is complete. **Nobody who reads holds
//! the dataflow back**: a subscriber that is too far behind is cut off.
//!
//! How a view comes by its changes is not known here ([`crate::stream`] does that). [`http`] is how its readers ask from
//! outside; what they ask it does not know.

mod answer;
pub(crate) mod http;
mod key;
mod store;
mod table;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};
use std::time::Duration;

use serde::Serialize;

use crate::error::{Error, Result};
use crate::record::Record;
use crate::time::Epoch;

pub use self::answer::{Answer, Rows};
use self::key::KeyOf;
pub(crate) use self::store::Keeper;
use self::store::{Subscribed, View};

/// How many changes may wait for a subscriber that says nothing else.
const MOST: usize = 1 << 18;

/// All views of a job, in one life of it.
#[derive(Default)]
pub struct Views {
    /// Somebody may read them.
    wanted: AtomicBool,
    registry: Mutex<Registry>,
}

#[derive(Default)]
struct Registry {
    stage: Stage,
    /// The views of the query; nothing for one that is not built yet.
    views: BTreeMap<String, Option<Arc<dyn View>>>,
    /// What has to be in them before they answer, in a job that goes on after a crash.
    needs: Option<Epoch>,
    /// They cannot be what they were.
    lost: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    /// The query has not been looked at.
    #[default]
    Unknown,
    /// The query is known, and is built, or runs.
    Known,
    /// They are read in another process.
    Elsewhere,
    /// The job is over.
    Over,
}

/// Why a view does not answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The query has no view of that name.
    Unknown {
        /// What was asked for.
        view: String,
        /// The views that there are.
        known: Vec<String>,
    },
    /// It cannot answer yet.
    NotReady {
        /// Which view.
        view: String,
        /// The epoch up to which all is in it, if there is one.
        reached: Option<Epoch>,
        /// The epoch that it has to come to: the last that was on record when the job went on. `None` if there was none; then
        /// it is the first epoch of this life.
        needs: Option<Epoch>,
    },
    /// This is another process than the one that has the views, which is process 0.
    Elsewhere {
        /// Which view.
        view: String,
    },
    /// The job has gone on after a stream of it was over, and live rows of that stream's windows that nothing closes are in no
    /// snapshot any more: no view can be what it was.
    Lost {
        /// Which view.
        view: String,
    },
    /// The job ended before the view could answer.
    Over {
        /// Which view.
        view: String,
    },
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Error::from(self.clone()).fmt(f)
    }
}

impl std::error::Error for Refusal {}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Error {
        let at = |error: Error, view: &str| error.at(format!("view `{view}`"));
        match refusal {
            Refusal::Unknown { view, known } => {
                let known: Vec<_> = known.iter().map(|known| format!("`{known}`")).collect();
                let known = if known.is_empty() {
                    "the query has no views".into()
                } else {
                    format!("there is {}", known.join(", "))
                };
                Error::usage(format!("there is no view `{view}`")).because(known)
            }
            Refusal::NotReady { view, reached, needs } => {
                let reached = reached
                    .map_or("no epoch is complete yet".into(), |reached| format!("it has come to epoch {reached}"));
                let why = match needs {
                    Some(needs) => {
                        format!("{reached}, and has to come to epoch {needs}, the last on record when the job went on")
                    }
                    None => reached,
                };
                at(Error::new("the view is not ready"), &view).because(why).help("ask again a little later")
            }
            Refusal::Elsewhere { view } => {
                at(Error::new("views are not in this process"), &view).help("ask process 0, which has them")
            }
            Refusal::Lost { view } => at(Error::new("the view cannot be what it was"), &view)
                .because("a stream was over before the job went on, and no snapshot has its live rows any more")
                .help("read what the job has written"),
            Refusal::Over { view } => at(Error::new("the job ended before the view was ready"), &view),
        }
    }
}

/// How far a view is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// Its name.
    pub view: String,
    /// Whether it answers.
    pub ready: bool,
    /// The epoch up to which all is in it, if there is one.
    pub reached: Option<Epoch>,
    /// How many different rows it has.
    pub rows: usize,
}

impl fmt::Debug for Views {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Views").field("views", &self.status()).finish_non_exhaustive()
    }
}

impl Views {
    /// The rows of a view that have a key, or all of them, as they are at one epoch. A key is what the row's first column
    /// holds, or what the query says: a string as it is, anything else as its compact JSON. Of a key that there is not there
    /// are no rows.
    ///
    /// # Errors
    /// When there is no such view, it is not ready, or it is not in this process.
    pub fn get(&self, view: &str, key: Option<&str>) -> std::result::Result<Answer, Refusal> {
        self.find(view)?.get(key)
    }

    /// Subscribes to the rows of a view that have a key, or to all of them.
    ///
    /// # Errors
    /// As [`Views::get`].
    pub fn subscribe(&self, view: &str, key: Option<&str>) -> std::result::Result<Subscription, Refusal> {
        self.subscribe_within(view, key, MOST)
    }

    /// As [`Views::subscribe`]; the subscriber is cut off when more than so many changes wait for it, where each epoch with
    /// changes counts as one more. What one epoch changes may always wait, if nothing else does.
    ///
    /// # Errors
    /// As [`Views::get`].
    pub fn subscribe_within(
        &self,
        view: &str,
        key: Option<&str>,
        most: usize,
    ) -> std::result::Result<Subscription, Refusal> {
        self.find(view)?.subscribe(key, most).map(Subscription)
    }

    /// The names of the views, in order. None before the query is known, and none in another process than process 0.
    pub fn names(&self) -> Vec<String> {
        self.lock().views.keys().cloned().collect()
    }

    /// How far each view is, by name.
    pub fn status(&self) -> Vec<Status> {
        let registry = self.lock();
        let status = registry.views.iter().map(|(name, view)| {
            let (reached, ready, rows) = view.as_ref().map_or((None, false, 0), |view| view.status());
            Status { view: name.clone(), ready: ready && !registry.lost, reached, rows }
        });
        status.collect()
    }

    fn lock(&self) -> MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, name: &str) -> std::result::Result<Arc<dyn View>, Refusal> {
        let (registry, view) = (self.lock(), name.to_owned());
        match (registry.stage, registry.views.get(name)) {
            (_, Some(Some(_))) if registry.lost => Err(Refusal::Lost { view }),
            (_, Some(Some(view))) => Ok(Arc::clone(view)),
            (Stage::Elsewhere, _) => Err(Refusal::Elsewhere { view }),
            (Stage::Over, Some(None)) => Err(Refusal::Over { view }),
            (Stage::Unknown, _) | (_, Some(None)) => {
                Err(Refusal::NotReady { view, reached: None, needs: registry.needs })
            }
            (_, None) => Err(Refusal::Unknown { view, known: registry.views.keys().cloned().collect() }),
        }
    }

    /// Says that somebody may read them.
    pub(crate) fn want(&self) {
        self.wanted.store(true, Ordering::Release);
    }

    /// Whether somebody may read them: else they need not be kept.
    pub(crate) fn is_wanted(&self) -> bool {
        self.wanted.load(Ordering::Acquire)
    }

    /// Says which views the query has.
    pub(crate) fn know(&self, names: impl Iterator<Item = String>) {
        let mut registry = self.lock();
        registry.stage = Stage::Known;
        registry.views = names.map(|name| (name, None)).collect();
    }

    /// Says that they are in another process, and whether somebody may read them there.
    pub(crate) fn are_elsewhere(&self, wanted: bool) {
        self.wanted.store(wanted, Ordering::Release);
        let mut registry = self.lock();
        registry.stage = Stage::Elsewhere;
        registry.views.clear();
    }

    /// Begins a life: with the last epoch that was on record before it, if one was.
    pub(crate) fn begin(&self, last: Option<Epoch>) {
        self.lock().needs = last;
    }

    /// Says that rows are missing that were there before the job went on.
    pub(crate) fn lose(&self) {
        self.lock().lost = true;
    }

    /// Says that the job is over. What they have come to, they go on to answer.
    pub(crate) fn end(&self) {
        let mut registry = self.lock();
        if registry.stage != Stage::Elsewhere {
            registry.stage = Stage::Over;
        }
    }

    /// Makes a view, whose rows have the key that is said, or else their first column.
    ///
    /// # Errors
    /// When rows of this type cannot be shown.
    pub(crate) fn open<D: Record>(&self, name: &str, key: Key<D>) -> Result<Keeper<D>> {
        let mut registry = self.lock();
        let (keeper, view) = Keeper::new(name, key.0, registry.needs)?;
        registry.views.insert(name.to_owned(), Some(view));
        Ok(keeper)
    }
}

/// Whether rows of a type can be in a view.
///
/// # Errors
/// When they have a field with the name of the column of differences.
pub(crate) fn check<D: Record>() -> Result<()> {
    store::encoder::<D>().map(drop)
}

/// What rows of a view are asked for by.
pub(crate) struct Key<D>(Box<KeyOf<D>>);

impl<D: Record> Key<D> {
    /// Their first column.
    pub(crate) fn first_column() -> Self {
        Key(Box::new(key::first_column::<D>))
    }

    /// What a function makes of them.
    pub(crate) fn by<K: Serialize>(key: impl Fn(&D) -> K + Send + Sync + 'static) -> Self {
        Key(Box::new(move |row, out| serde_json::to_writer(out, &key(row))))
    }
}

/// The changes of a view, epoch by epoch; to be asked for them now and then, or it is cut off.
pub struct Subscription(Box<dyn Subscribed>);

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription").finish_non_exhaustive()
    }
}

impl Subscription {
    /// What comes next, as soon as there is something, but waiting for it at most so long. `None` when there is nothing to
    /// tell, not even that epochs without changes are complete.
    ///
    /// The first is [`Update::State`]. Then come [`Update::Changes`], epoch by epoch: added up they are always the rows that
    /// [`Views::get`] answers with for that epoch. [`Update::Progress`] comes when the time is up, and so tells how far the
    /// view is where nothing changes. After [`Update::End`] there is nothing but that.
    pub fn wait(&mut self, most: Duration) -> Option<Update> {
        self.0.wait(most)
    }

    /// As [`Subscription::wait`], without waiting: if there is nothing, `waker` is woken when something comes.
    /// [`Update::Progress`] is answered only if it is asked for.
    pub(crate) fn poll(&mut self, waker: &Waker, progress: bool) -> Poll<Update> {
        self.0.poll(waker, progress)
    }
}

/// What a subscription tells.
#[derive(Debug)]
pub enum Update {
    /// The rows there are, at one epoch.
    State(Answer),
    /// All changes of one epoch, consolidated: each row with by how much its count changed.
    Changes(Answer),
    /// Nothing else has changed up to this epoch.
    Progress(Epoch),
    /// Nothing comes any more.
    End(End),
}

/// Why nothing comes any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The job is over.
    Over,
    /// The subscriber did not keep up: it may subscribe anew.
    Behind {
        /// How many changes could wait for it.
        most: usize,
    },
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            End::Over => f.write_str("the job is over"),
            End::Behind { most } => {
                write!(f, "the subscriber is too far behind: more than {most} changes waited for it")
            }
        }
    }
}
