//! How integers are spread about their mean: variance and standard deviation.
//!
//! Sums of the numbers and of their squares are kept exactly, so the order of the terms does not matter and nothing is
//! lost where large numbers lie close to each other. What is shown is computed from them once: the numerator
//! n·Σx² − (Σx)² exactly, in 256 bits; then it and the denominator are rounded to `f64` and divided. So a variance is
//! within two units in its last place, and equal on every machine.
//!
//! Invariant: with fewer than 2^63 numbers of 64 bits, Σx is below 2^126 and Σx² at most 2^189, so nothing overflows; and
//! the numerator is never negative (Cauchy–Schwarz).

use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::record::{Event, Real};
use crate::stream::aggregate::{Accumulator, Aggregate, WideSum};

/// What variances and standard deviations keep: the sum of the numbers, and that of their squares in three parts of 64
/// bits.
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

    /// n·Σx² − (Σx)², of n numbers.
    fn numerator(&self, count: i64) -> f64 {
        let (low, middle, high) = (u128::from(self.low), u128::from(self.middle), u128::from(self.high));
        let (low, carry) = (middle << 64 | low).carrying_mul(count.unsigned_abs().into(), 0);
        let (high, _) = high.carrying_mul(count.unsigned_abs().into(), carry);
        let sum = self.sum.get().unsigned_abs();
        let (less_low, less_high) = sum.carrying_mul(sum, 0);
        let (low, borrow) = low.overflowing_sub(less_low);
        nearest(high.wrapping_sub(less_high).wrapping_sub(borrow.into()), low)
    }

    /// The mean square of the differences from the mean.
    fn variance(&self, count: i64) -> f64 {
        self.numerator(count) / i128::from(count).pow(2) as f64
    }

    /// The sum of the squares of the differences from the mean, divided by one less than their number.
    fn sample_variance(&self, count: i64) -> Option<f64> {
        let denominator = i128::from(count) * (i128::from(count) - 1);
        (count > 1).then(|| self.numerator(count) / denominator as f64)
    }
}

/// The `f64` that is nearest to an integer of 256 bits.
fn nearest(high: u128, low: u128) -> f64 {
    if high == 0 {
        return low as f64;
    }
    // The first 128 digits; of the others it only matters whether one of them is not zero.
    let left = high.leading_zeros();
    let (first, others) = match left {
        0 => (high, low),
        left => (high << left | low >> (128 - left), low << left),
    };
    let exponent = u64::from(1023 + 128 - left);
    (first | u128::from(others != 0)) as f64 * f64::from_bits(exponent << 52)
}

impl Accumulator for Moments {
    #[inline]
    fn merge(&mut self, other: &Self) {
        self.sum.merge(&other.sum);
        let (low, carry) = self.low.carrying_add(other.low, false);
        let (middle, carry) = self.middle.carrying_add(other.middle, carry);
        (self.low, self.middle, self.high) = (low, middle, self.high.carrying_add(other.high, carry).0);
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
    fn integers_are_rounded_to_the_nearest() {
        let two = |exponent: i32| 2f64.powi(exponent);
        assert_eq!(nearest(0, 12345), 12345.0);
        assert_eq!(nearest(1, 0), two(128));
        assert_eq!(nearest(1, 1), two(128));
        assert_eq!(nearest(1 << 127, 0), two(255));
        assert_eq!(nearest(u128::MAX, u128::MAX), two(256));
        // Halfway between two numbers of 53 digits, to the even one; and the least bit more, to the next.
        assert_eq!(nearest(1 << 53 | 1, 0), two(181));
        assert_eq!(nearest(1 << 53 | 1, 1), two(181) + two(129));
        assert_eq!(nearest(1 << 53 | 3, 0), two(181) + two(130));
        assert_eq!(nearest(1 << 52 | 1, 1 << 127), two(180) + two(129));
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
