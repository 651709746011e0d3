//! Keyed state with event-time timers, for what windows and collections cannot express.
//!
//! * The records of a key are passed to the query's own function **in the order of event time**, those of equal time
//!   by source, partition and offset, when the watermark has passed them, whatever the order of arrival. So its
//!   results are a function of the records, on any number of workers.
//! * The function is given the key's value, `None` until it sets one, and sets **timers**: at the time of a timer another function is called,
//!   before the records of that same time. So "within d" means less than d later, as it does for sessions.
//! * A key without value, timer or waiting record costs nothing.
//!
//! Records wait in memory until the watermark passes them, that is for as long as they may be out of order. When the
//! stream ends, everything left is processed, records and timers in order; once no records are left, timers set by
//! timers are ignored, as they might never end.

use std::collections::BTreeSet;
use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::record::{Event, Record};
use crate::stream::Stream;
use crate::stream::assign::EventStamp;
use crate::stream::checkpoint;
use crate::stream::keyed_rows::{self, KeyedOperator, SavedVersion};
use crate::stream::keyed_stream::Keyed;
use crate::stream::panes::whole_millis;
use crate::stream::waiting_records::WaitingRecords;
use crate::stream::window_operator::StepOutputs;
use crate::time::{EventTime, Span};

/// A key at a moment of event time, as passed to the functions of [`Keyed::keyed_state`] and
/// [`Keyed::keyed_state_with`].
#[derive(Debug)]
pub struct StateContext<'a, K, O> {
    key: &'a K,
    now: EventTime,
    timers: &'a mut BTreeSet<EventTime>,
    /// `false` if timers that are set are ignored, as the stream has ended.
    accepts_timers: bool,
    emitted: &'a mut Vec<(EventTime, O)>,
}

impl<K, O> StateContext<'_, K, O> {
    /// Returns the key.
    pub fn key(&self) -> &K {
        self.key
    }

    /// Returns the event time of the record, or of the timer.
    pub fn now(&self) -> EventTime {
        self.now
    }

    /// Sets a timer of this key. A time that is not after [`StateContext::now`] becomes the next millisecond; several
    /// timers at one time are one.
    pub fn set_timer(&mut self, at: EventTime) {
        if self.accepts_timers {
            self.timers.insert(at.max(self.now.next()));
        }
    }

    /// Sets a timer of this key, `after` from now.
    pub fn set_timer_in(&mut self, after: Duration) {
        self.set_timer(self.now.plus(Span::from(after)));
    }

    /// Removes all timers of this key.
    pub fn clear_timers(&mut self) {
        self.timers.clear();
    }

    /// Emits a record whose event time is now.
    pub fn emit(&mut self, record: O) {
        self.emitted.push((self.now, record));
    }
}

/// The state of a key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(bound = "S: Record, D: Record")]
#[serde(rename = "Stated")]
pub(crate) struct KeyState<S, D: Ord> {
    state: Option<S>,
    timers: BTreeSet<EventTime>,
    /// Records that the watermark has not passed.
    waiting: WaitingRecords<(EventStamp, D)>,
}

/// The functions of a step.
pub(super) struct StateFunctions<K, S, D, O, E, T> {
    pub(super) on_record: E,
    pub(super) on_timer: T,
    pub(super) types: PhantomData<fn(K, S, D, O)>,
}

impl<K, S, D, O, E, T> KeyedOperator for StateFunctions<K, S, D, O, E, T>
where
    K: Record,
    S: Record,
    D: Record,
    O: Record,
    E: Fn(&mut StateContext<'_, K, O>, &mut Option<S>, D) + 'static,
    T: Fn(&mut StateContext<'_, K, O>, &mut Option<S>) + 'static,
{
    type Key = K;
    type Part = D;
    type Row = KeyState<S, D>;
    type Closed = (EventTime, O);
    type Value = ();

    const EXPIRES: bool = false;

    fn expires_at(_row: &Self::Row) -> EventTime {
        EventTime::MAX
    }

    fn begin(&self, stamp: EventStamp, part: D) -> Self::Row {
        KeyState { state: None, timers: BTreeSet::new(), waiting: WaitingRecords::of((stamp, part)) }
    }

    fn absorb(&self, row: &mut Self::Row, stamp: EventStamp, part: D) {
        row.waiting.insert((stamp, part));
    }

    fn due(row: &Self::Row) -> EventTime {
        let (record, timer) = (row.waiting.due(), row.timers.first().copied());
        timer.map_or(record, |timer| timer.min(record))
    }

    fn advance(&self, key: &K, row: &mut Self::Row, to: EventTime, closed: &mut Vec<Self::Closed>) -> i64 {
        let KeyState { state, timers, waiting } = row;
        let over = to == EventTime::MAX;
        let mut passed = 0;
        loop {
            let next = waiting.first_time().filter(|next| *next < to);
            let timer = timers.first().copied().filter(|timer| *timer <= to && next.is_none_or(|next| *timer <= next));
            if let Some(now) = timer {
                timers.remove(&now);
                // When the stream has ended and no records are left, timers that a timer sets are ignored.
                let accepts_timers = !over || next.is_some();
                (self.on_timer)(&mut StateContext { key, now, timers, accepts_timers, emitted: closed }, state);
            } else if let Some(((now, _), record)) = waiting.pop_passed(to) {
                passed += 1;
                let mut at = StateContext { key, now, timers, accepts_timers: true, emitted: closed };
                (self.on_record)(&mut at, state, record);
            } else {
                return passed;
            }
        }
    }

    fn is_finished(row: &Self::Row) -> bool {
        row.state.is_none() && row.timers.is_empty() && row.waiting.is_empty()
    }

    fn count(row: &Self::Row) -> i64 {
        row.waiting.len() as i64
    }
}

/// The results of a keyed-state step.
pub struct Stateful<'f, K: Record, D, O: Record> {
    made: StepOutputs<'f, (EventTime, O), K, (), D>,
}

impl<K: Record, D, O: Record> fmt::Debug for Stateful<'_, K, D, O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Stateful<{}, {}>", std::any::type_name::<K>(), std::any::type_name::<O>())
    }
}

impl<'f, K: Record, D: Record, O: Record> Stateful<'f, K, D, O> {
    /// Says that the step had another name in earlier versions of the query, whose state it continues: see
    /// [`Stream::was`](super::Stream::was).
    #[must_use]
    pub fn was(self, old: &str) -> Self {
        self.made.record_earlier_name(old);
        self
    }

    /// Says how values of the type `Old`, which earlier versions of the query kept for a key, become values of today: see
    /// [`Aggregated::migrate`](super::Aggregated::migrate). Records that wait are of the same type as before.
    #[must_use]
    pub fn migrate<Old: Record, S: Record>(self, convert: impl Fn(Old) -> S + Send + Sync + 'static) -> Self {
        let earlier = keyed_rows::saved_versions::<K, KeyState<Old, D>>(|_| EventTime::MAX);
        let row = move |(key, version): SavedVersion<K, KeyState<Old, D>>| {
            let row = |KeyState { state, timers, waiting }| KeyState { state: state.map(&convert), timers, waiting };
            (key, version.map(row))
        };
        checkpoint::convert_rows::<_, SavedVersion<K, KeyState<S, D>>>(self.made.flow(), &self.made.name, earlier, row);
        self
    }

    /// Returns the records that the functions have emitted, each with its event time; they are never late downstream.
    pub fn emitted(&self) -> Stream<'f, O> {
        self.made.events(self.made.results.closed.clone(), "Emitted", |emitted| emitted)
    }

    /// Returns the late records: those whose time had been passed when they arrived. They are not passed to the
    /// functions.
    pub fn late(&self) -> Stream<'f, D> {
        self.made.late()
    }
}

impl<'f, K: Record, D: Record> Keyed<'f, K, D> {
    /// Keeps a value for each key, and calls functions of the query's own: `on_record` with each record, in the order
    /// of event time, when the watermark has passed it; `on_timer` at the time of each timer that one of them has
    /// set. Both get the key's value, which is `None` until one of them sets it, and is removed when one of them sets
    /// it to `None`. The records that they emit are a stream. The step's name is unique in the query: state and metrics are
    /// found by it. The value is durable, as are timers and waiting records.
    ///
    /// The functions must have no side effects and depend on their arguments alone: after a crash they are called
    /// again, with the same arguments.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tidegate::source::memory::MemorySource;
    /// use tidegate::testing::{Captured, TestRun};
    ///
    /// # fn main() -> tidegate::Result<()> {
    /// // (door, open?, event time in ms): which doors stay open for longer than a minute?
    /// let doors = vec![("front", true, 0), ("back", true, 10_000), ("back", false, 30_000), ("front", false, 90_000)];
    /// let doors = doors.into_iter().map(|(door, open, at)| (door.to_string(), open, at)).collect();
    /// let source = MemorySource::new(vec![doors], |door: &(String, bool, i64)| door.2);
    /// let alarms = Captured::<(String, i64)>::new();
    /// let output = alarms.clone();
    /// TestRun::new().run(move |flow| {
    ///     let doors = flow.read("doors", &source).key_by(|door| door.0.clone());
    ///     let watched = doors.keyed_state(
    ///         "open doors",
    ///         |at, since: &mut Option<i64>, (_, open, _)| {
    ///             at.clear_timers();
    ///             *since = open.then_some(at.now().millis());
    ///             if open {
    ///                 at.set_timer_in(Duration::from_secs(60));
    ///             }
    ///         },
    ///         |at, since| at.emit((at.key().clone(), since.take().unwrap_or_default())),
    ///     );
    ///     watched.emitted().write("alarms", &output);
    /// })?;
    /// assert_eq!(alarms.all(), [("front".to_string(), 0)]);
    /// # Ok(()) }
    /// ```
    pub fn keyed_state<S: Record, O: Record>(
        self,
        name: &str,
        on_record: impl Fn(&mut StateContext<'_, K, O>, &mut Option<S>, D) + 'static,
        on_timer: impl Fn(&mut StateContext<'_, K, O>, &mut Option<S>) + 'static,
    ) -> Stateful<'f, K, D, O> {
        let build = std::rc::Rc::clone(&self.stream.flow.build);
        let lateness = whole_millis("allowed lateness", self.lateness).unwrap_or_else(|error| {
            build.failure.set(error.at_step(name));
            0
        });
        let lateness = Span::saturating_from_millis(lateness);
        let functions = StateFunctions { on_record, on_timer, types: PhantomData };
        let part = |event: &Event<D>| event.data.clone();
        Stateful { made: keyed_rows::step(self, (name, "state by key"), lateness, functions, part) }
    }

    /// Drops each record that follows another of its key within a time. Emits the first record of a key, and each
    /// that comes `within` or longer after the last one that was emitted.
    pub fn dedup_within(self, name: &str, within: Duration) -> Stream<'f, D> {
        let state = self.keyed_state::<(), D>(
            name,
            move |at, seen, record| {
                if seen.replace(()).is_none() {
                    at.set_timer_in(within);
                    at.emit(record);
                }
            },
            |_, seen| *seen = None,
        );
        state.emitted()
    }

    /// Emits each record for which `first` returns `true`, unless a record of the same key for which `then` returns
    /// `true` follows `within` a time; it is emitted when that time is over. A record for which both return `true`
    /// cancels those before it, and waits itself.
    pub fn not_followed(
        self,
        name: &str,
        first: impl Fn(&D) -> bool + 'static,
        then: impl Fn(&D) -> bool + 'static,
        within: Duration,
    ) -> Stream<'f, D> {
        let span = Span::from(within);
        let state = self.keyed_state::<Vec<(EventTime, D)>, D>(
            name,
            move |at, waiting, record| {
                if then(&record) {
                    *waiting = None;
                    at.clear_timers();
                }
                if first(&record) {
                    let over = at.now().plus(span);
                    waiting.get_or_insert_default().push((over, record));
                    at.set_timer(over);
                }
            },
            |at, waiting| {
                let (now, records) = (at.now(), waiting.take().unwrap_or_default());
                let (over, left): (Vec<_>, Vec<_>) = records.into_iter().partition(|(over, _)| *over <= now);
                over.into_iter().for_each(|(_, record)| at.emit(record));
                *waiting = Some(left).filter(|left| !left.is_empty());
            },
        );
        state.emitted()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_finished<F: KeyedOperator>(_: &F, row: &F::Row) -> bool {
        F::is_finished(row)
    }

    #[test]
    fn a_value_is_absent_until_it_is_set_and_a_key_is_gone_when_it_is_set_to_none() {
        let on_record = |at: &mut StateContext<'_, u8, (u8, Option<i64>)>, sum: &mut Option<i64>, amount: i64| {
            at.emit((*at.key(), *sum));
            *sum = (amount != 0).then(|| sum.unwrap_or(0) + amount);
            if amount < 0 {
                at.set_timer_in(Duration::from_millis(5));
            }
        };
        let on_timer = |_: &mut StateContext<'_, u8, (u8, Option<i64>)>, sum: &mut Option<i64>| *sum = None;
        let functions = StateFunctions { on_record, on_timer, types: PhantomData };
        let stamp = |time: i64| (EventTime::from_millis(time), (0, 0, 0));
        let mut row = functions.begin(stamp(10), 3);
        [(20, 4), (30, 0), (40, 5), (50, -1)].into_iter().for_each(|(time, amount)| {
            functions.absorb(&mut row, stamp(time), amount);
        });
        let (mut emitted, mut finished) = (Vec::new(), Vec::new());
        for to in [11, 21, 31, 41, 51, 56] {
            functions.advance(&7, &mut row, EventTime::from_millis(to), &mut emitted);
            finished.push(is_finished(&functions, &row));
        }
        let seen: Vec<_> = emitted.into_iter().map(|(_, (_, sum))| sum).collect();
        assert_eq!(seen, [None, Some(3), Some(7), None, Some(5)]);
        // At 31 records wait; at the end nothing is left of the key.
        assert_eq!(finished, [false, false, false, false, false, true]);
    }
}
