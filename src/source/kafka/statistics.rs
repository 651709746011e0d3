//! Statistics and events of the client library, which reports twice a second whether a partition's broker answers and
//! whether a transaction is open on it. They decide idleness, never the contents of an epoch.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::KafkaError;
use serde::Deserialize;

use super::broker_errors::{LastError, is_group_refusal, warn_unusable_group};
use super::identity::id_in;
use crate::source::PartitionNote;

/// Silence beyond `fetch.wait.max.ms` after which a broker counts as not answering: one that is asked for records
/// answers within that time.
const SILENCE_TIMEOUT: Duration = Duration::from_millis(1500);

/// Number of successive polls without a line of the log after which none is left. A poll also returns nothing when it
/// has served an event.
pub(super) const SILENT_POLLS: u32 = 4;
/// Outage of a broker that is too short to be noted: brokers and networks pause now and then, and a partition that was
/// just assigned is not fetched at once.
pub(super) const NOTED_OUTAGE: Duration = Duration::from_secs(2);

/// Context of a consumer: collects its statistics, log lines and errors.
#[derive(Debug)]
pub(super) struct ConsumerEvents {
    pub(super) topic: String,
    group: String,
    pub(super) last_error: LastError,
    /// Longest silence of a broker that counts as answering.
    silence: Duration,
    report: Mutex<Option<TopicStatus>>,
    /// Id of the topic that the client library reported last; `None` if it reported none.
    id: Mutex<Option<String>>,
    /// `true` if the client library has logged a line since the last check.
    logged: AtomicBool,
    /// `true` if the consumer group may not be used.
    group_is_refused: AtomicBool,
}

/// Last statistics of the topic.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct TopicStatus {
    partitions: BTreeMap<u32, PartitionReport>,
    /// Address of a broker that leads a partition being read and does not answer.
    pub(super) silent: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct PartitionReport {
    /// `true` if the partition's broker answers.
    answers: bool,
    /// `true` if the client is connected to the partition's broker.
    connected: bool,
    /// `true` if the partition is being fetched, so that its end is known.
    fetched: bool,
    /// `true` if no broker leads the partition.
    orphaned: bool,
    open: bool,
    /// Offset to be fetched next; `None` if earlier records wait in the queue, or if it is unknown.
    drained: Option<u64>,
    /// Last stable offset: the offset after the last record that can be read; `None` if it is unknown.
    end: Option<u64>,
}

impl TopicStatus {
    /// `true` if a partition's broker answers, and no transaction is open on the partition.
    pub(super) fn is_quiescent(&self, partition: u32) -> bool {
        self.partitions.get(&partition).is_some_and(|heard| heard.answers && heard.fetched && !heard.open)
    }

    /// `true` if a partition's broker answers, or if nothing was reported of the partition yet.
    pub(super) fn answers(&self, partition: u32) -> bool {
        self.partitions.get(&partition).is_none_or(|heard| heard.answers)
    }

    /// `true` if the client is connected to a partition's broker, or if nothing was reported of the partition yet.
    pub(super) fn is_connected(&self, partition: u32) -> bool {
        self.partitions.get(&partition).is_none_or(|heard| heard.connected)
    }

    /// Returns the offset to be fetched next of a partition; `None` if earlier records wait in its queue. It is past
    /// transaction markers, which no poll returns.
    pub(super) fn drained_offset(&self, partition: u32) -> Option<u64> {
        self.partitions.get(&partition)?.drained
    }

    /// Returns the monitoring data of a partition whose broker has not answered for `silence`.
    pub(super) fn note(&self, partition: u32, position: Option<u64>, silence: Option<Duration>) -> PartitionNote {
        let heard = self.partitions.get(&partition);
        let note = heard.and_then(|heard| match (silence.is_some_and(|silence| silence >= NOTED_OUTAGE), heard.open) {
            (true, _) if heard.orphaned => Some("no broker leads it"),
            (true, _) => Some("its broker does not answer"),
            (false, true) => Some("a transaction is open on it, whose records cannot be read before its end"),
            (false, false) => None,
        });
        PartitionNote { partition, position, end: heard.and_then(|heard| heard.end), note: note.map(str::to_owned) }
    }
}

impl ConsumerEvents {
    pub(super) fn new(topic: &str, group: &str, fetch_wait: Duration) -> Self {
        let (topic, group, last_error) = (topic.to_owned(), group.to_owned(), LastError::default());
        ConsumerEvents {
            topic,
            group,
            last_error,
            silence: fetch_wait + SILENCE_TIMEOUT,
            report: Mutex::default(),
            id: Mutex::default(),
            logged: AtomicBool::default(),
            group_is_refused: AtomicBool::default(),
        }
    }

    /// Notes that the consumer group, whose offsets are for lag monitors, may not be used.
    pub(super) fn group_refused(&self) {
        self.group_is_refused.store(true, Ordering::Relaxed);
        warn_unusable_group(&self.group);
    }

    /// `true` unless it was reported that the consumer group may not be used.
    pub(super) fn has_group(&self) -> bool {
        !self.group_is_refused.load(Ordering::Relaxed)
    }

    /// Serves one event of a consumer that fetches nothing. An error that the group may not be used is kept, because
    /// the library reports it only once.
    pub(super) fn serve_event(consumer: &BaseConsumer<ConsumerEvents>) {
        if let Some(Err(error)) = consumer.poll(Duration::ZERO)
            && error.rdkafka_error_code().is_some_and(is_group_refusal)
        {
            consumer.context().group_refused();
        }
    }

    /// Returns the statistics that arrived since the last call; `None` if there are none.
    pub(super) fn take(&self) -> Option<TopicStatus> {
        self.report.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Returns the last reported id of the topic; `None` if the brokers assign none.
    pub(super) fn id(&self) -> Option<String> {
        self.id.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Serves all events of a consumer that fetches nothing yet.
    pub(super) fn serve_events(consumer: &BaseConsumer<ConsumerEvents>) {
        let mut silent = 0;
        while silent < SILENT_POLLS {
            ConsumerEvents::serve_event(consumer);
            silent = if consumer.context().has_logged() { 0 } else { silent + 1 };
        }
    }

    /// `true` if the client library has logged a line since the last call.
    pub(super) fn has_logged(&self) -> bool {
        self.logged.swap(false, Ordering::Relaxed)
    }

    fn read(&self, statistics: &[u8]) -> Option<TopicStatus> {
        let statistics: Statistics = serde_json::from_slice(statistics).ok()?;
        let mut report = TopicStatus::default();
        let topic = statistics.topics.get(&self.topic)?;
        for partition in topic.partitions.values() {
            let Ok(id) = u32::try_from(partition.partition) else { continue };
            // Coordinators are listed, too, with the node of a partition without a leader.
            let leader = (partition.leader >= 0).then_some(partition.leader);
            let broker = statistics.brokers.values().find(|broker| Some(broker.nodeid) == leader);
            let up = broker.is_some_and(|broker| matches!(broker.state.as_str(), "UP" | "UPDATE"));
            let fresh = broker.is_some_and(|b| u128::try_from(b.rxidle).is_ok_and(|us| us <= self.silence.as_micros()));
            let fetched = partition.desired && partition.fetch_state == "active";
            if fetched && !up {
                let name = |broker: &BrokerStatistics| {
                    broker.name.rsplit_once('/').map_or(&*broker.name, |(name, _)| name).to_owned()
                };
                report.silent = Some(broker.map_or_else(|| format!("to lead {}", self.topic), name));
            }
            let open = partition.ls_offset < partition.hi_offset;
            let end = u64::try_from(partition.ls_offset).ok();
            let drained = u64::try_from(partition.next_offset).ok().filter(|_| partition.fetchq_cnt == 0);
            let (answers, orphaned) = (up && fresh, partition.leader < 0);
            report
                .partitions
                .insert(id, PartitionReport { answers, connected: up, fetched, orphaned, open, drained, end });
        }
        Some(report)
    }
}

impl ClientContext for ConsumerEvents {
    fn stats_raw(&self, statistics: &[u8]) {
        if let Some(report) = self.read(statistics) {
            *self.report.lock().unwrap_or_else(PoisonError::into_inner) = Some(report);
        }
    }

    fn log(&self, _level: RDKafkaLogLevel, _facility: &str, line: &str) {
        self.logged.store(true, Ordering::Relaxed);
        if let Some(id) = id_in(&self.topic, line) {
            *self.id.lock().unwrap_or_else(PoisonError::into_inner) = Some(id.to_owned());
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.last_error.set(&error, reason);
    }
}

impl ConsumerContext for ConsumerEvents {}

/// A broker that does not answer, as seen by one reader. It is logged once, however many readers of this process see
/// it.
#[derive(Debug)]
pub(super) struct Outage {
    broker: String,
}

/// Number of readers that miss each broker.
static READERS_MISSING: Mutex<BTreeMap<String, u32>> = Mutex::new(BTreeMap::new());

impl Outage {
    fn missed() -> MutexGuard<'static, BTreeMap<String, u32>> {
        READERS_MISSING.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn begin(broker: &str) -> Self {
        let mut missed = Outage::missed();
        let readers = missed.entry(broker.to_owned()).or_default();
        *readers += 1;
        if *readers == 1 {
            tracing::warn!("broker {broker} not reachable, waiting");
        }
        Outage { broker: broker.to_owned() }
    }

    pub(super) fn end(self) {
        let broker = self.broker.clone();
        drop(self);
        if !Outage::missed().contains_key(&broker) {
            tracing::info!("broker {broker} reachable again");
        }
    }
}

impl Drop for Outage {
    fn drop(&mut self) {
        let mut missed = Outage::missed();
        if let Some(readers) = missed.get_mut(&self.broker) {
            *readers -= 1;
            if *readers == 0 {
                missed.remove(&self.broker);
            }
        }
    }
}

#[derive(Deserialize)]
struct Statistics {
    #[serde(default)]
    brokers: BTreeMap<String, BrokerStatistics>,
    #[serde(default)]
    topics: BTreeMap<String, TopicStatistics>,
}

#[derive(Deserialize)]
struct BrokerStatistics {
    name: String,
    nodeid: i32,
    state: String,
    /// Microseconds since the broker's last response; −1 if there was none.
    #[serde(default)]
    rxidle: i64,
}

#[derive(Deserialize)]
struct TopicStatistics {
    partitions: BTreeMap<String, PartitionStatistics>,
}

#[derive(Deserialize)]
struct PartitionStatistics {
    partition: i32,
    leader: i32,
    desired: bool,
    fetch_state: String,
    hi_offset: i64,
    ls_offset: i64,
    /// Offset to fetch next; negative while it is unknown.
    #[serde(default)]
    next_offset: i64,
    /// Number of records in the partition's queue.
    #[serde(default)]
    fetchq_cnt: i64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_is_calm_only_if_its_broker_answers_and_no_transaction_is_open() {
        let listener = ConsumerEvents::new("t", "g", Duration::from_millis(500));
        for (state, rxidle, ls, calm, silent) in [
            ("UP", 400_000, 10, true, None),
            ("UP", 400_000, 9, false, None),
            ("UP", 5_000_000, 10, false, None),
            ("UP", -1, 10, false, None),
            ("TRY_CONNECT", 400_000, 10, false, Some("h:1")),
        ] {
            let text = format!(
                r#"{{"brokers":{{"h:1/1":{{"name":"h:1/1","nodeid":1,"state":"{state}","rxidle":{rxidle}}}}},"topics":
                {{"t":{{"partitions":{{"0":{{"partition":0,"leader":1,"desired":true,"fetch_state":"active",
                "hi_offset":10,"ls_offset":{ls},"next_offset":8,"fetchq_cnt":{}}}}}}}}}}}"#,
                i32::from(ls == 9)
            );
            listener.stats_raw(text.as_bytes());
            let report = listener.take().unwrap();
            assert_eq!((report.is_quiescent(0), report.silent.as_deref()), (calm, silent), "{state} {rxidle} {ls}");
            assert!(!report.is_quiescent(1) && listener.take().is_none());
            assert_eq!(report.drained_offset(0), (ls != 9).then_some(8));
            assert_eq!(report.answers(0), state == "UP" && rxidle == 400_000, "{state} {rxidle}");
            let [moment, long] = [NOTED_OUTAGE / 2, NOTED_OUTAGE].map(|silence| report.note(0, None, Some(silence)));
            assert_eq!((long.end, long.note.as_deref()), (Some(ls), Some("its broker does not answer")));
            // A short outage is not noted, an open transaction is.
            assert_eq!(moment.note.is_some(), ls == 9);
            assert_eq!((report.is_connected(0), report.is_connected(1)), (state == "UP", true));
        }
    }

    #[test]
    fn a_partition_without_a_leader_is_not_taken_for_one_of_the_coordinator() {
        let listener = ConsumerEvents::new("t", "g", Duration::from_millis(500));
        let text = r#"{"brokers":{"GroupCoordinator":{"name":"GroupCoordinator","nodeid":-1,"state":"UP","rxidle":1}},
            "topics":{"t":{"partitions":{"0":{"partition":0,"leader":-1,"desired":true,"fetch_state":"active",
            "hi_offset":10,"ls_offset":10}}}}}"#;
        listener.stats_raw(text.as_bytes());
        let report = listener.take().unwrap();
        assert_eq!(report.silent.as_deref(), Some("to lead t"));
        assert!(!report.is_connected(0) && !report.answers(0) && !report.is_quiescent(0));
        assert_eq!(report.note(0, None, Some(NOTED_OUTAGE)).note.as_deref(), Some("no broker leads it"));
    }
}
