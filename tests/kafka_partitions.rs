//! Topics of many partitions: what is fetched ahead stays within its budget, and no partition starves.
//!
//! It exists because each partition has a queue of its own, so that memory grows with their number unless something
//! shares it out. The broker is in this process, and so is nothing else: its memory is measured.
#![expect(clippy::unwrap_used, reason = "a panic fails the test")]

#[path = "common/drive.rs"]
mod drive;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use drive::{ReaderDriver, Tick, worker_context};
use rdkafka::config::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use tidegate::kafka;
use tidegate::source::kafka::EmbeddedBroker;
use tidegate::source::{Options, WorkerContext};

const PARTITIONS: u32 = 1_000;

fn ticks(broker: &EmbeddedBroker, topic: &str) -> kafka::Source<Tick> {
    kafka::Source::json(broker.servers(), topic).event_time(|tick: &Tick| tick.at_ms)
}

/// Sends messages of about `size` bytes, `counts` of them to each partition, in batches as small as those of a producer
/// that does not wait for more.
fn send(broker: &EmbeddedBroker, topic: &str, counts: impl Fn(u32) -> u64, size: usize) {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", broker.servers()).set("batch.size", "8192").set("linger.ms", "20");
    config.set("queue.buffering.max.messages", "2000000");
    let producer: BaseProducer = config.create().unwrap();
    let filler = "x".repeat(size);
    for partition in 0..PARTITIONS {
        for id in 0..counts(partition) {
            let text = format!(r#"{{"id":{id},"at_ms":1000000,"filler":"{filler}"}}"#);
            let mut record = BaseRecord::<(), str>::to(topic).partition(partition as i32).payload(&text);
            while let Err((_, refused)) = producer.send(record) {
                record = refused;
                producer.poll(Duration::from_millis(10));
            }
        }
        producer.poll(Duration::ZERO);
    }
    producer.flush(Duration::from_secs(60)).unwrap();
}

/// Memory of this process in use, in bytes.
fn memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

/// Returns the memory above `before` that two workers take which fetch, but of which nobody takes a record.
fn fetched_ahead(source: &kafka::Source<Tick>, before: u64) -> u64 {
    let mut workers: Vec<ReaderDriver<Tick>> = (0..2)
        .map(|worker| {
            let at = WorkerContext { worker, workers: 2, threads: 2, ..worker_context(Options::default()) };
            ReaderDriver::open_at(source, &at).unwrap()
        })
        .collect();
    for worker in &mut workers {
        worker.poll(1).unwrap();
    }
    let (begun, mut most) = (Instant::now(), 0);
    while begun.elapsed() < Duration::from_secs(6) {
        most = most.max(memory().saturating_sub(before));
        std::thread::sleep(Duration::from_millis(50));
    }
    most
}

/// One test, as both measure this process or load it.
#[test]
fn a_thousand_partitions_are_fetched_within_a_budget_and_none_starves() {
    let broker = EmbeddedBroker::start().unwrap();
    broker.create_topic("wide", PARTITIONS).unwrap();
    // 256 MB, of which a budget of 64 MiB is a part.
    send(&broker, "wide", |_| 256, 960);
    let shared = ticks(&broker, "wide");
    let before = memory();
    let most = fetched_ahead(&shared, before);
    // With as much for each partition as one of a few has.
    let apart = [
        ("queued.min.messages", "50000"),
        ("queued.max.messages.kbytes", "8192"),
        ("fetch.message.max.bytes", "1048576"),
    ];
    let without = fetched_ahead(&shared.configs(apart), before);
    println!("fetched ahead of 256 MB: {} MiB, without a budget {} MiB", most >> 20, without >> 20);
    assert!(most > 20 << 20, "nothing was fetched ahead: {most} bytes");
    assert!(most < 160 << 20, "{} MiB were fetched ahead", most >> 20);
    assert!(without > most * 3 / 2, "the measurement shows nothing: {most} and {without} bytes");

    // A partition with most of all records, and others with a few: theirs come long before its last ones.
    broker.create_topic("hot", PARTITIONS).unwrap();
    let hot = 40_000;
    send(&broker, "hot", |partition| if partition == 500 { hot } else { 5 }, 10);
    let mut driven = ReaderDriver::open(&ticks(&broker, "hot"), Options::default()).unwrap();
    let (mut seen, mut of_hot, mut others) = (0, 0, BTreeSet::new());
    driven
        .until(|driven| {
            for event in &driven.events[seen..] {
                let at = event.origin;
                match at.partition {
                    500 => of_hot += 1,
                    _ => assert!(others.insert((at.partition, at.offset)), "{at:?} came twice"),
                }
            }
            seen = driven.events.len();
            others.len() == 5 * 999
        })
        .unwrap();
    println!("{of_hot} of {hot} records of the hot partition came before the last of the others");
    assert!(of_hot < hot / 2, "{of_hot} of {hot}");
    driven.until_events(hot as usize + 5 * 999).unwrap();
}
