//! The machine, the revision and the time of a measurement, and what a process has used so far.

use std::path::Path;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use nix::sys::resource::{Usage, UsageWho, getrusage};
use serde::{Deserialize, Serialize};

/// Circumstances of a measurement.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Environment {
    /// Revision of the source, with `+` if the files differ from it; `unknown` outside a repository.
    pub revision: String,
    /// Model of the processor.
    pub processor: String,
    /// Number of cores that this process may use.
    pub cores: usize,
    /// Load average of the last minute: above 0 before the measurement, other programs were running.
    pub load: String,
    /// Seconds since 1970.
    pub unix_seconds: u64,
    /// Words of the command line.
    pub arguments: Vec<String>,
}

impl Environment {
    /// Describes this machine now. What cannot be found out is `unknown`.
    pub fn now() -> Self {
        let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("unknown");
        let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
        Environment {
            revision: revision(),
            processor: model.trim_matches([' ', '\t', ':']).to_owned(),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            load: load.split(' ').next().unwrap_or("unknown").to_owned(),
            unix_seconds: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
            // Without the path of the program, which says nothing about the measurement.
            arguments: std::env::args().skip(1).filter(|word| word != "--bench").collect(),
        }
    }

    /// Describes the circumstances in a line.
    pub fn line(&self) -> String {
        let Environment { revision, processor, cores, load, .. } = self;
        format!("{processor}, {cores} cores, load {load} at the start; revision {revision}, release build")
    }
}

/// Returns the revision of the source.
fn revision() -> String {
    let git = |words: &[&str]| {
        let output =
            Command::new("git").args(words).current_dir(Path::new(env!("CARGO_MANIFEST_DIR"))).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let Some(revision) = git(&["rev-parse", "--short=12", "HEAD"]) else { return String::from("unknown") };
    let is_changed = git(&["status", "--porcelain", "--untracked-files=no"]).is_none_or(|changes| !changes.is_empty());
    if is_changed { revision + "+" } else { revision }
}

fn seconds_of(who: UsageWho) -> f64 {
    let seconds = |usage: Usage| {
        [usage.user_time(), usage.system_time()].iter().map(|t| t.tv_sec() as f64 + t.tv_usec() as f64 / 1e6).sum()
    };
    getrusage(who).map_or(f64::NAN, seconds)
}

/// Returns the CPU time of this process so far, in seconds; NaN if the system does not tell.
pub fn cpu_seconds() -> f64 {
    seconds_of(UsageWho::RUSAGE_SELF)
}

/// Returns the CPU time of the processes that this one has started and waited for, in seconds; NaN if the system does not
/// tell.
pub fn cpu_seconds_of_children() -> f64 {
    seconds_of(UsageWho::RUSAGE_CHILDREN)
}

/// Returns the peak memory of this process, in MiB; NaN if the system does not tell.
pub fn peak_mib() -> f64 {
    getrusage(UsageWho::RUSAGE_SELF).map_or(f64::NAN, |usage| usage.max_rss() as f64 / 1024.0)
}

/// Returns the resident memory of this process, in bytes.
///
/// # Errors
/// Fails if the system does not tell.
pub fn resident() -> Result<u64, String> {
    let status = std::fs::read_to_string("/proc/self/status").map_err(|why| format!("no figures of memory: {why}"))?;
    let kib =
        status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kib.map(|kib| kib * 1024).ok_or_else(|| String::from("the system does not tell the resident memory"))
}
