//! Compaction: merges many small segments of a step into few large ones, and drops rows that the watermark has passed.
//!
//! Merging segments is consolidation: rows of equal keys are added up, and addition is commutative and associative. So
//! any segments of a step may be merged, in any order, and a step's state is the sum of its segments before and after.
//!
//! * The **level** of a segment follows from its length, in powers of [`FACTOR`](crate::durable::segment::FACTOR). Four
//!   or more segments of a level are merged, into one that is mostly of the next level: so a row is written about once
//!   a level, and a step has a few segments a level.
//! * A row is **expired** when its window can neither change nor be published any more. Expired rows, and rows that add
//!   up to nothing, are dropped by a merge; a segment that has only expired rows need be neither merged nor read.
//! * A **tombstone** is a row that marks its key as deleted. It is dropped by a merge of a step's oldest segments: no
//!   older row is left that it would have to override.
//!
//! Invariants: compaction changes no result; inputs stay as they are, as kept manifests may name them; memory is
//! bounded by a block of each input.

mod merge;
mod plan;
#[cfg(test)]
mod tests;

pub(crate) use merge::{MergeOptions, MergeOutcome, merge};
#[cfg(test)]
pub(crate) use plan::MIN_MERGE;
pub(crate) use plan::{MergeGroup, plan_compaction};
