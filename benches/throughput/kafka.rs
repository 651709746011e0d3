//! Programs that read a topic: Tidegate's, and consumers written by hand. The broker is another process, whose time is not
//! measured. Each program reads a short topic before the measurement begins.

use std::fs::File;
use std::io::BufWriter;
use std::path::Path;
use std::time::Duration;

use ::csv as csv_crate;
use clap::Parser;
use kit::{RowChecksum, RunFigures, SharedCheck, timed};
use rdkafka::Message;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use serde::de::DeserializeOwned;
use tidegate::cli::consume::ConsumeArgs;
use tidegate::durable::journal::JournaledRecord;
use tidegate::kafka::{AvroSchema, Decode};
use tidegate::{Record, Transaction, kafka};

use crate::data::{AVRO_SCHEMA, AvroTransaction, Format, TOPIC_PARTITIONS};
use crate::programs::{RunParameters, job, totals};
use crate::protobuf;

/// Longest wait for a message.
const PATIENCE: Duration = Duration::from_secs(10);

/// Number of messages that the copying loop writes before it flushes the file and commits the offsets.
const COPIED_AT_ONCE: u64 = 10_000;

/// A parser of values to amounts.
type ParseAmount<'a> = dyn Fn(&[u8]) -> Result<i64, String> + 'a;

/// Decoder of Avro in a consumer written by hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AvroParser {
    /// The `apache-avro` crate.
    Usual,
    /// Tidegate's decoder.
    Own,
}

/// Returns the checksum of a record that is read and dropped.
fn check_of(amount: i64) -> RowChecksum {
    RowChecksum { rows: 0, records: 1, hash: amount as u64 }
}

/// Measures reading the topic of a format, after reading its short topic.
fn read_twice(
    setting: &RunParameters,
    format: Format,
    read: impl Fn(&RunParameters, &str) -> Result<RowChecksum, String>,
) -> Result<RunFigures, String> {
    let few = RunParameters { records: setting.records.min(crate::data::WARM_UP), ..setting.clone() };
    read(&few, &format.warm_up_topic())?;
    timed(|| read(setting, format.topic()))
}

/// Opens a consumer of all partitions of a topic.
fn consumer(brokers: &str, topic: &str) -> Result<BaseConsumer, String> {
    let mut config = rdkafka::ClientConfig::new();
    config.set("bootstrap.servers", brokers).set("group.id", "throughput-by-hand");
    config.set("isolation.level", "read_committed").set("fetch.queue.backoff.ms", "2");
    config.set("enable.auto.commit", "false");
    let consumer: BaseConsumer = config.create().map_err(|why| why.to_string())?;
    let mut partitions = rdkafka::TopicPartitionList::new();
    for partition in 0..TOPIC_PARTITIONS {
        let start = rdkafka::Offset::Beginning;
        partitions.add_partition_offset(topic, partition as i32, start).map_err(|why| why.to_string())?;
    }
    consumer.assign(&partitions).map_err(|why| why.to_string())?;
    Ok(consumer)
}

/// Polls a topic's messages, parses them and drops them.
fn discard(
    setting: &RunParameters,
    topic: &str,
    parse: impl Fn(&[u8]) -> Result<i64, String>,
) -> Result<RowChecksum, String> {
    let (consumer, mut check) = (consumer(&setting.brokers, topic)?, RowChecksum::default());
    while check.records < setting.records {
        let Some(message) = consumer.poll(PATIENCE) else {
            return Err(format!("only {} of {} messages came", check.records, setting.records));
        };
        let message = message.map_err(|why| why.to_string())?;
        check.add(check_of(parse(message.payload().unwrap_or_default())?));
    }
    Ok(check)
}

/// A consumer of the `rdkafka` crate that polls, parses with the usual crate of a format, and drops.
pub(crate) fn by_hand(setting: &RunParameters, format: Format, parser: AvroParser) -> Result<RunFigures, String> {
    let read = |parse: &ParseAmount<'_>| read_twice(setting, format, |setting, topic| discard(setting, topic, parse));
    match (format, parser) {
        (Format::Json, _) => read(&|value| amount(serde_json::from_slice(value))),
        (Format::Protobuf, _) => read(&protobuf::parse_amount),
        (Format::Avro, AvroParser::Usual) => apache_avro(&read),
        (Format::Avro, AvroParser::Own) => {
            let decoder = kafka::avro_schema(schema()?);
            let record = std::cell::RefCell::new(JournaledRecord::default());
            read(&|value| {
                // A message from elsewhere owns its value: one copy more than a source makes.
                let mut record = record.borrow_mut();
                let payload = record.payload.get_or_insert_default();
                payload.clear();
                payload.extend_from_slice(value);
                let decoded: Option<AvroTransaction> = decoder
                    .decode(&kafka::Message::of_record("transaction", 0, &record))
                    .map_err(|why| why.to_string())?;
                Ok(std::hint::black_box(decoded).map_or(0, |transaction| transaction.amount_cents))
            })
        }
    }
}

fn amount(parsed: serde_json::Result<Transaction>) -> Result<i64, String> {
    parsed.map(|transaction| std::hint::black_box(transaction).amount_cents).map_err(|why| why.to_string())
}

/// Reads Avro with the apache-avro crate: straight to the type, by the writer's schema.
#[cfg(feature = "apache-avro")]
fn apache_avro(read: &dyn Fn(&ParseAmount<'_>) -> Result<RunFigures, String>) -> Result<RunFigures, String> {
    use ::apache_avro::Schema;
    use ::apache_avro::reader::datum::GenericDatumReader;
    let schema = Schema::parse_str(AVRO_SCHEMA).map_err(|why| why.to_string())?;
    let reader = GenericDatumReader::builder(&schema).build().map_err(|why| why.to_string())?;
    read(&|mut value| {
        let transaction: AvroTransaction = reader.read_deser(&mut value).map_err(|why| why.to_string())?;
        Ok(std::hint::black_box(transaction).amount_cents)
    })
}

#[cfg(not(feature = "apache-avro"))]
fn apache_avro(_read: &dyn Fn(&ParseAmount<'_>) -> Result<RunFigures, String>) -> Result<RunFigures, String> {
    Err(String::from("built without the feature apache-avro"))
}

fn schema() -> Result<AvroSchema, String> {
    AvroSchema::parse(AVRO_SCHEMA).map_err(|error| error.to_string())
}

/// Tidegate reading a topic and dropping the records.
pub(crate) fn drop_tidegate(setting: &RunParameters, format: Format) -> Result<RunFigures, String> {
    read_twice(setting, format, |setting, topic| match format {
        Format::Json => {
            let source = kafka::Source::json(&setting.brokers, topic);
            drop_records(setting, source.event_time(|t: &Transaction| t.at_ms), |t| t.amount_cents)
        }
        Format::Avro => {
            let source = kafka::Source::new(&setting.brokers, topic, kafka::avro_schema(schema()?));
            drop_records(setting, source.event_time(|t: &AvroTransaction| t.at_ms), |t| t.amount_cents)
        }
        Format::Protobuf => protobuf::drop_tidegate(setting, topic),
    })
}

/// Runs a job that reads a topic and drops the records.
pub(crate) fn drop_records<T: Record + DeserializeOwned>(
    setting: &RunParameters,
    source: kafka::Source<T>,
    amount: fn(&T) -> i64,
) -> Result<RowChecksum, String> {
    let shared = SharedCheck::default();
    let checks = shared.clone();
    let run = job(setting).run(move |flow| {
        let checks = checks.clone();
        flow.read("transactions", &source).inspect(move |record| checks.add(check_of(amount(record))));
    });
    run.map_err(|error| error.to_string())?;
    Ok(shared.get())
}

/// Tidegate's windowed totals of a topic of JSON.
pub(crate) fn totals_tidegate(setting: &RunParameters) -> Result<RunFigures, String> {
    totals(setting, kafka::Source::json(&setting.brokers, Format::Json.topic()).event_time(|t: &Transaction| t.at_ms))
}

/// The loop that copies a topic to a CSV file: a consumer, a file that is flushed, and offsets that are committed.
pub(crate) fn copy_by_hand(setting: &RunParameters) -> Result<RunFigures, String> {
    let path = setting.dir.join("by_hand.csv");
    let figures = read_twice(setting, Format::Json, |setting, topic| copy_messages(setting, topic, &path))?;
    Ok(RunFigures { check: check_of_copy(&path)?, ..figures })
}

fn copy_messages(setting: &RunParameters, topic: &str, path: &Path) -> Result<RowChecksum, String> {
    let (consumer, mut check) = (consumer(&setting.brokers, topic)?, RowChecksum::default());
    let said = |why: &dyn std::fmt::Display| format!("cannot write {}: {why}", path.display());
    let file = File::create(path).map_err(|why| said(&why))?;
    let (mut rows, mut next) = (csv_crate::Writer::from_writer(BufWriter::new(file)), [0; TOPIC_PARTITIONS as usize]);
    while check.records < setting.records {
        let Some(message) = consumer.poll(PATIENCE) else {
            return Err(format!("only {} of {} messages came", check.records, setting.records));
        };
        let message = message.map_err(|why| why.to_string())?;
        let transaction: Transaction =
            serde_json::from_slice(message.payload().unwrap_or_default()).map_err(|why| why.to_string())?;
        rows.serialize(&transaction).map_err(|why| said(&why))?;
        check.records += 1;
        next[message.partition() as usize] = message.offset() + 1;
        if check.records % COPIED_AT_ONCE == 0 || check.records == setting.records {
            rows.flush().map_err(|why| said(&why))?;
            commit(&consumer, topic, &next).map_err(|why| why.to_string())?;
        }
    }
    Ok(check)
}

fn commit(consumer: &BaseConsumer, topic: &str, next: &[i64]) -> rdkafka::error::KafkaResult<()> {
    let mut offsets = rdkafka::TopicPartitionList::new();
    for (partition, next) in next.iter().enumerate() {
        offsets.add_partition_offset(topic, partition as i32, rdkafka::Offset::Offset(*next))?;
    }
    consumer.commit(&offsets, CommitMode::Async)
}

/// Tidegate's `consume`, with a state or without.
pub(crate) fn copy_tidegate(setting: &RunParameters, has_state: bool) -> Result<RunFigures, String> {
    let dir = setting.dir.join("copy");
    let (path, state) = (dir.join("tidegate.csv"), dir.join("state"));
    let figures = read_twice(setting, Format::Json, |setting, topic| {
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).map_err(|why| format!("cannot make {}: {why}", dir.display()))?;
        let mut line = vec![String::from("consume"), String::from("--until-end"), format!("--topic={topic}")];
        line.extend([format!("--brokers={}", setting.brokers), format!("--out={}", path.display())]);
        line.extend([format!("--workers={}", setting.workers), String::from("--progress=off")]);
        line.extend(has_state.then(|| format!("--state={}", state.display())));
        let args = CopyCommand::try_parse_from(line).map_err(|why| why.to_string())?.args;
        tidegate::cli::consume::consume(&args).map_err(|error| error.to_string())?;
        Ok(RowChecksum::default())
    })?;
    Ok(RunFigures { check: check_of_copy(&path)?, ..figures })
}

/// The command line of `tidegate consume`.
#[derive(Debug, Parser)]
struct CopyCommand {
    #[command(flatten)]
    args: ConsumeArgs,
}

/// Returns the checksum of a copy: of its lines, whatever their order.
fn check_of_copy(path: &Path) -> Result<RowChecksum, String> {
    let text = std::fs::read_to_string(path).map_err(|why| format!("cannot read {}: {why}", path.display()))?;
    let mut check = RowChecksum::default();
    for line in text.lines().skip(1) {
        let hash = line.bytes().fold(7, |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
        check.add(RowChecksum { rows: 0, records: 1, hash });
    }
    Ok(check)
}
