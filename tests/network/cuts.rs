//! Processes that are cut off from each other: while the job runs, and at every stage of joining.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, mpsc};
use std::time::{Duration, Instant};

use fastrand::Rng;
use nix::sys::signal::Signal;
use tidegate::job::Job;
use tidegate::source::memory::MemorySource;
use tidegate::stream::Observer;

use super::ports::free_address;
use super::proxy::{Fate, Plan, Toward};
use super::run::{Running, check_contains};
use super::{Cluster, Limits, SLACK, end_within, stop};

/// Default number of seeded faults, and the number that run at a time: they wait most of the time.
const ROUNDS: u64 = 8;
const AT_A_TIME: usize = 4;

/// A cut between two processes: both processes, the direction (`None` for both), the fate of bytes there, and the
/// processes that may be reported as missing.
type Cut = (usize, usize, Option<Toward>, Fate, &'static [usize]);

/// Runs a job of three processes with a cut while it runs: all of them end, and report which process is missing.
#[track_caller]
fn all_end_after(cut: Cut) {
    let (one, other, toward, fate, missing) = cut;
    let mut cluster = Cluster::new(1, 3, Limits::SHORT, |_, _| None);
    let mut all = cluster.start_all();
    cluster.until_more_than(&mut all, 1_000);
    cluster.proxy(one, other).set(toward, fate);
    let begun = Instant::now();
    cluster.write(1_000);
    let ended = end_within(all, Limits::SHORT.heartbeat + SLACK);
    for (process, ended) in ended.iter().enumerate() {
        let said = ended.error(1);
        let is_named = missing.iter().any(|missing| said.contains(&format!("process {missing} ")));
        assert!(is_named, "{cut:?}: process {process} names nobody of {missing:?}: {said}");
        check_contains(said, &["nothing was heard of it for 4 s"]);
    }
    let took = begun.elapsed();
    assert!(took >= Limits::SHORT.heartbeat - Duration::from_secs(1), "{cut:?}: all ended after {took:?} already");
    cluster.check();
}

#[test]
fn processes_that_both_reach_process_0_and_not_each_other_end_with_a_line_that_names_one_of_them() {
    all_end_after((1, 2, None, Fate::Wait, &[1, 2]));
}

#[test]
fn bytes_that_vanish_in_one_direction_between_two_processes_end_all() {
    all_end_after((1, 2, Some(Toward::Acceptor), Fate::Vanish, &[2]));
    all_end_after((1, 2, Some(Toward::Dialer), Fate::Vanish, &[1]));
}

#[test]
fn a_process_that_is_cut_off_from_process_0_ends_with_all() {
    all_end_after((0, 1, None, Fate::Wait, &[0, 1]));
    all_end_after((0, 2, Some(Toward::Dialer), Fate::Vanish, &[0]));
}

#[test]
fn an_outage_that_is_shorter_than_the_heartbeat_timeout_is_survived() {
    let mut cluster = Cluster::new(2, 3, Limits { heartbeat: Duration::from_secs(20), ..Limits::SHORT }, |_, _| None);
    let mut all = cluster.start_all();
    cluster.until_more_than(&mut all, 1_000);
    for (one, other) in [(1, 2), (0, 1)] {
        let shown = cluster.shown();
        cluster.proxy(one, other).set(None, Fate::Wait);
        cluster.write(1_000);
        std::thread::sleep(Duration::from_secs(3));
        cluster.proxy(one, other).set(None, Fate::Pass);
        cluster.until_more_than(&mut all, shown);
    }
    stop(all);
    cluster.check();
}

/// Returns the answer of process 0 over HTTP; `None` if it cannot be reached.
fn answer(running: &Running, path: &str) -> Option<String> {
    let said = running.stderr();
    let address = said.split_once("watch it at http://")?.1.split_whitespace().next()?.to_owned();
    let mut stream = TcpStream::connect(&address).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok().map(|_| answer)
}

#[test]
fn why_names_two_processes_that_do_not_hear_each_other() {
    let mut cluster = Cluster::new(13, 3, Limits { heartbeat: Duration::from_secs(60), ..Limits::SHORT }, |_, _| None);
    cluster.more += " --http 127.0.0.1:0";
    let mut all = cluster.start_all();
    cluster.until_more_than(&mut all, 1_000);
    assert!(answer(&all[0], "/why").unwrap().contains(" 200 "));
    cluster.proxy(1, 2).set(None, Fate::Wait);
    let said = all[0].wait_until("the cause", |running| {
        answer(running, "/why").filter(|answer| answer.contains("the connection of processes 1 and 2"))
    });
    check_contains(&said, &["brings nothing from process", "the network between them is off"]);
    all[0].wait_until("the cause", |running| {
        answer(running, "/healthz").filter(|said| said.contains(" 503 ") && said.contains("processes 1 and 2"))
    });
    cluster.proxy(1, 2).set(None, Fate::Pass);
    all[0].wait_until("no cause", |running| answer(running, "/healthz").filter(|answer| answer.contains(" 200 ")));
    stop(all);
    cluster.check();
}

/// Runs a job that does not end by itself, as one process of those at these addresses.
fn endless(process: usize, addresses: Vec<String>, limits: Limits) -> tidegate::Result<tidegate::job::RunReport> {
    let records = MemorySource::new(vec![vec![(1u64, 10i64)]], |record: &(u64, i64)| record.1);
    let cluster = tidegate::job::Cluster::new(process, addresses).unwrap().timeouts(limits.join, limits.heartbeat);
    Job::new("endless").cluster(cluster).run(move |flow| {
        flow.read("records", &records).write("rows", &Observer::new(|_epoch, _rows| Ok(())));
    })
}

#[test]
fn a_process_0_that_accepts_and_is_silent_is_named_when_the_join_timeout_is_over() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let addresses = vec![silent.local_addr().unwrap().to_string(), free_address()];
    let limits = Limits { join: Duration::from_secs(2), heartbeat: Duration::from_secs(2) };
    let (tell, told) = mpsc::channel();
    let asked = addresses.clone();
    std::thread::spawn(move || {
        let _ = tell.send(endless(1, asked, limits));
    });
    let error = told.recv_timeout(limits.join + SLACK).expect("process 1 waits for ever").unwrap_err();
    check_contains(&error.to_string(), &["process 0 cannot be reached", &addresses[0]]);
}

/// Derives a plan for the connections of two processes, of a job of three, from a seed.
fn planned(seed: u64) -> (usize, usize, Plan) {
    let mut random = Rng::with_seed(seed);
    let (one, other) = [(1, 0), (2, 0), (2, 1)][random.usize(0..3)];
    // Most plans concern the first bytes, in which processes join.
    let after = match random.u8(0..4) {
        0 => random.usize(0..100),
        1 => random.usize(0..2_000),
        2 => random.usize(0..20_000),
        _ => 1 << random.u32(8..17),
    };
    let plan = Plan {
        toward: if random.bool() { Toward::Acceptor } else { Toward::Dialer },
        after,
        fate: [Fate::Vanish, Fate::Vanish, Fate::Wait, Fate::Close][random.usize(0..4)],
        both: random.bool(),
        connections: [1, 1, 2, usize::MAX][random.usize(0..4)],
    };
    (one, other, plan)
}

/// Runs the job of a seed; returns the time until it ended by itself, or `None` if it went on.
fn round(seed: u64) -> Option<Duration> {
    let (one, other, plan) = planned(seed);
    let place = format!("seed {seed}, {one} to {other}: {plan:?}");
    let planned = |dialer, acceptor| ((dialer, acceptor) == (one, other)).then_some(plan);
    let mut cluster = Cluster::new(seed, 3, Limits::SHORT, planned);
    let Limits { join, heartbeat } = Limits::SHORT;
    let (begun, mut all) = (Instant::now(), cluster.start_all());
    let mut ended = false;
    // A job that has joined and publishes results for this long goes on.
    let mut shown_since = None;
    while !ended && shown_since.is_none_or(|since: Instant| since.elapsed() < heartbeat + Duration::from_secs(3)) {
        assert!(begun.elapsed() < join + 2 * heartbeat + SLACK, "{place}: it neither ends nor goes on: {}", said(&all));
        std::thread::sleep(Duration::from_millis(100));
        if cluster.shown() > 1_000 {
            shown_since.get_or_insert_with(Instant::now);
        }
        if shown_since.is_some() && cluster.written < 7_900 {
            cluster.write(50);
        }
        ended = all.iter_mut().any(|running| !running.is_alive());
    }
    if !ended {
        all.iter().for_each(|running| running.signal(Signal::SIGTERM));
    }
    let all = end_within(all, heartbeat + SLACK);
    for (process, running) in all.iter().enumerate() {
        match running.status.code() {
            Some(0 | 143) if !ended => {}
            _ => check_contains(running.error(1), &["process "]),
        }
        assert!(!running.stderr.contains("panicked"), "{place}: process {process}: {}", running.stderr);
    }
    let took = begun.elapsed();
    cluster.check();
    ended.then_some(took)
}

fn said(all: &[Running]) -> String {
    all.iter().map(Running::stderr).collect::<Vec<_>>().join("\n---\n")
}

#[test]
fn whatever_is_lost_at_whatever_stage_the_job_ends_or_goes_on_and_its_results_are_exact() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    if let Some(seed) = number("NETWORK_SEED") {
        println!("seed {seed}: {:?}, {:?}", planned(seed), round(seed));
        return;
    }
    let (rounds, next) = (number("NETWORK_ROUNDS").unwrap_or(ROUNDS), AtomicU64::new(0));
    let ends = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..AT_A_TIME {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::SeqCst);
                    if seed >= rounds {
                        return;
                    }
                    let end = std::panic::catch_unwind(|| round(seed));
                    let end = end.unwrap_or_else(|panic| {
                        eprintln!("NETWORK_SEED={seed} fails");
                        std::panic::resume_unwind(panic)
                    });
                    ends.lock().unwrap().push(end);
                }
            });
        }
    });
    let ends = ends.into_inner().unwrap();
    let ended: Vec<_> = ends.iter().flatten().collect();
    println!(
        "{rounds} rounds: {} went on, {} ended, the last after {:?}",
        ends.len() - ended.len(),
        ended.len(),
        ended.iter().max()
    );
}
