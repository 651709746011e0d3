//! Reference implementation of windows: computes their outputs from the data and the input of each epoch, from scratch.
//!
//! It is written from the definitions of watermark, activation watermark, idle, late and closed, and shares no code
//! with the engine: everything is recomputed from all records, with plain vectors and 128-bit integers. Times are `i64`
//! milliseconds; [`NEVER`] is before all events, [`OVER`] after all.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;

use tidegate::durable::journal::Frame;

/// Before every event.
pub const NEVER: i64 = i64::MIN;
/// After every event.
pub const OVER: i64 = i64::MAX;

/// Input of one epoch from one partition, and the state of the partition at the epoch's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartitionInput {
    pub partition: u32,
    /// The first offset that was not taken.
    pub next: u64,
    pub idle: bool,
    pub ended: bool,
}

/// Input of an epoch, from the partitions in which something changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OracleEpoch {
    pub epoch: u64,
    pub inputs: Vec<PartitionInput>,
}

/// Returns the input of a source by epoch, as in a journal. The journal's watermarks are ignored.
pub fn steps(journal: &[Frame], source: &str) -> Vec<OracleEpoch> {
    let inputs = |frame: &Frame| {
        let mine = frame.progress.iter().filter(|bound| bound.source == source);
        mine.map(|b| PartitionInput { partition: b.partition, next: b.next_offset, idle: b.idle, ended: b.ended })
            .collect()
    };
    journal.iter().map(|frame| OracleEpoch { epoch: frame.epoch.0, inputs: inputs(frame) }).collect()
}

/// A record of a stream, with everything that determines its lateness.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OracleRecord<D> {
    pub data: D,
    pub time: i64,
    /// Source, partition, offset.
    pub origin: (u16, u32, u64),
    /// Watermark of its own partition just before it.
    pub partition_watermark: i64,
    /// Activation watermark of its partition: the stream's watermark at the epoch before the partition was found or
    /// last woke from idle.
    pub activation_watermark: i64,
    /// The epoch that took it.
    pub epoch: u64,
    /// Epoch in which its partition was found late, or last woke from idle; for results of windows, in which their
    /// stream did. `None` if that never happened.
    pub activated_in: Option<u64>,
}

impl<D> OracleRecord<D> {
    pub fn with<D2>(&self, data: D2) -> OracleRecord<D2> {
        let OracleRecord { time, origin, partition_watermark, activation_watermark, epoch, activated_in, .. } = *self;
        OracleRecord { data, time, origin, partition_watermark, activation_watermark, epoch, activated_in }
    }
}

/// Tells if a stream may hold back the watermark of a stream combined from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OracleActivity {
    /// Some partition is active, or none has been found.
    Active,
    /// All partitions are idle, or have ended; not all have ended.
    Idle,
    /// All have ended. With the greatest watermark that was reached.
    Ended(i64),
}

/// A stream: its records, its watermark and its activity at every epoch with input.
#[derive(Clone, Debug)]
pub struct StreamHistory<D> {
    pub records: Vec<OracleRecord<D>>,
    pub rejected: Vec<(u32, u64)>,
    pub watermarks: BTreeMap<u64, i64>,
    pub activity: BTreeMap<u64, OracleActivity>,
}

/// Returns the value at the last epoch that has one, up to and including this one.
fn at<V: Copy>(all: &BTreeMap<u64, V>, epoch: u64, or: V) -> V {
    all.range(..=epoch).next_back().map_or(or, |at| *at.1)
}

/// Returns the value at the last epoch before this one.
fn before<V: Copy>(all: &BTreeMap<u64, V>, epoch: u64, or: V) -> V {
    epoch.checked_sub(1).map_or(or, |epoch| at(all, epoch, or))
}

#[derive(Clone, Copy)]
struct Partition {
    partition_watermark: i64,
    activation_watermark: i64,
    next: u64,
    idle: bool,
    ended: bool,
    activated_in: Option<u64>,
}

/// Returns `true` if a record may have this time: the years 1 to 9998.
fn is_accepted(time: i64) -> bool {
    (-62_135_596_800_000..=253_370_764_799_999).contains(&time)
}

/// Computes the history of a source through its epochs, by the definitions.
pub fn history<D: Clone>(
    source: u16,
    partitions: &[Vec<D>],
    time_of: impl Fn(&D) -> i64,
    disorder: i64,
    steps: &[OracleEpoch],
) -> StreamHistory<D> {
    let mut known = BTreeMap::<u32, Partition>::new();
    let (watermarks, activity) = (BTreeMap::new(), BTreeMap::new());
    let mut history = StreamHistory { records: Vec::new(), rejected: Vec::new(), watermarks, activity };
    let (mut watermark, first) = (NEVER, steps.first().map_or(0, |step| step.epoch));
    for step in steps {
        let before = watermark;
        for took in &step.inputs {
            // A partition that is found, or woken from idle, has the stream's watermark of the epoch before as its
            // activation watermark.
            let activated_in = (step.epoch > first).then_some(step.epoch);
            let found = Partition {
                partition_watermark: NEVER,
                activation_watermark: before,
                next: 0,
                idle: false,
                ended: false,
                activated_in,
            };
            let now = known.entry(took.partition).or_insert(found);
            if now.idle && took.next > now.next {
                (now.activation_watermark, now.activated_in) = (before, Some(step.epoch));
            }
            for offset in now.next..took.next {
                let data = partitions[took.partition as usize][offset as usize].clone();
                let time = time_of(&data);
                if is_accepted(time) {
                    let origin = (source, took.partition, offset);
                    let (partition_watermark, activation_watermark, epoch, activated_in) =
                        (now.partition_watermark, now.activation_watermark, step.epoch, now.activated_in);
                    history.records.push(OracleRecord {
                        data,
                        time,
                        origin,
                        partition_watermark,
                        activation_watermark,
                        epoch,
                        activated_in,
                    });
                    now.partition_watermark = now.partition_watermark.max(time - disorder);
                } else {
                    history.rejected.push((took.partition, offset));
                }
            }
            (now.next, now.idle, now.ended) = (took.next, took.idle, took.ended);
        }
        let awake = known.values().filter(|partition| !partition.idle && !partition.ended);
        let greatest = known.values().map(|partition| partition.partition_watermark).max().unwrap_or(NEVER);
        let rest = if let Some(least) = awake.map(|partition| partition.partition_watermark).min() {
            watermark = watermark.max(least);
            OracleActivity::Active
        } else if known.values().all(|partition| partition.ended) {
            let reached = match history.activity.last_key_value() {
                Some((_, OracleActivity::Ended(reached))) => *reached,
                _ => watermark.max(greatest),
            };
            watermark = OVER;
            OracleActivity::Ended(reached)
        } else {
            // No active partition holds the watermark back.
            watermark = watermark.max(greatest);
            OracleActivity::Idle
        };
        history.watermarks.insert(step.epoch, watermark);
        history.activity.insert(step.epoch, rest);
    }
    history
}

/// Combines two streams: the watermark at every epoch is the lesser one of those that are active. A record whose
/// partition was woken has the combined watermark of the epoch before as its activation watermark, if that is greater
/// than its own.
pub fn concat<D: Clone>(left: &StreamHistory<D>, right: &StreamHistory<D>) -> StreamHistory<D> {
    let epochs = left.watermarks.keys().chain(right.watermarks.keys()).copied().collect::<BTreeSet<u64>>();
    let (mut watermark, mut watermarks, mut activity) = (NEVER, BTreeMap::new(), BTreeMap::new());
    for epoch in epochs {
        let both = [left, right]
            .map(|side| (at(&side.watermarks, epoch, NEVER), at(&side.activity, epoch, OracleActivity::Active)));
        let awake: Vec<i64> = both.iter().filter(|side| side.1 == OracleActivity::Active).map(|side| side.0).collect();
        let reached =
            both.map(|(watermark, rest)| if let OracleActivity::Ended(reached) = rest { reached } else { watermark });
        let (now, rest) = match (awake.iter().min(), both) {
            (_, [(_, OracleActivity::Ended(_)), (_, OracleActivity::Ended(_))]) => {
                (OVER, OracleActivity::Ended(reached[0].max(reached[1])))
            }
            (Some(least), _) => (*least, OracleActivity::Active),
            (None, _) => (reached[0].max(reached[1]), OracleActivity::Idle),
        };
        watermark = watermark.max(now);
        watermarks.insert(epoch, watermark);
        activity.insert(epoch, rest);
    }
    let mut records = [&left.records[..], &right.records[..]].concat();
    for record in &mut records {
        let activation_watermark =
            record.activated_in.map_or(NEVER, |activated_in| before(&watermarks, activated_in, NEVER));
        record.activation_watermark = record.activation_watermark.max(activation_watermark);
    }
    let rejected = [&left.rejected[..], &right.rejected[..]].concat();
    StreamHistory { records, rejected, watermarks, activity }
}

impl<D> StreamHistory<D> {
    /// Maps every record to any number of records.
    pub fn flat_map<D2>(&self, change: impl Fn(&D) -> Vec<D2>) -> StreamHistory<D2> {
        let changed =
            |record: &OracleRecord<D>| change(&record.data).into_iter().map(|data| record.with(data)).collect();
        StreamHistory {
            records: self.records.iter().flat_map::<Vec<_>, _>(changed).collect(),
            rejected: self.rejected.clone(),
            watermarks: self.watermarks.clone(),
            activity: self.activity.clone(),
        }
    }

    /// Returns the stream of the final results of a window over this one.
    pub fn closed<V: Clone>(&self, shown: &OracleOutputs<V, D>, late: i64) -> StreamHistory<Row<V>> {
        let rows = shown.closed.iter().flat_map(|(epoch, rows)| rows.iter().map(move |row| (*epoch, row.clone())));
        let record = |(epoch, row): (u64, Row<V>)| {
            let time = row.1 - 1;
            // The last epoch up to this one before which the stream was idle.
            let activated_in =
                self.activity.keys().copied().filter(|at| *at <= epoch).rfind(|at| self.was_idle_before(*at));
            OracleRecord {
                time,
                origin: (0, 0, 0),
                partition_watermark: time,
                activation_watermark: NEVER,
                epoch,
                activated_in,
                data: row,
            }
        };
        // Rows may still come as late as the allowed lateness.
        let behind = |(epoch, mark): (&u64, &i64)| match *mark {
            NEVER | OVER => (*epoch, *mark),
            mark => (*epoch, mark - late),
        };
        let watermarks = self.watermarks.iter().map(behind).collect();
        let activity = self.activity.iter().map(|(epoch, rest)| match *rest {
            OracleActivity::Ended(reached) => (*epoch, OracleActivity::Ended(behind((epoch, &reached)).1)),
            rest => (*epoch, rest),
        });
        let activity = activity.collect();
        StreamHistory { records: rows.map(record).collect(), rejected: Vec::new(), watermarks, activity }
    }

    fn was_idle_before(&self, epoch: u64) -> bool {
        before(&self.activity, epoch, OracleActivity::Active) == OracleActivity::Idle
    }
}

/// Windows of a step. `late` is the allowed lateness.
#[derive(Clone, Copy, Debug)]
pub enum Windows {
    Tumbling { size: i64, offset: i64 },
    Global,
    Lenient { size: i64, late: i64 },
    Sliding { size: i64, slide: i64, offset: i64, late: i64 },
    Cumulative { size: i64, step: i64, late: i64 },
    Session { gap: i64, late: i64 },
    Count { size: usize, late: i64 },
}

impl Windows {
    /// Returns start and end of every window that contains a time.
    pub fn of(self, time: i64) -> Vec<(i64, i64)> {
        let time = i128::from(time);
        let found: Vec<(i128, i128)> = match self {
            Windows::Global => return vec![(NEVER, OVER)],
            Windows::Session { .. } | Windows::Count { .. } => unreachable!("these are of many records"),
            Windows::Tumbling { size, .. } | Windows::Lenient { size, .. } => {
                let (size, offset) = (i128::from(size), i128::from(self.offset()));
                let start = (time - offset).div_euclid(size) * size + offset;
                vec![(start, start + size)]
            }
            Windows::Sliding { size, slide, offset, .. } => {
                let (size, slide, offset) = (i128::from(size), i128::from(slide), i128::from(offset));
                // Every window that could contain the time, tried one by one.
                let about = (time - offset).div_euclid(slide);
                let starts = (about - size / slide - 2..=about + 2).map(|number| number * slide + offset);
                starts
                    .map(|start| (start, start + size))
                    .filter(|(start, end)| (*start..*end).contains(&time))
                    .collect()
            }
            Windows::Cumulative { size, step, .. } => {
                let (size, step) = (i128::from(size), i128::from(step));
                let start = time.div_euclid(size) * size;
                let ends = (1..=size / step).map(|number| start + number * step);
                ends.filter(|end| *end > time).map(|end| (start, end)).collect()
            }
        };
        // Windows that would end after all times end with them, as one window.
        let within = |(start, end)| if end < i128::from(OVER) { (start as i64, end as i64) } else { (OVER, OVER) };
        let mut windows: Vec<_> = found.into_iter().map(within).collect();
        windows.dedup();
        windows
    }

    fn offset(self) -> i64 {
        if let Windows::Tumbling { offset, .. } = self { offset } else { 0 }
    }

    /// Returns the allowed lateness.
    pub fn late(self) -> i64 {
        match self {
            Windows::Tumbling { .. } | Windows::Global => 0,
            Windows::Lenient { late, .. } | Windows::Sliding { late, .. } => late,
            Windows::Cumulative { late, .. } | Windows::Session { late, .. } | Windows::Count { late, .. } => late,
        }
    }
}

/// A row: start and end of its window, key, value.
pub type Row<V> = (i64, i64, u8, V);

/// Expected outputs of a windowed step.
#[derive(Clone, Debug)]
pub struct OracleOutputs<V, D> {
    /// Final results, at the epoch that closes their window, sorted.
    pub closed: BTreeMap<u64, Vec<Row<V>>>,
    /// The rows of open windows at the end of every epoch, sorted.
    pub live: BTreeMap<u64, Vec<Row<V>>>,
    /// The rows of windows that have fired, at the end of every epoch, sorted.
    pub fired: BTreeMap<u64, Vec<Row<V>>>,
    /// Late records, at their epoch, sorted.
    pub late: BTreeMap<u64, Vec<D>>,
    /// Records that were on time.
    pub counted: usize,
    /// The stream's watermark at every epoch with input.
    pub watermarks: BTreeMap<u64, i64>,
}

impl<V: Clone, D> OracleOutputs<V, D> {
    /// Returns the rows of all open windows, at epochs whose watermark has passed a multiple of a period. There is none
    /// before the first watermark, and none when the stream has ended.
    pub fn every(&self, period: i64) -> BTreeMap<u64, Vec<Row<V>>> {
        let mut all = BTreeMap::new();
        for ((_, before), (epoch, now)) in self.watermarks.iter().zip(self.watermarks.iter().skip(1)) {
            let passes = before.div_euclid(period) < now.div_euclid(period);
            if *before != NEVER && *now != OVER && passes {
                all.insert(*epoch, self.live[epoch].clone());
            }
        }
        all
    }
}

/// Computes the outputs of a windowed step, from scratch at every epoch.
pub fn windowed<D: Clone + Ord, V: Clone + Ord + Debug>(
    stream: &StreamHistory<D>,
    windows: Windows,
    key: impl Fn(&D) -> u8,
    value: impl Fn(&[&OracleRecord<D>]) -> V,
) -> OracleOutputs<V, D> {
    let mut late = BTreeMap::<u64, Vec<D>>::new();
    let mut groups = BTreeMap::<(i64, i64, u8), Vec<&OracleRecord<D>>>::new();
    if matches!(windows, Windows::Session { .. } | Windows::Count { .. }) {
        return by_time(stream, windows, key, value);
    }
    let over = |end: i64| if end == OVER { OVER } else { end + windows.late() };
    let mut counted = 0;
    for record in &stream.records {
        // A record can be late for some of its windows; it goes to the late output if it is late for all.
        let open = windows
            .of(record.time)
            .into_iter()
            .filter(|(_, end)| over(*end) > record.partition_watermark.max(record.activation_watermark));
        let open: Vec<_> = open.collect();
        if open.is_empty() {
            late.entry(record.epoch).or_default().push(record.data.clone());
        }
        counted += usize::from(!open.is_empty());
        for (start, end) in open {
            groups.entry((start, end, key(&record.data))).or_default().push(record);
        }
    }
    late.values_mut().for_each(|records| records.sort());
    let (mut closed, mut live) = (BTreeMap::<u64, Vec<Row<V>>>::new(), BTreeMap::<u64, Vec<Row<V>>>::new());
    let mut fired = BTreeMap::<u64, Vec<Row<V>>>::new();
    for (&epoch, &watermark) in &stream.watermarks {
        let before = stream.watermarks.range(..epoch).next_back().map_or(NEVER, |at| *at.1);
        for (&(start, end, key), records) in &groups {
            let so_far: Vec<_> = records.iter().copied().filter(|record| record.epoch <= epoch).collect();
            if so_far.is_empty() {
                continue;
            }
            let row = (start, end, key, value(&so_far));
            if end <= watermark {
                fired.entry(epoch).or_default().push(row.clone());
            }
            if over(end) <= before {
                assert!(so_far.len() == records.len(), "a record touches a closed window");
            } else if over(end) <= watermark {
                closed.entry(epoch).or_default().push(row.clone());
            }
            // The rows of the global window are published when the stream has ended, and stay.
            if over(end) > watermark || end == OVER {
                live.entry(epoch).or_default().push(row);
            }
        }
        live.entry(epoch).or_default();
        fired.entry(epoch).or_default();
    }
    OracleOutputs { closed, live, fired, late, counted, watermarks: stream.watermarks.clone() }
}

/// Returns the windows of some records: sessions, in which records of a key are less than a gap apart, or count
/// windows.
fn windows_of<'a, D>(
    records: impl Iterator<Item = &'a OracleRecord<D>>,
    windows: Windows,
    key: impl Fn(&D) -> u8,
) -> Vec<(i64, i64, u8, Vec<&'a OracleRecord<D>>)> {
    let mut by_key = BTreeMap::<u8, Vec<&OracleRecord<D>>>::new();
    records.for_each(|record| by_key.entry(key(&record.data)).or_default().push(record));
    let mut all = Vec::new();
    for (key, mut records) in by_key {
        records.sort_by_key(|record| (record.time, record.origin));
        let last = |records: &[&OracleRecord<D>]| records[records.len() - 1].time;
        match windows {
            Windows::Session { gap, .. } => {
                for session in records.chunk_by(|one, next| next.time.saturating_sub(one.time) < gap) {
                    all.push((session[0].time, last(session).saturating_add(gap), key, session.to_vec()));
                }
            }
            Windows::Count { size, .. } => {
                for window in records.chunks(size) {
                    let end = if window.len() == size { last(window) + 1 } else { OVER };
                    all.push((window[0].time, end, key, window.to_vec()));
                }
            }
            _ => unreachable!(),
        }
    }
    all
}

/// Computes the outputs of sessions and count windows, from scratch at every epoch.
fn by_time<D: Clone + Ord, V: Clone + Ord + Debug>(
    stream: &StreamHistory<D>,
    windows: Windows,
    key: impl Fn(&D) -> u8,
    value: impl Fn(&[&OracleRecord<D>]) -> V,
) -> OracleOutputs<V, D> {
    let allowed = windows.late();
    let is_late = |record: &&OracleRecord<D>| match record.partition_watermark.max(record.activation_watermark) {
        NEVER => false,
        OVER => true,
        mark => record.time.saturating_add(allowed) < mark,
    };
    let mut late = BTreeMap::<u64, Vec<D>>::new();
    for record in stream.records.iter().filter(is_late) {
        late.entry(record.epoch).or_default().push(record.data.clone());
    }
    late.values_mut().for_each(|records| records.sort());
    let on_time: Vec<_> = stream.records.iter().filter(|record| !is_late(record)).collect();
    let (mut closed, mut live) = (BTreeMap::<u64, Vec<Row<V>>>::new(), BTreeMap::<u64, Vec<Row<V>>>::new());
    let mut fired = BTreeMap::<u64, Vec<Row<V>>>::new();
    let back = |mark: i64| if mark == NEVER || mark == OVER { mark } else { mark - allowed };
    for (&epoch, &watermark) in &stream.watermarks {
        let before = stream.watermarks.range(..epoch).next_back().map_or(NEVER, |at| *at.1);
        let so_far = on_time.iter().copied().filter(|record| record.epoch <= epoch);
        for (start, end, key, records) in windows_of(so_far, windows, &key) {
            let row = (start, end, key, value(&records));
            if end <= watermark {
                fired.entry(epoch).or_default().push(row.clone());
            }
            if end <= back(before) {
                assert!(records.iter().all(|record| record.epoch < epoch), "a record touches a closed window");
            } else if end <= back(watermark) {
                closed.entry(epoch).or_default().push(row);
            } else {
                live.entry(epoch).or_default().push(row);
            }
        }
        live.entry(epoch).or_default();
        fired.entry(epoch).or_default();
    }
    OracleOutputs { closed, live, fired, late, counted: on_time.len(), watermarks: stream.watermarks.clone() }
}
