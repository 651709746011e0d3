//! Joins by event time give the rows of a computation from scratch: a function of the records, on any number of workers,
//! through any epochs, crashes and processes.
//!
//! The results of each join are looked at with their event times, by keyed state behind it, which would miss what is late.
#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]
#![expect(clippy::redundant_closure_for_method_calls, reason = "queries are written as users write them")]

#[path = "joins/killed.rs"]
mod killed;
#[path = "common/run.rs"]
mod run;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use tidegate::durable::disk::Disk;
use tidegate::source::memory::MemorySource;
use tidegate::stream::Keyed;
use tidegate::stream::join::Joined;
use tidegate::testing::durable::OpenedState;
use tidegate::testing::{Captured, CrashingDisk, Fault, RunOutcome, TestRun};
use tidegate::{Flow, Stream, Window};

use common::cases::{Data, Deal, for_seeds, within};
use common::checks;
use common::incarnations::on;
use common::oracle::{self, NEVER, OVER, OracleEpoch, OracleRecord, Windows};

/// A row of a join: its key, and the ids of its records.
type IdRow = (u8, Option<u32>, Option<u32>);
/// A row with its event time.
type TimedRow = (i64, IdRow);

/// The joins that a case is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Group {
    Within,
    AsOf,
    Windowed,
}

impl Group {
    fn names(self) -> &'static [&'static str] {
        match self {
            Group::Within => &["inner", "left", "right", "full", "semi", "anti"],
            Group::Windowed => {
                &["tumbling", "tumbling left", "tumbling right", "tumbling full", "sliding", "cumulative"]
            }
            Group::AsOf => {
                &["backward", "backward within", "forward", "forward within", "nearest", "nearest within", "state"]
            }
        }
    }
}

/// Both streams, with what determines their join.
#[derive(Clone, Debug)]
struct Case {
    group: Group,
    left: Data,
    right: Data,
    before: i64,
    after: i64,
    late: i64,
}

/// Moves the times of some data to where those of other data are.
fn moved(mut data: Data, to: &Data) -> Data {
    let middle = |data: &Data| {
        let mut times: Vec<i64> = data.partitions.iter().flatten().map(|deal| deal.at_ms).collect();
        times.sort_unstable();
        times.get(times.len() / 2).copied()
    };
    let (Some(from), Some(to)) = (middle(&data), middle(to)) else { return data };
    let is_usual = |deal: &&mut Deal| (deal.at_ms - 1_000_000..=deal.at_ms + 1_000_000).contains(&from);
    let deals = data.partitions.iter_mut().flatten().filter(|deal| deal.at_ms.unsigned_abs() < 1 << 60);
    deals.filter(is_usual).for_each(|deal| deal.at_ms += to - from);
    data
}

impl Case {
    fn random(group: Group, random: &mut Rng, most: usize) -> Case {
        let left = Data::random(random, most);
        let right = moved(Data::random(random, most).renumbered(1_000_000), &left);
        let (before, after) = (*random.choice(&[0, 0, 7, 30]).unwrap(), *random.choice(&[0, 1, 20, 100]).unwrap());
        Case { group, left, right, before, after, late: *random.choice(&[0, 0, 25]).unwrap() }
    }
}

fn millis(millis: i64) -> Duration {
    Duration::from_millis(millis as u64)
}

/// Rows of joins by name.
type Rows<T> = BTreeMap<&'static str, T>;

/// The outputs of the query.
#[derive(Clone)]
struct Outputs {
    /// The rows of each join, and those that are late behind it: there must be none.
    rows: Rows<(Captured<TimedRow>, Captured<IdRow>)>,
    /// Windows behind one of the joins: end, key, number of rows.
    windows: Captured<(i64, u8, i64)>,
    late: [Captured<Deal>; 2],
}

/// Width of the windows behind a join, in milliseconds.
const WINDOW: i64 = 20;
/// How long keyed state remembers, in milliseconds.
const MEMORY: i64 = 15;

fn row(key: u8, left: Option<&Deal>, right: Option<&Deal>) -> IdRow {
    (key, left.map(|left| left.id), right.map(|right| right.id))
}

/// What the joins of a case have in common.
struct Inputs<'f, 'a> {
    left: Stream<'f, Deal>,
    right: Stream<'f, Deal>,
    case: &'a Case,
    own: &'a Outputs,
}

impl<'f> Inputs<'f, '_> {
    fn keyed(&self) -> (Keyed<'f, u8, Deal>, Keyed<'f, u8, Deal>) {
        let left = self.left.clone().key_by(|deal: &Deal| deal.key);
        (left, self.right.clone().key_by(|deal: &Deal| deal.key).allowed_lateness(millis(self.case.late)))
    }

    /// Writes what is late of a join, and windows behind it.
    fn write(&self, joined: &Joined<'f, Deal, Deal, IdRow>) {
        joined.late_left().write("late left", &self.own.late[0]);
        joined.late_right().write("late right", &self.own.late[1]);
        let count = joined.results().key_by(|row| row.0).window(Window::tumbling(millis(WINDOW)));
        let count = count.aggregate("windows", |each| each.count()).on_close();
        count.map(|row| (row.window.end.millis(), row.key, row.value)).write("windows", &self.own.windows);
    }

    fn within(&self) -> Vec<Stream<'f, IdRow>> {
        let join = |name: &str| {
            let (left, right) = self.keyed();
            left.join_within(name, right, millis(self.case.before), millis(self.case.after))
        };
        let inner = join("inner").inner(|key, left, right| row(*key, Some(left), Some(right)));
        let left = join("left").left_outer(|key, left, right| row(*key, Some(left), right));
        let right = join("right").right_outer(|key, left, right| row(*key, left, Some(right)));
        let full = join("full").full_outer(|key, left, right| row(*key, left, right));
        self.write(&full);
        let alone = |deal: Deal| (deal.key, Some(deal.id), None);
        let (semi, anti) = (join("semi").semi(), join("anti").anti());
        let rows = [inner, left, right, full].map(|joined| joined.results());
        rows.into_iter().chain([semi, anti].map(|joined| joined.results().map(alone))).collect()
    }

    fn windowed(&self) -> Vec<Stream<'f, IdRow>> {
        let join = |name: &str| {
            let (left, right) = self.keyed();
            left.join_windowed(name, right, checks::window(windows_of(name)))
        };
        let inner = join("tumbling").inner(|_, key, left, right| row(*key, Some(left), Some(right)));
        let left = join("tumbling left").left_outer(|_, key, left, right| row(*key, Some(left), right));
        let right = join("tumbling right").right_outer(|_, key, left, right| row(*key, left, Some(right)));
        let full = ["tumbling full", "sliding", "cumulative"];
        let full = full.map(|name| join(name).full_outer(|_, key, left, right| row(*key, left, right)));
        self.write(&full[0]);
        [inner, left, right].iter().chain(&full).map(|joined| joined.results()).collect()
    }

    fn as_of(&self) -> Vec<Stream<'f, IdRow>> {
        let tolerance = millis(self.case.after);
        let names = Group::AsOf.names();
        let joined = names[..6].iter().enumerate().map(|(number, name)| {
            let (left, right) = self.keyed();
            let join = left.join_as_of(name, right);
            let join = if number % 2 == 1 { join.tolerance(tolerance) } else { join };
            let join = match number / 2 {
                0 => join,
                1 => join.forward(),
                _ => join.nearest(),
            };
            let joined = join.left_outer(|key, left, right| row(*key, Some(left), right));
            if *name == "nearest within" {
                self.write(&joined);
            }
            joined.results()
        });
        let joined: Vec<_> = joined.collect();
        let (left, right) = self.keyed();
        let state = left.keyed_state_with::<_, u32, IdRow>(
            "state",
            right,
            |at, last, deal| {
                *last = Some(deal.id);
                at.clear_timers();
                at.set_timer_in(millis(MEMORY));
            },
            |at, last, deal| at.emit((deal.key, *last, Some(deal.id))),
            |_, last| *last = None,
        );
        joined.into_iter().chain([state.results()]).collect()
    }
}

/// Returns the windows of a join of this name.
fn windows_of(name: &str) -> Windows {
    match name {
        "sliding" => Windows::Sliding { size: 50, slide: 20, offset: 7, late: 0 },
        "cumulative" => Windows::Cumulative { size: 60, step: 20, late: 0 },
        _ => Windows::Tumbling { size: 30, offset: 4 },
    }
}

impl Outputs {
    fn new(case: &Case) -> Outputs {
        let rows = case.group.names().iter().map(|name| (*name, Default::default())).collect();
        Outputs { rows, windows: Captured::new(), late: Default::default() }
    }

    fn query(&self, case: &Case) -> impl Fn(&Flow<'_>) + Send + Sync + 'static {
        let (sources, own, case) = ((case.left.source(), case.right.source()), self.clone(), case.clone());
        move |flow| {
            let (left, right) = (flow.read("left", &sources.0), flow.read("right", &sources.1));
            let inputs = Inputs { left, right, case: &case, own: &own };
            let joined = match case.group {
                Group::Within => inputs.within(),
                Group::AsOf => inputs.as_of(),
                Group::Windowed => inputs.windowed(),
            };
            for (name, rows) in case.group.names().iter().zip(joined) {
                timed(rows, name, &own.rows[name]);
            }
        }
    }

    fn run(&self, case: &Case, run: TestRun) -> Result<RunOutcome, String> {
        run.run(self.query(case)).map_err(|error| error.to_string())
    }

    fn check(&self, expected: &Expected) -> Result<(), String> {
        for (name, (found, missed)) in &self.rows {
            same(name, &found.all(), &expected.rows[name])?;
            same(&format!("late behind {name}"), &missed.all(), &[])?;
        }
        same("windows", &self.windows.all(), &expected.windows)?;
        same("late left", &self.late[0].all(), &expected.late[0])?;
        same("late right", &self.late[1].all(), &expected.late[1])
    }
}

/// Writes a join's rows with their event times, and those that are late behind it.
fn timed(rows: Stream<'_, IdRow>, name: &str, (output, missed): &(Captured<TimedRow>, Captured<IdRow>)) {
    let state = rows.key_by(|row| row.0).keyed_state::<(), TimedRow>(
        &format!("times of {name}"),
        |at, _, row| at.emit((at.now().millis(), row)),
        |_, _| {},
    );
    state.emitted().write(name, output);
    state.late().write(&format!("late behind {name}"), missed);
}

fn same<T: PartialEq + std::fmt::Debug>(what: &str, found: &[T], expected: &[T]) -> Result<(), String> {
    if found == expected {
        return Ok(());
    }
    let other: Vec<_> = found.iter().filter(|row| !expected.contains(row)).take(10).collect();
    let lacks: Vec<_> = expected.iter().filter(|row| !found.contains(row)).take(10).collect();
    Err(format!("{what}: {} rows, not {}: there are {other:?}, and should be {lacks:?}", found.len(), expected.len()))
}

/// The outputs that the definitions say.
#[derive(Debug, Default)]
struct Expected {
    rows: Rows<Vec<TimedRow>>,
    windows: Vec<(i64, u8, i64)>,
    late: [Vec<Deal>; 2],
}

/// Returns `true` if a window that ends at `end` has closed for a record.
fn is_closed_for(record: &OracleRecord<Deal>, end: i64, case: &Case) -> bool {
    let mark = record.partition_watermark.max(record.activation_watermark);
    mark != NEVER && end <= mark - case.late
}

impl Expected {
    /// Computes the outputs of a run whose sources took this input, epoch by epoch.
    fn new(case: &Case, steps: [&[OracleEpoch]; 2]) -> Expected {
        let both = oracle::concat(&case.left.history(0, steps[0]), &case.right.history(1, steps[1]));
        let last = both.watermarks.last_key_value().map_or(NEVER, |last| *last.1);
        let until = if [NEVER, OVER].contains(&last) { last } else { last - case.late };
        let is_late = |record: &OracleRecord<Deal>| {
            let last = match case.group {
                Group::Windowed => windows_of("tumbling full").of(record.time)[0].1,
                _ => record.time + 1,
            };
            is_closed_for(record, last, case)
        };
        let all = both.records.clone();
        let (late, on_time): (Vec<_>, Vec<_>) = both.records.into_iter().partition(is_late);
        let side = |records: &[OracleRecord<Deal>], side: u16| -> Vec<OracleRecord<Deal>> {
            records.iter().filter(|record| record.origin.0 == side).cloned().collect()
        };
        let late = [0, 1].map(|number| {
            let mut late: Vec<_> = side(&late, number).into_iter().map(|record| record.data).collect();
            late.sort();
            late
        });
        let mut expected = Expected { late, ..Expected::default() };
        expected.rows = case.group.names().iter().map(|name| (*name, Vec::new())).collect();
        let (left, right) = (side(&on_time, 0), side(&on_time, 1));
        let counted = match case.group {
            Group::Within => {
                expected.add_within(case, &left, &right);
                "full"
            }
            Group::AsOf => {
                expected.add_as_of(case, &left, &right);
                "nearest within"
            }
            Group::Windowed => {
                expected.add_windowed(case, &side(&all, 0), &side(&all, 1));
                "tumbling full"
            }
        };
        for rows in expected.rows.values_mut() {
            // What happens at the watermark or later is still waited for.
            rows.retain(|row| until == OVER || row.0 < until);
            rows.sort_unstable();
        }
        let mut counts = BTreeMap::<(i64, u8), i64>::new();
        for (time, row) in &expected.rows[counted] {
            *counts.entry(((time.div_euclid(WINDOW) + 1) * WINDOW, row.0)).or_default() += 1;
        }
        let is_closed = |(end, _): &(i64, u8)| until == OVER || *end <= until;
        let counts = counts.into_iter().filter(|(window, _)| is_closed(window));
        expected.windows = counts.map(|((end, key), count)| (end, key, count)).collect();
        expected
    }

    fn add(&mut self, names: &[&'static str], row: TimedRow) {
        names.iter().for_each(|name| self.rows.get_mut(name).unwrap().push(row));
    }

    fn add_within(&mut self, case: &Case, left: &[OracleRecord<Deal>], right: &[OracleRecord<Deal>]) {
        let is_pair = |one: &OracleRecord<Deal>, other: &OracleRecord<Deal>| {
            one.data.key == other.data.key && (one.time - case.before..=one.time + case.after).contains(&other.time)
        };
        for one in left {
            let others: Vec<_> = right.iter().filter(|other| is_pair(one, other)).collect();
            for other in &others {
                let row = (one.data.key, Some(one.data.id), Some(other.data.id));
                self.add(&["inner", "left", "right", "full"], (one.time.max(other.time), row));
            }
            let row = (one.data.key, Some(one.data.id), None);
            match others.iter().map(|other| other.time.max(one.time)).min() {
                Some(first) => self.add(&["semi"], (first, row)),
                None => self.add(&["left", "full", "anti"], (one.time + case.after, row)),
            }
        }
        for other in right.iter().filter(|other| !left.iter().any(|one| is_pair(one, other))) {
            let row = (other.data.key, None, Some(other.data.id));
            self.add(&["right", "full"], (other.time + case.before, row));
        }
    }

    fn add_windowed(&mut self, case: &Case, left: &[OracleRecord<Deal>], right: &[OracleRecord<Deal>]) {
        for name in Group::Windowed.names() {
            let windows = windows_of(name);
            let mut by_window = BTreeMap::<(i64, u8), [Vec<&Deal>; 2]>::new();
            for (side, records) in [left, right].into_iter().enumerate() {
                for record in records {
                    let open =
                        windows.of(record.time).into_iter().filter(|window| !is_closed_for(record, window.1, case));
                    open.for_each(|(_, end)| {
                        by_window.entry((end, record.data.key)).or_default()[side].push(&record.data);
                    });
                }
            }
            for ((end, key), [left, right]) in by_window {
                let mut add = |left: Option<&Deal>, right| self.add(&[name], (end - 1, row(key, left, right)));
                left.iter().for_each(|left| right.iter().for_each(|right| add(Some(left), Some(right))));
                if right.is_empty() && !["tumbling", "tumbling right"].contains(name) {
                    left.iter().for_each(|left| add(Some(left), None));
                }
                if left.is_empty() && !["tumbling", "tumbling left"].contains(name) {
                    right.iter().for_each(|right| add(None, Some(right)));
                }
            }
        }
    }

    fn add_as_of(&mut self, case: &Case, left: &[OracleRecord<Deal>], right: &[OracleRecord<Deal>]) {
        for (number, name) in Group::AsOf.names()[..6].iter().enumerate() {
            let tolerance = (number % 2 == 1).then_some(case.after);
            for one in left {
                let is_on_side = |other: i64| match number / 2 {
                    0 => other <= one.time,
                    1 => other >= one.time,
                    _ => true,
                };
                let found = right.iter().filter(|other| other.data.key == one.data.key && is_on_side(other.time));
                let found = found.filter(|other| tolerance.is_none_or(|most| (other.time - one.time).abs() <= most));
                // The nearest, the earlier of two, the last of several at one time.
                let found = found
                    .min_by_key(|other| ((other.time - one.time).abs(), other.time, std::cmp::Reverse(other.origin)));
                let certain = match (number / 2, found, tolerance) {
                    (0, ..) => one.time,
                    (_, Some(other), _) => one.time + (other.time - one.time).abs(),
                    (_, None, Some(tolerance)) => one.time + tolerance,
                    (_, None, None) => OVER - 1,
                };
                self.add(&[name], (certain, row(one.data.key, Some(&one.data), found.map(|other| &other.data))));
            }
        }
        for other in right {
            let before = left.iter().filter(|one| one.data.key == other.data.key);
            let before = before.filter(|one| (one.time, one.origin) < (other.time, other.origin));
            let last = before.max_by_key(|one| (one.time, one.origin)).filter(|one| other.time < one.time + MEMORY);
            self.add(&["state"], (other.time, row(other.data.key, last.map(|one| &one.data), Some(&other.data))));
        }
    }

    /// Computes the outputs of a whole run in which no partition was idle.
    fn of(case: &Case) -> Expected {
        let whole = |data: &Data| {
            let took = |(partition, deals): (usize, &Vec<Deal>)| oracle::PartitionInput {
                partition: partition as u32,
                next: deals.len() as u64,
                idle: false,
                ended: true,
            };
            [OracleEpoch { epoch: 2, inputs: data.partitions.iter().enumerate().map(took).collect() }]
        };
        Expected::new(case, [&whole(&case.left), &whole(&case.right)])
    }
}

/// The data has enough of everything: pairs, records without one, and late records.
#[test]
fn the_data_has_pairs_and_records_without_one() {
    let mut counts = [0; 5];
    for seed in 1..=25 {
        let expected = Expected::of(&Case::random(Group::Within, &mut Rng::with_seed(seed), 100));
        let [inner, right, semi, anti] = ["inner", "right", "semi", "anti"].map(|name| expected.rows[name].len());
        let late = expected.late[0].len() + expected.late[1].len();
        counts.iter_mut().zip([inner, right - inner, semi, anti, late]).for_each(|(count, found)| *count += found);
    }
    assert!(counts.iter().all(|count| *count > 300), "pairs, right alone, semi, anti, late: {counts:?}");
}

/// Checks whole runs, in which no partition is idle.
fn check_whole(group: Group, seed: u64) -> Result<(), String> {
    let case = Case::random(group, &mut Rng::with_seed(seed), 100);
    let expected = Expected::of(&case);
    for workers in [1, 3] {
        let outputs = Outputs::new(&case);
        outputs.run(&case, TestRun::new().workers(workers).seed(seed))?;
        outputs.check(&expected)?;
    }
    Ok(())
}

#[test]
fn joins_within_a_span_are_functions_of_the_records() {
    for_seeds(6, |seed| check_whole(Group::Within, seed));
}

#[test]
fn joins_with_versions_are_functions_of_the_records() {
    for_seeds(6, |seed| check_whole(Group::AsOf, seed));
}

#[test]
fn joins_in_windows_are_functions_of_the_records() {
    for_seeds(5, |seed| check_whole(Group::Windowed, seed));
}

/// Checks a run with idle partitions, partitions that are found late, and sometimes no end.
fn check_script(group: Group, seed: u64, run: TestRun) -> Result<(), String> {
    let mut random = Rng::with_seed(seed);
    let case = Case::random(group, &mut random, 60);
    let run = run.workers(random.usize(1..=3)).script("left", case.left.script(&mut random));
    let run = run.script("right", case.right.script(&mut random));
    let outputs = Outputs::new(&case);
    let journal = outputs.run(&case, run)?.journal;
    let [left, right] = ["left", "right"].map(|name| oracle::steps(&journal, name));
    outputs.check(&Expected::new(&case, [&left, &right]))
}

#[test]
fn idle_and_late_found_partitions_give_what_the_definitions_say() {
    for_seeds(6, |seed| check_script(Group::Within, seed, TestRun::new()));
    for_seeds(6, |seed| check_script(Group::AsOf, seed, TestRun::new()));
    for_seeds(6, |seed| check_script(Group::Windowed, seed, TestRun::new()));
}

/// Runs a case through crashes, on any number of workers and processes.
fn check_crashes(group: Group, seed: u64, run: impl Fn() -> TestRun) -> Result<(), String> {
    let mut random = Rng::with_seed(seed);
    let case = Case::random(group, &mut random, 120);
    let (outputs, mut disk) = (Outputs::new(&case), CrashingDisk::new());
    for life in 0.. {
        if life < 10 {
            disk.crash_at(random.usize(0..250));
        }
        let run = on(&disk, &mut random, run());
        let run = if random.u8(0..4) == 0 { run.processes(2) } else { run };
        match outputs.run(&case, run) {
            Ok(_) => break,
            Err(_) if disk.has_crashed() => disk = disk.survivors(random.u64(..)),
            Err(error) => return Err(format!("life {life}: {error}")),
        }
    }
    outputs.check(&Expected::of(&case))
}

#[test]
fn crashes_change_nothing() {
    for_seeds(3, |seed| check_crashes(Group::Within, seed, TestRun::new));
    for_seeds(3, |seed| check_crashes(Group::AsOf, seed, TestRun::new));
    for_seeds(3, |seed| check_crashes(Group::Windowed, seed, TestRun::new));
}

/// Snapshots at all epochs, none of which a run resumes from, change nothing; neither do other workers.
fn check_seals(group: Group, seed: u64) -> Result<(), String> {
    let case = Case::random(group, &mut Rng::with_seed(seed), 60);
    let first = Outputs::new(&case);
    let journal = first.run(&case, TestRun::new().seed(seed))?.journal;
    let every: Vec<_> = journal.iter().map(|frame| frame.epoch).collect();
    for workers in [1, 2, 3] {
        let again = Outputs::new(&case);
        let run = TestRun::new().workers(workers).journal(journal.clone()).seal_at(every.clone());
        again.run(&case, run)?;
        for (name, (rows, _)) in &first.rows {
            if rows.epochs() != again.rows[name].0.epochs() {
                return Err(format!("{name} has other epochs on {workers} workers"));
            }
        }
        again.check(&Expected::of(&case))?;
    }
    Ok(())
}

#[test]
fn seals_and_workers_change_no_epoch() {
    for_seeds(2, |seed| check_seals(Group::Within, seed));
    for_seeds(2, |seed| check_seals(Group::AsOf, seed));
    for_seeds(2, |seed| check_seals(Group::Windowed, seed));
}

/// The checks above find faults of the engine.
#[test]
fn faults_are_found() {
    for fault in [Fault::LoseSegment, Fault::SkipGate] {
        let found = (1..=60).any(|seed| {
            let check = move || check_crashes(Group::Within, seed, || TestRun::new().fault(fault));
            within(Duration::from_secs(60), check).is_some_and(|result| result.is_err())
        });
        assert!(found, "{fault:?} is not found");
    }
    let fault = Fault::IgnoreActivationWatermark;
    let found = (1..=200).any(|seed| {
        let check = move || check_script(Group::Within, seed, TestRun::new().fault(fault));
        within(Duration::from_secs(60), check).is_some_and(|result| result.is_err())
    });
    assert!(found, "{fault:?} is not found");
}

/// Equal records without an origin, such as results of windows, are each joined, also when a snapshot lies between them.
#[test]
fn equal_records_are_each_joined() {
    for seed in 1..=20 {
        let events: Vec<(u8, i64)> = (0..40).map(|number| (number as u8 % 2, i64::from(number) / 4)).collect();
        let (source, pairs, disk) =
            (MemorySource::new(vec![events], |event| event.1), Captured::new(), CrashingDisk::new());
        let (output, state): (Captured<(u8, u8)>, Arc<dyn Disk>) = (pairs.clone(), disk.shared());
        let run = TestRun::new().workers(1 + seed as usize % 2).seed(seed).in_flight(1).state(&state, "state");
        let query = move |flow: &Flow<'_>| {
            // Two equal records for each that is read.
            let events = flow.read("events", &source).flat_map(|event: (u8, i64)| [event.0, event.0]);
            let by_key = || events.clone().key_by(|key| *key);
            let joined = by_key().join_within("pairs", by_key(), millis(3), millis(0));
            joined.inner(|_, one, other| (*one, *other)).results().write("pairs", &output);
        };
        run.run(query).unwrap();
        // Of each key there are 4 equal records at each of 10 times, and pairs with those of 4 times.
        let expected = 2 * (4 * 4) * (10 + 9 + 8 + 7);
        assert_eq!(pairs.all().len(), expected, "seed {seed}");
    }
}

#[test]
fn a_join_that_makes_no_sense_is_refused() {
    let refused = |in_sessions: bool| {
        let source = MemorySource::new(vec![vec![(1, 5)]], |event: &(u8, i64)| event.1);
        let run = TestRun::new().run(move |flow| {
            let events = flow.read("events", &source);
            let by_key = || events.clone().key_by(|event: &(u8, i64)| event.0);
            let joined = if in_sessions {
                by_key().join_windowed("odd", by_key(), Window::session(millis(5))).inner(|_, key, _, _| *key)
            } else {
                by_key().join_within("odd", by_key(), Duration::from_micros(1_500), millis(5)).inner(|key, _, _| *key)
            };
            joined.results().write("out", &Captured::new());
        });
        run.unwrap_err().to_string()
    };
    let error = refused(true);
    assert!(error.contains("two streams cannot be joined in sessions") && error.contains("`odd`"), "{error}");
    let error = refused(false);
    assert!(error.contains("the span before of a join, 1ms 500us, is not a whole number"), "{error}");
}

/// Rows of records that are over are removed soon.
#[test]
fn a_state_does_not_grow_by_records_that_are_over() {
    let rows_of_state = |keys: u32| -> u64 {
        let source = |of: u32| {
            let keys = (0..keys).map(|key| (key * of, i64::from(key) * 5)).collect();
            MemorySource::new(vec![keys], |key: &(u32, i64)| key.1)
        };
        let (left, right, pairs) = (source(1), source(2), Captured::new());
        let (disk, output) = (CrashingDisk::new(), pairs.clone());
        let state: Arc<dyn Disk> = disk.shared();
        let run = TestRun::new().seed(2).in_flight(1).state(&state, "state");
        let run = run.state_options(|state| state.keep_snapshots(100_000)).run(move |flow| {
            let right = flow.read("right", &right).key_by(|key| key.0);
            let pairs = flow.read("left", &left).key_by(|key| key.0).join_within("pairs", right, millis(5), millis(5));
            pairs
                .full_outer(|key, left, right| (*key, left.is_some(), right.is_some()))
                .results()
                .write("all", &output);
        });
        run.unwrap();
        // Two keys happen at about the same time in both.
        assert_eq!(pairs.all().len() as u32, 2 * keys - 2);
        let state = OpenedState::join(disk.after_kill().shared(), "state").unwrap();
        state.rows_of_step(0).unwrap().into_iter().max().unwrap()
    };
    // The delay of merges depends on timing; if they removed nothing, there would be a row for each record of both sides.
    let (few, many) = (rows_of_state(200), rows_of_state(1_500));
    assert!(few > 0 && many < 2 * 1_500, "of 200 keys there are {few} rows, of 1,500 there are {many}");
}
