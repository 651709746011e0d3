//! What the client library reports about itself twice a second: whether a partition's broker answers, and whether a
//! transaction is open on it. Idleness is decided by it, never the contents of an epoch.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::KafkaError;
use serde::Deserialize;

use super::client::LastWords;
use super::identity::id_in;
use crate::source::Note;

/// A broker that is asked for records answers within `fetch.wait.max.ms`; one that has been silent for so much longer
/// is not heard.
const SILENCE: Duration = Duration::from_millis(1500);

/// After how many polls that served no line of the log there is none left: a poll also answers nothing when it has served an
/// event.
pub(super) const SILENT_POLLS: u32 = 4;
/// A broker that has not answered for less than this is no cause of anything: brokers and networks take a moment now and
/// then, and a partition that was just assigned is not fetched at once.
pub(super) const NOTED: Duration = Duration::from_secs(2);

/// Listens to what a consumer says.
#[derive(Debug)]
pub(super) struct Listener {
    pub(super) topic: String,
    group: String,
    pub(super) words: LastWords,
    /// How long a broker may say nothing.
    silence: Duration,
    report: Mutex<Option<Report>>,
    /// The topic's id, as the client library heard of it last.
    id: Mutex<Option<String>>,
    /// The client library has logged something.
    logged: AtomicBool,
}

/// What was last heard of the topic.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Report {
    partitions: BTreeMap<u32, Heard>,
    /// A broker that leads partitions which we read, and does not answer.
    pub(super) silent: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Heard {
    /// Its broker answers.
    answers: bool,
    /// It is fetched: its end is known to be the end.
    fetched: bool,
    /// No broker leads it.
    orphaned: bool,
    open: bool,
    /// The offset to be fetched next, if all before it was taken from the queue.
    drained: Option<u64>,
    /// The offset behind the last record that can be read, if it was heard.
    end: Option<u64>,
}

impl Report {
    /// Whether a partition's broker answers, and has no transaction open on it.
    pub(super) fn is_calm(&self, partition: u32) -> bool {
        self.partitions.get(&partition).is_some_and(|heard| heard.answers && heard.fetched && !heard.open)
    }

    /// `true` if a partition's broker answers, as far as anything was heard of it.
    pub(super) fn answers(&self, partition: u32) -> bool {
        self.partitions.get(&partition).is_none_or(|heard| heard.answers)
    }

    /// The offset that is fetched next of a partition, if nothing before it waits in its queue. It is behind transaction
    /// markers, which are never taken.
    pub(super) fn drained(&self, partition: u32) -> Option<u64> {
        self.partitions.get(&partition)?.drained
    }

    /// Says what was heard of a partition; its broker has not answered for `silence`.
    pub(super) fn note(&self, partition: u32, position: Option<u64>, silence: Option<Duration>) -> Note {
        let heard = self.partitions.get(&partition);
        let note = heard.and_then(|heard| match (silence.is_some_and(|silence| silence >= NOTED), heard.open) {
            (true, _) if heard.orphaned => Some("no broker leads it"),
            (true, _) => Some("its broker does not answer"),
            (false, true) => Some("a transaction is open on it, whose records cannot be read before its end"),
            (false, false) => None,
        });
        Note { partition, position, end: heard.and_then(|heard| heard.end), note: note.map(str::to_owned) }
    }
}

impl Listener {
    pub(super) fn new(topic: &str, group: &str, fetch_wait: Duration) -> Self {
        let (topic, group, words) = (topic.to_owned(), group.to_owned(), LastWords::default());
        Listener {
            topic,
            group,
            words,
            silence: fetch_wait + SILENCE,
            report: Mutex::default(),
            id: Mutex::default(),
            logged: AtomicBool::default(),
        }
    }

    /// The group whose offsets tell monitors how far it reads.
    pub(super) fn group(&self) -> &str {
        &self.group
    }

    /// The report that came since the last call, if one did.
    pub(super) fn take(&self) -> Option<Report> {
        self.report.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// The id that the topic has, as far as was heard; `None` if the brokers give none.
    pub(super) fn id(&self) -> Option<String> {
        self.id.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Serves what the client library has to say of a topic of which nothing is read yet.
    pub(super) fn drain(consumer: &BaseConsumer<Listener>) {
        let mut silent = 0;
        while silent < SILENT_POLLS {
            drop(consumer.poll(Duration::ZERO));
            silent = if consumer.context().has_logged() { 0 } else { silent + 1 };
        }
    }

    /// `true` if the client library has logged something since the last call.
    pub(super) fn has_logged(&self) -> bool {
        self.logged.swap(false, Ordering::Relaxed)
    }

    fn read(&self, statistics: &[u8]) -> Option<Report> {
        let statistics: Statistics = serde_json::from_slice(statistics).ok()?;
        let mut report = Report::default();
        let topic = statistics.topics.get(&self.topic)?;
        for partition in topic.partitions.values() {
            let Ok(id) = u32::try_from(partition.partition) else { continue };
            let broker = statistics.brokers.values().find(|broker| broker.nodeid == partition.leader);
            let up = broker.is_some_and(|broker| matches!(broker.state.as_str(), "UP" | "UPDATE"));
            let fresh = broker.is_some_and(|b| u128::try_from(b.rxidle).is_ok_and(|us| us <= self.silence.as_micros()));
            let fetched = partition.desired && partition.fetch_state == "active";
            if let Some(broker) = broker.filter(|_| fetched && !up) {
                report.silent = Some(broker.name.rsplit_once('/').map_or(&*broker.name, |(name, _)| name).to_owned());
            }
            let open = partition.ls_offset < partition.hi_offset;
            let end = u64::try_from(partition.ls_offset).ok();
            let drained = u64::try_from(partition.next_offset).ok().filter(|_| partition.fetchq_cnt == 0);
            let (answers, orphaned) = (up && fresh, partition.leader < 0);
            report.partitions.insert(id, Heard { answers, fetched, orphaned, open, drained, end });
        }
        Some(report)
    }
}

impl ClientContext for Listener {
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
        self.words.set(&error, reason);
    }
}

impl ConsumerContext for Listener {}

/// A broker that does not answer, as one reader sees it. It is told once, however many readers of this process see it.
#[derive(Debug)]
pub(super) struct Outage {
    broker: String,
}

/// By how many readers brokers are missed.
static MISSED: Mutex<BTreeMap<String, u32>> = Mutex::new(BTreeMap::new());

impl Outage {
    fn missed() -> MutexGuard<'static, BTreeMap<String, u32>> {
        MISSED.lock().unwrap_or_else(PoisonError::into_inner)
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
    /// Microseconds since the broker last said anything; −1 if it never did.
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
    /// The offset to fetch next; negative before it is known.
    #[serde(default)]
    next_offset: i64,
    /// The number of records that wait in the partition's queue.
    #[serde(default)]
    fetchq_cnt: i64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_is_calm_only_if_its_broker_answers_and_no_transaction_is_open() {
        let listener = Listener::new("t", "g", Duration::from_millis(500));
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
            assert_eq!((report.is_calm(0), report.silent.as_deref()), (calm, silent), "{state} {rxidle} {ls}");
            assert!(!report.is_calm(1) && listener.take().is_none());
            assert_eq!(report.drained(0), (ls != 9).then_some(8));
            assert_eq!(report.answers(0), state == "UP" && rxidle == 400_000, "{state} {rxidle}");
            let [moment, long] = [NOTED / 2, NOTED].map(|silence| report.note(0, None, Some(silence)));
            assert_eq!((long.end, long.note.as_deref()), (Some(ls), Some("its broker does not answer")));
            // Of a moment nothing is said, but for a transaction that is open.
            assert_eq!(moment.note.is_some(), ls == 9);
        }
    }
}
