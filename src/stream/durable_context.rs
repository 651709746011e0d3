//! The durable state of a job, as the flow on one worker sees it, and what a writer contributes to a manifest.
//!
//! Invariant: input at an epoch that is in the snapshot already is dropped ([`DurableContext::gate`]).

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use crate::durable::background::Background;
use crate::durable::compaction::{MergeGroup, MergeOutcome};
use crate::durable::disk::{Disk, OsDisk};
use crate::durable::journal::{PartitionProgress, TopicPartition};
use crate::durable::manifest::{Manifest, QueryFingerprint, SinkState, StepState};
use crate::durable::segment::{SegmentInfo, SegmentLabel};
use crate::error::Result;
use crate::thread::{JobFailure, ThreadRole};
use crate::time::{Epoch, EventTime};

/// The contribution of one writer to a manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum SnapshotAck {
    /// A source's name, and the progress of its partitions on one worker, each with its topic: a progress that is sent to
    /// another process loses that.
    Source(String, Vec<(PartitionProgress, Option<TopicPartition>)>),
    /// A source's name, its stream's watermark, and the activation watermarks of its partitions.
    Watermark(String, EventTime, Vec<(u32, EventTime)>),
    /// A checkpointed operator: its name, the time through which its windows have closed and their rows are expired,
    /// and the segment of its changes; `None` if nothing changed.
    Operator(String, EventTime, Option<SegmentInfo>),
    /// The last epoch that a sink has published.
    Sink(SinkState),
}

impl SnapshotAck {
    /// Creates the contribution of a source.
    pub(crate) fn source(name: &str, progress: impl IntoIterator<Item = PartitionProgress>) -> Self {
        let progress = progress.into_iter().map(|progress| {
            let topic = progress.topic.clone();
            (progress, topic)
        });
        SnapshotAck::Source(name.to_owned(), progress.collect())
    }
}

/// Merges segments of one checkpointed operator unless it is cancelled by the flag; knows the type of the rows.
pub(crate) type MergeFn =
    Box<dyn Fn(&MergeGroup, EventTime, &SegmentLabel, &AtomicBool) -> Result<MergeOutcome> + Send + Sync>;

/// The merge functions of a job's checkpointed operators, for compaction.
#[derive(Default)]
pub(crate) struct MergeRegistry(Mutex<Vec<(String, Arc<MergeFn>)>>);

impl MergeRegistry {
    /// Returns the merge function of a step.
    pub(crate) fn of(&self, step: &str) -> Option<Arc<MergeFn>> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().find(|(name, _)| name == step).map(|(_, merge)| Arc::clone(merge))
    }

    /// Registers the merge function of a step, unless it has one.
    pub(crate) fn add(&self, step: &str, merge: MergeFn) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.iter().all(|(name, _)| name != step) {
            all.push((step.to_owned(), Arc::new(merge)));
        }
    }
}

/// The durable state of a job, as the flow on one worker sees it.
#[derive(Clone)]
pub(crate) struct DurableContext {
    pub(crate) disk: Arc<dyn Disk>,
    /// The directory of the segments.
    pub(crate) segments: PathBuf,
    pub(crate) incarnation: u64,
    pub(crate) worker: usize,
    pub(crate) peers: usize,
    /// The background thread that writes segments.
    pub(crate) writer: Arc<Background>,
    /// The manifest that the job resumes from; `None` at the first start.
    pub(crate) base: Option<Arc<Manifest>>,
    /// The fingerprint of the running query, with the identities of its sources.
    pub(crate) query: Arc<QueryFingerprint>,
    pub(crate) merges: Arc<MergeRegistry>,
    pub(crate) failure: Arc<JobFailure>,
}

impl DurableContext {
    /// Opens the state of a job that has ended; nothing is written to it.
    ///
    /// # Errors
    /// Fails if the background thread cannot be started.
    pub(crate) fn ended(peers: usize, last: Manifest) -> Result<Self> {
        Ok(DurableContext {
            disk: OsDisk::shared(),
            segments: PathBuf::new(),
            incarnation: last.incarnation,
            worker: 0,
            peers,
            writer: Arc::new(Background::start(ThreadRole::Segments)?),
            query: Arc::new(last.query.clone()),
            base: Some(Arc::new(last)),
            merges: Arc::default(),
            failure: Arc::default(),
        })
    }

    /// Returns the epoch of the snapshot that the job resumes from.
    pub(crate) fn from(&self) -> Option<Epoch> {
        self.base.as_ref().map(|base| base.epoch)
    }

    /// Returns the epoch through which input is in the snapshot already, and is dropped.
    pub(crate) fn gate(&self) -> Option<u64> {
        self.from().map(|epoch| epoch.0)
    }

    /// Returns the state of a step in the snapshot.
    pub(crate) fn step(&self, name: &str) -> Option<&StepState> {
        self.base.as_ref()?.steps.iter().find(|step| step.name == name)
    }
}
