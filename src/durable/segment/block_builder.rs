//! Builds raw blocks from rows: the part of writing a segment that runs on the worker's thread, in bounded pieces.

use std::fmt;
use std::sync::Arc;

use crate::durable::codec::{AlignedBytes, BlockBuffer, Codec};
use crate::error::{Error, Result};
use crate::time::EventTime;

/// Length in bytes, and number of rows, at which a block is full.
const BLOCK_LENGTH: usize = 1 << 16;
/// Upper bound of a block's length in bytes, exclusive: `lz4` and the format count it in 32 bits.
pub(super) const MAX_BLOCK_LENGTH: usize = 1 << 30;

/// A block of rows, not yet compressed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RawBlock {
    pub(super) bytes: Vec<u8>,
    pub(super) rows: u32,
    pub(super) least: EventTime,
    pub(super) greatest: EventTime,
}

impl RawBlock {
    /// Returns its size in memory, in bytes.
    pub(crate) fn size(&self) -> usize {
        self.bytes.len()
    }
}

/// Builds the raw blocks of one segment.
pub(crate) struct BlockBuilder<T> {
    codec: Arc<dyn Codec<T>>,
    draft: BlockBuffer,
    rows: u32,
    least: EventTime,
    greatest: EventTime,
}

impl<T: 'static> BlockBuilder<T> {
    /// A builder for rows that are encoded by `codec`.
    pub(crate) fn new(codec: Arc<dyn Codec<T>>) -> Self {
        BlockBuilder { codec, draft: BlockBuffer::default(), rows: 0, least: EventTime::MAX, greatest: EventTime::MIN }
    }

    /// Adds a row of the window that ends at `window`; returns a block when one is full. Rows must be added in strictly
    /// ascending order of their keys.
    ///
    /// # Errors
    /// Fails if the row cannot be serialised, if it could not be read back, or if the block would reach a gigabyte.
    #[inline]
    pub(crate) fn push(&mut self, row: &T, window: EventTime) -> Result<Option<RawBlock>> {
        let before = (self.draft.head.len(), self.draft.tail.len());
        if let Err(why) = self.codec.encode(row, &mut self.draft) {
            self.draft.truncate(before);
            return Err(unwritable(why).help("see how its type is serialised"));
        }
        if self.draft.length() >= MAX_BLOCK_LENGTH {
            self.draft.truncate(before);
            return Err(unwritable("it has more than a gigabyte").help("keep less in one key"));
        }
        if self.rows == 0 {
            self.read_back()?;
        }
        self.rows += 1;
        self.least = self.least.min(window);
        self.greatest = self.greatest.max(window);
        // Rows may take no bytes at all, so they are counted too.
        Ok(if self.draft.length() >= BLOCK_LENGTH || self.rows as usize >= BLOCK_LENGTH { self.take() } else { None })
    }

    /// Checks that the first row of a block can be read back: otherwise an unreadable state would be noticed only on
    /// recovery.
    #[cold]
    fn read_back(&mut self) -> Result<()> {
        let BlockBuffer { head, tail } = &self.draft;
        let mut bytes = AlignedBytes::zeroed(self.draft.length());
        let (first, second) = bytes.as_mut_slice().split_at_mut(head.len());
        first.copy_from_slice(head);
        second.copy_from_slice(tail);
        let Err(why) = self.codec.open(bytes, 1) else { return Ok(()) };
        self.draft.truncate((0, 0));
        let why = self.codec.check().err().unwrap_or(why);
        Err(unwritable(format!("it could not be read back: {why}")).help("see how its type is serialised"))
    }

    /// Returns the rows since the last full block, and resets the builder; `None` if there are no rows.
    pub(crate) fn finish(&mut self) -> Option<RawBlock> {
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

fn unwritable(why: impl fmt::Display) -> Error {
    Error::new("cannot write a row of the state").because(why)
}

impl<T> fmt::Debug for BlockBuilder<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut builder = f.debug_struct("BlockBuilder");
        builder.field("codec", &self.codec).field("rows", &self.rows).finish_non_exhaustive()
    }
}
