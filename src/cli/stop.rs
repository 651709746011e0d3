//! Stops a command cleanly on Ctrl-C, SIGTERM and SIGHUP, with a limit on the wait for work that has not begun.
//!
//! * The first signal asks the command to stop. A repeat within [`REPEAT_INTERVAL`] is the same request: service
//!   managers signal a whole group, and wrappers pass signals on. A later one ends the process at once, with exit code
//!   1 and one line.
//! * A command that has not begun its work, because it waits for a broker or for the reader of a FIFO, has nothing to
//!   finish: it ends [`STARTUP_GRACE`] after the request. One of several processes that ends by itself would fail the
//!   others, so it gets [`CLUSTER_STARTUP_GRACE`].
//! * SIGHUP is left alone if the process was started with it ignored, as by `nohup`.
//!
//! Invariants: exit codes 130 and 143 mean that everything the command had begun was finished; from the moment at which a
//! signal no longer kills the process, it stops the command.

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use signal_hook::consts::{SIGHUP, SIGINT};
use signal_hook::iterator::Signals;
use signal_hook::{flag, low_level};

use crate::error::{Error, Result};
use crate::job::{self, Watcher};
use crate::thread::{self, JobFailure, ThreadRole};

/// Interval after the first signal within which another one counts as the same request.
const REPEAT_INTERVAL: Duration = Duration::from_secs(1);
/// Time for a command that has not begun its work to notice the request by itself.
const STARTUP_GRACE: Duration = Duration::from_millis(500);
/// The same time for one of several processes.
const CLUSTER_STARTUP_GRACE: Duration = Duration::from_secs(10);
/// Polling interval of the thread that handles signals.
const SIGNAL_POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Signals that ask a command to stop.
const STOP_SIGNALS: [Signal; 3] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP];

/// Tells if the command was asked to stop.
#[derive(Clone)]
pub(super) struct StopSignal(Arc<SignalState>);

struct SignalState {
    /// The exit code of the last signal, set by its handler; 0 before a signal. A job that stops because another process
    /// was asked to may end before the thread of this process has heard of its own signal.
    delivered: Arc<AtomicUsize>,
    /// The first signal that the thread has heard of.
    first: OnceLock<StopRequest>,
    /// Number of startup phases of the command in progress.
    startup_phases: AtomicUsize,
    job: Mutex<Option<RunningJob>>,
    failure: Arc<JobFailure>,
}

/// A signal to stop.
struct StopRequest {
    at: Instant,
    /// The exit code to stop with.
    code: u8,
}

/// A job that is asked to stop.
struct RunningJob {
    stopper: job::StopHandle,
    watcher: Watcher,
    /// Time for a job that has not begun to notice the request by itself.
    grace: Duration,
}

/// Marks a startup phase of a command while it is alive; returned by [`StopSignal::begin_startup`].
pub(super) struct StartupPhase(Arc<SignalState>);

impl Drop for StartupPhase {
    fn drop(&mut self) {
        self.0.startup_phases.fetch_sub(1, Ordering::AcqRel);
    }
}

impl StopSignal {
    /// Starts to listen for signals.
    ///
    /// # Errors
    /// Fails if the signal handlers or the thread cannot be set up.
    pub(super) fn listen() -> Result<Self> {
        let wanted = STOP_SIGNALS.map(|signal| signal as i32).into_iter();
        let wanted: Vec<_> = wanted.filter(|signal| *signal != SIGHUP || !is_ignored(SIGHUP)).collect();
        let cannot = |why: std::io::Error| Error::new("cannot listen for signals").because(why);
        // None is lost between the first step of a registration and the last: it comes when all are done.
        let unblocked = signals_to_stop().thread_swap_mask(SigmaskHow::SIG_BLOCK).map_err(|why| cannot(why.into()))?;
        let delivered = Arc::<AtomicUsize>::default();
        let mut signals = Signals::new(&wanted).map_err(cannot)?;
        for signal in &wanted {
            flag::register_usize(*signal, Arc::clone(&delivered), usize::from(code_of(*signal))).map_err(cannot)?;
        }
        unblocked.thread_set_mask().map_err(|why| cannot(why.into()))?;
        let shared = Arc::new(SignalState {
            delivered,
            first: OnceLock::new(),
            startup_phases: AtomicUsize::new(0),
            job: Mutex::new(None),
            failure: JobFailure::current().unwrap_or_default(),
        });
        let (own, last) = (Arc::clone(&shared), Arc::clone(&shared));
        let body = move || {
            loop {
                thread::mark_iteration();
                signals.pending().for_each(|signal| own.handle_signal(signal));
                own.enforce_stop();
                std::thread::sleep(SIGNAL_POLL_INTERVAL);
            }
        };
        thread::start_reporting(ThreadRole::Signals, ThreadRole::Signals.name(), move |_error| last.stop_job(), body)?;
        Ok(StopSignal(shared))
    }

    /// Returns the exit code to stop with after a signal, or after the failure of a thread of this program; else
    /// `None`.
    pub(super) fn exit_code_if_stopped(&self) -> Option<u8> {
        let delivered = || u8::try_from(self.0.delivered.load(Ordering::Acquire)).unwrap_or(0);
        match self.0.first.get().map_or_else(delivered, |first| first.code) {
            0 => self.0.failure.get().map(Error::exit_code),
            code => Some(code),
        }
    }

    /// Begins a startup phase, which lasts until the returned guard is dropped. A request to stop during a startup
    /// phase ends the process, because there is nothing to finish.
    pub(super) fn begin_startup(&self) -> StartupPhase {
        self.0.startup_phases.fetch_add(1, Ordering::AcqRel);
        StartupPhase(Arc::clone(&self.0))
    }

    /// Sets the job to stop when the command is asked to stop; `alone` if no other process takes part in it.
    pub(super) fn set_job(&self, stopper: job::StopHandle, watcher: Watcher, alone: bool) {
        let grace = if alone { STARTUP_GRACE } else { CLUSTER_STARTUP_GRACE };
        *self.0.job() = Some(RunningJob { stopper, watcher, grace });
    }

    /// Clears the job: it has ended.
    pub(super) fn clear_job(&self) {
        *self.0.job() = None;
    }
}

impl SignalState {
    fn job(&self) -> std::sync::MutexGuard<'_, Option<RunningJob>> {
        self.job.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn handle_signal(&self, signal: i32) {
        let now = Instant::now();
        let first = self.first.get_or_init(|| StopRequest { at: now, code: code_of(signal) });
        if now.duration_since(first.at) >= REPEAT_INTERVAL {
            let error =
                Error::new("ended at once by a second signal, before the clean stop that the first one asked for");
            exit_with_error(&error.help("a job with state resumes where its results end"));
        }
    }

    fn stop_job(&self) {
        if let Some(job) = &*self.job() {
            job.stopper.stop();
        }
    }

    /// Passes a request to stop on to the job, and ends the process if the job or the startup phase takes too long.
    fn enforce_stop(&self) {
        static FAILED: OnceLock<Instant> = OnceLock::new();
        let failure = self.failure.get();
        let first = self.first.get();
        let since = match (first, failure) {
            (Some(first), _) => first.at,
            (None, Some(_)) => *FAILED.get_or_init(Instant::now),
            (None, None) => return,
        };
        let grace = match &*self.job() {
            Some(job) => {
                job.stopper.stop();
                (!job.watcher.has_begun()).then_some(job.grace)
            }
            None => (self.startup_phases.load(Ordering::Acquire) > 0).then_some(STARTUP_GRACE),
        };
        if grace.is_some_and(|grace| since.elapsed() >= grace) {
            match failure {
                Some(error) => exit_with_error(error),
                None => low_level::exit(first.map_or(0, |first| i32::from(first.code))),
            }
        }
    }
}

/// Returns [`STOP_SIGNALS`] as a set.
pub(super) fn signals_to_stop() -> SigSet {
    STOP_SIGNALS.into_iter().collect()
}

/// Returns the exit code of a clean stop by a signal. SIGHUP counts as a request of a service manager.
fn code_of(signal: i32) -> u8 {
    if signal == SIGINT { 130 } else { 143 }
}

/// Ends the process with an error at once, without waiting for a reader of standard error.
fn exit_with_error(error: &Error) -> ! {
    let stderr = std::io::stderr();
    let mut ready = [PollFd::new(stderr.as_fd(), PollFlags::POLLOUT)];
    // Not by `std`: its lock may be held by a thread that waits for the reader.
    if poll(&mut ready, PollTimeout::ZERO).is_ok_and(|ready| ready > 0) {
        let _ = nix::unistd::write(stderr.as_fd(), format!("error: {error}\n").as_bytes());
    }
    low_level::exit(i32::from(error.exit_code()))
}

/// Returns `true` if this process was started with the signal ignored.
fn is_ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    mask >> (signal - 1) & 1 == 1
}
