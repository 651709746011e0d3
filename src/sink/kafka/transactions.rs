//! A topic as the sink of a job with a state: whatever is published at once is one transaction.
//!
//! The transactional id is derived from the state and the sink, so opening the producer fences any process that wrote
//! under it before: its uncommitted messages are aborted, and it can no longer send or commit. The published progress
//! is read only after that.
//!
//! **Doubt.** A request that was sent again after a lost connection or a time-out can still reach a broker much later.
//! The first version of the protocol does not tell a producer's transactions apart: such a request to commit would
//! commit a part of the *next* transaction. So after any doubt the producer is opened anew before the next transaction:
//! the brokers give it a new producer epoch and refuse delayed requests of the old one. Progress is then read, and
//! shows whether a commit in doubt took place; if not, the messages, which are kept until then, are sent again.
//! A broker that is unreachable is waited for as long as the incarnation is the current one, by one producer after the
//! other: the client library may lose its brokers for good.
//!
//! Invariants: the record of an epoch's number is committed with its rows, or not at all. An incarnation begins with a
//! record of its own, so a copy of the state directory that starts the same incarnation again is detected. A process
//! that opens the producer anew goes on only if the last progress is what it left there, so of two processes that fence
//! each other one gives up. After an error nothing more is sent: only the topic knows what was committed, and the next
//! incarnation reads it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::message::{OutgoingMessage, PendingMessages};
use super::progress::{self, SinkProgress};
use super::publisher::{INIT_TIMEOUT, Publisher};
use super::send_errors::lost_records;
use crate::durable::journal::JournalEnds;
use crate::durable::{Incarnation, PublishedEpoch, StateId};
use crate::error::{Error, ErrorKind, Result};
use crate::source::kafka::client::TopicConfig;
use crate::source::kafka::topic_lookup::no_topic;
use crate::time::Epoch;

/// Number of consecutive failures of a transaction, none of them in doubt, after which the sink fails.
const ATTEMPTS: usize = 3;

/// Longest wait for the broker to accept another producer while the job runs; then a further one is tried.
const REINIT_TIMEOUT: Duration = Duration::from_secs(20);

/// Pause before unreachable brokers are tried again.
const RETRY_PAUSE: Duration = Duration::from_millis(500);

/// Publishes epochs in transactions.
pub(super) struct TransactionalWriter {
    publisher: Publisher,
    output: TopicConfig,
    progress: TopicConfig,
    key: String,
    /// Last progress that is known to be committed; `attempt` is the one being committed.
    committed: Option<SinkProgress>,
    attempt: Option<SinkProgress>,
    /// `true` if records were removed from the progress topic.
    truncated: bool,
    life: Option<Incarnation>,
    /// Last epoch that was written.
    last: Option<Epoch>,
    /// Messages of the open transaction.
    pending: PendingMessages,
    /// Error for which the open transaction has to be repeated; `None` if it need not be.
    retry_reason: Option<Error>,
    /// `true` if there is anything to publish.
    unpublished: bool,
    /// `true` if something failed for good.
    broken: bool,
}

impl TransactionalWriter {
    /// Fences earlier producers, reads the published progress, and makes sure that both topics exist. The output topic
    /// is created only if nothing was published in it.
    pub(super) fn open(output: &TopicConfig, create: Option<u32>, state: StateId, sink: &str) -> Result<Self> {
        let (progress, key) = (progress::topic_of(output), progress::key(state, sink));
        let mut publisher = Publisher::transactional(output.clone(), &id_of(&key), create.is_some(), INIT_TIMEOUT)?;
        // Created at once if it seems to be missing, which is harmless: a topic is not read before its existence is
        // certain.
        publisher.ensure_topic(&progress, 1, progress::SETTINGS)?;
        let found = progress::read(&progress, &key)?;
        let is_shown = found.last.as_ref().is_some_and(|last| !last.ends.is_empty());
        if let Err(error) = publisher.find_or_create(create.filter(|_| !is_shown)) {
            let was_there = is_shown && !publisher.topic_exists(output)?;
            return Err(if was_there { deleted_topic(output) } else { error });
        }
        let (output, pending) = (output.clone(), PendingMessages::default());
        let (last, truncated) = (found.last.as_ref().and_then(|last| last.epoch), found.low > 0);
        let (incarnation, attempt, retry_reason) = (None, None, None);
        expect(&publisher, (&output, &progress), &found);
        let committed = found.last;
        let (unpublished, broken) = (false, false);
        Ok(TransactionalWriter {
            publisher,
            output,
            progress,
            key,
            committed,
            attempt,
            truncated,
            life: incarnation,
            last,
            pending,
            retry_reason,
            unpublished,
            broken,
        })
    }

    /// Returns the number of partitions of the topic.
    pub(super) fn partitions(&self) -> usize {
        self.publisher.partitions().0
    }

    /// Returns what is published, according to the topics.
    pub(super) fn shown(&mut self) -> Result<Option<PublishedEpoch>> {
        if let Some(progress) = &self.committed {
            progress::check_output(&self.output, progress)?;
        }
        Ok(self.committed.as_ref().and_then(SinkProgress::published))
    }

    /// Starts an incarnation, and commits a record of it.
    pub(super) fn begin(&mut self, incarnation: &Incarnation) -> Result<()> {
        if let Some(found) = self.committed.as_ref().filter(|found| found.incarnation >= incarnation.incarnation) {
            let (theirs, ours) = (found.incarnation, incarnation.incarnation);
            return Err(Error::of(ErrorKind::SinkFailed, "cannot go on with the topic")
                .at(self.output.describe())
                .because(format!("incarnation {theirs} of the state wrote to it, and this is only incarnation {ours}"))
                .help("use the newest copy of the state directory"));
        }
        if self.committed.is_none() && self.truncated && incarnation.incarnation > 1 {
            let why = "records at its beginning were removed, and it is to keep the last of each key";
            return Err(lost_records(&self.progress, why));
        }
        self.life = Some(incarnation.clone());
        self.publisher.wait_while(Arc::clone(&incarnation.still_current));
        self.unpublished = true;
        self.show(&JournalEnds::default())
    }

    /// Starts an epoch, and a transaction unless one is open.
    pub(super) fn begin_epoch(&mut self, epoch: Epoch) -> Result<()> {
        if self.life.is_none() {
            return Err(self.bug("a topic was to be written to before it was begun"));
        }
        if self.last.is_some_and(|last| last >= epoch) {
            return Err(self.bug(&format!("epoch {epoch} was to be published again, or out of order")));
        }
        self.check_usable()?;
        if !self.unpublished {
            self.resolve_doubt().map_err(|error| self.fail(error))?;
        }
        (self.last, self.unpublished) = (Some(epoch), true);
        if self.retry_reason.is_none()
            && let Err(error) = self.publisher.begin()
        {
            self.mark_for_retry(error)?;
        }
        Ok(())
    }

    /// Sends a message of the current epoch.
    pub(super) fn send(&mut self, message: &OutgoingMessage<'_>) -> Result<()> {
        self.pending.push(message);
        if self.retry_reason.is_none()
            && let Err(error) = self.publisher.post(message)
        {
            self.mark_for_retry(error)?;
        }
        Ok(())
    }

    /// Commits what was sent, with the number of the last epoch and the ends of the journals at it.
    pub(super) fn show(&mut self, journal: &JournalEnds) -> Result<()> {
        if !self.unpublished {
            return Ok(());
        }
        self.check_usable()?;
        self.commit_with_retries(journal).map_err(|error| self.fail(error))?;
        self.publisher.reset_patience();
        self.pending.clear();
        (self.unpublished, self.committed) = (false, self.attempt.take());
        Ok(())
    }

    /// Commits the transaction, repeating it as long as that may succeed.
    fn commit_with_retries(&mut self, journal: &JournalEnds) -> Result<()> {
        let mut failed = 0;
        loop {
            let error = match self.retry_reason.take().map_or_else(|| self.commit(journal), Err) {
                Ok(()) => return Ok(()),
                Err(error) if error.is_transient() => error,
                Err(error) => return Err(error),
            };
            failed = if self.publisher.is_doubtful() { 0 } else { failed + 1 };
            if failed == ATTEMPTS {
                return Err(error);
            }
            tracing::warn!("the last results are sent to {} again: {error}", self.output.describe());
            if self.reopen(Some(error))? {
                return Ok(());
            }
            let publisher = &mut self.publisher;
            let sent = publisher.begin().and_then(|()| self.pending.each(|message| publisher.post(message)));
            self.retry_reason = sent.err();
        }
    }

    fn commit(&mut self, journal: &JournalEnds) -> Result<()> {
        let Some(incarnation) = self.life.clone() else {
            return Err(self.bug("a topic was published before it was begun"));
        };
        self.resolve_doubt()?;
        self.publisher.begin()?;
        // Pending acknowledgements are not waited for, which would take half as long again. Only those of the first
        // messages are: from then on the topic is identified by its end offsets.
        let mut ends = self.committed.iter().flat_map(|found| found.ends.clone()).collect::<BTreeMap<_, _>>();
        if ends.is_empty() && !self.pending.is_empty() {
            self.publisher.flush()?;
        }
        for (partition, end) in self.publisher.ends(&self.output.topic) {
            let known = ends.entry(partition).or_insert(0);
            *known = (*known).max(end);
        }
        let progress =
            SinkProgress { incarnation: incarnation.incarnation, epoch: self.last, ends, journal: journal.clone() };
        let value = progress.to_value();
        let value =
            value.map_err(|why| Error::new("cannot write progress").at(self.progress.describe()).because(why))?;
        self.attempt = Some(progress);
        let (topic, key, value) = (Some(&*self.progress.topic), Some(self.key.as_bytes()), Some(&*value));
        self.publisher.post(&OutgoingMessage {
            topic,
            partition: Some(0),
            key,
            value,
            ..OutgoingMessage::default()
        })?;
        self.publisher.flush()?;
        (incarnation.still_current)()?;
        self.publisher.commit()
    }

    /// Opens the producer anew before a transaction if the one before was in doubt.
    fn resolve_doubt(&mut self) -> Result<()> {
        if self.publisher.is_in_transaction() || !self.publisher.is_doubtful() {
            return Ok(());
        }
        self.reopen(None).map(drop)
    }

    /// Opens the producer anew, waiting for unreachable brokers. Returns `true` if the progress that was being
    /// committed is committed.
    ///
    /// # Errors
    /// Fails if the incarnation is no longer the current one, if another process has published anything, or if a topic
    /// is missing or has lost records.
    fn reopen(&mut self, why: Option<Error>) -> Result<bool> {
        let Some(incarnation) = self.life.clone() else {
            return Err(self.bug("a topic was to be opened before it was begun"));
        };
        let is_fenced = self.publisher.is_fenced();
        let mut told = why.is_some();
        let (publisher, found) = loop {
            (incarnation.still_current)().map_err(|over| why.clone().filter(|_| is_fenced).unwrap_or(over))?;
            match self.open_anew() {
                Ok(opened) => break opened,
                Err(error) if !error.is_transient() => return Err(error),
                Err(error) => {
                    if !std::mem::replace(&mut told, true) {
                        tracing::warn!("waiting to go on with {}: {error}", self.output.describe());
                    }
                    std::thread::sleep(RETRY_PAUSE);
                }
            }
        };
        let former = std::mem::replace(&mut self.publisher, publisher);
        self.publisher.be_more_patient_than(&former);
        self.publisher.wait_while(Arc::clone(&incarnation.still_current));
        if found.last.is_some() && found.last == self.attempt {
            return Ok(true);
        }
        if found.last == self.committed {
            return Ok(false);
        }
        let theirs = found.last.as_ref().is_some_and(|found| found.incarnation > incarnation.incarnation);
        Err(match why.filter(|_| is_fenced && theirs) {
            Some(fenced) => fenced,
            None if theirs => Error::of(ErrorKind::SinkFailed, "cannot go on with the topic")
                .at(self.output.describe())
                .because("a later incarnation of the state wrote to it")
                .help("leave the state to that process, or end it and start again"),
            None => lost_records(&self.progress, "its last record of this output is not the one that was committed"),
        })
    }

    /// Creates a new producer, which fences the one before, and reads the committed progress.
    fn open_anew(&self) -> Result<(Publisher, progress::ProgressTopic)> {
        let publisher = Publisher::transactional(self.output.clone(), &id_of(&self.key), true, REINIT_TIMEOUT)?;
        for topic in [&self.output, &self.progress] {
            if !publisher.topic_exists(topic)? {
                return Err(deleted_topic(topic));
            }
        }
        let found = progress::read(&self.progress, &self.key)?;
        if let Some(last) = &found.last {
            progress::check_output(&self.output, last)?;
        }
        expect(&publisher, (&self.output, &self.progress), &found);
        Ok((publisher, found))
    }

    /// Notes that the open transaction has to be repeated; fails if repeating cannot help.
    fn mark_for_retry(&mut self, error: Error) -> Result<()> {
        if !error.is_transient() {
            return Err(self.fail(error));
        }
        self.retry_reason = Some(error);
        Ok(())
    }

    /// Verifies, at the end of a job, that the published rows are still in the topic.
    pub(super) fn finish(&mut self) -> Result<()> {
        match &self.committed {
            Some(progress) if !self.broken => match progress::check_output(&self.output, progress) {
                // Everything is committed; brokers that are unreachable now do not disprove it.
                Err(error) if error.is_transient() => Ok(()),
                checked => checked,
            },
            _ => Ok(()),
        }
    }

    fn check_usable(&self) -> Result<()> {
        if self.broken {
            let error = Error::new("cannot show the results").at(self.output.describe());
            return Err(error.because("showing earlier ones failed"));
        }
        Ok(())
    }

    /// Stops sending after a failure: aborts the transaction, and lets every later call fail.
    pub(super) fn fail(&mut self, error: Error) -> Error {
        self.broken = true;
        self.publisher.abort();
        error
    }

    fn bug(&self, what: &str) -> Error {
        Error::new(what).at(self.output.describe()).help("this is a bug in Tidegate: please report it")
    }
}

impl Drop for TransactionalWriter {
    fn drop(&mut self) {
        self.publisher.abort();
    }
}

/// Returns the transactional id of a sink's producers.
fn id_of(key: &str) -> String {
    format!("tidegate-{key}")
}

/// Sets the offsets that a producer's topics are known to have reached.
fn expect(publisher: &Publisher, (output, progress): (&TopicConfig, &TopicConfig), found: &progress::ProgressTopic) {
    publisher.expect(&output.topic, &found.last.iter().flat_map(|last| last.ends.clone()).collect());
    publisher.expect(&progress.topic, &[(0, found.end)].into());
}

/// Returns the error for a topic in which results were published and that no longer exists.
fn deleted_topic(topic: &TopicConfig) -> Error {
    no_topic(ErrorKind::SinkFailed, topic, &[])
        .because("results were published in it, and it was deleted")
        .help("start with a new state directory, or name another topic")
}
