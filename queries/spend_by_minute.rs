//! Totals of each account in the last minute, every ten seconds: count, sum, least and greatest amount.
//!
//! Try it: `tidegate spend_by_minute --csv transactions.csv --out spend.csv --until-end -w 2`

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use serde::{Deserialize, Serialize};
use tidegate::cli::{self, QueryArgs};
use tidegate::{Closed, CompactString, EventTime, Result, Transaction, Window};

/// Totals of each account in the last minute, every ten seconds: final when a window closes
///
/// Reads transactions with the fields id, account, merchant, amount_cents, currency, at_ms, and writes a row for each
/// window and account: window_start, window_end, account, count, sum_cents, min_cents, max_cents. A transaction counts in
/// the six windows that cover its time; one that is late for some of them counts in the others.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Examples:
  tidegate spend_by_minute --csv transactions.csv --out spend.csv --until-end -w 2
  tidegate spend_by_minute --brokers localhost:9092 --out kafka:spend --state spend-state --allowed-lateness 5s"
)]
struct Arguments {
    #[command(flatten)]
    query: QueryArgs,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
struct Spend {
    window_start: EventTime,
    window_end: EventTime,
    account: CompactString,
    count: i64,
    sum_cents: i128,
    min_cents: i64,
    max_cents: i64,
}

/// Runs the query as the command line says.
pub(crate) fn main() -> ExitCode {
    cli::start(|arguments: &Arguments| run(&arguments.query))
}

fn run(query: &QueryArgs) -> Result<u8> {
    let transactions = query.source(|t: &Transaction| t.at_ms)?;
    let (spend, late, lateness) = (query.out()?, query.late()?, query.allowed_lateness);
    query.run("spend-by-minute", move |flow| {
        let windows = flow
            .read("transactions", &transactions)
            .key_by(|t| t.account.clone())
            .window(Window::sliding(Duration::from_secs(60), Duration::from_secs(10)))
            .allowed_lateness(lateness)
            .aggregate("spend", |each| {
                (each.count(), each.sum(|t| t.amount_cents), each.min(|t| t.amount_cents), each.max(|t| t.amount_cents))
            });
        if let Some(late) = &late {
            late.write("late", windows.late(), "spend");
        }
        let rows = windows.on_close().map(|row| {
            let Closed { window, key: account, value: (count, sum_cents, min_cents, max_cents) } = row;
            let (window_start, window_end) = (window.start, window.end);
            Spend { window_start, window_end, account, count, sum_cents, min_cents, max_cents }
        });
        rows.write("spend", &spend);
    })
}
