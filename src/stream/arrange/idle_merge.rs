//! Merging of an arrangement's batches while no input arrives.
//!
//! Differential merges batches in proportion to what is added. An arrangement without new input would keep
//! retractions beside the rows that they cancel, and unfinished merges, as long as no input arrives. With this rule
//! merging goes on, in pieces small enough not to delay other operators, until little is outside of the largest
//! batch: then the arrangement holds hardly more than its data needs, and takes no more processor time.
//!
//! The cost of a merge is paid by what was added: everything is merged again only when the updates since the last
//! time are a substantial part of it. So a trickle of changes into a large arrangement does not merge it at every
//! change.
//!
//! The rule applies to all arrangements that differential creates, those of `through` included. The arrangement of a
//! window step is merged when it is sealed.

use std::sync::Arc;

use differential_dataflow::trace::ExertionLogic;

/// Updates that are merged at a time: a fraction of a millisecond's work.
const PIECE: usize = 1 << 12;

/// At most one in this many updates may be outside of the largest batch.
const PART: usize = 8;

/// The name under which differential looks for the rule.
const DEFAULT: &str = "differential/default_exert_logic";

/// Sets the rule for all arrangements of a worker.
pub(crate) fn merge_while_idle(config: &mut timely::WorkerConfig) {
    config.set::<ExertionLogic>(DEFAULT.to_owned(), Arc::new(effort));
}

/// Returns the number of updates to merge now; `None` if there is nothing to do. `layers` are the arrangement's: for
/// each its index, its number of batches (two while they are being merged) and its number of updates.
fn effort(layers: &[(usize, usize, usize)]) -> Option<usize> {
    let all: usize = layers.iter().map(|(_, _, updates)| updates).sum();
    let largest = layers.iter().map(|(_, _, updates)| *updates).max().unwrap_or(0);
    let merges = layers.iter().any(|(_, batches, _)| *batches > 1);
    (merges || all - largest > largest / PART).then_some(PIECE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_little_rests() {
        assert_eq!(effort(&[]), None);
        assert_eq!(effort(&[(3, 0, 0), (2, 1, 4), (1, 0, 0)]), None);
        assert_eq!(effort(&[(9, 1, 800), (8, 1, 60), (7, 1, 40)]), None);
        assert_eq!(effort(&[(9, 1, 800), (8, 1, 60), (7, 1, 41)]), Some(PIECE));
        // A layer that is being merged is there twice.
        assert_eq!(effort(&[(9, 1, 800), (2, 2, 4)]), Some(PIECE));
        assert_eq!(effort(&[(1, 1, 1), (0, 1, 1)]), Some(PIECE));
    }
}
