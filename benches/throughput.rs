//! Throughput of windowed totals, beside baselines measured in the same run.
//!
//! Every measurement comes from a process of its own, so that CPU time and peak memory are the run's; runs of different
//! programs alternate, so that a noisy moment affects all of them. All programs of an input must give equal results.
//!
//! * `memory`: records of `u32` keys, already in memory. Baselines: a program written by hand (one thread, one hash
//!   map, a fast hasher), and differential dataflow twice: plain (a reduction, kept up to date in epochs of 100,000
//!   records), and as an expert would write this query (totals in the differences, windows as timestamps).
//! * `csv`, `ndjson`: files of transactions with text accounts, results written to a CSV file. Baseline: a program
//!   written by hand, on one thread, that parses only the fields it needs.
//! * `kafka`: a topic of JSON transactions on a real broker, in a process of its own. Baseline: a consumer that parses and
//!   discards.
//!
//! Totals of tumbling windows of 10 s are measured on all inputs; on records in memory also (`--query`):
//!
//! * `sliding`: of the last minute, every 10 s. Baselines: Tidegate's tumbling windows, which have as many rows, and a
//!   program written by hand that adds up totals of ten seconds.
//! * `session`: records of an account that are less than a second apart. Baseline: a program written by hand.
//!
//! `cargo bench -p benches --bench throughput -- --records 10000000 --workers 1,2`
//! `cargo bench -p benches --bench throughput -- --query sliding,session`
//! `cargo bench -p benches --features apache-avro,protobuf --bench throughput -- --query drop,copy --workers 1`

#[path = "broker/mod.rs"]
mod broker;
#[path = "throughput/data.rs"]
mod data;
#[path = "throughput/kafka.rs"]
mod kafka;
#[path = "throughput/programs.rs"]
mod programs;
#[path = "throughput/protobuf.rs"]
mod protobuf;
#[path = "throughput/windows.rs"]
mod windows;

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, ValueEnum};

use data::Format;
use kafka::AvroParser;
use kit::{BenchFlags, Environment, Measured, RunFigures, measure};

/// The allocator of Tidegate's own programs, for everything that is measured.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Source of the records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Input {
    /// Records in memory, `u32` keys.
    Memory,
    /// A CSV file of transactions.
    Csv,
    /// A file with one JSON transaction a line.
    Ndjson,
    /// A topic of JSON on a real broker (Java and Maven are needed).
    Kafka,
    /// A topic of Avro.
    KafkaAvro,
    /// A topic of Protobuf, with the feature `protobuf`.
    KafkaProtobuf,
}

impl Input {
    /// Returns the format of a topic's messages; `None` if it is no topic.
    fn format(self) -> Option<Format> {
        match self {
            Input::Memory | Input::Csv | Input::Ndjson => None,
            Input::Kafka => Some(Format::Json),
            Input::KafkaAvro => Some(Format::Avro),
            Input::KafkaProtobuf => Some(Format::Protobuf),
        }
    }

    /// `true` if what reads this input is in this build.
    fn is_built(self) -> bool {
        self != Input::KafkaProtobuf || cfg!(feature = "protobuf")
    }
}

/// Windows of the totals.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Query {
    /// Ten seconds.
    Tumbling,
    /// The last minute, every ten seconds; in memory.
    Sliding,
    /// Records less than a second apart; in memory.
    Session,
    /// None: records of topics are read and dropped.
    Drop,
    /// None: records of a topic are copied to a file.
    Copy,
}

impl Query {
    /// `true` if the query is measured on an input.
    fn reads(self, input: Input) -> bool {
        match self {
            Query::Tumbling => !matches!(input, Input::KafkaAvro | Input::KafkaProtobuf),
            Query::Sliding | Query::Session => input == Input::Memory,
            Query::Drop => input.format().is_some(),
            Query::Copy => input == Input::Kafka,
        }
    }
}

/// A measured program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Program {
    /// Tidegate.
    Tidegate,
    /// Tidegate with tumbling windows, as a baseline of others.
    Tumbling,
    /// A program written by hand, on one thread.
    ByHand,
    /// Plain differential dataflow: a reduction, kept up to date epoch by epoch.
    Differential,
    /// Differential dataflow with totals in the differences and windows as timestamps.
    Differences,
    /// A consumer that polls, parses and discards.
    ParseOnly,
    /// Like `ParseOnly`, with Tidegate's decoder of Avro.
    OwnDecoder,
    /// A loop that consumes, writes a file, flushes it and commits offsets.
    Loop,
    /// Tidegate with a state.
    WithState,
}

/// Measures the throughput of windowed totals, beside baselines in the same run
#[derive(Debug, Parser)]
#[command(after_help = "Examples:
  cargo bench -p benches --bench throughput -- --records 10000000 --workers 1,2
  cargo bench -p benches --bench throughput -- --query sliding,session
  cargo bench -p benches --features apache-avro,protobuf --bench throughput -- --query drop,copy --workers 1
  cargo bench -p benches --bench throughput -- --inputs memory --runs 9 --json > figures.ndjson")]
struct Arguments {
    /// Records of each run, a hundred thousand a second of event time [default: 2000000, 10000000 of sliding windows]
    #[arg(long)]
    records: Option<u64>,

    /// Queries to measure
    #[arg(long, value_enum, value_delimiter = ',', default_value = "tumbling")]
    query: Vec<Query>,

    /// Numbers of workers to measure
    #[arg(long, value_delimiter = ',', default_value = "1,2")]
    workers: Vec<usize>,

    /// Inputs to measure [default: all, kafka if Java and Maven are there]
    #[arg(long, value_enum, value_delimiter = ',')]
    inputs: Vec<Input>,

    /// Number of runs of each program; medians are shown. One more of each comes before them and is not counted
    #[arg(long, default_value_t = 5)]
    runs: usize,

    /// Numbers of processes to measure, on records in memory; each has as many workers
    #[arg(long, value_delimiter = ',', default_value = "1")]
    processes: Vec<usize>,

    /// Number of partitions of the records in memory: as many workers, of all processes, can read
    #[arg(long, default_value_t = 2)]
    partitions: usize,

    /// Number of distinct accounts
    #[arg(long, default_value_t = 100_000)]
    accounts: u64,

    /// Number of records in the topic
    #[arg(long, default_value_t = 1_000_000)]
    kafka_records: u64,

    /// Directory of files [default: a temporary directory]
    #[arg(long)]
    dir: Option<PathBuf>,

    #[command(flatten)]
    flags: BenchFlags,

    /// Addresses of the brokers: for the benchmark itself
    #[arg(long, hide = true)]
    brokers: Option<String>,

    /// Number of this process and addresses of all of a run: for the benchmark itself
    #[arg(long, hide = true, num_args = 2.., value_names = ["PROCESS", "ADDRESS"])]
    cluster: Vec<String>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let run = arguments.flags.one().and_then(|run| match run {
        Some(run) => one(&arguments, run),
        None => measure_all(&arguments),
    });
    kit::exit_code(run)
}

/// Makes one run of one program, and prints its measurements.
fn one(arguments: &Arguments, [query, input, program, workers]: &[String; 4]) -> Result<(), String> {
    let query = Query::from_str(query, true)?;
    let input = Input::from_str(input, true)?;
    let program = Program::from_str(program, true)?;
    let workers: usize = workers.parse().map_err(|_| String::from("the number of workers is no number"))?;
    let dir = arguments.dir.clone().ok_or("--one needs --dir")?;
    let brokers = arguments.brokers.clone().unwrap_or_default();
    let records = arguments.records.ok_or("--one needs --records")?;
    let cluster = match &arguments.cluster[..] {
        [process, addresses @ ..] => (process.parse().map_err(|_| "--cluster takes a number")?, addresses.to_vec()),
        [] => (0, Vec::new()),
    };
    let (accounts, partitions) = (arguments.accounts, arguments.partitions);
    let setting = programs::RunParameters { records, accounts, partitions, workers, cluster, dir, brokers };
    let figures = match (input, program) {
        (Input::Memory, Program::ByHand) => match query {
            Query::Sliding => windows::sliding_by_hand(&setting),
            Query::Session => windows::sessions_by_hand(&setting),
            Query::Tumbling | Query::Drop | Query::Copy => programs::memory_by_hand(&setting),
        },
        (Input::Memory, Program::Differential) => programs::memory_differential(&setting),
        (Input::Memory, Program::Differences) => programs::memory_differences(&setting),
        (Input::Memory, Program::Tidegate) => programs::memory_tidegate(&setting, windows::of(query)),
        (Input::Memory, Program::Tumbling) => programs::memory_tidegate(&setting, windows::of(Query::Tumbling)),
        (Input::Csv, Program::ByHand) => programs::csv_by_hand(&setting),
        (Input::Csv, Program::Tidegate) => programs::csv_tidegate(&setting),
        (Input::Ndjson, Program::ByHand) => programs::ndjson_by_hand(&setting),
        (Input::Ndjson, Program::Tidegate) => programs::ndjson_tidegate(&setting),
        (Input::Kafka | Input::KafkaAvro | Input::KafkaProtobuf, program) => on_topic(query, input, program, &setting),
        _ => Err(String::from("there is no such program for this input")),
    }?;
    println!("{}", figures.to_line());
    Ok(())
}

/// Runs a program that reads a topic.
fn on_topic(
    query: Query,
    input: Input,
    program: Program,
    setting: &programs::RunParameters,
) -> Result<RunFigures, String> {
    let format = input.format().ok_or("there is no topic")?;
    match (query, program) {
        (_, Program::ParseOnly) => kafka::by_hand(setting, format, AvroParser::Usual),
        (_, Program::OwnDecoder) => kafka::by_hand(setting, format, AvroParser::Own),
        (Query::Drop, Program::Tidegate) => kafka::drop_tidegate(setting, format),
        (Query::Copy, Program::Loop) => kafka::copy_by_hand(setting),
        (Query::Copy, Program::Tidegate) => kafka::copy_tidegate(setting, false),
        (Query::Copy, Program::WithState) => kafka::copy_tidegate(setting, true),
        (_, Program::Tidegate) => kafka::totals_tidegate(setting),
        _ => Err(String::from("there is no such program for a topic")),
    }
}

/// Returns the programs to measure for a query on an input: the baseline first.
fn programs_of(query: Query, input: Input, workers: &[usize]) -> Vec<(Program, usize)> {
    let tidegate = |program| workers.iter().map(move |&workers| (program, workers));
    let one = |program| (program, 1);
    if query == Query::Copy {
        return [one(Program::Loop)]
            .into_iter()
            .chain(tidegate(Program::Tidegate))
            .chain(tidegate(Program::WithState))
            .collect();
    }
    if query == Query::Drop {
        let consumers = match input {
            Input::KafkaAvro if cfg!(feature = "apache-avro") => vec![Program::ParseOnly, Program::OwnDecoder],
            Input::KafkaAvro => vec![Program::OwnDecoder],
            _ => vec![Program::ParseOnly],
        };
        return consumers.into_iter().map(one).chain(tidegate(Program::Tidegate)).collect();
    }
    if query != Query::Tumbling {
        let beside = tidegate(Program::Tumbling).filter(|_| query == Query::Sliding);
        return beside.chain([(Program::ByHand, 1)]).chain(tidegate(Program::Tidegate)).collect();
    }
    let mut all = match input {
        Input::Memory | Input::Csv | Input::Ndjson => vec![one(Program::ByHand)],
        Input::Kafka | Input::KafkaAvro | Input::KafkaProtobuf => vec![one(Program::ParseOnly)],
    };
    for &workers in workers {
        if input == Input::Memory {
            all.push((Program::Differential, workers));
            all.push((Program::Differences, workers));
        }
        all.push((Program::Tidegate, workers));
    }
    all
}

fn measure_all(arguments: &Arguments) -> Result<(), String> {
    let temporary = tempfile::tempdir().map_err(|why| format!("cannot make a temporary directory: {why}"))?;
    let dir = arguments.dir.clone().unwrap_or_else(|| temporary.path().to_owned());
    std::fs::create_dir_all(&dir).map_err(|why| format!("cannot make {}: {why}", dir.display()))?;
    let inputs = match &arguments.inputs[..] {
        [] => Input::value_variants().iter().copied().filter(|input| input.is_built()).collect(),
        some => some.to_vec(),
    };
    let mut topics = Topics::default();
    if !arguments.flags.json {
        println!("{}", Environment::now().line());
    }
    for &query in &arguments.query {
        for &input in inputs.iter().filter(|input| query.reads(**input)) {
            measure_one(arguments, &dir, &mut topics, query, input)?;
        }
    }
    Ok(())
}

/// A broker, and the formats of which it has topics.
#[derive(Default)]
struct Topics {
    broker: Option<broker::Broker>,
    filled: Vec<Format>,
}

impl Topics {
    /// Returns the address of a broker that has the topics of a format.
    fn of(&mut self, format: Format, dir: &Path, arguments: &Arguments) -> Result<String, String> {
        let address = match &self.broker {
            Some(broker) => broker.address.clone(),
            None => self.broker.insert(broker::Broker::start(dir)?).address.clone(),
        };
        if !self.filled.contains(&format) {
            data::fill_topics(&address, format, arguments.kafka_records, arguments.accounts)?;
            self.filled.push(format);
        }
        Ok(address)
    }
}

/// Measures a query on an input.
fn measure_one(
    arguments: &Arguments,
    dir: &Path,
    topics: &mut Topics,
    query: Query,
    input: Input,
) -> Result<(), String> {
    let mut brokers = String::new();
    let mut records = arguments.records.unwrap_or(if query == Query::Sliding { 10_000_000 } else { 2_000_000 });
    match input.format() {
        None if input == Input::Memory => {}
        None => data::write_files(dir, records, arguments.accounts)?,
        Some(format) => match topics.of(format, dir, arguments) {
            Ok(address) => (brokers, records) = (address, arguments.kafka_records),
            Err(why) if arguments.inputs.is_empty() => {
                eprintln!("SKIPPED: reading from Kafka: {why}");
                return Ok(());
            }
            Err(why) => return Err(why),
        },
    }
    let programs = with_processes(programs_of(query, input, &arguments.workers), input, &arguments.processes);
    let made =
        |&(program, workers, processes): &Configuration| Measured::new(format!("{program:?}"), workers, processes);
    let mut measured: Vec<Measured> = programs.iter().map(made).collect();
    let title = format!("{query:?}, {input:?}");
    let environment = Environment::now();
    // The first round warms up.
    for round in 0..=arguments.runs.max(1) {
        for (configuration, measured) in programs.iter().zip(&mut measured) {
            let (program, workers, processes) = configuration;
            eprint!("\r{title}: round {round} of {}: {program:?} {processes} × {workers}   ", arguments.runs);
            let figures = child(dir, arguments, (records, &brokers), (query, input, *configuration))?;
            if round > 0 {
                measured.add(figures);
            }
        }
    }
    eprintln!();
    // Programs with other windows, or with none at all, have other results.
    let others: &[Program] = if query == Query::Drop { &[] } else { &[Program::ParseOnly, Program::Tumbling] };
    let alike = programs.iter().zip(&measured).filter(|((program, ..), _)| !others.contains(program));
    measure::check_equal(&title, alike.map(|(_, measured)| measured))?;
    let lines: Vec<_> =
        measured.iter().map(|program| program.line("throughput", &title, records, &environment)).collect();
    measure::show(&lines, arguments.flags.json)?;
    let baseline = measured.first().map(|first| first.program.clone()).unwrap_or_default();
    if !arguments.flags.json && baseline == "ByHand" {
        match measure::cost(&lines, "Tidegate", &baseline) {
            Some(workers) => println!("  COST: Tidegate is faster than the program by hand from {workers} workers on"),
            None => println!("  COST: Tidegate is slower than the program by hand at all of these numbers of workers"),
        }
    }
    Ok(())
}

/// A program, its workers in each process, and its processes.
type Configuration = (Program, usize, usize);

/// Adds the numbers of processes: several for Tidegate from memory.
fn with_processes(programs: Vec<(Program, usize)>, input: Input, processes: &[usize]) -> Vec<Configuration> {
    let each = |(program, workers)| {
        let several = input == Input::Memory && program == Program::Tidegate;
        let processes = if several { processes } else { &[1] };
        processes.iter().map(move |&processes| (program, workers, processes.max(1)))
    };
    programs.into_iter().flat_map(each).collect()
}

/// Runs one program in a process of its own, or in several.
fn child(
    dir: &Path,
    arguments: &Arguments,
    (records, brokers): (u64, &str),
    (query, input, (program, workers, processes)): (Query, Input, Configuration),
) -> Result<RunFigures, String> {
    let name = |value: &dyn Fn() -> Option<clap::builder::PossibleValue>| {
        value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    };
    let mut words = vec![String::from("--one")];
    words.extend([name(&|| query.to_possible_value()), name(&|| input.to_possible_value())]);
    words.extend([name(&|| program.to_possible_value()), workers.to_string()]);
    let numbers = [("--records", records), ("--accounts", arguments.accounts)];
    let numbers = numbers.into_iter().chain([("--partitions", arguments.partitions as u64)]);
    words.extend(numbers.flat_map(|(flag, number)| [flag.to_owned(), number.to_string()]));
    words.extend([String::from("--brokers"), brokers.to_owned()]);
    words.extend([String::from("--dir"), dir.to_str().ok_or("the directory's name is no text")?.to_owned()]);
    if processes == 1 {
        return measure::run_apart(&words);
    }
    let addresses = free_addresses(processes)?;
    let each = |process: usize| {
        let cluster = [String::from("--cluster"), process.to_string()].into_iter().chain(addresses.iter().cloned());
        words.iter().cloned().chain(cluster).collect()
    };
    let all: Vec<_> = (0..processes).map(each).collect();
    measure::run_together(&measure::own_path()?, &all)
}

/// Returns addresses of this machine on which nobody listens.
fn free_addresses(count: usize) -> Result<Vec<String>, String> {
    let cannot = |why: std::io::Error| format!("no free port: {why}");
    let listeners: Vec<_> =
        (0..count).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<Result<_, _>>().map_err(cannot)?;
    listeners.iter().map(|listener| listener.local_addr().map(|at| at.to_string()).map_err(cannot)).collect()
}
