//! Output is a function of the data: of any workers, any epochs, any seals.
//!
//! Threads, back-pressure, pausing and snapshots determine what an epoch contains and when it ends; none of that may
//! influence a final result, or which records are late.

use fastrand::Rng;
use tidegate::testing::TestRun;
use tidegate::time::Epoch;

use common::cases::{Data, for_seeds};
use common::checks::{self, check_data, check_run, small_drift};
use common::oracle::{OracleEpoch, Windows};

const TEN: Windows = Windows::Tumbling { size: 10, offset: 3 };
const SESSIONS: Windows = Windows::Session { gap: 12, late: 0 };
const COUNTS: Windows = Windows::Count { size: 5, late: 20 };
const SLIDING: Windows = Windows::Sliding { size: 50, slide: 20, offset: 7, late: 30 };

#[test]
fn any_workers_and_any_pace_give_the_results_of_the_data() {
    for_seeds(15, |seed| {
        let data = Data::random(&mut Rng::with_seed(seed), 300);
        for workers in [1, 2, 4] {
            check_data(&data, TEN, TestRun::new().workers(workers).seed(seed))?;
            check_data(&data, SLIDING, TestRun::new().workers(workers).seed(seed))?;
            check_data(&data, SESSIONS, TestRun::new().workers(workers).seed(seed))?;
            check_data(&data, COUNTS, TestRun::new().workers(workers).seed(seed))?;
        }
        check_data(&data, TEN, TestRun::new().workers(1 + seed as usize % 4).clock())
    });
}

#[test]
fn full_epochs_and_waiting_for_sinks_change_nothing() {
    for_seeds(4, |seed| {
        let data = Data::random(&mut Rng::with_seed(seed), 300);
        for (workers, in_flight) in [(1, 0), (1, 2_000), (2, 0), (2, 4_000), (3, 500)] {
            let run = || TestRun::new().workers(workers).in_flight(in_flight);
            check_data(&data, TEN, run().seed(seed))?;
        }
        check_data(&data, TEN, TestRun::new().workers(2).in_flight(10_000).clock())
    });
}

#[test]
fn pausing_partitions_that_are_ahead_changes_nothing() {
    for_seeds(8, |seed| {
        let data = Data::random(&mut Rng::with_seed(seed), 200);
        for drift in [0, 5, 50] {
            let run = || TestRun::new().workers(1 + seed as usize % 3).options(small_drift(drift));
            check_data(&data, TEN, run().seed(seed))?;
            check_run(&data, TEN, run().seed(seed))?;
        }
        Ok(())
    });
}

/// Returns random epochs of a journal, and some between them.
fn seals(random: &mut Rng, journal: &[tidegate::durable::journal::Frame]) -> Vec<Epoch> {
    let mut seals = Vec::new();
    for frame in journal {
        match random.u8(0..12) {
            0..4 => seals.push(frame.epoch),
            4 => seals.push(Epoch(frame.epoch.0 + 2)),
            _ => {}
        }
    }
    seals
}

#[test]
fn seals_change_nothing() {
    for_seeds(20, |seed| {
        let mut random = Rng::with_seed(seed);
        let data = Data::random(&mut random, 80);
        let any = checks::any_windows(&mut random);
        let windows = *random.choice(&[TEN, SLIDING, SESSIONS, COUNTS, any, Windows::Global]).unwrap();
        let recorded = match seed % 2 {
            0 => checks::run(&data, windows, TestRun::new().seed(seed))?.1.journal,
            _ => checks::run(&data, windows, TestRun::new().script("deals", data.script(&mut random)))?.1.journal,
        };
        for workers in 1..=2 {
            let seals = seals(&mut random, &recorded);
            let run = TestRun::new().workers(workers).journal(recorded.clone()).seal_at(seals.clone());
            check_run(&data, windows, run).map_err(|why| format!("{why}\nsealed at {seals:?}"))?;
        }
        let every = recorded.iter().map(|frame| frame.epoch).collect();
        check_run(&data, windows, TestRun::new().journal(recorded).seal_at(every)).map(drop)
    });
}

#[test]
fn a_worker_that_is_slow_to_begin_makes_no_record_late() {
    for_seeds(2, |_| checks::check_slow_start(TestRun::new()));
}

#[test]
fn nothing_is_shown_before_it_is_on_record() {
    for_seeds(8, |seed| {
        let data = Data::random(&mut Rng::with_seed(seed), 200);
        checks::check_synced(&data, TestRun::new().workers(1 + seed as usize % 3).seed(seed))
    });
}

/// Without epochs the oracle gets the same results as with one epoch, or with one epoch a record.
#[test]
fn the_oracle_agrees_with_itself() {
    let data = Data::random(&mut Rng::with_seed(5), 100);
    let windowed =
        |steps: &[OracleEpoch]| common::oracle::windowed(&data.history(0, steps), TEN, |deal| deal.key, checks::totals);
    let mut steps = Vec::new();
    for (partition, deals) in data.partitions.iter().enumerate() {
        for next in 0..=deals.len() as u64 {
            let ended = next == deals.len() as u64;
            let took = common::oracle::PartitionInput { partition: partition as u32, next, idle: false, ended };
            let at = next as usize;
            while steps.len() <= at {
                steps.push(OracleEpoch { epoch: 2 * steps.len() as u64 + 2, inputs: Vec::new() });
            }
            steps[at].inputs.push(took);
        }
    }
    let (one_by_one, at_once) = (windowed(&steps), checks::by_data(&data, TEN));
    assert_eq!(checks::flat(&one_by_one.closed), checks::flat(&at_once.closed));
    assert_eq!(checks::flat(&one_by_one.late), checks::flat(&at_once.late));
    assert!(one_by_one.counted == at_once.counted && at_once.counted > 0);
}
