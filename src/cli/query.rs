//! The flags that all queries share, and what they make: a source, sinks, and a job that is watched while it runs.
//!
//! A query program flattens [`QueryArgs`] into its own arguments, and its `main` is [`start`]. Exit codes: 0 done, 1
//! failed (one line: what, where, what to do), 2 wrong usage, 130 and 143 after a clean stop on Ctrl-C and SIGTERM.
//! Results go to standard output when asked for; everything else goes to standard error.

use std::fs;
use std::io::IsTerminal;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::{Args, Parser, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};

use super::kill_at::KillAt;
use super::parent::end_with_parent;
use super::stop::Stop;
use super::{Property, duration, log, pairs};
use crate::durable::disk::OsDisk;
use crate::durable::journal::Bound;
use crate::error::{Error, Result};
use crate::job::{Cluster, Ending, Job, Watcher};
use crate::metrics::{Metrics, Summary};
use crate::record::Record;
use crate::sink::{self, Rows, Shard, Sink, Writer};
use crate::source::{self, Options, Place, Reader, Rejected, Source, TimeOf};
use crate::status::why;
use crate::stream::Flow;
use crate::time::EventTime;

/// Where a Kafka topic is read from at first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum From {
    /// Its first record.
    Earliest,
    /// Its end.
    Latest,
}

/// How a running query shows how far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Show {
    /// A live line on a terminal, else a line now and then.
    Auto,
    /// A line now and then.
    Plain,
    /// Nothing.
    Off,
}

/// The flags that every query has.
#[derive(Clone, Debug, Args)]
pub struct QueryArgs {
    /// Read from Kafka: where the brokers are
    #[arg(long, value_name = "HOST:PORT[,…]", help_heading = "Input")]
    pub brokers: Option<String>,

    /// The topic to read
    #[arg(long, default_value = "transaction", help_heading = "Input")]
    pub topic: String,

    /// Where to begin in the topic
    #[arg(long, value_enum, default_value_t = From::Earliest, help_heading = "Input")]
    pub from: From,

    /// A property of the Kafka client (TLS, SASL, …); can be given several times
    #[arg(long, value_name = "KEY=VALUE", help_heading = "Input")]
    pub kafka_config: Vec<Property>,

    /// Read a CSV file instead of Kafka; its header names the columns, extra ones are ignored
    #[arg(long, value_name = "FILE", conflicts_with = "ndjson", help_heading = "Input")]
    pub csv: Option<PathBuf>,

    /// Read a file with one JSON object a line instead of Kafka
    #[arg(long, value_name = "FILE", help_heading = "Input")]
    pub ndjson: Option<PathBuf>,

    /// Stop at the end that the source has at the start, with every window closed
    #[arg(long, help_heading = "Input")]
    pub until_end: bool,

    /// Where results go: FILE.csv, FILE.ndjson, kafka:TOPIC, or - for standard output (as CSV)
    #[arg(long, value_name = "WHERE", default_value = "-", help_heading = "Output")]
    pub out: String,

    /// Where late records go, as --out; without it they are only counted
    #[arg(long, value_name = "WHERE", help_heading = "Output")]
    pub late: Option<String>,

    /// Where rejected records go, as --out; without it they are only counted
    #[arg(long, value_name = "WHERE", help_heading = "Output")]
    pub rejects: Option<String>,

    /// End with an error at the first rejected record
    #[arg(long, help_heading = "Output")]
    pub fail_on_reject: bool,

    /// How far records may be behind the greatest event time of their partition
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = duration, help_heading = "Time")]
    pub out_of_order: Duration,

    /// After how long without records a partition no longer holds windows open
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = duration, help_heading = "Time")]
    pub idle_timeout: Duration,

    /// How long after its end a window is kept open for records that come late
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = duration, help_heading = "Time")]
    pub allowed_lateness: Duration,

    /// How far a partition may be ahead of the others in event time before it waits for them
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = duration, help_heading = "Time")]
    pub max_drift: Duration,

    /// How far an event time may be ahead of the record's own Kafka timestamp; records further ahead are rejected
    #[arg(long, value_name = "TIME", default_value = "1d", value_parser = duration, help_heading = "Time")]
    pub max_ahead: Duration,

    /// How often results are shown: the length of an epoch
    #[arg(long, value_name = "TIME", default_value = "100ms", value_parser = duration, help_heading = "Running")]
    pub epoch: Duration,

    /// How much each process may have read and not yet shown
    #[arg(long, value_name = "SIZE", default_value = "64MiB", value_parser = size, help_heading = "Running")]
    pub in_flight: u64,

    /// Serve what the job is at over HTTP, at this address (port 0: any free one): /status, /why, /metrics, /healthz, /views;
    /// each further process takes the port after it
    #[arg(long, value_name = "HOST:PORT", help_heading = "Running")]
    pub http: Option<String>,

    /// After how long without a result the reason is told
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = duration, help_heading = "Running")]
    pub tell_when_quiet: Duration,

    /// Sum up where the time goes, by step: shown at the end, and at /profile with --http
    #[arg(long, help_heading = "Running")]
    pub profile: bool,

    /// How many worker threads share the work in each process
    #[arg(short, long, value_name = "N", default_value_t = 1, value_parser = workers, help_heading = "Running")]
    pub workers: usize,

    /// How to show progress, on standard error
    #[arg(long, value_enum, default_value_t = Show::Auto, help_heading = "Running")]
    pub progress: Show,

    /// How often a line of progress is written where there is no terminal
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = duration, hide = true)]
    pub progress_every: Duration,

    /// Keep durable state in this directory: started again, the query goes on where its results end, each shown once
    #[arg(long, value_name = "DIR", help_heading = "State")]
    pub state: Option<PathBuf>,

    /// How long there is from one snapshot of the state to the next at least; results do not wait for snapshots
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = duration, help_heading = "State")]
    pub snapshot_every: Duration,

    /// How many snapshots are kept
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = kept, help_heading = "State")]
    pub keep_snapshots: usize,

    /// Begin a new state with a savepoint, which `tidegate snapshot export` makes; outputs have to be new too, and get
    /// what comes after the savepoint
    #[arg(long, value_name = "DIR", requires = "state", help_heading = "State")]
    pub from_savepoint: Option<PathBuf>,

    /// Go on although another process holds the locks of the state and the results: one that sleeps, and will not wake
    #[arg(long, requires = "state", help_heading = "State")]
    pub take_over: bool,

    /// Go on although the program or its flags are not those that the state was made with
    #[arg(long, requires = "state", help_heading = "State")]
    pub accept_changed_query: bool,

    /// End this process as a kill would, or have its disk full, at this moment: for tests
    #[arg(long, value_name = "before:KIND:N", requires = "state", hide = true)]
    pub kill_at: Option<KillAt>,

    /// Take the wall clock for so much behind: for tests
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = duration, hide = true)]
    pub clock_behind: Duration,

    /// How many processes share the work; each is started with the same flags, but for -p
    #[arg(short = 'n', long, value_name = "N", default_value_t = 1, value_parser = processes, help_heading = "Running")]
    pub processes: usize,

    /// Which of the processes this is, from 0
    #[arg(short = 'p', long, value_name = "I", default_value_t = 0, help_heading = "Running")]
    pub process: usize,

    /// Where the processes are: a file with HOST:PORT a line, the first for process 0; without it they are on this machine,
    /// at ports from 2101 on
    #[arg(long, value_name = "FILE", help_heading = "Running")]
    pub hostfile: Option<PathBuf>,
}

fn size(text: &str) -> std::result::Result<u64, String> {
    let size = text.parse::<bytesize::ByteSize>().map_err(|why| format!("{why}; write it as 64MiB or 1GB"))?;
    if size.as_u64() < 1 << 20 { Err(String::from("it has to be at least 1MiB")) } else { Ok(size.as_u64()) }
}

fn kept(text: &str) -> std::result::Result<usize, String> {
    match text.parse() {
        Ok(count @ 1..=10_000) => Ok(count),
        _ => Err(String::from("it has to be a number of snapshots from 1 to 10000")),
    }
}

fn processes(text: &str) -> std::result::Result<usize, String> {
    match text.parse() {
        Ok(processes @ 1..=256) => Ok(processes),
        _ => Err(String::from("it has to be a number of processes from 1 to 256")),
    }
}

fn workers(text: &str) -> std::result::Result<usize, String> {
    match text.parse() {
        Ok(workers @ 1..=1024) => Ok(workers),
        _ => Err(String::from("it has to be a number of threads from 1 to 1024")),
    }
}

/// Whether two paths lead to one file, by whatever names.
fn is_one_file(a: &Path, b: &Path) -> bool {
    match (fs::metadata(a), fs::metadata(b)) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    }
}

/// The `main` of a query program: parses its arguments, runs it, and makes an exit code of how it ended.
///
/// `run` gets the arguments and answers the exit code of a run that came to its end, which [`QueryArgs::run`] gives.
pub fn start<A: Parser>(run: impl FnOnce(&A) -> Result<u8>) -> ExitCode {
    start_with(|command| command, run)
}

/// As [`start`], with the command line changed first: another default for a shared flag, say.
pub fn start_with<A: Parser>(
    adjust: impl FnOnce(clap::Command) -> clap::Command,
    run: impl FnOnce(&A) -> Result<u8>,
) -> ExitCode {
    end_with_parent();
    log::begin();
    let arguments = match A::from_arg_matches(&adjust(A::command()).get_matches()) {
        Ok(arguments) => arguments,
        Err(usage) => usage.exit(),
    };
    match run(&arguments) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}

impl QueryArgs {
    /// What the flags refuse together.
    fn check(&self) -> Result<()> {
        if self.process >= self.processes {
            let error = Error::usage(format!("-p {}: there are {} processes", self.process, self.processes));
            return Err(error.help("give -n N, and -p from 0 to N - 1"));
        }
        Ok(())
    }

    /// The processes that the flags name, if there are several.
    fn cluster(&self) -> Result<Option<Cluster>> {
        match (&self.hostfile, self.processes) {
            (_, 1) => Ok(None),
            (Some(file), processes) => Cluster::from_hostfile(self.process, processes, file).map(Some),
            (None, processes) => Cluster::on_this_machine(self.process, processes).map(Some),
        }
    }

    /// The source that the flags name, of records whose event time `time_of` gives in milliseconds since 1970.
    ///
    /// # Errors
    /// When the flags name none.
    pub fn source<T: Record>(&self, time_of: impl Fn(&T) -> i64 + Send + Sync + 'static) -> Result<AnySource<T>> {
        self.check()?;
        Ok(match (&self.csv, &self.ndjson, &self.brokers) {
            (Some(path), ..) => AnySource::Csv(source::csv::Input::new(path).event_time(time_of)),
            (_, Some(path), _) => AnySource::Ndjson(source::ndjson::Input::new(path).event_time(time_of)),
            (.., Some(brokers)) => {
                let start = match self.from {
                    From::Earliest => source::kafka::Start::Earliest,
                    From::Latest => source::kafka::Start::Latest,
                };
                let topic = source::kafka::Topic::json(brokers, &self.topic).event_time(time_of).from(start);
                AnySource::Kafka(topic.configs(pairs(&self.kafka_config)))
            }
            _ => {
                let error = Error::usage("there is nothing to read");
                return Err(error.help("name a source: --brokers HOST:PORT, --csv FILE or --ndjson FILE"));
            }
        })
    }

    /// Where results go.
    ///
    /// # Errors
    /// When `--out` names no kind of sink that there is.
    pub fn out<D: Record>(&self) -> Result<AnySink<D>> {
        self.sink("--out", &self.out)
    }

    /// Where late records go, if they go anywhere.
    ///
    /// # Errors
    /// When `--late` names no kind of sink that there is.
    pub fn late<D: Record>(&self) -> Result<Option<AnySink<D>>> {
        self.late.as_ref().map(|target| self.sink("--late", target)).transpose()
    }

    /// Where rejected records go, if they go anywhere.
    ///
    /// # Errors
    /// When `--rejects` names no kind of sink that there is.
    pub fn rejects(&self) -> Result<Option<AnySink<Rejected>>> {
        self.rejects.as_ref().map(|target| self.sink("--rejects", target)).transpose()
    }

    fn sink<D: Record>(&self, flag: &str, target: &str) -> Result<AnySink<D>> {
        Ok(AnySink { target: self.target(flag, target)?, kill_at: self.kill_at })
    }

    fn target<D: Record>(&self, flag: &str, target: &str) -> Result<Target<D>> {
        if target == "-" {
            return Ok(Target::Stdout(sink::stdout::Stdout::csv()));
        }
        if let Some(topic) = target.strip_prefix("kafka:") {
            let Some(brokers) = &self.brokers else {
                let error = Error::usage(format!("{flag} {target} needs to know where the brokers are"));
                return Err(error.help("add --brokers HOST:PORT"));
            };
            let mut output = sink::kafka::Output::json(brokers, topic).create(4);
            for (key, value) in pairs(&self.kafka_config) {
                output = output.config(key, value);
            }
            return Ok(Target::Kafka(output));
        }
        if self.csv.iter().chain(&self.ndjson).any(|input| is_one_file(input, Path::new(target))) {
            let error = Error::usage(format!("{flag} {target} is the file that is read"));
            return Err(error.help("name another file: this one would be emptied first"));
        }
        match Path::new(target).extension().and_then(|extension| extension.to_str()) {
            Some("csv") => Ok(Target::Csv(sink::csv::File::new(target))),
            Some("ndjson" | "jsonl") => Ok(Target::Ndjson(sink::ndjson::File::new(target))),
            _ => {
                let error = Error::usage(format!("{flag} {target} does not say what to write"));
                Err(error.help("name a file that ends in .csv or .ndjson, kafka:TOPIC, or - for standard output"))
            }
        }
    }

    /// The job with the state that the flags name, if they do.
    fn with_state(&self, job: Job) -> Job {
        let Some(directory) = &self.state else { return job };
        let written = |duration: Duration| humantime::format_duration(duration).to_string();
        let job = job.state(directory).snapshot_every(self.snapshot_every).keep_snapshots(self.keep_snapshots);
        let job = job.take_over(self.take_over).accept_changed_query(self.accept_changed_query);
        let job = match self.kill_at {
            Some(moment) => job.disk(moment.on(OsDisk::shared())),
            None => job,
        };
        let job = job.affected_by("allowed-lateness", &written(self.allowed_lateness));
        let job = job.affected_by("until-end", if self.until_end { "yes" } else { "no" });
        match &self.from_savepoint {
            Some(savepoint) => job.from_savepoint(savepoint),
            None => job,
        }
    }

    /// Runs a query as a job of this name, watched and stopped as the flags say; answers the exit code. Rejected records
    /// go where `--rejects` says.
    ///
    /// # Errors
    /// As [`Job::run`].
    pub fn run(&self, name: &str, query: impl Fn(&Flow<'_>) + Send + Sync + 'static) -> Result<u8> {
        self.check()?;
        let stop = Stop::listen()?;
        let options = Options {
            until_end: self.until_end,
            out_of_order: self.out_of_order,
            idle_timeout: self.idle_timeout,
            max_drift: self.max_drift,
            max_ahead: self.max_ahead,
            fail_on_reject: self.fail_on_reject,
        };
        let job = Job::new(name).workers(self.workers).epoch(self.epoch).in_flight(self.in_flight).options(options);
        let job = job.clock_behind(self.clock_behind);
        let job = match self.cluster()? {
            Some(cluster) => {
                if self.progress != Show::Off {
                    eprintln!("{name}: this is {cluster}; it begins when all have come");
                }
                job.cluster(cluster)
            }
            None => job,
        };
        let job = job.tell_when_quiet_for(self.tell_when_quiet).profile(self.profile);
        let job = match &self.http {
            Some(address) => job.http(address),
            None => job,
        };
        let (job, is_first) = (self.with_state(job), self.process == 0);
        if is_first && self.state.is_none() && self.progress != Show::Off {
            eprintln!("{name}: nothing is kept between runs: after a crash, a run begins at the source's beginning");
        }
        let (stopper, metrics, watcher) = (job.stopper(), job.metrics(), job.watcher());
        let rejects = self.rejects()?;
        let over = Arc::new(AtomicBool::new(false));
        let (watching, show, signals) = (Arc::clone(&over), self.progress, stop.clone());
        let every = self.progress_every;
        let watcher = std::thread::spawn(move || {
            let mut display = Display::new(show, every);
            while !watching.load(Ordering::Acquire) {
                if signals.asked().is_some() {
                    stopper.stop();
                }
                display.show(&metrics, &watcher);
                std::thread::park_timeout(Duration::from_millis(50));
            }
            display.finish();
        });
        let report = job.run(move |flow| {
            query(flow);
            if let Some(rejects) = &rejects {
                flow.rejects().write("rejects", rejects);
            }
        });
        over.store(true, Ordering::Release);
        watcher.thread().unpark();
        if watcher.join().is_err() {
            eprintln!("{name}: the progress display failed; the results are not affected");
        }
        let report = report?;
        if report.ending == Ending::WasComplete && is_first {
            eprintln!("{name}: this state has come to its end before, and there is nothing new: nothing was done");
        } else if is_first && self.progress != Show::Off {
            // Of several processes the first has the figures of all.
            eprintln!("{}", report.summary);
        }
        if self.profile {
            eprintln!("{}", report.profile);
        }
        Ok(match report.ending {
            Ending::Complete | Ending::WasComplete => 0,
            Ending::Stopped => stop.asked().unwrap_or(0),
        })
    }
}

/// Shows how far a running job is.
struct Display {
    bar: Option<ProgressBar>,
    lines: bool,
    every: Duration,
    begun: Instant,
    last: Instant,
    last_read: u64,
}

impl Display {
    fn new(show: Show, every: Duration) -> Self {
        let live = show == Show::Auto && std::io::stderr().is_terminal();
        let style =
            ProgressStyle::with_template("{spinner} {msg}").unwrap_or_else(|_| ProgressStyle::default_spinner());
        let bar = live.then(|| ProgressBar::new_spinner().with_style(style));
        log::above(bar.as_ref());
        let now = Instant::now();
        let every = if live { Duration::from_millis(250) } else { every };
        Display { bar, lines: show != Show::Off && !live, every, begun: now, last: now, last_read: 0 }
    }

    fn show(&mut self, metrics: &Metrics, watcher: &Watcher) {
        let since = self.last.elapsed();
        if since < self.every || !(self.lines || self.bar.is_some()) {
            return;
        }
        let summary = metrics.summary();
        let read: u64 = summary.sources.iter().map(|source| source.read).sum();
        let rate = (read - self.last_read) as f64 / since.as_secs_f64();
        (self.last, self.last_read) = (Instant::now(), read);
        let line = progress_line(&summary, read, rate, self.begun.elapsed());
        let Some(bar) = &self.bar else { return eprintln!("{line}") };
        // What holds the next results, where anything does, stands below.
        let held = watcher.status().and_then(|status| why(&status, None).holds.into_iter().next());
        bar.set_message(held.map_or_else(|| line.clone(), |held| format!("{line}\n  {held}")));
        bar.tick();
    }

    fn finish(&self) {
        log::above(None);
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// What a line of progress says.
pub(super) fn progress_line(summary: &Summary, read: u64, rate: f64, elapsed: Duration) -> String {
    let rejected: u64 = summary.sources.iter().map(|source| source.rejected).sum();
    let late: u64 = summary.steps.iter().map(|step| step.late).sum();
    let rows: u64 = summary.sinks.iter().map(|sink| sink.rows).sum();
    let watermark = summary.sources.iter().map(|source| source.watermark).min().unwrap_or(EventTime::MIN);
    let seconds = elapsed.as_secs();
    format!(
        "{seconds} s: {read} records, {rate:.0}/s, {late} late, {rejected} rejected; watermark {watermark}; {rows} rows written"
    )
}

/// Whichever source the flags name.
pub enum AnySource<T: Record> {
    /// A CSV file.
    Csv(source::csv::Input<T>),
    /// A file with one JSON object a line.
    Ndjson(source::ndjson::Input<T>),
    /// A Kafka topic of JSON messages.
    Kafka(source::kafka::Topic<T>),
}

impl<T: Record> std::fmt::Debug for AnySource<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.describe())
    }
}

impl<T: Record> Source for AnySource<T> {
    type Item = T;

    fn describe(&self) -> String {
        match self {
            AnySource::Csv(source) => source.describe(),
            AnySource::Ndjson(source) => source.describe(),
            AnySource::Kafka(source) => source.describe(),
        }
    }

    fn event_time(&self) -> TimeOf<T> {
        match self {
            AnySource::Csv(source) => source.event_time(),
            AnySource::Ndjson(source) => source.event_time(),
            AnySource::Kafka(source) => source.event_time(),
        }
    }

    fn out_of_order(&self) -> Option<Duration> {
        match self {
            AnySource::Csv(source) => source.out_of_order(),
            AnySource::Ndjson(source) => source.out_of_order(),
            AnySource::Kafka(source) => source.out_of_order(),
        }
    }

    fn open(&self, at: &Place) -> Result<Box<dyn Reader<T>>> {
        match self {
            AnySource::Csv(source) => source.open(at),
            AnySource::Ndjson(source) => source.open(at),
            AnySource::Kafka(source) => source.open(at),
        }
    }

    fn grown_since(&self, at: &Place, bounds: &[Bound]) -> Result<Option<String>> {
        match self {
            AnySource::Csv(source) => source.grown_since(at, bounds),
            AnySource::Ndjson(source) => source.grown_since(at, bounds),
            AnySource::Kafka(source) => source.grown_since(at, bounds),
        }
    }
}

/// Whichever sink a flag names.
pub struct AnySink<D: Record> {
    target: Target<D>,
    kill_at: Option<KillAt>,
}

enum Target<D: Record> {
    Csv(sink::csv::File),
    Ndjson(sink::ndjson::File),
    Kafka(sink::kafka::Output<D>),
    Stdout(sink::stdout::Stdout),
}

impl<D: Record> std::fmt::Debug for AnySink<D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.describe())
    }
}

impl<D: Record> Sink<D> for AnySink<D> {
    fn describe(&self) -> String {
        match &self.target {
            Target::Csv(sink) => Sink::<D>::describe(sink),
            Target::Ndjson(sink) => Sink::<D>::describe(sink),
            Target::Kafka(sink) => sink.describe(),
            Target::Stdout(sink) => Sink::<D>::describe(sink),
        }
    }

    fn check(&self, rows: Rows) -> Result<()> {
        match &self.target {
            Target::Csv(sink) => Sink::<D>::check(sink, rows),
            Target::Ndjson(sink) => Sink::<D>::check(sink, rows),
            Target::Kafka(sink) => sink.check(rows),
            Target::Stdout(sink) => Sink::<D>::check(sink, rows),
        }
    }

    fn open(&self, at: &Shard) -> Result<Box<dyn Writer<D>>> {
        let writer = match &self.target {
            Target::Csv(sink) => sink.open(at)?,
            Target::Ndjson(sink) => sink.open(at)?,
            Target::Kafka(sink) => sink.open(at)?,
            Target::Stdout(sink) => sink.open(at)?,
        };
        Ok(match self.kill_at {
            Some(moment) => moment.on_writer(writer),
            None => writer,
        })
    }
}
