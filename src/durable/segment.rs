//! Segments: the immutable files of a durable arrangement's updates, as a manifest names them.

use serde::{Deserialize, Serialize};

use crate::time::{Epoch, EventTime};

/// One segment, as a manifest names it: the updates of the epochs after `from`, up to `to`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SegmentInfo {
    /// The file's name in the directory of segments.
    pub file: String,
    /// The durable step.
    pub step: String,
    /// The epoch after which it begins.
    pub from: Epoch,
    /// Its last epoch.
    pub to: Epoch,
    /// How many rows it has.
    pub rows: u64,
    /// How many bytes it has.
    pub bytes: u64,
    /// The least event time of a row.
    pub least: EventTime,
    /// The greatest event time of a row.
    pub greatest: EventTime,
    /// How often its rows have been merged.
    pub level: u8,
    /// The checksum of its footer.
    pub checksum: u32,
}
