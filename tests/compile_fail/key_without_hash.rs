//! A key must be a record like any other.

use tidegate::{Flow, source::memory::MemorySource};

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
struct Account(String);

fn query(flow: &Flow<'_>, payments: &MemorySource<(String, i64)>) {
    flow.read("payments", payments).key_by(|payment| Account(payment.0.clone()));
}

fn main() {
    let _ = query;
}
