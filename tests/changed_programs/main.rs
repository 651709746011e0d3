//! Programs that change take their state along: steps, sources and outputs that have another name, and steps that are
//! gone. In each case a program reads a part and is stopped, a changed one goes on, and their results together are those
//! of the changed program over everything. What cannot go on is refused, and what the refusal advises is tried too.
#![expect(clippy::unwrap_used, reason = "a panic fails the test")]

mod advice;
mod aggregates;
#[path = "../common/directories.rs"]
mod directories;
mod fixtures;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tidegate::durable::disk::Disk;
use tidegate::job::{Ending, StopHandle};
use tidegate::source::memory::MemorySource;
use tidegate::stream::aggregate::{Accumulator, Each};
use tidegate::testing::{Captured, CrashingDisk, TestRun};
use tidegate::{Flow, State, Window};

/// A record: key, amount, event time.
type Sale = (u8, i64, i64);

const COUNT: usize = 360;

fn sales() -> Vec<Vec<Sale>> {
    let mut random = fastrand::Rng::with_seed(11);
    let mut partitions = vec![Vec::new(), Vec::new()];
    for number in 0..COUNT as i64 {
        partitions[random.usize(0..2)].push((random.u8(0..4), random.i64(0..100), number * 10 - random.i64(0..30)));
    }
    partitions
}

/// Extent of a life of a program.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Life {
    /// Stops when about an eighth of the records is read.
    Part,
    /// Runs to the end.
    Rest,
}

/// A state in memory.
struct Kept {
    disk: CrashingDisk,
}

impl Kept {
    /// Runs a program on a new state, and stops it after a part.
    fn by(query: impl Fn(&Flow<'_>, &MemorySource<Sale>) + Send + Sync + 'static) -> Kept {
        let kept = Kept { disk: CrashingDisk::new() };
        kept.disk.put(Path::new("out/note"), b"");
        assert_eq!(kept.live(Life::Part, query), Ok(Ending::Stopped));
        kept
    }

    fn live(
        &self,
        life: Life,
        query: impl Fn(&Flow<'_>, &MemorySource<Sale>) + Send + Sync + 'static,
    ) -> Result<Ending, String> {
        self.live_with(life, 2, |state| state, query)
    }

    fn live_with(
        &self,
        life: Life,
        workers: usize,
        options: impl FnOnce(State) -> State,
        query: impl Fn(&Flow<'_>, &MemorySource<Sale>) + Send + Sync + 'static,
    ) -> Result<Ending, String> {
        let (stop, read) = (StopHandle::default(), AtomicUsize::new(0));
        let stops = stop.clone();
        let source = MemorySource::new(sales(), move |sale: &Sale| {
            if life == Life::Part && read.fetch_add(1, Ordering::Relaxed) == COUNT / 8 {
                stops.stop();
            }
            sale.2
        });
        let source = source.out_of_order(Duration::from_millis(40));
        let disk: Arc<dyn Disk> = self.disk.shared();
        let run = TestRun::new().workers(workers).seed(5).in_flight(1).state(&disk, "state").stop_by(&stop);
        let run = run.state_options(options).run(move |flow| query(flow, &source));
        run.map(|outcome| outcome.report.ending).map_err(|error| error.to_string())
    }

    /// An independent copy.
    fn fork(&self) -> Kept {
        Kept { disk: self.disk.survivors(0) }
    }
}

/// Names of all that has one in a state.
#[derive(Clone, Copy)]
struct Names {
    source: &'static str,
    other_source: &'static str,
    table: &'static str,
    sums: &'static str,
    latest: &'static str,
    distinct: &'static str,
    sessions: &'static str,
    output: &'static str,
}

const OLD: Names = Names {
    source: "sales",
    other_source: "more sales",
    table: "rates",
    sums: "totals",
    latest: "last",
    distinct: "once",
    sessions: "visits",
    output: "sums",
};

/// What was a step's name becomes a source's, and an output's a step's: names of different kinds are independent.
const NEW: Names = Names {
    source: "totals",
    other_source: "further sales",
    table: "prices",
    sums: "sales",
    latest: "latest",
    distinct: "distinct",
    sessions: "sums",
    output: "visits",
};

/// The outputs of [`query`].
#[derive(Clone, Default)]
struct Outputs {
    sums: Captured<(i64, u8, i64)>,
    latest: Captured<(u8, i64)>,
    prices: Captured<(u8, i64)>,
    distinct: Captured<Sale>,
    sessions: Captured<(i64, u8, i64)>,
}

impl Outputs {
    fn fork(&self) -> Outputs {
        Outputs {
            sums: self.sums.fork(),
            latest: self.latest.fork(),
            prices: self.prices.fork(),
            distinct: self.distinct.fork(),
            sessions: self.sessions.fork(),
        }
    }

    /// The query with every kind of step that keeps rows, under these names; with `was`, they say what they were.
    fn query(
        &self,
        names: Names,
        was: Option<Names>,
    ) -> impl Fn(&Flow<'_>, &MemorySource<Sale>) + Send + Sync + 'static {
        let own = self.clone();
        move |flow, source| {
            let rates = MemorySource::new(vec![(0..40u8).map(|n| (n % 4, Some(i64::from(n)))).collect()], |_| 0);
            let (mut sales, mut more) = (flow.read_first(names.source, source), flow.read(names.other_source, source));
            let mut prices = flow.table(names.table, &rates);
            if let Some(was) = was {
                (sales, more, prices) = (sales.was(was.source), more.was(was.other_source), prices.was(was.table));
                flow.output_was(names.output, was.output);
            }
            let all = sales.clone().concat(more);
            let sums = all.clone().key_by(|sale| sale.0).window(Window::sliding(millis(200), millis(100)));
            let mut sums = sums.aggregate(names.sums, |each| each.sum(|sale: &Sale| sale.1));
            let mut latest = sales.clone().key_by(|sale| sale.0).last_by_key_with(names.latest, |sale| Some(sale.1));
            let mut distinct = sales.clone().key_by(|sale| sale.0).dedup_within(names.distinct, millis(35));
            let visits = all.key_by(|sale| sale.0).window(Window::session(millis(25)));
            let mut visits = visits.aggregate(names.sessions, Each::count).on_close();
            if let Some(was) = was {
                (sums, latest) = (sums.was(was.sums), latest.was(was.latest));
                (distinct, visits) = (distinct.was(was.distinct), visits.was(was.sessions));
            }
            let sums = sums.on_close().map(|row| (row.window.end.millis(), row.key, row.value as i64));
            sums.write(names.output, &own.sums);
            latest.write("latest output", &own.latest);
            prices.write("prices output", &own.prices);
            distinct.write("distinct output", &own.distinct);
            visits.map(|row| (row.window.end.millis(), row.key, row.value)).write("sessions output", &own.sessions);
        }
    }

    fn all(&self) -> [String; 5] {
        let Outputs { sums, latest, prices, distinct, sessions } = self;
        let (sums, sessions) = (format!("{:?}", sums.all()), format!("{:?}", sessions.all()));
        [sums, format!("{:?}", latest.all()), format!("{:?}", prices.all()), format!("{:?}", distinct.all()), sessions]
    }
}

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// Returns the results of a program that runs once, from the beginning to the end.
fn whole() -> Outputs {
    let (outputs, kept) = (Outputs::default(), Kept { disk: CrashingDisk::new() });
    assert_eq!(kept.live(Life::Rest, outputs.query(NEW, None)), Ok(Ending::Complete));
    outputs
}

#[test]
fn all_that_has_another_name_continues_what_it_was() {
    let expected = whole();
    for workers in [1, 3] {
        let outputs = Outputs::default();
        let kept = Kept::by(outputs.query(OLD, None));
        // Without a word of it, nothing goes on, and nothing is lost.
        let refused = kept.fork().live(Life::Rest, outputs.fork().query(NEW, None)).unwrap_err();
        assert!(refused.contains("an output of the state is missing from the query (output sums)"), "{refused}");
        assert!(refused.contains("`flow.output_was(…, \"sums\")`"), "{refused}");
        let ending = kept.live_with(Life::Rest, workers, |state| state, outputs.query(NEW, Some(OLD)));
        assert_eq!(ending, Ok(Ending::Complete));
        assert_eq!(outputs.all(), expected.all(), "{workers} workers");
        // The state has ended under the new names.
        assert_eq!(kept.live(Life::Rest, outputs.query(NEW, None)), Ok(Ending::WasComplete));
    }
}

#[test]
fn earlier_names_may_stay_and_the_old_program_is_refused_once_the_new_one_has_begun() {
    let (expected, outputs) = (whole(), Outputs::default());
    let kept = Kept::by(outputs.query(OLD, None));
    assert_eq!(kept.live(Life::Part, outputs.query(NEW, Some(OLD))), Ok(Ending::Stopped));
    for (names, earlier) in [(OLD, None), (OLD, Some(NEW))] {
        let ending = kept.fork().live(Life::Rest, outputs.fork().query(names, earlier));
        match earlier {
            None => assert!(ending.unwrap_err().contains("(output visits)")),
            // One may go back, too, in the same way.
            Some(_) => assert_eq!(ending, Ok(Ending::Complete)),
        }
    }
    assert_eq!(kept.live(Life::Rest, outputs.query(NEW, Some(OLD))), Ok(Ending::Complete));
    assert_eq!(outputs.all(), expected.all());
}

/// Runs one step under a name, and others; returns nothing of interest but the ending.
fn sums(
    steps: &'static [(&'static str, &'static [&'static str])],
) -> impl Fn(&Flow<'_>, &MemorySource<Sale>) + Send + Sync {
    move |flow, source| {
        let sales = flow.read("sales", source);
        for (name, earlier) in steps {
            let keyed = sales.clone().key_by(|sale| sale.0).window(Window::tumbling(millis(100)));
            let sums = keyed.aggregate(name, |each| each.sum(|sale: &Sale| sale.1));
            earlier.iter().fold(sums, |sums, old| sums.was(old));
        }
    }
}

#[track_caller]
fn refused(ending: Result<Ending, String>, parts: &[&str]) {
    let error = ending.unwrap_err();
    for part in parts {
        assert!(error.contains(part), "`{part}` is not in: {error}");
    }
}

#[test]
fn names_that_contradict_each_other_are_refused_before_anything_is_opened() {
    let kept = Kept { disk: CrashingDisk::new() };
    let live = |query| kept.live(Life::Part, query);
    refused(
        live(sums(&[("a", &["x"]), ("b", &["x"])])),
        &["two steps of the query are said to have been `x`: `a` and `b`"],
    );
    refused(
        live(sums(&[("a", &["b"]), ("b", &[])])),
        &["the step `a` is said to have been `b`, and the query has a step `b`"],
    );
    let behind_nothing = kept.live(Life::Part, |flow, source| {
        let _ = flow.read("sales", source).map(|sale| sale.1).was("old");
    });
    refused(
        behind_nothing,
        &["`.was(\"old\")` is behind nothing that has a name in a state", "put it directly behind"],
    );
    let no_output = kept.live(Life::Part, |flow, source| {
        flow.read("sales", source).write("out", &Captured::new());
        flow.output_was("other", "old");
    });
    refused(no_output, &["the query has no output `other`, which is said to have been `old`"]);
    let both = kept.live_with(Life::Part, 1, |state| state.drop_step("x"), sums(&[("a", &["x"])]));
    refused(both, &["the step `x` is dropped, and `a` is said to continue it"]);
    let there = kept.live_with(Life::Part, 1, |state| state.drop_step("a"), sums(&[("a", &[])]));
    refused(there, &["the step `a` is dropped, and the query has it"]);
    assert!(kept.disk.paths().is_empty(), "{:?}", kept.disk.paths());
}

#[test]
fn a_step_that_is_gone_is_refused_until_it_is_continued_or_dropped() {
    let kept = Kept::by(sums(&[("a", &[]), ("b", &[])]));
    let gone = ["the state has rows of a step that the query does not have (step b)", "`.was(\"b\")`", "--drop-step"];
    refused(kept.live(Life::Rest, sums(&[("a", &[])])), &gone);
    // What has rows under both names is neither's; the advice is to drop one of them.
    let both = "it is said to have been `b`, and the state has rows of `a` and of `b`";
    refused(
        kept.live(Life::Rest, sums(&[("a", &["b"])])),
        &[both, "remove `.was(\"b\")`", "`State::drop_step(\"b\")`"],
    );
    // Each advice is followed: the name back, another name, and the drop, which may stay.
    assert_eq!(kept.fork().live(Life::Rest, sums(&[("a", &[]), ("b", &[])])), Ok(Ending::Complete));
    assert_eq!(kept.fork().live(Life::Rest, sums(&[("a", &[]), ("c", &["b"])])), Ok(Ending::Complete));
    let dropped = |life| kept.live_with(life, 2, |state| state.drop_step("b").drop_step("never"), sums(&[("a", &[])]));
    assert_eq!(dropped(Life::Part), Ok(Ending::Stopped));
    assert!(
        !kept.disk.paths().iter().any(|path| path.display().to_string().contains("segments/b-")),
        "{:?}",
        kept.disk.paths()
    );
    // The rows are gone: a step of that name begins anew.
    assert_eq!(kept.fork().live(Life::Rest, sums(&[("a", &[]), ("b", &[])])), Ok(Ending::Complete));
    assert_eq!(dropped(Life::Rest), Ok(Ending::Complete));
}

#[test]
fn a_source_that_has_another_name_goes_on_and_one_that_was_read_under_both_is_refused() {
    let query = |names: &'static [(&'static str, &'static [&'static str])], out: &Captured<Sale>| {
        let out = out.clone();
        move |flow: &Flow<'_>, source: &MemorySource<Sale>| {
            let read =
                names.iter().map(|(name, earlier)| earlier.iter().fold(flow.read(name, source), |s, old| s.was(old)));
            read.reduce(tidegate::Stream::concat).unwrap().write("out", &out);
        }
    };
    let out = Captured::new();
    let kept = Kept::by(query(&[("a", &[]), ("b", &[])], &out));
    let both = kept.live(Life::Rest, query(&[("b", &["a"])], &out));
    refused(
        both,
        &["under its old and its new name (source b)", "remove `.was(\"a\")`, and pass --accept-changed-sources"],
    );
    refused(kept.live(Life::Rest, query(&[("a", &[]), ("c", &[])], &out)), &["(source b)", "`.was(\"b\")`"]);
    assert_eq!(kept.live(Life::Rest, query(&[("c", &["b"]), ("a", &["unknown"])], &out)), Ok(Ending::Complete));
    let mut read = BTreeMap::new();
    out.all().into_iter().for_each(|sale| *read.entry(sale).or_insert(0) += 1);
    assert_eq!(read.values().sum::<usize>(), 2 * COUNT);
}

/// A new step sees the records that are read from then on: of windows that begin later its results are whole, and it adds
/// none of records that were read before.
#[test]
fn a_new_step_begins_with_the_records_that_are_read_from_then_on() {
    let (new, all, read) = (Captured::new(), Captured::new(), Captured::new());
    let query = |with_new: bool, old: &Captured<_>, new: &Captured<(i64, u8, i64)>, read: &Captured<Sale>| {
        let (old, new, read) = (old.clone(), new.clone(), read.clone());
        move |flow: &Flow<'_>, source: &MemorySource<Sale>| {
            let windows = flow.read("sales", source).key_by(|sale| sale.0).window(Window::tumbling(millis(100)));
            let more = flow.read("more", source);
            more.clone().write("read", &read);
            let sales = more.key_by(|sale| sale.0).window(Window::tumbling(millis(100)));
            windows.aggregate("old", Each::count).on_close().write("old", &old);
            if with_new {
                let counts = sales.aggregate("new", Each::count).on_close();
                counts.map(|row| (row.window.end.millis(), row.key, row.value)).write("new", &new);
            }
        }
    };
    let old = Captured::new();
    let kept = Kept::by(query(false, &old, &new, &read));
    // The partitions may have come to different times.
    let last = read.all().iter().map(|sale| sale.2).max().unwrap();
    assert_eq!(kept.live(Life::Rest, query(true, &old, &new, &read)), Ok(Ending::Complete));
    let fresh = Kept { disk: CrashingDisk::new() };
    assert_eq!(fresh.live(Life::Rest, query(true, &Captured::new(), &all, &Captured::new())), Ok(Ending::Complete));
    let rows = |out: &Captured<(i64, u8, i64)>| {
        out.all().into_iter().map(|(end, key, count)| ((end, key), count)).collect::<BTreeMap<_, _>>()
    };
    let (new, all) = (rows(&new), rows(&all));
    assert!(new.keys().next().unwrap().0 > 100 && new.len() > 20 && new.len() < all.len(), "{new:?}");
    for (window, count) in &new {
        assert!(*count <= all[window]);
    }
    // The first windows are partial: records of them had been read before.
    let is_later = |((end, _), _): &(&(i64, u8), &i64)| *end - 100 > last;
    let whole: Vec<_> = all.iter().filter(is_later).collect();
    assert!(whole.len() > 20, "{whole:?}");
    assert_eq!(new.iter().filter(is_later).collect::<Vec<_>>(), whole);
}

/// The outputs of [`program!`]: windows, sessions, count windows, state by key, and a table.
#[derive(Clone, Default)]
struct TypedOutputs {
    windows: Captured<(i64, u64, i64)>,
    sessions: Captured<(i64, u64, i64)>,
    counts: Captured<(i64, u64, i64)>,
    states: Captured<(u64, i64)>,
    table: Captured<(u64, i64)>,
}

impl TypedOutputs {
    fn all(&self) -> [Vec<(i64, u64, i64)>; 3] {
        [self.windows.all(), self.sessions.all(), self.counts.all()]
    }

    fn others(&self) -> [Vec<(u64, i64)>; 2] {
        [self.states.all(), self.table.all()]
    }

    fn fork(&self) -> Self {
        TypedOutputs {
            windows: self.windows.fork(),
            sessions: self.sessions.fork(),
            counts: self.counts.fork(),
            states: self.states.fork(),
            table: self.table.fork(),
        }
    }
}

/// Declares a version of a program that keeps values of its own types everywhere: a module with `Key`, `Tally`, `Seen` and
/// `Price`. The words behind `migrate` follow each step.
macro_rules! program {
    (
        $name:ident, key $key:expr, number $number:expr, tally $tally:expr, cents $cents:expr,
        seen $seen:expr, price $price:expr,
        migrate ($($tallies:tt)*) ($($seens:tt)*) ($($prices:tt)*),
        $($item:item)*
    ) => {
        mod $name {
            use serde::{Deserialize, Serialize};
            use tidegate::source::memory::MemorySource;
            use tidegate::{Flow, Window};

            use super::{Sale, TypedOutputs, millis};

            $( #[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)] $item )*

            pub(super) fn query(own: &TypedOutputs) -> impl Fn(&Flow<'_>, &MemorySource<Sale>) + Send + Sync + 'static {
                let own = own.clone();
                move |flow, source| {
                    let (key, number): (fn(&Sale) -> Key, fn(&Key) -> u64) = ($key, $number);
                    let (tally, cents): (fn(&Sale) -> Tally, fn(&Tally) -> i64) = ($tally, $cents);
                    let seen: fn(Option<Seen>, i64) -> (Seen, i64) = $seen;
                    let price: (fn(&Sale) -> Price, fn(&Price) -> i64) = $price;
                    let sales = flow.read("sales", source);
                    let keyed = || sales.clone().key_by(key);
                    macro_rules! windows {
                        ($step:literal, $window:expr, $out:expr) => {
                            let windows = keyed().window($window).aggregate($step, |each| each.merge(tally)) $($tallies)*;
                            let rows = windows.on_close();
                            rows.map(move |row| (row.window.end.millis(), number(&row.key), cents(&row.value))).write($step, $out);
                        };
                    }
                    windows!("windows", Window::sliding(millis(200), millis(100)), &own.windows);
                    windows!("sessions", Window::session(millis(25)), &own.sessions);
                    windows!("counts", Window::count(7), &own.counts);
                    let states = keyed().keyed_state::<Seen, (u64, i64)>(
                        "states",
                        move |at, kept, sale| {
                            let (state, shown) = seen(kept.take(), sale.1);
                            *kept = Some(state);
                            at.emit((number(at.key()), shown));
                        },
                        |_, _| {},
                    ) $($seens)*;
                    states.emitted().write("states", &own.states);
                    let table = keyed().last_by_key_with("table", move |sale| Some(price.0(&sale))) $($prices)*;
                    table.map(move |(key, value)| (number(&key), price.1(&value))).write("table", &own.table);
                }
            }
        }
    };
}

program! {
    first,
    key |sale| Key { id: sale.0, shop: "s".into() }, number |key| key.id.into(),
    tally |sale| Tally { cents: sale.1 as i32, best: sale.1 as i16, note: 1 }, cents |tally| i64::from(tally.cents) * 1000 + i64::from(tally.best),
    seen |state, cents| { let seen = Seen { sum: state.map_or(0, |seen| seen.sum) + cents as i32 }; let shown = seen.sum.into(); (seen, shown) },
    price (|sale| Price(sale.1 as u16), |price| price.0.into()),
    migrate () () (),
    pub(super) struct Key { id: u8, shop: String }
    pub(super) struct Tally { pub(super) cents: i32, pub(super) best: i16, pub(super) note: u8 }
    pub(super) struct Seen { pub(super) sum: i32 }
    pub(super) struct Price(pub(super) u16);
}

impl Accumulator for first::Tally {
    fn merge(&mut self, other: &Self) {
        (self.cents, self.best) = (self.cents + other.cents, self.best.max(other.best));
    }
}

// Wider integers, another order of fields, a name with an alias, options, a field more and one less.
program! {
    second,
    key |sale| Key { shop: Some("s".into()), id: sale.0.into() }, number |key| key.id,
    tally |sale| Tally { largest: sale.1, cents: sale.1, more: Some(String::new()).filter(|_| false) }, cents |tally| tally.cents * 1000 + tally.largest,
    seen |state, cents| { let seen = Seen { sum: Some(state.and_then(|seen| seen.sum).unwrap_or(0) + cents), times: 0 }; let shown = seen.sum.unwrap_or(0); (seen, shown) },
    price (|sale| Price(sale.1), |price| price.0),
    migrate () () (),
    pub(super) struct Key { shop: Option<String>, id: u64 }
    pub(super) struct Tally { #[serde(alias = "best")] pub(super) largest: i64, pub(super) cents: i64, pub(super) more: Option<String> }
    pub(super) struct Seen { pub(super) sum: Option<i64>, #[serde(default)] pub(super) times: u64 }
    pub(super) struct Price(pub(super) i64);
}

impl Accumulator for second::Tally {
    fn merge(&mut self, other: &Self) {
        (self.cents, self.largest) = (self.cents + other.cents, self.largest.max(other.largest));
    }
}

// What serde cannot describe: another unit, and text instead of numbers.
program! {
    third,
    key |sale| Key { id: sale.0, shop: "s".into() }, number |key| key.id.into(),
    tally |sale| Tally { mills: sale.1 * 10, best: sale.1.to_string() }, cents |tally| tally.mills * 100 + tally.best.parse::<i64>().unwrap(),
    seen |state, cents| { let sum = state.map_or(0, |seen| seen.text.parse::<i64>().unwrap()) + cents; (Seen { text: sum.to_string() }, sum) },
    price (|sale| Price(sale.1.to_string()), |price| price.0.parse().unwrap()),
    migrate
        (.migrate(|old: super::first::Tally| Tally { mills: i64::from(old.cents) * 10, best: old.best.to_string() }))
        (.migrate(|old: super::first::Seen| Seen { text: old.sum.to_string() }))
        (.migrate(|old: super::first::Price| Price(old.0.to_string()))),
    pub(super) struct Key { id: u8, shop: String }
    pub(super) struct Tally { pub(super) mills: i64, pub(super) best: String }
    pub(super) struct Seen { pub(super) text: String }
    pub(super) struct Price(pub(super) String);
}

impl Accumulator for third::Tally {
    fn merge(&mut self, other: &Self) {
        self.mills += other.mills;
        if other.best.parse::<i64>().unwrap() > self.best.parse::<i64>().unwrap() {
            self.best.clone_from(&other.best);
        }
    }
}

/// The table is written as a collection: the changed query has to be accepted.
fn accepted(state: State) -> State {
    state.accept_changed_query(true)
}

#[test]
fn rows_of_changed_types_are_converted_for_every_kind_of_step() {
    let (expected, fresh) = (TypedOutputs::default(), Kept { disk: CrashingDisk::new() });
    assert_eq!(fresh.live(Life::Rest, first::query(&expected)), Ok(Ending::Complete));
    for workers in [1, 3] {
        let by_shape = TypedOutputs::default();
        let kept = Kept::by(first::query(&by_shape));
        let (by_hand, copy) = (by_shape.fork(), kept.fork());
        assert_eq!(kept.live_with(Life::Part, workers, accepted, second::query(&by_shape)), Ok(Ending::Stopped));
        // The state has the new types alone now: the old program would lose what is wider, and names are others.
        let back = kept.fork().live_with(Life::Rest, 2, accepted, first::query(&by_shape.fork()));
        refused(
            back,
            &["the state has rows that do not fit the query (step `", "key.", "convert with `.migrate::<Old>(…)`"],
        );
        assert_eq!(kept.live_with(Life::Rest, workers, accepted, second::query(&by_shape)), Ok(Ending::Complete));
        assert_eq!((by_shape.all(), by_shape.others()), (expected.all(), expected.others()), "{workers} workers");

        assert_eq!(copy.live_with(Life::Part, workers, accepted, third::query(&by_hand)), Ok(Ending::Stopped));
        assert_eq!(copy.live_with(Life::Rest, workers, accepted, third::query(&by_hand)), Ok(Ending::Complete));
        assert_eq!((by_hand.all(), by_hand.others()), (expected.all(), expected.others()), "{workers} workers");
    }
}

/// The first life of a changed program crashes at any of its operations on the disk; then it goes on.
#[test]
fn a_crash_amid_a_migration_loses_nothing() {
    let (expected, fresh) = (TypedOutputs::default(), Kept { disk: CrashingDisk::new() });
    assert_eq!(fresh.live(Life::Rest, first::query(&expected)), Ok(Ending::Complete));
    let before = TypedOutputs::default();
    let kept = Kept::by(first::query(&before));
    let mut crashes = 0;
    for act in (0..120).step_by(7) {
        let (outputs, copy) = (before.fork(), kept.fork());
        copy.disk.crash_at(act);
        if copy.live_with(Life::Part, 2, accepted, second::query(&outputs)).is_ok() {
            break;
        }
        crashes += 1;
        let after = Kept { disk: copy.disk.survivors(act as u64) };
        let ending = after.live_with(Life::Rest, 1, accepted, second::query(&outputs));
        assert_eq!(ending, Ok(Ending::Complete), "a crash at operation {act}");
        assert_eq!(
            (outputs.all(), outputs.others()),
            (expected.all(), expected.others()),
            "a crash at operation {act}"
        );
    }
    assert!(crashes > 5, "{crashes}");
}

/// The advice of each refusal is followed.
#[test]
fn what_a_refusal_advises_is_accepted() {
    let kept = Kept::by(first::query(&TypedOutputs::default()));
    // Rows that do not fit: another name for the steps, and a drop of the old rows.
    let narrow = |name: &'static str| {
        move |flow: &Flow<'_>, source: &MemorySource<Sale>| {
            let sales = flow.read("sales", source).key_by(|sale| sale.0).window(Window::tumbling(millis(100)));
            let _ = sales.aggregate(name, Each::count);
        }
    };
    let drop_all =
        |state: State| ["sessions", "counts", "states", "table"].iter().fold(accepted(state), |s, n| s.drop_step(n));
    let outputs_too = |state: State| {
        let names = ["windows", "sessions", "counts", "states", "table"];
        names.iter().fold(drop_all(state), |state, name| state.drop_output(name))
    };
    refused(kept.live_with(Life::Rest, 1, drop_all, narrow("windows")), &["(output counts)", "--drop-output"]);
    let types = kept.live_with(Life::Rest, 1, outputs_too, narrow("windows"));
    refused(types, &["do not fit the query (step `windows`)", "give the step another name and drop the rows"]);
    let fork = kept.fork();
    let ending = fork.live_with(Life::Rest, 1, |state| outputs_too(state).drop_step("windows"), narrow("counted"));
    assert_eq!(ending, Ok(Ending::Complete));

    // Rows of a collection that a changed query may not retract: another output, and a drop of the old one.
    let query = |kind: &'static str, out: &Captured<(u8, i64)>, step: &'static str| {
        let out = out.clone();
        move |flow: &Flow<'_>, source: &MemorySource<Sale>| {
            let table = flow.read("sales", source).key_by(|sale| sale.0).last_by_key(step);
            table.map(|(key, sale)| (key, sale.1)).write(kind, &out);
        }
    };
    let (old, new) = (Captured::new(), Captured::new());
    let kept = Kept::by(query("old", &old, "table"));
    let renamed = |out: &'static str, captured: &Captured<(u8, i64)>| {
        let query = query(out, captured, "latest");
        move |flow: &Flow<'_>, source: &MemorySource<Sale>| {
            query(flow, source);
            let extra = flow.read("more", source).key_by(|sale| sale.0).window(Window::tumbling(millis(100)));
            let _ = extra.aggregate("extra", Each::count);
        }
    };
    let sources = |state: State| state.accept_changed_sources(true).drop_step("table");
    let retract = kept.live_with(Life::Rest, 1, sources, renamed("old", &old));
    refused(
        retract,
        &["the output old has rows that the changed query may not retract", "`State::drop_output(\"old\")`"],
    );
    let ending = kept.live_with(Life::Rest, 1, |state| sources(state).drop_output("old"), renamed("new", &new));
    assert_eq!(ending, Ok(Ending::Complete));
    let fresh = Kept { disk: CrashingDisk::new() };
    let all = Captured::new();
    assert_eq!(fresh.live(Life::Rest, query("all", &all, "table")), Ok(Ending::Complete));
    // The table begins anew with the records that are read from then on: its last rows are those of all.
    assert_eq!(new.all(), all.all());
}

/// Epochs that are to be replayed stop a changed query; a clean stop of the old one, or the flag, lets it go on.
#[test]
fn advice_on_replays_is_followed() {
    let (old, new): (&[_], &[_]) = (&[("a", &[] as &[&str])], &[("a", &[] as &[&str]), ("b", &[])]);
    let crashed = (60..400).step_by(9).find_map(|act| {
        let kept = Kept { disk: CrashingDisk::new() };
        kept.disk.crash_at(act);
        let ended = kept.live(Life::Rest, sums(old));
        let survived = Kept { disk: kept.disk.after_kill() };
        let error = survived.fork().live(Life::Rest, sums(new)).err()?;
        (ended.is_err() && error.contains("epochs are to be replayed")).then_some((survived, error))
    });
    let (kept, error) = crashed.expect("a crash leaves epochs to be replayed");
    refused(Err(error), &["stop the old one cleanly first, or pass --accept-changed-query"]);
    assert_eq!(kept.fork().live_with(Life::Rest, 2, accepted, sums(new)), Ok(Ending::Complete));
    assert_eq!(kept.live(Life::Part, sums(old)), Ok(Ending::Stopped));
    assert_eq!(kept.live(Life::Rest, sums(new)), Ok(Ending::Complete));
}

/// A step with rows under its old and its new name.
#[test]
fn advice_on_steps_under_two_names_is_followed() {
    let kept = Kept::by(sums(&[("a", &[]), ("b", &[])]));
    let both = kept.live(Life::Rest, sums(&[("a", &["b"])]));
    refused(
        both,
        &["remove `.was(\"b\")`, and drop the rows of `b`", "or give the step a name that the state does not have"],
    );
    let dropped = kept.fork().live_with(Life::Rest, 2, |state| state.drop_step("b"), sums(&[("a", &[])]));
    assert_eq!(dropped, Ok(Ending::Complete));
    // Under a third name it continues `b`, and the rows of `a` are refused in turn.
    let third = kept.fork().live(Life::Rest, sums(&[("c", &["b"])]));
    refused(third, &["rows of a step that the query does not have (step a)", "`State::drop_step(\"a\")`"]);
    let dropped = kept.live_with(Life::Rest, 2, |state| state.drop_step("a"), sums(&[("c", &["b"])]));
    assert_eq!(dropped, Ok(Ending::Complete));
}
