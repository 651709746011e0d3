//! Aggregates with names: by them a changed program takes over what a state has of those that it still has.
//!
//! A name is no part of a row. It is stored with the schema of the rows, once in each segment: see
//! `durable::codec::aggregate_names`.

use serde::Serialize;

use crate::durable::codec::{NameTree, NamedPart};
use crate::error::Result;
use crate::record::Event;
use crate::stream::aggregate::{Aggregate, AggregateNames};

/// See [`Each::named`](super::Each::named).
#[derive(Clone, Debug)]
pub struct Named<A> {
    pub(super) name: String,
    pub(super) earlier: Vec<String>,
    pub(super) aggregate: A,
}

impl<A> Named<A> {
    /// Says that the aggregate had another name in earlier versions of the query, whose accumulators it continues. The call
    /// may stay, and be repeated for several earlier names.
    #[must_use]
    pub fn was(mut self, old: &str) -> Self {
        self.earlier.push(old.to_owned());
        self
    }
}

/// Returns an accumulator as it is stored; `None` if it cannot be.
fn stored(sum: &impl Serialize) -> Option<Vec<u8>> {
    postcard::to_stdvec(sum).ok()
}

impl<D, A: Aggregate<D>> Aggregate<D> for Named<A> {
    type Part = A::Part;
    type Sum = A::Sum;
    type Value = A::Value;

    #[inline]
    fn part(&self, event: &Event<D>) -> A::Part {
        self.aggregate.part(event)
    }

    #[inline]
    fn lift(&self, part: A::Part) -> A::Sum {
        self.aggregate.lift(part)
    }

    #[inline]
    fn absorb(&self, sum: &mut A::Sum, part: A::Part) {
        self.aggregate.absorb(sum, part);
    }

    fn check(&self) -> Result<()> {
        self.aggregate.check()
    }

    fn empty(&self) -> Option<A::Sum> {
        self.aggregate.empty()
    }

    fn names(&self) -> AggregateNames {
        let empty = self.aggregate.empty().as_ref().and_then(stored);
        let (name, earlier) = (Some(self.name.clone()), self.earlier.clone());
        let part = NamedPart { name, earlier, empty, inner: self.aggregate.names().0 };
        AggregateNames(NameTree::One(Box::new(part)))
    }

    fn filters(&self) -> usize {
        self.aggregate.filters()
    }

    fn value(&self, count: i64, sum: &A::Sum) -> Result<A::Value> {
        self.aggregate.value(count, sum)
    }
}
