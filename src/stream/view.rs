//! Input of views: the changes of complete epochs, in order, on the worker that has the view.
//!
//! Changes are sent to one worker of process 0, wait there until their epoch is complete, and are consolidated. Two
//! epochs that belong together, an even one of input and the odd one after it at which operators emit their own
//! retractions, are applied together, under the odd one: so every visible state includes all retractions. The probe
//! behind this operator passes an epoch only when it is in the view, so back-pressure includes views as it does
//! sinks.
//!
//! A view is rebuilt when a job resumes: it is not part of snapshots, and has no sink's gate. The changes at the
//! snapshot's epoch are the whole collection as it was then.

use std::sync::Arc;

use differential_dataflow::consolidation::consolidate;
use serde::Serialize;
use timely::container::CapacityContainerBuilder;
use timely::dataflow::Stream as TimelyStream;
use timely::dataflow::channels::pact::Exchange;
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use timely::dataflow::operators::{Capability, Probe};

use crate::record::Record;
use crate::stream::epochs::EpochBuffer;
use crate::stream::output::RowChange;
use crate::stream::{BuildMode, Collection, Fault, Flow};
use crate::time::Epoch;
use crate::view::{self, ViewKey, ViewWriter};

impl<'f, D: Record> Collection<'f, D> {
    /// Keeps the collection readable while the job runs, under a name that is unique among views: see
    /// [`Job::views`](crate::Job::views). Rows are looked up by their first column, or read all at once; the first
    /// column of a pair is its first item. [`ViewRows`](crate::view::ViewRows) describes the format of rows.
    ///
    /// Process 0 holds all rows of a view in memory. If nobody has asked for the job's views, a view costs nothing.
    ///
    /// ```
    /// use tidegate::{Job, Window, source::memory::MemorySource, view::ViewUpdate};
    /// use std::time::Duration;
    ///
    /// # fn main() -> tidegate::Result<()> {
    /// let clicks = vec![vec![("a".to_string(), 10), ("b".to_string(), 20)]];
    /// let clicks = MemorySource::new(clicks, |click: &(String, i64)| click.1);
    /// let job = Job::new("clicks");
    /// let views = job.views();
    /// job.run(move |flow| {
    ///     flow.read("clicks", &clicks)
    ///         .key_by(|click| click.0.clone())
    ///         .window(Window::global())
    ///         .aggregate("per page", |each| each.count())
    ///         .on_change()
    ///         .map(|row| (row.key, row.value))
    ///         .view("clicks");
    /// })?;
    /// // Most will read while the job runs, on other threads.
    /// let answer = views.get("clicks", Some("a"))?;
    /// println!("at epoch {}:", answer.epoch);
    /// assert_eq!(answer.rows.collect::<tidegate::Result<Vec<_>>>()?, [r#"{"row":["a",1],"diff":1}"#]);
    /// # Ok(()) }
    /// ```
    pub fn view(self, name: &str) {
        build_view(self, name, ViewKey::default_key);
    }

    /// Like [`Collection::view`], with another key: a string is looked up as it is, anything else as its compact
    /// JSON.
    pub fn view_by<K: Serialize>(self, name: &str, key: impl Fn(&D) -> K + Send + Sync + 'static) {
        build_view(self, name, || ViewKey::by(key));
    }
}

fn build_view<D: Record>(collection: Collection<'_, D>, name: &str, key: impl FnOnce() -> ViewKey<D>) {
    collection.check_recoverable();
    let (flow, changes) = collection.into_changes();
    let build = &flow.build;
    build.step("view", name, String::new(), 0);
    flow.check_exchangeable::<D>("view", name);
    if let Err(error) = view::check::<D>() {
        build.failure.set(error.at(format!("view `{name}`")));
        return;
    }
    // All workers of all processes agree on whether views can be read. Where only steps are collected, the operator shows
    // what leads to the view.
    let is_read = match build.mode {
        BuildMode::CollectSteps => true,
        BuildMode::Run => build.views.is_enabled(),
        BuildMode::OpenSinks | BuildMode::AskNewData => false,
    };
    if !is_read {
        return;
    }
    // Views are spread by their order over the workers of process 0, from the last one on: sinks are from the first
    // one on.
    let views = build.plan.borrow().iter().filter(|step| step.kind == "view").count();
    let owner = build.place.threads - 1 - (views - 1) % build.place.threads;
    let writer = (build.mode == BuildMode::Run && owner == flow.scope.index()).then(|| build.views.open(name, key()));
    let writer = writer.transpose().unwrap_or_else(|error| {
        build.failure.set(error.at(format!("view `{name}`")));
        None
    });
    apply(&flow, name, owner, changes, writer);
}

/// Changes of epochs that are not complete, each with the capability that holds the probe at its epoch.
type PendingChanges<D> = EpochBuffer<(Capability<u64>, Vec<(D, isize)>)>;

/// Consolidated changes of complete epochs, in order.
type EpochChanges<D> = Vec<(Epoch, Vec<(D, isize)>)>;

/// The progress of a view, derived from the frontier of its changes.
#[derive(Default)]
struct ViewProgress {
    /// The first epoch that was seen, and the last.
    seen: Option<(u64, u64)>,
    /// `true` if an epoch of this incarnation is complete.
    first_is_over: bool,
}

impl ViewProgress {
    /// Returns the epoch up to which all changes are complete, if there is one: of two epochs that belong together,
    /// the second.
    fn advance(&mut self, frontier: Option<u64>, latest: u64) -> Option<Epoch> {
        let Some(frontier) = frontier else {
            self.first_is_over = true;
            let last = self.seen.map_or(0, |(_, last)| last);
            return Some(Epoch(last.max(latest) | 1));
        };
        let even = frontier & !1;
        let before = even.checked_sub(1)?;
        let (first, _) = *self.seen.insert(self.seen.map_or((even, even), |(first, _)| (first, even)));
        self.first_is_over |= even > first;
        Some(Epoch(before))
    }
}

/// Removes the changes up to an epoch: returns the capabilities that hold the probe there, and the changes,
/// consolidated.
fn complete<D: Record>(waiting: &mut PendingChanges<D>, through: u64) -> (Vec<Capability<u64>>, EpochChanges<D>) {
    let (mut held, mut epochs) = (Vec::new(), EpochChanges::new());
    while let Some((epoch, (capability, mut rows))) = waiting.next_if(|epoch| epoch <= through) {
        held.push(capability);
        match epochs.last_mut() {
            Some((last, all)) if last.0 == epoch | 1 => all.append(&mut rows),
            _ => epochs.push((Epoch(epoch | 1), rows)),
        }
    }
    epochs.iter_mut().for_each(|(_, rows)| consolidate(rows));
    (held, epochs)
}

/// Builds the operator that passes changes to a view, on every worker; only the owner has the view.
fn apply<'f, D: Record>(
    flow: &Flow<'f>,
    name: &str,
    owner: usize,
    changes: TimelyStream<'f, u64, Vec<RowChange<D>>>,
    mut writer: Option<ViewWriter<D>>,
) {
    let (failure, place) = (Arc::clone(&flow.build.failure), format!("view `{name}`"));
    let early = flow.has_fault(Fault::AnswerEarly);
    let mut builder = OperatorBuilder::new(format!("View: {name}"), flow.scope);
    let mut input = builder.new_input(changes, Exchange::new(move |_row: &RowChange<D>| owner as u64));
    let (kept, kept_stream) = builder.new_output::<Vec<()>>();
    let _kept = OutputBuilder::<_, CapacityContainerBuilder<Vec<()>>>::from(kept);
    builder.build(move |capabilities| {
        drop(capabilities);
        let mut waiting = PendingChanges::<D>::default();
        let mut reached = ViewProgress::default();
        move |frontiers| {
            input.for_each(|capability, rows| {
                // A container may hold changes of several epochs, all at or after the capability's.
                for (row, epoch, diff) in rows.drain(..) {
                    waiting.held_at(epoch, &capability).push((row, diff));
                }
            });
            let Some(view) = &mut writer else { return };
            let frontier = frontiers[0].frontier().first().copied();
            let latest = waiting.last().unwrap_or(0);
            let Some(through) = reached.advance(frontier, latest) else { return };
            // The capabilities hold the probe at the removed epochs until these are in the view.
            let (held, epochs) = complete(&mut waiting, if early { latest.max(through.0) } else { through.0 });
            if let Err(error) = view.advance(epochs, through, reached.first_is_over) {
                failure.set(error.at(&place));
            }
            drop(held);
            if frontier.is_none() {
                writer = None;
            }
        }
    });
    let _kept = kept_stream.probe_with(&flow.build.probe);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_view_is_as_far_as_the_last_two_epochs_that_belong_together_are_complete() {
        let mut reached = ViewProgress::default();
        let said = |reached: &mut ViewProgress, frontier, latest| {
            (reached.advance(frontier, latest).map(|epoch| epoch.0), reached.first_is_over)
        };
        assert_eq!(said(&mut reached, Some(0), 0), (None, false));
        assert_eq!(said(&mut reached, Some(100), 0), (Some(99), false));
        // Operators may still emit the retractions of epoch 100.
        assert_eq!(said(&mut reached, Some(101), 100), (Some(99), false));
        assert_eq!(said(&mut reached, Some(110), 100), (Some(109), true));
        assert_eq!(said(&mut reached, None, 0), (Some(111), true));
        // Changes that have arrived unseen by the frontier are complete too.
        assert_eq!(said(&mut ViewProgress::default(), None, 200), (Some(201), true));
        assert_eq!(said(&mut ViewProgress::default(), None, 0), (Some(1), true));
    }
}
