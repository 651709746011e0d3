//! The file format of segments.
//!
//! ```text
//! start    8  magic "TIDE-SEG"
//!          1  version of the format: 2; version 1 is read too, in which the header has no schema
//!          4  length of the header
//!          4  checksum of the 13 bytes above
//! header   n  postcard: codec, fingerprint, name of the row type, label, version of the program, schema of the rows
//!          4  checksum of the header
//! blocks   …  one behind the other; each is one lz4 block, or the raw bytes if those are not longer
//! footer   n  postcard: of each block stored bytes, raw bytes, rows, windows, checksum; totals
//! end      8  length of the footer
//!          4  checksum of the footer
//!          4  checksum of the 12 bytes above
//!          8  magic "SEG-EDIT"
//! ```
//!
//! Integers outside postcard are little-endian; checksums are CRC-32, a block's of its stored bytes. Positions of
//! blocks are not stored but follow from their lengths, so they neither overlap nor leave gaps, and must end where the
//! footer begins. The version decides how everything after it is decoded, so it is checked first.

use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::durable::codec::{CodecId, RowEncoding, Schema};
use crate::durable::segment::{SegmentInfo, SegmentLabel, block_builder, level_of};
use crate::error::{Error, ErrorKind, Result};
use crate::time::EventTime;

const MAGIC: [u8; 8] = *b"TIDE-SEG";
const END_MAGIC: [u8; 8] = *b"SEG-EDIT";
/// The version that this program writes.
pub(super) const VERSION: u8 = 2;
/// The version before schemas, which is still read.
const WITHOUT_SCHEMA: u8 = 1;
/// Length of the start in bytes.
pub(super) const START: usize = 17;
/// Length of the end in bytes.
pub(super) const END: usize = 24;
/// Length of a checksum in bytes.
pub(super) const CHECKSUM: usize = 4;
/// Maximum number of raw bytes that a stored byte of an lz4 block can expand to.
const MOST_RATIO: u64 = 256;

/// The header of a segment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SegmentHeader {
    first: SegmentHeaderV1,
    schema: Schema,
}

/// The header of version 1, without a schema.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct SegmentHeaderV1 {
    codec: u8,
    fingerprint: u64,
    rows: String,
    label: SegmentLabel,
    /// The version of the program that wrote it, for users.
    program: String,
}

impl SegmentHeader {
    pub(super) fn new(label: SegmentLabel, encoding: &RowEncoding) -> Self {
        let program = env!("CARGO_PKG_VERSION").to_owned();
        let RowEncoding { codec, fingerprint, rows, schema } = encoding.clone();
        SegmentHeader { first: SegmentHeaderV1 { codec: codec.0, fingerprint, rows, label, program }, schema }
    }

    pub(super) fn into_label(self) -> SegmentLabel {
        self.first.label
    }

    pub(super) fn encoding(&self) -> RowEncoding {
        let SegmentHeaderV1 { codec, fingerprint, rows, .. } = self.first.clone();
        RowEncoding { codec: CodecId(codec), fingerprint, rows, schema: self.schema.clone() }
    }
}

/// One block of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct BlockInfo {
    /// Length in the file, in bytes.
    #[serde(rename = "stored")]
    pub stored_length: u32,
    /// Length after decompression, in bytes.
    #[serde(rename = "raw")]
    pub raw_length: u32,
    /// Number of rows.
    pub rows: u32,
    /// CRC-32 of the stored bytes.
    pub(super) checksum: u32,
    /// The least window end of a row.
    pub least: EventTime,
    /// The greatest window end of a row.
    pub greatest: EventTime,
}

/// The footer of a segment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SegmentFooter {
    pub(super) blocks: Vec<BlockInfo>,
    rows: u64,
    least: EventTime,
    greatest: EventTime,
}

impl SegmentFooter {
    pub(super) fn new(blocks: Vec<BlockInfo>) -> Self {
        let (rows, least, greatest) = totals(&blocks);
        SegmentFooter { blocks, rows, least, greatest }
    }

    /// Checks that it is consistent, and fits a file with `between` bytes between header and footer.
    pub(super) fn check(&self, between: u64) -> std::result::Result<(), String> {
        if totals(&self.blocks) != (self.rows, self.least, self.greatest) {
            return Err("the totals in its footer are not those of its blocks".into());
        }
        let stored = self.blocks.iter().map(|block| u64::from(block.stored_length)).sum::<u64>();
        if stored != between {
            return Err(format!("its blocks have {stored} bytes, but {between} are there"));
        }
        for (number, block) in self.blocks.iter().enumerate() {
            let most = u64::from(block.stored_length) * MOST_RATIO;
            let fits = block.stored_length <= block.raw_length
                && u64::from(block.raw_length) <= most
                && (block.raw_length as usize) < block_builder::MAX_BLOCK_LENGTH;
            if !fits || block.rows == 0 || block.least > block.greatest {
                return Err(format!("what its footer says of block {number} cannot be"));
            }
        }
        Ok(())
    }

    pub(super) fn info(&self, label: &SegmentLabel, file: String, bytes: u64, checksum: u32) -> SegmentInfo {
        let SegmentLabel { step, from, to, .. } = label.clone();
        let SegmentFooter { rows, least, greatest, .. } = *self;
        SegmentInfo { file, step, from, to, rows, bytes, least, greatest, level: level_of(bytes), checksum }
    }
}

fn totals(blocks: &[BlockInfo]) -> (u64, EventTime, EventTime) {
    let least = blocks.iter().map(|block| block.least).min().unwrap_or(EventTime::MAX);
    let greatest = blocks.iter().map(|block| block.greatest).max().unwrap_or(EventTime::MIN);
    (blocks.iter().map(|block| u64::from(block.rows)).sum(), least, greatest)
}

/// Encodes start and header.
pub(super) fn encode_header(header: &SegmentHeader) -> Result<Vec<u8>> {
    let body = encode(header)?;
    let mut bytes = MAGIC.to_vec();
    bytes.push(VERSION);
    bytes.extend(u32::try_from(body.len()).map_err(too_large)?.to_le_bytes());
    bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
    let checksum = crc32fast::hash(&body);
    bytes.extend(body);
    bytes.extend(checksum.to_le_bytes());
    Ok(bytes)
}

/// Encodes footer and end; also returns the footer's checksum.
pub(super) fn encode_footer(footer: &SegmentFooter) -> Result<(Vec<u8>, u32)> {
    let mut bytes = encode(footer)?;
    let (length, checksum) = (bytes.len(), crc32fast::hash(&bytes));
    bytes.extend((length as u64).to_le_bytes());
    bytes.extend(checksum.to_le_bytes());
    bytes.extend(crc32fast::hash(&bytes[length..]).to_le_bytes());
    bytes.extend(END_MAGIC);
    Ok((bytes, checksum))
}

fn encode(value: &impl Serialize) -> Result<Vec<u8>> {
    postcard::to_stdvec(value).map_err(too_large)
}

fn too_large(why: impl std::fmt::Display) -> Error {
    Error::new("cannot describe a segment").because(why)
}

/// Decodes a file's first bytes, fewer than [`START`] if the file is shorter; returns version and header length.
pub(super) fn decode_start(bytes: &[u8], path: &Path) -> Result<(u8, u32)> {
    if !bytes.starts_with(&MAGIC) {
        return Err(damaged(path, "it does not begin as a segment does"));
    }
    let version = match bytes.get(MAGIC.len()) {
        Some(version @ WITHOUT_SCHEMA..=VERSION) => *version,
        Some(version) => {
            let why =
                format!("it was written in version {version} of the format, and this program reads 1 to {VERSION}");
            let refused = Error::of(ErrorKind::StateDamaged, "cannot read a segment").at(path.display()).because(why);
            return Err(refused.help("run the version of Tidegate that wrote it, or start from a new state directory"));
        }
        None => return Err(damaged(path, "it ends within its start")),
    };
    let Some((body, checksum)) = bytes.split_last_chunk::<CHECKSUM>().filter(|_| bytes.len() == START) else {
        return Err(damaged(path, "it ends within its start"));
    };
    if crc32fast::hash(body) != u32::from_le_bytes(*checksum) {
        return Err(damaged(path, "the checksum of its start is wrong"));
    }
    let length = body.last_chunk::<4>().ok_or_else(|| damaged(path, "it ends within its start"))?;
    Ok((version, u32::from_le_bytes(*length)))
}

/// Decodes the header from its bytes and checksum.
pub(super) fn decode_header(version: u8, bytes: &[u8], path: &Path) -> Result<SegmentHeader> {
    let parts = bytes.split_last_chunk::<CHECKSUM>().ok_or_else(|| damaged(path, "it ends within its header"))?;
    if crc32fast::hash(parts.0) != u32::from_le_bytes(*parts.1) {
        return Err(damaged(path, "the checksum of its header is wrong"));
    }
    if version == WITHOUT_SCHEMA {
        return Ok(SegmentHeader { first: decode(parts.0, path, "header")?, schema: Schema::Unknown });
    }
    decode(parts.0, path, "header")
}

/// Decodes a file's last bytes; returns length and checksum of the footer.
pub(super) fn decode_end(bytes: &[u8; END], path: &Path) -> Result<(u64, u32)> {
    if !bytes.ends_with(&END_MAGIC) {
        return Err(damaged(path, "it does not end as a segment does: it is cut, or something is behind it"));
    }
    if crc32fast::hash(&bytes[..12]) != u32::from_le_bytes(part(bytes, 12)) {
        return Err(damaged(path, "the checksum of its end is wrong"));
    }
    Ok((u64::from_le_bytes(part(bytes, 0)), u32::from_le_bytes(part(bytes, 8))))
}

fn part<const N: usize>(bytes: &[u8; END], at: usize) -> [u8; N] {
    std::array::from_fn(|byte| bytes[at + byte])
}

/// Decodes the footer.
pub(super) fn decode_footer(bytes: &[u8], checksum: u32, path: &Path) -> Result<SegmentFooter> {
    if crc32fast::hash(bytes) != checksum {
        return Err(damaged(path, "the checksum of its footer is wrong"));
    }
    decode(bytes, path, "footer")
}

fn decode<V: DeserializeOwned>(bytes: &[u8], path: &Path, what: &str) -> Result<V> {
    match postcard::take_from_bytes(bytes) {
        Ok((value, [])) => Ok(value),
        Ok((_, rest)) => Err(damaged(path, format!("{} bytes are behind its {what}", rest.len()))),
        Err(why) => Err(damaged(path, format!("its {what} cannot be read: {why}"))),
    }
}

/// The remedy for a file that is damaged or lost.
pub(super) const RESTORE_FILE: &str = "restore the file from a copy, or begin a new state, with new outputs, at an older \
                                       snapshot: `tidegate snapshot export STATE DIR --epoch E`, then --from-savepoint DIR";

/// The error for a damaged file.
pub(super) fn damaged(path: &Path, why: impl std::fmt::Display) -> Error {
    let error = Error::of(ErrorKind::StateDamaged, "a segment is damaged").at(path.display()).because(why);
    error.help(RESTORE_FILE)
}
