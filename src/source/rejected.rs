//! A record that could not be used, as a record of its own: for the rejects sink.
//!
//! * A [`Rejected`] is such a record for people: its place, the reason and its text.
//! * A [`DeadLetter`] is the same with everything that a message has, so that it can be sent again.
//!
//! Invariant: the bytes of a record are in it once, and none of them is lost.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::error::shortened;

/// A record that could not be used, with its place and the reason.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Rejected {
    /// Name under which the flow reads the source.
    pub source: String,
    /// Path of the file, or name of the topic.
    pub place: String,
    /// Partition number; 0 for a file.
    pub partition: u32,
    /// Kafka offset, or position of the record's first byte in the file.
    pub offset: u64,
    /// Line in the file, from 1; 0 if the source has no lines.
    pub line: u64,
    /// Reason for the rejection.
    pub reason: String,
    /// Encoding of `record`: `text`, or `hex` if the bytes are not UTF-8.
    pub encoding: String,
    /// The record itself.
    pub record: String,
}

impl Rejected {
    /// Creates the reject of a record with these bytes: its place is a partition of a topic or a file, and the offset in
    /// it. A long reason is shortened.
    pub(crate) fn new(source: &str, (place, partition, offset): (&str, u32, u64), reason: &str, bytes: &[u8]) -> Self {
        let (encoding, record) = match str::from_utf8(bytes) {
            Ok(text) => ("text", text.to_owned()),
            Err(_) => ("hex", bytes.iter().map(|byte| format!("{byte:02x}")).collect()),
        };
        Rejected {
            source: source.to_owned(),
            place: place.to_owned(),
            partition,
            offset,
            line: 0,
            reason: shortened(reason, MAX_REASON).into_owned(),
            encoding: encoding.to_owned(),
            record,
        }
    }

    /// Returns the bytes of the record.
    pub fn bytes(&self) -> Cow<'_, [u8]> {
        if self.encoding != "hex" {
            return Cow::Borrowed(self.record.as_bytes());
        }
        let digit = |byte: u8| char::from(byte).to_digit(16).unwrap_or(0) as u8;
        Cow::Owned(
            self.record
                .as_bytes()
                .chunks(2)
                .map(|pair| pair.iter().fold(0, |sum, byte| sum << 4 | digit(*byte)))
                .collect(),
        )
    }
}

/// What a rejected message has beside its value.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub struct RejectedMessage {
    /// Name of the topic.
    pub topic: String,
    /// Timestamp in milliseconds since 1970; `None` if the message has none.
    pub timestamp: Option<i64>,
    /// The key; `None` if the message has none.
    pub key: Option<Vec<u8>>,
    /// The headers, in their order: names with values, which may be null.
    pub headers: Vec<(String, Option<Vec<u8>>)>,
    /// `true` if the message has no value.
    pub is_tombstone: bool,
}

/// A record that could not be used, with everything that is needed to send it again.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub struct DeadLetter {
    /// The record, its place and the reason.
    pub rejected: Rejected,
    /// The rest of the message, if it is one of a topic.
    pub message: Option<RejectedMessage>,
}

impl DeadLetter {
    /// Returns the value of the message, or the bytes of the record; `None` if the message is a tombstone.
    pub fn value(&self) -> Option<Cow<'_, [u8]>> {
        let has_value = !self.message.as_ref().is_some_and(|message| message.is_tombstone);
        has_value.then(|| self.rejected.bytes())
    }
}

/// Longest reason that is kept, in characters: a library may quote a whole record in it.
const MAX_REASON: usize = 500;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_of_a_record_come_back_whatever_they_are() {
        let all: Vec<u8> = (0..=255).collect();
        for bytes in [&b""[..], b"abc", "é".as_bytes(), b"ff", b"\xff", &all] {
            let rejected = Rejected::new("", ("", 0, 0), "", bytes);
            assert_eq!(&*rejected.bytes(), bytes);
            let letter = |message| DeadLetter { rejected: rejected.clone(), message };
            assert_eq!(letter(None).value().as_deref(), Some(bytes));
            assert_eq!(letter(Some(RejectedMessage::default())).value().as_deref(), Some(bytes));
            let tombstone = RejectedMessage { is_tombstone: true, ..RejectedMessage::default() };
            assert_eq!(letter(Some(tombstone)).value(), None);
        }
    }
}
