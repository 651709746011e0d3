//! Totals of windows and panes: an accumulator with the number of its records.
//!
//! Totals form a semigroup, so that differential consolidates them as differences of rows. The count alone decides
//! whether a total is zero.

use differential_dataflow::difference::{IsZero, Semigroup};
use serde::{Deserialize, Serialize};

use crate::stream::aggregate::Accumulator;

/// An accumulator and the number of its records; zero records are no row.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct Counted<S> {
    pub(crate) count: i64,
    pub(crate) sum: S,
}

#[cfg(feature = "abomonation")]
crate::in_place!(Counted<S> { count, sum });

impl<S> Counted<S> {
    /// Converts the accumulator.
    pub(super) fn map<T>(self, convert: impl FnOnce(S) -> T) -> Counted<T> {
        Counted { count: self.count, sum: convert(self.sum) }
    }
}

impl<S: Accumulator> Counted<S> {
    /// Removes what was added before. Returns `false` if the sum cannot be told any more; if no record is left, only that is
    /// known of it.
    #[inline]
    pub(super) fn remove(&mut self, part: &Self) -> bool {
        self.count -= part.count;
        self.count == 0 || self.sum.unmerge(&part.sum)
    }

    /// Returns the difference that cancels this row: only its count matters.
    pub(super) fn retraction(&self) -> Self {
        Counted { count: -self.count, sum: self.sum.clone() }
    }
}

impl<S> IsZero for Counted<S> {
    #[inline]
    fn is_zero(&self) -> bool {
        self.count == 0
    }
}

impl<S: Accumulator> Semigroup for Counted<S> {
    #[inline]
    fn plus_equals(&mut self, other: &Self) {
        self.count += other.count;
        self.sum.merge(&other.sum);
    }
}
