//! Topics that other clients have written with a schema registry are read as they were meant: by a real broker, over TLS
//! with SCRAM and access control, a real registry, and the Avro and Protocol Buffers of Python.
//!
//! Our own encoder could share a mistake with our own decoder, and a stand-in of a registry one with its client.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::ports::free_address;
use crate::registry::Parts;
use serde::{Deserialize, Serialize};
use tidegate::error::ErrorKind;
use tidegate::kafka::{self, AvroSchema, Decode, Message, SchemaRegistry};
use tidegate::source::Options;
use tidegate::source::kafka::Source;
use tidegate::stream::Observer;
use tidegate::testing::Captured;
use tidegate::{Closed, Decimal, Error, EventTime, Job, State, Window, ndjson};

impl Parts {
    /// Writes a topic by Python over the secure listener and returns the totals that Python expects of it.
    fn write(&self, topic: &str, format: &str, compression: &str, seed: u64, count: usize) -> Vec<Total> {
        self.broker.create(topic, 2);
        let (seed, count) = (seed.to_string(), count.to_string());
        let client: serde_json::Map<_, _> =
            self.login("alice").into_iter().map(|(key, value)| (key.to_owned(), value.into())).collect();
        let client = serde_json::to_string(&client).unwrap();
        let json = self.python.run(&["write", &client, &self.registry.url, topic, format, compression, &seed, &count]);
        serde_json::from_str(&json).unwrap()
    }

    /// Returns the properties of a client of the secure listener.
    fn login(&self, user: &str) -> [(&'static str, String); 6] {
        let certificate = self.broker.data().join("keys/broker.pem");
        [
            ("bootstrap.servers", self.secure.clone().unwrap()),
            ("security.protocol", "sasl_ssl".into()),
            ("ssl.ca.location", certificate.display().to_string()),
            ("sasl.mechanism", "SCRAM-SHA-256".into()),
            ("sasl.username", user.into()),
            ("sasl.password", format!("{user}-secret")),
        ]
    }

    /// Allows a user an operation on the topics whose names begin with `matrix-`.
    fn allow(&self, user: &str, operation: &str) {
        let user = format!("User:{user}");
        let words = ["--add", "--allow-principal", &user, "--operation", operation, "--topic", "matrix-"];
        self.broker.acl(words.into_iter().chain(["--resource-pattern-type", "prefixed"]));
    }

    /// Sends messages to partition 0 of a new topic.
    fn send(&self, topic: &str, messages: &[&[u8]]) {
        self.broker.create(topic, 1);
        let hex: Vec<String> =
            messages.iter().map(|bytes| bytes.iter().map(|byte| format!("{byte:02x}")).collect()).collect();
        let arguments = ["send", &self.broker.servers, topic].into_iter().chain(hex.iter().map(String::as_str));
        self.python.run(&arguments.collect::<Vec<_>>());
    }

    /// Makes a subject refuse schemas that cannot read the data of its newest one.
    fn require_backward(&self, subject: &str) {
        self.python.run(&["require_backward", &self.registry.url, subject]);
    }

    fn registry(&self) -> SchemaRegistry {
        SchemaRegistry::new(&self.registry.url)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
struct Money {
    cents: i64,
    currency: Currency,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
enum Currency {
    Eur,
    Chf,
    Jpy,
}

/// A payment of any version of the schema.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
struct Payment {
    account: String,
    at: EventTime,
    #[serde(alias = "amount")]
    cents: i64,
    #[serde(default)]
    fee: Option<i32>,
    price: Option<Decimal>,
    #[serde(default)]
    day: Option<String>,
    #[serde(default)]
    id: Option<String>,
    #[serde(default)]
    tags: Vec<String>,
    total: Option<Money>,
}

impl Payment {
    /// Checks that all that Python has derived from cents and time is still what it was.
    fn check(&self) {
        assert!(self.price.is_none_or(|price| price == Decimal::new(self.cents, 2)), "{self:?}");
        assert!(self.total.as_ref().is_none_or(|total| total.cents == self.cents), "{self:?}");
        assert!(self.day.as_ref().is_none_or(|day| self.at.to_string().starts_with(day.as_str())), "{self:?}");
        assert!(self.id.as_ref().is_none_or(|id| id.len() == 36 && id.matches('-').count() == 4), "{self:?}");
        assert!(self.tags.iter().all(|tag| tag == "t"), "{self:?}");
    }
}

#[derive(Clone, PartialEq, prost::Message)]
struct ProtobufPayment {
    #[prost(string, tag = "1")]
    account: String,
    #[prost(int64, tag = "2")]
    at: i64,
    #[prost(sint64, tag = "3")]
    cents: i64,
    #[prost(sint32, optional, tag = "4")]
    fee: Option<i32>,
}

fn of_protobuf(message: ProtobufPayment, _: &Message<'_>) -> Payment {
    let ProtobufPayment { account, at, cents, fee } = message;
    let at = EventTime::from_millis(at);
    Payment { account, at, cents, fee, price: None, day: None, id: None, tags: Vec::new(), total: None }
}

/// Window start in milliseconds, account, count, cents, fees.
type Total = (i64, String, i64, i128, i128);

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
struct Row {
    start: i64,
    account: String,
    count: i64,
    cents: i128,
    fees: i128,
}

fn topic_at(servers: &str, topic: &str, decoder: impl Decode<Payment>) -> Source<Payment> {
    Source::new(servers, topic, decoder).event_time(|payment: &Payment| payment.at)
}

fn topic_of(parts: &Parts, topic: &str, decoder: impl Decode<Payment>) -> Source<Payment> {
    topic_at(&parts.broker.servers, topic, decoder)
}

/// Computes the totals of a topic, with a state; fails after `fail_at` rows.
fn totals(source: &Source<Payment>, directory: &Path, fail_at: usize) -> tidegate::Result<()> {
    let sink = ndjson::Sink::new(directory.join("totals.ndjson"));
    let seen = std::sync::atomic::AtomicUsize::new(0);
    let watch = std::sync::Arc::new(Observer::new(move |_, rows: &[(Row, isize)]| {
        let all = rows.len() + seen.fetch_add(rows.len(), std::sync::atomic::Ordering::Relaxed);
        if all >= fail_at { Err(Error::new("killed")) } else { Ok(()) }
    }));
    let source = source.clone();
    let options = Options::default().until_end(true).out_of_order(Duration::from_secs(2)).fail_on_reject(true);
    let job = Job::new("totals").workers(2).options(options).epoch(Duration::from_millis(5));
    let report = job.state(State::at(directory.join("state"))).run(move |flow| {
        let payments = flow.read("payments", &source).inspect(Payment::check);
        let closed = payments
            .key_by(|payment| payment.account.clone())
            .window(Window::tumbling(Duration::from_secs(10)))
            .aggregate("totals", |each| {
                let fees = each.sum(|payment| i64::from(payment.fee.unwrap_or(0)));
                (each.count(), each.sum(|payment| payment.cents), fees)
            })
            .on_close();
        let rows = closed.map(|Closed { key, window, value: (count, cents, fees) }| Row {
            start: window.start.millis(),
            account: key,
            count,
            cents,
            fees,
        });
        rows.clone().write("totals", &sink);
        rows.write("watch", &*watch);
    });
    report.map(drop)
}

fn written(directory: &Path) -> Vec<Total> {
    let text = std::fs::read_to_string(directory.join("totals.ndjson")).unwrap();
    let row = |line: &str| {
        let Row { start, account, count, cents, fees } = serde_json::from_str(line).unwrap();
        (start, account, count, cents, fees)
    };
    let mut rows: Vec<Total> = text.lines().map(row).collect();
    rows.sort();
    rows
}

/// Returns a topic as a user reads it over the secure listener.
fn secured(parts: &Parts, user: &str, topic: &str, format: &str) -> Source<Payment> {
    let [(_, servers), login @ ..] = parts.login(user);
    let source = match format {
        "json" => topic_at(&servers, topic, kafka::json::<Payment>()),
        "framed-json" => topic_at(&servers, topic, kafka::json::<Payment>().framed()),
        "protobuf" => topic_at(&servers, topic, kafka::protobuf().framed().with_meta(of_protobuf)),
        _ => topic_at(&servers, topic, kafka::avro::<Payment>(&parts.registry())),
    };
    source.configs(login.iter().map(|(key, value)| (*key, value.as_str())))
}

#[test]
fn topics_of_every_format_and_compression_of_a_secured_broker_give_the_totals_that_python_computes() {
    let Some(parts) = Parts::secured() else { return };
    for (user, operation) in [("alice", "Write"), ("bob", "Read")] {
        parts.allow(user, operation);
    }
    let compressions = ["none", "gzip", "snappy", "lz4", "zstd"];
    let mut cases: Vec<(&str, &str)> = Vec::new();
    for format in ["json", "avro", "protobuf"] {
        cases.extend(compressions.map(|compression| (format, compression)));
    }
    cases.extend([("framed-json", "zstd"), ("evolving-avro", "lz4"), ("evolving-avro", "gzip")]);
    for (seed, (format, compression)) in cases.into_iter().enumerate() {
        let topic = format!("matrix-{format}-{compression}");
        let expected = parts.write(&topic, format, compression, seed as u64, 1_500);
        let directory = tempfile::tempdir().unwrap();
        let source = secured(parts, "bob", &topic, format);
        // Some fail in the midst of their results, and go on.
        if compression == "lz4" || format == "framed-json" {
            let error = totals(&source, directory.path(), expected.len() / 2).unwrap_err().to_string();
            assert!(error.contains("killed"), "{topic}: {error}");
        }
        totals(&source, directory.path(), usize::MAX).unwrap();
        assert_eq!(written(directory.path()), expected, "{topic}");
        assert!(expected.len() > 20, "{topic}");
    }
    // Who may write may not read.
    let error = read(&secured(parts, "alice", "matrix-json-none", "json")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AccessRefused, "{error}");
}

/// Reads a topic to its end; returns the records and the summary.
fn read(source: &Source<Payment>) -> tidegate::Result<(Vec<Payment>, String)> {
    let rows = Captured::new();
    let (shown, source) = (rows.clone(), source.clone());
    let job = Job::new("read").options(Options::default().until_end(true));
    let report = job.run(move |flow| flow.read("payments", &source).write("rows", &shown))?;
    Ok((rows.all(), report.summary.to_string()))
}

/// A schema of payments, and a payment without its frame.
const SCHEMA: &str = r#"{"type": "record", "name": "Small", "fields": [{"name": "account", "type": "string"},
    {"name": "at", "type": {"type": "long", "logicalType": "timestamp-millis"}}, {"name": "cents", "type": "long"}]}"#;
const PAYMENT: &[u8] = b"\x02a\x80\xa0\xab\xb6\xfa\x62\x0e";

fn framed(id: u32, datum: &[u8]) -> Vec<u8> {
    [&[0][..], &id.to_be_bytes(), datum].concat()
}

#[test]
fn messages_with_another_frame_or_an_unknown_id_are_rejected_with_the_reason() {
    let Some(parts) = Parts::secured() else { return };
    let registry = parts.registry();
    let id = registry.register("small-value", kafka::SchemaKind::Avro, SCHEMA).unwrap();
    let text = registry.register("text-value", kafka::SchemaKind::Avro, "\"string\"").unwrap();
    let proto = "syntax = \"proto3\"; message Other { int64 a = 1; }";
    let proto = registry.register("proto-value", kafka::SchemaKind::Protobuf, proto).unwrap();
    let good = framed(id, PAYMENT);
    let messages = [
        good.clone(),
        b"".to_vec(),
        b"{}".to_vec(),
        framed(1_000_000, PAYMENT),
        framed(u32::MAX, PAYMENT),
        framed(text, b"\x02a"),
        framed(proto, PAYMENT),
        good[..good.len() - 1].to_vec(),
        [good.clone(), vec![0]].concat(),
        framed(1_000_000, b""),
        good,
    ];
    let messages: Vec<&[u8]> = messages.iter().map(Vec::as_slice).collect();
    parts.send("rejects", &messages);
    let source = topic_of(parts, "rejects", kafka::avro::<Payment>(&registry));
    let (rows, summary) = read(&source).unwrap();
    assert_eq!(rows.len(), 2, "{summary}");
    assert!(summary.contains("11 records read = 2 accepted + 9 rejected"), "{summary}");
    let reason = |bytes: &[u8]| {
        let record =
            tidegate::durable::journal::JournaledRecord { payload: Some(bytes.to_vec()), ..Default::default() };
        let decoder = kafka::avro::<Payment>(&registry);
        decoder.decode(&Message::of_record("t", 0, &record)).unwrap_err().to_string()
    };
    let id_of = |id: u32| format!("schema id {id}: ");
    for (message, expected) in messages[1..].iter().zip([
        "no schema id: the message has 0 bytes, and a frame has 5".to_owned(),
        "no schema id: the message begins with byte 123, and a frame with byte 0".to_owned(),
        id_of(1_000_000) + "the registry does not know its schema",
        id_of(u32::MAX) + "the registry does not know its schema",
        id_of(text) + "not the expected Avro data: invalid type: string \"a\", expected struct Payment",
        id_of(proto) + "its schema is PROTOBUF, not AVRO",
        id_of(id) + "not the expected Avro data: field `cents`: the data end too early",
        id_of(id) + "not the expected Avro data: 1 bytes are left",
    ]) {
        assert_eq!(reason(message), expected);
    }
}

/// Passes connections on to an address.
fn forward(listener: &TcpListener, to: &str) {
    for from in listener.incoming() {
        let (from, to) = (from.unwrap(), TcpStream::connect(to).unwrap());
        for (mut from, mut to) in [(from.try_clone().unwrap(), to.try_clone().unwrap()), (to, from)] {
            std::thread::spawn(move || {
                let mut buffer = [0; 4096];
                while let Ok(length @ 1..) = from.read(&mut buffer) {
                    to.write_all(&buffer[..length]).unwrap();
                }
                let _ = to.shutdown(std::net::Shutdown::Write);
            });
        }
    }
}

#[test]
fn a_registry_that_is_away_rejects_nothing_it_is_waited_for_and_then_the_job_fails() {
    let Some(parts) = Parts::secured() else { return };
    let id = parts.registry().register("away-value", kafka::SchemaKind::Avro, SCHEMA).unwrap();
    parts.send("away", &[&framed(id, PAYMENT)]);
    let address = free_address();
    let (_, rest) = parts.registry.url.split_once("://").unwrap();
    let (host, path) = rest.split_once('/').unwrap();
    let away = SchemaRegistry::new(&format!("http://me:secret@{address}/{path}"));
    assert!(!format!("{away:?}").contains("secret"));
    // It stays away.
    let impatient = away.clone().retry_for(Duration::from_millis(1_500));
    let begun = Instant::now();
    let error = read(&topic_of(parts, "away", kafka::avro::<Payment>(&impatient))).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::SourceUnreachable, "{error}");
    let said = error.to_string();
    let expected = format!("the schema registry cannot be asked (http://{address}/{path}/schemas/ids/{id}): ");
    assert!(said.starts_with(&expected) && said.contains("; start it, or check its URL, and start again"), "{said}");
    assert!(!said.contains("secret") && begun.elapsed() > Duration::from_millis(700), "{said}");
    // It comes.
    let host = host.to_owned();
    std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(1_500));
        forward(&TcpListener::bind(address).unwrap(), &host);
    });
    let (rows, summary) = read(&topic_of(parts, "away", kafka::avro::<Payment>(&away))).unwrap();
    assert_eq!((rows.len(), rows[0].cents), (1, 7), "{summary}");
    // Something else is there.
    let wrong = SchemaRegistry::new(&parts.registry.url.replace("ccompat", "nothing"));
    let error = read(&topic_of(parts, "away", kafka::avro::<Payment>(&wrong))).unwrap_err().to_string();
    assert!(error.contains("there is no schema registry, or another API of it"), "{error}");
    let none = SchemaRegistry::new("localhost:8081");
    let error = read(&topic_of(parts, "away", kafka::avro::<Payment>(&none))).unwrap_err();
    assert!(error.exit_code() == 2 && error.to_string().contains("begin with http://HOST or https://HOST"), "{error}");
}

#[test]
fn schemas_are_looked_up_registered_and_refused_if_they_are_incompatible() {
    let Some(parts) = Parts::secured() else { return };
    let (registry, avro) = (parts.registry(), kafka::SchemaKind::Avro);
    assert_eq!(registry.look_up("new-value", avro, SCHEMA).unwrap(), None);
    registry.check_compatible("new-value", avro, SCHEMA).unwrap();
    let id = registry.register("new-value", avro, SCHEMA).unwrap();
    assert_eq!(registry.look_up("new-value", avro, SCHEMA).unwrap(), Some(id));
    assert_eq!(registry.register("new-value", avro, SCHEMA).unwrap(), id);
    assert_eq!(registry.fetch(id).unwrap().unwrap().kind, avro);
    assert_eq!((registry.fetch(999_999).unwrap(), registry.fetch(u32::MAX).unwrap()), (None, None));
    let error = registry.register("new-value", avro, "{\"type\": \"nonsense\"}").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::SchemaRefused);
    assert!(error.to_string().contains("the schema registry refuses a request"), "{error}");
}

/// A row of a sink, with all that a derived schema can have.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
struct Summary {
    at: EventTime,
    account: String,
    sum: i128,
    count: i64,
    worst: Option<i32>,
    currency: Currency,
    parts: Vec<Money>,
    exact: bool,
}

fn summary(rng: &mut fastrand::Rng) -> Summary {
    let currencies = [Currency::Eur, Currency::Chf, Currency::Jpy];
    let currency = |rng: &mut fastrand::Rng| currencies[rng.usize(..3)].clone();
    Summary {
        at: EventTime::from_millis(rng.i64(0..4_000_000_000_000)),
        account: ["", "ann", "名前", "x\"y"][rng.usize(..4)].into(),
        sum: rng.i128(-(10i128.pow(30))..10i128.pow(30)) >> rng.u32(0..90),
        count: rng.i64(..),
        worst: rng.bool().then(|| rng.i32(..)),
        currency: currency(rng),
        parts: (0..rng.usize(..3)).map(|_| Money { cents: rng.i64(..), currency: currency(rng) }).collect(),
        exact: rng.bool(),
    }
}

#[test]
fn rows_that_are_encoded_are_what_python_reads() {
    let Some(parts) = Parts::secured() else { return };
    let schema = AvroSchema::of::<Summary>("com.acme").unwrap();
    let registry = parts.registry();
    let encoder = kafka::AvroEncoder::new(&registry, "summaries", schema).auto_register(true);
    let mut message = Vec::new();
    let mut rng = fastrand::Rng::with_seed(8);
    let unprepared = encoder.encode(&summary(&mut rng), &mut message).unwrap_err();
    assert!(unprepared.contains("not prepared") && message.is_empty(), "{unprepared}");
    encoder.prepare().unwrap();
    let rows: Vec<Summary> = (0..300).map(|_| summary(&mut rng)).collect();
    let mut lines = String::new();
    for row in &rows {
        message.clear();
        encoder.encode(row, &mut message).unwrap();
        lines.extend(message.iter().map(|byte| format!("{byte:02x}")).chain(["\n".into()]));
        let record =
            tidegate::durable::journal::JournaledRecord { payload: Some(message.clone()), ..Default::default() };
        let decoded = kafka::avro::<Summary>(&registry).decode(&Message::of_record("t", 0, &record));
        assert_eq!(decoded, Ok(Some(row.clone())));
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), lines).unwrap();
    let printed = parts.python.run(&["read_avro", &parts.registry.url, file.path().to_str().unwrap()]);
    assert_eq!(printed.lines().count(), rows.len());
    for (line, row) in printed.lines().zip(&rows) {
        let read: serde_json::Value = serde_json::from_str(line).unwrap();
        let texts = |name: &str| read[name].as_str().unwrap().to_owned();
        // Python prints `2026-01-02 03:04:05.678000+00:00`, without the fraction if it is none.
        let at: EventTime = texts("at").replace(' ', "T").parse().unwrap();
        assert_eq!((at, texts("account"), texts("sum")), (row.at, row.account.clone(), row.sum.to_string()), "{line}");
        let rest = [("count", serde_json::json!(row.count)), ("worst", serde_json::json!(row.worst))];
        let more = [("currency", serde_json::json!(row.currency)), ("parts", serde_json::json!(row.parts))];
        for (name, value) in rest.into_iter().chain(more).chain([("exact", row.exact.into())]) {
            assert_eq!(read[name], value, "{name} in {line}");
        }
    }
    message.clear();
    let why = encoder.encode("no row", &mut message).unwrap_err();
    assert!(why.starts_with("the row does not fit the schema `com.acme.Summary`: ") && message.is_empty(), "{why}");
}

#[test]
fn a_schema_that_is_missing_or_incompatible_fails_before_anything_is_written() {
    let Some(parts) = Parts::secured() else { return };
    let registry = parts.registry();
    let schema = |text: &str| AvroSchema::parse(text).unwrap();
    let one = |fields: &str| format!(r#"{{"type": "record", "name": "a.One", "fields": [{fields}]}}"#);
    let first = one(r#"{"name": "x", "type": "long"}"#);
    let missing = kafka::AvroEncoder::new(&registry, "strict", schema(&first));
    let error = missing.prepare().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::SchemaRefused);
    let said = error.to_string();
    assert!(said.starts_with("the schema of an output is not registered (") && said.contains("strict-value"), "{said}");
    kafka::AvroEncoder::new(&registry, "strict", schema(&first)).auto_register(true).prepare().unwrap();
    missing.prepare().unwrap();
    let (mut message, mut same) = (Vec::new(), Vec::new());
    missing.encode(&std::collections::BTreeMap::from([("x", 5)]), &mut message).unwrap();
    assert_eq!((message[0], message[5..].to_vec()), (0, vec![10]));
    parts.require_backward("strict-value");
    let wrong = one(r#"{"name": "x", "type": "string"}"#);
    let error = kafka::AvroEncoder::new(&registry, "strict", schema(&wrong)).auto_register(true).prepare().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::SchemaRefused);
    let said = error.to_string();
    assert!(
        said.starts_with("the schema is incompatible with the newest version (") && said.contains("LONG"),
        "{said}"
    );
    assert_eq!(
        registry.look_up("strict-value", kafka::SchemaKind::Avro, &wrong).unwrap(),
        None,
        "it was not registered"
    );
    // Another subject allows it.
    let elsewhere = kafka::AvroEncoder::new(&registry, "strict", schema(&wrong)).auto_register(true);
    elsewhere.subject_naming(kafka::SubjectNaming::TopicRecord).prepare().unwrap();
    assert!(registry.look_up("strict-a.One", kafka::SchemaKind::Avro, &wrong).unwrap().is_some());
    // Protocol Buffers, and what the decoder makes of them.
    let proto = "syntax = \"proto3\"; message P { string account = 1; int64 at = 2; sint64 cents = 3; }";
    let encoder = kafka::ProtobufEncoder::new(&registry, "proto", proto, "P").auto_register(true);
    encoder.prepare().unwrap();
    let row = ProtobufPayment { account: "a".into(), at: 5, cents: -5, fee: None };
    encoder.encode(&row, &mut same).unwrap();
    let record = tidegate::durable::journal::JournaledRecord { payload: Some(same), ..Default::default() };
    let decoded = kafka::protobuf::<ProtobufPayment>().framed().decode(&Message::of_record("t", 0, &record));
    assert_eq!(decoded, Ok(Some(row)));
}
