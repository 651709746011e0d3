//! Avro data by serde: types are read from data of any schema, and written to data of one.
//!
//! * A **schema** is that of the writer. Fields are matched with those of the Rust type by name, whatever their order:
//!   a field that the type lacks is skipped, one that the schema lacks takes serde's default, and another name of it is
//!   serde's alias.
//! * A **datum** is one value, without the schema.
//!
//! Invariants: a datum is decoded to a value, with no byte left, or refused with a reason. Hostile bytes cannot panic,
//! recurse deeper than [`read::DEEPEST`], or make more values than their length allows. Schemas are data of others too:
//! they are bounded likewise.

mod decode;
mod default;
mod derive;
mod encode;
mod logical;
mod parse;
mod parts;
mod read;
mod schema;
mod skip;
mod values;

pub use schema::AvroSchema;

#[cfg(test)]
mod tests;
