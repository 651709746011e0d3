//! Watches a topic from a thread of its own, as questions to brokers make one wait: for partitions that are added to
//! it, for its end, and for another topic in its place. That it asks at all has the client library log the topic's id if
//! that is a new one; of a topic without an id it compares records, when it is asked to.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer};

use super::client::{Lookup, Target, look};
use super::identity::compare_records;
use super::report::Listener;
use crate::durable::journal::Check;
use crate::error::{Error, Result};
use crate::thread::{self, Handle, Role};

/// How often the brokers are asked.
const INTERVAL: Duration = Duration::from_secs(3);

/// After how long they are asked again where they did not know.
const AGAIN: Duration = Duration::from_secs(1);

/// How often in a row a topic has to be unknown to be taken as deleted.
const UNKNOWN_TIMES: u32 = 3;

/// Records to be compared: of which partitions, and what they were.
type Records = Vec<(u32, Check)>;

/// What was noticed.
#[derive(Debug)]
pub(super) enum News {
    /// A partition was added to the topic, and its first record is at this offset.
    Partition(u32, u64),
    /// The topic is there no more.
    Gone,
    /// It was not there for a moment, and is again.
    Back,
    /// It was asked for since [`Watch::confirm`]: what the client library logged of it is there to be heard, and the records
    /// that were to be compared are as they were.
    Confirmed,
    /// It has other records than were taken of it.
    Other(Error),
}

/// A running watch; it ends when dropped.
pub(super) struct Watch {
    news: Receiver<News>,
    orders: Sender<Records>,
    stop: Arc<AtomicBool>,
    thread: Handle,
}

impl Watch {
    /// Watches for what is not in `known`; only partitions that are `mine` are reported.
    pub(super) fn start(
        consumer: Arc<BaseConsumer<Listener>>,
        (target, job): (&Target, &str),
        known: Vec<u32>,
        mine: impl Fn(u32) -> bool + Send + 'static,
    ) -> Result<Self> {
        let ((sender, news), (orders, ordered)) = (channel(), channel());
        let (target, job) = (target.clone(), job.to_owned());
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let body = move || run(&consumer, (&target, &job), known, mine, &stopped, (&sender, &ordered));
        let thread = thread::start(Role::KafkaWatch, Role::KafkaWatch.name(), body)?;
        Ok(Watch { news, orders, stop, thread })
    }

    /// Has the topic asked for, and these records of it compared; the answer is [`News::Confirmed`], or why not.
    pub(super) fn confirm(&self, records: Records) {
        // It hears nothing more once it has told that the topic is gone.
        let _ = self.orders.send(records);
        self.thread.thread().unpark();
    }

    /// What was noticed since the last call.
    pub(super) fn news(&self) -> impl Iterator<Item = News> + '_ {
        self.news.try_iter()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // Not joined: it may be waiting for a broker that is not there.
        self.stop.store(true, Ordering::Release);
        self.thread.thread().unpark();
    }
}

fn run(
    consumer: &BaseConsumer<Listener>,
    (target, job): (&Target, &str),
    mut known: Vec<u32>,
    mine: impl Fn(u32) -> bool,
    stopped: &AtomicBool,
    (sender, orders): (&Sender<News>, &Receiver<Records>),
) {
    let wait = Duration::from_secs(2);
    let topic = &consumer.context().topic;
    let (mut unknown, mut order) = (0, None);
    loop {
        thread::turn();
        if order.is_none() {
            std::thread::park_timeout(if unknown > 0 { AGAIN } else { INTERVAL });
            order = match orders.try_recv() {
                Ok(records) => Some(records),
                Err(TryRecvError::Empty) => None,
                Err(TryRecvError::Disconnected) => return,
            };
        } else {
            std::thread::park_timeout(AGAIN);
        }
        if stopped.load(Ordering::Acquire) {
            return;
        }
        let ids = match look(consumer.client(), topic, wait) {
            Ok(Some(Lookup::There(ids))) => ids,
            Ok(Some(Lookup::Unknown(_))) => {
                unknown += 1;
                if unknown >= UNKNOWN_TIMES && sender.send(News::Gone).is_err() {
                    return;
                }
                continue;
            }
            // Not known at the moment; the readers notice an outage themselves.
            Ok(None) | Err(_) => continue,
        };
        if std::mem::take(&mut unknown) > 0 && sender.send(News::Back).is_err() {
            return;
        }
        if let Some(records) = order.take() {
            let compared = if records.is_empty() { Ok(None) } else { compare_records(target, job, &records) };
            let Ok(other) = compared else {
                order = Some(records); // The brokers are away again.
                continue;
            };
            if sender.send(other.map_or(News::Confirmed, News::Other)).is_err() {
                return;
            }
        }
        for id in ids {
            if known.contains(&id) {
                continue;
            }
            if mine(id) {
                let Ok((low, _)) = consumer.fetch_watermarks(topic, id as i32, wait) else { continue };
                if sender.send(News::Partition(id, low.max(0) as u64)).is_err() {
                    return;
                }
            }
            known.push(id);
        }
    }
}
