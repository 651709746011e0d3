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
//! A [`TableInput`] gathers an epoch's records and applies them in the second operator (`table_operator.rs`): [`LatestRows`],
//! or changes that are checked (`checked_table.rs`).

use std::sync::Arc;

use differential_dataflow::AsCollection;
use timely::dataflow::Stream as TimelyStream;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::Probe;
use timely::dataflow::operators::generic::operator::Operator;

use crate::durable::codec::{Codec, Postcard};
use crate::durable::declared_changes::NameScope;
use crate::error::Error;
use crate::metrics::TableMetrics;
use crate::record::{Event, Record};
use crate::source::Source;
use crate::stream::assign::SourcePosition;
use crate::stream::checkpoint;
use crate::stream::difference_policy::DifferencePolicy;
use crate::stream::durable_context::DurableContext;
use crate::stream::input::ReadMode;
use crate::stream::keyed_stream::Keyed;
use crate::stream::table_operator::{LatestRows, TableConfig, TableInput, TableOrder, TableOutputs, build_table};
use crate::stream::table_rows::{StampedValue, TableRow, saved_rows};
use crate::stream::{Collection, Fault, Flow, Stream};
use crate::time::EventTime;

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
