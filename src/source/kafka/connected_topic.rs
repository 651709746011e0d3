//! A topic that a worker has connected to: its partitions, and the ends of those that the worker reads.
//!
//! It has all that brokers must be asked for before a reader is made, so that a thread can ask while the worker goes on.
//!
//! Invariant: nothing here waits longer than its deadlines.

use std::collections::BTreeMap;
use std::sync::Arc;

use rdkafka::consumer::{BaseConsumer, Consumer};

use super::client::TopicConfig;
use super::compacted::refuse_compacted;
use super::consumer::{connect_reader, offsets};
use super::partition_numbers::PartitionNumbers;
use super::positions::{ReadOptions, StartOffset, offsets_at};
use super::statistics::ConsumerEvents;
use super::topic_pattern::made_again;
use crate::error::Result;
use crate::source::WorkerContext;

/// A topic with a client that is connected, for one worker.
pub(super) struct ConnectedTopic {
    pub(super) target: TopicConfig,
    pub(super) consumer: Arc<BaseConsumer<ConsumerEvents>>,
    /// All partitions of the topic.
    pub(super) ids: Vec<u32>,
    /// First offset and end of each partition that the worker reads.
    pub(super) ends: Vec<(u32, (u64, u64))>,
    pub(super) numbers: PartitionNumbers,
    /// Number of topics that the source reads.
    pub(super) topics: usize,
    /// Offsets of the time at which reading starts, of partitions that have a message from then on.
    pub(super) at_time: BTreeMap<u32, u64>,
}

impl ConnectedTopic {
    /// Connects to a topic whose partitions have these numbers in a source of `topics` topics.
    ///
    /// # Errors
    /// Fails if the topic does not exist, cannot be read, or is not the one that the state has read.
    pub(super) fn connect(
        topic_config: &TopicConfig,
        options: &ReadOptions,
        (numbers, topics): (PartitionNumbers, usize),
        at: &WorkerContext,
    ) -> Result<Self> {
        let (consumer, ids) = connect_reader(topic_config, topics, at)?;
        if numbers.is_other(consumer.context().id().as_deref()) {
            return Err(made_again(topic_config));
        }
        // Worker 0 may read nothing of a topic of a pattern.
        if !options.compacted && (at.worker == 0 || numbers.is_given()) {
            refuse_compacted(consumer.client(), topic_config)?;
        }
        let own: Vec<u32> = ids.iter().copied().filter(|id| numbers.is_of(at, *id)).collect();
        let ends = own.iter().map(|id| Ok((*id, offsets(&consumer, topic_config, *id)?)));
        let ends = ends.collect::<Result<Vec<_>>>()?;
        // Asked after the ends: a partition without such a message had none before its end.
        let at_time = match &options.start {
            StartOffset::Timestamp(time) => offsets_at(&consumer, topic_config, &own, *time)?,
            _ => BTreeMap::new(),
        };
        Ok(ConnectedTopic { target: topic_config.clone(), consumer, ids, ends, numbers, topics, at_time })
    }

    /// Returns the same topic as one that was found after the start: as partitions that are added later, its partitions
    /// had no record at the start, so none is waited for.
    pub(super) fn of_later(self) -> Self {
        let ends = self.ends.into_iter().map(|(id, (low, _))| (id, (low, low)));
        ConnectedTopic { ends: ends.collect(), ..self }
    }
}
