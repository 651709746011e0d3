//! How a job with state begins a life: it finds out where it is, decides, and claims the life.
//!
//! The order matters, and is this: the state directory is locked; every sink is opened, which fences whoever wrote to it,
//! and then asked what it has shown; manifests and journals are read, their torn tails cut, files and directories synced;
//! it is decided where to go on ([`crate::durable::recovery`], a pure function); the life is claimed; and if another
//! process was faster with that, all but the first two steps are done again.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::durable::background::Background;
use crate::durable::disk::{Disk, OsDisk};
use crate::durable::journal::writer::{FileJournal, Place};
use crate::durable::journal::{Frame, Journal};
use crate::durable::manifest::{Manifest, QueryPrint, StepPrint};
use crate::durable::recovery::{self, Sink};
use crate::durable::state::StateDir;
use crate::durable::{Life, StillCurrent};
use crate::error::{Error, Result};
use crate::job::commit::{Snapshots, Terms};
use crate::stream::cut::Merges;
use crate::stream::{Durable, Failure, PlannedStep};
use crate::time::Epoch;

/// Where a job keeps its state, and how.
#[derive(Clone, Debug)]
pub(crate) struct Keeping {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) directory: PathBuf,
    /// How long there is from one snapshot to the next at least.
    pub(crate) every: Duration,
    /// How many snapshots are kept.
    pub(crate) keep: usize,
    pub(crate) take_over: bool,
    pub(crate) accept_changed_query: bool,
    /// The savepoint that a new state begins with.
    pub(crate) savepoint: Option<PathBuf>,
    /// What of the command line affects output.
    pub(crate) flags: BTreeMap<String, String>,
    /// How many bytes a file of the journal may have.
    pub(crate) journal_limit: u64,
}

impl Keeping {
    /// State in this directory, a snapshot a second, three of them kept.
    pub(crate) fn in_directory(directory: PathBuf) -> Self {
        Keeping {
            disk: OsDisk::shared(),
            directory,
            every: Duration::from_secs(1),
            keep: 3,
            take_over: false,
            accept_changed_query: false,
            savepoint: None,
            flags: BTreeMap::new(),
            journal_limit: Place::LIMIT,
        }
    }
}

/// A life that has begun.
pub(crate) struct Begun {
    pub(crate) dir: Arc<StateDir>,
    pub(crate) journal: Arc<FileJournal>,
    pub(crate) snapshots: Arc<Snapshots>,
    pub(crate) durable: Durable,
    pub(crate) life: Life,
    /// The journal's epochs after the snapshot.
    pub(crate) replay: Vec<Frame>,
    /// The greatest epoch that there ever was.
    pub(crate) last: Epoch,
}

/// What there is to go on from.
pub(crate) enum Beginning {
    Begun(Box<Begun>),
    /// The state has ended: this is its last manifest.
    Ended(Box<Manifest>),
}

/// The query, as states know it.
pub(crate) fn print(steps: &[PlannedStep], flags: &BTreeMap<String, String>) -> Result<QueryPrint> {
    let steps = steps.iter().map(|step| StepPrint {
        kind: step.kind.to_owned(),
        name: step.name.clone(),
        detail: step.detail.clone(),
        fingerprint: step.fingerprint,
    });
    let flags = flags.iter().map(|(flag, value)| (flag.clone(), value.clone()));
    Ok(QueryPrint { build: build_id()?, flags: flags.collect(), steps: steps.collect() })
}

/// What tells this program from every other: a checksum of its executable file.
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

/// Begins a life, once the sinks have been opened.
pub(crate) fn begin(
    keeping: &Keeping,
    job: &str,
    query: &QueryPrint,
    dir: &Arc<StateDir>,
    sinks: &[Sink],
    workers: usize,
    failure: &Arc<Failure>,
) -> Result<Beginning> {
    loop {
        let survey = dir.survey()?;
        let found = survey.found(query.clone(), sinks.to_vec(), keeping.accept_changed_query);
        let decision = recovery::decide(&found)?;
        if let Some(base) = decision.base.clone().filter(|base| base.ended) {
            return Ok(Beginning::Ended(Box::new(base)));
        }
        if !dir.claim(&survey, &decision)? {
            continue;
        }
        let still_current: StillCurrent = dir.still_current(decision.incarnation);
        dir.collect_garbage(&decision, keeping.keep)?;
        let place = Place {
            disk: Arc::clone(&keeping.disk),
            directory: dir.journal(),
            state: dir.id(),
            incarnation: decision.incarnation,
            process: 0,
            workers,
            limit: keeping.journal_limit,
            inherited: decision.accepted.clone(),
            still_current: Arc::clone(&still_current),
        };
        let journal = Arc::new(FileJournal::begin(place)?);
        let merges = Arc::new(Merges::default());
        let terms = Terms {
            job: job.to_owned(),
            query: query.clone(),
            incarnation: decision.incarnation,
            keep: keeping.keep,
        };
        let as_journal: Arc<dyn Journal> = Arc::clone(&journal) as Arc<dyn Journal>;
        let snapshots = Snapshots::start(
            terms,
            Arc::clone(dir),
            as_journal,
            Arc::clone(&merges),
            Arc::clone(failure),
            decision.manifests.clone(),
        )?;
        let durable = Durable {
            disk: Arc::clone(&keeping.disk),
            segments: dir.segments(),
            incarnation: decision.incarnation,
            worker: 0,
            peers: workers,
            writer: Arc::new(Background::start("segments")?),
            base: decision.base.clone().map(Arc::new),
            merges,
            failure: Arc::clone(failure),
        };
        let from = decision.base.as_ref().map(|base| base.epoch);
        let life = Life { state: Some(dir.id()), incarnation: decision.incarnation, from, still_current };
        let (replay, last) = (decision.replay, decision.last_epoch);
        let dir = Arc::clone(dir);
        return Ok(Beginning::Begun(Box::new(Begun { dir, journal, snapshots, durable, life, replay, last })));
    }
}
