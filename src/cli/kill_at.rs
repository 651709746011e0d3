//! A disk, and sinks, whose process kills itself at a chosen act, or for which the disk is full then: how the tests of the
//! query programs choose the moment.
//!
//! A kill from outside comes at a moment that nobody chose, mostly while nothing is being written. [`KillAt`] names one:
//! `after:journal-sync:7` kills the process right after the seventh time that a file of the journal was synced, before
//! anything can know of it. Kinds of acts are told by the names of files; `show`, by which a sink shows what was written, of a
//! file or of a topic, by its writer.
//!
//! `full:segment-sync:3` is a disk that is full at the third segment, and from then on.
//!
//! Invariant: the act of a kill `after` has happened wholly when the process ends, that of a kill `before` not at all.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::durable::disk::{Disk, DiskFile, Lock};
use crate::durable::journal::JournalEnds;
use crate::durable::{Life, Published};
use crate::sink::Writer;
use crate::time::Epoch;
use crate::{Record, Result};

/// What an act does to which kind of file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Bytes are appended to the journal.
    JournalAppend,
    /// The journal is synced.
    JournalSync,
    /// A file of the journal is removed.
    JournalCut,
    /// Rows are appended to a results file.
    SinkAppend,
    /// A commit file gets its name: what was appended is shown.
    SinkCommit,
    /// A segment is synced.
    SegmentSync,
    /// A manifest gets its name.
    Manifest,
    /// A life gets its number.
    Life,
    /// A life gets its claim.
    Claim,
    /// A sink shows what was written; each sink counts its own.
    Show,
}

impl Kind {
    const ALL: [(&'static str, Kind); 10] = [
        ("journal-append", Kind::JournalAppend),
        ("journal-sync", Kind::JournalSync),
        ("journal-cut", Kind::JournalCut),
        ("sink-append", Kind::SinkAppend),
        ("sink-commit", Kind::SinkCommit),
        ("segment-sync", Kind::SegmentSync),
        ("manifest", Kind::Manifest),
        ("life", Kind::Life),
        ("claim", Kind::Claim),
        ("show", Kind::Show),
    ];
}

/// What happens at an act.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum When {
    /// The process ends before it.
    Before,
    /// The process ends after it.
    After,
    /// There is no room for it, nor for any later one of its kind.
    Full,
}

/// The moment: `before`, `after` or `full`, a kind of act, and which act of that kind, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KillAt {
    when: When,
    kind: Kind,
    number: u64,
}

impl FromStr for KillAt {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let wrong = || {
            let kinds = Kind::ALL.map(|(name, _)| name).join(", ");
            format!("write it as before:KIND:N, after:KIND:N or full:KIND:N; KIND is one of {kinds}")
        };
        let mut parts = text.split(':');
        let (Some(when), Some(kind), Some(number), None) = (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(wrong());
        };
        let when = match when {
            "before" => When::Before,
            "after" => When::After,
            "full" => When::Full,
            _ => return Err(wrong()),
        };
        let (_, kind) = Kind::ALL.into_iter().find(|(name, _)| *name == kind).ok_or_else(wrong)?;
        let number = number.parse().ok().filter(|number| *number > 0).ok_or_else(wrong)?;
        if when == When::Full && kind == Kind::Show {
            return Err(String::from("a disk is full for files: name a kind of file"));
        }
        Ok(KillAt { when, kind, number })
    }
}

impl KillAt {
    /// A disk that ends its process at this moment.
    pub(super) fn on(self, disk: Arc<dyn Disk>) -> Arc<dyn Disk> {
        Arc::new(KillingDisk { disk, trigger: Arc::new(Trigger::new(self)) })
    }

    /// A writer that ends its process at this moment.
    pub(super) fn on_writer<D: Record>(self, writer: Box<dyn Writer<D>>) -> Box<dyn Writer<D>> {
        Box::new(KillingWriter { writer, trigger: Trigger::new(self) })
    }
}

#[derive(Debug)]
struct Trigger {
    at: KillAt,
    count: AtomicU64,
}

impl Trigger {
    fn new(at: KillAt) -> Self {
        Trigger { at, count: AtomicU64::new(0) }
    }

    /// Does an act of a kind on a file; the process may end before it or after it, or there is no room for it.
    fn around<T>(&self, kind: Option<Kind>, act: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let number = self.count_if(kind);
        if self.at.when == When::Full && number >= self.at.number {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.die_around(number, act)
    }

    /// Counts an act if it is of the kind that matters: how many there were with it, else 0.
    fn count_if(&self, kind: Option<Kind>) -> u64 {
        if kind == Some(self.at.kind) { self.count.fetch_add(1, Ordering::SeqCst) + 1 } else { 0 }
    }

    /// Does an act that has a number; the process may end before it or after it.
    fn die_around<T>(&self, number: u64, act: impl FnOnce() -> T) -> T {
        if number == self.at.number && self.at.when == When::Before {
            die();
        }
        let done = act();
        if number == self.at.number && self.at.when == When::After {
            die();
        }
        done
    }
}

/// Ends this process as a kill from outside does: nothing of it runs any more.
fn die() -> ! {
    let _ = kill(Pid::this(), Signal::SIGKILL);
    std::process::abort()
}

fn ends_with(path: &Path, end: &str) -> bool {
    path.to_string_lossy().ends_with(end)
}

/// The name of a file in the directory of this name.
fn in_directory<'a>(path: &'a Path, directory: &str) -> Option<&'a str> {
    let above = path.parent()?.file_name()?;
    (above == directory).then(|| path.file_name()?.to_str()).flatten()
}

/// Whether a file is a results file, by what is not in its name.
fn is_results(path: &Path) -> bool {
    let is_of_state = |directory: &&str| in_directory(path, directory).is_some();
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    !["lives", "journal", "manifests", "segments"].iter().any(is_of_state)
        && !name.contains(".commit-")
        && !name.starts_with("STATE")
        && !name.starts_with("LOCK")
}

/// What it is to give a file this name.
fn naming(path: &Path) -> Option<Kind> {
    let name = path.file_name()?.to_str()?;
    match in_directory(path, "lives") {
        Some(life) if life.ends_with(".claim") => return Some(Kind::Claim),
        Some(_) => return Some(Kind::Life),
        None => {}
    }
    match () {
        () if in_directory(path, "manifests").is_some() => Some(Kind::Manifest),
        () if name.contains(".commit-") => Some(Kind::SinkCommit),
        () => None,
    }
}

/// A disk that ends its process at a moment.
#[derive(Debug)]
struct KillingDisk {
    disk: Arc<dyn Disk>,
    trigger: Arc<Trigger>,
}

impl KillingDisk {
    fn file(&self, path: &Path, file: Box<dyn DiskFile>) -> Box<dyn DiskFile> {
        Box::new(KillingFile { file, path: path.to_owned(), trigger: Arc::clone(&self.trigger) })
    }
}

impl Disk for KillingDisk {
    fn list(&self, directory: &Path) -> io::Result<Vec<String>> {
        self.disk.list(directory)
    }

    fn create_directory(&self, directory: &Path) -> io::Result<()> {
        self.disk.create_directory(directory)
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        Ok(self.file(path, self.disk.create(path)?))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        Ok(self.file(path, self.disk.open(path)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.trigger.around(naming(to), || self.disk.rename(from, to))
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.trigger.around(naming(to), || self.disk.link(from, to))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let kind = ends_with(path, ".journal").then_some(Kind::JournalCut);
        self.trigger.around(kind, || self.disk.remove(path))
    }

    fn sync_directory(&self, directory: &Path) -> io::Result<()> {
        self.disk.sync_directory(directory)
    }

    fn lock(&self, path: &Path) -> io::Result<Option<Box<dyn Lock>>> {
        self.disk.lock(path)
    }
}

struct KillingFile {
    file: Box<dyn DiskFile>,
    path: PathBuf,
    trigger: Arc<Trigger>,
}

impl fmt::Debug for KillingFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("KillingFile").field(&self.file).finish()
    }
}

impl DiskFile for KillingFile {
    fn length(&self) -> io::Result<u64> {
        self.file.length()
    }

    fn read_at(&self, position: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.file.read_at(position, bytes)
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let kind = match () {
            () if ends_with(&self.path, ".journal") => Some(Kind::JournalAppend),
            () if is_results(&self.path) => Some(Kind::SinkAppend),
            () => None,
        };
        self.trigger.around(kind, || self.file.append(bytes))
    }

    fn cut(&mut self, length: u64) -> io::Result<()> {
        self.file.cut(length)
    }

    fn sync(&mut self) -> io::Result<()> {
        let kind = match () {
            () if ends_with(&self.path, ".journal") => Some(Kind::JournalSync),
            () if ends_with(&self.path, ".segment") => Some(Kind::SegmentSync),
            () => None,
        };
        self.trigger.around(kind, || self.file.sync())
    }
}

/// A writer that ends its process at a moment.
struct KillingWriter<D: Record> {
    writer: Box<dyn Writer<D>>,
    trigger: Trigger,
}

impl<D: Record> Writer<D> for KillingWriter<D> {
    fn shown(&mut self) -> Result<Option<Published>> {
        self.writer.shown()
    }

    fn begin(&mut self, life: &Life) -> Result<()> {
        self.writer.begin(life)
    }

    fn write(&mut self, epoch: Epoch, rows: &[(D, isize)]) -> Result<()> {
        self.writer.write(epoch, rows)
    }

    fn show(&mut self, ends: &JournalEnds) -> Result<()> {
        self.trigger.die_around(self.trigger.count_if(Some(Kind::Show)), || self.writer.show(ends))
    }

    fn finish(&mut self) -> Result<()> {
        self.writer.finish()
    }

    fn remembers(&self) -> bool {
        self.writer.remembers()
    }

    fn waits(&self) -> bool {
        self.writer.waits()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_read_or_refused() {
        let moment = KillAt { when: When::After, kind: Kind::JournalSync, number: 7 };
        assert_eq!("after:journal-sync:7".parse(), Ok(moment));
        for wrong in ["journal-sync:7", "after:nothing:7", "after:claim:0", "after:claim", "never:claim:1", "a:b:c:d"] {
            let why = wrong.parse::<KillAt>().unwrap_err();
            assert!(why.contains("one of journal-append, journal-sync, "), "{why}");
        }
    }

    #[test]
    fn files_are_told_by_their_names() {
        let expected = [
            ("s/lives/3", Some(Kind::Life), false),
            ("s/lives/3.claim", Some(Kind::Claim), false),
            ("s/manifests/1700-3.manifest", Some(Kind::Manifest), false),
            ("out.csv.commit-3", Some(Kind::SinkCommit), false),
            ("out.csv", None, true),
            ("s/STATE", None, false),
            ("s/journal/1-0-0.journal", None, false),
        ];
        for (path, named, results) in expected {
            assert_eq!((naming(Path::new(path)), is_results(Path::new(path))), (named, results), "{path}");
        }
    }
}
