//! How a source's records come into the dataflow: capabilities, epochs, and the stream's watermark.
//!
//! A [`Driver`] holds a source's reader and three timely inputs: events, marks and rejects. For every epoch that is not
//! released it holds a capability of each. The worker's loop begins epochs, polls, collects what is bound, and releases
//! an epoch when its frame is synced.
//!
//! Invariant: a capability for an epoch lives until everything of the epoch has been sent, its marks too, and its frame
//! is on record. So a frontier past an epoch means that the epoch is whole, and durable on every process.

use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;

use timely::container::CapacityContainerBuilder;
use timely::dataflow::Stream as TimelyStream;
use timely::dataflow::channels::pact::Exchange;
use timely::dataflow::operators::ActivateCapability;
use timely::dataflow::operators::core::{UnorderedHandle, UnorderedInput};
use timely::dataflow::operators::generic::operator::Operator;

use crate::durable::journal::Bound;
use crate::error::Result;
use crate::metrics::SourceMetrics;
use crate::record::{Event, Record};
use crate::source::{Binding, Intake, Polled, Reader, Rejected, Source};
use crate::stream::{Fault, Flow, Pool, Stream, View};
use crate::time::watermark::{Mark, StreamClock, WorkerMark};
use crate::time::{Epoch, EventTime};

/// A source as the worker's loop drives it.
pub(crate) trait Driver {
    /// Begins an epoch: what is read from now on belongs to it.
    fn begin(&mut self, epoch: Epoch);

    /// Reads what there is, about `budget` records at most; tells how many bytes were taken and whether there may be
    /// more.
    fn poll(&mut self, budget: usize) -> Result<Taken>;

    /// Sends what was read before and held back, without reading anything new; tells how many bytes that is.
    fn deliver(&mut self) -> Result<usize>;

    /// Reads what a journal's epoch took; answers whether all of it has been read.
    fn replay(&mut self, bounds: &[Bound]) -> Result<bool>;

    /// What was bound to an epoch that is over; `None` while that is not known yet.
    fn bind(&mut self, epoch: Epoch) -> Result<Option<Vec<Bound>>>;

    /// Lets go of an epoch that is bound and on record, and of all before it.
    fn release(&mut self, epoch: Epoch);

    /// Lets go of everything: no epoch comes after this.
    fn close(&mut self);

    /// Whether the stream is over: its watermark is past all events.
    fn finished(&self) -> bool;

    /// Says that all sinks have shown everything through this epoch.
    fn shown(&mut self, epoch: Epoch);
}

/// What a poll took.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Taken {
    /// An estimate of the memory that the records hold.
    pub(crate) bytes: usize,
    /// Whether there may be more to read at once.
    pub(crate) busy: bool,
    /// Whether this worker will never read anything more of the source.
    pub(crate) exhausted: bool,
}

/// A worker's mark on its way: to which worker, from which worker.
type MarkMessage = (u64, usize, WorkerMark);

struct Capabilities {
    events: ActivateCapability<u64>,
    marks: ActivateCapability<u64>,
    rejects: ActivateCapability<u64>,
}

impl Capabilities {
    fn delayed(&self, epoch: u64) -> Self {
        Capabilities {
            events: self.events.delayed(&epoch),
            marks: self.marks.delayed(&epoch),
            rejects: self.rejects.delayed(&epoch),
        }
    }
}

type Handle<D> = UnorderedHandle<u64, CapacityContainerBuilder<Vec<D>>>;

struct SourceDriver<D: Record> {
    reader: Box<dyn Reader<D>>,
    intake: Intake<D>,
    events: Handle<Event<D>>,
    marks: Handle<MarkMessage>,
    rejects: Handle<Event<Rejected>>,
    /// Epochs that are not released, oldest first; the last one is current.
    open: VecDeque<(Epoch, Capabilities)>,
    /// What this worker last said of its partitions; only news is sent.
    said: Option<WorkerMark>,
    worker: usize,
    peers: usize,
    view: View,
    metrics: Arc<SourceMetrics>,
    pool: Pool<Event<D>>,
    fault: Option<Fault>,
}

impl<D: Record> SourceDriver<D> {
    fn current(&self) -> Epoch {
        self.open.back().map_or(Epoch(0), |open| open.0)
    }

    /// Sends what the intake has taken, at an epoch that is still open.
    fn send(&mut self, epoch: Epoch) -> usize {
        let Some((_, capabilities)) = self.open.iter().find(|open| open.0 == epoch) else {
            unreachable!("records are read for epochs that are open");
        };
        let (bytes, events, rejects) = self.intake.hand_over();
        if self.fault == Some(Fault::LoseRecord) {
            events.pop();
        }
        if self.fault == Some(Fault::ForgetOffsets) {
            events.iter_mut().for_each(|event| event.origin.offset = 0);
        }
        if !events.is_empty() {
            let mut output = self.events.activate();
            output.session_with_builder(&capabilities.events).give_container(events);
            *events = self.pool.take();
        }
        if !rejects.is_empty() {
            let mut output = self.rejects.activate();
            output.session_with_builder(&capabilities.rejects).give_container(rejects);
            rejects.clear();
        }
        bytes
    }
}

impl<D: Record> Driver for SourceDriver<D> {
    fn begin(&mut self, epoch: Epoch) {
        let Some((last, capabilities)) = self.open.back() else { unreachable!("a closed source begins nothing") };
        assert!(epoch > *last, "epoch {epoch} does not come after {last}");
        let new = capabilities.delayed(epoch.0);
        if *last == Epoch(0) {
            self.open.clear(); // The capability that every operator starts with: no epoch of ours.
        }
        self.open.push_back((epoch, new));
        self.intake.begin(epoch);
    }

    fn poll(&mut self, budget: usize) -> Result<Taken> {
        let Polled { epoch, busy } = self.reader.poll(self.current(), budget, &mut self.intake)?;
        let bytes = self.send(epoch);
        Ok(Taken { bytes, busy, exhausted: self.reader.exhausted(&self.intake) })
    }

    fn deliver(&mut self) -> Result<usize> {
        let epoch = self.reader.deliver(&mut self.intake)?;
        Ok(epoch.map_or(0, |epoch| self.send(epoch)))
    }

    fn replay(&mut self, bounds: &[Bound]) -> Result<bool> {
        let epoch = self.current();
        let mine: Vec<_> = bounds.iter().filter(|bound| bound.source == self.intake.name()).cloned().collect();
        let reached = self.reader.replay(epoch, &mine, &mut self.intake)?;
        self.send(epoch);
        Ok(reached)
    }

    fn bind(&mut self, epoch: Epoch) -> Result<Option<Vec<Bound>>> {
        let Some(Binding { bounds, mark }) = self.reader.bind(epoch, &mut self.intake)? else { return Ok(None) };
        self.send(epoch);
        if self.said.as_ref() != Some(&mark) || !mark.woken.is_empty() {
            let Some((_, capabilities)) = self.open.iter().find(|open| open.0 == epoch) else {
                unreachable!("an epoch is bound before it is released");
            };
            let mut output = self.marks.activate();
            let mut session = output.session_with_builder(&capabilities.marks);
            let worker = self.worker;
            session.give_iterator((0..self.peers as u64).map(|to| (to, worker, mark.clone())));
            self.said = Some(WorkerMark { woken: Vec::new(), ..mark });
        }
        Ok(Some(bounds))
    }

    fn release(&mut self, epoch: Epoch) {
        while self.open.len() > 1 && self.open.front().is_some_and(|open| open.0 <= epoch) {
            self.open.pop_front();
        }
    }

    fn close(&mut self) {
        self.open.clear();
    }

    fn finished(&self) -> bool {
        self.view.watermark() == EventTime::MAX
    }

    fn shown(&mut self, epoch: Epoch) {
        self.reader.shown(epoch);
    }
}

impl<D: Record> Drop for SourceDriver<D> {
    fn drop(&mut self) {
        self.metrics.watermark.set(self.view.watermark());
    }
}

/// Reads a source: its stream, and the stream of what it rejects.
pub(crate) fn read<'f, S: Source>(
    flow: &Flow<'f>,
    name: &str,
    source: &S,
) -> (Stream<'f, S::Item>, Stream<'f, Rejected>) {
    let (scope, build) = (flow.scope, &flow.build);
    let ((events, events_capability), event_stream) = scope.new_unordered_input();
    let ((marks, marks_capability), mark_stream) = scope.new_unordered_input();
    let ((rejects, rejects_capability), reject_stream) = scope.new_unordered_input();
    let (view, pool) = (View::default(), Pool::default());
    let metrics = build.metrics.source(name);
    let marks_of_stream = watermark(mark_stream, scope.peers(), &view, &metrics);
    let index = build.drivers.borrow().len() as u16;
    if !build.dry {
        match source.open(&build.place) {
            Ok(reader) => {
                let (view, metrics) = (Rc::clone(&view), Arc::clone(&metrics));
                let intake =
                    Intake::new(name, index, source, &build.place.options, Rc::clone(&view), Arc::clone(&metrics));
                let capabilities =
                    Capabilities { events: events_capability, marks: marks_capability, rejects: rejects_capability };
                build.drivers.borrow_mut().push(Box::new(SourceDriver {
                    reader,
                    intake,
                    events,
                    marks,
                    rejects,
                    open: VecDeque::from([(Epoch(0), capabilities)]),
                    said: None,
                    worker: scope.index(),
                    peers: scope.peers(),
                    view,
                    metrics,
                    pool: pool.clone(),
                    fault: build.fault,
                }));
            }
            Err(error) => build.failure.set(error),
        }
    }
    let stream = Stream { events: event_stream, marks: marks_of_stream.clone(), flow: flow.clone(), pool };
    (stream, Stream { events: reject_stream, marks: marks_of_stream, flow: flow.clone(), pool: Pool::default() })
}

/// Combines what the workers say of their partitions into the stream's watermark, on every worker alike.
fn watermark<'f>(
    said: TimelyStream<'f, u64, Vec<MarkMessage>>,
    peers: usize,
    view: &View,
    metrics: &Arc<SourceMetrics>,
) -> TimelyStream<'f, u64, Vec<Mark>> {
    let (view, metrics) = (Rc::clone(view), Arc::clone(metrics));
    let to_worker = Exchange::new(|message: &MarkMessage| message.0);
    said.unary_frontier(to_worker, "Watermark", move |_capability, _info| {
        let mut clock = StreamClock::new(peers, EventTime::MIN);
        let mut waiting = BTreeMap::new();
        move |(input, frontier), output| {
            input.for_each(|capability, messages| {
                let Some(capability) = capability.retain_least(0) else { return };
                let entry = waiting.entry(*capability.time()).or_insert_with(|| (capability, Vec::new()));
                entry.1.append(messages);
            });
            while let Some(entry) = waiting.first_entry().filter(|entry| !frontier.less_equal(entry.key())) {
                let (capability, mut messages): (_, Vec<MarkMessage>) = entry.remove();
                messages.sort_unstable();
                for (_, worker, mark) in messages {
                    clock.update(worker, mark);
                }
                if let Some(mark) = clock.complete() {
                    output.session(&capability).give(mark);
                }
            }
            let complete = frontier.frontier().first().map_or(u64::MAX, |first| first.saturating_sub(1));
            view.publish(Epoch(complete), clock.watermark());
            metrics.watermark.set(clock.watermark());
        }
    })
}
