//! The interface of codecs: [`Codec`].
//!
//! Invariant: a codec is only ever given bytes whose checksum, length and coding have been verified. It does no I/O.

use std::fmt;

use super::block::{AlignedBytes, BlockBuffer};
use super::block_rows::BlockRows;
use super::row_encoding::{CodecId, RowEncoding};
use super::schema::Schema;
use crate::error::Result;

/// The way in which stored rows fit a codec.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum RowFit {
    /// They are read as they are.
    Same,
    /// They have to be converted; says what changes, for users.
    Converted(Vec<String>),
}

/// Encodes and decodes the rows of blocks.
///
/// Errors are plain texts without a place; the caller, which has the file, adds it.
pub(crate) trait Codec<T>: Send + Sync + fmt::Debug + 'static {
    /// The codec's number in files.
    fn id(&self) -> CodecId;

    /// A hash of everything that must be equal for bytes to mean the same rows.
    fn fingerprint(&self) -> u64;

    /// Checks that rows of this type can be read back at all; called before a state is written with them.
    ///
    /// # Errors
    /// Fails with the reason if they cannot.
    fn check(&self) -> std::result::Result<(), String> {
        Ok(())
    }

    /// The structure of the rows; [`Schema::Unknown`] if the codec does not provide it.
    fn schema(&self) -> Schema {
        Schema::Unknown
    }

    /// Adds a row to a block.
    ///
    /// # Errors
    /// Fails if the row's type cannot be serialised; the draft may then hold a part of the row.
    fn encode(&self, row: &T, draft: &mut BlockBuffer) -> std::result::Result<(), String>;

    /// Opens a block of `rows` rows for reading, in place if the codec can.
    ///
    /// # Errors
    /// Fails if the bytes are not exactly that many rows.
    fn open(&self, block: AlignedBytes, rows: u32) -> std::result::Result<BlockRows<T>, String>;

    /// Decodes the `rows` rows of a block and appends them to `out`; returns the block's buffer for reuse.
    ///
    /// # Errors
    /// Fails if the bytes are not exactly that many rows; `out` may then hold some of them.
    fn decode(&self, block: AlignedBytes, rows: u32, out: &mut Vec<T>) -> std::result::Result<AlignedBytes, String>;

    /// Checks that this codec can read rows of coding `written`, including codings of earlier versions of the program.
    ///
    /// # Errors
    /// Fails like [`RowEncoding::accepts`].
    fn can_read(&self, written: &RowEncoding) -> Result<()> {
        self.encoding().accepts(written)
    }

    /// Checks that rows of coding `written` can be read with this codec, or be converted to rows that can, and how.
    ///
    /// # Errors
    /// Fails if they cannot: names the part of the row that differs, and the remedy.
    fn fit(&self, written: &RowEncoding) -> Result<RowFit> {
        self.can_read(written).map(|()| RowFit::Same)
    }

    /// Decodes the `rows` rows of a block of coding `written`, which [`Codec::fit`] has found to need a conversion, and
    /// appends them to `out`.
    ///
    /// # Errors
    /// Fails if the bytes are not exactly that many rows, or if one cannot be converted.
    fn convert(
        &self,
        written: &RowEncoding,
        block: AlignedBytes,
        rows: u32,
        out: &mut Vec<T>,
    ) -> std::result::Result<(), String> {
        let _ = (block, rows, out);
        Err(format!("{} rows cannot be converted", written.codec))
    }

    /// The coding of rows that this codec writes.
    fn encoding(&self) -> RowEncoding {
        let rows = std::any::type_name::<T>().to_owned();
        RowEncoding { codec: self.id(), fingerprint: self.fingerprint(), rows, schema: self.schema() }
    }
}
