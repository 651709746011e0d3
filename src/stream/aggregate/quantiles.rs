//! Quantiles of integers: a histogram whose ranges are as wide as the numbers are large.
//!
//! * The **range** of a number consists of its sign and its first eight binary digits. So ranges get wider as numbers
//!   get larger, and each number is within 1/256 of the middle of its range; those from −255 to 255 have a range
//!   each. This is the log-linear layout of HdrHistogram (G. Tene) with eight digits, and gives the error guarantee
//!   of DDSketch (Masson, Rim, Lee, "DDSketch: a fast and fully-mergeable quantile sketch with relative-error
//!   guarantees", 2019). As in both, merging adds up counts. Ranges are never joined to save space, so nothing
//!   depends on an order.
//! * The **rank** of the quantile q of n numbers is q·n rounded up, at least 1: the quantile is the number at that
//!   rank in ascending order ("nearest rank"). The quantile is always one of the numbers; the median of 1 and 2 is 1.
//!
//! Invariant: the accumulator is a function of the numbers as a multiset: the count of each range, the least and the
//! greatest number. The range that contains the rank is found exactly, so the only error is within the range.
//!
//! A histogram has as many ranges as numbers fall in: at most 128 for each doubling of the numbers, at some 10 bytes
//! each; 14,592 for all 64-bit numbers.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::record::Event;
use crate::stream::aggregate::{Accumulator, Aggregate};

/// The number of ranges of a doubling, as a power of two.
const DIGITS: u32 = 7;
/// The resolution of quantiles: they are rounded to multiples of 1 / `PARTS`.
const PARTS: u32 = 1_000_000_000;

/// The accumulator of [`Quantile`] and [`Quantiles`]: a histogram, and the least and the greatest number.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename = "Ranges")]
pub struct QuantileHistogram {
    least: i64,
    greatest: i64,
    /// The count of each range; ranges are in the order of their numbers.
    counts: BTreeMap<i16, u64>,
}

/// Returns the range of a number.
fn range_of(number: i64) -> i16 {
    let size = number.unsigned_abs();
    let wider = (u64::BITS - size.leading_zeros()).saturating_sub(DIGITS + 1);
    // Magnitudes with the same number of digits have 128 ranges; those below 128 have one each, in front of them.
    let range = (u64::from(wider) << DIGITS) + (size >> wider);
    if number < 0 { -(range as i16) } else { range as i16 }
}

/// Returns the middle of a range, rounded towards zero.
fn middle_of(range: i16) -> i128 {
    let size = u128::from(range.unsigned_abs());
    let wider = (size >> DIGITS).saturating_sub(1);
    let least = (size - (wider << DIGITS)) << wider;
    let middle = (least + ((1 << wider) - 1) / 2) as i128;
    if range < 0 { -middle } else { middle }
}

impl QuantileHistogram {
    fn of(number: i64) -> QuantileHistogram {
        QuantileHistogram { least: number, greatest: number, counts: BTreeMap::from([(range_of(number), 1)]) }
    }

    fn insert(&mut self, number: i64) {
        self.least = self.least.min(number);
        self.greatest = self.greatest.max(number);
        *self.counts.entry(range_of(number)).or_default() += 1;
    }

    /// Returns the number at a quantile, which is given in [`PARTS`].
    fn at(&self, parts: u32) -> i64 {
        let count = self.counts.values().map(|count| u128::from(*count)).sum::<u128>();
        let rank = (u128::from(parts) * count).div_ceil(u128::from(PARTS)).max(1);
        // The least and the greatest number are known exactly.
        if rank == 1 {
            return self.least;
        }
        if rank == count {
            return self.greatest;
        }
        let mut through = 0;
        let range = self.counts.iter().find(|(_, count)| {
            through += u128::from(**count);
            through >= rank
        });
        let middle = range.map_or(self.greatest.into(), |(range, _)| middle_of(*range));
        middle.clamp(self.least.into(), self.greatest.into()) as i64
    }
}

impl Accumulator for QuantileHistogram {
    const INVERTIBLE: bool = true;

    fn merge(&mut self, other: &Self) {
        self.least = self.least.min(other.least);
        self.greatest = self.greatest.max(other.greatest);
        for (range, count) in &other.counts {
            *self.counts.entry(*range).or_default() += count;
        }
    }

    /// The least and the greatest number of the others are known if they are not those that are removed.
    fn unmerge(&mut self, other: &Self) -> bool {
        for (range, count) in &other.counts {
            match self.counts.get_mut(range) {
                Some(found) if *found > *count => *found -= count,
                Some(found) if *found == *count => drop(self.counts.remove(range)),
                _ => return false,
            }
        }
        self.least < other.least && other.greatest < self.greatest
    }
}

/// Converts a quantile to [`PARTS`], so that 0.07 of 100 numbers is the seventh, not the eighth: as a binary fraction
/// it is a little more than 0.07.
fn parts_of(quantile: f64) -> u32 {
    (quantile * f64::from(PARTS)).round() as u32
}

fn check(quantile: f64) -> Result<()> {
    if (0.0..=1.0).contains(&quantile) {
        return Ok(());
    }
    let help = "it is between 0, the least, and 1, the greatest; the median is 0.5";
    Err(Error::usage(format!("{quantile} is no quantile")).help(help))
}

macro_rules! quantiles {
    ($(#[$doc:meta])* $name:ident, $quantiles:ty, $shown:ty, $check:expr, $show:expr) => {
        $(#[$doc])*
        #[derive(Clone, Debug)]
        pub struct $name<F> {
            pub(super) at: $quantiles,
            pub(super) of: F,
        }

        impl<D, N: Into<i64>, F: Fn(&D) -> N + 'static> Aggregate<D> for $name<F> {
            type Part = i64;
            type Sum = QuantileHistogram;
            type Value = $shown;

            fn part(&self, event: &Event<D>) -> i64 {
                (self.of)(&event.data).into()
            }

            fn lift(&self, number: i64) -> QuantileHistogram {
                QuantileHistogram::of(number)
            }

            fn absorb(&self, sum: &mut QuantileHistogram, number: i64) {
                sum.insert(number);
            }

            fn check(&self) -> Result<()> {
                $check(&self.at)
            }

            fn value(&self, _count: i64, sum: &QuantileHistogram) -> Result<$shown> {
                Ok($show(&self.at, sum))
            }
        }
    };
}

quantiles!(
    /// See [`Each::quantile`](super::Each::quantile).
    Quantile, f64, i64,
    |at: &f64| check(*at),
    |at: &f64, sum: &QuantileHistogram| sum.at(parts_of(*at))
);
quantiles!(
    /// See [`Each::quantiles`](super::Each::quantiles).
    Quantiles, Vec<f64>, Vec<i64>,
    |at: &Vec<f64>| at.iter().try_for_each(|at| check(*at)),
    |at: &Vec<f64>, sum: &QuantileHistogram| at.iter().map(|at| sum.at(parts_of(*at))).collect()
);

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the numbers around the borders of ranges, and random ones of every magnitude.
    fn numbers() -> Vec<i64> {
        let mut random = fastrand::Rng::with_seed(1);
        let mut numbers = (-2000..2000).collect::<Vec<i64>>();
        for bit in 0..63 {
            for near in -2..=2 {
                numbers.push((1i64 << bit).wrapping_add(near));
            }
            for _ in 0..200 {
                numbers.push(random.i64(..) >> bit);
            }
        }
        numbers.extend([i64::MIN, i64::MIN + 1, i64::MAX, i64::MAX - 1]);
        numbers.extend(numbers.clone().into_iter().map(i64::wrapping_neg));
        numbers.sort_unstable();
        numbers
    }

    #[test]
    fn ranges_are_in_order_and_no_number_is_far_from_its_middle() {
        for pair in numbers().windows(2) {
            assert!(range_of(pair[0]) <= range_of(pair[1]), "{pair:?}");
        }
        for number in numbers() {
            let (number, middle) = (i128::from(number), middle_of(range_of(number)));
            assert!((number - middle).abs() * 256 < number.abs().max(1), "{number} is in the range of {middle}");
            assert!(number.abs() > 255 || number == middle, "{number}");
        }
    }

    #[test]
    fn the_range_of_a_middle_is_its_range() {
        for range in (0..=range_of(i64::MAX)).chain(range_of(i64::MIN)..0) {
            let middle = middle_of(range).clamp(i64::MIN.into(), i64::MAX.into()) as i64;
            assert_eq!(range_of(middle), range, "{middle}");
        }
        assert_eq!(i32::from(range_of(i64::MAX)) - i32::from(range_of(i64::MIN)) + 1, 14_592);
    }

    #[test]
    fn ranks_are_nearest_and_by_decimal_fractions() {
        let of = |numbers: std::ops::RangeInclusive<i64>| {
            let mut ranges = QuantileHistogram::of(*numbers.start());
            numbers.skip(1).for_each(|number| ranges.insert(number));
            ranges
        };
        for percent in 1..=100 {
            assert_eq!(of(1..=100).at(parts_of(percent as f64 / 100.0)), percent);
        }
        for (quantile, number) in [(0.0, 1), (1e-12, 1), (0.5, 1), (0.500_000_01, 2), (1.0, 2)] {
            assert_eq!(of(1..=2).at(parts_of(quantile)), number, "{quantile}");
        }
        assert_eq!(of(1_000_001..=1_000_001).at(parts_of(0.3)), 1_000_001);
        assert_eq!((of(1..=1_000_001).at(0), of(1..=1_000_001).at(PARTS)), (1, 1_000_001));
    }

    #[test]
    fn what_is_no_quantile_is_refused() {
        for quantile in [f64::NAN, -0.1, 1.000_001, f64::INFINITY] {
            let error = check(quantile).unwrap_err();
            assert!(error.to_string().starts_with(&format!("{quantile} is no quantile")), "{error}");
        }
        assert!([0.0, -0.0, 1.0, 0.5, f64::MIN_POSITIVE].into_iter().all(|quantile| check(quantile).is_ok()));
    }
}
