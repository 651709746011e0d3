//! `tidegate top` shows a running job: one frame as text, and a terminal that survives the job's end and return.
#![cfg(feature = "http")]
#![expect(clippy::unwrap_used, reason = "a panic fails the test")]

#[path = "common/ports.rs"]
mod ports;
#[path = "common/run.rs"]
mod run;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::pty::{OpenptyResult, Winsize, openpty};
use ports::{free_address, free_ports};
use run::{Running, start};
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(90);
const TIDEGATE: &str = env!("CARGO_BIN_EXE_tidegate");
/// A file of transactions: two accounts in a window, a record in a later one, a late one, and one that is no record.
const ROWS: &str = "id,account,merchant,amount_cents,currency,at_ms\n1,a,m,5,EUR,1000\n2,b,m,5,EUR,2000\n\
                    3,a,m,5,EUR,25000\n4,a,m,5,EUR,3000\n5,a,m,much,EUR,26000\n";

fn top(arguments: &[&str]) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } =
        Command::new(TIDEGATE).arg("top").args(arguments).stdin(Stdio::null()).output().unwrap();
    (status.code(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

/// A query over a file that is followed, at a known address.
struct Job {
    folder: TempDir,
    address: String,
    running: Option<Running>,
}

impl Job {
    fn start() -> Job {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("in.csv"), ROWS).unwrap();
        let mut job = Job { folder, address: free_address(), running: None };
        job.run();
        job
    }

    fn run(&mut self) {
        let folder = self.folder.path().display();
        let line = format!(
            "account_totals --csv {folder}/in.csv --out {folder}/out.csv --state {folder}/state --out-of-order 1s \
             --idle-timeout 1h --epoch 20ms --http {}",
            self.address
        );
        let mut running = start(TIDEGATE, line.split_whitespace().map(str::to_owned));
        running.wait_until("it serves", |running| running.stderr().contains("watch it at").then_some(()));
        self.running = Some(running);
    }

    /// Prints frames until one satisfies `holds`.
    fn until(&self, what: &str, holds: impl Fn(&str) -> bool) -> String {
        let begun = Instant::now();
        loop {
            let (code, frame, errors) = top(&[&self.address, "--once"]);
            assert!(code == Some(0), "{frame}{errors}");
            if holds(&frame) {
                return frame;
            }
            assert!(begun.elapsed() < PATIENCE, "{what}: {frame}");
        }
    }
}

/// Returns `true` if a line has all of these words.
fn has_line(frame: &str, words: &[&str]) -> bool {
    frame.lines().any(|line| words.iter().all(|word| line.contains(word)))
}

#[test]
fn one_frame_shows_windows_and_what_was_left_out() {
    let job = Job::start();
    let frame = job.until("the windows", |frame| {
        // The watermark is a second behind the greatest time.
        has_line(frame, &["totals", "1970-01-01T00:00:20", "1970-01-01T00:00:30", "6.0 s of event time"])
            && has_line(frame, &["totals", "closed", " 2 "])
            && has_line(frame, &["late for totals", "1 late"])
            && has_line(frame, &["rejected by transactions", "1 rejected"])
    });
    assert!(has_line(&frame, &["in.csv, line 6", "amount_cents"]), "{frame}");
    assert!(has_line(&frame, &["in.csv, byte ", "its time is 1970-01-01T00:00:03"]), "{frame}");
    assert!(has_line(&frame, &["worker 0", "runs"]) && frame.starts_with("account-totals at "), "{frame}");
    assert!(!frame.contains('\u{1b}'), "{frame}");
}

/// Process 0 of several that `tidegate up` runs knows the windows and the records left out of all.
#[test]
fn one_address_shows_all_processes_that_up_runs() {
    let (folder, address) = (tempfile::tempdir().unwrap(), format!("127.0.0.1:{}", free_ports(3)));
    let rows = (0..60).map(|id| format!("{id},account-{id},m,5,EUR,{}\n", 11_000 + id)).collect::<String>();
    fs::write(folder.path().join("in.csv"), format!("{ROWS}{rows}")).unwrap();
    let folder = folder.path().display();
    let line = format!(
        "up -n 3 -- account_totals --csv {folder}/in.csv --out {folder}/out.csv --state {folder}/state --out-of-order 1h \
         --idle-timeout 1h --epoch 20ms --http {address} --progress off"
    );
    let mut up = start(TIDEGATE, line.split_whitespace().map(str::to_owned));
    up.wait_until("all windows", |_| {
        let (code, frame, _) = top(&[&address, "--once"]);
        let holds = code == Some(0)
            && has_line(&frame, &["totals", "1970-01-01T00:00:10", "1970-01-01T00:00:20", " 60 "])
            && has_line(&frame, &["rejected by transactions", "1 rejected"])
            && has_line(&frame, &["process 2", "runs"]);
        holds.then_some(())
    });
    up.signal(nix::sys::signal::Signal::SIGTERM);
    up.end().code(143);
}

#[test]
fn what_cannot_be_shown_is_said_in_a_line() {
    let free = free_address();
    let (code, _, errors) = top(&[&free, "--once"]);
    assert!(code == Some(1) && errors.starts_with("error: cannot ask"), "{errors}");
    let (code, _, errors) = top(&[&free]);
    assert!(code == Some(2) && errors.contains("there is no terminal") && errors.contains("--once"), "{errors}");
    let (code, _, errors) = top(&["state/", "--once"]);
    assert!(code == Some(2) && errors.contains("is no address"), "{errors}");
}

/// `tidegate top` in a terminal of its own.
struct Terminal {
    child: Child,
    keys: File,
    /// All that it has written.
    written: Arc<Mutex<Vec<u8>>>,
}

impl Terminal {
    fn start(address: &str) -> Terminal {
        let size = Winsize { ws_row: 60, ws_col: 150, ws_xpixel: 0, ws_ypixel: 0 };
        let OpenptyResult { master, slave } = openpty(&size, None).unwrap();
        let end = || Stdio::from(slave.try_clone().unwrap());
        let mut command = Command::new(TIDEGATE);
        command.args(["top", address]).env("TERM", "xterm").stdin(end()).stdout(end()).stderr(end());
        let child = command.spawn().unwrap();
        let (keys, written) = (File::from(master), Arc::<Mutex<Vec<u8>>>::default());
        let (mut said, into) = (keys.try_clone().unwrap(), Arc::clone(&written));
        std::thread::spawn(move || {
            let mut piece = [0; 4096];
            while let Ok(read @ 1..) = said.read(&mut piece) {
                into.lock().unwrap().extend(&piece[..read]);
            }
        });
        Terminal { child, keys, written }
    }

    /// Waits until all of these words were written since the last time. Words of a line that stays are not written again.
    fn until(&self, words: &[&str]) {
        let begun = Instant::now();
        loop {
            let text = String::from_utf8_lossy(&self.written.lock().unwrap()).into_owned();
            if words.iter().all(|word| text.contains(word)) {
                self.written.lock().unwrap().clear();
                return;
            }
            assert!(begun.elapsed() < PATIENCE, "{words:?}: {text:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_terminal_survives_the_end_of_the_job_and_q_leaves_it_as_it_was() {
    let mut job = Job::start();
    let mut terminal = Terminal::start(&job.address);
    // The alternate screen, and what is on it.
    terminal.until(&["\u{1b}[?1049h", "account-totals", "Watermarks"]);
    let mut running = job.running.take().unwrap();
    running.kill();
    terminal.until(&["reachable", "since"]);
    job.run();
    terminal.until(&["Watermarks"]);
    terminal.keys.write_all(b"q").unwrap();
    let begun = Instant::now();
    let status = loop {
        if let Some(status) = terminal.child.try_wait().unwrap() {
            break status;
        }
        assert!(begun.elapsed() < PATIENCE, "it does not end");
        std::thread::sleep(Duration::from_millis(20));
    };
    assert!(status.success(), "{status}");
    terminal.until(&["\u{1b}[?1049l"]);
}
