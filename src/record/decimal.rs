//! Exact decimal numbers.

use std::fmt;
use std::ops::{Add, Deref, Mul, Neg, Sub};
use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// An exact decimal number: up to 28 digits, and where the point is. For money, if it is not integers of cents.
///
/// It is the number of the `rust_decimal` crate, which it gives (`*decimal`) and is made of (`.into()`). As text (CSV, JSON)
/// it is read and written as that is; in states, and between processes, as its digits and its scale, since `rust_decimal`
/// asks the format what comes next, which only formats that describe themselves can answer.
///
/// Numbers are equal, and one group, that differ in their scale alone, as 1.5 and 1.50 do: which of them is shown as the key
/// of the group is open, unless they are given in one form ([`normalize`](rust_decimal::Decimal::normalize)).
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Decimal(rust_decimal::Decimal);

impl Decimal {
    /// 0.
    pub const ZERO: Decimal = Decimal(rust_decimal::Decimal::ZERO);
    /// 1.
    pub const ONE: Decimal = Decimal(rust_decimal::Decimal::ONE);
    /// 10.
    pub const TEN: Decimal = Decimal(rust_decimal::Decimal::TEN);
    /// The greatest number: 2^96 − 1.
    pub const MAX: Decimal = Decimal(rust_decimal::Decimal::MAX);
    /// The least number: −2^96 + 1.
    pub const MIN: Decimal = Decimal(rust_decimal::Decimal::MIN);

    /// `digits`, the last `scale` of them behind the point: `Decimal::new(150, 2)` is 1.50.
    ///
    /// # Panics
    /// If the scale is above 28.
    pub fn new(digits: i64, scale: u32) -> Self {
        Decimal(rust_decimal::Decimal::new(digits, scale))
    }

    /// Likewise, with more digits; `None` if they are too many, or the scale is above 28.
    pub fn from_digits(digits: i128, scale: u32) -> Option<Self> {
        rust_decimal::Decimal::try_from_i128_with_scale(digits, scale).ok().map(Decimal)
    }

    /// The number, as the `rust_decimal` crate has it.
    pub const fn get(self) -> rust_decimal::Decimal {
        self.0
    }
}

impl Deref for Decimal {
    type Target = rust_decimal::Decimal;

    fn deref(&self) -> &rust_decimal::Decimal {
        &self.0
    }
}

impl From<rust_decimal::Decimal> for Decimal {
    fn from(number: rust_decimal::Decimal) -> Self {
        Decimal(number)
    }
}

impl From<Decimal> for rust_decimal::Decimal {
    fn from(number: Decimal) -> Self {
        number.0
    }
}

impl From<i64> for Decimal {
    fn from(number: i64) -> Self {
        Decimal(number.into())
    }
}

impl FromStr for Decimal {
    type Err = rust_decimal::Error;

    fn from_str(text: &str) -> Result<Self, rust_decimal::Error> {
        text.parse().map(Decimal)
    }
}

/// Panics if the sum is too large: [`rust_decimal::Decimal::checked_add`] does not.
impl Add for Decimal {
    type Output = Decimal;

    fn add(self, other: Decimal) -> Decimal {
        Decimal(self.0 + other.0)
    }
}

/// Panics if the difference is too large: [`rust_decimal::Decimal::checked_sub`] does not.
impl Sub for Decimal {
    type Output = Decimal;

    fn sub(self, other: Decimal) -> Decimal {
        Decimal(self.0 - other.0)
    }
}

/// Panics if the product is too large: [`rust_decimal::Decimal::checked_mul`] does not.
impl Mul for Decimal {
    type Output = Decimal;

    fn mul(self, other: Decimal) -> Decimal {
        Decimal(self.0 * other.0)
    }
}

impl Neg for Decimal {
    type Output = Decimal;

    fn neg(self) -> Decimal {
        Decimal(-self.0)
    }
}

impl fmt::Debug for Decimal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Display for Decimal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Serialize for Decimal {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            Serialize::serialize(&self.0, serializer)
        } else {
            (self.0.mantissa(), self.0.scale()).serialize(serializer)
        }
    }
}

impl<'de> Deserialize<'de> for Decimal {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            return <rust_decimal::Decimal as Deserialize>::deserialize(deserializer).map(Decimal);
        }
        let (digits, scale) = <(i128, u32)>::deserialize(deserializer)?;
        Decimal::from_digits(digits, scale).ok_or_else(|| D::Error::custom("these digits are no decimal number"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_text_for_people_and_digits_for_programs() {
        for number in [Decimal::MIN, Decimal::new(-150, 2), Decimal::ZERO, Decimal::new(1, 28), Decimal::MAX] {
            let text = serde_json::to_string(&number).unwrap();
            assert_eq!(text, format!("\"{number}\""));
            assert_eq!(serde_json::from_str::<Decimal>(&text).unwrap(), number);
            let read: Decimal = postcard::from_bytes(&postcard::to_allocvec(&number).unwrap()).unwrap();
            assert_eq!((read, read.scale()), (number, number.scale()));
            assert_eq!(number.to_string().parse(), Ok(number));
        }
        assert_eq!(serde_json::from_str::<Vec<Decimal>>("[1.5, 2, \"3.50\"]").unwrap()[2], Decimal::new(35, 1));
        assert_eq!(-Decimal::ONE + Decimal::TEN * Decimal::from(2) - Decimal::new(5, 1), Decimal::new(185, 1));
        for bad in [(i128::MAX, 0), (1, 29)] {
            let bytes = postcard::to_allocvec(&bad).unwrap();
            assert!(postcard::from_bytes::<Decimal>(&bytes).is_err(), "{bad:?}");
        }
    }
}
