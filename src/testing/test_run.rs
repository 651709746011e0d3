//! Runs of a query in this process: by seed, by script, by the clock, or by the journal of another run.

use std::path::PathBuf;
use std::sync::Arc;

use super::script::Script;
use super::slow_sync::{SlowJournal, SlowSync};
use crate::durable::disk::Disk;
use crate::durable::journal::{Frame, Journal, MemoryJournal};
use crate::error::{Error, ErrorKind, Result};
use crate::job::{Cluster, Job, Pace, RunReport, State, StopHandle};
use crate::source::Options;
use crate::stream::{Fault, Flow, QueryResult};
use crate::time::Epoch;
use crate::view::Views;

/// Runs the processes of a job to their ends. Returns the report of the first one, or the first error of any.
fn run_all<R: QueryResult>(
    jobs: impl Iterator<Item = Job>,
    query: impl Fn(&Flow<'_>) -> R + Send + Sync + 'static,
) -> Result<RunReport> {
    let query = Arc::new(query);
    let jobs: Vec<_> = jobs.collect();
    let reports = std::thread::scope(|scope| {
        let running = jobs.into_iter().map(|job| {
            let query = Arc::clone(&query);
            scope.spawn(move || job.run(move |flow| query(flow)))
        });
        let running: Vec<_> = running.collect();
        let panicked = || Err(Error::of(ErrorKind::Panicked, "a process of the test panicked"));
        running.into_iter().map(|process| process.join().unwrap_or_else(|_| panicked())).collect::<Vec<_>>()
    });
    let mut reports = reports.into_iter().collect::<Result<Vec<_>>>()?.into_iter();
    reports.next().ok_or_else(|| Error::new("there was no process"))
}

/// Builder of a run of a query in memory.
#[derive(Debug)]
pub struct TestRun {
    workers: usize,
    processes: usize,
    pace: Pace,
    replay: Vec<Frame>,
    seal_epochs: Vec<Epoch>,
    options: Options,
    fault: Option<Fault>,
    in_flight: u64,
    sync: Option<SlowSync>,
    stop: StopHandle,
    state: Option<State>,
    views: Arc<Views>,
}

impl Default for TestRun {
    fn default() -> Self {
        TestRun {
            workers: 1,
            processes: 1,
            pace: Pace::Random(1),
            replay: Vec::new(),
            seal_epochs: Vec::new(),
            options: Options::default(),
            fault: None,
            in_flight: 64 << 20,
            sync: None,
            stop: StopHandle::default(),
            state: None,
            views: Arc::default(),
        }
    }
}

/// Result of a run, and the means to replay it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunOutcome {
    /// Report of the run.
    pub report: RunReport,
    /// Input of each epoch.
    pub journal: Vec<Frame>,
}

impl TestRun {
    /// Creates a run on one worker, paced by seed 1.
    pub fn new() -> Self {
        TestRun::default()
    }

    /// Sets the number of processes, each with the same number of workers. They are jobs within this process that are
    /// connected as processes are, and share the query's sources and sinks.
    #[must_use]
    pub fn processes(mut self, processes: usize) -> Self {
        self.processes = processes;
        self
    }

    /// Sets the number of workers in each process.
    #[must_use]
    pub fn workers(mut self, workers: usize) -> Self {
        self.workers = workers;
        self
    }

    /// Paces the run by random numbers: epochs end after random numbers of turns, workers read random amounts and stall
    /// at random. On one worker a seed always gives the same run; on several, the scheduling of threads varies.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.pace = Pace::Random(seed);
        self
    }

    /// Paces the run by the clock, as in production.
    #[must_use]
    pub fn clock(mut self) -> Self {
        self.pace = Pace::Clock;
        self
    }

    /// Runs a script for the source of this name. Scripts of several sources share their epochs: the first epoch of
    /// each is the first of the run.
    #[must_use]
    #[expect(clippy::needless_pass_by_value, reason = "scripts are made where they are used")]
    pub fn script(mut self, source: &str, script: Script) -> Self {
        for frame in script.journal(source) {
            match self.replay.binary_search_by_key(&frame.epoch, |known| known.epoch) {
                Ok(at) => self.replay[at].progress.extend(frame.progress),
                Err(at) => self.replay.insert(at, frame),
            }
        }
        self
    }

    /// Replays a journal: every epoch takes the same input as in the run that wrote it.
    #[must_use]
    pub fn journal(mut self, frames: Vec<Frame>) -> Self {
        self.replay = frames;
        self
    }

    /// Seals the arrangements at these epochs, as snapshots do. Results must not depend on it.
    #[must_use]
    pub fn seal_at(mut self, epochs: Vec<Epoch>) -> Self {
        self.seal_epochs = epochs;
        self
    }

    /// Sets the options of the sources.
    #[must_use]
    pub fn options(mut self, options: Options) -> Self {
        self.options = options;
        self
    }

    /// Sets the number of bytes of records that may be read but not published yet.
    #[must_use]
    pub fn in_flight(mut self, bytes: u64) -> Self {
        self.in_flight = bytes;
        self
    }

    /// Delays the journal's syncs.
    #[must_use]
    pub fn slow_sync(mut self, sync: &SlowSync) -> Self {
        self.sync = Some(sync.clone());
        self
    }

    /// Keeps state in a directory of a disk, such as a [`CrashingDisk`](super::CrashingDisk), with snapshots at random epochs. After a
    /// crash, a run on the surviving disk continues it. Journal files are small, so that they are rotated and
    /// truncated.
    #[must_use]
    pub fn state(mut self, disk: &Arc<dyn Disk>, directory: impl Into<PathBuf>) -> Self {
        self.state = Some(State::at(directory).disk(Arc::clone(disk)).keep_snapshots(2).journal_file(512));
        self
    }

    /// Changes the options of the state, with a job's builder methods.
    #[must_use]
    pub fn state_options(mut self, change: impl FnOnce(State) -> State) -> Self {
        self.state = self.state.take().map(change);
        self
    }

    /// Lets `stop` stop the run, as a signal stops a job.
    #[must_use]
    pub fn stop_by(mut self, stop: &StopHandle) -> Self {
        self.stop = stop.clone();
        self
    }

    /// Returns the views of the run, for reading them while it runs or afterwards: see [`Job::views`].
    pub fn views(&self) -> Arc<Views> {
        self.views.enable();
        Arc::clone(&self.views)
    }

    /// Injects a fault into the engine, to verify that a check detects it.
    #[must_use]
    pub fn fault(mut self, fault: Fault) -> Self {
        self.fault = Some(fault);
        self
    }

    /// Returns the fault that is to be injected; `None` if there is none.
    pub fn requested_fault(&self) -> Option<Fault> {
        self.fault
    }

    /// Runs a query until its sources have ended, or the journal has.
    ///
    /// # Errors
    /// Fails as [`Job::run`] does.
    pub fn run<R: QueryResult>(self, query: impl Fn(&Flow<'_>) -> R + Send + Sync + 'static) -> Result<RunOutcome> {
        let journal = Arc::new(MemoryJournal::default());
        let asked: Arc<dyn Journal> = match self.sync {
            Some(sync) => Arc::new(SlowJournal(Arc::clone(&journal), sync)),
            None => Arc::clone(&journal) as Arc<_>,
        };
        let job = || {
            let job = Job::new("test").workers(self.workers).options(self.options.clone()).in_flight(self.in_flight);
            let job = job.journal(Arc::clone(&asked)).replay_frames(self.replay.clone()).pace(self.pace);
            let mut job = job.stop_by(self.stop.clone()).seals(self.seal_epochs.clone()).fault(self.fault);
            job.state = self.state.clone();
            job
        };
        let report = match self.processes {
            0 | 1 => job().with_views(self.views).run(query)?,
            processes => {
                let jobs = Cluster::within(processes)?.into_iter().map(|own| match own.process() {
                    0 => job().with_views(Arc::clone(&self.views)).cluster(own),
                    _ => job().cluster(own),
                });
                run_all(jobs, query)?
            }
        };
        Ok(RunOutcome { report, journal: journal.frames() })
    }
}
