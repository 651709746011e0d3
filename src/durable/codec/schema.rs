//! The schema of a type: enough to decode and display its values without the type.
//!
//! The `postcard` format does not describe itself. So segments carry the [`Schema`] of their rows, with which a tool
//! decodes them to [`DynamicValue`]s. It is found as [shapes](super::shape) are, by deserialising the type from a
//! [probe](crate::probe); enums are probed repeatedly until every variant has been seen at every position.
//!
//! A recursive type is followed a few levels deep and ends in [`Schema::Cut`]; values that are nested deeper cannot be
//! displayed, which is reported as an error. An unknown part stays [`Schema::Unknown`]: it is never guessed.

use std::collections::BTreeMap;
use std::mem;

use serde::de::DeserializeOwned;
use serde::ser::{SerializeMap, SerializeSeq};
use serde::{Deserialize, Serialize, Serializer};

use crate::probe::{self, Branch, Dummy, EntryKey, Leaf, ProbeOfType, ProbeStop, Recorder};
use crate::record::Real;
use crate::time::EventTime;

/// Depth up to which options and collections are given an element.
const MAX_FILLED_DEPTH: usize = 16;
/// Depth up to which a type is followed.
const MAX_TYPE_DEPTH: usize = 64;
/// Maximum nesting of a type name within itself.
const MAX_NESTING: usize = 3;
/// Maximum number of passes over a type.
const MAX_PASSES: usize = 512;
/// Maximum number of nested requests that are answered in one pass.
const MAX_REQUESTS: usize = 20_000;

/// The type name and the fields of 128-bit sums that are stored as two halves.
const HALVES: (&str, &[&str]) = ("WideSum", &["high", "low"]);

/// The fields of [`Schema::Halves`].
pub(super) fn halves_as_struct() -> [(String, Schema); 2] {
    [(HALVES.1[0].to_owned(), Schema::Signed(64)), (HALVES.1[1].to_owned(), Schema::Unsigned(64))]
}

/// A struct by its type name and the names of its fields, those of aliases included.
type StructNames = (&'static str, &'static [&'static str]);
/// The names that the fields of structs with aliases are serialised under.
type FieldNames = BTreeMap<StructNames, Vec<&'static str>>;

/// The structure of a type's values, in the order in which they are serialised.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Schema {
    /// An unknown structure.
    #[default]
    Unknown,
    /// A recursive type beyond the depth that is followed.
    Cut,
    /// `bool`.
    Bool,
    /// A signed integer of this many bits.
    Signed(u8),
    /// An unsigned integer of this many bits.
    Unsigned(u8),
    /// `f32`.
    Single,
    /// `f64`.
    Double,
    /// `char`.
    Char,
    /// Text.
    Text,
    /// Bytes.
    Bytes,
    /// No data.
    Unit,
    /// An [`EventTime`].
    Time,
    /// A signed integer of 128 bits as two halves, the upper one first: the stored form of sums.
    Halves,
    /// An optional value.
    Option(Box<Schema>),
    /// A sequence of values of one type.
    List(Box<Schema>),
    /// A map from keys to values.
    Map(Box<Schema>, Box<Schema>),
    /// A fixed number of values, each of its own type.
    Tuple(Vec<Schema>),
    /// A struct: its name, and its fields in order.
    Struct(String, Vec<(String, Schema)>),
    /// An enum: its name, and its variants in order.
    Enum(String, Vec<(String, Schema)>),
}

impl Schema {
    /// The schema of a type, found by probing it.
    pub(crate) fn of<T: DeserializeOwned>() -> Schema {
        Schema::of_probed(probe::probe_and_drop::<T>)
    }

    fn of_probed(probe: ProbeOfType) -> Schema {
        let (mut schema, mut candidates) = (Schema::Unknown, BTreeMap::new());
        let mut names = FieldNames::new();
        for _ in 0..MAX_PASSES {
            let mut pass = SchemaRecorder {
                node: schema.clone(),
                candidates,
                field_names: names.clone(),
                ..SchemaRecorder::default()
            };
            let failed = probe(&mut pass).is_err();
            if let Some(aliased) = pass.aliased {
                // Its fields were taken for others: begin again, with their names.
                names.insert(aliased, names_of_fields(probe, aliased, &names));
                (schema, candidates) = (Schema::Unknown, BTreeMap::new());
                continue;
            }
            let before = mem::replace(&mut schema, pass.node);
            candidates = pass.candidates;
            let is_stuck = if failed { !pass.found_dead_end } else { schema == before };
            if is_stuck || !schema.is_open() {
                break;
            }
        }
        schema
    }

    /// Describes the type of its values, in the words of Rust.
    pub(super) fn describe(&self) -> String {
        match self {
            Schema::Unknown | Schema::Cut => "something unknown".into(),
            Schema::Bool => "bool".into(),
            Schema::Signed(bits) => format!("i{bits}"),
            Schema::Unsigned(bits) => format!("u{bits}"),
            Schema::Single => "f32".into(),
            Schema::Double => "f64".into(),
            Schema::Char => "char".into(),
            Schema::Text => "text".into(),
            Schema::Bytes => "bytes".into(),
            Schema::Unit => "nothing".into(),
            Schema::Time => "an event time".into(),
            Schema::Halves => "a sum".into(),
            Schema::Option(inner) => format!("optional {}", inner.describe()),
            Schema::List(inner) => format!("a list of {}", inner.describe()),
            Schema::Map(key, value) => format!("a map of {} to {}", key.describe(), value.describe()),
            Schema::Tuple(parts) => {
                format!("({})", parts.iter().map(Schema::describe).collect::<Vec<_>>().join(", "))
            }
            Schema::Struct(name, _) => format!("the struct {name}"),
            Schema::Enum(name, _) => format!("the enum {name}"),
        }
    }

    /// `true` if a part of it is still unknown, so that another pass may complete it.
    pub(super) fn is_open(&self) -> bool {
        match self {
            Schema::Unknown => true,
            Schema::Option(inner) | Schema::List(inner) => inner.is_open(),
            Schema::Map(key, value) => key.is_open() || value.is_open(),
            Schema::Tuple(parts) => parts.iter().any(Schema::is_open),
            Schema::Struct(_, parts) | Schema::Enum(_, parts) => parts.iter().any(|(_, part)| part.is_open()),
            _ => false,
        }
    }

    /// Returns the part with this number: an element, a field, a key or value, the contents of a variant.
    fn part(&mut self, at: usize) -> Option<&mut Schema> {
        match (self, at) {
            (Schema::Option(inner) | Schema::List(inner) | Schema::Map(inner, _), 0) => Some(inner),
            (Schema::Map(_, value), 1) => Some(value),
            (Schema::Tuple(parts), _) => parts.get_mut(at),
            (Schema::Struct(_, parts) | Schema::Enum(_, parts), _) => parts.get_mut(at).map(|(_, part)| part),
            _ => None,
        }
    }

    /// Reads a value in the `postcard` format, and advances `bytes` past it.
    ///
    /// # Errors
    /// Fails if the bytes are no such value, or if the schema is unknown or cut at that place.
    pub(crate) fn read(&self, bytes: &mut &[u8]) -> Result<DynamicValue, String> {
        Ok(match self {
            Schema::Unknown => return Err("nobody knows what a part of its type is".into()),
            Schema::Cut => return Err("its type holds itself, and a value goes deeper than can be shown".into()),
            Schema::Bool => DynamicValue::Bool(take(bytes)?),
            Schema::Signed(8) => DynamicValue::Integer(take::<i8>(bytes)?.into()),
            Schema::Signed(128) => DynamicValue::Wide(take(bytes)?),
            Schema::Signed(_) => DynamicValue::Integer(take(bytes)?),
            Schema::Unsigned(8) => DynamicValue::Natural(take::<u8>(bytes)?.into()),
            Schema::Unsigned(128) => DynamicValue::WideNatural(take(bytes)?),
            Schema::Unsigned(_) => DynamicValue::Natural(take(bytes)?),
            Schema::Single => DynamicValue::Real(Real::new(take::<f32>(bytes)?.into())),
            Schema::Double => DynamicValue::Real(Real::new(take(bytes)?)),
            Schema::Char => DynamicValue::Text(take::<char>(bytes)?.into()),
            Schema::Text => DynamicValue::Text(take(bytes)?),
            Schema::Bytes => DynamicValue::Bytes(take::<&[u8]>(bytes)?.to_vec()),
            Schema::Unit => DynamicValue::Nothing,
            Schema::Time => DynamicValue::Time(EventTime::from_millis(take(bytes)?)),
            Schema::Halves => {
                let (high, low): (i64, u64) = take(bytes)?;
                DynamicValue::Wide(i128::from(high) << 64 | i128::from(low))
            }
            Schema::Option(inner) => match take(bytes)? {
                false => DynamicValue::Nothing,
                true => inner.read(bytes)?,
            },
            Schema::List(inner) => DynamicValue::List(many(bytes, |bytes| inner.read(bytes))?),
            Schema::Map(key, value) => {
                DynamicValue::Map(many(bytes, |bytes| Ok((key.read(bytes)?, value.read(bytes)?)))?)
            }
            Schema::Tuple(parts) => {
                DynamicValue::List(parts.iter().map(|part| part.read(bytes)).collect::<Result<_, _>>()?)
            }
            Schema::Struct(_, fields) => {
                let field = |(name, field): &(String, Schema)| Ok((name.clone(), field.read(bytes)?));
                DynamicValue::Fields(fields.iter().map(field).collect::<Result<_, String>>()?)
            }
            Schema::Enum(name, variants) => {
                let number: u32 = take(bytes)?;
                let Some((variant, body)) = variants.get(number as usize) else {
                    return Err(format!("`{name}` has no variant {number}"));
                };
                DynamicValue::Variant(number, variant.clone(), Box::new(body.read(bytes)?))
            }
        })
    }
}

/// Reads a value in the `postcard` format, and advances `bytes` past it.
pub(super) fn take<'a, T: Deserialize<'a>>(bytes: &mut &'a [u8]) -> Result<T, String> {
    let (value, rest) = postcard::take_from_bytes(bytes).map_err(|why| why.to_string())?;
    *bytes = rest;
    Ok(value)
}

fn many<V>(bytes: &mut &[u8], mut one: impl FnMut(&mut &[u8]) -> Result<V, String>) -> Result<Vec<V>, String> {
    let count: u64 = take(bytes)?;
    // Elements may take no bytes at all, but no state has this many of them.
    if count > bytes.len() as u64 && count > 1 << 16 {
        return Err(format!("{count} elements in {} bytes", bytes.len()));
    }
    (0..count).map(|_| one(bytes)).collect()
}

/// A value decoded by a schema. Values are ordered like the types that they come from, if those derive their order.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum DynamicValue {
    /// `()` or `None`.
    Nothing,
    /// `bool`.
    Bool(bool),
    /// A signed integer of up to 64 bits.
    Integer(i64),
    /// An unsigned integer of up to 64 bits.
    Natural(u64),
    /// `i128`; in JSON it is text, as few readers of JSON support such numbers.
    Wide(i128),
    /// `u128`; in JSON it is text.
    WideNatural(u128),
    /// A floating-point number.
    Real(Real),
    /// An event time; in JSON it is in RFC 3339.
    Time(EventTime),
    /// Text.
    Text(String),
    /// Bytes; in JSON they are hexadecimal.
    Bytes(Vec<u8>),
    /// Values in order.
    List(Vec<DynamicValue>),
    /// Values with names, in order.
    Fields(Vec<(String, DynamicValue)>),
    /// Keys with values.
    Map(Vec<(DynamicValue, DynamicValue)>),
    /// A variant of an enum: its number, its name, its contents.
    Variant(u32, String, Box<DynamicValue>),
}

impl Serialize for DynamicValue {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            DynamicValue::Nothing => serializer.serialize_unit(),
            DynamicValue::Bool(value) => serializer.serialize_bool(*value),
            DynamicValue::Integer(value) => serializer.serialize_i64(*value),
            DynamicValue::Natural(value) => serializer.serialize_u64(*value),
            DynamicValue::Wide(value) => serializer.collect_str(value),
            DynamicValue::WideNatural(value) => serializer.collect_str(value),
            DynamicValue::Real(value) => serializer.serialize_f64(value.get()),
            DynamicValue::Time(value) => serializer.collect_str(value),
            DynamicValue::Text(value) => serializer.serialize_str(value),
            DynamicValue::Bytes(bytes) => {
                let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
                serializer.serialize_str(&hex)
            }
            DynamicValue::List(values) => serializer.collect_seq(values),
            DynamicValue::Fields(fields) => serializer.collect_map(fields.iter().map(|(name, value)| (name, value))),
            DynamicValue::Map(pairs) if pairs.iter().all(|(key, _)| matches!(key, DynamicValue::Text(_))) => {
                let mut map = serializer.serialize_map(Some(pairs.len()))?;
                pairs.iter().try_for_each(|(key, value)| map.serialize_entry(key, value))?;
                map.end()
            }
            DynamicValue::Map(pairs) => {
                let mut list = serializer.serialize_seq(Some(pairs.len()))?;
                pairs.iter().try_for_each(|pair| list.serialize_element(pair))?;
                list.end()
            }
            DynamicValue::Variant(_, name, body) if **body == DynamicValue::Nothing => serializer.serialize_str(name),
            DynamicValue::Variant(_, name, body) => serializer.collect_map([(name, body)]),
        }
    }
}

/// A recorder of one pass over a type.
#[derive(Default)]
struct SchemaRecorder {
    /// The schema of the current request.
    node: Schema,
    depth: usize,
    requests: usize,
    /// The type names that enclose the current request, outermost first.
    names: Vec<&'static str>,
    /// Number of enclosing names that are nested too deep; above 0, the probe takes the shortest way out of the
    /// recursion.
    escaping: usize,
    /// By enum name: the variant tried next as a way out of the recursion.
    candidates: BTreeMap<&'static str, usize>,
    /// `true` if this pass found a variant that the next pass avoids.
    found_dead_end: bool,
    /// Names of fields that are known from passes that asked for them.
    field_names: FieldNames,
    /// A struct that took fewer values than it has names, so that it has aliases; its fields' names are not known yet.
    aliased: Option<StructNames>,
    /// The struct that is asked which of its fields a name belongs to, and that name.
    asked: Option<(StructNames, &'static str)>,
    /// `true` while the struct that is asked gets its fields by name.
    by_name: bool,
    /// Number of parts that the current struct has taken.
    taken: usize,
    /// The requests that have begun and not ended, outermost first.
    open_requests: Vec<OpenRequest>,
    /// The parts that have begun and not ended, outermost first.
    open_parts: Vec<OpenPart>,
}

/// Returns the names under which the fields of a struct within a type are serialised: each of its names is given to it
/// twice, and it says which field is there twice.
fn names_of_fields(probe: ProbeOfType, aliased: StructNames, known: &FieldNames) -> Vec<&'static str> {
    let mut fields = Vec::new();
    for name in aliased.1 {
        let mut pass =
            SchemaRecorder { field_names: known.clone(), asked: Some((aliased, name)), ..SchemaRecorder::default() };
        if let Err(ProbeStop::DuplicateField(field)) = probe(&mut pass)
            && !fields.contains(&field)
        {
            fields.push(field);
        }
    }
    fields
}

fn unknown(names: &[&str]) -> Vec<(String, Schema)> {
    names.iter().map(|name| ((*name).to_owned(), Schema::Unknown)).collect()
}

/// A request that has begun, and the actions that its end takes.
#[derive(Default)]
struct OpenRequest {
    /// `true` if the request is a level of its own.
    is_followed: bool,
    /// `true` if it is named; and `true` if it is nested too deep.
    named: Option<bool>,
    /// Schema that is recorded instead of that of the requests in between.
    replacement: Option<Schema>,
    /// Of halves: the schema before, which stays if the type refuses them.
    halves: Option<Schema>,
    fields: Option<OpenFields>,
    variant: Option<OpenVariant>,
}

/// A struct whose fields are asked for.
struct OpenFields {
    names: StructNames,
    count: usize,
    /// `true` if the names of its fields are known from passes that asked for them.
    is_known: bool,
    outer_by_name: bool,
    outer_taken: usize,
}

/// An enum whose variant is asked for.
struct OpenVariant {
    name: &'static str,
    count: usize,
    number: usize,
    candidate: usize,
    /// `true` if the shortest way out of a recursion is taken.
    is_escaping: bool,
}

/// The value around a part, and what is restored behind the part.
enum OpenPart {
    ByName { whole: Schema },
    ByNumber { whole: Schema, taken: usize },
}

impl SchemaRecorder {
    /// Begins a named type; beyond [`MAX_NESTING`] levels of the same name its schema is cut.
    fn begin_named(&mut self, name: &'static str, open: &mut OpenRequest) -> Result<(), ProbeStop> {
        let deep = self.names.iter().filter(|other| **other == name).count() >= MAX_NESTING;
        self.names.push(name);
        self.escaping += usize::from(deep);
        open.named = Some(deep);
        if deep {
            self.node = Schema::Unknown;
            open.replacement = Some(Schema::Cut);
        }
        self.follow(open)
    }

    /// Begins a level.
    fn follow(&mut self, open: &mut OpenRequest) -> Result<(), ProbeStop> {
        self.depth += 1;
        self.requests += 1;
        if self.depth > MAX_TYPE_DEPTH || self.requests > MAX_REQUESTS {
            return Err(ProbeStop::Stopped);
        }
        open.is_followed = true;
        Ok(())
    }

    /// Records a collection, and returns its number of elements.
    fn collection(&mut self, branch: Branch) -> usize {
        let fills = self.escaping == 0 && self.depth < MAX_FILLED_DEPTH;
        let inner = || Box::new(if fills { Schema::Unknown } else { Schema::Cut });
        match (branch, &self.node) {
            (Branch::Option, Schema::Option(_)) | (Branch::List, Schema::List(_)) | (Branch::Map, Schema::Map(..)) => {}
            (Branch::Option, _) => self.node = Schema::Option(inner()),
            (Branch::List, _) => self.node = Schema::List(inner()),
            _ => self.node = Schema::Map(inner(), inner()),
        }
        usize::from(fills)
    }

    /// Records a tuple, and returns its number of elements.
    fn tuple(&mut self, length: usize) -> usize {
        if !matches!(&self.node, Schema::Tuple(parts) if parts.len() == length) {
            self.node = Schema::Tuple(vec![Schema::Unknown; length]);
        }
        length
    }

    /// Records a struct, and returns the number of its fields.
    fn begin_fields(&mut self, (name, names): StructNames, open: &mut OpenRequest) -> usize {
        let fields = self.field_names.get(&(name, names)).map_or(names, Vec::as_slice);
        if !matches!(&self.node, Schema::Struct(_, known) if known.len() == fields.len()) {
            self.node = Schema::Struct(name.to_owned(), unknown(fields));
        }
        let (count, is_known) = (fields.len(), fields.len() < names.len());
        let by_name = self.asked.is_some_and(|(asked, _)| asked == (name, names));
        let (outer_by_name, outer_taken) = (mem::replace(&mut self.by_name, by_name), mem::take(&mut self.taken));
        open.fields = Some(OpenFields { names: (name, names), count, is_known, outer_by_name, outer_taken });
        count
    }

    fn end_fields(&mut self, fields: &OpenFields, is_answered: bool) {
        let taken = mem::replace(&mut self.taken, fields.outer_taken);
        self.by_name = fields.outer_by_name;
        if is_answered && taken < fields.count && !fields.is_known && self.asked.is_none() {
            self.aliased.get_or_insert(fields.names);
        }
    }

    /// Records an enum, and returns the number of the variant of which least is known.
    fn begin_variant(
        &mut self,
        name: &'static str,
        names: &[&str],
        open: &mut OpenRequest,
    ) -> Result<usize, ProbeStop> {
        if !matches!(&self.node, Schema::Enum(_, variants) if variants.len() == names.len()) {
            self.node = Schema::Enum(name.to_owned(), unknown(names));
        }
        let Schema::Enum(_, variants) = &self.node else { return Err(ProbeStop::Stopped) };
        let first_open = || variants.iter().position(|(_, body)| body.is_open());
        let first_known = || variants.iter().position(|(_, body)| *body != Schema::Cut);
        let candidate = self.candidates.get(name).copied().unwrap_or(0);
        let is_escaping = self.escaping > 0;
        let number = if is_escaping { candidate } else { first_open().or_else(first_known).unwrap_or(0) };
        if number >= names.len() {
            return Err(ProbeStop::Stopped);
        }
        open.variant = Some(OpenVariant { name, count: names.len(), number, candidate, is_escaping });
        Ok(number)
    }

    fn end_variant(&mut self, variant: &OpenVariant, is_answered: bool) {
        if is_answered || self.found_dead_end {
            return;
        }
        if !variant.is_escaping {
            if let Some(body) = self.node.part(variant.number) {
                *body = Schema::Cut;
            }
            self.found_dead_end = true;
        } else if variant.candidate + 1 < variant.count {
            self.candidates.insert(variant.name, variant.candidate + 1);
            self.found_dead_end = true;
        }
    }

    /// Begins a request, and notes in `open` what its end is to do.
    fn begin_open(&mut self, branch: Branch, open: &mut OpenRequest) -> Result<usize, ProbeStop> {
        Ok(match branch {
            Branch::Option | Branch::List | Branch::Map => {
                let count = self.collection(branch);
                self.follow(open)?;
                count
            }
            Branch::Tuple(length) | Branch::TupleVariant(length) => {
                self.follow(open)?;
                self.tuple(length)
            }
            Branch::TupleStruct(name, length) => {
                self.begin_named(name, open)?;
                self.tuple(length)
            }
            Branch::UnitStruct(_) => {
                self.node = Schema::Unit;
                0
            }
            Branch::Newtype(EventTime::TYPE) => {
                self.node = Schema::Unknown;
                open.replacement = Some(Schema::Time);
                1
            }
            Branch::Newtype(name) => {
                self.begin_named(name, open)?;
                1
            }
            Branch::NewtypeVariant => 1,
            Branch::Struct(name, names) if (name, names) == HALVES => {
                open.halves = Some(mem::take(&mut self.node));
                self.begin_fields((name, names), open)
            }
            Branch::Struct(name, names) => {
                self.begin_named(name, open)?;
                self.begin_fields((name, names), open)
            }
            Branch::StructVariant(names) => {
                self.follow(open)?;
                self.begin_fields(("", names), open)
            }
            Branch::Enum(name, names) => {
                self.begin_named(name, open)?;
                self.begin_variant(name, names, open)?
            }
        })
    }
}

impl Recorder for SchemaRecorder {
    fn is_human_readable(&self) -> bool {
        false
    }

    fn leaf(&mut self, leaf: Leaf) -> Result<Dummy, ProbeStop> {
        self.node = match leaf {
            Leaf::Bool => Schema::Bool,
            Leaf::Signed(bits) => Schema::Signed(bits),
            Leaf::Unsigned(bits) => Schema::Unsigned(bits),
            Leaf::Float(32) => Schema::Single,
            Leaf::Float(_) => Schema::Double,
            Leaf::Char => Schema::Char,
            Leaf::Text => Schema::Text,
            Leaf::Bytes => Schema::Bytes,
            Leaf::Unit | Leaf::UnitVariant => Schema::Unit,
            // Only a self-describing format can answer these requests.
            Leaf::Any | Leaf::Ignored => Schema::Cut,
            Leaf::Identifier => return Err(ProbeStop::Stopped),
        };
        Ok(Dummy::ONE)
    }

    fn begin(&mut self, branch: Branch) -> Result<usize, ProbeStop> {
        let mut open = OpenRequest::default();
        let begun = self.begin_open(branch, &mut open);
        match begun {
            Ok(_) => self.open_requests.push(open),
            // What is nested too deep is cut, whatever becomes of it.
            Err(_) => self.node = open.replacement.take().unwrap_or_else(|| mem::take(&mut self.node)),
        }
        begun
    }

    fn end(&mut self, _: Branch, is_answered: bool) -> Result<(), ProbeStop> {
        let open = self.open_requests.pop().unwrap_or_default();
        if let Some(fields) = &open.fields {
            self.end_fields(fields, is_answered);
        }
        if let Some(variant) = &open.variant {
            self.end_variant(variant, is_answered);
        }
        if let Some(before) = open.halves {
            self.node = if is_answered { Schema::Halves } else { before };
        }
        if let Some(schema) = open.replacement {
            self.node = schema;
        }
        // After a refusal the pass is over: nobody asks for depths and names again.
        if is_answered {
            self.depth -= usize::from(open.is_followed);
            if let Some(deep) = open.named {
                self.escaping -= usize::from(deep);
                self.names.pop();
            }
        }
        Ok(())
    }

    fn begin_part(&mut self, _: Branch, at: usize) -> Result<(), ProbeStop> {
        let open = if self.by_name {
            // Fields by name are not recorded: only the name that the struct answers with counts.
            self.by_name = false;
            OpenPart::ByName { whole: mem::take(&mut self.node) }
        } else {
            let part = mem::take(self.node.part(at).ok_or(ProbeStop::Stopped)?);
            OpenPart::ByNumber { whole: mem::replace(&mut self.node, part), taken: mem::take(&mut self.taken) }
        };
        self.open_parts.push(open);
        Ok(())
    }

    fn end_part(&mut self, at: usize, _: bool) {
        match self.open_parts.pop() {
            Some(OpenPart::ByName { whole }) => (self.node, self.by_name) = (whole, true),
            Some(OpenPart::ByNumber { whole, taken }) => {
                self.taken = taken + 1;
                let part = mem::replace(&mut self.node, whole);
                if let Some(place) = self.node.part(at) {
                    *place = part;
                }
            }
            None => {}
        }
    }

    fn gives_keys(&self) -> bool {
        self.by_name
    }

    fn key(&mut self, entry: usize) -> Result<Option<EntryKey>, ProbeStop> {
        Ok(self.asked.filter(|_| entry < 2).map(|(_, name)| EntryKey::Text(name)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::samples::{self, SampleReader};

    /// The value in JSON as displayed; the error if it cannot be displayed.
    fn shown<T: Serialize + DeserializeOwned>(value: &T) -> String {
        let bytes = postcard::to_stdvec(value).unwrap();
        let mut rest = &bytes[..];
        match Schema::of::<T>().read(&mut rest) {
            Ok(value) => {
                assert!(rest.is_empty(), "{} bytes are left", rest.len());
                serde_json::to_string(&value).unwrap()
            }
            Err(why) => why,
        }
    }

    #[derive(Serialize, Deserialize)]
    struct WideSum {
        high: i64,
        low: u64,
    }

    #[derive(Serialize, Deserialize)]
    enum Inner {
        A,
        B(i8),
        C { x: f64, y: Option<char> },
    }

    #[derive(Serialize, Deserialize)]
    enum Outer {
        One(Inner),
        Two(Inner, Vec<Inner>),
        Three,
    }

    #[test]
    fn values_are_shown_as_they_were_written() {
        let time = EventTime::from_millis(1_700_000_000_000);
        assert_eq!(shown(&(time, "a".to_owned(), -5i64)), r#"["2023-11-14T22:13:20.000Z","a",-5]"#);
        assert_eq!(shown(&(i128::MIN, u128::MAX, 3u128)).matches('"').count(), 6);
        assert_eq!(shown(&(true, 200u8, -200i16, 1.5f32, [7u64; 2], ())), "[true,200,-200,1.5,[7,7],null]");
        let map: BTreeMap<String, Vec<Option<bool>>> = [("k".into(), vec![None, Some(true)])].into();
        assert_eq!(shown(&map), r#"{"k":[null,true]}"#);
        assert_eq!(shown(&BTreeMap::from([(1, 'x')])), r#"[[1,"x"]]"#);
        assert_eq!(shown(&(WideSum { high: -1, low: u64::MAX }, 1u8)), r#"["-1",1]"#);
    }

    #[test]
    fn every_variant_is_known_wherever_it_stands() {
        let inner = || [Inner::A, Inner::B(-1), Inner::C { x: 0.5, y: Some('z') }];
        let expected = [r#""A""#, r#"{"B":-1}"#, r#"{"C":{"x":0.5,"y":"z"}}"#];
        for (inner, expected) in inner().into_iter().zip(expected) {
            assert_eq!(shown(&Outer::One(inner)), format!(r#"{{"One":{expected}}}"#));
        }
        for (value, expected) in inner().into_iter().zip(expected) {
            let all = expected.len();
            let said = shown(&Outer::Two(value, inner().into()));
            assert_eq!(said[8..8 + all], *expected, "{said}");
        }
        assert_eq!(shown(&(Outer::Three, 1u8)), r#"["Three",1]"#);
    }

    #[derive(Serialize, Deserialize)]
    enum Term {
        Sum(Box<Term>, Box<Term>),
        Number(u8),
    }

    #[derive(Serialize, Deserialize)]
    struct Tree {
        value: u8,
        left: Option<Box<Tree>>,
        more: Vec<Tree>,
    }

    #[test]
    fn types_that_hold_themselves_are_shown_some_levels_deep_and_then_refused() {
        let number = |n| Box::new(Term::Number(n));
        let sum = |term| Box::new(Term::Sum(number(1), term));
        assert_eq!(shown(&(Term::Sum(number(1), number(2)), 3u8)), r#"[{"Sum":[{"Number":1},{"Number":2}]},3]"#);
        let deep = (0..5).fold(number(2), |term, _| sum(term));
        assert!(shown(&deep).contains("holds itself"), "{}", shown(&deep));
        let leaf = || Tree { value: 1, left: None, more: vec![] };
        let tree = Tree { value: 2, left: Some(Box::new(leaf())), more: vec![leaf()] };
        let small = r#"{"value":1,"left":null,"more":[]}"#;
        assert_eq!(shown(&tree), format!(r#"{{"value":2,"left":{small},"more":[{small}]}}"#));
        let deep = (0..6).fold(leaf(), |tree, _| Tree { value: 0, left: Some(Box::new(tree)), more: vec![] });
        assert!(shown(&deep).contains("holds itself"));
    }

    #[test]
    fn a_schema_is_read_as_it_was_written_and_no_bytes_make_it_panic() {
        type All = (EventTime, Outer, Tree, Vec<(String, Option<i128>)>, BTreeMap<u8, ()>);
        let schema = Schema::of::<All>();
        assert!(!schema.is_open());
        let bytes = postcard::to_stdvec(&schema).unwrap();
        assert_eq!(postcard::from_bytes::<Schema>(&bytes).unwrap(), schema);
        let mut random = fastrand::Rng::with_seed(1);
        for _ in 0..20_000 {
            let bytes: Vec<u8> = (0..random.usize(..40)).map(|_| random.u8(..)).collect();
            // Either result is fine; the test looks for panics.
            let _unverified = schema.read(&mut &bytes[..]);
        }
    }

    struct Pinned;

    impl SampleReader for Pinned {
        fn probe<T: DeserializeOwned>() -> String {
            format!("{:?}", Schema::of::<T>())
        }
    }

    #[test]
    fn schemas_stay_as_they_were() {
        samples::check::<Pinned>("schemas.txt");
    }
}
