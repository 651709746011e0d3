//! Event times from other kinds of time: the system's clock and `jiff`.

use std::time::{Duration, SystemTime};

use crate::time::EventTime;

/// The rest of a millisecond is cut off, towards the past; times that milliseconds cannot count are the ends.
impl From<SystemTime> for EventTime {
    fn from(time: SystemTime) -> EventTime {
        let millis = |length: Duration| i64::try_from(length.as_millis()).unwrap_or(i64::MAX);
        match time.duration_since(SystemTime::UNIX_EPOCH) {
            Ok(after) => EventTime::from_millis(millis(after)),
            Err(before) => {
                let before = before.duration();
                let is_between = before.subsec_nanos() % 1_000_000 != 0;
                EventTime::from_millis(millis(before).saturating_neg().saturating_sub(i64::from(is_between)))
            }
        }
    }
}

/// The rest of a millisecond is cut off, towards the past.
impl From<jiff::Timestamp> for EventTime {
    fn from(time: jiff::Timestamp) -> EventTime {
        // A timestamp counts no more nanoseconds than its range of years has, which is that of RFC 3339.
        EventTime::from_millis(i64::try_from(time.as_nanosecond().div_euclid(1_000_000)).unwrap_or(i64::MAX))
    }
}

/// Fails outside the years that a timestamp has, -9999 to 9999.
impl TryFrom<EventTime> for jiff::Timestamp {
    type Error = jiff::Error;

    fn try_from(time: EventTime) -> Result<Self, Self::Error> {
        jiff::Timestamp::from_millisecond(time.millis())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_kinds_of_time_are_cut_to_milliseconds_towards_the_past() {
        let epoch = SystemTime::UNIX_EPOCH;
        let micros = Duration::from_micros;
        assert_eq!(EventTime::from(epoch + micros(1_999)), EventTime::from_millis(1));
        assert_eq!(EventTime::from(epoch - micros(1)), EventTime::from_millis(-1));
        assert_eq!(EventTime::from(epoch - micros(2_000)), EventTime::from_millis(-2));
        for micros in [1_999, -1, -2_000, 1_700_000_000_000_001] {
            let stamp = jiff::Timestamp::from_microsecond(micros).unwrap();
            assert_eq!(EventTime::from(stamp), EventTime::from_millis(micros.div_euclid(1_000)));
        }
        let time = EventTime::from(-86_400_000);
        assert_eq!(jiff::Timestamp::try_from(time).unwrap().to_string(), "1969-12-31T00:00:00Z");
        assert!(jiff::Timestamp::try_from(EventTime::MAX).is_err());
        assert_eq!(EventTime::from(jiff::Timestamp::MAX), jiff::Timestamp::MAX.as_millisecond().into());
    }
}
