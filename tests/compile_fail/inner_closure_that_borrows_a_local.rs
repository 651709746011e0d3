//! A closure of a step outlives the closure of the query, so it has to own the query's own variables, too.

use tidegate::testing::Captured;
use tidegate::{Job, source::memory::MemorySource};

fn large(payments: MemorySource<(String, i64)>, found: Captured<(String, i64)>) {
    let _ = Job::new("large").run(move |flow| {
        let limit = 12;
        flow.read("payments", &payments).filter(|payment| payment.1 > limit).write("large", &found);
    });
}

fn main() {
    let _ = large;
}
