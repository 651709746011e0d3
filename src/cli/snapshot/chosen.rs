//! Choosing the snapshot that a command is about.
//!
//! Invariant: an older snapshot never passes for the newest one, whatever is unreadable or removed meanwhile.

use std::path::Path;
use std::sync::Arc;

use crate::durable::disk::{Disk, OsDisk};
use crate::durable::inspect::{StateSnapshots, inspect_snapshots};
use crate::durable::manifest::{Manifest, list};
use crate::durable::state::StateDir;
use crate::error::{Error, Result};
use crate::time::Epoch;

/// Opens a state directory for reading, without its lock.
pub(super) fn open_for_reading(path: &Path) -> Result<StateDir> {
    let disk: Arc<dyn Disk> = OsDisk::shared();
    StateDir::join(disk, path)
}

/// Returns the snapshot of an epoch, or the newest one.
///
/// # Errors
/// Fails if there is no such snapshot, or it cannot be read.
pub(super) fn choose(dir: &StateDir, epoch: Option<u64>) -> Result<Manifest> {
    let StateSnapshots { mut manifests, unreadable, .. } = inspect_snapshots(dir)?;
    let place = dir.path().display();
    let known: Vec<_> = manifests.iter().map(|manifest| manifest.epoch.to_string()).collect();
    let found = match epoch {
        None => manifests.pop(),
        Some(epoch) => manifests.into_iter().rfind(|manifest| manifest.epoch == Epoch(epoch)),
    };
    match (found, epoch, unreadable.into_iter().next_back()) {
        // An older snapshot must not pass for the newest one.
        (Some(found), None, Some(error)) if !is_newest(dir, &found)? => Err(error),
        (Some(found), ..) => Ok(found),
        (None, _, Some(error)) => Err(error),
        (None, None, _) => Err(Error::new("there is no snapshot yet").at(place).help("run the job for a while")),
        (None, Some(epoch), _) => {
            let error = Error::new(format!("there is no snapshot of epoch {epoch}")).at(place);
            Err(error.because(format!("there are {}", known.join(", "))).help("see `tidegate snapshot ls`"))
        }
    }
}

/// Maximum number of attempts when a job removes files meanwhile.
const TRIES: usize = 10;

/// Runs `act` on the snapshot of an epoch, or on the newest one. If the job removes the newest one before it is opened,
/// tries again with its successor.
pub(super) fn with_snapshot<T>(dir: &StateDir, epoch: Option<u64>, act: impl Fn(&Manifest) -> Result<T>) -> Result<T> {
    for _ in 1..TRIES {
        let manifest = choose(dir, epoch)?;
        let done = act(&manifest);
        let listed = || list(&**dir.disk(), &dir.manifests());
        if done.is_ok() || epoch.is_some() || listed()?.contains(&manifest.id()) {
            return done;
        }
    }
    act(&choose(dir, epoch)?)
}

/// Returns `true` if there is no manifest of a later epoch, readable or not.
fn is_newest(dir: &StateDir, found: &Manifest) -> Result<bool> {
    let ids = list(&**dir.disk(), &dir.manifests())?;
    Ok(ids.iter().all(|id| id.epoch <= found.epoch))
}
