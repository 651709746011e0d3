//! Watermarks: of a partition, from the event times read; of a stream, from its partitions.
//!
//! * `PartitionClock`: the greatest event time seen minus the declared disorder.
//! * `StreamClock`: at every epoch the least watermark over the partitions that are **active**: neither idle nor
//!   ended. It never goes back. When the last active partition becomes idle, it advances to the greatest watermark of
//!   any partition: nothing is left to wait for, and otherwise a burst followed by silence would never be published.
//!   When every partition has ended it is [`EventTime::MAX`].
//! * The **activation watermark** (in the code: floor) of a partition that is found, or wakes from idle, in an epoch:
//!   the stream's watermark at the epoch before. Records below it are late even where the partition's own watermark is
//!   lower: windows up to there may have closed.
//! * `CombinedClock`: the watermark of two streams as one. A stream that is idle does not hold it
//!   back, as an idle partition does not hold a stream back; when the stream wakes, its activation watermark is the
//!   combined watermark at the epoch before.
//!
//! Invariants:
//! * The greater of an active partition's watermark and activation watermark is never below the stream's watermark of
//!   the epoch before; so a record that is on time by its own partition never touches a window that has closed.
//! * Both watermarks are functions of what the journal commits (watermarks, idle and ended flags of partitions, epoch
//!   by epoch): not of the number of workers, nor of which of them reads a partition, nor of a worker that reads none.
//! * While an active partition's own watermark is below its activation watermark, the stream's watermark equals the
//!   latter and does not move. So for an event of epoch e, "late by the activation watermark" and "late by the stream's
//!   watermark at the epoch before e" are the same.

use serde::{Deserialize, Serialize};

use super::{EventTime, Span};

/// Tracks the watermark of one partition.
#[derive(Clone, Debug)]
pub(crate) struct PartitionClock {
    watermark: EventTime,
    disorder: Span,
}

impl PartitionClock {
    /// A clock that starts at `watermark` ([`EventTime::MIN`] for a partition that was never read), and allows records
    /// to be `disorder` behind the greatest event time.
    pub(crate) fn new(watermark: EventTime, disorder: Span) -> Self {
        PartitionClock { watermark, disorder }
    }

    /// Advances the watermark by a record's event time; returns the watermark just before, which decides if the record
    /// is late.
    #[inline]
    pub(crate) fn observe(&mut self, time: EventTime) -> EventTime {
        let before = self.watermark;
        self.watermark = before.max(time.minus(self.disorder));
        before
    }

    /// The watermark after all records so far.
    #[inline]
    pub(crate) fn watermark(&self) -> EventTime {
        self.watermark
    }

    /// Raises the watermark to at least `watermark`, which other readers of the same partition have reached.
    pub(crate) fn raise(&mut self, watermark: EventTime) {
        self.watermark = self.watermark.max(watermark);
    }
}

/// The identity of a partition within a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PartitionId {
    /// The source's number, in the order in which the flow reads sources.
    pub source: u32,
    /// The partition's number in the source.
    pub partition: u32,
}

/// One worker's contribution to a stream's watermark at the end of an epoch.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct WorkerWatermark {
    /// The least watermark over its active partitions; `None` if there is none.
    pub least: Option<EventTime>,
    /// The greatest watermark over all of its partitions if none is active; `None` if one is, or if it has no
    /// partitions.
    pub greatest: Option<EventTime>,
    /// `true` if all its partitions have ended, or if it has none and never will.
    pub ended: bool,
    /// Partitions that were found, or woke from idle, in this epoch.
    #[serde(rename = "woken")]
    pub activated: Vec<PartitionId>,
}

impl WorkerWatermark {
    /// The contribution of a worker that has no partitions, and never will.
    pub fn without_partitions() -> Self {
        WorkerWatermark { ended: true, ..WorkerWatermark::default() }
    }
}

/// Determines if a stream holds back a stream that it is combined with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) enum Activity {
    /// Holds it back: a partition is active, or none has been found yet.
    #[default]
    Active,
    /// Holds nothing back: every partition is idle or has ended, and at least one may wake.
    Idle,
    /// Holds nothing back: every partition has ended. Carries the greatest watermark that they reached.
    Ended(EventTime),
}

/// An update of a stream's watermark at an epoch, the same on every worker.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct WatermarkUpdate {
    /// The activity of the stream at this epoch.
    pub activity: Activity,
    /// The stream's watermark at this epoch.
    pub watermark: EventTime,
    /// Activation watermarks of partitions that were found or woke in this epoch.
    #[serde(rename = "floors")]
    pub activation_watermarks: Vec<(PartitionId, EventTime)>,
}

impl WatermarkUpdate {
    /// Returns the time that the stream has reached: its watermark; once all partitions have ended, the greatest
    /// watermark of any of them.
    pub(crate) fn reached(&self) -> EventTime {
        match self.activity {
            Activity::Ended(reached) => reached,
            Activity::Active | Activity::Idle => self.watermark,
        }
    }
}

/// Combines the workers' contributions into the stream's watermark, epoch by epoch.
#[derive(Clone, Debug)]
pub(crate) struct StreamClock {
    workers: Vec<WorkerWatermark>,
    watermark: EventTime,
    activity: Activity,
    activation_watermarks: Vec<(PartitionId, EventTime)>,
}

impl StreamClock {
    /// A clock of `workers` workers, none of which has contributed yet, at `watermark`.
    pub(crate) fn new(workers: usize, watermark: EventTime, activity: Activity) -> Self {
        StreamClock {
            workers: vec![WorkerWatermark::default(); workers],
            watermark,
            activity,
            activation_watermarks: Vec::new(),
        }
    }

    /// Sets a worker's contribution to the current epoch.
    pub(crate) fn update(&mut self, worker: usize, mut mark: WorkerWatermark) {
        for partition in mark.activated.drain(..) {
            self.activation_watermarks.push((partition, self.watermark));
        }
        self.workers[worker] = mark;
    }

    /// Completes the epoch; returns the stream's update, or `None` if nothing has changed.
    pub(crate) fn complete(&mut self) -> Option<WatermarkUpdate> {
        let before = (self.watermark, self.activity);
        let least = self.workers.iter().filter_map(|worker| worker.least).min();
        let greatest = self.workers.iter().filter_map(|worker| worker.greatest).max();
        if let Some(least) = least {
            self.activity = Activity::Active;
            self.watermark = self.watermark.max(least);
        } else if self.workers.iter().all(|worker| worker.ended) {
            if !matches!(self.activity, Activity::Ended(_)) {
                self.activity = Activity::Ended(self.watermark.max(greatest.unwrap_or(EventTime::MIN)));
            }
            self.watermark = EventTime::MAX;
        } else if let Some(greatest) = greatest {
            self.activity = Activity::Idle;
            self.watermark = self.watermark.max(greatest);
        }
        let activation_watermarks = std::mem::take(&mut self.activation_watermarks);
        let news = (self.watermark, self.activity) != before || !activation_watermarks.is_empty();
        news.then_some(WatermarkUpdate { activity: self.activity, watermark: self.watermark, activation_watermarks })
    }

    /// The stream's watermark at the last completed epoch.
    pub(crate) fn watermark(&self) -> EventTime {
        self.watermark
    }

    /// The stream's activity at the last completed epoch.
    pub(crate) fn activity(&self) -> Activity {
        self.activity
    }
}

/// Combines the watermarks of two streams into one, epoch by epoch.
#[derive(Clone, Debug)]
pub(crate) struct CombinedClock {
    sides: [(EventTime, Activity); 2],
    watermark: EventTime,
    /// Last watermark and activity reported.
    told: Option<(EventTime, Activity)>,
}

impl CombinedClock {
    /// Starts at `watermark`, before either stream has an update.
    pub(crate) fn new(watermark: EventTime) -> Self {
        CombinedClock { sides: [(EventTime::MIN, Activity::Active); 2], watermark, told: None }
    }

    /// Applies both streams' updates of a complete epoch; returns the combined update, or `None` if nothing has
    /// changed.
    pub(crate) fn complete(&mut self, marks: [Vec<WatermarkUpdate>; 2]) -> Option<WatermarkUpdate> {
        let mut activation_watermarks = Vec::new();
        for (side, marks) in self.sides.iter_mut().zip(marks) {
            for mark in marks {
                *side = (mark.watermark.max(side.0), mark.activity);
                activation_watermarks.extend(mark.activation_watermarks);
            }
        }
        let activity = self.activity();
        let reached = |(watermark, activity): &(EventTime, Activity)| match activity {
            Activity::Ended(reached) => *reached,
            _ => *watermark,
        };
        let now = match activity {
            Activity::Active => self.active().map(|side| side.0).min().unwrap_or(EventTime::MIN),
            Activity::Idle => self.sides.iter().map(reached).max().unwrap_or(EventTime::MIN),
            Activity::Ended(_) => EventTime::MAX,
        };
        self.watermark = self.watermark.max(now);
        let news = self.told != Some((self.watermark, activity)) || !activation_watermarks.is_empty();
        self.told = Some((self.watermark, activity));
        news.then_some(WatermarkUpdate { activity, watermark: self.watermark, activation_watermarks })
    }

    /// The combined watermark at the last epoch that was applied.
    pub(crate) fn watermark(&self) -> EventTime {
        self.watermark
    }

    fn active(&self) -> impl Iterator<Item = &(EventTime, Activity)> {
        self.sides.iter().filter(|side| side.1 == Activity::Active)
    }

    fn activity(&self) -> Activity {
        match self.sides {
            [(_, Activity::Ended(left)), (_, Activity::Ended(right))] => Activity::Ended(left.max(right)),
            _ if self.active().next().is_some() => Activity::Active,
            _ => Activity::Idle,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn at(millis: i64) -> EventTime {
        EventTime::from_millis(millis)
    }

    fn least(millis: i64) -> WorkerWatermark {
        WorkerWatermark { least: Some(at(millis)), ..WorkerWatermark::default() }
    }

    #[test]
    fn a_partition_judges_a_record_by_those_before_it() {
        let mut clock = PartitionClock::new(EventTime::MIN, Span::from(Duration::from_millis(5)));
        assert_eq!(clock.observe(at(100)), EventTime::MIN);
        assert_eq!(clock.observe(at(90)), at(95));
        assert_eq!(clock.observe(at(101)), at(95));
        assert_eq!(clock.watermark(), at(96));
    }

    fn idle(millis: i64) -> WorkerWatermark {
        WorkerWatermark { greatest: Some(at(millis)), ..WorkerWatermark::default() }
    }

    fn clock(workers: usize) -> StreamClock {
        StreamClock::new(workers, EventTime::MIN, Activity::Active)
    }

    /// Returns the clock's watermark and activity after an epoch in which the workers contribute `said`.
    fn after(clock: &mut StreamClock, said: &[(usize, WorkerWatermark)]) -> (EventTime, Activity) {
        said.iter().for_each(|(worker, mark)| clock.update(*worker, mark.clone()));
        clock.complete();
        (clock.watermark(), clock.activity())
    }

    #[test]
    fn the_stream_is_as_far_as_its_slowest_partition_and_never_goes_back() {
        let mut clock = clock(2);
        assert_eq!(after(&mut clock, &[(0, least(10)), (1, least(20))]), (at(10), Activity::Active));
        assert_eq!(after(&mut clock, &[(0, idle(15))]), (at(20), Activity::Active));
        clock.update(0, least(12)); // awake, and behind
        assert_eq!(clock.complete(), None);
        assert_eq!(clock.watermark(), at(20));
    }

    #[test]
    fn when_the_last_partition_becomes_idle_the_watermark_goes_to_the_greatest() {
        let mut clock = clock(3);
        assert_eq!(after(&mut clock, &[(0, least(10)), (1, least(25))]), (at(10), Activity::Active));
        assert_eq!(after(&mut clock, &[(1, idle(30))]), (at(10), Activity::Active));
        // Worker 2 has no partitions, and contributes nothing.
        assert_eq!(after(&mut clock, &[(0, idle(12))]), (at(30), Activity::Idle));
        assert_eq!(clock.complete(), None, "it is told once");
        assert_eq!(after(&mut clock, &[(0, least(13))]), (at(30), Activity::Active));
        assert_eq!(after(&mut clock, &[(0, idle(14))]), (at(30), Activity::Idle), "it never goes back");
    }

    #[test]
    fn partitions_without_a_record_become_idle_without_a_watermark() {
        let mut clock = clock(1);
        assert_eq!(after(&mut clock, &[]), (EventTime::MIN, Activity::Active), "none is found yet");
        let nothing = WorkerWatermark { greatest: Some(EventTime::MIN), ..WorkerWatermark::default() };
        assert_eq!(after(&mut clock, &[(0, nothing)]), (EventTime::MIN, Activity::Idle));
    }

    #[test]
    fn when_all_have_ended_it_is_over() {
        let mut clock = clock(2);
        let ended = |greatest| WorkerWatermark { ended: true, ..idle(greatest) };
        assert_eq!(after(&mut clock, &[(0, least(10)), (1, idle(7))]), (at(10), Activity::Active));
        assert_eq!(after(&mut clock, &[(0, ended(11))]), (at(11), Activity::Idle));
        assert_eq!(after(&mut clock, &[(1, ended(9))]), (EventTime::MAX, Activity::Ended(at(11))));
        assert_eq!(clock.complete(), None);
    }

    #[test]
    fn a_woken_partition_gets_the_watermark_of_the_epoch_before_as_its_floor() {
        let woken = PartitionId { source: 0, partition: 3 };
        let mut clock = clock(1);
        after(&mut clock, &[(0, least(50))]);
        clock.update(0, WorkerWatermark { activated: vec![woken], ..least(7) });
        let mark = WatermarkUpdate {
            activity: Activity::Active,
            watermark: at(50),
            activation_watermarks: vec![(woken, at(50))],
        };
        assert_eq!(clock.complete(), Some(mark));
    }

    /// Returns the combined watermark after an epoch with these updates of the streams; `None` if nothing is new.
    fn both(
        combined: &mut CombinedClock,
        left: Option<(i64, Activity)>,
        right: Option<(i64, Activity)>,
    ) -> Option<i64> {
        let marks = |said: Option<(i64, Activity)>| {
            let mark = |(millis, activity)| WatermarkUpdate {
                activity,
                watermark: at(millis),
                activation_watermarks: Vec::new(),
            };
            said.map(mark).into_iter().collect()
        };
        combined.complete([marks(left), marks(right)]).map(|mark| mark.watermark.millis())
    }

    #[test]
    fn an_idle_stream_does_not_hold_back_what_it_is_combined_with() {
        use Activity::{Active, Idle};
        let mut combined = CombinedClock::new(EventTime::MIN);
        assert_eq!(both(&mut combined, Some((10, Active)), None), Some(i64::MIN), "the other has said nothing");
        assert_eq!(both(&mut combined, None, Some((5, Active))), Some(5));
        assert_eq!(both(&mut combined, None, Some((5, Idle))), Some(10));
        assert_eq!(both(&mut combined, Some((40, Active)), None), Some(40));
        assert_eq!(both(&mut combined, None, Some((6, Active))), None, "it wakes, and nothing goes back");
        assert_eq!(both(&mut combined, None, Some((50, Idle))), None);
        assert_eq!(both(&mut combined, Some((41, Idle)), None), Some(50), "both are: the greatest");
    }

    #[test]
    fn a_stream_that_has_ended_does_not_end_one_that_is_idle() {
        use Activity::{Active, Ended, Idle};
        let mut combined = CombinedClock::new(EventTime::MIN);
        let over = EventTime::MAX.millis();
        both(&mut combined, Some((10, Active)), Some((5, Active)));
        assert_eq!(both(&mut combined, Some((over, Ended(at(12)))), None), None);
        assert_eq!(both(&mut combined, None, Some((6, Idle))), Some(12));
        assert_eq!(both(&mut combined, None, Some((20, Active))), Some(20));
        assert_eq!(both(&mut combined, None, Some((over, Ended(at(21))))), Some(over));
    }
}
