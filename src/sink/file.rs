//! Files that rows are appended to, an epoch at a time, whatever their format.
//!
//! Invariants: an epoch's lines are built first and appended with one write; if that fails, the file is cut back to
//! the length it had, so an epoch is in the file whole or not at all. While a file is written it is locked: nothing
//! else of ours writes to it. What was in it before is gone once it is open, and only then.
//!
//! A file keeps no number of the epoch it ends with, so what was shown is known only from its opening on: a file
//! survives the end of its job, but not the start of the next one.
//! Formats are not known here.

use std::fs;
use std::io::{self, Seek, SeekFrom, Write};
use std::path::Path;

use super::Writer;
use super::encode::Encode;
use crate::durable::Life;
use crate::error::{Error, Result};
use crate::record::Record;
use crate::time::Epoch;

/// How much of the space for an epoch's lines is kept for the next one, in bytes.
const KEPT: usize = 1 << 20;

/// What lines are appended to.
pub(super) trait Target: Write + Send {
    /// Drops everything after so many bytes; writing goes on there.
    fn cut(&mut self, length: u64) -> io::Result<()>;

    /// Returns when the bytes are where they survive a loss of power.
    fn sync(&mut self) -> io::Result<()>;
}

impl Target for fs::File {
    fn cut(&mut self, length: u64) -> io::Result<()> {
        self.set_len(length)?;
        self.seek(SeekFrom::Start(length)).map(drop)
    }

    fn sync(&mut self) -> io::Result<()> {
        // Devices and pipes have nothing to sync.
        if self.metadata()?.is_file() { self.sync_all() } else { Ok(()) }
    }
}

/// Appends epochs to a file.
pub(super) struct FileWriter<E, T = fs::File> {
    target: T,
    place: String,
    encoder: E,
    lines: Vec<u8>,
    /// How long the file is: everything up to here is shown.
    length: u64,
    last: Option<Epoch>,
    /// Whether the file has a part of an epoch that could not be cut off.
    torn: bool,
}

impl<E> FileWriter<E> {
    /// Replaces a file, and writes the header.
    pub(super) fn open<D: Record>(path: &Path, encoder: E) -> Result<Self>
    where
        E: Encode<D>,
    {
        let place = path.display().to_string();
        let target = replace(path).map_err(|error| error.at(&place))?;
        FileWriter::start::<D>(target, place, encoder)
    }
}

/// Opens a file, locks it, and empties it.
fn replace(path: &Path) -> Result<fs::File> {
    let failed = || Error::new("cannot open the results file");
    // It is emptied only when it is locked: another job may be writing to it.
    let opened = fs::OpenOptions::new().write(true).create(true).truncate(false).open(path);
    let file = opened.map_err(|why| match path.parent() {
        Some(parent) if why.kind() == io::ErrorKind::NotFound && !parent.as_os_str().is_empty() => failed()
            .because(format!("there is no directory {}", parent.display()))
            .help("create the directory, or name another file"),
        _ => failed().because(why),
    })?;
    if !file.metadata().map_err(|why| failed().because(why))?.is_file() {
        return Ok(file);
    }
    match file.try_lock() {
        Err(fs::TryLockError::WouldBlock) => {
            return Err(failed().because("it is being written by another job or output").help("name another file"));
        }
        // A file system without locks is no reason not to write.
        Ok(()) | Err(fs::TryLockError::Error(_)) => {}
    }
    file.set_len(0).map_err(|why| failed().because(why))?;
    Ok(file)
}

impl<E, T: Target> FileWriter<E, T> {
    fn start<D: Record>(target: T, place: String, encoder: E) -> Result<Self>
    where
        E: Encode<D>,
    {
        let mut lines = Vec::new();
        encoder.header(&mut lines);
        let mut writer = FileWriter { target, place, encoder, lines, length: 0, last: None, torn: false };
        writer.append().map_err(|error| error.at(&writer.place))?;
        Ok(writer)
    }

    /// Appends the lines, all or none.
    fn append(&mut self) -> Result<()> {
        if self.torn {
            return Err(Error::new("cannot write the results").because("a part of an earlier epoch is in the way"));
        }
        let mut written = 0;
        while written < self.lines.len() {
            let failure = match self.target.write(&self.lines[written..]) {
                Ok(0) => io::Error::from(io::ErrorKind::WriteZero),
                Ok(count) => {
                    written += count;
                    continue;
                }
                Err(why) if why.kind() == io::ErrorKind::Interrupted => continue,
                Err(why) => why,
            };
            return Err(self.take_back(written, &failure));
        }
        self.length += written as u64;
        self.lines.clear();
        self.lines.shrink_to(KEPT);
        Ok(())
    }

    /// Cuts off what was written before a write failed, and says what happened.
    fn take_back(&mut self, written: usize, failure: &io::Error) -> Error {
        let failed = Error::new("cannot write the results").because(failure);
        if written == 0 {
            return failed;
        }
        match self.target.cut(self.length) {
            Ok(()) => failed,
            Err(why) => {
                self.torn = true;
                failed.help(format!("cut the file back to {} bytes, as that failed too: {why}", self.length))
            }
        }
    }
}

impl<D: Record, E: Encode<D>, T: Target> Writer<D> for FileWriter<E, T> {
    fn shown(&mut self) -> Result<Option<Epoch>> {
        Ok(self.last)
    }

    fn begin(&mut self, _life: &Life) -> Result<()> {
        Ok(())
    }

    fn show(&mut self) -> Result<()> {
        Ok(())
    }

    fn write(&mut self, epoch: Epoch, rows: &[(D, isize)]) -> Result<()> {
        if self.last.is_some_and(|last| last >= epoch) {
            return Err(Error::new(format!("epoch {epoch} was to be shown again, or out of order"))
                .at(&self.place)
                .help("this is a bug in Tidegate: please report it"));
        }
        self.lines.clear();
        self.encoder.rows(rows, &mut self.lines).map_err(|error| error.at(&self.place))?;
        self.append().map_err(|error| error.at(&self.place))?;
        self.last = Some(epoch);
        Ok(())
    }

    fn finish(&mut self) -> Result<()> {
        let synced = self.target.sync();
        synced.map_err(|why| Error::new("cannot sync the results").at(&self.place).because(why))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sink::Sink;
    use crate::sink::{Rows, Shard, csv, ndjson};

    /// A file in memory that takes a few bytes a write, and has room for so many.
    #[derive(Default)]
    struct Small {
        bytes: Vec<u8>,
        room: usize,
        stuck: bool,
    }

    impl Write for Small {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let count = bytes.len().min(3).min(self.room - self.bytes.len());
            if count == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.bytes.extend_from_slice(&bytes[..count]);
            Ok(count)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Target for Small {
        fn cut(&mut self, length: u64) -> io::Result<()> {
            if self.stuck {
                return Err(io::ErrorKind::PermissionDenied.into());
            }
            self.bytes.truncate(length as usize);
            Ok(())
        }

        fn sync(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn shard() -> Shard {
        Shard::new("job", "totals", Rows::Events)
    }

    fn numbers(small: Small) -> FileWriter<ndjson::Encoder, Small> {
        let encoder = ndjson::Encoder::new::<u32>(Rows::Events).unwrap();
        FileWriter::start::<u32>(small, "small".into(), encoder).unwrap()
    }

    /// Whatever room is left when the disk fills up.
    #[test]
    fn an_epoch_that_does_not_fit_is_not_there_at_all() {
        let first = "{\"row\":1}\n";
        for room in first.len()..first.len() + 20 {
            let mut writer = numbers(Small { room, ..Small::default() });
            writer.write(Epoch(2), &[(1, 1)]).unwrap();
            let error = writer.write(Epoch(4), &[(22, 1), (33, 1)]).unwrap_err();
            assert_eq!(error.to_string(), "cannot write the results (small): no storage space");
            assert_eq!(String::from_utf8_lossy(&writer.target.bytes), first);
            assert_eq!(Writer::<u32>::shown(&mut writer).unwrap(), Some(Epoch(2)));
            writer.target.room = 100;
            writer.write(Epoch(4), &[(3, 1)]).unwrap();
            assert_eq!(String::from_utf8_lossy(&writer.target.bytes), "{\"row\":1}\n{\"row\":3}\n");
        }
    }

    #[test]
    fn nothing_is_written_behind_a_part_of_an_epoch() {
        let mut writer = numbers(Small { room: 5, stuck: true, ..Small::default() });
        let error = writer.write(Epoch(2), &[(1, 1)]).unwrap_err().to_string();
        assert!(error.contains("cut the file back to 0 bytes"), "{error}");
        writer.target.room = 100;
        let error = writer.write(Epoch(4), &[(1, 1)]).unwrap_err().to_string();
        assert!(error.contains("a part of an earlier epoch is in the way"), "{error}");
    }

    #[test]
    fn an_epoch_is_shown_once_and_in_order() {
        let mut writer = numbers(Small { room: 100, ..Small::default() });
        assert_eq!(Writer::<u32>::shown(&mut writer).unwrap(), None);
        writer.write(Epoch(4), &[(1, 1)]).unwrap();
        for epoch in [Epoch(2), Epoch(4)] {
            let error = writer.write(epoch, &[(1, 1)]).unwrap_err().to_string();
            assert!(error.starts_with(&format!("epoch {epoch} was to be shown again")), "{error}");
        }
        assert_eq!(writer.target.bytes, b"{\"row\":1}\n");
    }

    #[test]
    fn an_existing_file_is_replaced_and_a_real_one_is_cut_back() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("out.ndjson");
        fs::write(&path, "old and long\n".repeat(10)).unwrap();
        let mut writer = Sink::<u32>::open(&ndjson::File::new(&path), &shard()).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"");
        writer.write(Epoch(2), &[(1, 1), (2, 2)]).unwrap();
        writer.finish().unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "{\"row\":1}\n{\"row\":2}\n{\"row\":2}\n");

        let mut file = fs::OpenOptions::new().append(false).write(true).read(true).open(&path).unwrap();
        file.seek(SeekFrom::End(0)).unwrap();
        file.cut(10).unwrap();
        file.write_all(b"new\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "{\"row\":1}\nnew\n");
    }

    #[test]
    fn a_file_has_one_writer_at_a_time_and_keeps_its_rows() {
        let directory = tempfile::tempdir().unwrap();
        let sink = ndjson::File::new(directory.path().join("out.ndjson"));
        let mut writer = Sink::<u32>::open(&sink, &shard()).unwrap();
        writer.write(Epoch(2), &[(1, 1)]).unwrap();
        let error = Sink::<u32>::open(&sink, &shard()).err().unwrap().to_string();
        assert!(error.contains("it is being written by another job or output"), "{error}");
        assert_eq!(fs::read(directory.path().join("out.ndjson")).unwrap(), b"{\"row\":1}\n");
        drop(writer);
        Sink::<u32>::open(&sink, &shard()).unwrap();
    }

    #[test]
    fn what_cannot_be_written_to_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let missing = directory.path().join("missing");
        let error = Sink::<u32>::open(&ndjson::File::new(missing.join("out")), &shard()).err().unwrap();
        let expected = format!(
            "cannot open the results file ({missing}/out): there is no directory {missing}; \
             create the directory, or name another file",
            missing = missing.display()
        );
        assert_eq!(error.to_string(), expected);
        let error = Sink::<u32>::open(&ndjson::File::new(directory.path()), &shard()).err().unwrap();
        assert!(error.to_string().contains("Is a directory"), "{error}");
    }

    /// Linux has a device that is always full, and one that takes everything.
    #[test]
    #[cfg(target_os = "linux")]
    fn a_full_disk_is_an_error_that_names_the_file() {
        let full = "cannot write the results (/dev/full): No space left on device (os error 28)";
        let mut writer = Sink::<u32>::open(&ndjson::File::new("/dev/full"), &shard()).unwrap();
        assert_eq!(writer.write(Epoch(2), &[(1, 1)]).unwrap_err().to_string(), full);
        let header = Sink::<crate::source::Rejected>::open(&csv::File::new("/dev/full"), &shard());
        assert_eq!(header.err().unwrap().to_string(), full);

        let (mut first, mut second) = (
            Sink::<u32>::open(&ndjson::File::new("/dev/null"), &shard()).unwrap(),
            Sink::<u32>::open(&ndjson::File::new("/dev/null"), &shard()).unwrap(),
        );
        for writer in [&mut first, &mut second] {
            writer.write(Epoch(2), &[(1, 1)]).unwrap();
            writer.finish().unwrap();
        }
    }
}
