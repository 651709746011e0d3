//! The file `SAVEPOINT`, which makes a directory a savepoint and tells of which snapshot.
//!
//! A state's directory knows of savepoints only this: one is not opened as a state, but may be inspected like one.
//!
//! Invariant: a marker is never replaced. Who makes a savepoint writes it last.

use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::clock::now_ms;
use super::disk::Disk;
use super::envelope::Envelope;
use super::manifest::ManifestId;
use super::{StateId, disk_error};
use crate::error::Result;

const KIND: Envelope = Envelope { magic: *b"TGSAVEP", version: 1, name: "savepoint" };
/// The name of the file.
const MARKER_FILE: &str = "SAVEPOINT";

/// The contents of the file `SAVEPOINT`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SavepointMarker {
    /// The state that the savepoint was made of.
    pub(super) state: StateId,
    /// The snapshot's manifest.
    pub(super) manifest: ManifestId,
    /// Wall-clock time of its creation, in milliseconds since 1970; for users.
    made_ms: u64,
    /// The version of the program that made it, for users.
    program: String,
}

impl SavepointMarker {
    /// The marker of a savepoint that is made now.
    pub(super) fn new(state: StateId, manifest: ManifestId) -> SavepointMarker {
        SavepointMarker { state, manifest, made_ms: now_ms(), program: env!("CARGO_PKG_VERSION").to_owned() }
    }

    /// Writes the marker durably into the savepoint's directory.
    ///
    /// # Errors
    /// Fails if there is one already, or if a disk operation fails.
    pub(super) fn write(&self, disk: &dyn Disk, savepoint: &Path) -> Result<()> {
        let cannot = |why| disk_error("cannot write the savepoint", savepoint.display(), why);
        disk.create_new(&savepoint.join(MARKER_FILE), &KIND.seal(self)?).map_err(cannot)
    }

    /// Reads the marker of a directory; `None` if the directory is no savepoint.
    ///
    /// # Errors
    /// Fails if the marker is damaged or in a later format, or if a disk operation fails.
    pub(super) fn read(disk: &dyn Disk, directory: &Path) -> Result<Option<SavepointMarker>> {
        let file = directory.join(MARKER_FILE);
        match disk.read(&file) {
            Err(why) if why.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(why) => Err(disk_error("cannot read the savepoint", file.display(), why)),
            Ok(bytes) => KIND.open(&bytes).map(Some).map_err(|broken| KIND.error_for(broken, file.display())),
        }
    }
}

/// `true` if the directory has a marker, whatever is in it.
///
/// # Errors
/// Fails if the directory cannot be listed.
pub(super) fn is_savepoint(disk: &dyn Disk, directory: &Path) -> io::Result<bool> {
    Ok(disk.list(directory)?.iter().any(|name| name == MARKER_FILE))
}
