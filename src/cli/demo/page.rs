//! The page of the query while the demo runs: the key that opens it in a browser.
//!
//! Invariant: the terminal is left as it was found, however the demo ends, unless it is killed.

use std::io::{self, IsTerminal, Stdin};
use std::os::fd::AsFd;
use std::process::{Command, Stdio};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::termios::{LocalFlags, SetArg, Termios, tcgetattr, tcsetattr};
use nix::unistd::{getpgrp, read, tcgetpgrp};

/// The key that opens the page.
pub(super) const OPEN: u8 = b'o';

/// The program that opens an address in the user's browser.
const OPENER: &str = if cfg!(target_os = "macos") { "open" } else { "xdg-open" };

/// The keyboard, whose keys are read one by one and without an echo; restored on drop.
pub(super) struct TerminalKeys {
    input: Stdin,
    before: Termios,
}

impl TerminalKeys {
    /// Takes the keyboard; `None` if nobody sits at it: input or output is no terminal, or the demo is in the background.
    pub(super) fn take() -> Option<Self> {
        let input = io::stdin();
        if !input.is_terminal() || !io::stdout().is_terminal() || tcgetpgrp(input.as_fd()) != Ok(getpgrp()) {
            return None;
        }
        let before = tcgetattr(input.as_fd()).ok()?;
        let mut raw = before.clone();
        // Ctrl-C and its like stay signals.
        raw.local_flags.remove(LocalFlags::ICANON | LocalFlags::ECHO);
        tcsetattr(input.as_fd(), SetArg::TCSANOW, &raw).ok()?;
        Some(TerminalKeys { input, before })
    }

    /// Returns `true` if a key was pressed since the last call.
    pub(super) fn has(&self, key: u8) -> bool {
        let mut pressed = false;
        loop {
            let mut ready = [PollFd::new(self.input.as_fd(), PollFlags::POLLIN)];
            if poll(&mut ready, PollTimeout::ZERO) != Ok(1) || ready[0].revents() != Some(PollFlags::POLLIN) {
                return pressed;
            }
            // Not by the buffer of `Stdin`: what waits in it is not seen by `poll`.
            let mut bytes = [0; 64];
            match read(&self.input, &mut bytes) {
                Ok(read @ 1..) => pressed |= bytes[..read].contains(&key),
                Ok(_) | Err(_) => return pressed,
            }
        }
    }
}

impl Drop for TerminalKeys {
    fn drop(&mut self) {
        let _ = tcsetattr(self.input.as_fd(), SetArg::TCSANOW, &self.before);
    }
}

/// Opens an address in the user's browser; returns the problem, if there is one.
pub(super) fn open(address: &str) -> Option<String> {
    let mut command = Command::new(OPENER);
    command.arg(format!("http://{address}/")).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().err().map(|why| format!("cannot start {OPENER}: {why}"))
}
