//! Equal journals give equal output, epoch by epoch, on any number of workers.
//!
//! After a crash the epochs since the last snapshot are replayed, perhaps on other workers; sinks drop what they have
//! published already, which is only right if it is the same again.
#![expect(clippy::unwrap_used, reason = "a panic fails the test")]

use std::collections::BTreeMap;
use std::time::Duration;

use fastrand::Rng;
use tidegate::Record;
use tidegate::durable::journal::Frame;
use tidegate::testing::{Captured, RunOutcome, TestRun};
use tidegate::time::Epoch;

use common::cases::{Data, Deal, for_seeds};
use common::checks::{self, StepCaptures, compare, small_drift, totals};
use common::durable_joins::DurableJoins;
use common::durable_query::derived;
use common::oracle::{self, Windows};
use common::turns::epochs_of_silence;

const TUMBLING: Windows = Windows::Tumbling { size: 20, offset: 0 };

/// Returns the windows of both streams, chosen by the data.
fn windows(data: &(Data, Data)) -> Windows {
    checks::windows_of(&data.0)
}

/// What a run published: of the first source alone, of both concatenated, and of a join and an iteration.
type Captures = ([StepCaptures; 2], Captured<(u8, u32)>);

/// Runs two sources: the first one alone, and both concatenated.
fn run(data: &(Data, Data), run: TestRun) -> Result<(Captures, RunOutcome), String> {
    let views: Captures = Default::default();
    let (([one, both], of_collections), sources) = (views.clone(), (data.0.source(), data.1.source()));
    let windows = windows(data);
    let outcome = run.run(move |flow| {
        let (left, right) = (flow.read("one", &sources.0), flow.read("two", &sources.1));
        let count = left.clone().key_by(|deal| deal.key).window(checks::window(TUMBLING));
        let count = count.aggregate("counts of one", |each| (each.last(|deal| deal.id), each.first(|deal| deal.id)));
        let rows = count.on_close().map(|row| {
            let (id, first) = row.value;
            Deal { id, key: row.key, at_ms: row.window.end.millis(), amount: i64::from(first) }
        });
        let distinct = left.clone().key_by(|deal| deal.key).dedup_within("distinct", Duration::from_millis(15));
        derived(left.clone()).write("derived of one", &of_collections);
        let within = Duration::from_millis(20);
        let others = right.clone().key_by(|deal| deal.key);
        let joined = left.clone().key_by(|deal| deal.key).join_within("pairs", others, within, within);
        let joined = joined.full_outer(|_, left, right| match (left, right) {
            (Some(left), Some(right)) => Deal { id: right.id, ..left.clone() },
            (one, other) => one.or(other).unwrap().clone(),
        });
        rows.concat(distinct).concat(joined.results()).write("lasts, distinct of one and pairs", &one.late);
        both.of(left.concat(right), windows);
        flow.rejects().write("rejects", &both.rejects);
    });
    Ok((views, outcome.map_err(|error| error.to_string())?))
}

/// Everything that was published, by sink and epoch.
type PublishedRows = Vec<BTreeMap<Epoch, Vec<String>>>;

/// Returns what a sink has published.
fn rows<D: Record>(captured: &Captured<D>) -> BTreeMap<Epoch, Vec<String>> {
    let line = |row: &(D, isize)| format!("{row:?}");
    captured.epochs().into_iter().map(|(epoch, rows)| (epoch, rows.iter().map(line).collect())).collect()
}

fn shown((views, derived): &Captures) -> PublishedRows {
    let all = views.iter().flat_map(|v| [rows(&v.closed), rows(&v.live), rows(&v.late), rows(&v.rejects)]);
    all.chain([rows(derived)]).collect()
}

fn same(what: &str, again: &PublishedRows, first: &PublishedRows) -> Result<(), String> {
    for (again, first) in again.iter().zip(first) {
        for epoch in again.keys().chain(first.keys()) {
            let (again, first) = (again.get(epoch), first.get(epoch));
            if again != first {
                return Err(format!("{what}, epoch {epoch}:\n again {again:?}\n first {first:?}"));
            }
        }
    }
    Ok(())
}

/// Returns a journal without the frames that commit nothing.
fn bound(journal: &[Frame]) -> Vec<Frame> {
    journal.iter().filter(|frame| !frame.progress.is_empty()).cloned().collect()
}

fn check(data: &(Data, Data), recorded: TestRun, seed: u64) -> Result<(), String> {
    let (views, outcome) = run(data, recorded)?;
    let (first, journal) = (shown(&views), outcome.journal.clone());
    let mut twice = journal.clone();
    for workers in [1, 2, 3] {
        let (views, again) = run(data, TestRun::new().workers(workers).journal(journal.clone()))?;
        same(&format!("on {workers} workers"), &shown(&views), &first)?;
        if again.journal != bound(&journal) {
            return Err(format!("the journal of {workers} workers:\n{:?}\n is not\n{journal:?}", again.journal));
        }
        // Epochs without input are not replayed.
        let mut report = again.report;
        report.summary.epochs = outcome.report.summary.epochs;
        if report != outcome.report {
            return Err(format!("on {workers} workers the report {report:?} is not {:?}", outcome.report));
        }
        twice = again.journal;
        let sealed =
            journal.iter().map(|frame| frame.epoch).filter(|epoch| (epoch.0 / 2 + seed).is_multiple_of(3)).collect();
        let (views, _) = run(data, TestRun::new().workers(workers).journal(journal.clone()).seal_at(sealed))?;
        same(&format!("sealed, on {workers} workers"), &shown(&views), &first)?;
    }
    let (views, _) = run(data, TestRun::new().workers(2).journal(twice))?;
    same("the journal of a replay", &shown(&views), &first)?;
    // The output is also correct, not only the same.
    let history = |index, data: &Data, name| data.history(index, &oracle::steps(&journal, name));
    let both = oracle::concat(&history(0, &data.0, "one"), &history(1, &data.1, "two"));
    compare(&views.0[1], &oracle::windowed(&both, windows(data), |deal| deal.key, totals))
}

fn two(seed: u64, most: usize) -> (Data, Data) {
    let mut random = Rng::with_seed(seed);
    (Data::random(&mut random, most), Data::random(&mut random, most).renumbered(1_000_000))
}

#[test]
fn a_random_run_can_be_repeated_on_any_workers() {
    for_seeds(6, |seed| check(&two(seed, 120), TestRun::new().workers(1 + seed as usize % 4).seed(seed), seed));
}

#[test]
fn a_run_in_which_all_partitions_fall_silent_and_wake_can_be_repeated_on_any_workers() {
    for_seeds(3, |seed| {
        let data = (Data::in_turns(seed, 120), Data::random(&mut Rng::with_seed(seed), 60).renumbered(1_000_000));
        let recorded = || TestRun::new().workers(1 + seed as usize % 4).seed(seed);
        let silent = epochs_of_silence(&run(&data, recorded())?.1.journal, "one");
        if silent < 2 {
            return Err(format!("all partitions were idle in {silent} epochs only"));
        }
        check(&data, recorded(), seed)
    });
}

#[test]
fn a_run_by_the_clock_can_be_repeated_on_any_workers() {
    for_seeds(3, |seed| {
        let run = TestRun::new().workers(1 + seed as usize % 3).clock().in_flight(20_000).options(small_drift(100));
        check(&two(seed, 400), run, seed)
    });
}

#[test]
fn scripts_with_idle_and_late_found_partitions_can_be_repeated_on_any_workers() {
    for_seeds(6, |seed| {
        let (data, mut random) = (two(seed, 60), Rng::with_seed(seed));
        let run = TestRun::new().workers(1 + seed as usize % 3);
        let run = run.script("one", data.0.script(&mut random)).script("two", data.1.script(&mut random));
        check(&data, run, seed)
    });
}

/// Every join by event time, windows behind each, and a join and an iteration of collections; partitions become idle and
/// wake in every second case.
#[test]
fn joins_and_iterations_can_be_repeated_on_any_workers() {
    for_seeds(1, |seed| {
        let mut random = Rng::with_seed(seed);
        let data = if seed % 2 == 0 { Data::in_turns(seed, 30) } else { Data::random(&mut random, 30) };
        let run = |run: TestRun| {
            let (joins, source) = (DurableJoins::default(), data.source());
            let own = joins.clone();
            let outcome = run.run(move |flow| own.of(flow.read("deals", &source), false));
            let DurableJoins { rows: joined, behind, live, derived, late, .. } = joins;
            let published = vec![rows(&joined), rows(&behind), rows(&live), rows(&derived), rows(&late)];
            Ok::<_, String>((published, outcome.map_err(|error| error.to_string())?.journal))
        };
        let (first, journal) = run(TestRun::new().workers(1 + seed as usize % 4).seed(seed))?;
        if first[0].is_empty() || first[3].is_empty() {
            return Err("the data is too tame".into());
        }
        for workers in [1, 3] {
            let (again, _) = run(TestRun::new().workers(workers).journal(journal.clone()))?;
            same(&format!("on {workers} workers"), &again, &first)?;
            let sealed = journal.iter().map(|frame| frame.epoch).filter(|epoch| (epoch.0 / 2 + seed).is_multiple_of(3));
            let (again, _) = run(TestRun::new().workers(workers).journal(journal.clone()).seal_at(sealed.collect()))?;
            same(&format!("sealed, on {workers} workers"), &again, &first)?;
        }
        Ok(())
    });
}
