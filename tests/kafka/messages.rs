//! Queries see whole messages: key, headers, timestamp, offset and partition, when they are fetched and when an epoch is
//! replayed, from the topic or by value from the journal. The broker is in this process.
//!
//! It exists because a record has to be the same at each replay, whatever a decoder looks at.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use fastrand::Rng;
use rdkafka::config::ClientConfig;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use serde::{Deserialize, Serialize};
use tidegate::durable::journal::JournaledRecord;
use tidegate::kafka::{self, DeadLetter, Decode, Message, TimestampKind};
use tidegate::source::kafka::EmbeddedBroker;
use tidegate::source::memory::MemorySource;
use tidegate::source::{Options, Source};
use tidegate::stream::Observer;
use tidegate::stream::aggregate::Each;
use tidegate::testing::Captured;
use tidegate::{Error, EventTime, Job, State, Window, ndjson};

use crate::drive::ReaderDriver;

const TOPIC: &str = "messages";

/// Everything that a decoder can see of a message.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
struct Seen {
    partition: u32,
    offset: u64,
    at_ms: Option<i64>,
    key: Option<Vec<u8>>,
    headers: Vec<(String, Option<Vec<u8>>)>,
    value: Option<Vec<u8>>,
}

fn whole(message: &Message<'_>) -> Result<Option<Seen>, String> {
    assert_eq!((message.topic(), message.timestamp_kind()), (TOPIC, TimestampKind::CreateTime));
    Ok(Some(Seen {
        partition: message.partition(),
        offset: message.offset(),
        at_ms: message.timestamp().map(EventTime::millis),
        key: message.key().map(<[u8]>::to_vec),
        headers: message.headers().map(|(name, value)| (name.to_owned(), value.map(<[u8]>::to_vec))).collect(),
        value: message.value().map(<[u8]>::to_vec),
    }))
}

/// Skips every fifth offset, and rejects messages whose value begins with `x`.
fn choosy(message: &Message<'_>) -> Result<Option<Seen>, String> {
    match message.value() {
        _ if message.offset() % 5 == 4 => Ok(None),
        Some([b'x', ..]) => Err(format!("no x at {}", message.offset())),
        _ => whole(message),
    }
}

fn broker(partitions: u32) -> EmbeddedBroker {
    let broker = EmbeddedBroker::start().unwrap();
    broker.create_topic(TOPIC, partitions).unwrap();
    broker
}

/// Sends messages to their partitions, each at the offset that it names.
fn send(broker: &EmbeddedBroker, messages: &[Seen]) {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", broker.servers()).set("enable.idempotence", "true").set("linger.ms", "1");
    let producer: BaseProducer = config.create().unwrap();
    for message in messages {
        let mut headers = OwnedHeaders::new();
        for (key, value) in &message.headers {
            headers = headers.insert(Header { key, value: value.as_ref() });
        }
        let mut record = BaseRecord::<[u8], [u8]>::to(TOPIC).partition(message.partition as i32);
        if !message.headers.is_empty() {
            record = record.headers(headers);
        }
        (record.key, record.payload) = (message.key.as_deref(), message.value.as_deref());
        record.timestamp = message.at_ms;
        producer.send(record).map_err(|(why, _)| why).unwrap();
    }
    producer.flush(Duration::from_secs(30)).unwrap();
}

/// Makes messages up for offsets of each partition, with all that is special: no key and an empty one, names of headers
/// that occur twice, headers without value, tombstones, bytes that are no text.
fn random(rng: &mut Rng, partitions: u32, offsets: Range<u64>) -> Vec<Seen> {
    let mut messages = Vec::new();
    for (offset, partition) in offsets.flat_map(|offset| (0..partitions).map(move |partition| (offset, partition))) {
        let bytes: [&[u8]; 6] = [b"", b"x", b"text", "grün".as_bytes(), b"\0\xff\xfe", b"xyz"];
        let mut some = || rng.bool().then(|| bytes[rng.usize(..bytes.len())].to_vec());
        let (key, value) = (some(), some());
        let mut headers: Vec<_> = ["trace", "at", "trace", "größe"].map(|name| (name.to_owned(), some())).into();
        headers.truncate(rng.usize(..=4));
        messages.push(Seen { partition, offset, at_ms: Some(rng.i64(1..2_000_000)), key, headers, value });
    }
    messages
}

fn sorted(messages: impl IntoIterator<Item = Seen>) -> Vec<Seen> {
    let mut messages: Vec<Seen> = messages.into_iter().collect();
    messages.sort();
    messages
}

fn bounded() -> Options {
    Options::default().until_end(true)
}

fn text(partition: u32, offset: u64, key: &str, value: Option<&str>) -> Seen {
    let (key, value) = (Some(key.into()), value.map(Into::into));
    Seen { partition, offset, at_ms: Some(1_000 + offset as i64), key, headers: Vec::new(), value }
}

#[test]
fn a_query_sees_key_headers_timestamp_offset_and_partition() {
    let broker = broker(2);
    let mut messages = vec![text(0, 0, "a", Some("1")), text(1, 0, "b", Some("2")), text(1, 1, "a", Some("3"))];
    messages[2].headers = vec![("trace".into(), Some("one".into())), ("trace".into(), Some("two".into()))];
    send(&broker, &messages);
    let decoder = kafka::json().with_meta(|value: i64, message: &Message<'_>| {
        let text = |bytes: Option<&[u8]>| String::from_utf8_lossy(bytes.unwrap_or_default()).into_owned();
        let place = (message.partition(), message.offset(), message.timestamp());
        (value, text(message.key()), text(message.header("trace")), place)
    });
    let source = kafka::Source::new(broker.servers(), TOPIC, decoder).event_time_of_message();
    let rows = Captured::new();
    let shown = rows.clone();
    let report =
        Job::new("whole").options(bounded()).run(move |flow| flow.read("messages", &source).write("rows", &shown));
    let row = |value, key: &str, trace: &str, (partition, offset): (u32, u64)| {
        let time = EventTime::from_millis(1_000 + offset as i64);
        (value, key.to_owned(), trace.to_owned(), (partition, offset, Some(time)))
    };
    let mut rows = rows.all();
    rows.sort();
    assert_eq!(rows, [row(1, "a", "", (0, 0)), row(2, "b", "", (1, 0)), row(3, "a", "two", (1, 1))]);
    assert_eq!(report.unwrap().summary.sources[0].accepted, 3);
}

#[test]
fn tombstones_and_what_a_decoder_leaves_out_are_counted_as_skipped_and_their_offsets_are_taken() {
    let broker = broker(1);
    let values = [Some("1"), None, Some("x"), None, Some("5")];
    let messages: Vec<_> = (0..).zip(values).map(|(offset, value)| text(0, offset, "k", value)).collect();
    send(&broker, &messages);
    let source = kafka::Source::new(broker.servers(), TOPIC, kafka::json().skip_tombstones());
    let source = source.event_time(|value: &i64| *value);
    let mut driven = ReaderDriver::open(&source, bounded()).unwrap();
    driven.until_ended().unwrap();
    assert_eq!(driven.positions(), [(0, 0), (0, 4)]);
    let rejects: Vec<_> =
        driven.rejects.iter().map(|reject| (reject.partition, reject.offset, &*reject.reason)).collect();
    assert_eq!(rejects, [(0, 2, "not the expected JSON: expected value at line 1 column 1")]);
    assert_eq!(driven.epoch_inputs.last().unwrap().1.partitions.last().map_or(5, |at| at.next_offset), 5);
    // Without the adaptor, a tombstone is rejected.
    let mut driven =
        ReaderDriver::open(&kafka::Source::json(broker.servers(), TOPIC).event_time(|value: &i64| *value), bounded())
            .unwrap();
    driven.until_ended().unwrap();
    assert_eq!(driven.rejects.iter().map(|reject| reject.offset).collect::<Vec<_>>(), [1, 2, 3]);
    assert_eq!(driven.rejects[0].reason, "the message has no value (a tombstone)");
    // All are in the figures of a job, which are checked at its end.
    let only_last = |message: &Message<'_>| Ok((message.offset() == 4).then(|| message.offset()));
    let source = kafka::Source::new(broker.servers(), TOPIC, only_last).event_time_of_message();
    let rows = Captured::new();
    let shown = rows.clone();
    let report =
        Job::new("last").options(bounded()).run(move |flow| flow.read("messages", &source).write("rows", &shown));
    let summary = report.unwrap().summary;
    assert_eq!(rows.all(), [4]);
    assert!(summary.to_string().contains("5 records read = 1 accepted + 0 rejected + 4 skipped"), "{summary}");
}

#[test]
fn a_topic_of_messages_that_are_all_skipped_ends() {
    let broker = broker(2);
    send(&broker, &[text(0, 0, "a", None), text(1, 0, "b", None), text(1, 1, "b", None)]);
    let decoder = kafka::text().skip_tombstones();
    let source = kafka::Source::new(broker.servers(), TOPIC, decoder).event_time_of_message();
    let mut driven = ReaderDriver::open(&source, bounded()).unwrap();
    driven.until_ended().unwrap();
    let last: BTreeMap<_, _> = driven
        .epoch_inputs
        .iter()
        .flat_map(|(_, input)| &input.partitions)
        .map(|at| (at.partition, at.next_offset))
        .collect();
    assert_eq!((driven.events.len(), driven.rejects.len(), last), (0, 0, BTreeMap::from([(0, 1), (1, 2)])));
}

#[test]
fn event_times_come_from_a_header_and_a_message_without_it_is_rejected_with_its_place() {
    let broker = broker(1);
    let at = |offset, value: Option<&str>| Seen {
        headers: vec![("at".into(), value.map(Into::into))],
        ..text(0, offset, "k", Some("v"))
    };
    let day = "1970-01-01T00:00:02.500Z";
    send(&broker, &[at(0, Some("1500")), at(1, Some(day)), at(2, None), at(3, Some("soon")), at(4, Some("900000000"))]);
    let source = kafka::Source::new(broker.servers(), TOPIC, kafka::text()).event_time_of_header("at");
    let mut driven = ReaderDriver::open(&source, bounded()).unwrap();
    driven.until_ended().unwrap();
    assert_eq!(driven.events.iter().map(|event| event.time.millis()).collect::<Vec<_>>(), [1_500, 2_500]);
    let rejects: Vec<_> = driven.rejects.iter().map(|reject| (reject.offset, &*reject.reason)).collect();
    assert_eq!(rejects[0], (2, "the message has no header `at` for its event time"));
    assert!(rejects[1].0 == 3 && rejects[1].1.starts_with("its header `at` is no event time: `soon`"), "{rejects:?}");
    assert!(rejects[2].0 == 4 && rejects[2].1.contains("ahead of its Kafka timestamp"), "{rejects:?}");
    let failing = bounded().fail_on_reject(true);
    let mut driven = ReaderDriver::open(&source, failing).unwrap();
    let error = driven.until_ended().unwrap_err().to_string();
    assert!(error.contains("partition 0, offset 2") && error.contains("no header `at`"), "{error}");
}

#[test]
fn csv_messages_are_rows_and_columns_that_cannot_be_fail_the_job_at_its_start() {
    let broker = broker(1);
    send(&broker, &[text(0, 0, "k", Some("7,1970-01-01T00:00:01Z")), text(0, 1, "k", Some("8"))]);
    #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
    struct Row {
        id: u64,
        at: EventTime,
    }
    let source = |decoder| kafka::Source::new(broker.servers(), TOPIC, decoder).event_time(|row: &Row| row.at);
    let mut driven = ReaderDriver::open(&source(kafka::csv()), bounded()).unwrap();
    driven.until_ended().unwrap();
    let rows: Vec<_> = driven.events.iter().map(|event| (event.data.id, event.time.millis())).collect();
    assert_eq!((rows, driven.rejects.len()), (vec![(7, 1_000)], 1));
    let error = ReaderDriver::open(&source(kafka::csv().columns(["id"])), bounded()).err().unwrap();
    assert_eq!(error.exit_code(), 2);
    assert!(error.to_string().contains("lacks the column `at`") && error.to_string().contains(TOPIC), "{error}");
}

/// Computes what [`choosy`] makes of messages: records, rejected places, and the number of those that are skipped.
fn naive(messages: &[Seen]) -> (Vec<Seen>, Vec<(u32, u64)>, usize) {
    let (mut records, mut rejected, mut skipped) = (Vec::new(), Vec::new(), 0);
    for message in messages {
        if message.offset % 5 == 4 {
            skipped += 1;
        } else if message.value.as_ref().is_some_and(|value| value.starts_with(b"x")) {
            rejected.push((message.partition, message.offset));
        } else {
            records.push(message.clone());
        }
    }
    rejected.sort_unstable();
    (sorted(records), rejected, skipped)
}

#[test]
fn random_messages_are_seen_as_they_were_sent_at_first_and_at_each_replay() {
    for seed in 0..6 {
        let mut rng = Rng::with_seed(seed);
        let partitions = 1 + seed as u32 % 3;
        let broker = broker(partitions);
        let messages = random(&mut rng, partitions, 0..60);
        send(&broker, &messages);
        let (records, rejected, skipped) = naive(&messages);
        let by_value = seed % 2 == 0;
        let source = kafka::Source::new(broker.servers(), TOPIC, choosy).event_time_of_message().compacted(by_value);
        let all = |driven: &ReaderDriver<Seen>| {
            let mut rejects: Vec<_> = driven.rejects.iter().map(|reject| (reject.partition, reject.offset)).collect();
            rejects.sort_unstable();
            (sorted(driven.events.iter().map(|event| event.data.clone())), rejects)
        };
        let mut first = ReaderDriver::open(&source, bounded()).unwrap();
        let mut sizes = Vec::new();
        while !first.epoch_inputs.last().is_some_and(|(_, input)| input.watermark.ended) {
            first.poll(rng.usize(1..20)).unwrap();
            first.commit_epoch();
            sizes.push(first.events.len());
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(all(&first), (records, rejected), "seed {seed}");
        assert!(first.events.iter().all(|event| Some(event.time.millis()) == event.data.at_ms), "seed {seed}");
        assert!(skipped > 0 && first.events.len() + first.rejects.len() + skipped == messages.len(), "seed {seed}");
        let kept =
            first.epoch_inputs.iter().flat_map(|(_, input)| &input.partitions).filter_map(|at| at.values.as_ref());
        assert_eq!(kept.map(Vec::len).sum::<usize>(), if by_value { messages.len() } else { 0 }, "seed {seed}");
        // What is replayed by value is not read from the topic: another one is there, with other messages.
        let other = self::broker(partitions);
        send(&other, &random(&mut rng, partitions, 0..60));
        let servers = if by_value { other.servers() } else { broker.servers() };
        let source = kafka::Source::new(servers, TOPIC, choosy).event_time_of_message().compacted(by_value);
        let mut second = ReaderDriver::open(&source, bounded()).unwrap();
        for ((epoch, input), size) in first.epoch_inputs.iter().zip(sizes) {
            second.replay(*epoch, &input.partitions).unwrap();
            assert_eq!(second.events.len(), size, "seed {seed}, epoch {epoch}");
        }
        let taken = |driven: ReaderDriver<Seen>| {
            let rejects = driven.rejects.into_iter().map(|reject| (reject.partition, reject.offset, reject.reason));
            let (mut events, mut rejects) = (driven.events, rejects.collect::<Vec<_>>());
            events.sort_by_key(|event| event.origin);
            rejects.sort();
            (events, rejects)
        };
        assert!(taken(first) == taken(second), "seed {seed}");
    }
}

#[test]
fn a_kept_message_without_a_timestamp_is_rejected_where_event_times_come_from_messages() {
    let broker = broker(1);
    send(&broker, &[text(0, 0, "k", Some("0")), text(0, 1, "k", Some("1"))]);
    let source = kafka::Source::new(broker.servers(), TOPIC, kafka::text()).event_time_of_message().compacted(true);
    let mut first = ReaderDriver::open(&source, bounded()).unwrap();
    first.until_ended().unwrap();
    let mut second = ReaderDriver::open(&source, bounded()).unwrap();
    for (epoch, mut input) in first.epoch_inputs {
        let kept = input.partitions.iter_mut().filter_map(|at| at.values.as_mut()).flatten();
        kept.filter(|record| record.offset == 1).for_each(|record: &mut JournaledRecord| record.timestamp = None);
        second.replay(epoch, &input.partitions).unwrap();
    }
    assert_eq!(second.positions(), [(0, 0)]);
    let rejects: Vec<_> = second.rejects.iter().map(|reject| (reject.offset, &*reject.reason)).collect();
    assert_eq!(rejects, [(1, "the message has no timestamp for its event time")]);
}

/// A job fails after it has published everything; the next one goes on at a topic whose first records are others, as
/// compaction might have left them, and publishes nothing twice and nothing else.
#[test]
fn a_job_that_was_killed_goes_on_with_the_messages_that_its_journal_has() {
    let directory = tempfile::tempdir().unwrap();
    let (mut rng, out) = (Rng::with_seed(9), directory.path().join("seen.ndjson"));
    let (before, other) = (random(&mut rng, 2, 0..40), random(&mut rng, 2, 0..40));
    let after = random(&mut rng, 2, 40..70);
    let run = |broker: &EmbeddedBroker, fail_at: usize| {
        let source = kafka::Source::new(broker.servers(), TOPIC, choosy).event_time_of_message();
        let source = source.compacted(true).stop_at_end(true);
        let sink = ndjson::Sink::new(&out);
        let seen = std::sync::atomic::AtomicUsize::new(0);
        let watch = Observer::new(move |_, rows: &[(Seen, isize)]| {
            let all = rows.len() + seen.fetch_add(rows.len(), std::sync::atomic::Ordering::Relaxed);
            if all == fail_at { Err(Error::new("killed")) } else { Ok(()) }
        });
        let watch = std::sync::Arc::new(watch);
        let state = State::at(directory.path().join("state")).snapshot_every(Duration::from_secs(3600));
        let state = state.accept_changed_query(true).accept_changed_sources(true);
        Job::new("seen").epoch(Duration::from_millis(5)).state(state).run(move |flow| {
            let messages = flow.read("messages", &source);
            messages.clone().write("seen", &sink);
            messages.write("watch", &*watch);
        })
    };
    let first = broker(2);
    send(&first, &before);
    let error = run(&first, naive(&before).0.len()).unwrap_err().to_string();
    assert!(error.contains("killed"), "{error}");
    let second = broker(2);
    send(&second, &[other, after.clone()].concat());
    let report = run(&second, usize::MAX).unwrap();
    let text = std::fs::read_to_string(&out).unwrap();
    let rows = text.lines().map(|line| serde_json::from_str::<Seen>(line).unwrap());
    assert_eq!(sorted(rows), naive(&[before, after].concat()).0, "{}", report.summary);
}

/// A letter as a test compares it: step, reason, message.
type Letter = (String, String, Seen);

/// Computes the letters of the late records of a step: those for which `is_late` returns `true`, given event time and
/// watermark.
fn naive_letters(step: &str, messages: &[Seen], disorder: i64, is_late: impl Fn(i64, i64) -> bool) -> Vec<Letter> {
    let mut watermarks = BTreeMap::<u32, i64>::new();
    let mut late = Vec::new();
    for message in messages {
        let time = message.at_ms.unwrap();
        if let Some(watermark) = watermarks.get(&message.partition).filter(|watermark| is_late(time, **watermark)) {
            let text = |millis| EventTime::from_millis(millis).to_string();
            let reason = format!("too late (event time {}, watermark {})", text(time), text(*watermark));
            late.push((step.to_owned(), reason, message.clone()));
        }
        let watermark = watermarks.entry(message.partition).or_insert(i64::MIN);
        *watermark = (*watermark).max(time - disorder);
    }
    late
}

/// Late records of several steps are the messages that they were read as, whichever worker judged them, once each, though
/// two records are made of each message. A record of another source is its JSON.
#[test]
fn late_records_are_the_messages_that_they_were_read_as_whichever_worker_judged_them() {
    const DISORDER: i64 = 100_000;
    for seed in 0..4 {
        let mut rng = Rng::with_seed(seed);
        let partitions = 1 + seed as u32;
        let (broker, messages) = (broker(partitions), random(&mut rng, partitions, 0..80));
        send(&broker, &messages);
        let source = kafka::Source::new(broker.servers(), TOPIC, choosy).event_time_of_message();
        let source = source.out_of_order(Duration::from_millis(DISORDER as u64));
        let numbers = MemorySource::new(vec![vec![900_000_i64, 5, 900_001]], |at| *at).out_of_order(Duration::ZERO);
        let captured = Captured::<DeadLetter>::new();
        let letters = captured.clone();
        let job = Job::new("late").options(bounded()).workers(3).epoch(Duration::from_millis(3));
        let report = job.run(move |flow| {
            let twice = flow.read("messages", &source).flat_map(|seen| [(seen.clone(), 0), (seen, 1)]);
            let short =
                twice.clone().key_by(|(seen, _)| seen.offset % 7).window(Window::tumbling(Duration::from_secs(10)));
            let short = short.aggregate("short", Each::count);
            // Looked up in a table, so that records are judged by the workers of their keys.
            let numbers = flow.read_first("numbers", &numbers);
            let rows = numbers.clone().key_by(|n| *n).last_by_key("table");
            let joined = twice.key_by(|(seen, n)| i64::from(*n) + seen.offset as i64).left_join_table(rows);
            let sessions =
                joined.key_by(|((seen, _), _)| seen.offset % 3).window(Window::session(Duration::from_secs(1)));
            let sessions = sessions.aggregate("sessions", Each::count);
            let of_numbers = numbers
                .key_by(|n| *n)
                .window(Window::tumbling(Duration::from_secs(1)))
                .aggregate("numbers", Each::count);
            let late = short.late().dead_letters("short", "too late");
            let late = late.concat(sessions.late().dead_letters("sessions", "too late"));
            late.concat(of_numbers.late().dead_letters("of numbers", "too late")).write("letters", &letters);
        });
        let (records, ..) = naive(&messages);
        // In the order of reading.
        let records: Vec<Seen> = messages.iter().filter(|message| records.contains(message)).cloned().collect();
        let mut expected = naive_letters("short", &records, DISORDER, |time, watermark| {
            (time.div_euclid(10_000) + 1) * 10_000 <= watermark
        });
        assert!(expected.len() > 10, "seed {seed}");
        expected.extend(naive_letters("sessions", &records, DISORDER, |time, watermark| time < watermark));
        expected.sort();
        let (mut found, mut rows) = (Vec::new(), Vec::new());
        for letter in captured.all() {
            let value = letter.value().map(std::borrow::Cow::into_owned);
            let DeadLetter { rejected, message, .. } = letter;
            let Some(message) = message else {
                rows.push((rejected.source, rejected.record, rejected.place));
                continue;
            };
            assert_eq!((&*message.topic, &*rejected.place), (TOPIC, TOPIC));
            let (partition, offset, at_ms) = (rejected.partition, rejected.offset, message.timestamp);
            let seen = Seen { partition, offset, at_ms, key: message.key, headers: message.headers, value };
            found.push((rejected.source, rejected.reason, seen));
        }
        found.sort();
        assert!(found == expected, "seed {seed}: {found:#?} is not {expected:#?}");
        assert_eq!(rows, [("of numbers".to_owned(), "5".to_owned(), String::new())], "seed {seed}");
        report.unwrap();
    }
}

#[test]
fn a_source_of_messages_is_described_like_any_other() {
    let source = kafka::Source::new("localhost:1", TOPIC, whole).event_time_of_header("at").config("client.id", "x");
    assert_eq!(source.clone().describe(), "topic messages at localhost:1");
}
