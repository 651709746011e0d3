//! Accounts that have fallen silent: those that had transactions, and then none for five minutes of event time.
//!
//! Try it: `tidegate silent_accounts --csv transactions.csv --out silent.csv --until-end -w 2`

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use serde::{Deserialize, Serialize};
use tidegate::cli::{self, QueryArgs};
use tidegate::{CompactString, EventTime, Result, Transaction};

/// An account is silent after this time without a transaction.
const QUIET: Duration = Duration::from_secs(5 * 60);

/// Accounts that had transactions, and then none for five minutes
///
/// Reads transactions with the fields id, account, merchant, amount_cents, currency, at_ms, and writes a row each
/// time that an account has had no transaction for five minutes of event time: account, last_at (its last
/// transaction), silent_at (five minutes later), transactions (how many there were since it was silent before). With
/// --until-end, every account falls silent at the end of the input, as nothing follows.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Examples:
  tidegate silent_accounts --csv transactions.csv --out silent.csv --until-end -w 2
  tidegate silent_accounts --brokers localhost:9092 --out kafka:silent --state silent-state --allowed-lateness 5s"
)]
struct Arguments {
    #[command(flatten)]
    query: QueryArgs,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
struct Silent {
    account: CompactString,
    last_at: EventTime,
    silent_at: EventTime,
    transactions: u64,
}

/// Runs the query as the command line says.
pub(crate) fn main() -> ExitCode {
    cli::start(|arguments: &Arguments| run(&arguments.query))
}

fn run(query: &QueryArgs) -> Result<u8> {
    let transactions = query.source(|t: &Transaction| t.at_ms)?;
    let (silent, late, lateness) = (query.out()?, query.late()?, query.allowed_lateness);
    query.run("silent-accounts", move |flow| {
        let accounts = flow.read("transactions", &transactions).key_by(|t| t.account.clone());
        let watched = accounts.allowed_lateness(lateness).keyed_state(
            "silence",
            |at, since: &mut Option<(EventTime, u64)>, _| {
                let transactions = since.map_or(0, |(_, transactions)| transactions) + 1;
                *since = Some((at.now(), transactions));
                at.clear_timers();
                at.set_timer_in(QUIET);
            },
            |at, since| {
                if let Some((last_at, transactions)) = since.take() {
                    at.emit(Silent { account: at.key().clone(), last_at, silent_at: at.now(), transactions });
                }
            },
        );
        if let Some(late) = &late {
            late.write("late", watched.late(), "silence");
        }
        watched.emitted().write("silent", &silent);
    })
}
