//! Types of windows: a step is compiled for the type of its windows alone.
//!
//! Windows that lie side by side, windows that overlap, sessions and count windows each need an operator of their own,
//! with rows of their own. A [`Window`](crate::Window) carries its type, so that a query instantiates what it uses; a
//! window that is chosen while the program runs is of the type [`AnyType`], whose steps are compiled for all of them.

use std::fmt;
use std::marker::PhantomData;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use crate::record::{Event, Record};
use crate::stream::aggregate::{Aggregate, describe_filters};
use crate::stream::arrange::{PaneState, Saved};
use crate::stream::assign::PaneRouter;
use crate::stream::checkpoint::{self, CodecCell};
use crate::stream::count::CountWindows;
use crate::stream::keyed_rows::{self, KeyedOperator};
use crate::stream::keyed_stream::Keyed;
use crate::stream::operator_state::{OperatorStart, Subscriptions};
use crate::stream::panes::{CalendarUnit, Pane, PaneRange, WindowAssigner};
use crate::stream::session::SessionWindows;
use crate::stream::value_reporter::ValueReporter;
use crate::stream::window_operator::{self, StepOutputs};
use crate::stream::window_row::WindowRow;
use crate::time::{EventTime, Span};

/// The rule of a window, with its lengths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WindowKind {
    Tumbling { size: Duration },
    Sliding { size: Duration, slide: Duration },
    Cumulative { size: Duration, step: Duration },
    Calendar { unit: CalendarUnit, zone: &'static str },
    Session { gap: Duration },
    Count { size: u64 },
    Global,
}

/// What a windowed step is built from, apart from its stream.
pub(crate) struct WindowedStep<'a, K: Record, D, A: Aggregate<D>> {
    pub(crate) name: &'a str,
    pub(crate) kind: WindowKind,
    pub(crate) windows: WindowAssigner,
    pub(crate) lateness: Span,
    pub(crate) aggregate: Rc<A>,
    pub(crate) codecs: Codecs<K, A::Sum>,
    pub(crate) records: PhantomData<D>,
}

/// The codecs of rows by either type of pane; one of the two is used.
#[derive(Clone)]
pub(crate) struct Codecs<K: Record, S: Record> {
    #[cfg(feature = "abomonation")]
    pub(crate) by_window: CodecCell<Saved<EventTime, K, S>>,
    #[cfg(feature = "abomonation")]
    pub(crate) by_range: CodecCell<Saved<PaneRange, K, S>>,
    rows: PhantomData<(K, S)>,
}

impl<K: Record, S: Record> Codecs<K, S> {
    /// The codec postcard for both.
    pub(crate) fn postcard() -> Self {
        Codecs {
            #[cfg(feature = "abomonation")]
            by_window: checkpoint::postcard(),
            #[cfg(feature = "abomonation")]
            by_range: checkpoint::postcard(),
            rows: PhantomData,
        }
    }

    #[cfg(feature = "abomonation")]
    fn of_windows(&self) -> CodecCell<Saved<EventTime, K, S>> {
        Rc::clone(&self.by_window)
    }

    #[cfg(feature = "abomonation")]
    fn of_ranges(&self) -> CodecCell<Saved<PaneRange, K, S>> {
        Rc::clone(&self.by_range)
    }

    #[cfg(not(feature = "abomonation"))]
    #[expect(clippy::unused_self, reason = "there is only one codec")]
    fn of_windows(&self) -> CodecCell<Saved<EventTime, K, S>> {
        checkpoint::postcard()
    }

    #[cfg(not(feature = "abomonation"))]
    #[expect(clippy::unused_self, reason = "there is only one codec")]
    fn of_ranges(&self) -> CodecCell<Saved<PaneRange, K, S>> {
        checkpoint::postcard()
    }
}

/// The outputs of a windowed step.
pub(crate) type WindowedOutputs<'f, K, D, V> = StepOutputs<'f, WindowRow<K, V>, K, V, D>;

/// Builds the step of a type of windows.
pub(crate) trait BuildStep: Copy + fmt::Debug + PartialEq + 'static {
    /// Builds the operators of a step.
    fn build<'f, K: Record, D: Record, A: Aggregate<D>>(
        keyed: Keyed<'f, K, D>,
        step: WindowedStep<'_, K, D, A>,
    ) -> WindowedOutputs<'f, K, D, A::Value>;
}

/// A type of windows. A step is compiled for it.
#[diagnostic::on_unimplemented(message = "`{Self}` is not a type of windows")]
#[expect(private_bounds, reason = "the types of windows are those of this library")]
pub trait WindowType: BuildStep {}

impl<W: BuildStep> WindowType for W {}

/// A type of windows that are fixed on the line of event time, whatever the records: [`Disjoint`] and [`Overlapping`].
#[diagnostic::on_unimplemented(
    message = "windows of the type `{Self}` are not fixed in event time",
    note = "sessions and count windows depend on the records; tumbling, sliding and cumulative windows, days and months do not"
)]
pub trait FixedWindows: WindowType {}

impl FixedWindows for Disjoint {}

impl FixedWindows for Overlapping {}

/// Windows that do not overlap: tumbling windows, days, months, the window of all time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Disjoint;

/// Windows that overlap: sliding and cumulative ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overlapping;

/// Sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sessions;

/// Count windows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts;

/// Windows of any type, chosen while the program runs. A step of them is compiled for all types, which takes four times
/// as long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AnyType;

impl BuildStep for Disjoint {
    fn build<'f, K: Record, D: Record, A: Aggregate<D>>(
        keyed: Keyed<'f, K, D>,
        step: WindowedStep<'_, K, D, A>,
    ) -> WindowedOutputs<'f, K, D, A::Value> {
        let codec = step.codecs.of_windows();
        build_by_pane::<EventTime, _, _, _>(keyed, step, codec)
    }
}

impl BuildStep for Overlapping {
    fn build<'f, K: Record, D: Record, A: Aggregate<D>>(
        keyed: Keyed<'f, K, D>,
        step: WindowedStep<'_, K, D, A>,
    ) -> WindowedOutputs<'f, K, D, A::Value> {
        let codec = step.codecs.of_ranges();
        build_by_pane::<PaneRange, _, _, _>(keyed, step, codec)
    }
}

impl BuildStep for Sessions {
    fn build<'f, K: Record, D: Record, A: Aggregate<D>>(
        keyed: Keyed<'f, K, D>,
        step: WindowedStep<'_, K, D, A>,
    ) -> WindowedOutputs<'f, K, D, A::Value> {
        let gap = match step.kind {
            WindowKind::Session { gap } => Span::from(gap),
            _ => Span::ZERO,
        };
        let detail = format!("sessions {} ms apart", gap.millis());
        build_by_time(keyed, step, &detail, |reporter| SessionWindows { gap, reporter, types: PhantomData })
    }
}

impl BuildStep for Counts {
    fn build<'f, K: Record, D: Record, A: Aggregate<D>>(
        keyed: Keyed<'f, K, D>,
        step: WindowedStep<'_, K, D, A>,
    ) -> WindowedOutputs<'f, K, D, A::Value> {
        let size = match step.kind {
            WindowKind::Count { size } => i64::try_from(size).unwrap_or(i64::MAX),
            _ => i64::MAX,
        };
        let detail = format!("windows of {size} records");
        build_by_time(keyed, step, &detail, |reporter| CountWindows { size, reporter, types: PhantomData })
    }
}

impl BuildStep for AnyType {
    fn build<'f, K: Record, D: Record, A: Aggregate<D>>(
        keyed: Keyed<'f, K, D>,
        step: WindowedStep<'_, K, D, A>,
    ) -> WindowedOutputs<'f, K, D, A::Value> {
        match step.kind {
            WindowKind::Tumbling { .. } | WindowKind::Calendar { .. } | WindowKind::Global => {
                Disjoint::build(keyed, step)
            }
            WindowKind::Sliding { .. } | WindowKind::Cumulative { .. } => Overlapping::build(keyed, step),
            WindowKind::Session { .. } => Sessions::build(keyed, step),
            WindowKind::Count { .. } => Counts::build(keyed, step),
        }
    }
}

/// Builds an aggregate whose records are routed to panes of one type.
fn build_by_pane<'f, T: Pane, K: Record, D: Record, A: Aggregate<D>>(
    keyed: Keyed<'f, K, D>,
    step: WindowedStep<'_, K, D, A>,
    codec: CodecCell<Saved<T, K, A::Sum>>,
) -> WindowedOutputs<'f, K, D, A::Value> {
    let WindowedStep { name, windows, lateness, aggregate, .. } = step;
    let of_some = describe_filters(aggregate.filters());
    let build = Rc::clone(&keyed.stream.flow.build);
    let (subscriptions, part) = (Subscriptions::default(), Rc::clone(&aggregate));
    let (metrics, fault) = (build.metrics.step(name), build.fault);
    let reporter = ValueReporter { name: name.to_owned(), aggregate, failure: Arc::clone(&build.failure) };
    let (of_windows, of_step) = (windows.clone(), subscriptions.clone());
    let begin = move |start: OperatorStart<'_>| {
        PaneState::<T, K, D, A>::begin(start, of_windows, reporter, of_step, lateness, metrics, fault)
    };
    let detail = format!("{windows:?}{}{of_some}", window_operator::describe_lateness(lateness));
    let router = PaneRouter::<T>::new(windows, lateness);
    window_operator::step(
        keyed,
        (name, detail),
        (subscriptions, lateness),
        codec,
        router,
        move |event: &Event<D>| part.part(event),
        begin,
    )
}

/// Builds an aggregate whose windows are determined by the records' own times.
fn build_by_time<'f, K, D, A, B>(
    keyed: Keyed<'f, K, D>,
    step: WindowedStep<'_, K, D, A>,
    detail: &str,
    operator: impl FnOnce(ValueReporter<A>) -> B,
) -> WindowedOutputs<'f, K, D, A::Value>
where
    K: Record,
    D: Record,
    A: Aggregate<D>,
    B: KeyedOperator<Key = K, Part = A::Part, Closed = WindowRow<K, A::Value>, Value = A::Value>,
{
    let WindowedStep { name, lateness, aggregate, .. } = step;
    let detail = format!("{detail}{}", describe_filters(aggregate.filters()));
    let (failure, part) = (Arc::clone(&keyed.stream.flow.build.failure), Rc::clone(&aggregate));
    let operator = operator(ValueReporter { name: name.to_owned(), aggregate, failure });
    keyed_rows::step(keyed, (name, &detail), lateness, operator, move |event: &Event<D>| part.part(event))
}
