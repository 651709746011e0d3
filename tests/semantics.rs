//! The cases of `docs/semantics.md`, in which Tidegate answers otherwise than Flink, Kafka Streams or Beam: a test for each
//! answer of ours. The page names the tests, and `the_page_and_these_tests_name_each_other` sees that it does.
#![expect(clippy::unwrap_used, reason = "a panic fails the test")]

use std::collections::BTreeSet;
use std::time::Duration;

use tidegate::source::memory::MemorySource;
use tidegate::stream::Firing;
use tidegate::testing::{Captured, Script, TestRun};
use tidegate::{Closed, Flow, Open, Real, Window};

const SECOND: Duration = Duration::from_secs(1);
const GAP: Duration = Duration::from_secs(10);

/// A record: a number, and its event time in seconds.
type Reading = (u32, i64);
/// Start and end of a window in seconds, and the numbers of its records in order.
type Row = (i64, i64, Vec<u32>);

/// Partitions of readings, none of which is out of order by declaration.
fn readings(partitions: &[&[Reading]]) -> MemorySource<Reading> {
    let partitions = partitions.iter().map(|partition| partition.to_vec()).collect();
    MemorySource::new(partitions, |reading: &Reading| reading.1 * 1_000).out_of_order(Duration::ZERO)
}

fn seconds(ms: i64) -> i64 {
    ms.div_euclid(1_000)
}

fn closed(row: Closed<(), Vec<u32>>) -> Row {
    (seconds(row.window.start.millis()), seconds(row.window.end.millis()), row.value)
}

fn open(row: Open<(), Vec<u32>>) -> Row {
    (seconds(row.window.start.millis()), seconds(row.window.end.millis()), row.value)
}

/// All results of a step.
#[derive(Clone, Default)]
struct Outputs {
    closed: Captured<Row>,
    fired: Captured<Row>,
    late: Captured<Reading>,
}

impl Outputs {
    /// Returns the fired rows as they were changed, epoch by epoch.
    fn changes(&self) -> Vec<Vec<(Row, isize)>> {
        self.fired.epochs().into_values().collect()
    }
}

/// Runs a query of windows over a source, epoch by epoch.
fn run(source: &MemorySource<Reading>, script: Script, window: Window, lateness: Duration) -> Outputs {
    let (source, outputs) = (source.clone(), Outputs::default());
    let own = outputs.clone();
    let query = move |flow: &Flow<'_>| {
        let windows = flow.read("readings", &source).key_by(|_| ()).window(window).allowed_lateness(lateness);
        let rows = windows.aggregate("rows", |each| each.collect(|reading| reading.0));
        rows.on_close().map(closed).write("closed", &own.closed);
        rows.on_fire().map(open).write("fired", &own.fired);
        rows.late().write("late", &own.late);
    };
    TestRun::new().workers(2).script("readings", script).run(query).unwrap();
    outputs
}

/// A script that takes the records of one partition one by one, each in an epoch of its own.
fn one_by_one(count: u64) -> Script {
    (0..count).fold(Script::new(), |script, _| script.epoch(|e| e.take(0, 1))).epoch(|e| e.end(0))
}

fn row(start: i64, end: i64, numbers: &[u32]) -> Row {
    (start, end, numbers.to_vec())
}

/// Case 1.
#[test]
fn a_slow_partition_does_not_save_a_late_record_of_a_fast_one() {
    let source = readings(&[&[(1, 100), (2, 5)], &[(3, 0), (4, 1)]]);
    // When the late record comes, the other partition still holds the stream's watermark back.
    for script in [
        Script::new().epoch(|e| e.take(0, 2).take(1, 1)).epoch(|e| e.take(1, 1)).epoch(|e| e.end(0).end(1)),
        Script::new().epoch(|e| e.take(1, 2).find(0)).epoch(|e| e.take(0, 2)).epoch(|e| e.end(0).end(1)),
    ] {
        let found = run(&source, script, Window::tumbling(10 * SECOND).any(), Duration::ZERO);
        assert_eq!(found.late.all(), [(2, 5)]);
        assert_eq!(found.closed.all(), [row(0, 10, &[3, 4]), row(100, 110, &[1])]);
    }
}

/// Case 2.
#[test]
fn a_fast_partition_makes_no_record_of_a_slow_one_late() {
    let source = readings(&[&[(1, 100), (2, 200)], &[(3, 0), (4, 1)]]);
    let script = Script::new().epoch(|e| e.take(0, 2).find(1)).epoch(|e| e.take(1, 2)).epoch(|e| e.end(0).end(1));
    let found = run(&source, script, Window::tumbling(10 * SECOND).any(), Duration::ZERO);
    assert_eq!(found.late.all(), []);
    assert_eq!(found.closed.all(), [row(0, 10, &[3, 4]), row(100, 110, &[1]), row(200, 210, &[2])]);
}

/// Case 3.
#[test]
fn records_that_are_a_gap_apart_are_of_two_sessions() {
    let source = readings(&[&[(1, 0), (2, 10), (3, 19)]]);
    let found = run(&source, one_by_one(3), Window::session(GAP).any(), Duration::ZERO);
    assert_eq!(found.closed.all(), [row(0, 10, &[1]), row(10, 29, &[2, 3])]);
}

/// Case 4.
#[test]
fn a_record_behind_the_watermark_is_late_although_its_session_is_open() {
    let source = readings(&[&[(1, 0), (2, 8), (3, 5), (4, 12)]]);
    let found = run(&source, one_by_one(4), Window::session(GAP).any(), Duration::ZERO);
    assert_eq!((found.late.all(), found.closed.all()), (vec![(3, 5)], vec![row(0, 22, &[1, 2, 4])]));
}

/// Case 5.
#[test]
fn a_lateness_of_a_gap_accepts_what_beam_accepts() {
    // The watermark is 20 when records of the times 11 to 9 come: their own sessions would end at 21, 20 and 19.
    let source = readings(&[&[(1, 4), (2, 20), (3, 11), (4, 10), (5, 9)]]);
    let found = run(&source, one_by_one(5), Window::session(GAP).any(), GAP);
    // One whose own session ends just at the watermark is accepted too, where Beam drops it.
    assert_eq!(found.late.all(), [(5, 9)]);
    assert_eq!(found.closed.all(), [row(4, 30, &[1, 4, 3, 2])]);
    // The first session fired at 14. A record that bridges it with the second one takes that result back.
    let fired = found.changes();
    assert_eq!(fired[0], [(row(4, 14, &[1]), 1)]);
    assert_eq!(fired[1], [(row(4, 14, &[1]), -1)]);
    assert_eq!(found.fired.all(), [row(4, 30, &[1, 4, 3, 2])]);
}

/// Case 6.
#[test]
fn a_record_that_joins_two_sessions_retracts_both_results() {
    let source = readings(&[&[(1, 0), (2, 15), (3, 26), (4, 8)]]);
    let found = run(&source, one_by_one(4), Window::session(GAP).any(), 20 * SECOND);
    let two = [row(0, 10, &[1]), row(15, 25, &[2])];
    let changes = found.changes();
    assert_eq!(changes[0], [(two[0].clone(), 1)]);
    assert_eq!(changes[1], [(two[1].clone(), 1)]);
    assert_eq!(changes[2], [(two[0].clone(), -1), (row(0, 25, &[1, 4, 2]), 1), (two[1].clone(), -1)]);
    // The final results are emitted once, when nothing can change them any more.
    assert_eq!(found.closed.all(), [row(0, 25, &[1, 4, 2]), row(26, 36, &[3])]);
}

/// Case 7.
#[test]
fn a_window_is_closed_once_and_corrections_retract_what_they_replace() {
    let source = readings(&[&[(1, 3), (2, 11), (3, 4), (4, 16), (5, 5)]]);
    let found = run(&source, one_by_one(5), Window::tumbling(10 * SECOND).any(), 5 * SECOND);
    let of_first = |change: &(Row, isize)| change.0.0 == 0;
    let changes: Vec<_> = found.changes().into_iter().flatten().filter(of_first).collect();
    let (before, after) = (row(0, 10, &[1]), row(0, 10, &[1, 3]));
    assert_eq!(changes, [(before.clone(), 1), (before, -1), (after.clone(), 1)]);
    let closed: Vec<_> = found.closed.all().into_iter().filter(|row| row.0 == 0).collect();
    assert_eq!((closed, found.late.all()), (vec![after], vec![(5, 5)]));
}

/// Case 8.
#[test]
fn a_burst_that_is_followed_by_silence_is_published() {
    let source = readings(&[&[(1, 3), (2, 20)], &[(3, 4)]]);
    let read = |e: tidegate::testing::EpochScript| e.take(0, 2).take(1, 1);
    // The second partition has nothing after 4: it holds the window back until it is idle.
    let held = run(&source, Script::new().epoch(read), Window::tumbling(10 * SECOND).any(), Duration::ZERO);
    assert_eq!(held.closed.all(), []);
    for idle in [
        Script::new().epoch(read).epoch(|e| e.idle(1)),
        Script::new().epoch(read).epoch(|e| e.idle(0)).epoch(|e| e.idle(1)),
    ] {
        let found = run(&source, idle, Window::tumbling(10 * SECOND).any(), Duration::ZERO);
        // Watermarks count no clock: the window of 20 stays open.
        assert_eq!(found.closed.all(), [row(0, 10, &[1, 3])]);
    }
}

/// Case 9.
#[test]
fn windows_may_begin_before_1970() {
    let source = readings(&[&[(1, -3), (2, 2)]]);
    let script = || Script::new().epoch(|e| e.take(0, 2)).epoch(|e| e.end(0));
    let sliding = Window::sliding(10 * SECOND, 5 * SECOND).any();
    let found = run(&source, script(), sliding, Duration::ZERO);
    assert_eq!(found.closed.all(), [row(-10, 0, &[1]), row(-5, 5, &[1, 2]), row(0, 10, &[2])]);
}

/// Case 10.
#[test]
fn records_are_counted_in_the_order_of_event_time() {
    let source = readings(&[&[(1, 0), (3, 5)], &[(2, 1), (4, 9)]]);
    for script in [
        Script::new().epoch(|e| e.take(0, 2).find(1)).epoch(|e| e.take(1, 2)).epoch(|e| e.end(0).end(1)),
        Script::new().epoch(|e| e.take(1, 2).find(0)).epoch(|e| e.take(0, 2)).epoch(|e| e.end(0).end(1)),
    ] {
        let found = run(&source, script.clone(), Window::count(2).any(), Duration::ZERO);
        let numbers: Vec<_> = found.closed.all().into_iter().map(|row| row.2).collect();
        assert_eq!(numbers, [[1, 2], [3, 4]]);
        // Windows that fire by count count likewise, and discard as they count.
        let (source, fired) = (source.clone(), Captured::<(u64, bool, Vec<u32>)>::new());
        let output = fired.clone();
        let query = move |flow: &Flow<'_>| {
            let windows = flow.read("readings", &source).key_by(|_| ()).window(Window::tumbling(10 * SECOND));
            let firings = windows.every_n(3).discarding().aggregate("rows", |each| each.collect(|reading| reading.0));
            let flat = |Firing { number, is_final, value, .. }: Firing<(), Vec<u32>>| (number, is_final, value);
            firings.all().map(flat).write("fired", &output);
        };
        TestRun::new().script("readings", script).run(query).unwrap();
        assert_eq!(fired.all(), [(0, false, vec![1, 2, 3]), (1, true, vec![4])]);
    }
}

/// Case 11.
#[test]
fn the_end_of_the_input_closes_every_window() {
    let source = readings(&[&[(1, 3), (2, 20)]]);
    let script = Script::new().epoch(|e| e.take(0, 2)).epoch(|e| e.end(0));
    let found = run(&source, script, Window::tumbling(10 * SECOND).any(), 3_600 * SECOND);
    assert_eq!(found.closed.all(), [row(0, 10, &[1]), row(20, 30, &[2])]);
}

/// Case 12.
#[test]
fn a_sum_of_floating_point_numbers_does_not_depend_on_their_order() {
    let numbers = [1e16, 1.0, -1e16, 1.0];
    for first in 0..4 {
        let mut numbers = numbers.map(|number| (Real::new(number), 0i64)).to_vec();
        numbers.rotate_left(first);
        let source = MemorySource::new(vec![numbers], |number: &(Real, i64)| number.1);
        let sums = Captured::<Real>::new();
        let output = sums.clone();
        let query = move |flow: &Flow<'_>| {
            let numbers = flow.read("numbers", &source).key_by(|_| ()).window(Window::tumbling(SECOND));
            let sums = numbers.aggregate("sums", |each| each.sum(|number| number.0)).on_close();
            sums.map(|row| row.value).write("sums", &output);
        };
        TestRun::new().workers(2).run(query).unwrap();
        assert_eq!(sums.all(), [Real::new(2.0)]);
    }
}

/// Case of collections: the greatest goes, and the second one is the greatest; a row that moves leaves its window.
#[test]
fn a_window_of_a_collection_is_what_its_rows_are_now() {
    // (order, (amount, time in seconds)), one version after the other.
    let versions = [(1, Some((5i64, 1i64))), (2, Some((9, 2))), (3, Some((7, 12))), (2, Some((2, 13))), (3, None)];
    let source = MemorySource::new(vec![versions.to_vec()], |_| 0);
    let rows = Captured::<(i64, (i64, i64, u32))>::new();
    let output = rows.clone();
    let script = (0..versions.len()).fold(Script::new(), |script, epoch| {
        script.epoch(|acts| if epoch == 0 { acts.find(0).take(0, 1) } else { acts.take(0, 1) })
    });
    let query = move |flow: &Flow<'_>| {
        let windows = flow.table("orders", &source).window_by(|_| (), |row| row.1.1 * 1_000, Window::tumbling(GAP));
        let values = windows.aggregate("orders", |each| {
            let amount = |row: &(u32, (i64, i64))| row.1.0;
            (each.count(), each.max(amount), each.last(|row| row.0))
        });
        values.map(|row| (seconds(row.window.start.millis()), row.value)).write("rows", &output);
    };
    TestRun::new().workers(2).script("orders", script.epoch(|acts| acts.end(0))).run(query).unwrap();
    let epochs: Vec<_> = rows.epochs().into_values().collect();
    let (first, second) = ((0, (1, 5, 1)), (0, (2, 9, 2)));
    assert_eq!(epochs[0], [(first, 1)]);
    assert_eq!(epochs[1], [(first, -1), (second, 1)]);
    assert_eq!(epochs[2], [((10, (1, 7, 3)), 1)]);
    // The second order moves on: 5 is the greatest again.
    let moved = (10, (2, 7, 2));
    assert_eq!(epochs[3], [(first, 1), (second, -1), ((10, (1, 7, 3)), -1), (moved, 1)]);
    assert_eq!(epochs[4], [((10, (1, 2, 2)), 1), (moved, -1)]);
    assert_eq!(rows.all(), [first, (10, (1, 2, 2))]);
}

#[test]
fn the_page_and_these_tests_name_each_other() {
    let (page, own) = (include_str!("../docs/semantics.md"), include_str!("semantics.rs"));
    let of_page: BTreeSet<_> =
        page.split('`').filter(|word| word.contains('_') && own.contains(&format!("fn {word}()"))).collect();
    let marked = own.split("/// Case ").skip(1).filter_map(|after| after.split("fn ").nth(1)?.split('(').next());
    let of_tests: BTreeSet<_> = marked.filter(|name| name.contains('_')).collect();
    assert_eq!(of_page, of_tests);
    // Twelve cases, and that of collections.
    assert_eq!(of_tests.len(), 13);
}
