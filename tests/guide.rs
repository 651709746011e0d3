//! The Rust code of `docs/guide.md` and of the pages beside it, compiled, and run where it needs no broker.
//!
//! It exists because code in a manual that does not compile is worse than none. `tests/docs.rs` checks that each block of the
//! manual's Rust code is here, line for line.
#![expect(clippy::unwrap_used, reason = "a panic fails the test")]
#![expect(clippy::redundant_closure_for_method_calls, reason = "the guide writes aggregates as closures")]

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension};
use serde::{Deserialize, Serialize};
use tidegate::durable::journal::{JournalEnds, PartitionProgress};
use tidegate::durable::{Incarnation, PublishedEpoch};
use tidegate::error::ErrorKind;
use tidegate::kafka::{Decode, Message};
use tidegate::sink::{Sink, SinkContext, SinkWriter};
use tidegate::source::channel::channel;
use tidegate::source::memory::MemorySource;
use tidegate::source::{
    NullReader, PartitionHandle, PartitionTracker, Polled, RawRecord, Reader, RestoredPartition, Source, TimeOf,
    WorkerContext, time_of,
};
use tidegate::stream::aggregate::Accumulator;
use tidegate::stream::{Firing, Preceding};
use tidegate::testing::{Captured, Script, TestRun};
use tidegate::time::Epoch;
use tidegate::view::ViewUpdate;
use tidegate::{
    Closed, Collection, Error, EventTime, Flow, Job, Open, Real, Result, State, Stream, Window, csv, kafka, ndjson,
};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
struct Transaction {
    id: u64,
    account: String,
    merchant: String,
    amount_cents: i64,
    currency: String,
    at_ms: i64,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
struct Account {
    name: String,
    country: String,
    at_ms: i64,
    deleted: bool,
}

/// A sum and how many it was made of, as a user's own aggregate.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
struct Bits(u64);

impl Accumulator for Bits {
    fn merge(&mut self, other: &Self) {
        self.0 |= other.0;
    }
}

fn transactions(count: u64) -> Vec<Transaction> {
    let made = |id: u64| Transaction {
        id,
        account: format!("account-{}", id % 3),
        merchant: format!("merchant-{}", id % 5),
        amount_cents: id as i64 * 100,
        currency: "EUR".into(),
        at_ms: 1_700_000_000_000 + id as i64 * 1_000,
    };
    (0..count).map(made).collect()
}

/// Builds the steps of a query without running it: names, types and windows are checked.
fn plans(query: impl Fn(&Flow<'_>) + Send + Sync + 'static) {
    let steps = Job::new("plan").plan(query).unwrap();
    assert!(!steps.is_empty());
}

fn in_memory() -> MemorySource<Transaction> {
    MemorySource::new(vec![transactions(100)], |t: &Transaction| t.at_ms)
}

#[test]
fn sources() {
    let topic = kafka::Source::json("localhost:9092", "transaction")
        .event_time(|t: &Transaction| t.at_ms)
        .out_of_order(Duration::from_secs(2)) // how far a record may be behind its partition's latest
        .idle_after(Duration::from_secs(10)) // a quiet partition no longer holds windows open after this
        .from(kafka::StartOffset::Latest);
    let table = csv::Source::new("transactions.csv").event_time(|t: &Transaction| t.at_ms);
    let tabs = csv::Source::new("transactions.tsv").delimiter('\t').event_time(|t: &Transaction| t.at_ms);
    let lines = ndjson::Source::new("transactions.ndjson").event_time(|t: &Transaction| t.at_ms);
    assert!(!std::any::type_name_of_val(&(topic, table, tabs, lines)).is_empty());
}

#[test]
fn messages() {
    let keyed = kafka::json()
        .with_meta(|t: Transaction, message: &Message<'_>| {
            let trace = message.header("trace").map(|value| String::from_utf8_lossy(value).into_owned());
            (t, trace, message.partition(), message.offset())
        })
        .skip_tombstones();
    let traced = kafka::Source::new("localhost:9092", "transaction", keyed).event_time_of_message();

    let readings = kafka::Source::new("localhost:9092", "reading", |message: &Message<'_>| {
        let Some(device) = message.key() else { return Ok(None) }; // skipped, and counted
        let value = message.value().ok_or("no reading")?; // rejected, with its place
        Ok(Some((device.to_vec(), value.to_vec())))
    })
    .event_time_of_header("measured-at");
    assert!(!std::any::type_name_of_val(&(traced, readings)).is_empty());
}

#[test]
fn emissions() {
    let transactions = in_memory();
    plans(move |flow| {
        let totals = flow
            .read("transactions", &transactions)
            .key_by(|t| t.account.clone())
            .window(Window::sliding(MINUTE, 10 * SECOND))
            .allowed_lateness(5 * SECOND)
            .aggregate("totals", |each| (each.count(), each.sum(|t| t.amount_cents)));

        let last: Stream<'_, Closed<String, (i64, i128)>> = totals.on_close();
        let live: Collection<'_, Open<String, (i64, i128)>> = totals.on_change();
        let early: Collection<'_, Open<String, (i64, i128)>> = totals.on_fire();
        let every_second: Stream<'_, Open<String, (i64, i128)>> = totals.every(SECOND);
        let late: Stream<'_, Transaction> = totals.late();
        let sink = Captured::new();
        last.map(|row| row.value.0).write("last", &sink);
        live.map(|row| row.value.0).write("live", &Captured::new());
        early.map(|row| row.value.0).write("early", &Captured::new());
        let hundreds: Stream<'_, Firing<String, i128>> = flow
            .read("more transactions", &transactions)
            .key_by(|t| t.account.clone())
            .window(Window::tumbling(MINUTE))
            .every_n(100)
            .discarding()
            .aggregate("hundreds", |each| each.sum(|t| t.amount_cents))
            .all();
        hundreds.write("hundreds", &Captured::new());
        every_second.map(|row| row.value.0).write("every second", &Captured::new());
        late.write("late", &Captured::new());
    });
}

#[test]
fn aggregates() {
    let transactions = in_memory();
    plans(move |flow| {
        flow.read("transactions", &transactions)
            .key_by(|t| t.account.clone())
            .window(Window::days("Europe/Lisbon"))
            .aggregate("spending", |each| {
                (
                    each.sum(|t| t.amount_cents),
                    each.max(|t| t.amount_cents),
                    each.last(|t| t.merchant.clone()),
                    each.arg_max(|t| t.amount_cents, |t| t.id),
                    each.top(3, |t| (t.amount_cents, t.merchant.clone())),
                    each.approx_count_distinct(|t| t.merchant.clone()),
                    each.quantiles([0.5, 0.99], |t| t.amount_cents),
                    each.merge(|t| Bits(1 << (t.id % 64))),
                )
            })
            .on_close()
            .write("spending", &Captured::new());
        flow.read("more transactions", &transactions)
            .key_by(|t| t.account.clone())
            .window(Window::days("Europe/Lisbon"))
            .aggregate("spending in dollars", |each| {
                let dollars = |t: &Transaction| (t.currency == "USD").then_some(t.amount_cents);
                (
                    each.count(),
                    each.count_if(|t| t.currency == "USD"),
                    each.filter(|t| t.amount_cents > 0, |each| each.last(|t| t.merchant.clone())),
                    each.filter_map(dollars, |each| (each.sum(|cents| *cents), each.max(|cents| *cents))),
                )
            })
            .on_close()
            .write("spending in dollars", &Captured::new());
        flow.read("named transactions", &transactions)
            .key_by(|t| t.account.clone())
            .window(Window::tumbling(MINUTE))
            .aggregate("spending by name", |each| {
                (
                    each.named("count", each.count()),
                    each.named("cents", each.sum(|t| t.amount_cents)),
                    each.named("least", each.if_any(each.min(|t| t.amount_cents))),
                )
            })
            .on_close()
            .write("spending by name", &Captured::new());
    });
}

#[test]
fn channels() -> Result<()> {
    let folder = tempfile::tempdir().unwrap();
    let words: Vec<(String, i64)> = (1..=50).map(|at| (format!("word {at}"), at * 1_000)).collect();
    let (state, shown) = (folder.path().join("state"), Captured::<String>::new());
    let output = shown.clone();
    let (sender, source) = channel::<(String, i64)>(1_000); // at most so many wait
    let source = source.event_time(|word| word.1);
    let sending = std::thread::spawn(move || {
        for word in &words[sender.position()? as usize..] {
            sender.send(word.clone())?;
        }
        sender.close();
        sender.wait_until_published(words.len() as u64)
    });
    Job::new("words")
        .state(State::at(&state))
        .run(move |flow| flow.read("words", &source).map(|word| word.0).write("words", &output))?;
    sending.join().unwrap()?;
    assert_eq!(shown.all().len(), 50);
    Ok(())
}

#[test]
fn running_aggregates() {
    let transactions = in_memory();
    plans(move |flow| {
        let moving: Stream<'_, (Transaction, Real)> = flow
            .read("transactions", &transactions)
            .key_by(|t| t.account.clone())
            .over("moving mean", Preceding::rows(9), |each| each.mean(|t| t.amount_cents))
            .values();
        let spent: Stream<'_, (Transaction, i128)> = flow
            .read("transactions again", &transactions)
            .key_by(|t| t.account.clone())
            .over("spent in a minute", Preceding::range(MINUTE), |each| each.sum(|t| t.amount_cents))
            .values();
        moving.map(|(t, mean)| (t.id, mean)).write("moving", &Captured::new());
        spent.map(|(t, cents)| (t.id, cents)).write("spent", &Captured::new());
    });
}

#[test]
fn state_by_key() {
    let transactions = in_memory();
    plans(move |flow| {
        let accounts = flow.read("transactions", &transactions).key_by(|t| t.account.clone());
        let silent = accounts.keyed_state(
            "silence",
            |at, count: &mut Option<u64>, _transaction| {
                *count.get_or_insert(0) += 1;
                at.clear_timers();
                at.set_timer_in(5 * MINUTE);
            },
            |at, count| {
                if let Some(count) = count.take() {
                    at.emit((at.key().clone(), count));
                }
            },
        );
        silent.emitted().write("silent", &Captured::new());
    });
}

#[test]
fn tables_and_joins() {
    let transactions = in_memory();
    let accounts = MemorySource::new(vec![Vec::<Account>::new()], |a: &Account| a.at_ms);
    plans(move |flow| {
        let countries = flow
            .read("accounts", &accounts)
            .key_by(|a| a.name.clone())
            .last_by_key_with("countries", |a| (!a.deleted).then(|| a.country.clone()));

        flow.read("transactions", &transactions)
            .key_by(|t| t.account.clone())
            .join_table(countries.clone()) // as of the epoch in which the transaction comes
            .map(|(transaction, country)| (country, transaction.amount_cents))
            .write("by country", &Captured::new());

        let per_country: Collection<'_, (String, i64)> = countries.map(|(_, country)| (country, ())).count_by_key();
        per_country.write("accounts by country", &Captured::new());
    });
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
struct Order {
    order: u64,
    at_ms: i64,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
struct Payment {
    order: u64,
    cents: i64,
    at_ms: i64,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
struct Sale {
    currency: String,
    amount: i64,
    at_ms: i64,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
struct Rate {
    currency: String,
    cents: i64,
    at_ms: i64,
}

#[test]
fn joins_by_event_time() {
    let sales = MemorySource::new(vec![Vec::<Sale>::new()], |sale: &Sale| sale.at_ms);
    let rates = MemorySource::new(vec![Vec::<Rate>::new()], |rate: &Rate| rate.at_ms);
    let orders = MemorySource::new(vec![Vec::<Order>::new()], |order: &Order| order.at_ms);
    let payments = MemorySource::new(vec![Vec::<Payment>::new()], |payment: &Payment| payment.at_ms);
    plans(move |flow| {
        let payments = flow.read("payments", &payments).key_by(|p| p.order);
        let paid = flow
            .read("orders", &orders)
            .key_by(|o| o.order)
            .join_within("paid", payments, Duration::ZERO, 60 * MINUTE) // payments up to an hour after the order
            .left_outer(|order, _, payment| (*order, payment.map(|p| p.cents)));

        let rows: Stream<'_, (u64, Option<i64>)> = paid.results();
        let late_orders: Stream<'_, Order> = paid.late_left();
        rows.write("paid", &Captured::new());
        late_orders.write("late orders", &Captured::new());

        let rates = flow.read("rates", &rates).key_by(|rate| rate.currency.clone());
        let prices = flow
            .read("sales", &sales)
            .key_by(|sale| sale.currency.clone())
            .join_as_of("prices", rates) // the last rate that is not later; or `.forward()`, `.nearest()`
            .tolerance(10 * MINUTE)
            .left_outer(|_, sale, rate| (sale.amount, rate.map(|rate| rate.cents)));
        prices.results().write("prices", &Captured::new());
    });
}

#[test]
fn collections_and_iteration() {
    let transactions = in_memory();
    plans(move |flow| {
        let payments = flow.read("transactions", &transactions);
        let pairs = payments.clone().map(|t| (t.account, t.merchant));
        let ever: Collection<'_, (String, String)> = pairs.clone().collect("ever"); // every event, for ever
        let hour: Collection<'_, (String, String)> = pairs.live_for("last hour", 60 * MINUTE);

        ever.count().write("payments of all time", &Captured::new());
        let reached = hour.clone().iterate(1_000, move |scope, known| {
            let hour = scope.enter(&hour); // the same in every round
            let by_receiver = known.clone().map(|(from, to)| (to, from));
            by_receiver.join_map(hour, |_, from, to| (from.clone(), to.clone())).concat(known).distinct()
        });
        reached.into_stream(&payments).write("reached", &Captured::new());

        let day: Collection<'_, Transaction> = payments.clone().live_for("last day", 24 * 60 * MINUTE);
        let spent: Collection<'_, Open<String, (i64, i64)>> = day
            .window_by(|t| t.account.clone(), |t| t.at_ms, Window::tumbling(MINUTE))
            .aggregate("spent by minute", |each| (each.count(), each.max(|t| t.amount_cents)));
        spent.write("spent by minute", &Captured::new());
    });
}

#[test]
fn operators_of_differential_dataflow() {
    let transactions = in_memory();
    plans(move |flow| {
        flow.read("transactions", &transactions)
            .key_by(|t| t.account.clone())
            .window(Window::global())
            .aggregate("balances", |each| each.sum(|t| t.amount_cents))
            .on_change()
            .map(|row| (row.key, row.value))
            .through(|balances| balances.map(|(_account, cents)| cents.signum()).count())
            .write("accounts in debt, at zero, in credit", &Captured::new());
    });
}

/// The program of the guide's section about views; it runs until its topic ends, which it never does.
fn views() -> Result<()> {
    let transactions = kafka::Source::json("localhost:9092", "transaction").event_time(|t: &Transaction| t.at_ms);
    let job = Job::new("totals").workers(2);
    let views = job.views(); // before the job runs: a view that nobody can read is not kept, and costs nothing
    std::thread::spawn(move || {
        let mut subscription = loop {
            match views.subscribe("totals", None) {
                Ok(subscription) => break subscription,
                Err(not_ready) => eprintln!("{not_ready}"),
            }
            std::thread::sleep(Duration::from_millis(100));
        };
        if let Ok(answer) = views.get("totals", Some("account-000001")) {
            println!("at epoch {}: {:?}", answer.epoch, answer.rows.collect::<Vec<_>>()); // JSON, as an NDJSON file has it
        }
        loop {
            match subscription.wait(Duration::from_secs(1)) {
                Some(ViewUpdate::State(answer)) => println!("epoch {}: {} rows", answer.epoch, answer.rows.len()),
                Some(ViewUpdate::Changes(answer)) => println!("epoch {}: {} changes", answer.epoch, answer.rows.len()),
                Some(ViewUpdate::Progress(epoch)) => println!("nothing else up to epoch {epoch}"),
                Some(ViewUpdate::End(why)) => return println!("{why}"),
                None => {}
            }
        }
    });
    job.run(move |flow| {
        flow.read("transactions", &transactions)
            .key_by(|t| t.account.clone())
            .window(Window::global())
            .aggregate("totals", |each| each.sum(|t| t.amount_cents))
            .on_change()
            .map(|row| (row.key, row.value))
            .view("totals"); // found by its first column; view_by("totals", |row| …) takes another key
    })?;
    Ok(())
}

#[test]
fn views_compile() {
    let program: fn() -> Result<()> = views;
    assert!(size_of_val(&program) > 0);
}

#[test]
fn tests_of_queries() -> Result<()> {
    let record = |key: &str, at_ms: i64| (key.to_owned(), at_ms);
    let input = MemorySource::new(vec![vec![record("a", 100), record("a", 2_500)], vec![record("b", 1_000)]], |r| r.1)
        .out_of_order(Duration::ZERO);
    let script = Script::new() // the first epoch takes a record of partition 0, and finds partition 1
        .epoch(|e| e.take(0, 1).find(1))
        .epoch(|e| e.take(0, 1).take(1, 1).end(0).end(1));
    let counts = Captured::new();
    let output = counts.clone();
    TestRun::new().workers(2).script("input", script).run(move |flow| {
        flow.read("input", &input)
            .key_by(|r| r.0.clone())
            .window(Window::tumbling(Duration::from_secs(1)))
            .aggregate("counts", |each| each.count())
            .on_close()
            .map(|row| (row.window.end.millis(), row.key, row.value))
            .write("counts", &output);
    })?;
    assert_eq!(counts.all(), [(1_000, "a".into(), 1), (2_000, "b".into(), 1), (3_000, "a".into(), 1)]);
    Ok(())
}

/// A part of a query is a function of streams.
fn per_minute(transactions: Stream<'_, Transaction>) -> Stream<'_, (EventTime, String, i64)> {
    transactions
        .key_by(|t| t.account.clone())
        .window(Window::tumbling(MINUTE))
        .aggregate("per minute", |each| each.count())
        .on_close()
        .map(|row| (row.window.end, row.key, row.value))
}

#[test]
fn quiet_streams() -> Result<()> {
    let input = MemorySource::new(vec![transactions(100), transactions(1)], |t: &Transaction| t.at_ms);
    let counted = |script: Script| -> Result<Vec<(EventTime, String, i64)>> {
        let (input, counts) = (input.clone(), Captured::new());
        let output = counts.clone();
        let query = move |flow: &Flow<'_>| per_minute(flow.read("input", &input)).write("counts", &output);
        TestRun::new().script("input", script).run(query)?;
        Ok(counts.all())
    };
    let quiet = Script::new().epoch(|e| e.take(0, 100).find(1)); // partition 1 has nothing, and holds all windows open
    assert_eq!(counted(quiet.clone())?, []);
    assert!(counted(quiet.epoch(|e| e.idle(1)))?.len() > 1); // and here no more
    Ok(())
}

#[test]
fn results_do_not_depend_on_workers() -> Result<()> {
    let input = in_memory();
    let mut expected = std::collections::BTreeMap::new();
    for t in transactions(100) {
        let end = (t.at_ms / 60_000 + 1) * 60_000;
        *expected.entry((EventTime::from_millis(end), t.account)).or_insert(0) += 1;
    }
    let expected: Vec<_> = expected.into_iter().map(|((end, account), count)| (end, account, count)).collect();
    for workers in 1..4 {
        let (input, counts) = (input.clone(), Captured::new());
        let output = counts.clone();
        let query = move |flow: &Flow<'_>| per_minute(flow.read("input", &input)).write("counts", &output);
        TestRun::new().workers(workers).seed(7 * workers as u64).run(query)?;
        assert_eq!(counts.all(), expected);
    }
    Ok(())
}

#[test]
fn in_a_service() -> Result<()> {
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path().join("state");
    let (sender, transactions_of_the_service) = channel::<Transaction>(1_000);
    let transactions = transactions_of_the_service.event_time(|t: &Transaction| t.at_ms);
    let sending = std::thread::spawn(move || {
        for transaction in self::transactions(100) {
            sender.send(transaction).unwrap();
        }
        sender // while it is there, more may come
    });
    let job = Job::new("totals").state(State::at(&state)).workers(2);
    let (stop, watcher, views, metrics) = (job.stopper(), job.watcher(), job.views(), job.metrics());
    let running = std::thread::spawn(move || {
        job.run(move |flow| {
            let totals = flow
                .read("transactions", &transactions)
                .key_by(|t| t.account.clone())
                .window(Window::global())
                .aggregate("totals", |each| each.sum(|t| t.amount_cents));
            totals.on_change().map(|row| (row.key, row.value)).view("totals");
        })
    });
    // Requests are answered by any thread, also an asynchronous runtime's: nothing here waits.
    let answer = loop {
        match views.get("totals", Some("account-1")) {
            Ok(answer) if answer.rows.len() > 0 => break answer,
            _ => std::thread::sleep(Duration::from_millis(10)), // it has not begun, or says why it cannot answer
        }
    };
    println!("epoch {}: {:?}; {:?}", answer.epoch, answer.rows.collect::<Vec<_>>(), watcher.status());
    println!("{} records", metrics.source("transactions").read.get());
    stop.stop(); // at the end of your program: the current epoch is published, and a last snapshot made
    let report = running.join().unwrap()?;
    println!("{}", report.summary);
    assert_eq!(report.ending, tidegate::job::Ending::Stopped);
    drop(sending.join());
    Ok(())
}

#[test]
fn from_flink() {
    let transactions = in_memory();
    let (results, too_late, alerts) = (Captured::new(), Captured::new(), Captured::new());
    plans(move |flow| {
        let accounts = flow.read("transactions", &transactions);
        let counts = accounts
            .clone()
            .key_by(|t| t.account.clone())
            .window(Window::sliding(10 * SECOND, 5 * SECOND))
            .allowed_lateness(MINUTE)
            .aggregate("counts", |each| each.count());
        counts.on_fire().map(|row| (row.window.end, row.key, row.value)).write("counts", &results);
        counts.late().write("too late", &too_late);

        let spenders = accounts.key_by(|t| t.account.clone()).keyed_state(
            "spenders",
            |at, spent: &mut Option<i64>, t| {
                if spent.is_none() {
                    at.set_timer_in(MINUTE);
                }
                *spent.get_or_insert(0) += t.amount_cents;
            },
            |at, spent| match spent.take() {
                Some(cents) if cents > 100_000 => at.emit((at.key().clone(), cents)),
                _ => {}
            },
        );
        spenders.emitted().write("spenders", &alerts);
    });
}

#[test]
fn from_kafka_streams() {
    let (transactions, results) = (in_memory(), Captured::new());
    let accounts = MemorySource::new(vec![Vec::<Account>::new()], |a: &Account| a.at_ms);
    plans(move |flow| {
        let countries = flow
            .read_first("accounts", &accounts)
            .key_by(|a| a.name.clone())
            .last_by_key_with("countries", |a| (!a.deleted).then(|| a.country.clone()));
        flow.read("transactions", &transactions)
            .key_by(|t| t.account.clone())
            .join_table(countries)
            .key_by(|(_, country)| country.clone())
            .window(Window::tumbling(60 * MINUTE))
            .allowed_lateness(MINUTE)
            .aggregate("by country", |each| each.count())
            .on_close()
            .map(|row| (row.window.end, row.key, row.value))
            .write("by country", &results);
    });
}

#[test]
fn from_differential_dataflow() {
    let transactions = in_memory();
    plans(move |flow| {
        let pairs: Collection<'_, (String, String)> = flow
            .read("transactions", &transactions)
            .map(|t| (t.account, t.merchant))
            .live_for("last hour", 60 * MINUTE); // retracted by the watermark
        let degrees = pairs.through(|pairs| pairs.map(|(from, _to)| from).count());
        degrees.for_each_epoch("degrees", |epoch, changes| {
            println!("epoch {epoch}: {} changes", changes.len());
            Ok(())
        });
    });
}

#[test]
fn errors() {
    let missing = csv::Source::new("is-not-there.csv").event_time(|row: &(i64, i64)| row.0);
    let job = Job::new("errors");
    let query = move |flow: &Flow<'_>| {
        flow.read("rows", &missing).write("rows", &Captured::new());
    };
    let failed = job.run(query).unwrap_err();
    match failed.kind() {
        ErrorKind::StateInUse => println!("another process holds the state"),
        ErrorKind::SourceUnreachable | ErrorKind::ProcessLost => println!("try again later: {failed}"),
        ErrorKind::Usage | ErrorKind::QueryChanged => println!("the program has to change: {failed}"),
        _ => println!("{failed}"), // one line: what failed, where, why, and what to do
    }
    assert_eq!(failed.kind(), ErrorKind::SourceUnreachable);
    assert!(failed.place().is_some_and(|place| place.contains("is-not-there.csv")), "{failed}");
}

#[test]
fn state_directories() -> Result<()> {
    let directory = tempfile::tempdir().unwrap();
    let directory: &Path = directory.path();
    let transactions = in_memory();
    let results = ndjson::Sink::new(directory.join("counts.ndjson"));
    let report = Job::new("counts")
        .state(State::at(directory.join("state")).snapshot_every(Duration::from_secs(1)).keep_snapshots(3))
        .run(move |flow| per_minute(flow.read("transactions", &transactions)).write("counts", &results))?;
    assert_eq!(report.ending, tidegate::job::Ending::Complete);
    assert!(std::fs::read_to_string(directory.join("counts.ndjson")).unwrap().lines().count() > 0);
    Ok(())
}

/// A word and its event time.
type Line = (String, i64);

/// Lines that a service keeps, and gives from any offset on.
#[derive(Clone, Default)]
struct LineLog(Arc<Mutex<Vec<String>>>);

impl LineLog {
    fn lines(&self, from: u64, most: usize) -> Vec<String> {
        self.0.lock().unwrap().iter().skip(from as usize).take(most).cloned().collect()
    }
}

impl Source for LineLog {
    type Item = Line;

    fn describe(&self) -> String {
        "the log of lines".into()
    }

    fn event_time(&self) -> TimeOf<Line> {
        time_of(|line: &Line| line.1)
    }

    fn out_of_order(&self) -> Option<Duration> {
        None // as the job's options say
    }

    fn open(&self, at: &WorkerContext) -> Result<Box<dyn Reader<Line>>> {
        if at.owns(0) { Ok(Box::new(LineReader { log: self.clone(), slot: None })) } else { Ok(Box::new(NullReader)) }
    }
}

struct LineReader {
    log: LineLog,
    slot: Option<PartitionHandle>, // the only partition, once it is found
}

impl LineReader {
    fn take(&self, epoch: Epoch, most: usize, tracker: &mut PartitionTracker<Line>) -> Result<usize> {
        let Some(slot) = self.slot else { return Ok(0) };
        let lines = self.log.lines(tracker.next(slot), most);
        for (offset, line) in (tracker.next(slot)..).zip(&lines) {
            let found = RawRecord::new(offset, line.as_bytes());
            match line.split_once(' ').and_then(|(word, at)| Some((word.to_owned(), at.parse().ok()?))) {
                Some(record) => tracker.accept(epoch, slot, found, record)?,
                None => tracker.reject(epoch, slot, found, "it is not a word and a time")?,
            }
        }
        Ok(lines.len())
    }
}

impl Reader<Line> for LineReader {
    fn resume(
        &mut self,
        epoch: Epoch,
        places: &[RestoredPartition],
        tracker: &mut PartitionTracker<Line>,
    ) -> Result<()> {
        self.slot = places.first().map(|place| tracker.resume(epoch, place)); // where the snapshot was
        Ok(())
    }

    fn replay(
        &mut self,
        epoch: Epoch,
        bounds: &[PartitionProgress],
        tracker: &mut PartitionTracker<Line>,
    ) -> Result<bool> {
        let [bound] = bounds else { return Ok(true) };
        let start = bound.start_offset.unwrap_or(0);
        let slot = *self.slot.get_or_insert_with(|| tracker.track(epoch, 0, start, bound.end_offset));
        let missing = bound.next_offset - tracker.next(slot); // the epoch takes again exactly what it took
        let taken = self.take(epoch, missing as usize, tracker)?;
        tracker.replay_flags(slot, bound);
        if taken as u64 == missing { Ok(true) } else { Err(Error::new("the log has lost lines")) }
    }

    fn poll(&mut self, epoch: Epoch, most: usize, tracker: &mut PartitionTracker<Line>) -> Result<Polled> {
        self.slot.get_or_insert_with(|| tracker.track(epoch, 0, 0, None));
        Ok(Polled::new(epoch, self.take(epoch, most, tracker)? > 0))
    }
}

/// A table of words in a SQLite database.
struct Words(PathBuf);

fn failed(why: rusqlite::Error) -> Error {
    Error::of(ErrorKind::SinkFailed, "cannot use the database").caused_by(why)
}

impl Sink<String> for Words {
    fn describe(&self) -> String {
        format!("database {}", self.0.display())
    }

    fn open(&self, at: &SinkContext) -> Result<Box<dyn SinkWriter<String>>> {
        let db = Connection::open(&self.0).map_err(failed)?;
        let tables = "CREATE TABLE IF NOT EXISTS words (word TEXT);
            CREATE TABLE IF NOT EXISTS progress (id INT PRIMARY KEY, owner INT, state TEXT, life INT, epoch INT, ends TEXT);
            INSERT INTO progress (id, owner) VALUES (1, 0) ON CONFLICT DO NOTHING;
            UPDATE progress SET owner = owner + 1"; // fences all who have opened it before
        db.execute_batch(tables).map_err(failed)?;
        let owner = db.query_row("SELECT owner FROM progress", [], |row| row.get(0)).map_err(failed)?;
        Ok(Box::new(WordWriter {
            db,
            owner,
            state: at.state.map(|id| id.to_string()),
            epoch: Epoch(0),
            rows: Vec::new(),
        }))
    }
}

struct WordWriter {
    db: Connection,
    owner: i64,
    state: Option<String>,
    epoch: Epoch,
    rows: Vec<String>,
}

impl SinkWriter<String> for WordWriter {
    fn published(&mut self) -> Result<Option<PublishedEpoch>> {
        let columns = "SELECT life, epoch, ends FROM progress WHERE state = ?1 AND epoch IS NOT NULL";
        let found = self.db.query_row(columns, [&self.state], |row| {
            let (life, epoch, ends): (i64, i64, String) = (row.get(0)?, row.get(1)?, row.get(2)?);
            let ends = serde_json::from_str(&ends).unwrap_or_default();
            Ok(PublishedEpoch { incarnation: life as u64, epoch: Epoch(epoch as u64), ends })
        });
        found.optional().map_err(failed)
    }

    fn begin(&mut self, life: &Incarnation) -> Result<()> {
        if self.published()?.is_none() {
            self.db.execute_batch("DELETE FROM words; UPDATE progress SET epoch = NULL").map_err(failed)?;
        }
        let begun = "UPDATE progress SET state = ?1, life = ?2, ends = '[]' WHERE owner = ?3";
        self.db.execute(begun, (&self.state, life.incarnation as i64, self.owner)).map_err(failed)?;
        Ok(())
    }

    fn write(&mut self, epoch: Epoch, rows: &[(String, isize)]) -> Result<()> {
        self.epoch = epoch;
        self.rows.extend(rows.iter().flat_map(|(word, count)| std::iter::repeat_n(word.clone(), *count as usize)));
        Ok(())
    }

    fn publish(&mut self, ends: &JournalEnds) -> Result<()> {
        let act = self.db.transaction().map_err(failed)?; // rows and epoch together, or neither
        let ends = serde_json::to_string(ends).unwrap_or_default();
        let note = "UPDATE progress SET epoch = ?1, ends = ?2 WHERE owner = ?3";
        if act.execute(note, (self.epoch.0 as i64, ends, self.owner)).map_err(failed)? == 0 {
            return Err(Error::of(ErrorKind::Superseded, "a later incarnation writes to the database"));
        }
        for word in self.rows.drain(..) {
            act.execute("INSERT INTO words VALUES (?1)", [word]).map_err(failed)?;
        }
        act.commit().map_err(failed)
    }

    fn finish(&mut self) -> Result<()> {
        Ok(())
    }

    fn is_blocking(&self) -> bool {
        true // publishing waits for a disk: it has a thread of its own, and what was published is remembered
    }
}

/// Returns the words in the database, sorted.
fn words_in(database: &Path) -> Vec<String> {
    let Ok(db) = Connection::open(database) else { return Vec::new() };
    let Ok(mut words) = db.prepare("SELECT word FROM words ORDER BY word") else { return Vec::new() };
    words.query_map([], |row| row.get(0)).unwrap().map(rusqlite::Result::unwrap).collect()
}

/// Runs the log into the database until `is_done`, which may add lines, says so.
fn run_words(log: &LineLog, place: &Path, fails: bool, is_done: impl Fn() -> bool + Send + 'static) -> Result<()> {
    let (source, sink) = (log.clone(), Words(place.join("words.db")));
    let job = Job::new("words").workers(2).epoch(Duration::from_millis(5)).state(State::at(place.join("state")));
    let (stopper, over) = (job.stopper(), Arc::new(AtomicBool::new(false)));
    let is_over = Arc::clone(&over);
    let waiting = std::thread::spawn(move || {
        let begun = std::time::Instant::now();
        while !is_over.load(Ordering::Relaxed) && !is_done() && begun.elapsed() < MINUTE {
            std::thread::sleep(Duration::from_millis(5));
        }
        stopper.stop();
    });
    let ended = job.run(move |flow| {
        let words = flow.read("lines", &source).map(move |(word, _)| {
            assert!(!fails || word != "fail", "as the test wants it");
            word
        });
        words.write("words", &sink);
    });
    over.store(true, Ordering::Relaxed);
    waiting.join().unwrap();
    ended.map(|_report| ())
}

#[test]
fn a_source_and_a_sink_of_ones_own_publish_each_line_once_across_a_failure() {
    let folder = tempfile::tempdir().unwrap();
    let database = folder.path().join("words.db");
    let log = LineLog::default();
    let add = |word: &str| log.0.lock().unwrap().push(format!("{word} 1000"));
    (0..100).for_each(|n| add(&format!("word-{n:03}")));
    let (lines, published) = (log.clone(), database.clone());
    let told = AtomicBool::new(false);
    let failed = run_words(&log, folder.path(), true, move || {
        if words_in(&published).len() < 100 {
            return false;
        }
        if !told.swap(true, Ordering::Relaxed) {
            lines.0.lock().unwrap().push("fail 1000".into());
        }
        false // it ends by the failure
    });
    assert_eq!(failed.unwrap_err().kind(), ErrorKind::Panicked);
    add("word-100");
    run_words(&log, folder.path(), false, move || words_in(&database).len() >= 102).unwrap();
    let mut expected: Vec<_> = (0..=100).map(|n| format!("word-{n:03}")).collect();
    expected.insert(0, "fail".into());
    assert_eq!(words_in(&folder.path().join("words.db")), expected);
}
