//! Kafka topics as sinks: each row is one message, or each key's change of an epoch is.
//!
//! * [`Sink`] is the sink. An [`Encode`] makes the values of messages: see [`encode`](mod@encode). Unless they are sent
//!   as upserts or in Debezium's shape, changes of a collection carry their difference in a field `diff` of the row's
//!   object; a change whose row is no JSON object is written as `{"row": …, "diff": …}`.
//! * [`Sink::dead_letters`] keeps messages that could not be used, so that they can be sent again.
//! * [`Publisher`] sends arbitrary messages to a topic, for any producer.
//!
//! Invariants: an epoch is published only when the brokers have acknowledged all of its messages. Within an epoch
//! retractions are sent first, so the last message of a key is its newest row. Without a state an epoch is published
//! *at least* once: after a crash its messages may be sent again, and the sink reports nothing as published. With a
//! state it is published exactly once to readers of committed messages: in one transaction with a record of its number
//! in the progress topic.

pub(crate) mod dead_letter;
pub mod encode;
mod events;
mod message;
mod net_change;
mod progress;
mod publisher;
#[cfg(feature = "cli")]
pub(crate) mod redrive;
#[cfg(feature = "registry")]
mod registered;
mod row_mapping;
mod send_errors;
mod topics;
mod transactions;
mod writer;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{Error, Result};
use crate::record::Record;
use crate::sink::{self, SinkContext, SinkRows, SinkWriter};
use crate::source::TopicAddress;
use crate::source::kafka::client::TopicConfig;
use crate::time::EventTime;
pub use encode::Encode;
pub use message::MessageHeader;
pub use publisher::Publisher;
#[cfg(feature = "registry")]
pub use registered::AvroEncoder;
#[cfg(feature = "protobuf")]
pub use registered::ProtobufEncoder;
use row_mapping::{ChangeFormat, RowMapping};
use transactions::TransactionalWriter;
use writer::{Delivery, KafkaWriter};

/// A topic to write rows to. Messages are compressed with lz4 unless the property `compression.type` says otherwise
/// ([`Sink::config`]). With a state, readers of committed messages see each epoch exactly once. The topic
/// `<topic>-tidegate-progress` records how far it is published; it is created if it is missing.
///
/// ```
/// # use serde::{Deserialize, Serialize};
/// # #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
/// # struct Total { account: String, window_end_ms: i64, cents: i64 }
/// use tidegate::kafka::{self, encode};
///
/// let totals = kafka::Sink::new("localhost:9092", "totals", encode::csv())
///     .key_by(|total: &Total| total.account.clone())
///     .headers(|_total| vec![(String::from("currency"), Some(b"EUR".to_vec()))])
///     .timestamp(|total| total.window_end_ms);
/// ```
pub struct Sink<D> {
    target: TopicConfig,
    create: Option<u32>,
    mapping: RowMapping<D>,
    warned: Arc<AtomicBool>,
}

impl<D: Record> Sink<D> {
    /// Names a topic at `brokers` (`HOST:PORT[,HOST:PORT…]`) that gets rows as JSON.
    pub fn json(brokers: &str, topic: &str) -> Self {
        Sink::new(brokers, topic, encode::json())
    }

    /// Names a topic at `brokers` (`HOST:PORT[,HOST:PORT…]`) that gets rows as an encoder makes them: a closure, or one
    /// of [`encode`](mod@encode).
    pub fn new(brokers: &str, topic: &str, encoder: impl Encode<D>) -> Self {
        let mapping = RowMapping {
            encoder: Arc::new(encoder),
            key: None,
            headers: None,
            partition: None,
            timestamp: None,
            is_tombstone: None,
            format: ChangeFormat::Differences,
        };
        Sink { target: TopicConfig::new(brokers, topic), create: None, mapping, warned: Arc::default() }
    }

    /// Sets a property of librdkafka. Properties that correctness depends on are refused when the topic is opened.
    #[must_use]
    pub fn config(mut self, key: &str, value: &str) -> Self {
        self.target.properties.set(key, value);
        self
    }

    /// Sets several properties, as [`Sink::config`] does.
    #[must_use]
    pub fn configs<'a>(self, properties: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        properties.into_iter().fold(self, |sink, (key, value)| sink.config(key, value))
    }

    /// Sets the key of each message: messages with equal keys go to one partition, in order. If a collection has one
    /// row per key, the last message of a key is its newest row; a last message with a `diff` of -1 means that the key
    /// has no row.
    ///
    /// The partition of a key is the one that Java clients choose (murmur2); [`Sink::partition`] chooses another one,
    /// and so does the property `partitioner`. A key's partition changes with the number of partitions.
    #[must_use]
    pub fn key_by(self, key: impl Fn(&D) -> String + Send + Sync + 'static) -> Self {
        self.key_bytes(move |row| Some(key(row).into_bytes()))
    }

    /// Sets the key of each message, as [`Sink::key_by`] does, to bytes; `None`: the message has no key.
    #[must_use]
    pub fn key_bytes(mut self, key: impl Fn(&D) -> Option<Vec<u8>> + Send + Sync + 'static) -> Self {
        self.mapping.key = Some(Arc::new(key));
        self
    }

    /// Sets the headers of each message, in their order; a value may be null.
    #[must_use]
    pub fn headers(mut self, headers: impl Fn(&D) -> Vec<MessageHeader> + Send + Sync + 'static) -> Self {
        self.mapping.headers = Some(Arc::new(headers));
        self
    }

    /// Sets the partition of each message, whatever its key; `partition` is given the row and the number of partitions
    /// that the topic has when it is opened. A number that is no smaller fails the job. Of a key, all messages have to
    /// go to one partition, or readers see them in any order.
    #[must_use]
    pub fn partition(mut self, partition: impl Fn(&D, u32) -> u32 + Send + Sync + 'static) -> Self {
        self.mapping.partition = Some(Arc::new(partition));
        self
    }

    /// Sets the timestamp of each message: milliseconds since 1970, a `SystemTime`, a `jiff::Timestamp` or an
    /// [`EventTime`]. It has to be after 1970, or the job fails. Without it, a message has the time at which it is sent.
    /// The brokers ignore it if the topic's `message.timestamp.type` is `LogAppendTime`.
    #[must_use]
    pub fn timestamp<E: Into<EventTime>>(mut self, timestamp: impl Fn(&D) -> E + Send + Sync + 'static) -> Self {
        self.mapping.timestamp = Some(Arc::new(move |row| timestamp(row).into()));
        self
    }

    /// Sends messages without a value for the events for which `is_tombstone` returns `true`. They need a key to mean
    /// anything in a compacted topic.
    #[must_use]
    pub fn tombstone_if(mut self, is_tombstone: impl Fn(&D) -> bool + Send + Sync + 'static) -> Self {
        self.mapping.is_tombstone = Some(Arc::new(is_tombstone));
        self
    }

    /// Sends one message for each key whose row an epoch changes: the new row, or, if the key has none any more, a
    /// message without a value (a tombstone). Rows are written without a field `diff`. So the last message of each key
    /// is the collection's row, also after compaction of the topic, and at every epoch.
    ///
    /// A key ([`Sink::key_by`]) is needed, and has at most one row at the end of each epoch: a second one fails the job,
    /// before the epoch is published, with an error that names the key. For that the job keeps the keys in memory.
    #[must_use]
    pub fn upsert(mut self) -> Self {
        self.mapping.format = ChangeFormat::Upsert;
        self
    }

    /// Sends one message for each key whose row an epoch changes, in the shape of Debezium's change events:
    /// `{"before": …, "after": …, "op": "c" | "u" | "d", "ts_ms": …}`. `ts_ms` is the time at which the epoch began. A
    /// deletion is one message; no tombstone follows. Events are creations. Keys are as for [`Sink::upsert`].
    #[must_use]
    pub fn debezium(mut self) -> Self {
        self.mapping.format = ChangeFormat::Debezium;
        self
    }

    /// Creates the topic with `partitions` partitions if it is missing. Without this, a missing topic is an error.
    #[must_use]
    pub fn create(mut self, partitions: u32) -> Self {
        self.create = Some(partitions);
        self
    }
}

impl<D> Clone for Sink<D> {
    fn clone(&self) -> Self {
        let (target, mapping, warned) = (self.target.clone(), self.mapping.clone(), Arc::clone(&self.warned));
        Sink { target, create: self.create, mapping, warned }
    }
}

impl<D> fmt::Debug for Sink<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sink").field("target", &self.target).field("create", &self.create).finish_non_exhaustive()
    }
}

impl<D: Record> sink::Sink<D> for Sink<D> {
    fn describe(&self) -> String {
        self.target.describe()
    }

    fn check(&self, rows: SinkRows) -> Result<()> {
        if progress::is_name(&self.target.topic) {
            let error = Error::usage(format!("the topic {} cannot be an output", self.target.topic));
            let why = "topics with such names record how far an output is published";
            return Err(error.at(&self.target.brokers).because(why).help("name another topic"));
        }
        self.mapping.check(rows).map_err(|error| error.at(self.target.describe()))
    }

    fn topics(&self) -> Vec<TopicAddress> {
        vec![self.target.address(), progress::topic_of(&self.target).address()]
    }

    fn unique_key(&self) -> Option<sink::UniqueKey<D>> {
        let has_rows_by_key = matches!(self.mapping.format, ChangeFormat::Upsert | ChangeFormat::Debezium);
        self.mapping.key.clone().filter(|_| has_rows_by_key)
    }

    fn open(&self, at: &SinkContext) -> Result<Box<dyn SinkWriter<D>>> {
        let delivery = match at.state {
            Some(state) => {
                Delivery::ExactlyOnce(Box::new(TransactionalWriter::open(&self.target, self.create, state, &at.name)?))
            }
            None => {
                let publisher = Publisher::to(self.target.clone(), self.create)?;
                if !self.warned.swap(true, Ordering::Relaxed) {
                    let topic = self.target.describe();
                    tracing::warn!("results go to {topic} at least once: after a crash some may be there twice");
                }
                Delivery::AtLeastOnce(Box::new(publisher))
            }
        };
        let (rows, mapping) = (at.rows, self.mapping.clone());
        Ok(Box::new(KafkaWriter { delivery, rows, mapping, place: self.target.describe() }))
    }
}
