//! Recovery: decides from where a state resumes, as a pure function of what was found.
//!
//! * A [`StateScan`] is the contents of a state's directory. The progress of sinks is reported by the sinks themselves.
//! * A [`Claim`] records what an incarnation resumes from, and is written before the incarnation does anything else:
//!   the valid manifests, and every journal file that counts, with its length. Anything that an older incarnation adds
//!   later is in no claim, and ignored.
//!
//! The latest claim decides what counts. Of manifests: those that it names, and those that its incarnation wrote. Of
//! journals of earlier incarnations: exactly what it names. Of the journals of its own incarnation: all up to a torn
//! tail, if every worker has committed the incarnation's first epoch. The state resumes from the newest of these
//! manifests, and replays what the journal commits after it.
//!
//! Invariants: everything that may have been published is in the manifest or in the replay, or the state is refused;
//! damage is refused with the name of the file, never skipped. A bad tail is torn if nothing proves that it was synced:
//! no later frame, no later file, no claim, and no sink, which knows the last frame of every worker at the epoch that
//! it has published. Nothing here does I/O.

mod accepted_journals;
mod checks;
mod claim;
mod claimed_manifests;
mod input;

use super::declared_changes::{DeclaredChanges, NameScope};
use super::journal::{FileId, Frame};
use super::manifest::{Manifest, ManifestId};
use super::sources::check_sources;
use crate::error::{Error, ErrorKind, Result};
use crate::time::Epoch;
use accepted_journals::{
    JournalPrefix, check_epoch_order, claimed_journals, first_epoch_is_whole, merge, own_journals,
};
use checks::{check_ends, check_query, check_segments, check_sinks, check_steps};
use claim::RESTORE_HINT;
use claimed_manifests::{check_all_claimed, latest_claim, manifests_of, newest};

pub(crate) use accepted_journals::TornTail;
pub(crate) use checks::changes;
pub(crate) use claim::{AcceptedFile, Claim, ProcessInfo};
pub(crate) use input::{RecoveryInput, ReportedSink, StateScan};

/// The outcome of recovery: what an incarnation resumes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RecoveryDecision {
    /// The incarnation that resumes.
    pub incarnation: u64,
    /// The manifest that it resumes from; `None` if there is none.
    pub base: Option<Manifest>,
    /// The frames to replay after that: one for each epoch, in ascending order, with sorted bounds.
    pub replay: Vec<Frame>,
    /// The manifests that are valid and readable.
    pub manifests: Vec<ManifestId>,
    /// The files of the journals that count.
    pub accepted: Vec<AcceptedFile>,
    /// The torn tails of those files.
    pub torn: Vec<TornTail>,
    /// The greatest epoch ever journalled, named in a manifest or published: new epochs must be greater.
    pub last_epoch: Epoch,
    /// `true` if the job has ended: then nothing resumes.
    pub ended: bool,
    /// Files that no longer count, as paths relative to the state's directory; to be removed after the claim.
    pub obsolete: Vec<String>,
}

/// Decides from where a state resumes.
///
/// # Errors
/// Fails if resuming would lose or repeat published output, if files are damaged or missing, or if the query or its
/// sources have changed in a way that the user has not allowed. The error names the cause and the remedy.
pub(crate) fn decide(found: &RecoveryInput<'_>) -> Result<RecoveryDecision> {
    let survey = &*found.survey.under_current_names(found.changes);
    let found = &RecoveryInput { survey, ..*found };
    let claim = latest_claim(survey)?;
    check_all_claimed(survey, claim)?;
    let manifests = manifests_of(survey, claim);
    let base = newest(survey, claim, &manifests)?;
    let base_epoch = base.map(|base| base.epoch);

    let mut taken = Vec::new();
    if let Some(claim) = claim {
        claimed_journals(survey, claim, base_epoch, &mut taken)?;
        let earlier = taken.len();
        own_journals(survey, claim, base_epoch, &mut taken)?;
        check_epoch_order(&taken)?;
        check_ends(found, claim, base_epoch, &taken[earlier..])?;
        if !first_epoch_is_whole(&taken[earlier..], base_epoch) {
            taken.truncate(earlier);
        }
    }
    let last_bound = taken.iter().filter_map(JournalPrefix::last).max();
    let replay = merge(&taken, base_epoch);
    let ended = base.is_some_and(|base| base.ended);

    check_sinks(found, base, last_bound.max(base_epoch))?;
    if let Some(claim) = claim.filter(|_| !found.accept_changed_sources) {
        check_sources(&claim.query, found.query, base, &replay, |old| found.changes.heir(NameScope::Source, old))?;
    }
    if let Some(base) = base {
        check_steps(base, found.query, found.changes)?;
        check_segments(base, &survey.segments)?;
    }
    if let Some(claim) = claim
        && !ended
    {
        check_query(found, claim, base, !replay.is_empty())?;
    }
    let accepted: Vec<_> = taken.iter().map(JournalPrefix::accepted).collect();
    let good = |id: &ManifestId| matches!(survey.manifests.get(id), Some(Ok(_)));
    let manifests: Vec<_> = manifests.into_iter().filter(good).collect();
    Ok(RecoveryDecision {
        incarnation: found.incarnation,
        replay: if ended { Vec::new() } else { replay },
        torn: taken.iter().filter_map(JournalPrefix::torn).collect(),
        last_epoch: last_epoch(found),
        ended,
        obsolete: obsolete(found, &manifests, &accepted),
        base: base.cloned(),
        manifests,
        accepted,
    })
}

/// Returns the manifest and the frames to replay of an incarnation with this claim, for those of its processes that did
/// not decide. If the incarnation has adapted the manifest that it resumes from to its query, it is the adapted one.
///
/// # Errors
/// Fails if files that the claim names are damaged or missing.
pub(crate) fn claimed(
    survey: &StateScan,
    claim: &Claim,
    changes: &DeclaredChanges,
) -> Result<(Option<Manifest>, Vec<Frame>)> {
    let survey = &*survey.under_current_names(changes);
    let adapted = |id: ManifestId| ManifestId { incarnation: claim.incarnation, ..id };
    let base = claim.base.map(|id| if survey.manifests.contains_key(&adapted(id)) { adapted(id) } else { id });
    let base = match base.map(|id| (id, survey.manifests.get(&id))) {
        None => None,
        Some((_, Some(manifest))) => Some(manifest.as_ref().map_err(|why| why.clone().help(RESTORE_HINT))?),
        Some((id, None)) => {
            return Err(Error::of(ErrorKind::StateDamaged, "a manifest is missing")
                .at(format!("manifests/{id}"))
                .help(RESTORE_HINT));
        }
    };
    let mut taken = Vec::new();
    claimed_journals(survey, claim, base.map(|base| base.epoch), &mut taken)?;
    let ended = base.is_some_and(|base| base.ended);
    let replay = if ended { Vec::new() } else { merge(&taken, base.map(|base| base.epoch)) };
    Ok((base.cloned(), replay))
}

/// The greatest epoch found anywhere, in files that count or not.
fn last_epoch(found: &RecoveryInput<'_>) -> Epoch {
    let StateScan { claims, manifests, journals, .. } = found.survey;
    let entries = journals.values().flatten().flat_map(|file| &file.entries).map(|entry| entry.frame.epoch);
    let befores = journals.values().flatten().filter_map(|file| file.header.as_ref()?.before?.last);
    let claims = claims.values().flatten().map(|claim| claim.last_epoch);
    let manifests = manifests.keys().map(|id| id.epoch);
    let sinks = found.sinks.iter().filter_map(ReportedSink::epoch);
    entries.chain(befores).chain(claims).chain(manifests).chain(sinks).max().unwrap_or_default()
}

/// The files that no longer count.
fn obsolete(found: &RecoveryInput<'_>, manifests: &[ManifestId], accepted: &[AcceptedFile]) -> Vec<String> {
    let StateScan { manifests: all, journals, unfinished, .. } = found.survey;
    let counts = |id: &FileId| accepted.iter().any(|accepted| accepted.file == *id);
    let journals = journals.keys().filter(|id| !counts(id)).map(|id| format!("journal/{id}"));
    let manifests = all.keys().filter(|id| !manifests.contains(id)).map(|id| format!("manifests/{id}"));
    journals.chain(manifests).chain(unfinished.iter().cloned()).collect()
}
