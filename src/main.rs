//! The `tidegate` tool: reads the command line and calls the commands of [`tidegate::cli`], or one of the included
//! queries.
//!
//! It holds the query of `queries/account_totals.rs`, because the demo needs it and `cargo run` builds only this program,
//! and with the feature `queries` all of `queries/`: if its file name is that of a query, this program runs it.

use std::ffi::{OsStr, OsString};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use tidegate::cli::consume::{ConsumeArgs, consume};
use tidegate::cli::demo::{self, DemoArgs, demo};
use tidegate::cli::manual::{CompletionsArgs, ManArgs, completions, man};
use tidegate::cli::plot::{PlotArgs, plot};
use tidegate::cli::produce::{ProduceArgs, produce};
use tidegate::cli::redrive::{RedriveArgs, redrive};
use tidegate::cli::snapshot::{SnapshotArgs, snapshot};
use tidegate::cli::top::{TopArgs, top};
use tidegate::cli::up::{UpArgs, up};
use tidegate::cli::why::{WhyArgs, why_not};
use tidegate::cli::{note, start};

#[path = "../queries/account_totals.rs"]
mod account_totals;
#[cfg(feature = "queries")]
#[path = "../queries/mod.rs"]
mod queries;

/// Records are allocated on one thread and dropped on another: this allocator is good at that.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The main function of a query.
type QueryMain = fn() -> ExitCode;

/// Names of the queries that only a build with the feature `queries` has.
const QUERIES_OF_FEATURE: [&str; 11] = [
    "account_sessions",
    "balances",
    "category_revenue",
    "fraud_ring",
    "late_report",
    "orders_enriched",
    "payments_matched",
    "silent_accounts",
    "spend_by_minute",
    "top_spenders",
    "velocity_alerts",
];

const EXAMPLES: &str = "Examples:
  tidegate                                         the demo: a broker, transactions, a query
  tidegate demo --brokers localhost:9092           the same with a real broker
  tidegate produce --brokers localhost:9092 --generate 1000000
  tidegate consume --brokers localhost:9092 --out copy.csv --until-end
  tidegate redrive --brokers localhost:9092 --topic dead --dry-run
  tidegate snapshot ls state/                      the snapshots of a query's state
  tidegate why state/                              what holds a window back
  tidegate top 127.0.0.1:8080                      a running job, in the terminal
  tidegate plot totals.csv --out totals.svg        a picture of a query's results
  tidegate account_totals --brokers localhost:9092 --out totals.csv -w 2
  tidegate up -n 3 -- account_totals --brokers localhost:9092 --state state/ --out kafka:totals

Included queries; each has a --help:
  account_totals    totals of each account every 10 seconds
and those of a build with `--features queries`:
  account_sessions  sessions of each account
  balances          the balance of each account, at every epoch
  category_revenue  revenue of each category of merchants, from a file, every 10 seconds
  fraud_ring        accounts on cycles of transfers within the last hour
  late_report       late records, by merchant
  orders_enriched   orders with their customers, kept up to date, from Avro topics
  payments_matched  orders and payments, matched within an hour
  silent_accounts   accounts that have gone silent
  spend_by_minute   spend of the last minute, every 10 seconds
  top_spenders      the accounts that spend most
  velocity_alerts   accounts that spend too fast

Log filter, on standard error: TIDEGATE_LOG=warn, or =warn,tidegate::source=debug; info by default.
Exit codes: 0 done, 1 failed, 2 wrong usage, 130 and 143 stopped cleanly by Ctrl-C and SIGTERM. A second signal more than
a second after the first ends a program at once, with 1.";

/// Incremental queries over Kafka topics: a demo, and tools for topics and for state directories
#[derive(Debug, Parser)]
#[command(name = "tidegate", version, after_help = EXAMPLES)]
struct Tool {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs the demo for half a minute; what `tidegate` alone does
    Demo(DemoArgs),
    /// Writes transactions to a topic, from a file or generated
    Produce(ProduceArgs),
    /// Copies a topic of transactions to a CSV file
    Consume(Box<ConsumeArgs>),
    /// Sends dead letters back to the topics that they came from
    Redrive(RedriveArgs),
    /// Lists, inspects and verifies the snapshots of a state, and exports savepoints
    Snapshot(SnapshotArgs),
    /// Explains why a window has not fired, or why a job has no output
    Why(WhyArgs),
    /// Shows a running job in a terminal
    Top(TopArgs),
    /// Draws the results of a window query as a picture (SVG)
    Plot(PlotArgs),
    /// Runs all processes of a query on this machine, and restarts them when one fails
    Up(UpArgs),
    /// Writes a completion script for a shell
    Completions(CompletionsArgs),
    /// Writes manual pages, one for each command
    Man(ManArgs),
}

fn main() -> ExitCode {
    let mut words = std::env::args_os();
    let called = words.next();
    if let Some((_, query)) = called.as_deref().and_then(|path| Path::new(path).file_stem()).and_then(query) {
        return query();
    }
    if let Some((name, _)) = words.next().as_deref().and_then(query) {
        return become_query(name, words);
    }
    if let Some(name) = std::env::args().nth(1).filter(|name| QUERIES_OF_FEATURE.contains(&name.as_str())) {
        return leave_out(&name);
    }
    start(|tool: &Tool| match &tool.command {
        Some(Command::Demo(args)) => demo(args),
        Some(Command::Produce(args)) => produce(args),
        Some(Command::Consume(args)) => consume(args),
        Some(Command::Redrive(args)) => redrive(args),
        Some(Command::Snapshot(args)) => snapshot(args),
        Some(Command::Up(args)) => up(args, |name| query(name).is_some()),
        Some(Command::Why(args)) => why_not(args),
        Some(Command::Top(args)) => top(args),
        Some(Command::Plot(args)) => plot(args),
        Some(Command::Completions(args)) => completions(args, Tool::command()),
        Some(Command::Man(args)) => man(args, Tool::command()),
        None => demo(&DemoArgs::default()),
    })
}

/// Returns the query of this name.
fn query(name: &OsStr) -> Option<(&'static str, QueryMain)> {
    #[cfg(feature = "queries")]
    let others = queries::QUERIES;
    #[cfg(not(feature = "queries"))]
    let others: &[(&str, QueryMain)] = &[];
    let first: (&str, QueryMain) = (demo::QUERY, account_totals::main);
    std::iter::once(&first).chain(others).copied().find(|(known, _)| name == *known)
}

/// Reports that this build lacks a query, and how to build one that has it.
fn leave_out(name: &str) -> ExitCode {
    let needs = if name == "orders_enriched" { "queries,registry" } else { "queries" };
    note(format_args!("error: this build is without the query {name}"));
    note(format_args!("  build it with `--features {needs}`: cargo run --release --features {needs} -- {name} --help"));
    ExitCode::from(2)
}

/// Replaces this process by the query of this name, so that all it says names the query.
fn become_query(name: &str, arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let program = std::env::current_exe();
    let why = program.map(|program| std::process::Command::new(program).arg0(name).args(arguments).exec());
    note(format_args!("error: cannot start {name}: {}", why.unwrap_or_else(|why| why)));
    ExitCode::FAILURE
}
