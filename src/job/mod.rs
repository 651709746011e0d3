//! Jobs: a query, with what it runs on.
//!
//! A [`Job`] has a name, a number of workers and options; [`Job::run`] builds the query on every worker and runs it until
//! its sources are over, it is stopped, or something fails. The loop of one worker is [`worker`].
//!
//! Invariants: the first failure stops every worker and is what `run` returns; at the end of every run that did not fail
//! the account is checked: no record lost, none counted twice.

pub(crate) mod worker;

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::durable::journal::{Frame, Journal, MemoryJournal};
use crate::error::{Error, Result};
use crate::metrics::{Metrics, Summary};
use crate::source;
use crate::stream::{Failure, Fault, Flow, PlannedStep};
use crate::time::Epoch;

pub(crate) use worker::Pace;

/// Asks a running job to stop: from a signal handler's thread, or from anywhere else.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Asks the job to stop: it finishes its epoch, shows it, and ends without firing open windows.
    pub fn stop(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Whether somebody has asked.
    pub fn is_asked(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// All sources are over, and every window has closed.
    Complete,
    /// It was asked to stop.
    Stopped,
}

/// What a run did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// How it ended.
    pub ending: Ending,
    /// What it did, in figures.
    pub summary: Summary,
}

/// A query with what it runs on.
///
/// ```
/// use tidegate::{Job, Window, source::memory::Records, stream::Observer};
/// use std::time::Duration;
///
/// # fn main() -> tidegate::Result<()> {
/// let clicks = Records::new(vec![vec![("a".to_string(), 10), ("b".to_string(), 20)]], |click: &(String, i64)| click.1);
/// let report = Job::new("clicks").workers(2).run(move |flow| {
///     flow.read("clicks", &clicks)
///         .key_by(|click| click.0.clone())
///         .window(Window::tumbling(Duration::from_secs(1)))
///         .aggregate("per second", |each| each.count())
///         .on_close()
///         .write("counts", &Observer::new(|_epoch, rows| Ok(for row in rows { println!("{row:?}") })));
/// })?;
/// assert_eq!(report.summary.steps[0].closed_rows, 2);
/// # Ok(()) }
/// ```
pub struct Job {
    name: String,
    workers: usize,
    epoch: Duration,
    in_flight: u64,
    options: source::Options,
    stop: Stop,
    metrics: Arc<Metrics>,
    journal: Arc<dyn Journal>,
    repeat: Vec<Frame>,
    pace: Pace,
    seals: Vec<Epoch>,
    fault: Option<Fault>,
}

impl fmt::Debug for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Job").field("name", &self.name).field("workers", &self.workers).finish_non_exhaustive()
    }
}

impl Job {
    /// A job of one worker, with an epoch every 100 ms and 64 MiB in flight.
    pub fn new(name: &str) -> Self {
        Job {
            name: name.to_owned(),
            workers: 1,
            epoch: Duration::from_millis(100),
            in_flight: 64 << 20,
            options: source::Options::default(),
            stop: Stop::default(),
            metrics: Arc::default(),
            journal: Arc::new(MemoryJournal::forgetful()),
            repeat: Vec::new(),
            pace: Pace::Clock,
            seals: Vec::new(),
            fault: None,
        }
    }

    /// How many worker threads share the work, at least one.
    #[must_use]
    pub fn workers(mut self, workers: usize) -> Self {
        self.workers = workers;
        self
    }

    /// How long an epoch lasts at most. An epoch ends earlier when it holds an eighth of what may be in flight.
    #[must_use]
    pub fn epoch(mut self, epoch: Duration) -> Self {
        self.epoch = epoch;
        self
    }

    /// How many bytes of records may be read and not yet shown; reading waits while there are more.
    #[must_use]
    pub fn in_flight(mut self, bytes: u64) -> Self {
        self.in_flight = bytes;
        self
    }

    /// What all sources go by.
    #[must_use]
    pub fn options(mut self, options: source::Options) -> Self {
        self.options = options;
        self
    }

    /// What asks the job to stop.
    pub fn stopper(&self) -> Stop {
        self.stop.clone()
    }

    /// The job's counters, for watching it while it runs.
    pub fn metrics(&self) -> Arc<Metrics> {
        Arc::clone(&self.metrics)
    }

    pub(crate) fn stop_by(mut self, stop: Stop) -> Self {
        self.stop = stop;
        self
    }

    pub(crate) fn journal(mut self, journal: Arc<dyn Journal>) -> Self {
        self.journal = journal;
        self
    }

    pub(crate) fn repeat(mut self, frames: Vec<Frame>) -> Self {
        self.repeat = frames;
        self
    }

    pub(crate) fn pace(mut self, pace: Pace) -> Self {
        self.pace = pace;
        self
    }

    pub(crate) fn seals(mut self, seals: Vec<Epoch>) -> Self {
        self.seals = seals;
        self
    }

    pub(crate) fn fault(mut self, fault: Option<Fault>) -> Self {
        self.fault = fault;
        self
    }

    /// The steps of a query, without opening or running anything.
    ///
    /// # Errors
    /// When the query is wrong in itself: two steps of a kind with one name, a window of no size, rows that a sink
    /// cannot hold.
    pub fn plan(&self, query: impl Fn(&Flow<'_>) + Send + Sync + 'static) -> Result<Vec<PlannedStep>> {
        if self.workers == 0 {
            return Err(Error::usage("a job needs at least one worker").help("use -w 1 or more"));
        }
        let place = self.place(0);
        let dry = || timely::execute_directly(move |worker| worker::dry(worker, place, &query));
        let planned = std::panic::catch_unwind(std::panic::AssertUnwindSafe(dry));
        let steps = planned.map_err(|panic| panicked(&*panic))??;
        if !steps.iter().any(|step| step.kind == "source") {
            return Err(Error::usage("the query reads no source").help("begin it with flow.read(…)"));
        }
        Ok(steps)
    }

    fn place(&self, worker: usize) -> source::Place {
        source::Place { worker, workers: self.workers, job: self.name.clone(), options: self.options.clone() }
    }

    /// Runs a query. The closure builds it: once on every worker, and once before that to learn its steps, so it must do
    /// nothing else.
    ///
    /// # Errors
    /// When the query is wrong, a source or sink fails, a value cannot be told, or user code panics.
    pub fn run(self, query: impl Fn(&Flow<'_>) + Send + Sync + 'static) -> Result<Report> {
        let query = Arc::new(query);
        let planned = Arc::clone(&query);
        self.plan(move |flow| planned(flow))?;
        let failure = Arc::new(Failure::default());
        let metrics = Arc::clone(&self.metrics);
        let shared = Arc::new(worker::Shared {
            place: self.place(0),
            epoch: self.epoch,
            in_flight: usize::try_from(self.in_flight).unwrap_or(usize::MAX),
            stop: self.stop,
            failure: Arc::clone(&failure),
            metrics: Arc::clone(&self.metrics),
            journal: self.journal,
            repeat: self.repeat,
            pace: self.pace,
            seals: self.seals,
            fault: self.fault,
            hurry: AtomicBool::new(false),
        });
        let config = match self.workers {
            1 => timely::Config::thread(),
            workers => timely::Config::process(workers),
        };
        let endings = Arc::new(Mutex::new(Vec::new()));
        let ended = Arc::clone(&endings);
        let guards = timely::execute(config, move |timely_worker| {
            let run = std::panic::AssertUnwindSafe(|| worker::run(timely_worker, &shared, &*query));
            match std::panic::catch_unwind(run) {
                Ok(ending) => ended.lock().unwrap_or_else(PoisonError::into_inner).extend(ending),
                Err(panic) => {
                    shared.failure.set(panicked(&*panic));
                    // What is left of the dataflow is in an unknown state: it must not be run to its end.
                    for dataflow in timely_worker.installed_dataflows() {
                        timely_worker.drop_dataflow(dataflow);
                    }
                }
            }
        });
        let guards = guards.map_err(|why| Error::new("cannot start the workers").because(why))?;
        for worker in guards.join() {
            if let Err(why) = worker {
                failure.set(Error::new("a worker ended before its time").because(why));
            }
        }
        if let Some(error) = failure.get() {
            return Err(error.clone());
        }
        let summary = metrics.summary();
        summary.check_conservation()?;
        let endings = endings.lock().unwrap_or_else(PoisonError::into_inner);
        let ending = if endings.contains(&Ending::Stopped) { Ending::Stopped } else { Ending::Complete };
        Ok(Report { ending, summary })
    }
}

fn panicked(panic: &(dyn std::any::Any + Send)) -> Error {
    let said = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    let error = Error::new("the query or the engine panicked").because(said.unwrap_or("no message"));
    error.help("the place is in the lines above")
}
