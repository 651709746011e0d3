//! Throughput of joins of two streams in event time, beside programs written by hand.
//!
//! * `within`: each left record with the right ones of its key that happen at most two seconds after it.
//! * `as-of`: each left record with the last right one of its key that is not later.
//! * `windowed`: the pairs of records of a key that are in the same two seconds.
//!
//! Both streams have as many records, `u32` keys, and two partitions by key, in memory; records are out of order by up to
//! two seconds, and none is late. A left record has about one right one, whatever the join. The program by hand is one
//! thread with integer keys, hash maps with a fast hasher, and a watermark of its own. Each run is a process of its own; runs
//! alternate; and before figures are shown, all programs have given equal rows.
//!
//! `cargo bench -p benches --bench joins -- --records 4000000 --workers 1,2`

#[path = "joins/by_hand.rs"]
mod by_hand;
#[path = "joins/data.rs"]
mod data;

use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use kit::{BenchFlags, Environment, Measured, RowChecksum, RunFigures, SharedCheck, measure, timed};
use tidegate::source::Options;
use tidegate::source::memory::MemorySource;
use tidegate::{Job, Window};

use data::{Moment, Streams};

/// The allocator of Tidegate's own programs, for everything that is measured.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Milliseconds that a pair of `within` may be apart, and that a window of `windowed` has.
const SPAN: i64 = 2_000;

/// A measured join.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Join {
    /// Pairs that happen within two seconds.
    Within,
    /// The last right record that is not later.
    AsOf,
    /// Pairs of a window of two seconds.
    Windowed,
}

/// A measured program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum JoinProgram {
    /// Written by hand, on one thread.
    ByHand,
    /// Tidegate.
    Tidegate,
}

/// Measures the throughput of joins, beside programs written by hand
#[derive(Debug, Parser)]
#[command(after_help = "Examples:
  cargo bench -p benches --bench joins
  cargo bench -p benches --bench joins -- --join within --records 10000000 --runs 9 --json > figures.ndjson")]
struct Arguments {
    /// Records of each run, of both streams, a hundred thousand a second of event time
    #[arg(long, default_value_t = 2_000_000)]
    records: u64,

    /// Number of distinct keys
    #[arg(long, default_value_t = 100_000)]
    keys: u64,

    /// Joins to measure
    #[arg(long, value_enum, value_delimiter = ',', default_value = "within,as-of,windowed")]
    join: Vec<Join>,

    /// Numbers of workers to measure
    #[arg(long, value_delimiter = ',', default_value = "1,2")]
    workers: Vec<usize>,

    /// Number of runs of each program; medians are shown. One more of each comes before them and is not counted
    #[arg(long, default_value_t = 5)]
    runs: usize,

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

/// Makes one run of one program, and prints its measurements.
fn one(arguments: &Arguments, [join, program, workers]: &[String; 3]) -> Result<(), String> {
    let join = Join::from_str(join, true)?;
    let workers: usize = workers.parse().map_err(|_| String::from("the number of workers is no number"))?;
    let streams = Streams::generate(arguments.records, arguments.keys);
    let figures = match JoinProgram::from_str(program, true)? {
        JoinProgram::ByHand => timed(|| {
            Ok(match join {
                Join::Within => by_hand::within(&streams, SPAN),
                Join::AsOf => by_hand::as_of(&streams),
                Join::Windowed => by_hand::windowed(&streams, SPAN),
            })
        }),
        JoinProgram::Tidegate => tidegate(join, workers, streams),
    }?;
    println!("{}", figures.to_line());
    Ok(())
}

/// Returns the checksum of a pair.
#[inline]
fn pair(key: u32, left: &Moment, right: &Moment) -> RowChecksum {
    RowChecksum::of([u64::from(key), left.at as u64, left.value as u64, right.at as u64, right.value as u64], 1)
}

/// Joins with Tidegate.
fn tidegate(join: Join, workers: usize, streams: Streams) -> Result<RunFigures, String> {
    let Streams { left, right } = streams;
    let [left, right] =
        [left, right].map(|partitions| MemorySource::new(partitions, |record: &data::Keyed| record.1.at));
    timed(|| {
        let shared = SharedCheck::default();
        let checks = shared.clone();
        let span = Duration::from_millis(SPAN.unsigned_abs());
        let options =
            Options::default().until_end(true).out_of_order(Duration::from_millis(data::DISORDER.unsigned_abs()));
        let run = Job::new("joins").workers(workers).options(options).run(move |flow| {
            let checks = checks.clone();
            let left = flow.read("left", &left).key_by(|record| record.0);
            let right = flow.read("right", &right).key_by(|record| record.0);
            let joined = match join {
                Join::Within => left
                    .join_within("pairs", right, Duration::ZERO, span)
                    .inner(|_, left, right| (left.0, left.1, right.1))
                    .results(),
                Join::AsOf => {
                    left.join_as_of("pairs", right).inner(|_, left, right| (left.0, left.1, right.1)).results()
                }
                Join::Windowed => left
                    .join_windowed("pairs", right, Window::tumbling(span))
                    .inner(|_, _, left, right| (left.0, left.1, right.1))
                    .results(),
            };
            joined.inspect(move |(key, left, right)| checks.add(pair(*key, left, right)));
        });
        run.map_err(|error| error.to_string())?;
        Ok(shared.get())
    })
}

fn name(value: &impl ValueEnum) -> String {
    value.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

fn measure_all(arguments: &Arguments) -> Result<(), String> {
    let environment = Environment::now();
    if !arguments.flags.json {
        println!("{}", environment.line());
    }
    for join in &arguments.join {
        let mut programs = vec![(JoinProgram::ByHand, 1)];
        programs.extend(arguments.workers.iter().map(|&workers| (JoinProgram::Tidegate, workers)));
        let made = |(program, workers): &(JoinProgram, usize)| Measured::new(format!("{program:?}"), *workers, 1);
        let mut measured: Vec<Measured> = programs.iter().map(made).collect();
        let title = format!("Join {}", name(join));
        // The first round warms up.
        for round in 0..=arguments.runs.max(1) {
            for ((program, workers), measured) in programs.iter().zip(&mut measured) {
                eprint!("\r{title}: round {round} of {}: {program:?} {workers}   ", arguments.runs);
                let numbers = [("--records", arguments.records), ("--keys", arguments.keys)];
                let mut words: Vec<String> =
                    numbers.into_iter().flat_map(|(flag, number)| [flag.to_owned(), number.to_string()]).collect();
                words.extend([String::from("--one"), name(join), name(program), workers.to_string()]);
                let figures = measure::run_apart(&words)?;
                if round > 0 {
                    measured.add(figures);
                }
            }
        }
        eprintln!();
        measure::check_equal(&title, &measured)?;
        let lines: Vec<_> =
            measured.iter().map(|program| program.line("joins", &title, arguments.records, &environment)).collect();
        measure::show(&lines, arguments.flags.json)?;
    }
    Ok(())
}
