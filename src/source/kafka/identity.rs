//! Identity of a topic: tells it from every other one, also from a later topic of the same name.
//!
//! * A topic's **id** is assigned by the brokers when it is created. The client library reports it only in its log,
//!   when the id is new to it; so the log is parsed. Brokers older than Kafka 2.8, and some that only speak its
//!   protocol, assign no id.
//! * A partition's **fingerprint** is that of the **last record** that was taken of it: its timestamp and value. It
//!   identifies a topic without an id, and is compared when a state goes on. If retention has removed that record, the
//!   topic is accepted.
//! * The errors for a topic that is not the one that was read are made here.
//!
//! Nothing here asks brokers: it compares what they have told.

use rdkafka::message::{BorrowedMessage, Message};

use super::client::TopicConfig;
use crate::durable::journal::{ContentCheck, PartitionProgress};
use crate::error::{Error, ErrorKind, Result};

/// Contexts of the client library's log that contain the ids of topics.
pub(super) const LOGGED: &str = "metadata";

const RECREATED_HELP: &str = "was the topic deleted and created again? then start with a new --state";

/// Extracts a topic's new id from a line of the client library's log; `None` if the line is about something else.
pub(super) fn id_in<'a>(topic: &str, line: &'a str) -> Option<&'a str> {
    // "Topic orders changed id from AAAAAAAAAAAAAAAAAAAAAA to pEBvHAhMRHKzo8Un_mF0Dw"
    let (before, rest) = line.split_once(" changed id from ")?;
    let named = before.strip_suffix(topic).is_some_and(|before| before.ends_with("Topic "));
    let (_, id) = rest.split_once(" to ")?;
    let id = id.trim();
    // An id of zeros means that there is none.
    let is_one = !id.is_empty() && !id.trim_end_matches('=').chars().all(|letter| letter == 'A');
    (named && is_one).then_some(id)
}

/// Returns the identity of a topic with this id, which does not depend on its name or its brokers' address.
pub(super) fn identity(id: &str) -> String {
    format!("topic {id}")
}

/// Returns a message's offset, and its timestamp if it has one.
pub(super) fn offset_and_timestamp(message: &BorrowedMessage<'_>) -> (u64, Option<i64>) {
    (message.offset().max(0) as u64, message.timestamp().to_millis())
}

/// `true` if a message is the record of a fingerprint.
pub(super) fn has_fingerprint(message: &BorrowedMessage<'_>, expected: ContentCheck) -> bool {
    let (offset, stamped) = offset_and_timestamp(message);
    fingerprint(offset, stamped, message.payload()) == expected
}

/// Computes a partition's fingerprint from one of its records.
pub(super) fn fingerprint(offset: u64, stamped: Option<i64>, payload: Option<&[u8]>) -> ContentCheck {
    let mut sum = crc32fast::Hasher::new();
    sum.update(&stamped.unwrap_or(i64::MIN).to_le_bytes());
    sum.update(payload.unwrap_or_default());
    ContentCheck { at: offset, sum: sum.finalize() }
}

/// Returns the error for a topic without a partition that a state names.
pub(super) fn missing_partition(topic_config: &TopicConfig, partition: u32) -> Error {
    let place = format!("{}, partition {partition}", topic_config.describe());
    Error::of(ErrorKind::SourceChanged, "a partition that the state names is not there").at(place).help(RECREATED_HELP)
}

/// Returns the error for a topic that has another record than the state took, or none.
pub(super) fn wrong_record(topic_config: &TopicConfig, partition: u32, check: ContentCheck) -> Error {
    let place = format!("{}, partition {partition}, offset {}", topic_config.describe(), check.at);
    let error = Error::of(ErrorKind::SourceChanged, "a record is not the one that the state has counted").at(place);
    error.help("was the topic deleted and created again, or is it compacted? then start with a new --state")
}

/// Fails if a partition ends before what a state has taken, or was to take, of it.
pub(super) fn check_end(topic_config: &TopicConfig, bound: &PartitionProgress, end: u64) -> Result<()> {
    let named = bound.next_offset.max(bound.end_offset.unwrap_or(0));
    if named <= end {
        return Ok(());
    }
    let because = format!("the topic ends at offset {end}, the state at {named}");
    let error = Error::of(ErrorKind::SourceChanged, "records that the state has counted are not there")
        .because(because)
        .help(RECREATED_HELP);
    Err(error.at_partition(topic_config.describe(), bound.partition))
}

/// Returns the error for a topic that was deleted and created again under its name while it was read.
pub(super) fn recreated(topic_config: &TopicConfig) -> Error {
    Error::of(
        ErrorKind::SourceChanged,
        format!("the topic {} was deleted and created again while it was read", topic_config.topic),
    )
    .at(&topic_config.brokers)
    .because("its new records may be at offsets that were read before")
    .help("start again with a new --state and new outputs")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_that_of_the_topic_and_not_zero() {
        let line = "[thrd:main]: Topic t changed id from AAAAAAAAAAAAAAAAAAAAAA to pEBvHAhMRHKzo8Un_mF0Dw";
        assert_eq!(id_in("t", line), Some("pEBvHAhMRHKzo8Un_mF0Dw"));
        assert_eq!(id_in("u", line), None);
        assert_eq!(id_in("t", &line.replace("Topic t", "Topic at")), None);
        assert_eq!(id_in("t", "Topic t changed id from pEBvHAhMRHKzo8Un_mF0Dw to AAAAAAAAAAAAAAAAAAAAAA"), None);
        assert_eq!(id_in("t", "Topic t [0] Leader 1 Epoch 0"), None);
    }
}
