//! Sources resume from any snapshot, on any number of workers: all incarnations of a state together read what one
//! uninterrupted incarnation reads, each record once, with the same watermark before it, up to the end that was
//! determined at the first start.
//!
//! Incarnations are random by seed: random polls and epochs, a random epoch as the next one's snapshot, some of the
//! epochs after it replayed. Files have the same test beside their readers, because their workers share more.
#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

#[path = "common/drive.rs"]
mod drive;

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::cases::{for_seeds, within};
use common::incarnations::on;
use drive::{ReaderDriver, Tick, worker_context};
use serde::{Deserialize, Serialize};
use tidegate::durable::disk::{Disk, DiskFile, Lock, OsDisk};
use tidegate::durable::journal::{PartitionProgress, TopicPartition};
use tidegate::job::Ending;
use tidegate::record::{Event, Origin};
use tidegate::sink::kafka::Publisher;
use tidegate::source::channel::channel;
use tidegate::source::generator::{Generator, GeneratorSource};
use tidegate::source::kafka::{self, EmbeddedBroker, StartOffset};
use tidegate::source::memory::MemorySource;
use tidegate::source::{Options, Rejected, RestoredPartition, Source, WorkerContext};
use tidegate::stream::aggregate::Each;
use tidegate::testing::{Captured, CrashingDisk, TestRun};
use tidegate::time::{Epoch, EventTime};
use tidegate::{Job, Record, State, Window, csv};

fn bounded() -> Options {
    Options::default().until_end(true)
}

/// Input of an epoch, of all workers.
#[derive(Clone, Debug, PartialEq, Eq)]
struct EpochRecords<D> {
    events: Vec<Event<D>>,
    rejects: Vec<Rejected>,
    bounds: Vec<PartitionProgress>,
}

impl<D: Record> EpochRecords<D> {
    fn of(workers: &mut [ReaderDriver<D>]) -> Self {
        let mut piece = EpochRecords { events: Vec::new(), rejects: Vec::new(), bounds: Vec::new() };
        for driven in workers {
            piece.events.append(&mut driven.events);
            piece.rejects.append(&mut driven.rejects);
            piece.bounds.extend(driven.epoch_inputs.last().unwrap().1.partitions.clone());
        }
        piece.events.sort_by_key(|event| (event.origin.partition, event.origin.offset));
        piece.rejects.sort_by_key(|reject| (reject.place.clone(), reject.partition, reject.offset));
        piece.bounds.sort();
        piece
    }
}

type History<D> = BTreeMap<Epoch, EpochRecords<D>>;

/// Returns the number of records of a history.
fn taken<D>(history: &History<D>) -> usize {
    history.values().map(|piece| piece.events.len() + piece.rejects.len()).sum()
}

/// Returns the partitions of a snapshot at the end of a history.
fn places<D>(history: &History<D>) -> Vec<RestoredPartition> {
    let mut places = BTreeMap::new();
    let mut topics = BTreeMap::new();
    for bound in history.values().flat_map(|piece| &piece.bounds) {
        topics.extend(bound.topic.clone().map(|topic| (bound.partition, topic)));
        let topic = topics.get(&bound.partition).cloned();
        places.insert(bound.partition, PartitionProgress { start_offset: None, topic, ..bound.clone() });
    }
    places.into_values().map(|progress| RestoredPartition { progress, activation_watermark: EventTime::MIN }).collect()
}

/// Returns the partitions that a state of such a history knows by a topic.
fn known<D>(histories: &[&History<D>]) -> Arc<[(u32, TopicPartition)]> {
    let bounds = histories.iter().flat_map(|history| history.values()).flat_map(|piece| &piece.bounds);
    bounds.filter_map(|bound| Some((bound.partition, bound.topic.clone()?))).collect()
}

/// Extent of an incarnation.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Extent {
    /// Some epochs.
    Crash,
    /// Up to the end determined at the first start.
    End,
    /// Runs until all incarnations have read so many records.
    Taken(usize),
}

/// One incarnation: it resumes from the snapshot, replays the journal, and reads on.
struct TestIncarnation<'a> {
    workers: usize,
    until: Extent,
    options: Options,
    rng: &'a mut fastrand::Rng,
}

impl TestIncarnation<'_> {
    fn live<D: Record, S: Source<Item = D>>(self, source: &S, before: &History<D>, journal: &History<D>) -> History<D> {
        let TestIncarnation { workers: count, until, options, rng } = self;
        let mut now = Epoch(before.keys().chain(journal.keys()).max().map_or(2, |epoch| epoch.0 + 2));
        let known_partitions = known(&[before, journal]);
        let at = |worker| WorkerContext {
            worker,
            workers: count,
            threads: count,
            known_partitions: Arc::clone(&known_partitions),
            ..worker_context(options.clone())
        };
        let mut workers: Vec<ReaderDriver<D>> =
            (0..count).map(|worker| ReaderDriver::open_at(source, &at(worker)).unwrap()).collect();
        let (mut lived, places) = (History::new(), places(before));
        if let Some(epoch) = before.keys().last() {
            workers.iter_mut().for_each(|driven| driven.resume(*epoch, &places).unwrap());
        }
        for (epoch, piece) in journal {
            workers.iter_mut().for_each(|driven| driven.replay(*epoch, &piece.bounds).unwrap());
            lived.insert(*epoch, EpochRecords::of(&mut workers));
            assert_eq!(&lived[epoch], piece, "epoch {epoch} is not repeated as it was");
        }
        let (begun, mut left) = (Instant::now(), rng.usize(0..30));
        let turns = rng.usize(1..20);
        while match until {
            Extent::Crash => left > 0,
            Extent::End => true,
            Extent::Taken(count) => taken(before) + taken(&lived) < count,
        } {
            assert!(begun.elapsed() < Duration::from_secs(60), "it does not end");
            for driven in &mut workers {
                driven.epoch = now;
                driven.poll(0).unwrap();
            }
            for _ in 0..rng.usize(0..=turns) {
                if rng.pick(&mut workers).poll(rng.usize(1..40)).unwrap() == 0 {
                    std::thread::sleep(Duration::from_micros(300));
                }
            }
            let marks: Vec<_> = workers.iter_mut().map(|driven| driven.commit_epoch().watermark).collect();
            lived.insert(now, EpochRecords::of(&mut workers));
            (now, left) = (Epoch(now.0 + 2), left.saturating_sub(1));
            if marks.iter().all(|mark| mark.ended) {
                break;
            }
        }
        lived
    }
}

trait Pick {
    fn pick<'a, T>(&mut self, from: &'a mut [T]) -> &'a mut T;
}

impl Pick for fastrand::Rng {
    fn pick<'a, T>(&mut self, from: &'a mut [T]) -> &'a mut T {
        let at = self.usize(..from.len());
        &mut from[at]
    }
}

/// Records of each partition: events by the number of their partition, rejected ones by the place of theirs.
type ByPartition<D> = BTreeMap<(String, u32), (Vec<ReadRecord<D>>, Vec<Rejected>)>;

/// Time, watermark, origin, offset and data of an event. A partition of a pattern has no origins: whether it was found
/// late, which its events tell, depends on the incarnation.
type ReadRecord<D> = (EventTime, EventTime, Option<Origin>, u64, D);

/// Returns the records of each partition, in the order of reading. Rejected ones name the topic of their partition.
fn by_partition<D: Record>(history: &History<D>) -> ByPartition<D> {
    let mut partitions = ByPartition::new();
    let known: BTreeMap<_, _> = known(&[history]).iter().cloned().collect();
    for piece in history.values() {
        for event in &piece.events {
            let (number, offset) = (event.origin.partition, event.origin.offset);
            let origin = (!known.contains_key(&number)).then_some(event.origin);
            let record = (event.time, event.watermark, origin, offset, event.data.clone());
            partitions.entry((String::new(), number)).or_default().0.push(record);
        }
        for reject in &piece.rejects {
            partitions.entry((reject.place.clone(), reject.partition)).or_default().1.push(reject.clone());
        }
    }
    partitions
}

/// Checks that each partition's watermark is that of the records before it.
fn check_watermarks<D: Record>(history: &History<D>, disorder: i64) {
    let mut greatest = BTreeMap::<u32, i64>::new();
    for (epoch, piece) in history {
        for event in &piece.events {
            let greatest = greatest.entry(event.origin.partition).or_insert(i64::MIN);
            *greatest = (*greatest).max(event.time.millis());
        }
        for bound in &piece.bounds {
            let expected = greatest.get(&bound.partition).map(|greatest| greatest - disorder);
            assert_eq!(bound.watermark, expected.map_or(EventTime::MIN, EventTime::from_millis), "{epoch} {bound:?}");
        }
    }
}

/// Returns the history of one incarnation that reads everything.
fn ended<S: Source<Item = D>, D: Record>(source: &S) -> History<D> {
    let rng = &mut fastrand::Rng::with_seed(1);
    let life = TestIncarnation { workers: 1, until: Extent::End, options: bounded(), rng };
    life.live(source, &History::new(), &History::new())
}

/// Checks that incarnations on 1, 2, 4 and 1 workers read what one incarnation reads; `meanwhile` is called between
/// them.
fn check<D: Record, S: Source<Item = D>>(
    seed: u64,
    source: &S,
    disorder: i64,
    options: &Options,
    mut meanwhile: impl FnMut(),
) {
    println!("seed {seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut whole = ended(source);
    let first = TestIncarnation {
        workers: rng.usize(1..4),
        until: Extent::Crash,
        options: options.clone(),
        rng: &mut rng.fork(),
    };
    let mut history = first.live(source, &History::new(), &History::new());
    for (life, workers) in [1, 2, 4, 1].into_iter().enumerate() {
        // There must be a state: without one, the end is the one at this start.
        let known: Vec<Epoch> = history.keys().copied().collect();
        if !known.is_empty() {
            meanwhile();
        }
        let taken_up = rng.usize(0..=known.len());
        let repeated = rng.usize(taken_up.max(known.len().min(1))..=known.len());
        let part = |range: &[Epoch]| range.iter().map(|epoch| (*epoch, history[epoch].clone())).collect();
        let mut before: History<D> = part(&known[..taken_up]);
        let journal: History<D> = part(&known[taken_up..repeated]);
        if !options.until_end {
            whole = ended(source);
        }
        let until = match life {
            3 if options.until_end => Extent::End,
            3 => Extent::Taken(taken(&whole)),
            _ => Extent::Crash,
        };
        let life = TestIncarnation { workers, until, options: options.clone(), rng: &mut rng };
        let lived = life.live(source, &before, &journal);
        before.extend(lived);
        history = before;
    }
    check_watermarks(&history, disorder);
    assert_eq!(by_partition(&history), by_partition(&whole), "seed {seed}");
    let ends = |history: &History<D>| {
        let ends = places(history).into_iter().map(|place| place.progress);
        ends.map(|end| (end.partition, end.next_offset, end.watermark, end.check)).collect::<Vec<_>>()
    };
    assert_eq!(ends(&history), ends(&whole), "seed {seed}");
    for place in places(&history) {
        let bound = place.progress;
        assert_eq!(
            (bound.end_offset, bound.ended),
            (options.until_end.then_some(bound.next_offset), options.until_end)
        );
    }
}

#[test]
fn records_in_memory() {
    for seed in 0..200 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let partition = |rng: &mut fastrand::Rng| {
            let count = rng.u64(0..300);
            let mut time = |id| if rng.u8(..50) == 0 { i64::MAX } else { id as i64 + rng.i64(-50..50) };
            (0..count).map(|id| Tick { id, at_ms: time(id) }).collect::<Vec<_>>()
        };
        let partitions = (0..rng.usize(1..6)).map(|_| partition(&mut rng)).collect();
        let source = MemorySource::new(partitions, |tick: &Tick| tick.at_ms).out_of_order(Duration::from_millis(20));
        check(seed, &source, 20, &bounded(), || {});
    }
}

#[test]
fn made_up_transactions() {
    for seed in 0..50 {
        let source = GeneratorSource::new(Generator::new(seed), 500 + seed).partitions(1 + seed as u32 % 5);
        check(seed, &source, 2000, &bounded(), || {});
    }
}

fn broker(partitions: u32) -> EmbeddedBroker {
    let broker = EmbeddedBroker::start().unwrap();
    broker.create_topic("ticks", partitions).unwrap();
    broker
}

fn ticks(broker: &EmbeddedBroker) -> kafka::Source<Tick> {
    kafka::Source::json(broker.servers(), "ticks")
        .event_time(|tick: &Tick| tick.at_ms)
        .out_of_order(Duration::from_millis(20))
}

/// Sends ticks out of order, and some messages that are none.
fn send(broker: &EmbeddedBroker, seed: u64, count: u64) {
    send_to(broker, "ticks", seed, count);
}

fn send_to(broker: &EmbeddedBroker, topic: &str, seed: u64, count: u64) {
    let (mut rng, mut publisher) =
        (fastrand::Rng::with_seed(seed), Publisher::open(broker.servers(), topic, [], None).unwrap());
    for id in 0..count {
        let text = match rng.u8(..20) {
            0 => String::from("{"),
            _ => format!(r#"{{"id":{id},"at_ms":{}}}"#, 1_000_000 + id as i64 + rng.i64(-50..50)),
        };
        publisher.send(Some(id.to_string().as_bytes()), text.as_bytes(), Some(1_000_000)).unwrap();
    }
    publisher.flush().unwrap();
}

#[test]
fn topics() {
    for seed in 0..8 {
        let broker = broker(1 + seed as u32 % 5);
        send(&broker, seed, 600);
        let mut round = 0;
        let options = Options::default().until_end(seed % 2 == 0);
        check(seed, &ticks(&broker), 20, &options, || {
            round += 1;
            send(&broker, seed + 100 * round, 50);
        });
    }
}

/// Topics of other numbers of partitions, the same records at the same offsets of each.
#[test]
fn lists_of_topics() {
    for seed in 0..6 {
        let broker = EmbeddedBroker::start().unwrap();
        let topics = ["a", "b", "c"];
        let send_all = |seed: u64, count: u64| topics.iter().for_each(|topic| send_to(&broker, topic, seed, count));
        (1..).zip(topics).for_each(|(at, topic)| broker.create_topic(topic, 1 + (seed as u32 * at) % 4).unwrap());
        send_all(seed, 200);
        let source = kafka::Source::json(broker.servers(), topics).event_time(|tick: &Tick| tick.at_ms);
        let source = source.out_of_order(Duration::from_millis(20));
        let mut round = 0;
        let options = Options::default().until_end(seed % 2 == 0);
        check(seed, &source, 20, &options, || {
            round += 1;
            send_all(seed + 100 * round, 20);
        });
    }
}

/// Topics that match a pattern, more of them from incarnation to incarnation, which an end that was fixed leaves out.
#[test]
fn topics_of_a_pattern() {
    for seed in 0..4 {
        let broker = EmbeddedBroker::start().unwrap();
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut topics = Vec::new();
        let mut add = |topics: &mut Vec<String>| {
            let name = format!("t.{}", rng.u32(..));
            broker.create_topic(&name, rng.u32(1..5)).unwrap();
            topics.push(name);
        };
        (0..2).for_each(|_| add(&mut topics));
        broker.create_topic("s.other", 1).unwrap();
        send_to(&broker, "s.other", seed, 10);
        let send_all = |topics: &[String], seed: u64, count: u64| {
            topics.iter().for_each(|topic| send_to(&broker, topic, seed, count));
        };
        send_all(&topics, seed, 100);
        let pattern = kafka::Topics::matching(r"t\..*");
        let source = kafka::Source::json(broker.servers(), pattern).event_time(|tick: &Tick| tick.at_ms);
        let source = source.out_of_order(Duration::from_millis(20));
        let mut round = 0;
        let options = Options::default().until_end(seed % 2 == 0);
        check(seed, &source, 20, &options, || {
            round += 1;
            add(&mut topics);
            send_all(&topics, seed + 100 * round, 20);
        });
    }
}

/// A job crashes at operations of its disk, between the moments at which partitions get their numbers, are journalled and
/// are in a snapshot; it goes on with other numbers of workers.
#[test]
fn topics_of_a_pattern_are_summed_once_wherever_the_job_crashes() {
    let broker = EmbeddedBroker::start().unwrap();
    let mut expected = BTreeMap::new();
    for (topic, partitions) in [("t.a", 2), ("t.b", 1), ("t.c", 3)] {
        broker.create_topic(topic, partitions).unwrap();
        let mut publisher = Publisher::open(broker.servers(), topic, [], None).unwrap();
        for number in 0..60i64 {
            let partition = number as u32 % partitions;
            let (id, at_ms) = (u64::from(partition), number * 10);
            let text = format!(r#"{{"id":{id},"at_ms":{at_ms}}}"#);
            publisher.send_to(partition, None, text.as_bytes(), Some(at_ms)).unwrap();
            *expected.entry((EventTime::from_millis((at_ms / 100 + 1) * 100), id)).or_insert(0) += i128::from(at_ms);
        }
        publisher.flush().unwrap();
    }
    let pattern = kafka::Topics::matching(r"t\..*");
    let source = kafka::Source::json(broker.servers(), pattern).event_time(|tick: &Tick| tick.at_ms);
    let run = |disk: &CrashingDisk, workers: usize| {
        let (shared, source) = (disk.shared(), source.clone());
        let run = TestRun::new().seed(workers as u64).in_flight(1).workers(workers).state(&shared, "state");
        let outcome = run.options(bounded()).run(move |flow| {
            flow.read("ticks", &source)
                .key_by(|tick| tick.id)
                .window(Window::tumbling(Duration::from_millis(100)))
                .aggregate("sums", |each| each.sum(|tick: &Tick| tick.at_ms))
                .on_close()
                .map(|row| Sum { end: row.window.end, key: row.key, sum: row.value })
                .write("sums", &csv::Sink::new("out/sums.csv"));
        });
        outcome.map(|outcome| outcome.report.ending).map_err(|error| error.to_string())
    };
    let mut crashes = 0;
    for (at, act) in [25, 40, 60, 90, 130, 200, 300].into_iter().enumerate() {
        let disk = CrashingDisk::new();
        disk.put(Path::new("out/note"), b"");
        disk.crash_at(act);
        let ended = run(&disk, 1 + at % 3);
        if !disk.has_crashed() {
            assert_eq!(ended, Ok(Ending::Complete));
            break;
        }
        crashes += 1;
        let disk = disk.survivors(at as u64 % 3);
        assert_eq!(run(&disk, 3 - at % 3), Ok(Ending::Complete), "a crash at {act}");
        let bytes = disk.bytes(Path::new("out/sums.csv")).unwrap();
        let read: Vec<Sum> = ::csv::Reader::from_reader(&*bytes).deserialize().collect::<Result<_, _>>().unwrap();
        let count = read.len();
        let read: BTreeMap<_, _> = read.into_iter().map(|row| ((row.end, row.key), row.sum)).collect();
        assert_eq!((count, &read), (expected.len(), &expected), "a crash at {act}");
    }
    assert!(crashes >= 3, "{crashes} crashes");
}

/// Returns the errors, if any, with which readers of a source refuse a snapshot of the history, and its journal.
fn refusals<D: Record>(source: &impl Source<Item = D>, history: &History<D>) -> [Result<(), String>; 2] {
    let mut driven = ReaderDriver::open(source, bounded()).unwrap();
    let resumed = driven.resume(*history.keys().last().unwrap(), &places(history));
    let mut driven = ReaderDriver::open(source, bounded()).unwrap();
    let mut repeated = history.iter().map(|(epoch, piece)| driven.replay(*epoch, &piece.bounds));
    let repeated = repeated.find(Result::is_err).unwrap_or(Ok(()));
    [resumed, repeated].map(|result| result.map_err(|error| error.to_string()))
}

fn grown<D: Record>(source: &impl Source<Item = D>, history: &History<D>) -> tidegate::Result<Option<String>> {
    let bounds: Vec<PartitionProgress> = places(history).into_iter().map(|place| place.progress).collect();
    source.has_new_data(&worker_context(bounded()), &bounds)
}

#[test]
fn a_topic_that_was_made_anew_is_refused_even_if_it_has_more_records() {
    let old = broker(2);
    send(&old, 1, 300);
    let history = ended(&ticks(&old));
    assert_eq!(refusals(&ticks(&old), &history), [Ok(()), Ok(())]);
    let more = broker(2);
    send(&more, 2, 600);
    for refusal in refusals(&ticks(&more), &history) {
        let error = refusal.unwrap_err();
        assert!(error.starts_with("a record is not the one that the state has counted (topic ticks at "), "{error}");
        assert!(error.contains("deleted and created again"), "{error}");
    }
    assert!(grown(&ticks(&more), &history).is_err());
    let (fewer, narrower) = (broker(2), broker(1));
    send(&fewer, 1, 100);
    send(&narrower, 1, 600);
    // In a topic with fewer partitions the remaining ones have other records, too: the first difference is reported.
    let gone = ["a partition that the state names is not there", "a record is not the one that the state has counted"];
    for (broker, whys) in [(&fewer, &["are not there"][..]), (&narrower, &gone)] {
        let [resumed, repeated] = refusals(&ticks(broker), &history).map(Result::unwrap_err);
        for told in [resumed, repeated, grown(&ticks(broker), &history).unwrap_err().to_string()] {
            assert!(whys.iter().any(|why| told.contains(why)), "{told}");
        }
    }
}

#[test]
fn a_state_that_has_ended_ends_at_once_and_whether_the_source_has_grown_is_told() {
    let broker = broker(3);
    send(&broker, 1, 300);
    let topic = ticks(&broker);
    let history = ended(&topic);
    assert_eq!(grown(&topic, &history).unwrap(), None);
    send(&broker, 2, 300);
    let told = grown(&topic, &history).unwrap().unwrap();
    assert!(told.starts_with("partition ") && told.contains("has records from offset "), "{told}");
    for worker in 0..4 {
        let at = WorkerContext { worker, workers: 4, threads: 4, ..worker_context(bounded()) };
        let mut driven = ReaderDriver::open_at(&topic, &at).unwrap();
        driven.resume(*history.keys().last().unwrap(), &places(&history)).unwrap();
        assert!(driven.reader.exhausted(&driven.intake));
        assert_eq!(driven.poll(100).unwrap(), 0);
        let binding = driven.commit_epoch();
        assert!(binding.watermark.ended && binding.partitions.is_empty(), "{binding:?}");
    }

    let records = |count: i64| MemorySource::new(vec![(0..count).collect(), vec![7]], |at: &i64| *at);
    let history = ended(&records(5));
    assert_eq!(grown(&records(5), &history).unwrap(), None);
    assert_eq!(grown(&records(6), &history).unwrap().unwrap(), "partition 0 has records from offset 5 on");
    let error = refusals(&records(4), &history).map(Result::unwrap_err);
    assert!(error.iter().all(|error| error.contains("records that are not there")), "{error:?}");
    let made_up = |count| GeneratorSource::new(Generator::new(1), count).partitions(2);
    let history = ended(&made_up(9));
    assert_eq!(grown(&made_up(9), &history).unwrap(), None);
    assert_eq!(grown(&made_up(10), &history).unwrap().unwrap(), "partition 1 has records from offset 4 on");
    let error = refusals(&made_up(7), &history).map(Result::unwrap_err);
    assert!(error.iter().all(|error| error.contains("records that are not there")), "{error:?}");
}

#[test]
fn a_partition_that_the_state_does_not_name_comes_late_from_its_first_record_unless_the_end_is_fixed() {
    let broker = broker(3);
    send(&broker, 1, 300);
    let topic = ticks(&broker).from(StartOffset::Latest);
    let whole = by_partition(&ended(&ticks(&broker)));
    let mut history = ended(&ticks(&broker));
    for piece in history.values_mut() {
        piece.bounds.retain(|bound| bound.partition != 1);
        piece.bounds.iter_mut().for_each(|bound| (bound.end_offset, bound.ended) = (None, false));
    }
    let epoch = *history.keys().last().unwrap();
    for journal in [false, true] {
        let open = |options: Options| {
            let mut driven = ReaderDriver::open(&topic, options).unwrap();
            if journal {
                history.iter().for_each(|(epoch, piece)| driven.replay(*epoch, &piece.bounds).unwrap());
                driven.events.clear();
                driven.rejects.clear();
            } else {
                driven.resume(epoch, &places(&history)).unwrap();
            }
            driven.epoch_inputs.clear();
            driven
        };
        let mut driven = open(Options::default());
        driven.until_events(whole[&(String::new(), 1)].0.len()).unwrap();
        assert!(driven.events.iter().all(|event| event.origin.partition == 1));
        let (first, woken) = (&driven.epoch_inputs[0].1.partitions, &driven.epoch_inputs[0].1.watermark.activated);
        assert_eq!(first.iter().map(|bound| (bound.partition, bound.start_offset)).collect::<Vec<_>>(), [(1, Some(0))]);
        assert_eq!(woken.iter().map(|partition| partition.partition).collect::<Vec<_>>(), [1]);

        let mut driven = open(bounded());
        driven.until_ended().unwrap();
        assert!(driven.events.is_empty() && driven.rejects.is_empty());
        let bounds: Vec<_> = driven.epoch_inputs.iter().flat_map(|(_, binding)| &binding.partitions).collect();
        assert_eq!(bounds.iter().map(|bound| bound.partition).collect::<Vec<_>>(), [0, 2], "they end at this start");
        assert!(bounds.iter().all(|bound| bound.ended && bound.end_offset == Some(bound.next_offset)));
    }
}

#[test]
fn a_partition_that_was_idle_is_idle_again_until_its_next_record() {
    let broker = broker(1);
    send(&broker, 1, 100);
    let topic = ticks(&broker);
    let mut history = ended(&topic);
    for bound in history.values_mut().flat_map(|piece| &mut piece.bounds) {
        (bound.idle, bound.end_offset, bound.ended) = (true, None, false);
    }
    let mut driven = ReaderDriver::open(&topic, Options::default()).unwrap();
    let activation_watermark = EventTime::from_millis(2_000_000);
    let places: Vec<_> =
        places(&history).into_iter().map(|place| RestoredPartition { activation_watermark, ..place }).collect();
    driven.resume(*history.keys().last().unwrap(), &places).unwrap();
    driven.poll(100).unwrap();
    let binding = driven.commit_epoch();
    assert!(
        binding.watermark.least.is_none() && binding.partitions.is_empty() && !binding.watermark.ended,
        "{binding:?}"
    );
    send(&broker, 2, 10);
    driven.until(|driven| !driven.events.is_empty()).unwrap();
    assert_eq!(driven.events[0].watermark, places[0].progress.watermark);
    let woken: Vec<_> = driven.epoch_inputs.iter().flat_map(|(_, binding)| &binding.watermark.activated).collect();
    assert_eq!(woken.len(), 1);
    assert!(driven.epoch_inputs.last().unwrap().1.watermark.least.is_some());
}

/// Otherwise replayed epochs would have other results than those that were published.
#[test]
fn a_flag_that_affects_output_and_has_changed_is_refused_where_something_is_to_be_replayed() {
    let records: Vec<(u64, i64)> = (0..400).map(|number| (number % 7, number as i64)).collect();
    let source = MemorySource::new(vec![records], |row: &(u64, i64)| row.1);
    let run = |disk: &CrashingDisk, options: Options| {
        let (shared, source) = (disk.shared(), source.clone());
        let run = TestRun::new().seed(3).in_flight(1).state(&shared, "state").options(options);
        let outcome = run.run(move |flow| {
            let keyed = flow.read("rows", &source).key_by(|row| row.0);
            keyed
                .window(Window::tumbling(Duration::from_millis(100)))
                .aggregate("sums", |each| each.sum(|row: &(u64, i64)| row.1))
                .on_close()
                .map(|row| Sum { end: row.window.end, key: row.key, sum: row.value })
                .write("sums", &csv::Sink::new("out/sums.csv"));
        });
        outcome.map(|outcome| outcome.report.ending).map_err(|error| error.to_string())
    };
    let second = Duration::from_secs(1);
    let changed = [
        ("max-ahead", Options::default().max_ahead(second)),
        ("out-of-order", Options::default().out_of_order(second)),
    ];
    // Whether a crash leaves something to be replayed, or comes just behind a snapshot, depends on the threads' pace.
    let mut replayed = 0;
    for crash in (300..500).step_by(50) {
        let disk = CrashingDisk::new();
        disk.put(Path::new("out/note"), b"");
        disk.crash_at(crash);
        run(&disk, Options::default()).unwrap_err();
        let refused = changed.clone().map(|(flag, options)| match run(&disk.survivors(1), options) {
            Ok(ending) => ending != Ending::Complete,
            Err(error) => {
                assert!(error.contains(flag) && error.contains("1s"), "{flag}: {error}");
                true
            }
        });
        assert_eq!(refused[0], refused[1], "a crash at {crash}: it depends on what is to be replayed alone");
        replayed += usize::from(refused[0]);
        assert_eq!(run(&disk.survivors(1), Options::default()), Ok(Ending::Complete));
    }
    assert!(replayed > 0, "{replayed} crashes of 4 left something to be replayed");
}

/// A store that cannot rename files, like an object store: a file is put as a whole, or not at all.
#[derive(Debug, Default)]
struct Objects {
    files: OsDisk,
    /// Held while a file is put.
    putting: Mutex<()>,
}

impl Objects {
    fn put(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let mut file = self.files.create(path)?;
        file.append(bytes)?;
        file.sync()
    }
}

impl Disk for Objects {
    fn list(&self, directory: &Path) -> io::Result<Vec<String>> {
        self.files.list(directory)
    }

    fn create_directory(&self, directory: &Path) -> io::Result<()> {
        self.files.create_directory(directory)
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        self.files.create(path)
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        self.files.open(path)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.files.remove(path)
    }

    fn sync_directory(&self, directory: &Path) -> io::Result<()> {
        self.files.sync_directory(directory)
    }

    fn lock(&self, path: &Path) -> io::Result<Option<Box<dyn Lock>>> {
        self.files.lock(path)
    }

    fn replace_if(&self, path: &Path, bytes: &[u8], still: &mut dyn FnMut() -> bool) -> io::Result<bool> {
        let _putting = self.putting.lock().unwrap();
        if still() { self.put(path, bytes).map(|()| true) } else { Ok(false) }
    }

    fn create_new(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let _putting = self.putting.lock().unwrap();
        if path.exists() { Err(io::ErrorKind::AlreadyExists.into()) } else { self.put(path, bytes) }
    }
}

#[test]
fn a_store_that_knows_no_rename_keeps_a_state() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out.csv");
    let rows: Vec<(u64, i64)> = (0..4_000).map(|number| (number % 7, number as i64)).collect();
    let source = MemorySource::new(vec![rows.clone()], |row: &(u64, i64)| row.1);
    // The job is stopped and resumes with other numbers of workers, until it completes.
    for life in 0.. {
        let state = State::at(folder.path().join("state")).disk(Arc::new(Objects::default()));
        let job = Job::new("objects").state(state.snapshot_every(Duration::from_millis(5)));
        let job = job.workers(1 + life % 3).epoch(Duration::from_millis(2)).in_flight(16 << 10);
        let (stopper, source, sink) = (job.stopper(), source.clone(), csv::Sink::new(&out));
        let stop_at = rows.len() as i64 * (life as i64 + 1) / 4;
        let report = job.run(move |flow| {
            let stopper = stopper.clone();
            flow.read("rows", &source)
                .inspect(move |row| {
                    if row.1 == stop_at {
                        stopper.stop();
                    }
                })
                .key_by(|row| row.0)
                .window(Window::tumbling(Duration::from_millis(100)))
                .aggregate("sums", |each| each.sum(|row: &(u64, i64)| row.1))
                .on_close()
                .map(|row| Sum { end: row.window.end, key: row.key, sum: row.value })
                .write("sums", &sink);
        });
        match report.unwrap().ending {
            Ending::Stopped => assert!(life < 100),
            ended => {
                assert_eq!(ended, Ending::Complete);
                assert!(life >= 1, "it was never stopped");
                break;
            }
        }
    }
    let mut expected = BTreeMap::new();
    for (key, time) in rows {
        *expected.entry((EventTime::from_millis((time / 100 + 1) * 100), key)).or_insert(0) += i128::from(time);
    }
    let read: Vec<Sum> = ::csv::Reader::from_path(&out).unwrap().deserialize().collect::<Result<_, _>>().unwrap();
    let count = read.len();
    let read: BTreeMap<_, _> = read.into_iter().map(|row| ((row.end, row.key), row.sum)).collect();
    assert_eq!((count, read), (expected.len(), expected));
}

/// A row of results.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
struct Sum {
    end: EventTime,
    key: u64,
    sum: i128,
}

/// A word: its position, key and event time.
type Word = (u64, u8, i64);

/// Returns words out of order, none of which is late.
fn words(random: &mut fastrand::Rng, count: u64) -> Vec<Word> {
    (0..count).map(|position| (position, random.u8(0..4), position as i64 * 5 - random.i64(0..40))).collect()
}

/// Counts words by key and window from scratch.
fn counted(words: &[Word]) -> Vec<(i64, u8, i64)> {
    let mut counts = BTreeMap::<(i64, u8), i64>::new();
    for (_, key, time) in words {
        *counts.entry(((time.div_euclid(100) + 1) * 100, *key)).or_default() += 1;
    }
    counts.into_iter().map(|((end, key), count)| (end, key, count)).collect()
}

#[test]
fn a_channel_asks_for_what_no_state_has_and_nothing_is_lost_or_doubled() {
    for_seeds(10, |seed| {
        let mut random = fastrand::Rng::with_seed(seed);
        let (count, counts, mut disk) = (random.u64(50..250), Captured::new(), CrashingDisk::new());
        let all = Arc::new(words(&mut random, count));
        let mut published = 0;
        for life in 0.. {
            if life < 10 {
                disk.crash_at(random.usize(0..250));
            }
            let (sender, source) = channel::<Word>(random.usize(1..20));
            let source = source.event_time(|word| word.2).out_of_order(Duration::from_millis(50));
            let (words, told) = (Arc::clone(&all), sender.clone());
            let asked = Arc::new(Mutex::new(None));
            let from = Arc::clone(&asked);
            let sending = std::thread::spawn(move || -> tidegate::Result<()> {
                let begin = sender.position()?;
                *from.lock().unwrap() = Some(begin);
                for word in &words[begin as usize..] {
                    assert_eq!(sender.send(*word)?, word.0);
                }
                sender.close();
                assert!(sender.send((0, 0, 0)).is_err());
                sender.wait_until_published(words.len() as u64)
            });
            let output = counts.clone();
            let run = on(&disk, &mut random, TestRun::new()).run(move |flow| {
                let windows = flow
                    .read("words", &source)
                    .key_by(|word| word.1)
                    .window(Window::tumbling(Duration::from_millis(100)));
                let rows = windows.aggregate("counts", Each::count).on_close();
                rows.map(|row| (row.window.end.millis(), row.key, row.value)).write("counts", &output);
            });
            // Whoever sends hears of the job's end, however it ends.
            let sent = sending.join().map_err(|_| "the sender panicked")?;
            if let Some(begin) = *asked.lock().unwrap()
                && begin < published
            {
                return Err(format!("life {life} asks for {begin} again, and {published} were published"));
            }
            published = published.max(told.published());
            match run {
                Ok(_) => {
                    // Or nothing was left to send: the state had ended when it crashed.
                    sent.or_else(
                        |error| if asked.lock().unwrap().is_none() { Ok(()) } else { Err(error.to_string()) },
                    )?;
                    break;
                }
                Err(_) if disk.has_crashed() => disk = disk.survivors(random.u64(..)),
                Err(error) => return Err(format!("life {life}: {error}")),
            }
        }
        let rows: Vec<(i64, u8, i64)> = counts.all();
        if rows == counted(&all) { Ok(()) } else { Err(format!("{rows:?}\nexpected {:?}", counted(&all))) }
    });
}

#[test]
fn a_channel_holds_back_who_sends_and_tells_when_nobody_reads() {
    let (sender, source) = channel::<Word>(3);
    assert_eq!(sender.try_send((0, 0, 0)).unwrap(), Err((0, 0, 0)), "no job has begun");
    let source = source.event_time(|word| word.2);
    let gate = Arc::new(Mutex::new(()));
    let (held, closed) = (gate.lock().unwrap(), Arc::clone(&gate));
    let job = Job::new("words").epoch(Duration::from_millis(5)).in_flight(1).until_end().http("127.0.0.1:0");
    let output = Captured::<Word>::new();
    let (stop, watcher, shown) = (job.stopper(), job.watcher(), output.clone());
    assert_eq!(watcher.http_address(), None);
    let running = std::thread::spawn(move || {
        job.run(move |flow| {
            let closed = Arc::clone(&closed);
            let words = flow.read("words", &source).map_with_time(|time, word| (time.millis(), word));
            let words = words.inspect(move |_| drop(closed.lock().unwrap()));
            words.map(|(time, (position, key, _))| (position, key, time)).write("words", &output);
        })
    });
    // The job is held at the first record: the channel fills up.
    let mut sent = 0;
    let filling = sender.clone();
    let filled = within(Duration::from_secs(60), move || {
        let mut full = 0;
        while full < 200 {
            match filling.try_send((sent, 0, sent as i64)).unwrap() {
                Ok(position) => (sent, full) = (position + 1, 0),
                Err(_) => {
                    full += 1;
                    std::thread::sleep(Duration::from_millis(2));
                }
            }
        }
        sent
    });
    let sent = filled.unwrap();
    assert!((3..100).contains(&sent), "{sent}");
    drop(held);
    assert_eq!(sender.send((sent, 0, sent as i64)).unwrap(), sent);
    sender.wait_until_published(sent + 1).unwrap();
    assert_eq!((sender.published(), shown.all().len() as u64), (sent + 1, sent + 1));
    assert_eq!(shown.all()[2], (2, 0, 2));
    assert_ne!(watcher.http_address().unwrap().port(), 0);
    stop.stop();
    running.join().unwrap().unwrap();
    assert!(sender.send((0, 0, 0)).unwrap_err().to_string().contains("nobody reads the channel"));
    assert!(sender.position().is_err());
}
