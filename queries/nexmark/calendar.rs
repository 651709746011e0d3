//! Days and minutes of event times, as texts.

use tidegate::EventTime;

/// Returns the day in UTC, such as `2015-07-15`.
pub(crate) fn day(time: EventTime) -> String {
    time.to_string().chars().take(10).collect()
}

/// Returns the minute of the day in UTC, such as `18:30`.
pub(crate) fn minute(time: EventTime) -> String {
    time.to_string().chars().skip(11).take(5).collect()
}
