//! The causes that hold back a window, or the job, the first cause first.
//!
//! A window fires when the watermark of its stream has reached its end, at an epoch that all workers have released and
//! all steps have processed; it closes when the watermark is past the allowed lateness, too. So it can be held back by,
//! in this order: a process without heartbeats; two processes that do not hear each other; a worker whose loop makes no
//! progress; workers that still replay the journal; a source that is read before others; a partition whose own
//! watermark is behind; an epoch whose input is not committed, or not on disk; a sink that has not published an epoch,
//! or else a step that is still processing it; a snapshot that is not on disk; a step whose watermark has not reached the
//! window's end.
//!
//! Unpublished results come before a partition's watermark in two cases: without a window, as they are the next
//! results; and with one, if reading waits for the sinks. Nothing that lasts less than [`SLOW_MS`] is a cause by
//! itself.

use std::time::Duration;

use super::blocker::{Blocker, BlockerKind, Why, ago};
use super::{JobStatus, PartitionStatus, ProcessStatus, Stage, StepStatus, WorkerStatus, first};
use crate::metrics::after_idle;
use crate::time::{Epoch, EventTime, Span};

/// Milliseconds without a sign of life after which a process or a worker is the cause of everything.
const SILENT_MS: u64 = 2_000;
/// Milliseconds of silence after which a connection is a cause; longer than [`SILENT_MS`], so that a silent process is
/// reported instead of its connections.
const CUT_OFF_MS: u64 = 3_000;
/// Milliseconds after which an epoch, a sink or a snapshot counts as a cause.
const SLOW_MS: u64 = 2_000;
/// Maximum number of partitions listed one by one.
const MAX_LISTED: usize = 5;

/// Parses the end of a window, given as END or START/END; each RFC 3339, or milliseconds since 1970.
///
/// # Errors
/// Fails with the reason if it is no time.
pub fn window_end(text: &str) -> Result<EventTime, String> {
    text.rsplit_once('/').map_or(text, |(_, end)| end).parse()
}

/// Returns the causes that hold back a window that ends at `window_end`; without one, those that hold back the job.
pub fn why(status: &JobStatus, window_end: Option<EventTime>) -> Why {
    let mut holds: Vec<_> = silent(status).collect();
    holds.extend(cut_off(status));
    holds.extend(stuck(status));
    if repeats(status) {
        holds.push(replay(status));
    }
    holds.extend(read_first(status));
    let behind = watermarks(status, window_end);
    let waits_for_records = !behind.is_empty();
    let unshown = frontier(status);
    let first = window_end.is_none() || workers(status).any(|(_, worker)| worker.waits_for_sinks);
    let (first, second) = if first { (unshown, behind) } else { (behind, unshown) };
    holds.extend(first);
    holds.extend(second);
    if holds.is_empty() || window_end.is_none() {
        holds.extend(snapshot(status));
    }
    if !waits_for_records && let Some(end) = window_end {
        holds.extend(steps(status, end));
    }
    let summary = summary(status, window_end, &holds);
    Why { window_end: window_end.map(|end| end.to_string()), summary, holds }
}

/// Returns the summary, with the number of records that were late only because their partitions had been idle.
fn summary(status: &JobStatus, window_end: Option<EventTime>, holds: &[Blocker]) -> String {
    let mut summary = held(status, window_end, holds);
    for step in status.steps.iter().filter(|step| step.late_after_idle > 0) {
        summary += &format!("; step {}: {}", step.name, after_idle(step.late_after_idle));
    }
    summary
}

fn held(status: &JobStatus, window_end: Option<EventTime>, holds: &[Blocker]) -> String {
    let watermark = status.streams.iter().map(|stream| stream.watermark).min().unwrap_or(EventTime::MIN);
    match (window_end, holds.first()) {
        (Some(end), Some(first)) => {
            format!(
                "{}: a window that ends at {end} waits for {}; the watermark is {watermark}",
                status.job, first.name
            )
        }
        (Some(end), None) => format!(
            "{}: a window that ends at {end} has closed: the watermark is {watermark}. If it has no row, no record was \
             counted in it: look at the late and rejected records",
            status.job
        ),
        (None, Some(first)) => {
            format!("{}: the next results wait for {}; the watermark is {watermark}", status.job, first.name)
        }
        (None, None) => format!("{}: nothing holds it; the watermark is {watermark}", status.job),
    }
}

fn workers(status: &JobStatus) -> impl Iterator<Item = (&ProcessStatus, &WorkerStatus)> {
    status.processes.iter().flat_map(|process| process.workers.iter().map(move |worker| (process, worker)))
}

/// Finds processes that send no heartbeats.
fn silent(status: &JobStatus) -> impl Iterator<Item = Blocker> + '_ {
    let silent = status.processes.iter().filter(|process| process.silent_ms >= SILENT_MS);
    silent.map(|process| Blocker {
        cause: BlockerKind::Process,
        name: format!("process {}", process.process),
        since_ms: Some(process.silent_ms).filter(|since| *since < u64::MAX),
        says: String::from("gives no sign of life"),
        help: String::from(
            "it was stopped, or its machine or the network to it is off; continue it (kill -CONT), or end it, and all are \
             started again by `tidegate up`",
        ),
    })
}

/// Finds silent connections of the dataflow between running processes: each is reported once, in its more silent
/// direction.
fn cut_off(status: &JobStatus) -> Vec<Blocker> {
    let is_silent = |number: usize| {
        status.processes.iter().any(|process| process.process == number && process.silent_ms >= SILENT_MS)
    };
    let mut cut: Vec<(usize, usize, u64)> = Vec::new();
    for process in status.processes.iter().filter(|process| process.silent_ms < SILENT_MS) {
        for connection in &process.connections {
            let (from, to) = (connection.process, process.process);
            if connection.silent_ms < CUT_OFF_MS || is_silent(from) {
                continue;
            }
            match cut.iter_mut().find(|(one, other, _)| (*one, *other) == (to, from)) {
                Some(known) if known.2 >= connection.silent_ms => {}
                Some(known) => *known = (from, to, connection.silent_ms),
                None => cut.push((from, to, connection.silent_ms)),
            }
        }
    }
    let holds = cut.into_iter().map(|(from, to, silent_ms)| Blocker {
        cause: BlockerKind::Connection,
        name: format!("the connection of processes {} and {}", from.min(to), from.max(to)),
        since_ms: Some(silent_ms),
        says: format!("brings nothing from process {from} to process {to}"),
        help: String::from(
            "both are there, so the network between them is off, or lets one direction through: mend that; when it lasts \
             for --heartbeat-timeout the job ends",
        ),
    });
    holds.collect()
}

/// Finds workers, in running processes, whose loop makes no progress.
fn stuck(status: &JobStatus) -> impl Iterator<Item = Blocker> + '_ {
    let stuck =
        workers(status).filter(|(process, worker)| process.silent_ms < SILENT_MS && worker.turned_ms >= SILENT_MS);
    stuck.map(|(process, worker)| {
        let (says, help) = match &worker.step {
            Some(step) => (
                format!("has not left step {step}"),
                "if it takes no processor time its code waits for something: a worker must not; else its epochs are too \
                 large: lower --in-flight",
            ),
            None => (
                String::from("makes no progress"),
                "code of the query takes long or waits for something: a worker must not",
            ),
        };
        Blocker {
            cause: BlockerKind::Worker,
            name: format!("worker {} of process {}", worker.worker, process.process),
            since_ms: Some(worker.turned_ms),
            says,
            help: String::from(help),
        }
    })
}

fn repeats(status: &JobStatus) -> bool {
    workers(status).any(|(_, worker)| worker.repeats)
}

fn replay(status: &JobStatus) -> Blocker {
    let repeating: Vec<_> = workers(status).filter(|(_, worker)| worker.repeats).collect();
    let names: Vec<_> = repeating.iter().map(|(_, worker)| worker.worker.to_string()).collect();
    Blocker {
        cause: BlockerKind::Worker,
        name: format!("worker {}", names.join(", ")),
        since_ms: None,
        says: String::from("is still replaying the journal of the previous incarnation"),
        help: String::from(
            "wait: published results are not published again; a shorter --snapshot-every leaves less to replay",
        ),
    }
}

/// Finds the sources that others wait for, because they are read first.
fn read_first(status: &JobStatus) -> Vec<Blocker> {
    let blocker = |name: String, says: String| Blocker {
        cause: BlockerKind::Source,
        name,
        since_ms: None,
        says,
        help: String::from("wait: the other sources are read after that"),
    };
    let unread = first::unread_sources(status).into_iter().map(|source| {
        let ((read, all), unit) = (source.progress, if source.in_bytes { "bytes" } else { "records" });
        blocker(format!("source {}", source.name), format!("is to be read first ({read} of {all} {unit})"))
    });
    let mut holds: Vec<_> = unread.collect();
    if holds.is_empty() && first::is_reading_first(status) {
        let says = "are read, but not committed on all workers";
        holds.push(blocker(String::from("the sources that are read first"), says.into()));
    }
    holds
}

/// Finds the partitions that keep the watermark from a window's end; without one, those that hold it back and make no
/// progress.
fn watermarks(status: &JobStatus, window_end: Option<EventTime>) -> Vec<Blocker> {
    let mut holds = Vec::new();
    for stream in &status.streams {
        let source = &stream.source;
        let partitions = workers(status).flat_map(|(_, worker)| &worker.partitions);
        let all: Vec<_> = partitions.filter(|partition| partition.source == *source).collect();
        if window_end.is_some_and(|end| stream.watermark >= end) || stream.watermark == EventTime::MAX {
            continue;
        }
        if !all.iter().any(|partition| partition.holds()) {
            let has_come = |step: &StepStatus| window_end.is_some_and(|end| step.watermark >= end);
            if !status.steps.is_empty() && status.steps.iter().all(has_come) {
                continue; // An idle stream does not hold back the streams it is combined with.
            }
            holds.extend(without_holders(source, &all, window_end, status));
            continue;
        }
        let mut behind: Vec<_> = all.into_iter().filter(|partition| partition.holds()).collect();
        match window_end {
            Some(end) => behind.retain(|partition| partition.watermark < end),
            None => {
                let least = behind.iter().map(|partition| partition.watermark).min();
                behind.retain(|partition| Some(partition.watermark) == least && partition.moved_ms >= SLOW_MS);
            }
        }
        behind.sort_by_key(|partition| (partition.watermark, partition.partition));
        let more = behind.len().saturating_sub(MAX_LISTED);
        holds.extend(behind.into_iter().take(MAX_LISTED).map(|partition| of_partition(status, partition, window_end)));
        if let (1.., Some(last)) = (more, holds.last_mut()) {
            last.help += &format!(" (and {more} more partitions)");
        }
    }
    holds
}

/// Finds the cause for a source that has not ended and whose partitions are all idle or ended, or not found yet.
fn without_holders(
    source: &str,
    all: &[&PartitionStatus],
    window_end: Option<EventTime>,
    status: &JobStatus,
) -> Option<Blocker> {
    if status.processes.iter().any(|process| process.silent_ms >= SILENT_MS) {
        return None; // Its partitions are not known.
    }
    let until = window_end.map_or(String::from("later"), |end| format!("at or after {end}, and the disorder past it"));
    let idle: Vec<_> = all.iter().filter(|partition| partition.idle).collect();
    let (says, help) = if all.is_empty() {
        (
            String::from("has no partition yet"),
            String::from("no worker has found any so far: do its brokers answer, and is the name of the topic right?"),
        )
    } else if idle.is_empty() {
        return None; // All have ended: the watermark goes to the end of time with the next epochs.
    } else {
        (
            format!(
                "has {} partitions, all idle or ended: the watermark is where the farthest has come, and stays",
                all.len()
            ),
            format!("it moves with the next record of any of them: produce one with an event time {until}"),
        )
    };
    let since_ms = idle.iter().map(|partition| partition.moved_ms).min();
    Some(Blocker { cause: BlockerKind::Source, name: format!("source {source}"), since_ms, says, help })
}

/// Formats the amount of a partition that is still to be read.
fn left(partition: &PartitionStatus, lag: u64) -> String {
    match (partition.in_bytes, lag) {
        (true, lag) => format!("; {lag} bytes of it are still to be read"),
        (false, 1) => String::from("; 1 record of it is still to be read"),
        (false, lag) => format!("; {lag} records of it are still to be read"),
    }
}

fn of_partition(status: &JobStatus, partition: &PartitionStatus, window_end: Option<EventTime>) -> Blocker {
    let at = match partition.watermark {
        EventTime::MIN => String::from("has given no record yet, so it has no watermark"),
        watermark => format!("holds the watermark at {watermark}"),
    };
    let until = window_end.map_or(String::from("later"), |end| format!("past {end} and the disorder"));
    let own = status.streams.iter().find(|stream| stream.source == partition.source);
    let timeout = own.map(|stream| stream.idle_after_ms).filter(|own| *own > 0).unwrap_or(status.idle_timeout_ms);
    let timeout = ago(timeout);
    let (more, help) = match (&partition.note, partition.lag()) {
        (Some(note), _) if partition.in_bytes => {
            (format!("; {note}"), String::from("the line is taken when it ends: whoever writes the file has to end it"))
        }
        (Some(note), _) => {
            (format!("; {note}"), String::from("check its broker and its producers; reading resumes by itself"))
        }
        (None, Some(lag @ 1..)) if reads_too_slowly(status, partition) => (
            left(partition, lag),
            String::from("reading waits for the sinks: see what they wait for, or give more workers"),
        ),
        (None, Some(lag @ 1..)) => (
            left(partition, lag),
            String::from("they are on their way; if that lasts, give more workers (-w, -n) or partitions"),
        ),
        _ => (
            String::from("; nothing more came of it"),
            format!(
                "send it a record {until}, or wait: {timeout} after it fell silent it is idle (--idle-timeout) and holds nothing"
            ),
        ),
    };
    Blocker {
        cause: BlockerKind::Partition,
        name: match (partition.in_bytes, &partition.topic) {
            (true, _) => format!("the file of {}", partition.source),
            (false, Some(topic)) => format!("partition {} ({topic}) of {}", partition.partition, partition.source),
            (false, None) => format!("partition {} of {}", partition.partition, partition.source),
        },
        since_ms: Some(partition.moved_ms),
        says: at + &more,
        help,
    }
}

fn reads_too_slowly(status: &JobStatus, partition: &PartitionStatus) -> bool {
    workers(status).any(|(_, worker)| {
        let mut own = worker.partitions.iter();
        worker.waits_for_sinks
            && own.any(|own| (own.partition, &own.source) == (partition.partition, &partition.source))
    })
}

/// Finds what keeps the oldest epoch from being published.
fn frontier(status: &JobStatus) -> Vec<Blocker> {
    let mut holds = Vec::new();
    let fronts = workers(status).filter(|(process, _)| process.silent_ms < SILENT_MS);
    let fronts: Vec<_> =
        fronts.filter_map(|(process, worker)| worker.front.map(|front| (process, worker, front))).collect();
    for (process, worker, front) in &fronts {
        if front.since_ms < SLOW_MS || worker.turned_ms >= SILENT_MS {
            continue;
        }
        let (cause, says, help) = match front.stage {
            Stage::Reading | Stage::Flowing => continue,
            Stage::Binding => (
                BlockerKind::Worker,
                format!("has not committed epoch {}", front.epoch),
                "records of it are still being read on other threads; large files are read in pieces: wait",
            ),
            Stage::Syncing => (
                BlockerKind::Sync,
                format!("has epoch {} in the journal, which is not synced", front.epoch),
                "the disk of the state is slow or full: look at it (iostat, df)",
            ),
        };
        holds.push(Blocker {
            cause,
            name: match cause {
                BlockerKind::Sync => format!("the journal of process {} (worker {})", process.process, worker.worker),
                _ => format!("worker {} of process {}", worker.worker, process.process),
            },
            since_ms: Some(front.since_ms),
            says,
            help: String::from(help),
        });
    }
    let flowing = fronts.iter().map(|(.., front)| front).filter(|front| front.stage == Stage::Flowing);
    let slow: Option<Epoch> = flowing.filter(|front| front.since_ms >= SLOW_MS).map(|front| front.epoch).min();
    let sinks = status.processes.iter().flat_map(|process| &process.sinks);
    let waiting =
        sinks.filter(|sink| sink.since_ms >= SLOW_MS).filter_map(|sink| sink.waiting.map(|epoch| (sink, epoch)));
    let before = holds.len();
    holds.extend(waiting.map(|(sink, epoch)| Blocker {
        cause: BlockerKind::Sink,
        name: format!("sink {}", sink.name),
        since_ms: Some(sink.since_ms),
        says: format!("has not published epoch {epoch}"),
        help: String::from("what it writes to is slow, full or not there: look at the disk, or at the brokers"),
    }));
    if let Some(epoch) = slow.filter(|_| holds.len() == before) {
        let busy = workers(status).find_map(|(_, worker)| worker.step.as_ref().map(|step| (worker.worker, step)));
        let (name, has) = match busy {
            Some((worker, step)) => (format!("step {step} on worker {worker}"), "has"),
            None => (String::from("the steps"), "have"),
        };
        holds.push(Blocker {
            cause: BlockerKind::Step,
            name,
            since_ms: None,
            says: format!("{has} not finished epoch {epoch}"),
            help: String::from("the query has more to do than the workers can: more workers, or a smaller --in-flight"),
        });
    }
    holds
}

/// Finds steps whose windows wait although their sources have reached the end.
fn steps(status: &JobStatus, end: EventTime) -> Vec<Blocker> {
    let late = status.steps.iter().filter_map(|step| {
        let lateness = Span::from(Duration::from_millis(step.lateness_ms));
        let needed = end.plus(lateness);
        if step.watermark >= needed {
            return None;
        }
        let (says, help) = if step.watermark >= end {
            (
                format!("has fired it, and keeps it open for late records until the watermark is {needed}"),
                "that is its allowed lateness",
            )
        } else {
            (
                format!("has only reached watermark {}", step.watermark),
                "it follows in the next epochs; behind a step that allows lateness the watermark is less by that",
            )
        };
        Some(Blocker {
            cause: BlockerKind::Step,
            name: format!("step {}", step.name),
            since_ms: None,
            says,
            help: help.into(),
        })
    });
    late.collect()
}

/// Returns the announced snapshot, if it is not on disk in time.
fn snapshot(status: &JobStatus) -> Option<Blocker> {
    let snapshot = status.processes.first()?.snapshot?;
    if snapshot.committed >= snapshot.announced || snapshot.announced_ms < SLOW_MS {
        return None;
    }
    let reached = workers(status).all(|(_, worker)| worker.front.is_none_or(|front| front.epoch > snapshot.announced));
    let (says, help) = if reached {
        ("is complete and not on disk", "the disk of the state is slow or full: look at it (iostat, df)")
    } else {
        ("waits for its epoch to be published", "see what holds the epochs before it")
    };
    Some(Blocker {
        cause: BlockerKind::Snapshot,
        name: format!("the snapshot of epoch {}", snapshot.announced),
        since_ms: Some(snapshot.announced_ms),
        says: says.into(),
        help: help.into(),
    })
}

#[cfg(test)]
mod tests;
