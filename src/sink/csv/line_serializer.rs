//! A serde serializer for one row of plain values: the fields of a line of CSV.
//!
//! Its bytes are those that the `csv` crate writes with its defaults, but for the delimiter: a field is quoted if it contains
//! the delimiter, a quote or a line break, or if it is empty and alone on its line. It exists for speed: on rows of seven fields it takes about half
//! the time of the crate, not counting the formatting of event times.
//!
//! Invariant: a row has the header's columns in its order, or is refused.

use std::fmt;

use serde::ser::{self, Impossible, Serialize, SerializeStruct, Serializer};

/// Appends a text, quoted if necessary.
pub(super) fn text(out: &mut Vec<u8>, text: &[u8], delimiter: u8) {
    // Without an early exit, so that it is compiled to vector instructions.
    let special = |byte: &u8| *byte == delimiter || matches!(byte, b'"' | b'\n' | b'\r');
    if !text.iter().fold(false, |found, byte| found | special(byte)) {
        out.extend_from_slice(text);
        return;
    }
    out.push(b'"');
    for (at, part) in text.split(|byte| *byte == b'"').enumerate() {
        if at > 0 {
            out.extend_from_slice(b"\"\"");
        }
        out.extend_from_slice(part);
    }
    out.push(b'"');
}

/// Reason why a row cannot be a line of the table.
#[derive(Debug)]
pub(super) struct RowRefused(pub(super) String);

impl fmt::Display for RowRefused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for RowRefused {}

impl ser::Error for RowRefused {
    fn custom<T: fmt::Display>(why: T) -> Self {
        RowRefused(why.to_string())
    }
}

/// Serializer of a line: first the row itself, then each of its fields, serializes into it.
pub(super) struct LineSerializer<'a> {
    pub(super) out: &'a mut Vec<u8>,
    pub(super) delimiter: u8,
    /// Names of the header. Each is replaced by the equal one that rows are serialized with, so that from the second
    /// row on equal names have equal addresses.
    pub(super) names: &'a mut [&'static str],
    /// Number of fields written so far.
    pub(super) at: usize,
    /// `true` inside a field, `false` at the row.
    pub(super) in_field: bool,
}

impl LineSerializer<'_> {
    pub(super) fn complete(&self) -> Result<(), RowRefused> {
        match self.names.get(self.at) {
            None => Ok(()),
            Some(missing) => Err(RowRefused(format!("it does not write its field `{missing}`, which is a column"))),
        }
    }

    fn nested<T>(&self, holds: &str) -> Result<T, RowRefused> {
        Err(RowRefused(match self.at.checked_sub(1).and_then(|at| self.names.get(at)) {
            Some(field) => format!("its field `{field}` holds {holds}, and a column holds one value"),
            None => format!("it is {holds} and not a struct with named fields"),
        }))
    }
}

/// Appends a number as a library formats it; numbers never need quotes.
macro_rules! numbers {
    ($($method:ident($number:ty) $library:ident;)*) => {$(
        fn $method(self, number: $number) -> Result<(), RowRefused> {
            self.out.extend_from_slice($library::Buffer::new().format(number).as_bytes());
            Ok(())
        }
    )*};
}

impl Serializer for &mut LineSerializer<'_> {
    type Ok = ();
    type Error = RowRefused;
    type SerializeSeq = Impossible<(), RowRefused>;
    type SerializeTuple = Impossible<(), RowRefused>;
    type SerializeTupleStruct = Impossible<(), RowRefused>;
    type SerializeTupleVariant = Impossible<(), RowRefused>;
    type SerializeMap = Impossible<(), RowRefused>;
    type SerializeStruct = Self;
    type SerializeStructVariant = Impossible<(), RowRefused>;

    numbers! {
        serialize_i8(i8) itoa;
        serialize_i16(i16) itoa;
        serialize_i32(i32) itoa;
        serialize_i64(i64) itoa;
        serialize_i128(i128) itoa;
        serialize_u8(u8) itoa;
        serialize_u16(u16) itoa;
        serialize_u32(u32) itoa;
        serialize_u64(u64) itoa;
        serialize_u128(u128) itoa;
        serialize_f32(f32) ryu;
        serialize_f64(f64) ryu;
    }

    fn serialize_bool(self, value: bool) -> Result<(), RowRefused> {
        self.out.extend_from_slice(if value { b"true" } else { b"false" });
        Ok(())
    }

    fn serialize_char(self, value: char) -> Result<(), RowRefused> {
        text(self.out, value.encode_utf8(&mut [0; 4]).as_bytes(), self.delimiter);
        Ok(())
    }

    fn serialize_str(self, value: &str) -> Result<(), RowRefused> {
        text(self.out, value.as_bytes(), self.delimiter);
        Ok(())
    }

    fn serialize_bytes(self, value: &[u8]) -> Result<(), RowRefused> {
        text(self.out, value, self.delimiter);
        Ok(())
    }

    fn serialize_none(self) -> Result<(), RowRefused> {
        Ok(())
    }

    fn serialize_some<T: ?Sized + Serialize>(self, value: &T) -> Result<(), RowRefused> {
        value.serialize(self)
    }

    fn serialize_unit(self) -> Result<(), RowRefused> {
        Ok(())
    }

    fn serialize_unit_struct(self, name: &'static str) -> Result<(), RowRefused> {
        self.serialize_str(name)
    }

    fn serialize_unit_variant(self, _: &'static str, _: u32, variant: &'static str) -> Result<(), RowRefused> {
        self.serialize_str(variant)
    }

    fn serialize_newtype_struct<T: ?Sized + Serialize>(self, _: &'static str, value: &T) -> Result<(), RowRefused> {
        value.serialize(self)
    }

    fn serialize_newtype_variant<T: ?Sized + Serialize>(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: &T,
    ) -> Result<(), RowRefused> {
        self.nested("an enum with data")
    }

    fn serialize_seq(self, _: Option<usize>) -> Result<Self::SerializeSeq, RowRefused> {
        self.nested("a list")
    }

    fn serialize_tuple(self, _: usize) -> Result<Self::SerializeTuple, RowRefused> {
        self.nested("a tuple")
    }

    fn serialize_tuple_struct(self, _: &'static str, _: usize) -> Result<Self::SerializeTupleStruct, RowRefused> {
        self.nested("a tuple")
    }

    fn serialize_tuple_variant(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: usize,
    ) -> Result<Self::SerializeTupleVariant, RowRefused> {
        self.nested("an enum with data")
    }

    fn serialize_map(self, _: Option<usize>) -> Result<Self::SerializeMap, RowRefused> {
        self.nested("a map")
    }

    fn serialize_struct(self, _: &'static str, _: usize) -> Result<Self, RowRefused> {
        if self.in_field {
            return self.nested("a struct");
        }
        self.in_field = true;
        Ok(self)
    }

    fn serialize_struct_variant(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: usize,
    ) -> Result<Self::SerializeStructVariant, RowRefused> {
        self.nested("an enum with data")
    }
}

impl SerializeStruct for &mut LineSerializer<'_> {
    type Ok = ();
    type Error = RowRefused;

    fn serialize_field<T: ?Sized + Serialize>(&mut self, key: &'static str, value: &T) -> Result<(), RowRefused> {
        let Some(name) = self.names.get_mut(self.at) else {
            return Err(RowRefused(format!("it writes a field `{key}`, which is not a column")));
        };
        if !std::ptr::eq(*name, key) {
            if *name != key {
                return Err(RowRefused(format!("it writes a field `{key}` where the column is `{name}`")));
            }
            *name = key;
        }
        if self.at > 0 {
            self.out.push(self.delimiter);
        }
        self.at += 1;
        value.serialize(&mut **self)
    }

    fn end(self) -> Result<(), RowRefused> {
        Ok(())
    }

    fn skip_field(&mut self, key: &'static str) -> Result<(), RowRefused> {
        Err(RowRefused(format!("it does not write its field `{key}`, which is a column")))
    }
}
