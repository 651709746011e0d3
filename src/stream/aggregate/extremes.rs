//! Extremes: the value at an end of an order. [`Min`] and [`Max`] order by the value itself, [`First`] and [`Last`]
//! by the record's position, [`ArgMin`] and [`ArgMax`] by another value of the record.
//!
//! Invariant: the orders are total. The position of a record breaks ties: event time, source, partition, offset.
//! Several values made of one record share its position, and are ordered by the value itself.

use std::cmp::Ordering;

use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::record::{Event, Record};
use crate::stream::aggregate::{Accumulator, Aggregate, Greatest, Least};
use crate::time::EventTime;

macro_rules! extreme {
    ($(#[$doc:meta])* $name:ident, $sum:ident, $better:tt) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug)]
        pub struct $name<F>(pub(super) F);

        impl<V: Record> Accumulator for $sum<V> {
            const INVERTIBLE: bool = true;

            #[inline]
            fn merge(&mut self, other: &Self) {
                if other.value $better self.value {
                    self.value.clone_from(&other.value);
                }
            }

            /// The extreme of the others is known if it is not the one that is removed.
            #[inline]
            fn unmerge(&mut self, other: &Self) -> bool {
                self.value $better other.value
            }
        }

        impl<D, V: Record, F: Fn(&D) -> V + 'static> Aggregate<D> for $name<F> {
            type Part = V;
            type Sum = $sum<V>;
            type Value = V;

            #[inline]
            fn part(&self, event: &Event<D>) -> V {
                (self.0)(&event.data)
            }

            #[inline]
            fn lift(&self, value: V) -> $sum<V> {
                $sum { value }
            }

            #[inline]
            fn absorb(&self, sum: &mut $sum<V>, part: V) {
                if const { std::mem::needs_drop::<V>() } {
                    if part $better sum.value {
                        sum.value = part;
                    }
                } else {
                    // Without a branch: which records are new extremes cannot be predicted, and copying is cheap.
                    sum.value = if part $better sum.value { part } else { sum.value.clone() };
                }
            }

            fn value(&self, _count: i64, sum: &$sum<V>) -> Result<V> {
                Ok(sum.value.clone())
            }
        }
    };
}

extreme!(
    /// See [`Each::min`](super::Each::min).
    Min, Least, <
);
extreme!(
    /// See [`Each::max`](super::Each::max).
    Max, Greatest, >
);

/// The position of a record: event time, then source, partition and offset.
pub(super) type RecordPosition = (EventTime, (u16, u32, u64));

/// Returns the position of an event's record.
#[inline]
pub(super) fn standing<D>(event: &Event<D>) -> RecordPosition {
    (event.time, event.origin.tie_breaker())
}

macro_rules! by_event_time {
    ($(#[$doc:meta])* $name:ident, $sum:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug)]
        pub struct $name<F>(pub(super) F);

        impl<D, V: Record, F: Fn(&D) -> V + 'static> Aggregate<D> for $name<F> {
            type Part = (RecordPosition, V);
            type Sum = $sum<(RecordPosition, V)>;
            type Value = V;

            fn part(&self, event: &Event<D>) -> (RecordPosition, V) {
                (standing(event), (self.0)(&event.data))
            }

            fn lift(&self, value: (RecordPosition, V)) -> $sum<(RecordPosition, V)> {
                $sum { value }
            }

            fn value(&self, _count: i64, sum: &$sum<(RecordPosition, V)>) -> Result<V> {
                Ok(sum.value.1.clone())
            }
        }
    };
}

by_event_time!(
    /// See [`Each::first`](super::Each::first).
    First, Least
);
by_event_time!(
    /// See [`Each::last`](super::Each::last).
    Last, Greatest
);

macro_rules! extreme_by {
    ($(#[$doc:meta])* $name:ident, $(#[$sum_doc:meta])* $sum:ident, $better:pat) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug)]
        pub struct $name<B, F> {
            pub(super) by: B,
            pub(super) of: F,
        }

        $(#[$sum_doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $sum<B, V> {
            by: B,
            standing: RecordPosition,
            value: V,
        }

        #[cfg(feature = "abomonation")]
        crate::in_place!($sum<B, V> { by, standing, value });

        impl<B: Record, V: Record> $sum<B, V> {
            fn is_before(&self, other: &Self) -> bool {
                match self.by.cmp(&other.by) {
                    $better => true,
                    Ordering::Equal => (self.standing, &self.value) < (other.standing, &other.value),
                    _ => false,
                }
            }
        }

        impl<B: Record, V: Record> Accumulator for $sum<B, V> {
            const INVERTIBLE: bool = true;

            fn merge(&mut self, other: &Self) {
                if other.is_before(self) {
                    self.clone_from(other);
                }
            }

            fn unmerge(&mut self, other: &Self) -> bool {
                self.is_before(other)
            }
        }

        impl<D, B: Record, V: Record, G, F> Aggregate<D> for $name<G, F>
        where
            G: Fn(&D) -> B + 'static,
            F: Fn(&D) -> V + 'static,
        {
            type Part = (B, RecordPosition, V);
            type Sum = $sum<B, V>;
            type Value = V;

            fn part(&self, event: &Event<D>) -> Self::Part {
                ((self.by)(&event.data), standing(event), (self.of)(&event.data))
            }

            fn lift(&self, (by, standing, value): Self::Part) -> $sum<B, V> {
                $sum { by, standing, value }
            }

            fn absorb(&self, sum: &mut $sum<B, V>, part: Self::Part) {
                let one = Aggregate::<D>::lift(self, part);
                if one.is_before(sum) {
                    *sum = one;
                }
            }

            fn value(&self, _count: i64, sum: &$sum<B, V>) -> Result<V> {
                Ok(sum.value.clone())
            }
        }
    };
}

extreme_by!(
    /// See [`Each::arg_min`](super::Each::arg_min).
    ArgMin,
    /// The accumulator of [`ArgMin`]: the value, with the key and the position that select its record.
    LeastBy,
    Ordering::Less
);
extreme_by!(
    /// See [`Each::arg_max`](super::Each::arg_max).
    ArgMax,
    /// The accumulator of [`ArgMax`]: the value, with the key and the position that select its record.
    GreatestBy,
    Ordering::Greater
);
