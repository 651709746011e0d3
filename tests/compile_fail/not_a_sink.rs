//! What is written to must be a sink of such rows.

use tidegate::testing::Captured;
use tidegate::{Flow, source::memory::MemorySource};

fn query(flow: &Flow<'_>, payments: &MemorySource<(String, i64)>, sums: &Captured<i64>) {
    flow.read("payments", payments).write("sums", sums);
}

fn main() {
    let _ = query;
}
