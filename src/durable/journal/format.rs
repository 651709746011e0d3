//! What the files of a journal look like.
//!
//! A process writes one file after another: [`FileId`] is its name. A file is a header and then frames:
//!
//! ```text
//! header  as in `sealed`: state, file, workers of the life, length and last epoch of the file before
//! frame   marker 4 | length 4 | checksum 4 | synced 8 | body: worker and Frame, in postcard; none in a closing frame
//! ```
//! If bounds of the frame keep records by value, the body goes on with those: a list of (number of the bound, its values),
//! in postcard.
//!
//! `synced` is the length of this file that was known to be on the disk for good when the frame was written. So it tells
//! a torn tail, behind which nothing can have been built on, from damage.
//!
//! Invariants: a frame's checksum covers its place and the name of its file too, so that old bytes on a disk are no
//! frame of this file; a header is synced, and the file's name too, before a frame is written.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Frame, Value};
use crate::durable::StateId;
use crate::durable::sealed::{Broken, Kind};
use crate::error::{Error, Result};
use crate::time::Epoch;

/// How a file begins. Files of version 1 differ in nothing but that their frames keep no values.
pub(in crate::durable) const KIND: Kind = Kind { magic: *b"TGJOURN", version: 2, name: "journal" };

/// Reads the header that a file begins with, and its length.
pub(super) fn read_header(bytes: &[u8]) -> std::result::Result<(Header, usize), Broken> {
    match KIND.open_first(bytes) {
        Err(Broken::Version(1)) => Kind { version: 1, ..KIND }.open_first(bytes),
        header => header,
    }
}
/// How a frame begins.
pub(super) const MARKER: [u8; 4] = *b"\xf7TG\xe1";
/// How many bytes a frame has before its body.
pub(super) const BEFORE_BODY: usize = 20;

/// Names a file of the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct FileId {
    /// The life that wrote it.
    pub incarnation: u64,
    /// The process of that life.
    pub process: u32,
    /// Which of that process's files, from 0.
    pub number: u64,
}

impl FileId {
    /// The file of this name, if a file of the journal can have it.
    pub fn parse(name: &str) -> Option<FileId> {
        let mut parts = name.strip_suffix(".journal")?.split('-');
        let id = FileId {
            incarnation: parts.next()?.parse().ok()?,
            process: parts.next()?.parse().ok()?,
            number: parts.next()?.parse().ok()?,
        };
        // Each has one name only.
        (parts.next().is_none() && id.to_string() == name).then_some(id)
    }
}

impl fmt::Display for FileId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}-{}.journal", self.incarnation, self.process, self.number)
    }
}

/// What a file says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// The state that it is part of.
    pub state: StateId,
    /// The file.
    pub file: FileId,
    /// How many workers the life has, in all its processes.
    pub workers: u32,
    /// The file before it.
    pub before: Option<Before>,
}

/// What a file says of the one before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Before {
    /// How long it is; all of that is synced.
    pub length: u64,
    /// The greatest epoch in it and in those before it.
    pub last: Option<Epoch>,
}

/// A frame as it is in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Whose it is.
    pub worker: u32,
    /// What it says.
    pub frame: Frame,
    /// Where it ends.
    pub end: u64,
}

/// What the checksums of a file's frames begin with.
pub(super) fn salt(state: StateId, file: FileId) -> u32 {
    let mut sum = crc32fast::Hasher::new();
    for word in [state.0, file.incarnation, u64::from(file.process), file.number] {
        sum.update(&word.to_le_bytes());
    }
    sum.finalize()
}

/// The body of a frame.
pub(super) fn body_of(worker: u32, frame: &Frame) -> Result<Vec<u8>> {
    let cannot = |why: postcard::Error| Error::new("cannot write a frame of the journal").because(why);
    let body = postcard::to_extend(&(worker, frame), Vec::with_capacity(64)).map_err(cannot)?;
    let kept = (0u32..).zip(&frame.bounds).filter_map(|(number, bound)| Some((number, bound.values.as_ref()?)));
    let kept: Vec<_> = kept.collect();
    if kept.is_empty() { Ok(body) } else { postcard::to_extend(&kept, body).map_err(cannot) }
}

/// Reads the body of a frame: the worker, and the frame. `None` if it makes no sense.
pub(super) fn read_body(body: &[u8]) -> Option<(u32, Frame)> {
    let ((worker, mut frame), rest): ((u32, Frame), _) = postcard::take_from_bytes(body).ok()?;
    if !rest.is_empty() {
        let (kept, rest): (Vec<(u32, Vec<Value>)>, _) = postcard::take_from_bytes(rest).ok()?;
        for (number, values) in kept {
            frame.bounds.get_mut(number as usize)?.values = Some(values);
        }
        if !rest.is_empty() {
            return None;
        }
    }
    Some((worker, frame))
}

/// Adds a frame that will be at `position` in its file.
pub(super) fn put(bytes: &mut Vec<u8>, salt: u32, position: u64, synced: u64, body: &[u8]) {
    // A frame describes what one worker took from its partitions in a tenth of a second.
    let length = u32::try_from(body.len()).unwrap_or_else(|_| panic!("a frame of {} bytes", body.len()));
    bytes.extend_from_slice(&MARKER);
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(&checksum(salt, position, synced, body).to_le_bytes());
    bytes.extend_from_slice(&synced.to_le_bytes());
    bytes.extend_from_slice(body);
}

/// A frame that is as it was written: what it says was synced, and its body.
pub(super) fn frame_at(bytes: &[u8], salt: u32, position: usize) -> Option<(u64, &[u8])> {
    let (before, rest) = bytes.get(position..)?.split_at_checked(BEFORE_BODY)?;
    let word = |at: usize| u32::from_le_bytes([before[at], before[at + 1], before[at + 2], before[at + 3]]);
    if before[..4] != MARKER {
        return None;
    }
    let body = rest.get(..word(4) as usize)?;
    let synced = u64::from(word(12)) | u64::from(word(16)) << 32;
    (checksum(salt, position as u64, synced, body) == word(8)).then_some((synced, body))
}

fn checksum(salt: u32, position: u64, synced: u64, body: &[u8]) -> u32 {
    let mut sum = crc32fast::Hasher::new_with_initial(salt);
    sum.update(&position.to_le_bytes());
    sum.update(&synced.to_le_bytes());
    sum.update(&(body.len() as u64).to_le_bytes());
    sum.update(body);
    sum.finalize()
}
