//! Sums and means, exact: integers and decimals, in numbers wide enough that the order of the terms never matters. Those
//! of floating-point numbers are in `super::real_sum`.

use crate::error::{Error, ErrorKind, Result};
use crate::record::{Decimal, Event, Real, Record};
use crate::stream::aggregate::quotient::{Uint384, nearest_quotient};
use crate::stream::aggregate::{Accumulator, Aggregate, DecimalSum, WideSum, WrappingSum};

/// A number that can be summed exactly.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be summed exactly",
    label = "no exact sum of these",
    note = "integers, `tidegate::Decimal` and `tidegate::Real` can; sum money in cents, or as `Decimal`",
    note = "`f64` has no total order, so it is no record: wrap it, `each.sum(|r| tidegate::Real::new(r.kelvin))`"
)]
pub trait Summable: Record {
    /// The accumulator of the sum; its default is zero.
    type Total: Accumulator + Default;
    /// The type of the emitted sum.
    type SumValue: Record;

    /// Returns the sum of this one number.
    fn total(self) -> Self::Total;

    /// Adds this number to a sum.
    #[inline]
    fn add_to(self, total: &mut Self::Total) {
        total.merge(&self.total());
    }

    /// Returns the sum.
    ///
    /// # Errors
    /// Fails if the emitted type cannot hold it.
    fn sum_value(total: &Self::Total) -> Result<Self::SumValue>;

    /// Returns the exact sum divided by a count, rounded once: the `f64` nearest to the exact mean, and of two
    /// equally near the even one.
    fn ratio(total: &Self::Total, count: i64) -> f64;
}

impl WideSum {
    #[inline]
    pub(super) fn new(value: i128) -> Self {
        WideSum { high: (value >> 64) as i64, low: value as u64 }
    }

    #[inline]
    pub(super) fn get(self) -> i128 {
        (i128::from(self.high) << 64) | i128::from(self.low)
    }
}

impl Accumulator for WideSum {
    const INVERTIBLE: bool = true;

    #[inline]
    fn merge(&mut self, other: &Self) {
        // Terms are of at most 64 bits and rows of fewer than 2^63 records: 127 bits cannot overflow.
        *self = WideSum::new(self.get() + other.get());
    }

    #[inline]
    fn unmerge(&mut self, other: &Self) -> bool {
        *self = WideSum::new(self.get() - other.get());
        true
    }
}

macro_rules! summable_integers {
    ($($integer:ty),*) => {$(
        impl Summable for $integer {
            type Total = WideSum;
            type SumValue = i128;

            #[inline]
            fn total(self) -> WideSum {
                WideSum::new(i128::from(self))
            }

            fn sum_value(total: &WideSum) -> Result<i128> {
                Ok(total.get())
            }

            fn ratio(total: &WideSum, count: i64) -> f64 {
                ratio_of(total.get(), count)
            }
        }
    )*};
}

summable_integers!(i8, i16, i32, i64, u8, u16, u32, u64);

/// Returns a sum divided by a count, rounded once.
fn ratio_of(total: i128, count: i64) -> f64 {
    signed(total < 0, nearest_quotient(total.unsigned_abs().into(), count.unsigned_abs().into(), 1))
}

fn signed(negative: bool, magnitude: f64) -> f64 {
    if negative { -magnitude } else { magnitude }
}

impl Accumulator for WrappingSum {
    const INVERTIBLE: bool = true;

    #[inline]
    fn merge(&mut self, other: &Self) {
        let (low, wrapped) = self.low.overflowing_add(other.low);
        let direction = if other.low < 0 { -1 } else { 1 };
        self.low = low;
        self.wraps += other.wraps + if wrapped { direction } else { 0 };
    }

    #[inline]
    fn unmerge(&mut self, other: &Self) -> bool {
        let (low, wrapped) = self.low.overflowing_sub(other.low);
        let direction = if other.low < 0 { 1 } else { -1 };
        self.low = low;
        self.wraps += if wrapped { direction } else { 0 } - other.wraps;
        true
    }
}

impl Summable for i128 {
    type Total = WrappingSum;
    type SumValue = i128;

    fn total(self) -> WrappingSum {
        WrappingSum { wraps: 0, low: self }
    }

    fn sum_value(total: &WrappingSum) -> Result<i128> {
        if total.wraps == 0 { Ok(total.low) } else { Err(overflow("an i128")) }
    }

    fn ratio(total: &WrappingSum, count: i64) -> f64 {
        let (negative, magnitude) = total.magnitude();
        signed(negative, nearest_quotient(magnitude, count.unsigned_abs().into(), 1))
    }
}

impl WrappingSum {
    /// Returns `true` if the sum is negative, and its absolute value.
    fn magnitude(&self) -> (bool, Uint384) {
        let negative = self.wraps < 0 || self.wraps == 0 && self.low < 0;
        // 2^128 · wraps + low, with a low part that may be of the other sign.
        let wraps = Uint384([0, self.wraps.unsigned_abs().into(), 0]);
        let magnitude = match (self.low < 0) == negative {
            true => wraps.times_plus(1, self.low.unsigned_abs()),
            false => wraps.minus(self.low.unsigned_abs()),
        };
        (negative, magnitude)
    }
}

fn overflow(kind: &str) -> Error {
    Error::of(ErrorKind::ValueFailed, format!("a sum is too large for {kind}"))
        .help("sum smaller parts, or sum in larger units")
}

const FRACTIONS: i128 = 10i128.pow(28);

impl Accumulator for DecimalSum {
    const INVERTIBLE: bool = true;

    fn merge(&mut self, other: &Self) {
        let fraction = self.fraction + other.fraction;
        let mut units = WrappingSum { wraps: self.wraps, low: self.units };
        units.merge(&WrappingSum { wraps: other.wraps, low: other.units });
        units.merge(&WrappingSum { wraps: 0, low: fraction / FRACTIONS });
        *self = DecimalSum { units: units.low, fraction: fraction % FRACTIONS, wraps: units.wraps };
    }

    fn unmerge(&mut self, other: &Self) -> bool {
        let fraction = self.fraction - other.fraction;
        let mut units = WrappingSum { wraps: self.wraps, low: self.units };
        units.unmerge(&WrappingSum { wraps: other.wraps, low: other.units });
        units.merge(&WrappingSum { wraps: 0, low: fraction.div_euclid(FRACTIONS) });
        *self = DecimalSum { units: units.low, fraction: fraction.rem_euclid(FRACTIONS), wraps: units.wraps };
        true
    }
}

impl Summable for Decimal {
    type Total = DecimalSum;
    type SumValue = Decimal;

    fn total(self) -> DecimalSum {
        let one = 10i128.pow(self.scale());
        let (units, rest) = (self.mantissa().div_euclid(one), self.mantissa().rem_euclid(one));
        DecimalSum { units, fraction: rest * (FRACTIONS / one), wraps: 0 }
    }

    fn sum_value(total: &DecimalSum) -> Result<Decimal> {
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
        Decimal::from_digits(mantissa, scale).ok_or_else(out_of_range)
    }

    fn ratio(total: &DecimalSum, count: i64) -> f64 {
        let (negative, whole) = WrappingSum { wraps: total.wraps, low: total.units }.magnitude();
        // The fraction is never negative, the units may be: of -0.1 they are -1, and the fraction is 0.9.
        let magnitude = match negative {
            true => whole.times_plus(FRACTIONS.unsigned_abs(), 0).minus(total.fraction.unsigned_abs()),
            false => whole.times_plus(FRACTIONS.unsigned_abs(), total.fraction.unsigned_abs()),
        };
        signed(negative, nearest_quotient(magnitude, FRACTIONS.unsigned_abs(), count.unsigned_abs().into()))
    }
}

/// See [`Each::sum`](super::Each::sum).
#[derive(Clone, Copy, Debug)]
pub struct Sum<F>(pub(super) F);

impl<D, N: Summable, F: Fn(&D) -> N + 'static> Aggregate<D> for Sum<F> {
    type Part = N;
    type Sum = N::Total;
    type Value = N::SumValue;

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

    fn empty(&self) -> Option<N::Total> {
        Some(N::Total::default())
    }

    fn value(&self, _count: i64, sum: &N::Total) -> Result<N::SumValue> {
        N::sum_value(sum)
    }
}

/// See [`Each::mean`](super::Each::mean).
#[derive(Clone, Copy, Debug)]
pub struct Mean<F>(pub(super) F);

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
