//! Lists of topics as one source: which record comes from which topic, and whose list a state is of.
//!
//! It exists because the numbers of partitions in a journal stand for topics: a state must never go on with another list
//! than the one whose numbers it has. That all records are read once, on changing numbers of workers, is also tested in
//! `resume`.
#![expect(clippy::unwrap_used, reason = "a panic fails the test")]

#[path = "common/broker.rs"]
mod broker;
#[path = "common/drive.rs"]
mod drive;
#[path = "common/run.rs"]
mod run;
#[path = "common/transactions.rs"]
mod transactions;

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use broker::Broker;
use drive::{ReaderDriver, worker_context};
use fastrand::Rng;
use run::{check_contains, run, start};
use tidegate::kafka::{self, Message, StartOffset, Topics};
use tidegate::sink::kafka::Publisher;
use tidegate::source::kafka::EmbeddedBroker;
use tidegate::source::{Options, Source, WorkerContext};
use tidegate::time::EventTime;
use transactions::{TOTALS, Transaction, expected, json_of, rows_of, same_rows, tidy};

type Seen = (String, u32, u64, String);

/// A source whose records are the places and texts of its messages; texts that begin with `x` are rejected.
fn seen(servers: &str, topics: impl Into<Topics>) -> kafka::Source<Seen> {
    let decoder = |message: &Message<'_>| {
        let text = String::from_utf8(message.value().unwrap_or_default().to_vec()).map_err(|why| why.to_string())?;
        if text.starts_with('x') {
            return Err(String::from("no x"));
        }
        Ok(Some((message.topic().to_owned(), message.partition(), message.offset(), text)))
    };
    kafka::Source::new(servers, topics, decoder).event_time_of_message().out_of_order(Duration::ZERO)
}

fn embedded(topics: &[(&str, u32)]) -> EmbeddedBroker {
    let broker = EmbeddedBroker::start().unwrap();
    topics.iter().for_each(|(topic, partitions)| broker.create_topic(topic, *partitions).unwrap());
    broker
}

fn send(servers: &str, topic: &str, partition: u32, texts: &[&str], at_ms: i64) {
    let mut publisher = Publisher::open(servers, topic, [], None).unwrap();
    texts.iter().for_each(|text| publisher.send_to(partition, None, text.as_bytes(), Some(at_ms)).unwrap());
    publisher.flush().unwrap();
}

#[test]
fn each_message_names_its_topic_and_each_partition_has_a_number_and_a_watermark_of_its_own() {
    let broker = embedded(&[("a", 2), ("b", 1), ("c", 3)]);
    send(broker.servers(), "a", 1, &["a1", "x"], 5_000);
    send(broker.servers(), "b", 0, &["b0", "x"], 6_000);
    send(broker.servers(), "c", 2, &["c2"], 7_000);
    let source = seen(broker.servers(), ["a", "b", "c"]);
    let mut driven = ReaderDriver::open(&source, Options::default().until_end(true)).unwrap();
    driven.until_ended().unwrap();
    let of = |topic: &str, partition, text: &str| (topic.to_owned(), partition, 0, text.to_owned());
    let read: BTreeSet<_> = driven.events.iter().map(|event| (event.origin.partition, event.data.clone())).collect();
    let expected = [(1, of("a", 1, "a1")), (1_000_000, of("b", 0, "b0")), (2_000_002, of("c", 2, "c2"))];
    assert_eq!(read, BTreeSet::from(expected));
    let marks: BTreeSet<_> =
        driven.intake.partitions().map(|at| (at.partition, at.watermark.millis(), at.next)).collect();
    let none = EventTime::MIN.millis();
    let expected = [
        (0, none, 0),
        (1, 5_000, 2),
        (1_000_000, 6_000, 2),
        (2_000_000, none, 0),
        (2_000_001, none, 0),
        (2_000_002, 7_000, 1),
    ];
    assert_eq!(marks, BTreeSet::from(expected));
    let rejected: BTreeSet<_> =
        driven.rejects.iter().map(|reject| (reject.place.clone(), reject.partition, reject.offset)).collect();
    let place = |topic: &str| format!("topic {topic} at {}", broker.servers());
    assert_eq!(rejected, BTreeSet::from([(place("a"), 1, 1), (place("b"), 0, 1)]));
    // Monitoring knows the ends by the same numbers.
    driven.for_a_while(Duration::from_millis(700)).unwrap();
    let notes = driven.reader.partitions(&driven.intake);
    assert!(notes.iter().any(|at| at.partition == 2_000_002 && at.end == Some(1)), "{notes:?}");
    let bounds: Vec<_> = driven.epoch_inputs.iter().flat_map(|(_, input)| input.partitions.clone()).collect();
    let context = worker_context(Options::default());
    assert_eq!(source.has_new_data(&context, &bounds), Ok(None));
    send(broker.servers(), "b", 0, &["more"], 1);
    let grown = source.has_new_data(&context, &bounds).unwrap().unwrap();
    assert!(grown.contains("partition 0 of topic b"), "{grown}");
}

#[test]
fn workers_share_topics_of_one_partition_each() {
    let names: Vec<String> = (0..6).map(|number| format!("t{number}")).collect();
    let broker = embedded(&names.iter().map(|name| (name.as_str(), 1)).collect::<Vec<_>>());
    names.iter().for_each(|name| send(broker.servers(), name, 0, &["one"], 1));
    let mut all = BTreeSet::new();
    for worker in 0..3 {
        let options = Options::default().until_end(true);
        let at = WorkerContext { worker, workers: 3, threads: 3, ..worker_context(options) };
        let mut driven = ReaderDriver::open_at(&seen(broker.servers(), names.clone()), &at).unwrap();
        driven.until_ended().unwrap();
        assert_eq!(driven.events.len(), 2, "worker {worker}");
        all.extend(driven.events.iter().map(|event| event.data.0.clone()));
    }
    assert_eq!(all.into_iter().collect::<Vec<_>>(), names);
}

#[test]
fn a_list_that_cannot_be_read_is_refused() {
    let broker = embedded(&[("a", 1), ("b", 1)]);
    let offsets = StartOffset::offsets([(0, 0)]);
    for (source, what) in [
        (seen(broker.servers(), ["a", "b", "a"]), "the topic a is named twice"),
        (seen(broker.servers(), Vec::<String>::new()), "a topic has no name"),
        (seen(broker.servers(), ["a", "b"]).from(offsets), "cannot start at offsets"),
        (seen(broker.servers(), ["a", "bb"]), "the topic bb does not exist"),
    ] {
        let error = ReaderDriver::open(&source, Options::default()).err().unwrap().to_string();
        assert!(error.contains(what), "{error}");
    }
}

fn typed(broker: &Broker, topics: &[&str], folder: &Path, line: &str) -> Vec<String> {
    let folder = folder.to_str().unwrap();
    let (servers, topics) = (&broker.servers, topics.join(","));
    let line = format!("--brokers {servers} --topic {topics} --out {{}}/out.csv --epoch 20ms --progress off {line}");
    line.split_whitespace().map(|word| word.replace("{}", folder)).collect()
}

/// Killed at random moments, each time on another number of workers, with records added in between.
#[test]
fn totals_of_a_list_are_exact_whatever_is_killed_on_any_number_of_workers() {
    let Some(broker) = Broker::shared() else { return };
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut rng = Rng::with_seed(seed);
    let folder = tempfile::tempdir().unwrap();
    let (one, two) = (broker.topic(1), broker.topic(3));
    let topics = [one.as_str(), two.as_str()];
    let rows = tidy(5, 6_000);
    let mut sent: Vec<Vec<Transaction>> = vec![Vec::new(); 4];
    let sender = broker.sender();
    for (round, part) in rows.chunks(1_200).enumerate() {
        for (at, sent) in (0..).zip(&mut sent) {
            let own: Vec<Transaction> = part.iter().filter(|row| row.id % 4 == at).cloned().collect();
            let (topic, partition) = [(&one, 0), (&two, 0), (&two, 1), (&two, 2)][at as usize];
            sender.send(topic, partition, own.iter().map(json_of));
            sent.extend(own);
        }
        let line = format!("--state {{}}/state --snapshot-every 200ms -w {}", 1 + round % 3);
        let job = start("account_totals", typed(broker, &topics, folder.path(), &line));
        let _ended = job.killed_after(Duration::from_millis(rng.u64(300..2_500)));
    }
    let line = "--state {}/state --until-end --accept-changed-query -w 2";
    run("account_totals", typed(broker, &topics, folder.path(), line)).code(0);
    let wanted = expected(sent.iter().map(Vec::as_slice), 2_000).rows();
    same_rows(&rows_of(&folder.path().join("out.csv"), &TOTALS), &wanted);
    // Two processes agree on the numbers.
    let again = tempfile::tempdir().unwrap();
    let typed = typed(broker, &topics, again.path(), "--state {}/state --until-end -w 2");
    let line = ["up", "-n", "2", "--", run::TIDEGATE, "account_totals"].map(str::to_owned);
    run(run::TIDEGATE, line.into_iter().chain(typed)).code(0);
    same_rows(&rows_of(&again.path().join("out.csv"), &TOTALS), &wanted);
}

#[test]
fn partitions_that_are_added_to_a_topic_of_a_list_are_read_from_their_first_record() {
    let Some(broker) = Broker::shared() else { return };
    let (one, two) = (broker.topic(1), broker.topic(2));
    broker.send(&one, 0, ["old".to_owned()]);
    let source = seen(&broker.servers, [&one, &two].map(String::as_str)).from(StartOffset::Latest);
    let mut driven = ReaderDriver::open(&source, Options::default()).unwrap();
    driven.poll(10).unwrap();
    driven.commit_epoch();
    broker.grow(&one, 3);
    std::thread::sleep(Duration::from_millis(500));
    broker.send(&one, 2, ["new".to_owned()]);
    broker.send(&two, 1, ["too".to_owned()]);
    driven.until_events(2).unwrap();
    let read: BTreeSet<_> = driven.events.iter().map(|event| (event.origin.partition, &*event.data.3)).collect();
    assert_eq!(read, BTreeSet::from([(2, "new"), (1_000_001, "too")]));
    let found = driven.epoch_inputs.iter().flat_map(|(_, input)| &input.partitions);
    let found: BTreeSet<_> = found.filter_map(|at| Some((at.partition, at.start_offset?))).collect();
    assert_eq!(found, BTreeSet::from([(0, 1), (1, 0), (2, 0), (1_000_000, 0), (1_000_001, 0)]));
}

#[test]
fn a_state_goes_on_only_with_its_list() {
    let Some(broker) = Broker::shared() else { return };
    let folder = tempfile::tempdir().unwrap();
    let (one, two) = (broker.topic(2), broker.topic(2));
    let rows = tidy(6, 400);
    let partitions: Vec<Vec<Transaction>> =
        (0..4).map(|at| rows.iter().filter(|row| row.id % 4 == at).cloned().collect()).collect();
    for (at, part) in partitions.iter().enumerate() {
        broker.send([&one, &two][at / 2], at % 2, part.iter().map(json_of));
    }
    let line = "--state {}/state";
    let mut job = start("account_totals", typed(broker, &[&one, &two], folder.path(), line));
    job.wait_until("all records are read", |_| {
        let read =
            |topic: &str, partition| broker.group_offset("tidegate-account-totals", topic, partition) == Some(100);
        [(&one, 0), (&one, 1), (&two, 0), (&two, 1)].iter().all(|(topic, at)| read(topic, *at)).then_some(())
    });
    job.signal(nix::sys::signal::Signal::SIGKILL);
    let _ended = job.end_or_killed();
    let three = broker.topic(1);
    for other in [vec![two.as_str(), &one], vec![&one], vec![&one, &two, &three], vec![&one, &three]] {
        let refused = run("account_totals", typed(broker, &other, folder.path(), line));
        check_contains(refused.error(1), &["a source is not the one that the state has read"]);
    }
    let ending = format!("{line} --until-end --accept-changed-query");
    run("account_totals", typed(broker, &[&one, &two], folder.path(), &ending)).code(0);
    same_rows(
        &rows_of(&folder.path().join("out.csv"), &TOTALS),
        &expected(partitions.iter().map(Vec::as_slice), 2_000).rows(),
    );
    // One of the topics is made again.
    let other = tempfile::tempdir().unwrap();
    let mut job = start("account_totals", typed(broker, &[&one, &two], other.path(), line));
    job.wait_until("results", |_| {
        std::fs::metadata(other.path().join("out.csv")).is_ok_and(|out| out.len() > 1_000).then_some(())
    });
    broker.delete(&two);
    let ended = job.end();
    check_contains(ended.error(1), &[&two, "deleted"]);
    // A job that writes to one of its topics would read its own results.
    let line = format!("--out kafka:{three}");
    let refused = run("account_totals", {
        let mut typed = typed(broker, &[&one, &three], folder.path(), "");
        let out = typed.iter().position(|word| word.ends_with("out.csv")).unwrap();
        typed[out] = line.trim_start_matches("--out ").to_owned();
        typed
    });
    check_contains(refused.error(2), &[&three, "both read and written to"]);
}
