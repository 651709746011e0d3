//! Child processes that end when their parent does, even if the parent was killed.
//!
//! Their standard input is a pipe that the parent holds open and never writes to. When the parent is gone the pipe is
//! at its end, and the child stops: cleanly within [`ORPHAN_GRACE`], by SIGKILL after that.

use std::io::{self, ErrorKind, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill, raise};
use nix::unistd::Pid;

use crate::cli::stop::signals_to_stop;
use crate::error::Result;
use crate::thread::{self, ThreadRole};

/// Environment variable of processes that end when their standard input does.
const ENDS_WITH_STDIN: &str = "TIDEGATE_ENDS_WITH_STDIN";

/// Time for a clean stop after the parent is gone, and perhaps the broker with it.
const ORPHAN_GRACE: Duration = Duration::from_secs(3);

/// Starts a thread that stops this process when its parent is gone, if it was started as an [`ChildProcess`]; does
/// nothing otherwise. Every program calls this once, before anything else.
pub(super) fn end_with_parent() -> Result<()> {
    if std::env::var_os(ENDS_WITH_STDIN).is_some() {
        thread::start(ThreadRole::Parent, ThreadRole::Parent.name(), stop_at_stdin_end)?;
    }
    Ok(())
}

fn stop_at_stdin_end() {
    // Signals are for the thread that sets up what becomes of them, which may not have come to it.
    let _ = signals_to_stop().thread_block();
    let (mut stdin, mut bytes) = (io::stdin().lock(), [0; 64]);
    loop {
        thread::mark_iteration();
        match stdin.read(&mut bytes) {
            Ok(count) if count > 0 => {}
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Ok(_) | Err(_) => break,
        }
    }
    // Like a request from outside to stop; by force if that takes too long.
    let _ = kill(Pid::this(), Signal::SIGTERM);
    std::thread::sleep(ORPHAN_GRACE);
    let _ = raise(Signal::SIGKILL);
}

/// A child process that ends with this one. It is in a process group of its own: signals from the keyboard reach only
/// this process, which stops its children in order.
#[derive(Debug)]
pub(super) struct ChildProcess {
    pub(super) child: Child,
    ended: Option<ExitStatus>,
}

impl ChildProcess {
    pub(super) fn start(command: &mut Command) -> io::Result<Self> {
        let child = command.env(ENDS_WITH_STDIN, "1").process_group(0).stdin(Stdio::piped()).spawn()?;
        Ok(ChildProcess { child, ended: None })
    }

    /// Returns the exit status; `None` while the process runs.
    pub(super) fn ended(&mut self) -> io::Result<Option<ExitStatus>> {
        if self.ended.is_none() {
            // Not `Child::wait`: that closes the pipe first, which would stop the child.
            self.ended = self.child.try_wait()?;
        }
        Ok(self.ended)
    }

    /// Sends a signal, unless the process is known to have ended.
    pub(super) fn signal(&self, signal: Signal) {
        if self.ended.is_none()
            && let Ok(id) = i32::try_from(self.child.id())
        {
            let _ = kill(Pid::from_raw(id), signal);
        }
    }

    /// Kills the process and waits for it, unless it is known to have ended.
    pub(super) fn kill(&mut self) {
        if self.ended.is_none() {
            let _ = self.child.kill();
            self.ended = self.child.wait().ok();
        }
    }
}
