//! A query with every kind of checkpointed operator and of sink that needs no broker; its files are on the disk of its
//! state.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fastrand::Rng;
use serde::{Deserialize, Serialize};
use tidegate::durable::disk::Disk;
use tidegate::job::RunReport;
use tidegate::source::Rejected;
use tidegate::stream::Observer;
use tidegate::testing::{Captured, CrashingDisk, TestRun};
use tidegate::time::Epoch;
use tidegate::{Collection, Error, Flow, Interval, Record, Stream, Window, csv, ndjson};

use super::cases::{Data, Deal};
use super::checks::{self, small_drift};

/// The rows of closed windows, as CSV.
pub const CLOSED: &str = "out/closed.csv";
/// All changes of a window that stays open, as NDJSON.
pub const EVER: &str = "out/ever.ndjson";
/// The state directory.
pub const STATE: &str = "state";

/// A window's row.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename = "Closed")]
pub struct ClosedRow {
    pub end: i64,
    pub key: u8,
    pub count: i64,
    pub last: u32,
}

/// A key's row.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename = "Ever")]
pub struct GlobalRow {
    pub key: u8,
    pub count: i64,
    pub greatest: u32,
}

/// Generates `records` deals, rounded, in two partitions, some late and one with an impossible time: a little of
/// everything. The seed changes the number slightly, because it selects the windows: see [`checks::windows_of`].
pub fn steady(seed: u64, records: u32) -> Data {
    let kinds = checks::KINDS.len() as u32;
    let records = records / kinds * kinds + seed as u32 % kinds;
    let mut random = Rng::with_seed(seed);
    let mut partitions = vec![Vec::new(), Vec::new()];
    for id in 0..records {
        let behind = if random.u8(0..12) == 0 { 45 } else { random.i64(0..4) };
        let at_ms = if id == records / 2 { i64::MAX } else { i64::from(id) * 4 - behind };
        let deal = Deal { id, key: random.u8(0..3), at_ms, amount: random.i64(0..100) };
        partitions[random.usize(0..2)].push(deal);
    }
    Data { partitions, disorder: 5, turns: Vec::new() }
}

/// Creates an empty disk with a directory for results.
pub fn new_disk() -> CrashingDisk {
    let disk = CrashingDisk::new();
    disk.put(Path::new("out/note"), b"");
    disk
}

/// Prepares a run with its state on a disk. It reads on only when everything it has read is published, so that it
/// cannot end before the first snapshot.
pub fn on(disk: &CrashingDisk, workers: usize, seed: u64) -> TestRun {
    on_disk(&disk.shared(), workers, seed)
}

/// Like [`on`], on any disk.
pub fn on_disk(disk: &Arc<dyn Disk>, workers: usize, seed: u64) -> TestRun {
    TestRun::new().workers(workers).seed(seed).in_flight(1).state(disk, STATE)
}

/// Checks at a sink that a replayed epoch has the same rows as before.
#[derive(Clone)]
pub struct ReplayCheck<D>(Arc<Mutex<ByEpoch<D>>>);

/// Changes of rows by epoch.
pub type ByEpoch<D> = BTreeMap<Epoch, Vec<(D, isize)>>;

impl<D> Default for ReplayCheck<D> {
    fn default() -> Self {
        ReplayCheck(Arc::default())
    }
}

impl<D: Record> ReplayCheck<D> {
    /// Returns the sink that checks.
    pub fn sink(&self) -> Observer<D> {
        let own = self.clone();
        Observer::new(move |epoch, rows| match own.0.lock().unwrap().insert(epoch, rows.to_vec()) {
            Some(was) if was != rows => {
                Err(Error::new(format!("epoch {epoch} is repeated as {rows:?}, and was {was:?}")))
            }
            _ => Ok(()),
        })
    }

    /// Returns the rows of each epoch.
    pub fn epochs(&self) -> ByEpoch<D> {
        self.0.lock().unwrap().clone()
    }

    /// Returns an independent copy.
    #[must_use]
    pub fn fork(&self) -> Self {
        ReplayCheck(Arc::new(Mutex::new(self.epochs())))
    }
}

/// A query that incarnations of a state run, with what it publishes.
pub trait DurableQuery: Clone + Default + Send + 'static {
    /// Final contents of its outputs.
    type Expected: Clone + Send + 'static;

    /// Runs the query, with its files on the disk of its state.
    fn run(&self, data: &Data, run: TestRun) -> Result<RunReport, String>;

    /// Returns the results of a run without state and without files.
    fn plain(data: &Data) -> Result<Self::Expected, String>;

    /// Returns an independent copy.
    #[must_use]
    fn fork(&self) -> Self;

    /// Checks that the files and the captured outputs have the expected contents.
    fn check(&self, disk: &CrashingDisk, expected: &Self::Expected) -> Result<(), String>;

    /// Returns the number of epochs in which the query has published something.
    fn published_epochs(&self) -> usize;
}

/// All outputs of the query except for its files.
#[derive(Clone, Default)]
pub struct DurableQueryOutputs {
    pub closed: Captured<ClosedRow>,
    pub ever: Captured<GlobalRow>,
    pub live: Captured<ClosedRow>,
    /// Windows over the rows of windows: a checkpointed operator behind another.
    pub chained: Captured<(i64, u8, i64, u32)>,
    /// Output of keyed state with timers.
    pub distinct: Captured<Deal>,
    /// Odd deals, and even ones that happen close to them: a step with two inputs.
    pub pairs: Captured<(u32, Option<u32>)>,
    pub late: Captured<Deal>,
    pub rejects: Captured<Rejected>,
    /// The closed rows and the live rows, as sinks got them.
    pub seen_closed: ReplayCheck<ClosedRow>,
    pub seen_live: ReplayCheck<ClosedRow>,
    pub seen_pairs: ReplayCheck<(u32, Option<u32>)>,
}

/// Rows with their counts.
pub type Sums<D> = BTreeMap<D, isize>;

/// Final contents of all outputs: of a collection, the rows that remain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FinalOutputs {
    pub closed: Sums<ClosedRow>,
    pub ever: Sums<GlobalRow>,
    pub live: Sums<ClosedRow>,
    pub chained: Sums<(i64, u8, i64, u32)>,
    pub distinct: Sums<Deal>,
    pub pairs: Sums<(u32, Option<u32>)>,
    pub late: Sums<Deal>,
    pub rejects: Sums<Rejected>,
}

/// Joins the deals of the last while with all deals, and finds what is reachable along edges that expire: a join and an
/// iteration, neither of which is in snapshots.
pub fn derived(deals: Stream<'_, Deal>) -> Collection<'_, (u8, u32)> {
    let recent = deals.clone().live_for("recent", Duration::from_millis(90));
    let all = deals.collect("all");
    let last = all.map(|deal| (deal.key, deal.id)).max_by_key();
    let joined =
        recent.clone().map(|deal| (deal.key, deal.id)).join_map(last, |key, id, last| (*key, last.wrapping_sub(*id)));
    let edges = recent.map(|deal| (deal.id % 11, deal.id % 7 + deal.amount.rem_euclid(4) as u32));
    let roots = edges.clone().map(|(from, _)| from).filter(|from| *from < 2);
    joined.concat(edges.reachable_from(roots).map(|node| (u8::MAX, node)))
}

impl DurableQueryOutputs {
    fn query(&self, data: &Data, files: bool) -> impl Fn(&Flow<'_>) + Send + Sync + 'static {
        let (source, own, windows) = (data.source(), self.clone(), checks::windows_of(data));
        move |flow| {
            let deals = flow.read("deals", &source);
            let counts = deals.clone().key_by(|deal: &Deal| deal.key).window(checks::window(windows));
            let counts = counts.allowed_lateness(checks::millis(windows.late()));
            let counts = counts.aggregate("counts", |each| (each.count(), each.last(|deal| deal.id)));
            let closed = counts.on_close();
            let chained = closed.clone().key_by(|row| row.key).window(Window::tumbling(Duration::from_millis(60)));
            chained
                .aggregate("chained", |each| (each.sum(|row| row.value.0), each.max(|row| row.value.1)))
                .on_close()
                .map(|row| (row.window.end.millis(), row.key, row.value.0 as i64, row.value.1))
                .write("chained", &own.chained);
            let row = |window: Interval, key: u8, (count, last): (i64, u32)| {
                let end = window.end.millis();
                ClosedRow { end, key, count, last }
            };
            let closed = closed.map(move |closed| row(closed.window, closed.key, closed.value));
            let live = counts.on_change().map(move |open| row(open.window, open.key, open.value));
            live.clone().write("live", &own.live);
            counts.late().write("late", &own.late);
            let distinct =
                deals.clone().key_by(|deal: &Deal| deal.key).dedup_within("distinct", Duration::from_millis(15));
            distinct.write("distinct", &own.distinct);
            let part = |rest| deals.clone().filter(move |deal| deal.id % 2 == rest).key_by(|deal: &Deal| deal.key);
            let pairs = part(1)
                .join_within("pairs", part(0), Duration::from_millis(12), Duration::from_millis(5))
                .left_outer(|_, one: &Deal, other: Option<&Deal>| (one.id, other.map(|other| other.id)));
            pairs.results().write("pairs", &own.pairs);
            let global = deals.key_by(|deal: &Deal| deal.key).window(Window::global());
            let ever = global.aggregate("ever", |each| (each.count(), each.max(|deal| deal.id)));
            let row = |key: u8, (count, greatest): (i64, u32)| GlobalRow { key, count, greatest };
            let ever = ever.on_change().map(move |open| row(open.key, open.value));
            flow.rejects().write("rejects", &own.rejects);
            if files {
                closed.clone().write("closed file", &csv::Sink::new(CLOSED));
                ever.clone().write("ever file", &ndjson::Sink::new(EVER));
                closed.clone().write("closed rows seen", &own.seen_closed.sink());
                live.write("live rows seen", &own.seen_live.sink());
                pairs.results().write("pairs seen", &own.seen_pairs.sink());
            }
            closed.write("closed", &own.closed);
            ever.write("ever", &own.ever);
        }
    }

    fn captured(&self) -> FinalOutputs {
        FinalOutputs {
            closed: sums(self.closed.epochs()),
            ever: sums(self.ever.epochs()),
            live: sums(self.live.epochs()),
            chained: sums(self.chained.epochs()),
            distinct: sums(self.distinct.epochs()),
            pairs: sums(self.pairs.epochs()),
            late: sums(self.late.epochs()),
            rejects: sums(self.rejects.epochs()),
        }
    }
}

impl DurableQuery for DurableQueryOutputs {
    type Expected = FinalOutputs;

    fn run(&self, data: &Data, run: TestRun) -> Result<RunReport, String> {
        let outcome = run.options(small_drift(1_000_000)).run(self.query(data, true));
        outcome.map(|outcome| outcome.report).map_err(|error| error.to_string())
    }

    fn plain(data: &Data) -> Result<FinalOutputs, String> {
        let plain = DurableQueryOutputs::default();
        let outcome = TestRun::new().seed(3).options(small_drift(1_000_000)).run(plain.query(data, false));
        outcome.map_err(|error| error.to_string())?;
        Ok(plain.captured())
    }

    fn fork(&self) -> DurableQueryOutputs {
        DurableQueryOutputs {
            closed: self.closed.fork(),
            ever: self.ever.fork(),
            live: self.live.fork(),
            chained: self.chained.fork(),
            distinct: self.distinct.fork(),
            pairs: self.pairs.fork(),
            late: self.late.fork(),
            rejects: self.rejects.fork(),
            seen_closed: self.seen_closed.fork(),
            seen_live: self.seen_live.fork(),
            seen_pairs: self.seen_pairs.fork(),
        }
    }

    fn published_epochs(&self) -> usize {
        self.closed.epochs().len()
    }

    fn check(&self, disk: &CrashingDisk, expected: &FinalOutputs) -> Result<(), String> {
        let captured = self.captured();
        same("closed rows", &captured.closed, &expected.closed)?;
        same("rows of what stayed open", &captured.ever, &expected.ever)?;
        same("live rows", &captured.live, &expected.live)?;
        same("chained rows", &captured.chained, &expected.chained)?;
        same("distinct records", &captured.distinct, &expected.distinct)?;
        same("pairs", &captured.pairs, &expected.pairs)?;
        same("pairs seen", &sums(self.seen_pairs.epochs()), &expected.pairs)?;
        same("late records", &captured.late, &expected.late)?;
        same("rejects", &captured.rejects, &expected.rejects)?;
        same("closed rows seen", &sums(self.seen_closed.epochs()), &expected.closed)?;
        same("live rows seen", &sums(self.seen_live.epochs()), &expected.live)?;
        same(CLOSED, &closed_file(disk)?, &expected.closed)?;
        same(EVER, &ever_file(disk)?, &expected.ever)
    }
}

/// Returns the contents of both files, to be compared byte by byte.
pub fn files(disk: &CrashingDisk) -> [Option<Vec<u8>>; 2] {
    [CLOSED, EVER].map(|path| disk.bytes(Path::new(path)))
}

fn lines(disk: &CrashingDisk, path: &str) -> Result<Vec<String>, String> {
    let bytes = disk.bytes(Path::new(path)).ok_or_else(|| format!("{path} is not there"))?;
    let text = String::from_utf8(bytes).map_err(|why| format!("{path}: {why}"))?;
    match text.strip_suffix('\n') {
        Some(text) => Ok(text.split('\n').map(str::to_owned).collect()),
        None if text.is_empty() => Ok(Vec::new()),
        None => Err(format!("{path} ends within a line: {text:?}")),
    }
}

fn closed_file(disk: &CrashingDisk) -> Result<Sums<ClosedRow>, String> {
    let lines = lines(disk, CLOSED)?;
    let Some(("end,key,count,last", rows)) = lines.split_first().map(|(first, rest)| (first.as_str(), rest)) else {
        return Err(format!("{CLOSED} has no header: {lines:?}"));
    };
    let mut sums = Sums::new();
    for line in rows {
        let fields: Result<Vec<i64>, _> = line.split(',').map(str::parse).collect();
        let fields = fields.map_err(|why| format!("{CLOSED} has the line {line:?}: {why}"))?;
        let [end, key, count, last] = fields[..] else { return Err(format!("{CLOSED} has the line {line:?}")) };
        *sums.entry(ClosedRow { end, key: key as u8, count, last: last as u32 }).or_default() += 1;
    }
    Ok(sums)
}

/// Returns the sum of a log of changes, in which each row must be retracted before the next of its key.
fn ever_file(disk: &CrashingDisk) -> Result<Sums<GlobalRow>, String> {
    #[derive(Deserialize)]
    struct Line {
        #[serde(flatten)]
        row: GlobalRow,
        diff: isize,
    }
    let mut now = BTreeMap::<u8, GlobalRow>::new();
    for line in lines(disk, EVER)? {
        let wrong = |why: &dyn std::fmt::Display| Err(format!("{EVER} has the line {line:?}: {why}"));
        let Line { row, diff } = match serde_json::from_str(&line) {
            Ok(line) => line,
            Err(why) => return wrong(&why),
        };
        match (diff, now.remove(&row.key)) {
            (1, None) => drop(now.insert(row.key, row)),
            (-1, Some(was)) if was == row => {}
            (_, was) => return wrong(&format!("before it there was {was:?}")),
        }
    }
    Ok(now.into_values().map(|row| (row, 1)).collect())
}

/// Returns the sum of the changes of all epochs.
pub fn sums<D: Record>(epochs: ByEpoch<D>) -> Sums<D> {
    let mut sums = Sums::new();
    for (row, diff) in epochs.into_values().flatten() {
        *sums.entry(row).or_default() += diff;
    }
    sums.retain(|_, count| *count != 0);
    sums
}

/// Compares rows.
pub fn same<D: Record>(what: &str, got: &Sums<D>, expected: &Sums<D>) -> Result<(), String> {
    if got == expected {
        return Ok(());
    }
    let other: Vec<_> = got.iter().filter(|(row, count)| expected.get(*row) != Some(*count)).take(10).collect();
    let lacks: Vec<_> = expected.iter().filter(|(row, count)| got.get(*row) != Some(*count)).take(10).collect();
    Err(format!("{what} differ: there are {other:?}, and should be {lacks:?}"))
}

/// Returns the kind of a file of the state or beside it, by its name.
pub fn kind_of(path: &Path) -> &'static str {
    let text = path.display().to_string();
    let has = |part: &str| text.contains(part);
    match () {
        () if has(".commit-") => "commit",
        () if has(".copy-") => "copy",
        () if text.starts_with("out") => "results",
        () if has(".journal") => "journal",
        () if has(".manifest") => "manifest",
        () if has("worker4294967295") => "merged segment",
        () if has(".segment") => "segment",
        () if has(".claim") => "claim",
        () if has("/lives/") => "life",
        () if has("STATE") => "identity",
        () if has("LOCK") => "lock",
        () => "directory",
    }
}

/// Returns the paths of all files of the state and of the results.
pub fn all_files(disk: &CrashingDisk) -> Vec<PathBuf> {
    disk.paths().into_iter().filter(|path| path != Path::new("out/note")).collect()
}
