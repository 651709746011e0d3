//! What outlives a process. At present: the [`journal`], which binds each epoch to its inputs, kept in memory.
//!
//! The commit protocol of an epoch: a worker stops adding to it, appends what it has bound to the [`journal::Journal`],
//! and releases its capability for the epoch when the journal says that it is synced. So a frontier past an epoch means
//! that every process has the epoch's inputs on record, and that the epoch can be run again with equal contents.
//!
//! This layer does not know timely, sources or sinks.

pub mod journal;
