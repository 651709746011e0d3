//! Planning: which segments have only expired rows, and which are merged.
//!
//! Invariant: only segments of one step and one level are merged, and no more than [`MAX_MERGE`] at once.

use std::collections::BTreeMap;

use crate::durable::segment::SegmentInfo;
use crate::time::EventTime;

/// Minimum number of segments of a level that are merged.
pub(crate) const MIN_MERGE: usize = 4;
/// Maximum number of segments in one merge: bounds memory, and the duration of a merge.
pub(crate) const MAX_MERGE: usize = 16;

/// The compaction work of a state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct CompactionPlan {
    /// Segments that have only expired rows: the next manifest need not name them.
    pub expired: Vec<SegmentInfo>,
    /// Segments to be merged, each group into one.
    pub merges: Vec<MergeGroup>,
}

/// Segments of one step that are to be merged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MergeGroup {
    /// The inputs of the merge.
    pub inputs: Vec<SegmentInfo>,
    /// `true` if no other segment of the step has older rows: the merge may then drop tombstones.
    pub oldest: bool,
}

/// Plans the compaction of segments, of one step or of several. Rows of windows that end at `dead` or before are
/// expired.
pub(crate) fn plan_compaction(segments: &[SegmentInfo], dead: EventTime) -> CompactionPlan {
    let mut plan = CompactionPlan::default();
    let mut levels = BTreeMap::<(&str, u8), Vec<&SegmentInfo>>::new();
    for segment in segments {
        if segment.is_expired(dead) {
            plan.expired.push(segment.clone());
        } else {
            levels.entry((&segment.step, segment.level)).or_default().push(segment);
        }
    }
    for mut alike in levels.into_values() {
        // Neighbours in time expire at about the same time.
        alike.sort_by_key(|segment| (segment.from, segment.to, &segment.file));
        let groups = alike.chunks(MAX_MERGE).filter(|group| group.len() >= MIN_MERGE);
        for group in groups {
            let to = group.iter().map(|segment| segment.to).max();
            let mut others = segments.iter().filter(|other| other.step == group[0].step && !group.contains(other));
            let oldest = others.all(|other| Some(other.from) >= to);
            plan.merges.push(MergeGroup { inputs: group.iter().copied().cloned().collect(), oldest });
        }
    }
    plan
}
