//! Restoring of partitions at the offsets of a snapshot.
//!
//! A topic is **verified** by the last record that was taken of each partition: its timestamp and value (see
//! `identity`). One that was deleted and created again under the same name has another record there, or none.
//!
//! Invariant: reading goes on only where no record that the state still needs is gone.

use std::time::{Duration, Instant};

use rdkafka::error::KafkaError;

use super::super::consumer::{OFFSETS_TIMEOUT, check_error};
use super::super::fetched_partition::{FetchedPartition, PendingGap};
use super::super::identity::{check_end, has_fingerprint, wrong_record};
use super::super::positions::Gap;
use super::KafkaReader;
use crate::durable::journal::{ContentCheck, PartitionProgress};
use crate::error::{Error, ErrorKind, Result};
use crate::record::Record;
use crate::source::{PartitionTracker, RestoredPartition};
use crate::time::Epoch;

impl<T: Record> KafkaReader<T> {
    /// Restores the partitions of a snapshot that this worker reads, and verifies each.
    ///
    /// `has_state` is `true` if the snapshot has partitions of the source, perhaps of other topics only.
    pub(in super::super) fn resume_topic(
        &mut self,
        epoch: Epoch,
        places: &[RestoredPartition],
        has_state: bool,
        intake: &mut PartitionTracker<T>,
    ) -> Result<()> {
        let (mut assigned, mut checks) = (Vec::new(), Vec::new());
        self.has_state |= has_state;
        if has_state {
            intake.begin(epoch);
        }
        for place in places {
            let bound = &place.progress;
            let Some(at) = self.partition_index(bound.partition)? else { continue };
            check_end(&self.target, bound, self.partitions[at].end)?;
            let progress = PartitionProgress { partition: self.numbers.give(bound.partition), ..bound.clone() };
            let handle = intake.resume(epoch, &RestoredPartition { progress, ..place.clone() });
            self.describe_partition(handle, bound.partition, intake);
            self.partitions[at].handle = Some(handle);
            // Retention may have removed the record that identifies the topic and, of an ended partition, all that
            // follows.
            let low = self.partitions[at].low;
            let check = bound.check.filter(|check| !self.by_value && (low..bound.next_offset).contains(&check.at));
            checks.extend(check.map(|check| (at, check)));
            let mut from = bound.next_offset;
            if !intake.ended(handle) && from < low && self.gap == Gap::Skip {
                // Epochs of the journal come first; without such, reading goes on after the gap.
                self.partitions[at].gap = Some(PendingGap { to: Some(low), has_stopped: false });
                from = low;
            } else if !intake.ended(handle) {
                self.check_start(&self.partitions[at], from)?;
            }
            if check.is_some() || !intake.ended(handle) {
                assigned.push((bound.partition, check.map_or(from, |check| check.at)));
            }
        }
        self.assign(&assigned)?;
        for (at, check) in checks {
            self.verify_last_record(at, check)?;
            if self.partitions[at].handle.is_some_and(|handle| intake.ended(handle)) {
                self.stop_fetching(at);
            }
        }
        if self.has_state && (self.until_end || self.stop_at.is_some()) {
            intake.all_found();
        }
        Ok(())
    }

    /// Fails if retention has removed the records from an offset on.
    pub(super) fn check_start(&self, partition: &FetchedPartition, from: u64) -> Result<()> {
        if from >= partition.low {
            return Ok(());
        }
        let place = format!("{}, partition {}, offset {from}", self.target.describe(), partition.id);
        let error = Error::of(ErrorKind::SourceChanged, "records that the state still needs are gone").at(place);
        let error = error.because(format!("the topic's retention has removed all before offset {}", partition.low));
        let help = match self.gap {
            Gap::Fail => {
                "start with a new --state, or keep records longer; --on-gap skip goes on after those that are gone"
            }
            Gap::Skip => {
                "they belong to epochs that are to be replayed: start with a new --state, or keep records longer"
            }
        };
        Err(error.help(help))
    }

    /// Verifies a partition by reading once more the last record that the state has taken.
    fn verify_last_record(&mut self, at: usize, expected: ContentCheck) -> Result<()> {
        let begun = Instant::now();
        loop {
            self.serve(Instant::now())?;
            let partition = &self.partitions[at];
            match partition.queue.poll(Duration::from_millis(20)) {
                None if begun.elapsed() > OFFSETS_TIMEOUT => {
                    let error = Error::of(ErrorKind::SourceUnreachable, "an existing record does not arrive");
                    let place =
                        format!("{}, partition {}, offset {}", self.target.describe(), partition.id, expected.at);
                    return Err(error.at(place).help("check the brokers"));
                }
                None => {}
                Some(Ok(message)) => {
                    let is_as_it_was = has_fingerprint(&message, expected);
                    return if is_as_it_was { Ok(()) } else { Err(wrong_record(&self.target, partition.id, expected)) };
                }
                Some(Err(KafkaError::PartitionEOF(_))) => {
                    return Err(wrong_record(&self.target, partition.id, expected));
                }
                Some(Err(error)) => check_error(&self.target, partition.id, &error)?,
            }
        }
    }
}
