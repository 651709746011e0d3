//! Sinks: outputs that publish results epoch by epoch.
//!
//! * A [`Sink`] is a value made before a job runs; in each incarnation a [`SinkWriter`] of a shard of it is opened.
//! * An epoch is **published** when others can read its rows. A writer publishes an epoch whole, or not at all.
//!
//! `interface.rs` has what a job asks of every sink, and the invariants that all keep; the other files are the sinks
//! and what they share.

pub mod csv;
pub(crate) mod encode;
mod encoded;
pub(crate) mod fields;
mod file;
mod interface;
#[cfg(feature = "kafka")]
pub mod kafka;
#[cfg(feature = "cli")]
pub(crate) mod lines;
pub mod ndjson;
pub mod stdout;
pub(crate) mod unique_key;

#[cfg(feature = "cli")]
pub(crate) use file::{published_in, verify_published};
pub(crate) use interface::EncodeEvent;
pub use interface::{EncodedSink, Sink, SinkContext, SinkRows, SinkWriter};
pub use unique_key::UniqueKey;
