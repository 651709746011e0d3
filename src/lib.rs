//! Tidegate.
pub mod durable;
pub mod error;
pub mod job;
pub mod metrics;
pub mod record;
pub mod sink;
pub mod source;
pub mod stream;
pub mod testing;
pub mod time;

pub use error::{Error, Result};
pub use job::Job;
pub use record::{Decimal, Real, Record};
pub use stream::{Closed, Collection, Flow, Interval, Open, Stream, Window};
