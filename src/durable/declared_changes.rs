//! Declared changes: what a query says of names in the states that it resumes.
//!
//! * A **rename**: a step, a source or an output of the query has another name than in the state, and continues what
//!   the state has under the old one.
//! * A **drop**: a step or an output of the state is gone, and what the state has of it is forgotten.
//!
//! Both are applied to what was read of a state before anything is decided. They say nothing of the state at hand: a
//! rename whose old name the state does not have, or a drop of a step that it does not have, changes nothing, so a
//! program may keep them after the state has the new names.
//!
//! Invariants: one old name has one heir; an old name is no name of the query; what is dropped is not continued. Names
//! are distinct among steps with rows, among sources, and among outputs.

use std::collections::BTreeSet;

use super::journal::PartitionProgress;
use super::manifest::{Manifest, QueryFingerprint, SOURCE_KIND, StepFingerprint};
use super::sources;
use crate::error::{Error, Result};

/// The things among which a name is unique.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum NameScope {
    /// Steps whose rows snapshots keep.
    Step,
    /// Sources.
    Source,
    /// Sinks.
    Output,
}

impl NameScope {
    /// The scope of a step's kind; `None` for views, which have no state.
    fn of(kind: &str) -> Option<NameScope> {
        match kind {
            SOURCE_KIND => Some(NameScope::Source),
            "sink" => Some(NameScope::Output),
            "view" => None,
            _ => Some(NameScope::Step),
        }
    }

    fn word(self) -> &'static str {
        match self {
            NameScope::Step => "step",
            NameScope::Source => "source",
            NameScope::Output => "output",
        }
    }
}

/// An earlier name of a step, a source or an output.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rename {
    pub scope: NameScope,
    /// The name in states of earlier queries.
    pub old: String,
    /// The name in the query.
    pub new: String,
}

/// All changes that a query and its state's options declare.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct DeclaredChanges {
    pub renames: Vec<Rename>,
    /// The names of dropped steps.
    pub dropped: BTreeSet<String>,
    /// The names of dropped outputs.
    pub dropped_outputs: BTreeSet<String>,
}

impl DeclaredChanges {
    /// Checks the declarations against the query's steps, given by kind and name.
    ///
    /// # Errors
    /// Fails if two claim one old name, if an old or a dropped name is one of the query's, if a dropped step is
    /// continued, or if what was renamed is not in the query.
    pub(crate) fn check<'a>(&self, steps: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<()> {
        let named: BTreeSet<_> =
            steps.into_iter().filter_map(|(kind, name)| Some((NameScope::of(kind)?, name))).collect();
        for (at, Rename { scope, old, new }) in self.renames.iter().enumerate() {
            let word = scope.word();
            if !named.contains(&(*scope, new)) {
                let what = format!("the query has no {word} `{new}`, which is said to have been `{old}`");
                return Err(Error::usage(what).help(format!("name {word}s as the query does")));
            }
            if named.contains(&(*scope, old)) {
                let what =
                    format!("the {word} `{new}` is said to have been `{old}`, and the query has a {word} `{old}`");
                let help = format!("remove `.was(\"{old}\")` if `{old}` continues itself, or give it another name");
                return Err(Error::usage(what).help(help));
            }
            let other = |other: &&Rename| (other.scope, &other.old) == (*scope, old) && other.new != *new;
            if let Some(other) = self.renames[..at].iter().find(other) {
                let what =
                    format!("two {word}s of the query are said to have been `{old}`: `{}` and `{new}`", other.new);
                return Err(Error::usage(what).help("leave `.was` to the one that continues its state"));
            }
            if self.dropped_of(*scope).is_some_and(|dropped| dropped.contains(old)) {
                let what = format!("the {word} `{old}` is dropped, and `{new}` is said to continue it");
                let help = format!("drop it, or continue it: remove `.was(\"{old}\")` or the drop");
                return Err(Error::usage(what).help(help));
            }
        }
        for scope in [NameScope::Step, NameScope::Output] {
            let mut dropped = self.dropped_of(scope).into_iter().flatten();
            if let Some(name) = dropped.find(|name| named.contains(&(scope, name.as_str()))) {
                let word = scope.word();
                let error = Error::usage(format!("the {word} `{name}` is dropped, and the query has it"));
                return Err(error.help(format!("remove the drop, or give the {word} another name if it begins anew")));
            }
        }
        Ok(())
    }

    fn dropped_of(&self, scope: NameScope) -> Option<&BTreeSet<String>> {
        match scope {
            NameScope::Step => Some(&self.dropped),
            NameScope::Output => Some(&self.dropped_outputs),
            NameScope::Source => None,
        }
    }

    /// Returns the name of the step, source or output that is said to continue the one of this name.
    pub(super) fn heir(&self, scope: NameScope, old: &str) -> Option<&str> {
        self.renames.iter().find(|rename| rename.scope == scope && rename.old == old).map(|rename| rename.new.as_str())
    }

    /// Returns the name under which the query continues what has this name; the same name if nothing renames it.
    fn current<'a>(&'a self, scope: NameScope, name: &'a str) -> &'a str {
        self.heir(scope, name).unwrap_or(name)
    }

    /// Returns the outputs that are renamed: pairs of the present and the earlier name.
    pub(crate) fn outputs(&self) -> impl Iterator<Item = (String, String)> {
        let of_outputs = self.renames.iter().filter(|rename| rename.scope == NameScope::Output);
        of_outputs.map(|rename| (rename.new.clone(), rename.old.clone()))
    }

    /// `true` if nothing is declared.
    pub(super) fn is_empty(&self) -> bool {
        self.renames.is_empty() && self.dropped.is_empty() && self.dropped_outputs.is_empty()
    }

    /// Renames and drops what a manifest has. Where it has the old and the new name, both stay.
    pub(crate) fn apply_to_manifest(&self, manifest: &mut Manifest) {
        self.apply_to_query(&mut manifest.query);
        manifest.steps.retain(|step| !self.dropped.contains(&step.name));
        let names: BTreeSet<String> = manifest.steps.iter().map(|step| step.name.clone()).collect();
        for step in &mut manifest.steps {
            let name = self.current(NameScope::Step, &step.name).to_owned();
            if !names.contains(&name) {
                step.segments.iter_mut().for_each(|segment| name.clone_into(&mut segment.step));
                step.name = name;
            }
        }
        let names: BTreeSet<String> = manifest.sources.iter().map(|source| source.name.clone()).collect();
        for source in &mut manifest.sources {
            let name = if source.is_combined() {
                self.current_of_combined(&source.name)
            } else {
                sources::renamed(&source.name, |name| self.current(NameScope::Source, name))
            };
            if !names.contains(&name) {
                source.name = name;
                self.apply_to_progress(&mut source.progress);
            }
        }
        manifest.sinks.retain(|sink| !self.dropped_outputs.contains(&sink.name));
        let names: BTreeSet<String> = manifest.sinks.iter().map(|sink| sink.name.clone()).collect();
        for sink in &mut manifest.sinks {
            let name = self.current(NameScope::Output, &sink.name).to_owned();
            if !names.contains(&name) {
                sink.name = name;
            }
        }
    }

    /// Renames the sources in the name of a combined stream's watermark, where they are in backquotes.
    fn current_of_combined(&self, name: &str) -> String {
        let renames = self.renames.iter().filter(|rename| rename.scope == NameScope::Source);
        renames.fold(name.to_owned(), |name, Rename { old, new, .. }| {
            name.replace(&format!("`{old}`"), &format!("`{new}`"))
        })
    }

    /// Renames the sources of partitions, and of notes.
    pub(super) fn apply_to_progress(&self, progress: &mut [PartitionProgress]) {
        for partition in progress {
            partition.source = sources::renamed(&partition.source, |name| self.current(NameScope::Source, name));
        }
    }

    /// Renames and drops what a query's fingerprint has.
    pub(super) fn apply_to_query(&self, query: &mut QueryFingerprint) {
        let is_dropped = |step: &StepFingerprint| {
            let dropped = NameScope::of(&step.kind).and_then(|scope| self.dropped_of(scope));
            dropped.is_some_and(|dropped| dropped.contains(&step.name))
        };
        query.steps.retain(|step| !is_dropped(step));
        let of = |step: &StepFingerprint| NameScope::of(&step.kind);
        let names: BTreeSet<_> = query.steps.iter().map(|step| (of(step), step.name.clone())).collect();
        for step in &mut query.steps {
            let Some(scope) = of(step) else { continue };
            let name = self.current(scope, &step.name).to_owned();
            if !names.contains(&(Some(scope), name.clone())) {
                step.name = name;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changes(renames: &[(NameScope, &str, &str)], dropped: &[&str]) -> DeclaredChanges {
        let rename = |(scope, old, new): &(NameScope, &str, &str)| Rename {
            scope: *scope,
            old: (*old).to_owned(),
            new: (*new).to_owned(),
        };
        let dropped = dropped.iter().map(|name| (*name).to_owned()).collect();
        DeclaredChanges { renames: renames.iter().map(rename).collect(), dropped, ..DeclaredChanges::default() }
    }

    #[test]
    fn an_old_name_has_one_heir_and_is_no_name_of_the_query() {
        use NameScope::{Output, Source, Step};
        let query = [("source", "a"), ("source", "b"), ("window", "a"), ("table", "t"), ("sink", "a"), ("view", "v")];
        for (renames, dropped, expected) in [
            (&[(Step, "old", "a"), (Source, "old", "a"), (Output, "old", "a")][..], &["gone"][..], ""),
            (&[(Step, "old", "a"), (Step, "older", "a"), (Step, "old", "a")], &[], ""),
            // A step may have been what a source is, or a view.
            (&[(Step, "b", "t"), (Step, "v", "a")], &[], ""),
            (
                &[(Step, "old", "a"), (Step, "old", "t")],
                &[],
                "two steps of the query are said to have been `old`: `a` and `t`",
            ),
            (&[(Step, "t", "a")], &[], "the step `a` is said to have been `t`, and the query has a step `t`"),
            (&[(Source, "b", "a")], &[], "the source `a` is said to have been `b`, and the query has a source `b`"),
            (&[(Step, "a", "a")], &[], "the step `a` is said to have been `a`, and the query has a step `a`"),
            (&[(Output, "old", "z")], &[], "the query has no output `z`, which is said to have been `old`"),
            (&[(Step, "old", "a")], &["old"], "the step `old` is dropped, and `a` is said to continue it"),
            (&[], &["t"], "the step `t` is dropped, and the query has it"),
            (&[], &["b"], ""),
        ] {
            let said =
                changes(renames, dropped).check(query).map_or_else(|error| error.to_string(), |()| String::new());
            assert!(
                said.starts_with(expected) && said.is_empty() == expected.is_empty(),
                "{renames:?} {dropped:?}: {said}"
            );
        }
    }
}
