//! Checks that refuse a state: against its sinks, its segments and the query.
//!
//! Invariant: everything that may have been published is in the manifest or in the replay, or the state is refused.

use std::collections::{BTreeMap, BTreeSet};

use super::accepted_journals::{JournalPrefix, damaged, missing};
use super::claim::{Claim, RESTORE_HINT};
use super::claimed_manifests::missing_claim_error;
use super::input::{RecoveryInput, ReportedSink, StateScan};
use crate::durable::declared_changes::{DeclaredChanges, NameScope};
use crate::durable::journal::{FileId, WorkerEnd};
use crate::durable::manifest::{Manifest, QueryFingerprint, SOURCE_KIND, StepState};
use crate::durable::sources;
use crate::error::{Error, ErrorKind, Result};
use crate::time::Epoch;

/// Checks that sinks and state agree. `known` is the last epoch of the manifest and of the replay.
pub(super) fn check_sinks(found: &RecoveryInput<'_>, base: Option<&Manifest>, known: Option<Epoch>) -> Result<()> {
    for state in base.map_or(&[][..], |base| &base.sinks) {
        let name = &state.name;
        let Some(sink) = found.sinks.iter().find(|sink| sink.name == *name) else {
            return Err(Error::of(ErrorKind::QueryChanged, "an output of the state is missing from the query")
                .at(format!("output {name}"))
                .help(format!(
                    "write it, as before; say `flow.output_was(…, \"{name}\")` if it has another name now; or forget it with \
                     `State::drop_output(\"{name}\")` or --drop-output"
                )));
        };
        if let Some(shown) = state.published
            && sink.epoch() < Some(shown)
        {
            let has = sink.epoch().map_or("has published nothing".into(), |has| format!("ends with epoch {has}"));
            return Err(Error::of(ErrorKind::SinkBehind, "an output is behind the state")
                .at(format!("output {name}"))
                .because(format!("it {has}, and had published epoch {shown} at the snapshot"))
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
                .because(format!("it has published epoch {shown}, and the state has {has}"))
                .help(format!(
                    "use the state that wrote it, or write a new output under another name and forget this one with \
                     `State::drop_output(\"{name}\")` or --drop-output{}",
                    lost_end_hint(found)
                )));
        }
        // Another incarnation may have written it, before it was dropped.
        if let Some(base) = base.filter(|base| shown < base.epoch)
            && base.sinks.iter().all(|state| state.name != *name)
        {
            return Err(Error::of(ErrorKind::SinkBehind, "an output lacks what happened while it was not written")
                .at(format!("output {name}"))
                .because(format!(
                    "it ends with epoch {shown}, and the state has gone on without it to epoch {}",
                    base.epoch
                ))
                .help("write to a new place under another name"));
        }
    }
    Ok(())
}

/// Checks that the journals of the last incarnation have every frame that a sink knows of.
pub(super) fn check_ends(
    found: &RecoveryInput<'_>,
    claim: &Claim,
    base: Option<Epoch>,
    own: &[JournalPrefix<'_>],
) -> Result<()> {
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

/// Checks that the query has every step of the state. The shape of their rows is checked when segments are read.
pub(super) fn check_steps(base: &Manifest, query: &QueryFingerprint, changes: &DeclaredChanges) -> Result<()> {
    let has = |name: &str| query.steps.iter().any(|step| step.keeps_rows() && step.name == name);
    let Some(StepState { name, .. }) = base.steps.iter().find(|step| !has(&step.name)) else { return Ok(()) };
    if let Some(heir) = changes.heir(NameScope::Step, name) {
        let error = Error::of(ErrorKind::QueryChanged, "the state has rows of a step under its old and its new name");
        return Err(error
            .at(format!("step {heir}"))
            .because(format!("it is said to have been `{name}`, and the state has rows of `{heir}` and of `{name}`"))
            .help(format!(
                "remove `.was(\"{name}\")`, and drop the rows of `{name}` with `State::drop_step(\"{name}\")`, or give \
                 the step a name that the state does not have"
            )));
    }
    let error = Error::of(ErrorKind::QueryChanged, "the state has rows of a step that the query does not have");
    Err(error.at(format!("step {name}")).help(format!(
        "give the step its name back, write `.was(\"{name}\")` at the step that continues it, or drop its rows with \
         `State::drop_step(\"{name}\")` or --drop-step"
    )))
}

pub(super) fn check_segments(base: &Manifest, segments: &BTreeSet<String>) -> Result<()> {
    match base.segments().find(|name| !segments.contains(*name)) {
        None => Ok(()),
        Some(name) => Err(Error::of(ErrorKind::StateDamaged, "a segment of the snapshot is missing")
            .at(format!("segments/{name}"))
            .because(format!("{} names it", base.id()))
            .help(RESTORE_HINT)),
    }
}

/// Checks that the query has not changed since the last claim, if a change could affect published or replayed output.
pub(super) fn check_query(
    found: &RecoveryInput<'_>,
    claim: &Claim,
    base: Option<&Manifest>,
    replays: bool,
) -> Result<()> {
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
            "the output {0} has rows that the changed query may not retract: write a new output under another name and \
             forget this one with `State::drop_output(\"{0}\")` or --drop-output, or pass --accept-changed-query",
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
