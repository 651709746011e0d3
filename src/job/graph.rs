//! The graph of a query: its named steps, and what flows from one to another.
//!
//! A flow is built on an idle worker before a job runs, to learn its steps; timely's log of that build has all operators
//! and channels. An operator of a step is named `Role: step`; the inputs of a source are known by their numbers. The
//! graph of operators is contracted to the steps: there is an edge from one step to another if a path of channels leads
//! there through no operator of a step. Channels of watermarks are left out: they go beside the records, from a source to
//! each step behind it. A scope, such as that of an iteration, is passed through by its ports. At run
//! time nothing is logged for this.

use std::any::type_name;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use serde::Serialize;
use timely::logging::{TimelyEvent, TimelyEventBuilder};
use timely::worker::Worker;

use crate::job::profile::TIMELY;
use crate::stream::PlannedStep;
use crate::time::watermark::WatermarkUpdate;

/// Roles of operators in steps, with the kinds of these steps.
const ROLES: [(&str, &str); 7] = [
    ("Watermark", "source"),
    ("Assign", "window"),
    ("Fold", "window"),
    ("Table", "table"),
    ("Unique keys", "sink"),
    ("Write", "sink"),
    ("View", "view"),
];

/// A step of a query, as a node of its graph.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct GraphNode {
    /// Kind and name, as `source orders`: unique in the graph.
    pub(crate) id: String,
    pub(crate) kind: &'static str,
    pub(crate) name: String,
    pub(crate) detail: String,
}

/// The data flow from one step to another, by their identifiers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct GraphEdge {
    pub(crate) from: String,
    pub(crate) to: String,
}

/// The graph of a query's steps.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct JobGraph {
    pub(crate) nodes: Vec<GraphNode>,
    /// Ordered by the positions of their ends in `nodes`.
    pub(crate) edges: Vec<GraphEdge>,
}

/// A place that data passes through.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum FlowPoint {
    /// An operator, by its address.
    Operator(Vec<usize>),
    /// An input of a scope, by the scope's address and the input's number.
    ScopeInput(Vec<usize>, usize),
    /// An output of a scope.
    ScopeOutput(Vec<usize>, usize),
}

/// An end of a channel: the operator's number in its scope, 0 for the scope itself, and the port.
type PortAddress = (usize, usize);

/// Collector of the operators and channels that a worker logs.
#[derive(Debug, Default)]
pub(crate) struct GraphCollector {
    /// Names of operators by address.
    operators: BTreeMap<Vec<usize>, String>,
    /// The address of the scope, the source and the target of each channel.
    channels: Vec<(Vec<usize>, PortAddress, PortAddress)>,
}

impl GraphCollector {
    /// Registers a logger on a worker that has no dataflow yet.
    pub(crate) fn listen(worker: &Worker) -> Rc<RefCell<GraphCollector>> {
        let collector = Rc::<RefCell<GraphCollector>>::default();
        let own = Rc::clone(&collector);
        if let Some(mut loggers) = worker.log_register() {
            loggers.insert::<TimelyEventBuilder, _>(TIMELY, move |_time, events| {
                let mut collector = own.borrow_mut();
                for (_, event) in events.iter_mut().flat_map(|events| events.drain(..)) {
                    collector.hear(event);
                }
            });
        }
        collector
    }

    fn hear(&mut self, event: TimelyEvent) {
        match event {
            TimelyEvent::Operates(operates) => drop(self.operators.insert(operates.addr, operates.name)),
            TimelyEvent::Channels(channel) if channel.typ != type_name::<Vec<WatermarkUpdate>>() => {
                self.channels.push((channel.scope_addr, channel.source, channel.target));
            }
            _ => {}
        }
    }

    /// Returns the graph of the plan's steps; `inputs` are the numbers of operators that are inputs of sources.
    pub(crate) fn graph(&self, plan: &[PlannedStep], inputs: &[(usize, String)]) -> JobGraph {
        let scopes: BTreeSet<&[usize]> =
            self.operators.keys().filter_map(|address| address.split_last().map(|(_, scope)| scope)).collect();
        let mut targets = BTreeMap::<FlowPoint, Vec<FlowPoint>>::new();
        for (scope, source, target) in &self.channels {
            let point = |(number, port): PortAddress, is_source: bool| {
                let address = [&scope[..], &[number]].concat();
                match (number, scopes.contains(&*address), is_source) {
                    (0, _, true) => FlowPoint::ScopeInput(scope.clone(), port),
                    (0, _, false) => FlowPoint::ScopeOutput(scope.clone(), port),
                    (_, true, true) => FlowPoint::ScopeOutput(address, port),
                    (_, true, false) => FlowPoint::ScopeInput(address, port),
                    (_, false, _) => FlowPoint::Operator(address),
                }
            };
            targets.entry(point(*source, true)).or_default().push(point(*target, false));
        }
        let position = |kind: &str, name: &str| plan.iter().position(|step| step.kind == kind && step.name == name);
        let step_at = |point: &FlowPoint| {
            let FlowPoint::Operator(address) = point else { return None };
            if let [_, number] = address[..]
                && let Some((_, source)) = inputs.iter().find(|(input, _)| *input == number)
            {
                return position("source", source);
            }
            let (role, step) = self.operators.get(address)?.split_once(": ")?;
            let (_, kind) = ROLES.iter().find(|(known, _)| *known == role)?;
            position(kind, step)
        };
        let steps: BTreeMap<&FlowPoint, usize> =
            targets.keys().filter_map(|point| step_at(point).map(|step| (point, step))).collect();
        let mut edges = BTreeSet::new();
        for (point, from) in steps {
            let mut seen = BTreeSet::new();
            let mut next: Vec<&FlowPoint> = targets.get(point).into_iter().flatten().collect();
            while let Some(point) = next.pop() {
                match step_at(point) {
                    Some(to) if to != from => drop(edges.insert((from, to))),
                    Some(_) => {}
                    None if seen.insert(point) => next.extend(targets.get(point).into_iter().flatten()),
                    None => {}
                }
            }
        }
        let id = |step: &PlannedStep| format!("{} {}", step.kind, step.name);
        let nodes = plan.iter().map(|step| GraphNode {
            id: id(step),
            kind: step.kind,
            name: step.name.clone(),
            detail: step.detail.clone(),
        });
        let edges = edges.into_iter().map(|(from, to)| GraphEdge { from: id(&plan[from]), to: id(&plan[to]) });
        JobGraph { nodes: nodes.collect(), edges: edges.collect() }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crate::job::Job;
    use crate::source::memory::MemorySource;
    use crate::stream::aggregate::Each;
    use crate::stream::{Flow, Observer, QueryResult, Window};

    type Rows = MemorySource<(u64, i64)>;

    fn source() -> Rows {
        MemorySource::new(vec![vec![(1, 10)], vec![(2, 20)]], |row: &(u64, i64)| row.1)
    }

    fn out<T: crate::record::Record>() -> Observer<T> {
        Observer::new(|_epoch, _rows| Ok(()))
    }

    /// Returns the edges of a query's graph, a line each.
    fn edges<R: QueryResult>(query: impl Fn(&Flow<'_>) -> R + Send + Sync + 'static) -> Vec<String> {
        let plan = Job::new("graph").query_plan(query).unwrap();
        let ids: Vec<_> = plan.steps.iter().map(|step| format!("{} {}", step.kind, step.name)).collect();
        let nodes: Vec<_> = plan.graph.nodes.iter().map(|node| node.id.clone()).collect();
        assert_eq!(nodes, ids);
        let mut edges: Vec<_> = plan.graph.edges.iter().map(|edge| format!("{} > {}", edge.from, edge.to)).collect();
        edges.sort();
        edges
    }

    #[test]
    fn a_chain_has_an_edge_from_each_step_to_the_next() {
        let found = edges(|flow| {
            let minutes = flow.read("rows", &source()).map(|row| row).key_by(|row| row.0);
            let sums = minutes.window(Window::tumbling(Duration::from_secs(60)));
            let sums = sums.aggregate("sums", |each| each.sum(|row: &(u64, i64)| row.1));
            let hours = sums.on_close().filter(|row| row.value > 0).key_by(|row| row.key);
            let hours = hours.window(Window::tumbling(Duration::from_secs(3600)));
            hours.aggregate("hours", Each::count).on_close().write("out", &out());
        });
        assert_eq!(found, ["source rows > window sums", "window hours > sink out", "window sums > window hours"]);
    }

    #[test]
    fn streams_that_are_concatenated_have_one_reader() {
        let found = edges(|flow| {
            let both = flow.read("a", &source()).concat(flow.read("b", &source()));
            let counts = both.key_by(|row| row.0).window(Window::global());
            counts.aggregate("counts", Each::count).on_change().write("out", &out());
        });
        assert_eq!(found, ["source a > window counts", "source b > window counts", "window counts > sink out"]);
    }

    #[test]
    fn a_join_has_two_inputs_and_a_table_is_a_step() {
        let found = edges(|flow| {
            let names = flow.read("names", &source()).key_by(|row| row.0).last_by_key("latest");
            let sums = flow.read("rows", &source()).key_by(|row| row.0).window(Window::global());
            let sums = sums.aggregate("sums", Each::count).on_change().map(|row| (row.key, row.value));
            sums.join_map(names, |key, count, _name| (*key, *count)).write("joined", &out());
            let other = flow.read("others", &source()).key_by(|row| row.0);
            let rows = flow.read("ones", &source()).key_by(|row| row.0);
            let pairs = rows.join_within("pairs", other, Duration::ZERO, Duration::from_secs(5));
            pairs.inner(|_key, one, other| (*one, *other)).results().write("pairs", &out());
        });
        assert_eq!(
            found,
            [
                "source names > table latest",
                "source ones > window pairs",
                "source others > window pairs",
                "source rows > window sums",
                "table latest > sink joined",
                "window pairs > sink pairs",
                "window sums > sink joined",
            ]
        );
    }

    #[test]
    fn two_sinks_and_a_view_are_behind_one_step_and_rejects_are_of_their_sources() {
        let found = edges(|flow| {
            let rows = flow.read("rows", &source());
            let sums = rows.key_by(|row| row.0).window(Window::global());
            let sums = sums.aggregate("rows", Each::count).on_change().map(|row| (row.key, row.value));
            sums.clone().write("one", &out());
            sums.clone().distinct().view("rows");
            sums.write("two", &out());
            flow.rejects().map(|rejected| rejected.offset).write("rejects", &out());
        });
        let expected = [
            "source rows > sink rejects",
            "source rows > window rows",
            "window rows > sink one",
            "window rows > sink two",
            "window rows > view rows",
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn an_iteration_is_passed_through_by_what_flows_through_it() {
        let found = edges(|flow| {
            let numbers = flow.read("numbers", &source()).key_by(|row| row.0).last_by_key("numbers");
            let steps = flow.read("steps", &source()).key_by(|row| row.0).last_by_key("steps");
            let apart = flow.read("apart", &source()).key_by(|row| row.0).last_by_key("apart");
            let numbers = numbers.map(|(key, _)| key);
            let reached = numbers.clone().iterate(9, move |scope, reached| {
                let steps = scope.enter(&steps);
                reached
                    .map(|key| (key, ()))
                    .join_map(steps, |_key, (), to| to.0)
                    .concat(scope.enter(&numbers))
                    .distinct()
            });
            reached.write("reached", &out());
            apart.write("apart", &out());
        });
        assert_eq!(
            found,
            [
                "source apart > table apart",
                "source numbers > table numbers",
                "source steps > table steps",
                "table apart > sink apart",
                "table numbers > sink reached",
                "table steps > sink reached",
            ]
        );
    }
}
