//! State belongs to keys, never to workers: a state of any number of workers, in any number of processes, resumes with
//! any other, and its results are those of one incarnation on one worker.
//!
//! Incarnations on 1, 2 and 4 workers follow each other at random, in 1, 2 or 4 processes, each ended by a stop or by a
//! kill; a replayed epoch has the same output, on any number of workers.
#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

use std::time::Duration;

use fastrand::Rng;
use tidegate::job::{Ending, RunReport, StopHandle};
use tidegate::testing::CrashingDisk;

use common::cases::{Data, for_seeds};
use common::checks;
use common::durable_joins::DurableJoins;
use common::durable_query::{DurableQuery, DurableQueryOutputs, files, new_disk, on, steady};
use common::oracle::Windows;

const WORKERS: [usize; 3] = [1, 2, 4];
/// Numbers of processes, and of workers in each.
const SHAPES: [(usize, usize); 6] = [(1, 1), (1, 2), (1, 4), (2, 1), (4, 1), (2, 2)];
/// Maximum number of incarnations that are cut short.
const LIVES: usize = 12;

/// Runs an incarnation that is stopped when closed rows of so many epochs have been published in total, or at its end.
fn stopped<Q: DurableQuery>(
    kept: &Q,
    data: &Data,
    run: tidegate::testing::TestRun,
    epochs: usize,
) -> Result<RunReport, String> {
    let (stop, over) = (StopHandle::default(), StopHandle::default());
    let (watched, stopping, ended) = (kept.clone(), stop.clone(), over.clone());
    let watcher = std::thread::spawn(move || {
        while !ended.is_asked() && watched.published_epochs() < epochs {
            std::thread::sleep(Duration::from_micros(200));
        }
        stopping.stop();
    });
    let report = kept.run(data, run.stop_by(&stop));
    over.stop();
    watcher.join().unwrap();
    report
}

/// Runs about `records` records through incarnations of any shape.
fn check_lives<Q: DurableQuery>(seed: u64, records: u32) -> Result<(), String> {
    let mut random = Rng::with_seed(seed);
    let data = match seed % 3 {
        0 => Data::random(&mut random, records as usize),
        1 => steady(seed, records),
        // Partitions become idle and wake, and sometimes all of them are idle.
        _ => Data::in_turns(seed, records),
    };
    let (expected, kept, mut disk) = (Q::plain(&data)?, Q::default(), new_disk());
    for life in 0.. {
        let ((processes, workers), pace) = (*random.choice(&SHAPES).unwrap(), random.u64(..));
        let on = |disk| on(disk, workers, pace).processes(processes);
        let ending = match random.u8(0..3) {
            _ if life >= LIVES => kept.run(&data, on(&disk))?.ending,
            0 => {
                let epochs = kept.published_epochs() + random.usize(0..4);
                stopped(&kept, &data, on(&disk), epochs)?.ending
            }
            _ => {
                disk.crash_at(random.usize(20..300));
                match kept.run(&data, on(&disk)) {
                    _ if disk.has_crashed() => Ending::Stopped,
                    ended => ended?.ending,
                }
            }
        };
        disk = disk.after_kill();
        if ending != Ending::Stopped {
            break;
        }
    }
    kept.check(&disk, &expected)?;
    let shown = files(&disk);
    let again = kept.run(&data, on(&disk, 2, seed))?;
    if again.ending == Ending::Stopped || files(&disk) != shown {
        return Err(format!("started once more, it ended {:?}, with the files {:?}", again.ending, files(&disk)));
    }
    kept.check(&disk, &expected)
}

#[test]
fn lives_on_any_numbers_of_workers_and_processes_come_to_the_results_of_one() {
    for_seeds(4, |seed| check_lives::<DurableQueryOutputs>(seed, 150));
}

#[test]
fn joins_and_iterations_come_to_the_results_of_one_worker_on_any() {
    for_seeds(2, |seed| check_lives::<DurableJoins>(seed, 20));
}

/// Returns the number of rows that a step has loaded, and of records that it has counted, loaded rows included.
fn of_step(report: &RunReport, name: &str) -> (u64, u64) {
    let step = report.summary.steps.iter().find(|step| step.name == name).unwrap();
    (step.loaded, step.counted)
}

#[test]
fn every_row_of_a_state_is_loaded_once_by_any_number_of_workers() {
    for_seeds(3, |seed| {
        let (data, kept, disk) = (steady(seed, 200), DurableQueryOutputs::default(), new_disk());
        if matches!(checks::windows_of(&data), Windows::Sliding { .. } | Windows::Cumulative { .. }) {
            // A record counts in several windows: the number of stored records cannot be derived from the published
            // rows.
            return Ok(());
        }
        let report = stopped(&kept, &data, on(&disk, 4, seed * 16), 2 + seed as usize % 4)?;
        if report.ending != Ending::Stopped {
            return Ok(());
        }
        let closed: i64 = kept.closed.all().iter().map(|row| row.count).sum();
        let (ever, counts) = (of_step(&report, "ever").1, of_step(&report, "counts").1 - closed as u64);
        assert!(ever > 0, "seed {seed}: nothing is kept");
        let segments = disk.paths().iter().filter(|path| path.to_string_lossy().ends_with(".segment")).count();
        assert!(segments > 1, "seed {seed}: there is little to deal out");
        let mut all = Vec::new();
        for workers in WORKERS {
            let (kept, disk): (DurableQueryOutputs, CrashingDisk) = (kept.fork(), disk.after_kill());
            let report = stopped(&kept, &data, on(&disk, workers, seed), 0)?;
            // Windows that closed exactly at the snapshot's epoch are loaded, and close again.
            let loaded = (of_step(&report, "ever").0, of_step(&report, "counts").0);
            let wanted = (ever, counts);
            assert!(
                loaded.0 == ever && loaded.1 >= counts,
                "seed {seed}, {workers} workers: {loaded:?}, not {wanted:?}"
            );
            all.push(loaded);
            let disk = disk.after_kill();
            kept.run(&data, on(&disk, 5 - workers, seed))?;
            kept.check(&disk, &DurableQueryOutputs::plain(&data)?)?;
        }
        assert!(all.iter().all(|loaded| *loaded == all[0]), "seed {seed}: {all:?}");
        Ok(())
    });
}
