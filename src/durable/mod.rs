//! Durable state, and the commit protocol that keeps sources, state and sinks consistent across crashes.
//!
//! * The [`journal`] commits the input of each epoch: offsets, watermarks, ends of partitions.
//! * A `segment` has the rows of one durable arrangement that changed in an interval of epochs, encoded by a
//!   `codec`; `compaction` merges segments.
//! * A `manifest` names the segments, offsets, watermarks and sink positions that are one consistent cut at an epoch.
//!   A **snapshot** is a manifest and the files that it names.
//! * An **incarnation** of a state is its life between two recoveries; incarnations are numbered from 1. `state` is
//!   the directory that holds all of this, and `recovery` decides from where an incarnation resumes.
//!
//! # The commit protocol
//!
//! **An epoch.** A worker stops adding to it, appends the input that it took to the `journal::Journal`, and releases
//! its capability for the epoch when the journal reports it as synced. So a frontier past an epoch means that the input
//! of the epoch is durable on every process, and that the epoch can be replayed with equal contents. Sinks publish an
//! epoch when the frontier has passed it.
//!
//! **A snapshot.** Its epoch c is announced when c begins. Every writer holds a capability at c until its part is
//! durable: a source reports the offsets of its partitions at the end of c; a checkpointed operator has its changed
//! rows written and synced; a sink waits until everything at or before c is published. When the frontier of these parts
//! has passed c, the manifest is written: to a temporary file, which is synced and renamed; then the directory is
//! synced. There is no other message, and no worker waits.
//!
//! **A recovery.** `state` describes the order of its steps. The incarnation resumes from the newest manifest:
//! partitions at its offsets; rows through the same exchange as live data, at epoch c; then the journal's epochs after
//! c are replayed with the same contents; then new epochs begin. Sinks drop the output that they have already
//! published.
//!
//! This layer does not know timely, sources or sinks.

pub(crate) mod background;
mod clock;
#[cfg(feature = "abomonation")]
pub mod codec;
#[cfg(not(feature = "abomonation"))]
pub(crate) mod codec;
pub(crate) mod compaction;
pub(crate) mod declared_changes;
pub mod disk;
mod envelope;
pub(crate) mod inspect;
pub mod journal;
pub(crate) mod manifest;
pub(crate) mod migration;
pub(crate) mod recovery;
pub(crate) mod savepoint;
mod savepoint_marker;
pub(crate) mod segment;
pub(crate) mod sources;
pub(crate) mod state;
#[cfg(any(test, feature = "testing"))]
pub(crate) mod test_disk;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use self::disk::Disk;
use self::journal::JournalEnds;
use crate::error::{Error, ErrorKind, Result, is_full};
use crate::time::Epoch;

/// The error for a disk operation that failed; it suggests freeing space if the disk is full.
pub(crate) fn disk_error(what: &str, place: impl fmt::Display, why: io::Error) -> Error {
    let (is_full, reason) = (is_full(&why), io_reason(&why));
    let error = Error::new(what).at(place).because(reason).caused_by(why);
    if is_full { error.help("free some space and start again: it goes on where it was") } else { error }
}

/// The cause of a failed disk operation, in words for users.
pub(crate) fn io_reason(why: &io::Error) -> String {
    if is_full(why) { String::from("the disk is full") } else { why.to_string() }
}

/// A state's identity: drawn at random when its directory is created, and never changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct StateId(pub u64);

impl fmt::Display for StateId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// Fails if a later incarnation of the state has begun.
pub type FencingCheck = Arc<dyn Fn() -> Result<()> + Send + Sync>;

/// Returns the cause of an incarnation's error. A later incarnation removes files that an earlier one knows: where a file is
/// missing and a later one has begun, that is the cause.
pub(crate) fn explain(error: Error, still_current: &FencingCheck) -> Error {
    let source = std::error::Error::source(&error).and_then(|source| source.downcast_ref::<io::Error>());
    let is_gone = source.is_some_and(|why| why.kind() == io::ErrorKind::NotFound);
    if is_gone
        && let Err(over) = still_current()
        && over.kind() == ErrorKind::Superseded
    {
        tracing::debug!("a later incarnation has begun, which explains: {error}");
        return over;
    }
    error
}

/// Replaces the contents of a file durably and atomically, if the incarnation is still the current one just before.
///
/// # Errors
/// Fails if a later incarnation has begun, or with the error of `cannot` if the disk operation fails.
pub(crate) fn replace_while_current(
    disk: &dyn Disk,
    path: &Path,
    bytes: &[u8],
    still_current: &FencingCheck,
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
pub struct PublishedEpoch {
    /// The incarnation that wrote to the sink last.
    pub incarnation: u64,
    /// The epoch; an earlier incarnation may have published it.
    pub epoch: Epoch,
    /// The ends of the journals of that incarnation at the epoch; empty if it has published no epoch of its own.
    pub ends: JournalEnds,
}

/// The incarnation of a state that a sink writes for.
#[derive(Clone)]
pub struct Incarnation {
    /// The state; `None` for a job without one.
    pub state: Option<StateId>,
    /// The number of the incarnation, from 1.
    pub incarnation: u64,
    /// The epoch of the snapshot that it resumes from; `None` if it resumes from none.
    pub resumed_from: Option<Epoch>,
    /// Asked before anything is published.
    pub still_current: FencingCheck,
}

impl Incarnation {
    /// The only incarnation of a job without state.
    pub fn without_state() -> Self {
        Incarnation { state: None, incarnation: 1, resumed_from: None, still_current: Arc::new(|| Ok(())) }
    }
}

impl fmt::Debug for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Incarnation")
            .field("state", &self.state)
            .field("incarnation", &self.incarnation)
            .finish_non_exhaustive()
    }
}
