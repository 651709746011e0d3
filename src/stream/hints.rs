//! Methods that say what is missing: calls that people from SQL and from other engines expect to work, and that a query has
//! to spell out. Each has a bound that no type fulfils, and whose message names what to call instead.
//!
//! Invariant: none of these methods can be called. `tests/compile_fail/` has what the compiler says.

use super::Stream;
use super::aggregate::Aggregate;
use super::join::Joined;
use super::keyed_stream::Keyed;
use super::state::Stateful;
use super::window::Aggregated;
use crate::record::Record;

/// Fulfilled by no step: its outputs are several, and one has to be chosen.
#[diagnostic::on_unimplemented(
    message = "a step has several outputs: say which one is meant",
    label = "no output is chosen before this",
    note = "of windows: `.on_close()` has each final row once, `.on_change()` the rows so far, `.on_fire()` rows and their corrections, `.every(…)` the rows now and then",
    note = "of joins it is `.results()`, of keyed state `.emitted()`; late records are `.late()`"
)]
pub trait HasOneOutput {}

/// Fulfilled by no stream: there are several joins of streams, and one has to be chosen.
#[diagnostic::on_unimplemented(
    message = "there are several joins of streams: say which one is meant",
    label = "no such join",
    note = "pairs of records that happen close to each other: `left.key_by(…).join_within(name, right.key_by(…), before, after).inner(…)`",
    note = "pairs in the same window: `.join_windowed(…)`; with what was valid when a record happened: `.join_as_of(…)`; with a table as it is when a record comes: `.join_table(…)`",
    note = "collections are joined as tables in SQL: `.last_by_key(…)`, `.collect(…)` and `.live_for(…)` make one of a stream"
)]
pub trait HasOneJoin {}

impl<K: Record, D, A: Aggregate<D>> Aggregated<'_, K, D, A> {
    /// Cannot be called: windows have several outputs, and one of them is written.
    #[doc(hidden)]
    pub fn write<S: ?Sized>(&self, _name: &str, _sink: &S)
    where
        Self: HasOneOutput,
    {
    }

    /// Cannot be called: windows have several outputs, and the rows of one of them are changed.
    #[doc(hidden)]
    #[must_use]
    pub fn map<F>(self, _change: F) -> Self
    where
        Self: HasOneOutput,
    {
        self
    }
}

impl<L, R, O> Joined<'_, L, R, O> {
    /// Cannot be called: a join has several outputs, and one of them is written.
    #[doc(hidden)]
    pub fn write<S: ?Sized>(&self, _name: &str, _sink: &S)
    where
        Self: HasOneOutput,
    {
    }
}

impl<K: Record, D, O: Record> Stateful<'_, K, D, O> {
    /// Cannot be called: keyed state has several outputs, and one of them is written.
    #[doc(hidden)]
    pub fn write<S: ?Sized>(&self, _name: &str, _sink: &S)
    where
        Self: HasOneOutput,
    {
    }
}

impl<D> Stream<'_, D> {
    /// Cannot be called: there are several joins of streams.
    #[doc(hidden)]
    #[must_use]
    pub fn join<R>(self, _other: R) -> Self
    where
        Self: HasOneJoin,
    {
        self
    }
}

impl<K, D> Keyed<'_, K, D> {
    /// Cannot be called: there are several joins of streams.
    #[doc(hidden)]
    #[must_use]
    pub fn join<R>(self, _other: R) -> Self
    where
        Self: HasOneJoin,
    {
        self
    }
}
