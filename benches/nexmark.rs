//! Throughput of the Nexmark queries, alone or beside dbsp.
//!
//! Each run is a process of the program `nexmark`, as users run it, that makes the events up, answers a query and drops the
//! answer. So figures hold the start of a process and the making of the events, which is measured by itself, on one thread,
//! as `events`. Runs of all queries alternate, so that a noisy moment affects all of them; the first round warms up, and is
//! not counted.
//!
//! With `--dbsp` the program of `benches/dbsp` answers q0 to q8 of the same events in turn with Tidegate's. It is built first,
//! outside the workspace, and nothing is measured unless the answers of both are equal.
//!
//! `cargo bench -p benches --bench nexmark -- --query q0,q5 --events 10000000 --workers 1,2`

#[expect(dead_code, reason = "the program uses all of it")]
#[path = "../queries/nexmark/generator.rs"]
mod generator;
#[expect(dead_code, reason = "the program uses all of it")]
#[path = "../queries/nexmark/model.rs"]
mod model;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use clap::Parser;
use kit::{BenchFlags, Environment, Measured, ResultLine, RowChecksum, RunFigures, Sample, environment, measure};
use nix::sys::resource::{UsageWho, getrusage};

use generator::Generator;

/// The row of the events alone.
const EVENTS: &str = "events";

/// Queries that the program of dbsp has.
const QUERIES_OF_DBSP: [&str; 9] = ["q0", "q1", "q2", "q3", "q4", "q5", "q6", "q7", "q8"];

/// Events whose answers are compared: several windows, of which the last one is not full.
const COMPARED_EVENTS: u64 = 230_000;

/// Number of events per second of event time, as the program has it.
const RATE: u64 = 10_000;

/// The allocator of Tidegate's own programs, for the making of the events.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Measures the Nexmark queries, each run in a process of its own
#[derive(Debug, Parser)]
#[command(after_help = "Examples:
  cargo bench -p benches --bench nexmark
  cargo bench -p benches --bench nexmark -- --query q0,q5 --events 10000000 --workers 1,2
  cargo bench -p benches --bench nexmark -- --dbsp --workers 1
  cargo bench -p benches --bench nexmark -- --runs 5 --json > figures.ndjson")]
struct Arguments {
    /// Events of each run
    #[arg(long, default_value_t = 1_000_000)]
    events: u64,

    /// Queries to measure [default: all; with --dbsp, q0 to q8]
    #[arg(long, value_delimiter = ',')]
    query: Vec<String>,

    /// Numbers of workers to measure
    #[arg(long, value_delimiter = ',', default_value = "1,2")]
    workers: Vec<usize>,

    /// Number of runs of each query; medians are shown. One more of each comes before them and is not counted
    #[arg(long, default_value_t = 3)]
    runs: usize,

    /// Seed of the events
    #[arg(long, default_value_t = 1)]
    seed: u64,

    /// Measure dbsp beside Tidegate in q0 to q8: builds benches/dbsp, compares the answers, and shows ratios of CPU time
    #[arg(long)]
    dbsp: bool,

    #[command(flatten)]
    flags: BenchFlags,
}

/// A program that is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Contender {
    /// The making of the events, without a query.
    Generator,
    Tidegate,
    Dbsp,
}

impl Contender {
    const ALL: [Contender; 3] = [Contender::Generator, Contender::Tidegate, Contender::Dbsp];

    fn name(self) -> &'static str {
        match self {
            Contender::Generator => "Generator",
            Contender::Tidegate => "Tidegate",
            Contender::Dbsp => "dbsp",
        }
    }

    fn of(name: &str) -> Result<Self, String> {
        let found = Contender::ALL.into_iter().find(|contender| contender.name() == name);
        found.ok_or_else(|| format!("there is no program {name} here"))
    }

    /// Returns the command that answers a query of generated events, without its output.
    fn command(self, query: &str, workers: usize, events: u64, seed: u64) -> Result<Command, String> {
        let target = target_directory()?;
        let program = match self {
            Contender::Dbsp => target.join("dbsp/release/nexmark-dbsp"),
            Contender::Generator | Contender::Tidegate => target.join("release/nexmark"),
        };
        let numbers = [workers as u64, events, seed].map(|number| number.to_string());
        let mut command = Command::new(program);
        command.args(["--query", query, "--workers", &numbers[0], "--events", &numbers[1], "--seed", &numbers[2]]);
        if self == Contender::Tidegate {
            command.args(["--progress", "off"]);
        }
        Ok(command)
    }
}

/// Runs a command to its end.
fn finish(command: &mut Command) -> Result<(), String> {
    let ended = command.stdout(Stdio::null()).status();
    let program = command.get_program().to_string_lossy();
    let ended = ended.map_err(|why| format!("cannot start {program}: {why}"))?;
    if ended.success() { Ok(()) } else { Err(format!("{program} failed: {ended}")) }
}

/// A query in a configuration.
struct MeasuredQuery {
    contender: Contender,
    query: String,
    workers: usize,
    measured: Measured,
}

impl MeasuredQuery {
    fn new(contender: Contender, query: &str, workers: usize) -> Self {
        let measured = Measured::new(contender.name(), workers, 1);
        MeasuredQuery { contender, query: query.to_owned(), workers, measured }
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let run = arguments.flags.one().and_then(|run| match run {
        Some(run) => one(&arguments, run),
        None => measure_all(&arguments),
    });
    kit::exit_code(run)
}

/// Returns the directory of all that cargo builds.
fn target_directory() -> Result<PathBuf, String> {
    let own = measure::own_path()?;
    // This benchmark is in `release/deps` of it.
    let target = own.ancestors().nth(3).ok_or("this program is in no target directory")?;
    Ok(target.to_owned())
}

/// Builds the programs.
fn build(with_dbsp: bool) -> Result<(), String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    let build = |words: &[&str]| {
        let mut command = Command::new(&cargo);
        finish(command.args(["build", "--release"]).args(words).current_dir(root))
    };
    build(&["--package", "tidegate", "--features", "nexmark", "--bin", "nexmark"])?;
    if with_dbsp {
        let target = target_directory()?.join("dbsp");
        let target = target.to_str().ok_or("the path of the target directory is not UTF-8")?;
        build(&["--manifest-path", "benches/dbsp/Cargo.toml", "--target-dir", target])?;
    }
    Ok(())
}

/// Rows of an answer, each with the number of times.
type Answer = BTreeMap<Vec<String>, i64>;

/// Reads an answer. One of Tidegate has a header, and, if it is one of changes, a last column `diff`.
fn read_answer(path: &Path, contender: Contender) -> Result<Answer, String> {
    let failed = |why: csv::Error| format!("cannot read {}: {why}", path.display());
    let has_header = contender == Contender::Tidegate;
    let mut reader = csv::ReaderBuilder::new().has_headers(has_header).from_path(path).map_err(failed)?;
    let has_diff = has_header && reader.headers().map_err(failed)?.iter().next_back() == Some("diff");
    let mut answer = Answer::new();
    for record in reader.records() {
        let mut row: Vec<String> = record.map_err(failed)?.iter().map(str::to_owned).collect();
        let diff = if has_diff { row.pop() } else { None };
        let diff = diff.map_or(Ok(1), |diff| diff.parse::<i64>());
        *answer.entry(row).or_default() +=
            diff.map_err(|why| format!("{}: a diff is no number: {why}", path.display()))?;
    }
    answer.retain(|_, times| *times != 0);
    Ok(answer)
}

/// Fails unless both programs have the same answer to a query.
fn compare(query: &str, workers: usize, seed: u64) -> Result<(), String> {
    let directory = tempfile::tempdir().map_err(|why| format!("no directory for the answers: {why}"))?;
    let answer = |contender: Contender| {
        let path = directory.path().join(format!("{}.csv", contender.name()));
        let mut command = contender.command(query, workers, COMPARED_EVENTS, seed)?;
        finish(command.arg("--out").arg(&path))?;
        read_answer(&path, contender)
    };
    let (ours, theirs) = (answer(Contender::Tidegate)?, answer(Contender::Dbsp)?);
    if ours.is_empty() {
        return Err(format!("{query}: the answer is empty"));
    }
    let differs = |(row, times): &(&Vec<String>, &i64), other: &Answer| other.get(*row) != Some(*times);
    let first = ours.iter().find(|row| differs(row, &theirs)).or_else(|| theirs.iter().find(|row| differs(row, &ours)));
    let Some((row, _)) = first else { return Ok(()) };
    let times = [&ours, &theirs].map(|answer| answer.get(row).copied().unwrap_or(0));
    let rows = [ours.len(), theirs.len()];
    Err(format!(
        "{query} on {workers} workers: Tidegate has {} rows and dbsp {}; of {row:?} Tidegate has {} and dbsp {}",
        rows[0], rows[1], times[0], times[1]
    ))
}

/// Makes one run, and prints its measurements.
fn one(arguments: &Arguments, [contender, query, workers]: &[String; 3]) -> Result<(), String> {
    let begun = Instant::now();
    let contender = Contender::of(contender)?;
    let (who, cpu_seconds) = if contender == Contender::Generator {
        let generator = Generator::new(arguments.seed, RATE, 1);
        (0..arguments.events).for_each(|place| drop(std::hint::black_box(generator.at(place))));
        (UsageWho::RUSAGE_SELF, environment::cpu_seconds())
    } else {
        let workers = workers.parse::<usize>().map_err(|why| format!("{workers} is no number of workers: {why}"))?;
        let mut command = contender.command(query, workers, arguments.events, arguments.seed)?;
        if contender == Contender::Tidegate {
            command.arg("--blackhole");
        }
        finish(&mut command)?;
        (UsageWho::RUSAGE_CHILDREN, environment::cpu_seconds_of_children())
    };
    let seconds = begun.elapsed().as_secs_f64();
    let usage = getrusage(who).map_err(|why| format!("no figures of a process: {why}"))?;
    let sample = Sample { seconds, cpu_seconds, peak_mib: usage.max_rss() as f64 / 1024.0 };
    println!("{}", RunFigures { sample, check: RowChecksum::default() }.to_line());
    Ok(())
}

/// Makes a run in a process of its own.
fn run(
    arguments: &Arguments,
    MeasuredQuery { contender, query, workers, .. }: &MeasuredQuery,
) -> Result<RunFigures, String> {
    let numbers = [arguments.events, arguments.seed, *workers as u64].map(|number| number.to_string());
    let words = ["--events", &numbers[0], "--seed", &numbers[1], "--one", contender.name(), query, &numbers[2]];
    measure::run_apart(&words.map(str::to_owned))
}

/// Returns the queries to measure.
fn queries(arguments: &Arguments) -> Vec<String> {
    match (&arguments.query[..], arguments.dbsp) {
        ([], false) => (0..23).map(|number| format!("q{number}")).collect(),
        ([], true) => QUERIES_OF_DBSP.map(str::to_owned).to_vec(),
        (some, _) => some.to_vec(),
    }
}

fn measure_all(arguments: &Arguments) -> Result<(), String> {
    let environment = Environment::now();
    build(arguments.dbsp)?;
    let mut rows = vec![MeasuredQuery::new(Contender::Generator, EVENTS, 1)];
    for query in queries(arguments) {
        for &workers in &arguments.workers {
            rows.push(MeasuredQuery::new(Contender::Tidegate, &query, workers));
            if arguments.dbsp && QUERIES_OF_DBSP.contains(&&*query) {
                eprint!("\rcomparing answers: {query} on {workers}    ");
                compare(&query, workers, arguments.seed)?;
                rows.push(MeasuredQuery::new(Contender::Dbsp, &query, workers));
            }
        }
    }
    // The first round warms up.
    for round in 0..=arguments.runs.max(1) {
        for row in &mut rows {
            let (name, query, workers) = (row.contender.name(), &row.query, row.workers);
            eprint!("\rround {round} of {}: {name}, {query} on {workers}            ", arguments.runs);
            let figures = run(arguments, row)?;
            if round > 0 {
                row.measured.add(figures);
            }
        }
    }
    eprintln!();
    let line = |row: &MeasuredQuery| {
        row.measured.line("nexmark", &format!("Nexmark {}", row.query), arguments.events, &environment)
    };
    let lines: Vec<ResultLine> = rows.iter().map(line).collect();
    if arguments.flags.json {
        return measure::show(&lines, true);
    }
    println!("{}\n{} events; medians of {} (range)", environment.line(), arguments.events, arguments.runs.max(1));
    println!(
        "  {:<16}{:<12}{:>8}{:>22}{:>26}{:>10}",
        "query", "program", "workers", "M events/s", "CPU s/M", "peak MiB"
    );
    for line in &lines {
        let (rate, cpu, memory) = (line.rate().text(2), line.cpu().text(3), line.memory().median);
        println!("  {:<16}{:<12}{:>8}{rate:>22}{cpu:>26}{memory:>10.0}", line.title, line.program, line.workers);
    }
    show_ratios(&lines);
    Ok(())
}

/// Prints how many times Tidegate's CPU time dbsp needs, for each query and as a geometric mean, for each number of workers.
fn show_ratios(lines: &[ResultLine]) {
    let ours = |theirs: &ResultLine| {
        let is_ours = |line: &&ResultLine| {
            (&*line.program, &line.title, line.workers) == (Contender::Tidegate.name(), &theirs.title, theirs.workers)
        };
        lines.iter().find(is_ours)
    };
    let mut ratios = BTreeMap::<usize, Vec<f64>>::new();
    for theirs in lines.iter().filter(|line| line.program == Contender::Dbsp.name()) {
        let Some(ours) = ours(theirs) else { continue };
        let ratio = theirs.cpu().median / ours.cpu().median;
        println!("  {:<16}{:>8}  CPU time of dbsp to Tidegate's {ratio:>6.2}", theirs.title, theirs.workers);
        ratios.entry(theirs.workers).or_default().push(ratio);
    }
    for (workers, ratios) in ratios {
        let mean = (ratios.iter().map(|ratio| ratio.ln()).sum::<f64>() / ratios.len() as f64).exp();
        println!("  {:<16}{workers:>8}  geometric mean                 {mean:>6.2}", "all");
    }
}
