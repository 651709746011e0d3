//! Joins of records that happen within a span of each other (interval joins).
//!
//! * A left and a right record of a key are a **pair** if the right one's time is in [left − before, left + after]. A pair
//!   is emitted in the epoch in which the second of the two arrives, at the later one's event time: the record that came
//!   is not late, so neither is the pair downstream.
//! * A left record that can be in no further pair, because the watermark is past left + after, is **over**; a right one
//!   when it is past right + before. A record that is over without a pair is emitted by outer joins, at that time: the
//!   last one at which a pair was possible. Own times would be late downstream, or hold its watermark back.
//! * A semi-join emits a left record once, at the event time of its earliest pair, when the watermark has passed that: a
//!   right record that comes later, but happened earlier, would be an earlier pair.
//!
//! The operator keeps records by key and side, sorted by time ([`super::side`]). If rows are emitted when a record is over,
//! its key is woken then; an inner join removes such records when it comes by: see [`WaitingKeys`].
//!
//! Invariants:
//! * All pairs of records that are on time are emitted, each once. A record is on time at epoch e if its time is at least
//!   the watermark at the epoch before, so no record that it pairs with is over then.
//! * Left records of a semi-join are emitted in the order of their times, so that only the first ones are looked at: of
//!   two left records the earlier has the earlier first pair, or is over without one before the later one's first pair.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::joined::{JoinInputs, Joined, moment};
use super::side::{self, JoinKind, JoinSide, KeyRecords, SavedRecord, WaitingRecord};
use super::waiting_keys::{AddedRecord, WaitingKeys};
use crate::metrics::StepMetrics;
use crate::record::Record;
use crate::stream::assign::{EventStamp, TimeRouter};
use crate::stream::checkpoint::{RowChunks, RowOps};
use crate::stream::keyed_stream::Keyed;
use crate::stream::look_ahead;
use crate::stream::operator_state::{OperatorState, RoutedRecordOf, StepResultsOf};
use crate::time::{EventTime, Span};

impl<'f, K: Record, L: Record> Keyed<'f, K, L> {
    /// Joins each record with the records of another stream that have its key and happen at most `before` before it or
    /// `after` after it, both included. A method of the returned builder says which join it is. The step's name is unique
    /// in the query: state and metrics are found by it.
    ///
    /// The results are a function of the records' event times: they do not depend on the order of arrival, on epochs or
    /// on workers. A record waits, durably, until the watermark of both streams says that it can be in no further pair;
    /// so the streams have to advance together, as for [`Stream::concat`](crate::Stream::concat): one that is idle does
    /// not hold the other back.
    ///
    /// A record that is late (see [`Joined::late_left`]) is left out.
    /// [`Keyed::allowed_lateness`] on either stream accepts records that are late by at most that span.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tidegate::source::memory::MemorySource;
    /// use tidegate::testing::{Captured, TestRun};
    ///
    /// # fn main() -> tidegate::Result<()> {
    /// // (order, event time in ms), and (order, cents, event time): orders that are paid within a minute, and others.
    /// let orders = MemorySource::new(vec![vec![(1, 0), (2, 1_000), (3, 90_000)]], |order: &(u32, i64)| order.1);
    /// let payments = vec![(2, 250, 31_000), (1, 999, 70_000), (3, 700, 95_000)];
    /// let payments = MemorySource::new(vec![payments], |payment: &(u32, i64, i64)| payment.2);
    /// let matched = Captured::<(u32, Option<i64>)>::new();
    /// let output = matched.clone();
    /// TestRun::new().run(move |flow| {
    ///     let payments = flow.read("payments", &payments).key_by(|payment| payment.0);
    ///     flow.read("orders", &orders)
    ///         .key_by(|order| order.0)
    ///         .join_within("paid", payments, Duration::ZERO, Duration::from_secs(60))
    ///         .left_outer(|order, _, payment| (*order, payment.map(|payment| payment.1)))
    ///         .results()
    ///         .write("matched", &output);
    /// })?;
    /// assert_eq!(matched.all(), [(1, None), (2, Some(250)), (3, Some(700))]);
    /// # Ok(()) }
    /// ```
    pub fn join_within<R: Record>(
        self,
        name: &str,
        other: Keyed<'f, K, R>,
        before: Duration,
        after: Duration,
    ) -> JoinWithin<'f, K, L, R> {
        let inputs = JoinInputs { name: name.to_owned(), left: self, right: other };
        let (before, after) = (inputs.span("span before", before), inputs.span("span after", after));
        JoinWithin { inputs, reach: Reach { before, after } }
    }
}

/// A join of records that happen within a span of each other: see [`Keyed::join_within`]. Its methods say what is emitted.
pub struct JoinWithin<'f, K, L, R> {
    inputs: JoinInputs<'f, K, L, R>,
    reach: Reach,
}

impl<K, L, R> fmt::Debug for JoinWithin<'_, K, L, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [key, left, right] = [std::any::type_name::<K>(), std::any::type_name::<L>(), std::any::type_name::<R>()];
        write!(f, "JoinWithin<{key}, {left}, {right}> {:?}", self.reach)
    }
}

impl<'f, K: Record, L: Record, R: Record> JoinWithin<'f, K, L, R> {
    /// Emits what `pair` returns for each pair, at the later event time of the two, as soon as both have arrived.
    pub fn inner<O: Record>(self, pair: impl Fn(&K, &L, &R) -> O + 'static) -> Joined<'f, L, R, O> {
        self.build(JoinKind::Inner, move |key, left, right| match (left, right) {
            (Some(left), Some(right)) => pair(key, left, right),
            _ => unreachable!("an inner join has pairs alone"),
        })
    }

    /// Like [`JoinWithin::inner`], and emits left records without a pair, with `None`. They are emitted when the watermark
    /// has passed the last time at which a pair was possible, and happen at that time: `after` after their own.
    pub fn left_outer<O: Record>(self, row: impl Fn(&K, &L, Option<&R>) -> O + 'static) -> Joined<'f, L, R, O> {
        self.build(JoinKind::LeftOuter, move |key, left, right| match left {
            Some(left) => row(key, left, right),
            None => unreachable!("each row has a left record"),
        })
    }

    /// Like [`JoinWithin::inner`], and emits right records without a pair, with `None`. They are emitted when the
    /// watermark has passed the last time at which a pair was possible, and happen at that time: `before` after their own.
    pub fn right_outer<O: Record>(self, row: impl Fn(&K, Option<&L>, &R) -> O + 'static) -> Joined<'f, L, R, O> {
        self.build(JoinKind::RightOuter, move |key, left, right| match right {
            Some(right) => row(key, left, right),
            None => unreachable!("each row has a right record"),
        })
    }

    /// Like [`JoinWithin::inner`], and emits the records of both streams without a pair: see [`JoinWithin::left_outer`] and
    /// [`JoinWithin::right_outer`]. At least one of the two records is there.
    pub fn full_outer<O: Record>(self, row: impl Fn(&K, Option<&L>, Option<&R>) -> O + 'static) -> Joined<'f, L, R, O> {
        self.build(JoinKind::FullOuter, row)
    }

    /// Emits each left record that has a pair, once, at the event time of its earliest pair, when the watermark has passed
    /// that time. The right semi-join is the left one of the streams the other way round.
    pub fn semi(self) -> Joined<'f, L, R, L> {
        self.build(JoinKind::Semi, |_, left: Option<&L>, _| match left {
            Some(left) => left.clone(),
            None => unreachable!("each row has a left record"),
        })
    }

    /// Emits each left record without a pair, when the watermark has passed the last time at which a pair was possible; it
    /// happens at that time: `after` after its own. The right anti-join is the left one of the streams the other way round.
    pub fn anti(self) -> Joined<'f, L, R, L> {
        self.build(JoinKind::Anti, |_, left: Option<&L>, _| match left {
            Some(left) => left.clone(),
            None => unreachable!("each row has a left record"),
        })
    }

    fn build<O: Record>(
        self,
        kind: JoinKind,
        row: impl Fn(&K, Option<&L>, Option<&R>) -> O + 'static,
    ) -> Joined<'f, L, R, O> {
        let JoinWithin { inputs, reach } = self;
        let lateness = inputs.lateness();
        let metrics = inputs.left.stream.flow.build.metrics.step(&inputs.name);
        let Reach { before, after } = reach;
        let detail = format!("{kind:?} join within {} ms before to {} ms after", before.millis(), after.millis());
        let rule = WithinRule { kind, reach, row };
        inputs.step(&detail, lateness, (TimeRouter(lateness), TimeRouter(lateness)), move |start| WithinState {
            rule,
            keys: WaitingKeys::new(kind.emits_at_the_end(), start.closed, start.durable),
            pairs: Vec::new(),
            removed: 0,
            closed: start.closed,
            lateness,
            metrics,
        })
    }
}

/// The greatest distances of right records from a left one, in event time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Reach {
    before: Span,
    after: Span,
}

impl Reach {
    /// Returns the last time at which a left record has a pair.
    fn last_of_left(self, time: EventTime) -> EventTime {
        time.plus(self.after)
    }

    /// Returns the last time at which a right record has a pair.
    fn last_of_right(self, time: EventTime) -> EventTime {
        time.plus(self.before)
    }
}

/// The rule of a join: the rows that it emits of the records of a key, and when.
struct WithinRule<M> {
    kind: JoinKind,
    reach: Reach,
    /// Makes a row of a pair, or of a record without one.
    row: M,
}

impl<M> WithinRule<M> {
    /// Returns the least time that has an effect when a key's records are advanced to it.
    fn due<L: Record, R: Record>(&self, records: &KeyRecords<L, R>) -> EventTime {
        let left = records.left.first().map_or(EventTime::MAX, |left| {
            let last = self.reach.last_of_left(left.time());
            if self.kind == JoinKind::Semi { last.min(left.matched_at) } else { last }
        });
        let right = records.right.first().map_or(EventTime::MAX, |right| self.reach.last_of_right(right.time()));
        left.min(right).next()
    }

    /// Removes a key's records that are over at a time, and emits those that are to be emitted then; returns their number.
    fn close<K, L: Record, R: Record, O>(
        &self,
        key: &K,
        records: &mut KeyRecords<L, R>,
        to: EventTime,
        rows: &mut Vec<(EventTime, O)>,
    ) -> u64
    where
        M: Fn(&K, Option<&L>, Option<&R>) -> O,
    {
        let (kind, reach) = (self.kind, self.reach);
        let is_over = |last: EventTime| last < to || to == EventTime::MAX;
        let mut removed = 0;
        while let Some(left) = records
            .left
            .next_if(|left| is_over(reach.last_of_left(left.time())) || kind == JoinKind::Semi && left.matched_at < to)
        {
            removed += 1;
            let is_alone = left.matched_at == EventTime::MAX;
            if is_alone && kind.emits_left_alone() {
                rows.push((moment(reach.last_of_left(left.time())), (self.row)(key, Some(&left.data), None)));
            } else if !is_alone && kind == JoinKind::Semi {
                rows.push((left.matched_at, (self.row)(key, Some(&left.data), None)));
            }
        }
        while let Some(right) = records.right.next_if(|right| is_over(reach.last_of_right(right.time()))) {
            removed += 1;
            if right.matched_at == EventTime::MAX && kind.emits_right_alone() {
                rows.push((moment(reach.last_of_right(right.time())), (self.row)(key, None, Some(&right.data))));
            }
        }
        removed
    }
}

/// The state of a join on one worker.
struct WithinState<K, L, R, O, M> {
    rule: WithinRule<M>,
    keys: WaitingKeys<K, L, R>,
    /// Pairs of the records of the epoch that is not complete.
    pairs: Vec<(EventTime, O)>,
    /// Records that were removed since the last watermark.
    removed: u64,
    /// The time that the join has been advanced to: the watermark, less the allowed lateness.
    closed: EventTime,
    lateness: Span,
    metrics: Arc<StepMetrics>,
}

impl<K, L, R, O, M> WithinState<K, L, R, O, M>
where
    K: Record,
    L: Record,
    R: Record,
    O: Record,
    M: Fn(&K, Option<&L>, Option<&R>) -> O + 'static,
{
    /// Adds a record, and makes its pairs with those that are there.
    fn add(&mut self, key: K, stamp: EventStamp, part: JoinSide<L, R>) {
        let WithinState { rule, keys, pairs, removed, closed, .. } = self;
        let Reach { before, after } = rule.reach;
        let over_at = match part {
            JoinSide::Left(_) => rule.reach.last_of_left(stamp.0).next(),
            JoinSide::Right(_) => rule.reach.last_of_right(stamp.0).next(),
        };
        keys.update(key, AddedRecord { is_new: true, over_at }, |key, records| {
            if records.due <= *closed {
                // Of an inner join. Other joins have been advanced.
                *removed += rule.close(key, records, *closed, pairs);
            }
            let emits_pairs = rule.kind.emits_pairs();
            let mut pair = |left: &mut WaitingRecord<L>, right: &mut WaitingRecord<R>| {
                let at = left.time().max(right.time());
                left.note_match(at);
                right.note_match(at);
                if emits_pairs {
                    pairs.push((at, (rule.row)(key, Some(&left.data), Some(&right.data))));
                }
            };
            match part {
                JoinSide::Left(data) => {
                    let mut left = WaitingRecord::new(stamp, data);
                    let (first, last) = (stamp.0.minus(before), stamp.0.plus(after));
                    records.right.between(first, last).for_each(|right| pair(&mut left, right));
                    records.left.insert(left);
                }
                JoinSide::Right(data) => {
                    let mut right = WaitingRecord::new(stamp, data);
                    let (first, last) = (stamp.0.minus(after), stamp.0.plus(before));
                    records.left.between(first, last).for_each(|left| pair(left, &mut right));
                    records.right.insert(right);
                }
            }
            rule.due(records)
        });
    }
}

impl<K, L, R, O, M> OperatorState for WithinState<K, L, R, O, M>
where
    K: Record,
    L: Record,
    R: Record,
    O: Record,
    M: Fn(&K, Option<&L>, Option<&R>) -> O + 'static,
{
    type Key = K;
    type Place = EventStamp;
    type Part = JoinSide<L, R>;
    type SavedRow = SavedRecord<K, L, R>;
    type Closed = (EventTime, O);
    type Value = ();

    const REPORTS_RECORDS: bool = true;

    fn saved_rows() -> RowOps<Self::SavedRow> {
        side::saved_records()
    }

    fn key_of(saved: &Self::SavedRow) -> &K {
        &saved.0.0
    }

    fn absorb(&mut self, records: &mut Vec<RoutedRecordOf<Self>>) {
        let mut records = records.drain(..);
        while !records.as_slice().is_empty() {
            self.keys.read_ahead(records.as_slice().iter().map(|(key, ..)| key));
            records.by_ref().take(look_ahead::GROUP).for_each(|(key, stamp, part)| self.add(key, stamp, part));
        }
    }

    /// Pairs are emitted in the epoch of their records.
    fn report(&mut self, results: &mut StepResultsOf<Self>) {
        std::mem::swap(&mut self.pairs, &mut results.closed);
    }

    fn load(&mut self, _epoch: u64, mut rows: Vec<Self::SavedRow>, _results: &mut StepResultsOf<Self>) {
        side::consolidate(&mut rows);
        let (kind, reach, closed) = (self.rule.kind, self.rule.reach, self.closed);
        let mut loaded = 0;
        for ((key, stamp, part), change) in rows {
            let (count, matched_at) = change.parts();
            let last = match part {
                JoinSide::Left(_) => reach.last_of_left(stamp.0),
                JoinSide::Right(_) => reach.last_of_right(stamp.0),
            };
            let added = AddedRecord { is_new: false, over_at: last.next() };
            // The spans of the join may have been longer when the record was saved.
            let is_emitted = kind == JoinKind::Semi && matches!(part, JoinSide::Left(_)) && matched_at < closed;
            if is_emitted || last < closed {
                continue;
            }
            loaded += u64::from(count);
            let rule = &self.rule;
            self.keys.update(key, added, |_, records| {
                for _ in 0..count {
                    match part.clone() {
                        JoinSide::Left(data) => records.left.insert(WaitingRecord::loaded(stamp, data, matched_at)),
                        JoinSide::Right(data) => records.right.insert(WaitingRecord::loaded(stamp, data, matched_at)),
                    }
                }
                rule.due(records)
            });
        }
        self.metrics.loaded.add(loaded);
    }

    fn seal(&mut self, _epoch: u64) -> (EventTime, Option<RowChunks<Self::SavedRow>>) {
        let reach = self.rule.reach;
        let until = (|time| reach.last_of_left(time).next(), |time| reach.last_of_right(time).next());
        (self.closed, self.keys.seal(self.closed, &until))
    }

    fn advance(&mut self, _epoch: u64, watermark: EventTime, results: &mut StepResultsOf<Self>) {
        let (rule, to) = (&self.rule, watermark.minus(self.lateness));
        let close = |key: &K, records: &mut _| rule.close(key, records, to, &mut results.closed);
        let removed = self.keys.advance(to, close, |records| rule.due(records));
        self.closed = self.closed.max(to);
        self.metrics.counted.add(removed + std::mem::take(&mut self.removed));
    }
}

/// Counts the records that are still held: in = counted + late holds whenever a job stops.
impl<K, L, R, O, M> Drop for WithinState<K, L, R, O, M> {
    fn drop(&mut self) {
        self.metrics.counted.add(self.keys.held() as u64 + self.removed);
    }
}
