//! A source of records in memory, for tests, examples and measurements.
//!
//! A [`MemorySource`] has partitions of records; the offset of a record is its index. A partition ends after its last
//! record.

use std::sync::Arc;
use std::time::Duration;

use crate::durable::journal::PartitionProgress;
use crate::error::{Error, ErrorKind, Result};
use crate::record::Record;
use crate::source::{
    PartitionHandle, PartitionTracker, Polled, Reader, RestoredPartition, Source, TimeOf, WorkerContext, time_of,
};
use crate::time::{Epoch, EventTime};

/// Partitions of records in memory.
#[derive(Clone)]
pub struct MemorySource<D> {
    partitions: Arc<Vec<Vec<D>>>,
    time_of: TimeOf<D>,
    out_of_order: Option<Duration>,
}

impl<D: Record> MemorySource<D> {
    /// Creates a source of these partitions, each in the order in which it is to be read. `event_time` returns a record's event
    /// time: milliseconds since 1970, a `SystemTime`, a `jiff::Timestamp` or an [`EventTime`].
    pub fn new<E: Into<EventTime>>(
        partitions: Vec<Vec<D>>,
        event_time: impl Fn(&D) -> E + Send + Sync + 'static,
    ) -> Self {
        MemorySource { partitions: Arc::new(partitions), time_of: time_of(event_time), out_of_order: None }
    }

    /// Sets the allowed disorder: how far an event time may be behind the greatest one of its partition.
    #[must_use]
    pub fn out_of_order(mut self, disorder: Duration) -> Self {
        self.out_of_order = Some(disorder);
        self
    }
}

impl<D: Record> Source for MemorySource<D> {
    type Item = D;

    fn describe(&self) -> String {
        format!("{} partitions of records in memory", self.partitions.len())
    }

    fn event_time(&self) -> TimeOf<D> {
        Arc::clone(&self.time_of)
    }

    fn out_of_order(&self) -> Option<Duration> {
        self.out_of_order
    }

    fn open(&self, at: &WorkerContext) -> Result<Box<dyn Reader<D>>> {
        let assigned =
            (0..self.partitions.len()).filter(|id| at.owns(*id as u32)).map(|id| (id as u32, None)).collect();
        Ok(Box::new(MemoryReader { partitions: Arc::clone(&self.partitions), assigned, turn: 0 }))
    }

    fn has_new_data(&self, _at: &WorkerContext, bounds: &[PartitionProgress]) -> Result<Option<String>> {
        let lengths: Vec<u64> = self.partitions.iter().map(|records| records.len() as u64).collect();
        Ok(new_data(&lengths, bounds))
    }
}

/// Describes what partitions of these lengths have beyond an ended state; `None` if they have nothing more.
pub(super) fn new_data(lengths: &[u64], bounds: &[PartitionProgress]) -> Option<String> {
    (0..).zip(lengths).find_map(|(id, length)| {
        let bound = bounds.iter().find(|bound| bound.partition == id);
        let end = bound.map_or(0, |bound| bound.end_offset.unwrap_or(bound.next_offset));
        (*length > end).then(|| format!("partition {id} has records from offset {end} on"))
    })
}

/// Refuses a state that has read, or is to read, past the `length` of a partition.
pub(super) fn check_there(source: &str, length: u64, bound: &PartitionProgress) -> Result<()> {
    let end = bound.next_offset.max(bound.end_offset.unwrap_or(0));
    if length >= end {
        return Ok(());
    }
    let place = format!("source `{source}`, partition {}, offset {end}", bound.partition);
    let error = Error::of(ErrorKind::SourceChanged, "the state names records that are not there").at(place);
    Err(error.because(format!("there are {length}")).help("restore them, or start without the old state"))
}

struct MemoryReader<D> {
    partitions: Arc<Vec<Vec<D>>>,
    /// This worker's partitions with their handles in the intake; `None` until they are found.
    assigned: Vec<(u32, Option<PartitionHandle>)>,
    turn: usize,
}

impl<D: Record> MemoryReader<D> {
    /// Returns the number of records of a partition; 0 if it does not exist.
    fn length(&self, partition: u32) -> u64 {
        self.partitions.get(partition as usize).map_or(0, |records| records.len() as u64)
    }

    fn take(
        &self,
        epoch: Epoch,
        id: u32,
        slot: PartitionHandle,
        end: u64,
        intake: &mut PartitionTracker<D>,
    ) -> Result<()> {
        let from = intake.next(slot);
        let records = &self.partitions[id as usize][from as usize..end as usize];
        intake.events.reserve(records.len());
        intake.accept_all(epoch, slot, from, records)
    }
}

impl<D: Record> Reader<D> for MemoryReader<D> {
    fn resume(&mut self, epoch: Epoch, places: &[RestoredPartition], intake: &mut PartitionTracker<D>) -> Result<()> {
        for place in places {
            intake.begin(epoch);
            check_there(intake.name(), self.length(place.progress.partition), &place.progress)?;
        }
        for (id, slot) in &mut self.assigned {
            let Some(place) = places.iter().find(|place| place.progress.partition == *id) else { continue };
            *slot = Some(intake.resume(epoch, place));
        }
        Ok(())
    }

    fn poll(&mut self, epoch: Epoch, budget: usize, intake: &mut PartitionTracker<D>) -> Result<Polled> {
        intake.all_found();
        for (id, slot) in &mut self.assigned {
            let end = self.partitions[*id as usize].len() as u64;
            slot.get_or_insert_with(|| intake.track(epoch, *id, 0, Some(end)));
        }
        // Partitions take turns, so that none runs ahead of the others.
        for _ in 0..self.assigned.len() {
            self.turn = (self.turn + 1) % self.assigned.len();
            let (id, slot) = self.assigned[self.turn];
            let Some(slot) = slot.filter(|slot| !intake.ended(*slot) && !intake.is_paused(*slot)) else { continue };
            let end = intake.until(slot).unwrap_or_else(|| self.length(id));
            let end = end.min(intake.next(slot) + budget as u64);
            self.take(epoch, id, slot, end, intake)?;
            return Ok(Polled { epoch, busy: true });
        }
        Ok(Polled { epoch, busy: false })
    }

    fn replay(&mut self, epoch: Epoch, bounds: &[PartitionProgress], intake: &mut PartitionTracker<D>) -> Result<bool> {
        intake.all_found();
        intake.begin(epoch);
        for bound in bounds {
            let id = bound.partition;
            check_there(intake.name(), self.length(id), bound)?;
            let Some(at) = self.assigned.iter().position(|(assigned, _)| *assigned == id) else { continue };
            let slot = match self.assigned[at].1 {
                Some(slot) => slot,
                None => intake.track(epoch, id, bound.start_offset.unwrap_or(0), bound.end_offset),
            };
            self.assigned[at].1 = Some(slot);
            self.take(epoch, id, slot, bound.next_offset, intake)?;
            intake.replay_flags(slot, bound);
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::SourceMetrics;
    use crate::source::{Options, WatermarkView};
    use crate::time::EventTime;
    use std::rc::Rc;

    /// Returns a reader of one partition, resumed at epoch 4 after its first record, with the flow's view of its
    /// watermark.
    fn resumed(
        watermark: i64,
        activation_watermark: i64,
    ) -> (Box<dyn Reader<i64>>, PartitionTracker<i64>, Rc<WatermarkView>) {
        let source = MemorySource::new(vec![vec![10, 20, 30, 40, 50]], |at: &i64| *at).out_of_order(Duration::ZERO);
        let options = Options { max_drift: Duration::from_millis(15), ..Options::default() };
        let (view, metrics) = (Rc::new(WatermarkView::default()), Arc::new(SourceMetrics::default()));
        let mut intake = crate::source::track(&source, ("s", 0), &options, Rc::clone(&view), metrics);
        let mut reader =
            source.open(&WorkerContext { worker: 0, workers: 1, threads: 1, job: String::new(), options }).unwrap();
        let progress = PartitionProgress {
            source: String::from("s"),
            partition: 0,
            start_offset: None,
            next_offset: 1,
            watermark: EventTime::from_millis(watermark),
            idle: false,
            end_offset: Some(5),
            ended: false,
            check: None,
            values: None,
        };
        let activation_watermark = EventTime::from_millis(activation_watermark);
        reader.resume(Epoch(4), &[RestoredPartition { progress, activation_watermark }], &mut intake).unwrap();
        (reader, intake, view)
    }

    fn poll(reader: &mut Box<dyn Reader<i64>>, intake: &mut PartitionTracker<i64>) -> Vec<(i64, bool)> {
        reader.poll(Epoch(6), 1, intake).unwrap();
        intake.finish_poll().1.drain(..).map(|event| (event.data, event.origin.unresolved)).collect()
    }

    #[test]
    fn a_floor_decides_until_the_partition_itself_has_come_so_far() {
        let (mut reader, mut intake, view) = resumed(10, 25);
        view.publish(Epoch(4), EventTime::from_millis(25));
        let taken: Vec<_> = (0..4).flat_map(|_| poll(&mut reader, &mut intake)).collect();
        assert_eq!(taken, [(20, true), (30, true), (40, false), (50, false)]);
        // A partition that was ahead of its activation watermark has none.
        let (mut reader, mut intake, _view) = resumed(10, 10);
        assert_eq!(poll(&mut reader, &mut intake), [(20, false)]);
    }

    #[test]
    fn drift_counts_from_the_watermark_that_a_snapshot_has_unless_nothing_was_read_yet() {
        let drifts = |watermark: EventTime| {
            let (mut reader, mut intake, _view) = resumed(watermark.millis(), i64::MIN);
            (0..6).map(|_| poll(&mut reader, &mut intake).len()).sum::<usize>()
        };
        // Reading pauses after the first record that is more than 15 ms ahead.
        assert_eq!((drifts(EventTime::from_millis(10)), drifts(EventTime::MIN)), (2, 3));
    }
}
