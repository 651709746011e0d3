//! Throughput of the Nexmark queries.
//!
//! Each run is a process of the program `nexmark`, as users run it, that makes the events up, answers a query and drops the
//! answer. So figures hold the start of a process and the making of the events, which is measured by itself, on one thread,
//! as `events`. Runs of all queries alternate, so that a noisy moment affects all of them; the first round warms up, and is
//! not counted.
//!
//! `cargo bench --bench nexmark -- --query q0,q5 --events 10000000 --workers 1,2`

#[expect(dead_code, reason = "the program uses all of it")]
#[path = "../queries/nexmark/generator.rs"]
mod generator;
#[expect(dead_code, reason = "the program uses all of it")]
#[path = "../queries/nexmark/model.rs"]
mod model;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use clap::Parser;
use kit::{BenchFlags, Environment, Measured, ResultLine, RowChecksum, RunFigures, Sample, environment, measure};
use nix::sys::resource::{UsageWho, getrusage};

use generator::Generator;

/// The row of the events alone.
const EVENTS: &str = "events";

/// Number of events per second of event time, as the program has it.
const RATE: u64 = 10_000;

/// The allocator of Tidegate's own programs, for the making of the events.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Measures the Nexmark queries, each run in a process of its own
#[derive(Debug, Parser)]
#[command(after_help = "Examples:
  cargo bench --bench nexmark
  cargo bench --bench nexmark -- --query q0,q5 --events 10000000 --workers 1,2
  cargo bench --bench nexmark -- --runs 5 --json > figures.ndjson")]
struct Arguments {
    /// Events of each run
    #[arg(long, default_value_t = 1_000_000)]
    events: u64,

    /// Queries to measure [default: all]
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

    #[command(flatten)]
    flags: BenchFlags,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let run = arguments.flags.one().and_then(|run| match run {
        Some(run) => one(&arguments, run),
        None => measure_all(&arguments),
    });
    kit::exit_code(run)
}

/// Returns the path of the program.
fn program() -> Result<PathBuf, String> {
    let own = measure::own_path()?;
    // This benchmark is in `release/deps` of the same target directory.
    let release = own.parent().and_then(Path::parent).ok_or("this program is in no target directory")?;
    Ok(release.join("nexmark"))
}

/// Builds the program, with the features of the library that the benchmarks have, so that it is built once.
fn build() -> Result<(), String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let words = ["build", "--release", "--package", "tidegate", "--features", "nexmark,protobuf", "--bin", "nexmark"];
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    let built = Command::new(cargo).args(words).current_dir(root).stdout(Stdio::null()).status();
    let is_built = built.map_err(|why| format!("cannot start cargo: {why}"))?.success();
    if is_built { Ok(()) } else { Err(String::from("the program nexmark does not build")) }
}

/// Makes one run, and prints its measurements.
fn one(arguments: &Arguments, [query, workers]: &[String; 2]) -> Result<(), String> {
    let begun = Instant::now();
    let (who, cpu_seconds) = if query == EVENTS {
        let generator = Generator::new(arguments.seed, RATE, 1);
        (0..arguments.events).for_each(|place| drop(std::hint::black_box(generator.at(place))));
        (UsageWho::RUSAGE_SELF, environment::cpu_seconds())
    } else {
        let (program, numbers) = (program()?, [arguments.events, arguments.seed].map(|number| number.to_string()));
        let mut command = Command::new(&program);
        command.args(["--query", query, "--workers", workers, "--blackhole", "--progress", "off"]);
        command.args(["--events", &numbers[0], "--seed", &numbers[1]]);
        let ended = command.stdout(Stdio::null()).status();
        let ended = ended.map_err(|why| format!("cannot start {}: {why}", program.display()))?;
        if !ended.success() {
            return Err(format!("{query} failed: {ended}"));
        }
        (UsageWho::RUSAGE_CHILDREN, environment::cpu_seconds_of_children())
    };
    let seconds = begun.elapsed().as_secs_f64();
    let usage = getrusage(who).map_err(|why| format!("no figures of a process: {why}"))?;
    let sample = Sample { seconds, cpu_seconds, peak_mib: usage.max_rss() as f64 / 1024.0 };
    println!("{}", RunFigures { sample, check: RowChecksum::default() }.to_line());
    Ok(())
}

/// Makes a run in a process of its own.
fn run(arguments: &Arguments, query: &str, workers: usize) -> Result<RunFigures, String> {
    let numbers = [arguments.events, arguments.seed, workers as u64].map(|number| number.to_string());
    let words = ["--events", &numbers[0], "--seed", &numbers[1], "--one", query, &numbers[2]];
    measure::run_apart(&words.map(str::to_owned))
}

fn measure_all(arguments: &Arguments) -> Result<(), String> {
    let environment = Environment::now();
    build()?;
    let queries: Vec<String> = match &arguments.query[..] {
        [] => (0..23).map(|number| format!("q{number}")).collect(),
        some => some.to_vec(),
    };
    let each = queries.iter().flat_map(|query| arguments.workers.iter().map(move |workers| (query.as_str(), *workers)));
    let rows: Vec<(&str, usize)> = std::iter::once((EVENTS, 1)).chain(each).collect();
    let made = |&(query, workers): &(&str, usize)| {
        Measured::new(if query == EVENTS { "Generator" } else { "Tidegate" }, workers, 1)
    };
    let mut measured: Vec<Measured> = rows.iter().map(made).collect();
    // The first round warms up.
    for round in 0..=arguments.runs.max(1) {
        for ((query, workers), measured) in rows.iter().zip(&mut measured) {
            eprint!("\rround {round} of {}: {query} on {workers}    ", arguments.runs);
            let figures = run(arguments, query, *workers)?;
            if round > 0 {
                measured.add(figures);
            }
        }
    }
    eprintln!();
    let line = |((query, _), measured): (&(&str, usize), &Measured)| {
        measured.line("nexmark", &format!("Nexmark {query}"), arguments.events, &environment)
    };
    let lines: Vec<ResultLine> = rows.iter().zip(&measured).map(line).collect();
    if arguments.flags.json {
        return measure::show(&lines, true);
    }
    println!("{}\n{} events; medians of {} (range)", environment.line(), arguments.events, arguments.runs.max(1));
    println!("  {:<16}{:>8}{:>22}{:>26}{:>10}", "query", "workers", "M events/s", "CPU s/M", "peak MiB");
    for line in &lines {
        let (rate, cpu, memory) = (line.rate().text(2), line.cpu().text(3), line.memory().median);
        println!("  {:<16}{:>8}{rate:>22}{cpu:>26}{memory:>10.0}", line.title, line.workers);
    }
    Ok(())
}
