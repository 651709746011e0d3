//! Topics that match a pattern, read as one source: a worker's share of them.
//!
//! * All topics are asked for when the source is opened, and, in a job without an end, again and again from a thread. A
//!   worker connects to the topics of which it reads a partition; which partitions it reads follows from names alone, and
//!   from the numbers that the state knows: see `partition_numbers`.
//! * A topic that is found later is read from its first record, as an added partition is. The thread connects to it, so
//!   that the worker does not wait for brokers.
//! * A topic that was read and is deleted, or made again, fails the job, as a single one does: nobody knows whether all
//!   its records were read. At a start the ids of all topics are those that the state has.
//! * Without a topic that matches, a job waits for one. A job that reads to an end fails instead: it would end at once, and
//!   a pattern with a slip of the pen would look like topics without records.
//!
//! Invariants: no topic gets in while the journal is replayed, as the state may know it; in a job that ends, all workers
//! begin with the topics that were there at the start, so each of them knows that no further one comes.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};

use super::client::TopicConfig;
use super::connected_topic::ConnectedTopic;
use super::consumer;
use super::mapping::MapMessages;
use super::partition_numbers::{PartitionNumbers, TakenNumbers, taken_numbers};
use super::positions::{ReadOptions, StartOffset};
use super::prefetch::PrefetchLimits;
use super::reader::KafkaReader;
use super::reader_group::ReaderGroup;
use super::replacement::discard;
use super::statistics::ConsumerEvents;
use super::topic_lookup::{TopicList, UNKNOWN_TOPIC_TIMEOUT, find_topics, look_up_topics};
use super::topic_pattern::{TopicPattern, gone, no_match, not_matched, not_of_pattern};
use crate::durable::journal::PartitionProgress;
use crate::error::{Error, ErrorKind, Result};
use crate::record::Record;
use crate::source::{
    EpochInput, InitialProgress, PartitionNote, PartitionTracker, Polled, Reader, RestoredPartition, WorkerContext,
};
use crate::thread::{self, ThreadHandle, ThreadRole};
use crate::time::Epoch;

/// Interval between requests for topics.
const INTERVAL: Duration = Duration::from_secs(3);

/// Number of successive requests without an answer after which another client asks.
const LOST_TIMES: u32 = 3;

/// The means by which a worker finds its topics.
#[derive(Clone)]
struct TopicFinder {
    /// Brokers and properties, without a topic.
    brokers: TopicConfig,
    describe: String,
    pattern: TopicPattern,
    options: ReadOptions,
    at: WorkerContext,
    taken: TakenNumbers,
}

impl TopicFinder {
    /// Returns the configuration of a topic.
    fn topic(&self, name: &str) -> TopicConfig {
        TopicConfig { topic: name.to_owned(), ..self.brokers.clone() }
    }

    /// Returns the numbers of a topic.
    fn numbers(&self, name: &str) -> PartitionNumbers {
        PartitionNumbers::of_topic(name, &self.at.known_partitions, &self.taken)
    }

    /// `true` if the job ends, or stops, where its topics end: no topic that comes later is read.
    fn is_closed(&self) -> bool {
        self.at.options.until_end || self.options.stops_at_end
    }

    /// `true` if the source ends.
    fn ends(&self) -> bool {
        self.at.options.until_end || self.options.stop_at.is_some()
    }

    /// Asks for all topics that match. A job that ends asks again for a while until there is one: brokers learn of a new
    /// topic with a delay.
    fn find(&self, client: &BaseConsumer<ConsumerEvents>) -> Result<TopicList> {
        let begun = Instant::now();
        let served = || (0..100).for_each(|_| ConsumerEvents::serve_event(client));
        loop {
            let mut topics = find_topics(client.client(), &self.brokers, &client.context().last_error, served)?;
            topics.retain(|name, _| self.pattern.is_match(name));
            if !topics.is_empty() || !(self.ends() || self.is_closed()) || !self.at.known_partitions.is_empty() {
                return Ok(topics);
            }
            if begun.elapsed() > UNKNOWN_TOPIC_TIMEOUT {
                return Err(no_match(&self.describe));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Returns the topics to connect to at the start: those of which this worker reads a partition. Topics that the state
    /// knows are among them, whether the brokers have them or not.
    fn wanted(&self, found: &TopicList) -> BTreeSet<String> {
        let at = &self.at;
        let known = at.known_partitions.iter().filter(|(number, _)| at.owns(*number));
        let mut wanted: BTreeSet<String> = known.map(|(_, known)| known.topic.clone()).collect();
        // The end was fixed earlier: what is not in the state is not read.
        let is_fixed = at.options.until_end && !at.known_partitions.is_empty();
        for (name, ids) in found {
            let numbers = self.numbers(name);
            if (!is_fixed || numbers.is_known()) && ids.iter().any(|id| numbers.is_of(at, *id)) {
                wanted.insert(name.clone());
            }
        }
        wanted
    }
}

/// A worker's reader of the topics that match a pattern: see the module.
pub(super) struct MatchingReader<T> {
    finder: TopicFinder,
    group: ReaderGroup<T>,
    mapping: Arc<dyn MapMessages<T>>,
    /// Topics that are found later; `None` in a job that reads none.
    watch: Option<PatternWatch>,
    has_state: bool,
}

impl<T: Record> MatchingReader<T> {
    /// Connects to the topics that match now.
    pub(super) fn open(
        (describe, brokers, pattern): (String, &TopicConfig, TopicPattern),
        mapping: &Arc<dyn MapMessages<T>>,
        options: &ReadOptions,
        at: &WorkerContext,
    ) -> Result<Self> {
        if matches!(options.start, StartOffset::Offsets(_)) {
            let error = Error::usage("topics of a pattern cannot start at offsets of partitions").at(describe);
            return Err(error.help("start at a time, or read each topic as a source of its own"));
        }
        if let Some((_, known)) = at.known_partitions.iter().find(|(_, known)| !pattern.is_match(&known.topic)) {
            return Err(not_matched(&describe, &known.topic));
        }
        let (brokers, taken) = (brokers.clone(), taken_numbers(&at.known_partitions));
        let finder = TopicFinder { brokers, describe, pattern, options: options.clone(), at: at.clone(), taken };
        let client = consumer::create(&finder.brokers, &at.job, PrefetchLimits::of(0))?;
        let found = finder.find(&client)?;
        if found.is_empty() && at.known_partitions.is_empty() && at.worker == 0 {
            tracing::warn!("no topic matches yet ({}); waiting for one", finder.describe);
        }
        let wanted = finder.wanted(&found);
        let mut readers = Vec::new();
        for name in &wanted {
            let (topic_config, numbers) = (finder.topic(name), finder.numbers(name));
            let is_known = numbers.is_known();
            let place = (numbers, found.len().max(wanted.len()));
            let connected = ConnectedTopic::connect(&topic_config, options, place, at).map_err(|error| {
                if is_known && !found.contains_key(name) && error.kind() == ErrorKind::SourceUnreachable {
                    gone(&topic_config).caused_by(error)
                } else {
                    error
                }
            })?;
            readers.push(KafkaReader::of(connected, Arc::clone(mapping), options.clone(), at)?);
        }
        let watch = match finder.is_closed() {
            true => None,
            false => Some(PatternWatch::start(client, finder.clone(), wanted)?),
        };
        let group = ReaderGroup::new(readers);
        Ok(MatchingReader { finder, group, mapping: Arc::clone(mapping), watch, has_state: false })
    }

    /// Adds the topics that were found since the last call.
    fn add_found(&mut self) -> Result<()> {
        let Some(watch) = &self.watch else { return Ok(()) };
        for found in watch.found.try_iter() {
            let options = ReadOptions { start: StartOffset::Earliest, ..self.finder.options.clone() };
            let reader = KafkaReader::of(found?, Arc::clone(&self.mapping), options, &self.finder.at)?;
            tracing::info!("the topic {} was found and is read ({})", reader.topic(), self.finder.describe);
            self.group.add(reader);
        }
        Ok(())
    }

    /// Fails if a partition of a state is of no topic of the pattern.
    fn check(&self, partition: u32) -> Result<()> {
        let is_known = self.finder.at.known_partitions.iter().any(|(number, _)| *number == partition);
        if is_known { Ok(()) } else { Err(not_of_pattern(&self.finder.describe)) }
    }

    /// Tells the intake of a source that a state knows, also if this worker reads none of its topics.
    fn begin(&mut self, epoch: Epoch, has_state: bool, intake: &mut PartitionTracker<T>) {
        self.has_state |= has_state;
        intake.begin(epoch);
        if self.has_state && self.finder.ends() {
            intake.all_found();
        }
    }
}

impl<T: Record> Reader<T> for MatchingReader<T> {
    fn resume(&mut self, epoch: Epoch, places: &[RestoredPartition], intake: &mut PartitionTracker<T>) -> Result<()> {
        places.iter().try_for_each(|place| self.check(place.progress.partition))?;
        if !places.is_empty() {
            self.begin(epoch, true, intake);
        }
        self.group.resume(epoch, places, intake)
    }

    fn poll(&mut self, epoch: Epoch, budget: usize, intake: &mut PartitionTracker<T>) -> Result<Polled> {
        if let Some(epoch) = self.group.waits()? {
            return Ok(Polled { epoch, busy: false });
        }
        self.add_found()?;
        let polled = self.group.poll(epoch, budget, intake)?;
        self.begin(epoch, true, intake);
        Ok(polled)
    }

    fn close_epoch(&mut self, epoch: Epoch, intake: &mut PartitionTracker<T>) -> Result<Option<EpochInput>> {
        self.group.close_epoch(epoch, intake)
    }

    fn replay(&mut self, epoch: Epoch, bounds: &[PartitionProgress], intake: &mut PartitionTracker<T>) -> Result<bool> {
        if self.group.waits()?.is_some() {
            return Ok(false); // The epoch before is not committed yet, and must not get later records.
        }
        bounds.iter().try_for_each(|bound| self.check(bound.partition))?;
        self.begin(epoch, !bounds.is_empty(), intake);
        self.group.replay(epoch, bounds, intake)
    }

    fn caught_up(&self) -> bool {
        self.finder.options.stops_at_end && self.group.caught_up()
    }

    fn initial_progress(&self, intake: &PartitionTracker<T>) -> InitialProgress {
        self.group.initial_progress(intake)
    }

    fn notify_published(&mut self, epoch: Epoch) {
        self.group.notify_published(epoch);
    }

    fn identity(&self) -> Option<String> {
        Some(self.finder.pattern.identity())
    }

    fn partition_notes(&self) -> Vec<PartitionNote> {
        self.group.partition_notes()
    }
}

/// A thread that asks for topics; it stops when dropped.
struct PatternWatch {
    /// Topics that this worker is connected to, or the error with which the job fails.
    found: Receiver<Result<ConnectedTopic>>,
    stop: Arc<AtomicBool>,
    thread: ThreadHandle,
}

impl PatternWatch {
    /// Starts to ask for topics other than those that are `wanted` already.
    fn start(client: Arc<BaseConsumer<ConsumerEvents>>, finder: TopicFinder, wanted: BTreeSet<String>) -> Result<Self> {
        let (sender, found) = channel();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let body = move || watch(client, &finder, wanted, &stopped, &sender);
        let thread = thread::start(ThreadRole::KafkaWatch, ThreadRole::KafkaWatch.name(), body)?;
        Ok(PatternWatch { found, stop, thread })
    }
}

impl Drop for PatternWatch {
    fn drop(&mut self) {
        // Not joined: it may be waiting for a broker that is not reachable.
        self.stop.store(true, Ordering::Release);
        self.thread.thread().unpark();
    }
}

fn watch(
    mut client: Arc<BaseConsumer<ConsumerEvents>>,
    finder: &TopicFinder,
    mut wanted: BTreeSet<String>,
    stopped: &AtomicBool,
    sender: &Sender<Result<ConnectedTopic>>,
) {
    let mut unanswered = 0;
    loop {
        thread::mark_iteration();
        std::thread::park_timeout(INTERVAL);
        if stopped.load(Ordering::Acquire) {
            return;
        }
        // Tokens that grant access are renewed by events, too. Statistics, of which nothing is read here, are more than
        // the silent polls of one round.
        (0..100).for_each(|_| ConsumerEvents::serve_event(&client));
        ConsumerEvents::serve_events(&client);
        // Without an answer it is asked again; the readers detect an outage themselves.
        let Ok(topics) = look_up_topics(client.client(), Duration::from_secs(2)) else {
            unanswered += 1;
            // The client may have lost the brokers for good: see `replacement`.
            if unanswered % LOST_TIMES == 0
                && let Ok(new) = consumer::create(&finder.brokers, &finder.at.job, PrefetchLimits::of(0))
            {
                discard(std::mem::replace(&mut client, new));
            }
            continue;
        };
        unanswered = 0;
        let new = topics.iter().filter(|(name, _)| finder.pattern.is_match(name) && !wanted.contains(*name));
        let mut added = Vec::new();
        for (name, ids) in new {
            let numbers = finder.numbers(name);
            if !ids.iter().any(|id| numbers.is_of(&finder.at, *id)) {
                continue;
            }
            let options = ReadOptions { start: StartOffset::Earliest, ..finder.options.clone() };
            let place = (numbers, wanted.len() + added.len() + 1);
            let connected = match ConnectedTopic::connect(&finder.topic(name), &options, place, &finder.at) {
                // It may have been deleted again, or not have a leader yet.
                Err(error) if error.kind() == ErrorKind::SourceUnreachable => continue,
                Err(error) => Err(error),
                Ok(connected) => Ok(connected.of_later()),
            };
            added.push(name.clone());
            if sender.send(connected).is_err() {
                return;
            }
        }
        wanted.extend(added);
    }
}
