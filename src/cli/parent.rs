//! Programs that end when the one that started them does, however that ended.
//!
//! Their standard input is a pipe that the starter holds open and never writes to. When the starter is gone the pipe ends,
//! and the program stops: cleanly if it can, by force if that takes too long.

use std::io::{self, ErrorKind, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill, raise};
use nix::unistd::Pid;

use crate::error::Result;
use crate::thread::{self, Role};

/// Set in the environment of programs that end when their standard input does.
const BOUND: &str = "TIDEGATE_ENDS_WITH_STDIN";

/// How long it may take when its parent is gone, and with that perhaps its broker.
const ORPHAN_GRACE: Duration = Duration::from_secs(3);

/// Makes a program that was started as an [`Offspring`] stop when the starter is gone; does nothing in any other. Every
/// program calls this once, before anything else.
pub(super) fn end_with_parent() -> Result<()> {
    if std::env::var_os(BOUND).is_some() {
        thread::start(Role::Parent, Role::Parent.name(), wait_for_the_end)?;
    }
    Ok(())
}

fn wait_for_the_end() {
    let (mut stdin, mut bytes) = (io::stdin().lock(), [0; 64]);
    loop {
        thread::turn();
        match stdin.read(&mut bytes) {
            Ok(count) if count > 0 => {}
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Ok(_) | Err(_) => break,
        }
    }
    // As if asked to stop from outside; by force if that takes too long.
    let _ = raise(Signal::SIGTERM);
    std::thread::sleep(ORPHAN_GRACE);
    let _ = raise(Signal::SIGKILL);
}

/// A program that ends with this one. It is in a process group of its own: signals from the keyboard reach this one alone,
/// which stops the others in order.
#[derive(Debug)]
pub(super) struct Offspring {
    pub(super) child: Child,
    ended: Option<ExitStatus>,
}

impl Offspring {
    pub(super) fn start(command: &mut Command) -> io::Result<Self> {
        let child = command.env(BOUND, "1").process_group(0).stdin(Stdio::piped()).spawn()?;
        Ok(Offspring { child, ended: None })
    }

    /// How it ended, if it has.
    pub(super) fn ended(&mut self) -> io::Result<Option<ExitStatus>> {
        if self.ended.is_none() {
            // Never `Child::wait`: it closes the pipe first, which would stop it.
            self.ended = self.child.try_wait()?;
        }
        Ok(self.ended)
    }

    /// Sends it a signal, unless it is known to have ended.
    pub(super) fn signal(&self, signal: Signal) {
        if self.ended.is_none()
            && let Ok(id) = i32::try_from(self.child.id())
        {
            let _ = kill(Pid::from_raw(id), signal);
        }
    }

    /// Ends it as a crash would, unless it is known to have ended.
    pub(super) fn kill(&mut self) {
        if self.ended.is_none() {
            let _ = self.child.kill();
            self.ended = self.child.wait().ok();
        }
    }
}
