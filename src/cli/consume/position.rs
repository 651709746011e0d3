//! What a copy keeps on disk besides the copy itself, and how both stay in step.
//!
//! * A [`Tail`] is a file that only grows, with the checksum of all that is in it.
//! * A [`Position`] says what was copied; the file `position` of the state directory holds the last one: the magic
//!   `TDGCOPY`, a version byte, the position in postcard's encoding, and the CRC-32 of all that, little-endian.
//!
//! Invariant: what `position` names was synced before, and `position` is replaced whole or not at all.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{BufReader, ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

const MAGIC: &[u8; 7] = b"TDGCOPY";
const VERSION: u8 = 1;

/// What was copied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Position {
    pub(super) topic: String,
    /// For each partition the offset of the next message.
    pub(super) next: BTreeMap<u32, u64>,
    pub(super) out: Mark,
    pub(super) rejects: Option<Mark>,
}

/// How far a file goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Mark {
    /// Its absolute path.
    path: String,
    length: u64,
    checksum: u32,
}

impl Position {
    /// Opens the files again, cut back to where they were.
    pub(super) fn resume(
        self,
        topic: &str,
        out: &Path,
        rejects: Option<&Path>,
    ) -> Result<(Tail, Option<Tail>, BTreeMap<u32, u64>)> {
        let help = "use a --state of its own for each copy";
        if self.topic != topic {
            let error = Error::new(format!("the state is that of a copy of the topic {}, not {topic}", self.topic));
            return Err(error.help(help));
        }
        if self.out.path != absolute(out) {
            let error = Error::new(format!("the state is that of the copy {}", self.out.path));
            return Err(error.because(format!("--out is {}", out.display())).help(help));
        }
        let rejects = match (rejects, self.rejects) {
            (None, _) => None,
            (Some(path), Some(mark)) if mark.path == absolute(path) => Some(Tail::resume(path, &mark)?),
            (Some(path), _) => Some(Tail::create(path)?),
        };
        Ok((Tail::resume(out, &self.out)?, rejects, self.next))
    }
}

/// A file that only grows.
pub(super) struct Tail {
    pub(super) path: PathBuf,
    file: File,
    length: u64,
    checksum: crc32fast::Hasher,
    unsynced: bool,
}

impl Tail {
    /// A new, empty file, in place of one that is there.
    pub(super) fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).map_err(|error| cannot_write(path, error))?;
        sync_folder(path)?;
        let checksum = crc32fast::Hasher::new();
        Ok(Tail { path: path.to_owned(), file, length: 0, checksum, unsynced: true })
    }

    /// A file as it was, without what came behind its mark.
    fn resume(path: &Path, mark: &Mark) -> Result<Self> {
        let damaged = |because: String| {
            let error = Error::new("the copy is not what the state says it is").at(path.display()).because(because);
            error.help("restore it, or begin anew with another --out and --state")
        };
        let file = OpenOptions::new().read(true).write(true).open(path);
        let mut file = match file {
            Err(error) if error.kind() == ErrorKind::NotFound => return Err(damaged("it is gone".into())),
            file => file.map_err(|error| cannot_write(path, error))?,
        };
        let found = file.metadata().map_err(|error| cannot_write(path, error))?.len();
        if found < mark.length {
            return Err(damaged(format!("it has {found} bytes of {}", mark.length)));
        }
        let mut checksum = crc32fast::Hasher::new();
        let mut head = BufReader::with_capacity(1 << 20, (&file).take(mark.length));
        std::io::copy(&mut head, &mut Summing(&mut checksum)).map_err(|error| cannot_write(path, error))?;
        if checksum.clone().finalize() != mark.checksum {
            return Err(damaged(format!("its first {} bytes were changed", mark.length)));
        }
        let cut = file.set_len(mark.length).and_then(|()| file.seek(SeekFrom::Start(mark.length)));
        cut.map_err(|error| cannot_write(path, error))?;
        Ok(Tail { path: path.to_owned(), file, length: mark.length, checksum, unsynced: true })
    }

    /// Writes at the end.
    pub(super) fn append(&mut self, bytes: &[u8]) -> Result<()> {
        if !bytes.is_empty() {
            self.file.write_all(bytes).map_err(|error| cannot_write(&self.path, error))?;
            self.checksum.update(bytes);
            self.length += bytes.len() as u64;
            self.unsynced = true;
        }
        Ok(())
    }

    /// Waits until all of it is on the disk.
    pub(super) fn sync(&mut self) -> Result<()> {
        if std::mem::take(&mut self.unsynced) {
            self.file.sync_data().map_err(|error| cannot_write(&self.path, error))?;
        }
        Ok(())
    }

    /// How far it goes.
    pub(super) fn mark(&self) -> Mark {
        Mark { path: absolute(&self.path), length: self.length, checksum: self.checksum.clone().finalize() }
    }
}

/// Takes in a checksum what is written to it.
struct Summing<'a>(&'a mut crc32fast::Hasher);

impl Write for Summing<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A state directory, locked for as long as this lives.
pub(super) struct State {
    folder: PathBuf,
    _lock: File,
}

impl State {
    /// Opens it; makes it if it is not there.
    pub(super) fn open(folder: &Path) -> Result<Self> {
        std::fs::create_dir_all(folder).map_err(|error| cannot_write(folder, error))?;
        let path = folder.join("lock");
        let lock = OpenOptions::new().write(true).create(true).truncate(false).open(&path);
        let lock = lock.map_err(|error| cannot_write(&path, error))?;
        match lock.try_lock() {
            Ok(()) => Ok(State { folder: folder.to_owned(), _lock: lock }),
            Err(TryLockError::WouldBlock) => {
                let error = Error::new("the state is in use by another process").at(folder.display());
                Err(error.help("stop that, or choose another --state"))
            }
            Err(TryLockError::Error(error)) => Err(cannot_write(&path, error)),
        }
    }

    /// The position that was recorded last, if one was.
    pub(super) fn read(&self) -> Result<Option<Position>> {
        let path = self.folder.join("position");
        let bytes = match std::fs::read(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            bytes => bytes.map_err(|error| Error::new("cannot read the state").at(path.display()).because(error))?,
        };
        let refused = |because: &str| {
            let error = Error::new("the recorded position cannot be used").at(path.display()).because(because);
            error.help("restore it, or begin anew with another --out and --state")
        };
        let Some(rest) = bytes.strip_prefix(MAGIC) else { return Err(refused("it is not a position of a copy")) };
        match rest.first() {
            Some(&VERSION) => {}
            Some(version) => return Err(refused(&format!("its format is {version}, this program knows {VERSION}"))),
            None => return Err(refused("it is damaged")),
        }
        let (body, checksum) = bytes.split_last_chunk::<4>().ok_or_else(|| refused("it is damaged"))?;
        if crc32fast::hash(body) != u32::from_le_bytes(*checksum) {
            return Err(refused("it is damaged"));
        }
        let encoded = body.get(MAGIC.len() + 1..).unwrap_or_default();
        postcard::from_bytes(encoded).map(Some).map_err(|_| refused("it is damaged"))
    }

    /// Records a position in place of the last one.
    pub(super) fn write(&self, position: &Position) -> Result<()> {
        let (path, beside) = (self.folder.join("position"), self.folder.join("position.new"));
        let mut bytes = [MAGIC.as_slice(), &[VERSION]].concat();
        bytes = postcard::to_extend(position, bytes).map_err(|error| cannot_write(&path, error))?;
        bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
        let written = File::create(&beside).and_then(|mut file| {
            file.write_all(&bytes)?;
            file.sync_all()?;
            std::fs::rename(&beside, &path)
        });
        written.map_err(|error| cannot_write(&path, error))?;
        sync_folder(&path)
    }
}

/// Makes a file's name last.
fn sync_folder(path: &Path) -> Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(|error| cannot_write(folder, error))
}

fn absolute(path: &Path) -> String {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned()).display().to_string()
}

/// The error for a file that cannot be written.
pub(super) fn cannot_write(path: &Path, error: impl std::fmt::Display) -> Error {
    Error::new("cannot write").at(path.display()).because(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recorded(folder: &Path) -> (Position, PathBuf) {
        let out = folder.join("out.csv");
        let mut tail = Tail::create(&out).unwrap();
        tail.append(b"id\n1\n").unwrap();
        tail.sync().unwrap();
        let next = BTreeMap::from([(0, 1), (3, 7)]);
        let position = Position { topic: "t".into(), next, out: tail.mark(), rejects: None };
        State::open(&folder.join("state")).unwrap().write(&position).unwrap();
        tail.append(b"2\ntorn").unwrap();
        (position, out)
    }

    #[test]
    fn what_was_written_behind_the_position_is_cut_off() {
        let folder = tempfile::tempdir().unwrap();
        let (position, out) = recorded(folder.path());
        let read = State::open(&folder.path().join("state")).unwrap().read().unwrap().unwrap();
        assert_eq!(read, position);
        let (mut tail, _, next) = read.resume("t", &out, None).unwrap();
        assert_eq!(next, position.next);
        tail.append(b"2\n").unwrap();
        assert_eq!(std::fs::read(&out).unwrap(), b"id\n1\n2\n");
        assert_eq!(tail.mark().checksum, crc32fast::hash(b"id\n1\n2\n"));
    }

    #[test]
    fn a_position_that_is_damaged_or_of_another_copy_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let (position, out) = recorded(folder.path());
        let state = folder.path().join("state");
        let file = state.join("position");
        let good = std::fs::read(&file).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            std::fs::write(&file, &bad).unwrap();
            let error = State::open(&state).unwrap().read().unwrap_err().to_string();
            assert!(error.contains("state/position"), "byte {at}: {error}");
            std::fs::write(&file, &good[..at]).unwrap();
            assert!(State::open(&state).unwrap().read().is_err(), "cut at {at}");
        }
        let error = position.clone().resume("u", &out, None).err().unwrap().to_string();
        assert!(error.contains("topic t, not u"), "{error}");
        let error = position.clone().resume("t", Path::new("/other.csv"), None).err().unwrap().to_string();
        assert!(error.contains("out.csv") && error.contains("/other.csv"), "{error}");
        for bad in ["id\n1", "id\n2\nmore"] {
            std::fs::write(&out, bad).unwrap();
            let error = position.clone().resume("t", &out, None).err().unwrap().to_string();
            assert!(error.contains("out.csv"), "{error}");
        }
    }

    #[test]
    fn a_state_has_one_user_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let _held = State::open(folder.path()).unwrap();
        let error = State::open(folder.path()).err().unwrap().to_string();
        assert!(error.contains("in use"), "{error}");
    }
}
