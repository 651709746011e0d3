//! A damaged file is refused by its name, or the damage does not matter: it never leads to a wrong result.
//!
//! Files of every kind of a state that is in use are damaged in turn: a byte is flipped at every critical position and at many
//! others; the file is truncated, extended, or removed. The state then names the file in an error, or it reaches the
//! very results that it would have reached otherwise; and with the file restored it resumes as if nothing had happened.
//!
//! A run damages a sample of the files at a sample of the positions; with `TIDEGATE_CASES=1` all files at all positions.
#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use fastrand::Rng;
use tidegate::durable::journal::{Frame, PartitionProgress};
use tidegate::job::Ending;
use tidegate::testing::CrashingDisk;
use tidegate::testing::durable::{OpenedState, StoredJournal, snapshot_epoch};
use tidegate::time::Epoch;

use common::cases::{Data, in_parallel, within};
use common::durable_query::{
    CLOSED, DurableQuery, DurableQueryOutputs, EVER, FinalOutputs, STATE, all_files, kind_of, new_disk, on, steady,
};

/// Number of bytes at a file's beginning and end that are flipped one by one, and the distance of those in between.
const ENDS: usize = 128;
const STEP: usize = 64;
/// All of them take an hour, so a run takes one in this many positions.
const ONE_OF: usize = 48;

/// A state that was killed in the middle of its second incarnation, with what it had published.
#[derive(Clone)]
struct Subject {
    data: Data,
    expected: FinalOutputs,
    shown: DurableQueryOutputs,
    files: BTreeMap<PathBuf, Vec<u8>>,
}

/// A file of the journal of the last incarnation, with the ends of its frames.
struct Journal {
    path: PathBuf,
    process: u32,
    /// Ends of the header and of each frame.
    ends: Vec<usize>,
    frames: Vec<Frame>,
}

impl Subject {
    fn new() -> Subject {
        Subject::killed(&[(1, 2, 400), (1, 1, 400)])
    }

    /// Makes a state whose last incarnation, of so many processes and workers, was killed just when everything that it
    /// had committed to its journal was published, the last epoch by at least two workers.
    fn published_to_the_end(processes: usize, workers: usize) -> Subject {
        (250..900)
            .map(|act| Subject::killed(&[(1, 1, 300), (processes, workers, act)]))
            .find(Subject::has_published_all)
            .expect("some epoch is published before the next one is committed")
    }

    /// Makes a state each incarnation of which, of so many processes and workers, was killed at an operation of its
    /// disk.
    fn killed(lives: &[(usize, usize, usize)]) -> Subject {
        let data = steady(7, 150);
        let (expected, shown, mut disk) =
            (DurableQueryOutputs::plain(&data).unwrap(), DurableQueryOutputs::default(), new_disk());
        for (processes, workers, act) in lives {
            disk.crash_at(*act);
            let _killed = shown.run(&data, on(&disk, *workers, 16).processes(*processes));
            assert!(disk.has_crashed(), "it is too short a life: {} acts", disk.operations());
            disk = disk.after_kill();
        }
        let file = |path: PathBuf| (path.clone(), disk.bytes(&path).unwrap());
        let files: BTreeMap<_, _> = all_files(&disk).into_iter().map(file).collect();
        let kinds: BTreeSet<_> = files.keys().map(|path| kind_of(path)).collect();
        for kind in ["results", "commit", "journal", "manifest", "segment", "claim", "life", "identity", "lock"] {
            assert!(kinds.contains(kind), "no {kind} in {:?}", files.keys());
        }
        Subject { data, expected, shown, files }
    }

    /// Returns the files that a run damages: with `TIDEGATE_CASES=1` all of them, else of each kind and each directory
    /// the first, the last and one between them.
    fn chosen_files(&self) -> Vec<(&PathBuf, &Vec<u8>)> {
        let mut by_kind = BTreeMap::<_, Vec<_>>::new();
        for (path, bytes) in &self.files {
            by_kind.entry((kind_of(path), path.parent())).or_default().push((path, bytes));
        }
        let chosen = by_kind.into_values().flat_map(|files| {
            let last = files.len() - 1;
            let some = if is_whole() { (0..=last).collect() } else { BTreeSet::from([0, last / 2, last]) };
            some.into_iter().map(|at| files[at]).collect::<Vec<_>>()
        });
        chosen.collect()
    }

    /// Returns the journals of the last incarnation.
    fn journals(&self) -> Vec<Journal> {
        let state = OpenedState::join(self.disk(&self.files).shared(), STATE).unwrap();
        let named = self.files.iter().filter_map(|(path, bytes)| {
            let name = path.file_name()?.to_str()?;
            Some((path, state.read_journal(name, bytes).unwrap()?))
        });
        let all: Vec<_> = named.collect();
        let last = all.iter().map(|(_, file)| file.incarnation).max();
        let own = all.into_iter().filter(|(_, file)| Some(file.incarnation) == last);
        let journal = |(path, file): (&PathBuf, StoredJournal)| Journal {
            path: path.clone(),
            process: file.process,
            ends: file.ends,
            frames: file.frames,
        };
        own.map(journal).collect()
    }

    /// Returns `true` if two workers took records in the last epoch that is committed, no snapshot has it, and both
    /// results files have published it.
    fn has_published_all(&self) -> bool {
        let journals = self.journals();
        let mut ends = BTreeMap::<u32, u64>::new();
        let mut took = BTreeMap::<Epoch, usize>::new();
        for frame in journals.iter().flat_map(|journal| &journal.frames) {
            // The position of a partition before its first frame here is not known.
            let takes = |bound: &PartitionProgress| {
                ends.get(&bound.partition).is_some_and(|before| *before < bound.next_offset)
            };
            *took.entry(frame.epoch).or_default() += usize::from(frame.progress.iter().any(takes));
            ends.extend(frame.progress.iter().map(|bound| (bound.partition, bound.next_offset)));
        }
        let Some((last, takers)) = took.pop_last() else { return false };
        let published = |results: &str| {
            let is_commit = |path: &Path| path.to_string_lossy().starts_with(&format!("{results}.commit-"));
            let mut commits = self.files.iter().filter(|(path, _)| is_commit(path));
            commits.any(|(_, line)| String::from_utf8_lossy(line).contains(&format!("\"epoch\":{},", last.0)))
        };
        let snapshots = self.files.keys().filter_map(|path| snapshot_epoch(path.file_name()?.to_str()?));
        let is_replayed = snapshots.max() < Some(last);
        is_replayed && takers > 1 && published(CLOSED) && published(EVER)
    }

    fn disk(&self, files: &BTreeMap<PathBuf, Vec<u8>>) -> CrashingDisk {
        let disk = new_disk();
        files.iter().for_each(|(path, bytes)| disk.put(path, bytes));
        disk
    }

    /// Resumes with these files; returns the error if they are refused, else checks the results.
    fn go_on(&self, files: &BTreeMap<PathBuf, Vec<u8>>, workers: usize) -> Result<Option<String>, String> {
        let (kept, disk) = (self.shown.fork(), self.disk(files));
        match kept.run(&self.data, on(&disk, workers, 5)) {
            Err(refused) => Ok(Some(refused)),
            Ok(report) if report.ending == Ending::Complete => kept.check(&disk, &self.expected).map(|()| None),
            Ok(report) => Err(format!("it ended {:?}", report.ending)),
        }
    }

    /// Damages files, by other contents or by removal, and resumes; returns `true` if that was refused.
    fn check(&self, damage: &Damage) -> Result<bool, String> {
        let mut files = self.files.clone();
        for (path, bytes) in damage {
            match bytes {
                Some(bytes) => drop(files.insert(path.clone(), bytes.clone())),
                None => drop(files.remove(path)),
            }
        }
        let Some(refused) = self.go_on(&files, 1)? else { return Ok(false) };
        if refused.contains('\n') || refused.contains("panicked") {
            return Err(format!("it says {refused:?}"));
        }
        let named = |path: &Path| refused.contains(path.file_name().unwrap().to_str().unwrap());
        // Of a results file and its commit file, nobody can know which one is wrong.
        let beside =
            |path: &Path| [CLOSED, EVER].into_iter().find(|results| path.to_string_lossy().starts_with(results));
        let is_named = |path: &Path| named(path) || beside(path).is_some_and(|results| named(Path::new(results)));
        if damage.iter().any(|(path, _)| is_named(path)) {
            return Ok(true);
        }
        Err(format!("it does not name the file: {refused}"))
    }
}

/// Files with their new contents; `None` removes the file.
type Damage = Vec<(PathBuf, Option<Vec<u8>>)>;

/// A damage with its description.
type Case = (String, Damage);

/// Returns `true` if every file is to be damaged at every position.
fn is_whole() -> bool {
    std::env::var_os("TIDEGATE_CASES").is_some()
}

/// Returns the positions at which a file is damaged: with `TIDEGATE_CASES=1` all of them, else one in [`ONE_OF`], by a
/// seed.
fn positions(length: usize, random: &mut Rng) -> BTreeSet<usize> {
    let one_of = if is_whole() { 1 } else { ONE_OF };
    let ends = (0..ENDS.min(length)).chain(length.saturating_sub(ENDS)..length);
    let others = (0..length).step_by(STEP);
    let all: BTreeSet<usize> = ends.chain(others).filter(|at| *at < length).collect();
    // At least one position, even of a short file.
    let one = all.iter().nth(random.usize(0..all.len().max(1))).copied();
    all.into_iter().filter(|at| Some(*at) == one || random.usize(0..one_of) == 0).collect()
}

/// Runs checks on all processors, each with a time limit; fails with all of their errors.
fn all_pass(subject: &Subject, cases: Vec<Case>) -> BTreeMap<&'static str, [usize; 2]> {
    let (count, mut counts) = (cases.len(), BTreeMap::<_, [usize; 2]>::new());
    let results = in_parallel(cases, |(what, damage)| {
        let (subject, path) = (subject.clone(), damage[0].0.clone());
        let result = within(Duration::from_secs(60), move || subject.check(&damage));
        let result = result.unwrap_or_else(|| Err("it hangs, or panics".into()));
        (kind_of(&path), result.map_err(|why| format!("{}, {what}: {why}", path.display())))
    });
    let mut wrong = Vec::new();
    for (kind, result) in results {
        match result {
            Ok(refused) => counts.entry(kind).or_default()[usize::from(refused)] += 1,
            Err(why) => wrong.push(why),
        }
    }
    assert!(wrong.is_empty(), "{} of {}: {:#?}", wrong.len(), count, &wrong[..wrong.len().min(20)]);
    counts
}

#[test]
fn a_flipped_byte_is_refused_by_the_name_of_its_file_or_does_not_matter() {
    let (subject, mut random) = (Subject::new(), Rng::with_seed(1));
    let mut cases = Vec::new();
    for (path, bytes) in subject.chosen_files() {
        for at in positions(bytes.len(), &mut random) {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1 << random.u8(0..8);
            cases.push((format!("byte {at} of {}", bytes.len()), vec![(path.clone(), Some(flipped))]));
        }
    }
    random.shuffle(&mut cases);
    let counts = all_pass(&subject, cases);
    // A check that refuses nothing, or everything, would prove nothing.
    let refused = |kind: &str| counts.get(kind).map_or(0, |[_, refused]| *refused);
    for kind in ["results", "commit", "journal", "manifest", "claim", "identity"] {
        assert!(refused(kind) > 0, "no damage of a {kind} is refused: {counts:?}");
    }
    // All segments may have been merged by then.
    assert!(refused("segment") + refused("merged segment") > 0, "no damage of a segment is refused: {counts:?}");
    assert!(counts.values().any(|[passed, _]| *passed > 0), "{counts:?}");
    assert_eq!(subject.go_on(&subject.files, 2), Ok(None));
}

#[test]
fn a_file_that_is_cut_or_longer_or_missing_is_refused_by_its_name_or_does_not_matter() {
    let subject = Subject::new();
    let mut cases = Vec::new();
    for (path, bytes) in subject.chosen_files() {
        let length = bytes.len();
        let mut case = |what: String, bytes| cases.push((what, vec![(path.clone(), bytes)]));
        for kept in BTreeSet::from([0, 1, length / 4, length / 2, length * 3 / 4, length.saturating_sub(1)]) {
            if kept < length {
                case(format!("cut to {kept} of {length}"), Some(bytes[..kept].to_vec()));
            }
        }
        case("longer".into(), Some([bytes.as_slice(), b"x"].concat()));
        case("missing".into(), None);
    }
    let counts = all_pass(&subject, cases);
    let refused = |kind: &str| counts.get(kind).map_or(0, |[_, refused]| *refused);
    for kind in ["results", "commit", "manifest", "claim", "identity"] {
        assert!(refused(kind) > 0, "no damage of a {kind} is refused: {counts:?}");
    }
    assert!(refused("segment") + refused("merged segment") > 0, "no damage of a segment is refused: {counts:?}");
}

/// Damages the ends of the journals of all processes: each process's last frames and files are flipped, truncated and
/// removed, where every epoch that they have is published.
fn damage_the_ends(processes: usize, workers: usize) {
    let (subject, mut random) = (Subject::published_to_the_end(processes, workers), Rng::with_seed(2));
    let (journals, mut cases, mut last_frames) = (subject.journals(), Vec::new(), Vec::new());
    for process in 0..processes as u32 {
        let of_process: Vec<_> = journals.iter().filter(|journal| journal.process == process).collect();
        let last = of_process.last().expect("every process has begun a journal");
        let bytes = &subject.files[&last.path];
        let mut case = |what: String, bytes| cases.push((what, vec![(last.path.clone(), bytes)]));
        for frames in 1..=2 {
            let Some(at) = last.ends.len().checked_sub(frames + 1) else { continue };
            let (from, to) = (last.ends[at], last.ends[at + 1]);
            last_frames.push(last.frames[at].clone());
            for at in from..to {
                if random.u8(0..6) > 0 {
                    continue;
                }
                let mut flipped = bytes.clone();
                flipped[at] ^= 1 << random.u8(0..8);
                case(format!("a bit at {at}, {frames} from the end"), Some(flipped));
            }
            for kept in [from, from + 1, (from + to) / 2, to - 1] {
                case(format!("cut to {kept}, {frames} from the end"), Some(bytes[..kept].to_vec()));
            }
        }
        case("removed".into(), None);
        let all = of_process.iter().map(|journal| (journal.path.clone(), None));
        cases.push((format!("all of process {process} removed"), all.collect()));
    }
    let counts = all_pass(&subject, cases);
    assert!(counts["journal"][1] > 0, "{counts:?}");
    assert_eq!(subject.go_on(&subject.files, 2), Ok(None), "the state as it was goes on; {last_frames:?}");
}

#[test]
fn the_end_of_a_journal_of_two_workers_is_refused_where_it_was_published_and_is_not_whole() {
    damage_the_ends(1, 2);
}

#[test]
fn the_end_of_a_journal_of_two_processes_is_refused_where_it_was_published_and_is_not_whole() {
    damage_the_ends(2, 1);
}
