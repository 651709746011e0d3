//! Checks a topic for data beyond an ended state, which has taken all up to the ends that were fixed and is never
//! continued.
//!
//! Offsets do not show it, as only transaction markers may follow an end: a partition has grown if a record arrives
//! from after its end, or if retention has removed what was after it. A partition that stops at a time has grown if its
//! next message is of before that time. The client is not kept open.

use std::collections::{BTreeMap, BTreeSet};

use rdkafka::consumer::Consumer;

use super::client::TopicConfig;
use super::consumer::{self, connect, offsets};
use super::identity::{check_end, has_fingerprint, missing_partition, offset_and_timestamp, wrong_record};
use super::peek::{ReadDecision, read_each};
use super::positions::stops_at;
use super::prefetch::PrefetchLimits;
use super::statistics::ConsumerEvents;
use super::topic_lookup::find_topics;
use super::topic_pattern::{TopicPattern, gone};
use crate::durable::journal::{ContentCheck, PartitionProgress};
use crate::error::Result;
use crate::time::EventTime;

/// A partition whose records are read.
struct PartitionProbe {
    /// Offset at which the records begin that the state did not take.
    end: u64,
    /// Fingerprint to be verified by the first message; `None` once it is verified, or if there is none.
    check: Option<ContentCheck>,
}

/// Describes the data that has arrived since: see [`crate::source::Source::has_new_data`].
pub(super) fn grown_since(
    topic_config: &TopicConfig,
    job: &str,
    bounds: &[PartitionProgress],
    stop_at: Option<EventTime>,
) -> Result<Option<String>> {
    let (consumer, ids) = connect(topic_config, job)?;
    if let Some(bound) = bounds.iter().find(|bound| !ids.contains(&bound.partition)) {
        return Err(missing_partition(topic_config, bound.partition));
    }
    let (mut asked, mut from) = (BTreeMap::new(), Vec::new());
    for id in ids {
        let (low, end_now) = offsets(&consumer, topic_config, id)?;
        let bound = bounds.iter().find(|bound| bound.partition == id);
        let end = bound.map_or(low, |bound| bound.end_offset.unwrap_or(bound.next_offset));
        bound.map_or(Ok(()), |bound| check_end(topic_config, bound, end_now))?;
        if low > end && stop_at.is_none() {
            return Ok(Some(new_data_in(topic_config, id, end)));
        }
        let check = bound.and_then(|bound| bound.check).filter(|check| (low..end).contains(&check.at));
        if check.is_some() || end_now > end {
            from.push((id, check.map_or(end.max(low), |check| check.at)));
            asked.insert(id, PartitionProbe { end, check });
        }
    }
    read_each(&consumer, topic_config, &from, |id, message| {
        let Some(PartitionProbe { end, check }) = asked.get_mut(&id) else { return Ok(ReadDecision::Skip) };
        if let Some(expected) = check.take()
            && !message.is_some_and(|message| has_fingerprint(message, expected))
        {
            return Err(wrong_record(topic_config, id, expected));
        }
        Ok(match message {
            Some(message) if offset_and_timestamp(message).0 >= *end => {
                match stops_at(stop_at, offset_and_timestamp(message).1) {
                    true => ReadDecision::Skip,
                    false => ReadDecision::Answer(new_data_in(topic_config, id, *end)),
                }
            }
            Some(_) => ReadDecision::More,
            None => ReadDecision::Skip,
        })
    })
}

/// Describes the data that has arrived since in the topics that match a pattern, those that have come since included.
pub(super) fn grown_matching(
    (brokers, pattern): (&TopicConfig, &TopicPattern),
    job: &str,
    bounds: &[PartitionProgress],
    stop_at: Option<EventTime>,
) -> Result<Option<String>> {
    let client = consumer::create(brokers, job, PrefetchLimits::of(0))?;
    let served = || (0..100).for_each(|_| ConsumerEvents::serve_event(&client));
    let found = find_topics(client.client(), brokers, &client.context().last_error, served)?;
    let known = || bounds.iter().filter_map(|bound| Some((bound.topic.as_ref()?, bound)));
    let names: BTreeSet<&String> = found.keys().filter(|name| pattern.is_match(name)).collect();
    for name in known().map(|(topic, _)| &topic.topic).chain(names).collect::<BTreeSet<_>>() {
        let own = known().filter(|(topic, _)| topic.topic == *name);
        let own = own.map(|(topic, bound)| PartitionProgress { partition: topic.number, ..bound.clone() });
        let own: Vec<_> = own.collect();
        let topic_config = TopicConfig { topic: name.clone(), ..brokers.clone() };
        if !own.is_empty() && !found.contains_key(name) {
            return Err(gone(&topic_config));
        }
        let grown = grown_since(&topic_config, job, &own, stop_at)?;
        if grown.is_some() {
            return Ok(grown);
        }
    }
    Ok(None)
}

fn new_data_in(topic_config: &TopicConfig, partition: u32, end: u64) -> String {
    format!("partition {partition} of {} has records from offset {end} on", topic_config.describe())
}
