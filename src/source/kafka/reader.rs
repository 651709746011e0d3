//! Reads one worker's partitions of a topic.
//!
//! * A [`FetchedPartition`] is one partition with a queue of its own, which the client library fills up to a limit. A
//!   paused partition is simply not taken from: none of its records is lost or fetched twice.
//! * A record that was taken from a queue but belongs to a later epoch of the journal is **held** in its feed.
//! * A topic is **verified** by its id, and by the last record that was taken of each partition: its timestamp and
//!   value (see `identity`). One that was deleted and created again under the same name has another id, and another
//!   record there, or none.
//! * A partition's end, if it has one, is **confirmed** when the topic was asked for after the partition was read to
//!   its end, and was still the same. No epoch with an unconfirmed end is committed.
//! * Records of a compacted topic are kept **by value** in the journal, and replayed from there.
//!
//! Invariants: an offset below the intake's next one is never taken again; the end of a partition that a queue reports
//! is at or past the end found when the reader was opened, and at or past every offset in a journal, as the last stable
//! offset never goes back; the clock is read only to judge idleness and for deadlines, never to decide the contents of
//! an epoch.

use std::collections::VecDeque;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::consumer::base_consumer::PartitionQueue;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message;
use serde::de::DeserializeOwned;

use super::client::{TopicConfig, is_refusal};
use super::compacted::refuse_compacted;
use super::consumer::{self, OFFSETS_TIMEOUT, check_error, connect, list, offsets};
use super::identity::{
    self, check_end, fingerprint, has_fingerprint, missing_partition, offset_and_timestamp, recreated, wrong_record,
};
use super::statistics::{ConsumerEvents, Outage, SILENT_POLLS, TopicStatus};
use super::watch::{TopicEvent, TopicWatch};
use crate::durable::journal::{ContentCheck, JournaledRecord, PartitionProgress};
use crate::error::{Error, ErrorKind, Result};
use crate::record::Record;
use crate::source::{
    EpochInput, PartitionHandle, PartitionNote, PartitionTracker, Polled, RawRecord, Reader, RestoredPartition,
    WorkerContext,
};
use crate::time::Epoch;

/// Longest pause between polls for which idleness goes on counting: after a longer one a partition's idle timeout
/// starts anew.
const MAX_POLL_PAUSE: Duration = Duration::from_secs(1);

/// Largest number of records that a call of `replay` takes.
const REPLAY_BUDGET: usize = 50_000;

/// Largest number of unpublished epochs whose offsets are kept for lag monitors.
const MAX_UNPUBLISHED: usize = 10_000;

/// Interval at which the last records of a topic without an id are read again, to verify that it is the same topic.
const COMPARE_INTERVAL: Duration = Duration::from_secs(30);

/// Longest wait for the brokers to confirm an end.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(60);

/// Start of reading in the partitions that exist when a job first starts. Partitions that are added to the topic later
/// are read from their first record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StartOffset {
    /// The first record that the topic still has.
    #[default]
    Earliest,
    /// After the last committed record.
    Latest,
}

/// Options for reading a topic.
#[derive(Clone, Copy, Debug)]
pub(super) struct ReadOptions {
    pub(super) start: StartOffset,
    pub(super) stops_at_end: bool,
    pub(super) compacted: bool,
}

/// A record that was taken from its queue before its epoch was replayed.
struct HeldMessage {
    offset: u64,
    stamped: Option<i64>,
    payload: Option<Vec<u8>>,
}

/// A partition that this worker reads.
struct FetchedPartition {
    id: u32,
    /// Offset at which reading begins, unless a journal has one.
    start: u64,
    /// First offset when the reader was opened.
    low: u64,
    /// End when the reader was opened.
    end: u64,
    slot: Option<PartitionHandle>,
    /// `true` once it is read up to `end`, in a job that stops there.
    caught_up: bool,
    queue: PartitionQueue<ConsumerEvents>,
    held: Option<HeldMessage>,
    /// `true` if the broker has reported the end, and no record has arrived since.
    at_end: bool,
    /// Time since which it has been at its end, with its broker answering and no open transaction.
    quiet_since: Option<Instant>,
    /// `true` if idleness was not judged since the last statistics.
    idleness_is_due: bool,
    /// Time since which its broker has not answered; `None` if it answers.
    silent_since: Option<Instant>,
    /// Position after the transaction markers that follow the last record that was taken.
    position: Option<u64>,
    /// Group offset that was committed last, for lag monitors.
    committed: u64,
}

impl FetchedPartition {
    fn reset_idleness(&mut self) {
        self.quiet_since = None;
    }
}

/// Result of taking records from a feed.
enum TakeOutcome {
    Records(usize),
    /// Fewer records than asked for were there.
    Empty(usize),
}

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
    /// Index of this worker, and number of workers.
    share: (usize, usize),
    until_end: bool,
    stops_at_end: bool,
    by_value: bool,
    /// Id of the topic; `None` if the brokers assign none.
    id: Option<String>,
    confirmation: Confirmation,
    idle_timeout: Duration,
    partitions: Vec<FetchedPartition>,
    /// `true` if some feeds are not in the intake yet.
    has_untracked: bool,
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
    records: PhantomData<fn() -> T>,
}

impl<T: Record> KafkaReader<T> {
    /// Connects, and finds this worker's partitions.
    pub(super) fn open(topic_config: &TopicConfig, manner: ReadOptions, at: &WorkerContext) -> Result<Self> {
        let ReadOptions { start, stops_at_end, compacted } = manner;
        let (consumer, ids) = connect(topic_config, &at.job)?;
        if !compacted && at.worker == 0 {
            refuse_compacted(consumer.client(), topic_config, &consumer::properties(topic_config)?)?;
        }
        let mut partitions = Vec::new();
        for id in ids.iter().copied().filter(|id| at.owns(*id)) {
            let (low, end) = offsets(&consumer, topic_config, id)?;
            let start = if start == StartOffset::Latest { end } else { low };
            partitions.push(fetched_partition(&consumer, topic_config, id, (start, low, end))?);
        }
        let (worker, workers) = (at.worker, at.workers);
        let mine = move |id: u32| id as usize % workers == worker;
        let watch = TopicWatch::start(Arc::clone(&consumer), (topic_config, &at.job), ids, mine)?;
        Ok(KafkaReader {
            id: consumer.context().id(),
            by_value: compacted,
            confirmation: Confirmation::default(),
            consumer,
            target: topic_config.clone(),
            share: (worker, workers),
            until_end: at.options.until_end,
            stops_at_end,
            idle_timeout: at.options.idle_timeout,
            partitions,
            has_untracked: true,
            has_state: false,
            turn: 0,
            watch,
            last_poll: None,
            outage: None,
            status: TopicStatus::default(),
            unpublished: VecDeque::new(),
            records: PhantomData,
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
                    self.partitions.push(fetched_partition(&self.consumer, &self.target, id, (low, low, low))?);
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
            self.partitions.retain(|feed| feed.slot.is_some());
        }
        let mut assigned = Vec::new();
        for feed in &mut self.partitions {
            if let Some(slot) = feed.slot {
                // If earlier incarnations had no end, the end at this start holds.
                if self.until_end {
                    intake.fix_end(slot, feed.end);
                }
                continue;
            }
            let start = if self.has_state { feed.low } else { feed.start };
            let slot = intake.track(epoch, feed.id, start, self.until_end.then_some(feed.end));
            feed.slot = Some(slot);
            if self.by_value {
                intake.keep_values(slot);
            }
            if !intake.ended(slot) {
                assigned.push((feed.id, start));
            }
        }
        self.assign(&assigned)?;
        self.has_untracked = false;
        if self.until_end {
            intake.all_found();
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
            for feed in &mut self.partitions {
                feed.idleness_is_due = true;
                feed.silent_since = if report.answers(feed.id) { None } else { feed.silent_since.or(Some(now)) };
                if feed.at_end {
                    feed.position = feed.position.max(report.drained_offset(feed.id));
                }
                if feed.at_end && report.is_quiescent(feed.id) {
                    feed.quiet_since = feed.quiet_since.or(Some(now));
                } else {
                    feed.reset_idleness();
                }
            }
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

    /// Takes up to `budget` records of one feed.
    fn take(
        &mut self,
        at: usize,
        epoch: Epoch,
        budget: usize,
        intake: &mut PartitionTracker<T>,
    ) -> Result<TakeOutcome> {
        let feed = &mut self.partitions[at];
        let Some(slot) = feed.slot else { return Ok(TakeOutcome::Empty(0)) };
        let mut taken = 0;
        let stop = feed.end;
        let is_for_later = |offset: u64| self.stops_at_end && offset >= stop;
        if let Some(HeldMessage { offset, stamped: timestamp, payload }) =
            feed.held.take_if(|held| !is_for_later(held.offset))
            && offer(epoch, slot, offset, timestamp, payload.as_deref(), intake)?
        {
            taken += 1;
            if !self.by_value {
                intake.set_fingerprint(slot, fingerprint(offset, timestamp, payload.as_deref()));
            }
            intake.keep_value(slot, || JournaledRecord { offset, timestamp, payload });
        }
        let mut last = None;
        let all = loop {
            if taken >= budget {
                break TakeOutcome::Records(taken);
            }
            if let Some(until) = intake.until(slot).filter(|_| feed.at_end) {
                // Only transaction markers are left before it.
                intake.skip_to(slot, until);
                intake.mark_ended(slot);
            }
            feed.caught_up |= is_for_later(intake.next(slot)) || self.stops_at_end && feed.at_end;
            if intake.ended(slot) || intake.is_paused(slot) || feed.caught_up {
                break TakeOutcome::Empty(taken);
            }
            match feed.queue.poll(Duration::ZERO) {
                None => break TakeOutcome::Empty(taken),
                Some(Ok(message)) => {
                    feed.at_end = false;
                    feed.quiet_since = None;
                    let (offset, timestamp) = offset_and_timestamp(&message);
                    if is_for_later(offset) {
                        // Only transaction markers are left before it. The record is not kept: this incarnation reads
                        // nothing more.
                        feed.caught_up = true;
                    } else if offer(epoch, slot, offset, timestamp, message.payload(), intake)? {
                        taken += 1;
                        let payload = || message.payload().map(<[u8]>::to_vec);
                        intake.keep_value(slot, || JournaledRecord { offset, timestamp, payload: payload() });
                        last = Some(message);
                    }
                }
                Some(Err(KafkaError::PartitionEOF(_))) => feed.at_end = true,
                Some(Err(error)) => {
                    feed.quiet_since = None;
                    check_error(&self.target, feed.id, &error)?;
                }
            }
        };
        // Computed from the last record only, so that it costs little.
        if let Some(message) = last.filter(|_| !self.by_value) {
            let (offset, stamped) = offset_and_timestamp(&message);
            intake.set_fingerprint(slot, fingerprint(offset, stamped, message.payload()));
        }
        Ok(all)
    }

    /// Takes records of all feeds in turns. Returns `true` if the budget was used up.
    fn take_in_turns(
        &mut self,
        epoch: Epoch,
        budget: usize,
        intake: &mut PartitionTracker<T>,
        now: Instant,
    ) -> Result<bool> {
        let count = self.partitions.len();
        let share = (budget / count.max(1)).max(1);
        let (mut left, mut more) = (budget, true);
        while more && left > 0 {
            more = false;
            for _ in 0..count {
                self.turn = (self.turn + 1) % count;
                let at = self.turn;
                let feed = &self.partitions[at];
                let Some(slot) = feed.slot.filter(|slot| !intake.ended(*slot) && !feed.caught_up) else { continue };
                if intake.is_paused(slot) {
                    self.partitions[at].reset_idleness();
                    continue;
                }
                match self.take(at, epoch, share.min(left), intake)? {
                    TakeOutcome::Records(records) => {
                        left -= records.min(left);
                        more = true;
                    }
                    TakeOutcome::Empty(records) => {
                        left -= records.min(left);
                        update_idleness(&mut self.partitions[at], slot, now, self.idle_timeout, intake);
                    }
                }
                if intake.ended(slot) || self.partitions[at].caught_up {
                    self.stop_fetching(at);
                }
                if left == 0 {
                    break;
                }
            }
        }
        Ok(left == 0)
    }

    /// Stops fetching a partition that is read to its end. A failure is ignored: it costs only memory.
    fn stop_fetching(&self, at: usize) {
        if let Ok(list) = list(&self.target.topic, &[(self.partitions[at].id, 0)]) {
            let _ = self.consumer.pause(&list);
        }
    }

    /// Replays one partition's records of an epoch of the journal. Returns `true` once all of them are taken.
    fn replay_partition(
        &mut self,
        epoch: Epoch,
        at: usize,
        bound: &PartitionProgress,
        left: &mut usize,
        intake: &mut PartitionTracker<T>,
    ) -> Result<bool> {
        let slot = match self.partitions[at].slot {
            Some(slot) => slot,
            None => {
                let low = self.partitions[at].low;
                let from = bound.start_offset.unwrap_or(low);
                if bound.values.is_none() {
                    self.check_start(&self.partitions[at], from)?;
                }
                let slot = intake.track(epoch, bound.partition, from, bound.end_offset);
                if self.by_value {
                    intake.keep_values(slot);
                }
                self.partitions[at].slot = Some(slot);
                // Records that are replayed by value are fetched again, but not taken.
                self.assign(&[(bound.partition, from.max(low))])?;
                slot
            }
        };
        check_end(&self.target, bound, self.partitions[at].end)?;
        if let Some(values) = &bound.values {
            return self.replay_values(epoch, (at, slot), bound, values, left, intake);
        }
        while intake.next(slot) < bound.next_offset {
            let feed = &mut self.partitions[at];
            if feed.at_end && feed.held.is_none() {
                // All committed records were delivered: only transaction markers are left.
                intake.skip_to(slot, bound.next_offset);
                break;
            }
            if *left == 0 {
                return Ok(false);
            }
            if feed.held.is_none() {
                match feed.queue.poll(Duration::ZERO) {
                    None => return Ok(false),
                    Some(Ok(message)) => {
                        feed.at_end = false;
                        let (offset, stamped) = offset_and_timestamp(&message);
                        if offset < bound.next_offset {
                            let payload = message.payload();
                            *left -=
                                usize::from(offer_replayed(epoch, slot, bound, (offset, stamped, payload), intake)?);
                            continue;
                        }
                        let payload = message.payload().map(<[u8]>::to_vec);
                        feed.held = Some(HeldMessage { offset, stamped, payload });
                    }
                    Some(Err(KafkaError::PartitionEOF(_))) => feed.at_end = true,
                    Some(Err(error)) => {
                        feed.quiet_since = None;
                        check_error(&self.target, feed.id, &error)?;
                    }
                }
                continue;
            }
            match feed.held.take_if(|held| held.offset < bound.next_offset) {
                Some(HeldMessage { offset, stamped, payload }) => {
                    *left -=
                        usize::from(offer_replayed(epoch, slot, bound, (offset, stamped, payload.as_deref()), intake)?);
                }
                None => intake.skip_to(slot, bound.next_offset),
            }
        }
        if let Some(check) = bound.check.filter(|check| intake.fingerprint(slot) != Some(*check)) {
            return Err(wrong_record(&self.target, bound.partition, check));
        }
        intake.replay_flags(slot, bound);
        if intake.ended(slot) {
            self.stop_fetching(at);
        }
        Ok(true)
    }

    /// Replays one partition's records of an epoch of the journal that has them by value. Returns `true` once all of
    /// them are taken.
    fn replay_values(
        &mut self,
        epoch: Epoch,
        (at, slot): (usize, PartitionHandle),
        bound: &PartitionProgress,
        values: &[JournaledRecord],
        left: &mut usize,
        intake: &mut PartitionTracker<T>,
    ) -> Result<bool> {
        let first = values.partition_point(|value| value.offset < intake.next(slot));
        for JournaledRecord { offset, timestamp, payload } in &values[first..] {
            if *left == 0 {
                return Ok(false);
            }
            *left -= usize::from(offer(epoch, slot, *offset, *timestamp, payload.as_deref(), intake)?);
        }
        intake.skip_to(slot, bound.next_offset);
        intake.replay_flags(slot, bound);
        if intake.ended(slot) {
            self.stop_fetching(at);
        }
        Ok(true)
    }

    /// Requests a confirmation if an end was reached since the last request. Returns `true` if all ends are confirmed.
    fn confirm(&mut self, intake: &PartitionTracker<T>) -> bool {
        let is_over = |feed: &FetchedPartition| feed.caught_up || feed.slot.is_some_and(|slot| intake.ended(slot));
        let ends = self.partitions.iter().filter(|feed| is_over(feed)).count();
        let doubts = self.id.is_none() && self.confirmation.compared.is_none_or(|at| at.elapsed() > COMPARE_INTERVAL);
        if self.confirmation.asked.is_none() && (ends > self.confirmation.ends || doubts) {
            let feeds = self.partitions.iter().filter(|_| self.id.is_none());
            let checks = feeds.filter_map(|feed| Some((feed.id, intake.fingerprint(feed.slot?)?)));
            self.watch.confirm(checks.collect());
            self.confirmation.asked = Some(ends);
        }
        ends <= self.confirmation.ends
    }

    /// Merges the offsets of the oldest unpublished epoch into the next one.
    fn merge_oldest(&mut self) {
        let oldest = self.unpublished.pop_front();
        if let (Some((_, offsets)), Some((_, next))) = (oldest, self.unpublished.front_mut()) {
            for (partition, offset) in offsets {
                if !next.iter().any(|(named, _)| *named == partition) {
                    next.push((partition, offset));
                }
            }
        }
    }

    /// Returns the index of the feed of a partition that a state names; `None` if another worker reads it.
    fn partition_index(&self, partition: u32) -> Result<Option<usize>> {
        if partition as usize % self.share.1 != self.share.0 {
            return Ok(None);
        }
        if let Some(at) = self.partitions.iter().position(|feed| feed.id == partition) {
            return Ok(Some(at));
        }
        Err(missing_partition(&self.target, partition))
    }

    /// Fails if retention has removed the records from an offset on.
    fn check_start(&self, feed: &FetchedPartition, from: u64) -> Result<()> {
        if from >= feed.low {
            return Ok(());
        }
        let place = format!("{}, partition {}, offset {from}", self.target.describe(), feed.id);
        let error = Error::of(ErrorKind::SourceChanged, "records that the state still needs are gone").at(place);
        let error = error.because(format!("the topic's retention has removed all before offset {}", feed.low));
        Err(error.help("start with a new --state, or keep records longer"))
    }

    /// Verifies a partition by reading once more the last record that the state has taken: see the module.
    fn recognize(&mut self, at: usize, expected: ContentCheck) -> Result<()> {
        let begun = Instant::now();
        loop {
            self.serve(Instant::now())?;
            let feed = &self.partitions[at];
            match feed.queue.poll(Duration::from_millis(20)) {
                None if begun.elapsed() > OFFSETS_TIMEOUT => {
                    let error = Error::of(ErrorKind::SourceUnreachable, "an existing record does not arrive");
                    let place = format!("{}, partition {}, offset {}", self.target.describe(), feed.id, expected.at);
                    return Err(error.at(place).help("check the brokers"));
                }
                None => {}
                Some(Ok(message)) => {
                    let is_as_it_was = has_fingerprint(&message, expected);
                    return if is_as_it_was { Ok(()) } else { Err(wrong_record(&self.target, feed.id, expected)) };
                }
                Some(Err(KafkaError::PartitionEOF(_))) => return Err(wrong_record(&self.target, feed.id, expected)),
                Some(Err(error)) => check_error(&self.target, feed.id, &error)?,
            }
        }
    }
}

impl<T: Record> Reader<T> for KafkaReader<T> {
    fn resume(&mut self, epoch: Epoch, places: &[RestoredPartition], intake: &mut PartitionTracker<T>) -> Result<()> {
        let (mut assigned, mut checks) = (Vec::new(), Vec::new());
        for place in places {
            intake.begin(epoch);
            self.has_state = true;
            let bound = &place.progress;
            let Some(at) = self.partition_index(bound.partition)? else { continue };
            check_end(&self.target, bound, self.partitions[at].end)?;
            let slot = intake.resume(epoch, place);
            if self.by_value {
                intake.keep_values(slot);
            }
            self.partitions[at].slot = Some(slot);
            // Retention may have removed the record that identifies the topic and, of an ended partition, all that
            // follows.
            let low = self.partitions[at].low;
            let check = bound.check.filter(|check| !self.by_value && (low..bound.next_offset).contains(&check.at));
            checks.extend(check.map(|check| (at, check)));
            if !intake.ended(slot) {
                self.check_start(&self.partitions[at], bound.next_offset)?;
            }
            if check.is_some() || !intake.ended(slot) {
                assigned.push((bound.partition, check.map_or(bound.next_offset, |check| check.at)));
            }
        }
        self.assign(&assigned)?;
        for (at, check) in checks {
            self.recognize(at, check)?;
            if self.partitions[at].slot.is_some_and(|slot| intake.ended(slot)) {
                self.stop_fetching(at);
            }
        }
        if self.has_state && self.until_end {
            intake.all_found();
        }
        Ok(())
    }

    fn poll(&mut self, epoch: Epoch, budget: usize, intake: &mut PartitionTracker<T>) -> Result<Polled> {
        let now = Instant::now();
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
        self.handle_topic_events()?;
        if !self.confirm(intake) {
            let now = Instant::now();
            let (_, since) = *self.confirmation.waiting.get_or_insert((epoch, now));
            if now - since > CONFIRM_TIMEOUT {
                let error = Error::new("the brokers do not confirm that the topic is still the one that was read");
                return Err(error.at(self.target.describe()).help("check the brokers, and start again"));
            }
            return Ok(None);
        }
        self.confirmation.waiting = None;
        let binding = intake.close_epoch(epoch);
        if !binding.partitions.is_empty() {
            let offsets = binding.partitions.iter().map(|bound| (bound.partition, bound.next_offset)).collect();
            self.unpublished.push_back((epoch, offsets));
            if self.unpublished.len() > MAX_UNPUBLISHED {
                self.merge_oldest();
            }
        }
        Ok(Some(binding))
    }

    fn replay(&mut self, epoch: Epoch, bounds: &[PartitionProgress], intake: &mut PartitionTracker<T>) -> Result<bool> {
        self.handle_topic_events()?;
        self.serve(Instant::now())?;
        if self.confirmation.waiting.is_some() {
            return Ok(false); // The epoch before is not committed yet, and must not get later records.
        }
        intake.begin(epoch);
        self.has_state |= !bounds.is_empty();
        if self.has_state && self.until_end {
            intake.all_found();
        }
        let (mut left, mut done) = (REPLAY_BUDGET, true);
        for bound in bounds {
            let Some(at) = self.partition_index(bound.partition)? else { continue };
            done &= self.replay_partition(epoch, at, bound, &mut left, intake)?;
        }
        Ok(done)
    }

    fn caught_up(&self) -> bool {
        let all = self.partitions.iter().all(|feed| feed.caught_up);
        self.stops_at_end && !self.has_untracked && all && self.confirmation.ends >= self.partitions.len()
    }

    fn notify_published(&mut self, epoch: Epoch) {
        let mut latest = std::collections::BTreeMap::new();
        while let Some((_, offsets)) = self.unpublished.pop_front_if(|(bound, _)| *bound <= epoch) {
            latest.extend(offsets);
        }
        if !self.consumer.context().has_group() {
            return;
        }
        // When everything that was taken is published, only transaction markers are left; they would count as lag for
        // ever.
        if self.unpublished.is_empty() {
            for feed in self.partitions.iter().filter(|feed| feed.at_end) {
                if let Some(position) = feed.position.filter(|position| *position > feed.committed) {
                    let offset = latest.entry(feed.id).or_insert(position);
                    *offset = position.max(*offset);
                }
            }
        }
        if latest.is_empty() {
            return;
        }
        let offsets: Vec<(u32, u64)> = latest.into_iter().collect();
        for (partition, offset) in &offsets {
            if let Some(feed) = self.partitions.iter_mut().find(|feed| feed.id == *partition) {
                feed.committed = *offset;
            }
        }
        // For lag monitors only; a failure is ignored, as the next call commits later offsets.
        let committed = list(&self.target.topic, &offsets);
        let _ = committed.and_then(|offsets| self.consumer.commit(&offsets, CommitMode::Async));
    }

    fn identity(&self) -> Option<String> {
        self.id.as_deref().map(identity::identity)
    }

    fn partition_notes(&self) -> Vec<PartitionNote> {
        let note = |feed: &FetchedPartition| {
            let silence = feed.silent_since.map(|since| since.elapsed());
            self.status.note(feed.id, feed.position.filter(|_| feed.at_end), silence)
        };
        self.partitions.iter().map(note).collect()
    }
}

fn fetched_partition(
    consumer: &Arc<BaseConsumer<ConsumerEvents>>,
    topic_config: &TopicConfig,
    id: u32,
    (start, low, end): (u64, u64, u64),
) -> Result<FetchedPartition> {
    // The queue is created before the partition is assigned, so that no record goes to the common one.
    let queue = consumer.split_partition_queue(&topic_config.topic, id as i32);
    let queue =
        queue.ok_or_else(|| Error::new("the client library has no queue for a partition").at(&topic_config.topic))?;
    Ok(FetchedPartition {
        id,
        start,
        low,
        end,
        slot: None,
        caught_up: false,
        queue,
        held: None,
        at_end: false,
        quiet_since: None,
        idleness_is_due: false,
        silent_since: None,
        position: None,
        committed: 0,
    })
}

/// Offers a record of a replayed epoch to the intake. Returns `true` if it was taken.
fn offer_replayed<T: Record + DeserializeOwned>(
    epoch: Epoch,
    slot: PartitionHandle,
    bound: &PartitionProgress,
    (offset, stamped, payload): (u64, Option<i64>, Option<&[u8]>),
    intake: &mut PartitionTracker<T>,
) -> Result<bool> {
    let taken = offer(epoch, slot, offset, stamped, payload, intake)?;
    if taken && bound.check.is_some_and(|check| check.at == offset) {
        intake.set_fingerprint(slot, fingerprint(offset, stamped, payload));
    }
    Ok(taken)
}

/// Offers a record to the intake. Returns `true` if it was taken.
fn offer<T: Record + DeserializeOwned>(
    epoch: Epoch,
    slot: PartitionHandle,
    offset: u64,
    stamped: Option<i64>,
    payload: Option<&[u8]>,
    intake: &mut PartitionTracker<T>,
) -> Result<bool> {
    if offset < intake.next(slot) {
        return Ok(false);
    }
    if let Some(until) = intake.until(slot).filter(|until| offset >= *until) {
        intake.skip_to(slot, until);
        intake.mark_ended(slot);
        return Ok(false);
    }
    let found = RawRecord { offset, next: offset + 1, stamped, line: 0, bytes: payload.unwrap_or_default() };
    match payload.map(serde_json::from_slice) {
        Some(Ok(record)) => intake.accept(epoch, slot, found, record)?,
        Some(Err(error)) => intake.reject(epoch, slot, found, &format!("not the expected JSON: {error}"))?,
        None => intake.reject(epoch, slot, found, "the message has no value (a tombstone)")?,
    }
    Ok(true)
}

/// Marks a partition as idle if it was quiet throughout the idle timeout, up to statistics that arrived since the last
/// call.
fn update_idleness<T: Record>(
    feed: &mut FetchedPartition,
    slot: PartitionHandle,
    now: Instant,
    timeout: Duration,
    intake: &mut PartitionTracker<T>,
) {
    if !std::mem::take(&mut feed.idleness_is_due) || !feed.at_end {
        return;
    }
    if feed.quiet_since.is_some_and(|since| now - since >= timeout) {
        intake.set_idle(slot);
    }
}
