//! The transactions that the demo produced, and the comparison of the files with them.
//!
//! * The [`Ledger`] can reproduce every transaction that was produced: it keeps the clock time of each, and the rest
//!   depends only on that, the seed and the transaction's number.
//! * **Closing** transactions come last, one in each partition, so far ahead in event time that every window of the
//!   others closes. Their own windows stay open.
//! * [`Totals`] are computed here from transactions one by one, without the engine.
//!
//! Invariants: the clock times do not go back, and a transaction is less than [`DISORDER`] behind its clock time; so
//! none is late in its partition, and the totals of a closed window are those of all its transactions. The watermark of
//! every partition ends [`DISORDER`] before the closing transactions, which have the greatest event time of all; this
//! decides which windows have closed.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use compact_str::CompactString;
use serde::Deserialize;

use crate::error::{Error, Result};
use crate::source::generator::{DISORDER, Generator, Transaction};
use crate::time::EventTime;

/// The length of the query's windows, in milliseconds.
const WINDOW_MS: i64 = 10_000;

/// Distance of the watermark from the greatest event time, in milliseconds.
const DISORDER_MS: i64 = DISORDER.as_millis() as i64;

/// The account of closing transactions.
const CLOSING: &str = "demo-end";

/// Maximum number of differences that are listed individually.
const MAX_LISTED_DIFFERENCES: u64 = 5;

/// All produced transactions, in order; a transaction's id is its index.
#[derive(Debug)]
pub(super) struct Ledger {
    generator: Generator,
    clock_ms: Vec<i64>,
    greatest_ms: i64,
    closing: u64,
}

impl Ledger {
    pub(super) fn new(generator: Generator) -> Self {
        Ledger { generator, clock_ms: Vec::new(), greatest_ms: i64::MIN, closing: 0 }
    }

    /// Returns the number of transactions, closing ones included.
    pub(super) fn count(&self) -> u64 {
        self.clock_ms.len() as u64 + self.closing
    }

    /// Generates one more transaction, at clock time `now_ms`.
    pub(super) fn next(&mut self, now_ms: i64) -> Transaction {
        let transaction = self.generator.at_time(self.count(), now_ms);
        self.clock_ms.push(now_ms);
        self.greatest_ms = self.greatest_ms.max(transaction.at_ms);
        transaction
    }

    /// Returns the closing transactions, one for each partition; must be called last.
    pub(super) fn close(&mut self, partitions: usize) -> Vec<Transaction> {
        let first = self.count();
        self.closing = partitions as u64;
        (first..self.count()).filter_map(|id| self.get(id)).collect()
    }

    /// Returns the transaction with this id; `None` if it was not produced.
    fn get(&self, id: u64) -> Option<Transaction> {
        match self.clock_ms.get(usize::try_from(id).ok()?) {
            Some(now_ms) => Some(self.generator.at_time(id, *now_ms)),
            None if id < self.count() => Some(Transaction {
                id,
                account: CLOSING.into(),
                merchant: CLOSING.into(),
                amount_cents: 0,
                currency: "EUR".into(),
                at_ms: window_end(self.greatest_ms) + DISORDER_MS,
            }),
            None => None,
        }
    }

    /// Computes the totals of closed windows from what was produced.
    pub(super) fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        for transaction in (0..self.count()).filter_map(|id| self.get(id)) {
            totals.add(transaction);
        }
        totals.closed()
    }
}

/// Returns the end of the window that contains an event time, in milliseconds.
fn window_end(at_ms: i64) -> i64 {
    (at_ms.div_euclid(WINDOW_MS) + 1) * WINDOW_MS
}

/// Totals of one account in one window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct AccountTotal {
    count: u64,
    sum: i128,
    least: i64,
    greatest: i64,
}

impl fmt::Display for AccountTotal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let AccountTotal { count, sum, least, greatest } = self;
        write!(f, "count {count}, sum {sum}, min {least}, max {greatest}")
    }
}

/// Totals by the end of the window and the account.
#[derive(Debug, Default)]
pub(super) struct Totals {
    rows: BTreeMap<(i64, CompactString), AccountTotal>,
    greatest_ms: Option<i64>,
}

impl Totals {
    fn add(&mut self, transaction: Transaction) {
        let Transaction { account, amount_cents: cents, at_ms, .. } = transaction;
        self.greatest_ms = self.greatest_ms.max(Some(at_ms));
        let none = AccountTotal { count: 0, sum: 0, least: i64::MAX, greatest: i64::MIN };
        let total = self.rows.entry((window_end(at_ms), account)).or_insert(none);
        let (least, greatest) = (total.least.min(cents), total.greatest.max(cents));
        *total = AccountTotal { count: total.count + 1, sum: total.sum + i128::from(cents), least, greatest };
    }

    /// Keeps the totals of closed windows; to be called when all transactions were added.
    fn closed(mut self) -> Self {
        let watermark = self.greatest_ms.map_or(i64::MIN, |greatest| greatest - DISORDER_MS);
        self.rows.retain(|(end, _), _| *end <= watermark);
        self
    }

    /// Returns the number of rows.
    pub(super) fn rows(&self) -> u64 {
        self.rows.len() as u64
    }
}

/// Differences between a file and what should be in it.
#[derive(Debug, Default)]
pub(super) struct Differences {
    pub(super) count: u64,
    pub(super) first: Vec<String>,
}

impl Differences {
    fn note(&mut self, what: impl FnOnce() -> String) {
        self.count += 1;
        if self.count <= MAX_LISTED_DIFFERENCES {
            self.first.push(what());
        }
    }
}

/// Reads the rows of a CSV file; a row that cannot be parsed is a difference.
fn read<T: for<'de> Deserialize<'de>>(
    path: &Path,
    differences: &mut Differences,
    mut each: impl FnMut(T, &mut Differences),
) -> Result<()> {
    let unreadable = |error: csv::Error| Error::new("cannot read a result").at(path.display()).because(error);
    for (row, line) in csv::Reader::from_path(path).map_err(unreadable)?.into_deserialize().zip(2..) {
        match row {
            Ok(row) => each(row, differences),
            Err(error) if error.is_io_error() => return Err(unreadable(error)),
            Err(error) => differences.note(|| format!("line {line}: {error}")),
        }
    }
    Ok(())
}

/// Compares a copy of the topic with what was produced; returns the differences, and the totals of what is in the copy.
pub(super) fn compare_copy(path: &Path, ledger: &Ledger) -> Result<(Differences, Totals)> {
    let (mut differences, mut totals) = (Differences::default(), Totals::default());
    let mut times = vec![0_u32; usize::try_from(ledger.count()).unwrap_or(usize::MAX)];
    read(path, &mut differences, |found: Transaction, differences| {
        let place = usize::try_from(found.id).ok().and_then(|at| times.get_mut(at));
        match (ledger.get(found.id), place) {
            (Some(produced), Some(times)) => {
                *times += 1;
                if produced != found {
                    differences.note(|| format!("transaction {} is not as it was produced", found.id));
                }
            }
            _ => differences.note(|| format!("transaction {} was not produced", found.id)),
        }
        totals.add(found);
    })?;
    for (id, times) in times.iter().enumerate().filter(|(_, times)| **times != 1) {
        differences.note(|| format!("transaction {id} is there {times} times"));
    }
    Ok((differences, totals.closed()))
}

/// A row of the query's result.
#[derive(Debug, Deserialize)]
struct TotalsRow {
    window_start: EventTime,
    window_end: EventTime,
    account: CompactString,
    count: u64,
    sum_cents: i128,
    min_cents: i64,
    max_cents: i64,
}

/// Compares the query's result with totals computed here.
pub(super) fn compare_totals(path: &Path, expected: &Totals) -> Result<Differences> {
    let mut differences = Differences::default();
    let mut left = expected.rows.clone();
    read(path, &mut differences, |row: TotalsRow, differences| {
        let TotalsRow { window_start, window_end, account, count, sum_cents: sum, min_cents: least, .. } = row;
        let found = AccountTotal { count, sum, least, greatest: row.max_cents };
        let whose = format!("window {window_start} to {window_end}, {account}");
        let whole = window_start.millis() + WINDOW_MS == window_end.millis();
        match left.remove(&(window_end.millis(), account)) {
            Some(total) if total == found && whole => {}
            Some(total) => differences.note(|| format!("{whose}: {found}; recomputed: {total}")),
            None => differences.note(|| format!("{whose}: is there twice, or should not be: {found}")),
        }
    })?;
    for ((end, account), total) in left {
        let end = EventTime::from_millis(end);
        differences.note(|| format!("window up to {end}, {account}: is missing; recomputed: {total}"));
    }
    Ok(differences)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ledger() -> Ledger {
        let mut ledger = Ledger::new(Generator::new(1).accounts(3));
        for now_ms in (0..25_000).step_by(100) {
            ledger.next(now_ms);
        }
        assert_eq!(ledger.close(4).len(), 4);
        ledger
    }

    fn write(path: &Path, rows: impl IntoIterator<Item = Transaction>) {
        let mut file = csv::Writer::from_path(path).unwrap();
        rows.into_iter().for_each(|row| file.serialize(row).unwrap());
    }

    #[test]
    fn closing_transactions_close_every_window_but_their_own() {
        let ledger = ledger();
        assert_eq!(ledger.get(253).map(|closing| closing.at_ms), Some(32_000));
        assert!(ledger.get(254).is_none());
        let totals = ledger.totals();
        assert!(totals.rows.keys().all(|(end, account)| *end <= 30_000 && account != CLOSING));
        assert_eq!(totals.rows.values().map(|total| total.count).sum::<u64>(), 250);
    }

    #[test]
    fn a_copy_differs_if_a_transaction_is_missing_doubled_changed_or_strange() {
        let (ledger, folder) = (ledger(), tempfile::tempdir().unwrap());
        let path = folder.path().join("copy.csv");
        let all: Vec<_> = (0..254).filter_map(|id| ledger.get(id)).collect();
        let differ = |rows: Vec<Transaction>| {
            write(&path, rows);
            compare_copy(&path, &ledger).unwrap().0.first
        };
        assert!(differ(all.iter().rev().cloned().collect()).is_empty(), "order does not matter");
        assert_eq!(differ(all[1..].to_vec()), ["transaction 0 is there 0 times"]);
        assert_eq!(differ([&all[..], &all[5..6]].concat()), ["transaction 5 is there 2 times"]);
        let mut other = all.clone();
        other[7].amount_cents += 1;
        assert_eq!(differ(other), ["transaction 7 is not as it was produced"]);
        let strange = Transaction { id: 254, ..all[0].clone() };
        assert_eq!(differ([&all[..], &[strange]].concat()), ["transaction 254 was not produced"]);
    }

    #[test]
    fn a_result_differs_if_a_row_is_missing_doubled_or_wrong() {
        let (ledger, folder) = (ledger(), tempfile::tempdir().unwrap());
        let path = folder.path().join("totals.csv");
        let expected = ledger.totals();
        let lines: Vec<String> = (expected.rows.iter())
            .map(|((end, account), total)| {
                let (start, end) = (EventTime::from_millis(end - WINDOW_MS), EventTime::from_millis(*end));
                let AccountTotal { count, sum, least, greatest } = total;
                format!("{start},{end},{account},{count},{sum},{least},{greatest}\n")
            })
            .collect();
        let differ = |lines: &[String]| {
            let header = "window_start,window_end,account,count,sum_cents,min_cents,max_cents\n";
            std::fs::write(&path, format!("{header}{}", lines.concat())).unwrap();
            compare_totals(&path, &expected).unwrap()
        };
        assert_eq!(differ(&lines).count, 0);
        assert!(differ(&lines[1..]).first[0].contains("is missing"));
        assert!(differ(&[&lines[..], &lines[..1]].concat()).first[0].contains("is there twice"));
        let mut wrong = lines.clone();
        wrong[0] = wrong[0].replacen(",account-000000,", ",account-000000,1", 1);
        assert!(differ(&wrong).first[0].contains("recomputed"));
        assert_eq!(differ(&["no row\n".to_owned()]).count, 1 + lines.len() as u64);
    }
}
