//! The lock of a results file, and the copy that an incarnation goes on in.
//!
//! Invariants: the file is locked while it is written, so no other writer of ours touches it. An incarnation that starts
//! although another process has the lock leaves the file to that process, and goes on in a copy that takes over its
//! name. A suspended writer that wakes then appends to a file without a name. `commit.rs` explains why its commits have
//! no effect either.

use std::fmt;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::commit::{Commits, resolved};
use super::errors::{is_locked, missing_file};
use crate::durable::disk::{Disk, DiskFile, Lock, parent};
use crate::durable::{Incarnation, io_reason};
use crate::error::{Error, ErrorKind, Result};
use crate::sink::SinkContext;

/// Number of bytes that are read from a file at once.
const READ_SIZE: usize = 1 << 20;

/// A file that this process may write to.
pub(super) struct LockedFile {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) path: PathBuf,
    pub(super) commits: Commits,
    /// `None` if the file system has no locks, or if another process holds the lock.
    pub(super) lock: Option<Box<dyn Lock>>,
    /// `true` if another process holds the lock, or may hold it: the file is left to that process.
    pub(super) is_of_another: bool,
}

impl LockedFile {
    pub(super) fn lock(path: &Path, at: &SinkContext) -> Result<(LockedFile, Box<dyn DiskFile>)> {
        let place = path.display();
        let failed = |why: &dyn fmt::Display| {
            Error::of(ErrorKind::SinkFailed, "cannot open the results file").at(&place).because(why)
        };
        let path = resolved(path);
        let (disk, commits) = (Arc::clone(&at.disk), Commits::of(&at.disk, &path));
        let missing = disk.open(&path).is_err_and(|why| why.kind() == io::ErrorKind::NotFound);
        // Locking would create the file, which would then look as if it had been emptied.
        if missing
            && at.state.is_some()
            && let Some(commit) = commits.newest()?
        {
            return Err(missing_file(&commits.path(commit.incarnation)).at(place));
        }
        let (lock, is_of_another) = match disk.lock(&path) {
            Ok(Some(lock)) => (Some(lock), false),
            Ok(None) if at.take_over => (None, true),
            Ok(None) => return Err(is_locked(&commits).at(place)),
            // A file system without locks can still be written to. If it is to be taken over, the file is left to a
            // holder that may wake.
            Err(why) if has_no_locks(&why) => (None, at.take_over),
            Err(why) if why.kind() == io::ErrorKind::NotFound => {
                return Err(failed(&format!("there is no directory {}", parent(&path).display()))
                    .help("create the directory, or name another file"));
            }
            Err(why) => return Err(failed(&why).caused_by(why)),
        };
        let target = disk.open(&path).map_err(|why| failed(&why).caused_by(why))?;
        Ok((LockedFile { disk, path, commits, lock, is_of_another }, target))
    }

    /// Copies the first `length` bytes of the file to a new one, and renames that to the file's name.
    pub(super) fn copy(
        &mut self,
        from: &dyn DiskFile,
        length: u64,
        checksum: u32,
        incarnation: &Incarnation,
    ) -> Result<Box<dyn DiskFile>> {
        let failed = |why: io::Error| {
            Error::of(ErrorKind::SinkFailed, "cannot copy the results file")
                .at(self.path.display())
                .because(io_reason(&why))
                .caused_by(why)
        };
        let path = self.commits.path_of_copy(incarnation.incarnation);
        let mut copy = self.disk.create(&path).map_err(failed)?;
        let lock = self.disk.lock(&path).unwrap_or_default();
        let mut copied = crc32fast::Hasher::new();
        let append = |piece: &[u8]| {
            copied.update(piece);
            copy.append(piece)
        };
        read_through(from, 0..length, append).map_err(failed)?;
        if copied.finalize() != checksum {
            return Err(failed(io::Error::other("it was changed meanwhile")));
        }
        copy.sync().map_err(failed)?;
        (incarnation.still_current)()?;
        self.disk.rename(&path, &self.path).map_err(failed)?;
        self.disk.sync_directory(parent(&self.path)).map_err(failed)?;
        (self.lock, self.is_of_another) = (lock, false);
        Ok(copy)
    }
}

fn has_no_locks(why: &io::Error) -> bool {
    why.kind() == io::ErrorKind::Unsupported || why.raw_os_error() == Some(nix::errno::Errno::ENOLCK as i32)
}

/// Reads bytes of a file piece by piece.
pub(super) fn read_through(
    file: &dyn DiskFile,
    bytes: Range<u64>,
    mut each: impl FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let Range { start: mut at, end } = bytes;
    let mut piece = vec![0; READ_SIZE.min(usize::try_from(end.saturating_sub(at)).unwrap_or(READ_SIZE))];
    while at < end {
        let size = piece.len().min(usize::try_from(end - at).unwrap_or(READ_SIZE));
        let piece = &mut piece[..size];
        file.read_at(at, piece)?;
        each(piece)?;
        at += size as u64;
    }
    Ok(())
}
