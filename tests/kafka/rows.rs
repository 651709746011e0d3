//! What rows are in a topic: everything that a message has, the newest row of each key, changes in Debezium's shape.
//! Topics are read by the client library alone, as foreign programs read them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use fastrand::Rng;
use serde::{Deserialize, Serialize};
use tidegate::durable::journal::JournalEnds;
use tidegate::durable::{Incarnation, StateId};
use tidegate::kafka::{self, encode};
use tidegate::sink::{Sink, SinkContext, SinkRows, SinkWriter};
use tidegate::source::kafka::EmbeddedBroker;
use tidegate::source::memory::MemorySource;
use tidegate::testing::{Script, TestRun};
use tidegate::time::Epoch;

use crate::broker::Broker;
use crate::foreign::{Read, read};

/// A state that a sink belongs to, with the number of its current incarnation.
#[derive(Clone)]
struct SinkState {
    id: StateId,
    lives: Arc<AtomicU64>,
}

impl SinkState {
    fn new() -> SinkState {
        static STATES: AtomicU64 = AtomicU64::new(1);
        SinkState { id: StateId(STATES.fetch_add(1, Ordering::Relaxed)), lives: Arc::default() }
    }

    /// Starts the next incarnation of a sink; also returns what was published before.
    fn open<D: tidegate::Record>(
        &self,
        sink: &kafka::Sink<D>,
        rows: SinkRows,
    ) -> (Box<dyn SinkWriter<D>>, Option<Epoch>) {
        sink.check(rows).unwrap();
        let context = SinkContext { state: Some(self.id), ..SinkContext::new("job", "rows", rows) };
        let mut writer = sink.open(&context).unwrap();
        let shown = writer.published().unwrap().map(|found| found.epoch);
        let incarnation = self.lives.fetch_add(1, Ordering::SeqCst) + 1;
        let still_current = Arc::new(|| Ok(()));
        writer.begin(&Incarnation { state: Some(self.id), incarnation, resumed_from: None, still_current }).unwrap();
        (writer, shown)
    }
}

fn publish<D: tidegate::Record>(writer: &mut Box<dyn SinkWriter<D>>, epoch: u64, rows: &[(D, isize)]) {
    writer.write(Epoch(epoch), rows).unwrap();
    writer.publish(&JournalEnds::default()).unwrap();
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
struct Row {
    key: String,
    n: u64,
}

fn row(key: u64, n: u64) -> Row {
    Row { key: format!("k{key}"), n }
}

#[test]
fn a_message_has_the_key_the_headers_the_partition_and_the_time_of_its_row() {
    let Some(broker) = Broker::shared() else { return };
    let topic = broker.topic(3);
    let sink = kafka::Sink::new(&broker.servers, &topic, encode::csv())
        .key_bytes(|row: &Row| (row.n > 0).then(|| vec![0xff, row.n as u8]))
        .headers(|row| {
            let null = (String::from("null"), None);
            vec![(String::from("n"), Some(row.n.to_string().into_bytes())), null, (String::from("n"), Some(vec![0xfe]))]
        })
        .partition(|row, partitions| (row.n as u32 + 1) % partitions)
        .timestamp(|row| 1_700_000_000_000 + row.n as i64)
        .tombstone_if(|row| row.n == 2);
    let (mut writer, _) = SinkState::new().open(&sink, SinkRows::Events);
    publish(&mut writer, 2, &[(row(7, 0), 1), (row(7, 1), 1), (row(7, 2), 1)]);
    let mut messages = read(&broker.servers, &topic);
    messages.sort_by_key(|message| message.at_ms);
    let expected = (0..3).map(|n: u8| Read {
        partition: i32::from(n + 1) % 3,
        offset: 0,
        at_ms: Some(1_700_000_000_000 + i64::from(n)),
        key: (n > 0).then(|| vec![0xff, n]),
        headers: vec![
            (String::from("n"), Some(n.to_string().into_bytes())),
            (String::from("null"), None),
            (String::from("n"), Some(vec![0xfe])),
        ],
        value: (n != 2).then(|| format!("k7,{n}").into_bytes()),
    });
    assert_eq!(messages, expected.collect::<Vec<_>>());
}

#[test]
fn what_cannot_be_sent_is_refused_by_name() {
    let broker = EmbeddedBroker::start().unwrap();
    broker.create_topic("rows", 2).unwrap();
    let sink = || kafka::Sink::json(broker.servers(), "rows").key_by(|row: &Row| row.key.clone());
    let refused = |sink: kafka::Sink<Row>, rows| sink.check(rows).unwrap_err().to_string();
    let closure = kafka::Sink::new(broker.servers(), "rows", |_: &Row, _: &mut Vec<u8>| Ok(()));
    for (why, expected) in [
        (refused(sink().upsert(), SinkRows::Events), "events are never retracted"),
        (refused(kafka::Sink::json(broker.servers(), "rows").upsert(), SinkRows::Changes), "there is no key"),
        (refused(closure.clone(), SinkRows::Changes), "only JSON has a place"),
        (refused(closure.debezium(), SinkRows::Events), "`before` and `after` are JSON"),
        (refused(sink().tombstone_if(|_| true), SinkRows::Changes), "omit `tombstone_if`"),
    ] {
        assert!(why.contains(expected) && why.contains("topic rows"), "{why}");
    }
    let failed = |sink: kafka::Sink<Row>| {
        let mut writer = sink.open(&SinkContext::new("job", "rows", SinkRows::Events)).unwrap();
        writer.write(Epoch(2), &[(row(1, 1), 1)]).unwrap_err().to_string()
    };
    for (why, expected) in [
        (failed(sink().partition(|_, partitions| partitions)), "a row goes to partition 2, which does not exist"),
        (failed(sink().partition(|_, _| u32::MAX)), "a row goes to partition 4294967295, which does not exist"),
        (failed(sink().timestamp(|_| 0)), "a message cannot have the timestamp 0"),
        (
            failed(kafka::Sink::new(broker.servers(), "rows", |_: &Row, _: &mut Vec<u8>| Err("unlucky".into()))),
            "a row cannot be encoded as a message (topic rows",
        ),
    ] {
        assert!(why.starts_with(expected), "{why}");
    }
}

/// Returns the compression of each batch in the broker's files of a topic with one partition: 0 is none, 3 is lz4.
fn compressions(broker: &Broker, topic: &str) -> Vec<u8> {
    fn logs(folder: &Path, partition: &str, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            let is_of_partition = entry.parent().is_some_and(|folder| folder.ends_with(partition));
            match entry.extension() {
                _ if entry.is_dir() => logs(&entry, partition, found),
                Some(extension) if extension == "log" && is_of_partition => found.push(entry),
                _ => {}
            }
        }
    }
    let mut found = Vec::new();
    logs(broker.data(), &format!("{topic}-0"), &mut found);
    let (mut kinds, bytes) = (Vec::new(), fs::read(found.first().unwrap()).unwrap());
    let mut rest = &bytes[..];
    // A batch: base offset, length, epoch of the leader, version, checksum, attributes.
    while rest.len() > 23 {
        let attributes = rest[22];
        if attributes & 0b10_0000 == 0 {
            kinds.push(attributes & 0b111);
        }
        let length = u32::from_be_bytes(rest[8..12].try_into().unwrap()) as usize + 12;
        rest = rest.get(length..).filter(|_| length > 23).unwrap_or_default();
    }
    kinds
}

#[test]
fn messages_are_compressed_unless_a_property_says_otherwise() {
    let Some(broker) = Broker::shared() else { return };
    for (property, expected) in [(None, 3), (Some("compression.type"), 0), (Some("compression.codec"), 0)] {
        let topic = broker.topic(1);
        let sink = kafka::Sink::json(&broker.servers, &topic);
        let sink = sink.configs(property.map(|name| (name, "none")));
        let (mut writer, _) = SinkState::new().open(&sink, SinkRows::Events);
        let rows: Vec<_> = (0..500).map(|n| (row(1, n), 1)).collect();
        publish(&mut writer, 2, &rows);
        let kinds = compressions(broker, &topic);
        assert!(!kinds.is_empty() && kinds.iter().all(|kind| *kind == expected), "{property:?}: {kinds:?}");
        assert_eq!(read(&broker.servers, &topic).len(), 500);
    }
}

/// Changes a collection of one row per key at random; returns the changes, consolidated and sorted.
fn change(rng: &mut Rng, collection: &mut BTreeMap<String, Row>, epoch: u64) -> Vec<(Row, isize)> {
    let mut changes = BTreeMap::<Row, isize>::new();
    for _ in 0..rng.usize(1..8) {
        let new = row(rng.u64(0..12), epoch * 100 + rng.u64(0..50));
        let old = if rng.u8(0..3) == 0 {
            collection.remove(&new.key)
        } else {
            *changes.entry(new.clone()).or_default() += 1;
            collection.insert(new.key.clone(), new)
        };
        if let Some(old) = old {
            *changes.entry(old).or_default() -= 1;
        }
    }
    changes.into_iter().filter(|(_, diff)| *diff != 0).collect()
}

/// Returns the newest row of each key.
fn newest(messages: &[Read]) -> BTreeMap<String, Row> {
    let mut rows = BTreeMap::new();
    for message in messages {
        match message.value() {
            Some(text) => rows.insert(message.key(), serde_json::from_str(&text).unwrap()),
            None => rows.remove(&message.key()),
        };
    }
    rows
}

#[test]
fn upserts_are_the_collection_at_every_epoch_whatever_ends_the_writer() {
    let Some(broker) = Broker::shared() else { return };
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let (mut rng, topic, state) = (Rng::with_seed(seed), broker.topic(3), SinkState::new());
    let sink = kafka::Sink::json(&broker.servers, &topic).key_by(|row: &Row| row.key.clone()).upsert();
    let (mut writer, _) = state.open(&sink, SinkRows::Changes);
    let (mut collection, mut count, mut killed) = (BTreeMap::new(), 0, Vec::new());
    for epoch in (2..46).step_by(2) {
        let changes = change(&mut rng, &mut collection, epoch);
        if rng.u8(0..5) == 0 {
            // As if it was killed with the epoch sent and not committed: it is never dropped.
            writer.write(Epoch(epoch), &changes).unwrap();
            let (next, shown) = state.open(&sink, SinkRows::Changes);
            assert_eq!(shown, Some(Epoch(epoch - 2)).filter(|epoch| epoch.0 > 0));
            killed.push(std::mem::replace(&mut writer, next));
        }
        publish(&mut writer, epoch, &changes);
        let messages = read(&broker.servers, &topic);
        assert_eq!(newest(&messages), collection, "epoch {epoch}, seed {seed}");
        let mut keys: Vec<_> = changes.iter().map(|(row, _)| &row.key).collect();
        keys.dedup();
        count += keys.len();
        assert_eq!(messages.len(), count, "a key has one message in an epoch: epoch {epoch}, seed {seed}");
        assert!(messages.iter().filter_map(Read::value).all(|value| !value.contains("diff")));
    }
}

#[test]
fn changes_in_debeziums_shape_have_the_row_before_and_after() {
    let Some(broker) = Broker::shared() else { return };
    let topic = broker.topic(1);
    let sink = kafka::Sink::json(&broker.servers, &topic).key_by(|row: &Row| row.key.clone()).debezium();
    let (mut writer, _) = SinkState::new().open(&sink, SinkRows::Changes);
    publish(&mut writer, 1_700_000_000_002, &[(row(1, 1), 1), (row(2, 5), 1)]);
    publish(&mut writer, 1_700_000_000_004, &[(row(1, 1), -1), (row(1, 2), 1), (row(2, 5), -1)]);
    let messages = read(&broker.servers, &topic);
    let values: Vec<_> = messages.iter().map(|message| (message.key(), message.value().unwrap())).collect();
    let expected = [
        ("k1", r#"{"before":null,"after":{"key":"k1","n":1},"op":"c","ts_ms":1700000000002}"#),
        ("k2", r#"{"before":null,"after":{"key":"k2","n":5},"op":"c","ts_ms":1700000000002}"#),
        ("k1", r#"{"before":{"key":"k1","n":1},"after":{"key":"k1","n":2},"op":"u","ts_ms":1700000000004}"#),
        ("k2", r#"{"before":{"key":"k2","n":5},"after":null,"op":"d","ts_ms":1700000000004}"#),
    ];
    assert_eq!(values, expected.map(|(key, value)| (key.to_owned(), value.to_owned())));
}

/// A second row of a key in a later epoch is no contradiction within that epoch: the job knows the key's first row.
#[test]
fn a_second_row_of_a_key_ends_the_job_before_its_epoch_is_written() {
    for workers in [1, 2] {
        let broker = EmbeddedBroker::start().unwrap();
        broker.create_topic("newest", 1).unwrap();
        let records: Vec<(u64, u64, i64)> = vec![(1, 1, 1), (2, 1, 2), (1, 1, 3), (1, 2, 4), (3, 1, 5)];
        let source = MemorySource::new(vec![records], |record: &(u64, u64, i64)| record.2);
        let sink = kafka::Sink::json(broker.servers(), "newest").key_by(|row: &Row| row.key.clone()).upsert();
        let script = (0..5).fold(Script::new(), |script, _| script.epoch(|epoch| epoch.take(0, 1)));
        let script = script.epoch(|epoch| epoch.end(0));
        let outcome = TestRun::new().workers(workers).script("rows", script).run(move |flow| {
            flow.read("rows", &source)
                .key_by(|(key, n, _)| (*key, *n))
                .last_by_key_with("rows", |record| Some(record.2))
                .map(|((key, n), _)| row(key, n))
                .write("newest", &sink);
        });
        let error = outcome.unwrap_err().to_string();
        assert!(error.starts_with("the key \"k1\" has more than one row (sink `newest`)"), "{error}");
        let keys: Vec<_> =
            read(broker.servers(), "newest").iter().map(|message| (message.key(), message.value().unwrap())).collect();
        let written = |key: &str| (key.to_owned(), format!(r#"{{"key":"{key}","n":1}}"#));
        // Earlier epochs may be written, or not yet; the one of the second row is not.
        assert!([written("k1"), written("k2")].starts_with(&keys), "{keys:?}");
    }
}
