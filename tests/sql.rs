//! The queries, as processes, answer what a batch engine answers that is asked in SQL: row for row, on any number of workers,
//! with late records allowed or not, killed or not.
//!
//! The engine is SQLite. It gets the rows of the input, numbered, and nothing that Tidegate computed: which of them are late is
//! said in SQL, too.

#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

#[path = "common/run.rs"]
mod run;
#[path = "common/transactions.rs"]
mod transactions;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use fastrand::Rng;
use run::{run, start};
use rusqlite::Connection;
use rusqlite::types::ValueRef;
use transactions::{COLUMNS, DISORDER_MS, Transaction, csv_of, ndjson_of, rfc3339, rows_of, same_rows, wild};

/// A query, and how to ask SQLite for the same.
struct Query {
    program: &'static str,
    /// The columns of its output, as they are called there.
    columns: &'static [&'static str],
    /// Its answer; `{late}` is the allowed lateness.
    sql: String,
    /// How long its windows are and how often there is one, in milliseconds: those of a record begin and end at multiples of that.
    /// `None` if records are late by their own time.
    windows: Option<(i64, i64)>,
    /// Whether it shows changes, with a last column `diff`.
    changes: bool,
}

const TOTALS: &str = "COUNT(*) AS count, SUM(amount_cents) AS sum_cents, MIN(amount_cents) AS min_cents, \
                      MAX(amount_cents) AS max_cents";

/// Rows with the end of each window that they are in time for.
fn placed((size, slide): (i64, i64)) -> String {
    let last = size / slide - 1;
    format!(
        "WITH RECURSIVE slides(k) AS (VALUES (0) UNION ALL SELECT k + 1 FROM slides WHERE k < {last}), \
         placed AS (SELECT *, at_ms / {slide} * {slide} + {slide} * (k + 1) AS window_end FROM judged, slides), \
         windowed AS (SELECT *, window_end - {size} AS window_start FROM placed WHERE window_end + {{late}} > mark) "
    )
}

/// Rows that are in time, numbered by how often their account had been silent for so long.
fn sessions(gap: i64) -> String {
    let order = "(PARTITION BY account ORDER BY at_ms, n)";
    format!(
        "WITH gaps AS (SELECT *, at_ms - LAG(at_ms) OVER {order} AS gap FROM judged WHERE at_ms + {{late}} >= mark), \
         numbered AS (SELECT *, SUM(gap IS NULL OR gap >= {gap}) OVER {order} AS session FROM gaps) "
    )
}

fn queries() -> Vec<Query> {
    let totals = &["window_start", "window_end", "account", "count", "sum_cents", "min_cents", "max_cents"];
    let windowed = |program, columns, windows, select: &str| {
        let sql = placed(windows) + select;
        Query { program, columns, sql, windows: Some(windows), changes: false }
    };
    let (ten_seconds, minute, sliding) = ((10_000, 10_000), (60_000, 60_000), (60_000, 10_000));
    let by_account = format!(
        "SELECT window_start, window_end, account, {TOTALS} FROM windowed GROUP BY window_start, window_end, account"
    );
    let late_report = "SELECT at_ms / 10000 * 10000 AS window_start, at_ms / 10000 * 10000 + 10000 AS window_end, \
                       COUNT(*) AS late, SUM(amount_cents) AS late_cents, COUNT(DISTINCT account) AS accounts \
                       FROM judged WHERE at_ms / 10000 * 10000 + 10000 + {late} <= mark GROUP BY at_ms / 10000";
    let balances = "SELECT holder, SUM(cents) AS balance_cents FROM (SELECT account AS holder, amount_cents AS cents FROM judged \
                    UNION ALL SELECT merchant, -amount_cents FROM judged) GROUP BY holder";
    vec![
        windowed(env!("CARGO_BIN_EXE_account_totals"), totals, ten_seconds, &by_account),
        windowed(env!("CARGO_BIN_EXE_spend_by_minute"), totals, sliding, &by_account),
        windowed(
            env!("CARGO_BIN_EXE_velocity_alerts"),
            &["window_start", "window_end", "account", "merchants"],
            sliding,
            "SELECT window_start, window_end, account, COUNT(DISTINCT merchant) AS merchants FROM windowed \
             GROUP BY window_start, window_end, account HAVING merchants > 5",
        ),
        windowed(
            env!("CARGO_BIN_EXE_top_spenders"),
            &["window_start", "window_end", "rank", "account", "sum_cents"],
            minute,
            ", sums AS (SELECT window_start, window_end, account, SUM(amount_cents) AS sum_cents FROM windowed \
             GROUP BY window_start, window_end, account), \
             ranked AS (SELECT *, ROW_NUMBER() OVER (PARTITION BY window_end ORDER BY sum_cents DESC, account) AS rank FROM sums) \
             SELECT window_start, window_end, rank, account, sum_cents FROM ranked WHERE rank <= 10",
        ),
        Query {
            program: env!("CARGO_BIN_EXE_account_sessions"),
            columns: totals,
            sql: sessions(30_000)
                + &format!(
                    "SELECT MIN(at_ms) AS window_start, MAX(at_ms) + 30000 AS window_end, account, {TOTALS} FROM numbered \
                     GROUP BY account, session"
                ),
            windows: None,
            changes: false,
        },
        Query {
            program: env!("CARGO_BIN_EXE_silent_accounts"),
            columns: &["account", "last_at", "silent_at", "transactions"],
            sql: sessions(300_000)
                + "SELECT account, MAX(at_ms) AS last_at, MAX(at_ms) + 300000 AS silent_at, COUNT(*) AS transactions FROM numbered \
                   GROUP BY account, session",
            windows: None,
            changes: false,
        },
        Query {
            program: env!("CARGO_BIN_EXE_late_report"),
            columns: &["window_start", "window_end", "late", "late_cents", "accounts"],
            sql: late_report.to_owned(),
            windows: Some(ten_seconds),
            changes: true,
        },
        Query {
            program: env!("CARGO_BIN_EXE_balances"),
            columns: &["holder", "balance_cents"],
            sql: balances.to_owned(),
            windows: None,
            changes: true,
        },
    ]
}

impl Query {
    /// Whether any record can be late for it.
    fn judges(&self) -> bool {
        self.program != env!("CARGO_BIN_EXE_balances")
    }

    /// What it must answer.
    fn answer(&self, database: &Connection, lateness: i64) -> Vec<Vec<String>> {
        ask(database, &self.sql.replace("{late}", &lateness.to_string()), self.columns)
    }

    /// The records that are late for all of their windows.
    fn late(&self, database: &Connection, lateness: i64) -> Vec<Vec<String>> {
        let is_late = match self.windows {
            Some((size, slide)) => format!("at_ms / {slide} * {slide} + {size} + {lateness} <= mark"),
            None => format!("at_ms + {lateness} < mark"),
        };
        ask(database, &format!("SELECT {} FROM judged WHERE {is_late}", COLUMNS.join(", ")), &COLUMNS)
    }

    /// What it has answered: of changes, what is there after all of them.
    fn answered(&self, out: &Path) -> Vec<Vec<String>> {
        if !self.changes {
            return rows_of(out, self.columns);
        }
        let columns = [self.columns, &["diff"]].concat();
        let mut counts = BTreeMap::<Vec<String>, i64>::new();
        for mut row in rows_of(out, &columns) {
            let diff: i64 = row.pop().unwrap().parse().unwrap();
            *counts.entry(row).or_default() += diff;
        }
        let repeated = |(row, count): (Vec<String>, i64)| {
            assert!(count >= 0, "{row:?} is there {count} times");
            vec![row; count as usize]
        };
        counts.into_iter().flat_map(repeated).collect()
    }
}

/// A database with the rows, numbered, and with what each is judged by: how far its partition, which is the file, had come.
fn database(rows: &[Transaction]) -> Connection {
    let mut database = Connection::open_in_memory().unwrap();
    let table = "CREATE TABLE transactions (n INTEGER PRIMARY KEY, id INTEGER, account TEXT, merchant TEXT, amount_cents INTEGER, \
                 currency TEXT, at_ms INTEGER)";
    database.execute(table, ()).unwrap();
    let filling = database.transaction().unwrap();
    {
        let mut insert = filling.prepare("INSERT INTO transactions VALUES (?, ?, ?, ?, ?, ?, ?)").unwrap();
        for (n, t) in rows.iter().enumerate() {
            let (n, id) = (n as i64, t.id as i64);
            insert.execute((n, id, &t.account, &t.merchant, t.amount_cents, &t.currency, t.at_ms)).unwrap();
        }
    }
    filling.commit().unwrap();
    let before = "MAX(at_ms) OVER (ORDER BY n ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)";
    let view = format!(
        "CREATE TABLE judged AS SELECT *, COALESCE({before} - {DISORDER_MS}, -1000000000000000) AS mark FROM transactions"
    );
    database.execute(&view, ()).unwrap();
    database
}

/// The rows of an answer as texts: times as the queries write them. Fails unless its columns are these.
fn ask(database: &Connection, sql: &str, columns: &[&str]) -> Vec<Vec<String>> {
    let mut statement = database.prepare(sql).unwrap_or_else(|error| panic!("{error} in {sql}"));
    assert_eq!(statement.column_names().collect::<Vec<_>>(), columns);
    let is_time = |name: &str| name.starts_with("window_") || name == "last_at" || name == "silent_at";
    let rows = statement.query_map((), |row| {
        let field = |(at, name): (usize, &&str)| match row.get_ref(at)? {
            ValueRef::Integer(time) if is_time(name) => Ok(rfc3339(time)),
            ValueRef::Integer(number) => Ok(number.to_string()),
            ValueRef::Text(text) => Ok(String::from_utf8(text.to_vec()).unwrap()),
            other => panic!("{other:?} in {name}"),
        };
        columns.iter().enumerate().map(field).collect()
    });
    rows.unwrap().map(|row: rusqlite::Result<Vec<String>>| row.unwrap()).collect()
}

/// Wild rows whose sums SQLite can compute, which has no integers of more than 64 bits.
fn rows(seed: u64, count: usize) -> Vec<Transaction> {
    let mut rows = wild(seed, count);
    rows.iter_mut().for_each(|row| row.amount_cents %= 1_000_000_000_000);
    rows
}

/// The words of a command line; `{}` is the folder.
fn typed(folder: &Path, line: &str) -> Vec<String> {
    line.split_whitespace().map(|word| word.replace("{}", folder.to_str().unwrap())).collect()
}

#[test]
fn answers_are_those_of_sql_on_any_number_of_workers() {
    let (mut all_late, mut all_rows) = (0, 0);
    for seed in 1..=2 {
        let rows = rows(seed, 12_000);
        let database = database(&rows);
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("in.csv"), csv_of(&rows, &COLUMNS)).unwrap();
        fs::write(folder.path().join("in.ndjson"), ndjson_of(&rows)).unwrap();
        for query in queries() {
            for (input, lateness, workers) in [("csv", 0, 1), ("ndjson", 0, 2), ("csv", 15_000, 2)] {
                let mut line = format!(
                    "--{input} {{}}/in.{input} --out {{}}/out.csv --until-end -w {workers} --in-flight 1MiB --epoch 10ms"
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
    // Not every query has late records each time: a minute that is kept for 15 s more misses none.
    assert!(all_late > 3_000 && all_rows > 30_000, "the data are too tame: {all_late} late, {all_rows} rows");
}

#[test]
fn answers_are_the_same_when_the_query_is_killed() {
    let mut random = Rng::with_seed(7);
    for (number, query) in queries().into_iter().enumerate() {
        let rows = rows(40 + number as u64, 30_000);
        let expected = query.answer(&database(&rows), if query.judges() { 5_000 } else { 0 });
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("in.ndjson"), ndjson_of(&rows)).unwrap();
        let mut line = String::from(
            "--ndjson {}/in.ndjson --out {}/out.csv --state {}/state --until-end --in-flight 1MiB --epoch 5ms \
             --snapshot-every 15ms --progress off",
        );
        if query.judges() {
            line += " --allowed-lateness 5s";
        }
        let (mut kills, mut tries) = (0, 0);
        while kills < 5 && tries < 40 {
            tries += 1;
            let mut words = typed(folder.path(), &line);
            words.extend(["-w".into(), (1 + tries % 2).to_string()]);
            let mut running = start(query.program, &words);
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
        assert!(kills > 0, "{} was never killed", query.program);
        for workers in ["2", "1"] {
            let mut words = typed(folder.path(), &line);
            words.extend(["-w".into(), workers.into()]);
            run(query.program, words).code(0);
            same_rows(&query.answered(&folder.path().join("out.csv")), &expected);
        }
    }
}
