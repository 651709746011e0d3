//! `tidegate snapshot`: lists, inspects and verifies the snapshots of a state directory, and copies or removes them.
//!
//! The commands that read (`ls`, `inspect`, `verify`, `check`, `export`) take no lock, so a job may run meanwhile: if it removes
//! a file that is to be read, they list the files again and retry. `prune` takes the lock, and so fails while a job
//! runs.
//!
//! Rows are shown by the schema that segments carry, because only the query knows their types. A key of a step may have
//! parts in several segments; only the query can combine them, so they are listed side by side.

mod check;
mod chosen;
mod export;
mod figures;
mod inspect;
mod rows;
mod verify;

use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::{Args, Subcommand};
use serde_json::json;

use self::chosen::open_for_reading;
use self::figures::{bytes, pluralized, rows, segments, size, wall_clock_time};
use super::{note, print_line};
use crate::durable::disk::OsDisk;
use crate::durable::inspect::{StateSnapshots, inspect_snapshots};
use crate::durable::manifest::Manifest;
use crate::durable::segment::SegmentInfo;
use crate::durable::state::StateDir;
use crate::error::Result;

pub use check::CheckArgs;
pub use export::ExportArgs;
pub use inspect::InspectArgs;
pub use verify::VerifyArgs;

const EXAMPLES: &str = "Examples:
  tidegate snapshot ls state/                      the snapshots, and the cost of each
  tidegate snapshot inspect state/                 the contents of the newest one
  tidegate snapshot inspect state/ totals --key alice
  tidegate snapshot verify state/                  that every file is as it was written
  tidegate snapshot check state/ -- ./account_totals --csv in.csv --state state/
  tidegate snapshot export state/ savepoint/       a copy to start a new state from
  tidegate snapshot export state/ --csv rows.csv --step totals
  tidegate snapshot prune state/ --keep 1

All but prune may be used while the job runs. STATE may be a savepoint too.";

/// Lists, inspects and verifies snapshots, and copies or removes them.
#[derive(Clone, Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct SnapshotArgs {
    /// The subcommand.
    #[command(subcommand)]
    pub command: SnapshotCommand,
}

/// Subcommands of `tidegate snapshot`.
#[derive(Clone, Debug, Subcommand)]
pub enum SnapshotCommand {
    /// Lists the snapshots of a state, with the cost of each
    Ls(LsArgs),
    /// Shows the contents of a snapshot, or the rows of one of its steps
    Inspect(InspectArgs),
    /// Verifies every file that counts against its checksums
    Verify(VerifyArgs),
    /// Asks a program if it would go on with a state, without running it
    Check(CheckArgs),
    /// Exports a snapshot as a savepoint, or its rows as CSV or JSON
    Export(ExportArgs),
    /// Removes older snapshots
    Prune(PruneArgs),
}

/// Flags of `tidegate snapshot ls`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Columns:
  EPOCH     the snapshot's epoch: all up to it is in the snapshot
  MADE      time of writing, by the clock of its machine
  SIZE      size of its segments on disk
  CHANGED   size of the segments that the previous snapshot does not have: the cost of this one
  ROWS      rows of its segments; a key may have rows in several

Examples:
  tidegate snapshot ls state/
  tidegate snapshot ls state/ --json")]
pub struct LsArgs {
    /// The state directory, or a savepoint
    pub state: PathBuf,

    /// Print one JSON object a line, and a last one for the whole state
    #[arg(long)]
    pub json: bool,
}

/// Flags of `tidegate snapshot prune`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "The job must not run: stop it first. The journal stays; the job's next start truncates it.

Examples:
  tidegate snapshot prune state/ --keep 1")]
pub struct PruneArgs {
    /// The state directory
    pub state: PathBuf,

    /// Number of the newest snapshots to keep
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=10_000))]
    pub keep: u16,
}

/// Runs `tidegate snapshot`; returns the exit code.
///
/// # Errors
/// Fails if there is no state, it cannot be read, or it does not have the requested snapshot or step.
pub fn snapshot(args: &SnapshotArgs) -> Result<u8> {
    match &args.command {
        SnapshotCommand::Ls(args) => ls(args),
        SnapshotCommand::Inspect(args) => inspect::inspect(args),
        SnapshotCommand::Verify(args) => verify::verify(args),
        SnapshotCommand::Check(args) => check::check(args),
        SnapshotCommand::Export(args) => export::export(args),
        SnapshotCommand::Prune(args) => prune(args),
    }
}

fn ls(args: &LsArgs) -> Result<u8> {
    let dir = open_for_reading(&args.state)?;
    let StateSnapshots { manifests, unreadable, claim, journal_bytes } = inspect_snapshots(&dir)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    if !args.json {
        print_line(format_args!(
            "{:>14}  {:<24}  {:>8}  {:>10}  {:>10}  {:>10}  {:>12}",
            "EPOCH", "MADE", "AGE", "SIZE", "CHANGED", "ROWS", "CHANGED ROWS"
        ));
    }
    let mut before: Option<&Manifest> = None;
    for manifest in &manifests {
        let is_new =
            |segment: &&SegmentInfo| before.is_none_or(|before| !before.segments().any(|file| file == segment.file));
        let (all, new) = (segments(manifest), || segments(manifest).filter(is_new));
        let seconds = u64::try_from(now.saturating_sub(u128::from(manifest.created_ms)) / 1000).unwrap_or(u64::MAX);
        let (epoch, made) = (manifest.epoch, wall_clock_time(manifest.created_ms));
        let (stored, changed, count, changed_rows) = (bytes(all), bytes(new()), rows(segments(manifest)), rows(new()));
        if args.json {
            let line = json!({
                "epoch": epoch.0, "life": manifest.incarnation, "made": made.to_string(), "age_s": seconds,
                "bytes": stored, "changed_bytes": changed, "rows": count, "changed_rows": changed_rows,
                "segments": segments(manifest).count(), "ended": manifest.ended,
            });
            print_line(format_args!("{line}"));
        } else {
            let age = humantime::format_duration(std::time::Duration::from_secs(seconds)).to_string();
            let age = age.split(' ').take(2).collect::<String>();
            let ended = if manifest.ended { "  ended" } else { "" };
            print_line(format_args!(
                "{:>14}  {made:<24}  {age:>8}  {:>10}  {:>10}  {count:>10}  {changed_rows:>12}{ended}",
                epoch.0,
                size(stored),
                size(changed),
            ));
        }
        before = Some(manifest);
    }
    let whole =
        &manifests.iter().flat_map(segments).map(|s| (&s.file, s.bytes)).collect::<std::collections::BTreeMap<_, _>>();
    let whole: u64 = whole.values().sum();
    if args.json {
        let holder = claim.as_ref().map(|claim| {
            json!({
                "life": claim.incarnation, "pid": claim.holder.pid, "host": claim.holder.host,
                "since": wall_clock_time(claim.holder.since_ms).to_string(),
            })
        });
        let line = json!({
            "state": dir.id().to_string(), "snapshots": manifests.len(), "bytes": whole,
            "journal_bytes": journal_bytes, "last_life": holder,
        });
        print_line(format_args!("{line}"));
    } else {
        let life = claim.map_or(String::from("no incarnation yet"), |claim| {
            let (holder, life) = (&claim.holder, claim.incarnation);
            format!(
                "last incarnation {life}, pid {} on {} from {}",
                holder.pid,
                holder.host,
                wall_clock_time(holder.since_ms)
            )
        });
        let id = dir.id();
        if dir.is_savepoint()? {
            print_line(format_args!("a savepoint of the state {id}"));
        } else {
            let (count, whole, journal) = (pluralized(manifests.len(), "snapshot"), size(whole), size(journal_bytes));
            print_line(format_args!("state {id}: {count}, {whole} together; journal {journal}; {life}"));
        }
    }
    for error in &unreadable {
        note(format_args!("{error}"));
    }
    Ok(u8::from(!unreadable.is_empty()))
}

fn prune(args: &PruneArgs) -> Result<u8> {
    // Fails if there is no state: opening it for writing would create one.
    open_for_reading(&args.state)?;
    let dir = StateDir::open(OsDisk::shared(), &args.state, false)
        .map_err(|error| error.help("stop the job first: a snapshot is not removed while it runs"))?;
    let before = inspect_snapshots(&dir)?.manifests.len();
    let kept = dir.prune(usize::from(args.keep))?;
    let after = inspect_snapshots(&dir)?.manifests.len();
    print_line(format_args!("{} of {before} snapshots removed, {} files in all", before - after, kept.removed));
    Ok(0)
}
