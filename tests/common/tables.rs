//! A query with everything that tables can do, and its comparison with a naive computation at every epoch.
//!
//! The computation starts from what the run itself published of its records and of its windows' results, epoch by
//! epoch; so it holds for any epochs, and over several incarnations of a state.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tidegate::job::Ending;
use tidegate::testing::{Captured, RunOutcome, TestRun};
use tidegate::time::Epoch;
use tidegate::{Record, Stream, Window};

use super::cases::{Data, Deal};

/// A window's result: its end, its key, the number of records, the last one's id.
pub type Counted = (i64, u8, i64, u32);

/// The size of the windows behind the join, in milliseconds.
const BEHIND: i64 = 60;

/// Returns the value that a record gives its key; `None` deletes the key.
fn table_value(deal: &Deal) -> Option<u32> {
    (deal.amount % 3 != 0).then_some(deal.id)
}

/// All outputs of the query.
#[derive(Clone, Default)]
pub struct Tables {
    /// The records, unchanged.
    pub deals: Captured<Deal>,
    /// Results of windows, unchanged.
    pub results: Captured<Counted>,
    /// The last id of each key.
    pub last: Captured<(u8, u32)>,
    /// Number of keys by the remainder of their id.
    pub counts: Captured<(u32, i64)>,
    /// The last result of each key.
    pub last_results: Captured<(u8, Counted)>,
    /// Both tables, joined.
    pub both: Captured<(u8, u32, i64)>,
    /// Results with the last id of their key.
    pub joined: Captured<(Counted, u32)>,
    /// Results with the last ids of the keys of their remainder: none, one or several.
    pub left: Captured<(Counted, Option<u32>)>,
    /// Windows of `joined`, by their end: the number of results, and the sum of the joined ids.
    pub behind: Captured<(i64, u8, i64, i64)>,
}

type Multiset<D> = BTreeMap<D, isize>;

impl Tables {
    /// Builds the query.
    pub fn of<'f>(&self, deals: Stream<'f, Deal>, results: Stream<'f, Counted>) {
        deals.clone().write("deals", &self.deals);
        results.clone().write("results", &self.results);
        let last = deals.key_by(|deal| deal.key).last_by_key_with("last", |deal| table_value(&deal));
        last.clone().write("last", &self.last);
        last.clone().map(|(_, id)| id % 3).count().write("last counts", &self.counts);
        let last_results = results.clone().key_by(|result| result.1).last_by_key("last results");
        last_results.clone().write("last results", &self.last_results);
        last.clone().join_map(last_results, |key, id, result| (*key, *id, result.2)).write("both", &self.both);
        let halves = last.clone().map(|(key, id)| (key % 2, id));
        results.clone().key_by(|result| result.1 % 3).left_join_table(halves).write("left", &self.left);
        let joined = results.key_by(|result| result.1).join_table(last);
        joined.clone().write("joined", &self.joined);
        joined
            .key_by(|(result, _)| result.1)
            .window(Window::tumbling(Duration::from_millis(BEHIND.unsigned_abs())))
            .aggregate("behind", |each| (each.count(), each.sum(|(_, id)| i64::from(*id))))
            .on_close()
            .map(|row| (row.window.end.millis(), row.key, row.value.0, row.value.1 as i64))
            .write("behind", &self.behind);
    }

    /// Compares all outputs at every epoch with the computation from the records and the windows' results; `complete`
    /// if all windows have closed.
    pub fn check(&self, complete: bool) -> Result<(), String> {
        let (deals, results) = (self.deals.epochs(), self.results.epochs());
        let mut naive = NaiveTables::default();
        let mut views = (
            TableContents::of(&self.last),
            TableContents::of(&self.counts),
            TableContents::of(&self.last_results),
            TableContents::of(&self.both),
        );
        let (joined, left) = (self.joined.epochs(), self.left.epochs());
        let epochs: BTreeSet<Epoch> = deals.keys().chain(results.keys()).copied().collect();
        for epoch in epochs {
            for (deal, _) in deals.get(&epoch).into_iter().flatten() {
                naive.take(deal);
            }
            let closed: Vec<Counted> = results.get(&epoch).into_iter().flatten().map(|(row, _)| *row).collect();
            closed.iter().for_each(|result| naive.take_result(*result));
            views.0.check(epoch, "table rows", &naive.last())?;
            views.1.check(epoch, "counts of a table", &naive.counts())?;
            views.2.check(epoch, "rows of a table of results", &naive.results)?;
            views.3.check(epoch, "joined tables", &naive.both())?;
            at(epoch, "joined rows", joined.get(&epoch), &naive.joined(&closed))?;
            at(epoch, "left joined rows", left.get(&epoch), &naive.left(&closed))?;
        }
        if let Some(epoch) = joined.keys().chain(left.keys()).find(|epoch| !results.contains_key(epoch)) {
            return Err(format!("joined rows at epoch {epoch}, which has no results"));
        }
        views.0.check_over("table rows")?;
        views.1.check_over("counts of a table")?;
        views.2.check_over("rows of a table of results")?;
        views.3.check_over("joined tables")?;
        self.check_behind(complete)
    }

    /// Checks that the windows behind the join count each joined row once.
    fn check_behind(&self, complete: bool) -> Result<(), String> {
        let mut expected = BTreeMap::<(i64, u8), (i64, i64)>::new();
        for (((end, key, ..), id), times) in self.joined.epochs().into_values().flatten() {
            let window = ((end - 1).div_euclid(BEHIND) + 1) * BEHIND;
            let row = expected.entry((window, key)).or_default();
            *row = (row.0 + times as i64, row.1 + times as i64 * i64::from(id));
        }
        let expected = expected.into_iter().map(|((end, key), (count, sum))| ((end, key, count, sum), 1)).collect();
        let mut got = Multiset::new();
        for (row, diff) in self.behind.epochs().into_values().flatten() {
            *got.entry(row).or_default() += diff;
        }
        let whole: Multiset<_> = expected;
        let differs =
            if complete { got != whole } else { got.iter().any(|(row, count)| whole.get(row) != Some(count)) };
        if differs { Err(format!("rows behind a join:\n     got {got:?}\nexpected {whole:?}")) } else { Ok(()) }
    }

    /// Checks that another run has published the same at every epoch.
    pub fn check_equal(&self, other: &Tables) -> Result<(), String> {
        same("records", &self.deals, &other.deals)?;
        same("results", &self.results, &other.results)?;
        same("table rows", &self.last, &other.last)?;
        same("counts of a table", &self.counts, &other.counts)?;
        same("rows of a table of results", &self.last_results, &other.last_results)?;
        same("joined tables", &self.both, &other.both)?;
        same("joined rows", &self.joined, &other.joined)?;
        same("left joined rows", &self.left, &other.left)?;
        same("rows behind a join", &self.behind, &other.behind)
    }
}

/// Runs the query over one source.
pub fn run(data: &Data, run: TestRun) -> Result<(Tables, RunOutcome), String> {
    let (tables, source) = (Tables::default(), data.source());
    let shown = tables.clone();
    let outcome = run.run(move |flow| {
        let deals = flow.read("deals", &source);
        let counts = deals.clone().key_by(|deal| deal.key).window(Window::tumbling(Duration::from_millis(20)));
        let counts = counts.aggregate("counts", |each| (each.count(), each.last(|deal| deal.id))).on_close();
        shown.of(deals, counts.map(|row| (row.window.end.millis(), row.key, row.value.0, row.value.1)));
    });
    Ok((tables, outcome.map_err(|error| error.to_string())?))
}

/// Runs data in the epochs of `how`, and compares everything with the naive computation, and the metrics of tables with
/// the outputs.
pub fn check_tables(data: &Data, how: TestRun) -> Result<RunOutcome, String> {
    let (tables, outcome) = run(data, how)?;
    tables.check(outcome.report.ending == Ending::Complete)?;
    let summary = &outcome.report.summary;
    let figures: Vec<_> =
        summary.tables.iter().map(|table| (table.name.as_str(), table.received, table.compared)).collect();
    let (deals, results) = (tables.deals.all().len() as u64, tables.results.all().len() as u64);
    let expected = [("last", deals, deals), ("last results", results, results)];
    if figures != expected {
        return Err(format!(
            "figures of tables:
     got {figures:?}
expected {expected:?}"
        ));
    }
    Ok(outcome)
}

/// State of the naive computation, from all records so far.
#[derive(Default)]
struct NaiveTables {
    deals: BTreeMap<u8, BTreeMap<(i64, u32), Option<u32>>>,
    results: Multiset<(u8, Counted)>,
}

impl NaiveTables {
    /// Ids are in the order of source, partition and offset.
    fn take(&mut self, deal: &Deal) {
        self.deals.entry(deal.key).or_default().insert((deal.at_ms, deal.id), table_value(deal));
    }

    fn take_result(&mut self, result: Counted) {
        let newer = |(key, old): &(u8, Counted)| *key == result.1 && old.0 > result.0;
        if !self.results.keys().any(newer) {
            self.results.retain(|(key, _), _| *key != result.1);
            self.results.insert((result.1, result), 1);
        }
    }

    fn last(&self) -> Multiset<(u8, u32)> {
        let last = self.deals.iter().map(|(key, deals)| (*key, deals.last_key_value().and_then(|(_, id)| *id)));
        last.filter_map(|(key, id)| Some(((key, id?), 1))).collect()
    }

    fn counts(&self) -> Multiset<(u32, i64)> {
        let mut counts = BTreeMap::<u32, i64>::new();
        self.last().into_keys().for_each(|(_, id)| *counts.entry(id % 3).or_default() += 1);
        counts.into_iter().map(|count| (count, 1)).collect()
    }

    fn both(&self) -> Multiset<(u8, u32, i64)> {
        let results = |of: u8| self.results.keys().filter(move |(key, _)| *key == of);
        let last = self.last().into_keys();
        last.flat_map(|(key, id)| results(key).map(move |(_, row)| ((key, id, row.2), 1))).collect()
    }

    fn joined(&self, results: &[Counted]) -> Multiset<(Counted, u32)> {
        let last: BTreeMap<u8, u32> = self.last().into_keys().collect();
        results.iter().filter_map(|result| Some(((*result, *last.get(&result.1)?), 1))).collect()
    }

    fn left(&self, results: &[Counted]) -> Multiset<(Counted, Option<u32>)> {
        let mut rows = Multiset::new();
        for result in results {
            let ids = self.last().into_keys().filter(|(key, _)| key % 2 == result.1 % 3).map(|(_, id)| Some(id));
            let mut ids: Vec<_> = ids.collect();
            if ids.is_empty() {
                ids.push(None);
            }
            ids.into_iter().for_each(|id| *rows.entry((*result, id)).or_default() += 1);
        }
        rows
    }
}

/// Contents of a collection, advanced epoch by epoch.
struct TableContents<D> {
    left: BTreeMap<Epoch, Vec<(D, isize)>>,
    now: Multiset<D>,
}

impl<D: Record> TableContents<D> {
    fn of(captured: &Captured<D>) -> Self {
        TableContents { left: captured.epochs(), now: Multiset::new() }
    }

    /// Advances to an epoch, and compares the contents.
    fn check(&mut self, epoch: Epoch, what: &str, expected: &Multiset<D>) -> Result<(), String> {
        while let Some(changes) = self.left.first_entry().filter(|changes| *changes.key() <= epoch) {
            for (row, diff) in changes.remove() {
                *self.now.entry(row).or_default() += diff;
            }
        }
        self.now.retain(|_, count| *count != 0);
        let now = &self.now;
        if now == expected {
            return Ok(());
        }
        Err(format!("{what} at epoch {epoch}:\n     got {now:?}\nexpected {expected:?}"))
    }
}

impl<D> TableContents<D> {
    /// Checks that no change is left at epochs without records.
    fn check_over(&self, what: &str) -> Result<(), String> {
        match self.left.first_key_value() {
            None => Ok(()),
            Some((epoch, _)) => Err(format!("{what} change at epoch {epoch}, which had nothing")),
        }
    }
}

/// Compares the rows of an epoch.
fn at<D: Record>(
    epoch: Epoch,
    what: &str,
    got: Option<&Vec<(D, isize)>>,
    expected: &Multiset<D>,
) -> Result<(), String> {
    let got: Multiset<D> = got.into_iter().flatten().cloned().collect();
    if got == *expected {
        return Ok(());
    }
    Err(format!("{what} at epoch {epoch}:\n     got {got:?}\nexpected {expected:?}"))
}

fn same<D: Record>(what: &str, got: &Captured<D>, expected: &Captured<D>) -> Result<(), String> {
    let (got, expected) = (got.epochs(), expected.epochs());
    let differs = |epoch: &&Epoch| got.get(epoch) != expected.get(epoch);
    match got.keys().chain(expected.keys()).find(differs) {
        None => Ok(()),
        Some(epoch) => {
            let (got, expected) = (got.get(epoch), expected.get(epoch));
            Err(format!("{what} at epoch {epoch}:\n     got {got:?}\nexpected {expected:?}"))
        }
    }
}
