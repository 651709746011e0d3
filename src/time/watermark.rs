//! Watermarks: of a partition, from the event times read; of a stream, from its partitions.
//!
//! * [`PartitionClock`]: the greatest event time seen minus the declared disorder.
//! * [`StreamClock`]: at every epoch the least watermark over the partitions that are not idle; it never goes back, and
//!   stays when all are idle. When every partition has ended it is [`EventTime::MAX`].
//! * The **floor** of a partition that is found, or wakes from idle, in an epoch: the stream's watermark at the epoch
//!   before. Records below it are late even where the partition's own clock has not come so far: windows up to there
//!   may have closed.
//!
//! Invariant: a non-idle partition's `max(watermark, floor)` is never below the stream's watermark of the epoch before;
//! so a record that is on time by its own partition never touches a window that has closed.

use serde::{Deserialize, Serialize};

use super::{EventTime, Span};

/// Follows the event times of one partition.
#[derive(Clone, Debug)]
pub struct PartitionClock {
    watermark: EventTime,
    disorder: Span,
}

impl PartitionClock {
    /// A clock that starts at `watermark` ([`EventTime::MIN`] for a partition that was never read), and lets records be
    /// `disorder` behind the greatest event time.
    pub fn new(watermark: EventTime, disorder: Span) -> Self {
        PartitionClock { watermark, disorder }
    }

    /// Takes a record's event time in; returns the watermark just before it, which decides whether it is late.
    #[inline]
    pub fn observe(&mut self, time: EventTime) -> EventTime {
        let before = self.watermark;
        self.watermark = before.max(time.minus(self.disorder));
        before
    }

    /// The watermark after all records so far.
    #[inline]
    pub fn watermark(&self) -> EventTime {
        self.watermark
    }

    /// Raises the watermark to at least `watermark`: what others have read of the same partition.
    pub fn raise(&mut self, watermark: EventTime) {
        self.watermark = self.watermark.max(watermark);
    }
}

/// Names a partition of a source within a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PartitionId {
    /// Which source, in the order in which the flow reads them.
    pub source: u32,
    /// Which partition of it.
    pub partition: u32,
}

/// What one worker says of its partitions at the end of an epoch.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct WorkerMark {
    /// The least watermark over its partitions that are neither idle nor ended; `None` if there is none.
    pub least: Option<EventTime>,
    /// Whether all it had to read has been read, for good.
    pub ended: bool,
    /// Partitions that were found, or woke from idle, in this epoch.
    pub woken: Vec<PartitionId>,
}

/// What holds for a stream at an epoch, on every worker alike.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Mark {
    /// The stream's watermark at this epoch.
    pub watermark: EventTime,
    /// Floors of partitions that were found or woke in this epoch.
    pub floors: Vec<(PartitionId, EventTime)>,
}

/// Combines the workers' marks into the stream's watermark, epoch by epoch.
#[derive(Clone, Debug)]
pub struct StreamClock {
    workers: Vec<WorkerMark>,
    watermark: EventTime,
    floors: Vec<(PartitionId, EventTime)>,
}

impl StreamClock {
    /// A clock for so many workers, before any has said anything, at `watermark`.
    pub fn new(workers: usize, watermark: EventTime) -> Self {
        StreamClock { workers: vec![WorkerMark::default(); workers], watermark, floors: Vec::new() }
    }

    /// Takes in what a worker says of the epoch that is being put together.
    pub fn update(&mut self, worker: usize, mut mark: WorkerMark) {
        for partition in mark.woken.drain(..) {
            self.floors.push((partition, self.watermark));
        }
        self.workers[worker] = mark;
    }

    /// Ends the epoch: the stream's watermark at it, if that or a floor is news.
    pub fn complete(&mut self) -> Option<Mark> {
        let before = self.watermark;
        if let Some(least) = self.workers.iter().filter_map(|worker| worker.least).min() {
            self.watermark = self.watermark.max(least);
        } else if self.workers.iter().all(|worker| worker.ended) {
            self.watermark = EventTime::MAX;
        }
        let floors = std::mem::take(&mut self.floors);
        (self.watermark > before || !floors.is_empty()).then_some(Mark { watermark: self.watermark, floors })
    }

    /// The stream's watermark at the last epoch that was ended.
    pub fn watermark(&self) -> EventTime {
        self.watermark
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn at(millis: i64) -> EventTime {
        EventTime::from_millis(millis)
    }

    fn least(millis: i64) -> WorkerMark {
        WorkerMark { least: Some(at(millis)), ..WorkerMark::default() }
    }

    #[test]
    fn a_partition_judges_a_record_by_those_before_it() {
        let mut clock = PartitionClock::new(EventTime::MIN, Span::from(Duration::from_millis(5)));
        assert_eq!(clock.observe(at(100)), EventTime::MIN);
        assert_eq!(clock.observe(at(90)), at(95));
        assert_eq!(clock.observe(at(101)), at(95));
        assert_eq!(clock.watermark(), at(96));
    }

    #[test]
    fn the_stream_is_as_far_as_its_slowest_partition_and_never_goes_back() {
        let mut clock = StreamClock::new(2, EventTime::MIN);
        clock.update(0, least(10));
        clock.update(1, least(20));
        assert_eq!(clock.complete().map(|mark| mark.watermark), Some(at(10)));
        clock.update(0, WorkerMark::default()); // idle
        assert_eq!(clock.complete().map(|mark| mark.watermark), Some(at(20)));
        clock.update(0, least(12)); // awake, and behind
        assert_eq!(clock.complete(), None);
        assert_eq!(clock.watermark(), at(20));
    }

    #[test]
    fn when_all_are_idle_the_watermark_stays_and_when_all_have_ended_it_is_over() {
        let mut clock = StreamClock::new(2, EventTime::MIN);
        clock.update(0, least(10));
        assert_eq!(clock.complete().map(|mark| mark.watermark), Some(at(10)));
        clock.update(0, WorkerMark::default());
        assert_eq!(clock.complete(), None);
        for worker in 0..2 {
            clock.update(worker, WorkerMark { ended: true, ..WorkerMark::default() });
        }
        assert_eq!(clock.complete().map(|mark| mark.watermark), Some(EventTime::MAX));
    }

    #[test]
    fn a_woken_partition_gets_the_watermark_of_the_epoch_before_as_its_floor() {
        let woken = PartitionId { source: 0, partition: 3 };
        let mut clock = StreamClock::new(1, EventTime::MIN);
        clock.update(0, least(50));
        clock.complete();
        clock.update(0, WorkerMark { least: Some(at(7)), ended: false, woken: vec![woken] });
        assert_eq!(clock.complete(), Some(Mark { watermark: at(50), floors: vec![(woken, at(50))] }));
    }
}
