//! A reader of topics that knows nothing of who wrote them: the client library alone.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of it")]
#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

use std::time::{Duration, Instant};

use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{Header, Headers, Message as _};
use rdkafka::{Offset, TopicPartitionList};

use crate::broker::settle;

const PATIENCE: Duration = Duration::from_secs(60);

/// A message as a foreign reader sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Read {
    pub partition: i32,
    pub offset: i64,
    pub at_ms: Option<i64>,
    pub key: Option<Vec<u8>>,
    pub headers: Vec<(String, Option<Vec<u8>>)>,
    pub value: Option<Vec<u8>>,
}

impl Read {
    pub fn key(&self) -> String {
        String::from_utf8(self.key.clone().unwrap()).unwrap()
    }

    pub fn value(&self) -> Option<String> {
        self.value.clone().map(|value| String::from_utf8(value).unwrap())
    }

    /// Returns the last header of this name, as text.
    pub fn header(&self, name: &str) -> Option<String> {
        let (_, value) = self.headers.iter().rev().find(|(other, _)| other == name)?;
        value.clone().map(|value| String::from_utf8(value).unwrap())
    }
}

/// Returns the committed messages of a topic, each partition's in order.
pub fn read(servers: &str, topic: &str) -> Vec<Read> {
    settle(servers, topic);
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", servers).set("group.id", "foreign").set("enable.partition.eof", "true");
    config.set("isolation.level", "read_committed").set("enable.auto.commit", "false");
    let consumer: BaseConsumer = config.set("fetch.wait.max.ms", "10").create().unwrap();
    let metadata = consumer.fetch_metadata(Some(topic), PATIENCE).unwrap();
    let (mut list, partitions) = (TopicPartitionList::new(), metadata.topics()[0].partitions());
    for partition in partitions {
        list.add_partition_offset(topic, partition.id(), Offset::Beginning).unwrap();
    }
    consumer.assign(&list).unwrap();
    let (mut messages, mut open, begun) = (Vec::new(), partitions.len(), Instant::now());
    while open > 0 {
        match consumer.poll(Duration::from_millis(100)) {
            Some(Ok(message)) => {
                let header = |header: Header<'_, &[u8]>| (header.key.to_owned(), header.value.map(<[u8]>::to_vec));
                messages.push(Read {
                    partition: message.partition(),
                    offset: message.offset(),
                    at_ms: message.timestamp().to_millis(),
                    key: message.key().map(<[u8]>::to_vec),
                    headers: message.headers().map_or(Vec::new(), |headers| headers.iter().map(header).collect()),
                    value: message.payload().map(<[u8]>::to_vec),
                });
            }
            Some(Err(KafkaError::PartitionEOF(_))) => open -= 1,
            _ => assert!(begun.elapsed() < PATIENCE, "no end of {topic}"),
        }
    }
    messages
}
