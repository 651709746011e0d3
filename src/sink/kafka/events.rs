//! Events of a producer's client library: deliveries, the offsets that topics have reached, and lost connections.
//!
//! * **Doubt**: a connection was lost, or a request timed out. The request may still be in flight, so a broker may
//!   receive it much later, after it was sent again and answered. The library retries silently. Its log lines `FAIL`
//!   and `REQTMOUT` come before the retry is sent, so a caller that has drained the events of a finished call knows all
//!   doubt in it.
//!
//! Invariants: the first failed delivery is kept; an offset of a topic never goes back, or the topic counts as lost.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Message};
use rdkafka::producer::ProducerContext;

use crate::source::kafka::broker_errors::{LastError, error_text};

/// Events of one producer.
#[derive(Debug, Default)]
pub(super) struct ProducerEvents {
    pub(super) last_error: LastError,
    delivered: AtomicU64,
    failed: AtomicU64,
    first: Mutex<Option<DeliveryFailure>>,
    /// Offsets that were reached in each topic; `None` if they are not tracked.
    reached: Option<Mutex<ReachedOffsets>>,
    /// Number of lost connections and of requests that timed out.
    doubts: AtomicU64,
    /// Number of events of all kinds.
    served: AtomicU64,
}

/// The first message that was not delivered.
#[derive(Clone, Debug)]
pub(super) struct DeliveryFailure {
    pub(super) partition: i32,
    pub(super) code: Option<RDKafkaErrorCode>,
    pub(super) because: String,
    pub(super) cause: KafkaError,
}

/// Offset after the last acknowledged message, by topic and partition.
#[derive(Debug, Default)]
struct ReachedOffsets {
    ends: BTreeMap<String, BTreeMap<i32, i64>>,
    lost: Option<OffsetRegression>,
}

/// A partition in which a message got an offset that the partition had passed before.
#[derive(Clone, Debug)]
pub(super) struct OffsetRegression {
    pub(super) topic: String,
    pub(super) partition: i32,
    pub(super) offset: i64,
    pub(super) end: i64,
}

impl ProducerEvents {
    /// Creates a context that tracks the offsets reached in every topic that is sent to.
    pub(super) fn tracking_offsets() -> Self {
        ProducerEvents { reached: Some(Mutex::default()), ..ProducerEvents::default() }
    }

    /// Returns the number of messages acknowledged.
    pub(super) fn delivered(&self) -> u64 {
        self.delivered.load(Ordering::Relaxed)
    }

    /// Returns the number of messages that were not delivered, and the first of them.
    pub(super) fn failures(&self) -> (u64, Option<DeliveryFailure>) {
        let failed = self.failed.load(Ordering::Relaxed);
        if failed == 0 {
            return (0, None);
        }
        (failed, self.first.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }

    /// Returns the number of lost connections and timed-out requests so far.
    pub(super) fn doubts(&self) -> u64 {
        self.doubts.load(Ordering::Relaxed)
    }

    /// Returns the number of events of all kinds so far.
    pub(super) fn served(&self) -> u64 {
        self.served.load(Ordering::Relaxed)
    }

    fn note_served(&self) {
        self.served.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns the offset after the last acknowledged message of each partition of a topic.
    pub(super) fn ends(&self, topic: &str) -> BTreeMap<i32, i64> {
        self.reached().and_then(|reached| reached.ends.get(topic).cloned()).unwrap_or_default()
    }

    /// Returns the topics whose offsets are tracked.
    pub(super) fn topics(&self) -> BTreeSet<String> {
        self.reached().map(|reached| reached.ends.keys().cloned().collect()).unwrap_or_default()
    }

    /// Sets offsets that a topic is known to have reached.
    pub(super) fn expect_offsets(&self, topic: &str, ends: &BTreeMap<i32, i64>) {
        let Some(mut reached) = self.reached() else { return };
        let known = reached.ends.entry(topic.to_owned()).or_default();
        for (partition, end) in ends {
            let known = known.entry(*partition).or_insert(0);
            *known = (*known).max(*end);
        }
    }

    /// Returns the first partition whose offsets went back; `None` if there is none.
    pub(super) fn lost(&self) -> Option<OffsetRegression> {
        self.reached()?.lost.clone()
    }

    fn reached(&self) -> Option<MutexGuard<'_, ReachedOffsets>> {
        Some(self.reached.as_ref()?.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn acknowledged(&self, topic: &str, partition: i32, offset: i64) {
        self.delivered.fetch_add(1, Ordering::Relaxed);
        // A duplicate that the broker no longer remembers is acknowledged without an offset.
        let Some(mut reached) = self.reached().filter(|_| offset >= 0) else { return };
        if !reached.ends.contains_key(topic) {
            reached.ends.insert(topic.to_owned(), BTreeMap::new());
        }
        let Some(ends) = reached.ends.get_mut(topic) else { return };
        let end = ends.entry(partition).or_insert(0);
        if offset >= *end {
            *end = offset + 1;
        } else {
            let lost = OffsetRegression { topic: topic.to_owned(), partition, offset, end: *end };
            reached.lost.get_or_insert(lost);
        }
    }
}

impl ClientContext for ProducerEvents {
    fn log(&self, _level: RDKafkaLogLevel, facility: &str, _line: &str) {
        self.note_served();
        if matches!(facility, "FAIL" | "REQTMOUT") {
            self.doubts.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.note_served();
        self.last_error.set(&error, reason);
    }
}

impl ProducerContext for ProducerEvents {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, _: ()) {
        self.note_served();
        match result {
            Ok(message) => self.acknowledged(message.topic(), message.partition(), message.offset()),
            Err((error, message)) => {
                self.failed.fetch_add(1, Ordering::Relaxed);
                let (code, because, cause) = (error.rdkafka_error_code(), error_text(error), error.clone());
                let mut first = self.first.lock().unwrap_or_else(PoisonError::into_inner);
                first.get_or_insert(DeliveryFailure { partition: message.partition(), code, because, cause });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_offset_that_goes_back_tells_that_a_topic_is_lost() {
        let reports = ProducerEvents::tracking_offsets();
        reports.expect_offsets("t", &[(0, 5)].into());
        reports.acknowledged("t", 0, -1);
        reports.acknowledged("t", 0, 7);
        reports.acknowledged("u", 0, 0);
        reports.acknowledged("t", 1, 0);
        assert_eq!((reports.ends("t"), reports.ends("u")), ([(0, 8), (1, 1)].into(), [(0, 1)].into()));
        assert!(reports.lost().is_none());
        reports.acknowledged("t", 0, 7);
        let OffsetRegression { topic, partition, offset, end } = reports.lost().unwrap();
        assert_eq!((topic.as_str(), partition, offset, end), ("t", 0, 7, 8));
    }

    #[test]
    fn only_lost_connections_and_time_outs_are_doubt() {
        let reports = ProducerEvents::default();
        for facility in ["STATE", "FAIL", "CONNECT", "REQTMOUT"] {
            reports.log(RDKafkaLogLevel::Debug, facility, "a line");
        }
        assert_eq!((reports.doubts(), reports.served()), (2, 4));
    }
}
