//! Shared code of the tests of the engine in memory: the oracle, random data, and checks that compare the two. It is a
//! crate of its own, so that its queries are compiled once.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::len_without_is_empty,
    clippy::needless_pass_by_value,
    clippy::new_without_default,
    reason = "a part is used by each test; a panic fails it"
)]

pub mod cases;
pub mod checks;
pub mod collections;
pub mod durable_joins;
pub mod durable_query;
pub mod incarnations;
pub mod oracle;
pub mod tables;
pub mod turns;
pub mod views;
