//! The succession of incarnations: their numbers, the check for being current, and their claims.
//!
//! The number is taken before anything is read, and not only with the claim. Otherwise an older incarnation that is
//! still running could publish an epoch, or remove files that a newer snapshot of its own had made superfluous, after
//! they were read and before the claim. As it is, an incarnation that was overtaken does at most one more operation
//! after its last check: it adds a journal file or a manifest, which the claim does not name; or it removes files that
//! were superfluous by a manifest that existed before the check, and so also when the later incarnation read the
//! directory.
//!
//! Invariants: only an incarnation with a claim writes, and it checks just before that it is current; an incarnation
//! without a claim has written nothing but its record and equal copies of journal files.

use std::io;
use std::sync::Arc;

use super::directory::StateDir;
use super::incarnation_records::{
    CLAIM, INCARNATION_RECORD, incarnation_of_claim, incarnation_of_record, is_obsolete_record, latest, read_claim,
};
use crate::durable::journal::JournalConfig;
use crate::durable::manifest::{Manifest, QueryFingerprint};
use crate::durable::recovery::{Claim, ProcessInfo, RecoveryDecision};
use crate::durable::{FencingCheck, disk_error};
use crate::error::{Error, ErrorKind, Result};

/// Maximum number of incarnation numbers that are tried: others may take them, or the store may hide taken ones.
const NUMBERS_TRIED: usize = 1_000;

impl StateDir {
    /// Takes the next incarnation's number. From then on no older incarnation is current, even if the new one fails.
    /// Records of incarnations that are more than `RECORDS_KEPT` back are removed, so that failing starts do not
    /// accumulate files.
    ///
    /// # Errors
    /// Fails if a disk operation fails, or if listing the directory does not show the records in it.
    pub(crate) fn begin_incarnation(&self) -> Result<u64> {
        let cannot = self.cannot("begin an incarnation of");
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
        Err(Error::of(ErrorKind::StateDamaged, "cannot begin an incarnation of the state")
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
                .because(format!("its incarnation {latest} has begun, and this is incarnation {incarnation}")))
        })
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
}
