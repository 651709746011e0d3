//! The progress topic of an output topic: records which epochs of which sinks are published in it.
//!
//! * It is called `<output topic>-tidegate-progress`, has one partition and is compacted: brokers keep the last record
//!   of each key. A record's key is the state's id and the sink's name, its value a [`SinkProgress`] as JSON.
//! * A record is sent in the transaction of the rows that it covers: either both are visible, or neither is.
//!
//! Invariant: progress is read only by a producer that has fenced all earlier ones of its state and sink, after all of
//! their transactions are decided. So the last record read is the last one there is, until that producer writes.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::Message;
use rdkafka::{Offset, TopicPartitionList};
use serde::{Deserialize, Serialize};

use crate::durable::journal::JournalEnds;
use crate::durable::{PublishedEpoch, StateId};
use crate::error::{Error, ErrorKind, Result};
use crate::source::kafka::broker_errors::{error_text, is_group_refusal, is_transient};
use crate::source::kafka::client::TopicConfig;
use crate::source::kafka::consumer::{self, COMMITTED, NEEDED};
use crate::source::kafka::topic_pattern::PROGRESS_SUFFIX;
use crate::time::Epoch;

/// Version of the format.
const FORMAT: u32 = 2;
/// Version that had no ends of journals; it can still be read.
const WITHOUT_ENDS: u32 = 1;

/// Settings of the topic: its segments are small, so that they are compacted early and read fast.
pub(super) const SETTINGS: &[(&str, &str)] = &[("cleanup.policy", "compact"), ("segment.bytes", "16777216")];

const DEFAULTS: &[(&str, &str)] =
    &[("group.id", "tidegate"), ("fetch.wait.max.ms", "10"), ("reconnect.backoff.max.ms", "1000")];

/// Property of consumers that read to the end of all records, those of open transactions included.
const UNCOMMITTED: (&str, &str) = ("isolation.level", "read_uncommitted");

/// Longest wait for an answer of the brokers.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// Waits for transactions of others longer than this are logged.
const LOG_WAIT_AFTER: Duration = Duration::from_secs(2);

/// Longest wait for transactions of others in the topic: more than the transaction timeout that brokers allow by
/// default.
const OTHERS_TIMEOUT: Duration = Duration::from_secs(16 * 60);

/// Published progress of a sink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SinkProgress {
    /// Incarnation of the state that wrote it.
    pub(super) incarnation: u64,
    /// Last published epoch; `None` before the first.
    pub(super) epoch: Option<Epoch>,
    /// Offset that the output topic has reached, for each partition that anything was sent to.
    pub(super) ends: BTreeMap<i32, i64>,
    /// Ends of the incarnation's journals at the epoch.
    pub(super) journal: JournalEnds,
}

/// Contents of a progress topic for one key.
#[derive(Clone, Debug, Default)]
pub(super) struct ProgressTopic {
    /// Last progress of the key; `None` if there is none.
    pub(super) last: Option<SinkProgress>,
    /// First offset of the topic. Compaction keeps the beginning, so it is 0 unless records were removed.
    pub(super) low: i64,
    /// Offset at which the topic ends.
    pub(super) end: i64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ProgressValue {
    tidegate: String,
    format: u32,
    incarnation: u64,
    epoch: Option<u64>,
    ends: BTreeMap<i32, i64>,
    #[serde(default)]
    journal: JournalEnds,
}

/// Fields that every version of the format has.
#[derive(Deserialize)]
struct ProgressHeader {
    tidegate: String,
    format: u32,
}

impl SinkProgress {
    pub(super) fn to_value(&self) -> serde_json::Result<Vec<u8>> {
        serde_json::to_vec(&ProgressValue {
            tidegate: env!("CARGO_PKG_VERSION").to_owned(),
            format: FORMAT,
            incarnation: self.incarnation,
            epoch: self.epoch.map(|epoch| epoch.0),
            ends: self.ends.clone(),
            journal: self.journal.clone(),
        })
    }

    /// Parses a value, or returns the reason why it is not a progress record.
    fn from_value(value: &[u8]) -> std::result::Result<Self, String> {
        let no = |_| String::from("it is not what Tidegate writes");
        let ProgressHeader { tidegate, format } = serde_json::from_slice(value).map_err(no)?;
        if format != FORMAT && format != WITHOUT_ENDS {
            return Err(format!(
                "Tidegate {tidegate} wrote it, in format {format}; this program reads the formats {WITHOUT_ENDS} and {FORMAT}"
            ));
        }
        let ProgressValue { incarnation, epoch, ends, journal, .. } = serde_json::from_slice(value).map_err(no)?;
        Ok(SinkProgress { incarnation, epoch: epoch.map(Epoch), ends, journal })
    }

    /// Returns the published epoch with its incarnation and journal ends; `None` if nothing is published.
    pub(super) fn published(&self) -> Option<PublishedEpoch> {
        let ends = self.journal.clone();
        self.epoch.map(|epoch| PublishedEpoch { incarnation: self.incarnation, epoch, ends })
    }
}

/// Returns the key of a state's sink.
pub(super) fn key(state: StateId, sink: &str) -> String {
    format!("{state}/{sink}")
}

/// `true` for the name of a progress topic.
pub(super) fn is_name(topic: &str) -> bool {
    topic.ends_with(PROGRESS_SUFFIX)
}

/// Returns the progress topic of an output topic.
pub(super) fn topic_of(output: &TopicConfig) -> TopicConfig {
    let topic = format!("{}{PROGRESS_SUFFIX}", output.topic);
    TopicConfig { topic, ..output.clone() }
}

fn consumer(topic_config: &TopicConfig, isolation: (&str, &str)) -> Result<BaseConsumer> {
    topic_config.create_consumer(DEFAULTS, &[NEEDED, &[isolation]].concat())
}

/// Returns the first offset of a partition, and its end at this consumer's isolation level.
fn ends(consumer: &BaseConsumer, topic_config: &TopicConfig, partition: i32) -> Result<(i64, i64)> {
    let found = consumer::ends(consumer, (&topic_config.topic, partition), ANSWER_TIMEOUT, is_transient, || ());
    found.map_err(|error| match error {
        Some(error) => unreadable(topic_config, &error_text(&error)).caused_by(error),
        None => unanswered(topic_config, "no broker leads it"),
    })
}

/// Returns the error for brokers that do not answer at the moment.
fn unanswered(topic_config: &TopicConfig, why: &str) -> Error {
    unreadable(topic_config, why).transient()
}

fn unreadable(topic_config: &TopicConfig, why: &str) -> Error {
    let error = Error::of(ErrorKind::SinkFailed, "cannot read how far results are published");
    error.at(topic_config.describe()).because(why)
}

/// Reads the last progress of a key. All transactions under that key must have been decided.
///
/// # Errors
/// Fails if the topic cannot be read to its end, or if the record is not Tidegate's.
pub(super) fn read(topic_config: &TopicConfig, key: &str) -> Result<ProgressTopic> {
    // End of all records: a reader of committed ones stops at the first open transaction.
    let (low, end) = ends(&consumer(topic_config, UNCOMMITTED)?, topic_config, 0)?;
    if low == end {
        return Ok(ProgressTopic { last: None, low, end });
    }
    let consumer = consumer(topic_config, COMMITTED)?;
    let begun = Instant::now();
    let mut told = false;
    while ends(&consumer, topic_config, 0)?.1 < end {
        if begun.elapsed() > OTHERS_TIMEOUT {
            return Err(unreadable(topic_config, "a transaction of another producer does not end"));
        }
        if begun.elapsed() > LOG_WAIT_AFTER && !std::mem::replace(&mut told, true) {
            tracing::warn!("waiting for another producer's transaction in {}", topic_config.describe());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let mut from = TopicPartitionList::new();
    let assigned =
        from.add_partition_offset(&topic_config.topic, 0, Offset::Offset(low)).and_then(|()| consumer.assign(&from));
    assigned.map_err(|error| unreadable(topic_config, &error_text(&error)).caused_by(error))?;
    Ok(ProgressTopic { last: last_of(&consumer, topic_config, key, end)?, low, end })
}

/// Returns the last progress of a key before the partition's end; `None` if there is none.
fn last_of(consumer: &BaseConsumer, topic_config: &TopicConfig, key: &str, end: i64) -> Result<Option<SinkProgress>> {
    let mut last = None;
    let mut heard = Instant::now();
    loop {
        match consumer.poll(Duration::from_millis(100)) {
            Some(Ok(message)) => {
                heard = Instant::now();
                if message.key() == Some(key.as_bytes()) {
                    let read = message.payload().map(SinkProgress::from_value).transpose();
                    last =
                        read.map_err(|why| unreadable(topic_config, &format!("record {}: {why}", message.offset())))?;
                }
                if message.offset() + 1 >= end {
                    return Ok(last);
                }
            }
            // Everything was decided before the partition was assigned, so this is the end of all records.
            Some(Err(KafkaError::PartitionEOF(_))) => return Ok(last),
            // No group is used here, so a refusal of the group does not matter.
            Some(Err(error))
                if !error.rdkafka_error_code().is_some_and(|code| is_transient(code) || is_group_refusal(code)) =>
            {
                return Err(unreadable(topic_config, &error_text(&error)).caused_by(error));
            }
            _ if heard.elapsed() > ANSWER_TIMEOUT => return Err(unanswered(topic_config, "the brokers do not answer")),
            _ => {}
        }
    }
}

/// Verifies that an output topic reaches as far as what was sent to it; if not, it was recreated or has lost records.
///
/// # Errors
/// Fails if the topic ends earlier, or does not answer.
pub(super) fn check_output(output: &TopicConfig, progress: &SinkProgress) -> Result<()> {
    if progress.ends.is_empty() {
        return Ok(());
    }
    let consumer = consumer(output, UNCOMMITTED)?;
    for (partition, end) in &progress.ends {
        let (_, found) = ends(&consumer, output, *partition)?;
        if found < *end {
            let why = format!("partition {partition} ends at offset {found}, and had reached {end}");
            return Err(super::send_errors::lost_records(output, &why));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::durable::journal::WorkerEnd;

    #[test]
    fn progress_is_read_as_it_was_written() {
        for epoch in [None, Some(Epoch(1_700_000_000_000))] {
            let end = WorkerEnd { process: 1, worker: 2, epoch: Epoch(6) };
            let journal: JournalEnds = [end].into_iter().collect();
            let progress = SinkProgress { incarnation: 3, epoch, ends: [(0, 12), (7, 1)].into(), journal };
            assert_eq!(SinkProgress::from_value(&progress.to_value().unwrap()), Ok(progress));
        }
        let journal = JournalEnds::default();
        let progress = SinkProgress { incarnation: 3, epoch: Some(Epoch(8)), ends: [(0, 12)].into(), journal };
        let expected = r#","format":2,"incarnation":3,"epoch":8,"ends":{"0":12},"journal":[]}"#;
        assert!(String::from_utf8(progress.to_value().unwrap()).unwrap().ends_with(expected));
        let earlier = br#"{"tidegate":"0.1.0","format":1,"incarnation":3,"epoch":8,"ends":{"0":12}}"#;
        assert_eq!(SinkProgress::from_value(earlier), Ok(progress));
    }

    #[test]
    fn what_is_no_progress_is_refused() {
        let later = br#"{"tidegate":"9.1.0","format":3,"more":1}"#;
        let why = SinkProgress::from_value(later).unwrap_err();
        assert_eq!(why, "Tidegate 9.1.0 wrote it, in format 3; this program reads the formats 1 and 2");
        for value in [&b"{}"[..], b"", b"12", br#"{"tidegate":"0.1.0","format":1,"incarnation":1}"#] {
            assert_eq!(SinkProgress::from_value(value).unwrap_err(), "it is not what Tidegate writes");
        }
    }
}
