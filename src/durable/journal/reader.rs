//! Reads a file of the journal: which part of it is intact, and which part is known to have been synced.
//!
//! Nothing is decided here. Whether the rest is a torn tail or damage also depends on other files and on sinks: see
//! [`recovery`](crate::durable::recovery).

use super::format::{
    BEFORE_BODY, ENVELOPE, FileId, JournalEntry, JournalHeader, MARKER, decode_body, frame_at, read_header, salt,
};
use crate::durable::StateId;
use crate::durable::envelope::EnvelopeError;
use crate::error::{Error, ErrorKind, Result};

/// The contents of a journal file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct JournalFile {
    /// The file's identity.
    pub id: FileId,
    /// Its header; `None` if that is not intact, and then no frame is.
    pub header: Option<JournalHeader>,
    /// The frames before the first that is not intact.
    pub entries: Vec<JournalEntry>,
    /// Length of the header in bytes.
    pub header_length: u64,
    /// Length of the intact part in bytes.
    pub intact_length: u64,
    /// Number of bytes that were synced, according to frames behind the intact part; 0 if there are none.
    pub synced_length: u64,
    /// Length of the file in bytes.
    pub file_length: u64,
}

impl JournalFile {
    /// Reads the bytes of the file `id` of the state `state`.
    ///
    /// # Errors
    /// Fails if the file was written in another format, or if its header names another state or another file.
    pub(crate) fn read(state: StateId, id: FileId, bytes: &[u8]) -> Result<JournalFile> {
        let mut file = JournalFile {
            id,
            header: None,
            entries: Vec::new(),
            header_length: 0,
            intact_length: 0,
            synced_length: 0,
            file_length: bytes.len() as u64,
        };
        let salt = salt(state, id);
        let mut at = 0;
        match read_header(bytes) {
            Ok((header, end, version)) => {
                check_header(state, id, &header)?;
                file.header = Some(header);
                file.header_length = end as u64;
                at = end;
                while let Some((_, body)) = frame_at(bytes, salt, at) {
                    at += BEFORE_BODY + body.len();
                    if !body.is_empty() {
                        file.entries.push(entry((id, version), body, at as u64)?);
                    }
                }
            }
            Err(broken @ EnvelopeError::Version(_)) => return Err(ENVELOPE.error_for(broken, id)),
            Err(EnvelopeError::Damaged(_)) => {}
        }
        file.intact_length = at as u64;
        // Intact frames behind the first bad one tell how far the file was synced.
        while let Some(next) = bytes.get(at + 1..).and_then(|rest| memchr::memmem::find(rest, &MARKER)) {
            at += 1 + next;
            if let Some((synced, _)) = frame_at(bytes, salt, at) {
                file.synced_length = file.synced_length.max(synced);
            }
        }
        Ok(file)
    }
}

fn check_header(state: StateId, id: FileId, header: &JournalHeader) -> Result<()> {
    if header.state != state {
        let why = format!("it belongs to the state {}, and this is {state}", header.state);
        return Err(Error::new("a file of the journal is of another state").at(id).because(why));
    }
    if header.file != id {
        let why = format!("it was written as {}", header.file);
        return Err(Error::new("a file of the journal has the name of another").at(id).because(why));
    }
    Ok(())
}

fn entry((id, version): (FileId, u8), body: &[u8], end: u64) -> Result<JournalEntry> {
    match decode_body(version, body) {
        Some((worker, frame)) => Ok(JournalEntry { worker, frame, end }),
        None => {
            Err(Error::of(ErrorKind::StateDamaged, "the journal is damaged").at(id).because("a frame makes no sense"))
        }
    }
}
