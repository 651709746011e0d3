//! Rows of tables: values with the timestamps that order them, one worker's rows, and what a seal takes of them.
//!
//! Why they are in a hash map: see [`table`](super::table).

use std::collections::HashMap;

use foldhash::fast::FixedState;
use serde::{Deserialize, Serialize};

use crate::record::Record;
use crate::stream::assign::SourcePosition;
use crate::stream::checkpoint::{self, RowChunks, RowOps, chunks_of};
use crate::time::EventTime;

/// A value with the timestamp that orders it. The greatest is the latest.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename = "Stamped")]
pub(super) struct StampedValue<V> {
    pub(super) time: EventTime,
    pub(super) at: SourcePosition,
    /// The value; `None` if the record deletes its key.
    pub(super) value: Option<V>,
}

/// A row, as it is exchanged and as snapshots keep it.
pub(super) type TableRow<K, V> = (K, StampedValue<V>);
/// A change of the table's visible rows: row, epoch, difference.
pub(super) type TableChange<K, V> = ((K, V), u64, isize);
pub(super) type TableMap<K, R> = HashMap<K, R, FixedState>;

/// Returns the functions that order and add saved rows. Rows never expire, and tombstones are never dropped.
pub(super) fn saved_rows<K: Record, V: Record>() -> RowOps<TableRow<K, V>> {
    RowOps {
        order: |a, b| a.0.cmp(&b.0),
        add: checkpoint::keep_newest,
        is_zero: |_| false,
        // Records that arrive later may be older: a delete must override them.
        is_tombstone: |_| false,
        window: |_| EventTime::MAX,
    }
}

/// A row of the table.
pub(super) struct TableEntry<V> {
    pub(super) last: StampedValue<V>,
    /// `true` if the row has changed since the last seal.
    unsealed: bool,
}

/// The rows of one worker.
pub(super) struct TableState<K, V> {
    pub(super) rows: TableMap<K, TableEntry<V>>,
    /// The keys of rows that have changed since the last seal; `None` in a job without state.
    pub(super) unsealed: Option<Vec<K>>,
}

impl<K: Record, V: Record> TableState<K, V> {
    /// Replaces rows by greater ones of an epoch, and returns the visible changes. Rows of a snapshot are in a
    /// segment already and need no seal.
    pub(super) fn fold(
        &mut self,
        epoch: u64,
        news: TableMap<K, StampedValue<V>>,
        from_snapshot: bool,
    ) -> Vec<TableChange<K, V>> {
        let (mut changes, mut unsealed) = (Vec::new(), self.unsealed.as_mut().filter(|_| !from_snapshot));
        for (key, new) in news {
            let (value, is_unsealed) = (new.value.clone(), unsealed.is_some());
            let (old, was_unsealed) = match self.rows.get_mut(&key) {
                Some(held) if held.last >= new => continue,
                Some(held) => {
                    let was_unsealed = std::mem::replace(&mut held.unsealed, is_unsealed);
                    (std::mem::replace(&mut held.last, new).value, was_unsealed)
                }
                None => {
                    self.rows.insert(key.clone(), TableEntry { last: new, unsealed: is_unsealed });
                    (None, false)
                }
            };
            if let Some(unsealed) = unsealed.as_mut().filter(|_| !was_unsealed) {
                unsealed.push(key.clone());
            }
            if old != value {
                changes.extend(old.map(|old| ((key.clone(), old), epoch, -1)));
                changes.extend(value.map(|value| ((key, value), epoch, 1)));
            }
        }
        changes
    }

    /// Returns the rows that have changed since the last seal, in order; `None` if there are none.
    pub(super) fn seal(&mut self) -> Option<RowChunks<TableRow<K, V>>> {
        let mut keys = std::mem::take(self.unsealed.as_mut()?);
        keys.sort_unstable();
        let mut rows = Vec::with_capacity(keys.len());
        for key in keys {
            let Some(held) = self.rows.get_mut(&key) else { unreachable!("rows are never removed") };
            held.unsealed = false;
            rows.push((key, held.last.clone()));
        }
        if rows.is_empty() { None } else { Some(chunks_of(rows)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamped(time: i64, offset: u64, value: Option<u8>) -> StampedValue<u8> {
        StampedValue { time: EventTime::from_millis(time), at: (0, 0, offset), value }
    }

    fn news(key: u8, row: StampedValue<u8>) -> TableMap<u8, StampedValue<u8>> {
        [(key, row)].into_iter().collect()
    }

    /// Rows of a key may be added up in any order, and repeatedly.
    #[test]
    fn adding_rows_keeps_the_greatest() {
        let add = saved_rows::<u8, u8>().add;
        let rows = [stamped(1, 9, Some(1)), stamped(2, 0, None), stamped(2, 1, Some(0)), stamped(2, 1, None)];
        for (a, b, c) in [(0, 1, 2), (2, 1, 0), (1, 3, 2), (3, 2, 3), (2, 2, 2)] {
            let mut sum = (7, rows[a].clone());
            for other in [b, c, a] {
                add(&mut sum, &(7, rows[other].clone()));
            }
            assert_eq!(sum.1, rows[2]);
        }
    }

    /// A segment has what has changed since the last one, deletes and invisible changes included, and nothing else.
    #[test]
    fn a_seal_has_what_has_changed_since_the_last_one() {
        let mut table = TableState { rows: HashMap::default(), unsealed: Some(Vec::new()) };
        let sealed = |table: &mut TableState<u8, u8>| {
            let (mut rows, mut out) = (Vec::new(), table.seal());
            while out.as_mut().is_some_and(|out| out(1, &mut |row: TableRow<u8, u8>| rows.push(row))) {}
            rows
        };
        assert_eq!(table.fold(2, news(1, stamped(10, 0, Some(5))), true), [((1, 5), 2, 1)]);
        assert_eq!(sealed(&mut table), [], "what was loaded is in a segment already");
        assert_eq!(table.fold(4, news(1, stamped(20, 1, Some(5))), false), [], "nothing is seen of it");
        assert_eq!(table.fold(4, news(0, stamped(5, 2, None)), false), []);
        assert_eq!(table.fold(6, news(0, stamped(4, 3, Some(9))), false), [], "the delete is newer");
        assert_eq!(table.fold(8, news(1, stamped(30, 4, Some(6))), false), [((1, 5), 8, -1), ((1, 6), 8, 1)]);
        assert_eq!(sealed(&mut table), [(0, stamped(5, 2, None)), (1, stamped(30, 4, Some(6)))]);
        assert_eq!(sealed(&mut table), []);
        assert_eq!(table.fold(10, news(0, stamped(6, 5, Some(2))), false), [((0, 2), 10, 1)]);
        assert_eq!(sealed(&mut table), [(0, stamped(6, 5, Some(2)))]);
    }
}
