//! Combining of watermark updates, and merging of streams.
//!
//! * [`WatermarkStream::combine`] combines the updates of two streams: see [`CombinedClock`].
//! * [`concat`] merges their events, and [`combine_streams`] leaves them apart for a step with two inputs. The lateness of an event of epoch e is decided by at least the combined
//!   watermark at the epoch before e. For a stream that was never idle this changes nothing. A stream that becomes
//!   active again after it was idle gets that watermark as its activation watermark: windows up to it have closed.
//!   This holds for every kind of stream: partitions, a file, results of windows, streams that are concatenated
//!   themselves.
//!
//! The combined watermark at an epoch is not always known from the updates at that epoch: it may have been reached
//! while a stream was idle that is active again. So snapshots keep it as they keep a source's watermark, under the
//! name of the updates.
//!
//! Invariant: an event that is on time downstream of a `concat` never touches a window that has closed at the
//! combined watermark of the epoch before.

use std::collections::BTreeMap;
use std::rc::Rc;

use timely::container::CapacityContainerBuilder;
use timely::dataflow::Stream as TimelyStream;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::Concat;
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use timely::dataflow::operators::generic::operator::Operator;
use timely::dataflow::operators::{Capability, InputCapability};
use timely::progress::Antichain;
use timely::progress::frontier::MutableAntichain;

use crate::durable::manifest::{COMBINED, SourceState};
use crate::record::{Event, Record};
use crate::stream::durable_context::{DurableContext, SnapshotAck};
use crate::stream::epochs::{self, EpochBuffer};
use crate::stream::watermark_stream::{EventsAndWatermarks, WatermarkStream};
use crate::stream::{Fault, Flow, Stream};
use crate::time::watermark::{Activity, CombinedClock, WatermarkUpdate};
use crate::time::{Epoch, EventTime, Span};

impl<'f> WatermarkStream<'f> {
    /// Derives the updates of a stream whose events belong to no partition of a source, and may happen up to
    /// `lateness` before the watermark.
    pub(crate) fn derived(self, lateness: Span) -> Self {
        let stream = self.stream.unary(Pipeline, "DerivedMarks", move |_capability, _info| {
            move |input, output| {
                input.for_each(|capability, marks| {
                    for mark in marks.iter_mut() {
                        mark.activation_watermarks.clear();
                        mark.watermark = mark.watermark.minus(lateness);
                        if let Activity::Ended(reached) = &mut mark.activity {
                            *reached = reached.minus(lateness);
                        }
                    }
                    output.session(&capability).give_container(marks);
                });
            }
        });
        let name = match lateness.millis() {
            0 => self.name,
            millis => format!("{} - {millis} ms", self.name).into(),
        };
        WatermarkStream { stream, name }
    }

    /// Combines the updates of two streams: at every epoch the combined watermark, and the activation watermarks of
    /// both.
    fn combine(self, other: Self, flow: &Flow<'f>) -> Self {
        let name: Rc<str> = format!("({} and {})", self.name, other.name).into();
        WatermarkStream { stream: combine(self.stream, other.stream, flow, &format!("{COMBINED}{name}")), name }
    }
}

/// Returns the snapshot's epoch and its state of a source, or of streams that were combined, by name.
pub(crate) fn saved<'a>(durable: &'a DurableContext, name: &str) -> Option<(Epoch, &'a SourceState)> {
    let base = durable.base.as_ref()?;
    base.sources.iter().find(|source| source.name == name).map(|source| (base.epoch, source))
}

/// Contributes a stream's watermark at snapshot epochs to the manifests. Worker 0 does so; all workers have the same
/// watermark.
pub(crate) struct SnapshotWatermarks {
    held: Option<Capability<u64>>,
    reported_through: u64,
}

impl SnapshotWatermarks {
    /// Starts after the snapshot that the job resumes from, if there is one. `held` is the capability for
    /// contributions; `None` on workers that contribute nothing.
    pub(crate) fn new(held: Option<Capability<u64>>, from: Option<Epoch>) -> Self {
        SnapshotWatermarks { held, reported_through: from.map_or(0, |epoch| epoch.0) }
    }

    /// Advances to the next snapshot epoch if it is complete and less than `next`, the next epoch to be combined: the
    /// watermark at a snapshot's epoch is reported before a later epoch is combined. Returns the capability to report
    /// under, if this worker reports; `None` if there is no such epoch.
    pub(crate) fn next(
        &mut self,
        seals: &[u64],
        next: Option<u64>,
        frontiers: &[MutableAntichain<u64>],
    ) -> Option<Option<Capability<u64>>> {
        let epoch = seals.first().copied().filter(|epoch| epochs::is_complete(frontiers, *epoch))?;
        if next.is_some_and(|next| next <= epoch) {
            return None;
        }
        self.reported_through = epoch;
        Some(self.held.as_mut().map(|held| {
            let capability = held.delayed(&epoch);
            held.downgrade(&(epoch + 1));
            capability
        }))
    }

    /// Returns the last snapshot epoch that was reported.
    pub(crate) fn reported_through(&self) -> u64 {
        self.reported_through
    }

    /// Drops the capability: no further snapshots follow.
    pub(crate) fn close(&mut self) {
        self.held = None;
    }
}

/// The updates of both streams at an epoch, with the capability to emit under.
type PendingUpdates = (Capability<u64>, [Vec<WatermarkUpdate>; 2]);

fn take(
    waiting: &mut EpochBuffer<PendingUpdates>,
    side: usize,
    capability: &InputCapability<u64>,
    marks: &mut Vec<WatermarkUpdate>,
) {
    let Some(&epoch) = capability.least() else { return };
    waiting.held_at(epoch, capability)[side].append(marks);
}

fn combine<'f>(
    left: TimelyStream<'f, u64, Vec<WatermarkUpdate>>,
    right: TimelyStream<'f, u64, Vec<WatermarkUpdate>>,
    flow: &Flow<'f>,
    name: &str,
) -> TimelyStream<'f, u64, Vec<WatermarkUpdate>> {
    let (durable, seals, name) = (flow.build.durable.clone(), flow.build.snapshot_epochs.clone(), name.to_owned());
    let mut builder = OperatorBuilder::new(String::from("Combined watermark"), flow.scope);
    let mut left = builder.new_input(left, Pipeline);
    let mut right = builder.new_input(right, Pipeline);
    let (output, stream) = builder.new_output();
    let mut output = OutputBuilder::<_, CapacityContainerBuilder<_>>::from(output);
    let mut snapshot_acks = flow.snapshot_output(&mut builder);
    let tells = flow.scope.index() == 0;
    builder.build(move |mut capabilities| {
        let held = capabilities.pop().filter(|_| snapshot_acks.is_some() && tells);
        drop(capabilities);
        let before = durable.as_ref().and_then(|durable| saved(durable, &name));
        let mut combined = CombinedClock::new(before.map_or(EventTime::MIN, |(_, saved)| saved.watermark));
        let mut snapshots = SnapshotWatermarks::new(held, durable.as_ref().and_then(DurableContext::from));
        let mut waiting = EpochBuffer::default();
        move |frontiers| {
            let mut output = output.activate();
            left.for_each(|capability, marks| take(&mut waiting, 0, &capability, marks));
            right.for_each(|capability, marks| take(&mut waiting, 1, &capability, marks));
            loop {
                let next = waiting.first_complete(frontiers);
                if let Some(capability) = snapshots.next(&seals.after(snapshots.reported_through()), next, frontiers) {
                    if let (Some(snapshot_acks), Some(capability)) = (&mut snapshot_acks, capability) {
                        let part = SnapshotAck::Watermark(name.clone(), combined.watermark(), Vec::new());
                        snapshot_acks.activate().session(&capability).give(part);
                    }
                    continue;
                }
                let Some((_, (capability, marks))) = waiting.next_complete(frontiers) else { break };
                if let Some(mark) = combined.complete(marks) {
                    output.session(&capability).give(mark);
                }
            }
            if epochs::has_ended(frontiers) && seals.after(snapshots.reported_through()).is_empty() {
                snapshots.close();
            }
        }
    });
    stream
}

/// Concatenates two streams: see the module.
pub(crate) fn concat<'f, D: Record>(
    flow: &Flow<'f>,
    left: EventsAndWatermarks<'f, D>,
    right: EventsAndWatermarks<'f, D>,
) -> EventsAndWatermarks<'f, D> {
    let ((left, left_marks), (right, right_marks)) = (left, right);
    let marks = left_marks.combine(right_marks, flow);
    let events = raised(flow, left, &marks).concat(raised(flow, right, &marks));
    (events, marks)
}

/// Gives two streams their combined watermark, and their events the lateness that they have when the streams are
/// concatenated. Steps with two inputs begin with it.
pub(crate) fn combine_streams<'f, L: Record, R: Record>(
    left: Stream<'f, L>,
    right: Stream<'f, R>,
) -> (Stream<'f, L>, Stream<'f, R>) {
    let flow = left.flow;
    let marks = left.marks.combine(right.marks, &flow);
    let left_events = raised(&flow, left.events, &marks);
    let right_events = raised(&flow, right.events, &marks);
    let left = Stream { events: left_events, marks: marks.clone(), flow: flow.clone(), pool: left.pool };
    (left, Stream { events: right_events, marks, flow, pool: right.pool })
}

/// Raises the watermarks that decide the lateness of a stream's events to the combined watermark `marks`, at the epoch
/// before.
fn raised<'f, D: Record>(
    flow: &Flow<'f>,
    events: TimelyStream<'f, u64, Vec<Event<D>>>,
    marks: &WatermarkStream<'f>,
) -> TimelyStream<'f, u64, Vec<Event<D>>> {
    let forget = flow.has_fault(Fault::IgnoreActivationWatermark);
    let mut builder = OperatorBuilder::new(String::from("Combined lateness"), flow.scope);
    let mut events = builder.new_input(events, Pipeline);
    let mut activation_watermarks = builder.new_input(marks.stream.clone(), Pipeline);
    // Watermark updates cause no events.
    let (output, stream) = builder.new_output_connection([(0, Antichain::from_elem(0))]);
    let mut output = OutputBuilder::<_, CapacityContainerBuilder<_>>::from(output);
    builder.build(move |capabilities| {
        drop(capabilities);
        let mut known = CombinedWatermarks::default();
        let mut held = EpochBuffer::<(Capability<u64>, Vec<Vec<Event<D>>>)>::default();
        move |frontiers| {
            activation_watermarks.for_each(|capability, marks| {
                let Some(&epoch) = capability.least() else { return };
                marks.drain(..).for_each(|mark| known.add(epoch, mark.watermark));
            });
            events.for_each(|capability, events| {
                let Some(&epoch) = capability.least() else { return };
                held.held_at(epoch, &capability).push(std::mem::take(events));
            });
            let mut output = output.activate();
            // The activation watermark of an epoch's events is known when every epoch before it is complete.
            let is_known = |epoch: u64| epochs::is_complete_before(&frontiers[1..], epoch);
            while let Some((epoch, (capability, containers))) = held.next_if(is_known) {
                let floor = known.of(epoch);
                let mut session = output.session(&capability);
                for mut events in containers {
                    if !forget {
                        events.iter_mut().for_each(|event| raise(event, floor));
                    }
                    session.give_container(&mut events);
                }
            }
            // Events may arrive, and be held, at epochs that the watermark updates have passed.
            let coming = frontiers[0].frontier().first().copied();
            known.forget_before(coming.into_iter().chain(held.first()).min());
        }
    });
    stream
}

impl<'f, D: Record> Stream<'f, D> {
    /// Merges both streams. The watermark is the lesser of the two; whether a record is late is still decided by its
    /// own partition.
    ///
    /// A stream is **idle** when each of its partitions is idle or has ended. An idle stream does not hold the
    /// watermark back, as it would otherwise delay all results of the other stream. When both are idle, the watermark
    /// is the greater of the two. A stream that becomes active again gets the watermark of the epoch before as its
    /// activation watermark: its records are late for windows that have closed meanwhile. `--idle-timeout` sets the
    /// time without records after which a partition is idle, for all sources;
    /// `kafka::Source::idle_after` or
    /// [`FileSource::idle_after`](crate::source::file::FileSource::idle_after) set it for one.
    #[must_use]
    pub fn concat(self, other: Stream<'f, D>) -> Stream<'f, D> {
        let (events, marks) = concat(&self.flow, (self.events, self.marks), (other.events, other.marks));
        Stream { events, marks, flow: self.flow, pool: self.pool }
    }
}

/// The combined watermarks of epochs that may still get events.
#[derive(Default)]
struct CombinedWatermarks(BTreeMap<u64, EventTime>);

impl CombinedWatermarks {
    fn add(&mut self, epoch: u64, watermark: EventTime) {
        let known = self.0.entry(epoch).or_insert(watermark);
        *known = watermark.max(*known);
    }

    /// Returns the watermark at the last epoch before this one.
    fn of(&self, epoch: u64) -> EventTime {
        self.0.range(..epoch).next_back().map_or(EventTime::MIN, |(_, watermark)| *watermark)
    }

    /// Removes the watermarks that no event of `first` or a later epoch needs; all of them if no events follow.
    fn forget_before(&mut self, first: Option<u64>) {
        let Some(first) = first else { return self.0.clear() };
        if let Some((&last, _)) = self.0.range(..first).next_back() {
            self.0 = self.0.split_off(&last);
        }
    }
}

/// Raises the watermark that decides an event's lateness to an activation watermark.
#[inline]
fn raise<D>(event: &mut Event<D>, floor: EventTime) {
    if event.watermark < floor {
        event.origin.raised |= event.time >= event.watermark;
        event.watermark = floor;
    }
}
