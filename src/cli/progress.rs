//! Shows a command's progress on standard error: a bar on a terminal, else a line every few seconds.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use super::{log, note};

/// Interval of progress lines where there is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

/// Number of messages between two readings of the clock.
const MESSAGES_PER_CLOCK_READ: u64 = 256;

/// The progress of one command.
pub(super) struct CommandProgress {
    bar: Option<ProgressBar>,
    begun: Instant,
    last: Instant,
    count: u64,
}

/// Total of the bar, in the unit that it measures.
pub(super) enum ProgressTotal {
    /// A number of messages.
    Messages(u64),
    /// A number of bytes of a file.
    Bytes(u64),
}

/// Creates a bar over bytes whose total is set later; hidden if there is no terminal.
pub(super) fn bytes_bar() -> ProgressBar {
    if !log::is_live() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{bar:30} {bytes}/{total_bytes}, {bytes_per_sec}, {eta} to go");
    ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

impl CommandProgress {
    pub(super) fn start(length: &ProgressTotal) -> Self {
        let now = Instant::now();
        let bar = log::is_live().then(|| {
            let (bar, template) = match length {
                ProgressTotal::Messages(count) => {
                    (ProgressBar::new(*count), "{bar:30} {human_pos}/{human_len} messages, {per_sec}, {eta} to go")
                }
                ProgressTotal::Bytes(count) => {
                    (ProgressBar::new(*count), "{bar:30} {bytes}/{total_bytes}, {bytes_per_sec}, {eta} to go")
                }
            };
            bar.with_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()))
        });
        CommandProgress { bar, begun: now, last: now, count: 0 }
    }

    /// Counts one more message; `at` gives the position on the bar.
    pub(super) fn count_message(&mut self, at: impl FnOnce() -> u64) {
        self.count += 1;
        if self.count.is_multiple_of(MESSAGES_PER_CLOCK_READ) {
            self.show(at());
        }
    }

    /// Shows the position; without a terminal at most one line every [`LINE_INTERVAL`].
    pub(super) fn show(&mut self, at: u64) {
        if let Some(bar) = &self.bar {
            bar.set_position(at);
        } else if self.last.elapsed() >= LINE_INTERVAL {
            self.last = Instant::now();
            note(format_args!("{} messages, {}/s", self.count, self.rate()));
        }
    }

    /// Writes a line to standard error without disturbing the bar.
    pub(super) fn line(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| note(format_args!("{line}"))),
            None => note(format_args!("{line}")),
        }
    }

    /// Average number of messages per second so far.
    pub(super) fn rate(&self) -> u64 {
        (self.count as f64 / self.begun.elapsed().as_secs_f64().max(0.001)) as u64
    }

    /// Removes the bar.
    pub(super) fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
