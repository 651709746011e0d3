//! All values, in the order of their records.

use std::collections::BTreeMap;
use std::iter::repeat_n;

use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::record::{Event, Record};
use crate::stream::aggregate::extremes::{RecordPosition, standing};
use crate::stream::aggregate::{Accumulator, Aggregate};

/// The accumulator of [`Collect`]: values by their records' positions, each with its multiplicity. That is mostly 1:
/// only several values made of one record share a position.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Collected<V: Ord> {
    values: BTreeMap<(RecordPosition, V), u64>,
}

impl<V: Record> Accumulator for Collected<V> {
    const INVERTIBLE: bool = true;

    fn merge(&mut self, other: &Self) {
        for (value, times) in &other.values {
            *self.values.entry(value.clone()).or_default() += times;
        }
    }

    fn unmerge(&mut self, other: &Self) -> bool {
        other.values.iter().all(|(value, times)| match self.values.get_mut(value) {
            Some(found) if *found > *times => {
                *found -= times;
                true
            }
            Some(found) if *found == *times => self.values.remove(value).is_some(),
            _ => false,
        })
    }
}

/// See [`Each::collect`](super::Each::collect).
#[derive(Clone, Copy, Debug)]
pub struct Collect<F>(pub(super) F);

impl<D, V: Record, F: Fn(&D) -> V + 'static> Aggregate<D> for Collect<F> {
    type Part = (RecordPosition, V);
    type Sum = Collected<V>;
    type Value = Vec<V>;

    fn part(&self, event: &Event<D>) -> (RecordPosition, V) {
        (standing(event), (self.0)(&event.data))
    }

    fn lift(&self, part: (RecordPosition, V)) -> Collected<V> {
        Collected { values: BTreeMap::from([(part, 1)]) }
    }

    fn absorb(&self, sum: &mut Collected<V>, part: (RecordPosition, V)) {
        *sum.values.entry(part).or_default() += 1;
    }

    fn empty(&self) -> Option<Collected<V>> {
        Some(Collected { values: BTreeMap::new() })
    }

    fn value(&self, _count: i64, sum: &Collected<V>) -> Result<Vec<V>> {
        let times = |((_, value), times): (&(RecordPosition, V), &u64)| repeat_n(value.clone(), *times as usize);
        Ok(sum.values.iter().flat_map(times).collect())
    }
}
