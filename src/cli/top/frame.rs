//! A frame of `tidegate top`: the answers of a job as lines of text.
//!
//! Invariant: texts of the job have no control characters, so that no name can write to the terminal by itself.

use std::fmt::Write;
#[cfg(feature = "top")]
use std::time::SystemTime;

use indicatif::{HumanBytes, HumanCount};
use serde::Deserialize;

use crate::status::{
    JobStatus, LeftOutKind, OpenWindow, PartitionStatus, ProcessStatus, StepWindows, Why, WorkerStatus,
};
use crate::time::EventTime;

/// Milliseconds without a sign of life after which a process, a worker or a partition is called silent.
const SILENT_MS: u64 = 2_000;
/// Longest text of a cell, in characters.
const CELL: usize = 60;

/// A sample of a process's figures, as `/history` has it.
#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct FigureSample {
    pub(super) number: u64,
    at_ms: u64,
    read: u64,
    published: u64,
    in_flight_bytes: u64,
    latency_p50_ms: Option<f64>,
    latency_p99_ms: Option<f64>,
    snapshot_age_ms: Option<u64>,
}

/// The answers of a job.
pub(super) struct Answers<'a> {
    pub(super) address: &'a str,
    pub(super) status: &'a JobStatus,
    /// Explanation of what the job waits for, or the reason for which this process has none.
    pub(super) why: &'a Result<Why, String>,
    /// The last samples, oldest first.
    pub(super) samples: &'a [FigureSample],
}

/// The meaning of a line, for its colour.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum LineTone {
    #[default]
    Plain,
    Heading,
    Good,
    Attention,
    Bad,
}

/// A line of a frame.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct FrameLine {
    pub(super) tone: LineTone,
    pub(super) text: String,
}

/// A table of a frame.
#[derive(Clone, Debug, Default)]
struct FrameTable {
    title: &'static str,
    header: &'static [&'static str],
    rows: Vec<(LineTone, Vec<String>)>,
}

/// A frame.
#[derive(Clone, Debug, Default)]
pub(super) struct TopFrame {
    head: Vec<FrameLine>,
    tables: Vec<FrameTable>,
}

/// Makes a frame of a job's answers.
pub(super) fn frame(answers: &Answers<'_>) -> TopFrame {
    let Answers { status, .. } = answers;
    let tables = [watermarks(status), windows(status), left_out(status), workers(status)];
    TopFrame { head: head(answers), tables: tables.into_iter().filter(|table| !table.rows.is_empty()).collect() }
}

impl TopFrame {
    /// Adds a line above all others.
    #[cfg(feature = "top")]
    pub(super) fn with_notice(mut self, notice: &str) -> TopFrame {
        self.head.insert(0, FrameLine { tone: LineTone::Bad, text: plain(notice) });
        self
    }

    /// Returns the lines, each at most `width` characters long.
    pub(super) fn lines(&self, width: usize) -> Vec<FrameLine> {
        let mut lines = self.head.clone();
        for table in &self.tables {
            lines.push(FrameLine::default());
            lines.push(FrameLine { tone: LineTone::Heading, text: table.title.to_owned() });
            lines.extend(table.lines());
        }
        for line in &mut lines {
            if let Some((end, _)) = line.text.char_indices().nth(width) {
                line.text.truncate(end);
            }
        }
        lines
    }
}

impl FrameTable {
    /// Returns the header and the rows, in columns.
    fn lines(&self) -> impl Iterator<Item = FrameLine> {
        let header = (LineTone::Plain, self.header.iter().map(ToString::to_string).collect::<Vec<_>>());
        let rows: Vec<_> = std::iter::once(header).chain(self.rows.clone()).collect();
        let length = |text: &String| text.chars().count();
        let widths: Vec<usize> = (0..self.header.len())
            .map(|at| rows.iter().filter_map(|(_, cells)| cells.get(at)).map(length).max().unwrap_or(0))
            .collect();
        rows.into_iter().map(move |(tone, cells)| {
            let mut text = String::from(" ");
            for (cell, width) in cells.iter().zip(&widths) {
                // Writing to a string does not fail.
                let _ = write!(text, " {cell:width$} ");
            }
            FrameLine { tone, text: text.trim_end().to_owned() }
        })
    }
}

fn head(answers: &Answers<'_>) -> Vec<FrameLine> {
    let Answers { address, status, why, samples } = answers;
    let line = |tone, text: &str| FrameLine { tone, text: plain(text) };
    let mut head = vec![line(LineTone::Heading, &format!("{} at {address}", status.job))];
    if let [.., before, now] = samples
        && now.at_ms > before.at_ms
    {
        let rate = |count: fn(&FigureSample) -> u64| {
            let more = count(now).saturating_sub(count(before));
            HumanCount(more * 1_000 / (now.at_ms - before.at_ms)).to_string()
        };
        let (read, published) = (rate(|sample| sample.read), rate(|sample| sample.published));
        let mut text = format!(
            "read {} ({read}/s), published {} ({published}/s)",
            HumanCount(now.read),
            HumanCount(now.published)
        );
        let _ = write!(text, ", in flight {}", HumanBytes(now.in_flight_bytes));
        if let (Some(median), Some(most)) = (now.latency_p50_ms, now.latency_p99_ms) {
            let _ = write!(text, ", latency p50 {median:.0} ms, p99 {most:.0} ms");
        }
        if let Some(age) = now.snapshot_age_ms {
            let _ = write!(text, ", last snapshot {} ago", span(age));
        }
        head.push(line(LineTone::Plain, &text));
    }
    match why {
        Err(refusal) => head.push(line(LineTone::Attention, refusal.trim())),
        Ok(why) => {
            let tone = if why.holds.is_empty() { LineTone::Good } else { LineTone::Attention };
            head.push(line(tone, &why.summary));
            head.extend(
                why.holds.iter().zip(1..).map(|(hold, number)| line(LineTone::Plain, &format!("  {number}. {hold}"))),
            );
        }
    }
    head
}

fn watermarks(status: &JobStatus) -> FrameTable {
    let mut rows = Vec::new();
    for stream in &status.streams {
        rows.push((LineTone::Plain, vec![short(&stream.source), "stream".into(), stream.watermark.to_string()]));
    }
    let workers = status.processes.iter().flat_map(|process| &process.workers);
    let mut partitions: Vec<&PartitionStatus> = workers.flat_map(|worker| &worker.partitions).collect();
    partitions.sort_by_key(|partition| (&partition.source, partition.partition));
    for partition in partitions {
        let name = match (&partition.topic, partition.in_bytes) {
            (Some(topic), _) => short(topic),
            (None, true) => String::from("file"),
            (None, false) => format!("partition {}", partition.partition),
        };
        let (tone, state) = match partition {
            PartitionStatus { ended: true, .. } => (LineTone::Plain, "ended"),
            PartitionStatus { rests: true, .. } => (LineTone::Plain, "paused, too far ahead"),
            PartitionStatus { idle: true, .. } => (LineTone::Plain, "idle"),
            silent if silent.moved_ms >= SILENT_MS && silent.lag() == Some(0) => (LineTone::Attention, "silent"),
            _ => (LineTone::Good, "active"),
        };
        let lag = partition.lag().map_or(String::new(), |lag| {
            if partition.in_bytes { HumanBytes(lag).to_string() } else { HumanCount(lag).to_string() }
        });
        let moved = format!("{} ago", span(partition.moved_ms));
        let watermark = partition.watermark.to_string();
        rows.push((tone, vec![short(&partition.source), name, watermark, state.into(), lag, moved]));
    }
    let header = &["Source", "Partition", "Watermark", "State", "Lag", "Last record"];
    FrameTable { title: "Watermarks", header, rows }
}

fn windows(status: &JobStatus) -> FrameTable {
    let mut rows = Vec::new();
    for StepWindows { step, open, more, closed, keys, next_at, .. } in &status.windows {
        let step = short(step);
        rows.extend(open.iter().map(|window| {
            let (closes, lacks) = due(window);
            let at_most = if window.exact { "" } else { "at most " };
            let count = format!("{at_most}{}", HumanCount(window.rows));
            (LineTone::Plain, vec![step.clone(), interval(window.start, window.end), count, closes, lacks])
        }));
        if *more > 0 {
            rows.push((LineTone::Plain, vec![step.clone(), format!("{} more", HumanCount(*more))]));
        }
        if let Some(keys) = keys {
            let next = next_at.map_or(String::from("at the end of the stream"), |at| format!("not before {at}"));
            rows.push((
                LineTone::Plain,
                vec![step.clone(), "of each key its own".into(), format!("{} keys", HumanCount(*keys)), next],
            ));
        }
        if let Some(closed) = closed {
            let ago = format!("closed {} ago", span(closed.ago_ms));
            let rows_closed = HumanCount(closed.rows).to_string();
            rows.push((
                LineTone::Good,
                vec![step, interval(closed.start, closed.end), rows_closed, String::new(), ago],
            ));
        }
    }
    FrameTable { title: "Open windows", header: &["Step", "Window", "Rows", "Closes at watermark", "Lacks"], rows }
}

/// Returns when a window closes, and what the watermark lacks until then.
fn due(window: &OpenWindow) -> (String, String) {
    let Some(closes_at) = window.closes_at else { return ("at the end of the stream".into(), String::new()) };
    let lacks = match window.missing_ms {
        None => String::from("no watermark yet"),
        Some(0) => String::from("closes now"),
        Some(missing) => format!("{} of event time", span(missing)),
    };
    (closes_at.to_string(), lacks)
}

fn left_out(status: &JobStatus) -> FrameTable {
    let mut rows = Vec::new();
    for left in &status.left_out {
        let (by, kind) = match left.kind {
            LeftOutKind::Late => ("late for", "late"),
            _ => ("rejected by", "rejected"),
        };
        rows.push((
            LineTone::Attention,
            vec![format!("{by} {}", short(&left.name)), format!("{} {kind}", HumanCount(left.count))],
        ));
        rows.extend(left.records.iter().map(|record| {
            let place = short(&record.place);
            let place = match (record.line, record.in_bytes) {
                (Some(line), _) => format!("{place}, line {line}"),
                (None, true) => format!("{place}, byte {}", record.offset),
                (None, false) => format!("{place}/{}, offset {}", record.partition, record.offset),
            };
            let ago = format!("{} ago", span(record.ago_ms));
            (LineTone::Plain, vec![String::new(), ago, place, plain(&record.reason)])
        }));
    }
    FrameTable { title: "Records left out", header: &["Left out", "Number, when", "Place", "Reason"], rows }
}

fn workers(status: &JobStatus) -> FrameTable {
    let mut rows = Vec::new();
    for process in &status.processes {
        let ProcessStatus { silent_ms, shown_ms, snapshot, .. } = process;
        let (tone, state) = if *silent_ms >= SILENT_MS { (LineTone::Bad, "silent") } else { (LineTone::Good, "runs") };
        let snapshot = snapshot.map_or(String::new(), |snapshot| format!("snapshot {}", snapshot.committed.0));
        let published = format!("published {} ago", span(*shown_ms));
        rows.push((
            tone,
            vec![format!("process {}", process.process), state.into(), snapshot, String::new(), published],
        ));
        rows.extend(process.workers.iter().map(worker));
    }
    FrameTable {
        title: "Processes and workers",
        header: &["Worker", "State", "Oldest epoch", "In flight", "Last turn"],
        rows,
    }
}

fn worker(worker: &WorkerStatus) -> (LineTone, Vec<String>) {
    let (tone, state) = match worker {
        stuck if stuck.turned_ms >= SILENT_MS => (LineTone::Bad, "stuck"),
        WorkerStatus { repeats: true, .. } => (LineTone::Attention, "replays"),
        WorkerStatus { reads_first: true, .. } => (LineTone::Attention, "reads first"),
        WorkerStatus { waits_for_sinks: true, .. } => (LineTone::Attention, "waits for sinks"),
        _ => (LineTone::Good, "runs"),
    };
    let state = worker.step.as_ref().map_or(state.to_owned(), |step| format!("{state}, in {}", short(step)));
    let front =
        worker.front.map_or(String::from("none"), |front| format!("{} for {}", front.epoch.0, span(front.since_ms)));
    let in_flight = format!("{} in {} epochs", HumanBytes(worker.in_flight_bytes), worker.in_flight_epochs);
    (
        tone,
        vec![format!("worker {}", worker.worker), state, front, in_flight, format!("{} ago", span(worker.turned_ms))],
    )
}

fn interval(start: EventTime, end: EventTime) -> String {
    if end == EventTime::MAX { String::from("all time") } else { format!("{start} – {end}") }
}

/// Formats a duration in milliseconds.
fn span(millis: u64) -> String {
    match millis {
        0..1_000 => format!("{millis} ms"),
        1_000..120_000 => format!("{:.1} s", millis as f64 / 1e3),
        120_000..7_200_000 => format!("{} min", millis / 60_000),
        _ => format!("{:.1} h", millis as f64 / 3.6e6),
    }
}

/// Returns a text without control characters.
fn plain(text: &str) -> String {
    text.chars().map(|letter| if letter.is_control() { '\u{fffd}' } else { letter }).collect()
}

/// Returns a name that fits a cell.
fn short(text: &str) -> String {
    let text = plain(text);
    let surplus = text.chars().count().saturating_sub(CELL);
    if surplus == 0 { text } else { format!("…{}", text.chars().skip(surplus + 1).collect::<String>()) }
}

/// Formats a time of the clock, in UTC.
#[cfg(feature = "top")]
pub(super) fn clock(time: SystemTime) -> String {
    EventTime::from(time).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::{LeftOut, LeftOutRecord};

    #[test]
    fn names_of_a_job_write_nothing_to_the_terminal_by_themselves() {
        let evil = "\x1b[2Jtotals\r\n\u{9b}0m";
        let record = LeftOutRecord { place: evil.into(), reason: evil.into(), ..LeftOutRecord::default() };
        let left = LeftOut { name: evil.into(), count: 1, records: vec![record], ..LeftOut::default() };
        let windows = StepWindows { step: evil.into(), open: vec![OpenWindow::default()], ..StepWindows::default() };
        let partition = PartitionStatus { source: evil.into(), topic: Some(evil.into()), ..PartitionStatus::default() };
        let worker = WorkerStatus { step: Some(evil.into()), partitions: vec![partition], ..WorkerStatus::default() };
        let process = ProcessStatus { workers: vec![worker], ..ProcessStatus::default() };
        let status = JobStatus {
            job: evil.into(),
            windows: vec![windows],
            left_out: vec![left],
            processes: vec![process],
            ..JobStatus::default()
        };
        let answers = Answers { address: "there:1", status: &status, why: &Err(evil.into()), samples: &[] };
        let lines = frame(&answers).lines(200);
        assert!(lines.iter().filter(|line| line.text.contains("totals")).count() >= 6, "{lines:#?}");
        assert!(!lines.iter().any(|line| line.text.contains(char::is_control)), "{lines:#?}");
    }

    #[test]
    fn lines_are_no_longer_than_the_terminal_is_wide() {
        let windows = StepWindows { step: "é".repeat(70), more: 2, keys: Some(3), ..StepWindows::default() };
        let status = JobStatus { job: "job".into(), windows: vec![windows], ..JobStatus::default() };
        let answers = Answers { address: "there:1", status: &status, why: &Err("no".into()), samples: &[] };
        let lines = frame(&answers).lines(40);
        assert!(lines.iter().all(|line| line.text.chars().count() <= 40), "{lines:#?}");
        assert!(lines.iter().any(|line| line.text.contains("é")), "{lines:#?}");
    }
}
