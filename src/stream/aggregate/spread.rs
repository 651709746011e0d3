//! The spread of integers about their mean: variance and standard deviation.
//!
//! Sums of the numbers and of their squares are kept exactly, so the order of the terms does not matter and no digits
//! are lost if large numbers lie close to each other. Values are computed from them once: the numerator n·Σx² − (Σx)²
//! exactly, in 256 bits, divided by the exact denominator and rounded once. So a variance is the `f64` nearest to the
//! exact one. A standard deviation is the square root of that, rounded once more: less than one unit in its last
//! place from the exact one. Both are equal on every machine.
//!
//! Invariant: with fewer than 2^63 numbers of 64 bits, Σx is below 2^126 and Σx² at most 2^189, so nothing overflows; and
//! the numerator is never negative (Cauchy–Schwarz).

use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::record::{Event, Real};
use crate::stream::aggregate::quotient::{Uint384, nearest_quotient};
use crate::stream::aggregate::{Accumulator, Aggregate, WideSum};

/// The accumulator of variances and standard deviations: the sum of the numbers, and that of their squares in three
/// parts of 64 bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Moments {
    sum: WideSum,
    high: u64,
    middle: u64,
    low: u64,
}

#[cfg(feature = "abomonation")]
crate::in_place!(Moments { sum, high, middle, low });

impl Moments {
    #[inline]
    fn of(number: i64) -> Moments {
        let square = u128::from(number.unsigned_abs()).pow(2);
        Moments { sum: WideSum::new(number.into()), high: 0, middle: (square >> 64) as u64, low: square as u64 }
    }

    /// Returns n·Σx² − (Σx)², of n numbers.
    fn numerator(&self, count: i64) -> Uint384 {
        let (low, middle, high) = (u128::from(self.low), u128::from(self.middle), u128::from(self.high));
        let (low, carry) = (middle << 64 | low).carrying_mul(count.unsigned_abs().into(), 0);
        let (high, _) = high.carrying_mul(count.unsigned_abs().into(), carry);
        let sum = self.sum.get().unsigned_abs();
        let (less_low, less_high) = sum.carrying_mul(sum, 0);
        let (low, borrow) = low.overflowing_sub(less_low);
        Uint384([0, high.wrapping_sub(less_high).wrapping_sub(borrow.into()), low])
    }

    /// Returns the mean square of the differences from the mean.
    fn variance(&self, count: i64) -> f64 {
        let count_wide = u128::from(count.unsigned_abs());
        nearest_quotient(self.numerator(count), count_wide, count_wide)
    }

    /// Returns the sum of the squares of the differences from the mean, divided by one less than their number; `None`
    /// for one number.
    fn sample_variance(&self, count: i64) -> Option<f64> {
        let count_wide = u128::from(count.unsigned_abs());
        (count > 1).then(|| nearest_quotient(self.numerator(count), count_wide, count_wide - 1))
    }
}

impl Accumulator for Moments {
    const INVERTIBLE: bool = true;

    #[inline]
    fn merge(&mut self, other: &Self) {
        self.sum.merge(&other.sum);
        let (low, carry) = self.low.carrying_add(other.low, false);
        let (middle, carry) = self.middle.carrying_add(other.middle, carry);
        (self.low, self.middle, self.high) = (low, middle, self.high.carrying_add(other.high, carry).0);
    }

    #[inline]
    fn unmerge(&mut self, other: &Self) -> bool {
        let (low, borrow) = self.low.borrowing_sub(other.low, false);
        let (middle, borrow) = self.middle.borrowing_sub(other.middle, borrow);
        (self.low, self.middle, self.high) = (low, middle, self.high.borrowing_sub(other.high, borrow).0);
        self.sum.unmerge(&other.sum)
    }
}

macro_rules! spread {
    ($(#[$doc:meta])* $name:ident, $shown:ty, $show:expr) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug)]
        pub struct $name<F>(pub(super) F);

        impl<D, N: Into<i64>, F: Fn(&D) -> N + 'static> Aggregate<D> for $name<F> {
            type Part = i64;
            type Sum = Moments;
            type Value = $shown;

            #[inline]
            fn part(&self, event: &Event<D>) -> i64 {
                (self.0)(&event.data).into()
            }

            #[inline]
            fn lift(&self, number: i64) -> Moments {
                Moments::of(number)
            }

            fn value(&self, count: i64, sum: &Moments) -> Result<$shown> {
                Ok($show(sum, count))
            }
        }
    };
}

spread!(
    /// See [`Each::variance`](super::Each::variance).
    Variance, Real, |sum: &Moments, count| Real::new(sum.variance(count))
);
spread!(
    /// See [`Each::sample_variance`](super::Each::sample_variance).
    SampleVariance, Option<Real>, |sum: &Moments, count| sum.sample_variance(count).map(Real::new)
);
spread!(
    /// See [`Each::std_dev`](super::Each::std_dev).
    StdDev, Real, |sum: &Moments, count| Real::new(sum.variance(count).sqrt())
);
spread!(
    /// See [`Each::sample_std_dev`](super::Each::sample_std_dev).
    SampleStdDev, Option<Real>, |sum: &Moments, count| sum.sample_variance(count).map(|it| Real::new(it.sqrt()))
);

#[cfg(test)]
mod tests {
    use super::*;

    fn of(numbers: &[i64]) -> Moments {
        let mut moments = Moments::default();
        numbers.iter().for_each(|number| moments.merge(&Moments::of(*number)));
        moments
    }

    #[test]
    fn variances_of_numbers_far_from_zero_keep_their_digits() {
        let far = 9_007_199_254_740_993_000;
        let moments = of(&[far + 4, far + 7, far + 13, far + 16]);
        assert_eq!((moments.variance(4), moments.sample_variance(4)), (22.5, Some(30.0)));
    }

    #[test]
    fn the_widest_numbers_do_not_overflow() {
        let half = 2f64.powi(63);
        assert_eq!(of(&[i64::MIN, i64::MAX]).variance(2), half * half);
        assert_eq!(of(&[i64::MIN; 3]).variance(3), 0.0);
        // As many of them as there can be: every doubling adds what is there to itself.
        let (mut moments, mut count) = (of(&[i64::MIN, i64::MAX]), 2);
        while count < 1 << 62 {
            moments.merge(&moments.clone());
            count *= 2;
        }
        assert_eq!((moments.variance(count), moments.high > 1 << 59), (half * half, true));
        let (mut moments, mut count) = (of(&[i64::MIN]), 1);
        while count < 1 << 62 {
            moments.merge(&moments.clone());
            count *= 2;
        }
        assert_eq!((moments.variance(count), moments.high), (0.0, 1 << 60));
    }

    #[test]
    fn one_number_has_no_spread_and_no_sample_variance() {
        assert_eq!((of(&[i64::MIN]).variance(1), of(&[i64::MIN]).sample_variance(1)), (0.0, None));
    }
}
