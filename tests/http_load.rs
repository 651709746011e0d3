//! Many open pages cost a job little: its rate with them is compared with its rate alone, in alternation.
//!
//! A page asks five paths a second on one connection, as a browser does, and follows a key of a view on another. Clients
//! and job share the machine, so the test bounds the ratio of the rates loosely, and prints what it has measured, the
//! time of the server's threads among it. For figures:
//!
//! ```text
//! HTTP_PAGES=200 HTTP_RECORDS=6000000 HTTP_RATIO=0.95 cargo test --release --test http_load -- --nocapture
//! ```
#![cfg(feature = "http")]
#![expect(clippy::unwrap_used, reason = "a panic fails the test")]

#[path = "common/run.rs"]
mod run;

use std::fmt::Write as _;
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use run::{Running, start};

const TOTALS: &str = "account_totals";
const LONG: Duration = Duration::from_secs(60);
/// Interval at which a page asks.
const EVERY: Duration = Duration::from_secs(1);
/// Threads that play pages.
const THREADS: usize = 4;
const ACCOUNTS: u64 = 1_000;
/// Shares of the records between which the rate is measured.
const MEASURED: (f64, f64) = (0.1, 0.9);

fn size<N: std::str::FromStr>(variable: &str, or: N) -> N {
    std::env::var(variable).map_or(or, |size| size.parse().ok().unwrap())
}

fn write_records(path: &Path, records: u64) {
    let mut text = String::from("id,account,merchant,amount_cents,currency,at_ms\n");
    for id in 0..records {
        let at = 1_735_689_600_000 + id;
        writeln!(text, "{id},account-{:06},shop,5,EUR,{at}", id % ACCOUNTS).unwrap();
    }
    fs::write(path, text).unwrap();
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect_timeout(&address, LONG).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// Sends a request on a connection that stays open; returns the status and the body as it was sent, or `None` when the
/// job has ended.
fn ask(stream: &mut TcpStream, path: &str, headers: &str) -> Option<(u16, Vec<u8>)> {
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n").as_bytes()).ok()?;
    let (mut answer, mut piece) = (Vec::new(), [0; 16 << 10]);
    loop {
        let read = stream.read(&mut piece).ok().filter(|read| *read > 0)?;
        answer.extend(&piece[..read]);
        let Some(end) = answer.windows(4).position(|four| four == b"\r\n\r\n") else { continue };
        let head = String::from_utf8_lossy(&answer[..end]).to_ascii_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        // A document of more than a piece is sent in pieces, the last of which is empty.
        let is_whole = match length {
            Some(length) => answer.len() - end - 4 >= length.parse().unwrap(),
            None => answer.ends_with(b"\r\n0\r\n\r\n"),
        };
        if is_whole {
            return Some((head.split(' ').nth(1)?.parse().ok()?, answer.split_off(end + 4)));
        }
    }
}

/// An open page.
struct OpenPage {
    polls: TcpStream,
    stream: TcpStream,
    next: Instant,
}

impl OpenPage {
    fn open(address: SocketAddr, number: usize, next: Instant) -> OpenPage {
        let (polls, mut stream) = (connect(address), connect(address));
        let account = number as u64 % ACCOUNTS;
        let path = format!("/views/totals/changes?key=account-{account:06}");
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        stream.set_nonblocking(true).unwrap();
        OpenPage { polls, stream, next }
    }
}

/// Figures of all pages.
#[derive(Default)]
struct PageCounts {
    answers: AtomicU64,
    bytes: AtomicU64,
    event_bytes: AtomicU64,
    slowest_us: AtomicU64,
}

/// Pages that are open until this is dropped.
struct OpenPages {
    over: Arc<AtomicBool>,
    counts: Arc<PageCounts>,
    threads: Vec<JoinHandle<()>>,
}

impl OpenPages {
    fn open(address: SocketAddr, pages: usize) -> OpenPages {
        let (over, counts) = (Arc::<AtomicBool>::default(), Arc::<PageCounts>::default());
        let threads = (0..THREADS).map(|thread| {
            let (over, counts) = (Arc::clone(&over), Arc::clone(&counts));
            std::thread::spawn(move || {
                let own = (0..pages).filter(|page| page % THREADS == thread);
                let begun = Instant::now();
                let at = |page: usize| begun + EVERY * page as u32 / pages as u32;
                let mut own: Vec<_> = own.map(|page| OpenPage::open(address, page, at(page))).collect();
                while !over.load(Ordering::Relaxed) && !own.is_empty() {
                    let now = Instant::now();
                    for page in own.iter_mut().filter(|page| page.next <= now) {
                        page.next += EVERY;
                        if turn(page, begun, &counts).is_none() {
                            return;
                        }
                    }
                    std::thread::sleep(Duration::from_millis(5));
                }
            })
        });
        OpenPages { threads: threads.collect(), over, counts }
    }
}

impl Drop for OpenPages {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().unwrap();
        }
    }
}

/// Asks what a page asks each second, and takes the events so far; returns `None` when the job has ended.
fn turn(page: &mut OpenPage, begun: Instant, counts: &PageCounts) -> Option<()> {
    let since = begun.elapsed().as_secs().saturating_sub(1);
    for path in [&format!("/history?since={since}"), "/status", "/why?format=json", "/metrics", "/views"] {
        let asked = Instant::now();
        let (status, body) = ask(&mut page.polls, path, "Accept-Encoding: gzip, deflate, br\r\n")?;
        assert_eq!(status, 200, "{path}: {}", String::from_utf8_lossy(&body));
        counts.answers.fetch_add(1, Ordering::Relaxed);
        counts.bytes.fetch_add(body.len() as u64, Ordering::Relaxed);
        counts.slowest_us.fetch_max(asked.elapsed().as_micros() as u64, Ordering::Relaxed);
    }
    let mut piece = [0; 64 << 10];
    loop {
        match page.stream.read(&mut piece) {
            Ok(0) => return None,
            Ok(read) => counts.event_bytes.fetch_add(read as u64, Ordering::Relaxed),
            Err(why) if why.kind() == ErrorKind::WouldBlock => return Some(()),
            Err(_) => return None,
        };
    }
}

/// Returns the processor time of a process's threads, in ticks: that of all, and that of its server.
fn ticks(pid: u32) -> Option<(u64, u64)> {
    let (mut all, mut server) = (0, 0);
    for thread in fs::read_dir(format!("/proc/{pid}/task")).ok()? {
        let line = fs::read_to_string(thread.ok()?.path().join("stat")).ok()?;
        let (name, rest) = line.split_once('(')?.1.rsplit_once(')')?;
        let own: u64 = rest.split(' ').skip(12).take(2).map(|ticks| ticks.parse::<u64>().unwrap()).sum();
        all += own;
        server += if name.starts_with("http") { own } else { 0 };
    }
    Some((all, server))
}

/// Measurements of one run.
#[derive(Clone, Copy, Debug)]
struct LoadFigures {
    /// Records each second.
    rate: f64,
    /// Share of the server's threads in the processor time of the job.
    share: f64,
}

fn measure(folder: &Path, records: u64, number: usize, pages: usize) -> LoadFigures {
    let (input, out) = (folder.join("in.csv"), folder.join(format!("{number}.csv")));
    let line = format!("--csv {} --out {} --http 127.0.0.1:0 --progress off", input.display(), out.display());
    let mut job: Running = start(TOTALS, line.split(' '));
    let address = job.wait_until("the address", |running| {
        let said = running.stderr();
        said.split_once("watch it at http://")?.1.split_once(' ')?.0.parse::<SocketAddr>().ok()
    });
    let open = OpenPages::open(address, pages);
    let mut own = connect(address);
    let (mut samples, mut used) = (Vec::<(Instant, f64)>::new(), (0, 0));
    let begun = Instant::now();
    while samples.last().is_none_or(|(_, read)| *read < MEASURED.1 * records as f64) {
        let (_, metrics) = ask(&mut own, "/metrics", "").unwrap();
        let metrics = String::from_utf8_lossy(&metrics);
        let line = metrics.lines().find(|line| line.starts_with("tidegate_source_records_total{"));
        let read = line.map_or(0.0, |line| line.rsplit_once(' ').unwrap().1.parse().unwrap());
        samples.push((Instant::now(), read));
        used = ticks(job.id()).unwrap_or(used);
        assert!(begun.elapsed() < 5 * LONG, "{read} of {records} records after {:?}", begun.elapsed());
        std::thread::sleep(Duration::from_millis(50));
    }
    // The time at which a share of the records was read lies between two samples.
    let at = |share: f64| {
        let wanted = share * records as f64;
        let after = samples.iter().position(|(_, read)| *read >= wanted).unwrap();
        let Some(before) = after.checked_sub(1) else { return samples[0].0 };
        let ((from, less), (to, more)) = (samples[before], samples[after]);
        from + (to - from).mul_f64((wanted - less) / (more - less))
    };
    let rate = (MEASURED.1 - MEASURED.0) * records as f64 / (at(MEASURED.1) - at(MEASURED.0)).as_secs_f64();
    let share = used.1 as f64 / used.0 as f64;
    let counts = Arc::clone(&open.counts);
    drop(open);
    let seconds = begun.elapsed().as_secs_f64();
    let figure = |count: &AtomicU64| count.load(Ordering::Relaxed);
    println!(
        "{pages} pages: {rate:.0} records/s; the server took {:.1} % of the job's processor time in {seconds:.1} s; {} \
         answers of {} KiB, {} KiB of events, the slowest answer after {} ms",
        share * 100.0,
        figure(&counts.answers),
        figure(&counts.bytes) >> 10,
        figure(&counts.event_bytes) >> 10,
        figure(&counts.slowest_us) / 1000
    );
    if pages > 0 {
        assert!(figure(&counts.answers) >= 5 * pages as u64 / 2, "pages are not answered");
        assert!(figure(&counts.event_bytes) > 100 * pages as u64, "streams bring nothing");
    }
    job.signal(nix::sys::signal::Signal::SIGTERM);
    job.end().code(143);
    LoadFigures { rate, share }
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

#[test]
fn open_pages_cost_a_job_little_of_its_rate() {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
    let (pages, records) = (size("HTTP_PAGES", 50), size("HTTP_RECORDS", 200_000));
    let folder = tempfile::tempdir().unwrap();
    write_records(&folder.path().join("in.csv"), records);
    let (mut alone, mut beset, mut shares) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..3 {
        alone.push(measure(folder.path(), records, 2 * round, 0).rate);
        let LoadFigures { rate, share } = measure(folder.path(), records, 2 * round + 1, pages);
        beset.push(rate);
        shares.push(share);
    }
    let ratio = median(beset) / median(alone);
    let share = median(shares);
    println!(
        "with {pages} pages the job has {:.1} % of its rate; the server has {:.1} % of its time",
        ratio * 100.0,
        share * 100.0
    );
    assert!(ratio > size("HTTP_RATIO", 0.4), "{ratio}");
}
