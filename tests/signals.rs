//! Signals and pipes: programs end cleanly when they are asked to, and cope with readers of their output that go away.
//!
//! Service managers, wrappers and terminals differ in how they end a program: they signal a whole group, so that a
//! request arrives twice; they hang up; they close pipes; and they do not wait long for a program that has not begun.
//! The exit codes 130 and 143 are a promise: everything that was read is in the last snapshot.
#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

#[path = "common/children.rs"]
mod children;
#[path = "common/ports.rs"]
mod ports;
#[path = "common/run.rs"]
mod run;
#[path = "common/transactions.rs"]
mod transactions;

use std::fs;
use std::io::{PipeReader, Read, pipe};
use std::net::TcpListener;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use nix::pty::openpty;
use nix::sys::signal::{Signal, kill};
use run::{ProgramOutput, Running, check_contains, has_strace, run, start_with};
use tempfile::TempDir;
use tidegate::source::kafka::EmbeddedBroker;
use transactions::{COLUMNS, csv_of, wild};

const ACCOUNT_TOTALS: &str = "account_totals";
const BALANCES: &str = "balances";
const TIDEGATE: &str = env!("CARGO_BIN_EXE_tidegate");

/// Time limit for a program to end that has nothing to finish. It takes half a second if the machine has nothing else
/// to do.
const AT_ONCE: Duration = Duration::from_secs(6);

/// Held by each test while it runs: a job of a thousand threads leaves little of the machine to other programs, which are to
/// end soon.
static MACHINE: RwLock<()> = RwLock::new(());

/// Waits for tests that need the machine for themselves.
fn beside_others() -> RwLockReadGuard<'static, ()> {
    MACHINE.read().unwrap_or_else(PoisonError::into_inner)
}

/// Waits for all other tests.
fn alone() -> RwLockWriteGuard<'static, ()> {
    MACHINE.write().unwrap_or_else(PoisonError::into_inner)
}

/// A folder with an input.
struct SignalCase(TempDir);

impl SignalCase {
    fn new() -> SignalCase {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("in.csv"), csv_of(&wild(7, 20_000), &COLUMNS)).unwrap();
        SignalCase(folder)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn words(&self, line: &str) -> Vec<String> {
        line.split_whitespace().map(|word| word.replace("{}", self.0.path().to_str().unwrap())).collect()
    }

    /// Starts a program with these arguments, in which `{}` stands for the folder.
    fn start(&self, program: &str, line: &str) -> Running {
        self.start_with(program, line, |_| {})
    }

    fn start_with(&self, program: &str, line: &str, adjust: impl FnOnce(&mut Command)) -> Running {
        start_with(program, self.words(line), |command| {
            command.current_dir(self.0.path());
            adjust(command);
        })
    }

    /// Waits until there are results.
    fn until_results(&self, running: &mut Running) {
        running.wait_until("results", |_| (fs::metadata(self.path("out.csv")).ok()?.len() > 1_000).then_some(()));
    }

    /// Fails unless the next start has nothing to replay.
    fn has_last_snapshot(&self) {
        let verified = run(TIDEGATE, self.words("snapshot verify {}/state"));
        check_contains(verified.code(0).stdout(), &["and runs 0 epochs again"]);
    }
}

/// Sends a signal many times, within the time in which they count as one request.
fn insist(running: &Running, signal: Signal) {
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(300) {
        running.signal(signal);
        std::thread::sleep(Duration::from_millis(3));
    }
}

#[test]
fn a_signal_that_comes_twice_is_one_request_and_the_last_snapshot_is_made() {
    let _machine = beside_others();
    for (signal, code) in [(Signal::SIGTERM, 143), (Signal::SIGINT, 130)] {
        let place = SignalCase::new();
        let line = "--csv {}/in.csv --out {}/out.csv --state {}/state --epoch 5ms --snapshot-every 1h -w 2";
        let mut running = place.start(ACCOUNT_TOTALS, line);
        place.until_results(&mut running);
        insist(&running, signal);
        assert_ne!(running.end().code(code).figures("transactions: ")[0], 0);
        place.has_last_snapshot();
    }
}

/// SIGTERM comes at each call by which the program changes what a signal does: before, it kills the program, and from then
/// on it stops it. There is nothing in between.
#[test]
fn a_request_that_comes_while_a_program_begins_to_listen_is_no_less_heard() {
    if !has_strace() {
        return;
    }
    let _machine = beside_others();
    let place = SignalCase::new();
    let traced = |asked: &str, more: &str| {
        format!(
            "-f -qq -e trace=rt_sigaction {asked} -o {{}}/trace {TIDEGATE} account_totals --csv {{}}/in.csv --out {{}}/out.csv {more}"
        )
    };
    place.start("strace", &traced("", "--until-end")).end().code(0);
    let calls = fs::read_to_string(place.path("trace")).unwrap().lines().count();
    let mut stopped = 0;
    for call in 1..=calls {
        fs::remove_file(place.path("out.csv")).ok();
        // The file is followed: nothing else ends the program.
        let line = traced(&format!("-e inject=rt_sigaction:signal=SIGTERM:when={call}"), "");
        let ended = place.start("strace", &line).end_or_killed();
        let is_killed = ended.status.signal() == Some(Signal::SIGTERM as i32);
        assert!(is_killed || ended.status.code() == Some(143), "call {call}: {:?}:\n{}", ended.status, ended.stderr);
        assert!(!is_killed || stopped == 0, "call {call} kills a program that the one before stopped");
        stopped += usize::from(!is_killed);
    }
    assert!(stopped > 2, "only {stopped} calls came while it listened");
}

#[test]
fn a_group_that_is_signalled_as_a_whole_stops_cleanly() {
    let _machine = beside_others();
    let place = SignalCase::new();
    let query = "account_totals --csv {}/in.csv --out {}/out.csv --state {}/state --epoch 5ms --snapshot-every 1h";
    let mut running = place.start(TIDEGATE, &format!("up -n 2 -- {query}"));
    place.until_results(&mut running);
    for (process, _) in children::children(place.0.path()) {
        kill(process, Signal::SIGTERM).unwrap();
    }
    running.signal(Signal::SIGTERM);
    running.end().code(143);
    place.has_last_snapshot();
}

#[test]
fn a_later_repeat_ends_a_stop_that_takes_too_long_and_is_no_clean_one() {
    let _machine = beside_others();
    let place = SignalCase::new();
    let (reader, writer) = pipe().unwrap();
    // Nobody reads the results, so they are never published completely.
    let line = "--csv {}/in.csv --out - --epoch 5ms --progress-every 50ms";
    let mut running = place.start_with(ACCOUNT_TOTALS, line, |command| {
        command.stdout(writer);
    });
    running.wait_until("results", |running| running.stderr().contains(" records, ").then_some(()));
    running.wait_for_handler(Signal::SIGTERM).signal(Signal::SIGTERM);
    std::thread::sleep(Duration::from_millis(1_500));
    assert!(running.is_alive(), "nothing was left to be shown: {}", running.stderr());
    running.signal(Signal::SIGTERM);
    let ended = running.end_within(AT_ONCE);
    check_contains(ended.error(1), &["ended at once by a second signal"]);
    drop(reader);
}

#[test]
fn whoever_hangs_up_asks_for_a_clean_stop_unless_that_is_ignored() {
    let _machine = beside_others();
    let place = SignalCase::new();
    let line = "--csv {}/in.csv --out {}/out.csv --state {}/state --epoch 5ms --snapshot-every 1h";
    // The tests themselves may have been started by `nohup`.
    let line = format!("--default-signal=HUP {TIDEGATE} {ACCOUNT_TOTALS} {line}");
    let mut running = place.start("/usr/bin/env", &line);
    place.until_results(&mut running);
    running.signal(Signal::SIGHUP);
    running.end().code(143);
    place.has_last_snapshot();
    // SIGHUP is ignored, as by `nohup`.
    let place = SignalCase::new();
    let shell = format!("trap '' HUP; exec {TIDEGATE} {ACCOUNT_TOTALS} --csv in.csv --out out.csv --epoch 5ms");
    let mut running = start_with("sh", ["-c", &shell], |command| {
        command.current_dir(place.0.path());
    });
    place.until_results(&mut running);
    running.signal(Signal::SIGHUP);
    std::thread::sleep(Duration::from_millis(300));
    assert!(running.is_alive());
    running.signal(Signal::SIGTERM);
    running.end().code(143);
}

/// Returns the writing end of a pipe whose reader has gone away.
fn unread() -> Stdio {
    let (reader, writer): (PipeReader, _) = pipe().unwrap();
    drop(reader);
    writer.into()
}

#[test]
fn a_reader_of_standard_error_that_goes_away_changes_nothing() {
    let _machine = beside_others();
    for more in ["--progress-every 10ms", "--progress off", "--progress-every 10ms --state {}/state"] {
        let place = SignalCase::new();
        let line = format!("--csv {{}}/in.csv --out {{}}/out.csv --epoch 5ms --tell-when-quiet 50ms {more}");
        let mut running = place.start_with(ACCOUNT_TOTALS, &line, |command| {
            command.stderr(unread());
        });
        place.until_results(&mut running);
        std::thread::sleep(Duration::from_millis(200));
        running.signal(Signal::SIGTERM);
        running.end().code(143);
    }
    let ends = |program: &str, line: &str, code: i32| {
        let place = SignalCase::new();
        place
            .start_with(program, line, |command| {
                command.stderr(unread());
            })
            .end()
            .code(code);
    };
    ends(ACCOUNT_TOTALS, "--csv {}/in.csv --out {}/out.csv --until-end --progress-every 10ms", 0);
    ends(ACCOUNT_TOTALS, "--csv {}/missing.csv --out {}/out.csv --until-end", 1);
    ends(ACCOUNT_TOTALS, "--csv {}/in.csv --out {}/out.nothing", 2);
    ends(BALANCES, "--csv {}/in.csv --out {}/out.csv --until-end", 0);
    ends(TIDEGATE, "snapshot verify {}/missing", 1);
    ends(TIDEGATE, "up -n 2 -- account_totals --csv {}/in.csv --out {}/out.csv --until-end", 0);
}

#[test]
fn a_reader_of_results_that_goes_away_fails_the_job_with_one_line() {
    let _machine = beside_others();
    let place = SignalCase::new();
    let line = "--csv {}/in.csv --out - --until-end --epoch 5ms";
    let running = place.start_with(ACCOUNT_TOTALS, line, |command| {
        command.stdout(unread());
    });
    check_contains(
        running.end().error(1),
        &["cannot print the results (stdout): whoever was reading them has stopped"],
    );
}

/// Fails unless a program that has not begun ends soon after a signal, as a stopped one.
#[track_caller]
fn ends_at_once(mut running: Running, wait: Duration) -> ProgramOutput {
    running.wait_for_handler(Signal::SIGTERM);
    std::thread::sleep(wait);
    assert!(running.is_alive(), "it has ended by itself: {}", running.stderr());
    running.signal(Signal::SIGTERM);
    let ended = running.end_within(AT_ONCE);
    ended.code(143);
    ended
}

#[test]
fn results_that_nobody_opens_keep_nobody_from_stopping() {
    let _machine = beside_others();
    for state in ["", "--state {}/state"] {
        for wait in [0, 400] {
            let place = SignalCase::new();
            assert!(Command::new("mkfifo").arg(place.path("out.csv")).status().unwrap().success());
            let line = format!("--csv {{}}/in.csv --out {{}}/out.csv {state}");
            ends_at_once(place.start(ACCOUNT_TOTALS, &line), Duration::from_millis(wait));
        }
    }
}

#[test]
fn a_broker_that_does_not_answer_keeps_nobody_from_stopping() {
    let _machine = beside_others();
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let brokers = silent.local_addr().unwrap();
    let place = SignalCase::new();
    let totals = format!("--brokers {brokers} --out {{}}/out.csv");
    for line in [&totals, &format!("{totals} --state {{}}/state"), &format!("{totals} --until-end -w 2")] {
        ends_at_once(place.start(ACCOUNT_TOTALS, line), Duration::from_millis(200));
    }
    for command in ["consume --out {}/copy.csv", "produce --generate 10", "demo --dir {}/demo"] {
        let line = format!("{command} --brokers {brokers}");
        ends_at_once(place.start(TIDEGATE, &line), Duration::from_millis(200));
    }
    let to_topic = format!("--csv {{}}/in.csv --brokers {brokers} --out kafka:totals");
    ends_at_once(place.start(ACCOUNT_TOTALS, &to_topic), Duration::from_millis(200));
}

#[test]
fn a_job_of_a_thousand_workers_or_partitions_stops_at_once() {
    let _machine = alone();
    for wait in [0, 700] {
        let place = SignalCase::new();
        let line = "--csv {}/in.csv --out {}/out.csv -w 1000";
        ends_at_once(place.start(ACCOUNT_TOTALS, line), Duration::from_millis(wait));
    }
    let broker = EmbeddedBroker::start().unwrap();
    broker.create_topic("transaction", 5_000).unwrap();
    for (wait, state) in [(0, ""), (700, ""), (700, "--state {}/state")] {
        let place = SignalCase::new();
        let line = format!("--brokers {} --out {{}}/out.csv {state}", broker.servers());
        ends_at_once(place.start(ACCOUNT_TOTALS, &line), Duration::from_millis(wait));
    }
}

#[test]
fn lines_of_the_log_have_colours_only_where_they_are_wanted() {
    let _machine = beside_others();
    let said = |variable: &str, value: &str| {
        let terminal = openpty(None, None).unwrap();
        let place = SignalCase::new();
        let line = "--csv {}/in.csv --out {}/out.csv --until-end";
        let running = place.start_with(ACCOUNT_TOTALS, line, |command| {
            command
                .stderr(terminal.slave)
                .env_remove("NO_COLOR")
                .env("TERM", "xterm")
                .env("TIDEGATE_LOG", "tidegate=loud");
            command.env(variable, value);
        });
        let mut said = Vec::new();
        let mut master = fs::File::from(terminal.master);
        let mut bytes = [0; 4096];
        // Reading fails when the program has ended, because the terminal has no other end any more.
        while let Ok(read @ 1..) = master.read(&mut bytes) {
            said.extend_from_slice(&bytes[..read]);
        }
        running.end().code(0);
        String::from_utf8_lossy(&said).into_owned()
    };
    let first = |said: String| said.lines().find(|line| line.contains("is not understood")).unwrap().to_owned();
    assert!(first(said("TERM", "xterm")).contains('\u{1b}'));
    assert!(first(said("NO_COLOR", "")).contains('\u{1b}'));
    assert!(!first(said("NO_COLOR", "1")).contains('\u{1b}'));
    // There is no live line either, which such a terminal cannot erase.
    let dumb = said("TERM", "dumb");
    assert!(!dumb.contains('\u{1b}') && dumb.contains("transactions: "), "{dumb}");
}
