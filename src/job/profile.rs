//! The profile of a job: the time spent in each named step, from timely's and differential's own logs.
//!
//! Timely logs when an operator is scheduled and which messages it receives; differential logs the size of its
//! arrangements. The events of each worker are folded into figures as they arrive, so memory is bounded by the number
//! of operators. Logging adds a cost to every activation of an operator, so it is off by default.
//!
//! Operators of a named step of the query have the step's name. Those that differential builds have the names that it
//! gives them; several operators of one name make one row.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use differential_dataflow::logging::{DifferentialEvent, DifferentialEventBuilder};
use serde::Serialize;
use timely::logging::{StartStop, TimelyEvent, TimelyEventBuilder};
use timely::worker::Worker;

/// Name under which timely looks up the logger of its own events.
pub(super) const TIMELY: &str = "timely";
/// Name under which differential looks up the logger of its arrangements.
const DIFFERENTIAL: &str = "differential/arrange";

/// Figures of all operators of one name, on all workers of a process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct StepProfile {
    /// The step and the operator's role in it, as `totals: Fold`; or the name that differential gives the operator.
    pub step: String,
    /// Total time for which the operators were scheduled.
    #[serde(serialize_with = "in_seconds")]
    pub time: Duration,
    /// Number of activations.
    pub turns: u64,
    /// Number of messages received.
    pub messages: u64,
    /// Number of records in those messages.
    pub records: u64,
    /// Number of updates that their arrangements hold now.
    pub arranged: i64,
    /// Maximum number of updates that each worker's arrangements have held, summed over the workers; they are empty at
    /// the end of a job.
    pub arranged_at_most: i64,
    /// Number of batches in their arrangements.
    pub batches: i64,
}

fn in_seconds<S: serde::Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(time.as_secs_f64())
}

/// Figures of all steps of a job in one process, the step with the most time first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct JobProfile {
    /// The figures of each step.
    pub steps: Vec<StepProfile>,
}

/// Formats the figures as a table.
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

/// Collector of a running process's figures.
#[derive(Debug, Default)]
pub(crate) struct Profile(Mutex<Vec<Arc<Mutex<ProfileCollector>>>>);

impl Profile {
    /// Registers loggers on a worker. Must be called before the worker has dataflows.
    pub(crate) fn listen(&self, worker: &Worker) {
        let Some(mut loggers) = worker.log_register() else { return };
        let listener = Arc::<Mutex<ProfileCollector>>::default();
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

    /// Returns the figures so far.
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

/// Returns the row's name for an operator: the step first, then the operator's role in it.
fn step_of(operator: &str) -> String {
    operator.split_once(": ").map_or_else(|| operator.to_owned(), |(what, step)| format!("{step}: {what}"))
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Accumulator of one worker's log events.
#[derive(Debug, Default)]
struct ProfileCollector {
    operators: HashMap<usize, Operator>,
    /// Identifiers of operators by address.
    places: HashMap<Vec<usize>, usize>,
    /// By channel, the address of the operator that receives from it.
    channels: HashMap<usize, Vec<usize>>,
    /// Start of the current activation, by operator.
    since: HashMap<usize, Duration>,
    figures: HashMap<usize, StepProfile>,
}

#[derive(Debug)]
struct Operator {
    address: Vec<usize>,
    name: String,
}

impl ProfileCollector {
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
                // Only its end changes the size.
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

    /// `true` if the operator is a scope: its time is that of the operators within it.
    fn is_scope(&self, operator: &Operator) -> bool {
        let inner = self.operators.values().map(|other| &other.address);
        inner.into_iter().any(|inner| inner.len() > operator.address.len() && inner.starts_with(&operator.address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::Job;
    use crate::source::memory::MemorySource;
    use crate::stream::{Observer, Window};

    #[test]
    fn named_steps_have_their_figures_and_arrangements_their_size() {
        let rows: Vec<(u64, i64)> = (0..1_000).map(|number| (number % 10, number as i64)).collect();
        let source = MemorySource::new(vec![rows], |row: &(u64, i64)| row.1);
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
        // The records, and a few watermark updates.
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
        let mut listener = ProfileCollector::default();
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
