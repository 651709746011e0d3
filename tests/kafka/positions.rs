//! Where reading of a topic starts and stops, and what follows when records are gone before they were read.
//!
//! It exists because a position has to be a function of the messages and of what the journal says, never of the moment
//! of a start: a job that is killed and started again must not read other records than one that was not.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use fastrand::Rng;
use nix::sys::signal::Signal;
use rdkafka::config::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use tidegate::durable::journal::PartitionProgress;
use tidegate::kafka::{self, Gap, StartOffset};
use tidegate::sink::kafka::Publisher;
use tidegate::source::kafka::EmbeddedBroker;
use tidegate::source::{Options, RestoredPartition, Source};
use tidegate::time::EventTime;

use crate::broker::Broker;
use crate::drive;
use crate::drive::{ReaderDriver, Tick};
use crate::run::{check_contains, run, start};
use crate::transactions::{START_MS, TOTALS, Transaction, expected, json_of, rows_of, same_rows, tidy};

fn embedded(partitions: u32) -> EmbeddedBroker {
    let broker = EmbeddedBroker::start().unwrap();
    broker.create_topic("ticks", partitions).unwrap();
    broker
}

fn ticks(servers: &str, topic: &str) -> kafka::Source<Tick> {
    kafka::Source::json(servers, topic).event_time(|tick: &Tick| tick.at_ms).out_of_order(Duration::ZERO)
}

/// Sends ticks to partitions: (partition, id, timestamp of the message).
fn send(servers: &str, topic: &str, ticks: impl IntoIterator<Item = (u32, u64, Option<i64>)>) {
    let mut publisher = Publisher::open(servers, topic, [], None).unwrap();
    for (partition, id, stamped) in ticks {
        let text = format!(r#"{{"id":{id},"at_ms":{}}}"#, 1_000_000 + id);
        publisher.send_to(partition, None, text.as_bytes(), stamped).unwrap();
    }
    publisher.flush().unwrap();
}

/// Positions of all partitions after what was driven.
fn places(driven: &ReaderDriver<Tick>) -> Vec<RestoredPartition> {
    let mut places = BTreeMap::new();
    for bound in driven.epoch_inputs.iter().flat_map(|(_, input)| &input.partitions) {
        places.insert(bound.partition, PartitionProgress { start_offset: None, values: None, ..bound.clone() });
    }
    let place = |progress| RestoredPartition { progress, activation_watermark: EventTime::MIN };
    places.into_values().map(place).collect()
}

/// Replays everything that was driven with a new reader; it must commit the same.
#[track_caller]
fn replayed(driven: &ReaderDriver<Tick>, source: &kafka::Source<Tick>, options: Options) -> ReaderDriver<Tick> {
    let mut again = ReaderDriver::open(source, options).unwrap();
    for (epoch, input) in &driven.epoch_inputs {
        again.replay(*epoch, &input.partitions).unwrap();
        assert_eq!(again.epoch_inputs.last().unwrap().1, *input, "epoch {epoch}");
    }
    // Within an epoch, records of different partitions come in any order.
    let sorted = |driven: &ReaderDriver<Tick>| {
        let mut positions = driven.positions();
        positions.sort_unstable();
        positions
    };
    assert_eq!(sorted(&again), sorted(driven));
    again
}

#[test]
fn named_offsets_are_where_reading_starts_and_stay_in_the_journal() {
    let broker = embedded(3);
    send(broker.servers(), "ticks", (0..30).map(|id| ((id % 3) as u32, id, Some(1_000_000))));
    let source = ticks(broker.servers(), "ticks").from(StartOffset::offsets([(0, 4), (2, 10)]));
    let mut driven = ReaderDriver::open(&source, Options::default()).unwrap();
    driven.until_events(16).unwrap();
    // Partition 1 is not named, and partition 2 is at its end.
    let expected: Vec<u64> = (0..30).filter(|id| id % 3 == 1 || id % 3 == 0 && id / 3 >= 4).collect();
    assert_eq!(driven.ids(), expected);
    let found: Vec<_> = driven.epoch_inputs[0].1.partitions.iter().map(|at| at.start_offset).collect();
    assert_eq!(found, [Some(4), Some(0), Some(10)]);
    // What a state knows is not started anew, whatever the flag says then: not even if it cannot be.
    let other = source.clone().from(StartOffset::offsets([(0, 99), (7, 0)]));
    let mut again = replayed(&driven, &other, Options::default());
    send(broker.servers(), "ticks", [(2, 99, Some(1_000_000))]);
    again.until_events(17).unwrap();
    let mut resumed = ReaderDriver::open(&other, Options::default()).unwrap();
    resumed.resume(driven.epoch, &places(&driven)).unwrap();
    resumed.until_events(1).unwrap();
    assert_eq!(resumed.ids(), [99]);
}

#[test]
fn an_offset_that_is_not_there_is_refused_by_name() {
    let broker = embedded(2);
    send(broker.servers(), "ticks", (0..10).map(|id| (0, id, Some(1_000_000))));
    for (offsets, what) in [
        ([(0, 11), (1, 0)], "reading cannot start at offset 11 (topic ticks at"),
        ([(0, 11), (1, 0)], "partition 0): it ends at offset 10"),
        ([(0, 10), (1, 1)], "partition 1): it ends at offset 0"),
        ([(0, 10), (2, 0)], "there is no partition 2 to start in"),
    ] {
        let source = ticks(broker.servers(), "ticks").from(StartOffset::offsets(offsets));
        let mut driven = ReaderDriver::open(&source, Options::default()).unwrap();
        let error = driven.for_a_while(Duration::from_millis(100)).unwrap_err();
        assert!(error.exit_code() == 2 && error.to_string().contains(what), "{error}");
        assert!(driven.epoch_inputs.is_empty(), "something was committed");
    }
}

#[test]
fn each_partition_ends_before_its_first_message_of_the_time_or_later() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut rng = Rng::with_seed(seed);
    let broker = embedded(3);
    // Timestamps go forth and back; a partition may have none that stops it.
    let mut sent: Vec<Vec<(u64, i64)>> = vec![Vec::new(); 3];
    let mut id = 0;
    for (partition, messages) in sent.iter_mut().enumerate() {
        for at in 0..40 {
            let before_stop = partition == 2 || at < 5;
            messages.push((id, 1_000_000 + rng.i64(0..if before_stop { 500 } else { 600 })));
            id += 1;
        }
        if partition < 2 {
            messages.push((id, 1_000_500));
            id += 1;
        }
    }
    for (partition, messages) in sent.iter().enumerate() {
        send(broker.servers(), "ticks", messages.iter().map(|(id, at)| (partition as u32, *id, Some(*at))));
    }
    let mut read: Vec<u64> = (sent.iter())
        .flat_map(|messages| messages.iter().take_while(|(_, at)| *at < 1_000_500).map(|(id, _)| *id))
        .collect();
    read.sort_unstable();
    let source = ticks(broker.servers(), "ticks").stop_at(EventTime::from_millis(1_000_500));

    // Partition 2 has no such message: the job waits for one.
    let mut driven = ReaderDriver::open(&source, Options::default()).unwrap();
    driven.for_a_while(Duration::from_millis(1500)).unwrap();
    assert_eq!(driven.ids(), read, "seed {seed}");
    assert!(!driven.epoch_inputs.iter().any(|(_, input)| input.watermark.ended), "ended without partition 2");
    // Killed there and started again, with the stop of partition 2 sent in between.
    let mut again = replayed(&driven, &source, Options::default());
    let mut resumed = ReaderDriver::open(&source, Options::default()).unwrap();
    resumed.resume(driven.epoch, &places(&driven)).unwrap();
    send(broker.servers(), "ticks", [(2, 1_000, Some(1_000_499)), (2, 1_001, Some(1_000_500)), (2, 1_002, Some(1))]);
    again.until_ended().unwrap();
    resumed.until_ended().unwrap();
    assert_eq!(resumed.ids(), [1_000], "seed {seed}");
    read.push(1_000);
    assert_eq!(again.ids(), read, "seed {seed}");
    assert!(places(&again).iter().all(|place| place.progress.ended));
    assert_eq!(places(&again).iter().map(|place| place.progress.next_offset).collect::<Vec<_>>(), {
        let stop = |messages: &Vec<(u64, i64)>| messages.iter().take_while(|(_, at)| *at < 1_000_500).count() as u64;
        [stop(&sent[0]), stop(&sent[1]), 41]
    });
    // The end is replayed too, and what is behind it is no new data.
    let last = replayed(&again, &source, Options::default());
    assert!(last.epoch_inputs.last().unwrap().1.watermark.ended);
    let bounds: Vec<_> = places(&again).into_iter().map(|place| place.progress).collect();
    assert_eq!(source.has_new_data(&drive::worker_context(Options::default()), &bounds), Ok(None));
    // With an end, a partition without a stop ends there.
    let early = source.clone().stop_at(EventTime::from_millis(2_000_000));
    let mut bounded = ReaderDriver::open(&early, Options::default().until_end(true)).unwrap();
    bounded.until_ended().unwrap();
    let all: usize = sent.iter().map(Vec::len).sum();
    assert_eq!(bounded.events.len(), all + 3);
    let bounds: Vec<_> = places(&bounded).into_iter().map(|place| place.progress).collect();
    send(broker.servers(), "ticks", [(1, 2_000, Some(2_000_000))]);
    assert_eq!(early.has_new_data(&drive::worker_context(Options::default()), &bounds), Ok(None));
    send(broker.servers(), "ticks", [(0, 2_001, Some(1_999_999))]);
    let grown = early.has_new_data(&drive::worker_context(Options::default()), &bounds).unwrap();
    assert!(grown.is_some_and(|grown| grown.contains("partition 0")));
}

/// Sends large ticks, uncompressed, until the embedded broker, which keeps about 5 MiB, has dropped the first ones.
fn overflow(servers: &str, ids: std::ops::Range<u64>) {
    let mut publisher = Publisher::open(servers, "ticks", [("compression.type", "none")], None).unwrap();
    let filler = "x".repeat(100_000);
    for id in ids {
        let text = format!(r#"{{"id":{id},"at_ms":{},"filler":"{filler}"}}"#, 1_000_000 + id);
        publisher.send_to(0, None, text.as_bytes(), Some(1_000_000)).unwrap();
        // Each in a batch of its own.
        publisher.flush().unwrap();
    }
}

#[test]
fn a_gap_is_skipped_when_asked_for_and_is_counted_and_replayed() {
    let broker = embedded(1);
    send(broker.servers(), "ticks", (0..20).map(|id| (0, id, Some(1_000_000))));
    let source = ticks(broker.servers(), "ticks").on_gap(Gap::Skip);
    // A snapshot at offset 10; the records after it expire.
    let mut first = ReaderDriver::open(&source, Options::default()).unwrap();
    first.poll(10).unwrap();
    while first.events.len() < 10 {
        first.poll(10 - first.events.len()).unwrap();
    }
    first.commit_epoch();
    assert_eq!(first.events.len(), 10);
    let snapshot = (first.epoch, places(&first));
    overflow(broker.servers(), 20..120);

    let mut driven = ReaderDriver::open(&source, Options::default()).unwrap();
    driven.resume(snapshot.0, &snapshot.1).unwrap();
    driven.until(|driven| driven.events.last().is_some_and(|event| event.data.id == 119)).unwrap();
    let low = driven.events[0].data.id;
    assert!(low > 20 && driven.ids() == (low..120).collect::<Vec<_>>(), "{low}");
    let named: Vec<_> =
        driven.epoch_inputs.iter().flat_map(|(_, input)| &input.partitions).filter_map(|at| at.start_offset).collect();
    assert_eq!(named, [low], "the journal names the end of the gap");
    let expired = |driven: &ReaderDriver<Tick>| driven.intake.partitions().map(|at| at.expired).sum::<u64>();
    assert_eq!(expired(&driven), low - 10);

    // Killed before the next snapshot: what was read behind the gap is replayed, and counted, alike.
    let mut again = ReaderDriver::open(&source, Options::default()).unwrap();
    again.resume(snapshot.0, &snapshot.1).unwrap();
    for (epoch, input) in &driven.epoch_inputs {
        again.replay(*epoch, &input.partitions).unwrap();
        assert_eq!(again.epoch_inputs.last().unwrap().1, *input, "epoch {epoch}");
    }
    assert_eq!((again.positions(), expired(&again)), (driven.positions(), low - 10));

    // Once records behind the gap that were read have expired too, an exact replay is impossible: refused.
    overflow(broker.servers(), 120..200);
    let mut third = ReaderDriver::open(&source, Options::default()).unwrap();
    third.resume(snapshot.0, &snapshot.1).unwrap();
    let refused = driven.epoch_inputs.iter().find_map(|(epoch, input)| third.replay(*epoch, &input.partitions).err());
    let error = refused.expect("records to be replayed are gone").to_string();
    assert!(error.contains("records that the state still needs are gone"), "{error}");
    // From a snapshot after them it goes on.
    let mut fourth = ReaderDriver::open(&source, Options::default()).unwrap();
    fourth.resume(driven.epoch, &places(&driven)).unwrap();
    fourth.until(|driven| driven.events.last().is_some_and(|event| event.data.id == 199)).unwrap();
    assert_eq!(expired(&fourth), fourth.events[0].data.id - 120);
    assert!(fourth.events.windows(2).all(|pair| pair[0].data.id + 1 == pair[1].data.id), "one gap only");
}

#[test]
fn a_gap_that_opens_under_a_reader_is_skipped_in_an_epoch_of_its_own() {
    let broker = embedded(1);
    send(broker.servers(), "ticks", (0..20).map(|id| (0, id, Some(1_000_000))));
    // Records of before the gap are in the same epoch as its discovery.
    let source = ticks(broker.servers(), "ticks").on_gap(Gap::Skip).config("queued.max.messages.kbytes", "1");
    let source = source.config("fetch.message.max.bytes", "1000");
    let mut driven = ReaderDriver::open(&source, Options::default()).unwrap();
    driven.until_events(20).unwrap();
    overflow(broker.servers(), 20..30);
    let expired = |driven: &ReaderDriver<Tick>| driven.intake.partitions().map(|at| at.expired).sum::<u64>();
    while driven.events.len() < 22 {
        driven.poll(1).unwrap();
    }
    overflow(broker.servers(), 30..200);
    // The epoch has records: the gap has to wait for its end.
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(1500) {
        driven.poll(1000).unwrap();
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(driven.events.len() < 40 && expired(&driven) == 0, "{} expired", expired(&driven));
    let mut found = 0;
    driven
        .until(|driven| {
            found = expired(driven);
            driven.events.last().is_some_and(|event| event.data.id == 199)
        })
        .unwrap();
    let read = driven.ids();
    assert_eq!(read.len() as u64 + found, 200, "{found} expired");
    assert!(found > 0, "nothing expired");
    // An epoch that names a start has records from there on only.
    let mut next = 0;
    for (epoch, input) in &driven.epoch_inputs {
        for at in &input.partitions {
            if let Some(start) = at.start_offset {
                assert!(read.iter().all(|id| !(next..start).contains(id)), "epoch {epoch}: {next}..{start}");
            }
            next = at.next_offset;
        }
    }
}

/// Rows in the order of their times and of their numbers.
fn numbered(seed: u64, count: usize) -> Vec<Transaction> {
    let mut rows = tidy(seed, count);
    (0..).zip(&mut rows).for_each(|(id, row)| row.id = id);
    rows
}

/// A gap may reach past the end that was fixed at the first start, and may be in one topic of a list.
#[test]
fn a_gap_past_the_end_ends_the_partition() {
    for in_list in [false, true] {
        let broker = embedded(1);
        broker.create_topic("other", 1).unwrap();
        send(broker.servers(), "other", [(0, 500, Some(1_000_000))]);
        send(broker.servers(), "ticks", (0..20).map(|id| (0, id, Some(1_000_000))));
        let topics = if in_list { vec!["other", "ticks"] } else { vec!["ticks"] };
        let (partition, others) = if in_list { (1_000_000, 1) } else { (0, 0) };
        let source = kafka::Source::json(broker.servers(), topics).event_time(|tick: &Tick| tick.at_ms);
        let source = source.out_of_order(Duration::ZERO).on_gap(Gap::Skip);
        let options = Options::default().until_end(true);
        let mut first = ReaderDriver::open(&source, options.clone()).unwrap();
        // Either topic of the list may be the first to arrive.
        let taken = |driven: &ReaderDriver<Tick>| {
            driven.events.iter().filter(|event| event.origin.partition == partition).count()
        };
        while taken(&first) < 10 || first.events.len() - taken(&first) < others {
            first.poll(1).unwrap();
        }
        first.commit_epoch();
        let snapshot = (first.epoch, places(&first));
        overflow(broker.servers(), 20..120);
        let mut driven = ReaderDriver::open(&source, options.clone()).unwrap();
        driven.resume(snapshot.0, &snapshot.1).unwrap();
        driven.until_ended().unwrap();
        let at = driven.intake.partitions().find(|at| at.partition == partition).unwrap();
        assert_eq!((at.next, at.expired, at.ended), (20, 20 - taken(&first) as u64, true));
        assert!(driven.events.is_empty(), "nothing is left to be read");
        let mut again = ReaderDriver::open(&source, options).unwrap();
        again.resume(snapshot.0, &snapshot.1).unwrap();
        for (epoch, input) in &driven.epoch_inputs {
            again.replay(*epoch, &input.partitions).unwrap();
            assert_eq!(again.epoch_inputs.last().unwrap().1, *input, "epoch {epoch}");
        }
    }
}

/// Sends rows with their numbers as timestamps.
fn send_rows(broker: &Broker, topic: &str, rows: &[Transaction], partitions: u64) {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", &broker.servers).set("enable.idempotence", "true").set("linger.ms", "2");
    let producer: BaseProducer = config.create().unwrap();
    for row in rows {
        let text = json_of(row);
        let record = BaseRecord::<(), str>::to(topic).partition((row.id % partitions) as i32).payload(&text);
        producer.send(record.timestamp(START_MS + 1_000 * row.id as i64)).map_err(|(why, _)| why).unwrap();
        producer.poll(Duration::ZERO);
    }
    producer.flush(Duration::from_secs(30)).unwrap();
}

fn typed(broker: &Broker, topic: &str, folder: &std::path::Path, line: &str) -> Vec<String> {
    let line =
        format!("--brokers {} --topic {topic} --out {{}}/out.csv --epoch 20ms --progress off {line}", broker.servers);
    line.split_whitespace().map(|word| word.replace("{}", folder.to_str().unwrap())).collect()
}

#[track_caller]
fn check_totals(folder: &std::path::Path, partitions: &[Vec<Transaction>]) {
    let wanted = expected(partitions.iter().map(Vec::as_slice), 2_000).rows();
    same_rows(&rows_of(&folder.join("out.csv"), &TOTALS), &wanted);
}

/// From one time to another, killed in between, on any number of workers: the figures are those of the messages between.
#[test]
fn a_span_of_time_of_a_topic_is_read_exactly_whatever_is_killed() {
    let Some(broker) = Broker::shared() else { return };
    let folder = tempfile::tempdir().unwrap();
    let topic = broker.topic(2);
    let rows = numbered(11, 3_000);
    send_rows(broker, &topic, &rows[..2_000], 2);
    let part = |partition: u64, stop: usize| -> Vec<Transaction> {
        rows[500..stop].iter().filter(|row| row.id % 2 == partition).cloned().collect()
    };
    let (from, to) = (rows[500].id, rows[2_500].id);
    let line = format!(
        "--state {{}}/state --snapshot-every 1h --from {} --stop-at {}",
        START_MS + 1_000 * from as i64,
        EventTime::from_millis(START_MS + 1_000 * to as i64)
    );
    let mut job = start("account_totals", typed(broker, &topic, folder.path(), &format!("{line} -w 2")));
    let group = "tidegate-account-totals";
    job.wait_until("all records are read", |_| {
        (0..2).all(|partition| broker.group_offset(group, &topic, partition) == Some(1_000)).then_some(())
    });
    job.signal(Signal::SIGKILL);
    let _ended = job.end_or_killed();
    // What was not to be read expires: the start is not found again.
    broker.expire(&topic, 0, 250);
    send_rows(broker, &topic, &rows[2_000..], 2);
    let refused =
        run("account_totals", typed(broker, &topic, folder.path(), &line.replace("--stop-at 2", "--stop-at 3")));
    check_contains(refused.error(1), &["stop-at"]);
    run("account_totals", typed(broker, &topic, folder.path(), &line)).code(0);
    check_totals(folder.path(), &[part(0, 2_500), part(1, 2_500)]);
    // It is over: started again it does nothing, though there are later records.
    run("account_totals", typed(broker, &topic, folder.path(), &line)).code(0);
    check_totals(folder.path(), &[part(0, 2_500), part(1, 2_500)]);
}

/// Records expire while no job runs. The state is refused without the flag, goes on with it, and is exact after a kill.
#[test]
fn a_state_goes_on_after_expired_records_when_asked_and_after_a_kill_alike() {
    let Some(broker) = Broker::shared() else { return };
    let folder = tempfile::tempdir().unwrap();
    let topic = broker.topic(1);
    let rows = numbered(12, 900);
    send_rows(broker, &topic, &rows[..300], 1);
    let line = "--state {}/state";
    let mut job = start("account_totals", typed(broker, &topic, folder.path(), line));
    let has_read = |offset| broker.group_offset("tidegate-account-totals", &topic, 0) == Some(offset);
    job.wait_until("the first records are read", |_| has_read(300).then_some(()));
    job.signal(Signal::SIGTERM);
    assert_eq!(job.end().status.code(), Some(143));
    send_rows(broker, &topic, &rows[300..], 1);
    broker.expire(&topic, 0, 500);
    let refused = run("account_totals", typed(broker, &topic, folder.path(), line));
    check_contains(refused.error(1), &["gone", "offset 300", "--on-gap skip"]);
    let skipping = format!("{line} --on-gap skip");
    let mut job =
        start("account_totals", typed(broker, &topic, folder.path(), &format!("{skipping} --snapshot-every 1h")));
    job.wait_until("all records are read", |_| has_read(900).then_some(()));
    let said = job.stderr();
    check_contains(&said, &[&topic, "partition 0: 200 offsets from 300 on were skipped"]);
    job.signal(Signal::SIGKILL);
    let _ended = job.end_or_killed();
    let line = format!("{skipping} --until-end --accept-changed-query");
    let told = typed(broker, &topic, folder.path(), &line).into_iter().map(|word| word.replace("off", "plain"));
    let ended = run("account_totals", told);
    check_contains(&ended.code(0).stderr, &["200 offsets skipped, whose records had expired before they were read"]);
    let left: Vec<_> = rows[..300].iter().chain(&rows[500..]).cloned().collect();
    check_totals(folder.path(), &[left]);
}

/// Records expire under a job that is suspended and has fetched some of them. It goes on after them, and a kill and a start
/// later the figures are those of all records outside of the gap that it has named.
#[test]
fn a_running_job_goes_on_after_records_that_expire_under_it() {
    let Some(broker) = Broker::shared() else { return };
    let folder = tempfile::tempdir().unwrap();
    let topic = broker.topic(1);
    let rows = numbered(13, 30_000);
    send_rows(broker, &topic, &rows[..10_000], 1);
    // Little is fetched ahead.
    let small = "--kafka-config queued.max.messages.kbytes=16 --kafka-config fetch.message.max.bytes=4000";
    let line = format!("--state {{}}/state --on-gap skip --snapshot-every 200ms {small}");
    let mut job = start("account_totals", typed(broker, &topic, folder.path(), &line));
    let has_read = |offset| broker.group_offset("tidegate-account-totals", &topic, 0) == Some(offset);
    job.wait_until("the first records are read", |_| has_read(10_000).then_some(()));
    job.signal(Signal::SIGSTOP);
    send_rows(broker, &topic, &rows[10_000..], 1);
    broker.expire(&topic, 0, 25_000);
    job.signal(Signal::SIGCONT);
    job.wait_until("all records are read", |_| has_read(30_000).then_some(()));
    let said = job.stderr();
    let (_, gap) = said.split_once("partition 0: ").unwrap_or_else(|| panic!("no gap is named:\n{said}"));
    let mut numbers = gap.split(|c: char| !c.is_ascii_digit()).filter(|word| !word.is_empty());
    let [count, from, to] = [(); 3].map(|()| numbers.next().unwrap().parse::<usize>().unwrap());
    println!("{count} offsets from {from} to {to} were skipped");
    assert!(from >= 10_000 && from + count == to && to == 25_000, "{said}");
    assert_eq!(said.matches("were skipped").count(), 1, "told once:\n{said}");
    // Everything is in a snapshot by then, so that no expired record has to be replayed.
    std::thread::sleep(Duration::from_secs(1));
    job.signal(Signal::SIGKILL);
    let _ended = job.end_or_killed();
    let line = format!("{line} --until-end --accept-changed-query");
    run("account_totals", typed(broker, &topic, folder.path(), &line)).code(0);
    check_totals(folder.path(), &[rows[..from].iter().chain(&rows[to..]).cloned().collect()]);
}

#[test]
fn flags_of_positions_are_checked() {
    for (line, what) in [
        ("--from yesterday", "--from"),
        ("--from 0:1,0:2", "partition 0 is named twice"),
        ("--stop-at tomorrow", "--stop-at"),
        ("--on-gap ignore", "neither `fail` nor `skip`"),
        ("--stop-at 5 --csv x.csv", "--stop-at"),
    ] {
        let ended = run("account_totals", format!("--brokers 127.0.0.1:1 {line}").split_whitespace());
        assert!(ended.status.code() == Some(2) && ended.stderr.contains(what), "{line}: {}", ended.stderr);
    }
}
