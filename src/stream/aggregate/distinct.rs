//! Distinct values, exactly: all of them are kept, once each, in a sorted set. For very many values there is
//! [`ApproxCountDistinct`](super::ApproxCountDistinct).

use std::collections::BTreeSet;
use std::mem;

use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::record::{Event, Record};
use crate::stream::aggregate::{Accumulator, Aggregate};

/// The accumulator of [`CountDistinct`] and [`Distinct`]: every distinct value.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename = "Kinds")]
pub struct DistinctValues<V: Ord> {
    values: BTreeSet<V>,
}

impl<V: Record> Accumulator for DistinctValues<V> {
    fn merge(&mut self, other: &Self) {
        if self.values.len() < other.values.len() {
            // Fewer steps: the smaller set goes into the larger one.
            let fewer = mem::replace(&mut self.values, other.values.clone());
            self.values.extend(fewer);
            return;
        }
        for value in &other.values {
            if !self.values.contains(value) {
                self.values.insert(value.clone());
            }
        }
    }
}

macro_rules! distinct {
    ($(#[$doc:meta])* $name:ident, $shown:ty, $show:expr) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug)]
        pub struct $name<F>(pub(super) F);

        impl<D, V: Record, F: Fn(&D) -> V + 'static> Aggregate<D> for $name<F> {
            type Part = V;
            type Sum = DistinctValues<V>;
            type Value = $shown;

            fn part(&self, event: &Event<D>) -> V {
                (self.0)(&event.data)
            }

            fn lift(&self, value: V) -> DistinctValues<V> {
                DistinctValues { values: BTreeSet::from([value]) }
            }

            fn absorb(&self, sum: &mut DistinctValues<V>, value: V) {
                sum.values.insert(value);
            }

            fn empty(&self) -> Option<DistinctValues<V>> {
                Some(DistinctValues { values: BTreeSet::new() })
            }

            fn value(&self, _count: i64, sum: &DistinctValues<V>) -> Result<$shown> {
                Ok($show(&sum.values))
            }
        }
    };
}

distinct!(
    /// See [`Each::count_distinct`](super::Each::count_distinct).
    CountDistinct, i64, |values: &BTreeSet<V>| values.len() as i64
);
distinct!(
    /// See [`Each::distinct`](super::Each::distinct).
    Distinct, Vec<V>, |values: &BTreeSet<V>| values.iter().cloned().collect()
);
