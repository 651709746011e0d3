//! The n greatest and the n least values.
//!
//! The limit n is part of the accumulator: a merge must know it. If two accumulators have different limits, as in a
//! window that was begun by an earlier version of the program, the lesser limit applies, since the values that the
//! other one dropped are unknown.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::record::{Event, Record};
use crate::stream::aggregate::{Accumulator, Aggregate};

macro_rules! ranked {
    ($(#[$doc:meta])* $name:ident, $(#[$sum_doc:meta])* $sum:ident, $better:tt) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug)]
        pub struct $name<F> {
            pub(super) most: usize,
            pub(super) of: F,
        }

        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        $(#[$sum_doc])*
        pub struct $sum<V> {
            most: u64,
            values: Vec<V>,
        }

        impl<V: Record> $sum<V> {
            /// Returns the index at which to insert a value: after those that are better or equal; `None` if there is
            /// no room for it.
            fn place(&self, value: &V) -> Option<usize> {
                let has_room = (self.values.len() as u64) < self.most;
                if !has_room && self.values.last().is_none_or(|last| !(value $better last)) {
                    return None;
                }
                Some(self.values.partition_point(|kept| !(value $better kept)))
            }

            /// Lowers the limit to `most` values.
            fn limit(&mut self, most: u64) {
                if most < self.most {
                    self.most = most;
                    self.values.truncate(most as usize);
                }
            }

            fn put(&mut self, place: usize, value: V) {
                if self.values.len() as u64 == self.most {
                    self.values.pop();
                }
                self.values.insert(place, value);
            }
        }

        impl<V: Record> Accumulator for $sum<V> {
            fn merge(&mut self, other: &Self) {
                self.limit(other.most);
                for value in &other.values {
                    // The remaining values are no better.
                    let Some(place) = self.place(value) else { break };
                    self.put(place, value.clone());
                }
            }
        }

        impl<D, V: Record, F: Fn(&D) -> V + 'static> Aggregate<D> for $name<F> {
            type Part = V;
            type Sum = $sum<V>;
            type Value = Vec<V>;

            fn part(&self, event: &Event<D>) -> V {
                (self.of)(&event.data)
            }

            fn lift(&self, value: V) -> $sum<V> {
                let values = if self.most == 0 { Vec::new() } else { vec![value] };
                $sum { most: self.most as u64, values }
            }

            fn absorb(&self, sum: &mut $sum<V>, value: V) {
                sum.limit(self.most as u64);
                if let Some(place) = sum.place(&value) {
                    sum.put(place, value);
                }
            }

            fn check(&self) -> Result<()> {
                if self.most > 0 {
                    return Ok(());
                }
                Err(Error::usage("of an aggregate's values none would be kept").help("keep at least one"))
            }

            fn empty(&self) -> Option<$sum<V>> {
                Some($sum { most: self.most as u64, values: Vec::new() })
            }

            fn value(&self, _count: i64, sum: &$sum<V>) -> Result<Vec<V>> {
                Ok(sum.values.clone())
            }
        }
    };
}

ranked!(
    /// See [`Each::top`](super::Each::top).
    Top,
    /// The accumulator of [`Top`]: at most `most` values, greatest first.
    #[serde(rename = "Highest")]
    TopValues, >
);
ranked!(
    /// See [`Each::bottom`](super::Each::bottom).
    Bottom,
    /// The accumulator of [`Bottom`]: at most `most` values, least first.
    #[serde(rename = "Lowest")]
    BottomValues, <
);
