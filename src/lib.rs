//! Tidegate.
pub mod cli;
pub mod durable;
pub mod error;
pub mod metrics;
pub mod record;
pub mod sink;
pub mod source;
pub mod time;

pub use error::{Error, Result};
pub use record::{Decimal, Real, Record};
