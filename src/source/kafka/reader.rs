//! Reads one worker's partitions of a topic.
//!
//! * Each partition is a [`FetchedPartition`]; records are taken of all of them in turns: see `take`.
//! * A topic is **verified** by its id; a topic without one by the last record that was taken of each partition.
//! * A partition's end, if it has one, is **confirmed** when the topic was asked for after the partition was read to
//!   its end, and was still the same. No epoch with an unconfirmed end is committed.
//! * A client that has **lost** its brokers is replaced: see `reconnect`.
//! * Records of a compacted topic are kept **by value** in the journal, and replayed from there.
//!
//! Invariants: an offset below the intake's next one is never taken again; the clock is read only to judge idleness and
//! for deadlines, never to decide the contents of an epoch.

mod gaps;
mod group_offsets;
mod reconnect;
mod replay;
mod restore;
mod take;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message as _;

use super::broker_errors::is_refusal;
use super::client::TopicConfig;
use super::connected_topic::ConnectedTopic;
use super::consumer::{self, list, reader_limits};
use super::fetched_partition::FetchedPartition;
use super::identity::{self, missing_partition, recreated};
use super::mapping::MapMessages;
use super::partition_numbers::PartitionNumbers;
use super::positions::{Gap, ReadOptions, StartOffset, check_named_offset, no_such_partition};
use super::prefetch::PrefetchLimits;
use super::replacement::ClientReplacement;
use super::statistics::{ConsumerEvents, Outage, SILENT_POLLS, TopicStatus};
use super::watch::{TopicEvent, TopicWatch};
use crate::durable::journal::PartitionProgress;
use crate::error::{Error, ErrorKind, Result};
use crate::record::Record;
use crate::source::{
    EpochInput, InitialProgress, PartitionHandle, PartitionNote, PartitionTracker, Polled, Reader, RestoredPartition,
    WorkerContext,
};
use crate::time::{Epoch, EventTime};

/// Longest pause between polls for which idleness goes on counting: after a longer one a partition's idle timeout
/// starts anew.
const MAX_POLL_PAUSE: Duration = Duration::from_secs(1);

/// Largest number of records that a call of `replay` takes.
const REPLAY_BUDGET: usize = 50_000;

/// Interval at which the last records of a topic without an id are read again, to verify that it is the same topic.
const COMPARE_INTERVAL: Duration = Duration::from_secs(30);

/// Longest wait for the brokers to confirm an end.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(60);

/// Progress of confirming that the topic is still the same.
#[derive(Debug, Default)]
struct Confirmation {
    /// Number of confirmed ends.
    ends: usize,
    /// Number of ends when the pending confirmation was requested; `None` if none is pending.
    asked: Option<usize>,
    /// Epoch that cannot be committed before the answer, and the time since when.
    waiting: Option<(Epoch, Instant)>,
    /// Time of the last comparison of records, of a topic without an id.
    compared: Option<Instant>,
}

/// A worker's reader of a topic: see the module.
pub(super) struct KafkaReader<T> {
    consumer: Arc<BaseConsumer<ConsumerEvents>>,
    target: TopicConfig,
    place: WorkerContext,
    /// Limits of the client, for another one in its place.
    limits: PrefetchLimits,
    /// Search for another client, while this one hears nothing.
    replacement: Option<ClientReplacement>,
    /// Time since which this client is used.
    client_since: Instant,
    /// Numbers of the partitions in the source.
    numbers: PartitionNumbers,
    /// `true` if the source reads several topics.
    is_of_several: bool,
    until_end: bool,
    stops_at_end: bool,
    stop_at: Option<EventTime>,
    gap: Gap,
    /// Offsets at which the user wants this worker's partitions to start.
    named: BTreeMap<u32, u64>,
    by_value: bool,
    /// Id of the topic; `None` if the brokers assign none.
    id: Option<String>,
    confirmation: Confirmation,
    idle_timeout: Duration,
    partitions: Vec<FetchedPartition>,
    /// `true` if some partitions are not in the intake yet.
    has_untracked: bool,
    /// `true` once the partitions that existed at the start are tracked.
    has_found: bool,
    /// `true` if a state knows the topic: a partition that it does not name was added later.
    has_state: bool,
    turn: usize,
    watch: TopicWatch,
    last_poll: Option<Instant>,
    outage: Option<Outage>,
    /// Last statistics of the partitions.
    status: TopicStatus,
    /// Next offsets of the partitions after each committed but unpublished epoch, for lag monitors.
    unpublished: VecDeque<(Epoch, Vec<(u32, u64)>)>,
    mapping: Arc<dyn MapMessages<T>>,
}

impl<T: Record> KafkaReader<T> {
    /// Connects, and finds this worker's partitions, which have these numbers in the source. The source reads `topics`
    /// topics.
    pub(super) fn open(
        topic_config: &TopicConfig,
        mapping: Arc<dyn MapMessages<T>>,
        manner: ReadOptions,
        (numbers, topics): (PartitionNumbers, usize),
        at: &WorkerContext,
    ) -> Result<Self> {
        KafkaReader::of(ConnectedTopic::connect(topic_config, &manner, (numbers, topics), at)?, mapping, manner, at)
    }

    /// Creates the reader of a topic that is connected.
    pub(super) fn of(
        connected: ConnectedTopic,
        mapping: Arc<dyn MapMessages<T>>,
        manner: ReadOptions,
        at: &WorkerContext,
    ) -> Result<Self> {
        let ConnectedTopic { target, consumer, ids, ends, numbers, topics, at_time } = connected;
        let (topic_config, ReadOptions { start, stop_at, stops_at_end, compacted, gap }) = (&target, manner);
        let named = if let StartOffset::Offsets(named) = &start { named.clone() } else { BTreeMap::new() };
        let mut partitions = Vec::new();
        for (id, (low, end)) in ends {
            let first = match &start {
                StartOffset::Earliest => low,
                StartOffset::Latest => end,
                StartOffset::Timestamp(_) => at_time.get(&id).map_or(end, |offset| low.max(*offset)),
                StartOffset::Offsets(named) => named.get(&id).copied().unwrap_or(low),
            };
            partitions.push(FetchedPartition::open(&consumer, topic_config, id, (first, low, end))?);
        }
        let limits = reader_limits(topics, ids.len(), at);
        let watch = start_watch(&consumer, topic_config, &numbers, at, ids)?;
        Ok(KafkaReader {
            id: consumer.context().id(),
            by_value: compacted,
            confirmation: Confirmation::default(),
            consumer,
            place: at.clone(),
            limits,
            replacement: None,
            client_since: Instant::now(),
            is_of_several: topics > 1 || numbers.is_given(),
            until_end: at.options.until_end,
            stops_at_end,
            stop_at,
            gap,
            named: named.into_iter().filter(|(id, _)| numbers.is_of(at, *id)).collect(),
            numbers,
            target,
            idle_timeout: at.options.idle_timeout,
            partitions,
            has_untracked: true,
            has_found: false,
            has_state: false,
            turn: 0,
            watch,
            last_poll: None,
            outage: None,
            status: TopicStatus::default(),
            unpublished: VecDeque::new(),
            mapping,
        })
    }

    /// Processes the observations of the watch.
    fn handle_topic_events(&mut self) -> Result<()> {
        let news: Vec<TopicEvent> = self.watch.events().collect();
        for news in news {
            match news {
                TopicEvent::Gone => {
                    let error = Error::of(
                        ErrorKind::SourceChanged,
                        format!("the topic {} was deleted while it was read", self.target.topic),
                    );
                    return Err(error.at(&self.target.brokers).help("start again with a new --state"));
                }
                TopicEvent::Other(error) => return Err(error),
                TopicEvent::Back => self.confirmation.compared = None,
                TopicEvent::Confirmed => {
                    // The log lines that the client library wrote before the answer are served first.
                    self.serve(Instant::now())?;
                    self.confirmation.ends = self.confirmation.asked.take().unwrap_or(self.confirmation.ends);
                    self.confirmation.compared = Some(Instant::now());
                }
                // This run reads nothing after the end that was fixed.
                TopicEvent::Partition(..) if self.until_end || self.stops_at_end => {}
                TopicEvent::Partition(id, low) => {
                    self.partitions.push(FetchedPartition::open(&self.consumer, &self.target, id, (low, low, low))?);
                    self.has_untracked = true;
                }
            }
        }
        Ok(())
    }

    /// Adds the partitions that the intake does not track yet.
    fn find(&mut self, epoch: Epoch, intake: &mut PartitionTracker<T>) -> Result<()> {
        if !self.has_untracked {
            return Ok(());
        }
        intake.begin(epoch);
        if self.has_state && self.until_end {
            self.partitions.retain(|partition| partition.handle.is_some());
        }
        if !self.has_state {
            self.check_named()?;
        }
        let (mut assigned, mut tracked) = (Vec::new(), Vec::new());
        for partition in &mut self.partitions {
            if let Some(handle) = partition.handle {
                partition.caught_up |= self.stops_at_end && intake.ended(handle);
                // If earlier incarnations had no end, the end at this start holds.
                if self.until_end {
                    intake.fix_end(handle, partition.end);
                }
                continue;
            }
            let start = if self.has_state { partition.low } else { partition.start };
            let number = self.numbers.give(partition.id);
            let handle = intake.track(epoch, number, start, self.until_end.then_some(partition.end));
            partition.handle = Some(handle);
            tracked.push((handle, partition.id));
            if !intake.ended(handle) {
                assigned.push((partition.id, start));
            }
        }
        tracked.into_iter().for_each(|(handle, id)| self.describe_partition(handle, id, intake));
        self.assign(&assigned)?;
        (self.has_untracked, self.has_found) = (false, true);
        if self.until_end || self.stop_at.is_some() {
            intake.all_found();
        }
        Ok(())
    }

    /// Tells the intake what it is to know of a partition that it tracks.
    fn describe_partition(&self, handle: PartitionHandle, id: u32, intake: &mut PartitionTracker<T>) {
        if self.is_of_several {
            intake.set_label(handle, self.target.describe(), id);
        }
        if self.by_value {
            intake.keep_values(handle);
        }
        if let Some(topic) = self.numbers.topic_of(id, self.id.as_deref()) {
            intake.set_topic(handle, topic);
        }
    }

    /// Returns the progress of the topic's partitions, by their numbers in the topic.
    pub(super) fn own_progress(&self, bounds: &[PartitionProgress]) -> Vec<PartitionProgress> {
        let own = bounds.iter().filter_map(|bound| Some((self.numbers.partition_of(bound.partition)?, bound)));
        own.map(|(partition, bound)| PartitionProgress { partition, ..bound.clone() }).collect()
    }

    /// Returns the topic's name.
    pub(super) fn topic(&self) -> &str {
        &self.target.topic
    }

    /// Fails if reading cannot start at the offsets that the user has named.
    fn check_named(&self) -> Result<()> {
        for (id, offset) in &self.named {
            let partition = self.partitions.iter().find(|partition| partition.id == *id);
            let partition = partition.ok_or_else(|| no_such_partition(&self.target, *id))?;
            if partition.handle.is_none() {
                check_named_offset(&self.target, *id, *offset, (partition.low, partition.end))?;
            }
        }
        Ok(())
    }

    /// Starts to fetch partitions, each from an offset on.
    fn assign(&self, partitions: &[(u32, u64)]) -> Result<()> {
        if partitions.is_empty() {
            return Ok(());
        }
        let list = list(&self.target.topic, partitions).and_then(|list| self.consumer.incremental_assign(&list));
        list.map_err(|error| consumer::unreadable(&self.target, error))
    }

    /// Serves the events of the client library other than records.
    fn serve(&mut self, now: Instant) -> Result<()> {
        // Counted, because a poll also returns nothing when it has served an event.
        let mut silent = 0;
        while silent < SILENT_POLLS {
            let polled = self.consumer.poll(Duration::ZERO);
            silent = if self.consumer.context().has_logged() { 0 } else { silent + 1 };
            let error = match polled {
                None => continue,
                Some(Err(error)) => error,
                // Impossible, and would lose a record.
                Some(Ok(message)) => {
                    let place = format!("{}, partition {}", self.target.describe(), message.partition());
                    return Err(Error::new("a record arrived outside of its partition's queue").at(place));
                }
            };
            match error.rdkafka_error_code() {
                Some(RDKafkaErrorCode::GroupAuthorizationFailed) => self.consumer.context().group_refused(),
                Some(code) if is_refusal(code) => return Err(consumer::failed(&self.target, None, code, error)),
                Some(code) if matches!(error, KafkaError::MessageConsumptionFatal(_)) => {
                    return Err(consumer::failed(&self.target, None, code, error));
                }
                _ => {}
            }
        }
        match (&self.id, self.consumer.context().id()) {
            (Some(id), Some(now)) if *id != now => return Err(recreated(&self.target)),
            (None, Some(now)) => self.id = Some(now),
            _ => {}
        }
        if let Some(report) = self.consumer.context().take() {
            self.tell_outage(&report);
            self.partitions.iter_mut().for_each(|partition| partition.observe(&report, now));
            self.status = report;
        }
        if self.last_poll.is_some_and(|last| now - last > MAX_POLL_PAUSE) {
            self.partitions.iter_mut().for_each(FetchedPartition::reset_idleness);
        }
        self.last_poll = Some(now);
        Ok(())
    }

    fn tell_outage(&mut self, report: &TopicStatus) {
        match (self.outage.take(), &report.silent) {
            (None, Some(broker)) => self.outage = Some(Outage::begin(broker)),
            (Some(outage), None) => outage.end(),
            (outage, _) => self.outage = outage,
        }
    }

    /// Requests a confirmation if an end was reached since the last request. Returns `true` if all ends are confirmed.
    fn confirm(&mut self, intake: &PartitionTracker<T>) -> bool {
        let is_over = |partition: &FetchedPartition| {
            partition.caught_up || partition.handle.is_some_and(|handle| intake.ended(handle))
        };
        let ends = self.partitions.iter().filter(|partition| is_over(partition)).count();
        let doubts = self.id.is_none() && self.confirmation.compared.is_none_or(|at| at.elapsed() > COMPARE_INTERVAL);
        if self.confirmation.asked.is_none() && (ends > self.confirmation.ends || doubts) {
            let partitions = self.partitions.iter().filter(|_| self.id.is_none());
            let checks =
                partitions.filter_map(|partition| Some((partition.id, intake.fingerprint(partition.handle?)?)));
            self.watch.confirm(checks.collect());
            self.confirmation.asked = Some(ends);
        }
        ends <= self.confirmation.ends
    }

    /// `true` if all ends that were reached are confirmed, so that the epoch can be closed.
    pub(super) fn is_ready_to_close(&mut self, epoch: Epoch, intake: &PartitionTracker<T>) -> Result<bool> {
        self.handle_topic_events()?;
        if self.confirm(intake) {
            self.confirmation.waiting = None;
            return Ok(true);
        }
        let now = Instant::now();
        let (_, since) = *self.confirmation.waiting.get_or_insert((epoch, now));
        if now - since > CONFIRM_TIMEOUT {
            let error = Error::new("the brokers do not confirm that the topic is still the one that was read");
            return Err(error.at(self.target.describe()).help("check the brokers, and start again"));
        }
        Ok(false)
    }

    /// Adds the partitions that were found while an end was confirmed: they have not ended.
    pub(super) fn find_added(&mut self, epoch: Epoch, intake: &mut PartitionTracker<T>) -> Result<()> {
        if self.has_found { self.find(epoch, intake) } else { Ok(()) }
    }

    /// Serves the client, and takes nothing.
    pub(super) fn wait(&mut self, now: Instant) -> Result<()> {
        self.handle_topic_events()?;
        self.serve(now)
    }

    /// Returns the topic's id; `None` if the brokers assign none.
    pub(super) fn topic_id(&self) -> Option<String> {
        self.id.clone()
    }

    /// Replays an epoch of the journal. `has_state` is `true` if the epoch has input of the source.
    pub(super) fn replay_topic(
        &mut self,
        epoch: Epoch,
        bounds: &[PartitionProgress],
        has_state: bool,
        intake: &mut PartitionTracker<T>,
    ) -> Result<bool> {
        self.replace_lost_client(Instant::now(), intake)?;
        self.wait(Instant::now())?;
        if self.confirmation.waiting.is_some() {
            return Ok(false); // The epoch before is not committed yet, and must not get later records.
        }
        intake.begin(epoch);
        self.has_state |= has_state;
        if self.has_state && (self.until_end || self.stop_at.is_some()) {
            intake.all_found();
        }
        let (mut left, mut done) = (REPLAY_BUDGET, true);
        for bound in bounds {
            let Some(at) = self.partition_index(bound.partition)? else { continue };
            done &= self.replay_partition(epoch, at, bound, &mut left, intake)?;
        }
        Ok(done)
    }

    /// Returns the index of a partition that a state names; `None` if another worker reads it.
    fn partition_index(&self, partition: u32) -> Result<Option<usize>> {
        if !self.numbers.is_of(&self.place, partition) {
            return Ok(None);
        }
        if let Some(at) = self.partitions.iter().position(|known| known.id == partition) {
            return Ok(Some(at));
        }
        Err(missing_partition(&self.target, partition))
    }
}

/// Starts the watch of a topic, of which the partitions in `known` are known.
fn start_watch(
    consumer: &Arc<BaseConsumer<ConsumerEvents>>,
    topic_config: &TopicConfig,
    numbers: &PartitionNumbers,
    at: &WorkerContext,
    known: Vec<u32>,
) -> Result<TopicWatch> {
    let (place, own) = (at.clone(), numbers.clone());
    let mine = move |id: u32| own.is_of(&place, id);
    TopicWatch::start(Arc::clone(consumer), (topic_config, &at.job), known, mine)
}

impl<T: Record> Reader<T> for KafkaReader<T> {
    fn resume(&mut self, epoch: Epoch, places: &[RestoredPartition], intake: &mut PartitionTracker<T>) -> Result<()> {
        self.resume_topic(epoch, places, !places.is_empty(), intake)
    }

    fn poll(&mut self, epoch: Epoch, budget: usize, intake: &mut PartitionTracker<T>) -> Result<Polled> {
        let now = Instant::now();
        self.replace_lost_client(now, intake)?;
        self.handle_topic_events()?;
        if let Some((epoch, _)) = self.confirmation.waiting {
            self.serve(now)?;
            return Ok(Polled { epoch, busy: false });
        }
        self.find(epoch, intake)?;
        self.serve(now)?;
        let busy = self.take_in_turns(epoch, budget, intake, now)?;
        self.confirm(intake);
        Ok(Polled { epoch, busy })
    }

    fn close_epoch(&mut self, epoch: Epoch, intake: &mut PartitionTracker<T>) -> Result<Option<EpochInput>> {
        if !self.is_ready_to_close(epoch, intake)? {
            return Ok(None);
        }
        self.find_added(epoch, intake)?;
        let binding = intake.close_epoch(epoch);
        self.note_unpublished(epoch, &binding.partitions);
        Ok(Some(binding))
    }

    fn replay(&mut self, epoch: Epoch, bounds: &[PartitionProgress], intake: &mut PartitionTracker<T>) -> Result<bool> {
        self.replay_topic(epoch, bounds, !bounds.is_empty(), intake)
    }

    fn caught_up(&self) -> bool {
        let all = self.partitions.iter().all(|partition| partition.caught_up);
        self.stops_at_end && !self.has_untracked && all && self.confirmation.ends >= self.partitions.len()
    }

    fn initial_progress(&self, intake: &PartitionTracker<T>) -> InitialProgress {
        let mut progress = InitialProgress { is_done: true, partitions: Vec::new() };
        for partition in &self.partitions {
            // Behind its last record, a partition may have transaction markers.
            let is_read = |handle| partition.caught_up || partition.at_end || intake.ended(handle);
            let next = partition.handle.map_or(partition.start, |handle| match is_read(handle) {
                true => partition.end,
                false => intake.next(handle).min(partition.end),
            });
            progress.is_done &= partition.handle.is_some() && next >= partition.end;
            let (read, all) = (next.saturating_sub(partition.start), partition.end.saturating_sub(partition.start));
            progress.partitions.extend(self.numbers.of(partition.id).map(|number| (number, read, all)));
        }
        progress
    }

    fn notify_published(&mut self, epoch: Epoch) {
        self.commit_published(epoch);
    }

    fn identity(&self) -> Option<String> {
        self.id.as_deref().map(identity::identity)
    }

    fn partition_notes(&self) -> Vec<PartitionNote> {
        let note = |partition: &FetchedPartition| {
            let silence = partition.silent_since.map(|since| since.elapsed());
            let note = self.status.note(partition.id, partition.position.filter(|_| partition.at_end), silence);
            self.numbers.of(partition.id).map(|number| PartitionNote { partition: number, ..note })
        };
        self.partitions.iter().filter_map(note).collect()
    }
}
