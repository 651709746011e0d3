//! Records, the events that carry them through a flow, and number types for use in records.
//!
//! * [`Record`]: the bounds on everything that users put into a flow, in one trait.
//! * [`Event`]: a record of a stream with its event time, its origin and its partition's watermark just before it.
//! * [`Real`]: an ordered floating-point number, for comparing, grouping and exact sums.
//! * [`Decimal`]: exact decimal numbers, of the `rust_decimal` crate.

mod decimal;
mod other_times;

use std::fmt;
use std::hash::{Hash, Hasher};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};

use crate::time::EventTime;
use crate::time::watermark::PartitionId;

pub use decimal::Decimal;

/// Derives everything that a record needs, for types in tests.
#[cfg(test)]
macro_rules! records {
    ($($item:item)*) => {$(
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        $item
    )*};
}
#[cfg(test)]
pub(crate) use records;

/// A value that can flow through a dataflow: owned, ordered, hashable and serialisable.
///
/// It is implemented for every type that derives
/// `Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize`, and for tuples of such types.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be a record of a flow",
    label = "not a `Record`",
    note = "derive `Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize` for it",
    note = "`f32` and `f64` have no total order: hold a `tidegate::Real` instead, or a `tidegate::Decimal` for money"
)]
pub trait Record: Clone + fmt::Debug + Ord + Hash + Serialize + DeserializeOwned + Send + Sync + 'static {}

impl<T> Record for T where T: Clone + fmt::Debug + Ord + Hash + Serialize + DeserializeOwned + Send + Sync + 'static {}

/// The position that a record was read from. Ordered by source, partition and offset; ties are broken in this order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Origin {
    /// The source's number, in the order in which the flow reads sources.
    pub source: u16,
    /// `true` while the partition's activation watermark is unresolved: it may still make the record late, see
    /// [`crate::time::watermark`].
    #[serde(rename = "fresh")]
    pub(crate) unresolved: bool,
    /// `true` if combining streams raised [`Event::watermark`] above the watermark of the record's own partition, and
    /// the record is not behind the latter.
    pub(crate) raised: bool,
    /// The partition's number in the source.
    pub partition: u32,
    /// The record's offset in the partition: Kafka's offset, or the position of the first byte in a file.
    pub offset: u64,
}

impl Origin {
    pub(crate) fn partition_id(self) -> PartitionId {
        PartitionId { source: u32::from(self.source), partition: self.partition }
    }

    /// The part of the origin that breaks ties: source, partition and offset.
    pub(crate) fn tie_breaker(self) -> (u16, u32, u64) {
        (self.source, self.partition, self.offset)
    }
}

/// A record of a stream, with its times and its origin.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Event<D> {
    /// The event time.
    pub time: EventTime,
    /// The watermark of the record's own partition just before it. After a `concat` it is at least the combined
    /// watermark of both streams at the epoch before the record's.
    #[serde(rename = "mark")]
    pub watermark: EventTime,
    /// The position that the record was read from.
    pub origin: Origin,
    /// The record.
    pub data: D,
}

impl<D> Event<D> {
    /// Replaces the record by `change` of it; times and origin stay.
    #[inline]
    pub fn with<D2>(self, change: impl FnOnce(D) -> D2) -> Event<D2> {
        Event { time: self.time, watermark: self.watermark, origin: self.origin, data: change(self.data) }
    }
}

/// An ordered floating-point number: a key, a value that is compared, or a term of an exact sum.
///
/// The order is IEEE 754's `totalOrder`, except that −0 equals 0 and all NaNs are equal (and greatest): equal values
/// are one group and have the same bits, so it does not matter which of them is published. There is no `+`, as adding one
/// number after another rounds each time, and the result depends on their order: the aggregates
/// [`sum` and `mean`](crate::stream::aggregate::Each::sum) add `Real`s exactly, and round once. Money is better kept in
/// integers or [`Decimal`]s, which hold a tenth as it is.
#[derive(Clone, Copy, Default, Serialize)]
#[serde(transparent)]
pub struct Real(f64);

impl Real {
    /// Normalises −0 and NaN, and wraps the number.
    pub const fn new(value: f64) -> Self {
        if value.is_nan() {
            Real(f64::NAN)
        } else if value == 0.0 {
            Real(0.0)
        } else {
            Real(value)
        }
    }

    /// Returns the number.
    pub const fn get(self) -> f64 {
        self.0
    }
}

impl From<f64> for Real {
    fn from(value: f64) -> Self {
        Real::new(value)
    }
}

impl<'de> Deserialize<'de> for Real {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        f64::deserialize(deserializer).map(Real::new)
    }
}

impl fmt::Debug for Real {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Real {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Ord for Real {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0)
    }
}

impl PartialOrd for Real {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Real {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Real {}

impl Hash for Real {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.to_bits().hash(state);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_reals_are_one_group() {
        use std::hash::{BuildHasher, RandomState};
        let (hashed, nan) = (RandomState::new(), -f64::NAN);
        for (a, b) in [(0.0, -0.0), (nan, f64::NAN), (1.5, 1.5)] {
            let (a, b) = (Real::new(a), Real::from(b));
            assert_eq!((a, a.get().to_bits()), (b, b.get().to_bits()));
            assert_eq!(hashed.hash_one(a), hashed.hash_one(b));
        }
        assert!(Real::new(f64::INFINITY) < Real::new(nan) && Real::new(-1.0) < Real::new(-0.0));
        for value in [-0.0, nan] {
            let read: Real = postcard::from_bytes(&postcard::to_allocvec(&value).unwrap()).unwrap();
            assert_eq!(read.get().to_bits(), Real::new(value).get().to_bits());
        }
    }
}
