//! Lookups in groups, so that the processor waits for memory once a group instead of once a record.
//!
//! A lookup in a map that is larger than the caches waits for memory twice or more: for the map's index, for the entry, for
//! what the entry points to. Lookups of different keys do not depend on each other, and the processor begins several at a
//! time if little stands between them. So before the records of a group are added to their rows, one after the other, the
//! entries of all of them are read. (Chen, Ailamaki, Gibbons, Mowry, "Improving Hash Join Performance through Prefetching",
//! 2004, with reads instead of prefetch instructions.)
//!
//! Invariant: nothing but time depends on it.

use std::collections::HashMap;
use std::hash::Hash;
use std::hint::black_box;

use foldhash::fast::FixedState;

/// Number of keys of a group.
pub(super) const GROUP: usize = 16;

/// Size in bytes of a map that is taken to be in a cache anyway.
const CACHED: usize = 1 << 19;

/// Reads the entries of keys, and of each of them what `read` does.
pub(super) fn read_entries<'a, K: Hash + Eq + 'a, V>(
    map: &HashMap<K, V, FixedState>,
    keys: impl Iterator<Item = &'a K>,
    read: impl Fn(&V) -> i64,
) {
    if map.capacity() * size_of::<(K, V)>() <= CACHED {
        return;
    }
    let seen = keys.filter_map(|key| map.get(key)).fold(0_i64, |seen, value| seen.wrapping_add(read(value)));
    black_box(seen);
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    /// The keys whose entries are read in a map of so many keys, of those asked for.
    fn read(size: u64, keys: &[u64]) -> Vec<i64> {
        let map: HashMap<u64, i64, FixedState> = (0..size).map(|key| (key, key as i64)).collect();
        let read = RefCell::new(Vec::new());
        read_entries(&map, keys.iter(), |value| {
            read.borrow_mut().push(*value);
            *value
        });
        read.into_inner()
    }

    #[test]
    fn entries_of_large_maps_are_read_and_those_of_small_ones_are_not() {
        assert_eq!(read(200_000, &[7, 199_999, 200_000, 7]), [7, 199_999, 7]);
        assert!(read(1_000, &[7, 999]).is_empty());
    }
}
