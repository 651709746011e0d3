//! The rows of the window that closes next, kept from one window to the next: for windows that overlap, of aggregates from
//! which parts can be removed.
//!
//! A window of n panes has all but one of them in common with the one before it. So the sum of a window is that of the one
//! before, with the panes that enter added and those that leave removed: each pane is added once and removed once, and what
//! closing a window costs does not depend on n.
//!
//! Invariants:
//! * The totals are the sum of the open panes whose first window has closed. Records of such a pane are late for its first
//!   window, and get another pane: it does not change any more.
//! * Aggregates are exact, and so are totals, whichever panes they were added up of: results do not depend on it.
//! * Nothing of it is stored. A row from which a part cannot be removed, such as the greatest value from a maximum, is added
//!   up anew; all rows are, if there are many such, and when a job resumes.

use std::collections::BTreeSet;
use std::collections::hash_map::Entry;

use super::pane_row::PaneMap;
use crate::record::Record;
use crate::stream::aggregate::Accumulator;
use crate::stream::counted::Counted;
use crate::stream::panes::Pane;
use crate::time::EventTime;

/// The number of rows for which totals have room however few they are.
const LEAST_ROOM: usize = 1 << 10;

/// The rows of the window that closes next, so far.
pub(super) struct RunningWindow<T, K, S> {
    /// Open panes whose first window has not closed, with its end.
    ahead: BTreeSet<(EventTime, T)>,
    /// The sum of the other open panes, by key; `None` if it is not known.
    totals: Option<PaneMap<K, S>>,
}

impl<T: Pane, K: Record, S: Accumulator> RunningWindow<T, K, S> {
    /// `true` if windows are closed by this.
    pub(super) const USED: bool = T::IN_SEVERAL_WINDOWS && S::INVERTIBLE;

    /// Begins without panes.
    pub(super) fn new() -> Self {
        RunningWindow { ahead: BTreeSet::new(), totals: Some(PaneMap::default()) }
    }

    /// Notes a pane, which may be known already.
    pub(super) fn note(&mut self, pane: T, closed: EventTime) {
        if !Self::USED {
            return;
        }
        if pane.first() > closed {
            self.ahead.insert((pane.first(), pane));
        } else {
            self.totals = None;
        }
    }

    /// Returns the end of the first window of the panes that have not entered.
    pub(super) fn first_ahead(&self) -> Option<EventTime> {
        self.ahead.first().map(|(first, _)| *first)
    }

    /// Removes and returns the panes that enter the window that ends at `end`, in order.
    pub(super) fn entering(&mut self, end: EventTime) -> BTreeSet<T> {
        let mut entering = BTreeSet::new();
        while self.ahead.first().is_some_and(|(first, _)| *first <= end) {
            entering.extend(self.ahead.pop_first().map(|(_, pane)| pane));
        }
        entering
    }

    /// Takes the totals out, to change them; `None` if they have to be added up anew.
    pub(super) fn take(&mut self) -> Option<PaneMap<K, S>> {
        self.totals.take()
    }

    /// Puts the totals back.
    pub(super) fn put(&mut self, mut totals: PaneMap<K, S>) {
        if totals.capacity() / 8 > totals.len().max(LEAST_ROOM) {
            totals.shrink_to(totals.len() * 2);
        }
        self.totals = Some(totals);
    }
}

/// Removes a part from the row of a key. If that is not possible, removes the row, and returns the key.
pub(super) fn remove_from<K: Record, S: Accumulator>(
    totals: &mut PaneMap<K, S>,
    key: K,
    part: &Counted<S>,
) -> Option<K> {
    // There is no row if another pane that leaves with this one could not be removed from it.
    let Entry::Occupied(mut row) = totals.entry(key) else { return None };
    let removed = row.get_mut().remove(part);
    if removed && row.get().count > 0 {
        return None;
    }
    let (key, _) = row.remove_entry();
    (!removed).then_some(key)
}
