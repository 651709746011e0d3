//! Queries as users write them, and the errors that they get when something goes wrong.
//!
//! An interface is only known to be usable when it has been used; and a query that fails on one worker must end on all
//! of them, with a sentence that says what failed.
#![expect(clippy::redundant_closure_for_method_calls, reason = "queries are written as users write them")]

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use differential_dataflow::operators::Iterate;
use serde::{Deserialize, Serialize};
use tidegate::error::ErrorKind;
use tidegate::kafka::{self, KafkaError};
use tidegate::metrics::SPAN_TARGET;
use tidegate::source::memory::MemorySource;
use tidegate::source::{Reader, Source, TimeOf, WorkerContext};
use tidegate::stream::Observer;
use tidegate::stream::window::{Disjoint, WindowType};
use tidegate::testing::{Captured, Script, TestRun};
use tidegate::{Closed, Collection, Error, Flow, Job, Open, Record, Result, State, Stream, Window, csv};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;

use common::cases::within;

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
struct Payment {
    from: String,
    to: String,
    cents: i64,
    at_ms: i64,
}

fn payment(at_ms: i64, from: &str, to: &str, cents: i64) -> Payment {
    Payment { from: from.into(), to: to.into(), cents, at_ms }
}

fn payments(partitions: &[&[Payment]]) -> MemorySource<Payment> {
    let partitions = partitions.iter().map(|partition| partition.to_vec()).collect();
    MemorySource::new(partitions, |payment: &Payment| payment.at_ms).out_of_order(Duration::ZERO)
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
struct Total {
    start: i64,
    account: String,
    count: i64,
    cents: i128,
}

/// A part of a query that several programs could share: one lifetime, no bounds.
fn per_minute(payments: Stream<'_, Payment>) -> Stream<'_, Total> {
    payments
        .key_by(|payment| payment.from.clone())
        .window(Window::tumbling(Duration::from_secs(60)))
        .aggregate("per minute", |each| (each.count(), each.sum(|payment| payment.cents)))
        .on_close()
        .map(|Closed { key, window, value: (count, cents) }| Total {
            start: window.start.millis(),
            account: key,
            count,
            cents,
        })
}

#[test]
fn a_part_of_a_query_is_a_function() {
    let source = payments(&[&[payment(1, "a", "b", 5), payment(59_999, "a", "c", 7), payment(60_000, "a", "b", 1)]]);
    let (totals, shown) = (Captured::new(), Captured::new());
    let (output, doubled) = (totals.clone(), shown.clone());
    TestRun::new()
        .workers(2)
        .run(move |flow| {
            let totals = per_minute(flow.read("payments", &source));
            totals.clone().write("totals", &output);
            totals.filter(|total| total.count > 1).map(|total| total.cents * 2).write("doubled", &doubled);
        })
        .unwrap();
    let total = |start, count, cents| Total { start, account: "a".into(), count, cents };
    assert_eq!(totals.all(), [total(0, 2, 12), total(60_000, 1, 1)]);
    assert_eq!(shown.all(), [24]);
}

/// Pairs of payer and payee, present while their hour is open.
fn edges<'f>(payments: Stream<'f, Payment>, name: &str) -> Collection<'f, (String, String)> {
    payments
        .key_by(|payment| (payment.from.clone(), payment.to.clone()))
        .window(Window::tumbling(Duration::from_secs(3600)))
        .aggregate(name, |each| each.count())
        .on_change()
        .map(|Open { key, .. }| key)
}

/// Pairs `(from, to)` such that money of the first could have reached the second, directly or through others.
fn reach(edges: Collection<'_, (String, String)>) -> Collection<'_, (String, String)> {
    edges.through(|edges| {
        edges.clone().iterate(|inner, reached| {
            let steps = edges.enter(inner);
            let further = reached
                .clone()
                .map(|(from, to)| (to, from))
                .join_map(steps, |_via, from, to| (from.clone(), to.clone()));
            reached.concat(further).distinct()
        })
    })
}

#[test]
fn iteration_is_kept_up_to_date_through_retractions() {
    let hour = 3_600_000;
    let source = payments(&[&[
        payment(1, "a", "b", 1),
        payment(2, "b", "c", 1),
        payment(3, "c", "a", 1),
        payment(hour, "x", "y", 1),
    ]]);
    let reached = Captured::new();
    let output = reached.clone();
    let script =
        Script::new().epoch(|e| e.take(0, 2)).epoch(|e| e.take(0, 1)).epoch(|e| e.take(0, 1)).epoch(|e| e.end(0));
    let run = TestRun::new().workers(2).script("payments", script);
    let outcome = run.run(move |flow| reach(edges(flow.read("payments", &source), "edges")).write("reached", &output));
    let journal = outcome.unwrap().journal;
    let at = |frame: usize| {
        let pairs = reached.at(journal[frame].epoch);
        pairs.iter().map(|(from, to): &(String, String)| format!("{from}{to}")).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(at(0), "ab ac bc");
    assert_eq!(at(1), "aa ab ac ba bb bc ca cb cc");
    assert_eq!(at(2), "xy"); // The first hour has closed.
    assert_eq!(at(3), "");
}

#[test]
fn two_collections_are_joined() {
    let source = payments(&[&[payment(1, "a", "b", 5), payment(2, "b", "a", 7), payment(3, "a", "b", 1)]]);
    let both = Captured::new();
    let output = both.clone();
    let script = Script::new().epoch(|e| e.take(0, 1)).epoch(|e| e.take(0, 1)).epoch(|e| e.take(0, 1));
    let query = move |flow: &Flow<'_>| {
        let sums = |key: fn(&Payment) -> String, name| {
            let keyed = flow.read(name, &source).key_by(key).window(Window::global());
            let sums = keyed.aggregate(name, |each| each.sum(|payment| payment.cents)).on_change();
            sums.map(|Open { key, value, .. }| (key, value))
        };
        let (paid, got) = (sums(|payment| payment.from.clone(), "paid"), sums(|payment| payment.to.clone(), "got"));
        let joined = paid.through_with(got, |paid, got| paid.join_map(got, |who, out, into| (who.clone(), into - out)));
        joined.write("balance", &output);
    };
    let run = TestRun::new().workers(2).script("paid", script.clone()).script("got", script);
    let outcome = run.run(query).unwrap();
    let at = |frame: usize| both.at(outcome.journal[frame].epoch);
    let row = |who: &str, balance| (String::from(who), balance);
    assert_eq!(at(0), []);
    assert_eq!(at(1), [row("a", 2), row("b", -2)]);
    assert_eq!(at(2), [row("a", 1), row("b", -1)]);
}

#[test]
fn every_epoch_of_a_collection_is_seen_whole() {
    let source = payments(&[&[payment(1, "a", "b", 5)], &[payment(2, "b", "a", 7), payment(3, "c", "a", 7)]]);
    let script = Script::new().epoch(|e| e.take(0, 1).take(1, 2)).epoch(|e| e.end(0).end(1));
    let (seen, rows) = std::sync::mpsc::channel();
    let run = TestRun::new().workers(3).script("payments", script).run(move |flow| {
        let seen = seen.clone();
        edges(flow.read("payments", &source), "edges").for_each_epoch("seen", move |_epoch, rows| {
            seen.send(rows.iter().map(|(pair, diff)| format!("{}{}{diff:+}", pair.0, pair.1)).collect::<Vec<_>>())
                .map_err(|why| Error::new("cannot send").because(why))
        });
    });
    run.unwrap();
    assert_eq!(rows.iter().collect::<Vec<_>>(), [["ab+1", "ba+1", "ca+1"], ["ab-1", "ba-1", "ca-1"]]);
}

/// Returns many payments, in eight partitions.
fn many() -> MemorySource<Payment> {
    let partition = |id: i64| (0..2000).map(|at| payment(100 * at + id, &format!("{}", at % 7), "b", at)).collect();
    MemorySource::new((0..8).map(partition).collect(), |payment: &Payment| payment.at_ms).out_of_order(Duration::ZERO)
}

/// Runs a query that must fail on 1, 2 and 4 workers, in epochs by the clock and by seed; returns the errors.
fn failures(query: impl Fn(&Flow<'_>) + Send + Sync + Clone + 'static) -> Vec<String> {
    let mut said = Vec::new();
    for workers in [1, 2, 4] {
        for run in [TestRun::new().clock(), TestRun::new().seed(workers as u64)] {
            let query = query.clone();
            let result = within(Duration::from_secs(60), move || run.workers(workers).run(query));
            let result = result.unwrap_or_else(|| panic!("it hangs on {workers} workers"));
            said.push(result.expect_err("it fails").to_string());
        }
    }
    said
}

fn all_say(said: &[String], expected: &str) {
    assert!(said.iter().all(|error| error.contains(expected)), "{said:#?}");
}

/// A sink that accepts everything.
fn nothing<D: Record>() -> Observer<D> {
    Observer::new(|_epoch, _rows| Ok(()))
}

type Query = Box<dyn Fn(&Flow<'_>, &MemorySource<Payment>) + Send + Sync>;

const MINUTE: Window<Disjoint> = Window::tumbling(Duration::from_secs(60));

#[test]
fn a_panic_in_a_user_s_function_is_an_error_and_stops_all_workers() {
    let big = |payment: &Payment| assert!(payment.cents != 1500, "no payments of 1500");
    let queries: Vec<Query> = vec![
        Box::new(move |flow, source| {
            let mapped = flow.read("payments", source).map(move |payment| {
                big(&payment);
                payment
            });
            mapped.write("out", &nothing());
        }),
        Box::new(move |flow, source| {
            let keyed = flow.read("payments", source).key_by(move |payment| {
                big(payment);
                payment.from.clone()
            });
            keyed.window(MINUTE).aggregate("step", |each| each.count()).on_close().write("out", &nothing());
        }),
        Box::new(move |flow, source| {
            let windows = flow.read("payments", source).key_by(|payment| payment.from.clone()).window(MINUTE);
            let step = windows.aggregate("step", |each| {
                each.max(move |payment| {
                    big(payment);
                    payment.cents
                })
            });
            step.on_change().write("out", &nothing());
        }),
        Box::new(move |flow, source| {
            let see = move |_epoch, rows: &[(Payment, isize)]| {
                rows.iter().for_each(|(payment, _)| big(payment));
                Ok(())
            };
            flow.read("payments", source).write("out", &Observer::new(see));
        }),
    ];
    for query in queries {
        let (query, source) = (Arc::new(query), many());
        all_say(&failures(move |flow| query(flow, &source)), "): no payments of 1500; ");
    }
    let timed =
        MemorySource::new(vec![vec![1i64, 2, 3]], |at: &i64| if *at == 3 { panic!("no time for 3") } else { *at });
    let query = move |flow: &Flow<'_>| flow.read("times", &timed).write("out", &nothing());
    all_say(&failures(query), "no time for 3");
}

#[test]
fn an_error_of_a_sink_stops_all_workers() {
    let source = many();
    let query = move |flow: &Flow<'_>| {
        let full = |_epoch, rows: &[(Total, isize)]| match rows.iter().find(|(total, _)| total.start >= 120_000) {
            Some((total, _)) => Err(Error::new("the disk is full").at(format!("window {}", total.start))),
            None => Ok(()),
        };
        per_minute(flow.read("payments", &source)).write("out", &Observer::new(full));
    };
    all_say(&failures(query), "the disk is full (window 120000)");
}

/// A source that one worker cannot open.
struct Locked(MemorySource<Payment>, usize);

impl Source for Locked {
    type Item = Payment;

    fn describe(&self) -> String {
        String::from("a locked source")
    }

    fn event_time(&self) -> TimeOf<Payment> {
        self.0.event_time()
    }

    fn out_of_order(&self) -> Option<Duration> {
        None
    }

    fn open(&self, at: &WorkerContext) -> Result<Box<dyn Reader<Payment>>> {
        if at.worker == self.1 {
            Err(Error::new("cannot open the source").at(self.describe()))
        } else {
            self.0.open(at)
        }
    }
}

#[test]
fn a_source_that_one_worker_cannot_open_stops_all_workers() {
    for locked in 0..2 {
        let (source, run) = (Locked(many(), locked), TestRun::new().clock().workers(2));
        let run = move || run.run(move |flow| flow.read("payments", &source).write("out", &nothing()));
        let result = within(Duration::from_secs(60), run).expect("it ends");
        assert_eq!(result.unwrap_err().to_string(), "cannot open the source (a locked source)");
    }
}

#[test]
fn an_impossible_record_can_end_the_job() {
    let source = MemorySource::new(vec![vec![1i64], vec![2, i64::MAX]], |at: &i64| *at);
    let options = tidegate::source::Options::default().fail_on_reject(true);
    let run = TestRun::new().workers(2).options(options);
    let result = run.run(move |flow| flow.read("times", &source).write("out", &nothing()));
    let said = result.unwrap_err().to_string();
    let place = "a record was rejected (2 partitions of records in memory, partition 1, offset 1)";
    assert!(said.starts_with(place) && said.contains("--fail-on-reject"), "{said}");
}

/// Returns the kind and the text of the error of a query that is refused before anything runs.
fn refused(query: impl Fn(&Flow<'_>) + Send + Sync + 'static) -> (ErrorKind, String) {
    let error = Job::new("refused").run(query).expect_err("it is refused");
    (error.kind(), error.to_string())
}

/// A query that cannot be built says so by its result, on any of its ways to run.
#[test]
fn a_query_may_return_an_error_which_fails_the_job_before_it_starts() {
    let source = MemorySource::new(vec![vec![1i64]], |at: &i64| *at);
    let query = move |flow: &Flow<'_>| -> Result<()> {
        flow.read("numbers", &source).write("numbers", &Captured::new());
        Err(Error::of(ErrorKind::QueryChanged, "the schema is another one"))
    };
    let expected = Error::of(ErrorKind::QueryChanged, "the schema is another one");
    assert_eq!(Job::new("fallible").run(query.clone()).unwrap_err(), expected);
    assert_eq!(Job::new("fallible").plan(query.clone()).unwrap_err(), expected);
    assert_eq!(TestRun::new().workers(2).run(query).unwrap_err(), expected);
}

fn counts<'f, W: WindowType>(flow: &Flow<'f>, name: &str, window: Window<W>) -> Stream<'f, Closed<String, i64>> {
    let payments = flow.read(&format!("payments of {name}"), &payments(&[&[]]));
    payments.key_by(|payment| payment.from.clone()).window(window).aggregate(name, |each| each.count()).on_close()
}

#[test]
fn a_query_that_makes_no_sense_is_refused_before_it_runs() {
    let cases: BTreeMap<&str, (ErrorKind, String)> = BTreeMap::from([
        ("the query reads no source; begin it with flow.read(…)", refused(|_| ())),
        (
            "two sink steps of the query are named `out`; give each a name of its own: state and metrics are found by it",
            refused(move |flow| {
                counts(flow, "a", MINUTE).write("out", &nothing());
                counts(flow, "b", MINUTE).write("out", &nothing());
            }),
        ),
        (
            "two source steps of the query are named `a`; give each a name of its own: state and metrics are found by it",
            refused(|flow| {
                let _ = flow.read("a", &payments(&[&[]])).concat(flow.read("a", &payments(&[&[]])));
            }),
        ),
        (
            "two window steps of the query are named `a`; give each a name of its own: state and metrics are found by it",
            refused(move |flow| {
                let payments = flow.read("payments", &payments(&[&[]]));
                let windows = || payments.clone().key_by(|payment| payment.cents).window(MINUTE);
                let _ = (windows().aggregate("a", |each| each.count()), windows().aggregate("a", |each| each.count()));
            }),
        ),
        (
            "a window's size is zero (step `a`); make it at least a millisecond",
            refused(move |flow| counts(flow, "a", Window::tumbling(Duration::ZERO)).write("out", &nothing())),
        ),
        (
            "a window of no records (step `a`); make its size at least one record",
            refused(move |flow| counts(flow, "a", Window::count(0)).write("out", &nothing())),
        ),
        (
            "a window's size of 1us is not a whole number of milliseconds (step `a`)",
            refused(move |flow| counts(flow, "a", Window::tumbling(Duration::from_micros(1))).write("out", &nothing())),
        ),
        (
            "a window's offset of 1ns is not a whole number of milliseconds (step `a`)",
            refused(move |flow| counts(flow, "a", MINUTE.offset(Duration::from_nanos(1))).write("out", &nothing())),
        ),
    ]);
    for (expected, (kind, said)) in cases {
        assert_eq!((kind, said.as_str()), (ErrorKind::Usage, expected));
    }
    let error = Job::new("none").workers(0).run(|_| ()).unwrap_err();
    assert_eq!(error.to_string(), "a job needs at least one worker; use -w 1 or more");
}

#[test]
fn a_query_that_panics_while_it_is_built_is_an_error() {
    let result =
        within(Duration::from_secs(60), || Job::new("panics").run(|_| -> Result<()> { panic!("no such account") }));
    let error = result.expect("it answers").unwrap_err().to_string();
    assert!(error.contains("no such account"), "{error}");
}

/// Returns the error of the Kafka client that is in the chain of an error.
fn kafka_error(error: &Error) -> Option<&KafkaError> {
    let first = std::error::Error::source(error);
    std::iter::successors(first, |error| error.source()).find_map(|error| error.downcast_ref())
}

#[test]
fn an_error_of_the_kafka_client_is_the_source_of_ours_and_its_text_the_cause() {
    let unusable = ("security.protocol", "pigeon");
    let source = kafka::Source::json("127.0.0.1:9", "clicks").event_time(|payment: &Payment| payment.at_ms);
    let source = source.config(unusable.0, unusable.1);
    let read = Job::new("read")
        .run(move |flow| flow.read("payments", &source).map(|payment| payment.cents).write("cents", &Captured::new()));
    let sink = kafka::Sink::json("127.0.0.1:9", "cents").config(unusable.0, unusable.1);
    let source = payments(&[&[payment(1, "a", "b", 1)]]);
    let written = Job::new("write").run(move |flow| flow.read("payments", &source).write("payments", &sink));
    for failed in [read, written] {
        let failed = failed.unwrap_err();
        assert!(failed.to_string().starts_with("the Kafka property security.protocol cannot be pigeon ("), "{failed}");
        assert_eq!(failed.kind(), ErrorKind::Usage);
        assert!(matches!(kafka_error(&failed), Some(KafkaError::ClientConfig(..))), "{:?}", kafka_error(&failed));
    }
}

#[test]
fn a_missing_topic_is_told_by_a_kind_and_by_the_brokers_code() {
    let broker = tidegate::source::kafka::EmbeddedBroker::start().unwrap();
    let servers = broker.servers();
    let source = kafka::Source::json(servers, "missing").event_time(|payment: &Payment| payment.at_ms);
    let read = Job::new("read")
        .run(move |flow| flow.read("payments", &source).map(|payment| payment.cents).write("cents", &Captured::new()));
    let sink = kafka::Sink::json(servers, "missing");
    let source = payments(&[&[payment(1, "a", "b", 1)]]);
    let written = Job::new("write").run(move |flow| flow.read("payments", &source).write("payments", &sink));
    for (failed, kind) in [(read, ErrorKind::SourceUnreachable), (written, ErrorKind::SinkFailed)] {
        let failed = failed.unwrap_err();
        assert!(failed.to_string().starts_with("the topic missing does not exist ("), "{failed}");
        assert_eq!(failed.kind(), kind);
        let code = kafka_error(&failed).and_then(KafkaError::rdkafka_error_code);
        assert_eq!(code, Some(kafka::RDKafkaErrorCode::UnknownTopicOrPartition));
    }
}

/// The fields of a span, as text.
#[derive(Clone, Debug, Default)]
struct SpanFields(BTreeMap<&'static str, String>);

impl Visit for SpanFields {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0.insert(field.name(), format!("{value:?}"));
    }
}

/// The name of a span that has ended, `true` if it has a parent, and its fields.
type EndedSpan = (&'static str, bool, SpanFields);

/// The spans that have ended.
#[derive(Clone, Default)]
struct EndedSpans(Arc<Mutex<Vec<EndedSpan>>>);

impl<S: tracing::Subscriber + for<'a> LookupSpan<'a>> Layer<S> for EndedSpans {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut fields = SpanFields::default();
        attributes.record(&mut fields);
        context.span(id).expect("it is new").extensions_mut().insert(fields);
    }

    fn on_record(&self, id: &Id, values: &tracing::span::Record<'_>, context: Context<'_, S>) {
        let span = context.span(id).expect("it has not ended");
        if let Some(fields) = span.extensions_mut().get_mut::<SpanFields>() {
            values.record(fields);
        }
    }

    fn on_close(&self, id: Id, context: Context<'_, S>) {
        let span = context.span(&id).expect("it ends now");
        let fields = span.extensions().get::<SpanFields>().cloned().unwrap_or_default();
        self.0.lock().expect("no test panics here").push((span.name(), span.parent().is_some(), fields));
    }
}

/// Whoever exports traces sees lives of a job, commits and publications of epochs, and snapshots.
#[test]
fn a_job_makes_spans_for_who_wants_them() {
    let (ended, folder) = (EndedSpans::default(), tempfile::tempdir().unwrap());
    let wanted = Targets::new().with_target(SPAN_TARGET, LevelFilter::DEBUG);
    // For all threads, so also for the jobs of other tests.
    tracing::subscriber::set_global_default(tracing_subscriber::registry().with(ended.clone().with_filter(wanted)))
        .unwrap();
    let source = payments(&[&[payment(1, "a", "b", 5), payment(60_000, "a", "b", 1)]]);
    let out = csv::Sink::new(folder.path().join("out.csv"));
    let job = Job::new("spans").state(State::at(folder.path().join("state"))).until_end();
    job.run(move |flow| per_minute(flow.read("payments", &source)).write("spans out", &out)).unwrap();
    let ended = ended.0.lock().unwrap().clone();
    let of = |name: &str, fields: &[(&str, &str)]| {
        let has = |known: &SpanFields| {
            fields.iter().all(|(field, value)| known.0.get(field).is_some_and(|known| known.contains(value)))
        };
        let found: Vec<_> = ended.iter().filter(|(known, _, all)| *known == name && has(all)).collect();
        assert!(!found.is_empty(), "no {name} with {fields:?}: {ended:?}");
        assert!(found.iter().all(|(_, is_child, _)| !is_child), "a trace of all epochs has no end: {found:?}");
        found[0].2.clone()
    };
    of("incarnation", &[("job", "spans"), ("process", "0"), ("number", "1")]);
    for name in ["epoch_commit", "snapshot"] {
        let SpanFields(fields) = of(name, &[("incarnation", "1")]);
        assert!(
            fields.get("epoch").is_some_and(|epoch| epoch.parse::<u64>().is_ok_and(|epoch| epoch > 0)),
            "{fields:?}"
        );
    }
    of("publish", &[("sink", "spans out"), ("rows", "")]);
    let rows = |(name, _, SpanFields(fields)): &EndedSpan| {
        let is_own = *name == "publish" && fields.get("sink").is_some_and(|sink| sink.contains("spans out"));
        fields.get("rows").filter(|_| is_own).map_or(0, |rows| rows.parse::<u64>().unwrap())
    };
    assert_eq!(ended.iter().map(rows).sum::<u64>(), 2, "{ended:?}");
}
