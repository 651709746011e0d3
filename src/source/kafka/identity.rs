//! Identity of a topic: tells it from every other one, also from a later topic of the same name.
//!
//! * A topic's **id** is assigned by the brokers when it is created. The client library reports it only in its log,
//!   when the id is new to it; so the log is parsed. Brokers older than Kafka 2.8, and some that only speak its
//!   protocol, assign no id.
//! * Without an id a topic is identified by the **last record** that was taken of each partition: its timestamp and
//!   value. If retention has removed that record, the topic is accepted.
//! * A **compacted** topic loses records between others: what was read of it once cannot be read again.
//!
//! Invariant: nothing here waits longer than its deadline.

use std::collections::BTreeMap;
use std::time::Duration;

use rdkafka::ClientContext;
use rdkafka::admin::{AdminOptions, ResourceSpecifier};
use rdkafka::client::Client;
use rdkafka::config::ClientConfig;
use rdkafka::error::RDKafkaErrorCode;

use super::admin::{administrator, wait_for};
use super::client::{TopicConfig, code_text, error_text};
use super::peek::{ReadDecision, read_each};
use super::reader::{connect, has_fingerprint, missing_partition, offsets, wrong_record};
use crate::durable::journal::ContentCheck;
use crate::error::{Error, ErrorKind, Result};

/// Longest wait for the brokers to report a topic's settings.
const SETTINGS_TIMEOUT: Duration = Duration::from_secs(10);

/// Prefix of an embedded broker's cluster id, and longest wait for that id, which arrives with the partitions.
const EMBEDDED: &str = "mockCluster";
const EMBEDDED_TIMEOUT: Duration = Duration::from_secs(1);

/// Contexts of the client library's log that contain the ids of topics.
pub(super) const LOGGED: &str = "metadata";

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

/// Reads once more the last records that were taken, with a client of its own, and compares them. Returns an error if
/// another record, or none, is in the place of one; `None` if all are the same.
///
/// # Errors
/// Fails if the topic cannot be read at the moment.
pub(super) fn compare_records(
    topic_config: &TopicConfig,
    job: &str,
    checks: &[(u32, ContentCheck)],
) -> Result<Option<Error>> {
    let (consumer, ids) = connect(topic_config, job)?;
    let (mut expected, mut from) = (BTreeMap::new(), Vec::new());
    for (id, check) in checks {
        if !ids.contains(id) {
            return Ok(Some(missing_partition(topic_config, *id)));
        }
        let (low, end) = offsets(&consumer, topic_config, *id)?;
        if check.at >= end {
            return Ok(Some(wrong_record(topic_config, *id, *check)));
        }
        if check.at >= low {
            expected.insert(*id, *check);
            from.push((*id, check.at));
        }
    }
    read_each(&consumer, topic_config, &from, |id, message| {
        let Some(expected) = expected.remove(&id) else { return Ok(ReadDecision::Skip) };
        let is_as_it_was = message.is_some_and(|message| has_fingerprint(message, expected));
        Ok(if is_as_it_was {
            ReadDecision::Skip
        } else {
            ReadDecision::Answer(wrong_record(topic_config, id, expected))
        })
    })
}

/// Refuses a compacted topic. If the brokers do not tell, the topic is read, with a warning.
///
/// # Errors
/// Fails if the topic is compacted.
pub(super) fn refuse_compacted<C: ClientContext>(
    client: &Client<C>,
    topic_config: &TopicConfig,
    config: &ClientConfig,
) -> Result<()> {
    // An embedded broker answers no admin client, and compacts nothing.
    let is_embedded = |cluster: &String| cluster.starts_with(EMBEDDED);
    if client.fetch_cluster_id(EMBEDDED_TIMEOUT).as_ref().is_some_and(is_embedded) {
        return Ok(());
    }
    let unknown = |why: &str| {
        tracing::warn!(
            "{}: whether it is compacted cannot be asked ({why}); if it is, read it with --compacted, or `.compacted(true)`",
            topic_config.describe()
        );
        Ok(())
    };
    let admin = administrator(topic_config, config)?;
    let options = AdminOptions::new().request_timeout(Some(SETTINGS_TIMEOUT));
    let asked = wait_for(admin.describe_configs([&ResourceSpecifier::Topic(&topic_config.topic)], &options));
    let settings = match asked {
        // A broker without settings has no compaction either.
        Err(error) if error.rdkafka_error_code() == Some(RDKafkaErrorCode::UnsupportedFeature) => return Ok(()),
        Err(error) => return unknown(&error_text(&error)),
        Ok(mut settings) => settings.pop(),
    };
    match settings {
        Some(Ok(settings)) => match settings.get("cleanup.policy").and_then(|entry| entry.value.as_deref()) {
            Some(policy) if policy.split(',').any(|word| word.trim() == "compact") => {
                Err(compacted(topic_config, policy))
            }
            Some(_) => Ok(()),
            None => unknown("its settings do not say"),
        },
        Some(Err(code)) => unknown(&code_text(code)),
        None => unknown("no answer"),
    }
}

fn compacted(topic_config: &TopicConfig, policy: &str) -> Error {
    Error::new("a compacted topic is no stream of events")
        .at(topic_config.describe())
        .because(format!(
            "its cleanup.policy is {policy}: older records of a key vanish, also ones that were counted, and what was read \
             once cannot be read again"
        ))
        .help("to read it as it is, and keep in the journal what is read, pass --compacted, or set `.compacted(true)`")
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
