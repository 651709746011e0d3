//! Recovery decisions, case by case.
//!
//! A case is a list of what was found, separated by semicolons, and the decision or the refusal as a text:
//!
//! * `claim 2 from 6-1 names 4-1 counts 1-0-0:3` – incarnation 2 resumed from a manifest, knew others, and counted
//!   frames.
//! * `1-0-0 workers 2 = 0@2 1@2` – a journal file, and the frames in it: worker and epoch. Also `known 2`: number of
//!   its frames that are known to be synced; `after 3/8`: number of frames and last epoch of the previous file;
//!   `headless`; `damaged`; `whole`: it ends with its last frame.
//! * `manifest 6-1 out 4 step t segment a ended damaged` – a manifest with a sink, a step, a segment.
//! * `out 7 changing` – the sink `out` has published that epoch; it holds a collection. `out -`: it is new. `out 7 by 2
//!   knows 0/0@6 1/1@7` – incarnation 2 wrote to it, with the ends of journals: process, worker and epoch.

use super::*;
use crate::durable::journal::{JournalEntry, JournalHeader, PreviousFile};
use crate::durable::manifest::{ManifestId, StepState};
use crate::durable::recovery::{AcceptedFile, ProcessInfo};
use crate::durable::segment::SegmentInfo;
use crate::error::Error;

const STATE: StateId = StateId(1);

/// Length of a file with `frames` frames.
fn length(frames: u64) -> u64 {
    100 + 10 * frames
}

struct RecoveryCase {
    survey: StateScan,
    sinks: Vec<ReportedSink>,
}

type Words<'a> = std::iter::Peekable<std::str::SplitWhitespace<'a>>;

fn number(words: &mut Words<'_>) -> u64 {
    words.next().unwrap().parse().unwrap()
}

fn file_id(name: &str) -> FileId {
    FileId::parse(&format!("{name}.journal")).unwrap()
}

fn manifest_id(name: &str) -> ManifestId {
    ManifestId::parse(&format!("{name}.manifest")).unwrap()
}

fn claim(case: &mut RecoveryCase, mut words: Words<'_>) {
    let incarnation = number(&mut words);
    let mut claim = Claim {
        state: STATE,
        incarnation,
        holder: ProcessInfo { pid: 1, host: "h".into(), since_ms: 0 },
        manifests: vec![],
        base: None,
        journals: vec![],
        last_epoch: Epoch(0),
        query: print(),
    };
    let mut damaged = false;
    while let Some(word) = words.next() {
        match word {
            "from" => {
                claim.base = words.next().map(manifest_id);
                claim.manifests.extend(claim.base);
            }
            "names" => claim.manifests.push(manifest_id(words.next().unwrap())),
            "counts" => {
                let (file, rest) = words.next().unwrap().split_once(':').unwrap();
                let (frames, last) = rest.split_once('/').unwrap();
                let (file, length) = (file_id(file), length(frames.parse().unwrap()));
                claim.journals.push(AcceptedFile { file, length, last: last.parse().ok().map(Epoch) });
            }
            "last" => claim.last_epoch = Epoch(number(&mut words)),
            "damaged" => damaged = true,
            word => panic!("{word}"),
        }
    }
    let claim = if damaged { Err(Error::new("the claim is damaged")) } else { Ok(claim) };
    case.survey.claims.insert(incarnation, claim);
}

fn journal(case: &mut RecoveryCase, id: FileId, mut words: Words<'_>) {
    let mut header = JournalHeader { state: STATE, file: id, workers: 1, before: None };
    let (mut entries, mut synced_length, mut headless, mut damaged, mut behind) = (Vec::new(), 0, false, false, 3);
    while let Some(word) = words.next() {
        match word {
            "workers" => header.workers = number(&mut words) as u32,
            "known" => synced_length = length(number(&mut words)),
            "after" => {
                let (frames, last) = words.next().unwrap().split_once('/').unwrap();
                let length = length(frames.parse().unwrap());
                header.before = Some(PreviousFile { length, last: last.parse().ok().map(Epoch) });
            }
            "headless" => headless = true,
            "whole" => behind = 0,
            "damaged" => damaged = true,
            "=" => {}
            word => {
                let (worker, epoch) = word.split_once('@').unwrap();
                let (worker, epoch): (u32, u64) = (worker.parse().unwrap(), epoch.parse().unwrap());
                let end = length(entries.len() as u64 + 1);
                entries.push(JournalEntry { worker, frame: frame(epoch, &[(worker, epoch)]), end });
            }
        }
    }
    let intact_length = if headless { 0 } else { length(entries.len() as u64) };
    let header = (!headless).then_some(header);
    let file = JournalFile {
        id,
        header,
        entries,
        header_length: 100,
        intact_length,
        synced_length,
        file_length: intact_length + behind,
    };
    let file = if damaged { Err(Error::new("a file of the journal is damaged")) } else { Ok(file) };
    case.survey.journals.insert(id, file);
}

fn manifest_found(case: &mut RecoveryCase, mut words: Words<'_>) {
    let id = manifest_id(words.next().unwrap());
    let mut found = manifest(STATE, id.incarnation, id.epoch.0);
    let mut damaged = false;
    while let Some(word) = words.next() {
        match word {
            "out" => {
                let published = words.next().unwrap().parse().ok().map(Epoch);
                found.sinks.push(SinkState { name: "out".into(), published, on_change: false });
            }
            "step" => {
                let name = words.next().unwrap().to_owned();
                found.steps.push(StepState { name, closed: EventTime::MIN, segments: vec![] });
            }
            "segment" => {
                let step = found.steps.last_mut().unwrap();
                step.segments.push(SegmentInfo {
                    file: words.next().unwrap().into(),
                    step: step.name.clone(),
                    from: Epoch(0),
                    to: id.epoch,
                    rows: 1,
                    bytes: 1,
                    least: EventTime::MIN,
                    greatest: EventTime::MIN,
                    level: 0,
                    checksum: 0,
                });
            }
            "ended" => found.ended = true,
            "damaged" => damaged = true,
            word => panic!("{word}"),
        }
    }
    let found = if damaged { Err(Error::new("the manifest is damaged").at(id)) } else { Ok(found) };
    case.survey.manifests.insert(id, found);
}

fn sink_found(case: &mut RecoveryCase, mut words: Words<'_>) {
    let shown = words.next().unwrap().parse().ok();
    let (mut on_change, mut incarnation, mut ends) = (false, 0, Vec::new());
    while let Some(word) = words.next() {
        match word {
            "changing" => on_change = true,
            "by" => incarnation = number(&mut words),
            "knows" => {}
            word => {
                let (worker, epoch) = word.split_once('@').unwrap();
                let (process, worker) = worker.split_once('/').unwrap();
                let (process, worker) = (process.parse().unwrap(), worker.parse().unwrap());
                ends.push(WorkerEnd { process, worker, epoch: Epoch(epoch.parse().unwrap()) });
            }
        }
    }
    let published = shown.map(|epoch| published(epoch, incarnation, ends));
    case.sinks.push(ReportedSink { name: "out".into(), published, on_change });
}

fn case(found: &str) -> RecoveryCase {
    let mut case = RecoveryCase { survey: StateScan::default(), sinks: vec![] };
    for item in found.split([';', '\n']).map(str::trim).filter(|item| !item.is_empty()) {
        let mut words = item.split_whitespace().peekable();
        match words.next().unwrap() {
            "claim" => claim(&mut case, words),
            "manifest" => manifest_found(&mut case, words),
            "out" => sink_found(&mut case, words),
            "segment" => case.survey.segments.extend(words.next().map(str::to_owned)),
            name => journal(&mut case, file_id(name), words),
        }
    }
    case
}

fn list(of: impl IntoIterator<Item = impl ToString>) -> String {
    let words: Vec<_> = of.into_iter().map(|one| one.to_string()).collect();
    if words.is_empty() { "nothing".into() } else { words.join(" ") }
}

/// The decision as a text.
fn told(case: &RecoveryCase, query: &QueryFingerprint, accept_changed_query: bool) -> String {
    let found = RecoveryInput {
        incarnation: 9,
        survey: &case.survey,
        sinks: &case.sinks,
        query,
        changes: &DeclaredChanges::default(),
        accept_changed_query,
        accept_changed_sources: false,
    };
    let decision = match decide(&found) {
        Ok(decision) => decision,
        Err(why) => return why.to_string(),
    };
    let short_name = |name: &str| name.split('.').next().unwrap().replace("journal/", "").replace("manifests/", "m");
    let mut told = format!(
        "from {}, replay {}, count {}, last {}",
        list(decision.base.iter().map(|base| short_name(&base.id().to_string()))),
        list(decision.replay.iter().map(|frame| frame.epoch)),
        list(decision.accepted.iter().map(|a| format!(
            "{}:{}",
            short_name(&a.file.to_string()),
            (a.length - 100) / 10
        ))),
        decision.last_epoch
    );
    if !decision.obsolete.is_empty() {
        told.push_str(&format!(", obsolete {}", list(decision.obsolete.iter().map(|path| short_name(path)))));
    }
    if decision.ended {
        told.push_str(", ended");
    }
    told
}

#[track_caller]
fn check(found: &str, expected: &str) {
    let told = told(&case(found), &print(), false);
    let fits = expected.strip_suffix('…').map_or(told == expected, |begin| told.starts_with(begin));
    assert!(fits, "{found}\nexpected: {expected}\nfound:    {told}");
}

#[test]
fn a_state_without_a_past_begins_from_nothing() {
    check("", "from nothing, replay nothing, count nothing, last 0");
    check("out -", "from nothing, replay nothing, count nothing, last 0");
    check("claim 1", "from nothing, replay nothing, count nothing, last 0");
    check("claim 1 last 8", "from nothing, replay nothing, count nothing, last 8");
    check(
        "out 6",
        "an output is ahead of the state (output out): it has published epoch 6, and the state has nothing; use the state \
         that wrote it, or write a new output under another name and forget this one with \
         `State::drop_output(\"out\")` or --drop-output",
    );
}

#[test]
fn a_life_counts_when_all_its_workers_have_bound_its_first_epoch() {
    check("claim 1; 1-0-0 = 0@2 0@4", "from nothing, replay 2 4, count 1-0-0:2, last 4");
    check("claim 1; 1-0-0 workers 2 = 0@2 1@2 0@4", "from nothing, replay 2 4, count 1-0-0:3, last 4");
    check("claim 1; 1-0-0 workers 2 = 0@2 0@4", "from nothing, replay nothing, count nothing, last 4, obsolete 1-0-0");
    check(
        "claim 1; 1-0-0 workers 2 = 0@2 0@4; 1-1-0 workers 2 = 1@4",
        "from nothing, replay nothing, count nothing, last 4, obsolete 1-0-0 1-1-0",
    );
    check(
        "claim 1; 1-0-0 workers 2 = 0@2 0@4; 1-1-0 workers 2 = 1@2",
        "from nothing, replay 2 4, count 1-0-0:2 1-1-0:1, last 4",
    );
    check("claim 1; 1-0-0", "from nothing, replay nothing, count nothing, last 0, obsolete 1-0-0");
    check("claim 1; 1-0-0 headless", "from nothing, replay nothing, count nothing, last 0, obsolete 1-0-0");
    // Nothing of it can have been published.
    check("claim 1; 1-0-0 workers 2 = 0@2; out 2", "an output is ahead of the state (output out)…");
    // The next incarnation starts from the beginning too, and its own first epoch counts.
    check(
        "claim 2 last 4; 1-0-0 workers 2 = 0@2; 2-0-0 workers 2 = 0@6 1@6",
        "from nothing, replay 6, count 2-0-0:2, last 6, obsolete 1-0-0",
    );
    // The same holds for an incarnation that resumes: it may find new partitions, too.
    check(
        "claim 2 counts 1-0-0:1/2; 1-0-0 = 0@2; 2-0-0 workers 2 = 1@6 1@8",
        "from nothing, replay 2, count 1-0-0:1, last 8, obsolete 2-0-0",
    );
    check(
        "claim 2 counts 1-0-0:1/2; 1-0-0 = 0@2; 2-0-0 workers 2 = 1@6 1@8 0@6",
        "from nothing, replay 2 6 8, count 1-0-0:1 2-0-0:3, last 8",
    );
    check(
        "claim 1; manifest 4-1; 1-0-0 workers 2 = 1@6",
        "from 4-1, replay nothing, count nothing, last 6, obsolete 1-0-0",
    );
    // A manifest at or after the first epoch includes all of it.
    check("claim 1; manifest 4-1; 1-0-0 workers 2 = 0@4 1@6", "from 4-1, replay 6, count 1-0-0:2, last 6");
    check("claim 1; manifest 4-1; 1-0-1 after 2/4 workers 2 = 1@6", "from 4-1, replay 6, count 1-0-1:1, last 6");
}

#[test]
fn the_newest_manifest_is_gone_on_from() {
    check("claim 1; manifest 4-1; manifest 8-1; 1-0-0 = 0@2 0@8 0@10", "from 8-1, replay 10, count 1-0-0:3, last 10");
    check("claim 2 from 4-1; manifest 4-1; manifest 10-2", "from 10-2, replay nothing, count nothing, last 10");
    check("claim 1; manifest 8-1 damaged; manifest 4-1", "the manifest is damaged (8-1.manifest); restore…");
    check(
        "claim 1; manifest 8-1; manifest 4-1 damaged",
        "from 8-1, replay nothing, count nothing, last 8, obsolete m4-1",
    );
    // Files that incarnation 1 wrote after incarnation 2 had read the directory do not count.
    check(
        "claim 2 from 4-1; manifest 4-1; manifest 8-1",
        "from 4-1, replay nothing, count nothing, last 8, obsolete m8-1",
    );
    check(
        "claim 2 from 4-1; manifest 4-1; manifest 8-1 damaged",
        "from 4-1, replay nothing, count nothing, last 8, obsolete m8-1",
    );
    check(
        "claim 2 from 8-1 names 4-1; manifest 4-1",
        "the manifest that the state went on from last is missing (manifests/8-1.manifest); restore…",
    );
    check("claim 2 from 8-1", "the manifest that the state went on from last is missing…");
    check("claim 2 from 8-1; manifest 10-2", "from 10-2, replay nothing, count nothing, last 10");
    check("claim 1; manifest 4-1 ended; 1-0-0 = 0@2", "from 4-1, replay nothing, count 1-0-0:1, last 4, ended");
}

#[test]
fn of_older_lives_what_the_claim_counts_of_the_latest_all() {
    check(
        "claim 2 counts 1-0-0:2/4; 1-0-0 = 0@2 0@4 0@6; 2-0-0 = 0@8",
        "from nothing, replay 2 4 8, count 1-0-0:2 2-0-0:1, last 8",
    );
    check(
        "claim 2 counts 1-0-0:1/2; 1-0-0 = 0@2; 1-1-0 = 1@2; 2-0-0 = 0@8",
        "from nothing, replay 2 8, count 1-0-0:1 2-0-0:1, last 8, obsolete 1-1-0",
    );
    check(
        "claim 2 counts 1-0-0:3/6; 1-0-0 = 0@2 0@4",
        "the journal is damaged (journal/1-0-0.journal): incarnation 2 counts 130 bytes of it, of which 120 are good; restore…",
    );
    check(
        "claim 2 counts 1-0-0:3/6",
        "a file of the journal is missing (journal/1-0-0.journal): incarnation 2 counts it up to…",
    );
    check("claim 2 counts 1-0-0:1/2; 1-0-0 damaged", "a file of the journal is damaged; restore…");
    check("claim 2 counts 1-0-0:3/6 from 8-1; manifest 8-1", "from 8-1, replay nothing, count nothing, last 8");
    // An incarnation 5 that began without a claim is fine; one whose claim is lost is refused.
    check(
        "claim 2; 5-0-0 = 0@2",
        "the claim of an incarnation of the state is missing (lives/5.claim): that incarnation wrote 5-0-0.journal; restore…",
    );
    check(
        "manifest 4-1",
        "the claim of an incarnation of the state is missing (lives/1.claim): that incarnation wrote 4-1.manifest;…",
    );
    check("claim 1; claim 2 damaged", "the claim is damaged; restore…");
    check("claim 1 damaged; claim 2", "from nothing, replay nothing, count nothing, last 0");
}

#[test]
fn what_was_synced_must_be_good() {
    check("claim 1; 1-0-0 known 2 = 0@2 0@4", "from nothing, replay 2 4, count 1-0-0:2, last 4");
    check(
        "claim 1; 1-0-0 known 3 = 0@2 0@4",
        "the journal is damaged (journal/1-0-0.journal): 130 bytes of it were synced, of which 120 are good; restore…",
    );
    check("claim 1; 1-0-0 headless known 1", "the journal is damaged (journal/1-0-0.journal): its beginning is not…");
    check("claim 1; 1-0-0 = 0@2; 1-0-1 after 1/2 = 0@4", "from nothing, replay 2 4, count 1-0-0:1 1-0-1:1, last 4");
    check("claim 1; 1-0-0 = 0@2; 1-0-1 headless", "from nothing, replay 2, count 1-0-0:1, last 2, obsolete 1-0-1");
    check("claim 1; 1-0-0 headless; 1-0-1 after 1/2", "the journal is damaged (journal/1-0-0.journal): its beginning…");
    check(
        "claim 1; 1-0-0 = 0@2; 1-0-1 after 2/4 = 0@6",
        "the journal is damaged (journal/1-0-0.journal): 120 bytes of it were synced, of which 110 are good; restore…",
    );
    check(
        "claim 1; 1-0-1 after 2/4 = 0@6",
        "a file of the journal is missing (journal/1-0-0.journal): it goes up to epoch 4; restore…",
    );
    check("claim 1; 1-0-1 after 2/4 = 0@6; manifest 4-1", "from 4-1, replay 6, count 1-0-1:1, last 6");
    check(
        "claim 1; 1-0-1 = 0@6",
        "the journal is damaged (journal/1-0-1.journal): it does not follow the file before…",
    );
    check("claim 1; 1-0-0 after 1/2 = 0@6", "the journal is damaged (journal/1-0-0.journal): it does not follow…");
    check(
        "claim 1; 1-0-0 = 0@4 0@2",
        "the journal is damaged (journal/1-0-0.journal): worker 0 has committed epoch 2 out…",
    );
    check(
        "claim 1; 1-0-0 = 0@4 1@4",
        "the journal is damaged (journal/1-0-0.journal): worker 1 has committed epoch 4 out…",
    );
    check(
        "claim 2 counts 1-0-0:1/4; 1-0-0 = 0@4; 2-0-0 = 0@4",
        "the journal is damaged (journal/2-0-0.journal): worker 0 has committed epoch 4 out of order; restore…",
    );
    check(
        "claim 1; 1-0-0 workers 2 = 0@2; 1-1-0 workers 3 = 1@2",
        "the journal is damaged (journal/1-1-0.journal): its incarnation has 2 workers, not 3; restore…",
    );
    check(
        "claim 1; manifest 4-1 step t segment a; segment b",
        "a segment of the snapshot is missing (segments/a): 4-1.manifest names it; restore…",
    );
    check("claim 1; manifest 4-1 step t segment a; segment a", "from 4-1, replay nothing, count nothing, last 4");
}

#[test]
fn no_sink_is_behind_or_ahead() {
    check("claim 1; 1-0-0 = 0@2 0@4; out 5", "from nothing, replay 2 4, count 1-0-0:2, last 5");
    check(
        "claim 1; 1-0-0 = 0@2 0@4; out 6",
        "an output is ahead of the state (output out): it has published epoch 6, and the state has what happened up to epoch \
         4; use…",
    );
    check("claim 1; manifest 6-1 out 6; out 7", "from 6-1, replay nothing, count nothing, last 7");
    check("claim 1; manifest 6-1 out 6; out 8", "an output is ahead of the state (output out)…");
    check(
        "claim 1; manifest 6-1 out 6; out 4",
        "an output is behind the state (output out): it ends with epoch 4, and had published epoch 6 at the snapshot; put \
         it…",
    );
    check(
        "claim 1; manifest 6-1 out 6; out -",
        "an output is behind the state (output out): it has published nothing, and had published epoch 6 at the snapshot; put…",
    );
    check(
        "claim 1; manifest 6-1 out 6",
        "an output of the state is missing from the query (output out); write it, as before; say `flow.output_was(…, \"out\")` if it has another name now; or forget it with `State::drop_output(\"out\")` or --drop-output",
    );
    check("claim 1; manifest 6-1 out -; out -", "from 6-1, replay nothing, count nothing, last 6");
    check("claim 1; manifest 6-1; out -", "from 6-1, replay nothing, count nothing, last 6");
    check("claim 1; manifest 6-1 ended out 6; out 4", "an output is behind the state (output out)…");
}

#[track_caller]
#[test]
fn what_a_sink_knows_of_journals_is_in_them() {
    let journals = "claim 1; 1-0-0 workers 2 = 0@2 0@4; 1-1-0 workers 2 whole = 1@2 1@4";
    check(
        &format!("{journals}; out 4 by 1 knows 0/0@4 1/1@4"),
        "from nothing, replay 2 4, count 1-0-0:2 1-1-0:2, last 4",
    );
    // A worker without input has no frame.
    check(&format!("{journals}; out 8 by 1 knows 0/0@4 1/1@4"), "an output is ahead of the state…");
    let lost = |end: &str, expected: &str| check(&format!("{journals}; out 4 by 1 knows {end}"), expected);
    lost(
        "0/0@6 1/1@4",
        "the journal is damaged (journal/1-0-0.journal): worker 0 has committed epoch 6, which the output out has \
         published, and the end of this file is not whole; restore the state from a copy, or begin a new state and new \
         outputs",
    );
    lost(
        "0/0@4 1/1@6",
        "a file of the journal is missing (journal/1-1-1.journal): worker 1 has committed epoch 6, which the output out \
         has published, and it is not in 1-1-0.journal: that file was cut short, or 1-1-1.journal is missing; restore…",
    );
    lost(
        "0/0@4 1/1@4 2/2@4",
        "a file of the journal is missing (journal/1-2-0.journal): worker 2 has committed epoch 4…",
    );
    // The snapshot includes it.
    check(&format!("{journals}; manifest 6-1 out 4; out 4 by 1 knows 0/0@6 1/1@4"), "from 6-1…");
    // The claim proves what counts of earlier incarnations; a sink that was created since knows none of their frames.
    let later = "claim 2 counts 1-0-0:2/4; 1-0-0 = 0@2 0@4; 2-0-0 workers 2 = 0@6";
    check(&format!("{later}; out 4 by 1 knows 0/0@4 1/1@4"), "from nothing, replay 2 4…");
    check(&format!("{later}; out 4 by 2"), "from nothing, replay 2 4…");
    check(&format!("{later}; out 4 by 2 knows 1/1@6"), "a file of the journal is missing (journal/2-1-0.journal)…");
    check(
        &format!("{later}; out 4 by 3"),
        "the claim of an incarnation of the state is missing (lives/3.claim): the output out…",
    );
}

/// Checks the decision for a changed query, and that it resumes with `--accept-changed-query` only if `accepted`.
fn check_changed(found: &str, change: impl Fn(&mut QueryFingerprint), expected: &str, accepted: bool) {
    let mut query = print();
    change(&mut query);
    let case = case(found);
    let refused = told(&case, &query, false);
    assert!(refused.starts_with(expected.trim_end_matches('…')), "{found}\nexpected: {expected}\nfound:    {refused}");
    assert_eq!(told(&case, &query, true).starts_with("from"), accepted, "{found}");
}

#[test]
fn a_changed_query_does_not_replay() {
    let replays = "claim 1; 1-0-0 = 0@2; out 2";
    check_changed(
        replays,
        |query| query.build = "b2".into(),
        "the query has changed since this state was used last: the program is another build (b2, was b1); epochs are to \
         be replayed, which the changed query may not repeat: stop the old one cleanly first, or pass \
         --accept-changed-query",
        true,
    );
    let said = |change: fn(&mut QueryFingerprint), what: &str| {
        check_changed(replays, change, &format!("the query has changed since this state was used last: {what};"), true);
    };
    said(|query| query.flags[0].1 = "1s".into(), "--epoch is 1s, was 100ms");
    said(|query| query.flags.clear(), "--epoch is gone, was 100ms");
    said(|query| query.flags.push(("--x".into(), "1".into())), "--x is new: 1");
    said(|query| query.steps[0].detail = "tumbling 1m".into(), "the step aggregate t is tumbling 1m, was tumbling 10s");
    said(|query| query.steps[0].fingerprint = 8, "the step aggregate t has other types");
    said(|query| query.steps[0].name = "u".into(), "the step aggregate u is new, the step aggregate t is gone");
    let another = |query: &mut QueryFingerprint| {
        query.build = "b2".into();
        query.steps.retain(|step| step.kind == "source");
    };
    said(another, "the program is another build (b2, was b1), the step aggregate t is gone");
    // Nothing is replayed, so the query may have changed.
    let stopped = "claim 1; manifest 2-1 out 2; 1-0-0 = 0@2";
    check_changed(&format!("{stopped}; out 2"), another, "from 2-1", true);
    check_changed(
        &format!("{stopped}; out 2 changing"),
        another,
        "the query has changed since this state was used last: the program is another build (b2, was b1), the step \
         aggregate t is gone; the output out has rows that the changed query may not retract: write a new output under another name…",
        true,
    );
    check_changed("claim 1; manifest 2-1; out - changing", another, "from 2-1", true);
    check_changed(
        "claim 1; manifest 2-1 ended",
        another,
        "from 2-1, replay nothing, count nothing, last 2, ended",
        true,
    );
}

#[test]
fn rows_of_a_step_that_is_gone_are_not_forgotten() {
    let found = "claim 1; manifest 2-1 step t";
    check_changed(
        found,
        |query| query.steps[0].fingerprint = 8,
        // Their segments say whether they fit.
        "from 2-1",
        true,
    );
    check_changed(
        found,
        |query| query.steps.retain(|step| step.kind == "source"),
        "the state has rows of a step that the query does not have (step t); give the step its name back…",
        false,
    );
    let new_step = |query: &mut QueryFingerprint| {
        query.steps.push(StepFingerprint {
            kind: "aggregate".into(),
            name: "u".into(),
            detail: String::new(),
            fingerprint: 1,
        });
    };
    check_changed(found, new_step, "from 2-1", true);
}
