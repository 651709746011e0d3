//! Reductions of collections: rows that are computed of all equal records, or of all values of a key.
//!
//! All of them follow retractions: when the least value of a key goes, the next one takes its place. So differential
//! keeps all values of a key, in order.
//!
//! * A value that is there a negative number of times (a retraction of what was never added) is passed to functions of
//!   the query as it is, and ignored by all other reductions.
//! * The **extremes** of a key are found in two steps: those of each of [`BUCKETS`] parts of its values, chosen by hash,
//!   and those of these. So a change costs the values of one part and the extremes of all parts, not all values of the
//!   key.
//! * A **sum** is kept in the difference, as differential counts, so a change costs the same for keys of any size.
//!   Numbers have at most 64 bits and sums 128, so sums are exact, in any order.

use differential_dataflow::{AsCollection, VecCollection};
use timely::dataflow::operators::vec::Map;

use super::Collection;
use crate::record::Record;
use crate::stream::route::route;

/// Number of parts into which the values of a key are divided to find extremes.
const BUCKETS: u64 = 256;

impl<'f, D: Record> Collection<'f, D> {
    /// Counts each record: one row for each record that is present.
    pub fn count(self) -> Collection<'f, (D, i64)> {
        self.through(|collection| collection.count().map(|(record, count)| (record, count as i64)))
    }

    /// Keeps each record that is present, once.
    #[must_use]
    pub fn distinct(self) -> Collection<'f, D> {
        self.through(differential_dataflow::Collection::distinct)
    }

    /// Changes the number of times that each record is present to what `times` returns for the record and that number.
    /// It is called for records that are present, whenever their number changes.
    ///
    /// ```
    /// use tidegate::testing::{Captured, TestRun};
    /// use tidegate::source::memory::MemorySource;
    ///
    /// # fn main() -> tidegate::Result<()> {
    /// let words = MemorySource::new(vec![vec!["a", "b", "a", "a"].into_iter().map(String::from).collect()], |_| 0);
    /// let twice = Captured::new();
    /// let output = twice.clone();
    /// // Words that are there at least twice.
    /// TestRun::new().run(move |flow| {
    ///     let words = flow.read("words", &words).collect("words");
    ///     words.threshold(|_word, times| isize::from(times >= 2)).write("twice", &output);
    /// })?;
    /// assert_eq!(twice.all(), ["a".to_string()]);
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn threshold(self, times: impl Fn(&D, isize) -> isize + 'static) -> Collection<'f, D> {
        self.through(|collection| collection.threshold(move |record, present| times(record, *present)))
    }
}

/// Collections of pairs whose first item is the key.
impl<'f, K: Record, V: Record> Collection<'f, (K, V)> {
    /// Counts the pairs of each key: one row for each key that has any.
    pub fn count_by_key(self) -> Collection<'f, (K, i64)> {
        self.map(|(key, _)| key).count()
    }

    /// Replaces all values of a key by the rows that `change` returns: it gets the values in order, each with its
    /// multiplicity, and returns any number of rows. It is called whenever a value of the key changes, so its cost is
    /// that of all the key's values; for keys with many values, aggregate in steps, or use [`Collection::top_by_key`] and
    /// [`Collection::sum_by_key`], whose costs are lower.
    ///
    /// ```
    /// use tidegate::testing::{Captured, TestRun};
    /// use tidegate::source::memory::MemorySource;
    ///
    /// # fn main() -> tidegate::Result<()> {
    /// // (seller, offer, price, event time): the cheapest offer that each seller has now.
    /// let offers = vec![("s".to_string(), 'a', 30, 1), ("s".to_string(), 'b', 20, 2), ("s".to_string(), 'b', 40, 3)];
    /// let source = MemorySource::new(vec![offers], |offer: &(String, char, i64, i64)| offer.3);
    /// let cheapest = Captured::new();
    /// let output = cheapest.clone();
    /// TestRun::new().run(move |flow| {
    ///     flow.read("offers", &source)
    ///         .key_by(|(seller, offer, ..)| (seller.clone(), *offer))
    ///         .last_by_key_with("offers", |(.., price, _)| Some(price))
    ///         .map(|((seller, offer), price)| (seller, (price, offer)))
    ///         .reduce(|_seller, offers| offers.first().map(|(offer, _)| (*offer).clone()))
    ///         .write("cheapest", &output);
    /// })?;
    /// assert_eq!(cheapest.all(), [("s".to_string(), (30, 'a'))]);
    /// # Ok(()) }
    /// ```
    pub fn reduce<I: IntoIterator<Item: Record>>(
        self,
        change: impl Fn(&K, &[(&V, isize)]) -> I + 'static,
    ) -> Collection<'f, (K, I::Item)> {
        self.through(|pairs| {
            pairs.reduce(move |key, values, rows| rows.extend(change(key, values).into_iter().map(|row| (row, 1))))
        })
    }

    /// Adds up a number of each value of a key: one row for each key that has any value, with the exact sum.
    ///
    /// ```
    /// use tidegate::testing::{Captured, TestRun};
    /// use tidegate::source::memory::MemorySource;
    /// use std::time::Duration;
    ///
    /// # fn main() -> tidegate::Result<()> {
    /// // (account, cents, event time): what each account spent in the last minute.
    /// let spent = vec![("a".to_string(), 100, 0), ("b".to_string(), 30, 20_000), ("a".to_string(), 7, 70_000)];
    /// let source = MemorySource::new(vec![spent], |spent: &(String, i64, i64)| spent.2);
    /// let sums = Captured::new();
    /// let output = sums.clone();
    /// TestRun::new().run(move |flow| {
    ///     let recent = flow.read("spent", &source).live_for("last minute", Duration::from_secs(60));
    ///     recent.map(|(account, cents, _)| (account, cents)).sum_by_key(|cents| *cents).write("sums", &output);
    /// })?;
    /// // At the end of the input, which is at 70 s of event time.
    /// assert_eq!(sums.all(), [("a".to_string(), 7), ("b".to_string(), 30)]);
    /// # Ok(()) }
    /// ```
    pub fn sum_by_key(self, number: impl Fn(&V) -> i64 + 'static) -> Collection<'f, (K, i128)> {
        self.through(|pairs| {
            let weigh = move |((key, value), epoch, diff): ((K, V), u64, isize)| {
                (key, epoch, (i128::from(number(&value)) * diff as i128, diff))
            };
            let sums: VecCollection<'_, u64, K, (i128, isize)> = pairs.inner.map(weigh).as_collection();
            sums.count().filter(|(_, (_, count))| *count > 0).map(|(key, (sum, _))| (key, sum))
        })
    }

    /// Keeps the `n` greatest values of each key; a value that is there several times counts as often. Use
    /// [`std::cmp::Reverse`] or a tuple for another order.
    ///
    /// ```
    /// use tidegate::testing::{Captured, TestRun};
    /// use tidegate::source::memory::MemorySource;
    ///
    /// # fn main() -> tidegate::Result<()> {
    /// // (player, points, team); the points of a player may be corrected.
    /// let points = [("Ann", 9, 'x'), ("Bob", 7, 'x'), ("Cid", 5, 'x'), ("Dot", 1, 'y'), ("Ann", 2, 'x')];
    /// let points = points.map(|(player, points, team)| (player.to_string(), Some((points, team))));
    /// let source = MemorySource::new(vec![points.to_vec()], |_| 0);
    /// let best = Captured::new();
    /// let output = best.clone();
    /// TestRun::new().run(move |flow| {
    ///     let points = flow.table("points", &source);
    ///     points.map(|(player, (points, team))| (team, (points, player))).top_by_key(2).write("best", &output);
    /// })?;
    /// assert_eq!(best.all(), [('x', (5, "Cid".into())), ('x', (7, "Bob".into())), ('y', (1, "Dot".into()))]);
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn top_by_key(self, n: usize) -> Collection<'f, (K, V)> {
        self.extremes(move |values, keep| first_of(values.iter().rev(), n, keep))
    }

    /// Keeps the `n` least values of each key: see [`Collection::top_by_key`].
    #[must_use]
    pub fn bottom_by_key(self, n: usize) -> Collection<'f, (K, V)> {
        self.extremes(move |values, keep| first_of(values.iter(), n, keep))
    }

    /// Keeps the least value of each key, once.
    #[must_use]
    pub fn min_by_key(self) -> Collection<'f, (K, V)> {
        self.bottom_by_key(1)
    }

    /// Keeps the greatest value of each key, once.
    #[must_use]
    pub fn max_by_key(self) -> Collection<'f, (K, V)> {
        self.top_by_key(1)
    }

    /// Applies `choose` to the parts of a key's values, and to what it has chosen of them.
    fn extremes(self, choose: impl Fn(&[(&V, isize)], &mut Vec<(V, isize)>) + Clone + 'static) -> Self {
        self.through(|pairs| {
            let (of_part, of_key) = (choose.clone(), choose);
            let parts = pairs.map(|(key, value)| {
                let part = route(&value) % BUCKETS;
                ((key, part), value)
            });
            let chosen = parts.reduce_named("Extremes of a part", move |_part, values, rows| of_part(values, rows));
            let chosen = chosen.map(|((key, _part), value)| (key, value));
            chosen.reduce_named("Extremes", move |_key, values, rows| of_key(values, rows))
        })
    }
}

/// Appends the first `n` values to `keep`, each as often as it is there.
fn first_of<'v, V: Record>(values: impl Iterator<Item = &'v (&'v V, isize)>, n: usize, keep: &mut Vec<(V, isize)>) {
    let mut left = isize::try_from(n).unwrap_or(isize::MAX);
    for (value, times) in values.filter(|(_, times)| *times > 0) {
        if left == 0 {
            return;
        }
        let taken = left.min(*times);
        keep.push(((*value).clone(), taken));
        left -= taken;
    }
}
