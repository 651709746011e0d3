//! Claims: what an incarnation resumes from.
//!
//! Invariant: a claim is written before its incarnation does anything else. Anything that an older incarnation adds later
//! is in no claim, and ignored.

use serde::{Deserialize, Serialize};

use crate::durable::StateId;
use crate::durable::journal::FileId;
use crate::durable::manifest::{ManifestId, QueryFingerprint};
use crate::time::Epoch;

/// The remedy if files of a state are missing or damaged.
pub(super) const RESTORE_HINT: &str = "restore the state from a copy, or begin a new state and new outputs";

/// A journal file, or the part of one, that counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct AcceptedFile {
    /// The file's identity.
    pub file: FileId,
    /// Length in bytes of the part that counts.
    pub length: u64,
    /// The greatest epoch in that part; `None` if it has no frame.
    pub last: Option<Epoch>,
}

/// The durable record of what an incarnation resumes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Claim {
    /// The state.
    pub state: StateId,
    /// The incarnation that made the claim.
    pub incarnation: u64,
    /// The process that made the claim.
    pub holder: ProcessInfo,
    /// The manifests that were valid and readable.
    pub manifests: Vec<ManifestId>,
    /// The manifest that the incarnation resumes from; `None` if it starts from the beginning.
    pub base: Option<ManifestId>,
    /// The files of the journals of earlier incarnations that count.
    pub journals: Vec<AcceptedFile>,
    /// The greatest epoch found anywhere at the time of the claim.
    pub last_epoch: Epoch,
    /// The fingerprint of the query that resumes.
    pub query: QueryFingerprint,
}

impl Claim {
    /// `true` if a manifest counts: the claim names it, or the claim's incarnation wrote it.
    pub(crate) fn counts(&self, id: ManifestId) -> bool {
        id.incarnation == self.incarnation || self.manifests.contains(&id)
    }
}

/// A description of a process, for users.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProcessInfo {
    /// The process id.
    pub pid: u32,
    /// The host name.
    pub host: String,
    /// Wall-clock time at which it took the state, in milliseconds since 1970.
    pub since_ms: u64,
}
