//! A topic is identified by its id. Whatever happens to it under a job, or while none runs, the job gets the results of
//! the records that it has read, or fails: it never succeeds with other results. On a real broker: a topic is deleted
//! and created again at once or after a while, with fewer and more partitions; compaction and retention remove records.
//!
//! `SOURCE_IDENTITY_ROUNDS=10` repeats each case ten times, with other gaps, partitions and moments; the default is
//! once.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::broker::Broker;
use crate::run::{Running, check_contains, run, start};
use crate::transactions::{START_MS, TOTALS, Transaction, expected, json_of, rows_of, same_rows, tidy};
use fastrand::Rng;
use nix::sys::signal::Signal;
use rdkafka::config::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

const ACCOUNT_TOTALS: &str = "account_totals";
const PATIENCE: Duration = Duration::from_secs(60);

/// Returns the number of runs of each case, each run different.
fn rounds() -> u64 {
    std::env::var("SOURCE_IDENTITY_ROUNDS").map_or(1, |text| text.parse().unwrap())
}

/// Sends rows to partitions with their numbers as timestamps, so that an equal row is an equal record.
fn send(broker: &Broker, topic: &str, partitions: &[Vec<Transaction>], key: impl Fn(&Transaction) -> String) {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", &broker.servers).set("enable.idempotence", "true").set("linger.ms", "2");
    let producer: BaseProducer = config.create().unwrap();
    for (partition, rows) in partitions.iter().enumerate() {
        for row in rows {
            let (text, key) = (json_of(row), key(row));
            let record = BaseRecord::to(topic).partition(partition as i32).payload(&text).key(&key);
            producer.send(record.timestamp(START_MS + 1_000 * row.id as i64)).map_err(|(why, _)| why).unwrap();
            producer.poll(Duration::ZERO);
        }
    }
    producer.flush(PATIENCE).unwrap();
}

fn by_id(row: &Transaction) -> String {
    row.id.to_string()
}

/// Distributes rows over partitions, in order.
fn dealt(rows: &[Transaction], count: usize) -> Vec<Vec<Transaction>> {
    let mut partitions = vec![Vec::new(); count];
    rows.iter().for_each(|row| partitions[row.id as usize % count].push(row.clone()));
    partitions
}

/// A job on a topic, with its files in a folder.
struct Case<'a> {
    broker: &'a Broker,
    topic: String,
    folder: tempfile::TempDir,
    /// The flag for a state, and further arguments.
    flags: String,
}

impl<'a> Case<'a> {
    fn new(broker: &'a Broker, partitions: i32, settings: &[(&str, &str)], flags: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let topic =
            format!("{}-identity", folder.path().file_name().unwrap().to_str().unwrap().trim_start_matches('.'));
        broker.create_with(&topic, partitions, settings);
        Case { broker, topic, folder, flags: flags.to_owned() }
    }

    fn with_state(&self) -> bool {
        self.flags.contains("--state")
    }

    fn typed(&self, more: &str) -> Vec<String> {
        let folder = self.folder.path().to_str().unwrap();
        let line = format!(
            "--brokers {} --topic {} --out {{}}/out.csv --epoch 20ms --progress off {} {more}",
            self.broker.servers, self.topic, self.flags
        );
        line.split_whitespace().map(|word| word.replace("{}", folder)).collect()
    }

    fn start(&self, more: &str) -> Running {
        start(ACCOUNT_TOTALS, self.typed(more))
    }

    fn out(&self) -> std::path::PathBuf {
        self.folder.path().join("out.csv")
    }

    /// Waits until the job has published everything of these rows, by its group offsets.
    #[track_caller]
    fn until_read(&self, job: &mut Running, partitions: &[Vec<Transaction>]) {
        for (partition, rows) in partitions.iter().enumerate() {
            job.wait_until("all records are read", |_| {
                let at = self.broker.group_offset("tidegate-account-totals", &self.topic, partition as i32);
                (at == Some(rows.len() as i64)).then_some(())
            });
        }
    }

    /// Runs the job to the end of the topic; its results must be those of these rows.
    #[track_caller]
    fn ends_with(&self, more: &str, partitions: &[Vec<Transaction>]) {
        let accepted = if self.with_state() { "--accept-changed-query" } else { "" };
        let ended = run(ACCOUNT_TOTALS, self.typed(&format!("--until-end {accepted} {more}")));
        ended.code(0);
        check_totals(&self.out(), partitions);
    }

    /// Restarts the job in two ways; both must fail with these texts.
    #[track_caller]
    fn is_refused(&self, parts: &[&str]) {
        // Other flags do not help: neither an end, nor accepting another query.
        let other = if self.with_state() { "--until-end --accept-changed-query" } else { "--until-end" };
        let ways = if self.flags.contains("--until-end") { &[""][..] } else { &["", other] };
        for more in ways {
            let ended = self.start(more).end_within(PATIENCE);
            check_contains(ended.error(1), parts);
            check_contains(ended.error(1), &[&self.topic]);
        }
    }
}

#[track_caller]
fn check_totals(path: &Path, partitions: &[Vec<Transaction>]) {
    same_rows(&rows_of(path, &TOTALS), &expected(partitions.iter().map(Vec::as_slice), 2_000).rows());
}

const STATE: &str = "--state {}/state";
/// No snapshots, so that everything is replayed after a kill.
const JOURNAL: &str = "--state {}/state --snapshot-every 1h";

#[test]
fn a_topic_that_is_made_again_while_it_is_read_ends_the_job_and_its_state() {
    let Some(broker) = Broker::shared() else { return };
    let mut figures = Vec::new();
    for round in 0..rounds() {
        let mut rng = Rng::with_seed(round);
        // Gap in milliseconds, partitions before, partitions after, flags.
        let cases = [(0, 2, 2, STATE), (rng.u64(0..3_000), 2, 1, ""), (rng.u64(500..5_000), 1, 3, STATE)];
        for (gap, before, after, flags) in cases {
            let case = Case::new(broker, before, &[], flags);
            let old = dealt(&tidy(round, 400), before as usize);
            send(broker, &case.topic, &old, by_id);
            let mut job = case.start("-w 2");
            case.until_read(&mut job, &old);
            broker.delete(&case.topic);
            std::thread::sleep(Duration::from_millis(gap));
            create_again(broker, &case.topic, after);
            let made = Instant::now();
            // More records than before, so that every offset exists again.
            send(broker, &case.topic, &dealt(&tidy(round + 1_000, 2_000), after as usize), by_id);
            let ended = job.end_within(PATIENCE);
            check_contains(ended.error(1), &[&case.topic]);
            // It depends on which is detected first: that the topic is gone, that it is another one, or that it is
            // shorter.
            let is_named = ["deleted", "created again"].iter().any(|what| ended.error(1).contains(what));
            assert!(is_named, "{}", ended.error(1));
            figures.push(format!("gap {gap} ms, {before} -> {after} partitions: refused after {:?}", made.elapsed()));
            if case.with_state() {
                case.is_refused(&["a source is not the one that the state has read", "deleted and created again"]);
            }
        }
    }
    println!("made again while it is read, {} cases: all refused\n  {}", figures.len(), figures.join("\n  "));
}

/// Creates a topic while the broker may still be deleting the previous one.
fn create_again(broker: &Broker, topic: &str, partitions: i32) {
    let begun = Instant::now();
    while let Err(code) = broker.try_create(topic, partitions) {
        assert!(begun.elapsed() < PATIENCE, "{code}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_bounded_job_whose_topic_is_made_again_does_not_end_well() {
    let Some(broker) = Broker::shared() else { return };
    for round in 0..rounds() {
        let mut rng = Rng::with_seed(round + 50);
        let flags = if round % 2 == 0 { STATE } else { "" };
        // The job must not have fetched everything when it is stopped.
        let small = "--kafka-config queued.min.messages=100 --kafka-config fetch.message.max.bytes=2000";
        let case = Case::new(broker, 1, &[], &format!("{flags} {small} --until-end"));
        let old = dealt(&tidy(round, 20_000), 1);
        send(broker, &case.topic, &old, by_id);
        let new = dealt(&tidy(round + 1_000, 22_000), 1);
        let mut job = case.start("");
        job.wait_until("some results", |_| {
            std::fs::metadata(case.out()).is_ok_and(|out| out.len() > 1_000).then_some(())
        });
        job.signal(Signal::SIGSTOP);
        broker.delete(&case.topic);
        std::thread::sleep(Duration::from_millis(rng.u64(0..2_000)));
        create_again(broker, &case.topic, 1);
        send(broker, &case.topic, &new, by_id);
        job.signal(Signal::SIGCONT);
        let ended = job.end_within(PATIENCE);
        if ended.status.code() == Some(0) {
            // The job was faster than the deletion.
            check_totals(&case.out(), &old);
            println!("bounded, round {round}: exact");
            continue;
        }
        check_contains(ended.error(1), &[&case.topic]);
        println!("bounded, round {round}: refused: {}", ended.error(1));
        if case.with_state() {
            case.is_refused(&["not the one that the state has read"]);
        }
    }
}

#[test]
fn a_topic_that_is_made_again_while_nobody_reads_is_refused_though_its_records_are_the_same() {
    let Some(broker) = Broker::shared() else { return };
    for round in 0..rounds() {
        for signal in [Signal::SIGTERM, Signal::SIGKILL] {
            let case = Case::new(broker, 2, &[], STATE);
            let rows = tidy(round, 600);
            let (old, all) = (dealt(&rows[..400], 2), dealt(&rows, 2));
            send(broker, &case.topic, &old, by_id);
            let mut job = case.start("-w 2");
            case.until_read(&mut job, &old);
            job.signal(signal);
            let _ended = job.end_or_killed();
            broker.delete(&case.topic);
            create_again(broker, &case.topic, 2);
            send(broker, &case.topic, &all, by_id);
            case.is_refused(&["a source is not the one that the state has read (source transactions)", "--state"]);
            // A user who knows that the records are the same may say so.
            case.ends_with("--accept-changed-sources", &all);
        }
    }
}

/// Compacts a topic, and waits for it.
fn compact(case: &Case<'_>, partitions: &[Vec<Transaction>]) {
    case.broker.close_segment(&case.topic);
    let begun = Instant::now();
    let left = || crate::broker::committed(&case.broker.servers, &case.topic).len();
    let sent: usize = partitions.iter().map(Vec::len).sum();
    while left() >= sent * 9 / 10 {
        assert!(begun.elapsed() < PATIENCE, "the topic is not compacted: {} of {sent} records", left());
        std::thread::sleep(Duration::from_millis(300));
    }
}

#[test]
fn a_compacted_topic_is_refused_at_the_first_start_unless_it_is_asked_for() {
    let Some(broker) = Broker::shared() else { return };
    for (flags, policy) in [("", "compact"), (STATE, "compact,delete")] {
        let case = Case::new(broker, 1, &[("cleanup.policy", policy)], flags);
        let rows = dealt(&tidy(1, 100), 1);
        send(broker, &case.topic, &rows, by_id);
        case.is_refused(&["a compacted topic is no stream of events", policy, "--compacted"]);
        case.ends_with("--compacted", &rows);
    }
}

#[test]
fn what_was_read_of_a_compacted_topic_is_replayed_though_the_topic_has_lost_it() {
    let Some(broker) = Broker::shared() else { return };
    for round in 0..rounds() {
        // After a kill everything is replayed; after a stop the last counted record may be gone.
        for (signal, flags) in [(Signal::SIGKILL, JOURNAL), (Signal::SIGTERM, STATE)] {
            let case = Case::new(broker, 1, &crate::broker::COMPACTED, &format!("{flags} --compacted"));
            let rows = tidy(round + 7, 600);
            let (old, all) = (dealt(&rows[..300], 1), dealt(&rows, 1));
            // Keys repeat, also those of the last records.
            let key = |row: &Transaction| (row.id % 10).to_string();
            send(broker, &case.topic, &old, key);
            let mut job = case.start("");
            case.until_read(&mut job, &old);
            job.signal(signal);
            let _ended = job.end_or_killed();
            send(broker, &case.topic, &[rows[300..].to_vec()], key);
            compact(&case, &all);
            // The broker decides what is left of the second half; the first half has been read.
            let left = crate::broker::committed(&broker.servers, &case.topic);
            let second = rows[300..].iter().filter(|row| left.contains(&json_of(row)));
            let read: Vec<_> = rows[..300].iter().chain(second).cloned().collect();
            assert!(left.len() < 500, "{} records are left", left.len());
            case.ends_with("", &dealt(&read, 1));
            println!("compacted, {signal}: exact, {} of 600 records are left in the topic", left.len());
        }
    }
}

#[test]
fn records_that_retention_removes_are_counted_or_missed_by_name() {
    let Some(broker) = Broker::shared() else { return };
    for round in 0..rounds() {
        let mut rng = Rng::with_seed(round + 90);
        let rows = tidy(round + 20, 900);
        let part = |rows: &[Transaction]| vec![rows.to_vec()];
        let case = Case::new(broker, 1, &[], STATE);
        send(broker, &case.topic, &part(&rows[..300]), by_id);
        let mut job = case.start("");
        case.until_read(&mut job, &part(&rows[..300]));
        // Records expire that the job has read.
        broker.expire(&case.topic, 0, rng.i64(1..=300));
        send(broker, &case.topic, &part(&rows[300..600]), by_id);
        case.until_read(&mut job, &part(&rows[..600]));
        // Records expire while the job is suspended, which has perhaps fetched them.
        job.signal(Signal::SIGSTOP);
        send(broker, &case.topic, &part(&rows[600..]), by_id);
        broker.expire(&case.topic, 0, 750);
        job.signal(Signal::SIGCONT);
        let begun = Instant::now();
        let read = || broker.group_offset("tidegate-account-totals", &case.topic, 0) == Some(900);
        while job.is_alive() && !read() {
            assert!(begun.elapsed() < PATIENCE, "neither an end nor the figures:\n{}", job.stderr());
            std::thread::sleep(Duration::from_millis(50));
        }
        if job.is_alive() {
            job.signal(Signal::SIGTERM);
            assert_eq!(job.end().status.code(), Some(143));
            case.ends_with("", &part(&rows));
            println!("expired under a reader, round {round}: exact");
        } else {
            let ended = job.end();
            check_contains(ended.error(1), &[&case.topic, "gone"]);
            println!("expired under a reader, round {round}: refused: {}", ended.error(1));
            case.is_refused(&["gone"]);
        }
    }
}
