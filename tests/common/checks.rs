//! Runs of one query that uses all outputs of a windowed step, and their comparison with the oracle.
//!
//! Checks return a `Result`, so that a test of deliberate faults can see them fail.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::time::Duration;

use fastrand::Rng;
use serde::{Deserialize, Serialize};
use tidegate::source::{Options, Reader, Rejected, Source, TimeOf, WorkerContext};
use tidegate::stream::Observer;
use tidegate::stream::aggregate::Accumulator;
use tidegate::testing::{Captured, RunOutcome, SlowSync, TestRun};
use tidegate::time::Epoch;
use tidegate::{Decimal, Record, Stream, Window};

use super::cases::{Data, Deal};
use super::oracle::{self, OracleOutputs, OracleRecord, Row, Windows};
use super::turns::Deals;

/// A user-defined accumulator: the set of ids.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename = "Seen")]
pub struct IdSet(BTreeSet<u32>);

impl Accumulator for IdSet {
    fn merge(&mut self, other: &Self) {
        self.0.extend(&other.0);
    }
}

/// Count, sum, min, max, first, last, user-defined accumulator, decimal sum.
pub type Totals = (i64, i128, i64, i64, u32, u32, IdSet, Decimal);

/// Period of `every`, in milliseconds of event time.
pub const PERIOD: i64 = 25;

/// Returns a value of a deal whose order differs from the order of the deals.
fn scrambled(deal: &Deal) -> u32 {
    deal.id ^ 0x15
}

/// Computes the totals from scratch, for the oracle.
pub fn totals(records: &[&OracleRecord<Deal>]) -> Totals {
    let amounts = || records.iter().map(|record| record.data.amount);
    let sum = amounts().map(i128::from).sum::<i128>();
    let mut by_time = records.iter().map(|r| (r.time, r.origin, scrambled(&r.data))).collect::<Vec<_>>();
    by_time.sort_unstable();
    let seen = IdSet(records.iter().map(|record| record.data.id).collect());
    (
        records.len() as i64,
        sum,
        amounts().min().unwrap(),
        amounts().max().unwrap(),
        by_time[0].2,
        by_time[by_time.len() - 1].2,
        seen,
        Decimal::from_digits(sum, 4).unwrap(),
    )
}

/// Returns random windows of any kind.
pub fn any_windows(random: &mut Rng) -> Windows {
    let late = *random.choice(&[0i64, 0, 5, 40, 300]).unwrap();
    match random.u8(0..10) {
        0 | 1 => {
            let size = *random.choice(&[1i64, 7, 10, 10, 100, 1000, 86_400_000]).unwrap();
            Windows::Tumbling { size, offset: *random.choice(&[0, 0, 1, 3, 250, 3 * size + 1]).unwrap() }
        }
        8.. => Windows::Count { size: random.usize(1..12), late },
        6 | 7 => Windows::Session { gap: *random.choice(&[1i64, 5, 20, 100]).unwrap(), late },
        2 => Windows::Lenient { size: *random.choice(&[1i64, 10, 70, 1000]).unwrap(), late },
        3 | 4 => {
            let (size, slide) =
                *random.choice(&[(60i64, 10i64), (60, 10), (50, 20), (7, 3), (10, 10), (12, 1)]).unwrap();
            Windows::Sliding { size, slide, offset: *random.choice(&[0, 0, 1, 5, 123]).unwrap(), late }
        }
        _ => {
            let (size, step) = *random.choice(&[(60i64, 10i64), (1000, 250), (8, 1), (10, 10)]).unwrap();
            Windows::Cumulative { size, step, late }
        }
    }
}

/// Tumbling windows, sliding windows with allowed lateness, sessions, count windows, and cumulative windows.
pub const KINDS: [Windows; 5] = [
    Windows::Tumbling { size: 20, offset: 0 },
    Windows::Sliding { size: 50, slide: 20, offset: 7, late: 30 },
    Windows::Session { gap: 8, late: 20 },
    Windows::Count { size: 3, late: 20 },
    Windows::Cumulative { size: 60, step: 20, late: 0 },
];

/// Chooses windows by the number of deals in the data.
pub fn windows_of(data: &Data) -> Windows {
    KINDS[data.len() % KINDS.len()]
}

/// Converts the oracle's windows to the engine's.
pub fn window(windows: Windows) -> Window {
    match windows {
        Windows::Global => Window::global().any(),
        Windows::Tumbling { size, offset } => Window::tumbling(millis(size)).offset(millis(offset)).any(),
        Windows::Lenient { size, .. } => Window::tumbling(millis(size)).any(),
        Windows::Sliding { size, slide, offset, .. } => {
            Window::sliding(millis(size), millis(slide)).offset(millis(offset)).any()
        }
        Windows::Session { gap, .. } => Window::session(millis(gap)).any(),
        Windows::Count { size, .. } => Window::count(size as u64).any(),
        Windows::Cumulative { size, step, .. } => Window::cumulative(millis(size), millis(step)).any(),
    }
}

/// Converts milliseconds to a duration.
pub fn millis(millis: i64) -> Duration {
    Duration::from_millis(millis.unsigned_abs())
}

/// All outputs of a windowed step, captured.
#[derive(Clone, Default)]
pub struct StepCaptures {
    pub closed: Captured<Row<Totals>>,
    pub live: Captured<Row<Totals>>,
    pub fired: Captured<Row<Totals>>,
    pub every: Captured<Row<Totals>>,
    pub late: Captured<Deal>,
    pub rejects: Captured<Rejected>,
}

impl StepCaptures {
    /// Adds a windowed step to a stream, and captures all of its outputs.
    pub fn of(&self, stream: Stream<'_, Deal>, windows: Windows) {
        let windowed = stream.key_by(|deal| deal.key).window(window(windows)).allowed_lateness(millis(windows.late()));
        let step = windowed.aggregate("totals", |each| {
            (
                each.count(),
                each.sum(|deal| deal.amount),
                each.min(|deal| deal.amount),
                each.max(|deal| deal.amount),
                each.first(scrambled),
                each.last(scrambled),
                each.merge(|deal| IdSet(BTreeSet::from([deal.id]))),
                each.sum(|deal| Decimal::new(deal.amount, 4)),
            )
        });
        step.on_close()
            .map(|row| (row.window.start.millis(), row.window.end.millis(), row.key, row.value))
            .write("closed", &self.closed);
        step.on_change()
            .map(|row| (row.window.start.millis(), row.window.end.millis(), row.key, row.value))
            .write("live", &self.live);
        step.on_fire()
            .map(|row| (row.window.start.millis(), row.window.end.millis(), row.key, row.value))
            .write("fired", &self.fired);
        step.every(millis(PERIOD))
            .map(|row| (row.window.start.millis(), row.window.end.millis(), row.key, row.value))
            .write("every", &self.every);
        step.late().write("late", &self.late);
    }
}

/// Runs the query over one source.
pub fn run(data: &Data, windows: Windows, run: TestRun) -> Result<(StepCaptures, RunOutcome), String> {
    let (views, source) = (StepCaptures::default(), data.source());
    let shown = views.clone();
    let outcome = run.run(move |flow| {
        shown.of(flow.read("deals", &source), windows);
        flow.rejects().write("rejects", &shown.rejects);
    });
    Ok((views, outcome.map_err(|error| error.to_string())?))
}

/// Returns rows by epoch, as the oracle has them: each row repeated by its count. Fails on a negative count.
fn repeated<D: Record>(captured: &Captured<D>) -> Result<BTreeMap<u64, Vec<D>>, String> {
    let repeat = |(row, count): (D, isize)| match usize::try_from(count) {
        Ok(count) => Ok(vec![row; count]),
        Err(_) => Err(format!("a stream has {count} of {row:?}")),
    };
    let epochs = captured.epochs().into_iter();
    let rows = epochs.map(|(epoch, rows)| {
        let rows: Result<Vec<_>, String> = rows.into_iter().map(repeat).collect();
        Ok((epoch.0, rows?.concat()))
    });
    rows.collect()
}

fn same<T: PartialEq + Debug>(what: &str, got: &T, expected: &T) -> Result<(), String> {
    let cut = |text: String| text.chars().take(2000).collect::<String>();
    let (shown, wanted) = (|| cut(format!("{got:?}")), || cut(format!("{expected:?}")));
    if got == expected { Ok(()) } else { Err(format!("{what}:\n     got {}\nexpected {}", shown(), wanted())) }
}

/// Compares rows epoch by epoch.
pub fn compare_rows<D: Record>(
    what: &str,
    captured: &Captured<D>,
    expected: &BTreeMap<u64, Vec<D>>,
) -> Result<(), String> {
    let mut expected = expected.clone();
    expected.values_mut().for_each(|rows| rows.sort());
    expected.retain(|_, rows| !rows.is_empty());
    let got = repeated(captured)?;
    for epoch in got.keys().chain(expected.keys()) {
        same(&format!("{what} at epoch {epoch}"), &got.get(epoch), &expected.get(epoch))?;
    }
    Ok(())
}

/// Compares the contents of a collection at the end of every epoch.
pub fn compare_live<D: Record>(
    what: &str,
    captured: &Captured<D>,
    expected: &BTreeMap<u64, Vec<D>>,
) -> Result<(), String> {
    let (changes, mut now) = (captured.epochs(), BTreeMap::<D, isize>::new());
    let mut after = 0;
    for (&epoch, expected) in expected {
        for (row, diff) in changes.range(Epoch(after)..=Epoch(epoch)).flat_map(|(_, rows)| rows) {
            *now.entry(row.clone()).or_default() += diff;
        }
        after = epoch + 1;
        now.retain(|_, count| *count != 0);
        let expected = expected.iter().map(|row| (row.clone(), 1)).collect::<BTreeMap<_, _>>();
        same(&format!("{what} at epoch {epoch}"), &now, &expected)?;
    }
    match changes.range(Epoch(after)..).next() {
        Some((epoch, _)) => Err(format!("{what} change at epoch {epoch}, which took nothing")),
        None => Ok(()),
    }
}

/// Compares all outputs of a step with the oracle's.
pub fn compare(views: &StepCaptures, expected: &OracleOutputs<Totals, Deal>) -> Result<(), String> {
    compare_rows("closed rows", &views.closed, &expected.closed)?;
    compare_live("live rows", &views.live, &expected.live)?;
    compare_live("fired rows", &views.fired, &expected.fired)?;
    compare_rows("rows of every so often", &views.every, &expected.every(PERIOD))?;
    compare_rows("late records", &views.late, &expected.late)
}

/// Computes the expected outputs from the data and the epochs of the journal.
pub fn expected(data: &Data, windows: Windows, outcome: &RunOutcome) -> OracleOutputs<Totals, Deal> {
    let history = data.history(0, &oracle::steps(&outcome.journal, "deals"));
    oracle::windowed(&history, windows, |deal| deal.key, totals)
}

/// Checks that every record read was counted, late or rejected: the query has a single step.
pub fn conserved(data: &Data, expected: &OracleOutputs<Totals, Deal>, outcome: &RunOutcome) -> Result<(), String> {
    let summary = &outcome.report.summary;
    let (source, step) = (&summary.sources[0], &summary.steps[0]);
    let late = expected.late.values().map(Vec::len).sum::<usize>() as u64;
    let taken = outcome.journal.iter().flat_map(|frame| frame.progress.iter().map(|b| (b.partition, b.next_offset)));
    let read = taken.collect::<BTreeMap<_, _>>().into_values().sum::<u64>();
    same("records read", &source.read, &read)?;
    same("records read, of all", &(source.read <= data.len() as u64), &true)?;
    same("records late", &step.late, &late)?;
    same("records counted", &step.counted, &(expected.counted as u64))?;
    same("counted + late + rejected", &(step.counted + step.late + source.rejected), &source.read)
}

/// Runs data in the epochs of `how`, and compares everything with the oracle.
pub fn check_run(data: &Data, windows: Windows, how: TestRun) -> Result<RunOutcome, String> {
    let (views, outcome) = run(data, windows, how)?;
    let expected = expected(data, windows, &outcome);
    let describe = |why: String| format!("{why}\nin {windows:?}");
    compare(&views, &expected).map_err(describe)?;
    conserved(data, &expected, &outcome).map_err(describe)?;
    Ok(outcome)
}

/// Computes what the data alone determine, without any epochs: final results and late records of a run in which every
/// partition was found at the start and ended.
pub fn by_data(data: &Data, windows: Windows) -> OracleOutputs<Totals, Deal> {
    let took = |(partition, deals): (usize, &Vec<Deal>)| oracle::PartitionInput {
        partition: partition as u32,
        next: deals.len() as u64,
        idle: false,
        ended: true,
    };
    let all = oracle::OracleEpoch { epoch: 2, inputs: data.partitions.iter().enumerate().map(took).collect() };
    oracle::windowed(&data.history(0, &[all]), windows, |deal| deal.key, totals)
}

/// Returns the rows of all epochs, sorted.
pub fn flat<D: Ord + Clone>(by_epoch: &BTreeMap<u64, Vec<D>>) -> Vec<D> {
    let mut rows = by_epoch.values().flatten().cloned().collect::<Vec<_>>();
    rows.sort();
    rows
}

/// Runs data in the epochs of `how`, and compares final results and late records with what the data alone determine.
pub fn check_data(data: &Data, windows: Windows, how: TestRun) -> Result<(), String> {
    let (views, _) = run(data, windows, how)?;
    let expected = by_data(data, windows);
    let describe = |why: String| format!("{why}\nin {windows:?}");
    same("all closed rows", &views.closed.all(), &flat(&expected.closed)).map_err(describe)?;
    same("all late records", &views.late.all(), &flat(&expected.late)).map_err(describe)?;
    Ok(())
}

/// A source that worker 1 is slow to open.
pub struct SlowToOpen(Deals);

impl Source for SlowToOpen {
    type Item = Deal;

    fn describe(&self) -> String {
        String::from("records that one worker is slow to open")
    }

    fn event_time(&self) -> TimeOf<Deal> {
        self.0.event_time()
    }

    fn out_of_order(&self) -> Option<Duration> {
        Source::out_of_order(&self.0)
    }

    fn open(&self, at: &WorkerContext) -> tidegate::Result<Box<dyn Reader<Deal>>> {
        if at.worker == 1 {
            std::thread::sleep(Duration::from_millis(30));
        }
        self.0.open(at)
    }
}

/// Checks that no record is late because a worker starts slowly: partition 0 is far ahead of partition 1, which the
/// slow worker reads.
pub fn check_slow_start(how: TestRun) -> Result<(), String> {
    let deals = |from: i64| (0..3000).map(|id| Deal { id, key: 0, at_ms: from + i64::from(id), amount: 1 }).collect();
    let data = Data { partitions: vec![deals(10_000), deals(0)], disorder: 0, turns: Vec::new() };
    let (views, source) = (StepCaptures::default(), SlowToOpen(data.source()));
    let shown = views.clone();
    let windows = Windows::Tumbling { size: 1000, offset: 0 };
    // With no in-flight budget the first epoch is full at once, and holds a part of partition 0.
    let run = how.workers(2).clock().in_flight(0).run(move |flow| shown.of(flow.read("deals", &source), windows));
    run.map_err(|error| error.to_string())?;
    same("late records", &views.late.all(), &Vec::new())?;
    same("closed rows", &views.closed.all(), &flat(&by_data(&data, windows).closed))
}

/// Checks that nothing is published before its epoch is synced, even if syncs are slow.
pub fn check_synced(data: &Data, how: TestRun) -> Result<(), String> {
    let (sync, source) = (SlowSync::new(15), data.source());
    let watched = sync.clone();
    let run = how.slow_sync(&sync).run(move |flow| {
        let sync = watched.clone();
        let show = Observer::new(move |epoch, _: &[(Deal, isize)]| sync.check_published(epoch));
        flow.read("deals", &source).write("watch", &show);
    });
    run.map(drop).map_err(|error| error.to_string())
}

/// Returns options with a `max_drift` so small that partitions are paused all the time.
pub fn small_drift(drift: u64) -> Options {
    Options::default().max_drift(Duration::from_millis(drift))
}
