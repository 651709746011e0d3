//! Entry of a source's records into the dataflow: capabilities, epochs, and the stream's watermark.
//!
//! The [`Driver`] of a source holds its reader and three timely inputs: events, watermark updates and rejects. It holds a
//! capability of each for every epoch that is not released. The worker's loop begins epochs, polls, collects the
//! input of epochs that are over, and releases an epoch when its journal frame is synced.
//!
//! Invariant: the capabilities for an epoch are held until everything of the epoch has been sent, watermark updates
//! included, and its frame is durable. So a frontier past an epoch means that the epoch is whole, and durable on
//! every process.

use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;

use timely::container::CapacityContainerBuilder;
use timely::dataflow::Stream as TimelyStream;
use timely::dataflow::channels::pact::Exchange;
use timely::dataflow::operators::ActivateCapability;
use timely::dataflow::operators::core::{UnorderedHandle, UnorderedInput};
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use timely::dataflow::operators::generic::operator::empty;

use crate::durable::declared_changes::NameScope;
use crate::durable::journal::PartitionProgress;
use crate::durable::manifest::SourceState;
use crate::durable::sources;
use crate::error::{Error, Result};
use crate::metrics::SourceMetrics;
use crate::record::{Event, Record};
use crate::source::{
    self, DeadLetter, EpochInput, PartitionTracker, Polled, Reader, Rejected, RestoredPartition, Source, WatermarkView,
    WorkerContext,
};
use crate::status::PartitionStatus;
use crate::stream::driver::{Driver, PollResult};
use crate::stream::durable_context::{DurableContext, SnapshotAck};
use crate::stream::epochs::{self, EpochBuffer};
use crate::stream::watermark_stream::WatermarkStream;
use crate::stream::watermarks::{SnapshotWatermarks, saved};
use crate::stream::{BuildContext, BuildMode, ContainerPool, Fault, Flow, InjectedFault, SnapshotEpochs, Stream};
use crate::time::watermark::{Activity, PartitionId, StreamClock, WatermarkUpdate, WorkerWatermark};
use crate::time::{Epoch, EventTime};

/// The stream's watermark as the worker's source readers see it.
type SharedWatermarkView = Rc<WatermarkView>;

/// A worker's watermark report in transit: receiving worker, sending worker, report.
type WatermarkMessage = (u64, usize, WorkerWatermark);

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

type InputHandle<D> = UnorderedHandle<u64, CapacityContainerBuilder<Vec<D>>>;

struct SourceDriver<D: Record> {
    reader: Box<dyn Reader<D>>,
    intake: PartitionTracker<D>,
    events: InputHandle<Event<D>>,
    marks: InputHandle<WatermarkMessage>,
    rejects: InputHandle<Event<DeadLetter>>,
    /// Epochs that are not released, oldest first; the last one is current.
    open: VecDeque<(Epoch, Capabilities)>,
    /// The last released epoch. The capabilities of the next epoch are made from its own, which are kept until that
    /// epoch begins.
    released: Epoch,
    /// The last report that this worker sent about its partitions; it sends changes only.
    reported: Option<WorkerWatermark>,
    worker: usize,
    peers: usize,
    view: SharedWatermarkView,
    metrics: Arc<SourceMetrics>,
    pool: ContainerPool<Event<D>>,
    fault: InjectedFault,
    place: WorkerContext,
    /// Positions of the partitions in the snapshot that the job resumes from.
    resume_positions: Option<(Epoch, Vec<RestoredPartition>)>,
    /// Progress of this worker's partitions at the last epoch that was collected; only kept in a job with state.
    progress: BTreeMap<u32, PartitionProgress>,
    /// The output for this worker's contributions to manifests, with the capability for the next possible snapshot
    /// epoch; `None` in a job without state.
    parts: Option<(InputHandle<SnapshotAck>, ActivateCapability<u64>)>,
    seals: SnapshotEpochs,
    is_first: bool,
    /// Epoch from which on the journal says that the source was read first; 0 if an earlier incarnation has said it.
    noted_at: Option<Epoch>,
    /// `true` once a wait of the reader was ended because the job is to stop: the record that it was for is not taken, and
    /// none behind it may be.
    interrupted: bool,
}

impl<D: Record> SourceDriver<D> {
    fn current(&self) -> Epoch {
        self.open.back().map_or(Epoch(0), |open| open.0)
    }

    /// Records the partitions' progress at the end of an epoch, and contributes it to the manifest if the epoch is a
    /// snapshot's.
    fn record_progress(&mut self, epoch: Epoch, bounds: &[PartitionProgress]) {
        let Some((snapshot_acks, held)) = &mut self.parts else { return };
        for bound in bounds {
            let known = self.progress.get_mut(&bound.partition).and_then(|known| known.topic.take());
            let topic = bound.topic.clone().or(known);
            let progress = PartitionProgress {
                start_offset: None,
                values: None,
                topic,
                rejected_for_now: Vec::new(),
                ..bound.clone()
            };
            self.progress.insert(bound.partition, progress);
        }
        if self.seals.contains(epoch.0) {
            let part = SnapshotAck::source(self.intake.name(), self.progress.values().cloned());
            snapshot_acks.activate().session_with_builder(&held.delayed(&epoch.0)).give(part);
            if self.worker == 0 && self.noted_at.is_some_and(|noted| noted <= epoch) {
                let note = sources::read_first_note(self.intake.name());
                let part = SnapshotAck::source(&note.source.clone(), [note]);
                snapshot_acks.activate().session_with_builder(&held.delayed(&epoch.0)).give(part);
            }
            held.downgrade(&(epoch.0 + 1));
        }
    }

    /// Sends the records taken since the last call, at an epoch that is not released; returns their size in bytes.
    fn send(&mut self, epoch: Epoch) -> usize {
        let Some((_, capabilities)) = self.open.iter().find(|open| open.0 == epoch) else {
            unreachable!("records are read for epochs that are open");
        };
        let (bytes, events, rejects) = self.intake.finish_poll();
        if self.fault.is(Fault::LoseRecord) {
            events.pop();
        }
        if self.fault.is(Fault::ForgetOffsets) {
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
        // A replayed epoch is over, and may be released, before the next one begins.
        self.release(self.released);
        self.intake.begin(epoch);
    }

    fn poll(&mut self, budget: usize) -> Result<PollResult> {
        if self.interrupted {
            return Ok(PollResult { bytes: 0, busy: false, exhausted: false, caught_up: false });
        }
        let Polled { epoch, busy } = match self.reader.poll(self.current(), budget, &mut self.intake) {
            Err(error) if error.is_interruption() => {
                tracing::warn!(source = self.intake.name(), "reading has ended: {error}");
                self.interrupted = true;
                Polled { epoch: self.current(), busy: false }
            }
            polled => polled?,
        };
        let bytes = self.send(epoch);
        let (exhausted, caught_up) = (self.reader.exhausted(&self.intake), self.reader.caught_up());
        Ok(PollResult { bytes, busy, exhausted, caught_up })
    }

    fn is_first(&self) -> bool {
        self.is_first
    }

    fn name(&self) -> &str {
        self.intake.name()
    }

    fn keep_alive(&mut self) -> Result<()> {
        self.reader.keep_alive(self.current(), &mut self.intake)
    }

    fn has_reached_initial_end(&self) -> bool {
        self.reader.initial_progress(&self.intake).is_done
    }

    fn note_read_first(&mut self, epoch: Epoch) {
        self.noted_at.get_or_insert(epoch);
    }

    fn is_noted(&self) -> bool {
        self.noted_at.is_some()
    }

    fn deliver(&mut self) -> Result<usize> {
        let epoch = self.reader.deliver(&mut self.intake)?;
        Ok(epoch.map_or(0, |epoch| self.send(epoch)))
    }

    fn resume(&mut self) -> Result<()> {
        let Some((epoch, places)) = self.resume_positions.take() else { return Ok(()) };
        self.reader.resume(epoch, &places, &mut self.intake)?;
        let mine = places.into_iter().filter(|place| self.place.owns(place.progress.partition));
        self.progress.extend(mine.map(|place| (place.progress.partition, place.progress)));
        Ok(())
    }

    fn replay(&mut self, bounds: &[PartitionProgress]) -> Result<(bool, usize)> {
        let epoch = self.current();
        let mine: Vec<_> = bounds.iter().filter(|bound| bound.source == self.intake.name()).cloned().collect();
        let reached = self.reader.replay(epoch, &mine, &mut self.intake)?;
        Ok((reached, self.send(epoch)))
    }

    fn commit_input(&mut self, epoch: Epoch) -> Result<Option<Vec<PartitionProgress>>> {
        let Some(EpochInput { mut partitions, watermark }) = self.reader.close_epoch(epoch, &mut self.intake)? else {
            return Ok(None);
        };
        self.send(epoch);
        if self.reported.as_ref() != Some(&watermark) || !watermark.activated.is_empty() {
            let Some((_, capabilities)) = self.open.iter().find(|open| open.0 == epoch) else {
                unreachable!("an epoch is bound before it is released");
            };
            let mut output = self.marks.activate();
            let mut session = output.session_with_builder(&capabilities.marks);
            let worker = self.worker;
            session.give_iterator((0..self.peers as u64).map(|to| (to, worker, watermark.clone())));
            self.reported = Some(WorkerWatermark { activated: Vec::new(), ..watermark });
        }
        self.record_progress(epoch, &partitions);
        if self.noted_at == Some(epoch) {
            partitions.push(sources::read_first_note(self.intake.name()));
        }
        Ok(Some(partitions))
    }

    fn release(&mut self, epoch: Epoch) {
        self.released = self.released.max(epoch);
        while self.open.len() > 1 && self.open.front().is_some_and(|open| open.0 <= epoch) {
            self.open.pop_front();
        }
    }

    fn close(&mut self) {
        self.open.clear();
        self.parts = None;
    }

    fn is_complete(&self) -> bool {
        self.view.watermark() == EventTime::MAX
    }

    fn shown(&mut self, epoch: Epoch) {
        self.reader.notify_published(epoch);
    }

    fn partitions(&self) -> Vec<PartitionStatus> {
        let mut partitions = self.reader.partitions(&self.intake);
        if self.is_first && self.noted_at.is_none() {
            for (id, read, all) in self.reader.initial_progress(&self.intake).partitions {
                if let Some(partition) = partitions.iter_mut().find(|partition| partition.partition == id) {
                    partition.initial = Some((read, all));
                }
            }
        }
        partitions
    }
}

impl<D: Record> Drop for SourceDriver<D> {
    fn drop(&mut self) {
        self.metrics.watermark.set(self.view.watermark());
    }
}

/// Mode of reading a source.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ReadMode {
    /// `true` if it is read as a table: event times have no meaning.
    pub(crate) is_table: bool,
    /// `true` if other sources are read only when this one was read to the end that it has at the start.
    pub(crate) is_first: bool,
}

/// Reads a source; returns its stream and the stream of rejected records.
pub(crate) fn read<'f, S: Source>(
    flow: &Flow<'f>,
    name: &str,
    source: &S,
    mode: ReadMode,
) -> (Stream<'f, S::Item>, Stream<'f, DeadLetter>) {
    let (scope, build) = (flow.scope, &flow.build);
    let ((events, events_capability), event_stream) = scope.new_unordered_input();
    let ((marks, marks_capability), mark_stream) = scope.new_unordered_input();
    let ((rejects, rejects_capability), reject_stream) = scope.new_unordered_input();
    for port in [event_stream.name(), mark_stream.name(), reject_stream.name()] {
        build.registry.add_source_input(port, name);
    }
    let snapshot_acks = build.durable.is_some().then(|| {
        let (snapshot_acks, stream) = scope.new_unordered_input();
        flow.snapshot_acks.borrow_mut().push(stream);
        snapshot_acks
    });
    let (view, pool) = (SharedWatermarkView::default(), ContainerPool::default());
    let metrics = build.metrics.source(name);
    if mode.is_table {
        metrics.is_timeless.set();
    }
    let index = build.drivers.borrow().len() as u16;
    let marks_of_stream = watermark(flow, name, u32::from(index), mark_stream, &view, &metrics);
    let marks_of_stream = WatermarkStream::of_source(marks_of_stream, name);
    if build.mode == BuildMode::AskNewData
        && let Some((_, saved)) = build.durable.as_ref().and_then(|durable| saved(durable, name))
    {
        match source.has_new_data(&build.place, &saved.progress) {
            Ok(None) => {}
            Ok(Some(what)) => {
                let error = Error::new("the state has ended, and its source has new data").at(source.describe());
                build.failure.set(error.because(what).help("start with a new --state to read it all"));
            }
            Err(error) => build.failure.set(error),
        }
    }
    if build.mode == BuildMode::Run {
        let known = build.known_partitions.get(name).into_iter().flatten();
        let known_partitions = known.map(|(number, topic)| (*number, topic.clone())).collect();
        let at = WorkerContext { known_partitions, ..build.place.clone() };
        match build.source_values.add(name, source).and_then(|()| source.open(&at)) {
            Ok(reader) => {
                check_identity(build, name, &*reader, source);
                let (view, metrics) = (Rc::clone(&view), Arc::clone(&metrics));
                let intake =
                    source::track(source, (name, index), &build.place.options, Rc::clone(&view), Arc::clone(&metrics));
                let intake = if mode.is_table { intake.timeless() } else { intake };
                // The records of a table are none of a stream.
                #[cfg(feature = "kafka")]
                let intake = if mode.is_table { intake } else { intake.keep_messages(Rc::clone(&build.messages)) };
                let capabilities =
                    Capabilities { events: events_capability, marks: marks_capability, rejects: rejects_capability };
                build.drivers.borrow_mut().push(Box::new(SourceDriver {
                    reader,
                    intake,
                    events,
                    marks,
                    rejects,
                    open: VecDeque::from([(Epoch(0), capabilities)]),
                    released: Epoch(0),
                    reported: None,
                    worker: scope.index(),
                    peers: scope.peers(),
                    view,
                    metrics,
                    pool: pool.clone(),
                    fault: build.fault,
                    place: build.place.clone(),
                    resume_positions: build.durable.as_ref().and_then(|durable| saved_positions(durable, name)),
                    progress: BTreeMap::new(),
                    parts: snapshot_acks,
                    seals: build.snapshot_epochs.clone(),
                    is_first: mode.is_first,
                    noted_at: None,
                    interrupted: false,
                }));
            }
            Err(error) => build.failure.set(error),
        }
    }
    let stream = Stream { events: event_stream, marks: marks_of_stream.clone(), flow: flow.clone(), pool };
    (
        stream,
        Stream { events: reject_stream, marks: marks_of_stream, flow: flow.clone(), pool: ContainerPool::default() },
    )
}

/// Fails the job if the source is no longer the one whose identity was recorded when this incarnation began.
fn check_identity<D: Record>(build: &BuildContext, name: &str, reader: &dyn Reader<D>, source: &impl Source) {
    let Some(durable) = &build.durable else { return };
    let (expected, identity) = (sources::fingerprint_of(&durable.query, name), reader.identity());
    if let Some(identity) = identity.filter(|identity| expected != 0 && sources::fingerprint(identity) != expected) {
        let error = Error::new("a source was replaced while the job started").at(source.describe());
        build.failure.set(error.because(format!("it is now the {identity}")).help("start again"));
    }
}

/// Returns the snapshot's epoch and the positions of a source's partitions in it.
fn saved_positions(durable: &DurableContext, name: &str) -> Option<(Epoch, Vec<RestoredPartition>)> {
    let (epoch, source) = saved(durable, name)?;
    let places = source.progress.iter().map(|bound| {
        let activation_watermark =
            source.activation_watermarks.iter().find(|(partition, _)| *partition == bound.partition);
        RestoredPartition {
            progress: bound.clone(),
            activation_watermark: activation_watermark
                .map_or(EventTime::MIN, |(_, activation_watermark)| *activation_watermark),
        }
    });
    Some((epoch, places.collect()))
}

/// Returns the activity of a stream at the snapshot that the job resumes from.
fn activity(source: &SourceState) -> Activity {
    let reached = source.progress.iter().map(|bound| bound.watermark).max();
    match reached {
        Some(reached) if source.watermark == EventTime::MAX => Activity::Ended(reached),
        Some(_) if source.progress.iter().all(|bound| bound.idle || bound.ended) => Activity::Idle,
        _ => Activity::Active,
    }
}

/// Combines the workers' reports about their partitions into the stream's watermark, on every worker alike.
///
/// In a job that resumes from a snapshot, the stream begins with the snapshot's watermark and activation watermarks,
/// at its epoch.
fn watermark<'f>(
    flow: &Flow<'f>,
    name: &str,
    source: u32,
    said: TimelyStream<'f, u64, Vec<WatermarkMessage>>,
    view: &SharedWatermarkView,
    metrics: &Arc<SourceMetrics>,
) -> TimelyStream<'f, u64, Vec<WatermarkUpdate>> {
    let (view, metrics, name, peers) = (Rc::clone(view), Arc::clone(metrics), name.to_owned(), flow.scope.peers());
    let (durable, seals) = (flow.build.durable.clone(), flow.build.snapshot_epochs.clone());
    let mut builder = OperatorBuilder::new(format!("Watermark: {name}"), flow.scope);
    let mut input = builder.new_input(said, Exchange::new(|message: &WatermarkMessage| message.0));
    let (output, stream) = builder.new_output();
    let mut output = OutputBuilder::<_, CapacityContainerBuilder<_>>::from(output);
    let mut snapshot_acks = flow.snapshot_output(&mut builder);
    let speaks = flow.scope.index() == 0;
    builder.build(move |mut capabilities| {
        let held = capabilities.pop().filter(|_| snapshot_acks.is_some() && speaks);
        let before = durable.as_ref().and_then(|durable| saved(durable, &name));
        let begins_at = before.map(|(_, source)| (source.watermark, activity(source)));
        let (begins_at, active) = begins_at.unwrap_or((EventTime::MIN, Activity::Active));
        let mut clock = StreamClock::new(peers, begins_at, active);
        let mut activation_watermarks = BTreeMap::<u32, EventTime>::new();
        activation_watermarks
            .extend(before.iter().flat_map(|(_, source)| source.activation_watermarks.iter().copied()));
        let mut snapshots = SnapshotWatermarks::new(held, before.map(|(epoch, _)| epoch));
        let mut begins = before.and_then(|(epoch, _)| Some(capabilities.first()?.delayed(&epoch.0)));
        drop(capabilities);
        let mut waiting = EpochBuffer::<(_, Vec<_>)>::default();
        move |frontiers| {
            let mut output = output.activate();
            if let Some(capability) = begins.take() {
                let activation_watermarks = activation_watermarks.iter().map(|(partition, activation_watermark)| {
                    (PartitionId { source, partition: *partition }, *activation_watermark)
                });
                let (activity, watermark) = (clock.activity(), clock.watermark());
                let mark =
                    WatermarkUpdate { activity, watermark, activation_watermarks: activation_watermarks.collect() };
                output.session(&capability).give(mark);
            }
            input.for_each(|capability, messages| {
                let Some(&epoch) = capability.least() else { return };
                waiting.held_at(epoch, &capability).append(messages);
            });
            loop {
                let next = waiting.first_complete(frontiers);
                if let Some(capability) = snapshots.next(&seals.after(snapshots.reported_through()), next, frontiers) {
                    if let (Some(snapshot_acks), Some(capability)) = (&mut snapshot_acks, capability) {
                        let activation_watermarks = activation_watermarks
                            .iter()
                            .map(|(partition, activation_watermark)| (*partition, *activation_watermark))
                            .collect();
                        let part = SnapshotAck::Watermark(name.clone(), clock.watermark(), activation_watermarks);
                        snapshot_acks.activate().session(&capability).give(part);
                    }
                    continue;
                }
                let Some((_, (capability, mut messages))) = waiting.next_complete(frontiers) else { break };
                messages.sort_unstable();
                for (_, worker, mark) in messages {
                    clock.update(worker, mark);
                }
                if let Some(mark) = clock.complete() {
                    activation_watermarks.extend(
                        mark.activation_watermarks
                            .iter()
                            .map(|(id, activation_watermark)| (id.partition, *activation_watermark)),
                    );
                    output.session(&capability).give(mark);
                }
            }
            let complete = frontiers[0].frontier().first().map_or(u64::MAX, |first| first.saturating_sub(1));
            view.publish(Epoch(complete), clock.watermark());
            metrics.watermark.set(clock.watermark());
            if epochs::has_ended(frontiers) && seals.after(snapshots.reported_through()).is_empty() {
                snapshots.close();
            }
        }
    });
    stream
}

impl<'f> Flow<'f> {
    /// Reads a source. The name is unique among the query's sources.
    pub fn read<S: Source>(&self, name: &str, source: &S) -> Stream<'f, S::Item> {
        self.read_as(name, source, ReadMode::default())
    }

    /// Like [`Flow::read`], but reads the source **first**: the sources of the query that are not read first are read
    /// only after all workers have read this one to the end that it had when the job started, in later epochs. So what
    /// is looked up of it ([`Keyed::join_table`](super::Keyed::join_table)) misses nothing that was there then.
    ///
    /// A job that recovers before that goes on reading first, up to the end at that time; once the other sources are
    /// read, a state says so, and later incarnations read all at once. The source must come to an end: partitions that
    /// are added later, and records that arrive meanwhile, are not waited for.
    pub fn read_first<S: Source>(&self, name: &str, source: &S) -> Stream<'f, S::Item> {
        self.read_as(name, source, ReadMode { is_first: true, ..ReadMode::default() })
    }

    /// Reads a source in a certain mode.
    pub(super) fn read_as<S: Source>(&self, name: &str, source: &S, mode: ReadMode) -> Stream<'f, S::Item> {
        if sources::is_note(name) {
            let error = Error::usage(format!("a source cannot be named `{name}`"));
            self.build.failure.set(error.help("give it a name that does not begin like a note of the state"));
        }
        self.build.step("source", name, source.describe(), self.identity(source));
        self.register_topics(source.topics(), Vec::new());
        let (stream, Stream { events, marks, .. }) = read(self, name, source, mode);
        self.build.registry.add_output(stream.events.name(), NameScope::Source, name);
        self.rejects.borrow_mut().push((events, marks));
        stream
    }

    /// Returns the records rejected by the sources that were read so far. Unless they are written to a sink, they are
    /// only counted.
    pub fn rejects(&self) -> Stream<'f, Rejected> {
        self.dead_letters().map(|letter| letter.rejected)
    }

    /// Returns what [`Flow::rejects`] returns, with everything that a message of a topic has: for a topic from which
    /// the messages can be sent again (`kafka::Sink::dead_letters`).
    pub fn dead_letters(&self) -> Stream<'f, DeadLetter> {
        let stream = |(events, marks)| Stream { events, marks, flow: self.clone(), pool: ContainerPool::default() };
        self.build.metrics.sources().iter().for_each(|(_, source)| source.notices.suppress_reject_notice());
        let rejects = self.rejects.borrow().clone().into_iter().map(stream).reduce(Stream::concat);
        rejects.unwrap_or_else(|| stream((empty(self.scope), WatermarkStream::none(self.scope))))
    }
}
