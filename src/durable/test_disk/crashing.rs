//! [`CrashingDisk`], the disk in memory of all tests.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::operation::{DiskOperation, OperationKind};
use crate::durable::disk::{Disk, DiskFile, Lock, parent};

/// An in-memory disk that crashes on demand, and loses what a real disk may lose. Clones are the same disk.
///
/// * An **operation** is a call that changes something: it creates, appends to, truncates, syncs, renames, links,
///   removes or locks a file, or creates or syncs a directory. Operations are numbered from 0 and kept in a
///   [log](CrashingDisk::log).
/// * The disk **crashes** at an operation: it may have happened wholly, in part or not at all; it and every call after
///   it fail. Operations can also [fail](CrashingDisk::fail_at) without a crash, and a disk be
///   [full](CrashingDisk::set_room).
/// * The [survivors](CrashingDisk::survivors) are what is there after a loss of power: everything that was synced, and
///   of the rest a choice that depends on a seed.
/// * The disk **lies** on demand: a [sync fails](CrashingDisk::lose_sync) and drops the data that it was to sync, while
///   later ones succeed; a [directory is stale](CrashingDisk::stale_from), and lists its former contents; a
///   [lock](CrashingDisk::free_locks) is granted to everybody, or [lost](CrashingDisk::lose_locks) by its holder.
///
/// Invariants, which are those of a real disk and no more: bytes survive if their file was synced after they were
/// written, a name if its directory was synced after it was given. Of what was not synced, each append, truncation,
/// name and removal may be kept or lost, independently of those before and after it; an append may be torn, with
/// nothing, zeros or other bytes in its place. A rename or a link is never torn. Locks end with the process that holds
/// them. Only a disk that was told to lie breaks these.
#[derive(Clone, Default)]
pub struct CrashingDisk(Arc<Mutex<DiskState>>);

#[derive(Clone, Default)]
struct DiskState {
    /// Contents of all files that ever had a name, by number.
    files: Vec<Contents>,
    /// Names that a running program sees.
    names: Names,
    /// Names that survive in any case.
    synced: Names,
    /// Changes of names since their directory was synced.
    waiting: Vec<NameChange>,
    locked: BTreeSet<usize>,
    log: Vec<DiskOperation>,
    crash_at: Option<usize>,
    fail_at: Option<usize>,
    fail_from: Option<usize>,
    crashed: bool,
    room: Option<u64>,
    /// Number of syncs of files and directories.
    syncs: usize,
    lost_sync: Option<(usize, SyncLoss)>,
    stale: StaleListing,
    locks_are_free: bool,
}

/// Fate of bytes that a failed sync has dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncLoss {
    /// Reads return the bytes until the power is lost, as if nothing were wrong.
    Later,
    /// The bytes are gone at once.
    AtOnce,
}

/// Stale listings of directories, as seen by a process that is started after a kill.
#[derive(Clone, Default)]
struct StaleListing {
    /// Number of the operation from which on changes are hidden from the next process.
    from: Option<usize>,
    /// Paths of all files before that operation.
    before: Option<BTreeSet<PathBuf>>,
    /// Files that exist but are not listed.
    hidden: BTreeSet<PathBuf>,
    /// Files that are listed but do not exist.
    ghosts: BTreeSet<PathBuf>,
    /// Number of the operation from which on directories list what exists.
    until: Option<usize>,
}

#[derive(Clone, Default)]
struct Names {
    directories: BTreeSet<PathBuf>,
    files: BTreeMap<PathBuf, usize>,
}

/// A change of the names in a directory.
#[derive(Clone)]
enum NameChange {
    Directory(PathBuf),
    Put(PathBuf, usize),
    Move(PathBuf, PathBuf, usize),
    Drop(PathBuf),
}

impl NameChange {
    /// `true` if syncing this directory makes the change durable.
    fn is_of(&self, directory: &Path) -> bool {
        let is_in = |path: &Path| parent(path) == directory;
        match self {
            NameChange::Directory(path) | NameChange::Put(path, _) | NameChange::Drop(path) => is_in(path),
            NameChange::Move(from, to, _) => is_in(from) || is_in(to),
        }
    }
}

impl Names {
    fn apply(&mut self, naming: &NameChange) {
        match naming {
            NameChange::Directory(path) => {
                self.directories.insert(path.clone());
            }
            NameChange::Put(path, file) => {
                self.files.insert(path.clone(), *file);
            }
            NameChange::Move(from, to, file) => {
                // The former name may not have survived.
                if self.files.get(from) == Some(file) {
                    self.files.remove(from);
                }
                self.files.insert(to.clone(), *file);
            }
            NameChange::Drop(path) => {
                self.files.remove(path);
            }
        }
    }

    fn has_directory(&self, path: &Path) -> bool {
        path == Path::new(".") || path == Path::new("/") || self.directories.contains(path)
    }
}

/// Contents of a file.
#[derive(Clone, Default)]
struct Contents {
    bytes: Vec<u8>,
    synced: Vec<u8>,
    waiting: Vec<ContentChange>,
}

/// A change of a file's bytes.
#[derive(Clone)]
enum ContentChange {
    Write(usize, Vec<u8>),
    Truncate(usize),
}

fn apply(bytes: &mut Vec<u8>, change: &ContentChange) {
    match change {
        ContentChange::Write(at, new) => {
            if bytes.len() < at + new.len() {
                bytes.resize(at + new.len(), 0);
            }
            bytes[*at..at + new.len()].copy_from_slice(new);
        }
        ContentChange::Truncate(length) => bytes.resize(*length, 0),
    }
}

impl Contents {
    fn change(&mut self, change: ContentChange) {
        apply(&mut self.bytes, &change);
        self.waiting.push(change);
    }

    fn sync(&mut self) {
        for change in self.waiting.drain(..) {
            apply(&mut self.synced, &change);
        }
    }

    /// Drops what was not synced: no later sync keeps it.
    fn lose(&mut self, loss: SyncLoss) {
        self.waiting.clear();
        if loss == SyncLoss::AtOnce {
            self.bytes = self.synced.clone();
        }
    }

    fn survive(&mut self, random: &mut SeededRandom) {
        let mut bytes = std::mem::take(&mut self.synced);
        let fate = random.fate();
        let upto = random.below(self.waiting.len() + 1);
        for (at, change) in self.waiting.drain(..).enumerate() {
            match fate {
                Fate::Lost => {}
                Fate::Kept => apply(&mut bytes, &change),
                Fate::Upto if at < upto => apply(&mut bytes, &change),
                Fate::Upto if at == upto => apply(&mut bytes, &random.torn(change)),
                Fate::Upto => {}
                Fate::Each => match random.below(4) {
                    0 => {}
                    1 => apply(&mut bytes, &random.torn(change)),
                    _ => apply(&mut bytes, &change),
                },
            }
        }
        *self = Contents { bytes: bytes.clone(), synced: bytes, waiting: Vec::new() };
    }
}

/// Fate of changes that were not synced.
#[derive(Clone, Copy)]
enum Fate {
    Lost,
    Kept,
    /// Those before a random one of them are kept.
    Upto,
    /// Each is kept, lost or torn, independently of the others.
    Each,
}

/// Random decisions about a crash, by seed.
struct SeededRandom {
    seed: u64,
    random: fastrand::Rng,
}

impl SeededRandom {
    fn new(seed: u64) -> Self {
        SeededRandom { seed, random: fastrand::Rng::with_seed(seed) }
    }

    fn below(&mut self, bound: usize) -> usize {
        self.random.usize(..bound.max(1))
    }

    fn fate(&mut self) -> Fate {
        match (self.seed, self.below(8)) {
            (0, _) | (2.., 0) => Fate::Lost,
            (1, _) | (2.., 1) => Fate::Kept,
            (_, 2..=4) => Fate::Upto,
            _ => Fate::Each,
        }
    }

    /// Returns a change of which only a part happened.
    fn torn(&mut self, change: ContentChange) -> ContentChange {
        let ContentChange::Write(at, mut bytes) = change else { return change };
        let middle = self.below(bytes.len() + 1);
        match self.below(4) {
            // The file was made longer, but the bytes never arrived.
            0 => bytes[middle..].fill(0),
            1 => bytes[..middle].fill(0),
            2 => bytes[middle..].iter_mut().for_each(|byte| *byte = self.random.u8(..)),
            _ => bytes.truncate(middle),
        }
        ContentChange::Write(at, bytes)
    }
}

/// Result of an operation.
#[derive(Clone, Copy, PartialEq, Eq)]
enum OperationOutcome {
    Done,
    Crashing,
    Failing,
    /// There is no room for it.
    Full,
}

impl DiskState {
    /// Logs an operation, and decides its result.
    fn begin(&mut self, kind: OperationKind, path: &Path) -> io::Result<OperationOutcome> {
        self.running()?;
        let number = self.log.len();
        if self.stale.from == Some(number) {
            self.stale.before = Some(self.names.files.keys().cloned().collect());
        }
        self.log.push(DiskOperation { kind, path: path.to_owned() });
        if self.fail_at.is_some_and(|at| at == number) {
            return Ok(OperationOutcome::Failing);
        }
        if self.fail_from.is_some_and(|from| from <= number) {
            return Ok(OperationOutcome::Full);
        }
        if self.crash_at.is_some_and(|at| at <= number) {
            self.crashed = true;
            return Ok(OperationOutcome::Crashing);
        }
        Ok(OperationOutcome::Done)
    }

    /// Counts a sync; `Some` if it fails and drops the data that it was to sync.
    fn loses_sync(&mut self) -> Option<SyncLoss> {
        self.syncs += 1;
        let (number, loss) = self.lost_sync?;
        (number + 1 == self.syncs).then_some(loss)
    }

    /// Returns the paths of the files in a directory, as it lists them now.
    fn listed(&self, directory: &Path) -> BTreeSet<&Path> {
        let is_inside = |path: &&Path| parent(path) == directory;
        let mut paths: BTreeSet<_> = self.names.files.keys().map(PathBuf::as_path).filter(is_inside).collect();
        if self.stale.until.is_none_or(|until| self.log.len() < until) {
            paths.retain(|path| !self.stale.hidden.contains(*path));
            paths.extend(self.stale.ghosts.iter().map(PathBuf::as_path).filter(is_inside));
        }
        paths
    }

    fn running(&self) -> io::Result<()> {
        if self.crashed { Err(crash()) } else { Ok(()) }
    }

    fn file(&self, path: &Path) -> io::Result<usize> {
        self.running()?;
        match self.names.files.get(path) {
            Some(file) => Ok(*file),
            None if self.names.has_directory(path) => Err(io::ErrorKind::IsADirectory.into()),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    /// Fails if a file cannot have this name.
    fn can_be_named(&self, path: &Path) -> io::Result<()> {
        self.running()?;
        if self.names.has_directory(path) {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        if !self.names.has_directory(parent(path)) {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(())
    }

    fn name(&mut self, naming: NameChange) {
        self.names.apply(&naming);
        // A process sees its own changes.
        let (NameChange::Directory(path)
        | NameChange::Put(path, _)
        | NameChange::Move(_, path, _)
        | NameChange::Drop(path)) = &naming;
        self.stale.hidden.remove(path);
        self.stale.ghosts.remove(path);
        if let NameChange::Move(from, ..) = &naming {
            self.stale.ghosts.remove(from);
        }
        self.waiting.push(naming);
    }

    /// Finds a file, or creates an empty one.
    fn make(&mut self, path: &Path) -> usize {
        if let Some(file) = self.names.files.get(path) {
            return *file;
        }
        self.files.push(Contents::default());
        let file = self.files.len() - 1;
        self.name(NameChange::Put(path.to_owned(), file));
        file
    }

    fn sync_names(&mut self, is_meant: impl Fn(&NameChange) -> bool) {
        let synced = &mut self.synced;
        self.waiting.retain(|naming| {
            let meant = is_meant(naming);
            if meant {
                synced.apply(naming);
            }
            !meant
        });
    }
}

impl OperationOutcome {
    /// Returns `true` if the operation fails and the disk goes on.
    fn fails(self) -> bool {
        matches!(self, OperationOutcome::Failing | OperationOutcome::Full)
    }

    /// Returns the result of an operation, after its effects.
    fn end(self) -> io::Result<()> {
        match self {
            OperationOutcome::Done => Ok(()),
            OperationOutcome::Crashing => Err(crash()),
            OperationOutcome::Failing => Err(io::Error::other("the disk failed at this act, as it was told to")),
            OperationOutcome::Full => Err(io::ErrorKind::StorageFull.into()),
        }
    }
}

fn dropped() -> io::Error {
    io::Error::other("the disk failed at this sync, and dropped what was to be kept")
}

fn crash() -> io::Error {
    io::Error::other("the disk has crashed")
}

/// Removes components of a path that do not change its meaning.
fn plain(path: &Path) -> PathBuf {
    let plain: PathBuf = path.components().filter(|part| *part != Component::CurDir).collect();
    if plain.as_os_str().is_empty() { PathBuf::from(".") } else { plain }
}

impl CrashingDisk {
    /// Creates an empty disk with a root and a current directory.
    pub fn new() -> Self {
        CrashingDisk::default()
    }

    /// Returns a shared handle of the disk.
    pub fn shared(&self) -> Arc<dyn Disk> {
        Arc::new(self.clone())
    }

    fn state(&self) -> MutexGuard<'_, DiskState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the disk crash at the operation of this number.
    pub fn crash_at(&self, act: usize) {
        self.state().crash_at = Some(act);
    }

    /// Crashes the disk now.
    pub fn crash(&self) {
        self.state().crashed = true;
    }

    /// Makes the operation of this number fail, and none after it: an append writes half of its bytes, others have no
    /// effect.
    pub fn fail_at(&self, act: usize) {
        self.state().fail_at = Some(act);
    }

    /// Makes the operation of this number and all after it fail as on a full disk: an append writes half of its bytes,
    /// others have no effect. [`usize::MAX`] ends that.
    pub fn fail_from(&self, act: usize) {
        self.state().fail_from = Some(act);
    }

    /// Makes the sync of this number fail and drop the data that it was to sync. Syncs of files and directories are
    /// numbered from 0. Later syncs succeed, and keep only later changes.
    pub fn lose_sync(&self, number: usize, loss: SyncLoss) {
        self.state().lost_sync = Some((number, loss));
    }

    /// Returns the number of syncs of files and directories, failed ones included.
    pub fn syncs(&self) -> usize {
        self.state().syncs
    }

    /// Makes directories stale for a process that is started after a kill: they list their contents before the
    /// operation of this number, and what that process creates and removes itself. Hidden files can be opened all the
    /// same.
    pub fn stale_from(&self, act: usize) {
        self.state().stale.from = Some(act);
    }

    /// Makes stale directories list what exists, from the operation of this number on.
    pub fn stale_until(&self, act: usize) {
        self.state().stale.until = Some(act);
    }

    /// Grants every lock to everybody, from now on.
    pub fn free_locks(&self) {
        self.state().locks_are_free = true;
    }

    /// Takes all locks from their holders, without their notice.
    pub fn lose_locks(&self) {
        self.state().locked.clear();
    }

    /// Limits the number of bytes that can still be appended; truncating frees space. `None` removes the limit.
    pub fn set_room(&self, bytes: Option<u64>) {
        self.state().room = bytes;
    }

    /// `true` if the disk has crashed.
    pub fn has_crashed(&self) -> bool {
        self.state().crashed
    }

    /// Returns the number of operations so far, which is the number of the next one.
    pub fn operations(&self) -> usize {
        self.state().log.len()
    }

    /// Returns all operations in order; the last one of a crashed disk is the one at which it crashed.
    pub fn log(&self) -> Vec<DiskOperation> {
        self.state().log.clone()
    }

    /// Returns the disk after a loss of power: everything that was synced, and a choice of the rest that depends on the
    /// seed. Seed 0 loses the rest, seed 1 keeps it. This disk is unchanged.
    #[must_use]
    pub fn survivors(&self, seed: u64) -> CrashingDisk {
        let mut state = self.state().clone();
        let mut random = SeededRandom::new(seed);
        let fate = random.fate();
        let upto = random.below(state.waiting.len() + 1);
        for (at, naming) in std::mem::take(&mut state.waiting).iter().enumerate() {
            let kept = match fate {
                Fate::Lost => false,
                Fate::Kept => true,
                Fate::Upto => at < upto,
                Fate::Each => random.below(2) == 0,
            };
            if kept {
                state.synced.apply(naming);
            }
        }
        state.names = state.synced.clone();
        state.files.iter_mut().for_each(|file| file.survive(&mut random));
        CrashingDisk::restarted(state)
    }

    /// Returns the disk after its process was killed: everything is there, and changes that were not synced may still
    /// be lost later. This disk is unchanged.
    #[must_use]
    pub fn after_kill(&self) -> CrashingDisk {
        let state = self.state().clone();
        let now: BTreeSet<_> = state.names.files.keys().cloned().collect();
        let before = state.stale.before.clone().unwrap_or_else(|| now.clone());
        let disk = CrashingDisk::restarted(state);
        disk.state().stale = StaleListing {
            hidden: now.difference(&before).cloned().collect(),
            ghosts: before.difference(&now).cloned().collect(),
            ..StaleListing::default()
        };
        disk
    }

    fn restarted(state: DiskState) -> CrashingDisk {
        let DiskState { files, names, synced, waiting, room, locks_are_free, .. } = state;
        let state = DiskState { files, names, synced, waiting, room, locks_are_free, ..DiskState::default() };
        CrashingDisk(Arc::new(Mutex::new(state)))
    }

    /// Creates a file with its directories, or replaces the bytes of one, durably; not counted as an operation.
    pub fn put(&self, path: &Path, bytes: &[u8]) {
        let mut state = self.state();
        let path = plain(path);
        let contents = Contents { bytes: bytes.to_vec(), synced: bytes.to_vec(), waiting: Vec::new() };
        let file = state.names.files.get(&path).copied().unwrap_or(state.files.len());
        match state.files.get_mut(file) {
            Some(known) => *known = contents,
            None => state.files.push(contents),
        }
        let above = path.ancestors().skip(1).filter(|above| !above.as_os_str().is_empty());
        let mut namings: Vec<_> = above.map(|above| NameChange::Directory(above.to_owned())).collect();
        namings.push(NameChange::Put(path, file));
        for naming in namings {
            state.names.apply(&naming);
            state.synced.apply(&naming);
        }
    }

    /// Returns the bytes of a file as a running program sees them, also after a crash; `None` if it does not exist.
    pub fn bytes(&self, path: &Path) -> Option<Vec<u8>> {
        let state = self.state();
        state.names.files.get(&plain(path)).map(|file| state.files[*file].bytes.clone())
    }

    /// Returns the paths of all files as a running program sees them, sorted.
    pub fn paths(&self) -> Vec<PathBuf> {
        self.state().names.files.keys().cloned().collect()
    }
}

impl fmt::Debug for CrashingDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("CrashingDisk").field(&self.paths()).finish()
    }
}

impl Disk for CrashingDisk {
    fn list(&self, directory: &Path) -> io::Result<Vec<String>> {
        let (state, directory) = (self.state(), plain(directory));
        state.running()?;
        let names = state.listed(&directory).into_iter().filter_map(Path::file_name);
        Ok(names.map(|name| name.to_string_lossy().into_owned()).collect())
    }

    fn create_directory(&self, directory: &Path) -> io::Result<()> {
        let directory = plain(directory);
        let mut above: Vec<_> = directory.ancestors().filter(|above| !above.as_os_str().is_empty()).collect();
        above.reverse();
        for directory in above {
            let mut state = self.state();
            state.running()?;
            if state.names.has_directory(directory) {
                continue;
            }
            if state.names.files.contains_key(directory) {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            let doing = state.begin(OperationKind::CreateDirectory, directory)?;
            if !doing.fails() {
                state.name(NameChange::Directory(directory.to_owned()));
            }
            if doing == OperationOutcome::Done {
                state.sync_names(|naming| matches!(naming, NameChange::Directory(made) if made == directory));
            }
            doing.end()?;
        }
        Ok(())
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let (mut state, path) = (self.state(), plain(path));
        state.can_be_named(&path)?;
        let doing = state.begin(OperationKind::Create, &path)?;
        if doing.fails() {
            doing.end()?;
        }
        let file = state.make(&path);
        if !state.files[file].bytes.is_empty() {
            state.files[file].change(ContentChange::Truncate(0));
        }
        doing.end()?;
        Ok(Box::new(OpenFile { disk: self.clone(), file, path, at: 0 }))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let (state, path) = (self.state(), plain(path));
        let file = state.file(&path)?;
        Ok(Box::new(OpenFile { disk: self.clone(), file, path, at: state.files[file].bytes.len() }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let (mut state, from, to) = (self.state(), plain(from), plain(to));
        let file = state.file(&from)?;
        state.can_be_named(&to)?;
        let doing = state.begin(OperationKind::Rename(to.clone()), &from)?;
        if !doing.fails() && state.names.files.get(&to) != Some(&file) {
            state.name(NameChange::Move(from, to, file));
        }
        doing.end()
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        let (mut state, from, to) = (self.state(), plain(from), plain(to));
        let file = state.file(&from)?;
        if state.names.files.contains_key(&to) || state.names.has_directory(&to) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        state.can_be_named(&to)?;
        let doing = state.begin(OperationKind::Link(to.clone()), &from)?;
        if !doing.fails() {
            state.name(NameChange::Put(to, file));
        }
        doing.end()
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let (mut state, path) = (self.state(), plain(path));
        state.file(&path)?;
        let doing = state.begin(OperationKind::Remove, &path)?;
        if !doing.fails() {
            state.name(NameChange::Drop(path));
        }
        doing.end()
    }

    fn sync_directory(&self, directory: &Path) -> io::Result<()> {
        let (mut state, directory) = (self.state(), plain(directory));
        state.running()?;
        if !state.names.has_directory(&directory) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let doing = state.begin(OperationKind::SyncDirectory, &directory)?;
        if state.loses_sync().is_some() {
            state.waiting.retain(|naming| !naming.is_of(&directory));
            return Err(dropped());
        }
        if doing == OperationOutcome::Done {
            state.sync_names(|naming| naming.is_of(&directory));
        }
        doing.end()
    }

    fn lock(&self, path: &Path) -> io::Result<Option<Box<dyn Lock>>> {
        let (mut state, path) = (self.state(), plain(path));
        state.can_be_named(&path)?;
        let doing = state.begin(OperationKind::Lock, &path)?;
        if doing.fails() {
            doing.end()?;
        }
        let file = state.make(&path);
        doing.end()?;
        if !state.locked.insert(file) && !state.locks_are_free {
            return Ok(None);
        }
        Ok(Some(Box::new(HeldLock { disk: self.clone(), file, path })))
    }
}

struct OpenFile {
    disk: CrashingDisk,
    file: usize,
    path: PathBuf,
    /// Position of the next append, whatever others did to the file.
    at: usize,
}

impl fmt::Debug for OpenFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("OpenFile").field(&self.path).finish()
    }
}

impl DiskFile for OpenFile {
    fn length(&self) -> io::Result<u64> {
        let state = self.disk.state();
        state.running()?;
        Ok(state.files[self.file].bytes.len() as u64)
    }

    fn read_at(&self, position: u64, bytes: &mut [u8]) -> io::Result<()> {
        let state = self.disk.state();
        state.running()?;
        let from = usize::try_from(position).map_err(io::Error::other)?;
        let found = state.files[self.file].bytes.get(from..).and_then(|rest| rest.get(..bytes.len()));
        bytes.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.disk.state();
        let doing = state.begin(OperationKind::Append(bytes.len()), &self.path)?;
        let mut fits = if doing.fails() { bytes.len() / 2 } else { bytes.len() };
        if let Some(room) = &mut state.room {
            fits = fits.min(usize::try_from(*room).unwrap_or(usize::MAX));
            *room -= fits as u64;
        }
        if fits > 0 {
            state.files[self.file].change(ContentChange::Write(self.at, bytes[..fits].to_vec()));
        }
        doing.end()?;
        if fits < bytes.len() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.at += bytes.len();
        Ok(())
    }

    fn truncate(&mut self, length: u64) -> io::Result<()> {
        let mut state = self.disk.state();
        let doing = state.begin(OperationKind::Truncate(length), &self.path)?;
        if !doing.fails() {
            let length = usize::try_from(length).map_err(io::Error::other)?;
            let dropped = state.files[self.file].bytes.len().saturating_sub(length) as u64;
            state.room = state.room.map(|room| room + dropped);
            state.files[self.file].change(ContentChange::Truncate(length));
            self.at = length;
        }
        doing.end()
    }

    fn sync(&mut self) -> io::Result<()> {
        let mut state = self.disk.state();
        let doing = state.begin(OperationKind::Sync, &self.path)?;
        if let Some(loss) = state.loses_sync() {
            state.files[self.file].lose(loss);
            return Err(dropped());
        }
        if doing == OperationOutcome::Done {
            state.files[self.file].sync();
        }
        doing.end()
    }
}

struct HeldLock {
    disk: CrashingDisk,
    file: usize,
    path: PathBuf,
}

impl fmt::Debug for HeldLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Held").field(&self.path).finish()
    }
}

impl Lock for HeldLock {
    fn sign(&mut self, who: &str) -> io::Result<()> {
        let mut state = self.disk.state();
        let doing = state.begin(OperationKind::Sign, &self.path)?;
        if !doing.fails() {
            let file = &mut state.files[self.file];
            file.change(ContentChange::Truncate(0));
            file.change(ContentChange::Write(0, who.as_bytes().to_vec()));
        }
        doing.end()
    }
}

impl Drop for HeldLock {
    fn drop(&mut self) {
        self.disk.state().locked.remove(&self.file);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "a";

    fn path(name: &str) -> &Path {
        Path::new(name)
    }

    /// Returns every content of a file that some seed leaves.
    fn outcomes(disk: &CrashingDisk, name: &str) -> BTreeSet<Option<Vec<u8>>> {
        (0..3_000).map(|seed| disk.survivors(seed).bytes(path(name))).collect()
    }

    #[test]
    fn what_was_synced_survives_and_the_rest_may_be_there_gone_or_torn() {
        let disk = CrashingDisk::new();
        let mut file = disk.create(path(A)).unwrap();
        file.append(b"synced").unwrap();
        file.sync().unwrap();
        assert!(outcomes(&disk, A).contains(&None), "its name was never synced");
        disk.sync_directory(path(".")).unwrap();
        assert_eq!(outcomes(&disk, A), [Some(b"synced".to_vec())].into());
        file.append(b"+more").unwrap();
        let found = outcomes(&disk, A);
        assert!(found.iter().all(|bytes| bytes.as_ref().is_some_and(|bytes| bytes.starts_with(b"synced"))));
        for expected in [&b"synced"[..], b"synced+", b"synced+more", b"synced+\0\0\0\0", b"synced\0\0\0re"] {
            assert!(found.contains(&Some(expected.to_vec())), "never {}", String::from_utf8_lossy(expected));
        }
        assert_eq!(disk.survivors(0).bytes(path(A)).unwrap(), b"synced");
        assert_eq!(disk.survivors(1).bytes(path(A)).unwrap(), b"synced+more");
    }

    #[test]
    fn a_cut_may_come_undone_and_what_was_written_after_it_be_there_all_the_same() {
        let disk = CrashingDisk::new();
        disk.put(path(A), b"abcdef");
        let mut file = disk.open(path(A)).unwrap();
        file.truncate(2).unwrap();
        file.append(b"XY").unwrap();
        assert_eq!(disk.read(path(A)).unwrap(), b"abXY");
        let found = outcomes(&disk, A);
        for expected in ["abcdef", "ab", "abXY", "abXYef", "abX"] {
            assert!(found.contains(&Some(expected.as_bytes().to_vec())), "never {expected}");
        }
    }

    #[test]
    fn names_last_with_their_directory_and_a_rename_is_never_torn() {
        let disk = CrashingDisk::new();
        disk.create_directory(path("d/e")).unwrap();
        disk.put(path("d/old"), b"old");
        disk.put(path("d/new"), b"new");
        disk.rename(path("d/new"), path("d/old")).unwrap();
        for seed in 0..100 {
            let left = disk.survivors(seed);
            let pair = (left.bytes(path("d/old")).unwrap(), left.bytes(path("d/new")));
            assert!(pair == (b"old".into(), Some(b"new".into())) || pair == (b"new".into(), None), "{seed}");
        }
        disk.sync_directory(path("d/e")).unwrap();
        assert_eq!(outcomes(&disk, "d/new").len(), 2);
        disk.sync_directory(path("./d")).unwrap();
        assert_eq!(outcomes(&disk, "d/new"), [None].into());
        disk.remove(path("d/old")).unwrap();
        assert_eq!(outcomes(&disk, "d/old").len(), 2);
        assert!(disk.list(path("d")).unwrap().is_empty());
    }

    #[test]
    fn files_lose_what_they_lose_independently_of_each_other() {
        let disk = CrashingDisk::new();
        disk.put(path("a"), b"");
        disk.put(path("b"), b"");
        disk.open(path("a")).unwrap().append(b"1").unwrap();
        disk.open(path("b")).unwrap().append(b"1").unwrap();
        let pairs: BTreeSet<_> = (0..400)
            .map(|seed| disk.survivors(seed))
            .map(|left| ["a", "b"].map(|name| left.bytes(path(name)).unwrap() == b"1"))
            .collect();
        assert_eq!(pairs.len(), 4);
    }

    #[test]
    fn a_crash_comes_at_its_act_which_may_have_happened_and_nothing_works_after_it() {
        let disk = CrashingDisk::new();
        disk.put(path(A), b"");
        let mut file = disk.open(path(A)).unwrap();
        disk.crash_at(1);
        file.append(b"x").unwrap();
        assert_eq!((disk.operations(), disk.has_crashed()), (1, false));
        assert_eq!(file.sync().unwrap_err().to_string(), "the disk has crashed");
        assert!(disk.has_crashed());
        for result in [file.append(b"y"), file.length().map(drop), disk.open(path(A)).map(drop)] {
            assert_eq!(result.unwrap_err().to_string(), "the disk has crashed");
        }
        assert_eq!(disk.log()[1].to_string(), "sync a");
        assert_eq!(disk.operations(), 2);
        assert!(outcomes(&disk, A).len() > 1);
        // The survivors are another disk, which has not crashed; the same can be tried on it again.
        assert!(!disk.survivors(3).has_crashed());
        for act in 0..2 {
            let disk = CrashingDisk::new();
            disk.crash_at(act);
            let made = disk.create_directory(path("d/e"));
            assert_eq!(made.unwrap_err().to_string(), "the disk has crashed");
            disk.survivors(0).create_directory(path("d/e")).unwrap();
        }
    }

    #[test]
    fn an_act_that_fails_leaves_the_next_ones_alone() {
        let disk = CrashingDisk::new();
        disk.put(path(A), b"");
        let mut file = disk.open(path(A)).unwrap();
        disk.fail_at(0);
        assert!(file.append(b"abcd").unwrap_err().to_string().contains("failed"));
        assert_eq!(disk.bytes(path(A)).unwrap(), b"ab");
        file.append(b"xyz").unwrap();
        assert_eq!(disk.bytes(path(A)).unwrap(), b"xyz");
    }

    #[test]
    fn a_disk_may_fail_from_an_act_on_and_be_well_again() {
        let disk = CrashingDisk::new();
        disk.put(path(A), b"");
        let mut file = disk.open(path(A)).unwrap();
        disk.fail_from(1);
        file.sync().unwrap();
        assert_eq!(file.append(b"abcd").unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert_eq!(disk.remove(path(A)).unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert_eq!(disk.create(path("b")).unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert_eq!((disk.bytes(path(A)).unwrap(), disk.bytes(path("b"))), (b"ab".to_vec(), None));
        disk.fail_from(usize::MAX);
        disk.remove(path(A)).unwrap();
    }

    #[test]
    fn bytes_that_are_put_are_of_the_same_file() {
        let disk = CrashingDisk::new();
        disk.put(path("d/a"), b"old");
        let (file, held) = (disk.open(path("d/a")).unwrap(), disk.lock(path("d/a")).unwrap());
        disk.put(path("d/a"), b"newer");
        assert_eq!(file.length().unwrap(), 5);
        assert!(held.is_some() && disk.lock(path("d/a")).unwrap().is_none());
        assert_eq!(disk.survivors(0).bytes(path("d/a")).unwrap(), b"newer");
    }

    #[test]
    fn a_full_disk_takes_what_fits_until_there_is_room() {
        let disk = CrashingDisk::new();
        disk.set_room(Some(5));
        let mut file = disk.create(path(A)).unwrap();
        file.append(b"abc").unwrap();
        assert_eq!(file.append(b"def").unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert_eq!(disk.bytes(path(A)).unwrap(), b"abcde");
        file.truncate(3).unwrap();
        file.append(b"d").unwrap();
        disk.set_room(None);
        file.append(b"efgh").unwrap();
        assert_eq!(disk.bytes(path(A)).unwrap(), b"abcdefgh");
    }

    #[test]
    fn a_lock_is_of_the_file_and_ends_with_its_holder() {
        let disk = CrashingDisk::new();
        let mut held = disk.lock(path(A)).unwrap().unwrap();
        held.sign("me").unwrap();
        assert!(disk.lock(path("./a")).unwrap().is_none());
        assert_eq!(disk.bytes(path(A)).unwrap(), b"me");
        // Another file gets the name, and the lock stays with the former one.
        disk.put(path("b"), b"");
        disk.rename(path("b"), path(A)).unwrap();
        let second = disk.lock(path(A)).unwrap().unwrap();
        drop(second);
        let _third = disk.lock(path(A)).unwrap().unwrap();
        assert!(disk.lock(path(A)).unwrap().is_none());
        assert!(disk.after_kill().lock(path(A)).unwrap().is_some());
        drop(held);
        assert!(disk.lock(path(A)).unwrap().is_none());
    }

    #[test]
    fn after_a_kill_all_is_there_and_may_still_be_lost() {
        let disk = CrashingDisk::new();
        disk.create(path(A)).unwrap().append(b"x").unwrap();
        let killed = disk.after_kill();
        assert_eq!(killed.bytes(path(A)).unwrap(), b"x");
        assert_eq!(killed.survivors(0).bytes(path(A)), None);
    }

    #[test]
    fn a_sync_that_fails_drops_what_it_was_to_keep_and_the_next_one_keeps_only_what_came_later() {
        for loss in [SyncLoss::Later, SyncLoss::AtOnce] {
            let disk = CrashingDisk::new();
            disk.put(path(A), b"ab");
            disk.lose_sync(1, loss);
            let mut file = disk.open(path(A)).unwrap();
            for (bytes, kept) in [(b"cd", true), (b"ef", false), (b"gh", true)] {
                file.append(bytes).unwrap();
                assert_eq!(file.sync().is_ok(), kept);
            }
            let read = if loss == SyncLoss::Later { b"abcdefgh" } else { b"abcd\0\0gh" };
            assert_eq!(disk.after_kill().bytes(path(A)).unwrap(), read);
            assert_eq!(outcomes(&disk, A), [Some(b"abcd\0\0gh".to_vec())].into());
            assert_eq!(disk.syncs(), 3);
        }
        let disk = CrashingDisk::new();
        disk.lose_sync(0, SyncLoss::Later);
        let mut file = disk.create(path(A)).unwrap();
        disk.sync_directory(path(".")).unwrap_err();
        file.sync().unwrap();
        disk.sync_directory(path(".")).unwrap();
        assert!(disk.bytes(path(A)).is_some());
        assert_eq!(outcomes(&disk, A), [None].into());
    }

    #[test]
    fn a_stale_directory_lists_what_was_there_once_for_so_long() {
        let disk = CrashingDisk::new();
        disk.put(path("d/old"), b"");
        disk.put(path("d/gone"), b"");
        disk.stale_from(1);
        disk.create(path("d/first")).unwrap();
        disk.create(path("d/second")).unwrap();
        disk.remove(path("d/gone")).unwrap();
        assert_eq!(disk.list(path("d")).unwrap(), ["first", "old", "second"]);
        let killed = disk.after_kill();
        killed.stale_until(2);
        assert_eq!(killed.list(path("d")).unwrap(), ["first", "gone", "old"]);
        assert_eq!(killed.open(path("d/gone")).unwrap_err().kind(), io::ErrorKind::NotFound);
        killed.open(path("d/second")).unwrap();
        killed.create(path("d/third")).unwrap();
        assert_eq!(killed.list(path("d")).unwrap(), ["first", "gone", "old", "third"]);
        killed.remove(path("d/third")).unwrap();
        assert_eq!(killed.list(path("d")).unwrap(), ["first", "old", "second"]);
        assert_eq!(disk.survivors(1).list(path("d")).unwrap(), ["first", "old", "second"]);
    }

    #[test]
    fn locks_that_lie_are_of_everybody_or_of_nobody() {
        let disk = CrashingDisk::new();
        let _held = disk.lock(path(A)).unwrap().unwrap();
        disk.lose_locks();
        let _second = disk.lock(path(A)).unwrap().unwrap();
        assert!(disk.lock(path(A)).unwrap().is_none());
        disk.free_locks();
        let _third = disk.lock(path(A)).unwrap().unwrap();
        assert!(disk.after_kill().lock(path(A)).unwrap().is_some());
    }

    #[test]
    fn what_is_not_there_is_said_to_be_not_there() {
        let disk = CrashingDisk::new();
        let kind = |result: io::Result<()>| result.unwrap_err().kind();
        assert_eq!(kind(disk.open(path(A)).map(drop)), io::ErrorKind::NotFound);
        assert_eq!(kind(disk.create(path("d/a")).map(drop)), io::ErrorKind::NotFound);
        assert_eq!(kind(disk.remove(path(A))), io::ErrorKind::NotFound);
        assert_eq!(kind(disk.create(path(".")).map(drop)), io::ErrorKind::IsADirectory);
        disk.put(path("d/a"), b"");
        disk.put(path(A), b"");
        assert_eq!(kind(disk.link(path(A), path("d/a"))), io::ErrorKind::AlreadyExists);
        assert_eq!(disk.list(path("d")).unwrap(), ["a"]);
        assert_eq!(disk.operations(), 0);
    }

    /// Crashes the compound operations of the trait at every point.
    #[test]
    fn a_file_is_made_once_and_whole() {
        let make = |disk: &CrashingDisk| disk.create_new(path(A), b"whole");
        let disk = CrashingDisk::new();
        make(&disk).unwrap();
        assert_eq!(make(&disk).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        for (act, seed) in (0..disk.operations()).flat_map(|act| (0..20).map(move |seed| (act, seed))) {
            let disk = CrashingDisk::new();
            disk.crash_at(act);
            if make(&disk).is_ok() {
                continue;
            }
            let found = disk.survivors(seed).bytes(path(A));
            assert!(found.as_ref().is_none_or(|bytes| bytes == b"whole"), "{}: {found:?}", disk.log()[act]);
        }
    }
}
