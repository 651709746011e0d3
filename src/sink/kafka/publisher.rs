//! Sends messages to a topic, and knows of each what became of it; with an id for transactions, in transactions.
//!
//! Invariants: a message counts as delivered only after the broker has acknowledged it to the idempotent producer, from
//! all in-sync replicas; the first failure is kept and every later call returns it. Of the producers with one id for
//! transactions only the one that was opened last can still send or commit anything. An error that passes, by
//! [`Error::passes`], leaves it open what became of the transaction: a new producer of the same id settles it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer, PurgeConfig};

use super::reports::{Failure, Lost, Reports};
use super::topics::find_or_create;
use crate::durable::StillCurrent;
use crate::error::{Error, Result};
use crate::source::kafka::client::{
    Lookup, Target, UNKNOWN_PATIENCE, find_topic, find_topic_within, last_words, no_topic, not_made, reach, said,
};

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

/// How many of the library's events are taken in at once at most.
const EVENTS: usize = 256;

/// How often it is asked whether the transaction can still succeed, while messages are not acknowledged.
const DOUBT: Duration = Duration::from_millis(100);

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
    /// How often there had been doubt before the transaction.
    doubts: u64,
    /// Whether there was any in a transaction of this producer.
    doubtful: bool,
    /// Asked during long waits; an error ends them.
    still_current: Option<StillCurrent>,
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
        let mut publisher = Publisher::with(target, None)?;
        publisher.find(create)?;
        Ok(publisher)
    }

    /// A producer for messages in transactions under this id: ends what any other producer of this id has begun, and
    /// keeps it from everything from now on. The topic is looked for: it may be missing only if it `may_be_new`.
    ///
    /// # Errors
    /// When no broker is there, or the brokers do not let it begin transactions.
    pub(super) fn transactional(target: Target, id: &str, may_be_new: bool) -> Result<Self> {
        let mut publisher = Publisher::with(target, Some(id))?;
        let patience = if may_be_new { Duration::ZERO } else { UNKNOWN_PATIENCE };
        publisher.partitions = match publisher.look(patience)? {
            Lookup::There(ids) => {
                publisher.reach()?;
                ids.len()
            }
            Lookup::Unknown(similar) if !may_be_new => return Err(no_topic(&publisher.target, &similar)),
            Lookup::Unknown(_) => 0,
        };
        let begun = Instant::now();
        loop {
            match publisher.producer.init_transactions(PATIENCE) {
                Ok(()) => return Ok(publisher),
                Err(KafkaError::Transaction(error)) if error.is_retriable() && begun.elapsed() < INIT_PATIENCE => {
                    publisher.serve_events();
                }
                Err(error) => {
                    let passes = matches!(&error, KafkaError::Transaction(error) if error.is_retriable());
                    let failed = Error::new("cannot begin transactions").at(publisher.target.describe());
                    let why = publisher.with_last_words(&told(&error));
                    let failed = failed.because(why).help("check the brokers and --kafka-config");
                    return Err(if passes { failed.passing() } else { failed });
                }
            }
        }
    }

    fn with(target: Target, id: Option<&str>) -> Result<Self> {
        if target.properties.contains_key("transactional.id") {
            let error = Error::usage("the Kafka property transactional.id cannot be set").at(target.describe());
            return Err(error.help("leave the property away"));
        }
        let (config, reports) = match id {
            None => (target.configure(DEFAULTS, NEEDED)?, Reports::default()),
            Some(id) => {
                let needed = [NEEDED, &[("transactional.id", id)]].concat();
                let mut config = target.configure(&[DEFAULTS, DEFAULTS_OF_TRANSACTIONS].concat(), &needed)?;
                // The lines that tell of doubt: see `reports`.
                config.set("debug", "broker").set_log_level(RDKafkaLogLevel::Debug);
                (config, Reports::keeping_ends())
            }
        };
        let limit = id.and(config.get("transaction.timeout.ms")).and_then(|text| text.parse().ok());
        let producer: BaseProducer<Reports> =
            config.create_with_context(reports).map_err(|error| not_made(&target, &error))?;
        let limit = limit.map(Duration::from_millis);
        Ok(Publisher {
            producer,
            target,
            partitions: 0,
            created: false,
            waiting_told: false,
            limit,
            begun: None,
            doubts: 0,
            doubtful: false,
            still_current: None,
        })
    }

    /// Asks the brokers for the topic; for so long again if they do not know it.
    fn look(&self, patience: Duration) -> Result<Lookup> {
        let words = &self.producer.context().words;
        find_topic_within(self.producer.client(), &self.target, words, || self.serve_events(), patience)
    }

    /// Checks that the brokers are where they say.
    fn reach(&self) -> Result<()> {
        reach(self.producer.client(), &self.target, &self.producer.context().words, || self.serve_events())
    }

    /// Finds the topic, or creates it with so many partitions if it is missing and may be created.
    ///
    /// # Errors
    /// When it is missing, or cannot be created.
    pub(super) fn find(&mut self, create: Option<u32>) -> Result<()> {
        if self.partitions > 0 {
            return Ok(());
        }
        let config = self.target.configure(DEFAULTS, NEEDED)?;
        (self.partitions, self.created) = find_or_create(&self.producer, &config, &self.target, create, &[])?;
        self.reach()
    }

    /// Ends long waits when this returns an error.
    pub(super) fn wait_while(&mut self, still_current: StillCurrent) {
        self.still_current = Some(still_current);
    }

    /// `true` if a topic at the same brokers is there.
    pub(super) fn is_there(&self, topic: &Target) -> Result<bool> {
        let words = &self.producer.context().words;
        let found = find_topic(self.producer.client(), topic, words, || self.serve_events())?;
        Ok(matches!(found, Lookup::There(_)))
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
        self.producer.context().delivered()
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
                    self.check()?;
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
        let Waiting { since, asked, told } = waiting.get_or_insert(Waiting { since: now, asked: now, told: now });
        if self.delivered() > before {
            *waiting = None;
            return Ok(());
        }
        if now - *since > PATIENCE && !self.waiting_told {
            self.waiting_told = true;
            let why = last_words(&self.producer.context().words).map_or(String::new(), |why| format!(": {why}"));
            tracing::warn!("{} takes no messages, waiting{why}", self.target.describe());
        }
        // Messages of a transaction that has failed are neither sent nor given up.
        if now - *asked > DOUBT {
            *asked = now;
            self.is_hopeless().map_or(Ok(()), Err)?;
        }
        if now - *told > PATIENCE {
            *told = now;
            self.ask()?;
        }
        Ok(())
    }

    /// Asks whether it is still to wait.
    fn ask(&self) -> Result<()> {
        self.still_current.as_ref().map_or(Ok(()), |still_current| still_current())
    }

    /// Takes in the library's events that have come so far.
    fn serve_events(&self) {
        // Each call takes in one; without any it returns at once.
        (0..EVENTS).for_each(|_| self.producer.poll(Duration::ZERO));
    }

    /// Begins a transaction, unless there is one.
    ///
    /// # Errors
    /// When another producer of the same id was opened, or an earlier transaction was not ended.
    pub(super) fn begin(&mut self) -> Result<()> {
        if self.begun.is_none() {
            self.producer.begin_transaction().map_err(|error| self.failed("begin a transaction", &error))?;
            self.begun = Some(Instant::now());
            self.serve_events();
            self.doubts = self.producer.context().doubts();
        }
        Ok(())
    }

    /// `true` if a transaction is open.
    pub(super) fn is_in_transaction(&self) -> bool {
        self.begun.is_some()
    }

    /// `true` if there was doubt in any transaction: a request of it may still be on its way.
    pub(super) fn is_doubtful(&mut self) -> bool {
        // What happens between two transactions is of no request that could matter.
        if self.is_in_transaction() {
            self.serve_events();
            self.doubtful |= self.producer.context().doubts() != self.doubts;
        }
        self.doubtful
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
            self.doubtful = true;
            self.serve_events();
            self.ask()?;
            if !std::mem::replace(&mut self.waiting_told, true) {
                let why = last_words(&self.producer.context().words).map_or(String::new(), |why| format!(": {why}"));
                tracing::warn!("{} takes no transaction, waiting{why}", self.target.describe());
            }
        }
        if std::mem::take(&mut self.waiting_told) {
            tracing::info!("the transaction of {} was taken", self.target.describe());
        }
        self.is_doubtful();
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

    /// The offset behind the last acknowledged message, for each partition of a topic.
    pub(super) fn ends(&self, topic: &str) -> BTreeMap<i32, i64> {
        self.producer.context().ends(topic)
    }

    /// Tells of offsets that a topic has reached: a message that gets a smaller one is an error.
    pub(super) fn expect(&self, topic: &str, ends: &BTreeMap<i32, i64>) {
        self.producer.context().expect(topic, ends);
    }

    /// `true` if another producer of the same id was opened, or the brokers have ended the transaction by themselves.
    pub(super) fn is_fenced(&self) -> bool {
        self.producer.client().fatal_error().is_some_and(|(code, _)| is_fenced(code))
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
            let why = format!("it took more than {} s, and the brokers have aborted it", limit.as_secs_f64());
            return failed.because(why).help("raise transaction.timeout.ms with --kafka-config").passing();
        }
        if code.is_some_and(is_fenced) {
            let why = "another process has taken over: it has been started with the same state";
            return failed.because(why).help("leave the state to that process, or end it and start again").passing();
        }
        let failed = failed.because(told(error));
        if code.is_some_and(lasts) { failed } else { failed.passing() }
    }

    /// Fails if a message was not delivered, or a topic has lost messages.
    fn check(&self) -> Result<()> {
        if let Some(lost) = self.producer.context().lost() {
            return Err(self.gone(&lost));
        }
        let (failed, first) = self.producer.context().failures();
        if failed == 0 {
            return Ok(());
        }
        // Of a transaction that has failed, this says more than what it did to messages.
        if !first.as_ref().and_then(|first| first.code).is_some_and(lasts) {
            self.is_hopeless().map_or(Ok(()), Err)?;
        }
        let what = format!("{failed} messages were not delivered");
        let error = Error::new(if failed == 1 { String::from("a message was not delivered") } else { what });
        let Some(Failure { partition, code, because }) = first else { return Err(error.at(self.target.describe())) };
        let at = if partition < 0 { String::new() } else { format!(", partition {partition}") };
        let error = error.at(format!("{}{at}", self.target.describe()));
        Err(match code {
            Some(code) if is_fenced(code) => self.failed("send messages", &KafkaError::MessageProduction(code)),
            Some(RDKafkaErrorCode::MessageTimedOut) => {
                let because = self.with_last_words(&because);
                error.because(because).help("check that the brokers are up and reachable").passing()
            }
            Some(code) if lasts(code) => match remedy(code) {
                Some(remedy) => error.because(because).help(remedy),
                None => error.because(because),
            },
            _ => error.because(because).passing(),
        })
    }

    /// The error of a topic that has lost messages.
    fn gone(&self, Lost { topic, partition, offset, end }: &Lost) -> Error {
        let place = Target { topic: topic.clone(), ..self.target.clone() };
        let why = format!("partition {partition} ended at offset {offset}, and had reached {end}");
        lost_records(&place, &why)
    }

    /// A cause, with what the library said last of its connections, which names the address.
    fn with_last_words(&self, why: &str) -> String {
        last_words(&self.producer.context().words).map_or_else(|| why.to_owned(), |reason| format!("{why} ({reason})"))
    }
}

/// The error of a topic that is not what it was.
pub(super) fn lost_records(topic: &Target, why: &str) -> Error {
    Error::new("cannot go on with the topic")
        .at(topic.describe())
        .because(why)
        .help("it was made anew or lost records: begin anew, with a new state directory, or name another topic")
}

/// `true` if sending the same again has the same outcome.
fn lasts(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode as Code;
    matches!(
        code,
        Code::MessageSizeTooLarge
            | Code::MessageBatchTooLarge
            | Code::InvalidMessageSize
            | Code::InvalidRecord
            | Code::InvalidTimestamp
            | Code::PolicyViolation
            | Code::UnsupportedForMessageFormat
            | Code::InvalidTransactionTimeout
            | Code::SaslAuthenticationFailed
            | Code::TopicAuthorizationFailed
            | Code::ClusterAuthorizationFailed
            | Code::TransactionalIdAuthorizationFailed
    )
}

/// What to do about an error that lasts.
fn remedy(code: RDKafkaErrorCode) -> Option<&'static str> {
    use RDKafkaErrorCode as Code;
    Some(match code {
        Code::MessageSizeTooLarge | Code::MessageBatchTooLarge | Code::InvalidMessageSize => {
            "raise the topic's max.message.bytes, or send smaller messages"
        }
        Code::InvalidRecord => {
            "a compacted topic takes only messages with a key: give the output a key (kafka::Output::key_by), or \
             write to a topic with cleanup.policy=delete"
        }
        Code::InvalidTimestamp => "the topic limits timestamps: see its message.timestamp settings",
        Code::SaslAuthenticationFailed
        | Code::TopicAuthorizationFailed
        | Code::ClusterAuthorizationFailed
        | Code::TransactionalIdAuthorizationFailed => "check the user's rights and --kafka-config",
        _ => return None,
    })
}

/// How long nothing has come.
struct Waiting {
    since: Instant,
    /// When it was last asked whether anything can come.
    asked: Instant,
    /// When it was last asked whether it is still to wait.
    told: Instant,
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
