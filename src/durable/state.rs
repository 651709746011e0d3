//! The directory of a state: its files, its lock, and its current incarnation.
//!
//! ```text
//! STATE                 identity, written once; locked by the process that uses the state
//! LOCK                  locked by that process too, and signed by it
//! lives/3               incarnation 3 has begun: no older one may write, publish or remove anything any more
//! lives/3.claim         what incarnation 3 resumed from
//! journal/3-0-0.journal incarnation, process, number
//! manifests/1700-3.manifest   epoch, incarnation
//! segments/*.segment    named after the step, a digest of its name, and the incarnation that wrote it
//! WATCHED_AT            HTTP address of the job that uses the state, for users; may be out of date
//! ```
//!
//! An incarnation starts in these steps: [`StateDir::open`] takes the lock; [`StateDir::begin_incarnation`] takes the
//! next number, so that every older incarnation fails its check for being current; the sinks are fenced and report what
//! they have published; [`StateDir::scan_and_sync`] reads the directory and makes everything it has read survive a loss
//! of power; [`decide`] decides; and [`StateDir::claim`] writes the decision, unless a later incarnation has begun
//! meanwhile.
//!
//! The number is taken before anything is read, and not only with the claim. Otherwise an older incarnation that is
//! still running could publish an epoch, or remove files that a newer snapshot of its own had made superfluous, after
//! they were read and before the claim. As it is, an incarnation that was overtaken does at most one more operation
//! after its last check: it adds a journal file or a manifest, which the claim does not name; or it removes files that
//! were superfluous by a manifest that existed before the check, and so also when the later incarnation read the
//! directory.
//!
//! Two files are locked. A user may remove `LOCK` to be rid of a stale lock, and the next process then creates and
//! locks a new one; `STATE` cannot be removed unnoticed. Two cases are not covered: a store whose locks other machines
//! do not see, and a process that took a state over (`--take-over`) while its predecessor still had `STATE` locked, and
//! whose `LOCK` is then removed as well. In these cases the incarnation number alone decides: the older process ends,
//! and results stay exact.
//!
//! Bytes that an incarnation wrote without a confirmed sync are accepted by the next one only in a new copy: a sync
//! that failed in the older incarnation may have dropped them, and a later sync of the same file would report success.
//!
//! Invariants: only an incarnation with a claim writes, and it checks just before that it is current; files to be
//! removed are listed before that check, so none of them is a later incarnation's; an incarnation without a claim has
//! written nothing but its record and equal copies of journal files.
//!
//! [`decide`]: super::recovery::decide

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::clock::now_ms;
use super::disk::{Disk, Lock, is_temporary};
use super::envelope::Envelope;
use super::journal::{FileId, JournalConfig, JournalFile};
use super::manifest::{self, Manifest, ManifestId, QueryFingerprint};
use super::recovery::{Claim, ProcessInfo, RecoveryDecision, StateScan};
use super::savepoint_marker::{SavepointMarker, is_savepoint};
use super::{FencingCheck, StateId, disk_error};
use crate::error::{Error, ErrorKind, Result};
use crate::time::{Epoch, EventTime};

const IDENTITY: Envelope = Envelope { magic: *b"TGSTATE", version: 1, name: "identity of the state" };
const INCARNATION_RECORD: Envelope = Envelope { magic: *b"TGALIFE", version: 1, name: "record of a life" };
/// Version 1 differs only in the contents of a `StepFingerprint`.
const CLAIM: Envelope = Envelope { magic: *b"TGCLAIM", version: 2, name: "claim" };

/// The file with the job's HTTP address.
const WATCHED_AT: &str = "WATCHED_AT";
/// The subdirectories of a state.
const DIRECTORIES: [&str; 4] = ["lives", "journal", "manifests", "segments"];
/// Number of incarnations before the current one whose records are kept, for users.
const RECORDS_KEPT: u64 = 16;
/// Maximum number of incarnation numbers that are tried: others may take them, or the store may hide taken ones.
const NUMBERS_TRIED: usize = 1_000;

/// The contents of the file `STATE`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct StateIdentity {
    id: StateId,
    /// Wall-clock time of its creation, in milliseconds since 1970; for users.
    made_ms: u64,
    /// The version of the program that made it, for users.
    program: String,
}

/// The directory of a state.
#[derive(Debug)]
pub(crate) struct StateDir {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    id: StateId,
    /// Held as long as the value lives; empty if the state was joined without locking it.
    _locks: Vec<Box<dyn Lock>>,
}

/// The outcome of [`StateDir::collect_garbage`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct GarbageCollected {
    /// The epoch of the oldest manifest that was kept, up to which journals may be truncated; `None` if there is no
    /// manifest.
    pub oldest: Option<Epoch>,
    /// Number of files that were removed.
    pub removed: usize,
}

impl StateDir {
    /// Opens a state for a job, creating it if it does not exist, and locks it as long as the value lives. With
    /// `take_over` it also opens a state that another process has locked.
    ///
    /// # Errors
    /// Fails if another process has it locked, if its identity is missing or unreadable, or if a disk operation fails.
    pub(crate) fn open(disk: Arc<dyn Disk>, path: impl Into<PathBuf>, take_over: bool) -> Result<StateDir> {
        let path = path.into();
        let cannot = |why: io::Error| disk_error("cannot open the state", path.display(), why);
        if is_savepoint(&*disk, &path).map_err(cannot)? {
            let error = Error::of(ErrorKind::StateIncompatible, "this is a savepoint, and no state").at(path.display());
            return Err(error.help("begin a new state with it: --state NEW-DIR --from-savepoint DIR"));
        }
        disk.create_directory(&path).map_err(cannot)?;
        let lock = match disk.lock(&path.join("LOCK")).map_err(cannot)? {
            Some(lock) => Some(lock),
            None if take_over => take_lock_over(&*disk, &path).map_err(cannot)?,
            None => return Err(in_use(&*disk, &path)),
        };
        for directory in DIRECTORIES {
            disk.create_directory(&path.join(directory)).map_err(cannot)?;
        }
        let id = match read_identity(&*disk, &path)? {
            Some(identity) => identity.id,
            None => make_identity(&*disk, &path)?.id,
        };
        let second = disk.lock(&path.join("STATE")).map_err(cannot)?;
        if second.is_none() && !take_over {
            return Err(in_use(&*disk, &path));
        }
        let lock = lock.map(|mut lock| lock.sign(&signature(&ProcessInfo::this_process())).map(|()| lock));
        let lock = lock.transpose().map_err(cannot)?;
        Ok(StateDir { disk, path, id, _locks: lock.into_iter().chain(second).collect() })
    }

    /// Opens an existing state or savepoint without locking it: for the other processes of a job, and for inspection.
    ///
    /// # Errors
    /// Fails if there is none, if its identity is unreadable, or if a disk operation fails.
    pub(crate) fn join(disk: Arc<dyn Disk>, path: impl Into<PathBuf>) -> Result<StateDir> {
        let path = path.into();
        match read_identity(&*disk, &path)? {
            Some(StateIdentity { id, .. }) => Ok(StateDir { disk, path, id, _locks: Vec::new() }),
            None => match SavepointMarker::read(&*disk, &path)? {
                Some(SavepointMarker { state: id, .. }) => Ok(StateDir { disk, path, id, _locks: Vec::new() }),
                None => Err(Error::of(ErrorKind::StateMissing, "there is no state here").at(path.display())),
            },
        }
    }

    /// `true` if the directory is a savepoint of a state.
    ///
    /// # Errors
    /// Fails if the directory cannot be listed.
    pub(crate) fn is_savepoint(&self) -> Result<bool> {
        is_savepoint(&*self.disk, &self.path).map_err(self.cannot("read"))
    }

    /// `true` if no incarnation has ever claimed the state or written a journal: a savepoint may then be restored to
    /// it.
    ///
    /// # Errors
    /// Fails if a directory cannot be listed.
    pub(crate) fn is_new(&self) -> Result<bool> {
        let cannot = self.cannot("read");
        let claims = self
            .disk
            .list(&self.records_path())
            .map_err(&cannot)?
            .iter()
            .any(|name| incarnation_of_claim(name).is_some());
        Ok(!claims && self.disk.list(&self.journal()).map_err(&cannot)?.is_empty())
    }

    /// The state's identity.
    pub(crate) fn id(&self) -> StateId {
        self.id
    }

    /// The disk that it is on.
    pub(crate) fn disk(&self) -> &Arc<dyn Disk> {
        &self.disk
    }

    /// The path of its directory.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the process that signed the lock last, and `true` if that process is stopped. `None` if no signature is
    /// readable, or if the process was on this machine and has ended. The lock itself is not tested.
    pub(crate) fn holder(&self) -> Option<(ProcessInfo, bool)> {
        let text = self.disk.read(&self.path.join("LOCK")).ok()?;
        let holder = read_signature(&String::from_utf8_lossy(&text))?;
        if holder.host != ProcessInfo::this_process().host {
            return Some((holder, false));
        }
        let stopped = is_stopped(holder.pid);
        Path::new("/proc").join(holder.pid.to_string()).exists().then_some((holder, stopped))
    }

    /// Records the HTTP address of the job that uses the state; `None` removes the record. It is for users: a failure
    /// is ignored, and the record may be out of date.
    pub(crate) fn record_address(&self, address: Option<&str>) {
        let path = self.path.join(WATCHED_AT);
        let _ = match address {
            Some(address) => self.disk.replace(&path, format!("{address}\n").as_bytes()),
            None => self.disk.remove(&path),
        };
    }

    /// Reads the address that the job recorded; `None` if there is none.
    pub(crate) fn recorded_address(&self) -> Option<String> {
        let told = self.disk.read(&self.path.join(WATCHED_AT)).ok()?;
        String::from_utf8(told).ok().map(|told| told.trim().to_owned())
    }

    /// The directory of the journal.
    pub(crate) fn journal(&self) -> PathBuf {
        self.path.join("journal")
    }

    /// The directory of manifests.
    pub(crate) fn manifests(&self) -> PathBuf {
        self.path.join("manifests")
    }

    /// The directory of segments.
    pub(crate) fn segments(&self) -> PathBuf {
        self.path.join("segments")
    }

    fn records_path(&self) -> PathBuf {
        self.path.join("lives")
    }

    fn cannot(&self, what: &str) -> impl Fn(io::Error) -> Error {
        let place = self.path.display().to_string();
        let what = format!("cannot {what} the state");
        move |why| disk_error(&what, &place, why)
    }

    /// Takes the next incarnation's number. From then on no older incarnation is current, even if the new one fails.
    /// Records of incarnations that are more than `RECORDS_KEPT` back are removed, so that failing starts do not
    /// accumulate files.
    ///
    /// # Errors
    /// Fails if a disk operation fails, or if listing the directory does not show the records in it.
    pub(crate) fn begin_incarnation(&self) -> Result<u64> {
        let cannot = self.cannot("begin a life of");
        let record = INCARNATION_RECORD.seal(&ProcessInfo::this_process())?;
        for _ in 0..NUMBERS_TRIED {
            let next = latest(&*self.disk, &self.records_path()).map_err(&cannot)? + 1;
            match self.disk.create_new(&self.records_path().join(next.to_string()), &record) {
                Err(why) if why.kind() == io::ErrorKind::AlreadyExists => continue,
                made => made.map_err(&cannot)?,
            }
            let mut names = self.disk.list(&self.records_path()).map_err(&cannot)?;
            // Records of old incarnations are removed, which may be why the number was free.
            if names.iter().filter_map(|name| incarnation_of_record(name)).max() == Some(next) {
                // Claims stay: the last one decides from what the state resumes. Removing the records does not change
                // the greatest number.
                names.retain(|name| incarnation_of_claim(name).is_none() && is_obsolete_record(name, next));
                self.remove(names.iter().map(|name| format!("lives/{name}"))).map_err(&cannot)?;
                return Ok(next);
            }
        }
        Err(Error::of(ErrorKind::StateDamaged, "cannot begin a life of the state")
            .at(self.records_path().display())
            .because("the directory does not show files that are in it")
            .help("keep the state on a disk of this machine"))
    }

    /// Returns a check that fails once a later incarnation than this one has begun.
    pub(crate) fn still_current(&self, incarnation: u64) -> FencingCheck {
        let (disk, lives, place) = (self.disk.clone(), self.records_path(), self.path.display().to_string());
        Arc::new(move || {
            let latest = latest(&*disk, &lives).map_err(|why| disk_error("cannot ask the state", &place, why))?;
            if latest <= incarnation {
                return Ok(());
            }
            Err(Error::of(ErrorKind::Superseded, "another process goes on with this state")
                .at(&place)
                .because(format!("its life {latest} has begun, and this is life {incarnation}")))
        })
    }

    /// Reads the directory, and makes everything in it survive a loss of power: only then may an incarnation build on
    /// it. Journals since the last claim are replaced by new copies.
    ///
    /// # Errors
    /// Fails if a disk operation fails. Damaged files are part of the result.
    pub(crate) fn scan_and_sync(&self) -> Result<StateScan> {
        self.look_at(true, true)
    }

    /// Like [`StateDir::scan_and_sync`], but for inspection: nothing is synced or copied. Without `journals` those are
    /// left out.
    ///
    /// # Errors
    /// Fails if a disk operation fails. Damaged files are part of the result.
    pub(crate) fn scan(&self, journals: bool) -> Result<StateScan> {
        self.look_at(journals, false)
    }

    fn look_at(&self, journals: bool, sync: bool) -> Result<StateScan> {
        let mut scan = StateScan::default();
        let cannot = self.cannot("read");
        let mut written = BTreeMap::new();
        for directory in DIRECTORIES {
            let names = self.disk.list(&self.path.join(directory)).map_err(&cannot)?;
            let unfinished = names.iter().filter(|name| is_temporary(name));
            scan.unfinished.extend(unfinished.map(|name| format!("{directory}/{name}")));
            match directory {
                "journal" if journals => {
                    for id in names.iter().filter_map(|name| FileId::parse(name)) {
                        let read = |bytes: &[u8]| {
                            let file = JournalFile::read(self.id, id, bytes)?;
                            if sync {
                                written.insert(id, bytes.to_vec());
                            }
                            Ok(file)
                        };
                        scan.journals.extend(self.read(directory, &id.to_string(), sync, read)?.map(|file| (id, file)));
                    }
                }
                "manifests" => {
                    for id in names.iter().filter_map(|name| ManifestId::parse(name)) {
                        let read = |bytes: &[u8]| Manifest::read(self.id, id, bytes);
                        scan.manifests
                            .extend(self.read(directory, &id.to_string(), sync, read)?.map(|file| (id, file)));
                    }
                }
                "segments" => scan.segments.extend(names.into_iter().filter(|name| !is_temporary(name))),
                _ => {}
            }
        }
        let names = self.disk.list(&self.path).map_err(&cannot)?;
        scan.unfinished.extend(names.into_iter().filter(|name| is_temporary(name)));
        // Claims are read last: if files of an incarnation were seen, so is its claim.
        let names = self.disk.list(&self.records_path()).map_err(&cannot)?;
        for (name, number) in names.iter().filter_map(|name| Some((name, incarnation_of_claim(name)?))) {
            let read = |bytes: &[u8]| read_claim(self.id, number, bytes);
            scan.claims.extend(self.read("lives", name, sync, read)?.map(|claim| (number, claim)));
        }
        // Journals of earlier incarnations were copied by the incarnation that claimed them.
        let last = scan.claims.last_key_value().map_or(0, |(incarnation, _)| *incarnation);
        written.retain(|id, _| id.incarnation >= last);
        for (id, bytes) in written {
            let path = self.journal().join(id.to_string());
            let copied = self.disk.replace(&path, &bytes);
            copied.map_err(|why| disk_error("cannot write a file of the journal anew", path.display(), why))?;
        }
        if sync {
            for directory in DIRECTORIES {
                self.disk.sync_directory(&self.path.join(directory)).map_err(&cannot)?;
            }
            self.disk.sync_directory(&self.path).map_err(&cannot)?;
        }
        Ok(scan)
    }

    /// Reads a file, and syncs it if `sync`; `None` if it does not exist any more.
    fn read<T>(
        &self,
        directory: &str,
        name: &str,
        sync: bool,
        mut read: impl FnMut(&[u8]) -> Result<T>,
    ) -> Result<Option<std::result::Result<T, Error>>> {
        let path = self.path.join(directory).join(name);
        let bytes = self.disk.read(&path).and_then(|bytes| {
            if sync {
                self.disk.open(&path)?.sync()?;
            }
            Ok(bytes)
        });
        match bytes {
            // An older incarnation removes superfluous files.
            Err(why) if why.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(why) => Err(disk_error("cannot read a file of the state", path.display(), why)),
            Ok(bytes) => Ok(Some(read(&bytes).map_err(|why| why.at(format!("{directory}/{name}"))))),
        }
    }

    /// Writes durably what the incarnation resumes from. `None` if a later incarnation has begun: then this one has
    /// ended, and the process may start over with a new number.
    ///
    /// # Errors
    /// Fails if the incarnation has a claim already, or if a disk operation fails.
    pub(crate) fn claim(&self, decision: &RecoveryDecision, query: &QueryFingerprint) -> Result<Option<Claim>> {
        let cannot = self.cannot("claim");
        let claim = Claim {
            state: self.id,
            incarnation: decision.incarnation,
            holder: ProcessInfo::this_process(),
            manifests: decision.manifests.clone(),
            base: decision.base.as_ref().map(Manifest::id),
            journals: decision.accepted.clone(),
            last_epoch: decision.last_epoch,
            query: query.clone(),
        };
        let is_latest = || latest(&*self.disk, &self.records_path()).map(|latest| latest == claim.incarnation);
        if !is_latest().map_err(&cannot)? {
            return Ok(None);
        }
        let path = self.records_path().join(format!("{}.claim", claim.incarnation));
        self.disk.create_new(&path, &CLAIM.seal(&claim)?).map_err(&cannot)?;
        Ok(is_latest().map_err(&cannot)?.then_some(claim))
    }

    /// Returns the errors in records of incarnations. They do not keep a job from resuming: it uses only the records'
    /// names.
    ///
    /// # Errors
    /// Fails if a disk operation fails.
    pub(crate) fn damaged_records(&self) -> Result<Vec<Error>> {
        let names = self.disk.list(&self.records_path()).map_err(self.cannot("read"))?;
        let mut wrong = Vec::new();
        for name in
            names.iter().filter(|name| incarnation_of_record(name).is_some() && incarnation_of_claim(name).is_none())
        {
            let place = format!("lives/{name}");
            let read = |bytes: &[u8]| {
                let opened = INCARNATION_RECORD
                    .open::<ProcessInfo>(bytes)
                    .map_err(|broken| INCARNATION_RECORD.error_for(broken, &place));
                opened.map_err(|why| why.help("a job goes on all the same: only the name of this file counts"))
            };
            wrong.extend(self.read("lives", name, false, read)?.and_then(std::result::Result::err));
        }
        Ok(wrong)
    }

    /// Reads the claim of an incarnation, for its other processes.
    ///
    /// # Errors
    /// Fails if the claim is missing or damaged, or if a disk operation fails.
    pub(crate) fn claim_of(&self, incarnation: u64) -> Result<Claim> {
        let path = self.records_path().join(format!("{incarnation}.claim"));
        let bytes = self.disk.read(&path).map_err(|why| disk_error("cannot read the claim", path.display(), why))?;
        read_claim(self.id, incarnation, &bytes)
    }

    /// The journal configuration of a process. Process 0 removes the files of earlier incarnations when they are
    /// superfluous.
    pub(crate) fn journal_config(&self, claim: &Claim, process: u32, workers: usize) -> JournalConfig {
        JournalConfig {
            disk: self.disk.clone(),
            directory: self.journal(),
            state: self.id,
            incarnation: claim.incarnation,
            process,
            workers,
            file_limit: JournalConfig::DEFAULT_FILE_LIMIT,
            inherited: if process == 0 { claim.journals.clone() } else { Vec::new() },
            still_current: self.still_current(claim.incarnation),
        }
    }

    /// Removes superfluous files: all valid manifests but the `keep` newest, segments that only those named or that
    /// earlier incarnations left behind, records of incarnations that are more than `RECORDS_KEPT` back, and `obsolete`
    /// files, as decided by recovery.
    ///
    /// Segments of this incarnation that no manifest names stay: they may be about to be named.
    ///
    /// # Errors
    /// Fails if a manifest to be kept is unreadable, if a later incarnation has begun, or if a disk operation fails.
    pub(crate) fn collect_garbage(&self, claim: &Claim, keep: usize, obsolete: &[String]) -> Result<GarbageCollected> {
        self.collect_files(claim, keep, obsolete, &self.still_current(claim.incarnation))
    }

    /// Removes segments of the claim's incarnation that no manifest names or will ever name.
    ///
    /// # Errors
    /// Fails if a later incarnation has begun, or if a disk operation fails.
    pub(crate) fn remove_orphans(&self, claim: &Claim, segments: impl Iterator<Item = String>) -> Result<()> {
        (self.still_current(claim.incarnation))()?;
        let removed = self.remove(segments.map(|name| format!("segments/{name}")));
        removed.map(drop).map_err(self.cannot("remove old files of"))
    }

    /// Removes all valid snapshots but the `keep` newest, with the segments that only those named. The caller must have
    /// the state locked, and no incarnation of it may run. The journal stays: the next incarnation truncates it.
    ///
    /// # Errors
    /// Fails if the last claim is damaged, if a manifest to be kept is unreadable, or if a disk operation fails.
    pub(crate) fn prune(&self, keep: usize) -> Result<GarbageCollected> {
        let scan = self.scan(false)?;
        match scan.claims.last_key_value() {
            None => Ok(GarbageCollected::default()),
            // The holder of the lock is the only user: an incarnation that has begun without a claim has ended.
            Some((_, claim)) => {
                let alone: FencingCheck = Arc::new(|| Ok(()));
                self.collect_files(claim.as_ref().map_err(Error::clone)?, keep, &[], &alone)
            }
        }
    }

    fn collect_files(
        &self,
        claim: &Claim,
        keep: usize,
        obsolete: &[String],
        still_current: &FencingCheck,
    ) -> Result<GarbageCollected> {
        let cannot = self.cannot("remove old files of");
        let mut manifests = manifest::list(&*self.disk, &self.manifests())?;
        manifests.retain(|id| claim.counts(*id));
        let dropped: Vec<_> = manifests.drain(..manifests.len().saturating_sub(keep.max(1))).collect();
        let mut named = BTreeSet::new();
        for id in &manifests {
            named.extend(self.manifest(*id)?.segments().map(str::to_owned));
        }
        let mut superfluous = BTreeSet::new();
        for id in &dropped {
            // An unreadable manifest is removed; segments that it named go with the next incarnation.
            if let Ok(manifest) = self.manifest(*id) {
                superfluous.extend(manifest.segments().map(str::to_owned));
            }
        }
        let mut segments = self.disk.list(&self.segments()).map_err(&cannot)?;
        let is_older =
            |name: &str| incarnation_of_segment(name).is_some_and(|incarnation| incarnation < claim.incarnation);
        segments.retain(|name| !named.contains(name) && (is_older(name) || superfluous.contains(name)));
        let mut lives = self.disk.list(&self.records_path()).map_err(&cannot)?;
        lives.retain(|name| is_obsolete_record(name, claim.incarnation));

        // All files to be removed are known, so no file of an incarnation that begins from here on is among them.
        still_current()?;
        let mut removed = 0;
        let manifest = dropped.iter().map(|id| format!("manifests/{id}"));
        removed += self.remove(manifest).map_err(&cannot)?;
        if removed > 0 {
            // Manifests must be gone for good before the segments that they name.
            self.disk.sync_directory(&self.manifests()).map_err(&cannot)?;
        }
        removed += self.remove(obsolete.iter().cloned()).map_err(&cannot)?;
        removed += self.remove(segments.iter().map(|name| format!("segments/{name}"))).map_err(&cannot)?;
        removed += self.remove(lives.iter().map(|name| format!("lives/{name}"))).map_err(&cannot)?;
        Ok(GarbageCollected { oldest: manifests.first().map(|id| id.epoch), removed })
    }

    /// Reads a manifest.
    ///
    /// # Errors
    /// Fails if it is missing, damaged or of another state, or if a disk operation fails.
    pub(crate) fn manifest(&self, id: ManifestId) -> Result<Manifest> {
        let path = self.manifests().join(id.to_string());
        let bytes = self.disk.read(&path);
        let bytes = bytes.map_err(|why| disk_error("cannot read the manifest", path.display(), why))?;
        Manifest::read(self.id, id, &bytes)
    }

    /// Removes files, some of which may not exist any more; returns the number that did.
    fn remove(&self, paths: impl Iterator<Item = String>) -> io::Result<usize> {
        let mut removed = 0;
        for path in paths {
            match self.disk.remove(&self.path.join(path)) {
                Err(why) if why.kind() == io::ErrorKind::NotFound => {}
                gone => {
                    gone?;
                    removed += 1;
                }
            }
        }
        Ok(removed)
    }
}

/// Parses the incarnation that wrote a segment from the segment's file name.
pub(super) fn incarnation_of_segment(name: &str) -> Option<u64> {
    name.strip_suffix(".segment")?.split('-').nth(2)?.strip_prefix("life")?.parse().ok()
}

/// Parses the incarnation that a file in `lives` belongs to.
fn incarnation_of_record(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".claim").unwrap_or(name);
    digits.parse().ok().filter(|number: &u64| number.to_string() == digits)
}

/// `true` if a file in `lives` belongs to an incarnation whose record is removed once `current` has begun.
fn is_obsolete_record(name: &str, current: u64) -> bool {
    incarnation_of_record(name).is_some_and(|incarnation| incarnation + RECORDS_KEPT < current)
}

/// Parses the incarnation that a file is the claim of; `None` for other files.
fn incarnation_of_claim(name: &str) -> Option<u64> {
    incarnation_of_record(name).filter(|_| name.ends_with(".claim"))
}

/// The greatest incarnation number that was taken; 0 if none was.
fn latest(disk: &dyn Disk, lives: &Path) -> io::Result<u64> {
    Ok(disk.list(lives)?.iter().filter_map(|name| incarnation_of_record(name)).max().unwrap_or(0))
}

fn read_claim(state: StateId, number: u64, bytes: &[u8]) -> Result<Claim> {
    let place = format!("{number}.claim");
    let opened = CLAIM.open_any(bytes).map_err(|broken| CLAIM.error_for(broken, &place))?;
    let (mut claim, version): (Claim, u8) = opened;
    claim.query.upgrade(version);
    if claim.state != state || claim.incarnation != number {
        let why = format!("it is that of life {} of the state {}", claim.incarnation, claim.state);
        return Err(Error::of(ErrorKind::StateDamaged, "a claim is not that of its life").at(place).because(why));
    }
    Ok(claim)
}

fn read_identity(disk: &dyn Disk, path: &Path) -> Result<Option<StateIdentity>> {
    let file = path.join("STATE");
    match disk.read(&file) {
        Err(why) if why.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(why) => Err(disk_error("cannot read the identity of the state", file.display(), why)),
        Ok(bytes) => {
            let identity = IDENTITY.open(&bytes);
            identity.map(Some).map_err(|broken| IDENTITY.error_for(broken, file.display()))
        }
    }
}

fn make_identity(disk: &dyn Disk, path: &Path) -> Result<StateIdentity> {
    let cannot = |why: io::Error| disk_error("cannot make the state", path.display(), why);
    for directory in DIRECTORIES {
        let names = disk.list(&path.join(directory)).map_err(cannot)?;
        if let Some(name) = names.iter().find(|name| !is_temporary(name)) {
            return Err(Error::of(ErrorKind::StateDamaged, "the identity of the state is missing")
                .at(path.join("STATE").display())
                .because(format!("there is {directory}/{name}"))
                .help("restore the state from a copy, or begin a new one elsewhere"));
        }
    }
    let program = env!("CARGO_PKG_VERSION").to_owned();
    let identity = StateIdentity { id: StateId(random()), made_ms: now_ms(), program };
    match disk.create_new(&path.join("STATE"), &IDENTITY.seal(&identity)?) {
        // The process that came first has written the identity.
        Err(why) if why.kind() == io::ErrorKind::AlreadyExists => {}
        made => made.map_err(cannot)?,
    }
    read_identity(disk, path)?.ok_or_else(|| Error::new("the state went away while it was made").at(path.display()))
}

/// A random number that no other process draws: the keys of a hasher are random.
fn random() -> u64 {
    let mut hasher = RandomState::new().build_hasher();
    hasher.write_u64(now_ms());
    hasher.write_u32(std::process::id());
    hasher.finish()
}

impl ProcessInfo {
    /// The calling process, with the present time.
    pub(crate) fn this_process() -> ProcessInfo {
        let host = fs::read_to_string("/proc/sys/kernel/hostname").or_else(|_| fs::read_to_string("/etc/hostname"));
        let host = host.unwrap_or_default().trim().replace(char::is_whitespace, "-");
        let host = if host.is_empty() { "unknown".into() } else { host };
        ProcessInfo { pid: std::process::id(), host, since_ms: now_ms() }
    }
}

fn signature(holder: &ProcessInfo) -> String {
    format!("{} {} {}\n", holder.pid, holder.host, holder.since_ms)
}

fn read_signature(text: &str) -> Option<ProcessInfo> {
    let mut words = text.split_whitespace();
    let (pid, host, since) = (words.next()?, words.next()?, words.next()?);
    Some(ProcessInfo { pid: pid.parse().ok()?, host: host.to_owned(), since_ms: since.parse().ok()? })
}

/// Replaces a lock that another process holds with a lock of our own. `None` if even that cannot be locked.
fn take_lock_over(disk: &dyn Disk, path: &Path) -> io::Result<Option<Box<dyn Lock>>> {
    disk.take_over_lock(&path.join("LOCK"), &path.join(format!("LOCK.{}", std::process::id())))
}

fn in_use(disk: &dyn Disk, path: &Path) -> Error {
    let error = Error::of(ErrorKind::StateInUse, "the state is in use").at(path.display());
    let take_over = "where it cannot be ended, --take-over goes on without it";
    let text = disk.read(&path.join("LOCK")).unwrap_or_default();
    let signed = read_signature(&String::from_utf8_lossy(&text));
    let Some(holder) = signed.or_else(|| last_holder(disk, &path.join("lives"))) else {
        return error.because("another process has it").help(format!("wait for it or end it; {take_over}"));
    };
    let ProcessInfo { pid, host, since_ms } = &holder;
    let since = EventTime::from_millis(i64::try_from(*since_ms).unwrap_or(i64::MAX));
    let who = format!("process {pid} on {host} has it since {since}");
    if *host == ProcessInfo::this_process().host && is_stopped(*pid) {
        return error
            .because(format!("{who}; it is stopped"))
            .help(format!("let it go on (kill -CONT {pid}) or end it (kill -KILL {pid}); {take_over}"));
    }
    error.because(who).help(format!("wait for it or end it; {take_over}"))
}

/// The process of the last incarnation that has begun, if no process has signed the lock.
fn last_holder(disk: &dyn Disk, lives: &Path) -> Option<ProcessInfo> {
    let record = disk.read(&lives.join(latest(disk, lives).ok()?.to_string())).ok()?;
    INCARNATION_RECORD.open(&record).ok()
}

/// `true` if a process of this machine has been stopped, as by Ctrl-Z.
fn is_stopped(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The process name before the state is in parentheses, and may itself contain some.
    stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with(['T', 't']))
}
