//! Shows how far a command is, on standard error: a bar on a terminal, else a line every few seconds.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use super::{log, note};

/// How often a line is written where there is no terminal.
const LINES: Duration = Duration::from_secs(5);

/// How often the clock is asked, in messages.
const LOOKS: u64 = 256;

/// Follows one command.
pub(super) struct Progress {
    bar: Option<ProgressBar>,
    begun: Instant,
    last: Instant,
    count: u64,
}

/// What the bar measures.
pub(super) enum Length {
    /// So many messages.
    Messages(u64),
    /// So many bytes of a file.
    Bytes(u64),
}

/// A bar over bytes whose number is told later; nothing where there is no terminal.
pub(super) fn bytes_bar() -> ProgressBar {
    if !log::is_live() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{bar:30} {bytes}/{total_bytes}, {bytes_per_sec}, {eta} to go");
    ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

impl Progress {
    pub(super) fn start(length: &Length) -> Self {
        let now = Instant::now();
        let bar = log::is_live().then(|| {
            let (bar, template) = match length {
                Length::Messages(count) => {
                    (ProgressBar::new(*count), "{bar:30} {human_pos}/{human_len} messages, {per_sec}, {eta} to go")
                }
                Length::Bytes(count) => {
                    (ProgressBar::new(*count), "{bar:30} {bytes}/{total_bytes}, {bytes_per_sec}, {eta} to go")
                }
            };
            bar.with_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()))
        });
        Progress { bar, begun: now, last: now, count: 0 }
    }

    /// One message more; `at` is where that is on the bar.
    pub(super) fn one(&mut self, at: impl FnOnce() -> u64) {
        self.count += 1;
        if self.count.is_multiple_of(LOOKS) {
            self.show(at());
        }
    }

    /// Shows where it is, unless it did just now.
    pub(super) fn show(&mut self, at: u64) {
        if let Some(bar) = &self.bar {
            bar.set_position(at);
        } else if self.last.elapsed() >= LINES {
            self.last = Instant::now();
            note(format_args!("{} messages, {}/s", self.count, self.rate()));
        }
    }

    /// Writes a line without disturbing the bar.
    pub(super) fn line(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| note(format_args!("{line}"))),
            None => note(format_args!("{line}")),
        }
    }

    /// Messages a second so far.
    pub(super) fn rate(&self) -> u64 {
        (self.count as f64 / self.begun.elapsed().as_secs_f64().max(0.001)) as u64
    }

    /// Takes the bar away.
    pub(super) fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
