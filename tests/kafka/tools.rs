//! `produce` and `consume` with a real broker: every message arrives once, whatever is killed meanwhile, and however
//! many processes produce and consume.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use clap::{CommandFactory, Parser};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use tidegate::Result;
use tidegate::cli::consume::{ConsumeArgs, consume};
use tidegate::cli::produce::{ProduceArgs, produce};
use tidegate::source::generator::{DISORDER, Generator, Transaction};

use crate::broker::Broker;
use crate::children::{children, write_hosts};
use crate::run;
use crate::run::{Running, check_contains, start};

#[derive(Debug, Parser)]
enum Tool {
    Produce(Box<ProduceArgs>),
    Consume(Box<ConsumeArgs>),
}

/// Runs the tool with a command line, in this process.
pub(crate) fn tool(line: &str) -> Result<u8> {
    match Tool::try_parse_from(std::iter::once("tidegate").chain(line.split_whitespace())).unwrap() {
        Tool::Produce(args) => produce(&args),
        Tool::Consume(args) => consume(&args),
    }
}

/// Returns the rows of a copy by id; fails if a row is there twice.
pub(crate) fn copied(path: &Path) -> BTreeMap<u64, Transaction> {
    let mut rows = BTreeMap::new();
    for row in csv::Reader::from_path(path).unwrap().deserialize() {
        let row: Transaction = row.unwrap();
        assert!(rows.insert(row.id, row.clone()).is_none(), "{row:?} is there twice");
    }
    rows
}

/// Returns the time in milliseconds since 1970.
fn now_ms() -> i64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as i64
}

pub(crate) fn generated(seed: u64, count: u64) -> BTreeMap<u64, Transaction> {
    Generator::new(seed).start_ms(5000).take(count as usize).map(|row| (row.id, row)).collect()
}

#[test]
fn the_command_line_is_sound() {
    Tool::command().debug_assert();
    for bad in [
        "produce --brokers b",
        "produce --brokers b --csv f --generate 3",
        "produce --brokers b --generate 3 --rate 0",
        "produce --brokers b --csv f --seed 3",
        "produce --brokers b --csv f --delimiter ab",
        "produce --brokers b --lines f --whole g",
        "produce --brokers b --lines f --generate 3",
        "produce --brokers b --generate 3 --message acme.A",
        "produce --brokers b --generate 3 --kafka-config x",
        "consume --brokers b",
    ] {
        assert!(Tool::try_parse_from(std::iter::once("tidegate").chain(bad.split(' '))).is_err(), "{bad}");
    }
    for command in Tool::command().get_subcommands_mut() {
        assert!(command.render_long_help().to_string().contains("Examples:"));
    }
}

#[test]
fn what_is_produced_is_consumed() {
    let Some(broker) = Broker::shared() else { return };
    let folder = tempfile::tempdir().unwrap();
    let (servers, here) = (&broker.servers, folder.path().display());
    assert_eq!(tool(&format!("produce --brokers {servers} --generate 30000 --start-ms 5000 --seed 4")).unwrap(), 0);
    for sync in ["", "--sync --kafka-config fetch.wait.max.ms=100"] {
        // Syncs of thousands of messages take long, so the synced copy is of a small topic.
        let topic = if sync.is_empty() { "transaction" } else { "small" };
        if !sync.is_empty() {
            let line = format!("produce --brokers {servers} --topic small --generate 200 --start-ms 5000 --seed 4");
            tool(&line).unwrap();
        }
        let out = folder.path().join("copy.csv");
        let line = format!("consume --brokers {servers} --topic {topic} --out {here}/copy.csv --until-end {sync}");
        assert_eq!(tool(&line).unwrap(), 0);
        assert_eq!(copied(&out), generated(4, if sync.is_empty() { 30_000 } else { 200 }));
        assert!(fs::read_to_string(&out).unwrap().starts_with("id,account,merchant,amount_cents,currency,at_ms\n"));
    }
    // The copy is input again, as is NDJSON of it.
    let line = format!("produce --brokers {servers} --topic again --partitions 1 --csv {here}/copy.csv");
    assert_eq!(tool(&line).unwrap(), 0);
    let ndjson: String = generated(4, 200).values().map(|row| serde_json::to_string(row).unwrap() + "\n").collect();
    fs::write(folder.path().join("rows.ndjson"), ndjson).unwrap();
    tool(&format!("produce --brokers {servers} --topic again-json --ndjson {here}/rows.ndjson")).unwrap();
    // A byte order mark is no part of a record, and the file name of a copy selects its format.
    fs::write(
        folder.path().join("marked.ndjson"),
        format!("\u{feff}{}", fs::read_to_string(folder.path().join("rows.ndjson")).unwrap()),
    )
    .unwrap();
    assert_eq!(tool(&format!("produce --brokers {servers} --topic marked --ndjson {here}/marked.ndjson")).unwrap(), 0);
    fs::write(
        folder.path().join("marked.csv"),
        format!("\u{feff}{}", fs::read_to_string(folder.path().join("copy.csv")).unwrap()),
    )
    .unwrap();
    assert_eq!(tool(&format!("produce --brokers {servers} --topic marked --csv {here}/marked.csv")).unwrap(), 0);
    tool(&format!("consume --brokers {servers} --topic marked --out {here}/marked-copy.ndjson --until-end")).unwrap();
    let text = fs::read_to_string(folder.path().join("marked-copy.ndjson")).unwrap();
    let ids = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["id"].as_u64().unwrap());
    let mut ids: Vec<_> = ids.collect();
    ids.sort_unstable();
    assert_eq!(ids, (0..400).map(|at| at / 2).collect::<Vec<_>>());
    let error =
        tool(&format!("consume --brokers {servers} --topic marked --out {here}/x --rejects {here}/x")).unwrap_err();
    assert!(error.exit_code() == 2 && error.to_string().contains("are one file"), "{error}");
    for topic in ["again", "again-json"] {
        tool(&format!("consume --brokers {servers} --topic {topic} --out {here}/{topic}.csv --until-end")).unwrap();
        assert_eq!(copied(&folder.path().join(format!("{topic}.csv"))), generated(4, 200));
    }
    // Whatever is between the fields, the copy is input again.
    for (number, delimiter) in [";", "tab", "|"].into_iter().enumerate() {
        let out = format!("--out {here}/by-{number}.csv --out-delimiter {delimiter} --until-end");
        tool(&format!("consume --brokers {servers} --topic again-json {out}")).unwrap();
        let text = fs::read_to_string(folder.path().join(format!("by-{number}.csv"))).unwrap();
        let between = if delimiter == "tab" { "\t" } else { delimiter };
        assert!(text.starts_with(&["id", "account", "merchant", "amount_cents"].join(between)), "{text}");
        let again = format!("--topic by-{number} --csv {here}/by-{number}.csv");
        tool(&format!("produce --brokers {servers} {again} --delimiter {delimiter}")).unwrap();
        tool(&format!("consume --brokers {servers} --topic by-{number} --out {here}/by.csv --until-end")).unwrap();
        assert_eq!(copied(&folder.path().join("by.csv")), generated(4, 200));
        let error = tool(&format!("produce --brokers {servers} {again}")).unwrap_err().to_string();
        assert!(error.contains("lacks the columns `id`") && error.contains("--delimiter"), "{error}");
    }
}

#[test]
fn rows_and_messages_that_are_no_transactions_are_counted_and_told() {
    let Some(broker) = Broker::shared() else { return };
    let folder = tempfile::tempdir().unwrap();
    let (servers, here) = (&broker.servers, folder.path().display());
    let csv = "extra,id,account,merchant,amount_cents,currency,at_ms\n\
        x,1,a,m,5,EUR,7\nx,-2,a,m,5,EUR,7\nx,3,a\nx,4,a,m,-5,EUR,-7\n";
    fs::write(folder.path().join("in.csv"), csv).unwrap();
    assert_eq!(tool(&format!("produce --brokers {servers} --topic bad --csv {here}/in.csv")).unwrap(), 1);
    let mut publisher = tidegate::sink::kafka::Publisher::open(servers, "bad", [], None).unwrap();
    publisher.send(None, b"{", None).unwrap();
    publisher.flush().unwrap();
    let line =
        format!("consume --brokers {servers} --topic bad --out {here}/o.csv --until-end --rejects {here}/r.ndjson");
    assert_eq!(tool(&line).unwrap(), 0);
    assert_eq!(copied(&folder.path().join("o.csv")).into_keys().collect::<Vec<_>>(), [1, 4]);
    let rejects = fs::read_to_string(folder.path().join("r.ndjson")).unwrap();
    assert!(rejects.lines().count() == 1 && rejects.contains(r#""record":"{""#), "{rejects}");
    fs::write(folder.path().join("in.csv"), "id,account\n1,a\n").unwrap();
    let error = tool(&format!("produce --brokers {servers} --topic bad --csv {here}/in.csv")).unwrap_err().to_string();
    assert!(error.contains("in.csv") && error.contains("lacks the columns `merchant`, `amount_cents`"), "{error}");
}

#[test]
fn the_rate_is_kept_and_event_times_follow_the_clock() {
    let Some(broker) = Broker::shared() else { return };
    let folder = tempfile::tempdir().unwrap();
    let (servers, here) = (&broker.servers, folder.path().display());
    let before = now_ms();
    let begun = Instant::now();
    tool(&format!("produce --brokers {servers} --topic slow --generate 500 --rate 250")).unwrap();
    let took = begun.elapsed();
    assert!(took > Duration::from_millis(1990) && took < Duration::from_secs(6), "{took:?}");
    tool(&format!("consume --brokers {servers} --topic slow --out {here}/slow.csv --until-end")).unwrap();
    let rows = copied(&folder.path().join("slow.csv"));
    let (least, greatest) = (rows[&0].at_ms, rows.values().map(|row| row.at_ms).max().unwrap());
    assert!(least > before - 2000 && greatest - before > 1800 && greatest - before < 6000, "{least} {greatest}");
}

/// Not a test: the child that `spawn` runs.
#[test]
#[ignore = "run by another test, in a process of its own"]
fn child() {
    let Ok(line) = std::env::var("TIDEGATE_CHILD") else { return };
    std::process::exit(i32::from(tool(&line).unwrap()));
}

/// Runs the tool in a process of its own.
fn spawn(line: &str) -> Child {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child
        .args(["--ignored", "--exact", "tools::child", "--nocapture"])
        .env("TIDEGATE_CHILD", line)
        .stdout(Stdio::null());
    child.spawn().unwrap()
}

#[test]
fn a_signal_ends_the_tools_cleanly() {
    let Some(broker) = Broker::shared() else { return };
    let folder = tempfile::tempdir().unwrap();
    let (servers, here) = (&broker.servers, folder.path().display());
    let produce = format!("produce --brokers {servers} --topic endless --generate 1000000 --rate 500");
    let copy = format!("consume --brokers {servers} --topic endless --out {here}/copy.csv --state {here}/state");
    let mut producer = spawn(&produce);
    std::thread::sleep(Duration::from_secs(2));
    let mut consumer = spawn(&copy);
    let begun = Instant::now();
    while fs::metadata(folder.path().join("copy.csv")).map_or(0, |file| file.len()) < 1_000 {
        assert!(begun.elapsed() < Duration::from_secs(60), "nothing is copied");
        std::thread::sleep(Duration::from_millis(50));
    }
    for (child, signal, code) in [(&mut consumer, Signal::SIGTERM, 143), (&mut producer, Signal::SIGINT, 130)] {
        kill(Pid::from_raw(child.id() as i32), signal).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(code));
    }
    let first = copied(&folder.path().join("copy.csv")).len();
    assert_eq!(tool(&format!("{copy} --until-end")).unwrap(), 0);
    let rows = copied(&folder.path().join("copy.csv"));
    assert!(first > 0 && rows.len() > first, "{first} of {}", rows.len());
    assert!(rows.keys().copied().eq(0..rows.len() as u64));
}

/// Runs the tool repeatedly, and kills it each time when its copy has grown by `step` bytes, until it completes;
/// returns the number of kills.
fn killed(line: &str, copy: &Path, step: u64) -> u32 {
    let length = || fs::metadata(copy).map_or(0, |file| file.len());
    let mut kills = 0;
    loop {
        let enough = length() + step;
        let mut child = spawn(line);
        while length() < enough {
            if let Some(status) = child.try_wait().unwrap() {
                assert!(status.success(), "{status}");
                return kills;
            }
            std::thread::sleep(Duration::from_micros(500));
        }
        // At some point of what follows: writing, syncing, recording the position.
        std::thread::sleep(Duration::from_millis(u64::from(kills) % 8));
        child.kill().unwrap();
        child.wait().unwrap();
        kills += 1;
        assert!(kills < 100, "it never ends");
    }
}

#[test]
fn a_copy_has_every_message_once_across_kills() {
    let Some(broker) = Broker::shared() else { return };
    let _heavy = crate::alone_among_heavy();
    let folder = tempfile::tempdir().unwrap();
    let (servers, here) = (&broker.servers, folder.path().display());
    for (topic, count, sync, step) in [("many", 100_000, "", 700_000), ("few", 400, "--sync", 2_000)] {
        let line = format!("produce --brokers {servers} --topic {topic} --generate {count} --start-ms 5000 --seed 9");
        tool(&line).unwrap();
        let line = format!(
            "consume --brokers {servers} --topic {topic} --out {here}/{topic}.csv --state {here}/{topic} --until-end {sync}"
        );
        let kills = killed(&line, &folder.path().join(format!("{topic}.csv")), step);
        assert!(kills >= 3, "it was killed {kills} times only");
        assert_eq!(copied(&folder.path().join(format!("{topic}.csv"))), generated(9, count));
        // Later messages are added.
        let more = format!("produce --brokers {servers} --topic {topic} --generate 10 --start-ms 5000 --first-id");
        tool(&format!("{more} {count}")).unwrap();
        assert_eq!(tool(&line).unwrap(), 0);
        assert_eq!(copied(&folder.path().join(format!("{topic}.csv"))).len() as u64, count + 10);
    }
}

const TIDEGATE: &str = env!("CARGO_BIN_EXE_tidegate");

/// Copies of one topic, in a folder, made by the program that users run.
struct Copies {
    folder: TempDir,
    servers: String,
    topic: &'static str,
}

impl Copies {
    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn start(&self, line: &str) -> Running {
        start(TIDEGATE, line.split_whitespace())
    }

    /// Returns the command line of a copy with a state.
    fn line(&self, name: &str, more: &str) -> String {
        let (servers, topic, here) = (&self.servers, self.topic, self.folder.path().display());
        let line = format!("consume --brokers {servers} --topic {topic} --out {here}/{name}.csv");
        format!("{line} --state {here}/{name} --snapshot-every 200ms {more}")
    }

    /// Starts the processes of a copy that they share.
    fn group(&self, name: &str, processes: usize, more: &str) -> Vec<Running> {
        write_hosts(&self.path("hosts"), processes);
        let hosts = self.path("hosts").display().to_string();
        let shared = format!("{more} -n {processes} --hostfile {hosts} -p");
        (0..processes).map(|process| self.start(&self.line(name, &format!("{shared} {process}")))).collect()
    }

    fn length(&self, name: &str) -> u64 {
        fs::metadata(self.path(&format!("{name}.csv"))).map_or(0, |file| file.len())
    }

    /// Returns the number of complete messages in a copy.
    fn count(&self, name: &str) -> usize {
        let text = fs::read(self.path(&format!("{name}.csv"))).unwrap_or_default();
        text.iter().filter(|byte| **byte == b'\n').count().saturating_sub(1)
    }

    /// Returns the ids in a copy; fails if one is there twice.
    fn ids(&self, name: &str) -> BTreeSet<u64> {
        copied(&self.path(&format!("{name}.csv"))).into_keys().collect()
    }
}

/// Kills one of several processes when its copy has grown by so many bytes; the others must notice, and end.
fn kill_one(copies: &Copies, name: &str, mut group: Vec<Running>, victim: usize, grown: u64) {
    let enough = copies.length(name) + grown;
    group[victim].wait_until("messages", |_| (copies.length(name) > enough).then_some(()));
    group[victim].kill();
    for (process, running) in group.into_iter().enumerate() {
        let ended = running.end_or_killed();
        if process != victim {
            check_contains(ended.error(1), &[&format!("process {victim} is gone")]);
        }
    }
}

#[test]
fn two_produce_at_once_and_each_copy_has_all_of_both_once_though_its_processes_are_killed_and_change_in_number() {
    let Some(broker) = Broker::shared() else { return };
    let _heavy = crate::alone_among_heavy();
    let copies = Copies { folder: tempfile::tempdir().unwrap(), servers: broker.servers.clone(), topic: "shared" };
    broker.create(copies.topic, 3);
    let each = 20_000;
    let produce = |first: u64| {
        let (servers, topic) = (&copies.servers, copies.topic);
        let line = format!("produce --brokers {servers} --topic {topic} --generate {each} --rate 5000");
        copies.start(&format!("{line} --first-id {first}"))
    };
    let producers = [produce(0), produce(each)];
    // A copy that is independent of the group.
    let mut alone = copies.start(&copies.line("alone", ""));
    kill_one(&copies, "group", copies.group("group", 3, "-w 1"), 1, 200_000);
    let group = copies.group("group", 2, "-w 2");
    // New partitions are found and assigned.
    broker.grow(copies.topic, 5);
    let more = 2 * each..2 * each + 3_000;
    for (partition, ids) in [(3, more.start..more.start + 1_000), (4, more.start + 1_000..more.end)] {
        let rows = Generator::new(3).start_ms(5000).skip(ids.start as usize).take(ids.count());
        broker.send(copies.topic, partition, rows.map(|row| serde_json::to_string(&row).unwrap()));
    }
    kill_one(&copies, "group", group, 0, 200_000);
    let up = copies.line("group", "-w 1");
    let mut up = copies.start(&format!("up -n 3 -- {TIDEGATE} {up}"));
    let enough = copies.length("group") + 200_000;
    up.wait_until("messages", |_| (copies.length("group") > enough).then_some(()));
    let (victim, _) = children(copies.folder.path()).into_iter().find(|(_, line)| line.contains("group.csv")).unwrap();
    kill(victim, Signal::SIGKILL).unwrap();
    for (producer, first) in producers.into_iter().zip([0, each]) {
        let ended = producer.end();
        ended.code(0);
        let said = ended.stdout();
        assert!(
            said.starts_with(&format!("{each} messages to topic shared, ")) && said.ends_with("/s\n"),
            "{first} {said}"
        );
    }
    up.wait_until("all messages", |_| (copies.count("group") as u64 >= more.end).then_some(()));
    alone.wait_until("all messages", |_| (copies.count("alone") as u64 >= more.end).then_some(()));
    up.signal(Signal::SIGTERM);
    alone.signal(Signal::SIGTERM);
    let (up, alone) = (up.end(), alone.end());
    up.code(143);
    alone.code(143);
    assert!(up.stderr.contains("all are started again"), "{}", up.stderr);
    for process in 0..3 {
        let line = format!("[{process}] process {process} of 3 has read ");
        assert!(up.stderr.contains(&line), "{}", up.stderr);
    }
    assert!(alone.stdout().starts_with(&format!("{} messages to ", more.end)), "{}", alone.stdout());
    // A stopped copy is complete; a restart, alone and in a group, has nothing to add.
    let ended = copies.start(&copies.line("group", "-w 3 --until-end")).end();
    assert!(ended.code(0).stdout().starts_with("0 messages to "), "{}", ended.stdout());
    for name in ["group", "alone"] {
        assert!(copies.ids(name).into_iter().eq(0..more.end), "{name}");
    }
    // A group that starts late gets everything too; its first process has the figures of all.
    let late: Vec<_> = copies.group("late", 2, "-w 2 --until-end").into_iter().map(Running::end).collect();
    let read = late
        .iter()
        .enumerate()
        .map(|(process, ended)| ended.code(0).figures(&format!("process {process} of 2 has read "))[0]);
    let read: Vec<_> = read.collect();
    assert!(read.iter().all(|read| *read > 0) && read.iter().sum::<u64>() == more.end, "{read:?}");
    assert!(late[0].stdout().starts_with(&format!("{} messages to ", more.end)), "{}", late[0].stdout());
    assert_eq!(late[1].stdout(), "");
    assert!(copies.ids("late").into_iter().eq(0..more.end));
}

#[test]
fn a_state_that_does_not_fit_is_refused_and_left_as_it_is() {
    let Some(broker) = Broker::shared() else { return };
    let folder = tempfile::tempdir().unwrap();
    let (servers, here) = (&broker.servers, folder.path().display());
    let copy = |topic: &str, out: &str, more: &str| {
        tool(&format!("consume --brokers {servers} --topic {topic} --out {here}/{out} --until-end {more}"))
    };
    for (topic, seed) in [("fits", 1), ("other", 2)] {
        let made = format!("--generate 50 --start-ms 5000 --seed {seed} --partitions 1");
        tool(&format!("produce --brokers {servers} --topic {topic} {made}")).unwrap();
    }
    // The state of an earlier version.
    fs::create_dir(folder.path().join("old")).unwrap();
    fs::write(folder.path().join("old/position"), "TDGCOPY").unwrap();
    let error = copy("fits", "old.csv", &format!("--state {here}/old")).unwrap_err();
    check_contains(&error.to_string(), &["old/position", "an earlier version", "another --out and --state"]);
    assert!(fs::read_dir(folder.path().join("old")).unwrap().count() == 1 && !folder.path().join("old.csv").exists());

    let state = format!("--state {here}/state");
    copy("fits", "fits.csv", &state).unwrap();
    let before = fs::read(folder.path().join("fits.csv")).unwrap();
    for (topic, out, why) in
        [("fits", "other.csv", "output copy"), ("other", "fits.csv", "topic other at "), ("none", "fits.csv", "none")]
    {
        check_contains(&copy(topic, out, &state).unwrap_err().to_string(), &[why]);
        assert_eq!(fs::read(folder.path().join("fits.csv")).unwrap(), before, "{topic} {out}");
    }
    // The file of another copy is not overwritten either, unless there is no state.
    check_contains(
        &copy("fits", "fits.csv", &format!("--state {here}/new")).unwrap_err().to_string(),
        &["it belongs to the state"],
    );
    for wrong in ["--sync -w 2", "--sync -n 2", "-n 2 -p 2"] {
        assert_eq!(copy("fits", "wrong.csv", wrong).unwrap_err().exit_code(), 2, "{wrong}");
    }
    copy("fits", "fits.csv", &state).unwrap();
    assert_eq!(copied(&folder.path().join("fits.csv")), generated(1, 50));
}

#[test]
fn a_rate_that_brokers_cannot_keep_slows_producers_down() {
    const RATE: u64 = 500;
    let Some(broker) = Broker::start() else { return };
    let _heavy = crate::alone_among_heavy();
    let folder = tempfile::tempdir().unwrap();
    let (servers, here) = (&broker.servers, folder.path().display());
    let pid = fs::read_to_string(broker.data().join("broker.pid")).unwrap();
    let pid = Pid::from_raw(pid.trim().parse().unwrap());
    let line = format!("produce --brokers {servers} --topic held --generate 3500 --rate {RATE}");
    let mut producer = start(run::TIDEGATE, line.split_whitespace());
    // A broker that stops while a producer is opened is another matter.
    producer.wait_until("a topic", |producer| producer.stderr().contains("created the topic").then_some(()));
    std::thread::sleep(Duration::from_secs(2));
    kill(pid, Signal::SIGSTOP).unwrap();
    let stopped = now_ms();
    std::thread::sleep(Duration::from_secs(7));
    let resumed = now_ms();
    kill(pid, Signal::SIGCONT).unwrap();
    producer.end().code(0);
    tool(&format!("consume --brokers {servers} --topic held --out {here}/held.csv --until-end")).unwrap();
    let rows = copied(&folder.path().join("held.csv"));
    assert_eq!(rows.len(), 3500);
    let made = |from: i64, to: i64| rows.values().filter(|row| from <= row.at_ms && row.at_ms < to).count();
    assert!(made(0, stopped) > 0 && made(resumed, i64::MAX) > 0);
    // A second's worth is sent once more, and again if acknowledgements were under way. Event times are behind the time
    // at which messages are made, so the last ones before the end are of messages that were made after it.
    let (from, to) = (stopped + 2_000, resumed - DISORDER.as_millis() as i64);
    assert_eq!(made(from, to), 0, "messages were made while the brokers took none");
}

#[test]
fn messages_have_the_format_the_key_and_the_headers_that_are_asked_for_and_are_copied_with_all_that_they_have() {
    let Some(broker) = Broker::shared() else { return };
    let folder = tempfile::tempdir().unwrap();
    let (servers, here) = (&broker.servers, folder.path().display());
    tool(&format!(
        "produce --brokers {servers} --topic formed --generate 300 --seed 8 --start-ms 5000 --format csv --key merchant \
         --header origin=test --header empty= --partitions 2"
    ))
    .unwrap();
    tool(&format!(
        "consume --brokers {servers} --topic formed --format csv --metadata --out {here}/formed.csv --until-end"
    ))
    .unwrap();
    let text = fs::read_to_string(folder.path().join("formed.csv")).unwrap();
    let header = "id,account,merchant,amount_cents,currency,at_ms,topic,partition,offset,timestamp_ms,key";
    assert_eq!(text.lines().next(), Some(header));
    let expected = generated(8, 300);
    let (mut seen, mut places) = (BTreeMap::new(), BTreeSet::new());
    for row in csv::Reader::from_reader(text.as_bytes()).into_records() {
        let row = row.unwrap();
        let transaction: Transaction =
            csv::StringRecord::from(row.iter().take(6).collect::<Vec<_>>()).deserialize(None).unwrap();
        assert_eq!((&row[6], &row[10]), ("formed", &*transaction.merchant));
        assert!(places.insert((row[7].parse::<u32>().unwrap(), row[8].parse::<u64>().unwrap())), "{row:?}");
        assert!(row[9].parse::<i64>().unwrap() > 1_700_000_000_000, "{row:?}");
        seen.insert(transaction.id, transaction);
    }
    assert_eq!(seen, expected);
    assert!(places.iter().map(|(partition, _)| partition).collect::<BTreeSet<_>>().len() == 2, "both partitions");
    // A foreign reader sees key and headers.
    let consumer: rdkafka::consumer::BaseConsumer = rdkafka::config::ClientConfig::new()
        .set("bootstrap.servers", servers)
        .set("group.id", "headers")
        .create()
        .unwrap();
    let mut list = rdkafka::TopicPartitionList::new();
    for partition in 0..2 {
        list.add_partition_offset("formed", partition, rdkafka::Offset::Beginning).unwrap();
    }
    rdkafka::consumer::Consumer::assign(&consumer, &list).unwrap();
    let message = consumer.poll(Duration::from_secs(30)).unwrap().unwrap();
    let headers = rdkafka::message::Message::headers(&message).unwrap();
    let found: Vec<_> = rdkafka::message::Headers::iter(headers).map(|header| (header.key, header.value)).collect();
    assert_eq!(found, [("origin", Some(&b"test"[..])), ("empty", Some(&b""[..]))]);
    let none = format!("produce --brokers {servers} --topic other --generate 1 --format avro");
    check_contains(&tool(&none).unwrap_err().to_string(), &["needs a schema registry", "--registry URL"]);
}
