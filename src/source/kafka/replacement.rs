//! A new client in the place of one that has lost its brokers for good.
//!
//! The client library drops brokers that a list of the cluster does not name. An answer without any broker, as a cluster
//! gives that has just fenced its only one or is starting, may leave a client without an address to connect to: it then
//! stays silent for ever, while any other client is answered
//! (<https://github.com/confluentinc/librdkafka/issues/5301>). So while a reader is connected to no broker, a thread tries
//! whether a new client is answered, and hands it over. While the brokers cannot be reached, none is.
//!
//! Invariant: a client is handed over only after a broker has told it the ends of a partition that the reader reads.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer};

use super::client::TopicConfig;
use super::consumer::create;
use super::prefetch::PrefetchLimits;
use super::statistics::ConsumerEvents;
use super::topic_lookup::{TopicLookup, look_up_topic};
use crate::error::Result;
use crate::thread::{self, ThreadHandle, ThreadRole};

/// Time without a connection to the brokers of all partitions after which a new client is tried.
pub(super) const LOST_AFTER: Duration = Duration::from_secs(10);

/// Pause between two tries.
const TRY_INTERVAL: Duration = Duration::from_secs(5);

/// Longest wait for an answer of the brokers to a client.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);

/// The search for a client that is answered; it stops when dropped.
pub(super) struct ClientReplacement {
    found: Receiver<Arc<BaseConsumer<ConsumerEvents>>>,
    stop: Arc<AtomicBool>,
    thread: ThreadHandle,
}

impl ClientReplacement {
    /// Starts to try clients of a topic, of which the reader reads `partition`.
    ///
    /// # Errors
    /// Fails if no thread can be started.
    pub(super) fn start(
        (topic_config, job): (&TopicConfig, &str),
        limits: PrefetchLimits,
        partition: u32,
    ) -> Result<Self> {
        let (sender, found) = channel();
        let (topic_config, job) = (topic_config.clone(), job.to_owned());
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let body = move || {
            while !stopped.load(Ordering::Acquire) {
                thread::mark_iteration();
                if let Some(client) = try_client(&topic_config, &job, limits, partition) {
                    // If nobody wants it any more, it is dropped here.
                    let _ = sender.send(client);
                    return;
                }
                std::thread::park_timeout(TRY_INTERVAL);
            }
        };
        let thread = thread::start(ThreadRole::KafkaWatch, ThreadRole::KafkaWatch.name(), body)?;
        Ok(ClientReplacement { found, stop, thread })
    }

    /// Returns the client that was found; `None` if there is none yet.
    pub(super) fn take(&self) -> Option<Arc<BaseConsumer<ConsumerEvents>>> {
        self.found.try_recv().ok()
    }
}

impl Drop for ClientReplacement {
    fn drop(&mut self) {
        // Not joined: it may be waiting for a broker that is not reachable.
        self.stop.store(true, Ordering::Release);
        self.thread.thread().unpark();
        // One that was found and is not wanted would be closed on the worker.
        if let Some(client) = self.take() {
            discard(client);
        }
    }
}

/// Creates a client; `None` if it is not answered.
fn try_client(
    topic_config: &TopicConfig,
    job: &str,
    limits: PrefetchLimits,
    partition: u32,
) -> Option<Arc<BaseConsumer<ConsumerEvents>>> {
    let client = create(topic_config, job, limits).ok()?;
    let topic = look_up_topic(client.client(), &topic_config.topic, ANSWER_TIMEOUT);
    if !matches!(topic, Ok(Some(TopicLookup::There(_)))) {
        return None;
    }
    let (low, end) = client.fetch_watermarks(&topic_config.topic, partition as i32, ANSWER_TIMEOUT).ok()?;
    // Serves the topic's id, which is logged.
    ConsumerEvents::serve_events(&client);
    (low >= 0 && end >= low).then_some(client)
}

/// Drops a client on a thread of its own: to close one that has lost its brokers may take for ever.
pub(super) fn discard(client: impl Send + 'static) {
    let _ = thread::start(ThreadRole::KafkaWatch, ThreadRole::KafkaWatch.name(), move || drop(client));
}
