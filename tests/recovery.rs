//! After a crash at any moment a job goes on, and its results are those of a run without one.
//!
//! It exists because this is what state is for. The data are random; a run crashes at a random act of the disk, and goes
//! on with what survived, on another number of workers, which may crash again.
#![expect(clippy::unwrap_used, reason = "a panic fails the test")]

mod common;

use std::sync::Arc;

use fastrand::Rng;
use tidegate::Record;
use tidegate::durable::disk::Disk;
use tidegate::job::Ending;
use tidegate::testing::{Captured, CrashingDisk, Run};

use common::cases::{Data, for_seeds};
use common::checks::Views;
use common::oracle::Windows;

const WINDOWS: Windows = Windows::Tumbling { size: 20, offset: 0 };

fn run(data: &Data, views: &Views, run: Run) -> Result<Ending, String> {
    let (source, views) = (data.source(), views.clone());
    let outcome = run.run(move |flow| {
        views.of(flow.read("one", &source), WINDOWS);
        flow.rejects().write("rejects", &views.rejects);
    });
    outcome.map(|outcome| outcome.report.ending).map_err(|error| error.to_string())
}

fn on(disk: &CrashingDisk, random: &mut Rng) -> Run {
    let disk: Arc<dyn Disk> = Arc::new(disk.clone());
    Run::new().workers(random.usize(1..=3)).seed(random.u64(..)).state(&disk, "state")
}

fn equal(what: &str, one: &Views, other: &Views) -> Result<(), String> {
    fn rows<D: Record>(what: &str, name: &str, one: &Captured<D>, other: &Captured<D>) -> Result<(), String> {
        let (one_rows, other_rows) = (one.all(), other.all());
        if one_rows == other_rows {
            return Ok(());
        }
        let epochs = one.epochs();
        Err(format!("{what}: {name}:\n     got {one_rows:?}\nexpected {other_rows:?}\nby epoch {epochs:?}"))
    }
    rows(what, "closed rows", &one.closed, &other.closed)?;
    rows(what, "late records", &one.late, &other.late)?;
    rows(what, "rejects", &one.rejects, &other.rejects)?;
    rows(what, "live rows at the end", &one.live, &other.live)
}

#[test]
fn a_run_with_state_is_as_one_without() {
    for_seeds(20, |seed| {
        let mut random = Rng::with_seed(seed);
        let (data, disk) = (Data::random(&mut random, 200), CrashingDisk::new());
        let (plain, kept) = (Views::default(), Views::default());
        run(&data, &plain, Run::new().seed(seed))?;
        let ending = run(&data, &kept, on(&disk, &mut random))?;
        assert_eq!(ending, Ending::Complete);
        equal("with state", &kept, &plain)?;
        let again = run(&data, &kept, on(&disk.after_kill(), &mut random))?;
        assert_eq!(again, Ending::WasComplete);
        equal("started again", &kept, &plain)
    });
}

#[test]
fn a_run_that_crashes_goes_on_to_the_same_results() {
    for_seeds(60, |seed| {
        let mut random = Rng::with_seed(seed);
        let data = Data::random(&mut random, 200);
        let (plain, kept) = (Views::default(), Views::default());
        run(&data, &plain, Run::new().seed(seed))?;
        let mut disk = CrashingDisk::new();
        for life in 1.. {
            if life < 12 {
                disk.crash_at(random.usize(0..200));
            }
            match run(&data, &kept, on(&disk, &mut random)) {
                Ok(ending) => {
                    if ending == Ending::Stopped {
                        return Err(format!("life {life} stopped"));
                    }
                    break;
                }
                Err(_) if disk.has_crashed() => disk = disk.survivors(random.u64(..)),
                Err(error) => return Err(format!("life {life}: {error}")),
            }
        }
        equal("after crashes", &kept, &plain)
    });
}
