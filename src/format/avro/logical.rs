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

/// Returns the integer of a decimal that is written as a text.
///
/// # Errors
/// Fails if it is no decimal, or has digits that the precision or the scale do not allow.
pub(super) fn unscaled_of(text: &str, precision: u64, scale: u32) -> Result<i128, String> {
    let (negative, digits) = text.strip_prefix('-').map_or((false, text), |digits| (true, digits));
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let is_number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !is_number(whole) || !is_number(fraction) {
        return Err(format!("`{text}` is no decimal"));
    }
    let kept = fraction.trim_end_matches('0');
    let refused = || format!("`{text}` has more digits than a decimal({precision}, {scale})");
    let missing = (scale as usize).checked_sub(kept.len()).ok_or_else(refused)?;
    let all = format!("{whole}{kept}{}", "0".repeat(missing));
    let all = all.trim_start_matches('0');
    if all.len() as u64 > precision {
        return Err(refused());
    }
    let value: i128 = if all.is_empty() { 0 } else { all.parse().map_err(|_| refused())? };
    Ok(if negative { -value } else { value })
}

/// Writes the integer of a decimal in as few bytes as it needs, or in as many as the size says; `None` if it does not
/// fit.
pub(super) fn unscaled_bytes(value: i128, size: Option<usize>) -> Option<Vec<u8>> {
    let (wide, sign) = (value.to_be_bytes(), if value < 0 { 0xff } else { 0 });
    let is_spare = |at: &usize| wide[*at] == sign && (wide[*at + 1] ^ sign) & 0x80 == 0;
    let short = &wide[(0..15).take_while(is_spare).count()..];
    match size {
        None => Some(short.to_vec()),
        Some(size) => {
            let missing = size.checked_sub(short.len())?;
            Some([&vec![sign; missing], short].concat())
        }
    }
}

/// Returns the days of a date that is written as a text; `None` if it is none.
pub(super) fn days_of(text: &str) -> Option<i32> {
    let date: Date = text.parse().ok()?;
    Date::constant(1970, 1, 1).until(date).ok().map(|span| span.get_days())
}

/// Returns a time in its unit that is written as a text; `None` if it is none, or finer than the unit.
pub(super) fn timestamp_of(unit: TimeUnit, text: &str, is_local: bool) -> Option<i64> {
    let since = if is_local {
        text.parse::<DateTime>().ok()?.duration_since(DateTime::constant(1970, 1, 1, 0, 0, 0, 0))
    } else {
        text.parse::<Timestamp>().ok()?.as_duration()
    };
    in_units(unit, since)
}

/// Returns a time of a day in its unit that is written as a text; `None` if it is none, or finer than the unit.
pub(super) fn time_of_day_of(unit: TimeUnit, text: &str) -> Option<i64> {
    in_units(unit, text.parse::<Time>().ok()?.duration_since(Time::midnight()))
}

fn in_units(unit: TimeUnit, since: SignedDuration) -> Option<i64> {
    let nanos_per_unit = i128::from(1_000_000_000 / unit.per_second());
    let nanos = since.as_nanos();
    (nanos % nanos_per_unit == 0).then_some(nanos / nanos_per_unit).and_then(|time| i64::try_from(time).ok())
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
    fn decimals_and_times_are_read_as_they_are_written() {
        let mut rng = fastrand::Rng::with_seed(5);
        for _ in 0..5_000 {
            let value = rng.i128(..) >> rng.u32(0..127);
            let bytes = unscaled_bytes(value, None).unwrap();
            assert_eq!(unscaled(&bytes), Some(value), "{bytes:?}");
            assert!(bytes.len() == 1 || unscaled(&bytes[1..]) != Some(value), "{value} is not in its shortest form");
            assert_eq!(unscaled(&unscaled_bytes(value, Some(20)).unwrap()), Some(value));
            assert_eq!(unscaled_bytes(value, Some(bytes.len())), Some(bytes));
            let scale = rng.u32(0..=38);
            assert_eq!(unscaled_of(&decimal_text(value, scale), 39, scale), Ok(value));
            let time = rng.i64(-60_000_000_000_000_000..250_000_000_000_000_000);
            for is_local in [false, true] {
                let text = timestamp_text(TimeUnit::Micros, time, is_local).unwrap();
                assert_eq!(timestamp_of(TimeUnit::Micros, &text, is_local), Some(time), "{text}");
            }
            let days = rng.i32(-700_000..2_900_000);
            assert_eq!(days_of(&date_text(days).unwrap()), Some(days));
            let time = rng.i64(0..86_400_000);
            assert_eq!(time_of_day_of(TimeUnit::Millis, &time_text(TimeUnit::Millis, time).unwrap()), Some(time));
        }
        assert_eq!(unscaled_bytes(128, Some(1)), None);
        assert_eq!(unscaled_of("12.340", 4, 2), Ok(1234));
        for (text, why) in [
            ("12.345", "has more digits"),
            ("123.4", "has more digits"),
            ("", "is no decimal"),
            ("-", "is no decimal"),
            ("1e3", "is no decimal"),
            (".5", "is no decimal"),
        ] {
            assert!(unscaled_of(text, 4, 2).unwrap_err().contains(why), "{text}");
        }
        assert_eq!(timestamp_of(TimeUnit::Millis, "2026-01-02T03:04:05.6789Z", false), None);
        assert_eq!(timestamp_of(TimeUnit::Millis, "2026-01-02T04:04:05.678+01:00", false), Some(1_767_323_045_678));
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
