//! Tables equal a naive computation over the records, at every epoch; and so do joins with them.
//!
//! A table is the only checkpointed operator that reads its own state: the last record of a key must not depend on
//! arrival, on workers, or on crashes; and a join that sees a table too early or too late publishes rows that never
//! were correct.
#![expect(clippy::unwrap_used, reason = "a panic fails the test")]

use std::sync::Arc;

use fastrand::Rng;
use tidegate::Window;
use tidegate::durable::disk::Disk;
use tidegate::job::{Ending, StopHandle};
use tidegate::source::memory::MemorySource;
use tidegate::stream::aggregate::Each;
use tidegate::testing::{Captured, CrashingDisk, Script, TestRun};

use common::cases::{Data, for_seeds, in_parallel};
use common::checks::small_drift;
use common::tables::{self, check_tables};

#[test]
fn tables_are_right_at_every_epoch() {
    for_seeds(15, |seed| {
        let mut random = Rng::with_seed(seed);
        let data = Data::random(&mut random, 200);
        check_tables(&data, TestRun::new().workers([1, 2, 4][seed as usize % 3]).seed(seed)).map(drop)
    });
}

#[test]
fn tables_are_right_with_partitions_that_rest_and_are_found_late() {
    for_seeds(15, |seed| {
        let mut random = Rng::with_seed(seed);
        let data = Data::random(&mut random, 60);
        let script = data.script(&mut random);
        check_tables(&data, TestRun::new().workers(random.usize(1..=4)).script("deals", script)).map(drop)
    });
}

/// Snapshots seal; results must not depend on it.
#[test]
fn equal_journals_give_equal_tables() {
    for_seeds(8, |seed| {
        let mut random = Rng::with_seed(seed);
        let data = Data::random(&mut random, 150);
        let (first, outcome) = tables::run(&data, TestRun::new().workers(2).seed(seed).options(small_drift(100)))?;
        for workers in [1, 2, 4] {
            let again = TestRun::new().workers(workers).seed(random.u64(..)).journal(outcome.journal.clone());
            let seals = outcome.journal.iter().map(|frame| frame.epoch).collect();
            let (again, _) = tables::run(&data, again.seal_at(seals))?;
            again.check_equal(&first).map_err(|why| format!("on {workers} workers: {why}"))?;
        }
        Ok(())
    });
}

/// A record: key, value (`None` deletes), event time.
type TableRecord = (u8, Option<i64>, i64);

/// Runs a table over some records, in the epochs of a script.
fn table_of(partitions: &[&[TableRecord]], script: Script) -> Captured<(u8, i64)> {
    let source = MemorySource::new(partitions.iter().map(|said| said.to_vec()).collect(), |said: &TableRecord| said.2);
    let shown = Captured::new();
    let output = shown.clone();
    let run = TestRun::new().workers(2).script("said", script).run(move |flow| {
        let said = flow.read("said", &source).key_by(|said| said.0);
        said.last_by_key_with("table", |said| said.1).write("table", &output);
    });
    run.unwrap();
    shown
}

/// Returns the changes of each epoch that has any.
fn changes(shown: &Captured<(u8, i64)>) -> Vec<Vec<((u8, i64), isize)>> {
    shown.epochs().into_values().collect()
}

#[test]
fn an_older_record_does_not_undo_a_delete_and_a_newer_one_does() {
    let said: &[TableRecord] =
        &[(1, Some(10), 100), (1, None, 300), (1, Some(20), 200), (1, Some(30), 300), (1, Some(40), 301)];
    let script = (0..5).fold(Script::new(), |script, _| script.epoch(|e| e.take(0, 1)));
    let shown = table_of(&[said], script);
    // The fourth record has the time of the delete and comes after it in its partition.
    let expected = [vec![((1, 10), 1)], vec![((1, 10), -1)], vec![((1, 30), 1)], vec![((1, 30), -1), ((1, 40), 1)]];
    assert_eq!(changes(&shown), expected);
}

#[test]
fn of_equal_times_the_greatest_partition_counts_and_then_the_greatest_offset() {
    let partitions: [&[TableRecord]; 2] = [&[(1, Some(1), 5), (1, Some(2), 5)], &[(1, Some(3), 5), (1, Some(4), 5)]];
    // Partition 1 is read first; the later record of partition 0 has the lesser origin.
    let script = Script::new().epoch(|e| e.find(0).take(1, 1)).epoch(|e| e.take(0, 2)).epoch(|e| e.take(1, 1));
    assert_eq!(changes(&table_of(&partitions, script)), [vec![((1, 3), 1)], vec![((1, 3), -1), ((1, 4), 1)]]);
}

#[test]
fn an_epoch_shows_only_what_it_comes_to() {
    let said: &[TableRecord] =
        &[(1, Some(1), 1), (2, Some(5), 2), (1, None, 3), (2, Some(6), 4), (1, Some(1), 5), (2, Some(6), 6)];
    let script = Script::new().epoch(|e| e.take(0, 2)).epoch(|e| e.take(0, 3)).epoch(|e| e.take(0, 1));
    let expected = [vec![((1, 1), 1), ((2, 5), 1)], vec![((2, 5), -1), ((2, 6), 1)]];
    assert_eq!(changes(&table_of(&[said], script)), expected);
}

#[test]
fn names_are_unique_among_all_steps_with_rows() {
    let source = MemorySource::new(vec![vec![(1u8, 5i64)]], |record: &(u8, i64)| record.1);
    let run = TestRun::new().run(move |flow| {
        let records = flow.read("records", &source);
        records.clone().key_by(|record| record.0).window(Window::global()).aggregate("mine", Each::count);
        records.key_by(|record| record.0).last_by_key("mine");
    });
    let error = run.unwrap_err().to_string();
    assert!(error.contains("a window step and a table step of the query are both named `mine`"), "{error}");
}

/// Runs a job with a table and several outputs of it, stopped when it sees the record of that id. One record at a time is
/// in flight, so that the stop comes before the end on a slow machine as well.
fn live(data: &Data, disk: &CrashingDisk, until: u32, outputs: &[Captured<(u8, u32)>]) -> Ending {
    let (disk, source, outputs): (Arc<dyn Disk>, _, _) = (disk.shared(), data.source(), outputs.to_vec());
    let stop = StopHandle::default();
    let run = TestRun::new().workers(1 + outputs.len()).seed(7).in_flight(1).state(&disk, "state").stop_by(&stop);
    let run = run.state_options(|state| state.accept_changed_query(true)).run(move |flow| {
        let stop = stop.clone();
        let deals = flow.read("deals", &source).inspect(move |deal| {
            if deal.id == until {
                stop.stop();
            }
        });
        let table = deals.key_by(|deal| deal.id as u8).last_by_key_with("table", |deal| Some(deal.id));
        for (output, number) in outputs.iter().zip(1..) {
            table.clone().write(&format!("output {number}"), output);
        }
    });
    run.unwrap().report.ending
}

/// A resumed job emits the whole table; outputs drop what they have published.
#[test]
fn an_output_that_is_new_to_a_snapshot_gets_the_whole_table() {
    let late = in_parallel((0..20).collect(), |seed| {
        let mut random = Rng::with_seed(seed);
        let data = Data::random(&mut random, 600);
        let (disk, old, new) = (CrashingDisk::new(), Captured::new(), Captured::new());
        let stopped = live(&data, &disk, random.u32(1..200), std::slice::from_ref(&old)) == Ending::Stopped;
        if !stopped || live(&data, &disk.after_kill(), 0, &[old.clone(), new.clone()]) != Ending::Complete {
            return false;
        }
        // `all` would panic if a missing row were retracted.
        assert_eq!(new.all(), old.all(), "seed {seed}");
        new.epochs().keys().next() > old.epochs().keys().next()
    });
    let late = late.into_iter().filter(|is_late| *is_late).count();
    assert!(late > 3, "only {late} outputs were new to a snapshot");
}

/// Of a key that is in several partitions the greatest one counts, whichever was read last; event times mean nothing, and
/// none is rejected.
#[test]
fn a_table_of_a_source_is_by_offset_and_of_several_partitions_the_greatest_counts() {
    let lesser = vec![(1u8, Some(10i64)), (2, Some(20)), (1, Some(11)), (3, Some(30)), (3, None)];
    let greater = vec![(2, Some(21)), (2, None), (3, Some(31))];
    for (first, second) in [(0, 1), (1, 0)] {
        let source =
            MemorySource::new(vec![lesser.clone(), greater.clone()], |said: &(u8, Option<i64>)| match said.1 {
                Some(value) => i64::MAX - value,
                None => i64::MIN,
            });
        let (shown, script) = (Captured::new(), Script::new().epoch(|e| e.find(0).find(1)));
        let script =
            script.epoch(|e| e.take(first, 3)).epoch(|e| e.take(second, 3)).epoch(|e| e.take(0, 2).end(0).end(1));
        let output = shown.clone();
        let run = TestRun::new().workers(2).script("said", script);
        let outcome = run.run(move |flow| flow.table("said", &source).write("table", &output)).unwrap();
        assert_eq!(shown.all(), [(1, 11), (3, 31)], "partition {first} before {second}");
        assert_eq!(outcome.report.summary.sources[0].rejected, 0);
    }
}
