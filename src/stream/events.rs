//! [`Stream`], and the steps that change its events one by one.
//!
//! A stream travels as two timely streams: its events and its watermark updates. An epoch's events and its watermark
//! update arrive before the frontier passes the epoch, so an operator that waits for both frontiers has the whole epoch.
//!
//! Invariant: a step of this file leaves the watermark updates as they are, and each event at its event time.

use std::fmt;

use timely::container::CapacityContainerBuilder;
use timely::dataflow::Stream as TimelyStream;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use timely::dataflow::operators::generic::operator::Operator;
use timely::progress::operate::FrontierInterest;

use super::container_pool::ContainerPool;
use super::flow::Flow;
use super::watermark_stream::WatermarkStream;
use crate::record::{Event, Record};
use crate::time::EventTime;

/// Append-only events, each with an event time and its partition's watermark.
pub struct Stream<'f, D> {
    pub(crate) events: TimelyStream<'f, u64, Vec<Event<D>>>,
    pub(crate) marks: WatermarkStream<'f>,
    pub(crate) flow: Flow<'f>,
    /// The pool that the events' containers come from.
    pub(crate) pool: ContainerPool<Event<D>>,
}

impl<D: Record> Clone for Stream<'_, D> {
    fn clone(&self) -> Self {
        Stream {
            events: self.events.clone(),
            marks: self.marks.clone(),
            flow: self.flow.clone(),
            pool: self.pool.clone(),
        }
    }
}

impl<D> fmt::Debug for Stream<'_, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Stream<{}>", std::any::type_name::<D>())
    }
}

impl<'f, D: Record> Stream<'f, D> {
    /// Maps the events container by container; the watermark updates stay the same.
    fn transform<D2: Record>(
        self,
        name: &str,
        mut logic: impl FnMut(&mut Vec<Event<D>>, &mut Vec<Event<D2>>) + 'static,
    ) -> Stream<'f, D2> {
        let Stream { events, marks, flow, pool } = self;
        let events = events.unary(Pipeline, name, move |_capability, _info| {
            let mut made = Vec::new();
            move |input, output| {
                input.for_each(|capability, events| {
                    logic(events, &mut made);
                    pool.give(std::mem::take(events));
                    if !made.is_empty() {
                        let mut session = output.session(&capability);
                        session.give_container(&mut made);
                        made.clear();
                    }
                });
            }
        });
        Stream { events, marks, flow, pool: ContainerPool::default() }
    }

    /// Changes each record.
    pub fn map<D2: Record>(self, change: impl Fn(D) -> D2 + 'static) -> Stream<'f, D2> {
        self.transform("Map", move |events, made| made.extend(events.drain(..).map(|event| event.with(&change))))
    }

    /// Changes each record, knowing when it happened: the event time of a record read from a source, that of the last
    /// millisecond of a window for its result.
    pub fn map_with_time<D2: Record>(self, change: impl Fn(EventTime, D) -> D2 + 'static) -> Stream<'f, D2> {
        self.transform("MapWithTime", move |events, made| {
            made.extend(events.drain(..).map(|event| {
                let time = event.time;
                event.with(|data| change(time, data))
            }));
        })
    }

    /// Keeps the records for which `keep` returns `true`.
    pub fn filter(self, keep: impl Fn(&D) -> bool + 'static) -> Stream<'f, D> {
        self.transform("Filter", move |events, made| {
            events.retain(|event| keep(&event.data));
            std::mem::swap(events, made);
        })
    }

    /// Changes each record into any number of records, all with its event time.
    pub fn flat_map<I: IntoIterator<Item: Record>>(self, change: impl Fn(D) -> I + 'static) -> Stream<'f, I::Item> {
        self.transform("FlatMap", move |events, made| {
            for Event { time, watermark, origin, data } in events.drain(..) {
                made.extend(change(data).into_iter().map(|data| Event { time, watermark, origin, data }));
            }
        })
    }

    /// Changes each record into a record of one of two streams, of both, or of neither; all keep its event time. Nothing
    /// is copied, so this takes a source of several kinds of records apart.
    ///
    /// ```
    /// use tidegate::source::memory::MemorySource;
    /// use tidegate::testing::{Captured, TestRun};
    ///
    /// # fn main() -> tidegate::Result<()> {
    /// let texts = MemorySource::new(vec![vec!["7".to_string(), "eight".to_string(), "9".to_string()]], |_| 0);
    /// let (numbers, words) = (Captured::<u64>::new(), Captured::<String>::new());
    /// let (of_numbers, of_words) = (numbers.clone(), words.clone());
    /// TestRun::new().run(move |flow| {
    ///     let (numbers, words) = flow.read("texts", &texts).split(|text| match text.parse::<u64>() {
    ///         Ok(number) => (Some(number), None),
    ///         Err(_) => (None, Some(text)),
    ///     });
    ///     numbers.write("numbers", &of_numbers);
    ///     words.write("words", &of_words);
    /// })?;
    /// assert_eq!((numbers.all(), words.all()), (vec![7, 9], vec!["eight".to_string()]));
    /// # Ok(()) }
    /// ```
    pub fn split<L: Record, R: Record>(
        self,
        sides: impl Fn(D) -> (Option<L>, Option<R>) + 'static,
    ) -> (Stream<'f, L>, Stream<'f, R>) {
        let Stream { events, marks, flow, pool } = self;
        let mut builder = OperatorBuilder::new(String::from("Split"), flow.scope);
        let mut events = builder.new_input(events, Pipeline);
        builder.set_notify_for(0, FrontierInterest::Never);
        let (left, left_events) = builder.new_output();
        let (right, right_events) = builder.new_output();
        let mut left = OutputBuilder::<_, CapacityContainerBuilder<_>>::from(left);
        let mut right = OutputBuilder::<_, CapacityContainerBuilder<_>>::from(right);
        builder.build(move |capabilities| {
            drop(capabilities);
            move |_frontiers| {
                let (mut left, mut right) = (left.activate(), right.activate());
                events.for_each(|capability, events| {
                    let (mut left, mut right) = (left.session(&capability), right.session(&capability));
                    for Event { time, watermark, origin, data } in events.drain(..) {
                        let (of_left, of_right) = sides(data);
                        if let Some(data) = of_left {
                            left.give(Event { time, watermark, origin, data });
                        }
                        if let Some(data) = of_right {
                            right.give(Event { time, watermark, origin, data });
                        }
                    }
                    pool.give(std::mem::take(events));
                });
            }
        });
        let (pool, left_marks, left_flow) = (ContainerPool::default(), marks.clone(), flow.clone());
        let left = Stream { events: left_events, marks: left_marks, flow: left_flow, pool };
        (left, Stream { events: right_events, marks, flow, pool: ContainerPool::default() })
    }

    /// Calls `look` with each record as it passes, for debugging. After a crash it is called again with records that
    /// are replayed.
    pub fn inspect(self, look: impl Fn(&D) + 'static) -> Stream<'f, D> {
        self.transform("Inspect", move |events, made| {
            events.iter().for_each(|event| look(&event.data));
            std::mem::swap(events, made);
        })
    }
}
