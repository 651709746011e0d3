//! All that a decision depends on: the contents of a state's directory, what the sinks report, and the query.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use super::claim::Claim;
use crate::durable::PublishedEpoch;
use crate::durable::declared_changes::DeclaredChanges;
use crate::durable::journal::{FileId, JournalFile};
use crate::durable::manifest::{Manifest, ManifestId, QueryFingerprint};
use crate::error::Result;
use crate::time::Epoch;

/// The contents of a state's directory. An unreadable file is represented by its error.
#[derive(Clone, Debug, Default)]
pub(crate) struct StateScan {
    /// Claims, by incarnation.
    pub claims: BTreeMap<u64, Result<Claim>>,
    /// Manifests.
    pub manifests: BTreeMap<ManifestId, Result<Manifest>>,
    /// Files of the journals.
    pub journals: BTreeMap<FileId, Result<JournalFile>>,
    /// Names of segments.
    pub segments: BTreeSet<String>,
    /// Unfinished files, as paths relative to the state's directory.
    pub unfinished: Vec<String>,
}

impl StateScan {
    /// Returns the scan with the names that steps, sources and outputs have in the query, and without dropped steps.
    pub(super) fn under_current_names(&self, changes: &DeclaredChanges) -> Cow<'_, StateScan> {
        if changes.is_empty() {
            return Cow::Borrowed(self);
        }
        let mut scan = self.clone();
        scan.claims.values_mut().flatten().for_each(|claim| changes.apply_to_query(&mut claim.query));
        scan.manifests.values_mut().flatten().for_each(|manifest| changes.apply_to_manifest(manifest));
        let files = scan.journals.values_mut().flatten();
        for entry in files.flat_map(|file| &mut file.entries) {
            changes.apply_to_progress(&mut entry.frame.progress);
        }
        Cow::Owned(scan)
    }
}

/// A sink of the query, with the progress that it reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ReportedSink {
    /// Its name in the query.
    pub name: String,
    /// The last epoch that it has published; `None` if it is new.
    pub published: Option<PublishedEpoch>,
    /// `true` if it holds a collection whose rows may still be retracted.
    pub on_change: bool,
}

impl ReportedSink {
    /// The last epoch that it has published; `None` if it is new.
    pub(super) fn epoch(&self) -> Option<Epoch> {
        self.published.as_ref().map(|published| published.epoch)
    }
}

/// Everything that a decision depends on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RecoveryInput<'a> {
    /// The incarnation that is about to start. Its number is taken already, so that no older incarnation publishes any
    /// more.
    pub incarnation: u64,
    /// The contents of the state's directory, read after the number was taken.
    pub survey: &'a StateScan,
    /// The sinks of the query.
    pub sinks: &'a [ReportedSink],
    /// The fingerprint of the query.
    pub query: &'a QueryFingerprint,
    /// The names that the query continues, and the steps that it has dropped.
    pub changes: &'a DeclaredChanges,
    /// `true` if the user allows a changed query to resume.
    pub accept_changed_query: bool,
    /// `true` if the user allows the query to resume with sources other than those that the state has read.
    pub accept_changed_sources: bool,
}
