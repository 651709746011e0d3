//! The queries q0 to q8 of the Nexmark benchmark in dbsp, over the events that Tidegate's program makes, with its answers.
//!
//! The events come from the generator of `queries/nexmark`, and reach the circuit as its authors' benchmark feeds it: a
//! batch of events is one transaction. Each query has the tables that it reads, and these have the columns that it reads, as
//! Feldera's compiler of SQL leaves all others out. The allocator is the one that dbsp brings.
//!
//! `cargo bench -p benches --bench nexmark -- --dbsp` builds this program, compares its answers with Tidegate's, and measures both.

#[expect(dead_code, reason = "Tidegate's program uses all of it")]
#[path = "../../../queries/nexmark/generator.rs"]
mod generator;
#[expect(dead_code, reason = "Tidegate's program uses all of it")]
#[path = "../../../queries/nexmark/model.rs"]
mod model;
mod queries;
mod tables;

use std::collections::BTreeMap;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use dbsp::circuit::CircuitConfig;
use dbsp::{IndexedZSetReader, Runtime, ZWeight};

use generator::Generator;
use queries::{OverBids, Query};

/// Number of events per second of event time, as Tidegate's program has it.
const RATE: u64 = 10_000;

/// The allocator that dbsp's own benchmarks have.
#[global_allocator]
static ALLOCATOR: dbsp::mimalloc::MiMalloc = dbsp::mimalloc::MiMalloc;

/// The queries q0 to q8 of the Nexmark benchmark in dbsp, over generated events
#[derive(Debug, Parser)]
struct Arguments {
    /// Query to answer, q0 to q8
    #[arg(long, value_name = "QUERY")]
    query: String,

    /// Number of events
    #[arg(long, value_name = "N", default_value_t = 1_000_000)]
    events: u64,

    /// Seed of the events: equal seeds give equal events
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,

    /// Number of worker threads of the circuit
    #[arg(long, value_name = "N", default_value_t = 1)]
    workers: usize,

    /// Events of a transaction; q5 has those of two seconds of event time
    #[arg(long, value_name = "N", default_value_t = 20_000, value_parser = clap::value_parser!(u64).range(1..=40_000))]
    step: u64,

    /// Write the answer into this file as CSV, without a header; otherwise it is computed and dropped
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// Result of a part of this program; the error is a text or one of dbsp.
type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    match arguments.query.as_str() {
        "q0" => answer::<OverBids<queries::PassThrough>>(arguments),
        "q1" => answer::<OverBids<queries::Currency>>(arguments),
        "q2" => answer::<queries::Selection>(arguments),
        "q3" => answer::<queries::LocalItems>(arguments),
        "q4" => answer::<queries::CategoryPrices>(arguments),
        "q5" => answer::<queries::HotItems>(arguments),
        "q6" => answer::<queries::SellerPrices>(arguments),
        "q7" => answer::<OverBids<queries::HighestBids>>(arguments),
        "q8" => answer::<queries::NewUsers>(arguments),
        other => Err(format!("there is no query {other} here: q0 to q8 are").into()),
    }
}

/// Answers a query as the command line says.
fn answer<Q: Query>(arguments: &Arguments) -> Result<()> {
    // Tables get rows between transactions only, which dbsp makes use of.
    let config = CircuitConfig::with_workers(arguments.workers).with_allow_input_during_commit(false);
    let is_kept = arguments.out.is_some();
    let (mut circuit, (mut query, view)) = Runtime::init_circuit(config, move |circuit| {
        let (query, rows) = Q::build(circuit);
        let view = if is_kept {
            Some(rows.accumulate_output())
        } else {
            rows.inspect(|rows| {
                std::hint::black_box(rows);
            });
            None
        };
        Ok((query, view))
    })?;
    // The rows of the view with their weights, and, of a query with an answer of each step, all answers so far.
    let (mut current, mut answers) = (BTreeMap::<Q::Row, ZWeight>::new(), BTreeMap::<Q::Row, ZWeight>::new());
    let generator = Generator::new(arguments.seed, RATE, 1);
    let step = Q::STEP.unwrap_or(arguments.step);
    let steps = arguments.events.div_ceil(step);
    for number in 0..steps + Q::EXTRA_STEPS {
        if number < steps {
            let end = arguments.events.min((number + 1) * step);
            (number * step..end).for_each(|place| query.take(generator.at(place)));
        } else {
            query.pass_time();
        }
        query.flush();
        circuit.transaction()?;
        let Some(view) = &view else { continue };
        for (row, (), weight) in view.concat().consolidate().iter() {
            *current.entry(row).or_default() += weight;
        }
        current.retain(|_, weight| *weight != 0);
        if Q::ANSWERS_EACH_STEP {
            current.iter().for_each(|(row, weight)| *answers.entry(row.clone()).or_default() += weight);
        }
    }
    circuit.kill().map_err(|_| "a worker of dbsp panicked")?;
    match &arguments.out {
        Some(path) => write::<Q>(path, if Q::ANSWERS_EACH_STEP { &answers } else { &current }),
        None => Ok(()),
    }
}

/// Writes rows as CSV, each as often as its weight says.
fn write<Q: Query>(path: &Path, rows: &BTreeMap<Q::Row, ZWeight>) -> Result<()> {
    let failed = |why: csv::Error| format!("cannot write {}: {why}", path.display());
    let mut writer = csv::WriterBuilder::new().has_headers(false).from_path(path).map_err(failed)?;
    for (row, weight) in rows {
        let fields = Q::fields(row);
        for _ in 0..*weight {
            writer.write_record(&fields).map_err(failed)?;
        }
    }
    Ok(writer.flush().map_err(|why| format!("cannot write {}: {why}", path.display()))?)
}
