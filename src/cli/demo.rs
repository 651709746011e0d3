//! `tidegate demo`: shows a query at work, and checks its result.
//!
//! It starts a broker in its own process, unless it is given one, and produces transactions at a steady rate. Meanwhile
//! it runs two programs: the query `account_totals`, and `tidegate consume`, which copies the topic. At the end it
//! compares both files with what it has produced (`ledger`).
//!
//! * Both **programs** are this executable (`child`): as `tidegate`, and under the name [`QUERY`], which makes it run
//!   the query. So the demo needs nothing that `cargo run` has not built, and never runs an older build of the query.
//! * The programs do not get `--until-end`, because the topic is still being filled. **Closing** transactions at the
//!   end let every window close. When all rows are written, the programs are stopped by SIGTERM.
//!
//! Invariants: the topic holds nothing but what this run produced; the demo leaves no program behind; its files are of
//! one run, as the directory is locked.

mod child;
mod display;
mod ledger;
mod page;

use std::ffi::OsString;
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use clap::Args;
use indicatif::HumanCount;

use self::child::Program;
use self::display::DemoDisplay;
use self::ledger::{Differences, Ledger, compare_copy, compare_totals};
use self::page::TerminalKeys;
use super::plot::plot_results;
use super::stop::StopSignal;
use super::{note, print_line};
use crate::error::{Error, Result};
use crate::sink::kafka::Publisher;
use crate::source::generator::{Generator, Transaction};
use crate::source::kafka::EmbeddedBroker;

/// `true` if this build can serve the page of a job.
const HAS_PAGE: bool = cfg!(feature = "http");

/// The address at which the query serves its page.
const ANY_PORT: &str = "127.0.0.1:0";

/// The program name that makes this executable run the query.
pub const QUERY: &str = "account_totals";

const TOPIC: &str = "transaction";

const PARTITIONS: u32 = 4;

/// Maximum number of transactions for the embedded broker. It keeps 5 MiB per partition, compressed as sent, which was
/// measured to hold this many at 4,000 a second while the programs were held up to the end. Lower rates compress less:
/// the broker then drops the oldest, which the programs have usually read long before; if not, the comparison at the
/// end fails.
const MAX_EMBEDDED_TRANSACTIONS: u64 = 100_000;

/// Makes larger batches, which compress better: the embedded broker counts compressed bytes.
const PROPERTIES: [(&str, &str); 2] = [("linger.ms", "25"), ("compression.type", "lz4")];

/// Maximum number of transactions sent and not yet acknowledged: few enough that sending never blocks, because a
/// blocked send could not be interrupted.
const MAX_IN_FLIGHT: u64 = 100_000;

/// Time without progress after which the brokers are considered gone, or missing rows at the end lost.
const STALL_TIMEOUT: Duration = Duration::from_secs(15);

/// Time to go on reading once all rows are there, to detect rows in excess.
const EXTRA_ROWS_WAIT: Duration = Duration::from_millis(300);

const EXAMPLES: &str = "Examples:
  tidegate demo
  tidegate demo --seconds 40 --rate 2000 --accounts 100
  tidegate demo --kill-every 5s
  tidegate demo --brokers localhost:9092 --rate 50000

The topic is `transaction`; if the brokers have one already, it is left alone and another is
created, named tidegate-demo-… . The directory gets account_totals.csv, a picture of it
(account_totals.svg), transactions.csv and the programs' logs. The query serves a page, whose
address is printed; on a terminal, o opens it.";

/// Shows a query at work, and checks its result.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
#[command(after_help = EXAMPLES)]
pub struct DemoArgs {
    /// Use these brokers instead of the one in memory
    #[arg(long, value_name = "HOST:PORT[,…]")]
    pub brokers: Option<String>,

    /// Time for which transactions are produced, in seconds
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub seconds: u64,

    /// Transactions produced per second
    #[arg(long, value_name = "R", default_value_t = 4_000, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub rate: u64,

    /// Number of accounts of the transactions
    #[arg(long, value_name = "A", default_value_t = 1_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub accounts: u64,

    /// Directory of the results; files of an earlier demo are replaced
    #[arg(long, value_name = "DIR", default_value = "tidegate-demo")]
    pub dir: PathBuf,

    /// Kill the query with SIGKILL at this interval, and restart it: with its state it resumes where its results end
    #[arg(long, value_name = "TIME", value_parser = super::duration)]
    pub kill_every: Option<Duration>,

    /// Seed of the transactions: equal seeds give equal ones, except for their times
    #[arg(long, value_name = "S", default_value_t = 1)]
    pub seed: u64,
}

impl Default for DemoArgs {
    fn default() -> Self {
        let (dir, kill_every) = ("tidegate-demo".into(), None);
        DemoArgs { brokers: None, seconds: 20, rate: 4_000, accounts: 1_000, dir, kill_every, seed: 1 }
    }
}

/// Runs `tidegate demo`; returns the exit code.
///
/// # Errors
/// Fails if the broker, the directory or a program cannot be used, or the results differ from what was produced.
pub fn demo(args: &DemoArgs) -> Result<u8> {
    let stop = StopSignal::listen()?;
    let count = args.seconds * args.rate;
    if args.brokers.is_none() && count > MAX_EMBEDDED_TRANSACTIONS {
        let error = Error::usage(format!("the broker in memory does not hold {} transactions", HumanCount(count)));
        let most = HumanCount(MAX_EMBEDDED_TRANSACTIONS);
        return Err(error.help(format!("let --seconds times --rate be at most {most}, or use --brokers")));
    }
    let folder = DemoDirectory::prepare(&args.dir)?;
    let beginning = stop.begin_startup();
    let mut place = DemoTopic::prepare(args.brokers.as_deref())?;
    drop(beginning);
    let mut programs = Programs::start(&place, &folder, args.kill_every)?;
    print_line(format_args!(
        "Transactions go to the topic {} at {}, {} a second.",
        place.topic,
        place.servers,
        HumanCount(args.rate)
    ));
    print_line(format_args!("Meanwhile a query totals them by account every 10 seconds of event time, on 2 workers:"));
    print_line(format_args!(
        "  tidegate account_totals --brokers {} --topic {} --out {} -w 2{}{}",
        place.servers,
        place.topic,
        folder.totals(),
        if HAS_PAGE { " --http 127.0.0.1:0" } else { "" },
        args.kill_every.map_or(String::new(), |_| format!(" --state {}", folder.state().display())),
    ));
    if let Some(every) = args.kill_every {
        print_line(format_args!("It is killed every {}, and restarted.", humantime::format_duration(every)));
    }
    let mut run = DemoRun {
        ledger: Ledger::new(Generator::new(args.seed).accounts(args.accounts)),
        acknowledged: (0, Instant::now()),
        view: DemoDisplay::start(
            count + place.publisher.partitions().0 as u64,
            &folder.copy,
            &folder.totals,
            &folder.query_log,
        ),
        publisher: &mut place.publisher,
        programs: &mut programs,
        stop: &stop,
        keys: TerminalKeys::take().filter(|_| HAS_PAGE),
        has_offered: false,
    };
    let rate = run.produce(count, args.rate).and_then(|rate| {
        run.programs.stop_killing();
        run.close().map(|()| rate)
    });
    run.view.finish();
    run.keys = None;
    let (rate, ledger) = (rate?, run.ledger);
    programs.stop()?;
    if let Some(code) = stop.exit_code_if_stopped() {
        let count = HumanCount(ledger.count());
        note(format_args!("stopped after {count} transactions; the files in {} are not complete", folder.name()));
        return Ok(code);
    }
    report(args, &place, &folder, &ledger, rate, &programs)?;
    Ok(0)
}

/// The directory of a run, locked.
struct DemoDirectory {
    path: PathBuf,
    totals: PathBuf,
    copy: PathBuf,
    picture: PathBuf,
    query_log: PathBuf,
    copy_log: PathBuf,
    _lock: File,
}

impl DemoDirectory {
    /// Creates the directory if it is missing, locks it, and removes the files of an earlier demo.
    fn prepare(path: &Path) -> Result<Self> {
        let failed = |error| Error::new("cannot use the directory").at(path.display()).because(error);
        fs::create_dir_all(path).map_err(failed)?;
        let lock = File::create(path.join("lock")).map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let error = Error::new("another demo is at work").at(path.display());
                return Err(error.help("wait for its end, or use another --dir"));
            }
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        let names =
            ["account_totals.csv", "transactions.csv", "account_totals.svg", "account_totals.log", "consume.log"];
        let [totals, copy, picture, query_log, copy_log] = names.map(|name| path.join(name));
        for old in [&totals, &copy, &picture, &query_log, &copy_log] {
            match fs::remove_file(old) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
                _ => {}
            }
        }
        // The query's state, and the commit files of its results.
        match fs::remove_dir_all(path.join("state")) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        for entry in fs::read_dir(path).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if entry.file_name().to_string_lossy().starts_with("account_totals.csv.") {
                fs::remove_file(entry.path()).map_err(failed)?;
            }
        }
        Ok(DemoDirectory { path: path.to_owned(), totals, copy, picture, query_log, copy_log, _lock: lock })
    }

    fn name(&self) -> std::path::Display<'_> {
        self.path.display()
    }

    /// Returns the state directory of the query, used with `--kill-every`.
    fn state(&self) -> PathBuf {
        self.path.join("state")
    }

    fn totals(&self) -> std::path::Display<'_> {
        self.totals.display()
    }
}

/// A topic that only this run uses, and the broker that has it.
struct DemoTopic {
    publisher: Publisher,
    servers: String,
    topic: String,
    _embedded: Option<EmbeddedBroker>,
}

impl DemoTopic {
    fn prepare(brokers: Option<&str>) -> Result<Self> {
        let Some(brokers) = brokers else {
            let embedded = EmbeddedBroker::start()?;
            embedded.create_topic(TOPIC, PARTITIONS)?;
            let servers = embedded.servers().to_owned();
            let publisher = Publisher::open(&servers, TOPIC, PROPERTIES, None)?;
            return Ok(DemoTopic { publisher, servers, topic: TOPIC.to_owned(), _embedded: Some(embedded) });
        };
        let own = format!("tidegate-demo-{:x}", now_ms());
        for topic in [TOPIC, &own] {
            let publisher = Publisher::open(brokers, topic, PROPERTIES, Some(PARTITIONS))?;
            if publisher.partitions().1 {
                return Ok(DemoTopic {
                    publisher,
                    servers: brokers.to_owned(),
                    topic: topic.to_owned(),
                    _embedded: None,
                });
            }
        }
        Err(Error::new("there is a topic of this name already").at(own).help("try again"))
    }
}

/// The two programs.
struct Programs {
    query: Program,
    copy: Program,
    kills: Option<KillSchedule>,
}

/// Schedule and arguments of killing and restarting the query.
struct KillSchedule {
    every: Duration,
    due: Instant,
    arguments: Vec<OsString>,
    log: PathBuf,
    count: u32,
}

impl Programs {
    fn start(place: &DemoTopic, folder: &DemoDirectory, kill_every: Option<Duration>) -> Result<Self> {
        let from = ["--brokers", &place.servers, "--topic", &place.topic, "--out"];
        let arguments = |command: &[&str], out: &Path, more: &[&str]| -> Vec<OsString> {
            let words = |words: &[&str]| words.iter().map(OsString::from).collect::<Vec<_>>();
            [words(command), words(&from), vec![out.into()], words(more)].concat()
        };
        let query = ["-w", "2", "--progress", "plain", "--progress-every", "500ms"];
        let mut query = arguments(&[], &folder.totals, &query);
        if HAS_PAGE {
            query.extend(["--http".into(), ANY_PORT.into()]);
        }
        if kill_every.is_some() {
            query.extend(["--state".into(), folder.state().into()]);
        }
        let copy = arguments(&["consume"], &folder.copy, &[]);
        Ok(Programs {
            kills: kill_every.map(|every| {
                let (due, arguments, log) = (Instant::now() + every, query.clone(), folder.query_log.clone());
                KillSchedule { every, due, arguments, log, count: 0 }
            }),
            query: Program::start(QUERY, QUERY, &query, &folder.query_log)?,
            copy: Program::start("consume", "tidegate", &copy, &folder.copy_log)?,
        })
    }

    /// Checks that both run; kills and restarts the query if that is due. `page` is the address of its page.
    fn check(&mut self, page: Option<&str>) -> Result<()> {
        if let Some(kills) = self.kills.as_mut().filter(|kills| Instant::now() >= kills.due) {
            self.query.check()?;
            self.query.kill();
            // The page is found again where it was.
            if let Some(address) = page {
                kills
                    .arguments
                    .iter_mut()
                    .filter(|argument| *argument == ANY_PORT)
                    .for_each(|any| *any = address.into());
            }
            self.query = Program::start_again(QUERY, QUERY, &kills.arguments, &kills.log)?;
            kills.count += 1;
            kills.due = Instant::now() + kills.every;
        }
        self.query.check()?;
        self.copy.check()
    }

    /// Ends the kills of the query.
    fn stop_killing(&mut self) {
        if let Some(kills) = &mut self.kills {
            kills.every = Duration::MAX;
            kills.due = Instant::now() + Duration::from_secs(86_400);
        }
    }

    /// Stops both programs cleanly.
    fn stop(&mut self) -> Result<()> {
        self.query.ask_to_stop();
        self.copy.ask_to_stop();
        self.query.wait()?;
        self.copy.wait()
    }
}

/// The state of a demo while it produces and waits.
struct DemoRun<'a> {
    publisher: &'a mut Publisher,
    programs: &'a mut Programs,
    stop: &'a StopSignal,
    ledger: Ledger,
    /// Number of transactions that the brokers have acknowledged, and the time at which it last changed.
    acknowledged: (u64, Instant),
    view: DemoDisplay,
    /// The keyboard, if somebody sits at it and there is a page to open.
    keys: Option<TerminalKeys>,
    /// `true` once the address of the page is printed.
    has_offered: bool,
}

impl DemoRun<'_> {
    /// Produces `count` transactions at `rate` per second; returns the actual rate. Ends early on a request to stop.
    fn produce(&mut self, count: u64, rate: u64) -> Result<f64> {
        let (begun, begun_ms) = (Instant::now(), now_ms());
        while self.ledger.count() < count && self.stop.exit_code_if_stopped().is_none() {
            let elapsed = begun.elapsed();
            let due = (elapsed.as_secs_f64() * rate as f64) as u64 + 1;
            // Not the wall clock, which may be set back.
            let now_ms = begun_ms + elapsed.as_millis() as i64;
            // In small steps, so that their times are right even after a delay.
            let due = due.min(count).min(self.acknowledged.0 + MAX_IN_FLIGHT);
            for _ in self.ledger.count()..due.min(self.ledger.count() + 500) {
                let transaction = self.ledger.next(now_ms);
                let message = message(&transaction)?;
                self.publisher.send(Some(transaction.account.as_bytes()), &message, None)?;
            }
            self.step(if due > self.ledger.count() { Duration::ZERO } else { Duration::from_millis(2) })?;
        }
        Ok(self.ledger.count() as f64 / begun.elapsed().as_secs_f64())
    }

    /// Produces the closing transactions, and waits until both files are complete. They are sent when all others have
    /// been copied, so that they are the last in the copy too: a query that reads the copy as one partition would find
    /// later transactions late.
    fn close(&mut self) -> Result<()> {
        self.await_rows(self.ledger.count(), 0, Duration::ZERO)?;
        if self.stop.exit_code_if_stopped().is_some() {
            return Ok(());
        }
        for (partition, transaction) in (0..).zip(self.ledger.close(self.publisher.partitions().0)) {
            let message = message(&transaction)?;
            self.publisher.send_to(partition, Some(transaction.account.as_bytes()), &message, None)?;
        }
        self.await_rows(self.ledger.count(), self.ledger.totals().rows(), EXTRA_ROWS_WAIT)
    }

    /// Waits until the files have this many rows, and `longer` after that; or until no more rows come, or on a request
    /// to stop.
    fn await_rows(&mut self, copied: u64, totals: u64, longer: Duration) -> Result<()> {
        let (mut rows, mut since) = (self.view.rows(), Instant::now());
        while self.stop.exit_code_if_stopped().is_none() {
            if rows != self.view.rows() {
                (rows, since) = (self.view.rows(), Instant::now());
            }
            let complete = rows.0 >= copied && rows.1 >= totals;
            if since.elapsed() >= if complete { longer } else { STALL_TIMEOUT } {
                break;
            }
            self.step(Duration::from_millis(20))?;
        }
        Ok(())
    }

    /// Serves the publisher, checks the brokers and programs, and refreshes the display; then sleeps for `rest`.
    fn step(&mut self, rest: Duration) -> Result<()> {
        self.publisher.poll()?;
        let taken = self.publisher.delivered();
        if taken != self.acknowledged.0 || taken == self.ledger.count() {
            self.acknowledged = (taken, Instant::now());
        } else if self.acknowledged.1.elapsed() >= STALL_TIMEOUT {
            let because = format!("nothing was taken for {} s", STALL_TIMEOUT.as_secs());
            let error = Error::new("the brokers take no more transactions").because(because);
            return Err(error.help("check that they are up and reachable"));
        }
        self.programs.check(self.view.address())?;
        self.view.refresh(self.ledger.count());
        self.offer_page();
        std::thread::sleep(rest);
        Ok(())
    }
    /// Prints the address of the page when it is known, and opens the page when its key is pressed.
    fn offer_page(&mut self) {
        let Some(address) = self.view.address() else { return };
        if !std::mem::replace(&mut self.has_offered, true) {
            let open = if self.keys.is_some() { "; press o to open it" } else { "" };
            self.view.print(&format!("Watch the query at http://{address}/{open}."));
        }
        if self.keys.as_ref().is_some_and(|keys| keys.has(page::OPEN))
            && let Some(problem) = page::open(address)
        {
            self.view.print(&problem);
        }
    }
}

fn message(transaction: &Transaction) -> Result<Vec<u8>> {
    serde_json::to_vec(transaction).map_err(|error| Error::new("cannot write a transaction as JSON").because(error))
}

/// Compares the files with what was produced, and prints the result.
fn report(
    args: &DemoArgs,
    place: &DemoTopic,
    folder: &DemoDirectory,
    ledger: &Ledger,
    rate: f64,
    programs: &Programs,
) -> Result<()> {
    let partitions = place.publisher.partitions().0;
    let (count, rate) = (HumanCount(ledger.count()), HumanCount(rate.round() as u64));
    print_line(format_args!(
        "{count} transactions produced, {rate} a second; the last {partitions} only close the open windows."
    ));
    let (copy, expected) = compare_copy(&folder.copy, ledger)?;
    let totals = compare_totals(&folder.totals, &expected)?;
    for (path, Differences { count, first }) in [(&folder.copy, &copy), (&folder.totals, &totals)] {
        first.iter().for_each(|what| note(format_args!("{}: {what}", path.display())));
        let more = count - first.len() as u64;
        if more > 0 {
            note(format_args!("{}: and {more} more", path.display()));
        }
    }
    if copy.count + totals.count > 0 {
        programs.query.print_log_tail();
        programs.copy.print_log_tail();
        let differ = format!("{} differences in transactions.csv, {} in account_totals.csv", copy.count, totals.count);
        let error = Error::new("the results differ from what was produced").at(folder.name()).because(differ);
        return Err(error.help("the first of them are above"));
    }
    let rows = HumanCount(expected.rows());
    if let Some(kills) = &programs.kills {
        print_line(format_args!("The query was killed {} times on the way, and resumed each time.", kills.count));
    }
    print_line(format_args!("{}: holds each of them once.", folder.copy.display()));
    print_line(format_args!("{}: {rows} rows, equal to totals recomputed from transactions.csv.", folder.totals()));
    plot_results(&folder.totals, &folder.picture, "count")?;
    print_line(format_args!("{}: the counts of all accounts, as a picture.", folder.picture.display()));
    print_line(format_args!("{}", next(args, place, folder)));
    Ok(())
}

/// Returns the text of what to try next.
fn next(args: &DemoArgs, place: &DemoTopic, folder: &DemoDirectory) -> String {
    // Programs are not in the path of a user who runs this by cargo.
    let by_cargo = std::env::var_os("CARGO").is_some();
    let tidegate = if by_cargo { "cargo run --release --" } else { "tidegate" };
    let (query, copy) = (format!("{tidegate} {QUERY}"), folder.copy.display());
    let broker = if args.brokers.is_some() {
        format!("the topic stays; read it once more\n  {query} --brokers {} --topic {}", place.servers, place.topic)
    } else {
        format!("a Kafka of your own, at localhost:9092 for instance\n  {tidegate} demo --brokers localhost:9092")
    };
    format!(
        "\nTry next:\n  head {totals}\n  {query} --csv {copy} --out-of-order 10s --until-end\n  \
         {tidegate} --help\n  # {broker}",
        totals = folder.totals(),
    )
}

fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::DemoArgs;

    /// The flags of the demo as a command line of their own.
    #[derive(Parser)]
    struct Typed {
        #[command(flatten)]
        demo: DemoArgs,
    }

    #[test]
    fn the_demo_alone_is_the_demo_without_flags() {
        assert_eq!(Typed::parse_from(["demo"]).demo, DemoArgs::default());
    }
}
