//! The top spenders: the ten accounts with the greatest sums of every minute, computed by two windows in sequence.
//!
//! The last minute's list can be read while it runs, as the view `top`, by account.
//!
//! Try it: `tidegate top_spenders --csv transactions.csv --out top.csv --until-end -w 2`

use std::cmp::Reverse;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use serde::{Deserialize, Serialize};
use tidegate::cli::{self, QueryArgs};
use tidegate::{CompactString, EventTime, Result, Transaction, Window};

/// The ten accounts with the greatest sums of every minute
///
/// Reads transactions with the fields id, account, merchant, amount_cents, currency, at_ms, and writes ten rows at
/// most for each minute: window_start, window_end, rank (from 1), account, sum_cents. Equal sums are ordered by name.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Examples:
  tidegate top_spenders --csv transactions.csv --out top.csv --until-end -w 2
  tidegate top_spenders --brokers localhost:9092 --out kafka:top-spenders --state top-state"
)]
struct Arguments {
    #[command(flatten)]
    query: QueryArgs,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
struct Top {
    window_start: EventTime,
    window_end: EventTime,
    rank: u32,
    account: CompactString,
    sum_cents: i128,
}

/// Runs the query as the command line says.
pub(crate) fn main() -> ExitCode {
    cli::start(|arguments: &Arguments| run(&arguments.query))
}

fn run(query: &QueryArgs) -> Result<u8> {
    let transactions = query.source(|t: &Transaction| t.at_ms)?;
    let (top, late, lateness) = (query.out()?, query.late()?, query.allowed_lateness);
    let minute = Window::tumbling(Duration::from_secs(60));
    query.run("top-spenders", move |flow| {
        let sums = flow
            .read("transactions", &transactions)
            .key_by(|t| t.account.clone())
            .window(minute)
            .allowed_lateness(lateness)
            .aggregate("sums", |each| each.sum(|t| t.amount_cents));
        if let Some(late) = &late {
            late.write("late", sums.late(), "sums");
        }
        // The sums of a minute happen in its last millisecond, so the second window of that minute has them all.
        let greatest = sums
            .on_close()
            .key_by(|_| ())
            .window(minute)
            .aggregate("greatest", |each| each.top(10, |sum| (sum.value, Reverse(sum.key.clone()))));
        let lists = greatest.on_close().map(|list| {
            let (window_start, window_end) = (list.window.start, list.window.end);
            let top =
                |(rank, (sum_cents, Reverse(account)))| Top { window_start, window_end, rank, account, sum_cents };
            (1..).zip(list.value).map(top).collect::<Vec<_>>()
        });
        let latest = lists.clone().key_by(|_| ()).last_by_key("latest");
        latest.flat_map(|((), list)| list).view_by("top", |top| top.account.clone());
        lists.flat_map(|list| list).write("top", &top);
    })
}
