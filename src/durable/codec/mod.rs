//! Codecs: how rows are encoded in the blocks of a segment.
//!
//! * A **row** is one `(data, diff)` of a durable arrangement, of a type that the codec knows.
//! * A **block** is some tens of kilobytes of rows, the unit that is compressed, checksummed, read and held in memory.
//! * A `RowEncoding` is a file's description of its rows: codec, type, and a **fingerprint** of everything else
//!   that must be equal for the bytes to mean the same.
//!
//! `Postcard` encodes with serde and is readable by any build. `Abomonation` (behind the cargo feature of that name)
//! writes rows as they lie in memory, and reads them in place: for scans and compaction, by the very same program.
//!
//! Invariant: a codec is only ever given bytes whose checksum, length and coding have been verified. It does no I/O.

#[cfg(feature = "abomonation")]
pub mod abomonation;
mod postcard;
mod schema;
mod shape;

use std::fmt;

use crate::error::{Error, ErrorKind, Result};

#[cfg(feature = "abomonation")]
pub use abomonation::Abomonation;
pub(crate) use postcard::Postcard;
pub(crate) use schema::{DynamicValue, Schema};

/// A codec's number in files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct CodecId(pub u8);

impl CodecId {
    /// [`Postcard`].
    pub(crate) const POSTCARD: CodecId = CodecId(1);
    /// `Abomonation`, available if the program was built with the cargo feature `abomonation`.
    pub(crate) const ABOMONATION: CodecId = CodecId(2);
}

impl fmt::Display for CodecId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            CodecId::POSTCARD => f.pad("postcard"),
            CodecId::ABOMONATION => f.pad("abomonation"),
            CodecId(number) => write!(f, "codec {number}"),
        }
    }
}

/// A file's description of how its rows are encoded; rows are read only where it matches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RowEncoding {
    /// The codec.
    pub codec: CodecId,
    /// The fingerprint, see [`Codec::fingerprint`].
    pub fingerprint: u64,
    /// The name of the rows' type, for users.
    pub rows: String,
    /// The structure of the rows, used to display them; [`Schema::Unknown`] if the codec does not provide it.
    pub schema: Schema,
}

impl RowEncoding {
    /// Checks that rows of coding `written` can be read with this coding.
    ///
    /// # Errors
    /// Fails if they cannot: names the difference (codec, type or shape of the type) and the remedy, but no file.
    pub(crate) fn accepts(&self, written: &RowEncoding) -> Result<()> {
        if (self.codec, self.fingerprint) == (written.codec, written.fingerprint) {
            return Ok(());
        }
        let refused = Error::of(ErrorKind::StateIncompatible, "cannot read a segment's rows");
        if self.codec != written.codec {
            let why = format!("they were written by {}, and this step reads {}", written.codec, self.codec);
            let what = format!("run the step with {}, or start from a new state directory", written.codec);
            return Err(refused.because(why).help(what));
        }
        if self.rows != written.rows {
            let why = format!("they were written as `{}`, and this step reads `{}`", written.rows, self.rows);
            return Err(refused.because(why).help("restore the step's types, or start from a new state directory"));
        }
        let why = match self.codec {
            CodecId::ABOMONATION => {
                "another build of the program, or another machine, wrote them as they lay in memory"
            }
            _ => "their type has another shape than when they were written",
        };
        let what = match self.codec {
            CodecId::ABOMONATION => "run the program that wrote them, or start from a new state directory",
            _ => "restore the step's types, or start from a new state directory",
        };
        Err(refused.because(why).help(what))
    }
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

    /// The coding of rows that this codec writes.
    fn encoding(&self) -> RowEncoding {
        let rows = std::any::type_name::<T>().to_owned();
        RowEncoding { codec: self.id(), fingerprint: self.fingerprint(), rows, schema: self.schema() }
    }
}

/// A block under construction. A codec that separates fixed-size rows from the data they own writes both parts.
#[derive(Debug, Default)]
pub(crate) struct BlockBuffer {
    /// The first part of the block.
    pub head: Vec<u8>,
    /// The second part, placed after the first.
    pub tail: Vec<u8>,
}

impl BlockBuffer {
    /// The bytes so far, of both parts.
    pub(crate) fn length(&self) -> usize {
        self.head.len() + self.tail.len()
    }

    /// Returns the block, and starts an empty one.
    pub(crate) fn take(&mut self) -> Vec<u8> {
        let room = self.head.capacity();
        let mut block = std::mem::replace(&mut self.head, Vec::with_capacity(room));
        block.append(&mut self.tail);
        block
    }

    /// Truncates both parts to earlier lengths.
    pub(crate) fn truncate(&mut self, (head, tail): (usize, usize)) {
        self.head.truncate(head);
        self.tail.truncate(tail);
    }
}

/// Bytes whose start is aligned to [`AlignedBytes::ALIGNMENT`], so that rows can be read in place.
#[derive(Debug, Default)]
pub(crate) struct AlignedBytes {
    bytes: Vec<u8>,
    start: usize,
    length: usize,
}

impl AlignedBytes {
    /// The alignment in bytes: the greatest of any primitive type of Rust.
    pub(crate) const ALIGNMENT: usize = 16;

    /// A buffer of `length` zeros.
    pub(crate) fn zeroed(length: usize) -> Self {
        let mut aligned = AlignedBytes::default();
        aligned.resize(length);
        aligned
    }

    /// Sets the length; the contents are unspecified afterwards.
    pub(crate) fn resize(&mut self, length: usize) {
        if self.bytes.len() < length + Self::ALIGNMENT {
            self.bytes.resize(length + Self::ALIGNMENT, 0);
        }
        let address = self.bytes.as_ptr().addr();
        self.start = address.next_multiple_of(Self::ALIGNMENT) - address;
        self.length = length;
    }

    /// Returns the bytes.
    pub(crate) fn as_slice(&self) -> &[u8] {
        &self.bytes[self.start..self.start + self.length]
    }

    /// Shifts the start by one byte, so that it is not aligned.
    #[cfg(all(test, feature = "abomonation"))]
    fn shift(&mut self) {
        self.start += 1;
    }

    /// Returns the bytes, to be overwritten.
    pub(crate) fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.length]
    }
}

/// The readable rows of one block.
pub(crate) struct BlockRows<T>(RowStorage<T>);

enum RowStorage<T> {
    Decoded(Vec<T>),
    #[cfg(feature = "abomonation")]
    InPlace(abomonation::BorrowedBlock<T>),
}

impl<T> BlockRows<T> {
    /// Rows decoded into memory of their own.
    pub(crate) fn decoded(rows: Vec<T>) -> Self {
        BlockRows(RowStorage::Decoded(rows))
    }

    /// Returns the rows, in the order in which they were written.
    pub(crate) fn as_slice(&self) -> &[T] {
        match &self.0 {
            RowStorage::Decoded(rows) => rows,
            #[cfg(feature = "abomonation")]
            RowStorage::InPlace(block) => block.as_slice(),
        }
    }
}

impl<T> fmt::Debug for BlockRows<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Rows").field(&self.as_slice().len()).finish()
    }
}

/// Hashes a list of words: the result is written to files, so it must be equal on every machine and in every version.
///
/// Algorithm: FNV-1a with 64 bits, by Fowler, Noll and Vo; each word is closed by a byte that occurs in no UTF-8 text.
pub(crate) fn fingerprint<'a>(words: impl IntoIterator<Item = &'a str>) -> u64 {
    let bytes = words.into_iter().flat_map(|word| word.bytes().chain([0xff]));
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_stay_aligned_however_often_their_length_changes() {
        let mut bytes = AlignedBytes::zeroed(5);
        for length in [0, 1, 15, 16, 17, 4_000, 3, 70_000, 0] {
            bytes.resize(length);
            assert_eq!(bytes.as_slice().len(), length);
            assert_eq!(bytes.as_mut_slice().as_ptr().addr() % AlignedBytes::ALIGNMENT, 0);
        }
    }

    #[test]
    fn fingerprints_stay_as_they_were_when_files_were_written_with_them() {
        assert_eq!(fingerprint([]), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fingerprint(["a", "bc"]), fingerprint(["a", "bc"]));
        assert_ne!(fingerprint(["a", "bc"]), fingerprint(["ab", "c"]));
    }

    #[test]
    fn a_refusal_says_what_differs_and_what_to_do() {
        let schema = Schema::Unknown;
        let encoding = |codec, fingerprint, rows: &str| RowEncoding {
            codec,
            fingerprint,
            rows: rows.to_owned(),
            schema: schema.clone(),
        };
        let mine = encoding(CodecId::POSTCARD, 1, "u32");
        assert_eq!(mine.accepts(&mine.clone()), Ok(()));
        assert_eq!(mine.accepts(&encoding(CodecId::POSTCARD, 1, "moved::u32")), Ok(()));
        for (written, expected) in [
            (encoding(CodecId::ABOMONATION, 1, "u32"), "written by abomonation, and this step reads postcard; run"),
            (encoding(CodecId(9), 1, "u32"), "written by codec 9, and this step reads postcard; run"),
            (encoding(CodecId::POSTCARD, 2, "u64"), "written as `u64`, and this step reads `u32`; restore"),
            (encoding(CodecId::POSTCARD, 2, "u32"), "another shape than when they were written; restore"),
        ] {
            let said = mine.accepts(&written).unwrap_err().to_string();
            assert!(said.contains(expected), "{said}");
        }
        let in_place = |build| encoding(CodecId::ABOMONATION, build, "u32");
        let said = in_place(1).accepts(&in_place(2)).unwrap_err().to_string();
        assert!(
            said.contains("another build of the program") && said.contains("run the program that wrote them"),
            "{said}"
        );
    }
}
