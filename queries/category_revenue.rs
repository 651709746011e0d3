//! Revenue of each category of merchants in every ten seconds.
//!
//! The merchants are read first, so that a transaction finds its category from the beginning. A category that is added
//! to the file while the query runs counts from then on.
//!
//! Try it: `tidegate category_revenue --csv transactions.csv --merchants merchants.csv --out revenue.csv --until-end`

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use serde::{Deserialize, Serialize};
use tidegate::cli::{self, QueryArgs};
use tidegate::{Closed, CompactString, EventTime, Result, Transaction, Window, csv};

/// The category of merchants that the file does not have.
const UNKNOWN: &str = "?";

/// Revenue of each category of merchants in windows of ten seconds, final when a window closes
///
/// Reads transactions with the fields id, account, merchant, amount_cents, currency, at_ms, and a file with the category
/// of each merchant, which is read first. Writes a row for each window and category: window_start, window_end, category,
/// count, sum_cents. Merchants that the file does not have are of the category `?`.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Examples:
  tidegate category_revenue --csv transactions.csv --merchants merchants.csv --out revenue.csv --until-end -w 2
  tidegate category_revenue --brokers localhost:9092 --merchants merchants.csv --out kafka:revenue --state state/"
)]
struct Arguments {
    /// CSV file with the columns merchant and category; the last row of a merchant counts
    #[arg(long, value_name = "FILE", help_heading = "Input")]
    merchants: PathBuf,

    #[command(flatten)]
    query: QueryArgs,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
struct Merchant {
    merchant: CompactString,
    category: String,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
struct Revenue {
    window_start: EventTime,
    window_end: EventTime,
    category: String,
    count: i64,
    sum_cents: i128,
}

/// Runs the query as the command line says.
pub(crate) fn main() -> ExitCode {
    cli::start(|arguments: &Arguments| run(arguments))
}

fn run(arguments: &Arguments) -> Result<u8> {
    let query = &arguments.query;
    let transactions = query.source(|t: &Transaction| t.at_ms)?;
    // Rows of one time: a table keeps the last of them, by their place in the file.
    let merchants = csv::Source::new(&arguments.merchants).event_time(|_: &Merchant| EventTime::from_millis(0));
    let (revenue, late, lateness) = (query.out()?, query.late()?, query.allowed_lateness);
    query.run("category-revenue", move |flow| {
        let categories = flow
            .read_first("merchants", &merchants)
            .key_by(|m| m.merchant.clone())
            .last_by_key_with("categories", |m| Some(m.category.clone()));
        let windows = flow
            .read("transactions", &transactions)
            .key_by(|t| t.merchant.clone())
            .left_join_table(categories)
            .key_by(|(_, category)| category.clone().unwrap_or_else(|| UNKNOWN.to_owned()))
            .window(Window::tumbling(Duration::from_secs(10)))
            .allowed_lateness(lateness)
            .aggregate("revenue", |each| (each.count(), each.sum(|(t, _)| t.amount_cents)));
        if let Some(late) = &late {
            late.write("late", windows.late().map(|(t, _)| t), "revenue");
        }
        let rows = windows.on_close().map(|Closed { window, key: category, value: (count, sum_cents) }| Revenue {
            window_start: window.start,
            window_end: window.end,
            category,
            count,
            sum_cents,
        });
        rows.write("revenue", &revenue);
    })
}
