//! The reader of topics with a broker in this process: what it reads, what it refuses, and how it replays a journal.
//! Tests that need a real broker (transactions, outages, large records) are in `io.rs`.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tidegate::durable::journal::PartitionProgress;
use tidegate::sink::kafka::Publisher;
use tidegate::source::kafka::{self, Decode, DecodeError, EmbeddedBroker, Message, StartOffset};
use tidegate::source::{EpochInput, Options, RestoredPartition, WorkerContext};
use tidegate::time::{Epoch, EventTime};

use crate::drive::{ReaderDriver, Tick, worker_context};

fn broker(partitions: u32) -> EmbeddedBroker {
    let broker = EmbeddedBroker::start().unwrap();
    broker.create_topic("ticks", partitions).unwrap();
    broker
}

fn ticks(broker: &EmbeddedBroker) -> kafka::Source<Tick> {
    kafka::Source::json(broker.servers(), "ticks").event_time(|tick: &Tick| tick.at_ms).out_of_order(Duration::ZERO)
}

/// A publisher whose messages have the size that they are sent with.
fn publisher(broker: &EmbeddedBroker) -> Publisher {
    Publisher::open(broker.servers(), "ticks", [("compression.type", "none")], None).unwrap()
}

/// Sends ticks with different keys, so that they are spread over the partitions.
fn send(publisher: &mut Publisher, ids: std::ops::Range<u64>) {
    for id in ids {
        let text = format!(r#"{{"id":{id},"at_ms":{}}}"#, 1_000_000 + id);
        publisher.send(Some(id.to_string().as_bytes()), text.as_bytes(), Some(1_000_000)).unwrap();
    }
    publisher.flush().unwrap();
}

fn bounded() -> Options {
    Options::default().until_end(true)
}

#[test]
fn every_record_is_taken_once_in_the_order_of_its_partition_up_to_the_end_at_the_start() {
    let broker = broker(3);
    let mut publisher = publisher(&broker);
    send(&mut publisher, 0..5000);
    let mut driven = ReaderDriver::open(&ticks(&broker), bounded()).unwrap();
    send(&mut publisher, 5000..6000);
    driven.until_ended().unwrap();
    assert_eq!(driven.ids(), (0..5000).collect::<Vec<_>>());
    for partition in 0..3 {
        let offsets: Vec<u64> = driven.positions().iter().filter(|at| at.0 == partition).map(|at| at.1).collect();
        assert!(!offsets.is_empty() && offsets.iter().copied().eq(0..offsets.len() as u64), "{partition}");
    }
    assert_eq!(driven.epoch_inputs[0].1.partitions.len(), 3, "all partitions are found in the first epoch");
}

#[test]
fn workers_share_the_partitions() {
    let broker = broker(3);
    send(&mut publisher(&broker), 0..300);
    let mut all = Vec::new();
    for worker in 0..4 {
        let at = WorkerContext { worker, workers: 4, threads: 4, ..worker_context(bounded()) };
        let mut driven = ReaderDriver::open_at(&ticks(&broker), &at).unwrap();
        driven.until_ended().unwrap();
        assert!(driven.events.iter().all(|event| event.origin.partition as usize == worker));
        all.extend(driven.ids());
    }
    all.sort_unstable();
    assert_eq!(all, (0..300).collect::<Vec<_>>());
}

#[test]
fn what_is_no_record_is_rejected_with_its_place_and_reason() {
    let broker = broker(1);
    let mut publisher = publisher(&broker);
    for bad in ["", "{", r#"{"id":1}"#, r#"{"id":1,"at_ms":"x"}"#] {
        publisher.send(None, bad.as_bytes(), None).unwrap();
    }
    publisher.send(None, b"\xff", None).unwrap();
    send(&mut publisher, 7..8);
    let mut driven = ReaderDriver::open(&ticks(&broker), bounded()).unwrap();
    driven.until_ended().unwrap();
    assert_eq!(driven.positions(), [(0, 5)]);
    let rejected: Vec<_> = driven.rejects.iter().map(|reject| (reject.offset, reject.encoding.as_str())).collect();
    assert_eq!(rejected, [(0, "text"), (1, "text"), (2, "text"), (3, "text"), (4, "hex")]);
    assert!(driven.rejects[2].reason.contains("missing field `at_ms`"), "{}", driven.rejects[2].reason);
}

#[test]
fn the_latest_start_is_an_offset_in_the_journal() {
    let broker = broker(1);
    let mut publisher = publisher(&broker);
    send(&mut publisher, 0..10);
    let mut driven = ReaderDriver::open(&ticks(&broker).from(StartOffset::Latest), Options::default()).unwrap();
    send(&mut publisher, 10..15);
    driven.until_events(5).unwrap();
    assert_eq!(driven.ids(), (10..15).collect::<Vec<_>>());
    assert_eq!(driven.epoch_inputs[0].1.partitions[0].start_offset, Some(10));
}

#[test]
fn a_journal_is_repeated_epoch_by_epoch_and_reading_goes_on_behind_it() {
    let broker = broker(2);
    let mut publisher = publisher(&broker);
    send(&mut publisher, 0..1000);
    let mut first = ReaderDriver::open(&ticks(&broker), Options::default()).unwrap();
    let mut sizes = Vec::new();
    while first.events.len() < 700 {
        for _ in 0..20 {
            first.poll(5).unwrap();
        }
        first.commit_epoch();
        sizes.push(first.events.len());
    }
    send(&mut publisher, 1000..1200);
    let mut second = ReaderDriver::open(&ticks(&broker), Options::default()).unwrap();
    for ((epoch, binding), size) in first.epoch_inputs.iter().zip(sizes) {
        second.replay(*epoch, &binding.partitions).unwrap();
        assert_eq!(second.events.len(), size, "epoch {epoch}");
        assert_eq!(second.epoch_inputs.last().unwrap().1, *binding, "epoch {epoch}");
    }
    assert_eq!(second.positions().len(), first.positions().len());
    second.until_events(1200).unwrap();
    assert_eq!(second.ids(), (0..1200).collect::<Vec<_>>());
}

/// A decoder of ticks, those of odd ids only while `knows_odd` is set, as a schema registry may know an id later or lose it.
#[derive(Clone, Default)]
struct ScriptedDecoder {
    knows_odd: Arc<AtomicBool>,
}

impl Decode<Tick> for ScriptedDecoder {
    fn decode(&self, message: &Message<'_>) -> Result<Option<Tick>, DecodeError> {
        let tick: Tick = serde_json::from_slice(message.value().unwrap()).unwrap();
        match tick.id.is_multiple_of(2) || self.knows_odd.load(Ordering::Relaxed) {
            true => Ok(Some(tick)),
            false => Err(DecodeError::RejectedForNow(format!("{} is odd", tick.id))),
        }
    }
}

#[test]
fn what_was_rejected_for_now_is_rejected_at_its_replay_and_what_was_accepted_is_not() {
    let broker = broker(2);
    let mut publisher = publisher(&broker);
    send(&mut publisher, 0..100);
    let decoder = ScriptedDecoder::default();
    let source = || {
        let topic = kafka::Source::new(broker.servers(), "ticks", decoder.clone());
        topic.event_time(|tick: &Tick| tick.at_ms).out_of_order(Duration::ZERO)
    };
    let mut first = ReaderDriver::open(&source(), Options::default()).unwrap();
    let begun = Instant::now();
    while first.events.len() + first.rejects.len() < 100 {
        assert!(begun.elapsed() < Duration::from_secs(30), "it does not read");
        first.poll(5).unwrap();
    }
    first.commit_epoch();
    let evens: Vec<_> = (0..100).step_by(2).collect();
    assert_eq!(first.ids(), evens);
    let offsets = |driven: &ReaderDriver<Tick>| {
        let offsets = driven.rejects.iter().map(|reject| (reject.partition, reject.offset));
        offsets.collect::<BTreeSet<_>>()
    };
    let rejected = offsets(&first);
    let named = first.epoch_inputs.iter().flat_map(|(_, input)| &input.partitions);
    let named = named.flat_map(|bound| bound.rejected_for_now.iter().map(|offset| (bound.partition, *offset)));
    assert_eq!((named.collect::<BTreeSet<_>>(), rejected.len()), (rejected.clone(), 50));
    let replay = |journal: &[(Epoch, EpochInput)]| {
        let mut driven = ReaderDriver::open(&source(), Options::default()).unwrap();
        let replayed = journal.iter().try_for_each(|(epoch, input)| driven.replay(*epoch, &input.partitions));
        replayed.map(|()| driven)
    };
    // All of them can be decoded by now: a replay does not, and what comes after it is decoded.
    decoder.knows_odd.store(true, Ordering::Relaxed);
    let mut second = replay(&first.epoch_inputs).unwrap();
    assert_eq!((second.ids(), offsets(&second)), (evens, rejected));
    assert_eq!(second.epoch_inputs, first.epoch_inputs);
    send(&mut publisher, 100..110);
    second.until_events(60).unwrap();
    second.commit_epoch();
    // Those that were decoded cannot be any more.
    decoder.knows_odd.store(false, Ordering::Relaxed);
    let error = replay(&second.epoch_inputs).map(drop).unwrap_err().to_string();
    assert!(
        error.starts_with("a message that was decoded cannot be decoded any more (topic ticks, partition "),
        "{error}"
    );
    assert!(error.ends_with("is odd; register its schema again, and start again"), "{error}");
}

#[test]
fn a_journal_over_a_topic_that_lost_its_records_is_refused() {
    let broker = broker(1);
    send(&mut publisher(&broker), 0..10);
    let mut first = ReaderDriver::open(&ticks(&broker), Options::default()).unwrap();
    first.until_events(10).unwrap();
    let mut bounds = first.epoch_inputs.iter().flat_map(|(_, binding)| binding.partitions.clone()).collect::<Vec<_>>();
    bounds[0].next_offset = 11;
    let mut second = ReaderDriver::open(&ticks(&broker), Options::default()).unwrap();
    let error = second.replay(first.epoch_inputs[0].0, &bounds[..1]).unwrap_err().to_string();
    assert!(error.contains("partition 0") && error.contains("ends at offset 10"), "{error}");
}

/// The broker drops the oldest records before the reader has read them.
#[test]
fn records_that_are_dropped_while_they_are_still_to_be_read_end_the_job() {
    let broker = broker(1);
    let mut publisher = publisher(&broker);
    send(&mut publisher, 0..20);
    let mut driven = ReaderDriver::open(&ticks(&broker), Options::default()).unwrap();
    let filler = "x".repeat(100_000);
    for id in 20..200 {
        let text = format!(r#"{{"id":{id},"at_ms":{},"filler":"{filler}"}}"#, 1_000_000 + id);
        publisher.send(None, text.as_bytes(), Some(1_000_000)).unwrap();
    }
    publisher.flush().unwrap();
    let progress = PartitionProgress {
        source: "s".into(),
        partition: 0,
        start_offset: None,
        next_offset: 10,
        watermark: EventTime::from_millis(1_000_009),
        idle: false,
        end_offset: None,
        ended: false,
        check: None,
        values: None,
        topic: None,
        rejected_for_now: Vec::new(),
    };
    let ended = driven
        .resume(Epoch(2), &[RestoredPartition { progress, activation_watermark: EventTime::MIN }])
        .and_then(|()| driven.until_events(1));
    let error = ended.expect_err("records 10 to 19 are gone").to_string();
    assert!(error.contains("records that were still to be read are gone") && error.contains("partition 0"), "{error}");
    assert!(driven.events.is_empty());
}

#[test]
fn a_partition_ahead_of_the_stream_rests_and_loses_nothing() {
    let broker = broker(2);
    let mut publisher = publisher(&broker);
    send(&mut publisher, 0..20_000);
    let options = Options::default().max_drift(Duration::from_secs(1));
    let mut driven = ReaderDriver::open(&ticks(&broker), options).unwrap();
    driven.view.publish(driven.epoch, EventTime::from_millis(1_000_000));
    driven.for_a_while(Duration::from_millis(500)).unwrap();
    // Each partition stops at the first record that is more than a second ahead.
    let resting = driven.events.len();
    assert!((1000..=1010).contains(&resting), "{resting}");
    for watermark in [1_005_000, 1_012_000, 1_030_000] {
        driven.view.publish(driven.epoch, EventTime::from_millis(watermark));
        driven.for_a_while(Duration::from_millis(200)).unwrap();
    }
    assert_eq!(driven.ids(), (0..20_000).collect::<Vec<_>>());
}

#[test]
fn a_partition_is_idle_after_its_end_was_reported_throughout_the_timeout() {
    let broker = broker(2);
    let mut publisher = publisher(&broker);
    send(&mut publisher, 0..100);
    let options = Options::default().idle_timeout(Duration::from_millis(1500));
    let mut driven = ReaderDriver::open(&ticks(&broker), options).unwrap();
    driven.until_events(100).unwrap();
    let begun = Instant::now();
    driven.until(|driven| driven.epoch_inputs.last().unwrap().1.watermark.least.is_none()).unwrap();
    assert!(begun.elapsed() >= Duration::from_millis(1500), "{:?}", begun.elapsed());
    // A record wakes its partition.
    send(&mut publisher, 100..101);
    driven.until(|driven| driven.epoch_inputs.last().unwrap().1.watermark.activated.len() == 1).unwrap();
    // A topic may have an idle timeout of its own.
    let topic = ticks(&broker).idle_after(Duration::from_millis(700));
    let options = Options::default().idle_timeout(Duration::from_secs(3600));
    let mut driven = ReaderDriver::open(&topic, options).unwrap();
    driven.until_events(101).unwrap();
    driven.until(|driven| driven.epoch_inputs.last().unwrap().1.watermark.least.is_none()).unwrap();
}

#[test]
fn a_pause_in_polling_or_an_outage_is_no_idleness() {
    let broker = broker(1);
    send(&mut publisher(&broker), 0..10);
    // Twice as long as it is polled at a time: how soon an outage is noticed depends on the machine's load.
    let options = Options::default().idle_timeout(Duration::from_secs(4));
    let mut driven = ReaderDriver::open(&ticks(&broker), options).unwrap();
    driven.until_events(10).unwrap();
    driven.for_a_while(Duration::from_secs(2)).unwrap();
    std::thread::sleep(Duration::from_millis(1200));
    driven.for_a_while(Duration::from_secs(2)).unwrap();
    assert!(driven.epoch_inputs.last().unwrap().1.watermark.least.is_some(), "idle though nobody listened");
    let mut idler = ReaderDriver::open(&ticks(&broker), Options::default()).unwrap();
    idler.until_events(10).unwrap();
    broker.set_reachable(false).unwrap();
    driven.for_a_while(Duration::from_secs(5)).unwrap();
    assert!(driven.epoch_inputs.last().unwrap().1.watermark.least.is_some(), "idle though no broker was there");
    // An unreachable broker does not delay the end of a reader, or the failure of another one.
    let begun = Instant::now();
    drop(idler);
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    let begun = Instant::now();
    let other = ReaderDriver::open(&ticks(&broker), Options::default());
    assert!(other.is_err() && begun.elapsed() < Duration::from_secs(13), "{:?}", begun.elapsed());
    broker.set_reachable(true).unwrap();
    driven.until(|driven| driven.epoch_inputs.last().unwrap().1.watermark.least.is_none()).unwrap();
}

#[test]
fn properties_that_correctness_needs_are_refused() {
    let broker = broker(1);
    for (key, value) in [("isolation.level", "read_uncommitted"), ("enable.auto.commit", "true"), ("no.such", "1")] {
        let error = ticks(&broker).config(key, value).clone();
        let error = ReaderDriver::open(&error, Options::default()).err().unwrap();
        assert!(error.exit_code() == 2 && error.to_string().contains(key), "{error}");
    }
}

#[test]
fn no_broker_is_an_error_that_names_it_within_ten_seconds() {
    let begun = Instant::now();
    let topic = kafka::Source::json("127.0.0.1:1", "ticks").event_time(|tick: &Tick| tick.at_ms);
    let error = ReaderDriver::open(&topic, Options::default()).err().unwrap().to_string();
    assert!(error.contains("127.0.0.1:1") && error.contains("Connection refused"), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(12), "{:?}", begun.elapsed());
}

#[test]
fn made_up_transactions_are_repeated_from_a_journal() {
    use tidegate::source::generator::{Generator, GeneratorSource};
    let source = GeneratorSource::new(Generator::new(5), 1001).partitions(3);
    let mut first = ReaderDriver::open(&source, Options::default()).unwrap();
    for _ in 0..4 {
        first.poll(100).unwrap();
        first.commit_epoch();
    }
    let mut second = ReaderDriver::open(&source, Options::default()).unwrap();
    for (epoch, binding) in &first.epoch_inputs {
        second.replay(*epoch, &binding.partitions).unwrap();
        assert_eq!(second.epoch_inputs.last().unwrap().1, *binding);
    }
    second.until_ended().unwrap();
    let mut ids: Vec<u64> = second.events.iter().map(|event| event.data.id).collect();
    ids.sort_unstable();
    assert_eq!(ids, (0..1001).collect::<Vec<_>>());
}
