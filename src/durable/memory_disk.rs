//! A disk in memory for tests, which can lose power, fail, and run a hook between two operations.
//!
//! * A file's synced bytes survive a loss of power; of the rest a part may survive, or zeros in its place.
//! * Names survive if their directory was synced; of later changes the first few may survive.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use fastrand::Rng;

use super::disk::{Disk, DiskFile, Lock, parent};

type Hook = Box<dyn FnOnce() + Send>;

/// A disk in memory. Clones share the same disk.
#[derive(Clone, Default)]
pub(crate) struct MemoryDisk {
    inner: Arc<Mutex<MemoryDiskState>>,
}

#[derive(Default)]
struct MemoryDiskState {
    files: Vec<FileContents>,
    names: BTreeMap<PathBuf, usize>,
    /// The names that survive a loss of power.
    safe: BTreeMap<PathBuf, usize>,
    /// Unsynced changes of names, with their directory, in order.
    changes: Vec<(PathBuf, Vec<DirectoryChange>)>,
    /// Number of crashes; files that were opened before the last one are unusable.
    generation: u64,
    /// Number of writing operations until all fail; `None` to never fail.
    acts_left: Option<u64>,
    /// Directory name, number of listings of it to skip, and the hook to run once after the next.
    hook: Option<(&'static str, usize, Hook)>,
}

#[derive(Default)]
struct FileContents {
    bytes: Vec<u8>,
    safe: Vec<u8>,
    locked: bool,
}

#[derive(Clone)]
struct DirectoryChange(PathBuf, Option<usize>);

impl MemoryDisk {
    /// A shared handle.
    pub(crate) fn shared(&self) -> Arc<dyn Disk> {
        Arc::new(self.clone())
    }

    fn inner(&self) -> MutexGuard<'_, MemoryDiskState> {
        self.inner.lock().unwrap()
    }

    /// Ends all processes; with `power`, unsynced data is lost at random too.
    pub(super) fn crash(&self, random: &mut Rng, power: bool) {
        let mut inner = self.inner();
        inner.generation += 1;
        inner.acts_left = None;
        inner.files.iter_mut().for_each(|file| file.locked = false);
        if !power {
            return;
        }
        let survive = random.usize(..=inner.changes.len());
        let changes: Vec<_> = inner.changes.drain(..).take(survive).flat_map(|(_, changes)| changes).collect();
        apply(&mut inner.safe, &changes);
        inner.names = inner.safe.clone();
        for file in &mut inner.files {
            let common = file.safe.iter().zip(&file.bytes).take_while(|(safe, now)| safe == now).count();
            if common == file.safe.len() {
                let survive = random.usize(common..=file.bytes.len());
                if random.bool() {
                    file.bytes.truncate(survive);
                } else {
                    file.bytes[survive..].fill(0);
                }
            } else if random.bool() {
                file.bytes = file.safe.clone();
            }
            file.safe = file.bytes.clone();
        }
    }

    /// Makes all writing operations fail after `acts` more of them.
    pub(super) fn fail_after(&self, acts: u64) {
        self.inner().acts_left = Some(acts);
    }

    /// Runs `hook` once, after a listing of a directory of this name; the first `skip` listings do not count.
    pub(super) fn after_listing(&self, directory: &'static str, skip: usize, hook: impl FnOnce() + Send + 'static) {
        self.inner().hook = Some((directory, skip, Box::new(hook)));
    }

    /// Returns the bytes of a file that would survive a loss of power; `None` if the file would not.
    pub(super) fn safe(&self, path: &Path) -> Option<Vec<u8>> {
        let inner = self.inner();
        inner.safe.get(path).map(|file| inner.files[*file].safe.clone())
    }

    /// Replaces the bytes of a file durably.
    pub(super) fn set(&self, path: &Path, bytes: &[u8]) {
        let mut inner = self.inner();
        let file = inner.names[path];
        inner.files[file].bytes = bytes.to_vec();
        inner.files[file].safe = bytes.to_vec();
    }

    /// Returns the paths of all files.
    pub(super) fn paths(&self) -> Vec<PathBuf> {
        self.inner().names.keys().cloned().collect()
    }
}

impl fmt::Debug for MemoryDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MemoryDisk")
    }
}

fn apply(names: &mut BTreeMap<PathBuf, usize>, changes: &[DirectoryChange]) {
    for DirectoryChange(path, file) in changes {
        match file {
            Some(file) => names.insert(path.clone(), *file),
            None => names.remove(path),
        };
    }
}

impl MemoryDiskState {
    fn act(&mut self) -> io::Result<()> {
        match &mut self.acts_left {
            Some(0) => Err(io::Error::from(io::ErrorKind::StorageFull)),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn change(&mut self, directory: &Path, changes: Vec<DirectoryChange>) {
        apply(&mut self.names, &changes);
        self.changes.push((directory.to_owned(), changes));
    }

    fn find(&self, path: &Path) -> io::Result<usize> {
        self.names.get(path).copied().ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
    }
}

impl Disk for MemoryDisk {
    fn list(&self, directory: &Path) -> io::Result<Vec<String>> {
        let mut inner = self.inner();
        let inside = inner.names.keys().filter(|path| parent(path) == directory);
        let names = inside.map(|path| path.file_name().unwrap().to_str().unwrap().to_owned()).collect();
        let mut due = None;
        if let Some((name, skip, hook)) = inner.hook.take() {
            if !directory.ends_with(name) {
                inner.hook = Some((name, skip, hook));
            } else if skip > 0 {
                inner.hook = Some((name, skip - 1, hook));
            } else {
                due = Some(hook);
            }
        }
        drop(inner);
        if let Some(hook) = due {
            hook();
        }
        Ok(names)
    }

    fn create_directory(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let mut inner = self.inner();
        inner.act()?;
        let file = match inner.names.get(path) {
            Some(file) => *file,
            None => {
                inner.files.push(FileContents::default());
                let file = inner.files.len() - 1;
                inner.change(parent(path), vec![DirectoryChange(path.to_owned(), Some(file))]);
                file
            }
        };
        inner.files[file].bytes.clear();
        Ok(Box::new(MemoryFile { disk: self.clone(), file, generation: inner.generation }))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let inner = self.inner();
        let file = inner.find(path)?;
        Ok(Box::new(MemoryFile { disk: self.clone(), file, generation: inner.generation }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut inner = self.inner();
        inner.act()?;
        let file = inner.find(from)?;
        inner.change(
            parent(to),
            vec![DirectoryChange(from.to_owned(), None), DirectoryChange(to.to_owned(), Some(file))],
        );
        Ok(())
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut inner = self.inner();
        inner.act()?;
        let file = inner.find(from)?;
        if inner.names.contains_key(to) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        inner.change(parent(to), vec![DirectoryChange(to.to_owned(), Some(file))]);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut inner = self.inner();
        inner.act()?;
        inner.find(path)?;
        inner.change(parent(path), vec![DirectoryChange(path.to_owned(), None)]);
        Ok(())
    }

    fn sync_directory(&self, directory: &Path) -> io::Result<()> {
        let mut inner = self.inner();
        inner.act()?;
        let changes = std::mem::take(&mut inner.changes);
        let (now, later): (Vec<_>, Vec<_>) = changes.into_iter().partition(|(changed, _)| changed == directory);
        inner.changes = later;
        for (_, changes) in now {
            apply(&mut inner.safe, &changes);
        }
        Ok(())
    }

    fn lock(&self, path: &Path) -> io::Result<Option<Box<dyn Lock>>> {
        let exists = self.inner().names.contains_key(path);
        if !exists {
            self.create(path)?;
        }
        let mut inner = self.inner();
        let file = inner.find(path)?;
        if std::mem::replace(&mut inner.files[file].locked, true) {
            return Ok(None);
        }
        Ok(Some(Box::new(MemoryLock { disk: self.clone(), file, generation: inner.generation })))
    }
}

#[derive(Debug)]
struct MemoryFile {
    disk: MemoryDisk,
    file: usize,
    generation: u64,
}

impl MemoryFile {
    fn with<T>(&self, act: impl FnOnce(&mut FileContents) -> T) -> io::Result<T> {
        let mut inner = self.disk.inner();
        if inner.generation != self.generation {
            return Err(io::Error::other("the process is gone"));
        }
        Ok(act(&mut inner.files[self.file]))
    }
}

impl DiskFile for MemoryFile {
    fn length(&self) -> io::Result<u64> {
        self.with(|file| file.bytes.len() as u64)
    }

    fn read_at(&self, position: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.with(|file| match file.bytes.get(position as usize..position as usize + bytes.len()) {
            Some(read) => {
                bytes.copy_from_slice(read);
                Ok(())
            }
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        })?
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let acted = self.disk.inner().act();
        // A failing append writes a part.
        let bytes = if acted.is_err() { &bytes[..bytes.len() / 2] } else { bytes };
        self.with(|file| file.bytes.extend_from_slice(bytes))?;
        acted
    }

    fn truncate(&mut self, length: u64) -> io::Result<()> {
        self.disk.inner().act()?;
        self.with(|file| file.bytes.truncate(length as usize))
    }

    fn sync(&mut self) -> io::Result<()> {
        self.disk.inner().act()?;
        self.with(|file| file.safe = file.bytes.clone())
    }
}

#[derive(Debug)]
struct MemoryLock {
    disk: MemoryDisk,
    file: usize,
    generation: u64,
}

impl Lock for MemoryLock {
    fn sign(&mut self, who: &str) -> io::Result<()> {
        self.disk.inner().files[self.file].bytes = who.as_bytes().to_vec();
        Ok(())
    }
}

impl Drop for MemoryLock {
    fn drop(&mut self) {
        let mut inner = self.disk.inner();
        if inner.generation == self.generation {
            inner.files[self.file].locked = false;
        }
    }
}
