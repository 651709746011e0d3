//! Processes of a job are cut off from each other, suspended, and contacted by strangers: everything goes on, or ends
//! with exit code 1 and one line that names the missing process, within the times that
//! docs/operations.md states.
//!
//! Each connection of two processes goes through a [`proxy`]. Timeouts are short here (`--join-timeout`,
//! `--heartbeat-timeout`). `NETWORK_ROUNDS=80` runs 80 seeded faults instead of a few, `NETWORK_SEED=17` the one of
//! that seed, and `NETWORK_PAUSES=real` suspends processes for 25, 35 and 60 s with the default timeouts.
#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]
#![allow(missing_docs, unreachable_pub, reason = "this program is one test")]

mod cuts;
mod pauses;
#[path = "../common/ports.rs"]
mod ports;
mod proxy;
#[path = "../common/run.rs"]
mod run;
mod secrets;
#[path = "../common/sql.rs"]
mod sql;
mod strangers;
#[path = "../common/transactions.rs"]
mod transactions;

use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use ports::free_address;
use proxy::{Plan, Proxy};
use run::{ProgramOutput, Running, start};
use sql::{database, queries, rows};
use tempfile::TempDir;
use transactions::{COLUMNS, Transaction, csv_of, same_rows};

const TOTALS: &str = "account_totals";

/// Join timeout and heartbeat timeout of a job.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub join: Duration,
    pub heartbeat: Duration,
}

impl Limits {
    pub const SHORT: Limits = Limits { join: Duration::from_secs(8), heartbeat: Duration::from_secs(4) };
}

/// Time allowed beyond a limit on a busy machine.
pub const SLACK: Duration = Duration::from_secs(20);

/// A job of several processes that are connected through proxies, and its input, which it follows.
pub struct Cluster {
    folder: TempDir,
    processes: usize,
    limits: Limits,
    rows: Vec<Transaction>,
    /// Number of rows written to the file.
    written: usize,
    /// Proxies by the process that connects, and the process that it connects to.
    proxies: Vec<(usize, usize, Proxy)>,
    /// Further arguments of all processes.
    pub more: String,
}

impl Cluster {
    /// Prepares a job with a plan for the connections of some processes, by the process that connects and its target.
    pub fn new(seed: u64, processes: usize, limits: Limits, plan: impl Fn(usize, usize) -> Option<Plan>) -> Cluster {
        let (folder, rows) = (tempfile::tempdir().unwrap(), rows(seed, 8_000));
        fs::write(folder.path().join("in.csv"), csv_of(&[], &COLUMNS)).unwrap();
        let more = String::from("--state {}/state --snapshot-every 100ms");
        let mut cluster = Cluster { folder, processes, limits, rows, written: 0, proxies: Vec::new(), more };
        cluster.new_hosts(plan);
        cluster.write(4_000);
        cluster
    }

    /// Gives each process an address, and a hostfile in which the others are behind proxies.
    pub fn new_hosts(&mut self, plan: impl Fn(usize, usize) -> Option<Plan>) {
        let own: Vec<_> = (0..self.processes).map(|_| free_address()).collect();
        fs::write(self.path("hosts"), own.join("\n")).unwrap();
        self.proxies.clear();
        for dialer in 0..self.processes {
            let mut lines = own.clone();
            for acceptor in 0..dialer {
                let way = Proxy::to(&own[acceptor], plan(dialer, acceptor));
                lines[acceptor] = way.address();
                self.proxies.push((dialer, acceptor, way));
            }
            fs::write(self.path(&format!("hosts-{dialer}")), lines.join("\n")).unwrap();
        }
    }

    /// Returns the address at which a process listens.
    pub fn address(&self, process: usize) -> String {
        fs::read_to_string(self.path("hosts")).unwrap().lines().nth(process).unwrap().to_owned()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Returns the proxy between two processes.
    pub fn proxy(&self, one: usize, other: usize) -> &Proxy {
        let (dialer, acceptor) = (one.max(other), one.min(other));
        &self.proxies.iter().find(|way| (way.0, way.1) == (dialer, acceptor)).unwrap().2
    }

    /// Appends more rows to the input.
    pub fn write(&mut self, count: usize) {
        let all = csv_of(&self.rows[self.written..self.written + count], &COLUMNS);
        let (_header, lines) = all.split_once('\n').unwrap();
        self.written += count;
        fs::OpenOptions::new().append(true).open(self.path("in.csv")).unwrap().write_all(lines.as_bytes()).unwrap();
    }

    /// Starts one process with a hostfile.
    pub fn start_by(&self, process: usize, hosts: &str, more: &str) -> Running {
        let Limits { join, heartbeat } = self.limits;
        let line = format!(
            "--csv {{}}/in.csv --out {{}}/out.csv -n {} -p {process} --hostfile {{}}/{hosts} --epoch 20ms \
             --join-timeout {}ms --heartbeat-timeout {}ms {} {more}",
            self.processes,
            join.as_millis(),
            heartbeat.as_millis(),
            self.more
        );
        let folder = self.folder.path().to_str().unwrap();
        start(TOTALS, line.split_whitespace().map(|word| word.replace("{}", folder)))
    }

    pub fn start(&self, process: usize) -> Running {
        self.start_by(process, &format!("hosts-{process}"), "")
    }

    pub fn start_all(&self) -> Vec<Running> {
        (0..self.processes).map(|process| self.start(process)).collect()
    }

    /// Returns the length of the results, in bytes.
    pub fn shown(&self) -> u64 {
        fs::metadata(self.path("out.csv")).map_or(0, |file| file.len())
    }

    /// Waits until the results are longer than `shown` bytes.
    #[track_caller]
    pub fn until_more_than(&self, all: &mut [Running], shown: u64) {
        all[0].wait_until("more results", |_| (self.shown() > shown).then_some(()));
    }

    /// Runs the job to the end of its input on a network without faults, and checks its results.
    #[track_caller]
    pub fn check(&mut self) {
        self.new_hosts(|_, _| None);
        let all: Vec<_> = (0..self.processes)
            .map(|process| self.start_by(process, "hosts", "--until-end --accept-changed-query"))
            .collect();
        for process in all {
            process.end().code(0);
        }
        let totals = queries().into_iter().find(|query| query.program == TOTALS).unwrap();
        let expected = totals.answer(&database([&self.rows[..self.written]]), 0);
        assert!(expected.len() > 100, "{} rows", expected.len());
        same_rows(&totals.answered(&self.path("out.csv")), &expected);
    }
}

/// Stops a running job cleanly.
#[track_caller]
pub fn stop(all: Vec<Running>) {
    all[0].signal(Signal::SIGTERM);
    for (process, running) in all.into_iter().enumerate() {
        running.end().code(if process == 0 { 143 } else { 0 });
    }
}

/// Waits until all processes have ended by themselves, within `limit`.
#[track_caller]
pub fn end_within(all: Vec<Running>, limit: Duration) -> Vec<ProgramOutput> {
    let begun = Instant::now();
    all.into_iter().map(|running| running.end_within(limit.saturating_sub(begun.elapsed()))).collect()
}
