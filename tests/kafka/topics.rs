//! Lists and patterns of topics as one source: which record comes from which topic, and whose topics a state is of.
//!
//! It exists because the numbers of partitions in a journal stand for topics: a state must never go on with another list
//! than the one whose numbers it has, nor with other topics of a pattern than those that it has read. That all records
//! are read once, on changing numbers of workers, is also tested in `resume`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, Instant};

use fastrand::Rng;
use nix::sys::signal::Signal;
use tidegate::durable::journal::PartitionProgress;
use tidegate::kafka::{self, Message, StartOffset, Topics};
use tidegate::sink::kafka::Publisher;
use tidegate::source::kafka::EmbeddedBroker;
use tidegate::source::{Options, Source, WorkerContext};
use tidegate::time::EventTime;

use crate::broker::Broker;
use crate::drive::{ReaderDriver, worker_context};
use crate::run;
use crate::run::{check_contains, run, start};
use crate::transactions::{TOTALS, Transaction, expected, json_of, rows_of, same_rows, tidy};

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
    let _heavy = crate::alone_among_heavy();
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
    job.signal(Signal::SIGKILL);
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

/// Polls and commits readers in turns until they have read so many records together.
fn until_all(readers: &mut [ReaderDriver<Seen>], count: usize) {
    let begun = Instant::now();
    while readers.iter().map(|driven| driven.events.len() + driven.rejects.len()).sum::<usize>() < count {
        assert!(begun.elapsed() < Duration::from_secs(60), "not all records are read");
        for driven in &mut *readers {
            driven.poll(100).unwrap();
            driven.commit_epoch();
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Returns the progress of the partitions that these readers have read, each with its topic as a manifest has it.
fn last_bounds(readers: &[ReaderDriver<Seen>]) -> BTreeMap<u32, PartitionProgress> {
    let mut last = BTreeMap::<u32, PartitionProgress>::new();
    let inputs = readers.iter().flat_map(|driven| &driven.epoch_inputs);
    for bound in inputs.flat_map(|(_, input)| input.partitions.clone()) {
        assert_eq!(bound.topic.is_some(), bound.start_offset.is_some(), "the journal names it when it is found");
        let topic = bound.topic.clone().or(last.get(&bound.partition).and_then(|known| known.topic.clone()));
        last.insert(bound.partition, PartitionProgress { topic, start_offset: None, ..bound });
    }
    last
}

#[test]
fn topics_of_a_pattern_are_found_at_the_start_and_while_they_are_read() {
    let broker =
        embedded(&[("o.a", 2), ("o.b", 1), ("other", 1), ("o.a-tidegate-progress", 1), ("__o.x", 1), ("my.o.a", 1)]);
    send(broker.servers(), "o.a", 1, &["a1", "x"], 5_000);
    send(broker.servers(), "o.b", 0, &["b0"], 6_000);
    ["other", "o.a-tidegate-progress", "__o.x", "my.o.a"]
        .iter()
        .for_each(|topic| send(broker.servers(), topic, 0, &["not"], 1));
    let source = seen(broker.servers(), Topics::matching(r"(__)?o\..*"));
    let at =
        |worker, workers| WorkerContext { worker, workers, threads: workers, ..worker_context(Options::default()) };
    let mut readers: Vec<_> = (0..3).map(|worker| ReaderDriver::open_at(&source, &at(worker, 3)).unwrap()).collect();
    until_all(&mut readers, 3);
    broker.create_topic("o.c", 3).unwrap();
    send(broker.servers(), "o.c", 0, &["c0"], 7_000);
    send(broker.servers(), "o.c", 2, &["c2"], 8_000);
    until_all(&mut readers, 5);
    let read: BTreeSet<_> = readers.iter().flat_map(|driven| &driven.events).map(|event| event.data.clone()).collect();
    let of = |topic: &str, partition, text: &str| (topic.to_owned(), partition, 0, text.to_owned());
    assert_eq!(read, BTreeSet::from([of("o.a", 1, "a1"), of("o.b", 0, "b0"), of("o.c", 0, "c0"), of("o.c", 2, "c2")]));
    let rejected: Vec<_> = readers.iter().flat_map(|driven| &driven.rejects).collect();
    assert_eq!((rejected.len(), rejected[0].partition, rejected[0].offset), (1, 1, 1));
    assert_eq!(rejected[0].place, format!("topic o.a at {}", broker.servers()));
    // Each partition has one number, a watermark of its own, and a name for people.
    let bounds = last_bounds(&readers);
    let tracked: Vec<_> = readers.iter().flat_map(|driven| driven.reader.partitions(&driven.intake)).collect();
    let named: BTreeMap<_, _> = tracked.iter().map(|at| (at.topic.clone().unwrap(), at.watermark.millis())).collect();
    let none = EventTime::MIN.millis();
    let expected =
        [("o.a/0", none), ("o.a/1", 5_000), ("o.b/0", 6_000), ("o.c/0", 7_000), ("o.c/1", none), ("o.c/2", 8_000)];
    assert_eq!(named, expected.map(|(topic, watermark)| (topic.to_owned(), watermark)).into());
    assert_eq!((tracked.len(), bounds.len()), (6, 6));
    // Whoever finds them, and whenever, gives them the same numbers.
    let mut alone = [ReaderDriver::open_at(&source, &at(0, 1)).unwrap()];
    until_all(&mut alone, 5);
    let topics = |bounds: &BTreeMap<u32, PartitionProgress>| -> Vec<_> {
        bounds.values().map(|bound| (bound.partition, bound.topic.clone().unwrap())).collect()
    };
    assert_eq!(topics(&last_bounds(&alone)), topics(&bounds));
    // What has come since.
    let (context, bounds) = (worker_context(Options::default()), bounds.into_values().collect::<Vec<_>>());
    assert_eq!(source.has_new_data(&context, &bounds), Ok(None));
    broker.create_topic("o.d", 1).unwrap();
    assert_eq!(source.has_new_data(&context, &bounds), Ok(None));
    send(broker.servers(), "o.d", 0, &["d0"], 1);
    let grown = source.has_new_data(&context, &bounds).unwrap().unwrap();
    assert!(grown.contains("partition 0 of topic o.d"), "{grown}");
}

#[test]
fn a_pattern_that_matches_nothing_waits_unless_the_job_reads_to_an_end() {
    let broker = embedded(&[("other", 1)]);
    let source = seen(broker.servers(), Topics::matching(r"late\..*")).from(StartOffset::Latest);
    let bounded = Options::default().until_end(true);
    let error = ReaderDriver::open(&source, bounded.clone()).err().unwrap().to_string();
    assert!(error.starts_with(r"no topic matches the pattern (topics matching late\..* at "), "{error}");
    let mut driven = ReaderDriver::open(&source, Options::default()).unwrap();
    driven.for_a_while(Duration::from_millis(100)).unwrap();
    assert!(driven.epoch_inputs.iter().all(|(_, input)| input.partitions.is_empty() && !input.watermark.ended));
    broker.create_topic("late.a", 1).unwrap();
    send(broker.servers(), "late.a", 0, &["first"], 1);
    // It came after the start, so all of it is read.
    driven.until_events(1).unwrap();
    for (topics, options, what) in [
        (Topics::matching("late("), bounded.clone(), "is no regular expression"),
        (Topics::matching(""), bounded.clone(), "the pattern of topics is empty"),
        (Topics::from("^late"), bounded.clone(), "no topic has the name ^late"),
        (Topics::from(["other", "^late"]), bounded, "no topic has the name ^late"),
    ] {
        let error = ReaderDriver::open(&seen(broker.servers(), topics), options).err().unwrap();
        assert!(error.exit_code() == 2 && error.to_string().contains(what), "{error}");
    }
    let offsets = seen(broker.servers(), Topics::matching("late.*")).from(StartOffset::offsets([(0, 0)]));
    let error = ReaderDriver::open(&offsets, Options::default()).err().unwrap().to_string();
    assert!(error.contains("cannot start at offsets"), "{error}");
}

/// Killed at random moments on changing numbers of workers; a topic comes while the job runs.
#[test]
fn totals_of_a_pattern_are_exact_whatever_is_killed_and_whichever_topics_come() {
    let Some(broker) = Broker::shared() else { return };
    let _heavy = crate::alone_among_heavy();
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut rng = Rng::with_seed(seed);
    let folder = tempfile::tempdir().unwrap();
    broker.create("sum.a", 1);
    broker.create("sum.b", 3);
    let places = [("sum.a", 0), ("sum.b", 0), ("sum.b", 1), ("sum.b", 2), ("sum.c", 0), ("sum.c", 1)];
    let (rows, sender) = (tidy(5, 4_000), broker.sender());
    let mut sent: Vec<Vec<Transaction>> = vec![Vec::new(); 6];
    let mut send = |rows: &[Transaction], numbers: std::ops::Range<usize>, all: usize| {
        for at in numbers {
            let own: Vec<Transaction> = rows.iter().filter(|row| row.id as usize % all == at).cloned().collect();
            sender.send(places[at].0, places[at].1, own.iter().map(json_of));
            sent[at].extend(own);
        }
        sent[4].len()
    };
    let pattern = [r"^sum\.[a-z]"];
    // Nobody is idle, however slow the machine is: the new topic has later records than the others.
    let line = |workers: usize| {
        format!("--state {{}}/state --snapshot-every 200ms --idle-timeout 10m --max-drift 365d -w {workers}")
    };
    for (part, workers) in rows[..2_000].chunks(1_000).zip([1, 3]) {
        send(part, 0..4, 4);
        let job = start("account_totals", typed(broker, &pattern, folder.path(), &line(workers)));
        let _ended = job.killed_after(Duration::from_millis(rng.u64(300..2_000)));
    }
    let mut job = start("account_totals", typed(broker, &pattern, folder.path(), &line(3)));
    broker.create("sum.c", 2);
    let count = send(&rows[2_000..], 4..6, 6) as i64;
    job.wait_until("the new topic is read", |_| {
        (broker.group_offset("tidegate-account-totals", "sum.c", 0) == Some(count)).then_some(())
    });
    let _ended = job.killed_after(Duration::from_millis(rng.u64(0..300)));
    send(&rows[2_000..], 0..4, 6);
    let job = start("account_totals", typed(broker, &pattern, folder.path(), &line(2)));
    let _ended = job.killed_after(Duration::from_millis(rng.u64(300..2_000)));
    let ending = format!("{} --until-end --accept-changed-query", line(1));
    run("account_totals", typed(broker, &pattern, folder.path(), &ending)).code(0);
    let wanted = expected(sent.iter().map(Vec::as_slice), 2_000).rows();
    same_rows(&rows_of(&folder.path().join("out.csv"), &TOTALS), &wanted);
    let told = run(run::TIDEGATE, ["snapshot", "inspect", folder.path().join("state").to_str().unwrap()]);
    check_contains(&String::from_utf8_lossy(&told.stdout), &["(sum.a/0)", "(sum.c/1)"]);
    // Two processes agree on the numbers.
    let again = tempfile::tempdir().unwrap();
    let typed = typed(broker, &pattern, again.path(), "--state {}/state --until-end -w 2");
    let line = ["up", "-n", "2", "--", run::TIDEGATE, "account_totals"].map(str::to_owned);
    run(run::TIDEGATE, line.into_iter().chain(typed)).code(0);
    same_rows(&rows_of(&again.path().join("out.csv"), &TOTALS), &wanted);
}

#[test]
fn a_state_of_a_pattern_goes_on_only_with_its_topics() {
    let Some(broker) = Broker::shared() else { return };
    let folder = tempfile::tempdir().unwrap();
    ["own.a", "own.b"].iter().for_each(|topic| broker.create(topic, 1));
    let rows = tidy(6, 200);
    let send = || ["own.a", "own.b"].iter().for_each(|topic| broker.send(topic, 0, rows.iter().map(json_of)));
    send();
    let line = "--state {}/state";
    let is_read = |group: &str, topic: &str| broker.group_offset(group, topic, 0) == Some(200);
    // Stopped by a signal, so that nothing is to be replayed, and a changed source is all there is to refuse.
    let stopped = |topics: &[&str], folder: &Path, group: &str| {
        let line = format!("{line} --kafka-config group.id={group}");
        let mut job = start("account_totals", typed(broker, topics, folder, &line));
        job.wait_until("all records are read", |_| (is_read(group, "own.a") && is_read(group, "own.b")).then_some(()));
        job.signal(Signal::SIGTERM);
        job.end().code(143);
    };
    stopped(&[r"^own\..*"], folder.path(), "matching");
    let listed = tempfile::tempdir().unwrap();
    stopped(&["own.a", "own.b"], listed.path(), "listed");
    let accepted = "--state {}/state --accept-changed-sources";
    for (topics, line, folder, what) in [
        (&["own.a", "own.b"][..], line, &folder, "a source is not the one that the state has read"),
        (&["^own.*"], line, &folder, "a source is not the one that the state has read"),
        (&["^own.a"], accepted, &folder, "the state has read the topic own.b, which the pattern does not match"),
        (&["own.a", "own.b"], accepted, &folder, "the state has read topics by a pattern"),
        (&["own.a"], accepted, &folder, "the state has read topics by a pattern"),
        (&[r"^own\..*"], accepted, &listed, "the state has read a topic, or a list, and no pattern"),
        (&[r"^none\..*"], "--until-end", &folder, "no topic matches the pattern"),
    ] {
        let refused = run("account_totals", typed(broker, topics, folder.path(), line));
        check_contains(refused.error(1), &[what]);
    }
    for (topics, line) in [(&["^own("], ""), (&["^own.*"], "--rejects kafka:own.dead")] {
        let refused = run("account_totals", typed(broker, topics, folder.path(), line));
        let what = if line.is_empty() { "is no regular expression" } else { "topic own.dead" };
        check_contains(refused.error(2), &[what]);
    }
    // Deleted while it is read, while nobody reads it, and made again.
    let fresh = tempfile::tempdir().unwrap();
    let mut job = start("account_totals", typed(broker, &[r"^own\..*"], fresh.path(), line));
    job.wait_until("results", |_| {
        std::fs::metadata(fresh.path().join("out.csv")).is_ok_and(|out| out.len() > 1_000).then_some(())
    });
    broker.delete("own.b");
    check_contains(job.end().error(1), &["the topic own.b was deleted while it was read"]);
    // Accepted, as the refused attempts above have left their topics in the state's last claim.
    let gone = run("account_totals", typed(broker, &[r"^own\..*"], folder.path(), accepted));
    check_contains(gone.error(1), &["the topic own.b, which the state has read, does not exist"]);
    broker.create("own.b", 1);
    send();
    let other = run("account_totals", typed(broker, &[r"^own\..*"], folder.path(), accepted));
    check_contains(other.error(1), &["the topic own.b was deleted and created again since the state has read it"]);
}
