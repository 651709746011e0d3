//! `tidegate why`: explains what holds back a window, or a job.
//!
//! A job that serves HTTP is asked; its address is in its state. For a job that cannot be asked, the answer is computed
//! from its state: from the partitions in the journal and the snapshots, and from the process that holds the lock.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Args;

use super::job_access::{JobAccessArgs, ask, server_at};
use super::{note, print_line};
use crate::durable::disk::{Disk, OsDisk};
use crate::durable::inspect::{RecordedProgress, recorded_progress};
use crate::durable::recovery::ProcessInfo;
use crate::durable::sources;
use crate::durable::state::StateDir;
use crate::error::{Error, Result};
use crate::status::{
    JobStatus, PartitionStatus, ProcessStatus, StepStatus, StreamStatus, Why, WorkerStatus, why, window_end,
};
use crate::time::EventTime;
use crate::view::http::{HttpTarget, encoded};

/// Timeout of a whole request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

const EXAMPLES: &str = "Examples:
  tidegate why state/                              what holds back the job with this state
  tidegate why state/ --window 2026-01-31T10:00:00Z
  tidegate why 127.0.0.1:8080 --window 1769853600000
  tidegate why http://127.0.0.1:8080 --json
  tidegate why https://jobs.example:8080 --ca-file ca.pem --token-file token

A job that was started with --http answers for all its processes. For a job without it, the answer
is computed from its state. Exit code 1: something holds it back; 0: nothing does.";

/// Explains why a window has not fired, or why a job has no output.
#[derive(Clone, Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct WhyArgs {
    /// State directory of the job, or the address where it serves HTTP: HOST:PORT or a URL
    #[arg(value_name = "STATE|HOST:PORT")]
    pub place: String,

    /// End of the window, in RFC 3339 or in milliseconds since 1970; START/END is accepted too
    #[arg(long, value_name = "END")]
    pub window: Option<String>,

    /// Token and certificates of the job.
    #[command(flatten)]
    pub access: JobAccessArgs,

    /// Print the answer as JSON
    #[arg(long)]
    pub json: bool,
}

/// Runs `tidegate why`; returns the exit code.
///
/// # Errors
/// Fails if the job does not answer, there is no such state, or the window cannot be parsed.
pub fn why_not(args: &WhyArgs) -> Result<u8> {
    let end = args.window.as_deref().map(parse_window_end).transpose()?;
    if let Some((address, is_encrypted)) = server_at(&args.place, Path::exists) {
        return ask_job(&args.access.target(address, is_encrypted)?, args);
    }
    let disk: Arc<dyn Disk> = OsDisk::shared();
    let dir = StateDir::join(disk, PathBuf::from(&args.place))?;
    if let Some((address, is_encrypted)) = dir.recorded_address().and_then(|at| server_at(&at, |_| false)) {
        match args.access.recorded_target(address, is_encrypted).and_then(|target| ask_job(&target, args)) {
            Ok(code) => return Ok(code),
            Err(error) => note(format_args!("{error}")),
        }
    }
    let mut status = status_from_state(&dir)?;
    let holder = match dir.holder() {
        None => String::from("no process has it: start its job again"),
        Some((ProcessInfo { pid, host, .. }, stopped)) => {
            if stopped {
                // A stopped process does not respond until it is continued.
                status.processes[0].silent_ms = u64::MAX;
            }
            format!("process {pid} on {host} has it{}", if stopped { ", and is stopped" } else { "" })
        }
    };
    note(format_args!("{}: {holder}; this is what the state says", Path::new(&args.place).display()));
    print_answer(&why(&status, end), args)
}

/// Prints the answer, and returns the exit code.
fn print_answer(why: &Why, args: &WhyArgs) -> Result<u8> {
    if args.json {
        let text = serde_json::to_string(why).map_err(|why| Error::new("cannot write the answer").because(why))?;
        print_line(format_args!("{text}"));
    } else {
        print_line(format_args!("{why}"));
    }
    Ok(u8::from(!why.holds.is_empty()))
}

fn parse_window_end(window: &str) -> Result<EventTime> {
    window_end(window).map_err(|why| {
        Error::usage(format!("--window {window}: {why}"))
            .help("write it as 2026-01-31T10:00:00Z, the end of the window")
    })
}

/// Asks a running job.
fn ask_job(target: &HttpTarget, args: &WhyArgs) -> Result<u8> {
    let mut path = String::from("/why?format=json");
    if let Some(window) = &args.window {
        path += &format!("&window={}", encoded(window));
    }
    let (status, answer) = ask(target, &path, REQUEST_TIMEOUT)?;
    let refused = || Error::new("the job does not answer the question").at(&target.address).because(answer.trim());
    if status != 200 {
        return Err(refused());
    }
    print_answer(&serde_json::from_str(&answer).map_err(|_| refused())?, args)
}

/// Reconstructs the status of a job from its state.
fn status_from_state(dir: &StateDir) -> Result<JobStatus> {
    let RecordedProgress { manifest, frames } = recorded_progress(dir)?;
    let (mut partitions, topics) = (BTreeMap::new(), sources::known_partitions(manifest.as_ref(), &frames));
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64;
    let from_snapshot = manifest.iter().flat_map(|manifest| {
        let bounds = manifest.sources.iter().flat_map(|source| &source.progress);
        bounds.map(|bound| (manifest.epoch, bound))
    });
    let from_journal = frames.iter().flat_map(|frame| frame.progress.iter().map(|bound| (frame.epoch, bound)));
    let all = from_snapshot.chain(from_journal).filter(|(_, bound)| !sources::is_note(&bound.source));
    for (epoch, bound) in all {
        let partition = PartitionStatus {
            source: bound.source.clone(),
            partition: bound.partition,
            topic: topics.get(&bound.source).and_then(|own| own.get(&bound.partition)).map(ToString::to_string),
            watermark: bound.watermark,
            next: bound.next_offset,
            end: bound.end_offset,
            idle: bound.idle,
            ended: bound.ended,
            // An epoch's number is about the wall clock time at which it began.
            moved_ms: now.saturating_sub(epoch.0),
            ..PartitionStatus::default()
        };
        partitions.insert((bound.source.clone(), bound.partition), partition);
    }
    let mut streams = BTreeMap::<String, EventTime>::new();
    let saved = manifest.iter().flat_map(|manifest| &manifest.sources);
    for source in saved.filter(|source| !source.is_combined() && !sources::is_note(&source.name)) {
        streams.insert(source.name.clone(), source.watermark);
    }
    for ((source, _), partition) in &partitions {
        streams.entry(source.clone()).or_insert(EventTime::MIN);
        let own = || partitions.values().filter(|other| other.source == partition.source);
        let least = own().filter(|other| other.holds()).map(|other| other.watermark).min();
        // If no partition holds the watermark, it is at the greatest one.
        let reached = least.or_else(|| own().map(|other| other.watermark).max());
        if let (Some(reached), Some(known)) = (reached, streams.get_mut(source)) {
            *known = (*known).max(reached);
        }
    }
    let steps = manifest.iter().flat_map(|manifest| &manifest.steps);
    let steps = steps.map(|step| StepStatus {
        name: step.name.clone(),
        watermark: step.closed,
        lateness_ms: 0,
        late_after_idle: 0,
    });
    let worker = WorkerStatus { partitions: partitions.into_values().collect(), ..WorkerStatus::default() };
    Ok(JobStatus {
        job: manifest.as_ref().map_or_else(|| String::from("the job"), |manifest| manifest.job.clone()),
        processes: vec![ProcessStatus { workers: vec![worker], ..ProcessStatus::default() }],
        streams: streams
            .into_iter()
            .map(|(source, watermark)| StreamStatus { source, watermark, idle_after_ms: 0 })
            .collect(),
        // Progress of steps since the snapshot is not known.
        steps: steps.filter(|_| frames.is_empty()).collect(),
        idle_timeout_ms: 30_000,
        ..JobStatus::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_told_from_a_state() {
        for (place, address) in [
            ("127.0.0.1:8080", Some("127.0.0.1:8080")),
            ("jobs.example:80", Some("jobs.example:80")),
            ("[::1]:8080", Some("[::1]:8080")),
            ("http://127.0.0.1:8080", Some("127.0.0.1:8080")),
            ("http://127.0.0.1:8080/", Some("127.0.0.1:8080")),
            ("http://127.0.0.1:8080/why?x=1", Some("127.0.0.1:8080")),
            ("http://jobs.example", Some("jobs.example:80")),
            ("http://[::1]/", Some("[::1]:80")),
            ("https://jobs.example:8080/", Some("jobs.example:8080")),
            ("https://jobs.example", Some("jobs.example:443")),
            ("https://[::1]/", Some("[::1]:443")),
            ("state", None),
            ("state/", None),
            ("/var/state:8080", None),
            ("./state:8080", None),
            ("state:x", None),
            (":8080", None),
            ("state:80800", None),
            ("there:1", None),
        ] {
            let expected = address.map(|address| (address.to_owned(), place.starts_with("https")));
            assert_eq!(server_at(place, |path| path == Path::new("there:1")), expected, "{place}");
        }
    }
}
