//! When an arrangement merges its batches though nothing new comes to it.
//!
//! Differential merges batches in proportion to what is added, so an arrangement whose input falls silent would keep
//! retractions beside what they take back, and merges half done, for as long as the silence lasts. Here it goes on, in
//! pieces that other operators hardly notice, until what is not yet in its largest batch is little: then it holds no more
//! than a little over what its data needs, and asks for no time.
//!
//! What a merge costs is paid by what is added: the whole is merged again only when what has come since is a part of it
//! that counts. So a trickle of changes into a large arrangement does not have it merged at every change.
//!
//! All arrangements that differential makes go by this, those of `through` among them. That of a window step is merged when
//! it is sealed.

use std::sync::Arc;

use differential_dataflow::trace::ExertionLogic;

/// How many updates are merged at a time: a fraction of a millisecond's work.
const PIECE: usize = 1 << 12;

/// One in so many updates may be outside of the largest batch.
const PART: usize = 8;

/// Where differential looks for the rule.
const DEFAULT: &str = "differential/default_exert_logic";

/// Has all arrangements of a worker go by the rule.
pub(crate) fn merge_at_rest(config: &mut timely::WorkerConfig) {
    config.set::<ExertionLogic>(DEFAULT.to_owned(), Arc::new(effort));
}

/// How much is to be merged now, by the layers of an arrangement: for each its index, how many batches it has, of which two
/// are being merged, and how many updates.
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
        // What is being merged is there twice.
        assert_eq!(effort(&[(9, 1, 800), (2, 2, 4)]), Some(PIECE));
        assert_eq!(effort(&[(1, 1, 1), (0, 1, 1)]), Some(PIECE));
    }
}
