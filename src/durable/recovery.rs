//! Where a state goes on from: a pure function of what was found.
//!
//! * A **survey** is what is in the directory of a state. What the sinks have shown comes from themselves.
//! * A **claim** is what a life went on from, written before it did anything: it names the manifests that were good, and
//!   every file of the journal that counts, with its length. What an older life adds later is in no claim, and ignored.
//!
//! From the latest claim: manifests count that it names, and those its life wrote; of the journals of earlier lives
//! exactly what it names, of its own life's all up to a torn tail, if all its workers have bound its first epoch. The
//! newest manifest is gone on from, and what the journal binds after it is replayed.
//!
//! Invariants: what anybody can have been shown is in the manifest or in the replay, or the state is refused; what is
//! damaged is refused by its name, never passed over. A tail that is not good is torn if nothing says that it was synced:
//! no later frame, no later file, no claim, and no sink, which knows the last frame of every worker at the epoch that it
//! has published. Nothing here does I/O.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::journal::{Bound, Entry, FileId, Frame, JournalFile, WorkerEnd};
use super::manifest::{Manifest, ManifestId, QueryPrint, StepPrint};
use super::sources::{self, check_sources};
use super::{Published, StateId};
use crate::error::{Error, Result};
use crate::time::Epoch;

/// What is to be done where files of a state are not as they were written.
const RESTORE: &str = "restore the state from a copy, or begin a new state and new outputs";

/// A file of the journal that counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accepted {
    /// Which.
    pub file: FileId,
    /// How many bytes of it count.
    pub length: u64,
    /// The greatest epoch in those.
    pub last: Option<Epoch>,
}

/// What a life of a state went on from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// The state.
    pub state: StateId,
    /// The life.
    pub incarnation: u64,
    /// Its process.
    pub holder: Holder,
    /// The manifests that were good.
    pub manifests: Vec<ManifestId>,
    /// The one that it goes on from.
    pub base: Option<ManifestId>,
    /// The files of the journals of earlier lives that count.
    pub journals: Vec<Accepted>,
    /// The greatest epoch that anything had then.
    pub last_epoch: Epoch,
    /// The query that goes on.
    pub query: QueryPrint,
}

impl Claim {
    /// Whether a manifest counts: one that was good, or that the life itself wrote.
    pub fn counts(&self, id: ManifestId) -> bool {
        id.incarnation == self.incarnation || self.manifests.contains(&id)
    }
}

/// A process, for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// Its number.
    pub pid: u32,
    /// Its machine.
    pub host: String,
    /// Since when: milliseconds since 1970, by the wall clock.
    pub since_ms: u64,
}

/// What is in the directory of a state. What could not be read has its error.
#[derive(Clone, Debug, Default)]
pub struct Survey {
    /// Claims, by life.
    pub claims: BTreeMap<u64, Result<Claim>>,
    /// Manifests.
    pub manifests: BTreeMap<ManifestId, Result<Manifest>>,
    /// Files of the journals.
    pub journals: BTreeMap<FileId, Result<JournalFile>>,
    /// Names of segments.
    pub segments: BTreeSet<String>,
    /// Files that were not finished, as paths below the state's.
    pub unfinished: Vec<String>,
}

/// A sink of the query, by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SinkFound {
    /// Its name in the query.
    pub name: String,
    /// The last epoch that it has published; `None` if it is new.
    pub published: Option<Published>,
    /// Whether it holds a collection whose rows may still be retracted.
    pub on_change: bool,
}

impl SinkFound {
    /// The last epoch that it has published.
    fn epoch(&self) -> Option<Epoch> {
        self.published.as_ref().map(|published| published.epoch)
    }
}

/// All that a decision depends on.
#[derive(Clone, Copy, Debug)]
pub struct Found<'a> {
    /// The life that is about to begin. Its number is taken already, so that no older life shows anything any more.
    pub incarnation: u64,
    /// The directory of the state, surveyed after that.
    pub survey: &'a Survey,
    /// The sinks of the query.
    pub sinks: &'a [SinkFound],
    /// The query.
    pub query: &'a QueryPrint,
    /// Whether the user lets a changed query go on.
    pub accept_changed_query: bool,
    /// `true` if the user lets a query go on whose sources are not those that the state has read.
    pub accept_changed_sources: bool,
}

/// A torn tail: bytes that do not count, and were never built on. They stay where they are: the claim leaves them out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Torn {
    /// The file.
    pub file: FileId,
    /// How many of its bytes count.
    pub kept: u64,
    /// How many do not.
    pub dropped: u64,
}

/// Where a state goes on from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// The life that goes on.
    pub incarnation: u64,
    /// The manifest that it goes on from; `None`: from nothing.
    pub base: Option<Manifest>,
    /// What is bound after that: by epoch, ascending, the bounds of an epoch sorted.
    pub replay: Vec<Frame>,
    /// The manifests that are good.
    pub manifests: Vec<ManifestId>,
    /// The files of the journals that count.
    pub accepted: Vec<Accepted>,
    /// Torn tails of those.
    pub torn: Vec<Torn>,
    /// The greatest epoch that was ever journalled, named in a manifest or shown: new ones must be after it.
    pub last_epoch: Epoch,
    /// Whether the job has come to its end: nothing goes on then.
    pub ended: bool,
    /// Files that nothing counts any more, as paths below the state's: to be removed after the claim.
    pub obsolete: Vec<String>,
}

/// Decides where a state goes on from.
///
/// # Errors
/// When it cannot go on without losing or repeating what was shown, when files are damaged or missing, and when the query
/// is another one than was replayed from: says what, and what to do.
pub fn decide(found: &Found<'_>) -> Result<Decision> {
    let survey = found.survey;
    let claim = latest_claim(survey)?;
    all_is_claimed(survey, claim)?;
    let manifests = manifests_of(survey, claim);
    let base = newest(survey, claim, &manifests)?;
    let base_epoch = base.map(|base| base.epoch);

    let mut taken = Vec::new();
    if let Some(claim) = claim {
        earlier_lives(survey, claim, base_epoch, &mut taken)?;
        let earlier = taken.len();
        latest_life(survey, claim, base_epoch, &mut taken)?;
        each_epoch_once(&taken)?;
        check_ends(found, claim, base_epoch, &taken[earlier..])?;
        if !first_epoch_is_whole(&taken[earlier..], base_epoch) {
            taken.truncate(earlier);
        }
    }
    let last_bound = taken.iter().filter_map(Taken::last).max();
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
    let accepted: Vec<_> = taken.iter().map(Taken::accepted).collect();
    let good = |id: &ManifestId| matches!(survey.manifests.get(id), Some(Ok(_)));
    let manifests: Vec<_> = manifests.into_iter().filter(good).collect();
    Ok(Decision {
        incarnation: found.incarnation,
        replay: if ended { Vec::new() } else { replay },
        torn: taken.iter().filter_map(Taken::torn).collect(),
        last_epoch: last_epoch(found),
        ended,
        obsolete: obsolete(found, &manifests, &accepted),
        base: base.cloned(),
        manifests,
        accepted,
    })
}

/// What a life with this claim goes on from, and replays: for those of its processes that did not decide.
///
/// # Errors
/// When files that the claim names are damaged or missing.
pub fn claimed(survey: &Survey, claim: &Claim) -> Result<(Option<Manifest>, Vec<Frame>)> {
    let base = match claim.base.map(|id| (id, survey.manifests.get(&id))) {
        None => None,
        Some((_, Some(manifest))) => Some(manifest.as_ref().map_err(|why| why.clone().help(RESTORE))?),
        Some((id, None)) => {
            return Err(Error::new("a manifest is missing").at(format!("manifests/{id}")).help(RESTORE));
        }
    };
    let mut taken = Vec::new();
    earlier_lives(survey, claim, base.map(|base| base.epoch), &mut taken)?;
    let ended = base.is_some_and(|base| base.ended);
    let replay = if ended { Vec::new() } else { merge(&taken, base.map(|base| base.epoch)) };
    Ok((base.cloned(), replay))
}

/// The claim of the life that went on last.
fn latest_claim(survey: &Survey) -> Result<Option<&Claim>> {
    match survey.claims.last_key_value() {
        None => Ok(None),
        Some((_, Ok(claim))) => Ok(Some(claim)),
        Some((_, Err(why))) => Err(why.clone().help(RESTORE)),
    }
}

/// Whatever was written, its life had a claim.
fn all_is_claimed(survey: &Survey, claim: Option<&Claim>) -> Result<()> {
    let last = claim.map_or(0, |claim| claim.incarnation);
    let journal = survey.journals.keys().map(|id| (id.incarnation, id.to_string()));
    let manifest = survey.manifests.keys().map(|id| (id.incarnation, id.to_string()));
    match journal.chain(manifest).find(|(incarnation, _)| *incarnation > last) {
        None => Ok(()),
        Some((incarnation, name)) => Err(unclaimed(incarnation, format!("that life wrote {name}"))),
    }
}

fn unclaimed(incarnation: u64, why: String) -> Error {
    let error = Error::new("the claim of a life of the state is missing").at(format!("lives/{incarnation}.claim"));
    error.because(why).help(RESTORE)
}

/// The manifests that count, by epoch.
fn manifests_of(survey: &Survey, claim: Option<&Claim>) -> Vec<ManifestId> {
    let Some(claim) = claim else { return Vec::new() };
    survey.manifests.keys().filter(|id| claim.counts(**id)).copied().collect()
}

/// The manifest to go on from.
fn newest<'a>(survey: &'a Survey, claim: Option<&Claim>, manifests: &[ManifestId]) -> Result<Option<&'a Manifest>> {
    let newest = manifests.last();
    if let Some(gone_on_from) = claim.and_then(|claim| claim.base)
        && newest.is_none_or(|newest| newest.epoch < gone_on_from.epoch)
    {
        let error = Error::new("the manifest that the state went on from last is missing");
        return Err(error.at(format!("manifests/{gone_on_from}")).help(RESTORE));
    }
    match newest.and_then(|newest| survey.manifests.get(newest)) {
        None => Ok(None),
        Some(Ok(manifest)) => Ok(Some(manifest)),
        Some(Err(why)) => Err(why.clone().help(RESTORE)),
    }
}

/// What counts of a file of the journal.
struct Taken<'a> {
    file: &'a JournalFile,
    length: u64,
}

impl Taken<'_> {
    fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.file.entries.iter().filter(|entry| entry.end <= self.length)
    }

    fn last(&self) -> Option<Epoch> {
        self.entries().map(|entry| entry.frame.epoch).max()
    }

    fn accepted(&self) -> Accepted {
        Accepted { file: self.file.id, length: self.length, last: self.last() }
    }

    fn torn(&self) -> Option<Torn> {
        let dropped = self.file.found.checked_sub(self.length).filter(|dropped| *dropped > 0)?;
        Some(Torn { file: self.file.id, kept: self.length, dropped })
    }
}

fn damaged(file: FileId, why: String) -> Error {
    Error::new("the journal is damaged").at(format!("journal/{file}")).because(why).help(RESTORE)
}

fn missing(file: FileId, why: String) -> Error {
    Error::new("a file of the journal is missing").at(format!("journal/{file}")).because(why).help(RESTORE)
}

/// What the claim names of the lives before its own.
fn earlier_lives<'a>(survey: &'a Survey, claim: &Claim, base: Option<Epoch>, taken: &mut Vec<Taken<'a>>) -> Result<()> {
    for named in &claim.journals {
        let file = match survey.journals.get(&named.file) {
            None if named.last <= base => continue,
            None => {
                let last = named.last.unwrap_or_default();
                return Err(missing(named.file, format!("life {} counts it up to epoch {last}", claim.incarnation)));
            }
            Some(Err(why)) => return Err(why.clone().help(RESTORE)),
            Some(Ok(file)) => file,
        };
        let new = Taken { file, length: named.length };
        if file.good < named.length || new.last() != named.last {
            let Claim { incarnation, .. } = claim;
            let why =
                format!("life {incarnation} counts {} bytes of it, of which {} are good", named.length, file.good);
            return Err(damaged(named.file, why));
        }
        taken.push(new);
    }
    Ok(())
}

/// What the life of the claim has written itself.
fn latest_life<'a>(survey: &'a Survey, claim: &Claim, base: Option<Epoch>, taken: &mut Vec<Taken<'a>>) -> Result<()> {
    let mut files = Vec::new();
    for (id, file) in &survey.journals {
        if id.incarnation == claim.incarnation {
            files.push(file.as_ref().map_err(|why| why.clone().help(RESTORE))?);
        }
    }
    let is_next = |file: &JournalFile, of: FileId| {
        file.id.process == of.process && file.id.number.checked_sub(1) == Some(of.number)
    };
    for (at, file) in files.iter().enumerate() {
        let next = files.get(at + 1).filter(|next| next.id.process == file.id.process);
        let told = next.filter(|next| is_next(next, file.id)).and_then(|next| next.header.as_ref()?.before);
        let known = file.known.max(told.map_or(0, |told| told.length));
        let Some(header) = &file.header else {
            if known > 0 || next.is_some() {
                return Err(damaged(file.id, "its beginning is not as it was written".into()));
            }
            continue; // It was being begun.
        };
        if file.good < known {
            let why = format!("{known} bytes of it were synced, of which {} are good", file.good);
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
        taken.push(Taken { file, length: told.map_or(file.good, |told| told.length) });
    }
    Ok(())
}

/// Every worker bound its epochs in order, and every life after those before it.
fn each_epoch_once(taken: &[Taken<'_>]) -> Result<()> {
    let mut last_of = BTreeMap::new();
    let mut lives = BTreeMap::<u64, (Epoch, u32)>::new();
    for new in taken {
        let life = new.file.id.incarnation;
        let before = lives.range(..life).map(|(_, (last, _))| *last).max();
        let workers = new.file.header.as_ref().map_or(0, |header| header.workers);
        for Entry { worker, frame: Frame { epoch, .. }, .. } in new.entries() {
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

/// Whether every worker of a life has bound its first epoch. Before that, nothing that it bound itself can have been
/// shown, and none of it counts. Otherwise the partitions that a worker had yet to find would be found later, with a
/// floor that those found before have raised, and records could be judged late that were not.
fn first_epoch_is_whole(own: &[Taken<'_>], base: Option<Epoch>) -> bool {
    let headers = || own.iter().filter_map(|taken| taken.file.header.as_ref());
    let entries = || own.iter().flat_map(Taken::entries);
    let epochs = || entries().map(|entry| entry.frame.epoch);
    // A manifest has it, and files of it may have been cut.
    if epochs().chain(headers().filter_map(|header| header.before?.last)).any(|epoch| Some(epoch) <= base) {
        return true;
    }
    let Some(first) = epochs().min() else { return false };
    let bound: BTreeSet<_> =
        entries().filter(|entry| entry.frame.epoch == first).map(|entry| entry.worker as usize).collect();
    headers().all(|header| header.workers as usize == bound.len())
}

/// The frames after the base, those of an epoch as one.
fn merge(taken: &[Taken<'_>], base: Option<Epoch>) -> Vec<Frame> {
    let mut by_epoch = BTreeMap::<Epoch, Vec<Bound>>::new();
    for Entry { frame, .. } in taken.iter().flat_map(Taken::entries) {
        if Some(frame.epoch) > base {
            by_epoch.entry(frame.epoch).or_default().extend(frame.bounds.iter().cloned());
        }
    }
    let frames = by_epoch.into_iter().map(|(epoch, mut bounds)| {
        bounds.sort();
        Frame { epoch, bounds }
    });
    frames.collect()
}

/// Whether the sinks and the state are of one story. `known` is the last epoch of the manifest and of what is replayed.
fn check_sinks(found: &Found<'_>, base: Option<&Manifest>, known: Option<Epoch>) -> Result<()> {
    for state in base.map_or(&[][..], |base| &base.sinks) {
        let name = &state.name;
        let Some(sink) = found.sinks.iter().find(|sink| sink.name == *name) else {
            return Err(Error::new("an output of the state is missing from the query")
                .at(format!("output {name}"))
                .help("write it, as before, or begin a new state"));
        };
        if let Some(shown) = state.shown
            && sink.epoch() < Some(shown)
        {
            let has = sink.epoch().map_or("has shown nothing".into(), |has| format!("ends with epoch {has}"));
            return Err(Error::new("an output is behind the state")
                .at(format!("output {name}"))
                .because(format!("it {has}, and had shown epoch {shown} at the snapshot"))
                .help("put it back as it was, or begin a new state and new outputs"));
        }
    }
    for sink in found.sinks {
        let (name, Some(shown)) = (&sink.name, sink.epoch()) else { continue };
        // What an operator retracts by itself is odd, and follows from the even epoch before.
        if Some(Epoch(shown.0 & !1)) > known {
            let has = known.map_or("nothing".into(), |known| format!("what happened up to epoch {known}"));
            return Err(Error::new("an output is ahead of the state")
                .at(format!("output {name}"))
                .because(format!("it has shown epoch {shown}, and the state has {has}"))
                .help(format!("use the state that wrote it, or begin a new output{}", end_of_journal(found))));
        }
    }
    Ok(())
}

/// Checks that the journals of the last incarnation have every frame that a sink knows of.
fn check_ends(found: &Found<'_>, claim: &Claim, base: Option<Epoch>, own: &[Taken<'_>]) -> Result<()> {
    let frames: BTreeSet<_> =
        own.iter().flat_map(Taken::entries).map(|entry| (entry.worker, entry.frame.epoch)).collect();
    for sink in found.sinks {
        let Some(published) = &sink.published else { continue };
        if published.incarnation > claim.incarnation {
            let why = format!("the output {} was written by it", sink.name);
            return Err(unclaimed(published.incarnation, why));
        }
        // The claim names what counts of earlier incarnations, and was written when that was proved.
        let own = published.ends.iter().filter(|_| published.incarnation == claim.incarnation);
        let missing = |end: &&WorkerEnd| Some(end.epoch) > base && !frames.contains(&(end.worker, end.epoch));
        if let Some(end) = own.into_iter().find(missing) {
            return Err(end_is_lost(found.survey, claim.incarnation, end, &sink.name));
        }
    }
    Ok(())
}

/// Names the file of the journal that should have a frame, and has not.
fn end_is_lost(survey: &Survey, incarnation: u64, end: &WorkerEnd, sink: &str) -> Error {
    let WorkerEnd { process, worker, epoch } = end;
    let of_process = |id: &&FileId| (id.incarnation, id.process) == (incarnation, *process);
    let last = survey.journals.keys().rfind(of_process).copied();
    let why = format!("worker {worker} has committed epoch {epoch}, which the output {sink} has published, and");
    let Some(last) = last else {
        let first = FileId { incarnation, process: *process, number: 0 };
        return missing(first, format!("{why} no file of its process is there"));
    };
    let next = FileId { number: last.number + 1, ..last };
    let is_whole =
        survey.journals.get(&last).and_then(|file| file.as_ref().ok()).is_some_and(|file| file.good == file.found);
    if is_whole {
        return missing(next, format!("{why} it is not in {last}: that file was cut short, or {next} is missing"));
    }
    damaged(last, format!("{why} the end of this file is not whole"))
}

/// What may have become of the end of the journal, if what an output has shown is not in it.
fn end_of_journal(found: &Found<'_>) -> String {
    let Some((last, _)) = found.survey.journals.last_key_value() else { return String::new() };
    let next = FileId { number: last.number + 1, ..*last };
    format!(
        "; if it is the state that wrote it, the end of its journal is lost: {last} is damaged or {next} is missing"
    )
}

/// Whether the query can read the state of every durable step.
fn check_steps(base: &Manifest, query: &QueryPrint) -> Result<()> {
    fn print<'a>(query: &'a QueryPrint, name: &str) -> Option<&'a StepPrint> {
        query.steps.iter().filter(|step| step.keeps_rows()).find(|step| step.name == name)
    }
    for step in &base.steps {
        let place = format!("step {}", step.name);
        let Some(now) = print(query, &step.name) else {
            return Err(Error::new("the state has rows of a step that the query does not have")
                .at(place)
                .help("give the step its name back, or begin a new state"));
        };
        if print(&base.query, &step.name).is_some_and(|then| then.differs_in_shape(now)) {
            return Err(Error::new("the state has rows of another type than the query")
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
        Some(name) => Err(Error::new("a segment of the snapshot is missing")
            .at(format!("segments/{name}"))
            .because(format!("{} names it", base.id()))
            .help(RESTORE)),
    }
}

/// Whether the query is the one that went on last, where that matters.
fn check_query(found: &Found<'_>, claim: &Claim, base: Option<&Manifest>, replays: bool) -> Result<()> {
    let changes = changes(&claim.query, found.query);
    if changes.is_empty() || found.accept_changed_query {
        return Ok(());
    }
    let error = Error::new("the query has changed since this state was used last").because(changes.join(", "));
    if replays {
        return Err(error.help(
            "epochs are to be replayed, which the changed query may not repeat: stop the old one cleanly first, or pass \
             --accept-changed-query",
        ));
    }
    let then = |name: &str| base.and_then(|base| base.sinks.iter().find(|sink| sink.name == name));
    let holds = |sink: &&SinkFound| {
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

/// What is different, in words.
pub(crate) fn changes(then: &QueryPrint, now: &QueryPrint) -> Vec<String> {
    let mut changes = Vec::new();
    if then.build != now.build {
        changes.push(format!("the program is another build ({}, was {})", now.build, then.build));
    }
    let flags = |print: &QueryPrint| print.flags.iter().cloned().collect::<BTreeMap<_, _>>();
    let (old, new) = (flags(then), flags(now));
    for name in old.keys().chain(new.keys()).collect::<BTreeSet<_>>() {
        match (old.get(name), new.get(name)) {
            (Some(was), Some(is)) if was != is => changes.push(format!("{name} is {is}, was {was}")),
            (Some(was), None) => changes.push(format!("{name} is gone, was {was}")),
            (None, Some(is)) => changes.push(format!("{name} is new: {is}")),
            _ => {}
        }
    }
    let names =
        |print: &QueryPrint| print.steps.iter().map(|step| (step.kind.clone(), step.name.clone())).collect::<Vec<_>>();
    let (old, new) = (names(then), names(now));
    for (step, (kind, name)) in now.steps.iter().zip(&new) {
        match then.steps.iter().find(|then| (&then.kind, &then.name) == (kind, name)) {
            None => changes.push(format!("the step {kind} {name} is new")),
            Some(was) if kind == sources::KIND => changes.extend(sources::change(was, step)),
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
    let flag_names = |print: &QueryPrint| print.flags.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
    if changes.is_empty() && (old, flag_names(then)) != (new, flag_names(now)) {
        changes.push("its steps or flags are in another order".into());
    }
    changes
}

/// The greatest epoch that anything has, whether it counts or not.
fn last_epoch(found: &Found<'_>) -> Epoch {
    let Survey { claims, manifests, journals, .. } = found.survey;
    let entries = journals.values().flatten().flat_map(|file| &file.entries).map(|entry| entry.frame.epoch);
    let befores = journals.values().flatten().filter_map(|file| file.header.as_ref()?.before?.last);
    let claims = claims.values().flatten().map(|claim| claim.last_epoch);
    let manifests = manifests.keys().map(|id| id.epoch);
    let sinks = found.sinks.iter().filter_map(SinkFound::epoch);
    entries.chain(befores).chain(claims).chain(manifests).chain(sinks).max().unwrap_or_default()
}

/// What nothing counts any more.
fn obsolete(found: &Found<'_>, manifests: &[ManifestId], accepted: &[Accepted]) -> Vec<String> {
    let Survey { manifests: all, journals, unfinished, .. } = found.survey;
    let counts = |id: &FileId| accepted.iter().any(|accepted| accepted.file == *id);
    let journals = journals.keys().filter(|id| !counts(id)).map(|id| format!("journal/{id}"));
    let manifests = all.keys().filter(|id| !manifests.contains(id)).map(|id| format!("manifests/{id}"));
    journals.chain(manifests).chain(unfinished.iter().cloned()).collect()
}
