//! The open windows of a step that have panes: as ranges, and how many they are.
//!
//! Panes of one step overlap by nearly all of their windows, so the ranges are few where windows overlap; windows that do not
//! overlap are ranges of one each. What is asked for costs what is asked for, not what is open: the number of all windows is
//! kept as panes come and windows close.
//!
//! Invariant: the windows of the ranges are those of all panes that were noted, without those that have closed.

use std::collections::BTreeMap;

use crate::stream::panes::{Pane, PaneRange, WindowAssigner};
use crate::time::EventTime;

/// Ranges of open windows.
#[derive(Debug, Default)]
pub(super) struct OpenRanges {
    /// The end of the first window of each range, with the end of its last. No two ranges have a window in common.
    ranges: BTreeMap<EventTime, EventTime>,
    /// The number of windows in all ranges.
    count: u64,
}

impl OpenRanges {
    /// Notes the windows of a pane that end after `closed`; they may be known.
    pub(super) fn note<T: Pane>(&mut self, windows: &WindowAssigner, pane: T, closed: EventTime) {
        let mut last = pane.last();
        if last <= closed {
            return;
        }
        let mut first = if pane.first() > closed { pane.first() } else { windows.end_after(closed) };
        // Ranges are in order and apart: the one that begins last is the one that ends last.
        while let Some((&from, &to)) = self.ranges.range(..=last).next_back().filter(|(_, to)| **to >= first) {
            if from <= first && to >= last {
                return;
            }
            self.remove(windows, from);
            (first, last) = (first.min(from), last.max(to));
        }
        self.insert(windows, first, last);
    }

    /// Removes the windows that end at or before `closed`.
    pub(super) fn close(&mut self, windows: &WindowAssigner, closed: EventTime) {
        while let Some((&first, &last)) = self.ranges.first_key_value().filter(|(first, _)| **first <= closed) {
            self.remove(windows, first);
            if last > closed {
                self.insert(windows, windows.end_after(closed), last);
            }
        }
    }

    /// Returns the ends of the windows that end after `after` and not after `through`, in order.
    pub(super) fn ends<'a>(
        &'a self,
        windows: &'a WindowAssigner,
        after: EventTime,
        through: EventTime,
    ) -> impl Iterator<Item = EventTime> + 'a {
        // The range that has begun by then may have some of these windows.
        let begun = self.ranges.range(..=after).next_back().map_or(after, |(first, _)| *first);
        let ranges = self.ranges.range(begun.min(through)..=through);
        ranges.flat_map(move |(first, last)| windows.ends(PaneRange::new(*first, *last), after, through))
    }

    /// Returns the number of windows.
    pub(super) fn count(&self) -> u64 {
        self.count
    }

    fn insert(&mut self, windows: &WindowAssigner, first: EventTime, last: EventTime) {
        self.count += windows.count(first, last);
        self.ranges.insert(first, last);
    }

    fn remove(&mut self, windows: &WindowAssigner, first: EventTime) {
        if let Some(last) = self.ranges.remove(&first) {
            self.count -= windows.count(first, last);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Compares the ranges with the set of all windows, while panes come and windows close.
    #[test]
    fn open_windows_are_those_of_all_panes_in_order_and_once() {
        let at = EventTime::from_millis;
        let mut random = fastrand::Rng::with_seed(7);
        for (size, slide) in [(60, 10), (50, 20), (7, 3), (10, 10), (12, 1)] {
            for windows in [
                WindowAssigner::Tumbling { size, offset: 2 },
                WindowAssigner::Sliding { size, slide, offset: 2 },
                WindowAssigner::Cumulative { size, step: 1, offset: 2 },
            ] {
                let (mut open, mut all, mut closed) = (OpenRanges::default(), BTreeSet::new(), at(0));
                for _ in 0..2_000 {
                    let found = windows.find(at(closed.millis() + random.i64(-20..300)));
                    let pane = PaneRange::new(found.first, found.last);
                    // Records that are late for some of its windows are in a pane of the others.
                    let of_pane: Vec<_> = windows.ends(pane, EventTime::MIN, EventTime::MAX).collect();
                    let pane = PaneRange::new(of_pane[random.usize(0..of_pane.len())], found.last);
                    open.note(&windows, pane, closed);
                    all.extend(windows.ends(pane, closed, EventTime::MAX));
                    if random.u8(0..4) == 0 {
                        closed = at(closed.millis() + random.i64(0..40));
                        open.close(&windows, closed);
                        all.retain(|end| *end > closed);
                    }
                    let (after, through) =
                        (at(closed.millis() + random.i64(-20..200)), at(closed.millis() + random.i64(-30..400)));
                    let expected: Vec<_> = all.iter().copied().filter(|end| *end > after && *end <= through).collect();
                    let told: Vec<_> = open.ends(&windows, after, through).collect();
                    assert_eq!(told, expected, "{windows:?}, {after} to {through}");
                    let told: Vec<_> = open.ends(&windows, closed, EventTime::MAX).collect();
                    assert_eq!((told.len() as u64, open.count()), (all.len() as u64, all.len() as u64), "{windows:?}");
                }
            }
        }
    }

    #[test]
    fn the_window_of_all_time_is_one() {
        let mut open = OpenRanges::default();
        for _ in 0..2 {
            open.note(&WindowAssigner::Global, EventTime::MAX, EventTime::MIN);
        }
        let ends = |open: &OpenRanges| -> Vec<_> {
            open.ends(&WindowAssigner::Global, EventTime::MIN, EventTime::MAX).collect()
        };
        assert_eq!((ends(&open), open.count()), (vec![EventTime::MAX], 1));
        open.close(&WindowAssigner::Global, EventTime::MAX);
        assert_eq!((ends(&open), open.count()), (vec![], 0));
    }
}
