//! A serde deserializer of a datum: the schema tells what is there, the type what it becomes.
//!
//! | Avro | Rust |
//! | --- | --- |
//! | union with null | an option; another union is an enum of its types' names, or an untagged one |
//! | record | a struct, a map, or a tuple of the fields in their order |
//! | date, time, timestamp | an integer as it is written, or a text |
//! | decimal | a text, bytes, a float, or an integer if its scale is 0 |
//! | UUID | a text, or bytes |
//! | bytes, fixed | bytes, a sequence of `u8`, or a text |

use serde::de::value::StrDeserializer;
use serde::de::{
    self, DeserializeOwned, DeserializeSeed, Deserializer, EnumAccess, IntoDeserializer, MapAccess, SeqAccess,
    VariantAccess, Visitor,
};

use super::logical::{date_text, decimal_text, time_text, timestamp_text, unscaled, uuid_text};
use super::read::{AvroRefusal, DatumBytes, refused, text_of};
use super::schema::{AvroNode, AvroRecord, AvroSchema, NodeId};
use super::skip::{branch, decimal, skip, symbol};

impl AvroSchema {
    /// Decodes a datum of this schema.
    ///
    /// # Errors
    /// Fails with the reason for rejecting it.
    pub(crate) fn decode<T: DeserializeOwned>(&self, datum: &[u8]) -> Result<T, String> {
        let mut bytes = DatumBytes::new(datum);
        let value = T::deserialize(Datum { schema: self, node: &self.nodes[self.root], bytes: &mut bytes });
        match (value, bytes.left()) {
            (Ok(value), 0) => Ok(value),
            (Ok(_), left) => Err(format!("not the expected Avro data: {left} bytes are left")),
            (Err(AvroRefusal(why)), _) => Err(format!("not the expected Avro data: {why}")),
        }
    }
}

/// A value that is read.
struct Datum<'s, 'b, 'de> {
    schema: &'s AvroSchema,
    node: &'s AvroNode,
    bytes: &'b mut DatumBytes<'de>,
}

impl<'s, 'de> Datum<'s, '_, 'de> {
    fn at(&mut self, node: NodeId) -> Datum<'s, '_, 'de> {
        Datum { schema: self.schema, node: &self.schema.nodes[node], bytes: self.bytes }
    }

    /// Replaces a union by the type of it that is there.
    #[inline]
    fn resolved(mut self) -> Result<Self, AvroRefusal> {
        if let AvroNode::Union(branches) = self.node {
            self.node = branch(self.schema, branches, self.bytes)?;
        }
        Ok(self)
    }

    fn skip(self) -> Result<(), AvroRefusal> {
        skip(self.schema, self.node, self.bytes)
    }

    fn nested<V>(self, visit: impl FnOnce(Datum<'s, '_, 'de>) -> Result<V, AvroRefusal>) -> Result<V, AvroRefusal> {
        self.bytes.enter()?;
        let value = visit(Datum { schema: self.schema, node: self.node, bytes: &mut *self.bytes })?;
        self.bytes.leave();
        Ok(value)
    }

    /// Answers a request of a number.
    #[inline]
    fn number<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, AvroRefusal> {
        let datum = self.resolved()?;
        match datum.node {
            AvroNode::Int | AvroNode::Date => visitor.visit_i32(datum.bytes.int()?),
            AvroNode::Long | AvroNode::TimeOfDay(_) | AvroNode::Timestamp(..) => visitor.visit_i64(datum.bytes.long()?),
            AvroNode::Decimal { size, scale: 0, .. } => {
                let digits = unscaled(decimal(*size, datum.bytes)?).ok_or_else(too_many_digits)?;
                match i64::try_from(digits) {
                    Ok(number) => visitor.visit_i64(number),
                    Err(_) => visitor.visit_i128(digits),
                }
            }
            _ => datum.deserialize_any(visitor),
        }
    }

    /// Answers a request of a text.
    #[inline]
    fn text<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, AvroRefusal> {
        let datum = self.resolved()?;
        let no_text = |value: i64| AvroRefusal(format!("{value} is beyond the years that a text can have"));
        match datum.node {
            AvroNode::String | AvroNode::Bytes => visitor.visit_borrowed_str(datum.bytes.text()?),
            AvroNode::Fixed { size, .. } => visitor.visit_borrowed_str(text_of(datum.bytes.exactly(*size)?)?),
            AvroNode::Date => {
                let days = datum.bytes.int()?;
                visitor.visit_string(date_text(days).ok_or_else(|| no_text(days.into()))?)
            }
            AvroNode::TimeOfDay(unit) => {
                let time = datum.bytes.long()?;
                visitor.visit_string(time_text(*unit, time).ok_or_else(|| no_text(time))?)
            }
            AvroNode::Timestamp(unit, is_local) => {
                let time = datum.bytes.long()?;
                visitor.visit_string(timestamp_text(*unit, time, *is_local).ok_or_else(|| no_text(time))?)
            }
            AvroNode::Decimal { size, scale, .. } => {
                let digits = unscaled(decimal(*size, datum.bytes)?).ok_or_else(too_many_digits)?;
                visitor.visit_string(decimal_text(digits, *scale))
            }
            AvroNode::Uuid(_) => visitor.visit_string(uuid_text(datum.bytes.exactly(16)?)),
            _ => datum.deserialize_any(visitor),
        }
    }

    /// Answers a request of bytes; `None`, with nothing read, if there are none.
    fn raw(&mut self) -> Result<Option<&'de [u8]>, AvroRefusal> {
        Ok(Some(match self.node {
            AvroNode::Bytes | AvroNode::String => self.bytes.bytes()?,
            AvroNode::Fixed { size, .. } => self.bytes.exactly(*size)?,
            AvroNode::Uuid(_) => self.bytes.exactly(16)?,
            AvroNode::Decimal { size, .. } => decimal(*size, self.bytes)?,
            _ => return Ok(None),
        }))
    }

    fn sequence<V: Visitor<'de>>(self, visitor: V, by_position: bool) -> Result<V::Value, AvroRefusal> {
        let mut datum = self.resolved()?;
        match datum.node {
            AvroNode::Array(item) => {
                let item = *item;
                datum.nested(|datum| {
                    let mut items = Blocks::new(datum, item);
                    let value = visitor.visit_seq(&mut items)?;
                    items.finish()?;
                    Ok(value)
                })
            }
            AvroNode::Record(record) if by_position => datum.nested(|datum| {
                let mut fields = RecordFields { datum, record, next: 0 };
                let value = visitor.visit_seq(&mut fields)?;
                fields.finish()?;
                Ok(value)
            }),
            AvroNode::Record(_) => datum.deserialize_any(visitor),
            _ => match datum.raw()? {
                Some(bytes) => visitor.visit_seq(de::value::SeqDeserializer::new(bytes.iter().copied())),
                None => datum.deserialize_any(visitor),
            },
        }
    }
}

fn too_many_digits() -> AvroRefusal {
    AvroRefusal("a decimal of more digits than 128 bits hold".into())
}

/// Implements requests that have one answer in common.
macro_rules! requests {
    ($answer:ident: $($request:ident)*) => { $(
        #[inline]
        fn $request<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, AvroRefusal> {
            self.$answer(visitor)
        }
    )* };
}

impl<'de> Deserializer<'de> for Datum<'_, '_, 'de> {
    type Error = AvroRefusal;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, AvroRefusal> {
        let datum = self.resolved()?;
        match datum.node {
            AvroNode::Null => {
                datum.bytes.count()?;
                visitor.visit_unit()
            }
            AvroNode::Boolean => visitor.visit_bool(datum.bytes.boolean()?),
            AvroNode::Float => visitor.visit_f32(f32::from_le_bytes(datum.bytes.array()?)),
            AvroNode::Double => visitor.visit_f64(f64::from_le_bytes(datum.bytes.array()?)),
            AvroNode::Bytes => visitor.visit_borrowed_bytes(datum.bytes.bytes()?),
            AvroNode::Fixed { size, .. } => visitor.visit_borrowed_bytes(datum.bytes.exactly(*size)?),
            AvroNode::Enum { symbols, .. } => visitor.visit_str(symbol(symbols, datum.bytes)?),
            AvroNode::Array(_) => datum.sequence(visitor, false),
            AvroNode::Map(value) => {
                let value = *value;
                datum.nested(|datum| {
                    let mut entries = Blocks::new(datum, value);
                    let map = visitor.visit_map(&mut entries)?;
                    entries.finish()?;
                    Ok(map)
                })
            }
            AvroNode::Record(record) => datum.nested(|datum| {
                let mut fields = RecordFields { datum, record, next: 0 };
                let value = visitor.visit_map(&mut fields)?;
                fields.finish()?;
                Ok(value)
            }),
            // An integer of other units would be taken for milliseconds by types that take any.
            AvroNode::Int
            | AvroNode::Long
            | AvroNode::TimeOfDay(_)
            | AvroNode::Timestamp(super::logical::TimeUnit::Millis, _) => datum.number(visitor),
            AvroNode::String
            | AvroNode::Date
            | AvroNode::Timestamp(..)
            | AvroNode::Decimal { .. }
            | AvroNode::Uuid(_) => datum.text(visitor),
            AvroNode::Union(_) => refused("a union within a union"),
        }
    }

    requests!(number: deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64 deserialize_i128);
    requests!(number: deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64 deserialize_u128);
    requests!(text: deserialize_str deserialize_string deserialize_char deserialize_identifier);
    requests!(deserialize_any: deserialize_bool deserialize_unit deserialize_map);

    fn deserialize_f32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, AvroRefusal> {
        self.deserialize_f64(visitor)
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, AvroRefusal> {
        let datum = self.resolved()?;
        let AvroNode::Decimal { size, scale, .. } = datum.node else { return datum.number(visitor) };
        let digits = unscaled(decimal(*size, datum.bytes)?).ok_or_else(too_many_digits)?;
        // The nearest float, which dividing would not give.
        let nearest = decimal_text(digits, *scale).parse();
        visitor.visit_f64(nearest.or_else(|_| refused("a decimal that is no float"))?)
    }

    fn deserialize_bytes<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, AvroRefusal> {
        let mut datum = self.resolved()?;
        match datum.raw()? {
            Some(bytes) => visitor.visit_borrowed_bytes(bytes),
            None => datum.deserialize_any(visitor),
        }
    }

    fn deserialize_byte_buf<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, AvroRefusal> {
        self.deserialize_bytes(visitor)
    }

    #[inline]
    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, AvroRefusal> {
        let datum = self.resolved()?;
        match datum.node {
            AvroNode::Null => {
                datum.bytes.count()?;
                visitor.visit_none()
            }
            _ => visitor.visit_some(datum),
        }
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, AvroRefusal> {
        self.deserialize_any(visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, AvroRefusal> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, AvroRefusal> {
        self.sequence(visitor, false)
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, AvroRefusal> {
        self.sequence(visitor, true)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: usize,
        visitor: V,
    ) -> Result<V::Value, AvroRefusal> {
        self.sequence(visitor, true)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, AvroRefusal> {
        self.deserialize_any(visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, AvroRefusal> {
        let datum = self.resolved()?;
        let name = datum.node.branch_name();
        let short = name.rsplit('.').next().unwrap_or(name);
        if let Some(variant) = variants.iter().find(|variant| **variant == name || **variant == short) {
            return visitor.visit_enum(NamedBranch { variant, datum });
        }
        match datum.node {
            AvroNode::Enum { symbols, .. } => visitor.visit_enum(symbol(symbols, datum.bytes)?.into_deserializer()),
            AvroNode::String => visitor.visit_enum(datum.bytes.text()?.into_deserializer()),
            _ => refused(format!("`{name}` is none of {}", variants.join(", "))),
        }
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, AvroRefusal> {
        self.skip()?;
        visitor.visit_unit()
    }
}

/// The items of an array, or the entries of a map, which come in blocks.
struct Blocks<'s, 'b, 'de> {
    datum: Datum<'s, 'b, 'de>,
    item: NodeId,
    /// Items that are left of the block.
    left: u64,
    ended: bool,
}

impl<'s, 'b, 'de> Blocks<'s, 'b, 'de> {
    fn new(datum: Datum<'s, 'b, 'de>, item: NodeId) -> Self {
        Blocks { datum, item, left: 0, ended: false }
    }

    /// Takes an item; returns `false` if there is none.
    fn take(&mut self) -> Result<bool, AvroRefusal> {
        if self.left == 0 && !self.ended {
            (self.left, _) = self.datum.bytes.block()?;
            self.ended = self.left == 0;
        }
        if self.ended {
            return Ok(false);
        }
        self.left -= 1;
        self.datum.bytes.count()?;
        Ok(true)
    }

    /// Checks that all items were taken.
    fn finish(&mut self) -> Result<(), AvroRefusal> {
        if self.take()? { refused("more items than the type takes") } else { Ok(()) }
    }
}

impl<'de> SeqAccess<'de> for Blocks<'_, '_, 'de> {
    type Error = AvroRefusal;

    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, AvroRefusal> {
        if self.take()? { seed.deserialize(self.datum.at(self.item)).map(Some) } else { Ok(None) }
    }
}

impl<'de> MapAccess<'de> for Blocks<'_, '_, 'de> {
    type Error = AvroRefusal;

    fn next_key_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, AvroRefusal> {
        if !self.take()? {
            return Ok(None);
        }
        seed.deserialize(de::value::BorrowedStrDeserializer::new(self.datum.bytes.text()?)).map(Some)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, AvroRefusal> {
        seed.deserialize(self.datum.at(self.item))
    }
}

/// The fields of a record.
struct RecordFields<'s, 'b, 'de> {
    datum: Datum<'s, 'b, 'de>,
    record: &'s AvroRecord,
    next: usize,
}

impl<'de> RecordFields<'_, '_, 'de> {
    fn field<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, AvroRefusal> {
        let Some(field) = self.record.fields.get(self.next) else { return refused("a value without a field") };
        self.next += 1;
        let value = seed.deserialize(self.datum.at(field.node));
        value.map_err(|AvroRefusal(why)| AvroRefusal(format!("field `{}`: {why}", field.name)))
    }

    /// Checks that all fields were taken.
    fn finish(&self) -> Result<(), AvroRefusal> {
        let left = self.record.fields.len() - self.next;
        if left == 0 { Ok(()) } else { refused(format!("{left} fields more than the type takes")) }
    }
}

impl<'de> MapAccess<'de> for RecordFields<'_, '_, 'de> {
    type Error = AvroRefusal;

    #[inline]
    fn next_key_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, AvroRefusal> {
        match self.record.fields.get(self.next) {
            Some(field) => seed.deserialize(StrDeserializer::<AvroRefusal>::new(&field.name)).map(Some),
            None => Ok(None),
        }
    }

    #[inline]
    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, AvroRefusal> {
        self.field(seed)
    }
}

impl<'de> SeqAccess<'de> for RecordFields<'_, '_, 'de> {
    type Error = AvroRefusal;

    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, AvroRefusal> {
        if self.next == self.record.fields.len() { Ok(None) } else { self.field(seed).map(Some) }
    }
}

/// A type of a union as a variant of an enum.
struct NamedBranch<'s, 'b, 'de> {
    variant: &'static str,
    datum: Datum<'s, 'b, 'de>,
}

impl<'de> EnumAccess<'de> for NamedBranch<'_, '_, 'de> {
    type Error = AvroRefusal;
    type Variant = Self;

    fn variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<(S::Value, Self), AvroRefusal> {
        let variant = seed.deserialize(StrDeserializer::<AvroRefusal>::new(self.variant))?;
        Ok((variant, self))
    }
}

impl<'de> VariantAccess<'de> for NamedBranch<'_, '_, 'de> {
    type Error = AvroRefusal;

    fn unit_variant(self) -> Result<(), AvroRefusal> {
        self.datum.skip()
    }

    fn newtype_variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<S::Value, AvroRefusal> {
        seed.deserialize(self.datum)
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, AvroRefusal> {
        self.datum.sequence(visitor, true)
    }

    fn struct_variant<V: Visitor<'de>>(self, _: &'static [&'static str], visitor: V) -> Result<V::Value, AvroRefusal> {
        self.datum.deserialize_any(visitor)
    }
}
