//! Probes of types: what a type asks a deserializer for.

#[cfg(test)]
pub(crate) mod samples;
