//! `tidegate snapshot verify`: whether every file that counts is as it was written.

use std::path::PathBuf;

use clap::Args;

use super::{look_at, size};
use crate::cli::progress::bytes_bar;
use crate::cli::say;
use crate::durable::look::{Checked, check};
use crate::error::Result;

/// Flags of `tidegate snapshot verify`.
#[derive(Clone, Debug, Args)]
#[command(
    after_help = "Checked are the identity of the state, the claims of its lives, the snapshots that count, every
segment that they name, block by block, and the journal; and that together they can be gone
on from. Every bad file is named on standard error. A torn tail of the journal is what a
process was writing when it ended: it never counts, and is not damage.

Exit codes: 0 all is as it was written, 1 something is not.

Examples:
  tidegate snapshot verify state/
  tidegate snapshot verify savepoint/"
)]
pub struct VerifyArgs {
    /// The state directory, or a savepoint
    pub state: PathBuf,
}

/// Runs the command; answers its exit code.
pub(super) fn verify(args: &VerifyArgs) -> Result<u8> {
    let dir = look_at(&args.state)?;
    let bar = bytes_bar();
    let checked = check(&dir, &mut |bytes, all| {
        bar.set_length(all);
        bar.inc(bytes);
    })?;
    bar.finish_and_clear();
    let Checked { snapshots, claims, journals, segments, bytes, wrong, torn, goes_on } = &checked;
    for error in wrong {
        eprintln!("{error}");
    }
    for (file, length) in torn {
        say(format_args!("journal/{file}: the last {length} bytes are not finished, and do not count"));
    }
    if let Some(goes_on) = goes_on {
        let from = goes_on.from.map_or("the beginning".into(), |from| format!("epoch {}", from.0));
        say(format_args!("goes on from {from}, and runs {} epochs again", goes_on.replayed));
    }
    let verdict = match wrong.len() {
        0 => "all are as they were written".to_owned(),
        1 => "1 is not as it was written".to_owned(),
        count => format!("{count} are not as they were written"),
    };
    let what = format!("{snapshots} snapshots, {segments} segments of {}", size(*bytes));
    say(format_args!("checked {what}, {journals} files of the journal, {claims} claims: {verdict}"));
    Ok(u8::from(!wrong.is_empty()))
}
