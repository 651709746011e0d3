//! A source of records in memory, for tests, examples and measurements.
//!
//! A [`MemorySource`] has partitions of records; the offset of a record is its index. A partition ends after its last
//! record.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use crate::durable::journal::PartitionProgress;
use crate::error::Result;
use crate::record::Record;
use crate::source::indexed::{self, IndexedReader, IndexedRecords};
use crate::source::{PartitionHandle, PartitionTracker, Reader, Source, TimeOf, WorkerContext, time_of};
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
        Ok(Box::new(IndexedReader::new(Arc::clone(&self.partitions), at)))
    }

    fn has_new_data(&self, _at: &WorkerContext, bounds: &[PartitionProgress]) -> Result<Option<String>> {
        Ok(indexed::new_data(&self.partitions, bounds))
    }
}

impl<D: Record> IndexedRecords<D> for Arc<Vec<Vec<D>>> {
    fn partitions(&self) -> u32 {
        self.len() as u32
    }

    fn length(&self, partition: u32) -> u64 {
        self.get(partition as usize).map_or(0, |records| records.len() as u64)
    }

    fn accept(
        &self,
        epoch: Epoch,
        (partition, slot): (u32, PartitionHandle),
        offsets: Range<u64>,
        intake: &mut PartitionTracker<D>,
    ) -> Result<()> {
        let records = &self[partition as usize][offsets.start as usize..offsets.end as usize];
        intake.events.reserve(records.len());
        intake.accept_all(epoch, slot, offsets.start, records)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::SourceMetrics;
    use crate::source::{Options, RestoredPartition, WatermarkView};
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
        let mut reader = source
            .open(&WorkerContext {
                worker: 0,
                workers: 1,
                threads: 1,
                job: String::new(),
                options,
                known_partitions: Arc::default(),
            })
            .unwrap();
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
            topic: None,
            rejected_for_now: Vec::new(),
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
