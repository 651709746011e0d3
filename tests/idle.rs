//! Silence of a partition, a stream or a file holds nothing back, and a source that wakes does not undo what was
//! published.
//!
//! The first thing that a new user sees is a small topic: a burst in one of its partitions, and then nothing. Its
//! windows have to close. The test controls the sources here: it decides which records there are, and which partitions
//! are idle.
#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

use std::collections::BTreeSet;
use std::io::Write as _;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tidegate::durable::disk::Disk;
use tidegate::durable::journal::{Frame, PartitionProgress};
use tidegate::job::{Ending, RunReport, StopHandle};
use tidegate::source::memory::MemorySource;
use tidegate::source::{
    Options, PartitionHandle, PartitionTracker, Polled, Reader, RestoredPartition, Source, TimeOf, WorkerContext,
};
use tidegate::stream::window::WindowType;
use tidegate::testing::{Captured, CrashingDisk, Script, TestRun};
use tidegate::time::Epoch;
use tidegate::{Closed, Error, Flow, Stream, Window, csv};

use common::cases::{Data, Deal, for_seeds, within};
use common::checks::{self, check_data, check_run, compare_rows};
use common::oracle::{self, OracleRecord, Row, Windows};
use common::turns::epochs_of_silence;

/// Timeout of each wait.
const PATIENCE: Duration = Duration::from_secs(50);

/// A record: its key and its event time.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
struct Tick {
    key: u8,
    at_ms: i64,
}

#[derive(Clone, Debug, Default)]
struct Partition {
    records: Vec<Tick>,
    /// `true` if the partition is idle once it has been read.
    silent: bool,
}

/// A topic whose records and silences the test controls while it is read.
#[derive(Clone, Debug)]
struct Steered(Arc<Mutex<Vec<Partition>>>);

impl Steered {
    fn new(partitions: usize) -> Self {
        Steered(Arc::new(Mutex::new(vec![Partition::default(); partitions])))
    }

    /// Appends records of one key, and sets if the partition is silent afterwards.
    fn send(&self, partition: usize, times: impl IntoIterator<Item = i64>, silent: bool) {
        let partition = &mut self.0.lock().unwrap()[partition];
        partition.records.extend(times.into_iter().map(|at_ms| Tick { key: 1, at_ms }));
        partition.silent = silent;
    }

    fn fall_silent(&self) {
        self.0.lock().unwrap().iter_mut().for_each(|partition| partition.silent = true);
    }
}

impl Source for Steered {
    type Item = Tick;

    fn describe(&self) -> String {
        String::from("records that a test decides on")
    }

    fn event_time(&self) -> TimeOf<Tick> {
        tidegate::source::time_of(|tick: &Tick| tick.at_ms)
    }

    fn out_of_order(&self) -> Option<Duration> {
        Some(Duration::ZERO)
    }

    fn open(&self, at: &WorkerContext) -> tidegate::Result<Box<dyn Reader<Tick>>> {
        let count = self.0.lock().unwrap().len() as u32;
        let mine = (0..count).filter(|id| at.owns(*id)).map(|id| (id, None)).collect();
        Ok(Box::new(SteeredReader { of: self.clone(), mine }))
    }
}

struct SteeredReader {
    of: Steered,
    mine: Vec<(u32, Option<PartitionHandle>)>,
}

impl SteeredReader {
    /// Takes the available records of a partition up to an offset; returns `true` if it is silent then.
    fn take(
        &self,
        epoch: Epoch,
        (id, slot): (u32, PartitionHandle),
        end: u64,
        intake: &mut PartitionTracker<Tick>,
    ) -> tidegate::Result<bool> {
        let (records, silent) = {
            let partition = &self.of.0.lock().unwrap()[id as usize];
            let (from, end) = (intake.next(slot) as usize, partition.records.len().min(end as usize));
            (partition.records[from..end].to_vec(), partition.silent)
        };
        intake.accept_all(epoch, slot, intake.next(slot), &records)?;
        Ok(silent)
    }
}

impl Reader<Tick> for SteeredReader {
    fn resume(
        &mut self,
        epoch: Epoch,
        places: &[RestoredPartition],
        intake: &mut PartitionTracker<Tick>,
    ) -> tidegate::Result<()> {
        intake.begin(epoch);
        for (id, slot) in &mut self.mine {
            let place = places.iter().find(|place| place.progress.partition == *id);
            *slot = place.map(|place| intake.resume(epoch, place));
        }
        Ok(())
    }

    fn poll(&mut self, epoch: Epoch, _budget: usize, intake: &mut PartitionTracker<Tick>) -> tidegate::Result<Polled> {
        intake.begin(epoch);
        for at in 0..self.mine.len() {
            let (id, slot) = self.mine[at];
            let slot = slot.unwrap_or_else(|| intake.track(epoch, id, 0, None));
            self.mine[at].1 = Some(slot);
            if self.take(epoch, (id, slot), u64::MAX, intake)? {
                intake.set_idle(slot);
            }
        }
        Ok(Polled::new(epoch, false))
    }

    fn replay(
        &mut self,
        epoch: Epoch,
        bounds: &[PartitionProgress],
        intake: &mut PartitionTracker<Tick>,
    ) -> tidegate::Result<bool> {
        intake.begin(epoch);
        for bound in bounds {
            let Some(at) = self.mine.iter().position(|(id, _)| *id == bound.partition) else { continue };
            let id = bound.partition;
            let slot =
                self.mine[at].1.unwrap_or_else(|| intake.track(epoch, id, bound.start_offset.unwrap_or(0), None));
            self.mine[at].1 = Some(slot);
            self.take(epoch, (id, slot), bound.next_offset, intake)?;
            intake.replay_flags(slot, bound);
        }
        Ok(true)
    }
}

/// Results of windows of ten milliseconds: the end of each window and its count, and the times of late records.
#[derive(Clone, Default)]
struct IdleCaptures {
    counts: Captured<(i64, i64)>,
    late: Captured<i64>,
}

impl IdleCaptures {
    fn of(&self, ticks: Stream<'_, Tick>) {
        let counts = ticks.key_by(|tick| tick.key).window(Window::tumbling(Duration::from_millis(10)));
        let counts = counts.aggregate("counts", tidegate::stream::aggregate::Each::count);
        counts.on_close().map(|row| (row.window.end.millis(), row.value)).write("counts", &self.counts);
        counts.late().map(|tick| tick.at_ms).write("late", &self.late);
    }
}

/// Runs a query on another thread until `holds` returns `true`, and then stops it.
fn run_until(
    run: TestRun,
    query: impl Fn(&Flow<'_>) + Send + Sync + 'static,
    holds: impl Fn() -> bool,
) -> Result<RunReport, Error> {
    let stop = StopHandle::default();
    let running = run.clock().stop_by(&stop);
    let running = std::thread::spawn(move || running.run(query).map(|outcome| outcome.report));
    let begun = Instant::now();
    while !holds() && !running.is_finished() {
        assert!(begun.elapsed() < PATIENCE, "it does not come to that");
        std::thread::sleep(Duration::from_millis(1));
    }
    stop.stop();
    running.join().unwrap()
}

fn on(disk: &CrashingDisk, workers: usize) -> TestRun {
    let disk: Arc<dyn Disk> = disk.shared();
    TestRun::new().workers(workers).state(&disk, "state")
}

/// A burst in one of four partitions, and the windows that close after it, with their counts.
const BURST: [i64; 7] = [1, 2, 15, 18, 33, 34, 40];
const CLOSED: [(i64, i64); 3] = [(10, 2), (20, 2), (40, 2)];

#[test]
fn windows_of_a_burst_close_when_the_last_partition_is_idle() {
    for (processes, workers) in [(1, 1), (1, 8), (4, 2)] {
        let (topic, shown) = (Steered::new(4), IdleCaptures::default());
        topic.send(2, BURST, false);
        let (source, own) = (topic.clone(), shown.clone());
        let silence = std::thread::spawn(move || {
            // As in production: first everything is read; then, one after the other, the partitions are found to be
            // silent.
            for partition in [1, 0, 2, 3] {
                std::thread::sleep(Duration::from_millis(20));
                topic.send(partition, [], true);
            }
        });
        let query = move |flow: &Flow<'_>| own.of(flow.read("topic", &source));
        let counts = shown.counts.clone();
        let run = TestRun::new().processes(processes).workers(workers);
        let report = run_until(run, query, || counts.all().len() >= CLOSED.len()).unwrap();
        silence.join().unwrap();
        assert_eq!((shown.counts.all(), shown.late.all()), (CLOSED.to_vec(), vec![]), "{processes} × {workers}");
        let step = &report.summary.steps[0];
        assert_eq!((step.received, step.counted, step.late), (7, 7, 0));
    }
}

#[test]
fn windows_of_a_burst_close_after_a_kill_on_any_workers() {
    for (first, then) in [(1, 8), (8, 1)] {
        let (topic, shown) = (Steered::new(4), IdleCaptures::default());
        topic.send(2, BURST, false);
        topic.fall_silent();
        let query = || {
            let (source, own) = (topic.clone(), shown.clone());
            move |flow: &Flow<'_>| own.of(flow.read("topic", &source))
        };
        let (mut disk, mut kills) = (CrashingDisk::new(), 0);
        // Killed at ever later operations: before anything is committed, while all are idle, when rows are published.
        for act in (10..).step_by(15) {
            disk.crash_at(act);
            let ended = run_until(on(&disk, if kills % 2 == 0 { first } else { then }), query(), || {
                shown.counts.all().len() >= CLOSED.len()
            });
            if !disk.has_crashed() {
                assert_eq!(ended.unwrap().ending, Ending::Stopped);
                break;
            }
            (disk, kills) = (disk.after_kill(), kills + 1);
        }
        assert!(kills > 2, "killed {kills} times only");
        // What was published before a kill stays, and is not published again.
        let again = run_until(on(&disk.after_kill(), then), query(), || true).unwrap();
        assert_eq!(again.ending, Ending::Stopped);
        assert_eq!((shown.counts.all(), shown.late.all()), (CLOSED.to_vec(), vec![]), "{first} and {then} workers");
    }
}

/// A snapshot taken while all partitions are idle contains the watermark reached by then, which becomes the activation
/// watermark of a partition that wakes after it.
#[test]
fn a_partition_that_wakes_after_a_restart_has_the_floor_that_silence_left() {
    let (topic, shown, disk) = (Steered::new(2), IdleCaptures::default(), CrashingDisk::new());
    topic.send(0, [5, 6], false);
    topic.send(1, [5, 100], false);
    topic.fall_silent();
    let query = || {
        let (source, own) = (topic.clone(), shown.clone());
        move |flow: &Flow<'_>| own.of(flow.read("topic", &source))
    };
    run_until(on(&disk, 1), query(), || shown.counts.all() == [(10, 3)]).unwrap();
    // The record is in order in its own partition, but its window is closed.
    topic.send(0, [7, 101, 120], true);
    let report = run_until(on(&disk.after_kill(), 8), query(), || shown.counts.all().len() == 2).unwrap();
    assert_eq!((shown.counts.all(), shown.late.all()), (vec![(10, 3), (110, 2)], vec![7]));
    let step = &report.summary.steps[0];
    assert_eq!((step.late, step.late_after_idle), (1, 1));
}

/// Reads two topics as one stream.
fn of_both<'f>(flow: &Flow<'f>, one: &Steered, other: &Steered) -> Stream<'f, Tick> {
    flow.read("orders", one).concat(flow.read("rates", other))
}

#[test]
fn a_quiet_stream_holds_nothing_back_and_wakes_with_a_floor_also_after_restarts() {
    let (orders, rates, shown) = (Steered::new(3), Steered::new(2), IdleCaptures::default());
    let query = || {
        let (orders, rates, own) = (orders.clone(), rates.clone(), shown.clone());
        move |flow: &Flow<'_>| own.of(of_both(flow, &orders, &rates))
    };
    rates.send(0, [5], true);
    rates.send(1, [], true);
    (0..3).for_each(|partition| orders.send(partition, [5, 15, 25, 95], false));
    let disk = CrashingDisk::new();
    // The topic of rates has one record: orders are counted nevertheless.
    run_until(on(&disk, 2), query(), || shown.counts.all().len() == 3).unwrap();
    assert_eq!(shown.counts.all(), [(10, 4), (20, 3), (30, 3)]);
    // It wakes far behind, and stays active: its record is in order, and its window has closed.
    rates.send(0, [42], false);
    let disk = disk.after_kill();
    let report = run_until(on(&disk, 1), query(), || shown.late.all() == [42]).unwrap();
    assert_eq!((report.summary.steps[0].late, report.summary.steps[0].late_after_idle), (1, 1));
    // A snapshot contains the combined watermark of both topics, which is ahead of its partition's new records.
    rates.send(0, [50, 93], false);
    let disk = disk.after_kill();
    let report = run_until(on(&disk, 8), query(), || shown.late.all().len() == 2).unwrap();
    assert_eq!((report.summary.steps[0].late, report.summary.steps[0].late_after_idle), (1, 1));
    // Now that it is active it holds the watermark back again.
    (0..3).for_each(|partition| orders.send(partition, [300], false));
    rates.send(0, [110], false);
    run_until(on(&disk.after_kill(), 2), query(), || shown.counts.all().len() == 4).unwrap();
    assert_eq!(shown.late.all(), [42, 50]);
    assert_eq!(shown.counts.all(), [(10, 4), (20, 3), (30, 3), (100, 4)]);
}

#[test]
fn records_that_are_late_only_after_silence_are_counted_apart_with_the_remedy() {
    let deal = |at_ms: i64| Tick { key: 1, at_ms };
    let partitions = vec![vec![deal(10), deal(500)], [5, 20, 21, 22, 3, 600].map(deal).to_vec()];
    let source = MemorySource::new(partitions, |tick: &Tick| tick.at_ms).out_of_order(Duration::ZERO);
    let script = Script::new()
        .epoch(|e| e.take(0, 1).take(1, 1).idle(1))
        .epoch(|e| e.take(0, 1))
        .epoch(|e| e.take(1, 4)) // One of them is late by its own partition.
        .epoch(|e| e.take(1, 1).end(0).end(1));
    let shown = IdleCaptures::default();
    let own = shown.clone();
    let run = TestRun::new().script("topic", script).run(move |flow| own.of(flow.read("topic", &source)));
    let report = run.unwrap().report;
    let step = &report.summary.steps[0];
    assert_eq!((step.late, step.late_after_idle), (4, 3));
    assert_eq!(shown.late.all(), [3, 20, 21, 22]);
    let line = report.summary.to_string();
    assert!(
        line.contains("4 late") && line.contains("3 of the late ones") && line.contains("--idle-timeout"),
        "{line}"
    );
}

#[test]
fn partitions_that_take_turns_show_what_the_oracle_shows_and_what_the_data_say() {
    for_seeds(25, |seed| {
        let data = Data::in_turns(seed, 120);
        let windows = checks::windows_of(&data);
        let run = || TestRun::new().workers(1 + seed as usize % 4).seed(seed);
        let outcome = check_run(&data, windows, run())?;
        match epochs_of_silence(&outcome.journal, "deals") {
            0 | 1 => Err(String::from("all partitions were hardly ever idle")),
            _ => check_data(&data, windows, run()),
        }
    });
}

/// Computes count and sum of amounts.
fn sums(of: &[&OracleRecord<Deal>]) -> (i64, i128) {
    (of.len() as i64, of.iter().map(|deal| i128::from(deal.data.amount)).sum())
}

/// Returns windows whose rows do not depend on the order of records with equal times, because results of windows have
/// no offset.
fn any_windows(random: &mut fastrand::Rng) -> Windows {
    std::iter::repeat_with(|| checks::any_windows(random))
        .find(|windows| !matches!(windows, Windows::Count { .. }))
        .unwrap()
}

/// Captured counts and sums.
type Counted = Captured<Row<(i64, i128)>>;

/// Counts and sums a stream in windows.
fn count(stream: Stream<'_, Deal>, windows: Windows, (rows, late): (&Counted, &Captured<Deal>)) {
    let step = stream.key_by(|deal| deal.key).window(checks::window(windows));
    let step = step.allowed_lateness(checks::millis(windows.late()));
    let step = step.aggregate("both", |each| (each.count(), each.sum(|deal| deal.amount)));
    let flat = |row: Closed<u8, (i64, i128)>| (row.window.start.millis(), row.window.end.millis(), row.key, row.value);
    step.on_close().map(flat).write("rows", rows);
    step.late().write("late", late);
}

/// Results of windows of one stream, concatenated with two others; each becomes idle and wakes at random.
#[test]
fn results_of_windows_and_other_streams_as_one_show_what_the_oracle_shows() {
    for_seeds(120, |seed| {
        let mut random = fastrand::Rng::with_seed(seed);
        let (first, second) = (any_windows(&mut random), any_windows(&mut random));
        let data = [0, 1, 2].map(|number| Data::random(&mut random, 40).renumbered(number * 1_000_000));
        let names = ["one", "two", "three"];
        let mut run = TestRun::new().workers(random.usize(1..=3));
        for (name, data) in names.iter().zip(&data) {
            run = run.script(name, data.script(&mut random));
        }
        let (rows, late) = (Captured::<Row<(i64, i128)>>::new(), Captured::<Deal>::new());
        let (own, sources) = ((rows.clone(), late.clone()), data.each_ref().map(Data::source));
        let outcome = run.run(move |flow| {
            let [one, two, three] = [0, 1, 2].map(|at| flow.read(names[at], &sources[at]));
            let step = one.key_by(|deal| deal.key).window(checks::window(first));
            let step = step.allowed_lateness(checks::millis(first.late()));
            let rows = step.aggregate("first", tidegate::stream::aggregate::Each::count).on_close();
            let rows = rows.map(|row| Deal { id: 0, key: row.key, at_ms: row.window.end.millis(), amount: row.value });
            count(rows.concat(two).concat(three), second, (&own.0, &own.1));
        });
        let outcome = outcome.map_err(|error| error.to_string())?;
        let history =
            |index: u16| data[index as usize].history(index, &oracle::steps(&outcome.journal, names[index as usize]));
        let counted = oracle::windowed(&history(0), first, |deal| deal.key, |of| of.len() as i64);
        let one = history(0).closed(&counted, first.late());
        let one = one.flat_map(|row| vec![Deal { id: 0, key: row.2, at_ms: row.1, amount: row.3 }]);
        let all = oracle::concat(&oracle::concat(&one, &history(1)), &history(2));
        let expected = oracle::windowed(&all, second, |deal| deal.key, sums);
        let streams = [0, 1, 2].map(|index| (history(index).activity, history(index).watermarks));
        let describe = |why: String| format!("{why}\nin {first:?} and {second:?}, where streams were\n{streams:?}");
        compare_rows("late records", &late, &expected.late).map_err(describe)?;
        compare_rows("closed rows", &rows, &expected.closed).map_err(describe)
    });
}

#[test]
fn a_file_that_is_followed_is_idle_at_its_end_and_wakes() {
    let folder = tempfile::tempdir().unwrap();
    let paths = ["orders.csv", "rates.csv"].map(|name| folder.path().join(name));
    let append = |at: usize, times: &[i64]| {
        let mut file = std::fs::OpenOptions::new().append(true).create(true).open(&paths[at]).unwrap();
        times.iter().for_each(|at_ms| writeln!(file, "1,{at_ms}").unwrap());
    };
    paths.iter().for_each(|path| std::fs::write(path, "key,at_ms\n").unwrap());
    append(0, &[5, 15, 33]);
    append(1, &[7]);
    let shown = IdleCaptures::default();
    let query = || {
        let input = |at: usize| {
            let input = csv::Source::new(&paths[at]).event_time(|tick: &Tick| tick.at_ms);
            let silence = Duration::from_millis([3_600_000, 200][at]);
            input.out_of_order(Duration::ZERO).idle_after(silence)
        };
        let (orders, rates, own) = (input(0), input(1), shown.clone());
        move |flow: &Flow<'_>| own.of(flow.read("orders", &orders).concat(flow.read("rates", &rates)))
    };
    let disk = CrashingDisk::new();
    // Orders go on without rates, which are idle, and then rates are behind.
    run_until(on(&disk, 2), query(), || shown.counts.all() == [(10, 2), (20, 1)]).unwrap();
    append(1, &[8, 31]);
    let disk = disk.after_kill();
    run_until(on(&disk, 1), query(), || shown.late.all() == [8]).unwrap();
    // The journal records when the file was idle, so a replay has the same idleness.
    append(0, &[55]);
    run_until(on(&disk.after_kill(), 2), query(), || shown.counts.all().len() == 3).unwrap();
    assert_eq!((shown.counts.all(), shown.late.all()), (vec![(10, 2), (20, 1), (40, 2)], vec![8]));
}

#[test]
fn idle_files_are_idle_again_in_a_replay() {
    let folder = tempfile::tempdir().unwrap();
    let (path, held) = (folder.path().join("ticks.csv"), folder.path().join("held.csv"));
    std::fs::write(&path, "key,at_ms\n1,5\n1,15\n").unwrap();
    std::fs::write(&held, "key,at_ms\n1,3\n").unwrap();
    let ticks = |path: &std::path::Path| {
        let ticks = csv::Source::new(path).event_time(|tick: &Tick| tick.at_ms).out_of_order(Duration::ZERO);
        ticks.idle_after(Duration::from_millis(100))
    };
    // One stream ends at once, which an idle file does not; and one holds the window back until its file is idle.
    let query = |shown: &IdleCaptures| {
        let none = MemorySource::new(vec![vec![]], |tick: &Tick| tick.at_ms);
        let (own, ticks, held) = (shown.clone(), ticks(&path), ticks(&held));
        move |flow: &Flow<'_>| {
            let held = flow.read("held", &held).concat(flow.read("none", &none));
            own.of(flow.read("ticks", &ticks).concat(held));
        }
    };
    let (stop, shown) = (StopHandle::default(), IdleCaptures::default());
    let (watched, stopping) = (shown.counts.clone(), stop.clone());
    let watcher = std::thread::spawn(move || {
        while watched.all().is_empty() {
            std::thread::sleep(Duration::from_millis(1));
        }
        stopping.stop();
    });
    let recorded = query(&shown);
    let recorded =
        within(PATIENCE, move || TestRun::new().clock().stop_by(&stop).run(recorded)).expect("it hangs").unwrap();
    watcher.join().unwrap();
    assert_eq!(shown.counts.all(), [(10, 2)]);
    assert!(epochs_of_silence(&recorded.journal, "held") > 0);
    let flags = |journal: &[Frame]| {
        let all = journal.iter().flat_map(|frame| frame.progress.iter().map(move |bound| (frame.epoch, bound.clone())));
        all.map(|(epoch, bound)| (epoch, bound.source, bound.idle)).collect::<BTreeSet<_>>()
    };
    for workers in [1, 3] {
        let again = IdleCaptures::default();
        let run = TestRun::new().workers(workers).journal(recorded.journal.clone()).run(query(&again)).unwrap();
        assert_eq!(flags(&run.journal), flags(&recorded.journal), "on {workers} workers");
        assert_eq!(again.counts.epochs(), shown.counts.epochs(), "on {workers} workers");
    }
}

/// Runs one record through a window; returns the number of rows and the report.
fn windowed<W: WindowType>(window: Window<W>) -> tidegate::Result<(usize, RunReport)> {
    let source = MemorySource::new(vec![vec![Tick { key: 1, at_ms: 0 }]], |tick: &Tick| tick.at_ms);
    let rows = Captured::<i64>::new();
    let own = rows.clone();
    let outcome = TestRun::new().run(move |flow| {
        let counts = flow.read("ticks", &source).key_by(|tick| tick.key).window(window);
        counts
            .aggregate("counts", tidegate::stream::aggregate::Each::count)
            .on_close()
            .map(|row| row.window.end.millis())
            .write("rows", &own);
    })?;
    Ok((rows.all().len(), outcome.report))
}

#[test]
fn windows_that_overlap_too_much_are_refused_with_the_limit_and_what_to_do() {
    let days = |count: u64| Duration::from_secs(count * 86_400);
    let (second, hundredth) = (Duration::from_secs(1), Duration::from_millis(10));
    for (window, windows, apart) in [
        (Window::sliding(days(30), second), "2592000 windows of 30days by 1s", "25s 920ms apart"),
        (Window::sliding(days(30), hundredth), "259200000 windows of 30days by 10ms", "25s 920ms apart"),
        (Window::cumulative(days(30), second), "2592000 windows of 30days by 1s", "25s 920ms apart"),
    ] {
        let error = windowed(window).unwrap_err().to_string();
        for part in ["step `counts`", windows, "at most 100000", apart] {
            assert!(error.contains(part), "{error}");
        }
    }
    // Windows within the limit give all of their rows.
    assert_eq!(windowed(Window::sliding(days(1), second)).unwrap().0, 86_400);
    assert_eq!(windowed(Window::cumulative(days(1), second)).unwrap().0, 86_400);
}

/// Many records in windows that overlap as much as allowed.
#[test]
fn an_hour_of_records_in_windows_of_a_day_by_a_second_comes_to_its_rows() {
    let records = (0..240).map(|number| Tick { key: 1, at_ms: number * 15_000 }).collect();
    let source = MemorySource::new(vec![records], |tick: &Tick| tick.at_ms);
    let (day, second) = (Duration::from_secs(86_400), Duration::from_secs(1));
    let total = Arc::new(Mutex::new((0u64, 0i64)));
    let sum = Arc::clone(&total);
    let run = move || {
        TestRun::new().options(Options::default().max_drift(day)).run(move |flow| {
            let counts = flow.read("ticks", &source).key_by(|tick| tick.key).window(Window::sliding(day, second));
            let sum = Arc::clone(&sum);
            let add = move |count: &i64| {
                let mut sum = sum.lock().unwrap();
                *sum = (sum.0 + 1, sum.1 + count);
            };
            let rows =
                counts.aggregate("counts", tidegate::stream::aggregate::Each::count).on_close().map(|row| row.value);
            rows.inspect(add).filter(|_| false).write("none", &Captured::new());
        })
    };
    within(PATIENCE, run).expect("it takes too long").unwrap();
    // From the first second of the first record to the last of the last; each record is in as many windows as there are
    // seconds in a day.
    assert_eq!(*total.lock().unwrap(), (86_400 + 239 * 15, 240 * 86_400));
}
