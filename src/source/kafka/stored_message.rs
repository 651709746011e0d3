//! Codec of a message of a record in flight, which no file ever has: see [`MessageStore`].
//!
//! Invariant: what is read back is equal in everything that a dead letter has.
//!
//! [`MessageStore`]: crate::source::MessageStore

use super::message::Message;
use crate::durable::journal::JournaledRecord;

/// Length that stands for a part that is null.
const NULL: u32 = u32::MAX;

/// A message that was read back.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct StoredParts {
    topic: String,
    partition: u32,
    record: JournaledRecord,
}

impl StoredParts {
    /// Returns the message.
    pub(crate) fn message(&self) -> Message<'_> {
        Message::of_record(&self.topic, self.partition, &self.record)
    }
}

/// Appends a message.
pub(crate) fn write_message(message: &Message<'_>, bytes: &mut Vec<u8>) {
    let timestamp = message.timestamp_millis();
    bytes.extend(message.partition().to_le_bytes());
    bytes.extend(message.offset().to_le_bytes());
    bytes.extend([u8::from(timestamp.is_some())]);
    bytes.extend(timestamp.unwrap_or_default().to_le_bytes());
    write_part(Some(message.topic().as_bytes()), bytes);
    write_part(message.key(), bytes);
    write_part(message.value(), bytes);
    for (name, value) in message.headers() {
        write_part(Some(name.as_bytes()), bytes);
        write_part(value, bytes);
    }
}

fn write_part(part: Option<&[u8]>, bytes: &mut Vec<u8>) {
    // Messages are smaller than 2 GiB.
    let length = part.map_or(NULL, |part| part.len() as u32);
    bytes.extend(length.to_le_bytes());
    bytes.extend_from_slice(part.unwrap_or_default());
}

/// Reads a message back; `None` if the bytes are of none.
pub(crate) fn read_message(mut bytes: &[u8]) -> Option<StoredParts> {
    let rest = &mut bytes;
    let partition = u32::from_le_bytes(read_array(rest)?);
    let offset = u64::from_le_bytes(read_array(rest)?);
    let [has_timestamp] = read_array(rest)?;
    let timestamp = i64::from_le_bytes(read_array(rest)?);
    let text = |part: Option<&[u8]>| str::from_utf8(part?).ok().map(str::to_owned);
    let topic = text(read_part(rest)?)?;
    let key = read_part(rest)?.map(<[u8]>::to_vec);
    let payload = read_part(rest)?.map(<[u8]>::to_vec);
    let mut headers = Vec::new();
    while !rest.is_empty() {
        headers.push((text(read_part(rest)?)?, read_part(rest)?.map(<[u8]>::to_vec)));
    }
    let timestamp = (has_timestamp == 1).then_some(timestamp);
    let record = JournaledRecord { offset, timestamp, payload, is_log_append_time: false, key, headers };
    Some(StoredParts { topic, partition, record })
}

fn read_array<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (array, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(*array)
}

fn read_part<'a>(bytes: &mut &'a [u8]) -> Option<Option<&'a [u8]>> {
    let length = u32::from_le_bytes(read_array(bytes)?);
    if length == NULL {
        return Some(None);
    }
    let (part, rest) = bytes.split_at_checked(length as usize)?;
    *bytes = rest;
    Some(Some(part))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_comes_back_with_all_that_is_null_or_empty() {
        let bytes = |text: &str| Some(text.as_bytes().to_vec());
        for (timestamp, key, payload) in
            [(Some(-7), None, bytes("")), (None, bytes(""), None), (Some(9), bytes("k"), bytes("\u{1}v"))]
        {
            let headers = [("a".to_owned(), None), ("a".to_owned(), Some(vec![0xff])), (String::new(), bytes(""))];
            for count in 0..=headers.len() {
                let headers = headers[..count].to_vec();
                let (key, payload) = (key.clone(), payload.clone());
                let record = JournaledRecord { offset: 3, timestamp, payload, is_log_append_time: false, key, headers };
                let stored = StoredParts { topic: "t".to_owned(), partition: 5, record };
                let mut bytes = Vec::new();
                write_message(&stored.message(), &mut bytes);
                assert_eq!(read_message(&bytes).as_ref(), Some(&stored));
                assert_eq!(read_message(&bytes[..bytes.len() - 1]), None);
            }
        }
    }
}
