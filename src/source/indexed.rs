//! The reader of sources whose records are found by partition and offset at any time: records in memory, and generated
//! ones. The offset of a record is its index in its partition; a partition ends after its last record.

use std::ops::Range;

use crate::durable::journal::PartitionProgress;
use crate::error::{Error, ErrorKind, Result};
use crate::record::Record;
use crate::source::{PartitionHandle, PartitionTracker, Polled, Reader, RestoredPartition, WorkerContext};
use crate::time::Epoch;

/// Partitions of records that are found by their offset.
pub(super) trait IndexedRecords<D> {
    /// Returns the number of partitions.
    fn partitions(&self) -> u32;

    /// Returns the number of records of a partition; 0 if it does not exist.
    fn length(&self, partition: u32) -> u64;

    /// Hands the records of a partition at these offsets to its tracker.
    ///
    /// # Errors
    /// Fails if a record is rejected and rejects fail the job.
    fn accept(
        &self,
        epoch: Epoch,
        partition: (u32, PartitionHandle),
        offsets: Range<u64>,
        intake: &mut PartitionTracker<D>,
    ) -> Result<()>;
}

/// Describes what records have beyond an ended state; `None` if they have nothing more.
pub(super) fn new_data<D>(records: &impl IndexedRecords<D>, bounds: &[PartitionProgress]) -> Option<String> {
    (0..records.partitions()).find_map(|id| {
        let bound = bounds.iter().find(|bound| bound.partition == id);
        let end = bound.map_or(0, |bound| bound.end_offset.unwrap_or(bound.next_offset));
        (records.length(id) > end).then(|| format!("partition {id} has records from offset {end} on"))
    })
}

/// Refuses a state that has read, or is to read, past the `length` of a partition.
fn check_there(source: &str, length: u64, bound: &PartitionProgress) -> Result<()> {
    let end = bound.next_offset.max(bound.end_offset.unwrap_or(0));
    if length >= end {
        return Ok(());
    }
    let place = format!("source `{source}`, partition {}, offset {end}", bound.partition);
    let error = Error::of(ErrorKind::SourceChanged, "the state names records that are not there").at(place);
    Err(error.because(format!("there are {length}")).help("restore them, or start without the old state"))
}

/// Reads one worker's partitions.
pub(super) struct IndexedReader<R> {
    records: R,
    /// This worker's partitions with their handles in the intake; `None` until they are found.
    assigned: Vec<(u32, Option<PartitionHandle>)>,
    turn: usize,
}

impl<R> IndexedReader<R> {
    /// Creates the reader of one worker.
    pub(super) fn new<D>(records: R, at: &WorkerContext) -> Self
    where
        R: IndexedRecords<D>,
    {
        let assigned = (0..records.partitions()).filter(|id| at.owns(*id)).map(|id| (id, None)).collect();
        IndexedReader { records, assigned, turn: 0 }
    }
}

impl<D: Record, R: IndexedRecords<D>> Reader<D> for IndexedReader<R> {
    fn resume(&mut self, epoch: Epoch, places: &[RestoredPartition], intake: &mut PartitionTracker<D>) -> Result<()> {
        for place in places {
            intake.begin(epoch);
            check_there(intake.name(), self.records.length(place.progress.partition), &place.progress)?;
        }
        for (id, slot) in &mut self.assigned {
            let Some(place) = places.iter().find(|place| place.progress.partition == *id) else { continue };
            *slot = Some(intake.resume(epoch, place));
        }
        Ok(())
    }

    fn poll(&mut self, epoch: Epoch, budget: usize, intake: &mut PartitionTracker<D>) -> Result<Polled> {
        intake.all_found();
        for (id, slot) in &mut self.assigned {
            let end = self.records.length(*id);
            slot.get_or_insert_with(|| intake.track(epoch, *id, 0, Some(end)));
        }
        // Partitions take turns, so that none runs ahead of the others.
        for _ in 0..self.assigned.len() {
            self.turn = (self.turn + 1) % self.assigned.len();
            let (id, slot) = self.assigned[self.turn];
            let Some(slot) = slot.filter(|slot| !intake.ended(*slot) && !intake.is_paused(*slot)) else { continue };
            let (from, end) = (intake.next(slot), intake.until(slot).unwrap_or_else(|| self.records.length(id)));
            self.records.accept(epoch, (id, slot), from..end.min(from + budget as u64), intake)?;
            return Ok(Polled { epoch, busy: true });
        }
        Ok(Polled { epoch, busy: false })
    }

    fn replay(&mut self, epoch: Epoch, bounds: &[PartitionProgress], intake: &mut PartitionTracker<D>) -> Result<bool> {
        intake.all_found();
        intake.begin(epoch);
        for bound in bounds {
            let id = bound.partition;
            check_there(intake.name(), self.records.length(id), bound)?;
            let Some(at) = self.assigned.iter().position(|(assigned, _)| *assigned == id) else { continue };
            let slot = match self.assigned[at].1 {
                Some(slot) => slot,
                None => intake.track(epoch, id, bound.start_offset.unwrap_or(0), bound.end_offset),
            };
            self.assigned[at].1 = Some(slot);
            self.records.accept(epoch, (id, slot), intake.next(slot)..bound.next_offset, intake)?;
            intake.replay_flags(slot, bound);
        }
        Ok(true)
    }
}
