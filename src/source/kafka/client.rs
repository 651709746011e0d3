//! Configuration of clients: a topic, its brokers, and the client properties of the user and of the engine.
//!
//! Invariant: no property that the engine depends on can be set by the user.

use std::time::Duration;

use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;

use super::broker_errors::{error_text, without_codes};
use super::properties::{ClientProperties, displayed, name_of};
use crate::error::{Error, Result};
use crate::source::TopicAddress;

/// Maximum time for brokers to name their cluster.
const CLUSTER_TIMEOUT: Duration = Duration::from_secs(5);

/// A topic, its brokers, and the client properties that the user has set.
#[derive(Clone, Debug)]
pub(crate) struct TopicConfig {
    pub(crate) brokers: String,
    pub(crate) topic: String,
    pub(crate) properties: ClientProperties,
}

impl TopicConfig {
    pub(crate) fn new(brokers: &str, topic: &str) -> Self {
        TopicConfig { brokers: brokers.to_owned(), topic: topic.to_owned(), properties: ClientProperties::default() }
    }

    /// Describes the topic and its brokers for people.
    pub(crate) fn describe(&self) -> String {
        format!("topic {} at {}", self.topic, self.brokers)
    }

    /// Returns the topic's address, to find a job that reads what it writes.
    pub(crate) fn address(&self) -> TopicAddress {
        let asked = self.clone();
        TopicAddress::new(&*self.topic, &*self.brokers, move || {
            let consumer = asked.create_consumer(&[("group.id", "tidegate")], &[]).ok()?;
            consumer.client().fetch_cluster_id(CLUSTER_TIMEOUT)
        })
    }

    /// Returns it without properties of transactions, which are for producers of results only.
    pub(super) fn without_transactions(&self) -> Self {
        let mut own = self.clone();
        own.properties.retain(|key| !key.starts_with("transaction") && key != "enable.idempotence");
        own
    }

    /// Creates a consumer for a moment, of the topic of a source or of a sink.
    ///
    /// # Errors
    /// Fails as [`TopicConfig::configure`] does, or if the client library creates none.
    pub(crate) fn create_consumer(&self, defaults: &[(&str, &str)], needed: &[(&str, &str)]) -> Result<BaseConsumer> {
        let own = self.without_transactions();
        own.configure(defaults, needed)?.create().map_err(|error| client_not_created(&own, &error))
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
        for (key, value) in self.properties.iter() {
            let name = name_of(key);
            match needed.iter().chain([&brokers]).find(|(key, _)| *key == name) {
                Some((_, needed)) if *needed == value => {}
                Some((_, needed)) => {
                    let error = Error::usage(format!("the Kafka property {key} cannot be {}", displayed(key, value)));
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

/// Returns the error for a client that could not be created. Neither it nor its source contains secret values.
pub(crate) fn client_not_created(topic_config: &TopicConfig, error: &KafkaError) -> Error {
    let redact = |text: &str| topic_config.properties.redact(text);
    match error {
        KafkaError::ClientConfig(code, description, key, value) => {
            let value = displayed(key, value);
            let because = redact(description.trim_end_matches('.'));
            let cause = KafkaError::ClientConfig(*code, because.clone(), key.clone(), value.to_owned());
            Error::usage(format!("the Kafka property {key} cannot be {value}"))
                .at(topic_config.describe())
                .because(because)
                .caused_by(cause)
                .help("see librdkafka's CONFIGURATION.md")
        }
        KafkaError::ClientCreation(why) => Error::new("cannot create a Kafka client")
            .at(topic_config.describe())
            .because(redact(&without_codes(why)))
            .caused_by(KafkaError::ClientCreation(redact(why)))
            .help("check --kafka-config, and that the files that it names exist"),
        error => Error::new("cannot create a Kafka client")
            .at(topic_config.describe())
            .because(error_text(error))
            .caused_by(error.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::properties::SECOND_NAMES;
    use super::*;

    #[test]
    fn what_the_engine_needs_cannot_be_set_and_the_rest_wins_over_defaults() {
        let mut topic_config = TopicConfig::new("localhost:1", "t");
        topic_config.properties.set("fetch.wait.max.ms", "7");
        topic_config.properties.set("enable.auto.commit", "false");
        let needed = [("enable.auto.commit", "false"), ("isolation.level", "read_committed")];
        let config = topic_config.configure(&[("fetch.wait.max.ms", "500")], &needed).unwrap();
        assert_eq!((config.get("fetch.wait.max.ms"), config.get("enable.auto.commit")), (Some("7"), Some("false")));
        for (key, value) in [("isolation.level", "read_uncommitted"), ("metadata.broker.list", "elsewhere:1")] {
            let mut topic_config = topic_config.clone();
            topic_config.properties.set(key, value);
            let error = topic_config.configure(&[], &needed).unwrap_err();
            assert!(error.exit_code() == 2 && error.to_string().contains(key), "{error}");
        }
    }

    #[test]
    fn a_property_wins_over_the_default_by_each_of_its_names() {
        for (second, name) in SECOND_NAMES.iter().filter(|(_, name)| *name != "bootstrap.servers") {
            let mut topic_config = TopicConfig::new("localhost:1", "t");
            topic_config.properties.set(second, "mine");
            let config = topic_config.configure(&[(name, "default")], &[]).unwrap();
            assert_eq!((config.get(name), config.get(second)), (Some("mine"), None), "{second}");
            assert!(topic_config.configure(&[], &[(name, "needed")]).is_err(), "{second}");
            assert!(topic_config.properties.contains(name), "{second}");
        }
    }

    #[test]
    fn an_error_of_the_client_has_no_secret_in_it_nor_in_its_source() {
        for (key, value) in [("sasl.no.such.password", "swordfish"), ("ssl.key.pem", "swordfish")] {
            let mut topic_config = TopicConfig::new("localhost:1", "t");
            topic_config.properties.set(key, value);
            topic_config.properties.set("security.protocol", "ssl");
            let config = topic_config.configure(&[], &[]).unwrap();
            let error = config.create::<BaseConsumer>().err().unwrap();
            let error = client_not_created(&topic_config, &error);
            let source = std::error::Error::source(&error).unwrap();
            let printed = format!("{error} {error:?} {source} {source:?}");
            assert!(!printed.contains("swordfish"), "{printed}");
        }
    }
}
