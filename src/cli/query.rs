//! The flags that all queries share, and what is built from them: a source, sinks, and a job that is monitored while it
//! runs.
//!
//! A query program flattens [`QueryArgs`] into its own arguments, and its `main` is [`start`]. Exit codes: 0 done, 1
//! failed (one line: what, where, what to do), 2 wrong usage, 130 and 143 after a clean stop on Ctrl-C and SIGTERM or
//! SIGHUP. Results go to standard output when asked for; everything else goes to standard error.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, Parser};

use super::child_process::end_with_parent;
use super::late_sink::{LateForm, LateSink};
use super::run::{JobFigures, JobRunner, ProgressMode, RunArgs, parse_size};
use super::{DelimiterArgs, KafkaConfigArgs, MessageFormat, MessageFormatArgs, duration, note};
use crate::error::{Error, Result};
use crate::job::Ending;
use crate::record::Record;
use crate::sink::{self, Sink};
use crate::source::csv::Delimiter;
use crate::source::kafka::{Decode, Gap, StartOffset, Topics};
use crate::source::{self, DeadLetter, Options, Rejected, Source};
use crate::stream::{Flow, QueryResult};
use crate::thread::{JobFailure, guard};
use crate::time::EventTime;

/// The flags of every query.
#[derive(Clone, Debug, Args)]
pub struct QueryArgs {
    /// Kafka brokers to read from
    #[arg(long, value_name = "HOST:PORT[,…]", help_heading = "Input")]
    pub brokers: Option<String>,

    /// Topic to read; several with commas between them are read as one source, and so are, for ^PATTERN, all topics whose
    /// whole name matches that regular expression, also those that are created while the job runs
    #[arg(long, default_value = "transaction", help_heading = "Input")]
    pub topic: String,

    /// Position in the topic at the first start: earliest, latest, the first record at or after a time (RFC 3339, or
    /// milliseconds since 1970), or offsets (PARTITION:OFFSET,…; other partitions start at their first record)
    #[arg(long, value_name = "WHERE", default_value = "earliest", help_heading = "Input")]
    pub from: StartOffset,

    /// End each partition of the topic before its first message with a timestamp at or after this, with every window
    /// closed; a partition without such a message is read on, or to its end with --until-end
    #[arg(long, value_name = "TIME", conflicts_with_all = ["csv", "ndjson"], help_heading = "Input")]
    pub stop_at: Option<EventTime>,

    /// Reaction to records that were removed from the topic before they were read: fail, or skip them, which counts and
    /// logs them
    #[arg(long, value_name = "fail|skip", default_value = "fail", help_heading = "Input")]
    pub on_gap: Gap,

    /// Read a compacted topic, which is refused otherwise; its records are kept in the state's journal
    #[arg(long, help_heading = "Input")]
    pub compacted: bool,

    /// Flags of the Kafka client.
    #[command(flatten, next_help_heading = "Input")]
    pub kafka: KafkaConfigArgs,

    /// Flags of the format of messages.
    #[command(flatten, next_help_heading = "Formats of messages")]
    pub messages: MessageFormatArgs,

    /// Read a CSV file instead of Kafka; its header names the columns, extra ones are ignored
    #[arg(long, value_name = "FILE", conflicts_with = "ndjson", help_heading = "Input")]
    pub csv: Option<PathBuf>,

    /// Flags of the characters between the fields of CSV.
    #[command(flatten, next_help_heading = "Formats of messages")]
    pub delimiters: DelimiterArgs,

    /// Read a file with one JSON object a line instead of Kafka
    #[arg(long, value_name = "FILE", help_heading = "Input")]
    pub ndjson: Option<PathBuf>,

    /// Longest record of a file, the end of its line included; longer ones are rejected [default: 16MiB]
    #[arg(long, value_name = "SIZE", value_parser = parse_size, help_heading = "Input")]
    pub max_record: Option<u64>,

    /// Stop at the end that the source has at the first start, with every window closed
    #[arg(long, help_heading = "Input")]
    pub until_end: bool,

    /// Destination of results: FILE.csv, FILE.ndjson, kafka:TOPIC, or - for standard output (as CSV)
    #[arg(long, value_name = "WHERE", default_value = "-", help_heading = "Output")]
    pub out: String,

    /// Destination of late records, as for --out; without it they are only counted
    #[arg(long, value_name = "WHERE", help_heading = "Output")]
    pub late: Option<String>,

    /// Form of late records in a topic: rows, or the messages that they were read as, with headers tidegate.error.* that
    /// tell the reason and the place, for tidegate redrive
    #[arg(long, value_name = "FORM", default_value = "rows", help_heading = "Output")]
    pub late_as: LateForm,

    /// Destination of rejected records, as for --out; without it they are only counted. In a topic they are the original
    /// messages, with headers tidegate.error.* that tell the reason and the place: tidegate redrive sends them back
    #[arg(long, value_name = "WHERE", help_heading = "Output")]
    pub rejects: Option<String>,

    /// Fail at the first rejected record
    #[arg(long, help_heading = "Output")]
    pub fail_on_reject: bool,

    /// Maximum disorder: the watermark of a partition is its greatest event time minus this
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = duration, help_heading = "Time")]
    pub out_of_order: Duration,

    /// Time without records at its end after which a partition or a followed file is idle and no longer holds windows
    /// open. Records that it brings later are late for windows that have closed meanwhile
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = duration, help_heading = "Time")]
    pub idle_timeout: Duration,

    /// Time after its end for which a window is kept open for late records
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = duration, help_heading = "Time")]
    pub allowed_lateness: Duration,

    /// Maximum lead of a partition's watermark over the stream's before the partition is paused
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = duration, help_heading = "Time")]
    pub max_drift: Duration,

    /// Maximum lead of an event time over the record's own Kafka timestamp; records further ahead are rejected. In a
    /// file, over the greatest event time before it, and only if the flag is given [default for topics: 1d]
    #[arg(long, value_name = "TIME", value_parser = duration, help_heading = "Time")]
    pub max_ahead: Option<Duration>,

    /// Flags of running as a job.
    #[command(flatten)]
    pub run: RunArgs,
}

/// Returns `true` if both paths lead to one file, which need not exist.
fn is_one_file(a: &Path, b: &Path) -> bool {
    let place = |path: &Path| {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        Some((folder.canonicalize().ok()?, path.file_name()?.to_owned()))
    };
    match (fs::metadata(a), fs::metadata(b)) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => a == b || place(a).is_some_and(|a| Some(a) == place(b)),
    }
}

/// Fails if two outputs are the same file, because opening a file output empties it. Devices are not emptied and may be
/// shared.
pub(super) fn check_outputs(outputs: &[(&str, Option<&Path>)]) -> Result<()> {
    let is_special = |path: &Path| fs::metadata(path).is_ok_and(|found| !found.is_file());
    for (at, (flag, path)) in outputs.iter().enumerate() {
        for (other, others) in &outputs[..at] {
            if let (Some(path), Some(others)) = (path, others)
                && is_one_file(path, others)
                && !is_special(path)
            {
                let error =
                    Error::usage(format!("{other} {} and {flag} {} are one file", others.display(), path.display()));
                return Err(error.help("name a file for each"));
            }
        }
    }
    Ok(())
}

/// Number of partitions of an output's topic that is created.
const CREATED_PARTITIONS: u32 = 4;

/// The sink of rejected records.
enum RejectsSink {
    /// A file, or standard output.
    Records(Box<dyn Sink<Rejected>>),
    /// A topic.
    Letters(Box<dyn Sink<DeadLetter>>),
}

/// Formats of result files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FileFormat {
    /// Comma-separated values.
    Csv,
    /// One JSON object a line.
    Ndjson,
}

impl FileFormat {
    /// Returns the format that the file's extension stands for; `None` for any other extension.
    pub(super) fn of(path: &Path) -> Option<Self> {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("csv") => Some(FileFormat::Csv),
            Some("ndjson" | "jsonl") => Some(FileFormat::Ndjson),
            _ => None,
        }
    }

    /// Returns the sink that writes a file in this format.
    fn sink<D: Record>(self, path: &Path, delimiter: Delimiter) -> Box<dyn Sink<D>> {
        match self {
            FileFormat::Csv => Box::new(sink::csv::Sink::new(path).delimiter(delimiter)),
            FileFormat::Ndjson => Box::new(sink::ndjson::Sink::new(path)),
        }
    }
}

/// Runs the `main` of a query program: parses its arguments, runs it, and turns the outcome into an exit code.
///
/// `run` gets the arguments and returns the exit code of a run that completed, as [`QueryArgs::run`] does.
pub fn start<A: Parser>(run: impl FnOnce(&A) -> Result<u8>) -> ExitCode {
    start_with(|command| command, run)
}

/// Does the same as [`start`] after changing the command line, for example the default of a shared flag.
pub fn start_with<A: Parser>(
    adjust: impl FnOnce(clap::Command) -> clap::Command,
    run: impl FnOnce(&A) -> Result<u8>,
) -> ExitCode {
    let failure = Arc::<JobFailure>::default();
    let _entered = failure.enter();
    super::log::init_logging();
    let arguments = match A::from_arg_matches(&adjust(A::command()).get_matches()) {
        Ok(arguments) => arguments,
        Err(usage) => usage.exit(),
    };
    let ended = end_with_parent()
        .and_then(|()| guard(|| run(&arguments)).unwrap_or_else(|panic| Err(panic.error("that runs the command"))));
    // The first failure is reported: the others may follow from it.
    match failure.get().map_or(ended, |error| Err(error.clone())) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            note(format_args!("error: {error}"));
            ExitCode::from(error.exit_code())
        }
    }
}

impl QueryArgs {
    /// Returns the source that the flags name. `time_of` returns a record's event time: milliseconds since 1970, a
    /// `SystemTime`, a `jiff::Timestamp` or an `EventTime`.
    ///
    /// # Errors
    /// Fails if the flags name no source.
    pub fn source<T: Record, E: Into<EventTime>>(
        &self,
        time_of: impl Fn(&T) -> E + Send + Sync + 'static,
    ) -> Result<Box<dyn Source<Item = T>>> {
        self.run.check()?;
        Ok(match (&self.csv, &self.ndjson, &self.brokers) {
            (Some(path), ..) => {
                let file = source::csv::Source::new(path).delimiter(self.delimiters.for_reading());
                Box::new(file.event_time(time_of))
            }
            (_, Some(path), _) => Box::new(source::ndjson::Source::new(path).event_time(time_of)),
            (.., Some(brokers)) => {
                let decoder = self.messages.decoder(&self.delimiters)?;
                let topic = source::kafka::Source::new(brokers, self.topics(), decoder);
                let topic = topic.event_time(time_of);
                let topic = topic.from(self.from.clone()).on_gap(self.on_gap).compacted(self.compacted);
                let topic = self.stop_at.into_iter().fold(topic, source::kafka::Source::stop_at);
                Box::new(topic.configs(self.kafka.properties()?.iter()))
            }
            _ => {
                let error = Error::usage("there is nothing to read");
                return Err(error.help("name a source: --brokers HOST:PORT, --csv FILE or --ndjson FILE"));
            }
        })
    }

    /// Returns a topic that is read as a table: see [`DecodedTopic::table`](source::kafka::DecodedTopic::table). `key`
    /// decodes the messages' keys.
    ///
    /// # Errors
    /// Fails if the flags name no brokers, or no schema registry that the format needs.
    pub fn table<K: Record, V: Record>(
        &self,
        topic: &str,
        key: impl Decode<K>,
    ) -> Result<source::kafka::Source<(K, Option<V>)>> {
        let Some(brokers) = &self.brokers else {
            let error = Error::usage(format!("the topic {topic} needs the address of its brokers"));
            return Err(error.help("add --brokers HOST:PORT"));
        };
        let decoder = self.messages.decoder(&self.delimiters)?;
        let table = source::kafka::Source::new(brokers, topic, decoder).table(key);
        Ok(table.configs(self.kafka.properties()?.iter()))
    }

    /// Returns the topics to read. No topic's name begins with `^`.
    fn topics(&self) -> Topics {
        if let Some(pattern) = self.topic.strip_prefix('^') {
            return Topics::matching(pattern);
        }
        self.topic.split(',').map(str::trim).collect()
    }

    /// Returns the sink of results.
    ///
    /// # Errors
    /// Fails if `--out` does not name a sink.
    pub fn out<D: Record>(&self) -> Result<Box<dyn Sink<D>>> {
        self.sink("--out", &self.out)
    }

    /// Returns the sink of the changes of a collection with one row for each key. A topic gets one message for each key
    /// whose row changes: the new row, or a tombstone (see [`kafka::Sink::upsert`](sink::kafka::Sink::upsert)). Other
    /// sinks get what those of [`QueryArgs::out`] get.
    ///
    /// # Errors
    /// Fails if `--out` does not name a sink.
    pub fn out_by_key<D: Record>(
        &self,
        key: impl Fn(&D) -> String + Send + Sync + 'static,
    ) -> Result<Box<dyn Sink<D>>> {
        match self.check_topic("--out", &self.out)? {
            Some((brokers, topic)) => {
                let output = self.topic_sink(brokers, topic)?.key_by(key).upsert();
                Ok(self.run.hooks.wrap_sink(Box::new(output)))
            }
            None => self.out(),
        }
    }

    fn topic_sink<D: Record>(&self, brokers: &str, topic: &str) -> Result<sink::kafka::Sink<D>> {
        let encoder = self.messages.encoder(topic, &self.delimiters)?;
        let output = sink::kafka::Sink::new(brokers, topic, encoder).create(CREATED_PARTITIONS);
        Ok(output.configs(self.kafka.properties()?.iter()))
    }

    /// Returns the sink of late records; `None` without `--late`.
    ///
    /// # Errors
    /// Fails if `--late` does not name a sink, or not one for messages with `--late-as messages`.
    pub fn late<D: Record>(&self) -> Result<Option<LateSink<D>>> {
        let Some(target) = &self.late else { return Ok(None) };
        let flag = "--late";
        if self.late_as == LateForm::Rows {
            return Ok(Some(LateSink::Rows(self.sink(flag, target)?)));
        }
        self.check_late_form()?;
        match self.check_topic(flag, target)? {
            Some((brokers, topic)) => Ok(Some(LateSink::Messages(self.letters_sink(brokers, topic)?))),
            None => Err(Error::usage(format!("{flag} {target} gets no messages"))
                .because("--late-as messages is for a topic")
                .help("name --late kafka:TOPIC, or leave --late-as away")),
        }
    }

    /// Fails if late records are to be written as messages, and there are none or nowhere.
    fn check_late_form(&self) -> Result<()> {
        let error = |why, help| Err(Error::usage("--late-as messages: there are none").because(why).help(help));
        match self.late_as {
            LateForm::Messages if self.late.is_none() => {
                error("late records are only counted without --late", "add --late kafka:TOPIC")
            }
            LateForm::Messages if self.csv.is_some() || self.ndjson.is_some() => {
                error("records of a file were never messages", "leave --late-as away")
            }
            _ => Ok(()),
        }
    }

    /// Returns the sink of messages that could not be used.
    fn letters_sink(&self, brokers: &str, topic: &str) -> Result<Box<dyn Sink<DeadLetter>>> {
        let letters = sink::kafka::Sink::dead_letters(brokers, topic).create(CREATED_PARTITIONS);
        Ok(self.run.hooks.wrap_sink(Box::new(letters.configs(self.kafka.properties()?.iter()))))
    }

    /// Returns the sink of rejected records; `None` without `--rejects`. In a topic they are dead letters.
    ///
    /// # Errors
    /// Fails if `--rejects` does not name a sink.
    fn rejects(&self) -> Result<Option<RejectsSink>> {
        let Some(target) = &self.rejects else { return Ok(None) };
        let flag = "--rejects";
        Ok(Some(match self.check_topic(flag, target)? {
            Some((brokers, topic)) => RejectsSink::Letters(self.letters_sink(brokers, topic)?),
            None => RejectsSink::Records(self.sink(flag, target)?),
        }))
    }

    fn sink<D: Record>(&self, flag: &str, target: &str) -> Result<Box<dyn Sink<D>>> {
        Ok(self.run.hooks.wrap_sink(self.target(flag, target)?))
    }

    /// Fails if two outputs are the same file, before any of them is touched.
    fn check_outputs(&self) -> Result<()> {
        let file = |target: Option<&String>| -> Option<PathBuf> {
            target.filter(|target| *target != "-" && !target.starts_with("kafka:")).map(PathBuf::from)
        };
        let (out, late, rejects) = (file(Some(&self.out)), file(self.late.as_ref()), file(self.rejects.as_ref()));
        check_outputs(&[("--out", out.as_deref()), ("--late", late.as_deref()), ("--rejects", rejects.as_deref())])
    }

    fn target<D: Record>(&self, flag: &str, target: &str) -> Result<Box<dyn Sink<D>>> {
        self.check_outputs()?;
        if target == "-" {
            return Ok(Box::new(sink::stdout::Stdout::csv_between(self.delimiters.for_writing())));
        }
        if let Some((brokers, topic)) = self.check_topic(flag, target)? {
            return Ok(Box::new(self.topic_sink(brokers, topic)?));
        }
        if self.csv.iter().chain(&self.ndjson).any(|input| is_one_file(input, Path::new(target))) {
            let error = Error::usage(format!("{flag} {target} is the file that is read"));
            return Err(error.help("name another file: this one would be emptied first"));
        }
        match FileFormat::of(Path::new(target)) {
            Some(FileFormat::Csv) => Ok(FileFormat::Csv.sink(Path::new(target), self.delimiters.for_writing())),
            Some(FileFormat::Ndjson) => Ok(FileFormat::Ndjson.sink(Path::new(target), Delimiter::default())),
            None => {
                let error = Error::usage(format!("{flag} {target} names no format"));
                Err(error.help("name a file that ends in .csv or .ndjson, kafka:TOPIC, or - for standard output"))
            }
        }
    }

    /// Returns the brokers and the topic that an output names; `None` if it names no topic.
    fn check_topic<'a>(&'a self, flag: &str, target: &'a str) -> Result<Option<(&'a str, &'a str)>> {
        let Some(topic) = target.strip_prefix("kafka:") else { return Ok(None) };
        let Some(brokers) = &self.brokers else {
            let error = Error::usage(format!("{flag} {target} needs the address of the brokers"));
            return Err(error.help("add --brokers HOST:PORT"));
        };
        self.check_outputs()?;
        self.check_distinct_topics(flag, target)?;
        Ok(Some((brokers, topic)))
    }

    /// Fails if another flag names the same topic: rows of two kinds could not be told apart in it.
    fn check_distinct_topics(&self, flag: &str, target: &str) -> Result<()> {
        let outputs =
            [("--out", Some(&self.out)), ("--late", self.late.as_ref()), ("--rejects", self.rejects.as_ref())];
        match outputs.into_iter().find(|(other, named)| *other != flag && named.is_some_and(|named| named == target)) {
            None => Ok(()),
            Some((other, _)) => {
                let error = Error::usage(format!("{flag} {target} is where {other} goes"));
                Err(error.because("rows of two kinds could not be told apart in it").help("name another topic"))
            }
        }
    }

    /// Runs a query as a job of this name, as the flags say, with progress output and signal handling; returns the exit
    /// code. Rejected records go to the sink of `--rejects`.
    ///
    /// # Errors
    /// Fails as [`Job::run`](crate::Job::run) does.
    pub fn run<R: QueryResult>(
        &self,
        name: &str,
        query: impl Fn(&Flow<'_>) -> R + Send + Sync + 'static,
    ) -> Result<u8> {
        self.check_late_form()?;
        let watch = JobRunner::begin(&self.run)?;
        let written = |duration: Duration| humantime::format_duration(duration).to_string();
        let usual = Options::default();
        let job = self.run.job(name)?.options(Options {
            until_end: self.until_end,
            out_of_order: self.out_of_order,
            idle_timeout: self.idle_timeout,
            max_drift: self.max_drift,
            max_ahead: self.max_ahead.unwrap_or(usual.max_ahead),
            max_ahead_in_files: self.max_ahead.is_some() && (self.csv.is_some() || self.ndjson.is_some()),
            max_record: self.max_record.unwrap_or(usual.max_record),
            fail_on_reject: self.fail_on_reject,
        });
        let job = job.fingerprint_flag("allowed-lateness", &written(self.allowed_lateness));
        let job = job.fingerprint_flag("until-end", if self.until_end { "yes" } else { "no" });
        let job = match self.stop_at {
            Some(time) => job.fingerprint_flag("stop-at", &time.to_string()),
            None => job,
        };
        let messages_are_csv = self.brokers.is_some() && self.messages.format == MessageFormat::Csv;
        let job = self.delimiters.bind(job, messages_are_csv);
        let rejects = self.rejects()?;
        // All sources and sinks that the flags name have been made.
        self.delimiters.check_used()?;
        let (report, code) = watch.run(job, progress_line, move |flow| {
            flow.build(&query);
            match &rejects {
                Some(RejectsSink::Records(rejects)) => flow.rejects().write("rejects", rejects),
                Some(RejectsSink::Letters(letters)) => flow.dead_letters().write("rejects", letters),
                None => {}
            }
        })?;
        if report.ending == Ending::WasComplete && self.run.is_first() {
            note(format_args!("{name}: this state is complete, and there is no new data: nothing was done"));
        } else if self.run.is_first() && self.run.progress != ProgressMode::Off {
            // The first of several processes has the figures of all.
            note(format_args!("{}", report.summary));
        }
        Ok(code)
    }
}

/// Formats a query's line of progress.
pub(super) fn progress_line(JobFigures { summary, read, rate, elapsed }: &JobFigures) -> String {
    let rejected: u64 = summary.sources.iter().map(|source| source.rejected).sum();
    let late: u64 = summary.steps.iter().map(|step| step.late).sum();
    let rows: u64 = summary.sinks.iter().map(|sink| sink.rows).sum();
    let watermark = summary.sources.iter().map(|source| source.watermark).min().unwrap_or(EventTime::MIN);
    let seconds = elapsed.as_secs();
    format!(
        "{seconds} s: {read} records, {rate:.0}/s, {late} late, {rejected} rejected; watermark {watermark}; {rows} rows written"
    )
}

/// A file sink in the format of the file's extension, or in the format `otherwise` for any other extension. Fields of CSV
/// are between `delimiter`.
pub(super) fn file_sink<D: Record>(
    path: &Path,
    otherwise: FileFormat,
    delimiter: Delimiter,
    run: &RunArgs,
) -> Box<dyn Sink<D>> {
    run.hooks.wrap_sink(FileFormat::of(path).unwrap_or(otherwise).sink(path, delimiter))
}
