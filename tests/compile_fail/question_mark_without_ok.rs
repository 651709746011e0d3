//! A query with a `?` returns a `Result`, so it ends with `Ok(())`.

use tidegate::testing::Captured;
use tidegate::{Error, Job, source::memory::MemorySource};

fn limit() -> tidegate::Result<i64> {
    std::env::var("LIMIT").ok().and_then(|text| text.parse().ok()).ok_or(Error::new("LIMIT is no number"))
}

fn large(payments: MemorySource<(String, i64)>, found: Captured<(String, i64)>) {
    let _ = Job::new("large").run(move |flow| {
        let limit = limit()?;
        flow.read("payments", &payments).filter(move |payment| payment.1 > limit).write("large", &found);
    });
}

fn main() {
    let _ = large;
}
