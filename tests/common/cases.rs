//! Random data and epochs by seed, and the loop over seeds.
//!
//! `TIDEGATE_SEED=n` runs only the case of seed `n`; `TIDEGATE_CASES=n` runs seeds 1 to `n`. A failure prints its
//! seed. Seeds run side by side, one on each processor.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::panic::AssertUnwindSafe;
use std::sync::{Mutex, PoisonError, mpsc};
use std::time::Duration;

use fastrand::Rng;
use serde::{Deserialize, Serialize};
use tidegate::testing::Script;

use super::oracle::{self, OracleEpoch, StreamHistory};
use super::turns::{Deals, Turn};

/// A record of the tests.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Deal {
    /// Unique among the deals of a case.
    pub id: u32,
    pub key: u8,
    pub at_ms: i64,
    pub amount: i64,
}

/// Partitions of deals, and their maximum disorder in milliseconds.
#[derive(Clone, Debug)]
pub struct Data {
    pub partitions: Vec<Vec<Deal>>,
    pub disorder: u64,
    /// Turns in which partitions are read; empty if all are read at once.
    pub turns: Vec<Turn>,
}

/// Event times that are rejected: extreme values, and those next to the years 0 to 9999.
const IMPOSSIBLE: [i64; 4] = [i64::MIN, i64::MAX, 253_402_300_800_000, -62_167_219_200_001];
/// The first and last milliseconds of the years 0 to 9999.
const POSSIBLE: [i64; 2] = [-62_167_219_200_000, 253_402_300_799_999];

fn amount(random: &mut Rng) -> i64 {
    match random.u8(0..20) {
        0 => i64::MIN,
        1 => i64::MAX,
        2 => 0,
        _ => random.i64(-1000..1000),
    }
}

impl Data {
    /// Generates random partitions: some empty, some short, some with late records, times on window borders, equal
    /// times, rejected times, and rarely the first or last of all times.
    pub fn random(random: &mut Rng, most: usize) -> Data {
        let disorder = *random.choice(&[0u64, 1, 10, 60]).unwrap();
        let (mut id, start) = (0, *random.choice(&[0i64, -500, 1_767_225_600_000]).unwrap());
        let partitions = (0..random.usize(1..=4)).map(|_| {
            let count = if random.u8(0..5) == 0 { 0 } else { random.usize(1..=most) };
            let mut now = start + random.i64(0..200);
            let deals = (0..count).map(|_| {
                now += random.i64(-2..14).max(0);
                let behind = match random.u8(0..12) {
                    0 => disorder as i64 + random.i64(0..200),
                    1..=5 => random.i64(0..=disorder as i64),
                    _ => 0,
                };
                let at_ms = match random.u8(0..100) {
                    0 => *random.choice(&IMPOSSIBLE).unwrap(),
                    1 if random.u8(0..10) == 0 => *random.choice(&POSSIBLE).unwrap(),
                    2..30 => (now - behind) / 10 * 10,
                    30..35 => (now - behind) / 10 * 10 - 1,
                    _ => now - behind,
                };
                id += 1;
                Deal { id, key: random.u8(0..4), at_ms, amount: amount(random) }
            });
            deals.collect()
        });
        Data { partitions: partitions.collect(), disorder, turns: Vec::new() }
    }

    /// Shifts the ids of the deals, for a second source.
    pub fn renumbered(mut self, by: u32) -> Data {
        self.partitions.iter_mut().flatten().for_each(|deal| deal.id += by);
        self
    }

    /// Returns the number of records.
    pub fn len(&self) -> usize {
        self.partitions.iter().map(Vec::len).sum()
    }

    /// Returns the data as a source.
    pub fn source(&self) -> Deals {
        Deals::new(self)
    }

    /// Computes the history of a source that read the data in these epochs.
    pub fn history(&self, source: u16, steps: &[OracleEpoch]) -> StreamHistory<Deal> {
        oracle::history(source, &self.partitions, |deal| deal.at_ms, self.disorder as i64, steps)
    }

    /// Generates random epochs over the data: partitions are found late, become idle, are active again and end. Some
    /// scripts stop before the end.
    pub fn script(&self, random: &mut Rng) -> Script {
        let whole = random.u8(0..4) > 0;
        let count = self.partitions.len() as u32;
        let found_in = (0..count).map(|_| if random.bool() { 0 } else { random.u32(0..12) }).collect::<Vec<_>>();
        let first = found_in.iter().copied().min().unwrap_or(0);
        let last = found_in.iter().copied().max().unwrap_or(0) - first;
        let epochs = last + random.u32(2..16);
        let mut left = self.partitions.iter().map(|deals| deals.len() as u64).collect::<Vec<_>>();
        let mut ended = vec![false; left.len()];
        let mut script = Script::new();
        for epoch in 0..epochs {
            script = script.epoch(|mut acts| {
                for id in (0..count).filter(|id| found_in[*id as usize] - first <= epoch) {
                    let (left, ended) = (&mut left[id as usize], &mut ended[id as usize]);
                    if found_in[id as usize] - first == epoch {
                        acts = acts.find(id);
                    }
                    if *ended || random.u8(0..4) == 0 {
                        continue;
                    }
                    let final_epoch = whole && epoch + 1 == epochs;
                    let take = if final_epoch { *left } else { random.u64(0..=12).min(*left) };
                    *left -= take;
                    acts = acts.take(id, take);
                    // A partition that has not ended must be left until all partitions are found.
                    if *left == 0 && epoch >= last && (final_epoch || random.bool()) {
                        acts = acts.end(id);
                        *ended = true;
                    } else if random.u8(0..3) == 0 {
                        acts = acts.idle(id);
                    }
                }
                acts
            });
        }
        if whole {
            // The rest of the data.
            script = script.epoch(|mut acts| {
                for id in (0..count).filter(|id| !ended[*id as usize]) {
                    acts = acts.take(id, left[id as usize]).end(id);
                }
                acts
            });
        }
        script
    }
}

/// Returns the seeds of a test, or the one in `TIDEGATE_SEED`.
pub fn seeds(default: u64) -> Vec<u64> {
    let asked = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    match asked("TIDEGATE_SEED") {
        Some(seed) => vec![seed],
        None => (1..=asked("TIDEGATE_CASES").unwrap_or(default)).collect(),
    }
}

/// Runs a check for every seed, on all processors; fails at the first that fails, panics or hangs.
pub fn for_seeds(default: u64, check: fn(u64) -> Result<(), String>) {
    in_parallel(seeds(default), |seed| {
        let result = within(Duration::from_secs(180), move || check(seed));
        if let Err(why) = result.unwrap_or_else(|| Err(String::from("it hangs, or panics"))) {
            panic!("TIDEGATE_SEED={seed} fails: {why}");
        }
    });
}

/// Does something with each value, on a thread for each processor, and returns the results in the order of the values.
/// After a panic no further value is begun, and it is passed on.
pub fn in_parallel<T: Send, R: Send>(values: Vec<T>, act: impl Fn(T) -> R + Sync) -> Vec<R> {
    let count = std::thread::available_parallelism().map_or(2, NonZeroUsize::get).min(values.len());
    let (left, done) = (Mutex::new(values.into_iter().enumerate()), Mutex::new(BTreeMap::new()));
    let one_thread = || {
        let next = || left.lock().unwrap_or_else(PoisonError::into_inner).next();
        while let Some((number, value)) = next() {
            match std::panic::catch_unwind(AssertUnwindSafe(|| act(value))) {
                Ok(result) => drop(done.lock().unwrap_or_else(PoisonError::into_inner).insert(number, result)),
                Err(panic) => {
                    while next().is_some() {}
                    std::panic::resume_unwind(panic);
                }
            }
        }
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..count).map(|_| scope.spawn(one_thread)).collect();
        for thread in threads {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        }
    });
    done.into_inner().unwrap_or_else(PoisonError::into_inner).into_values().collect()
}

/// Returns the result of `act`; `None` if it takes longer than `limit` or panics, so that a test fails rather than
/// hangs.
pub fn within<T: Send + 'static>(limit: Duration, act: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (answer, answered) = mpsc::channel();
    std::thread::spawn(move || answer.send(act()));
    answered.recv_timeout(limit).ok()
}
