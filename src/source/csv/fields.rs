//! Decodes the fields of a row by position.
//!
//! A [`RowFields`] is decoded into a struct by visiting its columns in the order of the struct's fields, without
//! comparing names. Only common cases are decoded here; in all others, and in any doubt, decoding fails with
//! [`NotByPosition`], and the caller lets the `csv` crate decide.
//!
//! Invariant: whatever is decoded here, the `csv` crate decodes to the same.

use std::fmt;

use serde::de::{self, IntoDeserializer, Visitor};

/// Fields of a row.
#[derive(Clone, Copy, Debug)]
pub(super) struct RowFields<'a> {
    bytes: &'a [u8],
    /// The same bytes as text; `None` if they are not known to be UTF-8.
    text: Option<&'a str>,
    places: &'a [(u32, u32)],
}

/// The row cannot be decoded by position; the `csv` crate may still decode it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NotByPosition;

impl fmt::Display for NotByPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("it is not decoded by position")
    }
}

impl std::error::Error for NotByPosition {}

impl de::Error for NotByPosition {
    fn custom<M: fmt::Display>(_: M) -> Self {
        NotByPosition
    }
}

impl<'a> RowFields<'a> {
    pub(super) fn new(bytes: &'a [u8], text: Option<&'a str>, places: &'a [(u32, u32)]) -> Self {
        RowFields { bytes, text, places }
    }

    /// Returns the number of fields.
    #[inline]
    pub(super) fn len(&self) -> usize {
        self.places.len()
    }

    /// Iterates over the fields in order.
    pub(super) fn fields(&self) -> impl Iterator<Item = &'a [u8]> {
        let bytes = self.bytes;
        self.places.iter().map(move |(start, end)| &bytes[*start as usize..*end as usize])
    }

    /// Decodes a struct from these columns, one for each of its fields.
    #[inline]
    pub(super) fn decode<T: de::DeserializeOwned>(&self, columns: &[usize]) -> Result<T, NotByPosition> {
        T::deserialize(Positional { row: *self, columns: columns.iter() })
    }

    #[inline]
    fn field(&self, column: usize) -> Result<Field<'a>, NotByPosition> {
        let (start, end) = *self.places.get(column).ok_or(NotByPosition)?;
        let (start, end) = (start as usize, end as usize);
        let text = match self.text {
            Some(text) => Some(text.get(start..end).ok_or(NotByPosition)?),
            None => None,
        };
        Ok(Field { bytes: &self.bytes[start..end], text })
    }
}

struct Positional<'a, 'c> {
    row: RowFields<'a>,
    columns: std::slice::Iter<'c, usize>,
}

impl<'de> de::Deserializer<'de> for Positional<'_, '_> {
    type Error = NotByPosition;

    #[inline]
    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, NotByPosition> {
        visitor.visit_seq(self)
    }

    #[inline]
    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, NotByPosition> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, NotByPosition> {
        Err(NotByPosition)
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct seq
        tuple tuple_struct map enum identifier ignored_any
    }
}

impl<'de> de::SeqAccess<'de> for Positional<'_, '_> {
    type Error = NotByPosition;

    #[inline]
    fn next_element_seed<S: de::DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, NotByPosition> {
        match self.columns.next() {
            Some(column) => seed.deserialize(self.row.field(*column)?).map(Some),
            None => Ok(None),
        }
    }
}

/// A field of a row.
#[derive(Clone, Copy)]
struct Field<'a> {
    bytes: &'a [u8],
    text: Option<&'a str>,
}

impl<'a> Field<'a> {
    #[inline]
    fn text(self) -> Result<&'a str, NotByPosition> {
        match self.text {
            Some(text) => Ok(text),
            None => std::str::from_utf8(self.bytes).map_err(|_| NotByPosition),
        }
    }

    #[inline]
    fn parsed<N: std::str::FromStr>(self) -> Result<N, NotByPosition> {
        self.text()?.parse().map_err(|_| NotByPosition)
    }

    /// Returns the field as an integer; fails unless it is an optional `-` and digits only.
    #[inline]
    fn signed(self) -> Result<i64, NotByPosition> {
        match self.bytes {
            [b'-', digits @ ..] => digits_of(digits).and_then(|value| i64::try_from(value).ok()).map(|value| -value),
            digits => digits_of(digits).and_then(|value| i64::try_from(value).ok()),
        }
        .ok_or(NotByPosition)
    }
}

/// Returns the value of 1 to 19 decimal digits, which always fit; `None` if there is anything else.
#[inline]
fn digits_of(bytes: &[u8]) -> Option<u64> {
    if bytes.is_empty() || bytes.len() > 19 {
        return None;
    }
    let (eights, rest) = bytes.as_chunks::<8>();
    let mut value = 0;
    for eight in eights {
        value = value * 100_000_000 + eight_digits(*eight)?;
    }
    for byte in rest {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            return None;
        }
        value = value * 10 + u64::from(digit);
    }
    Some(value)
}

/// Returns the value of eight decimal digits, `None` if a byte is no digit. Neighbours are combined to pairs, pairs to
/// fours, fours to all eight.
///
/// Source: Daniel Lemire, "Quickly parsing eight digits" (2018).
#[inline]
fn eight_digits(bytes: [u8; 8]) -> Option<u64> {
    const NIBBLES: u64 = u64::from_ne_bytes([0xf0; 8]);
    let word = u64::from_le_bytes(bytes);
    let carried = word.wrapping_add(u64::from_ne_bytes([0x06; 8]));
    if (word & NIBBLES) | ((carried & NIBBLES) >> 4) != u64::from_ne_bytes([0x33; 8]) {
        return None;
    }
    let word = word - u64::from_ne_bytes([0x30; 8]);
    let pairs = word.wrapping_mul(10).wrapping_add(word >> 8);
    let (even, odd) = (pairs & 0x0000_00ff_0000_00ff, (pairs >> 16) & 0x0000_00ff_0000_00ff);
    let sum = even.wrapping_mul(100 + (1_000_000 << 32)).wrapping_add(odd.wrapping_mul(1 + (10_000 << 32)));
    Some(sum >> 32)
}

macro_rules! integer {
    ($($method:ident $visit:ident $from:ident)*) => {$(
        #[inline]
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, NotByPosition> {
            visitor.$visit(integer!(@ self $from).try_into().map_err(|_| NotByPosition)?)
        }
    )*};
    (@ $self:ident signed) => { $self.signed()? };
    (@ $self:ident unsigned) => { digits_of($self.bytes).ok_or(NotByPosition)? };
}

impl<'de> de::Deserializer<'de> for Field<'_> {
    type Error = NotByPosition;

    integer! {
        deserialize_i8 visit_i8 signed
        deserialize_i16 visit_i16 signed
        deserialize_i32 visit_i32 signed
        deserialize_i128 visit_i128 signed
        deserialize_u8 visit_u8 unsigned
        deserialize_u16 visit_u16 unsigned
        deserialize_u32 visit_u32 unsigned
        deserialize_u128 visit_u128 unsigned
    }

    #[inline]
    fn deserialize_i64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, NotByPosition> {
        visitor.visit_i64(self.signed()?)
    }

    #[inline]
    fn deserialize_u64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, NotByPosition> {
        visitor.visit_u64(digits_of(self.bytes).ok_or(NotByPosition)?)
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, NotByPosition> {
        visitor.visit_bool(self.parsed()?)
    }

    fn deserialize_f32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, NotByPosition> {
        visitor.visit_f32(self.parsed()?)
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, NotByPosition> {
        visitor.visit_f64(self.parsed()?)
    }

    fn deserialize_char<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, NotByPosition> {
        visitor.visit_char(self.parsed()?)
    }

    #[inline]
    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, NotByPosition> {
        visitor.visit_str(self.text()?)
    }

    #[inline]
    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, NotByPosition> {
        visitor.visit_str(self.text()?)
    }

    #[inline]
    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, NotByPosition> {
        if self.bytes.is_empty() { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    #[inline]
    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, NotByPosition> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, NotByPosition> {
        visitor.visit_enum(self.text()?.into_deserializer())
    }

    /// Infers the type of the field, with the same trials in the same order as the `csv` crate.
    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, NotByPosition> {
        if let Some(value) = digits_of(self.bytes) {
            return visitor.visit_u64(value);
        }
        match self.text()? {
            "true" => visitor.visit_bool(true),
            "false" => visitor.visit_bool(false),
            text => {
                if let Ok(value) = text.parse() {
                    visitor.visit_u64(value)
                } else if let Ok(value) = text.parse() {
                    visitor.visit_i64(value)
                } else if let Ok(value) = text.parse() {
                    visitor.visit_u128(value)
                } else if let Ok(value) = text.parse() {
                    visitor.visit_i128(value)
                } else if let Ok(value) = text.parse() {
                    visitor.visit_f64(value)
                } else {
                    visitor.visit_str(text)
                }
            }
        }
    }

    fn deserialize_unit<V: Visitor<'de>>(self, _: V) -> Result<V::Value, NotByPosition> {
        Err(NotByPosition)
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(self, _: &'static str, _: V) -> Result<V::Value, NotByPosition> {
        Err(NotByPosition)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, _: V) -> Result<V::Value, NotByPosition> {
        Err(NotByPosition)
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, _: usize, _: V) -> Result<V::Value, NotByPosition> {
        Err(NotByPosition)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: usize,
        _: V,
    ) -> Result<V::Value, NotByPosition> {
        Err(NotByPosition)
    }

    fn deserialize_map<V: Visitor<'de>>(self, _: V) -> Result<V::Value, NotByPosition> {
        Err(NotByPosition)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, NotByPosition> {
        Err(NotByPosition)
    }

    fn deserialize_bytes<V: Visitor<'de>>(self, _: V) -> Result<V::Value, NotByPosition> {
        Err(NotByPosition)
    }

    fn deserialize_byte_buf<V: Visitor<'de>>(self, _: V) -> Result<V::Value, NotByPosition> {
        Err(NotByPosition)
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, _: V) -> Result<V::Value, NotByPosition> {
        Err(NotByPosition)
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, NotByPosition> {
        visitor.visit_unit()
    }
}
