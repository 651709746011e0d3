//! After a crash at any moment a job resumes, and its results are those of a run without a crash.
//!
//! The data are random; a run crashes at a random operation of the disk, and resumes from what survived, on another
//! number of workers, which may crash again.

use fastrand::Rng;
use tidegate::job::{Ending, StopHandle};
use tidegate::testing::{CrashingDisk, TestRun};

use common::cases::{Data, for_seeds};
use common::incarnations::{QueryCaptures, check_crashes, check_crashes_of, on};

#[test]
fn a_run_with_state_is_as_one_without() {
    for_seeds(5, |seed| {
        let mut random = Rng::with_seed(seed);
        let (data, disk) = (Data::random(&mut random, 200), CrashingDisk::new());
        let (plain, kept) = (QueryCaptures::default(), QueryCaptures::default());
        plain.run(&data, TestRun::new().seed(seed))?;
        assert_eq!(kept.run(&data, on(&disk, &mut random, TestRun::new()))?, Ending::Complete);
        kept.check_equal("with state", &plain)?;
        let again = on(&disk.after_kill(), &mut random, TestRun::new());
        assert_eq!(kept.run(&data, again)?, Ending::WasComplete);
        kept.check_equal("started again", &plain)
    });
}

#[test]
fn a_run_that_crashes_goes_on_to_the_same_results() {
    for_seeds(8, |seed| check_crashes(seed, TestRun::new));
}

/// Partitions become idle and wake, and between turns all are idle: the watermark is then the greatest of the
/// partitions' watermarks, in every incarnation.
#[test]
fn a_run_whose_partitions_fall_silent_and_wake_goes_on_after_crashes() {
    for_seeds(3, |seed| check_crashes_of(&Data::in_turns(seed, 150), (seed, Rng::with_seed(seed)), TestRun::new));
}

/// A run that was stopped cleanly has published everything that it committed, and has nothing to replay.
#[test]
fn a_run_that_is_stopped_goes_on_without_repeating_anything() {
    for_seeds(4, |seed| {
        let mut random = Rng::with_seed(seed);
        let (data, disk) = (Data::random(&mut random, 120), CrashingDisk::new());
        let (plain, kept) = (QueryCaptures::default(), QueryCaptures::default());
        plain.run(&data, TestRun::new().seed(seed))?;
        let mut disk = disk;
        for _ in 0..100 {
            let stop = StopHandle::default();
            stop.stop();
            let ending = kept.run(&data, on(&disk, &mut random, TestRun::new().stop_by(&stop)))?;
            disk = disk.after_kill();
            if ending != Ending::Stopped {
                break;
            }
        }
        kept.run(&data, on(&disk, &mut random, TestRun::new()))?;
        kept.check_equal("after stops", &plain)
    });
}
