//! The open windows of steps, added up over workers and processes.

use serde::{Deserialize, Serialize};

use super::in_words;
use crate::metrics::{MOST_WINDOWS, WindowRows, WorkerWindows};
use crate::time::{EventTime, Span};

/// A window of a step that is open.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct OpenWindow {
    /// Its start; `EventTime::MIN` for the window of all time.
    #[serde(with = "in_words")]
    pub start: EventTime,
    /// Its end; `EventTime::MAX` for the window of all time.
    #[serde(with = "in_words")]
    pub end: EventTime,
    /// Number of its rows so far, one for each key; at most that many, unless `exact`.
    pub rows: u64,
    /// `true` if `rows` is exact. In a job with state a row may be counted in segments and in memory.
    pub exact: bool,
    /// The watermark at which it closes: its end and the allowed lateness; `None` if only the end of the stream closes it.
    pub closes_at: Option<EventTime>,
    /// Milliseconds of event time that the step's watermark lacks until then; `None` before the first watermark, and if
    /// only the end of the stream closes it.
    pub missing_ms: Option<u64>,
}

/// The last window of a step that has closed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ClosedWindow {
    /// Its start.
    #[serde(with = "in_words")]
    pub start: EventTime,
    /// Its end.
    #[serde(with = "in_words")]
    pub end: EventTime,
    /// Number of its rows.
    pub rows: u64,
    /// Milliseconds since it closed.
    pub ago_ms: u64,
}

/// The windows of a step. They are reported a few times a second, so they may be older than the rest of a status by that.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct StepWindows {
    /// Name of the step.
    pub step: String,
    /// The first of its open windows, ordered by their ends, at most 24.
    pub open: Vec<OpenWindow>,
    /// Number of further open windows; at least that many if several workers have windows.
    pub more: u64,
    /// The window with the greatest end that has closed with rows in this incarnation.
    pub closed: Option<ClosedWindow>,
    /// Number of keys, if windows differ by key, as sessions do: `open` is empty then.
    pub keys: Option<u64>,
    /// A watermark before which none of these keys has results.
    pub next_at: Option<EventTime>,
}

impl StepWindows {
    /// Returns the number of open windows.
    pub(crate) fn open_count(&self) -> u64 {
        self.open.len() as u64 + self.more
    }

    /// Adds up the reports of a step's workers; `None` if there are none.
    pub(crate) fn of_workers(step: &str, reports: Vec<WorkerWindows>) -> Option<StepWindows> {
        let parts = reports.into_iter().map(|report| {
            let more = report.open.saturating_sub(report.first.len() as u64);
            let open = |WindowRows { start, end, rows, exact }| OpenWindow {
                start,
                end,
                rows,
                exact,
                ..OpenWindow::default()
            };
            let closed = |(WindowRows { start, end, rows, .. }, at): (WindowRows, std::time::Instant)| ClosedWindow {
                start,
                end,
                rows,
                ago_ms: u64::try_from(at.elapsed().as_millis()).unwrap_or(u64::MAX),
            };
            StepWindows {
                step: step.to_owned(),
                open: report.first.into_iter().map(open).collect(),
                more,
                closed: report.closed.map(closed),
                keys: report.keys,
                next_at: report.next_at,
            }
        });
        parts.reduce(StepWindows::plus)
    }

    /// Adds the windows of other workers. A window that is among the first of all is among the first of each part that
    /// has it, so its rows are complete.
    fn plus(self, other: StepWindows) -> StepWindows {
        let all = self.open_count().max(other.open_count());
        let mut open = self.open;
        for window in other.open {
            match open.binary_search_by_key(&window.end, |known| known.end) {
                Ok(at) => {
                    open[at].rows += window.rows;
                    open[at].exact &= window.exact;
                }
                Err(at) => open.insert(at, window),
            }
        }
        let all = all.max(open.len() as u64);
        open.truncate(MOST_WINDOWS);
        let closed = match (self.closed, other.closed) {
            (Some(one), Some(two)) if one.end == two.end => {
                Some(ClosedWindow { rows: one.rows + two.rows, ago_ms: one.ago_ms.min(two.ago_ms), ..one })
            }
            (one, two) => one.into_iter().chain(two).max_by_key(|closed| closed.end),
        };
        StepWindows {
            step: self.step,
            more: all - open.len() as u64,
            open,
            closed,
            keys: self.keys.into_iter().chain(other.keys).reduce(|one, two| one + two),
            next_at: self.next_at.into_iter().chain(other.next_at).min(),
        }
    }

    /// Sets when each window closes, and how much the step's watermark lacks until then.
    fn set_due(&mut self, watermark: EventTime, lateness: Span) {
        for window in &mut self.open {
            window.closes_at = (window.end < EventTime::MAX).then(|| window.end.plus(lateness));
            let missing = |at: EventTime| at.millis().saturating_sub(watermark.millis()).max(0).unsigned_abs();
            window.missing_ms = window.closes_at.filter(|_| watermark > EventTime::MIN).map(missing);
        }
    }
}

/// Adds up the windows of processes, by step; `due` returns a step's watermark and its allowed lateness.
pub(crate) fn windows_of_job<'a>(
    processes: impl Iterator<Item = &'a StepWindows>,
    due: impl Fn(&str) -> (EventTime, Span),
) -> Vec<StepWindows> {
    let mut steps: Vec<StepWindows> = Vec::new();
    for part in processes {
        match steps.iter_mut().find(|known| known.step == part.step) {
            Some(known) => *known = std::mem::take(known).plus(part.clone()),
            None => steps.push(part.clone()),
        }
    }
    for step in &mut steps {
        let (watermark, lateness) = due(&step.step);
        step.set_due(watermark, lateness);
    }
    steps
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    fn at(millis: i64) -> EventTime {
        EventTime::from_millis(millis)
    }

    fn window(end: i64, rows: u64) -> WindowRows {
        WindowRows { start: at(end - 10), end: at(end), rows, exact: rows != 7 }
    }

    #[test]
    fn windows_of_workers_are_added_up_by_their_ends() {
        let closed_at = Instant::now();
        let report = |ends: &[(i64, u64)], closed: (i64, u64)| WorkerWindows {
            first: ends.iter().map(|(end, rows)| window(*end, *rows)).collect(),
            open: ends.len() as u64,
            closed: Some((window(closed.0, closed.1), closed_at)),
            ..WorkerWindows::default()
        };
        let one = report(&[(20, 3), (30, 7), (50, 1)], (10, 4));
        let (other, late) = (report(&[(20, 5), (40, 2)], (10, 6)), report(&[], (5, 9)));
        let sum = StepWindows::of_workers("totals", vec![one, other, late]).unwrap();
        let open: Vec<_> = sum.open.iter().map(|open| (open.end.millis(), open.rows, open.exact)).collect();
        assert_eq!(open, [(20, 8, true), (30, 7, false), (40, 2, true), (50, 1, true)]);
        assert_eq!((sum.more, sum.closed.map(|closed| (closed.end.millis(), closed.rows))), (0, Some((10, 10))));
        assert_eq!(StepWindows::of_workers("none", vec![]), None);
    }

    #[test]
    fn the_first_ones_are_whole_and_the_rest_is_a_number() {
        // Both workers have windows 0, 1, 2, …, but each reports its first ones only.
        let ends: Vec<_> = (0..MOST_WINDOWS as i64).map(|end| window(end, 1)).collect();
        let even: Vec<_> = (0..MOST_WINDOWS as i64).map(|end| window(2 * end, 1)).collect();
        let report = |first, open| WorkerWindows { first, open, ..WorkerWindows::default() };
        let sum = StepWindows::of_workers("totals", vec![report(ends, 1_000), report(even, 30)]).unwrap();
        let rows: Vec<_> = sum.open.iter().map(|open| (open.end.millis(), open.rows)).collect();
        let expected: Vec<_> = (0..MOST_WINDOWS as i64).map(|end| (end, 1 + u64::from(end % 2 == 0))).collect();
        assert_eq!((rows, sum.more), (expected, 1_000 - MOST_WINDOWS as u64));
    }

    #[test]
    fn a_window_is_due_when_the_watermark_is_past_its_end_and_the_lateness() {
        let mut windows = vec![window(100, 1), window(400, 1)];
        windows.push(WindowRows { end: EventTime::MAX, ..windows[0] });
        let report = WorkerWindows { first: windows, open: 3, ..WorkerWindows::default() };
        let of_process = StepWindows::of_workers("totals", vec![report]).unwrap();
        let due = |watermark| {
            let due = windows_of_job([&of_process].into_iter(), |_| (watermark, Span::saturating_from_millis(50)));
            let due = due[0].open.iter().map(|open| (open.closes_at.map(EventTime::millis), open.missing_ms));
            due.collect::<Vec<_>>()
        };
        assert_eq!(due(at(120)), [(Some(150), Some(30)), (Some(450), Some(330)), (None, None)]);
        assert_eq!(due(EventTime::MIN), [(Some(150), None), (Some(450), None), (None, None)]);
    }
}
