//! An input is a source only once it says when its records happened.

use tidegate::{Flow, csv, kafka};

fn query(flow: &Flow<'_>) {
    flow.read("payments", &csv::Source::new("payments.csv"));
    flow.read("payments", &kafka::Source::json("localhost:9092", "payments"));
}

fn main() {
    let _ = query;
}
