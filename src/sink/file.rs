//! Files that rows are appended to, epoch by epoch, in any format.
//!
//! * Without a state, the file is replaced when the job starts. Nothing records how far it is published; it is synced
//!   at the end, or at every publication if [`SinkContext::sync_on_publish`] is set.
//! * With a state, a [commit file](commit) beside it records how far it is **published**: readers that need each epoch
//!   exactly once read it up to there. Rows after that were written by an incarnation that ended before it could
//!   publish them.
//!
//! Invariants: an epoch's lines are encoded first and appended at once; if that fails, the file is truncated to its
//! former length, so it contains an epoch whole or not at all. Epochs are written in order, each once. The file's former
//! contents are dropped when the job starts, not before; with a state they are never dropped.
//!
//! A file of a job with a state is a [`StatefulFile`]; any file is a [`LockedFile`]. A state does not know devices and
//! pipes.

mod append_file;
mod commit;
mod device;
mod errors;
mod growing_checksum;
mod locked_file;
mod stateful_file;

use std::fs;
use std::path::Path;

use self::append_file::AppendFile;
use self::commit::Commit;
use self::device::DeviceFile;
use self::errors::bug;
use self::growing_checksum::GrowingChecksum;
use self::locked_file::LockedFile;
use self::stateful_file::StatefulFile;
use super::encode::EncodeRows;
use super::{SinkContext, SinkWriter};
use crate::durable::disk::parent;
use crate::durable::journal::JournalEnds;
use crate::durable::{Incarnation, PublishedEpoch};
use crate::error::{Error, ErrorKind, Result};
use crate::record::Record;
use crate::time::Epoch;

#[cfg(feature = "cli")]
pub(crate) use self::commit::published_in;
#[cfg(feature = "cli")]
pub(crate) use self::stateful_file::verify_published;

/// Capacity of the line buffer that is kept from one epoch to the next, in bytes, if the epoch needed less. Otherwise
/// what the epoch needed is kept: the next one mostly needs as much, and new memory is a page fault for each 4 KiB.
const KEPT_CAPACITY: usize = 1 << 20;

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
                    verified: GrowingChecksum::default(),
                    incarnation,
                    unpublished: false,
                    broken: false,
                }))
            }
        };
        Ok(writer(target, kind))
    }
}

impl<D: Record, E: EncodeRows<D>> SinkWriter<D> for FileWriter<E> {
    fn published(&mut self) -> Result<Option<PublishedEpoch>> {
        let FileWriter { kind: TargetKind::Stateful(stateful), file, encoder, place, .. } = self else {
            return Ok(None);
        };
        let mut header = Vec::new();
        encoder.header(&mut header);
        let commit = stateful.held.commits.newest()?;
        let verified = stateful.check(&*file.target, commit.as_ref(), &header);
        stateful.verified = verified.map_err(|error| error.at(place))?;
        self.last = commit.as_ref().and_then(|commit| commit.epoch);
        let published = commit.as_ref().and_then(Commit::published);
        stateful.found = Some(commit);
        Ok(published)
    }

    fn begin(&mut self, incarnation: &Incarnation) -> Result<()> {
        let mut header = Vec::new();
        self.encoder.header(&mut header);
        if let TargetKind::Stateful(stateful) = &self.kind
            && stateful.found.is_none()
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
                self.file.begin(GrowingChecksum::default())?;
                self.file.append(&header)?;
                if self.synced {
                    let synced = held.disk.sync_directory(parent(&held.path));
                    synced.map_err(|why| self.file.failed_by("begin the results file", why))?;
                }
            }
            TargetKind::Stateful(stateful) => stateful.begin(&mut self.file, incarnation, &header)?,
        }
        self.begun = true;
        Ok(())
    }

    fn write(&mut self, epoch: Epoch, rows: &[(D, isize)]) -> Result<()> {
        if !self.begun {
            return Err(bug("a results file was to be written to before it was begun").at(&self.place));
        }
        if self.last.is_some_and(|last| last >= epoch) {
            return Err(bug(format!("epoch {epoch} was to be published again, or out of order")).at(&self.place));
        }
        self.lines.clear();
        let encoded = self.encoder.rows(rows, &mut self.lines);
        encoded.map_err(|error| error.at(&self.place))?;
        if let TargetKind::Stateful(stateful) = &mut self.kind {
            stateful.still_current()?;
            stateful.unpublished = true;
        }
        self.file.append(&self.lines)?;
        let needed = self.lines.len();
        self.lines.clear();
        self.lines.shrink_to(needed.max(KEPT_CAPACITY));
        self.last = Some(epoch);
        Ok(())
    }

    fn publish(&mut self, ends: &JournalEnds) -> Result<()> {
        match &mut self.kind {
            TargetKind::Stateful(stateful) if stateful.unpublished => stateful.commit(&mut self.file, self.last, ends),
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
    use crate::durable::StateId;
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
            assert!(error.starts_with(&format!("epoch {epoch} was to be published again")), "{error}");
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
