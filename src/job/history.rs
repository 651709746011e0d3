//! The recent past of a process: a sample of its figures each second, for ten minutes.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use serde::Serialize;

use crate::metrics::{LatencyCounts, Metrics};
use crate::status::{PartitionStatus, ProcessStatus};

/// Interval between two samples.
const INTERVAL: Duration = Duration::from_secs(1);
/// Number of samples that are kept: those of ten minutes.
const SAMPLES: usize = 600;

/// The figures of a process at one time. Counts are since its start.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct HistorySample {
    /// Number of the sample, from 0.
    pub(crate) number: u64,
    /// Milliseconds since the process's first sample.
    pub(crate) at_ms: u64,
    /// Records read.
    pub(crate) read: u64,
    /// Rows published.
    pub(crate) published: u64,
    /// Records that were late in a window step, summed over the steps.
    pub(crate) late: u64,
    /// Records rejected.
    pub(crate) rejected: u64,
    /// Epochs started.
    pub(crate) epochs: u64,
    /// Bytes of records read and not yet published.
    pub(crate) in_flight_bytes: u64,
    /// Records that have not been read yet, of all partitions that are counted in records.
    pub(crate) lag_records: u64,
    /// Bytes that have not been read yet, of all partitions that are counted in bytes.
    pub(crate) lag_bytes: u64,
    /// Median of the time from the start of an epoch until it was published, over the epochs published since the
    /// previous sample; `None` if there are none.
    pub(crate) latency_p50_ms: Option<f64>,
    /// The 99th percentile of the same.
    pub(crate) latency_p99_ms: Option<f64>,
    /// Snapshots taken.
    pub(crate) snapshots: u64,
    /// Bytes of the segments written for the last snapshot.
    pub(crate) snapshot_bytes: Option<u64>,
    /// Time from the end of the last snapshot's epoch until its manifest was on disk.
    pub(crate) snapshot_ms: Option<u64>,
    /// Age of the last snapshot.
    pub(crate) snapshot_age_ms: Option<u64>,
}

/// The samples of a process after a certain one.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct RecentHistory {
    pub(crate) process: usize,
    /// Wall-clock time of the process's start, in milliseconds since 1970: another one means another incarnation.
    pub(crate) started_ms: u64,
    pub(crate) interval_ms: u64,
    /// Oldest first.
    pub(crate) samples: Vec<HistorySample>,
}

/// The samples of a process. Its memory is bounded: old samples are dropped.
#[derive(Debug)]
pub(crate) struct ProcessHistory {
    started: Instant,
    started_ms: u64,
    ring: Mutex<SampleRing>,
}

#[derive(Debug, Default)]
struct SampleRing {
    samples: VecDeque<HistorySample>,
    latencies: LatencyCounts,
}

impl Default for ProcessHistory {
    fn default() -> Self {
        let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        ProcessHistory { started: Instant::now(), started_ms: millis(since_1970), ring: Mutex::default() }
    }
}

impl ProcessHistory {
    /// Takes a sample, if one is due at `now`.
    pub(crate) fn sample(&self, now: Instant, metrics: &Metrics, status: impl FnOnce() -> ProcessStatus) {
        let at = now.saturating_duration_since(self.started);
        let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        let last = ring.samples.back().map(|last| (last.number, last.at_ms));
        // A sample is due at each whole interval, so that delays do not add up.
        let interval = millis(INTERVAL);
        if last.is_some_and(|(_, last)| millis(at) / interval <= last / interval) {
            return;
        }
        let summary = metrics.summary();
        let snapshot = metrics.snapshots.recent().pop();
        let latencies = metrics.epoch_latency.counts();
        let recent = latencies.since(&ring.latencies);
        let latency = |quantile| recent.quantile(quantile).map(|latency| latency.as_secs_f64() * 1e3);
        let status = status();
        let partitions = || status.workers.iter().flat_map(|worker| &worker.partitions);
        let lag = |in_bytes| {
            let lags = partitions().filter(|partition| partition.in_bytes == in_bytes);
            lags.filter_map(PartitionStatus::lag).sum()
        };
        let sample = HistorySample {
            number: last.map_or(0, |(number, _)| number + 1),
            at_ms: millis(at),
            read: summary.sources.iter().map(|source| source.read).sum(),
            published: metrics.published_rows(),
            late: summary.steps.iter().map(|step| step.late).sum(),
            rejected: summary.sources.iter().map(|source| source.rejected).sum(),
            epochs: summary.epochs,
            in_flight_bytes: status.workers.iter().map(|worker| worker.in_flight_bytes).sum(),
            lag_records: lag(false),
            lag_bytes: lag(true),
            latency_p50_ms: latency(0.5),
            latency_p99_ms: latency(0.99),
            snapshots: summary.snapshots.taken,
            snapshot_bytes: snapshot.map(|snapshot| snapshot.bytes),
            snapshot_ms: snapshot.map(|snapshot| millis(snapshot.took)),
            snapshot_age_ms: metrics.snapshots.age().map(millis),
        };
        ring.latencies = latencies;
        if ring.samples.len() == SAMPLES {
            ring.samples.pop_front();
        }
        ring.samples.push_back(sample);
    }

    /// Returns the samples after the one with the number `since`; all without it.
    pub(crate) fn recent(&self, process: usize, since: Option<u64>) -> RecentHistory {
        let ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        let samples = ring.samples.iter().filter(|sample| since.is_none_or(|since| sample.number > since));
        let samples = samples.cloned().collect();
        RecentHistory { process, started_ms: self.started_ms, interval_ms: millis(INTERVAL), samples }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Snapshot;
    use crate::status::WorkerStatus;

    fn status() -> ProcessStatus {
        let partition =
            |in_bytes, end| PartitionStatus { next: 4, end: Some(end), in_bytes, ..PartitionStatus::default() };
        let partitions = vec![partition(false, 10), partition(false, 5), partition(true, 1_004)];
        let worker = WorkerStatus { in_flight_bytes: 50, partitions, ..WorkerStatus::default() };
        ProcessStatus {
            workers: vec![worker.clone(), WorkerStatus { partitions: vec![], ..worker }],
            ..Default::default()
        }
    }

    #[test]
    fn a_sample_has_the_figures_of_its_time_and_latencies_of_its_interval() {
        let (history, metrics) = (ProcessHistory::default(), Metrics::default());
        metrics.source("a").read.add(7);
        metrics.source("b").read.add(5);
        metrics.source("b").rejected.add(2);
        metrics.step("totals").late.add(3);
        metrics.sink("out").rows.add(9);
        metrics.epoch_latency.add(Duration::from_secs(40));
        history.sample(history.started, &metrics, status);
        for millis in [100, 200, 300] {
            metrics.epoch_latency.add(Duration::from_millis(millis));
        }
        metrics.snapshots.add(Snapshot { epoch: 4, took: Duration::from_millis(30), rows: 1, bytes: 77 });
        let at = |millis| history.started + Duration::from_millis(millis);
        history.sample(at(999), &metrics, || panic!("none is due"));
        history.sample(at(1_020), &metrics, status);
        history.sample(at(1_990), &metrics, || panic!("none is due"));
        history.sample(at(2_000), &metrics, status);
        let all = history.recent(3, None);
        assert_eq!((all.process, all.interval_ms, all.samples.len()), (3, 1_000, 3));
        let sample = &all.samples[1];
        let counts = (sample.read, sample.published, sample.late, sample.rejected, sample.in_flight_bytes);
        assert_eq!(counts, (12, 9, 3, 2, 100));
        assert_eq!((sample.lag_records, sample.lag_bytes), (7, 1_000));
        assert_eq!((sample.snapshots, sample.snapshot_bytes, sample.snapshot_ms), (1, Some(77), Some(30)));
        assert!(all.samples[0].latency_p99_ms.unwrap() >= 40_000.0, "{all:?}");
        let latency = (sample.latency_p50_ms.unwrap(), sample.latency_p99_ms.unwrap());
        assert!((200.0..213.0).contains(&latency.0) && (300.0..319.0).contains(&latency.1), "{latency:?}");
        assert_eq!(all.samples[2].latency_p50_ms, None);
        assert_eq!(history.recent(0, Some(1)).samples, all.samples[2..]);
    }

    #[test]
    fn old_samples_are_dropped() {
        let (history, metrics) = (ProcessHistory::default(), Metrics::default());
        for second in 0..SAMPLES as u64 + 50 {
            history.sample(history.started + Duration::from_secs(second), &metrics, status);
        }
        let samples = history.recent(0, None).samples;
        assert_eq!((samples.len(), samples[0].number), (SAMPLES, 50));
    }
}
