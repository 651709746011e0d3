//! Ownership of a state: locks, and an older incarnation does no harm to a later one.

use std::collections::BTreeSet;
use std::io;
use std::sync::Mutex;

use super::*;
use crate::durable::disk::{Disk, OsDisk};
use crate::durable::journal::{FileJournal, Journal};
use crate::durable::manifest::{self, ManifestId, StepState};
use crate::durable::segment::{SegmentInfo, SegmentLabel};
use crate::durable::state::incarnation_of_segment;
use crate::durable::{disk_error, explain};

fn joined(state: &StateDir) -> StateDir {
    StateDir::join(state.disk().clone(), "state").unwrap()
}

fn segment(file: &str, bytes: u64) -> SegmentInfo {
    SegmentInfo {
        file: file.into(),
        step: "t".into(),
        from: Epoch(0),
        to: Epoch(2),
        rows: 1,
        bytes,
        least: EventTime::MIN,
        greatest: EventTime::MIN,
        level: 0,
        checksum: 0,
    }
}

/// A manifest that names these segments, which are created.
fn snapshot(state: &StateDir, incarnation: u64, epoch: u64, segments: &[&str]) -> Manifest {
    for name in segments {
        state.disk().replace(&state.segments().join(name), b"rows").unwrap();
    }
    let mut manifest = manifest(state.id(), incarnation, epoch);
    let segments = segments.iter().map(|name| segment(name, 4)).collect();
    manifest.steps = vec![StepState { name: "t".into(), closed: EventTime::MIN, segments }];
    manifest
}

fn write(state: &StateDir, manifest: &Manifest) -> Result<ManifestId> {
    manifest.write(&**state.disk(), &state.manifests(), &state.still_current(manifest.incarnation))
}

#[test]
fn a_state_keeps_its_identity_and_is_locked_for_life() {
    let (disk, state) = new_state();
    let id = state.id();
    let shared: Arc<dyn Disk> = Arc::new(disk.clone());
    let error = StateDir::open(shared.clone(), "state", false).unwrap_err().to_string();
    let this = std::process::id();
    assert!(error.starts_with(&format!("the state is in use (state): process {this} on ")), "{error}");
    assert!(
        error.ends_with("wait for it or end it; where it cannot be ended, --take-over goes on without it"),
        "{error}"
    );
    let second = StateDir::open(shared.clone(), "state", true).unwrap();
    assert_eq!(second.id(), id);
    // The end of the first holder does not unlock it.
    drop(state);
    assert!(StateDir::open(shared.clone(), "state", false).is_err());
    drop(second);
    assert_eq!(StateDir::open(shared.clone(), "state", false).unwrap().id(), id);
    assert_ne!(StateDir::open(shared, "other", false).unwrap().id(), id);
}

#[test]
fn a_stopped_holder_is_told() {
    let (disk, state) = new_state();
    let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
    let pid = nix::unistd::Pid::from_raw(child.id() as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGSTOP).unwrap();
    nix::sys::wait::waitpid(pid, Some(nix::sys::wait::WaitPidFlag::WUNTRACED)).unwrap();
    let host = super::super::recovery::ProcessInfo::this_process().host;
    disk.put(&PathBuf::from("state/LOCK"), format!("{pid} {host} 0\n").as_bytes());
    let error = StateDir::open(Arc::new(disk.clone()), "state", false).unwrap_err().to_string();
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(
        error,
        format!(
            "the state is in use (state): process {pid} on {host} has it since 1970-01-01T00:00:00.000Z; it is stopped; \
             let it go on (kill -CONT {pid}) or end it (kill -KILL {pid}); where it cannot be ended, --take-over goes on \
             without it"
        )
    );
    drop(state);
}

#[test]
fn a_state_without_its_identity_is_refused() {
    let (disk, state) = new_state();
    begin_incarnation(&state);
    drop(state);
    let path = PathBuf::from("state/STATE");
    let bytes = disk.read(&path).unwrap();
    let open = || StateDir::open(Arc::new(disk.clone()), "state", false).unwrap_err().to_string();
    for at in 0..bytes.len() {
        let mut flipped = bytes.clone();
        flipped[at] ^= 2;
        disk.put(&path, &flipped);
        let error = open();
        assert!(error.starts_with("the identity of the state") && error.contains("(state/STATE)"), "{error}");
        disk.put(&path, &bytes[..at]);
        assert!(open().starts_with("the identity of the state is damaged (state/STATE)"));
    }
    disk.remove(&path).unwrap();
    assert_eq!(
        open(),
        "the identity of the state is missing (state/STATE): there is lives/1; restore the state from a copy, or begin a \
         new one elsewhere"
    );
    assert_eq!(
        StateDir::join(Arc::new(disk.clone()), "state").unwrap_err().to_string(),
        "there is no state here (state)"
    );
}

#[test]
fn of_those_who_begin_at_once_each_has_a_number_and_the_last_one_stays() {
    let (_, state) = new_state();
    let claimed = Mutex::new(Vec::new());
    let numbers = Mutex::new(BTreeSet::new());
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let state = joined(&state);
                let number = state.begin_incarnation().unwrap();
                assert!(numbers.lock().unwrap().insert(number), "{number} was given twice");
                let decision = decided(&state.scan_and_sync().unwrap(), number, None).unwrap();
                if state.claim(&decision, &print()).unwrap().is_some() {
                    claimed.lock().unwrap().push(number);
                }
            });
        }
    });
    let (numbers, claimed) = (numbers.into_inner().unwrap(), claimed.into_inner().unwrap());
    // A process that sees a later record after making its own takes the next number, so there may be gaps.
    assert_eq!(numbers.len(), 8);
    let (first, last) = (*numbers.first().unwrap(), *numbers.last().unwrap());
    assert_eq!(claimed.iter().max(), Some(&last));
    for number in numbers {
        assert_eq!((state.still_current(number))().is_ok(), number == last);
    }
    let error = (state.still_current(first))().unwrap_err().to_string();
    let why = format!("its incarnation {last} has begun, and this is incarnation {first}");
    assert_eq!(error, format!("another process goes on with this state (state): {why}"));
}

#[test]
fn a_file_that_is_gone_is_explained_by_a_later_life_if_there_is_one() {
    let (_, state) = new_state();
    let first = state.begin_incarnation().unwrap();
    let still_current = state.still_current(first);
    let gone = || disk_error("cannot read the manifest", "m", io::ErrorKind::NotFound.into());
    let broken = || disk_error("cannot read the manifest", "m", io::Error::other("a broken disk"));
    assert_eq!(explain(gone(), &still_current), gone());
    state.begin_incarnation().unwrap();
    assert_eq!(explain(gone(), &still_current), still_current().unwrap_err());
    assert_eq!(explain(broken(), &still_current), broken());
}

#[test]
fn who_has_been_overtaken_claims_nothing_and_nobody_claims_twice() {
    let (_, state) = new_state();
    let first = state.begin_incarnation().unwrap();
    let decision = decided(&state.scan_and_sync().unwrap(), first, None).unwrap();
    let (claim, later) = begin_incarnation(&joined(&state));
    assert_eq!((first, claim.incarnation), (1, 2));
    assert_eq!(state.claim(&decision, &print()).unwrap(), None);
    let error = joined(&state).claim(&later, &print()).unwrap_err().to_string();
    assert!(error.starts_with("cannot claim the state (state)"), "{error}");
    // The incarnation is overtaken while it writes its claim.
    let (interruption, state) = interruptible_state();
    let first = state.begin_incarnation().unwrap();
    let decision = decided(&state.scan_and_sync().unwrap(), first, None).unwrap();
    let other = joined(&state);
    interruption.set(0, move || drop(begin_incarnation(&other)));
    assert_eq!(state.claim(&decision, &print()).unwrap(), None);
    assert_eq!(begin_incarnation(&state).0.incarnation, 3);
}

#[test]
fn a_number_whose_record_was_removed_is_not_taken_again() {
    let (interruption, state) = interruptible_state();
    begin_incarnation(&state);
    let other = joined(&state);
    interruption.set(0, move || {
        for _ in 0..20 {
            let (claim, _) = begin_incarnation(&other);
            other.collect_garbage(&claim, 1, &[]).unwrap();
        }
        assert!(!names(&other, "lives").contains(&"2".to_owned()));
    });
    assert_eq!(state.begin_incarnation().unwrap(), 22);
}

#[test]
fn damaged_claims_and_manifests_are_refused_by_their_names() {
    let (disk, state) = new_state();
    begin_incarnation(&state);
    write(&state, &snapshot(&state, 1, 8, &["t-1-life1.segment"])).unwrap();
    for path in ["state/manifests/8-1.manifest", "state/lives/1.claim"] {
        let (path, name) = (PathBuf::from(path), path.strip_prefix("state/").unwrap());
        let bytes = disk.read(&path).unwrap();
        let refused = |bytes: &[u8]| {
            disk.put(&path, bytes);
            let error = decided(&state.scan_and_sync().unwrap(), 2, Some(8)).unwrap_err().to_string();
            assert!(error.contains(&format!("({name})")), "{error}");
            error
        };
        for at in 0..bytes.len() {
            refused(&bytes[..at]);
            let mut flipped = bytes.clone();
            flipped[at] ^= 1 << (at % 8);
            refused(&flipped);
        }
        let mut other = bytes.clone();
        other[7] = 77;
        let known = format!("was written in format 77, and this program knows format {}", bytes[7]);
        assert!(refused(&other).contains(&known));
        disk.put(&path, &bytes);
    }
    assert_eq!(decided(&state.scan_and_sync().unwrap(), 2, Some(8)).unwrap().base.unwrap().epoch, Epoch(8));
    // The manifest under another name, and in another state.
    let bytes = disk.read(&PathBuf::from("state/manifests/8-1.manifest")).unwrap();
    let read = |state, epoch| Manifest::read(state, ManifestId { epoch: Epoch(epoch), incarnation: 1 }, &bytes);
    assert!(read(state.id(), 8).is_ok());
    let error = read(state.id(), 10).unwrap_err().to_string();
    assert_eq!(error, "a manifest has the name of another (10-1.manifest): it was written as 8-1.manifest");
    let error = read(StateId(1), 8).unwrap_err().to_string();
    assert!(error.starts_with("a manifest is of another state (8-1.manifest)"), "{error}");
}

#[test]
fn a_manifest_that_contradicts_itself_is_not_written() {
    let (_, state) = new_state();
    begin_incarnation(&state);
    let refused = |change: fn(&mut Manifest), expected: &str| {
        let mut manifest = snapshot(&state, 1, 8, &["t-1-life1.segment", "t-2-life1.segment"]);
        change(&mut manifest);
        let error = write(&state, &manifest).unwrap_err().to_string();
        assert_eq!(error, format!("the manifest contradicts itself (8-1.manifest): {expected}"));
    };
    refused(|m| m.steps.push(m.steps[0].clone()), "it has two states of the step t");
    refused(|m| m.steps[0].segments[0].step = "u".into(), "the step t has the segment t-1-life1.segment of u");
    refused(
        |m| m.steps[0].segments[1] = m.steps[0].segments[0].clone(),
        "it names the segment t-1-life1.segment twice",
    );
    refused(|m| m.steps[0].segments[0].to = Epoch(9), "the segment t-1-life1.segment is of the epochs 0 to 9");
    refused(|m| m.steps[0].segments[0].from = Epoch(3), "the segment t-1-life1.segment is of the epochs 3 to 2");
    let sink = |m: &mut Manifest| m.sinks.push(SinkState { name: "out".into(), published: None, on_change: false });
    refused(
        |m| {
            let sink = SinkState { name: "out".into(), published: None, on_change: false };
            m.sinks = vec![sink.clone(), sink];
        },
        "it has two states of the sink out",
    );
    let mut manifest = snapshot(&state, 1, 8, &["t-1-life1.segment"]);
    sink(&mut manifest);
    let id = write(&state, &manifest).unwrap();
    assert_eq!(state.manifest(id).unwrap(), manifest);
    assert_eq!(manifest::list(&**state.disk(), &state.manifests()).unwrap(), [id]);
    manifest.verify(&**state.disk(), &state.segments()).unwrap();
    state.disk().replace(&state.segments().join("t-1-life1.segment"), b"row").unwrap();
    let error = manifest.verify(&**state.disk(), &state.segments()).unwrap_err().to_string();
    assert_eq!(
        error,
        "a segment is damaged (state/segments/t-1-life1.segment): it has 3 bytes, and 8-1.manifest names 4"
    );
    state.disk().remove(&state.segments().join("t-1-life1.segment")).unwrap();
    let error = manifest.verify(&**state.disk(), &state.segments()).unwrap_err().to_string();
    assert!(error.starts_with("a segment of the snapshot is missing (state/segments/t-1-life1.segment)"), "{error}");
}

#[test]
fn the_life_of_a_segment_is_in_its_name() {
    for (step, incarnation) in [("t", 1), ("", 20), ("a-b-life7-c", 3), ("-life7-", 4)] {
        let (from, to) = (Epoch(5), Epoch(6));
        let label = SegmentLabel { step: step.into(), incarnation, worker: 8, number: 9, from, to };
        assert_eq!(incarnation_of_segment(&label.file_name()), Some(incarnation));
    }
    assert_eq!(incarnation_of_segment("t-1-life2"), None);
}

fn names(state: &StateDir, directory: &str) -> Vec<String> {
    state.disk().list(&state.path().join(directory)).unwrap()
}

#[test]
fn only_what_nothing_names_is_removed() {
    let (_, state) = new_state();
    let (claim, _) = begin_incarnation(&state);
    for (epoch, segments) in
        [(2, &["t-1-life1.segment"][..]), (4, &["t-1-life1.segment", "t-2-life1.segment"]), (6, &["t-3-life1.segment"])]
    {
        write(&state, &snapshot(&state, 1, epoch, segments)).unwrap();
    }
    state.disk().replace(&state.segments().join("t-4-life1.segment"), b"rows").unwrap();
    let kept = state.collect_garbage(&claim, 2, &[]).unwrap();
    assert_eq!((kept.oldest, kept.removed), (Some(Epoch(4)), 1));
    assert_eq!(names(&state, "manifests"), ["4-1.manifest", "6-1.manifest"]);
    // A segment that is not yet named is not superfluous.
    assert_eq!(
        names(&state, "segments"),
        ["t-1-life1.segment", "t-2-life1.segment", "t-3-life1.segment", "t-4-life1.segment"]
    );
    state.collect_garbage(&claim, 1, &[]).unwrap();
    assert_eq!(names(&state, "segments"), ["t-3-life1.segment", "t-4-life1.segment"]);

    // Files that an incarnation left behind are removed by the next one.
    let old = state.disk().write_temporary(&state.segments().join("t-5-life1.segment"), b"rows").unwrap();
    let old = format!("segments/{}", old.file_name().unwrap().to_str().unwrap());
    let (claim, decision) = begin_incarnation(&state);
    assert_eq!(decision.obsolete, [old]);
    write(&state, &snapshot(&state, 2, 8, &["t-3-life1.segment", "t-6-life2.segment"])).unwrap();
    state.disk().replace(&state.segments().join("t-7-life3.segment"), b"rows").unwrap();
    state.collect_garbage(&claim, 0, &decision.obsolete).unwrap();
    assert_eq!(names(&state, "segments"), ["t-3-life1.segment", "t-6-life2.segment", "t-7-life3.segment"]);
    assert_eq!(names(&state, "manifests"), ["8-2.manifest"]);

    // Records of incarnations do not accumulate, and numbers are not used again.
    for _ in 0..40 {
        let (claim, decision) = begin_incarnation(&state);
        state.collect_garbage(&claim, 1, &decision.obsolete).unwrap();
    }
    assert_eq!(state.begin_incarnation().unwrap(), 43);
    assert!(names(&state, "lives").len() < 40);
    assert!((state.still_current(2))().is_err());
}

/// The outcome of recovery as a text.
fn state_of(state: &StateDir) -> String {
    let decision = decided(&state.scan_and_sync().unwrap(), 99, None).unwrap();
    format!("from {:?}, replay {:?}", decision.base.map(|base| base.epoch.0), short(&decision.replay))
}

/// An incarnation is overtaken between its last check for being current and the operation that follows the check.
#[test]
fn one_act_too_late_does_no_harm() {
    type Act = fn(&StateDir, &Claim, FileJournal) -> bool;
    let acts: [(&str, Act); 3] = [
        ("manifest", |state, _, _| write(state, &snapshot(state, 1, 6, &["t-2-life1.segment"])).is_ok()),
        ("garbage", |state, claim, _| state.collect_garbage(claim, 1, &[]).is_ok()),
        ("cut", |_, _, journal| {
            journal.truncate(Epoch(4));
            journal.close().is_ok()
        }),
    ];
    for (name, act) in acts {
        // It is overtaken after any of its listings of `lives`.
        for skip in 0..4 {
            let (interruption, state) = interruptible_state();
            let (claim, _) = begin_incarnation(&state);
            let journal =
                FileJournal::begin(JournalConfig { file_limit: 1, ..state.journal_config(&claim, 0, 1) }).unwrap();
            for epoch in [2, 4, 6, 8] {
                journal.append(0, frame(epoch, &[(0, epoch)])).unwrap();
                while journal.synced(0) < Some(Epoch(epoch)) {
                    std::thread::yield_now();
                }
                if epoch <= 4 {
                    write(&state, &snapshot(&state, 1, epoch, &["t-1-life1.segment"])).unwrap();
                }
            }
            let (later, seen) = (joined(&state), Arc::new(Mutex::new(None)));
            let (told, overtaken) = (seen.clone(), Arc::new(Mutex::new(false)));
            let flag = overtaken.clone();
            interruption.set(skip, move || {
                *flag.lock().unwrap() = true;
                let (claim, _) = begin_incarnation(&later);
                *told.lock().unwrap() = Some((state_of(&later), claim));
            });
            let done = act(&state, &claim, journal);
            if !*overtaken.lock().unwrap() {
                assert!(skip > 0 && done);
                continue;
            }
            let (before, later) = seen.lock().unwrap().take().unwrap();
            assert_eq!(state_of(&state), before, "{name}, {skip}");
            assert_eq!(before, "from Some(4), replay [(6, [(0, 6)]), (8, [(0, 8)])]");
            // The older incarnation notices that it was overtaken.
            assert!(write(&state, &snapshot(&state, 1, 8, &[])).is_err());
            assert!(state.collect_garbage(&claim, 1, &["lives/2.claim".into()]).is_err());
            assert_eq!(state_of(&state), before, "{name}, {skip}");
            let base = state.manifest(later.base.unwrap()).unwrap();
            base.verify(&**state.disk(), &state.segments()).unwrap();
        }
    }
}

#[test]
fn starts_that_fail_leave_no_more_than_a_few_records_and_what_counts_stays() {
    let (_, state) = new_state();
    let (claim, _) = begin_incarnation(&state);
    for _ in 0..100 {
        state.begin_incarnation().unwrap();
    }
    let left = names(&state, "lives");
    assert!(left.len() <= 20, "{left:?}");
    assert!(left.contains(&"1.claim".to_owned()) && left.contains(&"101".to_owned()), "{left:?}");
    assert!((state.still_current(claim.incarnation))().is_err());
    assert!((state.still_current(101))().is_ok());
    assert_eq!(begin_incarnation(&state).0.incarnation, 102);
}

#[test]
fn a_state_whose_lock_file_was_removed_is_still_in_use() {
    let folder = tempfile::tempdir().unwrap();
    let on_disk = folder.path().join("state");
    let disks: [(Arc<dyn Disk>, PathBuf); 2] =
        [(CrashingDisk::new().shared(), PathBuf::from("state")), (OsDisk::shared(), on_disk)];
    for (disk, path) in disks {
        let open = |take_over| StateDir::open(disk.clone(), &path, take_over);
        let state = open(false).unwrap();
        let (claim, _) = begin_incarnation(&state);
        for _ in 0..2 {
            // `LOCK` is removed first, and then replaced by a file that is neither locked nor signed.
            let _may_be_gone = disk.remove(&path.join("LOCK"));
            let error = open(false).unwrap_err().to_string();
            let holder = format!("process {} on ", std::process::id());
            assert!(error.starts_with("the state is in use (") && error.contains(&holder), "{error}");
            assert!(open(false).is_err());
        }
        (state.still_current(claim.incarnation))().unwrap();
        assert_eq!(names(&state, "lives"), ["1", "1.claim"]);
        open(true).unwrap();
        drop(state);
        open(false).unwrap();
    }
}

#[test]
fn an_earlier_life_asks_before_it_appends_to_its_journal() {
    let (disk, state) = new_state();
    let (claim, _) = begin_incarnation(&state);
    let (journal, mut writer) = FileJournal::prepare(state.journal_config(&claim, 0, 1)).unwrap();
    journal.append(0, frame(2, &[(0, 2)])).unwrap();
    assert!(writer.step());
    let before = disk.read(&path_of(first_file(1))).unwrap();
    let (later, decision) = begin_incarnation(&joined(&state));
    assert_eq!((later.incarnation, short(&decision.replay)), (2, vec![(2, vec![(0, 2)])]));
    journal.append(0, frame(4, &[(0, 4)])).unwrap();
    assert!(!writer.step());
    let error = journal.check().unwrap_err().to_string();
    assert!(error.starts_with("another process goes on with this state (state)"), "{error}");
    assert_eq!(journal.synced(0), Some(Epoch(2)));
    assert_eq!(disk.read(&path_of(first_file(1))).unwrap(), before);
}

/// After a failed sync in the older incarnation, bytes that can be read may be in memory only, and no sync of the same
/// file changes that.
#[test]
fn a_journal_that_is_accepted_is_written_anew() {
    let (disk, state) = new_state();
    let (claim, _) = begin_incarnation(&state);
    let (journal, mut writer) = FileJournal::prepare(state.journal_config(&claim, 0, 1)).unwrap();
    journal.append(0, frame(2, &[(0, 2)])).unwrap();
    assert!(writer.step());
    let mut old = disk.open(&path_of(first_file(1))).unwrap();
    let (before, found) = (old.length().unwrap(), state.scan_and_sync().unwrap());
    // The old file no longer matters.
    old.truncate(0).unwrap();
    let file = found.journals[&first_file(1)].as_ref().unwrap();
    assert_eq!(
        (file.intact_length, disk.survivors(0).bytes(&path_of(first_file(1))).unwrap().len() as u64),
        (before, before)
    );
    // A file that an earlier incarnation has claimed was copied then, and is not copied again.
    begin_incarnation(&state);
    let mut copy = disk.open(&path_of(first_file(1))).unwrap();
    state.scan_and_sync().unwrap();
    copy.truncate(0).unwrap();
    assert_eq!(disk.read(&path_of(first_file(1))).unwrap().len(), 0);
}
