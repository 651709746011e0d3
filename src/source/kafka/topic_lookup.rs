//! Finds a topic and the leaders of its partitions, and words what is missing: a broker, a leader, the topic.
//!
//! Invariant: nothing here waits longer than its deadline, whatever the brokers do.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rdkafka::ClientContext;
use rdkafka::client::Client;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::metadata::MetadataTopic;

use super::broker_errors::{LastError, code_text, error_text, is_refusal, is_transient, is_unknown};
use super::client::TopicConfig;
use crate::error::{Error, ErrorKind, Result};

/// Longest wait for a broker when a source or sink is opened.
pub(crate) const OPEN_TIMEOUT: Duration = Duration::from_secs(10);

/// Time for which a topic that is reported missing is asked for again: brokers learn of a new topic with a delay.
pub(crate) const UNKNOWN_TOPIC_TIMEOUT: Duration = Duration::from_secs(2);

/// Result of looking a topic up.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum TopicLookup {
    /// The topic exists, with these partitions.
    There(Vec<u32>),
    /// The brokers know no such topic; contains similar names that they know.
    Unknown(Vec<String>),
}

/// Asks once for the partitions of a topic. `None` if the brokers do not know at the moment.
pub(crate) fn look_up_topic<C: ClientContext>(
    client: &Client<C>,
    topic: &str,
    wait: Duration,
) -> std::result::Result<Option<TopicLookup>, KafkaError> {
    let metadata = client.fetch_metadata(Some(topic), wait)?;
    let Some(found) = metadata.topics().iter().find(|found| found.name() == topic) else { return Ok(None) };
    match found.error().map(RDKafkaErrorCode::from) {
        None if found.partitions().is_empty() => Ok(None),
        None => {
            let mut ids: Vec<u32> =
                found.partitions().iter().filter_map(|partition| u32::try_from(partition.id()).ok()).collect();
            ids.sort_unstable();
            Ok(Some(TopicLookup::There(ids)))
        }
        Some(code) if is_unknown(code) => Ok(Some(TopicLookup::Unknown(Vec::new()))),
        Some(code) if is_transient(code) => Ok(None),
        Some(code) => Err(KafkaError::MetadataFetch(code)),
    }
}

/// Finds the partitions of a topic, and retries transient errors. `served` is called in between to serve the client's
/// events.
///
/// # Errors
/// Fails if no broker is reachable, or if the brokers refuse the request.
pub(crate) fn find_topic<C: ClientContext>(
    client: &Client<C>,
    topic_config: &TopicConfig,
    words: &LastError,
    served: impl Fn(),
) -> Result<TopicLookup> {
    find_topic_within(client, topic_config, words, served, UNKNOWN_TOPIC_TIMEOUT)
}

/// Finds the partitions of a topic that was just created as [`find_topic`] does. Brokers may learn of it late, so it is
/// asked for again for as long as a source or sink may take to open.
///
/// # Errors
/// Fails as [`find_topic`] does.
pub(crate) fn find_new_topic<C: ClientContext>(
    client: &Client<C>,
    topic_config: &TopicConfig,
    words: &LastError,
    served: impl Fn(),
) -> Result<TopicLookup> {
    find_topic_within(client, topic_config, words, served, OPEN_TIMEOUT)
}

/// Finds the partitions of a topic as [`find_topic`] does. A topic that is reported missing is asked for again for
/// `unknown_patience`.
///
/// # Errors
/// Fails as [`find_topic`] does.
pub(crate) fn find_topic_within<C: ClientContext>(
    client: &Client<C>,
    topic_config: &TopicConfig,
    words: &LastError,
    served: impl Fn(),
    unknown_patience: Duration,
) -> Result<TopicLookup> {
    let begun = Instant::now();
    let mut unknown_since = None;
    loop {
        let left = OPEN_TIMEOUT.saturating_sub(begun.elapsed());
        let last = match look_up_topic(
            client,
            &topic_config.topic,
            left.min(Duration::from_secs(2)).max(Duration::from_millis(100)),
        ) {
            Ok(Some(TopicLookup::Unknown(_))) => {
                if unknown_since.get_or_insert_with(Instant::now).elapsed() >= unknown_patience {
                    return Ok(TopicLookup::Unknown(similar_topics(client, &topic_config.topic)));
                }
                None
            }
            Ok(Some(there)) => return Ok(there),
            Ok(None) => None,
            Err(error) => match error.rdkafka_error_code() {
                Some(code) if is_transient(code) => Some(error),
                _ => return Err(refused(topic_config, &error_text(&error), error)),
            },
        };
        served();
        wait_for_brokers(topic_config, words, begun, last)?;
    }
}

/// Waits a moment before brokers are asked again, of which `last` was the last answer.
///
/// # Errors
/// Fails if the brokers refuse, or if there was no better answer for [`OPEN_TIMEOUT`].
fn wait_for_brokers(
    topic_config: &TopicConfig,
    words: &LastError,
    begun: Instant,
    last: Option<KafkaError>,
) -> Result<()> {
    if let Some((code, reason)) = words.get().filter(|(code, _)| is_refusal(*code)) {
        let because = format!("{}: {reason}", code_text(code));
        return Err(refused(topic_config, &because, KafkaError::Global(code)));
    }
    if begun.elapsed() >= OPEN_TIMEOUT {
        return Err(no_broker(topic_config, words, last));
    }
    std::thread::sleep(Duration::from_millis(100));
    Ok(())
}

/// Topics of some brokers, each with its partitions.
pub(crate) type TopicList = BTreeMap<String, Vec<u32>>;

/// Asks once for all topics. Those that have no partition yet, or that may not be described, are left out.
pub(crate) fn look_up_topics<C: ClientContext>(
    client: &Client<C>,
    wait: Duration,
) -> std::result::Result<TopicList, KafkaError> {
    let metadata = client.fetch_metadata(None, wait)?;
    let topics = metadata.topics().iter().map(|topic| {
        let mut ids: Vec<u32> = topic.partitions().iter().filter_map(|found| u32::try_from(found.id()).ok()).collect();
        ids.sort_unstable();
        (topic.name().to_owned(), ids)
    });
    Ok(topics.filter(|(_, ids)| !ids.is_empty()).collect())
}

/// Finds all topics, and retries transient errors, as [`find_topic`] does for one.
///
/// # Errors
/// Fails as [`find_topic`] does.
pub(crate) fn find_topics<C: ClientContext>(
    client: &Client<C>,
    topic_config: &TopicConfig,
    words: &LastError,
    served: impl Fn(),
) -> Result<TopicList> {
    let begun = Instant::now();
    loop {
        let last = match look_up_topics(client, Duration::from_secs(2)) {
            Ok(topics) => return Ok(topics),
            Err(error) => match error.rdkafka_error_code() {
                Some(code) if is_transient(code) => Some(error),
                _ => return Err(refused(topic_config, &error_text(&error), error)),
            },
        };
        served();
        wait_for_brokers(topic_config, words, begun, last)?;
    }
}

fn refused(topic_config: &TopicConfig, because: &str, cause: KafkaError) -> Error {
    Error::of(ErrorKind::AccessRefused, "the Kafka brokers refuse")
        .at(topic_config.describe())
        .because(because)
        .caused_by(cause)
        .help("check --kafka-config")
}

fn no_broker(topic_config: &TopicConfig, words: &LastError, last: Option<KafkaError>) -> Error {
    let why = words.reason().or_else(|| last.as_ref().map(error_text));
    let cause = words.get().map(|(code, _)| KafkaError::Global(code)).or(last);
    let error = Error::of(ErrorKind::SourceUnreachable, "no Kafka broker is reachable").at(&topic_config.brokers);
    let error = error.because(why.unwrap_or_else(|| format!("topic {} has no leader yet", topic_config.topic)));
    let error = match cause {
        Some(cause) => error.caused_by(cause),
        None => error,
    };
    error.help("start the broker, or check --brokers and, for TLS or SASL, --kafka-config").transient()
}

/// Asks the brokers for the address of a partition's leader: `HOST:PORT`. `None` if there is no leader, or no answer.
pub(crate) fn leader_of<C: ClientContext>(client: &Client<C>, topic: &str, partition: u32) -> Option<String> {
    let metadata = client.fetch_metadata(Some(topic), Duration::from_secs(2)).ok()?;
    let topic = metadata.topics().iter().find(|found| found.name() == topic)?;
    let found = topic.partitions().iter().find(|found| u32::try_from(found.id()) == Ok(partition))?;
    let leader = metadata.brokers().iter().find(|broker| broker.id() == found.leader())?;
    Some(format!("{}:{}", leader.host(), leader.port()))
}

/// Returns the error for a partition whose leader cannot be reached, though other brokers can. It names the address
/// that was tried, which is often one that the brokers advertise and that only they can reach.
pub(crate) fn no_leader<C: ClientContext>(
    client: &Client<C>,
    topic_config: &TopicConfig,
    partition: u32,
    words: &LastError,
) -> Error {
    // There is no answer if no broker is reachable at the address that it advertises.
    let leader = leader_of(client, &topic_config.topic, partition).map(|address| (address, words.reason()));
    let advertised = || words.reason_of_advertised().map(|(address, reason)| (address, Some(reason)));
    let Some((address, reason)) = leader.or_else(advertised) else {
        let place = format!("{}, partition {partition}", topic_config.describe());
        let error = Error::of(ErrorKind::SourceUnreachable, "no broker leads a partition").at(place);
        let cause = KafkaError::MetadataFetch(RDKafkaErrorCode::LeaderNotAvailable);
        return error.with_source(cause).help("check the brokers");
    };
    unreachable_leader(topic_config, partition, &address, reason, words)
}

/// Returns the error for a partition whose leader cannot be reached at this address.
fn unreachable_leader(
    topic_config: &TopicConfig,
    partition: u32,
    address: &str,
    reason: Option<String>,
    words: &LastError,
) -> Error {
    let place = format!("{}, partition {partition}", topic_config.describe());
    let what = format!("cannot reach {address}, the broker that leads a partition");
    let code = words.get().map_or(RDKafkaErrorCode::OperationTimedOut, |(code, _)| code);
    let error = Error::of(ErrorKind::SourceUnreachable, what).at(place).with_source(KafkaError::Global(code));
    let error = error.because(reason.unwrap_or_else(|| String::from("it does not answer")));
    error.help(format!(
        "the brokers at {} advertise that address: make it reachable from here, or change their advertised.listeners",
        topic_config.brokers
    ))
}

/// Checks that the leaders of a topic's partitions answer at the addresses that they advertise, which may differ from
/// the given ones. `served` is called in between to serve the client's events.
///
/// # Errors
/// Fails if a leader does not answer within [`OPEN_TIMEOUT`], with its address and the cause.
pub(crate) fn check_leaders<C: ClientContext>(
    client: &Client<C>,
    topic_config: &TopicConfig,
    words: &LastError,
    served: impl Fn(),
) -> Result<()> {
    let begun = Instant::now();
    // The topic was found before, so a broker has answered then.
    let Ok(metadata) = client.fetch_metadata(Some(&topic_config.topic), OPEN_TIMEOUT) else { return Ok(()) };
    let partitions = metadata.topics().iter().flat_map(MetadataTopic::partitions);
    // A partition without a leader has −1; the sender waits for one.
    let leaders: BTreeMap<i32, i32> = partitions.map(|partition| (partition.leader(), partition.id())).collect();
    for (leader, partition) in leaders.into_iter().filter(|(leader, _)| *leader >= 0) {
        loop {
            let code = match client.fetch_watermarks(&topic_config.topic, partition, Duration::from_secs(2)) {
                Ok((low, _)) if low >= 0 => break,
                // Without an answer of the broker, the library returns −1.
                Ok(_) => Some(RDKafkaErrorCode::OperationTimedOut),
                Err(error) => error.rdkafka_error_code(),
            };
            served();
            if !code.is_some_and(is_transient) {
                break;
            }
            // The call may have failed at once.
            std::thread::sleep(Duration::from_millis(50));
            if begun.elapsed() >= OPEN_TIMEOUT {
                // From the metadata above: brokers that are asked again may name another leader than the one tried.
                let broker = metadata.brokers().iter().find(|broker| broker.id() == leader);
                let address = broker.map_or(String::new(), |broker| format!("{}:{}", broker.host(), broker.port()));
                return Err(unreachable_leader(
                    topic_config,
                    partition.unsigned_abs(),
                    &address,
                    words.reason(),
                    words,
                )
                .transient());
            }
        }
    }
    Ok(())
}

/// Returns the error for a topic that does not exist, of this kind: that of sources or that of sinks.
pub(crate) fn no_topic(kind: ErrorKind, topic_config: &TopicConfig, similar: &[String]) -> Error {
    let mut help = format!("create it: kafka-topics --create --topic {} --partitions 4", topic_config.topic);
    if !similar.is_empty() {
        help.push_str(&format!(" (or did you mean {}?)", similar.join(" or ")));
    }
    let error = Error::of(kind, format!("the topic {} does not exist", topic_config.topic)).at(&topic_config.brokers);
    error.with_source(KafkaError::MetadataFetch(RDKafkaErrorCode::UnknownTopicOrPartition)).help(help)
}

fn similar_topics<C: ClientContext>(client: &Client<C>, topic: &str) -> Vec<String> {
    let Ok(metadata) = client.fetch_metadata(None, Duration::from_secs(2)) else { return Vec::new() };
    let names = metadata.topics().iter().map(|found| found.name().to_owned());
    let mut similar: Vec<String> = names.filter(|name| !name.starts_with("__") && is_similar(name, topic)).collect();
    similar.sort_by_cached_key(|name| (strsim::levenshtein(&name.to_lowercase(), &topic.to_lowercase()), name.clone()));
    similar.truncate(3);
    similar
}

fn is_similar(a: &str, b: &str) -> bool {
    let (a, b) = (a.to_lowercase(), b.to_lowercase());
    !a.is_empty() && !b.is_empty() && (a.contains(&b) || b.contains(&a) || strsim::levenshtein(&a, &b) <= 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the code of the client library's error that an error keeps.
    fn code(error: &Error) -> Option<RDKafkaErrorCode> {
        let source = std::error::Error::source(error)?.downcast_ref::<KafkaError>()?;
        source.rdkafka_error_code()
    }

    /// Brokers that are busy report a topic missing for seconds after they have created it.
    #[test]
    fn a_new_topic_is_asked_for_until_the_brokers_know_it() {
        use rdkafka::consumer::{BaseConsumer, Consumer};
        use rdkafka::mocking::MockCluster;
        use rdkafka::types::RDKafkaRespErr;

        let brokers = MockCluster::new(1).unwrap();
        brokers.create_topic("new", 3, 1).unwrap();
        let unknown = |is_unknown: bool| {
            let code = if is_unknown {
                RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART
            } else {
                RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR
            };
            brokers.topic_error("new", code).unwrap();
        };
        unknown(true);
        let topic_config = TopicConfig::new(&brokers.bootstrap_servers(), "new");
        let consumer: BaseConsumer = topic_config.configure(&[], &[]).unwrap().create().unwrap();
        let (begun, words) = (Instant::now(), LastError::default());
        let served = || {
            if begun.elapsed() > UNKNOWN_TOPIC_TIMEOUT + Duration::from_secs(1) {
                unknown(false);
            }
        };
        let found = find_new_topic(consumer.client(), &topic_config, &words, served).unwrap();
        assert_eq!(found, TopicLookup::There(vec![0, 1, 2]));
        unknown(true);
        let gone = find_topic(consumer.client(), &topic_config, &words, || {}).unwrap();
        assert!(matches!(gone, TopicLookup::Unknown(_)), "{gone:?}");
    }

    #[test]
    fn what_is_missing_has_a_kind_and_a_code() {
        use rdkafka::consumer::{BaseConsumer, Consumer};
        // Nothing listens on port 1.
        let topic_config = TopicConfig::new("127.0.0.1:1", "t");
        let consumer: BaseConsumer = topic_config.configure(&[], &[]).unwrap().create().unwrap();
        let words = LastError::default();
        let missing = no_leader(consumer.client(), &topic_config, 3, &words);
        assert_eq!(
            missing.to_string(),
            "no broker leads a partition (topic t at 127.0.0.1:1, partition 3); check the brokers"
        );
        assert_eq!(missing.kind(), ErrorKind::SourceUnreachable);
        assert_eq!(code(&missing), Some(RDKafkaErrorCode::LeaderNotAvailable));
        // The leader's address is known from the failed connection.
        let refused = KafkaError::Global(RDKafkaErrorCode::BrokerTransportFailure);
        words.set(&refused, "127.0.0.1:9/1: Connect to ipv4#127.0.0.1:9 failed: Connection refused (after 0ms)");
        let unreachable = no_leader(consumer.client(), &topic_config, 3, &words);
        assert!(unreachable.to_string().starts_with("cannot reach 127.0.0.1:9, the broker"), "{unreachable}");
        assert_eq!(unreachable.kind(), ErrorKind::SourceUnreachable);
        assert_eq!(code(&unreachable), Some(RDKafkaErrorCode::BrokerTransportFailure));
        for kind in [ErrorKind::SourceUnreachable, ErrorKind::SinkFailed] {
            let missing = no_topic(kind, &topic_config, &["tt".into()]);
            let expected = "the topic t does not exist (127.0.0.1:1); create it: kafka-topics --create --topic t \
                            --partitions 4 (or did you mean tt?)";
            assert_eq!((missing.kind(), missing.to_string().as_str()), (kind, expected));
            assert_eq!(code(&missing), Some(RDKafkaErrorCode::UnknownTopicOrPartition));
        }
    }

    #[test]
    fn similar_names_are_found() {
        for (a, b, similar) in [
            ("transaction", "transactions", true),
            ("transaction", "Transaction", true),
            ("transaction", "transactoin", true),
            ("orders", "payments", false),
        ] {
            assert_eq!(is_similar(a, b), similar, "{a} {b}");
        }
    }
}
