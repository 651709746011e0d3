//! A stream cannot leave the closure that builds it.

use tidegate::{Job, source::memory::Records};

fn main() {
    let numbers = Records::new(vec![vec![1i64]], |number: &i64| *number);
    let mut kept = None;
    let _ = Job::new("leak").run(|flow| kept = Some(flow.read("numbers", &numbers)));
}
