//! Gaps: records that the brokers have removed though they were still to be read, in a job that goes on after them.
//!
//! A gap is passed at the beginning of an epoch's input, so that a replay knows where it began; the journal names the
//! offset after it. An epoch of the journal whose records are gone cannot be replayed, and is refused as without gaps.
//!
//! Invariant: a gap is passed only where the brokers have said that nothing before its end is left.

use std::time::Duration;

use rdkafka::consumer::Consumer;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use super::super::consumer::{check_error, list, unreadable};
use super::super::fetched_partition::PendingGap;
use super::super::positions::Gap;
use super::KafkaReader;
use crate::durable::journal::PartitionProgress;
use crate::error::Result;
use crate::record::Record;
use crate::source::{PartitionHandle, PartitionTracker};

/// Longest wait for the brokers to say how far a gap reaches, before it is asked for again.
const GAP_TIMEOUT: Duration = Duration::from_secs(1);

impl<T: Record> KafkaReader<T> {
    /// `true` if an error that came instead of a record says that records are gone, and the job goes on after them.
    pub(super) fn is_gap(gap: Gap, error: &KafkaError) -> bool {
        let code = error.rdkafka_error_code();
        let is_out_of_range =
            matches!(code, Some(RDKafkaErrorCode::OffsetOutOfRange | RDKafkaErrorCode::AutoOffsetReset));
        gap == Gap::Skip && is_out_of_range
    }

    /// Asks the brokers once how far a gap reaches, and for the end of the partition. `None` if they do not answer.
    ///
    /// # Errors
    /// Fails if the brokers refuse.
    fn ask_gap(&self, id: u32) -> Result<Option<(u64, u64)>> {
        match self.consumer.fetch_watermarks(&self.target.topic, id as i32, GAP_TIMEOUT) {
            // Without an answer of the broker, the library returns −1.
            Ok((low, end)) => Ok(u64::try_from(low).ok().zip(u64::try_from(end).ok())),
            Err(error) => check_error(&self.target, id, &error).map(|()| None),
        }
    }

    /// Passes the partition's gap, if there is one. Returns `false` if that has to wait: for an answer of the brokers, or
    /// for the next epoch.
    ///
    /// # Errors
    /// Fails if the partition ends before the next record to take: it is not the one that was read.
    pub(super) fn pass_gap(
        &mut self,
        at: usize,
        handle: PartitionHandle,
        intake: &mut PartitionTracker<T>,
    ) -> Result<bool> {
        let id = self.partitions[at].id;
        let Some(PendingGap { to, has_stopped }) = self.partitions[at].gap else { return Ok(true) };
        let next = intake.next(handle);
        let low = match to {
            Some(low) => low,
            None => {
                let Some((low, end)) = self.ask_gap(id)? else { return Ok(false) };
                if end < next {
                    let error = KafkaError::MessageConsumption(RDKafkaErrorCode::OffsetOutOfRange);
                    return check_error(&self.target, id, &error).map(|()| false);
                }
                self.partitions[at].gap = Some(PendingGap { to: Some(low), has_stopped });
                low
            }
        };
        // Records from the end on were not to be read.
        let to = intake.until(handle).map_or(low, |until| low.min(until));
        if to > next {
            if !intake.skip_expired(handle, to) {
                return Ok(false);
            }
            tracing::warn!(
                "{}, partition {id}: {} offsets from {next} on were skipped, because their records had expired before \
                 they were read; reading goes on at offset {to}",
                self.target.describe(),
                to - next
            );
        }
        self.partitions[at].gap = None;
        if has_stopped && !intake.ended(handle) {
            let stopped = list(&self.target.topic, &[(id, 0)]);
            let stopped = stopped.and_then(|list| self.consumer.incremental_unassign(&list));
            stopped.map_err(|error| unreadable(&self.target, error))?;
            self.assign(&[(id, intake.next(handle))])?;
        }
        Ok(true)
    }

    /// Passes a gap that an epoch of the journal names, of a partition that was found before.
    pub(super) fn replay_gap(
        &self,
        at: usize,
        handle: PartitionHandle,
        bound: &PartitionProgress,
        intake: &mut PartitionTracker<T>,
    ) -> Result<()> {
        if let Some(to) = bound.start_offset.filter(|to| *to > intake.next(handle)) {
            intake.skip_expired(handle, to);
        }
        let next = intake.next(handle);
        if bound.values.is_none() && next < bound.next_offset {
            // With `Gap::Fail` this was checked when the partition was restored.
            self.check_start(&self.partitions[at], next)?;
        }
        Ok(())
    }
}
