//! Compacted topics as tables: each message sets the value of its key, or deletes it.
//!
//! * A [`KeyedDecoder`] decodes a message to a key with a value; a tombstone has none.
//! * The records of such a source are what [`Flow::table`](crate::Flow::table) makes a table of, by offset.
//!
//! Invariant: a message without a value deletes its key, whatever the decoder of values is; that one never sees it.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use super::decode::{Decode, DecodeError};
use super::mapping::{EventTimeOrigin, MessageMapping};
use super::message::Message;
use super::{DecodedTopic, Source, UntimedTopic};
use crate::record::Record;

/// Reason for rejecting a message without a key.
const NO_KEY: &str = "the message has no key, and a table needs one";

/// Decodes a message's key; `None` skips the message.
///
/// # Errors
/// Fails with the reason for rejecting the message, or with an error that fails the job.
pub(super) fn key_of<K>(decoder: &impl Decode<K>, message: &Message<'_>) -> Result<Option<K>, DecodeError> {
    if message.key().is_none() {
        return Err(DecodeError::from(NO_KEY));
    }
    decoder.decode(&message.of_key()).map_err(|error| match error {
        DecodeError::Rejected(why) => DecodeError::Rejected(format!("its key: {why}")),
        DecodeError::RejectedForNow(why) => DecodeError::RejectedForNow(format!("its key: {why}")),
        failed @ DecodeError::Failed(_) => failed,
    })
}

/// A decoder of the messages of a table, to a key with its value: see [`DecodedTopic::table`].
pub struct KeyedDecoder<K, V, KD, VD> {
    key: KD,
    value: VD,
    records: PhantomData<fn() -> (K, V)>,
}

impl<K, V, KD, VD> fmt::Debug for KeyedDecoder<K, V, KD, VD> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyedDecoder").finish_non_exhaustive()
    }
}

impl<K, V, KD, VD> Decode<(K, Option<V>)> for KeyedDecoder<K, V, KD, VD>
where
    K: 'static,
    V: 'static,
    KD: Decode<K>,
    VD: Decode<V>,
{
    fn decode(&self, message: &Message<'_>) -> Result<Option<(K, Option<V>)>, DecodeError> {
        let Some(key) = key_of(&self.key, message)? else { return Ok(None) };
        if message.value().is_none() {
            return Ok(Some((key, None)));
        }
        Ok(self.value.decode(message)?.map(|value| (key, Some(value))))
    }

    fn check(&self) -> Result<(), String> {
        self.key.check().map_err(|why| format!("the key: {why}"))?;
        self.value.check()
    }
}

impl UntimedTopic {
    /// Reads the topic as a table of JSON values: see [`DecodedTopic::table`].
    pub fn table<K: Record, V: Record>(self, key: impl Decode<K>) -> Source<(K, Option<V>)> {
        self.decoded().table(key)
    }
}

impl<V: Record, D: Decode<V>> DecodedTopic<V, D> {
    /// Reads the topic, which may be compacted, as a table: the last message of a key has its value, and one without a
    /// value (a tombstone) deletes the key. `key` decodes keys: a decoder of values, or a closure; either gets the
    /// message with its key in the place of its value. Messages without a key are rejected; those whose key or value is
    /// skipped (`Ok(None)`) change nothing.
    ///
    /// Records are pairs of a key and a value, `None` for a delete: what [`Flow::table`](crate::Flow::table) takes. Such
    /// a source is kept by value in the state's journal, as [`Source::compacted`] says.
    ///
    /// ```
    /// # use serde::{Deserialize, Serialize};
    /// # #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
    /// # struct Rate { cents: i64 }
    /// use tidegate::kafka;
    ///
    /// let rates = kafka::Source::new("localhost:9092", "rate", kafka::json::<Rate>()).table(kafka::text());
    /// let job = tidegate::Job::new("rates");
    /// # let run = move |flow: &tidegate::Flow<'_>| {
    /// let rates = flow.table("rates", &rates); // a collection of `(String, Rate)`
    /// # };
    /// ```
    pub fn table<K: Record>(self, key: impl Decode<K>) -> Source<(K, Option<V>)> {
        let decoder = KeyedDecoder { key, value: self.decoder, records: PhantomData };
        let mapping = MessageMapping { decoder, event_time: EventTimeOrigin::TimestampIfAny };
        Source::with(self.topic_config, self.topics, Arc::new(mapping)).compacted(true)
    }
}
