//! A look at a state that somebody else may have: which snapshots there are, and whether its files are as they were
//! written.
//!
//! Who looks has no lock, and writes nothing. A job that runs meanwhile makes files and tidies others up, so a file that
//! was listed may be gone when it is read; that says nothing, and whoever looks tries again with what is there then.

use std::collections::BTreeMap;
use std::io;

use super::journal::{FileId, Frame, JournalEnds};
use super::manifest::{Manifest, ManifestId, SinkState};
use super::recovery::{self, Claim, Decision, Found, SinkFound, Survey};
use super::segment::{self, SegmentInfo};
use super::state::StateDir;
use super::{Published, disk_error};
use crate::error::{Error, Result};
use crate::time::Epoch;

/// How often what has changed meanwhile is looked at again.
const TRIES: usize = 10;

/// What is to be seen of a state's snapshots.
#[derive(Clone, Debug)]
pub struct Sight {
    /// The snapshots that count and can be read, by epoch.
    pub manifests: Vec<Manifest>,
    /// Why others cannot.
    pub unreadable: Vec<Error>,
    /// The life that went on last; `None` if none has.
    pub claim: Option<Claim>,
    /// How many bytes the journal has.
    pub journal_bytes: u64,
}

/// Looks at the snapshots of a state, or of a savepoint.
///
/// # Errors
/// If the disk does not let it, or the record of who went on last is damaged.
pub fn sight(dir: &StateDir) -> Result<Sight> {
    let survey = dir.look(false)?;
    let claim = last_claim(&survey)?;
    let (mut manifests, mut unreadable) = (Vec::new(), Vec::new());
    for (_, manifest) in counted(dir, &survey, claim.as_ref())? {
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
    Ok(Sight { manifests, unreadable, claim, journal_bytes })
}

/// What the life that went on last went on from.
fn last_claim(survey: &Survey) -> Result<Option<Claim>> {
    survey.claims.last_key_value().map(|(_, claim)| claim.clone()).transpose()
}

type Manifests = BTreeMap<ManifestId, std::result::Result<Manifest, Error>>;

/// The manifests that count: of a savepoint all, of a state those that the last claim names or its life wrote.
fn counted(dir: &StateDir, survey: &Survey, claim: Option<&Claim>) -> Result<Manifests> {
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

/// What was found of files that were checked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    /// How many snapshots count.
    pub snapshots: usize,
    /// How many claims there are.
    pub claims: usize,
    /// How many files the journal has.
    pub journals: usize,
    /// How many segments are named.
    pub segments: usize,
    /// How many bytes those have.
    pub bytes: u64,
    /// What is wrong, one error a file.
    pub wrong: Vec<Error>,
    /// Tails of the journal that were being written when a process ended, or are now: they do not count.
    pub torn: Vec<(FileId, u64)>,
    /// Where a job would go on now; `None` if nothing says that, as in a savepoint.
    pub goes_on: Option<GoesOn>,
}

/// Where a job would go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GoesOn {
    /// The snapshot; `None`: at the beginning.
    pub from: Option<Epoch>,
    /// How many epochs it would replay after that.
    pub replayed: usize,
}

/// Checks every file that counts: each against its checksums and against what names it, and then all of them as the next
/// life would, with what `outputs` have published; outputs that are not given are taken to be where the last snapshot has
/// them. `each` is told of bytes of segments that were read, and of how many there are.
///
/// # Errors
/// If the disk does not let it. What is wrong with files is part of what is found.
pub fn check(dir: &StateDir, outputs: &[SinkFound], each: &mut dyn FnMut(u64, u64)) -> Result<Checked> {
    for _ in 1..TRIES {
        let before = listing(dir)?;
        let checked = check_once(dir, outputs, each)?;
        if checked.wrong.is_empty() || listing(dir)? == before {
            return Ok(checked);
        }
    }
    check_once(dir, outputs, each)
}

/// What a job changes while it runs.
fn listing(dir: &StateDir) -> Result<Vec<Vec<String>>> {
    ["lives", "journal", "manifests"].iter().map(|directory| names(dir, directory)).collect()
}

fn check_once(dir: &StateDir, outputs: &[SinkFound], each: &mut dyn FnMut(u64, u64)) -> Result<Checked> {
    let survey = dir.look(true)?;
    let claim = survey.claims.last_key_value().and_then(|(_, claim)| claim.as_ref().ok());
    let mut checked = Checked { claims: survey.claims.len(), journals: survey.journals.len(), ..Checked::default() };
    checked.wrong.extend(survey.claims.values().filter_map(|claim| claim.clone().err()));
    checked.wrong.extend(dir.damaged_lives()?);
    let manifests = counted(dir, &survey, claim)?;
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
        match decide_again(&survey, claim, outputs) {
            Ok(goes_on) => checked.goes_on = goes_on,
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
    Err(Error::new("a segment is damaged").at(path.display()).because(why))
}

/// Whether a snapshot names the segment now.
fn is_still_named(dir: &StateDir, name: &str) -> Result<bool> {
    Ok(sight(dir)?.manifests.iter().any(|manifest| manifest.segments().any(|segment| segment == name)))
}

/// What a state says last of its job.
#[derive(Clone, Debug)]
pub struct LastKnown {
    /// The snapshot from which the job would go on, if there is one.
    pub manifest: Option<Manifest>,
    /// What the journal has after that, in order of epochs.
    pub frames: Vec<Frame>,
}

/// Looks up what the state says last of its job.
///
/// # Errors
/// If the disk does not let it, or what counts is damaged.
pub fn last_known(dir: &StateDir) -> Result<LastKnown> {
    for _ in 1..TRIES {
        let before = listing(dir)?;
        let known = last_known_once(dir);
        if known.is_ok() || listing(dir)? == before {
            return known;
        }
    }
    last_known_once(dir)
}

fn last_known_once(dir: &StateDir) -> Result<LastKnown> {
    let survey = dir.look(true)?;
    Ok(match decision(&survey, last_claim(&survey)?.as_ref(), &[])? {
        None => LastKnown { manifest: None, frames: Vec::new() },
        Some(decision) => LastKnown { manifest: decision.base, frames: decision.replay },
    })
}

/// Whether what counts of the journal is good.
fn check_journals(survey: &Survey, claim: Option<&Claim>, checked: &mut Checked) {
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
        let least = file.known.max(claimed.get(id).copied().unwrap_or(0));
        if file.good < least {
            let why = format!("{least} bytes of it count, of which {} are good", file.good);
            checked.wrong.push(Error::new("the journal is damaged").at(format!("journal/{id}")).because(why));
        } else if !claimed.contains_key(id) && file.found > file.good {
            checked.torn.push((*id, file.found - file.good));
        }
    }
}

fn decide_again(survey: &Survey, claim: Option<&Claim>, outputs: &[SinkFound]) -> Result<Option<GoesOn>> {
    let decision = decision(survey, claim, outputs)?;
    Ok(decision.map(|decision| GoesOn { from: decision.base.map(|base| base.epoch), replayed: decision.replay.len() }))
}

/// Decides as the next life would, with these outputs, and others that are where the last snapshot has them.
fn decision(survey: &Survey, claim: Option<&Claim>, outputs: &[SinkFound]) -> Result<Option<Decision>> {
    let Some(claim) = claim else { return Ok(None) };
    let newest = survey.manifests.iter().rev().find(|(id, _)| claim.counts(**id));
    let base = newest.and_then(|(_, manifest)| manifest.as_ref().ok());
    let found = |SinkState { name, shown, on_change }: SinkState| {
        // What a manifest says of a sink proves nothing of journals after it.
        let published = shown.map(|epoch| Published { incarnation: 0, epoch, ends: JournalEnds::default() });
        SinkFound { name, published, on_change }
    };
    let others = base.iter().flat_map(|base| &base.sinks).cloned().map(found);
    let is_given = |name: &str| outputs.iter().any(|output| output.name == name);
    let sinks: Vec<_> = outputs.iter().cloned().chain(others.filter(|other| !is_given(&other.name))).collect();
    recovery::decide(&Found {
        incarnation: claim.incarnation + 1,
        survey,
        sinks: &sinks,
        query: base.map_or(&claim.query, |base| &base.query),
        accept_changed_query: true,
        accept_changed_sources: true,
    })
    .map(Some)
}
