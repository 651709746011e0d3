//! An aggregate: all values whose rank is the greatest.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tidegate::Record;
use tidegate::stream::aggregate::Accumulator;

/// The greatest rank, and the values that have it, each with the number of times.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(bound = "R: Record, V: Record")]
pub(crate) struct Greatest<R, V> {
    pub(crate) rank: R,
    values: BTreeMap<V, u32>,
}

impl<R: Record, V: Record> Greatest<R, V> {
    /// Creates the aggregate of one value.
    pub(crate) fn of(rank: R, value: V) -> Self {
        Greatest { rank, values: BTreeMap::from([(value, 1)]) }
    }

    /// Returns the values, each as often as it is there.
    pub(crate) fn into_values(self) -> impl Iterator<Item = V> {
        self.values.into_iter().flat_map(|(value, times)| std::iter::repeat_n(value, times as usize))
    }
}

impl<R: Record, V: Record> Accumulator for Greatest<R, V> {
    fn merge(&mut self, other: &Self) {
        match other.rank.cmp(&self.rank) {
            Ordering::Less => {}
            Ordering::Greater => self.clone_from(other),
            Ordering::Equal => {
                for (value, times) in &other.values {
                    *self.values.entry(value.clone()).or_default() += times;
                }
            }
        }
    }
}
