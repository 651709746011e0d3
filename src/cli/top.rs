//! `tidegate top`: shows a running job in a terminal: what it waits for, its watermarks, open windows, records left out
//! and workers. It asks the job over HTTP, each second, as its page does.
//!
//! * A `TopSession` asks, and makes a frame of the answers (`frame`); a job that is killed is asked on until it is back.
//! * The terminal view (`screen`) is in builds with the feature `top`; `--once` prints a frame in any build.

mod frame;
#[cfg(feature = "top")]
mod screen;
mod session;

use std::io::{self, IsTerminal};
use std::path::Path;

use clap::Args;

use self::session::TopSession;
use super::job_access::{JobAccessArgs, server_at};
use super::print_line;
use crate::error::{Error, Result};

/// Width of a frame without a terminal.
const PLAIN_WIDTH: usize = 160;

const EXAMPLES: &str = "Examples:
  tidegate top 127.0.0.1:8080
  tidegate top http://127.0.0.1:8080 --once
  tidegate top https://jobs.example:8080 --ca-file ca.pem --token-file token

The job serves HTTP if it was started with --http; of several processes ask the first one, which knows of all.
Keys: q ends; the arrow keys, Page Up, Page Down and Home scroll.";

/// Shows a running job in a terminal.
#[derive(Clone, Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct TopArgs {
    /// Address where the job serves HTTP: HOST:PORT or a URL
    #[arg(value_name = "HOST:PORT", default_value = "127.0.0.1:8080")]
    pub place: String,

    /// Token and certificates of the job.
    #[command(flatten)]
    pub access: JobAccessArgs,

    /// Print one frame as text, and end
    #[arg(long)]
    pub once: bool,
}

/// Runs `tidegate top`; returns the exit code.
///
/// # Errors
/// Fails if there is no terminal, or with `--once` if the job does not answer.
pub fn top(args: &TopArgs) -> Result<u8> {
    let Some((address, is_encrypted)) = server_at(&args.place, |_: &Path| false) else {
        return Err(Error::usage(format!("{} is no address", args.place)).help("write it as 127.0.0.1:8080"));
    };
    let mut session = TopSession::new(args.access.target(address, is_encrypted)?);
    if args.once {
        let text = session.ask()?.lines(PLAIN_WIDTH);
        text.iter().for_each(|line| print_line(format_args!("{}", line.text)));
        return Ok(0);
    }
    if !io::stdin().is_terminal() || !io::stdout().is_terminal() {
        return Err(Error::usage("there is no terminal to show the job in").help("print one frame with --once"));
    }
    show(&mut session)
}

#[cfg(feature = "top")]
fn show(session: &mut TopSession) -> Result<u8> {
    screen::show(session)
}

#[cfg(not(feature = "top"))]
fn show(_session: &mut TopSession) -> Result<u8> {
    let error = Error::usage("this tidegate has no terminal view: it was built without the feature `top`");
    Err(error.help("build it with `cargo install tidegate --features top`, or print one frame with --once"))
}
