//! The manifests that count, by the latest claim.
//!
//! Invariant: a claim or a manifest that is missing or damaged is refused by the name of the file, never skipped.

use super::claim::{Claim, RESTORE_HINT};
use super::input::StateScan;
use crate::durable::manifest::{Manifest, ManifestId};
use crate::error::{Error, ErrorKind, Result};

/// Returns the claim of the last incarnation that has one; `None` if none has. Fails if it is damaged.
pub(super) fn latest_claim(survey: &StateScan) -> Result<Option<&Claim>> {
    match survey.claims.last_key_value() {
        None => Ok(None),
        Some((_, Ok(claim))) => Ok(Some(claim)),
        Some((_, Err(why))) => Err(why.clone().help(RESTORE_HINT)),
    }
}

/// Checks that no incarnation after the last claim has written a journal or a manifest.
pub(super) fn check_all_claimed(survey: &StateScan, claim: Option<&Claim>) -> Result<()> {
    let last = claim.map_or(0, |claim| claim.incarnation);
    let journal = survey.journals.keys().map(|id| (id.incarnation, id.to_string()));
    let manifest = survey.manifests.keys().map(|id| (id.incarnation, id.to_string()));
    match journal.chain(manifest).find(|(incarnation, _)| *incarnation > last) {
        None => Ok(()),
        Some((incarnation, name)) => Err(missing_claim_error(incarnation, format!("that incarnation wrote {name}"))),
    }
}

pub(super) fn missing_claim_error(incarnation: u64, why: String) -> Error {
    let error = Error::of(ErrorKind::StateDamaged, "the claim of an incarnation of the state is missing")
        .at(format!("lives/{incarnation}.claim"));
    error.because(why).help(RESTORE_HINT)
}

/// Returns the manifests that count, in order of epochs.
pub(super) fn manifests_of(survey: &StateScan, claim: Option<&Claim>) -> Vec<ManifestId> {
    let Some(claim) = claim else { return Vec::new() };
    survey.manifests.keys().filter(|id| claim.counts(**id)).copied().collect()
}

/// Returns the manifest to resume from; `None` if there is none. Fails if it is missing or damaged.
pub(super) fn newest<'a>(
    survey: &'a StateScan,
    claim: Option<&Claim>,
    manifests: &[ManifestId],
) -> Result<Option<&'a Manifest>> {
    let newest = manifests.last();
    if let Some(gone_on_from) = claim.and_then(|claim| claim.base)
        && newest.is_none_or(|newest| newest.epoch < gone_on_from.epoch)
    {
        let error = Error::of(ErrorKind::StateDamaged, "the manifest that the state went on from last is missing");
        return Err(error.at(format!("manifests/{gone_on_from}")).help(RESTORE_HINT));
    }
    match newest.and_then(|newest| survey.manifests.get(newest)) {
        None => Ok(None),
        Some(Ok(manifest)) => Ok(Some(manifest)),
        Some(Err(why)) => Err(why.clone().help(RESTORE_HINT)),
    }
}
