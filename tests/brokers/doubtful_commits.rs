//! Networks that delay a request, or are down for longer than brokers wait: a reader of committed messages sees each
//! epoch whole, and once. A proxy between the sink and a real broker holds requests back and delivers them when the
//! next transaction is open, which the protocol version of the client library cannot tell apart.
//!
//! `DOUBT_ROUNDS` is the number of requests that the test of a whole job holds back (2 by default).

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use crate::broker::{Broker, committed, high_watermarks};
use crate::proxy::{CREATE_TOPICS, END_TXN, PRODUCE, Proxy};
use crate::run::{Running, run, start};
use crate::transactions::{DISORDER_MS, Transaction, expected, json_of, tidy};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::signal::Signal;
use nix::sys::time::TimeValLike;
use serde::{Deserialize, Serialize};
use tidegate::durable::journal::JournalEnds;
use tidegate::durable::{Incarnation, StateId};
use tidegate::sink::kafka;
use tidegate::sink::{Sink, SinkContext, SinkRows, SinkWriter};
use tidegate::time::Epoch;

const ACCOUNT_TOTALS: &str = "account_totals";
const TIDEGATE: &str = env!("CARGO_BIN_EXE_tidegate");
const PATIENCE: Duration = Duration::from_secs(60);

/// Transaction timeout here, and the time until the broker forgets an unused transactional id, in milliseconds.
const TRANSACTION_MS: u64 = 2_000;
const ID_MS: u64 = 6_000;

/// The broker behind its proxy, for one test at a time.
struct Network {
    broker: Broker,
    proxy: Proxy,
}

impl Network {
    fn shared() -> Option<MutexGuard<'static, Network>> {
        static SHARED: OnceLock<Option<Mutex<Network>>> = OnceLock::new();
        let begin = || Network::start().map(Mutex::new);
        Some(SHARED.get_or_init(begin).as_ref()?.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Starts one of the caller's own; `None` if there can be none on this machine.
    fn start() -> Option<Network> {
        let proxy = Proxy::listen();
        let ports = proxy.ports();
        let expires = format!("transactional.id.expiration.ms={ID_MS}");
        let looks = "transaction.remove.expired.transaction.cleanup.interval.ms=200";
        let broker = Broker::start_with(&["--proxied", &ports, "--set", &expires, "--set", looks])?;
        Some(Network { broker, proxy })
    }

    fn committed(&self, topic: &str) -> Vec<String> {
        committed(&self.broker.servers, topic)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
struct Row {
    epoch: u64,
    n: u64,
}

/// A topic that is written to through the proxy.
struct ProxiedTopic<'a> {
    network: &'a Network,
    topic: String,
    state: StateId,
    /// Transaction timeout, in milliseconds.
    limit: u64,
    lives: u64,
}

impl ProxiedTopic<'_> {
    fn new(network: &Network, limit: u64) -> ProxiedTopic<'_> {
        static STATES: AtomicU64 = AtomicU64::new(1);
        let state = StateId(STATES.fetch_add(1, Ordering::Relaxed));
        ProxiedTopic { network, topic: network.broker.topic(2), state, limit, lives: 0 }
    }

    /// Opens and begins a writer; also returns the epoch that was published before.
    fn begun(&mut self) -> (Box<dyn SinkWriter<Row>>, Option<Epoch>) {
        let output = kafka::Sink::json(&self.network.proxy.servers, &self.topic).key_by(|row: &Row| row.n.to_string());
        let output = output.config("transaction.timeout.ms", &self.limit.to_string());
        let shard = SinkContext { state: Some(self.state), ..SinkContext::new("job", "totals", SinkRows::Events) };
        let mut writer = output.open(&shard).unwrap();
        let shown = writer.published().unwrap().map(|found| found.epoch);
        self.lives += 1;
        let still_current = Arc::new(|| Ok(()));
        writer
            .begin(&Incarnation { state: Some(self.state), incarnation: self.lives, resumed_from: None, still_current })
            .unwrap();
        (writer, shown)
    }

    /// Returns the number of committed messages of each epoch.
    fn committed(&self) -> BTreeMap<u64, usize> {
        let mut epochs = BTreeMap::new();
        for text in self.network.committed(&self.topic) {
            *epochs.entry(serde_json::from_str::<Row>(&text).unwrap().epoch).or_default() += 1;
        }
        epochs
    }

    /// Waits until the topic has `by` more messages and markers than `before`, committed or not.
    fn until_grown(&self, before: i64, by: i64) {
        let begun = Instant::now();
        while self.end() < before + by {
            assert!(begun.elapsed() < PATIENCE, "the messages did not come");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn end(&self) -> i64 {
        high_watermarks(&self.network.broker.servers, &self.topic).values().sum()
    }
}

/// Number of rows of each epoch.
const ROWS: usize = 20;

fn write(writer: &mut Box<dyn SinkWriter<Row>>, epoch: u64) {
    let rows: Vec<_> = (0..ROWS as u64).map(|n| (Row { epoch, n }, 1)).collect();
    writer.write(Epoch(epoch), &rows).unwrap();
}

fn show(writer: &mut Box<dyn SinkWriter<Row>>, epoch: u64) {
    write(writer, epoch);
    writer.publish(&JournalEnds::default()).unwrap();
}

fn whole(epochs: impl IntoIterator<Item = u64>) -> BTreeMap<u64, usize> {
    epochs.into_iter().map(|epoch| (epoch, ROWS)).collect()
}

#[test]
fn a_topic_is_created_though_the_first_request_is_lost_and_arrives_late() {
    let Some(network) = Network::shared() else { return };
    let topic = "created-once";
    network.proxy.hold(CREATE_TOPICS);
    let line = format!("produce --brokers {} --topic {topic} --partitions 3 --generate 10", network.proxy.servers);
    let produced = run(TIDEGATE, line.split(' '));
    assert!(network.proxy.holds(), "no request was lost");
    assert!(produced.code(0).stdout().contains("10 messages"));
    network.proxy.deliver();
    assert_eq!(high_watermarks(&network.broker.servers, topic).len(), 3);
    assert_eq!(network.committed(topic).len(), 10);
}

#[test]
fn a_commit_that_arrives_late_commits_nothing_of_the_next_transaction() {
    let Some(network) = Network::shared() else { return };
    let mut place = ProxiedTopic::new(&network, 60_000);
    let (mut writer, _) = place.begun();
    show(&mut writer, 2);
    // The connection breaks with the commit request, which is sent again and answered.
    network.proxy.hold(END_TXN);
    show(&mut writer, 4);
    assert!(network.proxy.holds(), "no request to commit was sent");
    let before = place.end();
    write(&mut writer, 6);
    place.until_grown(before, ROWS as i64);
    let answer = network.proxy.deliver();
    let code = i16::from_be_bytes([answer[8], answer[9]]);
    assert_ne!(code, 0, "the late request was taken");
    // The process could be killed here: what it has not published must not be there.
    assert_eq!(place.committed(), whole([2, 4]));
    writer.publish(&JournalEnds::default()).unwrap();
    show(&mut writer, 8);
    drop(writer);
    assert_eq!(place.begun().1, Some(Epoch(8)));
    assert_eq!(place.committed(), whole([2, 4, 6, 8]));
}

#[test]
fn messages_that_arrive_late_are_not_there_twice() {
    let Some(network) = Network::shared() else { return };
    let mut place = ProxiedTopic::new(&network, 60_000);
    let (mut writer, _) = place.begun();
    show(&mut writer, 2);
    for epoch in [4, 8, 12] {
        network.proxy.hold(PRODUCE);
        show(&mut writer, epoch);
        network.proxy.until_held();
        let before = place.end();
        write(&mut writer, epoch + 2);
        place.until_grown(before, ROWS as i64);
        network.proxy.deliver();
        writer.publish(&JournalEnds::default()).unwrap();
    }
    drop(writer);
    assert_eq!(place.begun().1, Some(Epoch(14)));
    assert_eq!(place.committed(), whole((2..=14).step_by(2)));
}

/// Takes the network down for some milliseconds.
fn outage(network: &Network, for_ms: u64) {
    network.proxy.go_down();
    std::thread::sleep(Duration::from_millis(for_ms));
    network.proxy.go_up();
}

/// Returns the time for which this thread has used a processor.
fn processor_time() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_THREAD).unwrap();
    let times = [usage.user_time(), usage.system_time()];
    times.iter().map(|time| Duration::from_micros(time.num_microseconds() as u64)).sum()
}

#[test]
fn an_outage_longer_than_brokers_wait_delays_results_and_no_more() {
    let Some(network) = Network::shared() else { return };
    let mut place = ProxiedTopic::new(&network, TRANSACTION_MS);
    let (mut writer, _) = place.begun();
    show(&mut writer, 2);
    // Longer than the broker remembers a transactional id: there is no transaction, and none can begin with the old
    // producer id.
    outage(&network, ID_MS * 3 / 2);
    show(&mut writer, 4);
    // With an open transaction that the broker aborts meanwhile: before it is published, and while it is.
    write(&mut writer, 6);
    outage(&network, 2 * TRANSACTION_MS);
    writer.publish(&JournalEnds::default()).unwrap();
    std::thread::scope(|scope| {
        network.proxy.go_down();
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(3 * TRANSACTION_MS));
            network.proxy.go_up();
        });
        let (begun, used) = (Instant::now(), processor_time());
        show(&mut writer, 8);
        let (took, used) = (begun.elapsed(), processor_time() - used);
        assert!(took > Duration::from_millis(2 * TRANSACTION_MS), "the network was not down");
        assert!(used * 4 < took, "a sink that waited for {took:?} used the processor for {used:?}");
    });
    show(&mut writer, 10);
    drop(writer);
    assert_eq!(place.begun().1, Some(Epoch(10)));
    assert_eq!(place.committed(), whole((2..=10).step_by(2)));
}

#[test]
fn a_transaction_that_always_takes_too_long_is_an_error() {
    let Some(network) = Network::shared() else { return };
    let mut place = ProxiedTopic::new(&network, TRANSACTION_MS);
    drop(place.begun());
    let output = kafka::Sink::json(&network.broker.servers, &place.topic).config("transaction.timeout.ms", "1000");
    let shard = SinkContext { state: Some(place.state), ..SinkContext::new("job", "totals", SinkRows::Events) };
    let mut writer: Box<dyn SinkWriter<Row>> = output.open(&shard).unwrap();
    let calls = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&calls);
    // Called just before a commit: from the second time on it takes longer than the broker waits.
    let still_current = Arc::new(move || {
        if counted.fetch_add(1, Ordering::SeqCst) > 0 {
            std::thread::sleep(Duration::from_millis(2_500));
        }
        Ok(())
    });
    writer.begin(&Incarnation { state: Some(place.state), incarnation: 9, resumed_from: None, still_current }).unwrap();
    write(&mut writer, 2);
    let why = writer.publish(&JournalEnds::default()).unwrap_err().to_string();
    let expected = "it took more than 1 s, and the brokers have aborted it; raise transaction.timeout.ms";
    assert!(why.contains(expected), "{why}");
    assert_eq!(place.committed(), whole([]));
}

/// Generates rows of two partitions: 200 of each for each round, and some more. Each hundred of a partition ends a
/// window by itself, so that the job always has a transaction to send.
fn parts_that_always_close_a_window(rounds: usize) -> Vec<Vec<Transaction>> {
    const WINDOWS_MS: i64 = 30_000;
    let rows = tidy(11, 400 * (rounds + 1));
    let part = |part| {
        let rows = rows.iter().filter(|row| row.id % 2 == part).cloned().enumerate();
        rows.map(|(n, row)| Transaction { at_ms: row.at_ms + n as i64 / 50 * WINDOWS_MS, ..row }).collect()
    };
    (0..2).map(part).collect()
}

/// A job on a topic, both through the proxy, while requests are held and delivered late, the network is down, and the
/// process is killed just after a late request.
#[test]
fn results_of_a_job_are_exact_whatever_arrives_late() {
    // Beside the other tests, which are waits for the most part, as it is.
    let Some(network) = Network::start() else { return };
    let rounds: u64 = std::env::var("DOUBT_ROUNDS").map_or(2, |rounds| rounds.parse().unwrap());
    let folder = tempfile::tempdir().unwrap();
    let (topic, out) = (network.broker.topic(2), network.broker.topic(2));
    let state = folder.path().join("state").display().to_string();
    let limit = format!("transaction.timeout.ms={TRANSACTION_MS}");
    let begin = |until_end: bool| -> Running {
        let flags = ["--brokers", &network.proxy.servers, "--topic", &topic, "--out", &format!("kafka:{out}")];
        let kept = ["--state", &state, "--epoch", "50ms", "--kafka-config", &limit];
        let end: &[&str] = if until_end { &["--until-end"] } else { &[] };
        start(ACCOUNT_TOTALS, flags.iter().chain(&kept).chain(end).map(|word| (*word).to_owned()))
    };
    let parts = parts_that_always_close_a_window(rounds as usize);
    let send = |from: usize, to: usize| {
        for (partition, rows) in parts.iter().enumerate() {
            network.broker.send(&topic, partition, rows[from..to].iter().map(json_of));
        }
    };
    let mut running = begin(false);
    for round in 0..rounds as usize {
        let (from, middle, to) = (200 * round, 200 * round + 100, 200 * round + 200);
        network.proxy.hold(if round % 3 == 1 { PRODUCE } else { END_TXN });
        send(from, middle);
        network.proxy.until_held();
        if round % 4 == 3 {
            outage(&network, 2 * TRANSACTION_MS);
        }
        // Delivered as soon as more has arrived in the output: in the middle of a transaction, if possible, or between
        // two.
        let end = |topic: &str| high_watermarks(&network.broker.servers, topic).values().sum::<i64>();
        let before = end(&out);
        send(middle, to);
        let begun = Instant::now();
        while end(&out) == before && begun.elapsed() < Duration::from_secs(5) {}
        network.proxy.deliver();
        if round % 2 == 0 {
            running.signal(Signal::SIGKILL);
            assert!(running.end_or_killed().was_killed());
            running = begin(false);
        }
    }
    send(200 * rounds as usize, parts[0].len().min(parts[1].len()));
    let (first, second) = (parts[0].len(), parts[1].len());
    let most = first.min(second);
    for (partition, rows) in parts.iter().enumerate() {
        network.broker.send(&topic, partition, rows[most..].iter().map(json_of));
    }
    running.signal(Signal::SIGTERM);
    running.end().code(143);
    begin(true).end().code(0);
    let mut found: Vec<Vec<String>> = (network.committed(&out).iter())
        .map(|message| {
            let row: serde_json::Map<String, serde_json::Value> = serde_json::from_str(message).unwrap();
            crate::transactions::TOTALS
                .map(|name| row[name].as_str().map_or_else(|| row[name].to_string(), String::from))
                .to_vec()
        })
        .collect();
    let mut expected = expected(parts.iter().map(Vec::as_slice), DISORDER_MS).rows();
    found.sort();
    expected.sort();
    // Sums beyond 64 bits are integers too, but not all readers of JSON support them.
    for rows in [&mut found, &mut expected] {
        rows.iter_mut().filter(|row| row[4].parse::<i64>().is_err()).for_each(|row| row[4] = String::from("large"));
        rows.sort();
    }
    let wrong = found.iter().zip(&expected).find(|(found, expected)| found != expected);
    assert_eq!((found.len(), wrong), (expected.len(), None));
}

/// A broker that is reachable, and advertises an address that is not.
#[test]
fn an_advertised_address_that_leads_nowhere_is_named() {
    let Some(network) = Network::shared() else { return };
    let (topic, found) = (network.broker.topic(2), network.proxy.bypass());
    network.proxy.go_down();
    let output = || kafka::Sink::<Row>::json(&found, &topic);
    let kept = SinkContext { state: Some(StateId(77)), ..SinkContext::new("job", "totals", SinkRows::Events) };
    let errors = [kept, SinkContext::new("job", "totals", SinkRows::Events)].map(|shard| {
        let opened = output().open(&shard);
        opened.err().expect("refused").to_string()
    });
    let flags = ["produce", "--brokers", &found, "--topic", &topic, "--generate", "10"];
    let ended = run(TIDEGATE, flags);
    network.proxy.go_up();
    for error in errors.iter().map(String::as_str).chain([ended.error(1)]) {
        let what = format!("cannot reach {}", network.proxy.servers);
        crate::run::check_contains(error, &[&what, "advertised.listeners"]);
    }
}
