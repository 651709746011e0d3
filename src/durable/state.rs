//! The directory of a state.
//!
//! ```text
//! STATE                 identity, written once; locked by the process that uses the state
//! LOCK                  locked by that process too, and signed by it
//! lives/3               incarnation 3 has begun: no older one may write, publish or remove anything any more
//! lives/3.claim         what incarnation 3 resumed from
//! journal/3-0-0.journal incarnation, process, number
//! manifests/1700-3.manifest   epoch, incarnation
//! segments/*.segment    named after the step, a digest of its name, and the incarnation that wrote it
//! WATCHED_AT            HTTP address of the job that uses the state, for users; may be out of date
//! ```
//!
//! An incarnation starts in these steps: [`StateDir::open`] takes the lock; [`StateDir::begin_incarnation`] takes the
//! next number, so that every older incarnation fails its check for being current; the sinks are fenced and report what
//! they have published; [`StateDir::scan_and_sync`] reads the directory and makes everything it has read survive a loss
//! of power; [`decide`] decides; and [`StateDir::claim`] writes the decision, unless a later incarnation has begun
//! meanwhile.
//!
//! All I/O of these steps is in the files of this directory, and each of them states the invariants that it keeps.
//!
//! [`decide`]: super::recovery::decide

mod directory;
mod garbage;
mod identity;
mod incarnation_records;
mod incarnations;
mod lock;
mod scan;

pub(crate) use directory::StateDir;
#[cfg(test)]
pub(super) use garbage::incarnation_of_segment;
