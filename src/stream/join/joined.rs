//! Steps with two inputs: both streams under one watermark, in one operator, and what comes of them.

use std::fmt;
use std::rc::Rc;
use std::time::Duration;

use timely::dataflow::operators::Concat;

use super::side::JoinSide;
use crate::error::{Error, Result};
use crate::record::{Event, Record};
use crate::stream::assign::{ConsumerFlag, RecordRouter};
use crate::stream::checkpoint;
use crate::stream::keyed_stream::Keyed;
use crate::stream::operator_state::{OperatorStart, OperatorState, Subscriptions};
use crate::stream::panes::whole_millis;
use crate::stream::window_operator;
use crate::stream::{ContainerPool, Stream, watermarks};
use crate::time::{EventTime, Span};

/// The results of a step with two inputs.
pub struct Joined<'f, L, R, O> {
    results: Stream<'f, O>,
    late_left: (ConsumerFlag, Stream<'f, L>),
    late_right: (ConsumerFlag, Stream<'f, R>),
}

impl<L, R, O> fmt::Debug for Joined<'_, L, R, O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [left, right, results] =
            [std::any::type_name::<L>(), std::any::type_name::<R>(), std::any::type_name::<O>()];
        write!(f, "Joined<{left}, {right}, {results}>")
    }
}

impl<'f, L: Record, R: Record, O: Record> Joined<'f, L, R, O> {
    /// Returns the results, each with its event time. They are never late downstream.
    pub fn results(&self) -> Stream<'f, O> {
        self.results.clone()
    }

    /// Returns the late records of the left stream, unchanged: those whose time had been passed when they arrived. They
    /// take no part in the join.
    pub fn late_left(&self) -> Stream<'f, L> {
        self.late_left.0.set(true);
        self.late_left.1.clone()
    }

    /// Returns the late records of the right stream: see [`Joined::late_left`].
    pub fn late_right(&self) -> Stream<'f, R> {
        self.late_right.0.set(true);
        self.late_right.1.clone()
    }
}

/// Two keyed streams that are to be joined in a step of this name.
pub(super) struct JoinInputs<'f, K, L, R> {
    pub(super) name: String,
    pub(super) left: Keyed<'f, K, L>,
    pub(super) right: Keyed<'f, K, R>,
}

impl<'f, K: Record, L: Record, R: Record> JoinInputs<'f, K, L, R> {
    /// Returns a duration as a span of event time; fails the job if it is not a whole number of milliseconds. `what`
    /// names it in the message.
    pub(super) fn span(&self, what: &str, duration: Duration) -> Span {
        let millis: Result<i64> = whole_millis(what, duration).map_err(|_| {
            let written = humantime::format_duration(duration);
            let error = Error::usage(format!("the {what} of a join, {written}, is not a whole number of milliseconds"));
            error.at_step(&self.name)
        });
        let millis = millis.unwrap_or_else(|error| {
            self.left.stream.flow.build.failure.set(error);
            0
        });
        Span::saturating_from_millis(millis)
    }

    /// Returns the allowed lateness of the step: the greater one of both streams.
    pub(super) fn lateness(&self) -> Span {
        self.span("allowed lateness", self.left.lateness.max(self.right.lateness))
    }

    /// Builds the step: each stream's first operator, and one operator behind both. `results` are its closed rows.
    pub(super) fn step<F, O: Record>(
        self,
        detail: &str,
        lateness: Span,
        routers: (impl RecordRouter<L, Routing = F::Place>, impl RecordRouter<R, Routing = F::Place>),
        begin: impl FnOnce(OperatorStart<'_>) -> F + 'static,
    ) -> Joined<'f, L, R, O>
    where
        F: OperatorState<Key = K, Part = JoinSide<L, R>, Closed = (EventTime, O)>,
    {
        let JoinInputs { name, left, right } = self;
        let flow = left.stream.flow.clone();
        let detail = format!("{detail}{}", window_operator::describe_lateness(lateness));
        window_operator::register::<F>(&flow, &name, detail);
        let (left_stream, right_stream) = watermarks::combine_streams(left.stream, right.stream);
        let marks = left_stream.marks.clone();
        let left = Keyed { stream: left_stream, ..left };
        let right = Keyed { stream: right_stream, ..right };
        let (subscriptions, pool) = (Subscriptions::default(), ContainerPool::default());
        let (late_left, late_right) = (Rc::clone(&subscriptions.late), ConsumerFlag::default());
        let of_left = |event: &Event<L>| JoinSide::Left(event.data.clone());
        let of_right = |event: &Event<R>| JoinSide::Right(event.data.clone());
        let (left_records, left_late) =
            window_operator::assigned::<F, L>(left, (&name, lateness), &late_left, routers.0, of_left, pool.clone());
        let (right_records, right_late) =
            window_operator::assigned::<F, R>(right, (&name, lateness), &late_right, routers.1, of_right, pool.clone());
        let right_late =
            Stream { events: right_late, marks: marks.clone(), flow: flow.clone(), pool: ContainerPool::default() };
        let records = left_records.concat(right_records);
        let step = window_operator::operate::<F, L>(
            flow,
            &name,
            (records, left_late, marks),
            (subscriptions, lateness),
            (checkpoint::postcard(), pool),
            begin,
        );
        let results = step.events(step.results.closed.clone(), "Joined", |row| row);
        Joined { results, late_left: (late_left, step.late_unsubscribed()), late_right: (late_right, right_late) }
    }
}

/// Returns a time as that of an event: the end of time is moved, as no window ends after it.
pub(super) fn moment(time: EventTime) -> EventTime {
    time.min(EventTime::from_millis(EventTime::MAX.millis() - 1))
}
