//! A full disk leads to an error that says so, in one line and with the file's name; the state stays as it is, and
//! resumes as soon as there is space.
#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

use std::collections::{BTreeMap, BTreeSet};

use tidegate::job::Ending;
use tidegate::testing::disk::OperationKind;

use common::cases::Data;
use common::durable_query::{DurableQuery, DurableQueryOutputs, all_files, kind_of, new_disk, on, steady};

/// Kinds of files that an error of a full disk names.
const KINDS: [&str; 6] = ["commit", "results", "journal", "manifest", "segment", "state"];
/// Number of appends to each kind of file at which the disk is full.
const OF_EACH: usize = 4;
/// Distance of further places, in bytes.
const STEP: usize = 12_281;

/// Returns the kind of file that an error of a full disk names; fails for any other error.
fn named(said: &str) -> Result<&'static str, String> {
    if said.contains('\n') || said.contains("panicked") || !said.contains("the disk is full") {
        return Err(format!("it says {said:?}"));
    }
    let kinds = [
        (".commit", "commit"),
        ("commit file", "commit"),
        ("out/", "results"),
        (".journal", "journal"),
        (".manifest", "manifest"),
        (".segment", "segment"),
        ("state", "state"),
    ];
    let kind = kinds.into_iter().find(|(part, _)| said.contains(part));
    kind.map(|(_, kind)| kind).ok_or_else(|| format!("it names no file: {said}"))
}

/// Runs with so much room, again without any, and then with enough; returns the kind of file at which the disk was full,
/// or `None` if the room was enough.
fn check_room(
    room: u64,
    data: &Data,
    expected: &<DurableQueryOutputs as DurableQuery>::Expected,
) -> Option<&'static str> {
    let (kept, disk) = (DurableQueryOutputs::default(), new_disk());
    disk.set_room(Some(room));
    let workers = 1 + room as usize % 2;
    let Err(said) = kept.run(data, on(&disk, workers, 16)) else {
        assert!(room > 0, "a run needs no room");
        return None;
    };
    let kind = named(&said).unwrap_or_else(|why| panic!("{room} bytes of room: {why}"));
    // It is still full, and the error is the same.
    let disk = disk.after_kill();
    disk.set_room(Some(0));
    match kept.run(data, on(&disk, 1, 16)) {
        Err(said) => drop(named(&said).unwrap_or_else(|why| panic!("again, {room} bytes of room: {why}"))),
        Ok(report) => assert_eq!(report.ending, Ending::WasComplete, "{room} bytes of room"),
    }
    let disk = disk.after_kill();
    disk.set_room(None);
    let ended = kept.run(data, on(&disk, 1, 16));
    ended.unwrap_or_else(|why| panic!("with room, after {room} bytes of it: {why} {:?}", all_files(&disk)));
    kept.check(&disk, expected).unwrap_or_else(|why| panic!("{room} bytes of room: {why}"));
    Some(kind)
}

/// Returns the room at which a run finds the disk full in the middle of an append, by the kind of its file: at some appends
/// of each kind, and at every so many bytes.
fn rooms(data: &Data) -> BTreeMap<&'static str, Vec<u64>> {
    let disk = new_disk();
    DurableQueryOutputs::default().run(data, on(&disk, 1, 16)).unwrap();
    let (mut used, mut places) = (0, BTreeMap::<_, Vec<u64>>::from([("state", vec![0])]));
    for operation in disk.log() {
        if let OperationKind::Append(bytes) = operation.kind {
            places.entry(kind_of(&operation.path)).or_default().push(used + bytes as u64 / 2);
            used += bytes as u64;
        }
    }
    for of_kind in places.values_mut() {
        *of_kind = of_kind.iter().copied().step_by(of_kind.len().div_ceil(OF_EACH)).collect();
    }
    places.insert("anything", (0..used).step_by(STEP).skip(1).collect());
    places
}

#[test]
fn a_full_disk_is_told_and_the_state_goes_on_when_there_is_room() {
    let data = steady(3, 60);
    let expected = DurableQueryOutputs::plain(&data).unwrap();
    let mut told = BTreeSet::new();
    // Threads have their own pace, so that a place may be another's in the next run: kinds that were missed are tried again.
    for round in 0..5 {
        let missed: Vec<_> = KINDS.into_iter().filter(|kind| !told.contains(kind)).collect();
        if missed.is_empty() {
            break;
        }
        let again = rooms(&data).into_iter().filter(|(kind, _)| round == 0 || missed.contains(kind));
        told.extend(again.flat_map(|(_, rooms)| rooms).filter_map(|room| check_room(room, &data, &expected)));
    }
    for kind in KINDS {
        assert!(told.contains(kind), "no full disk at a {kind}: {told:?}");
    }
}
