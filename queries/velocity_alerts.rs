//! Suspicious accounts: those that pay at more than five different merchants within a minute.
//!
//! Try it: `tidegate velocity_alerts --csv transactions.csv --out alerts.csv --until-end -w 2`

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use serde::{Deserialize, Serialize};
use tidegate::cli::{self, QueryArgs};
use tidegate::{CompactString, EventTime, Result, Transaction, Window};

/// Accounts that paid at more than five different merchants within a minute
///
/// Reads transactions with the fields id, account, merchant, amount_cents, currency, at_ms. Looks at the last minute every ten
/// seconds, and writes a row for each of these windows and each account that paid at more than five different merchants in it:
/// window_start, window_end, account, merchants (how many).
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Examples:
  tidegate velocity_alerts --csv transactions.csv --out alerts.csv --until-end -w 2
  tidegate velocity_alerts --brokers localhost:9092 --out kafka:alerts --state alerts-state"
)]
struct Arguments {
    #[command(flatten)]
    query: QueryArgs,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
struct Alert {
    window_start: EventTime,
    window_end: EventTime,
    account: CompactString,
    merchants: i64,
}

/// Runs the query as the command line says.
pub(crate) fn main() -> ExitCode {
    cli::start(|arguments: &Arguments| run(&arguments.query))
}

fn run(query: &QueryArgs) -> Result<u8> {
    let transactions = query.source(|t: &Transaction| t.at_ms)?;
    let (alerts, late, lateness) = (query.out()?, query.late()?, query.allowed_lateness);
    query.run("velocity-alerts", move |flow| {
        let merchants = flow
            .read("transactions", &transactions)
            .key_by(|t| t.account.clone())
            .window(Window::sliding(Duration::from_secs(60), Duration::from_secs(10)))
            .allowed_lateness(lateness)
            .aggregate("merchants", |each| each.count_distinct(|t| t.merchant.clone()));
        if let Some(late) = &late {
            late.write("late", merchants.late(), "merchants");
        }
        let many = merchants.on_close().filter(|row| row.value > 5).map(|row| Alert {
            window_start: row.window.start,
            window_end: row.window.end,
            account: row.key,
            merchants: row.value,
        });
        many.write("alerts", &alerts);
    })
}
