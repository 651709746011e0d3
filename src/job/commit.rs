//! Snapshots: the manifests that make one consistent cut of the state of all writers at an epoch.
//!
//! * Worker 0 announces a snapshot epoch, one at a time, as it starts it: above all frontiers.
//! * The operator of [`commit`] gathers the acknowledgements of all writers. When the frontier of their stream has
//!   passed the epoch, all that they name is durable, and [`Snapshots`] writes a manifest of it on a thread of its own.
//! * After a manifest is written, the oldest ones beyond the number to keep are removed, and with them what only they
//!   named: segments, and the journal up to the oldest manifest that is kept.
//!
//! Segments are merged in the background, on another thread; a merged segment replaces its inputs in the next manifest.
//! Inputs are removed when no kept manifest names them.
//!
//! * A manifest **wakes** the merging thread, which merges until no step has anything to merge: one group after the
//!   other, each of the step that has the most segments then. So the number of segments is bounded by what is written
//!   during one merge, whatever the numbers of workers and steps.
//! * A segment that has expired, or was merged again, before any manifest named it is an **orphan**: only this
//!   incarnation knows of it, and removes it after the next manifest, or at its end.
//!
//! Invariants: nothing that a kept manifest names is removed; nothing is written or removed once a later incarnation
//! has started; a stop waits for at most one block of a merge, and leaves none of its file.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime};

use timely::dataflow::Stream;
use timely::dataflow::channels::pact::Exchange;
use timely::dataflow::operators::generic::operator::Operator;
use tracing::Span;
use tracing::field::Empty;

use crate::durable::background::Background;
use crate::durable::compaction::{self, MergeGroup, MergeOutcome};
use crate::durable::journal::{Journal, PartitionProgress};
use crate::durable::manifest::{Manifest, QueryFingerprint, SinkState, SourceState, StepState};
use crate::durable::recovery::Claim;
use crate::durable::segment::{SegmentInfo, SegmentLabel};
use crate::durable::state::StateDir;
use crate::error::Result;
use crate::metrics::{Metrics, SPAN_TARGET, Snapshot};
use crate::stream::JobFailure;
use crate::stream::durable_context::{MergeRegistry, SnapshotAck};
use crate::stream::epochs::EpochBuffer;
use crate::thread::ThreadRole;
use crate::time::{Epoch, EventTime};

/// Gathers the acknowledgements of each snapshot on worker 0, and hands them over when all are there; worker 0 is in
/// the process that writes the manifests.
pub(crate) fn commit(parts: Stream<'_, u64, Vec<SnapshotAck>>, snapshots: Option<Arc<Snapshots>>) {
    let mut gathered = EpochBuffer::<Vec<SnapshotAck>>::default();
    parts.sink(Exchange::new(|_part: &SnapshotAck| 0), "Commit", move |(input, frontier)| {
        input.for_each(|capability, parts| {
            let Some(&epoch) = capability.least() else { return };
            gathered.at(epoch).append(parts);
        });
        while let Some((epoch, parts)) = gathered.next_complete(std::slice::from_ref(frontier)) {
            if let Some(snapshots) = &snapshots {
                snapshots.make(Epoch(epoch), parts);
            }
        }
    });
}

/// The context of an incarnation's snapshots.
pub(crate) struct SnapshotContext {
    pub(crate) job: String,
    pub(crate) query: QueryFingerprint,
    /// The claim of the incarnation, with the point that it resumed from.
    pub(crate) claim: Claim,
    /// Number of manifests to keep.
    pub(crate) keep: usize,
    pub(crate) metrics: Arc<Metrics>,
}

/// Writer of the manifests of one incarnation, and driver of its merges.
pub(crate) struct Snapshots {
    terms: SnapshotContext,
    dir: Arc<StateDir>,
    journal: Arc<dyn Journal>,
    merges: Arc<MergeRegistry>,
    failure: Arc<JobFailure>,
    /// The epoch of the last manifest that was written; 0 before the first of this incarnation.
    committed: AtomicU64,
    /// One more than the last epoch whose journal frames are not needed any more; 0 before there is one.
    cut: AtomicU64,
    /// The epoch of the last snapshot, once all sources have ended; `u64::MAX` before.
    last: AtomicU64,
    /// The time at which the epoch of the pending snapshot ended, and the span from there until its manifest is on disk.
    ended_at: Mutex<(Instant, Span)>,
    live_segments: Mutex<LiveSegments>,
    /// `true` once the job ends: a merge gives up then.
    ending: AtomicBool,
    manifests: Background,
    merger: Background,
}

/// The segments in use, and the files to remove.
#[derive(Default)]
struct LiveSegments {
    /// The segments of each step that the next manifest names, apart from new ones.
    live: BTreeMap<String, Vec<SegmentInfo>>,
    /// By step, the end of the last windows that had expired as of the last manifest.
    closed: BTreeMap<String, EventTime>,
    /// Files of segments that no manifest has named yet.
    unnamed: BTreeSet<String>,
    /// Files of segments that no manifest will ever name.
    orphans: Vec<String>,
    merges: u64,
    /// `true` while the merging thread is at work.
    merging: bool,
}

impl Snapshots {
    /// Starts the threads, with the segments of the manifest to resume from, if there is one.
    pub(crate) fn start(
        terms: SnapshotContext,
        dir: Arc<StateDir>,
        journal: Arc<dyn Journal>,
        merges: Arc<MergeRegistry>,
        failure: Arc<JobFailure>,
        base: Option<&Manifest>,
    ) -> Result<Arc<Self>> {
        let steps = base.map(|base| base.steps.clone()).unwrap_or_default();
        let closed = steps.iter().map(|step| (step.name.clone(), step.closed)).collect();
        let live = steps.into_iter().map(|step| (step.name, step.segments)).collect();
        let live_segments = LiveSegments { live, closed, ..LiveSegments::default() };
        Ok(Arc::new(Snapshots {
            terms,
            dir,
            journal,
            merges,
            failure,
            committed: AtomicU64::new(0),
            cut: AtomicU64::new(0),
            last: AtomicU64::new(u64::MAX),
            ended_at: Mutex::new((Instant::now(), Span::none())),
            live_segments: Mutex::new(live_segments),
            ending: AtomicBool::new(false),
            manifests: Background::start(ThreadRole::Manifests)?,
            merger: Background::start(ThreadRole::Merges)?,
        }))
    }

    /// Returns the epoch of the last manifest that this incarnation has written; 0 before the first.
    pub(crate) fn committed(&self) -> Epoch {
        Epoch(self.committed.load(Ordering::Acquire))
    }

    /// Returns the last epoch whose journal frames are not needed any more, if any.
    pub(crate) fn cut(&self) -> Option<Epoch> {
        self.cut.load(Ordering::Acquire).checked_sub(1).map(Epoch)
    }

    /// Notes that the epoch of the announced snapshot has ended; the snapshot's duration is measured from now.
    pub(crate) fn epoch_ended(&self) {
        let incarnation = self.terms.claim.incarnation;
        let span = tracing::debug_span!(
            target: SPAN_TARGET, parent: None, "snapshot", incarnation, epoch = Empty, rows = Empty, bytes = Empty
        );
        *self.ended_at.lock().unwrap_or_else(PoisonError::into_inner) = (Instant::now(), span);
    }

    /// Marks the snapshot of this epoch as the last: all sources have ended.
    pub(crate) fn ends_with(&self, epoch: Epoch) {
        self.last.store(epoch.0, Ordering::Release);
    }

    /// Waits until the last manifest is written; returns at once if the job has failed. A running merge gives up, as no
    /// manifest would name its output.
    pub(crate) fn finish(&self) {
        if self.failure.get().is_some() {
            self.manifests.abandon();
        }
        self.ending.store(true, Ordering::Release);
        self.merger.abandon();
        self.manifests.finish();
        self.merger.finish();
        let (orphans, unnamed) = {
            let mut live_segments = self.live_segments();
            (std::mem::take(&mut live_segments.orphans), std::mem::take(&mut live_segments.unnamed))
        };
        // Files that remain are named by no manifest, and the next incarnation removes them.
        let _what_stays_is_harmless = self.dir.remove_orphans(&self.terms.claim, orphans.into_iter().chain(unnamed));
    }

    /// Queues the manifest of an epoch, to be made of the acknowledgements.
    fn make(self: &Arc<Self>, epoch: Epoch, parts: Vec<SnapshotAck>) {
        let own = Arc::clone(self);
        self.manifests.submit(move || {
            if own.failure.get().is_none()
                && let Err(error) = own.write(epoch, parts)
            {
                own.failure.set(error);
            }
        });
    }

    fn write(self: &Arc<Self>, epoch: Epoch, parts: Vec<SnapshotAck>) -> Result<()> {
        let (ended_at, span) = {
            let mut pending = self.ended_at.lock().unwrap_or_else(PoisonError::into_inner);
            (pending.0, std::mem::replace(&mut pending.1, Span::none()))
        };
        let _entered = span.enter();
        let new = |part: &SnapshotAck| match part {
            SnapshotAck::Operator(_, _, Some(segment)) => (segment.rows, segment.bytes),
            _ => (0, 0),
        };
        let (rows, bytes) = parts.iter().map(new).fold((0, 0), |sum, new| (sum.0 + new.0, sum.1 + new.1));
        let manifest = self.assemble(epoch, parts, &mut self.live_segments());
        let still_current = self.dir.still_current(self.terms.claim.incarnation);
        manifest.write(&**self.dir.disk(), &self.dir.manifests(), &still_current)?;
        let took = ended_at.elapsed();
        span.record("epoch", epoch.0).record("rows", rows).record("bytes", bytes);
        self.terms.metrics.snapshots.add(Snapshot { epoch: epoch.0, took, rows, bytes });
        self.committed.store(epoch.0, Ordering::Release);
        // Removes files that nothing names any more, and the journal that no snapshot needs.
        let orphans = std::mem::take(&mut self.live_segments().orphans);
        let obsolete: Vec<_> = orphans.iter().map(|name| format!("segments/{name}")).collect();
        if let Some(oldest) = self.dir.collect_garbage(&self.terms.claim, self.terms.keep, &obsolete)?.oldest {
            self.journal.truncate(oldest);
            self.cut.store(oldest.0 + 1, Ordering::Release);
        }
        self.live_segments().closed = manifest.steps.into_iter().map(|step| (step.name, step.closed)).collect();
        self.start_merging();
        Ok(())
    }

    /// Builds the manifest of an epoch, and updates `live_segments` with the segments that it names.
    fn assemble(&self, epoch: Epoch, parts: Vec<SnapshotAck>, live_segments: &mut LiveSegments) -> Manifest {
        let mut sources = BTreeMap::<String, (Vec<PartitionProgress>, EventTime, Vec<(u32, EventTime)>)>::new();
        let mut steps = BTreeMap::<String, EventTime>::new();
        let mut sinks = Vec::<SinkState>::new();
        for part in parts {
            match part {
                SnapshotAck::Source(name, bounds) => {
                    let bounds = bounds.into_iter().map(|(progress, topic)| PartitionProgress { topic, ..progress });
                    sources.entry(name).or_default().0.extend(bounds);
                }
                SnapshotAck::Watermark(name, watermark, activation_watermarks) => {
                    let source = sources.entry(name).or_default();
                    (source.1, source.2) = (watermark, activation_watermarks);
                }
                SnapshotAck::Operator(name, closed, segment) => {
                    let known = steps.entry(name.clone()).or_insert(closed);
                    assert!(*known == closed, "all workers have closed the same windows of step `{name}`");
                    live_segments.unnamed.extend(segment.iter().map(|segment| segment.file.clone()));
                    live_segments.live.entry(name).or_default().extend(segment);
                }
                SnapshotAck::Sink(state) => sinks.push(state),
            }
        }
        let states = steps.into_iter().map(|(name, closed)| {
            let live = live_segments.live.entry(name.clone()).or_default();
            live.retain(|segment| !segment.is_expired(closed));
            StepState { name, closed, segments: live.clone() }
        });
        let steps: Vec<StepState> = states.collect();
        live_segments.named_by(&steps);
        sinks.sort_by(|a, b| a.name.cmp(&b.name));
        let sources = sources.into_iter().map(|(name, (mut progress, watermark, activation_watermarks))| {
            progress.sort();
            SourceState { name, progress, watermark, activation_watermarks }
        });
        let wall = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Manifest {
            state: self.dir.id(),
            job: self.terms.job.clone(),
            incarnation: self.terms.claim.incarnation,
            epoch,
            created_ms: u64::try_from(wall.as_millis()).unwrap_or_default(),
            ended: self.last.load(Ordering::Acquire) == epoch.0,
            query: self.terms.query.clone(),
            sources: sources.collect(),
            steps,
            sinks,
        }
    }

    /// Starts merging, unless the merging thread is at work already.
    fn start_merging(self: &Arc<Self>) {
        if !std::mem::replace(&mut self.live_segments().merging, true) {
            let own = Arc::clone(self);
            self.merger.submit(move || while own.merge_next() {});
        }
    }

    /// Merges one group of segments, if there is one; returns `true` if there may be more.
    fn merge_next(&self) -> bool {
        let chosen = {
            let mut live_segments = self.live_segments();
            let chosen =
                live_segments.next_merge(|step| self.merges.of(step)).filter(|_| !self.ending.load(Ordering::Acquire));
            live_segments.merging = chosen.is_some();
            chosen
        };
        let Some((step, closed, group, merge)) = chosen else { return false };
        let label = self.label(&group.inputs);
        match merge(&group, closed, &label, &self.ending) {
            Ok(merged @ (MergeOutcome::Segment(_) | MergeOutcome::Empty)) => {
                let output = merged.segment();
                self.terms.metrics.snapshots.merged.add(output.as_ref().map_or(0, |output| output.bytes));
                self.live_segments().take_merged(&step, &group.inputs, output);
                true
            }
            Ok(MergeOutcome::Cancelled) => false,
            // Inputs that have expired meanwhile are removed when no kept manifest names them any more.
            Err(_) if !self.live_segments().are_live(&step, &group.inputs) => true,
            Err(error) => {
                self.failure.set(error);
                false
            }
        }
    }

    /// Returns a label for a merged segment that no worker and no other merge uses.
    fn label(&self, group: &[SegmentInfo]) -> SegmentLabel {
        let mut live_segments = self.live_segments();
        live_segments.merges += 1;
        SegmentLabel::of_merge(group, self.terms.claim.incarnation, u32::MAX, live_segments.merges)
    }

    fn live_segments(&self) -> MutexGuard<'_, LiveSegments> {
        self.live_segments.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LiveSegments {
    /// Returns the next merge: of the steps that have something to merge and are known to `merge`, the one with the
    /// most segments; its smallest first. With it the end of its last expired windows.
    fn next_merge<M>(&self, merge: impl Fn(&str) -> Option<M>) -> Option<(String, EventTime, MergeGroup, M)> {
        let mut steps: Vec<_> = self.live.iter().collect();
        steps.sort_by_key(|(_, live)| Reverse(live.len()));
        steps.into_iter().find_map(|(name, live)| {
            let closed = *self.closed.get(name)?;
            let group = compaction::plan_compaction(live, closed).merges.into_iter().next()?;
            Some((name.clone(), closed, group, merge(name)?))
        })
    }

    /// `true` if all of these segments of a step are still named by the next manifest.
    fn are_live(&self, step: &str, segments: &[SegmentInfo]) -> bool {
        let live = self.live.get(step).map_or(&[][..], Vec::as_slice);
        segments.iter().all(|segment| live.iter().any(|live| live.file == segment.file))
    }

    /// Replaces those inputs of a merge that have not expired meanwhile by its output; the rows of expired inputs have
    /// expired in the output too.
    fn take_merged(&mut self, step: &str, inputs: &[SegmentInfo], output: Option<SegmentInfo>) {
        let live = self.live.entry(step.to_owned()).or_default();
        let before = live.len();
        live.retain(|segment| inputs.iter().all(|input| input.file != segment.file));
        if live.len() < before {
            self.unnamed.extend(output.iter().map(|output| output.file.clone()));
            live.extend(output);
        } else {
            self.orphans.extend(output.map(|output| output.file));
        }
        let merged_again = inputs.iter().filter(|input| self.unnamed.remove(&input.file));
        self.orphans.extend(merged_again.map(|input| input.file.clone()));
    }

    /// Notes the segments that a manifest names; a segment that it could have named and does not is an orphan.
    fn named_by(&mut self, steps: &[StepState]) {
        let named = |name: &String| steps.iter().flat_map(|step| &step.segments).any(|segment| segment.file == *name);
        let unnamed = std::mem::take(&mut self.unnamed);
        self.orphans.extend(unnamed.into_iter().filter(|name| !named(name)));
    }
}

#[cfg(test)]
mod tests;
