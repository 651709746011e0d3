//! Generated transactions, files of them, and the results that `account_totals` must have: computed here from the
//! transactions, without the engine.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of it")]
#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

use std::collections::BTreeMap;
use std::path::Path;

use fastrand::Rng;
use serde::{Deserialize, Serialize};

/// Columns of a transaction, in the usual order.
pub const COLUMNS: [&str; 6] = ["id", "account", "merchant", "amount_cents", "currency", "at_ms"];

/// Columns of the result of `account_totals`.
pub const TOTALS: [&str; 7] = ["window_start", "window_end", "account", "count", "sum_cents", "min_cents", "max_cents"];

/// Size of the windows of `account_totals`, and the default of `--out-of-order`.
pub const SIZE_MS: i64 = 10_000;
pub const DISORDER_MS: i64 = 2_000;

/// 2025-01-01T00:00:00Z.
pub const START_MS: i64 = 1_735_689_600_000;

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Transaction {
    pub id: u64,
    pub account: String,
    pub merchant: String,
    pub amount_cents: i64,
    pub currency: String,
    pub at_ms: i64,
}

impl Transaction {
    pub fn new(id: u64, account: &str, amount_cents: i64, at_ms: i64) -> Self {
        let (account, merchant, currency) = (account.into(), "shop".into(), "EUR".into());
        Transaction { id, account, merchant, amount_cents, currency, at_ms }
    }

    /// Returns the value of a column, as text; an arbitrary text for a column that a transaction does not have.
    pub fn column(&self, name: &str) -> String {
        match name {
            "id" => self.id.to_string(),
            "account" => self.account.clone(),
            "merchant" => self.merchant.clone(),
            "amount_cents" => self.amount_cents.to_string(),
            "currency" => self.currency.clone(),
            "at_ms" => self.at_ms.to_string(),
            other => format!("{other} of {}, \"unused\"", self.id),
        }
    }
}

/// Names that break careless readers and writers of CSV, JSON or text.
pub const NAMES: [&str; 14] = [
    "plain",
    "with, comma",
    "with \"quotes\"",
    "two\nlines",
    "carriage\r\nreturn",
    "  spaces  ",
    "",
    "\"",
    ",,,",
    "Zoë Müller-Łukaszewicz",
    "口座-一",
    "🏦🇪🇺",
    "e\u{301} combining",
    "NULL",
];

/// Generates transactions with disorder, late records, equal times, times on window borders, long silences, all kinds
/// of names, and amounts up to the ends of their range.
pub fn wild(seed: u64, count: usize) -> Vec<Transaction> {
    let mut rng = Rng::with_seed(seed);
    let mut now = START_MS;
    let transaction = |id: u64| {
        now += match rng.u32(..1000) {
            0..=3 => rng.i64(25_000..400_000), // Several windows stay empty.
            4..=500 => 0,
            _ => rng.i64(0..20),
        };
        let behind = match rng.u32(..100) {
            0..=2 => rng.i64(0..60_000), // Far too late, most of them.
            3..=40 => rng.i64(0..DISORDER_MS),
            _ => 0,
        };
        let at_ms = match (now - behind, rng.u32(..50)) {
            (at_ms, 0) => at_ms.div_euclid(SIZE_MS) * SIZE_MS,
            (at_ms, 1) => at_ms.div_euclid(SIZE_MS) * SIZE_MS - 1,
            (at_ms, _) => at_ms,
        };
        let name = |rng: &mut Rng| match rng.usize(..60) {
            number if number < NAMES.len() => NAMES[number].to_owned(),
            number => format!("account-{number}"),
        };
        let amount_cents = match rng.u32(..100) {
            0 => i64::MIN,
            1 => i64::MAX,
            2 => 0,
            3..=6 => rng.i64(..),
            _ => rng.i64(-50_000..200_000),
        };
        let currency = ["EUR", "USD", "GBP", "CHF"][rng.usize(..4)].to_owned();
        Transaction { id, account: name(&mut rng), merchant: name(&mut rng), amount_cents, currency, at_ms }
    };
    (0..count as u64).map(transaction).collect()
}

/// Generates transactions none of which is late: times only grow.
pub fn tidy(seed: u64, count: usize) -> Vec<Transaction> {
    let mut rows = wild(seed, count);
    rows.sort_by_key(|row| row.at_ms);
    rows
}

/// Totals of an account in a window, as `account_totals` writes them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Total {
    pub start_ms: i64,
    pub account: String,
    pub count: i64,
    pub sum_cents: i128,
    pub min_cents: i64,
    pub max_cents: i64,
}

impl Total {
    /// Returns the fields as they are written.
    pub fn fields(&self) -> [String; 7] {
        let Total { start_ms, account, count, sum_cents, min_cents, max_cents } = self;
        [
            rfc3339(*start_ms),
            rfc3339(start_ms + SIZE_MS),
            account.clone(),
            count.to_string(),
            sum_cents.to_string(),
            min_cents.to_string(),
            max_cents.to_string(),
        ]
    }
}

/// Expected results.
#[derive(Clone, Debug, Default)]
pub struct Expected {
    /// Ordered by window, then account.
    pub totals: Vec<Total>,
    /// In the order in which they were read.
    pub late: Vec<Transaction>,
    pub counted: u64,
}

impl Expected {
    /// Returns the totals as rows of text.
    pub fn rows(&self) -> Vec<Vec<String>> {
        self.totals.iter().map(|total| total.fields().to_vec()).collect()
    }
}

/// Computes the results for partitions that are read from beginning to end. A record is late for its window if the
/// greatest time before it in its own partition, minus the disorder, had reached the window's end.
pub fn expected<'a>(partitions: impl IntoIterator<Item = &'a [Transaction]>, disorder_ms: i64) -> Expected {
    let mut expected = Expected::default();
    let mut totals = BTreeMap::<(i64, String), Total>::new();
    for partition in partitions {
        let mut greatest = None;
        for row in partition {
            let start_ms = row.at_ms.div_euclid(SIZE_MS) * SIZE_MS;
            if greatest.is_some_and(|greatest| start_ms + SIZE_MS <= greatest - disorder_ms) {
                expected.late.push(row.clone());
                continue;
            }
            greatest = greatest.max(Some(row.at_ms));
            expected.counted += 1;
            let (amount, account) = (row.amount_cents, row.account.clone());
            let total = totals.entry((start_ms, account.clone())).or_insert_with(|| Total {
                start_ms,
                account,
                count: 0,
                sum_cents: 0,
                min_cents: i64::MAX,
                max_cents: i64::MIN,
            });
            total.count += 1;
            total.sum_cents += i128::from(amount);
            total.min_cents = total.min_cents.min(amount);
            total.max_cents = total.max_cents.max(amount);
        }
    }
    expected.totals = totals.into_values().collect();
    expected
}

/// Computes the results for one file.
pub fn expected_of(rows: &[Transaction]) -> Expected {
    expected([rows], DISORDER_MS)
}

/// Formats a time as results have it, by a library that the engine does not use for this.
pub fn rfc3339(ms: i64) -> String {
    let origin = jiff::civil::datetime(1970, 1, 1, 0, 0, 0, 0);
    let time = origin.checked_add(jiff::SignedDuration::from_millis(ms)).unwrap();
    time.strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string()
}

/// Formats a CSV field, in quotes only if they are needed.
pub fn quoted(field: &str) -> String {
    if field.contains([',', '"', '\n', '\r']) { format!("\"{}\"", field.replace('"', "\"\"")) } else { field.into() }
}

/// Formats a line of CSV.
pub fn csv_line<S: AsRef<str>>(fields: impl IntoIterator<Item = S>) -> String {
    let fields: Vec<String> = fields.into_iter().map(|field| quoted(field.as_ref())).collect();
    fields.join(",") + "\n"
}

/// Formats a CSV file with these columns, in this order.
pub fn csv_of(rows: &[Transaction], columns: &[&str]) -> String {
    let lines = rows.iter().map(|row| csv_line(columns.iter().map(|name| row.column(name))));
    std::iter::once(csv_line(columns)).chain(lines).collect()
}

/// Formats a file with one JSON object a line.
pub fn ndjson_of(rows: &[Transaction]) -> String {
    rows.iter().map(json_of).map(|line| line + "\n").collect()
}

pub fn json_of(row: &Transaction) -> String {
    serde_json::to_string(row).unwrap()
}

/// Parses rows that were written as JSON into texts. Fails unless they have exactly these fields.
#[track_caller]
pub fn of_json(texts: &[String], columns: &[&str]) -> Vec<Vec<String>> {
    let field = |value: &serde_json::Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let row = |text: &String| {
        let row: serde_json::Value = serde_json::from_str(text).unwrap();
        assert_eq!(row.as_object().unwrap().len(), columns.len(), "{text}");
        columns.iter().map(|name| field(&row[name])).collect()
    };
    texts.iter().map(row).collect()
}

/// Reads the records of a CSV file that Tidegate wrote, header first. Fails unless each line ends in `\n`, and quotes
/// are only where they are needed.
#[track_caller]
pub fn read_csv(path: &Path) -> Vec<Vec<String>> {
    parse_csv(&std::fs::read_to_string(path).unwrap())
}

#[track_caller]
pub fn parse_csv(text: &str) -> Vec<Vec<String>> {
    whole_records(text).unwrap_or_else(|again| panic!("not as it has to be written:\n{text}\nbut\n{again}"))
}

/// Parses the records of a text if it is written as [`read_csv`] requires; otherwise returns the text as it should be.
/// A file that is being written may end within a record.
pub fn whole_records(text: &str) -> Result<Vec<Vec<String>>, String> {
    let mut reader = csv::ReaderBuilder::new().has_headers(false).flexible(true).from_reader(text.as_bytes());
    let records = reader.records().map(|record| record.unwrap().iter().map(String::from).collect());
    let records: Vec<Vec<String>> = records.collect();
    let again: String = records.iter().map(csv_line).collect();
    if again == text { Ok(records) } else { Err(again) }
}

/// Reads the rows of a CSV file that Tidegate wrote. Fails unless this is its header.
#[track_caller]
pub fn rows_of(path: &Path, header: &[&str]) -> Vec<Vec<String>> {
    let mut records = read_csv(path);
    assert!(!records.is_empty(), "{} has no header", path.display());
    assert_eq!(records.remove(0), header);
    records
}

/// Fails unless the rows are the expected ones, in any order; the message lists missing and excess rows.
#[track_caller]
pub fn same_rows(found: &[Vec<String>], expected: &[Vec<String>]) {
    let mut counts = BTreeMap::<&[String], i64>::new();
    for row in expected {
        *counts.entry(row).or_default() += 1;
    }
    for row in found {
        *counts.entry(row).or_default() -= 1;
    }
    let differences: Vec<_> = counts.into_iter().filter(|(_, count)| *count != 0).take(10).collect();
    assert!(
        differences.is_empty(),
        "{} rows where {} are expected; missing (> 0) or too many (< 0): {differences:#?}",
        found.len(),
        expected.len()
    );
}

/// Fails unless each window's rows are together and sorted by account, as rows published in one epoch must be.
#[track_caller]
pub fn sorted_by_window(rows: &[Vec<String>]) {
    for pair in rows.windows(2) {
        assert!(pair[0][..3] < pair[1][..3], "{:?} is before {:?}", pair[0], pair[1]);
    }
}
