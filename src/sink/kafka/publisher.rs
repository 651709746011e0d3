//! Sends messages to a topic, and knows of each what became of it.
//!
//! Invariants: a message counts as delivered only after the broker has acknowledged it to the idempotent producer, from
//! all in-sync replicas; the first failure is kept and every later call returns it.

use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::{Duration, Instant};

use rdkafka::ClientContext;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Message};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer, ProducerContext};

use crate::error::{Error, Result};
use crate::source::kafka::client::{LastWords, Lookup, Target, find_topic, in_words, no_topic, not_made, said};

const DEFAULTS: &[(&str, &str)] = &[
    // Batches fill while others are on their way, so that waiting for more gains little.
    ("linger.ms", "1"),
    // What is too big is for the broker to say.
    ("message.max.bytes", "1000000000"),
    ("queue.buffering.max.messages", "200000"),
    ("queue.buffering.max.kbytes", "131072"),
    // Where Java clients put the same key.
    ("partitioner", "murmur2_random"),
    ("reconnect.backoff.max.ms", "1000"),
];

const NEEDED: &[(&str, &str)] =
    &[("enable.idempotence", "true"), ("acks", "all"), ("allow.auto.create.topics", "false")];

/// How long a wait for the broker is before it is told.
const PATIENCE: Duration = Duration::from_secs(2);

/// What became of the messages.
#[derive(Debug, Default)]
struct Reports {
    words: LastWords,
    delivered: AtomicU64,
    failed: AtomicU64,
    first: Mutex<Option<Failure>>,
}

#[derive(Clone, Debug)]
struct Failure {
    partition: i32,
    code: Option<RDKafkaErrorCode>,
    because: String,
}

impl ClientContext for Reports {
    fn error(&self, error: KafkaError, reason: &str) {
        self.words.set(&error, reason);
    }
}

impl ProducerContext for Reports {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, _: ()) {
        let Err((error, message)) = result else {
            self.delivered.fetch_add(1, Ordering::Relaxed);
            return;
        };
        self.failed.fetch_add(1, Ordering::Relaxed);
        let (code, because) = (error.rdkafka_error_code(), said(error));
        let mut first = self.first.lock().unwrap_or_else(PoisonError::into_inner);
        first.get_or_insert(Failure { partition: message.partition(), code, because });
    }
}

/// Sends messages to one topic.
pub struct Publisher {
    producer: BaseProducer<Reports>,
    target: Target,
    partitions: usize,
    created: bool,
    waiting_told: bool,
}

impl Publisher {
    /// Connects to `brokers` and finds the topic; creates it, with `create` partitions, if it is missing and that is
    /// given. `properties` are librdkafka's.
    ///
    /// # Errors
    /// When no broker is there, the topic is not, or a property cannot be set.
    pub fn open<'a>(
        brokers: &str,
        topic: &str,
        properties: impl IntoIterator<Item = (&'a str, &'a str)>,
        create: Option<u32>,
    ) -> Result<Self> {
        let mut target = Target::new(brokers, topic);
        target.properties.extend(properties.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())));
        Publisher::to(target, create)
    }

    pub(super) fn to(target: Target, create: Option<u32>) -> Result<Self> {
        if target.properties.contains_key("transactional.id") {
            let error = Error::usage("the Kafka property transactional.id cannot be set").at(target.describe());
            return Err(error.help("leave the property away"));
        }
        let config = target.configure(DEFAULTS, NEEDED)?;
        let producer: BaseProducer<Reports> =
            config.create_with_context(Reports::default()).map_err(|error| not_made(&target, &error))?;
        let served = || (0..100).for_each(|_| producer.poll(Duration::ZERO));
        let find = || find_topic(producer.client(), &target, &producer.context().words, served);
        let (ids, created) = match (find()?, create) {
            (Lookup::There(ids), _) => (ids, false),
            (Lookup::Unknown(similar), None) => return Err(no_topic(&target, &similar)),
            (Lookup::Unknown(_), Some(partitions)) => {
                create_topic(&target, &config, partitions)?;
                match find()? {
                    Lookup::There(ids) => (ids, true),
                    Lookup::Unknown(similar) => return Err(no_topic(&target, &similar)),
                }
            }
        };
        Ok(Publisher { producer, target, partitions: ids.len(), created, waiting_told: false })
    }

    /// How many partitions the topic has, and whether it was created just now.
    pub fn partitions(&self) -> (usize, bool) {
        (self.partitions, self.created)
    }

    /// How many messages have been acknowledged so far.
    pub fn delivered(&self) -> u64 {
        self.producer.context().delivered.load(Ordering::Relaxed)
    }

    /// Sends a message, without waiting for its acknowledgement; waits while too many are on their way. Messages with
    /// equal keys go to one partition, in order. `at_ms` is its time stamp; without one it is now.
    ///
    /// # Errors
    /// When the message cannot be sent, or one before it was not delivered.
    pub fn send(&mut self, key: Option<&[u8]>, payload: &[u8], at_ms: Option<i64>) -> Result<()> {
        self.post(None, key, payload, at_ms)
    }

    /// Sends a message to this partition, whatever its key; else as [`Publisher::send`].
    ///
    /// # Errors
    /// As [`Publisher::send`], and when there is no such partition.
    pub fn send_to(&mut self, partition: u32, key: Option<&[u8]>, payload: &[u8], at_ms: Option<i64>) -> Result<()> {
        self.post(Some(partition as i32), key, payload, at_ms)
    }

    fn post(&mut self, partition: Option<i32>, key: Option<&[u8]>, payload: &[u8], at_ms: Option<i64>) -> Result<()> {
        let topic = self.target.topic.clone();
        let mut record = BaseRecord::<[u8], [u8]>::to(&topic).payload(payload);
        record.partition = partition;
        record.key = key;
        record.timestamp = at_ms;
        let mut since = None;
        loop {
            self.check()?;
            record = match self.producer.send(record) {
                Ok(()) => return Ok(()),
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), record)) => record,
                Err((error, _)) => {
                    let error = Error::new("cannot send a message").because(said(&error));
                    return Err(error.at(self.target.describe()).help("check --kafka-config"));
                }
            };
            self.wait(&mut since);
        }
    }

    /// Takes note of acknowledgements that have come.
    ///
    /// # Errors
    /// When a message was not delivered.
    pub fn serve(&mut self) -> Result<()> {
        self.producer.poll(Duration::ZERO);
        self.check()
    }

    /// Waits until every message sent so far has been acknowledged.
    ///
    /// # Errors
    /// When one was not delivered.
    pub fn settle(&mut self) -> Result<()> {
        let mut since = None;
        while self.producer.in_flight_count() > 0 {
            self.wait(&mut since);
        }
        if std::mem::take(&mut self.waiting_told) {
            eprintln!("the messages to {} were taken", self.target.describe());
        }
        self.check()
    }

    /// Waits a little for acknowledgements; tells, once, if it has been waiting for long.
    fn wait(&mut self, since: &mut Option<(Instant, u64)>) {
        let before = self.delivered();
        // Never the library's `flush`, which sleeps in steps of 100 ms.
        self.producer.poll(Duration::from_millis(1));
        let now = Instant::now();
        let (begun, _) = *since.get_or_insert((now, before));
        if self.delivered() > before {
            *since = None;
        } else if now - begun > PATIENCE && !self.waiting_told {
            self.waiting_told = true;
            eprintln!("{} takes no messages, waiting", self.target.describe());
        }
    }

    fn check(&self) -> Result<()> {
        let reports = self.producer.context();
        let failed = reports.failed.load(Ordering::Relaxed);
        if failed == 0 {
            return Ok(());
        }
        let first = reports.first.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let what = format!("{failed} messages were not delivered");
        let error = Error::new(if failed == 1 { String::from("a message was not delivered") } else { what });
        let Some(Failure { partition, code, because }) = first else { return Err(error.at(self.target.describe())) };
        let at = if partition < 0 { String::new() } else { format!(", partition {partition}") };
        let error = error.at(format!("{}{at}", self.target.describe())).because(because);
        Err(match code {
            Some(RDKafkaErrorCode::MessageSizeTooLarge) => {
                error.help("raise the topic's max.message.bytes, or send smaller messages")
            }
            Some(RDKafkaErrorCode::MessageTimedOut) => error.help("check that the brokers are up and reachable"),
            _ => error,
        })
    }
}

/// Creates the topic, with as many replicas as the brokers have for their default.
fn create_topic(target: &Target, config: &ClientConfig, partitions: u32) -> Result<()> {
    let failed = |because: String| {
        Error::new(format!("cannot create the topic {}", target.topic)).at(&target.brokers).because(because)
    };
    let mut admin_config = ClientConfig::new();
    // Of the properties only those of the connection mean something to an administrator.
    for (key, value) in config.config_map() {
        if ["bootstrap.", "security.", "sasl.", "ssl.", "client."].iter().any(|prefix| key.starts_with(prefix)) {
            admin_config.set(key, value);
        }
    }
    admin_config.set_log_level(config.log_level);
    let admin: AdminClient<DefaultClientContext> = admin_config.create().map_err(|error| not_made(target, &error))?;
    let count = i32::try_from(partitions).map_err(|_| failed(format!("{partitions} partitions are too many")))?;
    let topic = NewTopic::new(&target.topic, count, TopicReplication::Fixed(-1));
    let options = AdminOptions::new().request_timeout(Some(Duration::from_secs(10)));
    let results = wait_for(admin.create_topics([&topic], &options)).map_err(|error| failed(said(&error)))?;
    for result in results {
        match result {
            Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
            Err((_, code)) => return Err(failed(in_words(code))),
        }
    }
    Ok(())
}

/// Wakes a thread that waits for a future.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Waits for a future on this thread.
fn wait_for<F: Future>(future: F) -> F::Output {
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut context = Context::from_waker(&waker);
    let mut future = std::pin::pin!(future);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return output;
        }
        std::thread::park();
    }
}
