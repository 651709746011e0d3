//! Session windows: the records of a key that are less than a gap apart.
//!
//! A key has a list of sessions, none of them nearer to another than the gap. A record makes a session of its own,
//! and merges with those that are less than the gap away; so sessions are a function of the records, in any order of
//! arrival. A session ends a gap after its last record, and closes when the watermark has passed that end by the
//! allowed lateness. A record's lateness is decided by its own time, never by the session that it would join: a
//! record that is on time cannot touch a session that has closed.

use serde::{Deserialize, Serialize};

use crate::record::Record;
use crate::stream::aggregate::Aggregate;
use crate::stream::assign::EventStamp;
use crate::stream::counted::Counted;
use crate::stream::interval::Interval;
use crate::stream::keyed_rows::KeyedOperator;
use crate::stream::value_reporter::ValueReporter;
use crate::stream::window_row::WindowRow;
use crate::time::{EventTime, Span};

/// A session of a key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct Session<S> {
    start: EventTime,
    /// The time of its last record plus the gap.
    end: EventTime,
    total: Counted<S>,
}

impl<S> Session<S> {
    /// Converts the accumulator.
    pub(crate) fn map<T>(self, convert: impl FnOnce(S) -> T) -> Session<T> {
        Session { start: self.start, end: self.end, total: self.total.map(convert) }
    }
}

/// Returns the time at which nothing of some sessions is left.
pub(crate) fn end_of_sessions<S>(row: &[Session<S>]) -> EventTime {
    row.last().map_or(EventTime::MIN, |session| session.end)
}

/// Aggregates session windows.
pub(crate) struct SessionWindows<K, D, A> {
    pub(crate) gap: Span,
    pub(crate) reporter: ValueReporter<A>,
    pub(crate) types: std::marker::PhantomData<fn(K, D)>,
}

impl<K, D, A> SessionWindows<K, D, A> {
    fn window<S>(session: &Session<S>) -> Interval {
        Interval { start: session.start, end: session.end }
    }
}

impl<K: Record, D: 'static, A: Aggregate<D>> KeyedOperator for SessionWindows<K, D, A> {
    type Key = K;
    type Part = A::Part;
    type Row = Vec<Session<A::Sum>>;
    type Closed = WindowRow<K, A::Value>;
    type Value = A::Value;

    const EXPIRES: bool = true;

    fn expires_at(row: &Self::Row) -> EventTime {
        end_of_sessions(row)
    }

    fn begin(&self, stamp: EventStamp, part: A::Part) -> Self::Row {
        let total = Counted { count: 1, sum: self.reporter.aggregate.lift(part) };
        vec![Session { start: stamp.0, end: stamp.0.plus(self.gap), total }]
    }

    fn absorb(&self, row: &mut Self::Row, (time, _): EventStamp, part: A::Part) {
        let end = time.plus(self.gap);
        // Sessions are in order, and most records are near the last one.
        let first = row.iter().rposition(|session| session.end <= time).map_or(0, |before| before + 1);
        let near = row[first..].iter().take_while(|session| session.start < end).count();
        if near == 0 {
            let total = Counted { count: 1, sum: self.reporter.aggregate.lift(part) };
            row.insert(first, Session { start: time, end, total });
            return;
        }
        let mut joined = row.drain(first + 1..first + near).collect::<Vec<_>>();
        let session = &mut row[first];
        (session.start, session.end) = (session.start.min(time), session.end.max(end));
        session.total.count += 1;
        self.reporter.aggregate.absorb(&mut session.total.sum, part);
        for other in joined.drain(..) {
            session.end = session.end.max(other.end);
            differential_dataflow::difference::Semigroup::plus_equals(&mut session.total, &other.total);
        }
    }

    fn due(row: &Self::Row) -> EventTime {
        row.first().map_or(EventTime::MAX, |session| session.end)
    }

    fn advance(&self, key: &K, row: &mut Self::Row, to: EventTime, closed: &mut Vec<Self::Closed>) -> i64 {
        let over = row.iter().take_while(|session| session.end <= to).count();
        let mut counted = 0;
        for session in row.drain(..over) {
            counted += session.total.count;
            let window = Self::window(&session);
            let value = self.reporter.value(window, key, &session.total);
            closed.extend(value.map(|value| (window, key.clone(), value)));
        }
        counted
    }

    fn prune(row: &mut Self::Row, closed: EventTime) {
        row.retain(|session| session.end > closed);
    }

    fn is_finished(row: &Self::Row) -> bool {
        row.is_empty()
    }

    fn count(row: &Self::Row) -> i64 {
        row.iter().map(|session| session.total.count).sum()
    }

    fn show(
        &self,
        key: &K,
        row: &Self::Row,
        (after, through): (EventTime, EventTime),
        each: &mut dyn FnMut(WindowRow<K, A::Value>),
    ) {
        for session in row.iter().filter(|session| after < session.end && session.end <= through) {
            let window = Self::window(session);
            if let Some(value) = self.reporter.value(window, key, &session.total) {
                each((window, key.clone(), value));
            }
        }
    }

    fn end_after(&self, row: &Self::Row, time: EventTime) -> Option<EventTime> {
        row.iter().map(|session| session.end).find(|end| *end > time)
    }

    fn window_of(closed: &Self::Closed) -> Option<WindowRow<K, A::Value>> {
        Some(closed.clone())
    }
}
