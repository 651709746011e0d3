//! Jobs: a query together with the resources it runs on.
//!
//! A [`Job`] has a name, a number of workers and options; [`Job::run`] builds the query on every worker and runs it
//! until its sources have ended, a stop is requested, or something fails (`run`). The loop of one worker is
//! `worker`.
//!
//! Invariants: the first failure stops every worker and is what `run` returns; at the end of every run that did not
//! fail the record counts are checked: no record is lost, none is counted twice.
//!
//! A job of several **processes** ([`Cluster`]) is one dataflow over all of their workers. The processes gather first.
//! Process 0 opens the sinks, reads the last epoch that each has published, starts the incarnation of the state and
//! sends its number to the others; it alone writes to the sinks, and at the end it collects the counters of all
//! processes. A failure of one process ends all of them with the same error.

mod cluster;
mod commit;
mod controls;
mod first_phase;
mod graph;
mod history;
mod monitor;
mod open_epoch;
mod pacing;
mod page;
mod profile;
mod prometheus;
mod report_throttle;
mod run;
mod run_report;
pub(crate) mod start;
pub(crate) mod state_check;
mod state_options;
mod stop_handle;
mod view_routes;
mod worker;
mod worker_shared;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crate::durable::journal::{Frame, Journal, MemoryJournal};
use crate::job::graph::JobGraph;
use crate::job::profile::Profile;
use crate::metrics::Metrics;
use crate::source;
#[cfg(feature = "testing")]
use crate::stream::Fault;
use crate::stream::InjectedFault;
use crate::time::Epoch;
use crate::view::Views;
use crate::view::http::{Endpoint, TlsFiles};

pub use cluster::options::Cluster;
#[cfg(feature = "cli")]
pub(crate) use cluster::secret::Secret;
pub use monitor::Watcher;
pub(crate) use pacing::Pace;
pub use profile::{JobProfile, StepProfile};
pub use run_report::{Ending, RunReport};
pub use state_options::State;
pub use stop_handle::StopHandle;

/// A query and the settings it runs with.
///
/// ```
/// use tidegate::{Job, Window, source::memory::MemorySource, stream::Observer};
/// use std::time::Duration;
///
/// # fn main() -> tidegate::Result<()> {
/// let clicks = vec![vec![("a".to_string(), 10), ("b".to_string(), 20)]];
/// let clicks = MemorySource::new(clicks, |click: &(String, i64)| click.1);
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
    cluster: Option<Cluster>,
    epoch: Duration,
    clock_behind: Duration,
    in_flight: u64,
    synchronous: bool,
    options: source::Options,
    stop: StopHandle,
    metrics: Arc<Metrics>,
    views: Arc<Views>,
    pub(crate) state: Option<State>,
    flags: BTreeMap<String, String>,
    journal: Arc<dyn Journal>,
    repeat: Vec<Frame>,
    pace: Pace,
    seals: Vec<Epoch>,
    fault: InjectedFault,
    http: Endpoint,
    stall_report_after: Duration,
    watcher: Watcher,
    profile: Option<Arc<Profile>>,
    /// The graph of the query, once it is known.
    graph: Arc<OnceLock<JobGraph>>,
}

impl fmt::Debug for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Job").field("name", &self.name).field("workers", &self.workers).finish_non_exhaustive()
    }
}

impl Job {
    /// Creates a job with one worker, an epoch every 100 ms and at most 64 MiB in flight.
    pub fn new(name: &str) -> Self {
        Job {
            name: name.to_owned(),
            workers: 1,
            cluster: None,
            epoch: Duration::from_millis(100),
            clock_behind: Duration::ZERO,
            in_flight: 64 << 20,
            synchronous: false,
            options: source::Options::default(),
            stop: StopHandle::default(),
            metrics: Arc::default(),
            views: Arc::default(),
            state: None,
            flags: BTreeMap::new(),
            journal: Arc::new(MemoryJournal::discarding()),
            repeat: Vec::new(),
            pace: Pace::Clock,
            seals: Vec::new(),
            fault: InjectedFault::default(),
            http: Endpoint::default(),
            stall_report_after: Duration::from_secs(30),
            watcher: Watcher::default(),
            profile: None,
            graph: Arc::default(),
        }
    }

    /// Serves the job's status over HTTP while it runs, at `HOST:PORT` (port 0 picks a free one): a page for browsers at
    /// `/`, `/status`, `/why`, `/graph`, `/history`, `/metrics`, `/healthz`, `/readyz`, and its views. In a job of several
    /// processes each process `p` serves at port `PORT + p`; process 0 reports on all of them. Without the cargo feature
    /// `http` the job does not start.
    #[must_use]
    pub fn http(mut self, address: &str) -> Self {
        self.http.address = address.to_owned();
        self.views.enable();
        self
    }

    /// Also answers HTTP requests whose `Host` is this name. Without it only requests that name the server by an IP
    /// address, by `localhost` or by the host it listens at are answered, so that no foreign web page can read the job
    /// through a browser (DNS rebinding). `*` allows every name.
    #[must_use]
    pub fn http_host(mut self, name: &str) -> Self {
        self.http.hosts.push(name.to_owned());
        self
    }

    /// Answers only HTTP requests that carry the token in this file, as `Authorization: Bearer TOKEN`: a word of at least
    /// 16 characters, without the white space around it. `/healthz`, `/readyz` and the page at `/` need none, and tell
    /// nothing of the job without it. [`Job::run`] fails if the file holds no token. It is read again while the job runs, at
    /// most once a second, when a request comes: another token in it takes effect without a restart.
    #[must_use]
    pub fn http_token_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.http.token_file = Some(path.into());
        self
    }

    /// Serves HTTP without a token also where other machines reach it. Otherwise [`Job::run`] fails if it is to listen at
    /// an address that is not of this machine alone, and there is no token.
    #[must_use]
    pub fn http_open(mut self) -> Self {
        self.http.open = true;
        self
    }

    /// Serves HTTPS instead of HTTP, with the certificate and the key in these files (PEM): the server's certificate first,
    /// then those that it rests upon. They are read when the job starts; [`Job::run`] fails if they cannot be used, and
    /// without the cargo feature `https`.
    #[must_use]
    pub fn https(mut self, certificate: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Self {
        self.http.tls = Some(TlsFiles { certificate: certificate.into(), key: key.into() });
        self
    }

    /// Measures the time spent in each step; see [`RunReport::profile`]. It adds a cost to every activation of an
    /// operator.
    #[must_use]
    pub fn profile(mut self, profile: bool) -> Self {
        self.profile = profile.then(Arc::default);
        self
    }

    /// Returns a handle that reads the job's status from other threads while it runs.
    pub fn watcher(&self) -> Watcher {
        self.watcher.clone()
    }

    /// Sets the time without output after which the job logs what holds it back; 30 s by default. Each further line
    /// follows after twice the previous time.
    #[must_use]
    pub fn stall_report_after(mut self, stall_report_after: Duration) -> Self {
        self.stall_report_after = stall_report_after.max(Duration::from_millis(1));
        self
    }

    /// Sets the number of worker threads of each process; at least 1.
    #[must_use]
    pub fn workers(mut self, workers: usize) -> Self {
        self.workers = workers;
        self
    }

    /// Makes this process one of several that run the job. All run the same query with equal options; the state
    /// directory, if there is one, is shared by all of them.
    #[must_use]
    pub fn cluster(mut self, cluster: Cluster) -> Self {
        self.cluster = Some(cluster);
        self
    }

    /// Sets the maximum length of an epoch. An epoch ends earlier once it holds an eighth of the bytes allowed in
    /// flight.
    #[must_use]
    pub fn epoch(mut self, epoch: Duration) -> Self {
        self.epoch = epoch;
        self
    }

    /// Sets the maximum number of bytes of records that each process may have read and not yet published. Reading
    /// pauses while there are more.
    #[must_use]
    pub fn in_flight(mut self, bytes: u64) -> Self {
        self.in_flight = bytes;
        self
    }

    /// Processes one record at a time in each worker: the next record is read only after all sinks have published the
    /// results of the previous one. Files are synced each time, also without state, so a writer to a source knows
    /// exactly what a crash can lose. Each record costs several disk syncs.
    #[must_use]
    pub fn synchronous(mut self, synchronous: bool) -> Self {
        self.synchronous = synchronous;
        self
    }

    /// Sets the options of all sources.
    #[must_use]
    pub fn options(mut self, options: source::Options) -> Self {
        self.options = options;
        self
    }

    /// Stops at the end that each source had when the job first started, with every window closed; sets
    /// [`Options::until_end`](source::Options#structfield.until_end) of the options so far.
    #[must_use]
    pub fn until_end(mut self) -> Self {
        self.options.until_end = true;
        self
    }

    /// Keeps durable state in a directory. After a crash the job resumes where its results end; sinks that support it
    /// (files and Kafka topics) publish each result exactly once. A job that finds state in the directory resumes from
    /// it.
    #[must_use]
    pub fn state(mut self, state: impl Into<State>) -> Self {
        self.state = Some(state.into());
        self
    }

    /// Adds a setting outside the query that affects its output, such as a flag, to the query's fingerprint. A state is
    /// resumed, and processes run together, only with equal values.
    #[must_use]
    pub fn fingerprint_flag(mut self, name: &str, value: &str) -> Self {
        self.flags.insert(name.to_owned(), value.to_owned());
        self
    }

    /// Returns the handle that asks the job to stop.
    pub fn stopper(&self) -> StopHandle {
        self.stop.clone()
    }

    /// Returns the job's counters, which can be read while it runs.
    pub fn metrics(&self) -> Arc<Metrics> {
        Arc::clone(&self.metrics)
    }

    /// Returns the job's views, which any thread may read while the job runs. Must be called before the job runs, as
    /// views that nobody can read are not maintained. After the job has ended they answer with their last contents. In
    /// a job of several processes only process 0 holds them, and only if this is called there.
    pub fn views(&self) -> Arc<Views> {
        self.views.enable();
        Arc::clone(&self.views)
    }

    /// Test hook: subtracts `behind` from the wall clock, as if it had been set back; epochs still increase.
    #[cfg(feature = "cli")]
    #[cfg(feature = "testing")]
    pub(crate) fn clock_behind(mut self, behind: Duration) -> Self {
        self.clock_behind = behind;
        self
    }

    #[cfg(feature = "testing")]
    pub(crate) fn with_views(mut self, views: Arc<Views>) -> Self {
        self.views = views;
        self
    }

    #[cfg(feature = "testing")]
    pub(crate) fn stop_by(mut self, stop: StopHandle) -> Self {
        self.stop = stop;
        self
    }

    #[cfg(feature = "testing")]
    pub(crate) fn journal(mut self, journal: Arc<dyn Journal>) -> Self {
        self.journal = journal;
        self
    }

    #[cfg(feature = "testing")]
    pub(crate) fn replay_frames(mut self, frames: Vec<Frame>) -> Self {
        self.repeat = frames;
        self
    }

    #[cfg(feature = "testing")]
    pub(crate) fn pace(mut self, pace: Pace) -> Self {
        self.pace = pace;
        self
    }

    #[cfg(feature = "testing")]
    pub(crate) fn seals(mut self, seals: Vec<Epoch>) -> Self {
        self.seals = seals;
        self
    }

    #[cfg(feature = "testing")]
    pub(crate) fn fault(mut self, fault: Option<Fault>) -> Self {
        self.fault = InjectedFault::new(fault);
        self
    }
}
