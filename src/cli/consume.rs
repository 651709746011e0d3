//! `tidegate consume`: copies a topic of transactions to a CSV file.
//!
//! * The **position** is what the state directory keeps: for each partition the offset of the next message, and for each
//!   file its length and checksum.
//!
//! Invariants: a file is synced before the position that covers it is recorded, and the position is swapped in whole
//! (written beside, synced, renamed, directory synced); when the command starts again the files are cut back to their
//! recorded lengths. So every message is in a file exactly once, whenever the process or the machine dies. A position
//! that is damaged, or that belongs to another topic or file, is refused and never overwritten.

mod position;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;

use self::position::{Position, State, Tail, cannot_write};
use super::produce::FIELDS;
use super::progress::{Length, Progress};
use super::stop::Stop;
use super::{Property, pairs, say};
use crate::durable::journal::Bound;
use crate::error::Result;
use crate::source::generator::Transaction;
use crate::source::kafka::Topic;
use crate::source::{Intake, Options, Place, Reader, Source, StreamView};
use crate::time::{Epoch, EventTime};

/// How many messages are taken at a time.
const BATCH: usize = 20_000;

/// How long it rests when there is nothing to take.
const REST: Duration = Duration::from_millis(5);

const EXAMPLES: &str = "Examples:
  tidegate consume --brokers localhost:9092 --out copy.csv --until-end
  tidegate consume --brokers localhost:9092 --out copy.csv --state copy-state
  tidegate consume --brokers localhost:9092 --out copy.csv --state copy-state --sync

With --state every message is in the file exactly once, even if the process is killed and
started again. Without it a file that is there already is replaced.";

/// Copies a Kafka topic of transactions to a CSV file.
#[derive(Clone, Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct ConsumeArgs {
    /// Where the brokers are
    #[arg(long, value_name = "HOST:PORT[,…]")]
    pub brokers: String,

    /// The topic
    #[arg(long, default_value = "transaction")]
    pub topic: String,

    /// The CSV file to write
    #[arg(long, value_name = "FILE.csv")]
    pub out: PathBuf,

    /// A directory that keeps the position, so that a later start goes on where this one ends
    #[arg(long, value_name = "DIR")]
    pub state: Option<PathBuf>,

    /// Take one message at a time: each is written and synced before the next is taken
    #[arg(long)]
    pub sync: bool,

    /// Stop at the end that the topic has at the start
    #[arg(long)]
    pub until_end: bool,

    /// A file for messages that are no transactions, one JSON object a line; without it they are only counted
    #[arg(long, value_name = "FILE")]
    pub rejects: Option<PathBuf>,

    /// A property of the Kafka client (TLS, SASL, …); can be given several times
    #[arg(long, value_name = "KEY=VALUE")]
    pub kafka_config: Vec<Property>,
}

/// Runs the command; answers its exit code.
///
/// # Errors
/// When the topic cannot be read, a file cannot be written, or the state does not fit.
pub fn consume(args: &ConsumeArgs) -> Result<u8> {
    let stop = Stop::listen()?;
    // No record is too late or too early for a copy: what it says of its time is not looked at.
    let topic = Topic::json(&args.brokers, &args.topic).event_time(|_: &Transaction| 0);
    let topic = topic.configs(pairs(&args.kafka_config));
    let options = Options { until_end: args.until_end, max_ahead: Duration::MAX, ..Options::default() };
    let place = Place { worker: 0, workers: 1, threads: 1, job: format!("consume-{}", args.topic), options };
    let reader = topic.open(&place)?;
    let intake = Intake::new("consume", 0, &topic, &place.options, Rc::<StreamView>::default(), Arc::default());
    let mut copy = Copy::start(args, reader, intake)?;
    let mut progress = Progress::start(&Length::Endless);
    while stop.asked().is_none() {
        let taken = copy.take(if args.sync { 1 } else { BATCH })?;
        progress.reached(copy.written);
        if taken == 0 {
            if copy.ended {
                break;
            }
            std::thread::sleep(REST);
        }
    }
    copy.record()?;
    progress.finish();
    say(format_args!("{} messages to {}, {}/s", copy.written, args.out.display(), progress.rate()));
    if copy.rejected > 0 {
        let kept = args.rejects.as_ref().map_or(String::new(), |path| format!("; they are in {}", path.display()));
        eprintln!("{} messages are no transactions and were left out{kept}", copy.rejected);
    }
    Ok(stop.asked().unwrap_or(0))
}

/// A copy at work.
struct Copy {
    reader: Box<dyn Reader<Transaction>>,
    intake: Intake<Transaction>,
    epoch: Epoch,
    out: Tail,
    rejects: Option<Tail>,
    state: Option<State>,
    topic: String,
    next: BTreeMap<u32, u64>,
    /// The text of a batch.
    text: Vec<u8>,
    written: u64,
    rejected: u64,
    ended: bool,
}

impl Copy {
    fn start(args: &ConsumeArgs, reader: Box<dyn Reader<Transaction>>, intake: Intake<Transaction>) -> Result<Self> {
        let state = args.state.as_ref().map(|folder| State::open(folder)).transpose()?;
        let position = state.as_ref().map(State::read).transpose()?.flatten();
        let (out, rejects, next) = match position {
            Some(position) => position.resume(&args.topic, &args.out, args.rejects.as_deref())?,
            None => {
                let rejects = args.rejects.as_ref().map(|path| Tail::create(path)).transpose()?;
                let mut out = Tail::create(&args.out)?;
                out.append(format!("{}\n", FIELDS.join(",")).as_bytes())?;
                (out, rejects, BTreeMap::new())
            }
        };
        let mut copy = Copy {
            reader,
            intake,
            epoch: Epoch(2),
            out,
            rejects,
            state,
            topic: args.topic.clone(),
            next,
            text: Vec::new(),
            written: 0,
            rejected: 0,
            ended: false,
        };
        copy.go_on()?;
        copy.record()?;
        Ok(copy)
    }

    /// Places the reader behind what the files have.
    fn go_on(&mut self) -> Result<()> {
        if self.next.is_empty() {
            return Ok(());
        }
        let bounds: Vec<Bound> = self.next.iter().map(|(partition, next)| bound(*partition, *next)).collect();
        while !self.reader.replay(self.epoch, &bounds, &mut self.intake)? {
            std::thread::sleep(REST);
        }
        self.bind()
    }

    fn bind(&mut self) -> Result<()> {
        if let Some(binding) = self.reader.bind(self.epoch, &mut self.intake)? {
            self.next.extend(binding.bounds.iter().map(|bound| (bound.partition, bound.next)));
            self.ended = binding.mark.ended;
        }
        self.epoch = Epoch(self.epoch.0 + 2);
        Ok(())
    }

    /// Takes what is there, up to so many messages, writes and syncs it; answers how many there were.
    fn take(&mut self, most: usize) -> Result<usize> {
        self.reader.poll(self.epoch, most, &mut self.intake)?;
        let (_bytes, events, rejects) = self.intake.hand_over();
        let taken = events.len() + rejects.len();
        if taken > 0 {
            self.text.clear();
            let mut rows = csv::WriterBuilder::new().has_headers(false).from_writer(&mut self.text);
            for event in events.drain(..) {
                rows.serialize(&event.data).map_err(|error| cannot_write(&self.out.path, error))?;
                self.written += 1;
            }
            rows.flush().map_err(|error| cannot_write(&self.out.path, error))?;
            drop(rows);
            self.out.append(&self.text)?;
            self.text.clear();
            for reject in rejects.drain(..) {
                self.rejected += 1;
                if let Some(file) = &self.rejects {
                    serde_json::to_writer(&mut self.text, &reject.data)
                        .map_err(|error| cannot_write(&file.path, error))?;
                    self.text.push(b'\n');
                }
            }
            if let Some(file) = &mut self.rejects {
                file.append(&self.text)?;
            }
        }
        self.bind()?;
        if taken > 0 {
            self.record()?;
            self.reader.shown(Epoch(self.epoch.0 - 2));
        }
        Ok(taken)
    }

    /// Syncs the files, then records the position that covers them.
    fn record(&mut self) -> Result<()> {
        self.out.sync()?;
        if let Some(rejects) = &mut self.rejects {
            rejects.sync()?;
        }
        let Some(state) = &self.state else { return Ok(()) };
        state.write(&Position {
            topic: self.topic.clone(),
            next: self.next.clone(),
            out: self.out.mark(),
            rejects: self.rejects.as_ref().map(Tail::mark),
        })
    }
}

fn bound(partition: u32, next: u64) -> Bound {
    let (found_at, watermark) = (Some(next), EventTime::MIN);
    let source = String::from("consume");
    Bound { source, partition, found_at, next, watermark, idle: false, until: None, ended: false, check: None }
}
