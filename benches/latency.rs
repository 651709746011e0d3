//! Latency of results: from when a record is due until its result can be read, at a rate that does not depend on the
//! engine.
//!
//! A thread sends records at times that are fixed before the run (an open loop). A record that could not be sent in
//! time, because the engine had no room for it, is still counted from when it was due: otherwise a stall would hide the
//! records that it holds up (Gil Tene's "coordinated omission"). Each record becomes one row, and another thread reads
//! rows as a user would: by following the file, or by a consumer of committed messages. Times are kept in a histogram
//! whose relative error is below 0.1 %.
//!
//! The first seconds of each run are left out, so that no latency is that of a start; `--warm-up 0` has them in it.
//!
//! `cargo bench -p benches --bench latency` ; with `--json` one object a run, with the points of its distribution

#[path = "broker/mod.rs"]
mod broker;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use broker::Broker;
use clap::{Parser, ValueEnum};
use hdrhistogram::Histogram;
use kit::environment::{cpu_seconds, peak_mib};
use kit::result_file::VERSION;
use kit::{BenchFlags, Distribution, Environment, ResultLine, Sample};
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::Message;
use rdkafka::{Offset, TopicPartitionList};
use serde::{Deserialize, Serialize};
use tidegate::source::channel::{ChannelSender, channel};
use tidegate::{Error, EventTime, Job, Result, State, csv, kafka};

/// The allocator that Tidegate's own programs use.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Interval between two looks at a file for new rows, and between two looks at the clock for records that are due.
const LOOK: Duration = Duration::from_micros(200);
/// Longest wait for rows after the last record was due.
const PATIENCE: Duration = Duration::from_secs(30);
/// Number of partitions of the topic.
const PARTITIONS: u32 = 1;
/// Percentiles that are shown.
const PERCENTILES: [f64; 6] = [50.0, 90.0, 99.0, 99.9, 99.99, 100.0];

/// Target of the rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    /// A CSV file, which a thread follows.
    Csv,
    /// A topic of a real broker on this machine, read by a consumer of committed messages (Java and Maven are needed).
    Kafka,
}

/// Part of a job that survives a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Durability {
    /// Nothing; for files only, as topics get transactions by a state.
    None,
    /// Input, by a journal; no snapshot is taken during a run.
    Journal,
    /// Input and state: a journal, and snapshots.
    Full,
}

/// Measures the latency of results
#[derive(Clone, Debug, Parser)]
#[command(after_help = "Examples:
  cargo bench -p benches --bench latency
  cargo bench -p benches --bench latency -- --output kafka --epoch-ms 20 --seconds 30 --runs 5
  cargo bench -p benches --bench latency -- --json > latency.ndjson")]
struct Arguments {
    /// Records a second
    #[arg(long, default_value_t = 50_000)]
    rate: u64,

    /// Seconds for which records are due in a run
    #[arg(long, default_value_t = 10)]
    seconds: u64,

    /// Seconds at the beginning of a run that are left out of the figures
    #[arg(long, default_value_t = 2)]
    warm_up: u64,

    /// Lengths of epochs, in milliseconds
    #[arg(long, value_delimiter = ',', default_value = "100,20")]
    epoch_ms: Vec<u64>,

    /// Outputs
    #[arg(long, value_delimiter = ',', default_value = "csv,kafka")]
    output: Vec<Output>,

    /// Kinds of durability
    #[arg(long, value_delimiter = ',', default_value = "none,journal,full")]
    durability: Vec<Durability>,

    /// Seconds between snapshots, with full durability
    #[arg(long, default_value_t = 1)]
    snapshot_seconds: u64,

    /// Number of worker threads
    #[arg(long, default_value_t = 1)]
    workers: usize,

    /// Runs of each; the medians of their percentiles are shown, with the least and the greatest
    #[arg(long, default_value_t = 3)]
    runs: usize,

    /// Directory of files [default: a temporary directory]
    #[arg(long)]
    dir: Option<PathBuf>,

    #[command(flatten)]
    flags: BenchFlags,
}

/// A record, and the row that it becomes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
struct Row {
    /// Nanoseconds from the start of the run until the record was due.
    due: u64,
    number: u64,
}

/// A configuration to measure.
#[derive(Clone, Copy, Debug)]
struct Configuration {
    output: Output,
    durability: Durability,
    epoch: Duration,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let dir = arguments.dir.clone().unwrap_or_else(std::env::temp_dir);
    let dir = dir.join(format!("tidegate-latency-{}", std::process::id()));
    let measured = std::fs::create_dir_all(&dir)
        .map_err(|why| Error::new("cannot create a directory").at(dir.display()).because(why))
        .and_then(|()| arguments.flags.one::<0>().map_err(Error::new))
        .and_then(|_| measure(&arguments, &dir));
    let _ = std::fs::remove_dir_all(&dir);
    kit::exit_code(measured)
}

/// Measurements of a run.
struct Run {
    /// Nanoseconds.
    latencies: Histogram<u64>,
    sample: Sample,
}

fn measure(arguments: &Arguments, dir: &Path) -> Result<()> {
    let environment = Environment::now();
    let broker = match arguments.output.contains(&Output::Kafka) {
        true => Some(Broker::start(dir).map_err(|why| Error::new("no broker").because(why))?),
        false => None,
    };
    let mut configurations = Vec::new();
    for &output in &arguments.output {
        for millis in &arguments.epoch_ms {
            let epoch = Duration::from_millis(*millis);
            let durabilities = arguments.durability.iter().filter(|durability| {
                // Without a state there are no transactions.
                output == Output::Csv || **durability != Durability::None
            });
            configurations.extend(durabilities.map(|&durability| Configuration { output, durability, epoch }));
        }
    }
    // Turn about, so that a noisy moment affects all of them.
    let mut figures: Vec<Vec<Run>> = configurations.iter().map(|_| Vec::new()).collect();
    for number in 0..arguments.runs {
        for (configuration, figures) in configurations.iter().zip(&mut figures) {
            let run = dir.join(format!("run-{number}"));
            eprint!("\rrun {} of {}: {configuration:?}    ", number + 1, arguments.runs);
            let (cpu, begun) = (cpu_seconds(), Instant::now());
            let latencies = run_once(arguments, *configuration, broker.as_ref(), &run)?;
            let (seconds, cpu_seconds) = (begun.elapsed().as_secs_f64(), cpu_seconds() - cpu);
            let _ = std::fs::remove_dir_all(&run);
            // Sender and reader are in this process, too, and runs follow each other in it.
            figures.push(Run { latencies, sample: Sample { seconds, cpu_seconds, peak_mib: peak_mib() } });
        }
    }
    eprintln!();
    if arguments.flags.json {
        return print_json(arguments, &environment, &configurations, &figures);
    }
    println!("{}", environment.line());
    print_table(arguments, &configurations, &figures);
    Ok(())
}

/// Runs a job once, and returns the latencies of its rows in nanoseconds.
fn run_once(
    arguments: &Arguments,
    Configuration { output, durability, epoch }: Configuration,
    broker: Option<&Broker>,
    run: &Path,
) -> Result<Histogram<u64>> {
    let records = arguments.rate * arguments.seconds;
    // Room for a second: a longer stall is waited out by the sender, and is in the figures all the same.
    let (sender, source) = channel::<Row>(usize::try_from(arguments.rate).unwrap_or(usize::MAX));
    let source = source.event_time(|row| EventTime::from_millis((row.due / 1_000_000) as i64));
    let job = Job::new("latency").workers(arguments.workers).epoch(epoch);
    let state = |every| State::at(run.join("state")).snapshot_every(every);
    let job = match durability {
        Durability::None => job,
        Durability::Journal => job.state(state(Duration::from_secs(86_400))),
        Durability::Full => job.state(state(Duration::from_secs(arguments.snapshot_seconds))),
    };
    let _ = std::fs::create_dir_all(run);
    let begun = Instant::now();
    let rate = arguments.rate;
    let sending = thread::spawn(move || send_on_time(&sender, begun, rate, records));
    let after = Duration::from_secs(arguments.warm_up);
    let deadline = begun + Duration::from_secs(arguments.seconds) + PATIENCE;
    let (file, topic) = (run.join("rows.csv"), format!("rows-{}", begun_nanos()));
    let reading = {
        let latencies = Latencies::new(begun, after, records, deadline)?;
        match (output, broker) {
            (Output::Kafka, Some(broker)) => {
                let (address, topic) = (broker.address.clone(), topic.clone());
                thread::spawn(move || latencies.of_topic(&address, &topic))
            }
            _ => {
                let file = file.clone();
                thread::spawn(move || latencies.of_file(&file))
            }
        }
    };
    match (output, broker) {
        (Output::Kafka, Some(broker)) => {
            let sink = kafka::Sink::json(&broker.address, &topic).create(PARTITIONS);
            job.run(move |flow| flow.read("records", &source).write("rows", &sink))?;
        }
        _ => {
            let sink = csv::Sink::new(file);
            job.run(move |flow| flow.read("records", &source).write("rows", &sink))?;
        }
    }
    let panicked = |_| Error::new("a thread of the benchmark has panicked");
    sending.join().map_err(panicked)??;
    reading.join().map_err(panicked)?
}

/// Returns a number that no other run has.
fn begun_nanos() -> u128 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_nanos())
}

/// Sends records at the times at which they are due, or as soon after as there is room.
fn send_on_time(sender: &ChannelSender<Row>, begun: Instant, rate: u64, records: u64) -> Result<()> {
    // The job starts; what is due meanwhile is late.
    sender.position()?;
    for number in 0..records {
        let due = number * 1_000_000_000 / rate;
        while begun.elapsed() < Duration::from_nanos(due) {
            thread::sleep(LOOK);
        }
        sender.send(Row { due, number })?;
    }
    sender.close();
    Ok(())
}

/// Reader of a run's rows.
struct Latencies {
    begun: Instant,
    /// Records that are due before are left out.
    after: Duration,
    records: u64,
    deadline: Instant,
    /// Number of rows that were read.
    read: u64,
    histogram: Histogram<u64>,
}

impl Latencies {
    fn new(begun: Instant, after: Duration, records: u64, deadline: Instant) -> Result<Self> {
        let histogram = Histogram::new(3).map_err(|why| Error::new("no histogram").because(why))?;
        Ok(Latencies { begun, after, records, deadline, read: 0, histogram })
    }

    /// Adds a row that was due at this time and is there at `now`.
    fn add(&mut self, due: u64, now: Duration) {
        self.read += 1;
        if due >= self.after.as_nanos() as u64 {
            // A histogram that grows takes any value.
            let _ = self.histogram.record((now.as_nanos() as u64).saturating_sub(due));
        }
    }

    /// `true` if there are rows to come; fails if they do not come.
    fn lacks_rows(&self) -> Result<bool> {
        if self.read < self.records && Instant::now() > self.deadline {
            return Err(Error::new(format!("only {} of {} rows came", self.read, self.records)));
        }
        Ok(self.read < self.records)
    }

    /// Follows a file with the columns `due,number`.
    fn of_file(mut self, path: &Path) -> Result<Histogram<u64>> {
        let cannot = |why| Error::new("cannot read rows").at(path.display()).because(why);
        let (mut file, mut text, mut buffer) = (None::<File>, Vec::new(), vec![0; 1 << 20]);
        while self.lacks_rows()? {
            let Some(open) = &mut file else {
                thread::sleep(LOOK);
                file = File::open(path).ok();
                continue;
            };
            let length = open.read(&mut buffer).map_err(cannot)?;
            if length == 0 {
                thread::sleep(LOOK);
                continue;
            }
            let now = self.begun.elapsed();
            text.extend_from_slice(&buffer[..length]);
            let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
            for line in text[..whole].split(|byte| *byte == b'\n') {
                let due = line.split(|byte| *byte == b',').next().and_then(|due| str::from_utf8(due).ok());
                // The header is no number.
                if let Some(due) = due.and_then(|due| due.parse().ok()) {
                    self.add(due, now);
                }
            }
            text.drain(..whole);
        }
        Ok(self.histogram)
    }

    /// Consumes committed messages.
    fn of_topic(mut self, brokers: &str, topic: &str) -> Result<Histogram<u64>> {
        let cannot = |why: rdkafka::error::KafkaError| Error::new("cannot read rows").at(topic).because(why);
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", brokers).set("group.id", "latency").set("isolation.level", "read_committed");
        config.set("enable.auto.commit", "false").set("fetch.wait.max.ms", "5");
        let consumer: BaseConsumer = config.create().map_err(cannot)?;
        while consumer.fetch_metadata(Some(topic), PATIENCE).map_err(cannot)?.topics()[0].partitions().is_empty() {
            self.lacks_rows()?;
            thread::sleep(Duration::from_millis(20));
        }
        let mut assigned = TopicPartitionList::new();
        for partition in 0..PARTITIONS as i32 {
            assigned.add_partition_offset(topic, partition, Offset::Beginning).map_err(cannot)?;
        }
        consumer.assign(&assigned).map_err(cannot)?;
        while self.lacks_rows()? {
            let Some(message) = consumer.poll(Duration::from_millis(100)) else { continue };
            let message = message.map_err(cannot)?;
            let now = self.begun.elapsed();
            let row = message.payload().and_then(|payload| serde_json::from_slice::<Row>(payload).ok());
            let row = row.ok_or_else(|| Error::new("a message is no row").at(topic))?;
            self.add(row.due, now);
        }
        Ok(self.histogram)
    }
}

/// Formats nanoseconds as milliseconds.
fn millis(nanos: u64) -> String {
    format!("{:.1}", nanos as f64 / 1e6)
}

/// Returns the percentiles of a run, and its complementary distribution.
fn distribution(histogram: &Histogram<u64>) -> Distribution {
    let total = histogram.len().max(1) as f64;
    let mut below = 0;
    let all: Vec<_> = histogram
        .iter_recorded()
        .map(|step| {
            below += step.count_since_last_iteration();
            [step.value_iterated_to() as f64 / 1e6, 1.0 - below as f64 / total]
        })
        .collect();
    // Points that are closer than a hundredth of a time are one on any paper.
    let mut ccdf: Vec<[f64; 2]> = Vec::new();
    for (number, point) in all.iter().enumerate() {
        if number + 1 == all.len() || ccdf.last().is_none_or(|last| point[0] > last[0] * 1.01) {
            ccdf.push(*point);
        }
    }
    let of = |percentile: f64| [percentile, histogram.value_at_percentile(percentile) as f64 / 1e6];
    Distribution { percentiles: PERCENTILES.map(of).to_vec(), ccdf }
}

/// Prints the lines of a result file.
fn print_json(
    arguments: &Arguments,
    environment: &Environment,
    configurations: &[Configuration],
    figures: &[Vec<Run>],
) -> Result<()> {
    for (Configuration { output, durability, epoch }, runs) in configurations.iter().zip(figures) {
        let epoch_ms = epoch.as_millis() as f64;
        let line = ResultLine {
            version: VERSION,
            bench: String::from("latency"),
            title: format!("Latency, {output:?}, epochs of {epoch_ms} ms"),
            program: format!("{durability:?}"),
            workers: arguments.workers,
            processes: 1,
            records: arguments.rate * arguments.seconds,
            samples: runs.iter().map(|run| run.sample).collect(),
            latencies: runs.iter().map(|run| distribution(&run.latencies)).collect(),
            figures: [
                ("rate", arguments.rate as f64),
                ("epoch_ms", epoch_ms),
                ("warm_up_seconds", arguments.warm_up as f64),
            ]
            .map(|(name, figure)| (name.to_owned(), figure))
            .into(),
            environment: environment.clone(),
        };
        println!("{}", line.to_json().map_err(|why| Error::new("no result").because(why))?);
    }
    Ok(())
}

fn print_table(arguments: &Arguments, configurations: &[Configuration], figures: &[Vec<Run>]) {
    println!(
        "latency at {} records a second, {} s without the first {}: ms, median of {} runs (least–greatest)",
        arguments.rate, arguments.seconds, arguments.warm_up, arguments.runs
    );
    print!("  {:<8}{:<10}{:>9}", "output", "durable", "epoch ms");
    PERCENTILES.iter().for_each(|percentile| print!("{:>24}", format!("p{percentile}")));
    println!();
    for (Configuration { output, durability, epoch }, runs) in configurations.iter().zip(figures) {
        let (output, durability) = (format!("{output:?}"), format!("{durability:?}"));
        print!("  {output:<8}{durability:<10}{:>9}", epoch.as_millis());
        for percentile in PERCENTILES {
            let mut values: Vec<u64> = runs.iter().map(|run| run.latencies.value_at_percentile(percentile)).collect();
            values.sort_unstable();
            let (least, greatest) = (values.first().copied().unwrap_or(0), values.last().copied().unwrap_or(0));
            let middle = values.get(values.len() / 2).copied().unwrap_or(0);
            print!("{:>24}", format!("{} ({}–{})", millis(middle), millis(least), millis(greatest)));
        }
        println!();
    }
}
