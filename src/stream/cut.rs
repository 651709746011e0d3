//! Cuts: where events become durable state.
//!
//! * A **cut** is a step whose rows snapshots keep. At the snapshot epoch c it gives its rows' changes since the last
//!   one to a [`Saver`], which makes a segment of them; when a job goes on from a snapshot, [`load`] reads the rows of
//!   all segments back and sends them through the same exchange as live data, at epoch c.
//! * A [`Part`] is what one writer (a source, a cut, a sink, on one worker) contributes to the manifest of c.
//! * The **parts stream** carries parts to worker 0. Every writer holds a capability of it at the next possible c from
//!   its construction on, and lets go of it when its part is durable; a writer with nothing to say only lets go. So when
//!   the frontier of the stream passes c, the manifest of c is whole: there is no other protocol.
//!
//! Invariants: a part is sent only after what it names is synced, file and directory; rows are encoded in bounded
//! pieces, and no worker waits for a disk; a cut is a sink too: what reaches it at an epoch ≤ c after a job went on from
//! c was counted before, and is dropped ([`Durable::gate`]).

use std::cell::RefCell;
use std::cmp::Ordering;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use serde::{Deserialize, Serialize};
use timely::container::CapacityContainerBuilder;
use timely::dataflow::Stream as TimelyStream;
use timely::dataflow::operators::Capability;
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use timely::scheduling::{Activator, SyncActivator};

use crate::durable::background::Background;
use crate::durable::codec::{Codec, Postcard};
use crate::durable::compaction::{self, Group, Merged};
use crate::durable::disk::{Disk, OsDisk};
use crate::durable::journal::Bound;
use crate::durable::manifest::{Manifest, QueryPrint, SinkState, StepState};
use crate::durable::segment::{BlockBuilder, Label, RawBlock, SegmentInfo, SegmentReader, SegmentWriter};
use crate::error::{Error, Result};
use crate::record::Record;
use crate::stream::{Failure, Fault, Flow, Purpose};
use crate::thread::Role;
use crate::time::{Epoch, EventTime};

/// How many rows are encoded at a time.
const PIECE: usize = 4096;

/// What one writer contributes to a manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Part {
    /// Where one worker's partitions of a source are.
    Source(String, Vec<Bound>),
    /// A source's stream: its watermark, and the floors of its partitions.
    Mark(String, EventTime, Vec<(u32, EventTime)>),
    /// A cut: windows that end here or before are dead, and what has changed.
    Cut(String, EventTime, Option<SegmentInfo>),
    /// What a sink has shown.
    Sink(SinkState),
}

/// Merges segments of one cut, until it is told to give up; knows the rows' types.
pub(crate) type Merge = Box<dyn Fn(&Group, EventTime, &Label, &AtomicBool) -> Result<Merged> + Send + Sync>;

/// What the cuts of a job share with its snapshots.
#[derive(Default)]
pub(crate) struct Merges(Mutex<Vec<(String, Arc<Merge>)>>);

impl Merges {
    /// The way to merge the segments of this cut.
    pub(crate) fn of(&self, step: &str) -> Option<Arc<Merge>> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().find(|(name, _)| name == step).map(|(_, merge)| Arc::clone(merge))
    }

    /// Tells how this cut is merged, if that is not known yet.
    pub(crate) fn add(&self, step: &str, merge: Merge) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.iter().all(|(name, _)| name != step) {
            all.push((step.to_owned(), Arc::new(merge)));
        }
    }
}

/// The durable state of a job, as the flow on one worker sees it.
#[derive(Clone)]
pub(crate) struct Durable {
    pub(crate) disk: Arc<dyn Disk>,
    /// Where segments are.
    pub(crate) segments: PathBuf,
    pub(crate) incarnation: u64,
    pub(crate) worker: usize,
    pub(crate) peers: usize,
    /// Writes segments.
    pub(crate) writer: Arc<Background>,
    /// What the job goes on from.
    pub(crate) base: Option<Arc<Manifest>>,
    /// The query that goes on, with what its sources are known by.
    pub(crate) query: Arc<QueryPrint>,
    pub(crate) merges: Arc<Merges>,
    pub(crate) failure: Arc<Failure>,
}

impl Durable {
    /// A state that has ended: nothing is written to it.
    pub(crate) fn ended(peers: usize, last: Manifest) -> Result<Self> {
        Ok(Durable {
            disk: OsDisk::shared(),
            segments: PathBuf::new(),
            incarnation: last.incarnation,
            worker: 0,
            peers,
            writer: Arc::new(Background::start(Role::Segments)?),
            query: Arc::new(last.query.clone()),
            base: Some(Arc::new(last)),
            merges: Arc::default(),
            failure: Arc::default(),
        })
    }

    /// The snapshot that the job goes on from.
    pub(crate) fn from(&self) -> Option<Epoch> {
        self.base.as_ref().map(|base| base.epoch)
    }

    /// What comes at this epoch or before was counted in an earlier life.
    pub(crate) fn gate(&self) -> Option<u64> {
        self.from().map(|epoch| epoch.0)
    }

    /// What the snapshot has of a step.
    pub(crate) fn step(&self, name: &str) -> Option<&StepState> {
        self.base.as_ref()?.steps.iter().find(|step| step.name == name)
    }
}

/// How the rows of a cut are ordered, added up, and judged.
pub(crate) struct RowKind<T> {
    pub(crate) order: fn(&T, &T) -> Ordering,
    pub(crate) add: fn(&mut T, &T),
    /// Whether a row says nothing.
    pub(crate) is_zero: fn(&T) -> bool,
    /// Whether a row says only that older ones of its key are over.
    pub(crate) is_over: fn(&T) -> bool,
    /// The window's end, which says when the row is dead.
    pub(crate) window: fn(&T) -> EventTime,
}

impl<T> Clone for RowKind<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for RowKind<T> {}

/// A cell for a cut's codec: set while the flow is built, read when it runs.
pub(crate) type CodecCell<T> = Rc<RefCell<Arc<dyn Codec<T>>>>;

/// The default codec.
pub(crate) fn postcard<T: Record>() -> CodecCell<T> {
    Rc::new(RefCell::new(Arc::new(Postcard)))
}

/// Fails the job if it has state, which is about to be opened, and rows of this type cannot be read back.
pub(crate) fn check_rows<T: Record>(flow: &Flow<'_>, name: &str) {
    if flow.build.purpose == Purpose::OpenSinks
        && let Err(why) = Codec::<T>::check(&Postcard)
    {
        let error = Error::usage("cannot keep the rows of a step").at(format!("step `{name}`")).because(why);
        flow.build.failure.set(error.help("map such values to texts or integers before the step"));
    }
}

/// Gives rows out, at most so many a call, in order; answers whether there may be more.
pub(crate) type RowsOut<T> = Box<dyn FnMut(usize, &mut dyn FnMut(T)) -> bool>;

/// Gives rows out that are in order.
pub(crate) fn give_out<T: 'static>(rows: Vec<T>) -> RowsOut<T> {
    let mut rows = rows.into_iter();
    Box::new(move |most, give| {
        rows.by_ref().take(most).for_each(give);
        rows.len() > 0
    })
}

/// What the writing thread made of a segment.
type Outcome = Arc<OnceLock<Result<SegmentInfo>>>;
/// A segment that is being written, for the writing thread.
type Open = Arc<Mutex<Option<Result<SegmentWriter>>>>;

/// A segment on its way.
struct Saving<T> {
    epoch: u64,
    closed: EventTime,
    rows: Option<RowsOut<T>>,
    builder: BlockBuilder<T>,
    open: Option<Open>,
    outcome: Outcome,
}

/// Makes segments of a cut's changes, on one worker.
pub(crate) struct Saver<T> {
    name: String,
    durable: Durable,
    kind: RowKind<T>,
    codec: CodecCell<T>,
    /// Held at the next snapshot epoch that there can be.
    capability: Option<Capability<u64>>,
    /// Changes through this epoch are in segments.
    through: u64,
    saving: Option<Saving<T>>,
    again: Activator,
    wake: Arc<SyncActivator>,
}

impl<T: Record> Saver<T> {
    pub(crate) fn new(
        name: &str,
        durable: Durable,
        kind: RowKind<T>,
        codec: CodecCell<T>,
        capability: Capability<u64>,
        (again, wake): (Activator, SyncActivator),
    ) -> Self {
        let through = durable.gate().unwrap_or(0);
        let (name, capability, wake) = (name.to_owned(), Some(capability), Arc::new(wake));
        Saver { name, durable, kind, codec, capability, through, saving: None, again, wake }
    }

    /// Begins the segment of the changes through `epoch`: `rows` gives them in order, those of windows that end at
    /// `closed` or before left out.
    pub(crate) fn begin(&mut self, epoch: u64, closed: EventTime, rows: Option<RowsOut<T>>) {
        assert!(self.saving.is_none(), "there is one snapshot at a time");
        let codec = Arc::clone(&self.codec.borrow());
        register_merge(&self.name, &self.durable, self.kind, Arc::clone(&codec));
        let builder = BlockBuilder::new(codec);
        let (open, outcome) = (None, Arc::default());
        self.saving = Some(Saving { epoch, closed, rows, builder, open, outcome });
        self.again.activate();
    }

    /// Goes on with what was begun: a piece of the rows, or the end. The part and its capability, when it is durable.
    pub(crate) fn work(&mut self) -> Option<(Capability<u64>, Part)> {
        let saving = self.saving.as_mut()?;
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
                    self.durable.failure.set(why.at(format!("step `{}`", self.name)));
                    return None;
                }
            }
            if more {
                if let Some(saving) = &mut self.saving {
                    saving.rows = Some(rows);
                }
                self.again.activate();
                return None;
            }
            self.finish();
        }
        self.end()
    }

    /// Has a block written.
    fn write(&mut self, block: RawBlock) {
        let Some(saving) = &mut self.saving else { return };
        let open = saving.open.get_or_insert_with(|| {
            let open: Open = Arc::default();
            let label = Label {
                step: self.name.clone(),
                incarnation: self.durable.incarnation,
                worker: self.durable.worker as u32,
                number: saving.epoch,
                from: Epoch(self.through),
                to: Epoch(saving.epoch),
            };
            let (made, disk, directory) =
                (Arc::clone(&open), Arc::clone(&self.durable.disk), self.durable.segments.clone());
            let coding = self.codec.borrow().coding();
            self.durable.writer.ask(move || {
                let writer = SegmentWriter::create(&disk, &directory, &label, &coding);
                *made.lock().unwrap_or_else(PoisonError::into_inner) = Some(writer);
            });
            open
        });
        let open = Arc::clone(open);
        self.durable.writer.ask(move || {
            let mut open = open.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(Ok(writer)) = &mut *open
                && let Err(why) = writer.append(&block)
            {
                *open = Some(Err(why));
            }
        });
    }

    /// Has the segment ended, if there is one.
    fn finish(&mut self) {
        let Some(saving) = &mut self.saving else { return };
        let Some(open) = saving.open.clone() else { return };
        let (outcome, wake) = (Arc::clone(&saving.outcome), Arc::clone(&self.wake));
        self.durable.writer.ask(move || {
            let writer = open.lock().unwrap_or_else(PoisonError::into_inner).take();
            let info = writer.map(|writer| writer.and_then(SegmentWriter::finish));
            let _ = outcome.set(info.unwrap_or_else(|| Err(Error::new("a segment was never begun"))));
            // A worker that has gone needs no waking.
            let _ = wake.activate();
        });
    }

    /// The part, once the segment is durable.
    fn end(&mut self) -> Option<(Capability<u64>, Part)> {
        let saving = self.saving.as_ref()?;
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
        self.saving = None;
        self.through = epoch;
        let held = self.capability.as_mut()?;
        let capability = held.delayed(&epoch);
        held.downgrade(&(epoch + 1));
        Some((capability, Part::Cut(self.name.clone(), closed, segment)))
    }

    /// Whether a segment is on its way.
    pub(crate) fn is_busy(&self) -> bool {
        self.saving.is_some()
    }

    /// Lets go: no snapshot comes any more.
    pub(crate) fn close(&mut self) {
        if self.saving.is_none() {
            self.capability = None;
        }
    }
}

/// Tells snapshots how the segments of a cut are merged.
fn register_merge<T: Record>(name: &str, durable: &Durable, kind: RowKind<T>, codec: Arc<dyn Codec<T>>) {
    let (disk, directory) = (Arc::clone(&durable.disk), durable.segments.clone());
    let merge = move |group: &Group, closed: EventTime, label: &Label, give_up: &AtomicBool| {
        let RowKind { order, add, window, is_zero, is_over } = kind;
        let (codec, keep) = (Arc::clone(&codec), |row: &T| !(is_zero(row) || group.oldest && is_over(row)));
        let merging = compaction::Merging { codec, order, add, window, keep: &keep, dead: closed, give_up };
        compaction::merge(&disk, &directory, &group.inputs, label, &merging)
    };
    durable.merges.add(name, Box::new(merge));
}

/// The rows that a snapshot has of a cut, each at the snapshot's epoch, on whichever worker reads them; `None` if there
/// is no snapshot, or the step is new to it.
pub(crate) fn load<'f, T: Record>(
    flow: &Flow<'f>,
    name: &str,
    kind: RowKind<T>,
    codec: CodecCell<T>,
) -> Option<TimelyStream<'f, u64, Vec<T>>> {
    let durable = flow.build.durable.as_ref()?;
    let epoch = durable.gate()?;
    let state = durable.step(name);
    let closed = state.map_or(EventTime::MIN, |state| state.closed);
    let segments = state.map(|state| state.segments.as_slice()).unwrap_or_default();
    let segments = if flow.fault(Fault::LoseSegment) { segments.get(1..).unwrap_or_default() } else { segments };
    let mine = segments.iter().enumerate().filter(|(at, _)| at % durable.peers == durable.worker);
    // A segment all of whose rows are dead goes unread.
    let mine: Vec<SegmentInfo> = mine.filter(|(_, info)| !info.is_dead(closed)).map(|(_, info)| info.clone()).collect();
    let mut builder = OperatorBuilder::new(format!("Load: {name}"), flow.scope);
    let (output, stream) = builder.new_output();
    let mut output = OutputBuilder::<_, CapacityContainerBuilder<_>>::from(output);
    let info = builder.operator_info();
    let again = flow.scope.activator_for(Rc::clone(&info.address));
    let (disk, directory) = (Arc::clone(&durable.disk), durable.segments.clone());
    let failure = Arc::clone(&durable.failure);
    builder.build(move |mut capabilities| {
        let mut capability = capabilities.pop().map(|capability| capability.delayed(&epoch));
        let mut loading = Loading { disk, directory, segments: mine.into_iter(), open: None, kind, closed };
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
                    again.activate();
                }
                Ok(false) => capability = None,
                // The capability stays: nothing is to come of a part of the rows.
                Err(why) => failure.set(why),
            }
        }
    });
    Some(stream)
}

/// Segments that are being read.
struct Loading<T> {
    disk: Arc<dyn Disk>,
    directory: PathBuf,
    segments: std::vec::IntoIter<SegmentInfo>,
    open: Option<(SegmentReader, usize)>,
    kind: RowKind<T>,
    closed: EventTime,
}

impl<T: Record> Loading<T> {
    /// Reads the next block; answers whether there was one.
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
