//! Refuses compacted topics: a topic whose brokers remove records between others, so that what was read of it once
//! cannot be read again.
//!
//! Invariant: nothing here waits longer than its deadline.

use std::time::Duration;

use rdkafka::ClientContext;
use rdkafka::admin::ResourceSpecifier;
use rdkafka::client::Client;
use rdkafka::error::RDKafkaErrorCode;

use super::admin::{block_on, request};
use super::broker_errors::{code_of, code_text, error_text, is_transient};
use super::client::TopicConfig;
use crate::error::{Error, Result};

/// Longest time for which the brokers are asked again for a topic's settings, while they do not answer.
const SETTINGS_PATIENCE: Duration = Duration::from_secs(20);

/// Prefix of an embedded broker's cluster id, and longest wait for that id, which arrives with the partitions.
const EMBEDDED: &str = "mockCluster";
const EMBEDDED_TIMEOUT: Duration = Duration::from_secs(1);

/// Refuses a compacted topic. If the brokers do not tell, the topic is read, with a warning.
///
/// # Errors
/// Fails if the topic is compacted.
pub(super) fn refuse_compacted<C: ClientContext>(client: &Client<C>, topic_config: &TopicConfig) -> Result<()> {
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
    let passes = |code, since| is_transient(code) && since < SETTINGS_PATIENCE;
    let topic = ResourceSpecifier::Topic(&topic_config.topic);
    let asked = request(topic_config, passes, |admin, options| block_on(admin.describe_configs([&topic], options)))?;
    let settings = match asked {
        // A broker without settings has no compaction either.
        Err(error) if code_of(&error) == Some(RDKafkaErrorCode::UnsupportedFeature) => return Ok(()),
        Err(error) => return unknown(&error_text(&error)),
        Ok(mut settings) => settings.pop(),
    };
    match settings {
        Some(Ok(settings)) => match settings.get("cleanup.policy").and_then(|entry| entry.value.as_deref()) {
            Some(policy) if policy.split(',').any(|word| word.trim() == "compact") => {
                Err(compacted(topic_config, policy))
            }
            Some(_) => Ok(()),
            // The client library returns no settings, and no error, to who may not see them.
            None => unknown("who reads has no right to describe its configuration"),
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
