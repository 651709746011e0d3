//! Measurements: taking, storing and printing them.

use std::fmt::Write as _;
use std::time::Instant;

use nix::sys::resource::{UsageWho, getrusage};

/// An order-independent checksum of result rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct RowChecksum {
    /// Number of rows.
    pub(crate) rows: u64,
    /// Number of records that they count.
    pub(crate) records: u64,
    /// Sum of the hashes of whole rows.
    pub(crate) hash: u64,
}

impl RowChecksum {
    /// Returns the checksum of one row.
    pub(crate) fn row(end: i64, key: u64, count: i64, sum: i128, least: i64, greatest: i64) -> RowChecksum {
        let parts = [end as u64, key, count as u64, sum as u64, least as u64, greatest as u64];
        let mix = |hash: u64, part: u64| (hash ^ part).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29);
        RowChecksum { rows: 1, records: count as u64, hash: parts.into_iter().fold(7, mix) }
    }

    /// Adds rows.
    pub(crate) fn add(&mut self, other: RowChecksum) {
        self.rows += other.rows;
        self.records += other.records;
        self.hash = self.hash.wrapping_add(other.hash);
    }
}

/// Measurements of one run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RunFigures {
    /// Wall-clock seconds, from the first record to the last result.
    pub(crate) seconds: f64,
    /// CPU seconds of the process in that time.
    pub(crate) cpu: f64,
    /// Peak memory of the process, in MiB.
    pub(crate) memory: f64,
    /// Checksum of the results.
    pub(crate) check: RowChecksum,
}

/// Returns the CPU time of this process so far, in seconds.
fn cpu_seconds() -> f64 {
    let Ok(usage) = getrusage(UsageWho::RUSAGE_SELF) else { return f64::NAN };
    [usage.user_time(), usage.system_time()].iter().map(|t| t.tv_sec() as f64 + t.tv_usec() as f64 / 1e6).sum()
}

fn peak_memory() -> f64 {
    getrusage(UsageWho::RUSAGE_SELF).map_or(f64::NAN, |usage| usage.max_rss() as f64 / 1024.0)
}

/// Runs `work`, and measures it.
pub(crate) fn timed(work: impl FnOnce() -> Result<RowChecksum, String>) -> Result<RunFigures, String> {
    let (cpu, start) = (cpu_seconds(), Instant::now());
    let check = work()?;
    let (seconds, cpu) = (start.elapsed().as_secs_f64(), cpu_seconds() - cpu);
    Ok(RunFigures { seconds, cpu, memory: peak_memory(), check })
}

impl RunFigures {
    /// Formats the measurements as a line.
    pub(crate) fn to_line(self) -> String {
        let RunFigures { seconds, cpu, memory, check: RowChecksum { rows, records, hash } } = self;
        format!("figures {seconds} {cpu} {memory} {rows} {records} {hash}")
    }

    /// Parses a line of [`RunFigures::to_line`].
    pub(crate) fn from_line(line: &str) -> Option<RunFigures> {
        let parts: Vec<&str> = line.lines().last()?.strip_prefix("figures ")?.split(' ').collect();
        let [seconds, cpu, memory, rows, records, hash] = parts[..] else { return None };
        let check = RowChecksum { rows: rows.parse().ok()?, records: records.parse().ok()?, hash: hash.parse().ok()? };
        Some(RunFigures { seconds: seconds.parse().ok()?, cpu: cpu.parse().ok()?, memory: memory.parse().ok()?, check })
    }
}

/// Several runs of one program.
#[derive(Clone, Debug, Default)]
pub(crate) struct Measured {
    runs: Vec<RunFigures>,
}

/// Returns the least, the median and the greatest of some numbers.
pub(crate) fn spread(mut numbers: Vec<f64>) -> (f64, f64, f64) {
    numbers.sort_by(f64::total_cmp);
    match (numbers.first(), numbers.get(numbers.len() / 2), numbers.last()) {
        (Some(least), Some(median), Some(greatest)) => (*least, *median, *greatest),
        _ => (f64::NAN, f64::NAN, f64::NAN),
    }
}

impl Measured {
    /// Adds a run.
    pub(crate) fn add(&mut self, figures: RunFigures) {
        self.runs.push(figures);
    }

    /// Returns the checksums of the runs: one if they agree.
    pub(crate) fn checks(&self) -> Vec<RowChecksum> {
        let mut checks: Vec<RowChecksum> = self.runs.iter().map(|run| run.check).collect();
        checks.dedup();
        checks
    }

    fn of(&self, figure: impl Fn(&RunFigures) -> f64) -> (f64, f64, f64) {
        spread(self.runs.iter().map(figure).collect())
    }
}

/// Describes the machine in a line.
pub(crate) fn machine() -> String {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .unwrap_or("unknown")
        .trim_matches([' ', '\t', ':']);
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').next().unwrap_or("?");
    format!("{model}, {cores} cores, load {load} at the start; release build")
}

/// Prints the measurements of an input, with ratios to the first program.
pub(crate) fn show(input: &str, records: u64, programs: &[(String, usize)], measured: &[Measured], json: bool) {
    let millions = records as f64 / 1e6;
    let rate = |run: &RunFigures| millions / run.seconds;
    let Some(base) = measured.first().map(|first| (first.of(rate).1, first.of(|run| run.cpu / millions).1)) else {
        return;
    };
    let mut table = String::new();
    if !json {
        let _ = writeln!(table, "\n{input}: {records} records");
        let _ = writeln!(
            table,
            "  {:<14}{:>8}{:>24}{:>8}{:>24}{:>8}{:>10}",
            "program", "workers", "M records/s (range)", "ratio", "CPU s/M (range)", "ratio", "peak MiB"
        );
    }
    for ((program, workers), runs) in programs.iter().zip(measured) {
        let ((least, median, greatest), (cpu_least, cpu, cpu_most)) =
            (runs.of(rate), runs.of(|run| run.cpu / millions));
        let (memory, ratio, cpu_ratio) = (runs.of(|run| run.memory).1, median / base.0, cpu / base.1);
        if json {
            println!(
                "{{\"input\":\"{input}\",\"program\":\"{program}\",\"workers\":{workers},\"records\":{records},\
                 \"runs\":{},\"median\":{median:.4},\"min\":{least:.4},\"max\":{greatest:.4},\"ratio\":{ratio:.4},\
                 \"cpu_s_per_m\":{cpu:.4},\"cpu_min\":{cpu_least:.4},\"cpu_max\":{cpu_most:.4},\
                 \"cpu_ratio\":{cpu_ratio:.4},\"peak_mib\":{memory:.0},\"machine\":\"{}\"}}",
                runs.runs.len(),
                machine()
            );
        } else {
            let range = format!("{median:.2} ({least:.2}-{greatest:.2})");
            let cpu_range = format!("{cpu:.3} ({cpu_least:.3}-{cpu_most:.3})");
            let _ = writeln!(
                table,
                "  {program:<14}{workers:>8}{range:>24}{ratio:>8.2}{cpu_range:>24}{cpu_ratio:>8.2}{memory:>10.0}"
            );
        }
    }
    print!("{table}");
}
