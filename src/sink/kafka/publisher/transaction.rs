//! Transactions of a producer: their begin, commit and abort, and the doubt that a request of one may still be in flight.
//!
//! Invariants: of the producers with one transactional id only the one that was opened last can send or commit. After an
//! error that passes (see [`Error::is_transient`]) the outcome of the transaction is unknown, until a new producer of the
//! same id decides it.

use std::time::{Duration, Instant};

#[cfg(feature = "cli")]
use rdkafka::consumer::ConsumerGroupMetadata;
use rdkafka::error::KafkaError;
use rdkafka::producer::{Producer, PurgeConfig};
#[cfg(feature = "cli")]
use rdkafka::topic_partition_list::TopicPartitionList;

use super::super::send_errors::{is_fenced, is_permanent, transaction_error_text};
#[cfg(feature = "cli")]
use super::INIT_TIMEOUT;
use super::{LOG_WAIT_AFTER_PUBLISH, MOST_SILENCE, Publisher, SHORT_PAUSE, SILENCE_LIMIT};
use crate::error::{Error, ErrorKind, Result};
use crate::source::kafka::client::TopicConfig;
use crate::source::kafka::topic_lookup::{TopicLookup, UNKNOWN_TOPIC_TIMEOUT, no_topic};

/// Longest wait for an abort of a transaction. The broker aborts it later in any case.
const ABORT_TIMEOUT: Duration = Duration::from_secs(2);

/// Pause before a call that failed is repeated: it may have failed at once.
const RETRY_PAUSE: Duration = Duration::from_millis(50);

impl Publisher {
    /// Creates a producer of transactions with this transactional id. It ends the open transaction of any other
    /// producer of this id, and fences that producer; that may take as long as `limit`. The topic may be missing only if
    /// `may_be_new` is `true`.
    ///
    /// # Errors
    /// Fails if no broker is reachable, if the topic is missing, or if the brokers do not allow transactions.
    pub(in crate::sink::kafka) fn transactional(
        topic_config: TopicConfig,
        id: &str,
        may_be_new: bool,
        limit: Duration,
    ) -> Result<Self> {
        let mut publisher = Publisher::with(topic_config, Some(id))?;
        let patience = if may_be_new { Duration::ZERO } else { UNKNOWN_TOPIC_TIMEOUT };
        publisher.partitions = match publisher.look_up(patience)? {
            TopicLookup::There(ids) => {
                publisher.check_leaders()?;
                ids.len()
            }
            TopicLookup::Unknown(similar) if !may_be_new => {
                return Err(no_topic(ErrorKind::SinkFailed, &publisher.target, &similar));
            }
            TopicLookup::Unknown(_) => 0,
        };
        let begun = Instant::now();
        loop {
            match publisher.producer.init_transactions(LOG_WAIT_AFTER_PUBLISH) {
                Ok(()) => return Ok(publisher),
                Err(KafkaError::Transaction(error)) if error.is_retriable() && begun.elapsed() < limit => {
                    publisher.serve_events();
                    std::thread::sleep(RETRY_PAUSE);
                }
                Err(error) => {
                    let passes = matches!(&error, KafkaError::Transaction(error) if error.is_retriable());
                    let failed =
                        Error::of(ErrorKind::SinkFailed, "cannot begin transactions").at(publisher.target.describe());
                    let why = publisher.with_last_error(&transaction_error_text(&error));
                    let failed = failed.because(why).caused_by(error).help("check the brokers and --kafka-config");
                    return Err(if passes { failed.transient() } else { failed });
                }
            }
        }
    }

    /// Begins a transaction, unless one is open.
    ///
    /// # Errors
    /// Fails if another producer of the same id was opened, or if an earlier transaction was not ended.
    pub(in crate::sink::kafka) fn begin(&mut self) -> Result<()> {
        if self.transaction_start.is_none() {
            self.producer.begin_transaction().map_err(|error| self.failed("begin a transaction", &error))?;
            self.transaction_start = Some(Instant::now());
            self.serve_events();
            self.doubts = self.producer.context().doubts();
        }
        Ok(())
    }

    /// `true` if a transaction is open.
    pub(in crate::sink::kafka) fn is_in_transaction(&self) -> bool {
        self.transaction_start.is_some()
    }

    /// `true` if any transaction was in doubt: one of its requests may still be in flight.
    pub(in crate::sink::kafka) fn is_doubtful(&mut self) -> bool {
        // Requests between two transactions cannot cause harm.
        if self.is_in_transaction() {
            self.serve_events();
            self.doubtful |= self.producer.context().doubts() != self.doubts;
        }
        self.doubtful
    }

    /// Commits the transaction: its messages become visible, atomically and durably. All of them must have been
    /// acknowledged.
    ///
    /// # Errors
    /// Fails if another producer of the same id was opened, or if the brokers do not accept the commit; it is then
    /// unknown whether the transaction is committed.
    pub(in crate::sink::kafka) fn commit(&mut self) -> Result<()> {
        let since = Instant::now();
        loop {
            match self.producer.commit_transaction(LOG_WAIT_AFTER_PUBLISH) {
                Ok(()) => break,
                Err(KafkaError::Transaction(error)) if error.is_retriable() => {
                    if since.elapsed() > self.silence_limit {
                        return Err(self.silent("commit a transaction"));
                    }
                }
                Err(error) => return Err(self.failed("commit a transaction", &error)),
            }
            self.doubtful = true;
            self.serve_events();
            self.check_current()?;
            std::thread::sleep(RETRY_PAUSE);
            if !std::mem::replace(&mut self.wait_logged, true) {
                let why = self.producer.context().last_error.reason().map_or(String::new(), |why| format!(": {why}"));
                tracing::warn!("{} does not commit the transaction, waiting{why}", self.target.describe());
            }
        }
        if std::mem::take(&mut self.wait_logged) {
            tracing::info!("{} has accepted the transaction", self.target.describe());
        }
        self.is_doubtful();
        self.transaction_start = None;
        Ok(())
    }

    /// Adds offsets that a consumer group has reached to the transaction.
    ///
    /// # Errors
    /// Fails if another producer of the same id was opened, or if the brokers do not accept the offsets.
    #[cfg(feature = "cli")]
    pub(in crate::sink::kafka) fn send_offsets(
        &mut self,
        offsets: &TopicPartitionList,
        group: &ConsumerGroupMetadata,
    ) -> Result<()> {
        let since = Instant::now();
        loop {
            match self.producer.send_offsets_to_transaction(offsets, group, LOG_WAIT_AFTER_PUBLISH) {
                Ok(()) => return Ok(()),
                Err(KafkaError::Transaction(error)) if error.is_retriable() && since.elapsed() < INIT_TIMEOUT => {
                    self.serve_events();
                    std::thread::sleep(RETRY_PAUSE);
                }
                Err(error) => return Err(self.failed("commit the offsets of a group", &error)),
            }
        }
    }

    /// Aborts the transaction, if one is open, so that readers need not wait for its timeout.
    pub(in crate::sink::kafka) fn abort(&mut self) {
        if self.transaction_start.take().is_none() || self.producer.client().fatal_error().is_some() {
            return;
        }
        self.producer.purge(PurgeConfig::default().queue().inflight());
        let since = Instant::now();
        while self.producer.in_flight_count() > 0 && since.elapsed() < ABORT_TIMEOUT {
            self.serve_events();
            std::thread::sleep(SHORT_PAUSE);
        }
        // If it fails, the brokers abort the transaction at its timeout, or when the next producer of its id is opened.
        let _aborted = self.producer.abort_transaction(ABORT_TIMEOUT);
    }

    /// `true` if another producer of the same id was opened, or if the brokers have ended the transaction.
    pub(in crate::sink::kafka) fn is_fenced(&self) -> bool {
        self.producer.client().fatal_error().is_some_and(|(code, _)| is_fenced(code))
    }

    /// Returns the reason why the open transaction can no longer be committed; `None` if it can, or if none is open.
    pub(super) fn abort_reason(&self) -> Option<Error> {
        self.transaction_start?;
        // Within a transaction this call changes nothing, and returns the state of the transaction.
        match self.producer.begin_transaction() {
            Err(KafkaError::Transaction(error)) if error.is_fatal() || error.txn_requires_abort() => {
                Some(self.failed("send messages in a transaction", &KafkaError::Transaction(error)))
            }
            _ => None,
        }
    }

    /// Returns the error of a transaction whose brokers have not answered for the limit, which is in doubt from then on.
    pub(super) fn silent(&mut self, to: &str) -> Error {
        self.doubtful = true;
        let error = Error::of(ErrorKind::SinkFailed, format!("cannot {to}")).at(self.target.describe());
        let why = format!("the brokers have not accepted anything for {} s", self.silence_limit.as_secs());
        error.because(self.with_last_error(&why)).help("check that the brokers are up and reachable").transient()
    }

    /// Takes the place of a producer whose transaction was given up: it waits twice as long for the brokers.
    pub(in crate::sink::kafka) fn be_more_patient_than(&mut self, former: &Publisher) {
        self.silence_limit = (former.silence_limit * 2).min(MOST_SILENCE);
    }

    /// Waits for the brokers as long as a producer ever does.
    #[cfg(feature = "cli")]
    pub(in crate::sink::kafka) fn be_most_patient(&mut self) {
        self.silence_limit = MOST_SILENCE;
    }

    /// Waits as long for the brokers as at first, as they have answered.
    pub(in crate::sink::kafka) fn reset_patience(&mut self) {
        self.silence_limit = SILENCE_LIMIT;
    }

    /// Returns the error of a failed transaction.
    pub(super) fn failed(&self, to: &str, error: &KafkaError) -> Error {
        let fatal = self.producer.client().fatal_error().map(|(code, _)| code);
        let code = fatal.or_else(|| error.rdkafka_error_code());
        let failed = Error::of(ErrorKind::SinkFailed, format!("cannot {to}"));
        let failed = failed.at(self.target.describe()).because(transaction_error_text(error)).caused_by(error.clone());
        let took = self.transaction_start.map(|begun| begun.elapsed()).unwrap_or_default();
        if let Some(limit) = self.limit.filter(|limit| took > *limit) {
            let why = format!("it took more than {} s, and the brokers have aborted it", limit.as_secs_f64());
            return failed.because(why).help("raise transaction.timeout.ms with --kafka-config").transient();
        }
        if code.is_some_and(is_fenced) {
            let why = "another process has taken over: it has been started with the same state";
            return failed.because(why).help("leave the state to that process, or end it and start again").transient();
        }
        if code.is_some_and(is_permanent) { failed } else { failed.transient() }
    }
}

#[cfg(test)]
mod tests {
    use super::super::INIT_TIMEOUT;
    use super::*;
    use crate::source::kafka::EmbeddedBroker;

    const LIMIT: Duration = Duration::from_millis(1_500);

    fn broker() -> EmbeddedBroker {
        let broker = EmbeddedBroker::start().unwrap();
        broker.create_topic("t", 1).unwrap();
        broker
    }

    /// A producer with a transaction in which a row was accepted, and that waits for [`LIMIT`].
    fn begun(broker: &EmbeddedBroker) -> Publisher {
        let topic = TopicConfig::new(broker.servers(), "t");
        let mut publisher = Publisher::transactional(topic, "id", false, INIT_TIMEOUT).unwrap();
        publisher.silence_limit = LIMIT;
        publisher.begin().unwrap();
        publisher.send(None, b"accepted", None).unwrap();
        publisher.flush().unwrap();
        assert!(!publisher.is_doubtful());
        publisher
    }

    /// Checks that a step fails once the brokers have been silent for the limit, with the transaction in doubt.
    fn check_silence(publisher: &mut Publisher, step: fn(&mut Publisher) -> Result<()>) {
        let since = Instant::now();
        let error = step(publisher).unwrap_err();
        assert!(since.elapsed() >= LIMIT && error.is_transient(), "{error} after {:?}", since.elapsed());
        assert!(error.to_string().contains("the brokers have not accepted anything for 1 s"), "{error}");
        assert!(publisher.is_doubtful());
    }

    #[test]
    fn a_transaction_whose_messages_nobody_accepts_is_in_doubt_and_its_successor_waits_twice_as_long() {
        let broker = broker();
        let mut first = begun(&broker);
        broker.set_reachable(false).unwrap();
        first.send(None, b"not accepted", None).unwrap();
        check_silence(&mut first, Publisher::flush);
        broker.set_reachable(true).unwrap();
        let mut second = begun(&broker);
        second.be_more_patient_than(&first);
        assert_eq!(second.silence_limit, 2 * LIMIT);
        second.commit().unwrap();
        second.reset_patience();
        assert_eq!(second.silence_limit, SILENCE_LIMIT);
    }

    #[test]
    fn a_commit_that_nobody_answers_is_in_doubt_and_no_successor_waits_longer_than_the_most() {
        let broker = broker();
        let mut first = begun(&broker);
        broker.set_reachable(false).unwrap();
        check_silence(&mut first, Publisher::commit);
        broker.set_reachable(true).unwrap();
        first.silence_limit = MOST_SILENCE / 2 + Duration::from_secs(1);
        let mut second = begun(&broker);
        second.be_more_patient_than(&first);
        assert_eq!(second.silence_limit, MOST_SILENCE);
        second.commit().unwrap();
    }
}
