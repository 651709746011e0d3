//! A step of windows, a join and keyed state have several outputs: one of them is written.

use std::time::Duration;

use tidegate::testing::Captured;
use tidegate::{Flow, Window, source::memory::MemorySource};

fn query(flow: &Flow<'_>, payments: &MemorySource<(String, i64)>, out: &Captured<i64>) {
    let keyed = || flow.read("payments", payments).key_by(|payment| payment.0.clone());
    keyed().window(Window::global()).aggregate("counts", |each| each.count()).write("counts", out);
    let counts = keyed().window(Window::global()).aggregate("more counts", |each| each.count());
    let _ = counts.map(|row| row.value);
    let span = Duration::from_secs(1);
    keyed().join_within("pairs", keyed(), span, span).inner(|_, one, other| one.1 + other.1).write("pairs", out);
    keyed().keyed_state("state", |at, _: &mut Option<i64>, payment| at.emit(payment.1), |_, _| {}).write("state", out);
}

fn main() {
    let _ = query;
}
