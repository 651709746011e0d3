//! Edge cases of reading topics: transaction markers, groups that may not be used, leaders that cannot be reached.

use std::time::{Duration, Instant};

use rdkafka::mocking::MockCluster;
use rdkafka::producer::{DefaultProducerContext, Producer};
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
use tidegate::sink::kafka::Publisher;
use tidegate::{Job, Transaction, csv, kafka};

use crate::broker::{Broker, send_all};
use crate::ports::free_port;
use crate::run;
use crate::run::{check_contains, run};

const ACCOUNT_TOTALS: &str = "account_totals";
const PATIENCE: Duration = Duration::from_secs(60);

fn records(ids: std::ops::Range<u64>) -> Vec<String> {
    let record = |id| {
        format!(
            r#"{{"id":{id},"account":"a","merchant":"m","amount_cents":5,"currency":"EUR","at_ms":{}}}"#,
            1_000 * id
        )
    };
    ids.map(record).collect()
}

/// Transaction markers are no records: neither the job's metrics nor the group's offset count them as lag.
#[test]
fn transaction_markers_are_no_lag() {
    let Some(broker) = Broker::shared() else { return };
    let (topic, folder) = (broker.topic(1), tempfile::tempdir().unwrap());
    let producer = broker.transactional("markers");
    producer.begin_transaction().unwrap();
    send_all(&producer, &topic, records(0..3));
    producer.commit_transaction(PATIENCE).unwrap();
    for _ in 0..2 {
        producer.begin_transaction().unwrap();
        send_all(&producer, &topic, records(3..5));
        producer.abort_transaction(PATIENCE).unwrap();
    }
    // Three records and a marker, and twice two aborted records and a marker.
    let end = 10;
    let source = kafka::Source::json(&broker.servers, &topic).event_time(|t: &Transaction| t.at_ms);
    let job = Job::new("markers").epoch(Duration::from_millis(20));
    let (watcher, stop) = (job.watcher(), job.stopper());
    let out = csv::Sink::new(folder.path().join("out.csv"));
    let running = std::thread::spawn(move || job.run(move |flow| flow.read("ticks", &source).write("out", &out)));
    let until = |what: &str, holds: &dyn Fn() -> Result<(), String>| {
        let begun = Instant::now();
        while let Err(found) = holds() {
            assert!(begun.elapsed() < PATIENCE, "{what} is {found}");
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    let position = || {
        let status = watcher.status()?;
        let partition = status.processes.first()?.workers.first()?.partitions.first()?.clone();
        Some((partition.next, partition.lag()))
    };
    until("the position", &|| match position() {
        Some((next, Some(0))) if next == end => Ok(()),
        other => Err(format!("{other:?}")),
    });
    until("the group's offset", &|| match broker.group_offset("tidegate-markers", &topic, 0) {
        Some(offset) if offset == end as i64 => Ok(()),
        other => Err(format!("{other:?}")),
    });
    // A record after them is read, once.
    broker.send(&topic, 0, records(7..8));
    until("the group's offset", &|| match broker.group_offset("tidegate-markers", &topic, 0) {
        Some(offset) if offset == end as i64 + 1 => Ok(()),
        other => Err(format!("{other:?}")),
    });
    stop.stop();
    assert_eq!(running.join().unwrap().unwrap().summary.sources[0].accepted, 4);
}

/// Makes a cluster in this process, with a topic and its records, that lets nobody use a group.
fn without_groups() -> MockCluster<'static, DefaultProducerContext> {
    let cluster = MockCluster::new(1).unwrap();
    cluster.create_topic("transaction", 2, 1).unwrap();
    let mut publisher = Publisher::open(&cluster.bootstrap_servers(), "transaction", [], None).unwrap();
    for record in records(0..100) {
        publisher.send(Some(record.as_bytes()), record.as_bytes(), None).unwrap();
    }
    publisher.flush().unwrap();
    let refused = [RDKafkaRespErr::RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED; 1_000];
    cluster.request_errors(RDKafkaApiKey::FindCoordinator, &refused);
    cluster
}

/// Groups serve only monitoring: without the right to use one everything works, at every start, and one warning is
/// logged.
#[test]
fn no_right_on_a_group_is_needed() {
    let cluster = without_groups();
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path().display();
    let line =
        format!("--brokers {} --out {here}/out.csv --state {here}/state --until-end -w 2", cluster.bootstrap_servers());
    let ended = run(ACCOUNT_TOTALS, line.split(' '));
    assert_eq!(ended.code(0).figures("transactions: "), [100, 100, 0]);
    // A restart checks for new records.
    let again = run(ACCOUNT_TOTALS, line.split(' '));
    check_contains(&again.code(0).stderr, &["nothing was done"]);
    // A job that follows the topic logs it once, whatever the number of workers.
    let followed = format!("--brokers {} --out {here}/more.csv --state {here}/more -w 2", cluster.bootstrap_servers());
    for start in 0..2 {
        let mut running = run::start(ACCOUNT_TOTALS, followed.split(' '));
        running.wait_until("the warning", |running| running.stderr().contains("let the group").then_some(()));
        running.wait_until("rows", |_| {
            let rows = std::fs::read_to_string(folder.path().join("more.csv")).ok()?;
            (rows.lines().count() > 5).then_some(())
        });
        running.signal(nix::sys::signal::Signal::SIGTERM);
        let ended = running.end();
        let told: Vec<_> = ended.code(143).stderr.lines().filter(|line| line.contains("let the group")).collect();
        assert_eq!(told.len(), 1, "start {start}: {told:?}");
        check_contains(told[0], &["WARN", "tidegate-account-totals", "grant READ on the group", "group.id=NAME"]);
    }
}

/// Brokers often advertise an address that only they can reach.
#[test]
fn a_leader_that_cannot_be_reached_is_named_with_the_address_that_was_tried() {
    let (listening, advertised) = (free_port(), free_port());
    let Some(broker) = Broker::start_with(&["--proxied", &format!("{listening}:{advertised}")]) else { return };
    broker.create("transaction", 1);
    let servers = format!("127.0.0.1:{listening}");
    let ended = run(ACCOUNT_TOTALS, ["--brokers", &servers, "--until-end"]);
    let error = ended.error(1);
    check_contains(
        error,
        &[&format!("cannot reach 127.0.0.1:{advertised}"), "partition 0", &servers, "advertised.listeners"],
    );
}
