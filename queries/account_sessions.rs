//! The busy periods of each account: its transactions that are less than 30 seconds apart, as one session with its
//! totals.
//!
//! Try it: `tidegate account_sessions --csv transactions.csv --out sessions.csv --until-end -w 2`

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use serde::{Deserialize, Serialize};
use tidegate::cli::{self, QueryArgs};
use tidegate::{Closed, CompactString, EventTime, Result, Transaction, Window};

/// Sessions of each account: its transactions that are less than 30 seconds apart, and their totals
///
/// Reads transactions with the fields id, account, merchant, amount_cents, currency, at_ms, and writes a row for each
/// session when it closes: window_start (its first transaction), window_end (30 seconds after its last one), account,
/// count, sum_cents, min_cents, max_cents.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Examples:
  tidegate account_sessions --csv transactions.csv --out sessions.csv --until-end -w 2
  tidegate account_sessions --brokers localhost:9092 --out kafka:sessions --state sessions-state --allowed-lateness 5s"
)]
struct Arguments {
    #[command(flatten)]
    query: QueryArgs,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
struct Session {
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
    let (sessions, late, lateness) = (query.out()?, query.late()?, query.allowed_lateness);
    query.run("account-sessions", move |flow| {
        let totals = flow
            .read("transactions", &transactions)
            .key_by(|t| t.account.clone())
            .window(Window::session(Duration::from_secs(30)))
            .allowed_lateness(lateness)
            .aggregate("sessions", |each| {
                (each.count(), each.sum(|t| t.amount_cents), each.min(|t| t.amount_cents), each.max(|t| t.amount_cents))
            });
        if let Some(late) = &late {
            late.write("late", totals.late(), "sessions");
        }
        let rows = totals.on_close().map(|row| {
            let Closed { window, key: account, value: (count, sum_cents, min_cents, max_cents) } = row;
            let (window_start, window_end) = (window.start, window.end);
            Session { window_start, window_end, account, count, sum_cents, min_cents, max_cents }
        });
        rows.write("sessions", &sessions);
    })
}
