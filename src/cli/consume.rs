//! `tidegate consume`: copies a topic of transactions to a file of CSV or NDJSON, or any topic's values to a file of lines,
//! in one process or in several that share the work.
//!
//! It is a job of the engine and has all of the engine's guarantees: with a state, every message is in the file exactly
//! once, whichever processes are killed and however many workers and processes it is restarted with; new partitions are
//! found and assigned. It differs from other jobs as follows:
//!
//! * A copy is never **complete**: `--until-end` stops where the topic ends at this start, and a later start reads on.
//! * The file has the messages of each partition in the partition's order, and those of one epoch by partition.
//! * No message is too early or too late for a copy: event times are ignored.
//! * `--sync` takes one message, writes and syncs it, and takes the next, which only one worker of one process can do.
//!   It is the same job with epochs of one record: with a state, the record's offset is synced (journal), then the
//!   record itself, and then the file's commit.
//!
//! Earlier versions kept a file `position` in the state directory. Such a directory is refused and left unchanged.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use compact_str::CompactString;
use serde::{Deserialize, Serialize};

use super::query::{FileFormat, check_outputs, file_sink};
use super::run::{JobFigures, JobRunner, ProgressMode, RunArgs};
use super::{DelimiterArgs, KafkaConfigArgs, MessageFormat, RegistryArgs, note, print_line};
use crate::error::{Error, Result};
use crate::job::RunReport;
use crate::metrics::Metrics;
use crate::record::Record;
use crate::sink::Sink;
use crate::sink::lines::LineSink;
use crate::source::Options;
use crate::source::generator::Transaction;
use crate::source::kafka::{self, Decode};
use crate::time::EventTime;

/// Name of the source in the job, and of the step that writes the copy.
const MESSAGES: &str = "messages";
const COPY: &str = "copy";

const EXAMPLES: &str = "Examples:
  tidegate consume --brokers localhost:9092 --out copy.csv --until-end
  tidegate consume --brokers localhost:9092 --out copy.csv --state copy-state
  tidegate consume --brokers localhost:9092 --out copy.csv --state copy-state --sync
  tidegate consume --brokers localhost:9092 --topic orders --format raw --out orders.txt
  tidegate consume --brokers localhost:9092 --out copy.csv --format protobuf \\
      --descriptor acme.desc --message acme.Payment
  tidegate up -n 3 -- tidegate consume --brokers localhost:9092 --out copy.csv \\
      --state copy-state -w 2

With --state every message is in the file exactly once, even if processes are killed and
restarted, with another number of workers or processes too. Without it an existing file is
replaced. Copies with states and files of their own each get every message.
--format protobuf needs a program with the cargo feature protobuf.";

/// Copies a Kafka topic of transactions to a file.
#[derive(Clone, Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct ConsumeArgs {
    /// Kafka brokers to read from
    #[arg(long, value_name = "HOST:PORT[,…]")]
    pub brokers: String,

    /// Topic to copy
    #[arg(long, default_value = "transaction")]
    pub topic: String,

    /// File to write: FILE.ndjson gets one JSON object a line, any other name CSV; with --format raw each value is a line,
    /// with its bytes as they are
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,

    /// Flags of the characters between the fields of CSV.
    #[command(flatten)]
    pub delimiters: DelimiterArgs,

    /// Take one message at a time: each is written and synced before the next is taken
    #[arg(long)]
    pub sync: bool,

    /// Stop at the end that the topic has at this start; a later start with the same state resumes from there
    #[arg(long)]
    pub until_end: bool,

    /// File for messages that are no transactions, or with --format raw have no value: FILE.csv gets CSV, any other name one JSON object a line; without it
    /// they are only counted
    #[arg(long, value_name = "FILE")]
    pub rejects: Option<PathBuf>,

    /// Copy a compacted topic, which is refused otherwise; its records are kept in the state's journal
    #[arg(long)]
    pub compacted: bool,

    /// Format of the messages
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t = MessageFormat::Json)]
    pub format: MessageFormat,

    /// Flags of the schema registry.
    #[command(flatten)]
    pub registry: RegistryArgs,

    /// Copy what a message has beside its value, too: the columns topic, partition, offset, timestamp_ms and key (bytes of
    /// the key that are no text as \xHH)
    #[arg(long)]
    pub metadata: bool,

    /// Flags of the Kafka client.
    #[command(flatten)]
    pub kafka: KafkaConfigArgs,

    /// Flags of running as a job.
    #[command(flatten)]
    pub run: RunArgs,
}

/// Runs `tidegate consume`; returns the exit code.
///
/// # Errors
/// Fails if the topic cannot be read, a file cannot be written, the state does not fit, or another process fails.
pub fn consume(args: &ConsumeArgs) -> Result<u8> {
    let watch = JobRunner::begin(&args.run)?;
    if args.sync && (args.run.workers, args.run.processes) != (1, 1) {
        let error = Error::usage("--sync takes one message at a time, which needs one worker in one process");
        return Err(error.help("leave -w and -n out, or --sync"));
    }
    check_delimiters(args)?;
    args.run.state.as_deref().map_or(Ok(()), check_not_old_state)?;
    if args.format == MessageFormat::Raw {
        if args.metadata {
            let error = Error::usage("--metadata adds columns, and values in the format raw have none");
            return Err(error.help("leave --metadata out, or name the format of the values"));
        }
        let lines = args.run.hooks.wrap_sink(Box::new(LineSink::new(&args.out)));
        return copy(args, watch, kafka::bytes(), lines);
    }
    let (between, out_between) = (args.delimiters.input(), args.delimiters.output());
    let out = &args.out;
    if args.metadata {
        let decoder = args.format.decoder::<Transaction>(&args.registry, between)?.with_meta(CopiedMessage::new);
        copy(args, watch, decoder, file_sink(out, FileFormat::Csv, out_between, &args.run))
    } else {
        let decoder = args.format.decoder::<Transaction>(&args.registry, between)?;
        copy(args, watch, decoder, file_sink(out, FileFormat::Csv, out_between, &args.run))
    }
}

/// Fails if a delimiter is given, and no fields of CSV are read or written that it could be between.
fn check_delimiters(args: &ConsumeArgs) -> Result<()> {
    let is_csv = |path: &Path, otherwise| FileFormat::of(path).unwrap_or(otherwise) == FileFormat::Csv;
    let copies_csv = args.format != MessageFormat::Raw && is_csv(&args.out, FileFormat::Csv);
    let rejects_csv = args.rejects.as_ref().is_some_and(|path| is_csv(path, FileFormat::Ndjson));
    args.delimiters.check(args.format == MessageFormat::Csv, copies_csv || rejects_csv)
}

/// A transaction, and what its message has beside it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
struct CopiedMessage {
    id: u64,
    account: CompactString,
    merchant: CompactString,
    amount_cents: i64,
    currency: CompactString,
    at_ms: i64,
    topic: String,
    partition: u32,
    offset: u64,
    timestamp_ms: Option<i64>,
    key: Option<String>,
}

impl CopiedMessage {
    fn new(transaction: Transaction, message: &kafka::Message<'_>) -> Self {
        let Transaction { id, account, merchant, amount_cents, currency, at_ms } = transaction;
        let key = message.key().map(|key| match str::from_utf8(key) {
            Ok(text) => text.to_owned(),
            Err(_) => key.escape_ascii().to_string(),
        });
        CopiedMessage {
            id,
            account,
            merchant,
            amount_cents,
            currency,
            at_ms,
            topic: message.topic().to_owned(),
            partition: message.partition(),
            offset: message.offset(),
            timestamp_ms: message.timestamp().map(EventTime::millis),
            key,
        }
    }
}

/// Copies the messages as this decoder reads them.
fn copy<T: Record>(
    args: &ConsumeArgs,
    watch: JobRunner<'_>,
    decoder: impl Decode<T>,
    out: Box<dyn Sink<T>>,
) -> Result<u8> {
    let topic = kafka::Source::new(&args.brokers, &*args.topic, decoder).event_time(|_: &T| 0);
    let topic = topic.configs(args.kafka.properties()?.iter()).stop_at_end(args.until_end).compacted(args.compacted);
    check_outputs(&[("--out", Some(&args.out)), ("--rejects", args.rejects.as_deref())])?;
    let rejects =
        args.rejects.as_ref().map(|path| file_sink(path, FileFormat::Ndjson, args.delimiters.output(), &args.run));
    let name = format!("consume-{}", args.topic);
    let options = Options { max_ahead: Duration::MAX, ..Options::default() };
    let job = args.run.job(&name)?.options(options).synchronous(args.sync);
    // What is replayed has to be the same bytes: lines are not replayed as columns, nor the other way round.
    let job = if args.format == MessageFormat::Raw { job.fingerprint_flag("format", "raw") } else { job };
    let job = args.delimiters.bind(job, args.format == MessageFormat::Csv);
    let metrics = job.metrics();
    let (report, code) = watch.run(job, progress, move |flow| {
        flow.read(MESSAGES, &topic).write_in_order(COPY, &out);
        if let Some(rejects) = &rejects {
            flow.rejects().write_in_order("rejects", rejects);
        }
    })?;
    print_summary(args, &report, &metrics);
    Ok(code)
}

/// Prints the number of copied messages and the rate: of all processes in the first one, and in each of several its
/// own.
fn print_summary(args: &ConsumeArgs, report: &RunReport, metrics: &Metrics) {
    let took = metrics.working_for();
    let rate = |count: u64| (count as f64 / took.as_secs_f64().max(0.001)) as u64;
    let RunArgs { process, processes, .. } = args.run;
    if processes > 1 && args.run.progress != ProgressMode::Off {
        let read = metrics.source(MESSAGES).read.get();
        note(format_args!("process {process} of {processes} has read {read} messages, {}/s", rate(read)));
    }
    if !args.run.is_first() {
        return;
    }
    // The first of several processes has the figures of all.
    let copied = report.summary.sinks.iter().filter(|sink| sink.name == COPY).map(|sink| sink.rows).sum();
    print_line(format_args!("{copied} messages to {}, {}/s", args.out.display(), rate(copied)));
    let rejected: u64 = report.summary.sources.iter().map(|source| source.rejected).sum();
    if rejected > 0 {
        let kept = args.rejects.as_ref().map_or(String::new(), |path| format!("; they are in {}", path.display()));
        let what = if args.format == MessageFormat::Raw { "have no value" } else { "are no transactions" };
        note(format_args!("{rejected} messages {what} and were left out{kept}"));
    }
}

fn progress(JobFigures { read, rate, elapsed, .. }: &JobFigures) -> String {
    format!("{} s: {read} messages, {rate:.0}/s", elapsed.as_secs())
}

/// Refuses the state directory of a copy that an earlier version has begun.
fn check_not_old_state(state: &Path) -> Result<()> {
    let position = state.join("position");
    if !position.exists() {
        return Ok(());
    }
    let error = Error::new("this copy was begun by an earlier version, and only that version can resume it");
    let error = error.at(position.display()).because("it kept its position in this file, which is no longer read");
    Err(error.help("resume with that version, or start over with another --out and --state"))
}
