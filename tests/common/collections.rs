//! A query with every operator of collections, and its comparison with a naive computation at every epoch.
//!
//! The contents of the collections that come from the stream are computed from the data and the journal. Everything else
//! is computed from scratch from these contents, as the run itself published them; so it holds for any epochs, and over
//! several incarnations of a state.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use tidegate::durable::disk::Disk;
use tidegate::durable::journal::Frame;
use tidegate::job::Ending;
use tidegate::stream::window::FixedWindows;
use tidegate::stream::{LoopCollection, LoopScope};
use tidegate::testing::{Captured, CrashingDisk, RunOutcome, TestRun};
use tidegate::time::Epoch;
use tidegate::{Collection, Real, Record, Stream, Window};

use super::cases::{Data, Deal};
use super::oracle::{self, NEVER, OracleActivity, Windows};

/// For how long events live, in milliseconds.
pub const LIVES: [i64; 2] = [40, 130];
/// The size of the windows behind a stream of changes, in milliseconds.
const BEHIND: i64 = 20;

/// The name of an operator, and a row of its.
pub type OperatorRow = (String, String);
/// Rows, and how often each is there.
pub type Multiset<D> = BTreeMap<D, isize>;

/// All outputs of the query.
#[derive(Clone, Default)]
pub struct Collections {
    /// All deals.
    pub all: Captured<Deal>,
    /// Those of the last while, for each of [`LIVES`].
    pub live: [Captured<Deal>; 2],
    /// Late deals of the first.
    pub late: Captured<Deal>,
    /// Rows of all operators.
    pub operators: Captured<OperatorRow>,
    /// Changes of the number of deals of each key, as records.
    pub changes: Captured<((u8, i64), isize)>,
    /// Windows over these: end, how many, sum of the differences.
    pub behind: Captured<(i64, i64, i64)>,
}

fn left_row(deal: &Deal) -> (u8, u32) {
    (deal.key, deal.id % 5)
}

fn right_row(deal: &Deal) -> (u8, i64) {
    ((deal.id % 6) as u8, deal.amount.rem_euclid(3))
}

fn edge(deal: &Deal) -> (u32, u32) {
    (deal.id % 9, (deal.id / 9 + deal.amount.rem_euclid(9) as u32) % 9)
}

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// Returns a row once to three times.
fn copies(deal: Deal) -> Vec<Deal> {
    let times = 1 + deal.id as usize % 3;
    vec![deal; times]
}

/// Amounts whose sums of squares are exact in floating-point numbers.
fn small(deal: &Deal) -> i64 {
    deal.amount.rem_euclid(200)
}

/// All aggregates of the rows of windows, which follow retractions.
fn windows_of_rows<'f, W: FixedWindows>(
    rows: Collection<'f, Deal>,
    window: Window<W>,
) -> Collection<'f, (i64, i64, u8, AllValues)> {
    let windows = rows.window_by(|deal| deal.key, |deal| deal.at_ms, window);
    let values = windows.aggregate("all aggregates", |each| {
        let numbers = (each.count(), each.sum(|deal| deal.amount), each.mean(small), each.variance(small));
        let ends = (each.min(|deal| deal.amount), each.max(|deal| deal.amount), each.top(2, |deal| deal.amount));
        let ids = (each.first(|deal| deal.id), each.last(|deal| deal.id), each.arg_max(small, |deal| deal.id));
        let kinds = (each.count_distinct(small), each.distinct(|deal| deal.id % 4), each.approx_count_distinct(small));
        let some =
            each.filter(|deal| deal.amount > 0, |each| (each.count_if(|deal| deal.id % 2 == 0), each.min(small)));
        let others = (each.bottom(2, |deal| deal.id), each.quantile(0.5, small), each.collect(|deal| deal.id));
        (numbers, ends, ids, kinds, some, others)
    });
    values.map(|row| (row.window.start.millis(), row.window.end.millis(), row.key, row.value))
}

type AllValues = (
    (i64, i128, Real, Real),
    (i64, i64, Vec<i64>),
    (u32, u32, u32),
    (i64, Vec<u32>, i64),
    Option<(i64, i64)>,
    (Vec<u32>, i64, Vec<u32>),
);

/// Windows of rows that are replaced, not only removed.
fn windows_of_extremes(rows: Collection<'_, (u8, i64)>) -> Collection<'_, (i64, i64, i64)> {
    let windows = rows.window_by(|_| (), |row| row.1.rem_euclid(100), Window::tumbling(millis(20)));
    let values = windows.aggregate("extremes", |each| (each.count(), each.max(|row| row.1)));
    values.map(|row| (row.window.end.millis(), row.value.0, row.value.1))
}

/// Computes [`windows_of_rows`] of rows that are each there so many times.
fn add_windows(rows: &mut OperatorRows, name: &str, all: &[(&Deal, isize)], of: impl Fn(i64) -> Vec<(i64, i64)>) {
    let mut windows = BTreeMap::<(i64, i64, u8), Vec<&Deal>>::new();
    for (deal, times) in all {
        for (start, end) in of(deal.at_ms) {
            let window = windows.entry((start, end, deal.key)).or_default();
            window.extend(std::iter::repeat_n(*deal, *times as usize));
        }
    }
    for ((start, end, key), mut deals) in windows {
        deals.sort_by_key(|deal| (deal.at_ms, deal.id));
        let sorted = |of: &dyn Fn(&Deal) -> i64| {
            let mut values: Vec<i64> = deals.iter().map(|deal| of(deal)).collect();
            values.sort_unstable();
            values
        };
        let (amounts, numbers, count) = (sorted(&|deal| deal.amount), sorted(&small), deals.len() as i64);
        let (sum, squares) = (numbers.iter().sum::<i64>(), numbers.iter().map(|number| number * number).sum::<i64>());
        let variance = (count * squares - sum * sum) as f64 / (count * count) as f64;
        let ids: Vec<u32> = deals.iter().map(|deal| deal.id).collect();
        let mut kinds = numbers.clone();
        kinds.dedup();
        let distinct: BTreeSet<u32> = ids.iter().map(|id| id % 4).collect();
        let positive: Vec<&&Deal> = deals.iter().filter(|deal| deal.amount > 0).collect();
        let even = positive.iter().filter(|deal| deal.id % 2 == 0).count() as i64;
        let least = positive.iter().map(|deal| small(deal)).min();
        let mut lowest = ids.clone();
        lowest.sort_unstable();
        lowest.truncate(2);
        let total = amounts.iter().map(|amount| i128::from(*amount)).sum::<i128>();
        let greatest = deals.iter().max_by_key(|deal| (small(deal), std::cmp::Reverse((deal.at_ms, deal.id)))).unwrap();
        let values: AllValues = (
            (count, total, Real::new(sum as f64 / count as f64), Real::new(variance)),
            (amounts[0], amounts[amounts.len() - 1], amounts.iter().rev().take(2).copied().collect()),
            (ids[0], ids[ids.len() - 1], greatest.id),
            (kinds.len() as i64, distinct.into_iter().collect(), kinds.len() as i64),
            least.map(|least| (even, least)),
            (lowest, numbers[numbers.len().div_ceil(2) - 1], ids),
        );
        rows.add_each(name, [(start, end, key, values)]);
    }
}

fn named<'f, D: Record>(name: &str, rows: Collection<'f, D>) -> Collection<'f, OperatorRow> {
    let name = name.to_owned();
    rows.map(move |row| (name.clone(), format!("{row:?}")))
}

impl Collections {
    /// Builds the query.
    pub fn of(&self, deals: Stream<'_, Deal>) {
        let life = LIVES.map(|life| Duration::from_millis(life.unsigned_abs()));
        let (recent, late) = deals.clone().live_for_with_late("recent", life[0], Deal::clone);
        late.write("late for recent", &self.late);
        let older = deals.clone().live_for("older", life[1]);
        let all = deals.clone().collect("all");
        all.clone().write("all", &self.all);
        recent.clone().write("recent", &self.live[0]);
        older.clone().write("older", &self.live[1]);
        let left = recent.clone().map(|deal| left_row(&deal));
        let right = older.clone().map(|deal| right_row(&deal));
        let edges = recent.clone().map(|deal| edge(&deal));
        let amounts = || older.clone().map(|deal| (deal.key, deal.amount));
        let (of_left, of_right) =
            (|| left.clone().map(|(key, _)| key), || right.clone().map(|(key, _)| key).distinct());
        let operators = [
            named("join", left.clone().join(right.clone())),
            named("join_map", left.clone().join_map(right.clone(), |key, a, b| (*key, i64::from(*a) + b))),
            named("semijoin", left.clone().semijoin(of_right())),
            named("antijoin", left.clone().antijoin(of_right())),
            named("left_join", left.clone().left_join(right.clone())),
            named("right_join", left.clone().right_join(right.clone())),
            named("full_join", left.clone().full_join(right.clone())),
            named("negate", of_left().concat(of_right().negate())),
            named("flat_map", of_left().filter(|key| key % 2 == 1).flat_map(|key| vec![key; key as usize])),
            named("count", of_left().count()),
            named("distinct", left.clone().distinct()),
            named("threshold", of_left().threshold(|key, times| times % 3 - isize::from(*key))),
            named("count_by_key", left.clone().count_by_key()),
            named("reduce", left.clone().reduce(|_, values| [values.iter().map(|(_, times)| *times as i64).max()])),
            named("sum_by_key", amounts().sum_by_key(|amount| *amount)),
            named("top_by_key", amounts().top_by_key(3)),
            named("bottom_by_key", left.clone().bottom_by_key(2)),
            named("min_by_key", amounts().min_by_key()),
            named("max_by_key", all.clone().map(|deal| (deal.key, deal.amount)).max_by_key()),
            named("reachable_from", edges.clone().reachable_from(of_left().map(u32::from).filter(|n| n % 3 == 0))),
            named("cycles", edges.clone().cycles()),
            named("iterate", pairs(&edges, None)),
            named("iterate_times", pairs(&edges, Some(2))),
            named("windows", windows_of_rows(older.flat_map(copies), Window::tumbling(Duration::from_millis(60)))),
            named(
                "sliding windows",
                windows_of_rows(recent, Window::sliding(millis(50), millis(20)).offset(millis(3))),
            ),
            named("windows of extremes", windows_of_extremes(all.map(|deal| (deal.key, deal.amount)).max_by_key())),
        ];
        let operators = operators.into_iter().reduce(Collection::concat).unwrap();
        operators.write("operators", &self.operators);
        let changes = left.count_by_key().into_stream(&deals);
        changes.clone().write("changes", &self.changes);
        changes
            .key_by(|_| ())
            .window(Window::tumbling(Duration::from_millis(BEHIND.unsigned_abs())))
            .aggregate("behind changes", |each| (each.count(), each.sum(|(_, diff)| *diff as i64)))
            .on_close()
            .map(|row| (row.window.end.millis(), row.value.0, row.value.1 as i64))
            .write("behind changes", &self.behind);
    }

    /// Compares everything at every epoch with what the data and the journal say.
    pub fn check(&self, data: &Data, outcome: &RunOutcome) -> Result<(), String> {
        let bases = Bases::of(data, &outcome.journal);
        let mut now = (Contents::of(&self.all), self.live.each_ref().map(Contents::of));
        for (epoch, expected) in &bases.contents {
            now.0.check(*epoch, "all deals", &expected.all)?;
            for (live, expected) in now.1.iter_mut().zip(&expected.live) {
                live.check(*epoch, "live deals", expected)?;
            }
        }
        let late: Multiset<Deal> = sum(&self.late);
        same("late deals", &late, &bases.late)?;
        self.check_operators()?;
        self.check_changes(&bases, outcome.report.ending == Ending::Complete)
    }

    /// Compares the operators at every epoch with the collections that they are computed of.
    pub fn check_operators(&self) -> Result<(), String> {
        let mut bases = (Contents::of(&self.all), self.live.each_ref().map(Contents::of));
        let mut operators = Contents::of(&self.operators);
        let of_bases = [&bases.0, &bases.1[0], &bases.1[1]].map(|base| base.left.keys().copied().collect::<Vec<_>>());
        let epochs: BTreeSet<Epoch> = of_bases.concat().into_iter().collect();
        for epoch in epochs {
            bases.0.advance(epoch);
            bases.1.iter_mut().for_each(|base| base.advance(epoch));
            let expected = operators_of(&bases.0.now, &bases.1[0].now, &bases.1[1].now);
            operators.check(epoch, "operators", &expected)?;
        }
        match operators.left.first_key_value() {
            None => Ok(()),
            Some((epoch, _)) => Err(format!("operators change at epoch {epoch}, at which their inputs do not")),
        }
    }

    /// Compares the records of changes, and the windows behind them.
    fn check_changes(&self, bases: &Bases, complete: bool) -> Result<(), String> {
        let (mut was, mut windows) = (Multiset::new(), BTreeMap::<i64, (i64, i64)>::new());
        let mut told = self.changes.epochs();
        for (epoch, contents) in &bases.contents {
            let expected: Vec<_> = if contents.reached == NEVER {
                Vec::new()
            } else {
                let now = counts(contents.live[0].iter().map(|(deal, times)| (deal.key, *times)));
                let now: Multiset<(u8, i64)> = now.into_iter().map(|(key, times)| ((key, times as i64), 1)).collect();
                let before = std::mem::replace(&mut was, now.clone());
                let rows: BTreeSet<_> = before.keys().chain(now.keys()).collect();
                let diff = |row: &(u8, i64)| now.get(row).unwrap_or(&0) - before.get(row).unwrap_or(&0);
                rows.into_iter().map(|row| (*row, diff(row))).filter(|(_, diff)| *diff != 0).collect()
            };
            let got: Vec<_> = told.remove(epoch).unwrap_or_default().into_iter().map(|(row, _)| row).collect();
            same(&format!("records of changes at epoch {epoch}"), &got, &expected)?;
            for (_, diff) in expected {
                let window = windows.entry(contents.reached.div_euclid(BEHIND) * BEHIND + BEHIND).or_default();
                *window = (window.0 + 1, window.1 + diff as i64);
            }
        }
        same("records of changes at other epochs", &told.into_keys().collect(), &Vec::new())?;
        let expected = windows.into_iter().map(|(end, (count, sum))| ((end, count, sum), 1)).collect();
        if complete { same("windows behind changes", &sum(&self.behind), &expected) } else { Ok(()) }
    }

    /// Compares what is there at the end with another run over the same data.
    pub fn check_final(&self, other: &Collections) -> Result<(), String> {
        same("all deals", &sum(&self.all), &sum(&other.all))?;
        same("recent deals", &sum(&self.live[0]), &sum(&other.live[0]))?;
        same("older deals", &sum(&self.live[1]), &sum(&other.live[1]))?;
        same("late deals", &sum(&self.late), &sum(&other.late))?;
        same("operators", &sum(&self.operators), &sum(&other.operators))
    }

    /// Checks that another run has published the same at every epoch.
    pub fn check_equal(&self, other: &Collections) -> Result<(), String> {
        same("all deals", &self.all.epochs(), &other.all.epochs())?;
        same("recent deals", &self.live[0].epochs(), &other.live[0].epochs())?;
        same("older deals", &self.live[1].epochs(), &other.live[1].epochs())?;
        same("late deals", &self.late.epochs(), &other.late.epochs())?;
        same("operators", &self.operators.epochs(), &other.operators.epochs())?;
        same("changes", &self.changes.epochs(), &other.changes.epochs())?;
        same("windows behind changes", &self.behind.epochs(), &other.behind.epochs())
    }
}

/// Adds the pairs that one more edge leads to.
fn longer<'s>(
    scope: &LoopScope<'s>,
    edges: &Collection<'_, (u32, u32)>,
    known: LoopCollection<'s, (u32, u32)>,
) -> LoopCollection<'s, (u32, u32)> {
    let by_end = known.clone().map(|(from, to)| (to, from));
    by_end.join_map(scope.enter(edges), |_, from, to| (*from, *to)).concat(known).distinct()
}

/// Pairs of nodes of which the second is reachable from the first, on ways of at most `times + 1` edges if `times` is
/// given.
fn pairs<'f>(edges: &Collection<'f, (u32, u32)>, times: Option<u64>) -> Collection<'f, (u32, u32)> {
    let (edges, from) = (edges.clone().distinct(), edges.clone());
    match times {
        None => edges.iterate(100, move |scope, known| longer(scope, &from, known)),
        Some(times) => edges.iterate_times(times, move |scope, known| longer(scope, &from, known)),
    }
}

/// Runs the query over one source.
pub fn run(data: &Data, run: TestRun) -> Result<(Collections, RunOutcome), String> {
    let (collections, source) = (Collections::default(), data.source());
    let shown = collections.clone();
    let outcome = run.run(move |flow| shown.of(flow.read("deals", &source)));
    Ok((collections, outcome.map_err(|error| error.to_string())?))
}

/// Runs data in the epochs of `how`, and compares everything with the naive computation.
pub fn check_collections(data: &Data, how: TestRun) -> Result<RunOutcome, String> {
    let (collections, outcome) = run(data, how)?;
    collections.check(data, &outcome)?;
    Ok(outcome)
}

/// Runs data through crashes to the end, on changing numbers of workers: what is published fits together at every epoch,
/// and what is there at the end is what a run without state comes to.
pub fn check_collections_over_crashes(seed: u64, begin: impl Fn() -> TestRun) -> Result<(), String> {
    let mut random = Rng::with_seed(seed);
    let data = if seed.is_multiple_of(2) { Data::random(&mut random, 30) } else { Data::in_turns(seed, 40) };
    let (plain, _) = run(&data, TestRun::new().seed(seed))?;
    let (kept, mut disk, mut crashes) = (Collections::default(), CrashingDisk::new(), 0);
    for life in 0.. {
        if life < 4 {
            disk.crash_at(random.usize(20..150));
        }
        let (source, own, shared): (_, _, Arc<dyn Disk>) = (data.source(), kept.clone(), disk.shared());
        let run = begin().workers(random.usize(1..=3)).seed(random.u64(..)).in_flight(1).state(&shared, "state");
        match run.run(move |flow| own.of(flow.read("deals", &source))) {
            Ok(outcome) if outcome.report.ending == Ending::Stopped => return Err(String::from("it stopped")),
            Ok(_) => break,
            Err(_) if disk.has_crashed() => (disk, crashes) = (disk.survivors(random.u64(..)), crashes + 1),
            Err(error) => return Err(format!("life {life}: {error}")),
        }
    }
    let after = |why: String| format!("after {crashes} crashes: {why}");
    kept.check_final(&plain).map_err(after)?;
    kept.check_operators().map_err(after)
}

/// The contents of the collections that come from the stream, at an epoch.
struct EpochContents {
    all: Multiset<Deal>,
    live: [Multiset<Deal>; 2],
    /// The time that the stream has reached.
    reached: i64,
}

/// What the data and a journal say of these collections.
struct Bases {
    contents: BTreeMap<Epoch, EpochContents>,
    late: Multiset<Deal>,
}

impl Bases {
    fn of(data: &Data, journal: &[Frame]) -> Bases {
        let history = data.history(0, &oracle::steps(journal, "deals"));
        let is_late = |record: &oracle::OracleRecord<Deal>, life: i64| {
            record.time + life <= record.partition_watermark.max(record.activation_watermark)
        };
        let contents = history.watermarks.iter().map(|(&epoch, &watermark)| {
            let reached = match history.activity[&epoch] {
                OracleActivity::Ended(reached) => reached,
                _ => watermark,
            };
            let taken = || history.records.iter().filter(|record| record.epoch <= epoch);
            let live = LIVES.map(|life| {
                let live = taken().filter(|record| !is_late(record, life) && record.time + life > reached);
                live.map(|record| (record.data.clone(), 1)).collect()
            });
            let all = taken().map(|record| (record.data.clone(), 1)).collect();
            (Epoch(epoch), EpochContents { all, live, reached })
        });
        let contents = contents.collect();
        let late = history.records.iter().filter(|record| is_late(record, LIVES[0]));
        Bases { contents, late: late.map(|record| (record.data.clone(), 1)).collect() }
    }
}

/// The contents of a collection, advanced epoch by epoch.
struct Contents<D> {
    left: BTreeMap<Epoch, Vec<(D, isize)>>,
    now: Multiset<D>,
}

impl<D: Record> Contents<D> {
    fn of(captured: &Captured<D>) -> Self {
        Contents { left: captured.epochs(), now: Multiset::new() }
    }

    fn advance(&mut self, epoch: Epoch) {
        while let Some(changes) = self.left.first_entry().filter(|changes| *changes.key() <= epoch) {
            for (row, diff) in changes.remove() {
                *self.now.entry(row).or_default() += diff;
            }
        }
        self.now.retain(|_, count| *count != 0);
    }

    fn check(&mut self, epoch: Epoch, what: &str, expected: &Multiset<D>) -> Result<(), String> {
        self.advance(epoch);
        let lines = |one: &Multiset<D>, other: &Multiset<D>| {
            let lines = one.iter().filter(|(row, times)| other.get(row) != Some(times)).take(5);
            lines.map(|line| format!("{line:?}")).collect::<Vec<_>>()
        };
        if self.now == *expected {
            return Ok(());
        }
        let (more, lacks) = (lines(&self.now, expected), lines(expected, &self.now));
        Err(format!("{what} at epoch {epoch}: there are {more:?}, and should be {lacks:?}"))
    }
}

fn sum<D: Record>(captured: &Captured<D>) -> Multiset<D> {
    counts(captured.epochs().into_values().flatten())
}

fn same<T: PartialEq + Debug>(what: &str, got: &T, expected: &T) -> Result<(), String> {
    let text = |value: &T| format!("{value:?}").chars().take(2000).collect::<String>();
    if got == expected { Ok(()) } else { Err(format!("{what}:\n     got {}\nexpected {}", text(got), text(expected))) }
}

/// Adds up rows.
fn counts<D: Ord>(rows: impl IntoIterator<Item = (D, isize)>) -> Multiset<D> {
    let mut sums = Multiset::new();
    for (row, times) in rows {
        *sums.entry(row).or_default() += times;
    }
    sums.retain(|_, times| *times != 0);
    sums
}

/// The values of each key, each as often as it is there, in order.
fn by_key<K: Ord + Clone, V: Ord + Clone>(rows: &Multiset<(K, V)>) -> BTreeMap<K, Vec<V>> {
    let mut values = BTreeMap::<K, Vec<V>>::new();
    for ((key, value), times) in rows {
        values.entry(key.clone()).or_default().extend(std::iter::repeat_n(value.clone(), *times as usize));
    }
    values
}

/// The rows of all operators, as text.
#[derive(Default)]
struct OperatorRows(Multiset<OperatorRow>);

impl OperatorRows {
    fn add<D: Debug>(&mut self, name: &str, rows: impl IntoIterator<Item = (D, isize)>) {
        for (row, times) in rows {
            *self.0.entry((name.to_owned(), format!("{row:?}"))).or_default() += times;
        }
    }

    fn add_each<D: Debug>(&mut self, name: &str, rows: impl IntoIterator<Item = D>) {
        self.add(name, rows.into_iter().map(|row| (row, 1)));
    }
}

/// Computes the rows of all operators from scratch.
fn operators_of(all: &Multiset<Deal>, recent: &Multiset<Deal>, older: &Multiset<Deal>) -> Multiset<OperatorRow> {
    let mut rows = OperatorRows::default();
    let left = counts(recent.iter().map(|(deal, times)| (left_row(deal), *times)));
    let right = counts(older.iter().map(|(deal, times)| (right_row(deal), *times)));
    joins(&mut rows, &by_key(&left), &by_key(&right));
    let (keys, of_right) = (counts(left.iter().map(|(row, times)| (row.0, *times))), by_key(&right));
    rows.add("negate", keys.iter().map(|(key, times)| (*key, *times)));
    rows.add("negate", of_right.keys().map(|key| (*key, -1)));
    rows.add("flat_map", keys.iter().filter(|(key, _)| **key % 2 == 1).map(|(key, n)| (*key, n * isize::from(*key))));
    rows.add_each("count", keys.iter().map(|(key, times)| (*key, *times as i64)));
    rows.add_each("count_by_key", keys.iter().map(|(key, times)| (*key, *times as i64)));
    rows.add_each("distinct", left.keys());
    rows.add("threshold", keys.iter().map(|(key, times)| (*key, times % 3 - isize::from(*key))));
    for (key, values) in by_key(&left) {
        let most = values.iter().map(|value| values.iter().filter(|other| *other == value).count()).max();
        rows.add_each("reduce", [(key, most.map(|most| most as i64))]);
        rows.add_each("bottom_by_key", values.into_iter().take(2).map(|value| (key, value)));
    }
    for (key, amounts) in by_key(&counts(older.iter().map(|(deal, times)| ((deal.key, deal.amount), *times)))) {
        rows.add_each("sum_by_key", [(key, amounts.iter().map(|amount| i128::from(*amount)).sum::<i128>())]);
        rows.add_each("top_by_key", amounts.iter().rev().take(3).map(|amount| (key, *amount)));
        rows.add_each("min_by_key", [(key, amounts[0])]);
    }
    for (key, amounts) in by_key(&counts(all.iter().map(|(deal, times)| ((deal.key, deal.amount), *times)))) {
        rows.add_each("max_by_key", [(key, amounts[amounts.len() - 1])]);
    }
    let copied: Vec<_> = older.iter().map(|(deal, times)| (deal, times * (1 + deal.id as isize % 3))).collect();
    add_windows(&mut rows, "windows", &copied, |at| Windows::Tumbling { size: 60, offset: 0 }.of(at));
    let once: Vec<_> = recent.iter().map(|(deal, times)| (deal, *times)).collect();
    let sliding = Windows::Sliding { size: 50, slide: 20, offset: 3, late: 0 };
    add_windows(&mut rows, "sliding windows", &once, |at| sliding.of(at));
    let mut extremes = BTreeMap::<i64, (i64, i64)>::new();
    for (_, amounts) in by_key(&counts(all.iter().map(|(deal, times)| ((deal.key, deal.amount), *times)))) {
        let greatest = amounts[amounts.len() - 1];
        let end = greatest.rem_euclid(100).div_euclid(20) * 20 + 20;
        let window = extremes.entry(end).or_insert((0, i64::MIN));
        *window = (window.0 + 1, window.1.max(greatest));
    }
    rows.add_each("windows of extremes", extremes.into_iter().map(|(end, (count, greatest))| (end, count, greatest)));
    graphs(
        &mut rows,
        &recent.keys().map(edge).collect(),
        keys.keys().map(|key| u32::from(*key)).filter(|n| n % 3 == 0),
    );
    rows.0.retain(|_, times| *times != 0);
    rows.0
}

fn joins(rows: &mut OperatorRows, left: &BTreeMap<u8, Vec<u32>>, right: &BTreeMap<u8, Vec<i64>>) {
    for (key, a, b) in left.iter().flat_map(|(key, values)| {
        let others = right.get(key).into_iter().flatten();
        values.iter().flat_map(move |a| others.clone().map(move |b| (*key, *a, *b)))
    }) {
        rows.add_each("join", [(key, (a, b))]);
        rows.add_each("join_map", [(key, i64::from(a) + b)]);
        rows.add_each("left_join", [(key, (a, Some(b)))]);
        rows.add_each("right_join", [(key, (Some(a), b))]);
        rows.add_each("full_join", [(key, (Some(a), Some(b)))]);
    }
    for (key, a) in left.iter().flat_map(|(key, values)| values.iter().map(move |a| (*key, *a))) {
        if right.contains_key(&key) {
            rows.add_each("semijoin", [(key, a)]);
        } else {
            rows.add_each("antijoin", [(key, a)]);
            rows.add_each("left_join", [(key, (a, None::<i64>))]);
            rows.add_each("full_join", [(key, (Some(a), None::<i64>))]);
        }
    }
    for (key, b) in right.iter().flat_map(|(key, values)| values.iter().map(move |b| (*key, *b))) {
        if !left.contains_key(&key) {
            rows.add_each("right_join", [(key, (None::<u32>, b))]);
            rows.add_each("full_join", [(key, (None::<u32>, Some(b)))]);
        }
    }
}

fn graphs(rows: &mut OperatorRows, edges: &BTreeSet<(u32, u32)>, roots: impl Iterator<Item = u32>) {
    let step = |known: &BTreeSet<(u32, u32)>| {
        let further =
            |(from, to): (u32, u32)| edges.iter().filter(move |edge| edge.0 == to).map(move |edge| (from, edge.1));
        let longer = known.iter().copied().flat_map(further);
        longer.chain(known.iter().copied()).collect::<BTreeSet<_>>()
    };
    let mut ways = vec![edges.clone()];
    while ways.len() < 12 {
        ways.push(step(&ways[ways.len() - 1]));
    }
    let reach = &ways[11];
    rows.add_each("iterate", reach);
    rows.add_each("iterate_times", &ways[2]);
    let roots: BTreeSet<u32> = roots.collect();
    let from_roots = reach.iter().filter(|(from, _)| roots.contains(from)).map(|(_, to)| *to);
    rows.add_each("reachable_from", from_roots.chain(roots.iter().copied()).collect::<BTreeSet<_>>());
    let both = |a: u32, b: u32| reach.contains(&(a, b)) && reach.contains(&(b, a));
    let nodes: BTreeSet<u32> = edges.iter().flat_map(|(from, to)| [*from, *to]).collect();
    for node in &nodes {
        let others: Vec<u32> = nodes.iter().copied().filter(|other| other != node && both(*node, *other)).collect();
        if let Some(least) = others.first() {
            rows.add_each("cycles", [(*node, *least.min(node))]);
        }
    }
}
