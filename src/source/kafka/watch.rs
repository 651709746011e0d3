//! Watches a topic from a thread of its own, as questions to brokers make one wait: for partitions that are added to
//! it, and for its end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer};

use super::client::{Lookup, look};
use super::report::Listener;
use crate::error::Result;
use crate::thread::{self, Handle, Role};

/// How often the brokers are asked.
const INTERVAL: Duration = Duration::from_secs(3);

/// How often in a row a topic has to be unknown to be taken as deleted.
const UNKNOWN_TIMES: u32 = 3;

/// What was noticed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum News {
    /// A partition was added to the topic, and its first record is at this offset.
    Partition(u32, u64),
    /// The topic is there no more.
    Gone,
}

/// A running watch; it ends when dropped.
pub(super) struct Watch {
    news: Receiver<News>,
    stop: Arc<AtomicBool>,
    thread: Handle,
}

impl Watch {
    /// Watches for what is not in `known`; only partitions that are `mine` are reported.
    pub(super) fn start(
        consumer: Arc<BaseConsumer<Listener>>,
        known: Vec<u32>,
        mine: impl Fn(u32) -> bool + Send + 'static,
    ) -> Result<Self> {
        let (sender, news) = channel();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let body = move || run(&consumer, known, mine, &stopped, &sender);
        let thread = thread::start(Role::KafkaWatch, Role::KafkaWatch.name(), body)?;
        Ok(Watch { news, stop, thread })
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
    mut known: Vec<u32>,
    mine: impl Fn(u32) -> bool,
    stopped: &AtomicBool,
    sender: &Sender<News>,
) {
    let wait = Duration::from_secs(2);
    let topic = &consumer.context().topic;
    let mut unknown = 0;
    loop {
        thread::turn();
        std::thread::park_timeout(if unknown > 0 { Duration::from_secs(1) } else { INTERVAL });
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
        unknown = 0;
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
