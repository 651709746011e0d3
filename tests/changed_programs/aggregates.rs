//! Aggregates that a changed program has more, fewer, or in another order: those that stay go on, by name.

use std::collections::BTreeMap;

use tidegate::job::Ending;
use tidegate::source::memory::MemorySource;
use tidegate::stream::aggregate::{Aggregate, Each};
use tidegate::testing::{Captured, CrashingDisk};
use tidegate::{Closed, Flow, Window};

use super::{Kept, Life, Sale, accepted, millis, refused};

/// Count, sum, greatest, least, and the number of distinct amounts, as far as a program has them.
type Shown = (Option<i64>, Option<i128>, Option<i64>, Option<Option<i64>>, Option<i64>);

/// A row: kind of windows, start and end in ms, key, and values.
type Row = (u8, i64, i64, u8, Shown);

/// The outputs of a program: rows, and the records that it has read.
#[derive(Clone, Default)]
struct Outputs {
    rows: Captured<Row>,
    read: Captured<Sale>,
}

impl Outputs {
    fn fork(&self) -> Outputs {
        Outputs { rows: self.rows.fork(), read: self.read.fork() }
    }
}

/// Returns the row of a window of this kind.
fn row_of<V>(kind: u8, row: Closed<u8, V>, show: fn(V) -> Shown) -> Row {
    (kind, row.window.start.millis(), row.window.end.millis(), row.key, show(row.value))
}

/// A program with every kind of windows, and these aggregates.
fn program<A: Aggregate<Sale>>(
    build: fn(Each<Sale>) -> A,
    show: fn(A::Value) -> Shown,
    outputs: &Outputs,
) -> impl Fn(&Flow<'_>, &MemorySource<Sale>) + Send + Sync + 'static {
    let Outputs { rows, read } = outputs.clone();
    move |flow, source| {
        let sales = flow.read("sales", source);
        sales.clone().write("read", &read);
        let keyed = || sales.clone().key_by(|sale| sale.0);
        let tumbling = keyed().window(Window::tumbling(millis(500))).aggregate("tumbling", build).on_close();
        let sliding = keyed().window(Window::sliding(millis(600), millis(200))).aggregate("sliding", build).on_close();
        let sessions = keyed().window(Window::session(millis(45))).aggregate("sessions", build).on_close();
        let counts = keyed().window(Window::count(9)).aggregate("counts", build).on_close();
        let firings = keyed().window(Window::tumbling(millis(500))).every_n(5).aggregate("firings", build).all();
        let closed = [tumbling, sliding, sessions, counts]
            .into_iter()
            .zip(0u8..)
            .map(|(closed, kind)| closed.map(move |row| row_of(kind, row, show)));
        let firings = firings.map(move |row| {
            let (start, end) = (row.window.start.millis() * 1000, row.window.end.millis());
            (4, start + row.number as i64, end, row.key, show(row.value))
        });
        closed.fold(firings, tidegate::Stream::concat).write("rows", &rows);
    }
}

/// A program with tumbling windows alone, and these aggregates: for cases that are the same in every kind of windows. It
/// compiles in a fifth of the time.
fn tumbling<A: Aggregate<Sale>>(
    build: fn(Each<Sale>) -> A,
    show: fn(A::Value) -> Shown,
    outputs: &Outputs,
) -> impl Fn(&Flow<'_>, &MemorySource<Sale>) + Send + Sync + 'static {
    let Outputs { rows, read } = outputs.clone();
    move |flow, source| {
        let sales = flow.read("sales", source);
        sales.clone().write("read", &read);
        let windows = sales.key_by(|sale| sale.0).window(Window::tumbling(millis(500)));
        let closed = windows.aggregate("tumbling", build).on_close();
        closed.map(move |row| row_of(0, row, show)).write("rows", &rows);
    }
}

/// A program over these outputs.
type ProgramOf = fn(&Outputs) -> Program;
type Program = Box<dyn Fn(&Flow<'_>, &MemorySource<Sale>) + Send + Sync>;

/// Count, sum and greatest.
type Three = (i64, i128, i64);

fn of_three((count, sum, max): Three) -> Shown {
    (Some(count), Some(sum), Some(max), None, None)
}

/// Count, sum and greatest, without names.
fn unnamed(outputs: &Outputs) -> Program {
    let build = |each: Each<Sale>| (each.count(), each.sum(|sale| sale.1), each.max(|sale| sale.1));
    Box::new(tumbling(build, of_three, outputs))
}

fn three(each: Each<Sale>) -> impl Aggregate<Sale, Value = Three> {
    let (count, sum) = (each.named("count", each.count()), each.named("sum", each.sum(|sale: &Sale| sale.1)));
    (count, sum, each.named("max", each.max(|sale: &Sale| sale.1)))
}

fn first(outputs: &Outputs) -> Program {
    Box::new(program(three, of_three, outputs))
}

fn first_tumbling(outputs: &Outputs) -> Program {
    Box::new(tumbling(three, of_three, outputs))
}

/// The aggregates of [`first`] in another order.
fn reordered(outputs: &Outputs) -> Program {
    let build = |each: Each<Sale>| {
        let (count, sum) = (each.named("count", each.count()), each.named("sum", each.sum(|sale: &Sale| sale.1)));
        (each.named("max", each.max(|sale: &Sale| sale.1)), count, sum)
    };
    Box::new(program(build, |(max, count, sum)| of_three((count, sum, max)), outputs))
}

/// One less, and no tuple.
fn alone(outputs: &Outputs) -> Program {
    let build = |each: Each<Sale>| each.named("sum", each.sum(|sale: &Sale| sale.1));
    Box::new(program(build, |sum| (None, Some(sum), None, None, None), outputs))
}

/// Sum, number of distinct amounts, least and count.
type Four = (i128, i64, Option<i64>, i64);

/// The greatest is gone; the least and the number of distinct amounts are new, and stand among the others.
fn four(each: Each<Sale>) -> impl Aggregate<Sale, Value = Four> {
    let (count, sum) = (each.named("count", each.count()), each.named("sum", each.sum(|sale: &Sale| sale.1)));
    let least = each.named("min", each.if_any(each.min(|sale: &Sale| sale.1)));
    (sum, each.named("distinct", each.count_distinct(|sale: &Sale| sale.1)), least, count)
}

fn of_four((sum, distinct, least, count): Four) -> Shown {
    (Some(count), Some(sum), None, Some(least), Some(distinct))
}

fn extended(outputs: &Outputs) -> Program {
    Box::new(program(four, of_four, outputs))
}

fn extended_tumbling(outputs: &Outputs) -> Program {
    Box::new(tumbling(four, of_four, outputs))
}

/// Returns the outputs of a program that runs once, from the beginning to the end.
fn whole(program: ProgramOf) -> Outputs {
    let outputs = Outputs::default();
    assert_eq!(Kept { disk: CrashingDisk::new() }.live(Life::Rest, program(&outputs)), Ok(Ending::Complete));
    outputs
}

/// Columns that all programs are compared by: those for which `has` is there.
fn columns(rows: Vec<Row>, has: &Shown) -> Vec<Row> {
    let row = |(kind, start, end, key, shown): Row| {
        let (count, sum, max) = (shown.0.filter(|_| has.0.is_some()), shown.1, shown.2.filter(|_| has.2.is_some()));
        (kind, start, end, key, (count, sum, max, None, None))
    };
    let mut rows: Vec<_> = rows.into_iter().map(row).collect();
    rows.sort();
    rows
}

#[test]
fn aggregates_that_stay_go_on_in_any_order_in_every_kind_of_windows() {
    let expected = whole(first).rows.all();
    let outputs = Outputs::default();
    let kept = Kept::by(first(&outputs));
    let all = (Some(0), Some(0), Some(0), None, None);
    let no_greatest = (Some(0), Some(0), None, None, None);
    let programs: [(ProgramOf, Shown); 3] =
        [(reordered, all), (extended, no_greatest), (alone, (None, Some(0), None, None, None))];
    for workers in [1, 3] {
        for (program, has) in programs {
            let (kept, outputs) = (kept.fork(), outputs.fork());
            let shown = outputs.rows.all();
            assert_eq!(kept.live_with(Life::Part, workers, |state| state, program(&outputs)), Ok(Ending::Stopped));
            assert_eq!(kept.live_with(Life::Rest, workers, |state| state, program(&outputs)), Ok(Ending::Complete));
            assert!(shown.len() < expected.len() / 2, "the first life has shown {} rows", shown.len());
            assert_eq!(columns(outputs.rows.all(), &has), columns(expected.clone(), &has), "{workers} workers");
        }
    }
}

/// Returns how often each record is there.
fn multiset(records: Vec<Sale>) -> BTreeMap<Sale, i64> {
    let mut times = BTreeMap::new();
    records.into_iter().for_each(|record| *times.entry(record).or_default() += 1);
    times
}

#[test]
fn an_added_aggregate_has_the_records_that_come_after_the_snapshot() {
    let outputs = Outputs::default();
    let kept = Kept::by(first(&outputs));
    let (before, shown) = (multiset(outputs.read.all()), outputs.rows.all());
    assert!(!before.is_empty());
    assert_eq!(kept.live(Life::Rest, extended(&outputs)), Ok(Ending::Complete));
    let mut later = multiset(outputs.read.all());
    before.iter().for_each(|(record, times)| *later.entry(*record).or_default() -= times);
    let (mut partial, mut without, mut open) = (0, 0, 0);
    for row in multiset_of_rows(outputs.rows.all(), &shown) {
        let (kind, start, end, key, (count, _, _, least, distinct)) = row;
        // Count windows and firings have no records of their own times alone.
        if kind > 2 {
            continue;
        }
        let within = |record: &Sale| record.0 == key && (start..end).contains(&record.2);
        let amounts: Vec<i64> =
            later.iter().filter(|(record, times)| **times > 0 && within(record)).map(|(record, _)| record.1).collect();
        let earlier = before.keys().any(within);
        let mut kinds = amounts.clone();
        kinds.sort_unstable();
        kinds.dedup();
        assert_eq!(least, Some(amounts.iter().min().copied()), "{row:?}");
        assert_eq!(distinct, Some(kinds.len() as i64), "{row:?}");
        assert!(count.unwrap() > 0);
        open += i32::from(earlier);
        partial += i32::from(earlier && !amounts.is_empty());
        without += i32::from(amounts.is_empty());
    }
    assert!(
        partial > 0 && without > 0 && open > 5,
        "{partial} windows are partial, {without} have none, {open} were open"
    );
}

/// Returns the rows that were not shown before.
fn multiset_of_rows(rows: Vec<Row>, shown: &[Row]) -> Vec<Row> {
    rows.into_iter().filter(|row| !shown.contains(row)).collect()
}

#[test]
fn what_is_said_of_aggregates_that_do_not_fit_is_true() {
    // Without names: they have to be named before anything else changes.
    let (outputs, expected) = (Outputs::default(), whole(first_tumbling).rows.all());
    let kept = Kept::by(unnamed(&outputs));
    let advice = "run once with the aggregates of before, in their order, with a name at each (`each.named(\"…\", …)`)";
    refused(
        kept.live(Life::Rest, extended_tumbling(&outputs)),
        &["3 aggregates are stored without names, and the program has 4", advice],
    );
    let more = |each: Each<Sale>| (each.count(), each.sum(|sale: &Sale| sale.1));
    let fewer = tumbling(more, |(count, sum)| (Some(count), Some(sum), None, None, None), &outputs);
    refused(kept.live(Life::Rest, fewer), &["accumulator: stored is (nothing, a sum, i64)", advice]);
    assert_eq!(kept.live(Life::Part, first_tumbling(&outputs)), Ok(Ending::Stopped));
    let copy = (kept.fork(), outputs.fork());
    assert_eq!(kept.live(Life::Rest, extended_tumbling(&outputs)), Ok(Ending::Complete));
    let has = (Some(0), Some(0), None, None, None);
    assert_eq!(columns(outputs.rows.all(), &has), columns(expected.clone(), &has));

    // Names stay; the way back has none.
    let (kept, outputs) = copy;
    let back = kept.fork().live(Life::Rest, unnamed(&outputs.fork()));
    refused(back, &["the stored aggregates are named `count`, `sum`, `max`", "keep the names: write `each.named("]);
    assert_eq!(kept.fork().live(Life::Rest, first_tumbling(&outputs.fork())), Ok(Ending::Complete));

    // What has no value of no records.
    let build = |each: Each<Sale>| {
        let least = each.named("min", each.min(|sale: &Sale| sale.1));
        (each.named("sum", each.sum(|sale: &Sale| sale.1)), least)
    };
    let bare = tumbling(build, |(sum, least)| (None, Some(sum), None, Some(Some(least)), None), &outputs);
    let advice = "write `each.named(\"min\", each.if_any(…))`";
    refused(kept.live(Life::Rest, bare), &["the aggregate `min` is new, and has no value of no records", advice]);
    let build = |each: Each<Sale>| {
        let least = each.named("min", each.if_any(each.min(|sale: &Sale| sale.1)));
        (each.named("sum", each.sum(|sale: &Sale| sale.1)), least)
    };
    let (fork, out) = (kept.fork(), outputs.fork());
    let optional = tumbling(build, |(sum, least)| (None, Some(sum), None, Some(least), None), &out);
    assert_eq!(fork.live(Life::Rest, optional), Ok(Ending::Complete));
    let has = (None, Some(0), None, None, None);
    assert_eq!(columns(out.rows.all(), &has), columns(expected.clone(), &has));

    // The name of another one: it says what it was, or two steps are taken.
    let total = |each: Each<Sale>| each.named("total", each.sum(|sale: &Sale| sale.1));
    let show: fn(i128) -> Shown = |sum| (None, Some(sum), None, None, None);
    let suspect = kept.live(Life::Rest, tumbling(total, show, &outputs));
    refused(
        suspect,
        &[
            "`sum` is stored and gone, and `total` is new and keeps the same",
            "write `.was(\"sum\")`",
            "run once without both",
        ],
    );
    let (fork, out) = (kept.fork(), outputs.fork());
    let was = |each: Each<Sale>| each.named("total", each.sum(|sale: &Sale| sale.1)).was("older").was("sum");
    assert_eq!(fork.live(Life::Part, tumbling(was, show, &out)), Ok(Ending::Stopped));
    assert_eq!(fork.live(Life::Rest, tumbling(was, show, &out)), Ok(Ending::Complete));
    assert_eq!(columns(out.rows.all(), &has), columns(expected, &has));
    let without = |each: Each<Sale>| each.named("count", each.count());
    let out = outputs.fork();
    let counts = tumbling(without, |count| (Some(count), None, None, None, None), &out);
    assert_eq!(kept.live(Life::Part, counts), Ok(Ending::Stopped));
    let again = |each: Each<Sale>| (each.named("count", each.count()), total_of(each));
    let with = tumbling(again, |(count, sum)| (Some(count), Some(sum), None, None, None), &out);
    assert_eq!(kept.live(Life::Rest, with), Ok(Ending::Complete));
}

fn total_of(each: Each<Sale>) -> impl Aggregate<Sale, Value = i128> {
    each.named("total", each.sum(|sale: &Sale| sale.1))
}

#[test]
fn names_that_say_nothing_are_refused() {
    let kept = Kept { disk: CrashingDisk::new() };
    let live = |program: Program| kept.live(Life::Part, program);
    let none = |_: (i64, i64)| (None, None, None, None, None);
    let outputs = Outputs::default();
    let one = |each: Each<Sale>| (each.named("count", each.count()), each.count());
    refused(
        live(Box::new(tumbling(one, none, &outputs))),
        &["1 of 2 aggregates of a tuple have names", "a name of its own"],
    );
    let twice = |each: Each<Sale>| (each.named("count", each.count()), each.named("count", each.count()));
    refused(live(Box::new(tumbling(twice, none, &outputs))), &["two aggregates are, or were, named `count`"]);
    let was = |each: Each<Sale>| (each.named("count", each.count()), each.named("n", each.count()).was("count"));
    refused(live(Box::new(tumbling(was, none, &outputs))), &["two aggregates are, or were, named `count`"]);
    let over = kept.live(Life::Part, |flow, source| {
        let sales = flow.read("sales", source).key_by(|sale| sale.0);
        let _ = sales.over("running", tidegate::stream::Preceding::rows(3), |each| each.named("count", each.count()));
    });
    refused(over, &["aggregates of `over` have no names", "remove `each.named`"]);
    assert!(kept.disk.paths().is_empty());
}

/// Sums, as far as a window has some.
type Sums = [Option<i128>; 4];

/// Sums of two fields change places: only their names tell them apart.
#[test]
fn aggregates_of_one_type_are_told_apart_by_their_names_within_others_too() {
    fn run<A: Aggregate<Sale>>(
        kept: &Kept,
        life: Life,
        build: fn(Each<Sale>) -> A,
        row: fn(A::Value) -> Sums,
        out: &Captured<(i64, u8, Sums)>,
    ) -> Result<Ending, String> {
        let out = out.clone();
        kept.live_with(life, 2, accepted, move |flow, source| {
            let sales = flow.read("sales", source).key_by(|sale| sale.0).window(Window::tumbling(millis(500)));
            let rows = sales.aggregate("sums", build).on_close();
            rows.map(move |closed| (closed.window.end.millis(), closed.key, row(closed.value))).write("rows", &out);
        })
    }
    let first = |each: Each<Sale>| {
        let nested = each.filter(
            |sale: &Sale| sale.1 > 50,
            |each| {
                (each.named("low", each.sum(|sale: &Sale| sale.1)), each.named("high", each.sum(|sale: &Sale| -sale.1)))
            },
        );
        let (amounts, times) = (each.sum(|sale: &Sale| sale.1), each.sum(|sale: &Sale| sale.2));
        (each.named("some", nested), each.named("amounts", amounts), each.named("times", times))
    };
    let second = |each: Each<Sale>| {
        let nested = each.filter(
            |sale: &Sale| sale.1 > 50,
            |each| {
                (each.named("high", each.sum(|sale: &Sale| -sale.1)), each.named("low", each.sum(|sale: &Sale| sale.1)))
            },
        );
        let (amounts, times) = (each.sum(|sale: &Sale| sale.1), each.sum(|sale: &Sale| sale.2));
        (each.named("times", times), each.named("amounts", amounts), each.named("some", nested))
    };
    let row_first = |(some, amounts, times): (Option<(i128, i128)>, i128, i128)| {
        [Some(amounts), Some(times), some.map(|some| some.0), some.map(|some| some.1)]
    };
    let row_second = |(times, amounts, some): (i128, i128, Option<(i128, i128)>)| {
        [Some(amounts), Some(times), some.map(|some| some.1), some.map(|some| some.0)]
    };
    let (out, expected) = (Captured::new(), Captured::new());
    let fresh = Kept { disk: CrashingDisk::new() };
    assert_eq!(run(&fresh, Life::Rest, first, row_first, &expected), Ok(Ending::Complete));
    let kept = Kept { disk: CrashingDisk::new() };
    assert_eq!(run(&kept, Life::Part, first, row_first, &out), Ok(Ending::Stopped));
    assert_eq!(run(&kept, Life::Rest, second, row_second, &out), Ok(Ending::Complete));
    assert_eq!(out.all(), expected.all());
}
