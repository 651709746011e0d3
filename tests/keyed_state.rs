//! Steps that take the records of a key in the order of event time: keyed state with its timers, running aggregates, and
//! windows that fire by count. Their output is a function of the records, on any number of workers and through crashes.
#![expect(clippy::unwrap_used, reason = "a panic fails the test")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use rusqlite::Connection;
use tidegate::durable::disk::Disk;
use tidegate::source::memory::MemorySource;
use tidegate::stream::aggregate::Each;
use tidegate::stream::{Firing, Preceding};
use tidegate::testing::durable::OpenedState;
use tidegate::testing::{Captured, CrashingDisk, TestRun};
use tidegate::{Flow, Window};

use common::cases::{Data, Deal, for_seeds};
use common::incarnations::on;
use common::oracle::{self, OracleRecord, Windows};

const WITHIN: Duration = Duration::from_millis(15);
/// Records before a record that are in its frame.
const PRECEDING: usize = 3;
/// Records after which a window fires.
const EVERY: usize = 3;
const SIZE: Duration = Duration::from_millis(40);
const SLIDE: Duration = Duration::from_millis(20);

/// A record's id, and the ids of the records in its frame, in order.
type Framed = (u32, Vec<u32>);
/// Start, end, key, number, whether it is the last one, and the ids of its records, in order.
type Fired = (i64, i64, u8, u64, bool, Vec<u32>);

/// Outputs of the query.
#[derive(Clone, Default)]
struct Emitted {
    distinct: Captured<Deal>,
    silent: Captured<Deal>,
    late: Captured<Deal>,
    /// Running aggregates over rows, over a time, and over all.
    framed: [Captured<Framed>; 3],
    /// Firings of tumbling windows, of the same discarding, and of overlapping ones.
    fired: [Captured<Fired>; 3],
}

impl Emitted {
    fn query(&self, data: &Data) -> impl Fn(&Flow<'_>) + Send + Sync + 'static {
        let (source, own) = (data.source(), self.clone());
        move |flow| {
            let deals = flow.read("deals", &source);
            let by_key = || deals.clone().key_by(|deal: &Deal| deal.key);
            by_key().dedup_within("distinct", WITHIN).write("distinct", &own.distinct);
            by_key()
                .not_followed("silent", |deal| deal.amount > 0, |deal| deal.amount % 2 == 0, WITHIN)
                .write("silent", &own.silent);
            let counted = by_key().keyed_state::<(), Deal>("late", |_, _, _| {}, |_, _| {});
            counted.late().write("late", &own.late);
            let frames = [Preceding::rows(PRECEDING as u64), Preceding::range(WITHIN), Preceding::unbounded()];
            for ((number, frame), output) in frames.into_iter().enumerate().zip(&own.framed) {
                let running = by_key().over(&format!("over {number}"), frame, |each| each.collect(|deal| deal.id));
                running.values().map(|(deal, ids)| (deal.id, ids)).write(&format!("framed {number}"), output);
            }
            let flat = |firing: Firing<u8, Vec<u32>>| {
                let Firing { window, key, number, is_final, value } = firing;
                (window.start.millis(), window.end.millis(), key, number, is_final, value)
            };
            let tumbling = || by_key().window(Window::tumbling(SIZE)).every_n(EVERY as u64);
            let accumulating = tumbling().aggregate("accumulating", |each| each.collect(|deal| deal.id));
            accumulating.all().map(flat).write("accumulating", &own.fired[0]);
            let discarding = tumbling().discarding().aggregate("discarding", |each| each.collect(|deal| deal.id));
            discarding.all().map(flat).write("discarding", &own.fired[1]);
            let sliding = by_key().window(Window::sliding(SIZE, SLIDE)).every_n(EVERY as u64);
            let sliding = sliding.aggregate("sliding", |each| each.collect(|deal| deal.id));
            sliding.all().map(flat).write("sliding", &own.fired[2]);
        }
    }
}

/// Returns the records that are on time, by key and in order, and the late ones.
fn ordered(data: &Data) -> (BTreeMap<u8, Vec<OracleRecord<Deal>>>, Vec<Deal>) {
    let took = |(partition, deals): (usize, &Vec<Deal>)| oracle::PartitionInput {
        partition: partition as u32,
        next: deals.len() as u64,
        idle: false,
        ended: true,
    };
    let all = oracle::OracleEpoch { epoch: 2, inputs: data.partitions.iter().enumerate().map(took).collect() };
    let (late, on_time): (Vec<_>, Vec<_>) =
        data.history(0, &[all]).records.into_iter().partition(|record| record.time < record.partition_watermark);
    let mut by_key = BTreeMap::<u8, Vec<OracleRecord<Deal>>>::new();
    on_time.into_iter().for_each(|record| by_key.entry(record.data.key).or_default().push(record));
    by_key.values_mut().for_each(|records| records.sort_by_key(|record| (record.time, record.origin)));
    let mut late: Vec<_> = late.into_iter().map(|record| record.data).collect();
    late.sort();
    (by_key, late)
}

/// Returns the ids of the records in the frame of each record of a key.
fn framed(records: &[OracleRecord<Deal>], is_in_frame: impl Fn(usize, usize) -> bool) -> Vec<Framed> {
    let ids = |of: usize| {
        let before = records.iter().enumerate().filter(|(at, _)| is_in_frame(*at, of));
        before.map(|(_, record)| record.data.id).collect()
    };
    (0..records.len()).map(|at| (records[at].data.id, ids(at))).collect()
}

/// Returns the firings of a key's windows.
fn fired(key: u8, records: &[OracleRecord<Deal>], windows: Windows, discarding: bool) -> Vec<Fired> {
    let mut in_windows = BTreeMap::<(i64, i64), Vec<u32>>::new();
    for record in records {
        windows
            .of(record.time)
            .into_iter()
            .for_each(|window| in_windows.entry(window).or_default().push(record.data.id));
    }
    let firings = in_windows.into_iter().flat_map(|((start, end), ids)| {
        let mut firings: Vec<_> = (1..=ids.len() / EVERY)
            .map(|number| (number * EVERY, false))
            .chain([(ids.len(), true)])
            .enumerate()
            .map(|(number, (through, is_final))| {
                let from = if discarding { number * EVERY } else { 0 };
                (start, end, key, number as u64, is_final, ids[from..through].to_vec())
            })
            .collect();
        firings.retain(|firing| !firing.5.is_empty());
        firings
    });
    firings.collect()
}

/// Expected outputs.
struct Expected {
    deals: [Vec<Deal>; 3],
    framed: [Vec<Framed>; 3],
    fired: [Vec<Fired>; 3],
}

/// Computes the expected outputs from the definitions.
fn expected(data: &Data) -> Expected {
    let (by_key, late) = ordered(data);
    let (mut distinct, mut silent, within) = (Vec::new(), Vec::new(), WITHIN.as_millis() as i64);
    for records in by_key.values() {
        let mut last = None;
        for (at, record) in records.iter().enumerate() {
            if last.is_none_or(|last| record.time >= last + within) {
                last = Some(record.time);
                distinct.push(record.data.clone());
            }
            let mut following = records[at + 1..].iter().take_while(|other| other.time < record.time + within);
            if record.data.amount > 0 && !following.any(|other| other.data.amount % 2 == 0) {
                silent.push(record.data.clone());
            }
        }
    }
    distinct.sort();
    silent.sort();
    let (mut frames, mut firings) = (<[Vec<Framed>; 3]>::default(), <[Vec<Fired>; 3]>::default());
    let (size, slide) = (SIZE.as_millis() as i64, SLIDE.as_millis() as i64);
    let (tumbling, sliding) =
        (Windows::Tumbling { size, offset: 0 }, Windows::Sliding { size, slide, offset: 0, late: 0 });
    for (key, records) in &by_key {
        frames[0].extend(framed(records, |at, of| at <= of && of <= at + PRECEDING));
        let apart = |at: usize, of: usize| records[of].time - records[at].time;
        frames[1].extend(framed(records, |at, of| (0..=within).contains(&apart(at, of))));
        frames[2].extend(framed(records, |at, of| at <= of));
        firings[0].extend(fired(*key, records, tumbling, false));
        firings[1].extend(fired(*key, records, tumbling, true));
        firings[2].extend(fired(*key, records, sliding, false));
    }
    frames.iter_mut().for_each(|framed| framed.sort());
    firings.iter_mut().for_each(|fired| fired.sort());
    Expected { deals: [distinct, silent, late], framed: frames, fired: firings }
}

fn same<T: PartialEq + std::fmt::Debug>(name: &str, found: &T, expected: &T) -> Result<(), String> {
    if found == expected { Ok(()) } else { Err(format!("{name}:\n   found {found:?}\nexpected {expected:?}")) }
}

fn check(emitted: &Emitted, expected: &Expected) -> Result<(), String> {
    for (name, number) in [("frames of rows", 0), ("frames of time", 1), ("frames of all", 2)] {
        same(name, &emitted.framed[number].all(), &expected.framed[number])?;
    }
    for (name, number) in [("accumulating firings", 0), ("discarding firings", 1), ("sliding firings", 2)] {
        same(name, &emitted.fired[number].all(), &expected.fired[number])?;
    }
    let expected = &expected.deals;
    let names = ["distinct", "silent", "late"];
    let found = [emitted.distinct.all(), emitted.silent.all(), emitted.late.all()];
    for (name, (found, expected)) in names.iter().zip(found.iter().zip(expected)) {
        same(name, found, expected)?;
    }
    Ok(())
}

#[test]
fn what_is_emitted_is_a_function_of_the_records() {
    for_seeds(20, |seed| {
        let data = Data::random(&mut Rng::with_seed(seed), 120);
        for workers in [1, 3] {
            let emitted = Emitted::default();
            let run = TestRun::new().workers(workers).seed(seed).run(emitted.query(&data));
            run.map_err(|error| error.to_string())?;
            check(&emitted, &expected(&data))?;
        }
        Ok(())
    });
}

/// State of a key that has expired is removed soon: otherwise a state would grow by every key that ever occurred.
#[test]
fn a_state_does_not_grow_by_keys_that_are_over() {
    let rows_of_state = |keys: u32| -> u64 {
        let keys = (0..keys).map(|key| (key, i64::from(key) * 5)).collect();
        let (source, shown) = (MemorySource::new(vec![keys], |key: &(u32, i64)| key.1), Captured::new());
        let (disk, output) = (CrashingDisk::new(), shown.clone());
        let shared: Arc<dyn Disk> = disk.shared();
        let run = TestRun::new().seed(2).in_flight(1).state(&shared, "state");
        let run = run.state_options(|state| state.keep_snapshots(100_000)).run(move |flow| {
            let distinct = flow.read("keys", &source).key_by(|key| key.0).dedup_within("distinct", WITHIN);
            distinct.write("distinct", &output);
        });
        run.unwrap();
        // Merges are not awaited, and no state is left at the end: so the greatest number of rows in any manifest is
        // taken.
        let state = OpenedState::join(disk.after_kill().shared(), "state").unwrap();
        state.rows_of_step(0).unwrap().into_iter().max().unwrap()
    };
    // The delay of merges depends on timing; if they removed nothing, there would be at least a row for each key.
    let (few, many) = (rows_of_state(400), rows_of_state(4_000));
    assert!(few > 0 && many < 4_000, "of 400 keys there are {few} rows, of 4,000 there are {many}");
}

#[test]
fn crashes_change_nothing() {
    for_seeds(15, |seed| {
        let mut random = Rng::with_seed(seed);
        let data = Data::random(&mut random, 150);
        let (emitted, mut disk) = (Emitted::default(), CrashingDisk::new());
        for life in 0.. {
            if life < 10 {
                disk.crash_at(random.usize(0..250));
            }
            match on(&disk, &mut random, TestRun::new()).run(emitted.query(&data)) {
                Ok(_) => break,
                Err(_) if disk.has_crashed() => disk = disk.survivors(random.u64(..)),
                Err(error) => return Err(format!("life {life}: {error}")),
            }
        }
        check(&emitted, &expected(&data))
    });
}

/// Records of a key (number, event time, amount) in order.
type Amounts = Vec<(u32, i64, i64)>;

/// Sums the amounts of frames with SQLite, whose frames these are meant to be.
fn by_sql(amounts: &Amounts, frame: &str) -> Vec<(u32, i128)> {
    let database = Connection::open_in_memory().unwrap();
    database.execute("CREATE TABLE amounts (number INTEGER, time INTEGER, amount INTEGER)", ()).unwrap();
    for row in amounts {
        database.execute("INSERT INTO amounts VALUES (?, ?, ?)", *row).unwrap();
    }
    // A frame of time is ordered by time alone; in a frame of rows the number decides between equal times.
    let order = if frame.starts_with("RANGE") { "time" } else { "time, number" };
    let sql = format!("SELECT number, SUM(amount) OVER (ORDER BY {order} {frame}) FROM amounts ORDER BY number");
    let mut statement = database.prepare(&sql).unwrap();
    let rows = statement.query_map((), |row| Ok((row.get(0)?, i128::from(row.get::<_, i64>(1)?)))).unwrap();
    rows.map(Result::unwrap).collect()
}

#[test]
fn frames_are_those_of_sql() {
    for_seeds(10, |seed| {
        let mut random = Rng::with_seed(seed);
        let mut now = 0;
        let amounts: Amounts = (0..random.u32(1..80))
            .map(|number| {
                now += random.i64(-3..6).max(0);
                (number, now, random.i64(-100..100))
            })
            .collect();
        let (preceding, range) = (random.u64(0..6), random.u64(0..20));
        let frames = [
            (Preceding::rows(preceding), format!("ROWS {preceding} PRECEDING")),
            (Preceding::range(Duration::from_millis(range)), format!("RANGE {range} PRECEDING")),
            (Preceding::unbounded(), "ROWS UNBOUNDED PRECEDING".to_owned()),
        ];
        for (frame, sql) in frames {
            let source = MemorySource::new(vec![amounts.clone()], |row: &(u32, i64, i64)| row.1);
            let sums = Captured::<(u32, i128)>::new();
            let written = sums.clone();
            let run = TestRun::new().seed(seed).run(move |flow| {
                let rows = flow.read("amounts", &source).key_by(|_| ());
                let running = rows.over("sums", frame, |each| each.sum(|row| row.2));
                running.values().map(|(row, sum)| (row.0, sum)).write("sums", &written);
            });
            run.map_err(|error| error.to_string())?;
            same(&sql, &sums.all(), &by_sql(&amounts, &sql))?;
        }
        Ok(())
    });
}

#[test]
fn frames_and_triggers_that_make_no_sense_are_refused() {
    let refused = |query: fn(&Flow<'_>, &MemorySource<i64>)| {
        let source = MemorySource::new(vec![vec![1]], |time: &i64| *time);
        TestRun::new().run(move |flow| query(flow, &source)).unwrap_err().to_string()
    };
    let error = refused(|flow, source| {
        let frame = Preceding::range(Duration::from_micros(1500));
        flow.read("times", source).key_by(|_| ()).over("running", frame, Each::count).values();
    });
    assert!(error.contains("a frame of 1ms 500us is not a whole number of milliseconds"), "{error}");
    let error = refused(|flow, source| {
        let windows = flow.read("times", source).key_by(|_| ()).window(Window::global());
        windows.every_n(0).aggregate("counts", Each::count).all();
    });
    assert!(error.contains("a window cannot fire every 0 records"), "{error}");
}
