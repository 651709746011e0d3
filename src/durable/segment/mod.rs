//! Segments: immutable files of consolidated rows of one durable arrangement, from an interval of epochs.
//!
//! * A **row** is one `(data, diff)`, of a type that a [`codec`](crate::durable::codec) encodes. Rows of a segment are
//!   in strictly ascending order of their keys; the sum of a key's rows in all segments of a step is the step's state.
//! * Rows belong to a **window**, identified by its end; a segment records the least and the greatest, so that segments
//!   that have expired by the watermark need not be read. Rows without a window belong to [`EventTime::MAX`], which
//!   never expires.
//! * A [`RawBlock`] is built from rows on the worker's thread, in bounded pieces, by a [`BlockBuilder`]; a
//!   [`SegmentWriter`] compresses and writes blocks on another thread; a [`SegmentReader`] reads one block at a time.
//! * A [`SegmentInfo`] is a manifest's reference to a segment. A file that no manifest names is ignored, whatever it
//!   holds.
//!
//! Invariants:
//! * Every byte of a file is covered by a checksum that is verified before the byte is used. A file that is damaged,
//!   truncated, of another format or of other rows is refused by an error that names it; it is never read in part.
//! * A file is written once, under a name that never changes, and is durable with its name before anything refers to
//!   it.
//! * No memory is allocated because of bytes that are not yet verified, nor for more than one block at a time.
//!
//! `format.rs` describes the file format.

mod block_builder;
mod format;
mod reader;
#[cfg(test)]
pub(in crate::durable) mod tests;
mod writer;

use serde::{Deserialize, Serialize};

use crate::durable::codec::fingerprint;
use crate::time::{Epoch, EventTime};

pub(crate) use block_builder::{BlockBuilder, RawBlock};
#[cfg(test)]
use format::BlockInfo;
pub(crate) use reader::{SegmentReader, verify};
pub(crate) use writer::SegmentWriter;

/// The origin of a segment's rows.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct SegmentLabel {
    /// The step that the rows belong to.
    pub step: String,
    /// The incarnation that wrote the segment.
    pub incarnation: u64,
    /// The worker that wrote the segment, or had it written.
    pub worker: u32,
    /// Number of the file among that worker's files in that incarnation, which makes its name unique.
    pub number: u64,
    /// The rows changed after this epoch.
    pub from: Epoch,
    /// The rows changed up to this epoch. After a merge, other segments of the step may have rows of the same interval.
    pub to: Epoch,
}

impl SegmentLabel {
    /// The label of the merge of these segments, written by `worker` as file `number`.
    ///
    /// # Panics
    /// Panics if `segments` is empty.
    pub(crate) fn of_merge(segments: &[SegmentInfo], incarnation: u64, worker: u32, number: u64) -> SegmentLabel {
        let (first, rest) = segments.split_first().unwrap_or_else(|| panic!("a sum of no segments has no label"));
        let from = rest.iter().fold(first.from, |from, segment| from.min(segment.from));
        let to = rest.iter().fold(first.to, |to, segment| to.max(segment.to));
        SegmentLabel { step: first.step.clone(), incarnation, worker, number, from, to }
    }

    /// The name of the file: unique in a state directory, and valid whatever the name of the step.
    pub(crate) fn file_name(&self) -> String {
        let safe = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' };
        let step: String = if self.step.is_empty() { "_" } else { &self.step }.chars().take(32).map(safe).collect();
        let SegmentLabel { incarnation, worker, number, from, to, .. } = self;
        let digest = fingerprint([self.step.as_str()]);
        format!("{step}-{digest:016x}-life{incarnation}-worker{worker}-{number}-{from}-{to}{EXTENSION}")
    }
}

/// Suffix of segment files.
const EXTENSION: &str = ".segment";

/// A manifest's reference to a segment, with enough details to decide if it must be read.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct SegmentInfo {
    /// The file's name in the state's directory of segments.
    pub file: String,
    /// The step that the rows belong to.
    pub step: String,
    /// The rows changed after this epoch.
    pub from: Epoch,
    /// The rows changed up to this epoch.
    pub to: Epoch,
    /// Number of rows.
    pub rows: u64,
    /// Length of the file in bytes.
    pub bytes: u64,
    /// The least window end of a row; [`EventTime::MAX`] if there are none.
    pub least: EventTime,
    /// The greatest window end of a row; [`EventTime::MIN`] if there are none.
    pub greatest: EventTime,
    /// The level of the file's length, in powers of [`FACTOR`]: see [`crate::durable::compaction`].
    pub level: u8,
    /// The checksum of its footer, which has the checksums of its blocks: no other file is mistaken for this one.
    pub checksum: u32,
}

impl SegmentInfo {
    /// `true` if no row belongs to a window that ends after `dead`.
    pub(crate) fn is_expired(&self, dead: EventTime) -> bool {
        self.greatest <= dead
    }
}

/// Ratio of the file lengths of a level to those of the level below.
pub(crate) const FACTOR: u64 = 4;
/// Maximum file length of level 0, in bytes.
const SMALLEST: u64 = 4096;

/// Returns the level of a file of `bytes` bytes.
pub(in crate::durable) fn level_of(bytes: u64) -> u8 {
    let (mut level, mut most) = (0, SMALLEST);
    while most < bytes {
        most = most.saturating_mul(FACTOR);
        level += 1;
    }
    level
}
