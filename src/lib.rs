//! Tidegate.
pub mod cli;
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
pub use source::generator::Transaction;
pub use stream::{Closed, Collection, Flow, Interval, Open, Stream, Window};
pub use time::EventTime;

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

/// Kafka: [`kafka::Topic`] reads a topic, [`kafka::Output`] writes one.
pub mod kafka {
    pub use crate::sink::kafka::Output;
    pub use crate::source::kafka::{Start, Topic};
}
