//! Disks of tests, in one place for unit tests, for `crate::testing` and for test hooks of programs.
//!
//! * [`CrashingDisk`] is a disk in memory that crashes, fails and lies on demand.
//! * [`HookedDisk`] is any disk around whose operations a function is called.
//! * [`DiskOperation`] names an operation for both.

mod crashing;
mod hooked;
mod operation;

pub use crashing::{CrashingDisk, SyncLoss};
pub use hooked::HookedDisk;
pub use operation::{DiskOperation, OperationKind};
