//! Files that rows are appended to, epoch by epoch, in any format.
//!
//! * Without a state, the file is replaced when the job starts. Nothing records how far it is published; it is synced
//!   at the end, or at every publication if [`SinkContext::sync_on_publish`] is set.
//! * With a state, a [commit file](Commit) beside it records how far it is **published**: readers that need each epoch
//!   exactly once read it up to there. Rows after that were written by an incarnation that ended before it could
//!   publish them.
//!
//! Invariants: an epoch's lines are encoded first and appended at once; if that fails, the file is truncated to its
//! former length, so it contains an epoch whole or not at all. With a state, lines are synced before a commit publishes
//! them, and published bytes are never overwritten. The file is locked while it is written, so no other writer of ours
//! touches it. Its former contents are dropped when the job starts, not before. With a state they are never dropped: a
//! file that has contents and no commit of this sink is refused.
//!
//! An incarnation checks that it is still the current one before it appends, not only before it publishes: if locks are
//! unreliable, its rows would otherwise stand where a later incarnation appends. At most one append can slip in between
//! the check and the write; if a later incarnation has published rows there by then, the file's checksum refuses it.
//!
//! An incarnation that starts although another process has the lock leaves the file to that process, and goes on in a
//! copy that takes over its name. A suspended writer that wakes then appends to a file without a name. `commit.rs`
//! explains why its commits have no effect either.
//!
//! Devices and pipes have no length, no lock and no commit: they are written to as they are, and a state does not know
//! what they have published. All other I/O goes through the [`Disk`]. The module does not know formats.

mod commit;

use std::fmt;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::encode::EncodeRows;
use super::{SinkContext, SinkWriter};
use crate::durable::disk::{Disk, DiskFile, Lock, parent};
use crate::durable::journal::JournalEnds;
use crate::durable::recovery::ReportedSink;
use crate::durable::{Incarnation, PublishedEpoch, StateId, io_reason};
use crate::error::{Error, ErrorKind, Result};
use crate::record::Record;
use crate::time::Epoch;
use commit::{Commit, Commits};

/// Largest capacity of the line buffer that is kept from one epoch to the next, in bytes.
const KEPT_CAPACITY: usize = 1 << 20;

/// Number of bytes that are read from a file at once.
const READ_SIZE: usize = 1 << 20;

/// Largest number of chained symbolic links that are followed, as in the system.
const MAX_LINKS: usize = 40;

/// Writer that appends epochs to a file.
pub(super) struct FileWriter<E> {
    place: String,
    encoder: E,
    lines: Vec<u8>,
    file: AppendFile,
    /// Last epoch that was written.
    last: Option<Epoch>,
    begun: bool,
    /// `true` to sync the file at every publication even without a state.
    synced: bool,
    kind: TargetKind,
}

/// Kind of the target.
enum TargetKind {
    /// A device or a pipe.
    Special,
    /// A file of a job without a state.
    Stateless(LockedFile),
    /// A file of a job with a state.
    Stateful(Box<StatefulFile>),
}

/// A file that this process may write to.
struct LockedFile {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    commits: Commits,
    /// `None` if the file system has no locks, or if another process holds the lock.
    lock: Option<Box<dyn Lock>>,
    /// `true` if another process holds the lock, or may hold it: the file is left to that process.
    is_of_another: bool,
}

/// A file whose published epochs are recorded in a commit file.
struct StatefulFile {
    held: LockedFile,
    state: StateId,
    sink: String,
    /// Newest commit when [`SinkWriter::published`] was called: `None` before that, `Some(None)` if there was no
    /// commit.
    found: Option<Option<Commit>>,
    incarnation: Option<Incarnation>,
    /// `true` if anything was written since the last commit.
    unpublished: bool,
    /// `true` if a commit failed: the contents of the disk are then unknown.
    broken: bool,
}

impl<E> FileWriter<E> {
    /// Opens and locks a file, and creates it if it is missing.
    pub(super) fn open<D: Record>(path: &Path, encoder: E, at: &SinkContext) -> Result<Self>
    where
        E: EncodeRows<D>,
    {
        let place = path.display().to_string();
        let writer = |target, kind| FileWriter {
            place: place.clone(),
            encoder,
            lines: Vec::new(),
            file: AppendFile::to(target, place.clone()),
            last: None,
            begun: false,
            synced: at.sync_on_publish,
            kind,
        };
        if fs::metadata(path).is_ok_and(|found| !found.is_file() && !found.is_dir()) {
            let opened = fs::OpenOptions::new().write(true).open(path);
            let file = opened.map_err(|why| {
                Error::of(ErrorKind::SinkFailed, "cannot open the results file").at(&place).caused_by(why)
            })?;
            return Ok(writer(Box::new(DeviceFile { file, written: 0 }), TargetKind::Special));
        }
        let (held, target) = LockedFile::lock(path, at)?;
        let kind = match at.state {
            None => TargetKind::Stateless(held),
            Some(state) => {
                let (sink, found, incarnation) = (at.name.clone(), None, None);
                TargetKind::Stateful(Box::new(StatefulFile {
                    held,
                    state,
                    sink,
                    found,
                    incarnation,
                    unpublished: false,
                    broken: false,
                }))
            }
        };
        Ok(writer(target, kind))
    }
}

/// Reads what a results file has published: see [`super::published_in`].
pub(super) fn published_in(disk: &Arc<dyn Disk>, file: &Path) -> Result<Option<(StateId, ReportedSink)>> {
    let commit = Commits::of(disk, &resolved(file)).newest()?;
    // Only queries that have changed need to know whether it is a collection.
    let found = |commit: Commit| {
        let published = commit.published();
        (commit.state, ReportedSink { name: commit.sink, published, on_change: false })
    };
    Ok(commit.map(found))
}

/// Resolves the links of a path, whether the file exists or not: commit files are beside the file itself, not beside a
/// link to it.
fn resolved(path: &Path) -> PathBuf {
    let mut target = path.to_owned();
    for _ in 0..MAX_LINKS {
        let Ok(next) = fs::read_link(&target) else { break };
        target = parent(&target).join(next);
    }
    target
}

impl LockedFile {
    fn lock(path: &Path, at: &SinkContext) -> Result<(LockedFile, Box<dyn DiskFile>)> {
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
            Err(why) => return Err(failed(&why)),
        };
        let target = disk.open(&path).map_err(|why| failed(&why))?;
        Ok((LockedFile { disk, path, commits, lock, is_of_another }, target))
    }

    /// Copies the first `length` bytes of the file to a new one, and renames that to the file's name.
    fn copy(
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
        let copied = read_through(from, length, |piece| copy.append(piece)).map_err(failed)?;
        if copied != checksum {
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

impl StatefulFile {
    /// Verifies that a file is what its commit records; `header` is the one that the file would begin with now.
    fn check(&self, file: &dyn DiskFile, commit: Option<&Commit>, header: &[u8]) -> Result<()> {
        let length = file
            .length()
            .map_err(|why| Error::of(ErrorKind::SinkFailed, "cannot read the results file").caused_by(why))?;
        let Some(commit) = commit else {
            if length == 0 {
                return Ok(());
            }
            return Err(refused("it is there already, and was not written with this state")
                .help("move it away, or name another file: with a state, no file is replaced"));
        };
        let path = self.held.commits.path(commit.incarnation);
        let aside = format!("name another file, or move it and {} away", path.display());
        if commit.state != self.state {
            let (theirs, ours) = (commit.state, self.state);
            return Err(refused(format!("it belongs to the state {theirs}, and this is the state {ours}")).help(aside));
        }
        if commit.sink != self.sink {
            return Err(refused(format!("`{}` wrote it, and this is `{}`", commit.sink, self.sink)).help(aside));
        }
        let again = "restore it, or move it away and begin anew, with a new state directory";
        if length < commit.length {
            let (shown, name) = (commit.length, path.display());
            let why = format!("it has {length} bytes, and {shown} were shown, as {name} says");
            return Err(refused(why).help(again));
        }
        let unreadable = |why| Error::of(ErrorKind::SinkFailed, "cannot read the results file").caused_by(why);
        let mut begin = vec![0; header.len().min(usize::try_from(commit.length).unwrap_or(usize::MAX))];
        file.read_at(0, &mut begin).map_err(unreadable)?;
        if !begin.is_empty() && begin != header {
            return Err(refused("its columns are not those of the rows that are to be written").help(aside));
        }
        if read_through(file, commit.length, |_| Ok(())).map_err(unreadable)? != commit.checksum {
            let why = format!("its published part has been changed since, according to {}", path.display());
            return Err(refused(why).help(again));
        }
        Ok(())
    }

    /// Returns the commit that [`SinkWriter::published`] found; fails if there is another one by now.
    fn check_unchanged(&self, file: &AppendFile, incarnation: &Incarnation) -> Result<Option<Commit>> {
        // After this, no earlier incarnation can swap in a commit.
        self.held.commits.remove_temporaries(incarnation.incarnation)?;
        let newest = self.held.commits.newest()?;
        if Some(&newest) != self.found.as_ref() {
            let error = file.failed("begin the results file", "another process wrote to it meanwhile");
            return Err(error.help("start again"));
        }
        if let Some(commit) = newest.as_ref().filter(|commit| commit.incarnation >= incarnation.incarnation) {
            let (theirs, ours) = (commit.incarnation, incarnation.incarnation);
            return Err(refused(format!("life {theirs} of the state wrote it, and this is only life {ours}"))
                .at(&file.place)
                .help("use the newest copy of the state directory"));
        }
        Ok(newest)
    }

    /// Starts an incarnation at the position that was last published.
    fn begin(&mut self, file: &mut AppendFile, incarnation: &Incarnation, header: &[u8]) -> Result<()> {
        let found = self.check_unchanged(file, incarnation)?;
        self.incarnation = Some(incarnation.clone());
        let (length, checksum) = found.as_ref().map_or((0, 0), |commit| (commit.length, commit.checksum));
        if self.held.is_of_another {
            file.target = self.held.copy(&*file.target, length, checksum, incarnation)?;
        }
        file.begin(length, checksum)?;
        if found.is_none() {
            // The file's name is durable before there is a commit, and there is a commit before the file has contents:
            // so a file with contents has a commit, or is not ours.
            let synced = self.held.disk.sync_directory(parent(&self.held.path));
            synced.map_err(|why| file.failed_by("begin the results file", why))?;
            self.commit(file, None, &JournalEnds::default())?;
        }
        if length == 0 {
            file.append(header)?;
        }
        self.commit(file, found.and_then(|commit| commit.epoch), &JournalEnds::default())?;
        self.held.commits.remove_before(incarnation.incarnation)
    }

    /// Fails if a later incarnation has started, which then owns the file.
    fn still_current(&self) -> Result<()> {
        self.incarnation.as_ref().map_or(Ok(()), |incarnation| (incarnation.still_current)())
    }

    /// Syncs what was written, and publishes it with a commit.
    fn commit(&mut self, file: &mut AppendFile, epoch: Option<Epoch>, ends: &JournalEnds) -> Result<()> {
        let Some(incarnation) = &self.incarnation else {
            return Err(bug("a results file was to be published before it was begun"));
        };
        if self.broken {
            return Err(file.failed("show the results", "showing earlier ones failed"));
        }
        self.broken = true;
        file.sync()?;
        let commit = Commit {
            state: self.state,
            sink: self.sink.clone(),
            incarnation: incarnation.incarnation,
            epoch,
            length: file.length,
            checksum: file.checksum.clone().finalize(),
            process: std::process::id(),
            ends: ends.clone(),
        };
        self.held.commits.publish(&commit, incarnation)?;
        (self.broken, self.unpublished) = (false, false);
        Ok(())
    }
}

fn refused(why: impl fmt::Display) -> Error {
    Error::of(ErrorKind::SinkFailed, "cannot go on with the results file").because(why)
}

fn bug(what: impl Into<String>) -> Error {
    Error::new(what).help("this is a bug in Tidegate: please report it")
}

fn missing_file(commit: &Path) -> Error {
    let commit = commit.display();
    refused(format!("it is missing, and its commit file {commit} is there"))
        .help(format!("put it back, or remove {commit} too and begin anew, with a new state directory"))
}

fn is_locked(commits: &Commits) -> Error {
    let error = Error::of(ErrorKind::SinkFailed, "cannot open the results file");
    match commits.newest() {
        Ok(Some(commit)) => error
            .because(format!("it is being written by another job or output, lately by process {}", commit.process))
            .help("end that process, or name another file"),
        _ => error.because("it is being written by another job or output").help("name another file"),
    }
}

fn has_no_locks(why: &io::Error) -> bool {
    why.kind() == io::ErrorKind::Unsupported || why.raw_os_error() == Some(nix::errno::Errno::ENOLCK as i32)
}

/// Reads the first `length` bytes of a file piece by piece, and returns their checksum.
fn read_through(file: &dyn DiskFile, length: u64, mut each: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<u32> {
    let mut checksum = crc32fast::Hasher::new();
    let (mut piece, mut at) = (vec![0; READ_SIZE.min(usize::try_from(length).unwrap_or(READ_SIZE))], 0);
    while at < length {
        let size = piece.len().min(usize::try_from(length - at).unwrap_or(READ_SIZE));
        let piece = &mut piece[..size];
        file.read_at(at, piece)?;
        checksum.update(piece);
        each(piece)?;
        at += size as u64;
    }
    Ok(checksum.finalize())
}

/// A file that lines are appended to, all or none.
struct AppendFile {
    target: Box<dyn DiskFile>,
    place: String,
    /// Length of the file without appends that failed.
    length: u64,
    checksum: crc32fast::Hasher,
    /// `true` if there are changes that are not synced.
    unsynced: bool,
    /// `true` if the file contains a part of an epoch that could not be truncated.
    torn: bool,
}

impl AppendFile {
    fn to(target: Box<dyn DiskFile>, place: String) -> Self {
        AppendFile { target, place, length: 0, checksum: crc32fast::Hasher::new(), unsynced: false, torn: false }
    }

    fn failed(&self, to: &str, why: impl fmt::Display) -> Error {
        Error::of(ErrorKind::SinkFailed, format!("cannot {to}")).at(&self.place).because(why)
    }

    fn failed_by(&self, to: &str, why: io::Error) -> Error {
        self.failed(to, io_reason(&why)).caused_by(why)
    }

    /// Truncates the file to its first `length` bytes, whose checksum is given; appending continues there.
    fn begin(&mut self, length: u64, checksum: u32) -> Result<()> {
        let found = self.target.length().map_err(|why| self.failed_by("begin the results file", why))?;
        if found != length {
            self.target.truncate(length).map_err(|why| self.failed_by("begin the results file", why))?;
            self.unsynced = true;
        }
        self.length = length;
        self.checksum = crc32fast::Hasher::new_with_initial_len(checksum, length);
        Ok(())
    }

    /// Appends lines, all or none.
    fn append(&mut self, lines: &[u8]) -> Result<()> {
        if self.torn {
            return Err(self.failed("write the results", "a part of an earlier epoch is in the way"));
        }
        if lines.is_empty() {
            return Ok(());
        }
        self.unsynced = true;
        if let Err(why) = self.target.append(lines) {
            let failed = self.failed_by("write the results", why);
            return Err(match self.target.truncate(self.length) {
                Ok(()) => failed,
                Err(why) => {
                    self.torn = true;
                    failed.help(format!("cut the file back to {} bytes, as that failed too: {why}", self.length))
                }
            });
        }
        self.length += lines.len() as u64;
        self.checksum.update(lines);
        Ok(())
    }

    fn sync(&mut self) -> Result<()> {
        if self.unsynced {
            self.target.sync().map_err(|why| self.failed_by("sync the results", why))?;
            self.unsynced = false;
        }
        Ok(())
    }
}

/// A device or a pipe: written bytes cannot be read back.
#[derive(Debug)]
struct DeviceFile {
    file: fs::File,
    written: u64,
}

impl DiskFile for DeviceFile {
    fn length(&self) -> io::Result<u64> {
        Ok(self.written)
    }

    fn read_at(&self, _position: u64, _bytes: &mut [u8]) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn append(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.file.write(bytes) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => {
                    self.written += count as u64;
                    bytes = &bytes[count..];
                }
                Err(why) if why.kind() == io::ErrorKind::Interrupted => {}
                Err(why) => return Err(why),
            }
        }
        Ok(())
    }

    fn truncate(&mut self, length: u64) -> io::Result<()> {
        if length == self.written { Ok(()) } else { Err(io::Error::other("it is no file")) }
    }

    fn sync(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<D: Record, E: EncodeRows<D>> SinkWriter<D> for FileWriter<E> {
    fn published(&mut self) -> Result<Option<PublishedEpoch>> {
        let FileWriter { kind: TargetKind::Stateful(stated), file, encoder, place, .. } = self else { return Ok(None) };
        let mut header = Vec::new();
        encoder.header(&mut header);
        let commit = stated.held.commits.newest()?;
        stated.check(&*file.target, commit.as_ref(), &header).map_err(|error| error.at(place))?;
        self.last = commit.as_ref().and_then(|commit| commit.epoch);
        let published = commit.as_ref().and_then(Commit::published);
        stated.found = Some(commit);
        Ok(published)
    }

    fn begin(&mut self, incarnation: &Incarnation) -> Result<()> {
        let mut header = Vec::new();
        self.encoder.header(&mut header);
        if let TargetKind::Stateful(stated) = &self.kind
            && stated.found.is_none()
        {
            SinkWriter::<D>::published(self)?;
        }
        match &mut self.kind {
            TargetKind::Special => self.file.append(&header)?,
            TargetKind::Stateless(held) => {
                // The commit files are removed first, so that nobody takes the emptied file for the former one.
                held.commits.remove_all()?;
                if held.is_of_another {
                    self.file.target = held.copy(&*self.file.target, 0, 0, incarnation)?;
                }
                self.file.begin(0, 0)?;
                self.file.append(&header)?;
                if self.synced {
                    let synced = held.disk.sync_directory(parent(&held.path));
                    synced.map_err(|why| self.file.failed_by("begin the results file", why))?;
                }
            }
            TargetKind::Stateful(stated) => stated.begin(&mut self.file, incarnation, &header)?,
        }
        self.begun = true;
        Ok(())
    }

    fn write(&mut self, epoch: Epoch, rows: &[(D, isize)]) -> Result<()> {
        if !self.begun {
            return Err(bug("a results file was to be written to before it was begun").at(&self.place));
        }
        if self.last.is_some_and(|last| last >= epoch) {
            return Err(bug(format!("epoch {epoch} was to be shown again, or out of order")).at(&self.place));
        }
        self.lines.clear();
        let encoded = self.encoder.rows(rows, &mut self.lines);
        encoded.map_err(|error| error.at(&self.place))?;
        if let TargetKind::Stateful(stated) = &mut self.kind {
            stated.still_current()?;
            stated.unpublished = true;
        }
        self.file.append(&self.lines)?;
        self.lines.clear();
        self.lines.shrink_to(KEPT_CAPACITY);
        self.last = Some(epoch);
        Ok(())
    }

    fn publish(&mut self, ends: &JournalEnds) -> Result<()> {
        match &mut self.kind {
            TargetKind::Stateful(stated) if stated.unpublished => stated.commit(&mut self.file, self.last, ends),
            TargetKind::Stateless(_) if self.synced => self.file.sync(),
            _ => Ok(()),
        }
    }

    fn finish(&mut self) -> Result<()> {
        match self.kind {
            // Published rows were synced when they were published.
            TargetKind::Stateful(_) => Ok(()),
            _ => self.file.sync(),
        }
    }

    fn is_blocking(&self) -> bool {
        !matches!(self.kind, TargetKind::Special)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sink::{Sink, SinkRows, csv, ndjson};

    fn shard() -> SinkContext {
        SinkContext::new("job", "totals", SinkRows::Events)
    }

    /// Returns a writer whose incarnation has started.
    fn begun(sink: &impl Sink<u32>) -> Box<dyn SinkWriter<u32>> {
        let mut writer = sink.open(&shard()).unwrap();
        assert_eq!(writer.published().unwrap(), None);
        writer.begin(&Incarnation::without_state()).unwrap();
        writer
    }

    fn show(writer: &mut Box<dyn SinkWriter<u32>>, epoch: u64, rows: &[(u32, isize)]) -> Result<()> {
        writer.write(Epoch(epoch), rows)?;
        writer.publish(&JournalEnds::default())
    }

    #[test]
    fn an_epoch_is_shown_once_and_in_order() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("out.ndjson");
        let mut writer = begun(&ndjson::Sink::new(&path));
        show(&mut writer, 4, &[(1, 1)]).unwrap();
        for epoch in [2, 4] {
            let error = show(&mut writer, epoch, &[(1, 1)]).unwrap_err().to_string();
            assert!(error.starts_with(&format!("epoch {epoch} was to be shown again")), "{error}");
        }
        assert_eq!(fs::read(&path).unwrap(), b"{\"row\":1}\n");
    }

    #[test]
    fn an_existing_file_is_replaced_when_a_life_begins() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("out.ndjson");
        let old = "old and long\n".repeat(10);
        fs::write(&path, &old).unwrap();
        let sink = ndjson::Sink::new(&path);
        let mut writer = Sink::<u32>::open(&sink, &shard()).unwrap();
        let error = show(&mut writer, 2, &[(1, 1)]).unwrap_err().to_string();
        assert!(error.contains("before it was begun"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), old);
        writer.begin(&Incarnation::without_state()).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"");
        show(&mut writer, 2, &[(1, 1), (2, 2)]).unwrap();
        writer.finish().unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "{\"row\":1}\n{\"row\":2}\n{\"row\":2}\n");
    }

    #[test]
    fn a_file_has_one_writer_at_a_time_and_keeps_its_rows() {
        let directory = tempfile::tempdir().unwrap();
        let sink = ndjson::Sink::new(directory.path().join("out.ndjson"));
        let mut writer = begun(&sink);
        show(&mut writer, 2, &[(1, 1)]).unwrap();
        let error = Sink::<u32>::open(&sink, &shard()).err().unwrap().to_string();
        assert!(error.contains("it is being written by another job or output"), "{error}");
        assert_eq!(fs::read(directory.path().join("out.ndjson")).unwrap(), b"{\"row\":1}\n");
        drop(writer);
        begun(&sink);
    }

    #[test]
    fn what_is_beside_a_file_is_beside_the_one_that_a_link_names() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("real")).unwrap();
        let (real, link) = (directory.path().join("real/out.ndjson"), directory.path().join("link"));
        fs::write(&real, "").unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        let state = StateId(1);
        let mut writer =
            Sink::<u32>::open(&ndjson::Sink::new(&link), &SinkContext { state: Some(state), ..shard() }).unwrap();
        writer.begin(&Incarnation { state: Some(state), ..Incarnation::without_state() }).unwrap();
        show(&mut writer, 2, &[(1, 1)]).unwrap();
        assert_eq!(fs::read(&real).unwrap(), b"{\"row\":1}\n");
        assert!(fs::exists(directory.path().join("real/out.ndjson.commit-1")).unwrap());
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 2);
    }

    /// The state and the commit file are found again through the link, and nothing is created beside it.
    #[test]
    fn a_link_to_a_file_that_is_not_there_yet_is_a_link_to_that_file() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("real")).unwrap();
        let (link, second) = (directory.path().join("link"), directory.path().join("second"));
        std::os::unix::fs::symlink("second", &link).unwrap();
        std::os::unix::fs::symlink("real/out.ndjson", &second).unwrap();
        for (incarnation, epoch) in [(1, 2), (2, 4)] {
            let state = StateId(1);
            let sink = ndjson::Sink::new(&link);
            let mut writer = Sink::<u32>::open(&sink, &SinkContext { state: Some(state), ..shard() }).unwrap();
            let shown = writer.published().unwrap().map(|found| found.epoch);
            assert_eq!(shown, (incarnation > 1).then_some(Epoch(2)));
            writer.begin(&Incarnation { state: Some(state), incarnation, ..Incarnation::without_state() }).unwrap();
            show(&mut writer, epoch, &[(1, 1)]).unwrap();
        }
        let real = directory.path().join("real");
        assert_eq!(fs::read(real.join("out.ndjson")).unwrap(), b"{\"row\":1}\n{\"row\":1}\n");
        assert!(fs::exists(real.join("out.ndjson.commit-2")).unwrap());
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 3);
        assert!(link.is_symlink() && second.is_symlink());
        // One link leads to a missing directory, and one to itself.
        let (lost, circle) = (directory.path().join("lost"), directory.path().join("circle"));
        std::os::unix::fs::symlink("missing/out", &lost).unwrap();
        std::os::unix::fs::symlink("circle", &circle).unwrap();
        let said = |path: &Path| Sink::<u32>::open(&ndjson::Sink::new(path), &shard()).err().unwrap().to_string();
        assert!(said(&lost).contains(&format!("there is no directory {}/missing", directory.path().display())));
        assert!(said(&circle).contains("oo many"), "{}", said(&circle));
    }

    #[test]
    fn what_cannot_be_written_to_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let missing = directory.path().join("missing");
        let error = Sink::<u32>::open(&ndjson::Sink::new(missing.join("out")), &shard()).err().unwrap();
        let expected = format!(
            "cannot open the results file ({missing}/out): there is no directory {missing}; \
             create the directory, or name another file",
            missing = missing.display()
        );
        assert_eq!(error.to_string(), expected);
        let error = Sink::<u32>::open(&ndjson::Sink::new(directory.path()), &shard()).err().unwrap();
        assert!(error.to_string().contains("Is a directory"), "{error}");
    }

    /// Linux has a device that is always full, and one that accepts everything.
    #[test]
    #[cfg(target_os = "linux")]
    fn a_full_disk_is_an_error_that_names_the_file() {
        let full = "cannot write the results (/dev/full): the disk is full";
        let mut writer = begun(&ndjson::Sink::new("/dev/full"));
        assert_eq!(writer.write(Epoch(2), &[(1, 1)]).unwrap_err().to_string(), full);
        let mut header = Sink::<crate::source::Rejected>::open(&csv::Sink::new("/dev/full"), &shard()).unwrap();
        assert_eq!(header.begin(&Incarnation::without_state()).unwrap_err().to_string(), full);

        let sink = ndjson::Sink::new("/dev/null");
        for writer in &mut [begun(&sink), begun(&sink)] {
            show(writer, 2, &[(1, 1)]).unwrap();
            writer.finish().unwrap();
        }
    }
}
