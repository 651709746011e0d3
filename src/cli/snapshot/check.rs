//! `tidegate snapshot check`: would a program go on with a state?
//!
//! The program is started with the request in its environment; it answers with a file and ends, without running.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use clap::Args;

use super::chosen::open_for_reading;
use crate::cli::print_line;
use crate::error::{Error, Result};
use crate::job::state_check::{ANSWER_VARIABLE, FITS, STATE_VARIABLE};

/// Flags of `tidegate snapshot check`.
#[derive(Clone, Debug, Args)]
#[command(
    after_help = "The program is started with its arguments, answers and ends: it reads no source, opens no output and
writes nothing. Whether sources and outputs are those of the state is found when the job starts. A job that runs, or that
was not stopped cleanly, has epochs to replay, which a changed program may not repeat.

Exit codes: 0 the program goes on with the state, 1 it is refused, or could not be asked, 2 wrong usage.

Examples:
  tidegate snapshot check state/ -- ./account_totals --brokers localhost:9092 --state state/"
)]
pub struct CheckArgs {
    /// The state directory
    pub state: PathBuf,

    /// The program and its arguments
    #[arg(last = true, required = true, value_name = "PROGRAM [ARGUMENTS]")]
    pub program: Vec<String>,
}

/// Runs `tidegate snapshot check`; returns the exit code.
pub(super) fn check(args: &CheckArgs) -> Result<u8> {
    let dir = open_for_reading(&args.state)?;
    let state = fs::canonicalize(dir.path())
        .map_err(|why| Error::new("cannot find the state").at(dir.path().display()).because(why))?;
    let Some((program, arguments)) = args.program.split_first() else {
        return Err(Error::usage("no program is named").help("name it behind --"));
    };
    let answer = std::env::temp_dir().join(format!("tidegate-check-{}", std::process::id()));
    let mut command = Command::new(program);
    command.args(arguments).env(STATE_VARIABLE, &state).env(ANSWER_VARIABLE, &answer);
    let ended = command.stdin(Stdio::null()).stdout(Stdio::null()).output();
    let text = fs::read_to_string(&answer);
    // A file that stays is of no consequence.
    let _ = fs::remove_file(&answer);
    let ended = ended.map_err(|why| Error::new("cannot start the program").at(program).because(why))?;
    let Ok(text) = text else {
        let said = String::from_utf8_lossy(&ended.stderr);
        let said = said.lines().last().unwrap_or("it said nothing");
        let error = Error::new("the program did not answer").at(program).because(said);
        return Err(
            error.help("name a program that runs a job of this version of Tidegate, with arguments that it accepts")
        );
    };
    let mut lines = text.lines();
    let fits = lines.next() == Some(FITS);
    lines.for_each(|line| print_line(format_args!("{line}")));
    print_line(format_args!(
        "{}",
        if fits { "the program goes on with the state" } else { "the start would be refused" }
    ));
    Ok(u8::from(!fits))
}
