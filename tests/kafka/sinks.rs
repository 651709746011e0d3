//! Topics of a real broker as sinks with a state: a reader of committed messages sees each epoch whole, and once,
//! whatever happens to the writer, to its predecessor and to the broker.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rdkafka::producer::{BaseRecord, Producer};
use serde::{Deserialize, Serialize};
use tidegate::durable::journal::JournalEnds;
use tidegate::durable::{Incarnation, StateId};
use tidegate::error::{Error, Result};
use tidegate::sink::kafka;
use tidegate::sink::{Sink, SinkContext, SinkRows, SinkWriter};
use tidegate::source::kafka::EmbeddedBroker;
use tidegate::time::Epoch;

use crate::broker::{Broker, committed as texts, high_watermarks};
use crate::run;

const PATIENCE: Duration = Duration::from_secs(30);
/// Time after which a running writer has noticed that its topic was deleted, on a busy machine.
const SOON: Duration = Duration::from_secs(40);
const FENCED: &str = "another process has taken over: it has been started with the same state";

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
struct Row {
    epoch: u64,
    n: u64,
}

/// The state and the topic of a test, and the number of the current incarnation.
#[derive(Clone)]
struct KafkaSinkCase {
    servers: String,
    topic: String,
    state: StateId,
    lives: Arc<AtomicU64>,
}

impl KafkaSinkCase {
    fn new(broker: &Broker, partitions: i32) -> KafkaSinkCase {
        static STATES: AtomicU64 = AtomicU64::new(1);
        let state = StateId(STATES.fetch_add(1, Ordering::Relaxed));
        let (servers, topic) = (broker.servers.clone(), broker.topic(partitions));
        KafkaSinkCase { servers, topic, state, lives: Arc::default() }
    }

    fn progress(&self) -> String {
        format!("{}-tidegate-progress", self.topic)
    }

    fn open(&self) -> Result<Box<dyn SinkWriter<Row>>> {
        self.open_as("totals", &[])
    }

    fn open_as(&self, sink: &str, properties: &[(&str, &str)]) -> Result<Box<dyn SinkWriter<Row>>> {
        let output = kafka::Sink::json(&self.servers, &self.topic).key_by(|row: &Row| row.n.to_string());
        let output = properties.iter().fold(output, |output, (key, value)| output.config(key, value));
        output.open(&SinkContext { state: Some(self.state), ..SinkContext::new("job", sink, SinkRows::Events) })
    }

    fn claim(&self) -> Incarnation {
        let (incarnation, lives) = (self.lives.fetch_add(1, Ordering::SeqCst) + 1, Arc::clone(&self.lives));
        let still_current = Arc::new(move || match lives.load(Ordering::SeqCst) {
            current if current == incarnation => Ok(()),
            current => Err(Error::new(format!("life {incarnation} is over: life {current} has begun"))),
        });
        Incarnation { state: Some(self.state), incarnation, resumed_from: None, still_current }
    }

    /// Opens and begins a writer; also returns the epoch that was published before.
    fn begun(&self) -> (Box<dyn SinkWriter<Row>>, Option<Epoch>) {
        let mut writer = self.open().unwrap();
        let shown = writer.published().unwrap().map(|found| found.epoch);
        writer.begin(&self.claim()).unwrap();
        (writer, shown)
    }

    /// Returns epoch and number of all committed rows, sorted.
    fn committed(&self) -> Vec<(u64, u64)> {
        let mut rows: Vec<(u64, u64)> = texts(&self.servers, &self.topic)
            .iter()
            .map(|text| serde_json::from_str::<Row>(text).map(|row| (row.epoch, row.n)).unwrap())
            .collect();
        rows.sort_unstable();
        rows
    }
}

fn shard_of(place: &KafkaSinkCase) -> SinkContext {
    SinkContext { state: Some(place.state), ..SinkContext::new("job", "totals", SinkRows::Events) }
}

fn rows_of(epoch: u64) -> Vec<(Row, isize)> {
    (0..20).map(|n| (Row { epoch, n }, 1)).collect()
}

fn all_of(epochs: impl IntoIterator<Item = u64>) -> Vec<(u64, u64)> {
    epochs.into_iter().flat_map(|epoch| (0..20).map(move |n| (epoch, n))).collect()
}

fn write(writer: &mut Box<dyn SinkWriter<Row>>, epoch: u64) -> Result<()> {
    writer.write(Epoch(epoch), &rows_of(epoch))
}

fn show(writer: &mut Box<dyn SinkWriter<Row>>, epoch: u64) -> Result<()> {
    write(writer, epoch)?;
    writer.publish(&JournalEnds::default())
}

fn refused<T>(result: Result<T>) -> String {
    result.err().expect("refused").to_string()
}

#[test]
fn a_process_that_ends_in_the_middle_has_shown_all_of_an_epoch_or_nothing() {
    let Some(broker) = Broker::shared() else { return };
    let place = KafkaSinkCase::new(broker, 3);
    // Never dropped, as if they had been killed or suspended.
    let mut earlier = Vec::new();
    for (life, last) in [(0, 0), (1, 4), (2, 8), (3, 12)] {
        let (mut writer, shown) = place.begun();
        assert_eq!(shown, (life > 0).then_some(Epoch(last)));
        show(&mut writer, last + 2).unwrap();
        show(&mut writer, last + 4).unwrap();
        // Sent and not committed.
        write(&mut writer, last + 6).unwrap();
        earlier.push(writer);
    }
    let (mut writer, shown) = place.begun();
    assert_eq!(shown, Some(Epoch(16)));
    assert_eq!(place.committed(), all_of((2..=16).step_by(2)));
    // The others continue.
    for mut zombie in earlier {
        let why = refused(zombie.publish(&JournalEnds::default()));
        assert!(why.contains(FENCED) && why.contains(&place.topic), "{why}");
        assert!(refused(show(&mut zombie, 100)).contains("showing earlier ones failed"));
    }
    show(&mut writer, 18).unwrap();
    writer.finish().unwrap();
    assert_eq!(place.committed(), all_of((2..=18).step_by(2)));
}

#[test]
fn several_epochs_are_shown_at_once_by_one_transaction() {
    let Some(broker) = Broker::shared() else { return };
    let place = KafkaSinkCase::new(broker, 2);
    let (mut writer, _) = place.begun();
    for epoch in [2, 4, 6] {
        write(&mut writer, epoch).unwrap();
    }
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(place.committed(), []);
    writer.publish(&JournalEnds::default()).unwrap();
    assert_eq!(place.committed(), all_of([2, 4, 6]));
    // One record at the start of the incarnation, and one for the three epochs.
    assert_eq!(texts(&place.servers, &place.progress()).len(), 2);
    writer.publish(&JournalEnds::default()).unwrap();
    writer.write(Epoch(8), &[]).unwrap();
    writer.publish(&JournalEnds::default()).unwrap();
    let progress = texts(&place.servers, &place.progress());
    assert_eq!(progress.len(), 3, "what has no rows is shown too, and nothing is not: {progress:?}");
    drop(writer);
    assert_eq!(place.begun().1, Some(Epoch(8)));
}

#[test]
fn a_row_that_is_there_twice_is_sent_twice() {
    let Some(broker) = Broker::shared() else { return };
    let place = KafkaSinkCase::new(broker, 1);
    let (mut writer, _) = place.begun();
    writer.write(Epoch(2), &[(Row { epoch: 2, n: 1 }, 2)]).unwrap();
    writer.publish(&JournalEnds::default()).unwrap();
    assert_eq!(place.committed(), [(2, 1), (2, 1)]);
}

/// Two threads of this process stand for two processes: neither knows of the other.
#[test]
fn one_that_is_overtaken_while_it_writes_is_told_so() {
    let Some(broker) = Broker::shared() else { return };
    let place = KafkaSinkCase::new(broker, 2);
    let (mut first, _) = place.begun();
    show(&mut first, 2).unwrap();
    let (mut second, shown) = place.begun();
    assert_eq!(shown, Some(Epoch(2)));
    show(&mut second, 4).unwrap();
    // The first one may fail when it begins, sends, or commits.
    let why = refused(show(&mut first, 4));
    assert!(why.contains(FENCED), "{why}");
    assert_eq!(place.committed(), all_of([2, 4]));
}

#[test]
fn nothing_is_shown_once_a_later_life_has_begun() {
    let Some(broker) = Broker::shared() else { return };
    let place = KafkaSinkCase::new(broker, 2);
    let (mut writer, _) = place.begun();
    show(&mut writer, 2).unwrap();
    place.claim();
    assert_eq!(refused(show(&mut writer, 4)), "life 1 is over: life 2 has begun");
    assert_eq!(place.committed(), all_of([2]));
    // Not even while it is alive: it has aborted.
    let progress = texts(&place.servers, &place.progress());
    assert_eq!(progress.len(), 2, "{progress:?}");
}

#[test]
fn sinks_and_states_do_not_disturb_each_other_in_one_topic() {
    let Some(broker) = Broker::shared() else { return };
    let place = KafkaSinkCase::new(broker, 2);
    let other = KafkaSinkCase { state: StateId(place.state.0 + 1_000), lives: Arc::default(), ..place.clone() };
    let mut writers = [place.open(), place.open_as("late", &[]), other.open()].map(Result::unwrap);
    for (at, writer) in writers.iter_mut().enumerate() {
        assert_eq!(writer.published().unwrap(), None);
        let life = if at == 2 { other.claim() } else { Incarnation { incarnation: 1, ..place.claim() } };
        writer.begin(&Incarnation { still_current: Arc::new(|| Ok(())), ..life }).unwrap();
        show(writer, 2 + 2 * at as u64).unwrap();
    }
    drop(writers);
    for (at, writer) in [place.open(), place.open_as("late", &[]), other.open()].into_iter().enumerate() {
        assert_eq!(writer.unwrap().published().unwrap().map(|found| found.epoch), Some(Epoch(2 + 2 * at as u64)));
    }
    assert_eq!(place.committed(), all_of([2, 4, 6]));
}

#[test]
fn what_is_shown_is_asked_behind_transactions_of_others() {
    let Some(broker) = Broker::shared() else { return };
    let place = KafkaSinkCase::new(broker, 1);
    let (mut writer, _) = place.begun();
    let (other, progress) = (broker.transactional("other"), place.progress());
    other.begin_transaction().unwrap();
    let theirs = BaseRecord::to(&progress).key("another state's").payload("anything");
    other.send(theirs).map_err(|(error, _)| error).unwrap();
    other.flush(PATIENCE).unwrap();
    show(&mut writer, 2).unwrap();
    drop(writer);
    let ends = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(700));
        other.commit_transaction(PATIENCE).unwrap();
    });
    let begun = Instant::now();
    assert_eq!(place.open().unwrap().published().unwrap().map(|found| found.epoch), Some(Epoch(2)));
    assert!(begun.elapsed() > Duration::from_millis(500), "it did not wait: {:?}", begun.elapsed());
    ends.join().unwrap();
}

#[test]
fn a_copy_of_a_state_does_not_go_on_where_the_other_one_did() {
    let Some(broker) = Broker::shared() else { return };
    let place = KafkaSinkCase::new(broker, 1);
    drop(place.begun());
    let copied = KafkaSinkCase { lives: Arc::new(AtomicU64::new(1)), ..place.clone() };
    drop(place.begun());
    let mut writer = copied.open().unwrap();
    let why = refused(writer.begin(&copied.claim()));
    assert!(why.contains("incarnation 2 of the state wrote to it, and this is only incarnation 2"), "{why}");
}

#[test]
fn a_topic_that_is_not_what_it_was_is_refused_and_lost_progress_is_none() {
    let Some(broker) = Broker::shared() else { return };
    let place = KafkaSinkCase::new(broker, 1);
    let (mut writer, _) = place.begun();
    show(&mut writer, 2).unwrap();
    show(&mut writer, 4).unwrap();
    drop(writer);
    // Retention may remove old records.
    broker.expire(&place.topic, 0, 21);
    assert_eq!(place.open().unwrap().published().unwrap().map(|found| found.epoch), Some(Epoch(4)));
    // A progress record has the end offsets acknowledged before it, perhaps without those of the last transaction.
    broker.delete(&place.topic);
    let why = refused(kafka::Sink::<Row>::json(&place.servers, &place.topic).create(1).open(&shard_of(&place)));
    assert!(why.contains(&place.topic) && why.contains("results were published in it, and it was deleted"), "{why}");
    broker.create(&place.topic, 1);
    std::thread::sleep(Duration::from_millis(500));
    let recreated = kafka::Sink::json(&place.servers, &place.topic).create(1);
    let mut writer: Box<dyn SinkWriter<Row>> = recreated.open(&shard_of(&place)).unwrap();
    let why = refused(writer.published());
    let expected = "partition 0 ends at offset 0, and had reached";
    assert!(why.contains(expected), "{why}");
    drop(writer);
    broker.delete(&place.progress());
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(place.open().unwrap().published().unwrap(), None);
}

#[test]
fn an_epoch_may_be_larger_than_the_queue_and_one_that_takes_too_long_is_made_again() {
    let Some(broker) = Broker::shared() else { return };
    let place = KafkaSinkCase::new(broker, 2);
    let mut writer = place.open_as("totals", &[("queue.buffering.max.messages", "500")]).unwrap();
    writer.begin(&place.claim()).unwrap();
    let rows: Vec<_> = (0..20_000).map(|n| (Row { epoch: 2, n }, 1)).collect();
    writer.write(Epoch(2), &rows).unwrap();
    writer.publish(&JournalEnds::default()).unwrap();
    assert_eq!(place.committed().len(), 20_000);
    drop(writer);
    // The brokers abort the second transaction; its epochs are written again.
    let mut writer = place.open_as("totals", &[("transaction.timeout.ms", "1000")]).unwrap();
    writer.begin(&place.claim()).unwrap();
    write(&mut writer, 4).unwrap();
    std::thread::sleep(Duration::from_millis(2_500));
    writer.publish(&JournalEnds::default()).unwrap();
    drop(writer);
    let (mut writer, shown) = place.begun();
    assert_eq!(shown, Some(Epoch(4)));
    show(&mut writer, 6).unwrap();
    assert_eq!(place.committed().len(), 20_040);
}

#[test]
fn a_broker_that_crashes_changes_nothing() {
    let Some(broker) = Broker::start() else { return };
    let place = KafkaSinkCase::new(&broker, 2);
    let (mut writer, _) = place.begun();
    let mut epoch = 0;
    std::thread::scope(|scope| {
        let crash = scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(700));
            broker.kill();
            broker.restart();
        });
        while !crash.is_finished() || epoch % 20 != 0 {
            epoch += 2;
            if let Err(error) = show(&mut writer, epoch) {
                // A new incarnation resumes after what was published: the failed epoch, or the one before it.
                println!("{error}");
                drop(std::mem::replace(&mut writer, place.begun().0));
                let shown = place.open().unwrap().published().unwrap().unwrap().epoch.0;
                assert!(shown == epoch || shown == epoch - 2, "{shown} after {epoch} failed");
                (writer, epoch) = (place.begun().0, shown);
            }
        }
    });
    assert!(epoch > 4, "{epoch}");
    assert_eq!(place.committed(), all_of((2..=epoch).step_by(2)));
}

#[test]
fn a_transaction_takes_milliseconds() {
    let Some(broker) = Broker::shared() else { return };
    let place = KafkaSinkCase::new(broker, 2);
    let (mut writer, _) = place.begun();
    let mut times: Vec<_> = (1..=100)
        .map(|epoch| {
            let begun = Instant::now();
            show(&mut writer, 2 * epoch).unwrap();
            begun.elapsed()
        })
        .collect();
    times.sort_unstable();
    println!("transactions of 20 rows: half take {:?}, nine in ten {:?}", times[50], times[90]);
    assert!(times[50] < Duration::from_millis(150), "half of them take more than {:?}", times[50]);
}

/// The embedded broker accepts transactions, which is enough for a demo, and for nothing more.
#[test]
fn an_embedded_broker_is_enough_for_a_demonstration() {
    let embedded = EmbeddedBroker::start().unwrap();
    embedded.create_topic("out", 2).unwrap();
    let place = KafkaSinkCase {
        servers: embedded.servers().to_owned(),
        topic: "out".into(),
        state: StateId(1),
        lives: Arc::default(),
    };
    embedded.create_topic(&place.progress(), 1).unwrap();
    let (mut writer, shown) = place.begun();
    assert_eq!(shown, None);
    show(&mut writer, 2).unwrap();
    drop(writer);
    let (mut writer, shown) = place.begun();
    assert_eq!(shown, Some(Epoch(2)));
    show(&mut writer, 4).unwrap();
    assert_eq!(place.committed(), all_of([2, 4]));
}

/// After its first transaction a topic is known by its end offsets, so a topic that replaces it is detected.
#[test]
fn a_topic_that_is_deleted_after_its_first_transaction_is_missed() {
    let Some(broker) = Broker::shared() else { return };
    for (is_running, is_made_anew) in [(false, false), (false, true), (true, false), (true, true)] {
        let place = KafkaSinkCase::new(broker, 1);
        let (mut writer, _) = place.begun();
        show(&mut writer, 2).unwrap();
        let mut running = is_running.then_some(writer);
        broker.delete(&place.topic);
        if is_made_anew {
            create_again(broker, &place.topic);
        }
        let begun = Instant::now();
        let why = match &mut running {
            Some(writer) => refused(show(writer, 4)),
            None => {
                let output = kafka::Sink::<Row>::json(&place.servers, &place.topic).create(1);
                refused(output.open(&shard_of(&place)).and_then(|mut writer| writer.published()))
            }
        };
        let expected = if is_made_anew { "at offset 0, and had reached 20" } else { "does not exist" };
        assert!(why.contains(expected) && why.contains(&place.topic), "{is_running} {is_made_anew}: {why}");
        assert!(begun.elapsed() < SOON, "noticed after {:?}", begun.elapsed());
    }
    // At least once, too.
    let place = KafkaSinkCase::new(broker, 1);
    let context = SinkContext::new("job", "totals", SinkRows::Events);
    let mut writer = kafka::Sink::<Row>::json(&place.servers, &place.topic).open(&context).unwrap();
    show(&mut writer, 2).unwrap();
    broker.delete(&place.topic);
    let begun = Instant::now();
    let why = refused(show(&mut writer, 4));
    assert!(why.contains("does not exist") && why.contains(&place.topic), "{why}");
    assert!(begun.elapsed() < SOON, "noticed after {:?}", begun.elapsed());
}

#[test]
fn progress_that_is_deleted_or_removed_is_missed() {
    let Some(broker) = Broker::shared() else { return };
    for is_made_anew in [false, true] {
        let place = KafkaSinkCase::new(broker, 1);
        let (mut writer, _) = place.begun();
        show(&mut writer, 2).unwrap();
        broker.delete(&place.progress());
        if is_made_anew {
            create_again(broker, &place.progress());
        }
        let begun = Instant::now();
        let why = refused(show(&mut writer, 4));
        assert!(begun.elapsed() < SOON, "noticed after {:?}", begun.elapsed());
        let expected = if is_made_anew { "ended at offset 0, and had reached" } else { "does not exist" };
        assert!(why.contains(expected) && why.contains(&place.progress()), "{is_made_anew}: {why}");
        assert_eq!(if is_made_anew { place.committed() } else { all_of([2]) }, all_of([2]));
    }
    // Records can be removed only if the topic was not created by a sink.
    let place = KafkaSinkCase::new(broker, 1);
    broker.create_with(&place.progress(), 1, &[("cleanup.policy", "compact,delete")]);
    let (mut writer, _) = place.begun();
    show(&mut writer, 2).unwrap();
    drop(writer);
    broker.expire(&place.progress(), 0, high_watermarks(&place.servers, &place.progress())[&0]);
    let mut writer = place.open().unwrap();
    let why = refused(writer.begin(&place.claim()));
    assert!(why.contains("records at its beginning were removed") && why.contains(&place.progress()), "{why}");
}

/// Creates a topic that was deleted a moment ago, which the broker may still be deleting.
fn create_again(broker: &Broker, topic: &str) {
    std::thread::sleep(Duration::from_millis(500));
    broker.create(topic, 1);
    std::thread::sleep(Duration::from_millis(500));
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
struct Balance {
    key: u64,
    amount: i64,
}

/// A table of the last message of each key equals the collection, although rows of an epoch are sorted, which puts a
/// smaller new row before the row that it replaces.
#[test]
fn the_last_message_of_a_key_is_its_newest_row() {
    let Some(broker) = Broker::shared() else { return };
    for state in [Some(StateId(8_000)), None] {
        let topic = broker.topic(3);
        let output = kafka::Sink::json(&broker.servers, &topic).key_by(|row: &Balance| row.key.to_string());
        let mut writer =
            output.open(&SinkContext { state, ..SinkContext::new("job", "balances", SinkRows::Changes) }).unwrap();
        let life = Incarnation { state, ..Incarnation::without_state() };
        writer.begin(&life).unwrap();
        let amount = |key: u64, epoch: i64| (key as i64 * 31 + epoch * 17) % 101 - 50;
        for epoch in 1..=6 {
            let mut rows = Vec::new();
            for key in 0..40 {
                // Some keys are removed in the last epoch.
                if epoch < 6 || key % 4 > 0 {
                    rows.push((Balance { key, amount: amount(key, epoch) }, 1));
                }
                if epoch > 1 {
                    rows.push((Balance { key, amount: amount(key, epoch - 1) }, -1));
                }
            }
            rows.sort();
            writer.write(Epoch(2 * epoch as u64), &rows).unwrap();
            // Several epochs in one transaction, too.
            if epoch % 3 == 0 {
                writer.publish(&JournalEnds::default()).unwrap();
            }
        }
        writer.finish().unwrap();
        let mut last = std::collections::BTreeMap::new();
        for text in texts(&broker.servers, &topic) {
            let change: serde_json::Value = serde_json::from_str(&text).unwrap();
            last.insert(change["key"].as_u64().unwrap(), (change["amount"].clone(), change["diff"].clone()));
        }
        let expected = (0..40).map(|key| {
            let (epoch, diff) = if key % 4 > 0 { (6, 1) } else { (5, -1) };
            (key, (serde_json::json!(amount(key, epoch)), serde_json::json!(diff)))
        });
        assert_eq!(last, expected.collect());
    }
}

#[test]
fn what_a_topic_does_not_take_is_said_with_what_to_do() {
    let Some(broker) = Broker::shared() else { return };
    let topics = [
        (
            "takes-keys",
            ("cleanup.policy", "compact"),
            "a compacted topic takes only messages with a key: give the output",
        ),
        (
            "takes-little",
            ("max.message.bytes", "1000"),
            "raise the topic's max.message.bytes, or send smaller messages",
        ),
    ];
    for (topic, setting, expected) in topics {
        broker.create_with(topic, 1, &[setting]);
        for state in [None, Some(StateId(9_000))] {
            let shard = SinkContext { state, ..SinkContext::new("job", "rows", SinkRows::Events) };
            let mut writer: Box<dyn SinkWriter<String>> =
                kafka::Sink::json(&broker.servers, topic).open(&shard).unwrap();
            let life = Incarnation { state, ..Incarnation::without_state() };
            writer.begin(&life).unwrap();
            // Of a limit counts what is left after compression.
            let mut rng = fastrand::Rng::with_seed(1);
            let text: String = (0..5_000).map(|_| rng.alphanumeric()).collect();
            let written = writer.write(Epoch(2), &[(text, 1)]);
            let why = refused(written.and_then(|()| writer.publish(&JournalEnds::default())));
            assert!(why.contains(expected) && why.contains(topic), "{state:?}: {why}");
        }
    }
}

#[test]
fn a_topic_that_is_read_is_no_output() {
    const ACCOUNT_TOTALS: &str = "account_totals";
    for flag in ["--out", "--late", "--rejects"] {
        // It is refused before any broker is contacted.
        let line = ["--brokers", "127.0.0.1:1", "--topic", "t", flag, "kafka:t", "--until-end"];
        run::check_contains(run::run(ACCOUNT_TOTALS, line).error(2), &["topic t", "both read and written"]);
    }
    let line = ["--brokers", "127.0.0.1:1", "--topic", "t", "--out", "kafka:u", "--late", "kafka:u"];
    run::check_contains(run::run(ACCOUNT_TOTALS, line).error(2), &["kafka:u is where", "goes"]);
    let line = ["--brokers", "127.0.0.1:1", "--topic", "t", "--out", "kafka:u-tidegate-progress"];
    run::check_contains(run::run(ACCOUNT_TOTALS, line).error(2), &["u-tidegate-progress cannot be an output"]);

    let Some(broker) = Broker::shared() else { return };
    let elsewhere = broker.servers.replace("127.0.0.1", "localhost");
    let (topic, other) = (broker.topic(1), broker.topic(1));
    let job = |out: &str| {
        let source = tidegate::kafka::Source::json(&elsewhere, &topic).event_time(|row: &Row| row.n as i64);
        let output = kafka::Sink::json(&broker.servers, out);
        let options = tidegate::source::Options::default().until_end(true);
        let job = tidegate::Job::new("loop").options(options);
        job.run(move |flow| flow.read("rows", &source).write("rows", &output)).map(drop)
    };
    let error = job(&topic).unwrap_err();
    assert!(error.exit_code() == 2 && error.to_string().contains("both read and written"), "{error}");
    assert_eq!(job(&other), Ok(()));
}
