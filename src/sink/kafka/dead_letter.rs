//! Dead letters: messages that could not be used, in a topic, with the reason in their headers.
//!
//! A dead letter is the original message (key, value, headers) with further headers behind its own: [`REASON`] first,
//! then those that name its place. It has the time at which it was written, so that retention counts from then; the
//! original timestamp is in [`TIMESTAMP`].
//!
//! Invariant: [`original`] of a dead letter has exactly the headers that the message had, also if it was a dead letter
//! itself.

use super::encode::Encode;
use super::message::MessageHeader;
use super::{Sink, encode};
use crate::source::DeadLetter;

/// Header with the reason. It is the first of the headers that are added.
const REASON: &str = "tidegate.error.reason";
/// Header with the step that could not use the record: for rejected records the name of the source. A row that a step
/// has made is from no topic and no file.
const STEP: &str = "tidegate.error.step";
/// Header with the name of the topic.
const TOPIC: &str = "tidegate.error.topic";
/// Header with the path of the file, of records that come from none.
const FILE: &str = "tidegate.error.file";
/// Header with the partition.
const PARTITION: &str = "tidegate.error.partition";
/// Header with the offset: of a record of a file, the position of its first byte.
const OFFSET: &str = "tidegate.error.offset";
/// Header with the line in the file, from 1.
const LINE: &str = "tidegate.error.line";
/// Header with the message's timestamp, in milliseconds since 1970.
const TIMESTAMP: &str = "tidegate.error.timestamp";

impl Sink<DeadLetter> {
    /// Names a topic at `brokers` that keeps records that could not be used: see [`Flow::dead_letters`]. Each message has
    /// the key, the value and the headers of the original message; behind these are headers with the reason and the
    /// place, whose names begin with `tidegate.error.`. `tidegate redrive` sends such messages back.
    ///
    /// ```no_run
    /// # use serde::{Deserialize, Serialize};
    /// # #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
    /// # struct Order { at_ms: i64 }
    /// use tidegate::{Job, kafka};
    ///
    /// let orders = kafka::Source::json("localhost:9092", "orders").event_time(|order: &Order| order.at_ms);
    /// let dead = kafka::Sink::dead_letters("localhost:9092", "orders-dead").create(4);
    /// Job::new("orders").state("state/").run(move |flow| {
    ///     let orders = flow.read("orders", &orders);
    ///     flow.dead_letters().write("dead", &dead);
    ///     // …
    ///     # orders.inspect(|_| ());
    /// })?;
    /// # Ok::<(), tidegate::Error>(())
    /// ```
    ///
    /// [`Flow::dead_letters`]: crate::stream::Flow::dead_letters
    pub fn dead_letters(brokers: &str, topic: &str) -> Self {
        Sink::new(brokers, topic, LetterEncoder)
            .key_bytes(|letter| letter.message.as_ref().and_then(|message| message.key.clone()))
            .headers(headers)
            .tombstone_if(|letter| letter.value().is_none())
    }
}

/// The encoder of dead letters: the original bytes.
struct LetterEncoder;

impl Encode<DeadLetter> for LetterEncoder {
    fn encode(&self, letter: &DeadLetter, value: &mut Vec<u8>) -> Result<(), String> {
        encode::bytes().encode(&letter.value().unwrap_or_default(), value)
    }
}

/// Returns the headers of a dead letter: the original ones, and those that are added.
fn headers(letter: &DeadLetter) -> Vec<MessageHeader> {
    let (rejected, message) = (&letter.rejected, letter.message.as_ref());
    let mut headers = message.map(|message| message.headers.clone()).unwrap_or_default();
    let mut add = |name: &str, value: String| headers.push((name.to_owned(), Some(value.into_bytes())));
    add(REASON, rejected.reason.clone());
    add(STEP, rejected.source.clone());
    match message {
        Some(message) => add(TOPIC, message.topic.clone()),
        None if rejected.place.is_empty() => {}
        None => add(FILE, rejected.place.clone()),
    }
    add(PARTITION, rejected.partition.to_string());
    add(OFFSET, rejected.offset.to_string());
    if rejected.line > 0 {
        add(LINE, rejected.line.to_string());
    }
    if let Some(timestamp) = message.and_then(|message| message.timestamp) {
        add(TIMESTAMP, timestamp.to_string());
    }
    headers
}

/// The original message, as far as a dead letter's headers describe it.
#[cfg(any(feature = "cli", test))]
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct OriginalMessage {
    /// Name of the topic; `None` if the headers name none.
    pub(crate) topic: Option<String>,
    /// Timestamp in milliseconds since 1970.
    pub(crate) timestamp: Option<i64>,
    /// The original headers.
    pub(crate) headers: Vec<MessageHeader>,
}

/// Separates the original headers from those that were added. Without the latter, all are original.
#[cfg(any(feature = "cli", test))]
pub(crate) fn original(mut headers: Vec<MessageHeader>) -> OriginalMessage {
    let Some(added) = headers.iter().rposition(|(name, _)| name == REASON) else {
        return OriginalMessage { headers, ..OriginalMessage::default() };
    };
    let added = headers.split_off(added);
    let text = |name: &str| {
        let (_, value) = added.iter().find(|(other, _)| other == name)?;
        value.as_deref().and_then(|value| str::from_utf8(value).ok())
    };
    OriginalMessage {
        topic: text(TOPIC).map(str::to_owned),
        timestamp: text(TIMESTAMP).and_then(|text| text.parse().ok()),
        headers,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::durable::journal::JournaledRecord;
    use crate::source::kafka::Message;

    fn letter(headers: Vec<MessageHeader>, timestamp: Option<i64>) -> DeadLetter {
        let record = JournaledRecord {
            offset: 7,
            timestamp,
            payload: Some(b"\xff".to_vec()),
            is_log_append_time: false,
            key: Some(b"k".to_vec()),
            headers,
        };
        DeadLetter::of(&Message::of_record("orders", 3, &record), "source", "why")
    }

    #[test]
    fn the_original_headers_come_back_also_those_of_a_dead_letter() {
        let own = vec![(String::from("a"), None), (String::from("a"), Some(b"\xff".to_vec()))];
        let first = headers(&letter(own.clone(), Some(12)));
        let names: Vec<_> =
            first.iter().map(|(name, _)| name.strip_prefix("tidegate.error.").unwrap_or("own")).collect();
        assert_eq!(names, ["own", "own", "reason", "step", "topic", "partition", "offset", "timestamp"]);
        assert_eq!(
            original(first.clone()),
            OriginalMessage { topic: Some(String::from("orders")), timestamp: Some(12), headers: own.clone() }
        );
        let second = headers(&letter(first.clone(), None));
        let found = original(second);
        assert_eq!((found.timestamp, &found.headers), (None, &first), "only the last headers are taken away");
        assert_eq!(original(own.clone()), OriginalMessage { headers: own, ..OriginalMessage::default() });
    }
}
