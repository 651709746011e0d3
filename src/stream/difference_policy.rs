//! Treatment of changes of a checked table that do not fit its rows: they fail the job, or somebody consumes them.

use std::sync::Arc;

use crate::error::{Error, ErrorKind};
use crate::record::Record;
use crate::source::{ChangeDifference, RowBefore};
use crate::stream::assign::ConsumerFlag;
use crate::thread::JobFailure;

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
    pub(super) fn error<K: Record, V: Record>(&self, table: &str, difference: &ChangeDifference<K, V>) -> Error {
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
