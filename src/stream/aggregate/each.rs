//! How a query names aggregates: what the closure of `aggregate` gets.

use std::fmt;
use std::marker::PhantomData;

use crate::record::Record;
use crate::stream::aggregate::{Accumulator, Count, First, Last, Max, Mean, Merge, Min, Sum, Summable};

/// Names the aggregates of a window of `D`s.
pub struct Each<D>(PhantomData<fn(&D)>);

impl<D> Clone for Each<D> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<D> Copy for Each<D> {}

impl<D> fmt::Debug for Each<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Each")
    }
}

impl<D: Record> Each<D> {
    pub(crate) fn new() -> Self {
        Each(PhantomData)
    }

    /// How many records, an `i64`.
    pub fn count(self) -> Count {
        Count
    }

    /// The exact sum of a number of each record: `i128` for integers, [`Decimal`](crate::Decimal) for decimals. A sum that its type
    /// cannot hold ends the job.
    pub fn sum<N: Summable, F: Fn(&D) -> N + 'static>(self, of: F) -> Sum<F> {
        Sum(of)
    }

    /// The mean of a number of each record: the exact sum divided once, at the end.
    pub fn mean<N: Summable, F: Fn(&D) -> N + 'static>(self, of: F) -> Mean<F> {
        Mean(of)
    }

    /// The least of a value of each record.
    pub fn min<V: Record, F: Fn(&D) -> V + 'static>(self, of: F) -> Min<F> {
        Min(of)
    }

    /// The greatest of a value of each record.
    pub fn max<V: Record, F: Fn(&D) -> V + 'static>(self, of: F) -> Max<F> {
        Max(of)
    }

    /// A value of the record with the least event time; of several, the one that stood first by source, partition and
    /// offset.
    pub fn first<V: Record, F: Fn(&D) -> V + 'static>(self, of: F) -> First<F> {
        First(of)
    }

    /// A value of the record with the greatest event time; of several, the one that stood last by source, partition
    /// and offset.
    pub fn last<V: Record, F: Fn(&D) -> V + 'static>(self, of: F) -> Last<F> {
        Last(of)
    }

    /// An aggregate of your own: what one record makes, merged by its [`Accumulator`].
    pub fn merge<A: Accumulator, F: Fn(&D) -> A + 'static>(self, of: F) -> Merge<F> {
        Merge(of)
    }
}
