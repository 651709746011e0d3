//! The disk, behind a small trait, so that tests can crash it and another store can take its place.
//!
//! * A [`Disk`] has files in directories. What was written survives a loss of power only when the file is synced, and a
//!   name only when its directory is.
//! * [`Disk::replace_if`], [`Disk::replace`] and [`Disk::create_new`] are whole acts: after a crash there is the old state or
//!   the new one.
//! * A store may have neither [`Disk::rename`] nor [`Disk::link`], as object stores do: then it does those whole acts, and
//!   [`Disk::take_lock_over`], in its own way, and a state needs nothing else. Only files of results are renamed otherwise.
//!
//! Invariant: all I/O of state and of file outputs goes through here, so a test that fails any single act, or loses
//! what was not synced, has tried every crash there can be.

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A place for files.
pub trait Disk: Send + Sync + fmt::Debug + 'static {
    /// The names of the files in a directory, sorted; none if there is no such directory.
    ///
    /// # Errors
    /// As all here: what the store says.
    fn list(&self, directory: &Path) -> io::Result<Vec<String>>;

    /// Makes a directory, and those above it, for good; does nothing if it is there.
    ///
    /// # Errors
    /// What the store says.
    fn create_directory(&self, directory: &Path) -> io::Result<()>;

    /// Makes an empty file, in place of one that is there.
    ///
    /// # Errors
    /// What the store says.
    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;

    /// Opens a file that is there, and leaves it as it is.
    ///
    /// # Errors
    /// What the store says; [`io::ErrorKind::NotFound`] if it is not there.
    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;

    /// Gives a file another name, in place of what has that name.
    ///
    /// # Errors
    /// What the store says; [`io::ErrorKind::Unsupported`] if it has no such thing.
    fn rename(&self, _from: &Path, _to: &Path) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Gives a file a second name.
    ///
    /// # Errors
    /// What the store says; [`io::ErrorKind::AlreadyExists`] if something has that name, [`io::ErrorKind::Unsupported`] if it
    /// has no such thing.
    fn link(&self, _from: &Path, _to: &Path) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Removes a file.
    ///
    /// # Errors
    /// What the store says; [`io::ErrorKind::NotFound`] if it is not there.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Makes the names in a directory survive a loss of power.
    ///
    /// # Errors
    /// What the store says.
    fn sync_directory(&self, directory: &Path) -> io::Result<()>;

    /// Locks a file, which is made if it is missing, until what is returned is dropped. `None` if another has the lock.
    ///
    /// # Errors
    /// What the store says.
    fn lock(&self, path: &Path) -> io::Result<Option<Box<dyn Lock>>>;

    /// All bytes of a file.
    ///
    /// # Errors
    /// What the store says.
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        let file = self.open(path)?;
        let mut bytes = vec![0; usize::try_from(file.length()?).map_err(io::Error::other)?];
        file.read_at(0, &mut bytes)?;
        Ok(bytes)
    }

    /// Makes a file have these bytes for good: the old ones or the new ones are there, whenever a crash comes.
    ///
    /// # Errors
    /// What the store says; the old file is then still there.
    fn replace(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        self.replace_if(path, bytes, &mut || true).map(drop)
    }

    /// As [`Disk::replace`], if `still` holds when all but the last act is done; answers whether it did.
    ///
    /// # Errors
    /// What the store says; the old file is then still there, or the new one is.
    fn replace_if(&self, path: &Path, bytes: &[u8], still: &mut dyn FnMut() -> bool) -> io::Result<bool> {
        let beside = self.write_beside(path, bytes)?;
        if !still() {
            // It is in nobody's way, and may be the other's to remove.
            let _ = self.remove(&beside);
            return Ok(false);
        }
        self.rename(&beside, path)?;
        self.sync_directory(parent(path)).map(|()| true)
    }

    /// Locks a file that another has locked, from which that one is never told; `own` is a name beside it that nobody else
    /// has. `None` if even that is locked.
    ///
    /// # Errors
    /// What the store says.
    fn take_lock_over(&self, path: &Path, own: &Path) -> io::Result<Option<Box<dyn Lock>>> {
        let lock = self.lock(own)?;
        if lock.is_some() {
            self.rename(own, path)?;
            self.sync_directory(parent(path))?;
        }
        Ok(lock)
    }

    /// Makes a file with these bytes for good, unless there is one: whoever comes first wins.
    ///
    /// # Errors
    /// What the store says; [`io::ErrorKind::AlreadyExists`] if it is there.
    fn create_new(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let beside = self.write_beside(path, bytes)?;
        let linked = self.link(&beside, path);
        self.remove(&beside)?;
        linked?;
        self.sync_directory(parent(path))
    }

    /// Writes and syncs a file beside another one, under a name of its own: see [`is_temporary`].
    ///
    /// # Errors
    /// What the store says.
    fn write_beside(&self, path: &Path, bytes: &[u8]) -> io::Result<PathBuf> {
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

/// How the names of files end that are being written beside another one.
const TEMPORARY: &str = ".temporary";

/// Whether a file of this name is what [`Disk::replace`] or [`Disk::create_new`] had not finished.
pub fn is_temporary(name: &str) -> bool {
    name.ends_with(TEMPORARY)
}

/// The directory that a path is in.
pub fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// An open file.
pub trait DiskFile: Send + fmt::Debug {
    /// How many bytes it has.
    ///
    /// # Errors
    /// What the store says.
    fn length(&self) -> io::Result<u64>;

    /// Fills `bytes` with those from `position` on.
    ///
    /// # Errors
    /// What the store says; [`io::ErrorKind::UnexpectedEof`] if there are not so many.
    fn read_at(&self, position: u64, bytes: &mut [u8]) -> io::Result<()>;

    /// Adds bytes at the end. When it fails, some of them may be there.
    ///
    /// # Errors
    /// What the store says.
    fn append(&mut self, bytes: &[u8]) -> io::Result<()>;

    /// Drops everything after so many bytes.
    ///
    /// # Errors
    /// What the store says.
    fn cut(&mut self, length: u64) -> io::Result<()>;

    /// Makes its bytes survive a loss of power. Its name is another matter.
    ///
    /// # Errors
    /// What the store says.
    fn sync(&mut self) -> io::Result<()>;
}

/// A lock, until it is dropped.
pub trait Lock: Send + Sync + fmt::Debug {
    /// Writes who holds it, for those who find it held.
    ///
    /// # Errors
    /// What the store says.
    fn sign(&mut self, who: &str) -> io::Result<()>;
}

/// The operating system's files.
#[derive(Clone, Copy, Debug, Default)]
pub struct OsDisk;

impl OsDisk {
    /// It, as most need it.
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
            // To read is all that many need.
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
    /// Where appending goes on.
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

    fn cut(&mut self, length: u64) -> io::Result<()> {
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
