//! A query with views, readers that read them all the time while it runs, and a check of the answers.
//!
//! The correct contents at an epoch are computed from the records that the run itself published up to it; so the check
//! holds for any epochs, and over several incarnations of a state. Answers are kept as text, and compared when all
//! incarnations are over.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fastrand::Rng;
use serde::{Deserialize, Serialize};
use tidegate::differential_dataflow::{AsCollection, VecCollection};
use tidegate::job::Ending;
use tidegate::testing::{Captured, CrashingDisk, TestRun};
use tidegate::time::Epoch;
use tidegate::timely::dataflow::operators::vec::Map;
use tidegate::view::{Answer, Refusal, Subscription, SubscriptionEnd, ViewUpdate, Views};
use tidegate::{Flow, Record, Window};

use super::cases::{Data, Deal};
use super::checks::small_drift;
use super::incarnations::on;

/// Maximum number of incarnations that crash.
const MAX_CRASHES: usize = 8;
/// The size of the windows of the view `open`, in milliseconds.
const SIZE: i64 = 50;

/// Row of a key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
struct SumRow {
    key: u8,
    count: i64,
    sum: i128,
}

/// Returns the holder of a key: each amount moves from one holder to the next.
fn holder(key: u8) -> String {
    format!("k{}", key % 4)
}

/// Moves retractions to the odd epoch behind: no view may publish the state between the two.
fn retracted_behind<D: Record>(rows: VecCollection<'_, u64, D>) -> VecCollection<'_, u64, D> {
    let behind = |(row, epoch, diff): (D, u64, isize)| (row, if diff < 0 { epoch | 1 } else { epoch }, diff);
    rows.inner.map(behind).as_collection()
}

/// The views of the query.
const VIEWS: [&str; 5] = ["sums", "balances", "remainders", "by remainder", "open"];

/// Rows of a view: the row as text without its count, the key as text, the count.
type Texts = Vec<(String, String, isize)>;

/// Contents of a view at the epochs at which it changed.
type History = BTreeMap<u64, Texts>;

/// An open window's row: its end, its key, the number of records.
type OpenRow = (i64, u8, i64);

/// Outputs of the query from which the correct contents are computed.
#[derive(Clone, Default)]
struct ViewQueryCaptures {
    deals: Captured<Deal>,
    open: Captured<OpenRow>,
}

impl ViewQueryCaptures {
    fn query(&self, data: &Data, readers: &Readers) -> impl Fn(&Flow<'_>) + Send + Sync + 'static {
        let (source, own, readers) = (data.source(), self.clone(), readers.clone());
        move |flow| {
            let readers = readers.clone();
            // Also in the middle of an epoch, so that some answers are given within one.
            let deals = flow.read("deals", &source).inspect(move |deal| readers.read_one(u64::from(deal.id)));
            deals.clone().write("deals", &own.deals);
            let sums = deals.clone().key_by(|deal| deal.key).window(Window::global());
            let sums = sums.aggregate("sums", |each| (each.count(), each.sum(|deal| deal.amount)));
            let sums = sums.on_change().map(|row| SumRow { key: row.key, count: row.value.0, sum: row.value.1 });
            let given = deals.clone().flat_map(|deal| {
                let amount = i128::from(deal.amount);
                [(holder(deal.key), amount), (holder(deal.key + 1), -amount)]
            });
            let balances = given.key_by(|given| given.0.clone()).window(Window::global());
            let balances = balances.aggregate("balances", |each| each.sum(|given| given.1)).on_change();
            balances.map(|row| (row.key, row.value)).through(retracted_behind).view("balances");
            sums.clone().map(|sum| sum.count % 3).view("remainders");
            sums.clone().view_by("by remainder", |sum| sum.count % 3);
            sums.view("sums");
            let windows = deals.key_by(|deal| deal.key).window(Window::tumbling(Duration::from_millis(SIZE as u64)));
            let open = windows.aggregate("open", |each| each.count()).on_change();
            let open = open.map(|row| (row.window.end.millis(), row.key, row.value));
            open.clone().write("open", &own.open);
            open.view("open");
        }
    }

    /// Computes the correct contents of each view, epoch by epoch.
    fn histories(&self) -> BTreeMap<&'static str, History> {
        let mut histories = BTreeMap::<_, History>::new();
        let (mut sums, mut balances) = (BTreeMap::<u8, SumRow>::new(), BTreeMap::<String, i128>::new());
        for (epoch, deals) in self.deals.epochs() {
            for (deal, _) in deals {
                let sum = sums.entry(deal.key).or_insert(SumRow { key: deal.key, count: 0, sum: 0 });
                (sum.count, sum.sum) = (sum.count + 1, sum.sum + i128::from(deal.amount));
                *balances.entry(holder(deal.key)).or_default() += i128::from(deal.amount);
                *balances.entry(holder(deal.key + 1)).or_default() -= i128::from(deal.amount);
            }
            let of_sum =
                |SumRow { key, count, sum }: &SumRow| format!("{{\"key\":{key},\"count\":{count},\"sum\":{sum}");
            let mut put = |view, texts: Texts| histories.entry(view).or_default().insert(epoch.0, texts);
            put("sums", sums.values().map(|sum| (of_sum(sum), sum.key.to_string(), 1)).collect());
            let by_remainder = sums.values().map(|sum| (of_sum(sum), (sum.count % 3).to_string(), 1));
            put("by remainder", by_remainder.collect());
            let row =
                |(holder, cents): (&String, &i128)| (format!("{{\"row\":[\"{holder}\",{cents}]"), holder.clone(), 1);
            put("balances", balances.iter().map(row).collect());
            let mut remainders = BTreeMap::<i64, isize>::new();
            sums.values().for_each(|sum| *remainders.entry(sum.count % 3).or_default() += 1);
            let row = |(remainder, count)| (format!("{{\"row\":{remainder}"), format!("{remainder}"), count);
            put("remainders", remainders.into_iter().map(row).collect());
        }
        let (mut open, mut now) = (History::new(), BTreeMap::<OpenRow, isize>::new());
        for (epoch, changes) in self.open.epochs() {
            changes.into_iter().for_each(|(row, diff)| *now.entry(row).or_default() += diff);
            now.retain(|_, count| *count != 0);
            let text = |((end, key, count), rows): (&OpenRow, &isize)| {
                (format!("{{\"row\":[{end},{key},{count}]"), end.to_string(), *rows)
            };
            open.insert(epoch.0, now.iter().map(text).collect());
        }
        histories.insert("open", open);
        histories
    }
}

/// An answer of a view: rows with counts, of one epoch.
#[derive(Clone, Debug)]
struct TextRows {
    epoch: Epoch,
    /// Each row as text without its count, and the count.
    rows: Vec<(String, isize)>,
}

impl TextRows {
    fn new(answer: Answer) -> Result<TextRows, String> {
        let epoch = answer.epoch;
        let rows = answer.rows.map(|row| {
            let row = row.map_err(|error| error.to_string())?;
            let (text, diff) = row.rsplit_once(",\"diff\":").ok_or_else(|| format!("{row} has no count"))?;
            let diff = diff.strip_suffix('}').and_then(|diff| diff.parse().ok());
            Ok((text.to_owned(), diff.ok_or_else(|| format!("{row} has no count"))?))
        });
        Ok(TextRows { epoch, rows: rows.collect::<Result<_, String>>()? })
    }
}

/// A read of a view.
#[derive(Clone, Debug)]
struct Reading {
    view: &'static str,
    key: Option<String>,
    result: Result<TextRows, Refusal>,
}

/// A message to a subscriber.
#[derive(Clone, Debug)]
enum SubscriberMessage {
    State(TextRows),
    Changes(TextRows),
    Progress(Epoch),
    End(SubscriptionEnd),
}

/// Readers of the views of one incarnation.
#[derive(Clone)]
struct Readers {
    views: Arc<Views>,
    over: Arc<AtomicBool>,
    readings: Arc<Mutex<Vec<Reading>>>,
}

/// All answers of one incarnation.
struct IncarnationAnswers {
    readings: Vec<Reading>,
    heard: Vec<(&'static str, Option<String>, Vec<SubscriberMessage>)>,
}

/// Returns a random key, which mostly exists.
fn any_key(view: &str, random: &mut Rng) -> String {
    match view {
        "balances" => holder(random.u8(0..5)),
        "open" => (random.i64(0..40) * SIZE).to_string(),
        _ => random.u8(0..5).to_string(),
    }
}

impl Readers {
    fn new(run: &TestRun) -> Readers {
        Readers { views: run.views(), over: Arc::default(), readings: Arc::default() }
    }

    /// Reads one of the views, by a key or whole.
    fn read_one(&self, number: u64) {
        let mut random = Rng::with_seed(number);
        let view = *random.choice(&VIEWS).unwrap();
        let key = random.bool().then(|| any_key(view, &mut random));
        let result = self.views.get(view, key.as_deref()).map(|answer| TextRows::new(answer).unwrap());
        let mut readings = self.readings.lock().unwrap();
        readings.push(Reading { view, key, result });
    }

    /// Reads until the incarnation is over.
    fn read(&self, seed: u64) {
        let mut number = seed << 32;
        while !self.over.load(Ordering::Acquire) {
            self.read_one(number);
            number += 1;
            std::thread::sleep(Duration::from_micros(50));
        }
    }

    /// Subscribes as soon as the view answers, and listens until the subscription ends.
    fn listen(&self, view: &str, key: Option<&str>, seed: u64) -> Vec<SubscriberMessage> {
        let mut random = Rng::with_seed(seed);
        let mut subscription = loop {
            match self.views.subscribe(view, key) {
                Ok(subscription) => break subscription,
                Err(_) if self.over.load(Ordering::Acquire) => return Vec::new(),
                Err(_) => std::thread::sleep(Duration::from_micros(20)),
            }
        };
        let mut heard = Vec::new();
        while !matches!(heard.last(), Some(SubscriberMessage::End(_))) {
            heard.extend(next_message(&mut subscription, Duration::from_micros(random.u64(0..500))));
        }
        heard
    }

    /// Runs one incarnation with readers on other threads.
    fn life(
        self,
        seed: u64,
        run: impl FnOnce() -> Result<Ending, String>,
    ) -> (Result<Ending, String>, IncarnationAnswers) {
        let mut random = Rng::with_seed(seed);
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| self.read(seed));
            let listeners = VIEWS.map(|view| {
                let (key, seed) = (random.bool().then(|| any_key(view, &mut random)), random.u64(..));
                let (own, asked) = (&self, key.clone());
                (view, key, scope.spawn(move || own.listen(view, asked.as_deref(), seed)))
            });
            let result = run();
            self.over.store(true, Ordering::Release);
            reader.join().unwrap();
            let heard = listeners.map(|(view, key, listener)| (view, key, listener.join().unwrap()));
            let readings = self.readings.lock().unwrap().clone();
            (result, IncarnationAnswers { readings, heard: heard.into() })
        })
    }
}

/// Waits for the next message of a subscription; `None` after `most`.
fn next_message(subscription: &mut Subscription, most: Duration) -> Option<SubscriberMessage> {
    Some(match subscription.wait(most)? {
        ViewUpdate::State(answer) => SubscriberMessage::State(TextRows::new(answer).unwrap()),
        ViewUpdate::Changes(answer) => SubscriberMessage::Changes(TextRows::new(answer).unwrap()),
        ViewUpdate::Progress(epoch) => SubscriberMessage::Progress(epoch),
        ViewUpdate::End(end) => SubscriberMessage::End(end),
    })
}

/// Returns the correct rows of a view at an epoch.
fn expected_rows(history: &History, epoch: Epoch, key: Option<&str>) -> Vec<(String, isize)> {
    let texts = history.range(..=epoch.0).next_back().map(|(_, texts)| texts);
    let asked = texts.into_iter().flatten().filter(|(_, own, _)| key.is_none_or(|key| key == own));
    asked.map(|(text, _, count)| (text.clone(), *count)).collect()
}

fn same<T: PartialEq + std::fmt::Debug>(what: &str, got: &T, expected: &T) -> Result<(), String> {
    let cut = |value: &T| format!("{value:?}").chars().take(1500).collect::<String>();
    if got == expected { Ok(()) } else { Err(format!("{what}:\n     got {}\nexpected {}", cut(got), cut(expected))) }
}

impl IncarnationAnswers {
    /// Checks all answers; returns the last epoch that a reader got.
    fn check(&self, histories: &BTreeMap<&'static str, History>) -> Result<Option<Epoch>, String> {
        let empty = History::new();
        let of = |view: &str| histories.get(view).unwrap_or(&empty);
        let mut last = None;
        for Reading { view, key, result } in &self.readings {
            if let Ok(TextRows { epoch, rows }) = result {
                let expected = expected_rows(of(view), *epoch, key.as_deref());
                same(&format!("view `{view}` at epoch {epoch}, key {key:?}"), rows, &expected)?;
                last = last.max(Some(*epoch));
            }
        }
        for (view, key, heard) in &self.heard {
            last = last.max(check_heard(view, of(view), key.as_deref(), heard)?);
        }
        Ok(last)
    }

    /// Returns the greatest epoch that had to be replayed before views answered.
    fn needed(&self) -> Option<Epoch> {
        let refused = self.readings.iter().filter_map(|reading| match reading.result {
            Err(Refusal::NotReady { needs, .. }) => needs,
            _ => None,
        });
        refused.max()
    }

    /// Returns the first epoch of an answer.
    fn first(&self) -> Option<Epoch> {
        let told = self.readings.iter().filter_map(|reading| reading.result.as_ref().ok());
        let states = self.heard.iter().filter_map(|(_, _, heard)| match heard.first() {
            Some(SubscriberMessage::State(told)) => Some(told),
            _ => None,
        });
        told.chain(states).map(|told| told.epoch).min()
    }
}

/// Checks that a subscriber got every change once and nothing else; returns the last epoch that it got.
fn check_heard(
    view: &str,
    history: &History,
    key: Option<&str>,
    heard: &[SubscriberMessage],
) -> Result<Option<Epoch>, String> {
    let (mut now, mut told) = (BTreeMap::<String, isize>::new(), None);
    for (at, news) in heard.iter().enumerate() {
        let what = |epoch: Epoch| format!("a subscriber of view `{view}` at epoch {epoch}, key {key:?}");
        let epoch = match news {
            SubscriberMessage::End(SubscriptionEnd::Over) if at + 1 == heard.len() => break,
            SubscriberMessage::End(end) => return Err(format!("a subscriber of view `{view}` was told that {end}")),
            SubscriberMessage::State(TextRows { epoch, rows }) if at == 0 => {
                now.extend(rows.iter().cloned());
                *epoch
            }
            SubscriberMessage::Changes(TextRows { epoch, rows }) if at > 0 && !rows.is_empty() => {
                for (row, diff) in rows {
                    *now.entry(row.clone()).or_default() += diff;
                }
                now.retain(|_, count| *count != 0);
                // No epoch between the two may have changed anything: its change would have come by itself.
                let between = history.range(told.map_or(0, |Epoch(told)| told + 1)..epoch.0 & !1);
                let before = told.map(|told| expected_rows(history, told, key));
                if let Some((other, _)) =
                    between.into_iter().find(|(other, _)| Some(expected_rows(history, Epoch(**other), key)) != before)
                {
                    return Err(format!("{}: epoch {other} was left out", what(*epoch)));
                }
                *epoch
            }
            SubscriberMessage::Progress(epoch) if at > 0 => *epoch,
            other => return Err(format!("a subscriber of view `{view}` was told {other:?} as number {at}")),
        };
        if told >= Some(epoch) {
            return Err(format!("{} was told of epoch {told:?} before", what(epoch)));
        }
        told = Some(epoch);
        let expected = expected_rows(history, epoch, key).into_iter().collect();
        same(&what(epoch), &now, &expected)?;
    }
    Ok(told)
}

/// Runs the query over some data without a crash; every answer has to be correct, and the last ones have to contain all
/// records.
pub fn check_views(seed: u64, data: &Data, run: TestRun) -> Result<(), String> {
    let (shown, readers) = (ViewQueryCaptures::default(), Readers::new(&run));
    let (views, query) = (Arc::clone(&readers.views), shown.query(data, &readers));
    let act = || run.run(query).map(|outcome| outcome.report.ending).map_err(|error| error.to_string());
    let (result, life) = readers.life(seed, act);
    result?;
    let histories = shown.histories();
    life.check(&histories)?;
    for view in VIEWS {
        let answer = views.get(view, None).map_err(|refusal| refusal.to_string())?;
        let TextRows { epoch, rows } = TextRows::new(answer)?;
        let history = histories.get(view).cloned().unwrap_or_default();
        same(
            &format!("view `{view}` in the end, at epoch {epoch}"),
            &rows,
            &expected_rows(&history, Epoch(u64::MAX), None),
        )?;
        for (own, _, heard) in life.heard.iter().filter(|(own, ..)| *own == view) {
            let told = heard.iter().rev().find_map(|heard| match heard {
                SubscriberMessage::State(told) | SubscriberMessage::Changes(told) => Some(told.epoch),
                SubscriberMessage::Progress(epoch) => Some(*epoch),
                SubscriberMessage::End(_) => None,
            });
            same(&format!("the last epoch that a subscriber of view `{own}` was told of"), &told, &Some(epoch))?;
        }
    }
    Ok(())
}

/// Runs the query over random data through crashes to the end. In each incarnation views answer once they contain
/// everything that was committed, with correct contents, and never with less than an earlier incarnation answered.
///
/// Returns the number of incarnations whose views refused to answer before the replay had reached an epoch.
pub fn check_views_over_lives(seed: u64, run: impl Fn() -> TestRun) -> Result<usize, String> {
    let mut random = Rng::with_seed(seed);
    let (data, shown) = (Data::random(&mut random, 200), ViewQueryCaptures::default());
    let (mut disk, mut lives) = (CrashingDisk::new(), Vec::new());
    for number in 0.. {
        if number < MAX_CRASHES {
            disk.crash_at(random.usize(20..300));
        }
        let run = on(&disk, &mut random, run()).options(small_drift(1_000_000));
        let readers = Readers::new(&run);
        let query = shown.query(&data, &readers);
        let act = || run.run(query).map(|outcome| outcome.report.ending).map_err(|error| error.to_string());
        let (result, life) = readers.life(random.u64(..), act);
        lives.push(life);
        match result {
            Ok(Ending::Stopped) => return Err(format!("life {number} stopped")),
            Ok(Ending::Complete | Ending::WasComplete) => break,
            Err(_) if disk.has_crashed() => disk = disk.survivors(random.u64(..)),
            Err(error) => return Err(format!("life {number}: {error}")),
        }
    }
    let (histories, records) = (shown.histories(), shown.deals.epochs());
    let mut seen = None;
    for (number, life) in lives.iter().enumerate() {
        let told = life.check(&histories).map_err(|why| format!("life {number}: {why}"))?;
        if let Some((first, seen)) = life.first().zip(seen).filter(|(first, seen)| first < seen) {
            return Err(format!(
                "life {number} answers as of epoch {first}, and what happened at {seen} was answered before"
            ));
        }
        // An epoch without records need not be in the journal, and the next incarnation may not have it.
        let happened = told.and_then(|told| records.range(..=told).next_back().map(|(epoch, _)| *epoch));
        seen = seen.max(happened);
    }
    Ok(lives.iter().filter(|life| life.needed().is_some()).count())
}
