//! A disk that does not keep its promises causes no silent loss: results are exact, or the state is refused with the
//! name of what is wrong.
//!
//! * A sync fails and drops the data, while later syncs succeed: this ends the job at once. The next incarnation builds
//!   on nothing that is only in the system's memory, so a loss of power after it changes no result.
//! * A directory listing is stale, as on a file system that several machines share: it lacks what was written last.
//! * A lock is given to everybody: two processes use one state.
//!
//! Tests of a disk that keeps its promises are in `crash_points`. By default every 30th sync is lost, and directories are
//! stale at every 240th operation; with `TIDEGATE_STRIDE=1` it is every sync, and every 8th operation. `TIDEGATE_CASES`
//! sets the number of incarnations, `TIDEGATE_SEED` selects one.
#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

use std::path::Path;
use std::time::Duration;

use fastrand::Rng;
use tidegate::job::Ending;
use tidegate::testing::disk::{DiskOperation, OperationKind, SyncLoss};
use tidegate::testing::durable::OpenedState;
use tidegate::testing::{CrashingDisk, TestRun};
use tidegate::{Window, csv};

use common::cases::{Data, Deal, in_parallel, seeds, within};
use common::checks::{KINDS, small_drift};
use common::durable_query::{CLOSED, ClosedRow, DurableQuery, DurableQueryOutputs, FinalOutputs, new_disk, on, steady};

/// Number of records of an incarnation.
const RECORDS: u32 = 44;
/// Factor of seeds: a run whose seed is a multiple of this has many short epochs.
const PACE: u64 = 16;
/// Time limit of a case.
const LIMIT: Duration = Duration::from_secs(60);

/// Input of a state's incarnations, and the results that they have to reach.
#[derive(Clone)]
struct Subject {
    seed: u64,
    data: Data,
    expected: FinalOutputs,
}

impl Subject {
    fn new(seed: u64) -> Subject {
        let data = steady(seed, RECORDS);
        let expected = DurableQueryOutputs::plain(&data).unwrap();
        Subject { seed, data, expected }
    }

    fn run(&self, kept: &DurableQueryOutputs, disk: &CrashingDisk, workers: usize) -> Result<Ending, String> {
        kept.run(&self.data, on(disk, workers, self.seed * PACE)).map(|report| report.ending)
    }

    /// Resumes to the end, and checks that results are exact.
    fn go_on(&self, kept: &DurableQueryOutputs, disk: &CrashingDisk, workers: usize) -> Result<(), Verdict> {
        self.run(kept, disk, workers).map_err(Verdict::Refused)?;
        kept.check(disk, &self.expected).map_err(Verdict::Wrong)
    }
}

/// The reason why an incarnation did not reach exact results.
#[derive(Debug)]
enum Verdict {
    /// It failed with an error.
    Refused(String),
    /// It completed, with wrong results.
    Wrong(String),
}

/// `true` if an error names the file or output that is wrong.
fn names_a_file(said: &str) -> bool {
    let places = ["(journal/", "(manifests/", "(lives/", "(segments/", "(state", "(out/", "(output "];
    places.iter().any(|place| said.contains(place))
}

/// Fails unless the results are exact, or, if allowed, refused with a file's name. Returns `true` if they are exact.
#[track_caller]
fn exact_or_refused(what: &str, may_be_refused: bool, end: Option<Result<(), Verdict>>) -> bool {
    match end {
        Some(Ok(())) => true,
        Some(Err(Verdict::Refused(why))) => {
            assert!(may_be_refused && names_a_file(&why), "{what}: {why}");
            false
        }
        Some(Err(Verdict::Wrong(why))) => panic!("{what}: {why}"),
        None => panic!("{what}: it hangs, or panics"),
    }
}

fn stride() -> usize {
    std::env::var("TIDEGATE_STRIDE").map_or(30, |text| text.parse().unwrap())
}

/// Returns the sync of this number.
fn sync_of(disk: &CrashingDisk, number: usize) -> DiskOperation {
    let mut syncs =
        disk.log().into_iter().filter(|act| matches!(act.kind, OperationKind::Sync | OperationKind::SyncDirectory));
    syncs.nth(number).unwrap()
}

/// Runs an incarnation whose sync of this number is lost; `None` if it has no such sync. Returns `true` if the
/// incarnations after it reached exact results.
fn after_lost_sync(subject: &Subject, number: usize, loss: SyncLoss) -> Option<bool> {
    let (kept, disk) = (DurableQueryOutputs::default(), new_disk());
    disk.lose_sync(number, loss);
    let outcome = subject.run(&kept, &disk, 1);
    if disk.syncs() <= number {
        assert_eq!(outcome, Ok(Ending::Complete));
        return None;
    }
    let lost = sync_of(&disk, number);
    let what = format!("seed {}: what sync {number} was to keep ({lost}) is lost, {loss:?}", subject.seed);
    let said = outcome.expect_err(&what);
    assert!(said.contains("dropped what was to be kept"), "{what}: {said}");
    // Dropped names in a directory can be detected, but not restored.
    let may_be_refused = lost.kind == OperationKind::SyncDirectory;
    // The next incarnation reads what the system still has in memory; then the power fails.
    let (killed, after_loss) = (disk.after_kill(), disk.survivors(0));
    killed.crash_at(40 + 37 * number % 400);
    let (subject, in_memory) = (subject.clone(), kept.fork());
    let both = within(LIMIT, move || {
        let _crashed_or_not = subject.run(&in_memory, &killed, 1);
        let after = subject.go_on(&in_memory, &killed.survivors(0), 2);
        after.and_then(|()| subject.go_on(&kept, &after_loss, 1))
    });
    Some(exact_or_refused(&what, may_be_refused, both))
}

#[test]
fn a_sync_that_fails_ends_the_job_and_what_it_dropped_is_never_built_upon() {
    let losses = || [SyncLoss::Later, SyncLoss::AtOnce].into_iter().cycle();
    let ended = in_parallel(seeds(KINDS.len() as u64), |seed| {
        let (subject, mut ended) = (Subject::new(200 + seed), Vec::new());
        let some = (seed as usize % stride()..).step_by(stride()).zip(losses());
        ended.extend(some.map_while(|(number, loss)| after_lost_sync(&subject, number, loss)));
        // In some runs the last syncs too, when the job has published everything and closes its files.
        if seed < 2 {
            let disk = new_disk();
            assert_eq!(subject.run(&DurableQueryOutputs::default(), &disk, 1), Ok(Ending::Complete));
            let last = (disk.syncs().saturating_sub(4)..disk.syncs()).zip(losses());
            ended.extend(last.filter_map(|(number, loss)| after_lost_sync(&subject, number, loss)));
        }
        ended
    });
    let ended = ended.concat();
    let exact = ended.iter().filter(|exact| **exact).count();
    assert!(ended.len() > 20 && exact * 10 > ended.len() * 7, "of {} lives {exact} came to exact results", ended.len());
}

#[test]
fn a_stale_directory_hides_nothing_in_silence() {
    let (mut tried, mut exact) = (0, 0);
    for seed in seeds(KINDS.len() as u64) {
        let (subject, mut random) = (Subject::new(300 + seed), Rng::with_seed(seed));
        for act in (seed as usize..).step_by(8 * stride()) {
            let (kept, disk) = (DurableQueryOutputs::default(), new_disk());
            // For a while, the next incarnation does not see what the last operations before the kill wrote.
            let hidden = random.usize(1..60);
            disk.stale_from(act);
            disk.crash_at(act + hidden);
            if subject.run(&kept, &disk, 1).is_ok() && !disk.has_crashed() {
                break;
            }
            let killed = disk.after_kill();
            killed.stale_until(random.usize(0..200));
            let what = format!("seed {seed}, killed at act {act} and {hidden}, of which the next life sees {act}");
            let (subject, stale) = (subject.clone(), kept.fork());
            let end = within(LIMIT, move || {
                let first = subject.go_on(&stale, &killed, 1);
                if let Err(Verdict::Wrong(_)) = &first {
                    return first;
                }
                // The next incarnation sees everything, whether that one was refused or not.
                subject.go_on(&stale, &killed.survivors(0), 2)
            });
            tried += 1;
            exact += usize::from(exact_or_refused(&what, true, end));
        }
    }
    assert!(tried > 10 && exact * 2 > tried, "of {tried} lives {exact} came to exact results");
}

/// A process that cannot see the last claim of the state starts no incarnation.
#[test]
fn a_directory_that_does_not_show_its_files_is_refused_and_not_asked_for_ever() {
    let disk = CrashingDisk::new();
    let state = OpenedState::open(disk.shared(), "state").unwrap();
    disk.stale_from(disk.operations());
    state.begin_incarnation().unwrap();
    let killed = disk.after_kill();
    let error = OpenedState::open(killed.shared(), "state").unwrap().begin_incarnation().unwrap_err().to_string();
    let expected = "cannot begin an incarnation of the state (state/lives): the directory does not show files that are in it; \
                    keep the state on a disk of this machine";
    assert_eq!(error, expected);
}

/// Counts windows into a file: everything that two processes can have in common.
fn count(data: &Data, run: TestRun) -> Result<Ending, String> {
    let source = data.source();
    let outcome = run.options(small_drift(1_000_000)).run(move |flow| {
        let deals = flow.read("deals", &source).key_by(|deal: &Deal| deal.key);
        let counts = deals.window(Window::tumbling(Duration::from_millis(20)));
        let counts = counts.aggregate("counts", |each| (each.count(), each.last(|deal| deal.id)));
        let rows = counts.on_close().map(|row| ClosedRow {
            end: row.window.end.millis(),
            key: row.key,
            count: row.value.0,
            last: row.value.1,
        });
        rows.write("closed", &csv::Sink::new(CLOSED));
    });
    outcome.map(|outcome| outcome.report.ending).map_err(|error| error.to_string())
}

/// Returns the lines of the file, sorted.
fn lines(disk: &CrashingDisk) -> Vec<String> {
    let text = String::from_utf8(disk.bytes(Path::new(CLOSED)).unwrap()).unwrap();
    let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

/// Two processes with one state, as locks do not keep them apart: the later one goes on, the other ends.
#[test]
fn where_locks_lie_results_are_exact_or_refused_and_the_earlier_process_ends_by_itself() {
    let mut overtaken = 0;
    for seed in seeds(16) {
        let data = steady(400 + seed, 4 * RECORDS);
        let (honest, disk) = (new_disk(), new_disk());
        assert_eq!(count(&data, on(&honest, 1, seed)), Ok(Ending::Complete));
        if seed % 2 == 0 {
            disk.free_locks();
        }
        let (own, of_earlier) = (disk.clone(), data.clone());
        let earlier = std::thread::spawn(move || count(&of_earlier, on(&own, 1, seed * PACE)));
        // The later one starts when the earlier one has done so many operations, or has ended.
        while disk.operations() < 60 + 20 * seed as usize && !earlier.is_finished() {
            std::thread::yield_now();
        }
        disk.lose_locks();
        let (own, of_later) = (disk.clone(), data.clone());
        let later = within(LIMIT, move || count(&of_later, on(&own, 2, seed * PACE))).expect("it ends");
        let earlier = earlier.join().unwrap();
        let what = format!("seed {seed}: the earlier one {earlier:?}, the later one {later:?}");
        for ended in [&earlier, &later] {
            assert!(ended.is_ok() || ended.as_ref().is_err_and(|said| names_a_file(said)), "{what}");
        }
        overtaken += usize::from(earlier.is_err());
        // Whatever they did to each other, the next incarnation reaches exact results, or is refused.
        let end = disk.survivors(1);
        match count(&data, on(&end, 1, seed)) {
            Ok(Ending::Stopped) => panic!("{what}: it stopped"),
            Ok(Ending::Complete | Ending::WasComplete) => assert_eq!(lines(&end), lines(&honest), "{what}"),
            Err(said) => assert!(names_a_file(&said), "{what}: {said}"),
        }
    }
    assert!(overtaken > 3, "only {overtaken} were overtaken");
}
