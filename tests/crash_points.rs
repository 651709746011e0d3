//! A crash at any act of the disk loses nothing and repeats nothing, in every stretch of a state's life: while it is
//! made, between snapshots, in one, while segments are merged and the journal is cut, in a recovery, in one after that.
//!
//! Writes, syncs, renames, links and removals of a whole life are crashed at, one after the other: every so many-th, and
//! all of them with `TIDEGATE_STRIDE=1`; what survives is what
//! a seed says of all that was not synced: lost, kept, torn, in any order. Then the state goes on, perhaps on more
//! workers, and what files and captured rows come to is what a run without state comes to.
//!
//! There is a life for each kind of windows: tumbling, sliding, cumulative, sessions, so many records each; all have state by key
//! with timers.
//!
//! `TIDEGATE_CASES` says how many lives, `TIDEGATE_SEED` which one, `TIDEGATE_ACT` which one act of it.
#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

use std::collections::BTreeSet;
use std::time::Duration;

use tidegate::job::Ending;
use tidegate::testing::CrashingDisk;
use tidegate::testing::disk::{Act, ActKind};

use common::cases::{Data, seeds, within};
use common::checks::KINDS;
use common::kept::{End, Kept, files, kind_of, new_disk, on, steady};

/// How many records a life has: few, so that it can be run at each of its acts.
const RECORDS: u32 = 44;
/// After so many acts that a life did not come to, there are no more.
const MISSED: usize = 10;
/// A life's pace: many short epochs.
const PACE: u64 = 16;

/// The life that is crashed: what it reads, at which pace, and what it has to come to.
#[derive(Clone)]
struct Subject {
    seed: u64,
    data: Data,
    expected: End,
}

impl Subject {
    fn new(seed: u64) -> Subject {
        let data = steady(seed, RECORDS);
        let expected = Kept::plain(&data).unwrap();
        Subject { seed, data, expected }
    }

    fn run(&self, kept: &Kept, disk: &CrashingDisk, workers: usize) -> Result<Ending, String> {
        let run = on(disk, workers, self.seed * PACE);
        kept.run(&self.data, run).map(|report| report.ending)
    }

    /// A life that crashes at an act; `None` if it has not so many.
    fn crash(&self, act: usize) -> Option<Crashed> {
        let (kept, disk) = (Kept::default(), new_disk());
        disk.crash_at(act);
        let ended = self.run(&kept, &disk, 1);
        // What fails may be the very last thing that it does, which it need not know of.
        disk.has_crashed().then_some(Crashed { kept, disk }).or_else(|| {
            assert_eq!(ended, Ok(Ending::Complete), "seed {}, act {act}", self.seed);
            None
        })
    }

    /// Goes on with what there is, to the end; then there is nothing left to do.
    fn go_on(&self, kept: &Kept, disk: &CrashingDisk, workers: usize) -> Result<(), String> {
        match self.run(kept, disk, workers)? {
            Ending::Complete | Ending::WasComplete => {}
            Ending::Stopped => return Err("it stopped".into()),
        }
        kept.check(disk, &self.expected)?;
        let (again, shown) = (disk.survivors(0), files(disk));
        let ending = self.run(kept, &again, 1)?;
        if ending != Ending::WasComplete || files(&again) != shown {
            return Err(format!("started once more, it ended {ending:?}, and its files are {:?}", files(&again)));
        }
        kept.check(&again, &self.expected)
    }
}

/// A life that has crashed, with what it had shown.
struct Crashed {
    kept: Kept,
    disk: CrashingDisk,
}

impl Crashed {
    /// The act that it crashed at.
    fn at(&self) -> Act {
        self.disk.log().pop().unwrap()
    }
}

/// What is done to which kind of file.
fn done(act: &Act) -> (&'static str, &'static str) {
    let what = match &act.kind {
        ActKind::CreateDirectory => "create directory",
        ActKind::Create => "create",
        ActKind::Append(_) => "append",
        ActKind::Cut(_) => "cut",
        ActKind::Sync => "sync",
        ActKind::Rename(_) => "rename",
        ActKind::Link(_) => "link",
        ActKind::Remove => "remove",
        ActKind::SyncDirectory => "sync directory",
        ActKind::Lock => "lock",
        ActKind::Sign => "sign",
    };
    (what, kind_of(&act.path))
}

/// What survives a crash at an act, as seeds: by turns nothing that was not synced, all of it, or some; of the one act that
/// was asked for, all of these.
fn survivors(act: usize) -> Vec<u64> {
    match (acts().len(), act % 4) {
        (1, _) => (0..20).collect(),
        (_, 0) => vec![0],
        (_, 1) => vec![1],
        _ => vec![2 + act as u64],
    }
}

/// A life is crashed at each of its acts with `TIDEGATE_STRIDE=1`, which takes some minutes; else at every so many-th.
fn stride() -> usize {
    std::env::var("TIDEGATE_STRIDE").map_or(40, |text| text.parse().unwrap())
}

/// The acts to crash at: all, or the one that was asked for.
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

#[test]
fn a_crash_at_any_act_changes_no_result() {
    let mut crashed_at = BTreeSet::new();
    for seed in seeds(KINDS.len() as u64) {
        let subject = Subject::new(seed);
        let mut missed = 0;
        for act in acts().filter(|act| acts().len() == 1 || act % stride() == seed as usize % stride()) {
            // How many acts there are is not the same from run to run: threads have their own pace.
            let Some(crashed) = subject.crash(act) else {
                missed += 1;
                if missed > MISSED { break } else { continue }
            };
            crashed_at.insert(done(&crashed.at()));
            for survivors in survivors(act) {
                let (subject, kept) = (subject.clone(), crashed.kept.fork());
                let disk = crashed.disk.survivors(survivors);
                let what = format!(
                    "TIDEGATE_SEED={seed} TIDEGATE_ACT={act} ({}), survivors of seed {survivors}",
                    crashed.at()
                );
                passes(&what, move || subject.go_on(&kept, &disk, 1 + act % 2));
            }
        }
    }
    if acts().len() > 1 && stride() == 1 {
        let all = all_that_is_done();
        let missing: Vec<_> = all.difference(&crashed_at).collect();
        assert!(missing.is_empty(), "no crash at {missing:?}, only at {crashed_at:?}");
    }
}

/// The life that is crashed does everything that a life can do.
#[test]
fn the_life_that_is_crashed_does_all_there_is() {
    let (subject, kept, disk) = (Subject::new(1), Kept::default(), new_disk());
    assert_eq!(subject.run(&kept, &disk, 1), Ok(Ending::Complete));
    let done: BTreeSet<_> = disk.log().iter().map(done).collect();
    let all = all_that_is_done();
    let missing: Vec<_> = all.difference(&done).collect();
    assert!(missing.is_empty(), "it does not {missing:?}, only {done:?}");
}

/// What a whole life must have done to be worth crashing: each kind of act that the engine has, on each kind of file.
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

/// Crashes at every act of the recovery, up to its first snapshot, after a crash at one of many acts; now and then it
/// crashes a third time.
#[test]
fn a_crash_at_any_act_of_a_recovery_changes_no_result() {
    for seed in seeds(KINDS.len() as u64) {
        let subject = Subject::new(100 + seed);
        let acts = (1..).find(|act| subject.crash(*act * 32).is_none()).unwrap() * 32;
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
                    subject.go_on(&kept, &disk, 1 + second % 3)
                });
            }
        }
    }
}

/// How many acts a recovery has, up to its first snapshot.
fn recovery(subject: &Subject, crashed: &Crashed, found: &CrashingDisk) -> usize {
    let (kept, disk) = (crashed.kept.fork(), found.after_kill());
    subject.run(&kept, &disk, 1).unwrap();
    let log = disk.log();
    let made = log.iter().position(|act| done(act) == ("rename", "manifest"));
    made.unwrap_or(log.len()) + 2
}
