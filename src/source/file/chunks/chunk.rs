//! Pieces of a file, dealt to workers, and what is known of each before and after it is parsed.

use std::sync::{Arc, OnceLock};

use crate::time::{Epoch, EventTime};

/// Watermark and line number just before a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ChunkStart {
    /// Watermark of the partition.
    pub watermark: EventTime,
    /// Number of lines that end between the position where reading began and the chunk.
    pub lines: u64,
}

/// Result of parsing a chunk.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ChunkSummary {
    /// Watermark after its records, computed from its records alone.
    pub watermark: EventTime,
    /// Number of lines that end in it.
    pub lines: u64,
}

/// A piece of the file that consists of whole records.
#[derive(Debug)]
pub(crate) struct Chunk {
    /// Number of the chunk, counted from 0.
    pub index: u64,
    /// Epoch of its records.
    pub epoch: Epoch,
    /// Position of its first byte.
    pub start: u64,
    /// Number of bytes at its beginning that belong to no record: the header.
    pub skip: usize,
    /// Bytes of the chunk.
    pub bytes: Vec<u8>,
    /// Length of its only record, if that is too long; `bytes` then holds only the beginning.
    pub too_long: Option<u64>,
    /// Watermark and line number before it, once they are known.
    pub carry: Arc<OnceLock<ChunkStart>>,
}

/// Answer to a worker that asks for a chunk.
#[derive(Debug)]
pub(crate) enum NextChunk {
    /// The next chunk.
    Chunk(Chunk),
    /// No chunk: the worker's epoch is behind that of the others.
    EpochTooEarly,
    /// No chunk: there is nothing more at the moment, or for good.
    Nothing,
}
