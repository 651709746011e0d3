//! Measuring programs against a baseline: checksums of results, figures of a run, and tables.
//!
//! Each run is a process of its own, which prints its figures as a line; so CPU time and peak memory are the run's.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use crate::environment::{Environment, cpu_seconds, peak_mib};
use crate::result_file::{ResultLine, Sample, VERSION};

/// An order-independent checksum of result rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RowChecksum {
    /// Number of rows.
    pub rows: u64,
    /// Number of records that they count.
    pub records: u64,
    /// Sum of the hashes of whole rows.
    pub hash: u64,
}

impl RowChecksum {
    /// Returns the checksum of one row of totals.
    #[inline]
    pub fn row(end: i64, key: u64, count: i64, sum: i128, least: i64, greatest: i64) -> RowChecksum {
        RowChecksum::of([end as u64, key, count as u64, sum as u64, least as u64, greatest as u64], count as u64)
    }

    /// Returns the checksum of one row that stands for `records` records.
    #[inline]
    pub fn of<const N: usize>(parts: [u64; N], records: u64) -> RowChecksum {
        let mix = |hash: u64, part: u64| (hash ^ part).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29);
        RowChecksum { rows: 1, records, hash: parts.into_iter().fold(7, mix) }
    }

    /// Adds rows.
    #[inline]
    pub fn add(&mut self, other: RowChecksum) {
        self.rows += other.rows;
        self.records = self.records.wrapping_add(other.records);
        self.hash = self.hash.wrapping_add(other.hash);
    }
}

/// A checksum to which several workers add.
#[derive(Clone, Debug, Default)]
pub struct SharedCheck(Arc<[AtomicU64; 3]>);

impl SharedCheck {
    /// Adds rows.
    #[inline]
    pub fn add(&self, check: RowChecksum) {
        for (sum, part) in self.0.iter().zip([check.rows, check.records, check.hash]) {
            sum.fetch_add(part, Ordering::Relaxed);
        }
    }

    /// Adds a row `diff` times; a negative number retracts it.
    #[inline]
    pub fn change(&self, check: RowChecksum, diff: isize) {
        for (sum, part) in self.0.iter().zip([check.rows, check.records, check.hash]) {
            sum.fetch_add(part.wrapping_mul(diff as u64), Ordering::Relaxed);
        }
    }

    /// Returns the checksum so far.
    pub fn get(&self) -> RowChecksum {
        let [rows, records, hash] = [0, 1, 2].map(|part: usize| self.0[part].load(Ordering::Relaxed));
        RowChecksum { rows, records, hash }
    }
}

/// Measurements of one run, with the checksum of its results.
#[derive(Clone, Copy, Debug)]
pub struct RunFigures {
    /// Time and memory, from the first record to the last result.
    pub sample: Sample,
    /// Checksum of the results.
    pub check: RowChecksum,
}

/// Runs `work`, and measures it.
///
/// # Errors
/// Fails as `work` does.
pub fn timed(work: impl FnOnce() -> Result<RowChecksum, String>) -> Result<RunFigures, String> {
    let (cpu, start) = (cpu_seconds(), Instant::now());
    let check = work()?;
    let (seconds, cpu_seconds) = (start.elapsed().as_secs_f64(), cpu_seconds() - cpu);
    Ok(RunFigures { sample: Sample { seconds, cpu_seconds, peak_mib: peak_mib() }, check })
}

impl RunFigures {
    /// Formats the measurements as a line.
    pub fn to_line(self) -> String {
        let Sample { seconds, cpu_seconds, peak_mib } = self.sample;
        let RowChecksum { rows, records, hash } = self.check;
        format!("figures {seconds} {cpu_seconds} {peak_mib} {rows} {records} {hash}")
    }

    /// Combines the measurements of two processes of one run.
    fn beside(mut self, other: RunFigures) -> RunFigures {
        self.sample.seconds = self.sample.seconds.max(other.sample.seconds);
        self.sample.cpu_seconds += other.sample.cpu_seconds;
        self.sample.peak_mib += other.sample.peak_mib;
        self.check.add(other.check);
        self
    }

    /// Parses the last line of a run's output, which is one of [`RunFigures::to_line`].
    pub fn from_line(line: &str) -> Option<RunFigures> {
        let parts: Vec<&str> = line.trim().lines().last()?.strip_prefix("figures ")?.split(' ').collect();
        let [seconds, cpu, memory, rows, records, hash] = parts[..] else { return None };
        let check = RowChecksum { rows: rows.parse().ok()?, records: records.parse().ok()?, hash: hash.parse().ok()? };
        let (seconds, cpu_seconds, peak_mib) = (seconds.parse().ok()?, cpu.parse().ok()?, memory.parse().ok()?);
        Some(RunFigures { sample: Sample { seconds, cpu_seconds, peak_mib }, check })
    }
}

/// Starts this program again, with these arguments, for one run.
///
/// # Errors
/// Fails if the run does, or if it prints no figures.
pub fn run_apart(arguments: &[String]) -> Result<RunFigures, String> {
    run_together(&own_path()?, &[arguments.to_vec()])
}

/// Returns the path of this program.
///
/// # Errors
/// Fails if the system does not tell it.
pub fn own_path() -> Result<PathBuf, String> {
    std::env::current_exe().map_err(|why| format!("cannot find this program: {why}"))
}

/// Starts a program once for each of these lists of arguments, as the processes of one run. The last line of the output of
/// each is one of [`RunFigures::to_line`]. Returns the longest time, and sums of CPU time, memory and rows.
///
/// # Errors
/// Fails if a process does, or if it prints no figures.
pub fn run_together(program: &Path, processes: &[Vec<String>]) -> Result<RunFigures, String> {
    let start = |arguments: &Vec<String>| {
        let started = Command::new(program)
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .stdin(Stdio::null())
            .spawn();
        started.map_err(|why| format!("cannot start a run of {}: {why}", program.display()))
    };
    let started = processes.iter().map(start).collect::<Vec<_>>();
    let mut total = None::<RunFigures>;
    let mut failed = None;
    // All are waited for, whether or not one has failed.
    for (arguments, child) in processes.iter().zip(started) {
        match child.and_then(|child| finish(arguments, child)) {
            Ok(figures) => total = Some(total.map_or(figures, |total| total.beside(figures))),
            Err(why) => failed = failed.or(Some(why)),
        }
    }
    failed.map_or_else(|| total.ok_or_else(|| String::from("a run without processes")), Err)
}

/// Waits for a process of a run.
fn finish(arguments: &[String], child: Child) -> Result<RunFigures, String> {
    let run = arguments.join(" ");
    let output = child.wait_with_output().map_err(|why| format!("cannot wait for the run {run}: {why}"))?;
    let line = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        return Err(format!("the run {run} failed: {}", String::from_utf8_lossy(&output.stderr)));
    }
    RunFigures::from_line(&line).ok_or_else(|| format!("the run {run} printed no figures: {line}"))
}

/// A program in a configuration, with its runs.
#[derive(Clone, Debug, Default)]
pub struct Measured {
    /// Name of the program.
    pub program: String,
    /// Number of workers of each process.
    pub workers: usize,
    /// Number of processes.
    pub processes: usize,
    /// Other figures, by name.
    pub figures: std::collections::BTreeMap<String, f64>,
    runs: Vec<RunFigures>,
}

impl Measured {
    /// Makes a program without runs.
    pub fn new(program: impl Into<String>, workers: usize, processes: usize) -> Self {
        Measured { program: program.into(), workers, processes, ..Measured::default() }
    }

    /// Adds a run.
    pub fn add(&mut self, figures: RunFigures) {
        self.runs.push(figures);
    }

    /// Returns the checksums of the runs: one if they agree.
    pub fn checks(&self) -> Vec<RowChecksum> {
        let mut checks: Vec<RowChecksum> = self.runs.iter().map(|run| run.check).collect();
        checks.dedup();
        checks
    }

    /// Returns the line of a result file.
    pub fn line(&self, bench: &str, title: &str, records: u64, environment: &Environment) -> ResultLine {
        ResultLine {
            version: VERSION,
            bench: bench.to_owned(),
            title: title.to_owned(),
            program: self.program.clone(),
            workers: self.workers,
            processes: self.processes,
            records,
            samples: self.runs.iter().map(|run| run.sample).collect(),
            latencies: Vec::new(),
            figures: self.figures.clone(),
            environment: environment.clone(),
        }
    }
}

/// Fails unless all programs have equal results in all runs.
///
/// # Errors
/// Names the first program whose results are others.
pub fn check_equal<'a>(title: &str, programs: impl IntoIterator<Item = &'a Measured>) -> Result<(), String> {
    let mut programs = programs.into_iter();
    let Some(first) = programs.next() else { return Ok(()) };
    let expected = first.checks();
    if expected.len() > 1 {
        return Err(format!("{title}: runs of {} differ: {expected:?}", first.program));
    }
    for other in programs {
        let found = other.checks();
        if found != expected {
            let (program, workers) = (&other.program, other.workers);
            return Err(format!("{title}: {program} on {workers} workers gives {found:?}, the first {expected:?}"));
        }
    }
    Ok(())
}

/// Prints the measurements of a title: a table with ratios to the first program, or lines of a result file.
///
/// # Errors
/// Fails if a line cannot be written as JSON.
pub fn show(lines: &[ResultLine], json: bool) -> Result<(), String> {
    if json {
        return lines.iter().try_for_each(|line| line.to_json().map(|text| println!("{text}")));
    }
    let Some(first) = lines.first() else { return Ok(()) };
    let (base, base_cpu) = (first.rate().median, first.cpu().median);
    let mut table = String::new();
    let _ = writeln!(table, "\n{}: {} records, medians of {} (range)", first.title, first.records, first.samples.len());
    let _ = writeln!(
        table,
        "  {:<24}{:>10}{:>22}{:>8}{:>24}{:>8}{:>10}",
        "program", "workers", "M records/s", "ratio", "CPU s/M", "ratio", "peak MiB"
    );
    for line in lines {
        let (rate, cpu, memory) = (line.rate(), line.cpu(), line.memory().median);
        let (ratio, cpu_ratio) = (rate.median / base, cpu.median / base_cpu);
        let workers = match line.processes {
            0 | 1 => line.workers.to_string(),
            processes => format!("{processes} × {}", line.workers),
        };
        let _ = writeln!(
            table,
            "  {:<24}{workers:>10}{:>22}{ratio:>8.2}{:>24}{cpu_ratio:>8.2}{memory:>10.0}",
            line.program,
            rate.text(2),
            cpu.text(3)
        );
    }
    print!("{table}");
    Ok(())
}

/// Returns the least number of workers, of all processes, at which a program is faster than a baseline on one thread (its
/// COST); `None` if it is not at any number that was measured. Source: McSherry, Isard, Murray, "Scalability! But at what
/// COST?" (2015).
pub fn cost(lines: &[ResultLine], program: &str, baseline: &str) -> Option<usize> {
    let base = lines.iter().find(|line| line.program == baseline)?.rate().median;
    let faster = lines.iter().filter(|line| line.program == program && line.rate().median > base);
    faster.map(|line| line.workers * line.processes.max(1)).min()
}
