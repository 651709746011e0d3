//! Messages of the records that are in flight, for dead letters of records that a later step cannot use.
//!
//! A worker keeps the messages of the records that it takes by epoch, and lends them to its **readers**: the steps that
//! make dead letters. Without readers nothing is kept. An epoch is dropped when all readers have released it, which they
//! do when its input is complete. So the store holds what is in flight, which back-pressure bounds: a tracker counts kept
//! bytes as memory of its records.
//!
//! A message could also travel with its record. Then every event would have room for one, in jobs without such steps too,
//! each step that holds records would hold messages, and both would go to other workers; late records are few.
//!
//! Invariant: while a reader may still ask for a record of an epoch, its message is found by the record's origin. A
//! replayed epoch has the same messages.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ops::Range;

use crate::record::{Event, Origin};
use crate::time::{Epoch, EventTime};

/// Source, partition and offset of a record.
type RecordPlace = (u16, u32, u64);

/// A message of an epoch.
#[derive(Clone, Debug)]
struct StoredMessage {
    place: RecordPlace,
    /// Event time of the record: rows that steps have made have no origin of their own, but a time.
    time: EventTime,
    bytes: Range<usize>,
}

/// The messages of an epoch, one after the other.
#[derive(Debug, Default)]
struct StoredEpoch {
    messages: Vec<StoredMessage>,
    bytes: Vec<u8>,
    is_sorted: bool,
}

/// The messages of a worker's records in flight.
#[derive(Debug, Default)]
pub(crate) struct MessageStore {
    /// First epoch that each reader may still ask for.
    readers: RefCell<Vec<u64>>,
    is_wanted: Cell<bool>,
    epochs: RefCell<BTreeMap<u64, StoredEpoch>>,
}

impl MessageStore {
    /// Adds a reader, and returns its number. Readers are added before the first record is taken.
    pub(crate) fn add_reader(&self) -> usize {
        self.is_wanted.set(true);
        let mut readers = self.readers.borrow_mut();
        readers.push(0);
        readers.len() - 1
    }

    /// `true` if there are readers.
    #[inline]
    pub(crate) fn is_wanted(&self) -> bool {
        self.is_wanted.get()
    }

    /// Keeps the message of a record of `epoch`, whose bytes `write` appends. Returns the memory that it takes.
    pub(crate) fn add<D>(&self, epoch: Epoch, record: &Event<D>, write: impl FnOnce(&mut Vec<u8>)) -> usize {
        let mut epochs = self.epochs.borrow_mut();
        let stored = epochs.entry(epoch.0).or_default();
        let start = stored.bytes.len();
        write(&mut stored.bytes);
        let bytes = start..stored.bytes.len();
        let taken = bytes.len() + size_of::<StoredMessage>();
        stored.messages.push(StoredMessage { place: record.origin.tie_breaker(), time: record.time, bytes });
        stored.is_sorted = false;
        taken
    }

    /// Calls `read` with the message of the record of an epoch that has this origin and this time. Returns `None` if
    /// there is none: the record was not read as a message by this worker.
    pub(crate) fn find<T>(
        &self,
        epoch: u64,
        (origin, time): (Origin, EventTime),
        read: impl FnOnce(&[u8]) -> T,
    ) -> Option<T> {
        let mut epochs = self.epochs.borrow_mut();
        let stored = epochs.get_mut(&epoch)?;
        if !stored.is_sorted {
            stored.messages.sort_by_key(|message| message.place);
            stored.is_sorted = true;
        }
        let at = stored.messages.binary_search_by_key(&origin.tie_breaker(), |message| message.place).ok()?;
        let message = stored.messages.get(at).filter(|message| message.time == time)?;
        stored.bytes.get(message.bytes.clone()).map(read)
    }

    /// Releases a reader's epochs before `first`, all of them if that is `None`, and drops those that no reader needs.
    pub(crate) fn release(&self, reader: usize, first: Option<u64>) {
        let mut readers = self.readers.borrow_mut();
        if let Some(needed) = readers.get_mut(reader) {
            *needed = first.unwrap_or(u64::MAX).max(*needed);
        }
        let first = readers.iter().min().copied().unwrap_or(u64::MAX);
        let mut epochs = self.epochs.borrow_mut();
        while let Some(oldest) = epochs.first_entry().filter(|oldest| *oldest.key() < first) {
            oldest.remove();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(partition: u32, offset: u64) -> Event<()> {
        let origin = Origin { partition, offset, ..Origin::default() };
        Event { time: EventTime::from_millis(offset as i64), watermark: EventTime::MIN, origin, data: () }
    }

    fn find(store: &MessageStore, epoch: u64, record: &Event<()>) -> Option<Vec<u8>> {
        store.find(epoch, (record.origin, record.time), <[u8]>::to_vec)
    }

    #[test]
    fn a_message_is_found_by_its_origin_until_the_last_reader_has_released_its_epoch() {
        let store = MessageStore::default();
        assert!(!store.is_wanted());
        let (first, second) = (store.add_reader(), store.add_reader());
        assert!(store.is_wanted());
        // Partitions in turns, as they are read.
        for (epoch, offsets) in [(2, 0..3), (4, 3..6)] {
            for offset in offsets {
                for partition in [1, 0] {
                    let text = format!("{partition}/{offset}");
                    let taken = store.add(Epoch(epoch), &record(partition, offset), |bytes| bytes.extend(text.bytes()));
                    assert!(taken >= text.len());
                    assert_eq!(find(&store, epoch, &record(partition, offset)), Some(text.into_bytes()));
                }
            }
        }
        assert_eq!(find(&store, 2, &record(1, 2)).as_deref(), Some(&b"1/2"[..]));
        assert_eq!(find(&store, 4, &record(1, 2)), None, "it is of another epoch");
        assert_eq!(find(&store, 2, &record(2, 2)), None);
        let made = Event { time: EventTime::from_millis(7), ..record(0, 0) };
        assert_eq!(find(&store, 2, &made), None, "a row that a step has made");
        store.release(first, Some(4));
        assert!(find(&store, 2, &record(0, 0)).is_some(), "the other reader may ask");
        store.release(second, Some(3));
        assert!(find(&store, 2, &record(0, 0)).is_none() && find(&store, 4, &record(0, 4)).is_some());
        store.release(second, None);
        store.release(first, Some(2));
        assert!(find(&store, 4, &record(0, 4)).is_some(), "a reader never needs earlier epochs again");
        store.release(first, Some(6));
        assert!(store.epochs.borrow().is_empty());
    }
}
