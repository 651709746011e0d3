//! Rings of transfers: accounts whose money could have come back to them, from account to account, within the last hour.
//!
//! The rings are found by iteration, over a graph whose edges come and expire; they are kept up to date, not computed anew.
//!
//! Try it: `tidegate fraud_ring --csv transactions.csv --out rings.csv --until-end -w 2`

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use serde::{Deserialize, Serialize};
use tidegate::cli::{self, QueryArgs};
use tidegate::{Collection, CompactString, Error, Result, Stream, Transaction};

/// A transfer is looked at for this time.
pub(crate) const LIFE: Duration = Duration::from_secs(60 * 60);

/// Accounts on a cycle of transfers within the last hour
///
/// Reads transactions with the fields id, account, merchant, amount_cents, currency, at_ms: each is a transfer from the
/// account to the merchant, and a merchant may be an account of other transactions. An account is on a ring if transfers of
/// the last hour of event time lead from it to other accounts and back; two accounts that pay each other are a ring, an
/// account that pays itself is none. Accounts of which each can be reached from the other are one ring, named by the first
/// of them in alphabetical order.
///
/// --out gets every change: ring, account, and a last column `diff`, 1 for an account that is on a ring from now on, -1 for
/// one that is no longer, because a transfer is over an hour old or because its ring has another name now. With --until-end
/// the rings of the last hour stay. --late gets transfers that were an hour old when they came.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Examples:
  tidegate fraud_ring --csv transactions.csv --out rings.csv --until-end -w 2
  tidegate fraud_ring --brokers localhost:9092 --out kafka:rings --state rings-state"
)]
struct Arguments {
    #[command(flatten)]
    query: QueryArgs,
}

/// An account that is on a ring.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct OnRing {
    pub(crate) ring: CompactString,
    pub(crate) account: CompactString,
}

/// Runs the query as the command line says.
pub(crate) fn main() -> ExitCode {
    cli::start(|arguments: &Arguments| run(&arguments.query))
}

fn run(query: &QueryArgs) -> Result<u8> {
    let transactions = query.source(|t: &Transaction| t.at_ms)?;
    let (out, late) = (query.out()?, query.late()?);
    if !query.allowed_lateness.is_zero() {
        let error = Error::usage("--allowed-lateness: a transfer is late only if it is an hour old when it comes");
        return Err(error.help("leave the flag away"));
    }
    query.run("fraud-ring", move |flow| {
        let (rings, too_old) = rings(flow.read("transactions", &transactions));
        if let Some(late) = &late {
            late.write("late", too_old, "transfers");
        }
        rings.clone().view("rings");
        rings.write("rings", &out);
    })
}

/// Returns the accounts on rings, and the transfers that came too late.
pub(crate) fn rings(transactions: Stream<'_, Transaction>) -> (Collection<'_, OnRing>, Stream<'_, Transaction>) {
    let edge = |t: &Transaction| (t.account.clone(), t.merchant.clone());
    let (transfers, late) = transactions.live_for_with_late("transfers", LIFE, edge);
    (transfers.cycles().map(|(account, ring)| OnRing { ring, account }), late)
}
