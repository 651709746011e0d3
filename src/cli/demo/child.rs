//! The programs that the demo runs: this executable, under another name or with another command.
//!
//! * When the demo is gone, even if killed, the program stops: it is an [`ChildProcess`].
//! * Output of a program goes to its log file.
//!
//! Invariants: no program outlives the demo for more than a few seconds; a signal from the keyboard reaches only the
//! demo, because programs are in process groups of their own, so that they are stopped in order; a program that ends
//! before it is asked to is a failure.

use std::ffi::OsString;
use std::fs::File;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::cli::child_process::ChildProcess;
use crate::cli::note;
use crate::error::{Error, Result};

/// Time for a program to stop cleanly.
const GRACE: Duration = Duration::from_secs(10);

/// Number of lines at the end of a log that are printed after a failure.
const LAST_LINES: usize = 8;

fn not_started(name: &str, error: std::io::Error) -> Error {
    Error::new(format!("cannot start {name}")).because(error)
}

/// A running program; it is stopped when dropped.
#[derive(Debug)]
pub(super) struct Program {
    name: &'static str,
    running: ChildProcess,
    log: PathBuf,
}

impl Program {
    /// Starts this executable with `called` as program name and these arguments; `name` is used in messages. The log
    /// file is replaced.
    pub(super) fn start(name: &'static str, called: &str, arguments: &[OsString], log: &Path) -> Result<Self> {
        let output = File::create(log).map_err(|error| not_started(name, error).at(log.display()))?;
        Program::with_log(name, called, arguments, log, output)
    }

    /// Restarts a program that was killed: its output is appended to the log.
    pub(super) fn start_again(name: &'static str, called: &str, arguments: &[OsString], log: &Path) -> Result<Self> {
        let output = File::options().append(true).open(log);
        let output = output.map_err(|error| not_started(name, error).at(log.display()))?;
        Program::with_log(name, called, arguments, log, output)
    }

    fn with_log(name: &'static str, called: &str, arguments: &[OsString], log: &Path, output: File) -> Result<Self> {
        let failed = |error: std::io::Error| not_started(name, error);
        let mut command = Command::new(std::env::current_exe().map_err(failed)?);
        command.arg0(called).args(arguments).stdout(output.try_clone().map_err(failed)?).stderr(output);
        let running = ChildProcess::start(&mut command).map_err(failed)?;
        Ok(Program { name, running, log: log.to_owned() })
    }

    /// Kills the program with SIGKILL and waits for it.
    pub(super) fn kill(&mut self) {
        self.running.kill();
    }

    /// Returns the exit status; `None` while the program runs.
    fn ended(&mut self) -> Option<ExitStatus> {
        self.running.ended().ok().flatten()
    }

    /// Fails if the program has ended.
    pub(super) fn check(&mut self) -> Result<()> {
        match self.ended() {
            None => Ok(()),
            Some(status) => Err(self.failed("ended before its time", &status.to_string())),
        }
    }

    /// Asks the program to stop, by SIGTERM.
    pub(super) fn ask_to_stop(&mut self) {
        if self.ended().is_none() {
            self.running.signal(Signal::SIGTERM);
        }
    }

    /// Waits until the program has stopped cleanly; fails after [`GRACE`].
    pub(super) fn wait(&mut self) -> Result<()> {
        match self.ended_within(GRACE) {
            // Killed by the signal: it came before the program listened for it.
            Some(status) if status.code() == Some(143) || status.signal() == Some(Signal::SIGTERM as i32) => Ok(()),
            Some(status) => Err(self.failed("did not stop cleanly", &status.to_string())),
            None => Err(self.failed("does not stop", &format!("it was asked {} s ago", GRACE.as_secs()))),
        }
    }

    fn ended_within(&mut self, limit: Duration) -> Option<ExitStatus> {
        let begun = Instant::now();
        while self.ended().is_none() && begun.elapsed() < limit {
            std::thread::sleep(Duration::from_millis(10));
        }
        self.ended()
    }

    /// Prints the end of the program's log, and returns the error.
    fn failed(&self, what: &str, because: &str) -> Error {
        self.print_log_tail();
        Error::new(format!("{} {what}", self.name)).because(because).help(format!("see {}", self.log.display()))
    }

    /// Prints the last lines of the program's log.
    pub(super) fn print_log_tail(&self) {
        let said = std::fs::read(&self.log).unwrap_or_default();
        let said = String::from_utf8_lossy(&said);
        let lines: Vec<&str> = said.lines().collect();
        for line in &lines[lines.len().saturating_sub(LAST_LINES)..] {
            note(format_args!("{}: {line}", self.name));
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.ask_to_stop();
        if self.ended_within(GRACE).is_none() {
            self.running.kill();
        }
    }
}
