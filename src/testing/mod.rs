//! Running flows in memory, for users' own tests and for ours.
//!
//! * [`TestRun`] runs a query on any number of workers: paced by seeded random numbers, by a [`Script`] of what each
//!   epoch takes, or by the journal of another run.
//! * [`Captured`] is a sink whose rows can be read afterwards, by epoch.
//! * An [`RunOutcome`] has the run's report, and its journal, which replays the run.
//! * [`CrashingDisk`] is an in-memory disk that crashes at any operation, and loses what a real disk may lose.
//! * [`SlowSync`] delays the journal's syncs, and checks that nothing is published before it is synced.
//!
//! ```
//! use tidegate::testing::{Captured, TestRun, Script};
//! use tidegate::{Window, source::memory::MemorySource};
//! use std::time::Duration;
//!
//! # fn main() -> tidegate::Result<()> {
//! // Two partitions of (key, event time); the first epoch takes two records of partition 0 and finds partition 1.
//! let input = MemorySource::new(vec![vec![("a", 100), ("a", 900), ("a", 2_500)], vec![("b", 1_000)]]
//!     .into_iter().map(|p| p.into_iter().map(|(k, t)| (k.to_string(), t)).collect()).collect(), |r: &(String, i64)| r.1)
//!     .out_of_order(Duration::ZERO);
//! let script = Script::new().epoch(|e| e.take(0, 2).find(1)).epoch(|e| e.take(0, 1)).epoch(|e| e.take(1, 1).end(0).end(1));
//! let counts = Captured::new();
//! let output = counts.clone();
//! TestRun::new().workers(2).script("input", script).run(move |flow| {
//!     flow.read("input", &input)
//!         .key_by(|r| r.0.clone())
//!         .window(Window::tumbling(Duration::from_secs(1)))
//!         .aggregate("counts", |each| each.count())
//!         .on_close()
//!         .map(|row| (row.window.end.millis(), row.key, row.value))
//!         .write("counts", &output);
//! })?;
//! assert_eq!(counts.all(), [(1_000, "a".into(), 2), (2_000, "b".into(), 1), (3_000, "a".into(), 1)]);
//! // No window closes before partition 1 has a watermark.
//! assert_eq!(counts.epochs().len(), 1);
//! # Ok(()) }
//! ```

mod captured;
pub mod disk;
#[doc(hidden)]
pub mod durable;
mod script;
mod slow_sync;
mod test_run;

use crate::thread::ThreadRole;

pub use crate::stream::Fault;
pub use captured::Captured;
pub use disk::CrashingDisk;
pub use script::{EpochScript, Script};
pub use slow_sync::SlowSync;
pub use test_run::{RunOutcome, TestRun};

/// Returns the names of the purposes that Tidegate's threads have, as its own tests name them.
#[doc(hidden)]
pub fn thread_roles() -> Vec<&'static str> {
    ThreadRole::ALL.map(ThreadRole::name).to_vec()
}
