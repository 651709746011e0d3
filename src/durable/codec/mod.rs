//! How rows become the bytes of a segment's blocks, and back.
//!
//! * A **row** is one `(data, diff)` of a durable arrangement, of a type that the codec knows.
//! * A **block** is some tens of kilobytes of rows, the unit that is compressed, checksummed, read and held in memory.
//! * A [`Coding`] is what a file says of its rows: codec, type, and a **fingerprint** of what else must be equal for the
//!   bytes to mean the same.
//!
//! [`Postcard`] writes with serde and reads anywhere. `Abomonation` (behind the cargo feature of that name) writes rows
//! as they lie in memory, and reads them in place: for scans and compaction, by the very same program.
//!
//! Invariant: a codec is only ever given bytes whose checksum, length and coding have been verified. It does no I/O.

#[cfg(feature = "abomonation")]
pub mod abomonation;
mod postcard;
mod schema;
mod shape;

use std::fmt;

use crate::error::{Error, Result};

#[cfg(feature = "abomonation")]
pub use abomonation::Abomonation;
pub use postcard::Postcard;
pub use schema::{Schema, Value};

/// Names a codec in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CodecId(pub u8);

impl CodecId {
    /// [`Postcard`].
    pub const POSTCARD: CodecId = CodecId(1);
    /// `Abomonation`, which a program has if it was built with the feature `abomonation`.
    pub const ABOMONATION: CodecId = CodecId(2);
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

/// What a file says of its rows, and what must be equal for them to be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Coding {
    /// The codec.
    pub codec: CodecId,
    /// See [`Codec::fingerprint`].
    pub fingerprint: u64,
    /// The rows' type, for people.
    pub rows: String,
    /// What the rows consist of, to be shown to people; [`Schema::Unknown`] where the codec does not say.
    pub schema: Schema,
}

impl Coding {
    /// Decides whether rows that were `written` so can be read as this says.
    ///
    /// # Errors
    /// Fails if not, without a place: that it is another codec, another type, or another shape of the type, and what to do.
    pub fn accepts(&self, written: &Coding) -> Result<()> {
        if (self.codec, self.fingerprint) == (written.codec, written.fingerprint) {
            return Ok(());
        }
        let refused = Error::new("cannot read a segment's rows");
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

/// Writes and reads the rows of blocks.
///
/// What goes wrong is said in words, without a place: who holds the file adds that.
pub trait Codec<T>: Send + Sync + fmt::Debug + 'static {
    /// Its name in files.
    fn id(&self) -> CodecId;

    /// Of all that must be equal for bytes to mean the same rows.
    fn fingerprint(&self) -> u64;

    /// Whether rows of this type can be read back at all: to be asked before a state is made of them.
    ///
    /// # Errors
    /// Why they cannot.
    fn check(&self) -> std::result::Result<(), String> {
        Ok(())
    }

    /// What rows consist of, if the codec can say that.
    fn schema(&self) -> Schema {
        Schema::Unknown
    }

    /// Adds a row to a block.
    ///
    /// # Errors
    /// When the row's type refuses; the draft may then hold a part of the row.
    fn encode(&self, row: &T, draft: &mut Draft) -> std::result::Result<(), String>;

    /// Makes the rows of a block readable, in place if the codec can.
    ///
    /// # Errors
    /// When the bytes are not exactly so many rows.
    fn open(&self, block: AlignedBytes, rows: u32) -> std::result::Result<Rows<T>, String>;

    /// Adds the rows of a block to `out`.
    ///
    /// # Errors
    /// When the bytes are not exactly so many rows; `out` may then hold some.
    fn decode(&self, block: AlignedBytes, rows: u32, out: &mut Vec<T>) -> std::result::Result<AlignedBytes, String>;

    /// Decides whether it can read rows that were `written` so, by this version of the program or an earlier one.
    ///
    /// # Errors
    /// Fails as [`Coding::accepts`] does.
    fn reads(&self, written: &Coding) -> Result<()> {
        self.coding().accepts(written)
    }

    /// What a file says of rows that it writes.
    fn coding(&self) -> Coding {
        let rows = std::any::type_name::<T>().to_owned();
        Coding { codec: self.id(), fingerprint: self.fingerprint(), rows, schema: self.schema() }
    }
}

/// A block that is being written: codecs that keep rows of equal size beside what the rows own write two parts.
#[derive(Debug, Default)]
pub struct Draft {
    /// The first part.
    pub head: Vec<u8>,
    /// What goes behind the last byte of the first part.
    pub tail: Vec<u8>,
}

impl Draft {
    /// Bytes so far.
    pub fn length(&self) -> usize {
        self.head.len() + self.tail.len()
    }

    /// The block, and begins an empty one.
    pub fn take(&mut self) -> Vec<u8> {
        let room = self.head.capacity();
        let mut block = std::mem::replace(&mut self.head, Vec::with_capacity(room));
        block.append(&mut self.tail);
        block
    }

    /// Drops what was added since it had these lengths.
    pub(crate) fn cut(&mut self, (head, tail): (usize, usize)) {
        self.head.truncate(head);
        self.tail.truncate(tail);
    }
}

/// Bytes that begin at a multiple of [`AlignedBytes::ALIGNMENT`], so that rows can be read where they lie.
#[derive(Debug, Default)]
pub struct AlignedBytes {
    bytes: Vec<u8>,
    start: usize,
    length: usize,
}

impl AlignedBytes {
    /// As much as any of Rust's own types wants.
    pub const ALIGNMENT: usize = 16;

    /// So many zeros.
    pub fn zeroed(length: usize) -> Self {
        let mut aligned = AlignedBytes::default();
        aligned.resize(length);
        aligned
    }

    /// Has so many bytes from now on, whatever they are.
    pub fn resize(&mut self, length: usize) {
        if self.bytes.len() < length + Self::ALIGNMENT {
            self.bytes.resize(length + Self::ALIGNMENT, 0);
        }
        let address = self.bytes.as_ptr().addr();
        self.start = address.next_multiple_of(Self::ALIGNMENT) - address;
        self.length = length;
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes[self.start..self.start + self.length]
    }

    /// Moves them to where they are not aligned.
    #[cfg(all(test, feature = "abomonation"))]
    fn shift(&mut self) {
        self.start += 1;
    }

    /// The bytes, to be written.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.length]
    }
}

/// The rows of one block, to be read.
pub struct Rows<T>(Kept<T>);

enum Kept<T> {
    Decoded(Vec<T>),
    #[cfg(feature = "abomonation")]
    InPlace(abomonation::InBlock<T>),
}

impl<T> Rows<T> {
    /// Rows that have memory of their own.
    pub fn decoded(rows: Vec<T>) -> Self {
        Rows(Kept::Decoded(rows))
    }

    /// The rows, in the order in which they were written.
    pub fn as_slice(&self) -> &[T] {
        match &self.0 {
            Kept::Decoded(rows) => rows,
            #[cfg(feature = "abomonation")]
            Kept::InPlace(block) => block.as_slice(),
        }
    }
}

impl<T> fmt::Debug for Rows<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Rows").field(&self.as_slice().len()).finish()
    }
}

/// A type is not followed any further.
#[derive(Debug)]
struct Stop;

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the type is not followed any further")
    }
}

impl std::error::Error for Stop {}

impl serde::de::Error for Stop {
    fn custom<M: fmt::Display>(_: M) -> Self {
        Stop
    }
}

/// Of words, in order: the same on every machine and for ever, as it is written to files.
///
/// Source: Fowler, Noll and Vo, FNV-1a with 64 bits; each word is closed by a byte that no UTF-8 text has.
pub fn fingerprint<'a>(words: impl IntoIterator<Item = &'a str>) -> u64 {
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
        let coding = |codec, fingerprint, rows: &str| Coding {
            codec,
            fingerprint,
            rows: rows.to_owned(),
            schema: schema.clone(),
        };
        let mine = coding(CodecId::POSTCARD, 1, "u32");
        assert_eq!(mine.accepts(&mine.clone()), Ok(()));
        assert_eq!(mine.accepts(&coding(CodecId::POSTCARD, 1, "moved::u32")), Ok(()));
        for (written, expected) in [
            (coding(CodecId::ABOMONATION, 1, "u32"), "written by abomonation, and this step reads postcard; run"),
            (coding(CodecId(9), 1, "u32"), "written by codec 9, and this step reads postcard; run"),
            (coding(CodecId::POSTCARD, 2, "u64"), "written as `u64`, and this step reads `u32`; restore"),
            (coding(CodecId::POSTCARD, 2, "u32"), "another shape than when they were written; restore"),
        ] {
            let said = mine.accepts(&written).unwrap_err().to_string();
            assert!(said.contains(expected), "{said}");
        }
        let in_place = |build| coding(CodecId::ABOMONATION, build, "u32");
        let said = in_place(1).accepts(&in_place(2)).unwrap_err().to_string();
        assert!(
            said.contains("another build of the program") && said.contains("run the program that wrote them"),
            "{said}"
        );
    }
}
