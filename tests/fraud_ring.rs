//! Rings of transfers are those that an independent program finds (Tarjan's algorithm, written here), at every epoch, on
//! any number of workers and processes, whatever is killed; a ring is there from the epoch in which its last transfer comes
//! until the one in which its first transfer is over an hour old.
#![expect(clippy::unwrap_used, reason = "a panic fails the test")]

#[path = "../queries/fraud_ring.rs"]
#[expect(dead_code, reason = "the program is run as users do")]
mod fraud_ring;
#[path = "common/run.rs"]
mod run;
#[path = "common/transactions.rs"]
mod transactions;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use fraud_ring::{LIFE, OnRing};
use run::{TIDEGATE, check_contains, run, start};
use tidegate::durable::disk::Disk;
use tidegate::source::memory::MemorySource;
use tidegate::testing::{Captured, CrashingDisk, Script, TestRun};
use tidegate::time::Epoch;
use transactions::{COLUMNS, Transaction, csv_of};

use common::cases::for_seeds;

const MINUTE: i64 = 60_000;
const HOUR: i64 = 60 * MINUTE;

type Edge = (String, String);

/// A ring that was planted: its accounts, and when its first and last transfers happen.
struct Planted {
    accounts: Vec<String>,
    first: i64,
    last: i64,
}

/// Transfers in the order of time, no two at once, with planted rings among random transfers. No transfer leads back to an
/// account of a planted ring from elsewhere.
fn transfers(random: &mut Rng, count: usize, accounts: usize) -> (Vec<Transaction>, Vec<Planted>) {
    let (mut edges, mut planted) = (BTreeMap::<i64, Edge>::new(), Vec::new());
    let span = count as i64 * MINUTE;
    let mut put = |at: i64, edge: Edge| {
        let at = (at..).find(|at| !edges.contains_key(at)).unwrap();
        edges.insert(at, edge);
        at
    };
    for ring in 0..count / 12 {
        let size = random.usize(2..6);
        let accounts: Vec<String> = (0..size).map(|at| format!("ring-{ring:02}-{}", (at * 7 + ring) % size)).collect();
        let begin = random.i64(0..span - HOUR / 2);
        let ends = |at: usize| (accounts[at].clone(), accounts[(at + 1) % size].clone());
        let times: Vec<i64> = (0..size).map(|at| put(begin + random.i64(0..HOUR * 3 / 4), ends(at))).collect();
        let (first, last) = (*times.iter().min().unwrap(), *times.iter().max().unwrap());
        planted.push(Planted {
            accounts: accounts.into_iter().collect::<BTreeSet<_>>().into_iter().collect(),
            first,
            last,
        });
    }
    for _ in 0..count {
        let from = match random.u8(0..10) {
            0 => planted[random.usize(0..planted.len())].accounts[0].clone(),
            _ => format!("a-{:03}", random.usize(0..accounts)),
        };
        put(random.i64(0..span), (from, format!("a-{:03}", random.usize(0..accounts))));
    }
    let row = |(id, (at_ms, (account, merchant)))| {
        let currency = "EUR".to_owned();
        Transaction { id, account, merchant, amount_cents: 100, currency, at_ms }
    };
    ((0..).zip(edges).map(row).collect(), planted)
}

/// Returns the edges of transfers that are less than an hour old.
fn live(rows: &[Transaction], watermark: i64) -> BTreeSet<Edge> {
    let live = rows.iter().filter(|row| row.at_ms + LIFE.as_millis() as i64 > watermark);
    live.map(|row| (row.account.clone(), row.merchant.clone())).collect()
}

/// Tarjan's algorithm: the strongly connected components of a graph.
struct Tarjan<'a> {
    next: BTreeMap<&'a str, Vec<&'a str>>,
    index: BTreeMap<&'a str, usize>,
    low: BTreeMap<&'a str, usize>,
    stack: Vec<&'a str>,
    components: Vec<BTreeSet<&'a str>>,
}

impl<'a> Tarjan<'a> {
    fn visit(&mut self, node: &'a str) {
        let at = self.index.len();
        self.index.insert(node, at);
        self.low.insert(node, at);
        self.stack.push(node);
        for next in self.next.get(node).cloned().unwrap_or_default() {
            let reached = if self.index.contains_key(next) {
                self.stack.contains(&next).then(|| self.index[next])
            } else {
                self.visit(next);
                Some(self.low[next])
            };
            let low = self.low[node].min(reached.unwrap_or(usize::MAX));
            self.low.insert(node, low);
        }
        if self.low[node] == at {
            let from = self.stack.iter().position(|other| *other == node).unwrap();
            self.components.push(self.stack.drain(from..).collect());
        }
    }
}

/// Returns the accounts on rings.
fn rings_of(edges: &BTreeSet<Edge>) -> BTreeSet<OnRing> {
    let mut next = BTreeMap::<&str, Vec<&str>>::new();
    edges.iter().for_each(|(from, to)| next.entry(from).or_default().push(to));
    let (index, low, stack, components) = Default::default();
    let mut search = Tarjan { next, index, low, stack, components };
    for (from, _) in edges {
        if !search.index.contains_key(from.as_str()) {
            search.visit(from);
        }
    }
    let rings = search.components.into_iter().filter(|accounts| accounts.len() > 1);
    let rows = rings.flat_map(|accounts| {
        let ring = (*accounts.first().unwrap()).to_owned();
        accounts.into_iter().map(move |account| OnRing { ring: ring.as_str().into(), account: account.into() })
    });
    rows.collect()
}

fn source(rows: &[Transaction]) -> MemorySource<tidegate::Transaction> {
    let rows = rows.iter().cloned().map(|Transaction { id, account, merchant, amount_cents, currency, at_ms }| {
        let (account, merchant, currency) = (account.into(), merchant.into(), currency.into());
        tidegate::Transaction { id, account, merchant, amount_cents, currency, at_ms }
    });
    MemorySource::new(vec![rows.collect()], |t| t.at_ms).out_of_order(Duration::ZERO)
}

/// Compares the rings at every epoch; each epoch takes a transfer.
fn check_epochs(rows: &[Transaction], planted: &[Planted], told: &Captured<OnRing>) -> Result<(), String> {
    let mut now = BTreeMap::<OnRing, isize>::new();
    let mut epochs = told.epochs();
    let ring_of = |ring: &Planted| ring.accounts[0].clone();
    for (at, row) in rows.iter().enumerate() {
        let epoch = Epoch(2 * (at as u64 + 1));
        for (row, diff) in epochs.remove(&epoch).unwrap_or_default() {
            *now.entry(row).or_default() += diff;
        }
        now.retain(|_, times| *times != 0);
        let expected: BTreeMap<_, _> =
            rings_of(&live(&rows[..=at], row.at_ms)).into_iter().map(|row| (row, 1)).collect();
        if now != expected {
            return Err(format!("at epoch {epoch}:\n     got {now:?}\nexpected {expected:?}"));
        }
        for ring in planted {
            let there: Vec<_> = now.keys().filter(|row| row.ring == ring_of(ring)).map(|row| &row.account).collect();
            // From its last transfer on, until its first is an hour old.
            let wanted = ring.last <= row.at_ms && row.at_ms < ring.first + HOUR;
            if wanted && there != ring.accounts.iter().collect::<Vec<_>>() || !wanted && !there.is_empty() {
                return Err(format!("at epoch {epoch}, of the ring {:?} there are {there:?}", ring.accounts));
            }
        }
    }
    match epochs.first_key_value() {
        None => Ok(()),
        Some((epoch, rows)) => Err(format!("at epoch {epoch}, which has no transfer, there are {rows:?}")),
    }
}

/// A script that takes one record an epoch, and ends.
fn one_by_one(rows: &[Transaction]) -> Script {
    (1..=rows.len()).fold(Script::new(), |script, at| {
        script.epoch(|e| if at == rows.len() { e.take(0, 1).end(0) } else { e.take(0, 1) })
    })
}

#[test]
fn a_ring_is_there_from_its_last_transfer_on_until_its_first_is_an_hour_old() {
    for_seeds(4, |seed| {
        let (rows, planted) = transfers(&mut Rng::with_seed(seed), 140, 40);
        assert!(planted.len() > 5, "there are few rings");
        let (told, source) = (Captured::new(), source(&rows));
        let output = told.clone();
        let (processes, workers) = [(1, 1), (1, 2), (2, 1), (1, 4)][seed as usize % 4];
        let run = TestRun::new().processes(processes).workers(workers).script("transactions", one_by_one(&rows));
        run.run(move |flow| fraud_ring::rings(flow.read("transactions", &source)).0.write("rings", &output))
            .map_err(|error| error.to_string())?;
        check_epochs(&rows, &planted, &told)
    });
}

/// Crashes in memory, on one and two workers and two processes: every account is on its ring once in the end.
#[test]
fn rings_survive_crashes() {
    for_seeds(4, |seed| {
        let mut random = Rng::with_seed(seed);
        let (rows, _) = transfers(&mut random, 150, 50);
        let (told, mut disk, mut crashes) = (Captured::<OnRing>::new(), CrashingDisk::new(), 0);
        for life in 0..100 {
            if life < 8 {
                disk.crash_at(random.usize(20..160));
            }
            let (source, output, shared): (_, _, Arc<dyn Disk>) = (source(&rows), told.clone(), disk.shared());
            let (processes, workers) = *random.choice(&[(1, 1), (1, 2), (2, 1)]).unwrap();
            let run = TestRun::new().processes(processes).workers(workers).seed(random.u64(..)).in_flight(1);
            let run = run.state(&shared, "state");
            match run.run(move |flow| fraud_ring::rings(flow.read("transactions", &source)).0.write("rings", &output)) {
                Ok(_) => break,
                Err(_) if disk.has_crashed() => (disk, crashes) = (disk.survivors(random.u64(..)), crashes + 1),
                Err(error) => return Err(error.to_string()),
            }
        }
        let expected = rings_of(&live(&rows, rows.last().unwrap().at_ms)).into_iter().collect::<Vec<_>>();
        let now = told.all();
        if now == expected {
            return Ok(());
        }
        Err(format!("after {crashes} crashes:\n     got {now:?}\nexpected {expected:?}"))
    });
}

/// Returns the rows of a file of changes, which must never take back what is not there.
fn changes_of(path: &std::path::Path) -> BTreeSet<OnRing> {
    let mut now = BTreeSet::new();
    for line in csv::Reader::from_path(path).unwrap().into_deserialize() {
        let (ring, account, diff): (String, String, isize) = line.unwrap();
        let row = OnRing { ring: ring.into(), account: account.into() };
        let is_sound = if diff == 1 { now.insert(row.clone()) } else { diff == -1 && now.remove(&row) };
        assert!(is_sound, "{row:?} comes again, or goes again: {diff}");
    }
    now
}

#[test]
fn the_program_is_killed_on_workers_and_processes_and_its_file_has_each_change_once() {
    let mut random = Rng::with_seed(3);
    let (mut rows, _) = transfers(&mut random, 20_000, 60);
    // A transfer that is over an hour old when it comes, and would make a ring of all.
    let late = Transaction { id: 9_999_999, at_ms: rows[15_000].at_ms - HOUR - 5_000, ..rows[10].clone() };
    rows.insert(15_001, late.clone());
    let reached = rows.last().unwrap().at_ms - transactions::DISORDER_MS;
    let expected = rings_of(&live(&rows, reached));
    assert!(expected.len() > 10, "{expected:?}");
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("in.csv"), csv_of(&rows, &COLUMNS)).unwrap();
    let line = "--csv {}/in.csv --state {}/state --out {}/rings.csv --late {}/late.csv --until-end --epoch 5ms \
                --snapshot-every 15ms --in-flight 1MiB --progress off";
    let typed: Vec<String> =
        line.split_whitespace().map(|word| word.replace("{}", folder.path().to_str().unwrap())).collect();
    let mut kills = 0;
    for (kill, shape) in [
        ("manifest:1", "-w 2"),
        ("segment-sync:1", ""),
        ("sink-commit:1", "-w 2"),
        ("journal-sync:2", "-w 3"),
        ("journal-append:1", ""),
    ] {
        let when = ["before", "after"][random.usize(0..2)];
        let more = format!("--kill-at {when}:{kill} {shape}");
        let words = typed.iter().map(String::as_str).chain(more.split_whitespace());
        kills += usize::from(start("fraud_ring", words).end_or_killed().was_killed());
    }
    assert!(kills >= 3, "{kills} kills only");
    // Two processes go on.
    let words = ["up", "-n", "2", "--", "fraud_ring"].into_iter().chain(typed.iter().map(String::as_str));
    start(TIDEGATE, words).end().code(0);
    assert_eq!(changes_of(&folder.path().join("rings.csv")), expected);
    let late_rows = transactions::rows_of(&folder.path().join("late.csv"), &COLUMNS);
    assert_eq!(late_rows, [COLUMNS.map(|column| late.column(column)).to_vec()]);
    let before = std::fs::read(folder.path().join("rings.csv")).unwrap();
    run("fraud_ring", &typed).code(0);
    assert!(std::fs::read(folder.path().join("rings.csv")).unwrap() == before, "it has ended, and wrote more");
}

#[test]
fn rings_are_the_same_on_any_number_of_workers() {
    let (rows, _) = transfers(&mut Rng::with_seed(8), 600, 150);
    let expected = rings_of(&live(&rows, rows.last().unwrap().at_ms - transactions::DISORDER_MS));
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("in.csv"), csv_of(&rows, &COLUMNS)).unwrap();
    for workers in ["1", "4"] {
        let (input, out) = (folder.path().join("in.csv"), folder.path().join(format!("rings-{workers}.csv")));
        let paths = [input.to_str().unwrap(), out.to_str().unwrap()];
        let words = ["--csv", paths[0], "--out", paths[1], "--until-end", "-w", workers, "--epoch", "5ms"];
        run("fraud_ring", words).code(0);
        assert_eq!(changes_of(&out), expected);
    }
    let refused = run("fraud_ring", ["--allowed-lateness", "5s", "--until-end", "--csv", "in.csv"]);
    check_contains(refused.error(2), &["--allowed-lateness", "an hour old"]);
}
