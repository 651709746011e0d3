//! The error of a query is a `tidegate::Error`, which says what failed.

use tidegate::testing::Captured;
use tidegate::{Job, source::memory::MemorySource};

fn large(payments: MemorySource<(String, i64)>, found: Captured<(String, i64)>) {
    let _ = Job::new("large").run(move |flow| -> Result<(), std::num::ParseIntError> {
        let limit: i64 = "12".parse()?;
        flow.read("payments", &payments).filter(move |payment| payment.1 > limit).write("large", &found);
        Ok(())
    });
}

fn main() {
    let _ = large;
}
