//! The records that were left out: how many, and the last ones with their places and reasons.

use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::metrics::{KEPT, LateExample, Metrics, RejectExample};
use crate::time::EventTime;

/// Reasons to leave a record out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum LeftOutKind {
    /// The source could not use it.
    #[default]
    Rejected,
    /// It came too late for a window step.
    Late,
}

/// A record that was left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct LeftOutRecord {
    /// Name of the topic, or path of the file.
    pub place: String,
    /// Number of the partition; 0 for a file.
    pub partition: u32,
    /// Kafka offset, or position of the record's first byte in the file.
    pub offset: u64,
    /// `true` if the offset is a position in bytes, as in a file.
    pub in_bytes: bool,
    /// Line in the file, from 1; `None` if it is not known.
    pub line: Option<u64>,
    /// The reason, shortened.
    pub reason: String,
    /// Milliseconds since it was left out.
    pub ago_ms: u64,
}

/// The records that a source has rejected, or that were late for a step, in this incarnation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct LeftOut {
    /// Rejected or late.
    pub kind: LeftOutKind,
    /// Name of the source, or of the step.
    pub name: String,
    /// Number of records.
    pub count: u64,
    /// The last ones, newest first, at most 8. Of many late records that are read at once only some are noted.
    pub records: Vec<LeftOutRecord>,
}

/// Returns the records that were left out in this process; `place` returns a partition's place and number for people.
pub(super) fn left_out(metrics: &Metrics, place: impl Fn(&str, u32) -> (Option<(String, u32)>, bool)) -> Vec<LeftOut> {
    let sources = metrics.sources();
    let rejected = sources.iter().filter(|(_, source)| source.rejected.get() > 0).map(|(name, source)| {
        let records = source.recent_rejects.all().into_iter().rev().map(|(at, reject)| {
            let (in_bytes, RejectExample { place, partition, offset, line, reason }) =
                (place(name, reject.partition).1, reject);
            LeftOutRecord {
                place,
                partition,
                offset,
                in_bytes,
                line: Some(line).filter(|line| *line > 0),
                reason,
                ago_ms: ago(at),
            }
        });
        let records = records.collect();
        LeftOut { kind: LeftOutKind::Rejected, name: name.clone(), count: source.rejected.get(), records }
    });
    let late_record = |(at, late): (Instant, LateExample)| {
        let source = sources.get(usize::from(late.source)).map(|(name, _)| name.as_str()).unwrap_or_default();
        let (known, in_bytes) = place(source, late.partition);
        let (place, partition) = known.unwrap_or_else(|| (source.to_owned(), late.partition));
        let (offset, reason) = (late.offset, reason(&late));
        LeftOutRecord { place, partition, offset, in_bytes, line: None, reason, ago_ms: ago(at) }
    };
    let steps = metrics.steps();
    let late = steps.iter().filter(|(_, step)| step.late.get() > 0).map(|(name, step)| {
        let records = step.recent_late.all().into_iter().rev().map(late_record).collect();
        LeftOut { kind: LeftOutKind::Late, name: name.clone(), count: step.late.get(), records }
    });
    rejected.chain(late).collect()
}

fn reason(late: &LateExample) -> String {
    let LateExample { time, watermark, .. } = late;
    if *watermark == EventTime::MAX {
        return format!("its time is {time}, and everything had closed");
    }
    format!("its time is {time}, and the watermark was at {watermark}")
}

/// Adds up what was left out in processes.
pub(crate) fn left_out_of_job<'a>(processes: impl Iterator<Item = &'a LeftOut>) -> Vec<LeftOut> {
    let mut all: Vec<LeftOut> = Vec::new();
    for part in processes {
        match all.iter_mut().find(|known| (known.kind, &known.name) == (part.kind, &part.name)) {
            Some(known) => {
                known.count += part.count;
                known.records.extend(part.records.iter().cloned());
            }
            None => all.push(part.clone()),
        }
    }
    for left in &mut all {
        left.records.sort_by_key(|record| record.ago_ms);
        left.records.truncate(KEPT);
    }
    all
}

fn ago(at: Instant) -> u64 {
    u64::try_from(at.elapsed().as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_processes_leave_out_is_added_up_and_the_newest_records_stay() {
        let part = |name: &str, count, ages: &[u64]| LeftOut {
            kind: LeftOutKind::Late,
            name: name.into(),
            count,
            records: ages.iter().map(|age| LeftOutRecord { ago_ms: *age, ..LeftOutRecord::default() }).collect(),
        };
        let (one, other) = (part("totals", 6, &[1, 3, 5, 7, 9, 11]), part("totals", 5, &[2, 4, 6, 8, 10]));
        let all = left_out_of_job([&one, &other, &part("hours", 1, &[4])].into_iter());
        let ages: Vec<_> = all[0].records.iter().map(|record| record.ago_ms).collect();
        assert_eq!((all.len(), all[0].count, ages), (2, 11, vec![1, 2, 3, 4, 5, 6, 7, 8]));
    }
}
