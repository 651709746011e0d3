//! The API that queries are written with: streams, windows, aggregates and collections.
//!
//! * [`Flow`]: the query under construction; it reads sources. It is built once on every worker.
//! * [`Stream`]: append-only events, each with an event time and its partition's watermark.
//! * [`Keyed`], [`Windowed`], [`Aggregated`]: the steps from a stream to windowed results ([`window`]).
//! * [`Collection`]: a differential collection, a multiset that changes by insertions and retractions.
//!   [`Keyed::last_by_key`] makes one of a stream, a **table**; [`Keyed::join_table`] joins a stream with one.
//!   [`Stream::collect`] and [`Stream::live_for`] make collections of a stream's events. Collections are joined, reduced
//!   and iterated over ([`Collection::iterate`]).
//! * [`join`]: joins of two streams by event time.
//!
//! The epoch, timely's timestamp, stays hidden: users see event time, and each epoch is published atomically.
//!
//! Invariant: **equal journals give equal output**, epoch by epoch. No operator reads a clock, a random hash or the
//! order of arrival: an epoch's records are used when the epoch is complete, and the rows that a sink writes are
//! sorted.

pub mod aggregate;
mod arrange;
mod assign;
mod build_context;
mod checked_table;
mod checkpoint;
mod collection;
mod container_pool;
mod count;
mod count_trigger;
mod counted;
mod difference_policy;
mod driver;
pub(crate) mod durable_context;
mod earlier_names;
mod ends;
pub(crate) mod epochs;
mod events;
mod fault;
mod flow;
mod gathered_rows;
mod hints;
mod input;
mod interval;
pub mod join;
mod keyed_rows;
mod keyed_stream;
#[cfg(feature = "kafka")]
mod letters;
mod live;
mod look_ahead;
mod lookup;
mod migrate;
mod opened_sinks;
mod operator_state;
mod output;
mod over;
mod panes;
mod queued_bytes;
mod route;
mod session;
mod snapshot_epochs;
mod source_values;
pub mod state;
mod step_registry;
mod table;
mod table_operator;
mod table_rows;
mod unique_keys;
mod value_reporter;
mod view;
mod waiting_records;
mod watermark_stream;
mod watermarks;
pub mod window;
mod window_operator;
mod window_row;
mod window_type;

pub(crate) use crate::thread::JobFailure;

pub(crate) use arrange::merge_while_idle;
pub use build_context::PlannedStep;
pub(crate) use build_context::{BuildContext, BuildMode};
pub use checked_table::CheckedTable;
pub use collection::{Collection, LoopCollection, LoopScope, Observer, WindowedCollection};
pub(crate) use container_pool::ContainerPool;
pub use count_trigger::{CountTriggered, Firing, Firings};
pub(crate) use driver::Driver;
pub(crate) use durable_context::DurableContext;
pub(crate) use ends::{EndMessage, EndsInput};
pub use events::Stream;
#[cfg(feature = "testing")]
pub use fault::Fault;
#[cfg(not(feature = "testing"))]
pub(crate) use fault::Fault;
pub(crate) use fault::InjectedFault;
pub use flow::{Flow, QueryResult};
pub use interval::Interval;
pub use keyed_stream::Keyed;
pub(crate) use opened_sinks::{OpenedSink, OpenedSinks};
pub use over::{Preceding, Running};
pub(crate) use snapshot_epochs::SnapshotEpochs;
pub(crate) use source_values::SourceValues;
pub use state::{StateContext, Stateful};
pub(crate) use step_registry::StepRegistry;
pub(crate) use watermark_stream::WatermarkStream;
pub use window::{Aggregated, Window, Windowed};
pub use window_row::{Closed, Open};
