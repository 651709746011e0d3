//! [`HookedDisk`], a disk around whose operations a function is called.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::operation::{DiskOperation, OperationKind};
use crate::durable::disk::{Disk, DiskFile, Lock};

/// A function that is called for each operation. It calls the operation, once or not at all.
type Hook = dyn Fn(&DiskOperation, &mut dyn FnMut() -> io::Result<()>) -> io::Result<()> + Send + Sync;

/// A disk around each of whose operations a function is called: before it, after it or in its place.
///
/// The function gets the operation and a closure that does it; it fails as the operation is to fail. An operation on an
/// open file has the path by which the file was opened. Listing a directory and opening a file are operations; reading from
/// an open file is none.
///
/// ```
/// use std::io;
/// use std::path::Path;
/// use tidegate::durable::disk::Disk;
/// use tidegate::testing::CrashingDisk;
/// use tidegate::testing::disk::{HookedDisk, OperationKind};
///
/// // A disk whose files are never removed.
/// let disk = HookedDisk::new(CrashingDisk::new().shared(), |operation, act| match operation.kind {
///     OperationKind::Remove => Err(io::ErrorKind::PermissionDenied.into()),
///     _ => act(),
/// });
/// disk.create(Path::new("a")).unwrap();
/// assert_eq!(disk.remove(Path::new("a")).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
/// ```
#[derive(Clone)]
pub struct HookedDisk {
    disk: Arc<dyn Disk>,
    hook: Arc<Hook>,
}

impl HookedDisk {
    /// Wraps a disk.
    pub fn new(
        disk: Arc<dyn Disk>,
        hook: impl Fn(&DiskOperation, &mut dyn FnMut() -> io::Result<()>) -> io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        HookedDisk { disk, hook: Arc::new(hook) }
    }

    /// Returns a shared handle of the disk.
    pub fn shared(&self) -> Arc<dyn Disk> {
        Arc::new(self.clone())
    }

    fn file(&self, path: &Path, file: Box<dyn DiskFile>) -> Box<dyn DiskFile> {
        Box::new(HookedFile { file, path: path.to_owned(), hook: Arc::clone(&self.hook) })
    }
}

/// Does an operation by way of the hook.
fn run<T>(hook: &Hook, kind: OperationKind, path: &Path, mut act: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let mut done = None;
    hook(&DiskOperation { kind, path: path.to_owned() }, &mut || {
        done = Some(act()?);
        Ok(())
    })?;
    done.ok_or_else(|| io::Error::other("the hook has neither done the operation nor failed"))
}

impl fmt::Debug for HookedDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("HookedDisk").field(&self.disk).finish()
    }
}

impl Disk for HookedDisk {
    fn list(&self, directory: &Path) -> io::Result<Vec<String>> {
        run(&*self.hook, OperationKind::List, directory, || self.disk.list(directory))
    }

    fn create_directory(&self, directory: &Path) -> io::Result<()> {
        run(&*self.hook, OperationKind::CreateDirectory, directory, || self.disk.create_directory(directory))
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let file = run(&*self.hook, OperationKind::Create, path, || self.disk.create(path))?;
        Ok(self.file(path, file))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let file = run(&*self.hook, OperationKind::Open, path, || self.disk.open(path))?;
        Ok(self.file(path, file))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        run(&*self.hook, OperationKind::Rename(to.to_owned()), from, || self.disk.rename(from, to))
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        run(&*self.hook, OperationKind::Link(to.to_owned()), from, || self.disk.link(from, to))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        run(&*self.hook, OperationKind::Remove, path, || self.disk.remove(path))
    }

    fn sync_directory(&self, directory: &Path) -> io::Result<()> {
        run(&*self.hook, OperationKind::SyncDirectory, directory, || self.disk.sync_directory(directory))
    }

    fn lock(&self, path: &Path) -> io::Result<Option<Box<dyn Lock>>> {
        let lock = run(&*self.hook, OperationKind::Lock, path, || self.disk.lock(path))?;
        let hooked = |lock| -> Box<dyn Lock> {
            Box::new(HookedLock { lock, path: path.to_owned(), hook: Arc::clone(&self.hook) })
        };
        Ok(lock.map(hooked))
    }
}

struct HookedFile {
    file: Box<dyn DiskFile>,
    path: PathBuf,
    hook: Arc<Hook>,
}

impl fmt::Debug for HookedFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("HookedFile").field(&self.file).finish()
    }
}

impl DiskFile for HookedFile {
    fn length(&self) -> io::Result<u64> {
        self.file.length()
    }

    fn read_at(&self, position: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.file.read_at(position, bytes)
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        run(&*self.hook, OperationKind::Append(bytes.len()), &self.path, || self.file.append(bytes))
    }

    fn truncate(&mut self, length: u64) -> io::Result<()> {
        run(&*self.hook, OperationKind::Truncate(length), &self.path, || self.file.truncate(length))
    }

    fn sync(&mut self) -> io::Result<()> {
        run(&*self.hook, OperationKind::Sync, &self.path, || self.file.sync())
    }
}

struct HookedLock {
    lock: Box<dyn Lock>,
    path: PathBuf,
    hook: Arc<Hook>,
}

impl fmt::Debug for HookedLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("HookedLock").field(&self.lock).finish()
    }
}

impl Lock for HookedLock {
    fn sign(&mut self, who: &str) -> io::Result<()> {
        run(&*self.hook, OperationKind::Sign, &self.path, || self.lock.sign(who))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::durable::test_disk::CrashingDisk;

    /// Every operation of the disk inside is told, in order, and those that the hook refuses do not happen.
    #[test]
    fn the_hook_sees_what_the_disk_inside_does_and_may_refuse_it() {
        let (inside, told) = (CrashingDisk::new(), Arc::new(Mutex::new(Vec::new())));
        let seen = Arc::clone(&told);
        let disk = HookedDisk::new(inside.shared(), move |operation, act| {
            seen.lock().unwrap().push(operation.clone());
            if operation.kind == OperationKind::Remove { Err(io::ErrorKind::PermissionDenied.into()) } else { act() }
        });
        let path = Path::new;
        disk.create_directory(path("d")).unwrap();
        let mut file = disk.create(path("d/a")).unwrap();
        file.append(b"abc").unwrap();
        file.truncate(1).unwrap();
        file.sync().unwrap();
        disk.link(path("d/a"), path("d/b")).unwrap();
        disk.rename(path("d/b"), path("d/c")).unwrap();
        disk.sync_directory(path("d")).unwrap();
        disk.lock(path("d/a")).unwrap().unwrap().sign("me").unwrap();
        assert_eq!(*told.lock().unwrap(), inside.log());
        assert_eq!(disk.remove(path("d/a")).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        assert_eq!(disk.list(path("d")).unwrap(), ["a", "c"]);
        assert_eq!(disk.read(path("d/c")).unwrap(), b"me");
        let last: Vec<_> = told.lock().unwrap().iter().rev().take(3).map(ToString::to_string).collect();
        assert_eq!(last, ["open d/c", "list the directory d", "remove d/a"]);
        assert_eq!(disk.read(path("d/a")).unwrap(), b"me");
    }

    #[test]
    fn a_hook_that_does_nothing_fails_the_operation() {
        let disk = HookedDisk::new(CrashingDisk::new().shared(), |_, _| Ok(()));
        assert!(disk.create(Path::new("a")).unwrap_err().to_string().contains("neither"));
    }
}
