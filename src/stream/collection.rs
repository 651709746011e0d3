//! Collections: multisets that change by insertions and retractions, epoch by epoch.
//!
//! A [`Collection`] is a differential dataflow collection whose timestamp, the epoch, is hidden.
//! [`Collection::through`] gives the raw one, so every operator of differential is available, iteration included. The
//! methods here cover what queries use most.
//!
//! A collection has no watermark. Results computed from it are consistent at every epoch that is published: a sink
//! gets all changes of an epoch at once, consolidated.

use std::fmt;

use differential_dataflow::{AsCollection, VecCollection};
use timely::dataflow::Stream as TimelyStream;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::generic::operator::Operator;

use crate::durable::journal::JournalEnds;
use crate::durable::{Incarnation, PublishedEpoch};
use crate::error::{Error, Result};
use crate::record::Record;
use crate::sink::{Sink, SinkContext, SinkRows, SinkWriter};
use crate::stream::output::{self, RowChange};
use crate::stream::{BuildMode, Flow, Stream, unique_keys};
use crate::time::Epoch;

/// The origin of a collection that is not recoverable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NotRecoverable {
    /// Rows of windows that have fired.
    Fired,
    /// Records that are changes.
    Changes,
}

/// A multiset that changes by insertions and retractions.
pub struct Collection<'f, D: Record> {
    pub(super) inner: VecCollection<'f, u64, D, isize>,
    pub(super) flow: Flow<'f>,
    /// Set if the collection is not recoverable: after a crash, rows that no longer change are missing.
    not_recoverable: Option<NotRecoverable>,
}

impl<D: Record> Clone for Collection<'_, D> {
    fn clone(&self) -> Self {
        Collection { inner: self.inner.clone(), flow: self.flow.clone(), not_recoverable: self.not_recoverable }
    }
}

impl<D: Record> fmt::Debug for Collection<'_, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Collection<{}>", std::any::type_name::<D>())
    }
}

impl<'f, D: Record> Collection<'f, D> {
    pub(crate) fn new(inner: VecCollection<'f, u64, D, isize>, flow: Flow<'f>) -> Self {
        Collection { inner, flow, not_recoverable: None }
    }

    /// Marks the collection as not recoverable: after a crash, rows that no longer change are missing.
    pub(super) fn not_recoverable(self, origin: NotRecoverable) -> Self {
        Collection { not_recoverable: Some(origin), ..self }
    }

    /// Returns its flow, and its changes as they arrive.
    pub(super) fn into_changes(self) -> (Flow<'f>, TimelyStream<'f, u64, Vec<RowChange<D>>>) {
        (self.flow, self.inner.inner)
    }

    /// Applies operators that look at one row at a time and keep none.
    fn by_row<D2: Record>(
        self,
        operators: impl FnOnce(VecCollection<'f, u64, D, isize>) -> VecCollection<'f, u64, D2, isize>,
    ) -> Collection<'f, D2> {
        Collection { inner: operators(self.inner), flow: self.flow, not_recoverable: self.not_recoverable }
    }

    /// Refuses operators that keep rows if the collection is not recoverable.
    pub(super) fn check_recoverable(&self) {
        let Some(origin) = self.not_recoverable else { return };
        if self.flow.build.mode == BuildMode::OpenSinks {
            let (what, help) = match origin {
                NotRecoverable::Fired => (
                    "after a crash, rows of closed windows are not there again for what is computed of `on_fire`",
                    "in a job with state, write what `on_fire` shows, changed row by row at most; \
                     or compute it of `on_change` or `on_close`",
                ),
                NotRecoverable::Changes => (
                    "after a crash, rows that were read are not there again for what is computed of `changes`",
                    "in a job with state, write these rows, changed row by row at most; or read the source as a table",
                ),
            };
            self.flow.build.failure.set(Error::usage(what).help(help));
        }
    }

    /// Changes each record.
    pub fn map<D2: Record>(self, change: impl Fn(D) -> D2 + 'static) -> Collection<'f, D2> {
        self.by_row(|collection| collection.map(change))
    }

    /// Keeps the records for which `keep` returns `true`.
    pub fn filter(self, keep: impl Fn(&D) -> bool + 'static) -> Collection<'f, D> {
        self.by_row(|collection| collection.filter(keep))
    }

    /// Changes each record into any number of records.
    pub fn flat_map<I: IntoIterator<Item: Record> + 'static>(
        self,
        change: impl Fn(D) -> I + 'static,
    ) -> Collection<'f, I::Item> {
        self.by_row(|collection| collection.flat_map(change))
    }

    /// Adds up the records of both.
    #[must_use]
    pub fn concat(self, other: Collection<'f, D>) -> Collection<'f, D> {
        let not_recoverable = self.not_recoverable.or(other.not_recoverable);
        Collection { not_recoverable, ..self.by_row(|collection| collection.concat(other.inner)) }
    }

    /// Counts each record: one row for each record that is present.
    pub fn count(self) -> Collection<'f, (D, i64)> {
        self.through(|collection| collection.count().map(|(record, count)| (record, count as i64)))
    }

    /// Keeps each record that is present, once.
    #[must_use]
    pub fn distinct(self) -> Collection<'f, D> {
        self.through(differential_dataflow::Collection::distinct)
    }

    /// Applies any operators of differential dataflow: takes the raw collection and returns another one. The raw
    /// timestamp is the epoch; differences are `isize`.
    pub fn through<D2: Record>(
        self,
        operators: impl FnOnce(VecCollection<'f, u64, D, isize>) -> VecCollection<'f, u64, D2, isize>,
    ) -> Collection<'f, D2> {
        self.check_recoverable();
        Collection { inner: operators(self.inner), flow: self.flow, not_recoverable: None }
    }

    /// Applies any operators of differential dataflow to this collection and another one, such as a join: see
    /// [`Collection::through`].
    pub fn through_with<D2: Record, D3: Record>(
        self,
        other: Collection<'f, D2>,
        operators: impl FnOnce(
            VecCollection<'f, u64, D, isize>,
            VecCollection<'f, u64, D2, isize>,
        ) -> VecCollection<'f, u64, D3, isize>,
    ) -> Collection<'f, D3> {
        other.check_recoverable();
        self.through(|collection| operators(collection, other.inner))
    }

    /// Calls `look` with each change as it passes, not consolidated, for debugging. After a crash it is called again
    /// with changes that are replayed.
    pub fn inspect(self, look: impl Fn(&D, isize) + 'static) -> Collection<'f, D> {
        self.by_row(|collection| collection.inspect(move |(data, _epoch, diff)| look(data, *diff)))
    }

    /// Writes the changes to a sink, epoch by epoch: each epoch is written whole and consolidated, with a last column
    /// `diff`.
    pub fn write(self, name: &str, sink: &impl Sink<D>) {
        let rows = match sink.unique_key() {
            Some(key_of) => unique_keys::refuse_second_rows(&self.flow, name, self.inner, key_of),
            None => self.inner.inner,
        };
        output::write(&self.flow, name, SinkRows::Changes, rows, sink, |row| row);
    }

    /// Calls `see` with the changes of every epoch that has any: all of the epoch's at once, consolidated and sorted.
    /// An error fails the job.
    pub fn for_each_epoch(self, name: &str, see: impl Fn(Epoch, &[(D, isize)]) -> Result<()> + Send + Sync + 'static) {
        self.write(name, &Observer(std::sync::Arc::new(see)));
    }
}

impl<'f, D: Record> Stream<'f, D> {
    /// Returns the collection that the stream's records are changes of: `changes` returns the rows that a record adds (1)
    /// or retracts (-1). The records are trusted: a row that is retracted and was never added is there -1 times.
    ///
    /// No rows are kept for it. So in a job with state it can be written, changed row by row at most; what is computed of
    /// all its rows would lack, after a crash, those that no longer change, and is refused. Read the source as a table for
    /// that: see [`Flow::table`].
    ///
    /// ```
    /// use tidegate::source::memory::MemorySource;
    /// use tidegate::testing::{Captured, TestRun};
    ///
    /// # fn main() -> tidegate::Result<()> {
    /// // (row, how often it is added)
    /// let changes = vec![("a".to_string(), 1), ("b".to_string(), 1), ("a".to_string(), -1)];
    /// let source = MemorySource::new(vec![changes], |_| 0);
    /// let rows = Captured::new();
    /// let output = rows.clone();
    /// TestRun::new().run(move |flow| flow.read("changes", &source).changes(|change| [change]).write("rows", &output))?;
    /// assert_eq!(rows.all(), ["b".to_string()]);
    /// # Ok(()) }
    /// ```
    pub fn changes<D2: Record, I: IntoIterator<Item = (D2, isize)>>(
        self,
        changes: impl Fn(D) -> I + 'static,
    ) -> Collection<'f, D2> {
        let Stream { events, flow, pool, .. } = self;
        let rows = events.unary(Pipeline, "Changes", move |_capability, _info| {
            let mut made = Vec::new();
            move |input, output| {
                input.for_each(|capability, events| {
                    let Some(&epoch) = capability.least() else { return };
                    for event in events.drain(..) {
                        made.extend(changes(event.data).into_iter().map(|(row, diff)| (row, epoch, diff)));
                    }
                    pool.give(std::mem::take(events));
                    output.session(&capability).give_container(&mut made);
                    made.clear();
                });
            }
        });
        Collection::new(rows.as_collection(), flow).not_recoverable(NotRecoverable::Changes)
    }
}

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

    /// Counts the pairs of each key: one row for each key that has any.
    pub fn count_by_key(self) -> Collection<'f, (K, i64)> {
        self.map(|(key, _)| key).count()
    }

    /// Replaces all values of a key by the rows that `change` returns: it gets the values in order, each with its
    /// multiplicity, and returns any number of rows. It is called whenever a value of the key changes, so its cost is
    /// that of all the key's values; for keys with many values, aggregate in steps.
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
}

/// A function that is called with an epoch's changes.
type EpochFn<D> = std::sync::Arc<dyn Fn(Epoch, &[(D, isize)]) -> Result<()> + Send + Sync>;

/// A sink that calls a function. It is at-least-once: after a crash the function is called again with epochs that are
/// replayed.
pub struct Observer<D>(EpochFn<D>);

impl<D: Record> Observer<D> {
    /// Creates a sink that calls `see` with every epoch that has rows: all of its rows at once, consolidated and
    /// sorted.
    pub fn new(see: impl Fn(Epoch, &[(D, isize)]) -> Result<()> + Send + Sync + 'static) -> Self {
        Observer(std::sync::Arc::new(see))
    }
}

impl<D> fmt::Debug for Observer<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Observer<{}>", std::any::type_name::<D>())
    }
}

impl<D: Record> Sink<D> for Observer<D> {
    fn describe(&self) -> String {
        String::from("a function of the program")
    }

    fn open(&self, _at: &SinkContext) -> Result<Box<dyn SinkWriter<D>>> {
        Ok(Box::new(Observer(std::sync::Arc::clone(&self.0))))
    }
}

impl<D: Record> SinkWriter<D> for Observer<D> {
    fn published(&mut self) -> Result<Option<PublishedEpoch>> {
        Ok(None)
    }

    fn begin(&mut self, _life: &Incarnation) -> Result<()> {
        Ok(())
    }

    fn write(&mut self, epoch: Epoch, rows: &[(D, isize)]) -> Result<()> {
        (self.0)(epoch, rows)
    }

    fn publish(&mut self, _ends: &JournalEnds) -> Result<()> {
        Ok(())
    }

    fn finish(&mut self) -> Result<()> {
        Ok(())
    }
}
