//! The ends of an incarnation's journals, one for each worker: the proof that a sink keeps with the output it
//! published.
//!
//! A worker that has nothing to commit in an epoch writes no frame. So a frame that is missing at the end of a journal
//! cannot be told from one that was never written, unless it is recorded elsewhere. Sinks record it: with the last epoch
//! that a sink publishes it keeps, for each worker, the last epoch at or before that one for which the worker has
//! written a frame. Recovery refuses a journal that lacks one of those frames.
//!
//! Invariants: the end of a worker never goes back; a frame is synced before any sink publishes an epoch whose ends
//! name it. The workers of an incarnation all write a frame for its first epoch, so each has an end as soon as an epoch
//! of the incarnation is published.

use serde::{Deserialize, Serialize};

use crate::time::Epoch;

/// The last frame of one worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(from = "(u32, u32, Epoch)", into = "(u32, u32, Epoch)")]
pub struct WorkerEnd {
    /// The process of the worker.
    pub process: u32,
    /// The worker, counted over all processes.
    pub worker: u32,
    /// The epoch of the frame.
    pub epoch: Epoch,
}

impl From<(u32, u32, Epoch)> for WorkerEnd {
    fn from((process, worker, epoch): (u32, u32, Epoch)) -> Self {
        WorkerEnd { process, worker, epoch }
    }
}

impl From<WorkerEnd> for (u32, u32, Epoch) {
    fn from(WorkerEnd { process, worker, epoch }: WorkerEnd) -> Self {
        (process, worker, epoch)
    }
}

/// The last frames of all workers that have written one, by worker.
///
/// Text formats write a list of `[process, worker, epoch]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct JournalEnds(Vec<WorkerEnd>);

impl JournalEnds {
    /// Records that a worker has written a frame.
    pub fn note(&mut self, end: WorkerEnd) {
        match self.0.binary_search_by_key(&end.worker, |known| known.worker) {
            Ok(at) => self.0[at].epoch = self.0[at].epoch.max(end.epoch),
            Err(at) => self.0.insert(at, end),
        }
    }

    /// Iterates over the ends, in order of workers.
    pub fn iter(&self) -> impl Iterator<Item = &WorkerEnd> {
        self.0.iter()
    }

    /// `true` if no worker has written a frame.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromIterator<WorkerEnd> for JournalEnds {
    fn from_iter<I: IntoIterator<Item = WorkerEnd>>(ends: I) -> Self {
        let mut all = JournalEnds::default();
        ends.into_iter().for_each(|end| all.note(end));
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_worker_never_goes_back_and_is_one() {
        let end = |worker, epoch| WorkerEnd { process: worker / 2, worker, epoch: Epoch(epoch) };
        let ends: JournalEnds = [end(3, 4), end(0, 2), end(3, 2), end(0, 6)].into_iter().collect();
        assert_eq!(ends.iter().copied().collect::<Vec<_>>(), [end(0, 6), end(3, 4)]);
        let text = serde_json::to_string(&ends).unwrap();
        assert_eq!(text, "[[0,0,6],[1,3,4]]");
        assert_eq!(serde_json::from_str::<JournalEnds>(&text).unwrap(), ends);
    }
}
