//! Checkpointed operators: where events become durable state.
//!
//! * A **checkpointed operator** is a step whose rows snapshots keep. At the snapshot epoch c it passes the changes
//!   of its rows since the last snapshot to a [`SegmentBuilder`], which builds a segment of them. When a job resumes
//!   from a snapshot, [`load`] reads the rows of all segments and sends them through the same exchange as live data, at
//!   epoch c.
//! * A [`SnapshotAck`] is the contribution of one writer (a source, a checkpointed operator or a sink, on one worker)
//!   to the manifest of c.
//! * The **parts stream** carries these contributions to worker 0. From its construction on, every writer holds a
//!   capability of it at the next possible c, and downgrades it when its contribution is durable; a writer with
//!   nothing to contribute only downgrades. So when the frontier of the stream passes c, the manifest of c is
//!   complete: there is no other protocol.
//!
//! Invariants: a contribution is sent only after the file and directory that it names are synced. Rows are encoded in
//! bounded pieces, no faster than they are written, and no worker waits for a disk. A checkpointed operator is a sink too: after a job resumes from c,
//! input at an epoch ≤ c is in the snapshot already and is dropped ([`DurableContext::gate`]).

use std::cell::RefCell;
use std::cmp::Ordering;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use timely::container::CapacityContainerBuilder;
use timely::dataflow::Stream as TimelyStream;
use timely::dataflow::operators::Capability;
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use timely::scheduling::{Activator, SyncActivator};

use crate::durable::codec::{Codec, NameTree, NamedPostcard, Postcard};
use crate::durable::compaction::{self, MergeGroup};
use crate::durable::disk::Disk;
use crate::durable::migration::{ConvertedRows, EarlierRows, MigratedRows, StepRows};
use crate::durable::segment::{BlockBuilder, RawBlock, SegmentInfo, SegmentLabel, SegmentReader, SegmentWriter};
use crate::error::{Error, Result};
use crate::record::Record;
use crate::stream::durable_context::{DurableContext, SnapshotAck};
use crate::stream::queued_bytes::QueuedBytes;
use crate::stream::{BuildMode, Fault, Flow};
use crate::time::{Epoch, EventTime};

/// Rows that are encoded at a time.
const PIECE: usize = 4096;

/// Functions that order, add and classify the rows of a checkpointed operator.
pub(crate) struct RowOps<T> {
    pub(crate) order: fn(&T, &T) -> Ordering,
    pub(crate) add: fn(&mut T, &T),
    /// Returns `true` if a row adds nothing and can be dropped.
    pub(crate) is_zero: fn(&T) -> bool,
    /// Returns `true` if a row is a tombstone, which only overrides older rows of its key.
    pub(crate) is_tombstone: fn(&T) -> bool,
    /// Returns the end of a row's window; the row is expired once that has closed. [`EventTime::MAX`] for rows
    /// without a window.
    pub(crate) window: fn(&T) -> EventTime,
}

/// Adds rows of one key of which only the newest counts.
pub(crate) fn keep_newest<K, V: Ord + Clone>(row: &mut (K, V), other: &(K, V)) {
    if other.1 > row.1 {
        row.1.clone_from(&other.1);
    }
}

impl<T> Clone for RowOps<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for RowOps<T> {}

/// A cell for a step's codec: set while the flow is built, read while it runs.
pub(crate) type CodecCell<T> = Rc<RefCell<Arc<dyn Codec<T>>>>;

/// Returns a cell with the default codec.
pub(crate) fn postcard<T: Record>() -> CodecCell<T> {
    Rc::new(RefCell::new(Arc::new(Postcard)))
}

/// Fails the job if it is about to open durable state and rows of this type cannot be read back.
pub(crate) fn check_rows<T: Record>(flow: &Flow<'_>, name: &str) {
    if flow.build.mode == BuildMode::OpenSinks
        && let Err(why) = Codec::<T>::check(&Postcard)
    {
        let error = Error::usage("snapshots cannot store the rows of a step").at_step(name).because(why);
        flow.build.failure.set(error.help("map such values to strings or integers before the step"));
    }
}

/// An iterator of rows in order: each call yields at most the given number of them, and returns `true` if more may
/// follow.
pub(crate) type RowChunks<T> = Box<dyn FnMut(usize, &mut dyn FnMut(T)) -> bool>;

/// Yields rows that are already sorted.
pub(crate) fn chunks_of<T: 'static>(rows: Vec<T>) -> RowChunks<T> {
    let mut rows = rows.into_iter();
    Box::new(move |most, give| {
        rows.by_ref().take(most).for_each(give);
        rows.len() > 0
    })
}

/// The outcome of a segment, set by the writing thread.
type SegmentOutcome = Arc<OnceLock<Result<SegmentInfo>>>;
/// A segment that the writing thread is writing.
type OpenSegment = Arc<Mutex<Option<Result<SegmentWriter>>>>;

/// A segment being built.
struct PendingSegment<T> {
    epoch: u64,
    closed: EventTime,
    rows: Option<RowChunks<T>>,
    builder: BlockBuilder<T>,
    open: Option<OpenSegment>,
    queued: QueuedBytes,
    outcome: SegmentOutcome,
}

/// Builds segments of a checkpointed operator's changes, on one worker.
pub(crate) struct SegmentBuilder<T> {
    name: String,
    durable: DurableContext,
    kind: RowOps<T>,
    codec: CodecCell<T>,
    /// Held at the next possible snapshot epoch.
    capability: Option<Capability<u64>>,
    /// Changes through this epoch are in segments.
    through: u64,
    pending: Option<PendingSegment<T>>,
    activator: Activator,
    wake: Arc<SyncActivator>,
}

impl<T: Record> SegmentBuilder<T> {
    pub(crate) fn new(
        name: &str,
        durable: DurableContext,
        kind: RowOps<T>,
        codec: CodecCell<T>,
        capability: Capability<u64>,
        (activator, wake): (Activator, SyncActivator),
    ) -> Self {
        let through = durable.gate().unwrap_or(0);
        let (name, capability, wake) = (name.to_owned(), Some(capability), Arc::new(wake));
        SegmentBuilder { name, durable, kind, codec, capability, through, pending: None, activator, wake }
    }

    /// Begins the segment of the changes through `epoch`. `rows` yields them in order, without rows of windows that
    /// end at or before `closed`; `None` if nothing changed.
    pub(crate) fn begin(&mut self, epoch: u64, closed: EventTime, rows: Option<RowChunks<T>>) {
        assert!(self.pending.is_none(), "there is one snapshot at a time");
        let codec = Arc::clone(&self.codec.borrow());
        register_merge(&self.name, &self.durable, self.kind, Arc::clone(&codec));
        let builder = BlockBuilder::new(codec);
        let (open, queued, outcome) = (None, QueuedBytes::default(), Arc::default());
        self.pending = Some(PendingSegment { epoch, closed, rows, builder, open, queued, outcome });
        self.activator.activate();
    }

    /// Continues the current segment: encodes a piece of the rows, or finishes it. Returns the contribution and the
    /// capability to send it under once the segment is durable.
    pub(crate) fn work(&mut self) -> Option<(Capability<u64>, SnapshotAck)> {
        let saving = self.pending.as_mut()?;
        if saving.queued.is_full() {
            return None; // The writing thread wakes this worker.
        }
        if let Some(mut rows) = saving.rows.take() {
            let window = self.kind.window;
            let mut blocks: Result<Vec<RawBlock>> = Ok(Vec::new());
            let builder = &mut saving.builder;
            let more = rows(PIECE, &mut |row| {
                if let Ok(made) = &mut blocks {
                    match builder.push(&row, window(&row)) {
                        Ok(block) => made.extend(block),
                        Err(why) => blocks = Err(why),
                    }
                }
            });
            if !more && let Ok(made) = &mut blocks {
                made.extend(builder.finish());
            }
            match blocks {
                Ok(blocks) => blocks.into_iter().for_each(|block| self.write(block)),
                Err(why) => {
                    self.durable.failure.set(why.at_step(&self.name));
                    return None;
                }
            }
            if more {
                if let Some(saving) = &mut self.pending {
                    saving.rows = Some(rows);
                }
                self.activator.activate();
                return None;
            }
            self.finish();
        }
        self.end()
    }

    /// Queues a block for writing.
    fn write(&mut self, block: RawBlock) {
        let Some(saving) = &mut self.pending else { return };
        let open = saving.open.get_or_insert_with(|| {
            let open: OpenSegment = Arc::default();
            let label = SegmentLabel {
                step: self.name.clone(),
                incarnation: self.durable.incarnation,
                worker: self.durable.worker as u32,
                number: saving.epoch,
                from: Epoch(self.through),
                to: Epoch(saving.epoch),
            };
            let (made, disk, directory) =
                (Arc::clone(&open), Arc::clone(&self.durable.disk), self.durable.segments.clone());
            let coding = self.codec.borrow().encoding();
            self.durable.writer.submit(move || {
                let writer = SegmentWriter::create(&disk, &directory, &label, &coding);
                *made.lock().unwrap_or_else(PoisonError::into_inner) = Some(writer);
            });
            open
        });
        let (open, queued, wake) = (Arc::clone(open), saving.queued.clone(), Arc::clone(&self.wake));
        queued.queue(block.size());
        self.durable.writer.submit(move || {
            let mut open = open.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(Ok(writer)) = &mut *open
                && let Err(why) = writer.append(&block)
            {
                *open = Some(Err(why));
            }
            if queued.written(block.size()) {
                // A worker that has stopped needs no waking.
                let _ = wake.activate();
            }
        });
    }

    /// Queues the end of the segment, if one was opened.
    fn finish(&mut self) {
        let Some(saving) = &mut self.pending else { return };
        let Some(open) = saving.open.clone() else { return };
        let (outcome, wake) = (Arc::clone(&saving.outcome), Arc::clone(&self.wake));
        self.durable.writer.submit(move || {
            let writer = open.lock().unwrap_or_else(PoisonError::into_inner).take();
            let info = writer.map(|writer| writer.and_then(SegmentWriter::finish));
            let _ = outcome.set(info.unwrap_or_else(|| Err(Error::new("a segment was finished before it was opened"))));
            // A worker that has stopped needs no waking.
            let _ = wake.activate();
        });
    }

    /// Returns the contribution once the segment is durable.
    fn end(&mut self) -> Option<(Capability<u64>, SnapshotAck)> {
        let saving = self.pending.as_ref()?;
        let segment = match (&saving.open, saving.outcome.get()) {
            (None, _) => None,
            (Some(_), None) => return None,
            (Some(_), Some(Ok(info))) => Some(info.clone()),
            (Some(_), Some(Err(why))) => {
                self.durable.failure.set(why.clone());
                return None;
            }
        };
        let (epoch, closed) = (saving.epoch, saving.closed);
        self.pending = None;
        self.through = epoch;
        let held = self.capability.as_mut()?;
        let capability = held.delayed(&epoch);
        held.downgrade(&(epoch + 1));
        Some((capability, SnapshotAck::Operator(self.name.clone(), closed, segment)))
    }

    /// Returns `true` while a segment is being built.
    pub(crate) fn is_busy(&self) -> bool {
        self.pending.is_some()
    }

    /// Drops the capability, unless a segment is being built; no further snapshots follow.
    pub(crate) fn close(&mut self) {
        if self.pending.is_none() {
            self.capability = None;
        }
    }
}

/// Registers how the segments of a step are merged.
fn register_merge<T: Record>(name: &str, durable: &DurableContext, kind: RowOps<T>, codec: Arc<dyn Codec<T>>) {
    let (disk, directory) = (Arc::clone(&durable.disk), durable.segments.clone());
    let merge = move |group: &MergeGroup, closed: EventTime, label: &SegmentLabel, cancelled: &AtomicBool| {
        let RowOps { order, add, window, is_zero, is_tombstone } = kind;
        let (codec, keep) = (Arc::clone(&codec), |row: &T| !(is_zero(row) || group.oldest && is_tombstone(row)));
        let merging =
            compaction::MergeOptions { codec, order, add, window, keep: &keep, expired_through: closed, cancelled };
        compaction::merge(&disk, &directory, &group.inputs, label, &merging)
    };
    durable.merges.add(name, Box::new(merge));
}

/// The stored rows of a step, while the flow is built.
pub(crate) struct RegisteredOperator<T> {
    kind: RowOps<T>,
    codec: CodecCell<T>,
    /// Conversions from earlier types of rows, the latest first.
    earlier: RefCell<Vec<Arc<dyn EarlierRows<T>>>>,
}

impl<T: Record> RegisteredOperator<T> {
    /// Adds the conversion of rows of an earlier type.
    pub(crate) fn convert<Old: Record>(&self, kind: RowOps<Old>, convert: impl Fn(Old) -> T + Send + Sync + 'static) {
        let RowOps { order, add, window, .. } = kind;
        let codec = Arc::new(NamedPostcard::of_any_names());
        let converted = ConvertedRows { codec, order, add, window, convert };
        self.earlier.borrow_mut().push(Arc::new(converted));
    }

    fn finish(&self, step: &str) -> StepRows {
        let RowOps { order, add, window, .. } = self.kind;
        let (codec, earlier) = (Arc::clone(&self.codec.borrow()), self.earlier.take());
        let migration = Box::new(MigratedRows { codec, order, add, window, earlier });
        StepRows { step: step.to_owned(), migration }
    }
}

/// Registers the conversion of a step's rows of an earlier type; returns `false` if the step's rows are not of type `T`.
pub(crate) fn try_convert_rows<Old: Record, T: Record>(
    flow: &Flow<'_>,
    name: &str,
    earlier: RowOps<Old>,
    convert: impl Fn(Old) -> T + Send + Sync + 'static,
) -> bool {
    let operator = flow.build.registry.rows_of::<RegisteredOperator<T>>(name);
    let found = operator.is_some();
    if let Some(operator) = operator {
        operator.convert(earlier, convert);
    }
    found
}

/// Like [`try_convert_rows`], but fails the job if the step's rows are of another type.
pub(crate) fn convert_rows<Old: Record, T: Record>(
    flow: &Flow<'_>,
    name: &str,
    earlier: RowOps<Old>,
    convert: impl Fn(Old) -> T + Send + Sync + 'static,
) {
    if flow.build.mode != BuildMode::Run && !try_convert_rows(flow, name, earlier, convert) {
        flow.build.failure.set(not_its_rows(name));
    }
}

/// The error for a conversion to other rows than those of the step.
pub(crate) fn not_its_rows(name: &str) -> Error {
    let error = Error::usage("`.migrate` converts to another type than the step keeps").at_step(name);
    error.help("put it directly behind the step, and return the type of the step's own values")
}

/// Registers the rows of a step for the check of a state, and for their migration. Where the job runs, both are over.
fn register_rows<T: Record>(flow: &Flow<'_>, name: &str, kind: RowOps<T>, codec: &CodecCell<T>) {
    if flow.build.mode == BuildMode::Run {
        return;
    }
    let operator = Rc::new(RegisteredOperator { kind, codec: Rc::clone(codec), earlier: RefCell::default() });
    let (finished, step) = (Rc::clone(&operator), name.to_owned());
    flow.build.registry.add_rows(name, operator, Box::new(move || finished.finish(&step)));
}

/// Returns the rows that a snapshot has of a step, at the snapshot's epoch, on the workers that read the segments;
/// `None` without a snapshot.
pub(crate) fn load<'f, T: Record>(
    flow: &Flow<'f>,
    name: &str,
    kind: RowOps<T>,
    codec: CodecCell<T>,
) -> Option<TimelyStream<'f, u64, Vec<T>>> {
    let names = flow.build.registry.aggregate_names(name);
    if names != NameTree::None {
        *codec.borrow_mut() = Arc::new(NamedPostcard::new(names));
    }
    register_rows(flow, name, kind, &codec);
    let durable = flow.build.durable.as_ref()?;
    let epoch = durable.gate()?;
    let state = durable.step(name);
    let closed = state.map_or(EventTime::MIN, |state| state.closed);
    let segments = state.map(|state| state.segments.as_slice()).unwrap_or_default();
    let segments = if flow.has_fault(Fault::LoseSegment) { segments.get(1..).unwrap_or_default() } else { segments };
    let mine = segments.iter().enumerate().filter(|(at, _)| at % durable.peers == durable.worker);
    // A segment all of whose rows are expired is not read.
    let mine: Vec<SegmentInfo> =
        mine.filter(|(_, info)| !info.is_expired(closed)).map(|(_, info)| info.clone()).collect();
    let mut builder = OperatorBuilder::new(format!("Load: {name}"), flow.scope);
    let (output, stream) = builder.new_output();
    let mut output = OutputBuilder::<_, CapacityContainerBuilder<_>>::from(output);
    let info = builder.operator_info();
    let activator = flow.scope.activator_for(Rc::clone(&info.address));
    let (disk, directory) = (Arc::clone(&durable.disk), durable.segments.clone());
    let failure = Arc::clone(&durable.failure);
    builder.build(move |mut capabilities| {
        let mut capability = capabilities.pop().map(|capability| capability.delayed(&epoch));
        let mut loading = SegmentLoader { disk, directory, segments: mine.into_iter(), open: None, kind, closed };
        let mut rows = Vec::new();
        move |_frontiers| {
            let Some(held) = &capability else { return };
            let codec = Arc::clone(&codec.borrow());
            match loading.next(&*codec, &mut rows) {
                Ok(true) => {
                    if !rows.is_empty() {
                        output.activate().session(held).give_container(&mut rows);
                        rows.clear();
                    }
                    activator.activate();
                }
                Ok(false) => capability = None,
                // The capability is kept: downstream must not use an incomplete set of rows.
                Err(why) => failure.set(why),
            }
        }
    });
    Some(stream)
}

/// Reads the rows of segments, block by block.
struct SegmentLoader<T> {
    disk: Arc<dyn Disk>,
    directory: PathBuf,
    segments: std::vec::IntoIter<SegmentInfo>,
    open: Option<(SegmentReader, usize)>,
    kind: RowOps<T>,
    closed: EventTime,
}

impl<T: Record> SegmentLoader<T> {
    /// Appends the rows of the next block to `rows`; returns `false` if there is none.
    fn next(&mut self, codec: &dyn Codec<T>, rows: &mut Vec<T>) -> Result<bool> {
        loop {
            if let Some((reader, block)) = &mut self.open {
                if *block < reader.blocks().len() {
                    reader.read_block(*block, codec, rows)?;
                    *block += 1;
                    rows.retain(|row| (self.kind.window)(row) > self.closed);
                    return Ok(true);
                }
                self.open = None;
            }
            let Some(segment) = self.segments.next() else { return Ok(false) };
            self.open = Some((SegmentReader::open_named(&*self.disk, &self.directory, &segment)?, 0));
        }
    }
}
