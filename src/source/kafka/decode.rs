//! Decoding of messages to records.
//!
//! A [`Decode`] makes a record of a message, skips the message, or rejects it. Closures are decoders; adaptors change
//! one: [`Decode::skip_tombstones`], [`Decode::with_meta`].
//!
//! Invariant: a decoder is a function of the message alone. Messages are decoded again when epochs are replayed, and
//! must give the same records then. So a message is rejected for what it is, and never because something else that
//! decoding needs is missing: that fails the job.

use std::fmt;
use std::marker::PhantomData;

use super::message::Message;
use crate::error::Error;

/// Reason for rejecting a message without a value.
const TOMBSTONE: &str = "the message has no value (a tombstone)";

/// A decoder of messages to records of type `T`. It must be a function of the message alone: no clock, no counter.
///
/// Every closure `Fn(&Message<'_>) -> Result<Option<T>, String>` is one:
///
/// ```
/// use tidegate::kafka::{Message, Source};
///
/// // The key is the device; a message without one is skipped, and one without a reading is rejected.
/// let readings = Source::new("localhost:9092", "reading", |message: &Message<'_>| {
///     let Some(key) = message.key() else { return Ok(None) };
///     let text = message.value().and_then(|value| str::from_utf8(value).ok()).ok_or("no text")?;
///     let celsius: i64 = text.parse().map_err(|why| format!("not a number: {why}"))?;
///     Ok(Some((String::from_utf8_lossy(key).into_owned(), celsius)))
/// })
/// .event_time_of_message();
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not decode messages to `{T}`",
    label = "not a decoder of `{T}`",
    note = "decoders are `kafka::json()`, `kafka::csv()`, `kafka::text()`, `kafka::bytes()`, and closures such as `|message: &kafka::Message<'_>| Ok(Some(record))` with the error type `String`"
)]
pub trait Decode<T>: Send + Sync + 'static {
    /// Decodes a message. `Ok(None)` skips it: it is counted as skipped, and its offset is taken all the same.
    ///
    /// # Errors
    /// Fails with the reason for rejecting the message (a `String` becomes one by `?`), or with an error that fails the
    /// job: see [`DecodeError`].
    fn decode(&self, message: &Message<'_>) -> Result<Option<T>, DecodeError>;

    /// Checks that the decoder can decode anything at all. Called before the topic is opened.
    ///
    /// # Errors
    /// Fails with the reason.
    fn check(&self) -> Result<(), String> {
        Ok(())
    }

    /// Skips messages without a value instead of rejecting them.
    fn skip_tombstones(self) -> SkipTombstones<Self, T>
    where
        Self: Sized,
    {
        SkipTombstones { decoder: self, value: PhantomData }
    }

    /// Makes the record from the decoded value and the message: its key, its headers, its timestamp, its place.
    ///
    /// ```
    /// use tidegate::kafka::{self, Decode, Message};
    ///
    /// // The type of the value is that of the closure's first parameter.
    /// let keyed = kafka::json().with_meta(|amount: i64, message: &Message<'_>| {
    ///     (message.key().map(<[u8]>::to_vec), amount, message.offset())
    /// });
    /// let amounts = kafka::Source::new("localhost:9092", "amount", keyed).event_time_of_message();
    /// ```
    fn with_meta<U, F>(self, add: F) -> WithMeta<Self, F, T>
    where
        Self: Sized,
        F: Fn(T, &Message<'_>) -> U + Send + Sync + 'static,
    {
        WithMeta { decoder: self, add, value: PhantomData }
    }
}

impl<T, F: Fn(&Message<'_>) -> Result<Option<T>, String> + Send + Sync + 'static> Decode<T> for F {
    fn decode(&self, message: &Message<'_>) -> Result<Option<T>, DecodeError> {
        self(message).map_err(DecodeError::Rejected)
    }
}

/// A decoder that is chosen while the program runs.
impl<T: 'static> Decode<T> for Box<dyn Decode<T>> {
    fn decode(&self, message: &Message<'_>) -> Result<Option<T>, DecodeError> {
        (**self).decode(message)
    }

    fn check(&self) -> Result<(), String> {
        (**self).check()
    }
}

/// Reason why a message gives no record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// The message itself is wrong: it is rejected for this reason, at each replay again.
    Rejected(String),
    /// The message cannot be decoded yet, for example because a schema registry does not know its schema: it is rejected for
    /// this reason. The journal names it, so a replay rejects it again, even if it could be decoded by then; where a replay
    /// gets this for a message that was decoded before, the job fails.
    RejectedForNow(String),
    /// The message cannot be judged, for example because a schema registry does not answer: the job fails, and its next
    /// start decodes the message again.
    Failed(Error),
}

impl From<String> for DecodeError {
    fn from(reason: String) -> Self {
        DecodeError::Rejected(reason)
    }
}

impl From<&str> for DecodeError {
    fn from(reason: &str) -> Self {
        DecodeError::Rejected(reason.to_owned())
    }
}

impl From<Error> for DecodeError {
    fn from(error: Error) -> Self {
        DecodeError::Failed(error)
    }
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DecodeError::Rejected(reason) | DecodeError::RejectedForNow(reason) => f.write_str(reason),
            DecodeError::Failed(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for DecodeError {}

/// Returns a message's value.
///
/// # Errors
/// Fails with the reason for rejecting a tombstone.
#[inline]
pub(crate) fn value_of<'a>(message: &Message<'a>) -> Result<&'a [u8], String> {
    message.value().ok_or_else(|| String::from(TOMBSTONE))
}

/// A decoder that skips messages without a value: see [`Decode::skip_tombstones`].
#[derive(Clone, Debug)]
pub struct SkipTombstones<D, T> {
    decoder: D,
    value: PhantomData<fn() -> T>,
}

impl<T: 'static, D: Decode<T>> Decode<T> for SkipTombstones<D, T> {
    fn decode(&self, message: &Message<'_>) -> Result<Option<T>, DecodeError> {
        if message.value().is_none() { Ok(None) } else { self.decoder.decode(message) }
    }

    fn check(&self) -> Result<(), String> {
        self.decoder.check()
    }
}

/// A decoder whose records are made of a value and its message: see [`Decode::with_meta`].
#[derive(Clone, Debug)]
pub struct WithMeta<D, F, V> {
    decoder: D,
    add: F,
    value: PhantomData<fn() -> V>,
}

impl<T, V, D, F> Decode<T> for WithMeta<D, F, V>
where
    V: 'static,
    D: Decode<V>,
    F: Fn(V, &Message<'_>) -> T + Send + Sync + 'static,
{
    fn decode(&self, message: &Message<'_>) -> Result<Option<T>, DecodeError> {
        Ok(self.decoder.decode(message)?.map(|value| (self.add)(value, message)))
    }

    fn check(&self) -> Result<(), String> {
        self.decoder.check()
    }
}
