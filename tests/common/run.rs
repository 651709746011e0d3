//! Runs programs as users do: arguments in; exit code, standard output and standard error out.
//!
//! No program outlives its test, nor a time limit: a program that hangs is killed, and the test fails with its output.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of it")]
#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

use std::ffi::OsStr;
use std::io::Read;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Default time limit of a program.
pub const LIMIT: Duration = Duration::from_secs(90);

/// Exit status and output of a program.
#[derive(Debug)]
pub struct ProgramOutput {
    pub status: ExitStatus,
    pub stdout: Vec<u8>,
    pub stderr: String,
}

impl ProgramOutput {
    /// Returns `true` if it was killed by SIGKILL.
    pub fn was_killed(&self) -> bool {
        self.status.signal() == Some(Signal::SIGKILL as i32)
    }

    /// Fails unless the program ended with this exit code and did not panic.
    #[track_caller]
    pub fn code(&self, code: i32) -> &Self {
        assert_eq!(self.status.code(), Some(code), "{:?}; standard error:\n{}", self.status, self.stderr);
        assert!(!self.stderr.contains("panicked"), "it panicked:\n{}", self.stderr);
        assert!(!self.stderr.contains("RUST_BACKTRACE"), "it panicked:\n{}", self.stderr);
        self
    }

    /// Returns the line of the error, after `error: `. It must be the only one, and contain no values in the format of
    /// `Debug`.
    #[track_caller]
    pub fn error(&self, code: i32) -> &str {
        self.code(code);
        let lines: Vec<&str> = self.stderr.lines().filter(|line| line.contains("error:")).collect();
        let [line] = lines[..] else { panic!("not one line with `error:`:\n{}", self.stderr) };
        let said = line.strip_prefix("error: ").unwrap_or_else(|| panic!("it does not begin with `error: `: {line}"));
        for form in ["Some(", "None", "Ok(", "Err(", "Os {", "Error {", "kind:", "Error(", "KafkaError", "\\\"", "::"] {
            assert!(!said.contains(form), "`{form}` is not for people: {line}");
        }
        said
    }

    /// Returns the numbers in the first line of standard error with this beginning.
    #[track_caller]
    pub fn figures(&self, beginning: &str) -> Vec<u64> {
        let line = self.stderr.lines().find(|line| line.starts_with(beginning));
        let line = line.unwrap_or_else(|| panic!("no line begins with `{beginning}`:\n{}", self.stderr));
        let words = line[beginning.len()..].split(|c: char| !c.is_ascii_digit());
        words.filter(|word| !word.is_empty()).map(|word| word.parse().unwrap()).collect()
    }

    pub fn stdout(&self) -> &str {
        std::str::from_utf8(&self.stdout).unwrap()
    }
}

/// A running program.
pub struct Running {
    child: Child,
    name: String,
    stdout: Option<Pipe>,
    stderr: Option<Pipe>,
}

/// Path of the tool.
pub const TIDEGATE: &str = env!("CARGO_BIN_EXE_tidegate");

/// The command of a program: of the tool under the name of one of its queries, or of the program at a path.
pub fn command(program: impl AsRef<Path>) -> Command {
    let program = program.as_ref();
    if program.components().count() > 1 || ["sh", "strace"].iter().any(|name| program == Path::new(name)) {
        return Command::new(program);
    }
    let mut command = Command::new(TIDEGATE);
    command.arg0(program);
    command
}

/// Returns `true` if `strace`, which traces system calls, is installed.
pub fn has_strace() -> bool {
    let has = Command::new("strace").args(["-o", "/dev/null", "true"]).output();
    if has.is_ok_and(|ended| ended.status.success()) {
        return true;
    }
    assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "there is no strace that works");
    eprintln!("SKIPPED: there is no strace that works");
    false
}

/// Starts a program with arguments; `adjust` may change the command before.
pub fn start_with<A: AsRef<OsStr>>(
    program: impl AsRef<Path>,
    arguments: impl IntoIterator<Item = A>,
    adjust: impl FnOnce(&mut Command),
) -> Running {
    let mut command = command(program);
    command.args(arguments).env_remove("RUST_BACKTRACE").stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    adjust(&mut command);
    let mut child = command.spawn().unwrap();
    let stdout = child.stdout.take().map(Pipe::drain);
    let stderr = child.stderr.take().map(Pipe::drain);
    Running { child, name: format!("{command:?}"), stdout, stderr }
}

/// Starts a program with arguments.
pub fn start<A: AsRef<OsStr>>(program: impl AsRef<Path>, arguments: impl IntoIterator<Item = A>) -> Running {
    start_with(program, arguments, |_| {})
}

/// Runs a program to its end.
#[track_caller]
pub fn run<A: AsRef<OsStr>>(program: impl AsRef<Path>, arguments: impl IntoIterator<Item = A>) -> ProgramOutput {
    start(program, arguments).end()
}

impl Running {
    /// Waits until the program ends by itself.
    #[track_caller]
    pub fn end(self) -> ProgramOutput {
        self.end_within(LIMIT)
    }

    /// Waits until the program ends by itself, within a limit.
    #[track_caller]
    pub fn end_within(self, limit: Duration) -> ProgramOutput {
        let name = self.name.clone();
        let ended = self.wait_within(limit);
        assert!(ended.status.signal().is_none(), "{name} ended by {}:\n{}", ended.status, ended.stderr);
        ended
    }

    /// Waits until the program ends, by itself or by a kill.
    #[track_caller]
    pub fn end_or_killed(self) -> ProgramOutput {
        self.wait_within(LIMIT)
    }

    #[track_caller]
    fn wait_within(mut self, limit: Duration) -> ProgramOutput {
        let begun = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            if begun.elapsed() > limit {
                panic!("it did not end within {limit:?}: {}\n{}", self.name, self.stderr());
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        let stdout = self.stdout.take().map(Pipe::all).unwrap_or_default();
        let stderr = self.stderr.take().map(Pipe::all).unwrap_or_default();
        ProgramOutput { status, stdout, stderr: String::from_utf8_lossy(&stderr).into_owned() }
    }

    /// Waits until `holds` returns a value; fails if the program ends before.
    #[track_caller]
    pub fn wait_until<T>(&mut self, what: &str, mut holds: impl FnMut(&Self) -> Option<T>) -> T {
        let begun = Instant::now();
        loop {
            if let Some(found) = holds(self) {
                return found;
            }
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("it ended ({status}) before {what}: {}\n{}", self.name, self.stderr());
            }
            assert!(begun.elapsed() < LIMIT, "no {what} within {LIMIT:?}: {}\n{}", self.name, self.stderr());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Returns the process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Returns the peak memory of the process so far, in bytes; 0 when it has ended.
    pub fn peak_memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        line.map_or(0, |line| line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10)
    }

    /// Sends a signal to the process.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).unwrap();
    }

    /// Waits until the process handles a signal, which would kill it before.
    #[track_caller]
    pub fn wait_for_handler(&mut self, signal: Signal) -> &mut Self {
        let status = format!("/proc/{}/status", self.child.id());
        self.wait_until("handler of a signal", |_| {
            let status = std::fs::read_to_string(&status).ok()?;
            let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:"))?;
            (u64::from_str_radix(mask.trim(), 16).unwrap() >> (signal as i32 - 1) & 1 == 1).then_some(())
        });
        self
    }

    /// Returns `true` while the process runs.
    pub fn is_alive(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Kills the process, unless it has ended.
    pub fn kill(&mut self) {
        let _ended = self.child.kill();
    }

    /// Kills the process after a while, unless it has ended before; returns how it ended.
    #[track_caller]
    pub fn killed_after(mut self, moment: Duration) -> ProgramOutput {
        let begun = Instant::now();
        while begun.elapsed() < moment && self.is_alive() {
            std::thread::sleep(Duration::from_millis(3));
        }
        self.kill();
        self.end_or_killed()
    }

    /// Returns standard error so far.
    pub fn stderr(&self) -> String {
        let said = self.stderr.as_ref().map(|pipe| pipe.read.lock().unwrap().clone()).unwrap_or_default();
        String::from_utf8_lossy(&said).into_owned()
    }
}

/// Kills the process, if a failed test leaves it running.
impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Drains an output of a program, so that the program never blocks on it.
struct Pipe {
    read: Arc<Mutex<Vec<u8>>>,
    reader: JoinHandle<()>,
}

impl Pipe {
    fn drain(mut pipe: impl Read + Send + 'static) -> Pipe {
        let read = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&read);
        let reader = std::thread::spawn(move || {
            let mut bytes = [0; 1 << 16];
            while let Ok(count @ 1..) = pipe.read(&mut bytes) {
                kept.lock().unwrap().extend_from_slice(&bytes[..count]);
            }
        });
        Pipe { read, reader }
    }

    fn all(self) -> Vec<u8> {
        self.reader.join().unwrap();
        std::mem::take(&mut self.read.lock().unwrap())
    }
}

/// Fails unless all these texts are in an error line; the failure shows both.
#[track_caller]
pub fn check_contains(error: &str, parts: &[&str]) {
    for part in parts {
        assert!(error.contains(part), "`{part}` is not in: {error}");
    }
}
