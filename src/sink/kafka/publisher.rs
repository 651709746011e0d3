//! Sends messages to a topic, and knows of each what became of it; with an id for transactions, in transactions.
//!
//! Invariants: a message counts as delivered only after the broker has acknowledged it to the idempotent producer, from
//! all in-sync replicas; the first failure is kept and every later call returns it. Of the producers with one id for
//! transactions only the one that was opened last can still send or commit anything.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::ClientContext;
use rdkafka::admin::{AdminOptions, NewTopic, TopicReplication};
use rdkafka::config::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Message};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer, ProducerContext, PurgeConfig};

use crate::error::{Error, Result};
use crate::source::kafka::admin::{administrator, wait_for};
use crate::source::kafka::client::{LastWords, Lookup, Target, find_topic, in_words, look, no_topic, not_made, said};

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

/// In transactions brokers often ask to come again at once: the end of the last one is still under way.
const DEFAULTS_OF_TRANSACTIONS: &[(&str, &str)] =
    &[("retry.backoff.ms", "2"), ("retry.backoff.max.ms", "10"), ("transaction.timeout.ms", "120000")];

const NEEDED: &[(&str, &str)] =
    &[("enable.idempotence", "true"), ("acks", "all"), ("allow.auto.create.topics", "false")];

/// How long a wait for the broker is before it is told.
const PATIENCE: Duration = Duration::from_secs(2);

/// How long the broker may take to end what an earlier producer with the same id had begun.
const INIT_PATIENCE: Duration = Duration::from_secs(60);

/// How long it may take to abort a transaction that is not wanted: the broker aborts it later in any case.
const ABORT_PATIENCE: Duration = Duration::from_secs(2);

/// How often it is asked whether the transaction can still succeed, while messages are not acknowledged.
const DOUBT: Duration = Duration::from_millis(100);

/// What became of the messages.
#[derive(Debug, Default)]
struct Reports {
    words: LastWords,
    delivered: AtomicU64,
    failed: AtomicU64,
    first: Mutex<Option<Failure>>,
    /// The topic whose offsets are kept, and the greatest that was acknowledged of each partition.
    ends: Option<(String, Mutex<BTreeMap<i32, i64>>)>,
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
        let (error, message) = match result {
            Ok(message) => {
                self.delivered.fetch_add(1, Ordering::Relaxed);
                if let Some((topic, ends)) = &self.ends
                    && topic == message.topic()
                {
                    let mut ends = ends.lock().unwrap_or_else(PoisonError::into_inner);
                    let end = ends.entry(message.partition()).or_insert(0);
                    *end = (*end).max(message.offset() + 1);
                }
                return;
            }
            Err(failed) => failed,
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
    /// How long a transaction may take, if messages are sent in transactions.
    limit: Option<Duration>,
    /// Since when there is a transaction.
    begun: Option<Instant>,
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
        Publisher::with(target, create, None)
    }

    /// As [`Publisher::open`], for messages in transactions under this id: ends what any other producer of this id has
    /// begun, and keeps it from everything from now on.
    pub(super) fn transactional(target: Target, create: Option<u32>, id: &str) -> Result<Self> {
        let publisher = Publisher::with(target, create, Some(id))?;
        let begun = Instant::now();
        loop {
            match publisher.producer.init_transactions(PATIENCE) {
                Ok(()) => return Ok(publisher),
                Err(KafkaError::Transaction(error)) if error.is_retriable() && begun.elapsed() < INIT_PATIENCE => {}
                Err(error) => {
                    let failed = Error::new("cannot begin transactions").at(publisher.target.describe());
                    return Err(failed.because(told(&error)).help("check the brokers and --kafka-config"));
                }
            }
        }
    }

    fn with(target: Target, create: Option<u32>, id: Option<&str>) -> Result<Self> {
        if target.properties.contains_key("transactional.id") {
            let error = Error::usage("the Kafka property transactional.id cannot be set").at(target.describe());
            return Err(error.help("leave the property away"));
        }
        let config = match id {
            None => target.configure(DEFAULTS, NEEDED)?,
            Some(id) => {
                let needed = [NEEDED, &[("transactional.id", id)]].concat();
                target.configure(&[DEFAULTS, DEFAULTS_OF_TRANSACTIONS].concat(), &needed)?
            }
        };
        let limit = id.and(config.get("transaction.timeout.ms")).and_then(|text| text.parse().ok());
        let ends = id.map(|_| (target.topic.clone(), Mutex::default()));
        let producer: BaseProducer<Reports> = config
            .create_with_context(Reports { ends, ..Reports::default() })
            .map_err(|error| not_made(&target, &error))?;
        let (partitions, created) = find_or_create(&producer, &config, &target, create, &[])?;
        let limit = limit.map(Duration::from_millis);
        Ok(Publisher { producer, target, partitions, created, waiting_told: false, limit, begun: None })
    }

    /// Makes sure that a topic at the same brokers is there; `settings` are the topic's.
    pub(super) fn prepare(&self, topic: &Target, partitions: u32, settings: &[(&str, &str)]) -> Result<()> {
        let config = topic.configure(DEFAULTS, NEEDED)?;
        find_or_create(&self.producer, &config, topic, Some(partitions), settings).map(drop)
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
        self.post(None, None, key, payload, at_ms)
    }

    /// Sends a message to this partition, whatever its key; else as [`Publisher::send`].
    ///
    /// # Errors
    /// As [`Publisher::send`], and when there is no such partition.
    pub fn send_to(&mut self, partition: u32, key: Option<&[u8]>, payload: &[u8], at_ms: Option<i64>) -> Result<()> {
        self.post(None, Some(partition as i32), key, payload, at_ms)
    }

    /// Sends a message to partition 0 of another topic; else as [`Publisher::send`].
    pub(super) fn send_aside(&mut self, topic: &str, key: &[u8], payload: &[u8]) -> Result<()> {
        self.post(Some(topic), Some(0), Some(key), payload, None)
    }

    fn post(
        &mut self,
        topic: Option<&str>,
        partition: Option<i32>,
        key: Option<&[u8]>,
        payload: &[u8],
        at_ms: Option<i64>,
    ) -> Result<()> {
        let topic = topic.unwrap_or(&self.target.topic).to_owned();
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
                    if let Some(why) = self.is_hopeless() {
                        return Err(why);
                    }
                    let error = Error::new("cannot send a message").because(said(&error));
                    return Err(error.at(self.target.describe()).help("check --kafka-config"));
                }
            };
            self.wait(&mut since)?;
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
            self.wait(&mut since)?;
            self.check()?;
        }
        if std::mem::take(&mut self.waiting_told) {
            tracing::info!("the messages to {} were taken", self.target.describe());
        }
        self.check()
    }

    /// Waits a little for acknowledgements; tells, once, if it has been waiting for long.
    fn wait(&mut self, waiting: &mut Option<Waiting>) -> Result<()> {
        let before = self.delivered();
        // Never the library's `flush`, which sleeps in steps of 100 ms.
        self.producer.poll(Duration::from_millis(1));
        let now = Instant::now();
        let Waiting { since, asked } = waiting.get_or_insert(Waiting { since: now, asked: now });
        if self.delivered() > before {
            *waiting = None;
            return Ok(());
        }
        if now - *since > PATIENCE && !self.waiting_told {
            self.waiting_told = true;
            tracing::warn!("{} takes no messages, waiting", self.target.describe());
        }
        // Messages of a transaction that has failed are neither sent nor given up.
        if now - *asked > DOUBT {
            *asked = now;
            self.is_hopeless().map_or(Ok(()), Err)?;
        }
        Ok(())
    }

    /// Begins a transaction, unless there is one.
    ///
    /// # Errors
    /// When another producer of the same id was opened, or an earlier transaction was not ended.
    pub(super) fn begin(&mut self) -> Result<()> {
        if self.begun.is_none() {
            self.producer.begin_transaction().map_err(|error| self.failed("begin a transaction", &error))?;
            self.begun = Some(Instant::now());
        }
        Ok(())
    }

    /// Commits the transaction: what was sent in it is there, at once and for good. All of it has to be acknowledged.
    ///
    /// # Errors
    /// When another producer of the same id was opened, or the brokers do not take it; it is then not known whether it
    /// is committed.
    pub(super) fn commit(&mut self) -> Result<()> {
        let since = Instant::now();
        loop {
            match self.producer.commit_transaction(PATIENCE) {
                Ok(()) => break,
                Err(KafkaError::Transaction(error))
                    if error.is_retriable() && since.elapsed() < self.limit.unwrap_or_default() + INIT_PATIENCE => {}
                Err(error) => return Err(self.failed("commit a transaction", &error)),
            }
            if !std::mem::replace(&mut self.waiting_told, true) {
                tracing::warn!("{} takes no transaction, waiting", self.target.describe());
            }
        }
        if std::mem::take(&mut self.waiting_told) {
            tracing::info!("the transaction of {} was taken", self.target.describe());
        }
        self.begun = None;
        Ok(())
    }

    /// Aborts the transaction, if there is one, so that readers need not wait until the brokers do.
    pub(super) fn abort(&mut self) {
        if self.begun.take().is_none() || self.producer.client().fatal_error().is_some() {
            return;
        }
        self.producer.purge(PurgeConfig::default().queue().inflight());
        let since = Instant::now();
        while self.producer.in_flight_count() > 0 && since.elapsed() < ABORT_PATIENCE {
            self.producer.poll(Duration::from_millis(1));
        }
        // If it fails, the brokers abort it when its time is over, or when the next producer of its id is opened.
        let _aborted = self.producer.abort_transaction(ABORT_PATIENCE);
    }

    /// The offset behind the last message that was acknowledged, for each partition that any was sent to.
    pub(super) fn ends(&self) -> BTreeMap<i32, i64> {
        let ends = self.producer.context().ends.as_ref();
        ends.map(|(_, ends)| ends.lock().unwrap_or_else(PoisonError::into_inner).clone()).unwrap_or_default()
    }

    /// Why the transaction that is under way can no longer be committed, if it cannot.
    fn is_hopeless(&self) -> Option<Error> {
        self.begun?;
        // What it answers in the middle of a transaction says what became of that one, and changes nothing.
        match self.producer.begin_transaction() {
            Err(KafkaError::Transaction(error)) if error.is_fatal() || error.txn_requires_abort() => {
                Some(self.failed("send messages in a transaction", &KafkaError::Transaction(error)))
            }
            _ => None,
        }
    }

    /// Says why a transaction failed.
    fn failed(&self, to: &str, error: &KafkaError) -> Error {
        let fatal = self.producer.client().fatal_error().map(|(code, _)| code);
        let code = fatal.or_else(|| error.rdkafka_error_code());
        let failed = Error::new(format!("cannot {to}")).at(self.target.describe());
        let took = self.begun.map(|begun| begun.elapsed()).unwrap_or_default();
        if let Some(limit) = self.limit.filter(|limit| took > *limit) {
            let why = format!("it took more than {} s, and the brokers have aborted it", limit.as_secs());
            return failed.because(why).help("raise transaction.timeout.ms with --kafka-config");
        }
        if code.is_some_and(is_fenced) {
            let why = "another process has taken over: it has been started with the same state";
            return failed.because(why).help("leave the state to that process, or end it and start again");
        }
        failed.because(told(error))
    }

    fn check(&self) -> Result<()> {
        let reports = self.producer.context();
        let failed = reports.failed.load(Ordering::Relaxed);
        if failed == 0 {
            return Ok(());
        }
        // Of a transaction that has failed, this says more than what it did to messages.
        self.is_hopeless().map_or(Ok(()), Err)?;
        let first = reports.first.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let what = format!("{failed} messages were not delivered");
        let error = Error::new(if failed == 1 { String::from("a message was not delivered") } else { what });
        let Some(Failure { partition, code, because }) = first else { return Err(error.at(self.target.describe())) };
        let at = if partition < 0 { String::new() } else { format!(", partition {partition}") };
        let error = error.at(format!("{}{at}", self.target.describe())).because(because);
        Err(match code {
            Some(code) if is_fenced(code) => self.failed("send messages", &KafkaError::MessageProduction(code)),
            Some(RDKafkaErrorCode::MessageSizeTooLarge) => {
                error.help("raise the topic's max.message.bytes, or send smaller messages")
            }
            Some(RDKafkaErrorCode::MessageTimedOut) => error.help("check that the brokers are up and reachable"),
            _ => error,
        })
    }
}

/// How long nothing has come.
struct Waiting {
    since: Instant,
    /// When it was last asked whether anything can come.
    asked: Instant,
}

/// Whether an error says that another producer of the same id was opened.
fn is_fenced(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode::{Fenced, InvalidProducerEpoch, ProducerFenced};
    matches!(code, Fenced | ProducerFenced | InvalidProducerEpoch)
}

/// What the library says of an error of a transaction, which it words best itself.
fn told(error: &KafkaError) -> String {
    match error {
        KafkaError::Transaction(error) => error.string(),
        error => said(error),
    }
}

/// Finds a topic, or creates it; how many partitions it has, and whether it was created.
fn find_or_create(
    producer: &BaseProducer<Reports>,
    config: &ClientConfig,
    target: &Target,
    create: Option<u32>,
    settings: &[(&str, &str)],
) -> Result<(usize, bool)> {
    let served = || (0..100).for_each(|_| producer.poll(Duration::ZERO));
    let find = || find_topic(producer.client(), target, &producer.context().words, served);
    let Some(wanted) = create else {
        return match find()? {
            Lookup::There(ids) => Ok((ids.len(), false)),
            Lookup::Unknown(similar) => Err(no_topic(target, &similar)),
        };
    };
    // To create one that is there does no harm, so that it is asked for once and not for as long as it may be unknown.
    let unknown = matches!(look(producer.client(), &target.topic, PATIENCE), Ok(Some(Lookup::Unknown(_))));
    let created = unknown && create_topic(target, config, wanted, settings)?;
    match find()? {
        Lookup::There(ids) => Ok((ids.len(), created)),
        Lookup::Unknown(_) if !created => {
            create_topic(target, config, wanted, settings)?;
            find_or_create(producer, config, target, None, settings).map(|(partitions, _)| (partitions, true))
        }
        Lookup::Unknown(similar) => Err(no_topic(target, &similar)),
    }
}

/// Creates the topic, with as many replicas as the brokers have for their default; whether it was not there yet.
fn create_topic(target: &Target, config: &ClientConfig, partitions: u32, settings: &[(&str, &str)]) -> Result<bool> {
    let failed = |because: String| {
        Error::new(format!("cannot create the topic {}", target.topic)).at(&target.brokers).because(because)
    };
    let admin = administrator(target, config)?;
    let count = i32::try_from(partitions).map_err(|_| failed(format!("{partitions} partitions are too many")))?;
    let topic = NewTopic::new(&target.topic, count, TopicReplication::Fixed(-1));
    let topic = settings.iter().fold(topic, |topic, (key, value)| topic.set(key, value));
    let options = AdminOptions::new().request_timeout(Some(Duration::from_secs(10)));
    let results = wait_for(admin.create_topics([&topic], &options)).map_err(|error| failed(said(&error)))?;
    let mut created = false;
    for result in results {
        match result {
            Ok(_) => created = true,
            Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
            Err((_, code)) => return Err(failed(in_words(code))),
        }
    }
    Ok(created)
}
