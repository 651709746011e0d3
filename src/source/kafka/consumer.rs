//! Consumer of a topic: its properties, its connection, the ends of partitions, and the judgement of its errors.
//!
//! * A consumer reads only committed records, at offsets that it is told; the client library commits none by
//!   itself.
//! * An error **ends the job** if waiting does not help: the brokers refuse, or records that were still to be read are
//!   gone. Others are waited out.
//!
//! Invariant: nothing here waits longer than its deadline.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::broker_errors::{code_text, error_text, is_refusal, is_transient, is_unknown};
use super::client::{TopicConfig, client_not_created};
use super::identity::LOGGED;
use super::prefetch::PrefetchLimits;
use super::statistics::ConsumerEvents;
use super::topic_lookup::{TopicLookup, find_topic, no_leader, no_topic};
use crate::error::{Error, ErrorKind, Result};
use crate::source::WorkerContext;

/// Longest wait for the offsets of a partition, or for a record that exists.
pub(super) const OFFSETS_TIMEOUT: Duration = Duration::from_secs(10);

/// Number of partitions for which limits are set where only a few records are read of each.
const FEW: usize = 1_000;

/// Properties that users may set otherwise.
const DEFAULTS: &[(&str, &str)] = &[
    // Pause before a full queue is filled again; by default a second.
    ("fetch.queue.backoff.ms", "2"),
    // A fetch that leaves out a partition with a full queue waits for so long if the others have nothing new. A queue
    // should hold more than is read in that time.
    ("fetch.wait.max.ms", "50"),
    ("receive.message.max.bytes", "1000000000"),
    ("reconnect.backoff.max.ms", "1000"),
    // A record that was damaged on its way is an error.
    ("check.crcs", "true"),
];

/// Properties that the correctness of every consumer depends on: it reads where it is told, to the end, and commits
/// nothing by itself.
pub(crate) const NEEDED: &[(&str, &str)] = &[
    ("enable.auto.commit", "false"),
    ("enable.auto.offset.store", "false"),
    ("enable.partition.eof", "true"),
    ("auto.offset.reset", "error"),
    ("allow.auto.create.topics", "false"),
];

/// Property of consumers that read committed records only.
pub(crate) const COMMITTED: (&str, &str) = ("isolation.level", "read_committed");

/// Property by which idleness is judged.
const STATISTICS: (&str, &str) = ("statistics.interval.ms", "500");

/// Returns the properties of a topic's consumer.
///
/// # Errors
/// Fails if the user has set one that correctness depends on.
pub(super) fn properties(topic_config: &TopicConfig, prefetch: PrefetchLimits) -> Result<ClientConfig> {
    let PrefetchLimits { messages, kbytes, fetch_bytes } = prefetch;
    let limits = [messages, kbytes, fetch_bytes].map(|limit| limit.to_string());
    let names = ["queued.min.messages", "queued.max.messages.kbytes", "fetch.message.max.bytes"];
    let limits = names.into_iter().zip(limits.iter().map(String::as_str));
    let defaults: Vec<_> = DEFAULTS.iter().copied().chain(limits).collect();
    topic_config.configure(&defaults, &[NEEDED, &[COMMITTED, STATISTICS]].concat())
}

/// Connects for one worker's reader of one of `topics` topics, and finds the partitions of the topic. The queues of all
/// partitions that this process reads are within the budget of [`PrefetchLimits`], of which each topic has the same part.
pub(super) fn connect_reader(
    topic_config: &TopicConfig,
    topics: usize,
    at: &WorkerContext,
) -> Result<(Arc<BaseConsumer<ConsumerEvents>>, Vec<u32>)> {
    let (consumer, ids) = connect_within(topic_config, &at.job, PrefetchLimits::of(0))?;
    let limits = reader_limits(topics, ids.len(), at);
    if limits == PrefetchLimits::of(0) {
        return Ok((consumer, ids));
    }
    // Limits cannot be changed once a client is there.
    drop(consumer);
    connect_within(topic_config, &at.job, limits)
}

/// Returns the limits of one worker's reader of one of `topics` topics, which has so many partitions.
pub(super) fn reader_limits(topics: usize, partitions: usize, at: &WorkerContext) -> PrefetchLimits {
    PrefetchLimits::of(topics * (partitions * at.threads).div_ceil(at.workers.max(1)))
}

/// Connects to read a few records, and finds the partitions of the topic.
pub(super) fn connect(topic_config: &TopicConfig, job: &str) -> Result<(Arc<BaseConsumer<ConsumerEvents>>, Vec<u32>)> {
    connect_within(topic_config, job, PrefetchLimits::of(FEW))
}

/// Creates a consumer, of a topic or to ask for topics. It connects when it is used.
pub(super) fn create(
    topic_config: &TopicConfig,
    job: &str,
    prefetch: PrefetchLimits,
) -> Result<Arc<BaseConsumer<ConsumerEvents>>> {
    let name = format!("tidegate-{job}");
    let mut config = properties(topic_config, prefetch)?;
    for key in ["group.id", "client.id"] {
        if config.get(key).is_none() {
            config.set(key, &name);
        }
    }
    // The topic's id is reported only in the log, which `ConsumerEvents` parses and does not print.
    let logged = config.get("debug").map_or(LOGGED.to_owned(), |debug| format!("{debug},{LOGGED}"));
    config.set("debug", logged).set_log_level(RDKafkaLogLevel::Debug);
    let wait = config.get("fetch.wait.max.ms").and_then(|text| text.parse().ok()).unwrap_or(50);
    let group = config.get("group.id").unwrap_or(&name).to_owned();
    let listener = ConsumerEvents::new(&topic_config.topic, &group, Duration::from_millis(wait));
    let consumer = config.create_with_context(listener).map_err(|error| client_not_created(topic_config, &error))?;
    Ok(Arc::new(consumer))
}

fn connect_within(
    topic_config: &TopicConfig,
    job: &str,
    prefetch: PrefetchLimits,
) -> Result<(Arc<BaseConsumer<ConsumerEvents>>, Vec<u32>)> {
    let consumer = create(topic_config, job, prefetch)?;
    // Counted, because a poll also returns nothing when it has served an event.
    let served = || (0..100).for_each(|_| ConsumerEvents::serve_event(&consumer));
    match find_topic(consumer.client(), topic_config, &consumer.context().last_error, served)? {
        TopicLookup::There(ids) => {
            ConsumerEvents::serve_events(&consumer);
            Ok((consumer, ids))
        }
        TopicLookup::Unknown(similar) => Err(no_topic(ErrorKind::SourceUnreachable, topic_config, &similar)),
    }
}

/// Returns the first offset and the end of a partition.
pub(super) fn offsets(
    consumer: &BaseConsumer<ConsumerEvents>,
    topic_config: &TopicConfig,
    id: u32,
) -> Result<(u64, u64)> {
    // Serves what the library reports of the broker.
    let serve = || (0..100).for_each(|_| ConsumerEvents::serve_event(consumer));
    // Brokers learn of a new topic with a delay.
    let passes = |code| is_transient(code) || is_unknown(code);
    match ends(consumer, (&topic_config.topic, id as i32), OFFSETS_TIMEOUT, passes, serve) {
        Ok((low, end)) => Ok((low as u64, end as u64)),
        Err(Some(error)) => {
            let failed = Error::of(ErrorKind::SourceUnreachable, "cannot ask for the ends of a partition");
            let failed = failed.because(error_text(&error)).caused_by(error);
            Err(failed.at_partition(topic_config.describe(), id).help("check --kafka-config"))
        }
        Err(None) => Err(no_leader(consumer.client(), topic_config, id, &consumer.context().last_error)),
    }
}

/// Asks for the first offset of a partition and its end, at the consumer's isolation level, until there is an answer;
/// errors of a code for which `passes` returns `true` are none. `served` is called in between.
///
/// # Errors
/// Fails with the error that is the answer, or with `None` without an answer within `limit`.
pub(crate) fn ends<C: ConsumerContext + 'static>(
    consumer: &BaseConsumer<C>,
    (topic, partition): (&str, i32),
    limit: Duration,
    passes: impl Fn(RDKafkaErrorCode) -> bool,
    served: impl Fn(),
) -> std::result::Result<(i64, i64), Option<KafkaError>> {
    let begun = Instant::now();
    loop {
        match consumer.fetch_watermarks(topic, partition, Duration::from_secs(3)) {
            // Without an answer of the broker, the library returns −1.
            Ok((low, end)) if low >= 0 && end >= low => return Ok((low, end)),
            Err(error) if !error.rdkafka_error_code().is_some_and(&passes) => return Err(Some(error)),
            _ if begun.elapsed() > limit => return Err(None),
            _ => {
                served();
                std::thread::sleep(Duration::from_millis(50));
            }
        }
    }
}

/// Lists partitions of a topic, each with an offset.
pub(super) fn list(topic: &str, partitions: &[(u32, u64)]) -> KafkaResult<TopicPartitionList> {
    let mut list = TopicPartitionList::new();
    for (id, offset) in partitions {
        list.add_partition_offset(topic, *id as i32, Offset::Offset(*offset as i64))?;
    }
    Ok(list)
}

/// Fails if an error that came instead of a record ends the job.
pub(super) fn check_error(topic_config: &TopicConfig, partition: u32, error: &KafkaError) -> Result<()> {
    match error.rdkafka_error_code() {
        // Group offsets are then not committed for lag monitors; records arrive all the same.
        Some(RDKafkaErrorCode::GroupAuthorizationFailed) => Ok(()),
        // The watch finds out whether a topic is gone for good.
        Some(code) if is_transient(code) || is_unknown(code) => Ok(()),
        Some(code) => Err(failed(topic_config, Some(partition), code, error.clone())),
        None => Err(unreadable(topic_config, error.clone())),
    }
}

/// Returns the error for a topic that cannot be read because of an error of the client library.
pub(super) fn unreadable(topic_config: &TopicConfig, cause: KafkaError) -> Error {
    let error = Error::of(ErrorKind::SourceUnreachable, "cannot read").at(topic_config.describe());
    error.because(error_text(&cause)).caused_by(cause)
}

/// Returns the error that ends the job because of an error of the client library with this code; `partition` is `None`
/// if the error is not about one.
pub(super) fn failed(
    topic_config: &TopicConfig,
    partition: Option<u32>,
    code: RDKafkaErrorCode,
    cause: KafkaError,
) -> Error {
    let partition = partition.map(|id| format!(", partition {id}")).unwrap_or_default();
    let place = format!("{}{partition}", topic_config.describe());
    let error = match code {
        RDKafkaErrorCode::OffsetOutOfRange | RDKafkaErrorCode::AutoOffsetReset => Error::of(
            ErrorKind::SourceChanged,
            "records that were still to be read are gone",
        )
        .at(place)
        .because("the topic's retention has removed them, or it was created again")
        .help("start with a new --state, and keep records longer; --on-gap skip goes on after those that are gone"),
        code if is_refusal(code) => Error::of(ErrorKind::AccessRefused, "the Kafka brokers refuse")
            .at(place)
            .because(code_text(code))
            .help("check --kafka-config"),
        code => Error::of(ErrorKind::SourceUnreachable, "cannot read").at(place).because(code_text(code)),
    };
    error.caused_by(cause)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_the_library_are_kept_with_a_kind() {
        use std::error::Error as _;
        let topic = TopicConfig::new("b:9092", "t");
        let kinds = [
            (RDKafkaErrorCode::OffsetOutOfRange, ErrorKind::SourceChanged),
            (RDKafkaErrorCode::TopicAuthorizationFailed, ErrorKind::AccessRefused),
            (RDKafkaErrorCode::InvalidMessage, ErrorKind::SourceUnreachable),
        ];
        for (code, kind) in kinds {
            let cause = KafkaError::MessageConsumption(code);
            let error = check_error(&topic, 3, &cause).unwrap_err();
            assert_eq!((error.kind(), error.source().and_then(|source| source.downcast_ref())), (kind, Some(&cause)));
        }
        let passes = KafkaError::MessageConsumption(RDKafkaErrorCode::OperationTimedOut);
        assert_eq!(check_error(&topic, 3, &passes), Ok(()));
    }
}
