//! Readers of several topics that are read as one source by a worker.
//!
//! Each topic has a reader of its own, which knows its partitions by their numbers in the topic; the source knows them by
//! the numbers that `partition_numbers` describes.
//!
//! Invariant: an epoch is closed once for all topics, after each of them has confirmed its ends.

use std::time::Instant;

use super::reader::KafkaReader;
use crate::durable::journal::PartitionProgress;
use crate::error::Result;
use crate::record::Record;
use crate::source::{EpochInput, InitialProgress, PartitionNote, PartitionTracker, Polled, Reader, RestoredPartition};
use crate::time::Epoch;

/// The readers of a worker's topics.
pub(super) struct ReaderGroup<T> {
    readers: Vec<KafkaReader<T>>,
    /// Reader that is polled first.
    turn: usize,
    /// Epoch that some topic has not confirmed yet.
    waiting: Option<Epoch>,
}

impl<T: Record> ReaderGroup<T> {
    pub(super) fn new(readers: Vec<KafkaReader<T>>) -> Self {
        ReaderGroup { readers, turn: 0, waiting: None }
    }

    /// Adds the reader of another topic.
    pub(super) fn add(&mut self, reader: KafkaReader<T>) {
        self.readers.push(reader);
    }

    /// Returns the readers, in the order in which they were added.
    pub(super) fn readers(&self) -> &[KafkaReader<T>] {
        &self.readers
    }

    /// Returns the epoch that cannot be closed yet, and serves the clients meanwhile; `None` if there is none.
    pub(super) fn waits(&mut self) -> Result<Option<Epoch>> {
        if self.waiting.is_some() {
            let now = Instant::now();
            self.readers.iter_mut().try_for_each(|reader| reader.wait(now))?;
        }
        Ok(self.waiting)
    }

    /// Restores each topic's partitions of a snapshot.
    pub(super) fn resume(
        &mut self,
        epoch: Epoch,
        places: &[RestoredPartition],
        intake: &mut PartitionTracker<T>,
    ) -> Result<()> {
        for reader in &mut self.readers {
            let own = places.iter().filter_map(|place| {
                let progress = reader.own_progress(std::slice::from_ref(&place.progress)).pop()?;
                Some(RestoredPartition { progress, ..place.clone() })
            });
            let own: Vec<_> = own.collect();
            reader.resume_topic(epoch, &own, !places.is_empty(), intake)?;
        }
        Ok(())
    }

    /// Takes records of all topics in turns, about `budget` of them.
    pub(super) fn poll(&mut self, epoch: Epoch, budget: usize, intake: &mut PartitionTracker<T>) -> Result<Polled> {
        let count = self.readers.len();
        let share = budget.div_ceil(count.max(1));
        let mut busy = false;
        for at in 0..count {
            busy |= self.readers[(self.turn + at) % count].poll(epoch, share, intake)?.busy;
        }
        self.turn = (self.turn + 1) % count.max(1);
        Ok(Polled { epoch, busy })
    }

    /// Closes an epoch for all topics; `None` while one of them has not confirmed its ends.
    pub(super) fn close_epoch(&mut self, epoch: Epoch, intake: &mut PartitionTracker<T>) -> Result<Option<EpochInput>> {
        let mut is_ready = true;
        for reader in &mut self.readers {
            is_ready &= reader.is_ready_to_close(epoch, intake)?;
        }
        if !is_ready {
            self.waiting = Some(epoch);
            return Ok(None);
        }
        self.waiting = None;
        self.readers.iter_mut().try_for_each(|reader| reader.find_added(epoch, intake))?;
        let input = intake.close_epoch(epoch);
        for reader in &mut self.readers {
            reader.note_unpublished(epoch, &reader.own_progress(&input.partitions));
        }
        Ok(Some(input))
    }

    /// Replays an epoch of the journal. Returns `true` once all of its records are taken.
    pub(super) fn replay(
        &mut self,
        epoch: Epoch,
        bounds: &[PartitionProgress],
        intake: &mut PartitionTracker<T>,
    ) -> Result<bool> {
        let mut done = true;
        for reader in &mut self.readers {
            done &= reader.replay_topic(epoch, &reader.own_progress(bounds), !bounds.is_empty(), intake)?;
        }
        Ok(done)
    }

    /// `true` if no topic has anything more to read in this incarnation.
    pub(super) fn caught_up(&self) -> bool {
        self.readers.iter().all(KafkaReader::caught_up)
    }

    /// Returns the progress of all topics towards the ends that they had at the start.
    pub(super) fn initial_progress(&self, intake: &PartitionTracker<T>) -> InitialProgress {
        let mut all = InitialProgress { is_done: true, partitions: Vec::new() };
        for reader in &self.readers {
            let progress = reader.initial_progress(intake);
            all.is_done &= progress.is_done;
            all.partitions.extend(progress.partitions);
        }
        all
    }

    /// Commits the offsets of all topics that follow an epoch which is published.
    pub(super) fn notify_published(&mut self, epoch: Epoch) {
        self.readers.iter_mut().for_each(|reader| reader.notify_published(epoch));
    }

    /// Returns the notes on the partitions of all topics.
    pub(super) fn partition_notes(&self) -> Vec<PartitionNote> {
        self.readers.iter().flat_map(KafkaReader::partition_notes).collect()
    }
}
