//! Reads a few messages of a topic, with a client that reads nothing else: the closure of `read_each(&consumer,
//! &target, &from, |id, message| …)` decides, at each message and at the end of each partition, whether to read more of
//! that partition.
//!
//! Invariant: no message is waited for longer than [`OFFSETS_TIMEOUT`].

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Message};

use super::client::TopicConfig;
use super::consumer::{OFFSETS_TIMEOUT, check_error, list, unreadable};
use super::statistics::ConsumerEvents;
use crate::error::{Error, ErrorKind, Result};

/// Decision after a message of a partition.
pub(super) enum ReadDecision<T> {
    /// Read the partition's next message.
    More,
    /// Read no more of the partition.
    Skip,
    /// Stop reading altogether, with this result.
    Answer(T),
}

/// Reads partitions from these offsets on, until `take` returns an answer or wants no more of any partition. `take`
/// gets the id of a partition and its next message, or `None` at its end. Returns `None` if there was no answer.
///
/// # Errors
/// Fails if the topic cannot be read at the moment, or if `take` fails.
pub(super) fn read_each<T>(
    consumer: &BaseConsumer<ConsumerEvents>,
    topic_config: &TopicConfig,
    from: &[(u32, u64)],
    mut take: impl FnMut(u32, Option<&BorrowedMessage<'_>>) -> Result<ReadDecision<T>>,
) -> Result<Option<T>> {
    let assigned = list(&topic_config.topic, from).and_then(|list| consumer.assign(&list));
    assigned.map_err(|error| unreadable(topic_config, error))?;
    let mut wanted: BTreeSet<u32> = from.iter().map(|(id, _)| *id).collect();
    let mut heard = Instant::now();
    while let Some(id) = wanted.first() {
        if heard.elapsed() > OFFSETS_TIMEOUT {
            let error = Error::of(ErrorKind::SourceUnreachable, "a partition's records do not arrive");
            return Err(error.at_partition(topic_config.describe(), *id).help("check the brokers"));
        }
        let Some(polled) = consumer.poll(Duration::from_millis(100)) else { continue };
        let (id, message) = match &polled {
            Ok(message) => (message.partition(), Some(message)),
            Err(KafkaError::PartitionEOF(id)) => (*id, None),
            Err(error) => {
                check_error(topic_config, *id, error)?;
                continue;
            }
        };
        let id = id.max(0) as u32;
        // Messages of a partition of which enough was read are no sign of the others.
        if !wanted.contains(&id) {
            continue;
        }
        heard = Instant::now();
        match take(id, message)? {
            ReadDecision::More => {}
            ReadDecision::Skip => drop(wanted.remove(&id)),
            ReadDecision::Answer(answer) => return Ok(Some(answer)),
        }
    }
    Ok(None)
}
