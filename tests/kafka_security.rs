//! A secured cluster is read and written like an open one: TLS, SASL/SCRAM, access control lists, and topics in every
//! compression of Kafka.
//!
//! A client library that was built without one of these says so only when it is used.
#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

#[path = "common/broker.rs"]
mod broker;
#[path = "common/run.rs"]
mod run;
#[path = "common/transactions.rs"]
mod transactions;

use std::net::TcpListener;
use std::path::Path;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use broker::{Broker, committed};
use nix::sys::signal::Signal;
use rdkafka::config::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use run::{ProgramOutput, check_contains, run, start};
use transactions::{DISORDER_MS, Expected, TOTALS, Transaction, expected, json_of, of_json, rows_of, same_rows, wild};

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
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
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
