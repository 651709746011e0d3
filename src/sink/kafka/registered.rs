//! Encoders of rows as messages whose schema is in a registry.
//!
//! Invariants: the schema is known to the registry, or refused, before a row is encoded; an encoder is a function of
//! the row alone.

use serde::Serialize;

use crate::error::Result;
use crate::format::avro::AvroSchema;
use crate::format::framing;
use crate::format::registry::{Registration, SchemaKind, SchemaRegistry, SubjectNaming};
use crate::sink::kafka::Encode;

/// An encoder of rows as Avro messages that begin with the id of their schema.
///
/// ```no_run
/// # use serde::{Deserialize, Serialize};
/// use tidegate::kafka::{AvroEncoder, AvroSchema, SchemaRegistry};
///
/// #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
/// struct Total { account: String, cents: i64 }
///
/// let registry = SchemaRegistry::new("http://localhost:8081");
/// let schema = AvroSchema::of::<Total>("com.acme")?;
/// let encoder = AvroEncoder::new(&registry, "totals", schema).auto_register(true);
/// encoder.prepare()?;
/// let mut message = Vec::new();
/// encoder.encode(&Total { account: "a".into(), cents: 5 }, &mut message).unwrap();
/// # tidegate::Result::Ok(())
/// ```
#[derive(Debug)]
pub struct AvroEncoder {
    schema: AvroSchema,
    registration: Registration,
}

impl AvroEncoder {
    /// Writes values of a topic by this schema. It is looked up in the registry, under the subject `TOPIC-value`.
    pub fn new(registry: &SchemaRegistry, topic: &str, schema: AvroSchema) -> Self {
        let registration = Registration::new(registry, topic, schema.name(), SchemaKind::Avro, schema.text());
        AvroEncoder { schema, registration }
    }

    /// Sets how the subject is named.
    #[must_use]
    pub fn subject_naming(mut self, naming: SubjectNaming) -> Self {
        self.registration.name_subject(naming);
        self
    }

    /// Registers the schema if the registry does not have it, if `register` is `true`. One that is incompatible with the
    /// subject's newest version fails the job all the same.
    #[must_use]
    pub fn auto_register(mut self, register: bool) -> Self {
        self.registration.auto_register = register;
        self
    }

    /// Finds the schema in the registry, or registers it. It has to be called before rows are encoded; again it does
    /// nothing.
    ///
    /// # Errors
    /// Fails if the schema is missing or incompatible, or if the registry cannot be reached or refuses access.
    pub fn prepare(&self) -> Result<()> {
        self.registration.prepare()
    }

    /// Appends a row's message to `out`.
    ///
    /// # Errors
    /// Fails with the reason if the row does not fit the schema, and leaves `out` as it was.
    pub fn encode<D: Serialize + ?Sized>(&self, row: &D, out: &mut Vec<u8>) -> std::result::Result<(), String> {
        let length = out.len();
        framing::write(self.registration.id()?, out);
        let encoded = self.schema.encode(row, out);
        if encoded.is_err() {
            out.truncate(length);
        }
        encoded.map_err(|why| format!("the row does not fit the schema `{}`: {why}", self.schema.name()))
    }
}

/// An encoder of values of Protocol Buffers as messages that begin with the id of their schema and with message indexes.
#[cfg(feature = "protobuf")]
#[derive(Debug)]
pub struct ProtobufEncoder {
    indexes: Vec<u32>,
    registration: Registration,
}

#[cfg(feature = "protobuf")]
impl ProtobufEncoder {
    /// Writes values of a topic of the first type of a `.proto` file with this text; `type_name` is that type's full name.
    /// The text is looked up in the registry, under the subject `TOPIC-value`.
    pub fn new(registry: &SchemaRegistry, topic: &str, proto: &str, type_name: &str) -> Self {
        let registration = Registration::new(registry, topic, type_name, SchemaKind::Protobuf, proto);
        ProtobufEncoder { indexes: vec![0], registration }
    }

    /// Sets the path to the type in the file: `[1]` is its second type, `[1, 0]` the first type within that.
    #[must_use]
    pub fn at(mut self, indexes: &[u32]) -> Self {
        self.indexes = indexes.to_vec();
        self
    }

    /// Sets how the subject is named.
    #[must_use]
    pub fn subject_naming(mut self, naming: SubjectNaming) -> Self {
        self.registration.name_subject(naming);
        self
    }

    /// Registers the schema if the registry does not have it, if `register` is `true`: see
    /// [`AvroEncoder::auto_register`].
    #[must_use]
    pub fn auto_register(mut self, register: bool) -> Self {
        self.registration.auto_register = register;
        self
    }

    /// Finds the schema in the registry, or registers it: see [`AvroEncoder::prepare`].
    ///
    /// # Errors
    /// Fails if the schema is missing or incompatible, or if the registry cannot be reached or refuses access.
    pub fn prepare(&self) -> Result<()> {
        self.registration.prepare()
    }

    /// Appends a row's message to `out`.
    ///
    /// # Errors
    /// Fails if the encoder is not prepared.
    pub fn encode<M: prost::Message>(&self, row: &M, out: &mut Vec<u8>) -> std::result::Result<(), String> {
        framing::write(self.registration.id()?, out);
        framing::write_indexes(&self.indexes, out);
        row.encode(out).map_err(|why| why.to_string())
    }
}

impl<D: Serialize> Encode<D> for AvroEncoder {
    fn encode(&self, row: &D, value: &mut Vec<u8>) -> std::result::Result<(), String> {
        AvroEncoder::encode(self, row, value)
    }

    fn check(&self) -> Result<()> {
        self.prepare()
    }
}

#[cfg(feature = "protobuf")]
impl<M: prost::Message> Encode<M> for ProtobufEncoder {
    fn encode(&self, row: &M, value: &mut Vec<u8>) -> std::result::Result<(), String> {
        ProtobufEncoder::encode(self, row, value)
    }

    fn check(&self) -> Result<()> {
        self.prepare()
    }
}
