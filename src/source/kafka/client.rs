//! Common parts of topic readers and publishers: client properties, readable errors of the client library, and requests
//! to brokers that are answered within a bounded time.
//!
//! Invariant: nothing here waits longer than its deadline, whatever the brokers do.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::ClientContext;
use rdkafka::client::Client;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::metadata::MetadataTopic;

use super::properties::{ClientProperties, displayed};
use crate::error::{Error, ErrorKind, Result};
use crate::source::TopicAddress;

/// Longest wait for a broker when a source or sink is opened.
pub(crate) const OPEN_TIMEOUT: Duration = Duration::from_secs(10);

/// Time for which a topic that is reported missing is asked for again: brokers learn of a new topic with a delay.
pub(crate) const UNKNOWN_TOPIC_TIMEOUT: Duration = Duration::from_secs(2);

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
        let mut asked = self.clone();
        asked.properties.retain(|key| !key.starts_with("transaction"));
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
        for (key, value) in self.properties.iter() {
            // The library has second names for some properties.
            let name = match key {
                "metadata.broker.list" => "bootstrap.servers",
                "request.required.acks" => "acks",
                "auto.commit.enable" => "enable.auto.commit",
                name => name,
            };
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

/// Formats an error of the library without its constant's name.
pub(crate) fn error_text(error: &KafkaError) -> String {
    let code = match error {
        // The library does not return the code of this variant.
        KafkaError::AdminOp(code) => Some(*code),
        error => error.rdkafka_error_code(),
    };
    code.map_or_else(|| error.to_string(), code_text)
}

/// Describes an error code in words.
pub(crate) fn code_text(code: RDKafkaErrorCode) -> String {
    let text = code.to_string();
    let words = text.split_once(" (").and_then(|(_, words)| words.strip_suffix(')'));
    words.map_or_else(|| text.clone(), |words| words.strip_prefix("Local: ").unwrap_or(words).to_owned())
}

/// Returns the error for a client that could not be created.
pub(crate) fn client_not_created(topic_config: &TopicConfig, error: &KafkaError) -> Error {
    match error {
        KafkaError::ClientConfig(_, description, key, value) => {
            let what = format!("the Kafka property {key} cannot be {}", displayed(key, value));
            let because = topic_config.properties.redact(description.trim_end_matches('.'));
            Error::usage(what)
                .at(topic_config.describe())
                .because(because)
                .caused_by(error.clone())
                .help("see librdkafka's CONFIGURATION.md")
        }
        KafkaError::ClientCreation(why) => {
            let failed = Error::new("cannot create a Kafka client")
                .at(topic_config.describe())
                .because(topic_config.properties.redact(&without_codes(why)));
            failed.caused_by(error.clone()).help("check --kafka-config, and that the files that it names exist")
        }
        error => Error::new("cannot create a Kafka client")
            .at(topic_config.describe())
            .because(error_text(error))
            .caused_by(error.clone()),
    }
}

/// Removes OpenSSL's codes from a reason: "error:0A000086:SSL routines::…" becomes "SSL routines: …".
fn without_codes(reason: &str) -> String {
    let mut words = String::new();
    let mut rest = reason;
    while let Some((before, after)) = rest.split_once("error:") {
        words.push_str(before);
        let code = after.find(':').filter(|at| *at > 0 && after[..*at].bytes().all(|byte| byte.is_ascii_hexdigit()));
        match code {
            Some(at) => rest = &after[at + 1..],
            None => {
                words.push_str("error:");
                rest = after;
            }
        }
    }
    (words + rest).replace("::", ": ")
}

/// `true` if an error goes away once the brokers are reachable again.
pub(crate) fn is_transient(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode as Code;
    matches!(
        code,
        Code::BrokerTransportFailure
            | Code::AllBrokersDown
            | Code::OperationTimedOut
            | Code::RequestTimedOut
            | Code::MessageTimedOut
            | Code::TimedOutQueue
            | Code::Resolve
            | Code::NodeUpdate
            // A broker that the metadata no longer names: another one takes its requests.
            | Code::BrokerDestroy
            | Code::DestroyBroker
            | Code::WaitingForCoordinator
            | Code::WaitCache
            | Code::Retry
            | Code::InProgress
            | Code::LeaderNotAvailable
            | Code::NotLeaderForPartition
            | Code::BrokerNotAvailable
            | Code::ReplicaNotAvailable
            | Code::NetworkException
            | Code::CoordinatorLoadInProgress
            | Code::CoordinatorNotAvailable
            | Code::NotCoordinator
            | Code::KafkaStorageError
            | Code::FencedLeaderEpoch
            | Code::UnknownLeaderEpoch
            | Code::OffsetNotAvailable
            | Code::PreferredLeaderNotAvailable
    )
}

/// `true` if an error reports that the topic, or a partition of it, does not exist.
pub(crate) fn is_unknown(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode as Code;
    matches!(code, Code::UnknownTopicOrPartition | Code::UnknownTopic | Code::UnknownPartition | Code::UnknownTopicId)
}

/// `true` if an error reports that the user is not authorised.
pub(crate) fn is_refusal(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode as Code;
    matches!(
        code,
        Code::Authentication
            | Code::SaslAuthenticationFailed
            | Code::TopicAuthorizationFailed
            | Code::ClusterAuthorizationFailed
            | Code::TransactionalIdAuthorizationFailed
    )
}

/// `true` if an error reports that the user may not use a consumer group. Groups serve only lag monitors here.
pub(crate) fn is_group_refusal(code: RDKafkaErrorCode) -> bool {
    code == RDKafkaErrorCode::GroupAuthorizationFailed
}

/// Groups that were reported as not usable.
static WARNED_GROUPS: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// Warns, once per group, that the group may not be used.
pub(crate) fn warn_unusable_group(group: &str) {
    if WARNED_GROUPS.lock().unwrap_or_else(PoisonError::into_inner).insert(group.to_owned()) {
        tracing::warn!(
            "the brokers do not let the group {group} be used, so lag monitors do not see how far it has read; results are \
             not affected: grant READ on the group, or name another one: --kafka-config group.id=NAME"
        );
    }
}

/// Last error that the library reported, to explain a request that failed or had no answer.
#[derive(Debug, Default)]
pub(crate) struct LastError {
    last: Mutex<Option<(RDKafkaErrorCode, String)>>,
    /// Last reason that contains an address which a broker has advertised.
    of_advertised: Mutex<Option<String>>,
}

impl LastError {
    pub(crate) fn set(&self, error: &KafkaError, reason: &str) {
        let Some(code) = error.rdkafka_error_code() else { return };
        // "… failed: Connection refused (after 0ms in state CONNECT, 1 identical error(s) suppressed)"
        let words = without_codes(reason.split(" (after ").next().unwrap_or_default());
        if advertised_in(&words).is_some() {
            *self.of_advertised.lock().unwrap_or_else(PoisonError::into_inner) = Some(words.clone());
        }
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        // "All brokers are down" is less helpful than the cause of the last failed connection.
        if code != RDKafkaErrorCode::AllBrokersDown || last.is_none() {
            *last = Some((code, words));
        }
    }

    /// Returns the cause of the last failed connection, with its address: "127.0.0.1:9/1: Connect to ipv4#127.0.0.1:9
    /// failed: …".
    pub(crate) fn reason(&self) -> Option<String> {
        self.get().map(|(_, reason)| reason)
    }

    /// Returns the address of the last failed connection to an address that a broker has advertised, and the cause.
    fn reason_of_advertised(&self) -> Option<(String, String)> {
        let reason = self.of_advertised.lock().unwrap_or_else(PoisonError::into_inner).clone()?;
        advertised_in(&reason).map(|address| (address, reason))
    }

    pub(crate) fn get(&self) -> Option<(RDKafkaErrorCode, String)> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

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
        if let Some((code, reason)) = words.get().filter(|(code, _)| is_refusal(*code)) {
            let because = format!("{}: {reason}", code_text(code));
            return Err(refused(topic_config, &because, KafkaError::Global(code)));
        }
        if begun.elapsed() >= OPEN_TIMEOUT {
            return Err(no_broker(topic_config, words, last));
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn refused(topic_config: &TopicConfig, because: &str, cause: KafkaError) -> Error {
    Error::of(ErrorKind::AccessRefused, "the Kafka brokers refuse")
        .at(topic_config.describe())
        .because(because)
        .caused_by(cause)
        .help("check --kafka-config")
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
        return Error::new("no broker leads a partition").at(place).help("check the brokers");
    };
    unreachable_leader(topic_config, partition, &address, reason)
}

/// Returns the error for a partition whose leader cannot be reached at this address.
fn unreachable_leader(topic_config: &TopicConfig, partition: u32, address: &str, reason: Option<String>) -> Error {
    let place = format!("{}, partition {partition}", topic_config.describe());
    let error = Error::new(format!("cannot reach {address}, the broker that leads a partition")).at(place);
    let error = error.because(reason.unwrap_or_else(|| String::from("it does not answer")));
    error.help(format!(
        "the brokers at {} advertise that address: make it reachable from here, or change their advertised.listeners",
        topic_config.brokers
    ))
}

/// Extracts the address from a reason of the library: "127.0.0.1:9/1: Connect to …". `None` if no broker has advertised
/// it.
fn advertised_in(reason: &str) -> Option<String> {
    let (address, rest) = reason.split_once(": ")?.0.rsplit_once('/')?;
    let is_number = !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_digit());
    let address = address.split_once("://").map_or(address, |(_, address)| address);
    is_number.then(|| address.to_owned())
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
                return Err(
                    unreachable_leader(topic_config, partition.unsigned_abs(), &address, words.reason()).transient()
                );
            }
        }
    }
    Ok(())
}

/// Returns the error for a topic that does not exist.
pub(crate) fn no_topic(topic_config: &TopicConfig, similar: &[String]) -> Error {
    let mut help = format!("create it: kafka-topics --create --topic {} --partitions 4", topic_config.topic);
    if !similar.is_empty() {
        help.push_str(&format!(" (or did you mean {}?)", similar.join(" or ")));
    }
    Error::new(format!("the topic {} does not exist", topic_config.topic)).at(&topic_config.brokers).help(help)
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
    fn a_code_is_put_in_words() {
        assert_eq!(code_text(RDKafkaErrorCode::AllBrokersDown), "All broker connections are down");
        assert_eq!(code_text(RDKafkaErrorCode::OffsetOutOfRange), "Broker: Offset out of range");
    }

    #[test]
    fn a_reason_is_told_in_words() {
        let reason = "ssl://b:1/bootstrap: error:0A000086:SSL routines::certificate verify failed";
        assert_eq!(without_codes(reason), "ssl://b:1/bootstrap: SSL routines: certificate verify failed");
        for reason in ["an error: none", "Connect failed: Connection refused", ""] {
            assert_eq!(without_codes(reason), reason);
        }
    }

    #[test]
    fn an_address_that_is_advertised_is_told_from_one_that_was_given() {
        for (reason, expected) in [
            ("127.0.0.1:9/1: Connect to ipv4#127.0.0.1:9 failed: Connection refused", Some("127.0.0.1:9")),
            ("sasl_ssl://kafka:9094/12: SSL handshake failed", Some("kafka:9094")),
            ("kafka:9094/bootstrap: Connect to ipv4#10.0.0.1:9094 failed", None),
            ("no reason", None),
        ] {
            assert_eq!(advertised_in(reason).as_deref(), expected, "{reason}");
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
