//! What a view holds: rows with their counts, found by the hash of their key, of which a copy costs next to nothing.
//!
//! * Rows lie in **buckets** of a few dozen keys, by the hash; a bucket that is split makes two, one at a time (linear
//!   hashing), so that no change waits for all rows to be moved.
//! * Buckets are shared: a clone of the table is a clone of pointers to them, and whoever changes a bucket that a clone
//!   has copies that bucket first. So a reader never keeps the one who changes the table waiting for longer than a moment.
//!
//! Invariants: a row that is there is in the bucket that its hash says, once, and its count is not 0; no entry is empty.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::record::Record;

/// How many entries a bucket has on average before one is split.
const FULL: usize = 32;

/// A change of a row: the hash of its key, the row, by how much its count changes.
pub(super) type Change<D> = (u64, D, isize);

/// The rows of one hash, nearly always of one key.
#[derive(Clone, Debug)]
enum Rows<D> {
    One(D, isize),
    Many(BTreeMap<D, isize>),
}

impl<D: Record> Rows<D> {
    /// The rows with a change of one; nothing if none is left.
    fn with(rows: Option<Self>, row: D, diff: isize) -> Option<Self> {
        let mut many = match rows {
            None => return (diff != 0).then_some(Rows::One(row, diff)),
            Some(Rows::One(own, count)) if own == row => {
                return (count + diff != 0).then_some(Rows::One(own, count + diff));
            }
            Some(Rows::One(own, count)) => BTreeMap::from([(own, count)]),
            Some(Rows::Many(many)) => many,
        };
        let count = many.get(&row).map_or(diff, |count| count + diff);
        if count == 0 {
            many.remove(&row);
        } else {
            many.insert(row, count);
        }
        match many.len() {
            1 => many.pop_first().map(|(row, count)| Rows::One(row, count)),
            0 => None,
            _ => Some(Rows::Many(many)),
        }
    }

    fn len(&self) -> usize {
        match self {
            Rows::One(..) => 1,
            Rows::Many(many) => many.len(),
        }
    }

    fn each(&self, see: &mut impl FnMut(&D, isize)) {
        match self {
            Rows::One(row, count) => see(row, *count),
            Rows::Many(many) => many.iter().for_each(|(row, count)| see(row, *count)),
        }
    }
}

/// Entries in the order of their hashes; empty only while one is changed.
#[derive(Clone, Debug)]
pub(super) struct Bucket<D>(Vec<(u64, Option<Rows<D>>)>);

impl<D: Record> Bucket<D> {
    /// The rows of a hash.
    pub(super) fn of(&self, hash: u64, mut see: impl FnMut(&D, isize)) {
        if let Ok(at) = self.0.binary_search_by_key(&hash, |entry| entry.0)
            && let Some(rows) = &self.0[at].1
        {
            rows.each(&mut see);
        }
    }

    /// Takes in changes of one hash; answers how many rows there were of it, and how many there are.
    fn change(&mut self, hash: u64, changes: &mut Vec<Change<D>>) -> (usize, usize) {
        let at = match self.0.binary_search_by_key(&hash, |entry| entry.0) {
            Ok(at) => at,
            Err(at) => {
                self.0.insert(at, (hash, None));
                at
            }
        };
        let entry = &mut self.0[at].1;
        let before = entry.as_ref().map_or(0, Rows::len);
        // What goes, first: a row that is replaced then leaves its place to the new one.
        changes.sort_unstable_by_key(|(_, _, diff)| *diff > 0);
        for (_, row, diff) in changes.drain(..) {
            *entry = Rows::with(entry.take(), row, diff);
        }
        let after = entry.as_ref().map_or(0, Rows::len);
        if after == 0 {
            self.0.remove(at);
        }
        (before, after)
    }
}

/// The rows of a view.
#[derive(Clone, Debug)]
pub(super) struct Table<D> {
    buckets: Vec<Arc<Bucket<D>>>,
    /// How many hashes there are.
    entries: usize,
    /// How many different rows there are.
    rows: usize,
}

impl<D: Record> Table<D> {
    pub(super) fn new() -> Self {
        Table { buckets: vec![Arc::new(Bucket(Vec::new()))], entries: 0, rows: 0 }
    }

    /// How many different rows there are.
    pub(super) fn len(&self) -> usize {
        self.rows
    }

    /// Which bucket a hash is in, of so many: the lower bits that tell twice as many apart, or one bit less where that
    /// bucket has yet to be split.
    fn place(hash: u64, buckets: usize) -> usize {
        let mask = buckets.next_power_of_two() - 1;
        let place = hash as usize & mask;
        if place < buckets { place } else { place & (mask >> 1) }
    }

    /// The bucket that has the rows of a hash.
    pub(super) fn bucket(&self, hash: u64) -> Arc<Bucket<D>> {
        Arc::clone(&self.buckets[Self::place(hash, self.buckets.len())])
    }

    /// All rows, in no order.
    pub(super) fn each(&self, mut see: impl FnMut(&D, isize)) {
        let entries = self.buckets.iter().flat_map(|bucket| &bucket.0);
        entries.filter_map(|(_, rows)| rows.as_ref()).for_each(|rows| rows.each(&mut see));
    }

    /// Takes in changes that are in the order of their hashes.
    pub(super) fn apply(&mut self, changes: Vec<Change<D>>) {
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
        // The new one takes what the added bit says of the one that has the same bits below it.
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

    fn contents(table: &Table<u32>) -> BTreeMap<u32, isize> {
        let mut all = BTreeMap::new();
        table.each(|row, count| assert_eq!(all.insert(*row, count), None, "{row} is there twice"));
        all
    }

    fn check(table: &Table<u32>, naive: &Naive) {
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

    /// Random changes, and clones that are looked at when there were many more.
    #[test]
    fn a_table_is_what_the_changes_make_and_a_clone_stays_as_it_was() {
        for seed in 0..30 {
            println!("seed {seed}");
            let mut random = Rng::with_seed(seed);
            let (mut table, mut naive, mut clones) = (Table::<u32>::new(), Naive::new(), Vec::new());
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
        let mut table = Table::<u32>::new();
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
