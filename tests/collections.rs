//! Collections equal a naive computation at every epoch: those of a stream's events, computed from the data and the
//! journal, and every operator, computed from scratch from its inputs.
//!
//! Operators keep no rows of their own in snapshots: after a crash they are computed again from the collections that have
//! any, and must go on at the epoch after the snapshot as if nothing had happened.
#![expect(clippy::unwrap_used, reason = "a panic fails the test")]

use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use tidegate::durable::disk::Disk;
use tidegate::source::memory::MemorySource;
use tidegate::stream::{LoopCollection, LoopScope, Observer};
use tidegate::testing::{Captured, CrashingDisk, Script, TestRun};
use tidegate::{Flow, Window};

use common::cases::{Data, for_seeds};
use common::collections::{self, check_collections, check_collections_over_crashes};

#[test]
fn collections_are_right_at_every_epoch() {
    for_seeds(4, |seed| {
        let mut random = Rng::with_seed(seed);
        let data = Data::random(&mut random, 80);
        let run = TestRun::new().workers([1, 2, 4][seed as usize % 3]).seed(seed);
        check_collections(&data, run).map(drop)
    });
}

#[test]
fn collections_are_right_with_partitions_that_rest_and_are_found_late() {
    for_seeds(4, |seed| {
        let mut random = Rng::with_seed(seed);
        let data = Data::random(&mut random, 50);
        let script = data.script(&mut random);
        check_collections(&data, TestRun::new().workers(random.usize(1..=4)).script("deals", script)).map(drop)
    });
}

/// Partitions take turns, and sometimes all are idle.
#[test]
fn collections_of_processes_are_right_while_partitions_take_turns() {
    for_seeds(1, |seed| {
        let run = TestRun::new().workers(1 + seed as usize % 2).processes(2).seed(seed);
        check_collections(&Data::in_turns(seed, 50), run).map(drop)
    });
}

/// Snapshots seal; results must not depend on it.
#[test]
fn equal_journals_give_equal_collections() {
    for_seeds(1, |seed| {
        let mut random = Rng::with_seed(seed);
        let data = Data::random(&mut random, 60);
        let (first, outcome) = collections::run(&data, TestRun::new().workers(2).seed(seed))?;
        for workers in [1, 4] {
            let epochs = outcome.journal.iter().map(|frame| frame.epoch).filter(|_| random.bool()).collect();
            let again = TestRun::new().workers(workers).journal(outcome.journal.clone()).seal_at(epochs);
            collections::run(&data, again)?.0.check_equal(&first).map_err(|why| format!("{workers} workers: {why}"))?;
        }
        Ok(())
    });
}

/// What is published before a crash and after it fits together at every epoch, on any number of workers.
#[test]
fn collections_go_on_after_crashes() {
    for_seeds(1, |seed| check_collections_over_crashes(seed, TestRun::new));
}

fn error_of(query: impl Fn(&Flow<'_>) + Send + Sync + 'static) -> String {
    let disk: Arc<dyn Disk> = CrashingDisk::new().shared();
    TestRun::new().state(&disk, "state").run(query).unwrap_err().to_string()
}

fn numbers(count: i64) -> MemorySource<i64> {
    MemorySource::new(vec![(0..count).collect()], |at| *at)
}

#[test]
fn an_iteration_without_a_fixed_point_fails_the_job_instead_of_hanging() {
    let source = numbers(1);
    let said = error_of(move |flow| {
        let numbers = flow.read("numbers", &source).collect("numbers");
        numbers.iterate(7, |_scope, numbers| numbers.map(|number| number + 1)).write("out", &Captured::new());
    });
    assert!(said.contains("an iteration has no fixed point after 7 rounds"), "{said}");
}

fn one_less<'s>(_scope: &LoopScope<'s>, numbers: LoopCollection<'s, i64>) -> LoopCollection<'s, i64> {
    numbers.map(|number| (number - 1).max(0))
}

/// The numbers 5 and less need exactly as many rounds as the number to come down to 0, and no more.
#[test]
fn an_iteration_that_needs_its_limit_is_within_it() {
    let down = |limit| {
        let (source, out) = (numbers(6), Captured::new());
        let output = out.clone();
        let run = TestRun::new().run(move |flow| {
            let numbers = flow.read("numbers", &source).collect("numbers");
            let twice = numbers.clone().iterate_times(2, one_less).map(|number| (2, number));
            let never = numbers.clone().iterate_times(0, one_less).map(|number| (0, number));
            let down = numbers.iterate(limit, one_less).map(|number| (9, number));
            down.concat(twice).concat(never).write("out", &output);
        });
        run.map(|_| out.all()).map_err(|error| error.to_string())
    };
    let rows = [(0, 0), (0, 1), (0, 2), (0, 3), (0, 4), (0, 5), (2, 0), (2, 0), (2, 0), (2, 1), (2, 2), (2, 3)];
    assert_eq!(down(5).unwrap(), [&rows[..], &[(9, 0); 6]].concat());
    assert!(down(4).unwrap_err().contains("no fixed point after 4 rounds"));
}

#[test]
fn what_cannot_be_kept_is_refused() {
    let source = numbers(3);
    let no_time = error_of(move |flow| {
        flow.read("numbers", &source).live_for("recent", Duration::ZERO).write("out", &Captured::new());
    });
    assert!(no_time.contains("events cannot live for 0 ms") && no_time.contains("recent"), "{no_time}");
    let source = numbers(3);
    let part = error_of(move |flow| {
        flow.read("numbers", &source).live_for("recent", Duration::from_micros(1500)).write("out", &Captured::new());
    });
    assert!(part.contains("recent"), "{part}");
    let source = numbers(3);
    let twice = error_of(move |flow| {
        let numbers = flow.read("numbers", &source);
        numbers.clone().collect("numbers").write("out", &Captured::new());
        numbers.key_by(|_| ()).last_by_key("numbers").write("other", &Captured::new());
    });
    assert!(twice.contains("both named `numbers`"), "{twice}");
    // Rows of records that are changes are not kept, so nothing may be iterated over them, in no place.
    let source = numbers(3);
    let lost = error_of(move |flow| {
        let numbers = flow.read("numbers", &source);
        let changes = numbers.clone().changes(|number| [(number, 1)]);
        let known = numbers.collect("numbers");
        known.iterate(9, move |scope, _| scope.enter(&changes)).write("out", &Captured::new());
    });
    assert!(lost.contains("rows that were read are not there again"), "{lost}");
}

/// A record of changes after the clock has ended comes too late for windows, and is counted as late.
#[test]
fn changes_after_the_end_of_their_clock_are_late() {
    let (clock, rows) = (MemorySource::new(vec![vec![5, 20]], |at: &i64| *at).out_of_order(Duration::ZERO), numbers(4));
    let (changes, counts, late) = (Captured::new(), Captured::new(), Captured::new());
    let (told, counted, missed) = (changes.clone(), counts.clone(), late.clone());
    // Before the clock has a time, at 5, at its end, after it.
    let of_rows = Script::new()
        .epoch(|e| e.take(0, 1))
        .epoch(|e| e.take(0, 1))
        .epoch(|e| e.take(0, 1))
        .epoch(|e| e.take(0, 1).end(0));
    let of_clock =
        Script::new().epoch(|e| e.find(0)).epoch(|e| e.take(0, 1)).epoch(|e| e.take(0, 1).end(0)).epoch(|e| e.find(0));
    let run = TestRun::new().script("rows", of_rows).script("clock", of_clock);
    run.run(move |flow| {
        let clock = flow.read("clock", &clock);
        let changes = flow.read("rows", &rows).collect("rows").into_stream(&clock);
        changes.clone().write("changes", &told);
        let step = changes.key_by(|_| ()).window(Window::tumbling(Duration::from_millis(10)));
        let step = step.aggregate("counts", |each| each.collect(|(row, _)| *row));
        step.on_close().map(|row| (row.window.end.millis(), row.value)).write("counts", &counted);
        step.late().write("late", &missed);
    })
    .unwrap();
    let by_epoch: Vec<_> = changes.epochs().into_iter().map(|(epoch, rows)| (epoch.0, rows.len())).collect();
    assert_eq!(by_epoch, [(4, 2), (6, 1), (8, 1)]);
    assert_eq!(counts.all(), [(10, vec![0, 1]), (30, vec![2])]);
    assert_eq!(late.all(), [(3, 1)]);
}

/// The sink is asked what it sees: between two epochs it must never see less than a whole fixed point.
#[test]
fn nobody_sees_a_round_before_the_last() {
    let source = MemorySource::new(vec![(0..40).map(|n| (n, n + 1)).collect()], |edge: &(i64, i64)| edge.0);
    let run = TestRun::new().workers(2).seed(7).run(move |flow| {
        let edges = flow.read("edges", &source).collect("edges");
        let start = edges.clone().map(|(from, _)| from).filter(|from| *from == 0);
        let reached = edges.clone().reachable_from(start).map(|node| (node, 'r'));
        let both = reached.concat(edges.map(|(_, to)| (to, 'e')));
        let seen = std::sync::Mutex::new([0, 0]);
        both.write(
            "check",
            &Observer::new(move |epoch, rows: &[((i64, char), isize)]| {
                let mut seen = seen.lock().unwrap();
                rows.iter().for_each(|((_, kind), diff)| seen[usize::from(*kind == 'r')] += diff);
                // As many nodes are reached as there are edges, and the first.
                if seen[0] + 1 != seen[1] {
                    return Err(tidegate::Error::new(format!("{seen:?} at epoch {epoch}")));
                }
                Ok(())
            }),
        );
    });
    run.unwrap();
}
