//! Removal of files that no snapshot needs any more.
//!
//! Invariant: files to be removed are listed before the check for being current, so none of them is a later
//! incarnation's.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::directory::StateDir;
use super::incarnation_records::is_obsolete_record;
use crate::durable::FencingCheck;
use crate::durable::manifest;
use crate::durable::recovery::Claim;
use crate::error::{Error, Result};
use crate::time::Epoch;

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
}

/// Parses the incarnation that wrote a segment from the segment's file name.
pub(in crate::durable) fn incarnation_of_segment(name: &str) -> Option<u64> {
    name.strip_suffix(".segment")?.split('-').nth(2)?.strip_prefix("life")?.parse().ok()
}
