//! Generated events as a source of several partitions.
//!
//! Partitions take turns by the second of event time, so the events of a millisecond are in one partition, in the order of
//! the stream. Ties of event time are broken by partition and offset: so results do not depend on the number of partitions.

use std::sync::Arc;
use std::time::Duration;

use tidegate::Result;
use tidegate::durable::journal::PartitionProgress;
use tidegate::source::{
    PartitionHandle, PartitionTracker, Polled, RawRecord, Reader, RestoredPartition, Source, TimeOf, WorkerContext,
    time_of,
};
use tidegate::time::Epoch;

use crate::generator::Generator;
use crate::model::Event;

/// The first events of a generated stream.
#[derive(Clone, Debug)]
pub(crate) struct GeneratedEvents {
    generator: Arc<Generator>,
    events: u64,
    partitions: u32,
}

impl GeneratedEvents {
    /// Creates a source of the first `events` events, in `partitions` partitions, at least one.
    pub(crate) fn new(generator: Generator, events: u64, partitions: u32) -> Self {
        GeneratedEvents { generator: Arc::new(generator), events, partitions: partitions.max(1) }
    }

    /// Returns all events in the order of the stream.
    pub(crate) fn in_order(&self) -> impl Iterator<Item = Event> + '_ {
        (0..self.events).map(|place| self.generator.at(place))
    }

    /// Returns the place in the stream of a partition's record.
    fn place(&self, partition: u32, offset: u64) -> u64 {
        let rate = self.generator.rate();
        (offset / rate * u64::from(self.partitions) + u64::from(partition)) * rate + offset % rate
    }

    /// Returns the number of records of a partition.
    fn length(&self, partition: u32) -> u64 {
        let rate = self.generator.rate();
        let (turns, partition) = (self.events / rate, u64::from(partition));
        let whole = turns / u64::from(self.partitions) + u64::from(turns % u64::from(self.partitions) > partition);
        let has_the_rest = turns % u64::from(self.partitions) == partition;
        whole * rate + if has_the_rest { self.events % rate } else { 0 }
    }
}

impl Source for GeneratedEvents {
    type Item = Event;

    fn describe(&self) -> String {
        self.generator.describe()
    }

    fn event_time(&self) -> TimeOf<Event> {
        time_of(Event::date_time)
    }

    fn out_of_order(&self) -> Option<Duration> {
        Some(Duration::from_millis(self.generator.disorder_ms()))
    }

    fn open(&self, at: &WorkerContext) -> Result<Box<dyn Reader<Event>>> {
        let assigned = (0..self.partitions).filter(|partition| at.owns(*partition)).map(|partition| (partition, None));
        Ok(Box::new(EventReader { source: self.clone(), assigned: assigned.collect(), turn: 0 }))
    }

    fn identity(&self, _at: &WorkerContext) -> Result<Option<String>> {
        Ok(Some(format!("{}, {} partitions", self.generator.describe(), self.partitions)))
    }
}

/// Reads one worker's partitions in turns.
struct EventReader {
    source: GeneratedEvents,
    /// Partitions with their handles; `None` until they are found.
    assigned: Vec<(u32, Option<PartitionHandle>)>,
    turn: usize,
}

impl EventReader {
    /// Takes the records of a partition up to an offset.
    fn take(
        &self,
        epoch: Epoch,
        (partition, slot): (u32, PartitionHandle),
        to: u64,
        tracker: &mut PartitionTracker<Event>,
    ) -> Result<()> {
        for offset in tracker.next(slot)..to {
            let event = self.source.generator.at(self.source.place(partition, offset));
            tracker.accept(epoch, slot, RawRecord::new(offset, &[]), event)?;
        }
        Ok(())
    }
}

impl Reader<Event> for EventReader {
    fn resume(
        &mut self,
        epoch: Epoch,
        places: &[RestoredPartition],
        tracker: &mut PartitionTracker<Event>,
    ) -> Result<()> {
        for (partition, slot) in &mut self.assigned {
            let found = places.iter().find(|place| place.progress.partition == *partition);
            *slot = found.map(|place| tracker.resume(epoch, place));
        }
        Ok(())
    }

    fn replay(
        &mut self,
        epoch: Epoch,
        bounds: &[PartitionProgress],
        tracker: &mut PartitionTracker<Event>,
    ) -> Result<bool> {
        tracker.all_found();
        tracker.begin(epoch);
        for bound in bounds {
            let Some(at) = self.assigned.iter().position(|(partition, _)| *partition == bound.partition) else {
                continue;
            };
            let found = || tracker.track(epoch, bound.partition, bound.start_offset.unwrap_or(0), bound.end_offset);
            let slot = self.assigned[at].1.unwrap_or_else(found);
            self.assigned[at].1 = Some(slot);
            self.take(epoch, (bound.partition, slot), bound.next_offset, tracker)?;
            tracker.replay_flags(slot, bound);
        }
        Ok(true)
    }

    fn poll(&mut self, epoch: Epoch, most: usize, tracker: &mut PartitionTracker<Event>) -> Result<Polled> {
        tracker.all_found();
        for (partition, slot) in &mut self.assigned {
            let end = self.source.length(*partition);
            slot.get_or_insert_with(|| tracker.track(epoch, *partition, 0, Some(end)));
        }
        for _ in 0..self.assigned.len() {
            self.turn = (self.turn + 1) % self.assigned.len();
            let (partition, slot) = self.assigned[self.turn];
            let Some(slot) = slot.filter(|slot| !tracker.ended(*slot) && !tracker.is_paused(*slot)) else { continue };
            let end = tracker.until(slot).unwrap_or_else(|| self.source.length(partition));
            self.take(epoch, (partition, slot), end.min(tracker.next(slot) + most as u64), tracker)?;
            return Ok(Polled::new(epoch, true));
        }
        Ok(Polled::new(epoch, false))
    }
}
