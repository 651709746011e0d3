//! There are several joins of streams, by event time, and none that is meant by default.

use tidegate::{Flow, source::memory::MemorySource};

fn query(flow: &Flow<'_>, orders: &MemorySource<(String, i64)>, payments: &MemorySource<(String, i64)>) {
    let (orders, payments) = (flow.read("orders", orders), flow.read("payments", payments));
    orders.clone().join(payments.clone());
    orders.key_by(|order| order.0.clone()).join(payments.key_by(|payment| payment.0.clone()));
}

fn main() {
    let _ = query;
}
