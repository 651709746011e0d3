//! What outlives a process, and the protocol by which it is committed.
//!
//! * The [`journal`] binds each epoch to its inputs: offsets, watermarks, ends.
//! * A [`segment`] has the rows of one durable arrangement that changed in an interval of epochs, as a [`codec`] writes
//!   them; [`compaction`] merges segments.
//! * A [`manifest`] names segments, offsets, watermarks and sink positions that are one consistent cut at an epoch. A
//!   **snapshot** is a manifest and what it names.
//! * A **life** of a state, or incarnation, is the time between two recoveries; lives are numbered from 1. [`state`] is the
//!   directory of all this, and [`recovery`] decides where a life goes on.
//!
//! # The commit protocol
//!
//! **An epoch.** A worker stops adding to it, appends what it has bound to the [`journal::Journal`], and releases its
//! capability for the epoch when the journal says that it is synced. So a frontier past an epoch means that every process
//! has the epoch's inputs on record, and that the epoch can be run again with equal contents. Sinks show an epoch when the
//! frontier has passed it.
//!
//! **A snapshot.** An epoch c is announced when it begins. Every writer holds a capability at c until its part is durable: a
//! source tells where its partitions are at the end of c; a cut has its rows' changes written and synced; a sink waits until
//! nothing at or before c is unshown. When the frontier of the parts has passed c, the manifest is written: to a file beside,
//! synced, given its name, the directory synced. There is no other message, and no worker waits.
//!
//! **A recovery.** See [`state`] for the order. The life goes on from the newest manifest: partitions where it has them, rows
//! through the same exchange as live data, at epoch c; then the journal's epochs after c, with the same contents; then new
//! ones. What sinks have shown, they drop.
//!
//! This layer does not know timely, sources or sinks.

pub mod background;
pub mod codec;
pub mod compaction;
pub mod disk;
pub mod journal;
pub mod look;
pub mod manifest;
#[cfg(test)]
pub(crate) mod memory_disk;
pub mod recovery;
pub mod savepoint;
mod sealed;
pub mod segment;
pub(crate) mod sources;
pub mod state;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use self::disk::Disk;
use self::journal::JournalEnds;
use crate::error::{Error, Result};
use crate::time::Epoch;

/// The error for an act on a file that the disk refused.
#[expect(clippy::needless_pass_by_value, reason = "it is what `map_err` gives")]
pub(crate) fn disk_error(what: &str, place: impl fmt::Display, why: io::Error) -> Error {
    let error = Error::new(what).at(place).because(reason(&why));
    if is_full(&why) { error.help("free some space and start again: it goes on where it was") } else { error }
}

/// Why the disk refused an act, for people.
pub(crate) fn reason(why: &io::Error) -> String {
    if is_full(why) { String::from("the disk is full") } else { why.to_string() }
}

fn is_full(why: &io::Error) -> bool {
    matches!(why.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Names a state for ever: drawn at random when its directory is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct StateId(pub u64);

impl fmt::Display for StateId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// Says whether a later life of the state has begun: an error then, that says so.
pub type StillCurrent = Arc<dyn Fn() -> Result<()> + Send + Sync>;

/// Makes a file have these bytes for good, if the life is still the current one just before: a whole act.
///
/// # Errors
/// That a later life has begun, or what `cannot` makes of what the disk says.
pub(crate) fn replace_while_current(
    disk: &dyn Disk,
    path: &Path,
    bytes: &[u8],
    still_current: &StillCurrent,
    cannot: impl FnOnce(io::Error) -> Error,
) -> Result<()> {
    let mut asked = Ok(());
    let mut still = || {
        asked = still_current();
        asked.is_ok()
    };
    disk.replace_if(path, bytes, &mut still).map_err(cannot)?;
    asked
}

/// The last epoch that a sink has published, as the sink itself knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    /// The incarnation that wrote to the sink last.
    pub incarnation: u64,
    /// The epoch; an earlier incarnation may have published it.
    pub epoch: Epoch,
    /// The ends of the journals of that incarnation at the epoch; empty if it has published no epoch of its own.
    pub ends: JournalEnds,
}

/// One life of a state, as a sink is told of it.
#[derive(Clone)]
pub struct Life {
    /// The state; `None` for a job without one.
    pub state: Option<StateId>,
    /// Which life this is, from 1.
    pub incarnation: u64,
    /// The snapshot that it goes on from, if it goes on from one.
    pub from: Option<Epoch>,
    /// To be asked before anything is shown.
    pub still_current: StillCurrent,
}

impl Life {
    /// The one life of a job without state.
    pub fn without_state() -> Self {
        Life { state: None, incarnation: 1, from: None, still_current: Arc::new(|| Ok(())) }
    }
}

impl fmt::Debug for Life {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Life")
            .field("state", &self.state)
            .field("incarnation", &self.incarnation)
            .finish_non_exhaustive()
    }
}
