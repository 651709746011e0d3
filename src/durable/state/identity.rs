//! The identity of a state, in its file `STATE`, and the directories that it is made with.
//!
//! Invariant: the identity is written once; a directory that has files of a state and no identity is refused.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::durable::clock::now_ms;
use crate::durable::disk::{Disk, is_temporary};
use crate::durable::envelope::Envelope;
use crate::durable::{StateId, disk_error};
use crate::error::{Error, ErrorKind, Result};

const IDENTITY: Envelope = Envelope { magic: *b"TGSTATE", version: 1, name: "identity of the state" };

/// The subdirectories of a state.
pub(super) const DIRECTORIES: [&str; 4] = ["lives", "journal", "manifests", "segments"];

/// The contents of the file `STATE`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct StateIdentity {
    pub(super) id: StateId,
    /// Wall-clock time of its creation, in milliseconds since 1970; for users.
    pub(super) made_ms: u64,
    /// The version of the program that made it, for users.
    pub(super) program: String,
}

pub(super) fn read_identity(disk: &dyn Disk, path: &Path) -> Result<Option<StateIdentity>> {
    let file = path.join("STATE");
    match disk.read(&file) {
        Err(why) if why.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(why) => Err(disk_error("cannot read the identity of the state", file.display(), why)),
        Ok(bytes) => {
            let identity = IDENTITY.open(&bytes);
            identity.map(Some).map_err(|broken| IDENTITY.error_for(broken, file.display()))
        }
    }
}

pub(super) fn make_identity(disk: &dyn Disk, path: &Path) -> Result<StateIdentity> {
    let cannot = |why: io::Error| disk_error("cannot make the state", path.display(), why);
    for directory in DIRECTORIES {
        let names = disk.list(&path.join(directory)).map_err(cannot)?;
        if let Some(name) = names.iter().find(|name| !is_temporary(name)) {
            return Err(Error::of(ErrorKind::StateDamaged, "the identity of the state is missing")
                .at(path.join("STATE").display())
                .because(format!("there is {directory}/{name}"))
                .help("restore the state from a copy, or begin a new one elsewhere"));
        }
    }
    let program = env!("CARGO_PKG_VERSION").to_owned();
    let identity = StateIdentity { id: StateId(random()), made_ms: now_ms(), program };
    match disk.create_new(&path.join("STATE"), &IDENTITY.seal(&identity)?) {
        // The process that came first has written the identity.
        Err(why) if why.kind() == io::ErrorKind::AlreadyExists => {}
        made => made.map_err(cannot)?,
    }
    read_identity(disk, path)?.ok_or_else(|| Error::new("the state went away while it was made").at(path.display()))
}

/// A random number that no other process draws: the keys of a hasher are random.
fn random() -> u64 {
    let mut hasher = RandomState::new().build_hasher();
    hasher.write_u64(now_ms());
    hasher.write_u32(std::process::id());
    hasher.finish()
}
