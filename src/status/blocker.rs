//! Causes that hold back a window, or the job, and their text; [`why`](super::why()) finds them.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The causes that hold back a window, or the job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Why {
    /// The end of the window in question, if one was given.
    pub window_end: Option<String>,
    /// A summary in one line.
    pub summary: String,
    /// The causes, the first one first; empty if nothing holds it back.
    pub holds: Vec<Blocker>,
}

/// One cause that holds something back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Blocker {
    /// The kind of the cause.
    pub cause: BlockerKind,
    /// The name of the process, partition, sink and so on: `process 2`, `partition 3 of transactions`, `sink totals`.
    pub name: String,
    /// Milliseconds since it began to hold back, if known.
    pub since_ms: Option<u64>,
    /// The problem, as a phrase that follows the name.
    pub says: String,
    /// The suggested remedy.
    pub help: String,
}

/// The kinds of causes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum BlockerKind {
    /// A process sends no heartbeats.
    Process,
    /// Two running processes do not hear each other.
    Connection,
    /// A worker's loop makes no progress, or the worker still replays the journal.
    Worker,
    /// A partition holds back the watermark.
    Partition,
    /// The source has no partition that could move the watermark.
    Source,
    /// The journal is not synced.
    Sync,
    /// A step is behind.
    Step,
    /// A sink has not published what it was given.
    Sink,
    /// A snapshot is not on disk.
    Snapshot,
}

impl fmt::Display for Blocker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.name, self.says)?;
        if let Some(since) = self.since_ms {
            write!(f, ", since {}", ago(since))?;
        }
        write!(f, ": {}", self.help)
    }
}

/// Formats the summary, and then a line for each cause.
impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.summary)?;
        for (number, hold) in (1..).zip(&self.holds) {
            write!(f, "\n  {number}. {hold}")?;
        }
        Ok(())
    }
}

/// Formats a duration.
pub(super) fn ago(millis: u64) -> String {
    if millis < 10_000 {
        return format!("{}.{} s", millis / 1_000, millis % 1_000 / 100);
    }
    humantime::format_duration(Duration::from_secs(millis / 1_000)).to_string()
}
