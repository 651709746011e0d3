//! The cluster secret: a process that does not know it cannot join and ends no job; one of another version gets an
//! error that says so.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

use super::ports::free_port;
use super::run::{Running, check_contains};
use super::{Cluster, Limits, end_within, stop};

const LIMITS: Limits = Limits { join: Duration::from_secs(60), heartbeat: Duration::from_secs(30) };

/// Prepares a job all processes of which know a secret; also returns the flag for it.
fn with_secret(seed: u64, processes: usize, limits: Limits) -> (Cluster, String) {
    let cluster = Cluster::new(seed, processes, limits, |_, _| None);
    write_secret(&cluster.path("secret"), "the secret of this job");
    write_secret(&cluster.path("other"), "the secret of another job");
    (cluster, String::from("--cluster-secret-file {}/secret"))
}

fn write_secret(path: &Path, text: &str) {
    use std::os::unix::fs::OpenOptionsExt;
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).unwrap();
    file.write_all(text.as_bytes()).unwrap();
}

/// Connects to an address as soon as a process listens there.
fn reach(address: &str, running: &mut Running) -> TcpStream {
    let stream = running.wait_until("a connection", |_| TcpStream::connect(address).ok());
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream
}

#[test]
fn who_does_not_know_the_secret_takes_no_part_whatever_its_flags_are_and_ends_nothing() {
    let (mut cluster, secret) = with_secret(8, 2, LIMITS);
    let mut first = cluster.start_by(0, "hosts", &secret);
    for (flags, why) in [
        ("", "process 0 asks for a secret"),
        ("-w 2", "process 0 asks for a secret"),
        ("--cluster-secret-file {}/other", "process 0 knows another secret"),
        ("-w 2 --cluster-secret-file {}/other", "process 0 knows another secret"),
    ] {
        let stranger = cluster.start_by(1, "hosts-1", flags).end();
        check_contains(stranger.error(2), &[why, "--cluster-secret-file"]);
        assert!(first.is_alive(), "a stranger with {flags} ended process 0: {}", first.stderr());
    }
    let mut all = vec![first, cluster.start_by(1, "hosts-1", &secret)];
    cluster.until_more_than(&mut all, 1_000);
    let said = all[0].stderr();
    let told = |text: &str| said.lines().filter(|line| line.contains(text)).count();
    assert_eq!((told("further ones are counted"), told("refused 4 connections")), (1, 1), "{said}");
    stop(all);
    cluster.check();
}

#[test]
fn a_process_0_that_does_not_know_the_secret_is_not_joined() {
    let (cluster, secret) = with_secret(9, 2, Limits { join: Duration::from_secs(3), ..LIMITS });
    for (flags, code, why) in [
        ("", 1, "it has no secret, and this process has one"),
        ("--cluster-secret-file {}/other", 2, "process 0 knows another secret"),
    ] {
        let impostor = cluster.start_by(0, "hosts", flags);
        let process = cluster.start_by(1, "hosts", &secret);
        let ended = end_within(vec![process], Duration::from_secs(40));
        check_contains(ended[0].error(code), &[why]);
        drop(impostor);
    }
}

#[test]
fn processes_with_one_secret_find_each_other_and_those_that_run_something_else_end() {
    let (mut cluster, secret) = with_secret(10, 3, LIMITS);
    let mut all: Vec<_> = (0..3).map(|process| cluster.start_by(process, "hosts", &secret)).collect();
    cluster.until_more_than(&mut all, 1_000);
    stop(all);
    cluster.check();
    let (cluster, secret) = with_secret(10, 2, LIMITS);
    let other = format!("{secret} -w 2");
    let all = vec![cluster.start_by(0, "hosts", &secret), cluster.start_by(1, "hosts", &other)];
    for ended in end_within(all, Duration::from_secs(60)) {
        check_contains(ended.error(2), &["it has 2 workers, and process 0 has 1"]);
    }
}

#[test]
fn a_process_of_version_2_is_told_that_it_is_of_another_version_and_ends_nothing() {
    let mut cluster = Cluster::new(11, 2, LIMITS, |_, _| None);
    let mut first = cluster.start_by(0, "hosts", "");
    let mut old = reach(&cluster.address(0), &mut first);
    // A process of version 2 begins with its greeting, as process 1, and a message.
    old.write_all(b"TGPROC\0\x02\0\x01\0\0\0\0\0\0\0\0\0\0\0").unwrap();
    old.write_all(&[5, 0, 0, 0, 1, 2, 1, 0, 0]).unwrap();
    let mut answer = Vec::new();
    old.read_to_end(&mut answer).unwrap();
    // The answer: length, refused, by process 0, wrong usage, and the reason.
    assert_eq!(answer[..4], u32::try_from(answer.len() - 4).unwrap().to_le_bytes());
    assert_eq!(answer[4..7], [3, 0, 1]);
    check_contains(&String::from_utf8_lossy(&answer[8..]), &["process 0 speaks version 6", "this one speaks 2"]);
    // Later versions begin the same way, and learn this one's number.
    let mut new = reach(&cluster.address(0), &mut first);
    new.write_all(b"TGPROC\0\x09 and whatever follows").unwrap();
    let mut answer = Vec::new();
    new.read_to_end(&mut answer).unwrap();
    assert_eq!(answer, b"TGPROC\0\x06");
    let mut all = vec![first, cluster.start_by(1, "hosts", "")];
    cluster.until_more_than(&mut all, 1_000);
    assert!(all[0].stderr().contains("it speaks version 2"), "{}", all[0].stderr());
    stop(all);
    cluster.check();
}

#[test]
fn processes_that_others_can_reach_say_once_that_they_have_no_secret() {
    let (cluster, secret) = with_secret(12, 2, Limits { join: Duration::from_millis(100), ..LIMITS });
    let warns = |hosts: &str, flags: &str| {
        fs::write(cluster.path("hosts"), hosts).unwrap();
        let ended = cluster.start_by(0, "hosts", flags).end();
        check_contains(ended.error(1), &["process 1 has not come"]);
        ended.stderr.lines().filter(|line| line.contains("the processes have no secret")).count()
    };
    let port = free_port();
    assert_eq!(warns(&format!("0.0.0.0:{port}\nother-machine:2101\n"), ""), 1);
    assert_eq!(warns(&format!("0.0.0.0:{port}\nother-machine:2101\n"), &secret), 0);
    assert_eq!(warns(&format!("127.0.0.1:{port}\nlocalhost:2101\n"), ""), 0);
}
