//! The two times of a job, kept apart by type: [`Epoch`], which orders processing, and [`EventTime`], which is data.
//!
//! * An **epoch** is the timely timestamp: a `u64` that grows strictly over the life of a job. Input has even epochs; a
//!   retraction that an operator makes by itself has the odd epoch that follows.
//! * An **event time** is the time at which a record's event happened: milliseconds since 1970-01-01T00:00:00Z, as an
//!   `i64`.
//! * The **watermark** of a partition or a stream is an event time; [`watermark`] computes both.
//!
//! Invariants: nothing here does I/O or reads a clock; arithmetic on event times saturates at the ends, which stand for
//! "before everything" ([`EventTime::MIN`]) and "after everything" ([`EventTime::MAX`]).

pub mod watermark;

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A processing step of the whole job: the timely timestamp.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Epoch(pub u64);

impl Epoch {
    /// The first even epoch that is after `self` and not before `wall_millis`, a wall-clock time in milliseconds.
    pub fn next_at(self, wall_millis: u64) -> Epoch {
        let after = (self.0 | 1) + 1;
        Epoch(after.max(wall_millis & !1))
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A time at which an event happened, or that such times are compared with: milliseconds since 1970, UTC.
///
/// Serialises as an integer in binary formats, and as RFC 3339 with milliseconds and `Z` in text formats (CSV, JSON).
/// Text formats are read with either an integer or an RFC 3339 text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventTime(i64);

impl EventTime {
    /// A point before every event.
    pub const MIN: EventTime = EventTime(i64::MIN);
    /// A point after every event.
    pub const MAX: EventTime = EventTime(i64::MAX);
    /// 0001-01-01T00:00:00.000Z, the earliest event time that a record may have. RFC 3339 can write one year less, so
    /// both ends of the record's windows can be written too, unless these are longer than a year.
    pub const EARLIEST: EventTime = EventTime(-62_135_596_800_000);
    /// 9998-12-31T23:59:59.999Z, the latest event time that a record may have: one year less than RFC 3339 can write,
    /// likewise.
    pub const LATEST: EventTime = EventTime(253_370_764_799_999);

    /// The time `millis` milliseconds after 1970-01-01T00:00:00Z.
    #[inline]
    pub const fn from_millis(millis: i64) -> Self {
        EventTime(millis)
    }

    /// Serde newtype name in binary formats; tells an event time from a plain integer. The encoding is that of an
    /// `i64`.
    pub(crate) const TYPE: &'static str = "tidegate::EventTime";

    /// Returns the milliseconds since 1970-01-01T00:00:00Z.
    #[inline]
    pub const fn millis(self) -> i64 {
        self.0
    }

    /// `true` if a record may have this time: the years 1 to 9998.
    #[inline]
    pub const fn is_writable(self) -> bool {
        self.0 >= Self::EARLIEST.0 && self.0 <= Self::LATEST.0
    }

    /// The next millisecond, at most [`EventTime::MAX`].
    #[inline]
    pub(crate) const fn next(self) -> Self {
        EventTime(self.0.saturating_add(1))
    }

    /// Adds `span`, up to [`EventTime::MAX`]; `MIN` and `MAX` stay as they are.
    #[inline]
    #[must_use]
    pub const fn plus(self, span: Span) -> Self {
        if self.0 == i64::MIN || self.0 == i64::MAX { self } else { EventTime(self.0.saturating_add(span.0)) }
    }

    /// Subtracts `span`, down to [`EventTime::MIN`]; `MIN` and `MAX` stay as they are.
    #[inline]
    #[must_use]
    pub const fn minus(self, span: Span) -> Self {
        if self.0 == i64::MIN || self.0 == i64::MAX { self } else { EventTime(self.0.saturating_sub(span.0)) }
    }
}

/// Milliseconds since 1970-01-01T00:00:00Z.
impl From<i64> for EventTime {
    fn from(millis: i64) -> EventTime {
        EventTime(millis)
    }
}

/// A length of event time in whole milliseconds, never negative.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Span(i64);

impl Span {
    /// A span of no time.
    pub const ZERO: Span = Span(0);

    /// A span of `millis` milliseconds; `None` if they exceed an `i64`.
    pub fn from_millis(millis: u128) -> Option<Span> {
        i64::try_from(millis).ok().map(Span)
    }

    /// A span of `millis` milliseconds; negative values are clamped to zero.
    pub(crate) const fn saturating_from_millis(millis: i64) -> Span {
        Span(if millis < 0 { 0 } else { millis })
    }

    /// The length in milliseconds.
    #[inline]
    pub const fn millis(self) -> i64 {
        self.0
    }
}

/// Truncates to whole milliseconds; a duration that is too long becomes the longest span.
impl From<Duration> for Span {
    fn from(duration: Duration) -> Span {
        Span::from_millis(duration.as_millis()).unwrap_or(Span(i64::MAX))
    }
}

/// Returns year, month and day of the proleptic Gregorian calendar, for a day counted from 1970-01-01.
///
/// The window that a time ends in may end in any year that milliseconds can count: that is beyond the years of `jiff`.
///
/// Source: Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", `civil_from_days`.
fn date_of_day(day: i64) -> (i64, i64, i64) {
    let shifted = day + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day_of_month = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day_of_month)
}

/// A text of at most 32 bytes, built without an allocation.
struct TimeText {
    bytes: [u8; 32],
    length: usize,
}

impl TimeText {
    fn digits(&mut self, value: i64, count: usize) {
        let mut rest = value.unsigned_abs();
        for at in (self.length..self.length + count).rev() {
            self.bytes[at] = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
        self.length += count;
    }

    fn byte(&mut self, byte: u8) {
        self.bytes[self.length] = byte;
        self.length += 1;
    }

    /// RFC 3339 in the years 0 to 9999; other years, in which only a window of more than a year can end, get a sign and
    /// nine digits, as in ISO 8601.
    fn of(time: EventTime) -> TimeText {
        let mut text = TimeText { bytes: [0; 32], length: 0 };
        let (day, in_day) = (time.0.div_euclid(86_400_000), time.0.rem_euclid(86_400_000));
        let (year, month, day) = date_of_day(day);
        if (0..=9999).contains(&year) {
            text.digits(year, 4);
        } else {
            text.byte(if year < 0 { b'-' } else { b'+' });
            text.digits(year, 9);
        }
        for (lead, value, count) in [
            (b'-', month, 2),
            (b'-', day, 2),
            (b'T', in_day / 3_600_000, 2),
            (b':', in_day / 60_000 % 60, 2),
            (b':', in_day / 1_000 % 60, 2),
            (b'.', in_day % 1_000, 3),
        ] {
            text.byte(lead);
            text.digits(value, count);
        }
        text.byte(b'Z');
        text
    }

    fn as_str(&self) -> &str {
        std::str::from_utf8(&self.bytes[..self.length]).unwrap_or_default()
    }
}

impl fmt::Display for EventTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            EventTime::MIN => f.pad("before all events"),
            EventTime::MAX => f.pad("after all events"),
            time => f.pad(TimeText::of(time).as_str()),
        }
    }
}

impl Serialize for EventTime {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.serialize_str(TimeText::of(*self).as_str())
        } else {
            serializer.serialize_newtype_struct(Self::TYPE, &self.0)
        }
    }
}

impl<'de> Deserialize<'de> for EventTime {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            deserializer.deserialize_any(EventTimeVisitor)
        } else {
            deserializer.deserialize_newtype_struct(Self::TYPE, EventTimeVisitor)
        }
    }
}

struct EventTimeVisitor;

impl<'de> de::Visitor<'de> for EventTimeVisitor {
    type Value = EventTime;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("milliseconds since 1970 or an RFC 3339 time")
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, deserializer: D) -> Result<EventTime, D::Error> {
        i64::deserialize(deserializer).map(EventTime)
    }

    fn visit_i64<E: de::Error>(self, millis: i64) -> Result<EventTime, E> {
        Ok(EventTime(millis))
    }

    fn visit_u64<E: de::Error>(self, millis: u64) -> Result<EventTime, E> {
        i64::try_from(millis).map(EventTime).map_err(|_| E::custom("more milliseconds than an i64 holds"))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<EventTime, E> {
        text.parse().map_err(E::custom)
    }
}

/// Reads the format of [`EventTime`]'s `Display` for the years 0 to 9999, any RFC 3339 time in them, or milliseconds.
impl FromStr for EventTime {
    type Err = String;

    fn from_str(text: &str) -> Result<EventTime, String> {
        if let Ok(millis) = text.parse::<i64>() {
            return Ok(EventTime(millis));
        }
        let refused = |why: &dyn fmt::Display| format!("`{text}` is not an RFC 3339 time: {why}");
        // A text in UTC is read as a civil time: the library's instants end some hours before the year 9999 does.
        if let Some(civil) = text.strip_suffix('Z').filter(|civil| civil.len() >= 19) {
            let time: jiff::civil::DateTime = civil.parse().map_err(|why| refused(&why))?;
            let since = time.duration_since(jiff::civil::datetime(1970, 1, 1, 0, 0, 0, 0));
            return i64::try_from(since.as_millis()).map(EventTime).map_err(|why| refused(&why));
        }
        let instant: jiff::Timestamp = text.parse().map_err(|why| refused(&why))?;
        Ok(EventTime(instant.as_millisecond()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_print_as_a_well_known_library_prints_them() {
        let origin = jiff::civil::datetime(1970, 1, 1, 0, 0, 0, 0);
        let mut state = 7u64;
        let range = (EventTime::LATEST.0 - EventTime::EARLIEST.0) as u64;
        let random = (0..20_000).map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            EventTime::EARLIEST.0 + ((state >> 8) % range) as i64
        });
        for millis in random.chain([0, -1, 1, EventTime::EARLIEST.0, EventTime::LATEST.0, 951_782_400_000]) {
            let expected = origin.checked_add(jiff::SignedDuration::from_millis(millis)).unwrap();
            assert_eq!(EventTime(millis).to_string(), format!("{}Z", expected.strftime("%Y-%m-%dT%H:%M:%S%.3f")));
        }
    }

    #[test]
    fn a_window_may_end_in_the_year_10000() {
        assert_eq!(EventTime(253_402_300_800_000).to_string(), "+000010000-01-01T00:00:00.000Z");
    }

    #[test]
    fn times_are_read_from_text_and_from_milliseconds() {
        assert_eq!("2026-01-02T03:04:05.678Z".parse(), Ok(EventTime(1_767_323_045_678)));
        assert_eq!("1767323045678".parse(), Ok(EventTime(1_767_323_045_678)));
        assert_eq!("2026-01-02T04:04:05.678+01:00".parse(), Ok(EventTime(1_767_323_045_678)));
        assert_eq!(EventTime::LATEST.to_string().parse(), Ok(EventTime::LATEST));
        assert!("yesterday".parse::<EventTime>().unwrap_err().contains("`yesterday`"));
    }

    #[test]
    fn the_ends_of_time_stay_where_they_are() {
        let span = Span::from(Duration::from_secs(1));
        assert_eq!(EventTime::MIN.plus(span), EventTime::MIN);
        assert_eq!(EventTime::MAX.minus(span), EventTime::MAX);
        assert_eq!(EventTime(i64::MAX - 1).plus(span), EventTime::MAX);
    }

    #[test]
    fn epochs_are_even_and_grow_whatever_the_clock_says() {
        assert_eq!(Epoch(10).next_at(0), Epoch(12));
        assert_eq!(Epoch(11).next_at(0), Epoch(12));
        assert_eq!(Epoch(10).next_at(1_001), Epoch(1_000));
    }
}
