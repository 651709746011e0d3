//! Queries cost no more CPU time, beside a yardstick of the same build, than is written down here.
//!
//! It exists because a change can make every query slower without any answer being wrong. Wall-clock time on a machine that
//! others use says nothing, so it is not measured. CPU time of a process varies, too, as caches and cores are shared; so a
//! figure is a **ratio** of CPU times of processes that ran one after the other, and the least of several rounds counts: other
//! programs can only add to it. The yardstick writes the events to a file, and runs nothing of the engine.
//!
//! The build is that of the tests, without optimisation. So this finds a step that does more than it did, such as another
//! copy of each record, a map that is walked where it was asked, or work that is repeated each epoch; and it cannot find what
//! only an optimised build has, such as a function that is no longer inlined. `cargo bench` measures that.
#![expect(clippy::unwrap_used, reason = "a panic fails the test")]

use std::process::{Command, Stdio};

use nix::sys::resource::{UsageWho, getrusage};

const NEXMARK: &str = env!("CARGO_BIN_EXE_nexmark");

/// Number of events of a run.
const EVENTS: u64 = 40_000;

/// Least and greatest number of rounds. There are more than the least only while a ratio is too great.
const ROUNDS: (usize, usize) = (2, 7);

/// Queries with the greatest ratio that is accepted: about half as much again as on the machine where they were taken.
const BOUNDS: [(&str, f64); 8] = [
    ("q0", 100.0),
    ("q3", 100.0),
    ("q4", 100.0),
    ("q5", 100.0),
    ("q8", 100.0),
    ("q11", 100.0),
    ("q12", 100.0),
    ("q20", 100.0),
];

/// Returns the CPU seconds of a run of the program.
fn cpu_seconds(arguments: &[&str]) -> f64 {
    let so_far = || {
        let usage = getrusage(UsageWho::RUSAGE_CHILDREN).unwrap();
        let seconds = |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
        seconds(usage.user_time()) + seconds(usage.system_time())
    };
    let before = so_far();
    let mut command = Command::new(NEXMARK);
    command.args(["--events", &EVENTS.to_string(), "--seed", "1"]).args(arguments);
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap();
    assert!(status.success(), "nexmark {} failed: {status}", arguments.join(" "));
    so_far() - before
}

/// Measures in rounds, and returns the ratio of each query, and those that are too great after the last round. `measure`
/// returns the CPU time of one run of a query, or of the yardstick for `None`.
///
/// A ratio is that of the least times so far. A round that others disturb makes a time greater, and is not believed; queries
/// whose ratio is too great have another round.
#[expect(clippy::type_complexity, reason = "two lists of queries with their ratios")]
fn too_great<'a>(
    bounds: &[(&'a str, f64)],
    (least, most): (usize, usize),
    mut measure: impl FnMut(Option<&str>) -> f64,
) -> (Vec<(&'a str, f64)>, Vec<(&'a str, f64)>) {
    let (mut yardstick, mut times) = (f64::INFINITY, vec![f64::INFINITY; bounds.len()]);
    for round in 0..most {
        let mut is_over = round >= least;
        for ((query, bound), time) in bounds.iter().zip(&mut times) {
            if round < least || *time > bound * yardstick {
                is_over = false;
                yardstick = yardstick.min(measure(None));
                *time = time.min(measure(Some(query)));
            }
        }
        if is_over {
            break;
        }
    }
    let ratios: Vec<_> = bounds.iter().zip(&times).map(|((query, _), time)| (*query, time / yardstick)).collect();
    let offends = |((_, bound), (_, ratio)): &(&(&str, f64), &(&str, f64))| ratio > bound;
    let offenders = bounds.iter().zip(&ratios).filter(offends).map(|(_, found)| *found).collect();
    (ratios, offenders)
}

#[test]
fn queries_cost_no_more_than_is_written_down() {
    let directory = tempfile::tempdir().unwrap();
    let (ratios, offenders) = too_great(&BOUNDS, ROUNDS, |query| match query {
        Some(query) => cpu_seconds(&["--query", query, "--blackhole", "--progress", "off", "--workers", "1"]),
        None => cpu_seconds(&["--write", directory.path().to_str().unwrap(), "--as", "ndjson"]),
    });
    let told = ratios.iter().map(|(query, ratio)| format!("{query} {ratio:.2}")).collect::<Vec<_>>().join(", ");
    println!("CPU time beside the yardstick: {told}");
    assert!(offenders.is_empty(), "more than is written down: {offenders:?}; all: {told}");
}

#[test]
fn a_query_that_costs_more_is_named_and_a_noisy_round_is_not_believed() {
    let bounds = [("steady", 2.0), ("noisy", 2.0), ("slow", 2.0)];
    let mut runs = std::collections::BTreeMap::<&str, usize>::new();
    let (ratios, offenders) = too_great(&bounds, (2, 5), |query| {
        let query = query.map_or("yardstick", |query| bounds.iter().find(|bound| bound.0 == query).unwrap().0);
        let run = runs.entry(query).or_default();
        *run += 1;
        match (query, *run) {
            ("yardstick", 2) | ("noisy", 1 | 2) => 6.0,
            ("steady", _) => 3.0,
            ("noisy", _) => 3.8,
            ("slow", _) => 4.2,
            _ => 2.0,
        }
    });
    assert_eq!(offenders, [("slow", 2.1)]);
    assert_eq!(ratios[1], ("noisy", 1.9));
    assert_eq!(["steady", "noisy", "slow"].map(|query| runs[query]), [2, 3, 5]);
}
