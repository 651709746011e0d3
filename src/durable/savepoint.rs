//! Savepoints: one snapshot of a state in a directory of its own, to be kept, moved, and used to start a new state.
//!
//! ```text
//! SAVEPOINT                   the marker: identity of the snapshot and its state; written last
//! manifests/1700-3.manifest   as in the state
//! segments/*.segment          copies of those that the manifest names
//! ```
//!
//! A new state is restored from a savepoint as if one of its own incarnations had made the snapshot: that incarnation
//! copies the segments, writes a manifest that names them, and then its claim, in which only that manifest counts. The
//! job itself runs as the next incarnation, and resumes from the manifest like any other. Sinks are not part of a
//! savepoint: their results belong to the old state, and those of the new state begin after the snapshot's epoch.
//!
//! Invariants: a directory without the file `SAVEPOINT` is no savepoint, so an unfinished one is never used; every copy
//! is verified at its destination. A state without a claim is new: until the claim is written the restoring incarnation
//! can be repeated, and nothing of it counts. Copied segments get names of incarnation 0, which does not exist.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::declared_changes::DeclaredChanges;
use super::disk::{Disk, DiskFile, is_temporary};
use super::manifest::{Manifest, ManifestId};
use super::migration::{self, StepRows};
use super::recovery::{Claim, ProcessInfo, RecoveryDecision, StateScan};
use super::savepoint_marker::SavepointMarker;
use super::segment::{self, SegmentInfo};
use super::state::StateDir;
use super::{FencingCheck, StateId, disk_error};
use crate::error::{Error, ErrorKind, Result};

/// Number of bytes that are copied at a time.
const PIECE: usize = 1 << 20;

/// A savepoint with its snapshot's manifest.
#[derive(Clone, Debug)]
pub(crate) struct Savepoint {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    manifest: Manifest,
}

/// Exports a snapshot to a savepoint, in a directory that is empty or does not exist; `each` is called with the number
/// of bytes of each piece that was copied.
///
/// # Errors
/// Fails if the directory is not empty, if files of the snapshot are damaged or were removed by the job, or if a disk
/// operation fails. What had been copied is then removed.
pub(crate) fn export(dir: &StateDir, id: ManifestId, to: &Path, each: &mut dyn FnMut(u64)) -> Result<Manifest> {
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
    // Open files stay readable, whatever the job removes meanwhile.
    let named = manifest.steps.iter().flat_map(|step| &step.segments);
    let opened = named.map(|named| CopySource::open(disk, &dir.segments(), named)).collect::<Result<Vec<_>>>()?;
    let mut copied = Vec::new();
    let all = (|| {
        for from in opened {
            let target = segments.join(&from.named.file);
            copied.push(target.clone());
            from.copy(disk, &target, each)?;
        }
        disk.sync_directory(&segments).map_err(cannot)?;
        copied.push(manifests.join(id.to_string()));
        let alone: FencingCheck = Arc::new(|| Ok(()));
        manifest.write(disk, &manifests, &alone)?;
        SavepointMarker::new(manifest.state, id).write(disk, to)
    })();
    if let Err(error) = all {
        // The remaining directories are no savepoint.
        copied.iter().for_each(|path| drop(disk.remove(path)));
        return Err(error);
    }
    Ok(manifest)
}

/// A segment that is open for copying.
struct CopySource<'a> {
    named: &'a SegmentInfo,
    path: PathBuf,
    file: Box<dyn DiskFile>,
}

impl<'a> CopySource<'a> {
    fn open(disk: &dyn Disk, directory: &Path, named: &'a SegmentInfo) -> Result<Self> {
        let path = directory.join(&named.file);
        let file = disk.open(&path).map_err(|why| disk_error("cannot read a segment", path.display(), why))?;
        Ok(CopySource { named, path, file })
    }

    /// Copies the segment, syncs the copy and verifies it. The caller must sync the directory.
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
            let error = Error::of(ErrorKind::StateDamaged, "a segment is damaged").at(self.path.display());
            return Err(error.because("it is a segment, but not the one that was written under this name"));
        }
        Ok(())
    }
}

impl Savepoint {
    /// Opens the savepoint in a directory; its segments are verified when they are copied.
    ///
    /// # Errors
    /// Fails if there is none, if it is damaged or files of it are missing, if its job had ended, or if a disk
    /// operation fails.
    pub(crate) fn open(disk: Arc<dyn Disk>, path: impl Into<PathBuf>) -> Result<Savepoint> {
        let path = path.into();
        let Some(mark) = SavepointMarker::read(&*disk, &path)? else {
            let error = Error::new("there is no savepoint here").at(path.display());
            return Err(error.help("name a directory that `tidegate snapshot export STATE DIR` has made"));
        };
        let file = path.join("manifests").join(mark.manifest.to_string());
        let bytes = disk.read(&file).map_err(|why| disk_error("cannot read the manifest", file.display(), why))?;
        let manifest = Manifest::read(mark.state, mark.manifest, &bytes).map_err(|why| why.at(file.display()))?;
        manifest.verify(&*disk, &path.join("segments"))?;
        if manifest.ended {
            return Err(Error::of(ErrorKind::StateIncompatible, "the savepoint is of a job that had come to its end")
                .at(path.display())
                .because("all its sources were over, and all its windows closed")
                .help("begin a new state without it"));
        }
        Ok(Savepoint { disk, path, manifest })
    }

    /// The snapshot's manifest, as in the state that it was made of.
    #[cfg(test)]
    pub(crate) fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Checks that the savepoint's rows fit a program, under the names of its query.
    ///
    /// # Errors
    /// Fails if they do not, or if a segment cannot be read.
    pub(crate) fn check_rows(&self, changes: &DeclaredChanges, rows: &[StepRows]) -> Result<()> {
        let mut manifest = self.manifest.clone();
        changes.apply_to_manifest(&mut manifest);
        migration::check_rows(&*self.disk, &self.path.join("segments"), manifest.rows(), rows).map(drop)
    }

    /// The manifest for another state, as if its incarnation `incarnation` had made the snapshot.
    fn manifest_for(&self, state: StateId, incarnation: u64) -> Manifest {
        let mut manifest = Manifest { state, incarnation, sinks: Vec::new(), ..self.manifest.clone() };
        let segments = manifest.steps.iter_mut().flat_map(|step| &mut step.segments);
        for (number, segment) in segments.enumerate() {
            segment.file = copy_name(segment, number);
        }
        manifest
    }

    /// Returns the contents that a new state will have after incarnation `incarnation` has restored the savepoint, so
    /// that recovery can be decided before anything is written.
    pub(crate) fn scan_after_restore(&self, dir: &StateDir, incarnation: u64) -> StateScan {
        let manifest = self.manifest_for(dir.id(), incarnation);
        let claim = Claim {
            state: dir.id(),
            incarnation,
            holder: ProcessInfo::this_process(),
            manifests: vec![manifest.id()],
            base: None,
            journals: Vec::new(),
            last_epoch: manifest.epoch,
            query: manifest.query.clone(),
        };
        StateScan {
            claims: [(incarnation, Ok(claim))].into(),
            segments: manifest.segments().map(str::to_owned).collect(),
            manifests: [(manifest.id(), Ok(manifest))].into(),
            ..StateScan::default()
        }
    }

    /// Restores the snapshot to a new state, as its incarnation `incarnation`, which must have begun.
    ///
    /// # Errors
    /// Fails if files of the savepoint are damaged, if a later incarnation has begun, or if a disk operation fails.
    pub(crate) fn restore(&self, dir: &StateDir, incarnation: u64) -> Result<()> {
        let manifest = self.manifest_for(dir.id(), incarnation);
        let still_current = dir.still_current(incarnation);
        still_current()?;
        let named = self.manifest.steps.iter().flat_map(|step| &step.segments);
        for (named, copied) in named.zip(manifest.segments()) {
            let from = CopySource::open(&*self.disk, &self.path.join("segments"), named)?;
            from.copy(&**dir.disk(), &dir.segments().join(copied), &mut |_| {})?;
        }
        let synced = dir.disk().sync_directory(&dir.segments());
        synced.map_err(|why| disk_error("cannot copy the segments", dir.segments().display(), why))?;
        manifest.write(&**dir.disk(), &dir.manifests(), &still_current)?;
        // The claim is written last: it makes the state no longer new.
        let nothing = RecoveryDecision {
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
            return Err(
                Error::of(ErrorKind::Superseded, "another process goes on with this state").at(dir.path().display())
            );
        }
        Ok(())
    }
}

/// The name of a copied segment; no incarnation writes a file of that name.
fn copy_name(segment: &SegmentInfo, number: usize) -> String {
    let SegmentInfo { file, from, to, .. } = segment;
    let step: Vec<&str> = file.splitn(3, '-').take(2).collect();
    format!("{}-life0-worker0-{number}-{from}-{to}.segment", step.join("-"))
}
