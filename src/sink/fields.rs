//! Columns of a row type, determined without a value of it.
//!
//! * A row type's **shape** is what it asks a [probe](crate::probe) for: a struct with named fields, a map, or anything else.
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

use serde::de::DeserializeOwned;

use crate::error::{self, Error};
use crate::probe::{self, AnyValue, Branch, Dummy, EntryKey, Leaf, ProbeStop, Recorder};
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
    let mut seen = RowRecorder::default();
    // The row itself is not kept, and a type that refuses a dummy has told its names before.
    let _ = probe::probe::<D>(&mut seen);
    let Some((row, keys)) = seen.named else {
        return if seen.map { RowShape::Map } else { RowShape::Other };
    };
    let (mut names, mut nested) = (Vec::new(), None);
    for &key in keys {
        let (mut name, mut variant) = (key, 0);
        loop {
            let mut seen = RowRecorder { key: Some(key), variant, ..RowRecorder::default() };
            // A second value for a field is an error that contains the field's own name, even if the key was an alias.
            if let Err(ProbeStop::DuplicateField(primary)) = probe::probe::<D>(&mut seen) {
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

/// A recorder of a row: of its first level only, or also of one field, which comes twice.
#[derive(Default)]
struct RowRecorder {
    /// Key of the field.
    key: Option<&'static str>,
    /// Number of the variant with which the field is answered, if it is an enum.
    variant: usize,
    /// `true` inside of the field.
    in_field: bool,
    /// Depth of nested newtypes and options: a type may contain itself.
    depth: u8,
    /// Name and keys of the row, if it is a struct.
    named: Option<(&'static str, &'static [&'static str])>,
    /// `true` if the row is a map.
    map: bool,
    /// Description of the nested value that keeps the field from being a column.
    holds: Option<&'static str>,
    /// Number of variants, if the field is an enum.
    variants: usize,
}

impl RowRecorder {
    const DEEPEST: u8 = 32;

    /// Records a newtype or an option, and returns the number of its parts.
    fn deeper(&mut self) -> Result<usize, ProbeStop> {
        if self.depth == Self::DEEPEST {
            self.holds = Some("itself");
            return Err(ProbeStop::Stopped);
        }
        self.depth += 1;
        Ok(1)
    }

    /// Records a request of the row.
    fn row(&mut self, branch: Branch) -> Result<usize, ProbeStop> {
        match branch {
            Branch::Newtype(_) => return self.deeper(),
            Branch::Struct(name, fields) => {
                self.named = Some((name, fields));
                return self.key.map(|_| 1).ok_or(ProbeStop::Stopped);
            }
            Branch::Map => self.map = true,
            _ => {}
        }
        Err(ProbeStop::Stopped)
    }

    /// Records a request inside of the field.
    fn field(&mut self, branch: Branch) -> Result<usize, ProbeStop> {
        self.holds = Some(match branch {
            Branch::Enum(_, variants) => {
                self.variants = variants.len();
                return if self.variant < self.variants { Ok(self.variant) } else { Err(ProbeStop::Stopped) };
            }
            Branch::UnitStruct(_) => return Ok(0),
            Branch::Option | Branch::Newtype(_) => return self.deeper(),
            Branch::List => "a list",
            Branch::Tuple(_) | Branch::TupleStruct(..) => "a tuple",
            Branch::Map => "a map",
            Branch::Struct(..) => "a struct",
            Branch::NewtypeVariant | Branch::TupleVariant(_) | Branch::StructVariant(_) => "an enum with data",
        });
        Err(ProbeStop::Stopped)
    }
}

impl Recorder for RowRecorder {
    fn is_human_readable(&self) -> bool {
        true
    }

    fn leaf(&mut self, _: Leaf) -> Result<Dummy, ProbeStop> {
        if self.in_field { Ok(Dummy::ONE) } else { Err(ProbeStop::Stopped) }
    }

    fn begin(&mut self, branch: Branch) -> Result<usize, ProbeStop> {
        if self.in_field { self.field(branch) } else { self.row(branch) }
    }

    fn begin_part(&mut self, whole: Branch, at: usize) -> Result<(), ProbeStop> {
        if matches!(whole, Branch::Struct(..)) && at > 1 {
            return Err(ProbeStop::Stopped);
        }
        self.in_field = true;
        Ok(())
    }

    fn any(&mut self, _: &'static str) -> Result<AnyValue, ProbeStop> {
        self.leaf(Leaf::Any).map(|dummy| AnyValue::Signed(dummy.number.into()))
    }

    fn gives_keys(&self) -> bool {
        true
    }

    fn key(&mut self, entry: usize) -> Result<Option<EntryKey>, ProbeStop> {
        let key = self.key.filter(|_| entry < 2).ok_or(ProbeStop::Stopped)?;
        Ok(Some(EntryKey::Text(key)))
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
