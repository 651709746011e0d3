//! Code that all benchmarks share: measuring programs against baselines, result files, and the environment of a run.
//!
//! A result file has one JSON object a line, a [`ResultLine`]: all samples of one program in one configuration, with the
//! revision and the machine. The program `plot` draws such files.

pub mod environment;
pub mod measure;
pub mod result_file;

pub use environment::Environment;
pub use measure::{Measured, RowChecksum, RunFigures, SharedCheck, timed};
pub use result_file::{Distribution, ResultLine, Sample, Spread};
