//! The start of an incarnation: it inspects the state, decides where to resume, and claims the incarnation.
//!
//! The order matters. The state directory is locked. The number of the incarnation is taken, after which no earlier
//! incarnation publishes anything. Every sink is opened, which fences earlier writers, and then asked for the last
//! epoch that it has published. Manifests and journals are read, files and directories synced. The point to resume from
//! is decided ([`crate::durable::recovery`], a pure function). The incarnation is claimed. A process that was overtaken
//! in the meantime ends.
//!
//! Of several processes process 0 does all this alone; the others read its claim.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::durable::background::Background;
use crate::durable::declared_changes::DeclaredChanges;
use crate::durable::journal::{FileJournal, Frame, Journal, JournalConfig};
use crate::durable::manifest::{Manifest, QueryFingerprint, StepFingerprint};
use crate::durable::migration::{self, Conversions, MigrationTarget, StepRows};
use crate::durable::recovery::{self, Claim, RecoveryInput};
use crate::durable::savepoint::Savepoint;
use crate::durable::state::StateDir;
use crate::durable::{self, Incarnation};
use crate::error::{Error, ErrorKind, Result};
use crate::job::State;
use crate::job::commit::{SnapshotContext, Snapshots};
use crate::metrics::Metrics;
use crate::stream::{DurableContext, JobFailure, PlannedStep};
use crate::thread::ThreadRole;
use crate::time::Epoch;

/// A started incarnation.
pub(crate) struct StartedRun {
    pub(crate) dir: Arc<StateDir>,
    pub(crate) journal: Arc<dyn Journal>,
    /// Writer of snapshots; `None` in processes other than process 0.
    pub(crate) snapshots: Option<Arc<Snapshots>>,
    pub(crate) durable: DurableContext,
    pub(crate) life: Incarnation,
    /// Frames of the journal after the snapshot, to be replayed.
    pub(crate) replay: Vec<Frame>,
    /// The greatest epoch of all earlier incarnations.
    pub(crate) last: Epoch,
}

/// Outcome of starting an incarnation.
pub(crate) enum StartOutcome {
    Started(Box<StartedRun>),
    /// The state is complete; its last manifest.
    Complete(Box<Manifest>),
}

/// Returns the query's fingerprint, as states store it.
pub(crate) fn query_fingerprint(steps: &[PlannedStep], flags: &BTreeMap<String, String>) -> Result<QueryFingerprint> {
    // Views affect neither state nor output.
    let steps = steps.iter().filter(|step| step.kind != "view").map(|step| StepFingerprint {
        kind: step.kind.to_owned(),
        name: step.name.clone(),
        detail: step.detail.clone(),
        fingerprint: step.fingerprint,
    });
    let flags = flags.iter().map(|(flag, value)| (flag.clone(), value.clone()));
    Ok(QueryFingerprint { build: build_id()?, flags: flags.collect(), steps: steps.collect() })
}

/// Returns the build id: checksum and length of this program's executable file.
fn build_id() -> Result<String> {
    use std::io::Read;
    use std::sync::OnceLock;
    static ID: OnceLock<String> = OnceLock::new();
    if let Some(id) = ID.get() {
        return Ok(id.clone());
    }
    let failed = |why: std::io::Error| Error::new("cannot read this program's own file").because(why);
    let mut file = std::fs::File::open("/proc/self/exe").map_err(failed)?;
    let (mut hasher, mut length, mut piece) = (crc32fast::Hasher::new(), 0u64, vec![0; 1 << 20]);
    loop {
        let read = file.read(&mut piece).map_err(failed)?;
        if read == 0 {
            break;
        }
        hasher.update(&piece[..read]);
        length += read as u64;
    }
    Ok(ID.get_or_init(|| format!("{:08x}-{length:x}", hasher.finalize())).clone())
}

/// Opens the savepoint that a new state is to start from; `None` if none is asked for. Fails if the state has been
/// used.
pub(crate) fn savepoint(options: &State, dir: &StateDir) -> Result<Option<Savepoint>> {
    let Some(path) = &options.savepoint else { return Ok(None) };
    if dir.is_new()? {
        return Savepoint::open(Arc::clone(&options.disk), path).map(Some);
    }
    Err(Error::of(ErrorKind::StateIncompatible, "only a new state begins with a savepoint, and this one has been used")
        .at(dir.path().display())
        .help("leave --from-savepoint out to resume from it, or name another directory"))
}

/// Restores a savepoint into a new state, under the incarnation whose number is taken. Fails if an output has results
/// already, or the query in `found` cannot resume from the savepoint.
pub(crate) fn restore(
    savepoint: &Savepoint,
    dir: &StateDir,
    incarnation: u64,
    found: &RecoveryInput<'_>,
    rows: &[StepRows],
) -> Result<()> {
    if let Some(sink) = found.sinks.iter().find(|sink| sink.published.is_some()) {
        return Err(Error::new("a job can only start from a savepoint with new outputs")
            .at(format!("output {}", sink.name))
            .because("it has results already")
            .help("name another one"));
    }
    recovery::decide(found)?;
    savepoint.check_rows(found.changes, rows)?;
    savepoint.restore(dir, incarnation)
}

/// The parts of a job that the start of an incarnation depends on.
pub(crate) struct JobContext<'a> {
    pub(crate) name: &'a str,
    /// The stored rows of the query's steps.
    pub(crate) rows: &'a [StepRows],
    /// Number of workers of all processes.
    pub(crate) workers: usize,
    pub(crate) metrics: &'a Arc<Metrics>,
}

/// Starts an incarnation whose number is taken and whose sinks are open.
pub(crate) fn begin(
    options: &State,
    job: &JobContext<'_>,
    dir: &Arc<StateDir>,
    found: &RecoveryInput<'_>,
    failure: &Arc<JobFailure>,
) -> Result<StartOutcome> {
    let decision = recovery::decide(found)?;
    if decision.ended {
        return decision.base.map(|base| StartOutcome::Complete(Box::new(base))).ok_or_else(|| {
            Error::of(ErrorKind::StateDamaged, "the state has ended, but its last snapshot is not there")
                .at(options.directory.display())
        });
    }
    let conversions = match &decision.base {
        Some(base) => migration::check_rows(&**dir.disk(), &dir.segments(), base.rows(), job.rows)?,
        None => Conversions::new(),
    };
    let Some(claim) = dir.claim(&decision, found.query)? else {
        return Err(
            Error::of(ErrorKind::Superseded, "another process goes on with this state").at(options.directory.display())
        );
    };
    dir.collect_garbage(&claim, options.keep_snapshots, &decision.obsolete)?;
    let (base, replay) = (decision.base, decision.replay);
    let base = base.map(|base| adapted(dir, (&claim, found), base, (job.rows, &conversions))).transpose()?;
    let mut begun = start_process(options, Arc::clone(dir), (&claim, 0, job.workers), (base, replay), failure)?;
    let terms = SnapshotContext {
        job: job.name.to_owned(),
        query: found.query.clone(),
        claim,
        keep: options.keep_snapshots,
        metrics: Arc::clone(job.metrics),
    };
    let (journal, merges) = (Arc::clone(&begun.journal), Arc::clone(&begun.durable.merges));
    let base = begun.durable.base.as_deref();
    begun.snapshots = Some(Snapshots::start(terms, Arc::clone(dir), journal, merges, Arc::clone(failure), base)?);
    Ok(StartOutcome::Started(Box::new(begun)))
}

/// Adapts the manifest that an incarnation resumes from to its query: if the query has other names for what it has, or
/// other types of rows, the manifest is written anew, as one of this incarnation. A crash before that leaves the manifest as
/// it was, and the next incarnation adapts it.
fn adapted(
    dir: &StateDir,
    (claim, found): (&Claim, &RecoveryInput<'_>),
    mut base: Manifest,
    (rows, conversions): (&[StepRows], &Conversions),
) -> Result<Manifest> {
    let is_stored = matches!(found.survey.manifests.get(&base.id()), Some(Ok(stored)) if *stored == base);
    if is_stored && conversions.is_empty() {
        return Ok(base);
    }
    let (disk, segments) = (dir.disk(), &*dir.segments());
    for (name, changes) in conversions {
        let (step, rows) =
            (base.steps.iter_mut().find(|step| step.name == *name), rows.iter().find(|rows| rows.step == *name));
        let Some((step, rows)) = step.zip(rows) else { continue };
        let count: u64 = step.segments.iter().map(|segment| segment.rows).sum();
        tracing::info!("step {name}: {count} rows of the state are written anew: {}", changes.join(", "));
        let (incarnation, expired_through) = (claim.incarnation, step.closed);
        let target = MigrationTarget { disk, segments, incarnation, expired_through };
        step.segments = rows.migration.migrate(&target, &step.segments).map_err(|error| error.at_step(name))?;
    }
    let adapted = Manifest { incarnation: claim.incarnation, query: claim.query.clone(), ..base };
    adapted.write(&**dir.disk(), &dir.manifests(), &dir.still_current(claim.incarnation))?;
    Ok(adapted)
}

/// Explains failures of an incarnation from now on: a later one may have begun.
pub(crate) fn explain_failures(dir: &StateDir, incarnation: u64, failure: &JobFailure) {
    let still_current = dir.still_current(incarnation);
    failure.explain_by(move |error| durable::explain(error, &still_current));
}

/// Joins, as a process other than process 0, the incarnation that process 0 has started; its claim says where to
/// resume.
pub(crate) fn join(
    options: &State,
    incarnation: u64,
    changes: &DeclaredChanges,
    (process, workers): (u32, usize),
    failure: &Arc<JobFailure>,
) -> Result<StartedRun> {
    let dir = StateDir::join(Arc::clone(&options.disk), &options.directory)?;
    explain_failures(&dir, incarnation, failure);
    let claim = dir.claim_of(incarnation)?;
    let found = recovery::claimed(&dir.scan(true)?, &claim, changes)?;
    start_process(options, Arc::new(dir), (&claim, process, workers), found, failure)
}

/// Builds a process's part of an incarnation: its journal, and the state to resume from. Process 0 adds the writer of
/// snapshots.
fn start_process(
    options: &State,
    dir: Arc<StateDir>,
    (claim, process, workers): (&Claim, u32, usize),
    (base, replay): (Option<Manifest>, Vec<Frame>),
    failure: &Arc<JobFailure>,
) -> Result<StartedRun> {
    let place = JournalConfig { file_limit: options.journal_file, ..dir.journal_config(claim, process, workers) };
    let still_current = Arc::clone(&place.still_current);
    let journal: Arc<dyn Journal> = Arc::new(FileJournal::begin(place)?);
    let (incarnation, resumed_from) = (claim.incarnation, base.as_ref().map(|base| base.epoch));
    let durable = DurableContext {
        disk: Arc::clone(&options.disk),
        segments: dir.segments(),
        incarnation,
        worker: 0,
        peers: workers,
        writer: Arc::new(Background::start(ThreadRole::Segments)?),
        base: base.map(Arc::new),
        query: Arc::new(claim.query.clone()),
        merges: Arc::default(),
        failure: Arc::clone(failure),
    };
    let life = Incarnation { state: Some(dir.id()), incarnation, resumed_from, still_current };
    Ok(StartedRun { dir, journal, snapshots: None, durable, life, replay, last: claim.last_epoch })
}
