//! Shows the demo's progress on standard error: two live lines on a terminal, else a line every two seconds. The
//! programs' progress is read from the files that they write.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use indicatif::{HumanCount, ProgressBar, ProgressStyle};

use crate::cli::{log, note, print_line};

/// Reads the lines of a growing file from its first line on; the file need not exist yet.
#[derive(Debug)]
struct FileFollower {
    path: PathBuf,
    file: Option<File>,
    bytes: Vec<u8>,
}

impl FileFollower {
    fn new(path: PathBuf) -> Self {
        FileFollower { path, file: None, bytes: Vec::new() }
    }

    /// Passes on the complete lines that were added since the last call.
    fn lines(&mut self, mut each: impl FnMut(&str)) {
        if self.file.is_none() {
            self.file = File::open(&self.path).ok();
        }
        // An error is ignored: the next call reads again, and only the display depends on it.
        let Some(Ok(_)) = self.file.as_mut().map(|file| file.read_to_end(&mut self.bytes)) else { return };
        let end = self.bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        for line in self.bytes.drain(..end).as_slice().split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            each(&String::from_utf8_lossy(line));
        }
    }
}

/// Progress of the programs, and the display of it.
#[derive(Debug)]
pub(super) struct DemoDisplay {
    bar: Option<ProgressBar>,
    begun: Instant,
    refreshed_at: Option<Instant>,
    displayed_at: Option<Instant>,
    copy: FileFollower,
    totals: FileFollower,
    log: FileFollower,
    /// Number of lines of the copy, its header included.
    copied: u64,
    /// Number of lines of the result, its header included.
    rows: u64,
    windows: BTreeSet<String>,
    watermark: String,
    /// Address of the query's page, once it serves one.
    address: Option<String>,
    sent: u64,
    rate: f64,
}

impl DemoDisplay {
    /// Starts the display of the progress towards `length` transactions.
    pub(super) fn start(length: u64, copy: &Path, totals: &Path, log: &Path) -> Self {
        let template = "{bar:30} {human_pos} of {human_len} {prefix}\n{wide_msg}";
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        DemoDisplay {
            bar: log::is_live().then(|| ProgressBar::new(length).with_style(style)),
            begun: Instant::now(),
            refreshed_at: None,
            displayed_at: None,
            copy: FileFollower::new(copy.to_owned()),
            totals: FileFollower::new(totals.to_owned()),
            log: FileFollower::new(log.to_owned()),
            copied: 0,
            rows: 0,
            windows: BTreeSet::new(),
            watermark: String::from("none yet"),
            address: None,
            sent: 0,
            rate: 0.0,
        }
    }

    /// Returns the numbers of rows of the copy and of the result.
    pub(super) fn rows(&self) -> (u64, u64) {
        (self.copied.saturating_sub(1), self.rows.saturating_sub(1))
    }

    /// Returns the address of the query's page, once it serves one.
    pub(super) fn address(&self) -> Option<&str> {
        self.address.as_deref()
    }

    /// Prints a line, above the live ones.
    pub(super) fn print(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| print_line(format_args!("{line}"))),
            None => print_line(format_args!("{line}")),
        }
    }

    /// Reads the files at most ten times a second, and updates the display when it is due.
    pub(super) fn refresh(&mut self, sent: u64) {
        let every = Duration::from_millis(if self.bar.is_some() { 250 } else { 2_000 });
        if self.refreshed_at.is_some_and(|looked| looked.elapsed() < Duration::from_millis(100)) {
            return;
        }
        self.refreshed_at = Some(Instant::now());
        let DemoDisplay { copied, rows, windows, watermark, address, .. } = self;
        self.copy.lines(|_| *copied += 1);
        self.totals.lines(|line| {
            *rows += 1;
            if let Some((window, _)) = line.split_once(',')
                && *rows > 1
                && !windows.contains(window)
            {
                windows.insert(window.to_owned());
            }
        });
        self.log.lines(|line| {
            watermark_in(line).into_iter().for_each(|found| *watermark = found.to_owned());
            address_in(line).into_iter().for_each(|found| *address = Some(found.to_owned()));
        });
        let since = self.displayed_at.unwrap_or(self.begun).elapsed();
        if since < every {
            return;
        }
        self.rate = (sent - self.sent) as f64 / since.as_secs_f64();
        (self.displayed_at, self.sent) = (Some(Instant::now()), sent);
        self.show();
    }

    fn show(&self) {
        let (copied, rows) = self.rows();
        let windows = self.windows.len();
        let s = if windows == 1 { "" } else { "s" };
        let rate = HumanCount(self.rate.round() as u64);
        let (copied, rows, watermark) = (HumanCount(copied), HumanCount(rows), time_of_day(&self.watermark));
        let produced = format!("produced, {rate}/s");
        let done = format!("{copied} copied; watermark {watermark}; {windows} window{s} closed, {rows} rows");
        match &self.bar {
            Some(bar) => {
                bar.set_prefix(produced);
                bar.set_message(done);
                bar.set_position(self.sent);
            }
            None => note(format_args!(
                "{:>3} s: {} {produced}; {done}",
                self.begun.elapsed().as_secs(),
                HumanCount(self.sent)
            )),
        }
    }

    /// Removes the live lines.
    pub(super) fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Returns the watermark in a query's line of progress.
fn watermark_in(line: &str) -> Option<&str> {
    Some(line.split_once("; watermark ")?.1.split_once(';')?.0)
}

/// Returns the address in the line in which a job says where it serves HTTP.
fn address_in(line: &str) -> Option<&str> {
    Some(line.split_once("watch it at http://")?.1.split_once(' ')?.0)
}

/// Returns the hours, minutes, seconds and tenths of a time; other texts unchanged.
fn time_of_day(time: &str) -> &str {
    time.split_once('T').and_then(|(_, rest)| rest.get(..10)).unwrap_or(time)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::query::progress_line;
    use crate::cli::run::JobFigures;
    use crate::metrics::Metrics;
    use crate::time::EventTime;
    use std::io::Write;

    #[test]
    fn the_watermark_is_found_in_what_a_query_says() {
        let metrics = Metrics::default();
        metrics.source("transactions").watermark.set(EventTime::from_millis(1_735_689_600_250));
        let (summary, elapsed) = (metrics.summary(), Duration::from_secs(2));
        let line = progress_line(&JobFigures { summary, read: 3, rate: 1.5, elapsed });
        let watermark = watermark_in(&line).unwrap();
        assert_eq!((watermark, time_of_day(watermark)), ("2025-01-01T00:00:00.250Z", "00:00:00.2"));
        assert_eq!((watermark_in("results go to a topic"), time_of_day("none yet")), (None, "none yet"));
    }

    #[test]
    fn lines_are_given_once_and_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let mut follow = FileFollower::new(path.clone());
        let lines = |follow: &mut FileFollower| {
            let mut all = Vec::new();
            follow.lines(|line| all.push(line.to_owned()));
            all
        };
        assert!(lines(&mut follow).is_empty());
        let mut file = File::create(&path).unwrap();
        file.write_all(b"one\ntw").unwrap();
        assert_eq!(lines(&mut follow), ["one"]);
        file.write_all(b"o\nthree\n").unwrap();
        assert_eq!(lines(&mut follow), ["two", "three"]);
        assert!(lines(&mut follow).is_empty());
    }
}
