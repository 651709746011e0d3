//! Texts of logical types: decimals, dates, times and UUIDs.

use std::fmt::Write as _;

use jiff::civil::{Date, DateTime, Time};
use jiff::{SignedDuration, Span, Timestamp};

/// Largest scale of a decimal.
pub(super) const LARGEST_SCALE: u32 = 38;

/// Unit of a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TimeUnit {
    Millis,
    Micros,
    Nanos,
}

impl TimeUnit {
    fn duration(self, time: i64) -> SignedDuration {
        match self {
            TimeUnit::Millis => SignedDuration::from_millis(time),
            TimeUnit::Micros => SignedDuration::from_micros(time),
            TimeUnit::Nanos => SignedDuration::from_nanos(time),
        }
    }

    /// Number of units in a second.
    pub(super) fn per_second(self) -> i64 {
        match self {
            TimeUnit::Millis => 1_000,
            TimeUnit::Micros => 1_000_000,
            TimeUnit::Nanos => 1_000_000_000,
        }
    }
}

/// Returns the integer of a decimal's bytes, big-endian in two's complement; `None` if it exceeds an `i128`.
pub(super) fn unscaled(bytes: &[u8]) -> Option<i128> {
    let sign = match bytes.first() {
        Some(first) if first & 0x80 != 0 => 0xff,
        _ => 0,
    };
    let (padding, rest) = bytes.split_at(bytes.len().saturating_sub(16));
    if padding.iter().any(|byte| *byte != sign) {
        return None;
    }
    let mut wide = [sign; 16];
    wide[16 - rest.len()..].copy_from_slice(rest);
    let value = i128::from_be_bytes(wide);
    (padding.is_empty() || (value < 0) == (sign == 0xff)).then_some(value)
}

/// Returns a decimal as a text, with as many digits after the point as its scale has.
pub(super) fn decimal_text(unscaled: i128, scale: u32) -> String {
    let mut digits = unscaled.unsigned_abs().to_string();
    let scale = scale as usize;
    if digits.len() <= scale {
        digits.insert_str(0, &"0".repeat(scale + 1 - digits.len()));
    }
    if scale > 0 {
        digits.insert(digits.len() - scale, '.');
    }
    if unscaled < 0 {
        digits.insert(0, '-');
    }
    digits
}

/// Returns a date as a text; `None` if it is beyond the years -9999 to 9999.
pub(super) fn date_text(days: i32) -> Option<String> {
    let date = Date::constant(1970, 1, 1).checked_add(Span::new().try_days(days).ok()?).ok()?;
    Some(date.to_string())
}

/// Returns a time of a day as a text; `None` if it is longer than a day.
pub(super) fn time_text(unit: TimeUnit, time: i64) -> Option<String> {
    let within_a_day = (0..86_400 * unit.per_second()).contains(&time);
    let time = Time::midnight().checked_add(unit.duration(time)).ok().filter(|_| within_a_day)?;
    Some(time.to_string())
}

/// Returns a time as RFC 3339, or without a time zone if it is local; `None` if it is beyond the years -9999 to 9999.
pub(super) fn timestamp_text(unit: TimeUnit, time: i64, is_local: bool) -> Option<String> {
    let since = unit.duration(time);
    if is_local {
        let origin = DateTime::constant(1970, 1, 1, 0, 0, 0, 0);
        return origin.checked_add(since).ok().map(|time| time.to_string());
    }
    Timestamp::from_duration(since).ok().map(|time| time.to_string())
}

/// Returns a UUID as a text with hyphens.
pub(super) fn uuid_text(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(36);
    for (at, byte) in bytes.iter().enumerate() {
        if [4, 6, 8, 10].contains(&at) {
            text.push('-');
        }
        let _ = write!(text, "{byte:02x}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimals_are_two_complement_bytes_with_a_point() {
        for (bytes, scale, text) in [
            (&b""[..], 2, "0.00"),
            (&[0x7f], 0, "127"),
            (&[0x80], 0, "-128"),
            (&[0xff], 2, "-0.01"),
            (&[0x04, 0xd2], 2, "12.34"),
            (&[0xff, 0xff, 0xfb, 0x2e], 4, "-0.1234"),
            (&[1, 0, 0, 0, 0, 0, 0, 0, 0], 0, "18446744073709551616"),
        ] {
            assert_eq!(decimal_text(unscaled(bytes).unwrap(), scale), text);
        }
        let most = i128::MAX.to_be_bytes();
        assert_eq!(unscaled(&most), Some(i128::MAX));
        assert_eq!(unscaled(&[&[0, 0][..], &most].concat()), Some(i128::MAX));
        assert_eq!(unscaled(&i128::MIN.to_be_bytes()), Some(i128::MIN));
        assert_eq!(unscaled(&[&[0xff][..], &i128::MIN.to_be_bytes()].concat()), Some(i128::MIN));
        assert_eq!(unscaled(&[&[0][..], &i128::MIN.to_be_bytes()].concat()), None);
        assert_eq!(unscaled(&[&[0xff][..], &most].concat()), None);
        assert_eq!(unscaled(&[1; 17]), None);
    }

    #[test]
    fn times_are_texts_where_they_can_be() {
        assert_eq!(date_text(0).as_deref(), Some("1970-01-01"));
        assert_eq!(date_text(-1).as_deref(), Some("1969-12-31"));
        assert_eq!((date_text(i32::MAX), date_text(i32::MIN)), (None, None));
        assert_eq!(time_text(TimeUnit::Millis, 3_661_001).as_deref(), Some("01:01:01.001"));
        assert_eq!((time_text(TimeUnit::Millis, 86_400_000), time_text(TimeUnit::Micros, -1)), (None, None));
        let text = timestamp_text(TimeUnit::Micros, 1_767_323_045_678_901, false);
        assert_eq!(text.as_deref(), Some("2026-01-02T03:04:05.678901Z"));
        assert_eq!(timestamp_text(TimeUnit::Millis, -1, true).as_deref(), Some("1969-12-31T23:59:59.999"));
        for is_local in [false, true] {
            assert_eq!(timestamp_text(TimeUnit::Millis, i64::MAX, is_local), None);
            assert_eq!(timestamp_text(TimeUnit::Micros, i64::MIN, is_local), None);
        }
        let text = uuid_text(&[0x12, 0x34, 0x56, 0x78, 0x9a, 0xbc, 0xde, 0xf0, 1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(text, "12345678-9abc-def0-0102-030405060708");
    }
}
