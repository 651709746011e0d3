//! Lists of topics that are read as one source, and the numbers of their partitions.
//!
//! Each topic is read by a reader of its own, which knows only that topic: its id, its ends, its partitions from 0 on.
//! To the journal, manifests and the engine a partition is a **number** of the source: its own number in its topic, plus
//! [`TOPIC_STRIDE`] for each topic before it in the list. So the number depends on the list alone, on every worker alike.
//!
//! Invariant: the list, in its order, is the source's identity, so a state goes on only with the list whose numbers it
//! has.

use std::sync::Arc;

use super::client::TopicConfig;
use super::mapping::MapMessages;
use super::partition_numbers::PartitionNumbers;
use super::positions::{ReadOptions, StartOffset};
use super::reader::KafkaReader;
use super::reader_group::ReaderGroup;
use crate::durable::journal::PartitionProgress;
use crate::error::{Error, ErrorKind, Result};
use crate::record::Record;
use crate::source::{
    EpochInput, InitialProgress, PartitionNote, PartitionTracker, Polled, Reader, RestoredPartition, TOPIC_STRIDE,
    WorkerContext,
};
use crate::time::Epoch;

/// Greatest number of topics in a list.
const MOST_TOPICS: usize = 4_000;

/// Topics of a source: one, a list, or all that match a pattern.
///
/// ```
/// use tidegate::kafka::Topics;
///
/// let (one, list) = (Topics::from("orders"), Topics::from(["orders-eu", "orders-us"]));
/// assert_eq!((one.names().len(), list.names().len()), (1, 2));
/// let pattern = Topics::matching(r"orders\..*");
/// assert_eq!((pattern.names().len(), pattern.pattern()), (0, Some(r"orders\..*")));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topics {
    names: Vec<String>,
    pattern: Option<String>,
}

impl Topics {
    /// Names all topics whose whole name matches a regular expression, in the syntax of the crate `regex`: those that are
    /// there when a job starts, and those that are found while it runs. Names that begin with two underscores, which are
    /// the brokers' own, and the topics in which sinks keep their progress never match. A source of a pattern that is no
    /// regular expression is refused when it is opened, as wrong usage.
    ///
    /// ```
    /// # use serde::{Deserialize, Serialize};
    /// # #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
    /// # struct Order { at_ms: i64 }
    /// use tidegate::kafka::{self, Topics};
    ///
    /// // orders.eu, orders.us and so on, but neither orders nor my.orders.eu.
    /// let topics = Topics::matching(r"orders\..*");
    /// let orders = kafka::Source::json("localhost:9092", topics).event_time(|order: &Order| order.at_ms);
    /// ```
    pub fn matching(pattern: impl Into<String>) -> Self {
        Topics { names: Vec::new(), pattern: Some(pattern.into()) }
    }

    /// Returns the names, in the order of the list; none of a pattern.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Returns the regular expression; `None` if topics are named.
    pub fn pattern(&self) -> Option<&str> {
        self.pattern.as_deref()
    }
}

impl<S: Into<String>> FromIterator<S> for Topics {
    fn from_iter<I: IntoIterator<Item = S>>(names: I) -> Self {
        Topics { names: names.into_iter().map(Into::into).collect(), pattern: None }
    }
}

/// One topic.
impl From<&str> for Topics {
    fn from(name: &str) -> Self {
        [name].into()
    }
}

/// One topic.
impl From<String> for Topics {
    fn from(name: String) -> Self {
        [name].into()
    }
}

/// One topic.
impl From<&String> for Topics {
    fn from(name: &String) -> Self {
        [name].into()
    }
}

impl<S: Into<String>, const N: usize> From<[S; N]> for Topics {
    fn from(names: [S; N]) -> Self {
        names.into_iter().collect()
    }
}

impl<S: Into<String>> From<Vec<S>> for Topics {
    fn from(names: Vec<S>) -> Self {
        names.into_iter().collect()
    }
}

/// Fails if a list of topics cannot be read.
pub(super) fn check_list(topics: &[TopicConfig]) -> Result<()> {
    let place = topics.first().map_or(String::new(), |topic| topic.brokers.clone());
    let named_twice =
        || topics.iter().enumerate().find(|(at, topic)| topics[..*at].iter().any(|other| other.topic == topic.topic));
    let what = if topics.iter().any(|topic| topic.topic.is_empty()) {
        String::from("a topic has no name")
    } else if let Some(topic) = topics.iter().find(|topic| topic.topic.starts_with('^')) {
        let error = Error::usage(format!("no topic has the name {}", topic.topic)).at(place);
        return Err(error.help("a pattern stands alone: Topics::matching(PATTERN), or --topic '^PATTERN' of a query"));
    } else if let Some((_, topic)) = named_twice() {
        format!("the topic {} is named twice", topic.topic)
    } else if topics.len() > MOST_TOPICS {
        format!("{} topics are too many for one source, which reads up to {MOST_TOPICS}", topics.len())
    } else {
        return Ok(());
    };
    Err(Error::usage(what).at(place).help("name each topic once"))
}

/// Returns the identity of a list of topics, each with its id if it has one. It depends on the order, as the numbers of
/// partitions do.
pub(super) fn list_identity<'a>(topics: impl IntoIterator<Item = (&'a str, Option<String>)>) -> String {
    let named = topics.into_iter().map(|(name, id)| format!("{name} {}", id.unwrap_or_default()));
    format!("topics {}", named.collect::<Vec<_>>().join(", "))
}

/// Returns the index of a partition's topic, and its number in the topic.
fn split(partition: u32) -> (usize, u32) {
    ((partition / TOPIC_STRIDE) as usize, partition % TOPIC_STRIDE)
}

/// Returns the progress of one topic's partitions, by their numbers in the topic.
pub(super) fn progress_of(topic: usize, bounds: &[PartitionProgress]) -> Vec<PartitionProgress> {
    let own = bounds.iter().filter(|bound| split(bound.partition).0 == topic);
    own.map(|bound| PartitionProgress { partition: split(bound.partition).1, ..bound.clone() }).collect()
}

/// Returns the error for a partition of a topic that the list does not have.
fn no_such_topic(describe: &str, partition: u32) -> Error {
    let error = Error::of(ErrorKind::SourceChanged, "the state names a topic that is not in the list").at(describe);
    let error = error.because(format!("it has read a partition of the topic at place {}", split(partition).0 + 1));
    error.help("give the list all of its topics back, in their order, or start with a new --state")
}

/// A worker's reader of a list of topics: see the module.
pub(super) struct TopicsReader<T> {
    describe: String,
    group: ReaderGroup<T>,
    names: Vec<String>,
}

impl<T: Record> TopicsReader<T> {
    /// Connects to each topic, and finds this worker's partitions.
    pub(super) fn open(
        describe: String,
        topics: &[TopicConfig],
        mapping: &Arc<dyn MapMessages<T>>,
        options: &ReadOptions,
        at: &WorkerContext,
    ) -> Result<Self> {
        if matches!(options.start, StartOffset::Offsets(_)) {
            let error = Error::usage("a list of topics cannot start at offsets of partitions").at(describe);
            return Err(error.help("start at a time, or read each topic as a source of its own"));
        }
        let mut readers = Vec::new();
        for (index, topic) in topics.iter().enumerate() {
            let place = (PartitionNumbers::Following(index as u32 * TOPIC_STRIDE), topics.len());
            readers.push(KafkaReader::open(topic, Arc::clone(mapping), options.clone(), place, at)?);
        }
        let names = topics.iter().map(|topic| topic.topic.clone()).collect();
        Ok(TopicsReader { describe, group: ReaderGroup::new(readers), names })
    }

    fn check(&self, partition: u32) -> Result<()> {
        if split(partition).0 < self.names.len() { Ok(()) } else { Err(no_such_topic(&self.describe, partition)) }
    }
}

impl<T: Record> Reader<T> for TopicsReader<T> {
    fn resume(&mut self, epoch: Epoch, places: &[RestoredPartition], intake: &mut PartitionTracker<T>) -> Result<()> {
        places.iter().try_for_each(|place| self.check(place.progress.partition))?;
        self.group.resume(epoch, places, intake)
    }

    fn poll(&mut self, epoch: Epoch, budget: usize, intake: &mut PartitionTracker<T>) -> Result<Polled> {
        match self.group.waits()? {
            Some(epoch) => Ok(Polled { epoch, busy: false }),
            None => self.group.poll(epoch, budget, intake),
        }
    }

    fn close_epoch(&mut self, epoch: Epoch, intake: &mut PartitionTracker<T>) -> Result<Option<EpochInput>> {
        self.group.close_epoch(epoch, intake)
    }

    fn replay(&mut self, epoch: Epoch, bounds: &[PartitionProgress], intake: &mut PartitionTracker<T>) -> Result<bool> {
        if self.group.waits()?.is_some() {
            return Ok(false); // The epoch before is not committed yet, and must not get later records.
        }
        bounds.iter().try_for_each(|bound| self.check(bound.partition))?;
        self.group.replay(epoch, bounds, intake)
    }

    fn caught_up(&self) -> bool {
        self.group.caught_up()
    }

    fn initial_progress(&self, intake: &PartitionTracker<T>) -> InitialProgress {
        self.group.initial_progress(intake)
    }

    fn notify_published(&mut self, epoch: Epoch) {
        self.group.notify_published(epoch);
    }

    fn identity(&self) -> Option<String> {
        let ids = self.group.readers().iter().map(KafkaReader::topic_id);
        Some(list_identity(self.names.iter().map(String::as_str).zip(ids)))
    }

    fn partition_notes(&self) -> Vec<PartitionNote> {
        self.group.partition_notes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn configs(names: &[&str]) -> Vec<TopicConfig> {
        names.iter().map(|name| TopicConfig::new("b:1", name)).collect()
    }

    #[test]
    fn a_list_names_each_topic_once() {
        assert!(check_list(&configs(&["a", "b"])).is_ok());
        for (names, what) in [(&["a", "b", "a"][..], "a is named twice"), (&[""], "has no name"), (&["x"; 2], "twice")]
        {
            assert!(check_list(&configs(names)).unwrap_err().to_string().contains(what), "{names:?}");
        }
    }

    #[test]
    fn a_list_in_another_order_is_another_source() {
        let list = |names: [&'static str; 2]| list_identity(names.map(|name| (name, Some(format!("id-of-{name}")))));
        assert_ne!(list(["a", "b"]), list(["b", "a"]));
        assert_ne!(list_identity([("a", None)]), list_identity([("a", None), ("b", None)]));
    }

    #[test]
    fn a_partition_is_a_topic_and_a_number() {
        assert_eq!([0, 999_999, 1_000_000, 3_000_007].map(split), [(0, 0), (0, 999_999), (1, 0), (3, 7)]);
    }
}
