//! Joins of collections by key: inner and outer, and by the presence of a key.
//!
//! Multiplicities are those of SQL's bags: a pair that is there m times and one that is there n times are joined m · n
//! times; a pair that finds no other is kept as many times as it is there. A key is **present** if it has a pair that is
//! there a positive number of times on balance.

use differential_dataflow::VecCollection;

use super::Collection;
use crate::record::Record;

/// A differential collection whose timestamp is the epoch.
type RawCollection<'s, D> = VecCollection<'s, u64, D, isize>;
/// A key with a value of either side, or of both.
type FullPair<K, V, V2> = (K, (Option<V>, Option<V2>));
/// Pairs with a partner, each with it, and pairs without one.
type MatchesAndRest<'s, K, V, V2> = (RawCollection<'s, (K, (V, V2))>, RawCollection<'s, (K, V)>);

/// Collections of pairs whose first item is the key.
impl<'f, K: Record, V: Record> Collection<'f, (K, V)> {
    /// Joins each pair of this collection with each pair of the other that has its key.
    pub fn join<V2: Record>(self, other: Collection<'f, (K, V2)>) -> Collection<'f, (K, (V, V2))> {
        self.through_with(other, differential_dataflow::Collection::join)
    }

    /// Like [`Collection::join`], but returns what `change` makes of the key and the two values.
    pub fn join_map<V2: Record, D: Record>(
        self,
        other: Collection<'f, (K, V2)>,
        change: impl Fn(&K, &V, &V2) -> D + 'static,
    ) -> Collection<'f, D> {
        self.through_with(other, |left, right| left.join_map(right, change))
    }

    /// Keeps the pairs whose key is in `keys`, each as many times as the key is in it.
    #[must_use]
    pub fn semijoin(self, keys: Collection<'f, K>) -> Collection<'f, (K, V)> {
        self.through_with(keys, differential_dataflow::Collection::semijoin)
    }

    /// Keeps the pairs whose key is not in `keys`, which must have each key at most once: see
    /// [`Collection::distinct`].
    #[must_use]
    pub fn antijoin(self, keys: Collection<'f, K>) -> Collection<'f, (K, V)> {
        self.through_with(keys, differential_dataflow::Collection::antijoin)
    }

    /// Like [`Collection::join`], but keeps the pairs of this collection whose key the other one has not, with `None`.
    ///
    /// ```
    /// use tidegate::testing::{Captured, TestRun};
    /// use tidegate::source::memory::MemorySource;
    ///
    /// # fn main() -> tidegate::Result<()> {
    /// let stock = vec![("tea".to_string(), Some(3)), ("rice".to_string(), Some(8))];
    /// let prices = vec![("tea".to_string(), Some(5)), ("salt".to_string(), Some(1))];
    /// let (stock, prices) = (MemorySource::new(vec![stock], |_| 0), MemorySource::new(vec![prices], |_| 0));
    /// let rows = Captured::new();
    /// let output = rows.clone();
    /// TestRun::new().run(move |flow| {
    ///     flow.table("stock", &stock).left_join(flow.table("prices", &prices)).write("rows", &output);
    /// })?;
    /// assert_eq!(rows.all(), [("rice".to_string(), (8, None)), ("tea".into(), (3, Some(5)))]);
    /// # Ok(()) }
    /// ```
    pub fn left_join<V2: Record>(self, other: Collection<'f, (K, V2)>) -> Collection<'f, (K, (V, Option<V2>))> {
        self.through_with(other, |left, right| {
            let keys = keys_of(right.clone());
            let (matched, alone) = match_and_rest(left, right, keys);
            let matched = matched.map(|(key, (left, right))| (key, (left, Some(right))));
            matched.concat(alone.map(|(key, left)| (key, (left, None))))
        })
    }

    /// Like [`Collection::join`], but keeps the pairs of the other collection whose key this one has not, with `None`.
    pub fn right_join<V2: Record>(self, other: Collection<'f, (K, V2)>) -> Collection<'f, (K, (Option<V>, V2))> {
        other.left_join(self).map(|(key, (right, left))| (key, (left, right)))
    }

    /// Like [`Collection::join`], but keeps the pairs of both collections whose key the other one has not, with `None` in
    /// the place of the other's value.
    pub fn full_join<V2: Record>(self, other: Collection<'f, (K, V2)>) -> Collection<'f, FullPair<K, V, V2>> {
        self.through_with(other, |left, right| {
            let (of_left, of_right) = (keys_of(left.clone()), keys_of(right.clone()));
            let missing = right.clone().antijoin(of_left).map(|(key, right)| (key, (None, Some(right))));
            let (matched, alone) = match_and_rest(left, right, of_right);
            let matched = matched.map(|(key, (left, right))| (key, (Some(left), Some(right))));
            matched.concat(alone.map(|(key, left)| (key, (Some(left), None)))).concat(missing)
        })
    }
}

/// Returns each key that is present, once.
fn keys_of<'s, K: Record, V: Record>(pairs: RawCollection<'s, (K, V)>) -> RawCollection<'s, K> {
    pairs.map(|(key, _)| key).distinct()
}

/// Returns the join of both collections, and the pairs of `left` whose key is not among `keys`, those of `right`. Both
/// use one arrangement of `left`.
fn match_and_rest<'s, K: Record, V: Record, V2: Record>(
    left: RawCollection<'s, (K, V)>,
    right: RawCollection<'s, (K, V2)>,
    keys: RawCollection<'s, K>,
) -> MatchesAndRest<'s, K, V, V2> {
    let arranged = left.clone().arrange_by_key();
    let pair = |key: &K, left: &V, right: &V2| Some((key.clone(), (left.clone(), right.clone())));
    let matched = arranged.clone().join_core(right.arrange_by_key(), pair);
    let found = arranged.join_core(keys.arrange_by_self(), |key, left, ()| Some((key.clone(), left.clone())));
    (matched, left.concat(found.negate()))
}
