//! Splits a file into chunks of whole records, deals them out to workers, and carries the watermark along.
//!
//! * A [`Chunk`] is dealt to one worker, in the epoch in which the worker asked.
//! * Its [`ChunkSummary`] is the result of parsing it: the greatest watermark of its own records, and its number of
//!   lines.
//! * A [`ChunkStart`] is the watermark and line number just before a chunk: the summaries of all chunks before it
//!   combined.
//! * A [`SharedFile`] is what the workers of a run ask for chunks, and give summaries to.
//!
//! The invariants are stated in `chunk_assigner.rs`, those of the file itself in `input_file.rs`. The module knows
//! neither record types nor events.

mod chunk;
mod chunk_assigner;
mod chunk_splitter;
mod file_progress;
mod idle_detector;
mod input_file;
mod limits;
mod shared_file;

pub(crate) use chunk::{Chunk, ChunkStart, ChunkSummary, NextChunk};
pub(crate) use file_progress::{FileEpochEnd, FileProgress};
#[cfg(feature = "cli")]
pub(crate) use limits::format_bytes;
pub(crate) use limits::{FileLimits, MAX_RECORD};
pub(crate) use shared_file::{SharedFile, grown_since};
