//! Processes that are suspended for a while, one of them and all of them: a sleeping machine, a frozen container.
//!
//! Silence counts only while a process runs and listens, so a pause of all of them, however long, has no effect.

use std::time::Duration;

use nix::sys::signal::Signal;

use super::run::{Running, check_contains};
use super::{Cluster, Limits, SLACK, end_within, stop};

/// Returns pauses that are shorter and longer than the heartbeat timeout, and the limits: short ones, or the defaults.
fn sizes() -> (Duration, Vec<Duration>, Limits) {
    let seconds = Duration::from_secs;
    match std::env::var("NETWORK_PAUSES").as_deref() {
        Ok("real") => {
            (seconds(25), vec![seconds(35), seconds(60)], Limits { join: seconds(60), heartbeat: seconds(30) })
        }
        Ok(other) => panic!("NETWORK_PAUSES={other}: write real"),
        Err(_) => (seconds(2), vec![seconds(9)], Limits { join: seconds(60), heartbeat: seconds(6) }),
    }
}

fn signal(all: &[Running], signal: Signal) {
    all.iter().for_each(|running| running.signal(signal));
}

#[test]
fn one_process_that_pauses_for_less_than_the_heartbeat_timeout_goes_on_with_the_others() {
    let (pause, _, limits) = sizes();
    let mut cluster = Cluster::new(3, 3, limits, |_, _| None);
    let mut all = cluster.start_all();
    cluster.until_more_than(&mut all, 1_000);
    for process in 0..3 {
        all[process].signal(Signal::SIGSTOP);
        cluster.write(500);
        std::thread::sleep(pause);
        let shown = cluster.shown();
        all[process].signal(Signal::SIGCONT);
        cluster.write(500);
        cluster.until_more_than(&mut all, shown);
    }
    stop(all);
    cluster.check();
}

#[test]
fn one_process_that_pauses_for_longer_is_named_by_all() {
    let (_, pauses, limits) = sizes();
    for (paused, pause) in [0, 2].into_iter().zip(pauses.iter().cycle()) {
        let mut cluster = Cluster::new(4, 3, limits, |_, _| None);
        let mut all = cluster.start_all();
        cluster.until_more_than(&mut all, 1_000);
        all[paused].signal(Signal::SIGSTOP);
        std::thread::sleep(*pause);
        all[paused].signal(Signal::SIGCONT);
        for ended in end_within(all, SLACK) {
            check_contains(ended.error(1), &[&format!("process {paused} "), "nothing was heard of it for"]);
        }
        cluster.check();
    }
}

#[test]
fn all_processes_that_pause_together_go_on_however_long_that_was() {
    let (_, pauses, limits) = sizes();
    for pause in pauses {
        let mut cluster = Cluster::new(5, 3, limits, |_, _| None);
        let mut all = cluster.start_all();
        cluster.until_more_than(&mut all, 1_000);
        signal(&all, Signal::SIGSTOP);
        cluster.write(1_000);
        std::thread::sleep(pause);
        let shown = cluster.shown();
        signal(&all, Signal::SIGCONT);
        cluster.until_more_than(&mut all, shown);
        stop(all);
        cluster.check();
    }
}

/// Attempts to reach a process that has yet to start are no time in which this one was silent either.
#[test]
fn a_process_that_pauses_while_it_waits_for_process_0_to_start_goes_on() {
    let limits = Limits { join: Duration::from_secs(8), heartbeat: Duration::from_secs(8) };
    let mut cluster = Cluster::new(14, 3, limits, |_, _| None);
    let first = cluster.start(1);
    std::thread::sleep(Duration::from_millis(500));
    first.signal(Signal::SIGSTOP);
    std::thread::sleep(Duration::from_secs(12));
    first.signal(Signal::SIGCONT);
    std::thread::sleep(Duration::from_millis(500));
    let mut all = vec![cluster.start(0), first, cluster.start(2)];
    cluster.until_more_than(&mut all, 1_000);
    stop(all);
    cluster.check();
}

#[test]
fn processes_that_pause_while_they_come_together_go_on() {
    let limits = Limits { join: Duration::from_secs(5), heartbeat: Duration::from_secs(5) };
    let mut cluster = Cluster::new(6, 3, limits, |_, _| None);
    // Process 2 has not started yet.
    let mut all = vec![cluster.start(0), cluster.start(1)];
    std::thread::sleep(Duration::from_millis(500));
    signal(&all, Signal::SIGSTOP);
    std::thread::sleep(Duration::from_secs(8));
    signal(&all, Signal::SIGCONT);
    all.push(cluster.start(2));
    cluster.until_more_than(&mut all, 1_000);
    stop(all);
    cluster.check();
}
