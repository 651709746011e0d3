//! Data of the benchmarks: seeded records, files of transactions, and a topic of them.

use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tidegate::Transaction;
use tidegate::kafka::AvroSchema;
use tidegate::sink::kafka::Publisher;

use crate::protobuf;

/// Maximum disorder within a partition, in milliseconds; no record is late.
pub(crate) const DISORDER: i64 = 2_000;
/// Length of a window, in milliseconds.
pub(crate) const WINDOW: i64 = 10_000;

/// A record: account, event time, amount.
pub(crate) type Small = (u32, i64, i64);

/// A stream of pseudo-random numbers (xorshift64).
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Random(88_172_645_463_325_252 + seed * 7_919)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// Returns a random account: some are much busier than others.
    fn account(&mut self, accounts: u64) -> u64 {
        let number = self.next();
        let skewed = (number % 1000) as f64 / 1000.0;
        ((skewed.powi(3) * accounts as f64) as u64 + (number >> 40) % (accounts / 1000).max(1)).min(accounts - 1)
    }
}

/// Generates the share of one of `partitions` partitions of `records` records: a hundred thousand of them per second of
/// event time.
pub(crate) fn small(partition: usize, partitions: usize, records: u64, accounts: u64) -> Vec<Small> {
    let mut random = Random::new(partition as u64);
    (0..records / partitions as u64)
        .map(|index| {
            let account = random.account(accounts);
            let at = (index * partitions as u64 / 100) as i64 + DISORDER - (random.next() % DISORDER as u64) as i64;
            (account as u32, at, (random.next() % 20_000) as i64 - 2_000)
        })
        .collect()
}

/// Generates transactions, a hundred thousand of them per second of event time.
pub(crate) fn transactions(records: u64, accounts: u64) -> impl Iterator<Item = Transaction> {
    let mut random = Random::new(11);
    (0..records).map(move |id| {
        let account = random.account(accounts);
        let at = (id / 100) as i64 + DISORDER - (random.next() % DISORDER as u64) as i64;
        Transaction {
            id,
            account: format!("a{account:05}").into(),
            merchant: format!("m{:02}", random.next() % 100).into(),
            amount_cents: (random.next() % 20_000) as i64 - 2_000,
            currency: "EUR".into(),
            at_ms: 1_767_323_040_000 + at,
        }
    })
}

/// Returns the path of the file of transactions with this extension.
pub(crate) fn file(dir: &Path, ending: &str) -> PathBuf {
    dir.join(format!("transactions.{ending}"))
}

/// Writes the files of transactions.
pub(crate) fn write_files(dir: &Path, records: u64, accounts: u64) -> Result<(), String> {
    let write = || -> std::io::Result<()> {
        let mut csv = BufWriter::new(std::fs::File::create(file(dir, "csv"))?);
        let mut ndjson = BufWriter::new(std::fs::File::create(file(dir, "ndjson"))?);
        writeln!(csv, "id,account,merchant,amount_cents,currency,at_ms")?;
        for t in transactions(records, accounts) {
            writeln!(csv, "{},{},{},{},{},{}", t.id, t.account, t.merchant, t.amount_cents, t.currency, t.at_ms)?;
            serde_json::to_writer(&mut ndjson, &t)?;
            ndjson.write_all(b"\n")?;
        }
        csv.flush()?;
        ndjson.flush()
    };
    write().map_err(|why| format!("cannot write transactions into {}: {why}", dir.display()))
}

/// Number of partitions of a topic.
pub(crate) const TOPIC_PARTITIONS: u32 = 4;

/// Number of records of a topic that is read before a measurement.
pub(crate) const WARM_UP: u64 = 50_000;

/// Format of a topic's messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// A JSON object.
    Json,
    /// An Avro datum of [`AVRO_SCHEMA`], without a frame.
    Avro,
    /// A message of Protocol Buffers, without a frame.
    Protobuf,
}

/// Schema of Avro messages. The `apache-avro` crate wants the name of the type that it decodes to.
pub(crate) const AVRO_SCHEMA: &str = r#"{"type": "record", "name": "AvroTransaction", "fields": [
    {"name": "id", "type": "long"}, {"name": "account", "type": "string"}, {"name": "merchant", "type": "string"},
    {"name": "amount_cents", "type": "long"}, {"name": "currency", "type": "string"}, {"name": "at_ms", "type": "long"}
]}"#;

/// A transaction as an Avro datum. Its number is signed, as Avro's integers are: the `apache-avro` crate decodes a `long`
/// to no `u64`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct AvroTransaction {
    pub(crate) id: i64,
    pub(crate) account: String,
    pub(crate) merchant: String,
    pub(crate) amount_cents: i64,
    pub(crate) currency: String,
    pub(crate) at_ms: i64,
}

impl Format {
    /// Returns the name of the topic.
    pub(crate) fn topic(self) -> &'static str {
        match self {
            Format::Json => "transaction",
            Format::Avro => "transaction-avro",
            Format::Protobuf => "transaction-protobuf",
        }
    }

    /// Returns the name of the topic that is read before a measurement.
    pub(crate) fn warm_up_topic(self) -> String {
        format!("{}-warm-up", self.topic())
    }

    fn encode(self, transaction: Transaction, schema: &AvroSchema, out: &mut Vec<u8>) -> Result<(), String> {
        match self {
            Format::Json => serde_json::to_writer(out, &transaction).map_err(|why| why.to_string()),
            Format::Avro => schema.encode(&transaction, out),
            Format::Protobuf => protobuf::encode(transaction, out),
        }
    }
}

/// Fills the topics of a format.
pub(crate) fn fill_topics(brokers: &str, format: Format, records: u64, accounts: u64) -> Result<(), String> {
    let fill = |topic: &str, records| -> tidegate::Result<()> {
        let (mut publisher, schema) =
            (Publisher::open(brokers, topic, [], Some(TOPIC_PARTITIONS))?, AvroSchema::parse(AVRO_SCHEMA)?);
        let mut message = Vec::new();
        for transaction in transactions(records, accounts) {
            let key = transaction.account.clone();
            message.clear();
            let encoded = format.encode(transaction, &schema, &mut message);
            encoded.map_err(|why| tidegate::Error::new("cannot write a transaction").because(why))?;
            publisher.send(Some(key.as_bytes()), &message, None)?;
        }
        publisher.flush()
    };
    fill(&format.warm_up_topic(), WARM_UP.min(records)).map_err(|error| error.to_string())?;
    fill(format.topic(), records).map_err(|error| error.to_string())
}
