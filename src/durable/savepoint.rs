//! Savepoints: one snapshot of a state in a directory of its own, to be kept, taken elsewhere, and begun with.
//!
//! ```text
//! SAVEPOINT                   which snapshot of which state this is; written last
//! manifests/1700-3.manifest   as it is in the state
//! segments/*.segment          those that it names, copied
//! ```
//!
//! A new state begins with a savepoint as if a life of it had made the snapshot: that life copies the segments, writes a
//! manifest that names them, and then its claim, in which nothing but that manifest counts. The job's own life is the
//! next one, and goes on from the manifest like any other. Sinks are not part of it: their results are the old state's,
//! and those of the new one begin after the snapshot's epoch.
//!
//! Invariants: a directory without the file `SAVEPOINT` is none, so one that was not finished is never begun with; what
//! is copied is verified where it has come to. A state without a claim is new: until the claim is written the
//! restoring life can be run again, and nothing of it counts. Copied segments get names of life 0, which no life has.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::disk::{Disk, DiskFile, is_temporary};
use super::manifest::{Manifest, ManifestId};
use super::recovery::{Claim, Decision, Holder, Survey};
use super::sealed::Kind;
use super::segment::{self, SegmentInfo};
use super::state::{StateDir, now_ms};
use super::{StateId, StillCurrent, disk_error};
use crate::error::{Error, Result};

const KIND: Kind = Kind { magic: *b"TGSAVEP", version: 1, name: "savepoint" };
/// The file that makes a directory a savepoint.
pub(super) const MARK: &str = "SAVEPOINT";
/// How many bytes are copied at a time.
const PIECE: usize = 1 << 20;

/// What the file `SAVEPOINT` holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Mark {
    state: StateId,
    manifest: ManifestId,
    /// When it was made: milliseconds since 1970, by the wall clock, for people.
    made_ms: u64,
    /// The version of the program that made it, for people.
    program: String,
}

/// A savepoint, and the snapshot that it is.
#[derive(Clone, Debug)]
pub struct Savepoint {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    manifest: Manifest,
}

/// Makes a savepoint of a snapshot, in a directory that is empty or not there; `each` is told of bytes that were copied.
///
/// # Errors
/// If something is in the directory, if files of the snapshot are damaged, or gone because the job has removed them, or
/// if the disk does not let it. What had been copied is then removed.
pub fn export(dir: &StateDir, id: ManifestId, to: &Path, each: &mut dyn FnMut(u64)) -> Result<Manifest> {
    let (disk, manifest) = (&**dir.disk(), dir.manifest(id)?);
    let cannot = |why| disk_error("cannot write the savepoint", to.display(), why);
    let (manifests, segments) = (to.join("manifests"), to.join("segments"));
    for directory in [to, &manifests, &segments] {
        let there = disk.list(directory).map_err(cannot)?.into_iter().find(|name| !is_temporary(name));
        if let Some(name) = there {
            let error =
                Error::new("there is something where the savepoint is to be").at(directory.join(name).display());
            return Err(error.help("name a directory that is empty or not there"));
        }
        disk.create_directory(directory).map_err(cannot)?;
    }
    // Once they are open they are there, whatever the job removes meanwhile.
    let named = manifest.steps.iter().flat_map(|step| &step.segments);
    let opened = named.map(|named| Opened::open(disk, &dir.segments(), named)).collect::<Result<Vec<_>>>()?;
    let mut copied = Vec::new();
    let all = (|| {
        for from in opened {
            let target = segments.join(&from.named.file);
            copied.push(target.clone());
            from.copy(disk, &target, each)?;
        }
        disk.sync_directory(&segments).map_err(cannot)?;
        copied.push(manifests.join(id.to_string()));
        let alone: StillCurrent = Arc::new(|| Ok(()));
        manifest.write(disk, &manifests, &alone)?;
        let program = env!("CARGO_PKG_VERSION").to_owned();
        let mark = Mark { state: manifest.state, manifest: id, made_ms: now_ms(), program };
        disk.create_new(&to.join(MARK), &KIND.seal(&mark)?).map_err(cannot)
    })();
    if let Err(error) = all {
        // What stays is no savepoint.
        copied.iter().for_each(|path| drop(disk.remove(path)));
        return Err(error);
    }
    Ok(manifest)
}

/// A segment that is to be copied.
struct Opened<'a> {
    named: &'a SegmentInfo,
    path: PathBuf,
    file: Box<dyn DiskFile>,
}

impl<'a> Opened<'a> {
    fn open(disk: &dyn Disk, directory: &Path, named: &'a SegmentInfo) -> Result<Self> {
        let path = directory.join(&named.file);
        let file = disk.open(&path).map_err(|why| disk_error("cannot read a segment", path.display(), why))?;
        Ok(Opened { named, path, file })
    }

    /// Copies it for good, and verifies the copy, whose name is synced with its directory by who asks.
    fn copy(self, disk: &dyn Disk, to: &Path, each: &mut dyn FnMut(u64)) -> Result<()> {
        let unreadable = |why| disk_error("cannot read a segment", self.path.display(), why);
        let unwritable = |why| disk_error("cannot copy a segment", to.display(), why);
        let length = self.file.length().map_err(unreadable)?;
        let mut file = disk.create(to).map_err(unwritable)?;
        let (mut at, mut bytes) = (0, vec![0; PIECE]);
        while at < length {
            let piece = &mut bytes[..usize::try_from(length - at).unwrap_or(PIECE).min(PIECE)];
            self.file.read_at(at, piece).map_err(unreadable)?;
            file.append(piece).map_err(unwritable)?;
            at += piece.len() as u64;
            each(piece.len() as u64);
        }
        file.sync().map_err(unwritable)?;
        drop(file);
        let info = SegmentInfo { file: self.named.file.clone(), ..segment::verify(disk, to)? };
        if info != *self.named {
            let error = Error::new("a segment is damaged").at(self.path.display());
            return Err(error.because("it is a segment, but not the one that was written under this name"));
        }
        Ok(())
    }
}

/// The state that a savepoint is of, if a directory is one.
pub(super) fn state_of(disk: &dyn Disk, path: &Path) -> Result<Option<StateId>> {
    Ok(read_mark(disk, path)?.map(|mark| mark.state))
}

fn read_mark(disk: &dyn Disk, path: &Path) -> Result<Option<Mark>> {
    let file = path.join(MARK);
    match disk.read(&file) {
        Err(why) if why.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(why) => Err(disk_error("cannot read the savepoint", file.display(), why)),
        Ok(bytes) => KIND.open(&bytes).map(Some).map_err(|broken| KIND.refusal(broken, file.display())),
    }
}

impl Savepoint {
    /// Opens the savepoint in a directory; what its segments hold is verified when they are copied.
    ///
    /// # Errors
    /// If there is none, if it is damaged or files of it are missing, or if the disk does not let it.
    pub fn open(disk: Arc<dyn Disk>, path: impl Into<PathBuf>) -> Result<Savepoint> {
        let path = path.into();
        let Some(mark) = read_mark(&*disk, &path)? else {
            let error = Error::new("there is no savepoint here").at(path.display());
            return Err(error.help("name a directory that `tidegate snapshot export STATE DIR` has made"));
        };
        let file = path.join("manifests").join(mark.manifest.to_string());
        let bytes = disk.read(&file).map_err(|why| disk_error("cannot read the manifest", file.display(), why))?;
        let manifest = Manifest::read(mark.state, mark.manifest, &bytes).map_err(|why| why.at(file.display()))?;
        manifest.verify(&*disk, &path.join("segments"))?;
        if manifest.ended {
            return Err(Error::new("the savepoint is of a job that had come to its end")
                .at(path.display())
                .because("all its sources were over, and all its windows closed")
                .help("begin a new state without it"));
        }
        Ok(Savepoint { disk, path, manifest })
    }

    /// The snapshot, as the state that it is of had it.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The snapshot as that of another state, made by life `incarnation` of it.
    fn manifest_for(&self, state: StateId, incarnation: u64) -> Manifest {
        let mut manifest = Manifest { state, incarnation, sinks: Vec::new(), ..self.manifest.clone() };
        let segments = manifest.steps.iter_mut().flat_map(|step| &mut step.segments);
        for (number, segment) in segments.enumerate() {
            segment.file = name_of_copy(segment, number);
        }
        manifest
    }

    /// What is in a new state when life `incarnation` of it has put the snapshot there: to be decided on before anything
    /// is written.
    pub fn survey_after(&self, dir: &StateDir, incarnation: u64) -> Survey {
        let manifest = self.manifest_for(dir.id(), incarnation);
        let claim = Claim {
            state: dir.id(),
            incarnation,
            holder: Holder::this_process(),
            manifests: vec![manifest.id()],
            base: None,
            journals: Vec::new(),
            last_epoch: manifest.epoch,
            query: manifest.query.clone(),
        };
        Survey {
            claims: [(incarnation, Ok(claim))].into(),
            segments: manifest.segments().map(str::to_owned).collect(),
            manifests: [(manifest.id(), Ok(manifest))].into(),
            ..Survey::default()
        }
    }

    /// Puts the snapshot into a new state, as life `incarnation` of it, whose number has been taken.
    ///
    /// # Errors
    /// If files of the savepoint are damaged, if a later life has begun, or if the disk does not let it.
    pub fn restore(&self, dir: &StateDir, incarnation: u64) -> Result<()> {
        let manifest = self.manifest_for(dir.id(), incarnation);
        let still_current = dir.still_current(incarnation);
        still_current()?;
        let named = self.manifest.steps.iter().flat_map(|step| &step.segments);
        for (named, copied) in named.zip(manifest.segments()) {
            let from = Opened::open(&*self.disk, &self.path.join("segments"), named)?;
            from.copy(&**dir.disk(), &dir.segments().join(copied), &mut |_| {})?;
        }
        let synced = dir.disk().sync_directory(&dir.segments());
        synced.map_err(|why| disk_error("cannot copy the segments", dir.segments().display(), why))?;
        manifest.write(&**dir.disk(), &dir.manifests(), &still_current)?;
        // With the claim, and not before, the state is no longer new.
        let nothing = Decision {
            incarnation,
            base: None,
            replay: Vec::new(),
            manifests: vec![manifest.id()],
            accepted: Vec::new(),
            torn: Vec::new(),
            last_epoch: manifest.epoch,
            ended: false,
            obsolete: Vec::new(),
        };
        if dir.claim(&nothing, &manifest.query)?.is_none() {
            return Err(Error::new("another process goes on with this state").at(dir.path().display()));
        }
        Ok(())
    }
}

/// What a copied segment is called: no life writes a file of that name.
fn name_of_copy(segment: &SegmentInfo, number: usize) -> String {
    let SegmentInfo { file, from, to, .. } = segment;
    let step: Vec<&str> = file.splitn(3, '-').take(2).collect();
    format!("{}-life0-worker0-{number}-{from}-{to}.segment", step.join("-"))
}
