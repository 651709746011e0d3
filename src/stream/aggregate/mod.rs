//! Aggregates: what a window keeps of its records, and what it shows of that.
//!
//! * [`Aggregate`]: how an event becomes a **part**, what is sent to the worker that has the key; how parts add up to
//!   an **accumulator**; and the **value** that is shown.
//! * [`Each`]: what the closure of `aggregate` gets, to name aggregates with: `|each| (each.count(), each.sum(|t| …))`.
//!
//! | what it says | its aggregates | what is kept |
//! | --- | --- | --- |
//! | how much | [`Count`], [`Sum`], [`Mean`] | one exact sum |
//! | how it is spread | [`Variance`], [`SampleVariance`], [`StdDev`], [`SampleStdDev`] | two exact sums |
//! | where most of it lies | [`Quantile`], [`Quantiles`] | counts of ranges of numbers, as many as occur |
//! | the ends | [`Min`], [`Max`], [`First`], [`Last`], [`ArgMin`], [`ArgMax`] | one value |
//! | more of the ends | [`Top`], [`Bottom`] | so many values |
//! | how many kinds | [`CountDistinct`], [`Distinct`] | every kind |
//! | about how many kinds | [`ApproxCountDistinct`] | 16 KiB at most |
//! | everything | [`Collect`] | every value |
//! | your own | [`Merge`], [`Aggregate`] | what you say |
//!
//! Invariant: `merge` is *exactly* commutative and associative, so that what is kept is a function of the parts as a
//! multiset. Then a row is a function of the records alone, not of workers, epochs or crashes. So integers are summed in
//! 128 bits and their squares in 192, decimals in integer and fraction; ties of `first`, `last` and their like are broken
//! by where the record stood (and by the value, for several made of one record); sketches are of the kind that forgets in
//! which order it was filled; and floating-point numbers are compared but never summed.
//!
//! Values that are equal must be the same value, as with everything that derives its order: of two equal ones, it is
//! nobody's promise which is kept.
//!
//! The path of an accumulator's type within the crate is part of what a snapshot's rows are checked by: a type that is
//! moved to another module cannot read its old rows any more. That is why those of sums and extremes are in this file.

mod collect;
mod distinct;
mod each;
mod extremes;
mod quantiles;
mod quotient;
mod ranked;
mod sketch;
mod spread;
mod sums;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::record::{Event, Record};

pub use collect::{Collect, Collected};
pub use distinct::{CountDistinct, Distinct, Kinds};
pub use each::Each;
pub use extremes::{ArgMax, ArgMin, First, GreatestBy, Last, LeastBy, Max, Min};
pub use quantiles::{Quantile, Quantiles, Ranges};
pub use ranked::{Bottom, Highest, Lowest, Top};
pub use sketch::{ApproxCountDistinct, Sketch};
pub use spread::{Moments, SampleStdDev, SampleVariance, StdDev, Variance};
pub use sums::{Mean, Sum, Summable};

/// What adds up. `merge` must be exactly commutative and associative; together with the count of records that the
/// engine keeps beside it, it makes a semigroup of differential dataflow.
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not say how two of it are merged",
    label = "not an `Accumulator`",
    note = "for sums, extremes, first and last there are `each.sum(…)`, `each.min(…)`, `each.first(…)` and so on",
    note = "for an aggregate of your own, implement `tidegate::stream::aggregate::Accumulator` for a type of your own"
)]
pub trait Accumulator: Record {
    /// Adds what `other` holds.
    fn merge(&mut self, other: &Self);
}

/// What a window keeps of its records and shows of them.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not an aggregate of `{D}` records",
    label = "not an aggregate",
    note = "name aggregates with what the closure gets, in a tuple if there are several: `|each| (each.count(), each.sum(|r| r.cents))`",
    note = "a tuple has up to eight aggregates, and tuples can be nested; what is computed from them belongs behind `.on_close()`, in `.map(…)`"
)]
pub trait Aggregate<D>: 'static {
    /// What of a record is sent to the worker that has its key.
    type Part: Record;
    /// What is kept.
    type Sum: Accumulator;
    /// What is shown.
    type Value: Record;

    /// What this aggregate needs of a record.
    fn part(&self, event: &Event<D>) -> Self::Part;

    /// What one record makes.
    fn lift(&self, part: Self::Part) -> Self::Sum;

    /// Adds a record: as merging what it makes, but cheaper.
    #[inline]
    fn absorb(&self, sum: &mut Self::Sum, part: Self::Part) {
        sum.merge(&self.lift(part));
    }

    /// Whether it can be computed at all: asked once, when the query is built.
    ///
    /// # Errors
    /// What makes no sense, such as a quantile above 1.
    fn check(&self) -> Result<()> {
        Ok(())
    }

    /// What is shown of `count` records, at least one.
    ///
    /// # Errors
    /// When the value cannot be told, as a sum beyond its type's range.
    fn value(&self, count: i64, sum: &Self::Sum) -> Result<Self::Value>;
}

impl Accumulator for () {
    #[inline]
    fn merge(&mut self, (): &()) {}
}

/// See [`Each::count`].
#[derive(Clone, Copy, Debug)]
pub struct Count;

impl<D> Aggregate<D> for Count {
    type Part = ();
    type Sum = ();
    type Value = i64;

    #[inline]
    fn part(&self, _event: &Event<D>) {}

    #[inline]
    fn lift(&self, (): ()) {}

    fn value(&self, count: i64, (): &()) -> Result<i64> {
        Ok(count)
    }
}

/// A sum of integers: 128 bits and how often they overflowed, so that the order of the terms never matters. Its order
/// as a value means nothing; it is kept in halves so that rows are not padded to sixteen bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct WideSum {
    high: i64,
    low: u64,
}

#[cfg(feature = "abomonation")]
crate::in_place!(WideSum { high, low });

/// A sum of 128-bit integers: 128 bits, and how often they wrapped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct WrappingSum {
    wraps: i64,
    low: i128,
}

#[cfg(feature = "abomonation")]
crate::in_place!(WrappingSum { wraps, low });

/// A sum of decimals, exact: whole units, and 10^-28ths of one in 0 ≤ fraction < 10^28. The least and the greatest
/// [`Decimal`](crate::Decimal) are below 10^29, so more than 10^9 of them can be added before `units` could overflow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct DecimalSum {
    units: i128,
    fraction: i128,
    /// What did not fit into `units`, in halves of its range; never zero if the sum is out of range for good.
    wraps: i64,
}

#[cfg(feature = "abomonation")]
crate::in_place!(DecimalSum { units, fraction, wraps });

/// The value kept by [`Min`] and [`First`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Least<V> {
    value: V,
}

#[cfg(feature = "abomonation")]
crate::in_place!(Least<V> { value });

/// The value kept by [`Max`] and [`Last`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Greatest<V> {
    value: V,
}

#[cfg(feature = "abomonation")]
crate::in_place!(Greatest<V> { value });

/// See [`Each::merge`].
#[derive(Clone, Copy, Debug)]
pub struct Merge<F>(F);

impl<D, A: Accumulator, F: Fn(&D) -> A + 'static> Aggregate<D> for Merge<F> {
    type Part = A;
    type Sum = A;
    type Value = A;

    fn part(&self, event: &Event<D>) -> A {
        (self.0)(&event.data)
    }

    fn lift(&self, part: A) -> A {
        part
    }

    fn value(&self, _count: i64, sum: &A) -> Result<A> {
        Ok(sum.clone())
    }
}

macro_rules! tuples {
    ($($aggregate:ident $at:tt),+) => {
        impl<$($aggregate: Accumulator),+> Accumulator for ($($aggregate,)+) {
            #[inline]
            fn merge(&mut self, other: &Self) {
                $(self.$at.merge(&other.$at);)+
            }
        }

        impl<Item, $($aggregate: Aggregate<Item>),+> Aggregate<Item> for ($($aggregate,)+) {
            type Part = ($($aggregate::Part,)+);
            type Sum = ($($aggregate::Sum,)+);
            type Value = ($($aggregate::Value,)+);

            #[inline]
            fn part(&self, event: &Event<Item>) -> Self::Part {
                ($(self.$at.part(event),)+)
            }

            #[inline]
            fn lift(&self, part: Self::Part) -> Self::Sum {
                ($(self.$at.lift(part.$at),)+)
            }

            #[inline]
            fn absorb(&self, sum: &mut Self::Sum, part: Self::Part) {
                $(self.$at.absorb(&mut sum.$at, part.$at);)+
            }

            fn check(&self) -> Result<()> {
                $(self.$at.check()?;)+
                Ok(())
            }

            fn value(&self, count: i64, sum: &Self::Sum) -> Result<Self::Value> {
                Ok(($(self.$at.value(count, &sum.$at)?,)+))
            }
        }
    };
}

tuples!(A 0);
tuples!(A 0, B 1);
tuples!(A 0, B 1, C 2);
tuples!(A 0, B 1, C 2, D 3);
tuples!(A 0, B 1, C 2, D 3, E 4);
tuples!(A 0, B 1, C 2, D 3, E 4, F 5);
tuples!(A 0, B 1, C 2, D 3, E 4, F 5, G 6);
tuples!(A 0, B 1, C 2, D 3, E 4, F 5, G 6, H 7);
