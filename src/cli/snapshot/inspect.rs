//! `tidegate snapshot inspect`: shows the contents of a snapshot, or the rows of one of its steps.

use std::io::{IsTerminal, Write, stdout};
use std::path::PathBuf;

use clap::Args;
use indicatif::ProgressBar;

use super::chosen::{choose, open_for_reading, with_snapshot};
use super::figures::{bytes, rows, size, wall_clock_time};
use super::rows::{KeyRow, StepRowCursor, json, step, text_of};
use crate::cli::progress::bytes_bar;
use crate::cli::{note, print_line};
use crate::durable::codec::DynamicValue;
use crate::durable::manifest::Manifest;
use crate::durable::sources;
use crate::error::Result;

/// Default number of rows on a terminal.
const DEFAULT_LIMIT: u64 = 100;

/// Flags of `tidegate snapshot inspect`.
#[derive(Clone, Debug, Args)]
#[command(
    after_help = "Output is JSON, one key a line: the end of its window, the key, and its parts. A key has a part in
each segment in which it changed, with the epochs after which and up to which it changed. Only
the query can combine parts. What is expired by the snapshot's watermark is left out.

The rows of the abomonation codec cannot be shown: only the query can decode them. Recursive types
are shown to a limited depth.

Examples:
  tidegate snapshot inspect state/                        sources, steps and sinks
  tidegate snapshot inspect state/ totals --limit 10
  tidegate snapshot inspect state/ totals --key alice
  tidegate snapshot inspect state/ totals --epoch 1735689600000"
)]
pub struct InspectArgs {
    /// The state directory, or a savepoint
    pub state: PathBuf,

    /// Step whose rows are shown
    pub step: Option<String>,

    /// Show only rows of this key: its text, or its JSON if it is no text
    #[arg(long, value_name = "TEXT", requires = "step")]
    pub key: Option<String>,

    /// Epoch of the snapshot [default: the newest]
    #[arg(long, value_name = "E")]
    pub epoch: Option<u64>,

    /// Maximum number of keys [default: 100 on a terminal, else all]
    #[arg(long, value_name = "N", requires = "step")]
    pub limit: Option<u64>,
}

/// Runs `tidegate snapshot inspect`; returns the exit code.
pub(super) fn inspect(args: &InspectArgs) -> Result<u8> {
    let dir = open_for_reading(&args.state)?;
    let Some(name) = &args.step else {
        overview(&choose(&dir, args.epoch)?);
        return Ok(0);
    };
    let mut rows = with_snapshot(&dir, args.epoch, |manifest| StepRowCursor::open(&dir, step(manifest, Some(name))?))?;
    let limit = args.limit.unwrap_or(if stdout().is_terminal() { DEFAULT_LIMIT } else { u64::MAX });
    let (mut shown, mut out) = (0, stdout().lock());
    // On a terminal the bar would stand between the rows.
    let bar = if stdout().is_terminal() { ProgressBar::hidden() } else { bytes_bar() };
    bar.set_length(rows.progress().1);
    while let Some(row) = rows.next()? {
        bar.set_position(rows.progress().0);
        if let Some(key) = &args.key
            && text_of(&row.key)? != *key
        {
            continue;
        }
        if shown == limit {
            note(format_args!("there are more; --limit N shows N of them"));
            break;
        }
        // Nobody may be reading any more, which is no error.
        if writeln!(out, "{}", line(row)?).is_err() {
            break;
        }
        shown += 1;
    }
    bar.finish_and_clear();
    if shown == 0 {
        note(format_args!("there are no such rows"));
    }
    Ok(0)
}

/// Formats a row as a line of JSON.
fn line(row: KeyRow) -> Result<String> {
    let parts = row.parts.into_iter().map(|part| {
        let mut fields = vec![
            ("from".to_owned(), DynamicValue::Natural(part.from.0)),
            ("to".to_owned(), DynamicValue::Natural(part.to.0)),
        ];
        match part.value {
            DynamicValue::Fields(more) => fields.extend(more),
            value => fields.push(("value".to_owned(), value)),
        }
        DynamicValue::Fields(fields)
    });
    let mut fields = Vec::new();
    fields.extend(row.window.map(|end| ("window_end".to_owned(), DynamicValue::Time(end))));
    fields.push(("key".to_owned(), row.key));
    fields.push(("parts".to_owned(), DynamicValue::List(parts.collect())));
    json(&DynamicValue::Fields(fields))
}

fn overview(manifest: &Manifest) {
    let Manifest { job, epoch, incarnation, created_ms, query, .. } = manifest;
    let ended = if manifest.ended { "; the job is complete" } else { "" };
    print_line(format_args!(
        "job {job}, epoch {}, made by incarnation {incarnation} at {}{ended}",
        epoch.0,
        wall_clock_time(*created_ms)
    ));
    print_line(format_args!("program {}", query.build));
    for (flag, value) in &query.flags {
        print_line(format_args!("  {flag} {value}"));
    }
    for source in &manifest.sources {
        if sources::is_note(&source.name) {
            print_line(format_args!("{}: done", source.name));
            continue;
        }
        let kind = if source.is_combined() { "" } else { "source " };
        print_line(format_args!("{kind}{}: watermark {}", source.name, source.watermark));
        for bound in &source.progress {
            let until = bound.end_offset.map(|until| format!(" of {until}")).unwrap_or_default();
            let is = if bound.ended {
                ", ended"
            } else if bound.idle {
                ", idle"
            } else {
                ""
            };
            let (partition, next) = (bound.partition, bound.next_offset);
            let topic = bound.topic.as_ref().map(|topic| format!(" ({topic})"));
            let topic = topic.unwrap_or_default();
            print_line(format_args!(
                "  partition {partition}{topic}: offset {next}{until}, watermark {}{is}",
                bound.watermark
            ));
        }
    }
    for step in &manifest.steps {
        let (count, all, stored) = (step.segments.len(), rows(step.segments.iter()), bytes(step.segments.iter()));
        let (name, closed) = (&step.name, step.closed);
        print_line(format_args!(
            "step {name}: {all} rows in {count} segments, {}; closed through {closed}",
            size(stored)
        ));
        for segment in &step.segments {
            let (file, from, to, rows) = (&segment.file, segment.from.0, segment.to.0, segment.rows);
            print_line(format_args!("  {file}: epochs {from} to {to}, {rows} rows, {}", size(segment.bytes)));
        }
    }
    for sink in &manifest.sinks {
        let shown = sink
            .published
            .map_or("nothing published yet".into(), |shown| format!("published through epoch {}", shown.0));
        let live = if sink.on_change { ", a live collection" } else { "" };
        print_line(format_args!("sink {}: {shown}{live}", sink.name));
    }
}
