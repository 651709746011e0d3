//! A crash at any operation of the disk loses nothing and repeats nothing, in every phase of a state: while it is
//! created, between snapshots, in one, while segments are merged and the journal is truncated, in a recovery, in one
//! after that.
//!
//! A whole incarnation is crashed at each of its writes, syncs, renames, links and removals, one after the other: at
//! every 480th by default, at all of them with `TIDEGATE_STRIDE=1`. A seed decides what survives of everything that was
//! not synced: lost, kept, torn, in any order. Then the state resumes, perhaps on more workers, and the files and the
//! captured rows must be those of a run without state.
//!
//! There is an incarnation for each kind of windows: tumbling, sliding, cumulative, session and count windows; all have
//! keyed state with timers.
//!
//! `TIDEGATE_CASES` sets the number of incarnations, `TIDEGATE_SEED` selects one, and `TIDEGATE_ACT` one operation of
//! it.
#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tidegate::job::Ending;
use tidegate::testing::CrashingDisk;
use tidegate::testing::disk::{DiskOperation, HookedDisk, OperationKind};

use common::cases::{Data, in_parallel, seeds, within};
use common::checks::KINDS;
use common::durable_joins::DurableJoins;
use common::durable_query::{DurableQuery, DurableQueryOutputs, files, kind_of, new_disk, on, on_disk, steady};

/// Number of records of an incarnation: few, so that it can be run once for each of its operations.
const RECORDS: u32 = 44;
/// The same for the query of joins and an iteration.
const JOINED_RECORDS: u32 = 20;
/// Number of operations that an incarnation did not reach, after which no more are tried.
const MAX_MISSED: usize = 10;
/// Factor of seeds: a run whose seed is a multiple of this has many short epochs.
const SHORT_EPOCHS: u64 = 16;

/// The incarnation that is crashed: its input, its epochs, and its expected results.
#[derive(Clone)]
struct Subject<Q: DurableQuery> {
    seed: u64,
    /// Seed of its epochs.
    pace: u64,
    data: Data,
    expected: Q::Expected,
}

impl<Q: DurableQuery> Subject<Q> {
    fn new(seed: u64, pace: u64, data: Data) -> Subject<Q> {
        let expected = Q::plain(&data).unwrap();
        Subject { seed, pace, data, expected }
    }

    fn run(&self, kept: &Q, disk: &CrashingDisk, workers: usize) -> Result<Ending, String> {
        let run = on(disk, workers, self.pace);
        kept.run(&self.data, run).map(|report| report.ending)
    }

    /// Crashes an incarnation at an operation; `None` if it has fewer operations.
    fn crash(&self, act: usize) -> Option<Crashed<Q>> {
        let (kept, disk) = (Q::default(), new_disk());
        disk.crash_at(act);
        let ended = self.run(&kept, &disk, 1);
        // The last operation may fail without an effect on the job.
        disk.has_crashed().then_some(Crashed { kept, disk }).or_else(|| {
            assert_eq!(ended, Ok(Ending::Complete), "seed {}, act {act}", self.seed);
            None
        })
    }

    /// Suspends an incarnation before an operation, while another one takes its state over and runs to the end; `None` if it
    /// has fewer operations.
    fn overtake(&self, act: usize, workers: usize) -> Option<Result<DiskOperation, String>> {
        let (kept, disk) = (Q::default(), new_disk());
        let heir =
            Heir { subject: self.clone(), kept: kept.clone(), disk: disk.clone(), workers, left: act, ended: None };
        let heir = Arc::new(Mutex::new(heir));
        let suspending = {
            let heir = Arc::clone(&heir);
            HookedDisk::new(disk.shared(), move |operation, act| {
                // Other operations of the incarnation wait meanwhile, as all threads of a suspended process do.
                heir.lock().unwrap().before(operation);
                act()
            })
        };
        let woken = kept.run(&self.data, on_disk(&suspending.shared(), 1, self.pace)).map(|report| report.ending);
        let (operation, ended) = heir.lock().unwrap().ended.take()?;
        let checked = self.check_overtaken(&disk, woken, ended);
        Some(checked.map(|()| operation.clone()).map_err(|why| format!("{operation}: {why}")))
    }

    /// Checks that an incarnation that was overtaken tells so, and has changed nothing of what its heir has published.
    fn check_overtaken(
        &self,
        disk: &CrashingDisk,
        woken: Result<Ending, String>,
        heir: Result<Q, String>,
    ) -> Result<(), String> {
        let kept = heir.map_err(|why| format!("the heir failed: {why}"))?;
        // One that was overtaken before it began, or after its last manifest, need not notice.
        match woken {
            Err(why) if !why.contains("another process") => {
                return Err(format!("it does not tell that it was overtaken: {why}"));
            }
            _ => {}
        }
        self.check_ended(&kept, disk, disk)
    }

    /// Resumes to the end, and checks the results; another start then has nothing to do.
    fn resume_to_end(&self, kept: &Q, disk: &CrashingDisk, workers: usize) -> Result<(), String> {
        match self.run(kept, disk, workers)? {
            Ending::Complete | Ending::WasComplete => {}
            Ending::Stopped => return Err("it stopped".into()),
        }
        self.check_ended(kept, disk, &disk.survivors(0))
    }

    /// Checks the results of a state that has ended; another start, on the disk `again`, has nothing to do.
    fn check_ended(&self, kept: &Q, disk: &CrashingDisk, again: &CrashingDisk) -> Result<(), String> {
        kept.check(disk, &self.expected)?;
        let shown = files(disk);
        let ending = self.run(kept, again, 1)?;
        if ending != Ending::WasComplete || files(again) != shown {
            return Err(format!("started once more, it ended {ending:?}, and its files are {:?}", files(again)));
        }
        kept.check(again, &self.expected)
    }
}

/// An incarnation that takes a state over while another one sleeps before an operation.
struct Heir<Q: DurableQuery> {
    subject: Subject<Q>,
    /// Outputs of the other one.
    kept: Q,
    disk: CrashingDisk,
    workers: usize,
    /// Number of operations of the other one before that.
    left: usize,
    /// The operation, and how the heir ended, with what it has published.
    ended: Option<(DiskOperation, Result<Q, String>)>,
}

impl<Q: DurableQuery> Heir<Q> {
    /// Counts an operation of the other incarnation, and takes over if it is the one before which that sleeps.
    fn before(&mut self, operation: &DiskOperation) {
        if self.left > 0 || self.ended.is_some() {
            self.left = self.left.saturating_sub(1);
            return;
        }
        let (subject, kept, disk, workers) = (self.subject.clone(), self.kept.clone(), self.disk.clone(), self.workers);
        // On a thread of its own: the failure of the one that sleeps is none of this one's.
        let run = within(Duration::from_secs(60), move || {
            loop {
                let run = on(&disk, workers, subject.pace).state_options(|state| state.take_over(true));
                match kept.run(&subject.data, run) {
                    // Threads of the other one that need no disk went on while this one began.
                    Err(why) if why.contains("another process wrote to it meanwhile") => {}
                    ended => return ended.map(|_report| kept),
                }
            }
        });
        self.ended = Some((operation.clone(), run.unwrap_or_else(|| Err(String::from("it hangs, or panics")))));
    }
}

/// A crashed incarnation, with what it had published.
struct Crashed<Q> {
    kept: Q,
    disk: CrashingDisk,
}

impl<Q> Crashed<Q> {
    /// Returns the operation at which it crashed.
    fn at(&self) -> DiskOperation {
        self.disk.log().pop().unwrap()
    }
}

/// Returns the kind of an operation and the kind of its file.
fn done(act: &DiskOperation) -> (&'static str, &'static str) {
    let what = match &act.kind {
        OperationKind::List => "list",
        OperationKind::Open => "open",
        OperationKind::CreateDirectory => "create directory",
        OperationKind::Create => "create",
        OperationKind::Append(_) => "append",
        OperationKind::Truncate(_) => "cut",
        OperationKind::Sync => "sync",
        OperationKind::Rename(_) => "rename",
        OperationKind::Link(_) => "link",
        OperationKind::Remove => "remove",
        OperationKind::SyncDirectory => "sync directory",
        OperationKind::Lock => "lock",
        OperationKind::Sign => "sign",
    };
    (what, kind_of(&act.path))
}

/// Returns seeds of what survives a crash at an operation: in turn nothing that was not synced, everything, or some;
/// all of these for a selected operation.
fn survivors(act: usize) -> Vec<u64> {
    match (acts().len(), act % 4) {
        (1, _) => (0..20).collect(),
        (_, 0) => vec![0],
        (_, 1) => vec![1],
        _ => vec![2 + act as u64],
    }
}

/// Returns the distance of the operations to crash at: 1 takes half an hour.
fn stride() -> usize {
    std::env::var("TIDEGATE_STRIDE").map_or(480, |text| text.parse().unwrap())
}

/// Returns the operations to crash at: all, or the selected one.
fn acts() -> std::ops::Range<usize> {
    let asked = std::env::var("TIDEGATE_ACT").ok().map(|text| text.parse::<usize>().unwrap());
    asked.map_or(0..100_000, |act| act..act + 1)
}

#[track_caller]
fn passes(what: &str, check: impl FnOnce() -> Result<(), String> + Send + 'static) {
    if let Err(why) = within(Duration::from_secs(60), check).unwrap_or_else(|| Err("it hangs, or panics".into())) {
        panic!("{what}: {why}");
    }
}

/// Crashes incarnations at operations `stride` apart; returns what was done at them.
fn crash_at_acts<Q: DurableQuery>(
    subjects: impl Iterator<Item = Subject<Q>>,
    stride: usize,
) -> BTreeSet<(&'static str, &'static str)> {
    let mut crashed_at = BTreeSet::new();
    for subject in subjects {
        let (seed, mut missed) = (subject.seed, 0);
        for act in acts().filter(|act| acts().len() == 1 || act % stride == seed as usize % stride) {
            // The number of operations differs between runs: threads have their own pace.
            let Some(crashed) = subject.crash(act) else {
                missed += 1;
                if missed > MAX_MISSED { break } else { continue }
            };
            crashed_at.insert(done(&crashed.at()));
            for survivors in survivors(act) {
                let (subject, kept) = (subject.clone(), crashed.kept.fork());
                let disk = crashed.disk.survivors(survivors);
                let what = format!(
                    "TIDEGATE_SEED={seed} TIDEGATE_ACT={act} ({}), survivors of seed {survivors}",
                    crashed.at()
                );
                passes(&what, move || subject.resume_to_end(&kept, &disk, 1 + act % 2));
            }
        }
    }
    crashed_at
}

#[test]
fn a_crash_at_any_act_changes_no_result() {
    let subjects = seeds(KINDS.len() as u64).into_iter();
    let subjects =
        subjects.map(|seed| Subject::<DurableQueryOutputs>::new(seed, seed * SHORT_EPOCHS, steady(seed, RECORDS)));
    let crashed_at = crash_at_acts(subjects, stride());
    if acts().len() > 1 && stride() == 1 {
        let all = all_that_is_done();
        let missing: Vec<_> = all.difference(&crashed_at).collect();
        assert!(missing.is_empty(), "no crash at {missing:?}, only at {crashed_at:?}");
    }
}

/// Every join by event time, windows behind each, and a join and an iteration of collections; of the seeds, every second has
/// partitions that become idle and wake.
#[test]
fn a_crash_at_any_act_changes_no_row_of_joins_and_iterations() {
    let subjects = seeds(2).into_iter().map(|seed| {
        let data = if seed % 2 == 0 { Data::in_turns(seed, JOINED_RECORDS) } else { steady(seed, JOINED_RECORDS) };
        // Epochs that are not short: each costs the operators of an iteration a turn.
        Subject::<DurableJoins>::new(seed, seed, data)
    });
    let stride = if stride() == 1 { 1 } else { 4 * stride() };
    crash_at_acts(subjects, stride);
}

/// The incarnation that is crashed does everything that an incarnation can do.
#[test]
fn the_life_that_is_crashed_does_all_there_is() {
    let subject = Subject::<DurableQueryOutputs>::new(1, SHORT_EPOCHS, steady(1, RECORDS));
    let (kept, disk) = (DurableQueryOutputs::default(), new_disk());
    assert_eq!(subject.run(&kept, &disk, 1), Ok(Ending::Complete));
    let done: BTreeSet<_> = disk.log().iter().map(done).collect();
    let all = all_that_is_done();
    let missing: Vec<_> = all.difference(&done).collect();
    assert!(missing.is_empty(), "it does not {missing:?}, only {done:?}");
}

/// Returns the operations that a whole incarnation must have done to be worth crashing: each kind that the engine has,
/// on each kind of file.
fn all_that_is_done() -> BTreeSet<(&'static str, &'static str)> {
    let written = |kind| [("create", kind), ("append", kind), ("sync", kind)];
    let mut all: BTreeSet<_> =
        ["results", "commit", "journal", "manifest", "segment", "merged segment", "claim", "life", "identity"]
            .into_iter()
            .flat_map(written)
            .collect();
    all.remove(&("create", "results"));
    let others = [
        ("rename", "commit"),
        ("rename", "manifest"),
        ("link", "claim"),
        ("link", "life"),
        ("remove", "manifest"),
        ("remove", "segment"),
        ("remove", "journal"),
        ("lock", "lock"),
        ("sign", "lock"),
        ("lock", "results"),
        ("create directory", "directory"),
        ("sync directory", "directory"),
    ];
    all.extend(others);
    all
}

/// Crashes at every operation of the recovery, up to its first snapshot, after a crash at one of many operations;
/// sometimes it crashes a third time.
#[test]
fn a_crash_at_any_act_of_a_recovery_changes_no_result() {
    in_parallel(seeds(KINDS.len() as u64), |seed| {
        let subject =
            Subject::<DurableQueryOutputs>::new(100 + seed, (100 + seed) * SHORT_EPOCHS, steady(100 + seed, RECORDS));
        let whole = new_disk();
        subject.run(&DurableQueryOutputs::default(), &whole, 1).unwrap();
        let acts = whole.operations();
        for part in 0..5 {
            let first = acts * (2 * part + 1) / 10;
            let Some(crashed) = subject.crash(first) else { continue };
            let found = crashed.disk.survivors(part as u64);
            for second in (part % stride()..recovery(&subject, &crashed, &found)).step_by(stride()) {
                let (kept, disk) = (crashed.kept.fork(), found.after_kill());
                disk.crash_at(second);
                let ended = subject.run(&kept, &disk, 1 + second % 2);
                if !disk.has_crashed() {
                    ended.unwrap();
                    break;
                }
                let (subject, log) = (subject.clone(), disk.log());
                let at = log.last().unwrap().clone();
                let what = format!("seed {seed}, first at act {first} ({}), then at act {second} ({at})", crashed.at());
                passes(&what, move || {
                    let mut disk = disk.survivors(second as u64);
                    if second % 5 == 4 {
                        disk.crash_at(second);
                        let _crashed_or_not = subject.run(&kept, &disk, 1);
                        disk = disk.survivors(second as u64 + 1);
                    }
                    subject.resume_to_end(&kept, &disk, 1 + second % 3)
                });
            }
        }
    });
}

/// An incarnation sleeps before any of its operations, another one takes its state over and runs to the end, and the first
/// one wakes. Files that it knows are gone then, and it must not take that for damage.
#[test]
fn who_is_overtaken_at_any_act_tells_so_and_changes_nothing() {
    let tried = in_parallel(seeds(KINDS.len() as u64), |seed| {
        let subject =
            Subject::<DurableQueryOutputs>::new(200 + seed, (200 + seed) * SHORT_EPOCHS, steady(200 + seed, RECORDS));
        let (mut missed, mut slept_at, mut wrong) = (0, BTreeSet::new(), Vec::new());
        for act in acts().filter(|act| acts().len() == 1 || act % stride() == seed as usize % stride()) {
            match subject.overtake(act, 1 + act % 2) {
                Some(Ok(operation)) => drop(slept_at.insert(done(&operation))),
                Some(Err(why)) => {
                    wrong.push(format!("TIDEGATE_SEED={seed} TIDEGATE_ACT={act}: overtaken before it could {why}"));
                }
                None => missed += 1,
            }
            if missed > MAX_MISSED {
                break;
            }
        }
        (slept_at, wrong)
    });
    let (slept_at, wrong): (Vec<_>, Vec<_>) = tried.into_iter().unzip();
    let wrong = wrong.concat();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let slept_at: BTreeSet<_> = slept_at.into_iter().flatten().collect();
    assert!(acts().len() == 1 || slept_at.len() > 5, "it slept only before {slept_at:?}");
}

/// Returns the number of operations of a recovery, up to its first snapshot.
fn recovery<Q: DurableQuery>(subject: &Subject<Q>, crashed: &Crashed<Q>, found: &CrashingDisk) -> usize {
    let (kept, disk) = (crashed.kept.fork(), found.after_kill());
    subject.run(&kept, &disk, 1).unwrap();
    let log = disk.log();
    let made = log.iter().position(|act| done(act) == ("rename", "manifest"));
    made.unwrap_or(log.len()) + 2
}
