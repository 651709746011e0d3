//! `tidegate snapshot verify`: verifies that every file that counts is as it was written.

use std::path::PathBuf;

use clap::Args;

use super::chosen::open_for_reading;
use super::figures::{pluralized, size};
use crate::cli::progress::bytes_bar;
use crate::cli::{note, print_line};
use crate::durable::inspect::{IntegrityReport, verify_files};
use crate::durable::recovery::ReportedSink;
use crate::durable::state::StateDir;
use crate::error::{Error, Result};
use crate::sink::{published_in, verify_published};

/// Flags of `tidegate snapshot verify`.
#[derive(Clone, Debug, Args)]
#[command(
    after_help = "Verifies the identity of the state, the claims of its incarnations, the snapshots that count, every
segment that they name, block by block, and the journal; and that a job can resume from them. Of
results files that are named with --output, every byte that was published: a job that starts
reads no more than their last 16 MiB.
Every bad file is named on standard error. A torn tail of the journal is what a process was
writing when it ended, and is ignored. It is damage if a result that depends on it was
published, which only the output can tell: name results files with --output.

Exit codes: 0 everything is as it was written, 1 something is not.

Examples:
  tidegate snapshot verify state/
  tidegate snapshot verify state/ --output totals.csv --output late.csv
  tidegate snapshot verify savepoint/"
)]
pub struct VerifyArgs {
    /// The state directory, or a savepoint
    pub state: PathBuf,

    /// Results file of the state, CSV or NDJSON: verify that it is as it was published, and that the journal has
    /// everything that was. Can be given several times
    #[arg(long = "output", value_name = "FILE")]
    pub outputs: Vec<PathBuf>,
}

/// Reads the positions of results files, as recovery does.
///
/// # Errors
/// Fails if a file is no results file of this state.
fn outputs_of(dir: &StateDir, files: &[PathBuf]) -> Result<Vec<ReportedSink>> {
    let mut outputs = Vec::new();
    for file in files {
        let place = || file.display().to_string();
        let Some((state, sink)) = published_in(dir.disk(), file)? else {
            let error = Error::usage("this is no results file of a job with state").at(place());
            return Err(error.because("it has no commit file beside it"));
        };
        if state != dir.id() {
            let why = format!("it belongs to the state {state}, and this is the state {}", dir.id());
            return Err(Error::usage("this is a results file of another state").at(place()).because(why));
        }
        outputs.push(sink);
    }
    Ok(outputs)
}

/// Runs `tidegate snapshot verify`; returns the exit code.
pub(super) fn verify(args: &VerifyArgs) -> Result<u8> {
    let dir = open_for_reading(&args.state)?;
    let bar = bytes_bar();
    let mut progress = |bytes, all| {
        bar.set_length(all);
        bar.inc(bytes);
    };
    let mut checked = verify_files(&dir, &outputs_of(&dir, &args.outputs)?, &mut progress)?;
    for output in &args.outputs {
        bar.reset();
        checked.wrong.extend(verify_published(dir.disk(), output, &mut progress).err());
    }
    bar.finish_and_clear();
    let IntegrityReport { snapshots, claims, journals, segments, bytes, wrong, torn, resume_point } = &checked;
    for error in wrong {
        note(format_args!("{error}"));
    }
    for (file, length) in torn {
        let hint = if args.outputs.is_empty() { ", unless an output has published them: see --output" } else { "" };
        print_line(format_args!("journal/{file}: the last {length} bytes are not finished, and do not count{hint}"));
    }
    if let Some(goes_on) = resume_point {
        let from = goes_on.from.map_or("the beginning".into(), |from| format!("epoch {}", from.0));
        print_line(format_args!("goes on from {from}, and runs {} again", pluralized(goes_on.replayed, "epoch")));
    }
    let verdict = match wrong.len() {
        0 => "all are as they were written".to_owned(),
        1 => "1 is not as it was written".to_owned(),
        count => format!("{count} are not as they were written"),
    };
    let (snapshots, segments) = (pluralized(*snapshots, "snapshot"), pluralized(*segments, "segment"));
    let (journals, claims) = (pluralized(*journals, "journal file"), pluralized(*claims, "claim"));
    print_line(format_args!("checked {snapshots}, {segments} of {}, {journals}, {claims}: {verdict}", size(*bytes)));
    Ok(u8::from(!wrong.is_empty()))
}
