//! Changes of a table's rows that say which row they replace, and what is reported where a table has another one.

use serde::{Deserialize, Serialize};

/// The row before a change, as the change has it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum RowBefore<V> {
    /// Any row, or none: the change does not say.
    Any,
    /// No row.
    None,
    /// This row.
    Row(V),
}

impl<V: PartialEq> RowBefore<V> {
    /// `true` if a table may have this row, or none, before the change.
    pub(crate) fn allows(&self, row: Option<&V>) -> bool {
        match self {
            RowBefore::Any => true,
            RowBefore::None => row.is_none(),
            RowBefore::Row(before) => row == Some(before),
        }
    }
}

/// A change of the row of a key, for [`Flow::checked_table`](crate::Flow::checked_table).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct CheckedChange<V> {
    /// The row that the change replaces.
    pub before: RowBefore<V>,
    /// The row after the change; `None` if it is deleted.
    pub after: Option<V>,
}

/// A change that does not fit the row that a table has.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ChangeDifference<K, V> {
    /// The key of the row.
    pub key: K,
    /// Partition of the change.
    pub partition: u32,
    /// Offset of the change in its partition.
    pub offset: u64,
    /// The change.
    pub change: CheckedChange<V>,
    /// The row that the table has; `None` if it has none.
    pub found: Option<V>,
    /// `true` if the table has the change's row now; `false` if the row that it has is of a later place in the source,
    /// which happens if a key is in several partitions.
    pub is_applied: bool,
}
