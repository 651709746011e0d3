//! The demo as a process: it ends by itself with equal results, and leaves no program behind, however it ends.
#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

#[path = "common/children.rs"]
mod children;
#[path = "common/ports.rs"]
mod ports;

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use children::naming;
use nix::pty::{OpenptyResult, openpty};
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::tcgetattr;
use nix::unistd::Pid;
use tidegate::source::generator::Transaction;

/// Time limit of everything here.
const PATIENCE: Duration = Duration::from_secs(60);

fn demo(folder: &Path, seconds: &str) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    command.args(["demo", "--seconds", seconds, "--rate", "500", "--accounts", "20", "--dir"]).arg(folder);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn await_that(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn end(mut demo: Child) -> (ExitStatus, String, String) {
    await_that("the end of the demo", || demo.try_wait().unwrap().is_some());
    let Output { status, stdout, stderr } = demo.wait_with_output().unwrap();
    (status, String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

fn programs(folder: &Path) -> Vec<String> {
    naming(folder).into_iter().map(|(_, line)| line).collect()
}

fn query(folder: &Path) -> Option<Pid> {
    naming(folder).into_iter().find(|(_, line)| line.starts_with("account_totals")).map(|(id, _)| id)
}

/// Sends a signal to a demo that is at work, and only to it.
fn interrupt(folder: &Path, signal: Signal) -> Child {
    let demo = demo(folder, "60");
    await_that("three programs", || programs(folder).len() == 3 && rows(&folder.join("transactions.csv")) > 100);
    kill(Pid::from_raw(demo.id() as i32), signal).unwrap();
    demo
}

fn rows(path: &Path) -> usize {
    std::fs::read(path).unwrap_or_default().split(|byte| *byte == b'\n').count().saturating_sub(2)
}

#[test]
fn it_ends_by_itself_and_every_transaction_is_copied_and_counted_once() {
    let folder = tempfile::tempdir().unwrap();
    let leftover = folder.path().join("account_totals.csv");
    std::fs::write(&leftover, "of an earlier demo\n").unwrap();
    let (status, said, errors) = end(demo(folder.path(), "3"));
    assert!(status.success(), "{said}{errors}");
    assert!(said.contains("1,504 transactions produced") && said.contains("equal to totals recomputed"), "{said}");
    let copy: csv::Result<Vec<Transaction>> =
        csv::Reader::from_path(folder.path().join("transactions.csv")).unwrap().deserialize().collect();
    let mut ids: Vec<u64> = copy.unwrap().iter().map(|row| row.id).collect();
    ids.sort_unstable();
    assert!(ids.into_iter().eq(0..1504));
    let mut totals = csv::Reader::from_path(leftover).unwrap();
    let counted: u64 = totals.records().map(|row| row.unwrap()[3].parse::<u64>().unwrap()).sum();
    assert_eq!(counted, 1500, "all but the closing ones");
    let picture = std::fs::read_to_string(folder.path().join("account_totals.svg")).unwrap();
    assert!(picture.starts_with("<svg ") && picture.contains("<polyline "), "{picture}");
    // There is no terminal, so nothing is asked.
    assert!(said.contains("Watch the query at http://127.0.0.1:") && !said.contains("press"), "{said}");
    assert_eq!(programs(folder.path()), [""; 0]);
}

/// After a signal it stops its programs before it ends, with the exit code that a shell would report.
#[test]
fn a_signal_stops_it_and_its_programs_cleanly() {
    for (signal, code) in [(Signal::SIGINT, 130), (Signal::SIGTERM, 143)] {
        let folder = tempfile::tempdir().unwrap();
        let (status, said, errors) = end(interrupt(folder.path(), signal));
        assert_eq!(status.code(), Some(code), "{said}{errors}");
        assert!(errors.contains("not complete") && !errors.contains("error"), "{errors}");
        assert_eq!(programs(folder.path()), [""; 0]);
    }
}

/// Its programs notice that it is gone, although it was killed.
#[test]
fn killed_it_leaves_no_program_behind() {
    let folder = tempfile::tempdir().unwrap();
    let (status, ..) = end(interrupt(folder.path(), Signal::SIGKILL));
    assert_eq!(status.code(), None);
    await_that("the end of the programs", || programs(folder.path()).is_empty());
}

/// On a terminal, a key opens the page of the query; the terminal is left as it was.
#[test]
fn a_key_opens_the_page_on_a_terminal() {
    let folder = tempfile::tempdir().unwrap();
    let (opener, opened) = (folder.path().join("xdg-open"), folder.path().join("opened"));
    std::fs::write(&opener, format!("#!/bin/sh\necho \"$1\" > {}.new\nmv {0}.new {0}\n", opened.display())).unwrap();
    std::fs::set_permissions(&opener, std::fs::Permissions::from_mode(0o755)).unwrap();
    let OpenptyResult { master, slave } = openpty(None, None).unwrap();
    let before = tcgetattr(&slave).unwrap().local_flags;
    let end = || Stdio::from(slave.try_clone().unwrap());
    let path = format!("{}:{}", folder.path().display(), std::env::var("PATH").unwrap());
    // A session of its own, whose terminal this is.
    let mut command = Command::new("setsid");
    command.args([
        "--ctty",
        "--wait",
        env!("CARGO_BIN_EXE_tidegate"),
        "demo",
        "--seconds",
        "60",
        "--rate",
        "500",
        "--dir",
    ]);
    command.arg(folder.path().join("demo")).env("PATH", path).stdin(end()).stdout(end()).stderr(end());
    let mut demo = command.spawn().unwrap();
    let mut keys = File::from(master);
    let (mut said, written) = (keys.try_clone().unwrap(), Arc::<Mutex<String>>::default());
    let into = Arc::clone(&written);
    std::thread::spawn(move || {
        let mut piece = [0; 4096];
        while let Ok(read @ 1..) = said.read(&mut piece) {
            into.lock().unwrap().push_str(&String::from_utf8_lossy(&piece[..read]));
        }
    });
    await_that("the offer", || written.lock().unwrap().contains("press o to open it"));
    keys.write_all(b"xo").unwrap();
    await_that("the page", || opened.exists());
    let address = std::fs::read_to_string(opened).unwrap();
    assert!(written.lock().unwrap().contains(&format!("Watch the query at {}", address.trim())), "{address}");
    keys.write_all(b"\x03").unwrap(); // Ctrl-C
    await_that("the end of the demo", || demo.try_wait().unwrap().is_some());
    assert_eq!(demo.wait().unwrap().code(), Some(130), "{}", written.lock().unwrap());
    assert_eq!(tcgetattr(&slave).unwrap().local_flags, before);
}

/// A program that ends by itself is a failure, reported with the end of its output.
#[test]
fn a_program_that_dies_fails_the_demo() {
    let folder = tempfile::tempdir().unwrap();
    let demo = interrupt(folder.path(), Signal::SIGCONT);
    let query = query(folder.path()).unwrap();
    kill(query, Signal::SIGKILL).unwrap();
    let (status, _, errors) = end(demo);
    assert_eq!(status.code(), Some(1), "{errors}");
    assert!(errors.contains("error: account_totals ended before its time"), "{errors}");
    assert!(errors.contains("account_totals: account-totals: nothing is kept between runs"), "{errors}");
    assert_eq!(programs(folder.path()), [""; 0]);
}

#[test]
fn two_demos_do_not_share_a_directory() {
    let folder = tempfile::tempdir().unwrap();
    let first = interrupt(folder.path(), Signal::SIGCONT);
    let (status, _, errors) = end(demo(folder.path(), "1"));
    assert!(status.code() == Some(1) && errors.starts_with("error: another demo is at work"), "{errors}");
    kill(Pid::from_raw(first.id() as i32), Signal::SIGINT).unwrap();
    assert_eq!(end(first).0.code(), Some(130));
}

/// `cargo run` builds only the tool, so the tool must be able to run the query.
#[test]
fn the_tool_is_its_queries() {
    let queries = [
        "account_totals",
        "account_sessions",
        "balances",
        "category_revenue",
        "fraud_ring",
        "late_report",
        "payments_matched",
    ];
    for query in queries.into_iter().chain(["silent_accounts", "spend_by_minute", "top_spenders", "velocity_alerts"]) {
        let tool = || Command::new(env!("CARGO_BIN_EXE_tidegate"));
        let by_name = tool().arg0(query).arg("--help").output().unwrap();
        let as_subcommand = tool().args([query, "--help"]).output().unwrap();
        let help = String::from_utf8(by_name.stdout.clone()).unwrap();
        assert!(by_name.status.success() && help.contains(&format!("Usage: {query} ")), "{help}");
        assert!(help.contains(&format!("\n  tidegate {query} --")), "{help}");
        assert_eq!(as_subcommand.stdout, by_name.stdout);
        let listed = String::from_utf8(tool().arg("--help").output().unwrap().stdout).unwrap();
        assert!(listed.contains(&format!("\n  {query} ")), "{listed}");
    }
}

#[test]
fn what_cannot_work_is_refused_in_a_line() {
    for (arguments, code, line) in [
        (&["demo", "--rate", "900000"][..], 2, "error: the broker in memory does not hold 18,000,000 transactions"),
        (&["demo", "--brokers", "127.0.0.1:1"], 1, "error: no Kafka broker is reachable (127.0.0.1:1)"),
        (&["demo", "--secs", "1"], 2, "error: unexpected argument '--secs'"),
        (&["dance"], 2, "error: unrecognized subcommand 'dance'"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
        let Output { status, stderr, .. } = command.args(arguments).current_dir(folder.path()).output().unwrap();
        let errors = String::from_utf8(stderr).unwrap();
        assert!(status.code() == Some(code) && errors.starts_with(line), "{arguments:?}: {errors}");
    }
}
