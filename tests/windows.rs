//! Windows show what a computation from scratch shows: final results, live rows and late records, at every epoch.
//!
//! It exists because the engine computes all of these incrementally, in pieces, on several workers; the oracle computes
//! them from the definitions, out of all records, with nothing shared.

mod common;

use fastrand::Rng;
use tidegate::testing::Run;

use common::cases::{Data, for_seeds};
use common::checks::{check_data, check_run};
use common::oracle::Windows;

fn windows(random: &mut Rng) -> Windows {
    let size = *random.choice(&[1i64, 7, 10, 10, 100, 1000, 86_400_000]).unwrap();
    Windows::Tumbling { size, offset: *random.choice(&[0, 0, 1, 3, 250, 3 * size + 1]).unwrap() }
}

#[test]
fn scripted_epochs_with_idle_and_late_found_partitions_show_what_the_oracle_shows() {
    for_seeds(150, |seed| {
        let mut random = Rng::with_seed(seed);
        let (data, windows) = (Data::random(&mut random, 60), windows(&mut random));
        let script = data.script(&mut random);
        let run = Run::new().workers(random.usize(1..=3)).script("deals", script);
        check_run(&data, windows, run).map(drop)
    });
}

#[test]
fn random_epochs_show_what_the_oracle_shows() {
    for_seeds(100, |seed| {
        let mut random = Rng::with_seed(seed);
        let (data, windows) = (Data::random(&mut random, 120), windows(&mut random));
        let run = || Run::new().workers(1 + seed as usize % 4).seed(seed);
        check_run(&data, windows, run()).map(drop)?;
        check_data(&data, windows, run())
    });
}
