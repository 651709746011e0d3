//! Joins by version and by window in processes of their own, which are killed with SIGKILL at random moments and started
//! again with other numbers of workers and processes: their files have the rows of a naive computation, each once.
//!
//! The program is a test of this program, which `sh` starts, as the flags that `tidegate up` adds are none of a test's.

use std::collections::BTreeMap;
use std::fmt::{Debug, Write as _};
use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Parser;
use fastrand::Rng;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tempfile::TempDir;
use tidegate::cli::QueryArgs;
use tidegate::{Window, csv, ndjson};

use crate::run::{LIMIT, Running, TIDEGATE, start};

/// Environment variable with the arguments of the program.
const ARGUMENTS: &str = "TIDEGATE_TEST_JOINS";
const SCRIPT: &str = "TIDEGATE_TEST_JOINS=\"$*\" exec \"$0\" --ignored --exact killed::the_program --nocapture";

/// The disorder that is allowed, as the flags have it by default, in milliseconds.
const DISORDER: i64 = 2_000;
const SIZE: i64 = 5_000;
const SLIDE: i64 = 2_000;
const KEYS: u32 = 400;

/// A record of either side.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
struct Tick {
    id: u64,
    key: u32,
    at_ms: i64,
}

/// A left record with the version of its time.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
struct Versioned {
    key: u32,
    left: u64,
    right: Option<u64>,
}

/// A pair in a window, or a record that has no other there.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
struct WindowPair {
    end: i64,
    key: u32,
    left: Option<u64>,
    right: Option<u64>,
}

/// A record that is late for the join with versions.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
struct LateTick {
    side: String,
    id: u64,
}

#[derive(Debug, Parser)]
struct Arguments {
    #[command(flatten)]
    query: QueryArgs,

    /// The right side; the left one is what the query reads.
    #[arg(long)]
    right: PathBuf,

    /// Folder of the pairs in windows and of late records; the flag --out is for records with versions.
    #[arg(long)]
    folder: PathBuf,
}

fn millis(millis: i64) -> Duration {
    Duration::from_millis(millis as u64)
}

fn program(arguments: &Arguments) -> tidegate::Result<u8> {
    let query = &arguments.query;
    let (left, right) =
        (query.source(|tick: &Tick| tick.at_ms)?, ndjson::Source::new(&arguments.right).event_time(|t: &Tick| t.at_ms));
    let versioned = query.out()?;
    let [windowed, late] = ["windowed.csv", "late.csv"].map(|name| csv::Sink::new(arguments.folder.join(name)));
    query.run("joins", move |flow| {
        let (left, right) = (flow.read("left", &left), flow.read("right", &right));
        let keyed = || [&left, &right].map(|ticks| ticks.clone().key_by(|tick| tick.key));
        let [own, versions] = keyed();
        let as_of = own.join_as_of("as of", versions).left_outer(|key, left, right: Option<&Tick>| Versioned {
            key: *key,
            left: left.id,
            right: right.map(|right| right.id),
        });
        as_of.results().write("versioned", &versioned);
        let is_late = |side: &'static str| move |tick: Tick| LateTick { side: side.into(), id: tick.id };
        let late_right = as_of.late_right().map(is_late("right"));
        as_of.late_left().map(is_late("left")).concat(late_right).write("late", &late);
        let [own, other] = keyed();
        own.join_windowed("windowed", other, Window::sliding(millis(SIZE), millis(SLIDE)))
            .full_outer(|window, key, left, right| {
                let [left, right] = [left, right].map(|side: Option<&Tick>| side.map(|tick| tick.id));
                WindowPair { end: window.end.millis(), key: *key, left, right }
            })
            .results()
            .write("windowed", &windowed);
    })
}

/// Ends this process when `tidegate up`, which holds its standard input open, is gone.
fn end_with_parent() {
    if std::env::var_os("TIDEGATE_ENDS_WITH_STDIN").is_some() {
        std::thread::spawn(|| {
            let _ = std::io::stdin().read_to_end(&mut Vec::new());
            std::process::exit(1);
        });
    }
}

#[test]
#[ignore = "run by another test, in a process of its own"]
fn the_program() {
    let Ok(line) = std::env::var(ARGUMENTS) else { return };
    end_with_parent();
    let code = program(&Arguments::parse_from(std::iter::once("joins").chain(line.split(' '))));
    std::process::exit(i32::from(code.unwrap_or_else(|error| {
        eprintln!("error: {error}");
        error.exit_code()
    })));
}

/// Generates the records of a side in the order of arrival: most within the disorder that is allowed, some late.
fn ticks(random: &mut Rng, count: u64) -> Vec<Tick> {
    let mut ticks: Vec<(i64, Tick)> = (0..count)
        .map(|id| {
            // Ties in time are frequent.
            let at_ms = (id as i64 * 8 + random.i64(0..400)) / 10 * 10;
            let delay = if random.u8(0..25) == 0 { random.i64(2_000..12_000) } else { random.i64(0..1_500) };
            (at_ms + delay, Tick { id, key: random.u32(0..KEYS), at_ms })
        })
        .collect();
    ticks.sort_by_key(|(arrival, _)| *arrival);
    ticks.into_iter().map(|(_, tick)| tick).collect()
}

/// The rows of the three files, sorted.
#[derive(Debug, Default, PartialEq, Eq)]
struct JoinFiles {
    versioned: Vec<Versioned>,
    windowed: Vec<WindowPair>,
    late: Vec<LateTick>,
}

impl JoinFiles {
    /// Computes the rows from their definitions.
    fn of(left: &[Tick], right: &[Tick]) -> JoinFiles {
        let (mut files, mut windows) = (JoinFiles::default(), BTreeMap::<(i64, u32), [Vec<u64>; 2]>::new());
        let mut versions = BTreeMap::<u32, Vec<(i64, usize, u64)>>::new();
        let mut on_time = Vec::new();
        for (side, (name, ticks)) in [("left", left), ("right", right)].into_iter().enumerate() {
            let mut watermark = i64::MIN;
            for (offset, tick) in ticks.iter().enumerate() {
                let last = tick.at_ms.div_euclid(SLIDE) * SLIDE + SIZE;
                for end in (0..).map(|n| last - n * SLIDE).take_while(|end| *end > tick.at_ms) {
                    if end > watermark {
                        windows.entry((end, tick.key)).or_default()[side].push(tick.id);
                    }
                }
                match (tick.at_ms < watermark, name) {
                    (true, _) => files.late.push(LateTick { side: name.into(), id: tick.id }),
                    (false, "left") => on_time.push(tick),
                    (false, _) => versions.entry(tick.key).or_default().push((tick.at_ms, offset, tick.id)),
                }
                watermark = watermark.max(tick.at_ms - DISORDER);
            }
        }
        for tick in on_time {
            let before = versions.get(&tick.key).into_iter().flatten().filter(|version| version.0 <= tick.at_ms);
            let right = before.max().map(|version| version.2);
            files.versioned.push(Versioned { key: tick.key, left: tick.id, right });
        }
        for ((end, key), [left, right]) in windows {
            let mut add = |left, right| files.windowed.push(WindowPair { end, key, left, right });
            match (&left[..], &right[..]) {
                (_, []) => left.iter().for_each(|left| add(Some(*left), None)),
                ([], _) => right.iter().for_each(|right| add(None, Some(*right))),
                _ => left.iter().for_each(|left| right.iter().for_each(|right| add(Some(*left), Some(*right)))),
            }
        }
        files.versioned.sort();
        files.windowed.sort();
        files.late.sort();
        files
    }

    fn read(folder: &Path) -> JoinFiles {
        fn rows<T: DeserializeOwned + Ord>(path: &Path) -> Vec<T> {
            let mut rows: Vec<T> = ::csv::Reader::from_path(path).unwrap().deserialize().map(Result::unwrap).collect();
            rows.sort();
            rows
        }
        JoinFiles {
            versioned: rows(&folder.join("versioned.csv")),
            windowed: rows(&folder.join("windowed.csv")),
            late: rows(&folder.join("late.csv")),
        }
    }

    #[track_caller]
    fn check(&self, expected: &JoinFiles) {
        #[track_caller]
        fn same<T: Debug + Ord>(what: &str, found: &[T], expected: &[T]) {
            let other: Vec<_> = found.iter().filter(|row| expected.binary_search(row).is_err()).take(10).collect();
            let lacks: Vec<_> = expected.iter().filter(|row| found.binary_search(row).is_err()).take(10).collect();
            let lengths = (found.len(), expected.len());
            assert!(found == expected, "{what}: {lengths:?} rows: there are {other:?}, and should be {lacks:?}");
        }
        same("versions", &self.versioned, &expected.versioned);
        same("windows", &self.windowed, &expected.windowed);
        same("late records", &self.late, &expected.late);
    }
}

/// The files of a run.
struct Case {
    folder: TempDir,
    expected: JoinFiles,
}

impl Case {
    fn new(seed: u64, count: u64) -> Case {
        let (mut random, folder) = (Rng::with_seed(seed), tempfile::tempdir().unwrap());
        let sides = ["left", "right"].map(|name| {
            let (ticks, mut text) = (ticks(&mut random, count), String::new());
            for Tick { id, key, at_ms } in &ticks {
                // The note makes the files so long that they are read in many pieces.
                let note = "~".repeat(240);
                writeln!(text, r#"{{"id":{id},"key":{key},"at_ms":{at_ms},"note":"{note}"}}"#).unwrap();
            }
            fs::write(folder.path().join(format!("{name}.ndjson")), text).unwrap();
            ticks
        });
        let expected = JoinFiles::of(&sides[0], &sides[1]);
        let pairs = expected.windowed.iter().filter(|row| row.left.is_some() && row.right.is_some()).count();
        let alone = expected.windowed.len() - pairs;
        let without = expected.versioned.iter().filter(|row| row.right.is_none()).count();
        assert!(pairs > 5_000 && alone > 200, "the data is too tame: {pairs} pairs, {alone} alone");
        assert!(without > 10 && expected.late.len() > 200, "{without} without a version, {} late", expected.late.len());
        Case { folder, expected }
    }

    /// Waits until no process has the state any more: when `up` is killed, its processes end a little later.
    fn wait_for_locks(&self) {
        let begun = Instant::now();
        let is_free = |name: &str| match File::open(self.folder.path().join("state").join(name)) {
            Ok(file) => file.try_lock().is_ok(),
            Err(_) => true,
        };
        while !["STATE", "LOCK"].into_iter().all(is_free) {
            assert!(begun.elapsed() < LIMIT, "the state is in use after {LIMIT:?}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Starts the program; `up` is the number of processes, if there is more than one.
    fn start(&self, workers: usize, up: usize, more: &str) -> Running {
        self.wait_for_locks();
        let line = "--ndjson {}/left.ndjson --right {}/right.ndjson --folder {} --out {}/versioned.csv --until-end \
                    --in-flight 1MiB --epoch 5ms --progress off";
        let line = format!("{line} -w {workers} {more}").replace("{}", self.folder.path().to_str().unwrap());
        let (own, processes) = (std::env::current_exe().unwrap(), up.to_string());
        let program = ["-c", SCRIPT, own.to_str().unwrap()].into_iter().chain(line.split_whitespace());
        if up == 1 {
            return start("sh", program);
        }
        start(TIDEGATE, ["up", "-n", &processes, "--", "sh"].into_iter().chain(program))
    }

    /// Returns the length of the results.
    fn length(&self) -> u64 {
        let length = |name: &str| fs::metadata(self.folder.path().join(name)).map_or(0, |file| file.len());
        length("versioned.csv") + length("windowed.csv")
    }

    #[track_caller]
    fn check(&self) {
        JoinFiles::read(self.folder.path()).check(&self.expected);
    }
}

#[test]
fn versions_and_windows_are_the_same_when_processes_are_killed_and_change_in_number() {
    let (case, mut random) = (Case::new(4, 8_000), Rng::with_seed(7));
    case.start(1, 1, "").end().code(0);
    case.check();
    let whole = case.length();
    // With a state no file is replaced.
    for name in ["versioned.csv", "windowed.csv", "late.csv"] {
        fs::remove_file(case.folder.path().join(name)).unwrap();
    }
    let state = "--state {}/state --snapshot-every 15ms";
    let mut kills = 0;
    for (round, (workers, up)) in (1..).zip([(1, 1), (2, 1), (1, 2), (3, 1), (1, 3), (2, 2)]) {
        let mut job = case.start(workers, up, state);
        // At a moment in the results, and a little later, so that a slow machine has kills everywhere, too.
        let (until, begun) = (whole * round / 7 - random.u64(0..whole / 8), Instant::now());
        while job.is_alive() && case.length() < until {
            assert!(begun.elapsed() < LIMIT, "{} of {until} bytes after {LIMIT:?}: {}", case.length(), job.stderr());
            std::thread::sleep(Duration::from_millis(2));
        }
        kills += u32::from(job.killed_after(Duration::from_millis(random.u64(0..30))).was_killed());
    }
    assert!(kills > 1, "it was killed {kills} times");
    case.start(3, 1, state).end().code(0);
    case.check();
    // A state that is complete adds nothing.
    case.start(1, 2, state).end().code(0);
    case.check();
}
