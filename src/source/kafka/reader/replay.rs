//! Replay of a partition's records of an epoch of the journal: fetched again, or by value.
//!
//! Invariant: exactly the records before the journal's next offset are taken. A fetched record at or past it is held for
//! a later epoch.

use std::time::Duration;

use rdkafka::error::KafkaError;

use super::super::consumer::check_error;
use super::super::identity::{check_end, fingerprint, wrong_record};
use super::super::mapping::MapMessages;
use super::super::message::Message;
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
                let handle = intake.track(epoch, self.numbers.give(bound.partition), from, bound.end_offset);
                self.describe_partition(handle, bound.partition, intake);
                self.partitions[at].handle = Some(handle);
                // Records that are replayed by value are fetched again, but not taken.
                self.assign(&[(bound.partition, from.max(low))])?;
                handle
            }
        };
        check_end(&self.target, bound, self.partitions[at].end)?;
        self.replay_gap(at, handle, bound, intake)?;
        if let Some(values) = &bound.values {
            return self.replay_values(epoch, (at, handle), bound, values, left, intake);
        }
        while intake.next(handle) < bound.next_offset {
            let partition = &mut self.partitions[at];
            if partition.at_end && partition.held.is_none() {
                // All committed records were delivered: only transaction markers are left.
                intake.skip_to(handle, bound.next_offset);
                break;
            }
            if *left == 0 {
                return Ok(false);
            }
            if partition.held.is_none() {
                match partition.queue.poll(Duration::ZERO) {
                    None => return Ok(false),
                    Some(Ok(message)) => {
                        partition.at_end = false;
                        let fetched = Message::fetched(&self.target.topic, partition.id, &message);
                        if fetched.offset() < bound.next_offset {
                            let taken = offer_replayed(&*self.mapping, epoch, handle, bound, &fetched, intake)?;
                            *left -= usize::from(taken);
                            continue;
                        }
                        partition.held = Some(fetched.to_record());
                    }
                    Some(Err(KafkaError::PartitionEOF(_))) => partition.at_end = true,
                    Some(Err(error)) => {
                        partition.quiet_since = None;
                        check_error(&self.target, partition.id, &error)?;
                    }
                }
                continue;
            }
            match partition.held.take_if(|held| held.offset < bound.next_offset) {
                Some(held) => {
                    let held = Message::of_record(&self.target.topic, partition.id, &held);
                    *left -= usize::from(offer_replayed(&*self.mapping, epoch, handle, bound, &held, intake)?);
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
        for value in &values[first..] {
            if *left == 0 {
                return Ok(false);
            }
            let kept = Message::of_record(&self.target.topic, bound.partition, value);
            *left -= usize::from(self.mapping.offer(epoch, handle, &kept, Some(bound), intake)?);
        }
        intake.skip_to(handle, bound.next_offset);
        intake.replay_flags(handle, bound);
        if intake.ended(handle) {
            self.stop_fetching(at);
        }
        Ok(true)
    }
}

/// Offers a message of a replayed epoch to the intake. Returns `true` if it was taken.
fn offer_replayed<T: Record>(
    mapping: &dyn MapMessages<T>,
    epoch: Epoch,
    handle: PartitionHandle,
    bound: &PartitionProgress,
    message: &Message<'_>,
    intake: &mut PartitionTracker<T>,
) -> Result<bool> {
    let taken = mapping.offer(epoch, handle, message, Some(bound), intake)?;
    let offset = message.offset();
    if taken && bound.check.is_some_and(|check| check.at == offset) {
        intake.set_fingerprint(handle, fingerprint(offset, message.timestamp_millis(), message.value()));
    }
    Ok(taken)
}
