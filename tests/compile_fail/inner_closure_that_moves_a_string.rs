//! The closure of a query is called several times, so it cannot give away what it has: a closure of a step gets a clone.

use tidegate::testing::Captured;
use tidegate::{Job, source::memory::MemorySource};

fn own(payments: MemorySource<(String, i64)>, account: String, found: Captured<(String, i64)>) {
    let _ = Job::new("own").run(move |flow| {
        flow.read("payments", &payments).filter(move |payment| payment.0 == account).write("own", &found);
    });
}

fn main() {
    let _ = own;
}
