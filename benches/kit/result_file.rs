//! Lines of a result file.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::environment::Environment;

/// Version of the format of a line.
pub const VERSION: u32 = 1;

/// Measurements of one run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// Wall-clock seconds.
    pub seconds: f64,
    /// CPU seconds of all threads and processes of the run.
    pub cpu_seconds: f64,
    /// Peak memory in MiB.
    pub peak_mib: f64,
}

/// Latencies of one run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Distribution {
    /// Percentiles with their latencies, in milliseconds.
    pub percentiles: Vec<[f64; 2]>,
    /// The complementary distribution: latencies in milliseconds, and the share of records that took longer.
    pub ccdf: Vec<[f64; 2]>,
}

/// All runs of one program in one configuration.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ResultLine {
    /// Version of this format: [`VERSION`].
    pub version: u32,
    /// Name of the benchmark.
    pub bench: String,
    /// Title of the measurement: lines with one title are compared with each other.
    pub title: String,
    /// The measured program.
    pub program: String,
    /// Number of workers of each process.
    pub workers: usize,
    /// Number of processes.
    pub processes: usize,
    /// Number of records of a run.
    pub records: u64,
    /// The runs, in order.
    pub samples: Vec<Sample>,
    /// Latencies of each run; empty if throughput was measured.
    pub latencies: Vec<Distribution>,
    /// Other figures, by name.
    pub figures: BTreeMap<String, f64>,
    /// Circumstances of the measurement.
    pub environment: Environment,
}

/// The least, the median and the greatest of some numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// The least.
    pub least: f64,
    /// The median; of an even number of numbers the greater of the two in the middle.
    pub median: f64,
    /// The greatest.
    pub greatest: f64,
}

impl Spread {
    /// Computes the spread of numbers; all are NaN if there are none.
    pub fn of(numbers: impl IntoIterator<Item = f64>) -> Self {
        let mut numbers: Vec<f64> = numbers.into_iter().collect();
        numbers.sort_by(f64::total_cmp);
        match (numbers.first(), numbers.get(numbers.len() / 2), numbers.last()) {
            (Some(&least), Some(&median), Some(&greatest)) => Spread { least, median, greatest },
            _ => Spread { least: f64::NAN, median: f64::NAN, greatest: f64::NAN },
        }
    }

    /// Formats the median, and the range in parentheses, with so many decimals.
    pub fn text(&self, decimals: usize) -> String {
        let Spread { least, median, greatest } = self;
        format!("{median:.decimals$} ({least:.decimals$}–{greatest:.decimals$})")
    }
}

impl ResultLine {
    /// Returns million records a second of wall-clock time.
    pub fn rate(&self) -> Spread {
        Spread::of(self.samples.iter().map(|sample| self.records as f64 / 1e6 / sample.seconds))
    }

    /// Returns CPU seconds a million records.
    pub fn cpu(&self) -> Spread {
        Spread::of(self.samples.iter().map(|sample| sample.cpu_seconds / (self.records as f64 / 1e6)))
    }

    /// Returns the peak memory in MiB.
    pub fn memory(&self) -> Spread {
        Spread::of(self.samples.iter().map(|sample| sample.peak_mib))
    }

    /// Formats the line, without a line end.
    ///
    /// # Errors
    /// Fails if it cannot be written as JSON.
    pub fn to_json(&self) -> Result<String, String> {
        serde_json::to_string(self).map_err(|why| format!("cannot write a result: {why}"))
    }

    /// Reads the lines of a file. Lines that are no objects are passed over: `cargo bench` may have written them.
    ///
    /// # Errors
    /// Fails, with the number of the line, if an object is no result, or is one of another version.
    pub fn read_all(text: &str) -> Result<Vec<ResultLine>, String> {
        let mut lines = Vec::new();
        for (number, line) in (1..).zip(text.lines()).filter(|(_, line)| line.starts_with('{')) {
            let read: ResultLine =
                serde_json::from_str(line).map_err(|why| format!("line {number} is no result: {why}"))?;
            if read.version != VERSION {
                let version = read.version;
                return Err(format!("line {number} has the format {version}, and this program reads format {VERSION}"));
            }
            lines.push(read);
        }
        Ok(lines)
    }
}
