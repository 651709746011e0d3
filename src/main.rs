//! The `tidegate` tool: reads the command line and calls the commands of [`tidegate::cli`].
//!
//! It also holds the query of `queries/account_totals.rs`, because the demo needs it and `cargo run` builds only this
//! program: if its file name is `account_totals`, this program runs that query.

use std::ffi::OsStr;
use std::path::Path;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use tidegate::cli::consume::{ConsumeArgs, consume};
use tidegate::cli::demo::{self, DemoArgs, demo};
use tidegate::cli::manual::{CompletionsArgs, ManArgs, completions, man};
use tidegate::cli::produce::{ProduceArgs, produce};
use tidegate::cli::snapshot::{SnapshotArgs, snapshot};
use tidegate::cli::start;
use tidegate::cli::up::{UpArgs, up};
use tidegate::cli::why::{WhyArgs, why_not};

#[path = "../queries/account_totals.rs"]
#[expect(unreachable_pub, reason = "it is a program of its own too")]
mod account_totals;

const EXAMPLES: &str = "Examples:
  tidegate                                         the demo: a broker, transactions, a query
  tidegate demo --brokers localhost:9092           the same with a real broker
  tidegate produce --brokers localhost:9092 --generate 1000000
  tidegate consume --brokers localhost:9092 --out copy.csv --until-end
  tidegate snapshot ls state/                      the snapshots of a query's state
  tidegate why state/                              what holds a window back
  tidegate up -n 3 -- account_totals --brokers localhost:9092 --state state/ --out kafka:totals

Queries are programs of their own; these are included:
  account_totals --brokers localhost:9092 --out totals.csv -w 2
  balances --help

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
    /// Lists, inspects and verifies the snapshots of a state, and exports savepoints
    Snapshot(SnapshotArgs),
    /// Explains why a window has not fired, or why a job has no output
    Why(WhyArgs),
    /// Runs all processes of a query on this machine, and restarts them when one fails
    Up(UpArgs),
    /// Writes a completion script for a shell
    Completions(CompletionsArgs),
    /// Writes manual pages, one for each command
    Man(ManArgs),
}

fn main() -> ExitCode {
    let called = std::env::args_os().next();
    if called.as_deref().and_then(|path| Path::new(path).file_stem()) == Some(OsStr::new(demo::QUERY)) {
        return account_totals::main();
    }
    start(|tool: &Tool| match &tool.command {
        Some(Command::Demo(args)) => demo(args),
        Some(Command::Produce(args)) => produce(args),
        Some(Command::Consume(args)) => consume(args),
        Some(Command::Snapshot(args)) => snapshot(args),
        Some(Command::Up(args)) => up(args),
        Some(Command::Why(args)) => why_not(args),
        Some(Command::Completions(args)) => completions(args, Tool::command()),
        Some(Command::Man(args)) => man(args, Tool::command()),
        None => demo(&DemoArgs::default()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound_and_the_demo_alone_is_the_demo_without_flags() {
        Tool::command().debug_assert();
        let Some(Command::Demo(typed)) = Tool::parse_from(["tidegate", "demo"]).command else { panic!("not the demo") };
        assert_eq!(typed, DemoArgs::default());
    }
}
