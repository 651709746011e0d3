//! Reads a file of the journal: which part of it is intact, and which part is known to have been synced.
//!
//! Nothing is decided here. Whether the rest is a torn tail or damage also depends on other files and on sinks: see
//! [`recovery`](crate::durable::recovery).

use super::format::{BEFORE_BODY, Entry, FileId, Header, KIND, MARKER, frame_at, read_body, read_header, salt};
use crate::durable::StateId;
use crate::durable::sealed::Broken;
use crate::error::{Error, Result};

/// The contents of a journal file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JournalFile {
    /// The file's identity.
    pub id: FileId,
    /// Its header; `None` if that is not intact, and then no frame is.
    pub header: Option<Header>,
    /// The frames before the first that is not intact.
    pub entries: Vec<Entry>,
    /// Length of the header in bytes.
    pub begin: u64,
    /// Length of the intact part in bytes.
    pub good: u64,
    /// Number of bytes that were synced, according to frames behind the intact part; 0 if there are none.
    pub known: u64,
    /// Length of the file in bytes.
    pub found: u64,
}

impl JournalFile {
    /// Reads the bytes of the file `id` of the state `state`.
    ///
    /// # Errors
    /// Fails if the file was written in another format, or if its header names another state or another file.
    pub fn read(state: StateId, id: FileId, bytes: &[u8]) -> Result<JournalFile> {
        let mut file = JournalFile {
            id,
            header: None,
            entries: Vec::new(),
            begin: 0,
            good: 0,
            known: 0,
            found: bytes.len() as u64,
        };
        let salt = salt(state, id);
        let mut at = 0;
        match read_header(bytes) {
            Ok((header, end)) => {
                check_header(state, id, &header)?;
                file.header = Some(header);
                file.begin = end as u64;
                at = end;
                while let Some((_, body)) = frame_at(bytes, salt, at) {
                    at += BEFORE_BODY + body.len();
                    if !body.is_empty() {
                        file.entries.push(entry(id, body, at as u64)?);
                    }
                }
            }
            Err(broken @ Broken::Version(_)) => return Err(KIND.refusal(broken, id)),
            Err(Broken::Damaged(_)) => {}
        }
        file.good = at as u64;
        // Intact frames behind the first bad one tell how far the file was synced.
        while let Some(next) = bytes.get(at + 1..).and_then(|rest| memchr::memmem::find(rest, &MARKER)) {
            at += 1 + next;
            if let Some((synced, _)) = frame_at(bytes, salt, at) {
                file.known = file.known.max(synced);
            }
        }
        Ok(file)
    }
}

fn check_header(state: StateId, id: FileId, header: &Header) -> Result<()> {
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

fn entry(id: FileId, body: &[u8], end: u64) -> Result<Entry> {
    match read_body(body) {
        Some((worker, frame)) => Ok(Entry { worker, frame, end }),
        None => Err(Error::new("the journal is damaged").at(id).because("a frame makes no sense")),
    }
}
