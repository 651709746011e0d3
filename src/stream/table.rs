//! Tables: the latest record of each key of a stream.
//!
//! * The **stamp** of a record is (event time, source, partition, offset). Of records with equal stamps, such as
//!   those that one record was changed into or results of windows, the greatest value counts. So which record is the
//!   latest depends on the records alone: not on epochs, workers or arrival.
//! * A **row** is a key with the stamp and the value of its latest record. A record that **deletes** its key has no
//!   value, and its row is kept as a tombstone: an older record that arrives later must not undo it.
//! * A table has no watermark and never judges lateness: every record counts, however old.
//! * A table **by offset** ([`Flow::table`]) gives all records the same event time, so (source, partition, offset)
//!   decides. Of a key that is in several partitions, the record of the greatest one counts.
//!
//! A table is two operators. The first, on the worker that read the record, computes key, stamp and value. The
//! second, on the worker of the key, takes the greatest row of each key in the epoch, and when the epoch is complete
//! replaces the table's row if the new one is greater. The visible effects, old value out, new value in, are the
//! table's changes at the epoch.
//!
//! It is a checkpointed operator: snapshots keep its rows. The rows of a segment are those that changed since the
//! last seal, as they are then. Rows of one key are added up by keeping the greatest, which is commutative,
//! associative and *idempotent*. So any segments may be merged in any order, as with sums, and a row may be in two of
//! them.
//!
//! That is why the rows are in a hash map, and not in a differential arrangement, as those of windows are. An
//! arrangement adds up what its batches have of a row; here the last version of a row replaces all others. An
//! arrangement is read by prefix, when windows close; a table is read by key, once for each key that an epoch
//! touches, which takes one probe of a map, but a search in every batch with a cursor. And nobody else could use the
//! arrangement: operators downstream arrange the visible values, without the stamps. An arrangement's batch could
//! serve as a segment; here the rows that changed since the last seal are copied at the seal, so that later epochs
//! cannot change them.
//!
//! Invariants:
//! * Epochs are applied in order, each when it is complete, and sealed before the next one is applied: a segment
//!   through epoch c has exactly the effects of the epochs up to c.
//! * A job that resumes from a snapshot at c loads its rows at c, where the whole table enters the flow again; input
//!   at an epoch ≤ c is in these rows, and is dropped.
//! * No record is lost: records are counted before the exchange, and again when they are applied.
//!
//! A [`TableInput`] gathers an epoch's records and applies them in the second operator: [`LatestRows`] here, changes that
//! are checked in `checked_table.rs`.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;

use differential_dataflow::AsCollection;
use foldhash::fast::FixedState;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use timely::container::CapacityContainerBuilder;
use timely::dataflow::Stream as TimelyStream;
use timely::dataflow::channels::pact::{Exchange, Pipeline};
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use timely::dataflow::operators::generic::operator::Operator;
use timely::dataflow::operators::{Capability, InputCapability, Probe};

use crate::durable::codec::{Codec, Postcard};
use crate::durable::declared_changes::NameScope;
use crate::error::{Error, ErrorKind};
use crate::metrics::TableMetrics;
use crate::record::{Event, Record};
use crate::source::{ChangeDifference, RowBefore, Source};
use crate::stream::assign::{ConsumerFlag, SourcePosition};
use crate::stream::checkpoint::{self, CodecCell, RowChunks, RowOps, SegmentBuilder, chunks_of};
use crate::stream::durable_context::DurableContext;
use crate::stream::epochs::{self, EpochBuffer};
use crate::stream::input::ReadMode;
use crate::stream::keyed_stream::Keyed;
use crate::stream::route::route;
use crate::stream::{Collection, Fault, Flow, SnapshotEpochs, Stream};
use crate::thread::JobFailure;
use crate::time::EventTime;

/// Changes that are emitted per activation.
const PIECE: usize = 2048;

/// A value with the timestamp that orders it. The greatest is the latest.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename = "Stamped")]
pub(super) struct StampedValue<V> {
    time: EventTime,
    pub(super) at: SourcePosition,
    /// The value; `None` if the record deletes its key.
    pub(super) value: Option<V>,
}

/// A row, as it is exchanged and as snapshots keep it.
pub(super) type TableRow<K, V> = (K, StampedValue<V>);
/// A change of the table's visible rows: row, epoch, difference.
type TableChange<K, V> = ((K, V), u64, isize);
pub(super) type TableMap<K, R> = HashMap<K, R, FixedState>;

/// Returns the functions that order and add saved rows. Rows never expire, and tombstones are never dropped.
fn saved_rows<K: Record, V: Record>() -> RowOps<TableRow<K, V>> {
    RowOps {
        order: |a, b| a.0.cmp(&b.0),
        add: checkpoint::keep_newest,
        is_zero: |_| false,
        // Records that arrive later may be older: a delete must override them.
        is_tombstone: |_| false,
        window: |_| EventTime::MAX,
    }
}

impl<'f> Flow<'f> {
    /// Reads a source as a table: the last record of each key **by offset** has its value, and one without a value
    /// deletes the key. The source is a topic (`kafka::Source::new(…).table(…)`), which
    /// may be compacted, or any other one whose records are pairs of a key and an optional value. The name is unique
    /// among the query's sources and among its steps with state.
    ///
    /// A table has no event time: no record is late or rejected for its time, and it holds back no window. It changes at
    /// the end of an epoch, once for each key.
    ///
    /// All records of a key belong into one partition, where offsets order them. If a key has records in several
    /// partitions, that of the partition with the greatest number counts, whichever is newer, and a warning names the
    /// first such key.
    ///
    /// Deletes are kept, as in [`Keyed::last_by_key_with`].
    ///
    /// ```
    /// use tidegate::source::memory::MemorySource;
    /// use tidegate::testing::{Captured, TestRun};
    ///
    /// # fn main() -> tidegate::Result<()> {
    /// let rates = vec![("USD".to_string(), Some(90)), ("EUR".to_string(), Some(100)), ("USD".to_string(), None)];
    /// let source = MemorySource::new(vec![rates], |_| 0);
    /// let now = Captured::new();
    /// let output = now.clone();
    /// TestRun::new().run(move |flow| flow.table("rates", &source).write("now", &output))?;
    /// assert_eq!(now.all(), [("EUR".to_string(), 100)]);
    /// # Ok(()) }
    /// ```
    pub fn table<K: Record, V: Record>(
        &self,
        name: &str,
        source: &impl Source<Item = (K, Option<V>)>,
    ) -> Collection<'f, (K, V)> {
        let records = self.read_as(name, source, ReadMode { is_table: true, is_first: false });
        self.table_of(name, records)
    }

    /// Like [`Flow::table`], but reads the source first: see [`Flow::read_first`].
    pub fn table_first<K: Record, V: Record>(
        &self,
        name: &str,
        source: &impl Source<Item = (K, Option<V>)>,
    ) -> Collection<'f, (K, V)> {
        let records = self.read_as(name, source, ReadMode { is_table: true, is_first: true });
        self.table_of(name, records)
    }

    fn table_of<K: Record, V: Record>(
        &self,
        name: &str,
        records: Stream<'f, (K, Option<V>)>,
    ) -> Collection<'f, (K, V)> {
        let table = records.key_by(|(key, _)| key.clone()).into_table(name, TableOrder::Offset, |(_, value)| value);
        self.build.registry.add_output(table.inner.inner.name(), NameScope::Source, name);
        table
    }
}

impl<'f, K: Record, D: Record> Keyed<'f, K, D> {
    /// Returns the latest record of each key, as a table: the record with the greatest event time, and of those the
    /// greatest (source, partition, offset). The step's name is unique in the query: state and metrics are found by
    /// it.
    ///
    /// A table has no watermark: every record counts, however late it arrives. It changes at the end of an epoch,
    /// once for each key: the old row is retracted and the new one is inserted.
    ///
    /// ```
    /// use tidegate::testing::{Captured, TestRun};
    /// use tidegate::source::memory::MemorySource;
    ///
    /// # fn main() -> tidegate::Result<()> {
    /// // (account, owner, event time): the owner of an account may change, and news may come late.
    /// let owners = [("a1", "Ann", 10), ("b2", "Bob", 20), ("a1", "Cid", 40), ("a1", "Dot", 30)];
    /// let owners = owners.map(|(account, owner, at)| (account.to_string(), owner.to_string(), at));
    /// let source = MemorySource::new(vec![owners.to_vec()], |owner: &(String, String, i64)| owner.2);
    /// let (now, accounts) = (Captured::new(), Captured::new());
    /// let (owners, held) = (now.clone(), accounts.clone());
    /// TestRun::new().run(move |flow| {
    ///     let table = flow.read("owners", &source).key_by(|(account, ..)| account.clone()).last_by_key("owner now");
    ///     // A collection like any other: here it is counted how many accounts each owner has.
    ///     table.clone().map(|(_account, (_, owner, _))| owner).count().write("held", &held);
    ///     table.map(|(account, (_, owner, _))| (account, owner)).write("owners", &owners);
    /// })?;
    /// assert_eq!(now.all(), [("a1".into(), "Cid".into()), ("b2".into(), "Bob".into())]);
    /// assert_eq!(accounts.all(), [("Bob".to_string(), 1), ("Cid".to_string(), 1)]);
    /// # Ok(()) }
    /// ```
    pub fn last_by_key(self, name: &str) -> Collection<'f, (K, D)> {
        self.last_by_key_with(name, Some)
    }

    /// Like [`Keyed::last_by_key`], but keeps what `value` returns for a record. `None` deletes the key, as a record
    /// without a value in a compacted topic does.
    ///
    /// A delete has the stamp of its record: older records that arrive after it do not undo it, and newer ones do.
    /// For that, deletes are kept as tombstones, in memory and in snapshots, and never removed. A table of keys that
    /// occur once and are deleted therefore grows without bound, by one key and stamp each.
    ///
    /// ```
    /// use tidegate::testing::{Captured, TestRun};
    /// use tidegate::source::memory::MemorySource;
    ///
    /// # fn main() -> tidegate::Result<()> {
    /// let prices = vec![("tea".to_string(), Some(3), 10), ("tea".to_string(), None, 30), ("tea".to_string(), Some(4), 20)];
    /// let source = MemorySource::new(vec![prices], |price: &(String, Option<i64>, i64)| price.2);
    /// let now = Captured::<(String, i64)>::new();
    /// let output = now.clone();
    /// TestRun::new().run(move |flow| {
    ///     let prices = flow.read("prices", &source).key_by(|price| price.0.clone());
    ///     prices.last_by_key_with("prices", |(_, price, _)| price).write("prices", &output);
    /// })?;
    /// assert_eq!(now.all(), []);
    /// # Ok(()) }
    /// ```
    pub fn last_by_key_with<V: Record>(
        self,
        name: &str,
        value: impl Fn(D) -> Option<V> + 'static,
    ) -> Collection<'f, (K, V)> {
        self.into_table(name, TableOrder::EventTime, value)
    }

    fn into_table<V: Record>(
        self,
        name: &str,
        order: TableOrder,
        value: impl Fn(D) -> Option<V> + 'static,
    ) -> Collection<'f, (K, V)> {
        let flow = self.stream.flow.clone();
        let record = move |key, time, at, data| (key, StampedValue { time, at, value: value(data) });
        let outputs = table::<_, _, _, _, LatestRows<K, V>>(self, (name, order), record, None);
        // Back-pressure includes this step: a query may have no sink behind it.
        let changes = outputs.changes.probe_with(&flow.build.probe);
        flow.build.registry.add_output(changes.name(), NameScope::Step, name);
        Collection::new(changes.as_collection(), flow)
    }
}

/// Changes that did not fit, at the places of their records.
type DifferenceEvents<K, V> = Vec<Event<ChangeDifference<K, V>>>;

/// Outputs of a table's step.
pub(super) struct TableOutputs<'f, K, V> {
    pub(super) changes: TimelyStream<'f, u64, Vec<TableChange<K, V>>>,
    /// Changes that did not fit; `None` if they are not checked.
    pub(super) differences: Option<TimelyStream<'f, u64, DifferenceEvents<K, V>>>,
}

/// Builds both operators of a table. `record` makes what the second one gets of a record, given key, event time and
/// place. `policy` is that of checked changes.
pub(super) fn table<'f, K: Record, D: Record, V: Record, F, I>(
    records: Keyed<'f, K, D>,
    (name, order): (&str, TableOrder),
    record: F,
    policy: Option<DifferencePolicy>,
) -> TableOutputs<'f, K, V>
where
    F: Fn(K, EventTime, SourcePosition, D) -> I::Record + 'static,
    I: TableInput<K, V>,
{
    let flow = records.stream.flow.clone();
    let fingerprint = Codec::<TableRow<K, V>>::fingerprint(&Postcard);
    flow.build.step("table", name, order.describe().to_owned(), fingerprint);
    checkpoint::check_rows::<TableRow<K, V>>(&flow, name);
    flow.check_exchangeable::<I::Record>("table", name);
    let metrics = flow.build.metrics.table(name);
    let rows = stamp_records(records, &flow, record, Arc::clone(&metrics));
    let step = TableConfig {
        name: name.to_owned(),
        seals: flow.build.snapshot_epochs.clone(),
        metrics,
        codec: checkpoint::postcard::<TableRow<K, V>>(),
        forget_deletes: flow.has_fault(Fault::ForgetDeletes),
        order,
        policy,
    };
    build_table::<K, V, I>(&flow, rows, step)
}

impl<K: Record, V: Record> Collection<'_, (K, V)> {
    /// Says how values of the type `Old`, which earlier versions of the query kept in this table, become values of today:
    /// see [`Aggregated::migrate`](super::Aggregated::migrate). It stands directly behind the table.
    #[must_use]
    pub fn migrate<Old: Record>(self, convert: impl Fn(Old) -> V + Send + Sync + 'static) -> Self {
        let row = move |(key, StampedValue { time, at, value }): TableRow<K, Old>| {
            (key, StampedValue { time, at, value: value.map(&convert) })
        };
        match self.flow.build.registry.step_of(self.inner.inner.name()) {
            Some(name) => checkpoint::convert_rows::<_, TableRow<K, V>>(&self.flow, &name, saved_rows(), row),
            None => self.flow.build.failure.set(
                Error::usage("`.migrate` is behind no table").help("put it directly behind `table` or `last_by_key`"),
            ),
        }
        self
    }
}

/// Makes what the second operator gets of each record: of its key, event time, place and data.
fn stamp_records<'f, K: Record, D: Record, R: Clone + 'static>(
    records: Keyed<'f, K, D>,
    flow: &Flow<'f>,
    record: impl Fn(K, EventTime, SourcePosition, D) -> R + 'static,
    metrics: Arc<TableMetrics>,
) -> TimelyStream<'f, u64, Vec<R>> {
    let Keyed { stream, keys: keys_of, .. } = records;
    let gate = flow.build.durable.as_ref().and_then(DurableContext::gate).filter(|_| !flow.has_fault(Fault::SkipGate));
    let pool = stream.pool;
    stream.events.unary(Pipeline, "Stamp", move |_capability, _info| {
        let (mut keys, mut made) = (Vec::new(), Vec::new());
        move |input, output| {
            input.for_each(|capability, events| {
                if gate.is_some_and(|gate| capability.least().is_some_and(|epoch| *epoch <= gate)) {
                    return;
                }
                metrics.received.add(events.len() as u64);
                keys_of(events, &mut keys);
                made.extend(keys.drain(..).zip(events.drain(..)).map(|(key, event)| {
                    let Event { time, origin, data, .. } = event;
                    record(key, time, origin.tie_breaker(), data)
                }));
                pool.give(std::mem::take(events));
                output.session(&capability).give_container(&mut made);
                made.clear();
            });
        }
    })
}

/// The configuration of the second operator.
struct TableConfig<K, V> {
    name: String,
    seals: SnapshotEpochs,
    metrics: Arc<TableMetrics>,
    /// The codec of saved rows.
    codec: CodecCell<TableRow<K, V>>,
    forget_deletes: bool,
    order: TableOrder,
    /// Treatment of changes that do not fit; `None` if changes are not checked.
    policy: Option<DifferencePolicy>,
}

/// Treatment of changes that do not fit the table's rows.
pub(super) struct DifferencePolicy {
    /// `true` if they are consumed; otherwise the first one fails the job.
    pub(super) has_consumer: ConsumerFlag,
    pub(super) failure: Arc<JobFailure>,
    /// The source, for people.
    pub(super) source: String,
}

impl DifferencePolicy {
    /// Returns the error of a difference.
    fn error<K: Record, V: Record>(&self, table: &str, difference: &ChangeDifference<K, V>) -> Error {
        let ChangeDifference { key, partition, offset, change, found, is_applied } = difference;
        let key = serde_json::to_string(key).unwrap_or_else(|_| String::from("(not JSON)"));
        let why = match (is_applied, &change.before, found) {
            (false, ..) => "the row that the table has is of a later place: the key is in several partitions",
            (_, RowBefore::None, _) => "the change says that there was no row before it, and the table has one",
            (_, _, None) => "the change names a row before it, and the table has none",
            (_, _, Some(_)) => "the change names another row before it than the table has",
        };
        Error::of(
            ErrorKind::RecordRejected,
            format!("a change does not fit the row of the key {key} in table `{table}`"),
        )
        .at(format!("{}, partition {partition}, offset {offset}", self.source))
        .because(why)
        .help(
            "changes are missing, repeated or out of order: read the topic from its first change on with a new state, \
                 or go on after differences by taking `CheckedTable::differences`",
        )
    }
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
    fn describe(self) -> &'static str {
        match self {
            TableOrder::EventTime => "the last",
            TableOrder::Offset => "the last by offset",
            TableOrder::Checked => "the last by offset, checked",
        }
    }
}

/// A row of the table.
struct TableEntry<V> {
    last: StampedValue<V>,
    /// `true` if the row has changed since the last seal.
    unsealed: bool,
}

/// The rows of one worker.
struct TableState<K, V> {
    rows: TableMap<K, TableEntry<V>>,
    /// The keys of rows that have changed since the last seal; `None` in a job without state.
    unsealed: Option<Vec<K>>,
}

impl<K: Record, V: Record> TableState<K, V> {
    /// Replaces rows by greater ones of an epoch, and returns the visible changes. Rows of a snapshot are in a
    /// segment already and need no seal.
    fn fold(&mut self, epoch: u64, news: TableMap<K, StampedValue<V>>, from_snapshot: bool) -> Vec<TableChange<K, V>> {
        let (mut changes, mut unsealed) = (Vec::new(), self.unsealed.as_mut().filter(|_| !from_snapshot));
        for (key, new) in news {
            let (value, is_unsealed) = (new.value.clone(), unsealed.is_some());
            let (old, was_unsealed) = match self.rows.get_mut(&key) {
                Some(held) if held.last >= new => continue,
                Some(held) => {
                    let was_unsealed = std::mem::replace(&mut held.unsealed, is_unsealed);
                    (std::mem::replace(&mut held.last, new).value, was_unsealed)
                }
                None => {
                    self.rows.insert(key.clone(), TableEntry { last: new, unsealed: is_unsealed });
                    (None, false)
                }
            };
            if let Some(unsealed) = unsealed.as_mut().filter(|_| !was_unsealed) {
                unsealed.push(key.clone());
            }
            if old != value {
                changes.extend(old.map(|old| ((key.clone(), old), epoch, -1)));
                changes.extend(value.map(|value| ((key, value), epoch, 1)));
            }
        }
        changes
    }

    /// Returns the rows that have changed since the last seal, in order; `None` if there are none.
    fn seal(&mut self) -> Option<RowChunks<TableRow<K, V>>> {
        let mut keys = std::mem::take(self.unsealed.as_mut()?);
        keys.sort_unstable();
        let mut rows = Vec::with_capacity(keys.len());
        for key in keys {
            let Some(held) = self.rows.get_mut(&key) else { unreachable!("rows are never removed") };
            held.unsealed = false;
            rows.push((key, held.last.clone()));
        }
        if rows.is_empty() { None } else { Some(chunks_of(rows)) }
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
fn build_table<'f, K: Record, V: Record, I: TableInput<K, V>>(
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

#[cfg(test)]
mod tests {
    use super::*;

    fn stamped(time: i64, offset: u64, value: Option<u8>) -> StampedValue<u8> {
        StampedValue { time: EventTime::from_millis(time), at: (0, 0, offset), value }
    }

    fn news(key: u8, row: StampedValue<u8>) -> TableMap<u8, StampedValue<u8>> {
        [(key, row)].into_iter().collect()
    }

    /// Rows of a key may be added up in any order, and repeatedly.
    #[test]
    fn adding_rows_keeps_the_greatest() {
        let add = saved_rows::<u8, u8>().add;
        let rows = [stamped(1, 9, Some(1)), stamped(2, 0, None), stamped(2, 1, Some(0)), stamped(2, 1, None)];
        for (a, b, c) in [(0, 1, 2), (2, 1, 0), (1, 3, 2), (3, 2, 3), (2, 2, 2)] {
            let mut sum = (7, rows[a].clone());
            for other in [b, c, a] {
                add(&mut sum, &(7, rows[other].clone()));
            }
            assert_eq!(sum.1, rows[2]);
        }
    }

    /// A segment has what has changed since the last one, deletes and invisible changes included, and nothing else.
    #[test]
    fn a_seal_has_what_has_changed_since_the_last_one() {
        let mut table = TableState { rows: HashMap::default(), unsealed: Some(Vec::new()) };
        let sealed = |table: &mut TableState<u8, u8>| {
            let (mut rows, mut out) = (Vec::new(), table.seal());
            while out.as_mut().is_some_and(|out| out(1, &mut |row: TableRow<u8, u8>| rows.push(row))) {}
            rows
        };
        assert_eq!(table.fold(2, news(1, stamped(10, 0, Some(5))), true), [((1, 5), 2, 1)]);
        assert_eq!(sealed(&mut table), [], "what was loaded is in a segment already");
        assert_eq!(table.fold(4, news(1, stamped(20, 1, Some(5))), false), [], "nothing is seen of it");
        assert_eq!(table.fold(4, news(0, stamped(5, 2, None)), false), []);
        assert_eq!(table.fold(6, news(0, stamped(4, 3, Some(9))), false), [], "the delete is newer");
        assert_eq!(table.fold(8, news(1, stamped(30, 4, Some(6))), false), [((1, 5), 8, -1), ((1, 6), 8, 1)]);
        assert_eq!(sealed(&mut table), [(0, stamped(5, 2, None)), (1, stamped(30, 4, Some(6)))]);
        assert_eq!(sealed(&mut table), []);
        assert_eq!(table.fold(10, news(0, stamped(6, 5, Some(2))), false), [((0, 2), 10, 1)]);
        assert_eq!(sealed(&mut table), [(0, stamped(6, 5, Some(2)))]);
    }
}
