//! Decoders of messages of Protocol Buffers, with the frame of a schema registry or without.
//!
//! Protocol Buffers read nearly any bytes as a message of any type. So a framed message whose indexes name another type
//! is rejected.

use std::marker::PhantomData;

use super::decode::{Decode, DecodeError, value_of};
use super::message::Message;
use crate::format::framing;

/// Returns the decoder of messages that are one value of Protocol Buffers each, of a type that `prost` has generated.
/// [`Decode::with_meta`] makes records of them.
///
/// ```
/// use tidegate::kafka::{self, Decode, Message};
///
/// #[derive(Clone, PartialEq, prost::Message)]
/// struct Payment {
///     #[prost(string, tag = "1")]
///     account: String,
///     #[prost(sint64, tag = "2")]
///     cents: i64,
/// }
///
/// let decoder = kafka::protobuf::<Payment>().framed();
/// let pairs = decoder.with_meta(|payment: Payment, _: &Message<'_>| (payment.account, payment.cents));
/// let payments = kafka::Source::new("localhost:9092", "payment", pairs).event_time_of_message();
/// ```
pub fn protobuf<M: prost::Message + Default + 'static>() -> ProtobufDecoder<M> {
    ProtobufDecoder { indexes: None, messages: PhantomData }
}

/// The decoder of messages of Protocol Buffers: see [`protobuf`].
#[derive(Clone, Debug)]
pub struct ProtobufDecoder<M> {
    /// Path to the type in its file, if messages are framed.
    indexes: Option<Vec<u32>>,
    messages: PhantomData<fn() -> M>,
}

impl<M> ProtobufDecoder<M> {
    /// Takes messages that begin with the id of their schema in a registry and with message indexes, which name the first
    /// type of the schema's file: see [`ProtobufDecoder::framed_at`].
    #[must_use]
    pub fn framed(self) -> Self {
        self.framed_at(&[0])
    }

    /// Takes messages that begin with the id of their schema in a registry and with these message indexes: `[1]` is the
    /// second type of the schema's file, `[1, 0]` the first type within that. Others are rejected.
    #[must_use]
    pub fn framed_at(mut self, indexes: &[u32]) -> Self {
        self.indexes = Some(indexes.to_vec());
        self
    }
}

impl<M: prost::Message + Default + 'static> Decode<M> for ProtobufDecoder<M> {
    fn decode(&self, message: &Message<'_>) -> Result<Option<M>, DecodeError> {
        let mut bytes = value_of(message)?;
        if let Some(expected) = &self.indexes {
            let (id, framed) = framing::split(bytes)?;
            let (indexes, rest) = framing::split_indexes(framed)?;
            if indexes != *expected {
                let why = format!("schema id {id}: type {indexes:?} of the schema, where {expected:?} is expected");
                return Err(why.into());
            }
            bytes = rest;
        }
        match M::decode(bytes) {
            Ok(decoded) => Ok(Some(decoded)),
            Err(why) => Err(format!("not the expected Protocol Buffers: {why}").into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;
    use crate::durable::journal::JournaledRecord;

    #[derive(Clone, PartialEq, prost::Message)]
    struct Payment {
        #[prost(string, tag = "1")]
        account: String,
        #[prost(sint64, tag = "2")]
        cents: i64,
    }

    fn decoded(decoder: &ProtobufDecoder<Payment>, value: &[u8]) -> Result<Option<Payment>, DecodeError> {
        let record = JournaledRecord { payload: Some(value.to_vec()), ..JournaledRecord::default() };
        decoder.decode(&Message::of_record("t", 0, &record))
    }

    #[test]
    fn messages_are_decoded_and_those_of_another_type_rejected() {
        let payment = Payment { account: "a".into(), cents: -5 };
        let bytes = payment.encode_to_vec();
        assert_eq!(decoded(&protobuf(), &bytes), Ok(Some(payment.clone())));
        let framed = |indexes: &[u8]| [b"\0\0\0\0\x07", indexes, &bytes].concat();
        assert_eq!(decoded(&protobuf().framed(), &framed(&[0])), Ok(Some(payment.clone())));
        assert_eq!(decoded(&protobuf().framed_at(&[1, 0]), &framed(&[4, 2, 0])), Ok(Some(payment)));
        let why = decoded(&protobuf().framed(), &framed(&[2, 2])).unwrap_err().to_string();
        assert_eq!(why, "schema id 7: type [1] of the schema, where [0] is expected");
        for wrong in [&b""[..], b"\0\0\0\0", b"\0\0\0\0\x07", &bytes] {
            assert!(matches!(decoded(&protobuf().framed(), wrong), Err(DecodeError::Rejected(_))));
        }
        let why = decoded(&protobuf(), &bytes[..2]).unwrap_err().to_string();
        assert!(why.starts_with("not the expected Protocol Buffers: "), "{why}");
    }

    #[test]
    fn random_bytes_are_messages_or_rejected() {
        let mut rng = fastrand::Rng::with_seed(3);
        for _ in 0..20_000 {
            let bytes: Vec<u8> = (0..rng.usize(..40)).map(|_| rng.u8(..)).collect();
            for decoder in [protobuf(), protobuf().framed()] {
                assert!(!matches!(decoded(&decoder, &bytes), Err(DecodeError::Failed(_))));
            }
        }
    }
}
