//! Running flows in memory, for users' own tests and for ours.
//!
//! * [`TestRun`] runs a query on any number of workers: paced by seeded random numbers, by a [`Script`] of what each
//!   epoch takes, or by the journal of another run.
//! * [`Captured`] is a sink whose rows can be read afterwards, by epoch.
//! * An [`RunOutcome`] has the run's report, and its journal, which replays the run.
//! * [`CrashingDisk`] is an in-memory disk that crashes at any operation, and loses what a real disk may lose.
//! * [`SlowSync`] delays the journal's syncs, and checks that nothing is published before it is synced.
//!
//! ```
//! use tidegate::testing::{Captured, TestRun, Script};
//! use tidegate::{Window, source::memory::MemorySource};
//! use std::time::Duration;
//!
//! # fn main() -> tidegate::Result<()> {
//! // Two partitions of (key, event time); the first epoch takes two records of partition 0 and finds partition 1.
//! let input = MemorySource::new(vec![vec![("a", 100), ("a", 900), ("a", 2_500)], vec![("b", 1_000)]]
//!     .into_iter().map(|p| p.into_iter().map(|(k, t)| (k.to_string(), t)).collect()).collect(), |r: &(String, i64)| r.1)
//!     .out_of_order(Duration::ZERO);
//! let script = Script::new().epoch(|e| e.take(0, 2).find(1)).epoch(|e| e.take(0, 1)).epoch(|e| e.take(1, 1).end(0).end(1));
//! let counts = Captured::new();
//! let output = counts.clone();
//! TestRun::new().workers(2).script("input", script).run(move |flow| {
//!     flow.read("input", &input)
//!         .key_by(|r| r.0.clone())
//!         .window(Window::tumbling(Duration::from_secs(1)))
//!         .aggregate("counts", |each| each.count())
//!         .on_close()
//!         .map(|row| (row.window.end.millis(), row.key, row.value))
//!         .write("counts", &output);
//! })?;
//! assert_eq!(counts.all(), [(1_000, "a".into(), 2), (2_000, "b".into(), 1), (3_000, "a".into(), 1)]);
//! // No window closes before partition 1 has a watermark.
//! assert_eq!(counts.epochs().len(), 1);
//! # Ok(()) }
//! ```

pub mod disk;
#[doc(hidden)]
pub mod durable;

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::durable::disk::Disk;
use crate::durable::journal::{Frame, Journal, JournalEnds, MemoryJournal, PartitionProgress};
use crate::durable::{Incarnation, PublishedEpoch};
use crate::error::{Error, ErrorKind, Result};
use crate::job::{Cluster, Job, Pace, RunReport, State, StopHandle};
use crate::record::Record;
use crate::sink::{Sink, SinkContext, SinkWriter};
use crate::source::Options;
use crate::stream::{Flow, QueryResult};
use crate::thread::ThreadRole;
use crate::time::{Epoch, EventTime};
use crate::view::Views;

pub use crate::stream::Fault;
pub use disk::CrashingDisk;

/// Returns the names of the purposes that Tidegate's threads have, as its own tests name them.
#[doc(hidden)]
pub fn thread_roles() -> Vec<&'static str> {
    ThreadRole::ALL.map(ThreadRole::name).to_vec()
}

/// Rows of a sink, by epoch.
type RowsByEpoch<D> = BTreeMap<Epoch, Vec<(D, isize)>>;

/// A sink that keeps its rows in memory for reading, and remembers what it has published as a durable sink does.
#[derive(Clone)]
pub struct Captured<D>(Arc<Mutex<CapturedState<D>>>);

/// Contents of a [`Captured`].
#[derive(Clone)]
struct CapturedState<D> {
    rows: RowsByEpoch<D>,
    incarnation: u64,
    ends: JournalEnds,
}

impl<D> Default for Captured<D> {
    fn default() -> Self {
        Captured(Arc::new(Mutex::new(CapturedState {
            rows: BTreeMap::new(),
            incarnation: 0,
            ends: JournalEnds::default(),
        })))
    }
}

impl<D> fmt::Debug for Captured<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Captured<{}>", std::any::type_name::<D>())
    }
}

impl<D: Record> Captured<D> {
    /// Creates an empty sink. Clones share their contents.
    pub fn new() -> Self {
        Captured::default()
    }

    /// Returns the rows of every epoch that had any, consolidated and sorted, each with its difference.
    pub fn epochs(&self) -> BTreeMap<Epoch, Vec<(D, isize)>> {
        self.lock().rows.clone()
    }

    /// Returns a copy of the present contents, which does not share later rows.
    #[must_use]
    pub fn fork(&self) -> Self {
        Captured(Arc::new(Mutex::new(self.lock().clone())))
    }

    fn lock(&self) -> MutexGuard<'_, CapturedState<D>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns all rows of all epochs as one sorted multiset.
    ///
    /// # Panics
    /// Panics if the differences of a row add up to less than zero: rows were retracted that were not there.
    pub fn all(&self) -> Vec<D> {
        self.at(Epoch(u64::MAX))
    }

    /// Returns the rows that exist at an epoch, sorted: the sum of all changes up to it.
    ///
    /// # Panics
    /// Panics as [`Captured::all`] does.
    pub fn at(&self, epoch: Epoch) -> Vec<D> {
        let mut sums = BTreeMap::<D, isize>::new();
        for (row, diff) in self.epochs().into_iter().filter(|(at, _)| *at <= epoch).flat_map(|(_, rows)| rows) {
            *sums.entry(row).or_default() += diff;
        }
        let mut rows = Vec::new();
        for (row, count) in sums {
            assert!(count >= 0, "at epoch {epoch} there are {count} of {row:?}");
            rows.extend(std::iter::repeat_n(row, count.unsigned_abs()));
        }
        rows
    }
}

impl<D: Record> Sink<D> for Captured<D> {
    fn describe(&self) -> String {
        String::from("rows kept in memory")
    }

    fn open(&self, _at: &SinkContext) -> Result<Box<dyn SinkWriter<D>>> {
        Ok(Box::new(self.clone()))
    }
}

impl<D: Record> SinkWriter<D> for Captured<D> {
    fn remembers(&self) -> bool {
        true
    }

    fn published(&mut self) -> Result<Option<PublishedEpoch>> {
        let CapturedState { rows, incarnation, ends } = &*self.lock();
        let published = |epoch: &Epoch| PublishedEpoch { incarnation: *incarnation, epoch: *epoch, ends: ends.clone() };
        Ok(rows.keys().next_back().map(published))
    }

    fn begin(&mut self, life: &Incarnation) -> Result<()> {
        let mut capture = self.lock();
        (capture.incarnation, capture.ends) = (life.incarnation, JournalEnds::default());
        Ok(())
    }

    fn publish(&mut self, ends: &JournalEnds) -> Result<()> {
        self.lock().ends = ends.clone();
        Ok(())
    }

    fn write(&mut self, epoch: Epoch, rows: &[(D, isize)]) -> Result<()> {
        let mut capture = self.lock();
        if let Some(last) = capture.rows.keys().next_back() {
            assert!(*last < epoch, "epoch {epoch} is shown after epoch {last}");
        }
        capture.rows.insert(epoch, rows.to_vec());
        Ok(())
    }

    fn finish(&mut self) -> Result<()> {
        Ok(())
    }
}

/// One epoch of a [`Script`].
#[derive(Clone, Debug, Default)]
pub struct EpochScript(Vec<(u32, ScriptStep)>);

#[derive(Clone, Copy, Debug)]
enum ScriptStep {
    Find,
    Take(u64),
    Idle,
    End,
}

impl EpochScript {
    /// Finds a partition. A partition that is first mentioned by another step is found by that step.
    #[must_use]
    pub fn find(mut self, partition: u32) -> Self {
        self.0.push((partition, ScriptStep::Find));
        self
    }

    /// Takes the next `records` records of a partition; an idle partition becomes active.
    #[must_use]
    pub fn take(mut self, partition: u32, records: u64) -> Self {
        self.0.push((partition, ScriptStep::Take(records)));
        self
    }

    /// Makes the partition idle at the end of the epoch.
    #[must_use]
    pub fn idle(mut self, partition: u32) -> Self {
        self.0.push((partition, ScriptStep::Idle));
        self
    }

    /// Ends the partition.
    #[must_use]
    pub fn end(mut self, partition: u32) -> Self {
        self.0.push((partition, ScriptStep::End));
        self
    }
}

/// A script of what each epoch takes from the partitions of a source.
#[derive(Clone, Debug, Default)]
pub struct Script(Vec<EpochScript>);

impl Script {
    /// Creates a script without epochs.
    pub fn new() -> Self {
        Script::default()
    }

    /// Adds an epoch.
    #[must_use]
    pub fn epoch(mut self, acts: impl FnOnce(EpochScript) -> EpochScript) -> Self {
        self.0.push(acts(EpochScript::default()));
        self
    }

    /// Returns the script as the journal of a run that did the same. Its epochs are 2, 4, 6 …
    pub fn journal(&self, source: &str) -> Vec<Frame> {
        let mut now = BTreeMap::<u32, PartitionProgress>::new();
        let frames = self.0.iter().zip(1..).map(|(acts, number)| {
            let mut changed = BTreeMap::new();
            for &(partition, act) in &acts.0 {
                let new = !now.contains_key(&partition);
                let bound = now.entry(partition).or_insert_with(|| PartitionProgress {
                    source: source.to_owned(),
                    partition,
                    start_offset: None,
                    next_offset: 0,
                    watermark: EventTime::MIN,
                    idle: false,
                    end_offset: None,
                    ended: false,
                    check: None,
                    values: None,
                });
                match act {
                    ScriptStep::Find => {}
                    ScriptStep::Take(records) => {
                        bound.next_offset += records;
                        bound.idle &= records == 0;
                    }
                    ScriptStep::Idle => bound.idle = true,
                    ScriptStep::End => bound.ended = true,
                }
                let found: &mut bool = changed.entry(partition).or_insert(new);
                *found |= new;
            }
            let bounds = changed.into_iter().map(|(partition, new)| {
                let bound = now[&partition].clone();
                PartitionProgress { start_offset: new.then_some(0), ..bound }
            });
            Frame { epoch: Epoch(number * 2), progress: bounds.collect() }
        });
        frames.collect()
    }
}

/// Delays the syncs of a run's journal, and tracks which epochs are synced. Clones share their state.
///
/// ```
/// use tidegate::testing::{TestRun, SlowSync};
/// use tidegate::{source::memory::MemorySource, stream::Observer};
///
/// # fn main() -> tidegate::Result<()> {
/// let (input, sync) = (MemorySource::new(vec![vec![1i64, 2, 3]], |at| *at), SlowSync::new(20));
/// TestRun::new().slow_sync(&sync).run(move |flow| {
///     let sync = sync.clone();
///     flow.read("input", &input).write("output", &Observer::new(move |epoch, _rows| sync.check_published(epoch)));
/// })?;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct SlowSync {
    turns: u32,
    inner: Arc<Mutex<SyncState>>,
}

#[derive(Debug, Default)]
struct SyncState {
    workers: BTreeMap<usize, WorkerSync>,
    /// Greatest epoch of which a sink has published rows.
    shown: Option<Epoch>,
}

#[derive(Debug, Default)]
struct WorkerSync {
    /// Epochs that are not synced yet, oldest first, each with the number of loop turns that its sync still takes.
    waiting: VecDeque<(Epoch, u32)>,
    /// Last epoch that is synced.
    synced: Option<Epoch>,
}

impl SlowSync {
    /// Creates a journal delay: a sync takes `turns` turns of the loop of the worker that waits for it.
    pub fn new(turns: u32) -> Self {
        SlowSync { turns, inner: Arc::default() }
    }

    /// Checks a publication: a sink calls it when it publishes `epoch`.
    ///
    /// # Errors
    /// Fails if the epoch, or an earlier one, is not synced.
    pub fn check_published(&self, epoch: Epoch) -> Result<()> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.shown = inner.shown.max(Some(epoch));
        for (worker, sync) in &inner.workers {
            if let Some((early, _)) = sync.waiting.front().filter(|waiting| waiting.0 <= epoch) {
                let error = Error::new(format!("epoch {epoch} is shown, but epoch {early} is not on record"));
                return Err(error.at(format!("worker {worker}")));
            }
        }
        Ok(())
    }

    fn append(&self, worker: usize, epoch: Epoch) -> Result<()> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(shown) = inner.shown.filter(|shown| *shown >= epoch) {
            return Err(Error::new(format!("epoch {epoch} is bound after epoch {shown} was shown")));
        }
        inner.workers.entry(worker).or_default().waiting.push_back((epoch, self.turns));
        Ok(())
    }

    fn synced(&self, worker: usize) -> Option<Epoch> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let sync = inner.workers.entry(worker).or_default();
        if let Some((_, left)) = sync.waiting.front_mut() {
            *left = left.saturating_sub(1);
        }
        if let Some((epoch, _)) = sync.waiting.pop_front_if(|(_, left)| *left == 0) {
            sync.synced = Some(epoch);
        }
        sync.synced
    }
}

/// Keeps frames in memory, and reports them as synced when a [`SlowSync`] does.
struct SlowJournal(Arc<MemoryJournal>, SlowSync);

impl Journal for SlowJournal {
    fn append(&self, worker: usize, frame: Frame) -> Result<()> {
        self.1.append(worker, frame.epoch)?;
        self.0.append(worker, frame)
    }

    fn synced(&self, worker: usize) -> Option<Epoch> {
        self.1.synced(worker)
    }
}

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

    /// Keeps state in a directory of a disk, such as a [`CrashingDisk`], with snapshots at random epochs. After a
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
