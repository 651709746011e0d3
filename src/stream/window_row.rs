//! Rows of windows: what a windowed step gives out.
//!
//! * A [`WindowRow`] is how steps pass a result on: the window, the key and the value. A [`WindowRowChange`] inserts or
//!   retracts one; a [`PeriodicRow`] is emitted at a multiple of a period.
//! * A [`Closed`] or an [`Open`] row is how queries see it: the final result, or the current one.

use serde::{Deserialize, Serialize};

use crate::stream::interval::Interval;
use crate::time::EventTime;

/// The final result of a window for a key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Closed<K, V> {
    /// The window.
    pub window: Interval,
    /// The key.
    pub key: K,
    /// The aggregate's value of the window's records with that key.
    pub value: V,
}

/// The current result of a window for a key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Open<K, V> {
    /// The window.
    pub window: Interval,
    /// The key.
    pub key: K,
    /// The aggregate's value of the window's records with that key so far.
    pub value: V,
}

/// A row of a window: the window, the key and its value.
pub(crate) type WindowRow<K, V> = (Interval, K, V);
/// A change of a window's row: row, epoch, difference.
pub(crate) type WindowRowChange<K, V> = (WindowRow<K, V>, u64, isize);
/// A row of an open window, emitted because the watermark passed a multiple of a period: the period's index, that
/// multiple, and the row.
pub(crate) type PeriodicRow<K, V> = (usize, EventTime, WindowRow<K, V>);
