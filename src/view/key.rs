//! Keys, by which rows of a view are looked up.
//!
//! * A row's **key** is its first column, or what the query's function returns; here it is bytes: the compact JSON of
//!   the value.
//! * A request names a key by a **text**: for a string the string itself, for anything else its compact JSON.
//!   [`RequestedKeys`] has the JSON of each key that a text may name, so `5` finds both the number and the string.
//!
//! Invariants: equal values have equal bytes, so equal keys are one key; rows are kept by a hash of the bytes, and a
//! lookup compares the bytes too.

use std::fmt;
use std::hash::BuildHasher;

use foldhash::fast::FixedState;
use serde::Serialize;
use serde::de::IgnoredAny;
use serde::ser::{self, Impossible, Serializer};

/// Appends a row's key, as compact JSON.
pub(super) type ViewKeyFn<D> = dyn Fn(&D, &mut Vec<u8>) -> serde_json::Result<()> + Send + Sync;

/// Returns the hash by which a key is stored.
pub(super) fn hash(key: &[u8]) -> u64 {
    FixedState::with_seed(11).hash_one(key)
}

/// The keys that a request's text may name, with their hashes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RequestedKeys(Vec<(u64, Vec<u8>)>);

impl RequestedKeys {
    /// Parses the text of a request.
    pub(super) fn new(text: &str) -> Self {
        let mut keys = vec![serde_json::Value::from(text).to_string().into_bytes()];
        // JSON of anything but a string: the text of a string is the string itself.
        if !text.starts_with('"') && serde_json::from_str::<IgnoredAny>(text).is_ok() {
            keys.push(text.as_bytes().to_vec());
        }
        RequestedKeys(keys.into_iter().map(|key| (hash(&key), key)).collect())
    }

    /// Returns the hashes of the keys.
    pub(super) fn hashes(&self) -> impl Iterator<Item = u64> {
        self.0.iter().map(|(hash, _)| *hash)
    }

    /// `true` if a key is among those requested.
    pub(super) fn is(&self, key: &[u8]) -> bool {
        self.0.iter().any(|(_, asked)| asked == key)
    }
}

/// Appends the first column of a row: the first field of a struct, the first element of a tuple or a list, the first
/// value of a map. Any other value is a column itself.
///
/// # Errors
/// Fails if the value cannot be JSON.
pub(super) fn default_key<D: Serialize>(row: &D, out: &mut Vec<u8>) -> serde_json::Result<()> {
    match row.serialize(FirstColumn(out)) {
        Ok(()) | Err(Interrupt::Found) => Ok(()),
        Err(Interrupt::Whole) => serde_json::to_writer(out, row),
        Err(Interrupt::Failed(why)) => Err(why),
    }
}

/// Reason to stop the serialization of a row.
#[derive(Debug)]
enum Interrupt {
    /// The first column was appended.
    Found,
    /// The row is a column itself.
    Whole,
    Failed(serde_json::Error),
}

impl fmt::Display for Interrupt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Interrupt::Found | Interrupt::Whole => f.write_str("the rest of the row is not wanted"),
            Interrupt::Failed(why) => why.fmt(f),
        }
    }
}

impl std::error::Error for Interrupt {}

impl ser::Error for Interrupt {
    fn custom<T: fmt::Display>(why: T) -> Self {
        Interrupt::Failed(ser::Error::custom(why))
    }
}

/// Serializer that appends the first column only.
struct FirstColumn<'a>(&'a mut Vec<u8>);

impl FirstColumn<'_> {
    /// Appends a value, and stops.
    fn take<T: Serialize + ?Sized, R>(&mut self, value: &T) -> Result<R, Interrupt> {
        Err(serde_json::to_writer(&mut *self.0, value).map_or_else(Interrupt::Failed, |()| Interrupt::Found))
    }
}

/// Implements the methods for values that are columns themselves.
macro_rules! columns {
    ($($serialize:ident($($type:ty)?),)*) => {$(
        fn $serialize(self $(, _: $type)?) -> Result<(), Interrupt> {
            Err(Interrupt::Whole)
        }
    )*};
}

impl Serializer for FirstColumn<'_> {
    type Ok = ();
    type Error = Interrupt;
    type SerializeSeq = Self;
    type SerializeTuple = Self;
    type SerializeTupleStruct = Self;
    type SerializeTupleVariant = Impossible<(), Interrupt>;
    type SerializeMap = Self;
    type SerializeStruct = Self;
    type SerializeStructVariant = Impossible<(), Interrupt>;

    columns! {
        serialize_bool(bool), serialize_i8(i8), serialize_i16(i16), serialize_i32(i32), serialize_i64(i64),
        serialize_i128(i128), serialize_u8(u8), serialize_u16(u16), serialize_u32(u32), serialize_u64(u64),
        serialize_u128(u128), serialize_f32(f32), serialize_f64(f64), serialize_char(char), serialize_str(&str),
        serialize_bytes(&[u8]), serialize_none(), serialize_unit(), serialize_unit_struct(&'static str),
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<(), Interrupt> {
        value.serialize(self)
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(self, _: &'static str, value: &T) -> Result<(), Interrupt> {
        value.serialize(self)
    }

    fn serialize_unit_variant(self, _: &'static str, _: u32, _: &'static str) -> Result<(), Interrupt> {
        Err(Interrupt::Whole)
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: &T,
    ) -> Result<(), Interrupt> {
        Err(Interrupt::Whole)
    }

    fn serialize_seq(self, _: Option<usize>) -> Result<Self, Interrupt> {
        Ok(self)
    }

    fn serialize_tuple(self, _: usize) -> Result<Self, Interrupt> {
        Ok(self)
    }

    fn serialize_tuple_struct(self, _: &'static str, _: usize) -> Result<Self, Interrupt> {
        Ok(self)
    }

    fn serialize_tuple_variant(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: usize,
    ) -> Result<Self::SerializeTupleVariant, Interrupt> {
        Err(Interrupt::Whole)
    }

    fn serialize_map(self, _: Option<usize>) -> Result<Self, Interrupt> {
        Ok(self)
    }

    fn serialize_struct(self, _: &'static str, _: usize) -> Result<Self, Interrupt> {
        Ok(self)
    }

    fn serialize_struct_variant(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: usize,
    ) -> Result<Self::SerializeStructVariant, Interrupt> {
        Err(Interrupt::Whole)
    }
}

/// Implements composites; one without elements is a column itself.
macro_rules! composites {
    ($($composite:ident: $element:ident,)*) => {$(
        impl ser::$composite for FirstColumn<'_> {
            type Ok = ();
            type Error = Interrupt;

            fn $element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Interrupt> {
                self.take(value)
            }

            fn end(self) -> Result<(), Interrupt> {
                Err(Interrupt::Whole)
            }
        }
    )*};
}

composites! {
    SerializeSeq: serialize_element,
    SerializeTuple: serialize_element,
    SerializeTupleStruct: serialize_field,
}

impl ser::SerializeStruct for FirstColumn<'_> {
    type Ok = ();
    type Error = Interrupt;

    fn serialize_field<T: Serialize + ?Sized>(&mut self, _: &'static str, value: &T) -> Result<(), Interrupt> {
        self.take(value)
    }

    fn end(self) -> Result<(), Interrupt> {
        Err(Interrupt::Whole)
    }
}

impl ser::SerializeMap for FirstColumn<'_> {
    type Ok = ();
    type Error = Interrupt;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, _: &T) -> Result<(), Interrupt> {
        Ok(())
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Interrupt> {
        self.take(value)
    }

    fn end(self) -> Result<(), Interrupt> {
        Err(Interrupt::Whole)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Serialize};

    use super::*;
    use crate::record::{Decimal, Record, records};
    use crate::time::EventTime;

    records! {
        struct Row { account: String, cents: i128 }
        struct Wrapped(Row);
        struct Nothing {}
        enum Payment { Cash, Card { number: u64 } }
    }

    #[track_caller]
    fn check<D: Record>(row: &D, text: &str) {
        let mut key = Vec::new();
        default_key(row, &mut key).unwrap();
        let asked = RequestedKeys::new(text);
        assert!(asked.is(&key), "{row:?} has the key {}", String::from_utf8_lossy(&key));
        assert!(asked.hashes().any(|asked| asked == hash(&key)));
    }

    #[test]
    fn the_key_is_the_first_column_as_text() {
        let row = Row { account: "a \"b\"\n".into(), cents: i128::MIN };
        check(&row, "a \"b\"\n");
        check(&Wrapped(row.clone()), "a \"b\"\n");
        check(&Some(row.clone()), "a \"b\"\n");
        check(&("x".to_owned(), 5), "x");
        check(&(i128::MIN, "x".to_owned()), &i128::MIN.to_string());
        check(&((1, 'c'), 5), "[1,\"c\"]");
        check(&(row, 1), "{\"account\":\"a \\\"b\\\"\\n\",\"cents\":-170141183460469231731687303715884105728}");
        check(&(EventTime::from_millis(1), 5), "1970-01-01T00:00:00.001Z");
        check(&("12.50".parse::<Decimal>().unwrap(), 5), "12.50");
        check(&(Some(true), 1), "true");
        check(&(None::<u8>, 1), "null");
        check(&vec![3, 4], "3");
        check(&BTreeMap::from([("k".to_owned(), "v".to_owned())]), "v");
    }

    #[test]
    fn what_has_no_columns_is_a_column_itself() {
        check(&"x".to_owned(), "x");
        check(&7u8, "7");
        check(&(), "null");
        check(&Nothing {}, "{}");
        check(&Vec::<u8>::new(), "[]");
        check(&Payment::Cash, "Cash");
        check(&Payment::Card { number: 7 }, "{\"Card\":{\"number\":7}}");
    }

    #[test]
    fn a_text_finds_the_string_and_what_else_it_says() {
        for (text, keys) in [
            ("5", vec!["\"5\"", "5"]),
            ("a", vec!["\"a\""]),
            ("\"a\"", vec!["\"\\\"a\\\"\""]),
            ("true", vec!["\"true\"", "true"]),
            ("", vec!["\"\""]),
        ] {
            let asked = RequestedKeys::new(text);
            assert!(keys.iter().all(|key| asked.is(key.as_bytes())), "{text}");
            assert_eq!(asked.hashes().count(), keys.len(), "{text}");
        }
    }
}
