//! Count windows: the first n records of a key by event time, the next n, and so on.
//!
//! Records of a key wait until the watermark has passed them, so that records out of order are counted where they
//! belong; records of equal time are ordered by source, partition and offset. A window ends just after its last
//! record. A window that is not full yet has no end: it extends to the end of time, and is emitted when its stream
//! ends.

use serde::{Deserialize, Serialize};

use crate::record::Record;
use crate::stream::aggregate::{Accumulator, Aggregate};
use crate::stream::assign::EventStamp;
use crate::stream::counted::Counted;
use crate::stream::interval::Interval;
use crate::stream::keyed_rows::KeyedOperator;
use crate::stream::value_reporter::ValueReporter;
use crate::stream::waiting_records::WaitingRecords;
use crate::stream::window_row::WindowRow;
use crate::time::EventTime;

/// A window that is not full.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename = "Filling")]
struct PartialWindow<S> {
    start: EventTime,
    total: Counted<S>,
}

/// The windows of a key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(bound = "S: Record")]
#[serde(rename = "Run")]
pub(crate) struct CountState<S: Ord> {
    /// The records that the watermark has passed, of the window that is not full.
    filling: Option<PartialWindow<S>>,
    /// The accumulators of the records that the watermark has not passed.
    waiting: WaitingRecords<(EventStamp, S)>,
}

impl<S: Ord> CountState<S> {
    /// Converts the accumulators.
    pub(crate) fn map<T: Ord>(self, mut convert: impl FnMut(S) -> T) -> CountState<T> {
        let CountState { filling, waiting } = self;
        let filling =
            filling.map(|PartialWindow { start, total }| PartialWindow { start, total: total.map(&mut convert) });
        CountState { filling, waiting: waiting.map(convert) }
    }
}

/// Aggregates count windows of `size` records.
pub(crate) struct CountWindows<K, D, A> {
    pub(crate) size: i64,
    pub(crate) reporter: ValueReporter<A>,
    pub(crate) types: std::marker::PhantomData<fn(K, D)>,
}

impl<K: Record, D: 'static, A: Aggregate<D>> CountWindows<K, D, A> {
    /// Adds a record to the window that is being filled; returns the window when it is full.
    fn fill(
        &self,
        filling: &mut Option<PartialWindow<A::Sum>>,
        time: EventTime,
        sum: A::Sum,
    ) -> Option<(Interval, Counted<A::Sum>)> {
        if let Some(PartialWindow { total, .. }) = filling {
            total.count += 1;
            total.sum.merge(&sum);
        } else {
            *filling = Some(PartialWindow { start: time, total: Counted { count: 1, sum } });
        }
        let full = filling.take_if(|filling| filling.total.count >= self.size)?;
        Some((Interval { start: full.start, end: time.next() }, full.total))
    }

    fn shown(&self, key: &K, (window, total): (Interval, &Counted<A::Sum>)) -> Option<WindowRow<K, A::Value>> {
        Some((window, key.clone(), self.reporter.value(window, key, total)?))
    }

    /// Returns the window that is not full, which ends at the end of time.
    fn rest(filling: &PartialWindow<A::Sum>) -> (Interval, &Counted<A::Sum>) {
        (Interval { start: filling.start, end: EventTime::MAX }, &filling.total)
    }
}

impl<K: Record, D: 'static, A: Aggregate<D>> KeyedOperator for CountWindows<K, D, A> {
    type Key = K;
    type Part = A::Part;
    type Row = CountState<A::Sum>;
    type Closed = WindowRow<K, A::Value>;
    type Value = A::Value;

    const EXPIRES: bool = false;

    fn expires_at(_row: &Self::Row) -> EventTime {
        EventTime::MAX
    }

    fn begin(&self, stamp: EventStamp, part: A::Part) -> Self::Row {
        CountState { filling: None, waiting: WaitingRecords::of((stamp, self.reporter.aggregate.lift(part))) }
    }

    fn absorb(&self, row: &mut Self::Row, stamp: EventStamp, part: A::Part) {
        row.waiting.insert((stamp, self.reporter.aggregate.lift(part)));
    }

    fn due(row: &Self::Row) -> EventTime {
        row.waiting.due()
    }

    fn advance(&self, key: &K, row: &mut Self::Row, to: EventTime, closed: &mut Vec<Self::Closed>) -> i64 {
        let CountState { filling, waiting } = row;
        let mut counted = 0;
        while let Some(((time, _), sum)) = waiting.pop_passed(to) {
            if let Some((window, total)) = self.fill(filling, time, sum) {
                counted += total.count;
                closed.extend(self.shown(key, (window, &total)));
            }
        }
        if let Some(rest) = filling.take_if(|_| to == EventTime::MAX) {
            counted += rest.total.count;
            closed.extend(self.shown(key, Self::rest(&rest)));
        }
        counted
    }

    fn is_finished(row: &Self::Row) -> bool {
        row.filling.is_none() && row.waiting.is_empty()
    }

    fn count(row: &Self::Row) -> i64 {
        row.filling.as_ref().map_or(0, |filling| filling.total.count) + row.waiting.len() as i64
    }

    fn show(
        &self,
        key: &K,
        row: &Self::Row,
        (after, through): (EventTime, EventTime),
        each: &mut dyn FnMut(WindowRow<K, A::Value>),
    ) {
        let mut show = |window: Interval, total: &Counted<A::Sum>| {
            if after < window.end && window.end <= through {
                self.shown(key, (window, total)).into_iter().for_each(&mut *each);
            }
        };
        let mut filling = row.filling.clone();
        for ((time, _), sum) in row.waiting.in_order() {
            if let Some((window, total)) = self.fill(&mut filling, *time, sum.clone()) {
                show(window, &total);
            }
        }
        if let Some(rest) = &filling {
            let (window, total) = Self::rest(rest);
            show(window, total);
        }
    }

    fn end_after(&self, row: &Self::Row, time: EventTime) -> Option<EventTime> {
        // A waiting record ends a window if it brings the number of records to a multiple of the size.
        let filled = row.filling.as_ref().map_or(0, |filling| filling.total.count);
        let last_of_one = |number: usize| (filled + number as i64 + 1) % self.size == 0;
        let waiting = row.waiting.in_order().into_iter();
        let ends = waiting.enumerate().filter(|(number, _)| last_of_one(*number));
        let next = ends.map(|(_, ((last, _), _))| last.next()).find(|end| *end > time);
        next.or((time < EventTime::MAX).then_some(EventTime::MAX))
    }

    fn window_of(closed: &Self::Closed) -> Option<WindowRow<K, A::Value>> {
        Some(closed.clone())
    }
}
