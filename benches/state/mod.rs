//! Shared code of the benchmarks of durable state: sources whose records are generated while they are read, and
//! formatting of measurements.
#![allow(dead_code, reason = "each benchmark uses a part of it")]

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tidegate::durable::journal::PartitionProgress;
use tidegate::source::{
    self, PartitionHandle, PartitionTracker, Polled, Reader, RestoredPartition, Source, TimeOf, WorkerContext,
};
use tidegate::time::Epoch;
use tidegate::{Record, Result};

/// Generates the record of a number.
pub(crate) type RecordFn<D> = Arc<dyn Fn(u64) -> D + Send + Sync>;

/// A source of one partition per worker, whose records are generated when they are read: as fast as possible, or **open
/// loop**, at a fixed rate by the clock.
pub(crate) struct GeneratedSource<D> {
    make: RecordFn<D>,
    time_of: TimeOf<D>,
    partitions: u32,
    /// Records of each partition.
    count: u64,
    /// Number of records that are due at once, the time from which more are due, and their rate per second, over all
    /// partitions.
    paced: Option<(u64, Instant, u64)>,
    endless: bool,
}

impl<D: Record> GeneratedSource<D> {
    /// Creates a source of `count` records in total; the record with number `n` of partition `p` is generated from `n *
    /// partitions + p`.
    pub(crate) fn new(
        partitions: u32,
        count: u64,
        make: impl Fn(u64) -> D + Send + Sync + 'static,
        time_of: impl Fn(&D) -> i64 + Send + Sync + 'static,
    ) -> Self {
        let count = count / u64::from(partitions);
        GeneratedSource {
            make: Arc::new(make),
            time_of: source::time_of(time_of),
            partitions,
            count,
            paced: None,
            endless: false,
        }
    }

    /// Sets the pace: the first `at_once` records are due from the beginning; after `from`, `a_second` more per second.
    pub(crate) fn paced(mut self, at_once: u64, from: Instant, a_second: u64) -> Self {
        self.paced = Some((at_once, from, a_second));
        self
    }

    /// Marks the source as endless: the job goes on until it is stopped.
    pub(crate) fn endless(mut self) -> Self {
        self.endless = true;
        self
    }
}

impl<D: Record> Source for GeneratedSource<D> {
    type Item = D;

    fn describe(&self) -> String {
        String::from("records made as they are read")
    }

    fn event_time(&self) -> TimeOf<D> {
        Arc::clone(&self.time_of)
    }

    fn out_of_order(&self) -> Option<Duration> {
        Some(Duration::ZERO)
    }

    fn open(&self, at: &WorkerContext) -> Result<Box<dyn Reader<D>>> {
        let mine = (0..self.partitions).filter(|id| at.owns(*id)).map(|id| (id, None)).collect();
        Ok(Box::new(GeneratedReader {
            make: Arc::clone(&self.make),
            partitions: u64::from(self.partitions),
            count: self.count,
            paced: self.paced,
            endless: self.endless,
            mine,
            made: Vec::new(),
        }))
    }
}

struct GeneratedReader<D> {
    make: RecordFn<D>,
    partitions: u64,
    count: u64,
    paced: Option<(u64, Instant, u64)>,
    endless: bool,
    mine: Vec<(u32, Option<PartitionHandle>)>,
    made: Vec<D>,
}

impl<D: Record> GeneratedReader<D> {
    fn take(
        &mut self,
        epoch: Epoch,
        id: u32,
        slot: PartitionHandle,
        end: u64,
        intake: &mut PartitionTracker<D>,
    ) -> Result<()> {
        let from = intake.next(slot);
        self.made.clear();
        self.made.extend((from..end).map(|number| (self.make)(number * self.partitions + u64::from(id))));
        intake.accept_all(epoch, slot, from, &self.made)
    }
}

impl<D: Record> Reader<D> for GeneratedReader<D> {
    fn resume(&mut self, epoch: Epoch, places: &[RestoredPartition], intake: &mut PartitionTracker<D>) -> Result<()> {
        for (id, slot) in &mut self.mine {
            if let Some(place) = places.iter().find(|place| place.progress.partition == *id) {
                *slot = Some(intake.resume(epoch, place));
            }
        }
        Ok(())
    }

    fn poll(&mut self, epoch: Epoch, budget: usize, intake: &mut PartitionTracker<D>) -> Result<Polled> {
        intake.all_found();
        let count = self.count;
        let due = self.paced.map_or(count, |(at_once, from, a_second)| {
            let more = from.elapsed().as_nanos() * u128::from(a_second) / 1_000_000_000;
            count.min((at_once + more as u64) / self.partitions)
        });
        let until = (!self.endless).then_some(count);
        let mut busy = false;
        for at in 0..self.mine.len() {
            let (id, slot) = self.mine[at];
            let slot = slot.unwrap_or_else(|| intake.track(epoch, id, 0, until));
            self.mine[at].1 = Some(slot);
            let end = due.min(intake.next(slot) + budget as u64);
            if end > intake.next(slot) {
                self.take(epoch, id, slot, end, intake)?;
                busy = true;
            }
        }
        Ok(Polled::new(epoch, busy))
    }

    fn replay(&mut self, epoch: Epoch, bounds: &[PartitionProgress], intake: &mut PartitionTracker<D>) -> Result<bool> {
        intake.all_found();
        intake.begin(epoch);
        for bound in bounds {
            let Some(at) = self.mine.iter().position(|(id, _)| *id == bound.partition) else { continue };
            let (id, slot) = self.mine[at];
            let slot =
                slot.unwrap_or_else(|| intake.track(epoch, id, bound.start_offset.unwrap_or(0), bound.end_offset));
            self.mine[at].1 = Some(slot);
            self.take(epoch, id, slot, bound.next_offset, intake)?;
            intake.replay_flags(slot, bound);
        }
        Ok(true)
    }
}

/// Returns the value at a quantile of sorted numbers.
pub(crate) fn quantile(sorted: &[f64], share: f64) -> f64 {
    let at = ((sorted.len() as f64 * share) as usize).min(sorted.len().saturating_sub(1));
    sorted.get(at).copied().unwrap_or(f64::NAN)
}

/// Returns the median.
pub(crate) fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    quantile(&numbers, 0.5)
}

/// Returns the size of all files in a directory and below, in bytes.
pub(crate) fn bytes_in(directory: &Path) -> u64 {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let sizes = entries.map(|entry| match entry.metadata() {
        Ok(about) if about.is_dir() => bytes_in(&entry.path()),
        Ok(about) => about.len(),
        Err(_) => 0,
    });
    sizes.sum()
}
