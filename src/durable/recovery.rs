//! Recovery: decides from where a state resumes, as a pure function of what was found.
//!
//! * A **survey** is the contents of a state's directory. The progress of sinks is reported by the sinks themselves.
//! * A **claim** records what an incarnation resumes from, and is written before the incarnation does anything else:
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

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::journal::{FileId, Frame, JournalEntry, JournalFile, PartitionProgress, WorkerEnd};
use super::manifest::{Manifest, ManifestId, QueryFingerprint, SOURCE_KIND, StepFingerprint};
use super::sources::{self, check_sources};
use super::{PublishedEpoch, StateId};
use crate::error::{Error, ErrorKind, Result};
use crate::time::Epoch;

/// The remedy if files of a state are missing or damaged.
const RESTORE_HINT: &str = "restore the state from a copy, or begin a new state and new outputs";

/// A journal file, or the part of one, that counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct AcceptedFile {
    /// The file's identity.
    pub file: FileId,
    /// Length in bytes of the part that counts.
    pub length: u64,
    /// The greatest epoch in that part; `None` if it has no frame.
    pub last: Option<Epoch>,
}

/// The durable record of what an incarnation resumes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Claim {
    /// The state.
    pub state: StateId,
    /// The incarnation that made the claim.
    pub incarnation: u64,
    /// The process that made the claim.
    pub holder: ProcessInfo,
    /// The manifests that were valid and readable.
    pub manifests: Vec<ManifestId>,
    /// The manifest that the incarnation resumes from; `None` if it starts from the beginning.
    pub base: Option<ManifestId>,
    /// The files of the journals of earlier incarnations that count.
    pub journals: Vec<AcceptedFile>,
    /// The greatest epoch found anywhere at the time of the claim.
    pub last_epoch: Epoch,
    /// The fingerprint of the query that resumes.
    pub query: QueryFingerprint,
}

impl Claim {
    /// `true` if a manifest counts: the claim names it, or the claim's incarnation wrote it.
    pub(crate) fn counts(&self, id: ManifestId) -> bool {
        id.incarnation == self.incarnation || self.manifests.contains(&id)
    }
}

/// A description of a process, for users.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProcessInfo {
    /// The process id.
    pub pid: u32,
    /// The host name.
    pub host: String,
    /// Wall-clock time at which it took the state, in milliseconds since 1970.
    pub since_ms: u64,
}

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
    fn epoch(&self) -> Option<Epoch> {
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
    /// `true` if the user allows a changed query to resume.
    pub accept_changed_query: bool,
    /// `true` if the user allows the query to resume with sources other than those that the state has read.
    pub accept_changed_sources: bool,
}

/// A torn tail: bytes that do not count, and on which nothing was built. They stay in the file; the claim leaves them
/// out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TornTail {
    /// The file.
    pub file: FileId,
    /// Number of bytes that count.
    pub kept: u64,
    /// Number of bytes that do not.
    pub dropped: u64,
}

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
    let survey = found.survey;
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
        check_sources(&claim.query, found.query, base, &replay)?;
    }
    if let Some(base) = base {
        check_steps(base, found.query)?;
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
/// not decide.
///
/// # Errors
/// Fails if files that the claim names are damaged or missing.
pub(crate) fn claimed(survey: &StateScan, claim: &Claim) -> Result<(Option<Manifest>, Vec<Frame>)> {
    let base = match claim.base.map(|id| (id, survey.manifests.get(&id))) {
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

/// Returns the claim of the last incarnation that has one; `None` if none has. Fails if it is damaged.
fn latest_claim(survey: &StateScan) -> Result<Option<&Claim>> {
    match survey.claims.last_key_value() {
        None => Ok(None),
        Some((_, Ok(claim))) => Ok(Some(claim)),
        Some((_, Err(why))) => Err(why.clone().help(RESTORE_HINT)),
    }
}

/// Checks that no incarnation after the last claim has written a journal or a manifest.
fn check_all_claimed(survey: &StateScan, claim: Option<&Claim>) -> Result<()> {
    let last = claim.map_or(0, |claim| claim.incarnation);
    let journal = survey.journals.keys().map(|id| (id.incarnation, id.to_string()));
    let manifest = survey.manifests.keys().map(|id| (id.incarnation, id.to_string()));
    match journal.chain(manifest).find(|(incarnation, _)| *incarnation > last) {
        None => Ok(()),
        Some((incarnation, name)) => Err(missing_claim_error(incarnation, format!("that life wrote {name}"))),
    }
}

fn missing_claim_error(incarnation: u64, why: String) -> Error {
    let error = Error::of(ErrorKind::StateDamaged, "the claim of a life of the state is missing")
        .at(format!("lives/{incarnation}.claim"));
    error.because(why).help(RESTORE_HINT)
}

/// Returns the manifests that count, in order of epochs.
fn manifests_of(survey: &StateScan, claim: Option<&Claim>) -> Vec<ManifestId> {
    let Some(claim) = claim else { return Vec::new() };
    survey.manifests.keys().filter(|id| claim.counts(**id)).copied().collect()
}

/// Returns the manifest to resume from; `None` if there is none. Fails if it is missing or damaged.
fn newest<'a>(survey: &'a StateScan, claim: Option<&Claim>, manifests: &[ManifestId]) -> Result<Option<&'a Manifest>> {
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

/// A journal file with the length of the part that counts.
struct JournalPrefix<'a> {
    file: &'a JournalFile,
    length: u64,
}

impl JournalPrefix<'_> {
    fn entries(&self) -> impl Iterator<Item = &JournalEntry> {
        self.file.entries.iter().filter(|entry| entry.end <= self.length)
    }

    fn last(&self) -> Option<Epoch> {
        self.entries().map(|entry| entry.frame.epoch).max()
    }

    fn accepted(&self) -> AcceptedFile {
        AcceptedFile { file: self.file.id, length: self.length, last: self.last() }
    }

    fn torn(&self) -> Option<TornTail> {
        let dropped = self.file.file_length.checked_sub(self.length).filter(|dropped| *dropped > 0)?;
        Some(TornTail { file: self.file.id, kept: self.length, dropped })
    }
}

fn damaged(file: FileId, why: String) -> Error {
    Error::of(ErrorKind::StateDamaged, "the journal is damaged")
        .at(format!("journal/{file}"))
        .because(why)
        .help(RESTORE_HINT)
}

fn missing(file: FileId, why: String) -> Error {
    Error::of(ErrorKind::StateDamaged, "a file of the journal is missing")
        .at(format!("journal/{file}"))
        .because(why)
        .help(RESTORE_HINT)
}

/// Adds the journal files of earlier incarnations that the claim names. Fails if one that is needed is missing or
/// damaged.
fn claimed_journals<'a>(
    survey: &'a StateScan,
    claim: &Claim,
    base: Option<Epoch>,
    taken: &mut Vec<JournalPrefix<'a>>,
) -> Result<()> {
    for named in &claim.journals {
        let file = match survey.journals.get(&named.file) {
            None if named.last <= base => continue,
            None => {
                let last = named.last.unwrap_or_default();
                return Err(missing(named.file, format!("life {} counts it up to epoch {last}", claim.incarnation)));
            }
            Some(Err(why)) => return Err(why.clone().help(RESTORE_HINT)),
            Some(Ok(file)) => file,
        };
        let new = JournalPrefix { file, length: named.length };
        if file.intact_length < named.length || new.last() != named.last {
            let Claim { incarnation, .. } = claim;
            let why = format!(
                "life {incarnation} counts {} bytes of it, of which {} are good",
                named.length, file.intact_length
            );
            return Err(damaged(named.file, why));
        }
        taken.push(new);
    }
    Ok(())
}

/// Adds the journal files of the claim's own incarnation. Fails if one is missing, or damaged before its torn tail.
fn own_journals<'a>(
    survey: &'a StateScan,
    claim: &Claim,
    base: Option<Epoch>,
    taken: &mut Vec<JournalPrefix<'a>>,
) -> Result<()> {
    let mut files = Vec::new();
    for (id, file) in &survey.journals {
        if id.incarnation == claim.incarnation {
            files.push(file.as_ref().map_err(|why| why.clone().help(RESTORE_HINT))?);
        }
    }
    let is_next = |file: &JournalFile, of: FileId| {
        file.id.process == of.process && file.id.number.checked_sub(1) == Some(of.number)
    };
    for (at, file) in files.iter().enumerate() {
        let next = files.get(at + 1).filter(|next| next.id.process == file.id.process);
        let told = next.filter(|next| is_next(next, file.id)).and_then(|next| next.header.as_ref()?.before);
        let known = file.synced_length.max(told.map_or(0, |told| told.length));
        let Some(header) = &file.header else {
            if known > 0 || next.is_some() {
                return Err(damaged(file.id, "its beginning is not as it was written".into()));
            }
            continue; // The file was being created.
        };
        if file.intact_length < known {
            let why = format!("{known} bytes of it were synced, of which {} are good", file.intact_length);
            return Err(damaged(file.id, why));
        }
        let follows = at.checked_sub(1).is_some_and(|before| is_next(file, files[before].id));
        match header.before {
            Some(_) if follows => {}
            Some(before) if file.id.number > 0 => {
                if before.last > base {
                    let why = format!("it goes up to epoch {}", before.last.unwrap_or_default());
                    return Err(missing(FileId { number: file.id.number - 1, ..file.id }, why));
                }
            }
            None if file.id.number == 0 => {}
            _ => return Err(damaged(file.id, "it does not follow the file before it".into())),
        }
        taken.push(JournalPrefix { file, length: told.map_or(file.intact_length, |told| told.length) });
    }
    Ok(())
}

/// Checks that every worker committed its epochs in order, and every incarnation after the epochs of those before it.
fn check_epoch_order(taken: &[JournalPrefix<'_>]) -> Result<()> {
    let mut last_of = BTreeMap::new();
    let mut lives = BTreeMap::<u64, (Epoch, u32)>::new();
    for new in taken {
        let life = new.file.id.incarnation;
        let before = lives.range(..life).map(|(_, (last, _))| *last).max();
        let workers = new.file.header.as_ref().map_or(0, |header| header.workers);
        for JournalEntry { worker, frame: Frame { epoch, .. }, .. } in new.entries() {
            let last: Option<Epoch> = last_of.insert((life, *worker), *epoch);
            if last.max(before) >= Some(*epoch) || *worker >= workers {
                return Err(damaged(new.file.id, format!("worker {worker} has bound epoch {epoch} out of order")));
            }
            let known = lives.entry(life).or_insert((*epoch, workers));
            if known.1 != workers {
                return Err(damaged(new.file.id, format!("its life has {} workers, not {workers}", known.1)));
            }
            known.0 = known.0.max(*epoch);
        }
    }
    Ok(())
}

/// `true` if every worker of an incarnation has committed its first epoch. Before that, nothing that the incarnation
/// itself committed can have been published, and none of it counts. Otherwise partitions that a worker had yet to find
/// would be found later, with an activation watermark that the partitions found before have raised, and records could
/// become late.
fn first_epoch_is_whole(own: &[JournalPrefix<'_>], base: Option<Epoch>) -> bool {
    let headers = || own.iter().filter_map(|taken| taken.file.header.as_ref());
    let entries = || own.iter().flat_map(JournalPrefix::entries);
    let epochs = || entries().map(|entry| entry.frame.epoch);
    // A manifest includes the first epoch, and files that have it may have been removed.
    if epochs().chain(headers().filter_map(|header| header.before?.last)).any(|epoch| Some(epoch) <= base) {
        return true;
    }
    let Some(first) = epochs().min() else { return false };
    let bound: BTreeSet<_> =
        entries().filter(|entry| entry.frame.epoch == first).map(|entry| entry.worker as usize).collect();
    headers().all(|header| header.workers as usize == bound.len())
}

/// Returns the frames after the base, those of one epoch merged.
fn merge(taken: &[JournalPrefix<'_>], base: Option<Epoch>) -> Vec<Frame> {
    let mut by_epoch = BTreeMap::<Epoch, Vec<PartitionProgress>>::new();
    for JournalEntry { frame, .. } in taken.iter().flat_map(JournalPrefix::entries) {
        if Some(frame.epoch) > base {
            by_epoch.entry(frame.epoch).or_default().extend(frame.progress.iter().cloned());
        }
    }
    let frames = by_epoch.into_iter().map(|(epoch, mut progress)| {
        progress.sort();
        Frame { epoch, progress }
    });
    frames.collect()
}

/// Checks that sinks and state agree. `known` is the last epoch of the manifest and of the replay.
fn check_sinks(found: &RecoveryInput<'_>, base: Option<&Manifest>, known: Option<Epoch>) -> Result<()> {
    for state in base.map_or(&[][..], |base| &base.sinks) {
        let name = &state.name;
        let Some(sink) = found.sinks.iter().find(|sink| sink.name == *name) else {
            return Err(Error::of(ErrorKind::QueryChanged, "an output of the state is missing from the query")
                .at(format!("output {name}"))
                .help("write it, as before, or begin a new state"));
        };
        if let Some(shown) = state.published
            && sink.epoch() < Some(shown)
        {
            let has = sink.epoch().map_or("has shown nothing".into(), |has| format!("ends with epoch {has}"));
            return Err(Error::of(ErrorKind::SinkBehind, "an output is behind the state")
                .at(format!("output {name}"))
                .because(format!("it {has}, and had shown epoch {shown} at the snapshot"))
                .help("put it back as it was, or begin a new state and new outputs"));
        }
    }
    for sink in found.sinks {
        let (name, Some(shown)) = (&sink.name, sink.epoch()) else { continue };
        // Retractions that an operator makes by itself have an odd epoch, and follow from the even epoch before.
        if Some(Epoch(shown.0 & !1)) > known {
            let has = known.map_or("nothing".into(), |known| format!("what happened up to epoch {known}"));
            return Err(Error::of(ErrorKind::SinkAhead, "an output is ahead of the state")
                .at(format!("output {name}"))
                .because(format!("it has shown epoch {shown}, and the state has {has}"))
                .help(format!("use the state that wrote it, or begin a new output{}", lost_end_hint(found))));
        }
    }
    Ok(())
}

/// Checks that the journals of the last incarnation have every frame that a sink knows of.
fn check_ends(found: &RecoveryInput<'_>, claim: &Claim, base: Option<Epoch>, own: &[JournalPrefix<'_>]) -> Result<()> {
    let frames: BTreeSet<_> =
        own.iter().flat_map(JournalPrefix::entries).map(|entry| (entry.worker, entry.frame.epoch)).collect();
    for sink in found.sinks {
        let Some(published) = &sink.published else { continue };
        if published.incarnation > claim.incarnation {
            let why = format!("the output {} was written by it", sink.name);
            return Err(missing_claim_error(published.incarnation, why));
        }
        // For earlier incarnations the claim names what counts; this check was made before it was written.
        let own = published.ends.iter().filter(|_| published.incarnation == claim.incarnation);
        let missing = |end: &&WorkerEnd| Some(end.epoch) > base && !frames.contains(&(end.worker, end.epoch));
        if let Some(end) = own.into_iter().find(missing) {
            return Err(lost_end_error(found.survey, claim.incarnation, end, &sink.name));
        }
    }
    Ok(())
}

/// The error for a frame that is missing from the journal; it names the file that should have the frame.
fn lost_end_error(survey: &StateScan, incarnation: u64, end: &WorkerEnd, sink: &str) -> Error {
    let WorkerEnd { process, worker, epoch } = end;
    let of_process = |id: &&FileId| (id.incarnation, id.process) == (incarnation, *process);
    let last = survey.journals.keys().rfind(of_process).copied();
    let why = format!("worker {worker} has committed epoch {epoch}, which the output {sink} has published, and");
    let Some(last) = last else {
        let first = FileId { incarnation, process: *process, number: 0 };
        return missing(first, format!("{why} no file of its process is there"));
    };
    let next = FileId { number: last.number + 1, ..last };
    let is_whole = survey
        .journals
        .get(&last)
        .and_then(|file| file.as_ref().ok())
        .is_some_and(|file| file.intact_length == file.file_length);
    if is_whole {
        return missing(next, format!("{why} it is not in {last}: that file was cut short, or {next} is missing"));
    }
    damaged(last, format!("{why} the end of this file is not whole"))
}

/// A hint, for an output that is ahead of the state, at what may have happened to the end of the journal.
fn lost_end_hint(found: &RecoveryInput<'_>) -> String {
    let Some((last, _)) = found.survey.journals.last_key_value() else { return String::new() };
    let next = FileId { number: last.number + 1, ..*last };
    format!(
        "; if it is the state that wrote it, the end of its journal is lost: {last} is damaged or {next} is missing"
    )
}

/// Checks that the query has every durable step of the state, with rows of the same shape.
fn check_steps(base: &Manifest, query: &QueryFingerprint) -> Result<()> {
    fn print<'a>(query: &'a QueryFingerprint, name: &str) -> Option<&'a StepFingerprint> {
        query.steps.iter().filter(|step| step.keeps_rows()).find(|step| step.name == name)
    }
    for step in &base.steps {
        let place = format!("step {}", step.name);
        let Some(now) = print(query, &step.name) else {
            return Err(Error::of(
                ErrorKind::QueryChanged,
                "the state has rows of a step that the query does not have",
            )
            .at(place)
            .help("give the step its name back, or begin a new state"));
        };
        if print(&base.query, &step.name).is_some_and(|then| then.differs_in_shape(now)) {
            return Err(Error::of(ErrorKind::StateIncompatible, "the state has rows of another type than the query")
                .at(place)
                .because("the key or the value of the step has changed")
                .help("give the step another name, or begin a new state"));
        }
    }
    Ok(())
}

fn check_segments(base: &Manifest, segments: &BTreeSet<String>) -> Result<()> {
    match base.segments().find(|name| !segments.contains(*name)) {
        None => Ok(()),
        Some(name) => Err(Error::of(ErrorKind::StateDamaged, "a segment of the snapshot is missing")
            .at(format!("segments/{name}"))
            .because(format!("{} names it", base.id()))
            .help(RESTORE_HINT)),
    }
}

/// Checks that the query has not changed since the last claim, if a change could affect published or replayed output.
fn check_query(found: &RecoveryInput<'_>, claim: &Claim, base: Option<&Manifest>, replays: bool) -> Result<()> {
    let changes = changes(&claim.query, found.query);
    if changes.is_empty() || found.accept_changed_query {
        return Ok(());
    }
    let error = Error::of(ErrorKind::QueryChanged, "the query has changed since this state was used last")
        .because(changes.join(", "));
    if replays {
        return Err(error.help(
            "epochs are to be replayed, which the changed query may not repeat: stop the old one cleanly first, or pass \
             --accept-changed-query",
        ));
    }
    let then = |name: &str| base.and_then(|base| base.sinks.iter().find(|sink| sink.name == name));
    let holds = |sink: &&ReportedSink| {
        (sink.on_change || then(&sink.name).is_some_and(|then| then.on_change)) && sink.published.is_some()
    };
    match found.sinks.iter().find(holds) {
        None => Ok(()),
        Some(sink) => Err(error.help(format!(
            "the output {} has rows that the changed query may not retract: give it a new output, or pass \
             --accept-changed-query",
            sink.name
        ))),
    }
}

/// Lists the differences of two query fingerprints, in words.
pub(crate) fn changes(then: &QueryFingerprint, now: &QueryFingerprint) -> Vec<String> {
    let mut changes = Vec::new();
    if then.build != now.build {
        changes.push(format!("the program is another build ({}, was {})", now.build, then.build));
    }
    let flags = |print: &QueryFingerprint| print.flags.iter().cloned().collect::<BTreeMap<_, _>>();
    let (old, new) = (flags(then), flags(now));
    for name in old.keys().chain(new.keys()).collect::<BTreeSet<_>>() {
        match (old.get(name), new.get(name)) {
            (Some(was), Some(is)) if was != is => changes.push(format!("{name} is {is}, was {was}")),
            (Some(was), None) => changes.push(format!("{name} is gone, was {was}")),
            (None, Some(is)) => changes.push(format!("{name} is new: {is}")),
            _ => {}
        }
    }
    let names = |print: &QueryFingerprint| {
        print.steps.iter().map(|step| (step.kind.clone(), step.name.clone())).collect::<Vec<_>>()
    };
    let (old, new) = (names(then), names(now));
    for (step, (kind, name)) in now.steps.iter().zip(&new) {
        match then.steps.iter().find(|then| (&then.kind, &then.name) == (kind, name)) {
            None => changes.push(format!("the step {kind} {name} is new")),
            Some(was) if kind == SOURCE_KIND => changes.extend(sources::change(was, step)),
            Some(was) if was.detail != step.detail => {
                changes.push(format!("the step {kind} {name} is {}, was {}", step.detail, was.detail));
            }
            Some(was) if was.differs_in_shape(step) => {
                changes.push(format!("the step {kind} {name} has other types"));
            }
            Some(_) => {}
        }
    }
    let gone = old.iter().filter(|step| !new.contains(step));
    changes.extend(gone.map(|(kind, name)| format!("the step {kind} {name} is gone")));
    let flag_names = |print: &QueryFingerprint| print.flags.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
    if changes.is_empty() && (old, flag_names(then)) != (new, flag_names(now)) {
        changes.push("its steps or flags are in another order".into());
    }
    changes
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
