//! `tidegate produce`: writes transactions to a topic, from a file or made up.
//!
//! Invariants: messages have their account as key, so that an account's transactions stay in order; a message is
//! counted when the brokers have acknowledged it; a row that is no transaction is left out, told, and makes the exit
//! code 1.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use clap::Args;

use super::progress::{Length, Progress};
use super::stop::Stop;
use super::{Property, note, pairs, say};
use crate::error::{Error, Result};
use crate::sink::kafka::Publisher;
use crate::source::generator::{Generator, Transaction};

/// How many bad rows are told one by one.
const TOLD: u64 = 10;

/// How much event time made-up transactions cover at most, in seconds, where the clock does not give it.
const COVERED: u64 = 3600;

const EXAMPLES: &str = "Examples:
  tidegate produce --brokers localhost:9092 --generate 1000000
  tidegate produce --brokers localhost:9092 --generate 60000 --rate 1000 --accounts 500
  tidegate produce --brokers localhost:9092 --topic transaction --csv payments.csv
  tidegate produce --brokers kafka:9093 --kafka-config security.protocol=ssl \\
      --ndjson payments.ndjson

A transaction has the fields id, account, merchant, amount_cents, currency, at_ms, in
CSV (with a header) and JSON alike. Messages are JSON, with the account as key.";

/// Writes transactions to a Kafka topic.
#[derive(Clone, Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct ProduceArgs {
    /// Where the brokers are
    #[arg(long, value_name = "HOST:PORT[,…]")]
    pub brokers: String,

    /// The topic; it is created if it is missing
    #[arg(long, default_value = "transaction")]
    pub topic: String,

    /// What is written.
    #[command(flatten)]
    pub input: Input,

    /// Seed of the made-up transactions: equal seeds give equal ones
    #[arg(long, value_name = "S", default_value_t = 1, conflicts_with_all = ["csv", "ndjson"])]
    pub seed: u64,

    /// At most so many messages a second, evenly; made-up event times then follow the clock
    #[arg(long, value_name = "R", value_parser = rate)]
    pub rate: Option<f64>,

    /// How many accounts there are among made-up transactions
    #[arg(long, value_name = "A", default_value_t = 10_000, conflicts_with_all = ["csv", "ndjson"])]
    pub accounts: u64,

    /// The first made-up transaction's id
    #[arg(long, value_name = "I", default_value_t = 0, conflicts_with_all = ["csv", "ndjson"])]
    pub first_id: u64,

    /// Event time at which made-up transactions begin, in milliseconds since 1970 [default: now]
    #[arg(long, value_name = "MS", allow_negative_numbers = true, conflicts_with_all = ["csv", "ndjson"])]
    pub start_ms: Option<i64>,

    /// Partitions of the topic, if it has to be created
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub partitions: u32,

    /// A property of the Kafka client (TLS, SASL, …); can be given several times
    #[arg(long, value_name = "KEY=VALUE")]
    pub kafka_config: Vec<Property>,
}

/// Where the transactions come from: one of these.
#[derive(Clone, Debug, Args)]
#[group(required = true, multiple = false)]
pub struct Input {
    /// A CSV file with a header; columns that a transaction does not have are ignored
    #[arg(long, value_name = "FILE")]
    pub csv: Option<PathBuf>,

    /// A file with one JSON object a line
    #[arg(long, value_name = "FILE")]
    pub ndjson: Option<PathBuf>,

    /// So many made-up transactions
    #[arg(long, value_name = "N")]
    pub generate: Option<u64>,
}

fn rate(text: &str) -> std::result::Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if rate.is_finite() && rate > 0.0 => Ok(rate),
        _ => Err(String::from("it has to be a number of messages a second, greater than 0")),
    }
}

/// Runs the command; answers its exit code.
///
/// # Errors
/// When the input cannot be read, the topic cannot be reached, or a message is not delivered.
pub fn produce(args: &ProduceArgs) -> Result<u8> {
    let stop = Stop::listen()?;
    let mut rows = Rows::open(args)?;
    let beginning = stop.begin();
    let mut publisher = Publisher::open(&args.brokers, &args.topic, pairs(&args.kafka_config), Some(args.partitions))?;
    drop(beginning);
    if let (partitions, true) = publisher.partitions() {
        note(format_args!("created the topic {} with {partitions} partitions", args.topic));
    }
    let mut progress = Progress::start(&rows.length);
    let begun = Instant::now();
    let (mut message, mut sent, mut bad) = (Vec::with_capacity(256), 0_u64, 0_u64);
    while stop.asked().is_none() {
        if let Some(rate) = args.rate
            && !await_turn(begun + Duration::from_secs_f64(sent as f64 / rate), &mut publisher, &stop)?
        {
            break;
        }
        let transaction = match rows.next()? {
            None => break,
            Some(Ok(transaction)) => transaction,
            Some(Err(reason)) => {
                bad += 1;
                if bad <= TOLD {
                    progress.line(&format!("{reason}; left out"));
                }
                continue;
            }
        };
        message.clear();
        serde_json::to_writer(&mut message, &transaction)
            .map_err(|error| Error::new("cannot write a transaction as JSON").because(error))?;
        publisher.send(Some(transaction.account.as_bytes()), &message, None)?;
        sent += 1;
        progress.one(|| rows.position(sent));
        if sent.is_multiple_of(64) {
            publisher.serve()?;
        }
    }
    publisher.settle()?;
    progress.finish();
    let delivered = publisher.delivered();
    let each = (delivered as f64 / begun.elapsed().as_secs_f64().max(0.001)) as u64;
    say(format_args!("{delivered} messages to topic {}, {each}/s", args.topic));
    if bad > 0 {
        note(format_args!("{bad} rows are no transactions and were left out"));
    }
    Ok(stop.asked().unwrap_or(u8::from(bad > 0)))
}

/// Waits until a message is due; answers `false` if it was asked to stop meanwhile.
fn await_turn(due: Instant, publisher: &mut Publisher, stop: &Stop) -> Result<bool> {
    loop {
        let left = due.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(true);
        }
        publisher.serve()?;
        if stop.asked().is_some() {
            return Ok(false);
        }
        std::thread::sleep(left.min(Duration::from_millis(10)));
    }
}

/// A transaction, or why a row is none and where it is.
type Row = std::result::Result<Transaction, String>;

/// The transactions to be written.
struct Rows {
    length: Length,
    from: Supply,
}

enum Supply {
    Generator { generator: Generator, next: u64, count: u64, by_clock: bool },
    Csv { path: PathBuf, reader: Box<csv::Reader<File>>, header: csv::ByteRecord, record: csv::ByteRecord },
    Ndjson { path: PathBuf, reader: BufReader<File>, line: Vec<u8>, number: u64, position: u64 },
}

impl Rows {
    fn open(args: &ProduceArgs) -> Result<Self> {
        match (&args.input.csv, &args.input.ndjson, args.input.generate) {
            (Some(path), _, _) => Rows::csv(path),
            (_, Some(path), _) => {
                let (file, length) = open_file(path)?;
                let (path, reader) = (path.clone(), BufReader::with_capacity(1 << 18, file));
                let from = Supply::Ndjson { path, reader, line: Vec::new(), number: 0, position: 0 };
                Ok(Rows { length: Length::Bytes(length), from })
            }
            (_, _, count) => {
                let count = count.unwrap_or(0);
                let per_second = args.rate.map_or(count.div_ceil(COVERED).max(1000), |rate| rate.ceil() as u64);
                let generator = Generator::new(args.seed).accounts(args.accounts).first_id(args.first_id);
                let generator = generator.start_ms(args.start_ms.unwrap_or_else(now_ms)).per_second(per_second);
                let by_clock = args.rate.is_some() && args.start_ms.is_none();
                let from = Supply::Generator { generator, next: 0, count, by_clock };
                Ok(Rows { length: Length::Messages(count), from })
            }
        }
    }

    fn csv(path: &Path) -> Result<Self> {
        let (file, length) = open_file(path)?;
        let mut reader = csv::ReaderBuilder::new().buffer_capacity(1 << 18).from_reader(file);
        let header = reader.byte_headers().map_err(|error| unreadable(path, error))?.clone();
        let missing: Vec<&str> =
            FIELDS.into_iter().filter(|field| !header.iter().any(|name| name == field.as_bytes())).collect();
        if !missing.is_empty() {
            let error = Error::new("the file has not the columns of a transaction").at(path.display());
            let error = error.because(format!("its header lacks {}", missing.join(", ")));
            return Err(error.help(format!("the first line has to name {}", FIELDS.join(","))));
        }
        let (path, reader, record) = (path.to_owned(), Box::new(reader), csv::ByteRecord::new());
        Ok(Rows { length: Length::Bytes(length), from: Supply::Csv { path, reader, header, record } })
    }

    fn next(&mut self) -> Result<Option<Row>> {
        match &mut self.from {
            Supply::Generator { generator, next, count, by_clock } => {
                if *next == *count {
                    return Ok(None);
                }
                let index = *next;
                *next += 1;
                let made = if *by_clock { generator.at_time(index, now_ms()) } else { generator.at(index) };
                Ok(Some(Ok(made)))
            }
            Supply::Csv { path, reader, header, record } => {
                let line = reader.position().line();
                match reader.read_byte_record(record) {
                    Ok(false) => Ok(None),
                    Ok(true) => {
                        let line = record.position().map_or(line, csv::Position::line);
                        let row = record.deserialize(Some(header));
                        Ok(Some(row.map_err(|error| {
                            format!("{}, line {line}: {}", path.display(), csv_reason(&error, header))
                        })))
                    }
                    Err(error) if error.is_io_error() => Err(unreadable(path, error)),
                    Err(error) => {
                        let line = error.position().map_or(line, csv::Position::line);
                        Ok(Some(Err(format!("{}, line {line}: {}", path.display(), csv_reason(&error, header)))))
                    }
                }
            }
            Supply::Ndjson { path, reader, line, number, position } => loop {
                line.clear();
                let read = reader.read_until(b'\n', line).map_err(|error| unreadable(path, error))?;
                if read == 0 {
                    return Ok(None);
                }
                (*number, *position) = (*number + 1, *position + read as u64);
                if !line.trim_ascii().is_empty() {
                    let row = serde_json::from_slice(line);
                    return Ok(Some(row.map_err(|error| format!("{}, line {number}: {error}", path.display()))));
                }
            },
        }
    }

    /// How far it is, in what its length is measured in.
    fn position(&self, sent: u64) -> u64 {
        match &self.from {
            Supply::Generator { .. } => sent,
            Supply::Csv { reader, .. } => reader.position().byte(),
            Supply::Ndjson { position, .. } => *position,
        }
    }
}

/// The fields of a transaction, in order.
pub(super) const FIELDS: [&str; 6] = ["id", "account", "merchant", "amount_cents", "currency", "at_ms"];

fn csv_reason(error: &csv::Error, header: &csv::ByteRecord) -> String {
    match error.kind() {
        csv::ErrorKind::Deserialize { err, .. } => {
            let column = err.field().and_then(|field| header.get(field as usize));
            let column = column.map(|name| format!("column {}: ", String::from_utf8_lossy(name))).unwrap_or_default();
            format!("{column}{}", err.kind())
        }
        csv::ErrorKind::UnequalLengths { expected_len, len, .. } => {
            format!("it has {len} fields, the header {expected_len}")
        }
        _ => error.to_string(),
    }
}

fn open_file(path: &Path) -> Result<(File, u64)> {
    let file = File::open(path).and_then(|file| Ok((file.metadata()?.len(), file)));
    let (length, file) = file.map_err(|error| unreadable(path, error))?;
    Ok((file, length))
}

fn unreadable(path: &Path, error: impl std::fmt::Display) -> Error {
    Error::new("cannot read the input").at(path.display()).because(error)
}

fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64)
}
