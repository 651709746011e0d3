//! Segments: immutable files of the consolidated rows that one durable arrangement gained in an interval of epochs.
//!
//! * A **row** is one `(data, diff)`, of a type that a [`codec`](crate::durable::codec) writes. Rows of a segment are in
//!   strictly ascending order of their keys; the rows of one key in all segments of a step add up to what the step has.
//! * Rows belong to a **window**, by its end; the least and the greatest are on record, so that what is dead by the
//!   watermark can go unread. Rows of no window belong to [`EventTime::MAX`], which never dies.
//! * A [`RawBlock`] is made of rows on the worker's thread, in bounded pieces, by a [`BlockBuilder`]; a
//!   [`SegmentWriter`] compresses and writes blocks on another thread; a [`SegmentReader`] reads one block at a time.
//! * A [`SegmentInfo`] is what a manifest names. A file that no manifest names is nothing, whatever it holds.
//!
//! Invariants:
//! * Every byte of a file is under a checksum that is verified before the byte means anything. A file that is damaged,
//!   cut, of another format or of other rows is refused by an error that names it; it is never read in part.
//! * A file is written once, under a name that it has for ever, and is on disk with its name before it is spoken of.
//! * No memory is asked for on the word of bytes that are not yet verified, nor for more than one block at a time.
//!
//! How the bytes lie is drawn in `format.rs`.

mod build;
mod format;
mod reader;
#[cfg(test)]
pub(in crate::durable) mod tests;
mod writer;

use serde::{Deserialize, Serialize};

use crate::durable::codec::fingerprint;
use crate::time::{Epoch, EventTime};

pub use build::{BlockBuilder, RawBlock};
pub use format::BlockInfo;
pub use reader::{SegmentReader, verify};
pub use writer::SegmentWriter;

/// What a segment's rows are of.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Label {
    /// The step whose arrangement they are of.
    pub step: String,
    /// The life that wrote them.
    pub incarnation: u64,
    /// The worker that wrote them, or had them written.
    pub worker: u32,
    /// Which of that worker's files of that life, so that each has a name of its own.
    pub number: u64,
    /// The rows changed after this epoch …
    pub from: Epoch,
    /// … up to this one. What other segments of the step hold may lie between the two, after a merge.
    pub to: Epoch,
}

impl Label {
    /// What the sum of segments, at least one, is of, when it is written by that worker as that file.
    ///
    /// # Panics
    /// When there are none.
    pub fn of_sum(segments: &[SegmentInfo], incarnation: u64, worker: u32, number: u64) -> Label {
        let (first, rest) = segments.split_first().unwrap_or_else(|| panic!("a sum of no segments has no label"));
        let from = rest.iter().fold(first.from, |from, segment| from.min(segment.from));
        let to = rest.iter().fold(first.to, |to, segment| to.max(segment.to));
        Label { step: first.step.clone(), incarnation, worker, number, from, to }
    }

    /// The name of the file: unique in a state directory, and safe whatever the step is called.
    pub fn file_name(&self) -> String {
        let safe = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' };
        let step: String = if self.step.is_empty() { "_" } else { &self.step }.chars().take(32).map(safe).collect();
        let Label { incarnation, worker, number, from, to, .. } = self;
        let digest = fingerprint([self.step.as_str()]);
        format!("{step}-{digest:016x}-life{incarnation}-worker{worker}-{number}-{from}-{to}{EXTENSION}")
    }
}

/// How the names of segments end.
const EXTENSION: &str = ".segment";

/// Whether a file of this name is a segment, whole or not.
pub fn is_segment(name: &str) -> bool {
    name.ends_with(EXTENSION)
}

/// What a manifest names: one segment, and enough of it to decide whether it must be read.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SegmentInfo {
    /// The file's name in the state's directory of segments.
    pub file: String,
    /// The step whose rows it has.
    pub step: String,
    /// The epoch after which they changed.
    pub from: Epoch,
    /// The epoch up to which they changed.
    pub to: Epoch,
    /// How many there are.
    pub rows: u64,
    /// The length of the file.
    pub bytes: u64,
    /// The least window end of a row; [`EventTime::MAX`] if there are none.
    pub least: EventTime,
    /// The greatest window end of a row; [`EventTime::MIN`] if there are none.
    pub greatest: EventTime,
    /// How large it is, in powers of [`FACTOR`]: see [`crate::durable::compaction`].
    pub level: u8,
    /// The checksum of its footer, which has those of its blocks: no other file passes for this one.
    pub checksum: u32,
}

impl SegmentInfo {
    /// Whether no row of it is of a window that ends after `dead`.
    pub fn is_dead(&self, dead: EventTime) -> bool {
        self.greatest <= dead
    }
}

/// How much larger the files of a level are than those of the one below.
pub const FACTOR: u64 = 4;
/// The length of the largest files of level 0.
const SMALLEST: u64 = 4096;

/// The level of a file of so many bytes.
pub(in crate::durable) fn level_of(bytes: u64) -> u8 {
    let (mut level, mut most) = (0, SMALLEST);
    while most < bytes {
        most = most.saturating_mul(FACTOR);
        level += 1;
    }
    level
}
