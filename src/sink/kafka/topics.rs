//! Finds and creates topics that are written to.
//!
//! Invariant: a topic is created only if the caller allows it.

use std::time::Duration;

use rdkafka::admin::{AdminClient, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, Producer};

use super::events::ProducerEvents;
use crate::error::{Error, ErrorKind, Result};
use crate::source::kafka::admin::{block_on, request};
use crate::source::kafka::broker_errors::{code_of, error_text, is_transient};
use crate::source::kafka::client::TopicConfig;
use crate::source::kafka::topic_lookup::{TopicLookup, find_new_topic, find_topic, look_up_topic, no_topic};

/// Longest wait for the brokers to report whether a topic exists, before it is created.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(2);

/// Longest time for which the creation of a topic is repeated, while brokers do not answer.
const CREATE_PATIENCE: Duration = Duration::from_secs(40);

/// The same while there are fewer brokers than replicas: some may be starting, or the brokers' configuration is wrong.
const TOO_FEW_PATIENCE: Duration = Duration::from_secs(5);

/// Finds a topic, or creates it. Returns its number of partitions, and `true` if it was created.
pub(super) fn find_or_create(
    producer: &BaseProducer<ProducerEvents>,
    topic_config: &TopicConfig,
    create: Option<u32>,
    settings: &[(&str, &str)],
) -> Result<(usize, bool)> {
    let served = || (0..100).for_each(|_| producer.poll(Duration::ZERO));
    let find = || find_topic(producer.client(), topic_config, &producer.context().last_error, served);
    let Some(wanted) = create else {
        return match find()? {
            TopicLookup::There(ids) => Ok((ids.len(), false)),
            TopicLookup::Unknown(similar) => Err(no_topic(ErrorKind::SinkFailed, topic_config, &similar)),
        };
    };
    // Creating an existing topic does no harm, so the brokers are asked only once, not for as long as a topic may be
    // unknown.
    let unknown = matches!(
        look_up_topic(producer.client(), &topic_config.topic, LOOKUP_TIMEOUT),
        Ok(Some(TopicLookup::Unknown(_)))
    );
    let mut created = unknown && create_topic(topic_config, wanted, settings)?;
    if !unknown {
        if let TopicLookup::There(ids) = find()? {
            return Ok((ids.len(), false));
        }
        created = create_topic(topic_config, wanted, settings)?;
    }
    // It exists, whoever created it.
    match find_new_topic(producer.client(), topic_config, &producer.context().last_error, served)? {
        TopicLookup::There(ids) => Ok((ids.len(), created)),
        TopicLookup::Unknown(similar) => Err(no_topic(ErrorKind::SinkFailed, topic_config, &similar)),
    }
}

/// Creates the topic, with the brokers' default number of replicas. Returns `false` if it existed already.
fn create_topic(topic_config: &TopicConfig, partitions: u32, settings: &[(&str, &str)]) -> Result<bool> {
    let failed = |because: String| {
        let what = format!("cannot create the topic {}", topic_config.topic);
        Error::of(ErrorKind::SinkFailed, what).at(&topic_config.brokers).because(because)
    };
    let count = i32::try_from(partitions).map_err(|_| failed(format!("{partitions} partitions are too many")))?;
    let topic = NewTopic::new(&topic_config.topic, count, TopicReplication::Fixed(-1));
    let topic = settings.iter().fold(topic, |topic, (key, value)| topic.set(key, value));
    let passes = |code, since| match code {
        RDKafkaErrorCode::InvalidReplicationFactor => since < TOO_FEW_PATIENCE,
        code => is_transient(code) && since < CREATE_PATIENCE,
    };
    let created = request(topic_config, passes, |admin, options| {
        match block_on(admin.create_topics([&topic], options))?.into_iter().find_map(std::result::Result::err) {
            None => Ok(true),
            // Whoever created it: an earlier request may have, whose answer did not come.
            Some((_, RDKafkaErrorCode::TopicAlreadyExists)) => Ok(false),
            Some((_, RDKafkaErrorCode::InvalidReplicationFactor)) if names_no_broker(admin) => {
                Err(KafkaError::AdminOp(RDKafkaErrorCode::BrokerNotAvailable))
            }
            Some((_, code)) => Err(KafkaError::AdminOp(code)),
        }
    })?;
    created.map_err(|error| {
        let is_silence = code_of(&error).is_some_and(is_transient);
        let failed = failed(error_text(&error)).caused_by(error);
        if is_silence { failed.help("check that the brokers are up and reachable") } else { failed }
    })
}

/// `true` if the cluster has no broker at the moment: the only one starts, or has missed its heartbeats.
fn names_no_broker(admin: &AdminClient<DefaultClientContext>) -> bool {
    admin.inner().fetch_metadata(None, LOOKUP_TIMEOUT).is_ok_and(|cluster| cluster.brokers().is_empty())
}
