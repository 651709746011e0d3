//! Journal files: synced frames are read back, and everything else is recognised as torn or damaged.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::*;
use crate::durable::disk::Disk;
use crate::durable::envelope::Envelope;
use crate::durable::journal::{ENVELOPE, FileJournal, Journal, JournalHeader, JournaledRecord};

/// Appends a frame and waits until it is synced, so that it is a group commit of its own.
fn commit(journal: &FileJournal, worker: usize, frame: Frame) {
    let epoch = frame.epoch;
    journal.append(worker, frame).unwrap();
    wait_for(|| journal.check().is_err() || journal.synced(worker) >= Some(epoch));
}

fn wait_for(mut what: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !what() {
        assert!(begun.elapsed() < Duration::from_secs(30), "it does not come");
        std::thread::yield_now();
    }
}

/// An incarnation that committed six epochs on two workers, each in its own group commit, and did not close its
/// journal.
fn six_epochs() -> (CrashingDisk, StateDir, Vec<u8>) {
    let (disk, state) = new_state();
    let (claim, _) = begin_incarnation(&state);
    let journal = FileJournal::begin(state.journal_config(&claim, 0, 2)).unwrap();
    commit(&journal, 0, frame(2, &[(0, 1)]));
    commit(&journal, 1, frame(2, &[]));
    for epoch in [4, 6, 8, 10] {
        commit(&journal, epoch as usize / 2 % 2, frame(epoch, &[(0, epoch)]));
    }
    let bytes = disk.read(&path_of(first_file(1))).unwrap();
    let killed = disk.after_kill();
    drop(journal);
    let state = StateDir::open(killed.shared(), "state", false).unwrap();
    (killed, state, bytes)
}

#[test]
fn a_life_is_gone_on_from_where_its_journal_ends() {
    let (_, state, _) = six_epochs();
    let (claim, decision) = begin_incarnation(&state);
    assert_eq!(
        short(&decision.replay),
        [(2, vec![(0, 1)]), (4, vec![(0, 4)]), (6, vec![(0, 6)]), (8, vec![(0, 8)]), (10, vec![(0, 10)])]
    );
    assert_eq!((claim.incarnation, claim.last_epoch, claim.base), (2, Epoch(10), None));
    assert_eq!(claim.journals.len(), 1);
}

#[test]
fn a_tail_torn_at_any_byte_is_cut() {
    let (_, state, bytes) = six_epochs();
    let whole = JournalFile::read(state.id(), first_file(1), &bytes).unwrap();
    let mut scan = state.scan_and_sync().unwrap();
    for (length, zeros) in (0..=bytes.len()).flat_map(|length| [(length, 0), (length, 13)]) {
        let mut torn = bytes[..length].to_vec();
        torn.resize(length + zeros, 0);
        let file = JournalFile::read(state.id(), first_file(1), &torn).unwrap();
        let expected = whole.entries.iter().take_while(|entry| entry.end <= length as u64).count();
        // A frame may end with zeros.
        assert!(file.entries.len() >= expected && file.entries[..] == whole.entries[..file.entries.len()]);
        let kept = file.entries.last().map(|entry| (entry.end, entry.frame.epoch));
        scan.journals.insert(file.id, Ok(file));
        let decision = decided(&scan, 2, None).unwrap();
        // The first epoch counts once both workers have committed it.
        let Some((end, last)) = kept.filter(|(end, _)| *end >= whole.entries[1].end) else {
            assert!(decision.replay.is_empty() && decision.accepted.is_empty());
            continue;
        };
        assert_eq!((decision.replay.last().unwrap().epoch, decision.last_epoch), (last, last));
        assert_eq!(decision.accepted[0].length, end);
        let dropped = torn.len() as u64 - end;
        assert_eq!(decision.torn.first().map_or(0, |torn| torn.dropped), dropped);
    }
}

#[test]
fn a_flipped_bit_below_what_was_synced_is_damage_and_above_a_torn_tail() {
    let (_, state, bytes) = six_epochs();
    let whole = JournalFile::read(state.id(), first_file(1), &bytes).unwrap();
    let last = whole.entries[whole.entries.len() - 2].end;
    let mut scan = state.scan_and_sync().unwrap();
    for (at, bit) in (0..bytes.len()).flat_map(|at| (0..8).map(move |bit| (at, bit))) {
        let mut flipped = bytes.clone();
        flipped[at] ^= 1 << bit;
        let read = JournalFile::read(state.id(), first_file(1), &flipped);
        scan.journals.insert(first_file(1), read);
        match decided(&scan, 2, None) {
            Ok(decision) => {
                assert!(at as u64 >= last, "bit {bit} of byte {at} went unseen");
                assert_eq!((decision.accepted[0].length, decision.last_epoch), (last, Epoch(8)));
                // If the epoch was published, its loss is noticed.
                let error = decided(&scan, 2, Some(11)).unwrap_err();
                assert!(error.to_string().contains("is ahead of the state"), "{error}");
            }
            Err(why) => {
                assert!((at as u64) < last, "bit {bit} of byte {at}: {why}");
                assert!(why.to_string().contains("1-0-0.journal"), "{why}");
            }
        }
    }
}

#[test]
fn after_an_orderly_end_no_flipped_bit_goes_unseen() {
    let (disk, state) = new_state();
    let (claim, _) = begin_incarnation(&state);
    let journal = FileJournal::begin(state.journal_config(&claim, 0, 1)).unwrap();
    for epoch in [2, 4, 6] {
        journal.append(0, frame(epoch, &[(0, epoch)])).unwrap();
    }
    journal.close().unwrap();
    let bytes = disk.read(&path_of(first_file(1))).unwrap();
    let mut scan = state.scan_and_sync().unwrap();
    let replay = decided(&scan, 2, None).unwrap().replay;
    assert_eq!(replay.len(), 3);
    for at in 0..bytes.len() {
        let mut flipped = bytes.clone();
        flipped[at] ^= 0x10;
        scan.journals.insert(first_file(1), JournalFile::read(state.id(), first_file(1), &flipped));
        match decided(&scan, 2, None) {
            Ok(decision) => assert_eq!(decision.replay, replay),
            Err(why) => assert!(why.to_string().contains("1-0-0.journal"), "{why}"),
        }
    }
}

#[test]
fn what_a_claim_counts_must_be_there() {
    let (disk, state, bytes) = six_epochs();
    begin_incarnation(&state);
    let path = path_of(first_file(1));
    for length in 0..bytes.len() {
        disk.put(&path, &bytes[..length]);
        let error = decided(&state.scan_and_sync().unwrap(), 3, None).unwrap_err().to_string();
        assert!(error.starts_with("the journal is damaged (journal/1-0-0.journal): incarnation 2 counts"), "{error}");
    }
    // Anything that an older incarnation appends later does not count.
    let mut more = bytes.clone();
    more.extend_from_slice(&bytes);
    disk.put(&path, &more);
    let decision = decided(&state.scan_and_sync().unwrap(), 3, None).unwrap();
    assert_eq!((decision.replay.len(), decision.torn[0].dropped), (5, bytes.len() as u64));
    disk.remove(&path).unwrap();
    let error = decided(&state.scan_and_sync().unwrap(), 3, None).unwrap_err();
    assert_eq!(
        error.to_string(),
        "a file of the journal is missing (journal/1-0-0.journal): incarnation 2 counts it up to epoch 10; restore the state \
         from a copy, or begin a new state and new outputs"
    );
}

#[test]
fn what_is_told_to_be_synced_survives_a_loss_of_power() {
    const WORKERS: usize = 6;
    let (disk, state) = new_state();
    let (claim, _) = begin_incarnation(&state);
    let place = JournalConfig { file_limit: 900, ..state.journal_config(&claim, 0, WORKERS) };
    let (journal, told) = (FileJournal::begin(place).unwrap(), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for worker in 0..WORKERS {
            let (journal, disk, told, state) = (&journal, &disk, &told, state.id());
            scope.spawn(move || {
                let mut random = fastrand::Rng::with_seed(worker as u64);
                journal.wake(worker, std::thread::current());
                for epoch in 1..=200 {
                    journal.append(worker, frame(2 * epoch, &[(worker as u32, epoch)])).unwrap();
                    if random.u8(..8) > 0 {
                        continue;
                    }
                    while journal.synced(worker) < Some(Epoch(2 * epoch)) {
                        std::thread::park_timeout(Duration::from_secs(20));
                    }
                    told.fetch_add(1, Ordering::Relaxed);
                    // The files that would survive a loss of power now.
                    let left = disk.survivors(0);
                    let files = left.paths().into_iter().filter_map(|path| {
                        let id = FileId::parse(path.file_name()?.to_str()?)?;
                        JournalFile::read(state, id, &left.bytes(&path)?).ok()
                    });
                    let mut files: Vec<_> = files.collect();
                    files.sort_by_key(|file| file.id);
                    let entries = files.iter().flat_map(|file| &file.entries);
                    let own = entries.filter(|entry| entry.worker as usize == worker).map(|entry| entry.frame.epoch.0);
                    let own: Vec<_> = own.collect();
                    assert_eq!(own, (1..=own.len() as u64).map(|epoch| 2 * epoch).collect::<Vec<_>>());
                    assert!(own.len() as u64 >= epoch, "worker {worker} was told {epoch}, {} are there", own.len());
                }
            });
        }
    });
    assert!(told.into_inner() > 50);
    journal.close().unwrap();
    let decision = decided(&state.scan_and_sync().unwrap(), 2, None).unwrap();
    assert_eq!(decision.replay.len(), 200);
    assert!(decision.replay.iter().all(|frame| frame.progress.len() == WORKERS));
    assert!(decision.accepted.len() > 3, "it went over several files");
}

/// A journal of these epochs, in files of about two.
fn in_many_files(state: &StateDir, claim: &Claim, epochs: std::ops::RangeInclusive<u64>) -> FileJournal {
    let journal = FileJournal::begin(JournalConfig { file_limit: 150, ..state.journal_config(claim, 0, 1) }).unwrap();
    for epoch in epochs {
        commit(&journal, 0, frame(2 * epoch, &[(0, epoch)]));
    }
    journal
}

fn numbers(state: &StateDir) -> Vec<(u64, u64)> {
    // `scan_and_sync` would copy files that are being removed meanwhile.
    let seen = state.scan(true).unwrap();
    seen.journals.keys().map(|id| (id.incarnation, id.number)).collect()
}

#[test]
fn whole_files_are_cut_oldest_first_and_never_the_current_one() {
    let (_, state) = new_state();
    let (claim, _) = begin_incarnation(&state);
    let journal = in_many_files(&state, &claim, 1..=20);
    let all = numbers(&state);
    assert!(all.len() > 4, "{all:?}");
    let written = |epoch| manifest(state.id(), 1, epoch).write(&**state.disk(), &state.manifests(), &always()).unwrap();
    written(12);
    journal.truncate(Epoch(12));
    wait_for(|| numbers(&state).len() < all.len());
    let decision = decided(&state.scan_and_sync().unwrap(), 2, None).unwrap();
    assert_eq!(
        decision.replay.iter().map(|frame| frame.epoch.0).collect::<Vec<_>>(),
        [14, 16, 18, 20, 22, 24, 26, 28, 30, 32, 34, 36, 38, 40]
    );
    let left = numbers(&state);
    assert_eq!(left, all[all.len() - left.len()..]);
    // Without the manifest, the removed files are missed.
    state.disk().remove(&state.manifests().join("12-1.manifest")).unwrap();
    let error = decided(&state.scan_and_sync().unwrap(), 2, None).unwrap_err().to_string();
    assert!(error.starts_with("a file of the journal is missing (journal/1-0-"), "{error}");
    written(1000);
    journal.truncate(Epoch(1000));
    wait_for(|| numbers(&state).len() == 1);
    assert_eq!(numbers(&state), all[all.len() - 1..]);
    drop(journal);

    // The next incarnation removes inherited files once they are superfluous.
    let (claim, decision) = begin_incarnation(&state);
    assert!(decision.replay.is_empty());
    let journal = in_many_files(&state, &claim, 501..=505);
    journal.truncate(Epoch(30));
    journal.truncate(Epoch(41));
    commit(&journal, 0, frame(2000, &[]));
    wait_for(|| !numbers(&state).contains(all.last().unwrap()));
}

#[test]
fn a_file_that_is_missing_or_shorter_than_the_next_one_says_is_refused() {
    let (disk, state) = new_state();
    let (claim, _) = begin_incarnation(&state);
    drop(in_many_files(&state, &claim, 1..=20));
    let before: Vec<_> = numbers(&state);
    for (_, number) in &before[..before.len() - 1] {
        let id = FileId { number: *number, ..first_file(1) };
        let bytes = disk.read(&path_of(id)).unwrap();
        for length in 0..bytes.len() {
            disk.put(&path_of(id), &bytes[..length]);
            let error = decided(&state.scan_and_sync().unwrap(), 2, None).unwrap_err().to_string();
            assert!(error.starts_with("the journal is damaged (journal/1-0-"), "{error}");
            assert!(error.contains(&id.to_string()), "{error}");
        }
        disk.put(&path_of(id), &bytes);
        let mut scan = state.scan_and_sync().unwrap();
        scan.journals.remove(&id);
        let error = decided(&scan, 2, None).unwrap_err().to_string();
        assert!(error.starts_with(&format!("a file of the journal is missing (journal/{id})")), "{error}");
    }
}

#[test]
fn a_journal_that_has_failed_takes_no_more_and_says_why() {
    for acts in 0..12 {
        let (disk, state) = new_state();
        let (claim, _) = begin_incarnation(&state);
        let Ok(journal) = ({
            fail_after(&disk, acts);
            FileJournal::begin(JournalConfig { file_limit: 200, ..state.journal_config(&claim, 0, 1) })
        }) else {
            assert!(acts < 4);
            continue;
        };
        journal.wake(0, std::thread::current());
        let mut told = None;
        for epoch in 1..=20 {
            if journal.append(0, frame(2 * epoch, &[(0, epoch)])).is_err() {
                break;
            }
            while journal.synced(0) < Some(Epoch(2 * epoch)) && journal.check().is_ok() {
                std::thread::park_timeout(Duration::from_secs(20));
            }
            told = journal.synced(0);
        }
        let error = journal.append(0, frame(1000, &[])).unwrap_err();
        assert_eq!(Some(error.clone()), journal.check().err());
        let error = error.to_string();
        assert!(error.contains("the disk is full; free some space") && error.contains("state/journal/1-0-"), "{error}");
        assert_eq!(journal.synced(0), told);
        let left = disk.survivors(acts as u64);
        drop(journal);
        let state = StateDir::open(left.shared(), "state", false).unwrap();
        let decision = decided(&state.scan_and_sync().unwrap(), 2, None).unwrap();
        assert!(decision.replay.last().map(|frame| frame.epoch) >= told, "{told:?} of {:?}", decision.replay);
    }
}

/// A disk may give old bytes to a file that grew before power was lost.
#[test]
fn frames_of_another_file_or_place_are_none() {
    let (_directory, state, bytes) = six_epochs();
    // The id of a state is a random number, whose encoded length differs now and then.
    let mut others = std::iter::repeat_with(|| six_epochs().2);
    let other = others.find(|other| other.len() == bytes.len()).unwrap();
    let read = |bytes: &[u8]| JournalFile::read(state.id(), first_file(1), bytes).unwrap();
    let whole = read(&bytes);
    let end = |entry: usize| whole.entries[entry].end as usize;
    let spliced = read(&[&bytes[..end(2)], &other[end(2)..]].concat());
    assert_eq!((spliced.entries.len(), spliced.intact_length, spliced.synced_length), (3, end(2) as u64, 0));
    let moved = read(&[&bytes[..], &bytes[end(2)..]].concat());
    assert_eq!((moved.entries.len(), moved.intact_length, moved.synced_length), (6, bytes.len() as u64, 0));
}

#[test]
fn files_of_other_states_and_under_other_names_are_refused() {
    let (_, state, bytes) = six_epochs();
    let error = JournalFile::read(StateId(5), first_file(1), &bytes).unwrap_err().to_string();
    assert!(error.starts_with("a file of the journal is of another state (1-0-0.journal)"), "{error}");
    let error = JournalFile::read(state.id(), first_file(2), &bytes).unwrap_err().to_string();
    assert_eq!(error, "a file of the journal has the name of another (2-0-0.journal): it was written as 1-0-0.journal");
    let mut other = bytes.clone();
    other[7] = 6;
    let error = JournalFile::read(state.id(), first_file(1), &other).unwrap_err().to_string();
    assert!(error.contains("was written in format 6"), "{error}");
    for name in ["1-0-0.journal", "01-0-0.journal", "1-0.journal", "1-0-0-0.journal", "1-0--1.journal"] {
        assert_eq!(FileId::parse(name).map(|id| id.to_string()).as_deref(), Some(name).filter(|name| name.len() == 13));
    }
}

#[test]
#[should_panic(expected = "all workers commit the first epoch")]
fn all_workers_bind_the_first_epoch_of_a_life() {
    let (_, state) = new_state();
    let (claim, _) = begin_incarnation(&state);
    let journal = FileJournal::begin(state.journal_config(&claim, 0, 2)).unwrap();
    journal.append(0, frame(4, &[])).unwrap();
    let _ = journal.append(1, frame(6, &[]));
}

#[test]
#[should_panic(expected = "in order")]
fn a_worker_binds_an_epoch_once() {
    let (_, state) = new_state();
    let (claim, _) = begin_incarnation(&state);
    let journal = FileJournal::begin(state.journal_config(&claim, 0, 1)).unwrap();
    journal.append(0, frame(4, &[])).unwrap();
    let _ = journal.append(0, frame(4, &[]));
}

#[test]
fn records_that_are_kept_by_value_are_replayed_with_their_epoch() {
    let (_, state) = new_state();
    let (claim, _) = begin_incarnation(&state);
    let journal = FileJournal::begin(state.journal_config(&claim, 0, 1)).unwrap();
    let value = |offset, payload: Option<&[u8]>| JournaledRecord {
        offset,
        timestamp: Some(7),
        payload: payload.map(Into::into),
        is_log_append_time: offset == 8,
        key: payload.map(|_| b"key".to_vec()),
        headers: vec![("trace".into(), payload.map(Into::into)), ("trace".into(), None)],
    };
    let mut frames = [frame(2, &[(0, 1), (1, 9), (2, 5)]), frame(4, &[(1, 10)])];
    frames[0].progress[1].values = Some(vec![value(3, Some(b"three")), value(8, None)]);
    frames[0].progress[2].values = Some(Vec::new());
    frames.iter().for_each(|frame| commit(&journal, 0, frame.clone()));
    drop(journal);
    let (_, decision) = begin_incarnation(&state);
    assert_eq!(decision.replay, frames);
}

#[test]
fn a_journal_of_an_earlier_version_is_read() {
    let (disk, state, mut bytes) = six_epochs();
    assert_eq!(bytes[7], 5);
    let id = first_file(1);
    let header: (JournalHeader, usize) = ENVELOPE.open_first(&bytes).unwrap();
    for version in [1, 2, 3, 4] {
        bytes[..header.1].copy_from_slice(&Envelope { version, ..ENVELOPE }.seal(&header.0).unwrap());
        let read = JournalFile::read(state.id(), id, &bytes).unwrap();
        let now = JournalFile::read(state.id(), id, &disk.read(&path_of(id)).unwrap()).unwrap();
        assert!(read.entries.len() == 6 && read == now);
    }
    bytes[..header.1].copy_from_slice(&Envelope { version: 6, ..ENVELOPE }.seal(&header.0).unwrap());
    let why = JournalFile::read(state.id(), id, &bytes).unwrap_err().to_string();
    assert!(why.contains("was written in format 6, and this program knows format 5"), "{why}");
}
