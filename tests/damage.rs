//! A damaged file is refused by its name, or it does not matter: never is a wrong result shown for it.
//!
//! Of a state in the middle of its life every file is damaged in turn: a byte flipped at every position that counts most
//! and at many others, the file cut, made longer, or taken away. The state then says which file it is, or it comes to
//! the very results that it would have come to; and with the file put back it goes on as if nothing had been.
//!
//! A run flips bytes at a sample of the positions; with `TIDEGATE_CASES=1` at all of them.
#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use fastrand::Rng;
use tidegate::job::Ending;
use tidegate::testing::CrashingDisk;

use common::cases::{Data, within};
use common::kept::{CLOSED, EVER, End, Kept, all_files, kind_of, new_disk, on, steady};

/// Of a file's beginning and end so many bytes are flipped one by one, and every so many-th in between.
const ENDS: usize = 128;
const STEP: usize = 64;
/// All of that takes some minutes, so a run takes one of so many positions.
const ONE_OF: usize = 16;

/// A state that was killed in the middle of its second life, with what it had shown.
#[derive(Clone)]
struct Subject {
    data: Data,
    expected: End,
    shown: Kept,
    files: BTreeMap<PathBuf, Vec<u8>>,
}

impl Subject {
    fn new() -> Subject {
        let data = steady(7, 150);
        let (expected, shown, mut disk) = (Kept::plain(&data).unwrap(), Kept::default(), new_disk());
        for workers in [2, 1] {
            disk.crash_at(400);
            let _killed = shown.run(&data, on(&disk, workers, 16));
            assert!(disk.has_crashed(), "it is too short a life: {} acts", disk.acts());
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

    fn disk(&self, files: &BTreeMap<PathBuf, Vec<u8>>) -> CrashingDisk {
        let disk = new_disk();
        files.iter().for_each(|(path, bytes)| disk.put(path, bytes));
        disk
    }

    /// Goes on with these files; what it says, if it refuses.
    fn go_on(&self, files: &BTreeMap<PathBuf, Vec<u8>>, workers: usize) -> Result<Option<String>, String> {
        let (kept, disk) = (self.shown.fork(), self.disk(files));
        match kept.run(&self.data, on(&disk, workers, 5)) {
            Err(refused) => Ok(Some(refused)),
            Ok(report) if report.ending == Ending::Complete => kept.check(&disk, &self.expected).map(|()| None),
            Ok(report) => Err(format!("it ended {:?}", report.ending)),
        }
    }

    /// Damages a file, by these bytes instead of its own or by none, and goes on; says whether it was refused.
    fn check(&self, path: &Path, bytes: Option<Vec<u8>>) -> Result<bool, String> {
        let mut files = self.files.clone();
        let missing = bytes.is_none();
        match bytes {
            Some(bytes) => drop(files.insert(path.to_owned(), bytes)),
            None => drop(files.remove(path)),
        }
        let Some(refused) = self.go_on(&files, 1)? else { return Ok(false) };
        if refused.contains('\n') || refused.contains("panicked") {
            return Err(format!("it says {refused:?}"));
        }
        let named = |path: &Path| refused.contains(path.file_name().unwrap().to_str().unwrap());
        // A results file and what says how far it is shown: which of them is wrong nobody can know.
        let beside = [CLOSED, EVER].into_iter().find(|results| path.to_string_lossy().starts_with(results));
        if named(path) || beside.is_some_and(|results| named(Path::new(results))) {
            return Ok(true);
        }
        // Nothing names a journal file that is not there: what it held is missed where an output has shown it.
        if missing && kind_of(path) == "journal" && refused.contains("an output is ahead of the state") {
            return Ok(true);
        }
        Err(format!("it does not name the file: {refused}"))
    }
}

/// The positions at which a file is damaged: with `TIDEGATE_CASES=1` all of them, else one of [`ONE_OF`], by a seed.
fn positions(length: usize, random: &mut Rng) -> BTreeSet<usize> {
    let one_of = if std::env::var_os("TIDEGATE_CASES").is_some() { 1 } else { ONE_OF };
    let ends = (0..ENDS.min(length)).chain(length.saturating_sub(ENDS)..length);
    let others = (0..length).step_by(STEP);
    let all: BTreeSet<usize> = ends.chain(others).filter(|at| *at < length).collect();
    all.into_iter().filter(|_| random.usize(0..one_of) == 0).collect()
}

/// Runs checks on two threads, each within a time; fails with all that they say.
#[expect(clippy::needless_pass_by_value, reason = "cases are made where they are used")]
fn all_pass(subject: &Subject, cases: Vec<(String, PathBuf, Option<Vec<u8>>)>) -> BTreeMap<&'static str, [usize; 2]> {
    let mut counts = BTreeMap::<_, [usize; 2]>::new();
    let half = cases.len() / 2;
    let results = std::thread::scope(|scope| {
        let run = |cases: &[(String, PathBuf, Option<Vec<u8>>)]| {
            let check = |(what, path, bytes): &(String, PathBuf, Option<Vec<u8>>)| {
                let (subject, own, bytes) = (subject.clone(), path.clone(), bytes.clone());
                let result = within(Duration::from_secs(60), move || subject.check(&own, bytes));
                let result = result.unwrap_or_else(|| Err("it hangs, or panics".into()));
                (kind_of(path), result.map_err(|why| format!("{}, {what}: {why}", path.display())))
            };
            cases.iter().map(check).collect::<Vec<_>>()
        };
        let (first, second) = cases.split_at(half);
        let other = scope.spawn(move || run(second));
        let mut results = run(first);
        results.extend(other.join().unwrap());
        results
    });
    let mut wrong = Vec::new();
    for (kind, result) in results {
        match result {
            Ok(refused) => counts.entry(kind).or_default()[usize::from(refused)] += 1,
            Err(why) => wrong.push(why),
        }
    }
    assert!(wrong.is_empty(), "{} of {}: {:#?}", wrong.len(), cases.len(), &wrong[..wrong.len().min(20)]);
    counts
}

#[test]
fn a_flipped_byte_is_refused_by_the_name_of_its_file_or_does_not_matter() {
    let (subject, mut random) = (Subject::new(), Rng::with_seed(1));
    let mut cases = Vec::new();
    for (path, bytes) in &subject.files {
        for at in positions(bytes.len(), &mut random) {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1 << random.u8(0..8);
            cases.push((format!("byte {at} of {}", bytes.len()), path.clone(), Some(flipped)));
        }
    }
    random.shuffle(&mut cases);
    let counts = all_pass(&subject, cases);
    // A check that nothing is ever refused by, or everything, would be none.
    for kind in ["results", "commit", "journal", "manifest", "segment", "claim", "identity"] {
        assert!(counts[kind][1] > 0, "no damage of a {kind} is refused: {counts:?}");
    }
    assert!(counts.values().any(|[passed, _]| *passed > 0), "{counts:?}");
    assert_eq!(subject.go_on(&subject.files, 2), Ok(None));
}

#[test]
fn a_file_that_is_cut_or_longer_or_missing_is_refused_by_its_name_or_does_not_matter() {
    let subject = Subject::new();
    let mut cases = Vec::new();
    for (path, bytes) in &subject.files {
        let length = bytes.len();
        for kept in BTreeSet::from([0, 1, length / 4, length / 2, length * 3 / 4, length.saturating_sub(1)]) {
            if kept < length {
                cases.push((format!("cut to {kept} of {length}"), path.clone(), Some(bytes[..kept].to_vec())));
            }
        }
        cases.push(("longer".into(), path.clone(), Some([bytes.as_slice(), b"x"].concat())));
        cases.push(("missing".into(), path.clone(), None));
    }
    let counts = all_pass(&subject, cases);
    for kind in ["results", "commit", "manifest", "segment", "claim", "identity"] {
        assert!(counts[kind][1] > 0, "no damage of a {kind} is refused: {counts:?}");
    }
}
