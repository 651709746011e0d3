//! Asks whether a topic has more than a state that has ended took: it took all up to the ends that were fixed, and is
//! never read on.
//!
//! Offsets do not tell, as what is behind an end may be the markers of transactions: a partition has grown if a record
//! comes, or if retention has removed what was behind the end. Nothing here is kept open.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rdkafka::consumer::Consumer;
use rdkafka::error::KafkaError;
use rdkafka::message::Message;

use super::client::{Target, said};
use super::reader::{OFFSETS_PATIENCE, another, check, check_end, connect, judge, list, no_partition, offsets, place};
use crate::durable::journal::{Bound, Check};
use crate::error::{Error, Result};

/// A partition that is asked for records.
struct Asked {
    /// What the state did not take begins here.
    end: u64,
    /// What the partition is to be known again by, until that has come.
    check: Option<Check>,
}

/// What came since: see [`crate::source::Source::grown_since`].
pub(super) fn grown_since(target: &Target, job: &str, bounds: &[Bound]) -> Result<Option<String>> {
    let (consumer, ids) = connect(target, job)?;
    if let Some(bound) = bounds.iter().find(|bound| !ids.contains(&bound.partition)) {
        return Err(no_partition(target, bound.partition));
    }
    let (mut asked, mut from) = (BTreeMap::new(), Vec::new());
    for id in ids {
        let (low, end_now) = offsets(&consumer, target, id)?;
        let bound = bounds.iter().find(|bound| bound.partition == id);
        let end = bound.map_or(low, |bound| bound.until.unwrap_or(bound.next));
        bound.map_or(Ok(()), |bound| check_end(target, bound, end_now))?;
        if low > end {
            return Ok(Some(more(target, id, end)));
        }
        let check = bound.and_then(|bound| bound.check).filter(|check| (low..end).contains(&check.at));
        if check.is_some() || end_now > end {
            from.push((id, check.map_or(end, |check| check.at)));
            asked.insert(id, Asked { end, check });
        }
    }
    let assigned = list(&target.topic, &from).and_then(|list| consumer.assign(&list));
    assigned.map_err(|error| Error::new("cannot read").at(target.describe()).because(said(&error)))?;
    let mut heard = Instant::now();
    while let Some((id, _)) = asked.first_key_value() {
        if heard.elapsed() > OFFSETS_PATIENCE {
            let place = format!("{}, partition {id}", target.describe());
            return Err(Error::new("a partition's records do not come").at(place).help("check the brokers"));
        }
        let Some(polled) = consumer.poll(Duration::from_millis(100)) else { continue };
        let (id, found) = match &polled {
            Ok(message) => (message.partition(), Some(message)),
            Err(KafkaError::PartitionEOF(id)) => (*id, None),
            Err(error) => {
                judge(target, *id, error)?;
                continue;
            }
        };
        heard = Instant::now();
        let id = id.max(0) as u32;
        let Some(Asked { end, check: expected }) = asked.get_mut(&id) else { continue };
        if let Some(expected) = expected.take() {
            let known = found.is_some_and(|message| {
                let (offset, stamped) = place(message);
                check(offset, stamped, message.payload()) == expected
            });
            if !known {
                return Err(another(target, id, expected));
            }
        }
        match found {
            Some(message) if place(message).0 >= *end => return Ok(Some(more(target, id, *end))),
            Some(_) => {}
            None => drop(asked.remove(&id)),
        }
    }
    Ok(None)
}

fn more(target: &Target, partition: u32, end: u64) -> String {
    format!("partition {partition} of {} has records from offset {end} on", target.describe())
}
