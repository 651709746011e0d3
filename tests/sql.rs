//! The queries, as processes, give the results of a batch engine for the same question in SQL: row for row, on any
//! number of workers, with or without allowed lateness, killed or not.
//!
//! The engine is SQLite. It gets the rows of the input, numbered, and nothing that Tidegate computed: lateness is
//! expressed in SQL, too.

#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

#[path = "common/run.rs"]
mod run;
#[path = "common/sql.rs"]
mod sql;
#[path = "common/transactions.rs"]
mod transactions;

use std::fs;
use std::path::Path;
use std::time::Duration;

use fastrand::Rng;
use run::{TIDEGATE, check_contains, run, start};
use sql::{database, merchants_csv, queries, rows};
use transactions::{COLUMNS, csv_of, ndjson_of, rows_of, same_rows};

/// Returns the words of a command line; `{}` is the folder.
fn typed(folder: &Path, line: &str) -> Vec<String> {
    line.split_whitespace().map(|word| word.replace("{}", folder.to_str().unwrap())).collect()
}

#[test]
fn answers_are_those_of_sql_on_any_number_of_workers() {
    let (mut all_late, mut all_rows) = (0, 0);
    for seed in 1..=2 {
        let rows = rows(seed, 12_000);
        let database = database([rows.as_slice()]);
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("in.csv"), csv_of(&rows, &COLUMNS)).unwrap();
        fs::write(folder.path().join("in.ndjson"), ndjson_of(&rows)).unwrap();
        fs::write(folder.path().join("merchants.csv"), merchants_csv()).unwrap();
        for query in queries() {
            for (input, lateness, workers) in [("csv", 0, 1), ("ndjson", 0, 2), ("csv", 15_000, 2)] {
                let mut line = format!(
                    "--{input} {{}}/in.{input} --out {{}}/out.csv --until-end -w {workers} --in-flight 1MiB --epoch 10ms {}",
                    query.flags
                );
                if query.judges() {
                    line += &format!(" --late {{}}/late.csv --allowed-lateness {lateness}ms");
                }
                run(query.program, typed(folder.path(), &line)).code(0);
                let expected = query.answer(&database, lateness);
                assert!(expected.len() >= 50, "{} has only {} rows", query.program, expected.len());
                same_rows(&query.answered(&folder.path().join("out.csv")), &expected);
                all_rows += expected.len();
                if query.judges() {
                    let late = query.late(&database, lateness);
                    same_rows(&rows_of(&folder.path().join("late.csv"), &COLUMNS), &late);
                    all_late += late.len();
                }
            }
        }
    }
    // Not every query has late records each time: a minute with a lateness of 15 s misses none.
    assert!(all_late > 3_000 && all_rows > 30_000, "the data are too tame: {all_late} late, {all_rows} rows");
}

#[test]
fn answers_are_the_same_when_the_query_is_killed() {
    let mut random = Rng::with_seed(7);
    for (number, query) in queries().into_iter().enumerate() {
        let rows = rows(40 + number as u64, 30_000);
        let expected = query.answer(&database([rows.as_slice()]), if query.judges() { 5_000 } else { 0 });
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("in.ndjson"), ndjson_of(&rows)).unwrap();
        fs::write(folder.path().join("merchants.csv"), merchants_csv()).unwrap();
        let mut line = String::from(
            "--ndjson {}/in.ndjson --out {}/out.csv --state {}/state --until-end --in-flight 1MiB --epoch 5ms \
             --snapshot-every 15ms --progress off ",
        ) + query.flags;
        if query.judges() {
            line += " --allowed-lateness 5s";
        }
        let (mut kills, mut tries) = (0, 0);
        while kills < 5 && tries < 40 {
            tries += 1;
            let mut words = typed(folder.path(), &line);
            words.extend(["-w".into(), (1 + tries % 2).to_string()]);
            let moment = Duration::from_millis(random.u64(40..(200 + 60 * kills)));
            if !start(query.program, &words).killed_after(moment).was_killed() {
                break;
            }
            kills += 1;
        }
        assert!(kills > 0, "{} was never killed", query.program);
        for workers in ["2", "1"] {
            let mut words = typed(folder.path(), &line);
            words.extend(["-w".into(), workers.into()]);
            run(query.program, words).code(0);
            same_rows(&query.answered(&folder.path().join("out.csv")), &expected);
        }
    }
}

#[test]
fn revenue_by_category_is_that_of_sql_on_two_processes_that_are_killed() {
    let query = queries().into_iter().find(|query| query.program == "category_revenue").unwrap();
    let rows = rows(77, 20_000);
    let expected = query.answer(&database([rows.as_slice()]), 0);
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("in.csv"), csv_of(&rows, &COLUMNS)).unwrap();
    fs::write(folder.path().join("merchants.csv"), merchants_csv()).unwrap();
    let line = "category_revenue --csv {}/in.csv --merchants {}/merchants.csv --out {}/out.csv --state {}/state \
                --until-end --in-flight 1MiB --epoch 5ms --snapshot-every 15ms --progress off";
    let up = |processes: &str| {
        let mut words: Vec<String> = ["up", "-n", processes, "--"].map(str::to_owned).to_vec();
        words.extend(typed(folder.path(), line));
        words
    };
    let (mut random, mut kills) = (Rng::with_seed(9), 0);
    for round in 0..6 {
        let moment = Duration::from_millis(random.u64(150..(700 + 100 * round)));
        kills += usize::from(start(TIDEGATE, up("2")).killed_after(moment).was_killed());
    }
    assert!(kills > 0, "it was never killed");
    for processes in ["2", "1"] {
        run(TIDEGATE, up(processes)).code(0);
        same_rows(&query.answered(&folder.path().join("out.csv")), &expected);
    }
    // A file that has changed behind the state is another one.
    fs::write(folder.path().join("merchants.csv"), "merchant,category\nnobody,nothing\n").unwrap();
    check_contains(run(query.program, typed(folder.path(), &line[query.program.len()..])).error(1), &["merchants"]);
}
