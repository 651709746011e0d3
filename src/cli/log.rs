//! Lines on standard error: messages of commands, and the library's log from level info on, or as `TIDEGATE_LOG` says.
//!
//! Lines do not break the live view of a terminal: they are written above it. Log lines are coloured on a terminal,
//! unless `NO_COLOR` is set or the terminal is `dumb`.
//!
//! Invariant: if the reader of standard error has gone away, lines are lost, and nothing fails.

use std::ffi::OsStr;
use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::sync::{Mutex, PoisonError};

use indicatif::ProgressBar;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// Environment variable of the log filter: a level (`off`, `error`, `warn`, `info`, `debug`, `trace`), or levels by
/// module, such as `warn,tidegate::source=debug`.
const VARIABLE: &str = "TIDEGATE_LOG";
const DEFAULT: &str = "info";

/// The live view above which lines are written.
static LIVE_VIEW: Mutex<Option<ProgressBar>> = Mutex::new(None);

/// Sets the live view above which lines are written; `None` if it is gone.
pub(super) fn set_live_view(view: Option<&ProgressBar>) {
    *LIVE_VIEW.lock().unwrap_or_else(PoisonError::into_inner) = view.cloned();
}

/// Writes a line to standard error. Errors are ignored: nobody may be reading it any more.
pub fn note(line: fmt::Arguments<'_>) {
    write_stderr(format!("{line}\n").as_bytes());
}

/// Writes a line to standard output. Errors are ignored: nobody may be reading it any more.
pub(super) fn print_line(line: fmt::Arguments<'_>) {
    let _ = writeln!(io::stdout(), "{line}");
}

/// Installs the log subscriber. A subscriber that the program has installed before is kept.
pub(super) fn init_logging() {
    let wanted = std::env::var(VARIABLE).unwrap_or_else(|_| DEFAULT.to_owned());
    let (filter, wrong) = match wanted.parse::<Targets>() {
        Ok(filter) => (filter, None),
        Err(why) => (Targets::new().with_default(tracing::Level::INFO), Some(why)),
    };
    let coloured = is_live() && is_coloured(std::env::var_os("NO_COLOR").as_deref());
    let lines = tracing_subscriber::fmt::layer().with_target(false).with_ansi(coloured).log_internal_errors(false);
    // Fails if the program has a subscriber of its own: that one is used.
    let _ = tracing_subscriber::registry().with(filter).with(lines.with_writer(|| StderrWriter)).try_init();
    if let Some(why) = wrong {
        tracing::warn!("{VARIABLE}={wanted} is not understood ({why}): level info is logged");
    }
}

/// Returns `true` if standard error is a terminal that supports cursor movement and colours.
pub(super) fn is_live() -> bool {
    io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|terminal| terminal != "dumb")
}

/// Returns `true` unless the variable `NO_COLOR` has a value.
fn is_coloured(no_color: Option<&OsStr>) -> bool {
    no_color.is_none_or(OsStr::is_empty)
}

fn write_stderr(bytes: &[u8]) {
    let view = LIVE_VIEW.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let written = match view {
        Some(view) => view.suspend(|| io::stderr().write_all(bytes)),
        None => io::stderr().write_all(bytes),
    };
    // There is nowhere to report this error.
    let _ = written;
}

/// A writer to standard error, above the live view.
struct StderrWriter;

impl Write for StderrWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        write_stderr(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
