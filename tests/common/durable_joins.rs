//! A query with every join by event time, windows behind each of them, and a join and an iteration of collections; each
//! has a sink of its changes.
//!
//! Its data are small, and its epochs best not too short. Each epoch costs every operator a turn, those of an iteration
//! included, whether anything changes or not, as its frontier passes all of them. And a run that reads on only when
//! everything is published makes epochs while it waits: with an iteration, of 150 records in short epochs, there are 840
//! instead of 374, and each costs three times as much in a debug build. A job's epochs follow the clock.

use std::time::Duration;

use tidegate::job::RunReport;
use tidegate::testing::{Captured, CrashingDisk, TestRun};
use tidegate::{Collection, Flow, Open, Stream, Window};

use super::cases::{Data, Deal};
use super::checks::small_drift;
use super::durable_query::{DurableQuery, ReplayCheck, Sums, derived, same, sums};

/// A row of a join: the join's number, its key, and the ids of its records.
pub type JoinRow = (u8, u8, Option<u32>, Option<u32>);
/// A row of windows behind a join: the join's number, the window's end, the key, and the number of rows.
pub type BehindRow = (u8, i64, u8, i64);

/// Number of joins.
pub const JOINS: usize = 8;

/// All outputs of the query.
#[derive(Clone, Default)]
pub struct DurableJoins {
    pub rows: Captured<JoinRow>,
    pub behind: Captured<BehindRow>,
    pub live: Captured<BehindRow>,
    /// The join and the iteration of collections.
    pub derived: Captured<(u8, u32)>,
    pub late: Captured<Deal>,
    /// The same, as sinks got them.
    pub seen_rows: ReplayCheck<JoinRow>,
    pub seen_live: ReplayCheck<BehindRow>,
    pub seen_derived: ReplayCheck<(u8, u32)>,
}

/// Final contents of all outputs: of a collection, the rows that remain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JoinContents {
    pub rows: Sums<JoinRow>,
    pub behind: Sums<BehindRow>,
    pub live: Sums<BehindRow>,
    pub derived: Sums<(u8, u32)>,
    pub late: Sums<Deal>,
}

fn row(join: u8, key: u8, left: Option<&Deal>, right: Option<&Deal>) -> JoinRow {
    (join, key, left.map(|left| left.id), right.map(|right| right.id))
}

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// Builds the joins; returns the rows of each.
fn joins<'f>(deals: &Stream<'f, Deal>, late: &Captured<Deal>) -> Vec<Stream<'f, JoinRow>> {
    let part = |rest| deals.clone().filter(move |deal| deal.id % 2 == rest).key_by(|deal: &Deal| deal.key);
    let within = |name: &str| part(1).join_within(name, part(0), millis(12), millis(5));
    let full = within("within full").full_outer(|key, one, other| row(0, *key, one, other));
    full.late_left().concat(full.late_right()).write("late", late);
    let as_of = |name: &str| part(1).join_as_of(name, part(0));
    let windowed = |name: &str| part(1).join_windowed(name, part(0), Window::sliding(millis(30), millis(15)));
    let full_windowed = windowed("windowed full").full_outer(|_, key, one, other| row(5, *key, one, other));
    vec![
        full.results(),
        within("within left").left_outer(|key, one, other| row(1, *key, Some(one), other)).results(),
        within("within right").right_outer(|key, one, other| row(2, *key, one, Some(other))).results(),
        as_of("as of").left_outer(|key, one, other| row(3, *key, Some(one), other)).results(),
        as_of("nearest")
            .nearest()
            .tolerance(millis(9))
            .inner(|key, one, other| row(4, *key, Some(one), Some(other)))
            .results(),
        full_windowed.results(),
        windowed("windowed left").left_outer(|_, key, one, other| row(6, *key, Some(one), other)).results(),
        windowed("windowed right").right_outer(|_, key, one, other| row(7, *key, one, Some(other))).results(),
    ]
}

impl DurableJoins {
    /// Builds the query over a stream.
    pub fn of(&self, deals: Stream<'_, Deal>, seen: bool) {
        let joined = joins(&deals, &self.late);
        assert_eq!(joined.len(), JOINS);
        let behind = joined.iter().zip(0u8..).map(|(rows, number)| {
            let windows = rows.clone().key_by(|row| row.1).window(Window::tumbling(millis(25)));
            let windows = windows.aggregate(&format!("behind {number}"), |each| each.count());
            let closed = windows.on_close().map(move |row| (number, row.window.end.millis(), row.key, row.value));
            let open = move |row: Open<u8, i64>| (number, row.window.end.millis(), row.key, row.value);
            (closed, windows.on_change().map(open))
        });
        let (closed, live): (Vec<_>, Vec<_>) = behind.unzip();
        let rows = joined.into_iter().reduce(Stream::concat).unwrap();
        let live = live.into_iter().reduce(Collection::concat).unwrap();
        let derived = derived(deals);
        if seen {
            rows.clone().write("rows seen", &self.seen_rows.sink());
            live.clone().write("live seen", &self.seen_live.sink());
            derived.clone().write("derived seen", &self.seen_derived.sink());
        }
        rows.write("rows", &self.rows);
        closed.into_iter().reduce(Stream::concat).unwrap().write("behind", &self.behind);
        live.write("live", &self.live);
        derived.write("derived", &self.derived);
    }

    fn query(&self, data: &Data, seen: bool) -> impl Fn(&Flow<'_>) + Send + Sync + 'static {
        let (source, own) = (data.source(), self.clone());
        move |flow| own.of(flow.read("deals", &source), seen)
    }

    fn contents(&self) -> JoinContents {
        JoinContents {
            rows: sums(self.rows.epochs()),
            behind: sums(self.behind.epochs()),
            live: sums(self.live.epochs()),
            derived: sums(self.derived.epochs()),
            late: sums(self.late.epochs()),
        }
    }
}

impl DurableQuery for DurableJoins {
    type Expected = JoinContents;

    fn run(&self, data: &Data, run: TestRun) -> Result<RunReport, String> {
        let outcome = run.options(small_drift(1_000_000)).run(self.query(data, true));
        outcome.map(|outcome| outcome.report).map_err(|error| error.to_string())
    }

    fn plain(data: &Data) -> Result<JoinContents, String> {
        let plain = DurableJoins::default();
        let outcome = TestRun::new().seed(3).options(small_drift(1_000_000)).run(plain.query(data, false));
        outcome.map_err(|error| error.to_string())?;
        Ok(plain.contents())
    }

    fn fork(&self) -> DurableJoins {
        DurableJoins {
            rows: self.rows.fork(),
            behind: self.behind.fork(),
            live: self.live.fork(),
            derived: self.derived.fork(),
            late: self.late.fork(),
            seen_rows: self.seen_rows.fork(),
            seen_live: self.seen_live.fork(),
            seen_derived: self.seen_derived.fork(),
        }
    }

    fn check(&self, _disk: &CrashingDisk, expected: &JoinContents) -> Result<(), String> {
        let contents = self.contents();
        same("rows of joins", &contents.rows, &expected.rows)?;
        same("windows behind joins", &contents.behind, &expected.behind)?;
        same("live windows behind joins", &contents.live, &expected.live)?;
        same("rows derived from collections", &contents.derived, &expected.derived)?;
        same("late records of joins", &contents.late, &expected.late)?;
        same("rows of joins seen", &sums(self.seen_rows.epochs()), &expected.rows)?;
        same("live windows seen", &sums(self.seen_live.epochs()), &expected.live)?;
        same("derived rows seen", &sums(self.seen_derived.epochs()), &expected.derived)
    }

    fn published_epochs(&self) -> usize {
        self.rows.epochs().len()
    }
}
