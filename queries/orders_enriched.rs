//! Orders with the names of their customers: the join of two topics that are read as tables, kept up to date.
//!
//! Both topics may be compacted. The customers are read first, so that what is written for an order has its customer
//! from the beginning. The result is a table too: a topic gets one message for each order that changes, a tombstone for
//! one that is gone.
//!
//! Try it: `tidegate orders_enriched --brokers localhost:9092 --registry http://localhost:8081 --out kafka:enriched`

use std::process::ExitCode;

use clap::Parser;
use serde::{Deserialize, Serialize};
use tidegate::cli::{self, QueryArgs};
use tidegate::{Result, kafka};

/// Orders with their customers, kept up to date as either changes
///
/// Reads two topics as tables, with messages in Avro. Keys are the ids as text. An order has the fields customer, cents
/// and at_ms; a customer has name and tier. A message without a value deletes the row of its key. A row of the results has
/// order, customer, name, tier, cents and at_ms; orders whose customer is unknown are left out until it is known.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Examples:
  tidegate orders_enriched --brokers localhost:9092 --registry http://localhost:8081 \\
      --out kafka:enriched --state state/
  tidegate orders_enriched --brokers localhost:9092 --format json --until-end --out enriched.csv"
)]
struct Arguments {
    /// Topic of the customers, which is read first
    #[arg(long, value_name = "TOPIC", default_value = "customers", help_heading = "Input")]
    customers: String,

    #[command(flatten)]
    query: QueryArgs,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
struct Order {
    customer: i64,
    cents: i64,
    at_ms: i64,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
struct Customer {
    name: String,
    tier: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
struct EnrichedOrder {
    order: i64,
    customer: i64,
    name: String,
    tier: Option<String>,
    cents: i64,
    at_ms: i64,
}

/// Runs the query as the command line says.
pub(crate) fn main() -> ExitCode {
    cli::start_with(
        |command| {
            command
                .mut_arg("topic", |topic| topic.default_value("orders"))
                .mut_arg("format", |format| format.default_value("avro"))
                .mut_arg("out_format", |format| format.default_value("avro"))
        },
        |arguments: &Arguments| run(arguments),
    )
}

/// Returns the id that a message has as its key.
fn id(message: &kafka::Message<'_>) -> std::result::Result<Option<i64>, String> {
    let text = message.value().and_then(|key| str::from_utf8(key).ok()).ok_or("it is no text")?;
    text.parse().map(Some).map_err(|why| format!("it is no id: {why}"))
}

fn run(arguments: &Arguments) -> Result<u8> {
    let query = &arguments.query;
    let orders = query.table::<i64, Order>(&query.topic, id)?;
    let customers = query.table::<i64, Customer>(&arguments.customers, id)?;
    let enriched = query.out_by_key(|row: &EnrichedOrder| row.order.to_string())?;
    query.run("orders-enriched", move |flow| {
        let customers = flow.table_first("customers", &customers);
        let orders = flow.table("orders", &orders).map(|(order, row)| (row.customer, (order, row)));
        orders
            .join_map(customers, |customer, (order, row), Customer { name, tier }| EnrichedOrder {
                order: *order,
                customer: *customer,
                name: name.clone(),
                tier: tier.clone(),
                cents: row.cents,
                at_ms: row.at_ms,
            })
            .write("enriched", &enriched);
    })
}
