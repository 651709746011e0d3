//! Aggregates that keep several of a window's values: all of them, the distinct ones, the greatest ones; and those that keep
//! the value of the record that is extreme in another one.
//!
//! Invariant, as of all aggregates: what is kept is a function of the multiset of records alone. Sets are sets; lists are
//! sorted by a total order, and cut off, if at all, at the same length wherever they are merged.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::{Accumulator, Aggregate, Each, Greatest, Least, Standing};
use crate::error::Result;
use crate::record::{Event, Record};

impl<D: Record> Each<D> {
    /// How many different values there are, exactly: each of them is kept.
    pub fn count_distinct<V: Record, F: Fn(&D) -> V + 'static>(self, of: F) -> CountDistinct<F> {
        CountDistinct(of)
    }

    /// The different values, in order.
    pub fn distinct<V: Record, F: Fn(&D) -> V + 'static>(self, of: F) -> Distinct<F> {
        Distinct(of)
    }

    /// The `most` greatest values, the greatest first; equal values as often as they are there. For the least ones, wrap the
    /// value in [`std::cmp::Reverse`].
    pub fn top<V: Record, F: Fn(&D) -> V + 'static>(self, most: u32, of: F) -> Top<F> {
        Top { most, of }
    }

    /// All values, by event time; those of one time by source, partition and offset, and several of one record in their own
    /// order. Each of them is kept.
    pub fn collect<V: Record, F: Fn(&D) -> V + 'static>(self, of: F) -> Collect<F> {
        Collect(of)
    }

    /// A value of the record whose `by` is the least; of several, of the one that happened first, by event time, source,
    /// partition and offset.
    pub fn arg_min<B: Record, V: Record, G: Fn(&D) -> B + 'static, F: Fn(&D) -> V + 'static>(
        self,
        by: G,
        of: F,
    ) -> ArgMin<G, F> {
        ArgMin(by, of)
    }

    /// A value of the record whose `by` is the greatest; of several, of the one that happened first, by event time, source,
    /// partition and offset.
    pub fn arg_max<B: Record, V: Record, G: Fn(&D) -> B + 'static, F: Fn(&D) -> V + 'static>(
        self,
        by: G,
        of: F,
    ) -> ArgMax<G, F> {
        ArgMax(by, of)
    }
}

/// A set of values.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(bound = "V: Record")]
pub struct Values<V>(BTreeSet<V>);

impl<V: Record> Accumulator for Values<V> {
    fn merge(&mut self, other: &Self) {
        // Cloned only where it is new.
        for value in &other.0 {
            if !self.0.contains(value) {
                self.0.insert(value.clone());
            }
        }
    }
}

macro_rules! of_values {
    ($(#[$doc:meta])* $name:ident, $shown:ty, $show:expr) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug)]
        pub struct $name<F>(F);

        impl<D, V: Record, F: Fn(&D) -> V + 'static> Aggregate<D> for $name<F> {
            type Part = V;
            type Sum = Values<V>;
            type Value = $shown;

            fn part(&self, event: &Event<D>) -> V {
                (self.0)(&event.data)
            }

            fn lift(&self, value: V) -> Values<V> {
                Values(BTreeSet::from([value]))
            }

            fn absorb(&self, sum: &mut Values<V>, value: V) {
                sum.0.insert(value);
            }

            fn value(&self, _count: i64, sum: &Values<V>) -> Result<$shown> {
                Ok($show(&sum.0))
            }
        }
    };
}

of_values!(
    /// See [`Each::count_distinct`].
    CountDistinct, i64, |values: &BTreeSet<V>| values.len() as i64
);
of_values!(
    /// See [`Each::distinct`].
    Distinct, Vec<V>, |values: &BTreeSet<V>| values.iter().cloned().collect()
);

/// See [`Each::top`].
#[derive(Clone, Copy, Debug)]
pub struct Top<F> {
    most: u32,
    of: F,
}

/// The greatest values, in descending order.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Tops<V> {
    most: u32,
    values: Vec<V>,
}

#[cfg(feature = "abomonation")]
crate::in_place!(Tops<V> { most, values });

impl<V: Record> Tops<V> {
    fn add(&mut self, value: V) {
        let most = self.most as usize;
        if self.values.len() < most || self.values.last().is_some_and(|least| *least < value) {
            let at = self.values.partition_point(|other| *other >= value);
            self.values.insert(at, value);
            self.values.truncate(most);
        }
    }
}

impl<V: Record> Accumulator for Tops<V> {
    fn merge(&mut self, other: &Self) {
        other.values.iter().for_each(|value| self.add(value.clone()));
    }
}

impl<D, V: Record, F: Fn(&D) -> V + 'static> Aggregate<D> for Top<F> {
    type Part = V;
    type Sum = Tops<V>;
    type Value = Vec<V>;

    fn part(&self, event: &Event<D>) -> V {
        (self.of)(&event.data)
    }

    fn lift(&self, value: V) -> Tops<V> {
        let mut tops = Tops { most: self.most, values: Vec::new() };
        tops.add(value);
        tops
    }

    fn absorb(&self, sum: &mut Tops<V>, value: V) {
        sum.add(value);
    }

    fn value(&self, _count: i64, sum: &Tops<V>) -> Result<Vec<V>> {
        Ok(sum.values.clone())
    }
}

/// See [`Each::collect`].
#[derive(Clone, Copy, Debug)]
pub struct Collect<F>(F);

/// Values with when and where they stood, in that order.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Collected<V>(Vec<(Standing, V)>);

impl<V: Record> Collected<V> {
    /// Mostly values come in about their order: the place is looked for from the end.
    fn add(&mut self, value: (Standing, V)) {
        let behind = self.0.iter().rev().take_while(|other| **other > value).count();
        self.0.insert(self.0.len() - behind, value);
    }
}

impl<V: Record> Accumulator for Collected<V> {
    fn merge(&mut self, other: &Self) {
        self.0.extend(other.0.iter().cloned());
        // Two sorted runs: merged in linear time.
        self.0.sort();
    }
}

impl<D, V: Record, F: Fn(&D) -> V + 'static> Aggregate<D> for Collect<F> {
    type Part = (Standing, V);
    type Sum = Collected<V>;
    type Value = Vec<V>;

    fn part(&self, event: &Event<D>) -> (Standing, V) {
        ((event.time, event.origin.place()), (self.0)(&event.data))
    }

    fn lift(&self, value: (Standing, V)) -> Collected<V> {
        Collected(vec![value])
    }

    fn absorb(&self, sum: &mut Collected<V>, value: (Standing, V)) {
        sum.add(value);
    }

    fn value(&self, _count: i64, sum: &Collected<V>) -> Result<Vec<V>> {
        Ok(sum.0.iter().map(|(_, value)| value.clone()).collect())
    }
}

macro_rules! by_another {
    ($(#[$doc:meta])* $name:ident, $sum:ident, $standing:ty, $stand:expr) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug)]
        pub struct $name<G, F>(G, F);

        impl<D, B: Record, V: Record, G, F> Aggregate<D> for $name<G, F>
        where
            G: Fn(&D) -> B + 'static,
            F: Fn(&D) -> V + 'static,
        {
            type Part = (B, $standing, V);
            type Sum = $sum<(B, $standing, V)>;
            type Value = V;

            fn part(&self, event: &Event<D>) -> Self::Part {
                ((self.0)(&event.data), $stand((event.time, event.origin.place())), (self.1)(&event.data))
            }

            fn lift(&self, value: Self::Part) -> Self::Sum {
                $sum { value }
            }

            fn value(&self, _count: i64, sum: &Self::Sum) -> Result<V> {
                Ok(sum.value.2.clone())
            }
        }
    };
}

by_another!(
    /// See [`Each::arg_min`].
    ArgMin, Least, Standing, |standing: Standing| standing
);
by_another!(
    /// See [`Each::arg_max`].
    ArgMax, Greatest, Reverse<Standing>, Reverse
);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Origin;
    use crate::time::EventTime;

    type Deal = (u8, i64);

    fn events(random: &mut fastrand::Rng, count: usize) -> Vec<Event<Deal>> {
        let event = |offset: usize| {
            let time = EventTime::from_millis(random.i64(0..6));
            let origin = Origin { source: 0, fresh: false, partition: random.u32(0..2), offset: offset as u64 };
            let amount = *random.choice(&[i64::MIN, i64::MAX, 0, -1, 7, 7, 8]).unwrap();
            Event { time, mark: time, origin, data: (random.u8(0..5), amount) }
        };
        (0..count).map(event).collect()
    }

    /// In whatever order and groups records are added up, what is kept is the same, and shows what `expected` says.
    fn check<A: Aggregate<Deal>>(aggregate: &A, expected: impl Fn(&[Event<Deal>]) -> A::Value) {
        for seed in 0..300 {
            let mut random = fastrand::Rng::with_seed(seed);
            let count = random.usize(1..12);
            let mut all = events(&mut random, count);
            let sums = (0..4).map(|_| {
                random.shuffle(&mut all);
                let mut groups = Vec::<A::Sum>::new();
                for event in &all {
                    let (part, at) = (aggregate.part(event), random.usize(0..=groups.len()));
                    match groups.get_mut(at) {
                        Some(sum) if random.bool() => aggregate.absorb(sum, part),
                        Some(sum) => sum.merge(&aggregate.lift(part)),
                        None => groups.push(aggregate.lift(part)),
                    }
                }
                random.shuffle(&mut groups);
                let mut sum = groups.pop().unwrap();
                groups.iter().for_each(|other| sum.merge(other));
                sum
            });
            let sums = sums.collect::<Vec<_>>();
            assert!(sums.iter().all(|sum| *sum == sums[0]), "seed {seed}: {sums:?}");
            let bytes = postcard::to_allocvec(&sums[0]).unwrap();
            assert_eq!(postcard::from_bytes::<A::Sum>(&bytes).unwrap(), sums[0], "seed {seed}");
            let shown = aggregate.value(all.len() as i64, &sums[0]).unwrap();
            assert_eq!(shown, expected(&all), "seed {seed}: {all:?}");
        }
    }

    fn standing(event: &Event<Deal>) -> Standing {
        (event.time, event.origin.place())
    }

    #[test]
    fn sets_are_of_the_records_alone() {
        let each = Each::<Deal>::new();
        let distinct = |events: &[Event<Deal>]| {
            let mut values = events.iter().map(|event| event.data.1).collect::<Vec<_>>();
            values.sort_unstable();
            values.dedup();
            values
        };
        check(&each.distinct(|deal| deal.1), distinct);
        check(&each.count_distinct(|deal| deal.1), |events| distinct(events).len() as i64);
        for most in [0usize, 1, 3, 100] {
            check(&each.top(most as u32, |deal| deal.1), |events| {
                let mut values = events.iter().map(|event| event.data.1).collect::<Vec<_>>();
                values.sort_unstable_by_key(|value| Reverse(*value));
                values.truncate(most);
                values
            });
        }
    }

    #[test]
    fn order_and_ties_are_of_the_records_alone() {
        let each = Each::<Deal>::new();
        let ordered = |events: &[Event<Deal>]| {
            let mut events = events.to_vec();
            events.sort_by_key(standing);
            events
        };
        check(&each.collect(|deal| *deal), |events| ordered(events).into_iter().map(|event| event.data).collect());
        let first_with = |events: &[Event<Deal>], amount: i64| {
            ordered(events).into_iter().find(|event| event.data.1 == amount).unwrap().data.0
        };
        check(&each.arg_min(|deal| deal.1, |deal| deal.0), |events| {
            first_with(events, events.iter().map(|event| event.data.1).min().unwrap())
        });
        check(&each.arg_max(|deal| deal.1, |deal| deal.0), |events| {
            first_with(events, events.iter().map(|event| event.data.1).max().unwrap())
        });
    }
}
