//! Inspection of a state that another process may be using: its snapshots, and the integrity of its files.
//!
//! An inspection takes no lock and writes nothing. A running job creates and removes files meanwhile, so a file that
//! was listed may be gone when it is read. That is no damage: the inspection is repeated with a new listing.

use std::collections::BTreeMap;
use std::io;

use super::declared_changes::DeclaredChanges;
use super::journal::{FileId, Frame, JournalEnds};
use super::manifest::{Manifest, ManifestId, SinkState};
use super::recovery::{self, Claim, RecoveryDecision, RecoveryInput, ReportedSink, StateScan};
use super::segment::{self, SegmentInfo};
use super::state::StateDir;
use super::{PublishedEpoch, disk_error};
use crate::error::{Error, ErrorKind, Result};
use crate::time::Epoch;

/// Maximum number of attempts while the files keep changing.
const TRIES: usize = 10;

/// The snapshots of a state, as found by an inspection.
#[derive(Clone, Debug)]
pub(crate) struct StateSnapshots {
    /// The valid, readable snapshots, in order of epochs.
    pub manifests: Vec<Manifest>,
    /// The errors of those that are unreadable.
    pub unreadable: Vec<Error>,
    /// The claim of the last incarnation; `None` if no incarnation has claimed the state.
    pub claim: Option<Claim>,
    /// Total length of the journal's files in bytes.
    pub journal_bytes: u64,
}

/// Inspects the snapshots of a state or of a savepoint.
///
/// # Errors
/// Fails if a disk operation fails, or if the last claim is damaged.
pub(crate) fn inspect_snapshots(dir: &StateDir) -> Result<StateSnapshots> {
    let survey = dir.scan(false)?;
    let claim = last_claim(&survey)?;
    let (mut manifests, mut unreadable) = (Vec::new(), Vec::new());
    for (_, manifest) in valid_manifests(dir, &survey, claim.as_ref())? {
        match manifest {
            Ok(manifest) => manifests.push(manifest),
            Err(error) => unreadable.push(error),
        }
    }
    let mut journal_bytes = 0;
    for name in names(dir, "journal")? {
        let length = dir.disk().open(&dir.journal().join(&name)).and_then(|file| file.length());
        match length {
            Err(why) if why.kind() == io::ErrorKind::NotFound => {}
            length => {
                journal_bytes +=
                    length.map_err(|why| disk_error("cannot read the state", dir.path().display(), why))?;
            }
        }
    }
    Ok(StateSnapshots { manifests, unreadable, claim, journal_bytes })
}

/// Returns the last claim; `None` if there is none. Fails if it is damaged.
fn last_claim(survey: &StateScan) -> Result<Option<Claim>> {
    survey.claims.last_key_value().map(|(_, claim)| claim.clone()).transpose()
}

type Manifests = BTreeMap<ManifestId, std::result::Result<Manifest, Error>>;

/// The valid manifests: all in a savepoint; in a state, those that the last claim names or its incarnation wrote.
fn valid_manifests(dir: &StateDir, survey: &StateScan, claim: Option<&Claim>) -> Result<Manifests> {
    let mut manifests = survey.manifests.clone();
    if !dir.is_savepoint()? {
        manifests.retain(|id, _| claim.is_some_and(|claim| claim.counts(*id)));
    }
    Ok(manifests)
}

fn names(dir: &StateDir, directory: &str) -> Result<Vec<String>> {
    let listed = dir.disk().list(&dir.path().join(directory));
    listed.map_err(|why| disk_error("cannot read the state", dir.path().display(), why))
}

/// The outcome of checking a state's files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct IntegrityReport {
    /// Number of valid snapshots.
    pub snapshots: usize,
    /// Number of claims.
    pub claims: usize,
    /// Number of journal files.
    pub journals: usize,
    /// Number of segments that valid snapshots name.
    pub segments: usize,
    /// Total length of those segments in bytes.
    pub bytes: u64,
    /// The damage found, one error per file.
    pub wrong: Vec<Error>,
    /// Torn tails of the journal, with their length in bytes: left by a crash or being written now. They are ignored.
    pub torn: Vec<(FileId, u64)>,
    /// The point from which a job would resume now; `None` if there is none, as in a savepoint.
    pub resume_point: Option<ResumePoint>,
}

/// The point from which a job would resume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ResumePoint {
    /// The epoch of the snapshot; `None` to start from the beginning.
    pub from: Option<Epoch>,
    /// Number of epochs that it would replay after the snapshot.
    pub replayed: usize,
}

/// Checks every valid file against its checksums and against the manifest or claim that names it; then checks that
/// recovery would succeed, given the progress of `outputs`. Sinks missing from `outputs` are assumed to be where the
/// last snapshot has them. `each` is called for every segment with its length and the length of all segments, in bytes.
///
/// # Errors
/// Fails if a disk operation fails. Damaged files are reported in the result.
pub(crate) fn verify_files(
    dir: &StateDir,
    outputs: &[ReportedSink],
    each: &mut dyn FnMut(u64, u64),
) -> Result<IntegrityReport> {
    for _ in 1..TRIES {
        let before = listing(dir)?;
        let checked = check_once(dir, outputs, each)?;
        if checked.wrong.is_empty() || listing(dir)? == before {
            return Ok(checked);
        }
    }
    check_once(dir, outputs, each)
}

/// The names of the files that a running job creates and removes.
fn listing(dir: &StateDir) -> Result<Vec<Vec<String>>> {
    ["lives", "journal", "manifests"].iter().map(|directory| names(dir, directory)).collect()
}

fn check_once(dir: &StateDir, outputs: &[ReportedSink], each: &mut dyn FnMut(u64, u64)) -> Result<IntegrityReport> {
    let survey = dir.scan(true)?;
    let claim = survey.claims.last_key_value().and_then(|(_, claim)| claim.as_ref().ok());
    let mut checked =
        IntegrityReport { claims: survey.claims.len(), journals: survey.journals.len(), ..IntegrityReport::default() };
    checked.wrong.extend(survey.claims.values().filter_map(|claim| claim.clone().err()));
    checked.wrong.extend(dir.damaged_records()?);
    let manifests = valid_manifests(dir, &survey, claim)?;
    checked.snapshots = manifests.len();
    let mut named = BTreeMap::<String, SegmentInfo>::new();
    for manifest in manifests.values() {
        match manifest {
            Err(error) => checked.wrong.push(error.clone()),
            Ok(manifest) => {
                let segments = manifest.steps.iter().flat_map(|step| &step.segments);
                named.extend(segments.map(|segment| (segment.file.clone(), segment.clone())));
            }
        }
    }
    check_journals(&survey, claim, &mut checked);
    let all = named.values().map(|segment| segment.bytes).sum();
    for (name, info) in &named {
        each(info.bytes, all);
        match check_segment(dir, info) {
            Ok(()) => {}
            Err(_) if !is_still_named(dir, name)? => continue,
            Err(error) => checked.wrong.push(error),
        }
        checked.segments += 1;
        checked.bytes += info.bytes;
    }
    if checked.wrong.is_empty() && !dir.is_savepoint()? {
        match decide_resume_point(&survey, claim, outputs) {
            Ok(goes_on) => checked.resume_point = goes_on,
            Err(error) => checked.wrong.push(error),
        }
    }
    Ok(checked)
}

fn check_segment(dir: &StateDir, named: &SegmentInfo) -> Result<()> {
    let path = dir.segments().join(&named.file);
    if segment::verify(&**dir.disk(), &path)? == *named {
        return Ok(());
    }
    let why = "it is a segment, but not the one that was written under this name";
    Err(Error::of(ErrorKind::StateDamaged, "a segment is damaged").at(path.display()).because(why))
}

/// `true` if a snapshot names the segment now.
fn is_still_named(dir: &StateDir, name: &str) -> Result<bool> {
    Ok(inspect_snapshots(dir)?.manifests.iter().any(|manifest| manifest.segments().any(|segment| segment == name)))
}

/// The last progress that a state records of its job.
#[derive(Clone, Debug)]
pub(crate) struct RecordedProgress {
    /// The snapshot from which the job would resume; `None` if there is none.
    pub manifest: Option<Manifest>,
    /// The journal's frames after the snapshot, in order of epochs.
    pub frames: Vec<Frame>,
}

/// Reads the last progress that a state records of its job.
///
/// # Errors
/// Fails if a disk operation fails, or if a file that is needed is damaged.
pub(crate) fn recorded_progress(dir: &StateDir) -> Result<RecordedProgress> {
    for _ in 1..TRIES {
        let before = listing(dir)?;
        let known = last_known_once(dir);
        if known.is_ok() || listing(dir)? == before {
            return known;
        }
    }
    last_known_once(dir)
}

fn last_known_once(dir: &StateDir) -> Result<RecordedProgress> {
    let survey = dir.scan(true)?;
    Ok(match decision(&survey, last_claim(&survey)?.as_ref(), &[])? {
        None => RecordedProgress { manifest: None, frames: Vec::new() },
        Some(decision) => RecordedProgress { manifest: decision.base, frames: decision.replay },
    })
}

/// Checks the journal files that count: their synced or claimed part must be intact.
fn check_journals(survey: &StateScan, claim: Option<&Claim>, checked: &mut IntegrityReport) {
    let claimed: BTreeMap<FileId, u64> =
        claim.iter().flat_map(|claim| &claim.journals).map(|named| (named.file, named.length)).collect();
    let own = claim.map(|claim| claim.incarnation);
    for (id, file) in &survey.journals {
        if !claimed.contains_key(id) && Some(id.incarnation) != own {
            continue;
        }
        let file = match file {
            Ok(file) => file,
            Err(error) => {
                checked.wrong.push(error.clone());
                continue;
            }
        };
        let least = file.synced_length.max(claimed.get(id).copied().unwrap_or(0));
        if file.intact_length < least {
            let why = format!("{least} bytes of it count, of which {} are good", file.intact_length);
            checked.wrong.push(
                Error::of(ErrorKind::StateDamaged, "the journal is damaged").at(format!("journal/{id}")).because(why),
            );
        } else if !claimed.contains_key(id) && file.file_length > file.intact_length {
            checked.torn.push((*id, file.file_length - file.intact_length));
        }
    }
}

fn decide_resume_point(
    survey: &StateScan,
    claim: Option<&Claim>,
    outputs: &[ReportedSink],
) -> Result<Option<ResumePoint>> {
    let decision = decision(survey, claim, outputs)?;
    Ok(decision
        .map(|decision| ResumePoint { from: decision.base.map(|base| base.epoch), replayed: decision.replay.len() }))
}

/// Decides as the next recovery would, with these outputs; other sinks are assumed to be where the last snapshot has
/// them.
fn decision(survey: &StateScan, claim: Option<&Claim>, outputs: &[ReportedSink]) -> Result<Option<RecoveryDecision>> {
    let Some(claim) = claim else { return Ok(None) };
    let newest = survey.manifests.iter().rev().find(|(id, _)| claim.counts(**id));
    let base = newest.and_then(|(_, manifest)| manifest.as_ref().ok());
    let found = |SinkState { name, published: shown, on_change }: SinkState| {
        // A manifest's sink position proves nothing about the journal after it.
        let published = shown.map(|epoch| PublishedEpoch { incarnation: 0, epoch, ends: JournalEnds::default() });
        ReportedSink { name, published, on_change }
    };
    let others = base.iter().flat_map(|base| &base.sinks).cloned().map(found);
    let is_given = |name: &str| outputs.iter().any(|output| output.name == name);
    let sinks: Vec<_> = outputs.iter().cloned().chain(others.filter(|other| !is_given(&other.name))).collect();
    recovery::decide(&RecoveryInput {
        incarnation: claim.incarnation + 1,
        survey,
        sinks: &sinks,
        query: base.map_or(&claim.query, |base| &base.query),
        changes: &DeclaredChanges::default(),
        accept_changed_query: true,
        accept_changed_sources: true,
    })
    .map(Some)
}
