//! A secured cluster is read and written like an open one: TLS, SASL/SCRAM, access control lists, and topics in every
//! compression of Kafka.
//!
//! A client library that was built without one of these says so only when it is used.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use rdkafka::config::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use tempfile::TempDir;

use crate::broker::{Broker, committed};
use crate::ports::free_port;
use crate::run::{ProgramOutput, TIDEGATE, check_contains, run, start, start_with};
use crate::transactions::{
    DISORDER_MS, Expected, TOTALS, Transaction, expected, json_of, of_json, rows_of, same_rows, wild,
};

const ACCOUNT_TOTALS: &str = "account_totals";
const PATIENCE: Duration = Duration::from_secs(30);

/// A broker with a secure listener.
struct Secured {
    broker: Broker,
    port: u16,
}

impl Secured {
    /// Returns the broker of this test program; `None` if there can be none on this machine.
    fn shared() -> Option<&'static Secured> {
        static SHARED: OnceLock<Option<Secured>> = OnceLock::new();
        SHARED.get_or_init(Secured::start).as_ref()
    }

    fn start() -> Option<Secured> {
        let port = free_port();
        let broker = Broker::start_with(&["--secure", &port.to_string()])?;
        Some(Secured { broker, port })
    }

    /// Allows a user an operation.
    fn allow(&self, user: &str, what: &str) {
        let user = format!("User:{user}");
        let words = ["--add", "--allow-principal", &user].into_iter().chain(what.split_whitespace());
        self.broker.acl(words);
    }

    /// Creates a topic and sends rows to its partitions, with this compression.
    fn topic_of(&self, name: &str, partitions: &[Vec<Transaction>], compression: &str) {
        self.broker.create(name, partitions.len() as i32);
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.broker.servers).set("compression.type", compression);
        let producer: BaseProducer = config.set("linger.ms", "50").create().unwrap();
        for (partition, rows) in partitions.iter().enumerate() {
            for row in rows.iter().map(json_of) {
                let record = BaseRecord::<(), str>::to(name).partition(partition as i32).payload(&row);
                producer.send(record).map_err(|(why, _)| why).unwrap();
                producer.poll(Duration::ZERO);
            }
        }
        producer.flush(PATIENCE).unwrap();
    }

    /// Returns the arguments that read a topic over the secure listener; `{}` stands for the folder.
    fn typed(&self, user: &str, topic: &str, folder: &Path, rest: &str) -> Vec<String> {
        let certificate = self.broker.data().join("keys/broker.pem").display().to_string();
        let line = format!(
            "--brokers 127.0.0.1:{} --topic {topic} --out-of-order {DISORDER_MS}ms --kafka-config security.protocol=sasl_ssl \
             --kafka-config sasl.mechanism=SCRAM-SHA-512 --kafka-config sasl.username={user} \
             --kafka-config sasl.password={user}-secret --kafka-config ssl.ca.location={certificate} {rest}",
            self.port
        );
        line.split_whitespace().map(|word| word.replace("{}", folder.to_str().unwrap())).collect()
    }
}

fn dealt(rows: &[Transaction], partitions: usize) -> Vec<Vec<Transaction>> {
    let of = |partition| rows.iter().skip(partition).step_by(partitions).cloned().collect();
    (0..partitions).map(of).collect()
}

fn expected_of(partitions: &[Vec<Transaction>]) -> Expected {
    expected(partitions.iter().map(Vec::as_slice), DISORDER_MS)
}

#[test]
fn topics_in_every_compression_are_read_over_tls_with_scram_and_access_control() {
    let Some(secured) = Secured::shared() else { return };
    let folder = tempfile::tempdir().unwrap();
    for (seed, compression) in (0..).zip(["none", "gzip", "snappy", "lz4", "zstd"]) {
        let (topic, partitions) = (format!("of-{compression}"), dealt(&wild(seed, 3_000), 3));
        secured.topic_of(&topic, &partitions, compression);
        secured.allow("alice", &format!("--operation Read --topic {topic}"));
        let line = "--until-end -w 2 --out {}/out.csv";
        run(ACCOUNT_TOTALS, secured.typed("alice", &topic, folder.path(), line)).code(0);
        same_rows(&rows_of(&folder.path().join("out.csv"), &TOTALS), &expected_of(&partitions).rows());
    }
}

#[test]
fn a_state_goes_on_over_tls_into_a_topic_with_the_rights_that_the_manual_names() {
    let Some(secured) = Secured::shared() else { return };
    let folder = tempfile::tempdir().unwrap();
    // Sums beyond 64 bits are integers in JSON too, but not all readers of JSON support them.
    let mut rows = wild(9, 6_000);
    rows.iter_mut().for_each(|row| row.amount_cents %= 1_000_000_000);
    let partitions = dealt(&rows, 3);
    secured.topic_of("stateful", &partitions, "zstd");
    for topic in ["totals", "totals-tidegate-progress"] {
        secured.broker.create(topic, 1);
        secured.allow("bob", &format!("--operation Write --operation Describe --topic {topic}"));
    }
    secured.allow("bob", "--operation Read --topic stateful");
    secured.allow("bob", "--operation Read --topic totals-tidegate-progress");
    secured.allow(
        "bob",
        "--operation Write --operation Describe --transactional-id tidegate- --resource-pattern-type prefixed",
    );
    let line = "--out kafka:totals --state {}/state --epoch 10ms --snapshot-every 50ms";
    let typed = |rest: &str| secured.typed("bob", "stateful", folder.path(), &format!("{line} {rest}"));
    // No right to use a group: offsets are kept in the state, and committed to a group only for monitoring.
    let snapshot_of = |incarnation: u32| {
        let end = format!("-{incarnation}.manifest");
        let names = std::fs::read_dir(folder.path().join("state/manifests")).ok()?;
        names.flatten().find(|name| name.file_name().to_string_lossy().ends_with(&end))
    };
    let mut running = start(ACCOUNT_TOTALS, typed("-w 1"));
    running.wait_until("a snapshot", |_| snapshot_of(1));
    running.kill();
    running.end_or_killed();
    let mut running = start(ACCOUNT_TOTALS, typed("-w 2"));
    running.wait_until("a snapshot", |_| snapshot_of(2));
    running.signal(Signal::SIGTERM);
    running.end().code(143);
    run(ACCOUNT_TOTALS, typed("--until-end")).code(0);
    let found = of_json(&committed(&secured.broker.servers, "totals"), &TOTALS);
    same_rows(&found, &expected_of(&partitions).rows());
}

#[test]
fn a_secured_broker_is_asked_whether_a_topic_is_compacted_and_who_may_not_ask_is_told_at_once() {
    let Some(secured) = Secured::shared() else { return };
    let folder = tempfile::tempdir().unwrap();
    secured.broker.create_with("compacted", 1, &[("cleanup.policy", "compact")]);
    secured.allow("bob", "--operation Read --operation DescribeConfigs --topic compacted");
    secured.allow("alice", "--operation Read --topic compacted");
    let typed = |user: &str| secured.typed(user, "compacted", folder.path(), "--until-end");
    check_contains(run(ACCOUNT_TOTALS, typed("bob")).error(1), &["a compacted topic is no stream of events"]);
    let read = run(ACCOUNT_TOTALS, typed("alice"));
    read.code(0);
    // An answer, and not the lack of one within the time that a broker has.
    let told = ["whether it is compacted cannot be asked (who reads has no right to describe its configuration)"];
    check_contains(&read.stderr, &told);
}

#[test]
fn an_output_is_created_over_tls_by_who_may_create_it() {
    let Some(secured) = Secured::shared() else { return };
    let folder = tempfile::tempdir().unwrap();
    let mut rows = wild(4, 600);
    rows.iter_mut().for_each(|row| row.amount_cents %= 1_000_000_000);
    let partitions = dealt(&rows, 2);
    secured.topic_of("created-from", &partitions, "none");
    secured.allow("alice", "--operation Read --topic created-from");
    let all = "--operation Create --operation Write --operation Describe --operation Read --topic created-";
    secured.allow("alice", &format!("{all} --resource-pattern-type prefixed"));
    let transactions =
        "--operation Write --operation Describe --transactional-id tidegate- --resource-pattern-type prefixed";
    secured.allow("alice", transactions);
    let line = "--until-end --out kafka:created-totals --state {}/state";
    run(ACCOUNT_TOTALS, secured.typed("alice", "created-from", folder.path(), line)).code(0);
    let found = of_json(&committed(&secured.broker.servers, "created-totals"), &TOTALS);
    same_rows(&found, &expected_of(&partitions).rows());
}

#[test]
fn who_may_not_is_told_why_and_soon() {
    let Some(secured) = Secured::shared() else { return };
    let folder = tempfile::tempdir().unwrap();
    secured.topic_of("forbidden", &dealt(&wild(1, 10), 1), "none");
    let refused = |typed: Vec<String>, parts: &[&str]| {
        let begun = Instant::now();
        let ended: ProgramOutput = run(ACCOUNT_TOTALS, typed);
        check_contains(ended.error(1), parts);
        // Twice the time in which a broker has to answer.
        assert!(begun.elapsed() < Duration::from_secs(20), "it took {:?}", begun.elapsed());
        assert!(!ended.stderr.contains("-secret"), "a password is told:\n{}", ended.stderr);
    };
    let typed = |user: &str| secured.typed(user, "forbidden", folder.path(), "--until-end");
    let replaced = |from: &str, to: &str| typed("carol").iter().map(|word| word.replace(from, to)).collect();
    refused(typed("carol"), &["topic forbidden", "authorization failed"]);
    refused(replaced("carol-secret", "wrong"), &["topic forbidden", "invalid credentials"]);
    refused(replaced("broker.pem", "none.pem"), &["ssl.ca.location"]);
    // The broker's certificate is not one that the system trusts.
    let untrusted = typed("carol").into_iter().filter(|word| !word.starts_with("ssl.ca.location"));
    let mut untrusted: Vec<String> = untrusted.collect();
    let dangling = (0..untrusted.len()).find(|at| {
        untrusted[*at] == "--kafka-config" && untrusted.get(at + 1).is_none_or(|next| next.starts_with("--"))
    });
    untrusted.remove(dangling.unwrap());
    refused(untrusted, &["certificate verify failed"]);
}

/// Asserts that a text, of this origin, contains no password.
fn check_secretive(text: &str, origin: &str) {
    assert!(!text.contains("-secret"), "a password is in {origin}:\n{text}");
}

/// Returns what a running job answers, whatever it is.
fn get(address: &str, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(address).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    answer.starts_with("HTTP/1.1 ").then_some(answer)
}

/// A topic that alice may read, and files of Kafka properties below a folder.
struct Secrets<'a> {
    secured: &'a Secured,
    folder: TempDir,
    topic: &'static str,
}

impl<'a> Secrets<'a> {
    fn prepare(secured: &'a Secured, topic: &'static str, partitions: &[Vec<Transaction>]) -> Self {
        secured.topic_of(topic, partitions, "none");
        secured.allow("alice", &format!("--operation Read --topic {topic}"));
        let secrets = Secrets { secured, folder: tempfile::tempdir().unwrap(), topic };
        std::fs::write(secrets.folder.path().join("password"), "alice-secret\n").unwrap();
        secrets
    }

    /// Writes a file of properties, with these lines at its end, and returns its path; `{}` stands for the folder.
    fn properties(&self, name: &str, last_lines: &str) -> String {
        let (path, folder) = (self.folder.path().join(name), self.folder.path().to_str().unwrap());
        let certificate = self.secured.broker.data().join("keys/broker.pem").display().to_string();
        let text = format!(
            "# of alice\nsecurity.protocol = sasl_ssl\nsasl.mechanism=SCRAM-SHA-512\nsasl.username=alice\n\
             ssl.ca.location={certificate}\n{}\n",
            last_lines.replace("{}", folder)
        );
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    }

    /// Returns the arguments that read the topic; `{}` stands for the folder.
    fn typed(&self, rest: &str) -> Vec<String> {
        let line = format!(
            "--brokers 127.0.0.1:{} --topic {} --out-of-order {DISORDER_MS}ms --out {{}}/out.csv {rest}",
            self.secured.port, self.topic
        );
        line.split_whitespace().map(|word| word.replace("{}", self.folder.path().to_str().unwrap())).collect()
    }
}

#[test]
fn a_secret_of_a_file_or_the_environment_opens_a_topic_and_is_in_no_message() {
    let Some(secured) = Secured::shared() else { return };
    let partitions = dealt(&wild(4, 2_000), 2);
    let secrets = Secrets::prepare(secured, "secret", &partitions);
    let rows = expected_of(&partitions).rows();
    let runs = |flags: &str, variable: Option<&str>| {
        let typed = secrets.typed(&format!("{flags} --until-end --progress plain"));
        let running = start_with(ACCOUNT_TOTALS, typed, |command| {
            variable.map(|value| command.env("TIDEGATE_TEST_PASSWORD", value));
        });
        let ended = running.end();
        check_secretive(&ended.stderr, "standard error");
        ended
    };
    let of_file = secrets.properties("file", "sasl.password=${file:{}/password}");
    let plain = secrets.properties("plain", "sasl.password=alice-secret");
    let wrong = secrets.properties("wrong", "sasl.password=wrong");
    let of_variable = secrets.properties("variable", "sasl.password=${env:TIDEGATE_TEST_PASSWORD}");
    let password = secrets.folder.path().join("password");
    for (flags, variable) in [
        (format!("--kafka-config-file {of_file}"), None),
        (format!("--kafka-config-file {plain}"), None),
        (format!("--kafka-config-file {of_variable}"), Some("alice-secret")),
        (format!("--kafka-config-file {wrong} --kafka-config sasl.password=${{file:{}}}", password.display()), None),
    ] {
        runs(&flags, variable).code(0);
        let out = secrets.folder.path().join("out.csv");
        same_rows(&rows_of(&out, &TOTALS), &rows);
        std::fs::remove_file(out).unwrap();
    }
    let missing = runs(&format!("--kafka-config-file {of_variable}"), None);
    check_contains(missing.error(2), &["sasl.password", "variable, line 6", "TIDEGATE_TEST_PASSWORD"]);
    let refused = runs(&format!("--kafka-config-file {of_variable}"), Some("not-the-secret-of-alice"));
    check_contains(refused.error(1), &["invalid credentials"]);
    // What the library says of values that it cannot use.
    let key = secrets.properties("key", "sasl.password=x\nssl.key.pem=pem-secret\nssl.key.password=key-secret");
    check_contains(runs(&format!("--kafka-config-file {key}"), None).error(1), &["ssl.key.pem"]);
    let unknown = secrets.properties("unknown", "sasl.no.such.password=other-secret");
    let unknown = runs(&format!("--kafka-config-file {unknown}"), None);
    check_contains(unknown.error(2), &["sasl.no.such.password", "[hidden]"]);
}

#[test]
fn a_secret_is_neither_in_the_state_nor_in_what_a_running_job_tells() {
    let Some(secured) = Secured::shared() else { return };
    let secrets = Secrets::prepare(secured, "told", &dealt(&wild(5, 2_000), 2));
    let of_file = secrets.properties("file", "sasl.password=${file:{}/password}");
    let port = free_port();
    let rest = format!(
        "--kafka-config-file {of_file} --state {{}}/state --epoch 10ms --snapshot-every 50ms --progress plain \
         --http 127.0.0.1:{port}"
    );
    let words = ["up", "-n", "1", "--", ACCOUNT_TOTALS].map(String::from).into_iter().chain(secrets.typed(&rest));
    let mut running = start(TIDEGATE, words);
    let state = secrets.folder.path().join("state");
    running.wait_until("a snapshot", |_| std::fs::read_dir(state.join("manifests")).ok()?.next().map(drop));
    for path in ["/status", "/metrics", "/why", "/profile", "/views", "/healthz"] {
        let answer = running.wait_until(path, |_| get(&format!("127.0.0.1:{port}"), path));
        check_secretive(&answer, path);
    }
    running.signal(Signal::SIGTERM);
    let ended = running.end();
    check_secretive(&ended.code(143).stderr, "standard error");
    let files = files_below(&state);
    assert!(files.len() > 3, "{files:?}");
    for path in files {
        check_secretive(&String::from_utf8_lossy(&std::fs::read(&path).unwrap()), &path.display().to_string());
    }
}

/// Returns all files below a folder.
fn files_below(folder: &Path) -> Vec<std::path::PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        match entry.file_type().unwrap().is_dir() {
            true => files.extend(files_below(&entry.path())),
            false => files.push(entry.path()),
        }
    }
    files
}
