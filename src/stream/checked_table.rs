//! Tables whose changes are checked: each says which row it replaces, and that has to be the row that the table has.
//!
//! All changes of a key in an epoch are applied in the order of (source, partition, offset), one after the other, by the
//! step that keeps the table's rows. So checks go on after restarts, and do not depend on epochs or workers.
//!
//! A change that does not fit is a **difference**: it is applied all the same, as the row after it is what the database
//! has then. One whose place is before that of the row that the table has is not applied.
//!
//! Invariant: without a consumer of differences the first one fails the job, and its epoch is not complete for any sink.

use std::fmt;
use std::sync::Arc;

use differential_dataflow::AsCollection;
use serde::{Deserialize, Serialize};
use timely::dataflow::operators::Probe;
use timely::dataflow::operators::generic::operator::empty;

use super::assign::{ConsumerFlag, SourcePosition};
use super::container_pool::ContainerPool;
use super::difference_policy::DifferencePolicy;
use super::flow::Flow;
use super::input::ReadMode;
use super::table::table;
use super::table_operator::{AppliedRows, LatestRows, TableInput, TableOperator, TableOrder};
use super::table_rows::{TableMap, TableRow};
use super::{Collection, Stream};
use crate::durable::declared_changes::NameScope;
use crate::record::{Event, Origin, Record};
use crate::source::{ChangeDifference, CheckedChange, Source};
use crate::time::EventTime;

/// A table whose changes are checked: see [`Flow::checked_table`].
pub struct CheckedTable<'f, K: Record, V: Record> {
    rows: Collection<'f, (K, V)>,
    differences: Stream<'f, ChangeDifference<K, V>>,
    has_consumer: ConsumerFlag,
}

impl<K: Record, V: Record> fmt::Debug for CheckedTable<'_, K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CheckedTable<{}, {}>", std::any::type_name::<K>(), std::any::type_name::<V>())
    }
}

impl<'f, K: Record, V: Record> CheckedTable<'f, K, V> {
    /// Returns the table's rows.
    pub fn rows(&self) -> Collection<'f, (K, V)> {
        self.rows.clone()
    }

    /// Returns the changes that did not fit the row that the table had. With it, the job goes on after them; without it,
    /// the first one fails the job.
    pub fn differences(&self) -> Stream<'f, ChangeDifference<K, V>> {
        self.has_consumer.set(true);
        self.differences.clone()
    }
}

impl<'f> Flow<'f> {
    /// Reads a source as a table, as [`Flow::table`] does, and checks its changes: the row that a change replaces has to
    /// be the one that the table has for the key, in the order of offsets. The source is a topic of a database's changes
    /// (`kafka::Source::new(…).checked_rows(…)`), or any other one of keys with a [`CheckedChange`].
    ///
    /// A difference fails the job before its epoch is published, with an error that names the partition, the offset and
    /// the key. A job that takes [`CheckedTable::differences`] goes on with the row after the change. The table has to see
    /// all changes of a key from the first one on.
    ///
    /// ```
    /// use tidegate::source::memory::MemorySource;
    /// use tidegate::source::{CheckedChange, RowBefore};
    /// use tidegate::testing::{Captured, TestRun};
    ///
    /// # fn main() -> tidegate::Result<()> {
    /// let change = |before, after| ("a1".to_string(), CheckedChange { before, after: Some(after) });
    /// // The change from 4 to 5 is missing.
    /// let changes = vec![change(RowBefore::None, 3), change(RowBefore::Row(3), 4), change(RowBefore::Row(5), 6)];
    /// let source = MemorySource::new(vec![changes], |_| 0);
    /// let (rows, differences) = (Captured::new(), Captured::new());
    /// let (of_rows, of_differences) = (rows.clone(), differences.clone());
    /// TestRun::new().run(move |flow| {
    ///     let accounts = flow.checked_table("accounts", &source);
    ///     accounts.rows().write("rows", &of_rows);
    ///     accounts.differences().map(|other| (other.offset, other.found)).write("differences", &of_differences);
    /// })?;
    /// assert_eq!(rows.all(), [("a1".to_string(), 6)]);
    /// assert_eq!(differences.all(), [(2, Some(4))]);
    /// # Ok(()) }
    /// ```
    pub fn checked_table<K: Record, V: Record>(
        &self,
        name: &str,
        source: &impl Source<Item = (K, CheckedChange<V>)>,
    ) -> CheckedTable<'f, K, V> {
        self.checked_table_of(name, source, ReadMode { is_table: true, is_first: false })
    }

    /// Like [`Flow::checked_table`], but reads the source first: see [`Flow::read_first`].
    pub fn checked_table_first<K: Record, V: Record>(
        &self,
        name: &str,
        source: &impl Source<Item = (K, CheckedChange<V>)>,
    ) -> CheckedTable<'f, K, V> {
        self.checked_table_of(name, source, ReadMode { is_table: true, is_first: true })
    }

    fn checked_table_of<K: Record, V: Record>(
        &self,
        name: &str,
        source: &impl Source<Item = (K, CheckedChange<V>)>,
        mode: ReadMode,
    ) -> CheckedTable<'f, K, V> {
        let records = self.read_as(name, source, mode);
        let (flow, marks, has_consumer) = (records.flow.clone(), records.marks.clone(), ConsumerFlag::default());
        let policy = DifferencePolicy {
            has_consumer: ConsumerFlag::clone(&has_consumer),
            failure: Arc::clone(&flow.build.failure),
            source: source.describe(),
        };
        let keyed = records.key_by(|(key, _)| key.clone());
        let record = |key, _time, at, (_, change)| (key, StampedChange { at, change });
        let outputs = table::<_, _, _, _, ChangesByKey<K, V>>(keyed, (name, TableOrder::Checked), record, Some(policy));
        let rows = outputs.changes.probe_with(&flow.build.probe);
        flow.build.registry.add_output(rows.name(), NameScope::Step, name);
        flow.build.registry.add_output(rows.name(), NameScope::Source, name);
        let differences = outputs.differences.unwrap_or_else(|| empty(flow.scope));
        let events = differences.probe_with(&flow.build.probe);
        let differences = Stream { events, marks, flow: flow.clone(), pool: ContainerPool::default() };
        CheckedTable { rows: Collection::new(rows.as_collection(), flow), differences, has_consumer }
    }
}

/// A change with its place in the source.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct StampedChange<V> {
    at: SourcePosition,
    change: CheckedChange<V>,
}

/// The changes of an epoch, by key, and rows of a snapshot.
pub(super) struct ChangesByKey<K, V> {
    changes: TableMap<K, Vec<StampedChange<V>>>,
    loaded: LatestRows<K, V>,
}

impl<K, V> Default for ChangesByKey<K, V> {
    fn default() -> Self {
        ChangesByKey { changes: TableMap::default(), loaded: LatestRows::default() }
    }
}

impl<K: Record, V: Record> TableInput<K, V> for ChangesByKey<K, V> {
    type Record = (K, StampedChange<V>);

    fn key((key, _): &Self::Record) -> &K {
        key
    }

    fn take(&mut self, records: &mut Vec<Self::Record>) {
        for (key, change) in records.drain(..) {
            self.changes.entry(key).or_default().push(change);
        }
    }

    fn load(&mut self, rows: &mut Vec<TableRow<K, V>>) {
        self.loaded.load(rows);
    }

    fn apply(self, operator: &mut TableOperator<K, V>, epoch: u64, from_snapshot: bool) -> AppliedRows<K, V> {
        // A snapshot's rows are all that its epoch has.
        let mut applied = self.loaded.apply(operator, epoch, from_snapshot);
        let mut latest = LatestRows::default();
        for (key, mut changes) in self.changes {
            changes.sort_unstable_by_key(|change| change.at);
            let mut now = operator.last_of(&key).map(|row| (row.at, row.value.clone()));
            for StampedChange { at, change } in changes {
                let found = now.as_ref().and_then(|(_, row)| row.as_ref());
                let is_applied = now.as_ref().is_none_or(|(of_row, _)| *of_row < at);
                if !is_applied || !change.before.allows(found) {
                    let origin = Origin { source: at.0, partition: at.1, offset: at.2, ..Origin::default() };
                    let (key, found, change) = (key.clone(), found.cloned(), change.clone());
                    let (partition, offset) = (at.1, at.2);
                    let data = ChangeDifference { key, partition, offset, change, found, is_applied };
                    let (time, watermark) = (EventTime::from_millis(0), EventTime::MIN);
                    applied.differences.push(Event { time, watermark, origin, data });
                }
                if is_applied {
                    now = Some((at, change.after));
                }
            }
            if let Some((at, value)) = now {
                latest.set(key, at, value);
            }
        }
        applied.append(latest.apply(operator, epoch, from_snapshot));
        applied
    }
}
