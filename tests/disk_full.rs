//! A full disk leads to an error that says so, in one line and with the file's name; the state stays as it is, and
//! resumes as soon as there is space.
#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

use std::collections::BTreeSet;

use tidegate::job::Ending;

use common::durable_query::{DurableQuery, DurableQueryOutputs, all_files, new_disk, on, steady};

/// Additional free space from case to case, in bytes.
const STEP: u64 = 1_021;

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

#[test]
fn a_full_disk_is_told_and_the_state_goes_on_when_there_is_room() {
    let data = steady(3, 60);
    let expected = DurableQueryOutputs::plain(&data).unwrap();
    let mut told = BTreeSet::new();
    for room in (0..).map(|case| case * STEP) {
        let (kept, disk) = (DurableQueryOutputs::default(), new_disk());
        disk.set_room(Some(room));
        let workers = 1 + room as usize % 2;
        let Err(said) = kept.run(&data, on(&disk, workers, 16)) else {
            assert!(room > 0, "a run needs no room");
            break;
        };
        told.insert(named(&said).unwrap_or_else(|why| panic!("{room} bytes of room: {why}")));
        // It is still full, and the error is the same.
        let disk = disk.after_kill();
        disk.set_room(Some(0));
        match kept.run(&data, on(&disk, 1, 16)) {
            Err(said) => drop(named(&said).unwrap_or_else(|why| panic!("again, {room} bytes of room: {why}"))),
            Ok(report) => assert_eq!(report.ending, Ending::WasComplete, "{room} bytes of room"),
        }
        let disk = disk.after_kill();
        disk.set_room(None);
        let ended = kept.run(&data, on(&disk, 1, 16));
        ended.unwrap_or_else(|why| panic!("with room, after {room} bytes of it: {why} {:?}", all_files(&disk)));
        kept.check(&disk, &expected).unwrap_or_else(|why| panic!("{room} bytes of room: {why}"));
    }
    for kind in ["commit", "results", "journal", "manifest", "segment", "state"] {
        assert!(told.contains(kind), "no full disk at a {kind}: {told:?}");
    }
}
