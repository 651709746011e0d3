//! `tidegate up`: runs all processes of a query on this machine, and restarts them when one fails.
//!
//! A round is one start of all processes, at free ports. When one of them fails, the others notice and end by
//! themselves; those that do not are killed. A job with state then resumes where its results end, so all processes are
//! restarted, after a pause that grows. The command gives up when too many rounds in a row have failed without a new
//! snapshot: restarting does not help then, and the exit code is that of the process that failed first.
//!
//! The processes' addresses and their shared secret are in a directory that only this user can enter, in newly created
//! files: what other users put into the directory of temporary files is neither followed nor overwritten.
//!
//! Invariants: no process of a round is left when the next one begins, or when the command ends; output of the
//! processes is prefixed with their numbers.

use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::net::TcpListener;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use clap::Args;
use nix::sys::signal::Signal;

use super::child_process::ChildProcess;
use super::note;
use super::stop::StopSignal;
use crate::durable::disk::OsDisk;
use crate::durable::manifest;
use crate::error::{Error, Result};
use crate::job::Secret;
use crate::thread::{self, ThreadHandle, ThreadRole};
use crate::time::Epoch;

/// Time after a failure before the other processes get SIGTERM, and before they get SIGKILL. Most end by themselves;
/// those that still wait for the failed one to join do not notice.
const FAILURE_TIMEOUTS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(5));
/// Time for processes to stop after SIGTERM.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);
/// Pause before the first restart, and the longest pause.
const RESTART_PAUSES: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));
/// Polling interval of the processes.
const PROCESS_POLL_INTERVAL: Duration = Duration::from_millis(10);

const EXAMPLES: &str = "Examples:
  tidegate up -n 3 -- account_totals --brokers localhost:9092 --state state/ --out kafka:totals
  tidegate up -n 2 --restarts 3 -- ./my_query -w 4 --state state/ --out totals.csv

The program gets -n, -p, --hostfile and --cluster-secret-file added to its arguments; the secret is a new one. The program
is looked up beside this tool first, then in PATH. Without --state nothing is restarted: results would be published twice.";

/// Runs all processes of a query on this machine, and restarts them when one fails.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
#[command(after_help = EXAMPLES)]
pub struct UpArgs {
    /// Number of processes
    #[arg(short = 'n', long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub processes: u16,

    /// Maximum number of restarts in a row without a new snapshot
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub restarts: u32,

    /// Program and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "QUERY ARGS")]
    pub command: Vec<OsString>,
}

/// Runs `tidegate up`; returns the exit code: 0 when the query is complete, else that of the first failure.
///
/// # Errors
/// Fails if the program cannot be started.
pub fn up(args: &UpArgs, is_query: impl Fn(&OsStr) -> bool) -> Result<u8> {
    let stop = StopSignal::listen()?;
    let Some((called, rest)) = args.command.split_first() else {
        return Err(Error::usage("there is no program to run").help("tidegate up -n 3 -- account_totals …"));
    };
    for flag in ["-n", "--processes", "-p", "--process", "--hostfile", "--cluster-secret-file"] {
        if value_of(rest, flag).is_some() || rest.iter().any(|given| given == flag) {
            return Err(Error::usage(format!("{flag} is for `tidegate up` to give")).help("leave it out after --"));
        }
    }
    let (program, state) = (find(called, is_query), value_of(rest, "--state").map(PathBuf::from));
    let (mut failed, mut pause, mut snapshot) = (0, RESTART_PAUSES.0, newest(state.as_deref()));
    let mut folder = PrivateDirectory::new()?;
    loop {
        let round = Round::start(&program, called, rest, usize::from(args.processes), &mut folder)?;
        let failure = match round.run(&stop)? {
            RoundOutcome::Ended(code) => return Ok(code),
            RoundOutcome::FailedProcess(failure) => failure,
        };
        if stop.exit_code_if_stopped().is_some() {
            return Ok(stop.exit_code_if_stopped().unwrap_or(failure.code()));
        }
        let known = newest(state.as_deref());
        if known > snapshot {
            (failed, pause, snapshot) = (0, RESTART_PAUSES.0, known);
        }
        failed += 1;
        let what = failure.describe();
        let end = |why: &str| {
            note(format_args!("up: {what}; {why}"));
            Ok(failure.code())
        };
        if failure.code() == 2 {
            return end("that is for you to mend, so nothing is started again");
        }
        if state.is_none() {
            return end("there is no --state, so nothing is started again");
        }
        if failed > args.restarts {
            return end(&format!("given up: {failed} starts in a row have failed without a new snapshot"));
        }
        note(format_args!(
            "up: {what}; all are started again in {} ms ({failed} of {})",
            pause.as_millis(),
            args.restarts
        ));
        let begun = Instant::now();
        while begun.elapsed() < pause {
            if let Some(code) = stop.exit_code_if_stopped() {
                return Ok(code);
            }
            std::thread::sleep(PROCESS_POLL_INTERVAL);
        }
        pause = (pause * 2).min(RESTART_PAUSES.1);
    }
}

/// Returns the path of a program: this tool itself for one of its queries; the program of that name beside this tool; else
/// the name as given, which is looked up in `PATH`.
fn find(program: &OsStr, is_query: impl Fn(&OsStr) -> bool) -> PathBuf {
    let named = Path::new(program);
    let (true, Ok(own)) = (named.components().count() == 1, std::env::current_exe()) else { return named.to_owned() };
    match own.parent().map(|folder| folder.join(named)) {
        _ if is_query(program) => own,
        Some(beside) if beside.is_file() => beside,
        _ => named.to_owned(),
    }
}

/// Returns the value of a flag among arguments, written as `--flag VALUE` or `--flag=VALUE`; `None` if it is not there.
fn value_of(arguments: &[OsString], flag: &str) -> Option<OsString> {
    for (at, argument) in arguments.iter().enumerate() {
        if argument == flag {
            return arguments.get(at + 1).cloned();
        }
        if let Some(value) = argument.to_str().and_then(|text| text.strip_prefix(flag)?.strip_prefix('=')) {
            return Some(value.into());
        }
    }
    None
}

/// Returns the epoch of the newest snapshot of a state; `None` if there is none.
fn newest(state: Option<&Path>) -> Option<Epoch> {
    let manifests = manifest::list(&*OsDisk::shared(), &state?.join("manifests")).ok()?;
    manifests.iter().map(|id| id.epoch).max()
}

/// The outcome of a round.
enum RoundOutcome {
    /// All processes have ended as they should; the exit code.
    Ended(u8),
    /// The process that failed first.
    FailedProcess(FailedProcess),
}

/// A process that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FailedProcess {
    process: usize,
    status: ExitStatus,
}

impl FailedProcess {
    fn code(&self) -> u8 {
        code_of(self.status)
    }

    fn describe(&self) -> String {
        match (self.status.code(), self.status.signal()) {
            (Some(code), _) => format!("process {} failed with exit code {code}", self.process),
            (None, Some(signal)) => format!("process {} was killed by signal {signal}", self.process),
            (None, None) => format!("process {} is gone", self.process),
        }
    }
}

/// Returns the exit code that a shell would report.
fn code_of(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
}

/// A directory that only this user can enter, with the files that processes are given; removed on drop.
struct PrivateDirectory {
    path: PathBuf,
    secret: PathBuf,
    /// Number of hostfiles written.
    rounds: u32,
}

impl PrivateDirectory {
    /// Creates the directory, with a new secret.
    fn new() -> Result<Self> {
        let name = format!("tidegate-up-{}-{}", std::process::id(), &Secret::random()?[..16]);
        let path = std::env::temp_dir().join(name);
        let cannot = |why| Error::new("cannot make a directory for the processes").at(path.display()).because(why);
        // Fails if the path exists, even as a link.
        DirBuilder::new().mode(0o700).create(&path).map_err(cannot)?;
        let mut folder = PrivateDirectory { secret: path.join("secret"), path, rounds: 0 };
        folder.secret = folder.write("secret", &format!("{}\n", Secret::random()?))?;
        Ok(folder)
    }

    /// Creates a new file that only this user can read.
    fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.path.join(name);
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        let written = file.and_then(|mut file| file.write_all(text.as_bytes()));
        written.map_err(|why| Error::new("cannot write a file for the processes").at(path.display()).because(why))?;
        Ok(path)
    }

    /// Creates a new hostfile with free ports.
    fn hosts(&mut self, processes: usize) -> Result<PathBuf> {
        self.rounds += 1;
        let ports = free_ports(processes).map_err(|why| Error::new("there are no free ports").because(why))?;
        let lines: String = ports.iter().map(|port| format!("127.0.0.1:{port}\n")).collect();
        self.write(&format!("hosts-{}", self.rounds), &lines)
    }
}

impl Drop for PrivateDirectory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// One start of all processes.
struct Round {
    members: Vec<Member>,
}

/// A process of a round.
struct Member {
    running: ChildProcess,
    /// The thread that forwards the process's standard error.
    relay: Option<ThreadHandle>,
}

impl Round {
    fn start(
        program: &Path,
        called: &OsStr,
        arguments: &[OsString],
        processes: usize,
        folder: &mut PrivateDirectory,
    ) -> Result<Self> {
        let hosts = folder.hosts(processes)?;
        let mut round = Round { members: Vec::new() };
        for process in 0..processes {
            let mut command = Command::new(program);
            // Programs depend on their name: this tool may be a query.
            command.arg0(called).args(arguments).stderr(Stdio::piped());
            command.args(["-n", &processes.to_string(), "-p", &process.to_string(), "--hostfile"]).arg(&hosts);
            command.arg("--cluster-secret-file").arg(&folder.secret);
            let failed = |why| Error::new("cannot start the query").at(program.display()).because(why);
            let mut running = ChildProcess::start(&mut command).map_err(failed)?;
            let said = running.child.stderr.take();
            let relay = said.map(|said| {
                let body = move || {
                    let lines = BufReader::new(said).split(b'\n');
                    lines.map_while(std::result::Result::ok).for_each(|line| {
                        thread::mark_iteration();
                        note(format_args!("[{process}] {}", String::from_utf8_lossy(&line)));
                    });
                };
                thread::start(ThreadRole::Relay, &format!("relay {process}"), body)
            });
            round.members.push(Member { running, relay: relay.transpose()? });
        }
        Ok(round)
    }

    /// Waits for all processes to end; returns the outcome. Asks them to stop on a request to stop and after a failure.
    fn run(mut self, stop: &StopSignal) -> Result<RoundOutcome> {
        let mut asked: Option<Instant> = None;
        let mut failed: Option<(FailedProcess, Instant)> = None;
        let cannot = |why| Error::new("cannot watch a process").because(why);
        let mut code = 0;
        loop {
            let mut running = 0;
            for (process, member) in self.members.iter_mut().enumerate() {
                let Some(status) = member.running.ended().map_err(cannot)? else {
                    running += 1;
                    continue;
                };
                code = code.max(code_of(status));
                if is_failure(status) && failed.is_none() {
                    failed = Some((FailedProcess { process, status }, Instant::now()));
                }
            }
            if running == 0 {
                break;
            }
            let failed_for = failed.map_or(Duration::ZERO, |(_, since)| since.elapsed());
            if asked.is_none() && (stop.exit_code_if_stopped().is_some() || failed_for > FAILURE_TIMEOUTS.0) {
                asked = Some(Instant::now());
                self.signal(Signal::SIGTERM);
            }
            if failed_for > FAILURE_TIMEOUTS.1 || asked.is_some_and(|since| since.elapsed() > STOP_TIMEOUT) {
                self.signal(Signal::SIGKILL);
            }
            std::thread::sleep(PROCESS_POLL_INTERVAL);
        }
        for member in &mut self.members {
            if let Some(relay) = member.relay.take() {
                relay.join();
            }
        }
        Ok(match failed {
            Some((failed, _)) => RoundOutcome::FailedProcess(failed),
            None => RoundOutcome::Ended(code),
        })
    }

    fn signal(&self, signal: Signal) {
        self.members.iter().for_each(|member| member.running.signal(signal));
    }
}

/// Returns `true` if a process has neither completed nor stopped cleanly after a signal.
fn is_failure(status: ExitStatus) -> bool {
    !matches!(status.code(), Some(0 | 130 | 143))
}

impl Drop for Round {
    fn drop(&mut self) {
        for member in &mut self.members {
            member.running.kill();
        }
    }
}

/// Returns ports of this machine that are free now.
fn free_ports(count: usize) -> io::Result<Vec<u16>> {
    let listeners: Vec<_> = (0..count).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<io::Result<_>>()?;
    listeners.iter().map(|listener| Ok(listener.local_addr()?.port())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flag_is_found_however_it_is_written() {
        let arguments = |line: &str| line.split(' ').map(OsString::from).collect::<Vec<_>>();
        assert_eq!(value_of(&arguments("-w 2 --state s --out o"), "--state"), Some("s".into()));
        assert_eq!(value_of(&arguments("-w 2 --state=s/t --out o"), "--state"), Some("s/t".into()));
        assert_eq!(value_of(&arguments("-w 2 --stateful --out o"), "--state"), None);
    }

    #[test]
    fn the_exit_code_is_that_of_a_shell() {
        assert_eq!(code_of(ExitStatus::from_raw(9)), 137);
        assert_eq!(code_of(ExitStatus::from_raw(2 << 8)), 2);
        assert!(is_failure(ExitStatus::from_raw(9)) && is_failure(ExitStatus::from_raw(1 << 8)));
        assert!(!is_failure(ExitStatus::from_raw(143 << 8)) && !is_failure(ExitStatus::from_raw(0)));
    }
}
