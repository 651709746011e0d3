//! Records of a key that wait until the watermark has passed them, in the order of event time.
//!
//! Records that come in order are appended to a queue, the others to a heap. So a record costs at most the logarithm of
//! the number of those that wait, in whatever order they come, and hardly anything if they come in order.
//!
//! They are equal, ordered, and stored as the list of them in order: which record is where does not show.

use std::cmp::{Ordering, Reverse};
use std::collections::{BinaryHeap, VecDeque};
use std::hash::{Hash, Hasher};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::stream::assign::EventStamp;
use crate::time::EventTime;

/// Capacity from which on the memory of records that have all gone is released.
const KEPT_CAPACITY: usize = 64;

/// Records that wait: a multiset of which the least is known.
#[derive(Clone, Debug)]
pub(crate) struct WaitingRecords<T> {
    /// Those that were not less than the ones before them, in order.
    queue: VecDeque<T>,
    /// The others.
    heap: BinaryHeap<Reverse<T>>,
}

impl<T> WaitingRecords<T> {
    /// Returns the number of records.
    pub(crate) fn len(&self) -> usize {
        self.queue.len() + self.heap.len()
    }
}

impl<T: Ord> WaitingRecords<T> {
    /// Returns the multiset of no records.
    pub(crate) const fn empty() -> Self {
        WaitingRecords { queue: VecDeque::new(), heap: BinaryHeap::new() }
    }

    /// Returns the multiset of one record.
    pub(crate) fn of(record: T) -> Self {
        WaitingRecords { queue: VecDeque::from(vec![record]), heap: BinaryHeap::new() }
    }

    /// Adds a record.
    pub(crate) fn insert(&mut self, record: T) {
        if self.queue.back().is_none_or(|last| *last <= record) {
            self.queue.push_back(record);
        } else {
            self.heap.push(Reverse(record));
        }
    }

    /// `true` if the least record is in the heap.
    fn least_is_in_heap(&self) -> bool {
        match (self.queue.front(), self.heap.peek()) {
            (Some(first), Some(Reverse(other))) => other < first,
            (None, Some(_)) => true,
            (_, None) => false,
        }
    }

    /// Returns the least record.
    pub(crate) fn first(&self) -> Option<&T> {
        if self.least_is_in_heap() { self.heap.peek().map(|Reverse(record)| record) } else { self.queue.front() }
    }

    /// Removes the least record.
    pub(crate) fn pop_first(&mut self) -> Option<T> {
        if self.least_is_in_heap() {
            let least = self.heap.pop().map(|Reverse(record)| record);
            if self.heap.is_empty() && self.heap.capacity() > KEPT_CAPACITY {
                self.heap = BinaryHeap::new();
            }
            return least;
        }
        let least = self.queue.pop_front();
        if self.queue.is_empty() && self.queue.capacity() > KEPT_CAPACITY {
            self.queue = VecDeque::new();
        }
        least
    }

    /// Removes the least record if `goes` returns `true` for it.
    fn pop_first_if(&mut self, goes: impl FnOnce(&T) -> bool) -> Option<T> {
        if self.first().is_some_and(goes) { self.pop_first() } else { None }
    }

    /// Returns all records in order.
    pub(crate) fn in_order(&self) -> Vec<&T> {
        let mut records: Vec<&T> = self.queue.iter().collect();
        if !self.heap.is_empty() {
            records.extend(self.heap.iter().map(|Reverse(record)| record));
            records.sort();
        }
        records
    }

    /// `true` if there are none.
    pub(crate) fn is_empty(&self) -> bool {
        self.queue.is_empty() && self.heap.is_empty()
    }
}

impl<T: Ord> WaitingRecords<(EventStamp, T)> {
    /// Returns the event time of the least record.
    pub(crate) fn first_time(&self) -> Option<EventTime> {
        self.first().map(|((time, _), _)| *time)
    }

    /// Returns the least time that passes the first record; [`EventTime::MAX`] if there is none.
    pub(crate) fn due(&self) -> EventTime {
        self.first_time().map_or(EventTime::MAX, EventTime::next)
    }

    /// Removes the least record if a time has passed it.
    pub(crate) fn pop_passed(&mut self, to: EventTime) -> Option<(EventStamp, T)> {
        self.pop_first_if(|((time, _), _)| *time < to)
    }

    /// Removes the least record if it happened at a time.
    pub(crate) fn pop_at(&mut self, time: EventTime) -> Option<(EventStamp, T)> {
        self.pop_first_if(|((at, _), _)| *at == time)
    }

    /// Converts what there is of each record.
    pub(crate) fn map<T2: Ord>(mut self, mut convert: impl FnMut(T) -> T2) -> WaitingRecords<(EventStamp, T2)> {
        let mut converted = WaitingRecords::empty();
        while let Some((stamp, record)) = self.pop_first() {
            converted.insert((stamp, convert(record)));
        }
        converted
    }
}

impl<T: Ord> From<Vec<T>> for WaitingRecords<T> {
    fn from(mut records: Vec<T>) -> Self {
        records.sort();
        WaitingRecords { queue: records.into(), heap: BinaryHeap::new() }
    }
}

impl<T: Ord> PartialEq for WaitingRecords<T> {
    fn eq(&self, other: &Self) -> bool {
        self.len() == other.len() && self.in_order() == other.in_order()
    }
}

impl<T: Ord> Eq for WaitingRecords<T> {}

impl<T: Ord> PartialOrd for WaitingRecords<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<T: Ord> Ord for WaitingRecords<T> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.in_order().cmp(&other.in_order())
    }
}

impl<T: Ord + Hash> Hash for WaitingRecords<T> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.in_order().hash(state);
    }
}

impl<T: Ord + Serialize> Serialize for WaitingRecords<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.in_order())
    }
}

impl<'de, T: Ord + Deserialize<'de>> Deserialize<'de> for WaitingRecords<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Vec::deserialize(deserializer).map(WaitingRecords::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp(time: i64, offset: u64) -> EventStamp {
        (EventTime::from_millis(time), (0, 0, offset))
    }

    /// Compares with a sorted list, over adding and removing in every order of times, equal records among them.
    #[test]
    fn records_wait_in_order_whatever_order_they_come_in() {
        for seed in 0..200 {
            let mut random = fastrand::Rng::with_seed(seed);
            let (spread, drift) = (random.i64(1..40), random.i64(-3..4));
            let (mut waiting, mut expected) = (WaitingRecords::empty(), Vec::<(EventStamp, u8)>::new());
            for at in 0..random.i64(1..120) {
                let record = (stamp(at * drift + random.i64(0..spread), random.u64(0..2)), random.u8(0..2));
                waiting.insert(record);
                expected.push(record);
                expected.sort();
                if random.u8(0..4) == 0 {
                    let to = EventTime::from_millis(at * drift + random.i64(-20..20));
                    let passed: Vec<_> = std::iter::from_fn(|| waiting.pop_passed(to)).collect();
                    let count = expected.iter().take_while(|((time, _), _)| *time < to).count();
                    assert_eq!(passed, expected.drain(..count).collect::<Vec<_>>(), "seed {seed}");
                }
                assert_eq!(waiting.first(), expected.first(), "seed {seed}");
                assert_eq!((waiting.len(), waiting.is_empty()), (expected.len(), expected.is_empty()), "seed {seed}");
                assert_eq!(waiting.in_order(), expected.iter().collect::<Vec<_>>(), "seed {seed}");
                let due = expected.first().map_or(EventTime::MAX, |((time, _), _)| time.next());
                assert_eq!(waiting.due(), due, "seed {seed}");
            }
            // Which of them are in the heap shows neither in comparisons nor in what is stored.
            let sorted = WaitingRecords::from(expected.clone());
            assert!(waiting == sorted && waiting.cmp(&sorted).is_eq(), "seed {seed}");
            let stored = postcard::to_allocvec(&waiting).unwrap();
            assert_eq!(stored, postcard::to_allocvec(&expected).unwrap(), "seed {seed}");
            assert_eq!(postcard::from_bytes::<WaitingRecords<(EventStamp, u8)>>(&stored).unwrap(), sorted);
        }
    }

    #[test]
    fn memory_of_a_burst_is_released() {
        let mut waiting = WaitingRecords::empty();
        for time in [1, -1].into_iter().flat_map(|sign| (0..10_000).map(move |at| sign * at)) {
            waiting.insert((stamp(time, 0), ()));
        }
        while waiting.pop_first().is_some() {}
        assert_eq!((waiting.queue.capacity(), waiting.heap.capacity()), (0, 0));
    }
}
