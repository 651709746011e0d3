//! A results file of a job with a state: verified against its commit file, and published by it.
//!
//! Invariants: lines are synced before a commit publishes them, and published bytes are never overwritten. Former contents
//! are never dropped: a file that has contents and no commit of this sink is refused. After a commit that failed nothing
//! is published any more, as the contents of the disk are then unknown.
//!
//! A start reads a bounded part of the results, whatever their size: it verifies the length of the published part, and the
//! bytes after the prefix that the commit records ([`super::growing_checksum`]); of commits of earlier formats, which record
//! none, all bytes once. Nothing that an incarnation does depends on earlier bytes: they were synced before they were
//! published, and are never read for anything but to be verified. Damage further back is found by [`verify_published`],
//! which reads all. An incarnation that leaves the file to a holder of its lock reads all too, as it goes on in a copy.
//!
//! An incarnation checks that it is still the current one before it appends, not only before it publishes: if locks are
//! unreliable, its rows would otherwise stand where a later incarnation appends. At most one append can slip in between
//! the check and the write. If a later incarnation has published rows there by then, the file's checksum tells: the next
//! start refuses the file if the place is after the prefix by then, and [`verify_published`] wherever it is.

use std::path::Path;
use std::sync::Arc;

use super::append_file::AppendFile;
use super::commit::{Commit, Commits, resolved};
use super::errors::{bug, refused};
use super::growing_checksum::{GrowingChecksum, Prefix};
use super::locked_file::{LockedFile, read_through};
use crate::durable::disk::{Disk, DiskFile, parent};
use crate::durable::journal::JournalEnds;
use crate::durable::{Incarnation, StateId};
use crate::error::{Error, ErrorKind, Result};
use crate::time::Epoch;

fn unreadable(why: std::io::Error) -> Error {
    Error::of(ErrorKind::SinkFailed, "cannot read the results file").caused_by(why)
}

/// Returns what to do with a file that is not as it was published.
fn restore(commit: &Path) -> String {
    format!("restore it, or move it and {} away and begin anew, with a new state directory", commit.display())
}

/// Verifies that a file is as long as what its commit, which is at `path`, publishes.
fn check_length(length: u64, commit: &Commit, path: &Path) -> Result<()> {
    if length < commit.length {
        let (shown, name) = (commit.length, path.display());
        let why = format!("it has {length} bytes, and {shown} were published, as {name} says");
        return Err(refused(why).help(restore(path)));
    }
    Ok(())
}

/// Verifies the published bytes after a prefix, which is known to be good, and returns the checksum of all. `each` is called
/// with the number of bytes of each piece.
fn check_bytes(
    file: &dyn DiskFile,
    commit: &Commit,
    path: &Path,
    prefix: Prefix,
    each: &mut dyn FnMut(u64),
) -> Result<GrowingChecksum> {
    let mut sum = GrowingChecksum::after(prefix);
    let add = |piece: &[u8]| {
        sum.update(piece);
        each(piece.len() as u64);
        Ok(())
    };
    read_through(file, prefix.length..commit.length, add).map_err(unreadable)?;
    if (sum.length(), sum.checksum()) != (commit.length, commit.checksum) {
        let why = format!("its published part has been changed since, according to {}", path.display());
        return Err(refused(why).help(restore(path)));
    }
    Ok(sum)
}

/// Verifies every byte that a results file of a job with a state has published; a file without commit file has published
/// nothing. `each` is called with the number of bytes of each piece, and the number of all. Nothing is locked or written.
///
/// # Errors
/// Fails if the published part is not as it was written, or cannot be read.
#[cfg_attr(not(feature = "cli"), expect(dead_code, reason = "the command-line tool uses it"))]
pub(crate) fn verify_published(disk: &Arc<dyn Disk>, file: &Path, each: &mut dyn FnMut(u64, u64)) -> Result<()> {
    let target = resolved(file);
    let commits = Commits::of(disk, &target);
    let Some(commit) = commits.newest()? else { return Ok(()) };
    let path = commits.path(commit.incarnation);
    let mut verified = || {
        let opened = disk.open(&target).map_err(unreadable)?;
        check_length(opened.length().map_err(unreadable)?, &commit, &path)?;
        check_bytes(&*opened, &commit, &path, Prefix::default(), &mut |bytes| each(bytes, commit.length))
    };
    verified().map(drop).map_err(|error| error.at(file.display()))
}

/// A file whose published epochs are recorded in a commit file.
pub(super) struct StatefulFile {
    pub(super) held: LockedFile,
    pub(super) state: StateId,
    pub(super) sink: String,
    /// Newest commit when [`SinkWriter::published`] was called: `None` before that, `Some(None)` if there was no
    /// commit.
    pub(super) found: Option<Option<Commit>>,
    /// Checksum of what that commit publishes.
    pub(super) verified: GrowingChecksum,
    pub(super) incarnation: Option<Incarnation>,
    /// `true` if anything was written since the last commit.
    pub(super) unpublished: bool,
    /// `true` if a commit failed: the contents of the disk are then unknown.
    pub(super) broken: bool,
}

impl StatefulFile {
    /// Verifies that a file is what its commit records; `header` is the one that the file would begin with now. Returns the
    /// checksum of the published part.
    pub(super) fn check(&self, file: &dyn DiskFile, commit: Option<&Commit>, header: &[u8]) -> Result<GrowingChecksum> {
        let length = file.length().map_err(unreadable)?;
        let Some(commit) = commit else {
            if length == 0 {
                return Ok(GrowingChecksum::default());
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
            let (theirs, ours) = (&commit.sink, &self.sink);
            return Err(refused(format!("`{theirs}` wrote it, and this is `{ours}`")).help(format!(
                "say `flow.output_was(\"{ours}\", \"{theirs}\")` if it is the same output; otherwise {aside}"
            )));
        }
        check_length(length, commit, &path)?;
        let mut begin = vec![0; header.len().min(usize::try_from(commit.length).unwrap_or(usize::MAX))];
        file.read_at(0, &mut begin).map_err(unreadable)?;
        if !begin.is_empty() && begin != header {
            let other = "its columns are not those of the rows that are to be written";
            return Err(refused(other).help(format!(
                "write another file under another name, and forget this output with `State::drop_output(\"{}\")` or \
                 --drop-output; or begin a new state, with another file",
                self.sink
            )));
        }
        check_bytes(file, commit, &path, commit.prefix, &mut |_| {})
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
            return Err(refused(format!(
                "incarnation {theirs} of the state wrote it, and this is only incarnation {ours}"
            ))
            .at(&file.place)
            .help("use the newest copy of the state directory"));
        }
        Ok(newest)
    }

    /// Starts an incarnation at the position that was last published.
    pub(super) fn begin(&mut self, file: &mut AppendFile, incarnation: &Incarnation, header: &[u8]) -> Result<()> {
        let found = self.check_unchanged(file, incarnation)?;
        self.incarnation = Some(incarnation.clone());
        let written = self.verified.clone();
        let (length, checksum) = (written.length(), written.checksum());
        if self.held.is_of_another {
            file.target = self.held.copy(&*file.target, length, checksum, incarnation)?;
        }
        file.begin(written)?;
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
    pub(super) fn still_current(&self) -> Result<()> {
        self.incarnation.as_ref().map_or(Ok(()), |incarnation| (incarnation.still_current)())
    }

    /// Syncs what was written, and publishes it with a commit.
    pub(super) fn commit(&mut self, file: &mut AppendFile, epoch: Option<Epoch>, ends: &JournalEnds) -> Result<()> {
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
            length: file.written.length(),
            checksum: file.written.checksum(),
            prefix: file.written.prefix(),
            process: std::process::id(),
            ends: ends.clone(),
        };
        self.held.commits.publish(&commit, incarnation)?;
        (self.broken, self.unpublished) = (false, false);
        Ok(())
    }
}
