//! The query programs on topics of a real broker: the figures are those of the records, whatever the number of workers,
//! and whatever happens to partitions and to the broker meanwhile. An embedded broker is too simple for this.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::broker::{Broker, committed};
use crate::proxy::Proxy;
use crate::run::{ProgramOutput, Running, check_contains, run, start};
use crate::transactions::{
    COLUMNS, DISORDER_MS, Expected, START_MS, TOTALS, Transaction, csv_of, expected, json_of, ndjson_of, of_json,
    rows_of, same_rows, sorted_by_window, tidy, whole_records, wild,
};
use nix::sys::signal::Signal;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::Message;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::{Offset, TopicPartitionList};

const ACCOUNT_TOTALS: &str = "account_totals";
const BALANCES: &str = "balances";
const TIDEGATE: &str = env!("CARGO_BIN_EXE_tidegate");
const PATIENCE: Duration = Duration::from_secs(30);

/// Sends messages to a partition, in order, and waits until the broker has them.
fn send<M: AsRef<[u8]>>(broker: &Broker, topic: &str, partition: usize, messages: impl IntoIterator<Item = M>) {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", &broker.servers).set("enable.idempotence", "true").set("linger.ms", "2");
    let producer: BaseProducer = config.set("message.max.bytes", "16000000").create().unwrap();
    for message in messages {
        let record = BaseRecord::<(), [u8]>::to(topic).partition(partition as i32).payload(message.as_ref());
        producer.send(record).map_err(|(why, _)| why).unwrap();
        producer.poll(Duration::ZERO);
    }
    producer.flush(PATIENCE).unwrap();
}

/// Sends each partition's rows.
fn send_rows(broker: &Broker, topic: &str, partitions: &[Vec<Transaction>]) {
    for (partition, rows) in partitions.iter().enumerate() {
        send(broker, topic, partition, rows.iter().map(json_of));
    }
}

/// Returns all messages of a topic.
fn read_all(broker: &Broker, topic: &str) -> Vec<String> {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", &broker.servers).set("group.id", "nobody");
    let consumer: BaseConsumer = config.set("enable.auto.commit", "false").create().unwrap();
    let metadata = consumer.fetch_metadata(Some(topic), PATIENCE).unwrap();
    let (mut list, mut missing) = (TopicPartitionList::new(), 0);
    for partition in metadata.topics()[0].partitions() {
        missing += consumer.fetch_watermarks(topic, partition.id(), PATIENCE).unwrap().1;
        list.add_partition_offset(topic, partition.id(), Offset::Beginning).unwrap();
    }
    consumer.assign(&list).unwrap();
    let (begun, mut messages) = (Instant::now(), Vec::new());
    while (messages.len() as i64) < missing {
        assert!(begun.elapsed() < PATIENCE, "{} of {missing} messages of {topic} were there", messages.len());
        if let Some(message) = consumer.poll(Duration::from_millis(100)) {
            messages.push(String::from_utf8(message.unwrap().payload().unwrap().to_vec()).unwrap());
        }
    }
    messages
}

/// Distributes rows over partitions, in order.
fn dealt(rows: Vec<Transaction>, count: usize) -> Vec<Vec<Transaction>> {
    let mut partitions = vec![Vec::new(); count];
    rows.into_iter().for_each(|row| partitions[row.id as usize * 7 % 11 % count].push(row));
    partitions
}

fn expected_of(partitions: &[Vec<Transaction>]) -> Expected {
    expected(partitions.iter().map(Vec::as_slice), DISORDER_MS)
}

/// Returns the arguments, with the broker and the topic.
fn typed(broker: &Broker, topic: &str, folder: &Path, line: &str) -> Vec<String> {
    let head = ["--brokers", &broker.servers, "--topic", topic].map(String::from);
    let rest = line.split_whitespace().map(|word| word.replace("{}", folder.to_str().unwrap()));
    head.into_iter().chain(rest).collect()
}

#[track_caller]
fn check_totals(path: &Path, expected: &Expected) {
    let rows = rows_of(path, &TOTALS);
    same_rows(&rows, &expected.rows());
    sorted_by_window(&rows);
}

#[track_caller]
fn check_figures(ended: &ProgramOutput, expected: &Expected, rejected: u64) {
    let accepted = expected.counted + expected.late.len() as u64;
    assert_eq!(ended.figures("transactions: "), [accepted + rejected, accepted, rejected]);
    assert_eq!(ended.figures("totals: ")[..3], [accepted, expected.counted, expected.late.len() as u64]);
}

#[test]
fn totals_of_a_topic_are_those_of_its_records_on_any_number_of_workers() {
    let Some(broker) = Broker::shared() else { return };
    let folder = tempfile::tempdir().unwrap();
    for (partitions, some_late) in [(dealt(tidy(1, 20_000), 4), false), (dealt(wild(2, 20_000), 4), true)] {
        let topic = broker.topic(4);
        send_rows(broker, &topic, &partitions);
        let expected = expected_of(&partitions);
        assert_eq!(!expected.late.is_empty(), some_late);
        for workers in [1, 2] {
            let line = format!("--until-end -w {workers} --out {{}}/out.csv --late {{}}/late.csv");
            let ended = run(ACCOUNT_TOTALS, typed(broker, &topic, folder.path(), &line));
            check_figures(ended.code(0), &expected, 0);
            check_totals(&folder.path().join("out.csv"), &expected);
            let late: Vec<_> = expected.late.iter().map(|row| COLUMNS.map(|name| row.column(name)).to_vec()).collect();
            same_rows(&rows_of(&folder.path().join("late.csv"), &COLUMNS), &late);
        }
        let ended = run(BALANCES, typed(broker, &topic, folder.path(), "--until-end -w 2 --out {}/balances.csv"));
        assert!(ended.code(0).stderr.contains("every total 0"));
    }
}

#[test]
fn rejects_of_a_topic_have_their_partition_and_offset() {
    let Some(broker) = Broker::shared() else { return };
    let folder = tempfile::tempdir().unwrap();
    let topic = broker.topic(4);
    let partitions = dealt(wild(3, 4_000), 4);
    let bad: [(Vec<u8>, &str); 5] = [
        (b"{".to_vec(), "EOF"),
        (Vec::new(), ""),
        (br#"{"id":1,"account":"a","merchant":"m","amount_cents":1,"currency":"EUR"}"#.to_vec(), "`at_ms`"),
        (
            br#"{"id":1,"account":"a","merchant":"m","amount_cents":1,"currency":"EUR","at_ms":32503680000000}"#
                .to_vec(),
            "--max-ahead",
        ),
        (vec![b'x'; 10_000_000], ""),
    ];
    let mut places = Vec::new();
    for (partition, rows) in partitions.iter().enumerate() {
        let mut messages = Vec::new();
        for (number, row) in rows.iter().enumerate() {
            if number % 200 == 7 && number / 200 < bad.len() {
                places.push((partition as u64, messages.len() as u64, &bad[number / 200]));
                messages.push(bad[number / 200].0.clone());
            }
            messages.push(json_of(row).into_bytes());
        }
        send(broker, &topic, partition, messages);
    }
    let line = "--until-end -w 2 --out {}/out.csv --rejects {}/rejects.ndjson";
    let ended = run(ACCOUNT_TOTALS, typed(broker, &topic, folder.path(), line));
    let expected = expected_of(&partitions);
    check_figures(ended.code(0), &expected, places.len() as u64);
    check_totals(&folder.path().join("out.csv"), &expected);
    let text = fs::read_to_string(folder.path().join("rejects.ndjson")).unwrap();
    let mut found: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    found.sort_by_key(|reject| (reject["partition"].as_u64(), reject["offset"].as_u64()));
    assert_eq!(found.len(), places.len());
    for (reject, (partition, offset, (record, reason))) in found.iter().zip(places) {
        assert_eq!((reject["partition"].as_u64(), reject["offset"].as_u64()), (Some(partition), Some(offset)));
        assert_eq!(reject["record"].as_str().unwrap().as_bytes(), record);
        check_contains(reject["reason"].as_str().unwrap(), &[reason]);
        check_contains(reject["place"].as_str().unwrap(), &[&topic]);
    }
    let ended = run(ACCOUNT_TOTALS, typed(broker, &topic, folder.path(), "--until-end --fail-on-reject"));
    check_contains(ended.error(1), &[&topic, "partition ", "offset "]);
}

#[test]
fn totals_written_to_a_topic_read_back_equal() {
    let Some(broker) = Broker::shared() else { return };
    let folder = tempfile::tempdir().unwrap();
    let partitions = dealt(wild(4, 8_000), 4);
    let topic = broker.topic(4);
    send_rows(broker, &topic, &partitions);
    for workers in [1, 2] {
        let out = format!("totals-{workers}");
        let line = format!("--until-end -w {workers} --out kafka:{out}");
        run(ACCOUNT_TOTALS, typed(broker, &topic, folder.path(), &line)).code(0);
        let messages = read_all(broker, &out);
        let found: Vec<Vec<String>> = (messages.iter())
            .map(|message| {
                let row: serde_json::Map<String, serde_json::Value> = serde_json::from_str(message).unwrap();
                assert_eq!(row.len(), TOTALS.len());
                TOTALS.map(|name| row[name].as_str().map_or_else(|| row[name].to_string(), String::from)).to_vec()
            })
            .collect();
        // Sums beyond 64 bits are integers too, but not all readers of JSON support them.
        let sums = |rows: &[Vec<String>]| {
            let narrow = |row: &Vec<String>| row[4].parse::<i64>().is_ok();
            rows.iter().filter(|row| narrow(row)).cloned().collect::<Vec<_>>()
        };
        let expected = expected_of(&partitions).rows();
        assert_eq!(found.len(), expected.len());
        same_rows(&sums(&found), &sums(&expected));
    }
}

/// Waits until the results file has exactly these rows.
#[track_caller]
fn until_rows(running: &mut Running, path: &Path, expected: &Expected) {
    let expected = expected.rows();
    let found = running.wait_until(&format!("{} rows", expected.len()), |_| {
        let records = whole_records(&fs::read_to_string(path).ok()?).ok()?;
        (records.len() > expected.len()).then_some(records)
    });
    same_rows(&found[1..], &expected);
}

/// Returns the final results when each partition has had a record at `end_ms`, which stays in an open window.
fn closed(partitions: &[Vec<Transaction>], end_ms: i64) -> Expected {
    let mut all = expected_of(partitions);
    all.totals.retain(|total| total.start_ms + crate::transactions::SIZE_MS <= end_ms - DISORDER_MS);
    all
}

/// Returns a record for each partition that closes all earlier windows.
fn closing(end_ms: i64, partitions: usize) -> Vec<Vec<Transaction>> {
    (0..partitions).map(|partition| vec![Transaction::new(partition as u64, "end", 1, end_ms)]).collect()
}

fn append(partitions: &mut [Vec<Transaction>], more: &[Vec<Transaction>]) {
    partitions.iter_mut().zip(more).for_each(|(rows, more)| rows.extend(more.iter().cloned()));
}

#[test]
fn a_partition_that_is_added_while_a_query_runs_is_found() {
    let Some(broker) = Broker::shared() else { return };
    let folder = tempfile::tempdir().unwrap();
    let (topic, out) = (broker.topic(2), folder.path().join("out.csv"));
    let rows = tidy(5, 3_000);
    let middle = rows[1_500].at_ms;
    let (before, after): (Vec<_>, Vec<_>) = rows.into_iter().partition(|row| row.at_ms <= middle);
    let mut partitions = dealt(before, 2);
    append(&mut partitions, &closing(middle, 2));
    send_rows(broker, &topic, &partitions);
    let mut running = start(ACCOUNT_TOTALS, typed(broker, &topic, folder.path(), "-w 2 --out {}/out.csv"));
    until_rows(&mut running, &out, &closed(&partitions, middle));
    broker.grow(&topic, 3);
    // The broker may need a moment to know its new partition.
    std::thread::sleep(Duration::from_millis(500));
    let end = after.last().unwrap().at_ms + 60_000;
    let mut more = dealt(after, 3);
    append(&mut more, &closing(end, 3));
    // The new one first: its records are on time only while the other partitions hold their windows open.
    send(broker, &topic, 2, more[2].iter().map(json_of));
    let there = partitions.iter().chain([&more[2]]).map(Vec::len).sum::<usize>();
    running.wait_until("progress with the records of the new partition", |running| {
        let said = running.stderr();
        let read = |line: &str| line.split_once(" s: ")?.1.split_once(" records")?.0.parse::<usize>().ok();
        said.lines().filter_map(read).any(|read| read >= there).then_some(())
    });
    send_rows(broker, &topic, &more[..2]);
    partitions.push(Vec::new());
    append(&mut partitions, &more);
    until_rows(&mut running, &out, &closed(&partitions, end));
    running.signal(Signal::SIGINT);
    check_figures(running.end().code(130), &expected_of(&partitions), 0);
}

/// A burst of one account, which is in one of four partitions, and then silence: a new user's typical topic.
#[test]
fn windows_of_a_burst_close_after_the_idle_time_also_on_many_workers_and_after_a_kill() {
    let Some(broker) = Broker::shared() else { return };
    let rows: Vec<_> =
        (0..500).map(|id| Transaction::new(id, "the first", 1, 1_700_000_000_000 + id as i64 * 100)).collect();
    let mut partitions = vec![Vec::new(); 4];
    partitions[2] = rows.clone();
    let expected = closed(&partitions, rows[499].at_ms);
    assert!(expected.rows().len() > 3);
    for (first, then) in [(1, 8), (8, 1)] {
        let folder = tempfile::tempdir().unwrap();
        let (topic, out) = (broker.topic(4), folder.path().join("out.csv"));
        let line = |workers: u8, idle: &str| {
            let line = format!(
                "-w {workers} --idle-timeout {idle} --out {{}}/out.csv --state {{}}/state --snapshot-every 50ms"
            );
            typed(broker, &topic, folder.path(), &line)
        };
        let mut running = start(ACCOUNT_TOTALS, line(first, "1h"));
        send_rows(broker, &topic, &partitions);
        running.wait_until("all records", |running| {
            let said = running.stderr();
            let read = |line: &str| line.split_once(" s: ")?.1.split_once(" records")?.0.parse::<usize>().ok();
            said.lines().filter_map(read).any(|read| read >= rows.len()).then_some(())
        });
        let shown = whole_records(&fs::read_to_string(&out).unwrap()).unwrap();
        assert_eq!(shown.len(), 1, "three partitions have said nothing yet, and none is idle: {shown:?}");
        running.kill();
        running.end_or_killed();
        let mut running = start(ACCOUNT_TOTALS, line(then, "1s"));
        until_rows(&mut running, &out, &expected);
        running.kill();
        running.end_or_killed();
        // Restarted while everything is silent, it publishes nothing twice.
        let mut running = start(ACCOUNT_TOTALS, line(first, "1s"));
        send(broker, &topic, 0, [json_of(&Transaction::new(500, "the second", 1, rows[499].at_ms + 60_000))]);
        let mut more = partitions.clone();
        more[0].push(Transaction::new(500, "the second", 1, rows[499].at_ms + 60_000));
        until_rows(&mut running, &out, &closed(&more, rows[499].at_ms + 60_000));
        running.signal(Signal::SIGTERM);
        running.end().code(143);
    }
}

/// Sends each partition's rows, to all of them in turns and not too fast; the broker may be gone for a while meanwhile.
fn send_slowly(servers: &str, topic: &str, partitions: &[Vec<Transaction>]) {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", servers).set("enable.idempotence", "true").set("reconnect.backoff.max.ms", "500");
    let producer: BaseProducer = config.create().unwrap();
    for turn in 0..partitions.iter().map(Vec::len).max().unwrap() {
        for (partition, row) in partitions.iter().enumerate().filter_map(|(at, rows)| Some((at, rows.get(turn)?))) {
            let text = json_of(row);
            let record = BaseRecord::<(), str>::to(topic).partition(partition as i32).payload(&text);
            producer.send(record).map_err(|(why, _)| why).unwrap();
        }
        producer.poll(if turn % 100 == 99 { Duration::from_millis(10) } else { Duration::ZERO });
    }
    producer.flush(2 * PATIENCE).unwrap();
}

#[test]
fn a_broker_that_stops_and_comes_back_loses_nothing_and_doubles_nothing() {
    let Some(broker) = Broker::start() else { return };
    let folder = tempfile::tempdir().unwrap();
    let (topic, out) = (broker.topic(4), folder.path().join("out.csv"));
    let rows = tidy(6, 70_000);
    let middle = rows[60_000].at_ms;
    let (before, after): (Vec<_>, Vec<_>) = rows.into_iter().partition(|row| row.at_ms <= middle);
    let mut partitions = dealt(before, 4);
    append(&mut partitions, &closing(middle, 4));
    let line = "-w 2 --out {}/out.csv --epoch 20ms";
    let mut running = start(ACCOUNT_TOTALS, typed(&broker, &topic, folder.path(), line));
    // The broker is killed while records arrive and results are published.
    std::thread::scope(|scope| {
        let sending = scope.spawn(|| send_slowly(&broker.servers, &topic, &partitions));
        running.wait_until("results", |_| (fs::metadata(&out).ok()?.len() > 10_000).then_some(()));
        broker.kill();
        assert!(!sending.is_finished(), "all was sent before the broker was killed");
        std::thread::sleep(Duration::from_secs(3));
        broker.restart();
    });
    until_rows(&mut running, &out, &closed(&partitions, middle));
    let end = after.last().unwrap().at_ms + 60_000;
    let mut more = dealt(after, 4);
    append(&mut more, &closing(end, 4));
    send_rows(&broker, &topic, &more);
    append(&mut partitions, &more);
    until_rows(&mut running, &out, &closed(&partitions, end));
    running.signal(Signal::SIGTERM);
    check_figures(running.end().code(143), &expected_of(&partitions), 0);
    same_rows(&rows_of(&out, &TOTALS), &closed(&partitions, end).rows());

    // A broker that does not come back is reported when a query starts.
    broker.kill();
    let begun = Instant::now();
    let ended = run(ACCOUNT_TOTALS, typed(&broker, &topic, folder.path(), "--until-end"));
    check_contains(ended.error(1), &[&broker.servers, "start the broker"]);
    assert!(begun.elapsed() < Duration::from_secs(20), "it took {:?}", begun.elapsed());
}

/// A cluster whose only broker has missed its heartbeats, as on a laptop that was asleep, tells clients of no broker for a
/// while. In some races the client library then never connects again, and clients are replaced.
#[test]
fn a_cluster_that_names_no_broker_for_a_while_keeps_no_client_waiting() {
    let proxy = Proxy::listen();
    let Some(broker) = Broker::start_with(&["--proxied", &proxy.ports()]) else { return };
    let folder = tempfile::tempdir().unwrap();
    let topic = broker.topic(4);
    let out = format!("{topic}-out");
    broker.create(&out, 2);
    let line = format!("-w 2 --out kafka:{out} --state {{}}/state --epoch 20ms --snapshot-every 100ms");
    let mut words = typed(&broker, &topic, folder.path(), &line);
    words[1].clone_from(&proxy.servers);
    let mut running = start(ACCOUNT_TOTALS, words);
    let (mut partitions, mut now_ms, mut waits) = (vec![Vec::new(); 4], START_MS, Vec::new());
    let send_more = |partitions: &mut Vec<Vec<Transaction>>, now_ms: &mut i64| {
        let first = partitions.iter().map(Vec::len).sum::<usize>() as u64;
        let row = |at: i64| Transaction::new(first + at as u64, "a", at, *now_ms + at * 20);
        let chunk = dealt((0..50).map(row).collect(), 4);
        *now_ms += 1_000;
        send_rows(&broker, &topic, &chunk);
        append(partitions, &chunk);
    };
    for round in 0..3 {
        if round > 0 {
            // Clients ask for metadata every few seconds.
            let (begun, before) = (Instant::now(), proxy.emptied());
            proxy.name_no_broker(true);
            while begun.elapsed() < Duration::from_secs(5) || proxy.emptied() == before {
                send_more(&mut partitions, &mut now_ms);
                std::thread::sleep(Duration::from_millis(100));
            }
            proxy.name_no_broker(false);
        }
        send_more(&mut partitions, &mut now_ms);
        now_ms += 60_000;
        let last = closing(now_ms, 4);
        send_rows(&broker, &topic, &last);
        append(&mut partitions, &last);
        let (begun, expected) = (Instant::now(), closed(&partitions, now_ms).rows());
        let found = running.wait_until(&format!("{} rows after outage {round}", expected.len()), |_| {
            let found = of_json(&committed(&broker.servers, &out), &TOTALS);
            (found.len() >= expected.len()).then_some(found)
        });
        waits.push(begun.elapsed());
        same_rows(&found, &expected);
    }
    assert!(waits.iter().all(|wait| *wait < PATIENCE), "{waits:?}\n{}", running.stderr());
    running.signal(Signal::SIGTERM);
    running.end().code(143);
    same_rows(&of_json(&committed(&broker.servers, &out), &TOTALS), &closed(&partitions, now_ms).rows());
}

/// A file is produced to a topic, the topic is read by a query and by a copy, and the copy is read by the query again.
#[test]
fn what_is_produced_is_consumed_and_queried_alike() {
    let Some(broker) = Broker::shared() else { return };
    let folder = tempfile::tempdir().unwrap();
    let here = |name: &str| folder.path().join(name);
    let mut rows = tidy(7, 5_000);
    fs::write(here("in.csv"), csv_of(&rows, &COLUMNS)).unwrap();
    let tool = |line: &str| {
        let words = line.split_whitespace().map(|word| word.replace("{}", folder.path().to_str().unwrap()));
        run(TIDEGATE, words.chain(["--brokers".into(), broker.servers.clone()]))
    };
    tool("produce --topic round-trip --csv {}/in.csv --partitions 3").code(0);
    tool("consume --topic round-trip --out {}/copy.csv --until-end").code(0);
    let copied = rows_of(&here("copy.csv"), &COLUMNS);
    let row = |row: &Transaction| COLUMNS.map(|name| row.column(name)).to_vec();
    same_rows(&copied, &rows.iter().map(row).collect::<Vec<_>>());

    // All of an account's rows are in one partition, in order; so none is late, as none is in the file.
    let line = typed(broker, "round-trip", folder.path(), "--until-end -w 2 --out {}/totals.csv");
    let expected = expected_of(std::slice::from_ref(&rows));
    check_figures(run(ACCOUNT_TOTALS, line).code(0), &expected, 0);
    check_totals(&here("totals.csv"), &expected);

    // Later messages are added to the copy by a consumer with a state; one run of it is stopped in between.
    tool("consume --topic round-trip --out {}/kept.csv --state {}/state --until-end").code(0);
    let more: Vec<_> = rows.iter().map(|row| Transaction { id: row.id + 10_000, ..row.clone() }).collect();
    fs::write(here("more.ndjson"), ndjson_of(&more)).unwrap();
    tool("produce --topic round-trip --ndjson {}/more.ndjson").code(0);
    let words = ["consume", "--topic", "round-trip", "--brokers", &broker.servers, "--out"].map(String::from);
    let rest = [here("kept.csv"), "--state".into(), here("state")].map(|path| path.display().to_string());
    let running = start(TIDEGATE, words.into_iter().chain(rest));
    std::thread::sleep(Duration::from_secs(2));
    running.signal(Signal::SIGTERM);
    running.end().code(143);
    tool("consume --topic round-trip --out {}/kept.csv --state {}/state --until-end").code(0);
    rows.extend(more);
    same_rows(&rows_of(&here("kept.csv"), &COLUMNS), &rows.iter().map(row).collect::<Vec<_>>());

    let missing = tool("produce --topic round-trip --csv {}/missing.csv");
    check_contains(missing.error(1), &["missing.csv"]);
    tool("consume --topic no-such-topic --out {}/none.csv --until-end").error(1);
    tool("consume --topic round-trip").error(2);
    tool("no-such-command").error(2);
}

#[test]
fn a_topic_that_is_not_there_is_named() {
    let Some(broker) = Broker::shared() else { return };
    let folder = tempfile::tempdir().unwrap();
    let topic = broker.topic(1);
    let ended = run(ACCOUNT_TOTALS, typed(broker, &format!("{topic}s"), folder.path(), "--until-end -w 2"));
    check_contains(
        ended.error(1),
        &[&format!("{topic}s"), &broker.servers, "create it", &format!("did you mean {topic}")],
    );
    let ended = run(ACCOUNT_TOTALS, typed(broker, &topic, folder.path(), "--until-end --out {}/out.csv"));
    check_figures(ended.code(0), &Expected::default(), 0);
    check_totals(&folder.path().join("out.csv"), &Expected::default());
}
