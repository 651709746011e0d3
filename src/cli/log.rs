//! What the library logs, on standard error: lines from level info on, or as `TIDEGATE_LOG` says.
//!
//! A line does not break the live view of a terminal: while there is one it stands below the lines.

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

/// Begins to log. A program that logs by itself already is left as it is.
pub(super) fn begin() {
    let wanted = std::env::var(VARIABLE).unwrap_or_else(|_| DEFAULT.to_owned());
    let (filter, wrong) = match wanted.parse::<Targets>() {
        Ok(filter) => (filter, None),
        Err(why) => (Targets::new().with_default(tracing::Level::INFO), Some(why)),
    };
    let lines = tracing_subscriber::fmt::layer().with_target(false).with_ansi(io::stderr().is_terminal());
    // Another subscriber may be there: then it has the say.
    let _ = tracing_subscriber::registry().with(filter).with(lines.with_writer(|| Line)).try_init();
    if let Some(why) = wrong {
        tracing::warn!("{VARIABLE}={wanted} is not understood ({why}): level info is logged");
    }
}

/// Standard error, above the live view.
struct Line;

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let view = VIEW.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match view {
            Some(view) => view.suspend(|| io::stderr().write(bytes)),
            None => io::stderr().write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}
