//! Columns of a row type, determined without a value of it.
//!
//! * A **probe** is a deserializer without data: it records what a type asks for, and answers with dummy values.
//! * A row type's **shape** is what it asks a probe for: a struct with named fields, a map, or anything else.
//! * A **column** is a field that holds one value: a number, a text, a boolean, an enum without data, or a newtype or
//!   an option of these. Lists, tuples, maps, structs and enums with data are **nested**.
//!
//! Invariants: no value of the row type is ever kept; a type that refuses a dummy (it may validate what it reads) is
//! not refused for that; names are those that serde *reads*, in the order of the declaration, without aliases. So the
//! writer of rows compares each name with the one that is really written.
//!
//! The serialized form of a type that asks for *anything* (untagged and internally tagged enums) is not known here;
//! such a type counts as a column. The module does not know formats.

use std::any::type_name;
use std::fmt;

use serde::de::{self, DeserializeOwned, DeserializeSeed, Deserializer, EnumAccess, MapAccess, VariantAccess, Visitor};
use serde::forward_to_deserialize_any;

use crate::error::{self, Error};
use crate::record::Record;

/// Columns of a row type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fields {
    /// Name of the row type, for messages.
    pub(crate) row: &'static str,
    /// Names of the columns, in the order of the declaration.
    pub(crate) names: Vec<&'static str>,
}

/// Shape of a row type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum RowShape {
    /// A struct with named fields.
    Struct(Fields, Option<NestedField>),
    /// A map, or a struct with a flattened field, which deserializes as one: its keys differ from row to row.
    Map,
    /// Anything else.
    Other,
}

/// First field of a struct that cannot be a column, and what it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NestedField {
    field: &'static str,
    holds: &'static str,
}

/// Returns the columns of a row type that is to be written as a table.
///
/// # Errors
/// Fails with the row type, and the field that cannot be a column.
pub(crate) fn of<D: Record>() -> error::Result<Fields> {
    let refused =
        |row: &str, why: String| Error::usage(format!("cannot write rows of type `{row}` as CSV")).because(why);
    match shape::<D>() {
        RowShape::Struct(Fields { row, names }, None) if names.is_empty() => {
            Err(refused(row, "it has no fields".into()).help("map the rows to a struct with named fields"))
        }
        RowShape::Struct(fields, None) => Ok(fields),
        RowShape::Struct(Fields { row, .. }, Some(NestedField { field, holds })) => {
            Err(refused(row, format!("its field `{field}` holds {holds}, and a column holds one value"))
                .help("map the rows to a struct of plain fields, or write NDJSON"))
        }
        RowShape::Map => Err(refused(&name::<D>(), "its keys are not known before there is a row".into())
            .help("map the rows to a struct with named fields and without `#[serde(flatten)]`, or write NDJSON")),
        RowShape::Other => Err(refused(&name::<D>(), "it has no names for columns".into())
            .help("map the rows to a struct with named fields")),
    }
}

/// Returns the name of a row type without module paths, for messages.
pub(crate) fn name<D>() -> String {
    let parts = type_name::<D>().split_inclusive(|c: char| !c.is_alphanumeric() && !matches!(c, '_' | ':'));
    parts.map(|part| part.rsplit("::").next().unwrap_or(part)).collect()
}

/// Determines the shape of a row type.
pub(crate) fn shape<D: DeserializeOwned>() -> RowShape {
    let mut seen = ProbeFindings::default();
    run_probe::<D>(&mut seen, None, 0);
    let Some((row, keys)) = seen.named else {
        return if seen.map { RowShape::Map } else { RowShape::Other };
    };
    let (mut names, mut nested) = (Vec::new(), None);
    for &key in keys {
        let (mut name, mut variant) = (key, 0);
        loop {
            let mut seen = ProbeFindings::default();
            // A second value for a field is an error that contains the field's own name, even if the key was an alias.
            if let ProbeEnd::Duplicate(primary) = run_probe::<D>(&mut seen, Some(key), variant) {
                name = primary;
            }
            nested = nested.or(seen.holds.map(|holds| NestedField { field: name, holds }));
            variant += 1;
            if variant >= seen.variants {
                break;
            }
        }
        if !names.contains(&name) {
            names.push(name);
        }
    }
    RowShape::Struct(Fields { row, names }, nested)
}

/// Probes a type: only its first level, or also the field `key`, with one variant if that is an enum.
fn run_probe<D: DeserializeOwned>(seen: &mut ProbeFindings, key: Option<&'static str>, variant: usize) -> ProbeEnd {
    match D::deserialize(RowProbe { at: ProbeState { seen, variant, depth: 0 }, key }) {
        Ok(_) => ProbeEnd::Complete,
        Err(stop) => stop,
    }
}

/// Observations of the probes of one run.
#[derive(Default)]
struct ProbeFindings {
    /// Name and keys of the row, if it is a struct.
    named: Option<(&'static str, &'static [&'static str])>,
    /// `true` if the row is a map.
    map: bool,
    /// Description of the nested value that keeps the field from being a column.
    holds: Option<&'static str>,
    /// Number of variants, if the field is an enum.
    variants: usize,
}

/// Reason why a run ended.
#[derive(Debug)]
enum ProbeEnd {
    /// A field of this name got a second value.
    Duplicate(&'static str),
    /// Everything needed is known, or a type refused a dummy.
    Complete,
}

impl fmt::Display for ProbeEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a probe has no data")
    }
}

impl std::error::Error for ProbeEnd {}

impl de::Error for ProbeEnd {
    fn custom<T: fmt::Display>(_: T) -> Self {
        ProbeEnd::Complete
    }

    fn duplicate_field(field: &'static str) -> Self {
        ProbeEnd::Duplicate(field)
    }
}

/// State of a run.
struct ProbeState<'a> {
    seen: &'a mut ProbeFindings,
    variant: usize,
    /// Depth of nested newtypes and options: a type may contain itself.
    depth: u8,
}

impl ProbeState<'_> {
    const DEEPEST: u8 = 32;

    fn deeper(self) -> Result<Self, ProbeEnd> {
        if self.depth == Self::DEEPEST {
            self.seen.holds = Some("itself");
            return Err(ProbeEnd::Complete);
        }
        Ok(ProbeState { depth: self.depth + 1, ..self })
    }

    fn nested<T>(self, holds: &'static str) -> Result<T, ProbeEnd> {
        self.seen.holds = Some(holds);
        Err(ProbeEnd::Complete)
    }
}

/// Deserializer of a row.
struct RowProbe<'a> {
    at: ProbeState<'a>,
    key: Option<&'static str>,
}

impl<'de> Deserializer<'de> for RowProbe<'_> {
    type Error = ProbeEnd;

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ProbeEnd> {
        self.at.seen.named = Some((name, fields));
        let key = self.key.ok_or(ProbeEnd::Complete)?;
        visitor.visit_map(OneField { at: Some(self.at), key, keys: 0 })
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, ProbeEnd> {
        visitor.visit_newtype_struct(RowProbe { at: self.at.deeper()?, key: self.key })
    }

    fn deserialize_map<V: Visitor<'de>>(self, _: V) -> Result<V::Value, ProbeEnd> {
        self.at.seen.map = true;
        Err(ProbeEnd::Complete)
    }

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, ProbeEnd> {
        Err(ProbeEnd::Complete)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct seq
        tuple tuple_struct enum identifier ignored_any
    }
}

/// Data of a struct in which one field comes twice.
struct OneField<'a> {
    at: Option<ProbeState<'a>>,
    key: &'static str,
    keys: u8,
}

impl<'de> MapAccess<'de> for OneField<'_> {
    type Error = ProbeEnd;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, ProbeEnd> {
        self.keys += 1;
        if self.keys > 2 {
            return Err(ProbeEnd::Complete);
        }
        seed.deserialize(de::value::StrDeserializer::new(self.key)).map(Some)
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, ProbeEnd> {
        seed.deserialize(FieldProbe(self.at.take().ok_or(ProbeEnd::Complete)?))
    }
}

/// Deserializer of a field's value.
struct FieldProbe<'a>(ProbeState<'a>);

/// Answers with a dummy. It is 1, not 0, because some types have no 0.
macro_rules! dummies {
    ($($asked:ident: $visit:ident($dummy:expr),)*) => {$(
        fn $asked<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ProbeEnd> {
            visitor.$visit($dummy)
        }
    )*};
}

impl<'de> Deserializer<'de> for FieldProbe<'_> {
    type Error = ProbeEnd;

    dummies! {
        deserialize_any: visit_i64(1),
        deserialize_bool: visit_bool(true),
        deserialize_i8: visit_i8(1),
        deserialize_i16: visit_i16(1),
        deserialize_i32: visit_i32(1),
        deserialize_i64: visit_i64(1),
        deserialize_i128: visit_i128(1),
        deserialize_u8: visit_u8(1),
        deserialize_u16: visit_u16(1),
        deserialize_u32: visit_u32(1),
        deserialize_u64: visit_u64(1),
        deserialize_u128: visit_u128(1),
        deserialize_f32: visit_f32(1.0),
        deserialize_f64: visit_f64(1.0),
        deserialize_char: visit_char('1'),
        deserialize_str: visit_str("1"),
        deserialize_string: visit_str("1"),
        deserialize_identifier: visit_str("1"),
        deserialize_bytes: visit_bytes(b"1"),
        deserialize_byte_buf: visit_bytes(b"1"),
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ProbeEnd> {
        visitor.visit_some(FieldProbe(self.0.deeper()?))
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ProbeEnd> {
        visitor.visit_unit()
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, ProbeEnd> {
        visitor.visit_unit()
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ProbeEnd> {
        visitor.visit_unit()
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, ProbeEnd> {
        visitor.visit_newtype_struct(FieldProbe(self.0.deeper()?))
    }

    fn deserialize_seq<V: Visitor<'de>>(self, _: V) -> Result<V::Value, ProbeEnd> {
        self.0.nested("a list")
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, _: usize, _: V) -> Result<V::Value, ProbeEnd> {
        self.0.nested("a tuple")
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(self, _: &'static str, _: usize, _: V) -> Result<V::Value, ProbeEnd> {
        self.0.nested("a tuple")
    }

    fn deserialize_map<V: Visitor<'de>>(self, _: V) -> Result<V::Value, ProbeEnd> {
        self.0.nested("a map")
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, ProbeEnd> {
        self.0.nested("a struct")
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ProbeEnd> {
        self.0.seen.variants = variants.len();
        let name = variants.get(self.0.variant).ok_or(ProbeEnd::Complete)?;
        visitor.visit_enum(OneVariant { at: self.0, name })
    }
}

/// Data of an enum: one variant.
struct OneVariant<'a> {
    at: ProbeState<'a>,
    name: &'static str,
}

impl<'de, 'a> EnumAccess<'de> for OneVariant<'a> {
    type Error = ProbeEnd;
    type Variant = ProbeState<'a>;

    fn variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<(T::Value, ProbeState<'a>), ProbeEnd> {
        Ok((seed.deserialize(de::value::StrDeserializer::new(self.name))?, self.at))
    }
}

impl<'de> VariantAccess<'de> for ProbeState<'_> {
    type Error = ProbeEnd;

    fn unit_variant(self) -> Result<(), ProbeEnd> {
        Ok(())
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, _: T) -> Result<T::Value, ProbeEnd> {
        self.nested("an enum with data")
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, _: V) -> Result<V::Value, ProbeEnd> {
        self.nested("an enum with data")
    }

    fn struct_variant<V: Visitor<'de>>(self, _: &'static [&'static str], _: V) -> Result<V::Value, ProbeEnd> {
        self.nested("an enum with data")
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::num::NonZeroU64;

    use serde::{Deserialize, Serialize};

    use super::*;
    use crate::probe::samples::{self, SampleReader};
    use crate::record::{Decimal, Real, records};
    use crate::time::EventTime;

    records! {
        enum Colour { Red, Green }
        enum Payment { Cash, Card { number: u64 } }
        enum Id { Nobody, Account(u64) }
        struct Cents(i64);
        struct Point { x: i64, y: i64 }
        struct Pair(i64, i64);
        struct Chain(Option<Box<Chain>>);
        struct Nothing {}
        #[serde(try_from = "String", into = "String")]
        struct Email(String);

        struct Flat {
            time: EventTime,
            real: Real,
            #[serde(rename = "money")]
            decimal: Decimal,
            cents: Cents,
            maybe: Option<Option<i128>>,
            colour: Option<Colour>,
            #[serde(alias = "aaa", alias = "zzz")]
            aliased: char,
            email: Email,
            count: NonZeroU64,
            boxed: Box<str>,
            nothing: (),
            #[serde(default)]
            yes: bool,
        }
        struct Wrapped(Flat);
        #[serde(rename_all = "camelCase", deny_unknown_fields)]
        struct Renamed { first_name: String }
        struct Flattened { a: i64, #[serde(flatten)] rest: Point }
    }

    impl TryFrom<String> for Email {
        type Error = String;

        fn try_from(text: String) -> Result<Email, String> {
            if text.contains('@') { Ok(Email(text)) } else { Err(format!("`{text}` has no @")) }
        }
    }

    impl From<Email> for String {
        fn from(email: Email) -> String {
            email.0
        }
    }

    #[test]
    fn columns_are_the_names_that_serde_reads_in_the_order_of_the_declaration() {
        let names = [
            "time", "real", "money", "cents", "maybe", "colour", "aliased", "email", "count", "boxed", "nothing", "yes",
        ];
        for fields in [of::<Flat>().unwrap(), of::<Wrapped>().unwrap()] {
            assert_eq!((fields.row, &fields.names[..]), ("Flat", &names[..]));
        }
        assert_eq!(of::<Renamed>().unwrap().names, ["firstName"]);
        assert_eq!(shape::<Flattened>(), RowShape::Map);
        assert_eq!(shape::<BTreeMap<String, i64>>(), RowShape::Map);
        assert_eq!(shape::<Payment>(), RowShape::Other);
    }

    #[test]
    fn a_field_that_cannot_be_a_column_is_named() {
        fn check<F: Record>(holds: &str) {
            #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
            struct Row<F> {
                email: Email,
                bad: F,
                after: i64,
            }
            let error = of::<Row<F>>().unwrap_err();
            let expected = format!(
                "cannot write rows of type `Row` as CSV: its field `bad` holds {holds}, and a column holds one value; \
                 map the rows to a struct of plain fields, or write NDJSON"
            );
            assert_eq!(error.to_string(), expected);
            assert!(
                matches!(shape::<Row<F>>(), RowShape::Struct(fields, _) if fields.names == ["email", "bad", "after"])
            );
        }
        check::<Point>("a struct");
        check::<Option<Point>>("a struct");
        check::<Pair>("a tuple");
        check::<(i64, String)>("a tuple");
        check::<[u8; 4]>("a tuple");
        check::<Vec<Cents>>("a list");
        check::<BTreeMap<String, i64>>("a map");
        check::<Flattened>("a map");
        check::<Payment>("an enum with data");
        check::<Option<Id>>("an enum with data");
        check::<Chain>("itself");
    }

    #[test]
    fn rows_without_names_are_refused_with_what_to_do() {
        fn check<D: Record>(expected: &str) {
            assert_eq!(of::<D>().unwrap_err().to_string(), expected);
        }
        check::<(String, Option<i64>)>(
            "cannot write rows of type `(String, Option<i64>)` as CSV: it has no names for columns; \
             map the rows to a struct with named fields",
        );
        check::<i64>(
            "cannot write rows of type `i64` as CSV: it has no names for columns; \
             map the rows to a struct with named fields",
        );
        check::<Flattened>(
            "cannot write rows of type `Flattened` as CSV: its keys are not known before there is a row; \
             map the rows to a struct with named fields and without `#[serde(flatten)]`, or write NDJSON",
        );
        check::<Nothing>(
            "cannot write rows of type `Nothing` as CSV: it has no fields; map the rows to a struct with named fields",
        );
        for error in [of::<Option<Point>>(), of::<Vec<Point>>(), of::<Pair>(), of::<Id>(), of::<Chain>()] {
            assert!(error.unwrap_err().to_string().contains("it has no names for columns"));
        }
    }

    struct Pinned;

    impl SampleReader for Pinned {
        fn probe<T: DeserializeOwned>() -> String {
            format!("{:?}", shape::<T>())
        }
    }

    #[test]
    fn columns_of_all_kinds_of_types_are_known() {
        samples::check::<Pinned>("columns.txt");
    }
}
