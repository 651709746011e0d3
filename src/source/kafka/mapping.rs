//! The way from a message to a record of the flow: the source's decoder, and the origin of its event times.

use std::sync::Arc;

use super::decode::{Decode, DecodeError};
use super::message::Message;
use super::stored_message::write_message;
use crate::durable::journal::PartitionProgress;
use crate::error::{Error, ErrorKind, Result};
use crate::record::Record;
use crate::source::{PartitionHandle, PartitionTracker, RawRecord, TimeOf, time_of};
use crate::time::{Epoch, EventTime};

/// Reason for rejecting a message of a replayed epoch that was rejected for now before.
const REJECTED_BEFORE: &str =
    "it could not be decoded when it was first read, such as a message whose schema nobody knew";

/// Origin of event times.
pub(super) enum EventTimeOrigin<T> {
    /// The record.
    Record(TimeOf<T>),
    /// The message's timestamp.
    Timestamp,
    /// The header of this name.
    Header(Arc<str>),
    /// The message's timestamp; 1970 if it has none.
    TimestampIfAny,
}

/// A way from messages to records, whatever the decoder. Its methods are called through one pointer, at most once for a
/// message; the decoder itself is compiled into them.
pub(super) trait MapMessages<T>: Send + Sync {
    /// Checks the decoder.
    ///
    /// # Errors
    /// Fails if it can decode nothing.
    fn check(&self) -> Result<()>;

    /// Returns the function that gives a record's event time. Event times that come from messages are no function of
    /// records: they are passed to the tracker with the records, and the function gives an impossible time.
    fn time_of_record(&self) -> TimeOf<T>;

    /// Offers a message to the tracker, which accepts, rejects or skips it. Returns `true` if it was taken. In a replay,
    /// `replayed` is the partition's progress in the epoch, by which the same messages are rejected for now.
    ///
    /// # Errors
    /// Fails if the message is rejected and rejects fail the job, if it cannot be judged, or if a replay cannot decode what
    /// was decoded before.
    fn offer(
        &self,
        epoch: Epoch,
        slot: PartitionHandle,
        message: &Message<'_>,
        replayed: Option<&PartitionProgress>,
        intake: &mut PartitionTracker<T>,
    ) -> Result<bool>;
}

/// The decoder of a topic's messages, and the origin of their event times.
pub(super) struct MessageMapping<T, D> {
    pub(super) decoder: D,
    pub(super) event_time: EventTimeOrigin<T>,
}

impl<T: Record, D: Decode<T>> MapMessages<T> for MessageMapping<T, D> {
    fn check(&self) -> Result<()> {
        self.decoder.check().map_err(|why| Error::usage("the messages of a topic cannot be decoded").because(why))
    }

    fn time_of_record(&self) -> TimeOf<T> {
        match &self.event_time {
            EventTimeOrigin::Record(time_of) => Arc::clone(time_of),
            EventTimeOrigin::Timestamp | EventTimeOrigin::Header(_) | EventTimeOrigin::TimestampIfAny => {
                time_of(|_record| EventTime::MIN)
            }
        }
    }

    fn offer(
        &self,
        epoch: Epoch,
        slot: PartitionHandle,
        message: &Message<'_>,
        replayed: Option<&PartitionProgress>,
        intake: &mut PartitionTracker<T>,
    ) -> Result<bool> {
        let offset = message.offset();
        if offset < intake.next(slot) {
            return Ok(false);
        }
        if let Some(until) = intake.until(slot).filter(|until| offset >= *until) {
            intake.skip_to(slot, until);
            intake.mark_ended(slot);
            return Ok(false);
        }
        let (stamped, bytes) = (message.timestamp_millis(), message.value().unwrap_or_default());
        let found = RawRecord { offset, next: offset + 1, stamped, line: 0, bytes };
        let (events, rejects) = (intake.events.len(), intake.rejects.len());
        let decoded = match replayed {
            Some(progress) => self.decode_again(message, progress)?,
            None => self.decoder.decode(message),
        };
        match (decoded, &self.event_time) {
            (Ok(Some(record)), EventTimeOrigin::Record(_)) => intake.accept(epoch, slot, found, record)?,
            (Ok(Some(record)), from_message) => match time_of_message(from_message, message) {
                Ok(time) => intake.accept_at(epoch, slot, found, time, record)?,
                Err(reason) => intake.reject(epoch, slot, found, &reason)?,
            },
            (Ok(None), _) => intake.skip(epoch, slot, found),
            (Err(DecodeError::Rejected(reason)), _) => intake.reject(epoch, slot, found, &reason)?,
            (Err(DecodeError::RejectedForNow(reason)), _) => intake.reject_for_now(epoch, slot, found, &reason)?,
            // The message is not taken: the next start decodes it again.
            (Err(DecodeError::Failed(error)), _) => return Err(error),
        }
        intake.keep_if_rejected(rejects, || message.to_rejected());
        intake.keep_if_accepted(epoch, events, |bytes| write_message(message, bytes));
        Ok(true)
    }
}

impl<T: Record, D: Decode<T>> MessageMapping<T, D> {
    /// Decodes a message of a replayed epoch: what was rejected for now is rejected again.
    ///
    /// # Errors
    /// Fails if the message cannot be decoded any more.
    fn decode_again(
        &self,
        message: &Message<'_>,
        replayed: &PartitionProgress,
    ) -> Result<std::result::Result<Option<T>, DecodeError>> {
        let offset = message.offset();
        if replayed.rejected_for_now.binary_search(&offset).is_ok() {
            return Ok(Err(DecodeError::RejectedForNow(String::from(REJECTED_BEFORE))));
        }
        match self.decoder.decode(message) {
            Err(DecodeError::RejectedForNow(reason)) => {
                let place = format!("topic {}, partition {}, offset {offset}", message.topic(), message.partition());
                let error =
                    Error::of(ErrorKind::SchemaRefused, "a message that was decoded cannot be decoded any more");
                Err(error.at(place).because(reason).help("register its schema again, and start again"))
            }
            decoded => Ok(decoded),
        }
    }
}

/// Returns the event time that a message has by itself.
///
/// # Errors
/// Fails with the reason for rejecting the message.
fn time_of_message<T>(origin: &EventTimeOrigin<T>, message: &Message<'_>) -> std::result::Result<EventTime, String> {
    if let EventTimeOrigin::TimestampIfAny = origin {
        return Ok(message.timestamp().unwrap_or(EventTime::from_millis(0)));
    }
    let EventTimeOrigin::Header(name) = origin else {
        return message.timestamp().ok_or_else(|| String::from("the message has no timestamp for its event time"));
    };
    let value = message.header(name).ok_or_else(|| format!("the message has no header `{name}` for its event time"))?;
    let time = str::from_utf8(value).map_err(|why| why.to_string()).and_then(|text| text.trim().parse());
    time.map_err(|why| format!("its header `{name}` is no event time: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::durable::journal::JournaledRecord;

    #[test]
    fn an_event_time_of_a_message_is_its_timestamp_or_the_text_of_a_header() {
        let (timestamp, header) = (EventTimeOrigin::<u64>::Timestamp, EventTimeOrigin::<u64>::Header("at".into()));
        let mut record = JournaledRecord { timestamp: Some(1_000), ..JournaledRecord::default() };
        let time = |origin, record: &JournaledRecord| time_of_message(origin, &Message::of_record("t", 0, record));
        assert_eq!(time(&timestamp, &record), Ok(EventTime::from_millis(1_000)));
        let why = time(&header, &record).unwrap_err();
        assert_eq!(why, "the message has no header `at` for its event time");
        for (value, expected) in [
            (&b"1767323045678"[..], Some(1_767_323_045_678)),
            (b"2026-01-02T03:04:05.678Z", Some(1_767_323_045_678)),
            (b"2026-01-02T04:04:05.678+01:00", Some(1_767_323_045_678)),
            (b" -5\n", Some(-5)),
            (b"", None),
            (b"yesterday", None),
            (b"\xff", None),
        ] {
            record.headers = vec![("at".into(), Some(b"other".to_vec())), ("at".into(), Some(value.to_vec()))];
            match (time(&header, &record), expected) {
                (Ok(time), Some(expected)) => assert_eq!(time.millis(), expected),
                (Err(why), None) => assert!(why.starts_with("its header `at` is no event time: "), "{why}"),
                (found, _) => panic!("{}: {found:?}", value.escape_ascii()),
            }
        }
        record.headers[1].1 = None;
        assert!(time(&header, &record).is_err(), "a header that is null");
        record.timestamp = None;
        assert_eq!(time(&timestamp, &record).unwrap_err(), "the message has no timestamp for its event time");
    }
}
