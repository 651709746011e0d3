//! Runs a command as a job: the flags for that, progress output and signal handling.
//!
//! A command flattens [`RunArgs`] into its own arguments, makes its job from them, and runs it by a [`JobRunner`],
//! which shows progress on standard error and stops the job cleanly on Ctrl-C, SIGTERM and SIGHUP.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::builder::NonEmptyStringValueParser;
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};

use super::stop::StopSignal;
use super::test_hooks::TestHooks;
use super::{duration, log, note};
use crate::durable::disk::OsDisk;
use crate::error::{Error, Result};
use crate::job::{Cluster, Ending, Job, RunReport, State, Watcher};
use crate::metrics::{JobSummary, Metrics};
use crate::status::why;
use crate::stream::Flow;
use crate::thread::{self, ThreadHandle, ThreadRole};

/// Form of progress output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ProgressMode {
    /// A live line on a terminal, else a line every few seconds.
    Auto,
    /// A line every few seconds.
    Plain,
    /// No progress output.
    Off,
}

/// The flags of every command that runs as a job.
#[derive(Clone, Debug, Args)]
pub struct RunArgs {
    /// Length of an epoch: results are published once an epoch
    #[arg(long, value_name = "TIME", default_value = "100ms", value_parser = duration, help_heading = "Running")]
    pub epoch: Duration,

    /// Maximum amount of input that each process may have read and not yet published
    #[arg(long, value_name = "SIZE", default_value = "64MiB", value_parser = parse_size, help_heading = "Running")]
    pub in_flight: u64,

    /// Serve the status of the job over HTTP at this address (port 0: any free one): a page at /,
    /// /status, /why, /metrics, /healthz, /readyz, /views; each further process takes the port after it
    #[arg(long, value_name = "HOST:PORT", value_parser = NonEmptyStringValueParser::new(), help_heading = "Running")]
    pub http: Option<String>,

    /// Accept HTTP requests for this host name, too; without it only for an IP address, localhost, or the name given to
    /// --http, so that no web page from elsewhere reads the job through a browser. May be given several times; *
    /// accepts every name
    #[arg(long, value_name = "NAME", requires = "http", help_heading = "Running")]
    pub http_host: Vec<String>,

    /// Answer only HTTP requests that carry the token in this file, as `Authorization: Bearer TOKEN`; all but /healthz,
    /// /readyz and the page itself, which asks for it. It has at least 16 characters. Another token in the file takes effect
    /// within seconds
    #[arg(long, value_name = "FILE", requires = "http", help_heading = "Running")]
    pub http_token_file: Option<PathBuf>,

    /// Serve HTTP without a token to all who reach the address of --http: without this or a token, only an address of
    /// this machine alone is taken
    #[arg(long, requires = "http", conflicts_with = "http_token_file", help_heading = "Running")]
    pub http_open: bool,

    /// Serve HTTPS instead of HTTP with the certificate in this file (PEM), followed by those that it rests upon; for
    /// programs that are built with the feature `https`. It is read at the start
    #[arg(long, value_name = "FILE", requires_all = ["http", "http_key"], help_heading = "Running")]
    pub http_cert: Option<PathBuf>,

    /// File with the private key of the certificate of --http-cert (PEM)
    #[arg(long, value_name = "FILE", requires = "http_cert", help_heading = "Running")]
    pub http_key: Option<PathBuf>,

    /// Log the cause after this long without output
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = duration, help_heading = "Running")]
    pub tell_when_quiet: Duration,

    /// Sum up running time by step: printed at the end, and served at /profile with --http
    #[arg(long, help_heading = "Running")]
    pub profile: bool,

    /// Number of worker threads in each process
    #[arg(short, long, value_name = "N", default_value_t = 1, value_parser = worker_count, help_heading = "Running")]
    pub workers: usize,

    /// Form of progress output on standard error
    #[arg(long, value_enum, default_value_t = ProgressMode::Auto, help_heading = "Running")]
    pub progress: ProgressMode,

    /// Interval of progress lines where there is no terminal
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = duration, hide = true)]
    pub progress_every: Duration,

    /// Directory of durable state: a restarted query resumes where its results end, each published exactly once
    #[arg(long, value_name = "DIR", help_heading = "State")]
    pub state: Option<PathBuf>,

    /// Minimum time between two snapshots of the state; results do not wait for snapshots
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = duration, help_heading = "State")]
    pub snapshot_every: Duration,

    /// Number of snapshots to keep
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = snapshot_count, help_heading = "State")]
    pub keep_snapshots: usize,

    /// Start a new state from a savepoint made by `tidegate snapshot export`; outputs have to be new too, and get the
    /// results after the savepoint
    #[arg(long, value_name = "DIR", requires = "state", help_heading = "State")]
    pub from_savepoint: Option<PathBuf>,

    /// Go on although another process holds the locks of the state and the results: for a process that is suspended and
    /// will not resume
    #[arg(long, requires = "state", help_heading = "State")]
    pub take_over: bool,

    /// Go on although the program or its flags differ from those that the state was made with
    #[arg(long, requires = "state", help_heading = "State")]
    pub accept_changed_query: bool,

    /// Go on although the sources differ from those that the state has read: progress in a source that is gone is
    /// forgotten, and a new one is read from its start
    #[arg(long, requires = "state", help_heading = "State")]
    pub accept_changed_sources: bool,

    /// Drop the rows of a step that the query no longer has. May be given several times
    #[arg(long, value_name = "NAME", requires = "state", help_heading = "State")]
    pub drop_step: Vec<String>,

    /// Forget an output that the query no longer has; its results stay as they are. May be given several times
    #[arg(long, value_name = "NAME", requires = "state", help_heading = "State")]
    pub drop_output: Vec<String>,

    /// The flags of tests.
    #[command(flatten)]
    pub hooks: TestHooks,

    /// Number of processes; each is started with the same flags, except for -p
    #[arg(
        short = 'n',
        long,
        value_name = "N",
        default_value_t = 1,
        value_parser = process_count,
        help_heading = "Running"
    )]
    pub processes: usize,

    /// Number of this process, from 0
    #[arg(short = 'p', long, value_name = "I", default_value_t = 0, help_heading = "Running")]
    pub process: usize,

    /// Addresses of the processes: a file with one HOST:PORT a line, the first for process 0; without it they are on
    /// this machine, at ports from 2101 on
    #[arg(long, value_name = "FILE", help_heading = "Running")]
    pub hostfile: Option<PathBuf>,

    /// File with a secret of at least 16 bytes, the same for all processes: only processes that know it can join. It
    /// does not encrypt traffic: keep the ports in a private network
    #[arg(long, value_name = "FILE", help_heading = "Running")]
    pub cluster_secret_file: Option<PathBuf>,

    /// Maximum time that a process waits for the others at the start
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = duration, help_heading = "Running")]
    pub join_timeout: Duration,

    /// Maximum time without a heartbeat before a process is considered lost and the job ends; at least 2s
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = heartbeat_timeout, help_heading = "Running")]
    pub heartbeat_timeout: Duration,
}

pub(super) fn parse_size(text: &str) -> std::result::Result<u64, String> {
    let size = text.parse::<bytesize::ByteSize>().map_err(|why| format!("{why}; write it as 64MiB or 1GB"))?;
    if size.as_u64() < 1 << 20 { Err(String::from("it has to be at least 1MiB")) } else { Ok(size.as_u64()) }
}

fn snapshot_count(text: &str) -> std::result::Result<usize, String> {
    match text.parse() {
        Ok(count @ 1..=10_000) => Ok(count),
        _ => Err(String::from("it has to be a number of snapshots from 1 to 10000")),
    }
}

fn process_count(text: &str) -> std::result::Result<usize, String> {
    match text.parse() {
        Ok(processes @ 1..=256) => Ok(processes),
        _ => Err(String::from("it has to be a number of processes from 1 to 256")),
    }
}

fn heartbeat_timeout(text: &str) -> std::result::Result<Duration, String> {
    match duration(text)? {
        timeout if timeout < Duration::from_secs(2) => Err(String::from("it has to be at least 2s")),
        timeout => Ok(timeout),
    }
}

fn worker_count(text: &str) -> std::result::Result<usize, String> {
    match text.parse() {
        Ok(workers @ 1..=1024) => Ok(workers),
        _ => Err(String::from("it has to be a number of threads from 1 to 1024")),
    }
}

impl RunArgs {
    /// Checks that the flags are consistent.
    pub(super) fn check(&self) -> Result<()> {
        if self.process >= self.processes {
            let error = Error::usage(format!("-p {}: there are {} processes", self.process, self.processes));
            return Err(error.help("give -n N, and -p from 0 to N - 1"));
        }
        Ok(())
    }

    /// Returns the cluster that the flags describe; `None` if there is one process.
    fn cluster(&self) -> Result<Option<Cluster>> {
        let cluster = match (&self.hostfile, self.processes) {
            (_, 1) => return Ok(None),
            (Some(file), processes) => Cluster::from_hostfile(self.process, processes, file)?,
            (None, processes) => Cluster::on_this_machine(self.process, processes)?,
        };
        let cluster = cluster.timeouts(self.join_timeout, self.heartbeat_timeout);
        self.cluster_secret_file.as_ref().map_or(Ok(cluster.clone()), |file| cluster.secret_file(file)).map(Some)
    }

    /// Returns `true` if this is the only process, or the first of several.
    pub(super) fn is_first(&self) -> bool {
        self.process == 0
    }

    /// Returns a job of this name with the workers, processes and state that the flags name.
    ///
    /// # Errors
    /// Fails if the hostfile cannot be read, or has fewer hosts than processes.
    pub(super) fn job(&self, name: &str) -> Result<Job> {
        let job = Job::new(name).workers(self.workers).epoch(self.epoch).in_flight(self.in_flight);
        let job = self.hooks.adjust(job);
        let job = job.stall_report_after(self.tell_when_quiet).profile(self.profile);
        let job = match &self.http {
            Some(address) => self.with_http(job.http(address)),
            None => job,
        };
        let job = match self.cluster()? {
            Some(cluster) => {
                if self.progress != ProgressMode::Off {
                    note(format_args!("{name}: this is {cluster}; it starts when all have joined"));
                }
                job.cluster(cluster)
            }
            None => job,
        };
        if self.is_first() && self.state.is_none() && self.progress != ProgressMode::Off {
            note(format_args!(
                "{name}: nothing is kept between runs: after a crash, a run begins at the source's beginning"
            ));
        }
        Ok(self.with_state(job))
    }

    /// Adds who may ask the job over HTTP.
    fn with_http(&self, job: Job) -> Job {
        let job = self.http_host.iter().fold(job, |job, name| job.http_host(name));
        let job = self.http_token_file.iter().fold(job, Job::http_token_file);
        let files = self.http_cert.iter().zip(&self.http_key);
        let job = files.fold(job, |job, (certificate, key)| job.https(certificate, key));
        if self.http_open { job.http_open() } else { job }
    }

    /// Adds the state that the flags name to a job; returns it unchanged without `--state`.
    fn with_state(&self, job: Job) -> Job {
        let Some(directory) = &self.state else { return job };
        let mut state = State::at(directory)
            .disk(self.hooks.wrap_disk(OsDisk::shared()))
            .snapshot_every(self.snapshot_every)
            .keep_snapshots(self.keep_snapshots)
            .take_over(self.take_over)
            .accept_changed_query(self.accept_changed_query)
            .accept_changed_sources(self.accept_changed_sources);
        state = self.drop_step.iter().fold(state, |state, step| state.drop_step(step));
        state = self.drop_output.iter().fold(state, |state, output| state.drop_output(output));
        if let Some(savepoint) = &self.from_savepoint {
            state = state.from_savepoint(savepoint);
        }
        job.state(state)
    }
}

/// The figures of a running job that progress output shows.
pub(super) struct JobFigures {
    /// Metrics of this process.
    pub(super) summary: JobSummary,
    /// Number of records read from all sources.
    pub(super) read: u64,
    /// Records read per second since the previous figures.
    pub(super) rate: f64,
    /// Time since the job was started.
    pub(super) elapsed: Duration,
}

/// Formats a line of progress.
pub(super) type FormatFigures = fn(&JobFigures) -> String;

/// Runs one job with progress output. Signals are handled from the moment it is created.
pub(super) struct JobRunner<'a> {
    args: &'a RunArgs,
    stop: StopSignal,
}

impl<'a> JobRunner<'a> {
    /// Starts to listen for signals.
    ///
    /// # Errors
    /// Fails if signals cannot be listened for, or the flags are not consistent.
    pub(super) fn begin(args: &'a RunArgs) -> Result<Self> {
        args.check()?;
        Ok(JobRunner { args, stop: StopSignal::listen()? })
    }

    /// Runs a query as a job; returns its report and the exit code.
    ///
    /// # Errors
    /// Fails as [`Job::run`] does.
    pub(super) fn run(
        self,
        job: Job,
        line: FormatFigures,
        query: impl Fn(&Flow<'_>) + Send + Sync + 'static,
    ) -> Result<(RunReport, u8)> {
        self.stop.set_job(job.stopper(), job.watcher(), self.args.processes == 1);
        let display = match self.args.progress {
            ProgressMode::Off => None,
            show => Some(ProgressThread::start(ProgressDisplay::new(show, self.args.progress_every, line), &job)?),
        };
        let report = job.run(query);
        drop(display);
        self.stop.clear_job();
        let report = report?;
        if self.args.profile {
            note(format_args!("{}", report.profile));
        }
        let code = match report.ending {
            Ending::Complete | Ending::WasComplete => 0,
            Ending::Stopped => self.stop.exit_code_if_stopped().unwrap_or(0),
        };
        Ok((report, code))
    }
}

/// The thread that shows progress.
struct ProgressThread {
    ended: Arc<AtomicBool>,
    thread: Option<ThreadHandle>,
}

impl ProgressThread {
    fn start(mut display: ProgressDisplay, job: &Job) -> Result<Self> {
        let (metrics, watcher, over) = (job.metrics(), job.watcher(), Arc::new(AtomicBool::new(false)));
        let ended = Arc::clone(&over);
        let body = move || {
            while !ended.load(Ordering::Acquire) {
                thread::mark_iteration();
                display.show(&metrics, &watcher);
                std::thread::park_timeout(Duration::from_millis(50));
            }
        };
        let thread = thread::start(ThreadRole::Progress, ThreadRole::Progress.name(), body)?;
        Ok(ProgressThread { ended: over, thread: Some(thread) })
    }
}

impl Drop for ProgressThread {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // The thread may be blocked on writing to a pipe that nobody reads.
            thread.join_within(Duration::from_secs(1));
        }
    }
}

/// Shows the progress of a running job.
struct ProgressDisplay {
    line: FormatFigures,
    bar: Option<ProgressBar>,
    lines: bool,
    every: Duration,
    begun: Instant,
    last: Instant,
    last_read: u64,
}

impl ProgressDisplay {
    fn new(show: ProgressMode, every: Duration, line: FormatFigures) -> Self {
        let live = show == ProgressMode::Auto && log::is_live();
        let style =
            ProgressStyle::with_template("{spinner} {msg}").unwrap_or_else(|_| ProgressStyle::default_spinner());
        let bar = live.then(|| ProgressBar::new_spinner().with_style(style));
        log::set_live_view(bar.as_ref());
        let now = Instant::now();
        let every = if live { Duration::from_millis(250) } else { every };
        ProgressDisplay {
            line,
            bar,
            lines: show != ProgressMode::Off && !live,
            every,
            begun: now,
            last: now,
            last_read: 0,
        }
    }

    fn show(&mut self, metrics: &Metrics, watcher: &Watcher) {
        let since = self.last.elapsed();
        if since < self.every || !(self.lines || self.bar.is_some()) {
            return;
        }
        let summary = metrics.summary();
        let read: u64 = summary.sources.iter().map(|source| source.read).sum();
        let rate = (read - self.last_read) as f64 / since.as_secs_f64();
        (self.last, self.last_read) = (Instant::now(), read);
        let line = (self.line)(&JobFigures { summary, read, rate, elapsed: self.begun.elapsed() });
        let Some(bar) = &self.bar else { return note(format_args!("{line}")) };
        // The first blocker of the next results is shown below.
        let held = watcher.status().and_then(|status| why(&status, None).holds.into_iter().next());
        bar.set_message(held.map_or_else(|| line.clone(), |held| format!("{line}\n  {held}")));
        bar.tick();
    }
}

/// Clears the live line, also if the thread that shows it panics.
impl Drop for ProgressDisplay {
    fn drop(&mut self) {
        log::set_live_view(None);
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
