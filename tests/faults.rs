//! The tests detect faults: each fault that is injected into the engine makes the check fail that is there to find it.
//!
//! A check that cannot fail looks like a promise that is kept. Each check here is the one that the test named beside it
//! runs; each passes without the fault.

use std::time::Duration;

use fastrand::Rng;
use tidegate::testing::{Fault, TestRun};

use common::cases::{Data, for_seeds, within};
use common::checks::{self, check_run, check_slow_start, check_synced, conserved, expected};
use common::durable_joins::DurableJoins;
use common::durable_query::{DurableQuery, new_disk, on};
use common::incarnations::check_crashes;
use common::oracle::Windows;
use common::tables::check_tables;
use common::views::{check_views, check_views_over_lives};

const WINDOWS: Windows = Windows::Tumbling { size: 20, offset: 0 };

/// `windows`, `replay`: everything, in random epochs.
fn random_epochs(seed: u64, run: TestRun) -> Result<(), String> {
    let data = Data::random(&mut Rng::with_seed(seed), 120);
    check_run(&data, WINDOWS, run.workers(1 + seed as usize % 4).seed(seed)).map(drop)
}

/// `windows`: everything, with idle partitions and partitions that are found late.
fn scripted_epochs(seed: u64, run: TestRun) -> Result<(), String> {
    let mut random = Rng::with_seed(seed);
    let data = Data::random(&mut random, 60);
    let script = data.script(&mut random);
    check_run(&data, WINDOWS, run.workers(1 + seed as usize % 3).script("deals", script)).map(drop)
}

/// `oracle`: seals at every epoch of a journal.
fn seals(seed: u64, run: TestRun) -> Result<(), String> {
    let data = Data::random(&mut Rng::with_seed(seed), 80);
    let journal = checks::run(&data, WINDOWS, TestRun::new().seed(seed))?.1.journal;
    let every = journal.iter().map(|frame| frame.epoch).collect();
    check_run(&data, WINDOWS, run.journal(journal).seal_at(every)).map(drop)
}

/// `conservation`: the sum of counted, late and rejected records.
fn account(seed: u64, run: TestRun) -> Result<(), String> {
    let data = Data::random(&mut Rng::with_seed(seed), 100);
    let (_, outcome) = checks::run(&data, WINDOWS, run.workers(1 + seed as usize % 3).seed(seed))?;
    conserved(&data, &expected(&data, WINDOWS, &outcome), &outcome)
}

/// `oracle`: a worker that starts slowly.
fn slow_start(_seed: u64, run: TestRun) -> Result<(), String> {
    check_slow_start(run)
}

/// `oracle`: nothing is published before it is committed.
fn synced(seed: u64, run: TestRun) -> Result<(), String> {
    let data = Data::random(&mut Rng::with_seed(seed), 100);
    check_synced(&data, run.workers(1 + seed as usize % 3).seed(seed))
}

/// `recovery`: crashes, and incarnations that resume.
#[expect(clippy::needless_pass_by_value, reason = "a check takes a run")]
fn crashes(seed: u64, run: TestRun) -> Result<(), String> {
    let fault = run.requested_fault();
    check_crashes(seed, || fault.map_or_else(TestRun::new, |fault| TestRun::new().fault(fault)))
}

/// `tables`: tables and joins with them, at every epoch.
fn tables(seed: u64, run: TestRun) -> Result<(), String> {
    let data = Data::random(&mut Rng::with_seed(seed), 150);
    check_tables(&data, run.workers(1 + seed as usize % 3).seed(seed)).map(drop)
}

/// `views`: answers to readers while a job runs.
fn views(seed: u64, run: TestRun) -> Result<(), String> {
    let data = Data::random(&mut Rng::with_seed(seed), 150);
    check_views(seed, &data, run.workers(1 + seed as usize % 3).seed(seed))
}

/// `views`: answers to readers when a job resumes after a crash.
#[expect(clippy::needless_pass_by_value, reason = "a check takes a run")]
fn views_over_lives(seed: u64, run: TestRun) -> Result<(), String> {
    let fault = run.requested_fault();
    check_views_over_lives(seed, || fault.map_or_else(TestRun::new, |fault| TestRun::new().fault(fault))).map(drop)
}

type Check = fn(u64, TestRun) -> Result<(), String>;

/// Returns the check that finds a fault, and a part of its error.
fn finder(fault: Fault) -> (Check, &'static str) {
    match fault {
        Fault::LoseRow => (random_epochs, "closed rows at epoch"),
        Fault::SkipRetraction => (random_epochs, "live rows at epoch"),
        Fault::IgnoreActivationWatermark => (scripted_epochs, "a record that is on time never touches a closed window"),
        Fault::PublishEarly => (random_epochs, "is published after epoch"),
        Fault::ReleaseEarly => (synced, "is not on record"),
        Fault::LoseRecord => (account, "records counted"),
        Fault::CloseEarly => (scripted_epochs, "a record that is on time never touches a closed window"),
        Fault::IgnoreSealed => (seals, "live rows at epoch"),
        Fault::DiscoverLate => (slow_start, "late records"),
        Fault::ForgetOffsets => (random_epochs, "closed rows at epoch"),
        Fault::PublishAgain => (crashes, "is published after epoch"),
        Fault::LoseSegment => (crashes, "closed rows differ"),
        Fault::SkipGate => (crashes, "chained rows differ"),
        Fault::AcknowledgeEarly => (crashes, "an output is behind the state"),
        Fault::ForgetDeletes => (crashes, "table"),
        Fault::LookUpEarly => (tables, "joined rows at epoch"),
        Fault::AnswerEarly => (views, "at epoch"),
        Fault::AnswerUnready => (views_over_lives, "was answered before"),
    }
}

/// Returns the seed at which the search begins. Some faults need a rare schedule, such as a delete in a snapshot, a crash,
/// and an older record after it: theirs is one that has found them. Threads have their own pace, so it may not do so again.
fn first_seed(fault: Fault) -> u64 {
    match fault {
        Fault::SkipGate => 38,
        Fault::LookUpEarly => 80,
        Fault::LoseSegment => 9,
        _ => 3,
    }
}

/// Returns the first error that the check reports of the fault.
fn found(fault: Fault) -> String {
    let (check, expected) = finder(fault);
    let mut said = Vec::new();
    for seed in (first_seed(fault)..).take(400) {
        let result = within(Duration::from_secs(60), move || check(seed, TestRun::new().fault(fault)));
        match result.expect("it ends") {
            Err(why) if why.contains(expected) => return why,
            Err(why) => said.push(why.chars().take(300).collect::<String>()),
            Ok(()) => {}
        }
    }
    panic!("nothing says `{expected}` of {fault:?}, only {said:#?}");
}

#[test]
fn every_fault_is_found() {
    for fault in Fault::ALL {
        let _said = found(fault);
    }
}

#[test]
fn the_checks_pass_without_a_fault() {
    for fault in Fault::ALL {
        // One seed: each check has a test of its own with many.
        let (check, _) = finder(fault);
        let result = within(Duration::from_secs(60), move || check(1, TestRun::new()));
        assert_eq!(result, Some(Ok(())), "the check for {fault:?}");
    }
}

/// Joins and an iteration through crashes to the end, with a fault or without.
fn crashes_of_joins(seed: u64, fault: Option<Fault>) -> Result<(), String> {
    let mut random = Rng::with_seed(seed);
    let data = if seed.is_multiple_of(2) { Data::in_turns(seed, 20) } else { Data::random(&mut random, 20) };
    let (expected, kept, mut disk) = (DurableJoins::plain(&data)?, DurableJoins::default(), new_disk());
    for life in 0.. {
        if life < 3 {
            disk.crash_at(random.usize(100..600));
        }
        let run = on(&disk, random.usize(1..=3), random.u64(..));
        match kept.run(&data, fault.into_iter().fold(run, TestRun::fault)) {
            Ok(_) => return kept.check(&disk, &expected),
            Err(_) if disk.has_crashed() => disk = disk.survivors(random.u64(..)),
            Err(error) => return Err(format!("life {life}: {error}")),
        }
    }
    Ok(())
}

/// The state of joins and of what collections are computed from is lost, or counted twice: that is found at their own
/// outputs.
#[test]
fn faults_are_found_by_joins_and_iterations() {
    for_seeds(2, |seed| crashes_of_joins(seed, None));
    for fault in [Fault::LoseSegment, Fault::SkipGate, Fault::PublishAgain, Fault::AcknowledgeEarly] {
        let found = (1..=60).find_map(|seed| {
            let check = move || crashes_of_joins(seed, Some(fault));
            within(Duration::from_secs(60), check).expect("it ends").err()
        });
        assert!(found.is_some(), "{fault:?} is not found");
    }
}
