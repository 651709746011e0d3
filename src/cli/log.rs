//! Lines on standard error: what commands note, and what the library logs from level info on, or as `TIDEGATE_LOG` says.
//!
//! A line does not break the live view of a terminal: while there is one it stands below the lines. Lines of the log are
//! coloured on a terminal, unless `NO_COLOR` is set or the terminal is `dumb`.
//!
//! Invariant: a reader of standard error that has gone away is no failure: the line is lost, and nothing else.

use std::ffi::OsStr;
use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::sync::{Mutex, PoisonError};

use indicatif::ProgressBar;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// The variable that says what is logged: a level (`off`, `error`, `warn`, `info`, `debug`, `trace`), or levels of modules, as
/// `warn,tidegate::source=debug`.
const VARIABLE: &str = "TIDEGATE_LOG";
const DEFAULT: &str = "info";

/// The live view that lines stand above of.
static VIEW: Mutex<Option<ProgressBar>> = Mutex::new(None);

/// Says which live view there is, or that there is none any more.
pub(super) fn above(view: Option<&ProgressBar>) {
    *VIEW.lock().unwrap_or_else(PoisonError::into_inner) = view.cloned();
}

/// Writes a line to standard error. Nobody may be reading it any more; that is no reason to fail.
pub fn note(line: fmt::Arguments<'_>) {
    put(format!("{line}\n").as_bytes());
}

/// Writes a line to standard output. Nobody may be reading it any more; that is no reason to fail.
pub(super) fn say(line: fmt::Arguments<'_>) {
    let _ = writeln!(io::stdout(), "{line}");
}

/// Begins to log. A program that logs by itself already is left as it is.
pub(super) fn begin() {
    let wanted = std::env::var(VARIABLE).unwrap_or_else(|_| DEFAULT.to_owned());
    let (filter, wrong) = match wanted.parse::<Targets>() {
        Ok(filter) => (filter, None),
        Err(why) => (Targets::new().with_default(tracing::Level::INFO), Some(why)),
    };
    let coloured = is_live() && is_coloured(std::env::var_os("NO_COLOR").as_deref());
    let lines = tracing_subscriber::fmt::layer().with_target(false).with_ansi(coloured).log_internal_errors(false);
    // Another subscriber may be there: then it has the say.
    let _ = tracing_subscriber::registry().with(filter).with(lines.with_writer(|| Line)).try_init();
    if let Some(why) = wrong {
        tracing::warn!("{VARIABLE}={wanted} is not understood ({why}): level info is logged");
    }
}

/// `true` if standard error is a terminal that can do more than show lines.
pub(super) fn is_live() -> bool {
    io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|terminal| terminal != "dumb")
}

/// `true` if the variable `NO_COLOR` has no value.
fn is_coloured(no_color: Option<&OsStr>) -> bool {
    no_color.is_none_or(OsStr::is_empty)
}

fn put(bytes: &[u8]) {
    let view = VIEW.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let written = match view {
        Some(view) => view.suspend(|| io::stderr().write_all(bytes)),
        None => io::stderr().write_all(bytes),
    };
    // Nobody is there to be told.
    let _ = written;
}

/// Standard error, above the live view.
struct Line;

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        put(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
