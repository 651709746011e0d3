//! Decoders of Avro messages: of those that name their schema in a registry, and of those of one schema.
//!
//! Invariant: what a message's id means never changes, so a message gives the same record at each replay; a message whose id
//! the registry does not know is rejected for now, which a replay repeats. A registry that does not answer rejects nothing:
//! the job fails once retries are over.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use serde::de::DeserializeOwned;

use super::decode::{Decode, DecodeError, value_of};
use super::message::Message;
use crate::format::avro::AvroSchema;
#[cfg(feature = "registry")]
use crate::format::framing;
#[cfg(feature = "registry")]
use crate::format::registry::SchemaRegistry;

/// Returns the decoder of Avro messages that begin with the id of their schema in a registry: a byte 0, then the id.
///
/// Fields of the writer's schema are matched with those of `T` by name, whatever their order. One that `T` lacks is
/// skipped; one that the writer's schema lacks takes `#[serde(default)]`, or is `None`; one that had another name has
/// `#[serde(alias = "…")]`. So messages of all versions of a schema are read from one topic.
///
/// A message without a known id, or whose data do not fit, is rejected. A registry that does not answer is asked again
/// for as long as [`SchemaRegistry::retry_for`] says; then the job fails.
///
/// ```
/// # use serde::{Deserialize, Serialize};
/// use tidegate::kafka::{self, SchemaRegistry};
///
/// #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
/// struct Payment { account: String, #[serde(alias = "amount")] cents: i64, #[serde(default)] currency: String, at: i64 }
///
/// let registry = SchemaRegistry::new("http://localhost:8081");
/// let payments = kafka::Source::new("localhost:9092", "payment", kafka::avro(&registry))
///     .event_time(|payment: &Payment| payment.at);
/// ```
#[cfg(feature = "registry")]
pub fn avro<T: DeserializeOwned + 'static>(registry: &SchemaRegistry) -> AvroDecoder<T> {
    AvroDecoder { schemas: Schemas::OfRegistry(registry.clone()), records: PhantomData }
}

/// Returns the decoder of Avro messages that are all of this schema, without an id.
pub fn avro_schema<T: DeserializeOwned + 'static>(schema: AvroSchema) -> AvroDecoder<T> {
    AvroDecoder { schemas: Schemas::One(Arc::new(schema)), records: PhantomData }
}

/// Origin of messages' schemas.
#[derive(Clone, Debug)]
enum Schemas {
    One(Arc<AvroSchema>),
    #[cfg(feature = "registry")]
    OfRegistry(SchemaRegistry),
}

/// The decoder of Avro messages: see [`avro`](crate::kafka::avro_schema).
#[derive(Clone)]
pub struct AvroDecoder<T> {
    schemas: Schemas,
    records: PhantomData<fn() -> T>,
}

impl<T: DeserializeOwned + 'static> Decode<T> for AvroDecoder<T> {
    #[inline]
    fn decode(&self, message: &Message<'_>) -> Result<Option<T>, DecodeError> {
        let value = value_of(message)?;
        match &self.schemas {
            Schemas::One(schema) => Ok(Some(schema.decode(value)?)),
            #[cfg(feature = "registry")]
            Schemas::OfRegistry(registry) => {
                let (id, datum) = framing::split(value)?;
                let decoded = registry.with_schema(id, |schema| {
                    let decoded = schema.avro().and_then(|avro| avro.decode(datum));
                    decoded.map_err(|why| match (format!("schema id {id}: {why}"), schema.is_known()) {
                        (reason, true) => DecodeError::Rejected(reason),
                        (reason, false) => DecodeError::RejectedForNow(reason),
                    })
                })?;
                decoded.map(Some)
            }
        }
    }

    fn check(&self) -> Result<(), String> {
        match &self.schemas {
            Schemas::One(_) => Ok(()),
            #[cfg(feature = "registry")]
            Schemas::OfRegistry(registry) => registry.check().map_err(|error| error.to_string()),
        }
    }
}

impl<T> fmt::Debug for AvroDecoder<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("AvroDecoder").field(&self.schemas).finish()
    }
}
