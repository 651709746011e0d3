//! Disks of tests: [`CrashingDisk`], a disk in memory that crashes, fails and lies on demand, and [`HookedDisk`], any disk
//! around whose operations a function is called.
//!
//! A test that crashes a program at each of its operations, and continues with the survivors, has tried every possible
//! crash:
//!
//! ```
//! use std::path::Path;
//! use tidegate::durable::disk::Disk;
//! use tidegate::testing::CrashingDisk;
//!
//! let (path, written) = (Path::new("settings"), |disk: &CrashingDisk| disk.replace(Path::new("settings"), b"new"));
//! let acts = {
//!     let disk = CrashingDisk::new();
//!     disk.put(path, b"old");
//!     written(&disk).unwrap();
//!     disk.operations()
//! };
//! for (act, seed) in (0..acts).flat_map(|act| (0..20).map(move |seed| (act, seed))) {
//!     let disk = CrashingDisk::new();
//!     disk.put(path, b"old");
//!     disk.crash_at(act);
//!     written(&disk).unwrap_err();
//!     let found = disk.survivors(seed).bytes(path).unwrap();
//!     assert!(found == b"old" || found == b"new", "crashed at {}", disk.log()[act]);
//! }
//! ```

pub use crate::durable::test_disk::{CrashingDisk, DiskOperation, HookedDisk, OperationKind, SyncLoss};
