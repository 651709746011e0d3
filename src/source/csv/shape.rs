//! Matches the fields of a record type with the columns of a header.
//!
//! The fields that a type needs are found by decoding it from **trial rows**: rows with the header's columns, and
//! values made up for the types that are asked for. A column is missing if decoding reports a missing field; so
//! renamed, optional and defaulted fields are what `serde` says they are. If a type accepts none of the made-up values,
//! nothing is known about it, and its rows are rejected one by one where they do not decode.
//!
//! A type can be decoded **by position** if it is a struct of scalars whose fields are all in the header, and if it
//! asks for exactly as many values as it has names (a field with aliases has several names). The module does not look
//! at a file's rows.

use std::cell::Cell;
use std::fmt;

use csv::ByteRecord;
use serde::de::value::BorrowedBytesDeserializer;
use serde::de::{self, DeserializeOwned, IntoDeserializer, Visitor};

/// Returns the names of the fields of `T`, in their order, those of aliases included; `None` if `T` is no struct.
pub(super) fn field_names<T: DeserializeOwned>() -> Option<&'static [&'static str]> {
    let names = Cell::new(None);
    let _ = T::deserialize(TrialRow::Names(&names));
    names.get()
}

/// Returns the column of each field of `T`, in the order of fields; `None` if `T` cannot be decoded by position.
///
/// # Errors
/// Fails with the names of columns that the header lacks, or has twice: "lacks the column `a`".
pub(super) fn order<T: DeserializeOwned>(header: &ByteRecord) -> Result<Option<Vec<usize>>, String> {
    let Some(tries) = accepted_values::<T>(header)? else { return Ok(None) };
    let Some(fields) = field_names::<T>() else { return Ok(None) };
    let column = |field: &&str| header.iter().position(|name| name == field.as_bytes());
    let Some(columns) = fields.iter().map(column).collect::<Option<Vec<usize>>>() else { return Ok(None) };
    let asked = Cell::new(0);
    let tries: Vec<usize> = columns.iter().map(|column| tries[*column]).collect();
    let decoded = T::deserialize(TrialRow::Values { tries: &tries, asked: &asked });
    Ok((decoded.is_ok() && asked.get() == fields.len()).then_some(columns))
}

/// Decodes `T` from trial rows with the header's columns. Returns, for each column, the number of the made-up value
/// that was accepted; `None` if no combination was found.
///
/// # Errors
/// Fails with the names of columns that the header lacks, or has twice.
fn accepted_values<T: DeserializeOwned>(header: &ByteRecord) -> Result<Option<Vec<usize>>, String> {
    let mut names: Vec<Vec<u8>> = header.iter().map(<[u8]>::to_vec).collect();
    let mut tries = vec![0; names.len()];
    let mut missing: Vec<&str> = Vec::new();
    let settled = loop {
        let at = Cell::new(usize::MAX);
        match T::deserialize(TrialRow::Columns { names: &names, tries: &tries, at: &at }) {
            Ok(_) => break true,
            Err(TrialError::Missing(name)) if !names.iter().any(|known| known == name.as_bytes()) => {
                missing.push(name);
                names.push(name.as_bytes().to_vec());
                tries.push(0);
            }
            Err(TrialError::Twice(name)) => return Err(format!("names the column `{name}` twice")),
            Err(TrialError::Other) if tries.get(at.get()).is_some_and(|tried| *tried + 1 < VALUES) => {
                tries[at.get()] += 1;
            }
            Err(_) => break false,
        }
    };
    if missing.is_empty() {
        return Ok(settled.then_some(tries));
    }
    let columns = if missing.len() == 1 { "column" } else { "columns" };
    let missing: Vec<String> = missing.iter().map(|name| format!("`{name}`")).collect();
    Err(format!("lacks the {columns} {}", missing.join(", ")))
}

/// Number of values that are tried for a column, one after the other.
const VALUES: usize = 10;

/// Texts from which well-known types can be decoded.
const TEXTS: [&str; VALUES] = [
    "0",
    "a",
    "1",
    "2000-01-01T00:00:00Z",
    "2000-01-01",
    "00:00:00",
    "2000-01-01T00:00:00",
    "00000000-0000-0000-0000-000000000000",
    "127.0.0.1",
    "true",
];

/// Error of decoding a trial row.
#[derive(Debug)]
enum TrialError {
    Missing(&'static str),
    Twice(&'static str),
    /// The type asks for something that no single field of a row can be.
    Nested,
    Other,
}

impl fmt::Display for TrialError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a pretended row was not decoded")
    }
}

impl std::error::Error for TrialError {}

impl de::Error for TrialError {
    fn custom<M: fmt::Display>(_: M) -> Self {
        TrialError::Other
    }

    fn missing_field(field: &'static str) -> Self {
        TrialError::Missing(field)
    }

    fn duplicate_field(field: &'static str) -> Self {
        TrialError::Twice(field)
    }
}

/// A trial row.
#[derive(Clone, Copy)]
enum TrialRow<'a> {
    /// Collects the names of a struct's fields.
    Names(&'a Cell<Option<&'static [&'static str]>>),
    /// Has named columns; `at` is the column being decoded.
    Columns { names: &'a [Vec<u8>], tries: &'a [usize], at: &'a Cell<usize> },
    /// Has values in the order of a struct's fields, and counts how many are asked for.
    Values { tries: &'a [usize], asked: &'a Cell<usize> },
}

impl<'de, 'a: 'de> de::Deserializer<'de> for TrialRow<'a> {
    type Error = TrialError;

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, TrialError> {
        match self {
            TrialRow::Names(names) => {
                names.set(Some(fields));
                Err(TrialError::Other)
            }
            TrialRow::Columns { .. } => visitor.visit_map(TrialColumns { row: self, next: 0 }),
            TrialRow::Values { .. } => visitor.visit_seq(self),
        }
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, TrialError> {
        match self {
            TrialRow::Columns { .. } => visitor.visit_map(TrialColumns { row: self, next: 0 }),
            _ => Err(TrialError::Nested),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, TrialError> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, TrialError> {
        Err(TrialError::Nested)
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct seq
        tuple tuple_struct enum identifier ignored_any
    }
}

impl<'de> de::SeqAccess<'de> for TrialRow<'_> {
    type Error = TrialError;

    fn next_element_seed<S: de::DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, TrialError> {
        let TrialRow::Values { tries, asked } = self else { return Err(TrialError::Nested) };
        let at = asked.replace(asked.get() + 1);
        tries.get(at).map(|tried| seed.deserialize(TrialValue(*tried))).transpose()
    }
}

struct TrialColumns<'a> {
    row: TrialRow<'a>,
    next: usize,
}

impl<'de, 'a: 'de> de::MapAccess<'de> for TrialColumns<'a> {
    type Error = TrialError;

    fn next_key_seed<S: de::DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, TrialError> {
        let TrialRow::Columns { names, at, .. } = self.row else { return Err(TrialError::Nested) };
        at.set(usize::MAX);
        let name = names.get(self.next);
        name.map(|name| seed.deserialize(BorrowedBytesDeserializer::new(name))).transpose()
    }

    fn next_value_seed<S: de::DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, TrialError> {
        let TrialRow::Columns { tries, at, .. } = self.row else { return Err(TrialError::Nested) };
        at.set(self.next);
        self.next += 1;
        seed.deserialize(TrialValue(tries[self.next - 1]))
    }
}

/// A made-up value of whatever type is asked for; the number selects one of [`VALUES`] candidates.
#[derive(Clone, Copy)]
struct TrialValue(usize);

macro_rules! made_up {
    ($($method:ident $visit:ident $value:expr;)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, TrialError> {
            let value: fn(usize) -> _ = $value;
            visitor.$visit(value(self.0))
        }
    )*};
}

impl<'de> de::Deserializer<'de> for TrialValue {
    type Error = TrialError;

    made_up! {
        deserialize_bool visit_bool |tried| tried % 2 == 1;
        deserialize_i8 visit_i8 |tried| tried as i8;
        deserialize_i16 visit_i16 |tried| tried as i16;
        deserialize_i32 visit_i32 |tried| tried as i32;
        deserialize_i64 visit_i64 |tried| tried as i64;
        deserialize_i128 visit_i128 |tried| tried as i128;
        deserialize_u8 visit_u8 |tried| tried as u8;
        deserialize_u16 visit_u16 |tried| tried as u16;
        deserialize_u32 visit_u32 |tried| tried as u32;
        deserialize_u64 visit_u64 |tried| tried as u64;
        deserialize_u128 visit_u128 |tried| tried as u128;
        deserialize_f32 visit_f32 |tried| tried as f32;
        deserialize_f64 visit_f64 |tried| tried as f64;
        deserialize_char visit_char |tried| if tried == 0 { '0' } else { 'a' };
        deserialize_str visit_str |tried| TEXTS[tried];
        deserialize_string visit_str |tried| TEXTS[tried];
        deserialize_bytes visit_bytes |tried| TEXTS[tried].as_bytes();
        deserialize_byte_buf visit_bytes |tried| TEXTS[tried].as_bytes();
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, TrialError> {
        match self.0 {
            0 | 2 => visitor.visit_u64(self.0 as u64),
            9 => visitor.visit_bool(true),
            tried => visitor.visit_str(TEXTS[tried]),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, TrialError> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, TrialError> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, TrialError> {
        let variant = variants.get(self.0).copied().ok_or(TrialError::Other)?;
        visitor.visit_enum(variant.into_deserializer())
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, TrialError> {
        visitor.visit_unit()
    }

    fn deserialize_unit<V: Visitor<'de>>(self, _: V) -> Result<V::Value, TrialError> {
        Err(TrialError::Nested)
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(self, _: &'static str, _: V) -> Result<V::Value, TrialError> {
        Err(TrialError::Nested)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, _: V) -> Result<V::Value, TrialError> {
        Err(TrialError::Nested)
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, _: usize, _: V) -> Result<V::Value, TrialError> {
        Err(TrialError::Nested)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: usize,
        _: V,
    ) -> Result<V::Value, TrialError> {
        Err(TrialError::Nested)
    }

    fn deserialize_map<V: Visitor<'de>>(self, _: V) -> Result<V::Value, TrialError> {
        Err(TrialError::Nested)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, TrialError> {
        Err(TrialError::Nested)
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, _: V) -> Result<V::Value, TrialError> {
        Err(TrialError::Nested)
    }
}
