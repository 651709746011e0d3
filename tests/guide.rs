//! The Rust code of `docs/guide.md`, compiled, and run where it needs no broker.
//!
//! It exists because code in a manual that does not compile is worse than none. `tests/docs.rs` checks that each block of the
//! manual's Rust code is here, line for line.
#![expect(clippy::unwrap_used, reason = "a panic fails the test")]
#![expect(clippy::redundant_closure_for_method_calls, reason = "the guide writes aggregates as closures")]

use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tidegate::error::ErrorKind;
use tidegate::kafka::{Decode, Message};
use tidegate::source::memory::MemorySource;
use tidegate::stream::aggregate::Accumulator;
use tidegate::testing::{Captured, Script, TestRun};
use tidegate::view::ViewUpdate;
use tidegate::{Closed, Collection, EventTime, Flow, Job, Open, State, Stream, Window, csv, kafka, ndjson};

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
    let lines = ndjson::Source::new("transactions.ndjson").event_time(|t: &Transaction| t.at_ms);
    assert!(!std::any::type_name_of_val(&(topic, table, lines)).is_empty());
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
    });
}

#[test]
fn state_by_key() {
    let transactions = in_memory();
    plans(move |flow| {
        let accounts = flow.read("transactions", &transactions).key_by(|t| t.account.clone());
        let silent = accounts.keyed_state::<u64, (String, u64)>(
            "silence",
            |at, _transaction| {
                let count = at.state().unwrap_or(0) + 1;
                *at.state() = Some(count);
                at.clear_timers();
                at.set_timer_in(5 * MINUTE);
            },
            |at| {
                if let Some(count) = at.state().take() {
                    let account = at.key().clone();
                    at.emit((account, count));
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
fn views() -> tidegate::Result<()> {
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
    let program: fn() -> tidegate::Result<()> = views;
    assert!(size_of_val(&program) > 0);
}

#[test]
fn tests_of_queries() -> tidegate::Result<()> {
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
fn state_directories() -> tidegate::Result<()> {
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
