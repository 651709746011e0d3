//! Rows as they lie in memory, by the `abomonation` crate: read in place, without decoding.
//!
//! A block is an array of rows, followed by the data that the rows own, such as the bytes of strings, in the order of
//! the rows. Opening it relocates the rows' pointers into the block. Rows in place are only borrowed, as `&T`, and
//! never dropped; `abomonation_codec.rs` makes a codec of them, and clones rows to decode.
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
//! All `unsafe` of Tidegate is in this file. The tests of the codec run under Miri, which finds no fault but that one:
//! `cargo +nightly miri test --lib --features abomonation codec::abomonation`.
#![expect(unsafe_code, reason = "rows are read where they lie; what makes each use sound is said beside it")]

use std::fmt;
use std::marker::PhantomData;
use std::ptr::NonNull;

/// The crate whose trait describes the data that a type owns.
pub use ::abomonation as raw;

use crate::durable::codec::{AlignedBytes, BlockBuffer};
use crate::record::{Origin, Real};
use crate::time::{Epoch, EventTime, Span};

/// A type whose values can be read in place; for structs, implemented by [`in_place!`](crate::in_place).
///
/// # Safety
/// The implementation of [`raw::Abomonation`] must write everything that a value points to and restore every pointer.
/// Pointees must have an alignment of 1 (texts and bytes, not a `Vec<u64>`), and must not be mutable through a shared
/// reference (no `Cell`).
pub unsafe trait InPlace: raw::Abomonation {}

/// Appends a row to a block, as it lies in memory.
///
/// # Errors
/// Fails if what the row owns cannot be written.
pub(super) fn append_in_place<T: InPlace>(row: &T, draft: &mut BlockBuffer) -> Result<(), String> {
    // SAFETY: a reference is valid for the bytes of its value. Padding among them is discussed above.
    let bytes = unsafe { std::slice::from_raw_parts(std::ptr::from_ref(row).cast::<u8>(), size_of::<T>()) };
    draft.head.extend_from_slice(bytes);
    std::hint::black_box(&mut draft.head);
    // SAFETY: `T: InPlace` owns what it writes, and that has no padding.
    unsafe { row.entomb(&mut draft.tail) }.map_err(|why| why.to_string())
}

/// The rows of a block, read in place.
pub(super) struct BorrowedBlock<T> {
    /// Memory that `rows` points into; not modified while `rows` is in use.
    block: AlignedBytes,
    rows: NonNull<[T]>,
}

impl<T: InPlace> BorrowedBlock<T> {
    /// Relocates the rows' pointers into the block, whose bytes must be those of [`append_in_place`]: see the
    /// module.
    pub(super) fn new(mut block: AlignedBytes, rows: u32) -> Result<Self, String> {
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
    pub(super) fn into_bytes(self) -> AlignedBytes {
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
unsafe impl<T: InPlace, E: InPlace> InPlace for Result<T, E> {}
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
