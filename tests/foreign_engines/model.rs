//! Random input, and what an engine answers to it, computed from scratch under the engine's rules.

use std::collections::{BTreeMap, BTreeSet};

use fastrand::Rng;
use serde_json::{Value, json};

/// A watermark before any record.
pub(crate) const NEVER: i64 = i64::MIN / 4;
/// The watermark at the end of the input.
pub(crate) const OVER: i64 = i64::MAX / 4;

/// A record: partition, key, event time in milliseconds, id.
pub(crate) type Event = (u8, u8, i64, u32);
/// A row of a window: key, start, end, and the ids of its records in order.
pub(crate) type WindowRow = (u8, i64, i64, Vec<u32>);
/// A row of a join: key, event time, left id, right id.
pub(crate) type JoinRow = (u8, i64, u32, Option<u32>);

/// Random input, and the parameters of the query.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(crate) seed: u64,
    pub(crate) disorder: i64,
    pub(crate) lateness: i64,
    pub(crate) size: i64,
    pub(crate) slide: i64,
    pub(crate) gap: i64,
    pub(crate) before: i64,
    pub(crate) after: i64,
    /// In the order of their arrival. The partitions are both inputs of the joins, and one stream for windows.
    pub(crate) events: Vec<Event>,
}

impl Case {
    pub(crate) fn random(seed: u64) -> Case {
        let mut random = Rng::with_seed(seed);
        let disorder = *random.choice(&[0, 5, 20]).unwrap();
        let start = *random.choice(&[0, 7, 1_000, 1_767_225_600_000]).unwrap();
        let (partitions, is_tame) = (if seed.is_multiple_of(3) { 1 } else { 2 }, random.u8(0..3) == 0);
        let behind = random.i64(0..60);
        let (mut now, grid) = (start + 60, *random.choice(&[1, 5]).unwrap());
        let events = (0..random.u32(20..70)).map(|number| {
            now += random.i64(-4..12).max(0) + if random.u8(0..25) == 0 { 150 } else { 0 };
            let partition = random.u64(0..partitions) as u8;
            let late = match random.u8(0..8) {
                0 if !is_tame => disorder + random.i64(0..90),
                1..=4 => random.i64(0..=disorder),
                _ => 0,
            };
            let at = (now - late - i64::from(partition) * behind).max(start) / grid * grid;
            (partition, random.u8(0..3), at, number)
        });
        let mut case = Case {
            seed,
            disorder,
            lateness: 0,
            size: 0,
            slide: 0,
            gap: 0,
            before: 0,
            after: 0,
            events: events.collect(),
        };
        case.lateness = *random.choice(&[0, 0, 10, 40]).unwrap();
        (case.size, case.slide) = *random.choice(&[(30, 10), (40, 15), (25, 25)]).unwrap();
        case.gap = *random.choice(&[10, 15, 17]).unwrap();
        (case.before, case.after) = *random.choice(&[(0, 20), (15, 0), (10, 25)]).unwrap();
        if is_tame {
            // Whatever the engine, nothing is late: the disorder is what there is, also of both partitions together.
            case.disorder = case.real_disorder();
        }
        case
    }

    /// Returns how far a record is behind the greatest time before it at most.
    pub(crate) fn real_disorder(&self) -> i64 {
        let mut greatest = NEVER;
        let behind = self.events.iter().map(|event| {
            greatest = greatest.max(event.2);
            greatest - event.2
        });
        behind.max().unwrap_or(0)
    }

    /// Returns the number of partitions.
    pub(crate) fn partitions(&self) -> u32 {
        self.events.iter().map(|event| u32::from(event.0) + 1).max().unwrap_or(1)
    }

    pub(crate) fn json(&self) -> Value {
        json!({
            "seed": self.seed, "disorder": self.disorder, "lateness": self.lateness, "size": self.size,
            "slide": self.slide, "gap": self.gap, "before": self.before, "after": self.after, "events": self.events,
        })
    }

    /// Returns the watermark before each record, and after the last one.
    pub(crate) fn marks(&self, clock: Clock) -> Vec<i64> {
        let mut greatest = vec![NEVER; self.partitions() as usize];
        let mut marks = Vec::new();
        for (partition, _, at, _) in &self.events {
            let partition = usize::from(*partition);
            marks.push(self.mark(clock, &greatest, partition));
            greatest[partition] = greatest[partition].max(*at);
        }
        marks.push(self.mark(clock, &greatest, 0));
        marks
    }

    pub(crate) fn mark(&self, clock: Clock, greatest: &[i64], partition: usize) -> i64 {
        let greatest = match clock {
            Clock::OwnPartition => greatest[partition],
            Clock::Slowest => *greatest.iter().min().unwrap(),
            Clock::Fastest => *greatest.iter().max().unwrap(),
        };
        if greatest == NEVER { NEVER } else { greatest - self.disorder }
    }
}

/// The watermark that decides whether a record is late.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Clock {
    /// That of the record's own partition.
    OwnPartition,
    /// The least of all partitions: Flink's, at an operator.
    Slowest,
    /// The greatest of all partitions: Kafka Streams' stream time.
    Fastest,
}

/// When a record is late for its session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SessionLateness {
    /// By its own time.
    OwnTime,
    /// When the session that it would be part of is over.
    Session,
    /// A millisecond later than that.
    SessionAndAMillisecond,
}

/// All that engines differ in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rules {
    pub(crate) clock: Clock,
    /// Records that are exactly a gap apart are of one session.
    pub(crate) touching_joins: bool,
    pub(crate) session_lateness: SessionLateness,
    /// No window begins before 1970.
    pub(crate) from_1970: bool,
}

pub(crate) const TIDEGATE: Rules = Rules {
    clock: Clock::OwnPartition,
    touching_joins: false,
    session_lateness: SessionLateness::OwnTime,
    from_1970: false,
};
pub(crate) const FLINK: Rules =
    Rules { clock: Clock::Slowest, touching_joins: true, session_lateness: SessionLateness::Session, from_1970: false };
pub(crate) const STREAMS: Rules = Rules {
    clock: Clock::Fastest,
    touching_joins: true,
    session_lateness: SessionLateness::SessionAndAMillisecond,
    from_1970: true,
};

/// Results of windows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct WindowRows {
    /// The last row of each window.
    pub(crate) last: Vec<WindowRow>,
    /// The row of a window after each record that it takes.
    pub(crate) updates: Vec<WindowRow>,
    /// The rows that are emitted when a window's end is reached, and again for each later record; sorted.
    pub(crate) fired: Vec<WindowRow>,
    /// Those of `fired` that are no longer true at the end; sorted.
    pub(crate) outdated: Vec<WindowRow>,
    /// Ids of late records.
    pub(crate) late: Vec<u32>,
}

impl WindowRows {
    pub(crate) fn sorted(mut self) -> Self {
        self.last.sort();
        self.fired.sort();
        let mut valid: BTreeSet<_> = self.last.iter().collect();
        self.outdated = self.fired.iter().filter(|row| !valid.remove(row)).cloned().collect();
        self
    }
}

/// Computes windows of `case.size` that begin every `slide`.
pub(crate) fn windows(case: &Case, rules: Rules, slide: i64) -> WindowRows {
    let mut rows = WindowRows::default();
    let mut open = BTreeMap::<(u8, i64), Vec<u32>>::new();
    let (marks, ends) = (case.marks(rules.clock), case.marks(Clock::Slowest));
    for (at, (_, key, time, id)) in case.events.iter().enumerate() {
        let first = (time - case.size).div_euclid(slide) * slide + slide;
        let starts = (first..=*time).step_by(slide as usize).filter(|start| *start >= 0 || !rules.from_1970);
        let mut is_late = true;
        for start in starts {
            if start + case.size + case.lateness <= marks[at] {
                continue;
            }
            is_late = false;
            let ids = open.entry((*key, start)).or_default();
            ids.push(*id);
            ids.sort_unstable();
            let row = (*key, start, start + case.size, ids.clone());
            if row.2 <= ends[at] {
                rows.fired.push(row.clone());
            }
            rows.updates.push(row);
        }
        if is_late {
            rows.late.push(*id);
        }
        let next = if at + 1 == case.events.len() { OVER } else { ends[at + 1] };
        let reached = open.iter().filter(|((_, start), _)| (ends[at] + 1..=next).contains(&(start + case.size)));
        rows.fired.extend(reached.map(|((key, start), ids)| (*key, *start, start + case.size, ids.clone())));
    }
    rows.last = open.into_iter().map(|((key, start), ids)| (key, start, start + case.size, ids)).collect();
    rows.sorted()
}

/// Computes sessions; a row's end is that of the last record plus the gap.
pub(crate) fn sessions(case: &Case, rules: Rules) -> WindowRows {
    let mut rows = WindowRows::default();
    let mut all: Vec<WindowRow> = Vec::new();
    let (marks, ends) = (case.marks(rules.clock), case.marks(Clock::Slowest));
    let touching = i64::from(rules.touching_joins);
    for (at, (_, key, time, id)) in case.events.iter().enumerate() {
        let (mark, mut session) = (marks[at], (*key, *time, time + case.gap, vec![*id]));
        let joins = |row: &WindowRow, of: &WindowRow| {
            row.0 == of.0 && row.1 < of.2 + touching && of.1 < row.2 + touching && row.2 + case.lateness > mark
        };
        let alone = session.clone();
        for row in all.iter().filter(|row| joins(row, &alone)) {
            session = (*key, session.1.min(row.1), session.2.max(row.2), [session.3, row.3.clone()].concat());
        }
        let is_late = match rules.session_lateness {
            SessionLateness::OwnTime => time + case.lateness < mark,
            SessionLateness::Session => session.2 + case.lateness <= mark,
            SessionLateness::SessionAndAMillisecond => session.2 + case.lateness < mark,
        };
        if is_late {
            rows.late.push(*id);
        } else {
            all.retain(|row| !joins(row, &alone));
            session.3.sort_unstable();
            if session.2 <= ends[at] {
                rows.fired.push(session.clone());
            }
            rows.updates.push(session.clone());
            all.push(session);
        }
        let next = if at + 1 == case.events.len() { OVER } else { ends[at + 1] };
        rows.fired.extend(all.iter().filter(|row| (ends[at] + 1..=next).contains(&row.2)).cloned());
    }
    rows.last = all;
    rows.sorted()
}

pub(crate) fn in_span(case: &Case, left: i64, right: i64) -> bool {
    (left - case.before..=left + case.after).contains(&right)
}

/// Computes pairs of records for which `is_there` is true, and left records without a pair, after the span.
pub(crate) fn pairs(case: &Case, is_there: impl Fn(usize) -> bool) -> Vec<JoinRow> {
    let side = |side: u8| {
        let events = case.events.iter().enumerate().filter(|(at, event)| event.0 == side && is_there(*at));
        events.map(|(_, event)| *event).collect::<Vec<_>>()
    };
    let (left, right) = (side(0), side(1));
    let rows = left.iter().flat_map(|(_, key, at, id)| {
        let pairs = right.iter().filter(|other| other.1 == *key && in_span(case, *at, other.2));
        let mut rows: Vec<_> = pairs.map(|other| (*key, *at.max(&other.2), *id, Some(other.3))).collect();
        if rows.is_empty() {
            rows.push((*key, at + case.after, *id, None));
        }
        rows
    });
    let mut rows: Vec<_> = rows.collect();
    rows.sort_unstable();
    rows
}

/// Left records that wait for a pair in Kafka Streams.
#[derive(Default)]
pub(crate) struct WaitingLefts {
    /// By time, key and id.
    pub(crate) records: BTreeSet<(i64, u8, u32)>,
    /// Records before this time do not wait, as far as is known; `None` if none do.
    pub(crate) from: Option<i64>,
}

impl WaitingLefts {
    pub(crate) fn add(&mut self, (at, key, id): (i64, u8, u32)) {
        self.records.insert((at, key, id));
        self.from = Some(self.from.map_or(at, |from| from.min(at)));
    }

    /// Returns the records whose span and grace are over. They are looked for only if `from` is so far back, by the span of
    /// the side that has a record now; afterwards `from` is the time of the last record that was looked at.
    pub(crate) fn over(&mut self, case: &Case, side: u8, time: i64) -> Vec<JoinRow> {
        let span = if side == 0 { case.after } else { case.before };
        if self.from.is_some_and(|from| from + span + case.disorder >= time) {
            return Vec::new();
        }
        self.from = self.records.last().map(|(at, ..)| *at);
        let is_over = |(at, ..): &(i64, u8, u32)| at + case.after + case.disorder < time;
        self.records.extract_if(.., is_over).map(|(at, key, id)| (key, at, id, None)).collect()
    }
}

/// Computes what the left join of Kafka Streams gives. It drops no late record. A record of one side is found as long as it
/// is not behind the greatest time **of that side** by the span and the grace, or more. A left record without a pair is
/// told some time after stream time is past its span and the grace, and at once if it comes later than its span; a right
/// record that comes still later is a pair nevertheless.
pub(crate) fn pairs_of_streams(case: &Case) -> Vec<JoinRow> {
    let kept = case.before + case.after + case.disorder;
    let (mut rows, mut waiting) = (Vec::new(), WaitingLefts::default());
    let (mut greatest, mut time) = ([NEVER; 2], NEVER);
    let mut seen: Vec<Event> = Vec::new();
    for event in &case.events {
        let (side, key, at, id) = *event;
        time = time.max(at);
        if at == time {
            rows.extend(waiting.over(case, side, time));
        }
        greatest[usize::from(side)] = greatest[usize::from(side)].max(at);
        let others = seen.iter().filter(|other| {
            let (left, right) = if side == 0 { (at, other.2) } else { (other.2, at) };
            other.0 != side && other.1 == key && in_span(case, left, right)
        });
        let others: Vec<_> = others.filter(|other| other.2 > greatest[usize::from(other.0)] - kept).collect();
        for other in &others {
            let (left, right) = if side == 0 { (id, other.3) } else { (other.3, id) };
            waiting.records.remove(&(other.2, key, left));
            rows.push((key, at.max(other.2), left, Some(right)));
        }
        if side == 0 && others.is_empty() {
            if at + case.after < time {
                rows.push((key, at, id, None));
            } else {
                waiting.add((at, key, id));
            }
        }
        // What is too old already is not kept.
        if at > greatest[usize::from(side)] - kept {
            seen.push(*event);
        }
    }
    rows.extend(waiting.records.into_iter().map(|(at, key, left)| (key, at, left, None)));
    rows.sort_unstable();
    rows
}
