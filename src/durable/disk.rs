//! The file system behind a small trait, so that tests can crash it and another store can replace it.
//!
//! * A [`Disk`] has files in directories. Written bytes survive a loss of power only after the file is synced, and a
//!   name only after its directory is synced.
//! * [`Disk::replace_if`], [`Disk::replace`] and [`Disk::create_new`] are atomic: after a crash either the old state or
//!   the new one is there.
//! * A store may lack [`Disk::rename`] and [`Disk::link`], as object stores do. It then implements the atomic
//!   operations and [`Disk::take_over_lock`] itself, and a state needs nothing else. Only files of results are renamed
//!   otherwise.
//!
//! Invariant: all I/O of state and of file sinks goes through here, so a test that fails any single operation, or loses
//! what was not synced, covers every possible crash.

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A file system, or a store that can act as one.
pub trait Disk: Send + Sync + fmt::Debug + 'static {
    /// Lists the names of the files in a directory, sorted; empty if the directory does not exist.
    ///
    /// # Errors
    /// Fails with the error of the store, like all methods here.
    fn list(&self, directory: &Path) -> io::Result<Vec<String>>;

    /// Creates a directory and its missing parents durably; does nothing if it exists.
    ///
    /// # Errors
    /// Fails with the error of the store.
    fn create_directory(&self, directory: &Path) -> io::Result<()>;

    /// Creates an empty file, replacing an existing one.
    ///
    /// # Errors
    /// Fails with the error of the store.
    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;

    /// Opens an existing file, and leaves its contents alone.
    ///
    /// # Errors
    /// Fails with the error of the store; [`io::ErrorKind::NotFound`] if the file does not exist.
    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;

    /// Renames a file, replacing a file of the new name.
    ///
    /// # Errors
    /// Fails with the error of the store; [`io::ErrorKind::Unsupported`] if the store cannot rename.
    fn rename(&self, _from: &Path, _to: &Path) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Gives a file a second name (a hard link).
    ///
    /// # Errors
    /// Fails with the error of the store; [`io::ErrorKind::AlreadyExists`] if the name is taken,
    /// [`io::ErrorKind::Unsupported`] if the store has no links.
    fn link(&self, _from: &Path, _to: &Path) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Removes a file.
    ///
    /// # Errors
    /// Fails with the error of the store; [`io::ErrorKind::NotFound`] if the file does not exist.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Makes the names in a directory survive a loss of power.
    ///
    /// # Errors
    /// Fails with the error of the store.
    fn sync_directory(&self, directory: &Path) -> io::Result<()>;

    /// Locks a file, creating it if it is missing, until the result is dropped; `None` if another process holds the
    /// lock.
    ///
    /// # Errors
    /// Fails with the error of the store.
    fn lock(&self, path: &Path) -> io::Result<Option<Box<dyn Lock>>>;

    /// Reads a whole file.
    ///
    /// # Errors
    /// Fails with the error of the store.
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        let file = self.open(path)?;
        let mut bytes = vec![0; usize::try_from(file.length()?).map_err(io::Error::other)?];
        file.read_at(0, &mut bytes)?;
        Ok(bytes)
    }

    /// Replaces the contents of a file durably and atomically: after a crash the file has either the old bytes or the
    /// new.
    ///
    /// # Errors
    /// Fails with the error of the store; either the old file or the new one is then there.
    fn replace(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        self.replace_if(path, bytes, &mut || true).map(drop)
    }

    /// Like [`Disk::replace`], but asks `still` just before the final step; returns `false`, with the old file in
    /// place, if that says no.
    ///
    /// # Errors
    /// Fails with the error of the store; either the old file or the new one is then there.
    fn replace_if(&self, path: &Path, bytes: &[u8], still: &mut dyn FnMut() -> bool) -> io::Result<bool> {
        let beside = self.write_temporary(path, bytes)?;
        if !still() {
            // A file beside that is never renamed is ignored, and the later incarnation may remove it first.
            let _ = self.remove(&beside);
            return Ok(false);
        }
        self.rename(&beside, path)?;
        self.sync_directory(parent(path)).map(|()| true)
    }

    /// Takes the lock of a file away from its holder, who is not told. `own` is a name in the same directory that
    /// nobody else uses: it is locked and renamed to `path`. `None` if even `own` is locked.
    ///
    /// # Errors
    /// Fails with the error of the store.
    fn take_over_lock(&self, path: &Path, own: &Path) -> io::Result<Option<Box<dyn Lock>>> {
        let lock = self.lock(own)?;
        if lock.is_some() {
            self.rename(own, path)?;
            self.sync_directory(parent(path))?;
        }
        Ok(lock)
    }

    /// Creates a file with these bytes durably and atomically, unless it exists: the first caller wins.
    ///
    /// # Errors
    /// Fails with the error of the store; [`io::ErrorKind::AlreadyExists`] if the file exists.
    fn create_new(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let beside = self.write_temporary(path, bytes)?;
        let linked = self.link(&beside, path);
        self.remove(&beside)?;
        linked?;
        self.sync_directory(parent(path))
    }

    /// Writes and syncs a file of a unique name in the directory of `path`: see `is_temporary`.
    ///
    /// # Errors
    /// Fails with the error of the store.
    fn write_temporary(&self, path: &Path, bytes: &[u8]) -> io::Result<PathBuf> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let (count, process) = (COUNT.fetch_add(1, Ordering::Relaxed), std::process::id());
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{process}-{count}{TEMPORARY}"));
        let beside = path.with_file_name(name);
        let mut file = self.create(&beside)?;
        file.append(bytes)?;
        file.sync()?;
        Ok(beside)
    }
}

/// Suffix of files that are later renamed or linked to their final name.
const TEMPORARY: &str = ".temporary";

/// `true` if a file of this name was left by an unfinished [`Disk::replace`] or [`Disk::create_new`].
pub(crate) fn is_temporary(name: &str) -> bool {
    name.ends_with(TEMPORARY)
}

/// The directory of a path; `.` for a bare file name.
pub(crate) fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// An open file.
pub trait DiskFile: Send + fmt::Debug {
    /// The length of the file in bytes.
    ///
    /// # Errors
    /// Fails with the error of the store.
    fn length(&self) -> io::Result<u64>;

    /// Fills `bytes` from offset `position` on.
    ///
    /// # Errors
    /// Fails with the error of the store; [`io::ErrorKind::UnexpectedEof`] if the file ends before `bytes` is full.
    fn read_at(&self, position: u64, bytes: &mut [u8]) -> io::Result<()>;

    /// Appends bytes. If it fails, some of them may have been written.
    ///
    /// # Errors
    /// Fails with the error of the store.
    fn append(&mut self, bytes: &[u8]) -> io::Result<()>;

    /// Truncates the file to `length` bytes.
    ///
    /// # Errors
    /// Fails with the error of the store.
    fn truncate(&mut self, length: u64) -> io::Result<()>;

    /// Makes the file's bytes survive a loss of power; the file's name needs [`Disk::sync_directory`].
    ///
    /// # Errors
    /// Fails with the error of the store.
    fn sync(&mut self) -> io::Result<()>;
}

/// A lock on a file, released when dropped.
pub trait Lock: Send + Sync + fmt::Debug {
    /// Writes the holder's description into the locked file, for processes that find it locked.
    ///
    /// # Errors
    /// Fails with the error of the store.
    fn sign(&mut self, who: &str) -> io::Result<()>;
}

/// The operating system's file system.
#[derive(Clone, Copy, Debug, Default)]
pub struct OsDisk;

impl OsDisk {
    /// A shared handle.
    pub fn shared() -> Arc<dyn Disk> {
        Arc::new(OsDisk)
    }
}

impl Disk for OsDisk {
    fn list(&self, directory: &Path) -> io::Result<Vec<String>> {
        let entries = match fs::read_dir(directory) {
            Err(why) if why.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry?;
            if entry.file_type()?.is_file() {
                names.push(entry.file_name().to_string_lossy().into_owned());
            }
        }
        names.sort();
        Ok(names)
    }

    fn create_directory(&self, directory: &Path) -> io::Result<()> {
        if directory.is_dir() {
            return Ok(());
        }
        if let Some(above) = directory.parent().filter(|above| !above.as_os_str().is_empty()) {
            self.create_directory(above)?;
        }
        match fs::create_dir(directory) {
            Err(why) if why.kind() == io::ErrorKind::AlreadyExists && directory.is_dir() => {}
            made => made?,
        }
        self.sync_directory(parent(directory))
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let file = fs::OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path)?;
        Ok(Box::new(OsFile { file, length: 0 }))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let file = match fs::OpenOptions::new().read(true).write(true).open(path) {
            // Many callers only read.
            Err(why) if why.kind() == io::ErrorKind::PermissionDenied => fs::File::open(path)?,
            file => file?,
        };
        let length = file.metadata()?.len();
        Ok(Box::new(OsFile { file, length }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::hard_link(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn sync_directory(&self, directory: &Path) -> io::Result<()> {
        fs::File::open(directory)?.sync_all()
    }

    fn lock(&self, path: &Path) -> io::Result<Option<Box<dyn Lock>>> {
        let file = fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Box::new(OsLock(file)))),
            Err(fs::TryLockError::WouldBlock) => Ok(None),
            Err(fs::TryLockError::Error(why)) => Err(why),
        }
    }
}

#[derive(Debug)]
struct OsFile {
    file: fs::File,
    /// Position at which the next append writes.
    length: u64,
}

impl DiskFile for OsFile {
    fn length(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn read_at(&self, position: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(bytes, position)
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, self.length)?;
        self.length += bytes.len() as u64;
        Ok(())
    }

    fn truncate(&mut self, length: u64) -> io::Result<()> {
        self.file.set_len(length)?;
        self.length = length;
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        self.file.sync_data()
    }
}

#[derive(Debug)]
struct OsLock(fs::File);

impl Lock for OsLock {
    fn sign(&mut self, who: &str) -> io::Result<()> {
        self.0.set_len(0)?;
        self.0.write_all_at(who.as_bytes(), 0)
    }
}

impl Drop for OsLock {
    /// Unlocks the file. To close it is not enough: a child process that another thread is starting has a copy of the
    /// descriptor until it runs its program, and would keep the lock for that moment.
    fn drop(&mut self) {
        // Where it fails, the lock ends with the last copy.
        let _ = self.0.unlock();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_ends_with_its_holder_whoever_has_a_copy_of_its_descriptor() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("LOCK");
        let file = fs::File::create(&path).unwrap();
        file.try_lock().unwrap();
        // What a child process has between its start and its program.
        let copy = file.try_clone().unwrap();
        let lock = OsLock(file);
        assert!(OsDisk::shared().lock(&path).unwrap().is_none());
        drop(lock);
        assert!(OsDisk::shared().lock(&path).unwrap().is_some());
        drop(copy);
    }
}
