//! Aggregates: the accumulators that windows keep of their records, and the values computed from them.
//!
//! * [`Aggregate`]: turns an event into a **part**, which is sent to the worker of the key, adds parts up to an
//!   **accumulator**, and computes the **value** that is emitted.
//! * [`Each`]: the argument of the closure of `aggregate`, which names aggregates:
//!   `|each| (each.count(), each.sum(|t| …))`.
//!
//! | result | aggregates | state |
//! | --- | --- | --- |
//! | amount | [`Count`], [`Sum`], [`Mean`] | one exact sum |
//! | spread | [`Variance`], [`SampleVariance`], [`StdDev`], [`SampleStdDev`] | two exact sums |
//! | distribution | [`Quantile`], [`Quantiles`] | a histogram of the numbers that occur |
//! | extremes | [`Min`], [`Max`], [`First`], [`Last`], [`ArgMin`], [`ArgMax`] | one value |
//! | several extremes | [`Top`], [`Bottom`] | up to n values |
//! | distinct values | [`CountDistinct`], [`Distinct`] | every distinct value |
//! | distinct values, approximately | [`ApproxCountDistinct`] | 16 KiB at most |
//! | all values | [`Collect`] | every value |
//! | of some records | [`CountIf`], [`Filter`], [`FilterMap`], [`IfAny`] | that of the inner aggregate, and a count |
//! | with a name in states | [`Named`] | that of the inner aggregate |
//! | custom | [`Merge`], [`Aggregate`] | your own type |
//!
//! Invariant: `merge` is *exactly* commutative and associative, so an accumulator is a function of the parts as a
//! multiset. Then a row is a function of the records alone, not of workers, epochs or crashes. So integers are summed
//! in 128 bits and their squares in 192, decimals as integer and fraction, and floating-point numbers as wide integers
//! that are rounded when the value is computed; ties of `first`, `last` and the like are broken by the record's position
//! (and by the value, for several made of one record); and sketches are of a kind whose result does not depend on the
//! order of insertion.
//!
//! Values that are equal must be the same value, as with every type that derives its order: it is unspecified which
//! of two equal values is kept.
//!
//! The names of an accumulator's types and fields are part of the fingerprint of a snapshot's rows: renaming them
//! makes old rows unreadable. The module that a type is in is not part of it.

mod collect;
mod distinct;
mod each;
mod extremes;
mod filtered;
mod named;
mod quantiles;
mod quotient;
mod ranked;
mod real_sum;
mod sketch;
mod spread;
mod sums;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

use crate::durable::codec::NameTree;
use crate::error::Result;
use crate::record::{Event, Record};

pub use collect::{Collect, Collected};
pub use distinct::{CountDistinct, Distinct, DistinctValues};
pub use each::Each;
pub use extremes::{ArgMax, ArgMin, First, GreatestBy, Last, LeastBy, Max, Min};
pub use filtered::{CountIf, Filter, FilterMap, FilteredSum, IfAny};
pub use named::Named;
pub use quantiles::{Quantile, QuantileHistogram, Quantiles};
pub use ranked::{Bottom, BottomValues, Top, TopValues};
pub use real_sum::RealSum;
pub use sketch::{ApproxCountDistinct, Sketch};
pub use spread::{Moments, SampleStdDev, SampleVariance, StdDev, Variance};
pub use sums::{Mean, Sum, Summable};

/// A value that can be merged with others of its kind. `merge` must be exactly commutative and associative; with the
/// count of records that the engine keeps beside it, it is a semigroup of differential dataflow.
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not say how two of it are merged",
    label = "not an `Accumulator`",
    note = "for sums, extremes, first and last there are `each.sum(…)`, `each.min(…)`, `each.first(…)` and so on",
    note = "for an aggregate of your own, implement `tidegate::stream::aggregate::Accumulator` for a type of your own"
)]
pub trait Accumulator: Record {
    /// `true` if [`Accumulator::unmerge`] removes what was merged, for most values. Windows that overlap are then closed at
    /// a cost that does not depend on how much they overlap: what enters is merged, and what leaves is removed.
    const INVERTIBLE: bool = false;

    /// Adds `other` to this accumulator.
    fn merge(&mut self, other: &Self);

    /// Removes `other`, which was merged before, so that *exactly* the accumulator of the others is left: it has an equal
    /// value, and the same serialization. At least one record is left. Returns `false` if that is not possible for these
    /// values; this accumulator is then not used any more. Only called if [`Accumulator::INVERTIBLE`] is `true`.
    fn unmerge(&mut self, _other: &Self) -> bool {
        false
    }
}

/// The names that an aggregate and those within it have in a state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AggregateNames(pub(crate) NameTree);

/// A function of a window's records, computed from an accumulator.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not an aggregate of `{D}` records",
    label = "not an aggregate",
    note = "name aggregates with what the closure gets, in a tuple if there are several: `|each| (each.count(), each.sum(|r| r.cents))`",
    note = "a tuple has up to eight aggregates, and tuples can be nested; what is computed from them belongs behind `.on_close()`, in `.map(…)`"
)]
pub trait Aggregate<D>: 'static {
    /// The part of a record that is sent to the worker of its key.
    type Part: Record;
    /// The accumulator.
    type Sum: Accumulator;
    /// The emitted value.
    type Value: Record;

    /// Extracts the part of a record that this aggregate needs.
    fn part(&self, event: &Event<D>) -> Self::Part;

    /// Creates the accumulator of one record.
    fn lift(&self, part: Self::Part) -> Self::Sum;

    /// Adds a record: equivalent to merging its accumulator, but cheaper.
    #[inline]
    fn absorb(&self, sum: &mut Self::Sum, part: Self::Part) {
        sum.merge(&self.lift(part));
    }

    /// Checks the aggregate's parameters; called when the query is built.
    ///
    /// # Errors
    /// Fails if a parameter is invalid, such as a quantile above 1.
    fn check(&self) -> Result<()> {
        Ok(())
    }

    /// Returns the accumulator of no records, which changes nothing when it is merged; `None` if the aggregate has no value
    /// of no records, or one that depends on the number of the window's records. A changed program begins with it where the
    /// aggregate is new, see [`Each::named`].
    fn empty(&self) -> Option<Self::Sum> {
        None
    }

    /// Returns the names that the aggregate and those within it have in a state; none by default.
    fn names(&self) -> AggregateNames {
        AggregateNames::default()
    }

    /// Returns how many of its aggregates take only some of the records. The plan of a query tells it, and so does its
    /// fingerprint.
    fn filters(&self) -> usize {
        0
    }

    /// Computes the value of `count` records, at least one.
    ///
    /// # Errors
    /// Fails if the value cannot be computed, such as a sum beyond its type's range.
    fn value(&self, count: i64, sum: &Self::Sum) -> Result<Self::Value>;
}

/// Describes the aggregates that take only some of the records for the plan; empty if there are none.
pub(crate) fn describe_filters(filters: usize) -> String {
    match filters {
        0 => String::new(),
        1 => ", an aggregate of some records".to_owned(),
        more => format!(", {more} aggregates of some records"),
    }
}

impl Accumulator for () {
    const INVERTIBLE: bool = true;

    #[inline]
    fn merge(&mut self, (): &()) {}

    #[inline]
    fn unmerge(&mut self, (): &()) -> bool {
        true
    }
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

    fn empty(&self) -> Option<()> {
        Some(())
    }

    fn value(&self, count: i64, (): &()) -> Result<i64> {
        Ok(count)
    }
}

/// A sum of integers of up to 64 bits, in 128 bits, which cannot overflow. Its order as a value has no meaning; it is
/// kept in two halves so that rows are not padded to sixteen bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct WideSum {
    high: i64,
    low: u64,
}

#[cfg(feature = "abomonation")]
crate::in_place!(WideSum { high, low });

/// A sum of 128-bit integers: 128 bits, and how often they wrapped, so that the order of the terms does not matter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct WrappingSum {
    wraps: i64,
    low: i128,
}

#[cfg(feature = "abomonation")]
crate::in_place!(WrappingSum { wraps, low });

/// An exact sum of decimals: whole units, and 10^-28ths of one, with 0 ≤ fraction < 10^28. The magnitude of every
/// [`Decimal`](crate::Decimal) is below 10^29, so more than 10^9 of them can be added before `units` could wrap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct DecimalSum {
    units: i128,
    fraction: i128,
    /// The number of times that `units` wrapped, negative if downwards; zero exactly if the units of the sum are in the
    /// range of `i128`.
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
            const INVERTIBLE: bool = $($aggregate::INVERTIBLE)&&+;

            #[inline]
            fn merge(&mut self, other: &Self) {
                $(self.$at.merge(&other.$at);)+
            }

            #[inline]
            fn unmerge(&mut self, other: &Self) -> bool {
                $(self.$at.unmerge(&other.$at))&&+
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

            fn empty(&self) -> Option<Self::Sum> {
                Some(($(self.$at.empty()?,)+))
            }

            fn names(&self) -> AggregateNames {
                AggregateNames(NameTree::of_tuple([$(self.$at.names().0),+]))
            }

            fn filters(&self) -> usize {
                0 $(+ self.$at.filters())+
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
