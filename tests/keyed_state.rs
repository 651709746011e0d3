//! Keyed state sees the records of a key in the order of event time, and its timers between them: its output is a
//! function of the records, on any number of workers and through crashes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use tidegate::Flow;
use tidegate::durable::disk::Disk;
use tidegate::source::memory::MemorySource;
use tidegate::testing::durable::OpenedState;
use tidegate::testing::{Captured, CrashingDisk, TestRun};

use common::cases::{Data, Deal, for_seeds};
use common::incarnations::on;
use common::oracle::{self, OracleRecord};

const WITHIN: Duration = Duration::from_millis(15);

/// Outputs of the query.
#[derive(Clone, Default)]
struct Emitted {
    distinct: Captured<Deal>,
    silent: Captured<Deal>,
    late: Captured<Deal>,
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
            let counted = by_key().keyed_state::<(), Deal>("late", |_, _| {}, |_| {});
            counted.late().write("late", &own.late);
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

/// Computes the expected outputs from the definitions.
fn expected(data: &Data) -> [Vec<Deal>; 3] {
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
    [distinct, silent, late]
}

fn check(emitted: &Emitted, expected: &[Vec<Deal>; 3]) -> Result<(), String> {
    let names = ["distinct", "silent", "late"];
    let found = [emitted.distinct.all(), emitted.silent.all(), emitted.late.all()];
    for (name, (found, expected)) in names.iter().zip(found.iter().zip(expected)) {
        if found != expected {
            return Err(format!("{name}:\n   found {found:?}\nexpected {expected:?}"));
        }
    }
    Ok(())
}

#[test]
fn what_is_emitted_is_a_function_of_the_records() {
    for_seeds(60, |seed| {
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
    for_seeds(40, |seed| {
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
