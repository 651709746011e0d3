//! Probes of types: what a type asks a deserializer for.
//!
//! A type is deserialised from a [`Probe`], which has no data. It reports each request to a [`Recorder`] and answers
//! with dummies: 1, "1", an element, a variant. The recorder chooses how many elements a collection has and which
//! variant an enum is, and refuses what it does not follow.
//!
//! There are five recorders:
//!
//! | recorder of | where | what it follows |
//! | --- | --- | --- |
//! | a shape's text, for fingerprints | `src/durable/codec/shape.rs` | everything, once for each number of a variant |
//! | a schema, to display rows | `src/durable/codec/schema.rs` | everything, until each variant is known everywhere |
//! | columns of a row | `src/sink/fields.rs` | one field of a row, with one variant |
//! | fields that a CSV header must name | `src/source/csv/shape.rs` | a row with the header's columns |
//! | an Avro schema | `src/format/avro/derive.rs` | everything, once for each number of a variant |
//!
//! They share requests and answers, but no walk, and no result is derived from another: a shape's text contains each
//! request in the order of its walk, is cut off at depths of its own, and is stored; the walk of a schema learns from
//! earlier passes. The module does not keep results.

use std::any::type_name;
use std::fmt;

use serde::de::value::{BytesDeserializer, StrDeserializer, U32Deserializer};
use serde::de::{
    self, DeserializeOwned, DeserializeSeed, Deserializer, EnumAccess, IntoDeserializer, MapAccess, SeqAccess,
    VariantAccess, Visitor,
};

#[cfg(test)]
pub(crate) mod samples;

/// A request of a single value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Leaf {
    Bool,
    /// A signed integer of this many bits.
    Signed(u8),
    /// An unsigned integer of this many bits.
    Unsigned(u8),
    /// A floating-point number of this many bits.
    Float(u8),
    Char,
    Text,
    Bytes,
    Unit,
    /// The contents of a variant without data.
    UnitVariant,
    /// Whatever comes next, which only a self-describing format knows.
    Any,
    /// Whatever comes next, to be dropped.
    Ignored,
    Identifier,
}

/// A request of a value that is made of others, its **parts**.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Branch {
    Option,
    List,
    /// A map: each key and each value is a part.
    Map,
    Tuple(usize),
    UnitStruct(&'static str),
    Newtype(&'static str),
    TupleStruct(&'static str, usize),
    /// A struct: its name and those of its fields.
    Struct(&'static str, &'static [&'static str]),
    /// An enum: its name and those of its variants. Its only part is the contents of the variant that was chosen.
    Enum(&'static str, &'static [&'static str]),
    /// The contents of a variant.
    NewtypeVariant,
    TupleVariant(usize),
    StructVariant(&'static [&'static str]),
}

/// A dummy of every kind of value.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dummy {
    pub(crate) flag: bool,
    pub(crate) number: u8,
    pub(crate) letter: char,
    pub(crate) text: &'static str,
}

impl Dummy {
    /// The dummy that most types accept. It is 1, not 0, because some types have no 0.
    pub(crate) const ONE: Dummy = Dummy { flag: true, number: 1, letter: '1', text: "1" };
}

/// Reason why a probe ended early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ProbeStop {
    /// The recorder follows the type no further.
    Stopped,
    /// The type refused a dummy.
    Refused,
    /// The type misses a field of this name.
    MissingField(&'static str),
    /// A field of this name got a second value.
    DuplicateField(&'static str),
}

impl fmt::Display for ProbeStop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the type is not followed any further")
    }
}

impl std::error::Error for ProbeStop {}

impl de::Error for ProbeStop {
    fn custom<M: fmt::Display>(_: M) -> Self {
        ProbeStop::Refused
    }

    fn missing_field(field: &'static str) -> Self {
        ProbeStop::MissingField(field)
    }

    fn duplicate_field(field: &'static str) -> Self {
        ProbeStop::DuplicateField(field)
    }
}

/// A value that answers the request of whatever comes next.
#[derive(Clone, Copy, Debug)]
pub(crate) enum AnyValue {
    Flag(bool),
    Signed(i64),
    Unsigned(u64),
    Text(&'static str),
}

/// A key of an entry that a recorder gives.
#[derive(Clone, Debug)]
pub(crate) enum EntryKey {
    Text(&'static str),
    /// A text as bytes that may be no UTF-8.
    Bytes(Vec<u8>),
}

/// A recorder of a type's requests, which decides how they are answered. A refusal ends the probe.
///
/// Nothing in it is generic: a type's code that asks is compiled once for all recorders, not for each, and for a program
/// of many types that is much.
pub(crate) trait Recorder {
    /// `true` if a type is told that the format is for people; variants then have names, not numbers.
    fn is_human_readable(&self) -> bool;

    /// Records the request of a single value; returns the dummy that answers it.
    fn leaf(&mut self, leaf: Leaf) -> Result<Dummy, ProbeStop>;

    /// Begins a request that has parts. Returns the number of elements of a collection, of entries of a map, of parts of an
    /// option, tuple or struct, or the number of an enum's variant; others ignore it.
    fn begin(&mut self, branch: Branch) -> Result<usize, ProbeStop>;

    /// Ends the request that was begun last and has not ended; `is_answered` is `false` if the type refused the answer. It
    /// is called after each `begin` that returned a number.
    fn end(&mut self, branch: Branch, is_answered: bool) -> Result<(), ProbeStop> {
        let _ = (branch, is_answered);
        Ok(())
    }

    /// Begins the requests of part `at` of `whole`; an enum's part has the number of the variant.
    fn begin_part(&mut self, whole: Branch, at: usize) -> Result<(), ProbeStop> {
        let _ = (whole, at);
        Ok(())
    }

    /// Ends the requests of a part that was begun; `is_answered` is `false` if the type refused an answer.
    fn end_part(&mut self, at: usize, is_answered: bool) {
        let _ = (at, is_answered);
    }

    /// Answers a request of whatever comes next, by a visitor whose type has this name.
    fn any(&mut self, visitor: &'static str) -> Result<AnyValue, ProbeStop> {
        let _ = visitor;
        self.leaf(Leaf::Any).map(|dummy| AnyValue::Text(dummy.text))
    }

    /// `true` if structs and maps are answered with entries whose keys the recorder gives. There is then no limit to
    /// their number, and values are parts 1, 3, 5 and so on.
    fn gives_keys(&self) -> bool {
        false
    }

    /// Returns the key of an entry; `None` if there are no more entries.
    fn key(&mut self, entry: usize) -> Result<Option<EntryKey>, ProbeStop> {
        let _ = entry;
        Ok(None)
    }
}

/// Answers a request that has parts.
fn within<'r, V>(
    recorder: &mut (dyn Recorder + 'r),
    branch: Branch,
    answer: impl FnOnce(&mut (dyn Recorder + 'r), usize) -> Result<V, ProbeStop>,
) -> Result<V, ProbeStop> {
    let count = recorder.begin(branch)?;
    let value = answer(recorder, count);
    let ended = recorder.end(branch, value.is_ok());
    match value {
        Ok(value) => ended.map(|()| value),
        refused => refused,
    }
}

/// Answers the requests of a part.
fn part<'r, V>(
    recorder: &mut (dyn Recorder + 'r),
    (whole, at): (Branch, usize),
    answer: impl FnOnce(&mut (dyn Recorder + 'r)) -> Result<V, ProbeStop>,
) -> Result<V, ProbeStop> {
    recorder.begin_part(whole, at)?;
    let value = answer(recorder);
    recorder.end_part(at, value.is_ok());
    value
}

/// Deserialises a type from a probe.
pub(crate) fn probe<T: DeserializeOwned>(recorder: &mut dyn Recorder) -> Result<T, ProbeStop> {
    T::deserialize(Probe(recorder))
}

/// A probe of a type whose value is dropped: what is done with it need not be compiled for each type.
pub(crate) type ProbeOfType = fn(&mut dyn Recorder) -> Result<(), ProbeStop>;

/// Probes a type and drops the value.
pub(crate) fn probe_and_drop<T: DeserializeOwned>(recorder: &mut dyn Recorder) -> Result<(), ProbeStop> {
    probe::<T>(recorder).map(drop)
}

/// A deserializer that answers one request.
struct Probe<'r>(&'r mut dyn Recorder);

/// Implements requests of single values.
macro_rules! leaves {
    ($($request:ident $leaf:expr => $visit:ident $value:expr;)*) => { $(
        fn $request<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ProbeStop> {
            let value: fn(Dummy) -> _ = $value;
            visitor.$visit(value(self.0.leaf($leaf)?))
        }
    )* };
}

impl<'de> Deserializer<'de> for Probe<'_> {
    type Error = ProbeStop;

    leaves! {
        deserialize_bool Leaf::Bool => visit_bool |dummy| dummy.flag;
        deserialize_i8 Leaf::Signed(8) => visit_i8 |dummy| dummy.number as i8;
        deserialize_i16 Leaf::Signed(16) => visit_i16 |dummy| dummy.number.into();
        deserialize_i32 Leaf::Signed(32) => visit_i32 |dummy| dummy.number.into();
        deserialize_i64 Leaf::Signed(64) => visit_i64 |dummy| dummy.number.into();
        deserialize_i128 Leaf::Signed(128) => visit_i128 |dummy| dummy.number.into();
        deserialize_u8 Leaf::Unsigned(8) => visit_u8 |dummy| dummy.number;
        deserialize_u16 Leaf::Unsigned(16) => visit_u16 |dummy| dummy.number.into();
        deserialize_u32 Leaf::Unsigned(32) => visit_u32 |dummy| dummy.number.into();
        deserialize_u64 Leaf::Unsigned(64) => visit_u64 |dummy| dummy.number.into();
        deserialize_u128 Leaf::Unsigned(128) => visit_u128 |dummy| dummy.number.into();
        deserialize_f32 Leaf::Float(32) => visit_f32 |dummy| dummy.number.into();
        deserialize_f64 Leaf::Float(64) => visit_f64 |dummy| dummy.number.into();
        deserialize_char Leaf::Char => visit_char |dummy| dummy.letter;
        deserialize_str Leaf::Text => visit_str |dummy| dummy.text;
        deserialize_string Leaf::Text => visit_str |dummy| dummy.text;
        deserialize_bytes Leaf::Bytes => visit_bytes |dummy| dummy.text.as_bytes();
        deserialize_byte_buf Leaf::Bytes => visit_bytes |dummy| dummy.text.as_bytes();
        deserialize_identifier Leaf::Identifier => visit_str |dummy| dummy.text;
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ProbeStop> {
        match self.0.any(type_name::<V>())? {
            AnyValue::Flag(value) => visitor.visit_bool(value),
            AnyValue::Signed(value) => visitor.visit_i64(value),
            AnyValue::Unsigned(value) => visitor.visit_u64(value),
            AnyValue::Text(value) => visitor.visit_str(value),
        }
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ProbeStop> {
        self.0.leaf(Leaf::Unit)?;
        visitor.visit_unit()
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ProbeStop> {
        self.0.leaf(Leaf::Ignored)?;
        visitor.visit_unit()
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ProbeStop> {
        within(self.0, Branch::Option, |recorder, parts| match parts {
            0 => visitor.visit_none(),
            _ => part(recorder, (Branch::Option, 0), |recorder| visitor.visit_some(Probe(recorder))),
        })
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(self, name: &'static str, visitor: V) -> Result<V::Value, ProbeStop> {
        within(self.0, Branch::UnitStruct(name), |_, _| visitor.visit_unit())
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, ProbeStop> {
        within(self.0, Branch::Newtype(name), |recorder, _| visitor.visit_newtype_struct(Probe(recorder)))
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ProbeStop> {
        Parts::visit(self.0, Branch::List, visitor)
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, length: usize, visitor: V) -> Result<V::Value, ProbeStop> {
        Parts::visit(self.0, Branch::Tuple(length), visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        length: usize,
        visitor: V,
    ) -> Result<V::Value, ProbeStop> {
        Parts::visit(self.0, Branch::TupleStruct(name, length), visitor)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ProbeStop> {
        Parts::visit(self.0, Branch::Map, visitor)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ProbeStop> {
        Parts::visit(self.0, Branch::Struct(name, fields), visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ProbeStop> {
        let whole = Branch::Enum(name, variants);
        within(self.0, whole, |recorder, number| {
            let name = variants.get(number).copied();
            visitor.visit_enum(ChosenVariant { recorder, whole, number, name })
        })
    }

    fn is_human_readable(&self) -> bool {
        self.0.is_human_readable()
    }
}

/// The parts of a collection, a tuple or a struct.
struct Parts<'r> {
    recorder: &'r mut dyn Recorder,
    whole: Branch,
    next: usize,
    end: usize,
    /// `true` if the recorder gives the keys.
    keyed: bool,
}

impl Parts<'_> {
    fn visit<'de, V: Visitor<'de>>(
        recorder: &mut dyn Recorder,
        whole: Branch,
        visitor: V,
    ) -> Result<V::Value, ProbeStop> {
        within(recorder, whole, |recorder, count| {
            let is_map = whole == Branch::Map;
            let keyed = recorder.gives_keys() && (is_map || matches!(whole, Branch::Struct(..)));
            let end = if keyed { usize::MAX } else { count * (1 + usize::from(is_map)) };
            let parts = Parts { recorder, whole, next: 0, end, keyed };
            if is_map || keyed { visitor.visit_map(parts) } else { visitor.visit_seq(parts) }
        })
    }
}

impl<'de> SeqAccess<'de> for Parts<'_> {
    type Error = ProbeStop;

    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, ProbeStop> {
        if self.next == self.end {
            return Ok(None);
        }
        self.next += 1;
        part(self.recorder, (self.whole, self.next - 1), |recorder| seed.deserialize(Probe(recorder)).map(Some))
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.end - self.next)
    }
}

impl<'de> MapAccess<'de> for Parts<'_> {
    type Error = ProbeStop;

    fn next_key_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, ProbeStop> {
        if !self.keyed {
            return self.next_element_seed(seed);
        }
        self.next += 1;
        match self.recorder.key(self.next / 2)? {
            Some(EntryKey::Text(key)) => seed.deserialize(StrDeserializer::new(key)).map(Some),
            Some(EntryKey::Bytes(key)) => seed.deserialize(BytesDeserializer::new(&key)).map(Some),
            None => Ok(None),
        }
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, ProbeStop> {
        self.next_element_seed(seed)?.ok_or(ProbeStop::Stopped)
    }

    fn size_hint(&self) -> Option<usize> {
        None
    }
}

/// The variant of an enum that was chosen.
struct ChosenVariant<'r> {
    recorder: &'r mut dyn Recorder,
    whole: Branch,
    number: usize,
    name: Option<&'static str>,
}

impl<'r> ChosenVariant<'r> {
    fn contents<V>(
        self,
        answer: impl FnOnce(&mut (dyn Recorder + 'r)) -> Result<V, ProbeStop>,
    ) -> Result<V, ProbeStop> {
        part(self.recorder, (self.whole, self.number), answer)
    }
}

impl<'de> EnumAccess<'de> for ChosenVariant<'_> {
    type Error = ProbeStop;
    type Variant = Self;

    fn variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<(S::Value, Self), ProbeStop> {
        let variant = if self.recorder.is_human_readable() {
            seed.deserialize(StrDeserializer::new(self.name.ok_or(ProbeStop::Refused)?))
        } else {
            let number = u32::try_from(self.number).map_err(|_| ProbeStop::Stopped)?;
            let number: U32Deserializer<ProbeStop> = number.into_deserializer();
            seed.deserialize(number)
        };
        Ok((variant?, self))
    }
}

impl<'de> VariantAccess<'de> for ChosenVariant<'_> {
    type Error = ProbeStop;

    fn unit_variant(self) -> Result<(), ProbeStop> {
        self.contents(|recorder| recorder.leaf(Leaf::UnitVariant).map(drop))
    }

    fn newtype_variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<S::Value, ProbeStop> {
        self.contents(|recorder| {
            within(recorder, Branch::NewtypeVariant, |recorder, _| seed.deserialize(Probe(recorder)))
        })
    }

    fn tuple_variant<V: Visitor<'de>>(self, length: usize, visitor: V) -> Result<V::Value, ProbeStop> {
        self.contents(|recorder| Parts::visit(recorder, Branch::TupleVariant(length), visitor))
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ProbeStop> {
        self.contents(|recorder| Parts::visit(recorder, Branch::StructVariant(fields), visitor))
    }
}
