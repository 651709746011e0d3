//! A message of a topic, as decoders see it.
//!
//! A [`Message`] is borrowed: from the client library when it is fetched, from the journal when it is replayed by
//! value. Keys and headers are read only if they are asked for.
//!
//! Invariant: a message that is kept as a [`JournaledRecord`] and read back is equal in everything that a decoder can
//! see.

use std::fmt;

use rdkafka::message::{BorrowedMessage, Headers, Message as _, Timestamp};

use crate::durable::journal::JournaledRecord;
use crate::source::RejectedMessage;
use crate::thread;
use crate::time::EventTime;

/// Origin of a message's timestamp.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TimestampKind {
    /// The message has no timestamp.
    Missing,
    /// The producer set it.
    CreateTime,
    /// The broker set it when it appended the message: the topic's `message.timestamp.type` is `LogAppendTime`.
    LogAppendTime,
}

/// A message of a topic: its value, its key, its headers, and its place.
#[derive(Clone, Copy)]
pub struct Message<'a> {
    topic: &'a str,
    partition: u32,
    offset: u64,
    timestamp: Option<i64>,
    is_log_append_time: bool,
    /// `true` if the key takes the place of the value: see [`Message::of_key`].
    is_key: bool,
    content: Content<'a>,
}

/// The owner of a message's bytes.
#[derive(Clone, Copy)]
enum Content<'a> {
    Fetched(&'a BorrowedMessage<'a>),
    Kept(&'a JournaledRecord),
}

impl<'a> Message<'a> {
    /// Wraps a message that was fetched from a partition of `topic`.
    pub(crate) fn fetched(topic: &'a str, partition: u32, message: &'a BorrowedMessage<'a>) -> Self {
        let timestamp = message.timestamp();
        Message {
            topic,
            partition,
            offset: message.offset().max(0) as u64,
            timestamp: timestamp.to_millis(),
            is_log_append_time: matches!(timestamp, Timestamp::LogAppendTime(_)),
            is_key: false,
            content: Content::Fetched(message),
        }
    }

    /// Returns a kept record as a message. Tests of a decoder of your own make messages with it.
    pub fn of_record(topic: &'a str, partition: u32, record: &'a JournaledRecord) -> Self {
        Message {
            topic,
            partition,
            offset: record.offset,
            timestamp: record.timestamp,
            is_log_append_time: record.is_log_append_time,
            is_key: false,
            content: Content::Kept(record),
        }
    }

    /// Returns the message with its key in the place of its value: decoders of values decode keys with it.
    #[must_use]
    pub fn of_key(self) -> Self {
        Message { is_key: true, ..self }
    }

    /// Returns the name of the topic.
    pub fn topic(&self) -> &'a str {
        self.topic
    }

    /// Returns the partition's number.
    pub fn partition(&self) -> u32 {
        self.partition
    }

    /// Returns the offset in the partition.
    #[inline]
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Returns the timestamp; `None` if the message has none. [`Message::timestamp_kind`] tells who set it.
    pub fn timestamp(&self) -> Option<EventTime> {
        self.timestamp.map(EventTime::from_millis)
    }

    /// Returns the origin of the timestamp.
    pub fn timestamp_kind(&self) -> TimestampKind {
        match self.timestamp {
            None => TimestampKind::Missing,
            Some(_) if self.is_log_append_time => TimestampKind::LogAppendTime,
            Some(_) => TimestampKind::CreateTime,
        }
    }

    /// Returns the timestamp in milliseconds since 1970; `None` if the message has none.
    #[inline]
    pub(super) fn timestamp_millis(&self) -> Option<i64> {
        self.timestamp
    }

    /// Returns the key; `None` if the message has none. An empty key is a key.
    pub fn key(&self) -> Option<&'a [u8]> {
        match self.content {
            Content::Fetched(message) => message.key(),
            Content::Kept(record) => record.key.as_deref(),
        }
    }

    /// Returns the value; `None` if the message is a tombstone. An empty value is a value.
    #[inline]
    pub fn value(&self) -> Option<&'a [u8]> {
        if self.is_key {
            return self.key();
        }
        match self.content {
            Content::Fetched(message) => message.payload(),
            Content::Kept(record) => record.payload.as_deref(),
        }
    }

    /// Iterates over the headers in their order, names that occur several times included. A header whose name is not
    /// UTF-8 is left out.
    pub fn headers(&self) -> MessageHeaders<'a> {
        let message = *self;
        MessageHeaders { message, left: 0..message.header_count() }
    }

    /// Returns the value of the last header of this name; `None` if there is none, or if its value is null.
    pub fn header(&self, name: &str) -> Option<&'a [u8]> {
        self.headers().rev().find(|(other, _)| *other == name)?.1
    }

    fn header_count(&self) -> usize {
        match self.content {
            Content::Fetched(message) => message.headers().map_or(0, Headers::count),
            Content::Kept(record) => record.headers.len(),
        }
    }

    /// Returns a header by its number; `None` if its name is not UTF-8.
    fn header_at(&self, number: usize) -> Option<(&'a str, Option<&'a [u8]>)> {
        match self.content {
            Content::Fetched(message) => {
                // The library panics at a name that is not UTF-8.
                let found = thread::guard(|| message.headers().and_then(|headers| headers.try_get(number)));
                found.ok().flatten().map(|header| (header.key, header.value))
            }
            Content::Kept(record) => record.headers.get(number).map(|(name, value)| (&**name, value.as_deref())),
        }
    }

    /// Returns a copy of everything but the value, for a message that is rejected.
    pub(crate) fn to_rejected(self) -> RejectedMessage {
        RejectedMessage {
            topic: self.topic.to_owned(),
            timestamp: self.timestamp,
            key: self.key().map(<[u8]>::to_vec),
            headers: self.owned_headers(),
            is_tombstone: self.value().is_none(),
        }
    }

    /// Returns a copy for the journal, with everything that a decoder can see.
    pub(crate) fn to_record(self) -> JournaledRecord {
        JournaledRecord {
            offset: self.offset,
            timestamp: self.timestamp,
            payload: self.value().map(<[u8]>::to_vec),
            is_log_append_time: self.is_log_append_time,
            key: self.key().map(<[u8]>::to_vec),
            headers: self.owned_headers(),
        }
    }

    fn owned_headers(&self) -> Vec<(String, Option<Vec<u8>>)> {
        self.headers().map(|(name, value)| (name.to_owned(), value.map(<[u8]>::to_vec))).collect()
    }
}

impl fmt::Debug for Message<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Message")
            .field("topic", &self.topic)
            .field("partition", &self.partition)
            .field("offset", &self.offset)
            .finish_non_exhaustive()
    }
}

/// Iterator over the headers of a [`Message`].
#[derive(Clone, Debug)]
pub struct MessageHeaders<'a> {
    message: Message<'a>,
    left: std::ops::Range<usize>,
}

impl<'a> Iterator for MessageHeaders<'a> {
    type Item = (&'a str, Option<&'a [u8]>);

    fn next(&mut self) -> Option<Self::Item> {
        let message = self.message;
        self.left.by_ref().find_map(|number| message.header_at(number))
    }
}

impl DoubleEndedIterator for MessageHeaders<'_> {
    fn next_back(&mut self) -> Option<Self::Item> {
        let message = self.message;
        self.left.by_ref().rev().find_map(|number| message.header_at(number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_its_record_and_the_last_header_of_a_name_counts() {
        let header = |name: &str, value: Option<&[u8]>| (name.to_owned(), value.map(<[u8]>::to_vec));
        let mut record = JournaledRecord {
            offset: 7,
            timestamp: Some(12),
            payload: Some(Vec::new()),
            is_log_append_time: true,
            key: Some(b"k".to_vec()),
            headers: vec![header("a", Some(b"1")), header("b", None), header("a", Some(b"2"))],
        };
        let message = Message::of_record("t", 3, &record);
        assert_eq!((message.topic(), message.partition(), message.offset()), ("t", 3, 7));
        assert_eq!(message.timestamp(), Some(EventTime::from_millis(12)));
        assert_eq!(message.timestamp_kind(), TimestampKind::LogAppendTime);
        assert_eq!((message.key(), message.value()), (Some(&b"k"[..]), Some(&b""[..])));
        assert_eq!(message.header("a"), Some(&b"2"[..]));
        assert_eq!((message.header("b"), message.header("c")), (None, None));
        let names: Vec<_> = message.headers().map(|(name, value)| (name, value.is_some())).collect();
        assert_eq!(names, [("a", true), ("b", false), ("a", true)]);
        assert!(message.headers().rev().map(|(name, _)| name).eq(["a", "b", "a"]));
        assert_eq!(message.to_record(), record);
        record.is_log_append_time = false;
        assert_eq!(Message::of_record("t", 3, &record).timestamp_kind(), TimestampKind::CreateTime);
        record.timestamp = None;
        assert_eq!(Message::of_record("t", 3, &record).timestamp_kind(), TimestampKind::Missing);
    }
}
