//! A state resumes only with the sources that it has read: a query that lacks one, has an additional one, or reads
//! another one under its name would lose the positions in it, or read records twice. This holds even if nothing is to
//! be replayed, so also after a clean stop. A file that was only moved is accepted. The same for topics is in
//! `brokers/source_identity.rs`.
#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

#[path = "common/transactions.rs"]
mod transactions;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tidegate::job::Ending;
use tidegate::source::{Options, csv as csv_source, ndjson};
use tidegate::{Closed, Flow, Job, State, Stream, Transaction, Window, csv};
use transactions::{COLUMNS, csv_of, ndjson_of, rows_of, tidy};

/// Number of records of an account.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
struct Count {
    account: String,
    count: i64,
}

const COUNT: usize = 200;

/// Reads sources given as `NAME=FILE`, and counts the records of all.
fn query(directory: &Path, sources: &str) -> impl Fn(&Flow<'_>) + Send + Sync + use<> {
    let (directory, out) = (directory.to_owned(), csv::Sink::new(directory.join("counts.csv")));
    let sources: Vec<(String, String)> = sources
        .split_whitespace()
        .map(|source| source.split_once('=').unwrap())
        .map(|(a, b)| (a.into(), b.into()))
        .collect();
    move |flow: &Flow<'_>| {
        let read = |(name, file): &(String, String)| {
            let path = directory.join(file);
            match file.ends_with("csv") {
                true => flow.read(name, &csv_source::Source::new(path).event_time(|t: &Transaction| t.at_ms)),
                false => flow.read(name, &ndjson::Source::new(path).event_time(|t: &Transaction| t.at_ms)),
            }
        };
        let all = sources.iter().map(read).reduce(Stream::concat).unwrap();
        let counts = all.key_by(|t| t.account.clone()).window(Window::tumbling(Duration::from_secs(3600)));
        let counts = counts.aggregate("counts", tidegate::stream::aggregate::Each::count).on_close();
        counts.map(|Closed { key, value, .. }| Count { account: key.into(), count: value }).write("counts", &out);
    }
}

fn job(state: State) -> Job {
    Job::new("counts").epoch(Duration::from_millis(10)).state(state)
}

fn state_of(directory: &Path) -> State {
    State::at(directory.join("state"))
}

/// Makes a state that has read `sources` to their ends and was stopped.
fn stopped(sources: &str) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let rows = tidy(3, COUNT);
    for (file, seed) in [("a.ndjson", 3), ("b.ndjson", 4), ("twin.ndjson", 3)] {
        fs::write(directory.path().join(file), ndjson_of(&tidy(seed, COUNT))).unwrap();
    }
    fs::write(directory.path().join("a.csv"), csv_of(&rows, &COLUMNS)).unwrap();
    let job = job(state_of(directory.path()));
    let (stop, metrics, query) = (job.stopper(), job.metrics(), query(directory.path(), sources));
    let running = std::thread::spawn(move || job.run(query));
    let (begun, expected) = (Instant::now(), (COUNT * sources.split_whitespace().count()) as u64);
    while metrics.summary().sources.iter().map(|source| source.read).sum::<u64>() < expected {
        assert!(begun.elapsed() < Duration::from_secs(60), "it does not come on");
        std::thread::sleep(Duration::from_millis(5));
    }
    stop.stop();
    assert_eq!(running.join().unwrap().unwrap().ending, Ending::Stopped);
    directory
}

/// Resumes with `sources` and reads them to their ends; returns the sum of all counts, or the error.
fn goes_on(directory: &Path, sources: &str, accepted: bool) -> Result<i64, String> {
    let job = job(state_of(directory).accept_changed_sources(accepted));
    let job = job.options(Options::default().until_end(true));
    job.run(query(directory, sources)).map_err(|error| error.to_string())?;
    let mut counts = BTreeMap::new();
    for row in rows_of(&directory.join("counts.csv"), &["account", "count"]) {
        *counts.entry(row[0].clone()).or_insert(0) += row[1].parse::<i64>().unwrap();
    }
    Ok(counts.values().sum())
}

#[track_caller]
fn check(then: &str, now: &str, refused: &str, accepted: Result<i64, &str>) {
    let directory = stopped(then);
    let error = goes_on(directory.path(), now, false).expect_err(now);
    assert!(error.contains(refused), "{then} -> {now}\nexpected: {refused}\nfound:    {error}");
    match (goes_on(directory.path(), now, true), accepted) {
        (Ok(found), Ok(expected)) => assert_eq!(found, expected, "{then} -> {now}"),
        (Err(found), Err(expected)) => assert!(found.contains(expected), "{then} -> {now}: {found}"),
        (found, expected) => panic!("{then} -> {now}: {found:?}, not {expected:?}"),
    }
}

const ALL: i64 = COUNT as i64;

#[test]
fn a_source_that_was_renamed_is_refused_by_its_name_after_a_clean_stop_too() {
    let lost = "the state has read a source that the query does not have (source first)";
    // With the flag to accept it, the file is read again.
    check("first=a.ndjson", "second=a.ndjson", lost, Ok(2 * ALL));
    let directory = stopped("first=a.ndjson");
    let error = goes_on(directory.path(), "second=a.ndjson", false).unwrap_err();
    for part in ["the source second read from its start", "give the source its name back", "--accept-changed-sources"] {
        assert!(error.contains(part), "`{part}` is not in: {error}");
    }
    // A start that is refused changes nothing.
    assert_eq!(goes_on(directory.path(), "first=a.ndjson", false), Ok(ALL));
}

#[test]
fn a_source_that_is_dropped_or_added_is_refused_by_its_name() {
    let lost =
        "the state has read a source that the query does not have (source second): how far it was read would be lost;";
    check("first=a.ndjson second=b.ndjson", "first=a.ndjson", lost, Ok(2 * ALL));
    let new = "the query has a source that the state has not read (source second)";
    check("first=a.ndjson", "first=a.ndjson second=b.ndjson", new, Ok(2 * ALL));
}

#[test]
fn another_source_under_the_name_of_one_is_refused() {
    let other = "a source is not the one that the state has read (source first)";
    // Byte positions of one format mean nothing in another.
    check("first=a.ndjson", "first=a.csv", other, Err("a.csv"));
    check("first=a.csv", "first=a.ndjson", other, Err("a.ndjson"));
    // Files are identified by their contents, which no flag overrides.
    let edited = "b.ndjson";
    check("first=a.ndjson", "first=b.ndjson", edited, Err(edited));
    check("first=a.ndjson second=b.ndjson", "first=b.ndjson second=a.ndjson", "ndjson", Err("ndjson"));
}

#[test]
fn a_file_that_has_only_moved_goes_on() {
    let directory = stopped("first=a.ndjson");
    fs::remove_file(directory.path().join("a.ndjson")).unwrap();
    assert_eq!(goes_on(directory.path(), "first=twin.ndjson", false), Ok(ALL));
}
