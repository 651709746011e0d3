//! Types of every kind, for tests that pin down the results of probes.
#![expect(dead_code, reason = "the types are only probed")]

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::{self, Write};
use std::marker::PhantomData;
use std::num::{NonZeroI128, NonZeroU8, NonZeroU64};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use serde::de::{self, Deserialize, DeserializeOwned, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::record::{Decimal, Real};
use crate::time::EventTime;

/// Types that only derive `Deserialize`.
macro_rules! types {
    ($($item:item)*) => {$(
        #[derive(serde::Deserialize)]
        $item
    )*};
}

types! {
    struct Unit;
    struct Empty {}
    struct Cents(i64);
    struct Pair(i64, String);
    #[serde(transparent)]
    struct Transparent { a: u16 }
    struct Point { a: i64, b: Option<u8> }
    struct Three { a: String, b: f64, c: char }
    struct Nested { a: Point, b: (Cents, Pair), c: Vec<Point> }
    struct Wrapped(Three);
    #[serde(rename_all = "UPPERCASE", deny_unknown_fields)]
    struct Renamed { a: i64, #[serde(rename = "x")] b: i64 }
    struct Aliased { #[serde(alias = "aaa", alias = "x")] a: i64, b: i64 }
    struct Defaulted { a: i64, #[serde(default)] b: i64, #[serde(skip)] c: i64, d: Option<i64> }
    struct Flattened { a: i64, #[serde(flatten)] rest: Point }
    struct FlattenedMap { a: i64, #[serde(flatten)] rest: BTreeMap<String, i64> }
    struct Generic<T> { a: i64, b: T, c: i64 }
    struct Phantom<T> { a: i64, b: PhantomData<T> }
    struct Borrowed { a: Cow<'static, str>, b: Box<str>, c: SharedText }
    struct Numbers(i8, i16, i32, i64, i128, u8, u16, u32, u64, u128);
    struct Ours { a: EventTime, b: Real, c: Decimal }
    struct WideSum { high: i64, low: u64 }
    struct Sums { a: WideSum, b: Vec<WideSum> }

    enum Colour { Red, Green, Blue }
    enum One { Only }
    enum Nobody {}
    enum Id { Nobody, Account(u64) }
    enum Payment { Cash, Card { number: u64, owner: Option<String> }, Split(Box<str>, Cents), Wrapped(Point) }
    enum Late { Checked(NonZeroU8), Refused(Even), Plain(u8) }
    #[serde(tag = "a")]
    enum Internal { Cash, Card { b: u64 } }
    #[serde(tag = "a", content = "b")]
    enum Adjacent { Cash, Card { c: u64 }, Wrapped(i64) }
    #[serde(untagged)]
    enum Untagged { Number(u64), Text(String) }
    enum Skipping { #[serde(skip)] Hidden, Shown, #[serde(other)] Other }
    #[serde(rename_all = "kebab-case")]
    enum Cased { FirstOne, #[serde(alias = "x")] SecondOne(u8) }
    #[serde(from = "String")]
    struct Converted(String);
    #[serde(try_from = "u64")]
    struct Even(u64);
    #[serde(try_from = "String")]
    struct Email(String);
    #[serde(try_from = "Point")]
    struct Checked { a: i64 }

    struct Chain(Option<Box<Chain>>);
    struct Endless(Box<Endless>);
    struct List { a: u8, b: Option<Box<List>> }
    struct Tree { value: u8, left: Option<Box<Tree>>, more: Vec<Tree>, named: BTreeMap<String, Tree> }
    enum Term { Sum(Box<Term>, Box<Term>), Number(u8) }
    enum Ways { Again(Box<Ways>), Twice { a: Box<Ways>, b: Box<Ways> }, Mutual(Box<Mutual>), Out }
    enum Mutual { Back(Ways), Beside(Vec<Mutual>), Text(String) }
    enum Hopeless { Again(Box<Hopeless>), Refused(Email) }
    struct Fat<T> { a: T, b: T, c: T }
}

/// A type that asks for a text by hand, and accepts no borrowed one.
struct SharedText(Rc<str>);

impl<'de> Deserialize<'de> for SharedText {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from).map(|text| SharedText(text.into()))
    }
}

impl From<String> for Converted {
    fn from(text: String) -> Self {
        Converted(text)
    }
}

impl TryFrom<u64> for Even {
    type Error = &'static str;

    fn try_from(number: u64) -> Result<Self, Self::Error> {
        if number.is_multiple_of(2) { Ok(Even(number)) } else { Err("it is odd") }
    }
}

impl TryFrom<String> for Email {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        if text.contains('@') { Ok(Email(text)) } else { Err("it has no @") }
    }
}

impl TryFrom<Point> for Checked {
    type Error = &'static str;

    fn try_from(point: Point) -> Result<Self, Self::Error> {
        if point.a == 0 { Ok(Checked { a: 0 }) } else { Err("it is not 0") }
    }
}

/// Requests that no derived type makes.
macro_rules! by_hand {
    ($($name:ident $request:ident($($argument:expr),*);)*) => {$(
        struct $name;

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                from.$request($($argument,)* Anything).map(|()| $name)
            }
        }
    )*};
}

by_hand! {
    AsksBytes deserialize_bytes();
    AsksBuffer deserialize_byte_buf();
    AsksIdentifier deserialize_identifier();
    AsksIgnored deserialize_ignored_any();
    AsksAny deserialize_any();
    AsksText deserialize_str();
    AsksSequence deserialize_seq();
    AsksPair deserialize_tuple(2);
    AsksStruct deserialize_struct("ByHand", &["a", "b"]);
    AsksMap deserialize_map();
    AsksNewtype deserialize_newtype_struct("ByHand");
}

/// Accepts whatever comes; elements that fail are passed over, and elements are asked for until there are none.
struct Anything;

impl<'de> Visitor<'de> for Anything {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("anything")
    }

    fn visit_i64<E: de::Error>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E: de::Error>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E: de::Error>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_bytes<E: de::Error>(self, _: &[u8]) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E: de::Error>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, inner: D) -> Result<(), D::Error> {
        Vec::<Even>::deserialize(inner).map(|_| ())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<(), A::Error> {
        for _ in 0..4 {
            if let Ok(None) = elements.next_element::<Vec<Option<Even>>>() {
                break;
            }
        }
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        while entries.next_key::<String>()?.is_some() {
            let _passed_over = entries.next_value::<Even>();
        }
        Ok(())
    }
}

/// A reader of samples.
pub(crate) trait SampleReader {
    /// Probes a type, and returns the result as a text.
    fn probe<T: DeserializeOwned>() -> String;
}

/// Checks the results of probing every sample against those in a file of `tests/fixtures/probes`. With
/// `TIDEGATE_WRITE_FIXTURE=1` the file is written anew.
pub(crate) fn check<R: SampleReader>(file: &str) {
    let mut said = String::new();
    macro_rules! probe {
        ($($sample:ty),* $(,)?) => {$(
            let result = R::probe::<$sample>();
            let _ = writeln!(said, "{}\n{}\n", stringify!($sample).replace(' ', ""), shortened(&result));
        )*};
    }
    probe!(bool, i8, i16, i32, i64, i128, u8, u16, u32, u64, u128, f32, f64, char, String, Box<str>, ());
    probe!(Unit, Empty, Cents, Pair, Transparent, Point, Three, Nested, Wrapped, Renamed, Aliased, Defaulted);
    probe!(Flattened, FlattenedMap, Phantom<Email>, Borrowed, Numbers, Ours, WideSum, Sums, EventTime, Real, Decimal);
    probe!(Colour, One, Nobody, Id, Payment, Late, Internal, Adjacent, Untagged, Skipping, Cased);
    probe!(Converted, Even, Email, Checked, Chain, Endless, List, Tree, Term, Ways, Mutual, Hopeless);
    probe!(AsksBytes, AsksBuffer, AsksIdentifier, AsksIgnored, AsksAny, AsksText, AsksSequence, AsksPair, AsksStruct);
    probe!(AsksMap, AsksNewtype, IgnoredAny, Cow<'static, str>, Option<()>, Option<Option<bool>>, Vec<Vec<u8>>);
    probe!([u8; 3], (u8,), (EventTime, Real, Decimal), BTreeMap<String, Vec<i64>>, HashMap<u8, Point>, BTreeSet<char>);
    probe!(Result<u8, String>, std::ops::Range<i64>, std::ops::Bound<u8>, Duration, SystemTime, PathBuf, NonZeroU8);
    probe!(std::net::IpAddr, (u8, std::net::IpAddr, u8), std::net::SocketAddrV4, rust_decimal::Decimal);
    probe!((Payment, Vec<Payment>, Payment), (Even, Payment), Vec<Option<Term>>, Option<Payment>, (Term, Mutual, Tree));
    probe!(Fat<Fat<Fat<Fat<Fat<u8>>>>>, Fat<Payment>, Option<Option<Option<Option<Chain>>>>);
    probe!(Vec<Vec<Vec<Vec<Vec<Vec<Vec<Vec<Vec<Vec<Vec<Vec<Vec<Vec<Vec<Vec<Vec<Vec<u8>>>>>>>>>>>>>>>>>>);
    probe!(Fat<Fat<Fat<Fat<Fat<Payment>>>>>);
    macro_rules! probe_fields {
        ($($field:ty),* $(,)?) => { probe!($(Generic<$field>),*); };
    }
    probe_fields!(bool, i128, u128, f32, char, String, (), Unit, Empty, Cents, Pair, Transparent, Point, Flattened);
    probe_fields!(EventTime, Real, Decimal, rust_decimal::Decimal, Colour, One, Nobody, Id, Payment, Late, Internal);
    probe_fields!(Adjacent, Untagged, Skipping, Cased, Converted, Even, Email, Checked, Endless, List, Term);
    probe_fields!(AsksBytes, AsksBuffer, AsksIdentifier, AsksIgnored, AsksAny, AsksText, AsksSequence, AsksPair);
    probe_fields!(AsksStruct, AsksMap, AsksNewtype, IgnoredAny, Option<Option<i128>>, Option<Colour>, Option<Payment>);
    probe_fields!(Vec<Cents>, (i64, String), [u8; 4], BTreeMap<String, i64>, NonZeroU64, NonZeroI128);
    probe_fields!(Option<EventTime>, Duration, std::net::IpAddr, Option<Even>, SystemTime, PathBuf, Result<u8, String>);

    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/probes").join(file);
    if std::env::var_os("TIDEGATE_WRITE_FIXTURE").is_some() {
        std::fs::write(&path, &said).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap();
    for (said, expected) in said.split("\n\n").zip(expected.split("\n\n")) {
        assert_eq!(said, expected);
    }
    assert_eq!(said, expected);
}

/// The text itself, or the beginning of a long one with its length and its hash.
fn shortened(text: &str) -> String {
    let Some((beginning, _)) = text.split_at_checked(2_000) else { return text.to_owned() };
    let hash = text
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    format!("{beginning}… {} bytes, hash {hash:016x}", text.len())
}
