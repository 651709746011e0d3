//! Rows of a collection are in windows that are fixed in time: sessions would move with each row that goes.

use std::time::Duration;
use tidegate::{Collection, Window};

fn query(payments: Collection<'_, (String, i64)>) {
    payments.window_by(|payment| payment.0.clone(), |payment| payment.1, Window::session(Duration::from_secs(1)));
}

fn main() {
    let _ = query;
}
