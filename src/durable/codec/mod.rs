//! Codecs: how rows are encoded in the blocks of a segment.
//!
//! * A **row** is one `(data, diff)` of a durable arrangement, of a type that the codec knows.
//! * A **block** is some tens of kilobytes of rows, the unit that is compressed, checksummed, read and held in memory.
//! * A `RowEncoding` is a file's description of its rows: codec, type, and a **fingerprint** of everything else
//!   that must be equal for the bytes to mean the same.
//!
//! `Postcard` encodes with serde and is readable by any build. `Abomonation` (behind the cargo feature of that name)
//! writes rows as they lie in memory, and reads them in place: for scans and compaction, by the very same program.

#[cfg(feature = "abomonation")]
pub mod abomonation;
#[cfg(feature = "abomonation")]
mod abomonation_codec;
mod aggregate_names;
mod block;
mod block_rows;
mod conversion;
mod conversion_refusal;
mod fingerprint;
mod interface;
mod named_postcard;
mod postcard;
mod rearrangement;
mod row_encoding;
mod schema;
mod shape;
mod stored_value;

#[cfg(feature = "abomonation")]
pub use abomonation_codec::Abomonation;
pub(crate) use aggregate_names::{NameTree, NamedPart};
pub(crate) use block::{AlignedBytes, BlockBuffer};
pub(crate) use block_rows::BlockRows;
pub(crate) use fingerprint::fingerprint;
pub(crate) use interface::{Codec, RowFit};
pub(crate) use named_postcard::NamedPostcard;
pub(crate) use postcard::Postcard;
pub(crate) use row_encoding::{CodecId, RowEncoding};
pub(crate) use schema::{DynamicValue, Schema};
