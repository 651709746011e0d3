//! Topics on a real broker: committed records are read, once, whatever happens to the broker meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::time::Duration;

use rdkafka::producer::Producer;
use tidegate::durable::journal::JournalEnds;
use tidegate::durable::journal::PartitionProgress;
use tidegate::kafka;
use tidegate::sink::kafka::Publisher;
use tidegate::sink::{Sink, SinkContext, SinkRows};
use tidegate::source::kafka::StartOffset;
use tidegate::source::{Options, RestoredPartition, Source};
use tidegate::time::{Epoch, EventTime};

use crate::broker::{Broker, send_all};
use crate::drive;
use crate::drive::{ReaderDriver, Tick};

const PATIENCE: Duration = Duration::from_secs(20);

fn ticks(broker: &Broker, topic: &str) -> kafka::Source<Tick> {
    kafka::Source::json(&broker.servers, topic).event_time(|tick: &Tick| tick.at_ms).out_of_order(Duration::ZERO)
}

fn texts(ids: Range<u64>) -> impl Iterator<Item = String> {
    ids.map(|id| format!(r#"{{"id":{id},"at_ms":{}}}"#, 1_000_000 + id))
}

fn send(broker: &Broker, topic: &str, ids: Range<u64>) {
    let mut publisher = Publisher::open(&broker.servers, topic, [], None).unwrap();
    for (id, text) in ids.clone().zip(texts(ids)) {
        publisher.send(Some(id.to_string().as_bytes()), text.as_bytes(), None).unwrap();
    }
    publisher.flush().unwrap();
}

fn bounded() -> Options {
    Options::default().until_end(true)
}

fn holds_watermark_back(driven: &ReaderDriver<Tick>) -> bool {
    driven.epoch_inputs.last().unwrap().1.watermark.least.is_some()
}

#[test]
fn aborted_records_are_never_seen_and_open_ones_hold_the_partition() {
    let Some(broker) = Broker::shared() else { return };
    let topic = broker.topic(1);
    let producer = broker.transactional("aborts");
    producer.begin_transaction().unwrap();
    send_all(&producer, &topic, texts(0..10));
    producer.commit_transaction(PATIENCE).unwrap();
    producer.begin_transaction().unwrap();
    send_all(&producer, &topic, texts(100..110));
    producer.abort_transaction(PATIENCE).unwrap();
    producer.begin_transaction().unwrap();
    send_all(&producer, &topic, texts(10..20));

    let options = Options::default().idle_timeout(Duration::from_millis(800));
    let mut driven = ReaderDriver::open(&ticks(broker, &topic), options).unwrap();
    driven.for_a_while(Duration::from_secs(4)).unwrap();
    assert_eq!(driven.ids(), (0..10).collect::<Vec<_>>());
    assert!(holds_watermark_back(&driven), "idle with a transaction open");
    producer.commit_transaction(PATIENCE).unwrap();
    driven.until(|driven| !holds_watermark_back(driven)).unwrap();
    assert_eq!(driven.ids(), (0..20).collect::<Vec<_>>());
}

#[test]
fn the_end_is_reached_behind_trailing_markers_and_before_open_transactions() {
    let Some(broker) = Broker::shared() else { return };
    let topic = broker.topic(1);
    let producer = broker.transactional("markers");
    producer.begin_transaction().unwrap();
    send_all(&producer, &topic, texts(0..10));
    producer.commit_transaction(PATIENCE).unwrap();
    producer.begin_transaction().unwrap();
    send_all(&producer, &topic, texts(10..11));
    producer.abort_transaction(PATIENCE).unwrap();
    let mut driven = ReaderDriver::open(&ticks(broker, &topic), bounded()).unwrap();
    driven.until_ended().unwrap();
    let last = driven.epoch_inputs.iter().filter_map(|(_, binding)| binding.partitions.last()).next_back().unwrap();
    // Ten records, a commit marker, an aborted record, an abort marker.
    assert_eq!((driven.ids().len(), last.next_offset, last.end_offset, last.ended), (10, 13, Some(13), true));

    // The journal of that incarnation is replayed, and is complete.
    let mut again = ReaderDriver::open(&ticks(broker, &topic), bounded()).unwrap();
    for (epoch, binding) in &driven.epoch_inputs {
        again.replay(*epoch, &binding.partitions).unwrap();
        assert_eq!(again.epoch_inputs.last().unwrap().1, *binding);
    }
    assert_eq!(again.positions(), driven.positions());
    again.poll(10).unwrap();
    assert!(again.commit_epoch().watermark.ended);

    // An open transaction at the start is not part of the topic yet.
    producer.begin_transaction().unwrap();
    send_all(&producer, &topic, texts(20..30));
    let mut bounded = ReaderDriver::open(&ticks(broker, &topic), bounded()).unwrap();
    bounded.until_ended().unwrap();
    assert_eq!(bounded.ids(), (0..10).collect::<Vec<_>>());
    producer.commit_transaction(PATIENCE).unwrap();
}

#[test]
fn a_reader_that_stops_at_the_end_reads_on_in_its_next_life() {
    let Some(broker) = Broker::shared() else { return };
    let topic = broker.topic(2);
    let producer = broker.transactional("stops");
    let transaction = |ids: Range<u64>| {
        producer.begin_transaction().unwrap();
        send_all(&producer, &topic, texts(ids));
    };
    transaction(0..10);
    producer.commit_transaction(PATIENCE).unwrap();
    transaction(10..20);
    let source = ticks(broker, &topic).stop_at_end(true);
    let mut first = ReaderDriver::open(&source, Options::default()).unwrap();
    first.until(|first| first.reader.caught_up()).unwrap();
    // Records committed, or partitions added, after the start are left for the next incarnation.
    producer.commit_transaction(PATIENCE).unwrap();
    broker.grow(&topic, 3);
    broker.send(&topic, 2, texts(20..30));
    first.for_a_while(Duration::from_millis(1500)).unwrap();
    assert_eq!(first.ids(), (0..10).collect::<Vec<_>>());
    let bounds: Vec<PartitionProgress> =
        first.epoch_inputs.iter().flat_map(|(_, binding)| binding.partitions.clone()).collect();
    assert!(bounds.iter().all(|bound| !bound.ended && bound.end_offset.is_none()), "{bounds:?}");

    let places: BTreeMap<_, _> = bounds.into_iter().map(|bound| (bound.partition, bound)).collect();
    let place = |bound: PartitionProgress| RestoredPartition {
        progress: PartitionProgress { start_offset: None, ..bound },
        activation_watermark: EventTime::MIN,
    };
    let places: Vec<_> = places.into_values().map(place).collect();
    let mut second = ReaderDriver::open(&source, Options::default()).unwrap();
    second.resume(first.epoch, &places).unwrap();
    assert!(!second.reader.caught_up());
    second.until(|second| second.reader.caught_up()).unwrap();
    assert_eq!(second.ids(), (10..30).collect::<Vec<_>>());
}

#[test]
fn from_the_latest_on_a_transaction_that_was_open_is_read() {
    let Some(broker) = Broker::shared() else { return };
    let topic = broker.topic(1);
    let producer = broker.transactional("latest");
    producer.begin_transaction().unwrap();
    send_all(&producer, &topic, texts(0..10));
    producer.commit_transaction(PATIENCE).unwrap();
    producer.begin_transaction().unwrap();
    send_all(&producer, &topic, texts(10..20));
    let mut driven = ReaderDriver::open(&ticks(broker, &topic).from(StartOffset::Latest), Options::default()).unwrap();
    driven.poll(10).unwrap();
    producer.commit_transaction(PATIENCE).unwrap();
    driven.until_events(10).unwrap();
    assert_eq!(driven.ids(), (10..20).collect::<Vec<_>>());
}

#[test]
fn partitions_that_are_added_are_read_from_their_first_record() {
    let Some(broker) = Broker::shared() else { return };
    let topic = broker.topic(1);
    send(broker, &topic, 0..100);
    let mut driven = ReaderDriver::open(&ticks(broker, &topic).from(StartOffset::Latest), Options::default()).unwrap();
    driven.poll(10).unwrap();
    driven.commit_epoch();
    broker.grow(&topic, 3);
    // The broker may need a moment to know its new partitions.
    std::thread::sleep(Duration::from_millis(500));
    send(broker, &topic, 100..400);
    driven.until_events(300).unwrap();
    assert_eq!(driven.ids(), (100..400).collect::<Vec<_>>());
    let found: Vec<_> =
        driven.epoch_inputs.iter().flat_map(|(_, b)| &b.partitions).filter_map(|b| b.start_offset).collect();
    assert_eq!(found, [100, 0, 0]);
    let woken: BTreeSet<u32> = driven
        .epoch_inputs
        .iter()
        .flat_map(|(_, b)| &b.watermark.activated)
        .map(|partition| partition.partition)
        .collect();
    assert_eq!(woken, BTreeSet::from([1, 2]), "late comers get floors");
}

#[test]
fn a_broker_that_dies_and_comes_back_costs_no_record_and_doubles_none() {
    let Some(broker) = Broker::start() else { return };
    let topic = broker.topic(3);
    send(&broker, &topic, 0..50_000);
    let options = Options::default().idle_timeout(Duration::from_secs(2));
    let mut driven = ReaderDriver::open(&ticks(&broker, &topic), options).unwrap();
    driven.until_events(20_000).unwrap();
    // A writer goes on meanwhile: messages in flight during the outage arrive once, too.
    let mut publisher = Publisher::open(&broker.servers, &topic, [], None).unwrap();
    let writer = std::thread::spawn(move || {
        for (id, text) in (50_000..58_000_u64).zip(texts(50_000..58_000)) {
            publisher.send(Some(id.to_string().as_bytes()), text.as_bytes(), None).unwrap();
            publisher.poll().unwrap();
            std::thread::sleep(Duration::from_millis(1));
        }
        publisher.flush().unwrap();
        assert_eq!(publisher.delivered(), 8000);
    });
    std::thread::sleep(Duration::from_millis(500));
    broker.kill();
    driven.for_a_while(Duration::from_secs(4)).unwrap();
    assert!(holds_watermark_back(&driven), "idle though no broker was there");
    broker.restart();
    driven.until_events(58_000).unwrap();
    writer.join().unwrap();
    driven.for_a_while(Duration::from_millis(500)).unwrap();
    assert_eq!(driven.ids(), (0..58_000).collect::<Vec<_>>());
}

#[test]
fn a_record_of_ten_megabytes_is_read() {
    let Some(broker) = Broker::shared() else { return };
    let topic = broker.topic(1);
    // What is blank would be small after compression.
    let mut publisher = Publisher::open(&broker.servers, &topic, [("compression.type", "none")], None).unwrap();
    let padding = " ".repeat(10_000_000);
    for id in 0..3 {
        publisher.send(None, format!(r#"{{"id":{id},{padding}"at_ms":0}}"#).as_bytes(), None).unwrap();
    }
    publisher.flush().unwrap();
    let mut driven = ReaderDriver::open(&ticks(broker, &topic), bounded()).unwrap();
    driven.until_ended().unwrap();
    assert_eq!(driven.positions(), [(0, 0), (0, 1), (0, 2)]);
    // The broker accepts at most 16 MiB.
    publisher.send(None, &vec![b' '; 20_000_000], None).unwrap();
    let error = publisher.flush().unwrap_err().to_string();
    assert!(error.contains(&topic) && error.contains("max.message.bytes"), "{error}");
}

#[test]
fn a_topic_that_is_not_there_is_an_error_that_says_what_to_do() {
    let Some(broker) = Broker::shared() else { return };
    let topic = broker.topic(1);
    let missing = format!("{topic}s");
    let error = ReaderDriver::open(&ticks(broker, &missing), Options::default()).err().unwrap().to_string();
    for part in [&*missing, &*broker.servers, "create it: ", &*format!("did you mean {topic}")] {
        assert!(error.contains(part), "{part} is not in: {error}");
    }
    let error = Publisher::open(&broker.servers, &missing, [], None).err().unwrap().to_string();
    assert!(error.contains("create it"), "{error}");
    let created = Publisher::open(&broker.servers, &missing, [], Some(2)).unwrap();
    assert_eq!(created.partitions(), (2, true));
}

#[test]
fn a_topic_that_is_deleted_while_it_is_read_is_an_error() {
    let Some(broker) = Broker::shared() else { return };
    let topic = broker.topic(1);
    send(broker, &topic, 0..10);
    let mut driven = ReaderDriver::open(&ticks(broker, &topic), Options::default()).unwrap();
    driven.until_events(10).unwrap();
    broker.delete(&topic);
    let error = driven.for_a_while(Duration::from_secs(30)).unwrap_err().to_string();
    assert!(error.contains(&topic) && error.contains("deleted"), "{error}");
}

#[test]
fn a_journal_whose_records_expired_is_refused() {
    let Some(broker) = Broker::shared() else { return };
    let topic = broker.topic(1);
    send(broker, &topic, 0..10);
    let mut first = ReaderDriver::open(&ticks(broker, &topic), Options::default()).unwrap();
    first.until_events(10).unwrap();
    broker.expire(&topic, 0, 5);
    let mut second = ReaderDriver::open(&ticks(broker, &topic), Options::default()).unwrap();
    let (epoch, binding) = &first.epoch_inputs[0];
    let error = second.replay(*epoch, &binding.partitions).unwrap_err().to_string();
    assert!(error.contains("before offset 5") && error.contains(&topic), "{error}");
    // Without a journal the remaining records are read.
    let mut third = ReaderDriver::open(&ticks(broker, &topic), Options::default()).unwrap();
    third.until_events(5).unwrap();
    assert_eq!(third.ids(), (5..10).collect::<Vec<_>>());
}

/// Reads a topic in one incarnation until it has everything; returns the epoch and the partitions of a snapshot then.
fn read(broker: &Broker, topic: &str, options: Options, count: usize) -> (Epoch, Vec<RestoredPartition>) {
    let mut driven = ReaderDriver::open(&ticks(broker, topic), options).unwrap();
    driven
        .until(|d| d.events.len() >= count && (!bounded_run(d) || d.epoch_inputs.last().unwrap().1.watermark.ended))
        .unwrap();
    let mut places = BTreeMap::new();
    for bound in driven.epoch_inputs.iter().flat_map(|(_, binding)| binding.partitions.clone()) {
        places.insert(
            bound.partition,
            RestoredPartition {
                progress: PartitionProgress { start_offset: None, ..bound },
                activation_watermark: EventTime::MIN,
            },
        );
    }
    (driven.epoch_inputs.last().unwrap().0, places.into_values().collect())
}

fn bounded_run(driven: &ReaderDriver<Tick>) -> bool {
    driven.epoch_inputs.iter().flat_map(|(_, binding)| &binding.partitions).any(|bound| bound.end_offset.is_some())
}

#[test]
fn a_snapshot_is_gone_on_from_as_long_as_retention_has_left_what_follows() {
    let Some(broker) = Broker::shared() else { return };
    let topic = broker.topic(1);
    send(broker, &topic, 0..10);
    let (epoch, places) = read(broker, &topic, Options::default(), 10);
    send(broker, &topic, 10..20);
    // The record that the topic is identified by may be gone; records after the snapshot must not be.
    for (expired, refused) in [(9, false), (10, false), (11, true)] {
        broker.expire(&topic, 0, expired);
        let mut driven = ReaderDriver::open(&ticks(broker, &topic), Options::default()).unwrap();
        let resumed = driven.resume(epoch, &places);
        if refused {
            let error = resumed.unwrap_err().to_string();
            assert!(error.contains("before offset 11") && error.contains("offset 10"), "{error}");
        } else {
            resumed.unwrap();
            driven.until_events(10).unwrap();
            assert_eq!(driven.ids(), (10..20).collect::<Vec<_>>());
        }
    }
}

#[test]
fn a_topic_that_was_deleted_and_made_again_is_refused() {
    let Some(broker) = Broker::shared() else { return };
    let topic = broker.topic(1);
    send(broker, &topic, 0..10);
    let (epoch, places) = read(broker, &topic, Options::default(), 10);
    broker.delete(&topic);
    std::thread::sleep(Duration::from_secs(1));
    broker.create(&topic, 1);
    send(broker, &topic, 0..30);
    let mut driven = ReaderDriver::open(&ticks(broker, &topic), Options::default()).unwrap();
    let error = driven.resume(epoch, &places).unwrap_err().to_string();
    assert!(error.contains(&topic) && error.contains("offset 9") && error.contains("created again"), "{error}");
}

#[test]
fn a_snapshot_behind_the_markers_of_transactions_is_gone_on_from() {
    let Some(broker) = Broker::shared() else { return };
    let topic = broker.topic(1);
    let producer = broker.transactional("resumes");
    let transaction = |ids: Range<u64>, commit: bool| {
        producer.begin_transaction().unwrap();
        send_all(&producer, &topic, texts(ids));
        if commit { producer.commit_transaction(PATIENCE) } else { producer.abort_transaction(PATIENCE) }.unwrap();
    };
    transaction(0..10, true);
    transaction(10..15, false);
    let (epoch, mut places) = read(broker, &topic, bounded(), 10);
    let bounds: Vec<PartitionProgress> = places.iter().map(|place| place.progress.clone()).collect();
    let at = drive::worker_context(bounded());
    assert_eq!((bounds[0].next_offset, bounds[0].end_offset, bounds[0].ended), (17, Some(17), true));
    // Aborted records are no new data, although the topic is longer.
    transaction(20..25, false);
    assert_eq!(ticks(broker, &topic).has_new_data(&at, &bounds).unwrap(), None);
    broker.grow(&topic, 2);
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(ticks(broker, &topic).has_new_data(&at, &bounds).unwrap(), None);
    transaction(30..40, true);
    let told = ticks(broker, &topic).has_new_data(&at, &bounds).unwrap().unwrap();
    assert!(told.starts_with("partition 0 of ") && told.ends_with("from offset 17 on"), "{told}");

    for next in 10..=17 {
        (places[0].progress.next_offset, places[0].progress.end_offset, places[0].progress.ended) = (next, None, false);
        let mut driven = ReaderDriver::open(&ticks(broker, &topic), bounded()).unwrap();
        driven.resume(epoch, &places).unwrap();
        driven.until_ended().unwrap();
        assert_eq!(driven.ids(), (30..40).collect::<Vec<_>>(), "from offset {next} on");
    }
}

#[test]
fn group_offsets_follow_what_was_shown() {
    use rdkafka::consumer::{BaseConsumer, Consumer};
    let Some(broker) = Broker::shared() else { return };
    let topic = broker.topic(1);
    send(broker, &topic, 0..10);
    let group = format!("group-of-{topic}");
    let mut driven = ReaderDriver::open(&ticks(broker, &topic).config("group.id", &group), Options::default()).unwrap();
    driven.until_events(10).unwrap();
    driven.reader.notify_published(driven.epoch);
    driven.for_a_while(Duration::from_secs(1)).unwrap();
    let mut config = rdkafka::ClientConfig::new();
    config.set("bootstrap.servers", &broker.servers).set("group.id", &group);
    let consumer: BaseConsumer = config.create().unwrap();
    let mut list = rdkafka::TopicPartitionList::new();
    list.add_partition(&topic, 0);
    let committed = consumer.committed_offsets(list, PATIENCE).unwrap();
    assert_eq!(committed.elements()[0].offset(), rdkafka::Offset::Offset(10));
    // Group offsets are never read back.
    drop(driven);
    let mut again = ReaderDriver::open(&ticks(broker, &topic).config("group.id", &group), bounded()).unwrap();
    again.until_ended().unwrap();
    assert_eq!(again.events.len(), 10);
}

#[test]
fn a_sink_shows_rows_as_messages() {
    let Some(broker) = Broker::shared() else { return };
    let topic = broker.topic(2);
    let output = kafka::Sink::json(&broker.servers, &topic).key_by(|tick: &Tick| tick.id.to_string());
    let shard = SinkContext::new("test", "out", SinkRows::Events);
    let mut writer = output.open(&shard).unwrap();
    assert_eq!(writer.published().unwrap(), None);
    let rows: Vec<(Tick, isize)> = (0..100).map(|id| (Tick { id, at_ms: id as i64 }, 1)).collect();
    let mut took = Vec::new();
    for (epoch, rows) in rows.chunks(10).enumerate() {
        let begun = std::time::Instant::now();
        writer.write(Epoch(2 * epoch as u64), rows).unwrap();
        writer.publish(&JournalEnds::default()).unwrap();
        took.push(begun.elapsed());
    }
    // Epochs wait for no fixed time. Some may wait for a busy machine.
    took.sort_unstable();
    assert!(took[took.len() / 2] < Duration::from_millis(200), "{took:?}");
    writer.finish().unwrap();
    let mut driven = ReaderDriver::open(&ticks(broker, &topic), bounded()).unwrap();
    driven.until_ended().unwrap();
    assert_eq!(driven.ids(), (0..100).collect::<Vec<_>>());
}
