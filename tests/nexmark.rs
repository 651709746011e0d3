//! The queries of the Nexmark benchmark give DuckDB's answers to the same questions about the same events: on one worker, on
//! two, on two processes, after kills, whatever the disorder.
//!
//! The questions are the ones in SQL in the headers of `queries/nexmark/q*.rs`, so what a header says is what is tested.
//! DuckDB gets the events as tables that the program writes, and nothing else. `NEXMARK_EVENTS=1000000` takes more events.
//!
//! Without Python these tests are skipped with a line on standard error; with `CI=true` they fail.
#![expect(clippy::unwrap_used, reason = "a panic fails the test")]

#[path = "common/children.rs"]
mod children;
#[expect(dead_code, reason = "the program uses all of it")]
#[path = "../queries/nexmark/generator.rs"]
mod generator;
#[expect(dead_code, reason = "the program uses all of it")]
#[path = "../queries/nexmark/model.rs"]
mod model;
#[path = "common/ports.rs"]
mod ports;
#[path = "common/python.rs"]
mod python;
#[path = "common/run.rs"]
mod run;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use fastrand::Rng;
use generator::Generator;
use model::Event;
use python::Python;
use run::{ProgramOutput, Running, check_contains, run, start};
use serde_json::{Value, json};

const NEXMARK: &str = env!("CARGO_BIN_EXE_nexmark");
const QUERIES: u32 = 23;

/// Number of events of each case.
fn events(usual: u64) -> u64 {
    std::env::var("NEXMARK_EVENTS").map_or(usual, |events| events.parse().unwrap())
}

/// Time limit of a program.
fn limit() -> Duration {
    Duration::from_secs(90 + events(0) / 2_000)
}

/// Returns the question in SQL in the header of a query.
fn question(query: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("queries/nexmark/{query}.rs"));
    let text = fs::read_to_string(path).unwrap();
    let header = text.lines().map_while(|line| line.strip_prefix("//!"));
    let sql = header.skip_while(|line| line.trim() != "```sql").skip(1).take_while(|line| line.trim() != "```");
    let sql = sql.collect::<Vec<_>>().join("\n");
    assert!(sql.contains("SELECT"), "{query} has no question in SQL");
    sql
}

/// Events with the answers that are given of them.
struct Case {
    folder: PathBuf,
    /// Flags that name the events.
    events: String,
    answers: Mutex<Vec<(String, PathBuf)>>,
}

impl Case {
    /// Writes the events of a case as tables.
    fn new(folder: &Path, name: &str, events: String) -> Case {
        let case = Case { folder: folder.join(name), events, answers: Mutex::default() };
        let tables = ["--write", case.folder.to_str().unwrap()];
        let words = case.events.split_whitespace().chain(tables);
        start(NEXMARK, words).end_within(limit()).code(0);
        case
    }

    /// Starts a query whose answer goes to a file of this name.
    fn start(&self, query: &str, name: &str, more: &str) -> Running {
        let out = self.folder.join(format!("{name}.csv"));
        let more = more.replace("{}", self.folder.to_str().unwrap());
        let words = self.events.split_whitespace().chain(more.split_whitespace());
        start(NEXMARK, words.chain(["--query", query, "--progress", "off", "--out", out.to_str().unwrap()]))
    }

    /// Answers a query, in two processes if it is said so; the answer is compared later.
    fn answer(&self, query: &str, more: &str) {
        self.start(query, query, more).end_within(limit()).code(0);
        self.is_answered(query, query);
    }

    /// Answers a query on two processes.
    fn answer_in_two(&self, query: &str) {
        let (hosts, name) = (self.folder.join(format!("hosts-{query}")), format!("two-{query}"));
        children::write_hosts(&hosts, 2);
        let flags = format!("--hostfile {} -n 2 -p", hosts.display());
        let both = [0, 1].map(|process| self.start(query, &name, &format!("{flags} {process}")));
        for process in both {
            process.end_within(limit()).code(0);
        }
        self.is_answered(query, &name);
    }

    /// Answers a query with a state, killed several times.
    fn answer_with_kills(&self, query: &str, random: &mut Rng) -> u32 {
        let name = format!("killed-{query}");
        let flags = format!("--state {{}}/state-{query} --epoch 5ms --snapshot-every 15ms --in-flight 1MiB");
        let mut kills = 0;
        for round in 0..4 {
            let moment = Duration::from_millis(random.u64(60..(150 + 100 * round)));
            let ended: ProgramOutput = self.start(query, &name, &flags).killed_after(moment);
            if !ended.was_killed() {
                ended.code(0);
                break;
            }
            kills += 1;
        }
        self.start(query, &name, &format!("{flags} -w 2")).end_within(limit()).code(0);
        self.is_answered(query, &name);
        kills
    }

    fn is_answered(&self, query: &str, name: &str) {
        self.answers.lock().unwrap().push((query.to_owned(), self.folder.join(format!("{name}.csv"))));
    }

    fn to_json(&self) -> Value {
        json!({ "tables": self.folder, "answers": *self.answers.lock().unwrap() })
    }
}

/// Work of a test.
type Work<'a> = Box<dyn FnOnce() + Send + 'a>;

/// Does all work, two at a time.
fn in_twos(work: Vec<Work<'_>>) {
    let work = Mutex::new(work);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let next = work.lock().unwrap().pop();
                    let Some(next) = next else { return };
                    next();
                }
            });
        }
    });
}

#[test]
fn all_answers_are_those_of_duckdb() {
    let Some(python) = Python::find() else { return };
    let folder = tempfile::tempdir().unwrap();
    let sql: BTreeMap<String, String> =
        (0..QUERIES).map(|n| format!("q{n}")).map(|query| (query.clone(), question(&query))).collect();
    // Hours with midnight in them; seconds with many events in a millisecond, out of order.
    let slow = format!("--events {} --seed 1 --rate 1 --shuffle 7", events(20_000));
    let fast = format!("--events {} --seed 2 --rate 3000 --partitions 3 --shuffle 500", events(20_000));
    let [slow, fast] = [("slow", slow), ("fast", fast)].map(|(name, flags)| Case::new(folder.path(), name, flags));
    let (kills, begun) = (Mutex::new(0), Instant::now());
    let mut work: Vec<Work<'_>> = Vec::new();
    for query in sql.keys() {
        work.push(Box::new(|| slow.answer(query, "-w 1")));
        work.push(Box::new(|| fast.answer(query, "-w 2 --epoch 20ms")));
    }
    for query in ["q3", "q8", "q13"] {
        work.push(Box::new(|| fast.answer_in_two(query)));
    }
    for (seed, query) in [(1, "q6"), (2, "q19")] {
        let (slow, kills) = (&slow, &kills);
        work.push(Box::new(move || {
            *kills.lock().unwrap() += slow.answer_with_kills(query, &mut Rng::with_seed(seed));
        }));
    }
    in_twos(work);
    assert!(kills.into_inner().unwrap() > 0, "nothing was killed");
    let answered = begun.elapsed();
    let plan = json!({ "sql": sql, "cases": [slow.to_json(), fast.to_json()] });
    let file = folder.path().join("plan.json");
    fs::write(&file, plan.to_string()).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/nexmark/compare.py");
    let told = python.run_script(&script, &[file.to_str().unwrap()]);
    println!("answers in {answered:?}, compared in {:?}", begun.elapsed() - answered);
    let told: Vec<Value> = serde_json::from_str(&told).unwrap();
    assert_eq!(told.len(), 2 * QUERIES as usize + 5);
    let wrong: Vec<_> = told.iter().filter(|answer| !answer["wrong"].is_null()).map(Value::to_string).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let mut rows = BTreeMap::<&str, u64>::new();
    for answer in &told {
        *rows.entry(answer["query"].as_str().unwrap()).or_default() += answer["rows"].as_u64().unwrap();
    }
    println!("{rows:?}");
    assert!(rows.values().all(|rows| *rows >= 3), "the events are too tame: {rows:?}");
}

#[test]
fn events_have_the_usual_proportions_and_are_a_function_of_the_seed() {
    let generator = Generator::new(7, 10_000, 1);
    let all: Vec<Event> = (0..50_000).map(|place| generator.at(place)).collect();
    assert_eq!(all[777], Generator::new(7, 10_000, 1).at(777));
    assert_ne!(all[777], Generator::new(8, 10_000, 1).at(777));
    assert!(all.is_sorted_by_key(Event::date_time));
    let (mut persons, mut auctions, mut bids) = (BTreeSet::new(), BTreeMap::new(), Vec::new());
    for event in all {
        match event {
            Event::Person(person) => assert!(persons.insert(person.id)),
            Event::Auction(auction) => assert!(auctions.insert(auction.id, auction).is_none()),
            Event::Bid(bid) => bids.push(bid),
        }
    }
    assert_eq!((persons.len(), auctions.len(), bids.len()), (1_000, 3_000, 46_000));
    let near = |part: usize, of: usize, share: f64| (part as f64 / of as f64 - share).abs() < 0.03;
    let hot = bids.iter().filter(|bid| (bid.auction - 1_000).is_multiple_of(100)).count();
    assert!(near(hot, bids.len(), 0.5), "{hot} bids are in hot auctions");
    let hot = bids.iter().filter(|bid| bid.bidder % 100 == 1).count();
    assert!(near(hot, bids.len(), 0.75), "{hot} bids are of hot bidders");
    let hot = auctions.values().filter(|auction| auction.seller % 100 == 0).count();
    assert!(near(hot, auctions.len(), 0.75), "{hot} auctions are of hot sellers");
    let ahead = bids.iter().filter(|bid| auctions.get(&bid.auction).is_none_or(|a| a.date_time > bid.date_time));
    assert!(ahead.count() > 100, "no bid is ahead of its auction");
    let prices: Vec<i64> = bids.iter().map(|bid| bid.price).collect();
    let below = |price| prices.iter().filter(|other| **other < price).count();
    assert!(below(100) == 0 && below(100_000_000) == prices.len());
    assert!(near(below(10_000), prices.len(), 1.0 / 3.0) && near(below(1_000_000), prices.len(), 2.0 / 3.0));
    let size: usize = bids.iter().map(|bid| 32 + bid.extra.len()).sum();
    assert!(near(size, bids.len() * 100, 1.0), "bids are of {size} bytes");
}

#[test]
fn disorder_is_as_large_as_is_declared_and_no_larger() {
    for (rate, shuffle) in [(10_000, 1_000), (1_000, 953), (7, 3), (1, 5), (300, 1_906)] {
        let [ordered, shuffled] = [1, shuffle].map(|shuffle| Generator::new(3, rate, shuffle));
        let events: Vec<Event> = (0..8_000).map(|place| shuffled.at(place)).collect();
        let (mut greatest, mut most) = (i64::MIN, 0);
        for event in &events {
            greatest = greatest.max(event.date_time().millis());
            most = most.max(greatest - event.date_time().millis());
        }
        let declared = shuffled.disorder_ms() as i64;
        assert!(most <= declared && (declared <= 2 * most + 2_000 / rate as i64), "{most} ms of {declared}");
        // The same events, but for those of a run that is cut off.
        let whole = events.len() as u64 / rate * rate;
        let as_set = |generator: &Generator| (0..whole).map(|place| generator.at(place)).collect::<BTreeSet<_>>();
        assert_eq!(as_set(&ordered), as_set(&shuffled));
    }
}

#[test]
fn written_events_are_read_back_and_partitions_do_not_matter() {
    let folder = tempfile::tempdir().unwrap();
    let here = |line: &str| -> Vec<String> {
        let folder = folder.path().to_str().unwrap();
        line.split_whitespace().map(|word| word.replace("{}", folder)).collect()
    };
    let events = "--events 3000 --seed 4 --rate 900";
    run(NEXMARK, here(&format!("{events} --write {{}}/events --as ndjson"))).code(0);
    let sorted = |line: &str| {
        let ended = run(NEXMARK, here(&format!("--query q18 --out {{}}/out.csv --progress off {line}")));
        ended.code(0);
        let text = fs::read_to_string(folder.path().join("out.csv")).unwrap();
        let mut net = BTreeMap::<String, i64>::new();
        for (row, diff) in text.lines().skip(1).map(|line| line.rsplit_once(',').unwrap()) {
            *net.entry(row.to_owned()).or_default() += diff.parse::<i64>().unwrap();
        }
        net.retain(|_, times| *times != 0);
        net
    };
    let generated = sorted(events);
    assert!(generated.len() > 500 && generated.values().all(|times| *times == 1), "{} rows", generated.len());
    assert_eq!(sorted("--ndjson {}/events/events.ndjson --until-end"), generated);
    assert_eq!(sorted(&format!("{events} --partitions 1")), generated);
    let flagless = run(NEXMARK, here("--query q1000"));
    check_contains(&flagless.code(2).stderr, &["q1000", "--query"]);
}
