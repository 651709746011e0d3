//! The records of a join by window and key, where each record is in one window.
//!
//! A window that closes is taken whole: its keys are not looked up again, and its records need no order. Windows that
//! overlap share their records: [`super::waiting_keys`] has those.

use std::collections::{BTreeMap, HashMap};

use foldhash::fast::FixedState;

use super::side::{self, JoinSide, SavedRecord, WaitingRecord};
use crate::record::Record;
use crate::stream::checkpoint::{RowChunks, chunks_of};
use crate::time::EventTime;

/// A saved record with the end of its window.
type SavedInWindow<K, L, R> = SavedRecord<K, (EventTime, L), (EventTime, R)>;

/// Number of keys for which the memory of a closed window is kept, however few there were.
const KEPT_KEYS: usize = 64;

/// The records of a key in a window.
pub(super) struct WindowSides<L, R> {
    pub(super) left: Vec<WaitingRecord<L>>,
    pub(super) right: Vec<WaitingRecord<R>>,
    /// `true` if there are records that came since the last seal.
    unsealed: bool,
}

impl<L, R> Default for WindowSides<L, R> {
    fn default() -> Self {
        WindowSides { left: Vec::new(), right: Vec::new(), unsealed: false }
    }
}

impl<L, R> WindowSides<L, R> {
    /// Returns the number of records.
    pub(super) fn len(&self) -> usize {
        self.left.len() + self.right.len()
    }
}

/// The records of a window by key.
type KeyedWindow<K, L, R> = HashMap<K, WindowSides<L, R>, FixedState>;

/// The records of a join by window, on one worker.
pub(super) struct SingleWindows<K, L, R> {
    /// Open windows by their ends.
    windows: BTreeMap<EventTime, KeyedWindow<K, L, R>>,
    /// The empty map of a closed window, whose memory is used again.
    spare: KeyedWindow<K, L, R>,
    /// The keys with records that came since the last seal, with their windows; `None` in a job without state.
    unsealed: Option<Vec<(EventTime, K)>>,
}

impl<K: Record, L: Record, R: Record> SingleWindows<K, L, R> {
    /// Creates the windows of a join without records; `is_durable` if records are sealed.
    pub(super) fn new(is_durable: bool) -> Self {
        SingleWindows { windows: BTreeMap::new(), spare: HashMap::default(), unsealed: is_durable.then(Vec::new) }
    }

    /// Adds a record to the window that ends at `end`. `is_new` if it is in no segment yet.
    #[inline]
    pub(super) fn insert(
        &mut self,
        key: K,
        part: JoinSide<WaitingRecord<L>, WaitingRecord<R>>,
        (end, is_new): (EventTime, bool),
    ) {
        let window = self.windows.entry(end).or_insert_with(|| std::mem::take(&mut self.spare));
        let sides = match self.unsealed.as_mut().filter(|_| is_new) {
            None => window.entry(key).or_default(),
            Some(unsealed) => {
                let sides = window.entry(key.clone()).or_default();
                if !std::mem::replace(&mut sides.unsealed, true) {
                    unsealed.push((end, key));
                }
                sides
            }
        };
        match part {
            JoinSide::Left(record) => sides.left.push(record),
            JoinSide::Right(record) => sides.right.push(record),
        }
    }

    /// Removes the windows that end at or before `to`, in order, and calls `each` with the records of each of their keys.
    pub(super) fn close(&mut self, to: EventTime, mut each: impl FnMut(EventTime, &K, &WindowSides<L, R>)) {
        while let Some(first) = self.windows.first_entry().filter(|first| *first.key() <= to) {
            let (end, mut window) = first.remove_entry();
            let used = window.len();
            for (key, sides) in window.drain() {
                each(end, &key, &sides);
            }
            if window.capacity() / 4 <= used.max(KEPT_KEYS) {
                self.spare = window;
            }
        }
    }

    /// Returns the records that came since the last seal.
    pub(super) fn seal(&mut self) -> Option<RowChunks<SavedInWindow<K, L, R>>> {
        let mut rows = Vec::new();
        for (end, key) in self.unsealed.as_mut().map(std::mem::take).unwrap_or_default() {
            let Some(sides) = self.windows.get_mut(&end).and_then(|window| window.get_mut(&key)) else { continue };
            sides.unsealed = false;
            for (stamp, data, change) in sides.left.iter_mut().filter_map(|record| record.seal(end)) {
                rows.push(((key.clone(), stamp, JoinSide::Left((end, data))), change));
            }
            for (stamp, data, change) in sides.right.iter_mut().filter_map(|record| record.seal(end)) {
                rows.push(((key.clone(), stamp, JoinSide::Right((end, data))), change));
            }
        }
        side::consolidate(&mut rows);
        if rows.is_empty() { None } else { Some(chunks_of(rows)) }
    }
}

impl<K, L, R> SingleWindows<K, L, R> {
    /// Returns the number of records.
    pub(super) fn held(&self) -> usize {
        self.windows.values().flat_map(HashMap::values).map(WindowSides::len).sum()
    }
}
