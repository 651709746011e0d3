//! Joins by event time give the rows of a computation from scratch: a function of the records, on any number of workers,
//! through any epochs, crashes and processes.
//!
//! The results of each join are looked at with their event times, by keyed state behind it, which would miss what is late.
#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use tidegate::durable::disk::Disk;
use tidegate::source::memory::MemorySource;
use tidegate::stream::Keyed;
use tidegate::testing::durable::OpenedState;
use tidegate::testing::{Captured, CrashingDisk, Fault, TestRun};
use tidegate::{Flow, Stream, Window};

use common::cases::{Data, Deal, for_seeds, within};
use common::incarnations::on;
use common::oracle::{self, NEVER, OVER, OracleEpoch, OracleRecord};

/// A row of a join: its key, and the ids of its records.
type IdRow = (u8, Option<u32>, Option<u32>);
/// A row with its event time.
type TimedRow = (i64, IdRow);

/// Both streams, with what determines their join.
#[derive(Clone, Debug)]
struct Case {
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
    fn random(random: &mut Rng, most: usize) -> Case {
        let left = Data::random(random, most);
        let right = moved(Data::random(random, most).renumbered(1_000_000), &left);
        let (before, after) = (*random.choice(&[0, 0, 7, 30]).unwrap(), *random.choice(&[0, 1, 20, 100]).unwrap());
        Case { left, right, before, after, late: *random.choice(&[0, 0, 25]).unwrap() }
    }
}

fn millis(millis: i64) -> Duration {
    Duration::from_millis(millis as u64)
}

/// The rows of each kind of join.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Rows<T> {
    inner: T,
    left: T,
    right: T,
    full: T,
    semi: T,
    anti: T,
}

impl<T> Rows<T> {
    fn named(&self) -> [(&'static str, &T); 6] {
        let Rows { inner, left, right, full, semi, anti } = self;
        [("inner", inner), ("left", left), ("right", right), ("full", full), ("semi", semi), ("anti", anti)]
    }
}

/// The outputs of the query.
#[derive(Clone, Default)]
struct Outputs {
    rows: Rows<Captured<TimedRow>>,
    /// Rows that are late behind their join: there must be none.
    missed: Rows<Captured<IdRow>>,
    /// Windows behind the full join: end, key, number of rows.
    windows: Captured<(i64, u8, i64)>,
    late: [Captured<Deal>; 2],
}

/// Width of the windows behind a join, in milliseconds.
const WINDOW: i64 = 20;

impl Outputs {
    fn query(&self, case: &Case) -> impl Fn(&Flow<'_>) + Send + Sync + 'static {
        let (sources, own, case) = ((case.left.source(), case.right.source()), self.clone(), case.clone());
        move |flow| {
            let (left, right) = (flow.read("left", &sources.0), flow.read("right", &sources.1));
            let join = |name: &str| {
                let left: Keyed<'_, u8, Deal> = left.clone().key_by(|deal: &Deal| deal.key);
                let right = right.clone().key_by(|deal: &Deal| deal.key).allowed_lateness(millis(case.late));
                left.join_within(name, right, millis(case.before), millis(case.after))
            };
            let row = |key: &u8, left: Option<&Deal>, right: Option<&Deal>| {
                (*key, left.map(|left| left.id), right.map(|right| right.id))
            };
            let inner = join("inner").inner(move |key, left, right| row(key, Some(left), Some(right)));
            let full = join("full").full_outer(row);
            inner.late_left().write("late left", &own.late[0]);
            inner.late_right().write("late right", &own.late[1]);
            let count = full.results().key_by(|row| row.0).window(Window::tumbling(millis(WINDOW)));
            let count = count.aggregate("windows", |each| each.count()).on_close();
            count.map(|row| (row.window.end.millis(), row.key, row.value)).write("windows", &own.windows);
            let left = join("left").left_outer(move |key, left, right| row(key, Some(left), right));
            let right = join("right").right_outer(move |key, left, right| row(key, left, Some(right)));
            let alone = |deal: Deal| (deal.key, Some(deal.id), None);
            let rows = Rows {
                inner: inner.results(),
                left: left.results(),
                right: right.results(),
                full: full.results(),
                semi: join("semi").semi().results().map(alone),
                anti: join("anti").anti().results().map(alone),
            };
            let outputs = own.rows.named().into_iter().zip(own.missed.named());
            for ((name, rows), ((_, output), (_, missed))) in rows.named().into_iter().zip(outputs) {
                timed(rows.clone(), name, output, missed);
            }
        }
    }

    fn run(&self, case: &Case, run: TestRun) -> Result<tidegate::testing::RunOutcome, String> {
        run.run(self.query(case)).map_err(|error| error.to_string())
    }

    fn check(&self, expected: &Expected) -> Result<(), String> {
        for ((name, found), (_, expected)) in self.rows.named().into_iter().zip(expected.rows.named()) {
            same(name, &found.all(), expected)?;
        }
        for (name, missed) in self.missed.named() {
            same(&format!("late behind {name}"), &missed.all(), &[])?;
        }
        same("windows", &self.windows.all(), &expected.windows)?;
        same("late left", &self.late[0].all(), &expected.late[0])?;
        same("late right", &self.late[1].all(), &expected.late[1])
    }
}

/// Writes a join's rows with their event times, and those that are late behind it.
fn timed(rows: Stream<'_, IdRow>, name: &str, output: &Captured<TimedRow>, missed: &Captured<IdRow>) {
    let state = rows.key_by(|row| row.0).keyed_state::<(), TimedRow>(
        &format!("times of {name}"),
        |at, row| at.emit((at.now().millis(), row)),
        |_| {},
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

impl Expected {
    /// Computes the outputs of a run whose sources took this input, epoch by epoch.
    fn new(case: &Case, steps: [&[OracleEpoch]; 2]) -> Expected {
        let both = oracle::concat(&case.left.history(0, steps[0]), &case.right.history(1, steps[1]));
        let last = both.watermarks.last_key_value().map_or(NEVER, |last| *last.1);
        let until = if [NEVER, OVER].contains(&last) { last } else { last - case.late };
        let is_late = |record: &OracleRecord<Deal>| {
            let mark = record.partition_watermark.max(record.activation_watermark);
            mark != NEVER && record.time < mark - case.late
        };
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
        expected.add_rows(case, &side(&on_time, 0), &side(&on_time, 1));
        let Rows { inner, left, right, full, semi, anti } = &mut expected.rows;
        for rows in [inner, left, right, full, semi, anti] {
            // What happens at the watermark or later is still waited for.
            rows.retain(|row| until == OVER || row.0 < until);
            rows.sort_unstable();
        }
        let mut counts = std::collections::BTreeMap::<(i64, u8), i64>::new();
        for (time, row) in &expected.rows.full {
            *counts.entry(((time.div_euclid(WINDOW) + 1) * WINDOW, row.0)).or_default() += 1;
        }
        let is_closed = |(end, _): &(i64, u8)| until == OVER || *end <= until;
        let counts = counts.into_iter().filter(|(window, _)| is_closed(window));
        expected.windows = counts.map(|((end, key), count)| (end, key, count)).collect();
        expected
    }

    fn add_rows(&mut self, case: &Case, left: &[OracleRecord<Deal>], right: &[OracleRecord<Deal>]) {
        let is_pair = |one: &OracleRecord<Deal>, other: &OracleRecord<Deal>| {
            one.data.key == other.data.key && (one.time - case.before..=one.time + case.after).contains(&other.time)
        };
        let rows = &mut self.rows;
        for one in left {
            let others: Vec<_> = right.iter().filter(|other| is_pair(one, other)).collect();
            for other in &others {
                let row = (one.time.max(other.time), (one.data.key, Some(one.data.id), Some(other.data.id)));
                [&mut rows.inner, &mut rows.left, &mut rows.right, &mut rows.full]
                    .into_iter()
                    .for_each(|rows| rows.push(row));
            }
            let row = (one.data.key, Some(one.data.id), None);
            match others.iter().map(|other| other.time.max(one.time)).min() {
                Some(first) => rows.semi.push((first, row)),
                None => {
                    let over = one.time + case.after;
                    [&mut rows.left, &mut rows.full, &mut rows.anti]
                        .into_iter()
                        .for_each(|rows| rows.push((over, row)));
                }
            }
        }
        for other in right.iter().filter(|other| !left.iter().any(|one| is_pair(one, other))) {
            let row = (other.time + case.before, (other.data.key, None, Some(other.data.id)));
            [&mut rows.right, &mut rows.full].into_iter().for_each(|rows| rows.push(row));
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
        let expected = Expected::of(&Case::random(&mut Rng::with_seed(seed), 100));
        let Rows { inner, right, semi, anti, .. } = &expected.rows;
        let late = expected.late[0].len() + expected.late[1].len();
        let found = [inner.len(), right.len() - inner.len(), semi.len(), anti.len(), late];
        counts.iter_mut().zip(found).for_each(|(count, found)| *count += found);
    }
    assert!(counts.iter().all(|count| *count > 300), "pairs, right alone, semi, anti, late: {counts:?}");
}

#[test]
fn joins_within_a_span_are_functions_of_the_records() {
    for_seeds(25, |seed| {
        let case = Case::random(&mut Rng::with_seed(seed), 100);
        let expected = Expected::of(&case);
        for workers in [1, 3] {
            let outputs = Outputs::default();
            outputs.run(&case, TestRun::new().workers(workers).seed(seed))?;
            outputs.check(&expected)?;
        }
        Ok(())
    });
}

/// Checks a run with idle partitions, partitions that are found late, and sometimes no end.
fn check_script(seed: u64, run: TestRun) -> Result<(), String> {
    let mut random = Rng::with_seed(seed);
    let case = Case::random(&mut random, 60);
    let run = run.workers(random.usize(1..=3)).script("left", case.left.script(&mut random));
    let run = run.script("right", case.right.script(&mut random));
    let outputs = Outputs::default();
    let journal = outputs.run(&case, run)?.journal;
    let [left, right] = ["left", "right"].map(|name| oracle::steps(&journal, name));
    outputs.check(&Expected::new(&case, [&left, &right]))
}

#[test]
fn idle_and_late_found_partitions_give_what_the_definitions_say() {
    for_seeds(40, |seed| check_script(seed, TestRun::new()));
}

/// Runs a case through crashes, on any number of workers and processes.
fn check_crashes(seed: u64, run: impl Fn() -> TestRun) -> Result<(), String> {
    let mut random = Rng::with_seed(seed);
    let case = Case::random(&mut random, 120);
    let (outputs, mut disk) = (Outputs::default(), CrashingDisk::new());
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
    for_seeds(12, |seed| check_crashes(seed, TestRun::new));
}

/// Snapshots at all epochs, none of which a run resumes from, change nothing; neither do other workers.
#[test]
fn seals_and_workers_change_no_epoch() {
    for_seeds(8, |seed| {
        let case = Case::random(&mut Rng::with_seed(seed), 60);
        let first = Outputs::default();
        let journal = first.run(&case, TestRun::new().seed(seed))?.journal;
        let every: Vec<_> = journal.iter().map(|frame| frame.epoch).collect();
        for workers in [1, 2, 3] {
            let again = Outputs::default();
            let run = TestRun::new().workers(workers).journal(journal.clone()).seal_at(every.clone());
            again.run(&case, run)?;
            for ((name, first), (_, again)) in first.rows.named().into_iter().zip(again.rows.named()) {
                if first.epochs() != again.epochs() {
                    return Err(format!("{name} has other epochs on {workers} workers"));
                }
            }
            again.check(&Expected::of(&case))?;
        }
        Ok(())
    });
}

/// The checks above find faults of the engine.
#[test]
fn faults_are_found() {
    for fault in [Fault::LoseSegment, Fault::SkipGate, Fault::LoseRow] {
        let found = (1..=60).any(|seed| {
            let check = move || check_crashes(seed, || TestRun::new().fault(fault));
            within(Duration::from_secs(60), check).is_some_and(|result| result.is_err())
        });
        assert!(found, "{fault:?} is not found");
    }
    for fault in [Fault::IgnoreActivationWatermark, Fault::CloseEarly] {
        let found = (1..=200).any(|seed| {
            let check = move || check_script(seed, TestRun::new().fault(fault));
            within(Duration::from_secs(60), check).is_some_and(|result| result.is_err())
        });
        assert!(found, "{fault:?} is not found");
    }
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
    let (few, many) = (rows_of_state(300), rows_of_state(3_000));
    assert!(few > 0 && many < 3_000, "of 300 keys there are {few} rows, of 3,000 there are {many}");
}
