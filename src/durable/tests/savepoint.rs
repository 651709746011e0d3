//! Savepoints and states restored from them are complete or do not exist, wherever power is lost.

use std::path::Path;

use super::*;
use crate::durable::codec::{Codec, Postcard};
use crate::durable::disk::Disk;
use crate::durable::inspect::{inspect_snapshots, verify_files};
use crate::durable::manifest::{ManifestId, StepState};
use crate::durable::savepoint::{Savepoint, export};
use crate::durable::segment::SegmentLabel;
use crate::durable::segment::tests::{Row, write as write_segment};

/// A state with a snapshot of two segments, and its disk.
fn with_snapshot() -> (CrashingDisk, StateDir, ManifestId) {
    let (disk, state) = new_state();
    let (claim, _) = begin_incarnation(&state);
    let mut manifest = manifest(state.id(), claim.incarnation, 8);
    let codec: Arc<dyn Codec<Row>> = Arc::new(Postcard);
    let segment = |number: u64| {
        let label = SegmentLabel {
            step: "t".into(),
            incarnation: claim.incarnation,
            worker: 0,
            number,
            from: Epoch(4 * number),
            to: Epoch(4 * number + 4),
        };
        let row = |n: i64| ((EventTime::from_millis(n), format!("k{n}")), (n, (7, -n)));
        let rows: Vec<Row> = (0..50).map(row).collect();
        write_segment(state.disk(), &state.segments(), &label, &codec, &rows, 10).unwrap()
    };
    let segments = vec![segment(0), segment(1)];
    manifest.steps = vec![StepState { name: "t".into(), closed: EventTime::MIN, segments }];
    manifest.sinks = vec![SinkState { name: "out".into(), published: Some(Epoch(6)), on_change: false }];
    let id = manifest.write(&**state.disk(), &state.manifests(), &always()).unwrap();
    (disk, state, id)
}

fn no_matter(_: u64) {}

/// The manifest from which a new query with one new sink would resume.
fn goes_on(state: &StateDir) -> Option<Manifest> {
    let number = state.begin_incarnation().unwrap();
    decided(&state.scan_and_sync().unwrap(), number, None).unwrap().base
}

#[test]
fn a_savepoint_whose_making_is_cut_off_is_none() {
    let mut made = 0;
    for acts in 0.. {
        let (disk, state, id) = with_snapshot();
        fail_after(&disk, acts);
        let exported = export(&state, id, Path::new("save"), &mut no_matter);
        let disk = crashed(&disk, acts % 2 == 0, acts as u64);
        let opened = Savepoint::open(Arc::new(disk.clone()), "save");
        match (&exported, &opened) {
            (Ok(manifest), Ok(opened)) => assert_eq!(opened.manifest(), manifest),
            (Ok(_), Err(error)) => panic!("after {acts} acts it is said to be made, and is not: {error}"),
            // The last file exists, although its creation was not confirmed.
            (Err(_), Ok(opened)) => {
                let joined = StateDir::join(Arc::new(disk.clone()), "save").unwrap();
                assert_eq!(
                    (opened.manifest().id(), verify_files(&joined, &[], &mut |_, _| {}).unwrap().wrong),
                    (id, vec![])
                );
            }
            (Err(_), Err(_)) => made += 1,
        }
        if exported.is_ok() {
            break;
        }
    }
    assert!(made > 10, "only {made} acts were cut off");
}

#[test]
fn a_savepoint_is_made_whatever_the_job_removes_meanwhile() {
    let (disk, state, id) = with_snapshot();
    let removes = |_: u64| {
        let gone = disk.paths().into_iter().filter(|path| path.starts_with("state/segments"));
        gone.for_each(|path| disk.remove(&path).unwrap());
    };
    export(&state, id, Path::new("save"), &mut { removes }).unwrap();
    assert!(disk.list(&state.segments()).unwrap().is_empty());
    let joined = StateDir::join(Arc::new(disk.clone()), "save").unwrap();
    let checked = verify_files(&joined, &[], &mut |_, _| {}).unwrap();
    assert_eq!((checked.wrong, checked.segments), (vec![], 2));
    // Exporting a snapshot whose segments are gone leaves nothing that could be taken for a savepoint.
    export(&state, id, Path::new("other"), &mut no_matter).unwrap_err();
    assert!(!disk.paths().iter().any(|path| path.starts_with("other")));
}

#[test]
fn a_state_that_begins_with_a_savepoint_does_so_whole_or_stays_new() {
    let mut cut_off = 0;
    for acts in 0.. {
        let (disk, state, id) = with_snapshot();
        export(&state, id, Path::new("save"), &mut no_matter).unwrap();
        let new = StateDir::open(disk.shared(), "new", false).unwrap();
        let savepoint = |disk: &CrashingDisk| Savepoint::open(disk.shared(), "save").unwrap();
        fail_after(&disk, acts);
        let restored = new.begin_incarnation().and_then(|life| savepoint(&disk).restore(&new, life));
        let disk = disk.survivors(acts as u64);
        let new = StateDir::open(disk.shared(), "new", false).unwrap();
        if new.is_new().unwrap() {
            assert!(restored.is_err(), "after {acts} acts it is said to have begun, and has not");
            let life = new.begin_incarnation().unwrap();
            savepoint(&disk).restore(&new, life).unwrap();
            cut_off += 1;
        }
        let checked = verify_files(&new, &[], &mut |_, _| {}).unwrap();
        assert_eq!((checked.wrong, checked.snapshots, checked.segments), (vec![], 1, 2), "after {acts} acts");
        let base = goes_on(&new).unwrap();
        assert_eq!((base.state, base.epoch, base.sinks.len()), (new.id(), Epoch(8), 0));
        if restored.is_ok() {
            break;
        }
    }
    assert!(cut_off > 10, "only {cut_off} acts were cut off");
}

#[test]
fn files_of_a_savepoint_and_of_later_lives_never_have_one_name() {
    let (disk, state, id) = with_snapshot();
    let mut names = std::collections::BTreeSet::new();
    let mut from = "state".to_owned();
    let (mut dir, mut newest) = (state, id);
    for number in 0..3 {
        let save = format!("save-{number}");
        export(&dir, newest, Path::new(&save), &mut no_matter).unwrap();
        from = format!("{from}+");
        dir = StateDir::open(Arc::new(disk.clone()), &from, false).unwrap();
        let life = dir.begin_incarnation().unwrap();
        Savepoint::open(Arc::new(disk.clone()), &save).unwrap().restore(&dir, life).unwrap();
        let snapshots = inspect_snapshots(&dir).unwrap();
        newest = snapshots.manifests[0].id();
        for file in snapshots.manifests[0].segments() {
            assert_eq!(crate::durable::state::incarnation_of_segment(file), Some(0), "{file}");
            names.insert(file.to_owned());
        }
    }
    assert_eq!(names.len(), 2, "{names:?}");
}

#[test]
fn a_savepoint_is_no_state_and_is_not_made_over_anything() {
    let (disk, state, id) = with_snapshot();
    export(&state, id, Path::new("save"), &mut no_matter).unwrap();
    let shared: Arc<dyn Disk> = Arc::new(disk.clone());
    let said = StateDir::open(Arc::clone(&shared), "save", false).unwrap_err().to_string();
    assert!(said.starts_with("this is a savepoint, and no state (save)"), "{said}");
    for taken in ["save", "state"] {
        let said = export(&state, id, Path::new(taken), &mut no_matter).unwrap_err().to_string();
        assert!(said.starts_with("there is something where the savepoint is to be"), "{said}");
    }
    let bytes = disk.read(Path::new("save/SAVEPOINT")).unwrap();
    for at in 0..bytes.len() {
        let mut flipped = bytes.clone();
        flipped[at] ^= 2;
        disk.put(Path::new("save/SAVEPOINT"), &flipped);
        let said = Savepoint::open(Arc::clone(&shared), "save").unwrap_err().to_string();
        assert!(said.starts_with("the savepoint ") && said.contains("save/SAVEPOINT"), "byte {at}: {said}");
    }
}
