//! The queries over overlapping and chained windows, as processes, on wild files: equal, row for row, to what is computed here
//! from the rows themselves, on any number of workers, with late records allowed or not, killed or not.

#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

#[path = "common/run.rs"]
mod run;
#[path = "common/transactions.rs"]
mod transactions;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use fastrand::Rng;
use run::{run, start};
use transactions::{COLUMNS, DISORDER_MS, Transaction, csv_of, ndjson_of, rfc3339, rows_of, same_rows, wild};

const SPEND_BY_MINUTE: &str = env!("CARGO_BIN_EXE_spend_by_minute");
const TOP_SPENDERS: &str = env!("CARGO_BIN_EXE_top_spenders");
const VELOCITY_ALERTS: &str = env!("CARGO_BIN_EXE_velocity_alerts");

const MINUTE_MS: i64 = 60_000;

/// The rows of every window, by its end and account; and those that are late for all.
type Windowed<'a> = (BTreeMap<(i64, String), Vec<&'a Transaction>>, Vec<&'a Transaction>);

/// The rows of every window of a minute that begins every `slide`, by its end and account; and the rows that are late for all.
/// A row is late for a window that had ended, and been kept for `lateness`, by the greatest time before it less the disorder.
fn windows(rows: &[Transaction], slide: i64, lateness: i64) -> Windowed<'_> {
    let (mut windows, mut late, mut greatest) = (BTreeMap::<_, Vec<_>>::new(), Vec::new(), i64::MIN / 2);
    for row in rows {
        let first = row.at_ms.div_euclid(slide) * slide + slide;
        let ends = (0..MINUTE_MS / slide).map(|number| first + number * slide);
        let on_time: Vec<_> = ends.filter(|end| end + lateness > greatest - DISORDER_MS).collect();
        if on_time.is_empty() {
            late.push(row);
        }
        for end in on_time {
            windows.entry((end, row.account.clone())).or_default().push(row);
        }
        greatest = greatest.max(row.at_ms);
    }
    (windows, late)
}

fn row<const N: usize>(end: i64, fields: [String; N]) -> Vec<String> {
    [rfc3339(end - MINUTE_MS), rfc3339(end)].into_iter().chain(fields).collect()
}

fn spend(rows: &[Transaction], lateness: i64) -> Vec<Vec<String>> {
    let totals = |((end, account), of): ((i64, String), Vec<&Transaction>)| {
        let amounts = || of.iter().map(|row| row.amount_cents);
        let sum = amounts().map(i128::from).sum::<i128>();
        let (least, greatest) = (amounts().min().unwrap(), amounts().max().unwrap());
        row(end, [account, of.len().to_string(), sum.to_string(), least.to_string(), greatest.to_string()])
    };
    windows(rows, 10_000, lateness).0.into_iter().map(totals).collect()
}

fn top(rows: &[Transaction], lateness: i64) -> Vec<Vec<String>> {
    let mut minutes = BTreeMap::<i64, Vec<(i128, String)>>::new();
    for ((end, account), of) in windows(rows, MINUTE_MS, lateness).0 {
        let sum = of.iter().map(|row| i128::from(row.amount_cents)).sum();
        minutes.entry(end).or_default().push((sum, account));
    }
    let ranked = minutes.into_iter().flat_map(|(end, mut sums)| {
        sums.sort_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(&b.1)));
        let ranked = sums.into_iter().take(10).enumerate();
        ranked.map(move |(at, (sum, account))| row(end, [(at + 1).to_string(), account, sum.to_string()]))
    });
    ranked.collect()
}

fn alerts(rows: &[Transaction], lateness: i64) -> Vec<Vec<String>> {
    let many = windows(rows, 10_000, lateness).0.into_iter().filter_map(|((end, account), of)| {
        let merchants = of.iter().map(|row| &row.merchant).collect::<BTreeSet<_>>().len();
        (merchants > 5).then(|| row(end, [account, merchants.to_string()]))
    });
    many.collect()
}

/// A query, its columns, its answer, and how wide its windows slide.
type Query = (&'static str, &'static [&'static str], fn(&[Transaction], i64) -> Vec<Vec<String>>, i64);

const QUERIES: [Query; 3] = [
    (
        SPEND_BY_MINUTE,
        &["window_start", "window_end", "account", "count", "sum_cents", "min_cents", "max_cents"],
        spend,
        10_000,
    ),
    (TOP_SPENDERS, &["window_start", "window_end", "rank", "account", "sum_cents"], top, MINUTE_MS),
    (VELOCITY_ALERTS, &["window_start", "window_end", "account", "merchants"], alerts, 10_000),
];

/// The words of a command line; `{}` is the folder.
fn typed(folder: &Path, line: &str) -> Vec<String> {
    line.split_whitespace().map(|word| word.replace("{}", folder.to_str().unwrap())).collect()
}

#[test]
fn answers_are_those_of_the_rows_on_any_number_of_workers() {
    let mut all_late = 0;
    for seed in 1..=2 {
        let rows = wild(seed, 12_000);
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("in.csv"), csv_of(&rows, &COLUMNS)).unwrap();
        fs::write(folder.path().join("in.ndjson"), ndjson_of(&rows)).unwrap();
        for (program, columns, answer, slide) in QUERIES {
            for (input, lateness, workers) in [("csv", 0, 1), ("ndjson", 0, 2), ("csv", 15_000, 2)] {
                let line = format!(
                    "--{input} {{}}/in.{input} --out {{}}/out.csv --late {{}}/late.csv --until-end -w {workers} \
                     --allowed-lateness {lateness}ms --in-flight 1MiB --epoch 10ms"
                );
                run(program, typed(folder.path(), &line)).code(0);
                let expected = answer(&rows, lateness);
                assert!(expected.len() > 100, "the data is too tame: {} rows", expected.len());
                same_rows(&rows_of(&folder.path().join("out.csv"), columns), &expected);
                let late = windows(&rows, slide, lateness).1;
                all_late += late.len();
                let late: Vec<Vec<String>> =
                    late.iter().map(|row| COLUMNS.map(|name| row.column(name)).to_vec()).collect();
                same_rows(&rows_of(&folder.path().join("late.csv"), &COLUMNS), &late);
            }
        }
    }
    // Some of the runs have none: a minute that slides not at all and is kept for 15 s more.
    assert!(all_late > 500, "the data is too tame: {all_late} late");
}

#[test]
fn answers_are_the_same_when_the_query_is_killed() {
    let mut random = Rng::with_seed(7);
    for (number, (program, columns, answer, _)) in QUERIES.into_iter().enumerate() {
        let rows = wild(40 + number as u64, 30_000);
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("in.ndjson"), ndjson_of(&rows)).unwrap();
        let line = "--ndjson {}/in.ndjson --out {}/out.csv --state {}/state --until-end --allowed-lateness 5s \
                    --in-flight 1MiB --epoch 5ms --snapshot-every 15ms --progress off";
        let (mut kills, mut tries) = (0, 0);
        while kills < 5 && tries < 40 {
            tries += 1;
            let mut words = typed(folder.path(), line);
            words.extend(["-w".into(), (1 + tries % 2).to_string()]);
            let mut running = start(program, &words);
            let (begun, moment) = (Instant::now(), Duration::from_millis(random.u64(40..500)));
            while begun.elapsed() < moment && running.is_alive() {
                std::thread::sleep(Duration::from_millis(3));
            }
            running.kill();
            if !running.end_or_killed().was_killed() {
                break;
            }
            kills += 1;
        }
        assert!(kills > 0, "{program} was never killed");
        for workers in ["2", "1"] {
            let mut words = typed(folder.path(), line);
            words.extend(["-w".into(), workers.into()]);
            run(program, words).code(0);
            same_rows(&rows_of(&folder.path().join("out.csv"), columns), &answer(&rows, 5_000));
        }
    }
}
