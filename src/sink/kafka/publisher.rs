//! Sends messages to a topic and tracks their delivery; with a transactional id, in transactions: see `transaction`.
//!
//! Invariants: a message counts as delivered only after the broker has acknowledged it to the idempotent producer, from
//! all in-sync replicas; the first failure is kept, and every later call returns it.

mod transaction;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

use super::events::{DeliveryFailure, OffsetRegression, ProducerEvents};
use super::message::{MessageHeader, OutgoingMessage};
use super::send_errors::{is_fenced, is_permanent, lost_records, remedy};
use super::topics::find_or_create;
use crate::durable::FencingCheck;
use crate::error::{Error, ErrorKind, Result};
use crate::source::kafka::broker_errors::error_text;
use crate::source::kafka::client::{TopicConfig, client_not_created};
use crate::source::kafka::topic_lookup::{
    TopicLookup, check_leaders, find_topic, find_topic_within, look_up_topic, no_topic,
};

const DEFAULTS: &[(&str, &str)] = &[
    // Batches fill while others are in flight, so waiting longer gains little.
    ("linger.ms", "1"),
    // The broker decides which messages are too large.
    ("message.max.bytes", "1000000000"),
    ("queue.buffering.max.messages", "200000"),
    ("queue.buffering.max.kbytes", "131072"),
    // Partitions are those that Java clients choose for the same key.
    ("partitioner", "murmur2_random"),
    // Built into the client library, and cheaper than the bytes that it saves.
    ("compression.type", "lz4"),
    ("reconnect.backoff.max.ms", "1000"),
];

/// Further defaults for transactions, with short retries: brokers often reject the first request of a transaction for a
/// moment, because the end of the last one is in progress.
const DEFAULTS_OF_TRANSACTIONS: &[(&str, &str)] =
    &[("retry.backoff.ms", "2"), ("retry.backoff.max.ms", "10"), ("transaction.timeout.ms", "120000")];

const NEEDED: &[(&str, &str)] =
    &[("enable.idempotence", "true"), ("acks", "all"), ("allow.auto.create.topics", "false")];

/// Waits for the broker longer than this are logged.
const LOG_WAIT_AFTER_PUBLISH: Duration = Duration::from_secs(2);

/// Pause between two looks for acknowledgements, and the time after which the pause is long: brokers that answer do so
/// within a few milliseconds, and a commit waits for them.
const SHORT_PAUSE: Duration = Duration::from_micros(200);
const SHORT_WAIT: Duration = Duration::from_millis(100);
const LONG_PAUSE: Duration = Duration::from_millis(5);

/// Interval of checks that the transaction can still succeed, while messages are not acknowledged.
const HEALTH_INTERVAL: Duration = Duration::from_millis(100);

/// Longest wait for the broker to end the transaction of an earlier producer with the same id.
pub(super) const INIT_TIMEOUT: Duration = Duration::from_secs(60);

/// Longest wait of a transaction for any acknowledgement, before it is repeated by a new producer. The library may lose
/// the brokers for good: when their list was empty for a moment, as it is while the only one of them starts or has
/// missed its heartbeats, a producer of transactions may never connect again
/// (<https://github.com/confluentinc/librdkafka/issues/5301>).
const SILENCE_LIMIT: Duration = Duration::from_secs(10);

/// Greatest value that the limit grows to, by doublings, while transactions fail for it: slow brokers get more time.
const MOST_SILENCE: Duration = Duration::from_secs(160);

/// Longest wait for the brokers to report whether a topic still exists.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(1);

/// Producer of messages to one topic.
pub struct Publisher {
    producer: BaseProducer<ProducerEvents>,
    target: TopicConfig,
    partitions: usize,
    created: bool,
    wait_logged: bool,
    /// Transaction timeout; `None` if messages are not sent in transactions.
    limit: Option<Duration>,
    /// Longest wait of a transaction for any acknowledgement.
    silence_limit: Duration,
    /// Start of the open transaction; `None` if none is open.
    transaction_start: Option<Instant>,
    /// Value of the producer's `doubts` when the transaction began.
    doubts: u64,
    /// `true` if a transaction of this producer was ever in doubt.
    doubtful: bool,
    /// Called during long waits; an error ends them.
    still_current: Option<FencingCheck>,
}

impl Publisher {
    /// Connects to `brokers` and finds the topic. If it is missing, it is created with `create` partitions if that is
    /// `Some`. `properties` are librdkafka's.
    ///
    /// # Errors
    /// Fails if no broker is reachable, if the topic is missing and not to be created, or if a property cannot be set.
    pub fn open<'a>(
        brokers: &str,
        topic: &str,
        properties: impl IntoIterator<Item = (&'a str, &'a str)>,
        create: Option<u32>,
    ) -> Result<Self> {
        let mut topic_config = TopicConfig::new(brokers, topic);
        properties.into_iter().for_each(|(key, value)| topic_config.properties.set(key, value));
        Publisher::to(topic_config, create)
    }

    pub(super) fn to(topic_config: TopicConfig, create: Option<u32>) -> Result<Self> {
        let mut publisher = Publisher::with(topic_config, None)?;
        publisher.find_or_create(create)?;
        Ok(publisher)
    }

    fn with(topic_config: TopicConfig, id: Option<&str>) -> Result<Self> {
        if topic_config.properties.contains("transactional.id") {
            let error = Error::usage("the Kafka property transactional.id cannot be set").at(topic_config.describe());
            return Err(error.help("remove the property"));
        }
        let (config, reports) = match id {
            None => (topic_config.configure(DEFAULTS, NEEDED)?, ProducerEvents::default()),
            Some(id) => {
                let needed = [NEEDED, &[("transactional.id", id)]].concat();
                let mut config = topic_config.configure(&[DEFAULTS, DEFAULTS_OF_TRANSACTIONS].concat(), &needed)?;
                // Its lines report doubt: see `events`.
                config.set("debug", "broker").set_log_level(RDKafkaLogLevel::Debug);
                (config, ProducerEvents::tracking_offsets())
            }
        };
        let limit = id.and(config.get("transaction.timeout.ms")).and_then(|text| text.parse().ok());
        let producer: BaseProducer<ProducerEvents> =
            config.create_with_context(reports).map_err(|error| client_not_created(&topic_config, &error))?;
        let limit = limit.map(Duration::from_millis);
        Ok(Publisher {
            producer,
            target: topic_config,
            partitions: 0,
            created: false,
            wait_logged: false,
            limit,
            silence_limit: SILENCE_LIMIT,
            transaction_start: None,
            doubts: 0,
            doubtful: false,
            still_current: None,
        })
    }

    /// Asks the brokers for the topic; while they do not know it, asks again for up to `patience`.
    fn look_up(&self, patience: Duration) -> Result<TopicLookup> {
        let last_error = &self.producer.context().last_error;
        find_topic_within(self.producer.client(), &self.target, last_error, || self.serve_events(), patience)
    }

    /// Checks that the topic's leaders answer at their advertised addresses.
    fn check_leaders(&self) -> Result<()> {
        check_leaders(self.producer.client(), &self.target, &self.producer.context().last_error, || self.serve_events())
    }

    /// Finds the topic. If it is missing, it is created with `create` partitions if that is `Some`.
    ///
    /// # Errors
    /// Fails if the topic is missing and not to be created, or cannot be created.
    pub(super) fn find_or_create(&mut self, create: Option<u32>) -> Result<()> {
        if self.partitions > 0 {
            return Ok(());
        }
        (self.partitions, self.created) = find_or_create(&self.producer, &self.target, create, &[])?;
        self.check_leaders()
    }

    /// Sets a check that ends long waits when it returns an error.
    pub(super) fn wait_while(&mut self, still_current: FencingCheck) {
        self.still_current = Some(still_current);
    }

    /// `true` if a topic at the same brokers exists.
    pub(super) fn topic_exists(&self, topic: &TopicConfig) -> Result<bool> {
        let last_error = &self.producer.context().last_error;
        let found = find_topic(self.producer.client(), topic, last_error, || self.serve_events())?;
        Ok(matches!(found, TopicLookup::There(_)))
    }

    /// Creates a topic at the same brokers if it is missing, with these settings.
    pub(super) fn ensure_topic(&self, topic: &TopicConfig, partitions: u32, settings: &[(&str, &str)]) -> Result<()> {
        find_or_create(&self.producer, topic, Some(partitions), settings).map(drop)
    }

    /// Returns the number of the topic's partitions, and `true` if this producer created the topic.
    pub fn partitions(&self) -> (usize, bool) {
        (self.partitions, self.created)
    }

    /// Returns the number of messages acknowledged so far.
    pub fn delivered(&self) -> u64 {
        self.producer.context().delivered()
    }

    /// Returns the number of messages that are sent and not acknowledged yet.
    #[cfg(feature = "cli")]
    pub(crate) fn in_flight(&self) -> usize {
        usize::try_from(self.producer.in_flight_count()).unwrap_or(0)
    }

    /// Sends a message without waiting for its acknowledgement; waits while too many are in flight. Messages with equal
    /// keys go to one partition, in order. `at_ms` is the message's timestamp in milliseconds since 1970; `None` stands
    /// for now.
    ///
    /// # Errors
    /// Fails if the message cannot be sent, or if an earlier one was not delivered.
    pub fn send(&mut self, key: Option<&[u8]>, payload: &[u8], at_ms: Option<i64>) -> Result<()> {
        self.post(&OutgoingMessage { key, value: Some(payload), at_ms, ..OutgoingMessage::default() })
    }

    /// Sends a message with these headers; otherwise like [`Publisher::send`].
    ///
    /// # Errors
    /// Fails as [`Publisher::send`] does.
    pub fn send_with(&mut self, key: Option<&[u8]>, payload: &[u8], headers: &[MessageHeader]) -> Result<()> {
        self.post(&OutgoingMessage { key, value: Some(payload), headers, ..OutgoingMessage::default() })
    }

    /// Sends a message to this partition, whatever its key; otherwise like [`Publisher::send`].
    ///
    /// # Errors
    /// Fails as [`Publisher::send`] does, and if there is no such partition.
    pub fn send_to(&mut self, partition: u32, key: Option<&[u8]>, payload: &[u8], at_ms: Option<i64>) -> Result<()> {
        let (partition, value) = (Some(partition as i32), Some(payload));
        self.post(&OutgoingMessage { partition, key, value, at_ms, ..OutgoingMessage::default() })
    }

    /// Sends a message with everything that it has; otherwise like [`Publisher::send`].
    pub(super) fn post(&mut self, message: &OutgoingMessage<'_>) -> Result<()> {
        let topic = message.topic.unwrap_or(&self.target.topic).to_owned();
        let mut record = BaseRecord::<[u8], [u8]>::to(&topic);
        (record.partition, record.key, record.payload) = (message.partition, message.key, message.value);
        record.timestamp = message.at_ms;
        if !message.headers.is_empty() {
            let headers = OwnedHeaders::new_with_capacity(message.headers.len());
            record.headers = Some(
                message
                    .headers
                    .iter()
                    .fold(headers, |headers, (key, value)| headers.insert(Header { key, value: value.as_ref() })),
            );
        }
        let mut since = None;
        loop {
            self.check()?;
            record = match self.producer.send(record) {
                Ok(()) => return Ok(()),
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), record)) => record,
                Err((error, _)) => {
                    self.check()?;
                    if let Some(why) = self.abort_reason() {
                        return Err(why);
                    }
                    let failed = Error::of(ErrorKind::SinkFailed, "cannot send a message");
                    let failed = failed.because(error_text(&error)).caused_by(error);
                    return Err(failed.at(self.target.describe()).help("check --kafka-config"));
                }
            };
            self.wait(&mut since)?;
        }
    }

    /// Processes the acknowledgements that have arrived.
    ///
    /// # Errors
    /// Fails if a message was not delivered.
    pub fn poll(&mut self) -> Result<()> {
        self.serve_events();
        self.check()
    }

    /// Waits until every message sent so far has been acknowledged.
    ///
    /// # Errors
    /// Fails if a message was not delivered.
    pub fn flush(&mut self) -> Result<()> {
        let mut since = None;
        while self.producer.in_flight_count() > 0 {
            self.wait(&mut since)?;
            self.check()?;
        }
        if std::mem::take(&mut self.wait_logged) {
            tracing::info!("{} has accepted the messages", self.target.describe());
        }
        self.check()
    }

    /// Waits a moment for acknowledgements; logs, once, a wait that is long.
    fn wait(&mut self, waiting: &mut Option<DeliveryWait>) -> Result<()> {
        let before = self.delivered();
        self.serve_events();
        let now = Instant::now();
        let DeliveryWait { since, asked, told } =
            waiting.get_or_insert(DeliveryWait { since: now, asked: now, told: now });
        if self.delivered() > before {
            *waiting = None;
            return Ok(());
        }
        std::thread::sleep(if now - *since < SHORT_WAIT { SHORT_PAUSE } else { LONG_PAUSE });
        if now - *since > LOG_WAIT_AFTER_PUBLISH && !self.wait_logged {
            self.wait_logged = true;
            let why = self.producer.context().last_error.reason().map_or(String::new(), |why| format!(": {why}"));
            tracing::warn!("{} accepts no messages, waiting{why}", self.target.describe());
        }
        // Messages of a transaction that has failed are neither sent nor given up.
        if now - *asked > HEALTH_INTERVAL {
            *asked = now;
            self.abort_reason().map_or(Ok(()), Err)?;
        }
        let silence = now - *since;
        if now - *told > LOG_WAIT_AFTER_PUBLISH {
            *told = now;
            self.check_current()?;
            self.check_topics()?;
        }
        match self.transaction_start {
            Some(_) if silence > self.silence_limit => Err(self.silent("send messages in a transaction")),
            _ => Ok(()),
        }
    }

    /// Checks that the brokers still know the topics of the messages that are waited for. The library waits for a topic
    /// that was deleted until its messages time out, which takes minutes.
    fn check_topics(&self) -> Result<()> {
        let mut topics = self.producer.context().topics();
        topics.insert(self.target.topic.clone());
        for topic in topics {
            let topic = TopicConfig { topic, ..self.target.clone() };
            // An answer that is no certain one is no reason to stop waiting.
            let answer = look_up_topic(self.producer.client(), &topic.topic, HEALTH_TIMEOUT);
            if !matches!(answer, Ok(Some(TopicLookup::Unknown(_)))) {
                continue;
            }
            let last_error = &self.producer.context().last_error;
            if let Ok(TopicLookup::Unknown(similar)) =
                find_topic(self.producer.client(), &topic, last_error, || self.serve_events())
            {
                return Err(no_topic(ErrorKind::SinkFailed, &topic, &similar).transient());
            }
        }
        Ok(())
    }

    /// Checks that waiting may go on.
    fn check_current(&self) -> Result<()> {
        self.still_current.as_ref().map_or(Ok(()), |still_current| still_current())
    }

    /// Serves the library's events, acknowledgements among them, until no more are there: a call of the library serves
    /// one, and while brokers cannot be reached it logs hundreds a second.
    ///
    /// The library's own waits are not used: its `flush` sleeps in steps of 100 ms, and its `poll` with a time limit spins
    /// through the last millisecond of the limit, and never returns before it.
    fn serve_events(&self) {
        let served = || self.producer.context().served();
        loop {
            let before = served();
            self.producer.poll(Duration::ZERO);
            if served() == before {
                return;
            }
        }
    }

    /// Returns the offset after the last acknowledged message of each partition of a topic.
    pub(super) fn ends(&self, topic: &str) -> BTreeMap<i32, i64> {
        self.producer.context().ends(topic)
    }

    /// Sets offsets that a topic is known to have reached: a message that gets a smaller one is an error.
    pub(super) fn expect(&self, topic: &str, ends: &BTreeMap<i32, i64>) {
        self.producer.context().expect_offsets(topic, ends);
    }

    /// Fails if a message was not delivered, or if a topic has lost messages.
    fn check(&self) -> Result<()> {
        if let Some(lost) = self.producer.context().lost() {
            return Err(self.lost_error(&lost));
        }
        let (failed, first) = self.producer.context().failures();
        if failed == 0 {
            return Ok(());
        }
        // The failure of a transaction says more than its effect on messages.
        if !first.as_ref().and_then(|first| first.code).is_some_and(is_permanent) {
            self.abort_reason().map_or(Ok(()), Err)?;
        }
        let what = format!("{failed} messages were not delivered");
        let error = Error::of(
            ErrorKind::SinkFailed,
            if failed == 1 { String::from("a message was not delivered") } else { what },
        );
        let Some(DeliveryFailure { partition, code, because, cause }) = first else {
            return Err(error.at(self.target.describe()));
        };
        let at = if partition < 0 { String::new() } else { format!(", partition {partition}") };
        let error = error.at(format!("{}{at}", self.target.describe())).because(&because).caused_by(cause);
        Err(match code {
            Some(code) if is_fenced(code) => self.failed("send messages", &KafkaError::MessageProduction(code)),
            Some(RDKafkaErrorCode::MessageTimedOut) => {
                let because = self.with_last_error(&because);
                error.because(because).help("check that the brokers are up and reachable").transient()
            }
            Some(code) if is_permanent(code) => match remedy(code) {
                Some(remedy) => error.help(remedy),
                None => error,
            },
            _ => error.transient(),
        })
    }

    /// Returns the error for a topic that has lost messages.
    fn lost_error(&self, OffsetRegression { topic, partition, offset, end }: &OffsetRegression) -> Error {
        let place = TopicConfig { topic: topic.clone(), ..self.target.clone() };
        let why = format!("partition {partition} ended at offset {offset}, and had reached {end}");
        lost_records(&place, &why)
    }

    /// Adds the library's last connection error, which contains the address, to a cause.
    fn with_last_error(&self, why: &str) -> String {
        self.producer.context().last_error.reason().map_or_else(|| why.to_owned(), |reason| format!("{why} ({reason})"))
    }
}

/// State of a wait during which nothing has arrived.
struct DeliveryWait {
    since: Instant,
    /// Time of the last check that the transaction can still succeed.
    asked: Instant,
    /// Time of the last check whether to keep waiting.
    told: Instant,
}
