//! Several processes are one job: their results are those of the data, they check that they run the same query before
//! they run it, and when one is gone all others end, with one line that names it.
//!
//! The first tests run in memory, as jobs of one test that are connected like processes; then come the programs that
//! users run, killed and restarted by `tidegate up`.
#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

#[path = "common/children.rs"]
mod children;
#[path = "common/ports.rs"]
mod ports;
#[path = "common/run.rs"]
mod run;
#[path = "common/sql.rs"]
mod sql;
#[path = "common/transactions.rs"]
mod transactions;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use fastrand::Rng;
use nix::sys::signal::{Signal, kill};
use tempfile::TempDir;
use tidegate::job::{Cluster, Job};
use tidegate::source::memory::MemorySource;
use tidegate::stream::Observer;
use tidegate::testing::TestRun;

use children::{children, write_hosts};
use common::cases::{Data, for_seeds};
use common::checks::check_data;
use common::oracle::Windows;
use ports::free_address;
use run::{Running, check_contains, run, start};
use sql::{database, merchants_csv, queries, rows};
use transactions::{COLUMNS, csv_of, rows_of, same_rows};

const TOTALS: &str = "account_totals";
const TIDEGATE: &str = env!("CARGO_BIN_EXE_tidegate");
/// Numbers of processes, and of workers in each.
const SHAPES: [(usize, usize); 3] = [(2, 1), (2, 2), (3, 1)];
const KINDS: [Windows; 4] = [
    Windows::Tumbling { size: 10, offset: 3 },
    Windows::Session { gap: 12, late: 0 },
    Windows::Count { size: 5, late: 20 },
    Windows::Sliding { size: 50, slide: 20, offset: 7, late: 30 },
];

#[test]
fn results_are_those_of_the_data_on_any_number_of_processes() {
    for_seeds(3, |seed| {
        let data = Data::random(&mut Rng::with_seed(seed), 250);
        for (processes, workers) in SHAPES {
            for windows in KINDS {
                check_data(&data, windows, TestRun::new().processes(processes).workers(workers).seed(seed))?;
            }
        }
        let (processes, workers) = SHAPES[seed as usize % SHAPES.len()];
        check_data(&data, KINDS[0], TestRun::new().processes(processes).workers(workers).clock())
    });
}

/// Runs a job that does not end by itself, as one process of a cluster.
fn endless(cluster: Cluster) -> tidegate::Result<tidegate::job::RunReport> {
    let records = MemorySource::new(vec![vec![(1u64, 10i64)]], |record: &(u64, i64)| record.1);
    Job::new("endless").cluster(cluster).run(move |flow| {
        flow.read("records", &records).write("rows", &Observer::new(|_epoch, _rows| Ok(())));
    })
}

#[test]
fn who_does_not_come_is_named() {
    let (free, other) = (free_address(), free_address());
    let patience = |cluster: Cluster| cluster.timeouts(Duration::from_millis(200), Duration::from_secs(1));
    let addresses = vec![free, other.clone()];
    let error = endless(patience(Cluster::new(0, addresses.clone()).unwrap())).unwrap_err();
    check_contains(&error.to_string(), &["process 1 has not come", &other]);
    let error = endless(patience(Cluster::new(1, addresses.clone()).unwrap())).unwrap_err();
    check_contains(&error.to_string(), &["process 0 cannot be reached", &addresses[0]]);
    check_contains(&Cluster::new(2, addresses).unwrap_err().to_string(), &["there is no process 2 of 2"]);
}

/// A folder with an input, and a hostfile of some processes.
struct ProcessCase {
    folder: TempDir,
    rows: Vec<transactions::Transaction>,
}

impl ProcessCase {
    fn new(seed: u64, count: usize, processes: usize) -> ProcessCase {
        let (folder, rows) = (tempfile::tempdir().unwrap(), rows(seed, count));
        fs::write(folder.path().join("in.csv"), csv_of(&rows, &COLUMNS)).unwrap();
        let place = ProcessCase { folder, rows };
        place.new_hosts(processes);
        place
    }

    fn new_hosts(&self, processes: usize) {
        write_hosts(&self.path("hosts"), processes);
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    /// Returns the number of snapshots of the state.
    fn snapshots(&self) -> usize {
        fs::read_dir(self.path("state/manifests")).map_or(0, Iterator::count)
    }

    fn words(&self, line: &str) -> Vec<String> {
        line.split_whitespace().map(|word| word.replace("{}", self.folder.path().to_str().unwrap())).collect()
    }

    /// Starts one process.
    fn start(&self, program: impl AsRef<Path>, process: usize, processes: usize, more: &str) -> Running {
        let line = format!("--csv {{}}/in.csv --out {{}}/out.csv --until-end -n {processes} -p {process}");
        start(program, self.words(&format!("{line} --hostfile {{}}/hosts --epoch 10ms --in-flight 1MiB {more}")))
    }

    fn check(&self) {
        let totals = queries().into_iter().find(|query| query.program == TOTALS).unwrap();
        let expected = totals.answer(&database([self.rows.as_slice()]), 0);
        assert!(expected.len() > 100, "{} rows", expected.len());
        same_rows(&totals.answered(&self.path("out.csv")), &expected);
    }
}

#[test]
fn answers_of_programs_are_those_of_sql_on_several_processes() {
    for (number, query) in queries().into_iter().enumerate() {
        let place = ProcessCase::new(70 + number as u64, 8_000, 3);
        fs::write(place.path("merchants.csv"), merchants_csv()).unwrap();
        let mut more = format!("-w {} {}", 1 + number % 2, query.flags);
        if query.judges() {
            more += " --late {}/late.csv";
        }
        let all: Vec<_> = (0..3).map(|process| place.start(query.program, process, 3, &more)).collect();
        let ended: Vec<_> = all.into_iter().map(Running::end).collect();
        for ended in &ended {
            ended.code(0);
        }
        let database = database([place.rows.as_slice()]);
        same_rows(&query.answered(&place.path("out.csv")), &query.answer(&database, 0));
        if query.judges() {
            same_rows(&rows_of(&place.path("late.csv"), &COLUMNS), &query.late(&database, 0));
        }
        // The first process reports for all, and its figures are those of all.
        let [read, accepted, rejected] = ended[0].figures("transactions: ")[..] else { panic!("{}", ended[0].stderr) };
        assert_eq!((read, accepted, rejected), (8_000, 8_000, 0));
        assert!(!ended[1].stderr.contains("transactions: "), "{}", ended[1].stderr);
    }
}

#[test]
fn processes_that_would_not_run_the_same_do_not_begin() {
    let place = ProcessCase::new(1, 500, 2);
    for (first, other, why) in [
        ("", "-w 2", "it has 2 workers, and process 0 has 1"),
        ("", "--out-of-order 5s", "out-of-order is 5s, was 2s"),
        ("--state {}/state", "", "it keeps no state"),
        ("", "--late {}/late.csv", "the step sink late is new"),
    ] {
        place.new_hosts(2);
        let (first, other) = (place.start(TOTALS, 0, 2, first), place.start(TOTALS, 1, 2, other));
        let (first, other) = (first.end(), other.end());
        check_contains(first.error(2), &["the processes do not run the same (process 1)", why]);
        check_contains(other.error(2), &["the processes do not run the same (process 1)", why]);
        assert!(!place.path("out.csv").exists(), "an output was made");
    }
    place.new_hosts(3);
    let (first, other) = (place.start(TOTALS, 0, 3, ""), place.start(TOTALS, 1, 2, ""));
    check_contains(first.end().error(2), &["it is number 1 of 2, and process 0 has 3"]);
    check_contains(other.end().error(2), &["it is number 1 of 2, and process 0 has 3"]);
    check_contains(run(TOTALS, ["--csv", "a", "-n", "2", "-p", "2"]).error(2), &["-p 2: there are 2 processes"]);
    check_contains(place.start(TOTALS, 0, 4, "").end().error(2), &["the file of hosts has too few addresses"]);
}

#[test]
fn when_a_process_is_killed_the_others_end_with_a_line_that_names_it_and_a_new_start_goes_on() {
    let mut random = Rng::with_seed(5);
    for round in 0..4 {
        let place = ProcessCase::new(20 + round, 60_000, 3);
        let victim = round as usize % 3;
        for life in 0.. {
            place.new_hosts(3);
            let mut all: Vec<_> = (0..3)
                .map(|process| place.start(TOTALS, process, 3, "--state {}/state --snapshot-every 50ms"))
                .collect();
            if life == 2 {
                for process in all {
                    process.end().code(0);
                }
                break;
            }
            let shown = || fs::metadata(place.path("out.csv")).map_or(0, |file| file.len());
            let before = shown();
            all[victim].wait_until("results", |_| (shown() > before + 1_000).then_some(()));
            std::thread::sleep(Duration::from_millis(random.u64(0..100)));
            all[victim].kill();
            let killed = Instant::now();
            for (process, running) in all.into_iter().enumerate().filter(|(process, _)| *process != victim) {
                let ended = running.end();
                check_contains(ended.error(1), &[&format!("process {victim} is gone"), "start all processes again"]);
                assert!(killed.elapsed() < Duration::from_secs(5), "process {process} took {:?}", killed.elapsed());
            }
        }
        place.check();
    }
}

#[test]
fn what_one_process_fails_with_all_end_with() {
    // The other process works without the input: only the first process reads it.
    let place = ProcessCase::new(2, 500, 2);
    fs::remove_file(place.path("in.csv")).unwrap();
    let all: Vec<_> = (0..2).map(|process| place.start(TOTALS, process, 2, "")).collect();
    let ended: Vec<_> = all.into_iter().map(Running::end).collect();
    let own = ended[0].error(1).to_owned();
    check_contains(&own, &["in.csv"]);
    check_contains(ended[1].error(1), &["process 0 failed", &own]);
}

#[test]
fn a_signal_to_any_process_stops_all_of_them_cleanly() {
    for asked in 0..2 {
        let place = ProcessCase::new(3, 200_000, 2);
        let more = "--state {}/state --snapshot-every 20ms";
        let mut all: Vec<_> = (0..2).map(|process| place.start(TOTALS, process, 2, more)).collect();
        all[asked].wait_until("a snapshot", |_| place.snapshots().gt(&0).then_some(()));
        all[asked].signal(Signal::SIGTERM);
        for (process, running) in all.into_iter().enumerate() {
            running.end().code(if process == asked { 143 } else { 0 });
        }
        place.new_hosts(2);
        let all: Vec<_> = (0..2).map(|process| place.start(TOTALS, process, 2, more)).collect();
        for process in all {
            process.end().code(0);
        }
        place.check();
    }
}

fn up(place: &ProcessCase, options: &str, arguments: &str) -> Running {
    let line = format!("up {options} -- {TOTALS} --csv {{}}/in.csv --out {{}}/out.csv --until-end {arguments}");
    start(TIDEGATE, place.words(&line))
}

#[test]
fn up_starts_all_again_whenever_one_is_killed_and_results_are_exact() {
    let place = ProcessCase::new(9, 150_000, 1);
    let mut random = Rng::with_seed(11);
    let mut tool = up(&place, "-n 3", "--state {}/state --snapshot-every 50ms --in-flight 1MiB --epoch 10ms");
    let shown = || fs::metadata(place.path("out.csv")).map_or(0, |file| file.len());
    let mut kills = 0;
    for _ in 0..6 {
        let before = shown();
        let end = Instant::now() + Duration::from_secs(60);
        while tool.is_alive() && shown() < before + 3_000 && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(5));
        }
        if let Some((victim, _)) = random.choice(&children(place.folder.path())) {
            kills += usize::from(kill(*victim, Signal::SIGKILL).is_ok());
        }
    }
    let ended = tool.end();
    ended.code(0);
    place.check();
    let again = ended.stderr.lines().filter(|line| line.starts_with("up: ") && line.contains("started again")).count();
    assert!(again >= 3 && again <= kills, "{kills} kills, {again} new starts:\n{}", ended.stderr);
    assert!(ended.stderr.contains("[0] transactions: "), "{}", ended.stderr);
    assert_eq!(children(place.folder.path()), [], "processes are left");
}

#[test]
fn up_ends_with_the_first_failures_exit_code_when_starting_again_does_not_help() {
    let place = ProcessCase::new(4, 500, 1);
    // Wrong usage must be fixed by the user.
    let ended = up(&place, "-n 2", "--state {}/state --accept").end();
    ended.code(2);
    assert!(ended.stderr.contains("that is for you to mend"), "{}", ended.stderr);
    // Without a state there is no restart.
    fs::remove_file(place.path("in.csv")).unwrap();
    let ended = up(&place, "-n 2", "").end();
    ended.code(1);
    assert!(ended.stderr.contains("there is no --state, so nothing is started again"), "{}", ended.stderr);
    // With one it gives up in the end.
    let ended = up(&place, "-n 2 --restarts 2", "--state {}/state").end();
    ended.code(1);
    let count = |what: &str| ended.stderr.lines().filter(|line| line.contains(what)).count();
    assert_eq!((count("all are started again"), count("given up: 3 starts in a row")), (2, 1), "{}", ended.stderr);
    check_contains(run(TIDEGATE, ["up", "--", TOTALS, "-n", "2"]).error(2), &["-n is for `tidegate up` to give"]);
    let given = run(TIDEGATE, ["up", "--", TOTALS, "--cluster-secret-file=mine"]);
    check_contains(given.error(2), &["--cluster-secret-file is for `tidegate up` to give"]);
    check_contains(
        run(TIDEGATE, ["up", "--", "no-such-program"]).error(1),
        &["cannot start the query (no-such-program)"],
    );
}

#[test]
fn up_tells_its_processes_what_they_need_where_nobody_else_can_put_or_read_anything() {
    use std::os::unix::fs::{PermissionsExt, symlink};
    let place = ProcessCase::new(7, 300_000, 1);
    let (temporary, victim) = (place.path("tmp"), place.path("victim"));
    fs::create_dir(&temporary).unwrap();
    fs::write(&victim, "not to be overwritten").unwrap();
    // Another user's links, under all names that can be predicted: those of the next process ids.
    let next = std::process::id();
    for id in next..next + 20_000 {
        symlink(&victim, temporary.join(format!("tidegate-up-{id}.hosts"))).unwrap();
        symlink(&victim, temporary.join(format!("tidegate-up-{id}"))).unwrap();
    }
    let line = format!("up -n 2 -- {TOTALS} --csv {{}}/in.csv --out {{}}/out.csv --in-flight 1MiB --epoch 10ms");
    let words = place.words(&line);
    let mut tool = run::start_with(TIDEGATE, words, |command| {
        command.env("TMPDIR", &temporary);
    });
    let shown = || fs::metadata(place.path("out.csv")).map_or(0, |file| file.len());
    tool.wait_until("results", |_| (shown() > 1_000).then_some(()));
    assert_eq!(fs::read_to_string(&victim).unwrap(), "not to be overwritten");
    let own = || {
        let all = fs::read_dir(&temporary).unwrap().map(|entry| entry.unwrap().path());
        all.filter(|path| !path.is_symlink()).collect::<Vec<_>>()
    };
    let [folder] = &own()[..] else { panic!("not one directory: {:?}", own()) };
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!((folder.is_dir(), mode(folder)), (true, 0o700));
    let files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(files.len(), 2, "{files:?}");
    for file in &files {
        assert_eq!(mode(file), 0o600, "{file:?}");
    }
    // Both processes got the path of the secret's file, and no command line contains the secret.
    let secret = fs::read_to_string(folder.join("secret")).unwrap();
    assert!(secret.trim().len() >= 32);
    for (_, line) in children(place.folder.path()) {
        assert!(line.contains("--cluster-secret-file") && !line.contains(secret.trim()), "{line}");
    }
    tool.signal(Signal::SIGTERM);
    tool.end().code(143);
    assert_eq!(own(), Vec::<std::path::PathBuf>::new(), "something is left");
}

#[test]
fn up_stops_all_when_it_is_asked_to_and_leaves_nobody_when_it_is_killed() {
    let place = ProcessCase::new(6, 300_000, 1);
    let shown = || fs::metadata(place.path("out.csv")).map_or(0, |file| file.len());
    let arguments = "--state {}/state --in-flight 1MiB --epoch 10ms";
    let mut tool = up(&place, "-n 2", arguments);
    tool.wait_until("results", |_| (shown() > 1_000).then_some(()));
    tool.signal(Signal::SIGTERM);
    tool.end().code(143);
    assert_eq!(children(place.folder.path()), [], "processes are left");
    let before = shown();
    let mut tool = up(&place, "-n 2", arguments);
    tool.wait_until("results", |_| (shown() > before).then_some(()));
    tool.kill();
    assert!(tool.end_or_killed().was_killed());
    let end = Instant::now() + Duration::from_secs(20);
    while !children(place.folder.path()).is_empty() {
        assert!(Instant::now() < end, "left after 20 s: {:?}", children(place.folder.path()));
        std::thread::sleep(Duration::from_millis(20));
    }
}
