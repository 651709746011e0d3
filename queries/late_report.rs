//! Late transactions by window: how many, and how much, each window of `account_totals` lacks.
//!
//! Try it: `tidegate late_report --csv transactions.csv --out late.csv --until-end -w 2`

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use serde::{Deserialize, Serialize};
use tidegate::cli::{self, QueryArgs};
use tidegate::stream::aggregate::Each;
use tidegate::{EventTime, Result, Transaction, Window};

/// The size of a window, in milliseconds.
const SIZE_MS: i64 = 10_000;

/// Transactions that were too late for their window of ten seconds, by window
///
/// Reads transactions with the fields id, account, merchant, amount_cents, currency, at_ms, and writes a row for each
/// window of ten seconds that late transactions missed: window_start, window_end, late (how many), late_cents (their
/// sum), accounts (how many have any), diff. When more arrive, the row is retracted, with diff -1, and replaced: the
/// current rows are those whose diffs add up to 1.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Examples:
  tidegate late_report --csv transactions.csv --out late.csv --until-end -w 2
  tidegate late_report --brokers localhost:9092 --out late.csv --state late-state --out-of-order 500ms --allowed-lateness 5s"
)]
struct Arguments {
    #[command(flatten)]
    query: QueryArgs,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
struct Short {
    window_start: EventTime,
    window_end: EventTime,
    late: i64,
    late_cents: i128,
    accounts: i64,
}

/// Runs the query as the command line says.
pub(crate) fn main() -> ExitCode {
    cli::start(|arguments: &Arguments| run(&arguments.query))
}

fn run(query: &QueryArgs) -> Result<u8> {
    let transactions = query.source(|t: &Transaction| t.at_ms)?;
    let (report, late_file, lateness) = (query.out()?, query.late()?, query.allowed_lateness);
    query.run("late-report", move |flow| {
        let windows = flow
            .read("transactions", &transactions)
            .key_by(|t| t.account.clone())
            .window(Window::tumbling(Duration::from_millis(SIZE_MS as u64)))
            .allowed_lateness(lateness)
            .aggregate("in time", Each::count);
        let late = windows.late();
        if let Some(file) = &late_file {
            file.write("late", late.clone(), "in time");
        }
        // By window, but for all time: nothing is too late to be reported.
        let short = late.key_by(|t| t.at_ms.div_euclid(SIZE_MS) * SIZE_MS).window(Window::global());
        let short = short.aggregate("late", |each| {
            (each.count(), each.sum(|t| t.amount_cents), each.count_distinct(|t| t.account.clone()))
        });
        let rows = short.on_change().map(|row| {
            let (window_start, window_end) = (row.key, row.key + SIZE_MS);
            let (window_start, window_end) = (EventTime::from_millis(window_start), EventTime::from_millis(window_end));
            let (late, late_cents, accounts) = row.value;
            Short { window_start, window_end, late, late_cents, accounts }
        });
        rows.write("report", &report);
    })
}
