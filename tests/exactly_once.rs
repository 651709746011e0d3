//! A query that is killed at any moment, and started again, shows each of its results exactly once: in files, and in
//! topics of a real broker for whoever reads what is committed.
//!
//! The very program that users run is killed, by SIGKILL, at chosen moments: before and after each kind of act between
//! the journal, the showing of results, segments, manifests and the cut of the journal (`--kill-at`, which only tests
//! know of); and from outside, at any time. Kills are counted: of each kind there must have been some. One that only
//! sleeps while another takes over finds that out when it wakes.
#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

#[path = "common/broker.rs"]
mod broker;
#[path = "common/run.rs"]
mod run;
#[path = "common/transactions.rs"]
mod transactions;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use broker::{Broker, committed};
use fastrand::Rng;
use nix::sys::signal::Signal;
use run::{Ended, run, says, start};
use serde::Deserialize;
use tempfile::TempDir;
use transactions::{
    COLUMNS, DISORDER_MS, Expected, TOTALS, Total, Transaction, expected, json_of, ndjson_of, rows_of, same_rows, wild,
};

const ACCOUNT_TOTALS: &str = env!("CARGO_BIN_EXE_account_totals");

/// How many kills of each kind there must be, on files and on a broker.
const OF_EACH: usize = 5;
/// How many kills from outside.
const OUTSIDE: usize = 10;
/// How many states there are at most until there were enough kills.
const STATES: u64 = 60;

/// The kinds of acts at which a query is killed that writes files …
const OF_FILES: [&str; 10] = [
    "journal-append",
    "journal-sync",
    "journal-cut",
    "sink-append",
    "sink-commit",
    "segment-sync",
    "manifest",
    "life",
    "claim",
    "show",
];
/// … and one that writes to topics, which shows by a transaction of the broker's.
const OF_TOPICS: [&str; 8] =
    ["journal-append", "journal-sync", "show", "segment-sync", "manifest", "journal-cut", "life", "claim"];

/// Kills that are still to be, by kind; those that were.
struct Kills {
    random: Rng,
    /// With the highest number of the act to be killed at, by which a short run may end before it comes to it.
    left: Vec<(String, u8)>,
    done: BTreeMap<String, usize>,
    /// How often a run has ended before it came to its kill.
    missed: usize,
}

impl Kills {
    fn new(seed: u64, kinds: &[&str], of_each: usize) -> Kills {
        let mut random = Rng::with_seed(seed);
        let each = kinds.iter().flat_map(|kind| std::iter::repeat_n((*kind).to_owned(), of_each));
        let outside = std::iter::repeat_n("outside".to_owned(), OUTSIDE);
        // A run has one life with one claim.
        let highest = |kind: String| if ["life", "claim"].contains(&kind.as_str()) { (kind, 1) } else { (kind, 3) };
        let mut left: Vec<_> = each.chain(outside).map(highest).collect();
        random.shuffle(&mut left);
        Kills { random, left, done: BTreeMap::new(), missed: 0 }
    }

    fn total(&self) -> usize {
        self.done.values().sum()
    }

    /// How many rows the next state has: a run that was too short for its kill is followed by longer ones.
    fn rows(&self, at_first: usize) -> usize {
        at_first * (2 + self.missed.min(8)) / 2
    }

    /// Runs a query that is to be killed; how it ended, if it was not.
    fn kill(&mut self, arguments: &[String]) -> Option<Ended> {
        let (kind, highest) = self.left.pop().unwrap();
        let workers = 1 + self.total() % 2;
        let mut line = arguments.to_vec();
        line.extend(["-w".into(), workers.to_string()]);
        let ended = if kind == "outside" {
            let mut running = start(ACCOUNT_TOTALS, &line);
            let moment = Duration::from_millis(self.random.u64(50..900));
            let begun = Instant::now();
            while begun.elapsed() < moment && running.is_alive() {
                std::thread::sleep(Duration::from_millis(3));
            }
            running.kill();
            running.end_or_killed()
        } else {
            let (when, number) = (["before", "after"][self.random.usize(0..2)], self.random.u8(1..=highest));
            line.extend(["--kill-at".into(), format!("{when}:{kind}:{number}")]);
            if kind == "journal-cut" {
                // The fewer snapshots are kept, the sooner the journal is cut: a short run comes to it, too.
                line.extend(["--keep-snapshots".into(), "1".into()]);
            }
            start(ACCOUNT_TOTALS, &line).end_or_killed()
        };
        if ended.was_killed() {
            *self.done.entry(kind).or_default() += 1;
            return None;
        }
        self.missed += 1;
        self.left.push((kind, 1));
        self.random.shuffle(&mut self.left);
        Some(ended)
    }

    /// Fails unless there were so many of each; says how many there were.
    #[track_caller]
    fn check(&self, what: &str, kinds: &[&str], of_each: usize) {
        for kind in kinds {
            let count = self.done.get(*kind).copied().unwrap_or_default();
            assert!(count >= of_each, "only {count} kills at {kind}: {:?}", self.done);
        }
        let line = format!("{what}: {} kills: {:?}\n", self.total(), self.done);
        std::io::stderr().lock().write_all(line.as_bytes()).unwrap();
    }
}

/// What a query with state reads and writes.
struct Case {
    folder: TempDir,
    arguments: Vec<String>,
    expected: Expected,
}

impl Case {
    fn new(typed: &str, expected: Expected) -> Case {
        let folder = tempfile::tempdir().unwrap();
        let common = "--state {}/state --until-end --epoch 5ms --snapshot-every 15ms --in-flight 1MiB --progress off";
        let words = typed.split_whitespace().chain(common.split_whitespace());
        let arguments = words.map(|word| word.replace("{}", folder.path().to_str().unwrap())).collect();
        Case { folder, arguments, expected }
    }

    /// A file into files of these formats.
    fn files(seed: u64, rows: usize, (out, late): (&str, &str)) -> Case {
        let rows = wild(seed, rows);
        let line = format!("--ndjson {{}}/in.ndjson --out {{}}/out.{out} --late {{}}/late.{late}");
        let case = Case::new(&line, expected([rows.as_slice()], DISORDER_MS));
        assert!(case.expected.late.len() > 100 && case.expected.totals.len() > 100, "the data is too tame");
        fs::write(case.path("in.ndjson"), ndjson_of(&rows)).unwrap();
        case
    }

    /// A topic into topics; also the names of those.
    fn topics(broker: &Broker, seed: u64, rows: usize) -> (Case, [String; 2]) {
        let mut partitions = [Vec::new(), Vec::new()];
        wild(seed, rows).into_iter().for_each(|row| partitions[row.id as usize * 7 % 11 % 2].push(row));
        let topic = broker.topic(2);
        for (partition, rows) in partitions.iter().enumerate() {
            broker.send(&topic, partition, rows.iter().map(json_of));
        }
        let (out, late) = (format!("{topic}-totals"), format!("{topic}-late"));
        let line = format!("--brokers {} --topic {topic} --out kafka:{out} --late kafka:{late}", broker.servers);
        let expected = expected(partitions.iter().map(Vec::as_slice), DISORDER_MS);
        (Case::new(&line, expected), [out, late])
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Runs it to its end.
    fn finish(&self, more: &[&str]) -> Ended {
        let ended = run(ACCOUNT_TOTALS, self.arguments.iter().map(String::as_str).chain(more.iter().copied()));
        ended.code(0);
        ended
    }

    /// What is in the files, byte by byte.
    fn bytes(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let entries = fs::read_dir(self.folder.path()).unwrap().map(|entry| entry.unwrap().path());
        let files = entries.filter(|path| path.is_file() && !path.to_string_lossy().contains(".commit-"));
        let mut files: Vec<_> = files.map(|path| (path.clone(), fs::read(&path).unwrap())).collect();
        files.sort();
        files
    }

    #[track_caller]
    fn check_files(&self) {
        let formats = ["csv", "ndjson"].map(|format| [format!("out.{format}"), format!("late.{format}")]);
        for (name, is_late) in formats.iter().flat_map(|[out, late]| [(out, false), (late, true)]) {
            let path = self.path(name);
            let is_csv = name.ends_with("csv");
            match (path.exists(), is_late) {
                (false, _) => {}
                (_, false) if is_csv => same_rows(&rows_of(&path, &TOTALS), &self.expected.rows()),
                (_, false) => same_rows(&totals_of(&lines(&path)), &self.expected.rows()),
                (_, true) if is_csv => same_rows(&rows_of(&path, &COLUMNS), &self.late_rows()),
                (_, true) => same_rows(&late_of(&lines(&path)), &self.late_rows()),
            }
        }
    }

    #[track_caller]
    fn check_topics(&self, broker: &Broker, [out, late]: &[String; 2]) {
        same_rows(&totals_of(&committed(&broker.servers, out)), &self.expected.rows());
        same_rows(&late_of(&committed(&broker.servers, late)), &self.late_rows());
    }

    fn late_rows(&self) -> Vec<Vec<String>> {
        self.expected.late.iter().map(columns).collect()
    }
}

fn columns(row: &Transaction) -> Vec<String> {
    COLUMNS.map(|name| row.column(name)).to_vec()
}

fn lines(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap();
    assert!(text.is_empty() || text.ends_with('\n'), "{} ends within a line", path.display());
    text.lines().map(str::to_owned).collect()
}

/// Totals that were written as JSON, as rows of text.
#[track_caller]
fn totals_of(texts: &[String]) -> Vec<Vec<String>> {
    #[derive(Deserialize)]
    struct Row {
        window_start: String,
        window_end: String,
        account: String,
        count: i64,
        sum_cents: i128,
        min_cents: i64,
        max_cents: i64,
    }
    let fields = |text: &String| {
        let row: Row = serde_json::from_str(text).unwrap();
        let Row { account, count, sum_cents, min_cents, max_cents, .. } = row;
        let total = Total { start_ms: 0, account, count, sum_cents, min_cents, max_cents };
        let mut fields = total.fields().to_vec();
        (fields[0], fields[1]) = (row.window_start, row.window_end);
        fields
    };
    texts.iter().map(fields).collect()
}

/// Transactions that were written as JSON, as rows of text.
#[track_caller]
fn late_of(texts: &[String]) -> Vec<Vec<String>> {
    texts.iter().map(|text| columns(&serde_json::from_str::<Transaction>(text).unwrap())).collect()
}

#[test]
fn files_have_each_result_once_whenever_the_query_is_killed() {
    let mut kills = Kills::new(1, &OF_FILES, OF_EACH);
    for seed in 1..=STATES {
        let formats = if seed % 2 == 0 { ("csv", "ndjson") } else { ("ndjson", "csv") };
        let case = Case::files(seed, kills.rows(30_000), formats);
        while !kills.left.is_empty() {
            if let Some(ended) = kills.kill(&case.arguments) {
                ended.code(0);
                break;
            }
        }
        case.finish(&[]);
        case.check_files();
        let bytes = case.bytes();
        case.finish(&["-w", "3"]);
        assert!(case.bytes() == bytes, "a state that has ended changed its files");
        if kills.left.is_empty() {
            break;
        }
    }
    kills.check("files", &OF_FILES, OF_EACH);
    assert!(kills.total() >= 50, "{:?}", kills.done);
}

#[test]
fn topics_have_each_result_once_whenever_the_query_is_killed() {
    let Some(broker) = Broker::shared() else { return };
    let mut kills = Kills::new(2, &OF_TOPICS, OF_EACH);
    for seed in 101..=100 + STATES {
        let (case, topics) = Case::topics(broker, seed, kills.rows(20_000));
        while !kills.left.is_empty() {
            if let Some(ended) = kills.kill(&case.arguments) {
                ended.code(0);
                break;
            }
        }
        case.finish(&[]);
        case.check_topics(broker, &topics);
        let before = topics.each_ref().map(|topic| committed(&broker.servers, topic).len());
        case.finish(&["-w", "3"]);
        let after = topics.each_ref().map(|topic| committed(&broker.servers, topic).len());
        assert_eq!(after, before, "a state that has ended changed its topics");
        if kills.left.is_empty() {
            break;
        }
    }
    kills.check("topics", &OF_TOPICS, OF_EACH);
    assert!(kills.total() >= 50, "{:?}", kills.done);
}

/// Whether a query has made a snapshot: then it is in the middle of things.
fn has_snapshot(case: &Case) -> bool {
    fs::read_dir(case.path("state/manifests")).is_ok_and(|entries| entries.count() > 0)
}

/// Stops a query, has another one take over to the end, and lets the first one go on.
fn overtake(case: &Case) {
    let mut sleeper = start(ACCOUNT_TOTALS, &case.arguments);
    sleeper.until("snapshot", |_| has_snapshot(case).then_some(()));
    sleeper.signal(Signal::SIGSTOP);
    let mut refused = case.arguments.clone();
    refused.extend(["-w".into(), "2".into()]);
    says(run(ACCOUNT_TOTALS, &refused).error(1), &["the state is in use", "it is stopped", "--take-over"]);
    case.finish(&["-w", "2", "--take-over"]);
    sleeper.signal(Signal::SIGCONT);
    let ended = sleeper.end();
    let said = ended.error(1);
    let told = ["another process goes on with this state", "another process has taken over"];
    assert!(told.iter().any(|told| said.contains(told)), "{said}");
}

#[test]
fn one_that_sleeps_while_another_takes_over_ends_when_it_wakes_and_files_are_right() {
    for seed in 201..=203 {
        let formats = if seed % 2 == 0 { ("csv", "ndjson") } else { ("ndjson", "csv") };
        let case = Case::files(seed, 30_000, formats);
        overtake(&case);
        case.check_files();
        let bytes = case.bytes();
        case.finish(&[]);
        assert!(case.bytes() == bytes, "a state that has ended changed its files");
    }
}

#[test]
fn one_that_sleeps_while_another_takes_over_ends_when_it_wakes_and_topics_are_right() {
    let Some(broker) = Broker::shared() else { return };
    for seed in 301..=302 {
        let (case, topics) = Case::topics(broker, seed, 30_000);
        overtake(&case);
        case.check_topics(broker, &topics);
        case.finish(&[]);
        case.check_topics(broker, &topics);
    }
}
