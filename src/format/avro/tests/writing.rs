//! Tests of encoding and of derived schemas.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::super::AvroSchema;
use super::schema;
use crate::probe::samples::{self, SampleReader};
use crate::record::{Decimal, Real, records};
use crate::time::EventTime;

records! {
    enum Colour { Red, Green }
    struct Cents(i64);
    enum Method { Cash, #[serde(rename = "Card")] Card { number: u64, owner: Option<String> }, #[serde(rename = "long")] Other(i64) }
    struct Inner { a: i32, b: Option<bool> }
    struct Row {
        small: i8,
        wide: i128,
        id: u32,
        cents: Cents,
        real: Real,
        text: String,
        colour: Colour,
        maybe: Option<i64>,
        at: EventTime,
        list: Vec<Inner>,
        map: BTreeMap<String, Vec<String>>,
        inner: Inner,
    }
    struct Tail { #[serde(skip_serializing_if = "Option::is_none")] none: Option<i64>, last: i64, first: String }
    struct Spread { a: i64, #[serde(flatten)] rest: Inner }
    struct Loop { next: Option<Box<Loop>> }
    struct Chosen { method: Method }
    struct WithDecimal { amount: Decimal }
    struct Aliased { #[serde(alias = "y")] x: i64 }
}

fn row(rng: &mut fastrand::Rng) -> Row {
    let inner = |rng: &mut fastrand::Rng| Inner { a: rng.i32(..), b: rng.bool().then(|| rng.bool()) };
    let text = |rng: &mut fastrand::Rng| ["", "a", "grün", "x\0y"][rng.usize(..4)].to_owned();
    Row {
        small: rng.i8(..),
        wide: rng.i128(-(10i128.pow(38)) + 1..10i128.pow(38)) >> rng.u32(0..120),
        id: rng.u32(..),
        cents: Cents(rng.i64(..)),
        real: Real::from(rng.f64() - 0.5),
        text: text(rng),
        colour: if rng.bool() { Colour::Red } else { Colour::Green },
        maybe: rng.bool().then(|| rng.i64(..)),
        at: EventTime::from_millis(rng.i64(-60_000_000_000_000..250_000_000_000_000)),
        list: (0..rng.usize(..4)).map(|_| inner(rng)).collect(),
        map: (0..rng.usize(..4)).map(|_| (text(rng), vec![text(rng)])).collect(),
        inner: inner(rng),
    }
}

fn encoded<T: Serialize>(schema: &AvroSchema, value: &T) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    schema.encode(value, &mut bytes).map(|()| bytes)
}

#[track_caller]
fn check_same<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(text: &str, value: T) {
    let schema = schema(text);
    assert_eq!(schema.decode(&encoded(&schema, &value).unwrap()), Ok(value));
}

#[track_caller]
fn check_refused<T: Serialize>(text: &str, value: T, why: &str) {
    let said = encoded(&schema(text), &value).unwrap_err();
    assert!(said.contains(why), "{said}");
}

#[test]
fn random_rows_are_written_by_a_derived_schema_and_read_back() {
    let schema = AvroSchema::of::<Row>("com.acme").unwrap();
    assert_eq!(schema.name(), "com.acme.Row");
    let seed = 21;
    let mut rng = fastrand::Rng::with_seed(seed);
    for _ in 0..3_000 {
        let row = row(&mut rng);
        let bytes = encoded(&schema, &row).unwrap();
        assert_eq!(schema.decode::<Row>(&bytes).as_ref(), Ok(&row), "seed {seed}");
        // Whatever has been damaged is a row or refused.
        let mut damaged = bytes;
        let at = rng.usize(..damaged.len());
        damaged[at] ^= 1 << rng.u8(..8);
        let _ = schema.decode::<Row>(&damaged);
    }
}

#[test]
fn fields_are_written_in_the_order_of_the_schema_and_missing_ones_as_defaults() {
    let text = r#"{"type": "record", "name": "n.Tail", "fields": [
        {"name": "first", "type": "string"}, {"name": "none", "type": ["null", "long"]},
        {"name": "kind", "type": {"type": "enum", "name": "K", "symbols": ["A", "B"]}, "default": "B"},
        {"name": "list", "type": {"type": "array", "items": "int"}, "default": [1, 2]},
        {"name": "last", "type": "long"},
        {"name": "map", "type": {"type": "map", "values": "double"}, "default": {"a": 1}},
        {"name": "raw", "type": "bytes", "default": "ÿ"},
        {"name": "in", "type": ["string", "null"], "default": "s"}]}"#;
    let schema = schema(text);
    let bytes = encoded(&schema, &Tail { none: None, last: 3, first: "f".into() }).unwrap();
    let one = 1f64.to_le_bytes();
    let expected = [&b"\x02f\0\x02\x04\x02\x04\0\x06\x02\x02a"[..], &one, b"\0\x02\xff\0\x02s"].concat();
    assert_eq!(bytes, expected);
    let lacking = r#"{"type": "record", "name": "T", "fields": [{"name": "x", "type": "long"}]}"#;
    check_refused(lacking, BTreeMap::<String, i64>::new(), "the row has no field `x`, and the schema no default of it");
    check_refused(lacking, Tail { none: None, last: 1, first: String::new() }, "the record `T` has no field `last`");
    let spread = r#"{"type": "record", "name": "S", "fields": [{"name": "b", "type": ["null", "boolean"]},
        {"name": "a", "type": "int"}]}"#;
    check_refused(spread, Spread { a: 1, rest: Inner { a: 2, b: None } }, "the field `a` comes twice");
    check_same(spread, Inner { a: 2, b: Some(true) });
    check_same(spread, (None::<bool>, 5i64));
    check_refused(spread, (None::<bool>, 5i64, 6i64), "more values than the record `S` has fields");
}

#[test]
fn values_take_the_type_of_a_union_that_fits() {
    let union = r#"["null", "int", "long", "string", {"type": "bytes", "logicalType": "decimal", "precision": 30, "scale": 2},
        {"type": "map", "values": "boolean"}]"#;
    for value in [None, Some(5i64), Some(i64::MAX)] {
        check_same(union, value);
    }
    assert_eq!(encoded(&schema(union), &i64::MAX).unwrap()[0], 4);
    assert_eq!(encoded(&schema(union), &(1i128 << 63)).unwrap()[0], 8, "only the decimal holds it");
    assert_eq!(encoded(&schema(union), &"1.5").unwrap()[0], 6);
    check_refused(union, 1.5, "no type of the union of null, int, long, string, bytes, map takes the number 1.5");
    check_refused(union, i128::MAX, "takes the integer 17014");
    let methods = r#"{"type": "record", "name": "Chosen", "fields": [{"name": "method", "type": [
        {"type": "enum", "name": "Plain", "symbols": ["Cash"]},
        {"type": "record", "name": "a.Card", "fields": [{"name": "owner", "type": ["null", "string"]}, {"name": "number", "type": "long"}]},
        "long"]}]}"#;
    for method in [Method::Card { number: 7, owner: Some("o".into()) }, Method::Other(-1), Method::Cash] {
        check_same(methods, Chosen { method });
    }
    check_refused("[\"int\", \"string\"]", (), "takes null");
}

#[test]
fn nothing_is_rounded_and_nothing_cut_off() {
    for (value, kind) in [(1i64 << 40, "\"int\""), (i64::MAX, "\"double\""), (1 << 25 | 1, "\"float\"")] {
        check_refused(kind, value, &format!("the integer {value} is no "));
    }
    check_refused("\"float\"", 0.1f64, "the number 0.1 is no `float`");
    check_same("\"float\"", 0.5f64);
    check_same("\"float\"", 0.1f32);
    check_refused("\"long\"", u64::MAX, "is no `long`");
    check_refused("\"long\"", 1.0, "the number 1 is no `long`");
    check_refused("\"string\"", 1, "the integer 1 is no `string`");
    check_refused("\"long\"", "1", "the text `1` is no `long`");
    let money = r#"{"type": "fixed", "name": "M", "size": 3, "logicalType": "decimal", "precision": 6, "scale": 2}"#;
    check_same(money, Decimal::new(-123_456, 2));
    check_same(money, Decimal::new(5, 0));
    check_refused(money, Decimal::new(1, 3), "`0.001` has more digits than a decimal(6, 2)");
    check_refused(money, Decimal::new(10_000, 0), "has more digits");
    let millis = r#"{"type": "long", "logicalType": "timestamp-millis"}"#;
    check_same(millis, EventTime::from_millis(-1));
    check_refused(millis, "2026-01-02T03:04:05.0001Z", "is no `long`");
    check_refused(millis, EventTime::MAX, "is no `long`");
    check_same(r#"{"type": "int", "logicalType": "date"}"#, String::from("2026-02-28"));
    let uuid = r#"{"type": "fixed", "name": "U", "size": 16, "logicalType": "uuid"}"#;
    check_same(uuid, String::from("01234567-89ab-cdef-0123-456789abcdef"));
    check_refused(uuid, "01234567-89ab-cdef-0123-456789abcde", "is no `U`");
    check_same("\"bytes\"", vec![0u8, 255]);
    check_refused("\"bytes\"", vec![256], "a sequence of integers is no `bytes`");
    check_same(r#"{"type": "fixed", "name": "F", "size": 2}"#, [1u8, 2]);
    check_refused(r#"{"type": "fixed", "name": "F", "size": 2}"#, [1u8], "a value of 1 bytes is no `F`");
    check_refused(r#"{"type": "map", "values": "int"}"#, BTreeMap::from([(1, 1)]), "the integer 1 is no `string`");
}

#[test]
fn types_without_a_clear_schema_are_refused_with_the_reason() {
    fn check<D: DeserializeOwned>(why: &str) {
        let said = AvroSchema::of::<D>("").unwrap_err().to_string();
        assert!(said.contains(why) && said.contains("; give the schema"), "{said}");
    }
    check::<Loop>("`Loop` contains itself");
    check::<Chosen>("it has an enum with data");
    check::<WithDecimal>("it has a part that takes anything");
    check::<Aliased>("fields of `Aliased` have aliases");
    check::<Spread>("");
    check::<(i64, String)>("it has a tuple");
    check::<i64>("it is no struct with named fields");
    check::<Option<Inner>>("it is no struct with named fields");
    check::<BTreeMap<String, i64>>("it is no struct with named fields");
}

struct Derived;

impl SampleReader for Derived {
    fn probe<T: DeserializeOwned>() -> String {
        match AvroSchema::of::<T>("n") {
            Ok(schema) => schema.text().to_owned(),
            Err(_) => "refused".into(),
        }
    }
}

#[test]
fn schemas_of_all_kinds_of_types_are_derived_or_refused() {
    samples::check::<Derived>("avro.txt");
}
