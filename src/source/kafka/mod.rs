//! Kafka topics as sources. With `sink/kafka`, the only part of Tidegate that knows the Kafka client library.
//!
//! * A [`Source`] is a source: a topic at some brokers, whose messages are decoded to records.
//! * A [`Message`] is what a decoder sees: value, key, headers, timestamp and place. A [`Decode`] makes a record of it,
//!   skips it, or rejects it. Event times come from the record or from the message.
//! * The **end** of a partition is its last stable offset: records before it are committed or aborted, records after it
//!   may belong to an open transaction. It never goes back.
//! * A **marker** is an offset that the end of a transaction takes up and that no record has.
//!
//! Invariants: only committed records are read, at offsets that this module names itself (never at those that a
//! consumer group stored); a partition's records are taken in order, each once; a start is an offset, not a word like
//! "latest", so that it can be journalled. Group offsets are committed for lag monitors, after the results were
//! published, and are never read back. A topic is known by its id: one that is deleted and created again fails the job
//! that reads it, and is not the source that a state was read from. A state continues with a topic only if the last
//! record that it took of each partition is still the same, or was removed by retention.
//!
//! The module knows neither the purpose of epochs nor its caller.

pub(crate) mod admin;
mod avro;
pub(crate) mod broker_errors;
pub(crate) mod client;
mod compacted;
mod connected_topic;
pub(crate) mod consumer;
mod debezium;
mod decode;
mod decoders;
mod embedded;
mod fetched_partition;
mod identity;
mod late_letter;
mod mapping;
mod matching_reader;
mod message;
mod new_data;
mod partition_numbers;
mod peek;
mod positions;
mod prefetch;
pub(crate) mod properties;
#[cfg(feature = "protobuf")]
mod protobuf;
mod reader;
mod reader_group;
mod replacement;
mod statistics;
mod stored_message;
mod table;
pub(crate) mod topic_lookup;
pub(crate) mod topic_pattern;
mod topics;
mod watch;

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use crate::durable::journal::PartitionProgress;
use crate::error::Result;
pub use crate::format::avro::AvroSchema;
#[cfg(feature = "registry")]
pub use crate::format::registry::{RegisteredSchema, SchemaKind, SchemaRegistry, SubjectNaming};
use crate::record::Record;
use crate::source::{self, Reader, TimeOf, TopicAddress, WorkerContext, time_of};
use crate::time::EventTime;
#[cfg(feature = "registry")]
pub use avro::avro;
pub use avro::{AvroDecoder, avro_schema};
use client::TopicConfig;
pub use debezium::{DebeziumDecoder, DebeziumEvent, DebeziumKeyDecoder, debezium, debezium_key};
#[cfg(all(feature = "protobuf", feature = "cli"))]
pub(crate) use decode::value_of;
pub use decode::{Decode, DecodeError, SkipTombstones, WithMeta};
pub use decoders::{BytesDecoder, CsvDecoder, JsonDecoder, TextDecoder, bytes, csv, json, text};
pub use embedded::EmbeddedBroker;
use mapping::{EventTimeOrigin, MapMessages, MessageMapping};
use matching_reader::MatchingReader;
pub use message::{Message, MessageHeaders, TimestampKind};
use partition_numbers::PartitionNumbers;
use positions::ReadOptions;
pub use positions::{Gap, StartOffset};
pub use properties::ClientProperties;
#[cfg(feature = "protobuf")]
pub use protobuf::{ProtobufDecoder, protobuf};
use rdkafka::consumer::Consumer;
/// Errors of the client library, which are the [source](std::error::Error::source) of errors of topics.
pub use rdkafka::error::{KafkaError, RDKafkaErrorCode};
pub(crate) use stored_message::read_message;
#[cfg(test)]
pub(crate) use stored_message::write_message;
pub use table::KeyedDecoder;
use topic_pattern::TopicPattern;
pub use topics::Topics;

/// A topic to read records from: see [`Source::json`] and [`Source::new`].
///
/// ```
/// # use serde::{Deserialize, Serialize};
/// # #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
/// # struct Transaction { at_ms: i64 }
/// use std::time::Duration;
/// use tidegate::source::kafka::{Source, StartOffset};
///
/// let transactions = Source::json("localhost:9092", "transaction")
///     .event_time(|transaction: &Transaction| transaction.at_ms)
///     .out_of_order(Duration::from_secs(2))
///     .from(StartOffset::Latest)
///     .config("security.protocol", "ssl");
/// ```
pub struct Source<T> {
    /// Brokers and properties; of which topic, `topics` says.
    topic_config: TopicConfig,
    topics: Topics,
    read_options: ReadOptions,
    out_of_order: Option<Duration>,
    idle_after: Option<Duration>,
    mapping: Arc<dyn MapMessages<T>>,
}

/// A topic of JSON messages without a record type and event time yet.
#[derive(Clone, Debug)]
pub struct UntimedTopic {
    topic_config: TopicConfig,
    topics: Topics,
}

/// A topic whose messages are decoded to records of type `T`, without event time yet.
#[derive(Clone)]
pub struct DecodedTopic<T, D> {
    topic_config: TopicConfig,
    topics: Topics,
    decoder: D,
    records: PhantomData<fn() -> T>,
}

impl Source<()> {
    /// Names a topic of JSON messages, a list of topics, or a pattern ([`Topics::matching`]); `brokers` are `HOST:PORT[,HOST:PORT…]`.
    ///
    /// ```
    /// # use serde::{Deserialize, Serialize};
    /// # #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
    /// # struct Order { at_ms: i64 }
    /// use tidegate::kafka;
    ///
    /// let orders = kafka::Source::json("localhost:9092", ["orders-eu", "orders-us"]).event_time(|order: &Order| order.at_ms);
    /// ```
    pub fn json(brokers: &str, topics: impl Into<Topics>) -> UntimedTopic {
        let topics = topics.into();
        UntimedTopic { topic_config: configured(brokers, &topics), topics }
    }

    /// Names a topic, a list of topics, or a pattern ([`Topics::matching`]), whose messages a decoder makes records of: a closure, or one such as
    /// [`csv()`]; `brokers` are `HOST:PORT[,HOST:PORT…]`.
    ///
    /// ```
    /// # use serde::{Deserialize, Serialize};
    /// # #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
    /// # struct Transaction { at_ms: i64 }
    /// use tidegate::kafka::{self, Decode};
    ///
    /// // One CSV row a message; deleted keys are left out.
    /// let transactions = kafka::Source::new("localhost:9092", "transaction", kafka::csv().skip_tombstones())
    ///     .event_time(|transaction: &Transaction| transaction.at_ms);
    /// ```
    #[expect(clippy::new_ret_no_self, reason = "it becomes a source with its event time, as every source does")]
    pub fn new<T: Record, D: Decode<T>>(brokers: &str, topics: impl Into<Topics>, decoder: D) -> DecodedTopic<T, D> {
        let topics = topics.into();
        DecodedTopic { topic_config: configured(brokers, &topics), topics, decoder, records: PhantomData }
    }
}

/// Returns the configuration of the first topic of a list, or of the topics of a pattern for messages. An empty list has
/// a topic without a name, which is refused when it is opened.
fn configured(brokers: &str, topics: &Topics) -> TopicConfig {
    match (topics.pattern(), topics.names().first()) {
        (Some(pattern), _) => TopicConfig::new(brokers, &format!("matching {pattern}")),
        (None, first) => TopicConfig::new(brokers, first.map_or("", |first| first)),
    }
}

impl UntimedTopic {
    fn decoded<T: Record>(self) -> DecodedTopic<T, JsonDecoder<T>> {
        DecodedTopic { topic_config: self.topic_config, topics: self.topics, decoder: json(), records: PhantomData }
    }

    /// Sets the type of the records and the function that returns a record's event time: milliseconds since 1970, a
    /// `SystemTime`, a `jiff::Timestamp` or an [`EventTime`].
    pub fn event_time<T: Record, E: Into<EventTime>>(
        self,
        event_time: impl Fn(&T) -> E + Send + Sync + 'static,
    ) -> Source<T> {
        self.decoded().event_time(event_time)
    }

    /// Takes event times from messages' timestamps: see [`DecodedTopic::event_time_of_message`].
    pub fn event_time_of_message<T: Record>(self) -> Source<T> {
        self.decoded().event_time_of_message()
    }

    /// Takes event times from a header: see [`DecodedTopic::event_time_of_header`].
    pub fn event_time_of_header<T: Record>(self, name: &str) -> Source<T> {
        self.decoded().event_time_of_header(name)
    }
}

impl<T: Record, D: Decode<T>> DecodedTopic<T, D> {
    /// Sets the function that returns a record's event time: milliseconds since 1970, a `SystemTime`, a
    /// `jiff::Timestamp` or an [`EventTime`].
    pub fn event_time<E: Into<EventTime>>(self, event_time: impl Fn(&T) -> E + Send + Sync + 'static) -> Source<T> {
        self.timed(EventTimeOrigin::Record(time_of(event_time)))
    }

    /// Takes event times from the messages' timestamps, which the producer has set, or the broker if the topic's
    /// `message.timestamp.type` is `LogAppendTime`. A message without a timestamp is rejected.
    pub fn event_time_of_message(self) -> Source<T> {
        self.timed(EventTimeOrigin::Timestamp)
    }

    /// Takes event times from the last header of this name: milliseconds since 1970 or RFC 3339, as text. A message
    /// without it, or with another text in it, is rejected.
    pub fn event_time_of_header(self, name: &str) -> Source<T> {
        self.timed(EventTimeOrigin::Header(name.into()))
    }

    fn timed(self, event_time: EventTimeOrigin<T>) -> Source<T> {
        Source::with(self.topic_config, self.topics, Arc::new(MessageMapping { decoder: self.decoder, event_time }))
    }
}

impl<T, D> fmt::Debug for DecodedTopic<T, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DecodedTopic").field("topic_config", &self.topic_config).finish_non_exhaustive()
    }
}

impl<T: Record> Source<T> {
    /// Sets the allowed disorder: how far an event time may be behind the greatest one of its partition.
    #[must_use]
    pub fn out_of_order(mut self, disorder: Duration) -> Self {
        self.out_of_order = Some(disorder);
        self
    }

    /// Sets the idle timeout: a partition that is at its end for this long without records no longer holds the
    /// watermark back. Without it, the job's `idle_timeout` holds. Make it short for a topic that is mostly quiet and
    /// is combined with others. Records of a partition that pauses for longer are late for windows that have closed
    /// meanwhile.
    #[must_use]
    pub fn idle_after(mut self, silence: Duration) -> Self {
        self.idle_after = Some(silence);
        self
    }

    /// Sets the start of reading when the job first starts.
    #[must_use]
    pub fn from(mut self, start: StartOffset) -> Self {
        self.read_options.start = start;
        self
    }

    /// Makes the job read only the records that are committed when an incarnation starts, of the partitions that exist
    /// then, and stop when they have been read (in every source of the job), if `stop` is `true`. Unlike a job that
    /// runs until the end of its sources, it has not ended then: no window closes because of it, and the next start
    /// reads on, to the end at that time.
    #[must_use]
    pub fn stop_at_end(mut self, stop: bool) -> Self {
        self.read_options.stops_at_end = stop;
        self
    }

    /// Makes each partition end before its first message whose timestamp is at or after `time`, also if later messages
    /// have earlier timestamps. A job of which all sources have ended is over, with every window closed. A partition
    /// without such a message is read on, and the job waits for one; with [`Options::until_end`](source::Options) it ends at
    /// the end that it had at the first start. The stop depends on the messages alone: messages without a timestamp stop
    /// nothing.
    ///
    /// ```
    /// # use tidegate::kafka::{self, StartOffset};
    /// # use tidegate::time::EventTime;
    /// # use serde::{Deserialize, Serialize};
    /// # #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
    /// # struct Transaction { at_ms: i64 }
    /// // One day.
    /// let (begin, end): (EventTime, EventTime) = ("2026-03-01T00:00:00Z".parse()?, "2026-03-02T00:00:00Z".parse()?);
    /// let transactions = kafka::Source::json("localhost:9092", "transaction")
    ///     .event_time(|transaction: &Transaction| transaction.at_ms)
    ///     .from(StartOffset::at(begin))
    ///     .stop_at(end);
    /// # Ok::<(), String>(())
    /// ```
    #[must_use]
    pub fn stop_at(mut self, time: impl Into<EventTime>) -> Self {
        self.read_options.stop_at = Some(time.into());
        self
    }

    /// Sets the reaction to records that the brokers have removed before they were read.
    #[must_use]
    pub fn on_gap(mut self, gap: Gap) -> Self {
        self.read_options.gap = gap;
        self
    }

    /// Accepts a compacted topic, if `true`; by default it is refused. Compaction removes a record once a later one of
    /// its key arrives, so two jobs may read different records. The records that this job reads are kept by value in
    /// the state's journal, so that it recovers with exactly those.
    #[must_use]
    pub fn compacted(mut self, compacted: bool) -> Self {
        self.read_options.compacted = compacted;
        self
    }

    /// Sets a property of librdkafka (TLS, SASL, sizes, …). Properties that correctness depends on, such as
    /// `isolation.level`, are refused when the topic is opened.
    #[must_use]
    pub fn config(mut self, key: &str, value: &str) -> Self {
        self.topic_config.properties.set(key, value);
        self
    }

    /// Sets several properties, as [`Source::config`] does.
    #[must_use]
    pub fn configs<'a>(self, properties: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        properties.into_iter().fold(self, |topic, (key, value)| topic.config(key, value))
    }
}

impl<T> Source<T> {
    /// Creates a source whose messages are decoded so, with default options.
    fn with(topic_config: TopicConfig, topics: Topics, mapping: Arc<dyn MapMessages<T>>) -> Self {
        let read_options = ReadOptions::default();
        Source { topic_config, topics, read_options, out_of_order: None, idle_after: None, mapping }
    }

    /// Returns the topics of the list, or the only one; none of a pattern.
    fn configs_of_topics(&self) -> Vec<TopicConfig> {
        let further = self.topics.names().iter().skip(1);
        let further = further.map(|name| TopicConfig { topic: name.clone(), ..self.topic_config.clone() });
        let first = self.topics.pattern().is_none().then(|| self.topic_config.clone());
        first.into_iter().chain(further).collect()
    }
}

impl<T> Clone for Source<T> {
    fn clone(&self) -> Self {
        Source {
            topic_config: self.topic_config.clone(),
            topics: self.topics.clone(),
            read_options: self.read_options.clone(),
            out_of_order: self.out_of_order,
            idle_after: self.idle_after,
            mapping: Arc::clone(&self.mapping),
        }
    }
}

impl<T: Record> source::Source for Source<T> {
    type Item = T;

    fn describe(&self) -> String {
        match (self.topics.pattern(), self.topics.names()) {
            (Some(pattern), _) => TopicPattern::describe(pattern, &self.topic_config.brokers),
            (None, names @ [_, _, ..]) => format!("topics {} at {}", names.join(", "), self.topic_config.brokers),
            (None, _) => self.topic_config.describe(),
        }
    }

    fn event_time(&self) -> TimeOf<T> {
        self.mapping.time_of_record()
    }

    fn out_of_order(&self) -> Option<Duration> {
        self.out_of_order
    }

    fn idle_after(&self) -> Option<Duration> {
        self.idle_after
    }

    fn open(&self, at: &WorkerContext) -> Result<Box<dyn Reader<T>>> {
        let mut at = at.clone();
        at.options.idle_timeout = self.idle_after.unwrap_or(at.options.idle_timeout);
        self.mapping.check().map_err(|error| error.at(self.describe()))?;
        if let Some(pattern) = self.topics.pattern() {
            let place = (self.describe(), &self.topic_config, TopicPattern::parse(pattern)?);
            return Ok(Box::new(MatchingReader::open(place, &self.mapping, &self.read_options, &at)?));
        }
        let topics = self.configs_of_topics();
        topics::check_list(&topics)?;
        if let Some((_, known)) = at.known_partitions.first() {
            return Err(topic_pattern::of_pattern(&self.describe(), known));
        }
        if topics.len() > 1 {
            let reader = topics::TopicsReader::open(self.describe(), &topics, &self.mapping, &self.read_options, &at)?;
            return Ok(Box::new(reader));
        }
        let (mapping, options) = (Arc::clone(&self.mapping), self.read_options.clone());
        let numbers = (PartitionNumbers::Following(0), 1);
        Ok(Box::new(reader::KafkaReader::open(&self.topic_config, mapping, options, numbers, &at)?))
    }

    fn identity(&self, at: &WorkerContext) -> Result<Option<String>> {
        if let Some(pattern) = self.topics.pattern() {
            return Ok(Some(TopicPattern::parse(pattern)?.identity()));
        }
        let topics = self.configs_of_topics();
        topics::check_list(&topics)?;
        let mut ids = Vec::new();
        for topic in &topics {
            let (consumer, _) = consumer::connect(topic, &at.job)?;
            ids.push(consumer.context().id());
        }
        if topics.len() > 1 {
            let names = topics.iter().map(|topic| topic.topic.as_str());
            return Ok(Some(topics::list_identity(names.zip(ids))));
        }
        Ok(ids.pop().flatten().map(|id| identity::identity(&id)))
    }

    fn topic(&self) -> Option<TopicAddress> {
        self.topics.pattern().is_none().then(|| self.topic_config.address())
    }

    fn topics(&self) -> Vec<TopicAddress> {
        // A pattern that is none is refused when the source is opened.
        let pattern = self.topics.pattern().and_then(|pattern| TopicPattern::parse(pattern).ok());
        let pattern = pattern.map(|pattern| self.topic_config.address().matching(move |name| pattern.is_match(name)));
        pattern.into_iter().chain(self.configs_of_topics().iter().map(TopicConfig::address)).collect()
    }

    fn has_new_data(&self, at: &WorkerContext, bounds: &[PartitionProgress]) -> Result<Option<String>> {
        if let Some(pattern) = self.topics.pattern() {
            let place = (&self.topic_config, &TopicPattern::parse(pattern)?);
            return new_data::grown_matching(place, &at.job, bounds, self.read_options.stop_at);
        }
        for (index, topic) in self.configs_of_topics().into_iter().enumerate() {
            let bounds = topics::progress_of(index, bounds);
            let grown = new_data::grown_since(&topic, &at.job, &bounds, self.read_options.stop_at)?;
            if grown.is_some() {
                return Ok(grown);
            }
        }
        Ok(None)
    }
}
