//! Where the time of a job goes: timely's and differential's own logs, summed up by named step.
//!
//! Timely logs when an operator is scheduled and what its channels bring; differential logs what its arrangements hold. Here
//! the events of each worker are folded into figures as they come, so memory is bounded by the number of operators. To log
//! costs time for every activation of an operator, so it is off unless it is asked for.
//!
//! Operators that belong to a named step of the query have its name; those that differential makes go by the names that it
//! gives them, and several of one name are one row.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use differential_dataflow::logging::{DifferentialEvent, DifferentialEventBuilder};
use serde::Serialize;
use timely::logging::{StartStop, TimelyEvent, TimelyEventBuilder};
use timely::worker::Worker;

/// Where timely finds the logger of its own events.
const TIMELY: &str = "timely";
/// Where differential finds that of its arrangements.
const DIFFERENTIAL: &str = "differential/arrange";

/// What the operators of one name have done, on all workers of a process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct StepProfile {
    /// The step and what the operator is for it, as `totals: Fold`; or the name that differential gives it.
    pub step: String,
    /// The time that they were scheduled for.
    #[serde(serialize_with = "in_seconds")]
    pub time: Duration,
    /// How often they were scheduled.
    pub turns: u64,
    /// Messages that came to them.
    pub messages: u64,
    /// Records in those.
    pub records: u64,
    /// Updates that their arrangements hold now.
    pub arranged: i64,
    /// The most that they have held: at the end of a job they hold nothing any more.
    pub arranged_at_most: i64,
    /// Batches that those are in.
    pub batches: i64,
}

fn in_seconds<S: serde::Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(time.as_secs_f64())
}

/// What all steps of a job have done in a process, the one with the most time first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct JobProfile {
    /// The steps.
    pub steps: Vec<StepProfile>,
}

/// A table.
impl fmt::Display for JobProfile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all: Duration = self.steps.iter().map(|step| step.time).sum();
        let width = self.steps.iter().map(|step| step.step.chars().count()).max().unwrap_or(0).max(4);
        write!(
            f,
            "{:>9}  {:>5}  {:>9}  {:>9}  {:>11}  {:>11}  {:>11}  ",
            "TIME", "SHARE", "TURNS", "MESSAGES", "RECORDS", "ARRANGED", "AT MOST"
        )?;
        write!(f, "{:<width$}", "STEP")?;
        for StepProfile { step, time, turns, messages, records, arranged, arranged_at_most, .. } in &self.steps {
            let share = 100.0 * time.as_secs_f64() / all.as_secs_f64().max(f64::MIN_POSITIVE);
            let time = format!("{:.3} s", time.as_secs_f64());
            write!(
                f,
                "\n{time:>9}  {share:>4.1}%  {turns:>9}  {messages:>9}  {records:>11}  {arranged:>11}  {arranged_at_most:>11}  {step}"
            )?;
        }
        Ok(())
    }
}

/// The figures of a process, while they grow.
#[derive(Debug, Default)]
pub(crate) struct Profile(Mutex<Vec<Arc<Mutex<Listener>>>>);

impl Profile {
    /// Listens to what a worker logs, from now on: to be called before there are dataflows.
    pub(crate) fn listen(&self, worker: &Worker) {
        let Some(mut loggers) = worker.log_register() else { return };
        let listener = Arc::<Mutex<Listener>>::default();
        locked(&self.0).push(Arc::clone(&listener));
        let own = Arc::clone(&listener);
        loggers.insert::<TimelyEventBuilder, _>(TIMELY, move |_time, events| {
            let mut listener = locked(&own);
            for (at, event) in events.iter_mut().flat_map(|events| events.drain(..)) {
                listener.hear(at, event);
            }
        });
        loggers.insert::<DifferentialEventBuilder, _>(DIFFERENTIAL, move |_time, events| {
            let mut listener = locked(&listener);
            for (_, event) in events.iter_mut().flat_map(|events| events.drain(..)) {
                listener.hear_of_arrangement(&event);
            }
        });
    }

    /// What has been done so far.
    pub(crate) fn now(&self) -> JobProfile {
        let mut steps = BTreeMap::<String, StepProfile>::new();
        for listener in &*locked(&self.0) {
            let listener = locked(listener);
            for (id, figures) in &listener.figures {
                let Some(operator) = listener.operators.get(id).filter(|operator| !listener.is_scope(operator)) else {
                    continue;
                };
                let name = step_of(&operator.name);
                let step =
                    steps.entry(name.clone()).or_insert_with(|| StepProfile { step: name, ..Default::default() });
                step.time += figures.time;
                step.turns += figures.turns;
                step.messages += figures.messages;
                step.records += figures.records;
                step.arranged += figures.arranged;
                step.arranged_at_most += figures.arranged_at_most;
                step.batches += figures.batches;
            }
        }
        let mut steps: Vec<_> = steps.into_values().collect();
        steps.sort_by(|a, b| b.time.cmp(&a.time).then_with(|| a.step.cmp(&b.step)));
        JobProfile { steps }
    }
}

/// The step first, then what the operator is for it.
fn step_of(operator: &str) -> String {
    operator.split_once(": ").map_or_else(|| operator.to_owned(), |(what, step)| format!("{step}: {what}"))
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Folds the events of one worker.
#[derive(Debug, Default)]
struct Listener {
    operators: HashMap<usize, Operator>,
    /// Operators by their addresses.
    places: HashMap<Vec<usize>, usize>,
    /// By channel, the address of the operator that it leads to.
    channels: HashMap<usize, Vec<usize>>,
    /// Since when operators are scheduled that are.
    since: HashMap<usize, Duration>,
    figures: HashMap<usize, StepProfile>,
}

#[derive(Debug)]
struct Operator {
    address: Vec<usize>,
    name: String,
}

impl Listener {
    fn hear(&mut self, at: Duration, event: TimelyEvent) {
        match event {
            TimelyEvent::Operates(operates) => {
                self.places.insert(operates.addr.clone(), operates.id);
                self.operators.insert(operates.id, Operator { address: operates.addr, name: operates.name });
            }
            TimelyEvent::Channels(channel) => {
                let mut target = channel.scope_addr;
                target.push(channel.target.0);
                self.channels.insert(channel.id, target);
            }
            TimelyEvent::Schedule(schedule) => match schedule.start_stop {
                StartStop::Start => {
                    self.since.insert(schedule.id, at);
                }
                StartStop::Stop => {
                    let since = self.since.remove(&schedule.id);
                    let figures = self.figures.entry(schedule.id).or_default();
                    figures.time += at.saturating_sub(since.unwrap_or(at));
                    figures.turns += 1;
                }
            },
            TimelyEvent::Messages(message) if !message.is_send => {
                let operator = self.channels.get(&message.channel).and_then(|target| self.places.get(target));
                if let Some(operator) = operator {
                    let figures = self.figures.entry(*operator).or_default();
                    figures.messages += 1;
                    figures.records += u64::try_from(message.record_count).unwrap_or_default();
                }
            }
            _ => {}
        }
    }

    fn hear_of_arrangement(&mut self, event: &DifferentialEvent) {
        let (operator, updates, batches) = match event {
            DifferentialEvent::Batch(batch) => (batch.operator, batch.length as i64, 1),
            DifferentialEvent::Drop(batch) => (batch.operator, -(batch.length as i64), -1),
            DifferentialEvent::Merge(merge) => {
                // Only its end changes what there is.
                let Some(merged) = merge.complete else { return };
                (merge.operator, merged as i64 - (merge.length1 + merge.length2) as i64, -1)
            }
            _ => return,
        };
        let figures = self.figures.entry(operator).or_default();
        figures.arranged += updates;
        figures.arranged_at_most = figures.arranged_at_most.max(figures.arranged);
        figures.batches += batches;
    }

    /// Whether other operators are within it: its time is theirs.
    fn is_scope(&self, operator: &Operator) -> bool {
        let inner = self.operators.values().map(|other| &other.address);
        inner.into_iter().any(|inner| inner.len() > operator.address.len() && inner.starts_with(&operator.address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::Job;
    use crate::source::memory::Records;
    use crate::stream::{Observer, Window};

    #[test]
    fn named_steps_have_their_figures_and_arrangements_their_size() {
        let rows: Vec<(u64, i64)> = (0..1_000).map(|number| (number % 10, number as i64)).collect();
        let source = Records::new(vec![rows], |row: &(u64, i64)| row.1);
        let report = Job::new("profiled").workers(2).profile(true).run(move |flow| {
            flow.read("rows", &source)
                .key_by(|row| row.0)
                .window(Window::global())
                .aggregate("sums", |each| each.sum(|row: &(u64, i64)| row.1))
                .on_change()
                .map(|row| row.key)
                .distinct()
                .write("keys", &Observer::new(|_epoch, _rows| Ok(())));
        });
        let profile = report.unwrap().profile;
        let of = |name: &str| profile.steps.iter().find(|step| step.step == name).cloned();
        let fold = of("sums: Fold").unwrap_or_else(|| panic!("{profile}"));
        assert!(fold.turns > 0 && fold.messages > 0 && fold.time > Duration::ZERO, "{profile}");
        // The records, and a few marks.
        assert!(of("sums: Assign").is_some_and(|step| (1_000..1_100).contains(&step.records)), "{profile}");
        let arranged = of("Distinct: Arrange").map(|step| (step.arranged, step.arranged_at_most));
        assert_eq!(arranged, Some((0, 10)), "{profile}");
        assert!(profile.steps.iter().any(|step| step.records > 0 && step.step == "keys: Write"), "{profile}");
        assert!(!profile.steps.iter().any(|step| step.step.contains("Dataflow")), "{profile}");
        assert!(profile.to_string().lines().next().unwrap().contains("ARRANGED"));
    }

    #[test]
    fn an_arrangement_holds_what_came_less_what_merges_and_drops_took() {
        use differential_dataflow::logging::{BatchEvent, DropEvent, MergeEvent};
        let mut listener = Listener::default();
        let merge = |complete| MergeEvent { operator: 1, scale: 0, length1: 10, length2: 5, complete };
        for event in [
            DifferentialEvent::Batch(BatchEvent { operator: 1, length: 10 }),
            DifferentialEvent::Batch(BatchEvent { operator: 1, length: 5 }),
            DifferentialEvent::Merge(merge(None)),
            DifferentialEvent::Merge(merge(Some(12))),
        ] {
            listener.hear_of_arrangement(&event);
        }
        assert_eq!((listener.figures[&1].arranged, listener.figures[&1].batches), (12, 1));
        listener.hear_of_arrangement(&DifferentialEvent::Drop(DropEvent { operator: 1, length: 12 }));
        assert_eq!((listener.figures[&1].arranged, listener.figures[&1].batches), (0, 0));
    }
}
