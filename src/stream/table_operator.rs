//! The second operator of a table, on the worker of the key: keeps the rows, and emits their changes epoch by epoch.
//!
//! Its rows and its invariants: see [`table`](super::table).

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;
use timely::container::CapacityContainerBuilder;
use timely::dataflow::Stream as TimelyStream;
use timely::dataflow::channels::pact::Exchange;
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use timely::dataflow::operators::{Capability, InputCapability};

use crate::metrics::TableMetrics;
use crate::record::{Event, Record};
use crate::source::ChangeDifference;
use crate::stream::assign::SourcePosition;
use crate::stream::checkpoint::{self, CodecCell, SegmentBuilder};
use crate::stream::difference_policy::DifferencePolicy;
use crate::stream::durable_context::DurableContext;
use crate::stream::epochs::{self, EpochBuffer};
use crate::stream::route::route;
use crate::stream::table_rows::{StampedValue, TableChange, TableMap, TableRow, TableState, saved_rows};
use crate::stream::{Flow, SnapshotEpochs};
use crate::time::EventTime;

/// Changes that are emitted per activation.
const PIECE: usize = 2048;

/// Changes that did not fit, at the places of their records.
pub(super) type DifferenceEvents<K, V> = Vec<Event<ChangeDifference<K, V>>>;

/// Outputs of a table's step.
pub(super) struct TableOutputs<'f, K, V> {
    pub(super) changes: TimelyStream<'f, u64, Vec<TableChange<K, V>>>,
    /// Changes that did not fit; `None` if they are not checked.
    pub(super) differences: Option<TimelyStream<'f, u64, DifferenceEvents<K, V>>>,
}

/// The configuration of the second operator.
pub(super) struct TableConfig<K, V> {
    pub(super) name: String,
    pub(super) seals: SnapshotEpochs,
    pub(super) metrics: Arc<TableMetrics>,
    /// The codec of saved rows.
    pub(super) codec: CodecCell<TableRow<K, V>>,
    pub(super) forget_deletes: bool,
    pub(super) order: TableOrder,
    /// Treatment of changes that do not fit; `None` if changes are not checked.
    pub(super) policy: Option<DifferencePolicy>,
}

/// The order that decides which record of a key is the latest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TableOrder {
    /// (event time, source, partition, offset).
    EventTime,
    /// (source, partition, offset): of a source whose records all have the same event time.
    Offset,
    /// The same, of changes that are checked.
    Checked,
}

impl TableOrder {
    /// Returns its description in the query's fingerprint.
    pub(super) fn describe(self) -> &'static str {
        match self {
            TableOrder::EventTime => "the last",
            TableOrder::Offset => "the last by offset",
            TableOrder::Checked => "the last by offset, checked",
        }
    }
}

/// The effects of an epoch.
pub(super) struct AppliedRows<K, V> {
    changes: Vec<TableChange<K, V>>,
    pub(super) differences: DifferenceEvents<K, V>,
}

impl<K, V> AppliedRows<K, V> {
    /// Adds further effects of the same epoch, on other keys.
    pub(super) fn append(&mut self, mut others: AppliedRows<K, V>) {
        self.changes.append(&mut others.changes);
        self.differences.append(&mut others.differences);
    }
}

/// Input of a table's second operator in an epoch: records, and a snapshot's rows.
pub(super) trait TableInput<K: Record, V: Record>: Default + 'static {
    /// A record in transit to the worker of its key.
    type Record: Clone + Serialize + DeserializeOwned + Send + 'static;

    /// Returns a record's key.
    fn key(record: &Self::Record) -> &K;

    /// Adds records.
    fn take(&mut self, records: &mut Vec<Self::Record>);

    /// Adds rows of a snapshot.
    fn load(&mut self, rows: &mut Vec<TableRow<K, V>>);

    /// Applies the complete input of an epoch; `from_snapshot` is `true` for that of the snapshot's rows.
    fn apply(self, operator: &mut TableOperator<K, V>, epoch: u64, from_snapshot: bool) -> AppliedRows<K, V>;
}

/// The greatest row of each key.
pub(super) struct LatestRows<K, V>(TableMap<K, StampedValue<V>>);

impl<K, V> Default for LatestRows<K, V> {
    fn default() -> Self {
        LatestRows(HashMap::default())
    }
}

impl<K: Record, V: Record> LatestRows<K, V> {
    /// Sets the row of a key, of a source without event times.
    pub(super) fn set(&mut self, key: K, at: SourcePosition, value: Option<V>) {
        self.0.insert(key, StampedValue { time: EventTime::from_millis(0), at, value });
    }
}

impl<K: Record, V: Record> TableInput<K, V> for LatestRows<K, V> {
    type Record = TableRow<K, V>;

    fn key((key, _): &TableRow<K, V>) -> &K {
        key
    }

    fn take(&mut self, rows: &mut Vec<TableRow<K, V>>) {
        for (key, new) in rows.drain(..) {
            match self.0.entry(key) {
                Entry::Occupied(mut row) => {
                    if new > *row.get() {
                        row.insert(new);
                    }
                }
                Entry::Vacant(row) => {
                    row.insert(new);
                }
            }
        }
    }

    fn load(&mut self, rows: &mut Vec<TableRow<K, V>>) {
        self.take(rows);
    }

    fn apply(mut self, operator: &mut TableOperator<K, V>, epoch: u64, from_snapshot: bool) -> AppliedRows<K, V> {
        if operator.step.order != TableOrder::EventTime && !from_snapshot {
            operator.warn_of_moved_keys(&self.0);
        }
        if from_snapshot && operator.step.forget_deletes {
            self.0.retain(|_, row| row.value.is_some());
        }
        AppliedRows { changes: operator.table.fold(epoch, self.0, from_snapshot), differences: Vec::new() }
    }
}

/// The input of one epoch that is not complete yet.
#[derive(Default)]
struct PendingRows<I> {
    input: I,
    /// The number of records; `loaded` is the number of a snapshot's rows.
    records: u64,
    loaded: u64,
    /// `None` while nothing has arrived that could lead to output at this epoch.
    capability: Option<Capability<u64>>,
    /// The same of the output of differences.
    of_differences: Option<Capability<u64>>,
}

impl<I> PendingRows<I> {
    /// Holds the operator's outputs at the epoch; that of differences if there is one.
    fn hold(&mut self, epoch: u64, capability: &InputCapability<u64>, is_checked: bool) {
        self.capability.get_or_insert_with(|| capability.delayed(&epoch, 0));
        if is_checked {
            self.of_differences.get_or_insert_with(|| capability.delayed(&epoch, 1));
        }
    }
}

/// Changes that are still to be emitted, with the capability to emit them under.
type OutgoingChanges<K, V> = VecDeque<(Capability<u64>, Vec<TableChange<K, V>>)>;

/// The second operator of a table, on one worker.
pub(super) struct TableOperator<K: Record, V: Record> {
    table: TableState<K, V>,
    step: TableConfig<K, V>,
    /// The epoch of the snapshot that the job resumes from.
    begins_at: Option<u64>,
    /// Builds segments; `None` in a job without state.
    saver: Option<SegmentBuilder<TableRow<K, V>>>,
    leaving: OutgoingChanges<K, V>,
    /// Differences that are still to be emitted.
    differing: Vec<(Capability<u64>, DifferenceEvents<K, V>)>,
    /// The capabilities of the epoch at which a difference failed the job: it is never complete.
    failed: Option<[Option<Capability<u64>>; 2]>,
    /// `true` once a key in several partitions was reported.
    has_warned: bool,
}

impl<K: Record, V: Record> TableOperator<K, V> {
    /// Returns the row that the table has for a key; `None` if it never had one.
    pub(super) fn last_of(&self, key: &K) -> Option<&StampedValue<V>> {
        self.table.rows.get(key).map(|entry| &entry.last)
    }

    /// `true` if there are differences and nobody takes them; sets the job's failure then.
    fn refuses(&self, differences: &[Event<ChangeDifference<K, V>>]) -> bool {
        let Some(policy) = self.step.policy.as_ref().filter(|policy| !policy.has_consumer.get()) else { return false };
        let Some(first) = differences.iter().min_by_key(|difference| difference.origin) else { return false };
        policy.failure.set(policy.error(&self.step.name, &first.data));
        true
    }

    /// Warns, once, of a key that records of several partitions have: their order is no order of time.
    fn warn_of_moved_keys(&mut self, news: &TableMap<K, StampedValue<V>>) {
        if self.has_warned {
            return;
        }
        let others = news.iter().filter_map(|(key, new)| Some((key, self.table.rows.get(key)?.last.at, new.at)));
        if let Some((key, (_, before, _), (_, now, _))) = others.into_iter().find(|(_, old, new)| old.1 != new.1) {
            self.has_warned = true;
            tracing::warn!(
                "table {}: the key {key:?} has records in the partitions {before} and {now}; of such keys the record of \
                 the greatest partition counts, whichever is newer: write a key to one partition",
                self.step.name
            );
        }
    }

    /// Completes an epoch: applies its input and seals the table if the epoch is sealed.
    fn complete<I: TableInput<K, V>>(&mut self, epoch: u64, turn: PendingRows<I>, sealed: bool) {
        let from_snapshot = self.begins_at == Some(epoch);
        let metrics = Arc::clone(&self.step.metrics);
        metrics.compared.add(turn.records);
        metrics.loaded.add(turn.loaded);
        let AppliedRows { changes, mut differences } = turn.input.apply(self, epoch, from_snapshot);
        metrics.changes.add(changes.len() as u64);
        metrics.differences.add(differences.len() as u64);
        if self.refuses(&differences) {
            self.failed = Some([turn.capability, turn.of_differences]);
            return;
        }
        if let Some(capability) = turn.capability.filter(|_| !changes.is_empty()) {
            self.leaving.push_back((capability, changes));
        }
        if let Some(capability) = turn.of_differences.filter(|_| !differences.is_empty()) {
            differences.sort_unstable();
            self.differing.push((capability, differences));
        }
        if let Some(segment_builder) = self.saver.as_mut().filter(|_| sealed) {
            segment_builder.begin(epoch, EventTime::MIN, self.table.seal());
        }
    }
}

/// Builds the second operator of a table, which exchanges `rows` by key.
pub(super) fn build_table<'f, K: Record, V: Record, I: TableInput<K, V>>(
    flow: &Flow<'f>,
    rows: TimelyStream<'f, u64, Vec<I::Record>>,
    step: TableConfig<K, V>,
) -> TableOutputs<'f, K, V> {
    let (scope, durable) = (flow.scope, flow.build.durable.clone());
    let loaded = checkpoint::load(flow, &step.name, saved_rows::<K, V>(), Rc::clone(&step.codec));
    let mut builder = OperatorBuilder::new(format!("Table: {}", step.name), scope);
    let mut rows = builder.new_input(rows, Exchange::new(|record: &I::Record| route(I::key(record))));
    let by_key = || Exchange::new(|(key, _): &TableRow<K, V>| route(key));
    let mut loaded = loaded.map(|loaded| builder.new_input(loaded, by_key()));
    let (changed, changes) = builder.new_output();
    let mut changed = OutputBuilder::<_, CapacityContainerBuilder<_>>::from(changed);
    let is_checked = step.policy.is_some();
    let (mut differing, differences) = is_checked.then(|| builder.new_output()).unzip();
    let mut differing = differing.take().map(OutputBuilder::<_, CapacityContainerBuilder<_>>::from);
    let mut snapshot_acks = flow.snapshot_output(&mut builder);
    let info = builder.operator_info();
    builder.build(move |mut capabilities| {
        let activator = || scope.activator_for(Rc::clone(&info.address));
        let begins_at = durable.as_ref().and_then(DurableContext::gate);
        let unsealed = durable.is_some().then(Vec::new);
        let segment_builder =
            durable.zip(capabilities.pop().filter(|_| snapshot_acks.is_some())).map(|(durable, capability)| {
                let wake = (activator(), scope.worker().sync_activator_for(info.address.to_vec()));
                SegmentBuilder::new(&step.name, durable, saved_rows::<K, V>(), Rc::clone(&step.codec), capability, wake)
            });
        drop(capabilities);
        let table = TableState { rows: HashMap::default(), unsealed };
        let mut operator = TableOperator {
            table,
            step,
            begins_at,
            saver: segment_builder,
            leaving: VecDeque::new(),
            differing: Vec::new(),
            failed: None,
            has_warned: false,
        };
        let mut turns = EpochBuffer::<PendingRows<I>>::default();
        let mut sealed_through = begins_at.unwrap_or(0);
        let activator = activator();

        move |frontiers| {
            rows.for_each(|capability, rows| {
                let Some(&epoch) = capability.least() else { return };
                let turn = turns.at(epoch);
                turn.hold(epoch, &capability, is_checked);
                turn.records += rows.len() as u64;
                turn.input.take(rows);
            });
            if let Some(loaded) = &mut loaded {
                loaded.for_each(|capability, rows| {
                    let Some(&epoch) = capability.least() else { return };
                    let turn = turns.at(epoch);
                    turn.hold(epoch, &capability, is_checked);
                    turn.loaded += rows.len() as u64;
                    turn.input.load(rows);
                });
            }
            for epoch in operator.step.seals.after(sealed_through) {
                turns.at(epoch);
            }
            while let Some(epoch) = turns.first_complete(frontiers).filter(|_| operator.failed.is_none()) {
                let sealed = operator.step.seals.contains(epoch);
                if sealed && operator.saver.as_ref().is_some_and(SegmentBuilder::is_busy) {
                    break;
                }
                let Some((_, turn)) = turns.next_complete(frontiers) else { break };
                sealed_through = if sealed { epoch } else { sealed_through };
                operator.complete(epoch, turn, sealed);
            }
            // Changes are emitted piece by piece, so that downstream operators keep up: after a load they are the
            // whole table. Their order within an epoch is not significant.
            if let Some((capability, changes)) = operator.leaving.front_mut() {
                let piece = changes.drain(changes.len().saturating_sub(PIECE)..);
                changed.activate().session(&*capability).give_iterator(piece);
                operator.leaving.pop_front_if(|(_, changes)| changes.is_empty());
                activator.activate();
            }
            if let Some(differing) = &mut differing {
                let mut output = differing.activate();
                for (capability, mut differences) in operator.differing.drain(..) {
                    output.session(&capability).give_container(&mut differences);
                }
            }
            if let (Some(segment_builder), Some(snapshot_acks)) = (&mut operator.saver, &mut snapshot_acks) {
                if let Some((capability, part)) = segment_builder.work() {
                    snapshot_acks.activate().session(&capability).give(part);
                }
                if epochs::has_ended(frontiers) && turns.is_empty() && operator.failed.is_none() {
                    segment_builder.close();
                }
            }
        }
    });
    TableOutputs { changes, differences }
}
