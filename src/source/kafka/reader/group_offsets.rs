//! Offsets that are committed to the consumer group, for lag monitors.
//!
//! Invariant: an offset is committed only after all results of the records before it are published. It is never read
//! back.

use std::collections::BTreeMap;

use rdkafka::consumer::{CommitMode, Consumer};

use super::super::consumer::list;
use super::KafkaReader;
use crate::durable::journal::PartitionProgress;
use crate::record::Record;
use crate::time::Epoch;

/// Largest number of unpublished epochs whose offsets are kept for lag monitors.
const MAX_UNPUBLISHED: usize = 10_000;

impl<T: Record> KafkaReader<T> {
    /// Notes the offsets that follow an epoch which is committed, but not published yet.
    pub(in super::super) fn note_unpublished(&mut self, epoch: Epoch, bounds: &[PartitionProgress]) {
        if bounds.is_empty() {
            return;
        }
        let offsets = bounds.iter().map(|bound| (bound.partition, bound.next_offset)).collect();
        self.unpublished.push_back((epoch, offsets));
        if self.unpublished.len() > MAX_UNPUBLISHED {
            self.merge_oldest();
        }
    }

    /// Commits the offsets that follow an epoch which is published.
    pub(super) fn commit_published(&mut self, epoch: Epoch) {
        let mut latest = BTreeMap::new();
        while let Some((_, offsets)) = self.unpublished.pop_front_if(|(bound, _)| *bound <= epoch) {
            latest.extend(offsets);
        }
        if !self.consumer.context().has_group() {
            return;
        }
        // When everything that was taken is published, only transaction markers are left; they would count as lag for
        // ever.
        if self.unpublished.is_empty() {
            for partition in self.partitions.iter().filter(|partition| partition.at_end) {
                if let Some(position) = partition.position.filter(|position| *position > partition.committed) {
                    let offset = latest.entry(partition.id).or_insert(position);
                    *offset = position.max(*offset);
                }
            }
        }
        if latest.is_empty() {
            return;
        }
        let offsets: Vec<(u32, u64)> = latest.into_iter().collect();
        for (id, offset) in &offsets {
            if let Some(partition) = self.partitions.iter_mut().find(|partition| partition.id == *id) {
                partition.committed = *offset;
            }
        }
        // For lag monitors only; a failure is ignored, as the next call commits later offsets.
        let committed = list(&self.target.topic, &offsets);
        let _ = committed.and_then(|offsets| self.consumer.commit(&offsets, CommitMode::Async));
    }

    /// Merges the offsets of the oldest unpublished epoch into the next one.
    fn merge_oldest(&mut self) {
        let oldest = self.unpublished.pop_front();
        if let (Some((_, offsets)), Some((_, next))) = (oldest, self.unpublished.front_mut()) {
            for (partition, offset) in offsets {
                if !next.iter().any(|(named, _)| *named == partition) {
                    next.push((partition, offset));
                }
            }
        }
    }
}
