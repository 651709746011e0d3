//! Drives a source's reader without an engine: polls it, commits epochs, and keeps the records.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of it")]
#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tidegate::durable::journal::PartitionProgress;
use tidegate::metrics::SourceMetrics;
use tidegate::record::Event;
use tidegate::source::{
    EpochInput, Options, PartitionTracker, Reader, Rejected, RestoredPartition, Source, WatermarkView, WorkerContext,
};
use tidegate::time::Epoch;
use tidegate::{Record, Result};

/// A small record for tests.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Tick {
    pub id: u64,
    pub at_ms: i64,
}

/// One worker's reader of a source, with everything it has read.
pub struct ReaderDriver<D: Record> {
    pub reader: Box<dyn Reader<D>>,
    pub intake: PartitionTracker<D>,
    pub view: Rc<WatermarkView>,
    pub epoch: Epoch,
    pub events: Vec<Event<D>>,
    pub rejects: Vec<Rejected>,
    pub epoch_inputs: Vec<(Epoch, EpochInput)>,
}

/// Returns the context in which the only worker of a test opens its sources.
pub fn worker_context(options: Options) -> WorkerContext {
    WorkerContext { worker: 0, workers: 1, threads: 1, job: "test".into(), options, known_partitions: Arc::default() }
}

impl ReaderDriver<Tick> {
    /// Returns the ids of the ticks that were read, in order.
    pub fn ids(&self) -> Vec<u64> {
        let mut ids: Vec<u64> = self.events.iter().map(|event| event.data.id).collect();
        ids.sort_unstable();
        ids
    }
}

impl<D: Record> ReaderDriver<D> {
    pub fn open(source: &impl Source<Item = D>, options: Options) -> Result<Self> {
        Self::open_at(source, &worker_context(options))
    }

    pub fn open_at(source: &impl Source<Item = D>, at: &WorkerContext) -> Result<Self> {
        let reader = source.open(at)?;
        let view = Rc::new(WatermarkView::default());
        let metrics = Arc::new(SourceMetrics::default());
        let intake = tidegate::source::track(source, ("s", 0), &at.options, Rc::clone(&view), metrics);
        let (events, rejects, epoch_inputs) = (Vec::new(), Vec::new(), Vec::new());
        Ok(ReaderDriver { reader, intake, view, epoch: Epoch(2), events, rejects, epoch_inputs })
    }

    /// Polls once; returns the number of records.
    pub fn poll(&mut self, budget: usize) -> Result<usize> {
        self.reader.poll(self.epoch, budget, &mut self.intake)?;
        Ok(self.keep())
    }

    fn keep(&mut self) -> usize {
        let (_bytes, events, rejects) = self.intake.finish_poll();
        let count = events.len() + rejects.len();
        self.events.append(events);
        self.rejects.extend(rejects.drain(..).map(|reject| reject.data.rejected));
        count
    }

    /// Commits the epoch's input and begins the next epoch.
    pub fn commit_epoch(&mut self) -> EpochInput {
        self.try_commit_epoch().unwrap()
    }

    /// Commits the epoch's input and begins the next epoch.
    ///
    /// # Errors
    /// Fails if the source has failed.
    pub fn try_commit_epoch(&mut self) -> Result<EpochInput> {
        let begun = Instant::now();
        let binding = loop {
            if let Some(binding) = self.reader.close_epoch(self.epoch, &mut self.intake)? {
                break binding;
            }
            assert!(begun.elapsed() < Duration::from_secs(60), "the epoch is not bound");
            std::thread::sleep(Duration::from_millis(1));
        };
        self.epoch_inputs.push((self.epoch, binding.clone()));
        self.epoch = Epoch(self.epoch.0 + 2);
        Ok(binding)
    }

    /// Polls and commits epochs until `enough` returns `true`; panics after a minute.
    pub fn until(&mut self, mut enough: impl FnMut(&mut Self) -> bool) -> Result<()> {
        let begun = Instant::now();
        while !enough(self) {
            assert!(begun.elapsed() < Duration::from_secs(60), "it takes too long; {} events", self.events.len());
            if self.poll(1000)? == 0 {
                std::thread::sleep(Duration::from_millis(2));
            }
            if self.epoch.0.is_multiple_of(8) {
                std::thread::sleep(Duration::from_millis(1));
            }
            self.try_commit_epoch()?;
        }
        Ok(())
    }

    /// Polls and commits epochs until `count` records were accepted.
    pub fn until_events(&mut self, count: usize) -> Result<()> {
        self.until(|driven| driven.events.len() >= count)
    }

    /// Polls and commits epochs until the source has ended.
    pub fn until_ended(&mut self) -> Result<()> {
        self.until(|driven| driven.epoch_inputs.last().is_some_and(|(_, binding)| binding.watermark.ended))
    }

    /// Polls and commits epochs for `time`.
    pub fn for_a_while(&mut self, time: Duration) -> Result<()> {
        let begun = Instant::now();
        self.until(|_| begun.elapsed() >= time)
    }

    /// Resumes from a snapshot.
    pub fn resume(&mut self, epoch: Epoch, places: &[RestoredPartition]) -> Result<()> {
        self.epoch = Epoch(epoch.0 + 2);
        self.reader.resume(epoch, places, &mut self.intake)
    }

    /// Replays an epoch of a journal.
    pub fn replay(&mut self, epoch: Epoch, bounds: &[PartitionProgress]) -> Result<()> {
        let begun = Instant::now();
        while !self.reader.replay(epoch, bounds, &mut self.intake)? {
            assert!(begun.elapsed() < Duration::from_secs(60), "the replay takes too long");
            std::thread::sleep(Duration::from_millis(1));
        }
        self.keep();
        self.epoch = epoch;
        self.commit_epoch();
        Ok(())
    }

    /// Returns partition and offset of each accepted record, in the order of reading.
    pub fn positions(&self) -> Vec<(u32, u64)> {
        self.events.iter().map(|event| (event.origin.partition, event.origin.offset)).collect()
    }
}
