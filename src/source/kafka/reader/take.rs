//! Taking of records: of all partitions in turns, up to their ends, while none is too far ahead of the stream.
//!
//! Invariant: an offset below the tracker's next one is never taken again; the clock is read only to judge idleness.

use std::time::{Duration, Instant};

use rdkafka::consumer::Consumer;
use rdkafka::error::KafkaError;
use rdkafka::message::Message as _;

use super::super::consumer::{check_error, list};
use super::super::fetched_partition::PendingGap;
use super::super::identity::{fingerprint, offset_and_timestamp};
use super::super::message::Message;
use super::super::positions::stops_at;
use super::KafkaReader;
use crate::error::Result;
use crate::record::Record;
use crate::source::PartitionTracker;
use crate::time::Epoch;

/// Result of taking records from a partition.
enum TakeOutcome {
    Records(usize),
    /// Fewer records than asked for were there.
    Empty(usize),
}

impl<T: Record> KafkaReader<T> {
    /// Takes up to `budget` records of one partition.
    fn take(
        &mut self,
        at: usize,
        epoch: Epoch,
        budget: usize,
        intake: &mut PartitionTracker<T>,
    ) -> Result<TakeOutcome> {
        let Some(handle) = self.partitions[at].handle else { return Ok(TakeOutcome::Empty(0)) };
        if !self.pass_gap(at, handle, intake)? {
            return Ok(TakeOutcome::Empty(0));
        }
        let partition = &mut self.partitions[at];
        let mut taken = 0;
        let stop = partition.end;
        let is_for_later = |offset: u64| self.stops_at_end && offset >= stop;
        let topic = &self.target.topic;
        if let Some(held) = partition.held.take_if(|held| stops_at(self.stop_at, held.timestamp)) {
            intake.end_before(handle, held.offset);
        }
        if let Some(held) = partition.held.take_if(|held| !is_for_later(held.offset))
            && self.mapping.offer(epoch, handle, &Message::of_record(topic, partition.id, &held), None, intake)?
        {
            taken += 1;
            if !self.by_value {
                intake.set_fingerprint(handle, fingerprint(held.offset, held.timestamp, held.payload.as_deref()));
            }
            intake.keep_value(handle, || held);
        }
        let mut last = None;
        let all = loop {
            if taken >= budget {
                break TakeOutcome::Records(taken);
            }
            if let Some(until) = intake.until(handle).filter(|_| partition.at_end) {
                // Only transaction markers are left before it.
                intake.skip_to(handle, until);
                intake.mark_ended(handle);
            }
            partition.caught_up |= is_for_later(intake.next(handle));
            partition.caught_up |= self.stops_at_end && (partition.at_end || intake.ended(handle));
            if intake.ended(handle) || intake.is_paused(handle) || partition.caught_up {
                break TakeOutcome::Empty(taken);
            }
            match partition.queue.poll(Duration::ZERO) {
                None => break TakeOutcome::Empty(taken),
                Some(Ok(message)) => {
                    partition.at_end = false;
                    partition.quiet_since = None;
                    let fetched = Message::fetched(topic, partition.id, &message);
                    if is_for_later(fetched.offset()) {
                        // Only transaction markers are left before it. The record is not kept: this incarnation reads
                        // nothing more.
                        partition.caught_up = true;
                    } else if stops_at(self.stop_at, fetched.timestamp_millis()) {
                        intake.end_before(handle, fetched.offset());
                    } else if self.mapping.offer(epoch, handle, &fetched, None, intake)? {
                        taken += 1;
                        intake.keep_value(handle, || fetched.to_record());
                        last = Some(message);
                    }
                }
                Some(Err(KafkaError::PartitionEOF(_))) => partition.at_end = true,
                Some(Err(error)) => {
                    partition.quiet_since = None;
                    if Self::is_gap(self.gap, &error) {
                        partition.at_end = false;
                        partition.gap = Some(PendingGap { to: None, has_stopped: true });
                        break TakeOutcome::Empty(taken);
                    }
                    check_error(&self.target, partition.id, &error)?;
                }
            }
        };
        // Computed from the last record only, so that it costs little.
        if let Some(message) = last.filter(|_| !self.by_value) {
            let (offset, stamped) = offset_and_timestamp(&message);
            intake.set_fingerprint(handle, fingerprint(offset, stamped, message.payload()));
        }
        Ok(all)
    }

    /// Takes records of all partitions in turns. Returns `true` if the budget was used up.
    pub(super) fn take_in_turns(
        &mut self,
        epoch: Epoch,
        budget: usize,
        intake: &mut PartitionTracker<T>,
        now: Instant,
    ) -> Result<bool> {
        let count = self.partitions.len();
        let share = (budget / count.max(1)).max(1);
        let (mut left, mut more) = (budget, true);
        while more && left > 0 {
            more = false;
            for _ in 0..count {
                self.turn = (self.turn + 1) % count;
                let at = self.turn;
                let partition = &self.partitions[at];
                let Some(handle) = partition.unread_handle(intake) else { continue };
                if intake.is_paused(handle) {
                    self.partitions[at].reset_idleness();
                    continue;
                }
                match self.take(at, epoch, share.min(left), intake)? {
                    TakeOutcome::Records(records) => {
                        left -= records.min(left);
                        more = true;
                    }
                    TakeOutcome::Empty(records) => {
                        left -= records.min(left);
                        self.partitions[at].update_idleness(handle, now, self.idle_timeout, intake);
                    }
                }
                if intake.ended(handle) || self.partitions[at].caught_up {
                    self.stop_fetching(at);
                }
                if left == 0 {
                    break;
                }
            }
        }
        Ok(left == 0)
    }

    /// Stops fetching a partition that is read to its end. A failure is ignored: it costs only memory.
    pub(super) fn stop_fetching(&self, at: usize) {
        if let Ok(list) = list(&self.target.topic, &[(self.partitions[at].id, 0)]) {
            let _ = self.consumer.pause(&list);
        }
    }
}
