//! A record that could not be used, as a record of its own: for the rejects sink.

use serde::{Deserialize, Serialize};

/// A record that could not be used, with its place and the reason.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Rejected {
    /// Name under which the flow reads the source.
    pub source: String,
    /// Path of the file, or name of the topic.
    pub place: String,
    /// Partition number; 0 for a file.
    pub partition: u32,
    /// Kafka offset, or position of the record's first byte in the file.
    pub offset: u64,
    /// Line in the file, from 1; 0 if the source has no lines.
    pub line: u64,
    /// Reason for the rejection.
    pub reason: String,
    /// Encoding of `record`: `text`, or `hex` if the bytes are not UTF-8.
    pub encoding: String,
    /// The record itself.
    pub record: String,
}
