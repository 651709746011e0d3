//! Sources that are read first: what is looked up of them misses nothing that they had when the job started, on any
//! number of workers and processes, whatever crashes.
//!
//! The table of these tests is complete when its source is read; so each looked up record must see the last value of its
//! key, and a record that sees an earlier one, or none, was read too soon.
#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fastrand::Rng;
use serde::{Deserialize, Serialize};
use tidegate::durable::disk::Disk;
use tidegate::job::{Ending, StopHandle};
use tidegate::source::memory::MemorySource;
use tidegate::testing::{Captured, CrashingDisk, TestRun};
use tidegate::{Flow, Window, csv};

use common::cases::{for_seeds, within};

/// A change of a rate: currency, value (`None` deletes it), event time, which means nothing.
type Rate = (u8, Option<u32>);
/// A sale: number, currency, event time.
type Sale = (u32, u8, i64);
/// A sale's number with its rate.
type Priced = (u32, Option<u32>);

const CURRENCIES: u8 = 12;

#[derive(Clone)]
struct Input {
    /// By partition; a currency is in one partition.
    rates: Vec<Vec<Rate>>,
    sales: Vec<Vec<Sale>>,
}

impl Input {
    fn random(random: &mut Rng, count: usize) -> Self {
        let mut input = Input { rates: vec![Vec::new(); random.usize(1..4)], sales: vec![Vec::new(); 3] };
        for _ in 0..count {
            let key = random.u8(0..CURRENCIES);
            let at = usize::from(key) % input.rates.len();
            input.rates[at].push((key, (random.u8(0..4) > 0).then(|| random.u32(..))));
        }
        for number in 0..count as u32 {
            let sale = (number, random.u8(0..CURRENCIES), i64::from(number) * 10 - random.i64(0..30));
            input.sales[random.usize(0..3)].push(sale);
        }
        input
    }

    fn table(&self) -> BTreeMap<u8, Option<u32>> {
        self.rates.iter().flatten().copied().collect()
    }

    /// Returns what each sale must see.
    fn expected(&self) -> Vec<Priced> {
        let table = self.table();
        let mut all: Vec<_> =
            self.sales.iter().flatten().map(|(number, key, _)| (*number, table.get(key).copied().flatten())).collect();
        all.sort_unstable();
        all
    }

    fn query(&self, output: &Outputs) -> impl Fn(&Flow<'_>) + Send + Sync + 'static {
        // The time of a rate is nonsense, of which a table takes no notice: far away, and impossible.
        let rates = MemorySource::new(self.rates.clone(), |(key, value): &Rate| match value {
            Some(value) if value % 2 == 0 => i64::MAX - i64::from(*key),
            _ => i64::from(value.unwrap_or_default()) * 1_000_000,
        });
        let sales = MemorySource::new(self.sales.clone(), |sale: &Sale| sale.2).out_of_order(Duration::from_millis(30));
        let output = output.clone();
        move |flow| {
            let sales = flow.read("sales", &sales);
            let rates = flow.table_first("rates", &rates);
            rates.clone().write("rates", &output.rates);
            let priced = sales.key_by(|sale| sale.1).left_join_table(rates);
            priced.clone().map(|((number, ..), rate)| (number, rate)).write("priced", &output.priced);
            priced
                .key_by(|_| 0u8)
                .window(Window::tumbling(Duration::from_millis(100)))
                .aggregate("counts", |each| each.count())
                .on_close()
                .map(|row| (row.window.end.millis(), row.value))
                .write("counts", &output.counts);
        }
    }

    fn check(&self, output: &Outputs) -> Result<(), String> {
        let (mut priced, expected) = (output.priced.all(), self.expected());
        priced.sort_unstable();
        if priced != expected {
            return Err(format!("seen: {priced:?}\nexpected: {expected:?}"));
        }
        let table: Vec<_> = self.table().into_iter().filter_map(|(key, value)| Some((key, value?))).collect();
        if output.rates.all() != table {
            return Err(format!("the table is {:?}, not {table:?}", output.rates.all()));
        }
        let counted: i64 = output.counts.all().iter().map(|row| row.1).sum();
        if counted as usize == expected.len() { Ok(()) } else { Err(format!("{counted} sales are in windows")) }
    }
}

#[derive(Clone, Default)]
struct Outputs {
    rates: Captured<(u8, u32)>,
    priced: Captured<Priced>,
    counts: Captured<(i64, i64)>,
}

#[test]
fn what_is_read_first_is_complete_for_all_others_on_any_number_of_workers_and_processes() {
    for_seeds(24, |seed| {
        let input = Input::random(&mut Rng::with_seed(seed), 150);
        let (processes, workers) = [(1, 1), (1, 2), (1, 8), (2, 1), (2, 2), (3, 1)][seed as usize % 6];
        let output = Outputs::default();
        let run = TestRun::new().processes(processes).workers(workers).seed(seed);
        let outcome = run.run(input.query(&output)).map_err(|error| error.to_string())?;
        input.check(&output)?;
        // The journal says when the others were let in, and replays to the same.
        let (workers, again) = (1 + seed as usize % 3, Outputs::default());
        let run = TestRun::new().workers(workers).journal(outcome.journal);
        run.run(input.query(&again)).map_err(|error| error.to_string())?;
        if again.priced.epochs() != output.priced.epochs() || again.rates.epochs() != output.rates.epochs() {
            return Err("a replay differs".into());
        }
        Ok(())
    });
}

fn with_state(disk: &CrashingDisk, processes: usize, workers: usize, seed: u64) -> TestRun {
    let disk: Arc<dyn Disk> = disk.shared();
    TestRun::new().processes(processes).workers(workers).seed(seed).in_flight(1_000).state(&disk, "state")
}

#[test]
fn a_crash_at_any_moment_lets_no_record_in_before_what_is_read_first() {
    let (mut crashes, mut in_first) = (0, 0);
    for seed in 0..24 {
        let mut random = Rng::with_seed(seed);
        let input = Input::random(&mut random, 60);
        let (output, mut disk) = (Outputs::default(), CrashingDisk::new());
        for life in 0..20 {
            let (processes, workers) = [(1, 1), (1, 2), (1, 4), (2, 1), (2, 2)][random.usize(0..5)];
            let last = life == 19;
            if !last {
                disk.crash_at(random.usize(10..150));
            }
            let (run, query) = (with_state(&disk, processes, workers, random.u64(..)), input.query(&output));
            let ended = within(Duration::from_secs(60), move || run.run(query)).expect("it does not hang");
            if !disk.has_crashed() {
                let ending = ended.unwrap().report.ending;
                assert!(ending != Ending::Stopped, "seed {seed}");
                break;
            }
            assert!(!last);
            crashes += 1;
            in_first += usize::from(output.priced.epochs().is_empty());
            disk = disk.survivors(random.u64(0..8));
        }
        input.check(&output).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
    }
    assert!(
        crashes > 40 && in_first > 15 && crashes - in_first > 5,
        "{crashes} crashes, {in_first} in the first phase"
    );
}

#[test]
fn a_stop_while_only_some_is_read_does_not_end_the_phase() {
    let (mut early, mut late) = (0, 0);
    for seed in 0..20 {
        let input = Input::random(&mut Rng::with_seed(seed), 100);
        let (output, disk) = (Outputs::default(), CrashingDisk::new());
        for life in 0..30 {
            let stop = StopHandle::default();
            let (stopping, watched) = (stop.clone(), output.clone());
            let (rates, priced) = (watched.rates.epochs().len(), watched.priced.epochs().len());
            let watcher = std::thread::spawn(move || {
                let begun = Instant::now();
                let more = || watched.rates.epochs().len() > rates || watched.priced.epochs().len() > priced;
                while !more() && begun.elapsed() < Duration::from_millis(500) {
                    std::thread::sleep(Duration::from_micros(100));
                }
                stopping.stop();
            });
            let run = with_state(&disk, 1, 1 + life % 3, seed + life as u64).in_flight(1).stop_by(&stop);
            let ending = run.run(input.query(&output)).unwrap().report.ending;
            watcher.join().unwrap();
            if ending != Ending::Stopped {
                break;
            }
            if output.priced.epochs().is_empty() { early += 1 } else { late += 1 }
        }
        with_state(&disk, 1, 2, seed).run(input.query(&output)).unwrap();
        input.check(&output).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
    }
    assert!(early > 10 && late > 10, "{early} stops before the others were read, {late} after that");
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
struct Merchant {
    name: String,
    city: String,
    at_ms: i64,
}

/// Runs sales against a file of merchants that is followed, and so never ends.
fn with_file(path: &Path, workers: usize, keys: &[&str]) -> Vec<(String, Option<String>)> {
    let merchants = csv::Source::new(path).event_time(|merchant: &Merchant| merchant.at_ms);
    let sales: Vec<_> = keys.iter().map(|key| (*key).to_owned()).collect();
    let sales = MemorySource::new(vec![sales], |_| 5);
    let (seen, stop) = (Captured::new(), StopHandle::default());
    let (output, stopping, watched, count) = (seen.clone(), stop.clone(), seen.clone(), keys.len());
    let watcher = std::thread::spawn(move || {
        let begun = Instant::now();
        while watched.all().len() < count && begun.elapsed() < Duration::from_secs(20) {
            std::thread::sleep(Duration::from_millis(5));
        }
        stopping.stop();
    });
    let run = TestRun::new().clock().workers(workers).stop_by(&stop);
    run.run(move |flow| {
        let merchants = flow.read_first("merchants", &merchants);
        let cities = merchants.key_by(|merchant| merchant.name.clone()).last_by_key_with("cities", |of| Some(of.city));
        let sales = flow.read("sales", &sales).key_by(String::clone).left_join_table(cities);
        sales.write("seen", &output);
    })
    .unwrap();
    watcher.join().unwrap();
    let mut all = seen.all();
    all.sort();
    all
}

#[test]
fn a_file_that_is_followed_is_read_first_up_to_its_last_whole_record() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("merchants.csv");
    let pair = |name: &str, city: Option<&str>| (name.to_owned(), city.map(str::to_owned));
    for workers in [1, 3] {
        // Empty, or without a whole record: nothing is waited for.
        for text in ["", "name,ci", "name,city,at_ms\n", "name,city,at_ms\ncafe,Oslo"] {
            std::fs::write(&path, text).unwrap();
            assert_eq!(with_file(&path, workers, &["cafe", "m7"]), [pair("cafe", None), pair("m7", None)], "{text:?}");
        }
        let mut file = std::fs::File::create(&path).unwrap();
        writeln!(file, "name,city,at_ms").unwrap();
        (0..30_000).for_each(|number| writeln!(file, "m{number},c{number},{number}").unwrap());
        write!(file, "cafe,Oslo,9").unwrap();
        drop(file);
        let expected = [pair("cafe", None), pair("m29999", Some("c29999")), pair("m7", Some("c7"))];
        assert_eq!(with_file(&path, workers, &["cafe", "m7", "m29999"]), expected);
    }
}

/// Queries in which nothing waits, or where there is nothing to read first, end.
#[test]
fn nothing_hangs_that_is_empty_or_alone() {
    for workers in [1, 2, 4] {
        for (rates, sales) in
            [(vec![], vec![vec![(1, 2, 3)]]), (vec![vec![]], vec![]), (vec![vec![(1, None)]], vec![vec![]])]
        {
            let (input, output) = (Input { rates, sales }, Outputs::default());
            let query = input.query(&output);
            let run = within(Duration::from_secs(30), move || TestRun::new().workers(workers).run(query));
            run.expect("it does not hang").unwrap();
            input.check(&output).unwrap();
        }
        let alone = MemorySource::new(vec![vec![(1u8, Some(2u32))]], |_| 0);
        let shown = Captured::new();
        let output = shown.clone();
        let run = within(Duration::from_secs(30), move || {
            TestRun::new().workers(workers).run(move |flow| flow.table_first("alone", &alone).write("alone", &output))
        });
        run.expect("it does not hang").unwrap();
        assert_eq!(shown.all(), [(1, 2)]);
    }
}
