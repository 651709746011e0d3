//! A window keeps aggregates, not what is computed from them.

use tidegate::{Flow, Window, source::memory::MemorySource};

fn query(flow: &Flow<'_>, payments: &MemorySource<(String, i64)>) {
    let windows = || flow.read("payments", payments).key_by(|payment| payment.0.clone()).window(Window::global());
    windows().aggregate("a number", |_each| 1);
    windows().aggregate("own", |each| each.merge(|payment| payment.1));
}

fn main() {
    let _ = query;
}
