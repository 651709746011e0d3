//! Event times as text in human-readable formats, those before and after all events too.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::time::EventTime;

pub(super) fn serialize<S: Serializer>(time: &EventTime, serializer: S) -> Result<S::Ok, S::Error> {
    if serializer.is_human_readable() { serializer.collect_str(time) } else { time.serialize(serializer) }
}

pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<EventTime, D::Error> {
    if !deserializer.is_human_readable() {
        return EventTime::deserialize(deserializer);
    }
    let text = String::deserialize(deserializer)?;
    let extreme = [EventTime::MIN, EventTime::MAX].into_iter().find(|extreme| extreme.to_string() == text);
    extreme.map_or_else(|| text.parse().map_err(D::Error::custom), Ok)
}
