//! `tidegate produce`: writes transactions to a topic, from a file or generated, or the bytes of a file as they are.
//!
//! Invariants: a message's key is its account by default, so that an account's transactions stay in order; a message is
//! counted when the brokers have acknowledged it; a row that is no transaction is left out and reported, and makes the
//! exit code 1.

use std::borrow::Cow;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use clap::{Args, ValueEnum};

use super::progress::{CommandProgress, ProgressTotal};
use super::stop::StopSignal;
use super::{DelimiterArgs, KafkaConfigArgs, MessageFormat, RegistryArgs, note, print_line};
use crate::error::{Error, ErrorKind, Result, shortened};
use crate::sink::kafka::{Encode, MessageHeader, Publisher};
use crate::source::csv::Csv;
use crate::source::file::format::RecordFormat;
use crate::source::file::record_reader::RecordReader;
use crate::source::generator::{Generator, Transaction};
use crate::source::ndjson::Ndjson;

/// Maximum number of bad rows that are reported individually.
const MAX_REPORTED: u64 = 10;

/// Maximum span of event time of generated transactions, in seconds, without `--rate`.
const MAX_EVENT_TIME_SPAN_S: u64 = 3600;

/// Longest wait of the client library for a batch to fill, in milliseconds, while messages are sent as fast as they can
/// be, and with `--rate`. Waiting costs no throughput, as only some messages of a partition are in flight at a time; but
/// with messages that have waited longer than this, and can still not be sent, the library takes a whole processor.
const LINGER_MS: &str = "25";
const LINGER_MS_AT_RATE: &str = "5";

/// Number of messages that may be in flight at any rate.
const MIN_IN_FLIGHT: usize = 64;

const EXAMPLES: &str = "Examples:
  tidegate produce --brokers localhost:9092 --generate 1000000
  tidegate produce --brokers localhost:9092 --generate 60000 --rate 1000 --accounts 500
  tidegate produce --brokers localhost:9092 --topic transaction --csv payments.csv
  tidegate produce --brokers localhost:9092 --generate 1000 --format avro \\
      --registry http://localhost:8081 --header origin=test
  tidegate produce --brokers localhost:9092 --csv payments.csv --format protobuf \\
      --descriptor acme.desc --message acme.Payment
  tidegate produce --brokers kafka:9093 --kafka-config security.protocol=ssl \\
      --ndjson payments.ndjson
  tidegate produce --brokers localhost:9092 --topic orders --format raw --lines orders.txt

A transaction has the fields id, account, merchant, amount_cents, currency, at_ms, in
CSV (with a header) and JSON alike. Messages are JSON, with the account as key,
unless --format and --key say otherwise. Messages of --lines and --whole have no key.
--format protobuf needs a program with the cargo feature protobuf.";

/// Writes transactions to a Kafka topic.
#[derive(Clone, Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct ProduceArgs {
    /// Kafka brokers to write to
    #[arg(long, value_name = "HOST:PORT[,…]")]
    pub brokers: String,

    /// Topic to write; it is created if it is missing
    #[arg(long, default_value = "transaction")]
    pub topic: String,

    /// The input.
    #[command(flatten)]
    pub input: InputArgs,

    /// Flags of the characters between the fields of CSV.
    #[command(flatten)]
    pub delimiters: DelimiterArgs,

    /// Seed of generated transactions: equal seeds give equal ones
    #[arg(long, value_name = "S", default_value_t = 1, conflicts_with_all = ["csv", "ndjson", "lines", "whole"])]
    pub seed: u64,

    /// Maximum number of messages per second, evenly spaced; generated event times then follow the clock. Slower
    /// brokers slow it down: at most the messages of one second are in flight
    #[arg(long, value_name = "R", value_parser = rate)]
    pub rate: Option<f64>,

    /// Number of accounts of generated transactions
    #[arg(long, value_name = "A", default_value_t = 10_000, conflicts_with_all = ["csv", "ndjson", "lines", "whole"])]
    pub accounts: u64,

    /// Id of the first generated transaction
    #[arg(long, value_name = "I", default_value_t = 0, conflicts_with_all = ["csv", "ndjson", "lines", "whole"])]
    pub first_id: u64,

    /// Event time of the first generated transaction, in milliseconds since 1970 [default: now]
    #[arg(long, value_name = "MS", allow_negative_numbers = true, conflicts_with_all = ["csv", "ndjson", "lines", "whole"])]
    pub start_ms: Option<i64>,

    /// Number of partitions of the topic, if it has to be created
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub partitions: u32,

    /// Format of the messages; the schema of Avro is registered under TOPIC-value
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t = MessageFormat::Json)]
    pub format: MessageFormat,

    /// Flags of the schema registry.
    #[command(flatten)]
    pub registry: RegistryArgs,

    /// Key of the messages
    #[arg(long, value_enum, value_name = "FIELD", default_value_t = KeyField::Account)]
    pub key: KeyField,

    /// Header of each message; can be given several times
    #[arg(long, value_name = "NAME=VALUE", value_parser = header)]
    pub header: Vec<(String, String)>,

    /// Flags of the Kafka client.
    #[command(flatten)]
    pub kafka: KafkaConfigArgs,
}

/// The input of `tidegate produce`: exactly one of these flags.
#[derive(Clone, Debug, Args)]
#[group(required = true, multiple = false)]
pub struct InputArgs {
    /// CSV file with a header; columns that a transaction does not have are ignored
    #[arg(long, value_name = "FILE")]
    pub csv: Option<PathBuf>,

    /// File with one JSON object a line
    #[arg(long, value_name = "FILE")]
    pub ndjson: Option<PathBuf>,

    /// Number of transactions to generate
    #[arg(long, value_name = "N")]
    pub generate: Option<u64>,

    /// File whose lines are messages, with their bytes as they are, but for the line feed: with --format raw
    #[arg(long, value_name = "FILE")]
    pub lines: Option<PathBuf>,

    /// File that is one message, with its bytes as they are: with --format raw
    #[arg(long, value_name = "FILE")]
    pub whole: Option<PathBuf>,
}

/// The field of a transaction that is the key of its message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum KeyField {
    /// The account, whose transactions stay in order.
    Account,
    /// The id of the transaction.
    Id,
    /// The merchant.
    Merchant,
    /// No key.
    None,
}

impl KeyField {
    /// Returns the key of a transaction's message.
    fn of(self, transaction: &Transaction) -> Option<Cow<'_, [u8]>> {
        match self {
            KeyField::Account => Some(Cow::Borrowed(transaction.account.as_bytes())),
            KeyField::Merchant => Some(Cow::Borrowed(transaction.merchant.as_bytes())),
            KeyField::Id => Some(Cow::Owned(transaction.id.to_string().into_bytes())),
            KeyField::None => None,
        }
    }
}

fn header(text: &str) -> std::result::Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err(String::from("it has to be NAME=VALUE")),
    }
}

fn rate(text: &str) -> std::result::Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if rate.is_finite() && rate > 0.0 => Ok(rate),
        _ => Err(String::from("it has to be a number of messages a second, greater than 0")),
    }
}

/// Runs `tidegate produce`; returns the exit code.
///
/// # Errors
/// Fails if the input cannot be read, the topic cannot be reached, or a message is not delivered.
pub fn produce(args: &ProduceArgs) -> Result<u8> {
    let stop = StopSignal::listen()?;
    let mut input = ProduceInput::open(args)?;
    let beginning = stop.begin_startup();
    let properties = args.kafka.properties()?;
    input.check()?;
    let header = |(name, value): &(String, String)| (name.clone(), Some(value.clone().into_bytes()));
    let headers: Vec<MessageHeader> = args.header.iter().map(header).collect();
    let linger = ("linger.ms", args.rate.map_or(LINGER_MS, |_| LINGER_MS_AT_RATE));
    let defaults = [linger].into_iter().filter(|_| !properties.contains("linger.ms"));
    let properties = defaults.chain(properties.iter());
    let mut publisher = Publisher::open(&args.brokers, &args.topic, properties, Some(args.partitions))?;
    drop(beginning);
    if let (partitions, true) = publisher.partitions() {
        note(format_args!("created the topic {} with {partitions} partitions", args.topic));
    }
    let mut progress = CommandProgress::start(input.length());
    let begun = Instant::now();
    let (mut message, mut sent, mut bad) = (ProducedMessage::default(), 0_u64, 0_u64);
    while stop.exit_code_if_stopped().is_none() {
        if let Some(rate) = args.rate
            && !wait_until_due(begun + Duration::from_secs_f64(sent as f64 / rate), rate, &mut publisher, &stop)?
        {
            break;
        }
        match input.next(&mut message)? {
            None => break,
            Some(Ok(())) => {}
            Some(Err(reason)) => {
                bad += 1;
                if bad <= MAX_REPORTED {
                    progress.line(&format!("{reason}; left out"));
                }
                continue;
            }
        }
        publisher.send_with(message.has_key.then_some(&*message.key), &message.value, &headers)?;
        sent += 1;
        progress.count_message(|| input.position(sent));
        if sent.is_multiple_of(64) {
            publisher.poll()?;
        }
    }
    publisher.flush()?;
    progress.finish();
    let delivered = publisher.delivered();
    let each = (delivered as f64 / begun.elapsed().as_secs_f64().max(0.001)) as u64;
    print_line(format_args!("{delivered} messages to topic {}, {each}/s", args.topic));
    if bad > 0 {
        note(format_args!("{bad} rows are no transactions and were left out"));
    }
    Ok(stop.exit_code_if_stopped().unwrap_or(u8::from(bad > 0)))
}

/// Waits until a message is due and the brokers have acknowledged all but those of the last second; returns `false` on a
/// request to stop. Brokers that are slower than the rate would otherwise get event times that are ever further behind
/// the clock, and further in one partition than in another.
fn wait_until_due(due: Instant, rate: f64, publisher: &mut Publisher, stop: &StopSignal) -> Result<bool> {
    let most = (rate as usize).max(MIN_IN_FLIGHT);
    loop {
        let mut left = due.saturating_duration_since(Instant::now());
        if publisher.in_flight() >= most {
            left = left.max(Duration::from_millis(1));
        }
        if left.is_zero() {
            return Ok(true);
        }
        publisher.poll()?;
        if stop.exit_code_if_stopped().is_some() {
            return Ok(false);
        }
        std::thread::sleep(left.min(Duration::from_millis(10)));
    }
}

/// A message to send.
#[derive(Default)]
struct ProducedMessage {
    value: Vec<u8>,
    /// The key, if it has one.
    key: Vec<u8>,
    has_key: bool,
}

/// The messages to write.
enum ProduceInput {
    Transactions(TransactionInput, Box<dyn Encode<Transaction>>, KeyField),
    Bytes(ByteInput),
}

impl ProduceInput {
    fn open(args: &ProduceArgs) -> Result<Self> {
        let input = &args.input;
        args.delimiters.check(input.csv.is_some(), args.format == MessageFormat::Csv)?;
        let (path, whole) = match (&input.lines, &input.whole, args.format) {
            (None, None, MessageFormat::Raw) => {
                let error = Error::usage("--format raw is for bytes, and the input has transactions");
                return Err(error.help("name a file by --lines or --whole"));
            }
            (None, None, _) => {
                let rows = TransactionInput::open(args)?;
                let encoder =
                    args.format.encoder::<Transaction>(&args.registry, &args.topic, true, args.delimiters.output());
                let encoder = encoder?;
                return Ok(ProduceInput::Transactions(rows, encoder, args.key));
            }
            (Some(path), ..) => (path, false),
            (_, Some(path), _) => (path, true),
        };
        if args.format != MessageFormat::Raw {
            return Err(Error::usage("--lines and --whole send bytes as they are").help("add --format raw"));
        }
        if matches!(args.key, KeyField::Id | KeyField::Merchant) {
            return Err(
                Error::usage("--key names a field, and messages of --format raw have none").help("leave it out")
            );
        }
        ByteInput::open(path, whole).map(ProduceInput::Bytes)
    }

    /// Checks that transactions can be encoded.
    fn check(&self) -> Result<()> {
        match self {
            ProduceInput::Transactions(_, encoder, _) => encoder.check(),
            ProduceInput::Bytes(_) => Ok(()),
        }
    }

    fn length(&self) -> &ProgressTotal {
        match self {
            ProduceInput::Transactions(rows, ..) => &rows.length,
            ProduceInput::Bytes(bytes) => &bytes.length,
        }
    }

    /// Makes the next message, or returns the reason why a row is none, with its place; `None` at the end.
    fn next(&mut self, message: &mut ProducedMessage) -> Result<Option<std::result::Result<(), String>>> {
        message.value.clear();
        message.key.clear();
        let (rows, encoder, key) = match self {
            ProduceInput::Bytes(bytes) => return Ok(bytes.next(&mut message.value)?.then_some(Ok(()))),
            ProduceInput::Transactions(rows, encoder, key) => (rows, encoder, key),
        };
        let transaction = match rows.next()? {
            None => return Ok(None),
            Some(Err(reason)) => return Ok(Some(Err(reason))),
            Some(Ok(transaction)) => transaction,
        };
        let encoded = encoder.encode(&transaction, &mut message.value);
        encoded.map_err(|why| Error::new("cannot write a transaction").because(why))?;
        let key = key.of(&transaction);
        message.has_key = key.is_some();
        message.key.extend_from_slice(key.as_deref().unwrap_or_default());
        Ok(Some(Ok(())))
    }

    /// Returns the position in the input, in the unit of `length`.
    fn position(&self, sent: u64) -> u64 {
        match self {
            ProduceInput::Transactions(rows, ..) => rows.position(sent),
            ProduceInput::Bytes(bytes) => bytes.position,
        }
    }
}

/// A file whose bytes are messages.
struct ByteInput {
    path: PathBuf,
    file: BufReader<File>,
    length: ProgressTotal,
    /// `true` if the file is one message.
    whole: bool,
    position: u64,
    ended: bool,
}

impl ByteInput {
    fn open(path: &Path, whole: bool) -> Result<Self> {
        let (length, file) = open_file(path)?;
        let (path, file) = (path.to_owned(), BufReader::new(file));
        Ok(ByteInput { path, file, length: ProgressTotal::Bytes(length), whole, position: 0, ended: false })
    }

    /// Appends the next message; returns `false` at the end.
    fn next(&mut self, message: &mut Vec<u8>) -> Result<bool> {
        if self.ended {
            return Ok(false);
        }
        let read = match self.whole {
            true => self.file.read_to_end(message),
            false => self.file.read_until(b'\n', message),
        };
        let read = read.map_err(|error| unreadable(&self.path, error))?;
        self.position += read as u64;
        self.ended = self.whole || read == 0;
        if !self.whole {
            message.pop_if(|last| *last == b'\n');
        }
        Ok(self.whole || read > 0)
    }
}

/// A transaction, or the reason why a row is none, with its place.
type TransactionOrReason = std::result::Result<Transaction, String>;

/// The transactions to write.
struct TransactionInput {
    length: ProgressTotal,
    from: InputKind,
}

enum InputKind {
    Generator { generator: Generator, next: u64, count: u64, by_clock: bool },
    Csv(PathBuf, Box<RecordReader<Csv, File, Transaction>>),
    Ndjson(PathBuf, Box<RecordReader<Ndjson, File, Transaction>>),
}

impl TransactionInput {
    fn open(args: &ProduceArgs) -> Result<Self> {
        match (&args.input.csv, &args.input.ndjson, args.input.generate) {
            (Some(path), _, _) => {
                let (length, pieces) = open_pieces(Csv { delimiter: args.delimiters.input() }, path)?;
                Ok(TransactionInput { length, from: InputKind::Csv(path.clone(), pieces) })
            }
            (_, Some(path), _) => {
                let (length, pieces) = open_pieces(Ndjson, path)?;
                Ok(TransactionInput { length, from: InputKind::Ndjson(path.clone(), pieces) })
            }
            (_, _, count) => {
                let count = count.unwrap_or(0);
                let per_second =
                    args.rate.map_or(count.div_ceil(MAX_EVENT_TIME_SPAN_S).max(1000), |rate| rate.ceil() as u64);
                let generator = Generator::new(args.seed).accounts(args.accounts).first_id(args.first_id);
                let generator = generator.start_ms(args.start_ms.unwrap_or_else(now_ms)).per_second(per_second);
                let by_clock = args.rate.is_some() && args.start_ms.is_none();
                let from = InputKind::Generator { generator, next: 0, count, by_clock };
                Ok(TransactionInput { length: ProgressTotal::Messages(count), from })
            }
        }
    }

    fn next(&mut self) -> Result<Option<TransactionOrReason>> {
        match &mut self.from {
            InputKind::Generator { generator, next, count, by_clock } => {
                if *next == *count {
                    return Ok(None);
                }
                let index = *next;
                *next += 1;
                let made = if *by_clock { generator.at_time(index, now_ms()) } else { generator.at(index) };
                Ok(Some(Ok(made)))
            }
            InputKind::Csv(path, pieces) => next_of(path, pieces),
            InputKind::Ndjson(path, pieces) => next_of(path, pieces),
        }
    }

    /// Returns the position in the input, in the unit of `length`.
    fn position(&self, sent: u64) -> u64 {
        match &self.from {
            InputKind::Generator { .. } => sent,
            InputKind::Csv(_, pieces) => pieces.position(),
            InputKind::Ndjson(_, pieces) => pieces.position(),
        }
    }
}

/// Parser of a file's transactions.
type FileTransactions<F> = Box<RecordReader<F, File, Transaction>>;

/// Opens a file; returns its length too.
fn open_file(path: &Path) -> Result<(u64, File)> {
    let file = File::open(path).and_then(|file| Ok((file.metadata()?.len(), file)));
    file.map_err(|error| unreadable(path, error))
}

/// Opens a file of transactions; returns its length and the parser.
fn open_pieces<F: RecordFormat>(format: F, path: &Path) -> Result<(ProgressTotal, FileTransactions<F>)> {
    let (length, file) = open_file(path)?;
    let pieces = RecordReader::new(format, file).map_err(|error| error.at(path.display()))?;
    Ok((ProgressTotal::Bytes(length), Box::new(pieces)))
}

/// Returns the next transaction of a file, or the reason why the row is none, with file and line; `None` at the end.
fn next_of<F: RecordFormat>(
    path: &Path,
    pieces: &mut RecordReader<F, File, Transaction>,
) -> Result<Option<TransactionOrReason>> {
    let next = pieces.next_record().map_err(|error| error.at(path.display()))?;
    Ok(next.map(|(line, row)| {
        row.map_err(|reason| format!("{}, line {line}: {}", path.display(), shortened(&reason, 500)))
    }))
}

fn unreadable(path: &Path, error: impl std::fmt::Display) -> Error {
    Error::of(ErrorKind::SourceUnreachable, "cannot read the input").at(path.display()).because(error)
}

fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64)
}
