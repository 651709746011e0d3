//! Aggregates of some of a window's records: those that pass a filter, or those that have a value.
//!
//! The record is judged where it is read: what does not pass is sent as nothing. A window without a record that passes
//! still has a row, as it has records; the value is `None` then, for a sum of no records and a least one alike. A count
//! of no records is 0: [`CountIf`].

use serde::{Deserialize, Serialize};

use crate::durable::codec::NameTree;
use crate::error::Result;
use crate::record::{Event, Record};
use crate::stream::aggregate::{Accumulator, Aggregate, AggregateNames};

/// The accumulator of [`Filter`] and [`FilterMap`]: that of the records that have passed, with their number; `None` before
/// the first one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct FilteredSum<S> {
    passed: Option<(i64, S)>,
}

#[cfg(feature = "abomonation")]
crate::in_place!(FilteredSum<S> { passed });

impl<S: Accumulator> Accumulator for FilteredSum<S> {
    const INVERTIBLE: bool = S::INVERTIBLE;

    fn merge(&mut self, other: &Self) {
        match (&mut self.passed, &other.passed) {
            (_, None) => {}
            (Some((count, sum)), Some((others, other))) => {
                *count += others;
                sum.merge(other);
            }
            (none, some) => none.clone_from(some),
        }
    }

    fn unmerge(&mut self, other: &Self) -> bool {
        let Some((others, other)) = &other.passed else { return true };
        let Some((count, sum)) = &mut self.passed else { return false };
        *count -= others;
        if *count == 0 {
            self.passed = None;
            return true;
        }
        sum.unmerge(other)
    }
}

/// Creates the accumulator of one record.
fn lift<D, A: Aggregate<D>>(aggregate: &A, part: Option<A::Part>) -> FilteredSum<A::Sum> {
    FilteredSum { passed: part.map(|part| (1, aggregate.lift(part))) }
}

/// Adds a record.
fn absorb<D, A: Aggregate<D>>(aggregate: &A, sum: &mut FilteredSum<A::Sum>, part: Option<A::Part>) {
    let Some(part) = part else { return };
    match &mut sum.passed {
        Some((count, sum)) => {
            *count += 1;
            aggregate.absorb(sum, part);
        }
        none => *none = Some((1, aggregate.lift(part))),
    }
}

/// Computes the value of the records that have passed.
fn value<D, A: Aggregate<D>>(aggregate: &A, sum: &FilteredSum<A::Sum>) -> Result<Option<A::Value>> {
    sum.passed.as_ref().map(|(count, sum)| aggregate.value(*count, sum)).transpose()
}

/// See [`Each::filter`](super::Each::filter).
#[derive(Clone, Copy, Debug)]
pub struct Filter<P, A> {
    pub(super) passes: P,
    pub(super) aggregate: A,
}

impl<D, P: Fn(&D) -> bool + 'static, A: Aggregate<D>> Aggregate<D> for Filter<P, A> {
    type Part = Option<A::Part>;
    type Sum = FilteredSum<A::Sum>;
    type Value = Option<A::Value>;

    #[inline]
    fn part(&self, event: &Event<D>) -> Option<A::Part> {
        (self.passes)(&event.data).then(|| self.aggregate.part(event))
    }

    fn lift(&self, part: Option<A::Part>) -> FilteredSum<A::Sum> {
        lift(&self.aggregate, part)
    }

    fn absorb(&self, sum: &mut FilteredSum<A::Sum>, part: Option<A::Part>) {
        absorb(&self.aggregate, sum, part);
    }

    fn check(&self) -> Result<()> {
        self.aggregate.check()
    }

    fn empty(&self) -> Option<FilteredSum<A::Sum>> {
        Some(FilteredSum { passed: None })
    }

    fn names(&self) -> AggregateNames {
        AggregateNames(NameTree::of_filtered(self.aggregate.names().0))
    }

    fn filters(&self) -> usize {
        1 + self.aggregate.filters()
    }

    fn value(&self, _count: i64, sum: &FilteredSum<A::Sum>) -> Result<Option<A::Value>> {
        value(&self.aggregate, sum)
    }
}

/// See [`Each::filter_map`](super::Each::filter_map).
#[derive(Clone, Copy, Debug)]
pub struct FilterMap<F, A> {
    pub(super) of: F,
    pub(super) aggregate: A,
}

impl<D, V: Record, F: Fn(&D) -> Option<V> + 'static, A: Aggregate<V>> Aggregate<D> for FilterMap<F, A> {
    type Part = Option<A::Part>;
    type Sum = FilteredSum<A::Sum>;
    type Value = Option<A::Value>;

    fn part(&self, event: &Event<D>) -> Option<A::Part> {
        let Event { time, watermark, origin, ref data } = *event;
        (self.of)(data).map(|data| self.aggregate.part(&Event { time, watermark, origin, data }))
    }

    fn lift(&self, part: Option<A::Part>) -> FilteredSum<A::Sum> {
        lift(&self.aggregate, part)
    }

    fn absorb(&self, sum: &mut FilteredSum<A::Sum>, part: Option<A::Part>) {
        absorb(&self.aggregate, sum, part);
    }

    fn check(&self) -> Result<()> {
        self.aggregate.check()
    }

    fn empty(&self) -> Option<FilteredSum<A::Sum>> {
        Some(FilteredSum { passed: None })
    }

    fn names(&self) -> AggregateNames {
        AggregateNames(NameTree::of_filtered(self.aggregate.names().0))
    }

    fn filters(&self) -> usize {
        1 + self.aggregate.filters()
    }

    fn value(&self, _count: i64, sum: &FilteredSum<A::Sum>) -> Result<Option<A::Value>> {
        value(&self.aggregate, sum)
    }
}

/// See [`Each::if_any`](super::Each::if_any).
#[derive(Clone, Copy, Debug)]
pub struct IfAny<A>(pub(super) A);

impl<D, A: Aggregate<D>> Aggregate<D> for IfAny<A> {
    type Part = A::Part;
    type Sum = FilteredSum<A::Sum>;
    type Value = Option<A::Value>;

    #[inline]
    fn part(&self, event: &Event<D>) -> A::Part {
        self.0.part(event)
    }

    fn lift(&self, part: A::Part) -> FilteredSum<A::Sum> {
        lift(&self.0, Some(part))
    }

    fn absorb(&self, sum: &mut FilteredSum<A::Sum>, part: A::Part) {
        absorb(&self.0, sum, Some(part));
    }

    fn check(&self) -> Result<()> {
        self.0.check()
    }

    fn empty(&self) -> Option<FilteredSum<A::Sum>> {
        Some(FilteredSum { passed: None })
    }

    fn names(&self) -> AggregateNames {
        AggregateNames(NameTree::of_filtered(self.0.names().0))
    }

    fn filters(&self) -> usize {
        self.0.filters()
    }

    fn value(&self, _count: i64, sum: &FilteredSum<A::Sum>) -> Result<Option<A::Value>> {
        value(&self.0, sum)
    }
}

/// See [`Each::count_if`](super::Each::count_if).
#[derive(Clone, Copy, Debug)]
pub struct CountIf<P>(pub(super) P);

impl<D, P: Fn(&D) -> bool + 'static> Aggregate<D> for CountIf<P> {
    type Part = bool;
    type Sum = FilteredSum<()>;
    type Value = i64;

    #[inline]
    fn part(&self, event: &Event<D>) -> bool {
        (self.0)(&event.data)
    }

    fn lift(&self, passes: bool) -> FilteredSum<()> {
        FilteredSum { passed: passes.then_some((1, ())) }
    }

    fn empty(&self) -> Option<FilteredSum<()>> {
        Some(FilteredSum { passed: None })
    }

    fn filters(&self) -> usize {
        1
    }

    fn value(&self, _count: i64, sum: &FilteredSum<()>) -> Result<i64> {
        Ok(sum.passed.map_or(0, |(count, ())| count))
    }
}
