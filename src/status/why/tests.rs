//! Tests on hand-made statuses: which causes are named, which are not, and in which order.

use super::super::{ConnectionStatus, FrontStatus, SinkStatus, SnapshotStatus, StepStatus, StreamStatus};
use super::*;

fn at(millis: i64) -> EventTime {
    EventTime::from_millis(millis)
}

fn partition(number: u32, watermark: i64) -> PartitionStatus {
    let watermark = at(watermark);
    PartitionStatus { source: "t".into(), partition: number, watermark, next: 5, ..PartitionStatus::default() }
}

/// A healthy job of two processes with a worker each: partition 0 is at 100, partition 1 at 120.
fn well() -> JobStatus {
    let process = |number: usize, watermark| ProcessStatus {
        process: number,
        workers: vec![WorkerStatus {
            worker: number,
            shown: Some(Epoch(8)),
            partitions: vec![partition(number as u32, watermark)],
            ..WorkerStatus::default()
        }],
        ..ProcessStatus::default()
    };
    JobStatus {
        job: "totals".into(),
        processes: vec![process(0, 100), process(1, 120)],
        streams: vec![StreamStatus { source: "t".into(), watermark: at(100), idle_after_ms: 0 }],
        steps: vec![StepStatus { name: "totals".into(), watermark: at(100), lateness_ms: 0, late_after_idle: 0 }],
        idle_timeout_ms: 30_000,
        ..JobStatus::default()
    }
}

fn names(why: &Why) -> Vec<&str> {
    why.holds.iter().map(|hold| hold.name.as_str()).collect()
}

#[test]
fn of_a_job_that_is_well_nothing_holds() {
    let why = why(&well(), None);
    assert_eq!(why.holds, []);
    assert!(why.summary.contains("nothing holds it"), "{why}");
}

#[test]
fn a_window_that_has_closed_says_so() {
    let why = why(&well(), Some(at(100)));
    assert_eq!(why.holds, []);
    assert!(why.summary.contains("has closed"), "{why}");
}

#[test]
fn the_partition_that_is_behind_the_end_is_named_and_not_the_other() {
    let mut status = well();
    status.processes[0].workers[0].partitions[0].moved_ms = 7_400;
    let why = why(&status, Some(at(110)));
    assert_eq!(names(&why), ["partition 0 of t"]);
    assert_eq!((why.holds[0].cause, why.holds[0].since_ms), (BlockerKind::Partition, Some(7_400)));
    assert!(why.holds[0].help.contains("30s"), "{why}");
    assert!(why.summary.contains("waits for partition 0 of t"), "{why}");
}

#[test]
fn partitions_are_named_from_the_least_on() {
    assert_eq!(names(&why(&well(), Some(at(500)))), ["partition 0 of t", "partition 1 of t"]);
}

#[test]
fn a_partition_without_a_record_is_named_first() {
    let mut status = well();
    let partition = &mut status.processes[1].workers[0].partitions[0];
    (partition.watermark, partition.moved_ms) = (EventTime::MIN, 60_000);
    status.streams[0].watermark = EventTime::MIN;
    let why = why(&status, None);
    assert_eq!(names(&why), ["partition 1 of t"]);
    assert!(why.holds[0].says.contains("no record yet"), "{why}");
}

#[test]
fn an_idle_partition_holds_nothing_and_when_all_are_idle_the_source_does() {
    let mut status = well();
    status.processes[0].workers[0].partitions[0].idle = true;
    assert_eq!(names(&why(&status, Some(at(115)))), ["step totals"]);
    status.processes[1].workers[0].partitions[0].idle = true;
    assert_eq!(names(&why(&status, Some(at(115)))), ["source t"]);
}

#[test]
fn an_idle_stream_holds_nothing_that_the_steps_have_come_past() {
    let mut status = well();
    status.processes.iter_mut().for_each(|process| process.workers[0].partitions[0].idle = true);
    status.steps[0].watermark = at(200);
    assert_eq!(names(&why(&status, Some(at(150)))), Vec::<&str>::new());
    assert_eq!(names(&why(&status, Some(at(250)))), ["source t"]);
}

#[test]
fn records_that_are_late_after_silence_are_told_with_the_remedy() {
    let mut status = well();
    status.steps[0].late_after_idle = 60;
    for window in [None, Some(at(90))] {
        let summary = why(&status, window).summary;
        let says = ["step totals", "60 of the late ones", "had been idle", "--idle-timeout"];
        assert!(says.iter().all(|part| summary.contains(part)), "{summary}");
    }
}

#[test]
fn the_idle_time_that_is_told_is_the_stream_s_own() {
    let mut status = well();
    status.streams[0].idle_after_ms = 5_000;
    let why = why(&status, Some(at(110)));
    assert!(why.holds[0].help.contains("5.0 s after"), "{why}");
}

#[test]
fn a_process_without_signs_is_the_first_cause() {
    let mut status = well();
    status.processes[0].silent_ms = 4_000;
    let why = why(&status, Some(at(110)));
    assert_eq!(names(&why), ["process 0", "partition 0 of t"]);
    assert!(why.holds[0].help.contains("kill -CONT"));
}

#[test]
fn processes_that_do_not_hear_each_other_are_named_once_and_not_when_one_of_them_is_silent() {
    let mut status = well();
    let hears = |process, silent_ms| vec![ConnectionStatus { process, silent_ms }];
    (status.processes[0].connections, status.processes[1].connections) = (hears(1, 3_000), hears(0, 3_200));
    let told = why(&status, None);
    assert_eq!(names(&told), ["the connection of processes 0 and 1"]);
    assert_eq!((told.holds[0].cause, told.holds[0].since_ms), (BlockerKind::Connection, Some(3_200)));
    assert!(told.holds[0].says.contains("from process 0 to process 1"), "{told}");
    status.processes[1].connections = hears(0, 100);
    assert!(why(&status, None).holds[0].says.contains("from process 1 to process 0"));
    status.processes[1].silent_ms = 4_000;
    assert_eq!(names(&why(&status, None)), ["process 1"]);
}

#[test]
fn a_worker_that_is_stuck_is_named_with_its_step() {
    let mut status = well();
    let worker = &mut status.processes[1].workers[0];
    (worker.turned_ms, worker.step) = (9_000, Some("totals".into()));
    let why = why(&status, None);
    assert_eq!(names(&why), ["worker 1 of process 1"]);
    assert!(why.holds[0].says.contains("has not left step totals"));
}

#[test]
fn a_journal_that_is_not_synced_is_named() {
    let mut status = well();
    status.processes[1].workers[0].front =
        Some(FrontStatus { epoch: Epoch(10), stage: Stage::Syncing, since_ms: 3_000 });
    let why = why(&status, Some(at(90)));
    assert_eq!(names(&why), ["the journal of process 1 (worker 1)"]);
    assert_eq!(why.holds[0].cause, BlockerKind::Sync);
}

#[test]
fn a_sink_that_is_behind_is_named_instead_of_the_steps() {
    let mut status = well();
    status.processes[0].workers[0].front =
        Some(FrontStatus { epoch: Epoch(10), stage: Stage::Flowing, since_ms: 3_000 });
    assert_eq!(names(&why(&status, None)), ["the steps"]);
    status.processes[0].workers[0].step = Some("totals".into());
    assert_eq!(names(&why(&status, None)), ["step totals on worker 0"]);
    status.processes[0].sinks = vec![SinkStatus { name: "out".into(), waiting: Some(Epoch(10)), since_ms: 2_500 }];
    assert_eq!(names(&why(&status, None)), ["sink out"]);
}

#[test]
fn allowed_lateness_is_told() {
    let mut status = well();
    status.steps[0].lateness_ms = 50;
    let why = why(&status, Some(at(90)));
    assert_eq!(names(&why), ["step totals"]);
    assert!(why.holds[0].says.contains("keeps it open"), "{why}");
}

#[test]
fn a_snapshot_that_is_not_on_disk_is_told_with_its_reason() {
    let mut status = well();
    let snapshot = SnapshotStatus { announced: Epoch(10), announced_ms: 5_000, committed: Epoch(4) };
    status.processes[0].snapshot = Some(snapshot);
    assert!(why(&status, None).holds[0].says.contains("not on disk"));
    status.processes[0].workers[0].front = Some(FrontStatus { epoch: Epoch(10), stage: Stage::Reading, since_ms: 0 });
    assert!(why(&status, None).holds[0].says.contains("waits for its epoch"));
}

#[test]
fn a_source_that_is_read_first_is_named_with_what_is_left_of_it() {
    let mut status = well();
    let initial =
        |number, initial| PartitionStatus { source: "rates".into(), initial: Some(initial), ..partition(number, 0) };
    let worker = &mut status.processes[0].workers[0];
    worker.reads_first = true;
    worker.partitions.extend([initial(7, (3, 10)), initial(8, (5, 5))]);
    let told = why(&status, None);
    assert_eq!((told.holds[0].cause, &*told.holds[0].name), (BlockerKind::Source, "source rates"));
    assert_eq!(told.holds[0].says, "is to be read first (8 of 15 records)");
    assert!(told.summary.contains("wait for source rates"), "{}", told.summary);
    let worker = &mut status.processes[0].workers[0];
    worker.partitions.iter_mut().for_each(|at| at.initial = at.initial.map(|(_, all)| (all, all)));
    assert_eq!(why(&status, None).holds[0].name, "the sources that are read first");
    status.processes[0].workers[0].reads_first = false;
    assert!(why(&status, None).holds.iter().all(|hold| !hold.name.contains("first")));
}
