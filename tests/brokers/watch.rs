//! A running job reports what it waits for: by HTTP, by `tidegate why`, and in its log; and it serves its views.
//!
//! Three processes read a topic of a real broker, of which one partition is silent, and one process is suspended for a
//! while. Then views are read while records arrive and processes are killed.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::time::Duration;

use crate::broker::Broker;
use crate::ports::free_ports;
use crate::run::{Running, check_contains, run, start};
use nix::sys::signal::Signal;
use tempfile::TempDir;

const TOTALS: &str = "account_totals";
const TIDEGATE: &str = env!("CARGO_BIN_EXE_tidegate");
const BALANCES: &str = "balances";
const PROCESSES: usize = 3;
/// The end of the window of the questions, 10 s of event time after its start.
const END: i64 = 1_700_000_010_000;

/// Returns records of an account, a second apart, starting `from` seconds after the start of the window.
fn records(account: &str, from: i64, count: i64) -> Vec<String> {
    let record = |second: i64| {
        let at = END - 10_000 + second * 1_000;
        format!(
            r#"{{"id":{second},"account":"{account}","merchant":"m","amount_cents":5,"currency":"EUR","at_ms":{at}}}"#
        )
    };
    (from..from + count).map(record).collect()
}

/// Returns the status and the text of an answer; `None` without an answer.
fn get(address: &str, path: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
}

struct Watched {
    folder: TempDir,
    running: Vec<Running>,
    addresses: Vec<String>,
}

impl Watched {
    fn start(servers: &str, topic: &str) -> Watched {
        let folder = tempfile::tempdir().unwrap();
        crate::children::write_hosts(&folder.path().join("hosts"), PROCESSES);
        let mut watched = Watched { folder, running: Vec::new(), addresses: Vec::new() };
        for process in 0..PROCESSES {
            let line = format!(
                "--brokers {servers} --topic {topic} --out {{}}/out.csv --state {{}}/state -n {PROCESSES} -p {process} \
                 --hostfile {{}}/hosts --http 127.0.0.1:0 --idle-timeout 1h --tell-when-quiet 3s --snapshot-every 200ms"
            );
            let folder = watched.folder.path().to_str().unwrap().to_owned();
            watched.running.push(start(TOTALS, line.split_whitespace().map(|word| word.replace("{}", &folder))));
        }
        for running in &mut watched.running {
            let address = running.wait_until("the address", |running| {
                let said = running.stderr();
                let after = said.split_once("watch it at http://")?.1;
                after.split_once(' ').map(|(address, _)| address.to_owned())
            });
            watched.addresses.push(address);
        }
        watched
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Asks a process; returns the status and the text of its answer.
    fn get(&self, process: usize, path: &str) -> (u16, String) {
        get(&self.addresses[process], path).unwrap()
    }

    /// Asks process 0 until its answer satisfies `holds`.
    fn until(&mut self, path: &str, what: &str, holds: impl Fn(u16, &str) -> bool) -> String {
        let mut last = String::new();
        for _ in 0..300 {
            let (status, text) = self.get(0, path);
            if holds(status, &text) {
                return text;
            }
            last = format!("{status} {text}");
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("{path} never said {what}: {last}\n{}", self.running[0].stderr())
    }

    /// Returns the sum over all processes of a metric, of the lines with this label.
    fn figure(&self, name: &str, label: &str) -> f64 {
        let pages = (0..PROCESSES).map(|process| self.get(process, "/metrics").1);
        let values = pages.flat_map(|page| {
            let lines = page.lines().filter(|line| line.starts_with(&format!("{name}{{")) && line.contains(label));
            lines.map(|line| line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap()).collect::<Vec<_>>()
        });
        values.sum()
    }

    /// Waits until a metric has a value.
    fn until_figure(&mut self, name: &str, label: &str, value: f64) {
        for _ in 0..300 {
            if (self.figure(name, label) - value).abs() < f64::EPSILON && self.get(0, "/metrics").1.contains(name) {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("{name} is {} instead of {value}", self.figure(name, label));
    }

    fn why(&self, place: impl Display, more: &str) -> crate::run::ProgramOutput {
        let line = format!("why {place} {more}");
        run(TIDEGATE, line.split_whitespace())
    }
}

/// Returns the name of the first blocker in a JSON answer.
fn first(answer: &str) -> String {
    let answer: serde_json::Value = serde_json::from_str(answer).unwrap();
    answer["holds"][0]["name"].as_str().unwrap_or("nothing").to_owned()
}

#[test]
fn what_holds_a_window_is_named() {
    let Some(broker) = Broker::shared() else { return };
    let topic = broker.topic(3);
    for partition in 0..2 {
        broker.send(&topic, partition, records("a", 0, 30));
    }
    let mut watched = Watched::start(&broker.servers, &topic);
    a_silent_partition(&mut watched);
    broker.send(&topic, 2, records("b", 0, 30));
    all_is_well(&mut watched);
    a_stopped_process(&mut watched);
    of_what_is_over(watched);
}

/// Partition 2 has no record: windows wait for it, and for nothing else.
fn a_silent_partition(watched: &mut Watched) {
    watched.until_figure("tidegate_source_records_total", r#"source="transactions""#, 60.0);
    let path = format!("/why?window={END}&format=json");
    let answer = watched.until(&path, "that partition 2 is silent", |status, text| {
        // Processes report twice a second what they have read.
        let others = ["partition 0 of", "partition 1 of"];
        status == 200
            && first(text) == "partition 2 of transactions"
            && !others.iter().any(|other| text.contains(other))
    });
    assert!(answer.contains("has given no record yet"), "{answer}");
    // On a busy machine the broker may be slow, and is then reported instead.
    let parts =
        ["partition 2 of transactions", "has given no record yet", "--idle-timeout", "2023-11-14T22:13:30.000Z"];
    watched.until(&format!("/why?window={END}"), "what is silent, and until when", |_, text| {
        parts.iter().all(|part| text.contains(part))
    });
    let (state, url) = (watched.path("state").display().to_string(), format!("http://{}", watched.addresses[0]));
    for place in [&state, &url] {
        let said = watched.why(place, &format!("--window {END}"));
        check_contains(said.code(1).stdout(), &["waits for partition 2 of transactions"]);
    }
    check_contains(watched.why(&url, "--window tomorrow").error(2), &["--window tomorrow", "2026-01-31T10:00:00Z"]);
    let line = watched.running[0].wait_until("a line of its own", |running| {
        running.stderr().lines().find(|line| line.contains("nothing was published for")).map(str::to_owned)
    });
    check_contains(&line, &["WARN", "partition 2 of transactions"]);
    let (status, text) = watched.get(1, "/why");
    assert_eq!(status, 409, "{text}");
    check_contains(&text, &["process 1 of 3", "ask process 0"]);
    assert_eq!(watched.get(0, "/why?window=x").0, 400);
    assert_eq!(watched.get(0, "/wherefore").0, 404);
}

/// All partitions have records: the window closes, and the figures are those of the data.
fn all_is_well(watched: &mut Watched) {
    let text =
        watched.until(&format!("/why?window={END}"), "that it has closed", |_, text| text.contains("has closed"));
    assert!(!text.contains("waits"), "{text}");
    let path = watched.path("out.csv");
    watched.running[0].wait_until("rows", |_| fs::read_to_string(&path).ok().filter(|rows| rows.lines().count() > 2));
    assert_eq!(watched.until("/healthz", "that all is well", |status, _| status == 200), "ok\n");
    let source = r#"source="transactions""#;
    watched.until_figure("tidegate_partition_offset", source, 90.0);
    // The end of a partition is refreshed twice a second.
    watched.until_figure("tidegate_partition_lag_records", source, 0.0);
    assert_eq!(watched.figure("tidegate_source_records_total", source), 90.0);
    assert_eq!(watched.figure("tidegate_partition_offset", r#"partition="2""#), 30.0);
    assert_eq!(watched.figure("tidegate_partition_watermark_seconds", r#"partition="1""#), 1_700_000_027.0);
    assert!(watched.figure("tidegate_journal_syncs_total", "") >= 3.0);
    assert!(watched.figure("tidegate_snapshots_total", r#"process="0""#) >= 1.0);
    assert!(watched.figure("tidegate_snapshot_age_seconds", "") < 60.0);
    let status: serde_json::Value = serde_json::from_str(&watched.get(0, "/status").1).unwrap();
    let partitions =
        status["processes"].as_array().unwrap().iter().map(|process| &process["workers"][0]["partitions"][0]);
    let named: Vec<_> = partitions.map(|partition| partition["partition"].as_u64().unwrap()).collect();
    assert_eq!(named, [0, 1, 2]);
}

/// A suspended process is named by every process; when it continues, nothing is reported any more.
fn a_stopped_process(watched: &mut Watched) {
    watched.running[1].signal(Signal::SIGSTOP);
    let later = END + 3_600_000;
    let answer = watched.until(&format!("/why?window={later}&format=json"), "that process 1 is stopped", |_, text| {
        first(text) == "process 1"
    });
    check_contains(&answer, &["gives no sign of life", "kill -CONT"]);
    assert_eq!(watched.get(0, "/healthz").0, 503);
    let said = watched.why(watched.path("state").display(), "");
    check_contains(said.code(1).stdout(), &["the next results wait for process 1"]);
    watched.running[1].signal(Signal::SIGCONT);
    watched.until("/healthz", "that all is well", |status, _| status == 200);
    watched.running[0].signal(Signal::SIGSTOP);
    std::thread::sleep(Duration::from_millis(2_500));
    let (status, text) = watched.get(1, "/why");
    watched.running[0].signal(Signal::SIGCONT);
    assert_eq!(status, 200, "{text}");
    check_contains(&text, &["wait for process 0"]);
}

/// After the job has ended, its state still shows what it waited for.
fn of_what_is_over(watched: Watched) {
    let Watched { folder, mut running, .. } = watched;
    running.iter().for_each(|running| running.signal(Signal::SIGTERM));
    running.drain(..).for_each(|running| {
        running.end().code(143);
    });
    let state = folder.path().join("state");
    assert!(!state.join("WATCHED_AT").exists());
    let line = format!("why {} --window {}", state.display(), END + 3_600_000);
    let said = run(TIDEGATE, line.split_whitespace());
    check_contains(said.code(1).stdout(), &["partition 0 of transactions", "partition 2 of transactions"]);
    check_contains(&said.stderr, &["no process has it"]);
}

/// Returns a row of a view's answer: holder, balance, diff.
fn balance(row: &serde_json::Value) -> (String, i64, i64) {
    let holder = row["holder"].as_str().unwrap().to_owned();
    (holder, row["balance_cents"].as_i64().unwrap(), row["diff"].as_i64().unwrap())
}

/// Returns the epoch of an answer, and its balances by holder; fails unless they add up to 0.
fn balances(answer: &str) -> (u64, BTreeMap<String, i64>) {
    let answer: serde_json::Value = serde_json::from_str(answer).unwrap();
    assert_eq!(answer["view"], BALANCES);
    let rows = answer["rows"].as_array().unwrap().iter().map(balance);
    let mut balances = BTreeMap::new();
    for (holder, cents, diff) in rows {
        assert_eq!(diff, 1, "{holder}");
        assert!(balances.insert(holder, cents).is_none(), "a holder has one balance");
    }
    assert_eq!(balances.values().sum::<i64>(), 0, "at epoch {}", answer["epoch"]);
    (answer["epoch"].as_u64().unwrap(), balances)
}

#[test]
fn balances_that_are_read_add_up_to_nothing_while_records_come_and_processes_are_killed() {
    let Some(broker) = Broker::shared() else { return };
    let (topic, folder) = (broker.topic(3), tempfile::tempdir().unwrap());
    let address = format!("127.0.0.1:{}", free_ports(3));
    let produce =
        format!("produce --brokers {} --topic {topic} --generate 1000000 --rate 500 --accounts 50", broker.servers);
    let mut producing = start(TIDEGATE, produce.split_whitespace());
    let line = format!(
        "up -n 3 -- {BALANCES} --brokers {} --topic {topic} --out {{}}/out.csv --state {{}}/state --epoch 20ms \
         --http {address} --snapshot-every 200ms --progress off",
        broker.servers
    );
    let here = folder.path().to_str().unwrap();
    let mut up = start(TIDEGATE, line.split_whitespace().map(|word| word.replace("{}", here)));
    let mut last = (0, BTreeMap::new());
    for kills in 0..3 {
        let mut seen = BTreeSet::new();
        up.wait_until("balances at several epochs", |_| {
            assert!(producing.is_alive(), "the producer ended: {}", producing.stderr());
            let answer = get(&address, "/views/balances");
            let (epoch, rows) = balances(&answer.filter(|(status, _)| *status == 200)?.1);
            assert!(epoch >= last.0, "an epoch that was answered with is in all later answers, after crashes too");
            assert!(epoch == last.0 || rows.len() >= last.1.len(), "no balance goes away");
            if epoch == last.0 {
                assert_eq!(rows, last.1, "one epoch has one answer");
            } else if rows != last.1 && rows.len() > 50 {
                seen.insert(epoch);
            }
            last = (epoch, rows);
            (seen.len() >= 6).then_some(())
        });
        if kills < 2 {
            let (process, _) = crate::children::children(folder.path()).swap_remove(kills);
            nix::sys::signal::kill(process, Signal::SIGKILL).unwrap();
        }
    }
    let holder = last.1.keys().next().unwrap();
    let (status, of_key) = get(&address, &format!("/views/balances?key={holder}")).unwrap();
    let of_key: serde_json::Value = serde_json::from_str(&of_key).unwrap();
    assert_eq!((status, of_key["rows"].as_array().unwrap().len()), (200, 1));
    assert_eq!(balance(&of_key["rows"][0]).0, *holder);
    let (_, list) = get(&address, "/views").unwrap();
    assert!(list.contains(r#""view":"balances""#) && list.contains(r#""ready":true"#), "{list}");
    let (status, unknown) = get(&address, "/views/balance").unwrap();
    assert_eq!(status, 404);
    check_contains(&unknown, &["no view `balance`", "there is `balances`"]);
    changes_add_up(&address);
    producing.kill();
    up.signal(Signal::SIGTERM);
    up.end().code(143);
}

/// Reads the events of a view: the state and all changes of each epoch keep the sum at 0.
fn changes_add_up(address: &str) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let head = "GET /views/balances HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n";
    stream.write_all(head.as_bytes()).unwrap();
    let (mut lines, mut kind) = (BufReader::new(stream).lines(), String::new());
    let (mut rows, mut epochs) = (BTreeMap::<(String, i64), i64>::new(), Vec::new());
    while epochs.len() < 8 {
        let line = lines.next().unwrap().unwrap();
        if let Some(event) = line.strip_prefix("event: ") {
            kind = event.to_owned();
        }
        let Some(data) = line.strip_prefix("data: ").filter(|_| kind != "progress") else { continue };
        assert_eq!(kind, if epochs.is_empty() { "state" } else { "changes" });
        let data: serde_json::Value = serde_json::from_str(data).unwrap();
        for (holder, cents, diff) in data["rows"].as_array().unwrap().iter().map(balance) {
            *rows.entry((holder, cents)).or_default() += diff;
        }
        rows.retain(|_, count| *count != 0);
        assert!(rows.values().all(|count| *count == 1), "at {}", data["epoch"]);
        assert_eq!(rows.keys().map(|(_, cents)| cents).sum::<i64>(), 0, "at {}", data["epoch"]);
        epochs.push(data["epoch"].as_u64().unwrap());
    }
    assert!(epochs.is_sorted_by(|a, b| a < b), "{epochs:?}");
}
