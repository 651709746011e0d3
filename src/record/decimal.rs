//! Exact decimal numbers.

use std::fmt;
use std::ops::{Add, Deref, Mul, Neg, Sub};
use std::str::FromStr;

use serde::de::{self, DeserializeSeed, Error as _, MapAccess, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::shortened;

/// An exact decimal number of up to 28 digits, with a decimal point at any place. For money, if it is not integers of
/// cents.
///
/// It wraps the number of the `rust_decimal` crate, with conversions in both directions (`*decimal`, `.into()`). Text
/// formats (CSV, JSON) write it as that crate does. State and connections between processes store its digits and its
/// scale instead: `rust_decimal` asks the format for the type of the value, which only self-describing formats know.
///
/// Text and numbers (in JSON `"0.10"` and `0.10`) are read digit for digit; too many digits are an error, and are never
/// rounded. In a type with `#[serde(flatten)]`, `untagged` or `tag`, `serde` itself turns JSON's numbers into `f64`
/// first, which keeps some 17 digits: write the decimal as text there.
///
/// Numbers that differ only in their scale, such as 1.5 and 1.50, are equal and form one group. Which of them is
/// published as the group's key is unspecified, unless all are brought into one form
/// ([`normalize`](rust_decimal::Decimal::normalize)).
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

    /// Returns `digits` with the decimal point before the last `scale` of them: `Decimal::new(150, 2)` is 1.50.
    ///
    /// # Panics
    /// Panics if the scale is above 28.
    pub fn new(digits: i64, scale: u32) -> Self {
        Decimal(rust_decimal::Decimal::new(digits, scale))
    }

    /// Like [`Decimal::new`], for more digits; `None` if there are too many digits, or if the scale is above 28.
    pub fn from_digits(digits: i128, scale: u32) -> Option<Self> {
        rust_decimal::Decimal::try_from_i128_with_scale(digits, scale).ok().map(Decimal)
    }

    /// Returns the number of the `rust_decimal` crate.
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
            return deserializer.deserialize_newtype_struct(RAW_JSON, TextVisitor);
        }
        let (digits, scale) = <(i128, u32)>::deserialize(deserializer)?;
        Decimal::from_digits(digits, scale).ok_or_else(|| D::Error::custom("these digits are no decimal number"))
    }
}

/// The newtype name by which `serde_json` is asked for the raw text of a value. Every other format takes it for the
/// name of a plain newtype struct.
const RAW_JSON: &str = "$serde_json::private::RawValue";

/// Parses a decimal digit for digit, from text such as `-1.50` or `2e3`.
fn exact(text: &str) -> Result<Decimal, String> {
    let refused = || format!("`{}` is no decimal number of 28 digits at most", shortened(text, 60));
    let (digits, exponent) = match text.split_once(['e', 'E']) {
        Some((digits, exponent)) => (digits, exponent.parse::<i32>().map_err(|_| refused())?),
        None => (text, 0),
    };
    let number = rust_decimal::Decimal::from_str_exact(digits).map_err(|_| refused())?;
    if exponent == 0 {
        return Ok(Decimal(number));
    }
    let (mut mantissa, mut scale) = (number.mantissa(), i64::from(number.scale()) - i64::from(exponent));
    if mantissa == 0 {
        return Ok(Decimal::ZERO);
    }
    while scale > 0 && mantissa % 10 == 0 {
        (mantissa, scale) = (mantissa / 10, scale - 1);
    }
    while scale < 0 {
        (mantissa, scale) = (mantissa.checked_mul(10).ok_or_else(refused)?, scale + 1);
    }
    u32::try_from(scale).ok().and_then(|scale| Decimal::from_digits(mantissa, scale)).ok_or_else(refused)
}

/// Reads a decimal from a text format.
struct TextVisitor;

impl<'de> Visitor<'de> for TextVisitor {
    type Value = Decimal;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a decimal number, or a text that writes one")
    }

    /// Called by formats other than JSON.
    fn visit_newtype_struct<D: Deserializer<'de>>(self, deserializer: D) -> Result<Decimal, D::Error> {
        // CSV has only texts; `deserialize_any` would turn some of them into an `f64`.
        if std::any::type_name::<D>().contains("csv::") {
            deserializer.deserialize_str(self)
        } else {
            deserializer.deserialize_any(self)
        }
    }

    /// Called by `serde_json`, with the raw text of a JSON value.
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Decimal, A::Error> {
        match map.next_key::<String>()? {
            Some(key) if key == RAW_JSON => map.next_value_seed(RawJson),
            _ => Err(A::Error::invalid_type(Unexpected::Map, &self)),
        }
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Decimal, E> {
        exact(text).map_err(E::custom)
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<Decimal, E> {
        Ok(Decimal::from(number))
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<Decimal, E> {
        Ok(Decimal(number.into()))
    }

    fn visit_i128<E: de::Error>(self, number: i128) -> Result<Decimal, E> {
        exact(&number.to_string()).map_err(E::custom)
    }

    fn visit_u128<E: de::Error>(self, number: u128) -> Result<Decimal, E> {
        exact(&number.to_string()).map_err(E::custom)
    }

    /// Parses the number's shortest text, which equals the text that was written if that had at most some 15 digits.
    fn visit_f64<E: de::Error>(self, number: f64) -> Result<Decimal, E> {
        exact(&number.to_string()).map_err(E::custom)
    }
}

/// Reads a decimal from the text of a JSON value.
struct RawJson;

impl<'de> DeserializeSeed<'de> for RawJson {
    type Value = Decimal;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Decimal, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for RawJson {
    type Value = Decimal;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the text of a JSON value")
    }

    fn visit_str<E: de::Error>(self, json: &str) -> Result<Decimal, E> {
        let unexpected = |found| E::invalid_type(found, &TextVisitor);
        match json.as_bytes().first() {
            Some(b'"') => {
                let text: String = serde_json::from_str(json).map_err(E::custom)?;
                exact(&text).map_err(E::custom)
            }
            Some(b'-' | b'0'..=b'9') => exact(json).map_err(E::custom),
            Some(b'{') => Err(unexpected(Unexpected::Map)),
            Some(b'[') => Err(unexpected(Unexpected::Seq)),
            Some(b'n') => Err(unexpected(Unexpected::Other("null"))),
            _ => Err(unexpected(Unexpected::Bool(json == "true"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Deserialize)]
    struct Paid {
        amount: Decimal,
        tip: Option<Decimal>,
    }

    #[test]
    fn numbers_of_json_and_texts_of_csv_keep_all_their_digits() {
        let long = "-1234567890.123456789012345678";
        let expected = Decimal(rust_decimal::Decimal::from_str_exact(long).unwrap());
        for json in [long.to_owned(), format!("\"{long}\""), format!(" {long} "), format!("{long}e0")] {
            assert_eq!(serde_json::from_str::<Decimal>(&json).unwrap().to_string(), long, "{json}");
            assert_eq!(serde_json::from_slice::<Decimal>(json.as_bytes()).unwrap(), expected);
            assert_eq!(serde_json::from_reader::<_, Decimal>(json.as_bytes()).unwrap(), expected);
            let paid: Paid = serde_json::from_str(&format!(r#"{{"tip":{json},"amount":{json}}}"#)).unwrap();
            assert_eq!(paid, Paid { amount: expected, tip: Some(expected) });
        }
        let mut csv = csv::Reader::from_reader("amount,tip\n-1234567890.123456789012345678,\n".as_bytes());
        assert_eq!(csv.deserialize().next().unwrap().ok(), Some(Paid { amount: expected, tip: None }));
        for (json, text) in [
            ("1e3", "1000"),
            ("1.50", "1.50"),
            ("25e-1", "2.5"),
            ("0e-99", "0"),
            ("18446744073709551615", "18446744073709551615"),
            ("79228162514264337593543950335", "79228162514264337593543950335"),
            ("10e-29", "0.0000000000000000000000000001"),
        ] {
            assert_eq!(serde_json::from_str::<Decimal>(json).unwrap().to_string(), text);
        }
        // A JSON value that was parsed before keeps only the digits of an `f64`, but all digits of a text.
        assert_eq!(serde_json::from_value::<Decimal>(long.into()).unwrap(), expected);
        assert_eq!(serde_json::from_value::<Decimal>(serde_json::json!(0.1)).unwrap(), Decimal::new(1, 1));
    }

    #[test]
    fn what_does_not_fit_is_an_error_and_is_not_rounded() {
        for json in [
            "79228162514264337593543950336",
            "0.00000000000000000000000000001",
            "1e29",
            "1e-29",
            "1e99999999999",
            "\"x\"",
            "\"\"",
            "null",
            "true",
            "[1]",
            "{\"a\":1}",
        ] {
            let error = serde_json::from_str::<Decimal>(json).unwrap_err().to_string();
            assert!(error.contains("decimal number"), "{json}: {error}");
        }
    }

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
