//! The commands of the `tidegate` tool, as functions: `main.rs` parses the command line and calls them.
//!
//! A command returns the exit code of a run that completed: 0 done, 1 done with something left out, 130 after a clean
//! stop on Ctrl-C and 143 after one on SIGTERM or SIGHUP. Results go to standard output, everything else to standard
//! error.

mod child_process;
pub mod consume;
mod delimiters;
pub mod demo;
mod job_access;
mod kafka_config;
mod late_sink;
mod log;
pub mod manual;
mod message_format;
pub mod plot;
pub mod produce;
mod progress;
mod query;
pub mod redrive;
mod run;
pub mod snapshot;
mod stop;
mod test_hooks;
pub mod top;
pub mod up;
pub mod why;

use log::print_line;

pub use delimiters::DelimiterArgs;
pub use job_access::JobAccessArgs;
pub use kafka_config::{KafkaConfigArgs, Property};
pub use late_sink::{LateForm, LateSink};
pub use log::note;
pub use message_format::{MessageFormat, MessageFormatArgs, RegistryArgs};
pub use query::{QueryArgs, start, start_with};

/// Parses a duration, such as `100ms` or `2s`.
fn duration(text: &str) -> Result<std::time::Duration, String> {
    humantime::parse_duration(text).map_err(|why| format!("{why}; write it as 100ms, 2s, 5m or 1d"))
}
