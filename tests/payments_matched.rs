//! `payments_matched` gives the answer of SQLite to the same question: pairs within an hour, orders and payments without
//! one, and late records; on any number of workers and processes, killed or not.
#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

#[path = "common/run.rs"]
mod run;

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use fastrand::Rng;
use run::{TIDEGATE, check_contains, run, start};
use rusqlite::Connection;
use rusqlite::types::Value;
use tempfile::TempDir;
use tidegate::EventTime;

const PROGRAM: &str = "payments_matched";
const HOUR_MS: i64 = 3_600_000;
/// The time of the first order.
const START_MS: i64 = 1_767_225_600_000;
/// Columns of the results; the last two are times.
const COLUMNS: [&str; 7] = ["state", "order", "payment", "ordered_cents", "paid_cents", "ordered_at", "paid_at"];
const LATE_COLUMNS: [&str; 5] = ["input", "order", "payment", "cents", "at_ms"];

/// Orders: order, cents, time; and payments: payment, order, cents, time; each in the order of arrival.
type Rows = (Vec<[i64; 3]>, Vec<[i64; 4]>);

/// Generates orders and payments: most are paid within the hour, some twice, some too late, some never; some payments are
/// of no order. Both come somewhat out of order, and some late.
fn generate(seed: u64, count: i64) -> Rows {
    let mut random = Rng::with_seed(seed);
    let (mut orders, mut payments) = (Vec::new(), Vec::new());
    for order in 0..count {
        let at = START_MS + order * 2_000 + random.i64(0..2_000);
        orders.push(([order, random.i64(1..100_000), at], at));
        for _ in 0..[0, 1, 1, 1, 1, 2][random.usize(0..6)] {
            let delay = match random.u8(0..20) {
                0 => HOUR_MS,
                1 => HOUR_MS + 1,
                2 => -random.i64(0..HOUR_MS + 60_000),
                _ => random.i64(0..HOUR_MS + HOUR_MS / 5),
            };
            let order = if random.u8(0..30) == 0 { count + order } else { order };
            payments.push(([0, order, random.i64(1..100_000), at + delay], at + delay));
        }
    }
    // Records arrive behind their times: within two seconds of them, or some minutes.
    let arrival = |random: &mut Rng, at: i64| {
        at + if random.u8(0..20) == 0 { random.i64(2_000..400_000) } else { random.i64(0..1_900) }
    };
    orders.iter_mut().for_each(|row| row.1 = arrival(&mut random, row.1));
    payments.iter_mut().for_each(|row| row.1 = arrival(&mut random, row.1));
    orders.sort_by_key(|row| row.1);
    payments.sort_by_key(|row| row.1);
    let mut payments: Vec<_> = payments.into_iter().map(|row| row.0).collect();
    payments.iter_mut().zip(0..).for_each(|(row, number)| row[0] = number);
    (orders.into_iter().map(|row| row.0).collect(), payments)
}

/// The files of a run, and what SQLite expects of it.
struct Case {
    folder: TempDir,
    expected: Vec<Vec<String>>,
    late: Vec<Vec<String>>,
}

impl Case {
    fn new(seed: u64, count: i64) -> Case {
        let (orders, payments) = generate(seed, count);
        let folder = tempfile::tempdir().unwrap();
        let mut text = String::from("order,customer,cents,at_ms\n");
        orders.iter().for_each(|[order, cents, at]| writeln!(text, "{order},c{},{cents},{at}", order % 7).unwrap());
        fs::write(folder.path().join("orders.csv"), text).unwrap();
        let mut text = String::new();
        for [payment, order, cents, at] in &payments {
            writeln!(text, r#"{{"payment":{payment},"order":{order},"cents":{cents},"at_ms":{at}}}"#).unwrap();
        }
        fs::write(folder.path().join("payments.ndjson"), text).unwrap();
        let (expected, late) = answers(&(orders, payments));
        for state in ["matched", "unpaid", "unknown"] {
            let rows = expected.iter().filter(|row| row[0] == state).count();
            assert!(rows > 100, "the data is too tame: {rows} rows are {state}");
        }
        assert!(late.len() > 100, "the data is too tame: {} late records", late.len());
        Case { folder, expected, late }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Returns the words of a command line; `{}` is the folder.
    fn words(&self, more: &str) -> Vec<String> {
        let line = "--csv {}/orders.csv --payments {}/payments.ndjson --out {}/out.csv --late {}/late.csv --until-end \
                    --in-flight 1MiB --epoch 5ms --progress off";
        let words = line.split_whitespace().chain(more.split_whitespace());
        words.map(|word| word.replace("{}", self.folder.path().to_str().unwrap())).collect()
    }

    #[track_caller]
    fn check(&self) {
        same(&rows_of(&self.path("out.csv"), &COLUMNS), &self.expected);
        same(&rows_of(&self.path("late.csv"), &LATE_COLUMNS), &self.late);
    }
}

/// Returns the rows and the late records that SQLite computes, sorted.
fn answers((orders, payments): &Rows) -> (Vec<Vec<String>>, Vec<Vec<String>>) {
    let mut database = Connection::open_in_memory().unwrap();
    let filling = database.transaction().unwrap();
    let tables = "CREATE TABLE o (n INTEGER PRIMARY KEY, payment INTEGER, number INTEGER, cents INTEGER, at_ms INTEGER);
                  CREATE TABLE p (n INTEGER PRIMARY KEY, payment INTEGER, number INTEGER, cents INTEGER, at_ms INTEGER);";
    filling.execute_batch(tables).unwrap();
    for (n, [order, cents, at]) in orders.iter().enumerate() {
        filling.execute("INSERT INTO o VALUES (?, NULL, ?, ?, ?)", (n as i64, order, cents, at)).unwrap();
    }
    for (n, [payment, order, cents, at]) in payments.iter().enumerate() {
        filling.execute("INSERT INTO p VALUES (?, ?, ?, ?, ?)", (n as i64, payment, order, cents, at)).unwrap();
    }
    // A record is late when it is more than two seconds behind one that came before it in its file.
    for table in ["o", "p"] {
        let before = "MAX(at_ms) OVER (ORDER BY n ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)";
        let judged = format!(
            "CREATE TABLE {table}j AS SELECT *, COALESCE(at_ms < {before} - 2000, 0) AS late FROM {table};
             CREATE TABLE {table}t AS SELECT * FROM {table}j WHERE NOT late;
             CREATE INDEX {table}i ON {table}t (number);"
        );
        filling.execute_batch(&judged).unwrap();
    }
    filling.commit().unwrap();
    let is_pair = format!("o.number = p.number AND ABS(o.at_ms - p.at_ms) <= {HOUR_MS}");
    let rows = format!(
        "SELECT 'matched', o.number, p.payment, o.cents, p.cents, o.at_ms, p.at_ms FROM ot o JOIN pt p ON {is_pair}
         UNION ALL SELECT 'unpaid', number, NULL, cents, NULL, at_ms, NULL FROM ot o
             WHERE NOT EXISTS (SELECT 1 FROM pt p WHERE {is_pair})
         UNION ALL SELECT 'unknown', number, payment, NULL, cents, NULL, at_ms FROM pt p
             WHERE NOT EXISTS (SELECT 1 FROM ot o WHERE {is_pair})"
    );
    let late = "SELECT 'orders', number, payment, cents, at_ms FROM oj WHERE late
                UNION ALL SELECT 'payments', number, payment, cents, at_ms FROM pj WHERE late";
    (selected(&database, &rows, 5), selected(&database, late, usize::MAX))
}

/// Returns the rows of a question as texts, sorted; columns from `times` on are times.
fn selected(database: &Connection, question: &str, times: usize) -> Vec<Vec<String>> {
    let mut statement = database.prepare(question).unwrap();
    let columns = statement.column_count();
    let text = |column: usize, value: Value| match value {
        Value::Null => String::new(),
        Value::Integer(millis) if column >= times => EventTime::from_millis(millis).to_string(),
        Value::Integer(number) => number.to_string(),
        Value::Text(text) => text,
        other => panic!("{other:?}"),
    };
    let found = statement.query_map((), |row| {
        (0..columns).map(|column| Ok(text(column, row.get(column)?))).collect::<Result<Vec<_>, _>>()
    });
    let mut rows: Vec<Vec<String>> = found.unwrap().map(Result::unwrap).collect();
    rows.sort();
    rows
}

fn rows_of(path: &Path, columns: &[&str]) -> Vec<Vec<String>> {
    let mut reader = csv::Reader::from_path(path).unwrap();
    assert_eq!(reader.headers().unwrap(), columns);
    let mut rows: Vec<Vec<String>> =
        reader.records().map(|row| row.unwrap().iter().map(str::to_owned).collect()).collect();
    rows.sort();
    rows
}

#[track_caller]
fn same(found: &[Vec<String>], expected: &[Vec<String>]) {
    let other: Vec<_> = found.iter().filter(|row| expected.binary_search(row).is_err()).take(10).collect();
    let lacks: Vec<_> = expected.iter().filter(|row| found.binary_search(row).is_err()).take(10).collect();
    let lengths = (found.len(), expected.len());
    assert!(found == expected, "there are {other:#?}, and should be {lacks:#?}; {lengths:?} rows");
}

#[test]
fn matches_are_those_of_sql_on_any_number_of_workers_and_processes() {
    let case = Case::new(1, 6_000);
    for workers in ["-w 1", "-w 2"] {
        run(PROGRAM, case.words(workers)).code(0);
        case.check();
    }
    // With a state no file is replaced.
    ["out.csv", "late.csv"].into_iter().for_each(|name| fs::remove_file(case.path(name)).unwrap());
    let up = ["up", "-n", "2", "--", PROGRAM].map(str::to_owned).into_iter();
    run(TIDEGATE, up.chain(case.words("--state {}/state"))).code(0);
    case.check();
}

#[test]
fn matches_are_the_same_when_the_query_is_killed() {
    let (case, mut random, mut kills) = (Case::new(2, 12_000), Rng::with_seed(5), 0);
    let state = "--state {}/state --snapshot-every 15ms";
    for round in 0..6_u64 {
        let mut words = case.words(&format!("{state} -w {}", 1 + round % 2));
        let mut program = PROGRAM;
        if round % 3 == 2 {
            program = TIDEGATE;
            words = ["up", "-n", "2", "--", PROGRAM].map(str::to_owned).into_iter().chain(case.words(state)).collect();
        }
        if start(program, words).killed_after(Duration::from_millis(random.u64(100..700))).was_killed() {
            kills += 1;
        }
    }
    assert!(kills > 0, "it was never killed");
    run(PROGRAM, case.words(&format!("{state} -w 2"))).code(0);
    case.check();
    run(PROGRAM, case.words(state)).code(0);
    case.check();
}

#[test]
fn no_input_is_an_output() {
    let case = Case::new(3, 2_000);
    let mut words = case.words("");
    let at = words.iter().position(|word| word.ends_with("out.csv")).unwrap();
    words[at] = case.path("payments.ndjson").display().to_string();
    check_contains(run(PROGRAM, words).error(2), &["is the file that is read"]);
    assert!(fs::metadata(case.path("payments.ndjson")).unwrap().len() > 0);
}
