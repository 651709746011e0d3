//! Replay of a partition's records of an epoch of the journal: fetched again, or by value.
//!
//! Invariant: exactly the records before the journal's next offset are taken. A fetched record at or past it is held for
//! a later epoch.

use std::time::Duration;

use rdkafka::error::KafkaError;
use rdkafka::message::Message;
use serde::de::DeserializeOwned;

use super::super::consumer::check_error;
use super::super::fetched_partition::HeldMessage;
use super::super::identity::{check_end, fingerprint, offset_and_timestamp, wrong_record};
use super::super::offer::offer;
use super::KafkaReader;
use crate::durable::journal::{JournaledRecord, PartitionProgress};
use crate::error::Result;
use crate::record::Record;
use crate::source::{PartitionHandle, PartitionTracker};
use crate::time::Epoch;

impl<T: Record> KafkaReader<T> {
    /// Replays one partition's records of an epoch of the journal. Returns `true` once all of them are taken.
    pub(super) fn replay_partition(
        &mut self,
        epoch: Epoch,
        at: usize,
        bound: &PartitionProgress,
        left: &mut usize,
        intake: &mut PartitionTracker<T>,
    ) -> Result<bool> {
        let handle = match self.partitions[at].handle {
            Some(handle) => handle,
            None => {
                let low = self.partitions[at].low;
                let from = bound.start_offset.unwrap_or(low);
                if bound.values.is_none() {
                    self.check_start(&self.partitions[at], from)?;
                }
                let handle = intake.track(epoch, bound.partition, from, bound.end_offset);
                if self.by_value {
                    intake.keep_values(handle);
                }
                self.partitions[at].handle = Some(handle);
                // Records that are replayed by value are fetched again, but not taken.
                self.assign(&[(bound.partition, from.max(low))])?;
                handle
            }
        };
        check_end(&self.target, bound, self.partitions[at].end)?;
        if let Some(values) = &bound.values {
            return self.replay_values(epoch, (at, handle), bound, values, left, intake);
        }
        while intake.next(handle) < bound.next_offset {
            let feed = &mut self.partitions[at];
            if feed.at_end && feed.held.is_none() {
                // All committed records were delivered: only transaction markers are left.
                intake.skip_to(handle, bound.next_offset);
                break;
            }
            if *left == 0 {
                return Ok(false);
            }
            if feed.held.is_none() {
                match feed.queue.poll(Duration::ZERO) {
                    None => return Ok(false),
                    Some(Ok(message)) => {
                        feed.at_end = false;
                        let (offset, stamped) = offset_and_timestamp(&message);
                        if offset < bound.next_offset {
                            let payload = message.payload();
                            *left -=
                                usize::from(offer_replayed(epoch, handle, bound, (offset, stamped, payload), intake)?);
                            continue;
                        }
                        let payload = message.payload().map(<[u8]>::to_vec);
                        feed.held = Some(HeldMessage { offset, stamped, payload });
                    }
                    Some(Err(KafkaError::PartitionEOF(_))) => feed.at_end = true,
                    Some(Err(error)) => {
                        feed.quiet_since = None;
                        check_error(&self.target, feed.id, &error)?;
                    }
                }
                continue;
            }
            match feed.held.take_if(|held| held.offset < bound.next_offset) {
                Some(HeldMessage { offset, stamped, payload }) => {
                    *left -= usize::from(offer_replayed(
                        epoch,
                        handle,
                        bound,
                        (offset, stamped, payload.as_deref()),
                        intake,
                    )?);
                }
                None => intake.skip_to(handle, bound.next_offset),
            }
        }
        if let Some(check) = bound.check.filter(|check| intake.fingerprint(handle) != Some(*check)) {
            return Err(wrong_record(&self.target, bound.partition, check));
        }
        intake.replay_flags(handle, bound);
        if intake.ended(handle) {
            self.stop_fetching(at);
        }
        Ok(true)
    }

    /// Replays one partition's records of an epoch of the journal that has them by value. Returns `true` once all of
    /// them are taken.
    fn replay_values(
        &mut self,
        epoch: Epoch,
        (at, handle): (usize, PartitionHandle),
        bound: &PartitionProgress,
        values: &[JournaledRecord],
        left: &mut usize,
        intake: &mut PartitionTracker<T>,
    ) -> Result<bool> {
        let first = values.partition_point(|value| value.offset < intake.next(handle));
        for JournaledRecord { offset, timestamp, payload } in &values[first..] {
            if *left == 0 {
                return Ok(false);
            }
            *left -= usize::from(offer(epoch, handle, *offset, *timestamp, payload.as_deref(), intake)?);
        }
        intake.skip_to(handle, bound.next_offset);
        intake.replay_flags(handle, bound);
        if intake.ended(handle) {
            self.stop_fetching(at);
        }
        Ok(true)
    }
}

/// Offers a record of a replayed epoch to the intake. Returns `true` if it was taken.
fn offer_replayed<T: Record + DeserializeOwned>(
    epoch: Epoch,
    handle: PartitionHandle,
    bound: &PartitionProgress,
    (offset, stamped, payload): (u64, Option<i64>, Option<&[u8]>),
    intake: &mut PartitionTracker<T>,
) -> Result<bool> {
    let taken = offer(epoch, handle, offset, stamped, payload, intake)?;
    if taken && bound.check.is_some_and(|check| check.at == offset) {
        intake.set_fingerprint(handle, fingerprint(offset, stamped, payload));
    }
    Ok(taken)
}
