//! The check of a state beforehand: would this program go on with it?
//!
//! `tidegate snapshot check` starts a program with two variables in its environment: the state, and a file for the answer.
//! [`Job::run`] then builds the query to learn its steps, reads the state without locking it, and writes what a start would
//! find. It opens no source and no output, writes nothing else, and ends with an error, so that the program does not go on.
//!
//! The answer is text: a first line, [`FITS`] or [`REFUSED`], and a line for each thing to say.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use crate::durable::PublishedEpoch;
use crate::durable::declared_changes::{DeclaredChanges, NameScope};
use crate::durable::disk::OsDisk;
use crate::durable::journal::JournalEnds;
use crate::durable::manifest::{Manifest, SinkState};
use crate::durable::migration;
use crate::durable::recovery::{self, RecoveryInput, ReportedSink};
use crate::durable::state::StateDir;
use crate::error::{Error, Result};
use crate::job::worker_shared::{Query, QueryPlan};
use crate::job::{Job, start};

/// The environment variable with the state to check.
pub(crate) const STATE_VARIABLE: &str = "TIDEGATE_CHECK_STATE";
/// The environment variable with the file for the answer.
pub(crate) const ANSWER_VARIABLE: &str = "TIDEGATE_CHECK_ANSWER";
/// The first line of the answer if the program would go on.
pub(crate) const FITS: &str = "fits";
/// The first line of the answer if the start would be refused.
pub(crate) const REFUSED: &str = "refused";

/// A request to check a state instead of running.
pub(super) struct CheckRequest {
    state: PathBuf,
    answer: PathBuf,
}

impl CheckRequest {
    /// Reads the request from the environment; `None` if there is none.
    pub(super) fn from_environment() -> Option<CheckRequest> {
        let path = |variable| std::env::var_os(variable).map(PathBuf::from);
        Some(CheckRequest { state: path(STATE_VARIABLE)?, answer: path(ANSWER_VARIABLE)? })
    }
}

impl Job {
    /// Answers a request; always fails, as the program is not to go on.
    pub(super) fn answer(&self, query: &Query, request: &CheckRequest) -> Error {
        let (first, lines) = match self.check_state(query, request) {
            Ok(lines) => (FITS, lines),
            Err(error) => (REFUSED, vec![error.to_string()]),
        };
        let text = std::iter::once(first.to_owned()).chain(lines).fold(String::new(), |text, line| text + &line + "\n");
        match fs::write(&request.answer, text) {
            Ok(()) => Error::new("the state was checked, and nothing was run"),
            Err(why) => Error::new("cannot write the result of the check").at(request.answer.display()).because(why),
        }
    }

    /// Checks that a start with the state would go on; returns what it would do.
    fn check_state(&self, query: &Query, request: &CheckRequest) -> Result<Vec<String>> {
        let planned = Arc::clone(query);
        let plan = self.query_plan(move |flow| planned(flow))?;
        let changes = self.declared_changes(&plan);
        let print = start::query_fingerprint(&plan.steps, &self.flags())?;
        let dir = StateDir::join(OsDisk::shared(), &request.state)?;
        let scan = dir.scan(true)?;
        let sinks = assumed_sinks(scan.manifests.values().flatten().next_back(), &changes, &plan);
        let options = self.state.as_ref();
        let decision = recovery::decide(&RecoveryInput {
            incarnation: scan.claims.keys().next_back().map_or(1, |last| last + 1),
            survey: &scan,
            sinks: &sinks,
            query: &print,
            changes: &changes,
            accept_changed_query: options.is_some_and(|state| state.accept_changed_query),
            accept_changed_sources: options.is_some_and(|state| state.accept_changed_sources),
        })?;
        let Some(base) = decision.base.filter(|_| !decision.ended) else {
            return Ok(vec!["there is no snapshot to go on from, or the job has come to its end".into()]);
        };
        let conversions = migration::check_rows(&**dir.disk(), &dir.segments(), base.rows(), &plan.rows)?;
        let mut lines = vec![format!("goes on from the snapshot of epoch {}", base.epoch)];
        let known: BTreeSet<&str> = base.steps.iter().map(|step| &*step.name).collect();
        for step in &plan.rows {
            let name = &*step.step;
            lines.push(match conversions.iter().find(|(converted, _)| converted == name) {
                Some((_, what)) => format!("step {name}: its rows are written anew: {}", what.join(", ")),
                None if known.contains(name) => format!("step {name}: goes on"),
                None => format!("step {name}: is new, and begins with the records that are read from then on"),
            });
        }
        for rename in changes.renames.iter().filter(|rename| rename.scope == NameScope::Step) {
            lines.push(format!("step {}: would continue what a state has of {}", rename.new, rename.old));
        }
        lines.extend(changes.dropped.iter().map(|step| format!("step {step}: its rows are dropped, if there are any")));
        Ok(lines)
    }
}

/// Returns the query's outputs as the last snapshot has them: they are not opened.
fn assumed_sinks(base: Option<&Manifest>, changes: &DeclaredChanges, plan: &QueryPlan) -> Vec<ReportedSink> {
    let mut base = base.cloned();
    if let Some(base) = &mut base {
        changes.apply_to_manifest(base);
    }
    let sinks = base.map(|base| base.sinks).unwrap_or_default();
    let is_written = |name: &str| plan.steps.iter().any(|step| step.kind == "sink" && step.name == name);
    let reported = |SinkState { name, published, on_change }: SinkState| {
        let published = published.map(|epoch| PublishedEpoch { incarnation: 0, epoch, ends: JournalEnds::default() });
        ReportedSink { name, published, on_change }
    };
    sinks.into_iter().filter(|sink| is_written(&sink.name)).map(reported).collect()
}
