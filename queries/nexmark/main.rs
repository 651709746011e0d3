//! The Nexmark benchmark: queries over the persons, auctions and bids of an auction house, in the public interface alone.
//!
//! Each query is a file, with the question in SQL in its header, in DuckDB's dialect; `tests/nexmark.rs` asks DuckDB these
//! questions about the same events, and compares the answers. The questions are those of nexmark-flink
//! (`github.com/nexmark/nexmark`), q0 to q22; where a header says so, the meaning is one of event time.
//!
//! * Queries that Flink's SQL corrects with each event are collections here, whose changes have a column `diff`: 3, 4, 6,
//!   18, 19 and 20. All others are streams of final rows.
//! * The events are generated while the query runs, by every worker its share ([`generator`], [`source`]), or read from a
//!   file or a topic of such events as JSON.
//!
//! Try it: `cargo run --release --features nexmark --bin nexmark -- --query q5 --events 1000000 --out q5.csv -w 2`

mod calendar;
mod generator;
mod greatest;
mod model;
mod q0;
mod q1;
mod q10;
mod q11;
mod q12;
mod q13;
mod q14;
mod q15;
mod q16;
mod q17;
mod q18;
mod q19;
mod q2;
mod q20;
mod q21;
mod q22;
mod q3;
mod q4;
mod q5;
mod q6;
mod q7;
mod q8;
mod q9;
mod ranks;
mod source;
mod tables;
mod winning;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::builder::PossibleValuesParser;
use clap::{Parser, ValueEnum};
use generator::Generator;
use model::Event;
use source::GeneratedEvents;
use tidegate::cli::{self, QueryArgs};
use tidegate::sink::Sink;
use tidegate::source::Source;
use tidegate::stream::Observer;
use tidegate::{Flow, Record, Result, Stream};

/// Records are allocated on one thread and dropped on another: this allocator is good at that.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Form in which events are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum EventFormat {
    /// Tables: person.csv, auction.csv, bid.csv, side_input.csv.
    Csv,
    /// One file of all events in order: events.ndjson.
    Ndjson,
}

/// The queries of the Nexmark benchmark, over generated persons, auctions and bids
///
/// Writes the answer of one query, or, with --write, the events themselves. Results of q3, q4, q6, q18, q19 and q20 have a
/// last column diff: 1 for a row that is added, -1 for one that is taken back.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Examples:
  nexmark --query q5 --events 1000000 --seed 1 --out q5.csv -w 2
  nexmark --query q4 --events 10000000 --blackhole -w 2
  nexmark --events 100000 --seed 1 --write events/
  nexmark --query q7 --ndjson events/events.ndjson --until-end --out q7.csv"
)]
struct Arguments {
    /// Query to answer, q0 to q22
    #[arg(long, value_name = "QUERY", value_parser = names(), hide_possible_values = true, required_unless_present = "write")]
    query: Option<String>,

    /// Number of events
    #[arg(long, value_name = "N", default_value_t = 1_000_000, help_heading = "Events")]
    events: u64,

    /// Seed of the events: equal seeds give equal events
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = "Events")]
    seed: u64,

    /// Events per second of event time
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..=10_000_000), help_heading = "Events")]
    rate: u64,

    /// Length of the runs within which events are not in the order of event time; 1 for none
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1_000_000), help_heading = "Events")]
    shuffle: u64,

    /// Number of partitions of the events, which are shared out to workers; results do not depend on it
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=1024), help_heading = "Events")]
    partitions: u32,

    /// Write the events into this directory, and answer no query
    #[arg(long, value_name = "DIR", conflicts_with = "query", help_heading = "Events")]
    write: Option<PathBuf>,

    /// Form of the events that are written
    #[arg(long = "as", value_name = "FORMAT", value_enum, default_value_t = EventFormat::Csv, requires = "write", help_heading = "Events")]
    form: EventFormat,

    /// Compute the results and drop them, to measure
    #[arg(long, conflicts_with = "out", help_heading = "Output")]
    blackhole: bool,

    #[command(flatten)]
    run: QueryArgs,
}

/// Answers a query.
type QueryMain = fn(&Arguments) -> Result<u8>;

/// The queries by name.
const QUERIES: [(&str, QueryMain); 23] = [
    ("q0", |args| answer(args, |_, events, out| q0::query(events).write("results", out))),
    ("q1", |args| answer(args, |_, events, out| q1::query(events).write("results", out))),
    ("q2", |args| answer(args, |_, events, out| q2::query(events).write("results", out))),
    ("q3", |args| answer(args, |_, events, out| q3::query(events).write("results", out))),
    ("q4", |args| answer(args, |_, events, out| q4::query(events).write("results", out))),
    ("q5", |args| answer(args, |_, events, out| q5::query(events).write("results", out))),
    ("q6", |args| answer(args, |_, events, out| q6::query(events).write("results", out))),
    ("q7", |args| answer(args, |_, events, out| q7::query(events).write("results", out))),
    ("q8", |args| answer(args, |_, events, out| q8::query(events).write("results", out))),
    ("q9", |args| answer(args, |_, events, out| q9::query(events).write("results", out))),
    ("q10", |args| answer(args, |_, events, out| q10::query(events).write("results", out))),
    ("q11", |args| answer(args, |_, events, out| q11::query(events).write("results", out))),
    ("q12", |args| answer(args, |_, events, out| q12::query(events).write("results", out))),
    ("q13", |args| {
        let side = q13::side_source();
        answer(args, move |flow, events, out| q13::query(flow, events, &side).write("results", out))
    }),
    ("q14", |args| answer(args, |_, events, out| q14::query(events).write("results", out))),
    ("q15", |args| answer(args, |_, events, out| q15::query(events).write("results", out))),
    ("q16", |args| answer(args, |_, events, out| q16::query(events).write("results", out))),
    ("q17", |args| answer(args, |_, events, out| q17::query(events).write("results", out))),
    ("q18", |args| answer(args, |_, events, out| q18::query(events).write("results", out))),
    ("q19", |args| answer(args, |_, events, out| q19::query(events).write("results", out))),
    ("q20", |args| answer(args, |_, events, out| q20::query(events).write("results", out))),
    ("q21", |args| answer(args, |_, events, out| q21::query(events).write("results", out))),
    ("q22", |args| answer(args, |_, events, out| q22::query(events).write("results", out))),
];

/// Returns the parser of the names of queries.
fn names() -> PossibleValuesParser {
    PossibleValuesParser::new(QUERIES.map(|(name, _)| name))
}

impl Arguments {
    /// Returns the events that the flags name: generated ones, unless a file or a topic is named.
    fn source(&self) -> Result<Box<dyn Source<Item = Event>>> {
        let is_read = self.run.csv.is_some() || self.run.ndjson.is_some() || self.run.brokers.is_some();
        if is_read { self.run.source(Event::date_time) } else { Ok(Box::new(self.generated())) }
    }

    fn generated(&self) -> GeneratedEvents {
        GeneratedEvents::new(Generator::new(self.seed, self.rate, self.shuffle), self.events, self.partitions)
    }

    /// Returns the sink of results.
    fn out<R: Record>(&self) -> Result<Box<dyn Sink<R>>> {
        if self.blackhole { Ok(Box::new(Observer::new(|_, _| Ok(())))) } else { self.run.out() }
    }
}

/// Runs a query as the command line says.
fn answer<R: Record>(
    arguments: &Arguments,
    query: impl for<'f> Fn(&Flow<'f>, Stream<'f, Event>, &Box<dyn Sink<R>>) + Send + Sync + 'static,
) -> Result<u8> {
    let (source, out) = (arguments.source()?, arguments.out::<R>()?);
    let name = format!("nexmark-{}", arguments.query.as_deref().unwrap_or_default());
    arguments.run.run(&name, move |flow| query(flow, flow.read("events", &source), &out))
}

fn main() -> ExitCode {
    cli::start(|arguments: &Arguments| match (&arguments.write, &arguments.query) {
        (Some(directory), _) => {
            let events = arguments.generated();
            match arguments.form {
                EventFormat::Csv => tables::write_csv(&events, directory)?,
                EventFormat::Ndjson => tables::write_ndjson(&events, directory)?,
            }
            Ok(0)
        }
        (None, query) => {
            let found = QUERIES.iter().find(|(name, _)| query.as_deref() == Some(name));
            found.map_or(Ok(2), |(_, answer)| answer(arguments))
        }
    })
}
