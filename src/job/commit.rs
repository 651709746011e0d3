//! Snapshots: what makes one consistent cut of what all writers say of an epoch.
//!
//! * Worker 0 announces a snapshot epoch, one at a time, as it begins it: above all frontiers.
//! * The operator of [`commit`] gathers the parts of it; when the frontier of the parts stream has passed the epoch, all
//!   that the parts name is durable, and [`Snapshots`] makes a manifest of them, on a thread of its own.
//! * After a manifest is written, older ones than are to be kept go, and with them what only they named: segments, and
//!   the journal through the oldest that is kept.
//!
//! Segments are merged in the background, on another thread; a merged segment takes the place of its inputs in the next
//! manifest. Inputs go when no kept manifest names them.
//!
//! Invariants: nothing that a kept manifest names is removed; nothing is written or removed once a later life has begun.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime};

use timely::dataflow::Stream;
use timely::dataflow::channels::pact::Exchange;
use timely::dataflow::operators::generic::operator::Operator;

use crate::durable::background::Background;
use crate::durable::compaction;
use crate::durable::journal::{Bound, Journal};
use crate::durable::manifest::{Manifest, QueryPrint, SinkState, SourceState, StepState};
use crate::durable::recovery::Claim;
use crate::durable::segment::{Label, SegmentInfo};
use crate::durable::state::StateDir;
use crate::error::Result;
use crate::metrics::{Metrics, Snapshot};
use crate::stream::Failure;
use crate::stream::cut::{Merges, Part};
use crate::thread::Role;
use crate::time::{Epoch, EventTime};

/// Gathers the parts of each snapshot on worker 0, and hands them over when they are all there; worker 0 is in the
/// process that has the snapshots.
pub(crate) fn commit(parts: Stream<'_, u64, Vec<Part>>, snapshots: Option<Arc<Snapshots>>) {
    let mut gathered = BTreeMap::<u64, Vec<Part>>::new();
    parts.sink(Exchange::new(|_part: &Part| 0), "Commit", move |(input, frontier)| {
        input.for_each(|capability, parts| {
            let Some(&epoch) = capability.least() else { return };
            gathered.entry(epoch).or_default().append(parts);
        });
        while let Some(entry) = gathered.first_entry().filter(|entry| !frontier.less_equal(entry.key())) {
            let (epoch, parts) = entry.remove_entry();
            if let Some(snapshots) = &snapshots {
                snapshots.make(Epoch(epoch), parts);
            }
        }
    });
}

/// What snapshots go by.
pub(crate) struct Terms {
    pub(crate) job: String,
    pub(crate) query: QueryPrint,
    /// What the life goes on from.
    pub(crate) claim: Claim,
    /// How many manifests are kept.
    pub(crate) keep: usize,
    pub(crate) metrics: Arc<Metrics>,
}

/// Makes the manifests of one life.
pub(crate) struct Snapshots {
    terms: Terms,
    dir: Arc<StateDir>,
    journal: Arc<dyn Journal>,
    merges: Arc<Merges>,
    failure: Arc<Failure>,
    /// The epoch of the last manifest that was written; 0 before the first of this life.
    committed: AtomicU64,
    /// One more than the epoch through which journals are not needed any more; 0 before there is one.
    cut: AtomicU64,
    /// The epoch of the snapshot after which nothing comes, as all is over; `u64::MAX` before that is known.
    last: AtomicU64,
    /// When the epoch of the snapshot that is on its way ended.
    ended_at: Mutex<Instant>,
    kept: Mutex<Kept>,
    merging: AtomicBool,
    manifests: Background,
    merger: Background,
}

/// What is named, and by what.
#[derive(Default)]
struct Kept {
    /// The segments of each step that the next manifest names, apart from new ones.
    live: BTreeMap<String, Vec<SegmentInfo>>,
    /// Merges that are done and not yet in a manifest: of which step, what went in, what came out.
    merged: Vec<(String, Vec<String>, Option<SegmentInfo>)>,
    merges: u64,
}

impl Snapshots {
    /// Goes on from a manifest, or from nothing.
    pub(crate) fn start(
        terms: Terms,
        dir: Arc<StateDir>,
        journal: Arc<dyn Journal>,
        merges: Arc<Merges>,
        failure: Arc<Failure>,
        base: Option<&Manifest>,
    ) -> Result<Arc<Self>> {
        let steps = base.map(|base| base.steps.clone()).unwrap_or_default();
        let live = steps.into_iter().map(|step| (step.name, step.segments)).collect();
        let kept = Kept { live, ..Kept::default() };
        Ok(Arc::new(Snapshots {
            terms,
            dir,
            journal,
            merges,
            failure,
            committed: AtomicU64::new(0),
            cut: AtomicU64::new(0),
            last: AtomicU64::new(u64::MAX),
            ended_at: Mutex::new(Instant::now()),
            kept: Mutex::new(kept),
            merging: AtomicBool::new(false),
            manifests: Background::start(Role::Manifests)?,
            merger: Background::start(Role::Merges)?,
        }))
    }

    /// The epoch of the last manifest of this life that was written.
    pub(crate) fn committed(&self) -> Epoch {
        Epoch(self.committed.load(Ordering::Acquire))
    }

    /// The epoch through which journals are not needed any more, if any.
    pub(crate) fn cut(&self) -> Option<Epoch> {
        self.cut.load(Ordering::Acquire).checked_sub(1).map(Epoch)
    }

    /// Says that the epoch of the snapshot that was announced has ended: from now on it takes time.
    pub(crate) fn epoch_ended(&self) {
        *self.ended_at.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// Says that the snapshot of this epoch is the last: all sources have ended.
    pub(crate) fn ends_with(&self, epoch: Epoch) {
        self.last.store(epoch.0, Ordering::Release);
    }

    /// Returns when the last manifest is written; at once if the job has failed. A merge that has not begun is let go.
    pub(crate) fn finish(&self) {
        if self.failure.get().is_some() {
            self.manifests.abandon();
        }
        self.merger.abandon();
        self.manifests.finish();
        self.merger.finish();
    }

    /// Has the manifest of an epoch made of its parts.
    fn make(self: &Arc<Self>, epoch: Epoch, parts: Vec<Part>) {
        let own = Arc::clone(self);
        self.manifests.ask(move || {
            if own.failure.get().is_none()
                && let Err(error) = own.write(epoch, parts)
            {
                own.failure.set(error);
            }
        });
    }

    fn write(self: &Arc<Self>, epoch: Epoch, parts: Vec<Part>) -> Result<()> {
        let new = |part: &Part| match part {
            Part::Cut(_, _, Some(segment)) => (segment.rows, segment.bytes),
            _ => (0, 0),
        };
        let (rows, bytes) = parts.iter().map(new).fold((0, 0), |sum, new| (sum.0 + new.0, sum.1 + new.1));
        let manifest = self.assemble(epoch, parts, &mut self.kept());
        let still_current = self.dir.still_current(self.terms.claim.incarnation);
        manifest.write(&**self.dir.disk(), &self.dir.manifests(), &still_current)?;
        let took = self.ended_at.lock().unwrap_or_else(PoisonError::into_inner).elapsed();
        self.terms.metrics.snapshots.add(Snapshot { epoch: epoch.0, took, rows, bytes });
        self.committed.store(epoch.0, Ordering::Release);
        // What nothing names any more goes, and the journal that no snapshot needs.
        if let Some(oldest) = self.dir.collect_garbage(&self.terms.claim, self.terms.keep, &[])?.oldest {
            self.journal.cut(oldest);
            self.cut.store(oldest.0 + 1, Ordering::Release);
        }
        self.merge(&manifest);
        Ok(())
    }

    /// Puts parts together; `kept` gets what the manifest names.
    fn assemble(&self, epoch: Epoch, parts: Vec<Part>, kept: &mut Kept) -> Manifest {
        let mut sources = BTreeMap::<String, (Vec<Bound>, EventTime, Vec<(u32, EventTime)>)>::new();
        let mut steps = BTreeMap::<String, EventTime>::new();
        let mut sinks = Vec::<SinkState>::new();
        for part in parts {
            match part {
                Part::Source(name, bounds) => sources.entry(name).or_default().0.extend(bounds),
                Part::Mark(name, watermark, floors) => {
                    let source = sources.entry(name).or_default();
                    (source.1, source.2) = (watermark, floors);
                }
                Part::Cut(name, closed, segment) => {
                    let known = steps.entry(name.clone()).or_insert(closed);
                    assert!(*known == closed, "all workers have closed the same windows of step `{name}`");
                    kept.live.entry(name).or_default().extend(segment);
                }
                Part::Sink(state) => sinks.push(state),
            }
        }
        kept.take_merged();
        let states = steps.into_iter().map(|(name, closed)| {
            let live = kept.live.entry(name.clone()).or_default();
            live.retain(|segment| !segment.is_dead(closed));
            StepState { name, closed, segments: live.clone() }
        });
        let steps = states.collect();
        sinks.sort_by(|a, b| a.name.cmp(&b.name));
        let sources = sources.into_iter().map(|(name, (mut bounds, watermark, floors))| {
            bounds.sort();
            SourceState { name, bounds, watermark, floors }
        });
        let wall = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Manifest {
            state: self.dir.id(),
            job: self.terms.job.clone(),
            incarnation: self.terms.claim.incarnation,
            epoch,
            made_ms: u64::try_from(wall.as_millis()).unwrap_or_default(),
            ended: self.last.load(Ordering::Acquire) == epoch.0,
            query: self.terms.query.clone(),
            sources: sources.collect(),
            steps,
            sinks,
        }
    }

    /// Begins a merge, if there is something to merge and none is on its way.
    fn merge(self: &Arc<Self>, base: &Manifest) {
        for step in &base.steps {
            let group = compaction::choose(&step.segments, step.closed).merges.into_iter().next();
            let Some((group, merge)) = group.zip(self.merges.of(&step.name)) else { continue };
            if self.merging.swap(true, Ordering::AcqRel) {
                return;
            }
            let (own, name, closed) = (Arc::clone(self), step.name.clone(), step.closed);
            self.merger.ask(move || {
                let label = own.label(&group.inputs);
                match merge(&group, closed, &label) {
                    Ok(output) => {
                        own.terms.metrics.snapshots.merged.add(output.as_ref().map_or(0, |output| output.bytes));
                        let inputs = group.inputs.into_iter().map(|input| input.file).collect();
                        own.kept().merged.push((name, inputs, output));
                    }
                    Err(error) => own.failure.set(error),
                }
                own.merging.store(false, Ordering::Release);
            });
            return;
        }
    }

    /// Names a merged segment: no worker and no other merge has the name.
    fn label(&self, group: &[SegmentInfo]) -> Label {
        let mut kept = self.kept();
        kept.merges += 1;
        Label::of_sum(group, self.terms.claim.incarnation, u32::MAX, kept.merges)
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    /// Puts merged segments in the place of those that they were made of, where those are still there.
    fn take_merged(&mut self) {
        for (step, inputs, output) in std::mem::take(&mut self.merged) {
            let live = self.live.entry(step).or_default();
            let there = inputs.iter().all(|input| live.iter().any(|segment| segment.file == *input));
            if !there {
                continue; // An input has died meanwhile: the others stay as they are.
            }
            live.retain(|segment| !inputs.contains(&segment.file));
            live.extend(output);
        }
    }
}
