//! Fault injection for tests of the query programs: a disk and sinks that kill their process at a chosen act, or a disk
//! that is full from then on.
//!
//! A kill from outside comes at a random moment, mostly while nothing is being written. [`KillAt`] names one:
//! `after:journal-sync:7` kills the process right after the seventh sync of a file of the journal, before anything can
//! depend on it. Kinds of acts are told apart by file names; `publish`, by which a sink publishes what was written to a
//! file or a topic, is recognized at the sink's writer.
//!
//! `full:segment-sync:3` is a disk that is full at the third sync of a segment, and from then on.
//!
//! Invariant: when the process ends, the act of a kill `after` is done completely, and that of a kill `before` not at
//! all.

use std::io;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::durable::disk::Disk;
use crate::durable::journal::JournalEnds;
use crate::durable::test_disk::{DiskOperation, HookedDisk, OperationKind};
use crate::durable::{Incarnation, PublishedEpoch};
use crate::sink::{EncodedSink, Sink, SinkContext, SinkRows, SinkWriter, UniqueKey};
use crate::source::TopicAddress;
use crate::time::Epoch;
use crate::{Record, Result};

/// Acts on files and of sinks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FaultPoint {
    /// Bytes are appended to the journal.
    JournalAppend,
    /// The journal is synced.
    JournalSync,
    /// A file of the journal is removed.
    JournalTruncate,
    /// Rows are appended to a results file.
    SinkAppend,
    /// A commit file gets its name, which publishes what was appended.
    SinkCommit,
    /// A segment is synced.
    SegmentSync,
    /// A manifest gets its name.
    Manifest,
    /// The file that reserves an incarnation's number gets its name.
    Incarnation,
    /// The claim of an incarnation gets its name.
    Claim,
    /// A sink publishes what was written; each sink counts its own acts.
    Publish,
}

impl FaultPoint {
    const ALL: [(&'static str, FaultPoint); 10] = [
        ("journal-append", FaultPoint::JournalAppend),
        ("journal-sync", FaultPoint::JournalSync),
        ("journal-cut", FaultPoint::JournalTruncate),
        ("sink-append", FaultPoint::SinkAppend),
        ("sink-commit", FaultPoint::SinkCommit),
        ("segment-sync", FaultPoint::SegmentSync),
        ("manifest", FaultPoint::Manifest),
        ("life", FaultPoint::Incarnation),
        ("claim", FaultPoint::Claim),
        ("show", FaultPoint::Publish),
    ];
}

/// Effect on the chosen act.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FaultEffect {
    /// The process ends before it.
    Before,
    /// The process ends after it.
    After,
    /// There is no disk space for it, nor for any later one of its kind.
    Full,
}

/// A point of fault injection: `before`, `after` or `full`, a kind of act, and the number (from 1) of the act of that
/// kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KillAt {
    when: FaultEffect,
    kind: FaultPoint,
    number: u64,
}

impl FromStr for KillAt {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let wrong = || {
            let kinds = FaultPoint::ALL.map(|(name, _)| name).join(", ");
            format!("write it as before:KIND:N, after:KIND:N or full:KIND:N; KIND is one of {kinds}")
        };
        let mut parts = text.split(':');
        let (Some(when), Some(kind), Some(number), None) = (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(wrong());
        };
        let when = match when {
            "before" => FaultEffect::Before,
            "after" => FaultEffect::After,
            "full" => FaultEffect::Full,
            _ => return Err(wrong()),
        };
        let (_, kind) = FaultPoint::ALL.into_iter().find(|(name, _)| *name == kind).ok_or_else(wrong)?;
        let number = number.parse().ok().filter(|number| *number > 0).ok_or_else(wrong)?;
        if when == FaultEffect::Full && kind == FaultPoint::Publish {
            return Err(String::from("a disk is full for files: name a kind of file"));
        }
        Ok(KillAt { when, kind, number })
    }
}

impl KillAt {
    /// Wraps a disk so that it injects the fault.
    pub(super) fn wrap_disk(self, disk: Arc<dyn Disk>) -> Arc<dyn Disk> {
        let trigger = FaultTrigger::new(self);
        HookedDisk::new(disk, move |operation, act| trigger.run_act(kind_of(operation), act)).shared()
    }

    /// Wraps a sink so that its writers inject the fault.
    pub(super) fn wrap_sink<D: Record>(self, sink: Box<dyn Sink<D>>) -> Box<dyn Sink<D>> {
        Box::new(FaultySink { sink, at: self })
    }
}

#[derive(Debug)]
struct FaultTrigger {
    at: KillAt,
    count: AtomicU64,
}

impl FaultTrigger {
    fn new(at: KillAt) -> Self {
        FaultTrigger { at, count: AtomicU64::new(0) }
    }

    /// Does an act on a file. The process may end before or after it.
    ///
    /// # Errors
    /// Fails as the act does, or because the injected fault leaves no disk space.
    fn run_act(&self, kind: Option<FaultPoint>, act: &mut dyn FnMut() -> io::Result<()>) -> io::Result<()> {
        let number = self.count_if(kind);
        if self.at.when == FaultEffect::Full && number >= self.at.number {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.run_numbered_act(number, act)
    }

    /// Counts an act of the chosen kind; returns its number from 1, or 0 for an act of another kind.
    fn count_if(&self, kind: Option<FaultPoint>) -> u64 {
        if kind == Some(self.at.kind) { self.count.fetch_add(1, Ordering::SeqCst) + 1 } else { 0 }
    }

    /// Does the act with this number; the process may end before or after it.
    fn run_numbered_act<T>(&self, number: u64, act: impl FnOnce() -> T) -> T {
        if number == self.at.number && self.at.when == FaultEffect::Before {
            die();
        }
        let done = act();
        if number == self.at.number && self.at.when == FaultEffect::After {
            die();
        }
        done
    }
}

/// Kills this process by SIGKILL, so that no code of it runs any more.
fn die() -> ! {
    let _ = kill(Pid::this(), Signal::SIGKILL);
    std::process::abort()
}

fn ends_with(path: &Path, end: &str) -> bool {
    path.to_string_lossy().ends_with(end)
}

/// Returns the name of a file that is directly in a directory of this name.
fn in_directory<'a>(path: &'a Path, directory: &str) -> Option<&'a str> {
    let above = path.parent()?.file_name()?;
    (above == directory).then(|| path.file_name()?.to_str()).flatten()
}

/// Returns `true` if a file is a results file: any file that does not belong to the state.
fn is_results(path: &Path) -> bool {
    let is_of_state = |directory: &&str| in_directory(path, directory).is_some();
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    !["lives", "journal", "manifests", "segments"].iter().any(is_of_state)
        && !name.contains(".commit-")
        && !name.starts_with("STATE")
        && !name.starts_with("LOCK")
}

/// Returns the kind of act that giving a file this name is; `None` if it is no such act.
fn renamed_kind(path: &Path) -> Option<FaultPoint> {
    let name = path.file_name()?.to_str()?;
    match in_directory(path, "lives") {
        Some(life) if life.ends_with(".claim") => return Some(FaultPoint::Claim),
        Some(_) => return Some(FaultPoint::Incarnation),
        None => {}
    }
    match () {
        () if in_directory(path, "manifests").is_some() => Some(FaultPoint::Manifest),
        () if name.contains(".commit-") => Some(FaultPoint::SinkCommit),
        () => None,
    }
}

/// Returns the kind of act that an operation on a disk is; `None` if it is none.
fn kind_of(operation: &DiskOperation) -> Option<FaultPoint> {
    let path = &operation.path;
    let (is_journal, is_segment) = (ends_with(path, ".journal"), ends_with(path, ".segment"));
    match &operation.kind {
        OperationKind::Rename(to) | OperationKind::Link(to) => renamed_kind(to),
        OperationKind::Remove if is_journal => Some(FaultPoint::JournalTruncate),
        OperationKind::Append(_) if is_journal => Some(FaultPoint::JournalAppend),
        OperationKind::Append(_) if is_results(path) => Some(FaultPoint::SinkAppend),
        OperationKind::Sync if is_journal => Some(FaultPoint::JournalSync),
        OperationKind::Sync if is_segment => Some(FaultPoint::SegmentSync),
        _ => None,
    }
}

/// A sink whose writers inject a fault.
struct FaultySink<D: Record> {
    sink: Box<dyn Sink<D>>,
    at: KillAt,
}

impl<D: Record> Sink<D> for FaultySink<D> {
    fn describe(&self) -> String {
        self.sink.describe()
    }

    fn check(&self, rows: SinkRows) -> Result<()> {
        self.sink.check(rows)
    }

    fn topics(&self) -> Vec<TopicAddress> {
        self.sink.topics()
    }

    fn unique_key(&self) -> Option<UniqueKey<D>> {
        self.sink.unique_key()
    }

    fn encoded(&self) -> Result<Option<EncodedSink<D>>> {
        let wrap = |lines| Box::new(FaultySink { sink: lines, at: self.at });
        let encoded = self.sink.encoded()?;
        Ok(encoded.map(|EncodedSink { encode, lines }| EncodedSink { encode, lines: wrap(lines) }))
    }

    fn open(&self, at: &SinkContext) -> Result<Box<dyn SinkWriter<D>>> {
        Ok(Box::new(FaultyWriter { writer: self.sink.open(at)?, trigger: FaultTrigger::new(self.at) }))
    }
}

/// A sink's writer that injects a fault.
struct FaultyWriter<D: Record> {
    writer: Box<dyn SinkWriter<D>>,
    trigger: FaultTrigger,
}

impl<D: Record> SinkWriter<D> for FaultyWriter<D> {
    fn published(&mut self) -> Result<Option<PublishedEpoch>> {
        self.writer.published()
    }

    fn begin(&mut self, life: &Incarnation) -> Result<()> {
        self.writer.begin(life)
    }

    fn write(&mut self, epoch: Epoch, rows: &[(D, isize)]) -> Result<()> {
        self.writer.write(epoch, rows)
    }

    fn publish(&mut self, ends: &JournalEnds) -> Result<()> {
        self.trigger.run_numbered_act(self.trigger.count_if(Some(FaultPoint::Publish)), || self.writer.publish(ends))
    }

    fn finish(&mut self) -> Result<()> {
        self.writer.finish()
    }

    fn remembers(&self) -> bool {
        self.writer.remembers()
    }

    fn is_blocking(&self) -> bool {
        self.writer.is_blocking()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_read_or_refused() {
        let moment = KillAt { when: FaultEffect::After, kind: FaultPoint::JournalSync, number: 7 };
        assert_eq!("after:journal-sync:7".parse(), Ok(moment));
        for wrong in ["journal-sync:7", "after:nothing:7", "after:claim:0", "after:claim", "never:claim:1", "a:b:c:d"] {
            let why = wrong.parse::<KillAt>().unwrap_err();
            assert!(why.contains("one of journal-append, journal-sync, "), "{why}");
        }
    }

    #[test]
    fn files_are_told_by_their_names() {
        let expected = [
            ("s/lives/3", Some(FaultPoint::Incarnation), false),
            ("s/lives/3.claim", Some(FaultPoint::Claim), false),
            ("s/manifests/1700-3.manifest", Some(FaultPoint::Manifest), false),
            ("out.csv.commit-3", Some(FaultPoint::SinkCommit), false),
            ("out.csv", None, true),
            ("s/STATE", None, false),
            ("s/journal/1-0-0.journal", None, false),
        ];
        for (path, named, results) in expected {
            assert_eq!((renamed_kind(Path::new(path)), is_results(Path::new(path))), (named, results), "{path}");
        }
    }
}
