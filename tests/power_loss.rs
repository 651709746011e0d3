//! The system calls of a job with state are in an order that is safe against a loss of power: `OsDisk` keeps what
//! [`Disk`] promises, and what tests on a disk in memory assume.
//!
//! A query runs under `strace`, and its system calls are checked:
//!
//! * a file that gets its name by a rename or a link was synced after its last write, and the directory is synced next;
//! * a file of the journal has its name synced before anything but its header is written, and is synced between writes;
//! * a segment is synced after its last write, and then its directory;
//! * rows of results are synced before a commit file publishes them;
//! * the parent of a new directory is synced before anything is created in it.
//!
//! Without `strace` the test is skipped with a line on standard error; with `CI=true` it fails.
//!
//! [`Disk`]: tidegate::durable::disk::Disk
#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

#[path = "common/run.rs"]
mod run;
#[path = "common/transactions.rs"]
mod transactions;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use run::{TIDEGATE, has_strace, run};
use transactions::{TOTALS, expected_of, ndjson_of, rows_of, same_rows, wild};

const ACCOUNT_TOTALS: &str = "account_totals";
const CALLS: &str = "openat,creat,mkdir,mkdirat,write,pwrite64,ftruncate,fsync,fdatasync,rename,renameat,renameat2,\
                     link,linkat";

/// A successful system call of a thread.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Call {
    /// A file is created, or opened so that it would be.
    Create(PathBuf),
    MakeDirectory(PathBuf),
    /// Bytes or the length of a file are changed.
    Write(PathBuf),
    Sync(PathBuf),
    /// A file is renamed or linked.
    Name(PathBuf, PathBuf),
}

/// A call with the id of its thread.
type Traced = (u32, Call);

/// Parses the output of `strace -f -y`, in the order in which calls returned.
fn calls(trace: &str, below: &Path) -> Vec<Traced> {
    let mut unfinished = BTreeMap::<u32, String>::new();
    let mut calls = Vec::new();
    for line in trace.lines() {
        let Some((thread, rest)) = line.trim_start().split_once(' ') else { continue };
        let (Ok(thread), rest) = (thread.parse::<u32>(), rest.trim_start()) else { continue };
        let whole = if let Some(begun) = rest.strip_suffix(" <unfinished ...>") {
            unfinished.insert(thread, begun.to_owned());
            continue;
        } else if rest.starts_with("<... ") {
            let (Some(begun), Some((_, ended))) = (unfinished.remove(&thread), rest.split_once(" resumed>")) else {
                continue;
            };
            format!("{begun}{ended}")
        } else {
            rest.to_owned()
        };
        let succeeded = whole.rsplit_once(" = ").is_some_and(|(_, result)| !result.starts_with('-'));
        calls.extend(call(&whole).filter(|_| succeeded).map(|call| (thread, call)));
    }
    calls.retain(|(_, call)| {
        let (Call::Create(path) | Call::MakeDirectory(path) | Call::Write(path) | Call::Sync(path)) = call else {
            return true;
        };
        path.starts_with(below)
    });
    calls
}

/// Returns the call of a line; `None` if the rules do not concern it.
fn call(line: &str) -> Option<Call> {
    let (name, arguments) = line.split_once('(')?;
    // A path in quotes, or after a descriptor.
    let quoted: Vec<PathBuf> = arguments.split('"').skip(1).step_by(2).map(PathBuf::from).collect();
    let descriptor = || {
        let path = arguments.split_once('<')?.1.split_once('>')?.0;
        Some(PathBuf::from(path.trim_end_matches(" (deleted)")))
    };
    match name {
        "openat" | "creat" if arguments.contains("O_CREAT") || name == "creat" => {
            Some(Call::Create(quoted.first()?.clone()))
        }
        "mkdir" | "mkdirat" => Some(Call::MakeDirectory(quoted.first()?.clone())),
        "write" | "pwrite64" | "ftruncate" => descriptor().map(Call::Write),
        "fsync" | "fdatasync" => descriptor().map(Call::Sync),
        "rename" | "renameat" | "renameat2" | "link" | "linkat" => {
            Some(Call::Name(quoted.first()?.clone(), quoted.get(1)?.clone()))
        }
        _ => None,
    }
}

fn name_of(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

/// Returns the violations of the rules in a sequence of calls.
fn wrong(calls: &[Traced]) -> Vec<String> {
    let mut wrong = Vec::new();
    for (at, (thread, call)) in calls.iter().enumerate() {
        // Earlier and later calls of the same thread.
        let later = || calls[at + 1..].iter().filter(|(other, _)| other == thread).map(|(_, call)| call);
        let before = || calls[..at].iter().filter(|(other, _)| other == thread).map(|(_, call)| call).rev();
        let next_names = |directory: &Path| {
            let mut next = later().skip_while(|call| matches!(call, Call::Write(_)));
            next.next() == Some(&Call::Sync(directory.to_owned()))
        };
        match call {
            Call::Name(from, to) => {
                let mut touched =
                    before().filter(|call| matches!(call, Call::Write(path) | Call::Sync(path) if path == from));
                if !matches!(touched.next(), Some(Call::Sync(_))) {
                    wrong.push(format!("{} gets the name {} and is not synced", from.display(), to.display()));
                }
                if !next_names(to.parent().unwrap()) {
                    wrong.push(format!("the name {} is not synced at once", to.display()));
                }
                if name_of(to).contains(".commit-") {
                    let results = to.with_file_name(name_of(to).split(".commit-").next().unwrap());
                    let mut touched = before()
                        .filter(|call| matches!(call, Call::Write(path) | Call::Sync(path) if *path == results));
                    if matches!(touched.next(), Some(Call::Write(_))) {
                        wrong.push(format!("{} is committed and not synced", results.display()));
                    }
                }
            }
            Call::MakeDirectory(path) if !next_names(path.parent().unwrap()) => {
                wrong.push(format!("the directory {} is not synced into the one above", path.display()));
            }
            Call::Create(path) if name_of(path).ends_with(".journal") => wrong.extend(wrong_journal(path, later())),
            Call::Create(path) if name_of(path).ends_with(".segment") => wrong.extend(wrong_segment(path, later())),
            _ => {}
        }
    }
    wrong
}

/// Returns the violation, if any, in the calls after the creation of a file of the journal: header, sync, sync of the
/// name, and then writes each with a sync.
fn wrong_journal<'a>(path: &Path, later: impl Iterator<Item = &'a Call>) -> Option<String> {
    let directory = path.parent().unwrap();
    let own = later.filter(|call| match call {
        Call::Write(other) => other == path,
        Call::Sync(other) => other == path || other == directory,
        _ => false,
    });
    let kinds: Vec<&str> = own
        .map(|call| match call {
            Call::Write(_) => "write",
            Call::Sync(other) if other == path => "sync",
            _ => "sync of its directory",
        })
        .collect();
    let begun = kinds.starts_with(&["write", "sync", "sync of its directory"]);
    let rest = kinds.get(3..).unwrap_or_default().iter().filter(|kind| **kind != "sync of its directory");
    let rest: Vec<_> = rest.copied().collect();
    let in_pairs = rest.len() % 2 == 0 && rest.chunks(2).all(|pair| pair == ["write", "sync"]);
    (!begun || !in_pairs).then(|| format!("{}: {kinds:?}", path.display()))
}

/// Returns the violation, if any, in the calls after the creation of a segment: a sync after its last write, then one
/// of its name.
fn wrong_segment<'a>(path: &Path, later: impl Iterator<Item = &'a Call>) -> Option<String> {
    let later: Vec<_> = later.collect();
    let last = later.iter().rposition(|call| **call == Call::Write(path.to_owned()))?;
    let syncs = [Call::Sync(path.to_owned()), Call::Sync(path.parent().unwrap().to_owned())];
    let follows = later[last + 1..].iter().take(2).copied().eq(&syncs);
    (!follows).then(|| format!("{} is not synced and named: {:?}", path.display(), later.get(last + 1..last + 3)))
}

#[test]
fn what_a_job_asks_of_the_kernel_is_safe_from_a_loss_of_power() {
    if !has_strace() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().canonicalize().unwrap();
    let rows = wild(7, 40_000);
    fs::write(folder.join("in.ndjson"), ndjson_of(&rows)).unwrap();
    let in_folder = |name: &str| folder.join(name).display().to_string();
    let (trace, input, out, state) =
        (in_folder("trace"), in_folder("in.ndjson"), in_folder("out.csv"), in_folder("deep/er/state"));
    let mut arguments = vec!["-f", "-y", "-qq", "-s", "0", "-e", "signal=none", "-o", &trace];
    let calls_traced = format!("trace={CALLS}");
    arguments.extend([
        "-e",
        &calls_traced,
        TIDEGATE,
        ACCOUNT_TOTALS,
        "--ndjson",
        &input,
        "--out",
        &out,
        "--state",
        &state,
    ]);
    // Many snapshots, so that segments are merged, and as many epochs as possible.
    let paced = ["--snapshot-every", "10ms", "--epoch", "5ms", "--in-flight", "1MiB", "--until-end", "-w", "8"];
    arguments.extend(paced);
    run("strace", &arguments).code(0);
    same_rows(&rows_of(Path::new(&out), &TOTALS), &expected_of(&rows).rows());
    let calls = calls(&fs::read_to_string(&trace).unwrap(), &folder);
    let found = wrong(&calls);
    assert!(found.is_empty(), "{} of {} calls: {:#?}", found.len(), calls.len(), &found[..found.len().min(10)]);
    // There was a call for each of the rules.
    let mut seen = BTreeSet::new();
    for (_, call) in &calls {
        seen.insert(match call {
            Call::Name(_, to) if name_of(to).contains(".commit-") => "a commit",
            Call::Name(_, to) if name_of(to).ends_with(".manifest") => "a manifest",
            Call::Name(_, to) if name_of(to).ends_with(".claim") => "a claim",
            Call::Create(path) if name_of(path).contains("worker4294967295") => "a merged segment",
            Call::Create(path) if name_of(path).ends_with(".segment") => "a segment",
            Call::Create(path) if name_of(path).ends_with(".journal") => "a file of the journal",
            Call::MakeDirectory(path) if path.ends_with("deep") => "a directory",
            Call::Write(path) if path.ends_with("out.csv") => "rows",
            _ => "another",
        });
    }
    let expected = [
        "a commit",
        "a manifest",
        "a claim",
        "a merged segment",
        "a segment",
        "a file of the journal",
        "a directory",
        "rows",
    ];
    let missing: Vec<_> = expected.iter().filter(|kind| !seen.contains(*kind)).collect();
    assert!(missing.is_empty(), "there was no {missing:?}");
}

/// The rules detect violations: a sequence in which one call is missing is rejected.
#[test]
fn an_order_of_calls_in_which_a_sync_is_missing_is_wrong() {
    let path = |name: &str| PathBuf::from("/s").join(name);
    let sound = [
        Call::MakeDirectory(path("d")),
        Call::Sync(path("")),
        Call::Create(path("d/1.journal")),
        Call::Write(path("d/1.journal")),
        Call::Sync(path("d/1.journal")),
        Call::Sync(path("d")),
        Call::Write(path("d/1.journal")),
        Call::Sync(path("d/1.journal")),
        Call::Create(path("d/a.segment")),
        Call::Write(path("d/a.segment")),
        Call::Sync(path("d/a.segment")),
        Call::Sync(path("d")),
        Call::Write(path("out.csv")),
        Call::Sync(path("out.csv")),
        Call::Create(path("out.csv.commit-1.temporary")),
        Call::Write(path("out.csv.commit-1.temporary")),
        Call::Sync(path("out.csv.commit-1.temporary")),
        Call::Name(path("out.csv.commit-1.temporary"), path("out.csv.commit-1")),
        Call::Sync(path("")),
    ];
    let traced = |calls: &mut dyn Iterator<Item = &Call>| calls.map(|call| (1, call.clone())).collect::<Vec<_>>();
    assert_eq!(wrong(&traced(&mut sound.iter())), Vec::<String>::new());
    let syncs = (0..sound.len()).filter(|at| matches!(sound[*at], Call::Sync(_)));
    for missing in syncs {
        let mut rest = sound.iter().enumerate().filter(|(at, _)| *at != missing).map(|(_, call)| call);
        assert!(!wrong(&traced(&mut rest)).is_empty(), "without {:?}", sound[missing]);
    }
    let trace = "7 openat(AT_FDCWD</x>, \"/s/a\", O_RDWR|O_CREAT|O_CLOEXEC, 0666) = 9</s/a>\n\
                 7 pwrite64(9</s/a>, \"\"..., 12, 0 <unfinished ...>\n\
                 8 fdatasync(3</s/b>)      = 0\n\
                 7 <... pwrite64 resumed>) = 12\n\
                 7 linkat(AT_FDCWD</x>, \"/s/a\", AT_FDCWD</x>, \"/s/c\", 0) = -1 EEXIST (File exists)\n\
                 7 fsync(4</elsewhere>) = 0\n";
    let expected = [
        (7, Call::Create(PathBuf::from("/s/a"))),
        (8, Call::Sync(PathBuf::from("/s/b"))),
        (7, Call::Write(PathBuf::from("/s/a"))),
    ];
    assert_eq!(calls(trace, Path::new("/s")), expected);
}
