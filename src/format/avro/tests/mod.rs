//! Tests of decoding: every type, logical types, hostile data. `tests/brokers/schema_registry/mod.rs` compares with another library.

mod writing;

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::AvroSchema;
use crate::record::Decimal;
use crate::time::EventTime;

fn schema(text: &str) -> AvroSchema {
    AvroSchema::parse(text).unwrap()
}

fn decoded<T: DeserializeOwned>(text: &str, datum: &[u8]) -> Result<T, String> {
    schema(text).decode(datum)
}

/// Parses a schema that must be refused, and returns the reason.
fn refusal(text: &str) -> String {
    AvroSchema::parse(text).unwrap_err().to_string()
}

#[test]
fn primitives_are_read_as_the_specification_writes_them() {
    for (bytes, value) in [(&[0][..], 0), (&[1], -1), (&[2], 1), (&[0x7f], -64), (&[0x80, 1], 64)] {
        assert_eq!(decoded("long", bytes), Ok(value));
        assert_eq!(decoded(r#"{"type": "int"}"#, bytes), Ok(value as i16));
    }
    let longest = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1];
    assert_eq!(decoded("\"long\"", &longest), Ok(i64::MIN));
    assert!(decoded::<i64>("long", &[0xff; 11]).unwrap_err().contains("more than 64 bits"));
    assert!(decoded::<i64>("long", &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2]).is_err());
    assert!(decoded::<i64>("int", &longest).unwrap_err().contains("no 32-bit integer"));
    assert_eq!(decoded("boolean", &[1]), Ok(true));
    assert!(decoded::<bool>("boolean", &[2]).is_err());
    assert_eq!(decoded("double", &1.5f64.to_le_bytes()), Ok(1.5));
    assert_eq!(decoded("float", &1.5f32.to_le_bytes()), Ok(1.5f64));
    assert_eq!(decoded("string", b"\x06foo"), Ok(String::from("foo")));
    assert_eq!(decoded("bytes", b"\x06foo"), Ok(b"foo".to_vec()));
    assert_eq!(decoded("bytes", b"\x06foo"), Ok(String::from("foo")));
    assert!(decoded::<String>("string", b"\x02\xff").unwrap_err().contains("not UTF-8"));
    assert_eq!(decoded("null", b""), Ok(()));
    assert_eq!(decoded::<f64>("int", &[6]), Ok(3.0));
    let why = decoded::<i64>("string", b"\x06foo").unwrap_err();
    assert!(why.contains("invalid type: string"), "{why}");
    assert_eq!(decoded::<i64>("long", &[2, 2]), Err("not the expected Avro data: 1 bytes are left".into()));
    // The end of the data is no null.
    for kind in ["long", "int", "boolean", "double", "float", "string", "bytes", r#"["null", "long"]"#] {
        let why = decoded::<Option<i64>>(kind, b"").unwrap_err();
        assert!(why.contains("end too early") || why.contains("are left"), "{kind}: {why}");
    }
}

const ACCOUNT: &str = r#"{"type": "record", "name": "Account", "namespace": "com.acme", "fields": [
    {"name": "id", "type": "long"},
    {"name": "gone", "type": {"type": "record", "name": "Old", "fields": [
        {"name": "texts", "type": {"type": "array", "items": "string"}},
        {"name": "kind", "type": {"type": "enum", "name": "Kind", "symbols": ["A", "B"]}},
        {"name": "hash", "type": {"type": "fixed", "name": "Hash", "size": 2}}]}},
    {"name": "name", "type": ["null", "string"], "default": null},
    {"name": "kind", "type": "Kind"},
    {"name": "more", "type": {"type": "map", "values": ["long", "string"]}},
    {"name": "next", "type": ["null", "com.acme.Account"]}
]}"#;

#[derive(Debug, PartialEq, Deserialize)]
enum Kind {
    A,
    B,
}

#[derive(Debug, PartialEq, Deserialize)]
enum Value {
    #[serde(rename = "long")]
    Number(i64),
    #[serde(rename = "string")]
    Text(String),
}

#[derive(Debug, PartialEq, Deserialize)]
struct Account {
    kind: Kind,
    #[serde(alias = "id")]
    number: u64,
    name: Option<String>,
    more: BTreeMap<String, Value>,
    #[serde(default)]
    added: i64,
    next: Option<Box<Account>>,
}

#[derive(Debug, PartialEq, Deserialize)]
struct Old {
    texts: Vec<String>,
    kind: String,
    hash: [u8; 2],
}

#[derive(Debug, PartialEq, Deserialize)]
struct OnlyOld {
    gone: Old,
}

const ACCOUNT_DATUM: &[u8] = &[
    14, // id 7
    1, 4, 2, b'x', 0, // texts: a block of one item with its length in bytes, and the end
    2, 1, 2, // kind B, hash
    2, 2, b'n', // name
    0,    // kind A
    2, 2, b'k', 2, 2, b'v', 2, 2, b'l', 0, 8, 0, // more: two blocks
    2, // next:
    16, 0, 0, 0, 0, 0, 2, 0, 0,
];

#[test]
fn records_are_matched_by_name_and_the_rest_is_skipped() {
    let account = decoded::<Account>(ACCOUNT, ACCOUNT_DATUM).unwrap();
    let more = [("k".into(), Value::Text("v".into())), ("l".into(), Value::Number(4))];
    let next = Account { kind: Kind::B, number: 8, name: None, more: BTreeMap::new(), added: 0, next: None };
    let expected = Account {
        kind: Kind::A,
        number: 7,
        name: Some("n".into()),
        more: more.into(),
        added: 0,
        next: Some(next.into()),
    };
    assert_eq!(account, expected);
    let gone = Old { texts: vec!["x".into()], kind: "B".into(), hash: [1, 2] };
    assert_eq!(decoded(ACCOUNT, ACCOUNT_DATUM), Ok(OnlyOld { gone }));
    for end in 0..ACCOUNT_DATUM.len() {
        assert!(decoded::<Account>(ACCOUNT, &ACCOUNT_DATUM[..end]).is_err(), "cut at {end}");
        assert!(decoded::<serde::de::IgnoredAny>(ACCOUNT, &ACCOUNT_DATUM[..end]).is_err(), "cut at {end}");
    }
    let pair =
        r#"{"type": "record", "name": "Pair", "fields": [{"name": "a", "type": "int"}, {"name": "b", "type": "int"}]}"#;
    assert_eq!(decoded(pair, &[2, 4]), Ok((1u8, 2i64)));
    assert!(decoded::<(u8,)>(pair, &[2, 4]).is_err());
    let why = decoded::<BTreeMap<String, bool>>(pair, &[2, 4]).unwrap_err();
    assert!(why.contains("field `a`: invalid type"), "{why}");
}

#[test]
fn logical_types_are_numbers_texts_and_times() {
    let micros = r#"{"type": "long", "logicalType": "timestamp-micros"}"#;
    let millis = r#"{"type": "long", "logicalType": "timestamp-millis"}"#;
    let at = zigzag(1_767_323_045_678);
    assert_eq!(decoded(millis, &at), Ok(1_767_323_045_678i64));
    assert_eq!(decoded(millis, &at), Ok(EventTime::from_millis(1_767_323_045_678)));
    assert_eq!(decoded(millis, &at), Ok(String::from("2026-01-02T03:04:05.678Z")));
    let at = zigzag(1_767_323_045_678_901);
    assert_eq!(decoded(micros, &at), Ok(1_767_323_045_678_901i64));
    assert_eq!(decoded(micros, &at), Ok(EventTime::from_millis(1_767_323_045_678)));
    assert!(decoded::<EventTime>(micros, &zigzag(i64::MAX)).is_err(), "no time that a text can have");
    assert_eq!(decoded::<i64>(micros, &zigzag(i64::MAX)), Ok(i64::MAX));
    let date = r#"{"type": "int", "logicalType": "date"}"#;
    assert_eq!(decoded(date, &[2]), Ok(String::from("1970-01-02")));
    assert_eq!(decoded(date, &[2]), Ok(1));
    let decimal = r#"{"type": "bytes", "logicalType": "decimal", "precision": 10, "scale": 2}"#;
    assert_eq!(decoded(decimal, &[4, 0x04, 0xd2]), Ok(String::from("12.34")));
    assert_eq!(decoded(decimal, &[4, 0x04, 0xd2]), Ok(Decimal::new(1234, 2)));
    assert_eq!(decoded(decimal, &[4, 0x04, 0xd2]), Ok(12.34));
    assert!(decoded::<i64>(decimal, &[4, 0x04, 0xd2]).is_err(), "it has digits behind its point");
    let whole = r#"{"type": "fixed", "name": "D", "size": 2, "logicalType": "decimal", "precision": 4}"#;
    assert_eq!(decoded(whole, &[0xff, 0xfe]), Ok(-2i64));
    let uuid = r#"{"type": "fixed", "name": "U", "size": 16, "logicalType": "uuid"}"#;
    assert_eq!(decoded(uuid, &[1; 16]), Ok(String::from("01010101-0101-0101-0101-010101010101")));
    assert_eq!(decoded(uuid, &[1; 16]), Ok([1u8; 16]));
    // What is no logical type is the type below.
    let odd = r#"{"type": "bytes", "logicalType": "decimal", "precision": 1, "scale": 2}"#;
    assert_eq!(decoded(odd, &[2, b'x']), Ok(String::from("x")));
}

pub(super) fn zigzag(value: i64) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut left = ((value << 1) ^ (value >> 63)) as u64;
    while left > 0x7f {
        bytes.push(left as u8 | 0x80);
        left >>= 7;
    }
    bytes.push(left as u8);
    bytes
}

#[test]
fn what_hostile_bytes_announce_is_neither_allocated_nor_counted() {
    let many = zigzag(i64::MAX);
    for kind in ["string", "bytes"] {
        let why = decoded::<String>(kind, &many).unwrap_err();
        assert!(why.contains("bytes are announced, and 0 are left"), "{why}");
        assert!(decoded::<String>(kind, &zigzag(-1)).unwrap_err().contains("a length of -1"));
    }
    for items in ["\"null\"", r#"{"type": "record", "name": "E", "fields": []}"#] {
        let array = format!(r#"{{"type": "array", "items": {items}}}"#);
        for count in [&many, &[zigzag(i64::MIN), zigzag(0)].concat()] {
            let why = decoded::<Vec<Option<u8>>>(&array, count).unwrap_err();
            assert!(why.contains("more values than its length allows") || why.contains("invalid type"), "{why}");
            let why = decoded::<Vec<serde::de::IgnoredAny>>(&array, count).unwrap_err();
            assert!(why.contains("more values than its length allows"), "{why}");
        }
        assert!(decoded::<serde::de::IgnoredAny>(&array, &many).is_err());
    }
    let map = r#"{"type": "map", "values": "null"}"#;
    assert!(decoded::<BTreeMap<String, ()>>(map, &many).unwrap_err().contains("end too early"));
    let why = decoded::<Vec<i64>>(r#"{"type": "array", "items": "long"}"#, &[1, 100]).unwrap_err();
    assert!(why.contains("a block of 50 bytes, and 0 are left"), "{why}");
}

#[derive(Debug, Deserialize)]
struct Chain {
    #[expect(dead_code, reason = "the test needs the type only")]
    next: Option<Box<Chain>>,
}

#[test]
fn types_that_contain_themselves_end_at_a_depth() {
    let list = r#"{"type": "record", "name": "L", "fields": [{"name": "next", "type": ["null", "L"]}]}"#;
    let chain = |length: usize| [vec![2; length], vec![0]].concat();
    assert!(decoded::<Chain>(list, &chain(90)).is_ok());
    assert!(decoded::<Chain>(list, &chain(100_000)).unwrap_err().contains("nested deeper"));
    assert!(decoded::<serde::de::IgnoredAny>(list, &chain(100_000)).unwrap_err().contains("nested deeper"));
    let endless = r#"{"type": "record", "name": "L", "fields": [{"name": "next", "type": "L"}]}"#;
    assert!(decoded::<Chain>(endless, b"").unwrap_err().contains("nested deeper"));
    // Each record has the one below twice, and no record has a byte.
    let mut twice = String::from(r#"{"type": "record", "name": "R0", "fields": []}"#);
    for level in 1..40 {
        let below = level - 1;
        twice = format!(
            r#"{{"type": "record", "name": "R{level}", "fields": [{{"name": "a", "type": {twice}}}, {{"name": "b", "type": "R{below}"}}]}}"#
        );
    }
    assert!(AvroSchema::parse(&twice).is_ok() || refusal(&twice).contains("no JSON"));
    if let Ok(schema) = AvroSchema::parse(&twice) {
        assert!(schema.decode::<serde::de::IgnoredAny>(b"").unwrap_err().contains("more values"));
    }
}

#[test]
fn random_bytes_and_flipped_bits_are_values_or_refused() {
    let seed = 11;
    let mut rng = fastrand::Rng::with_seed(seed);
    let schema = schema(ACCOUNT);
    let (mut values, mut refused) = (0, 0);
    for round in 0..30_000 {
        let mut bytes = ACCOUNT_DATUM.to_vec();
        if round % 3 == 0 {
            bytes = (0..rng.usize(..60)).map(|_| rng.u8(..)).collect();
        }
        for _ in 0..rng.usize(..4) {
            if let Some(byte) = (!bytes.is_empty()).then(|| rng.usize(..bytes.len())).and_then(|at| bytes.get_mut(at)) {
                *byte ^= 1 << rng.u8(..8);
            }
        }
        let account = schema.decode::<Account>(&bytes);
        let _ = schema.decode::<OnlyOld>(&bytes);
        // The same bytes are the same value.
        assert_eq!(schema.decode::<Account>(&bytes), account, "seed {seed}: {bytes:?}");
        if account.is_ok() { values += 1 } else { refused += 1 }
    }
    assert!(values > 1_000 && refused > 10_000, "{values} values, {refused} refused");
}

#[test]
fn schemas_that_are_none_are_refused_with_the_reason() {
    for (text, why) in [
        ("{", "it is no JSON"),
        ("strin", "the type `strin` is not defined"),
        ("[]", "a union of no types"),
        (r#"["null", ["int"]]"#, "a union within a union"),
        (r#"{"name": "x"}"#, "a type without `type`"),
        ("7", "the type `7` is not defined"),
        (r#"{"type": "record", "name": "R"}"#, "the record `R` has no fields"),
        (r#"{"type": "enum", "name": "E"}"#, "the enum `E` has no symbols"),
        (r#"{"type": "fixed", "name": "F", "size": 0}"#, "the fixed type `F` has no size"),
        (r#"{"type": "fixed", "name": "F", "size": 1e30}"#, "the fixed type `F` has no size"),
        (r#"{"type": "record", "fields": []}"#, "a named type without a name"),
        (r#"{"type": "record", "name": "long", "fields": []}"#, "a type named `long`"),
        (
            r#"{"type": "record", "name": "R", "fields": [{"name": "a", "type": {"type": "record", "name": "R", "fields": []}}]}"#,
            "record `R`: field `a`: the type `R` is defined twice",
        ),
        (
            r#"{"type": "record", "name": "R", "fields": [{"name": "a", "type": "int"}, {"name": "a", "type": "int"}]}"#,
            "record `R`: two fields `a`",
        ),
    ] {
        let said = refusal(text);
        assert!(said.contains(why), "{text}: {said}");
    }
    let deep = format!("{}\"int\"{}", r#"{"type": "array", "items": "#.repeat(200), "}".repeat(200));
    assert!(refusal(&deep).contains("it is no JSON"));
}

#[test]
fn names_belong_to_namespaces_and_references_are_known() {
    let inner = r#"{"type": "record", "name": "In", "namespace": "a.b", "fields": [{"name": "x", "type": "int"}]}"#;
    let outer = r#"{"type": "record", "name": "a.b.Out", "fields": [{"name": "i", "type": "In"}, {"name": "j", "type": "a.b.In"}]}"#;
    assert!(refusal(outer).contains("the type `a.b.In` is not defined"));
    let schema = AvroSchema::parse_with(outer, &[inner]).unwrap();
    let value: serde_json::Value = schema.decode(&[2, 4]).unwrap();
    assert_eq!((value.to_string().as_str(), schema.name()), (r#"{"i":{"x":1},"j":{"x":2}}"#, "a.b.Out"));
}
