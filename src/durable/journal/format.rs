//! The file format of the journal.
//!
//! A process writes one file after another, each named by its [`FileId`]. A file is a header followed by frames:
//!
//! ```text
//! header  as in `envelope`: state, file, workers of the incarnation, length and last epoch of the previous file
//! frame   marker 4 | length 4 | checksum 4 | synced 8 | body: worker and Frame, in postcard; none in a closing frame
//! ```
//! If a frame has any of them, three lists follow in the body, in postcard: records that are kept by value, as (index of the
//! `PartitionProgress` in the frame, its values), topics of partitions, as (the same index, its topic), and records that were
//! rejected for now, as (the same index, their offsets). Version 4 has the first two lists, version 3 only the first. Records of version 2 have neither keys nor headers, and do not tell who set a timestamp; they are
//! read as records without keys and headers, whose producers set it.
//!
//! `synced` is the length of this file that was known to be durable when the frame was written. It tells a torn tail,
//! on which nothing can have been built, from damage.
//!
//! Invariants: a frame's checksum also covers its position and the name of its file, so that stale bytes on a disk are
//! no frame of this file; a header and the file's name are synced before a frame is written.

use std::fmt;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{Frame, JournaledRecord, TopicPartition};
use crate::durable::StateId;
use crate::durable::envelope::{Envelope, EnvelopeError};
use crate::error::{Error, Result};
use crate::time::Epoch;

/// The envelope of journal files. Frames of version 1 keep no values, those of version 2 keep less of a record, those of
/// version 3 name no topics, those of version 4 no rejected records.
pub(in crate::durable) const ENVELOPE: Envelope = Envelope { magic: *b"TGJOURN", version: 5, name: "journal" };

/// Reads the header of a file; returns it with its length in bytes and the version of the file.
pub(super) fn read_header(bytes: &[u8]) -> std::result::Result<(JournalHeader, usize, u8), EnvelopeError> {
    let envelope = ENVELOPE.as_written(bytes);
    envelope.open_first(bytes).map(|(header, end)| (header, end, envelope.version))
}

/// A record that a frame of version 2 keeps by value.
#[derive(Deserialize)]
#[cfg_attr(test, derive(Serialize))]
struct BareRecord {
    offset: u64,
    timestamp: Option<i64>,
    payload: Option<Vec<u8>>,
}

impl From<BareRecord> for JournaledRecord {
    fn from(BareRecord { offset, timestamp, payload }: BareRecord) -> Self {
        JournaledRecord { offset, timestamp, payload, ..JournaledRecord::default() }
    }
}

/// Records that a frame keeps by value: the index of their `PartitionProgress`, and the records.
type KeptRecords<R> = Vec<(u32, Vec<R>)>;

/// Topics that a frame names: the index of their `PartitionProgress`, and the topic.
type FrameTopics = Vec<(u32, TopicPartition)>;

/// Records that a frame rejects for now: the index of their `PartitionProgress`, and their offsets.
type FrameRejects = Vec<(u32, Vec<u64>)>;

/// The first bytes of a frame.
pub(super) const MARKER: [u8; 4] = *b"\xf7TG\xe1";
/// Length in bytes of a frame's fixed part, which precedes its body.
pub(super) const BEFORE_BODY: usize = 20;

/// The identity of a journal file, from which its name follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct FileId {
    /// The incarnation that wrote it.
    pub incarnation: u64,
    /// The process of that incarnation.
    pub process: u32,
    /// The number of the file among that process's files, from 0.
    pub number: u64,
}

impl FileId {
    /// Parses a file name; `None` if it is not the name of a journal file.
    pub(crate) fn parse(name: &str) -> Option<FileId> {
        let mut parts = name.strip_suffix(".journal")?.split('-');
        let id = FileId {
            incarnation: parts.next()?.parse().ok()?,
            process: parts.next()?.parse().ok()?,
            number: parts.next()?.parse().ok()?,
        };
        // Each file has exactly one valid name: no leading zeros or signs.
        (parts.next().is_none() && id.to_string() == name).then_some(id)
    }
}

impl fmt::Display for FileId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}-{}.journal", self.incarnation, self.process, self.number)
    }
}

/// The header of a journal file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct JournalHeader {
    /// The state that the file belongs to.
    pub state: StateId,
    /// The file's identity.
    pub file: FileId,
    /// Number of workers of the incarnation, in all its processes.
    pub workers: u32,
    /// The previous file of the process; `None` in its first file.
    pub before: Option<PreviousFile>,
}

/// A file's record of the previous file of the same process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PreviousFile {
    /// The length of the previous file in bytes, all of it synced.
    pub length: u64,
    /// The greatest epoch in that file and all files before it; `None` if they have no frame.
    pub last: Option<Epoch>,
}

/// A frame as read from a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct JournalEntry {
    /// The worker that wrote it.
    pub worker: u32,
    /// The decoded frame.
    pub frame: Frame,
    /// The position after its last byte in the file.
    pub end: u64,
}

/// The initial value of the checksums of a file's frames: a hash of the state's and the file's identity.
pub(super) fn salt(state: StateId, file: FileId) -> u32 {
    let mut sum = crc32fast::Hasher::new();
    for word in [state.0, file.incarnation, u64::from(file.process), file.number] {
        sum.update(&word.to_le_bytes());
    }
    sum.finalize()
}

/// Encodes the body of a frame.
pub(super) fn encode_body(worker: u32, frame: &Frame) -> Result<Vec<u8>> {
    let cannot = |why: postcard::Error| Error::new("cannot write a frame of the journal").because(why);
    let body = postcard::to_extend(&(worker, frame), Vec::with_capacity(64)).map_err(cannot)?;
    let numbered = || (0u32..).zip(&frame.progress);
    let kept: Vec<_> = numbered().filter_map(|(number, bound)| Some((number, bound.values.as_ref()?))).collect();
    let named: Vec<_> = numbered().filter_map(|(number, bound)| Some((number, bound.topic.as_ref()?))).collect();
    let rejected = numbered().filter(|(_, bound)| !bound.rejected_for_now.is_empty());
    let rejected: Vec<_> = rejected.map(|(number, bound)| (number, &bound.rejected_for_now)).collect();
    let is_bare = kept.is_empty() && named.is_empty() && rejected.is_empty();
    if is_bare { Ok(body) } else { postcard::to_extend(&(kept, named, rejected), body).map_err(cannot) }
}

/// Decodes the body of a frame, in a file of this version, to the worker and the frame; `None` if it is malformed.
pub(super) fn decode_body(version: u8, body: &[u8]) -> Option<(u32, Frame)> {
    let ((worker, mut frame), rest): ((u32, Frame), _) = postcard::take_from_bytes(body).ok()?;
    if !rest.is_empty() {
        let (kept, named, rejected): (KeptRecords<JournaledRecord>, FrameTopics, FrameRejects) = match version {
            ..=2 => {
                let kept: KeptRecords<BareRecord> = whole(rest)?;
                let kept =
                    kept.into_iter().map(|(number, values)| (number, values.into_iter().map(Into::into).collect()));
                (kept.collect(), FrameTopics::new(), FrameRejects::new())
            }
            3 => (whole(rest)?, FrameTopics::new(), FrameRejects::new()),
            4 => {
                let (kept, named) = whole(rest)?;
                (kept, named, FrameRejects::new())
            }
            _ => whole(rest)?,
        };
        for (number, values) in kept {
            frame.progress.get_mut(number as usize)?.values = Some(values);
        }
        for (number, topic) in named {
            frame.progress.get_mut(number as usize)?.topic = Some(topic);
        }
        for (number, offsets) in rejected {
            frame.progress.get_mut(number as usize)?.rejected_for_now = offsets;
        }
    }
    Some((worker, frame))
}

/// Decodes bytes all of which are one value.
fn whole<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    let (value, rest) = postcard::take_from_bytes(bytes).ok()?;
    rest.is_empty().then_some(value)
}

/// Appends an encoded frame to `bytes`; `position` is its position in the file.
pub(super) fn put(bytes: &mut Vec<u8>, salt: u32, position: u64, synced: u64, body: &[u8]) {
    // A frame describes the input that one worker took in a tenth of a second.
    let length = u32::try_from(body.len()).unwrap_or_else(|_| panic!("a frame of {} bytes", body.len()));
    bytes.extend_from_slice(&MARKER);
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(&checksum(salt, position, synced, body).to_le_bytes());
    bytes.extend_from_slice(&synced.to_le_bytes());
    bytes.extend_from_slice(body);
}

/// Returns the synced length and the body of the frame at `position`; `None` if there is no intact frame.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::durable::journal::PartitionProgress;
    use crate::time::EventTime;

    #[test]
    fn records_of_an_earlier_version_are_read_without_keys_and_headers() {
        let progress = |partition| PartitionProgress {
            source: "s".into(),
            partition,
            start_offset: None,
            next_offset: 10,
            watermark: EventTime::MIN,
            idle: false,
            end_offset: None,
            ended: false,
            check: None,
            values: None,
            topic: None,
            rejected_for_now: Vec::new(),
        };
        let mut frame = Frame { epoch: Epoch(2), progress: vec![progress(0), progress(1)] };
        let bare = |offset, payload: Option<&[u8]>| BareRecord {
            offset,
            timestamp: Some(7),
            payload: payload.map(<[u8]>::to_vec),
        };
        let kept = vec![(1u32, vec![bare(3, Some(b"three")), bare(8, None)])];
        let earlier = postcard::to_extend(&kept, encode_body(4, &frame).unwrap()).unwrap();
        let record = |offset, payload: Option<&[u8]>| JournaledRecord {
            offset,
            timestamp: Some(7),
            payload: payload.map(<[u8]>::to_vec),
            is_log_append_time: false,
            key: None,
            headers: Vec::new(),
        };
        frame.progress[1].values = Some(vec![record(3, Some(b"three")), record(8, None)]);
        assert_eq!(decode_body(2, &earlier), Some((4, frame.clone())));
        for version in [3, 4, 5] {
            assert_ne!(decode_body(version, &earlier), Some((4, frame.clone())));
        }
        let bare_body = encode_body(4, &Frame { epoch: Epoch(2), progress: vec![progress(0), progress(1)] }).unwrap();
        // Version 3 has no topics.
        let kept = vec![(1u32, frame.progress[1].values.clone())];
        let kept: Vec<_> = kept.into_iter().filter_map(|(number, values)| Some((number, values?))).collect();
        let earlier = postcard::to_extend(&kept, bare_body.clone()).unwrap();
        assert_eq!(decode_body(3, &earlier), Some((4, frame.clone())));
        assert_eq!((decode_body(4, &earlier), decode_body(5, &earlier)), (None, None));
        // Version 4 has no rejected records.
        let lists = (&kept, vec![(0u32, TopicPartition { topic: "t".into(), id: None, number: 1 })]);
        let earlier = postcard::to_extend(&lists, bare_body.clone()).unwrap();
        let (_, found) = decode_body(4, &earlier).unwrap();
        assert_eq!(found.progress[1], frame.progress[1]);
        assert_eq!(found.progress[0].topic.as_ref().map(ToString::to_string).as_deref(), Some("t/1"));
        assert_eq!(decode_body(5, &earlier), None);
        // What is written now is read now, and cut anywhere it is malformed.
        if let Some([first, _]) = frame.progress[1].values.as_deref_mut() {
            first.key = Some(Vec::new());
            first.is_log_append_time = true;
            first.headers = vec![("a".into(), None), ("a".into(), Some(b"1".to_vec()))];
        }
        let topic = |id: Option<&str>, number| TopicPartition { topic: "t".into(), id: id.map(str::to_owned), number };
        frame.progress[0].topic = Some(topic(Some("id"), 3));
        frame.progress[1].topic = Some(topic(None, 7));
        frame.progress[1].rejected_for_now = vec![4, 5, 300];
        let body = encode_body(4, &frame).unwrap();
        assert_eq!(decode_body(5, &body), Some((4, frame.clone())));
        for length in (0..body.len()).filter(|length| *length != bare_body.len()) {
            assert_eq!(decode_body(5, &body[..length]), None, "{length} bytes");
        }
        // Frames of topics alone, and of rejected records alone.
        frame.progress[1].values = None;
        frame.progress[1].rejected_for_now.clear();
        assert_eq!(decode_body(5, &encode_body(4, &frame).unwrap()), Some((4, frame.clone())));
        frame.progress.iter_mut().for_each(|progress| progress.topic = None);
        frame.progress[0].rejected_for_now.push(9);
        assert_eq!(decode_body(5, &encode_body(4, &frame).unwrap()), Some((4, frame)));
    }
}
