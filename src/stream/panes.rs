//! Assignment of event times to windows and panes.
//!
//! * [`WindowAssigner`]: the windows of a step, identified by their ends: no two windows of a step end at the same
//!   time.
//! * A **pane** ([`Pane`]) is a range of windows, from the first to the last that a record counts in. Records of one
//!   pane are aggregated once, however many windows it belongs to; a window's result is the sum of the panes whose
//!   ranges include it. So a sliding window costs what its panes cost, whatever the overlap.
//!
//! A tumbling window has one pane. A sliding window is a sum of panes: a pane ends where a window begins or ends, and
//! its range is all windows that cover it. A cumulative window is the sum of its own step and the steps before it in
//! the same cycle. A record that is late for the first windows of its range, but not for all, goes into a pane whose
//! range begins at the first window for which it is on time: the windows before do not include it.
//!
//! Windows depend on nothing but their definition: days and months of a time zone come from the time zone database
//! that is compiled in, so two machines cannot differ.

use std::fmt;
use std::time::Duration;

use jiff::civil::{Date, DateTime};
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::record::Record;
use crate::stream::interval::Interval;
use crate::time::{EventTime, Span};

/// A pane: a range of windows, identified by the ends of the first and the last. Panes are ordered by their last
/// window, then by their first, so that those that expire first come first.
pub(crate) trait Pane: Record + Copy {
    /// `true` if a pane of this type can belong to more than one window.
    const IN_SEVERAL_WINDOWS: bool;

    /// Creates the pane of the windows whose ends are `first` to `last`.
    fn new(first: EventTime, last: EventTime) -> Self;

    /// Returns the end of its first window.
    fn first(self) -> EventTime;

    /// Returns the end of its last window.
    fn last(self) -> EventTime;

    /// Returns the greatest pane whose last window ends at or before `end`.
    fn last_until(end: EventTime) -> Self;

    /// Returns the least pane whose last window ends after `end`, which is less than [`EventTime::MAX`].
    fn first_after(end: EventTime) -> Self;

    /// Returns `true` if the window that ends at `end` is in its range.
    fn has(self, end: EventTime) -> bool {
        self.first() <= end && end <= self.last()
    }
}

/// The pane of a single window.
impl Pane for EventTime {
    const IN_SEVERAL_WINDOWS: bool = false;

    #[inline]
    fn new(_first: EventTime, last: EventTime) -> Self {
        last
    }

    #[inline]
    fn first(self) -> EventTime {
        self
    }

    #[inline]
    fn last(self) -> EventTime {
        self
    }

    fn last_until(end: EventTime) -> Self {
        end
    }

    fn first_after(end: EventTime) -> Self {
        end.next()
    }
}

/// A pane of one or more windows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename = "Range")]
pub(crate) struct PaneRange {
    last: EventTime,
    first: EventTime,
}

#[cfg(feature = "abomonation")]
crate::in_place!(PaneRange { last, first });

impl Pane for PaneRange {
    const IN_SEVERAL_WINDOWS: bool = true;

    #[inline]
    fn new(first: EventTime, last: EventTime) -> Self {
        PaneRange { last, first }
    }

    #[inline]
    fn first(self) -> EventTime {
        self.first
    }

    #[inline]
    fn last(self) -> EventTime {
        self.last
    }

    fn last_until(end: EventTime) -> Self {
        PaneRange { last: end, first: EventTime::MAX }
    }

    fn first_after(end: EventTime) -> Self {
        PaneRange { last: end.next(), first: EventTime::MIN }
    }
}

/// A pane, and the interval of event times whose records all belong to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LocatedPane {
    pub(crate) times: Interval,
    pub(crate) first: EventTime,
    pub(crate) last: EventTime,
}

impl LocatedPane {
    /// A pane that no time belongs to.
    pub(crate) const EMPTY: LocatedPane =
        LocatedPane { times: Interval::NOTHING, first: EventTime::MIN, last: EventTime::MIN };
}

/// A unit of the calendar.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum CalendarUnit {
    Day,
    Month,
}

/// The windows of a step. Sizes, slides, steps and offsets are in milliseconds.
#[derive(Clone)]
pub(crate) enum WindowAssigner {
    /// One window for all time.
    Global,
    /// Windows of length `size` side by side, one of them beginning at `offset`.
    Tumbling { size: i64, offset: i64 },
    /// Windows of length `size`, one beginning every `slide`, one of them at `offset`.
    Sliding { size: i64, slide: i64, offset: i64 },
    /// Cycles of length `size`, one of them beginning at `offset`. The windows of a cycle begin with it, and one ends
    /// after every `step`.
    Cumulative { size: i64, step: i64, offset: i64 },
    /// Days or months of a time zone.
    Calendar { unit: CalendarUnit, zone: TimeZone },
}

impl fmt::Debug for WindowAssigner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WindowAssigner::Global => f.write_str("all time"),
            WindowAssigner::Tumbling { size, offset } => write!(f, "tumbling {size} ms from {offset}"),
            WindowAssigner::Sliding { size, slide, offset } => write!(f, "sliding {size} ms by {slide} from {offset}"),
            WindowAssigner::Cumulative { size, step, offset } => {
                write!(f, "cumulative {size} ms by {step} from {offset}")
            }
            WindowAssigner::Calendar { unit, zone } => {
                write!(f, "each {unit:?} of {}", zone.iana_name().unwrap_or("a zone"))
            }
        }
    }
}

/// Returns the greatest `offset` + n·`step` that is not after `time`. Steps are below 2^62 and event times within the
/// years that events may have, so a result that saturates lies beyond every event time.
fn at_or_before(time: i64, step: i64, offset: i64) -> i64 {
    time.saturating_sub(time.saturating_sub(offset).rem_euclid(step))
}

impl WindowAssigner {
    /// Returns the pane of a time, before lateness is taken into account.
    pub(crate) fn find(&self, time: EventTime) -> LocatedPane {
        let (at, millis) = (time.millis(), EventTime::from_millis);
        let one =
            |start: EventTime, end: EventTime| LocatedPane { times: Interval { start, end }, first: end, last: end };
        match self {
            WindowAssigner::Global => {
                let times = Interval { start: EventTime::MIN, end: EventTime::MAX };
                LocatedPane { times, first: EventTime::MAX, last: EventTime::MAX }
            }
            WindowAssigner::Tumbling { size, offset } => {
                let start = at_or_before(at, *size, *offset);
                one(millis(start), millis(start.saturating_add(*size)))
            }
            WindowAssigner::Sliding { size, slide, offset } => {
                // `begun` is the start of the last window that has begun, `ended` the end of the last that has ended.
                let begun = at_or_before(at, *slide, *offset);
                let ended = at_or_before(at, *slide, offset.saturating_add(*size));
                let (next_begin, first) = (begun.saturating_add(*slide), ended.saturating_add(*slide));
                let times = Interval { start: millis(begun.max(ended)), end: millis(next_begin.min(first)) };
                LocatedPane { times, first: millis(first), last: millis(begun.saturating_add(*size)) }
            }
            WindowAssigner::Cumulative { size, step, offset } => {
                let cycle = at_or_before(at, *size, *offset);
                let start = at_or_before(at, *step, cycle);
                let first = millis(start.saturating_add(*step));
                let times = Interval { start: millis(start), end: first };
                LocatedPane { times, first, last: millis(cycle.saturating_add(*size)) }
            }
            WindowAssigner::Calendar { unit, zone } => {
                let Interval { start, end } = calendar(*unit, zone, time);
                one(start, end)
            }
        }
    }

    /// `true` if a time can be in more than one window.
    pub(crate) fn overlap(&self) -> bool {
        matches!(self, WindowAssigner::Sliding { .. } | WindowAssigner::Cumulative { .. })
    }

    /// Returns the end of the first window that ends after `time`, for windows that overlap.
    pub(crate) fn end_after(&self, time: EventTime) -> EventTime {
        let after = |step: i64, offset: i64| {
            EventTime::from_millis(at_or_before(time.millis(), step, offset).saturating_add(step))
        };
        match self {
            WindowAssigner::Sliding { size, slide, offset } => after(*slide, offset.saturating_add(*size)),
            WindowAssigner::Cumulative { step, offset, .. } => after(*step, *offset),
            _ => self.find(time).last,
        }
    }

    /// Returns a time after which no pane has its last window that is also in the window that ends at `end`.
    pub(crate) fn last_of_panes(&self, end: EventTime) -> EventTime {
        match self {
            // Their records happen before the end, and the last window of a record begins before it.
            WindowAssigner::Sliding { size, .. } => end.plus(Span::saturating_from_millis(*size)),
            WindowAssigner::Cumulative { size, .. } => {
                self.interval(end).start.plus(Span::saturating_from_millis(*size))
            }
            _ => end,
        }
    }

    /// Returns the ends of a pane's windows that are after `after` and not after `through`, in order.
    pub(crate) fn ends<T: Pane>(
        &self,
        pane: T,
        after: EventTime,
        through: EventTime,
    ) -> impl Iterator<Item = EventTime> + use<'_, T> {
        let first = if pane.first() > after { pane.first() } else { self.end_after(after) };
        let through = through.min(pane.last());
        let mut next = (pane.last() > after && first <= through).then_some(first);
        std::iter::from_fn(move || {
            let end = next?;
            next = if end < through { Some(self.end_after(end)).filter(|end| *end <= through) } else { None };
            Some(end)
        })
    }

    /// Returns the number of windows from the one that ends at `first` to the one that ends at `last`.
    pub(crate) fn count(&self, first: EventTime, last: EventTime) -> u64 {
        let step = match self {
            WindowAssigner::Sliding { slide, .. } => *slide,
            WindowAssigner::Cumulative { step, .. } => *step,
            // A pane has one window.
            _ => return 1,
        };
        last.millis().saturating_sub(first.millis()).unsigned_abs() / step.unsigned_abs() + 1
    }

    /// Returns the window that ends at `end`.
    pub(crate) fn interval(&self, end: EventTime) -> Interval {
        let last_moment = EventTime::from_millis(end.millis().saturating_sub(1));
        let start = match self {
            WindowAssigner::Global => EventTime::MIN,
            WindowAssigner::Tumbling { size, .. } | WindowAssigner::Sliding { size, .. } => {
                end.minus(Span::saturating_from_millis(*size))
            }
            WindowAssigner::Cumulative { size, offset, .. } => {
                EventTime::from_millis(at_or_before(last_moment.millis(), *size, *offset))
            }
            WindowAssigner::Calendar { unit, zone } => calendar(*unit, zone, last_moment).start,
        };
        Interval { start, end }
    }
}

/// Returns the day or month of a time zone that contains a time. A day lasts from its first moment to the first
/// moment of the next date: where clocks are put forward or back it is shorter or longer than 24 hours. At the ends
/// of the years that the calendar knows it is cut off.
fn calendar(unit: CalendarUnit, zone: &TimeZone, time: EventTime) -> Interval {
    let moment = |date: DateTime, or: EventTime| {
        let found = zone.to_ambiguous_timestamp(date).compatible();
        found.map_or(or, |found| EventTime::from_millis(found.as_millisecond()))
    };
    let first_of = |date: Date| match unit {
        CalendarUnit::Day => date,
        CalendarUnit::Month => date.first_of_month(),
    };
    let step = match unit {
        CalendarUnit::Day => 1.day(),
        CalendarUnit::Month => 1.month(),
    };
    let known = time.max(EventTime::EARLIEST).min(EventTime::LATEST);
    let Ok(timestamp) = Timestamp::from_millisecond(known.millis()) else {
        return Interval { start: EventTime::MIN, end: EventTime::MAX };
    };
    let mut date = first_of(zone.to_datetime(timestamp).date());
    let midnight = |date: Date| date.to_datetime(jiff::civil::Time::midnight());
    let mut start = moment(midnight(date), EventTime::EARLIEST);
    // Where clocks are put back across midnight, a date's first moment may come after a moment of that date.
    while start > time {
        let Ok(before) = date.checked_sub(step) else { break };
        date = before;
        start = moment(midnight(date), EventTime::EARLIEST);
    }
    let end_of = |date: Date| {
        let next = date.checked_add(step);
        next.map_or(EventTime::MAX, |next| moment(midnight(next), EventTime::MAX))
    };
    let mut end = end_of(date);
    // A date that a zone has skipped has no day.
    while end <= time {
        let Ok(next) = date.checked_add(step) else { break };
        (date, start) = (next, end);
        end = end_of(date);
    }
    Interval { start, end }
}

/// The greatest number of windows that a record may be in.
///
/// A record leads to as many rows, all of them at once when a stream ends or its watermark leaps. Of aggregates from
/// which nothing can be removed, each key of a window is also summed over up to this many panes when the window is emitted.
pub(crate) const MAX_WINDOWS_PER_RECORD: i64 = 100_000;

/// Refuses windows of which a record would be in more than [`MAX_WINDOWS_PER_RECORD`].
pub(crate) fn check_overlap(size: i64, slide: i64) -> Result<()> {
    let windows = size / slide + i64::from(size % slide != 0);
    if windows <= MAX_WINDOWS_PER_RECORD {
        return Ok(());
    }
    let written = |millis: i64| humantime::format_duration(Duration::from_millis(millis.unsigned_abs())).to_string();
    let least = size / MAX_WINDOWS_PER_RECORD + i64::from(size % MAX_WINDOWS_PER_RECORD != 0);
    let what = format!("every record would be in {windows} windows of {} by {}", written(size), written(slide));
    let why = format!(
        "each of them emits a row for it, and sums as many panes each time; at most {MAX_WINDOWS_PER_RECORD} are allowed"
    );
    let help = format!("let windows of this size begin at least {} apart, or make them shorter", written(least));
    Err(Error::usage(what).because(why).help(help))
}

/// Converts a duration to milliseconds; fails if it is not a whole number of them, or 2^62 ms or more.
pub(crate) fn whole_millis(what: &str, duration: Duration) -> Result<i64> {
    let millis = i64::try_from(duration.as_millis()).ok().filter(|millis| *millis < 1 << 62);
    millis.filter(|_| duration.subsec_nanos().is_multiple_of(1_000_000)).ok_or_else(|| {
        let written = humantime::format_duration(duration);
        Error::usage(format!("a window's {what} of {written} is not a whole number of milliseconds"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> EventTime {
        EventTime::from_millis(text.parse::<Timestamp>().unwrap().as_millisecond())
    }

    fn calendar(unit: CalendarUnit, zone: &str) -> WindowAssigner {
        WindowAssigner::Calendar { unit, zone: jiff::tz::TimeZoneDatabase::bundled().get(zone).unwrap() }
    }

    fn check(windows: &WindowAssigner, time: &str, start: &str, end: &str) {
        let (interval, found) = (Interval { start: at(start), end: at(end) }, windows.find(at(time)));
        assert_eq!((found.times, found.first, found.last), (interval, at(end), at(end)), "{time} in {windows:?}");
        assert_eq!(windows.interval(at(end)), interval, "{windows:?}");
    }

    /// The expected days are those of the zones' recorded clock changes.
    #[test]
    fn days_and_months_are_those_of_the_place() {
        let berlin = calendar(CalendarUnit::Day, "Europe/Berlin");
        check(&berlin, "2024-03-30T23:00:00Z", "2024-03-30T23:00:00Z", "2024-03-31T22:00:00Z"); // 23 hours.
        check(&berlin, "2024-03-31T21:59:59.999Z", "2024-03-30T23:00:00Z", "2024-03-31T22:00:00Z");
        check(&berlin, "2024-10-27T12:00:00Z", "2024-10-26T22:00:00Z", "2024-10-27T23:00:00Z"); // 25 hours.
        check(&berlin, "2024-01-15T00:00:00Z", "2024-01-14T23:00:00Z", "2024-01-15T23:00:00Z");
        // Midnight does not exist on this day: it begins at one o'clock.
        let sao_paulo = calendar(CalendarUnit::Day, "America/Sao_Paulo");
        check(&sao_paulo, "2018-11-04T12:00:00Z", "2018-11-04T03:00:00Z", "2018-11-05T02:00:00Z");
        // The 30th of December 2011 does not exist.
        let apia = calendar(CalendarUnit::Day, "Pacific/Apia");
        check(&apia, "2011-12-30T09:00:00Z", "2011-12-29T10:00:00Z", "2011-12-30T10:00:00Z");
        check(&apia, "2011-12-30T10:00:00Z", "2011-12-30T10:00:00Z", "2011-12-31T10:00:00Z");
        let month = calendar(CalendarUnit::Month, "Europe/Berlin");
        check(&month, "2024-02-29T12:00:00Z", "2024-01-31T23:00:00Z", "2024-02-29T23:00:00Z");
        check(&month, "2024-03-31T21:59:59.999Z", "2024-02-29T23:00:00Z", "2024-03-31T22:00:00Z");
        let utc = calendar(CalendarUnit::Month, "UTC");
        check(&utc, "1969-12-31T23:59:59.999Z", "1969-12-01T00:00:00Z", "1970-01-01T00:00:00Z");
    }

    /// Days follow each other without gap or overlap, all over the years in which clocks were changed.
    #[test]
    fn days_follow_each_other() {
        for zone in ["Europe/Lisbon", "America/Toronto", "Pacific/Apia", "Asia/Gaza", "Africa/Monrovia", "Asia/Manila"]
        {
            let days = calendar(CalendarUnit::Day, zone);
            let (mut time, last) = (at("1900-01-01T00:00:00Z"), at("2030-01-01T00:00:00Z"));
            let mut count = 0;
            while time < last {
                let found = days.find(time).times;
                assert!(found.start <= time && time < found.end, "{zone}: {found:?} for {time}");
                let before = EventTime::from_millis(found.end.millis() - 1);
                assert_eq!(days.find(before).times, found, "{zone}: {time}");
                assert_eq!(days.find(found.end).times.start, found.end, "{zone}: {time}");
                (time, count) = (found.end, count + 1);
            }
            assert!((47_480..47_490).contains(&count), "{zone} has {count} days");
        }
    }

    /// Compares the panes of overlapping windows with the windows that cover a time, found one by one.
    #[test]
    fn a_slot_has_the_windows_that_cover_its_times() {
        for (size, slide, offset) in [(60, 10, 0), (50, 20, 3), (7, 3, 1), (10, 10, 4), (12, 1, 0)] {
            let windows = WindowAssigner::Sliding { size, slide, offset };
            for time in -200..200 {
                let ends = |time: i64| {
                    let starts = (-300..300).map(|number| number * slide + offset);
                    let covering = starts.filter(move |start| (*start..start + size).contains(&time));
                    covering.map(|start| EventTime::from_millis(start + size)).collect::<Vec<_>>()
                };
                let (found, expected) = (windows.find(EventTime::from_millis(time)), ends(time));
                assert!(expected.iter().all(|end| found.last <= windows.last_of_panes(*end)), "{time} in {windows:?}");
                let pane = PaneRange::new(found.first, found.last);
                let all: Vec<_> = windows.ends(pane, EventTime::MIN, EventTime::MAX).collect();
                assert_eq!(all, expected, "{time} in {windows:?}");
                let some: Vec<_> = windows.ends(pane, expected[0], EventTime::MAX).collect();
                assert_eq!(some, expected[1..], "{time} in {windows:?}");
                let (start, end) = (found.times.start.millis(), found.times.end.millis());
                assert!((start..end).contains(&time) && (start..end).all(|other| ends(other) == expected));
            }
        }
    }
}
