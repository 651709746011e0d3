//! Sources as part of a query's fingerprint: a pure comparison of a state's sources with a query's sources.
//!
//! * A source has a **name** in the query, under which its progress is stored, and an **identity**, which does not
//!   depend on its location: for example the id of a topic, or that it is a CSV file. The fingerprint of a source's
//!   step is a hash of the identity; 0 stands for an unknown one, as in states of programs that stored none.
//! * The **progress** of a source is the position up to which the snapshot and the journal's later epochs have read it.
//!
//! * A **note** says that a source was read first: from its epoch on, the sources that waited for it are read. Notes are
//!   kept like the progress of a source of another name, in the journal and in manifests.
//!
//! Invariants: a query resumes only with the sources that have progress, each under its name, and with no further one.
//! Otherwise progress would be lost, and records read again. A source's location (its path, the brokers' address) may
//! change if its identity is known to be the same; readers also compare contents.

use std::collections::{BTreeMap, BTreeSet};

use super::journal::{Frame, PartitionProgress, TopicPartition};
use super::manifest::{Manifest, QueryFingerprint, SOURCE_KIND, StepFingerprint};
use crate::error::{Error, ErrorKind, Result};
use crate::time::EventTime;

/// Name prefix of notes.
const READ_FIRST: &str = "read first: ";

/// Returns the note that the source of this name was read first.
pub(crate) fn read_first_note(name: &str) -> PartitionProgress {
    PartitionProgress {
        source: format!("{READ_FIRST}{name}"),
        partition: 0,
        start_offset: None,
        next_offset: 0,
        watermark: EventTime::MIN,
        idle: false,
        end_offset: None,
        ended: true,
        check: None,
        values: None,
        topic: None,
        rejected_for_now: Vec::new(),
    }
}

/// `true` if this is the name of a note, and of no source.
pub(crate) fn is_note(name: &str) -> bool {
    name.starts_with(READ_FIRST)
}

/// Returns the name of a source, or of its note, with the source's name replaced.
pub(super) fn renamed<'a>(name: &'a str, new: impl FnOnce(&'a str) -> &'a str) -> String {
    match name.strip_prefix(READ_FIRST) {
        Some(name) => format!("{READ_FIRST}{}", new(name)),
        None => new(name).to_owned(),
    }
}

/// `true` if a state has the note that the source of this name was read first.
pub(crate) fn was_read_first(name: &str, base: Option<&Manifest>, replay: &[Frame]) -> bool {
    let saved = base.into_iter().flat_map(|base| &base.sources).map(|source| &source.name);
    let mut names = saved.chain(replay.iter().flat_map(|frame| &frame.progress).map(|bound| &bound.source));
    names.any(|known| known.strip_prefix(READ_FIRST) == Some(name))
}

/// Partitions that a state knows by a number and a topic, of each source: in the order of numbers.
pub(crate) type KnownPartitions = BTreeMap<String, BTreeMap<u32, TopicPartition>>;

/// Returns the partitions that a state knows by a number and a topic: those of the snapshot that it resumes from, and
/// those that the journal's epochs after it have found, whichever worker read them.
pub(crate) fn known_partitions(base: Option<&Manifest>, replay: &[Frame]) -> KnownPartitions {
    let saved = base.into_iter().flat_map(|base| &base.sources).flat_map(|source| &source.progress);
    let replayed = replay.iter().flat_map(|frame| &frame.progress);
    let mut known = KnownPartitions::new();
    for bound in saved.chain(replayed) {
        if let Some(topic) = &bound.topic {
            known.entry(bound.source.clone()).or_default().insert(bound.partition, topic.clone());
        }
    }
    known
}

const ACCEPT: &str = "--accept-changed-sources";

/// The hash of a source's identity; never 0.
pub(crate) fn fingerprint(identity: &str) -> u64 {
    // FNV-1a: equal in all builds.
    let hash = identity
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    hash.max(1)
}

/// The fingerprint of the source of this name; 0 if the source or its identity is unknown.
pub(crate) fn fingerprint_of(query: &QueryFingerprint, name: &str) -> u64 {
    step_of(query, name).map_or(0, |step| step.fingerprint)
}

fn steps(query: &QueryFingerprint) -> impl Iterator<Item = &StepFingerprint> {
    query.steps.iter().filter(|step| step.kind == SOURCE_KIND)
}

fn step_of<'a>(query: &'a QueryFingerprint, name: &str) -> Option<&'a StepFingerprint> {
    steps(query).find(|step| step.name == name)
}

/// `true` if both identities are known and `other` is true of them.
fn known(then: &StepFingerprint, now: &StepFingerprint, other: impl Fn(u64, u64) -> bool) -> bool {
    then.fingerprint != 0 && now.fingerprint != 0 && other(then.fingerprint, now.fingerprint)
}

/// Describes how a source of one name changed between two queries; `None` if it did not.
pub(super) fn change(then: &StepFingerprint, now: &StepFingerprint) -> Option<String> {
    if known(then, now, |then, now| then != now) {
        return Some(format!("the source {} is another one", now.name));
    }
    let is_moved = known(then, now, |then, now| then == now);
    let changed = then.detail != now.detail && !is_moved;
    changed.then(|| format!("the source {} is {}, was {}", now.name, now.detail, then.detail))
}

/// Checks that a query has the sources that the state has read, and no new ones. `then` is the query that ran last; the
/// state resumes from `base` and replays `replay`. `heir` returns the source that is said to have had a name.
pub(super) fn check_sources<'h>(
    then: &QueryFingerprint,
    now: &QueryFingerprint,
    base: Option<&Manifest>,
    replay: &[Frame],
    heir: impl Fn(&str) -> Option<&'h str>,
) -> Result<()> {
    let saved = base.into_iter().flat_map(|base| &base.sources).filter(|source| !source.progress.is_empty());
    let saved = saved.map(|source| source.name.as_str());
    let replayed = replay.iter().flat_map(|frame| &frame.progress).map(|bound| bound.source.as_str());
    let progress: BTreeSet<&str> = saved.chain(replayed).filter(|name| !is_note(name)).collect();
    if progress.is_empty() {
        return Ok(());
    }
    let new = || steps(now).filter(|step| !progress.contains(&*step.name) && step_of(then, &step.name).is_none());
    for name in &progress {
        let Some(step) = step_of(now, name) else {
            return Err(match heir(name) {
                Some(heir) => both_read(name, heir),
                None => missing(name, new().next()),
            });
        };
        let Some(was) = step_of(then, name).filter(|was| known(was, step, |then, now| then != now)) else { continue };
        return Err(another(was, step));
    }
    match new().next() {
        None => Ok(()),
        Some(step) => Err(Error::of(ErrorKind::SourceChanged, "the query has a source that the state has not read")
            .at(format!("source {}", step.name))
            .because("the state has read others, and this one would be read from its start")
            .help(format!(
                "if it is new to the query, pass {ACCEPT}; if the state has read it under another name, write `.was(…)` \
                 with that name behind the read; or begin a new state"
            ))),
    }
}

fn missing(name: &str, new: Option<&StepFingerprint>) -> Error {
    let error = Error::of(ErrorKind::SourceChanged, "the state has read a source that the query does not have")
        .at(format!("source {name}"));
    let error = match new {
        None => error.because("how far it was read would be lost"),
        Some(new) => error.because(format!(
            "how far it was read would be lost, and the source {} read from its start, twice if it is the same",
            new.name
        )),
    };
    error.help(format!(
        "give the source its name back, write `.was(\"{name}\")` behind the read that continues it, begin a new state, or \
         pass {ACCEPT} to leave it out for good"
    ))
}

fn both_read(old: &str, new: &str) -> Error {
    Error::of(ErrorKind::SourceChanged, "the state has read a source under its old and its new name")
        .at(format!("source {new}"))
        .because(format!("it is said to have been `{old}`, and the state has read `{old}` and `{new}`"))
        .help(format!(
            "remove `.was(\"{old}\")`, and pass {ACCEPT} to leave `{old}` out for good; or give the source a name that the \
             state has not read"
        ))
}

fn another(then: &StepFingerprint, now: &StepFingerprint) -> Error {
    let error = Error::of(ErrorKind::SourceChanged, "a source is not the one that the state has read")
        .at(format!("source {}", now.name));
    if then.detail == now.detail {
        let why = format!("{} was deleted and created again", now.detail);
        return error.because(why).help("start with a new --state");
    }
    error.because(format!("it is {}, was {}", now.detail, then.detail)).help(format!(
        "give each source its name back, begin a new state, or pass {ACCEPT} if it has the same records at the same offsets"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::durable::StateId;
    use crate::durable::journal::PartitionProgress;
    use crate::durable::manifest::SourceState;
    use crate::time::Epoch;

    /// Sources as `name=detail#fingerprint`.
    fn query(sources: &str) -> QueryFingerprint {
        let steps = sources.split_whitespace().map(|source| {
            let (name, rest) = source.split_once('=').unwrap();
            let (detail, fingerprint) = rest.split_once('#').unwrap();
            let (name, detail) = (name.to_owned(), detail.to_owned());
            StepFingerprint { kind: SOURCE_KIND.into(), name, detail, fingerprint: fingerprint.parse().unwrap() }
        });
        QueryFingerprint { build: "b".into(), flags: Vec::new(), steps: steps.collect() }
    }

    fn bound(source: &str) -> PartitionProgress {
        PartitionProgress {
            source: source.into(),
            partition: 0,
            start_offset: None,
            next_offset: 7,
            watermark: EventTime::MIN,
            idle: false,
            end_offset: None,
            ended: false,
            check: None,
            values: None,
            topic: None,
            rejected_for_now: Vec::new(),
        }
    }

    fn base(sources: &str) -> Manifest {
        let state = |name: &str| SourceState {
            name: name.into(),
            progress: vec![bound(name)],
            watermark: EventTime::MIN,
            activation_watermarks: Vec::new(),
        };
        Manifest {
            state: StateId(1),
            job: "j".into(),
            incarnation: 1,
            epoch: Epoch(2),
            created_ms: 0,
            ended: false,
            query: QueryFingerprint::default(),
            sources: sources.split_whitespace().map(state).collect(),
            steps: Vec::new(),
            sinks: Vec::new(),
        }
    }

    /// Returns `ok` or the error, for a query that recovers from a snapshot with `saved` and replays `replayed`.
    fn said(then: &str, saved: &str, replayed: &str, now: &str) -> String {
        let replay = replayed.split(' ').filter(|name| !name.is_empty());
        let replay = replay.map(|name| name.replace('\u{a0}', " "));
        let replay = replay.map(|name| Frame { epoch: Epoch(4), progress: vec![bound(&name)] });
        let replay: Vec<_> = replay.collect();
        let base = (!saved.is_empty()).then(|| base(saved));
        check_sources(&query(then), &query(now), base.as_ref(), &replay, |_| None)
            .map_or_else(|e| e.to_string(), |()| "ok".into())
    }

    #[test]
    fn a_query_goes_on_only_with_the_sources_that_the_state_has_read() {
        let lost =
            "the state has read a source that the query does not have (source a): how far it was read would be lost";
        let new = "the query has a source that the state has not read (source b): the state has read others, and";
        let other = "a source is not the one that the state has read (source a): ";
        for (then, saved, replayed, now, expected) in [
            ("a=x#1", "a", "", "a=x#1", "ok"),
            ("a=x#1", "", "a", "a=x#1", "ok"),
            // Renamed, with a snapshot or without.
            (
                "a=x#1",
                "a",
                "",
                "b=x#1",
                &*format!("{lost}, and the source b read from its start, twice if it is the same;"),
            ),
            ("a=x#0", "", "a", "b=x#0", &*format!("{lost}, and the source b")),
            // Dropped, and added.
            ("a=x#1 b=y#2", "a b", "", "b=y#2", &*format!("{lost}; give")),
            ("a=x#1 b=y#2", "b", "a", "b=y#2", &*format!("{lost}; give")),
            ("a=x#1", "a", "", "a=x#1 b=y#2", new),
            ("a=x#1", "", "a", "a=x#1 b=y#2", new),
            // Known before, but nothing was found in it yet; or nothing was read at all.
            ("a=x#1 b=y#2", "a", "", "a=x#1 b=y#2", "ok"),
            ("a=x#1 b=y#2", "b", "", "b=y#2", "ok"),
            ("a=x#1", "", "", "b=y#2", "ok"),
            // Another source under the name, or two that have exchanged their names.
            ("a=x#1", "a", "", "a=y#2", &*format!("{other}it is y, was x; give each source its name back")),
            ("a=x#1 b=y#2", "a b", "", "a=y#2 b=x#1", &*format!("{other}it is y, was x;")),
            ("a=x#1", "a", "", "a=x#2", &*format!("{other}x was deleted and created again; start with a new --state")),
            // A note is no source: a source that was read first may go.
            ("a=x#1 b=y#2", "b", "read\u{a0}first:\u{a0}a", "b=y#2", "ok"),
            // Moved to another place; and where an identity is unknown, readers compare contents.
            ("a=x#1", "a", "", "a=y#1", "ok"),
            ("a=x#0", "a", "", "a=x#2", "ok"),
            ("a=x#1", "a", "", "a=x#0", "ok"),
        ] {
            let said = said(then, saved, replayed, now);
            assert!(
                said.starts_with(expected),
                "{then} | {saved} | {replayed} | {now}\nexpected: {expected}\nfound:    {said}"
            );
        }
    }

    #[test]
    fn a_source_that_has_moved_is_no_change_of_the_query() {
        for (then, now, expected) in [
            ("a=x#1", "a=y#1", None),
            ("a=x#0", "a=x#1", None),
            ("a=x#0", "a=y#1", Some("the source a is y, was x")),
            ("a=x#2", "a=x#1", Some("the source a is another one")),
        ] {
            let (then, now) = (query(then), query(now));
            assert_eq!(change(&then.steps[0], &now.steps[0]).as_deref(), expected, "{then:?} {now:?}");
        }
    }

    #[test]
    fn a_fingerprint_is_that_of_the_identity_alone() {
        assert_eq!(fingerprint("csv file"), fingerprint("csv file"));
        assert_ne!(fingerprint("csv file"), fingerprint("ndjson file"));
        assert_ne!(fingerprint(""), 0);
    }
}
