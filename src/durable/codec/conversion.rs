//! Conversion of stored rows to the program's type, and the check beforehand that it loses nothing.
//!
//! Rows are read by their stored schema ([`StoredValue`]). Whether *every* such row can be read is found out by trial:
//! the type is deserialized from made-up rows that have each variant of each enum at each place, every option filled and
//! every collection with one element.
//!
//! | in the program | what becomes of stored rows |
//! | --- | --- |
//! | a field more, with `#[serde(default)]` or optional | it gets its default |
//! | a field less, of a value | it is dropped |
//! | a field less, of a key | refused: several keys would become one |
//! | another name, with `#[serde(alias)]` | kept |
//! | a field less and one more of the same type | refused: it may be another name without its alias |
//! | a wider integer, `f64` instead of `f32`, an option | kept |
//! | variants more, or in another order | kept |
//! | aggregates with names more, fewer, or in another order | kept, see [`super::rearrangement`] |
//! | anything else | refused |
//!
//! Invariant: a conversion is a function of the row alone, and of different keys it makes different keys.

use std::cell::RefCell;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::aggregate_names::NameTree;
use super::conversion_refusal::ConversionRefusal;
use super::rearrangement::Rearrangement;
use super::schema::Schema;
use super::stored_value::{Mismatch, MismatchKind, SkippedFields, StoredValue};

/// Maximum number of made-up rows.
const MAX_SAMPLES: usize = 4096;

const OTHERWISE: &str =
    "convert with `.migrate::<Old>(…)`, or give the step another name and drop the rows with `State::drop_step`";

/// Checks that all rows of a schema can be converted to `T`; returns what changes, for users.
/// `names` are those of the program's aggregates.
pub(super) fn check<T: DeserializeOwned>(stored: &Schema, names: &NameTree) -> Result<Vec<String>, ConversionRefusal> {
    if !is_known(stored) {
        return Err(ConversionRefusal {
            why: "the stored rows do not say what they consist of".into(),
            help: format!("restore the step's types, {OTHERWISE}"),
        });
    }
    let arranged = rearranged::<T>(stored, names)?;
    let stored = &arranged.schema;
    let skipped = RefCell::new(SkippedFields::default());
    for sample in samples(stored) {
        let mut bytes = &sample[..];
        match T::deserialize(StoredValue::new(stored, &mut bytes).recording(&skipped)) {
            Ok(_) => {}
            // A type may refuse a made-up value; a stored one was once its own.
            Err(Mismatch { what: MismatchKind::Refused(_), .. }) => {}
            Err(mismatch) => return Err(refusal(stored, &mismatch)),
        }
    }
    let mut skipped = skipped.into_inner().fields;
    skipped.sort();
    skipped.dedup();
    let mut changes = FieldChanges { skipped, places: places(stored), found: arranged.changes, refusal: None };
    changes.compare(stored, &Schema::of::<T>(), String::new());
    changes.refusal.map_or(Ok(changes.found), Err)
}

/// Plans how the stored accumulators become those of the program.
fn rearranged<T: DeserializeOwned>(stored: &Schema, names: &NameTree) -> Result<Rearrangement, ConversionRefusal> {
    let mut now = Schema::of::<T>();
    names.apply_to_rows(&mut now);
    let refused = |ConversionRefusal { why, help }| ConversionRefusal {
        why: format!("accumulator: {why}"),
        help: format!("{help}; {OTHERWISE}"),
    };
    Rearrangement::of(stored, &now, names).map_err(refused)
}

/// Converts the `rows` rows of a block and appends them to `out`; `names` are those of the program's aggregates.
pub(super) fn convert<T: DeserializeOwned>(
    (stored, names): (&Schema, &NameTree),
    bytes: &[u8],
    rows: u32,
    out: &mut Vec<T>,
) -> Result<(), String> {
    let arranged = rearranged::<T>(stored, names).map_err(|refusal| refusal.why)?;
    let moved = arranged.apply(bytes, rows)?;
    let (mut bytes, stored) = (moved.as_deref().unwrap_or(bytes), &arranged.schema);
    for number in 0..rows {
        let row = T::deserialize(StoredValue::new(stored, &mut bytes));
        out.push(row.map_err(|mismatch| {
            let place = named(&places(stored), &mismatch.path());
            format!("row {number} of {rows} in the block cannot be converted: {place}: {mismatch}")
        })?);
    }
    if bytes.is_empty() { Ok(()) } else { Err(format!("{} bytes are behind the last of {rows} rows", bytes.len())) }
}

/// `true` if the names and types of all parts are known. A variant that is cut may be one with an alias, whose number is
/// not known.
fn is_known(schema: &Schema) -> bool {
    match schema {
        Schema::Unknown => false,
        Schema::Option(inner) | Schema::List(inner) => is_known(inner),
        Schema::Map(key, value) => is_known(key) && is_known(value),
        Schema::Tuple(parts) => parts.iter().all(is_known),
        Schema::Struct(_, fields) => fields.iter().all(|(_, field)| is_known(field)),
        Schema::Enum(_, variants) => variants.iter().all(|(_, body)| *body != Schema::Cut && is_known(body)),
        _ => true,
    }
}

fn bytes_of(value: &impl Serialize) -> Vec<u8> {
    postcard::to_stdvec(value).unwrap_or_default()
}

/// Makes up values that together have each variant of each enum at each place.
fn samples(schema: &Schema) -> Vec<Vec<u8>> {
    let parts = |parts: &[&Schema]| {
        let parts: Vec<_> = parts.iter().map(|part| samples(part)).collect();
        let most = parts.iter().map(Vec::len).max().unwrap_or(1);
        let sample = |number: usize| parts.iter().flat_map(|part| part[number % part.len()].clone()).collect();
        (0..most.min(MAX_SAMPLES)).map(sample).collect::<Vec<Vec<u8>>>()
    };
    let behind = |start: Vec<u8>, rest: Vec<Vec<u8>>| {
        rest.into_iter().map(|rest| start.iter().copied().chain(rest).collect()).collect::<Vec<Vec<u8>>>()
    };
    match schema {
        Schema::Unknown | Schema::Cut | Schema::Unit => vec![Vec::new()],
        Schema::Bool => vec![bytes_of(&true)],
        Schema::Signed(8) => vec![bytes_of(&1i8)],
        Schema::Signed(128) => vec![bytes_of(&1i128)],
        Schema::Signed(_) | Schema::Time => vec![bytes_of(&1i64)],
        Schema::Unsigned(_) => vec![bytes_of(&1u8)],
        Schema::Single => vec![bytes_of(&1f32)],
        Schema::Double => vec![bytes_of(&1f64)],
        Schema::Char => vec![bytes_of(&'1')],
        Schema::Text => vec![bytes_of(&"1")],
        Schema::Bytes => vec![bytes_of(&vec![b'1'])],
        Schema::Halves => vec![bytes_of(&(0i64, 1u64))],
        // What holds itself ends where it is cut.
        Schema::Option(inner) | Schema::List(inner) if **inner == Schema::Cut => vec![vec![0]],
        Schema::Map(key, value) if **key == Schema::Cut || **value == Schema::Cut => vec![vec![0]],
        Schema::Option(inner) | Schema::List(inner) => behind(vec![1], samples(inner)),
        Schema::Map(key, value) => behind(vec![1], parts(&[&**key, &**value])),
        Schema::Tuple(all) => parts(&all.iter().collect::<Vec<_>>()),
        Schema::Struct(_, fields) => parts(&fields.iter().map(|(_, field)| field).collect::<Vec<_>>()),
        Schema::Enum(_, variants) => {
            let variant = |(number, (_, body)): (u32, &(String, Schema))| behind(bytes_of(&number), samples(body));
            (0..).zip(variants).flat_map(variant).take(MAX_SAMPLES).collect()
        }
    }
}

/// Paths in rows, with the words for them; the first that fits counts.
type Places = Vec<(&'static str, &'static str)>;

/// Returns the words for the places of rows of this schema: keys have other paths in the rows of windows.
fn places(stored: &Schema) -> Places {
    let in_pane = matches!(stored, Schema::Tuple(parts)
        if matches!(parts.get(1), Some(Schema::Struct(name, _)) if name == "Counted"));
    let key = if in_pane { ".0.1" } else { ".0" };
    vec![
        (key, "key"),
        (".1.row.state", "value"),
        (".1.row.waiting[].1", "waiting record"),
        (".1.row.filling.total.sum", "accumulator"),
        (".1.row[].total.sum", "accumulator"),
        (".1.sum", "accumulator"),
        (".1.value", "value"),
        (".1", "row"),
    ]
}

/// Returns a path with words for its beginning.
fn named(places: &Places, path: &str) -> String {
    let found = places.iter().find_map(|(start, word)| Some((word, path.strip_prefix(start)?)));
    found.map_or_else(|| format!("row{path}"), |(word, rest)| format!("{word}{rest}"))
}

/// Explains a mismatch.
fn refusal(stored: &Schema, mismatch: &Mismatch) -> ConversionRefusal {
    let place = named(&places(stored), &mismatch.path());
    let help = match &mismatch.what {
        // A tuple of aggregates, or what has become one.
        MismatchKind::Types(stored, now)
            if place == "accumulator" && (stored.starts_with('(') || now.starts_with("a tuple of ")) =>
        {
            format!(
                "run once with the aggregates of before, in their order, with a name at each (`each.named(\"…\", …)`), \
                 then add and remove some; {OTHERWISE}"
            )
        }
        MismatchKind::Types(stored, _) => {
            format!("write {stored} there, or a wider type of its kind; {OTHERWISE}")
        }
        MismatchKind::MissingField(field) => format!(
            "write `#[serde(default)]` at `{field}`, or `#[serde(alias = \"…\")]` with the name that it had; {OTHERWISE}"
        ),
        MismatchKind::UnknownField(field) => {
            format!("remove `#[serde(deny_unknown_fields)]`, or keep `{field}`; {OTHERWISE}")
        }
        MismatchKind::UnknownVariant(variant) => format!(
            "keep the variant, or write `#[serde(alias = \"{variant}\")]` at the one that it has become; {OTHERWISE}"
        ),
        MismatchKind::Damaged(_) | MismatchKind::Refused(_) => OTHERWISE.into(),
    };
    ConversionRefusal { why: format!("{place}: {mismatch}"), help }
}

/// The differences of the fields of two schemas.
struct FieldChanges {
    /// The fields that the program's type skips: paths of their structs, and their names.
    skipped: Vec<(String, String)>,
    places: Places,
    found: Vec<String>,
    refusal: Option<ConversionRefusal>,
}

impl FieldChanges {
    /// Compares what is stored with what the program has, at a path.
    fn compare(&mut self, stored: &Schema, now: &Schema, path: String) {
        match (stored, now) {
            (Schema::Option(stored), Schema::Option(now)) => self.compare(stored, now, path),
            (Schema::List(stored), Schema::List(now)) => self.compare(stored, now, path + "[]"),
            (Schema::Map(key, value), Schema::Map(key_now, value_now)) => {
                self.compare(key, key_now, format!("{path}[key]"));
                self.compare(value, value_now, path + "[value]");
            }
            (Schema::Tuple(stored), Schema::Tuple(now)) => {
                let pairs = stored.iter().zip(now).enumerate();
                pairs.for_each(|(number, (stored, now))| self.compare(stored, now, format!("{path}.{number}")));
            }
            (Schema::Enum(_, stored), Schema::Enum(_, now)) => {
                for (variant, body) in stored {
                    if let Some((_, body_now)) = now.iter().find(|(name, _)| name == variant) {
                        self.compare(body, body_now, format!("{path}::{variant}"));
                    }
                }
            }
            (Schema::Struct(_, stored), Schema::Struct(_, now)) => self.compare_fields(stored, now, &path),
            (stored, Schema::Option(now)) => {
                self.found.push(format!("{} is optional now", self.named(&path)));
                self.compare(stored, now, path);
            }
            (stored, now) if stored.describe() != now.describe() => {
                self.found.push(format!("{} is {}, was {}", self.named(&path), now.describe(), stored.describe()));
            }
            _ => {}
        }
    }

    fn compare_fields(&mut self, stored: &[(String, Schema)], now: &[(String, Schema)], path: &str) {
        fn without<'a>(these: &'a [(String, Schema)], those: &[(String, Schema)]) -> Vec<&'a (String, Schema)> {
            these.iter().filter(|(name, _)| those.iter().all(|(other, _)| other != name)).collect()
        }
        let (gone, added) = (without(stored, now), without(now, stored));
        let is_skipped = |name: &str| self.skipped.iter().any(|(at, skipped)| at == path && skipped == name);
        let (dropped, renamed): (Vec<_>, Vec<_>) = gone.into_iter().partition(|(name, _)| is_skipped(name));
        let place = self.named(path);
        if let Some((name, _)) = dropped.first().filter(|_| place == "key" || place.starts_with("key.")) {
            let why = format!("{place}: the field `{name}` is stored, and the program does not have it");
            let help = format!("keep it, as keys that differ by it alone would become one; {OTHERWISE}");
            self.refusal.get_or_insert(ConversionRefusal { why, help });
        }
        let heir = |(_, schema): &&&(String, Schema)| added.iter().find(|(_, new)| new.describe() == schema.describe());
        if added.len() > renamed.len()
            && let Some((name, _)) = dropped.iter().find(|gone| heir(gone).is_some())
            && let Some((new, _)) = dropped.iter().find_map(|gone| heir(&gone))
        {
            let why = format!("{place}: the field `{name}` is stored and gone, and `{new}` is new and of its type");
            let help = format!(
                "write `#[serde(alias = \"{name}\")]` at `{new}` if it is the same; otherwise run once without both, then \
                 add `{new}`"
            );
            self.refusal.get_or_insert(ConversionRefusal { why, help });
        }
        self.found.extend(dropped.iter().map(|(name, _)| format!("{place}.{name} is dropped")));
        match (&renamed[..], &added[..]) {
            ([(old, _)], [(new, _)]) => self.found.push(format!("{place}.{new} is what {old} was")),
            (_, _) => {
                self.found.extend(renamed.iter().map(|(old, _)| format!("{place}.{old} has another name")));
                if renamed.is_empty() {
                    self.found
                        .extend(added.iter().map(|(new, _)| format!("{place}.{new} is new, and gets its default")));
                }
            }
        }
        for (name, field) in stored {
            if let Some((_, field_now)) = now.iter().find(|(other, _)| other == name) {
                self.compare(field, field_now, format!("{path}.{name}"));
            }
        }
    }

    fn named(&self, path: &str) -> String {
        named(&self.places, path)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fmt::Debug;

    use serde::Deserialize;

    use super::*;
    use crate::time::EventTime;

    /// Declares types with what all of them derive.
    macro_rules! types {
        ($($item:item)*) => { $( #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)] $item )* };
    }

    /// A row of windows, as far as its schema is looked at.
    type Row<K, S> = ((EventTime, K), Counted<S>);

    types! {
        struct Counted<S> { count: i64, sum: S }
        struct Key { id: u32, shop: String }
        enum Kind { Cash, Card(u8), Voucher { code: String, cents: i32 } }
        struct Sale { cents: i32, kind: Kind, notes: Vec<(u8, Option<char>)>, named: BTreeMap<String, f32>, at: EventTime }
    }

    fn sale(kind: Kind) -> Sale {
        let named = [("x".to_owned(), 0.5f32)].into();
        Sale { cents: -7, kind, notes: vec![(200, None), (1, Some('z'))], named, at: EventTime::from_millis(9) }
    }

    fn row<S>(sum: S) -> Row<Key, S> {
        ((EventTime::from_millis(5), Key { id: 70_000, shop: "s".into() }), Counted { count: 3, sum })
    }

    /// Converts rows; returns the new rows and what changed.
    fn converted<Old: Serialize + DeserializeOwned, New: DeserializeOwned>(rows: &[Old]) -> (Vec<New>, Vec<String>) {
        let schema = Schema::of::<Old>();
        let changes = check::<New>(&schema, &NameTree::None).unwrap();
        let bytes: Vec<u8> = rows.iter().flat_map(bytes_of).collect();
        let mut out = Vec::new();
        convert((&schema, &NameTree::None), &bytes, rows.len() as u32, &mut out).unwrap();
        (out, changes)
    }

    fn refused<Old: DeserializeOwned, New: DeserializeOwned + Debug>() -> String {
        let ConversionRefusal { why, help } = check::<New>(&Schema::of::<Old>(), &NameTree::None).unwrap_err();
        format!("{why}; {help}")
    }

    #[test]
    fn all_that_only_grows_is_kept() {
        mod now {
            use super::*;
            types! {
                pub(super) struct KeyNow { shop: Option<String>, id: u64 }
                pub(super) enum Means { Voucher { #[serde(alias = "code")] number: String, cents: i64, #[serde(default)] of: u8 }, Cash, Card(i32), Gift }
                pub(super) struct Sold {
                    #[serde(default)] currency: String,
                    kind: Means,
                    #[serde(alias = "cents")] minor: i64,
                    notes: Vec<(u16, Option<String>)>,
                    named: BTreeMap<String, Option<f64>>,
                    rebate: Option<i64>,
                }
            }
        }
        let voucher = || Kind::Voucher { code: "c".into(), cents: 300 };
        let old: Vec<_> = [Kind::Cash, Kind::Card(9), voucher()].into_iter().map(|kind| row(sale(kind))).collect();
        let (new, changes) = converted::<_, Row<now::KeyNow, now::Sold>>(&old);
        let kinds = ["Cash", "Card(9)", "Voucher { number: \"c\", cents: 300, of: 0 }"];
        for (row, kind) in new.iter().zip(kinds) {
            let said = format!("{row:?}");
            let expected = format!(
                "KeyNow {{ shop: Some(\"s\"), id: 70000 }}), Counted {{ count: 3, sum: Sold {{ currency: \"\", kind: {kind}, \
                 minor: -7, notes: [(200, None), (1, Some(\"z\"))], named: {{\"x\": Some(0.5)}}, rebate: None }} }})"
            );
            assert!(said.ends_with(&expected), "{said}\n{expected}");
        }
        assert_eq!(new.len(), 3);
        for change in ["key.shop is optional now", "key.id is u64, was u32", "accumulator.at is dropped"] {
            assert!(changes.iter().any(|known| known == change), "{change} is not in {changes:?}");
        }
    }

    #[test]
    fn what_loses_something_is_refused_with_its_place_and_what_to_write() {
        types! {
            struct KeyWithout { id: u32 }
            struct Narrow { cents: i16 }
            struct Signs { cents: u32 }
            struct Wide { cents: i32 }
            struct Optional { cents: Option<i32> }
            struct Renamed { minor: i32 }
            struct Missing { cents: i32, currency: String }
            struct Suspect { #[serde(default)] minor: i32 }
            struct Unrelated { #[serde(default)] label: String }
            #[serde(deny_unknown_fields)]
            struct Strict { }
            enum Fewer { Cash, Card(u8) }
            enum Moved { Cash(u8), Card(u8), Voucher { code: String, cents: i32 } }
        }
        for (said, expected) in [
            (
                refused::<Row<Key, ()>, Row<KeyWithout, ()>>(),
                "key: the field `shop` is stored, and the program does not",
            ),
            (
                refused::<Row<Key, Wide>, Row<Key, Narrow>>(),
                "accumulator.cents: stored is i32, and the program has i16; write i32",
            ),
            (refused::<Row<Key, Wide>, Row<Key, Signs>>(), "accumulator.cents: stored is i32, and the program has u32"),
            (
                refused::<Row<Key, Optional>, Row<Key, Wide>>(),
                "accumulator.cents: stored is optional i32, and the program has i32",
            ),
            (
                refused::<Row<Key, Wide>, Row<Key, Renamed>>(),
                "accumulator: the field `minor` is not stored; write `#[serde(default)]`",
            ),
            (refused::<Row<Key, Wide>, Row<Key, Missing>>(), "accumulator: the field `currency` is not stored"),
            (
                refused::<Row<Key, Wide>, Row<Key, Suspect>>(),
                "accumulator: the field `cents` is stored and gone, and `minor` is new",
            ),
            (refused::<Row<Key, Wide>, Row<Key, Suspect>>(), "write `#[serde(alias = \"cents\")]` at `minor`"),
            (refused::<Row<Key, Wide>, Row<Key, Strict>>(), "the program refuses the stored field `cents`; remove"),
            (
                refused::<Row<Key, Kind>, Row<Key, Fewer>>(),
                "accumulator: the program has no variant `Voucher`, which is stored",
            ),
            (
                refused::<Row<Key, Kind>, Row<Key, Moved>>(),
                "accumulator::Cash: stored is nothing, and the program has u8",
            ),
            (refused::<Row<u8, f64>, Row<u8, f32>>(), "accumulator: stored is f64, and the program has f32"),
            (refused::<(u64, Wide), (i64, Wide)>(), "key: stored is u64, and the program has i64"),
            (
                refused::<Row<Key, (u8, u8)>, Row<Key, (u8, u8, u8)>>(),
                "accumulator: stored is (u8, u8), and the program has a tuple of 3",
            ),
        ] {
            assert!(said.contains(expected), "expected: {expected}\nfound:    {said}");
        }
        // A field less of a value is said to be dropped, and one more of another type is no other name of it.
        let changes = check::<Row<Key, Unrelated>>(&Schema::of::<Row<Key, Wide>>(), &NameTree::None).unwrap();
        assert_eq!(changes, ["accumulator.cents is dropped", "accumulator.label is new, and gets its default"]);
        assert!(
            check::<u8>(&Schema::Unknown, &NameTree::None).unwrap_err().why.contains("do not say what they consist of")
        );
    }

    /// The types of the refusals above, with what the refusals say to write.
    #[test]
    fn what_is_said_to_write_is_accepted() {
        types! {
            struct Wide { cents: i32 }
            struct Optional { cents: Option<i32> }
            struct Defaulted { #[serde(alias = "cents")] minor: i32, #[serde(default)] currency: String }
            struct Lenient { }
            struct Wider { cents: i64 }
            enum Kept { Cash, Card(u8), Voucher { code: String, cents: i32 }, More }
            enum Aliased { Cash, Card(u8), #[serde(alias = "Voucher")] Coupon { code: String, cents: i32 } }
        }
        fn accepted<Old: DeserializeOwned, New: DeserializeOwned>() {
            let checked = check::<New>(&Schema::of::<Old>(), &NameTree::None);
            assert!(checked.is_ok(), "{}: {checked:?}", std::any::type_name::<New>());
        }
        accepted::<Row<Key, Wide>, Row<Key, Wide>>();
        accepted::<Row<Key, Wide>, Row<Key, Wider>>();
        accepted::<Row<Key, Wide>, Row<Key, Optional>>();
        accepted::<Row<Key, Wide>, Row<Key, Defaulted>>();
        accepted::<Row<Key, Wide>, Row<Key, Lenient>>();
        accepted::<Row<Key, Kind>, Row<Key, Kept>>();
        accepted::<Row<Key, Kind>, Row<Key, Aliased>>();
        accepted::<Row<u8, f64>, Row<u8, f64>>();
    }

    #[test]
    fn types_with_aliases_are_stored_under_the_names_that_they_are_written_with() {
        types! {
            struct Aliased { #[serde(alias = "a", alias = "zz")] minor: i32, #[serde(alias = "b")] label: String, at: i64 }
            struct Later { at: i64, minor: i64, label: String }
        }
        let names = |schema: &Schema| match schema {
            Schema::Struct(_, fields) => fields.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>(),
            other => panic!("{other:?}"),
        };
        assert_eq!(names(&Schema::of::<Aliased>()), ["minor", "label", "at"]);
        let aliased = Aliased { minor: 4, label: "l".into(), at: 5 };
        let (later, _) = converted::<_, (u8, Later)>(&[(1u8, aliased)]);
        assert_eq!(later, [(1, Later { at: 5, minor: 4, label: "l".into() })]);
    }

    #[test]
    fn damaged_bytes_are_no_rows() {
        let schema = Schema::of::<(u8, Sale)>();
        let mut random = fastrand::Rng::with_seed(1);
        for _ in 0..20_000 {
            let bytes: Vec<u8> = (0..random.usize(..40)).map(|_| random.u8(..)).collect();
            // Either result is fine; the test looks for panics.
            let _unverified =
                convert::<(u8, Sale)>((&schema, &NameTree::None), &bytes, random.u32(..3), &mut Vec::new());
        }
        let bytes = bytes_of(&(1u8, sale(Kind::Cash)));
        let said = convert::<(u8, Sale)>((&schema, &NameTree::None), &bytes[..3], 1, &mut Vec::new()).unwrap_err();
        assert!(said.starts_with("row 0 of 1 in the block cannot be converted"), "{said}");
    }
}
