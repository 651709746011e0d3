//! Collections: multisets that change by insertions and retractions, epoch by epoch.
//!
//! A [`Collection`] is a differential dataflow collection whose timestamp, the epoch, is hidden. Here are its operators
//! that look at one row at a time, and its outputs; the others are in files of their own:
//!
//! | operators | file |
//! | --- | --- |
//! | joins by key, inner and outer | `joins` |
//! | one or several rows for each key: counts, sums, extremes, any function | `reductions` |
//! | windowed aggregates, by a time of each row | `windows` |
//! | repetition until nothing changes, and graphs | `iteration`, `graphs` |
//! | from records that are changes, and back to records | `changes` |
//!
//! [`Collection::through`] gives the raw collection, so every operator of differential is available.
//!
//! A collection has no watermark. Results computed from it are consistent at every epoch that is published: a sink
//! gets all changes of an epoch at once, consolidated.
//!
//! None of these operators is checkpointed. Snapshots keep the rows of the steps that collections come from (tables,
//! windows, [`Stream::collect`](crate::Stream::collect), [`Stream::live_for`](crate::Stream::live_for)). When a job
//! resumes from a snapshot at epoch c, these rows enter the flow at c, and what is computed of them is computed again, on
//! any number of workers; sinks and checkpointed operators downstream drop what they get at or before c.

mod changes;
mod graphs;
mod iteration;
mod joins;
mod observer;
mod reductions;
mod windows;

use std::fmt;

use differential_dataflow::VecCollection;
use timely::dataflow::Stream as TimelyStream;

use crate::error::{Error, Result};
use crate::record::Record;
use crate::sink::{Sink, SinkRows};
use crate::stream::output::{self, RowChange};
use crate::stream::{BuildMode, Flow, unique_keys};
use crate::time::Epoch;

pub use iteration::{LoopCollection, LoopScope};
pub use observer::Observer;
pub use windows::WindowedCollection;

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

    /// Negates the number of times that each record is present. Concatenated with another collection, it takes the
    /// records away from that one; a record that is taken away more often than it is there is present a negative number
    /// of times.
    #[must_use]
    pub fn negate(self) -> Collection<'f, D> {
        self.by_row(differential_dataflow::Collection::negate)
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
        output::write(&self.flow, name, SinkRows::Changes, rows, sink);
    }

    /// Calls `see` with the changes of every epoch that has any: all of the epoch's at once, consolidated and sorted.
    /// An error fails the job.
    pub fn for_each_epoch(self, name: &str, see: impl Fn(Epoch, &[(D, isize)]) -> Result<()> + Send + Sync + 'static) {
        self.write(name, &Observer::new(see));
    }
}
