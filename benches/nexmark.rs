//! Throughput of the Nexmark queries, alone or beside DBSP.
//!
//! Each run is a process of the program `nexmark`, as users run it, that makes the events up, answers a query and drops the
//! answer. So figures hold the start of a process and the making of the events, which is measured by itself, on one thread,
//! as `events`. Runs of all queries alternate, so that a noisy moment affects all of them.
//!
//! With `--dbsp`, queries 0 to 8 are answered by the engine of that name, too, over the same events on the same number of
//! threads: see `dbsp/src/main.rs`, a package of its own. Before figures are taken, both answers must have as many rows. The
//! last lines are the geometric means of the ratios of CPU seconds, with the making of the events and without it.
//!
//! `cargo bench --bench nexmark -- --query q0,q5 --events 10000000 --workers 1,2`

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
use kit::{Environment, Measured, ResultLine, RowChecksum, RunFigures, Sample, environment, measure};
use nix::sys::resource::{UsageWho, getrusage};

use generator::Generator;

/// The row of the events alone.
const EVENTS: &str = "events";

/// Number of events per second of event time, as the program has it.
const RATE: u64 = 10_000;

/// Queries that are answered by DBSP, too.
const COMPARED: [&str; 9] = ["q0", "q1", "q2", "q3", "q4", "q5", "q6", "q7", "q8"];

/// The allocator of Tidegate's own programs, for the making of the events.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Measures the Nexmark queries, each run in a process of its own
#[derive(Debug, Parser)]
#[command(after_help = "Examples:
  cargo bench --bench nexmark
  cargo bench --bench nexmark -- --query q0,q5 --events 10000000 --workers 1,2
  cargo bench --bench nexmark -- --dbsp --runs 5
  cargo bench --bench nexmark -- --runs 5 --json > figures.ndjson")]
struct Arguments {
    /// Events of each run
    #[arg(long, default_value_t = 1_000_000)]
    events: u64,

    /// Queries to measure [default: all, with --dbsp q0 to q8]
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

    /// Measure DBSP beside Tidegate; it is built first, which takes many minutes
    #[arg(long)]
    dbsp: bool,

    /// Print one JSON object a line, for plotting, instead of a table
    #[arg(long)]
    json: bool,

    /// Make one run in a process of its own: for the benchmark itself
    #[arg(long, hide = true, num_args = 3, value_names = ["ENGINE", "QUERY", "WORKERS"])]
    one: Vec<String>,

    /// Passed by cargo to benchmarks.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let run = if arguments.one.is_empty() { measure_all(&arguments) } else { one(&arguments) };
    match run {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("error: {why}");
            ExitCode::FAILURE
        }
    }
}

/// An engine that answers the queries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Engine {
    Tidegate,
    Dbsp,
}

impl Engine {
    fn name(self) -> &'static str {
        match self {
            Engine::Tidegate => "Tidegate",
            Engine::Dbsp => "DBSP",
        }
    }

    fn parse(name: &str) -> Result<Self, String> {
        let found = [Engine::Tidegate, Engine::Dbsp].into_iter().find(|engine| engine.name() == name);
        found.ok_or_else(|| format!("there is no engine {name}"))
    }

    /// Returns the path of the program, which is beside this one.
    fn program(self) -> Result<PathBuf, String> {
        let own = measure::own_path()?;
        // This benchmark is in `release/deps` of the target directory.
        let release = own.parent().and_then(Path::parent).ok_or("this program is in no target directory")?;
        Ok(match self {
            Engine::Tidegate => release.join("nexmark"),
            Engine::Dbsp => release.with_file_name("dbsp").join("release").join("nexmark-dbsp"),
        })
    }

    /// Builds the program.
    fn build(self) -> Result<(), String> {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut command = Command::new(cargo);
        command.arg("build").arg("--release").current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
        match self {
            Engine::Tidegate => {
                command.args(["--package", "tidegate", "--features", "nexmark,protobuf", "--bin", "nexmark"]);
            }
            Engine::Dbsp => {
                // Its own directory below the target directory: its features and versions are others.
                let program = self.program()?;
                let target = program.parent().and_then(Path::parent).ok_or("no target directory")?;
                command.args(["--manifest-path", "benches/dbsp/Cargo.toml", "--target-dir"]).arg(target);
            }
        }
        let built = command.stdout(Stdio::null()).status().map_err(|why| format!("cannot start cargo: {why}"))?;
        if built.success() { Ok(()) } else { Err(format!("the program of {} does not build", self.name())) }
    }

    /// Returns a command that answers a query.
    fn command(self, arguments: &Arguments, query: &str, workers: usize) -> Result<Command, String> {
        let mut command = Command::new(self.program()?);
        let numbers = [arguments.events, arguments.seed, workers as u64].map(|number| number.to_string());
        command.args(["--query", query, "--events", &numbers[0], "--seed", &numbers[1], "--workers", &numbers[2]]);
        if self == Engine::Tidegate {
            command.args(["--progress", "off"]);
        }
        Ok(command)
    }

    /// Answers a query, and returns the number of rows of the answer.
    fn rows(self, arguments: &Arguments, query: &str, dir: &Path) -> Result<i64, String> {
        let mut command = self.command(arguments, query, 1)?;
        let file = dir.join("answer.csv");
        if self == Engine::Tidegate {
            command.arg("--out").arg(&file);
        }
        let output = command.stderr(Stdio::inherit()).output().map_err(|why| format!("cannot start {query}: {why}"))?;
        if !output.status.success() {
            return Err(format!("{query} of {} failed: {}", self.name(), output.status));
        }
        let rows = match self {
            Engine::Tidegate => rows_of_file(&file),
            Engine::Dbsp => {
                String::from_utf8_lossy(&output.stdout).trim().parse().map_err(|_| String::from("no number"))
            }
        };
        rows.map_err(|why| format!("{query} of {} has no rows: {why}", self.name()))
    }
}

/// Counts the rows of a CSV file. If the last column is `diff`, adds its numbers.
fn rows_of_file(path: &Path) -> Result<i64, String> {
    let mut reader = csv::Reader::from_path(path).map_err(|why| why.to_string())?;
    let is_changes = reader.headers().map_err(|why| why.to_string())?.iter().next_back() == Some("diff");
    let mut rows = 0;
    for record in reader.records() {
        let record = record.map_err(|why| why.to_string())?;
        let diff = record.iter().next_back().filter(|_| is_changes).map_or(Ok(1), str::parse::<i64>);
        rows += diff.map_err(|why| why.to_string())?;
    }
    Ok(rows)
}

/// Makes one run, and prints its measurements.
fn one(arguments: &Arguments) -> Result<(), String> {
    let [engine, query, workers] = &arguments.one[..] else { return Err(String::from("--one takes three values")) };
    let workers = workers.parse().map_err(|_| String::from("the number of workers is no number"))?;
    let begun = Instant::now();
    let (who, cpu_seconds) = if query == EVENTS {
        let generator = Generator::new(arguments.seed, RATE, 1);
        (0..arguments.events).for_each(|place| drop(std::hint::black_box(generator.at(place))));
        (UsageWho::RUSAGE_SELF, environment::cpu_seconds())
    } else {
        let engine = Engine::parse(engine)?;
        let mut command = engine.command(arguments, query, workers)?;
        if engine == Engine::Tidegate {
            command.arg("--blackhole");
        }
        let ended = command.stdout(Stdio::null()).status();
        let ended = ended.map_err(|why| format!("cannot start {}: {why}", engine.name()))?;
        if !ended.success() {
            return Err(format!("{query} of {} failed: {ended}", engine.name()));
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
fn run(arguments: &Arguments, (engine, query, workers): (Engine, &str, usize)) -> Result<RunFigures, String> {
    let numbers = [arguments.events, arguments.seed].map(|number| number.to_string());
    let [events, seed] = numbers;
    let one = [engine.name().to_owned(), query.to_owned(), workers.to_string()];
    let words = [String::from("--events"), events, String::from("--seed"), seed, String::from("--one")];
    measure::run_apart(&words.into_iter().chain(one).collect::<Vec<_>>())
}

fn measure_all(arguments: &Arguments) -> Result<(), String> {
    let environment = Environment::now();
    let engines = if arguments.dbsp { vec![Engine::Tidegate, Engine::Dbsp] } else { vec![Engine::Tidegate] };
    engines.iter().try_for_each(|engine| engine.build())?;
    let queries: Vec<String> = match &arguments.query[..] {
        [] if arguments.dbsp => COMPARED.map(str::to_owned).to_vec(),
        [] => (0..23).map(|number| format!("q{number}")).collect(),
        some => some.to_vec(),
    };
    if arguments.dbsp {
        compare_answers(arguments, &queries)?;
    }
    let mut rows = vec![(Engine::Tidegate, EVENTS, 1)];
    for query in &queries {
        for &workers in &arguments.workers {
            let compared = engines.iter().filter(|&&engine| engine == Engine::Tidegate || is_compared(query));
            rows.extend(compared.map(|&engine| (engine, query.as_str(), workers)));
        }
    }
    let made = |&(engine, _, workers): &(Engine, &str, usize)| Measured::new(engine.name(), workers, 1);
    let mut measured: Vec<Measured> = rows.iter().map(made).collect();
    // The first round warms up.
    for round in 0..=arguments.runs.max(1) {
        for (row, measured) in rows.iter().zip(&mut measured) {
            eprint!("\rround {round} of {}: {} of {}    ", arguments.runs, row.1, row.0.name());
            let figures = run(arguments, *row)?;
            if round > 0 {
                measured.add(figures);
            }
        }
    }
    eprintln!();
    let titles = rows.iter().map(|(_, query, _)| format!("Nexmark {query}"));
    let lines: Vec<ResultLine> = measured
        .iter()
        .zip(titles)
        .map(|(measured, title)| measured.line("nexmark", &title, arguments.events, &environment))
        .collect();
    if arguments.json {
        return measure::show(&lines, true);
    }
    print_table(arguments, &environment, &lines);
    if arguments.dbsp {
        print_means(&lines);
    }
    Ok(())
}

fn is_compared(query: &str) -> bool {
    COMPARED.contains(&query)
}

/// Fails unless the answers of both engines have as many rows.
fn compare_answers(arguments: &Arguments, queries: &[String]) -> Result<(), String> {
    let dir = tempfile::tempdir().map_err(|why| format!("cannot make a temporary directory: {why}"))?;
    for query in queries.iter().filter(|query| is_compared(query)) {
        let [tidegate, dbsp] = [Engine::Tidegate, Engine::Dbsp].map(|engine| engine.rows(arguments, query, dir.path()));
        let (tidegate, dbsp) = (tidegate?, dbsp?);
        eprintln!("{query}: {tidegate} rows");
        if tidegate != dbsp {
            return Err(format!("{query} has {tidegate} rows in Tidegate and {dbsp} in DBSP"));
        }
    }
    Ok(())
}

fn print_table(arguments: &Arguments, environment: &Environment, lines: &[ResultLine]) {
    println!("{}\n{} events; medians of {} (range)", environment.line(), arguments.events, arguments.runs.max(1));
    println!(
        "  {:<14}{:<10}{:>8}{:>22}{:>22}{:>10}",
        "query", "engine", "workers", "M events/s", "CPU s/M", "peak MiB"
    );
    for line in lines {
        let (rate, cpu, memory) = (line.rate().text(2), line.cpu().text(3), line.memory().median);
        let ResultLine { title, program, workers, .. } = line;
        println!("  {title:<14}{program:<10}{workers:>8}{rate:>22}{cpu:>22}{memory:>10.0}");
    }
}

/// Prints the geometric means of the ratios of CPU seconds of the two engines, by the number of workers.
fn print_means(lines: &[ResultLine]) {
    let events = lines.first().map_or(0.0, |line| line.cpu().median);
    let mut ratios = BTreeMap::<usize, Vec<[f64; 2]>>::new();
    for ours in lines.iter().filter(|line| line.program == Engine::Tidegate.name()) {
        let beside = |line: &&ResultLine| {
            line.title == ours.title && line.workers == ours.workers && line.program == Engine::Dbsp.name()
        };
        if let Some(theirs) = lines.iter().find(beside) {
            let (ours_cpu, theirs_cpu) = (ours.cpu().median, theirs.cpu().median);
            // Less than a hundredth of a second cannot be told from nothing.
            let without = (theirs_cpu - events).max(0.01) / (ours_cpu - events).max(0.01);
            ratios.entry(ours.workers).or_default().push([theirs_cpu / ours_cpu, without]);
        }
    }
    for (workers, ratios) in ratios {
        let mean =
            |which: usize| (ratios.iter().map(|ratio| ratio[which].ln()).sum::<f64>() / ratios.len() as f64).exp();
        let (with, without) = (mean(0), mean(1));
        println!(
            "  CPU seconds of DBSP to those of Tidegate, geometric mean of {} queries, {workers} workers: {with:.2}; \
             without the making of the events: {without:.2}",
            ratios.len()
        );
    }
}
