//! Stops a command cleanly on Ctrl-C, SIGTERM and SIGHUP, with a limit on the wait for work that has not begun.
//!
//! * The first signal asks the command to stop. A repeat within [`SAME`] is the same request: service managers signal a
//!   whole group, and wrappers pass signals on. A later one ends the process at once, with exit code 1 and one line.
//! * A command that has not begun its work, because it waits for a broker or for the reader of a FIFO, has nothing to
//!   finish: it ends [`GRACE`] after the request. One of several processes that ends by itself would fail the others,
//!   so it gets [`TOGETHER`].
//! * SIGHUP is left alone if the process was started with it ignored, as by `nohup`.
//!
//! Invariant: exit codes 130 and 143 mean that everything the command had begun was finished.

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::low_level;

use crate::error::{Error, Result};
use crate::job::{self, Watcher};
use crate::thread::{self, JobFailure, ThreadRole};

/// Interval after the first signal within which another one counts as the same request.
const SAME: Duration = Duration::from_secs(1);
/// Time for a command that has not begun its work to notice the request by itself.
const GRACE: Duration = Duration::from_millis(500);
/// The same time for one of several processes.
const TOGETHER: Duration = Duration::from_secs(10);
/// Polling interval of the thread that handles signals.
const TICK: Duration = Duration::from_millis(20);

/// Tells if the command was asked to stop.
#[derive(Clone)]
pub(super) struct Stop(Arc<Shared>);

struct Shared {
    /// The exit code to stop with; 0 before a signal.
    code: AtomicU8,
    /// Time of the first signal.
    asked: OnceLock<Instant>,
    /// Number of startup phases of the command in progress.
    beginning: AtomicUsize,
    job: Mutex<Option<Stoppable>>,
    failure: Arc<JobFailure>,
}

/// A job that is asked to stop.
struct Stoppable {
    stopper: job::StopHandle,
    watcher: Watcher,
    /// Time for a job that has not begun to notice the request by itself.
    grace: Duration,
}

/// Marks a startup phase of a command while it is alive; returned by [`Stop::begin`].
pub(super) struct Beginning(Arc<Shared>);

impl Drop for Beginning {
    fn drop(&mut self) {
        self.0.beginning.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Stop {
    /// Starts to listen for signals.
    ///
    /// # Errors
    /// Fails if the signal handlers or the thread cannot be set up.
    pub(super) fn listen() -> Result<Self> {
        let wanted = [SIGINT, SIGTERM, SIGHUP].into_iter().filter(|signal| *signal != SIGHUP || !ignores(SIGHUP));
        let signals = Signals::new(wanted.collect::<Vec<_>>());
        let mut signals = signals.map_err(|why| Error::new("cannot listen for signals").because(why))?;
        let shared = Arc::new(Shared {
            code: AtomicU8::new(0),
            asked: OnceLock::new(),
            beginning: AtomicUsize::new(0),
            job: Mutex::new(None),
            failure: JobFailure::current().unwrap_or_default(),
        });
        let (own, last) = (Arc::clone(&shared), Arc::clone(&shared));
        let body = move || {
            loop {
                thread::mark_iteration();
                signals.pending().for_each(|signal| own.hear(signal));
                own.tend();
                std::thread::sleep(TICK);
            }
        };
        thread::start_reporting(ThreadRole::Signals, ThreadRole::Signals.name(), move |_error| last.stop_job(), body)?;
        Ok(Stop(shared))
    }

    /// Returns the exit code to stop with after a signal, or after the failure of a thread of this program; else
    /// `None`.
    pub(super) fn asked(&self) -> Option<u8> {
        match self.0.code.load(Ordering::Acquire) {
            0 => self.0.failure.get().map(Error::exit_code),
            code => Some(code),
        }
    }

    /// Begins a startup phase, which lasts until the returned guard is dropped. A request to stop during a startup
    /// phase ends the process, because there is nothing to finish.
    pub(super) fn begin(&self) -> Beginning {
        self.0.beginning.fetch_add(1, Ordering::AcqRel);
        Beginning(Arc::clone(&self.0))
    }

    /// Sets the job to stop when the command is asked to stop; `alone` if no other process takes part in it.
    pub(super) fn stops(&self, stopper: job::StopHandle, watcher: Watcher, alone: bool) {
        let grace = if alone { GRACE } else { TOGETHER };
        *self.0.job() = Some(Stoppable { stopper, watcher, grace });
    }

    /// Clears the job: it has ended.
    pub(super) fn job_has_ended(&self) {
        *self.0.job() = None;
    }
}

impl Shared {
    fn job(&self) -> std::sync::MutexGuard<'_, Option<Stoppable>> {
        self.job.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hear(&self, signal: i32) {
        let now = Instant::now();
        let first = *self.asked.get_or_init(|| now);
        // SIGHUP counts as a request of a service manager.
        let code = if signal == SIGINT { 130 } else { 143 };
        let _ = self.code.compare_exchange(0, code, Ordering::AcqRel, Ordering::Acquire);
        if now.duration_since(first) >= SAME {
            let error =
                Error::new("ended at once by a second signal, before the clean stop that the first one asked for");
            end(&error.help("a job with state resumes where its results end"));
        }
    }

    fn stop_job(&self) {
        if let Some(job) = &*self.job() {
            job.stopper.stop();
        }
    }

    /// Passes a request to stop on to the job, and ends the process if the job or the startup phase takes too long.
    fn tend(&self) {
        static FAILED: OnceLock<Instant> = OnceLock::new();
        let failure = self.failure.get();
        let since = match (self.asked.get(), failure) {
            (Some(asked), _) => *asked,
            (None, Some(_)) => *FAILED.get_or_init(Instant::now),
            (None, None) => return,
        };
        let grace = match &*self.job() {
            Some(job) => {
                job.stopper.stop();
                (!job.watcher.has_begun()).then_some(job.grace)
            }
            None => (self.beginning.load(Ordering::Acquire) > 0).then_some(GRACE),
        };
        if grace.is_some_and(|grace| since.elapsed() >= grace) {
            match failure {
                Some(error) => end(error),
                None => low_level::exit(i32::from(self.code.load(Ordering::Acquire))),
            }
        }
    }
}

/// Ends the process with an error at once, without waiting for a reader of standard error.
fn end(error: &Error) -> ! {
    let stderr = std::io::stderr();
    let mut ready = [PollFd::new(stderr.as_fd(), PollFlags::POLLOUT)];
    // Not by `std`: its lock may be held by a thread that waits for the reader.
    if poll(&mut ready, PollTimeout::ZERO).is_ok_and(|ready| ready > 0) {
        let _ = nix::unistd::write(stderr.as_fd(), format!("error: {error}\n").as_bytes());
    }
    low_level::exit(i32::from(error.exit_code()))
}

/// Returns `true` if this process was started with the signal ignored.
fn ignores(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    mask >> (signal - 1) & 1 == 1
}
