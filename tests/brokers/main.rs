//! Jobs and tools beside real and embedded brokers: kills, doubtful commits, poison, registries, topics that are made again.
//!
//! One program, so that its tests share one real broker and wait at the same time: they wait for brokers most of the time.
//! Those that stop a broker, or let one go wrong, start their own. Each module begins with what it promises.
#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

#[path = "../common/broker.rs"]
mod broker;
#[path = "../common/children.rs"]
mod children;
#[path = "../common/foreign.rs"]
mod foreign;
#[path = "../common/ports.rs"]
mod ports;
#[path = "../common/proxy.rs"]
mod proxy;
#[path = "../common/python.rs"]
mod python;
#[path = "../common/registry.rs"]
mod registry;
#[path = "../common/run.rs"]
mod run;
#[path = "../common/sql.rs"]
mod sql;
#[path = "../common/transactions.rs"]
mod transactions;

mod blockers;
mod dead_letters;
mod doubtful_commits;
mod exactly_once;
mod orders_enriched;
mod real_broker;
mod schema_registry;
mod source_identity;
mod watch;
