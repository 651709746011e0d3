//! Configuration of clients: a topic, its brokers, and the client properties of the user and of the engine.
//!
//! Invariant: no property that the engine depends on can be set by the user.

use std::collections::BTreeMap;
use std::time::Duration;

use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;

use super::broker_errors::{error_text, without_codes};
use crate::error::{Error, Result};
use crate::source::TopicAddress;

/// Maximum time for brokers to name their cluster.
const CLUSTER_TIMEOUT: Duration = Duration::from_secs(5);

/// A topic, its brokers, and the client properties that the user has set.
#[derive(Clone, Debug)]
pub(crate) struct TopicConfig {
    pub(crate) brokers: String,
    pub(crate) topic: String,
    pub(crate) properties: BTreeMap<String, String>,
}

impl TopicConfig {
    pub(crate) fn new(brokers: &str, topic: &str) -> Self {
        TopicConfig { brokers: brokers.to_owned(), topic: topic.to_owned(), properties: BTreeMap::new() }
    }

    /// Describes the topic and its brokers for people.
    pub(crate) fn describe(&self) -> String {
        format!("topic {} at {}", self.topic, self.brokers)
    }

    /// Returns the topic's address, to find a job that reads what it writes.
    pub(crate) fn address(&self) -> TopicAddress {
        let mut asked = self.clone();
        asked.properties.retain(|key, _| !key.starts_with("transaction"));
        TopicAddress::new(&*self.topic, &*self.brokers, move || {
            let consumer: BaseConsumer = asked.configure(&[("group.id", "tidegate")], &[]).ok()?.create().ok()?;
            consumer.client().fetch_cluster_id(CLUSTER_TIMEOUT)
        })
    }

    /// Returns the client's configuration. The user's properties override `defaults`, but not `needed`.
    ///
    /// # Errors
    /// Fails if the user set a property of `needed` to another value.
    pub(crate) fn configure(&self, defaults: &[(&str, &str)], needed: &[(&str, &str)]) -> Result<ClientConfig> {
        let mut config = ClientConfig::new();
        let brokers = ("bootstrap.servers", self.brokers.as_str());
        for (key, value) in defaults.iter().chain(needed).chain([&brokers]) {
            config.set(*key, *value);
        }
        for (key, value) in &self.properties {
            // The library has second names for some properties.
            let name = match key.as_str() {
                "metadata.broker.list" => "bootstrap.servers",
                "request.required.acks" => "acks",
                "auto.commit.enable" => "enable.auto.commit",
                "compression.codec" => "compression.type",
                name => name,
            };
            match needed.iter().chain([&brokers]).find(|(key, _)| *key == name) {
                Some((_, needed)) if needed == value => {}
                Some((_, needed)) => {
                    let error = Error::usage(format!("the Kafka property {key} cannot be {value}"));
                    let because = format!("{name} has to be {needed} here");
                    return Err(error.at(self.describe()).because(because).help("remove the property"));
                }
                None => {
                    config.set(name, value);
                }
            }
        }
        // The library's own log lines would only repeat what is reported here.
        config.set_log_level(RDKafkaLogLevel::Emerg);
        Ok(config)
    }
}

/// Returns the error for a client that could not be created.
pub(crate) fn client_not_created(topic_config: &TopicConfig, error: &KafkaError) -> Error {
    match error {
        KafkaError::ClientConfig(_, description, key, value) => {
            let what = format!("the Kafka property {key} cannot be {value}");
            let because = description.trim_end_matches('.').to_owned();
            Error::usage(what)
                .at(topic_config.describe())
                .because(because)
                .caused_by(error.clone())
                .help("see librdkafka's CONFIGURATION.md")
        }
        KafkaError::ClientCreation(why) => {
            let failed =
                Error::new("cannot create a Kafka client").at(topic_config.describe()).because(without_codes(why));
            failed.caused_by(error.clone()).help("check --kafka-config, and that the files that it names exist")
        }
        error => Error::new("cannot create a Kafka client")
            .at(topic_config.describe())
            .because(error_text(error))
            .caused_by(error.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_engine_needs_cannot_be_set_and_the_rest_wins_over_defaults() {
        let mut topic_config = TopicConfig::new("localhost:1", "t");
        topic_config.properties.insert("fetch.wait.max.ms".into(), "7".into());
        topic_config.properties.insert("enable.auto.commit".into(), "false".into());
        let needed = [("enable.auto.commit", "false"), ("isolation.level", "read_committed")];
        let config = topic_config.configure(&[("fetch.wait.max.ms", "500")], &needed).unwrap();
        assert_eq!((config.get("fetch.wait.max.ms"), config.get("enable.auto.commit")), (Some("7"), Some("false")));
        for (key, value) in [("isolation.level", "read_uncommitted"), ("metadata.broker.list", "elsewhere:1")] {
            let mut topic_config = topic_config.clone();
            topic_config.properties.insert(key.into(), value.into());
            let error = topic_config.configure(&[], &needed).unwrap_err();
            assert!(error.exit_code() == 2 && error.to_string().contains(key), "{error}");
        }
    }
}
