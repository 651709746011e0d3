//! `produce` and `consume` against a real broker: what goes in comes out, once, whatever is killed meanwhile.
#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

#[path = "common/broker.rs"]
mod broker;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use broker::Broker;
use clap::{CommandFactory, Parser};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tidegate::Result;
use tidegate::cli::consume::{ConsumeArgs, consume};
use tidegate::cli::produce::{ProduceArgs, produce};
use tidegate::source::generator::{Generator, Transaction};

#[derive(Debug, Parser)]
enum Tool {
    Produce(ProduceArgs),
    Consume(ConsumeArgs),
}

/// Runs the tool as typed.
fn run(line: &str) -> Result<u8> {
    match Tool::try_parse_from(std::iter::once("tidegate").chain(line.split_whitespace())).unwrap() {
        Tool::Produce(args) => produce(&args),
        Tool::Consume(args) => consume(&args),
    }
}

/// The rows of a copy by id, each of which must be there once.
fn copied(path: &Path) -> BTreeMap<u64, Transaction> {
    let mut rows = BTreeMap::new();
    for row in csv::Reader::from_path(path).unwrap().deserialize() {
        let row: Transaction = row.unwrap();
        assert!(rows.insert(row.id, row.clone()).is_none(), "{row:?} is there twice");
    }
    rows
}

fn generated(seed: u64, count: u64) -> BTreeMap<u64, Transaction> {
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
    assert_eq!(run(&format!("produce --brokers {servers} --generate 30000 --start-ms 5000 --seed 4")).unwrap(), 0);
    for sync in ["", "--sync --kafka-config fetch.wait.max.ms=100"] {
        // Syncs of thousands of messages take long: the synced copy is of a small topic.
        let topic = if sync.is_empty() { "transaction" } else { "small" };
        if !sync.is_empty() {
            let line = format!("produce --brokers {servers} --topic small --generate 200 --start-ms 5000 --seed 4");
            run(&line).unwrap();
        }
        let out = folder.path().join("copy.csv");
        let line = format!("consume --brokers {servers} --topic {topic} --out {here}/copy.csv --until-end {sync}");
        assert_eq!(run(&line).unwrap(), 0);
        assert_eq!(copied(&out), generated(4, if sync.is_empty() { 30_000 } else { 200 }));
        assert!(
            std::fs::read_to_string(&out).unwrap().starts_with("id,account,merchant,amount_cents,currency,at_ms\n")
        );
    }
    // The copy is input again, as is NDJSON of it.
    let line = format!("produce --brokers {servers} --topic again --partitions 1 --csv {here}/copy.csv");
    assert_eq!(run(&line).unwrap(), 0);
    let ndjson: String = generated(4, 200).values().map(|row| serde_json::to_string(row).unwrap() + "\n").collect();
    std::fs::write(folder.path().join("rows.ndjson"), ndjson).unwrap();
    run(&format!("produce --brokers {servers} --topic again-json --ndjson {here}/rows.ndjson")).unwrap();
    for topic in ["again", "again-json"] {
        run(&format!("consume --brokers {servers} --topic {topic} --out {here}/{topic}.csv --until-end")).unwrap();
        assert_eq!(copied(&folder.path().join(format!("{topic}.csv"))), generated(4, 200));
    }
}

#[test]
fn rows_and_messages_that_are_no_transactions_are_counted_and_told() {
    let Some(broker) = Broker::shared() else { return };
    let folder = tempfile::tempdir().unwrap();
    let (servers, here) = (&broker.servers, folder.path().display());
    let csv = "extra,id,account,merchant,amount_cents,currency,at_ms\n\
        x,1,a,m,5,EUR,7\nx,-2,a,m,5,EUR,7\nx,3,a\nx,4,a,m,-5,EUR,-7\n";
    std::fs::write(folder.path().join("in.csv"), csv).unwrap();
    assert_eq!(run(&format!("produce --brokers {servers} --topic bad --csv {here}/in.csv")).unwrap(), 1);
    let mut publisher = tidegate::sink::kafka::Publisher::open(servers, "bad", [], None).unwrap();
    publisher.send(None, b"{", None).unwrap();
    publisher.settle().unwrap();
    let line =
        format!("consume --brokers {servers} --topic bad --out {here}/o.csv --until-end --rejects {here}/r.ndjson");
    assert_eq!(run(&line).unwrap(), 0);
    assert_eq!(copied(&folder.path().join("o.csv")).into_keys().collect::<Vec<_>>(), [1, 4]);
    let rejects = std::fs::read_to_string(folder.path().join("r.ndjson")).unwrap();
    assert!(rejects.lines().count() == 1 && rejects.contains(r#""record":"{""#), "{rejects}");
    std::fs::write(folder.path().join("in.csv"), "id,account\n1,a\n").unwrap();
    let error = run(&format!("produce --brokers {servers} --topic bad --csv {here}/in.csv")).unwrap_err().to_string();
    assert!(error.contains("in.csv") && error.contains("lacks merchant, amount_cents"), "{error}");
}

#[test]
fn the_rate_is_kept_and_event_times_follow_the_clock() {
    let Some(broker) = Broker::shared() else { return };
    let folder = tempfile::tempdir().unwrap();
    let (servers, here) = (&broker.servers, folder.path().display());
    let before = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as i64;
    let begun = Instant::now();
    run(&format!("produce --brokers {servers} --topic slow --generate 500 --rate 250")).unwrap();
    let took = begun.elapsed();
    assert!(took > Duration::from_millis(1990) && took < Duration::from_secs(6), "{took:?}");
    run(&format!("consume --brokers {servers} --topic slow --out {here}/slow.csv --until-end")).unwrap();
    let rows = copied(&folder.path().join("slow.csv"));
    let (least, greatest) = (rows[&0].at_ms, rows.values().map(|row| row.at_ms).max().unwrap());
    assert!(least > before - 2000 && greatest - before > 1800 && greatest - before < 6000, "{least} {greatest}");
}

/// Not a test: what `spawn` runs in a process of its own.
#[test]
#[ignore = "run by another test, in a process of its own"]
fn child() {
    let Ok(line) = std::env::var("TIDEGATE_CHILD") else { return };
    std::process::exit(i32::from(run(&line).unwrap()));
}

/// The tool at work in a process of its own.
fn spawn(line: &str) -> Child {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--ignored", "--exact", "child"]).env("TIDEGATE_CHILD", line).stdout(Stdio::null());
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
    std::thread::sleep(Duration::from_secs(2));
    for (child, signal, code) in [(&mut consumer, Signal::SIGTERM, 143), (&mut producer, Signal::SIGINT, 130)] {
        kill(Pid::from_raw(child.id() as i32), signal).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(code));
    }
    let first = copied(&folder.path().join("copy.csv")).len();
    assert_eq!(run(&format!("{copy} --until-end")).unwrap(), 0);
    let rows = copied(&folder.path().join("copy.csv"));
    assert!(first > 0 && rows.len() > first, "{first} of {}", rows.len());
    assert!(rows.keys().copied().eq(0..rows.len() as u64));
}

/// Runs the tool again and again, killing it each time when its copy has grown by so many bytes, until it comes to its
/// end.
fn killed(line: &str, copy: &Path, step: u64) -> u32 {
    let length = || std::fs::metadata(copy).map_or(0, |file| file.len());
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
        // Somewhere in what follows on that: writing on, syncing, recording the position.
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
    let folder = tempfile::tempdir().unwrap();
    let (servers, here) = (&broker.servers, folder.path().display());
    for (topic, count, sync, step) in [("many", 300_000, "", 2_000_000), ("few", 400, "--sync", 2_000)] {
        let line = format!("produce --brokers {servers} --topic {topic} --generate {count} --start-ms 5000 --seed 9");
        run(&line).unwrap();
        let line = format!(
            "consume --brokers {servers} --topic {topic} --out {here}/{topic}.csv --state {here}/{topic} --until-end {sync}"
        );
        let kills = killed(&line, &folder.path().join(format!("{topic}.csv")), step);
        assert!(kills >= 3, "it was killed {kills} times only");
        assert_eq!(copied(&folder.path().join(format!("{topic}.csv"))), generated(9, count));
        // What comes later is added.
        let more = format!("produce --brokers {servers} --topic {topic} --generate 10 --start-ms 5000 --first-id");
        run(&format!("{more} {count}")).unwrap();
        assert_eq!(run(&line).unwrap(), 0);
        assert_eq!(copied(&folder.path().join(format!("{topic}.csv"))).len() as u64, count + 10);
    }
}
