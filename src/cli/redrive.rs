//! `tidegate redrive`: sends dead letters back, as the messages that they were.
//!
//! Invariants: whatever ends a run, the next one of the same group goes on behind what was committed, so no letter is
//! sent back twice; each selection of letters has a group of its own unless one is named.

use clap::Args;

use super::progress::{CommandProgress, ProgressTotal};
use super::stop::StopSignal;
use super::{KafkaConfigArgs, note, print_line};
use crate::error::Result;
use crate::sink::kafka::redrive::{LetterSelection, RedriveConfig, RedriveCounts, Redriver};
use crate::source::kafka::client::TopicConfig;
use crate::time::EventTime;

const EXAMPLES: &str = "Examples:
  tidegate redrive --brokers localhost:9092 --topic orders-dead --dry-run
  tidegate redrive --brokers localhost:9092 --topic orders-dead
  tidegate redrive --brokers localhost:9092 --topic orders-dead --to orders-repaired
  tidegate redrive --brokers localhost:9092 --topic orders-dead --partition 0 --offsets 100..200
  tidegate redrive --brokers localhost:9092 --topic orders-dead --since 2026-05-01T00:00:00Z

A letter is sent back with its key, value, headers and timestamp, without the headers tidegate.error.*, in a
transaction with the group's offset behind it: a run that was killed is started again, and sends the rest.
Started again later, it sends the letters that have come since.";

/// Sends dead letters back.
#[derive(Clone, Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct RedriveArgs {
    /// Kafka brokers
    #[arg(long, value_name = "HOST:PORT[,…]")]
    pub brokers: String,

    /// Topic of dead letters, as --rejects kafka:TOPIC writes it
    #[arg(long)]
    pub topic: String,

    /// Topic that gets all messages [default: for each letter the topic that it came from]
    #[arg(long, value_name = "TOPIC")]
    pub to: Option<String>,

    /// Partition of the topic of dead letters; can be given several times [default: all]
    #[arg(long, value_name = "N")]
    pub partition: Vec<u32>,

    /// Offsets of dead letters in each partition, the second one excluded: A..B, A.. or ..B
    #[arg(long, value_name = "RANGE", value_parser = offsets)]
    pub offsets: Option<OffsetRange>,

    /// Only letters that were written at this time or later (RFC 3339, or milliseconds since 1970)
    #[arg(long, value_name = "TIME", allow_negative_numbers = true)]
    pub since: Option<EventTime>,

    /// Only letters that were written before this time
    #[arg(long, value_name = "TIME", allow_negative_numbers = true)]
    pub until: Option<EventTime>,

    /// Count what would be sent, and send nothing
    #[arg(long)]
    pub dry_run: bool,

    /// Consumer group that remembers what was sent back; another one sends it once more
    /// [default: tidegate-redrive-TOPIC, with the selection behind it if there is any]
    #[arg(long, value_name = "NAME", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub group: Option<String>,

    /// Flags of the Kafka client.
    #[command(flatten)]
    pub kafka: KafkaConfigArgs,
}

/// Offsets from the first to before the second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OffsetRange {
    /// The first offset.
    pub from: i64,
    /// The offset behind the last one.
    pub to: i64,
}

fn offsets(text: &str) -> std::result::Result<OffsetRange, String> {
    let wrong = || String::from("it has to be A..B, A.. or ..B, as in 100..200");
    let (from, to) = text.split_once("..").ok_or_else(wrong)?;
    let offset = |text: &str, missing| match text {
        "" => Ok(missing),
        text => text.parse::<i64>().ok().filter(|offset| *offset >= 0).ok_or_else(wrong),
    };
    let range = OffsetRange { from: offset(from, 0)?, to: offset(to, i64::MAX)? };
    if range.from < range.to { Ok(range) } else { Err(String::from("there is no offset in it")) }
}

/// Runs `tidegate redrive`; returns the exit code.
///
/// # Errors
/// Fails if the dead letters cannot be read, if one names no topic, or if a message cannot be sent.
pub fn redrive(args: &RedriveArgs) -> Result<u8> {
    let stop = StopSignal::listen()?;
    let beginning = stop.begin_startup();
    let config = config(args)?;
    let group = config.group.clone();
    let redriver = Redriver::open(config)?;
    drop(beginning);
    let total = redriver.left();
    let mut progress = CommandProgress::start(&ProgressTotal::Messages(total));
    let mut steps = 0_u64;
    let counts = redriver.run(|| {
        steps += 1;
        progress.count_message(|| steps.min(total));
        stop.exit_code_if_stopped().is_none()
    });
    progress.finish();
    report(args, &group, &counts?);
    Ok(stop.exit_code_if_stopped().unwrap_or(0))
}

fn config(args: &RedriveArgs) -> Result<RedriveConfig> {
    let mut letters = TopicConfig::new(&args.brokers, &args.topic);
    letters.properties = args.kafka.properties()?.clone();
    let times = (args.since.map_or(i64::MIN, EventTime::millis), args.until.map_or(i64::MAX, EventTime::millis));
    let range = args.offsets.unwrap_or(OffsetRange { from: 0, to: i64::MAX });
    let mut partitions = args.partition.clone();
    partitions.sort_unstable();
    partitions.dedup();
    let selection = LetterSelection { partitions, offsets: (range.from, range.to), times };
    let group = args.group.clone().unwrap_or_else(|| group_of(args, &selection));
    Ok(RedriveConfig { letters, to: args.to.clone(), group, selection, is_dry: args.dry_run })
}

/// Returns the name of the group of a selection: what one has passed, another one may not have sent.
fn group_of(args: &RedriveArgs, selection: &LetterSelection) -> String {
    let mut name = format!("tidegate-redrive-{}", args.topic);
    if let Some(to) = &args.to {
        name += &format!("-to-{to}");
    }
    for partition in &selection.partitions {
        name += &format!("-partition-{partition}");
    }
    if let Some(OffsetRange { from, to }) = args.offsets {
        name += &format!("-offsets-{from}-{to}");
    }
    for (word, time) in [("since", args.since), ("until", args.until)] {
        if let Some(time) = time {
            name += &format!("-{word}-{}", time.millis());
        }
    }
    name
}

/// Prints what was sent, or would be.
fn report(args: &RedriveArgs, group: &str, counts: &RedriveCounts) {
    let (total, would) = (counts.sent.values().sum::<u64>(), if args.dry_run { "would be " } else { "" });
    for (topic, count) in &counts.sent {
        print_line(format_args!("{count} dead letters {would}sent to topic {topic}"));
    }
    print_line(format_args!("{total} dead letters {would}sent in all, by the group {group}"));
    if counts.left_out > 0 {
        note(format_args!(
            "{} dead letters were left out: --since and --until do not include their times",
            counts.left_out
        ));
    }
    if counts.passed_before > 0 {
        let passed = counts.passed_before;
        note(format_args!(
            "{passed} offsets were passed by the group before; another group (--group) sends their letters again"
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_of_offsets_is_not_empty() {
        assert_eq!(offsets("1..3"), Ok(OffsetRange { from: 1, to: 3 }));
        assert_eq!(offsets("..3"), Ok(OffsetRange { from: 0, to: 3 }));
        assert_eq!(offsets("7.."), Ok(OffsetRange { from: 7, to: i64::MAX }));
        for wrong in ["", "3", "3..3", "4..3", "-1..3", "a..b", "1...3"] {
            assert!(offsets(wrong).is_err(), "{wrong}");
        }
    }
}
