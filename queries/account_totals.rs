//! Totals of each account in every ten seconds: count, sum, least and greatest amount.
//!
//! The current totals of open windows can be read while it runs, as the view `totals`, by account.
//!
//! Try it: `tidegate account_totals --csv transactions.csv --out totals.csv --until-end -w 2`

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use serde::{Deserialize, Serialize};
use tidegate::cli::{self, QueryArgs};
use tidegate::{Closed, CompactString, EventTime, Open, Result, Transaction, Window};

/// Totals of each account in windows of ten seconds, final when a window closes
///
/// Reads transactions with the fields id, account, merchant, amount_cents, currency, at_ms, and writes a row for each
/// window and account: window_start, window_end, account, count, sum_cents, min_cents, max_cents.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Examples:
  tidegate account_totals --csv transactions.csv --out totals.csv --until-end -w 2
  tidegate account_totals --ndjson transactions.ndjson --until-end
  tidegate account_totals --brokers localhost:9092 --out totals.csv --rejects rejects.ndjson --late late.csv
  tidegate account_totals --brokers localhost:9092 --out kafka:totals -w 4"
)]
struct Arguments {
    #[command(flatten)]
    query: QueryArgs,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
struct Total {
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
    let (totals, late, lateness) = (query.out()?, query.late()?, query.allowed_lateness);
    query.run("account-totals", move |flow| {
        let windows = flow
            .read("transactions", &transactions)
            .key_by(|t| t.account.clone())
            .window(Window::tumbling(Duration::from_secs(10)))
            .allowed_lateness(lateness)
            .aggregate("totals", |each| {
                (each.count(), each.sum(|t| t.amount_cents), each.min(|t| t.amount_cents), each.max(|t| t.amount_cents))
            });
        if let Some(late) = &late {
            late.write("late", windows.late(), "totals");
        }
        // The current totals of open windows, only if the view can be read: computing them at every epoch has a cost.
        if flow.has_views() {
            let open = windows.on_change().map(|Open { window, key, value }| total(Closed { window, key, value }));
            open.view_by("totals", |total| total.account.clone());
        }
        windows.on_close().map(total).write("totals", &totals);
    })
}

fn total(closed: Closed<CompactString, (i64, i128, i64, i64)>) -> Total {
    let Closed { window, key: account, value: (count, sum_cents, min_cents, max_cents) } = closed;
    Total { window_start: window.start, window_end: window.end, account, count, sum_cents, min_cents, max_cents }
}
