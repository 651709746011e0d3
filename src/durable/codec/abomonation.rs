//! Rows as they lie in memory, by the `abomonation` crate: read in place, without decoding.
//!
//! A block is an array of rows, followed by the data that the rows own, such as the bytes of strings, in the order of
//! the rows. Opening it relocates the rows' pointers into the block. Rows in place are only borrowed, as `&T`, and
//! never dropped; `Codec::decode` clones them.
//!
//! The crate is unmaintained, and has a soundness advisory (RUSTSEC-2021-0120): in general it reads padding, trusts
//! bytes and ignores alignment. Mitigations in this module:
//! * **Bytes** were written by this very program: the reader has verified the block's checksum and length, and the
//!   fingerprint covers the executable that wrote it (its digest, so also the compiler and the
//!   layout), the machine's architecture, and the type's name, size and alignment.
//! * **Alignment** of the array is checked here. Data that rows own must not need any: that is the contract of
//!   [`InPlace`].
//! * **Padding** between the fields of a row, and unused bytes of an enum's variant, *are* read when the block is
//!   compressed and checksummed; Rust calls such bytes uninitialised. They pass through [`std::hint::black_box`], so
//!   that the compiler cannot reason from it, and are never read as a value. This is the one remaining violation of
//!   Rust's rules, and the reason why this codec is never the default.
//!
//! All `unsafe` of Tidegate is in this file. Its tests run under Miri, which finds no fault but that one:
//! `cargo +nightly miri test --lib --features abomonation codec::abomonation`.
#![expect(unsafe_code, reason = "rows are read where they lie; what makes each use sound is said beside it")]

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::OnceLock;

/// The crate whose trait describes the data that a type owns.
pub use ::abomonation as raw;

use crate::durable::codec::{AlignedBytes, BlockBuffer, BlockRows, Codec, CodecId, RowStorage, fingerprint};
use crate::error::{Error, Result};
use crate::record::{Origin, Real};
use crate::time::{Epoch, EventTime, Span};

/// A type whose values can be read in place; for structs, implemented by [`in_place!`](crate::in_place).
///
/// # Safety
/// The implementation of [`raw::Abomonation`] must write everything that a value points to and restore every pointer.
/// Pointees must have an alignment of 1 (texts and bytes, not a `Vec<u64>`), and must not be mutable through a shared
/// reference (no `Cell`).
pub unsafe trait InPlace: raw::Abomonation {}

/// The abomonation codec of one program: only the executable that wrote a file can read it.
#[derive(Clone, Copy, Debug)]
pub struct Abomonation {
    build: u64,
}

impl Abomonation {
    /// The codec of the running program, identified by a digest of its executable file.
    ///
    /// # Errors
    /// Fails if the executable cannot be read.
    pub fn of_this_program() -> Result<Self> {
        static BUILD: OnceLock<u64> = OnceLock::new();
        if let Some(&build) = BUILD.get() {
            return Ok(Abomonation { build });
        }
        let build = digest_of_executable().map_err(|why| {
            let failed = Error::new("cannot read the program's own file, which says what its rows look like in memory");
            failed.because(why).help("use the codec postcard")
        })?;
        Ok(Abomonation { build: *BUILD.get_or_init(|| build) })
    }
}

fn digest_of_executable() -> std::io::Result<u64> {
    // On Linux this is the running file, even if another file has taken its name since.
    let running = File::open("/proc/self/exe");
    let mut file = running.or_else(|_| std::env::current_exe().and_then(File::open))?;
    let (mut piece, mut length, mut checksum) = (vec![0; 1 << 18], 0, crc32fast::Hasher::new());
    loop {
        match file.read(&mut piece)? {
            0 => return Ok((length << 32) ^ u64::from(checksum.finalize())),
            read => {
                checksum.update(&piece[..read]);
                length += read as u64;
            }
        }
    }
}

impl<T: InPlace + Clone + Send + 'static> Codec<T> for Abomonation {
    fn id(&self) -> CodecId {
        CodecId::ABOMONATION
    }

    fn fingerprint(&self) -> u64 {
        let endian = if cfg!(target_endian = "little") { "little" } else { "big" };
        let numbers =
            [self.build as usize, (self.build >> 32) as usize, size_of::<T>(), align_of::<T>(), size_of::<usize>()];
        let numbers = numbers.map(|number| number.to_string());
        let words = [std::any::type_name::<T>(), std::env::consts::ARCH, std::env::consts::OS, endian];
        fingerprint(words.into_iter().chain(numbers.iter().map(String::as_str)))
    }

    fn encode(&self, row: &T, draft: &mut BlockBuffer) -> std::result::Result<(), String> {
        // SAFETY: a reference is valid for the bytes of its value. Padding among them is discussed above.
        let bytes = unsafe { std::slice::from_raw_parts(std::ptr::from_ref(row).cast::<u8>(), size_of::<T>()) };
        draft.head.extend_from_slice(bytes);
        std::hint::black_box(&mut draft.head);
        // SAFETY: `T: InPlace` owns what it writes, and that has no padding.
        unsafe { row.entomb(&mut draft.tail) }.map_err(|why| why.to_string())
    }

    fn open(&self, block: AlignedBytes, rows: u32) -> std::result::Result<BlockRows<T>, String> {
        Ok(BlockRows(RowStorage::InPlace(BorrowedBlock::new(block, rows)?)))
    }

    fn decode(&self, block: AlignedBytes, rows: u32, out: &mut Vec<T>) -> std::result::Result<AlignedBytes, String> {
        let block = BorrowedBlock::new(block, rows)?;
        out.extend_from_slice(block.as_slice());
        Ok(block.into_bytes())
    }
}

/// The rows of a block, read in place.
pub(super) struct BorrowedBlock<T> {
    /// Memory that `rows` points into; not modified while `rows` is in use.
    block: AlignedBytes,
    rows: NonNull<[T]>,
}

impl<T: InPlace> BorrowedBlock<T> {
    /// Relocates the rows' pointers into the block, whose bytes must be the output of [`Codec::encode`]: see the
    /// module.
    fn new(mut block: AlignedBytes, rows: u32) -> std::result::Result<Self, String> {
        let (bytes, rows) = (block.as_mut_slice(), rows as usize);
        let length = size_of::<T>().checked_mul(rows).filter(|length| *length <= bytes.len());
        let length = length.ok_or_else(|| format!("the block is too short for its {rows} rows"))?;
        let (array, mut owned) = bytes.split_at_mut(length);
        let first = array.as_mut_ptr().cast::<T>();
        if !first.is_aligned() {
            return Err(format!("rows must lie at multiples of {} bytes, and a block does not", align_of::<T>()));
        }
        for number in 0..rows {
            // SAFETY: the array has room for `rows` of `T` and is aligned, and nothing else refers to it. Its bytes are
            // those of valid values, as the same program wrote them, but for pointers that dangle until the next line.
            let row = unsafe { &mut *first.add(number) };
            // SAFETY: `T: InPlace` makes its pointers anew from the bytes that it wrote, whose lengths it checks.
            let rest = unsafe { row.exhume(owned) };
            owned = rest.ok_or_else(|| format!("the block ends within what row {number} of {rows} owns"))?;
        }
        if !owned.is_empty() {
            return Err(format!("{} bytes are behind the last of the block's {rows} rows", owned.len()));
        }
        let first = NonNull::new(first).ok_or("the block is nowhere")?;
        Ok(BorrowedBlock { block, rows: NonNull::slice_from_raw_parts(first, rows) })
    }

    /// Returns the block's buffer for reuse.
    fn into_bytes(self) -> AlignedBytes {
        self.block
    }
}

impl<T> BorrowedBlock<T> {
    pub(super) fn as_slice(&self) -> &[T] {
        // SAFETY: made by `new`, which made all rows valid; they live as long as the block, and are not changed.
        unsafe { self.rows.as_ref() }
    }
}

impl<T> fmt::Debug for BorrowedBlock<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InBlock").field("rows", &self.rows.len()).finish_non_exhaustive()
    }
}

/// Makes a struct readable in place: all its fields are listed, and each must be readable in place.
///
/// ```
/// # #[cfg(feature = "abomonation")] mod m {
/// struct Point { x: i64, name: String }
/// tidegate::in_place!(Point { x, name });
/// struct Pair<A, B> { a: A, b: B }
/// tidegate::in_place!(Pair<A, B> { a, b });
/// # }
/// ```
#[macro_export]
macro_rules! in_place {
    ($name:ident $(<$($parameter:ident),+>)? { $($field:ident),* $(,)? }) => {
        #[expect(unsafe_code, reason = "every field is named, and can be read in place: the compiler checks both")]
        const _: () = {
            use $crate::durable::codec::abomonation::{InPlace, raw};

            // SAFETY: the fields are all there are, or the patterns below do not compile; each is `InPlace`.
            unsafe impl $(<$($parameter: InPlace),+>)? InPlace for $name $(<$($parameter),+>)? {}

            impl $(<$($parameter: InPlace),+>)? raw::Abomonation for $name $(<$($parameter),+>)? {
                unsafe fn entomb<W: std::io::Write>(&self, write: &mut W) -> std::io::Result<()> {
                    let $name { $($field),* } = self;
                    // SAFETY: the caller's promise for the whole is the promise for each field.
                    $(unsafe { $crate::durable::codec::abomonation::entomb($field, write)? };)*
                    Ok(())
                }

                unsafe fn exhume<'a>(&mut self, bytes: &'a mut [u8]) -> Option<&'a mut [u8]> {
                    let $name { $($field),* } = self;
                    // SAFETY: as above.
                    $(let bytes = unsafe { $crate::durable::codec::abomonation::exhume($field, bytes)? };)*
                    Some(bytes)
                }

                fn extent(&self) -> usize {
                    let $name { $($field),* } = self;
                    0 $(+ raw::Abomonation::extent($field))*
                }
            }
        };
    };
}

/// Used by [`in_place!`](crate::in_place): writes the data that a field owns.
///
/// # Safety
/// See [`raw::Abomonation::entomb`].
#[doc(hidden)]
pub unsafe fn entomb<T: InPlace, W: std::io::Write>(field: &T, write: &mut W) -> std::io::Result<()> {
    // SAFETY: the caller's promise.
    unsafe { field.entomb(write) }
}

/// Used by [`in_place!`](crate::in_place): restores a field's pointers.
///
/// # Safety
/// See [`raw::Abomonation::exhume`].
#[doc(hidden)]
pub unsafe fn exhume<'a, T: InPlace>(field: &mut T, bytes: &'a mut [u8]) -> Option<&'a mut [u8]> {
    // SAFETY: the caller's promise.
    unsafe { field.exhume(bytes) }
}

/// Implements [`InPlace`] for types that own nothing.
macro_rules! plain {
    ($($name:ty),*) => { $(
        // SAFETY: a value is its bytes.
        unsafe impl InPlace for $name {}
    )* };
}

plain!(
    (),
    bool,
    char,
    u8,
    u16,
    u32,
    u64,
    u128,
    usize,
    i8,
    i16,
    i32,
    i64,
    i128,
    isize,
    f32,
    f64,
    EventTime,
    Epoch,
    Span
);
plain!(Real, Origin);

impl raw::Abomonation for EventTime {}
impl raw::Abomonation for Epoch {}
impl raw::Abomonation for Span {}
impl raw::Abomonation for Real {}
impl raw::Abomonation for Origin {}

// SAFETY: it owns bytes.
unsafe impl InPlace for String {}
// SAFETY: it owns bytes.
unsafe impl InPlace for Vec<u8> {}
// SAFETY: it owns what its value owns.
unsafe impl<T: InPlace> InPlace for Option<T> {}
// SAFETY: it owns what its value owns.
unsafe impl<T: InPlace, E: InPlace> InPlace for std::result::Result<T, E> {}
// SAFETY: it owns nothing.
unsafe impl<T> InPlace for PhantomData<T> {}

/// Implements [`InPlace`] for tuples of parts that can be read in place.
macro_rules! tuples {
    ($($first:ident $($rest:ident)*)?) => { $(
        // SAFETY: it owns what its parts own.
        unsafe impl<$first: InPlace, $($rest: InPlace),*> InPlace for ($first, $($rest,)*) {}
        tuples!($($rest)*);
    )? };
}

tuples!(A B C D E F G H I J K L);

#[cfg(test)]
mod tests {
    use super::*;

    type Row = ((EventTime, String), (i64, Option<String>));

    #[derive(Clone, Debug, PartialEq)]
    struct Named<A> {
        key: A,
        note: Vec<u8>,
        at: i64,
    }
    crate::in_place!(Named<A> { key, note, at });

    const CODEC: Abomonation = Abomonation { build: 1 };

    fn block<T: InPlace + Clone + Send + 'static>(rows: &[T]) -> AlignedBytes {
        let mut draft = BlockBuffer::default();
        rows.iter().for_each(|row| CODEC.encode(row, &mut draft).unwrap());
        let bytes = draft.take();
        let mut block = AlignedBytes::zeroed(bytes.len());
        block.as_mut_slice().copy_from_slice(&bytes);
        block
    }

    fn open<T: InPlace + Clone + Send + 'static>(rows: &[T]) -> BlockRows<T> {
        CODEC.open(block(rows), rows.len() as u32).unwrap()
    }

    fn rows(seed: u64) -> Vec<Row> {
        let mut random = fastrand::Rng::with_seed(seed);
        let text = |random: &mut fastrand::Rng| (0..random.usize(..12)).map(|_| random.char(..)).collect::<String>();
        let row = |random: &mut fastrand::Rng| {
            let note = random.bool().then(|| text(random));
            ((EventTime::from_millis(random.i64(..)), text(random)), (random.i64(..), note))
        };
        (0..random.usize(..20)).map(|_| row(&mut random)).collect()
    }

    #[test]
    fn rows_are_read_in_place_as_they_were_written() {
        for seed in 0..if cfg!(miri) { 5 } else { 200 } {
            let rows = rows(seed);
            let mut read: Vec<Row> = Vec::new();
            let bytes = {
                let moved = Box::new(open(&rows));
                assert_eq!(moved.as_slice(), rows, "seed {seed}");
                CODEC.decode(block(&rows), rows.len() as u32, &mut read).unwrap()
            };
            // Cloned rows do not refer to the block.
            drop(bytes);
            assert_eq!(read, rows, "seed {seed}");
        }
    }

    #[test]
    fn rows_without_padding_are_bytes_that_can_be_read() {
        let block = block(&[(1u64, "abc".to_owned(), (2i64, 3u64)), (4, String::new(), (5, 6))]);
        assert_ne!(block.as_slice().iter().fold(0, |sum, byte| sum + u32::from(*byte)), 0);
    }

    #[test]
    fn structs_are_read_in_place() {
        let named = |at: i64| Named { key: format!("key {at}"), note: vec![at as u8; at as usize], at };
        let rows: Vec<_> = (0..5).map(named).collect();
        assert_eq!(open(&rows).as_slice(), rows);
    }

    #[test]
    fn rows_with_padding_are_read_as_they_were_written() {
        type Padded = ((EventTime, u32, bool), (i64, (i128, u8)));
        let rows: Vec<Padded> = (0..9)
            .map(|n| ((EventTime::from_millis(n), n as u32, n % 2 == 0), (n, (i128::from(n) << 70, 7))))
            .collect();
        assert_eq!(open(&rows).as_slice(), rows);
    }

    #[test]
    fn blocks_of_another_length_or_place_are_refused() {
        let rows = vec![(1u64, "abc".to_owned()), (2, "defg".to_owned())];
        let open = |block, rows| Codec::<(u64, String)>::open(&CODEC, block, rows).unwrap_err();
        assert!(open(block(&rows), 3).contains("ends within what") || open(block(&rows), 3).contains("too short"));
        assert!(open(block(&rows), 1).ends_with("bytes are behind the last of the block's 1 rows"));
        assert!(open(block(&rows), u32::MAX).contains("too short"));
        let whole = block(&rows);
        let mut short = AlignedBytes::zeroed(whole.as_slice().len() - 1);
        let length = short.as_slice().len();
        short.as_mut_slice().copy_from_slice(&whole.as_slice()[..length]);
        assert!(open(short, 2).contains("ends within what row 1 of 2 owns"));
        let mut shifted = block(&rows);
        shifted.shift();
        assert!(open(shifted, 2).contains("must lie at multiples of 8 bytes"));
    }

    #[test]
    fn another_build_or_type_has_another_fingerprint() {
        let of = |build| Codec::<(u64, u32)>::fingerprint(&Abomonation { build });
        assert_eq!(of(1), of(1));
        assert_ne!(of(1), of(2));
        assert_ne!(of(1), of(1 << 32));
        assert_ne!(of(1), Codec::<(u32, u64)>::fingerprint(&CODEC));
    }

    #[test]
    fn a_program_knows_itself() {
        if cfg!(miri) {
            return;
        }
        let (one, other) = (Abomonation::of_this_program().unwrap(), Abomonation::of_this_program().unwrap());
        assert_eq!((one.build, one.build), (other.build, digest_of_executable().unwrap()));
    }
}
