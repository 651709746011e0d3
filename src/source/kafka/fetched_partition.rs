//! A partition with a queue of its own, and whether it is idle.
//!
//! * The client library fills the queue up to a limit. A paused partition is simply not taken from: none of its records
//!   is lost or fetched twice.
//! * A record that was taken from the queue but belongs to a later epoch of the journal is **held**.
//! * A partition is **quiet** while it is at its end, its broker answers and no transaction is open. It is idle when it
//!   was quiet throughout the idle timeout.
//!
//! Invariants: the end of a partition that a queue reports is at or past the end found when the partition was opened, and
//! at or past every offset in a journal, as the last stable offset never goes back; idleness is judged by statistics that
//! arrived since the last judgement, never by a queue that is empty.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::consumer::BaseConsumer;
use rdkafka::consumer::base_consumer::PartitionQueue;

use super::client::TopicConfig;
use super::statistics::{ConsumerEvents, TopicStatus};
use crate::durable::journal::JournaledRecord;
use crate::error::{Error, Result};
use crate::record::Record;
use crate::source::{PartitionHandle, PartitionTracker};

/// Records that are gone though they are still to be read.
#[derive(Clone, Copy, Debug)]
pub(super) struct PendingGap {
    /// First offset after them; `None` until the brokers have said it.
    pub(super) to: Option<u64>,
    /// `true` if fetching has stopped at them.
    pub(super) has_stopped: bool,
}

/// A partition that this worker reads.
pub(super) struct FetchedPartition {
    pub(super) id: u32,
    /// Offset at which reading begins, unless a journal has one.
    pub(super) start: u64,
    /// First offset when the reader was opened.
    pub(super) low: u64,
    /// End when the reader was opened.
    pub(super) end: u64,
    pub(super) handle: Option<PartitionHandle>,
    /// `true` once it is read up to `end`, in a job that stops there.
    pub(super) caught_up: bool,
    pub(super) queue: PartitionQueue<ConsumerEvents>,
    /// Record that was taken from its queue before its epoch was replayed.
    pub(super) held: Option<JournaledRecord>,
    /// Gap that is to be passed.
    pub(super) gap: Option<PendingGap>,
    /// `true` if the broker has reported the end, and no record has arrived since.
    pub(super) at_end: bool,
    /// Time since which it has been at its end, with its broker answering and no open transaction.
    pub(super) quiet_since: Option<Instant>,
    /// `true` if idleness was not judged since the last statistics.
    pub(super) idleness_is_due: bool,
    /// Time since which its broker has not answered; `None` if it answers.
    pub(super) silent_since: Option<Instant>,
    /// Time since which the client is not connected to its broker; `None` if it is.
    pub(super) lost_since: Option<Instant>,
    /// Position after the transaction markers that follow the last record that was taken.
    pub(super) position: Option<u64>,
    /// Group offset that was committed last, for lag monitors.
    pub(super) committed: u64,
}

impl FetchedPartition {
    /// Opens the queue of a partition. `start`, `low` and `end` are the offsets at which reading begins, and the first and
    /// the last one now.
    ///
    /// # Errors
    /// Fails if the client library has no queue for it.
    pub(super) fn open(
        consumer: &Arc<BaseConsumer<ConsumerEvents>>,
        topic_config: &TopicConfig,
        id: u32,
        (start, low, end): (u64, u64, u64),
    ) -> Result<Self> {
        let queue = FetchedPartition::open_queue(consumer, topic_config, id)?;
        Ok(FetchedPartition {
            id,
            start,
            low,
            end,
            handle: None,
            caught_up: false,
            queue,
            held: None,
            gap: None,
            at_end: false,
            quiet_since: None,
            idleness_is_due: false,
            silent_since: None,
            lost_since: None,
            position: None,
            committed: 0,
        })
    }

    /// Opens the queue of a partition at a client, before the partition is assigned, so that no record goes to the common
    /// queue.
    ///
    /// # Errors
    /// Fails if the client library has no queue for it.
    pub(super) fn open_queue(
        consumer: &Arc<BaseConsumer<ConsumerEvents>>,
        topic_config: &TopicConfig,
        id: u32,
    ) -> Result<PartitionQueue<ConsumerEvents>> {
        let queue = consumer.split_partition_queue(&topic_config.topic, id as i32);
        queue.ok_or_else(|| Error::new("the client library has no queue for a partition").at(&topic_config.topic))
    }

    /// Returns the handle if there is more to read; `None` if it is not tracked yet, or read to its end.
    pub(super) fn unread_handle<T: Record>(&self, intake: &PartitionTracker<T>) -> Option<PartitionHandle> {
        self.handle.filter(|handle| !intake.ended(*handle) && !self.caught_up)
    }

    /// Starts the idle timeout anew.
    pub(super) fn reset_idleness(&mut self) {
        self.quiet_since = None;
    }

    /// Notes what the statistics of the client library say of it.
    pub(super) fn observe(&mut self, report: &TopicStatus, now: Instant) {
        self.idleness_is_due = true;
        self.silent_since = if report.answers(self.id) { None } else { self.silent_since.or(Some(now)) };
        self.lost_since = if report.is_connected(self.id) { None } else { self.lost_since.or(Some(now)) };
        if self.at_end {
            self.position = self.position.max(report.drained_offset(self.id));
        }
        if self.at_end && report.is_quiescent(self.id) {
            self.quiet_since = self.quiet_since.or(Some(now));
        } else {
            self.reset_idleness();
        }
    }

    /// Marks the partition as idle if it was quiet throughout the idle timeout, up to statistics that arrived since the
    /// last call.
    pub(super) fn update_idleness<T: Record>(
        &mut self,
        handle: PartitionHandle,
        now: Instant,
        timeout: Duration,
        intake: &mut PartitionTracker<T>,
    ) {
        if !std::mem::take(&mut self.idleness_is_due) || !self.at_end {
            return;
        }
        if self.quiet_since.is_some_and(|since| now - since >= timeout) {
            intake.set_idle(handle);
        }
    }
}
