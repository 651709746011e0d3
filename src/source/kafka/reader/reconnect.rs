//! Another client in the place of one that hears nothing any more: see `replacement`.
//!
//! Invariant: with another client each partition goes on at the first offset that was not taken, on the same topic.

use std::sync::Arc;
use std::time::Instant;

use rdkafka::consumer::{BaseConsumer, Consumer};

use super::super::fetched_partition::FetchedPartition;
use super::super::identity::recreated;
use super::super::replacement::{ClientReplacement, LOST_AFTER, discard};
use super::super::statistics::{ConsumerEvents, TopicStatus};
use super::{KafkaReader, start_watch};
use crate::error::Result;
use crate::record::Record;
use crate::source::PartitionTracker;

impl<T: Record> KafkaReader<T> {
    /// Looks for another client if this one has been connected to no broker of its partitions for long, and goes on with
    /// it once it is found. A client whose queues are full is connected and hears nothing, and is not lost.
    ///
    /// # Errors
    /// Fails if the topic is another one, or if the client library fails.
    pub(super) fn replace_lost_client(&mut self, now: Instant, intake: &PartitionTracker<T>) -> Result<()> {
        let passed = |since: Instant| now.saturating_duration_since(since) >= LOST_AFTER;
        let mut read = self.partitions.iter().filter(|partition| partition.unread_handle(intake).is_some());
        let is_lost = passed(self.client_since)
            && read.clone().next().is_some()
            && read.clone().all(|partition| partition.lost_since.is_some_and(passed));
        if !is_lost {
            self.replacement = None;
            return Ok(());
        }
        let Some(replacement) = &self.replacement else {
            let Some(first) = read.next() else { return Ok(()) };
            let place = (&self.target, &*self.place.job);
            self.replacement = Some(ClientReplacement::start(place, self.limits, first.id)?);
            return Ok(());
        };
        match replacement.take() {
            Some(client) => self.go_on_with(client, now, intake),
            None => Ok(()),
        }
    }

    /// Reads with another client from where this one has come to.
    fn go_on_with(
        &mut self,
        client: Arc<BaseConsumer<ConsumerEvents>>,
        now: Instant,
        intake: &PartitionTracker<T>,
    ) -> Result<()> {
        self.replacement = None;
        if let (Some(before), Some(after)) = (&self.id, client.context().id())
            && *before != after
        {
            return Err(recreated(&self.target));
        }
        tracing::info!("{} is read by another client: the brokers answer it", self.target.describe());
        let (mut assigned, mut queues) = (Vec::new(), Vec::new());
        for partition in &mut self.partitions {
            let queue = FetchedPartition::open_queue(&client, &self.target, partition.id)?;
            queues.push(std::mem::replace(&mut partition.queue, queue));
            (partition.at_end, partition.silent_since, partition.lost_since) = (false, None, None);
            partition.reset_idleness();
            let Some(handle) = partition.unread_handle(intake) else { continue };
            let held = partition.held.as_ref().map_or(0, |held| held.offset + 1);
            assigned.push((partition.id, intake.next(handle).max(held)));
        }
        let known = self.partitions.iter().map(|partition| partition.id).collect();
        let watch = start_watch(&client, &self.target, &self.numbers, &self.place, known)?;
        let former = (std::mem::replace(&mut self.watch, watch), std::mem::replace(&mut self.consumer, client), queues);
        discard(former);
        self.confirmation.asked = None;
        (self.status, self.client_since) = (TopicStatus::default(), now);
        self.assign(&assigned)
    }
}
