//! The rows of a view with their counts, indexed by the hash of their key; a clone is cheap.
//!
//! * Rows are stored in **buckets** of a few dozen hashes. When the buckets are too full one of them is split in two,
//!   in a fixed order (linear hashing), so that no change waits for all rows to be moved.
//! * Buckets are copied on write: a clone of the table copies only the pointers to them, and a writer copies a bucket
//!   that a clone shares before it changes the bucket. So a reader never blocks the writer for long.
//!
//! Invariants: a row is in the bucket of its hash, once, and its count is not 0; no entry is empty.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::record::Record;

/// Average number of entries per bucket above which a bucket is split.
const FULL: usize = 32;

/// A change of a row: the hash of its key, the row, and the change of its count.
pub(super) type KeyedChange<D> = (u64, D, isize);

/// The rows of one hash, nearly always of one key.
#[derive(Clone, Debug)]
enum HashRows<D> {
    One(D, isize),
    Many(BTreeMap<D, isize>),
}

impl<D: Record> HashRows<D> {
    /// Applies a change to the rows; `None` if no row is left.
    fn with(rows: Option<Self>, row: D, diff: isize) -> Option<Self> {
        let mut many = match rows {
            None => return (diff != 0).then_some(HashRows::One(row, diff)),
            Some(HashRows::One(own, count)) if own == row => {
                return (count + diff != 0).then_some(HashRows::One(own, count + diff));
            }
            Some(HashRows::One(own, count)) => BTreeMap::from([(own, count)]),
            Some(HashRows::Many(many)) => many,
        };
        let count = many.get(&row).map_or(diff, |count| count + diff);
        if count == 0 {
            many.remove(&row);
        } else {
            many.insert(row, count);
        }
        match many.len() {
            1 => many.pop_first().map(|(row, count)| HashRows::One(row, count)),
            0 => None,
            _ => Some(HashRows::Many(many)),
        }
    }

    fn len(&self) -> usize {
        match self {
            HashRows::One(..) => 1,
            HashRows::Many(many) => many.len(),
        }
    }

    fn each(&self, see: &mut impl FnMut(&D, isize)) {
        match self {
            HashRows::One(row, count) => see(row, *count),
            HashRows::Many(many) => many.iter().for_each(|(row, count)| see(row, *count)),
        }
    }
}

/// Entries ordered by hash; one is `None` only while it is being changed.
#[derive(Clone, Debug)]
pub(super) struct Bucket<D>(Vec<(u64, Option<HashRows<D>>)>);

impl<D: Record> Bucket<D> {
    /// Calls `see` with each row of a hash and its count.
    pub(super) fn of(&self, hash: u64, mut see: impl FnMut(&D, isize)) {
        if let Ok(at) = self.0.binary_search_by_key(&hash, |entry| entry.0)
            && let Some(rows) = &self.0[at].1
        {
            rows.each(&mut see);
        }
    }

    /// Applies changes of one hash; returns the number of its rows before and after.
    fn change(&mut self, hash: u64, changes: &mut Vec<KeyedChange<D>>) -> (usize, usize) {
        let at = match self.0.binary_search_by_key(&hash, |entry| entry.0) {
            Ok(at) => at,
            Err(at) => {
                self.0.insert(at, (hash, None));
                at
            }
        };
        let entry = &mut self.0[at].1;
        let before = entry.as_ref().map_or(0, HashRows::len);
        // Retractions first, so that a replaced row makes room for the new one.
        changes.sort_unstable_by_key(|(_, _, diff)| *diff > 0);
        for (_, row, diff) in changes.drain(..) {
            *entry = HashRows::with(entry.take(), row, diff);
        }
        let after = entry.as_ref().map_or(0, HashRows::len);
        if after == 0 {
            self.0.remove(at);
        }
        (before, after)
    }
}

/// The rows of a view.
#[derive(Clone, Debug)]
pub(super) struct ViewTable<D> {
    buckets: Vec<Arc<Bucket<D>>>,
    /// Number of distinct hashes.
    entries: usize,
    /// Number of distinct rows.
    rows: usize,
}

impl<D: Record> ViewTable<D> {
    pub(super) fn new() -> Self {
        ViewTable { buckets: vec![Arc::new(Bucket(Vec::new()))], entries: 0, rows: 0 }
    }

    /// Returns the number of distinct rows.
    pub(super) fn len(&self) -> usize {
        self.rows
    }

    /// Returns the index of a hash's bucket: the lower bits of the hash that distinguish `buckets` rounded up to a
    /// power of two, or one bit less if that bucket has yet to be split off.
    fn place(hash: u64, buckets: usize) -> usize {
        let mask = buckets.next_power_of_two() - 1;
        let place = hash as usize & mask;
        if place < buckets { place } else { place & (mask >> 1) }
    }

    /// Returns the bucket of a hash.
    pub(super) fn bucket(&self, hash: u64) -> Arc<Bucket<D>> {
        Arc::clone(&self.buckets[Self::place(hash, self.buckets.len())])
    }

    /// Calls `see` with each row and its count, in no order.
    pub(super) fn each(&self, mut see: impl FnMut(&D, isize)) {
        let entries = self.buckets.iter().flat_map(|bucket| &bucket.0);
        entries.filter_map(|(_, rows)| rows.as_ref()).for_each(|rows| rows.each(&mut see));
    }

    /// Applies changes that are ordered by hash.
    pub(super) fn apply(&mut self, changes: Vec<KeyedChange<D>>) {
        let (mut changes, mut of_one) = (changes.into_iter().peekable(), Vec::new());
        while let Some(first) = changes.next() {
            let hash = first.0;
            of_one.push(first);
            while let Some(next) = changes.next_if(|next| next.0 == hash) {
                of_one.push(next);
            }
            let place = Self::place(hash, self.buckets.len());
            let (before, after) = Arc::make_mut(&mut self.buckets[place]).change(hash, &mut of_one);
            self.rows = self.rows + after - before;
            self.entries = self.entries + usize::from(after > 0) - usize::from(before > 0);
            if self.entries > self.buckets.len() * FULL {
                self.split();
            }
        }
    }

    /// Splits the next bucket in two.
    fn split(&mut self) {
        let buckets = self.buckets.len();
        // The new bucket takes the entries whose hash has the added bit set, from the bucket with the same lower bits.
        let from = Self::place(buckets as u64, buckets);
        let bucket = Arc::make_mut(&mut self.buckets[from]);
        let goes = |entry: &mut (u64, _)| Self::place(entry.0, buckets + 1) == buckets;
        let new = bucket.0.extract_if(.., goes).collect();
        self.buckets.push(Arc::new(Bucket(new)));
    }
}

#[cfg(test)]
mod tests {
    use fastrand::Rng;

    use super::*;

    type Naive = BTreeMap<(u64, u32), isize>;

    fn contents(table: &ViewTable<u32>) -> BTreeMap<u32, isize> {
        let mut all = BTreeMap::new();
        table.each(|row, count| assert_eq!(all.insert(*row, count), None, "{row} is there twice"));
        all
    }

    fn check(table: &ViewTable<u32>, naive: &Naive) {
        assert_eq!(contents(table), naive.iter().map(|((_, row), count)| (*row, *count)).collect());
        assert_eq!(table.len(), naive.len());
        for hash in naive.keys().map(|(hash, _)| *hash).collect::<std::collections::BTreeSet<_>>() {
            let (mut found, rows) = (BTreeMap::new(), naive.range((hash, 0)..=(hash, u32::MAX)));
            table.bucket(hash).of(hash, |row, count| assert_eq!(found.insert(*row, count), None));
            assert_eq!(found, rows.map(|((_, row), count)| (*row, *count)).collect(), "hash {hash}");
        }
        let entries = table.buckets.iter().map(|bucket| bucket.0.len()).sum::<usize>();
        assert_eq!(table.entries, entries);
        assert!(table.buckets.iter().flat_map(|bucket| &bucket.0).all(|(_, rows)| rows.is_some()));
    }

    /// Random changes, with clones that are checked after many more changes.
    #[test]
    fn a_table_is_what_the_changes_make_and_a_clone_stays_as_it_was() {
        for seed in 0..30 {
            println!("seed {seed}");
            let mut random = Rng::with_seed(seed);
            let (mut table, mut naive, mut clones) = (ViewTable::<u32>::new(), Naive::new(), Vec::new());
            // Some tables have few hashes with many rows each, some have many.
            let hashes = *random.choice(&[3u64, 200, 20_000]).unwrap();
            for _ in 0..random.usize(1..60) {
                let mut changes = BTreeMap::<(u64, u32), isize>::new();
                for _ in 0..random.usize(0..300) {
                    let row = random.u32(0..20_000);
                    let hash = (u64::from(row) % hashes).wrapping_mul(0x9E37_79B9_7F4A_7C15);
                    let known = naive.get(&(hash, row)).copied().filter(|_| random.bool());
                    changes.insert((hash, row), known.map_or(random.isize(-2..3), |count| -count));
                }
                for (row, diff) in &changes {
                    *naive.entry(*row).or_default() += diff;
                }
                naive.retain(|_, count| *count != 0);
                let changes = changes.into_iter().filter(|(_, diff)| *diff != 0);
                table.apply(changes.map(|((hash, row), diff)| (hash, row, diff)).collect());
                if random.u8(0..4) == 0 {
                    clones.push((table.clone(), naive.clone()));
                }
            }
            check(&table, &naive);
            clones.iter().for_each(|(table, naive)| check(table, naive));
            assert!(hashes < 20_000 || naive.len() < 2_000 || table.buckets.len() > 30);
        }
    }

    #[test]
    fn what_nobody_has_cloned_is_not_copied() {
        let mut table = ViewTable::<u32>::new();
        table.apply((0..5_000).map(|row| (u64::from(row), row, 1)).collect());
        let before: Vec<_> = table.buckets.iter().map(Arc::as_ptr).collect();
        table.apply((0..5_000).map(|row| (u64::from(row), row, 1)).collect());
        assert!(table.buckets.iter().map(Arc::as_ptr).eq(before));
        let clone = table.clone();
        table.apply(vec![(7, 7, 1)]);
        let shared = table.buckets.iter().zip(&clone.buckets).filter(|(own, other)| Arc::ptr_eq(own, other)).count();
        assert_eq!(shared, table.buckets.len() - 1);
    }
}
