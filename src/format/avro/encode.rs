//! A serde serializer to a datum: the value tells what it is, the schema how it is written.
//!
//! Fields are written in the schema's order. A field that the schema lacks is refused; one that the value lacks is
//! written as its default, or as null. Of a union the first type that takes the value is written. Integers that do not
//! fit, digits that a decimal has not, and times that are finer than their unit are refused: nothing is rounded.

use serde::Serialize;
use serde::ser::{self, SerializeMap, SerializeStruct, SerializeStructVariant, Serializer};

use super::parts::{BlockWriter, RecordWriter};
use super::read::{AvroRefusal, DatumBytes, refused};
use super::schema::{AvroNode, AvroSchema};
use super::values::{integer_as, put_bytes, put_long, text_as};

impl AvroSchema {
    /// Encodes a value as a datum of this schema, without an id, and appends it.
    ///
    /// # Errors
    /// Fails with the reason if the value does not fit.
    pub fn encode<D: Serialize + ?Sized>(&self, value: &D, out: &mut Vec<u8>) -> Result<(), String> {
        let writer = DatumWriter { schema: self, node: &self.nodes[self.root], out };
        value.serialize(writer).map_err(|AvroRefusal(why)| why)
    }
}

/// `true` if a type has this name, with its namespace or without.
fn is_named(node: &AvroNode, name: &str) -> bool {
    let full = node.branch_name();
    full == name || full.rsplit('.').next() == Some(name)
}

/// Writes one value.
struct DatumWriter<'s, 'o> {
    schema: &'s AvroSchema,
    node: &'s AvroNode,
    out: &'o mut Vec<u8>,
}

impl<'s, 'o> DatumWriter<'s, 'o> {
    /// Chooses the first type of a union that takes a value.
    fn choose(mut self, what: &str, takes: impl Fn(&AvroNode) -> bool) -> Result<Self, AvroRefusal> {
        let AvroNode::Union(branches) = self.node else { return Ok(self) };
        let nodes = &self.schema.nodes;
        match branches.iter().position(|branch| takes(&nodes[*branch])) {
            Some(at) => {
                put_long(at as i64, self.out);
                self.node = &nodes[branches[at]];
                Ok(self)
            }
            None => {
                let names: Vec<_> = branches.iter().map(|branch| nodes[*branch].branch_name()).collect();
                refused(format!("no type of the union of {} takes {what}", names.join(", ")))
            }
        }
    }

    fn unfit<T>(&self, what: &str) -> Result<T, AvroRefusal> {
        refused(format!("{what} is no `{}`", self.node.branch_name()))
    }

    fn integer(self, value: i128) -> Result<(), AvroRefusal> {
        let what = || format!("the integer {value}");
        let writer = self.choose(&what(), |node| integer_as(node, value).is_some())?;
        match integer_as(writer.node, value) {
            Some(bytes) => {
                writer.out.extend_from_slice(&bytes);
                Ok(())
            }
            None => writer.unfit(&what()),
        }
    }

    fn float(self, value: f64, is_single: bool) -> Result<(), AvroRefusal> {
        let takes = |node: &AvroNode| match node {
            AvroNode::Double => true,
            AvroNode::Float => is_single || f64::from(value as f32) == value || value.is_nan(),
            _ => false,
        };
        let what = format!("the number {value}");
        let writer = self.choose(&what, takes)?;
        match writer.node {
            AvroNode::Double => writer.out.extend_from_slice(&value.to_le_bytes()),
            node if takes(node) => writer.out.extend_from_slice(&(value as f32).to_le_bytes()),
            _ => return writer.unfit(&what),
        }
        Ok(())
    }

    fn text(self, text: &str) -> Result<(), AvroRefusal> {
        let writer = self.choose("a text", |node| text_as(node, text).is_ok())?;
        match (writer.node, text_as(writer.node, text)) {
            (AvroNode::String | AvroNode::Bytes, _) => put_bytes(text.as_bytes(), writer.out),
            (_, Ok(bytes)) => writer.out.extend_from_slice(&bytes),
            (_, Err(why)) => return refused(why),
        }
        Ok(())
    }

    /// Writes the variant of an enum as the type of a union that has its name.
    fn variant(self, variant: &str) -> Result<Self, AvroRefusal> {
        match self.node {
            AvroNode::Union(_) => self.choose(&format!("the variant `{variant}`"), |node| is_named(node, variant)),
            _ if is_named(self.node, variant) => Ok(self),
            _ => self.unfit(&format!("the variant `{variant}`")),
        }
    }

    fn items(self, what: &str, length: Option<usize>) -> Result<ItemsWriter<'s, 'o>, AvroRefusal> {
        let takes = |node: &AvroNode| {
            matches!(
                node,
                AvroNode::Array(_) | AvroNode::Record(_) | AvroNode::Bytes | AvroNode::Fixed { .. } | AvroNode::Uuid(_)
            )
        };
        let writer = self.choose(what, takes)?;
        match writer.node {
            AvroNode::Record(record) => {
                Ok(ItemsWriter::Fields(writer.schema, RecordWriter::new(writer.schema, record, writer.out)))
            }
            AvroNode::Array(item) => {
                Ok(ItemsWriter::Items(writer.schema, BlockWriter::new(writer.schema, *item, length, writer.out)))
            }
            node if takes(node) => Ok(ItemsWriter::Bytes(writer, Vec::new())),
            _ => writer.unfit(what),
        }
    }

    fn named(self, what: &str, name: Option<&str>, length: Option<usize>) -> Result<NamedWriter<'s, 'o>, AvroRefusal> {
        // Of several records, that of the struct's name; else the first.
        let is_exact =
            |node: &AvroNode| matches!(node, AvroNode::Record(_)) && name.is_some_and(|name| is_named(node, name));
        let nodes = &self.schema.nodes;
        let has_exact = match self.node {
            AvroNode::Union(branches) => branches.iter().any(|branch| is_exact(&nodes[*branch])),
            _ => false,
        };
        let takes = |node: &AvroNode| match node {
            AvroNode::Record(_) => !has_exact || is_exact(node),
            AvroNode::Map(_) => !has_exact,
            _ => false,
        };
        let writer = self.choose(what, takes)?;
        match writer.node {
            AvroNode::Record(record) => Ok(NamedWriter::Record(
                writer.schema,
                RecordWriter::new(writer.schema, record, writer.out),
                String::new(),
            )),
            AvroNode::Map(value) => {
                Ok(NamedWriter::Map(writer.schema, BlockWriter::new(writer.schema, *value, length, writer.out)))
            }
            _ => writer.unfit(what),
        }
    }
}

/// Implements requests that have one answer in common.
macro_rules! integers {
    ($($request:ident $kind:ty)*) => { $(
        fn $request(self, value: $kind) -> Result<(), AvroRefusal> {
            self.integer(value.into())
        }
    )* };
}

impl<'s, 'o> Serializer for DatumWriter<'s, 'o> {
    type Ok = ();
    type Error = AvroRefusal;
    type SerializeSeq = ItemsWriter<'s, 'o>;
    type SerializeTuple = ItemsWriter<'s, 'o>;
    type SerializeTupleStruct = ItemsWriter<'s, 'o>;
    type SerializeTupleVariant = ItemsWriter<'s, 'o>;
    type SerializeMap = NamedWriter<'s, 'o>;
    type SerializeStruct = NamedWriter<'s, 'o>;
    type SerializeStructVariant = NamedWriter<'s, 'o>;

    integers!(serialize_i8 i8 serialize_i16 i16 serialize_i32 i32 serialize_i64 i64 serialize_i128 i128);
    integers!(serialize_u8 u8 serialize_u16 u16 serialize_u32 u32 serialize_u64 u64);

    fn serialize_u128(self, value: u128) -> Result<(), AvroRefusal> {
        match i128::try_from(value) {
            Ok(value) => self.integer(value),
            Err(_) => self.unfit(&format!("the integer {value}")),
        }
    }

    fn serialize_bool(self, value: bool) -> Result<(), AvroRefusal> {
        let writer = self.choose("a boolean", |node| matches!(node, AvroNode::Boolean))?;
        match writer.node {
            AvroNode::Boolean => writer.out.push(u8::from(value)),
            _ => return writer.unfit("a boolean"),
        }
        Ok(())
    }

    fn serialize_f32(self, value: f32) -> Result<(), AvroRefusal> {
        self.float(value.into(), true)
    }

    fn serialize_f64(self, value: f64) -> Result<(), AvroRefusal> {
        self.float(value, false)
    }

    fn serialize_char(self, value: char) -> Result<(), AvroRefusal> {
        self.text(value.encode_utf8(&mut [0; 4]))
    }

    fn serialize_str(self, text: &str) -> Result<(), AvroRefusal> {
        self.text(text)
    }

    fn serialize_bytes(self, bytes: &[u8]) -> Result<(), AvroRefusal> {
        let takes = |node: &AvroNode| match node {
            AvroNode::Bytes => true,
            AvroNode::Fixed { size, .. } => *size == bytes.len(),
            AvroNode::Uuid(_) => bytes.len() == 16,
            _ => false,
        };
        let what = format!("a value of {} bytes", bytes.len());
        let writer = self.choose(&what, takes)?;
        match writer.node {
            AvroNode::Bytes => put_bytes(bytes, writer.out),
            node if takes(node) => writer.out.extend_from_slice(bytes),
            _ => return writer.unfit(&what),
        }
        Ok(())
    }

    fn serialize_none(self) -> Result<(), AvroRefusal> {
        self.serialize_unit()
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<(), AvroRefusal> {
        value.serialize(self)
    }

    fn serialize_unit(self) -> Result<(), AvroRefusal> {
        let writer = self.choose("null", |node| matches!(node, AvroNode::Null))?;
        if matches!(writer.node, AvroNode::Null) { Ok(()) } else { writer.unfit("null") }
    }

    fn serialize_unit_struct(self, _: &'static str) -> Result<(), AvroRefusal> {
        self.serialize_unit()
    }

    fn serialize_unit_variant(self, _: &'static str, _: u32, variant: &'static str) -> Result<(), AvroRefusal> {
        self.text(variant)
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(self, _: &'static str, value: &T) -> Result<(), AvroRefusal> {
        value.serialize(self)
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        value: &T,
    ) -> Result<(), AvroRefusal> {
        value.serialize(self.variant(variant)?)
    }

    fn serialize_seq(self, length: Option<usize>) -> Result<ItemsWriter<'s, 'o>, AvroRefusal> {
        self.items("a sequence", length)
    }

    fn serialize_tuple(self, length: usize) -> Result<ItemsWriter<'s, 'o>, AvroRefusal> {
        self.items("a tuple", Some(length))
    }

    fn serialize_tuple_struct(self, name: &'static str, length: usize) -> Result<ItemsWriter<'s, 'o>, AvroRefusal> {
        self.items(name, Some(length))
    }

    fn serialize_tuple_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        length: usize,
    ) -> Result<ItemsWriter<'s, 'o>, AvroRefusal> {
        self.variant(variant)?.items(variant, Some(length))
    }

    fn serialize_map(self, length: Option<usize>) -> Result<NamedWriter<'s, 'o>, AvroRefusal> {
        self.named("a map", None, length)
    }

    fn serialize_struct(self, name: &'static str, length: usize) -> Result<NamedWriter<'s, 'o>, AvroRefusal> {
        self.named(name, Some(name), Some(length))
    }

    fn serialize_struct_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        length: usize,
    ) -> Result<NamedWriter<'s, 'o>, AvroRefusal> {
        self.variant(variant)?.named(variant, Some(variant), Some(length))
    }
}

/// Returns the function that writes a value as a type.
fn put<'s, T: Serialize + ?Sized>(
    schema: &'s AvroSchema,
    value: &T,
) -> impl FnOnce(&'s AvroNode, &mut Vec<u8>) -> Result<(), AvroRefusal> {
    move |node, out| value.serialize(DatumWriter { schema, node, out })
}

/// Writes a sequence: an array, the fields of a record in their order, or bytes.
enum ItemsWriter<'s, 'o> {
    Items(&'s AvroSchema, BlockWriter<'s, 'o>),
    Fields(&'s AvroSchema, RecordWriter<'s, 'o>),
    Bytes(DatumWriter<'s, 'o>, Vec<u8>),
}

impl ItemsWriter<'_, '_> {
    fn item<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), AvroRefusal> {
        match self {
            ItemsWriter::Items(schema, block) => block.item(put(schema, value)),
            ItemsWriter::Fields(_, record) if record.next == record.record.fields.len() => {
                refused(format!("more values than the record `{}` has fields", record.record.name))
            }
            ItemsWriter::Fields(schema, record) => record.field(record.next, put(schema, value)),
            ItemsWriter::Bytes(writer, bytes) => {
                let mut byte = Vec::new();
                value.serialize(DatumWriter { schema: writer.schema, node: &AvroNode::Int, out: &mut byte })?;
                match u8::try_from(DatumBytes::new(&byte).int()?) {
                    Ok(byte) => bytes.push(byte),
                    Err(_) => return writer.unfit("a sequence of integers"),
                }
                Ok(())
            }
        }
    }

    fn finish(self) -> Result<(), AvroRefusal> {
        match self {
            ItemsWriter::Items(_, block) => block.end(),
            ItemsWriter::Fields(_, record) => record.end(),
            ItemsWriter::Bytes(writer, bytes) => writer.serialize_bytes(&bytes),
        }
    }
}

/// Implements the traits of sequences, whose methods are alike.
macro_rules! sequences {
    ($($kind:ident $add:ident)*) => { $(
        impl ser::$kind for ItemsWriter<'_, '_> {
            type Ok = ();
            type Error = AvroRefusal;

            fn $add<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), AvroRefusal> {
                self.item(value)
            }

            fn end(self) -> Result<(), AvroRefusal> {
                self.finish()
            }
        }
    )* };
}

sequences!(SerializeSeq serialize_element SerializeTuple serialize_element);
sequences!(SerializeTupleStruct serialize_field SerializeTupleVariant serialize_field);

/// Writes values with names: a record, or a map.
enum NamedWriter<'s, 'o> {
    /// With the name of the next field, of values that give names apart.
    Record(&'s AvroSchema, RecordWriter<'s, 'o>, String),
    Map(&'s AvroSchema, BlockWriter<'s, 'o>),
}

impl NamedWriter<'_, '_> {
    fn named_value<T: Serialize + ?Sized>(&mut self, name: &str, value: &T) -> Result<(), AvroRefusal> {
        match self {
            NamedWriter::Record(schema, record, _) => record.field(record.place(name)?, put(schema, value)),
            NamedWriter::Map(schema, block) => {
                block.key(put(schema, name))?;
                block.item(put(schema, value))
            }
        }
    }

    fn finish(self) -> Result<(), AvroRefusal> {
        match self {
            NamedWriter::Record(_, record, _) => record.end(),
            NamedWriter::Map(_, block) => block.end(),
        }
    }
}

impl SerializeMap for NamedWriter<'_, '_> {
    type Ok = ();
    type Error = AvroRefusal;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), AvroRefusal> {
        match self {
            NamedWriter::Map(schema, block) => block.key(put(schema, key)),
            NamedWriter::Record(schema, _, name) => {
                let mut bytes = Vec::new();
                put(schema, key)(&AvroNode::String, &mut bytes)?;
                *name = DatumBytes::new(&bytes).text()?.to_owned();
                Ok(())
            }
        }
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), AvroRefusal> {
        match self {
            NamedWriter::Map(schema, block) => block.item(put(schema, value)),
            NamedWriter::Record(schema, record, name) => record.field(record.place(name)?, put(schema, value)),
        }
    }

    fn end(self) -> Result<(), AvroRefusal> {
        self.finish()
    }
}

/// Implements the traits of structs, whose methods are alike.
macro_rules! structs {
    ($($kind:ident)*) => { $(
        impl $kind for NamedWriter<'_, '_> {
            type Ok = ();
            type Error = AvroRefusal;

            fn serialize_field<T: Serialize + ?Sized>(
                &mut self,
                name: &'static str,
                value: &T,
            ) -> Result<(), AvroRefusal> {
                self.named_value(name, value)
            }

            fn end(self) -> Result<(), AvroRefusal> {
                self.finish()
            }
        }
    )* };
}

structs!(SerializeStruct SerializeStructVariant);
