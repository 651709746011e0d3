//! Tests of Avro: of decoding, and of hostile data.
