//! Floating-point numbers are summed as `Real`s.

use tidegate::{Flow, Real, Window, source::memory::MemorySource};

fn query(flow: &Flow<'_>, readings: &MemorySource<(u8, Real, i64)>) {
    flow.read("readings", readings)
        .key_by(|reading| reading.0)
        .window(Window::global())
        .aggregate("sums", |each| each.sum(|reading| reading.1.get()));
}

fn main() {
    let _ = query;
}
