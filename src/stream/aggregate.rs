//! Aggregates: what a window keeps of its records, and what it shows of that.
//!
//! * [`Aggregate`]: how an event becomes a **part**, what is sent to the worker that has the key; how parts add up to
//!   an **accumulator**; and the **value** that is shown.
//! * [`Each`]: what the closure of `aggregate` gets, to name aggregates with: `|each| (each.count(), each.sum(|t| …))`.
//!
//! Invariant: `merge` is *exactly* commutative and associative. Then a row is a function of the records alone, not of
//! workers, epochs or crashes. So integers are summed in 128 bits, decimals in integer and fraction, ties of
//! `first` and `last` are broken by where the record stood (and by the value, for several made of one record), and
//! floating-point numbers are compared but never summed.

use std::fmt;
use std::marker::PhantomData;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::record::{Decimal, Event, Real, Record};
use crate::time::EventTime;

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

    /// What is shown of `count` records, at least one.
    ///
    /// # Errors
    /// When the value cannot be told, as a sum beyond its type's range.
    fn value(&self, count: i64, sum: &Self::Sum) -> Result<Self::Value>;
}

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

    /// The exact sum of a number of each record: `i128` for integers, [`Decimal`] for decimals. A sum that its type
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

/// What can be summed exactly.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be summed exactly",
    label = "no exact sum of these",
    note = "integers and `tidegate::Decimal` can; sum money in cents, or as `Decimal`",
    note = "a sum of floating-point numbers depends on the order of its terms, so `f64` and `tidegate::Real` have none"
)]
pub trait Summable: Record {
    /// The sum as it is kept.
    type Total: Accumulator;
    /// The sum as it is shown.
    type Shown: Record;

    /// The sum of one number.
    fn total(self) -> Self::Total;

    /// Adds a number.
    #[inline]
    fn add_to(self, total: &mut Self::Total) {
        total.merge(&self.total());
    }

    /// The sum, if the shown type holds it.
    ///
    /// # Errors
    /// When it does not.
    fn shown(total: &Self::Total) -> Result<Self::Shown>;

    /// The sum divided by a count, as the nearest number there is.
    fn ratio(total: &Self::Total, count: i64) -> f64;
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

impl WideSum {
    #[inline]
    fn new(value: i128) -> Self {
        WideSum { high: (value >> 64) as i64, low: value as u64 }
    }

    #[inline]
    fn get(self) -> i128 {
        (i128::from(self.high) << 64) | i128::from(self.low)
    }
}

impl Accumulator for WideSum {
    #[inline]
    fn merge(&mut self, other: &Self) {
        // Terms are of at most 64 bits and rows of fewer than 2^63 records: 127 bits cannot overflow.
        *self = WideSum::new(self.get() + other.get());
    }
}

macro_rules! summable_integers {
    ($($integer:ty),*) => {$(
        impl Summable for $integer {
            type Total = WideSum;
            type Shown = i128;

            #[inline]
            fn total(self) -> WideSum {
                WideSum::new(i128::from(self))
            }

            fn shown(total: &WideSum) -> Result<i128> {
                Ok(total.get())
            }

            fn ratio(total: &WideSum, count: i64) -> f64 {
                ratio_of(total.get(), count)
            }
        }
    )*};
}

summable_integers!(i8, i16, i32, i64, u8, u16, u32, u64);

/// The quotient as whole part and remainder, so that a large sum does not lose the small digits of its mean.
fn ratio_of(total: i128, count: i64) -> f64 {
    let count = i128::from(count);
    (total / count) as f64 + (total % count) as f64 / count as f64
}

/// A sum of 128-bit integers: 128 bits, and how often they wrapped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct WrappingSum {
    wraps: i64,
    low: i128,
}

#[cfg(feature = "abomonation")]
crate::in_place!(WrappingSum { wraps, low });

impl Accumulator for WrappingSum {
    #[inline]
    fn merge(&mut self, other: &Self) {
        let (low, wrapped) = self.low.overflowing_add(other.low);
        let direction = if other.low < 0 { -1 } else { 1 };
        self.low = low;
        self.wraps += other.wraps + if wrapped { direction } else { 0 };
    }
}

impl Summable for i128 {
    type Total = WrappingSum;
    type Shown = i128;

    fn total(self) -> WrappingSum {
        WrappingSum { wraps: 0, low: self }
    }

    fn shown(total: &WrappingSum) -> Result<i128> {
        if total.wraps == 0 { Ok(total.low) } else { Err(overflow("an i128")) }
    }

    fn ratio(total: &WrappingSum, count: i64) -> f64 {
        if total.wraps == 0 {
            ratio_of(total.low, count)
        } else {
            (total.wraps as f64 * 2f64.powi(128) + total.low as f64) / count as f64
        }
    }
}

fn overflow(kind: &str) -> Error {
    Error::new(format!("a sum is too large for {kind}")).help("sum smaller parts, or sum in larger units")
}

/// A sum of decimals, exact: whole units, and 10^-28ths of one in 0 ≤ fraction < 10^28. The least and the greatest
/// [`Decimal`] are below 10^29, so more than 10^9 of them can be added before `units` could overflow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct DecimalSum {
    units: i128,
    fraction: i128,
    /// What did not fit into `units`, in halves of its range; never zero if the sum is out of range for good.
    wraps: i64,
}

#[cfg(feature = "abomonation")]
crate::in_place!(DecimalSum { units, fraction, wraps });

const FRACTIONS: i128 = 10i128.pow(28);

impl Accumulator for DecimalSum {
    fn merge(&mut self, other: &Self) {
        let fraction = self.fraction + other.fraction;
        let mut units = WrappingSum { wraps: self.wraps, low: self.units };
        units.merge(&WrappingSum { wraps: other.wraps, low: other.units });
        units.merge(&WrappingSum { wraps: 0, low: fraction / FRACTIONS });
        *self = DecimalSum { units: units.low, fraction: fraction % FRACTIONS, wraps: units.wraps };
    }
}

impl Summable for Decimal {
    type Total = DecimalSum;
    type Shown = Decimal;

    fn total(self) -> DecimalSum {
        let one = 10i128.pow(self.scale());
        let (units, rest) = (self.mantissa().div_euclid(one), self.mantissa().rem_euclid(one));
        DecimalSum { units, fraction: rest * (FRACTIONS / one), wraps: 0 }
    }

    fn shown(total: &DecimalSum) -> Result<Decimal> {
        let out_of_range = || overflow("a Decimal");
        if total.wraps != 0 {
            return Err(out_of_range());
        }
        // The least scale that holds the fraction: the mantissa has room for 28 digits at most.
        let (mut fraction, mut scale) = (total.fraction, 28u32);
        while scale > 0 && fraction % 10 == 0 {
            fraction /= 10;
            scale -= 1;
        }
        let whole = total.units.checked_mul(10i128.pow(scale)).ok_or_else(out_of_range)?;
        let mantissa = whole.checked_add(fraction).ok_or_else(out_of_range)?;
        Decimal::try_from_i128_with_scale(mantissa, scale).map_err(|_| out_of_range())
    }

    fn ratio(total: &DecimalSum, count: i64) -> f64 {
        let whole = <i128 as Summable>::ratio(&WrappingSum { wraps: total.wraps, low: total.units }, count);
        whole + total.fraction as f64 / FRACTIONS as f64 / count as f64
    }
}

/// See [`Each::sum`].
#[derive(Clone, Copy, Debug)]
pub struct Sum<F>(F);

impl<D, N: Summable, F: Fn(&D) -> N + 'static> Aggregate<D> for Sum<F> {
    type Part = N;
    type Sum = N::Total;
    type Value = N::Shown;

    #[inline]
    fn part(&self, event: &Event<D>) -> N {
        (self.0)(&event.data)
    }

    #[inline]
    fn lift(&self, part: N) -> N::Total {
        part.total()
    }

    #[inline]
    fn absorb(&self, sum: &mut N::Total, part: N) {
        part.add_to(sum);
    }

    fn value(&self, _count: i64, sum: &N::Total) -> Result<N::Shown> {
        N::shown(sum)
    }
}

/// See [`Each::mean`].
#[derive(Clone, Copy, Debug)]
pub struct Mean<F>(F);

impl<D, N: Summable, F: Fn(&D) -> N + 'static> Aggregate<D> for Mean<F> {
    type Part = N;
    type Sum = N::Total;
    type Value = Real;

    #[inline]
    fn part(&self, event: &Event<D>) -> N {
        (self.0)(&event.data)
    }

    #[inline]
    fn lift(&self, part: N) -> N::Total {
        part.total()
    }

    #[inline]
    fn absorb(&self, sum: &mut N::Total, part: N) {
        part.add_to(sum);
    }

    fn value(&self, count: i64, sum: &N::Total) -> Result<Real> {
        Ok(Real::new(N::ratio(sum, count)))
    }
}

macro_rules! extreme {
    ($(#[$doc:meta])* $name:ident, $sum:ident, $better:tt) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug)]
        pub struct $name<F>(F);

        /// The value kept by the aggregate of the same name.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $sum<V> {
            value: V,
        }

        #[cfg(feature = "abomonation")]
        crate::in_place!($sum<V> { value });

        impl<V: Record> Accumulator for $sum<V> {
            #[inline]
            fn merge(&mut self, other: &Self) {
                if other.value $better self.value {
                    self.value.clone_from(&other.value);
                }
            }
        }

        impl<D, V: Record, F: Fn(&D) -> V + 'static> Aggregate<D> for $name<F> {
            type Part = V;
            type Sum = $sum<V>;
            type Value = V;

            #[inline]
            fn part(&self, event: &Event<D>) -> V {
                (self.0)(&event.data)
            }

            #[inline]
            fn lift(&self, value: V) -> $sum<V> {
                $sum { value }
            }

            #[inline]
            fn absorb(&self, sum: &mut $sum<V>, part: V) {
                if const { std::mem::needs_drop::<V>() } {
                    if part $better sum.value {
                        sum.value = part;
                    }
                } else {
                    // Without a branch: which records are new extremes cannot be predicted, and copying is cheap.
                    sum.value = if part $better sum.value { part } else { sum.value.clone() };
                }
            }

            fn value(&self, _count: i64, sum: &$sum<V>) -> Result<V> {
                Ok(sum.value.clone())
            }
        }
    };
}

extreme!(
    /// See [`Each::min`].
    Min, Least, <
);
extreme!(
    /// See [`Each::max`].
    Max, Greatest, >
);

/// When and where a record stood: what `first` and `last` go by.
type Standing = (EventTime, (u16, u32, u64));

macro_rules! by_event_time {
    ($(#[$doc:meta])* $name:ident, $sum:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug)]
        pub struct $name<F>(F);

        impl<D, V: Record, F: Fn(&D) -> V + 'static> Aggregate<D> for $name<F> {
            type Part = (Standing, V);
            type Sum = $sum<(Standing, V)>;
            type Value = V;

            fn part(&self, event: &Event<D>) -> (Standing, V) {
                ((event.time, event.origin.place()), (self.0)(&event.data))
            }

            fn lift(&self, value: (Standing, V)) -> $sum<(Standing, V)> {
                $sum { value }
            }

            fn value(&self, _count: i64, sum: &$sum<(Standing, V)>) -> Result<V> {
                Ok(sum.value.1.clone())
            }
        }
    };
}

by_event_time!(
    /// See [`Each::first`].
    First, Least
);
by_event_time!(
    /// See [`Each::last`].
    Last, Greatest
);

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
