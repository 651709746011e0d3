//! [`StateDir`]: an open state, with the places of its files.
//!
//! Invariant: a state that was opened, not only joined, holds its locks as long as the value lives.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::identity::{DIRECTORIES, StateIdentity, make_identity, read_identity};
use super::incarnation_records::incarnation_of_claim;
use super::lock::{in_use, is_stopped, read_signature, signature, take_lock_over};
use crate::durable::disk::{Disk, Lock};
use crate::durable::recovery::ProcessInfo;
use crate::durable::savepoint_marker::{SavepointMarker, is_savepoint};
use crate::durable::{StateId, disk_error};
use crate::error::{Error, ErrorKind, Result};

/// The file with the job's HTTP address.
const WATCHED_AT: &str = "WATCHED_AT";

/// The directory of a state.
#[derive(Debug)]
pub(crate) struct StateDir {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) path: PathBuf,
    pub(super) id: StateId,
    /// Held as long as the value lives; empty if the state was joined without locking it.
    _locks: Vec<Box<dyn Lock>>,
}

impl StateDir {
    /// Opens a state for a job, creating it if it does not exist, and locks it as long as the value lives. With
    /// `take_over` it also opens a state that another process has locked.
    ///
    /// # Errors
    /// Fails if another process has it locked, if its identity is missing or unreadable, or if a disk operation fails.
    pub(crate) fn open(disk: Arc<dyn Disk>, path: impl Into<PathBuf>, take_over: bool) -> Result<StateDir> {
        let path = path.into();
        let cannot = |why: io::Error| disk_error("cannot open the state", path.display(), why);
        if is_savepoint(&*disk, &path).map_err(cannot)? {
            let error = Error::of(ErrorKind::StateIncompatible, "this is a savepoint, and no state").at(path.display());
            return Err(error.help("begin a new state with it: --state NEW-DIR --from-savepoint DIR"));
        }
        disk.create_directory(&path).map_err(cannot)?;
        let lock = match disk.lock(&path.join("LOCK")).map_err(cannot)? {
            Some(lock) => Some(lock),
            None if take_over => take_lock_over(&*disk, &path).map_err(cannot)?,
            None => return Err(in_use(&*disk, &path)),
        };
        for directory in DIRECTORIES {
            disk.create_directory(&path.join(directory)).map_err(cannot)?;
        }
        let id = match read_identity(&*disk, &path)? {
            Some(identity) => identity.id,
            None => make_identity(&*disk, &path)?.id,
        };
        let second = disk.lock(&path.join("STATE")).map_err(cannot)?;
        if second.is_none() && !take_over {
            return Err(in_use(&*disk, &path));
        }
        let lock = lock.map(|mut lock| lock.sign(&signature(&ProcessInfo::this_process())).map(|()| lock));
        let lock = lock.transpose().map_err(cannot)?;
        Ok(StateDir { disk, path, id, _locks: lock.into_iter().chain(second).collect() })
    }

    /// Opens an existing state or savepoint without locking it: for the other processes of a job, and for inspection.
    ///
    /// # Errors
    /// Fails if there is none, if its identity is unreadable, or if a disk operation fails.
    pub(crate) fn join(disk: Arc<dyn Disk>, path: impl Into<PathBuf>) -> Result<StateDir> {
        let path = path.into();
        match read_identity(&*disk, &path)? {
            Some(StateIdentity { id, .. }) => Ok(StateDir { disk, path, id, _locks: Vec::new() }),
            None => match SavepointMarker::read(&*disk, &path)? {
                Some(SavepointMarker { state: id, .. }) => Ok(StateDir { disk, path, id, _locks: Vec::new() }),
                None => Err(Error::of(ErrorKind::StateMissing, "there is no state here").at(path.display())),
            },
        }
    }

    /// `true` if the directory is a savepoint of a state.
    ///
    /// # Errors
    /// Fails if the directory cannot be listed.
    pub(crate) fn is_savepoint(&self) -> Result<bool> {
        is_savepoint(&*self.disk, &self.path).map_err(self.cannot("read"))
    }

    /// `true` if no incarnation has ever claimed the state or written a journal: a savepoint may then be restored to
    /// it.
    ///
    /// # Errors
    /// Fails if a directory cannot be listed.
    pub(crate) fn is_new(&self) -> Result<bool> {
        let cannot = self.cannot("read");
        let claims = self
            .disk
            .list(&self.records_path())
            .map_err(&cannot)?
            .iter()
            .any(|name| incarnation_of_claim(name).is_some());
        Ok(!claims && self.disk.list(&self.journal()).map_err(&cannot)?.is_empty())
    }

    /// The state's identity.
    pub(crate) fn id(&self) -> StateId {
        self.id
    }

    /// The disk that it is on.
    pub(crate) fn disk(&self) -> &Arc<dyn Disk> {
        &self.disk
    }

    /// The path of its directory.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the process that signed the lock last, and `true` if that process is stopped. `None` if no signature is
    /// readable, or if the process was on this machine and has ended. The lock itself is not tested.
    pub(crate) fn holder(&self) -> Option<(ProcessInfo, bool)> {
        let text = self.disk.read(&self.path.join("LOCK")).ok()?;
        let holder = read_signature(&String::from_utf8_lossy(&text))?;
        if holder.host != ProcessInfo::this_process().host {
            return Some((holder, false));
        }
        let stopped = is_stopped(holder.pid);
        Path::new("/proc").join(holder.pid.to_string()).exists().then_some((holder, stopped))
    }

    /// Records the HTTP address of the job that uses the state; `None` removes the record. It is for users: a failure
    /// is ignored, and the record may be out of date.
    pub(crate) fn record_address(&self, address: Option<&str>) {
        let path = self.path.join(WATCHED_AT);
        let _ = match address {
            Some(address) => self.disk.replace(&path, format!("{address}\n").as_bytes()),
            None => self.disk.remove(&path),
        };
    }

    /// Reads the address that the job recorded; `None` if there is none.
    pub(crate) fn recorded_address(&self) -> Option<String> {
        let told = self.disk.read(&self.path.join(WATCHED_AT)).ok()?;
        String::from_utf8(told).ok().map(|told| told.trim().to_owned())
    }

    /// The directory of the journal.
    pub(crate) fn journal(&self) -> PathBuf {
        self.path.join("journal")
    }

    /// The directory of manifests.
    pub(crate) fn manifests(&self) -> PathBuf {
        self.path.join("manifests")
    }

    /// The directory of segments.
    pub(crate) fn segments(&self) -> PathBuf {
        self.path.join("segments")
    }

    pub(super) fn records_path(&self) -> PathBuf {
        self.path.join("lives")
    }

    pub(super) fn cannot(&self, what: &str) -> impl Fn(io::Error) -> Error {
        let place = self.path.display().to_string();
        let what = format!("cannot {what} the state");
        move |why| disk_error(&what, &place, why)
    }

    /// Removes files, some of which may not exist any more; returns the number that did.
    pub(super) fn remove(&self, paths: impl Iterator<Item = String>) -> io::Result<usize> {
        let mut removed = 0;
        for path in paths {
            match self.disk.remove(&self.path.join(path)) {
                Err(why) if why.kind() == io::ErrorKind::NotFound => {}
                gone => {
                    gone?;
                    removed += 1;
                }
            }
        }
        Ok(removed)
    }
}
