//! Code that all benchmarks share: their flags, measuring programs against baselines, result files, and the environment of a
//! run.
//!
//! A result file has one JSON object a line, a [`ResultLine`]: all samples of one program in one configuration, with the
//! revision and the machine. The program `plot` draws such files.

use std::fmt::Display;
use std::process::ExitCode;

pub mod environment;
pub mod flags;
pub mod measure;
pub mod result_file;

pub use environment::Environment;
pub use flags::BenchFlags;
pub use measure::{Measured, RowChecksum, RunFigures, SharedCheck, timed};
pub use result_file::{Distribution, ResultLine, Sample, Spread};

/// Returns the exit code of a benchmark, and writes the error of one that failed to standard error.
pub fn exit_code(run: Result<(), impl Display>) -> ExitCode {
    match run {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
