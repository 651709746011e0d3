//! A state directory of an earlier version still opens, resumes, and can be inspected.
//!
//! `tests/fixtures/state-v1` holds the files of a job that was stopped: its state, its results so far with their commit
//! file, and its input so far. The job is the [`query`] below over [`transactions`], which are generated from a seed.
//! After an intended change of a format, if old files need not be readable any more, write the fixture anew:
//!
//! ```text
//! TIDEGATE_WRITE_FIXTURE=1 cargo test --test backward_compatibility
//! ```
//! Claims of incarnations contain the name of the machine and the process that wrote them, so this is best done with a
//! host name that may be public (`unshare --uts sh -c 'hostname fixture; …'`).
#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

#[path = "common/directories.rs"]
mod directories;
#[path = "common/run.rs"]
mod run;
#[path = "common/transactions.rs"]
mod transactions;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use directories::copy;
use run::{check_contains, run};
use serde::{Deserialize, Serialize};
use tidegate::job::Ending;
use tidegate::source::{Options, ndjson};
use tidegate::{Closed, EventTime, Flow, Job, State, Window, csv};
use transactions::{TOTALS, Transaction, expected_of, ndjson_of, rows_of, same_rows, tidy};

const TIDEGATE: &str = env!("CARGO_BIN_EXE_tidegate");
/// Number of transactions; the job had read half of them when it was stopped.
const COUNT: usize = 120;

/// A row of `account_totals`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
struct Total {
    window_start: EventTime,
    window_end: EventTime,
    account: String,
    count: i64,
    sum_cents: i128,
    min_cents: i64,
    max_cents: i64,
}

/// The query of `account_totals`, with its input and its results in this directory.
fn query(directory: &Path) -> impl Fn(&Flow<'_>) + Send + Sync + use<> {
    let input = ndjson::Source::new(directory.join("in.ndjson")).event_time(|t: &tidegate::Transaction| t.at_ms);
    let totals = csv::Sink::new(directory.join("totals.csv"));
    move |flow: &Flow<'_>| {
        flow.read("transactions", &input)
            .key_by(|t| t.account.clone())
            .window(Window::tumbling(Duration::from_secs(10)))
            .aggregate("totals", |each| {
                (each.count(), each.sum(|t| t.amount_cents), each.min(|t| t.amount_cents), each.max(|t| t.amount_cents))
            })
            .on_close()
            .map(|Closed { window, key, value: (count, sum_cents, min_cents, max_cents) }| Total {
                window_start: window.start,
                window_end: window.end,
                account: key.into(),
                count,
                sum_cents,
                min_cents,
                max_cents,
            })
            .write("totals", &totals);
    }
}

fn transactions() -> Vec<Transaction> {
    tidy(7, COUNT)
}

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/state-v1")
}

fn append(directory: &Path, rows: &[Transaction]) {
    let path = directory.join("in.ndjson");
    let mut file = fs::OpenOptions::new().create(true).append(true).open(path).unwrap();
    file.write_all(ndjson_of(rows).as_bytes()).unwrap();
}

/// Writes the fixture: three parts of the input, a snapshot after each, and a stop.
fn write_fixture() {
    let directory = fixture();
    let _ = fs::remove_dir_all(&directory);
    fs::create_dir_all(&directory).unwrap();
    // Recorded paths are relative.
    std::env::set_current_dir(&directory).unwrap();
    let here = Path::new("");
    append(here, &[]);
    let state = State::at("state").snapshot_every(Duration::from_millis(100));
    let job = Job::new("account-totals").workers(2).epoch(Duration::from_millis(20)).state(state);
    let (stop, metrics) = (job.stopper(), job.metrics());
    let running = std::thread::spawn(move || job.run(query(Path::new(""))));
    let begun = Instant::now();
    for (number, piece) in (1..).zip(transactions()[..COUNT / 2].chunks(COUNT / 6)) {
        append(here, piece);
        let read = || metrics.summary().sources.iter().map(|source| source.read).sum::<u64>();
        while read() < (number * COUNT / 6) as u64 {
            assert!(begun.elapsed() < Duration::from_secs(60), "it does not come on");
            std::thread::sleep(Duration::from_millis(10));
        }
        std::thread::sleep(Duration::from_millis(400));
    }
    stop.stop();
    assert_eq!(running.join().unwrap().unwrap().ending, Ending::Stopped);
    fs::remove_file("state/LOCK").unwrap();
}

/// Copies the fixture, so that a job can resume from it.
fn copied() -> tempfile::TempDir {
    if std::env::var_os("TIDEGATE_WRITE_FIXTURE").is_some() {
        static ONCE: std::sync::Once = std::sync::Once::new();
        ONCE.call_once(write_fixture);
    }
    let directory = tempfile::tempdir().unwrap();
    copy(&fixture(), directory.path());
    directory
}

#[test]
fn a_state_of_the_first_version_goes_on_to_the_right_results() {
    for workers in [1, 3] {
        let directory = copied();
        let rows = transactions();
        assert_eq!(fs::read_to_string(directory.path().join("in.ndjson")).unwrap(), ndjson_of(&rows[..COUNT / 2]));
        let shown = rows_of(&directory.path().join("totals.csv"), &TOTALS).len();
        let all = expected_of(&rows).rows();
        assert!(shown > 0 && shown < all.len(), "{shown} rows were shown");
        append(directory.path(), &rows[COUNT / 2..]);
        // This is not the program that wrote the state.
        let state = State::at(directory.path().join("state")).accept_changed_query(true);
        let job = Job::new("account-totals").workers(workers).state(state).options(Options::default().until_end(true));
        assert_eq!(job.run(query(directory.path())).unwrap().ending, Ending::Complete);
        same_rows(&rows_of(&directory.path().join("totals.csv"), &TOTALS), &all);
    }
}

/// The query of [`query`] under other names, with an account that may be missing and wider sums.
fn changed_query(directory: &Path) -> impl Fn(&Flow<'_>) + Send + Sync + use<> {
    let input = ndjson::Source::new(directory.join("in.ndjson")).event_time(|t: &tidegate::Transaction| t.at_ms);
    let totals = csv::Sink::new(directory.join("totals.csv"));
    move |flow: &Flow<'_>| {
        flow.output_was("results", "totals");
        flow.read("payments", &input)
            .was("transactions")
            .key_by(|t| Some(t.account.clone()))
            .window(Window::tumbling(Duration::from_secs(10)))
            .aggregate("sums", |each| {
                let wide = |cents: i64| i128::from(cents);
                let (least, most) = (each.min(move |t| wide(t.amount_cents)), each.max(move |t| wide(t.amount_cents)));
                (each.count(), each.sum(|t| t.amount_cents), least, most)
            })
            .was("totals")
            .on_close()
            .map(|Closed { window, key, value: (count, sum_cents, min_cents, max_cents) }| Total {
                window_start: window.start,
                window_end: window.end,
                account: key.unwrap_or_default().into(),
                count,
                sum_cents,
                min_cents: min_cents as i64,
                max_cents: max_cents as i64,
            })
            .write("results", &totals);
    }
}

#[test]
fn a_state_of_the_first_version_goes_on_under_other_names_and_with_other_types() {
    let (directory, rows) = (copied(), transactions());
    append(directory.path(), &rows[COUNT / 2..]);
    let job = || {
        let state = State::at(directory.path().join("state")).accept_changed_query(true);
        Job::new("account-totals").workers(2).state(state).options(Options::default().until_end(true))
    };
    assert_eq!(job().run(changed_query(directory.path())).unwrap().ending, Ending::Complete);
    same_rows(&rows_of(&directory.path().join("totals.csv"), &TOTALS), &expected_of(&rows).rows());
    let refused = job().run(query(directory.path())).unwrap_err().to_string();
    assert!(refused.contains("an output of the state is missing from the query (output results)"), "{refused}");
}

#[test]
fn the_tool_reads_a_state_of_the_first_version() {
    let directory = copied();
    let state = directory.path().join("state").display().to_string();
    let listed = run(TIDEGATE, ["snapshot", "ls", &state]);
    assert!(listed.code(0).stdout().lines().count() > 2, "{}", listed.stdout());
    check_contains(run(TIDEGATE, ["snapshot", "verify", &state]).code(0).stdout(), &["all are as they were written"]);
    check_contains(
        run(TIDEGATE, ["snapshot", "inspect", &state]).code(0).stdout(),
        &["job account-totals", "step totals: "],
    );
    let rows = run(TIDEGATE, ["snapshot", "inspect", &state, "totals"]);
    assert!(rows.code(0).stdout().lines().count() > 1, "{}", rows.stdout());
    check_contains(rows.stdout(), &["{\"window_end\":\"2025-01-01T00:", "\"parts\":[{\"from\":"]);
    let bytes: u64 = walk(&fixture()).iter().map(|file| file.metadata().unwrap().len()).sum();
    assert!(bytes < 100_000, "the fixture has {bytes} bytes");
}

fn walk(below: &Path) -> Vec<PathBuf> {
    let paths = fs::read_dir(below).unwrap().map(|entry| entry.unwrap().path());
    paths.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] }).collect()
}
