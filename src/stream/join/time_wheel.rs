//! Items by event time, of which those before a time are taken: a timing wheel of sixteen levels.
//!
//! An item is in a list by the first hexadecimal digit in which its time differs from the time up to which items have been
//! taken. Taking moves only the items of one list, those that share the digit in which the new time differs from the old;
//! each of them by at least one level. So an item costs a few steps, however many items there are and however
//! small the steps of time are; and a whole list of them is taken at once.
//!
//! Source: G. Varghese and T. Lauck, "Hashed and Hierarchical Timing Wheels" (1987), scheme 7.
//!
//! Invariant: every item of a list happens before every item of a list that comes after it.

use std::collections::VecDeque;

use crate::time::EventTime;

/// Bits of a digit.
const DIGIT: u32 = 4;

/// Lists of a level.
const LISTS: usize = 1 << DIGIT;

/// Capacity up to which the memory of a list is kept, however little of it was used.
const KEPT_CAPACITY: usize = 64;

/// Maximum number of empty lists whose memory is kept.
const SPARE_LISTS: usize = 8;

/// A list of items with their times.
type TimedItems<T> = Vec<(EventTime, T)>;

/// Items by event time.
pub(super) struct TimeWheel<T> {
    /// The lists of each level that has been used, the finest first.
    lists: Vec<TimedItems<T>>,
    /// The time up to which items have been taken.
    from: EventTime,
    /// Empty lists whose memory is used again, each of them in its turn.
    spare: VecDeque<TimedItems<T>>,
}

/// Returns a time as a number in the same order.
fn ordinal(time: EventTime) -> u64 {
    (time.millis() as u64) ^ (1 << 63)
}

/// Returns the number of the list of a time when items before `from` have been taken.
#[inline]
fn list_of(time: EventTime, from: EventTime) -> usize {
    let (time, from) = (ordinal(time), ordinal(from));
    let level = (time ^ from).checked_ilog2().unwrap_or(0) / DIGIT;
    let digit = (time >> (level * DIGIT)) as usize % LISTS;
    level as usize * LISTS + digit
}

impl<T> TimeWheel<T> {
    /// Creates a wheel of which items before `from` have been taken.
    pub(super) fn new(from: EventTime) -> Self {
        TimeWheel { lists: Vec::new(), from, spare: VecDeque::new() }
    }

    /// Adds an item. One whose time has been passed is taken the next time.
    #[inline]
    pub(super) fn add(&mut self, time: EventTime, item: T) {
        let number = list_of(time.max(self.from), self.from);
        if number >= self.lists.len() {
            self.lists.resize_with((number / LISTS + 1) * LISTS, Vec::new);
        }
        let list = &mut self.lists[number];
        if list.capacity() == 0
            && let Some(spare) = self.spare.pop_front()
        {
            *list = spare;
        }
        list.push((time, item));
    }

    /// Removes the items whose times are before `to`, and calls `each` with them, in no order.
    pub(super) fn take_before(&mut self, to: EventTime, mut each: impl FnMut(EventTime, T)) {
        if to <= self.from {
            return;
        }
        let last = list_of(to, self.from);
        for number in 0..last.min(self.lists.len()) {
            self.take_list(number, |_, time, item| each(time, item));
        }
        self.from = to;
        if last < self.lists.len() {
            // What is not taken shares one more digit with `to`, so it goes to a finer level.
            self.take_list(last, |wheel, time, item| if time < to { each(time, item) } else { wheel.add(time, item) });
        }
    }

    /// Removes all items, and calls `each` with them, in no order.
    pub(super) fn take_all(&mut self, mut each: impl FnMut(EventTime, T)) {
        (0..self.lists.len()).for_each(|number| self.take_list(number, |_, time, item| each(time, item)));
    }

    /// Empties a list. Its memory is used again, unless far less of it was used.
    fn take_list(&mut self, number: usize, mut each: impl FnMut(&mut Self, EventTime, T)) {
        let mut list = std::mem::take(&mut self.lists[number]);
        let used = list.len();
        list.drain(..).for_each(|(time, item)| each(self, time, item));
        if used > 0 && list.capacity() / 4 <= used.max(KEPT_CAPACITY) && self.spare.len() < SPARE_LISTS {
            self.spare.push_back(list);
        }
    }

    /// Returns the least time of an item.
    pub(super) fn first_time(&self) -> Option<EventTime> {
        let first = self.lists.iter().find(|list| !list.is_empty())?;
        first.iter().map(|(time, _)| *time).min()
    }

    /// Returns the number of items.
    pub(super) fn len(&self) -> usize {
        self.lists.iter().map(Vec::len).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Compares with a sorted list, over steps of time from a millisecond to thousands of years.
    #[test]
    fn items_are_taken_when_their_time_has_passed() {
        for seed in 0..300 {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut now =
                if seed % 3 == 0 { EventTime::MIN } else { EventTime::from_millis(random.i64(-5_000..5_000)) };
            let (mut wheel, mut expected) = (TimeWheel::new(now), Vec::<(EventTime, u32)>::new());
            let spread = 1 << random.u32(0..47);
            for item in 0..random.u32(1..400) {
                let after = now.millis().max(-(1 << 50)).saturating_add(random.i64(0..=spread));
                let time = EventTime::from_millis(after);
                wheel.add(time, item);
                expected.push((time, item));
                if random.u8(0..5) == 0 {
                    let to = EventTime::from_millis(after.saturating_sub(random.i64(0..=spread)));
                    let mut taken = Vec::new();
                    wheel.take_before(to, |time, item| taken.push((time, item)));
                    taken.sort_unstable();
                    let mut passed: Vec<_> = expected.extract_if(.., |(time, _)| *time < to).collect();
                    passed.sort_unstable();
                    assert_eq!(taken, passed, "seed {seed}, to {to:?}");
                    now = now.max(to);
                }
                assert_eq!(wheel.len(), expected.len(), "seed {seed}");
                assert_eq!(wheel.first_time(), expected.iter().map(|(time, _)| *time).min(), "seed {seed}");
            }
            let mut rest = Vec::new();
            wheel.take_all(|time, item| rest.push((time, item)));
            rest.sort_unstable();
            expected.sort_unstable();
            assert_eq!((rest, wheel.len(), wheel.first_time()), (expected, 0, None), "seed {seed}");
        }
    }

    #[test]
    fn memory_of_a_burst_is_released() {
        let mut wheel = TimeWheel::new(EventTime::from_millis(0));
        (0..100_000).for_each(|item| wheel.add(EventTime::from_millis(100 + item % 7), item));
        let mut count = 0;
        for to in 0..200 {
            wheel.take_before(EventTime::from_millis(to * 50), |_, _| count += 1);
            wheel.add(EventTime::from_millis(to * 50 + 500), 0);
        }
        let capacity: usize = wheel.lists.iter().chain(&wheel.spare).map(Vec::capacity).sum();
        assert!(count > 100_000 && capacity <= 10_000, "of {count} items there is memory for {capacity}");
    }
}
