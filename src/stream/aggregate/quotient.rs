//! Exact division: the `f64` nearest to a quotient of wide integers.
//!
//! Numerators have up to 384 bits, denominators up to 192: enough for the sum of 2^63 decimals divided by their count, and
//! for the variance of 2^63 integers of 64 bits.
//!
//! Invariant: the quotient is rounded once, to nearest, ties to even, as IEEE 754 rounds one division. The result neither
//! overflows nor is subnormal: a quotient that is not zero lies between 2^-192 and 2^384.

/// All integers up to this one are exact as `f64`.
const EXACT: u128 = 1 << f64::MANTISSA_DIGITS;

/// The magnitude of a numerator, most significant part first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Uint384(pub(super) [u128; 3]);

impl From<u128> for Uint384 {
    fn from(value: u128) -> Self {
        Uint384([0, 0, value])
    }
}

impl Uint384 {
    /// Returns `self` · `factor` + `term`, which must fit.
    pub(super) fn times_plus(self, factor: u128, term: u128) -> Uint384 {
        let Uint384([high, middle, low]) = self;
        let (low, carry) = low.carrying_mul(factor, term);
        let (middle, carry) = middle.carrying_mul(factor, carry);
        let (high, overflow) = high.carrying_mul(factor, carry);
        debug_assert_eq!(overflow, 0, "a numerator has 384 bits");
        Uint384([high, middle, low])
    }

    /// Returns `self` − `term`, which must not be negative.
    pub(super) fn minus(self, term: u128) -> Uint384 {
        let Uint384([high, middle, low]) = self;
        let (low, borrow) = low.borrowing_sub(term, false);
        let (middle, borrow) = middle.borrowing_sub(0, borrow);
        Uint384([high - u128::from(borrow), middle, low])
    }

    /// Returns the number of bits without leading zeros.
    fn bits(self) -> i32 {
        let Uint384([high, middle, low]) = self;
        let bits = |part: u128| (u128::BITS - part.leading_zeros()) as i32;
        match (high, middle) {
            (0, 0) => bits(low),
            (0, _) => 128 + bits(middle),
            _ => 256 + bits(high),
        }
    }

    /// Returns the bit of weight 2^`at`; 0 for negative weights.
    fn bit(self, at: i32) -> u128 {
        let Ok(at) = usize::try_from(at) else { return 0 };
        self.0[2 - at / 128] >> (at % 128) & 1
    }

    /// Returns `true` if a bit below weight 2^`at` is set.
    fn has_bits_below(self, at: i32) -> bool {
        let Uint384([high, middle, low]) = self;
        let below = |part: u128, at: i32| at > 0 && (at >= 128 || part << (128 - at) != 0) && part != 0;
        below(low, at) || below(middle, at - 128) || below(high, at - 256)
    }
}

/// Returns the `f64` nearest to `numerator` / (`factor` · `scale`), neither of which is 0; `scale` is less than 2^64
/// · 2^63.
pub(super) fn nearest_quotient(numerator: Uint384, factor: u128, scale: u128) -> f64 {
    let (low, high) = factor.carrying_mul(scale, 0);
    debug_assert!(high < 1 << 64 && (high, low) != (0, 0), "a denominator has 192 bits and is not 0");
    if let (Uint384([0, 0, few]), 0) = (numerator, high)
        && few <= EXACT
        && low <= EXACT
    {
        return few as f64 / low as f64;
    }
    if numerator == Uint384([0; 3]) {
        return 0.0;
    }
    // Long division, a bit at a time, until 64 bits of the quotient from its first 1 on are there.
    let (mut at, mut quotient, mut rest) = (numerator.bits(), 0u64, (0u128, 0u128));
    while quotient >> 63 == 0 {
        at -= 1;
        rest = (rest.0 << 1 | rest.1 >> 127, rest.1 << 1 | numerator.bit(at));
        quotient <<= 1;
        if rest >= (high, low) {
            let (less, borrow) = rest.1.borrowing_sub(low, false);
            rest = (rest.0 - high - u128::from(borrow), less);
            quotient |= 1;
        }
    }
    // Of all further bits it only matters whether one of them is 1; the last of the 64 is far below the last of the 53.
    let inexact = rest != (0, 0) || numerator.has_bits_below(at);
    (quotient | u64::from(inexact)) as f64 * 2f64.powi(at)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use num_bigint::BigInt;
    use num_rational::BigRational;

    pub(in crate::stream::aggregate) fn fraction(
        numerator: impl Into<BigInt>,
        denominator: impl Into<BigInt>,
    ) -> BigRational {
        BigRational::new(numerator.into(), denominator.into())
    }

    /// Asserts that no `f64` is nearer to an exact number, and that of two equally near ones it is the even one.
    pub(in crate::stream::aggregate) fn assert_nearest(found: f64, exact: &BigRational, of: &dyn std::fmt::Debug) {
        let off = |it: f64| {
            let apart = BigRational::from_float(it).unwrap() - exact;
            if apart < fraction(0, 1) { -apart } else { apart }
        };
        for other in [found.next_up(), found.next_down()] {
            let (own, others) = (off(found), off(other));
            assert!(own <= others, "{other:?} is nearer than {found:?} to {exact} of {of:?}");
            assert!(own < others || found.to_bits() & 1 == 0, "{found:?} is not the even one for {exact} of {of:?}");
        }
    }

    fn big(Uint384([high, middle, low]): Uint384) -> BigInt {
        (BigInt::from(high) << 256) + (BigInt::from(middle) << 128) + BigInt::from(low)
    }

    #[test]
    fn a_quotient_is_the_nearest_number_to_the_exact_fraction() {
        let mut random = fastrand::Rng::with_seed(7);
        let mut bits = |most: u32| -> u128 {
            let shift = 128 - random.u32(1..=most);
            // Runs of equal bits are where roundings carry and tie.
            match random.u8(0..4) {
                0 => u128::MAX >> shift,
                1 => 1 << (127 - shift),
                2 => (1 << (127 - shift)) | 1,
                _ => random.u128(..) >> shift | 1 << (127 - shift),
            }
        };
        for case in 0..20_000 {
            let parts = [bits(128), bits(128), bits(128)];
            let numerator = match case % 4 {
                0 => Uint384(parts),
                1 => Uint384([0, parts[1], parts[2]]),
                2 => Uint384([0, parts[1], 0]),
                _ => Uint384([0, 0, parts[2]]),
            };
            let (factor, scale) = (bits(128), bits(63));
            let exact = fraction(big(numerator), BigInt::from(factor) * scale);
            assert_nearest(nearest_quotient(numerator, factor, scale), &exact, &(numerator, factor, scale));
        }
        assert_eq!(nearest_quotient(Uint384([0; 3]), u128::MAX, 1), 0.0);
    }

    #[test]
    fn ties_go_to_the_even_number() {
        // 2^53 + 1 lies between two numbers, as does 2^53 + 3; a little more or less than that does not.
        let two = |exponent: i32| 2f64.powi(exponent);
        for (numerator, rounded) in [((1u128 << 53) + 1, two(53)), ((1 << 53) + 3, two(53) + 4.0)] {
            let wide = Uint384::from(numerator).times_plus(10u128.pow(28), 0);
            assert_eq!(nearest_quotient(wide, 10u128.pow(28), 1), rounded);
            assert_eq!(
                nearest_quotient(wide.times_plus(1, 1), 10u128.pow(28), 1),
                two(53) + if rounded == two(53) { 2.0 } else { 4.0 }
            );
            assert_eq!(
                nearest_quotient(wide.minus(1), 10u128.pow(28), 1),
                two(53) + if rounded == two(53) { 0.0 } else { 2.0 }
            );
        }
    }
}
