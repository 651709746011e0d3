//! Output from the dataflow: an epoch is published as a whole, by the worker that owns the sink.
//!
//! Rows are gathered on the worker of the sink's writer, wait until their epoch is complete, and are consolidated,
//! sorted and published in the order of epochs. The probe behind this operator passes an epoch only when it has been
//! published. The sort key may contain more than the row that is written: see [`Stream::write_in_order`]. How rows wait is
//! in `gathered_rows`.
//!
//! A sink that waits for a disk or a network publishes on a thread of its own, all epochs that have gathered at once:
//! a worker never waits.
//!
//! Invariant, here and in [`crate::sink`]: **an epoch is published whole, once, or not at all.** A job that resumes
//! after a crash produces again what it had produced; output that the sink reports as published is dropped here (the
//! **gate**). A snapshot's epoch is held until everything at or before it is published, so no manifest is ever ahead
//! of a sink.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};

use timely::container::CapacityContainerBuilder;
use timely::dataflow::Stream as TimelyStream;
use timely::dataflow::channels::pact::{Exchange, Pipeline};
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use timely::dataflow::operators::generic::operator::Operator;
use timely::dataflow::operators::{Capability, InputCapability, Probe};
use timely::scheduling::SyncActivator;

use crate::durable::codec::{Codec, Postcard};
use crate::durable::journal::JournalEnds;
use crate::durable::manifest::SinkState;
use crate::durable::{Incarnation, PublishedEpoch};
use crate::error::Result;
use crate::metrics::{SPAN_TARGET, SinkMetrics};
use crate::record::{Event, Record};
use crate::sink::{EncodeEvent, EncodedSink, Sink, SinkContext, SinkRows, SinkWriter};
use crate::stream::assign::SourcePosition;
use crate::stream::durable_context::SnapshotAck;
use crate::stream::ends::EndsOutput;
use crate::stream::epochs::{self, EpochBuffer};
use crate::stream::gathered_rows::{GatherRows, PartitionRuns, SortedRows};
use crate::stream::{BuildContext, BuildMode, ContainerPool, EndMessage, Fault, Flow, JobFailure, OpenedSink, Stream};
use crate::thread::{self, ThreadHandle, ThreadRole};
use crate::time::Epoch;

/// The maximum number of epochs that are published at once.
const MAX_EPOCHS_PER_PUBLISH: usize = 256;

/// A change of a sink's row: `(row, epoch, diff)`.
pub(crate) type RowChange<R> = (R, u64, isize);

/// Writes rows to a sink, those of an epoch sorted.
pub(crate) fn write<'f, D: Record>(
    flow: &Flow<'f>,
    name: &str,
    kind: SinkRows,
    rows: TimelyStream<'f, u64, Vec<RowChange<D>>>,
    sink: &impl Sink<D>,
) {
    write_gathered::<SortedRows<D>, _, _>(flow, (name, kind), rows, sink, |row| row);
}

/// Writes rows to a sink: they are gathered and sorted by `G`, and each is converted by `row`.
fn write_gathered<'f, G: GatherRows<R>, R: Record, D: Record>(
    flow: &Flow<'f>,
    (name, kind): (&str, SinkRows),
    rows: TimelyStream<'f, u64, Vec<RowChange<R>>>,
    sink: &impl Sink<D>,
    row: impl Fn(R) -> D + 'static,
) {
    let build = &flow.build;
    let fingerprint = if kind == SinkRows::Changes { Codec::<D>::fingerprint(&Postcard) } else { 0 };
    build.step("sink", name, sink.describe(), fingerprint);
    flow.check_exchangeable::<R>("sink", name);
    flow.register_topics(Vec::new(), sink.topics());
    if let Err(error) = sink.check(kind) {
        build.failure.set(error.at(format!("sink `{name}`")));
        return;
    }
    // Each sink has one writer, so that the number of workers has no effect on output. Sinks are spread by their
    // order over the workers of the process that has the state: it opened them, to read what they have published.
    let sinks = build.plan.borrow().iter().filter(|step| step.kind == "sink").count();
    let owner = (sinks - 1) % build.place.threads;
    let name_at_target = build.opened.name_at_target(name).to_owned();
    let shard = SinkContext { name: name_at_target, rows: kind, ..build.shard.clone() };
    // Opening may truncate files, so it is skipped if the job has failed already, for example at its source. The flow
    // is built all the same, as it must be equal on all workers, and one of them may have learned of a failure before
    // another.
    let has_failed = build.failure.get().is_some();
    let mut output = None;
    match build.mode {
        BuildMode::CollectSteps | BuildMode::AskNewData => {}
        _ if has_failed => {}
        BuildMode::OpenSinks => match open(sink, &shard) {
            Ok((published, writer)) => {
                build.opened.put(
                    name,
                    OpenedSink { published, on_change: kind == SinkRows::Changes, writer: Box::new(writer) },
                );
            }
            Err(error) => build.failure.set(error),
        },
        BuildMode::Run if owner == flow.scope.index() => {
            let opened = build.opened.take::<D>(name).map_or_else(|| open(sink, &shard), Ok);
            match opened.and_then(|(shown, writer)| begin(build, name, kind, shown, writer)) {
                Ok(begun) => output = Some(begun),
                Err(error) => build.failure.set(error),
            }
        }
        BuildMode::Run => {}
    }
    publish::<G, _, _>(flow, (name, owner), rows, output, row);
}

/// Opens a sink, and reads what it has published.
fn open<D: Record>(
    sink: &impl Sink<D>,
    shard: &SinkContext,
) -> Result<(Option<PublishedEpoch>, Box<dyn SinkWriter<D>>)> {
    let mut writer = sink.open(shard)?;
    let shown = if shard.state.is_some() { writer.published()? } else { None };
    Ok((shown, writer))
}

/// Begins an incarnation of a writer.
fn begin<D: Record>(
    build: &BuildContext,
    name: &str,
    kind: SinkRows,
    shown: Option<PublishedEpoch>,
    mut writer: Box<dyn SinkWriter<D>>,
) -> Result<ReadySink<D>> {
    let shown = shown.map(|published| published.epoch);
    // A writer that waits for brokers gives up when the job has failed.
    let (failure, still_current) = (Arc::clone(&build.failure), Arc::clone(&build.incarnation.still_current));
    let goes_on = move || failure.get().cloned().map_or_else(|| still_current(), Err);
    writer.begin(&Incarnation { still_current: Arc::new(goes_on), ..build.incarnation.clone() })?;
    // Everything through the snapshot was published before the snapshot was taken. Only a collection that is new to
    // the snapshot is written from its beginning.
    let base = build.durable.as_ref().and_then(|durable| durable.base.as_ref());
    let known = base.is_some_and(|base| base.sinks.iter().any(|sink| sink.name == name));
    let through = base.filter(|_| known || kind == SinkRows::Events).map(|base| base.epoch);
    let gate = if build.fault.is(Fault::PublishAgain) { None } else { shown.max(through) };
    let state = SinkState { name: name.to_owned(), published: shown, on_change: kind == SinkRows::Changes };
    Ok(ReadySink { writer, state, gate })
}

/// A sink that is ready to write.
struct ReadySink<D> {
    writer: Box<dyn SinkWriter<D>>,
    state: SinkState,
    /// Output at or before this epoch was published by an earlier incarnation, and is dropped.
    gate: Option<Epoch>,
}

/// Builds the operator that publishes rows, on every worker; only the owner has an output.
fn publish<'f, G: GatherRows<R>, R: Record, D: Record>(
    flow: &Flow<'f>,
    (name, owner): (&str, usize),
    rows: TimelyStream<'f, u64, Vec<RowChange<R>>>,
    output: Option<ReadySink<D>>,
    row: impl Fn(R) -> D + 'static,
) {
    let build = &flow.build;
    let (failure, metrics) = (Arc::clone(&build.failure), build.metrics.sink(name));
    let (board, cell) = (Arc::clone(&build.board), output.as_ref().map(|_| build.board.sink(name)));
    let (early, hasty, seals) =
        (flow.has_fault(Fault::PublishEarly), flow.has_fault(Fault::AcknowledgeEarly), build.snapshot_epochs.clone());
    let mut builder = OperatorBuilder::new(format!("Write: {name}"), flow.scope);
    let mut input = builder.new_input(rows, Exchange::new(move |_row: &RowChange<R>| owner as u64));
    let ends = flow.ends.clone();
    let mut ends = ends.map(|ends| builder.new_input(ends, Exchange::new(|message: &EndMessage| message.0)));
    let (shown, shown_stream) = builder.new_output::<Vec<()>>();
    let _shown = OutputBuilder::<_, CapacityContainerBuilder<Vec<()>>>::from(shown);
    let mut snapshot_acks = flow.snapshot_output(&mut builder);
    let wake = flow.scope.worker().sync_activator_for(builder.operator_info().address.to_vec());
    let gate = output.as_ref().and_then(|output| output.gate);
    let began = output.map(|output| SinkPublisher::begin(output, &failure, metrics, wake));
    let mut publisher = match began.transpose() {
        Ok(publisher) => publisher,
        Err(error) => {
            failure.set(error);
            None
        }
    };
    builder.build(move |mut capabilities| {
        let mut held = capabilities.pop().filter(|_| snapshot_acks.is_some() && publisher.is_some());
        drop(capabilities);
        let mut sealed_through = gate.map_or(0, |gate| gate.0);
        let mut waiting = WaitingRows::<G>::default();
        let mut known_ends = EndsOutput::default();
        let mut room = G::Room::default();
        // Epochs that the writer has not published yet, with the capabilities that hold the probe at them.
        let mut outgoing = VecDeque::<(u64, Capability<u64>)>::new();
        move |frontiers| {
            if let Some(ends) = &mut ends {
                ends.for_each(|_capability, messages| known_ends.take(messages.drain(..)));
            }
            input.for_each(|capability, rows| {
                gather(&mut waiting, &capability, rows, &mut room);
            });
            let Some(output) = &mut publisher else { return };
            let complete = |epoch: u64| early || epochs::is_complete(frontiers, epoch);
            while let Some((epoch, (capability, gathered))) = waiting.next_if(complete) {
                if Some(Epoch(epoch)) <= gate {
                    continue;
                }
                let (rows, units) = gathered.finish(&row, &mut room, output.emptied());
                if !rows.is_empty() && failure.get().is_none() {
                    if let Some(cell) = cell.as_ref().filter(|_| outgoing.is_empty()) {
                        cell.waits(Some(Epoch(epoch)));
                    }
                    output.publish(Epoch(epoch), (rows, units), known_ends.at(epoch));
                    outgoing.push_back((epoch, capability));
                }
            }
            let through = output.through();
            while outgoing.front().is_some_and(|(epoch, _)| Some(Epoch(*epoch)) <= through) {
                outgoing.pop_front();
                board.shown();
            }
            if let Some(cell) = &cell {
                cell.waits(outgoing.front().map(|(epoch, _)| Epoch(*epoch)));
            }
            // A snapshot waits until everything at or before its epoch is published.
            if let (Some(snapshot_acks), Some(cap)) = (&mut snapshot_acks, &mut held) {
                let unshown = outgoing.front().map(|(epoch, _)| *epoch).filter(|_| !hasty);
                for epoch in seals.after(sealed_through) {
                    if !complete(epoch) || unshown.is_some_and(|unshown| unshown <= epoch) {
                        break;
                    }
                    let mut state = output.state();
                    state.published = if hasty { Some(Epoch(epoch)) } else { state.published };
                    snapshot_acks.activate().session(&cap.delayed(&epoch)).give(SnapshotAck::Sink(state));
                    cap.downgrade(&(epoch + 1));
                    sealed_through = epoch;
                }
            }
            if epochs::has_ended(frontiers) && outgoing.is_empty() {
                held = None;
                publisher = None;
            }
        }
    });
    let _shown = shown_stream.probe_with(&build.probe);
}

/// Rows of epochs that are not complete, with the capabilities for them.
type WaitingRows<G> = EpochBuffer<(Capability<u64>, G)>;

/// Adds rows to those of their epochs, all at or after the capability's.
fn gather<R, G: GatherRows<R>>(
    waiting: &mut WaitingRows<G>,
    capability: &InputCapability<u64>,
    rows: &mut Vec<RowChange<R>>,
    room: &mut G::Room,
) {
    let mut rows = rows.drain(..).peekable();
    while let Some((row, epoch, diff)) = rows.next() {
        let gathered = waiting.held_at(epoch, capability);
        gathered.push(row, diff, room);
        while let Some((row, _, diff)) = rows.next_if(|next| next.1 == epoch) {
            gathered.push(row, diff, room);
        }
    }
}

/// An epoch in transit to a writer's thread.
struct EpochBatch<D> {
    epoch: Epoch,
    rows: Vec<(D, isize)>,
    /// Number of rows that are written: an event once for each unit of its multiplicity, a change once.
    written: u64,
    /// The journal ends at the epoch.
    ends: Arc<JournalEnds>,
}

/// Publishes epochs: directly, or on a thread of its own if the writer waits for a disk or a network. The thread
/// publishes all epochs that have gathered meanwhile at once.
struct SinkPublisher<D: Record> {
    here: Option<Box<dyn SinkWriter<D>>>,
    queue: Option<Sender<EpochBatch<D>>>,
    /// Memory of rows that the thread has written.
    emptied: Option<Receiver<Vec<(D, isize)>>>,
    thread: Option<ThreadHandle>,
    shown: WriterProgress,
}

/// The progress of a writer.
#[derive(Clone)]
struct WriterProgress {
    state: SinkState,
    /// `true` if the next incarnation can read from the sink what it has published.
    remembers: bool,
    /// The last epoch that was published by this incarnation; 0 before the first.
    through: Arc<AtomicU64>,
    failure: Arc<JobFailure>,
    metrics: Arc<SinkMetrics>,
}

impl WriterProgress {
    /// Writes epochs and publishes them.
    fn publish<D: Record>(&self, writer: &mut dyn SinkWriter<D>, batches: &[EpochBatch<D>]) {
        let Some(last) = batches.last() else { return };
        let rows: u64 = batches.iter().map(|batch| batch.written).sum();
        let sink = self.state.name.as_str();
        let span = tracing::debug_span!(target: SPAN_TARGET, parent: None, "publish", sink, epoch = last.epoch.0, rows);
        let _entered = span.enter();
        let written = batches.iter().try_for_each(|batch| writer.write(batch.epoch, &batch.rows));
        match written.and_then(|()| writer.publish(&last.ends)) {
            Ok(()) => {
                self.metrics.rows.add(rows);
                self.metrics.epochs.add(batches.len() as u64);
                self.through.store(last.epoch.0, Ordering::Release);
            }
            Err(error) => self.failure.set(error),
        }
    }

    /// Finishes a writer, unless the job has failed.
    fn finish<D: Record>(&self, mut writer: Box<dyn SinkWriter<D>>) {
        if self.failure.get().is_none()
            && let Err(error) = writer.finish()
        {
            self.failure.set(error);
        }
    }
}

impl<D: Record> SinkPublisher<D> {
    fn begin(
        output: ReadySink<D>,
        failure: &Arc<JobFailure>,
        metrics: Arc<SinkMetrics>,
        wake: SyncActivator,
    ) -> Result<Self> {
        let ReadySink { mut writer, state, .. } = output;
        let (remembers, failure) = (writer.remembers(), Arc::clone(failure));
        let shown = WriterProgress { state, remembers, through: Arc::default(), failure, metrics };
        if !writer.is_blocking() {
            return Ok(SinkPublisher { here: Some(writer), queue: None, emptied: None, thread: None, shown });
        }
        let (queue, batches) = channel::<EpochBatch<D>>();
        let (used, emptied) = channel();
        let (name, there) = (format!("sink {}", shown.state.name), shown.clone());
        let body = move || {
            while let Ok(first) = batches.recv() {
                thread::mark_iteration();
                let mut gathered = vec![first];
                gathered.extend(batches.try_iter().take(MAX_EPOCHS_PER_PUBLISH - 1));
                if there.failure.get().is_none() {
                    there.publish(&mut *writer, &gathered);
                }
                // The largest one serves the next epoch best. A worker that has stopped needs none.
                let rows = gathered.into_iter().map(|batch| batch.rows).max_by_key(Vec::capacity);
                let _ = rows.map(|mut rows| {
                    rows.clear();
                    used.send(rows)
                });
                // A worker that has stopped needs no waking.
                let _ = wake.activate();
            }
            there.finish(writer);
        };
        let thread = thread::start(ThreadRole::Sink, &name, body)?;
        Ok(SinkPublisher { here: None, queue: Some(queue), emptied: Some(emptied), thread: Some(thread), shown })
    }

    fn publish(&mut self, epoch: Epoch, (rows, units): (Vec<(D, isize)>, u64), ends: Arc<JournalEnds>) {
        let written = if self.shown.state.on_change { rows.len() as u64 } else { units };
        let batch = EpochBatch { epoch, rows, written, ends };
        if let Some(writer) = &mut self.here {
            self.shown.publish(&mut **writer, &[batch]);
        } else if let Some(queue) = &self.queue {
            // If the thread is gone, the job has failed already.
            let _ = queue.send(batch);
        }
    }

    /// Returns memory of rows that were written, if there is any; drops the rest of it.
    fn emptied(&self) -> Vec<(D, isize)> {
        self.emptied.iter().flat_map(Receiver::try_iter).last().unwrap_or_default()
    }

    /// Returns the last epoch that this incarnation has published.
    fn through(&self) -> Option<Epoch> {
        Some(Epoch(self.shown.through.load(Ordering::Acquire))).filter(|through| through.0 > 0)
    }

    /// Returns what has been published by any incarnation, as far as the next one can read it from the sink.
    fn state(&self) -> SinkState {
        let SinkState { name, published, on_change } = self.shown.state.clone();
        let published = published.max(self.through()).filter(|_| self.shown.remembers);
        SinkState { name, published, on_change }
    }
}

/// Finishes the writer before the job ends, so that everything published is in its place.
impl<D: Record> Drop for SinkPublisher<D> {
    fn drop(&mut self) {
        drop(self.queue.take());
        if let Some(thread) = self.thread.take() {
            thread.join();
        }
        if let Some(writer) = self.here.take() {
            self.shown.finish(writer);
        }
    }
}

impl<'f, D: Record> Stream<'f, D> {
    /// Writes the records to a sink, epoch by epoch: each epoch is written whole, its rows sorted.
    pub fn write(self, name: &str, sink: &impl Sink<D>) {
        let rows = rows(self.events, self.pool, |event| event.data);
        write(&self.flow, name, SinkRows::Events, rows, sink);
    }

    /// Like [`Stream::write`], but each epoch's rows are in the order of the records that they came from: by source,
    /// partition and offset. So the whole output has the records of each partition in the partition's order. Rows
    /// that came from one record, or from several, as windows' rows do, are sorted among themselves.
    ///
    /// Rows of files are encoded where they are read, and sorted as lines.
    pub fn write_in_order(self, name: &str, sink: &impl Sink<D>) {
        let Stream { events, flow, pool, .. } = self;
        match sink.encoded() {
            Ok(Some(EncodedSink { encode, lines })) => {
                let rows = encoded_rows(events, pool, (encode, lines.describe()), &flow.build.failure);
                write_gathered::<PartitionRuns<_>, _, _>(&flow, (name, SinkRows::Events), rows, &lines, |(_, line)| {
                    line
                });
            }
            Ok(None) => {
                let rows = rows(events, pool, |event| (event.origin.tie_breaker(), event.data));
                write_gathered::<PartitionRuns<_>, _, _>(&flow, (name, SinkRows::Events), rows, sink, |(_, row)| row);
            }
            Err(error) => flow.build.failure.set(error.at(format!("sink `{name}`"))),
        }
    }
}

/// An encoded row with the place of its record.
type PlacedLine = (SourcePosition, Vec<u8>);

/// Encodes events as rows for a sink, with the places of their records. An event that cannot be encoded fails the job, and
/// holds its epoch.
fn encoded_rows<'f, D: Record>(
    events: TimelyStream<'f, u64, Vec<Event<D>>>,
    pool: ContainerPool<Event<D>>,
    (mut encode, target): (Box<EncodeEvent<D>>, String),
    failure: &Arc<JobFailure>,
) -> TimelyStream<'f, u64, Vec<RowChange<PlacedLine>>> {
    let failure = Arc::clone(failure);
    events.unary(Pipeline, "Lines", move |_capability, _info| {
        let (mut made, mut line, mut failed) = (Vec::new(), Vec::new(), None);
        move |input, output| {
            input.for_each(|capability, events| {
                let Some(&epoch) = capability.least() else { return };
                for event in events.drain(..) {
                    line.clear();
                    match encode(&event.data, &mut line) {
                        Ok(()) => made.push(((event.origin.tie_breaker(), line.as_slice().to_vec()), epoch, 1)),
                        Err(error) => {
                            failure.set(error.at(&target));
                            failed.get_or_insert_with(|| capability.retain_least(0));
                        }
                    }
                }
                pool.give(std::mem::take(events));
                output.session(&capability).give_container(&mut made);
                made.clear();
            });
        }
    })
}

/// Turns events into rows for a sink, each once.
fn rows<'f, D: Record, R: Record>(
    events: TimelyStream<'f, u64, Vec<Event<D>>>,
    pool: ContainerPool<Event<D>>,
    row: impl Fn(Event<D>) -> R + 'static,
) -> TimelyStream<'f, u64, Vec<RowChange<R>>> {
    events.unary(Pipeline, "Rows", move |_capability, _info| {
        let mut made = Vec::new();
        move |input, output| {
            input.for_each(|capability, events| {
                let Some(&epoch) = capability.least() else { return };
                made.extend(events.drain(..).map(|event| (row(event), epoch, 1)));
                pool.give(std::mem::take(events));
                output.session(&capability).give_container(&mut made);
                made.clear();
            });
        }
    })
}
