//! Topics of a broker as sources, tables and sinks, and the tools that write and copy them.
//!
//! One program, so that its tests share one real broker and wait at the same time. Each module begins with what it
//! promises.
#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

#[path = "../common/broker.rs"]
mod broker;
#[path = "../common/children.rs"]
mod children;
#[path = "../common/drive.rs"]
mod drive;
#[path = "../common/foreign.rs"]
mod foreign;
#[path = "../common/ports.rs"]
mod ports;
#[path = "../common/run.rs"]
mod run;
#[path = "../common/transactions.rs"]
mod transactions;

use std::sync::{Mutex, MutexGuard, PoisonError};

mod edges;
mod formats;
mod io;
mod messages;
mod positions;
mod reader;
mod rows;
mod security;
mod sinks;
mod tables;
mod tools;
mod topics;

/// Waits for other tests that keep all processors busy with programs of many threads. Two of them at a time, on two
/// processors, keep the shared broker and its clients from answering for ten seconds, and the tests beside them fail.
fn alone_among_heavy() -> MutexGuard<'static, ()> {
    static HEAVY: Mutex<()> = Mutex::new(());
    HEAVY.lock().unwrap_or_else(PoisonError::into_inner)
}
