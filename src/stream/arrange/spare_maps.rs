//! Emptied maps of rows, which are filled again: growing a new one costs more than filling it.
//!
//! Invariant: the maps that are kept have room for no more rows than a few of the latest maps had, or than a small number:
//! the memory of a large window is released soon after it.

use std::hash::Hash;

use super::pane_row::PaneMap;

/// The greatest number of maps that are kept.
const MOST: usize = 16;
/// The number of maps of the latest ones' size for which there is room.
const ROOM: usize = 4;
/// The number of rows for which there is room however small the latest maps were.
const LEAST_ROOM: usize = 1 << 12;

/// The emptied maps of a step on one worker.
pub(super) struct SpareMaps<K, S> {
    maps: Vec<PaneMap<K, S>>,
    /// The greatest number of rows of the latest maps; halved with each that has fewer.
    usual: usize,
}

impl<K: Eq + Hash, S> SpareMaps<K, S> {
    pub(super) const fn new() -> Self {
        SpareMaps { maps: Vec::new(), usual: 0 }
    }

    /// Returns an empty map, if there is one.
    pub(super) fn take(&mut self) -> Option<PaneMap<K, S>> {
        self.maps.pop()
    }

    /// Takes back a map that had so many rows.
    pub(super) fn give(&mut self, mut map: PaneMap<K, S>, rows: usize) {
        map.clear();
        self.usual = rows.max(self.usual / 2);
        self.maps.push(map);
        let mut room = LEAST_ROOM.max(self.usual.saturating_mul(ROOM));
        self.maps.retain(|map| {
            let left = room.checked_sub(map.capacity());
            room = left.unwrap_or(room);
            left.is_some()
        });
        self.maps.truncate(MOST);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map_of(rows: usize) -> PaneMap<usize, ()> {
        (0..rows).map(|key| (key, crate::stream::counted::Counted { count: 1, sum: () })).collect()
    }

    fn give(spare: &mut SpareMaps<usize, ()>, rows: usize) {
        spare.give(map_of(rows), rows);
    }

    fn room(spare: &SpareMaps<usize, ()>) -> usize {
        spare.maps.iter().map(PaneMap::capacity).sum()
    }

    #[test]
    fn maps_of_windows_of_one_size_are_used_again() {
        let mut spare = SpareMaps::new();
        (0..40).for_each(|_| give(&mut spare, 100_000));
        assert!(room(&spare) >= 100_000 && room(&spare) <= 400_000, "{}", room(&spare));
        assert!(spare.take().is_some_and(|map| map.capacity() >= 100_000 && map.is_empty()));
        (0..40).for_each(|_| give(&mut spare, 10));
        assert_eq!(spare.maps.len(), MOST);
    }

    #[test]
    fn memory_of_large_windows_is_released() {
        let mut spare = SpareMaps::new();
        (0..16).for_each(|_| give(&mut spare, 100_000));
        (0..20).for_each(|_| give(&mut spare, 10));
        assert!(room(&spare) <= LEAST_ROOM, "{}", room(&spare));
    }
}
