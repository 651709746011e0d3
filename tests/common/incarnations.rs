//! Incarnations of a state on a disk that crashes: each recovers from what survived the previous one, perhaps on
//! another number of workers.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use tidegate::durable::disk::Disk;
use tidegate::job::Ending;
use tidegate::testing::{Captured, CrashingDisk, TestRun};
use tidegate::{Flow, Real, Record, Window};

use super::cases::{Data, Deal};
use super::checks::{self, StepCaptures, small_drift};
use super::tables::Tables;

/// Maximum number of incarnations that crash.
const LIVES: usize = 12;

/// All outputs of the query of these tests.
#[derive(Clone, Default)]
pub struct QueryCaptures {
    pub views: StepCaptures,
    /// The results of other aggregates, as text.
    pub others: Captured<(i64, u8, String)>,
    /// Windows over the results of windows: a checkpointed operator behind another.
    pub chained: Captured<(i64, u8, i64, u32)>,
    /// Tables of the records and of the results, and joins with them.
    pub tables: Tables,
}

impl QueryCaptures {
    fn query(&self, data: &Data) -> impl Fn(&Flow<'_>) + Send + Sync + 'static {
        let (source, own, windows) = (data.source(), self.clone(), checks::windows_of(data));
        move |flow| {
            let deals = flow.read("one", &source);
            own.views.of(deals.clone(), windows);
            flow.rejects().write("rejects", &own.views.rejects);
            let counts =
                deals.clone().key_by(|deal: &Deal| deal.key).window(Window::tumbling(Duration::from_millis(20)));
            let counts = counts.aggregate("counts", |each| (each.count(), each.last(|deal| deal.id)));
            let results = counts.on_close().map(|row| (row.window.end.millis(), row.key, row.value.0, row.value.1));
            let minutes =
                deals.clone().key_by(|deal: &Deal| deal.key).window(Window::tumbling(Duration::from_millis(60)));
            minutes
                .aggregate("others", |each| {
                    let amount = |deal: &Deal| deal.amount;
                    let tenths = each.sum(|deal| Real::new(deal.amount as f64 / 10.0));
                    let spread = (each.mean(amount), tenths, each.variance(amount), each.quantiles([0.5, 0.9], amount));
                    let some = |deal: &Deal| (deal.amount % 3 == 0).then_some(deal.amount);
                    let of_some = each.filter_map(some, |each| (each.count(), each.sum(|amount| *amount)));
                    let ends = (each.top(3, amount), each.bottom(2, amount), each.arg_max(amount, |deal| deal.id));
                    let few = |deal: &Deal| deal.amount % 7;
                    let kinds = (each.count_distinct(few), each.distinct(few), each.approx_count_distinct(few));
                    (spread, ends, kinds, of_some, each.collect(|deal| deal.id))
                })
                .on_close()
                .map(|row| (row.window.end.millis(), row.key, format!("{:?}", row.value)))
                .write("others", &own.others);
            own.tables.of(deals, results);
            let chained = counts.on_close().key_by(|row| row.key).window(Window::tumbling(Duration::from_millis(60)));
            chained
                .aggregate("chained", |each| (each.sum(|row| row.value.0), each.max(|row| row.value.1)))
                .on_close()
                .map(|row| (row.window.end.millis(), row.key, row.value.0 as i64, row.value.1))
                .write("chained", &own.chained);
        }
    }

    /// Runs the query once.
    pub fn run(&self, data: &Data, run: TestRun) -> Result<Ending, String> {
        let outcome = run.options(small_drift(1_000_000)).run(self.query(data));
        outcome.map(|outcome| outcome.report.ending).map_err(|error| error.to_string())
    }

    /// Compares the final results of two runs, each row once.
    pub fn check_equal(&self, what: &str, expected: &QueryCaptures) -> Result<(), String> {
        rows(what, "closed rows", &self.views.closed, &expected.views.closed)?;
        rows(what, "late records", &self.views.late, &expected.views.late)?;
        rows(what, "rejects", &self.views.rejects, &expected.views.rejects)?;
        rows(what, "live rows at the end", &self.views.live, &expected.views.live)?;
        rows(what, "fired rows", &self.views.fired, &expected.views.fired)?;
        rows(what, "rows of other aggregates", &self.others, &expected.others)?;
        every_is_live(&self.views).map_err(|why| format!("{what}: {why}"))?;
        rows(what, "chained rows", &self.chained, &expected.chained)?;
        rows(what, "tables", &self.tables.last, &expected.tables.last)?;
        rows(what, "tables of results", &self.tables.last_results, &expected.tables.last_results)?;
        // Joins depend on which records share an epoch: they are compared with a computation over the same epochs.
        self.tables.check(true).map_err(|why| format!("{what}: {why}"))
    }
}

/// Checks that the rows of `every` are the live rows of their epoch.
fn every_is_live(views: &StepCaptures) -> Result<(), String> {
    let (live, mut now) = (views.live.epochs(), BTreeMap::<_, isize>::new());
    let mut epochs = live.into_iter().peekable();
    for (epoch, shown) in views.every.epochs() {
        while let Some((_, changes)) = epochs.next_if(|(other, _)| *other <= epoch) {
            changes.into_iter().for_each(|(row, diff)| *now.entry(row).or_default() += diff);
        }
        now.retain(|_, count| *count != 0);
        let shown: BTreeMap<_, _> = shown.into_iter().collect();
        if shown != now {
            return Err(format!("at epoch {epoch} there is shown {shown:?}, and live is {now:?}"));
        }
    }
    Ok(())
}

fn rows<D: Record>(what: &str, name: &str, got: &Captured<D>, expected: &Captured<D>) -> Result<(), String> {
    let sum = |captured: &Captured<D>| {
        let mut sums = BTreeMap::<D, isize>::new();
        for (row, diff) in captured.epochs().into_values().flatten() {
            *sums.entry(row).or_default() += diff;
        }
        sums.retain(|_, count| *count != 0);
        sums
    };
    let (rows, wanted) = (sum(got), sum(expected));
    if rows == wanted {
        return Ok(());
    }
    let other: Vec<_> = rows.iter().filter(|(row, count)| wanted.get(*row) != Some(*count)).collect();
    let lacks: Vec<_> = wanted.iter().filter(|(row, count)| rows.get(*row) != Some(*count)).collect();
    Err(format!("{what}: {name} differ: there are {other:?}, and should be {lacks:?}"))
}

/// Prepares a run with its state on a disk, with a random number of workers and random epochs.
pub fn on(disk: &CrashingDisk, random: &mut Rng, run: TestRun) -> TestRun {
    let disk: Arc<dyn Disk> = disk.shared();
    run.workers(random.usize(1..=3)).seed(random.u64(..)).state(&disk, "state")
}

/// Runs random data through crashes to the end; the results must be those of a run without state.
pub fn check_crashes(seed: u64, run: impl Fn() -> TestRun) -> Result<(), String> {
    let mut random = Rng::with_seed(seed);
    let data = Data::random(&mut random, 200);
    check_crashes_of(&data, (seed, random), run)
}

/// Runs data through crashes to the end; the results must be those of a run without state.
pub fn check_crashes_of(data: &Data, (seed, mut random): (u64, Rng), run: impl Fn() -> TestRun) -> Result<(), String> {
    let (plain, kept) = (QueryCaptures::default(), QueryCaptures::default());
    plain.run(data, TestRun::new().seed(seed))?;
    let mut disk = CrashingDisk::new();
    for life in 0.. {
        if life < LIVES {
            disk.crash_at(random.usize(0..300));
        }
        match kept.run(data, on(&disk, &mut random, run())) {
            Ok(Ending::Stopped) => return Err(format!("life {life} stopped")),
            Ok(Ending::Complete | Ending::WasComplete) => break,
            Err(_) if disk.has_crashed() => disk = disk.survivors(random.u64(..)),
            Err(error) => return Err(format!("life {life}: {error}")),
        }
    }
    kept.check_equal("after crashes", &plain)
}
