//! The measured programs: Tidegate's query and its baselines.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ::csv as csv_crate;
use differential_dataflow::difference::{IsZero, Semigroup};
use differential_dataflow::input::InputSession;
use foldhash::fast::FixedState;
use serde::{Deserialize, Serialize};
use tidegate::job::Cluster;
use tidegate::source::Options;
use tidegate::source::memory::MemorySource;
use tidegate::{Closed, CompactString, EventTime, Job, Transaction, Window, csv, ndjson};

use kit::{RowChecksum, RunFigures, SharedCheck, timed};

use crate::data::{self, DISORDER, WINDOW};

/// Parameters of a run.
#[derive(Clone, Debug)]
pub(crate) struct RunParameters {
    /// Number of records.
    pub(crate) records: u64,
    /// Number of accounts.
    pub(crate) accounts: u64,
    /// Number of partitions of the records in memory.
    pub(crate) partitions: usize,
    /// Number of workers of each process.
    pub(crate) workers: usize,
    /// Number of this process and the addresses of all; no addresses if there is one process.
    pub(crate) cluster: (usize, Vec<String>),
    /// Directory of files.
    pub(crate) dir: PathBuf,
    /// Addresses of the brokers.
    pub(crate) brokers: String,
}

/// Count, sum, least and greatest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Totals {
    count: i64,
    sum: i64,
    least: i64,
    greatest: i64,
}

impl Totals {
    #[inline]
    pub(crate) fn of(amount: i64) -> Self {
        Totals { count: 1, sum: amount, least: amount, greatest: amount }
    }

    #[inline]
    pub(crate) fn add(&mut self, amount: i64) {
        self.count += 1;
        self.sum += amount;
        self.least = self.least.min(amount);
        self.greatest = self.greatest.max(amount);
    }
}

impl RunParameters {
    /// Generates the records in memory, by partition.
    pub(crate) fn partitions(&self) -> Vec<Vec<data::Small>> {
        let share = |partition| data::small(partition, self.partitions, self.records, self.accounts);
        (0..self.partitions).map(share).collect()
    }
}

impl IsZero for Totals {
    fn is_zero(&self) -> bool {
        self.count == 0
    }
}

impl Semigroup for Totals {
    #[inline]
    fn plus_equals(&mut self, other: &Self) {
        self.count += other.count;
        self.sum += other.sum;
        self.least = self.least.min(other.least);
        self.greatest = self.greatest.max(other.greatest);
    }
}

/// One thread, one hash map with a fast hasher, partitions in turns; late records are left out; rows leave the map when
/// their window closes.
pub(crate) fn memory_by_hand(setting: &RunParameters) -> Result<RunFigures, String> {
    let partitions = setting.partitions();
    timed(|| {
        let mut open: HashMap<(i64, u32), Totals, FixedState> = HashMap::default();
        let (mut marks, mut closed, mut check) = (vec![i64::MIN; partitions.len()], i64::MIN, RowChecksum::default());
        let longest = partitions.iter().map(Vec::len).max().unwrap_or(0);
        for from in (0..longest).step_by(1024) {
            for (partition, mark) in partitions.iter().zip(&mut marks) {
                let to = (from + 1024).min(partition.len());
                for &(account, at, amount) in partition.get(from..to).unwrap_or_default() {
                    let end = at - at.rem_euclid(WINDOW) + WINDOW;
                    if end > *mark {
                        open.entry((end, account)).and_modify(|row| row.add(amount)).or_insert(Totals::of(amount));
                    }
                    *mark = (*mark).max(at - DISORDER);
                }
            }
            let watermark = marks.iter().copied().min().unwrap_or(i64::MIN);
            let through = watermark - watermark.rem_euclid(WINDOW);
            if through > closed {
                closed = through;
                open.retain(|(end, account), row| {
                    if *end <= through {
                        check.add(check_of(*end, u64::from(*account), row));
                    }
                    *end > through
                });
            }
        }
        open.iter().for_each(|((end, account), row)| check.add(check_of(*end, u64::from(*account), row)));
        Ok(check)
    })
}

pub(crate) fn check_of(end: i64, key: u64, row: &Totals) -> RowChecksum {
    RowChecksum::row(end, key, row.count, i128::from(row.sum), row.least, row.greatest)
}

/// Longest wait for the other processes of a run.
const PATIENCE: Duration = Duration::from_secs(60);

/// Number of records of an epoch of the plain differential programs.
const EPOCH: usize = 100_000;

/// Runs a differential program over the records in memory: `dataflow` builds it, and `give` feeds it a record.
fn differential<R: Semigroup + 'static, D: differential_dataflow::Data>(
    setting: &RunParameters,
    dataflow: impl Fn(&mut timely::worker::Worker, &mut InputSession<u64, D, R>, SharedCheck) -> Probe
    + Send
    + Sync
    + 'static,
    give: impl Fn(&mut InputSession<u64, D, R>, i64, data::Small) + Send + Sync + 'static,
    by_window: bool,
) -> Result<RunFigures, String> {
    let partitions = Arc::new(setting.partitions());
    let config = match setting.workers {
        1 => timely::Config::thread(),
        workers => timely::Config::process(workers),
    };
    timed(|| {
        let shared = SharedCheck::default();
        let checks = shared.clone();
        let run = timely::execute(config, move |worker| {
            let mut input = InputSession::new();
            let probe = dataflow(worker, &mut input, checks.clone());
            let mine = partitions.iter().enumerate().filter(|(p, _)| p % worker.peers() == worker.index());
            let mine: Vec<_> = mine.map(|(_, partition)| partition).collect();
            let mut marks = vec![i64::MIN; mine.len()];
            let longest = mine.iter().map(|partition| partition.len()).max().unwrap_or(0);
            for from in (0..longest).step_by(1024) {
                for (partition, mark) in mine.iter().zip(&mut marks) {
                    for &record in &partition[from..(from + 1024).min(partition.len())] {
                        let end = record.1 - record.1.rem_euclid(WINDOW) + WINDOW;
                        if end > *mark {
                            give(&mut input, end, record);
                        }
                        *mark = (*mark).max(record.1 - DISORDER);
                    }
                }
                let watermark = marks.iter().copied().min().unwrap_or(i64::MAX).max(0) as u64 + 1;
                let epoch = ((from + 1024) * partitions.len() / EPOCH) as u64;
                let time = if by_window { watermark } else { epoch };
                if time > *input.time() {
                    input.advance_to(time);
                    input.flush();
                    // As much is in flight in the other programs, too.
                    while probe.less_than(&time.saturating_sub(if by_window { 100_000 } else { 4 })) {
                        worker.step();
                    }
                }
                worker.step();
            }
            input.close();
            while !probe.done() {
                worker.step_or_park(Some(Duration::from_millis(1)));
            }
        });
        run?.join().into_iter().collect::<Result<Vec<_>, _>>()?;
        Ok(shared.get())
    })
}

/// Handle on the progress of a dataflow.
type Probe = timely::dataflow::operators::probe::Handle<u64>;

/// Plain differential dataflow, as one would write it first: amounts by window and account, reduced, kept up to date in
/// epochs of a hundred thousand records.
pub(crate) fn memory_differential(setting: &RunParameters) -> Result<RunFigures, String> {
    let dataflow = |worker: &mut timely::worker::Worker,
                    input: &mut InputSession<u64, ((i64, u32), i64), isize>,
                    checks: SharedCheck| {
        worker.dataflow(|scope| {
            let totals = input.to_collection(scope).reduce(|_row, amounts, totals| {
                let mut total = None::<Totals>;
                for (amount, times) in amounts {
                    let mut several = Totals::of(**amount);
                    (several.count, several.sum) = (*times as i64, **amount * *times as i64);
                    match &mut total {
                        Some(total) => total.plus_equals(&several),
                        None => total = Some(several),
                    }
                }
                totals.extend(total.map(|total| (total, 1)));
            });
            let shown = totals.inspect(move |(((end, account), total), _, diff)| {
                checks.change(check_of(*end, u64::from(*account), total), *diff);
            });
            shown.probe().0
        })
    };
    let give = |input: &mut InputSession<u64, ((i64, u32), i64), isize>, end, (account, _, amount): data::Small| {
        input.insert(((end, account), amount));
    };
    differential(setting, dataflow, give, false)
}

/// Differential dataflow as an expert would write it: a record is an update of its row whose difference holds the
/// totals, with its window's end as timestamp; an arrangement consolidates them, and the frontier follows the
/// watermark, so that each row is emitted once, when its window closes.
pub(crate) fn memory_differences(setting: &RunParameters) -> Result<RunFigures, String> {
    let dataflow = |worker: &mut timely::worker::Worker,
                    input: &mut InputSession<u64, (u64, u32), Totals>,
                    checks: SharedCheck| {
        worker.dataflow(|scope| {
            let rows = input.to_collection(scope).consolidate();
            let shown = rows.inspect(move |((end, account), _, row)| {
                checks.add(check_of(*end as i64, u64::from(*account), row));
            });
            shown.probe().0
        })
    };
    let give = |input: &mut InputSession<u64, (u64, u32), Totals>, end: i64, (account, _, amount): data::Small| {
        input.update_at((end as u64, account), end as u64, Totals::of(amount));
    };
    differential(setting, dataflow, give, true)
}

pub(crate) fn job(setting: &RunParameters) -> Job {
    let options = Options::default().until_end(true).out_of_order(Duration::from_millis(DISORDER as u64));
    Job::new("throughput").workers(setting.workers).options(options)
}

/// Makes the job one of several processes, if there are several, and waits until all of them have their records.
fn in_cluster(job: Job, setting: &RunParameters) -> Result<Job, String> {
    let (process, addresses) = &setting.cluster;
    let Some(first) = addresses.first() else { return Ok(job) };
    let port = first.rsplit(':').next().unwrap_or_default();
    let ready = |process: usize| setting.dir.join(format!("ready-{port}-{process}"));
    std::fs::write(ready(*process), "").map_err(|why| format!("cannot write into {}: {why}", setting.dir.display()))?;
    let begun = Instant::now();
    while !(0..addresses.len()).all(|process| ready(process).exists()) {
        if begun.elapsed() > PATIENCE {
            return Err(String::from("the other processes of the run do not begin"));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(job.cluster(Cluster::new(*process, addresses.clone()).map_err(|error| error.to_string())?))
}

/// Tidegate's windowed totals of records in memory.
pub(crate) fn memory_tidegate(setting: &RunParameters, window: Window) -> Result<RunFigures, String> {
    let records = MemorySource::new(setting.partitions(), |record: &data::Small| record.1);
    let job = in_cluster(job(setting), setting)?;
    timed(|| {
        let shared = SharedCheck::default();
        let checks = shared.clone();
        let run = job.run(move |flow| {
            let checks = checks.clone();
            flow.read("records", &records)
                .key_by(|record| record.0)
                .window(window)
                .aggregate("totals", |each| (each.count(), each.sum(|r| r.2), each.min(|r| r.2), each.max(|r| r.2)))
                .on_close()
                .inspect(move |row| {
                    let (count, sum, least, greatest) = row.value;
                    checks.add(RowChecksum::row(
                        row.window.end.millis(),
                        u64::from(row.key),
                        count,
                        sum,
                        least,
                        greatest,
                    ));
                });
        });
        run.map_err(|error| error.to_string())?;
        Ok(shared.get())
    })
}

/// A row of results, as `account_totals` writes it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
struct Total {
    window_start: EventTime,
    window_end: EventTime,
    account: CompactString,
    count: i64,
    sum_cents: i128,
    min_cents: i64,
    max_cents: i64,
}

/// One thread over a file: rows of text accounts, written as CSV when their window closes.
struct ByHand {
    open: HashMap<i64, HashMap<CompactString, Totals, FixedState>, FixedState>,
    mark: i64,
    out: csv_crate::Writer<BufWriter<File>>,
    check: RowChecksum,
}

impl ByHand {
    fn new(setting: &RunParameters) -> Result<Self, String> {
        let path = setting.dir.join("by_hand.csv");
        let file = File::create(&path).map_err(|why| format!("cannot make {}: {why}", path.display()))?;
        let out = csv_crate::Writer::from_writer(BufWriter::new(file));
        Ok(ByHand { open: HashMap::default(), mark: i64::MIN, out, check: RowChecksum::default() })
    }

    #[inline]
    fn record(&mut self, account: &str, amount: i64, at: i64) -> Result<(), String> {
        let end = at - at.rem_euclid(WINDOW) + WINDOW;
        if end > self.mark {
            let rows = self.open.entry(end).or_default();
            match rows.get_mut(account) {
                Some(row) => row.add(amount),
                None => drop(rows.insert(account.into(), Totals::of(amount))),
            }
        }
        let before = self.mark;
        self.mark = self.mark.max(at - DISORDER);
        if before.div_euclid(WINDOW) != self.mark.div_euclid(WINDOW) { self.close(self.mark) } else { Ok(()) }
    }

    fn close(&mut self, through: i64) -> Result<(), String> {
        let mut ends: Vec<i64> = self.open.keys().copied().filter(|end| *end <= through).collect();
        ends.sort_unstable();
        for end in ends {
            let mut rows: Vec<_> = self.open.remove(&end).unwrap_or_default().into_iter().collect();
            rows.sort_unstable_by(|one, two| one.0.cmp(&two.0));
            let (start, stop) =
                (EventTime::from_millis(end - WINDOW).to_string(), EventTime::from_millis(end).to_string());
            for (account, row) in rows {
                self.check.add(check_of(end, key_of(&account), &row));
                let Totals { count, sum, least, greatest } = row;
                let line = (&start, &stop, account, count, sum, least, greatest);
                self.out.serialize(line).map_err(|why| format!("cannot write results: {why}"))?;
            }
        }
        Ok(())
    }

    fn finish(mut self) -> Result<RowChecksum, String> {
        self.close(i64::MAX)?;
        self.out.flush().map_err(|why| format!("cannot write results: {why}"))?;
        Ok(self.check)
    }
}

/// Converts an account's text to a number, for checksums.
fn key_of(account: &str) -> u64 {
    account.bytes().fold(7, |hash: u64, byte| hash.wrapping_mul(31).wrapping_add(u64::from(byte)))
}

/// The csv crate, decoding what the totals need, on one thread.
pub(crate) fn csv_by_hand(setting: &RunParameters) -> Result<RunFigures, String> {
    let path = data::file(&setting.dir, "csv");
    timed(|| {
        let said = |why: csv_crate::Error| format!("cannot read {}: {why}", path.display());
        let mut reader = csv_crate::Reader::from_path(&path).map_err(said)?;
        let (mut by_hand, mut row) = (ByHand::new(setting)?, csv_crate::ByteRecord::new());
        let number = |field: Option<&[u8]>| -> Result<i64, String> {
            let text = field.and_then(|field| std::str::from_utf8(field).ok());
            text.and_then(|text| text.parse().ok()).ok_or_else(|| String::from("a field is no number"))
        };
        while reader.read_byte_record(&mut row).map_err(said)? {
            let account =
                row.get(1).and_then(|field| std::str::from_utf8(field).ok()).ok_or("an account is no text")?;
            by_hand.record(account, number(row.get(3))?, number(row.get(5))?)?;
        }
        by_hand.finish()
    })
}

/// Fields of a JSON transaction that the totals need, borrowed.
#[derive(Deserialize)]
struct Needed<'a> {
    account: &'a str,
    amount_cents: i64,
    at_ms: i64,
}

/// serde_json, decoding what the totals need, on one thread.
pub(crate) fn ndjson_by_hand(setting: &RunParameters) -> Result<RunFigures, String> {
    let path = data::file(&setting.dir, "ndjson");
    timed(|| {
        let file = File::open(&path).map_err(|why| format!("cannot read {}: {why}", path.display()))?;
        let (mut reader, mut line) = (BufReader::with_capacity(1 << 18, file), Vec::new());
        let mut by_hand = ByHand::new(setting)?;
        while reader.read_until(b'\n', &mut line).map_err(|why| why.to_string())? > 0 {
            let needed: Needed<'_> = serde_json::from_slice(&line).map_err(|why| why.to_string())?;
            by_hand.record(needed.account, needed.amount_cents, needed.at_ms)?;
            line.clear();
        }
        by_hand.finish()
    })
}

/// Tidegate's `account_totals` over a source, results written as CSV.
pub(crate) fn totals<S: tidegate::source::Source<Item = Transaction>>(
    setting: &RunParameters,
    source: S,
) -> Result<RunFigures, String> {
    let out = csv::Sink::new(setting.dir.join("tidegate.csv"));
    timed(|| {
        let shared = SharedCheck::default();
        let checks = shared.clone();
        let run = job(setting).run(move |flow| {
            let checks = checks.clone();
            flow.read("transactions", &source)
                .key_by(|t| t.account.clone())
                .window(Window::tumbling(Duration::from_millis(WINDOW as u64)))
                .aggregate("totals", |each| {
                    let amount = |t: &Transaction| t.amount_cents;
                    (each.count(), each.sum(amount), each.min(amount), each.max(amount))
                })
                .on_close()
                .inspect(move |row| {
                    let (count, sum, least, greatest) = row.value;
                    checks.add(RowChecksum::row(
                        row.window.end.millis(),
                        key_of(&row.key),
                        count,
                        sum,
                        least,
                        greatest,
                    ));
                })
                .map(total)
                .write("totals", &out);
        });
        run.map_err(|error| error.to_string())?;
        Ok(shared.get())
    })
}

fn total(closed: Closed<CompactString, (i64, i128, i64, i64)>) -> Total {
    let Closed { window, key: account, value: (count, sum_cents, min_cents, max_cents) } = closed;
    Total { window_start: window.start, window_end: window.end, account, count, sum_cents, min_cents, max_cents }
}

/// Tidegate from a CSV file.
pub(crate) fn csv_tidegate(setting: &RunParameters) -> Result<RunFigures, String> {
    totals(setting, csv::Source::new(data::file(&setting.dir, "csv")).event_time(|t: &Transaction| t.at_ms))
}

/// Tidegate from a file with one JSON object a line.
pub(crate) fn ndjson_tidegate(setting: &RunParameters) -> Result<RunFigures, String> {
    totals(setting, ndjson::Source::new(data::file(&setting.dir, "ndjson")).event_time(|t: &Transaction| t.at_ms))
}
