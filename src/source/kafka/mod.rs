//! Kafka topics as sources. With `sink/kafka`, the only part of Tidegate that knows the Kafka client library.
//!
//! * A [`Topic`] is a source: a topic at some brokers, and how a message becomes a record.
//! * The **end** of a partition is its last stable offset: what is before it is decided, what is after it may belong to
//!   a transaction that is still open. It never goes back.
//! * A **marker** is an offset that a transaction's end takes up and no record has.
//!
//! Invariants: only committed records are read, at offsets that this module names itself (never at those that a
//! consumer group stored); a partition's records are taken in order, each once; a start is an offset, not a word like
//! "latest", so that it can be journalled. Group offsets are written for people's lag monitors, after the results were
//! shown, and never read back. A topic is known by its id: one that is deleted and created again ends the job
//! that reads it, and is no source of its state. A topic is read on behind a state only if the last record that the state
//! took of each partition is still the one that it was, or retention has removed it.
//!
//! It does not know what an epoch is good for, nor who drives it.

pub(crate) mod admin;
pub(crate) mod client;
mod embedded;
mod growth;
mod identity;
mod probe;
mod reader;
mod report;
mod watch;

use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use crate::durable::journal::Bound;
use crate::error::Result;
use crate::record::Record;
use crate::source::{Place, Reader, Source, TimeOf, TopicAddress, time_of};
use crate::time::EventTime;
use client::Target;
pub use embedded::EmbeddedBroker;
use rdkafka::consumer::Consumer;

/// Where reading begins in partitions that are there when a job starts for the first time. Partitions that are added to
/// the topic later are read from their first record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Start {
    /// At the first record that the topic still has.
    #[default]
    Earliest,
    /// Behind the last record that is committed.
    Latest,
}

/// A topic of JSON messages, once its records' type and event time are known: see [`Topic::json`].
///
/// ```
/// # use serde::{Deserialize, Serialize};
/// # #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
/// # struct Transaction { at_ms: i64 }
/// use std::time::Duration;
/// use tidegate::source::kafka::{Start, Topic};
///
/// let transactions = Topic::json("localhost:9092", "transaction")
///     .event_time(|transaction: &Transaction| transaction.at_ms)
///     .out_of_order(Duration::from_secs(2))
///     .from(Start::Latest)
///     .config("security.protocol", "ssl");
/// ```
pub struct Topic<T> {
    target: Target,
    start: Start,
    out_of_order: Option<Duration>,
    idle_after: Option<Duration>,
    stops_at_end: bool,
    compacted: bool,
    time_of: TimeOf<T>,
    records: PhantomData<fn() -> T>,
}

/// A topic of JSON messages whose records' event time is still to be told.
#[derive(Clone, Debug)]
pub struct Untimed {
    target: Target,
}

impl Topic<()> {
    /// A topic whose messages are JSON; `brokers` are `HOST:PORT[,HOST:PORT…]`.
    pub fn json(brokers: &str, topic: &str) -> Untimed {
        Untimed { target: Target::new(brokers, topic) }
    }
}

impl Untimed {
    /// Sets the type of the records and the function that returns a record's event time: milliseconds since 1970, a
    /// `SystemTime`, a `jiff::Timestamp` or an [`EventTime`].
    pub fn event_time<T: Record, E: Into<EventTime>>(
        self,
        event_time: impl Fn(&T) -> E + Send + Sync + 'static,
    ) -> Topic<T> {
        Topic {
            target: self.target,
            start: Start::Earliest,
            out_of_order: None,
            idle_after: None,
            stops_at_end: false,
            compacted: false,
            time_of: time_of(event_time),
            records: PhantomData,
        }
    }
}

impl<T: Record> Topic<T> {
    /// How far records may be behind the greatest event time of their partition.
    #[must_use]
    pub fn out_of_order(mut self, disorder: Duration) -> Self {
        self.out_of_order = Some(disorder);
        self
    }

    /// Sets the time that a partition is at its end, without records, before it no longer holds the watermark back: before it is
    /// idle.
    /// Without it, the job's `idle_timeout` holds. Make it short for a topic that is mostly quiet and is combined with
    /// others; records of a partition that pauses for longer than that are late for windows that have closed meanwhile.
    #[must_use]
    pub fn idle_after(mut self, silence: Duration) -> Self {
        self.idle_after = Some(silence);
        self
    }

    /// Where to begin when the job starts for the first time.
    #[must_use]
    pub fn from(mut self, start: Start) -> Self {
        self.start = start;
        self
    }

    /// Whether to read only what is committed when the job starts, partitions of then, and to stop the job when that has
    /// been read (of all sources, if there are several). Unlike a job that runs until the end of its sources, it is not
    /// over then: no window closes by it, and started again it reads on, to the end of that time.
    #[must_use]
    pub fn stop_at_end(mut self, stop: bool) -> Self {
        self.stops_at_end = stop;
        self
    }

    /// Accepts a compacted topic, if `true`; by default it is refused. Compaction removes a record once a later one of
    /// its key comes, so two jobs may read different records. The records that this job reads are kept by value in the
    /// state's journal, so that it recovers with exactly those.
    #[must_use]
    pub fn compacted(mut self, compacted: bool) -> Self {
        self.compacted = compacted;
        self
    }

    /// Sets a property of librdkafka (TLS, SASL, sizes, …). Properties that correctness needs as they are, such as
    /// `isolation.level`, are refused when the topic is opened.
    #[must_use]
    pub fn config(mut self, key: &str, value: &str) -> Self {
        self.target.properties.insert(key.to_owned(), value.to_owned());
        self
    }

    /// Sets several properties, as [`Topic::config`] does.
    #[must_use]
    pub fn configs<'a>(self, properties: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        properties.into_iter().fold(self, |topic, (key, value)| topic.config(key, value))
    }
}

impl<T> Topic<T> {
    fn manner(&self) -> reader::Manner {
        reader::Manner { start: self.start, stops_at_end: self.stops_at_end, compacted: self.compacted }
    }
}

impl<T> Clone for Topic<T> {
    fn clone(&self) -> Self {
        Topic {
            target: self.target.clone(),
            start: self.start,
            out_of_order: self.out_of_order,
            idle_after: self.idle_after,
            stops_at_end: self.stops_at_end,
            compacted: self.compacted,
            time_of: Arc::clone(&self.time_of),
            records: PhantomData,
        }
    }
}

impl<T: Record> Source for Topic<T> {
    type Item = T;

    fn describe(&self) -> String {
        self.target.describe()
    }

    fn event_time(&self) -> TimeOf<T> {
        Arc::clone(&self.time_of)
    }

    fn out_of_order(&self) -> Option<Duration> {
        self.out_of_order
    }

    fn idle_after(&self) -> Option<Duration> {
        self.idle_after
    }

    fn open(&self, at: &Place) -> Result<Box<dyn Reader<T>>> {
        let mut at = at.clone();
        at.options.idle_timeout = self.idle_after.unwrap_or(at.options.idle_timeout);
        Ok(Box::new(reader::KafkaReader::open(&self.target, self.manner(), &at)?))
    }

    fn identity(&self, at: &Place) -> Result<Option<String>> {
        let (consumer, _) = reader::connect(&self.target, &at.job)?;
        Ok(consumer.context().id().map(|id| reader::identity(&id)))
    }

    fn topic(&self) -> Option<TopicAddress> {
        Some(self.target.address())
    }

    fn grown_since(&self, at: &Place, bounds: &[Bound]) -> Result<Option<String>> {
        growth::grown_since(&self.target, &at.job, bounds)
    }
}
