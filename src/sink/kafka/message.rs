//! Messages on their way to a topic.
//!
//! * An [`OutgoingMessage`] is everything that a message has, borrowed.
//! * [`PendingMessages`] are those of the open transaction, kept until it is committed.
//!
//! Invariant: a message that is sent again is equal in everything.

use crate::error::Result;

/// A header of a message: its name and its value, which may be null.
pub type MessageHeader = (String, Option<Vec<u8>>);

/// A message to send.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct OutgoingMessage<'a> {
    /// Name of the topic; `None`: the publisher's.
    pub(super) topic: Option<&'a str>,
    /// Number of the partition; `None`: the one that the key determines.
    pub(super) partition: Option<i32>,
    pub(super) key: Option<&'a [u8]>,
    /// `None` is a tombstone.
    pub(super) value: Option<&'a [u8]>,
    pub(super) headers: &'a [MessageHeader],
    /// Timestamp in milliseconds since 1970; `None` stands for now.
    pub(super) at_ms: Option<i64>,
}

/// Messages of one topic, kept until they are committed.
#[derive(Default)]
pub(super) struct PendingMessages {
    /// Keys and values.
    bytes: Vec<u8>,
    messages: Vec<PendingMessage>,
}

/// A message of [`PendingMessages`], with the lengths of its parts.
struct PendingMessage {
    partition: Option<i32>,
    key: Option<usize>,
    value: Option<usize>,
    headers: Vec<MessageHeader>,
    at_ms: Option<i64>,
}

impl PendingMessages {
    pub(super) fn push(&mut self, message: &OutgoingMessage<'_>) {
        self.bytes.extend(message.key.unwrap_or_default());
        self.bytes.extend(message.value.unwrap_or_default());
        self.messages.push(PendingMessage {
            partition: message.partition,
            key: message.key.map(<[u8]>::len),
            value: message.value.map(<[u8]>::len),
            headers: message.headers.to_vec(),
            at_ms: message.at_ms,
        });
    }

    /// Calls `send` with each message, in the order in which they were pushed.
    pub(super) fn each(&self, mut send: impl FnMut(&OutgoingMessage<'_>) -> Result<()>) -> Result<()> {
        let mut rest = &self.bytes[..];
        self.messages.iter().try_for_each(|PendingMessage { partition, key, value, headers, at_ms }| {
            let (key_bytes, others) = rest.split_at(key.unwrap_or(0));
            let (value_bytes, others) = others.split_at(value.unwrap_or(0));
            rest = others;
            let (key, value) = (key.map(|_| key_bytes), value.map(|_| value_bytes));
            send(&OutgoingMessage { topic: None, partition: *partition, key, value, headers, at_ms: *at_ms })
        })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// Drops the messages, and all but the usual capacity.
    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.messages.clear();
        self.bytes.shrink_to(1 << 20);
        self.messages.shrink_to(1 << 14);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_sent_again_as_they_were() {
        let headers = [(String::from("a"), Some(b"1".to_vec())), (String::from("a"), None)];
        let message = |key, value| OutgoingMessage { key, value, ..OutgoingMessage::default() };
        let messages = [
            message(Some(&b"k"[..]), Some(&b"one"[..])),
            message(None, Some(b"two")),
            OutgoingMessage { partition: Some(3), at_ms: Some(7), headers: &headers, ..message(Some(b""), Some(b"")) },
            message(None, Some(b"")),
            message(Some(b"gone"), None),
            message(None, None),
        ];
        let mut pending = PendingMessages::default();
        for _ in 0..2 {
            assert!(pending.is_empty());
            messages.iter().for_each(|message| pending.push(message));
            let mut number = 0;
            let each = pending.each(|message| {
                assert_eq!(*message, messages[number]);
                number += 1;
                Ok(())
            });
            assert_eq!((each, number), (Ok(()), messages.len()));
            pending.clear();
        }
    }
}
