//! Cost of durable state: snapshots against the size of the state, and throughput and latency with and without it.
//!
//! * `size`: a state of 10^4 … 10^7 keys of which the same number change between two snapshots. The duration of a
//!   snapshot, and the bytes it writes, must depend on what changed, not on what is stored. Bytes of background merges
//!   are reported separately.
//! * `throughput`: tumbling totals over 100,000 accounts at maximum speed: without state, with only the journal, and
//!   with a snapshot per second; results written to a file.
//! * `latency`: open loop, 50,000 records per second by the clock, each written unchanged: from the time at which a
//!   record was due until its epoch was published in a file and synced, or until a `read_committed` consumer has it
//!   from the topic of a real broker. The interval of snapshots is listed too: results do not wait for them.
//!
//! `cargo bench -p benches --bench snapshot`

#[path = "broker/mod.rs"]
mod broker;
#[path = "state/mod.rs"]
mod state;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
use kit::{BenchFlags, Distribution, Environment, Measured, ResultLine, RowChecksum, Spread, measure, timed};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::Message as _;
use serde::{Deserialize, Serialize};
use tidegate::durable::journal::JournalEnds;
use tidegate::durable::{Incarnation, PublishedEpoch};
use tidegate::metrics::Metrics;
use tidegate::sink::kafka::{self, Publisher};
use tidegate::sink::{Sink, SinkContext, SinkRows, SinkWriter};
use tidegate::source::Options;
use tidegate::time::Epoch;
use tidegate::{Error, EventTime, Job, Record, Result, State, Window, csv};

use broker::Broker;
use state::{GeneratedSource, bytes_in, median, quantile};

/// The allocator that Tidegate's own programs use.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A part of the benchmark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Measurement {
    /// Snapshots against the size of the state.
    Size,
    /// Throughput with and without state.
    Throughput,
    /// Latency with and without state.
    Latency,
}

/// Sink of the latency measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum LatencySink {
    /// A file.
    File,
    /// A topic of a real broker (Java and Maven are needed).
    Kafka,
}

/// Measures the cost of durable state
#[derive(Debug, Parser)]
#[command(after_help = "Examples:
  cargo bench -p benches --bench snapshot
  cargo bench -p benches --bench snapshot -- --parts size --keys 10000,1000000 --json > figures.ndjson")]
struct Arguments {
    /// Parts to measure
    #[arg(long, value_enum, value_delimiter = ',', default_value = "size,throughput,latency")]
    parts: Vec<Measurement>,

    /// Numbers of keys in the state
    #[arg(long, value_delimiter = ',', default_value = "10000,100000,1000000,10000000")]
    keys: Vec<u64>,

    /// Number of keys that change between two snapshots
    #[arg(long, default_value_t = 10_000)]
    changes: u64,

    /// Number of snapshots of each size
    #[arg(long, default_value_t = 20)]
    snapshots: u64,

    /// Number of records of each throughput run
    #[arg(long, default_value_t = 60_000_000)]
    records: u64,

    /// Number of runs of each; medians are shown
    #[arg(long, default_value_t = 5)]
    runs: usize,

    /// Numbers of worker threads
    #[arg(long, value_delimiter = ',', default_value = "1,2")]
    workers: Vec<usize>,

    /// Records per second in latency runs
    #[arg(long, default_value_t = 50_000)]
    rate: u64,

    /// Duration of latency runs, in seconds
    #[arg(long, default_value_t = 10)]
    seconds: u64,

    /// Sinks of latency runs [default: all, kafka if Java and Maven are there]
    #[arg(long, value_enum, value_delimiter = ',')]
    sinks: Vec<LatencySink>,

    /// Directory of files [default: a temporary directory]
    #[arg(long)]
    dir: Option<PathBuf>,

    #[command(flatten)]
    flags: BenchFlags,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let dir = arguments.dir.clone().unwrap_or_else(std::env::temp_dir);
    let dir = dir.join(format!("tidegate-snapshot-{}", std::process::id()));
    let environment = Environment::now();
    let all = || {
        arguments.parts.iter().try_for_each(|part| match part {
            Measurement::Size => size(&arguments, &dir, &environment),
            Measurement::Throughput => throughput(&arguments, &environment),
            Measurement::Latency => latency(&arguments, &dir, &environment),
        })
    };
    let measured = arguments.flags.one().map_err(Error::new).and_then(|run| match run {
        Some(run) => one(&arguments, &dir, run),
        None => all(),
    });
    let _ = std::fs::remove_dir_all(&dir);
    kit::exit_code(measured)
}

fn named(figures: impl IntoIterator<Item = (&'static str, f64)>) -> BTreeMap<String, f64> {
    figures.into_iter().map(|(name, figure)| (name.to_owned(), figure)).collect()
}

/// Prints a line of a result file.
fn print_line(line: ResultLine) -> Result<()> {
    measure::show(&[line], true).map_err(Error::new)
}

/// Returns a new empty directory.
fn fresh(dir: &Path, name: &str) -> PathBuf {
    let path = dir.join(name);
    let _ = std::fs::remove_dir_all(&path);
    let _ = std::fs::create_dir_all(&path);
    path
}

fn until_end() -> Options {
    Options::default().until_end(true)
}

/// Measures snapshots of a state of many keys, of which few change.
fn size(arguments: &Arguments, dir: &Path, environment: &Environment) -> Result<()> {
    let Arguments { changes, snapshots, .. } = *arguments;
    let json = arguments.flags.json;
    if !json {
        println!("\nsnapshots: {changes} keys change between two, median of {snapshots}; one worker");
        println!("  {:>10}{:>14}{:>10}{:>16}{:>10}{:>16}", "keys", "ms", "ratio", "bytes", "ratio", "state, bytes");
    }
    let mut first = None;
    for &keys in &arguments.keys {
        let directory = fresh(dir, "size");
        // Every key once, then the keys that change, `changes` of them before each snapshot.
        let a_snapshot = Duration::from_millis(400);
        let rate = (changes as f64 / a_snapshot.as_secs_f64()) as u64;
        let make =
            move |number: u64| if number < keys { number } else { (number - keys) % changes * (keys / changes).max(1) };
        let filling = GeneratedSource::new(1, keys, make, |_| 0).endless();
        run_totals(&directory, filling, Duration::from_secs(3600), keys)?;
        let whole = GeneratedSource::new(1, keys + changes * snapshots, make, |_| 0).endless();
        let whole = whole.paced(keys, Instant::now(), rate);
        let metrics = run_totals(&directory, whole, a_snapshot, changes * snapshots)?;
        let metrics = &metrics.snapshots;
        let taken = metrics.recent();
        let steady: Vec<_> = taken.iter().filter(|one| one.rows > changes / 2 && one.rows < changes * 3).collect();
        let ms = median(steady.iter().map(|one| one.took.as_secs_f64() * 1e3).collect());
        let bytes = median(steady.iter().map(|one| one.bytes as f64 / one.rows as f64 * changes as f64).collect());
        let (ms_at_first, bytes_at_first) = *first.get_or_insert((ms, bytes));
        let (stored, merged) = (bytes_in(&directory.join("segments")), metrics.merged.get());
        if json {
            let figures = [("keys", keys as f64), ("changes", changes as f64), ("snapshots", steady.len() as f64)];
            let costs = [("ms", ms), ("bytes", bytes), ("stored", stored as f64), ("merged", merged as f64)];
            let mut measured = Measured::new(format!("Tidegate, {keys} keys"), 1, 1);
            measured.figures = named(figures.into_iter().chain(costs));
            let title = format!("Snapshots of {changes} changes");
            print_line(measured.line("snapshot", &title, keys + changes * snapshots, environment))?;
        } else {
            let (ms_ratio, bytes_ratio) = (ms / ms_at_first, bytes / bytes_at_first);
            println!(
                "  {keys:>10}{ms:>14.1}{ms_ratio:>10.2}{bytes:>16.0}{bytes_ratio:>10.2}{stored:>16}   {merged} bytes merged"
            );
        }
    }
    Ok(())
}

/// Runs totals over all time until `records` records are read.
fn run_totals(directory: &Path, source: GeneratedSource<u64>, every: Duration, records: u64) -> Result<Arc<Metrics>> {
    let job = Job::new("size").state(State::at(directory).snapshot_every(every));
    let (metrics, stop) = (job.metrics(), job.stopper());
    let watched = Arc::clone(&metrics);
    let over = Arc::new(AtomicBool::new(false));
    let ended = Arc::clone(&over);
    let watcher = std::thread::spawn(move || {
        while !ended.load(Ordering::Acquire) {
            if watched.summary().sources.first().is_some_and(|source| source.read >= records) {
                stop.stop();
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    });
    let ran = job.run(move |flow| {
        let totals = flow.read("numbers", &source).key_by(|number| *number).window(Window::global());
        let totals = totals.aggregate("totals", |each| (each.count(), each.sum(|number| *number)));
        totals.on_close().inspect(|_| {});
    });
    over.store(true, Ordering::Release);
    let _ = watcher.join();
    ran.map(|_report| metrics)
}

/// A row of totals.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
struct Total {
    window_end: EventTime,
    account: u32,
    count: i64,
    sum: i128,
}

/// Measures throughput without state, with the journal, and with snapshots.
fn throughput(arguments: &Arguments, environment: &Environment) -> Result<()> {
    let Arguments { records, runs, .. } = *arguments;
    let json = arguments.flags.json;
    if !json {
        println!("\nthroughput: {records} records in memory, totals to a file, median of {runs}");
        println!(
            "  {:<22}{:>8}{:>12}{:>16}{:>8}{:>12}",
            "durability", "workers", "snapshots", "M records/s", "ratio", "CPU s/M"
        );
    }
    for &workers in &arguments.workers {
        let mut kinds = DURABILITIES.map(|(name, _)| (Measured::new(name, workers, 1), Vec::new()));
        for _ in 0..runs {
            for (measured, snapshots) in &mut kinds {
                let numbers = [workers.to_string(), records.to_string()];
                let words = ["--one", &measured.program, &numbers[0], "--records", &numbers[1]].map(str::to_owned);
                let dir = arguments.dir.iter().flat_map(|dir| [String::from("--dir"), dir.display().to_string()]);
                let words: Vec<String> = words.into_iter().chain(dir).collect();
                let figures = measure::run_apart(&words).map_err(Error::new)?;
                snapshots.push(figures.check.rows as f64);
                measured.add(figures);
            }
        }
        let mut base = None;
        for (mut measured, snapshots) in kinds {
            let snapshots = Spread::of(snapshots).median;
            measured.figures = named([("snapshots", snapshots)]);
            let line = measured.line("snapshot", "Totals with a state", records, environment);
            let (rate, cpu) = (line.rate().median, line.cpu().median);
            let ratio = rate / *base.get_or_insert(rate);
            if json {
                print_line(line)?;
            } else {
                println!("  {:<22}{workers:>8}{snapshots:>12}{rate:>16.2}{ratio:>8.2}{cpu:>12.3}", line.program);
            }
        }
    }
    Ok(())
}

/// A record of throughput runs: account, amount, event time.
type Deal = (u32, i64, i64);

/// The durabilities of throughput runs, with the interval of snapshots; `None` without state.
const DURABILITIES: [(&str, Option<Duration>); 3] =
    [("off", None), ("journal only", Some(Duration::from_secs(3600))), ("full", Some(Duration::from_secs(1)))];

/// Makes one throughput run, and prints its measurements. The number of its snapshots is told as that of rows.
fn one(arguments: &Arguments, dir: &Path, [durability, workers]: &[String; 2]) -> Result<()> {
    let kind = DURABILITIES.iter().find(|(name, _)| name == durability);
    let (_, every) = kind.ok_or_else(|| Error::new(format!("there is no durability `{durability}`")))?;
    let workers = workers.parse().map_err(|_| Error::new("the number of workers is no number"))?;
    let ran = timed(|| {
        let snapshots = one_run(arguments.records, workers, *every, dir).map_err(|error| error.to_string())?;
        Ok(RowChecksum { rows: snapshots, records: arguments.records, hash: 0 })
    });
    println!("{}", ran.map_err(Error::new)?.to_line());
    Ok(())
}

/// Runs totals, and returns the number of snapshots.
fn one_run(records: u64, workers: usize, every: Option<Duration>, dir: &Path) -> Result<u64> {
    let directory = fresh(dir, "throughput");
    let make = |number: u64| {
        let dice = number.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        (((dice >> 33) % 100_000) as u32, (dice >> 20) as i64 % 20_000, (number / 100) as i64)
    };
    let source = GeneratedSource::new(4, records, make, |deal: &Deal| deal.2);
    let out = csv::Sink::new(directory.join("totals.csv"));
    let job = Job::new("totals").workers(workers).options(until_end());
    let job = match every {
        Some(every) => job.state(State::at(directory.join("state")).snapshot_every(every)),
        None => job,
    };
    let metrics = job.metrics();
    job.run(move |flow| {
        flow.read("deals", &source)
            .key_by(|deal| deal.0)
            .window(Window::tumbling(Duration::from_secs(10)))
            .aggregate("totals", |each| (each.count(), each.sum(|deal| deal.1)))
            .on_close()
            .map(|row| Total { window_end: row.window.end, account: row.key, count: row.value.0, sum: row.value.1 })
            .write("totals", &out);
    })?;
    Ok(metrics.snapshots.recent().len() as u64)
}

/// A record with the time at which it was due, in microseconds since the run began.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
struct DueRecord {
    number: u64,
    due_us: u64,
}

/// A sink that records, when an epoch is published, the time since each of its records was due.
struct TimedSink<S> {
    sink: S,
    begun: Instant,
    late_ms: Arc<Mutex<Vec<f64>>>,
}

impl<S: Sink<DueRecord>> Sink<DueRecord> for TimedSink<S> {
    fn describe(&self) -> String {
        self.sink.describe()
    }

    fn check(&self, rows: SinkRows) -> Result<()> {
        self.sink.check(rows)
    }

    fn open(&self, at: &SinkContext) -> Result<Box<dyn SinkWriter<DueRecord>>> {
        let (writer, late_ms) = (self.sink.open(at)?, Arc::clone(&self.late_ms));
        Ok(Box::new(TimedWriter { writer, begun: self.begun, late_ms, written: Vec::new() }))
    }
}

struct TimedWriter<D: Record> {
    writer: Box<dyn SinkWriter<D>>,
    begun: Instant,
    late_ms: Arc<Mutex<Vec<f64>>>,
    written: Vec<u64>,
}

impl SinkWriter<DueRecord> for TimedWriter<DueRecord> {
    fn published(&mut self) -> Result<Option<PublishedEpoch>> {
        self.writer.published()
    }

    fn begin(&mut self, life: &Incarnation) -> Result<()> {
        self.writer.begin(life)
    }

    fn write(&mut self, epoch: Epoch, rows: &[(DueRecord, isize)]) -> Result<()> {
        self.written.extend(rows.iter().map(|(row, _)| row.due_us));
        self.writer.write(epoch, rows)
    }

    fn publish(&mut self, ends: &JournalEnds) -> Result<()> {
        self.writer.publish(ends)?;
        let now = self.begun.elapsed().as_secs_f64() * 1e3;
        let mut late_ms = self.late_ms.lock().unwrap_or_else(PoisonError::into_inner);
        late_ms.extend(self.written.drain(..).map(|due_us| now - due_us as f64 / 1e3));
        Ok(())
    }

    fn finish(&mut self) -> Result<()> {
        self.writer.finish()
    }

    fn is_blocking(&self) -> bool {
        self.writer.is_blocking()
    }
}

/// Durability of a latency run, and the length of its epochs.
#[derive(Clone, Copy)]
struct DurabilitySetting {
    durability: &'static str,
    /// Interval of snapshots; `None` without state.
    every: Option<u64>,
    epoch_ms: u64,
}

/// Measures the time from when records were due until they were published, at a steady rate.
fn latency(arguments: &Arguments, dir: &Path, environment: &Environment) -> Result<()> {
    let Arguments { rate, seconds, .. } = *arguments;
    if !arguments.flags.json {
        println!("\nlatency: {rate} records a second for {seconds} s, each of them shown; from due to shown, ms");
        println!(
            "  {:<8}{:<16}{:>10}{:>12}{:>10}{:>10}{:>10}",
            "sink", "durability", "epoch", "snapshots", "p50", "p99", "most"
        );
    }
    let sinks =
        if arguments.sinks.is_empty() { &[LatencySink::File, LatencySink::Kafka][..] } else { &arguments.sinks[..] };
    for sink in sinks {
        let broker = match sink {
            LatencySink::File => None,
            LatencySink::Kafka => match Broker::start(dir) {
                Ok(broker) => Some(broker),
                Err(why) if arguments.sinks.is_empty() => {
                    eprintln!("SKIPPED: results in topics: {why}");
                    continue;
                }
                Err(why) => return Err(Error::new(why)),
            },
        };
        for (durability, every) in [("off", None), ("journal only", Some(3600)), ("full", Some(1)), ("full", Some(5))] {
            // Without state there are no transactions, so no committed messages.
            if broker.is_some() && every.is_none() {
                continue;
            }
            for epoch_ms in [100, 20] {
                let (manner, directory) = (DurabilitySetting { durability, every, epoch_ms }, fresh(dir, "latency"));
                let mut late_ms = match &broker {
                    None => to_file(arguments, manner, &directory)?,
                    Some(broker) => to_topic(arguments, manner, &directory, &broker.address)?,
                };
                late_ms.sort_by(f64::total_cmp);
                say_latency(arguments, *sink, manner, &late_ms, environment)?;
            }
        }
    }
    Ok(())
}

fn say_latency(
    arguments: &Arguments,
    sink: LatencySink,
    manner: DurabilitySetting,
    sorted: &[f64],
    environment: &Environment,
) -> Result<()> {
    let DurabilitySetting { durability, every, epoch_ms } = manner;
    let (p50, p99, most) = (quantile(sorted, 0.5), quantile(sorted, 0.99), quantile(sorted, 1.0));
    let interval = every.filter(|every| *every < 3600).map_or("-".into(), |every| format!("{every} s"));
    let sink = format!("{sink:?}").to_lowercase();
    if !arguments.flags.json {
        println!("  {sink:<8}{durability:<16}{epoch_ms:>7} ms{interval:>12}{p50:>10.1}{p99:>10.1}{most:>10.1}");
        return Ok(());
    }
    let program = match every {
        Some(every) if every < 3600 => format!("{durability}, a snapshot every {every} s"),
        _ => durability.to_owned(),
    };
    let mut measured = Measured::new(program, 1, 1);
    measured.figures = named([("rate", arguments.rate as f64), ("epoch_ms", epoch_ms as f64)]);
    // Shares of the records that took longer, down to one in a thousand.
    let shares = (0..=60).map(|step| 10_f64.powf(-f64::from(step) / 20.0));
    let ccdf = shares.map(|share| [quantile(sorted, 1.0 - share), share]).collect();
    let distribution = Distribution { percentiles: vec![[50.0, p50], [99.0, p99], [100.0, most]], ccdf };
    let title = format!("Latency with a state, {sink}, epochs of {epoch_ms} ms");
    let line = measured.line("snapshot", &title, sorted.len() as u64, environment);
    print_line(ResultLine { latencies: vec![distribution], ..line })
}

/// Runs a query that writes its input, with a state beside it of as many keys as there are records in a second.
fn run_due<S: Sink<DueRecord>>(
    arguments: &Arguments,
    manner: DurabilitySetting,
    directory: &Path,
    begun: Instant,
    sink: S,
) -> Result<()> {
    let Arguments { rate, seconds, .. } = *arguments;
    let make = move |number| DueRecord { number, due_us: number * 1_000_000 / rate };
    let source =
        GeneratedSource::new(1, rate * seconds, make, |due: &DueRecord| due.due_us as i64 / 1000).paced(0, begun, rate);
    let job = Job::new("latency").options(until_end()).epoch(Duration::from_millis(manner.epoch_ms));
    let job = match manner.every {
        Some(every) => job.state(State::at(directory.join("state")).snapshot_every(Duration::from_secs(every))),
        None => job,
    };
    job.run(move |flow| {
        let due = flow.read("due", &source);
        let counts = due.clone().key_by(move |due| due.number % rate).window(Window::tumbling(Duration::from_secs(2)));
        counts.aggregate("counts", |each| (each.count(),)).on_close().inspect(|_| {});
        due.write("out", &sink);
    })?;
    Ok(())
}

/// Returns the times from when records were due until they were published in a file, in milliseconds.
fn to_file(arguments: &Arguments, manner: DurabilitySetting, directory: &Path) -> Result<Vec<f64>> {
    let (begun, late_ms) = (Instant::now(), Arc::new(Mutex::new(Vec::new())));
    let sink = TimedSink { sink: csv::Sink::new(directory.join("out.csv")), begun, late_ms: Arc::clone(&late_ms) };
    run_due(arguments, manner, directory, begun, sink)?;
    let late_ms = late_ms.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(late_ms.clone())
}

/// Returns the times from when records were due until a `read_committed` consumer had them, in milliseconds.
fn to_topic(arguments: &Arguments, manner: DurabilitySetting, directory: &Path, brokers: &str) -> Result<Vec<f64>> {
    let topic =
        format!("due-{}-{}-{}", manner.durability.replace(' ', "-"), manner.every.unwrap_or(0), manner.epoch_ms);
    Publisher::open(brokers, &topic, [], Some(1))?;
    let unread = |why: &dyn std::fmt::Display| Error::new(format!("cannot read the topic {topic}: {why}"));
    let mut config = rdkafka::ClientConfig::new();
    config.set("bootstrap.servers", brokers).set("group.id", "latency").set("enable.auto.commit", "false");
    config.set("isolation.level", "read_committed").set("fetch.wait.max.ms", "5");
    let consumer: BaseConsumer = config.create().map_err(|why| unread(&why))?;
    let mut partitions = rdkafka::TopicPartitionList::new();
    partitions.add_partition_offset(&topic, 0, rdkafka::Offset::Beginning).map_err(|why| unread(&why))?;
    consumer.assign(&partitions).map_err(|why| unread(&why))?;
    let wanted = (arguments.rate * arguments.seconds) as usize;
    let begun = Instant::now();
    let over = Arc::new(AtomicBool::new(false));
    std::thread::scope(|scope| {
        let (job_is_over, unread) = (Arc::clone(&over), &unread);
        let reader = scope.spawn(move || -> Result<Vec<f64>> {
            let (mut late_ms, mut patience) = (Vec::with_capacity(wanted), 100);
            while late_ms.len() < wanted && patience > 0 {
                let Some(message) = consumer.poll(Duration::from_millis(100)) else {
                    patience -= usize::from(job_is_over.load(Ordering::Acquire));
                    continue;
                };
                let message = message.map_err(|why| unread(&why))?;
                let now = begun.elapsed().as_secs_f64() * 1e3;
                let due: DueRecord =
                    serde_json::from_slice(message.payload().unwrap_or_default()).map_err(|why| unread(&why))?;
                late_ms.push(now - due.due_us as f64 / 1e3);
            }
            if late_ms.len() < wanted {
                return Err(unread(&format!("only {} of {wanted} records came", late_ms.len())));
            }
            Ok(late_ms)
        });
        let ran = run_due(arguments, manner, directory, begun, kafka::Sink::json(brokers, &topic));
        over.store(true, Ordering::Release);
        let read = reader.join().unwrap_or_else(|_| Err(Error::new("the consumer panicked")));
        ran.and(read)
    })
}
