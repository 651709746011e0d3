//! Deserialization of stored values by the schema that they were written with.
//!
//! The bytes are read by the stored schema, and the value is built by what the program's type asks for: a struct gets its
//! fields by name, an enum its variant by name, an integer may be wider, and a value may have become optional. So serde's
//! defaults and aliases hold, fields that the type no longer has are skipped, and whatever else differs is a
//! [`Mismatch`] with the path of the value.
//!
//! Invariants: exactly the bytes of the stored value are read, whatever the type asks for; no value is ever rounded,
//! cut or guessed.

use std::cell::RefCell;
use std::fmt;

use serde::de::value::{StrDeserializer, U32Deserializer};
use serde::de::{
    self, DeserializeSeed, Deserializer, EnumAccess, IntoDeserializer, MapAccess, SeqAccess, VariantAccess, Visitor,
};

use super::schema::{Schema, halves_as_struct, take};

/// The difference between a stored value and what the program's type asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mismatch {
    /// The steps to the value, innermost first.
    steps: Vec<String>,
    pub(super) what: MismatchKind,
}

/// The kind of a [`Mismatch`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum MismatchKind {
    /// The types: the stored one and the program's.
    Types(String, String),
    /// A field that is not stored and has no default.
    MissingField(String),
    /// A stored field that the type refuses.
    UnknownField(String),
    /// A stored variant that the type does not have.
    UnknownVariant(String),
    /// Bytes that are no such value.
    Damaged(String),
    /// A value that the type refuses, in its own words.
    Refused(String),
}

impl Mismatch {
    fn new(what: MismatchKind) -> Self {
        Mismatch { steps: Vec::new(), what }
    }

    fn types(stored: &Schema, wanted: impl Into<String>) -> Self {
        Mismatch::new(MismatchKind::Types(stored.describe(), wanted.into()))
    }

    fn within(mut self, step: String) -> Self {
        self.steps.push(step);
        self
    }

    /// The path of the value, such as `.1.sum.cents`.
    pub(super) fn path(&self) -> String {
        self.steps.iter().rev().map(String::as_str).collect()
    }
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.what {
            MismatchKind::Types(stored, now) => write!(f, "stored is {stored}, and the program has {now}"),
            MismatchKind::MissingField(field) => write!(f, "the field `{field}` is not stored"),
            MismatchKind::UnknownField(field) => write!(f, "the program refuses the stored field `{field}`"),
            MismatchKind::UnknownVariant(variant) => {
                write!(f, "the program has no variant `{variant}`, which is stored")
            }
            MismatchKind::Damaged(why) => write!(f, "it cannot be read: {why}"),
            MismatchKind::Refused(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for Mismatch {}

impl de::Error for Mismatch {
    fn custom<M: fmt::Display>(why: M) -> Self {
        Mismatch::new(MismatchKind::Refused(why.to_string()))
    }

    fn missing_field(field: &'static str) -> Self {
        Mismatch::new(MismatchKind::MissingField(field.to_owned()))
    }

    fn unknown_field(field: &str, _expected: &'static [&'static str]) -> Self {
        Mismatch::new(MismatchKind::UnknownField(field.to_owned()))
    }

    fn unknown_variant(variant: &str, _expected: &'static [&'static str]) -> Self {
        Mismatch::new(MismatchKind::UnknownVariant(variant.to_owned()))
    }
}

/// The fields that were skipped: paths of their structs, and their names.
#[derive(Debug, Default)]
pub(super) struct SkippedFields {
    path: Vec<String>,
    pub(super) fields: Vec<(String, String)>,
}

type Deserialized<T> = Result<T, Mismatch>;

/// A stored value to be deserialized.
pub(super) struct StoredValue<'a, 'de> {
    schema: &'a Schema,
    bytes: &'a mut &'de [u8],
    skipped: Option<&'a RefCell<SkippedFields>>,
}

impl<'a, 'de> StoredValue<'a, 'de> {
    /// The value of this schema that begins at `bytes`, which is advanced past it.
    pub(super) fn new(schema: &'a Schema, bytes: &'a mut &'de [u8]) -> Self {
        StoredValue { schema, bytes, skipped: None }
    }

    /// Records skipped fields.
    pub(super) fn recording(self, skipped: &'a RefCell<SkippedFields>) -> Self {
        StoredValue { skipped: Some(skipped), ..self }
    }

    fn take<T: de::Deserialize<'de>>(&mut self) -> Deserialized<T> {
        take(self.bytes).map_err(|why| Mismatch::new(MismatchKind::Damaged(why)))
    }

    /// Deserializes a part of the value.
    fn part<S: DeserializeSeed<'de>>(
        &mut self,
        schema: &Schema,
        step: impl Fn() -> String,
        seed: S,
    ) -> Deserialized<S::Value> {
        if let Some(skipped) = self.skipped {
            skipped.borrow_mut().path.push(step());
        }
        let part = StoredValue { schema, bytes: self.bytes, skipped: self.skipped };
        let value = seed.deserialize(part).map_err(|mismatch| mismatch.within(step()));
        if let Some(skipped) = self.skipped {
            skipped.borrow_mut().path.pop();
        }
        value
    }

    fn mismatch<T>(&self, wanted: impl Into<String>) -> Deserialized<T> {
        Err(Mismatch::types(self.schema, wanted))
    }

    /// Reads a signed integer for a type of `bits` bits.
    fn signed(&mut self, bits: u8) -> Deserialized<i128> {
        match *self.schema {
            Schema::Signed(8) if bits >= 8 => Ok(self.take::<i8>()?.into()),
            Schema::Signed(128) if bits >= 128 => self.take(),
            Schema::Signed(stored) if stored <= bits && stored < 128 => Ok(self.take::<i64>()?.into()),
            Schema::Time if bits >= 64 => Ok(self.take::<i64>()?.into()),
            Schema::Unsigned(8) if bits > 8 => Ok(self.take::<u8>()?.into()),
            Schema::Unsigned(stored) if stored < bits && stored < 128 => Ok(self.take::<u64>()?.into()),
            _ => self.mismatch(format!("i{bits}")),
        }
    }

    /// Reads an unsigned integer for a type of `bits` bits.
    fn unsigned(&mut self, bits: u8) -> Deserialized<u128> {
        match *self.schema {
            Schema::Unsigned(8) if bits >= 8 => Ok(self.take::<u8>()?.into()),
            Schema::Unsigned(128) if bits >= 128 => self.take(),
            Schema::Unsigned(stored) if stored <= bits && stored < 128 => Ok(self.take::<u64>()?.into()),
            _ => self.mismatch(format!("u{bits}")),
        }
    }

    /// Visits a stored struct: by position if the type has the very fields, else by name.
    fn visit_fields<V: Visitor<'de>>(
        mut self,
        (stored, names): (&[(String, Schema)], &[&str]),
        visitor: V,
    ) -> Deserialized<V::Value> {
        if stored.len() == names.len() && stored.iter().zip(names).all(|((stored, _), name)| stored == name) {
            visitor.visit_seq(StoredFields { value: &mut self, fields: stored, next: 0 })
        } else {
            visitor.visit_map(StoredFields { value: &mut self, fields: stored, next: 0 })
        }
    }
}

/// Implements requests of integers.
macro_rules! integers {
    ($($request:ident $visit:ident $type:ty, $read:ident $bits:literal;)*) => { $(
        fn $request<V: Visitor<'de>>(mut self, visitor: V) -> Deserialized<V::Value> {
            let value = self.$read($bits)?;
            let value = <$type>::try_from(value).map_err(|why| Mismatch::new(MismatchKind::Damaged(why.to_string())))?;
            visitor.$visit(value)
        }
    )* };
}

impl<'de> Deserializer<'de> for StoredValue<'_, 'de> {
    type Error = Mismatch;

    integers! {
        deserialize_i8 visit_i8 i8, signed 8;
        deserialize_i16 visit_i16 i16, signed 16;
        deserialize_i32 visit_i32 i32, signed 32;
        deserialize_i64 visit_i64 i64, signed 64;
        deserialize_i128 visit_i128 i128, signed 128;
        deserialize_u8 visit_u8 u8, unsigned 8;
        deserialize_u16 visit_u16 u16, unsigned 16;
        deserialize_u32 visit_u32 u32, unsigned 32;
        deserialize_u64 visit_u64 u64, unsigned 64;
        deserialize_u128 visit_u128 u128, unsigned 128;
    }

    fn deserialize_any<V: Visitor<'de>>(self, _visitor: V) -> Deserialized<V::Value> {
        self.mismatch("a type that asks what comes next")
    }

    fn deserialize_bool<V: Visitor<'de>>(mut self, visitor: V) -> Deserialized<V::Value> {
        match self.schema {
            Schema::Bool => visitor.visit_bool(self.take()?),
            _ => self.mismatch("bool"),
        }
    }

    fn deserialize_f32<V: Visitor<'de>>(mut self, visitor: V) -> Deserialized<V::Value> {
        match self.schema {
            Schema::Single => visitor.visit_f32(self.take()?),
            _ => self.mismatch("f32"),
        }
    }

    fn deserialize_f64<V: Visitor<'de>>(mut self, visitor: V) -> Deserialized<V::Value> {
        match self.schema {
            Schema::Single => visitor.visit_f64(self.take::<f32>()?.into()),
            Schema::Double => visitor.visit_f64(self.take()?),
            _ => self.mismatch("f64"),
        }
    }

    fn deserialize_char<V: Visitor<'de>>(mut self, visitor: V) -> Deserialized<V::Value> {
        match self.schema {
            Schema::Char => visitor.visit_char(self.take()?),
            _ => self.mismatch("char"),
        }
    }

    fn deserialize_str<V: Visitor<'de>>(mut self, visitor: V) -> Deserialized<V::Value> {
        match self.schema {
            Schema::Text => visitor.visit_borrowed_str(self.take()?),
            Schema::Char => visitor.visit_string(self.take::<char>()?.to_string()),
            _ => self.mismatch("text"),
        }
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Deserialized<V::Value> {
        self.deserialize_str(visitor)
    }

    fn deserialize_bytes<V: Visitor<'de>>(mut self, visitor: V) -> Deserialized<V::Value> {
        match self.schema {
            Schema::Bytes => visitor.visit_borrowed_bytes(self.take()?),
            _ => self.mismatch("bytes"),
        }
    }

    fn deserialize_byte_buf<V: Visitor<'de>>(self, visitor: V) -> Deserialized<V::Value> {
        self.deserialize_bytes(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(mut self, visitor: V) -> Deserialized<V::Value> {
        match self.schema {
            Schema::Option(inner) => match self.take::<bool>()? {
                false => visitor.visit_none(),
                true => visitor.visit_some(StoredValue { schema: inner, ..self }),
            },
            // A value that has become optional is there.
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Deserialized<V::Value> {
        match self.schema {
            Schema::Unit => visitor.visit_unit(),
            _ => self.mismatch("nothing"),
        }
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(self, _name: &'static str, visitor: V) -> Deserialized<V::Value> {
        self.deserialize_unit(visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _name: &'static str, visitor: V) -> Deserialized<V::Value> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(mut self, visitor: V) -> Deserialized<V::Value> {
        match self.schema {
            Schema::List(inner) => {
                let left = self.take::<u64>()?;
                visitor.visit_seq(Elements { value: &mut self, key: inner, element: inner, left })
            }
            _ => self.mismatch("a list"),
        }
    }

    fn deserialize_tuple<V: Visitor<'de>>(mut self, length: usize, visitor: V) -> Deserialized<V::Value> {
        match self.schema {
            Schema::Tuple(parts) if parts.len() == length => {
                visitor.visit_seq(TupleParts { value: &mut self, parts, next: 0 })
            }
            _ => self.mismatch(format!("a tuple of {length}")),
        }
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        length: usize,
        visitor: V,
    ) -> Deserialized<V::Value> {
        self.deserialize_tuple(length, visitor)
    }

    fn deserialize_map<V: Visitor<'de>>(mut self, visitor: V) -> Deserialized<V::Value> {
        match self.schema {
            Schema::Map(key, element) => {
                let left = self.take::<u64>()?;
                visitor.visit_map(Elements { value: &mut self, key, element, left })
            }
            _ => self.mismatch("a map"),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Deserialized<V::Value> {
        match self.schema {
            Schema::Struct(_, stored) => self.visit_fields((stored, fields), visitor),
            Schema::Halves => self.visit_fields((&halves_as_struct(), fields), visitor),
            _ => self.mismatch(format!("the struct {name}")),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        mut self,
        name: &'static str,
        names: &'static [&'static str],
        visitor: V,
    ) -> Deserialized<V::Value> {
        let Schema::Enum(_, variants) = self.schema else { return self.mismatch(format!("the enum {name}")) };
        let number = self.take::<u32>()?;
        let Some((variant, body)) = variants.get(number as usize) else {
            return Err(Mismatch::new(MismatchKind::Damaged(format!("it has no variant {number}"))));
        };
        let is_same = variants.len() == names.len() && variants.iter().zip(names).all(|((old, _), new)| old == new);
        let number = is_same.then_some(number);
        let value = visitor.visit_enum(StoredVariant { value: StoredValue { schema: body, ..self }, number, variant });
        value.map_err(|mismatch| match mismatch.what {
            MismatchKind::UnknownVariant(_) if mismatch.steps.is_empty() => mismatch,
            _ => mismatch.within(format!("::{variant}")),
        })
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, _visitor: V) -> Deserialized<V::Value> {
        self.mismatch("an identifier")
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Deserialized<V::Value> {
        self.schema.read(self.bytes).map_err(|why| Mismatch::new(MismatchKind::Damaged(why)))?;
        if let Some(skipped) = self.skipped {
            let mut skipped = skipped.borrow_mut();
            if let Some((field, path)) = skipped.path.split_last() {
                let found = (path.concat(), field.trim_start_matches('.').to_owned());
                skipped.fields.push(found);
            }
        }
        visitor.visit_unit()
    }

    fn is_human_readable(&self) -> bool {
        false
    }
}

/// The elements of a list, or the entries of a map.
struct Elements<'v, 'a, 'de> {
    value: &'v mut StoredValue<'a, 'de>,
    key: &'a Schema,
    element: &'a Schema,
    left: u64,
}

impl<'de> SeqAccess<'de> for Elements<'_, '_, 'de> {
    type Error = Mismatch;

    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Deserialized<Option<S::Value>> {
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        self.value.part(self.element, || "[]".into(), seed).map(Some)
    }
}

impl<'de> MapAccess<'de> for Elements<'_, '_, 'de> {
    type Error = Mismatch;

    fn next_key_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Deserialized<Option<S::Value>> {
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        self.value.part(self.key, || "[key]".into(), seed).map(Some)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Deserialized<S::Value> {
        self.value.part(self.element, || "[value]".into(), seed)
    }
}

/// The parts of a tuple.
struct TupleParts<'v, 'a, 'de> {
    value: &'v mut StoredValue<'a, 'de>,
    parts: &'a [Schema],
    next: usize,
}

impl<'de> SeqAccess<'de> for TupleParts<'_, '_, 'de> {
    type Error = Mismatch;

    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Deserialized<Option<S::Value>> {
        let Some(part) = self.parts.get(self.next) else { return Ok(None) };
        let number = self.next;
        self.next += 1;
        self.value.part(part, || format!(".{number}"), seed).map(Some)
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.parts.len() - self.next)
    }
}

/// The fields of a struct.
struct StoredFields<'v, 'f, 'a, 'de> {
    value: &'v mut StoredValue<'a, 'de>,
    fields: &'f [(String, Schema)],
    next: usize,
}

impl<'de> StoredFields<'_, '_, '_, 'de> {
    fn next_value<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Deserialized<S::Value> {
        let (name, field) = &self.fields[self.next];
        self.next += 1;
        self.value.part(field, || format!(".{name}"), seed)
    }
}

impl<'de> SeqAccess<'de> for StoredFields<'_, '_, '_, 'de> {
    type Error = Mismatch;

    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Deserialized<Option<S::Value>> {
        if self.next == self.fields.len() { Ok(None) } else { self.next_value(seed).map(Some) }
    }
}

impl<'de> MapAccess<'de> for StoredFields<'_, '_, '_, 'de> {
    type Error = Mismatch;

    fn next_key_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Deserialized<Option<S::Value>> {
        let Some((name, _)) = self.fields.get(self.next) else { return Ok(None) };
        seed.deserialize(StrDeserializer::<Mismatch>::new(name)).map(Some)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Deserialized<S::Value> {
        self.next_value(seed)
    }
}

/// A stored variant: the contents, and the number if the type has the very variants, else the name.
struct StoredVariant<'n, 'a, 'de> {
    value: StoredValue<'a, 'de>,
    number: Option<u32>,
    variant: &'n str,
}

impl<'a, 'de> EnumAccess<'de> for StoredVariant<'_, 'a, 'de> {
    type Error = Mismatch;
    type Variant = StoredValue<'a, 'de>;

    fn variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Deserialized<(S::Value, Self::Variant)> {
        let variant = match self.number {
            Some(number) => {
                let number: U32Deserializer<Mismatch> = number.into_deserializer();
                seed.deserialize(number)?
            }
            None => seed.deserialize(StrDeserializer::<Mismatch>::new(self.variant))?,
        };
        Ok((variant, self.value))
    }
}

impl<'de> VariantAccess<'de> for StoredValue<'_, 'de> {
    type Error = Mismatch;

    fn unit_variant(self) -> Deserialized<()> {
        match self.schema {
            Schema::Unit => Ok(()),
            _ => self.mismatch("a variant without contents"),
        }
    }

    fn newtype_variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Deserialized<S::Value> {
        seed.deserialize(self)
    }

    fn tuple_variant<V: Visitor<'de>>(self, length: usize, visitor: V) -> Deserialized<V::Value> {
        self.deserialize_tuple(length, visitor)
    }

    fn struct_variant<V: Visitor<'de>>(self, fields: &'static [&'static str], visitor: V) -> Deserialized<V::Value> {
        match self.schema {
            Schema::Struct(_, stored) => self.visit_fields((stored, fields), visitor),
            // A variant that had no contents has got some, all of which need defaults.
            Schema::Unit => self.visit_fields((&[], fields), visitor),
            _ => self.mismatch("a variant with fields"),
        }
    }
}
