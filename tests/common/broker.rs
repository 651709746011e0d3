//! A real Kafka broker for tests: one for each test binary, shared by its tests, or one of a test's own.
//! `tests/kafka/broker` runs it. It ends with the test process, even if that is killed: a shell waits for the end of a
//! pipe that only the test process holds open, and then wipes the broker.
//!
//! Without Java, tests that need it are skipped with a line on standard error; with `CI=true` they fail.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of it")]
#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

use std::collections::BTreeMap;
use std::future::Future;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

/// Timeout of a request to the broker.
const PATIENCE: Duration = Duration::from_secs(60);

/// Timeout of one client, after which another one asks.
const ANSWER: Duration = Duration::from_secs(10);

/// Maximum time to wait for markers of transactions; tests may leave a transaction open on purpose.
const SETTLING: Duration = Duration::from_secs(10);

/// Settings of a topic that is compacted as soon as a segment is closed: see [`Broker::close_segment`].
pub const COMPACTED: [(&str, &str); 5] = [
    ("cleanup.policy", "compact"),
    ("min.cleanable.dirty.ratio", "0.001"),
    ("segment.bytes", "1048576"),
    ("min.compaction.lag.ms", "0"),
    ("max.compaction.lag.ms", "200"),
];

/// A running broker.
pub struct Broker {
    pub servers: String,
    data: PathBuf,
    /// Options of the script's `start`.
    options: Vec<String>,
    /// Wipes the broker when its standard input ends.
    _watchdog: Child,
}

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kafka/broker")
}

/// Returns a call of the script. Brokers of tests live for a short time, in which a JVM does not get back what it takes to
/// optimise its code.
fn call(command: &str) -> Command {
    let mut call = Command::new(script());
    call.arg(command).env("KAFKA_JVM_OPTS", "-XX:TieredStopAtLevel=1");
    call
}

/// Options of requests to the broker of a test, which may share its machine with a build.
fn patient() -> AdminOptions {
    AdminOptions::new().request_timeout(Some(Duration::from_secs(180)))
}

impl Broker {
    /// Returns the broker that the tests of this binary share; `None` if there can be none on this machine.
    pub fn shared() -> Option<&'static Broker> {
        static SHARED: OnceLock<Option<Broker>> = OnceLock::new();
        SHARED.get_or_init(Broker::start).as_ref()
    }

    /// Starts a broker of the caller's own, for tests that kill it; `None` if there can be none on this machine.
    pub fn start() -> Option<Broker> {
        Broker::start_with(&[])
    }

    /// Starts a broker of the caller's own with options of the script; `None` if there can be none on this machine.
    pub fn start_with(options: &[&str]) -> Option<Broker> {
        let data = tempfile::Builder::new().prefix("tidegate-broker-").tempdir().unwrap().keep();
        // In a session of its own, so that it survives an interrupt from the keyboard.
        let wipe = r#"while read -r _; do :; done; "$0" wipe -d "$1" >/dev/null 2>&1"#;
        let mut watchdog = Command::new("setsid");
        watchdog.args(["bash", "-c", wipe]).arg(script()).arg(&data).stdin(Stdio::piped());
        let mut watchdog = watchdog.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let output = call("start").args(["-p", "0", "-d"]).arg(&data).args(options).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        match output.status.code() {
            Some(0) => {}
            Some(4) if std::env::var("CI").as_deref() != Ok("true") => {
                // Not by `eprintln`, which the test runner captures.
                let line = format!("SKIPPED: no real broker here: {}\n", said.trim());
                std::io::stderr().lock().write_all(line.as_bytes()).unwrap();
                drop(watchdog.stdin.take());
                watchdog.wait().unwrap();
                return None;
            }
            code => panic!("the broker did not start ({code:?}): {said}"),
        }
        let servers = String::from_utf8(output.stdout).unwrap().trim().to_owned();
        let options = options.iter().map(|option| (*option).to_owned()).collect();
        Some(Broker { servers, data, options, _watchdog: watchdog })
    }

    /// Kills the broker.
    pub fn kill(&self) {
        self.run("kill", &[]);
    }

    /// Restarts the broker with the same data and port.
    pub fn restart(&self) {
        self.run("start", &self.options);
    }

    /// Returns the directory in which the broker's script keeps its files.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// Changes the permissions of users of its secure listener.
    pub fn acl<'a>(&self, words: impl Iterator<Item = &'a str>) {
        let words: Vec<&str> = words.collect();
        let ask = |words: &[&str]| {
            let output = call("acl").arg("-d").arg(&self.data).args(words).output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8(output.stdout).unwrap()
        };
        let value_of =
            |word: &str| words.windows(2).filter(|pair| pair[0] == word).map(|pair| pair[1]).collect::<Vec<_>>();
        let (principals, operations) = (value_of("--allow-principal"), value_of("--operation"));
        // The controller has a right before the brokers do, which are asked for the list.
        let has_all = |answer: &str| {
            let current = answer.split_once("Current ACLs").map_or("", |(_, current)| current);
            let rights: Vec<String> = current.lines().map(|line| line.replace('_', "").to_lowercase()).collect();
            principals.iter().all(|principal| {
                operations.iter().all(|operation| {
                    let right = format!("principal={principal}, host=*, operation={operation},").to_lowercase();
                    rights.iter().any(|line| line.contains(&right))
                })
            })
        };
        let resource = ["--topic", "--group", "--transactional-id", "--resource-pattern-type"];
        let pairs = words.windows(2).filter(|pair| resource.contains(&pair[0]));
        let list: Vec<&str> = std::iter::once("--list").chain(pairs.flatten().copied()).collect();
        let begun = Instant::now();
        let mut answer = ask(&words);
        while !has_all(&answer) {
            assert!(begun.elapsed() < Duration::from_secs(60), "the brokers do not know {words:?}:\n{answer}");
            answer = ask(&list);
        }
    }

    fn run(&self, command: &str, options: &[String]) {
        let output = call(command).arg("-d").arg(&self.data).args(options).output().unwrap();
        assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Creates a topic with a new name.
    pub fn topic(&self, partitions: i32) -> String {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("topic-{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        self.create(&name, partitions);
        name
    }

    /// Creates a topic.
    pub fn create(&self, name: &str, partitions: i32) {
        self.create_with(name, partitions, &[]);
    }

    /// Creates a topic with settings.
    pub fn create_with(&self, name: &str, partitions: i32, settings: &[(&str, &str)]) {
        let topic = NewTopic::new(name, partitions, TopicReplication::Fixed(1));
        let topic = settings.iter().fold(topic, |topic, (key, value)| topic.set(key, value));
        until_answered(&format!("whether {name} is created"), || {
            let results = wait_for(self.admin().create_topics([&topic], &patient())).unwrap();
            match results.into_iter().next().unwrap() {
                // It was starved, and the cluster has no broker for a moment.
                Err((_, RDKafkaErrorCode::InvalidReplicationFactor)) => None,
                result => Some(result.unwrap()),
            }
        });
    }

    /// Closes the segment of all messages of partition 0, because the last one is never compacted: by large messages,
    /// which are no JSON.
    pub fn close_segment(&self, topic: &str) {
        let mut config = ClientConfig::new();
        let producer: BaseProducer = config.set("bootstrap.servers", &self.servers).create().unwrap();
        let large = "no JSON ".repeat(75_000);
        for _ in 0..3 {
            let record = BaseRecord::to(topic).partition(0).payload(&large).key("large");
            producer.send(record).map_err(|(why, _)| why).unwrap();
            producer.flush(PATIENCE).unwrap();
        }
    }

    /// Creates a topic; fails if the broker cannot do so now.
    pub fn try_create(&self, name: &str, partitions: i32) -> Result<(), RDKafkaErrorCode> {
        let topic = NewTopic::new(name, partitions, TopicReplication::Fixed(1));
        let created = wait_for(self.admin().create_topics([&topic], &patient())).unwrap();
        created.into_iter().try_for_each(|result| result.map(drop).map_err(|(_, code)| code))
    }

    /// Increases the number of partitions of a topic to `partitions`.
    pub fn grow(&self, topic: &str, partitions: usize) {
        let grown = NewPartitions::new(topic, partitions);
        for result in wait_for(self.admin().create_partitions([&grown], &AdminOptions::new())).unwrap() {
            result.unwrap();
        }
    }

    /// Deletes a topic.
    pub fn delete(&self, topic: &str) {
        for result in wait_for(self.admin().delete_topics(&[topic], &AdminOptions::new())).unwrap() {
            result.unwrap();
        }
    }

    /// Removes a partition's records before an offset, as retention would.
    pub fn expire(&self, topic: &str, partition: i32, before: i64) {
        let mut list = rdkafka::TopicPartitionList::new();
        list.add_partition_offset(topic, partition, rdkafka::Offset::Offset(before)).unwrap();
        wait_for(self.admin().delete_records(&list, &AdminOptions::new())).unwrap();
    }

    /// Sends texts to a partition, in order, and waits until the broker has them.
    pub fn send(&self, topic: &str, partition: usize, texts: impl IntoIterator<Item = String>) {
        self.sender().send(topic, partition, texts);
    }

    /// Returns a reusable sender, because creating one takes a while.
    pub fn sender(&self) -> Sender {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.servers).set("enable.idempotence", "true").set("linger.ms", "2");
        config.set("topic.metadata.refresh.interval.ms", "200");
        Sender(config.create().unwrap())
    }

    /// Returns the committed offset of a consumer group; `None` if there is none.
    pub fn group_offset(&self, group: &str, topic: &str, partition: i32) -> Option<i64> {
        let mut config = ClientConfig::new();
        let consumer: BaseConsumer =
            config.set("bootstrap.servers", &self.servers).set("group.id", group).create().unwrap();
        let mut list = rdkafka::TopicPartitionList::new();
        list.add_partition(topic, partition);
        let committed = consumer.committed_offsets(list, PATIENCE).ok()?;
        match committed.elements()[0].offset() {
            rdkafka::Offset::Offset(offset) => Some(offset),
            _ => None,
        }
    }

    fn admin(&self) -> AdminClient<DefaultClientContext> {
        ClientConfig::new().set("bootstrap.servers", &self.servers).create().unwrap()
    }

    /// Creates a transactional producer that has not begun a transaction.
    pub fn transactional(&self, id: &str) -> BaseProducer {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.servers).set("transactional.id", id).set("linger.ms", "0");
        let producer: BaseProducer = config.create().unwrap();
        producer.init_transactions(Duration::from_secs(20)).unwrap();
        producer
    }
}

/// Sends texts to partitions.
pub struct Sender(BaseProducer);

impl Sender {
    /// Sends texts to a partition, in order, and waits until the broker has them.
    pub fn send(&self, topic: &str, partition: usize, texts: impl IntoIterator<Item = String>) {
        for text in texts {
            let (record, begun) =
                (|| BaseRecord::<(), str>::to(topic).partition(partition as i32).payload(&text), Instant::now());
            while let Err((why, _)) = self.0.send(record()) {
                // The client refreshes its metadata only from time to time.
                assert!(why.rdkafka_error_code() == Some(RDKafkaErrorCode::UnknownPartition), "{why}");
                assert!(begun.elapsed() < PATIENCE, "{why}");
                self.0.poll(Duration::from_millis(50));
            }
            self.0.poll(Duration::ZERO);
        }
        self.0.flush(PATIENCE).unwrap();
    }
}

/// Sends texts to partition 0 of a topic and waits until the broker has them, in a transaction or not.
pub fn send_all(producer: &BaseProducer, topic: &str, texts: impl IntoIterator<Item = String>) {
    for text in texts {
        producer.send(BaseRecord::<(), str>::to(topic).partition(0).payload(&text)).map_err(|(e, _)| e).unwrap();
    }
    producer.flush(Duration::from_secs(20)).unwrap();
}

/// Asks with one client after the other until there is an answer: a client may lose a broker for good that says for a
/// moment that there is none.
fn until_answered<T>(what: &str, ask: impl Fn() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(begun.elapsed() < PATIENCE, "no answer: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Returns all committed messages of a topic, read with `read_committed`.
pub fn committed(servers: &str, topic: &str) -> Vec<String> {
    settle(servers, topic);
    until_answered(&format!("all messages of {topic}"), || read_committed(servers, topic))
}

/// Reads all committed messages; `None` if the broker does not answer for a while.
fn read_committed(servers: &str, topic: &str) -> Option<Vec<String>> {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", servers).set("group.id", "test").set("enable.partition.eof", "true");
    config.set("isolation.level", "read_committed").set("enable.auto.commit", "false");
    let consumer: BaseConsumer = config.create().unwrap();
    let metadata = consumer.fetch_metadata(Some(topic), ANSWER).ok()?;
    let (mut list, mut open) = (rdkafka::TopicPartitionList::new(), metadata.topics()[0].partitions().len());
    for partition in metadata.topics()[0].partitions() {
        list.add_partition_offset(topic, partition.id(), rdkafka::Offset::Beginning).unwrap();
    }
    consumer.assign(&list).unwrap();
    let (mut texts, mut last) = (Vec::new(), Instant::now());
    while open > 0 {
        match consumer.poll(Duration::from_millis(100)) {
            Some(Ok(message)) => texts.push(String::from_utf8(message.payload().unwrap_or_default().to_vec()).unwrap()),
            Some(Err(KafkaError::PartitionEOF(_))) => open -= 1,
            _ if last.elapsed() > ANSWER => return None,
            _ => continue,
        }
        last = Instant::now();
    }
    (!metadata.topics()[0].partitions().is_empty()).then_some(texts)
}

/// Returns the end offset of each partition of a topic, uncommitted records and transaction markers included.
pub fn high_watermarks(servers: &str, topic: &str) -> BTreeMap<i32, i64> {
    ends(servers, topic, "read_uncommitted")
}

fn ends(servers: &str, topic: &str, isolation: &str) -> BTreeMap<i32, i64> {
    until_answered(&format!("the ends of {topic}"), || {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", servers).set("isolation.level", isolation);
        let consumer: BaseConsumer = config.create().unwrap();
        let metadata = consumer.fetch_metadata(Some(topic), ANSWER).ok()?;
        let partitions = metadata.topics()[0].partitions().iter().map(rdkafka::metadata::MetadataPartition::id);
        let end = |id: i32| Some((id, consumer.fetch_watermarks(topic, id, ANSWER).ok()?.1));
        partitions.map(end).collect::<Option<BTreeMap<_, _>>>().filter(|ends| !ends.is_empty())
    })
}

/// Waits until no transaction is open on a topic, for some seconds at most: a broker answers that a transaction is
/// committed before its markers are on all partitions, and until then a partition seems to end before it.
pub fn settle(servers: &str, topic: &str) {
    let begun = Instant::now();
    while ends(servers, topic, "read_committed") != high_watermarks(servers, topic) && begun.elapsed() < SETTLING {
        std::thread::sleep(Duration::from_millis(20));
    }
}

struct Unpark(std::thread::Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

fn wait_for<F: Future>(future: F) -> F::Output {
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut context = Context::from_waker(&waker);
    let mut future = std::pin::pin!(future);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return output;
        }
        std::thread::park();
    }
}
