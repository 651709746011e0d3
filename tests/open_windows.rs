//! A running job reports its open windows, and the records that it leaves out: the figures are those of a naive count over
//! the same records, on any number of workers, with and without snapshots between.
#![expect(clippy::unwrap_used, reason = "a panic fails the test")]

use std::collections::{BTreeMap, BTreeSet};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use fastrand::Rng;
use tidegate::job::{RunReport, StopHandle, Watcher};
use tidegate::source::channel::{ChannelSender, channel};
use tidegate::source::{Options, Source};
use tidegate::status::{JobStatus, LeftOutKind, StepWindows};
use tidegate::stream::aggregate::Each;
use tidegate::testing::Captured;
use tidegate::{Closed, EventTime, Job, State, Window};

/// Key and event time.
type Row = (u8, i64);

const PATIENCE: Duration = Duration::from_secs(90);
/// Windows of the step `short` end at each multiple of this, those of `long` too.
const STEP: i64 = 100;
/// Length of the windows of the step `long`, which overlap.
const LONG: i64 = 500;
const LATENESS: i64 = 70;
const DISORDER: i64 = 30;
/// The number of windows that are listed.
const LISTED: usize = 24;

/// A job in this process, over a channel.
struct RunningJob {
    sender: ChannelSender<Row>,
    watcher: Watcher,
    stop: StopHandle,
    job: Option<JoinHandle<tidegate::Result<RunReport>>>,
}

impl RunningJob {
    fn start(workers: usize, state: Option<State>) -> RunningJob {
        let (sender, source) = channel::<Row>(10_000);
        let source = source.event_time(|row: &Row| row.1).idle_after(Duration::from_secs(3_600));
        let source = source.out_of_order(Duration::from_millis(DISORDER as u64));
        let mut job = Job::new("open").workers(workers).epoch(Duration::from_millis(10));
        if let Some(state) = state {
            job = job.state(state);
        }
        Self::run(sender, job, source)
    }

    fn run(sender: ChannelSender<Row>, job: Job, source: impl Source<Item = Row>) -> RunningJob {
        let (watcher, stop) = (job.watcher(), job.stopper());
        let out = [Captured::<Row>::new(), Captured::new(), Captured::new()];
        let query = move |flow: &tidegate::Flow<'_>| {
            let rows = flow.read("rows", &source);
            let keyed = || rows.clone().key_by(|row| row.0);
            let row = |closed: Closed<u8, i64>| (closed.key, closed.value);
            let millis = |millis: i64| Duration::from_millis(millis as u64);
            let short = keyed().window(Window::tumbling(millis(STEP))).allowed_lateness(millis(LATENESS));
            short.aggregate("short", Each::count).on_close().map(row).write("short", &out[0]);
            let long = keyed().window(Window::sliding(millis(LONG), millis(STEP)));
            long.aggregate("long", Each::count).on_close().map(row).write("long", &out[1]);
            let sessions = keyed().window(Window::session(millis(STEP)));
            sessions.aggregate("sessions", Each::count).on_close().map(row).write("sessions", &out[2]);
        };
        RunningJob { sender, watcher, stop, job: Some(std::thread::spawn(move || job.run(query))) }
    }

    /// Waits until the status satisfies `check`, which says what is missing.
    fn until(&self, check: impl Fn(&JobStatus) -> Result<(), String>) {
        let begun = Instant::now();
        loop {
            let status = self.watcher.status();
            let missing = status.as_ref().map_or_else(|| Err(String::from("no status")), &check);
            let Err(missing) = missing else { return };
            assert!(begun.elapsed() < PATIENCE, "{missing}\n{status:#?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for RunningJob {
    fn drop(&mut self) {
        self.stop.stop();
        let ran = self.job.take().unwrap().join().unwrap();
        assert!(ran.is_ok() || std::thread::panicking(), "{ran:?}");
    }
}

/// A naive model of a step with windows: all rows of all windows, and which of them are closed.
struct ModelStep {
    size: i64,
    lateness: i64,
    open: BTreeMap<i64, BTreeSet<u8>>,
    closed: BTreeMap<i64, BTreeSet<u8>>,
    late: Vec<u64>,
}

impl ModelStep {
    fn new(size: i64, lateness: i64) -> ModelStep {
        ModelStep { size, lateness, open: BTreeMap::new(), closed: BTreeMap::new(), late: Vec::new() }
    }

    /// Takes a record, at the watermark before it.
    fn take(&mut self, position: u64, (key, at): Row, watermark: i64) {
        let first = at - at.rem_euclid(STEP) + STEP;
        let ends = (0..self.size / STEP).map(|window| first + window * STEP);
        let on_time: Vec<i64> = ends.filter(|end| end.saturating_add(self.lateness) > watermark).collect();
        if on_time.is_empty() {
            self.late.push(position);
        }
        for end in on_time {
            self.open.entry(end).or_default().insert(key);
        }
    }

    fn close(&mut self, watermark: i64) {
        let open = self.open.split_off(&(watermark - self.lateness + 1));
        self.closed.extend(std::mem::replace(&mut self.open, open));
    }
}

fn check(what: &str, found: u64, expected: u64) -> Result<(), String> {
    if found == expected { Ok(()) } else { Err(format!("{what} is {found}, not {expected}")) }
}

/// Compares what is reported of a step with the model.
fn check_step(found: &StepWindows, model: &ModelStep, watermark: i64) -> Result<(), String> {
    let expected: Vec<_> = model.open.iter().map(|(end, keys)| (*end, keys.len() as u64)).collect();
    let ends: Vec<_> = found.open.iter().map(|open| open.end.millis()).collect();
    let listed = expected.len().min(LISTED);
    if ends.iter().copied().ne(expected[..listed].iter().map(|(end, _)| *end)) {
        return Err(format!("{}: windows {ends:?}, not {expected:?}", found.step));
    }
    check("more", found.more, (expected.len() - listed) as u64)?;
    for (open, (end, rows)) in found.open.iter().zip(expected) {
        if open.rows < rows || open.exact && open.rows != rows {
            return Err(format!("{}: rows of {open:?}, not {rows}", found.step));
        }
        let start = open.start.millis();
        check("length", (end - start) as u64, model.size as u64)?;
        let closes_at = end + model.lateness;
        check("due", open.closes_at.map_or(0, EventTime::millis) as u64, closes_at as u64)?;
        check("missing", open.missing_ms.unwrap_or(u64::MAX), (closes_at - watermark) as u64)?;
    }
    match (&found.closed, model.closed.last_key_value()) {
        (None, None) => Ok(()),
        (Some(closed), Some((end, keys))) if closed.end.millis() == *end => {
            check("rows of the last one closed", closed.rows, keys.len() as u64)
        }
        (found, expected) => Err(format!("closed: {found:?}, not {expected:?}")),
    }
}

fn check_status(status: &JobStatus, models: &[(&str, &ModelStep)], watermark: i64) -> Result<(), String> {
    for (name, model) in models {
        let step = status.windows.iter().find(|step| step.step == *name);
        check_step(step.ok_or_else(|| format!("no windows of {name}"))?, model, watermark)?;
        let late = status.left_out.iter().find(|left| left.kind == LeftOutKind::Late && left.name == *name);
        check("late", late.map_or(0, |late| late.count), model.late.len() as u64)?;
        // The last of all is the newest, and all of them are late ones.
        let offsets: Vec<u64> = late.iter().flat_map(|late| &late.records).map(|record| record.offset).collect();
        if offsets.len() != model.late.len().min(8) || offsets.iter().any(|offset| !model.late.contains(offset)) {
            return Err(format!("{name}: late {offsets:?} of {:?}", model.late));
        }
    }
    Ok(())
}

/// Sends random records and compares; `spread` is the length of event time that they are from at a time.
fn compare(job: &RunningJob, seed: u64, spread: i64) {
    let (mut random, mut greatest) = (Rng::with_seed(seed), i64::MIN);
    let (mut short, mut long) = (ModelStep::new(STEP, LATENESS), ModelStep::new(LONG, 0));
    let mut now = 10_000;
    for round in 0..6 {
        for _ in 0..random.usize(1..60) {
            now += random.i64(0..40);
            let at = if random.u8(0..5) == 0 { (now - random.i64(0..900)).max(0) } else { now + random.i64(0..spread) };
            let row = (random.u8(0..20), at);
            let position = job.sender.send(row).unwrap();
            let watermark = if greatest == i64::MIN { i64::MIN } else { greatest - DISORDER };
            for model in [&mut short, &mut long] {
                model.take(position, row, watermark);
            }
            greatest = greatest.max(at);
        }
        let watermark = greatest - DISORDER;
        short.close(watermark);
        long.close(watermark);
        job.until(|status| {
            check_status(status, &[("short", &short), ("long", &long)], watermark)
                .map_err(|missing| format!("seed {seed}, round {round}: {missing}"))
        });
    }
    let sessions = |status: &JobStatus| {
        let sessions = status.windows.iter().find(|step| step.step == "sessions").ok_or("no sessions")?;
        let holds = sessions.keys > Some(0) && sessions.keys <= Some(20) && sessions.open.is_empty();
        if holds { Ok(()) } else { Err(format!("{sessions:?}")) }
    };
    job.until(sessions);
    assert!(!short.late.is_empty() || spread > STEP, "seed {seed} makes no late records");
}

#[test]
fn open_windows_are_those_of_a_naive_count_on_any_number_of_workers() {
    for (workers, seed, spread) in [(1, 1, 60), (2, 2, 60), (3, 3, 5_000)] {
        let job = RunningJob::start(workers, None);
        compare(&job, seed, spread);
        // Without snapshots all numbers of windows that have one pane are exact.
        let status = job.watcher.status().unwrap();
        let short = status.windows.iter().find(|step| step.step == "short").unwrap();
        assert!(short.open.iter().all(|open| open.exact), "{short:#?}");
    }
}

#[test]
fn rows_are_at_most_as_many_as_reported_where_snapshots_are_taken_between() {
    let folder = tempfile::tempdir().unwrap();
    let state = || State::at(folder.path().join("state")).snapshot_every(Duration::from_millis(30));
    compare(&RunningJob::start(2, Some(state())), 4, 300);
}

/// Rejected records are noted with their places and reasons; a long reason is cut, and only the last ones are kept.
#[test]
fn the_last_rejected_records_are_noted() {
    let (sender, source) = channel::<Row>(10_000);
    // A time next to the year 10000 is rejected.
    let source = source.event_time(|row: &Row| if row.0 == 0 { i64::MAX } else { row.1 });
    let job = Job::new("open").epoch(Duration::from_millis(10)).options(Options::default());
    let job = RunningJob::run(sender, job, source);
    let rejected: Vec<u64> =
        (0..40).filter_map(|at| job.sender.send((at % 3, 1_000)).ok().filter(|_| at % 3 == 0)).collect();
    job.until(|status| {
        let found = status.left_out.iter().find(|left| left.kind == LeftOutKind::Rejected && left.name == "rows");
        let found = found.ok_or("nothing is rejected")?;
        check("rejected", found.count, rejected.len() as u64)?;
        let offsets: Vec<u64> = found.records.iter().map(|record| record.offset).collect();
        let expected: Vec<u64> = rejected.iter().rev().copied().take(8).collect();
        let said = found.records.iter().all(|record| !record.reason.is_empty() && record.reason.len() < 400);
        if offsets == expected && said { Ok(()) } else { Err(format!("{found:?}, not {expected:?}")) }
    });
}
