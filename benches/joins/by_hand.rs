//! Joins written by hand: one thread, hash maps of integer keys with a fast hasher, partitions in turns.

use std::collections::{BTreeMap, HashMap, VecDeque};

use foldhash::fast::FixedState;
use kit::RowChecksum;

use crate::data::{DISORDER, Keyed, Moment, PARTITIONS, Streams};
use crate::pair;

/// Number of records of a turn of a partition.
const TURN: usize = 1024;

/// Milliseconds of event time between two looks at all keys for records that are over.
const SWEEP: i64 = 1_000;

/// A record's stream.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Left,
    Right,
}

/// A program that takes the records of two streams, and the watermark of both from time to time.
trait Program {
    fn record(&mut self, side: Side, record: Keyed);
    fn watermark(&mut self, watermark: i64);
}

/// Passes all records to a program, partitions of both streams in turns, and the watermark after each turn; at the end, the
/// greatest time.
fn in_turns(streams: &Streams, program: &mut impl Program) {
    let mut marks = [[i64::MIN; PARTITIONS]; 2];
    let all = [(Side::Left, &streams.left), (Side::Right, &streams.right)];
    let longest = all.iter().flat_map(|(_, partitions)| partitions.iter().map(Vec::len)).max().unwrap_or(0);
    for from in (0..longest).step_by(TURN) {
        for ((side, partitions), marks) in all.iter().zip(&mut marks) {
            for (partition, mark) in partitions.iter().zip(marks) {
                let to = (from + TURN).min(partition.len());
                for &record in partition.get(from..to).unwrap_or_default() {
                    program.record(*side, record);
                    *mark = (*mark).max(record.1.at - DISORDER);
                }
            }
        }
        program.watermark(marks.iter().flatten().copied().min().unwrap_or(i64::MIN));
    }
    program.watermark(i64::MAX);
}

/// Inserts a moment in the order of times, after equal ones: most are near the end.
fn insert(moments: &mut VecDeque<Moment>, moment: Moment) {
    let mut place = moments.len();
    while place > 0 && moments[place - 1].at > moment.at {
        place -= 1;
    }
    moments.insert(place, moment);
}

/// The waiting records of a key.
#[derive(Default)]
struct Waiting {
    left: VecDeque<Moment>,
    right: VecDeque<Moment>,
}

impl Waiting {
    /// Removes records that can be in no further pair.
    fn expire(&mut self, watermark: i64, span: i64) {
        while self.left.front().is_some_and(|left| left.at.saturating_add(span) < watermark) {
            self.left.pop_front();
        }
        while self.right.front().is_some_and(|right| right.at < watermark) {
            self.right.pop_front();
        }
    }
}

struct Within {
    span: i64,
    keys: HashMap<u32, Waiting, FixedState>,
    watermark: i64,
    swept: i64,
    check: RowChecksum,
}

impl Program for Within {
    fn record(&mut self, side: Side, (key, moment): Keyed) {
        let (waiting, span) = (self.keys.entry(key).or_default(), self.span);
        waiting.expire(self.watermark, span);
        match side {
            Side::Left => {
                let to = moment.at + span;
                let pairs = waiting.right.iter().skip_while(|right| right.at < moment.at);
                pairs.take_while(|right| right.at <= to).for_each(|right| self.check.add(pair(key, &moment, right)));
                insert(&mut waiting.left, moment);
            }
            Side::Right => {
                let from = moment.at - span;
                let pairs = waiting.left.iter().skip_while(|left| left.at < from);
                pairs.take_while(|left| left.at <= moment.at).for_each(|left| self.check.add(pair(key, left, &moment)));
                insert(&mut waiting.right, moment);
            }
        }
    }

    fn watermark(&mut self, watermark: i64) {
        self.watermark = watermark;
        if watermark >= self.swept.saturating_add(SWEEP) {
            self.swept = watermark;
            let span = self.span;
            self.keys.retain(|_, waiting| {
                waiting.expire(watermark, span);
                !waiting.left.is_empty() || !waiting.right.is_empty()
            });
        }
    }
}

/// Each left record with the right ones that happen at most `span` milliseconds after it.
pub(crate) fn within(streams: &Streams, span: i64) -> RowChecksum {
    let (keys, check) = (HashMap::default(), RowChecksum::default());
    let mut program = Within { span, keys, watermark: i64::MIN, swept: i64::MIN, check };
    in_turns(streams, &mut program);
    program.check
}

/// Left records wait in lists by the millisecond, which are decided when the watermark has passed it.
struct AsOf {
    versions: HashMap<u32, VecDeque<Moment>, FixedState>,
    waiting: VecDeque<Vec<Keyed>>,
    /// Time of the first list.
    first: i64,
    check: RowChecksum,
}

impl Program for AsOf {
    fn record(&mut self, side: Side, (key, moment): Keyed) {
        match side {
            Side::Left => {
                let place = (moment.at - self.first) as usize;
                if self.waiting.len() <= place {
                    self.waiting.resize_with(place + 1, Vec::new);
                }
                self.waiting[place].push((key, moment));
            }
            Side::Right => {
                let versions = self.versions.entry(key).or_default();
                insert(versions, moment);
                // Of those before the next list only the last can be asked for.
                while versions.get(1).is_some_and(|second| second.at < self.first) {
                    versions.pop_front();
                }
            }
        }
    }

    fn watermark(&mut self, watermark: i64) {
        while self.first < watermark
            && let Some(list) = self.waiting.pop_front()
        {
            self.first += 1;
            for (key, left) in list {
                let versions = self.versions.get(&key);
                if let Some(right) = versions.and_then(|all| all.iter().rev().find(|version| version.at <= left.at)) {
                    self.check.add(pair(key, &left, right));
                }
            }
        }
    }
}

/// Each left record with the last right one that is not later.
pub(crate) fn as_of(streams: &Streams) -> RowChecksum {
    let (versions, waiting) = (HashMap::default(), VecDeque::new());
    let mut program = AsOf { versions, waiting, first: 0, check: RowChecksum::default() };
    in_turns(streams, &mut program);
    program.check
}

/// The records of a window by key, left and right.
type OpenWindow = HashMap<u32, [Vec<Moment>; 2], FixedState>;

struct Windowed {
    span: i64,
    windows: BTreeMap<i64, OpenWindow>,
    check: RowChecksum,
}

impl Program for Windowed {
    fn record(&mut self, side: Side, (key, moment): Keyed) {
        let end = moment.at - moment.at.rem_euclid(self.span) + self.span;
        let sides = self.windows.entry(end).or_default().entry(key).or_default();
        sides[usize::from(side == Side::Right)].push(moment);
    }

    fn watermark(&mut self, watermark: i64) {
        while let Some(first) = self.windows.first_entry().filter(|first| *first.key() <= watermark) {
            for (key, [left, right]) in first.remove() {
                for left in &left {
                    right.iter().for_each(|right| self.check.add(pair(key, left, right)));
                }
            }
        }
    }
}

/// The pairs of windows of `span` milliseconds.
pub(crate) fn windowed(streams: &Streams, span: i64) -> RowChecksum {
    let mut program = Windowed { span, windows: BTreeMap::new(), check: RowChecksum::default() };
    in_turns(streams, &mut program);
    program.check
}
