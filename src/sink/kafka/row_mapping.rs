//! The way from a row to its message: value, key, headers, partition and timestamp.
//!
//! * A [`ChangeFormat`] is the form that changes of a collection are sent in.
//!
//! Invariant: a message is a function of its row, its difference and its epoch alone, so an epoch that is sent again
//! has the same messages.

use std::sync::Arc;

use super::encode::{Encode, add_diff};
use super::message::{MessageHeader, OutgoingMessage};
use super::net_change::{NetChange, net_changes};
use crate::error::{Error, ErrorKind, Result};
use crate::record::Record;
use crate::sink::SinkRows;
use crate::sink::encode::{line_count, retractions_first};
use crate::time::{Epoch, EventTime};

/// Function of a row that returns a part of its message.
pub(super) type MessagePart<D, P> = Arc<dyn Fn(&D) -> P + Send + Sync>;

/// Function that returns a row's partition; it is also given the number of partitions.
pub(super) type PartitionOf<D> = Arc<dyn Fn(&D, u32) -> u32 + Send + Sync>;

/// Form in which changes of a collection are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ChangeFormat {
    /// Every change, with its difference in a field `diff`.
    Differences,
    /// The new row of each key, or a tombstone.
    Upsert,
    /// The row of each key before and after, as Debezium writes them.
    Debezium,
}

/// The functions that make messages of rows.
pub(super) struct RowMapping<D> {
    pub(super) encoder: Arc<dyn Encode<D>>,
    pub(super) key: Option<MessagePart<D, Option<Vec<u8>>>>,
    pub(super) headers: Option<MessagePart<D, Vec<MessageHeader>>>,
    pub(super) partition: Option<PartitionOf<D>>,
    pub(super) timestamp: Option<MessagePart<D, EventTime>>,
    pub(super) is_tombstone: Option<MessagePart<D, bool>>,
    pub(super) format: ChangeFormat,
}

impl<D> Clone for RowMapping<D> {
    fn clone(&self) -> Self {
        RowMapping {
            encoder: Arc::clone(&self.encoder),
            key: self.key.clone(),
            headers: self.headers.clone(),
            partition: self.partition.clone(),
            timestamp: self.timestamp.clone(),
            is_tombstone: self.is_tombstone.clone(),
            format: self.format,
        }
    }
}

impl<D: Record> RowMapping<D> {
    /// Checks that rows of this kind can be sent.
    ///
    /// # Errors
    /// Fails if the encoder cannot encode anything, or if the form of changes does not go with it or with the rows.
    pub(super) fn check(&self, rows: SinkRows) -> Result<()> {
        let refused = |because: &str, help: &str| {
            Err(Error::usage("such rows cannot be written to a topic").because(because).help(help))
        };
        match (rows, self.format) {
            (SinkRows::Events, ChangeFormat::Upsert) => {
                return refused("events are never retracted, so no key has one newest row", "omit `upsert`");
            }
            (SinkRows::Changes, ChangeFormat::Upsert | ChangeFormat::Debezium) if self.key.is_none() => {
                return refused("a key's change is to be sent, and there is no key", "add `kafka::Sink::key_by`");
            }
            (SinkRows::Changes, ChangeFormat::Differences) if !self.encoder.is_json() => {
                return refused(
                    "a change has a difference, for which only JSON has a place",
                    "send the newest row of each key (kafka::Sink::upsert), or encode as JSON",
                );
            }
            (_, ChangeFormat::Debezium) if !self.encoder.is_json() => {
                return refused("`before` and `after` are JSON", "encode as JSON, or omit `debezium`");
            }
            (SinkRows::Changes, _) | (_, ChangeFormat::Debezium) if self.is_tombstone.is_some() => {
                return refused("a message without a value cannot be an event and a change", "omit `tombstone_if`");
            }
            _ => {}
        }
        self.encoder.check()
    }

    /// Calls `send` with the messages of an epoch.
    ///
    /// # Errors
    /// Fails if a row cannot be encoded, if the epoch cannot be sent in its form, or if `send` fails.
    pub(super) fn each_message(
        &self,
        (epoch, kind, partitions): (Epoch, SinkRows, usize),
        rows: &[(D, isize)],
        mut send: impl FnMut(&OutgoingMessage<'_>) -> Result<()>,
    ) -> Result<()> {
        let mut value = Vec::new();
        if let (SinkRows::Changes, Some(key_of), ChangeFormat::Upsert | ChangeFormat::Debezium) =
            (kind, &self.key, self.format)
        {
            for (key, change) in net_changes(rows, &**key_of)? {
                let has_value = self.write_net(&mut value, &change, epoch)?;
                let Some(row) = change.after.or(change.before) else { continue };
                self.send_row(row, Some(&key), has_value.then_some(&value), partitions, |message| send(message))?;
            }
            return Ok(());
        }
        for (row, diff) in retractions_first(rows) {
            let times = line_count(kind, *diff)?;
            value.clear();
            let has_value = !self.is_tombstone.as_ref().is_some_and(|is_tombstone| is_tombstone(row));
            match (kind, self.format) {
                _ if !has_value => {}
                (SinkRows::Events, ChangeFormat::Debezium) => {
                    self.write_net(&mut value, &NetChange { before: None, after: Some(row) }, epoch)?;
                }
                (SinkRows::Events, _) => self.encode(row, &mut value)?,
                (SinkRows::Changes, _) => {
                    self.encode(row, &mut value)?;
                    add_diff(&mut value, *diff).map_err(not_encoded)?;
                }
            }
            let key = self.key.as_ref().and_then(|key_of| key_of(row));
            self.send_row(row, key.as_deref(), has_value.then_some(&value), partitions, |message| {
                (0..times).try_for_each(|_| send(message))
            })?;
        }
        Ok(())
    }

    /// Writes the value of a key's change. Returns `false` if the message is a tombstone.
    fn write_net(&self, value: &mut Vec<u8>, change: &NetChange<'_, D>, epoch: Epoch) -> Result<bool> {
        value.clear();
        if self.format == ChangeFormat::Upsert {
            let Some(row) = change.after else { return Ok(false) };
            return self.encode(row, value).map(|()| true);
        }
        let operation = match (change.before, change.after) {
            (None, _) => "c",
            (Some(_), Some(_)) => "u",
            (Some(_), None) => "d",
        };
        for (name, row) in [("{\"before\":", change.before), (",\"after\":", change.after)] {
            value.extend_from_slice(name.as_bytes());
            match row {
                Some(row) => self.encode(row, value)?,
                None => value.extend_from_slice(b"null"),
            }
        }
        // The epoch is the time at which it began, and the same when the epoch is sent again.
        let end = format!(",\"op\":\"{operation}\",\"ts_ms\":{}}}", epoch.0);
        value.extend_from_slice(end.as_bytes());
        Ok(true)
    }

    fn encode(&self, row: &D, value: &mut Vec<u8>) -> Result<()> {
        self.encoder.encode(row, value).map_err(not_encoded)
    }

    /// Calls `send` with a row's message, which has this key.
    fn send_row(
        &self,
        row: &D,
        key: Option<&[u8]>,
        value: Option<&Vec<u8>>,
        partitions: usize,
        send: impl FnOnce(&OutgoingMessage<'_>) -> Result<()>,
    ) -> Result<()> {
        let headers = self.headers.as_ref().map(|headers| headers(row)).unwrap_or_default();
        let partition =
            self.partition.as_ref().map(|partition| partition_of(partition(row, partitions as u32), partitions));
        let at_ms = self.timestamp.as_ref().map(|timestamp| timestamp_of(timestamp(row)));
        send(&OutgoingMessage {
            topic: None,
            partition: partition.transpose()?,
            key,
            value: value.map(Vec::as_slice),
            headers: &headers,
            at_ms: at_ms.transpose()?,
        })
    }
}

fn not_encoded(why: String) -> Error {
    Error::of(ErrorKind::SinkFailed, "a row cannot be encoded as a message").because(why)
}

/// Returns the number of a partition that a row names.
fn partition_of(partition: u32, partitions: usize) -> Result<i32> {
    match i32::try_from(partition) {
        Ok(number) if (partition as usize) < partitions => Ok(number),
        _ => {
            Err(Error::of(ErrorKind::SinkFailed, format!("a row goes to partition {partition}, which does not exist"))
                .because(format!("the topic has {partitions} partitions"))
                .help("return a smaller number than the one that `kafka::Sink::partition` is given"))
        }
    }
}

/// Returns the timestamp of a message. The client library takes 0 for "now".
fn timestamp_of(time: EventTime) -> Result<i64> {
    match time.millis() {
        millis @ 1.. => Ok(millis),
        millis => Err(Error::of(ErrorKind::SinkFailed, format!("a message cannot have the timestamp {millis}"))
            .because("timestamps of messages are milliseconds after 1970")
            .help("return another time from `kafka::Sink::timestamp`")),
    }
}
