//! Positions in a topic: where reading starts and stops, and what follows when records are gone.
//!
//! * A **start** is resolved to an offset when a job first starts, and journalled as that. It is never resolved again
//!   for a partition that a state knows.
//! * A **stop** is the first message whose timestamp is at or after a time. It is found by reading, so it depends on
//!   nothing but the messages.
//! * A **gap** is a range of offsets that were still to be read when the brokers removed their records.
//!
//! Invariant: no position depends on a clock.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::broker_errors::{error_text, is_transient, is_unknown};
use super::client::TopicConfig;
use super::consumer::OFFSETS_TIMEOUT;
use super::statistics::ConsumerEvents;
use crate::error::{Error, ErrorKind, Result};
use crate::time::EventTime;

/// Start of reading in the partitions that exist when a job first starts. Partitions that are added to the topic later
/// are read from their first record.
///
/// Its text is `earliest`, `latest`, a time (RFC 3339, or milliseconds since 1970), or offsets: `0:1200,1:340`.
///
/// ```
/// use tidegate::kafka::StartOffset;
///
/// let start: StartOffset = "2026-03-01T00:00:00Z".parse()?;
/// assert_eq!("0:1200, 1:340".parse(), Ok(StartOffset::offsets([(0, 1200), (1, 340)])));
/// # Ok::<(), String>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum StartOffset {
    /// The first record that the topic still has.
    #[default]
    Earliest,
    /// After the last committed record.
    Latest,
    /// The first record of each partition whose message timestamp is at or after this time, by the brokers' index; the
    /// end of a partition that has none. Records after it are read whatever their timestamps.
    Timestamp(EventTime),
    /// These offsets, by partition. Other partitions are read from their first record. The job fails if an offset is not
    /// between the first record and the end of its partition, or if there is no such partition.
    Offsets(BTreeMap<u32, u64>),
}

impl StartOffset {
    /// Returns the start at the first record whose message timestamp is at or after `time`.
    pub fn at(time: impl Into<EventTime>) -> Self {
        StartOffset::Timestamp(time.into())
    }

    /// Returns the start at these offsets, each with its partition.
    pub fn offsets(offsets: impl IntoIterator<Item = (u32, u64)>) -> Self {
        StartOffset::Offsets(offsets.into_iter().collect())
    }
}

impl FromStr for StartOffset {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text.trim() {
            "earliest" => return Ok(StartOffset::Earliest),
            "latest" => return Ok(StartOffset::Latest),
            _ => {}
        }
        let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let pairs: Option<Vec<(&str, &str)>> = text.split(',').map(|pair| pair.trim().split_once(':')).collect();
        let pairs = pairs.filter(|pairs| pairs.iter().all(|(left, right)| is_number(left) && is_number(right)));
        let Some(pairs) = pairs else {
            let time = text.trim().parse().map_err(|why| {
                format!("it is none of `earliest`, `latest`, a time, or offsets such as `0:1200,1:340`; {why}")
            });
            return time.map(StartOffset::Timestamp);
        };
        let mut offsets = BTreeMap::new();
        for (partition, offset) in pairs {
            let number = partition.parse().map_err(|_| format!("{partition} is no partition"))?;
            // The client library's offsets are signed.
            let offset: i64 = offset.parse().map_err(|_| format!("{offset} is no offset"))?;
            if offsets.insert(number, offset.unsigned_abs()).is_some() {
                return Err(format!("partition {partition} is named twice"));
            }
        }
        Ok(StartOffset::Offsets(offsets))
    }
}

/// Reaction to records that the brokers have removed before they were read: by retention, or on request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Gap {
    /// The job fails, and names the records.
    #[default]
    Fail,
    /// Reading goes on after them. They are counted as expired, and named once in the log.
    Skip,
}

impl FromStr for Gap {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text {
            "fail" => Ok(Gap::Fail),
            "skip" => Ok(Gap::Skip),
            _ => Err(String::from("it is neither `fail` nor `skip`")),
        }
    }
}

/// Options for reading a topic.
#[derive(Clone, Debug, Default)]
pub(super) struct ReadOptions {
    pub(super) start: StartOffset,
    /// Time at whose first message each partition ends.
    pub(super) stop_at: Option<EventTime>,
    pub(super) stops_at_end: bool,
    pub(super) compacted: bool,
    pub(super) gap: Gap,
}

/// `true` if a message with this timestamp is the first that is not read.
pub(super) fn stops_at(stop_at: Option<EventTime>, timestamp: Option<i64>) -> bool {
    stop_at.zip(timestamp).is_some_and(|(stop_at, timestamp)| timestamp >= stop_at.millis())
}

/// Returns the offset of each partition's first message with a timestamp at or after `time`; a partition that has none
/// is left out.
///
/// # Errors
/// Fails if the brokers refuse, or do not answer within [`OFFSETS_TIMEOUT`].
pub(super) fn offsets_at(
    consumer: &BaseConsumer<ConsumerEvents>,
    topic_config: &TopicConfig,
    partitions: &[u32],
    time: EventTime,
) -> Result<BTreeMap<u32, u64>> {
    if partitions.is_empty() {
        return Ok(BTreeMap::new());
    }
    let begun = Instant::now();
    loop {
        let mut asked = TopicPartitionList::new();
        for id in partitions {
            // Negative numbers have another meaning here.
            let time = Offset::Offset(time.millis().max(0));
            let added = asked.add_partition_offset(&topic_config.topic, *id as i32, time);
            added.map_err(|error| super::consumer::unreadable(topic_config, error))?;
        }
        let answer = consumer.offsets_for_times(asked, Duration::from_secs(3));
        let answer = answer.and_then(|found| {
            found.elements().iter().try_for_each(rdkafka::topic_partition_list::TopicPartitionListElem::error)?;
            Ok(found)
        });
        match answer {
            Ok(found) => {
                let offset =
                    |offset| if let Offset::Offset(offset) = offset { u64::try_from(offset).ok() } else { None };
                let found = found
                    .elements()
                    .into_iter()
                    .filter_map(|found| Some((u32::try_from(found.partition()).ok()?, offset(found.offset())?)));
                return Ok(found.collect());
            }
            Err(error) => {
                let may_pass = error.rdkafka_error_code().is_some_and(|code| is_transient(code) || is_unknown(code));
                if !may_pass || begun.elapsed() > OFFSETS_TIMEOUT {
                    let failed = Error::of(ErrorKind::SourceUnreachable, "cannot ask for the offsets at a time");
                    let failed = failed.at(topic_config.describe()).because(error_text(&error)).caused_by(error);
                    return Err(failed.help("check --kafka-config, and the brokers"));
                }
                (0..100).for_each(|_| ConsumerEvents::serve_event(consumer));
                std::thread::sleep(Duration::from_millis(100));
            }
        }
    }
}

/// Fails if reading cannot start at an offset that the user has named. `low` and `end` are the first offset of the
/// partition, and its end.
pub(super) fn check_named_offset(
    topic_config: &TopicConfig,
    partition: u32,
    offset: u64,
    (low, end): (u64, u64),
) -> Result<()> {
    if (low..=end).contains(&offset) {
        return Ok(());
    }
    let place = format!("{}, partition {partition}", topic_config.describe());
    let because = if offset < low {
        format!("its first record that is still there is at offset {low}")
    } else {
        format!("it ends at offset {end}")
    };
    let error = Error::usage(format!("reading cannot start at offset {offset}")).at(place);
    Err(error.because(because).help("name an offset between the two in --from, or `StartOffset::Offsets`"))
}

/// Returns the error for a partition that the user has named as a start, and that does not exist.
pub(super) fn no_such_partition(topic_config: &TopicConfig, partition: u32) -> Error {
    let error = Error::usage(format!("there is no partition {partition} to start in")).at(topic_config.describe());
    error.help("name partitions of the topic in --from, or `StartOffset::Offsets`")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_is_read_from_text() {
        for (text, expected) in [
            ("earliest", Some(StartOffset::Earliest)),
            (" latest", Some(StartOffset::Latest)),
            ("0:5", Some(StartOffset::offsets([(0, 5)]))),
            ("3:0, 1:9223372036854775807", Some(StartOffset::offsets([(1, u64::MAX / 2), (3, 0)]))),
            ("1767323045678", Some(StartOffset::at(EventTime::from_millis(1_767_323_045_678)))),
            ("2026-01-02T03:04:05.678Z", Some(StartOffset::at(EventTime::from_millis(1_767_323_045_678)))),
            ("0:5,0:6", None),
            ("0:9223372036854775808", None),
            ("4294967296:1", None),
            ("0:-1", None),
            ("0:5,", None),
            ("now", None),
            ("", None),
        ] {
            assert_eq!(text.parse().ok(), expected, "{text:?}");
        }
    }

    #[test]
    fn a_message_without_a_timestamp_is_no_stop() {
        let stop_at = Some(EventTime::from_millis(5));
        let stops = [None, Some(4), Some(5), Some(6)].map(|timestamp| stops_at(stop_at, timestamp));
        assert_eq!(stops, [false, false, true, true]);
        assert!(!stops_at(None, Some(i64::MAX)));
    }
}
