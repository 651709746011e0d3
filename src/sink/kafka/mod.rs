//! Kafka topics as sinks: each row is one JSON message.
//!
//! * [`Sink`] is the sink. Changes of a collection carry their difference in a field `diff` of the row's object; a
//!   change whose row is no JSON object is written as `{"row": …, "diff": …}`.
//! * [`Publisher`] sends arbitrary messages to a topic, for any producer.
//!
//! Invariants: an epoch is published only when the brokers have acknowledged all of its messages. Within an epoch
//! retractions are sent first, so the last message of a key is its newest row. Without a state an epoch is published
//! *at least* once: after a crash its messages may be sent again, and the sink reports nothing as published. With a
//! state it is published exactly once to readers of committed messages: in one transaction with a record of its number
//! in the progress topic.

mod events;
mod progress;
mod publisher;
#[cfg(feature = "registry")]
mod registered;
mod send_errors;
mod topics;
mod transactions;

use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::Serialize;
use serde_json::Value;

use crate::durable::journal::JournalEnds;
use crate::durable::{Incarnation, PublishedEpoch};
use crate::error::{Error, Result};
use crate::record::Record;
use crate::sink::encode::{line_count, retractions_first};
use crate::sink::{self, SinkContext, SinkRows, SinkWriter};
use crate::source::TopicAddress;
use crate::source::kafka::client::TopicConfig;
use crate::time::Epoch;
pub use publisher::Publisher;
#[cfg(feature = "registry")]
pub use registered::AvroEncoder;
#[cfg(feature = "protobuf")]
pub use registered::ProtobufEncoder;
use transactions::TransactionalWriter;

/// Function that returns a row's key.
type MessageKey<D> = Arc<dyn Fn(&D) -> String + Send + Sync>;

/// A topic to write rows to, as JSON messages. With a state, readers of committed messages see each epoch exactly once.
/// The topic `<topic>-tidegate-progress` records how far it is published; it is created if it is missing.
pub struct Sink<D> {
    target: TopicConfig,
    create: Option<u32>,
    key_of: Option<MessageKey<D>>,
    warned: Arc<AtomicBool>,
}

impl<D> Sink<D> {
    /// Names a topic at `brokers` (`HOST:PORT[,HOST:PORT…]`).
    pub fn json(brokers: &str, topic: &str) -> Self {
        Sink { target: TopicConfig::new(brokers, topic), create: None, key_of: None, warned: Arc::default() }
    }

    /// Sets a property of librdkafka. Properties that correctness depends on are refused when the topic is opened.
    #[must_use]
    pub fn config(mut self, key: &str, value: &str) -> Self {
        self.target.properties.set(key, value);
        self
    }

    /// Sets the key of each message: messages with equal keys go to one partition, in order. If a collection has one
    /// row per key, the last message of a key is its newest row; a last message with a `diff` of -1 means that the key
    /// has no row.
    #[must_use]
    pub fn key_by(mut self, key: impl Fn(&D) -> String + Send + Sync + 'static) -> Self {
        self.key_of = Some(Arc::new(key));
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
        let (topic_config, key_of, warned) = (self.target.clone(), self.key_of.clone(), Arc::clone(&self.warned));
        Sink { target: topic_config, create: self.create, key_of, warned }
    }
}

impl<D: Record> sink::Sink<D> for Sink<D> {
    fn describe(&self) -> String {
        self.target.describe()
    }

    fn check(&self, _rows: SinkRows) -> Result<()> {
        if progress::is_name(&self.target.topic) {
            let error = Error::usage(format!("the topic {} cannot be an output", self.target.topic));
            let why = "topics with such names record how far an output is published";
            return Err(error.at(&self.target.brokers).because(why).help("name another topic"));
        }
        Ok(())
    }

    fn topics(&self) -> Vec<TopicAddress> {
        vec![self.target.address(), progress::topic_of(&self.target).address()]
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
        let (rows, key_of) = (at.rows, self.key_of.clone());
        Ok(Box::new(KafkaWriter { delivery, rows, key_of, message: Vec::new(), place: self.target.describe() }))
    }
}

/// Delivery guarantee of the messages.
enum Delivery {
    AtLeastOnce(Box<Publisher>),
    ExactlyOnce(Box<TransactionalWriter>),
}

struct KafkaWriter<D> {
    delivery: Delivery,
    rows: SinkRows,
    key_of: Option<MessageKey<D>>,
    message: Vec<u8>,
    place: String,
}

impl<D: Record> KafkaWriter<D> {
    fn send(&mut self, rows: &[(D, isize)]) -> Result<()> {
        for (row, diff) in retractions_first(rows) {
            self.message.clear();
            let written = match self.rows {
                SinkRows::Events => serde_json::to_writer(&mut self.message, row),
                SinkRows::Changes => write_change(&mut self.message, row, *diff),
            };
            written.map_err(|error| Error::new("a row cannot be written as JSON").at(&self.place).because(error))?;
            let times = line_count(self.rows, *diff).map_err(|error| error.at(&self.place))?;
            let key = self.key_of.as_ref().map(|key_of| key_of(row));
            let key = key.as_deref().map(str::as_bytes);
            for _ in 0..times {
                match &mut self.delivery {
                    Delivery::AtLeastOnce(publisher) => publisher.send(key, &self.message, None)?,
                    Delivery::ExactlyOnce(transactions) => transactions.send(key, &self.message)?,
                }
            }
        }
        Ok(())
    }
}

impl<D: Record> SinkWriter<D> for KafkaWriter<D> {
    fn published(&mut self) -> Result<Option<PublishedEpoch>> {
        match &mut self.delivery {
            Delivery::AtLeastOnce(_) => Ok(None),
            Delivery::ExactlyOnce(transactions) => transactions.shown(),
        }
    }

    fn begin(&mut self, life: &Incarnation) -> Result<()> {
        match &mut self.delivery {
            Delivery::AtLeastOnce(_) => Ok(()),
            Delivery::ExactlyOnce(transactions) => transactions.begin(life),
        }
    }

    fn write(&mut self, epoch: Epoch, rows: &[(D, isize)]) -> Result<()> {
        if let Delivery::ExactlyOnce(transactions) = &mut self.delivery {
            transactions.begin_epoch(epoch)?;
        }
        let sent = self.send(rows);
        match &mut self.delivery {
            Delivery::ExactlyOnce(transactions) => sent.map_err(|error| transactions.fail(error)),
            Delivery::AtLeastOnce(_) => sent,
        }
    }

    fn publish(&mut self, ends: &JournalEnds) -> Result<()> {
        match &mut self.delivery {
            Delivery::AtLeastOnce(publisher) => publisher.flush(),
            Delivery::ExactlyOnce(transactions) => transactions.show(ends),
        }
    }

    fn finish(&mut self) -> Result<()> {
        match &mut self.delivery {
            Delivery::AtLeastOnce(publisher) => publisher.flush(),
            Delivery::ExactlyOnce(transactions) => transactions.finish(),
        }
    }

    fn is_blocking(&self) -> bool {
        true
    }
}

/// Writes a row with its difference.
fn write_change<D: Serialize>(message: &mut Vec<u8>, row: &D, diff: isize) -> serde_json::Result<()> {
    serde_json::to_writer(&mut *message, row)?;
    // Most rows are objects, whose text can be extended; their fields keep their order.
    if message.first() == Some(&b'{') && message.len() > 2 {
        message.pop();
        write!(message, ",\"diff\":{diff}}}").map_err(serde_json::Error::io)
    } else {
        let row: Value = serde_json::from_slice(message)?;
        message.clear();
        match row {
            Value::Object(_) => write!(message, "{{\"diff\":{diff}}}").map_err(serde_json::Error::io),
            row => serde_json::to_writer(&mut *message, &serde_json::json!({ "row": row, "diff": diff })),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_carries_its_difference() {
        #[derive(Serialize)]
        struct Total {
            z: u8,
            a: &'static str,
        }
        #[derive(Serialize)]
        struct Nothing {}
        fn change(row: &impl Serialize) -> String {
            let mut message = Vec::new();
            write_change(&mut message, row, -2).unwrap();
            String::from_utf8(message).unwrap()
        }
        assert_eq!(change(&Total { z: 1, a: "}" }), r#"{"z":1,"a":"}","diff":-2}"#);
        assert_eq!(change(&Nothing {}), r#"{"diff":-2}"#);
        assert_eq!(change(&(1, "x")), r#"{"diff":-2,"row":[1,"x"]}"#);
    }
}
