//! Probes of types: what a type asks a deserializer for.
//!
//! A type is deserialised from a [`Probe`], which has no data. It reports each request to a [`Recorder`] and answers
//! with dummies: 1, "1", an element, a variant. The recorder chooses how many elements a collection has and which
//! variant an enum is, and refuses what it does not follow.
//!
//! There are four recorders:
//!
//! | recorder of | where | what it follows |
//! | --- | --- | --- |
//! | a shape's text, for fingerprints | `src/durable/codec/shape.rs` | everything, once for each number of a variant |
//! | a schema, to display rows | `src/durable/codec/schema.rs` | everything, until each variant is known everywhere |
//! | columns of a row | `src/sink/fields.rs` | one field of a row, with one variant |
//! | fields that a CSV header must name | `src/source/csv/shape.rs` | a row with the header's columns |
//!
//! They share requests and answers, but no walk, and no result is derived from another: a shape's text contains each
//! request in the order of its walk, is cut off at depths of its own, and is stored; the walk of a schema learns from
//! earlier passes. The module does not keep results.

use std::fmt;

use serde::de::value::{StrDeserializer, U32Deserializer};
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

/// A recorder of a type's requests, which decides how they are answered. A refusal ends the probe.
pub(crate) trait Recorder: Sized {
    /// `true` if a type is told that the format is for people; variants then have names, not numbers.
    const HUMAN_READABLE: bool;

    /// Records the request of a single value; returns the dummy that answers it.
    fn leaf(&mut self, leaf: Leaf) -> Result<Dummy, ProbeStop>;

    /// Records a request around its answer. `answer` takes the number of elements of a collection, of entries of a
    /// map, of parts of an option, tuple or struct, or the number of an enum's variant; others ignore it.
    fn within<V>(
        &mut self,
        branch: Branch,
        answer: impl FnOnce(&mut Self, usize) -> Result<V, ProbeStop>,
    ) -> Result<V, ProbeStop>;

    /// Records the requests of part `at` of `whole`; an enum's part has the number of the variant.
    fn part<V>(
        &mut self,
        whole: Branch,
        at: usize,
        answer: impl FnOnce(&mut Self) -> Result<V, ProbeStop>,
    ) -> Result<V, ProbeStop>;

    /// Answers a request of whatever comes next.
    fn any<'de, V: Visitor<'de>>(&mut self, visitor: V) -> Result<V::Value, ProbeStop> {
        visitor.visit_str(self.leaf(Leaf::Any)?.text)
    }

    /// `true` if structs and maps are answered with entries whose keys the recorder gives. There is then no limit to
    /// their number, and values are parts 1, 3, 5 and so on.
    fn gives_keys(&self) -> bool {
        false
    }

    /// Answers the request of the key of an entry; `None` if there are no more entries.
    fn key<'de, S: DeserializeSeed<'de>>(&mut self, _entry: usize, _seed: S) -> Result<Option<S::Value>, ProbeStop> {
        Ok(None)
    }
}

/// Deserialises a type from a probe.
pub(crate) fn probe<T: DeserializeOwned>(recorder: &mut impl Recorder) -> Result<T, ProbeStop> {
    T::deserialize(Probe(recorder))
}

/// A deserializer that answers one request.
struct Probe<'r, R>(&'r mut R);

/// Implements requests of single values.
macro_rules! leaves {
    ($($request:ident $leaf:expr => $visit:ident $value:expr;)*) => { $(
        fn $request<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ProbeStop> {
            let value: fn(Dummy) -> _ = $value;
            visitor.$visit(value(self.0.leaf($leaf)?))
        }
    )* };
}

impl<'de, R: Recorder> Deserializer<'de> for Probe<'_, R> {
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
        self.0.any(visitor)
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
        self.0.within(Branch::Option, |recorder, parts| match parts {
            0 => visitor.visit_none(),
            _ => recorder.part(Branch::Option, 0, |recorder| visitor.visit_some(Probe(recorder))),
        })
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(self, name: &'static str, visitor: V) -> Result<V::Value, ProbeStop> {
        self.0.within(Branch::UnitStruct(name), |_, _| visitor.visit_unit())
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, ProbeStop> {
        self.0.within(Branch::Newtype(name), |recorder, _| visitor.visit_newtype_struct(Probe(recorder)))
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
        self.0.within(whole, |recorder, number| {
            let name = variants.get(number).copied();
            visitor.visit_enum(ChosenVariant { recorder, whole, number, name })
        })
    }

    fn is_human_readable(&self) -> bool {
        R::HUMAN_READABLE
    }
}

/// The parts of a collection, a tuple or a struct.
struct Parts<'r, R> {
    recorder: &'r mut R,
    whole: Branch,
    next: usize,
    end: usize,
    /// `true` if the recorder gives the keys.
    keyed: bool,
}

impl<R: Recorder> Parts<'_, R> {
    fn visit<'de, V: Visitor<'de>>(recorder: &mut R, whole: Branch, visitor: V) -> Result<V::Value, ProbeStop> {
        recorder.within(whole, |recorder, count| {
            let is_map = whole == Branch::Map;
            let keyed = recorder.gives_keys() && (is_map || matches!(whole, Branch::Struct(..)));
            let end = if keyed { usize::MAX } else { count * (1 + usize::from(is_map)) };
            let parts = Parts { recorder, whole, next: 0, end, keyed };
            if is_map || keyed { visitor.visit_map(parts) } else { visitor.visit_seq(parts) }
        })
    }
}

impl<'de, R: Recorder> SeqAccess<'de> for Parts<'_, R> {
    type Error = ProbeStop;

    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, ProbeStop> {
        if self.next == self.end {
            return Ok(None);
        }
        self.next += 1;
        self.recorder.part(self.whole, self.next - 1, |recorder| seed.deserialize(Probe(recorder)).map(Some))
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.end - self.next)
    }
}

impl<'de, R: Recorder> MapAccess<'de> for Parts<'_, R> {
    type Error = ProbeStop;

    fn next_key_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, ProbeStop> {
        if !self.keyed {
            return self.next_element_seed(seed);
        }
        self.next += 1;
        self.recorder.key(self.next / 2, seed)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, ProbeStop> {
        self.next_element_seed(seed)?.ok_or(ProbeStop::Stopped)
    }

    fn size_hint(&self) -> Option<usize> {
        None
    }
}

/// The variant of an enum that was chosen.
struct ChosenVariant<'r, R> {
    recorder: &'r mut R,
    whole: Branch,
    number: usize,
    name: Option<&'static str>,
}

impl<R: Recorder> ChosenVariant<'_, R> {
    fn contents<V>(self, answer: impl FnOnce(&mut R) -> Result<V, ProbeStop>) -> Result<V, ProbeStop> {
        self.recorder.part(self.whole, self.number, answer)
    }
}

impl<'de, R: Recorder> EnumAccess<'de> for ChosenVariant<'_, R> {
    type Error = ProbeStop;
    type Variant = Self;

    fn variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<(S::Value, Self), ProbeStop> {
        let variant = if R::HUMAN_READABLE {
            seed.deserialize(StrDeserializer::new(self.name.ok_or(ProbeStop::Refused)?))
        } else {
            let number = u32::try_from(self.number).map_err(|_| ProbeStop::Stopped)?;
            let number: U32Deserializer<ProbeStop> = number.into_deserializer();
            seed.deserialize(number)
        };
        Ok((variant?, self))
    }
}

impl<'de, R: Recorder> VariantAccess<'de> for ChosenVariant<'_, R> {
    type Error = ProbeStop;

    fn unit_variant(self) -> Result<(), ProbeStop> {
        self.contents(|recorder| recorder.leaf(Leaf::UnitVariant).map(drop))
    }

    fn newtype_variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<S::Value, ProbeStop> {
        let inside = |recorder: &mut R, _| seed.deserialize(Probe(recorder));
        self.contents(|recorder| recorder.within(Branch::NewtypeVariant, inside))
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
