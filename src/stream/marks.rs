//! Watermarks of streams: as they travel through the flow, and as those of two streams become those of one.
//!
//! * [`Marks`]: the marks of a stream, with a name that says whose they are. Streams that have the same name have the same
//!   marks, epoch by epoch.
//! * [`Marks::combine`] makes the marks of two streams as one: see [`Combined`].
//! * [`concat`] makes their events those of one stream. An event of epoch e is judged by at least the combined watermark at
//!   the epoch before e. For a stream that never was idle that changes nothing. One that was idle wakes with that
//!   watermark as its floor: windows up to there have closed. This holds for whatever the stream is: partitions, a file,
//!   results of windows, two streams as one.
//!
//! The combined watermark at an epoch is not always known from the marks at that epoch: it may be where it came while a
//! stream was idle that is awake again. So it is part of snapshots, as a source is, under the marks' name.
//!
//! Invariant: an event that is on time behind a `concat` never touches what has closed at the combined watermark of the
//! epoch before.

use std::collections::BTreeMap;
use std::rc::Rc;

use timely::container::CapacityContainerBuilder;
use timely::dataflow::Stream as TimelyStream;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use timely::dataflow::operators::generic::operator::{Operator, empty};
use timely::dataflow::operators::{Capability, InputCapability};
use timely::progress::Antichain;
use timely::progress::frontier::MutableAntichain;

use crate::durable::manifest::{COMBINED, SourceState};
use crate::record::{Event, Record};
use crate::stream::cut::{Durable, Part};
use crate::stream::{Fault, Flow};
use crate::time::watermark::{Activity, Combined, Mark};
use crate::time::{Epoch, EventTime, Span};

/// The marks of a stream.
#[derive(Clone)]
pub(crate) struct Marks<'f> {
    pub(crate) stream: TimelyStream<'f, u64, Vec<Mark>>,
    /// A name of the stream or streams whose they are.
    name: Rc<str>,
}

impl<'f> Marks<'f> {
    /// The marks of a source.
    pub(crate) fn of_source(stream: TimelyStream<'f, u64, Vec<Mark>>, name: &str) -> Self {
        Marks { stream, name: format!("`{name}`").into() }
    }

    /// The marks of a stream that has none.
    pub(crate) fn none(flow: &Flow<'f>) -> Self {
        Marks { stream: empty(flow.scope), name: "nothing".into() }
    }

    /// Marks for a stream whose events have no partitions of a source, of which some are still to come from so far back.
    pub(crate) fn derived(self, lateness: Span) -> Self {
        let stream = self.stream.unary(Pipeline, "DerivedMarks", move |_capability, _info| {
            move |input, output| {
                input.for_each(|capability, marks| {
                    for mark in marks.iter_mut() {
                        mark.floors.clear();
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
        Marks { stream, name }
    }

    /// The marks of this stream and another as one: at every epoch the combined watermark, and the floors of both.
    fn combine(self, other: Self, flow: &Flow<'f>) -> Self {
        let name: Rc<str> = format!("({} and {})", self.name, other.name).into();
        Marks { stream: combine(self.stream, other.stream, flow, &format!("{COMBINED}{name}")), name }
    }
}

/// The state that a snapshot has under a name, of a source or of streams that were combined.
pub(crate) fn saved<'a>(durable: &'a Durable, name: &str) -> Option<(Epoch, &'a SourceState)> {
    let base = durable.base.as_ref()?;
    base.sources.iter().find(|source| source.name == name).map(|source| (base.epoch, source))
}

/// Tells where a stream is at the epochs of snapshots. Worker 0 tells it, as all workers know the same.
pub(crate) struct AtSnapshots {
    held: Option<Capability<u64>>,
    told_through: u64,
}

impl AtSnapshots {
    /// Begins behind a snapshot, if there is one, with the capability of the parts on the worker that tells.
    pub(crate) fn new(held: Option<Capability<u64>>, from: Option<Epoch>) -> Self {
        AtSnapshots { held, told_through: from.map_or(0, |epoch| epoch.0) }
    }

    /// The next snapshot's epoch, if it is complete and comes before `next`, the next epoch that is to be put together: what
    /// holds at a snapshot's epoch is told before a later one is put together. With the capability to tell it under.
    pub(crate) fn next(
        &mut self,
        seals: &[u64],
        next: Option<u64>,
        incomplete: impl Fn(u64) -> bool,
    ) -> Option<Option<Capability<u64>>> {
        let epoch = seals.first().copied().filter(|epoch| !incomplete(*epoch))?;
        if next.is_some_and(|next| next <= epoch) {
            return None;
        }
        self.told_through = epoch;
        Some(self.held.as_mut().map(|held| {
            let capability = held.delayed(&epoch);
            held.downgrade(&(epoch + 1));
            capability
        }))
    }

    /// The last epoch that was told.
    pub(crate) fn told_through(&self) -> u64 {
        self.told_through
    }

    /// Drops the capability: no further snapshots follow.
    pub(crate) fn close(&mut self) {
        self.held = None;
    }
}

/// The marks of both streams at an epoch, with the capability to answer under.
struct Said {
    capability: Capability<u64>,
    marks: [Vec<Mark>; 2],
}

fn take(waiting: &mut BTreeMap<u64, Said>, side: usize, capability: &InputCapability<u64>, marks: &mut Vec<Mark>) {
    let Some(&epoch) = capability.least() else { return };
    let said = waiting
        .entry(epoch)
        .or_insert_with(|| Said { capability: capability.delayed(&epoch, 0), marks: [vec![], vec![]] });
    said.marks[side].append(marks);
}

fn combine<'f>(
    left: TimelyStream<'f, u64, Vec<Mark>>,
    right: TimelyStream<'f, u64, Vec<Mark>>,
    flow: &Flow<'f>,
    name: &str,
) -> TimelyStream<'f, u64, Vec<Mark>> {
    let (durable, seals, name) = (flow.build.durable.clone(), flow.build.seals.clone(), name.to_owned());
    let mut builder = OperatorBuilder::new(String::from("Combined watermark"), flow.scope);
    let mut left = builder.new_input(left, Pipeline);
    let mut right = builder.new_input(right, Pipeline);
    let (output, stream) = builder.new_output();
    let mut output = OutputBuilder::<_, CapacityContainerBuilder<_>>::from(output);
    let mut parts = durable.is_some().then(|| {
        let (parts, stream) = builder.new_output();
        flow.parts.borrow_mut().push(stream);
        OutputBuilder::<_, CapacityContainerBuilder<Vec<Part>>>::from(parts)
    });
    let tells = flow.scope.index() == 0;
    builder.build(move |mut capabilities| {
        let held = capabilities.pop().filter(|_| parts.is_some() && tells);
        drop(capabilities);
        let before = durable.as_ref().and_then(|durable| saved(durable, &name));
        let mut combined = Combined::new(before.map_or(EventTime::MIN, |(_, saved)| saved.watermark));
        let mut snapshots = AtSnapshots::new(held, durable.as_ref().and_then(Durable::from));
        let mut waiting = BTreeMap::new();
        move |frontiers| {
            let mut output = output.activate();
            left.for_each(|capability, marks| take(&mut waiting, 0, &capability, marks));
            right.for_each(|capability, marks| take(&mut waiting, 1, &capability, marks));
            let incomplete = |epoch: u64| frontiers.iter().any(|frontier| frontier.less_equal(&epoch));
            loop {
                let next = waiting.first_key_value().map(|(epoch, _)| *epoch).filter(|epoch| !incomplete(*epoch));
                if let Some(capability) = snapshots.next(&seals.after(snapshots.told_through()), next, incomplete) {
                    if let (Some(parts), Some(capability)) = (&mut parts, capability) {
                        let part = Part::Mark(name.clone(), combined.watermark(), Vec::new());
                        parts.activate().session(&capability).give(part);
                    }
                    continue;
                }
                let Some(Said { capability, marks }) = next.and_then(|next| waiting.remove(&next)) else { break };
                if let Some(mark) = combined.complete(marks) {
                    output.session(&capability).give(mark);
                }
            }
            if frontiers.iter().all(MutableAntichain::is_empty) && seals.after(snapshots.told_through()).is_empty() {
                snapshots.close();
            }
        }
    });
    stream
}

/// The events of a stream, and their marks.
pub(crate) type Parts<'f, D> = (TimelyStream<'f, u64, Vec<Event<D>>>, Marks<'f>);

/// Two streams as one: see the module.
pub(crate) fn concat<'f, D: Record>(flow: &Flow<'f>, left: Parts<'f, D>, right: Parts<'f, D>) -> Parts<'f, D> {
    let ((left, left_marks), (right, right_marks)) = (left, right);
    let marks = left_marks.combine(right_marks, flow);
    let forget = flow.fault(Fault::ForgetFloor);
    let mut builder = OperatorBuilder::new(String::from("Concat"), flow.scope);
    let mut left = builder.new_input(left, Pipeline);
    let mut right = builder.new_input(right, Pipeline);
    let mut floors = builder.new_input(marks.stream.clone(), Pipeline);
    // Marks make no events.
    let same = || Antichain::from_elem(0);
    let (events, stream) = builder.new_output_connection([(0, same()), (1, same())]);
    let mut events = OutputBuilder::<_, CapacityContainerBuilder<_>>::from(events);
    builder.build(move |capabilities| {
        drop(capabilities);
        let mut known = Floors::default();
        let mut held = BTreeMap::<u64, (Capability<u64>, Vec<Vec<Event<D>>>)>::new();
        move |frontiers| {
            floors.for_each(|capability, marks| {
                let Some(&epoch) = capability.least() else { return };
                marks.drain(..).for_each(|mark| known.add(epoch, mark.watermark));
            });
            for input in [&mut left, &mut right] {
                input.for_each(|capability, events| {
                    let Some(&epoch) = capability.least() else { return };
                    let entry = held.entry(epoch).or_insert_with(|| (capability.delayed(&epoch, 0), Vec::new()));
                    entry.1.push(std::mem::take(events));
                });
            }
            let mut output = events.activate();
            // The floor of an epoch's events is known when every epoch before it is complete.
            while let Some(entry) = held.first_entry().filter(|entry| !frontiers[2].less_than(entry.key())) {
                let (epoch, (capability, containers)) = entry.remove_entry();
                let floor = known.of(epoch);
                let mut session = output.session(&capability);
                for mut events in containers {
                    if !forget {
                        events.iter_mut().for_each(|event| raise(event, floor));
                    }
                    session.give_container(&mut events);
                }
            }
            // Events may come, and be held, of epochs that marks are past.
            let coming = frontiers[..2].iter().filter_map(|frontier| frontier.frontier().first().copied());
            known.forget_before(coming.chain(held.keys().next().copied()).min());
        }
    });
    (stream, marks)
}

/// The combined watermarks of epochs of which events may still come.
#[derive(Default)]
struct Floors(BTreeMap<u64, EventTime>);

impl Floors {
    fn add(&mut self, epoch: u64, watermark: EventTime) {
        let known = self.0.entry(epoch).or_insert(watermark);
        *known = watermark.max(*known);
    }

    /// The watermark at the last epoch before this one.
    fn of(&self, epoch: u64) -> EventTime {
        self.0.range(..epoch).next_back().map_or(EventTime::MIN, |(_, watermark)| *watermark)
    }

    /// Forgets what no event of `first` or a later epoch is judged by; all of it if none comes.
    fn forget_before(&mut self, first: Option<u64>) {
        let Some(first) = first else { return self.0.clear() };
        if let Some((&last, _)) = self.0.range(..first).next_back() {
            self.0 = self.0.split_off(&last);
        }
    }
}

/// Raises what an event is judged by to a floor.
#[inline]
fn raise<D>(event: &mut Event<D>, floor: EventTime) {
    if event.mark < floor {
        event.origin.raised |= event.time >= event.mark;
        event.mark = floor;
    }
}
