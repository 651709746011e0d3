//! Redriving: dead letters are sent back as the messages that they were.
//!
//! Letters are read in batches, each of which is one transaction: the messages that are sent, and the offsets that a
//! consumer group has reached with them.
//!
//! Invariants: a letter is sent back once for each group, whatever ends a run: its message and the group's offset behind
//! it are committed together, and a run reads the group's offsets only after the transaction of an earlier run has been
//! ended and its producer fenced. Offsets that a selection leaves out are passed only if letters behind them are taken.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::Message as _;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::dead_letter::{OriginalMessage, original};
use super::message::OutgoingMessage;
use super::publisher::{INIT_TIMEOUT, Publisher};
use crate::durable::journal::JournaledRecord;
use crate::error::{Error, ErrorKind, Result};
use crate::source::kafka::Message;
use crate::source::kafka::broker_errors::{error_text, is_transient};
use crate::source::kafka::client::TopicConfig;
use crate::source::kafka::consumer::{self, COMMITTED, NEEDED};
use crate::source::kafka::topic_lookup::no_topic;

const DEFAULTS: &[(&str, &str)] = &[
    ("fetch.wait.max.ms", "50"),
    ("receive.message.max.bytes", "1000000000"),
    ("reconnect.backoff.max.ms", "1000"),
    ("check.crcs", "true"),
];

/// Longest wait for an answer of the brokers, or for a letter that exists.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// Largest number of letters in a transaction, and their largest size in bytes but for the last one.
const MAX_LETTERS: usize = 1_000;
const MAX_BYTES: usize = 16 << 20;

/// The letters to send back. All conditions hold for a letter that is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LetterSelection {
    /// Partitions of the topic of dead letters; empty for all.
    pub(crate) partitions: Vec<u32>,
    /// Offsets: from the first to before the second.
    pub(crate) offsets: (i64, i64),
    /// Times at which the letters were written, in milliseconds since 1970: from the first to before the second.
    pub(crate) times: (i64, i64),
}

/// Origin and target of the letters.
#[derive(Clone, Debug)]
pub(crate) struct RedriveConfig {
    /// The topic of dead letters.
    pub(crate) letters: TopicConfig,
    /// The topic that gets all messages; `None`: each goes back to the topic that its headers name.
    pub(crate) to: Option<String>,
    /// The consumer group that remembers what was sent back.
    pub(crate) group: String,
    pub(crate) selection: LetterSelection,
    /// `true` to send nothing and to leave the group as it is.
    pub(crate) is_dry: bool,
}

/// Letters sent back, or that would be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct RedriveCounts {
    /// Number of letters for each topic that they went to.
    pub(crate) sent: BTreeMap<String, u64>,
    /// Letters at selected offsets whose times are not selected.
    pub(crate) left_out: u64,
    /// Letters at selected offsets that the group had passed before.
    pub(crate) passed_before: u64,
}

impl RedriveCounts {
    fn add(&mut self, others: RedriveCounts) {
        others.sent.into_iter().for_each(|(topic, count)| *self.sent.entry(topic).or_default() += count);
        self.left_out += others.left_out;
        self.passed_before += others.passed_before;
    }
}

/// Offsets of a partition that are still to be read: from `next` to before `end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct LetterRange {
    next: i64,
    end: i64,
}

/// The transaction in progress.
#[derive(Default)]
struct LetterBatch {
    counts: RedriveCounts,
    letters: usize,
    bytes: usize,
    /// Offset behind the last letter read of each partition.
    reached: BTreeMap<i32, i64>,
}

/// Sends letters back.
pub(crate) struct Redriver {
    config: RedriveConfig,
    /// `None` if nothing is sent.
    publisher: Option<Publisher>,
    consumer: BaseConsumer,
    ranges: BTreeMap<i32, LetterRange>,
    batch: LetterBatch,
    /// Letters of the transactions that are committed.
    counts: RedriveCounts,
}

impl Redriver {
    /// Ends the transaction of an earlier run of the group, fences its producer, and finds the letters.
    ///
    /// # Errors
    /// Fails if the topic cannot be read, or if the brokers do not allow transactions.
    pub(crate) fn open(config: RedriveConfig) -> Result<Self> {
        if config.to.as_ref() == Some(&config.letters.topic) {
            return Err(returns_to_itself(&config));
        }
        let publisher = if config.is_dry { None } else { Some(fenced_publisher(&config)?) };
        let needed = [NEEDED, &[COMMITTED, ("group.id", &config.group)]].concat();
        let consumer = config.letters.create_consumer(DEFAULTS, &needed)?;
        let (batch, counts) = (LetterBatch::default(), RedriveCounts::default());
        let mut redriver = Redriver { config, publisher, consumer, ranges: BTreeMap::new(), batch, counts };
        redriver.find_letters()?;
        Ok(redriver)
    }

    /// Returns the number of offsets to read, which is at least that of letters.
    pub(crate) fn left(&self) -> u64 {
        self.ranges.values().map(|range| (range.end - range.next).max(0) as u64).sum()
    }

    /// Sends the letters back. `go_on` is called with the number of letters so far; if it returns `false`, the batch in
    /// progress is completed, and the rest is left. Returns what is committed.
    ///
    /// # Errors
    /// Fails if a letter cannot be read or sent; what was committed before stays so.
    pub(crate) fn run(mut self, mut go_on: impl FnMut() -> bool) -> Result<RedriveCounts> {
        let outcome = self.send_all(&mut go_on);
        if outcome.is_err()
            && let Some(publisher) = &mut self.publisher
        {
            publisher.abort();
        }
        outcome.map(|()| self.counts)
    }

    fn send_all(&mut self, go_on: &mut dyn FnMut() -> bool) -> Result<()> {
        let mut list = TopicPartitionList::new();
        for (id, range) in &self.ranges {
            let added = list.add_partition_offset(&self.config.letters.topic, *id, Offset::Offset(range.next));
            added.map_err(|error| self.unreadable(&error))?;
        }
        self.consumer.assign(&list).map_err(|error| self.unreadable(&error))?;
        let mut heard = Instant::now();
        while !self.ranges.is_empty() && go_on() {
            let polled = self.consumer.poll(Duration::from_millis(100));
            let (id, letter) = match &polled {
                None if heard.elapsed() > ANSWER_TIMEOUT => {
                    let error = self.failed("the dead letters do not arrive").transient();
                    return Err(error.help("check the brokers"));
                }
                None => continue,
                Some(Ok(message)) => {
                    let id = message.partition();
                    (id, Some(Message::fetched(&self.config.letters.topic, id as u32, message).to_record()))
                }
                Some(Err(KafkaError::PartitionEOF(id))) => (*id, None),
                Some(Err(error)) if error.rdkafka_error_code().is_some_and(is_transient) => continue,
                Some(Err(error)) => return Err(self.unreadable(error)),
            };
            heard = Instant::now();
            let Some(range) = self.ranges.get(&id).copied() else { continue };
            let letter = letter.filter(|letter| (range.next..range.end).contains(&(letter.offset as i64)));
            match letter {
                // Behind the last offset, or at the end: transaction markers may take up the last offsets.
                None => drop(self.ranges.remove(&id)),
                Some(letter) => {
                    let next = letter.offset as i64 + 1;
                    self.take(id, letter)?;
                    self.batch.reached.insert(id, next);
                    if next < range.end {
                        self.ranges.insert(id, LetterRange { next, ..range });
                    } else {
                        self.ranges.remove(&id);
                    }
                }
            }
            if self.batch.letters >= MAX_LETTERS || self.batch.bytes >= MAX_BYTES {
                self.commit()?;
            }
        }
        self.commit()
    }

    /// Sends a letter back, unless its time is not selected.
    fn take(&mut self, id: i32, letter: JournaledRecord) -> Result<()> {
        let (from, to) = self.config.selection.times;
        self.batch.letters += 1;
        self.batch.bytes += letter.key.as_ref().map_or(0, Vec::len) + letter.payload.as_ref().map_or(0, Vec::len);
        if letter.timestamp.is_some_and(|at| at < from || at >= to) {
            self.batch.counts.left_out += 1;
            return Ok(());
        }
        let OriginalMessage { topic, timestamp, headers } = original(letter.headers);
        let Some(topic) = self.config.to.clone().or(topic) else {
            self.commit()?;
            let why = "its headers name no topic: it is no dead letter, or one of a file";
            let place = format!("{}, partition {id}, offset {}", self.config.letters.describe(), letter.offset);
            let error = self.failed("a message cannot be sent back").at(place).because(why);
            return Err(error.help("name a topic for all (--to), or leave it out (--partition, --offsets)"));
        };
        if topic == self.config.letters.topic {
            self.commit()?;
            return Err(returns_to_itself(&self.config));
        }
        let is_new = !self.batch.counts.sent.contains_key(&topic) && !self.counts.sent.contains_key(&topic);
        if is_new {
            self.check_topic(&topic)?;
        }
        if let Some(publisher) = &mut self.publisher {
            publisher.begin()?;
            publisher.post(&OutgoingMessage {
                topic: Some(&topic),
                partition: None,
                key: letter.key.as_deref(),
                value: letter.payload.as_deref(),
                headers: &headers,
                // The client library takes 0 for "now", and brokers refuse what is before 1970.
                at_ms: timestamp.filter(|timestamp| *timestamp > 0),
            })?;
        }
        *self.batch.counts.sent.entry(topic).or_default() += 1;
        Ok(())
    }

    /// Commits the batch in progress: its messages, and the group's offsets behind its letters.
    fn commit(&mut self) -> Result<()> {
        let batch = std::mem::take(&mut self.batch);
        if let Some(publisher) = &mut self.publisher
            && !batch.reached.is_empty()
        {
            publisher.begin()?;
            publisher.flush()?;
            let mut offsets = TopicPartitionList::new();
            for (id, next) in &batch.reached {
                let added = offsets.add_partition_offset(&self.config.letters.topic, *id, Offset::Offset(*next));
                added.map_err(|error| unreadable(&self.config.letters, &error))?;
            }
            let Some(group) = self.consumer.group_metadata() else {
                return Err(self
                    .failed("the consumer has no group")
                    .help("this is a bug in Tidegate: please report it"));
            };
            publisher.send_offsets(&offsets, &group)?;
            publisher.commit()?;
            // A request of a doubtful transaction may still arrive, and must not end the next one.
            if publisher.is_doubtful() {
                self.publisher = Some(fenced_publisher(&self.config)?);
            }
        }
        self.counts.add(batch.counts);
        Ok(())
    }

    /// Finds the selected offsets of each partition that the group has not passed.
    fn find_letters(&mut self) -> Result<()> {
        let LetterSelection { partitions, offsets: (from, to), .. } = self.config.selection.clone();
        let topic = self.config.letters.topic.clone();
        let metadata =
            self.consumer.fetch_metadata(Some(&topic), ANSWER_TIMEOUT).map_err(|error| self.unreadable(&error))?;
        let found = metadata.topics().iter().find(|found| found.name() == topic && !found.partitions().is_empty());
        let Some(found) = found else { return Err(no_topic(ErrorKind::SourceUnreachable, &self.config.letters, &[])) };
        let ids: Vec<i32> = found.partitions().iter().map(rdkafka::metadata::MetadataPartition::id).collect();
        if let Some(unknown) = partitions.iter().find(|id| !ids.contains(&(**id as i32))) {
            let error = Error::usage(format!("there is no partition {unknown}")).at(self.config.letters.describe());
            return Err(error.because(format!("the topic has {} partitions", ids.len())));
        }
        let committed = self.committed(&ids)?;
        for id in ids.into_iter().filter(|id| partitions.is_empty() || partitions.contains(&(*id as u32))) {
            let (low, end) = self.ends(id)?;
            let reached = committed.get(&id).copied().unwrap_or(0);
            if reached > end {
                let why = format!(
                    "the group {} is at offset {reached} of partition {id}, and that ends at {end}",
                    self.config.group
                );
                let error = self.failed("the topic is not the one whose letters were sent back before").because(why);
                return Err(error.help("it was recreated or has lost records: name another group (--group)"));
            }
            let (first, end) = (low.max(from), end.min(to));
            self.counts.passed_before += (reached.min(end) - first).max(0) as u64;
            let range = LetterRange { next: first.max(reached), end };
            if range.next < range.end {
                self.ranges.insert(id, range);
            }
        }
        Ok(())
    }

    /// Returns the first offset of a partition, and the end of its committed records.
    fn ends(&self, id: i32) -> Result<(i64, i64)> {
        let partition = (&*self.config.letters.topic, id);
        let found = consumer::ends(&self.consumer, partition, ANSWER_TIMEOUT, is_transient, || ());
        found.map_err(|error| match error {
            Some(error) => self.unreadable(&error),
            None => self.failed("the brokers do not tell where a partition ends").transient(),
        })
    }

    /// Returns the offsets that the group has reached.
    fn committed(&self, ids: &[i32]) -> Result<BTreeMap<i32, i64>> {
        let mut list = TopicPartitionList::new();
        for id in ids {
            list.add_partition(&self.config.letters.topic, *id);
        }
        let committed = self.consumer.committed_offsets(list, ANSWER_TIMEOUT).map_err(|error| {
            let failed = self.failed("cannot read which dead letters were sent back").because(error_text(&error));
            failed.caused_by(error).help("the user needs the right READ on the group (--group)")
        })?;
        let mut reached = BTreeMap::new();
        for element in committed.elements() {
            element.error().map_err(|error| self.unreadable(&error))?;
            if let Offset::Offset(offset) = element.offset() {
                reached.insert(element.partition(), offset);
            }
        }
        Ok(reached)
    }

    /// Fails if a topic does not exist: a message to it would be waited for.
    fn check_topic(&self, topic: &str) -> Result<()> {
        let Some(publisher) = &self.publisher else { return Ok(()) };
        let target = TopicConfig { topic: topic.to_owned(), ..self.config.letters.clone() };
        if publisher.topic_exists(&target)? { Ok(()) } else { Err(no_topic(ErrorKind::SinkFailed, &target, &[])) }
    }

    fn failed(&self, what: &str) -> Error {
        Error::new(what).at(self.config.letters.describe())
    }

    fn unreadable(&self, error: &KafkaError) -> Error {
        unreadable(&self.config.letters, error)
    }
}

/// Creates the producer of a group's transactions, which ends those of any other.
fn fenced_publisher(config: &RedriveConfig) -> Result<Publisher> {
    let id = format!("tidegate-redrive-{}", config.group);
    let mut publisher = Publisher::transactional(config.letters.clone(), &id, false, INIT_TIMEOUT)?;
    // A transaction that is given up ends the program.
    publisher.be_most_patient();
    Ok(publisher)
}

fn unreadable(letters: &TopicConfig, error: &KafkaError) -> Error {
    let failed = Error::of(ErrorKind::SourceUnreachable, "cannot read the dead letters").at(letters.describe());
    failed.because(error_text(error)).caused_by(error.clone()).help("check the brokers and --kafka-config")
}

fn returns_to_itself(config: &RedriveConfig) -> Error {
    Error::usage("dead letters cannot be sent to their own topic")
        .at(config.letters.describe())
        .because("each would be sent back again, without end")
        .help("name another topic (--to)")
}
