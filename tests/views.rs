//! Views, read while a job runs, equal a naive computation over the records at one complete epoch.
//!
//! A reader may come at any moment: in the middle of an epoch, during a replay, while windows close. None of that may
//! be visible in an answer; and no reader may hold the job back.
#![expect(clippy::unwrap_used, reason = "a panic fails the test")]

#[path = "common/ports.rs"]
mod ports;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use fastrand::Rng;
use serde::{Deserialize, Serialize};
use tidegate::durable::disk::Disk;
use tidegate::job::{Cluster, Ending, StopHandle};
use tidegate::source::memory::MemorySource;
use tidegate::stream::aggregate::Each;
use tidegate::stream::window::WindowType;
use tidegate::testing::{Captured, CrashingDisk, Script, TestRun};
use tidegate::time::Epoch;
use tidegate::view::{Refusal, Subscription, SubscriptionEnd, ViewUpdate, Views};
use tidegate::{Collection, Error, EventTime, Flow, Job, Stream, Window};

use common::cases::{Data, for_seeds, within};
use common::views::{check_views, check_views_over_lives};
use ports::free_address;

#[test]
fn every_answer_is_of_one_complete_epoch() {
    for_seeds(12, |seed| {
        let data = Data::random(&mut Rng::with_seed(seed), 200);
        check_views(seed, &data, TestRun::new().workers(1 + seed as usize % 4).seed(seed))
    });
}

#[test]
fn answers_are_the_same_on_several_processes() {
    for_seeds(3, |seed| {
        let data = Data::random(&mut Rng::with_seed(seed), 200);
        check_views(seed, &data, TestRun::new().processes(2).workers(1 + seed as usize % 2).seed(seed))
    });
}

#[test]
fn after_a_crash_views_answer_when_they_are_what_they_were() {
    static WAITED: AtomicBool = AtomicBool::new(false);
    for_seeds(12, |seed| {
        let lives = check_views_over_lives(seed, TestRun::new)?;
        WAITED.fetch_or(lives > 0, Ordering::Relaxed);
        Ok(())
    });
    assert!(WAITED.load(Ordering::Relaxed), "no life had anything to repeat");
}

/// A payment: account, amount, event time.
type Payment = (String, i64, i64);

/// Returns `count` payments of `accounts` accounts, each with its number as amount.
fn payments(count: i64, accounts: i64) -> MemorySource<Payment> {
    let payments = (0..count).map(|number| (format!("a{}", number % accounts), number, number)).collect();
    MemorySource::new(vec![payments], |payment: &Payment| payment.2).out_of_order(Duration::ZERO)
}

/// Runs an epoch for each of these numbers of payments, and subscribes to the sums by account when payment number 2 is
/// read: the epochs before have been published by then. The subscriber reads nothing before the job has ended.
fn subscribed(takes: &[u64], accounts: i64, key: Option<&'static str>, most: usize) -> Subscription {
    let count = takes.iter().sum::<u64>();
    let script = takes.iter().fold(Script::new(), |script, take| script.epoch(|e| e.take(0, *take)));
    let run = TestRun::new().in_flight(1).script("payments", script);
    let (views, slot, payments) = (run.views(), Arc::new(Mutex::new(None)), payments(count as i64, accounts));
    let own = Arc::clone(&slot);
    let outcome = run.run(move |flow| {
        let (views, slot) = (Arc::clone(&views), Arc::clone(&own));
        let read = flow.read("payments", &payments).inspect(move |payment| {
            if payment.1 == 2 {
                *slot.lock().unwrap() = Some(views.subscribe_within("paid", key, most).unwrap());
            }
        });
        paid(read).view("paid");
    });
    assert_eq!(outcome.unwrap().report.summary.sources[0].read, count);
    slot.lock().unwrap().take().unwrap()
}

/// Rows of a view.
type Rows = Vec<((String, i64), isize)>;

fn rows(rows: &[(&str, i64, isize)]) -> Rows {
    rows.iter().map(|(name, sum, diff)| (((*name).to_owned(), *sum), *diff)).collect()
}

/// Returns all messages of a subscription, without epochs, and the reason for its end.
fn all(mut subscription: Subscription) -> (Vec<Rows>, SubscriptionEnd) {
    let mut heard = Vec::new();
    loop {
        match subscription.wait(Duration::ZERO) {
            Some(ViewUpdate::State(answer) | ViewUpdate::Changes(answer)) => heard.push(answer.typed().unwrap()),
            Some(ViewUpdate::Progress(_)) => {}
            Some(ViewUpdate::End(end)) => {
                assert!(matches!(subscription.wait(Duration::ZERO), Some(ViewUpdate::End(again)) if again == end));
                return (heard, end);
            }
            None => panic!("there is nothing to hear after {heard:?}"),
        }
    }
}

#[test]
fn a_subscriber_that_does_not_keep_up_is_cut_off_and_the_job_goes_on() {
    let takes = [1; 60];
    let first = rows(&[("a0", 0, 1), ("a1", 1, 1)]);
    let (heard, end) = all(subscribed(&takes, 100, None, 20));
    assert_eq!((heard, end), (vec![first.clone()], SubscriptionEnd::Behind { most: 20 }));
    assert_eq!(end.to_string(), "the subscriber is too far behind: more than 20 changes waited for it");
    // 58 epochs with one change each.
    let (heard, end) = all(subscribed(&takes, 100, None, 2 * 58));
    assert_eq!((heard.len(), end), (59, SubscriptionEnd::Over));
    assert_eq!(heard[..2], [first, rows(&[("a2", 2, 1)])]);
    // The changes of one key are few.
    let (heard, end) = all(subscribed(&takes, 20, Some("a1"), 20));
    let changes = [(1, 22), (22, 63)].map(|(was, is)| rows(&[("a1", was, -1), ("a1", is, 1)]));
    assert_eq!((heard, end), ([vec![rows(&[("a1", 1, 1)])], changes.to_vec()].concat(), SubscriptionEnd::Over));
}

#[test]
fn one_epoch_waits_for_a_subscriber_however_much_it_changes() {
    let (heard, end) = all(subscribed(&[1, 1, 50], 100, None, 5));
    assert_eq!((heard.len(), heard[1].len(), end), (2, 50, SubscriptionEnd::Over));
    let (heard, end) = all(subscribed(&[1, 1, 50, 1], 100, None, 5));
    assert_eq!((heard.len(), end), (1, SubscriptionEnd::Behind { most: 5 }));
}

/// Returns the sum of payments of each account.
fn paid(payments: Stream<'_, Payment>) -> Collection<'_, (String, i64)> {
    let windows = payments.key_by(|payment| payment.0.clone()).window(Window::global());
    let sums = windows.aggregate("paid", |each| each.sum(|payment| payment.1));
    sums.on_change().map(|row| (row.key, row.value as i64))
}

fn texts(views: &Views, view: &str, key: Option<&str>) -> Vec<String> {
    views.get(view, key).unwrap().rows.map(Result::unwrap).collect()
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
struct Paid {
    day: EventTime,
    account: String,
    sum: i128,
}

#[test]
fn rows_are_found_by_their_first_column_or_by_what_the_query_says() {
    let (run, source) = (TestRun::new().workers(2), payments(6, 3));
    let views = run.views();
    let outcome = run.run(move |flow| {
        assert!(flow.has_views());
        let paid = paid(flow.read("payments", &source));
        paid.clone().view("pairs");
        paid.clone().view_by("sums", |(_, sum)| *sum);
        paid.clone().map(|(_, sum)| sum % 2).view("remainders");
        let paid = paid.map(|(account, sum)| Paid { day: EventTime::from_millis(0), account, sum: sum.into() });
        paid.clone().view("structs");
        paid.view_by("lists", |paid| (paid.account.clone(), paid.sum));
    });
    assert_eq!(outcome.unwrap().report.ending, Ending::Complete);
    assert_eq!(views.names(), ["lists", "pairs", "remainders", "structs", "sums"]);
    let pair = r#"{"row":["a1",5],"diff":1}"#;
    assert_eq!(texts(&views, "pairs", Some("a1")), [pair]);
    assert_eq!(texts(&views, "pairs", None), [r#"{"row":["a0",3],"diff":1}"#, pair, r#"{"row":["a2",7],"diff":1}"#]);
    assert_eq!(texts(&views, "sums", Some("5")), [pair]);
    assert_eq!(texts(&views, "remainders", Some("1")), [r#"{"row":1,"diff":3}"#]);
    let account = r#"{"day":"1970-01-01T00:00:00.000Z","account":"a1","sum":5,"diff":1}"#;
    assert_eq!(texts(&views, "lists", Some(r#"["a1",5]"#)), [account]);
    assert_eq!(texts(&views, "structs", Some("1970-01-01T00:00:00.000Z"))[1], account);
    for (view, key) in [("pairs", "a3"), ("pairs", "5"), ("sums", "a1"), ("lists", "a1"), ("structs", "0")] {
        assert_eq!(texts(&views, view, Some(key)), [""; 0], "{view} {key}");
    }
    let status = views.status();
    let first = status[0].reached;
    assert!(status.iter().all(|status| status.ready && status.reached == first), "{status:?}");
    assert_eq!(status.iter().map(|status| status.rows).collect::<Vec<_>>(), [3, 3, 1, 3, 3]);
    let wrong = views.get("pairs", None).unwrap().typed::<i64>().unwrap_err().to_string();
    assert_eq!(wrong, "rows of a view are not of type `i64` (view `pairs`)");
}

fn check_contains(refusal: Refusal, expected: &str) {
    let (text, error) = (refusal.to_string(), Error::from(refusal));
    assert!(text == error.to_string() && text.contains(expected), "{text}");
}

#[test]
fn a_view_says_why_it_does_not_answer() {
    let (run, source) = (TestRun::new(), payments(3, 3));
    let views = run.views();
    let own = Arc::clone(&views);
    check_contains(
        views.get("paid", None).unwrap_err(),
        "the view is not ready (view `paid`): no epoch is complete yet",
    );
    let outcome = run.run(move |flow| {
        let views = Arc::clone(&own);
        let paid = paid(flow.read("payments", &source).inspect(move |payment| {
            if payment.1 == 0 {
                check_contains(views.subscribe("paid", None).unwrap_err(), "no epoch is complete yet");
                check_contains(
                    views.get("payed", None).unwrap_err(),
                    "there is no view `payed`: there is `all`, `paid`",
                );
            }
        }));
        paid.clone().view("all");
        paid.view("paid");
    });
    outcome.unwrap();
    check_contains(views.get("payed", None).unwrap_err(), "there is no view `payed`: there is `all`, `paid`");
    assert_eq!(texts(&views, "paid", Some("a2")), [r#"{"row":["a2",2],"diff":1}"#]);
    // A job that fails before an epoch is complete.
    let (run, source) = (TestRun::new(), payments(3, 3));
    let views = run.views();
    let outcome = run.run(move |flow| {
        let failing =
            flow.read("payments", &source).map(|payment| if payment.1 == 0 { panic!("stop") } else { payment });
        paid(failing).view("paid");
    });
    assert!(outcome.unwrap_err().to_string().contains("stop"));
    check_contains(views.get("paid", None).unwrap_err(), "the job ended before the view was ready (view `paid`)");
}

/// Returns the error with which a query is refused.
fn refused(run: TestRun, query: impl Fn(&Flow<'_>) + Send + Sync + 'static) -> String {
    let error = run.run(query).unwrap_err();
    assert_eq!(error.exit_code(), 2, "{error}");
    error.to_string()
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
struct Different {
    diff: i64,
}

#[test]
fn what_cannot_be_a_view_is_refused_before_anything_runs() {
    let source = payments(3, 3);
    let own = source.clone();
    let error = refused(TestRun::new(), move |flow| {
        let paid = paid(flow.read("payments", &own));
        paid.clone().view("paid");
        paid.view("paid");
    });
    assert!(error.contains("two view steps of the query are named `paid`"), "{error}");
    let own = source.clone();
    let error = refused(TestRun::new(), move |flow| {
        paid(flow.read("payments", &own)).map(|(_, diff)| Different { diff }).view("paid");
    });
    assert!(error.contains("its field `diff` has the name of the column of differences"), "{error}");
    // Rows of closed windows are not restored after a crash.
    let on_fire = move |flow: &Flow<'_>| {
        let windows = flow.read("payments", &source).key_by(|payment| payment.0.clone()).window(Window::global());
        windows.aggregate("counts", Each::count).on_fire().view("counts");
    };
    let disk: Arc<dyn Disk> = CrashingDisk::new().shared();
    let error = refused(TestRun::new().state(&disk, "state"), on_fire.clone());
    assert!(error.contains("rows of closed windows are not there again"), "{error}");
    TestRun::new().run(on_fire).unwrap();
}

/// Until a view contains everything that was committed, it answers with the reason; and views may be added and removed
/// without being a change of the query, even if epochs are to be replayed.
#[test]
fn views_come_and_go_between_lives() {
    let source = payments(400, 50);
    let (mut disk, mut waited) = (CrashingDisk::new(), 0);
    let shown = Captured::new();
    for life in 0.. {
        if life < 8 {
            disk.crash_at(100 + 10 * life);
        }
        let shared: Arc<dyn Disk> = disk.shared();
        let run = TestRun::new().workers(1 + life % 3).seed(life as u64).in_flight(1).state(&shared, "state");
        // Some incarnations have no view, some no reader, and some a view and a reader.
        let views = (life % 3 > 0).then(|| run.views());
        let (source, own, output) = (source.clone(), views.clone(), shown.clone());
        let needs = Arc::new(Mutex::new(None));
        let seen = Arc::clone(&needs);
        let result = run.run(move |flow| {
            let (views, seen) = (own.clone(), Arc::clone(&seen));
            let paid = paid(flow.read("payments", &source).inspect(move |_| {
                if let Some(Err(Refusal::NotReady { reached, needs: Some(needs), .. })) =
                    views.as_ref().map(|views| views.get("paid", None))
                {
                    assert!(reached < Some(needs), "{reached:?} is enough");
                    *seen.lock().unwrap() = Some(needs);
                }
            }));
            if life % 3 != 1 {
                paid.clone().view("paid");
            }
            paid.write("paid", &output);
        });
        waited += usize::from(needs.lock().unwrap().is_some());
        match (result, views.filter(|_| life % 3 == 2)) {
            (Ok(_), views) => {
                let last = views.map(|views| texts(&views, "paid", None).len());
                assert_eq!(last.unwrap_or(50), 50);
                break;
            }
            (Err(error), _) => assert!(disk.has_crashed(), "life {life}: {error}"),
        }
        disk = disk.survivors(life as u64);
    }
    assert!(waited > 0);
}

/// Returns the answers of views in an incarnation that begins when one of two streams has ended: of its live windows,
/// and of the other stream's.
fn after_one_is_over<W: WindowType>(window: Window<W>) -> [Result<usize, Refusal>; 2] {
    let (few, many, disk) = (payments(3, 3), payments(1_000, 50), CrashingDisk::new());
    let life = |disk: &CrashingDisk, last: i64| {
        let (shared, stop): (Arc<dyn Disk>, _) = (disk.shared(), StopHandle::default());
        let run = TestRun::new().seed(5).in_flight(1).state(&shared, "state").stop_by(&stop);
        let (views, few, many) = (run.views(), few.clone(), many.clone());
        let outcome = run.run(move |flow| {
            let stop = stop.clone();
            let windows = flow.read("few", &few).key_by(|payment| payment.0.clone()).window(window);
            windows.aggregate("few", Each::count).on_change().map(|row| (row.key, row.value)).view("few");
            let many = flow.read("many", &many).inspect(move |payment| {
                if payment.1 == last {
                    stop.stop();
                }
            });
            paid(many).view("many");
        });
        (outcome.unwrap().report.ending, views)
    };
    let (ending, views) = life(&disk, 900);
    assert_eq!((ending, texts(&views, "many", None).len()), (Ending::Stopped, 50));
    let (ending, views) = life(&disk.after_kill(), -1);
    assert_eq!(ending, Ending::Complete);
    ["few", "many"].map(|view| views.get(view, None).map(|answer| answer.rows.len()))
}

#[test]
fn a_view_that_cannot_be_what_it_was_says_so() {
    // All windows of the stream have closed.
    assert_eq!(after_one_is_over(Window::tumbling(Duration::from_millis(10))), [Ok(0), Ok(50)]);
    for window in [Window::global().any(), Window::count(2).any()] {
        for answer in after_one_is_over(window) {
            check_contains(answer.unwrap_err(), "a stream was over before the job went on");
        }
    }
}

/// The total of amounts given and taken is 0 in every answer while records arrive, in epochs by the clock, and no
/// answer is older than the one before.
#[test]
fn a_total_that_is_nothing_is_nothing_in_every_answer() {
    let count = 20_000;
    let given = (0..count).map(|number| (format!("a{}", number % 300), number, number)).collect();
    let source = MemorySource::new(vec![given], |payment: &Payment| payment.2);
    let run = TestRun::new().workers(2).clock().in_flight(40_000);
    let (views, over) = (run.views(), Arc::new(AtomicBool::new(false)));
    let answered = Arc::new(AtomicUsize::new(0));
    let (own, until, seen) = (Arc::clone(&views), Arc::clone(&over), Arc::clone(&answered));
    let reader = std::thread::spawn(move || {
        let mut epochs = BTreeMap::<Epoch, usize>::new();
        loop {
            let is_last = until.load(Ordering::Acquire);
            if let Ok(answer) = own.get("balances", None) {
                let (epoch, rows) = (answer.epoch, answer.typed::<(String, i64)>().unwrap());
                assert_eq!(rows.iter().map(|((_, cents), count)| cents * *count as i64).sum::<i64>(), 0, "{epoch}");
                assert!(epochs.last_key_value().is_none_or(|(before, _)| *before <= epoch));
                epochs.insert(epoch, rows.len());
                seen.store(epochs.len(), Ordering::Release);
            }
            if is_last {
                return epochs;
            }
        }
    });
    let outcome = run.run(move |flow| {
        let answered = Arc::clone(&answered);
        let entries = flow
            .read("payments", &source)
            // The reader may be slow: four times the job waits until it has an answer of another epoch.
            .inspect(move |payment| {
                let begun = Instant::now();
                let due = usize::try_from(payment.2 / 4_000).unwrap();
                while payment.2 % 4_000 == 0 && answered.load(Ordering::Acquire) < due && begun.elapsed().as_secs() < 20
                {
                    std::thread::sleep(Duration::from_millis(1));
                }
            })
            .flat_map(|(account, cents, at)| [(account, cents, at), (format!("m{}", cents % 7), -cents, at)]);
        paid(entries).view("balances");
    });
    outcome.unwrap();
    over.store(true, Ordering::Release);
    let epochs = reader.join().unwrap();
    assert_eq!(epochs.last_key_value().map(|(_, rows)| *rows), Some(307));
    assert!(epochs.len() > 3, "there were answers of {epochs:?} only");
}

/// Runs two processes, of which the first or the second has views; returns the refusal of the second process, and
/// `true` if the first one has them.
fn of_two(first: bool, second: bool) -> (Refusal, bool) {
    let addresses: Vec<_> = (0..2).map(|_| free_address()).collect();
    let source = payments(100, 10);
    let answers = [first, second].into_iter().enumerate().map(|(process, asks)| {
        let cluster = Cluster::new(process, addresses.clone()).unwrap();
        let job = Job::new("two").cluster(cluster).epoch(Duration::from_millis(5));
        let views = asks.then(|| job.views());
        let source = source.clone();
        let run = move || {
            job.run(move |flow| paid(flow.read("payments", &source)).view("paid")).unwrap();
            views.map(|views| views.get("paid", None).map(|answer| answer.rows.len()))
        };
        std::thread::spawn(run)
    });
    let answers: Vec<_> = answers.collect();
    let answers: Vec<_> = answers.into_iter().map(|process| process.join().unwrap()).collect();
    let elsewhere = Refusal::OtherProcess { view: "paid".into() };
    (answers[1].clone().map_or(elsewhere, Result::unwrap_err), matches!(answers[0], Some(Ok(10))))
}

#[test]
fn views_are_in_the_first_process_if_it_wants_them() {
    for (first, second) in [(true, false), (false, true), (true, true)] {
        let (said, has) = within(Duration::from_secs(60), move || of_two(first, second)).expect("it ends");
        assert_eq!(has, first);
        check_contains(said, "views are not in this process (view `paid`); ask process 0, which has them");
    }
}

/// A key whose new row is the smaller one: a subscriber that applies the changes in order ends with the current row.
#[test]
fn a_subscriber_hears_of_a_row_that_goes_before_the_one_that_comes() {
    let script = Script::new().epoch(|e| e.take(0, 3)).epoch(|e| e.take(0, 1)).epoch(|e| e.take(0, 1));
    let run = TestRun::new().in_flight(1).script("payments", script);
    let (views, slot) = (run.views(), Arc::new(Mutex::new(None)));
    let payments = (0..5).map(|number| (String::from("a"), 10 - 5 * number, number)).collect();
    let payments = MemorySource::new(vec![payments], |payment: &Payment| payment.2).out_of_order(Duration::ZERO);
    let own = Arc::clone(&slot);
    let outcome = run.run(move |flow| {
        let (views, slot) = (Arc::clone(&views), Arc::clone(&own));
        let read = flow.read("payments", &payments).inspect(move |payment| {
            if payment.2 == 3 {
                *slot.lock().unwrap() = Some(views.subscribe_within("paid", None, 100).unwrap());
            }
        });
        paid(read).view("paid");
    });
    outcome.unwrap();
    let (heard, _) = all(slot.lock().unwrap().take().unwrap());
    let changes = [(15, 10), (10, 0)].map(|(was, is)| rows(&[("a", was, -1), ("a", is, 1)]));
    assert_eq!(heard, [vec![rows(&[("a", 15, 1)])], changes.to_vec()].concat());
}
