//! Every kind of blocker is reported when it really occurs: a stuck worker, a disk that does not sync, a sink whose
//! broker is gone, a file to which nobody writes. (A process that sends no heartbeat is in `watch`.) The analysis of a
//! status is tested beside its code; here nothing is simulated but the stuck part itself.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::broker::Broker;
use serde::{Deserialize, Serialize};
use tempfile::TempDir;
use tidegate::durable::disk::{Disk, OsDisk};
use tidegate::job::{RunReport, StopHandle, Watcher};
use tidegate::sink::Sink;
use tidegate::sink::kafka::Publisher;
use tidegate::source::kafka::EmbeddedBroker;
use tidegate::source::{Options, Source};
use tidegate::status::{BlockerKind, Why, why};
use tidegate::testing::disk::{HookedDisk, OperationKind};
use tidegate::{Closed, EventTime, Job, State, Window, csv, kafka, ndjson};

/// Time in which a blocker has to be reported.
const PATIENCE: Duration = Duration::from_secs(60);
/// Idle timeouts: one that no test waits for, and one that expires soon.
const LONG: Duration = Duration::from_secs(3_600);
const SHORT: Duration = Duration::from_millis(300);
/// The end of a window without records.
const FAR: i64 = 1_000_000_000;

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
struct Tick {
    id: u64,
    at_ms: i64,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
struct Count {
    end: EventTime,
    ticks: i64,
}

fn text(id: u64, at_ms: i64) -> String {
    format!("{{\"id\":{id},\"at_ms\":{at_ms}}}\n")
}

/// A gate that threads pass while it is open.
#[derive(Debug, Default)]
struct Gate(Mutex<bool>, Condvar);

impl Gate {
    fn pass(&self) {
        drop(self.1.wait_while(self.0.lock().unwrap(), |closed| *closed).unwrap());
    }

    fn close(&self, closed: bool) {
        *self.0.lock().unwrap() = closed;
        self.1.notify_all();
    }
}

/// Returns a disk on which the files that `holds` names are synced only while a gate is open.
fn gated_disk(gate: &Arc<Gate>, holds: fn(&Path) -> bool) -> Arc<dyn Disk> {
    let gate = Arc::clone(gate);
    let disk = HookedDisk::new(OsDisk::shared(), move |operation, act| {
        if operation.kind == OperationKind::Sync && holds(&operation.path) {
            gate.pass();
        }
        act()
    });
    disk.shared()
}

/// A job that counts ticks in windows of 100 ms, with an allowed lateness of a second.
struct Running {
    folder: TempDir,
    watcher: Watcher,
    stop: StopHandle,
    gate: Arc<Gate>,
    job: Option<JoinHandle<tidegate::Result<RunReport>>>,
}

impl Running {
    fn start(
        folder: TempDir,
        (source, idle_timeout): (impl Source<Item = Tick>, Duration),
        sink: impl Sink<Count>,
        adjust: impl FnOnce(Job, &Path) -> Job,
    ) -> Running {
        let gate = Arc::<Gate>::default();
        let options = Options::default().out_of_order(Duration::ZERO).idle_timeout(idle_timeout);
        let job = adjust(Job::new("causes").epoch(Duration::from_millis(20)).options(options), folder.path());
        let (watcher, stop, passed) = (job.watcher(), job.stopper(), Arc::clone(&gate));
        let query = move |flow: &tidegate::Flow<'_>| {
            let gate = Arc::clone(&passed);
            let ticks = flow.read("ticks", &source).map(move |tick| {
                if tick.id == STUCK {
                    gate.pass();
                }
                tick
            });
            let windows = ticks.key_by(|_| 0_u8).window(Window::tumbling(Duration::from_millis(100)));
            let counts = windows
                .allowed_lateness(Duration::from_secs(1))
                .aggregate("counts", tidegate::stream::aggregate::Each::count);
            let count = |Closed { window, value, .. }: Closed<u8, i64>| Count { end: window.end, ticks: value };
            counts.on_close().map(count).write("out", &sink);
        };
        let job = Some(std::thread::spawn(move || job.run(query)));
        Running { folder, watcher, stop, gate, job }
    }

    /// Starts a job over a file that is followed.
    fn over_file(sink: impl Sink<Count>, folder: TempDir, adjust: impl FnOnce(Job, &Path) -> Job) -> Running {
        let path = folder.path().join("ticks.ndjson");
        std::fs::write(&path, text(1, 0)).unwrap();
        let source = ndjson::Source::new(&path).event_time(|tick: &Tick| tick.at_ms);
        let running = Running::start(folder, (source, LONG), sink, adjust);
        // The job has begun when it has a watermark.
        running.until("it has begun", Some(0), |why| why.holds.iter().any(|hold| hold.cause == BlockerKind::Step));
        running
    }

    fn append(&self, text: &str) {
        let mut file = OpenOptions::new().append(true).open(self.path("ticks.ndjson")).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    #[track_caller]
    fn until(&self, what: &str, window: Option<i64>, holds: impl Fn(&Why) -> bool) -> Why {
        let begun = Instant::now();
        loop {
            let told = self.watcher.status().map(|status| why(&status, window.map(EventTime::from_millis)));
            if let Some(why) = told.as_ref().filter(|why| holds(why)) {
                return why.clone();
            }
            let told = told.map_or(String::new(), |why| why.to_string());
            assert!(!self.job.as_ref().unwrap().is_finished(), "it ended before {what}: {told}");
            assert!(begun.elapsed() < PATIENCE, "not told that {what}: {told}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until the first blocker is of this kind and has this name.
    #[track_caller]
    fn until_first(&self, window: Option<i64>, cause: BlockerKind, name: &str) -> String {
        let is_first = |why: &Why| why.holds.first().is_some_and(|hold| (hold.cause, &*hold.name) == (cause, name));
        self.until(&format!("{name} is the cause"), window, is_first).to_string()
    }

    fn end(mut self) {
        self.gate.close(false);
        self.stop.stop();
        self.job.take().unwrap().join().unwrap().unwrap();
    }
}

/// Id of a tick at which a step blocks until the gate is open.
const STUCK: u64 = 666;

fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn plain(folder: &TempDir) -> csv::Sink {
    csv::Sink::new(folder.path().join("out.csv"))
}

/// Starts a job with state on a disk on which files of this kind are not synced while the gate is closed.
fn gated(holds: fn(&Path) -> bool) -> (Running, Arc<Gate>) {
    let (folder, gate) = (folder(), Arc::<Gate>::default());
    let disk = gated_disk(&gate, holds);
    let out = plain(&folder);
    let running = Running::over_file(out, folder, |job, folder| {
        job.state(State::at(folder.join("state")).snapshot_every(Duration::from_millis(50)).disk(disk))
    });
    (running, gate)
}

#[test]
fn a_file_that_nobody_writes_is_the_cause() {
    let folder = folder();
    let out = plain(&folder);
    let running = Running::over_file(out, folder, |job, _| job);
    let told = running.until_first(Some(FAR), BlockerKind::Partition, "the file of ticks");
    assert!(told.contains("1970-01-01T00:00:00.000Z") && !told.contains("topic"), "{told}");
    let told = running.until_first(None, BlockerKind::Partition, "the file of ticks");
    assert!(!told.contains("no partition"), "{told}");
    // An incomplete last line is reported.
    running.append("{\"id\"");
    let told = running.until("the line has no end", Some(FAR), |why| why.to_string().contains("has no end yet"));
    assert!(told.to_string().contains("whoever writes the file has to end it"), "{told}");
    running.end();
}

#[test]
fn a_file_that_is_idle_holds_nothing_and_its_source_is_the_cause() {
    let folder = folder();
    let (out, path) = (plain(&folder), folder.path().join("ticks.ndjson"));
    std::fs::write(&path, text(1, 0)).unwrap();
    let source = ndjson::Source::new(&path).event_time(|tick: &Tick| tick.at_ms);
    let running = Running::start(folder, (source, SHORT), out, |job, _| job);
    let told = running.until("it is idle", Some(FAR), |why| why.to_string().contains("all idle"));
    assert_eq!((told.holds[0].cause, &*told.holds[0].name), (BlockerKind::Source, "source ticks"), "{told}");
    running.end();
}

#[test]
fn allowed_lateness_is_the_cause() {
    let folder = folder();
    let out = plain(&folder);
    let running = Running::over_file(out, folder, |job, _| job);
    running.append(&text(2, 500));
    let told = running.until_first(Some(100), BlockerKind::Step, "step counts");
    assert!(told.contains("keeps it open for late records"), "{told}");
    running.end();
}

#[test]
fn a_worker_that_waits_in_a_step_is_the_cause() {
    let folder = folder();
    let out = plain(&folder);
    let running = Running::over_file(out, folder, |job, _| job);
    running.gate.close(true);
    running.append(&text(STUCK, 10));
    for window in [None, Some(FAR)] {
        running.until_first(window, BlockerKind::Worker, "worker 0 of process 0");
    }
    running.end();
}

#[test]
fn a_topic_whose_partitions_are_all_idle_is_the_cause() {
    let broker = EmbeddedBroker::start().unwrap();
    broker.create_topic("ticks", 2).unwrap();
    let mut publisher = Publisher::open(broker.servers(), "ticks", [], None).unwrap();
    for partition in 0..2 {
        publisher.send_to(partition, None, text(1, 0).as_bytes(), None).unwrap();
    }
    publisher.flush().unwrap();
    let source = kafka::Source::json(broker.servers(), "ticks").event_time(|tick: &Tick| tick.at_ms);
    let folder = folder();
    let out = plain(&folder);
    let running = Running::start(folder, (source, SHORT), out, |job, _| job);
    let told = running.until("all are idle", Some(FAR), |why| why.to_string().contains("all idle"));
    assert_eq!((told.holds[0].cause, &*told.holds[0].name), (BlockerKind::Source, "source ticks"), "{told}");
    running.end();
}

#[test]
fn a_journal_that_is_not_synced_is_the_cause() {
    let (running, gate) = gated(|path| path.extension().is_some_and(|extension| extension == "journal"));
    gate.close(true);
    running.append(&text(2, 10));
    let told = running.until_first(None, BlockerKind::Sync, "the journal of process 0 (worker 0)");
    assert!(told.contains("is not synced"), "{told}");
    gate.close(false);
    running.end();
}

#[test]
fn a_snapshot_that_does_not_come_to_the_disk_is_told() {
    let (running, gate) = gated(|path| path.parent().is_some_and(|folder| folder.ends_with("manifests")));
    gate.close(true);
    running.append(&text(2, 10));
    let is_told = |why: &Why| why.holds.iter().any(|hold| hold.cause == BlockerKind::Snapshot);
    let told = running.until("the snapshot is the cause", None, is_told).to_string();
    assert!(told.contains("is complete and not on disk"), "{told}");
    gate.close(false);
    running.end();
}

#[test]
fn a_file_of_results_that_is_not_synced_is_the_cause() {
    let (running, gate) = gated(|path| path.ends_with("out.csv"));
    gate.close(true);
    running.append(&text(2, 10_000));
    let told = running.until_first(None, BlockerKind::Sink, "sink out");
    assert!(told.contains("has not published epoch"), "{told}");
    // The file that is read is silent too, but a blocker of records that were read comes first.
    let both = running.until("the file is silent too", None, |why| why.to_string().contains("the file of ticks"));
    assert_eq!(both.holds[0].cause, BlockerKind::Sink, "{both}");
    gate.close(false);
    running.end();
}

#[test]
fn a_topic_of_results_whose_broker_is_gone_is_the_cause() {
    let Some(broker) = Broker::start() else { return };
    broker.create("counts", 1);
    let sink = kafka::Sink::json(&broker.servers, "counts");
    let running = Running::over_file(sink, folder(), |job, folder| job.state(folder.join("state")));
    running.append(&text(2, 10_000));
    let read = |count: usize| {
        let begun = Instant::now();
        while crate::broker::committed(&broker.servers, "counts").len() < count {
            assert!(begun.elapsed() < PATIENCE, "no {count} rows came");
        }
    };
    read(1);
    broker.kill();
    running.append(&text(3, 20_000));
    let told = running.until_first(None, BlockerKind::Sink, "sink out");
    assert!(told.contains("has not published epoch"), "{told}");
    broker.restart();
    read(2);
    running.end();
}
