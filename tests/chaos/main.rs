//! A query of several processes, on a real broker, is exact whatever happens to it.
//!
//! A round is a topic that is written to, and a query that `tidegate up` runs on it, while a seeded schedule causes
//! what happens in production: processes are killed and suspended for a while, the broker is killed and restarted,
//! partitions are added, the job is rescaled, the disk is full, the wall clock steps back. Records are out of order,
//! and some late. In the end the committed messages of the output topics must be the results of SQLite, row for row.
//!
//! In some rounds partitions are idle after a moment without records, and are sent to in turns: which records are late
//! then depends on when each partition woke. Two things hold nevertheless and are checked: each record is counted or
//! late, and no window is published twice.
//!
//! Two rounds run at a time, on one broker: when it is killed, both lose it.
//!
//! `CHAOS_ROUNDS=200 cargo test --test chaos` runs 200 rounds; `CHAOS_SEED=17` the one of that seed.
#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

#[path = "../common/broker.rs"]
mod broker;
#[path = "../common/children.rs"]
mod children;
#[path = "../common/ports.rs"]
mod ports;
#[path = "../common/run.rs"]
mod run;
#[path = "../common/sql.rs"]
mod sql;
#[path = "../common/transactions.rs"]
mod transactions;

use std::collections::BTreeSet;
use std::io::Write as _;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

use broker::{Broker, Sender, committed};
use children::children;
use fastrand::Rng;
use nix::sys::signal::{Signal, kill};
use run::{Running, start};
use sql::{Query, database, queries};
use tempfile::TempDir;
use transactions::{COLUMNS, START_MS, Transaction, json_of, of_json, same_rows};

const TIDEGATE: &str = env!("CARGO_BIN_EXE_tidegate");
/// The programs, in turns.
const PROGRAMS: [&str; 4] = ["account_totals", "account_sessions", "spend_by_minute", "silent_accounts"];
/// Default numbers of rounds: in CI, and elsewhere.
const ROUNDS: (u64, u64) = (8, 4);
/// Number of records sent between two events.
const CHUNK: usize = 400;
/// Number of rounds that run at a time. With more of them one broker is lost several times in a row, and clients of the
/// tests, which are not replaced as those of a job are, can stay without it.
const AT_A_TIME: usize = 2;
/// Locked for writing to kill the broker, and for reading by requests to it that must not fail.
static BROKER: RwLock<()> = RwLock::new(());
/// Timeout of every wait.
const PATIENCE: Duration = Duration::from_secs(90);
/// Distance in event time, in milliseconds, after which all windows have ended and all accounts are silent.
const END_MS: i64 = 3_600_000;

/// An event of the schedule: a fault of the job, of the broker, of the disk or of the clock, or a change of partitions
/// or workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    /// A process is killed.
    Kill,
    /// A process is suspended for a while.
    Pause,
    /// The broker is killed and comes back.
    BrokerLost,
    /// The topic gets a partition.
    Partition,
    /// The job is stopped, and resumes with other numbers of processes and workers.
    Rescale,
    /// Same as a rescale; and the wall clock is an hour behind from then on.
    ClockBack,
    /// The job is stopped, and started on a disk that becomes full; then there is space again.
    DiskFull,
}

/// A round: its input, its query, and its events so far.
struct Round<'a> {
    broker: &'a Broker,
    sender: Sender,
    random: Rng,
    folder: TempDir,
    query: Query,
    topic: String,
    /// Records sent so far, by partition.
    partitions: Vec<Vec<Transaction>>,
    /// Greatest event time so far, in milliseconds.
    now_ms: i64,
    behind: bool,
    /// `true` if partitions are idle after a moment, and records are sent to one at a time.
    quiet: bool,
    happened: Vec<String>,
}

/// Keeps the broker from being killed while the guard is held.
fn with_broker() -> RwLockReadGuard<'static, ()> {
    BROKER.read().unwrap_or_else(PoisonError::into_inner)
}

impl Round<'_> {
    fn new(broker: &Broker, seed: u64) -> Round<'_> {
        let _there = with_broker();
        let random = Rng::with_seed(seed);
        let program = PROGRAMS[seed as usize % PROGRAMS.len()];
        let query = queries().into_iter().find(|query| query.program == program).unwrap();
        let partitions = vec![Vec::new(); 3];
        let topic = broker.topic(partitions.len() as i32);
        for output in ["out", "late"] {
            broker.create(&format!("{topic}-{output}"), 2);
        }
        let (folder, happened) = (tempfile::tempdir().unwrap(), Vec::new());
        // Only programs whose rows count each record once: the first two.
        let quiet = seed / 4 % 2 == 1 && seed % 4 < 2;
        Round {
            broker,
            sender: broker.sender(),
            random,
            folder,
            query,
            topic,
            partitions,
            now_ms: START_MS,
            behind: false,
            quiet,
            happened,
        }
    }

    /// Starts the query, in random numbers of processes and workers.
    fn start(&mut self, options: &str, more: &str) -> Running {
        let (processes, workers) = (self.random.u8(1..=3), self.random.u8(1..=2));
        let behind = if self.behind { "--clock-behind 1h" } else { "" };
        let idle = if self.quiet { "300ms" } else { "1h" };
        let (program, servers, topic) = (self.query.program, &self.broker.servers, &self.topic);
        let state = self.folder.path().join("state");
        let line = format!(
            "up -n {processes} {options} -- {program} -w {workers} --brokers {servers} --topic {topic} --out kafka:{topic}-out \
             --late kafka:{topic}-late --state {} --idle-timeout {idle} --epoch 20ms --snapshot-every 100ms --progress off {behind} \
             {more}",
            state.display()
        );
        start(TIDEGATE, line.split_whitespace())
    }

    /// Sends records whose event times grow: some are slightly out of order in their partition, and some far behind,
    /// which are late.
    fn send(&mut self, count: usize) {
        let mut batches = vec![Vec::new(); self.partitions.len()];
        let only = self.random.usize(0..batches.len());
        for _ in 0..count {
            self.now_ms += [0, 1, 40, 900, 3_000][self.random.usize(0..5)];
            let back = match self.random.u8(0..100) {
                0..3 => self.random.i64(15_000..90_000),
                3..40 => self.random.i64(0..2_000),
                _ => 0,
            };
            // New accounts appear and old ones become silent.
            let account = format!("account {}", (self.now_ms - START_MS) / 60_000 * 3 + self.random.i64(0..25));
            let cents = self.random.i64(-5_000..20_000);
            let id = self.partitions.iter().chain(&batches).map(Vec::len).sum::<usize>() as u64;
            let partition = if self.quiet { only } else { self.random.usize(0..batches.len()) };
            batches[partition].push(Transaction::new(id, &account, cents, self.now_ms - back));
        }
        for (partition, batch) in batches.into_iter().enumerate() {
            self.sender.send(&self.topic, partition, batch.iter().map(json_of));
            self.partitions[partition].extend(batch);
        }
    }

    /// Adds a partition. The moment at which it is found depends on the broker and the clock, and records before it are
    /// judged by the stream's watermark then; so the other partitions wait until it has been read, and its records are
    /// ahead of them all.
    fn add_partition(&mut self, job: &mut Running) {
        let new = self.partitions.len();
        self.partitions.push(Vec::new());
        {
            let _there = with_broker();
            self.broker.grow(&self.topic, new + 1);
        }
        let mut batch = Vec::new();
        for _ in 0..60 {
            self.now_ms += 2_000;
            let id = self.partitions.iter().map(Vec::len).sum::<usize>() + batch.len();
            batch.push(Transaction::new(id as u64, "account 0", 1, self.now_ms));
        }
        self.sender.send(&self.topic, new, batch.iter().map(json_of));
        self.partitions[new] = batch;
        let name = Path::new(self.query.program).file_name().unwrap().to_string_lossy().replace('_', "-");
        let group = format!("tidegate-{name}");
        let wanted = self.partitions[new].len() as i64;
        self.until(job, "the new partition is read", |round| {
            round.broker.group_offset(&group, &round.topic, new as i32).is_some_and(|offset| offset >= wanted)
        });
    }

    /// Waits until `holds` returns `true`, while the job runs.
    fn until(&self, job: &mut Running, what: &str, holds: impl Fn(&Self) -> bool) {
        let begun = Instant::now();
        while !holds(self) {
            assert!(job.is_alive(), "the job ended before {what}:\n{}", job.stderr());
            assert!(begun.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}\n{}", job.stderr());
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Appends the duration of the last event to its description.
    fn took(&mut self, begun: Instant) {
        if let Some(last) = self.happened.last_mut() {
            *last += &format!(" {:.1} s", begun.elapsed().as_secs_f64());
        }
    }

    fn stop(&self, job: Running) {
        job.signal(Signal::SIGTERM);
        let ended = job.end_within(PATIENCE);
        assert!(matches!(ended.status.code(), Some(0 | 143)), "{:?}:\n{}", ended.status, ended.stderr);
        assert_eq!(children(self.folder.path()), [], "processes are left");
    }

    /// Applies an event to a running job; returns the job that runs afterwards.
    fn happen(&mut self, event: Event, mut job: Running) -> Running {
        self.happened.push(format!("{event:?}"));
        match event {
            Event::Kill => {
                if let Some((victim, _)) = self.random.choice(children(self.folder.path())) {
                    let _ = kill(victim, Signal::SIGKILL);
                }
            }
            Event::Pause => {
                if let Some((victim, _)) = self.random.choice(children(self.folder.path())) {
                    let _ = kill(victim, Signal::SIGSTOP);
                    std::thread::sleep(Duration::from_millis(self.random.u64(200..2_000)));
                    let _ = kill(victim, Signal::SIGCONT);
                }
            }
            Event::BrokerLost => {
                let _mine = BROKER.write().unwrap_or_else(PoisonError::into_inner);
                self.broker.kill();
                std::thread::sleep(Duration::from_millis(self.random.u64(0..1_500)));
                self.broker.restart();
            }
            Event::Partition => self.add_partition(&mut job),
            Event::Rescale | Event::ClockBack => {
                self.stop(job);
                self.behind |= event == Event::ClockBack;
                return self.start("", "");
            }
            Event::DiskFull => {
                self.stop(job);
                // The full disk must be the only reason to fail.
                let there = with_broker();
                let kind = ["journal-append", "segment-sync", "manifest"][self.random.usize(0..3)];
                let number = self.random.u8(1..6);
                let mut full = self.start("--restarts 0", &format!("--kill-at full:{kind}:{number}"));
                let begun = Instant::now();
                while full.is_alive() && begun.elapsed() < PATIENCE {
                    self.send(20);
                }
                let ended = full.end_or_killed();
                assert_eq!(ended.status.code(), Some(1), "{kind} {number}: {:?}:\n{}", ended.status, ended.stderr);
                assert!(ended.stderr.contains("the disk is full"), "{}", ended.stderr);
                drop(there);
                return self.start("", "");
            }
        }
        job
    }

    /// Returns the expected results and the expected late records.
    fn expected(&self) -> [Vec<Vec<String>>; 2] {
        let database = database(self.partitions.iter().map(Vec::as_slice));
        [self.query.answer(&database, 0), self.query.late(&database, 0)]
    }

    fn found(&self) -> [Vec<Vec<String>>; 2] {
        let _there = with_broker();
        let columns: [&[&str]; 2] = [self.query.columns, &COLUMNS];
        let read = |output: &str| committed(&self.broker.servers, &format!("{}-{output}", self.topic));
        let [out, late] = ["out", "late"].map(read);
        [of_json(&out, columns[0]), of_json(&late, columns[1])]
    }

    fn check(&self, expected: &[Vec<Vec<String>>; 2]) {
        for (found, expected) in self.found().iter().zip(expected) {
            same_rows(found, expected);
        }
    }

    /// Returns the number of records, other than the last, that are counted or late; panics if one is published twice.
    fn accounted(&self, [out, late]: &[Vec<Vec<String>>; 2]) -> usize {
        let column = |name: &str| self.query.columns.iter().position(|column| *column == name).unwrap();
        let (start, account, count) = (column("window_start"), column("account"), column("count"));
        let windows: BTreeSet<_> = out.iter().map(|row| (&row[start], &row[account])).collect();
        assert_eq!(windows.len(), out.len(), "a window is shown twice");
        let ids: BTreeSet<_> = late.iter().map(|row| &row[0]).collect();
        assert_eq!(ids.len(), late.len(), "a late record is shown twice");
        out.iter().map(|row| row[count].parse::<usize>().unwrap()).sum::<usize>() + late.len()
    }

    /// Waits until all records are counted or late. A record far ahead in one partition ends every window when all
    /// partitions are idle.
    fn until_accounted(&mut self, mut job: Running) {
        let sent: usize = self.partitions.iter().map(Vec::len).sum();
        let end = Transaction::new(u64::MAX >> 1, "the end", 0, self.now_ms + END_MS);
        self.sender.send(&self.topic, 0, [json_of(&end)]);
        let begun = Instant::now();
        self.happened.push("all accounted for".into());
        self.until(&mut job, "all are counted or late", |round| round.accounted(&round.found()) >= sent);
        self.took(begun);
        self.stop(job);
        let found = self.found();
        assert_eq!(self.accounted(&found), sent, "counted and late, of those that were sent");
        assert!(found[0].len() > 20, "too tame: {} rows", found[0].len());
    }

    fn run(&mut self) {
        let mut events = vec![Event::Kill, Event::Kill, Event::Pause];
        let more = [Event::BrokerLost, Event::Partition, Event::Rescale, Event::ClockBack, Event::DiskFull];
        // Each kind is in at least two of five rounds.
        for _ in 0..2 {
            events.push(*self.random.choice(&more).unwrap());
        }
        self.random.shuffle(&mut events);
        let mut job = self.start("", "");
        for event in events {
            self.send(CHUNK);
            let silence = if self.quiet { 2_500 } else { 600 };
            std::thread::sleep(Duration::from_millis(self.random.u64(0..silence)));
            let begun = Instant::now();
            job = self.happen(event, job);
            self.took(begun);
        }
        self.send(CHUNK);
        if self.quiet {
            return self.until_accounted(job);
        }
        let expected = self.expected();
        assert!(expected[0].len() > 50 && !expected[1].is_empty(), "too tame: {:?}", expected.each_ref().map(Vec::len));
        // Records far ahead in all partitions end every window; their own stays open.
        let end = Transaction::new(u64::MAX >> 1, "the end", 0, self.now_ms + END_MS);
        for partition in 0..self.partitions.len() {
            self.sender.send(&self.topic, partition, [json_of(&end)]);
        }
        let (counts, begun) = (expected.each_ref().map(Vec::len), Instant::now());
        self.happened.push("all results".into());
        self.until(&mut job, "all results", |round| {
            let found = round.found().map(|rows| rows.len());
            found[0] >= counts[0] && found[1] >= counts[1]
        });
        self.took(begun);
        let begun = Instant::now();
        self.happened.push("stop".into());
        self.stop(job);
        self.took(begun);
        self.check(&expected);
        if self.random.bool() {
            // Another start publishes nothing twice.
            let job = self.start("", "");
            std::thread::sleep(Duration::from_millis(500));
            self.stop(job);
            self.check(&expected);
        }
    }
}

fn tell(line: &str) {
    std::io::stderr().lock().write_all(line.as_bytes()).unwrap();
}

#[test]
fn results_are_exact_whatever_happens() {
    let Some(broker) = Broker::start() else { return };
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let rounds = if std::env::var("CI").as_deref() == Ok("true") { ROUNDS.0 } else { ROUNDS.1 };
    let seeds = match number("CHAOS_SEED") {
        Some(seed) => seed..seed + 1,
        None => 1..number("CHAOS_ROUNDS").unwrap_or(rounds) + 1,
    };
    let (next, end, failed) = (AtomicU64::new(seeds.start), seeds.end, AtomicBool::new(false));
    std::thread::scope(|scope| {
        for _ in 0..AT_A_TIME {
            scope.spawn(|| {
                while !failed.load(Ordering::Acquire) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end {
                        break;
                    }
                    if !succeeds(&broker, seed) {
                        failed.store(true, Ordering::Release);
                    }
                }
            });
        }
    });
    assert!(!failed.into_inner(), "a round has failed: see the lines above");
}

/// Runs the round of a seed, and prints its outcome; returns `true` if it succeeded.
fn succeeds(broker: &Broker, seed: u64) -> bool {
    let (begun, mut round) = (Instant::now(), Round::new(broker, seed));
    let ended = std::panic::catch_unwind(AssertUnwindSafe(|| round.run()));
    let records: usize = round.partitions.iter().map(Vec::len).sum();
    let happened = round.happened.join(", ");
    let what = format!("{records} records; {happened}; {:.1} s in all", begun.elapsed().as_secs_f64());
    if ended.is_ok() {
        tell(&format!("chaos round {seed}: {what}\n"));
    } else {
        tell(&format!("CHAOS_SEED={seed} fails: {what}; its state is in {}\n", round.folder.keep().display()));
    }
    ended.is_ok()
}
