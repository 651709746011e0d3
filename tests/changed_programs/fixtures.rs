//! Twelve changes of a program, each with a state on disk that the program of before has written: the changed program
//! opens it, and its results are those of a program that was never changed.
//!
//! `tests/fixtures/state-changes` has the state of [`Change::None`], its results so far and its input so far. After an
//! intended change of a format it is kept, and a second one is written beside it. To write one:
//!
//! ```text
//! unshare --uts sh -c 'hostname fixture; TIDEGATE_WRITE_FIXTURE=1 cargo test --test changed_programs go_on_through'
//! ```

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tidegate::job::Ending;
use tidegate::source::{Options, ndjson};
use tidegate::stream::aggregate::{Accumulator, Aggregate, Each, Merge};
use tidegate::stream::{Aggregated, Stateful};
use tidegate::{Closed, Collection, Flow, Job, State, Stream, Window, csv};

use super::directories::copy;
use super::millis;

/// A record of the file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(super) struct Sale {
    key: u8,
    amount: i64,
    at_ms: i64,
}

const COUNT: usize = 90;

/// A change of the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    None,
    AddedField,
    RemovedField,
    WidenedIntegers,
    RenamedField,
    RenamedStep,
    RenamedSource,
    Migrated,
    DroppedStep,
    AddedAggregate,
    RemovedAggregate,
    ReorderedAggregates,
    AddedStep,
}

/// The changes, and what `tidegate snapshot check` says of each.
const CHANGES: [(Change, &str); 12] = [
    (Change::AddedField, "step tallies: its rows are written anew: accumulator.best is new, and gets its default"),
    (Change::RemovedField, "step seen: its rows are written anew: value.note is dropped"),
    (Change::WidenedIntegers, "accumulator.cents is i64, was i32"),
    (Change::RenamedField, "step latest: its rows are written anew: value.minor is what cents was"),
    (Change::RenamedStep, "step sums: would continue what a state has of totals"),
    (Change::RenamedSource, "step totals: goes on"),
    (Change::Migrated, "step tallies: its rows are written anew: rows are converted by `.migrate`"),
    (Change::DroppedStep, "step extra: its rows are dropped, if there are any"),
    (
        Change::AddedAggregate,
        "step totals: its rows are written anew: the aggregate `least` is new, and has the records that come after the \
         snapshot: it is partial in windows that had begun",
    ),
    (Change::RemovedAggregate, "step totals: its rows are written anew: the aggregate `sum` is dropped"),
    (Change::ReorderedAggregates, "step totals: its rows are written anew: the aggregates have another order"),
    (Change::AddedStep, "step added: is new, and begins with the records that are read from then on"),
];

/// The types that a version of the program keeps.
trait Version: 'static {
    type Key: tidegate::Record + Serialize + DeserializeOwned;
    type Tally: Accumulator + Default;

    fn key(sale: &Sale) -> Self::Key;
    fn number(key: &Self::Key) -> u64;
    fn tally(sale: &Sale) -> Self::Tally;
    fn cents(tally: &Self::Tally) -> i64;

    fn windows(made: Tallies<'_, Self>) -> Tallies<'_, Self> {
        made
    }

    fn seen(made: Seen<'_, Self>) -> Seen<'_, Self> {
        made
    }

    fn latest(made: Latest<'_, Self>) -> Latest<'_, Self> {
        made
    }
}

type Tallies<'f, V> = Aggregated<'f, <V as Version>::Key, Sale, Merge<fn(&Sale) -> <V as Version>::Tally>>;
type Seen<'f, V> = Stateful<'f, <V as Version>::Key, Sale, (u64, i64)>;
type Latest<'f, V> = Collection<'f, (<V as Version>::Key, <V as Version>::Tally)>;

/// Declares a version: a module with `Key` and `Tally`, made of the key, and of the amount.
macro_rules! version {
    ($name:ident, $field:ident: $integer:ty = $made:expr, $read:expr, number $number:ty, tally { $($tally:tt)* }, hooks { $($hooks:tt)* }) => {
        mod $name {
            use super::*;

            pub(super) struct Types;

            #[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
            pub(super) struct Key {
                number: $number,
            }

            #[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
            pub(super) struct Tally {
                $($tally)*
            }

            impl Accumulator for Tally {
                fn merge(&mut self, other: &Self) {
                    self.$field += other.$field;
                }
            }

            impl Version for Types {
                type Key = Key;
                type Tally = Tally;

                fn key(sale: &Sale) -> Key {
                    Key { number: sale.key.into() }
                }

                fn number(key: &Key) -> u64 {
                    key.number.into()
                }

                fn tally(sale: &Sale) -> Tally {
                    let made: fn(i64) -> $integer = $made;
                    let mut tally = Tally::default();
                    tally.$field += made(sale.amount);
                    tally
                }

                fn cents(tally: &Tally) -> i64 {
                    let read: fn($integer) -> i64 = $read;
                    read(tally.$field)
                }

                $($hooks)*
            }
        }
    };
}

version!(first, cents: i32 = |cents| cents as i32, i64::from, number u8,
    tally { pub(super) cents: i32, pub(super) note: Option<u8>, }, hooks {});
version!(added_field, cents: i32 = |cents| cents as i32, i64::from, number u8,
    tally { cents: i32, note: Option<u8>, #[serde(default)] best: i64, }, hooks {});
version!(removed_field, cents: i32 = |cents| cents as i32, i64::from, number u8, tally { cents: i32, },
    hooks {});
version!(widened, cents: i64 = |cents| cents, |cents| cents, number u64, tally { cents: i64, note: Option<u16>, },
    hooks {});
version!(renamed_field, minor: i32 = |cents| cents as i32, i64::from, number u8,
    tally { #[serde(alias = "cents")] minor: i32, note: Option<u8>, }, hooks {});
version!(migrated, mills: i64 = |cents| cents * 10, |mills| mills / 10, number u8, tally { pub(super) mills: i64, pub(super) text: String, },
hooks {
    fn windows(made: Tallies<'_, Self>) -> Tallies<'_, Self> { made.migrate(Tally::of) }
    fn seen(made: Seen<'_, Self>) -> Seen<'_, Self> { made.migrate(Tally::of) }
    fn latest(made: Latest<'_, Self>) -> Latest<'_, Self> { made.migrate(Tally::of) }
});

impl migrated::Tally {
    fn of(first::Tally { cents, note }: first::Tally) -> Self {
        migrated::Tally { mills: i64::from(cents) * 10, text: format!("{note:?}") }
    }
}

/// A row of windows.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
struct TallyRow {
    end: i64,
    key: u64,
    cents: i64,
}

/// A row by key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
struct KeyRow {
    key: u64,
    cents: i64,
}

/// A row of several aggregates, as far as the program has them.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
struct TotalRow {
    end: i64,
    key: u8,
    count: Option<i64>,
    sum: Option<i64>,
    max: Option<i64>,
    least: Option<i64>,
}

/// The steps that keep the types of a version, with a sink each.
fn of_types<V: Version>(sales: &Stream<'_, Sale>, directory: &Path) {
    let keyed = || sales.clone().key_by(V::key);
    let merge: fn(&Sale) -> V::Tally = V::tally;
    let windows = keyed().window(Window::tumbling(millis(600))).aggregate("tallies", |each| each.merge(merge));
    let closed = V::windows(windows).on_close();
    let row = |row: Closed<V::Key, V::Tally>| TallyRow {
        end: row.window.end.millis(),
        key: V::number(&row.key),
        cents: V::cents(&row.value),
    };
    closed.map(row).write("tallies", &csv::Sink::new(directory.join("tallies.csv")));
    let seen = keyed().keyed_state::<V::Tally, (u64, i64)>(
        "seen",
        |at, state, sale| {
            let mut tally = state.take().unwrap_or_default();
            tally.merge(&V::tally(&sale));
            at.emit((V::number(at.key()), V::cents(&tally)));
            *state = Some(tally);
        },
        |_, _| {},
    );
    let running = V::seen(seen).emitted().map(|(key, cents)| KeyRow { key, cents });
    running.write("seen", &csv::Sink::new(directory.join("seen.csv")));
    let latest = V::latest(keyed().last_by_key_with("latest", |sale| Some(V::tally(&sale))));
    let rows = latest.map(|(key, tally)| KeyRow { key: V::number(&key), cents: V::cents(&tally) });
    rows.write("latest", &csv::Sink::new(directory.join("latest.csv")));
}

/// The step of several aggregates, with its sink.
fn totals<A: Aggregate<Sale>>(
    sales: &Stream<'_, Sale>,
    directory: &Path,
    (name, was): (&str, Option<&str>),
    build: fn(Each<Sale>) -> A,
    row: fn(A::Value) -> TotalRow,
) {
    let windows = sales.clone().key_by(|sale| sale.key).window(Window::sliding(millis(800), millis(400)));
    let made = windows.aggregate(name, build);
    let made = was.into_iter().fold(made, Aggregated::was);
    let rows = made.on_close().map(move |closed| {
        let (end, key) = (closed.window.end.millis(), closed.key);
        TotalRow { end, key, ..row(closed.value) }
    });
    rows.write("totals", &csv::Sink::new(directory.join("totals.csv")));
}

type Three = (i64, i128, i64);

fn three(each: Each<Sale>) -> impl Aggregate<Sale, Value = Three> {
    let sum = each.named("sum", each.sum(|sale: &Sale| sale.amount));
    (each.named("count", each.count()), sum, each.named("max", each.max(|sale: &Sale| sale.amount)))
}

fn of_three((count, sum, max): Three) -> TotalRow {
    TotalRow { count: Some(count), sum: Some(sum as i64), max: Some(max), ..TotalRow::default() }
}

fn write_totals(sales: &Stream<'_, Sale>, directory: &Path, change: Change) {
    let name = if change == Change::RenamedStep { ("sums", Some("totals")) } else { ("totals", None) };
    match change {
        Change::AddedAggregate => totals(
            sales,
            directory,
            name,
            |each| {
                let least = each.named("least", each.if_any(each.min(|sale: &Sale| sale.amount)));
                let sum = each.named("sum", each.sum(|sale: &Sale| sale.amount));
                let max = each.named("max", each.max(|sale: &Sale| sale.amount));
                (each.named("count", each.count()), sum, max, least)
            },
            |(count, sum, max, least)| TotalRow { least, ..of_three((count, sum, max)) },
        ),
        Change::RemovedAggregate => totals(
            sales,
            directory,
            name,
            |each| (each.named("count", each.count()), each.named("max", each.max(|sale: &Sale| sale.amount))),
            |(count, max)| TotalRow { sum: None, ..of_three((count, 0, max)) },
        ),
        Change::ReorderedAggregates => totals(
            sales,
            directory,
            name,
            |each| {
                let sum = each.named("sum", each.sum(|sale: &Sale| sale.amount));
                (each.named("max", each.max(|sale: &Sale| sale.amount)), each.named("count", each.count()), sum)
            },
            |(max, count, sum)| of_three((count, sum, max)),
        ),
        _ => totals(sales, directory, name, three, of_three),
    }
}

/// A step that only counts.
fn write_counts(sales: &Stream<'_, Sale>, directory: &Path, name: &str) {
    let windows = sales.clone().key_by(|sale| sale.key).window(Window::tumbling(millis(600)));
    let counts = windows.aggregate(name, Each::count).on_close();
    let row = |row: Closed<u8, i64>| TallyRow { end: row.window.end.millis(), key: row.key.into(), cents: row.value };
    counts.map(row).write(name, &csv::Sink::new(directory.join(format!("{name}.csv"))));
}

/// The program with a change, with its input and its results in this directory.
fn query(directory: &Path, change: Change) -> impl Fn(&Flow<'_>) + Send + Sync + use<> {
    let input = ndjson::Source::new(directory.join("in.ndjson")).event_time(|sale: &Sale| sale.at_ms);
    let (input, directory) = (input.out_of_order(millis(100)), directory.to_owned());
    move |flow: &Flow<'_>| {
        let sales = match change {
            Change::RenamedSource => flow.read("orders", &input).was("sales"),
            _ => flow.read("sales", &input),
        };
        match change {
            Change::AddedField => of_types::<added_field::Types>(&sales, &directory),
            Change::RemovedField => of_types::<removed_field::Types>(&sales, &directory),
            Change::WidenedIntegers => of_types::<widened::Types>(&sales, &directory),
            Change::RenamedField => of_types::<renamed_field::Types>(&sales, &directory),
            Change::Migrated => of_types::<migrated::Types>(&sales, &directory),
            _ => of_types::<first::Types>(&sales, &directory),
        }
        write_totals(&sales, &directory, change);
        if change != Change::DroppedStep {
            write_counts(&sales, &directory, "extra");
        }
        if change == Change::AddedStep {
            write_counts(&sales, &directory, "added");
        }
    }
}

/// Runs a program to the end of its input.
fn run(directory: &Path, workers: usize, change: Change, state: bool) -> tidegate::Result<Ending> {
    let mut job = Job::new("changes").workers(workers).options(Options::default().until_end(true));
    if state {
        let state = State::at(directory.join("state")).accept_changed_query(true);
        job = job.state(match change {
            Change::DroppedStep => state.drop_step("extra").drop_output("extra"),
            _ => state,
        });
    }
    job.run(query(directory, change)).map(|report| report.ending)
}

fn sales() -> Vec<Sale> {
    let mut random = fastrand::Rng::with_seed(5);
    let sale = |number: i64| {
        let (key, amount) = (random.u8(0..3), random.i64(-500..500));
        Sale { key, amount, at_ms: 1_735_689_600_000 + number * 40 - random.i64(0..90) }
    };
    (0..COUNT as i64).map(sale).collect()
}

fn append(directory: &Path, rows: &[Sale]) {
    let mut file = fs::OpenOptions::new().create(true).append(true).open(directory.join("in.ndjson")).unwrap();
    let lines = rows.iter().map(|row| serde_json::to_string(row).unwrap() + "\n").collect::<String>();
    file.write_all(lines.as_bytes()).unwrap();
}

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/state-changes")
}

/// Writes the fixture: two parts of the input, with snapshots after each, and a clean stop.
fn write_fixture() {
    let directory = fixture();
    let _ = fs::remove_dir_all(&directory);
    fs::create_dir_all(&directory).unwrap();
    // Recorded paths are relative.
    std::env::set_current_dir(&directory).unwrap();
    let here = Path::new("");
    append(here, &[]);
    let state = State::at("state").snapshot_every(millis(100)).keep_snapshots(1);
    let job = Job::new("changes").workers(2).epoch(millis(20)).state(state);
    let (stop, metrics) = (job.stopper(), job.metrics());
    let running = std::thread::spawn(move || job.run(query(Path::new(""), Change::None)));
    let begun = Instant::now();
    for (number, piece) in (1..).zip(sales()[..COUNT / 3 * 2].chunks(COUNT / 3)) {
        append(here, piece);
        let read = || metrics.summary().sources.iter().map(|source| source.read).sum::<u64>();
        while read() < (number * COUNT / 3) as u64 {
            assert!(begun.elapsed() < Duration::from_secs(60), "it does not come on");
            std::thread::sleep(millis(10));
        }
        std::thread::sleep(millis(400));
    }
    stop.stop();
    assert_eq!(running.join().unwrap().unwrap().ending, Ending::Stopped);
    fs::remove_file("state/LOCK").unwrap();
}

/// Copies the fixture, with all of its input.
fn copied() -> tempfile::TempDir {
    if std::env::var_os("TIDEGATE_WRITE_FIXTURE").is_some() {
        static ONCE: std::sync::Once = std::sync::Once::new();
        ONCE.call_once(write_fixture);
    }
    let directory = tempfile::tempdir().unwrap();
    copy(&fixture(), directory.path());
    append(directory.path(), &sales()[COUNT / 3 * 2..]);
    directory
}

/// Returns the rows of a results file, consolidated: a collection has the difference in its last column.
fn rows<R: DeserializeOwned + Ord + Debug>(directory: &Path, name: &str) -> BTreeMap<R, i64> {
    let mut reader = ::csv::Reader::from_path(directory.join(name)).unwrap();
    let header = reader.headers().unwrap().clone();
    let diff = header.iter().position(|column| column == "diff");
    let mut rows = BTreeMap::new();
    for record in reader.records() {
        let record = record.unwrap();
        let times = diff.map_or(1, |at| record[at].parse::<i64>().unwrap());
        *rows.entry(record.deserialize::<R>(Some(&header)).unwrap()).or_default() += times;
    }
    rows.retain(|_, times| *times != 0);
    rows
}

/// All results, of aggregates only those that all programs have.
type Results =
    (BTreeMap<TallyRow, i64>, BTreeMap<KeyRow, i64>, BTreeMap<KeyRow, i64>, BTreeMap<(i64, u8, i64, i64), i64>);

fn results(directory: &Path) -> Results {
    let totals = rows::<TotalRow>(directory, "totals.csv").into_iter();
    let totals = totals.map(|(row, times)| ((row.end, row.key, row.count.unwrap(), row.max.unwrap()), times));
    (rows(directory, "tallies.csv"), rows(directory, "seen.csv"), rows(directory, "latest.csv"), totals.collect())
}

/// Runs the program that was never changed over all of the input.
fn unchanged() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    append(directory.path(), &sales());
    assert_eq!(run(directory.path(), 1, Change::None, false).unwrap(), Ending::Complete);
    directory
}

#[test]
fn states_on_disk_go_on_through_twelve_changes_of_their_program() {
    let whole = unchanged();
    let expected = results(whole.path());
    let sums = rows::<TotalRow>(whole.path(), "totals.csv");
    let before = results(copied().path());
    assert!(!before.0.is_empty() && before.0.len() < expected.0.len() && before.3.len() < expected.3.len());
    for (number, (change, _)) in CHANGES.into_iter().enumerate() {
        let directory = copied();
        let workers = [2, 1, 3][number % 3];
        let ending = run(directory.path(), workers, change, true);
        assert_eq!(ending.map_err(|error| error.to_string()), Ok(Ending::Complete), "{change:?}");
        assert_eq!(results(directory.path()), expected, "{change:?}");
        let totals = rows::<TotalRow>(directory.path(), "totals.csv");
        match change {
            Change::RemovedAggregate => assert!(totals.keys().any(|row| row.sum.is_none())),
            Change::AddedAggregate => assert!(totals.keys().any(|row| row.least.is_some())),
            _ => assert_eq!(totals, sums, "{change:?}"),
        }
        // It goes on under the changed program from then on.
        let again = run(directory.path(), 1, change, true);
        assert_eq!(again.map_err(|error| error.to_string()), Ok(Ending::WasComplete), "{change:?}");
    }
}

/// The variable with the number of the change whose program is to run, and that with its directory.
const ASKED: [&str; 2] = ["TIDEGATE_TEST_CHANGE", "TIDEGATE_TEST_DIRECTORY"];

/// The program that `tidegate snapshot check` starts; nothing otherwise.
#[test]
fn the_program_that_is_asked() {
    let [Ok(change), Ok(directory)] = ASKED.map(std::env::var) else { return };
    let change = CHANGES[change.parse::<usize>().unwrap()].0;
    let error = run(Path::new(&directory), 1, change, true).unwrap_err().to_string();
    assert!(error.contains("the state was checked"), "{error}");
}

#[test]
fn the_tool_tells_beforehand_what_becomes_of_states_on_disk() {
    let directory = copied();
    for (number, (change, expected)) in CHANGES.into_iter().enumerate() {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
        command.args(["snapshot", "check"]).arg(directory.path().join("state")).arg("--");
        command.arg(std::env::current_exe().unwrap()).args(["--exact", "fixtures::the_program_that_is_asked"]);
        command.env(ASKED[0], number.to_string()).env(ASKED[1], directory.path());
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(said.contains(expected), "{change:?}: {said}{}", String::from_utf8_lossy(&output.stderr));
        assert!(
            output.status.success() && said.ends_with("the program goes on with the state\n"),
            "{change:?}: {said}"
        );
    }
}

#[test]
fn the_state_on_disk_is_small() {
    fn bytes(below: &Path) -> u64 {
        let entries = fs::read_dir(below).unwrap().map(|entry| entry.unwrap());
        let size = |entry: fs::DirEntry| match entry.file_type().unwrap().is_dir() {
            true => bytes(&entry.path()),
            false => entry.metadata().unwrap().len(),
        };
        entries.map(size).sum()
    }
    let bytes = bytes(&fixture());
    assert!(bytes > 0 && bytes < 60_000, "the fixture has {bytes} bytes");
}
