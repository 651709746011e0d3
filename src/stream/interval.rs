//! Intervals of event time: the extents of windows and panes.

use serde::{Deserialize, Serialize};

use crate::time::EventTime;

/// An interval [start, end) of event time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Interval {
    /// The first moment in it.
    pub start: EventTime,
    /// The first moment after it.
    pub end: EventTime,
}

impl Interval {
    /// An interval that contains no time.
    pub(crate) const NOTHING: Interval = Interval { start: EventTime::MAX, end: EventTime::MIN };
}
