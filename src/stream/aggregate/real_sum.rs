//! Exact sums of floating-point numbers: a superaccumulator.
//!
//! Every finite `f64` is a whole multiple of 2^-1074. A [`RealSum`] is the sum as such a multiple: a wide integer in two's
//! complement, of which only the limbs that are not implied are kept (readings of a sensor need two or three of 64 bits;
//! numbers of all magnitudes need 34). Nothing is rounded before the value is asked for, and then once: the sum is the
//! `f64` nearest to the exact sum, the mean the one nearest to the exact mean, and of two equally near ones it is the one
//! whose last bit is 0. A sum of finite numbers that is nearer to 2^1024 than to the greatest `f64` is an infinity, as in
//! IEEE 754; a mean of finite numbers is always finite.
//!
//! Numbers that are not finite are kept as a set beside the sum. NaN, or infinities of both signs, make the value NaN;
//! infinities of one sign make it that infinity.
//!
//! Invariant: a sum is a function of its terms as a multiset, in memory as in its serialization. `first` and `limbs` are
//! canonical: the lowest limb is not 0, and the highest is not implied by the sign of the one below; zero has no limbs.
//!
//! The idea of a fixed-point accumulator as wide as all floating-point numbers is Kulisch's; how R. M. Neal, "Fast exact
//! summation using small and large superaccumulators", 2015 (arXiv:1505.05571), keeps carries for later is faster for
//! long arrays, but not canonical between two terms.

use std::iter;

use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::record::Real;
use crate::stream::aggregate::{Accumulator, Summable};

/// The exponent of the unit, 2^-1074: the least positive `f64`.
const UNIT: i32 = f64::MIN_EXP - f64::MANTISSA_DIGITS as i32;
/// The bits of a number that are its fraction.
const FRACTION_BITS: u32 = f64::MANTISSA_DIGITS - 1;
/// The exponent of infinities and NaN, as it is in their bits.
const NOT_FINITE: u64 = 0x7ff;
const LIMB: u32 = u64::BITS;
/// The maximum of [`StoredRealSum::shift`] in a sum of numbers.
const MAX_SHIFT: u16 = 280;

const POSITIVE_INFINITY: u8 = 1;
const NEGATIVE_INFINITY: u8 = 2;
const NAN: u8 = 4;

/// An exact sum of [`Real`]s. Its order as a value has no meaning.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(from = "StoredRealSum", into = "StoredRealSum")]
pub struct RealSum {
    /// The weight of the lowest limb: 2^(64 · `first` − 1074).
    first: u32,
    /// The sum, lowest limb first, in two's complement.
    limbs: Vec<u64>,
    /// The kinds of numbers that are not finite among the terms.
    not_finite: u8,
}

/// The serialization of a [`RealSum`]: its bytes without those that are implied, so that 1.5 takes two.
#[derive(Serialize, Deserialize)]
#[serde(rename = "RealSum")]
struct StoredRealSum {
    /// The number of zero bytes below `bytes`.
    shift: u16,
    /// The sum, lowest byte first, in two's complement.
    bytes: Vec<u8>,
    not_finite: u8,
}

impl From<RealSum> for StoredRealSum {
    fn from(sum: RealSum) -> Self {
        let mut bytes = sum.limbs.iter().flat_map(|limb| limb.to_le_bytes()).collect::<Vec<_>>();
        let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
        bytes.drain(..zeros);
        let implied = |below: u8| if below >> 7 == 1 { u8::MAX } else { 0 };
        while let [.., below, last] = bytes[..]
            && last == implied(below)
        {
            bytes.pop();
        }
        StoredRealSum { shift: (sum.first * 8) as u16 + zeros as u16, bytes, not_finite: sum.not_finite }
    }
}

impl From<StoredRealSum> for RealSum {
    fn from(stored: StoredRealSum) -> Self {
        let shift = usize::from(stored.shift.min(MAX_SHIFT));
        let negative = stored.bytes.last().is_some_and(|byte| byte >> 7 == 1);
        let implied = if negative { u8::MAX } else { 0 };
        let mut bytes = vec![0; shift % size_of::<u64>()];
        bytes.extend(stored.bytes);
        bytes.resize(bytes.len().next_multiple_of(size_of::<u64>()), implied);
        let limbs = bytes.as_chunks().0.iter().map(|limb| u64::from_le_bytes(*limb)).collect();
        let mut sum = RealSum { first: (shift / size_of::<u64>()) as u32, limbs, not_finite: stored.not_finite };
        sum.trim();
        sum
    }
}

/// Returns the limb that two's complement implies above one.
#[inline]
fn implied_above(limb: u64) -> u64 {
    if limb >> (LIMB - 1) == 1 { u64::MAX } else { 0 }
}

impl RealSum {
    /// Adds a number.
    #[inline]
    fn add(&mut self, number: f64) {
        let bits = number.to_bits();
        let exponent = bits >> FRACTION_BITS & NOT_FINITE;
        let fraction = bits & ((1 << FRACTION_BITS) - 1);
        if exponent == NOT_FINITE {
            self.not_finite |= match (number.is_nan(), number < 0.0) {
                (true, _) => NAN,
                (_, true) => NEGATIVE_INFINITY,
                _ => POSITIVE_INFINITY,
            };
            return;
        }
        // Subnormal numbers have no implied bit, and the exponent of the least normal ones.
        let (mantissa, place) = match exponent {
            0 => (fraction, 0),
            _ => (fraction | 1 << FRACTION_BITS, exponent as u32 - 1),
        };
        if mantissa == 0 {
            return;
        }
        let magnitude = i128::from(mantissa) << (place % LIMB);
        let term = if number < 0.0 { -magnitude } else { magnitude };
        let words = [term as u64, (term >> LIMB) as u64];
        match words {
            [0, high] => self.add_words(place / LIMB + 1, &[high]),
            _ => self.add_words(place / LIMB, &words),
        }
    }

    /// Adds an integer in two's complement, whose lowest word has the weight of limb number `at`.
    fn add_words(&mut self, at: u32, words: &[u64]) {
        let Some(last) = words.last() else { return };
        if self.limbs.is_empty() {
            self.first = at;
        }
        if at < self.first {
            self.limbs.splice(0..0, iter::repeat_n(0, (self.first - at) as usize));
            self.first = at;
        }
        let from = (at - self.first) as usize;
        // One limb more than either has, for the carry.
        let length = self.limbs.len().max(from + words.len()) + 1;
        self.limbs.resize(length, self.limbs.last().map_or(0, |last| implied_above(*last)));
        let words = words.iter().copied().chain(iter::repeat(implied_above(*last)));
        let mut carry = false;
        for (limb, word) in self.limbs[from..].iter_mut().zip(words) {
            (*limb, carry) = limb.carrying_add(word, carry);
        }
        self.trim();
    }

    /// Removes the limbs that are implied.
    fn trim(&mut self) {
        while let [.., below, last] = self.limbs[..]
            && last == implied_above(below)
        {
            self.limbs.pop();
        }
        let zeros = self.limbs.iter().take_while(|limb| **limb == 0).count();
        self.limbs.drain(..zeros);
        self.first = if self.limbs.is_empty() { 0 } else { self.first + zeros as u32 };
    }

    /// Returns the sum divided by a count, rounded once.
    fn divided_by(&self, count: u64) -> f64 {
        if self.not_finite != 0 {
            return match self.not_finite {
                POSITIVE_INFINITY => f64::INFINITY,
                NEGATIVE_INFINITY => f64::NEG_INFINITY,
                _ => f64::NAN,
            };
        }
        let negative = self.limbs.last().is_some_and(|last| implied_above(*last) != 0);
        // Two limbs below the magnitude: the quotient of a count of 63 bits has at least 65 bits then.
        let mut quotient = vec![0; 2];
        let mut carry = negative;
        quotient.extend(self.limbs.iter().map(|limb| {
            let flipped = if negative { !limb } else { *limb };
            let (limb, over) = flipped.overflowing_add(u64::from(carry));
            carry = over;
            limb
        }));
        let mut rest = 0;
        for limb in quotient.iter_mut().rev() {
            let part = u128::from(rest) << LIMB | u128::from(*limb);
            (*limb, rest) = ((part / u128::from(count)) as u64, (part % u128::from(count)) as u64);
        }
        let unit = UNIT + (LIMB * self.first) as i32 - 2 * LIMB as i32;
        let magnitude = nearest(&quotient, unit, rest != 0);
        if negative { -magnitude } else { magnitude }
    }
}

/// Returns the `f64` nearest to an integer of at least 65 bits (or 0), lowest limb first, times 2^`unit`; of two equally
/// near, the one whose last bit is 0. With `more`, the number is a little greater than that, by less than one unit.
fn nearest(limbs: &[u64], unit: i32, more: bool) -> f64 {
    let Some(top) = limbs.iter().rposition(|limb| *limb != 0) else { return 0.0 };
    let bits = top as i32 * LIMB as i32 + (LIMB - limbs[top].leading_zeros()) as i32;
    // The bits below this one are rounded: those beyond the precision of a number, and those below the least one.
    let cut = (bits - f64::MANTISSA_DIGITS as i32).max(UNIT - unit) as u32;
    let limb = |at: usize| limbs.get(at).copied().unwrap_or(0);
    let (at, within) = ((cut / LIMB) as usize, cut % LIMB);
    let mut mantissa = ((u128::from(limb(at + 1)) << LIMB | u128::from(limb(at))) >> within) as u64;
    let (half_at, half_within) = (((cut - 1) / LIMB) as usize, (cut - 1) % LIMB);
    let half = limb(half_at) >> half_within & 1 == 1;
    let below = more || limb(half_at) & ((1 << half_within) - 1) != 0 || (0..half_at).any(|at| limb(at) != 0);
    if half && (below || mantissa & 1 == 1) {
        mantissa += 1;
    }
    // The implied bit of a normal number, and a carry out of its fraction, count in the exponent.
    let exponent = (unit + cut as i32 - UNIT) as u64;
    let found = (exponent << FRACTION_BITS) + mantissa;
    f64::from_bits(found.min(NOT_FINITE << FRACTION_BITS))
}

impl Accumulator for RealSum {
    const INVERTIBLE: bool = true;

    fn merge(&mut self, other: &Self) {
        self.not_finite |= other.not_finite;
        self.add_words(other.first, &other.limbs);
    }

    /// Removes the finite numbers; `false` if there are others, of which those that are left are not known.
    fn unmerge(&mut self, other: &Self) -> bool {
        let Some(last) = other.limbs.last() else { return other.not_finite == 0 };
        // The negative has a limb more if the number is the least one of its length.
        let mut carry = true;
        let limbs = other.limbs.iter().copied().chain([implied_above(*last)]);
        let negative = limbs.map(|limb| {
            let (limb, over) = (!limb).carrying_add(0, carry);
            carry = over;
            limb
        });
        self.add_words(other.first, &negative.collect::<Vec<_>>());
        other.not_finite == 0
    }
}

impl Summable for Real {
    type Total = RealSum;
    type SumValue = Real;

    fn total(self) -> RealSum {
        let mut sum = RealSum::default();
        sum.add(self.get());
        sum
    }

    #[inline]
    fn add_to(self, total: &mut RealSum) {
        total.add(self.get());
    }

    fn sum_value(total: &RealSum) -> Result<Real> {
        Ok(Real::new(total.divided_by(1)))
    }

    fn ratio(total: &RealSum, count: i64) -> f64 {
        total.divided_by(count.unsigned_abs())
    }
}

#[cfg(test)]
mod tests {
    use fastrand::Rng;
    use num_bigint::BigInt;
    use num_rational::BigRational;
    use num_traits::Signed;

    use super::*;
    use crate::stream::aggregate::quotient::tests::assert_nearest;

    /// Returns a finite number: of any magnitude, of a few magnitudes that cancel and tie, or of the ends of the range.
    fn number(random: &mut Rng) -> f64 {
        let ends = [f64::MAX, f64::MIN_POSITIVE, f64::MIN_POSITIVE.next_down(), 5e-324, 0.0, 1.0, 0.1, 2f64.powi(53)];
        let magnitude = match random.u8(0..5) {
            0 => *random.choice(&ends).unwrap(),
            1 => f64::from(random.u32(..)) / 100.0,
            2 => 2f64.powi(random.i32(-60..60)),
            3 => f64::from_bits(random.u64(..1 << 53)),
            _ => f64::from_bits(random.u64(..NOT_FINITE << FRACTION_BITS)),
        };
        if random.bool() { -magnitude } else { magnitude }
    }

    fn numbers(random: &mut Rng) -> Vec<f64> {
        let mut numbers = (0..random.usize(1..20)).map(|_| number(random)).collect::<Vec<_>>();
        // Terms that cancel others leave what is far below them.
        for at in 0..numbers.len() {
            if random.u8(0..3) == 0 {
                numbers.push(-numbers[at]);
            }
        }
        random.shuffle(&mut numbers);
        numbers
    }

    fn of(numbers: &[f64]) -> RealSum {
        let mut sum = RealSum::default();
        numbers.iter().for_each(|number| sum.add(*number));
        sum
    }

    /// Returns a finite number as a multiple of the unit.
    fn units(number: f64) -> BigInt {
        let (fraction, exponent) = (number.abs().to_bits() & ((1 << 52) - 1), number.abs().to_bits() >> 52);
        let magnitude = match exponent {
            0 => BigInt::from(fraction),
            _ => BigInt::from(fraction | 1 << 52) << (exponent - 1),
        };
        if number < 0.0 { -magnitude } else { magnitude }
    }

    /// Asserts that a number is the quotient of the exact sum and a count, rounded once. (Fractions would be reduced at
    /// every step, which takes long for numbers of a thousand bits.)
    fn assert_rounded(found: f64, sum: &BigInt, count: u64, of: &dyn std::fmt::Debug) {
        let off = |units: BigInt| (units * count - sum).abs();
        // An infinity stands for the number that would follow the greatest one.
        let number = |number: f64| match number.is_finite() {
            true => units(number),
            false => (BigInt::from(1) << (1024 - UNIT)) * if number < 0.0 { -1 } else { 1 },
        };
        let own = off(number(found));
        for other in [found.next_up(), found.next_down()] {
            let others = off(number(other));
            assert!(own <= others, "{other:?} is nearer than {found:?} of {of:?}");
            let is_tie = own == others && other != found;
            assert!(!is_tie || found.to_bits() & 1 == 0, "{found:?} is not the even one of {of:?}");
        }
        assert!(found == 0.0 || (found < 0.0) == sum.is_negative(), "{found:?} has the wrong sign of {of:?}");
    }

    #[test]
    fn sums_and_means_are_the_nearest_numbers_to_exact_fractions() {
        for seed in 1..=3_000 {
            let mut random = Rng::with_seed(seed);
            let numbers = numbers(&mut random);
            let (sum, exact) = (of(&numbers), numbers.iter().map(|number| units(*number)).sum::<BigInt>());
            // Counts far beyond the number of terms: the quotients reach the least numbers.
            let count = (random.u64(..1 << 63) >> random.u32(0..63)).max(1);
            for count in [1, numbers.len() as u64, count, (1 << 63) - 1] {
                assert_rounded(sum.divided_by(count), &exact, count, &(seed, count, &numbers));
            }
        }
        // Fractions of the library, of numbers that are not too far apart for it.
        for seed in 1..=200 {
            let mut random = Rng::with_seed(seed);
            let numbers: Vec<f64> = (0..random.usize(1..12)).map(|_| random.f64() - 0.5).collect();
            let exact: BigRational = numbers.iter().map(|number| BigRational::from_float(*number).unwrap()).sum();
            assert_nearest(of(&numbers).divided_by(1), &exact, &numbers);
            let mean = of(&numbers).divided_by(numbers.len() as u64);
            assert_nearest(mean, &(exact / BigInt::from(numbers.len())), &numbers);
        }
    }

    #[test]
    fn a_sum_is_the_same_in_any_order_and_any_tree_of_merges() {
        for seed in 1..=1_000 {
            let mut random = Rng::with_seed(seed);
            let mut numbers = numbers(&mut random);
            let whole = of(&numbers);
            for _ in 0..3 {
                random.shuffle(&mut numbers);
                let mut parts = Vec::new();
                let mut rest = &numbers[..];
                while !rest.is_empty() {
                    let (part, behind) = rest.split_at(random.usize(1..=rest.len()));
                    parts.push(of(part));
                    rest = behind;
                }
                while parts.len() > 1 {
                    let part = parts.swap_remove(random.usize(..parts.len()));
                    let into = random.usize(..parts.len());
                    parts[into].merge(&part);
                }
                assert!(parts == std::slice::from_ref(&whole), "seed {seed}");
            }
            let bytes = postcard::to_allocvec(&whole).unwrap();
            assert_eq!(postcard::from_bytes::<RealSum>(&bytes).unwrap(), whole, "seed {seed}");
        }
    }

    #[test]
    fn as_many_terms_as_there_can_be_do_not_overflow() {
        for term in [f64::MAX, f64::MIN, 5e-324, -1.0] {
            let (mut sum, mut count) = (of(&[term]), 1u64);
            while count < 1 << 62 {
                sum.merge(&sum.clone());
                count *= 2;
            }
            assert_eq!(sum.divided_by(count), term);
            assert_eq!(sum.divided_by(1), term * count as f64, "a power of two is exact, or too large");
        }
    }

    #[test]
    fn numbers_that_are_not_finite_have_a_sum_that_is_not_finite() {
        let (up, down) = (f64::INFINITY, f64::NEG_INFINITY);
        for (numbers, sum) in [([up, 1.0], up), ([1.0, down], down), ([up, up], up)] {
            assert_eq!((of(&numbers).divided_by(1), of(&numbers).divided_by(2)), (sum, sum));
        }
        for numbers in [[up, down], [f64::NAN, 1.0], [f64::NAN, up]] {
            assert!(of(&numbers).divided_by(1).is_nan(), "{numbers:?}");
        }
        // The sum of finite numbers leaves the range only as a value: the terms are still there.
        assert_eq!(of(&[f64::MAX, f64::MAX]).divided_by(1), up);
        assert_eq!(of(&[f64::MAX, f64::MAX]).divided_by(2), f64::MAX);
        assert_eq!(of(&[f64::MAX, f64::MAX, f64::MIN, 0.1, f64::MIN]).divided_by(1), 0.1);
    }

    #[test]
    fn what_is_stored_of_a_sum_is_short() {
        let length = |numbers: &[f64]| postcard::to_allocvec(&of(numbers)).unwrap().len();
        assert_eq!((length(&[]), length(&[1.5]), length(&[-1.0]), length(&[0.1, 0.2])), (3, 5, 5, 11));
        // Cents of a hundred thousand: a tenth is a fraction without end.
        let prices = (0..100_000u32).map(|cents| f64::from(cents) / 100.0).collect::<Vec<_>>();
        assert!(length(&prices) <= 16, "{}", length(&prices));
        assert_rounded(of(&prices).divided_by(1), &prices.iter().map(|price| units(*price)).sum(), 1, &"prices");
        assert_eq!(length(&[f64::MAX, 5e-324]), 267);
        // Bytes that no sum has are read as the sum that they denote.
        let odd = StoredRealSum { shift: u16::MAX, bytes: vec![0; 5], not_finite: 0 };
        assert_eq!(RealSum::from(odd), RealSum::default());
    }
}
