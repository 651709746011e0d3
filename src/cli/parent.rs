//! Programs that end when the one that started them does, however that ended.
//!
//! Their standard input is a pipe that the starter holds open and never writes to. When the starter is gone the pipe ends,
//! and the program stops: cleanly if it can, by force if that takes too long.

use std::io::{ErrorKind, Read};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::Once;
use std::time::Duration;

use nix::sys::signal::{Signal, raise};

/// Set in the environment of programs that end when their standard input does.
const BOUND: &str = "TIDEGATE_ENDS_WITH_STDIN";

/// How long it may take when its parent is gone, and with that perhaps its broker.
const ORPHAN_GRACE: Duration = Duration::from_secs(3);

/// Makes a program that was started by [`bind`] stop when the starter is gone; does nothing in any other. The tool's `main`
/// calls this first, and so does that of every query.
pub fn end_with_parent() {
    static ONCE: Once = Once::new();
    if std::env::var_os(BOUND).is_some() {
        ONCE.call_once(|| drop(std::thread::spawn(wait_for_the_end)));
    }
}

fn wait_for_the_end() {
    let (mut stdin, mut bytes) = (std::io::stdin().lock(), [0; 64]);
    loop {
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

/// Has a program end with this one, and be in a process group of its own: signals from the keyboard reach this one alone,
/// which stops the others in order.
pub(super) fn bind(command: &mut Command) -> &mut Command {
    command.env(BOUND, "1").process_group(0).stdin(Stdio::piped())
}
