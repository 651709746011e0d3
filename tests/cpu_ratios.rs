//! Reading events, and queries over them, cost no more CPU time than is written down here, beside a yardstick of the same build.
//!
//! It exists because a change can make every query slower without any answer being wrong. Wall-clock time on a machine that
//! others use says nothing, so it is not measured. CPU time of a process varies, too, as caches and cores are shared; but other
//! programs can only add to it. So a figure is a **ratio** of CPU times of one build on one machine, each the least of several
//! rounds in which all programs alternate, and a figure that is too great has more rounds.
//!
//! * Reading: query 2, which drops nearly all events, beside the yardstick, which writes as many to a file and runs nothing of
//!   the engine.
//! * A query: what it takes more than query 2 does, beside query 2.
//!
//! The build is that of the tests, without optimisation. So this finds a step that does more than it did, such as another
//! copy of each record, a map that is walked where it was asked, or work that is repeated each epoch; and it cannot find what
//! only an optimised build has, such as a function that is no longer inlined. `cargo bench` measures that.
#![expect(clippy::unwrap_used, reason = "a panic fails the test")]

use std::collections::BTreeMap;
use std::process::{Command, Stdio};

use nix::sys::resource::{UsageWho, getrusage};

const NEXMARK: &str = env!("CARGO_BIN_EXE_nexmark");

/// Number of events of a run.
const EVENTS: u64 = 30_000;

/// Least and greatest number of rounds.
const ROUNDS: (usize, usize) = (3, 10);

/// A measured program: the yardstick, or a query.
type Name = &'static str;

const YARDSTICK: Name = "the yardstick";

/// The query that drops nearly all events.
const READING: Name = "q2";

/// Figures that are accepted: half as much again as on the machine where they were taken (0.23; 0.30, 0.38, 0.39, 0.60, 0.15,
/// 1.18, 0.46, 0.95, 1.79), where least times of three rounds varied by a twentieth while eight other programs ran on two
/// cores.
const BOUNDS: [(Name, f64); 10] = [
    (READING, 0.35),
    ("q0", 0.48),
    ("q4", 0.57),
    ("q7", 0.60),
    ("q9", 0.90),
    ("q12", 0.25),
    ("q16", 1.80),
    ("q18", 0.75),
    ("q19", 1.45),
    ("q20", 2.70),
];

/// Least CPU times so far, in seconds.
#[derive(Default)]
struct LeastTimes(BTreeMap<Name, f64>);

impl LeastTimes {
    fn add(&mut self, name: Name, seconds: f64) {
        let least = self.0.entry(name).or_insert(f64::INFINITY);
        *least = least.min(seconds);
    }

    /// Returns the figure of reading, or of a query.
    fn figure(&self, name: Name) -> f64 {
        let time = |name| self.0.get(name).copied().unwrap_or(f64::INFINITY);
        if name == READING { time(READING) / time(YARDSTICK) } else { time(name) / time(READING) - 1.0 }
    }
}

/// Measures in rounds, and returns all figures, and those that are too great after the last round. `measure` returns the CPU
/// time of one run.
fn figures(
    bounds: &[(Name, f64)],
    (least, most): (usize, usize),
    mut measure: impl FnMut(Name) -> f64,
) -> (Vec<String>, Vec<String>) {
    let mut times = LeastTimes::default();
    let too_great = |times: &LeastTimes| {
        let offends = |(name, bound): &&(Name, f64)| times.figure(name) > *bound;
        bounds.iter().filter(offends).map(|(name, _)| *name).collect::<Vec<_>>()
    };
    for round in 0..most {
        let again = too_great(&times);
        if round >= least && again.is_empty() {
            break;
        }
        for name in [YARDSTICK, READING] {
            times.add(name, measure(name));
        }
        for (name, _) in bounds.iter().filter(|(name, _)| *name != READING && (round < least || again.contains(name))) {
            times.add(name, measure(name));
        }
    }
    let told = |name: Name| format!("{name} {:.2}", times.figure(name));
    let all = bounds.iter().map(|(name, _)| told(name)).collect();
    (all, too_great(&times).into_iter().map(told).collect())
}

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
    let output = command.stdin(Stdio::null()).output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "nexmark {} failed: {told}", arguments.join(" "));
    so_far() - before
}

#[test]
fn queries_cost_no_more_than_is_written_down() {
    let directory = tempfile::tempdir().unwrap();
    let (all, too_great) = figures(&BOUNDS, ROUNDS, |name| match name {
        YARDSTICK => cpu_seconds(&["--write", directory.path().to_str().unwrap(), "--as", "ndjson"]),
        query => cpu_seconds(&["--query", query, "--blackhole", "--progress", "off", "--workers", "1"]),
    });
    println!("{}", all.join(", "));
    assert!(too_great.is_empty(), "more than is written down: {}; all: {}", too_great.join(", "), all.join(", "));
}

#[test]
fn what_costs_more_is_named_and_a_noisy_round_is_not_believed() {
    let mut runs = BTreeMap::<Name, usize>::new();
    let bounds = [(READING, 0.3), ("steady", 0.6), ("noisy", 0.6), ("slow", 0.6)];
    let mut measure = |reading: f64| {
        runs.clear();
        let measured = figures(&bounds, (2, 5), |name| {
            let run = runs.entry(name).or_default();
            *run += 1;
            match (name, *run) {
                (YARDSTICK, 1) | ("noisy", 1 | 2) => 40.0,
                (YARDSTICK, _) => 10.0,
                (READING, _) => reading,
                ("steady" | "noisy", _) => 3.0,
                _ => 3.4,
            }
        });
        (measured, ["steady", "noisy", "slow"].map(|query| runs[query]))
    };
    let ((all, too_great), runs) = measure(2.0);
    assert_eq!((too_great, runs), (vec![String::from("slow 0.70")], [2, 3, 5]));
    assert_eq!(all, ["q2 0.20", "steady 0.50", "noisy 0.50", "slow 0.70"]);
    // What makes reading slower makes every query slower, and no query beside it.
    let ((_, too_great), _) = measure(3.2);
    assert_eq!(too_great, ["q2 0.32"]);
}
