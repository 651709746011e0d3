//! Formats of messages whose schema is kept apart from them: schema registries, Avro, and the frames that name a schema.
//!
//! * A **frame** is the beginning of a message that names the schema of the rest by its id in a registry.
//! * A [`registry::SchemaRegistry`] is a client of a schema registry.
//! * An [`avro::AvroSchema`] reads and writes Avro data by serde.
//!
//! Invariants: bytes of others never panic and never allocate more than a small multiple of their length; the module
//! knows neither topics nor the client library of Kafka.

pub(crate) mod avro;
#[cfg(all(feature = "protobuf", feature = "cli"))]
pub(crate) mod described;
pub(crate) mod framing;
#[cfg(feature = "registry")]
pub(crate) mod registry;
