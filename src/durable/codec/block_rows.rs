//! The readable rows of one block, decoded or in place.

use std::fmt;

#[cfg(feature = "abomonation")]
use super::abomonation::BorrowedBlock;

/// The readable rows of one block.
pub(crate) struct BlockRows<T>(RowStorage<T>);

enum RowStorage<T> {
    Decoded(Vec<T>),
    #[cfg(feature = "abomonation")]
    InPlace(BorrowedBlock<T>),
}

impl<T> BlockRows<T> {
    /// Rows decoded into memory of their own.
    pub(crate) fn decoded(rows: Vec<T>) -> Self {
        BlockRows(RowStorage::Decoded(rows))
    }

    /// Rows that are read in place.
    #[cfg(feature = "abomonation")]
    pub(super) fn in_place(block: BorrowedBlock<T>) -> Self {
        BlockRows(RowStorage::InPlace(block))
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
