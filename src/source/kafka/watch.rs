//! Watches a topic from a thread of its own, because requests to brokers block: for added partitions, for its deletion,
//! and for another topic in its place. Each request makes the client library log the topic's id if that is a new one;
//! of a topic without an id, records are compared on request.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer};

use super::client::TopicConfig;
use super::consumer::{connect, offsets};
use super::identity::{has_fingerprint, missing_partition, wrong_record};
use super::peek::{ReadDecision, read_each};
use super::statistics::ConsumerEvents;
use super::topic_lookup::{TopicLookup, look_up_topic};
use crate::durable::journal::ContentCheck;
use crate::error::{Error, Result};
use crate::thread::{self, ThreadHandle, ThreadRole};

/// Interval between requests to the brokers.
const INTERVAL: Duration = Duration::from_secs(3);

/// Interval between retries of a request that the brokers could not answer.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// Number of successive answers that call a topic unknown before it is taken as deleted.
const UNKNOWN_TIMES: u32 = 3;

/// Partitions and the fingerprints of the records to be compared.
type ExpectedRecords = Vec<(u32, ContentCheck)>;

/// An observation of the watch.
#[derive(Debug)]
pub(super) enum TopicEvent {
    /// A partition was added to the topic; its first record is at this offset.
    Partition(u32, u64),
    /// The topic no longer exists.
    Gone,
    /// The topic was missing for a moment, and exists again.
    Back,
    /// The topic was asked for since [`TopicWatch::confirm`], the partitions that it has were reported, and the records to
    /// be compared are unchanged. All that the client library logged of the topic is ready to be served.
    Confirmed,
    /// The topic has other records than were taken.
    Other(Error),
}

/// A running watch; it stops when dropped.
pub(super) struct TopicWatch {
    news: Receiver<TopicEvent>,
    orders: Sender<ExpectedRecords>,
    stop: Arc<AtomicBool>,
    thread: ThreadHandle,
}

impl TopicWatch {
    /// Starts a watch for partitions that are not in `known`; only those that `mine` accepts are reported.
    pub(super) fn start(
        consumer: Arc<BaseConsumer<ConsumerEvents>>,
        (topic_config, job): (&TopicConfig, &str),
        known: Vec<u32>,
        mine: impl Fn(u32) -> bool + Send + 'static,
    ) -> Result<Self> {
        let ((sender, news), (orders, ordered)) = (channel(), channel());
        let (topic_config, job) = (topic_config.clone(), job.to_owned());
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let body = move || run(&consumer, (&topic_config, &job), known, mine, &stopped, (&sender, &ordered));
        let thread = thread::start(ThreadRole::KafkaWatch, ThreadRole::KafkaWatch.name(), body)?;
        Ok(TopicWatch { news, orders, stop, thread })
    }

    /// Requests a check of the topic, and a comparison of these records. The answer is [`TopicEvent::Confirmed`] or
    /// [`TopicEvent::Other`].
    pub(super) fn confirm(&self, records: ExpectedRecords) {
        // Fails only if the thread has ended.
        let _ = self.orders.send(records);
        self.thread.thread().unpark();
    }

    /// Returns the observations since the last call.
    pub(super) fn events(&self) -> impl Iterator<Item = TopicEvent> + '_ {
        self.news.try_iter()
    }
}

impl Drop for TopicWatch {
    fn drop(&mut self) {
        // Not joined: it may be waiting for a broker that is not reachable.
        self.stop.store(true, Ordering::Release);
        self.thread.thread().unpark();
    }
}

fn run(
    consumer: &BaseConsumer<ConsumerEvents>,
    (topic_config, job): (&TopicConfig, &str),
    mut known: Vec<u32>,
    mine: impl Fn(u32) -> bool,
    stopped: &AtomicBool,
    (sender, orders): (&Sender<TopicEvent>, &Receiver<ExpectedRecords>),
) {
    let wait = Duration::from_secs(2);
    let topic = &consumer.context().topic;
    let (mut unknown, mut order) = (0, None);
    loop {
        thread::mark_iteration();
        if order.is_none() {
            std::thread::park_timeout(if unknown > 0 { RETRY_INTERVAL } else { INTERVAL });
            order = match orders.try_recv() {
                Ok(records) => Some(records),
                Err(TryRecvError::Empty) => None,
                Err(TryRecvError::Disconnected) => return,
            };
        } else {
            std::thread::park_timeout(RETRY_INTERVAL);
        }
        if stopped.load(Ordering::Acquire) {
            return;
        }
        let ids = match look_up_topic(consumer.client(), topic, wait) {
            Ok(Some(TopicLookup::There(ids))) => ids,
            Ok(Some(TopicLookup::Unknown(_))) => {
                unknown += 1;
                if unknown >= UNKNOWN_TIMES && sender.send(TopicEvent::Gone).is_err() {
                    return;
                }
                continue;
            }
            // Unknown at the moment; the readers detect an outage themselves.
            Ok(None) | Err(_) => continue,
        };
        if std::mem::take(&mut unknown) > 0 && sender.send(TopicEvent::Back).is_err() {
            return;
        }
        let mut is_whole = true;
        for id in ids {
            if known.contains(&id) {
                continue;
            }
            if mine(id) {
                let Ok((low, _)) = consumer.fetch_watermarks(topic, id as i32, wait) else {
                    is_whole = false;
                    continue;
                };
                if sender.send(TopicEvent::Partition(id, low.max(0) as u64)).is_err() {
                    return;
                }
            }
            known.push(id);
        }
        // Answered last, so that an end is confirmed only after all partitions are reported.
        if let Some(records) = order.take_if(|_| is_whole) {
            let compared = if records.is_empty() { Ok(None) } else { compare_records(topic_config, job, &records) };
            let Ok(other) = compared else {
                order = Some(records); // The brokers are unreachable again.
                continue;
            };
            if sender.send(other.map_or(TopicEvent::Confirmed, TopicEvent::Other)).is_err() {
                return;
            }
        }
    }
}

/// Reads once more the last records that were taken, with a client of its own, and compares them. Returns an error if
/// another record, or none, is in the place of one; `None` if all are the same.
///
/// # Errors
/// Fails if the topic cannot be read at the moment.
fn compare_records(topic_config: &TopicConfig, job: &str, checks: &[(u32, ContentCheck)]) -> Result<Option<Error>> {
    let (consumer, ids) = connect(topic_config, job)?;
    let (mut expected, mut from) = (BTreeMap::new(), Vec::new());
    for (id, check) in checks {
        if !ids.contains(id) {
            return Ok(Some(missing_partition(topic_config, *id)));
        }
        let (low, end) = offsets(&consumer, topic_config, *id)?;
        if check.at >= end {
            return Ok(Some(wrong_record(topic_config, *id, *check)));
        }
        if check.at >= low {
            expected.insert(*id, *check);
            from.push((*id, check.at));
        }
    }
    read_each(&consumer, topic_config, &from, |id, message| {
        let Some(expected) = expected.remove(&id) else { return Ok(ReadDecision::Skip) };
        let is_as_it_was = message.is_some_and(|message| has_fingerprint(message, expected));
        Ok(if is_as_it_was {
            ReadDecision::Skip
        } else {
            ReadDecision::Answer(wrong_record(topic_config, id, expected))
        })
    })
}
