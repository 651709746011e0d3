//! The file that is read: its bytes, its length, and whether it is still the one that was opened.
//!
//! Invariants: a followed file is the one that was opened. When its path names another file, all of the old one is read,
//! and then the job fails. A file may only grow: one that ends before what was read of it, or whose bytes before a
//! journal's position are others, is refused.
//!
//! The clock is read only to limit how often the length is polled, and to time how long the path has named another file.

use std::fs::{File, Metadata};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::limits::{FileLimits, format_bytes};
use crate::durable::journal::{ContentCheck, PartitionProgress};
use crate::error::{Error, ErrorKind, Result};

/// Interval at which the length of a followed file is polled.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Time for which the path of a followed file may name no file, or another one, before the job fails: editors and
/// rotations take a moment.
const MISSING_TIMEOUT: Duration = Duration::from_secs(2);

/// A file that is read, and may grow meanwhile.
#[derive(Debug)]
pub(super) struct InputFile {
    pub(super) limits: FileLimits,
    pub(super) path: PathBuf,
    file: Arc<File>,
    /// Length of the file when it was last polled.
    pub(super) length: u64,
    pub(super) polled_at: Instant,
    /// Time since which the path has not named the open file.
    gone_since: Option<Instant>,
    /// Buffers for reuse.
    spare: Vec<Vec<u8>>,
}

impl InputFile {
    /// Opens a file.
    ///
    /// # Errors
    /// Fails if it cannot be opened, or is not a regular file.
    pub(super) fn open(path: &Path, limits: FileLimits) -> Result<Self> {
        let refused = |why: &dyn std::fmt::Display| {
            Error::of(ErrorKind::SourceUnreachable, "cannot open the input").at(path.display()).because(why)
        };
        // The type is checked before opening: opening a pipe would block until another process writes to it.
        let found = path.metadata().map_err(|why| refused(&why).caused_by(why).help("check the path"))?;
        if !found.is_file() {
            return Err(refused(&"it is not a regular file").help("write it to a file first"));
        }
        let file = File::open(path).map_err(|why| refused(&why).caused_by(why).help("check the path"))?;
        let found = file.metadata().map_err(|why| refused(&why))?;
        Ok(InputFile {
            limits,
            path: path.to_owned(),
            file: Arc::new(file),
            length: found.len(),
            polled_at: Instant::now(),
            gone_since: None,
            spare: Vec::new(),
        })
    }

    /// Polls the file's length: always if `now`, else only if nothing is left to deal and the last poll is old enough.
    /// Chunks before `position` were dealt; at the length `partial_at` the rest held no complete record.
    pub(super) fn poll_length(&mut self, now: bool, position: u64, partial_at: Option<u64>) -> Result<()> {
        if !now && (position < self.length && partial_at.is_none() || self.polled_at.elapsed() < POLL_INTERVAL) {
            return Ok(());
        }
        self.polled_at = Instant::now();
        let found = self.file.metadata().map_err(|why| self.broken(&why))?;
        self.length = found.len();
        if self.length < position {
            return Err(self.shorter(position));
        }
        // Whatever was written to the old file before it was moved is read first.
        if now || position < self.length && partial_at != Some(self.length) {
            return Ok(());
        }
        self.check_path(&found, position)
    }

    /// Fails if the path of a followed file has named another file, or none, for longer than [`MISSING_TIMEOUT`].
    fn check_path(&mut self, opened: &Metadata, position: u64) -> Result<()> {
        let why = match self.path.metadata() {
            Ok(found) if (found.dev(), found.ino()) == (opened.dev(), opened.ino()) => {
                self.gone_since = None;
                return Ok(());
            }
            Ok(_) => String::from("another file has its name now"),
            Err(why) => why.to_string(),
        };
        if self.gone_since.get_or_insert_with(Instant::now).elapsed() < MISSING_TIMEOUT {
            return Ok(());
        }
        let place = format!("{}, offset {}", self.path.display(), position);
        let error = Error::of(ErrorKind::SourceChanged, "the input was moved or removed while it was followed")
            .at(place)
            .because(why);
        Err(error.help("all of the old file up to there was read; to read the new one, start again with a new --state"))
    }

    /// Verifies that the file can be the one that `bound` was written from: by its length and its fingerprint. Chunks
    /// before `position` were dealt.
    pub(super) fn verify_identity(&mut self, bound: &PartitionProgress, position: u64) -> Result<()> {
        let end = bound.next_offset.max(bound.end_offset.unwrap_or(0));
        if end > self.length {
            self.poll_length(true, position, None)?;
        }
        if end > self.length {
            let place = format!("{}, offset {end}", self.path.display());
            let error = Error::of(ErrorKind::SourceChanged, "the state names records that are not there").at(place);
            let length = format!("the file has {} bytes", self.length);
            return Err(error.because(length).help("restore the file, or start without the old state"));
        }
        let Some(check) = bound.check else { return Ok(()) };
        if check.at <= bound.next_offset && self.fingerprint_of(check.at, bound.next_offset)? == check {
            return Ok(());
        }
        let place = format!("{}, before offset {}", self.path.display(), bound.next_offset);
        let error = Error::of(ErrorKind::SourceChanged, "the file was changed since the state was written").at(place);
        Err(error.help("restore the file, or start without the old state; files that are read may only grow"))
    }

    /// Computes the fingerprint of the bytes from `at` to `end`.
    pub(super) fn fingerprint_of(&mut self, at: u64, end: u64) -> Result<ContentCheck> {
        let (mut position, mut sum) = (at, crc32fast::Hasher::new());
        while position < end {
            let count = self.limits.block.min((end - position) as usize);
            let bytes = self.read(position, count)?;
            sum.update(&bytes);
            position += count as u64;
            self.keep(bytes);
        }
        Ok(ContentCheck { at, sum: sum.finalize() })
    }

    /// Returns what counts lines of this file beside its being read.
    pub(super) fn line_counter(&self) -> LineCounter {
        LineCounter { path: self.path.clone(), file: Arc::clone(&self.file), block: self.limits.block }
    }

    /// Reads exactly `count` bytes, which the file is known to have had.
    pub(super) fn read(&mut self, from: u64, count: usize) -> Result<Vec<u8>> {
        let mut bytes = self.buffer();
        self.read_into(&mut bytes, from, count)?;
        Ok(bytes)
    }

    pub(super) fn read_into(&mut self, bytes: &mut Vec<u8>, from: u64, count: usize) -> Result<()> {
        bytes.reserve_exact(count);
        (&*self.file).seek(SeekFrom::Start(from)).map_err(|why| self.broken(&why))?;
        let read = (&*self.file).take(count as u64).read_to_end(bytes).map_err(|why| self.broken(&why))?;
        if read < count { Err(self.shorter(from + count as u64)) } else { Ok(()) }
    }

    /// Returns an empty buffer.
    pub(super) fn buffer(&mut self) -> Vec<u8> {
        self.spare.pop().unwrap_or_default()
    }

    /// Keeps a buffer for reuse, unless it held an exceptionally long record.
    pub(super) fn keep(&mut self, mut bytes: Vec<u8>) {
        if bytes.capacity() <= 2 * self.limits.block {
            bytes.clear();
            self.spare.push(bytes);
        }
    }

    /// Returns the next larger number of bytes to read when `size` bytes do not hold the whole header; fails if it may
    /// not be larger.
    pub(super) fn grow(&self, position: u64, size: usize) -> Result<usize> {
        if size < self.limits.longest {
            return Ok((size * 2).min(self.limits.longest));
        }
        let place = format!("{}, offset {position}", self.path.display());
        let error = Error::new(format!("the header is longer than {}", format_bytes(self.limits.longest))).at(place);
        Err(error.help("look for a quote that is never closed, or for lines that do not end; --max-record allows more"))
    }

    fn broken(&self, why: &dyn std::fmt::Display) -> Error {
        broken(&self.path, why)
    }

    fn shorter(&self, position: u64) -> Error {
        shorter(&self.path, position)
    }
}

fn broken(path: &Path, why: &dyn std::fmt::Display) -> Error {
    Error::of(ErrorKind::SourceUnreachable, "cannot read the input").at(path.display()).because(why)
}

fn shorter(path: &Path, position: u64) -> Error {
    let place = format!("{}, offset {position}", path.display());
    let error = Error::of(ErrorKind::SourceChanged, "the file ends before what was already read of it").at(place);
    error.help("files that are read may only grow; restore it, or start without the old state")
}

/// Counts lines of a file without a lock: the file is read elsewhere meanwhile.
pub(super) struct LineCounter {
    path: PathBuf,
    file: Arc<File>,
    /// Number of bytes that are read at once.
    block: usize,
}

impl LineCounter {
    /// Counts the lines that end in a piece of the file.
    ///
    /// # Errors
    /// Fails if the file cannot be read, or ends before the end of the piece.
    pub(super) fn count(&self, from: u64, length: u64) -> Result<u64> {
        let (mut at, end, mut lines) = (from, from + length, 0);
        let mut bytes = vec![0; self.block.min(usize::try_from(length).unwrap_or(self.block))];
        while at < end {
            let size = bytes.len().min(usize::try_from(end - at).unwrap_or(self.block));
            let found = match self.file.read_at(&mut bytes[..size], at) {
                Ok(0) => return Err(shorter(&self.path, end)),
                Ok(found) => found,
                Err(why) if why.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(why) => return Err(broken(&self.path, &why)),
            };
            lines += memchr::memchr_iter(b'\n', &bytes[..found]).count() as u64;
            at += found as u64;
        }
        Ok(lines)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pieces are of any length, so are blocks; two count at once, while the file is read.
    #[test]
    fn lines_are_counted_beside_reading() {
        let mut random = fastrand::Rng::with_seed(5);
        let text: Vec<u8> = (0..10_000).map(|_| if random.u8(0..9) == 0 { b'\n' } else { b'x' }).collect();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &text).unwrap();
        for block in [1, 7, 4096, 1 << 20] {
            let limits = FileLimits { block, ..FileLimits::default() };
            let mut input = InputFile::open(file.path(), limits).unwrap();
            let counter = input.line_counter();
            let expected = |from: usize, to: usize| text[from..to].iter().filter(|byte| **byte == b'\n').count() as u64;
            std::thread::scope(|scope| {
                scope.spawn(|| assert_eq!(counter.count(0, 10_000).unwrap(), expected(0, 10_000)));
                for _ in 0..50 {
                    let (from, to) = (random.usize(0..10_000), random.usize(0..10_000));
                    let (from, to) = (from.min(to), from.max(to));
                    assert_eq!(input.read(from as u64, to - from).unwrap(), text[from..to]);
                    assert_eq!(counter.count(from as u64, (to - from) as u64).unwrap(), expected(from, to));
                }
            });
            let error = counter.count(9_000, 2_000).unwrap_err().to_string();
            assert!(error.contains("the file ends before what was already read of it"), "{error}");
        }
    }
}
