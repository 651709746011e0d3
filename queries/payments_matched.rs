//! Orders and their payments: pairs within an hour, and those of either side that found no other in time.
//!
//! Try it: `tidegate payments_matched --csv orders.csv --payments payments.csv --out matched.csv --until-end -w 2`

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use serde::{Deserialize, Serialize};
use tidegate::cli::{self, QueryArgs};
use tidegate::{EventTime, Result};

/// Orders and payments are matched if they happen within this time of each other.
const WITHIN: Duration = Duration::from_secs(60 * 60);

/// Orders and payments, matched within an hour, and those that are not matched
///
/// Reads orders with the fields order, customer, cents, at_ms, and payments with the fields payment, order, cents, at_ms.
/// Writes a row for each order and payment of one order number that happen within an hour of each other, as soon as both
/// are there: state (matched), order, payment, ordered_cents, paid_cents, ordered_at, paid_at. An order without a payment
/// is written (unpaid) when the watermark of both inputs is an hour past it, a payment without an order (unknown)
/// likewise; with --until-end also at the end of the input. Late orders and payments are left out: --late has them.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Examples:
  tidegate payments_matched --csv orders.csv --payments payments.csv --out matched.csv --until-end -w 2
  tidegate payments_matched --brokers localhost:9092 --out kafka:matched --state matched-state"
)]
struct Arguments {
    /// Payments: a topic, or a file that ends in .csv or .ndjson
    #[arg(long, value_name = "TOPIC|FILE", default_value = "payments", help_heading = "Input")]
    payments: String,

    #[command(flatten)]
    query: QueryArgs,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
struct Order {
    order: u64,
    customer: String,
    cents: i64,
    at_ms: i64,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
struct Payment {
    payment: u64,
    order: u64,
    cents: i64,
    at_ms: i64,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
struct Match {
    state: String,
    order: u64,
    payment: Option<u64>,
    ordered_cents: Option<i64>,
    paid_cents: Option<i64>,
    ordered_at: Option<EventTime>,
    paid_at: Option<EventTime>,
}

/// A late order or payment.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
struct LateRecord {
    input: String,
    order: u64,
    payment: Option<u64>,
    cents: i64,
    at_ms: i64,
}

/// Runs the query as the command line says.
pub(crate) fn main() -> ExitCode {
    cli::start_with(
        |command| command.mut_arg("topic", |topic| topic.default_value("orders")),
        |arguments: &Arguments| run(arguments),
    )
}

/// Returns the flags with another input.
fn reading(query: &QueryArgs, input: &str) -> QueryArgs {
    let extension = Path::new(input).extension().and_then(|extension| extension.to_str());
    let file = |of: &[&str]| extension.filter(|extension| of.contains(extension)).map(|_| input.into());
    QueryArgs { csv: file(&["csv"]), ndjson: file(&["ndjson", "jsonl"]), topic: input.to_owned(), ..query.clone() }
}

fn row(order: u64, ordered: Option<&Order>, paid: Option<&Payment>) -> Match {
    let state = match (ordered, paid) {
        (Some(_), Some(_)) => "matched",
        (_, None) => "unpaid",
        (None, _) => "unknown",
    };
    Match {
        state: state.to_owned(),
        order,
        payment: paid.map(|paid| paid.payment),
        ordered_cents: ordered.map(|ordered| ordered.cents),
        paid_cents: paid.map(|paid| paid.cents),
        ordered_at: ordered.map(|ordered| ordered.at_ms.into()),
        paid_at: paid.map(|paid| paid.at_ms.into()),
    }
}

fn late_row(input: &str, order: u64, payment: Option<u64>, (cents, at_ms): (i64, i64)) -> LateRecord {
    LateRecord { input: input.to_owned(), order, payment, cents, at_ms }
}

fn run(arguments: &Arguments) -> Result<u8> {
    let query = &arguments.query;
    let of_payments = reading(query, &arguments.payments);
    let orders = query.source(|order: &Order| order.at_ms)?;
    let payments = of_payments.source(|payment: &Payment| payment.at_ms)?;
    // Neither input may be an output: this is checked for the input of the flags.
    let (_, _) = (of_payments.out::<Match>()?, of_payments.late::<LateRecord>()?);
    let (matched, late, lateness) = (query.out()?, query.late()?, query.allowed_lateness);
    query.run("payments-matched", move |flow| {
        let payments = flow.read("payments", &payments).key_by(|payment| payment.order);
        let orders = flow.read("orders", &orders).key_by(|order| order.order).allowed_lateness(lateness);
        let joined = orders
            .join_within("matched", payments, WITHIN, WITHIN)
            .full_outer(|order, ordered, paid| row(*order, ordered, paid));
        joined.results().write("matched", &matched);
        if let Some(late) = &late {
            let of_order = |o: Order| late_row("orders", o.order, None, (o.cents, o.at_ms));
            let of_payment = |p: Payment| late_row("payments", p.order, Some(p.payment), (p.cents, p.at_ms));
            let (orders, payments) = ((joined.late_left(), of_order), (joined.late_right(), of_payment));
            late.write_both("late", orders, payments, "matched");
        }
    })
}
