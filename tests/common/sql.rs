//! Every query of the project, and the same question in SQL, for SQLite.
//!
//! SQLite gets the rows of the input, numbered, and nothing that Tidegate computed: lateness is expressed in SQL, too.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of it")]
#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

use std::collections::BTreeMap;
use std::path::Path;

use rusqlite::Connection;
use rusqlite::types::ValueRef;

use super::transactions::{COLUMNS, DISORDER_MS, NAMES, Transaction, csv_line, rfc3339, rows_of, wild};

/// A query, and the same question in SQL.
pub struct Query {
    pub program: &'static str,
    /// Names of the columns of its output.
    pub columns: &'static [&'static str],
    /// SQL of its results; `{late}` stands for the allowed lateness.
    sql: String,
    /// Size and slide of its windows in milliseconds, which are aligned to multiples of the slide; `None` if lateness
    /// is judged by a record's own time.
    windows: Option<(i64, i64)>,
    /// `true` if the output is a changelog, with a last column `diff`.
    pub changes: bool,
    /// Flags of its own; `{}` stands for the folder.
    pub flags: &'static str,
}

const TOTALS: &str = "COUNT(*) AS count, SUM(amount_cents) AS sum_cents, MIN(amount_cents) AS min_cents, \
                      MAX(amount_cents) AS max_cents";

/// SQL of rows with the end of each window for which they are on time.
fn placed((size, slide): (i64, i64)) -> String {
    let last = size / slide - 1;
    format!(
        "WITH RECURSIVE slides(k) AS (VALUES (0) UNION ALL SELECT k + 1 FROM slides WHERE k < {last}), \
         placed AS (SELECT *, at_ms / {slide} * {slide} + {slide} * (k + 1) AS window_end FROM judged, slides), \
         windowed AS (SELECT *, window_end - {size} AS window_start FROM placed WHERE window_end + {{late}} > mark) "
    )
}

/// SQL of rows that are on time, numbered by session: a new one begins after a silence of at least `gap`.
fn sessions(gap: i64) -> String {
    let order = "(PARTITION BY account ORDER BY at_ms, partition, n)";
    format!(
        "WITH gaps AS (SELECT *, at_ms - LAG(at_ms) OVER {order} AS gap FROM judged WHERE at_ms + {{late}} >= mark), \
         numbered AS (SELECT *, SUM(gap IS NULL OR gap >= {gap}) OVER {order} AS session FROM gaps) "
    )
}

pub fn queries() -> Vec<Query> {
    let totals = &["window_start", "window_end", "account", "count", "sum_cents", "min_cents", "max_cents"];
    let windowed = |program, columns, windows, select: &str| {
        let sql = placed(windows) + select;
        Query { program, columns, sql, windows: Some(windows), changes: false, flags: "" }
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
    let by_category = "SELECT window_start, window_end, COALESCE(category, '?') AS category, COUNT(*) AS count, \
                       SUM(amount_cents) AS sum_cents FROM windowed LEFT JOIN merchants USING (merchant) \
                       GROUP BY window_start, window_end, COALESCE(category, '?')";
    let revenue = &["window_start", "window_end", "category", "count", "sum_cents"];
    vec![
        windowed("account_totals", totals, ten_seconds, &by_account),
        windowed("spend_by_minute", totals, sliding, &by_account),
        windowed(
            "velocity_alerts",
            &["window_start", "window_end", "account", "merchants"],
            sliding,
            "SELECT window_start, window_end, account, COUNT(DISTINCT merchant) AS merchants FROM windowed \
             GROUP BY window_start, window_end, account HAVING merchants > 5",
        ),
        windowed(
            "top_spenders",
            &["window_start", "window_end", "rank", "account", "sum_cents"],
            minute,
            ", sums AS (SELECT window_start, window_end, account, SUM(amount_cents) AS sum_cents FROM windowed \
             GROUP BY window_start, window_end, account), \
             ranked AS (SELECT *, ROW_NUMBER() OVER (PARTITION BY window_end ORDER BY sum_cents DESC, account) AS rank FROM sums) \
             SELECT window_start, window_end, rank, account, sum_cents FROM ranked WHERE rank <= 10",
        ),
        Query {
            flags: "--merchants {}/merchants.csv",
            ..windowed("category_revenue", revenue, ten_seconds, by_category)
        },
        Query {
            program: "account_sessions",
            columns: totals,
            sql: sessions(30_000)
                + &format!(
                    "SELECT MIN(at_ms) AS window_start, MAX(at_ms) + 30000 AS window_end, account, {TOTALS} FROM numbered \
                     GROUP BY account, session"
                ),
            windows: None,
            changes: false,
            flags: "",
        },
        Query {
            program: "silent_accounts",
            columns: &["account", "last_at", "silent_at", "transactions"],
            sql: sessions(300_000)
                + "SELECT account, MAX(at_ms) AS last_at, MAX(at_ms) + 300000 AS silent_at, COUNT(*) AS transactions FROM numbered \
                   GROUP BY account, session",
            windows: None,
            changes: false,
            flags: "",
        },
        Query {
            program: "late_report",
            columns: &["window_start", "window_end", "late", "late_cents", "accounts"],
            sql: late_report.to_owned(),
            windows: Some(ten_seconds),
            changes: true,
            flags: "",
        },
        Query {
            program: "balances",
            columns: &["holder", "balance_cents"],
            sql: balances.to_owned(),
            windows: None,
            changes: true,
            flags: "",
        },
    ]
}

impl Query {
    /// Returns `true` if a record can be late for the query.
    pub fn judges(&self) -> bool {
        self.program != "balances"
    }

    /// Computes the expected results.
    pub fn answer(&self, database: &Connection, lateness: i64) -> Vec<Vec<String>> {
        ask(database, &self.sql.replace("{late}", &lateness.to_string()), self.columns)
    }

    /// Computes the records that are late for all of their windows.
    pub fn late(&self, database: &Connection, lateness: i64) -> Vec<Vec<String>> {
        let is_late = match self.windows {
            Some((size, slide)) => format!("at_ms / {slide} * {slide} + {size} + {lateness} <= mark"),
            None => format!("at_ms + {lateness} < mark"),
        };
        ask(database, &format!("SELECT {} FROM judged WHERE {is_late}", COLUMNS.join(", ")), &COLUMNS)
    }

    /// Reads the results of a run; changes are added up.
    pub fn answered(&self, out: &Path) -> Vec<Vec<String>> {
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

/// Merchants of the queries that look up their categories, in the order of their file; the last row of one counts.
fn merchants() -> Vec<(String, String)> {
    let named = NAMES.iter().enumerate().map(|(number, name)| ((*name).to_owned(), number));
    let numbered = (NAMES.len()..50).map(|number| (format!("account-{number}"), number));
    let known = named.chain(numbered).filter(|(_, number)| number % 9 != 0);
    let first = known.clone().map(|(merchant, number)| (merchant, format!("moved {}", number % 2)));
    first.chain(known.map(|(merchant, number)| (merchant, NAMES[number % 5].to_owned()))).collect()
}

/// Returns the file of merchants.
pub fn merchants_csv() -> String {
    let rows = merchants().into_iter().map(|(merchant, category)| csv_line([merchant, category]));
    std::iter::once(csv_line(["merchant", "category"])).chain(rows).collect()
}

/// Creates a database with the numbered rows of some partitions, and the watermark of each row's partition before it.
pub fn database<'a>(partitions: impl IntoIterator<Item = &'a [Transaction]>) -> Connection {
    let mut database = Connection::open_in_memory().unwrap();
    let table = "CREATE TABLE transactions (partition INTEGER, n INTEGER, id INTEGER, account TEXT, merchant TEXT, amount_cents INTEGER, \
                 currency TEXT, at_ms INTEGER)";
    database.execute(table, ()).unwrap();
    database.execute("CREATE TABLE merchants (merchant TEXT PRIMARY KEY, category TEXT)", ()).unwrap();
    let filling = database.transaction().unwrap();
    {
        let mut insert = filling.prepare("INSERT INTO transactions VALUES (?, ?, ?, ?, ?, ?, ?, ?)").unwrap();
        for (partition, rows) in partitions.into_iter().enumerate() {
            for (n, t) in rows.iter().enumerate() {
                let place = (partition as i64, n as i64);
                let row = (t.id as i64, &t.account, &t.merchant, t.amount_cents, &t.currency, t.at_ms);
                insert.execute((place.0, place.1, row.0, row.1, row.2, row.3, row.4, row.5)).unwrap();
            }
        }
        let mut insert = filling.prepare("INSERT OR REPLACE INTO merchants VALUES (?, ?)").unwrap();
        for merchant in merchants() {
            insert.execute(merchant).unwrap();
        }
    }
    filling.commit().unwrap();
    let before = "MAX(at_ms) OVER (PARTITION BY partition ORDER BY n ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)";
    let view = format!(
        "CREATE TABLE judged AS SELECT *, COALESCE({before} - {DISORDER_MS}, -1000000000000000) AS mark FROM transactions"
    );
    database.execute(&view, ()).unwrap();
    database
}

/// Returns the rows of a result as texts, times in the format of the queries. Fails unless these are its columns.
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

/// Generates wild rows whose sums fit into SQLite's integers of 64 bits.
pub fn rows(seed: u64, count: usize) -> Vec<Transaction> {
    let mut rows = wild(seed, count);
    rows.iter_mut().for_each(|row| row.amount_cents %= 1_000_000_000_000);
    rows
}
