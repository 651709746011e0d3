//! The sources that hold back others because they are read first.

use super::blocker::{Blocker, BlockerKind};
use super::{JobStatus, PartitionStatus};

/// Returns a cause for each source that is not read to its initial end yet, while other sources wait for that.
pub(super) fn unread(status: &JobStatus) -> Vec<Blocker> {
    let workers = status.processes.iter().flat_map(|process| &process.workers);
    let reading: Vec<_> = workers.filter(|worker| worker.reads_first).collect();
    let partitions: Vec<&PartitionStatus> = reading.iter().flat_map(|worker| &worker.partitions).collect();
    let mut names: Vec<&str> = partitions.iter().filter(|at| at.initial.is_some()).map(|at| &*at.source).collect();
    names.sort_unstable();
    names.dedup();
    let blockers = names.into_iter().filter_map(|name| {
        let own = || partitions.iter().filter(|at| at.source == name);
        let (read, all) = own().filter_map(|at| at.initial).fold((0, 0), |sum, at| (sum.0 + at.0, sum.1 + at.1));
        let unit = if own().any(|at| at.in_bytes) { "bytes" } else { "records" };
        (read < all).then(|| Blocker {
            cause: BlockerKind::Source,
            name: format!("source {name}"),
            since_ms: None,
            says: format!("is read first, and {read} of {all} {unit} are read"),
            help: String::from("wait: the other sources are read after it"),
        })
    });
    let blockers: Vec<_> = blockers.collect();
    // All is read, and perhaps not on disk yet; or a worker has not found its partitions.
    if blockers.is_empty() && !reading.is_empty() {
        return vec![Blocker {
            cause: BlockerKind::Source,
            name: String::from("the sources that are read first"),
            since_ms: None,
            says: String::from("are not read and committed on all workers"),
            help: String::from("wait: the other sources are read after them"),
        }];
    }
    blockers
}
