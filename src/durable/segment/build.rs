//! Rows become raw blocks: the part of writing a segment that is done on the worker's thread, in bounded pieces.

use std::fmt;
use std::sync::Arc;

use crate::durable::codec::{Codec, Draft};
use crate::error::{Error, Result};
use crate::time::EventTime;

/// Bytes at which a block is full.
const BLOCK: usize = 1 << 16;
/// Bytes that a block never reaches: `lz4` and the format count them in 32 bits, with room to spare.
pub(super) const MOST: usize = 1 << 30;

/// The rows of a block, not yet compressed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawBlock {
    pub(super) bytes: Vec<u8>,
    pub(super) rows: u32,
    pub(super) least: EventTime,
    pub(super) greatest: EventTime,
}

impl RawBlock {
    /// How many rows it has.
    pub fn rows(&self) -> u32 {
        self.rows
    }

    /// How much memory it takes.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }
}

/// Makes raw blocks of the rows of one segment.
pub struct BlockBuilder<T> {
    codec: Arc<dyn Codec<T>>,
    draft: Draft,
    rows: u32,
    least: EventTime,
    greatest: EventTime,
}

impl<T: 'static> BlockBuilder<T> {
    /// A builder of rows that are written by `codec`.
    pub fn new(codec: Arc<dyn Codec<T>>) -> Self {
        BlockBuilder { codec, draft: Draft::default(), rows: 0, least: EventTime::MAX, greatest: EventTime::MIN }
    }

    /// Adds a row of the window that ends at `window`; returns a block when one is full. Rows come in strictly ascending
    /// order of their keys.
    ///
    /// # Errors
    /// When the row's type refuses to be written, or a row is larger than a gigabyte.
    #[inline]
    pub fn push(&mut self, row: &T, window: EventTime) -> Result<Option<RawBlock>> {
        let before = (self.draft.head.len(), self.draft.tail.len());
        if let Err(why) = self.codec.encode(row, &mut self.draft) {
            self.draft.cut(before);
            let failed = Error::new("cannot write a row of the state").because(why);
            return Err(failed.help("see how its type is serialised"));
        }
        if self.draft.length() >= MOST {
            self.draft.cut(before);
            let failed = Error::new("cannot write a row of the state").because("it has more than a gigabyte");
            return Err(failed.help("keep less in one key"));
        }
        self.rows += 1;
        self.least = self.least.min(window);
        self.greatest = self.greatest.max(window);
        // Rows of no bytes at all are counted too.
        Ok(if self.draft.length() >= BLOCK || self.rows as usize >= BLOCK { self.take() } else { None })
    }

    /// The rows since the last full block, if there are any. The builder is then as new.
    pub fn finish(&mut self) -> Option<RawBlock> {
        self.take()
    }

    fn take(&mut self) -> Option<RawBlock> {
        if self.rows == 0 {
            return None;
        }
        let block = RawBlock { bytes: self.draft.take(), rows: self.rows, least: self.least, greatest: self.greatest };
        (self.rows, self.least, self.greatest) = (0, EventTime::MAX, EventTime::MIN);
        Some(block)
    }
}

impl<T> fmt::Debug for BlockBuilder<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut builder = f.debug_struct("BlockBuilder");
        builder.field("codec", &self.codec).field("rows", &self.rows).finish_non_exhaustive()
    }
}
