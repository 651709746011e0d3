//! The sources that are read before others: how far they are read.

use super::{JobStatus, PartitionStatus};

/// A source that is not read to its initial end yet, while other sources wait for that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct UnreadSource {
    pub(super) name: String,
    /// What was read, and what there is to read, on all workers.
    pub(super) progress: (u64, u64),
    /// `true` if these are bytes, and not records.
    pub(super) in_bytes: bool,
}

/// `true` while a worker reads only the sources that are read first.
pub(super) fn is_reading_first(status: &JobStatus) -> bool {
    status.processes.iter().flat_map(|process| &process.workers).any(|worker| worker.reads_first)
}

/// Returns the sources that are not read to their initial ends, in order of names.
pub(super) fn unread_sources(status: &JobStatus) -> Vec<UnreadSource> {
    let workers = status.processes.iter().flat_map(|process| &process.workers);
    let reading = workers.filter(|worker| worker.reads_first);
    let partitions: Vec<&PartitionStatus> = reading.flat_map(|worker| &worker.partitions).collect();
    let mut names: Vec<&str> = partitions.iter().filter(|at| at.initial.is_some()).map(|at| &*at.source).collect();
    names.sort_unstable();
    names.dedup();
    let sources = names.into_iter().map(|name| {
        let own = || partitions.iter().filter(|at| at.source == name);
        let progress = own().filter_map(|at| at.initial).fold((0, 0), |sum, at| (sum.0 + at.0, sum.1 + at.1));
        UnreadSource { name: name.to_owned(), progress, in_bytes: own().any(|at| at.in_bytes) }
    });
    sources.filter(|source| source.progress.0 < source.progress.1).collect()
}
