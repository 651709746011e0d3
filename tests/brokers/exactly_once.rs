//! A query that is killed at any moment and restarted publishes each of its results exactly once: in files, and in
//! topics of a real broker for readers of committed messages.
//!
//! The very program that users run is killed by SIGKILL: at chosen points, before and after each kind of operation on
//! the journal, results, segments and manifests (`--kill-at`, a hidden flag for tests), and from outside at any time.
//! Kills are counted: each kind must have happened several times. A process that was suspended while another took over
//! detects that when it continues.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::broker::{Broker, committed};
use crate::run::{ProgramOutput, check_contains, run, start};
use crate::sql::{Query, database, queries, rows};
use crate::transactions::{COLUMNS, Transaction, json_of, ndjson_of, of_json, rows_of, same_rows};
use fastrand::Rng;
use nix::sys::signal::Signal;
use tempfile::TempDir;

/// The programs that are killed, in turn: tumbling and overlapping windows, sessions, keyed state with timers.
const PROGRAMS: [&str; 4] = ["account_totals", "spend_by_minute", "account_sessions", "silent_accounts"];

/// Minimum number of kills of each kind, on files and on a broker.
const OF_EACH: usize = 3;
/// Number of kills from outside.
const OUTSIDE: usize = 6;
/// Maximum number of states until there were enough kills.
const STATES: u64 = 60;

/// Kinds of acts at which a query that writes files is killed.
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
/// The same for a query that writes to topics, which publishes by transactions of the broker.
const OF_TOPICS: [&str; 8] =
    ["journal-append", "journal-sync", "show", "segment-sync", "manifest", "journal-cut", "life", "claim"];

/// Kills by kind: those still to do, and those done.
struct Kills {
    random: Rng,
    /// With the greatest number of the act to be killed at; a short run may end before that act.
    left: Vec<(String, u8)>,
    done: BTreeMap<String, usize>,
    /// Number of runs that ended before their kill.
    missed: usize,
}

impl Kills {
    fn new(seed: u64, kinds: &[&str], of_each: usize, outside: usize) -> Kills {
        let mut random = Rng::with_seed(seed);
        let each = kinds.iter().flat_map(|kind| std::iter::repeat_n((*kind).to_owned(), of_each));
        let outside = std::iter::repeat_n("outside".to_owned(), outside);
        // A run has one incarnation with one claim.
        let highest = |kind: String| if ["life", "claim"].contains(&kind.as_str()) { (kind, 1) } else { (kind, 3) };
        let mut left: Vec<_> = each.chain(outside).map(highest).collect();
        random.shuffle(&mut left);
        Kills { random, left, done: BTreeMap::new(), missed: 0 }
    }

    fn total(&self) -> usize {
        self.done.values().sum()
    }

    /// Returns the number of rows of the next state: it grows when a run was too short for its kill.
    fn rows(&self, at_first: usize) -> usize {
        at_first * (2 + self.missed.min(8)) / 2
    }

    /// Runs a query that is to be killed; returns its end if it was not killed.
    fn kill(&mut self, Case { query, arguments, .. }: &Case) -> Option<ProgramOutput> {
        let (kind, highest) = self.left.pop().unwrap();
        let workers = 1 + self.total() % 2;
        let mut line = arguments.to_vec();
        line.extend(["-w".into(), workers.to_string()]);
        let ended = if kind == "outside" {
            let moment = Duration::from_millis(self.random.u64(50..900));
            start(query.program, &line).killed_after(moment)
        } else {
            let (when, number) = (["before", "after"][self.random.usize(0..2)], self.random.u8(1..=highest));
            line.extend(["--kill-at".into(), format!("{when}:{kind}:{number}")]);
            if kind == "journal-cut" {
                // With fewer snapshots the journal is truncated sooner, even in a short run.
                line.extend(["--keep-snapshots".into(), "1".into()]);
            }
            start(query.program, &line).end_or_killed()
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

    /// Fails unless there were `of_each` kills of each kind; prints the counts.
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

/// Input and outputs of a query with state.
struct Case {
    folder: TempDir,
    query: Query,
    arguments: Vec<String>,
    /// Expected results and late records.
    expected: [Vec<Vec<String>>; 2],
}

impl Case {
    fn new<'a>(seed: u64, typed: &str, partitions: impl IntoIterator<Item = &'a [Transaction]>) -> Case {
        let program = PROGRAMS[seed as usize % PROGRAMS.len()];
        let query = queries().into_iter().find(|query| query.program == program).unwrap();
        let database = database(partitions);
        let expected = [query.answer(&database, 0), query.late(&database, 0)];
        let folder = tempfile::tempdir().unwrap();
        let common = "--state {}/state --until-end --epoch 5ms --snapshot-every 15ms --in-flight 1MiB --progress off";
        let words = typed.split_whitespace().chain(common.split_whitespace());
        let arguments = words.map(|word| word.replace("{}", folder.path().to_str().unwrap())).collect();
        Case { folder, query, arguments, expected }
    }

    /// A file as input, and files of these formats as outputs.
    fn files(seed: u64, rows: usize, (out, late): (&str, &str)) -> Case {
        let rows = crate::sql::rows(seed, rows);
        let line = format!("--ndjson {{}}/in.ndjson --out {{}}/out.{out} --late {{}}/late.{late}");
        let case = Case::new(seed, &line, [rows.as_slice()]);
        let few = case.expected.each_ref().map(Vec::len);
        assert!(few[0] > 100 && few[1] > 20, "the data is too tame: {few:?} rows");
        fs::write(case.path("in.ndjson"), ndjson_of(&rows)).unwrap();
        case
    }

    /// A topic as input, and topics as outputs; also returns their names.
    fn topics(broker: &Broker, seed: u64, count: usize) -> (Case, [String; 2]) {
        let mut partitions = [Vec::new(), Vec::new()];
        rows(seed, count).into_iter().for_each(|row| partitions[row.id as usize * 7 % 11 % 2].push(row));
        let topic = broker.topic(2);
        for (partition, rows) in partitions.iter().enumerate() {
            broker.send(&topic, partition, rows.iter().map(json_of));
        }
        let (out, late) = (format!("{topic}-totals"), format!("{topic}-late"));
        let line = format!("--brokers {} --topic {topic} --out kafka:{out} --late kafka:{late}", broker.servers);
        (Case::new(seed, &line, partitions.iter().map(Vec::as_slice)), [out, late])
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Runs the query to its end.
    fn finish(&self, more: &[&str]) -> ProgramOutput {
        let ended = run(self.query.program, self.arguments.iter().map(String::as_str).chain(more.iter().copied()));
        ended.code(0);
        ended
    }

    /// Returns the contents of the files.
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
        for names in formats {
            for ((name, columns), expected) in names.iter().zip([self.query.columns, &COLUMNS]).zip(&self.expected) {
                let path = self.path(name);
                match path.extension().is_some_and(|extension| extension == "csv") {
                    _ if !path.exists() => {}
                    true => same_rows(&rows_of(&path, columns), expected),
                    false => same_rows(&of_json(&lines(&path), columns), expected),
                }
            }
        }
    }

    #[track_caller]
    fn check_topics(&self, broker: &Broker, topics: &[String; 2]) {
        for ((topic, columns), expected) in topics.iter().zip([self.query.columns, &COLUMNS]).zip(&self.expected) {
            same_rows(&of_json(&committed(&broker.servers, topic), columns), expected);
        }
    }
}

fn lines(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap();
    assert!(text.is_empty() || text.ends_with('\n'), "{} ends within a line", path.display());
    text.lines().map(str::to_owned).collect()
}

#[test]
fn files_have_each_result_once_whenever_the_query_is_killed() {
    let mut kills = Kills::new(1, &OF_FILES, OF_EACH, OUTSIDE);
    for seed in 1..=STATES {
        let formats = if seed % 2 == 0 { ("csv", "ndjson") } else { ("ndjson", "csv") };
        let case = Case::files(seed, kills.rows(30_000), formats);
        while !kills.left.is_empty() {
            if let Some(ended) = kills.kill(&case) {
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
    assert!(kills.total() >= 30, "{:?}", kills.done);
}

/// Kinds of acts at which programs with a join or an iteration are killed, before and after the act.
const OF_JOINS: [&str; 5] = ["journal-sync", "sink-commit", "segment-sync", "manifest", "show"];

/// Writes orders and payments, and transfers between few accounts.
fn write_inputs(folder: &Path, seed: u64) {
    let mut random = Rng::with_seed(seed);
    let (mut orders, mut payments, mut transfers) =
        (String::from("order,customer,cents,at_ms\n"), String::new(), String::new());
    for number in 0..8_000 {
        let at = 1_767_225_600_000 + number * 20_000_i64;
        orders += &format!("{number},c{},{},{}\n", number % 7, random.u32(1..9_000), at - random.i64(0..1_900));
        let (of, paid) = (number - random.i64(0..40).min(number), at - random.i64(0..1_900));
        payments += &format!(r#"{{"payment":{number},"order":{of},"cents":{},"at_ms":{paid}}}"#, random.u32(1..9_000));
        let (from, to) = (random.u8(0..60), random.u8(0..60));
        transfers += &format!(
            r#"{{"id":{number},"account":"a{from}","merchant":"a{to}","amount_cents":1,"currency":"EUR","at_ms":{at}}}"#
        );
        payments.push('\n');
        transfers.push('\n');
    }
    fs::write(folder.join("orders.csv"), orders).unwrap();
    fs::write(folder.join("payments.ndjson"), payments).unwrap();
    fs::write(folder.join("transfers.ndjson"), transfers).unwrap();
}

/// Returns the sum of the rows of a file of results: of a collection, those that remain.
fn contents(path: &Path) -> BTreeMap<String, i64> {
    let text = fs::read_to_string(path).unwrap();
    let (header, rows) = text.split_once('\n').unwrap();
    let mut sums = BTreeMap::new();
    for row in rows.lines() {
        let (row, diff) = if header.ends_with(",diff") { row.rsplit_once(',').unwrap() } else { (row, "1") };
        *sums.entry(row.to_owned()).or_default() += diff.parse::<i64>().unwrap();
    }
    sums.retain(|_, times| *times != 0);
    sums
}

/// A join of two streams, and an iteration whose rows are retracted.
#[test]
fn files_have_each_row_of_joins_and_iterations_once_whenever_the_query_is_killed() {
    let programs = [
        ("payments_matched", "--csv {}/orders.csv --payments {}/payments.ndjson"),
        ("fraud_ring", "--ndjson {}/transfers.ndjson"),
    ];
    for (program, input) in programs {
        let folder = tempfile::tempdir().unwrap();
        write_inputs(folder.path(), 5);
        let words = |more: &str| {
            let line = format!("{input} --until-end --progress off --epoch 10ms {more}");
            let here = folder.path().to_str().unwrap();
            line.split_whitespace().map(|word| word.replace("{}", here)).collect::<Vec<_>>()
        };
        run(program, words("--out {}/expected.csv")).code(0);
        let expected = contents(&folder.path().join("expected.csv"));
        assert!(expected.len() > 20, "the data is too tame: {} rows", expected.len());
        let kept = "--out {}/out.csv --state {}/state --snapshot-every 15ms --in-flight 1MiB";
        let mut killed = Vec::new();
        for (number, kind) in OF_JOINS.iter().enumerate() {
            let when = if number % 2 == 0 { "before" } else { "after" };
            let more = format!("{kept} -w {} --kill-at {when}:{kind}:1", 1 + number % 2);
            if start(program, words(&more)).end_or_killed().was_killed() {
                killed.push(*kind);
            }
        }
        assert!(killed.len() > 2, "{program} was only killed at {killed:?}");
        run(program, words(&format!("{kept} -w 2"))).code(0);
        assert!(contents(&folder.path().join("out.csv")) == expected, "{program}, killed at {killed:?}");
    }
}

#[test]
fn topics_have_each_result_once_whenever_the_query_is_killed() {
    // Most of the time a killed query waits for the broker, so half of the kinds are tried beside the others.
    let (some, others) = OF_TOPICS.split_at(OF_TOPICS.len() / 2);
    std::thread::scope(|scope| {
        scope.spawn(|| kill_writers_of_topics(2, 100, some));
        kill_writers_of_topics(3, 100 + STATES, others);
    });
}

/// Kills queries that write to topics at acts of these kinds, and checks the topics of each state.
fn kill_writers_of_topics(seed: u64, before_first: u64, kinds: &[&str]) {
    let Some(broker) = Broker::shared() else { return };
    let mut kills = Kills::new(seed, kinds, OF_EACH, OUTSIDE / 2);
    for seed in before_first + 1..=before_first + STATES {
        let (case, topics) = Case::topics(broker, seed, kills.rows(20_000));
        while !kills.left.is_empty() {
            if let Some(ended) = kills.kill(&case) {
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
    kills.check("topics", kinds, OF_EACH);
    assert!(kills.total() >= 15, "{:?}", kills.done);
}

/// Returns `true` if a query has made a snapshot, so that it is at work.
fn has_snapshot(case: &Case) -> bool {
    fs::read_dir(case.path("state/manifests")).is_ok_and(|entries| entries.count() > 0)
}

/// Suspends a query, lets another one take over to the end, and continues the first one.
fn overtake(case: &Case) {
    let mut sleeper = start(case.query.program, &case.arguments);
    sleeper.wait_until("snapshot", |_| has_snapshot(case).then_some(()));
    sleeper.signal(Signal::SIGSTOP);
    let mut refused = case.arguments.clone();
    refused.extend(["-w".into(), "2".into()]);
    check_contains(
        run(case.query.program, &refused).error(1),
        &["the state is in use", "it is stopped", "--take-over"],
    );
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
