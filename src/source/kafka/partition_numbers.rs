//! Numbers of partitions: how the journal, manifests and the engine tell the partitions of a source's topics apart, and
//! which worker reads which.
//!
//! * Of a single topic, and of each topic of a list, numbers **follow** that of partition 0: see `topics`.
//! * Topics of a pattern are found in any order, by any worker, and no list says where one stands. Each of their
//!   partitions has a number that is **given** when a worker begins to read it, and that the state keeps with the topic's
//!   name and id ([`TopicPartition`]): in the journal with the partition's first progress, and in every manifest.
//!
//! The number that is given begins with the **slot**: a hash of the topic's name plus the partition's number in it, modulo
//! [`TOPIC_STRIDE`]. If it is taken, it is the first of those that are greater by one or more strides and not taken.
//!
//! Invariants:
//! * No two partitions of a state have one number. An incarnation knows all numbers of its state before it gives one: they
//!   come with the snapshot and the journal that it resumes from, the same for all workers. A slot belongs to one worker,
//!   which alone gives its numbers; so workers need not agree, and may find topics at different times.
//! * No partition has two numbers. One that the state knows is read by the owner of its number; any other by the owner of
//!   its slot, and by nobody else. A number that was given and not journalled is in no state: it can be given again, and
//!   mostly is, to the same partition.
//! * Numbers do not depend on how many workers give them, nor on the order in which topics are found, but for those of
//!   slots that collide. They break ties, so that is what makes results a function of the data.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use crate::durable::journal::TopicPartition;
use crate::durable::sources;
use crate::source::{TOPIC_STRIDE, WorkerContext};

/// Numbers of the partitions of one topic.
#[derive(Clone, Debug)]
pub(super) enum PartitionNumbers {
    /// They follow the number of the topic's partition 0.
    Following(u32),
    /// They are given one by one.
    Given(GivenNumbers),
}

/// Numbers of the partitions of one topic of a pattern.
#[derive(Clone, Debug)]
pub(super) struct GivenNumbers {
    topic: String,
    /// Id of the topic that the state knows; `None` if it knows none.
    id: Option<String>,
    /// By the partitions' numbers in the topic.
    numbers: BTreeMap<u32, u32>,
    taken: TakenNumbers,
}

/// Numbers of a source's partitions that cannot be given: those of the state, and those that this worker has given.
pub(super) type TakenNumbers = Arc<Mutex<BTreeSet<u32>>>;

/// Returns the numbers that a state knows.
pub(super) fn taken_numbers(known: &[(u32, TopicPartition)]) -> TakenNumbers {
    Arc::new(Mutex::new(known.iter().map(|(number, _)| *number).collect()))
}

impl PartitionNumbers {
    /// Returns the numbers of a topic of a pattern that the state knows.
    pub(super) fn of_topic(topic: &str, known: &[(u32, TopicPartition)], taken: &TakenNumbers) -> Self {
        let own = || known.iter().filter(|(_, known)| known.topic == topic);
        PartitionNumbers::Given(GivenNumbers {
            topic: topic.to_owned(),
            id: own().find_map(|(_, known)| known.id.clone()),
            numbers: own().map(|(number, known)| (known.number, *number)).collect(),
            taken: Arc::clone(taken),
        })
    }

    /// Returns the number of a partition; `None` if none was given.
    pub(super) fn of(&self, partition: u32) -> Option<u32> {
        match self {
            PartitionNumbers::Following(first) => Some(first + partition),
            PartitionNumbers::Given(given) => given.numbers.get(&partition).copied(),
        }
    }

    /// Returns the partition that a number was given to; `None` if it was given to none of the topic.
    pub(super) fn partition_of(&self, number: u32) -> Option<u32> {
        match self {
            PartitionNumbers::Following(first) => number.checked_sub(*first).filter(|own| *own < TOPIC_STRIDE),
            PartitionNumbers::Given(given) => {
                given.numbers.iter().find(|(_, own)| **own == number).map(|(own, _)| *own)
            }
        }
    }

    /// Returns the number of a partition that this worker begins to read, and gives it one if it has none.
    pub(super) fn give(&mut self, partition: u32) -> u32 {
        let given = match self {
            PartitionNumbers::Following(first) => return *first + partition,
            PartitionNumbers::Given(given) => given,
        };
        if let Some(number) = given.numbers.get(&partition) {
            return *number;
        }
        let mut taken = given.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let mut slot = (slot(&given.topic, partition)..=u32::MAX).step_by(TOPIC_STRIDE as usize);
        let number = slot.find(|number| !taken.contains(number));
        // Some thousand partitions of one slot, of a million slots.
        let number =
            number.unwrap_or_else(|| panic!("all numbers of the slot of {} {partition} are taken", given.topic));
        taken.insert(number);
        given.numbers.insert(partition, number);
        number
    }

    /// `true` if this worker reads the partition.
    pub(super) fn is_of(&self, at: &WorkerContext, partition: u32) -> bool {
        match self {
            PartitionNumbers::Following(first) => at.owns(first + partition),
            PartitionNumbers::Given(given) => {
                at.owns(given.numbers.get(&partition).copied().unwrap_or_else(|| slot(&given.topic, partition)))
            }
        }
    }

    /// Returns the topic that the state is to know a partition by, whose topic has this id now; `None` if its number
    /// tells.
    pub(super) fn topic_of(&self, partition: u32, id: Option<&str>) -> Option<TopicPartition> {
        match self {
            PartitionNumbers::Following(_) => None,
            PartitionNumbers::Given(given) => Some(TopicPartition {
                topic: given.topic.clone(),
                id: id.or(given.id.as_deref()).map(str::to_owned),
                number: partition,
            }),
        }
    }

    /// `true` if the state knows partitions of the topic.
    pub(super) fn is_known(&self) -> bool {
        matches!(self, PartitionNumbers::Given(given) if !given.numbers.is_empty())
    }

    /// `true` if a topic of this id is not the one that the state knows.
    pub(super) fn is_other(&self, id: Option<&str>) -> bool {
        let PartitionNumbers::Given(GivenNumbers { id: Some(known), .. }) = self else { return false };
        id.is_some_and(|id| id != known)
    }

    /// `true` if numbers are given one by one.
    pub(super) fn is_given(&self) -> bool {
        matches!(self, PartitionNumbers::Given(_))
    }
}

/// Returns the slot of a partition of a topic.
fn slot(topic: &str, partition: u32) -> u32 {
    let hash = sources::fingerprint(topic) % u64::from(TOPIC_STRIDE);
    ((hash + u64::from(partition)) % u64::from(TOPIC_STRIDE)) as u32
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::source::Options;

    fn at(worker: usize, workers: usize) -> WorkerContext {
        let (job, options, known_partitions) = (String::new(), Options::default(), Arc::default());
        WorkerContext { worker, workers, threads: workers, job, options, known_partitions }
    }

    /// Finds topics as the workers of one incarnation do, each in its own order; returns what their journals say.
    fn incarnation(
        known: &[(u32, TopicPartition)],
        topics: &[(String, u32)],
        workers: usize,
        rng: &mut fastrand::Rng,
    ) -> Vec<(u32, TopicPartition)> {
        let mut found = Vec::new();
        for worker in 0..workers {
            let (at, taken) = (at(worker, workers), taken_numbers(known));
            let mut topics = topics.to_vec();
            rng.shuffle(&mut topics);
            for (topic, partitions) in topics {
                let mut numbers = PartitionNumbers::of_topic(&topic, known, &taken);
                for partition in (0..partitions).filter(|partition| numbers.is_of(&at, *partition)).collect::<Vec<_>>()
                {
                    let number = numbers.give(partition);
                    assert_eq!((numbers.of(partition), numbers.partition_of(number)), (Some(number), Some(partition)));
                    found.push((number, numbers.topic_of(partition, None).unwrap()));
                }
            }
        }
        found
    }

    /// Some of what is given is journalled; the next incarnation has other workers and more topics.
    #[test]
    fn whatever_is_found_by_whom_and_lost_each_partition_has_one_number_and_each_number_one_partition() {
        for seed in 0..200 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let (mut known, mut topics) = (Vec::<(u32, TopicPartition)>::new(), Vec::new());
            for _ in 0..6 {
                for _ in 0..rng.usize(0..4) {
                    topics.push((format!("orders.{}", rng.u32(..)), rng.u32(1..6)));
                }
                let workers = rng.usize(1..5);
                let found = incarnation(&known, &topics, workers, &mut rng);
                let all: usize = topics.iter().map(|(_, partitions)| *partitions as usize).sum();
                let by_number: BTreeMap<_, _> = found.iter().cloned().collect();
                let by_topic: BTreeMap<_, _> = found.iter().map(|(number, topic)| (topic.clone(), *number)).collect();
                assert_eq!((found.len(), by_number.len(), by_topic.len()), (all, all, all), "seed {seed}");
                for (number, topic) in &known {
                    assert_eq!(by_topic.get(topic), Some(number), "seed {seed}");
                }
                let alone: BTreeMap<_, _> = incarnation(&known, &topics, 1, &mut rng).into_iter().collect();
                assert_eq!(alone, by_number, "seed {seed}: it does not matter who finds them");
                known = found.into_iter().filter(|found| known.contains(found) || rng.bool()).collect();
            }
        }
    }

    #[test]
    fn partitions_of_one_slot_have_different_numbers() {
        let other = |topic: &str, number| TopicPartition { topic: topic.into(), id: None, number };
        let first = slot("orders.eu", 0);
        assert_eq!((slot("orders.eu", 7), first < TOPIC_STRIDE), ((first + 7) % TOPIC_STRIDE, true));
        let known = [(first, other("a", 0)), (first + TOPIC_STRIDE, other("b", 0)), (first + 1, other("c", 0))];
        let mut numbers = PartitionNumbers::of_topic("orders.eu", &known, &taken_numbers(&known));
        assert_eq!(numbers.give(0), first + 2 * TOPIC_STRIDE);
        assert_eq!(numbers.give(1), first + 1 + TOPIC_STRIDE);
        assert_eq!(numbers.give(0), first + 2 * TOPIC_STRIDE);
        for workers in 1..5 {
            let owners = (0..workers).filter(|worker| numbers.is_of(&at(*worker, workers), 9)).count();
            assert_eq!(owners, 1);
        }
    }

    #[test]
    fn a_topic_of_another_id_is_another_one() {
        let known = [(5, TopicPartition { topic: "t".into(), id: Some("one".into()), number: 0 })];
        let numbers = PartitionNumbers::of_topic("t", &known, &taken_numbers(&known));
        assert!(numbers.is_known() && numbers.is_other(Some("two")) && !numbers.is_other(Some("one")));
        assert!(!numbers.is_other(None));
        assert_eq!(numbers.topic_of(0, None).unwrap().id.as_deref(), Some("one"));
        let new = PartitionNumbers::of_topic("u", &known, &taken_numbers(&known));
        assert!(!new.is_known() && !new.is_other(Some("two")));
    }
}
