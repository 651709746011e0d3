//! Tidegate: incremental queries over Kafka topics, in your own program.
//!
//! Kafka records become timestamped inputs of a [timely] dataflow; [differential](::differential_dataflow)
//! arrangements keep windowed aggregates up to date on any number of worker threads; progress frontiers decide when a
//! window's result is final and when an epoch is published. A query is a closure; a job runs it.
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
//!     let transactions = kafka::Source::json("localhost:9092", "transaction")
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
//!             .write("totals", &csv::Sink::new("totals.csv"));
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
//!  source ──► journal ──► stream ───► window step ───────────────► emit ──► sink
//!  (topic,    (input      (events,    assign ─► exchange ─► mem-   (rows)   (publishes
//!   file)      of each    watermarks) (late?)   by key      tables           whole
//!              epoch)                                         ▲              epochs)
//!                                     watermark ──────────────┘
//!                                     (closes windows)
//! ```
//!
//! * An **epoch** is the timely timestamp: the input read between two ticks of worker 0. Its input is committed once,
//!   and its output published whole.
//! * A **watermark** is a stream's progress in event time. It closes windows; a record is judged *late* by its own
//!   partition alone, so results are a function of the data: not of the number of workers, of epochs or of arrival.
//! * A **window step** keeps one memtable for each open window, the newest batch of a differential arrangement.
//! * A **sink** publishes an epoch when it is complete, its rows sorted, together with the epoch's number in one atomic
//!   operation.
//! * A **checkpointed operator** turns events into durable state; everything downstream of it is recomputed on
//!   recovery.
//!
//! # Modules
//!
//! Lowest layer first: [`time`]; [`error`], [`metrics`], [`record`], [`status`]; [`durable`]; [`source`],
//! [`sink`], [`view`]; [`stream`], with which queries are written; [`job`]; `testing`, to run a query in memory and
//! read its output by epoch; `cli`, the flags that query programs share.
//!
//! # State
//!
//! With [`Job::state`] the progress and the state of a job survive its process. The journal commits the input of every
//! epoch before the epoch is published; snapshots write what has changed since the last one; after a crash the job
//! resumes from the last snapshot, replays the epochs since then, and every sink drops what it has already published.
//! So each result is published exactly once, one epoch after its records arrived, by sinks that can do so: files and
//! Kafka topics. The commit protocol is described in [`durable`].
//!
//! # Limitations
//!
//! With several processes, process 0 alone writes sinks and keeps views.

#[cfg(feature = "cli")]
pub mod cli;
#[cfg_attr(
    not(any(test, feature = "cli")),
    expect(dead_code, reason = "the command-line tools alone inspect, export and prune states")
)]
pub mod durable;
pub mod error;
#[cfg(feature = "kafka")]
mod format;
pub mod job;
pub mod metrics;
mod probe;
pub mod record;
pub mod sink;
pub mod source;
pub mod status;
pub mod stream;
#[cfg(feature = "testing")]
pub mod testing;
mod thread;
pub mod time;
pub mod view;

/// Text of up to 24 bytes without memory of its own, and longer text as a `String` has it.
///
/// As a field that records are keyed by it saves an allocation for each record and for each row, and a lookup finds the
/// whole key in the row. It is stored, read and written as a `String` is: a query may change from one to the other, and go on
/// with its state.
pub use compact_str::CompactString;
/// The version that this crate is built on, for operators inside [`Collection::through`].
pub use differential_dataflow;
pub use error::{Error, Result};
pub use job::{Job, State};
pub use record::{Decimal, Real, Record};
pub use source::generator::Transaction;
pub use stream::{Closed, Collection, Flow, Interval, Open, Stream, Window};
pub use time::EventTime;
/// The version that this crate is built on, for operators inside [`Collection::through`].
pub use timely;
pub use view::Views;

/// CSV files: [`csv::Source`] reads one, [`csv::Sink`] writes one.
pub mod csv {
    pub use crate::sink::csv::Sink;
    pub use crate::source::csv::{Delimiter, Source};
}

/// Files with one JSON object a line: [`ndjson::Source`] reads one, [`ndjson::Sink`] writes one.
pub mod ndjson {
    pub use crate::sink::ndjson::Sink;
    pub use crate::source::ndjson::Source;
}

#[cfg(feature = "kafka")]
/// Kafka: [`kafka::Source`] reads a topic, [`kafka::Sink`] writes one; a [`kafka::KafkaError`] is the
/// [source](std::error::Error::source) of an [`Error`] of either. Decoders such as [`kafka::json`] make records of
/// messages.
pub mod kafka {
    #[cfg(feature = "registry")]
    pub use crate::sink::kafka::AvroEncoder;
    #[cfg(feature = "protobuf")]
    pub use crate::sink::kafka::ProtobufEncoder;
    pub use crate::sink::kafka::{Encode, MessageHeader, Sink, encode};
    pub use crate::source::DeadLetter;
    #[cfg(feature = "protobuf")]
    pub use crate::source::kafka::protobuf;
    pub use crate::source::kafka::{
        AvroSchema, ClientProperties, DebeziumEvent, Decode, DecodeError, Gap, KafkaError, Message, RDKafkaErrorCode,
        Source, StartOffset, TimestampKind, Topics, avro_schema, bytes, csv, debezium, debezium_key, json, text,
    };
    #[cfg(feature = "registry")]
    pub use crate::source::kafka::{RegisteredSchema, SchemaKind, SchemaRegistry, SubjectNaming, avro};
}
