//! Tidegate: incremental queries over Kafka topics, in your own program.
//!
//! Kafka records become timestamped inputs of a [timely](::timely) dataflow; [differential](::differential_dataflow)
//! arrangements keep windowed aggregates up to date on any number of worker threads; progress frontiers decide when a
//! window's result is final and when an epoch is shown. A query is a closure; a job runs it.
//!
//! ```no_run
//! use serde::{Deserialize, Serialize};
//! use std::time::Duration;
//! use tidegate::{Closed, EventTime, Job, Window, csv, kafka};
//!
//! #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
//! struct Transaction { id: u64, account: String, merchant: String, amount_cents: i64, currency: String, at_ms: i64 }
//!
//! #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
//! struct Total { window_end: EventTime, account: String, count: i64, sum_cents: i128 }
//!
//! fn main() -> tidegate::Result<()> {
//!     let transactions = kafka::Topic::json("localhost:9092", "transaction")
//!         .event_time(|t: &Transaction| t.at_ms)
//!         .out_of_order(Duration::from_secs(2));
//!
//!     let report = Job::new("account-totals").workers(2).run(move |flow| {
//!         flow.read("transactions", &transactions)
//!             .key_by(|t| t.account.clone())
//!             .window(Window::tumbling(Duration::from_secs(10)))
//!             .aggregate("totals", |each| (each.count(), each.sum(|t| t.amount_cents)))
//!             .on_close() // a stream of final results, one for each window and account
//!             .map(|Closed { key, window, value: (count, sum_cents) }| Total {
//!                 window_end: window.end, account: key, count, sum_cents,
//!             })
//!             .write("totals", &csv::File::new("totals.csv"));
//!     })?;
//!     println!("{}", report.summary);
//!     Ok(())
//! }
//! ```
//!
//! # How it works
//!
//! ```text
//!            epochs: worker 0 proposes, all follow
//!                │
//!  source ──► journal ──► stream ──► window step ──────────────► emit ──► sink
//!  (topic,    (what each  (events,   assign ─► exchange ─► hot    (rows)   (an epoch
//!   file)      epoch       marks)    (late?)   by key      maps            is shown
//!              took)                                       ▲               whole)
//!                                   watermark ─────────────┘
//!                                   (closes windows)
//! ```
//!
//! * An **epoch** is the timely timestamp: what was read between two ticks of worker 0. It is bound once, and shown whole.
//! * A **watermark** is how far a stream has come in event time. It closes windows; whether a record is *late* is decided
//!   by its own partition alone, so results are a function of the data: not of workers, of epochs or of arrival.
//! * A **window step** keeps one hash map for each open window, the newest batch of a differential arrangement.
//! * A **sink** shows an epoch when it is complete, its rows sorted, and its number in the same atomic act.
//! * A **cut** is where events become durable state; everything behind it is rebuilt.
//!
//! # Where things are
//!
//! Lowest first: [`time`]; [`error`], [`thread`], [`metrics`], [`record`]; [`durable`]; [`source`], [`sink`], [`view`]; [`stream`], what
//! queries are written with; [`job`]; [`testing`], to run a query in memory and read its output by epoch; [`cli`], the flags that
//! query programs share.
//!
//! # State
//!
//! With [`Job::state`] what a job knows outlives it. The journal binds every epoch to its inputs before the epoch can be
//! shown; snapshots write what has changed since the last one; after a crash the job goes on from the last snapshot, runs
//! the epochs since then again, and every sink drops what it has shown. So each result is shown exactly once, an epoch
//! after its records came, by sinks that can: files and Kafka topics. The commit protocol is in [`durable`].
//!
//! # What it does not do yet
//!
//! Sinks are written, and views are kept, in process 0 of several.

#[cfg(feature = "cli")]
pub mod cli;
pub mod durable;
pub mod error;
pub mod job;
pub mod metrics;
pub mod record;
pub mod sink;
pub mod source;
pub mod status;
pub mod stream;
pub mod testing;
pub mod thread;
pub mod time;
pub mod view;

/// For operators inside [`Collection::through`]: the version that this crate is built on.
pub use differential_dataflow;
pub use error::{Error, Result};
pub use job::{Job, State};
pub use record::{Decimal, Real, Record};
pub use source::generator::Transaction;
pub use stream::{Closed, Collection, Flow, Interval, Open, Stream, Window};
pub use time::EventTime;
/// For operators inside [`Collection::through`]: the version that this crate is built on.
pub use timely;
pub use view::Views;

/// CSV files: [`csv::Input`] reads one, [`csv::File`] writes one.
pub mod csv {
    pub use crate::sink::csv::File;
    pub use crate::source::csv::Input;
}

/// Files with one JSON object a line: [`ndjson::Input`] reads one, [`ndjson::File`] writes one.
pub mod ndjson {
    pub use crate::sink::ndjson::File;
    pub use crate::source::ndjson::Input;
}

#[cfg(feature = "kafka")]
/// Kafka: [`kafka::Topic`] reads a topic, [`kafka::Output`] writes one.
pub mod kafka {
    pub use crate::sink::kafka::Output;
    pub use crate::source::kafka::{Start, Topic};
}
