//! Metrics in Prometheus's text format, with its conventions for names and units.
//!
//! Every metric has the labels `job` and `process`; names begin with `tidegate_`, counters end with `_total`, times are
//! in seconds, sizes in bytes. The format is described in Prometheus's documentation, "Exposition formats".

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::metrics::{Counter, JobSummary, Metrics, SyncMetrics};
use crate::status::ProcessStatus;
use crate::time::EventTime;

/// A page of metrics.
pub(crate) struct Exposition {
    labels: String,
    /// By name: type, help text and lines of the metric.
    figures: BTreeMap<&'static str, (&'static str, &'static str, String)>,
}

impl Exposition {
    /// Content type of the page.
    pub(crate) const KIND: &'static str = "text/plain; version=0.0.4; charset=utf-8";

    /// Creates a page without metrics.
    pub(crate) fn new(job: &str, process: usize) -> Self {
        let labels = format!("job=\"{}\",process=\"{process}\"", escaped(job));
        Exposition { labels, figures: BTreeMap::new() }
    }

    /// Returns the text of the page.
    pub(crate) fn text(&self) -> String {
        let mut page = String::new();
        for (name, (kind, help, lines)) in &self.figures {
            // Writing to a string cannot fail.
            let _ = write!(page, "# HELP {name} {help}\n# TYPE {name} {kind}\n{lines}");
        }
        page
    }

    fn put(&mut self, kind: &'static str, name: &'static str, help: &'static str, of: &[(&str, &str)], value: f64) {
        let (_, _, lines) = self.figures.entry(name).or_insert((kind, help, String::new()));
        let mut labels = self.labels.clone();
        for (label, value) in of {
            let _ = write!(labels, ",{label}=\"{}\"", escaped(value));
        }
        let _ = writeln!(lines, "{name}{{{labels}}} {value}");
    }

    fn counter(&mut self, name: &'static str, help: &'static str, of: &[(&str, &str)], value: u64) {
        self.put("counter", name, help, of, value as f64);
    }

    fn gauge(&mut self, name: &'static str, help: &'static str, of: &[(&str, &str)], value: f64) {
        self.put("gauge", name, help, of, value);
    }

    /// Adds an event time in seconds; nothing if it is not known yet.
    fn time(&mut self, name: &'static str, help: &'static str, of: &[(&str, &str)], time: EventTime) {
        if time != EventTime::MIN && time != EventTime::MAX {
            self.gauge(name, help, of, time.millis() as f64 / 1e3);
        }
    }

    /// Adds the counters of a process.
    pub(crate) fn add_metrics(&mut self, metrics: &Metrics) {
        let JobSummary { epochs, sources, steps, tables, sinks, snapshots } = metrics.summary();
        self.counter("tidegate_epochs_total", "Epochs started.", &[], epochs);
        for source in &sources {
            let of = [("source", source.name.as_str())];
            self.counter("tidegate_source_records_total", "Records read.", &of, source.read);
            self.counter("tidegate_source_bytes_total", "Bytes of records read.", &of, source.bytes);
            self.counter("tidegate_source_rejected_total", "Records rejected.", &of, source.rejected);
            self.counter("tidegate_source_skipped_total", "Records left out on purpose.", &of, source.skipped);
            let help = "Offsets skipped, whose records had expired before they were read.";
            self.counter("tidegate_source_expired_total", help, &of, source.expired);
            let help = "The watermark of the stream, in event time.";
            self.time("tidegate_source_watermark_seconds", help, &of, source.watermark);
        }
        for step in &steps {
            let of = [("step", step.name.as_str())];
            let help = "Records that entered a window step, each once.";
            self.counter("tidegate_step_records_total", help, &of, step.received);
            self.counter("tidegate_step_late_total", "Records that were late.", &of, step.late);
            let help = "Late records that were in order, of partitions or streams that had been idle.";
            self.counter("tidegate_step_late_after_idle_total", help, &of, step.late_after_idle);
            self.counter("tidegate_step_closed_rows_total", "Rows of windows that closed.", &of, step.closed_rows);
        }
        for (name, step) in metrics.steps() {
            let help = "The watermark that a window step has reached, in event time.";
            self.time("tidegate_step_watermark_seconds", help, &[("step", &name)], step.watermark.get());
        }
        for table in &tables {
            let of = [("table", table.name.as_str())];
            self.counter("tidegate_table_records_total", "Records that entered a table.", &of, table.received);
            self.counter("tidegate_table_changes_total", "Rows of a table that changed.", &of, table.changes);
            let help = "Checked changes that did not fit the row of a table.";
            self.counter("tidegate_table_differences_total", help, &of, table.differences);
        }
        for sink in &sinks {
            let of = [("sink", sink.name.as_str())];
            self.counter("tidegate_sink_rows_total", "Rows published.", &of, sink.rows);
            self.counter("tidegate_sink_epochs_total", "Epochs in which rows were published.", &of, sink.epochs);
        }
        self.counter("tidegate_snapshots_total", "Snapshots taken.", &[], snapshots.taken);
        self.counter("tidegate_snapshot_rows_total", "Rows written for snapshots.", &[], snapshots.rows);
        self.counter("tidegate_snapshot_bytes_total", "Bytes written for snapshots.", &[], snapshots.bytes);
        self.counter(
            "tidegate_merged_bytes_total",
            "Bytes of segments merged in the background.",
            &[],
            snapshots.merged,
        );
        if let Some(last) = metrics.snapshots.recent().last() {
            let help = "Time from the end of the last snapshot's epoch until its manifest was on disk.";
            self.gauge("tidegate_snapshot_duration_seconds", help, &[], last.took.as_secs_f64());
        }
        if let Some(age) = metrics.snapshots.age() {
            self.gauge("tidegate_snapshot_age_seconds", "Age of the last snapshot on disk.", &[], age.as_secs_f64());
        }
    }

    /// Adds the status of a process's workers and sinks.
    pub(crate) fn add_process(&mut self, process: &ProcessStatus) {
        let of_workers = |of: fn(&crate::status::WorkerStatus) -> u64| process.workers.iter().map(of);
        let bytes = of_workers(|worker| worker.in_flight_bytes).sum::<u64>() as f64;
        self.gauge("tidegate_in_flight_bytes", "Bytes of records read and not yet published.", &[], bytes);
        let epochs = of_workers(|worker| worker.in_flight_epochs).max().unwrap_or(0) as f64;
        self.gauge("tidegate_in_flight_epochs", "Epochs with records read and not yet published.", &[], epochs);
        let lag = of_workers(|worker| worker.front.map_or(0, |front| front.since_ms)).max().unwrap_or(0) as f64 / 1e3;
        let help = "Time for which the oldest unpublished epoch has been at its current stage.";
        self.gauge("tidegate_frontier_lag_seconds", help, &[], lag);
        let turned = of_workers(|worker| worker.turned_ms).max().unwrap_or(0) as f64 / 1e3;
        self.gauge("tidegate_worker_silence_seconds", "Time since the slowest worker's last iteration.", &[], turned);
        for partition in process.workers.iter().flat_map(|worker| &worker.partitions) {
            let number = partition.partition.to_string();
            let of = [("source", partition.source.as_str()), ("partition", number.as_str())];
            let help = "The watermark of a partition, in event time.";
            self.time("tidegate_partition_watermark_seconds", help, &of, partition.watermark);
            let help = "The offset of the next record to read.";
            self.gauge("tidegate_partition_offset", help, &of, partition.next as f64);
            let help = "1 if a partition is idle, and so holds back no watermark; else 0.";
            self.gauge("tidegate_partition_idle", help, &of, f64::from(u8::from(partition.idle)));
            match partition.lag() {
                Some(lag) if partition.in_bytes => {
                    let help = "Bytes of a partition that have not been read yet.";
                    self.gauge("tidegate_partition_lag_bytes", help, &of, lag as f64);
                }
                Some(lag) => {
                    let help = "Records of a partition that have not been read yet.";
                    self.gauge("tidegate_partition_lag_records", help, &of, lag as f64);
                }
                None => {}
            }
        }
        for windows in &process.windows {
            let of = [("step", windows.step.as_str())];
            match windows.keys {
                Some(keys) => {
                    let help = "Keys with rows of a step whose windows differ by key, as sessions do.";
                    self.gauge("tidegate_step_open_keys", help, &of, keys as f64);
                }
                None => {
                    let help = "Windows of a step that have rows and are not closed; of a window that several processes \
                                have rows of, each counts it.";
                    self.gauge("tidegate_step_open_windows", help, &of, windows.open_count() as f64);
                }
            }
        }
        for sink in &process.sinks {
            let waiting = sink.waiting.map_or(0.0, |_| sink.since_ms as f64 / 1e3);
            let help = "Time for which a sink has had its oldest unpublished epoch.";
            self.gauge("tidegate_sink_lag_seconds", help, &[("sink", &sink.name)], waiting);
        }
    }

    /// Adds the counters of the HTTP server.
    pub(crate) fn add_server(&mut self, wrong_tokens: &Counter) {
        let help = "Requests over HTTP with a token that is not the job's.";
        self.counter("tidegate_http_wrong_tokens_total", help, &[], wrong_tokens.get());
    }

    /// Adds the counters of the journal.
    pub(crate) fn add_journal(&mut self, syncs: &SyncMetrics) {
        self.counter("tidegate_journal_syncs_total", "Syncs of the journal.", &[], syncs.count.get());
        self.counter("tidegate_journal_bytes_total", "Bytes written to the journal.", &[], syncs.bytes.get());
        let help = "Time spent writing and syncing the journal.";
        self.put("counter", "tidegate_journal_sync_seconds_total", help, &[], syncs.time().as_secs_f64());
    }
}

/// Escapes the value of a label.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::{OpenWindow, PartitionStatus, StepWindows, WorkerStatus};

    #[test]
    fn a_page_has_each_figure_once_with_its_lines_beneath() {
        let metrics = Metrics::default();
        metrics.source("a\"b").read.add(3);
        metrics.source("c").read.add(4);
        let mut page = Exposition::new("job", 1);
        page.add_metrics(&metrics);
        let partition = PartitionStatus {
            source: "c".into(),
            partition: 2,
            watermark: EventTime::from_millis(1_500),
            next: 7,
            end: Some(10),
            ..PartitionStatus::default()
        };
        let worker = WorkerStatus { partitions: vec![partition], ..WorkerStatus::default() };
        let windows = vec![
            StepWindows { step: "a".into(), open: vec![OpenWindow::default(); 2], more: 3, ..StepWindows::default() },
            StepWindows { step: "b".into(), keys: Some(4), ..StepWindows::default() },
        ];
        page.add_process(&ProcessStatus { process: 1, workers: vec![worker], windows, ..ProcessStatus::default() });
        let text = page.text();
        for line in [
            "# TYPE tidegate_source_records_total counter",
            r#"tidegate_source_records_total{job="job",process="1",source="a\"b"} 3"#,
            r#"tidegate_source_records_total{job="job",process="1",source="c"} 4"#,
            r#"tidegate_partition_lag_records{job="job",process="1",source="c",partition="2"} 3"#,
            "# TYPE tidegate_step_open_windows gauge",
            r#"tidegate_step_open_windows{job="job",process="1",step="a"} 5"#,
            r#"tidegate_step_open_keys{job="job",process="1",step="b"} 4"#,
            r#"tidegate_partition_watermark_seconds{job="job",process="1",source="c",partition="2"} 1.5"#,
        ] {
            assert!(text.lines().any(|known| known == line), "{line} is not in\n{text}");
        }
        assert_eq!(text.matches("# TYPE tidegate_source_records_total").count(), 1);
        assert!(!text.contains("tidegate_source_watermark_seconds"), "there is no watermark yet");
        for (figure, step) in [("windows", "b"), ("keys", "a")] {
            let own = |line: &str| line.starts_with(&format!("tidegate_step_open_{figure}{{"));
            assert!(!text.lines().any(|line| own(line) && line.contains(&format!("step=\"{step}\""))), "{text}");
        }
    }
}
