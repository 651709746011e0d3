//! A panic on any thread ends the job at once, with exit code 1 and one line that names the thread and the place.
//!
//! If a thread died unnoticed, others would wait for it for ever. Every role that a thread of the library can have is
//! made to panic in real programs: a new role does not compile here before it has a case. User functions are made to
//! panic wherever they are called, in jobs of several workers and of several processes.
#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

#[path = "common/children.rs"]
mod children;
#[path = "common/ports.rs"]
mod ports;
#[path = "common/run.rs"]
mod run;
#[path = "common/transactions.rs"]
mod transactions;

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use common::cases::within;
use run::{ProgramOutput, Running, check_contains, start_with};
use serde::{Deserialize, Serialize, Serializer};
use tempfile::TempDir;
use tidegate::job::Cluster;
use tidegate::source::kafka::EmbeddedBroker;
use tidegate::source::memory::MemorySource;
use tidegate::stream::Observer;
use tidegate::testing::thread_roles;
use tidegate::{Flow, Job, Window, csv, kafka, ndjson};
use transactions::{COLUMNS, START_MS, Transaction, csv_line, csv_of};

const ACCOUNT_TOTALS: &str = "account_totals";
const TIDEGATE: &str = env!("CARGO_BIN_EXE_tidegate");

/// Time limit for a job to end after a panic. It takes some milliseconds if the machine has nothing else to do.
const AT_MOST: Duration = Duration::from_secs(5);
/// Time limit for a program's thread to reach the turn in which it panics.
const LIMIT: Duration = Duration::from_secs(60);

/// A folder with an input that grows until this is dropped.
struct PanicCase {
    folder: TempDir,
    over: Arc<AtomicBool>,
}

impl PanicCase {
    fn new() -> PanicCase {
        let (folder, over) = (tempfile::tempdir().unwrap(), Arc::new(AtomicBool::new(false)));
        let row = |id: u64| Transaction::new(id, &format!("account {}", id % 50), 1, START_MS + id as i64 * 40);
        let path = folder.path().join("in.csv");
        fs::write(&path, csv_of(&(0..2_000).map(row).collect::<Vec<_>>(), &COLUMNS)).unwrap();
        let (mut input, ended) = (fs::File::options().append(true).open(path).unwrap(), Arc::clone(&over));
        std::thread::spawn(move || {
            for id in 2_000.. {
                if ended.load(Ordering::Acquire) {
                    return;
                }
                input.write_all(csv_line(COLUMNS.map(|column| row(id).column(column))).as_bytes()).unwrap();
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        PanicCase { folder, over }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Starts a program with these arguments, in which `{}` stands for the folder; `panic` is the panic to cause, if
    /// any.
    fn start(&self, program: &str, line: &str, panic: Option<&str>) -> Running {
        let words = line.split_whitespace().map(|word| word.replace("{}", self.folder.path().to_str().unwrap()));
        start_with(program, words, |command: &mut Command| {
            command.current_dir(self.folder.path());
            if let Some(panic) = panic {
                command.env(PANIC_VARIABLE, panic);
            }
        })
    }

    /// Starts one process that has state, and takes many snapshots.
    fn alone(&self, panic: &str) -> Vec<Running> {
        let line = "--csv {}/in.csv --out {}/out.csv --state {}/state --epoch 10ms --snapshot-every 1ms -w 2";
        vec![self.start(ACCOUNT_TOTALS, line, Some(panic))]
    }

    /// Starts two processes; the one of this number is to panic.
    fn together(&self, panic: &str, panicking: usize, more: &str) -> Vec<Running> {
        children::write_hosts(&self.path("hosts"), 2);
        let line = format!("--csv {{}}/in.csv --out {{}}/out.csv --hostfile {{}}/hosts --epoch 10ms -n 2 {more}");
        let start = |process: usize| {
            self.start(ACCOUNT_TOTALS, &format!("{line} -p {process}"), (process == panicking).then_some(panic))
        };
        let other = start(1 - panicking);
        vec![start(panicking), other]
    }
}

impl Drop for PanicCase {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Release);
    }
}

/// Environment variable that makes a thread panic: `ROLE:N`.
const PANIC_VARIABLE: &str = "TIDEGATE_PANIC";

/// Starts programs; the first one is to panic.
type Programs = fn(&PanicCase, &str) -> Vec<Running>;

/// Returns the panic of a thread of a role: the name of the thread, the turns in which it panics (the first is its
/// start), and the programs.
fn case(role: &str) -> (&'static str, &'static [u64], Programs) {
    match role {
        "sink" => ("sink totals", &[1, 4], PanicCase::alone),
        "journal" => ("journal", &[1, 4], PanicCase::alone),
        "segments" => ("segments", &[1, 3], PanicCase::alone),
        "manifests" => ("manifests", &[1, 3], PanicCase::alone),
        "merges" => ("merges", &[1, 2], PanicCase::alone),
        "watch" => ("watch", &[1, 3], PanicCase::alone),
        "http" => ("http", &[1, 2], |place, panic| {
            let line = "--csv {}/in.csv --out {}/out.csv --http 127.0.0.1:0 --epoch 10ms -w 2";
            vec![place.start(ACCOUNT_TOTALS, line, Some(panic))]
        }),
        "signals" => ("signals", &[1, 30], PanicCase::alone),
        "progress" => ("progress", &[1, 5], PanicCase::alone),
        "process" => ("process 1", &[1, 3], |place, panic| place.together(panic, 0, "")),
        "to-process" => ("to process 1", &[1, 3], |place, panic| place.together(panic, 0, "")),
        "dial" => ("dial process 0", &[1], |place, panic| place.together(panic, 1, "")),
        // Before it has joined process 0, that cannot know what happened to it, and waits.
        "processes" => ("processes", &[100, 150], |place, panic| place.together(panic, 1, "")),
        // The thread starts when the workers have ended.
        "connections" => ("connections", &[1], |place, panic| place.together(panic, 0, "--until-end")),
        "kafka-watch" => ("kafka-watch", &[1, 2], |place, panic| {
            let broker = EmbeddedBroker::start().unwrap();
            broker.create_topic("transaction", 2).unwrap();
            let line = format!("--brokers {} --out {{}}/out.csv", broker.servers());
            let running = place.start(ACCOUNT_TOTALS, &line, Some(panic));
            // The broker must exist as long as the program.
            std::mem::forget(broker);
            vec![running]
        }),
        "registry" => ("registry", &[1], |place, panic| {
            let broker = EmbeddedBroker::start().unwrap();
            broker.create_topic("transaction", 2).unwrap();
            // The schema of the results is looked up before anything is read.
            let results = "--out kafka:totals --out-format avro --registry http://127.0.0.1:1";
            let running =
                place.start(ACCOUNT_TOTALS, &format!("--brokers {} {results}", broker.servers()), Some(panic));
            std::mem::forget(broker);
            vec![running]
        }),
        "embedded-broker" => ("embedded-broker", &[1, 2], |place, panic| {
            vec![place.start(TIDEGATE, "demo --seconds 20 --dir {}/demo", Some(panic))]
        }),
        "relay" => ("relay 0", &[1, 2], |place, panic| {
            let query = "account_totals --csv {}/in.csv --out {}/out.csv --progress-every 100ms --epoch 10ms";
            vec![place.start(TIDEGATE, &format!("up -n 1 -- {query}"), Some(panic))]
        }),
        "parent" => ("parent", &[1], |place, panic| {
            let words = ["--csv", "in.csv", "--out", "out.csv"];
            vec![start_with(ACCOUNT_TOTALS, words, |command| {
                command
                    .current_dir(place.folder.path())
                    .env(PANIC_VARIABLE, panic)
                    .env("TIDEGATE_ENDS_WITH_STDIN", "1");
                command.stdin(Stdio::piped());
            })]
        }),
        _ => panic!("no test makes a thread of the role {role} panic"),
    }
}

/// Returns the time in the message of a deliberate panic, in milliseconds since 1970.
fn moment(said: &str) -> u128 {
    let (_, rest) = said.split_once("as the test wants it, at ").unwrap_or_else(|| panic!("no moment: {said}"));
    rest.split_once(" ms").unwrap().0.parse().unwrap()
}

/// Returns the only error line of a failed program.
fn error(ended: &ProgramOutput) -> String {
    assert_eq!(ended.status.code(), Some(1), "{:?}:\n{}", ended.status, ended.stderr);
    let lines: Vec<_> = ended.stderr.lines().filter_map(|line| line.strip_prefix("error: ")).collect();
    let [line] = lines[..] else { panic!("not one line with `error: `:\n{}", ended.stderr) };
    assert!(!ended.stderr.contains("thread '"), "more than the one line:\n{}", ended.stderr);
    line.to_owned()
}

fn ends_by_a_panic(roles: &[&str]) {
    for role in roles {
        let (name, turns, programs) = case(role);
        for turn in turns {
            let place = PanicCase::new();
            let panic = format!("{role}:{turn}");
            let mut said = Vec::new();
            for running in programs(&place, &panic) {
                said.push(error(&running.end_within(LIMIT)));
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis();
                // The process that panics is the first, and all others report its message.
                let took = now.saturating_sub(moment(&said[said.len() - 1]));
                assert!(took < AT_MOST.as_millis(), "{panic}: it took {took} ms:\n{said:#?}");
            }
            check_contains(
                &said[0],
                &[&format!("the thread `{name}` panicked (src/thread.rs:"), "): as the test wants it, at "],
            );
            for other in &said[1..] {
                check_contains(other, &[" failed: the thread `", &format!("`{name}` panicked")]);
            }
        }
    }
}

#[test]
fn threads_of_a_state_that_panic_end_the_job() {
    ends_by_a_panic(&STATE);
}

#[test]
fn threads_of_a_program_that_panic_end_it() {
    ends_by_a_panic(&PROGRAM);
}

#[test]
fn threads_between_processes_that_panic_end_all_of_them() {
    ends_by_a_panic(&BETWEEN);
}

#[test]
fn threads_at_a_broker_that_panic_end_the_job() {
    ends_by_a_panic(&BROKER);
}

const STATE: [&str; 5] = ["sink", "journal", "segments", "manifests", "merges"];
const PROGRAM: [&str; 6] = ["watch", "http", "signals", "progress", "relay", "parent"];
const BETWEEN: [&str; 5] = ["process", "to-process", "dial", "processes", "connections"];
const BROKER: [&str; 3] = ["kafka-watch", "embedded-broker", "registry"];

#[test]
fn every_role_is_made_to_panic() {
    let tried = [&STATE[..], &PROGRAM, &BETWEEN, &BROKER].concat();
    for role in thread_roles() {
        assert_eq!(tried.iter().filter(|tried| **tried == role).count(), 1, "{role} is in none of the tests above");
    }
}

/// A record whose user-defined functions panic at one value.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
struct Click {
    user: u64,
    at_ms: i64,
}

/// The user at whom a function panics.
const WRONG: u64 = 4_321;

fn bad(user: u64) -> u64 {
    assert!(user != WRONG, "no clicks of {user}");
    user
}

/// A record that cannot be serialized as text for one user: it fails when it is written, not when it moves between
/// workers.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
struct Row {
    user: UserId,
}

impl Serialize for Row {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeStruct;
        let mut row = serializer.serialize_struct("Row", 1)?;
        row.serialize_field("user", &self.user)?;
        row.end()
    }
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
struct UserId(u64);

impl Serialize for UserId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let user = if serializer.is_human_readable() { bad(self.0) } else { self.0 };
        serializer.serialize_u64(user)
    }
}

impl Serialize for Click {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (self.user, self.at_ms).serialize(serializer)
    }
}

/// A record whose drop panics, once.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
struct Bomb(u64);

static EXPLODED: AtomicBool = AtomicBool::new(false);

impl Drop for Bomb {
    fn drop(&mut self) {
        assert!(self.0 != WRONG || EXPLODED.swap(true, Ordering::AcqRel), "no clicks of {}", self.0);
    }
}

fn clicks() -> MemorySource<Click> {
    let partition = |from: u64| (from..8_000).step_by(4).map(|at| Click { user: at + 1, at_ms: at as i64 }).collect();
    MemorySource::new((0..4).map(partition).collect(), |click: &Click| click.at_ms)
}

type Query = Arc<dyn Fn(&Flow<'_>) + Send + Sync>;

/// Makes a query that writes to a path, if it writes files.
type Make<'a> = &'a dyn Fn(PathBuf) -> Query;

/// Runs a query that panics on one worker, on two, and in two processes; returns the errors. In one process it has a
/// state, if `keeps`.
fn says_of_a_panic(keeps: bool, make: Make<'_>) -> Vec<String> {
    let mut said = Vec::new();
    for workers in [1, 2] {
        let folder = tempfile::tempdir().unwrap();
        let (query, job) = (make(folder.path().join("out")), Job::new("clicks").workers(workers));
        let job = if keeps { job.state(folder.path().join("state")) } else { job };
        let _views = job.views();
        let job = job.epoch(Duration::from_millis(5));
        let report = within(LIMIT, move || job.run(move |flow| query(flow))).expect("it ends");
        said.push(report.expect_err("it fails").to_string());
    }
    said.extend(says_of_a_panic_between(make));
    said
}

/// Runs it in two processes, both of them in this one.
fn says_of_a_panic_between(make: Make<'_>) -> [String; 2] {
    let folder = tempfile::tempdir().unwrap();
    let hosts = folder.path().join("hosts");
    children::write_hosts(&hosts, 2);
    let query = make(folder.path().join("out"));
    let run = |process: usize| {
        let (query, cluster) = (Arc::clone(&query), Cluster::from_hostfile(process, 2, &hosts).unwrap());
        let job = Job::new("clicks").cluster(cluster).epoch(Duration::from_millis(5));
        let views = job.views();
        std::thread::spawn(move || {
            let _views = views;
            within(LIMIT, move || job.run(move |flow| query(flow)))
        })
    };
    let ended = [run(0), run(1)].map(|process| process.join().unwrap());
    ended.map(|report| report.expect("it ends").expect_err("it fails").to_string())
}

#[track_caller]
fn panics_on(thread: &str, keeps: bool, make: Make<'_>) {
    for said in says_of_a_panic(keeps, make) {
        check_contains(&said, &["the thread `", thread, " panicked (tests/panics.rs:", "): no clicks of 4321; "]);
        assert!(!said.contains('\n'), "{said}");
    }
}

#[track_caller]
fn worker_panics(query: impl Fn(&Flow<'_>) + Send + Sync + 'static) {
    let query: Query = Arc::new(query);
    panics_on("worker ", true, &|_out| Arc::clone(&query));
}

fn nothing<D: tidegate::Record>() -> Observer<D> {
    Observer::new(|_epoch, _rows| Ok(()))
}

#[test]
fn a_row_that_panics_when_a_file_is_written_ends_the_job() {
    panics_on("sink out`", true, &|out| {
        Arc::new(move |flow| {
            let rows = flow.read("clicks", &clicks()).map(|click| Row { user: UserId(click.user) });
            rows.write("out", &csv::Sink::new(&out));
        })
    });
    panics_on("sink out`", true, &|out| {
        Arc::new(move |flow| {
            let rows = flow.read("clicks", &clicks()).map(|click| Row { user: UserId(click.user) });
            rows.write("out", &ndjson::Sink::new(&out));
        })
    });
}

#[test]
fn a_row_or_its_key_that_panics_when_a_topic_is_written_ends_the_job() {
    let broker = EmbeddedBroker::start().unwrap();
    ["rows", "clicks"].into_iter().for_each(|topic| broker.create_topic(topic, 1).unwrap());
    // The broker in memory does not create topics on request, such as that of a sink's progress.
    panics_on("sink out`", false, &|_out| {
        let servers = broker.servers().to_owned();
        Arc::new(move |flow| {
            let rows = flow.read("clicks", &clicks()).map(|click| Row { user: UserId(click.user) });
            rows.write("out", &kafka::Sink::json(&servers, "rows"));
        })
    });
    panics_on("sink out`", false, &|_out| {
        let servers = broker.servers().to_owned();
        Arc::new(move |flow| {
            let keyed = kafka::Sink::json(&servers, "clicks").key_by(|user: &u64| bad(*user).to_string());
            flow.read("clicks", &clicks()).map(|click| click.user).write("out", &keyed);
        })
    });
}

#[test]
fn what_a_query_calls_on_its_workers_ends_the_job_when_it_panics() {
    worker_panics(|flow| {
        let timed = MemorySource::new(vec![(0..8_000).collect(), vec![]], |user: &u64| bad(*user) as i64);
        flow.read("clicks", &timed).write("out", &nothing());
    });
    worker_panics(|flow| {
        flow.read("clicks", &clicks()).map(|click| bad(click.user)).write("out", &nothing());
    });
    worker_panics(|flow| {
        let windows = flow.read("clicks", &clicks()).key_by(|click| bad(click.user)).window(Window::global());
        windows
            .aggregate("counts", tidegate::stream::aggregate::Each::count)
            .on_close()
            .map(|row| row.key)
            .write("out", &nothing());
    });
    worker_panics(|flow| {
        let counts = flow.read("clicks", &clicks()).key_by(|click| click.user).window(Window::global());
        let counts = counts.aggregate("counts", |each| each.sum(|click| bad(click.user) as i64)).on_close();
        counts.map(|row| row.key).write("out", &nothing());
    });
    worker_panics(|flow| {
        flow.read("clicks", &clicks()).write(
            "out",
            &Observer::new(|_epoch, rows: &[(Click, isize)]| {
                rows.iter().for_each(|(click, _)| assert!(bad(click.user) > 0));
                Ok(())
            }),
        );
    });
}

#[test]
fn the_step_that_panics_is_named() {
    let query: Query = Arc::new(|flow| {
        let counts = flow.read("clicks", &clicks()).key_by(|click| click.user).window(Window::global());
        let counts = counts.aggregate("per user", |each| each.max(|click| bad(click.user))).on_close();
        counts.map(|row| row.key).write("out", &nothing());
    });
    for said in says_of_a_panic(true, &|_out| Arc::clone(&query)) {
        check_contains(&said, &["`worker ", "` in step `per user` panicked (tests/panics.rs:"]);
    }
}

#[test]
fn a_row_that_panics_when_it_is_kept_in_a_view_ends_the_job() {
    worker_panics(|flow| {
        let counts = flow.read("clicks", &clicks()).key_by(|click| click.user).window(Window::global());
        let counts = counts.aggregate("counts", tidegate::stream::aggregate::Each::count).on_change();
        counts.map(|row| Row { user: UserId(row.key) }).view("users");
    });
}

#[test]
fn a_record_that_panics_when_it_is_dropped_ends_the_job() {
    for workers in [1, 2] {
        EXPLODED.store(false, Ordering::Release);
        let job = Job::new("clicks").workers(workers);
        let query = |flow: &Flow<'_>| {
            let bombs = flow.read("clicks", &clicks()).map(|click| Bomb(click.user));
            bombs.map(|bomb| bomb.0).write("out", &nothing());
        };
        let report = within(LIMIT, move || job.run(query)).expect("it ends");
        check_contains(&report.expect_err("it fails").to_string(), &["the thread `worker ", "): no clicks of 4321; "]);
    }
}
