//! Between streams and collections: records that are changes, and changes as records.
//!
//! * [`Stream::changes`] takes records as changes of a collection.
//! * [`Collection::into_stream`] gives the changes of a collection as records. A collection has no event time, so another
//!   stream is the clock: the changes of an epoch happen at that stream's watermark at the epoch.
//!
//! Invariants: the changes of an epoch leave when the epoch is complete, consolidated; so they are a function of the
//! epoch's contents. A change is never late, until the clock's stream has ended.

use differential_dataflow::AsCollection;
use differential_dataflow::consolidation::consolidate;
use timely::container::CapacityContainerBuilder;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::Capability;
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use timely::dataflow::operators::generic::operator::Operator;

use super::{Collection, NotRecoverable};
use crate::record::{Event, Origin, Record};
use crate::stream::epochs::EpochBuffer;
use crate::stream::{ContainerPool, Stream};
use crate::time::watermark::WatermarkUpdate;
use crate::time::{EventTime, Span};

impl<'f, D: Record> Stream<'f, D> {
    /// Returns the collection that the stream's records are changes of: `changes` returns the rows that a record adds (1)
    /// or retracts (-1). The records are trusted: a row that is retracted and was never added is there -1 times.
    ///
    /// No rows are kept for it. So in a job with state it can be written, changed row by row at most; what is computed of
    /// all its rows would lack, after a crash, those that no longer change, and is refused. Read the source as a table for
    /// that: see [`Flow::table`](crate::Flow::table).
    ///
    /// ```
    /// use tidegate::source::memory::MemorySource;
    /// use tidegate::testing::{Captured, TestRun};
    ///
    /// # fn main() -> tidegate::Result<()> {
    /// // (row, how often it is added)
    /// let changes = vec![("a".to_string(), 1), ("b".to_string(), 1), ("a".to_string(), -1)];
    /// let source = MemorySource::new(vec![changes], |_| 0);
    /// let rows = Captured::new();
    /// let output = rows.clone();
    /// TestRun::new().run(move |flow| flow.read("changes", &source).changes(|change| [change]).write("rows", &output))?;
    /// assert_eq!(rows.all(), ["b".to_string()]);
    /// # Ok(()) }
    /// ```
    pub fn changes<D2: Record, I: IntoIterator<Item = (D2, isize)>>(
        self,
        changes: impl Fn(D) -> I + 'static,
    ) -> Collection<'f, D2> {
        let Stream { events, flow, pool, .. } = self;
        let rows = events.unary(Pipeline, "Changes", move |_capability, _info| {
            let mut made = Vec::new();
            move |input, output| {
                input.for_each(|capability, events| {
                    let Some(&epoch) = capability.least() else { return };
                    for event in events.drain(..) {
                        made.extend(changes(event.data).into_iter().map(|(row, diff)| (row, epoch, diff)));
                    }
                    pool.give(std::mem::take(events));
                    output.session(&capability).give_container(&mut made);
                    made.clear();
                });
            }
        });
        Collection::new(rows.as_collection(), flow).not_recoverable(NotRecoverable::Changes)
    }
}

/// The input of an epoch to [`Collection::into_stream`]: changes of the collection, and the clock's watermark.
struct UntimedChanges<D> {
    changes: Vec<(D, isize)>,
    /// The clock's watermark, and how far its stream has come; `None` if neither has changed.
    clock: Option<(EventTime, EventTime)>,
}

impl<D> Default for UntimedChanges<D> {
    fn default() -> Self {
        UntimedChanges { changes: Vec::new(), clock: None }
    }
}

impl<'f, D: Record> Collection<'f, D> {
    /// Returns the changes of the collection as records: a row and how often it is added (if positive) or taken away (if
    /// negative), one record for each row that changes in an epoch.
    ///
    /// A collection has no event time, so the stream `clock` tells it: the changes of an epoch happen at the clock's
    /// watermark at the epoch, at the time that it has reached if it has ended. Until the clock has a watermark changes
    /// wait. They are never late, except those after the end of the clock's stream, which close no more windows. As what
    /// changes in an epoch depends on how the input was divided into epochs, so do these records; a replay from the journal
    /// gives the same.
    ///
    /// ```
    /// use tidegate::source::memory::MemorySource;
    /// use tidegate::testing::{Captured, Script, TestRun};
    /// use tidegate::Window;
    /// use std::time::Duration;
    ///
    /// # fn main() -> tidegate::Result<()> {
    /// // (sensor, state, event time): how often does a sensor change its state, by the minute?
    /// let states = [("s", 'a', 10_000), ("s", 'a', 20_000), ("s", 'b', 30_000), ("s", 'a', 90_000)];
    /// let states = states.map(|(sensor, state, at)| (sensor.to_string(), state, at)).to_vec();
    /// let source = MemorySource::new(vec![states], |state: &(String, char, i64)| state.2);
    /// let script = (0..4).fold(Script::new(), |script, _| script.epoch(|e| e.take(0, 1))).epoch(|e| e.end(0));
    /// let counts = Captured::new();
    /// let output = counts.clone();
    /// TestRun::new().script("states", script).run(move |flow| {
    ///     let states = flow.read("states", &source);
    ///     let now = states.clone().key_by(|state| state.0.clone()).last_by_key_with("now", |state| Some(state.1));
    ///     now.into_stream(&states)
    ///         .filter(|(_, diff)| *diff > 0)
    ///         .key_by(|((sensor, _), _)| sensor.clone())
    ///         .window(Window::tumbling(Duration::from_secs(60)))
    ///         .aggregate("changes", |each| each.count())
    ///         .on_close()
    ///         .map(|row| (row.window.end.millis(), row.key, row.value))
    ///         .write("counts", &output);
    /// })?;
    /// assert_eq!(counts.all(), [(60_000, "s".into(), 2), (120_000, "s".into(), 1)]);
    /// # Ok(()) }
    /// ```
    pub fn into_stream<C: Record>(self, clock: &Stream<'f, C>) -> Stream<'f, (D, isize)> {
        self.check_recoverable();
        let Collection { inner, flow, .. } = self;
        flow.check_exchangeable::<D>("collection that is turned into a stream of", std::any::type_name::<D>());
        let marks = clock.marks.clone().derived(Span::ZERO);
        let mut builder = OperatorBuilder::new(String::from("Changes to events"), flow.scope);
        let mut changes = builder.new_input(inner.consolidate().inner, Pipeline);
        let mut clock = builder.new_input(marks.stream.clone(), Pipeline);
        let (output, events) = builder.new_output();
        let mut output = OutputBuilder::<_, CapacityContainerBuilder<_>>::from(output);
        builder.build(move |capabilities| {
            drop(capabilities);
            let mut pending = EpochBuffer::<(Capability<u64>, UntimedChanges<D>)>::default();
            let mut timed = TimedChanges { watermark: EventTime::MIN, now: EventTime::MIN, waiting: Vec::new() };
            move |frontiers| {
                changes.for_each(|capability, changes| {
                    for (row, epoch, diff) in changes.drain(..) {
                        pending.held_at(epoch, &capability).changes.push((row, diff));
                    }
                });
                clock.for_each(|capability, marks: &mut Vec<WatermarkUpdate>| {
                    let Some(&epoch) = capability.least() else { return };
                    let held = pending.held_at(epoch, &capability);
                    held.clock = marks.iter().map(|mark| (mark.watermark, mark.reached())).max().max(held.clock);
                });
                let mut output = output.activate();
                while let Some((_, (capability, input))) = pending.next_complete(frontiers) {
                    output.session(&capability).give_iterator(timed.complete(input));
                }
            }
        });
        Stream { events, marks, flow, pool: ContainerPool::default() }
    }
}

/// Gives changes their event times, epoch by epoch.
struct TimedChanges<D> {
    /// The clock's watermark at the last epoch.
    watermark: EventTime,
    /// The time that the clock's stream has reached.
    now: EventTime,
    /// Changes from before the clock's first watermark.
    waiting: Vec<(D, isize)>,
}

impl<D: Record> TimedChanges<D> {
    /// Completes an epoch: returns the events of its changes.
    fn complete(&mut self, input: UntimedChanges<D>) -> impl Iterator<Item = Event<(D, isize)>> + use<D> {
        let before = self.watermark;
        if let Some((watermark, reached)) = input.clock {
            (self.watermark, self.now) = (self.watermark.max(watermark), self.now.max(reached));
        }
        let mut changes = input.changes;
        if !self.waiting.is_empty() || self.now == EventTime::MIN {
            changes.append(&mut self.waiting);
            consolidate(&mut changes);
        }
        if self.now == EventTime::MIN {
            self.waiting = std::mem::take(&mut changes);
        }
        let (time, watermark) = (self.now, before);
        changes.into_iter().map(move |data| Event { time, watermark, origin: Origin::default(), data })
    }
}
