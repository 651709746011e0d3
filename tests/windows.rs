//! Windows give the outputs of a computation from scratch: final results, live rows and late records, at every epoch.
//!
//! The engine computes all of these incrementally, in pieces, on several workers; the oracle computes them from the
//! definitions, out of all records, and shares no code with it.
#![expect(clippy::unwrap_used, reason = "a panic fails the test")]
#![expect(clippy::redundant_closure_for_method_calls, reason = "queries are written as users write them")]

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use fastrand::Rng;
use num_bigint::BigInt;
use num_rational::BigRational;
use num_traits::ToPrimitive;
use tidegate::source::memory::MemorySource;
use tidegate::testing::{Captured, CrashingDisk, RunOutcome, TestRun};
use tidegate::{Closed, Decimal, Real, Window};

use common::cases::{Data, Deal, for_seeds};
use common::checks::{self, StepCaptures, check_data, check_run, compare, compare_rows, totals};
use common::incarnations::on;
use common::oracle::{self, OVER, OracleRecord, Row, Windows};

fn windows(random: &mut Rng) -> Windows {
    checks::any_windows(random)
}

#[test]
fn scripted_epochs_with_idle_and_late_found_partitions_show_what_the_oracle_shows() {
    for_seeds(50, |seed| {
        let mut random = Rng::with_seed(seed);
        let (data, windows) = (Data::random(&mut random, 60), windows(&mut random));
        let script = data.script(&mut random);
        let run = TestRun::new().workers(random.usize(1..=3)).script("deals", script);
        check_run(&data, windows, run).map(drop)
    });
}

#[test]
fn random_epochs_show_what_the_oracle_shows() {
    for_seeds(40, |seed| {
        let mut random = Rng::with_seed(seed);
        let (data, windows) = (Data::random(&mut random, 120), windows(&mut random));
        let run = || TestRun::new().workers(1 + seed as usize % 4).seed(seed);
        check_run(&data, windows, run()).map(drop)?;
        check_data(&data, windows, run())
    });
}

#[test]
fn one_window_for_all_time_closes_when_its_stream_is_over() {
    for_seeds(12, |seed| {
        let mut random = Rng::with_seed(seed);
        let data = Data::random(&mut random, 60);
        let script = data.script(&mut random);
        check_run(&data, Windows::Global, TestRun::new().workers(2).script("deals", script)).map(drop)
    });
}

/// Maps a deal: big ones are dropped, odd keys are doubled.
fn changed(deal: &Deal) -> Vec<Deal> {
    let other = Deal { id: deal.id + 1_000_000, key: deal.key ^ 1, at_ms: 0, amount: deal.amount / 2 };
    match (deal.amount > 500, deal.key % 2) {
        (true, _) => vec![],
        (false, 0) => vec![other],
        _ => vec![deal.clone(), other],
    }
}

#[test]
fn changed_streams_keep_their_times_and_watermarks() {
    for_seeds(20, |seed| {
        let mut random = Rng::with_seed(seed);
        let (data, windows) = (Data::random(&mut random, 60), windows(&mut random));
        let script = data.script(&mut random);
        let (views, source) = (StepCaptures::default(), data.source());
        let shown = views.clone();
        let run = TestRun::new().workers(random.usize(1..=3)).script("deals", script).run(move |flow| {
            let deals = flow.read("deals", &source).filter(|deal| deal.amount <= 500);
            let made = deals.map(|deal| (deal.key % 2, deal)).flat_map(|(odd, deal)| {
                assert_eq!(odd, deal.key % 2);
                changed(&deal)
            });
            shown.of(made, windows);
        });
        let outcome = run.map_err(|error| error.to_string())?;
        let history = data.history(0, &oracle::steps(&outcome.journal, "deals")).flat_map(changed);
        compare(&views, &oracle::windowed(&history, windows, |deal| deal.key, totals))
    });
}

#[test]
fn two_streams_as_one_have_the_lesser_watermark() {
    for_seeds(20, |seed| {
        let mut random = Rng::with_seed(seed);
        let windows = windows(&mut random);
        let (one, two) = (Data::random(&mut random, 40), Data::random(&mut random, 40).renumbered(1_000_000));
        let run = TestRun::new().workers(random.usize(1..=3));
        let run = run.script("one", one.script(&mut random)).script("two", two.script(&mut random));
        let (views, sources) = (StepCaptures::default(), (one.source(), two.source()));
        let shown = views.clone();
        let run = run.run(move |flow| {
            shown.of(flow.read("one", &sources.0).concat(flow.read("two", &sources.1)), windows);
        });
        let outcome = run.map_err(|error| error.to_string())?;
        let history = |index, data: &Data, name| data.history(index, &oracle::steps(&outcome.journal, name));
        let both = oracle::concat(&history(0, &one, "one"), &history(1, &two, "two"));
        compare(&views, &oracle::windowed(&both, windows, |deal| deal.key, totals))
    });
}

#[test]
fn windows_of_window_results_lose_nothing() {
    for_seeds(20, |seed| {
        let mut random = Rng::with_seed(seed);
        let (data, first) = (Data::random(&mut random, 80), windows(&mut random));
        let second = if random.u8(0..5) == 0 { Windows::Global } else { windows(&mut random) };
        let script = data.script(&mut random);
        let (rows, late, source) = (Captured::<Row<(i64, i128)>>::new(), Captured::new(), data.source());
        let (shown, shown_late) = (rows.clone(), late.clone());
        let run = TestRun::new().workers(random.usize(1..=3)).script("deals", script).run(move |flow| {
            let deals = flow.read("deals", &source).key_by(|deal| deal.key).window(checks::window(first));
            let deals = deals.allowed_lateness(checks::millis(first.late()));
            let totals = deals.aggregate("first", |each| (each.count(), each.sum(|deal| deal.amount)));
            let step = (totals.on_close().key_by(|row| row.key % 2).window(checks::window(second)))
                .allowed_lateness(checks::millis(second.late()))
                .aggregate("second", |each| (each.sum(|row| row.value.0), each.sum(|row| row.value.1)));
            let flat = |row: Closed<u8, (i128, i128)>| {
                let Closed { window, key, value: (count, sum) } = row;
                (window.start.millis(), window.end.millis(), key, (count as i64, sum))
            };
            step.on_close().map(flat).write("rows", &shown);
            step.late().map(|row| row.key).write("late", &shown_late);
        });
        let outcome = run.map_err(|error| error.to_string())?;
        let history = data.history(0, &oracle::steps(&outcome.journal, "deals"));
        let sums =
            |of: &[&OracleRecord<Deal>]| (of.len() as i64, of.iter().map(|d| i128::from(d.data.amount)).sum::<i128>());
        let mut closed = history.closed(&oracle::windowed(&history, first, |deal| deal.key, sums), first.late());
        // Results have no offset: those of equal time are counted in the order in which the second step sorts them.
        closed.records.sort_by_key(|row| row.data.3);
        let add = |of: &[&OracleRecord<Row<(i64, i128)>>]| {
            of.iter().fold((0, 0), |sum, row| (sum.0 + row.data.3.0, sum.1 + row.data.3.1))
        };
        let expected = oracle::windowed(&closed, second, |row| row.2 % 2, add);
        compare_rows("rows of the second window", &rows, &expected.closed)?;
        compare_rows("late rows", &late, &BTreeMap::new())
    });
}

/// Counts, in windows of one second, the results of a global window.
#[test]
fn the_result_of_all_time_is_not_late_downstream() {
    let source = MemorySource::new(vec![vec![(1u8, 5i64), (2, 7), (1, 9)]], |record: &(u8, i64)| record.1);
    let (counts, late) = (Captured::<(u8, i64)>::new(), Captured::<u8>::new());
    let (shown, shown_late) = (counts.clone(), late.clone());
    TestRun::new()
        .run(move |flow| {
            let all = flow.read("records", &source).key_by(|r| r.0).window(Window::global());
            let rows = all.aggregate("all", |each| each.count()).on_close();
            let step = (rows.key_by(|row| row.key).window(Window::tumbling(Duration::from_secs(1))))
                .aggregate("second", |each| each.sum(|row| row.value));
            step.on_close().map(|row| (row.key, row.value as i64)).write("counts", &shown);
            step.late().map(|row| row.key).write("late", &shown_late);
        })
        .unwrap();
    assert_eq!((counts.all(), late.all()), (vec![(1, 2), (2, 1)], vec![]));
}

/// Sums values of any number type in one window, in any order, in random epochs.
fn summed<N, S>(values: &[N], seed: u64) -> tidegate::Result<Vec<(S, Real)>>
where
    N: tidegate::stream::aggregate::Summable<SumValue = S> + Copy,
    S: tidegate::Record,
{
    let partitions = values.chunks(values.len().div_ceil(3)).map(|chunk| chunk.iter().map(|v| (*v, 5i64)).collect());
    let source = MemorySource::new(partitions.collect(), |record: &(N, i64)| record.1);
    let (sums, shown) = (Captured::new(), Captured::new());
    let captured: Captured<(S, Real)> = sums.clone();
    let _: &Captured<(S, Real)> = &shown;
    TestRun::new().workers(1 + seed as usize % 3).seed(seed).run(move |flow| {
        flow.read("values", &source)
            .key_by(|_| 0u8)
            .window(Window::tumbling(Duration::from_secs(1)))
            .aggregate("sums", |each| (each.sum(|r| r.0), each.mean(|r| r.0)))
            .on_close()
            .map(|row| row.value)
            .write("sums", &captured);
    })?;
    Ok(sums.all())
}

#[test]
fn a_sum_of_128_bits_may_leave_its_range_and_come_back() {
    let mut values = vec![i128::MAX, i128::MAX, i128::MIN, i128::MIN, i128::MAX, 3, -1, 0, i128::MIN, 12];
    for seed in 1..=30 {
        Rng::with_seed(seed).shuffle(&mut values);
        let sums = summed::<i128, i128>(&values, seed).unwrap();
        assert_eq!(sums.iter().map(|sum| sum.0).collect::<Vec<_>>(), [11], "seed {seed}");
    }
}

#[test]
fn a_sum_that_stays_out_of_range_is_an_error_that_says_where() {
    for values in [[i128::MAX, 1], [i128::MIN, -1]] {
        let error = summed::<i128, i128>(&values, 1).unwrap_err().to_string();
        let expected = "a sum is too large for an i128 (step `sums`, window ending 1970-01-01T00:00:01.000Z, key 0)";
        assert!(error.starts_with(expected), "{error}");
    }
    let error = summed::<Decimal, Decimal>(&[Decimal::MAX, Decimal::ONE], 1).unwrap_err().to_string();
    assert!(error.starts_with("a sum is too large for a Decimal (step `sums`"), "{error}");
}

#[test]
fn sums_of_decimals_are_exact() {
    let tiny = Decimal::new(1, 28);
    let cases = [
        (vec![Decimal::MAX, Decimal::MAX, Decimal::MIN, Decimal::MIN, Decimal::TEN], Decimal::TEN),
        (vec![Decimal::MAX, tiny, Decimal::MIN], tiny),
        (vec![-tiny, -tiny, tiny], -tiny),
        (vec![Decimal::new(1, 1); 30], Decimal::new(3, 0)),
        (vec![Decimal::MIN, Decimal::ONE], Decimal::MIN + Decimal::ONE),
        (vec![Decimal::new(-5, 1), Decimal::new(25, 2)], Decimal::new(-25, 2)),
    ];
    for (mut values, expected) in cases {
        for seed in 1..=5 {
            Rng::with_seed(seed).shuffle(&mut values);
            let sums = summed::<Decimal, Decimal>(&values, seed).unwrap();
            assert_eq!(sums.iter().map(|sum| sum.0).collect::<Vec<_>>(), [expected], "{values:?}");
        }
    }
}

/// The rounding of the fraction library may be off by one unit; the nearest number is its result or a neighbour.
fn nearest(exact: &BigRational) -> f64 {
    let near = exact.to_f64().unwrap();
    let off = |it: &f64| {
        let apart = BigRational::from_float(*it).unwrap() - exact;
        if apart < BigRational::from_integer(0.into()) { -apart } else { apart }
    };
    let even = |it: &f64| it.to_bits() & 1;
    [near, near.next_up(), near.next_down()].into_iter().min_by_key(|it| (off(it), even(it))).unwrap()
}

#[test]
fn sums_and_means_of_floating_point_numbers_are_exact_and_rounded_once_on_any_workers() {
    for seed in 1..=40 {
        let mut random = Rng::with_seed(seed);
        let mut numbers: Vec<f64> = (0..random.usize(1..30))
            .map(|_| match random.u8(0..3) {
                0 => random.f64() * 10f64.powi(random.i32(-20..20)),
                1 => -f64::from(random.u32(..)) / 100.0,
                _ => 2f64.powi(random.i32(-900..900)),
            })
            .collect();
        // Large numbers that cancel leave the small ones.
        numbers.extend(numbers.clone().into_iter().filter(|number| *number > 1e9).map(|number| -number));
        let exact: BigRational = numbers.iter().map(|number| BigRational::from_float(*number).unwrap()).sum();
        let expected = (nearest(&exact), nearest(&(&exact / BigInt::from(numbers.len()))));
        for order in 0..3 {
            random.shuffle(&mut numbers);
            let reals: Vec<Real> = numbers.iter().copied().map(Real::new).collect();
            let found = summed::<Real, Real>(&reals, seed + order).unwrap();
            let found: Vec<_> = found.iter().map(|(sum, mean)| (sum.get(), mean.get())).collect();
            assert_eq!(found, [expected], "of {numbers:?}");
        }
    }
    let (up, down) = (Real::new(f64::INFINITY), Real::new(f64::NEG_INFINITY));
    assert_eq!(summed::<Real, Real>(&[up, Real::new(1.0)], 1).unwrap(), [(up, up)]);
    let nan = Real::new(f64::NAN);
    assert_eq!(summed::<Real, Real>(&[up, Real::new(1.0), down], 1).unwrap(), [(nan, nan)]);
}

#[test]
fn a_mean_is_the_exact_sum_divided_once() {
    let mean = |values: &[i64]| summed::<i64, i128>(values, 3).unwrap()[0].1.get();
    assert_eq!(mean(&[1, 2]), 1.5);
    assert_eq!(mean(&[i64::MAX; 5]), i64::MAX as f64);
    assert_eq!(mean(&[i64::MIN, i64::MAX]), -0.5);
    assert_eq!(mean(&[i64::MAX, i64::MAX, i64::MIN, i64::MIN, 7]), 1.0);
    assert_eq!(mean(&[1, 2, 2]), 5.0 / 3.0);
    // One division of exact numbers is rounded once.
    for seed in 1..=20 {
        let mut random = Rng::with_seed(seed);
        let values: Vec<i64> = (0..random.usize(1..20)).map(|_| random.i64(..) >> random.u32(18..63)).collect();
        let sum = values.iter().sum::<i64>();
        assert_eq!(mean(&values), sum as f64 / values.len() as f64, "of {values:?}");
    }
    let mean = summed::<Decimal, Decimal>(&[Decimal::new(10, 2), Decimal::new(20, 2)], 1).unwrap()[0].1;
    assert_eq!(mean, Real::new(0.15));
    // The mean of one decimal is that decimal, parsed as a number.
    for text in ["-0.1", "-0.0000000000000001", "0.07", "-12.34", "79228162514264337593543950335", "-0.3"] {
        let mean = summed::<Decimal, Decimal>(&[text.parse().unwrap()], 1).unwrap()[0].1;
        assert_eq!(mean, Real::new(text.parse().unwrap()), "{text}");
    }
}

/// Results of the other aggregates: extremes, distinct values, quantiles, variance, and all values.
type OtherAggregates = ((Vec<(i64, u32)>, Vec<u8>, u32, u32), (Vec<i64>, i64, i64), (Vec<i64>, Option<Real>), Vec<u32>);

/// Returns an amount that is small enough for quantiles to be exact.
fn small(deal: &Deal) -> i64 {
    deal.amount % 200
}

/// Runs a window with these aggregates, and captures the closed rows.
fn run_more(
    data: &Data,
    windows: Windows,
    run: TestRun,
) -> Result<(Captured<Row<OtherAggregates>>, RunOutcome), String> {
    let (source, rows) = (data.source(), Captured::new());
    let shown = rows.clone();
    let outcome = run.run(move |flow| {
        let deals = flow.read("deals", &source).key_by(|deal| deal.key % 2).window(checks::window(windows));
        let deals = deals.allowed_lateness(checks::millis(windows.late()));
        let more = deals.aggregate("more", |each| {
            (
                (
                    each.top(3, |deal| (deal.amount, deal.id)),
                    each.bottom(9, |deal| deal.key),
                    each.arg_min(|deal| deal.key, |deal| deal.id),
                    each.arg_max(|deal| deal.amount, |deal| deal.id),
                ),
                (
                    each.distinct(|deal| deal.amount),
                    each.count_distinct(|deal| deal.amount),
                    each.approx_count_distinct(|deal| deal.amount),
                ),
                (each.quantiles([0.0, 0.5, 0.9], small), each.sample_variance(small)),
                each.collect(|deal| deal.id),
            )
        });
        let rows = more.on_close();
        rows.map(|row| (row.window.start.millis(), row.window.end.millis(), row.key, row.value)).write("rows", &shown);
    });
    Ok((rows, outcome.map_err(|error| error.to_string())?))
}

/// Computes the same from scratch.
fn more(deals: &[&OracleRecord<Deal>]) -> OtherAggregates {
    let mut deals = deals.to_vec();
    deals.sort_by_key(|deal| (deal.time, deal.origin));
    let (id, count) = (|deal: &&OracleRecord<Deal>| deal.data.id, deals.len() as i128);
    let least = deals.iter().copied().min_by_key(|deal| deal.data.key).unwrap();
    let greatest = deals.iter().copied().min_by_key(|deal| Reverse(deal.data.amount)).unwrap();
    let mut amounts = deals.iter().map(|deal| (deal.data.amount, deal.data.id)).collect::<Vec<_>>();
    amounts.sort_by_key(|amount| Reverse(*amount));
    let mut keys = deals.iter().map(|deal| deal.data.key).collect::<Vec<_>>();
    keys.sort_unstable();
    let kinds = amounts.iter().map(|amount| amount.0).collect::<BTreeSet<_>>();
    let mut numbers = deals.iter().map(|deal| small(&deal.data)).collect::<Vec<_>>();
    numbers.sort_unstable();
    let ranks = [1, deals.len().div_ceil(2), (9 * deals.len()).div_ceil(10)];
    let [sum, squares] = [1, 2].map(|power| numbers.iter().map(|number| i128::from(*number).pow(power)).sum::<i128>());
    let variance = (count > 1).then(|| Real::new((count * squares - sum * sum) as f64 / (count * (count - 1)) as f64));
    (
        (amounts.into_iter().take(3).collect(), keys.into_iter().take(9).collect(), id(&least), id(&greatest)),
        (kinds.iter().copied().collect(), kinds.len() as i64, kinds.len() as i64),
        (ranks.map(|rank| numbers[rank - 1]).to_vec(), variance),
        deals.iter().map(id).collect(),
    )
}

#[test]
fn every_aggregate_shows_what_the_oracle_shows_on_any_workers_and_with_any_seals() {
    for_seeds(16, |seed| {
        let mut random = Rng::with_seed(seed);
        let (data, windows) = (Data::random(&mut random, 120), windows(&mut random));
        let (rows, outcome) = run_more(&data, windows, TestRun::new().workers(1 + seed as usize % 3).seed(seed))?;
        let history = data.history(0, &oracle::steps(&outcome.journal, "deals"));
        let expected = oracle::windowed(&history, windows, |deal| deal.key % 2, more).closed;
        compare_rows("rows", &rows, &expected)?;
        let seals = outcome.journal.iter().map(|frame| frame.epoch).collect();
        let again = TestRun::new().workers(random.usize(1..=4)).journal(outcome.journal).seal_at(seals);
        compare_rows("rows with seals", &run_more(&data, windows, again)?.0, &expected)
    });
}

/// Results of the aggregates from which parts can be removed.
type RemovableAggregates = ((i64, i128, Decimal), (Real, Real, Option<Real>), (Option<i128>, Vec<u32>));

/// Returns a number of which the sum is exact; of a few deals, one that is not finite and cannot be removed from a sum.
fn quarters(deal: &Deal) -> f64 {
    if deal.id.is_multiple_of(29) { f64::NAN } else { small(deal) as f64 / 4.0 }
}

/// Runs a window with these aggregates, and captures the closed rows.
fn run_removable(
    data: &Data,
    windows: Windows,
    run: TestRun,
    rows: &Captured<Row<RemovableAggregates>>,
) -> Result<RunOutcome, String> {
    let (source, shown) = (data.source(), rows.clone());
    let outcome = run.run(move |flow| {
        let deals = flow.read("deals", &source).key_by(|deal| deal.key % 2).window(checks::window(windows));
        let deals = deals.allowed_lateness(checks::millis(windows.late()));
        let sums = deals.aggregate("sums", |each| {
            let of_some = |deal: &Deal| (deal.amount % 3 == 0).then_some(deal.amount);
            (
                (each.count(), each.sum(|deal| deal.amount), each.sum(|deal| Decimal::new(small(deal), 2))),
                (each.mean(small), each.sum(|deal| Real::new(quarters(deal))), each.sample_variance(small)),
                (each.filter_map(of_some, |each| each.sum(|amount| *amount)), each.collect(|deal| deal.id)),
            )
        });
        let rows = sums.on_close();
        rows.map(|row| (row.window.start.millis(), row.window.end.millis(), row.key, row.value)).write("rows", &shown);
    });
    outcome.map_err(|error| error.to_string())
}

/// Computes the same from scratch.
fn removable(deals: &[&OracleRecord<Deal>]) -> RemovableAggregates {
    let mut deals = deals.to_vec();
    deals.sort_by_key(|deal| (deal.time, deal.origin));
    let count = deals.len() as i128;
    let amounts = || deals.iter().map(|deal| i128::from(deal.data.amount));
    let [sum, squares] =
        [1, 2].map(|power| deals.iter().map(|deal| i128::from(small(&deal.data)).pow(power)).sum::<i128>());
    let variance = (count > 1).then(|| Real::new((count * squares - sum * sum) as f64 / (count * (count - 1)) as f64));
    let some = amounts().filter(|amount| amount % 3 == 0).collect::<Vec<_>>();
    (
        (count as i64, amounts().sum(), Decimal::from_digits(sum, 2).unwrap()),
        (
            Real::new(sum as f64 / count as f64),
            Real::new(deals.iter().map(|deal| quarters(&deal.data)).sum()),
            variance,
        ),
        ((!some.is_empty()).then(|| some.iter().sum()), deals.iter().map(|deal| deal.data.id).collect()),
    )
}

/// A window's rows are, of windows that overlap, those of the one before, with what enters added and what leaves removed. They
/// are those of a sum from scratch, on any workers, with any seals, and after crashes.
#[test]
fn windows_that_overlap_have_what_has_entered_and_not_left() {
    for_seeds(20, |seed| {
        let mut random = Rng::with_seed(seed);
        let overlapping = |windows: &Windows| matches!(windows, Windows::Sliding { .. } | Windows::Cumulative { .. });
        let windows = std::iter::repeat_with(|| windows(&mut random)).find(overlapping).unwrap();
        let data = Data::random(&mut random, 200);
        let plain = Captured::new();
        let outcome = run_removable(&data, windows, TestRun::new().workers(1 + seed as usize % 3).seed(seed), &plain)?;
        let history = data.history(0, &oracle::steps(&outcome.journal, "deals"));
        let expected = oracle::windowed(&history, windows, |deal| deal.key % 2, removable).closed;
        compare_rows("rows", &plain, &expected)?;
        let (sealed, seals) = (Captured::new(), outcome.journal.iter().map(|frame| frame.epoch).collect());
        let again = TestRun::new().workers(random.usize(1..=4)).journal(outcome.journal).seal_at(seals);
        run_removable(&data, windows, again, &sealed)?;
        compare_rows("rows with seals", &sealed, &expected)?;

        let (kept, mut disk) = (Captured::new(), CrashingDisk::new());
        for life in 0.. {
            if life < 6 {
                disk.crash_at(random.usize(0..200));
            }
            let run = on(&disk, &mut random, TestRun::new()).options(checks::small_drift(1_000_000));
            match run_removable(&data, windows, run, &kept) {
                Ok(_) => break,
                Err(_) if disk.has_crashed() => disk = disk.survivors(random.u64(..)),
                Err(error) => return Err(format!("life {life}: {error}")),
            }
        }
        let (kept, plain) = (BTreeSet::from_iter(kept.all()), BTreeSet::from_iter(plain.all()));
        if kept == plain { Ok(()) } else { Err(format!("after crashes, in {windows:?}: {kept:?}, not {plain:?}")) }
    });
}

#[test]
fn an_aggregate_that_makes_no_sense_is_an_error_that_says_where() {
    let source = MemorySource::new(vec![vec![(1u8, 5i64)]], |record: &(u8, i64)| record.1);
    let run = TestRun::new().run(move |flow| {
        let all = flow.read("records", &source).key_by(|record| record.0).window(Window::global());
        let step = all.aggregate("late", |each| (each.count(), each.quantile(95.0, |record| record.1)));
        step.on_close().write("rows", &Captured::new());
    });
    let error = run.unwrap_err();
    assert!(error.to_string().starts_with("95 is no quantile (step `late`)"), "{error}");
    assert_eq!(error.exit_code(), 2);
}

#[test]
fn a_record_of_an_impossible_time_is_rejected_with_its_place() {
    let times = [0, 253_370_764_799_999, 253_370_764_800_000, -62_135_596_800_000, -62_135_596_800_001, i64::MAX];
    let deals = times.iter().zip(0..).map(|(at_ms, id)| Deal { id, key: 0, at_ms: *at_ms, amount: 1 }).collect();
    let data = Data { partitions: vec![deals], disorder: 0, turns: Vec::new() };
    let windows = Windows::Tumbling { size: 1000, offset: 0 };
    let (views, outcome) = checks::run(&data, windows, TestRun::new()).unwrap();
    let rejects = views.rejects.all().into_iter().map(|reject| (reject.offset, reject.reason)).collect::<Vec<_>>();
    let reason = |time: i64| format!("its event time, {time} ms since 1970, is outside the years 1 to 9998");
    assert_eq!(rejects, [(2, reason(times[2])), (4, reason(times[4])), (5, reason(times[5]))]);
    assert_eq!(outcome.report.summary.sources[0].rejected, 3);
    // The last possible window ends after the last time that a record may have, in a year that RFC 3339 can still
    // express.
    let ends = views.closed.all().into_iter().map(|row| row.1).collect::<Vec<_>>();
    assert_eq!(ends, [1000, 253_370_764_800_000]);
    assert_eq!(views.late.all().into_iter().map(|deal| deal.id).collect::<Vec<_>>(), [3]);
    assert!(ends.iter().all(|end| *end < OVER));
}
