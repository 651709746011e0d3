//! Throughput of the Nexmark queries.
//!
//! Each run is a process of the program `nexmark`, as users run it, that makes the events up, answers a query and drops the
//! answer. So figures hold the start of a process and the making of the events, which is measured by itself, on one thread,
//! as `events`. Runs of all queries alternate, so that a noisy moment affects all of them.
//!
//! `cargo bench --bench nexmark -- --query q0,q5 --events 10000000 --workers 1,2`

#[expect(dead_code, reason = "the program uses all of it")]
#[path = "../queries/nexmark/generator.rs"]
mod generator;
#[path = "throughput/measure.rs"]
#[expect(dead_code, reason = "the other benchmark uses all of it")]
mod measure;
#[expect(dead_code, reason = "the program uses all of it")]
#[path = "../queries/nexmark/model.rs"]
mod model;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use clap::Parser;
use nix::sys::resource::{UsageWho, getrusage};

use generator::Generator;

/// The row of the events alone.
const EVENTS: &str = "events";

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

    /// Number of runs of each query; medians are shown
    #[arg(long, default_value_t = 3)]
    runs: usize,

    /// Seed of the events
    #[arg(long, default_value_t = 1)]
    seed: u64,

    /// Print one JSON object a line, for plotting, instead of a table
    #[arg(long)]
    json: bool,

    /// Make one run in a process of its own: for the benchmark itself
    #[arg(long, hide = true, num_args = 2, value_names = ["QUERY", "WORKERS"])]
    one: Vec<String>,

    /// Passed by cargo to benchmarks.
    #[arg(long, hide = true)]
    bench: bool,
}

/// Measurements of a run.
#[derive(Clone, Copy, Debug)]
struct Figures {
    seconds: f64,
    /// CPU seconds.
    cpu: f64,
    peak_mib: f64,
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

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// Builds the program, and returns its path.
fn program() -> Result<PathBuf, String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let words = ["build", "--release", "--package", "tidegate", "--features", "nexmark", "--bin", "nexmark"];
    let built = Command::new(cargo).args(words).current_dir(root()).stdout(Stdio::null()).status();
    if !built.map_err(|why| format!("cannot start cargo: {why}"))?.success() {
        return Err(String::from("the program nexmark does not build"));
    }
    // This benchmark is in `release/deps` of the same target directory.
    let own = std::env::current_exe().map_err(|why| format!("no path of this program: {why}"))?;
    let release = own.parent().and_then(Path::parent).ok_or("this program is in no target directory")?;
    Ok(release.join("nexmark"))
}

/// Makes one run, and prints its measurements.
fn one(arguments: &Arguments) -> Result<(), String> {
    let [query, workers] = &arguments.one[..] else { return Err(String::from("--one takes two values")) };
    let begun = Instant::now();
    let who = if query == EVENTS {
        let generator = Generator::new(arguments.seed, 10_000, 1);
        (0..arguments.events).for_each(|place| drop(std::hint::black_box(generator.at(place))));
        UsageWho::RUSAGE_SELF
    } else {
        let own = std::env::current_exe().map_err(|why| format!("no path of this program: {why}"))?;
        let nexmark = own.parent().and_then(Path::parent).map(|release| release.join("nexmark")).unwrap_or_default();
        let numbers = [arguments.events, arguments.seed].map(|number| number.to_string());
        let mut command = Command::new(&nexmark);
        command.args(["--query", query, "--workers", workers, "--blackhole", "--progress", "off"]);
        command.args(["--events", &numbers[0], "--seed", &numbers[1]]);
        let ended = command.status().map_err(|why| format!("cannot start {}: {why}", nexmark.display()))?;
        if !ended.success() {
            return Err(format!("{query} failed: {ended}"));
        }
        UsageWho::RUSAGE_CHILDREN
    };
    let seconds = begun.elapsed().as_secs_f64();
    let usage = getrusage(who).map_err(|why| format!("no figures of a process: {why}"))?;
    let cpu = [usage.user_time(), usage.system_time()].map(|t| t.tv_sec() as f64 + t.tv_usec() as f64 / 1e6);
    println!("{seconds} {} {}", cpu[0] + cpu[1], usage.max_rss() as f64 / 1024.0);
    Ok(())
}

/// Makes a run in a process of its own.
fn run(arguments: &Arguments, query: &str, workers: usize) -> Result<Figures, String> {
    let own = std::env::current_exe().map_err(|why| format!("no path of this program: {why}"))?;
    let numbers = [arguments.events, arguments.seed, workers as u64].map(|number| number.to_string());
    let words = ["--events", &numbers[0], "--seed", &numbers[1], "--one", query, &numbers[2]];
    let output = Command::new(own).args(words).stderr(Stdio::inherit()).output();
    let output = output.map_err(|why| format!("cannot start a run: {why}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let numbers: Vec<f64> = text.split_whitespace().filter_map(|number| number.parse().ok()).collect();
    match numbers[..] {
        [seconds, cpu, peak_mib] if output.status.success() => Ok(Figures { seconds, cpu, peak_mib }),
        _ => Err(format!("{query} on {workers} workers has no figures")),
    }
}

fn measure_all(arguments: &Arguments) -> Result<(), String> {
    program()?;
    let queries = match &arguments.query[..] {
        [] => (0..23).map(|number| format!("q{number}")).collect(),
        some => some.to_vec(),
    };
    let each = queries.iter().flat_map(|query| arguments.workers.iter().map(move |workers| (query.as_str(), *workers)));
    let rows: Vec<(&str, usize)> = std::iter::once((EVENTS, 1)).chain(each).collect();
    let mut figures = vec![Vec::new(); rows.len()];
    for _ in 0..arguments.runs.max(1) {
        for ((query, workers), figures) in rows.iter().zip(&mut figures) {
            figures.push(run(arguments, query, *workers)?);
        }
    }
    let millions = arguments.events as f64 / 1e6;
    if !arguments.json {
        println!("{}\n{} events", measure::machine(), arguments.events);
        println!(
            "  {:<8}{:>8}{:>24}{:>24}{:>10}",
            "query", "workers", "M events/s (range)", "CPU s/M (range)", "peak MiB"
        );
    }
    for ((query, workers), runs) in rows.iter().zip(&figures) {
        let spread = |of: &dyn Fn(&Figures) -> f64| measure::spread(runs.iter().map(of).collect());
        let (least, median, greatest) = spread(&|run| millions / run.seconds);
        let (cpu_least, cpu, cpu_most) = spread(&|run| run.cpu / millions);
        let (_, peak, _) = spread(&|run| run.peak_mib);
        if arguments.json {
            println!(
                "{{\"benchmark\":\"nexmark\",\"query\":\"{query}\",\"workers\":{workers},\"events\":{},\"runs\":{},\
                 \"median\":{median:.4},\"min\":{least:.4},\"max\":{greatest:.4},\"cpu_s_per_m\":{cpu:.4},\
                 \"cpu_min\":{cpu_least:.4},\"cpu_max\":{cpu_most:.4},\"peak_mib\":{peak:.0},\"machine\":\"{}\"}}",
                arguments.events,
                runs.len(),
                measure::machine()
            );
        } else {
            let (range, cpu_range) =
                (format!("{median:.2} ({least:.2}-{greatest:.2})"), format!("{cpu:.2} ({cpu_least:.2}-{cpu_most:.2})"));
            println!("  {query:<8}{workers:>8}{range:>24}{cpu_range:>24}{peak:>10.0}");
        }
    }
    Ok(())
}
