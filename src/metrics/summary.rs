//! Figures of a job at one moment: sums over processes, the check that no record was lost, and their text.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::time::EventTime;

/// The figures of a source in a [`JobSummary`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct SourceSummary {
    /// The name under which the flow reads it.
    pub name: String,
    /// Records read from the source.
    pub read: u64,
    /// Bytes of those records.
    pub bytes: u64,
    /// Records passed to the flow.
    pub accepted: u64,
    /// Records rejected.
    pub rejected: u64,
    /// Records that the source left out on purpose, such as messages that a decoder skips.
    #[serde(default)]
    pub skipped: u64,
    /// Offsets that were skipped because their records had expired before they were read. They are no part of `read`.
    #[serde(default)]
    pub expired: u64,
    /// The watermark of the source's stream.
    pub watermark: EventTime,
}

/// The figures of a window step in a [`JobSummary`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct StepSummary {
    /// The step's name.
    pub name: String,
    /// Records received, each counted once, however many windows it belongs to.
    #[serde(rename = "taken")]
    pub received: u64,
    /// Records counted in the rows of the snapshot that the job resumed from.
    pub loaded: u64,
    /// Received and loaded records that are counted in a row of a window.
    pub counted: u64,
    /// Received records that were late for all their windows.
    pub late: u64,
    /// Late records that were late only because their partition, or its stream, had been idle or was found late.
    #[serde(default)]
    pub late_after_idle: u64,
    /// Rows of windows that have closed.
    pub closed_rows: u64,
}

/// The figures of a table in a [`JobSummary`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct TableSummary {
    /// The step's name.
    pub name: String,
    /// Records received.
    #[serde(rename = "taken")]
    pub received: u64,
    /// Records that were compared with the table's rows.
    #[serde(rename = "folded")]
    pub compared: u64,
    /// Rows loaded from the snapshot that the job resumed from.
    pub loaded: u64,
    /// Row changes: rows retracted and rows added.
    pub changes: u64,
    /// Checked changes that did not fit the table's row.
    #[serde(default)]
    pub differences: u64,
}

/// The figures of a sink in a [`JobSummary`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct SinkSummary {
    /// The name under which the flow writes it.
    pub name: String,
    /// Rows published.
    pub rows: u64,
    /// Epochs in which rows were published.
    pub epochs: u64,
}

/// The figures of snapshots in a [`JobSummary`]; zero in a job without state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct SnapshotSummary {
    /// Snapshots taken.
    pub taken: u64,
    /// Rows in the segments written for snapshots.
    pub rows: u64,
    /// Bytes of the segments written for snapshots.
    pub bytes: u64,
    /// Bytes of segments written by background merges.
    pub merged: u64,
}

/// The figures of a job, at its end or so far.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct JobSummary {
    /// Epochs begun.
    pub epochs: u64,
    /// The sources, in the flow's order.
    pub sources: Vec<SourceSummary>,
    /// The window steps, in the flow's order.
    pub steps: Vec<StepSummary>,
    /// The tables, in the flow's order.
    pub tables: Vec<TableSummary>,
    /// The sinks, in the flow's order.
    pub sinks: Vec<SinkSummary>,
    /// Snapshots of the job's state.
    pub snapshots: SnapshotSummary,
}

impl JobSummary {
    /// Adds the figures of another process of the job.
    pub fn add(&mut self, other: JobSummary) {
        let JobSummary { epochs, sources, steps, tables, sinks, snapshots } = other;
        self.epochs += epochs;
        add_by_name(
            &mut self.sources,
            sources,
            |source| &source.name,
            |known, other| {
                known.read += other.read;
                known.bytes += other.bytes;
                known.accepted += other.accepted;
                known.rejected += other.rejected;
                known.skipped += other.skipped;
                known.expired += other.expired;
                known.watermark = known.watermark.max(other.watermark);
            },
        );
        add_by_name(
            &mut self.steps,
            steps,
            |step| &step.name,
            |known, other| {
                known.received += other.received;
                known.loaded += other.loaded;
                known.counted += other.counted;
                known.late += other.late;
                known.late_after_idle += other.late_after_idle;
                known.closed_rows += other.closed_rows;
            },
        );
        add_by_name(
            &mut self.tables,
            tables,
            |table| &table.name,
            |known, other| {
                known.received += other.received;
                known.compared += other.compared;
                known.loaded += other.loaded;
                known.changes += other.changes;
                known.differences += other.differences;
            },
        );
        add_by_name(
            &mut self.sinks,
            sinks,
            |sink| &sink.name,
            |known, other| {
                known.rows += other.rows;
                known.epochs += other.epochs;
            },
        );
        self.snapshots.taken += snapshots.taken;
        self.snapshots.rows += snapshots.rows;
        self.snapshots.bytes += snapshots.bytes;
        self.snapshots.merged += snapshots.merged;
    }

    /// Checks that no record was lost or counted twice: at every source, read = accepted + rejected; at every window
    /// step, received + loaded = counted + late; at every table, received = compared.
    ///
    /// # Errors
    /// Fails if the figures disagree, with the name of the source or step. That is a fault of Tidegate, never of the
    /// data.
    pub fn check_conservation(&self) -> Result<()> {
        let fault = |place: String, figures: String| {
            let error = Error::new("records were lost or counted twice").at(place).because(figures);
            Err(error.help("this is a fault in Tidegate: do not use the results, and report it with these figures"))
        };
        for source in &self.sources {
            if source.read != source.accepted + source.rejected + source.skipped {
                let SourceSummary { read, accepted, rejected, skipped, .. } = source;
                let skipped = if *skipped > 0 { format!(" and {skipped} skipped") } else { String::new() };
                let figures = format!("{read} read, but {accepted} accepted and {rejected} rejected{skipped}");
                return fault(format!("source `{}`", source.name), figures);
            }
        }
        for step in &self.steps {
            if step.received + step.loaded != step.counted + step.late {
                let StepSummary { received, loaded, counted, late, .. } = step;
                let loaded = if *loaded > 0 { format!(" and {loaded} from the snapshot") } else { String::new() };
                let figures = format!("{received} in{loaded}, but {counted} counted and {late} late");
                return fault(format!("step `{}`", step.name), figures);
            }
        }
        for TableSummary { name, received, compared, .. } in &self.tables {
            if received != compared {
                return fault(format!("table `{name}`"), format!("{received} in, but {compared} compared"));
            }
        }
        Ok(())
    }
}

/// Explains why `late` records were late although they were in order, and names the remedy.
pub(crate) fn after_idle(late: u64) -> String {
    format!(
        "{late} of the late ones were in order and came after their partition had been idle, when their windows had \
         closed: a longer --idle-timeout waits for them"
    )
}

/// Adds figures to those of the same name; figures of a new name are appended.
fn add_by_name<T>(all: &mut Vec<T>, others: Vec<T>, name: fn(&T) -> &str, add: fn(&mut T, &T)) {
    for other in others {
        match all.iter_mut().find(|known| name(known) == name(&other)) {
            Some(known) => add(known, &other),
            None => all.push(other),
        }
    }
}

/// One line for each source, step, table and sink.
impl fmt::Display for JobSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut lines = Vec::new();
        for source in &self.sources {
            let SourceSummary { name, read, accepted, rejected, skipped, expired, .. } = source;
            let skipped = if *skipped > 0 { format!(" + {skipped} skipped") } else { String::new() };
            let expired = match expired {
                0 => String::new(),
                count => format!("; {count} offsets skipped, whose records had expired before they were read"),
            };
            lines.push(format!(
                "{name}: {read} records read = {accepted} accepted + {rejected} rejected{skipped}{expired}"
            ));
        }
        for step in &self.steps {
            let StepSummary { name, received, loaded, counted, late, late_after_idle, closed_rows } = step;
            let loaded = if *loaded > 0 { format!(" + {loaded} from the snapshot") } else { String::new() };
            let idle = if *late_after_idle > 0 { format!("; {}", after_idle(*late_after_idle)) } else { String::new() };
            lines.push(format!(
                "{name}: {received} in{loaded} = {counted} counted + {late} late; {closed_rows} rows closed{idle}"
            ));
        }
        for table in &self.tables {
            let TableSummary { name, received, compared, loaded, changes, differences } = table;
            let loaded = if *loaded > 0 { format!("; {loaded} rows from the snapshot") } else { String::new() };
            let differ = if *differences > 0 { format!(", {differences} of which differ") } else { String::new() };
            lines.push(format!("{name}: {received} in = {compared} compared{differ}{loaded}; {changes} changes"));
        }
        for sink in &self.sinks {
            let SinkSummary { name, rows, epochs } = sink;
            lines.push(format!("{name}: {rows} rows written in {epochs} of {} epochs", self.epochs));
        }
        let SnapshotSummary { taken, rows, bytes, merged } = self.snapshots;
        if taken > 0 {
            lines.push(format!("state: {taken} snapshots of {rows} rows in {bytes} bytes; {merged} bytes merged"));
        }
        f.write_str(&lines.join("\n"))
    }
}
