//! Clients of a job's HTTP server do not affect the job: not its rate, its memory, its descriptors or its shutdown.
//!
//! A server inside a job is an attack surface: anyone who can connect could hold descriptors, memory and threads of the
//! job, and keep it from ending. The real program runs with 1,024 descriptors, once without and once with all such
//! clients at a time; both runs are measured, and the figures printed. `HTTP_RECORDS`, `HTTP_IDLE` and `HTTP_STREAMS`
//! increase the load.
#![cfg(feature = "http")]
#![expect(clippy::unwrap_used, reason = "a panic fails the test")]

#[path = "common/run.rs"]
mod run;

use std::fmt::Write as _;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use run::{ProgramOutput, Running, check_contains, run, start, start_with};
use tidegate::{Job, Window, csv};

const TOTALS: &str = "account_totals";
const TIDEGATE: &str = env!("CARGO_BIN_EXE_tidegate");
const LONG: Duration = Duration::from_secs(60);
/// Accounts in each window: enough for a view of some megabytes.
const ACCOUNTS: u64 = 20_000;
/// Limit of descriptors of the program.
const DESCRIPTORS: u64 = 1024;

fn size(variable: &str, or: u64) -> u64 {
    std::env::var(variable).map_or(or, |size| size.parse().unwrap())
}

/// Writes transactions such that each window of 10 s has one of each account.
fn write_records(path: &Path, records: u64) {
    let mut text = String::from("id,account,merchant,amount_cents,currency,at_ms\n");
    for id in 0..records {
        let at = 1_735_689_600_000 + id * 10_000 / ACCOUNTS;
        writeln!(text, "{id},account-{:06},shop,5,EUR,{at}", id % ACCOUNTS).unwrap();
    }
    fs::write(path, text).unwrap();
}

/// Waits for the address that a program reports to serve at.
fn address(running: &mut Running) -> SocketAddr {
    running.wait_until("the address", |running| {
        let said = running.stderr();
        let (address, _) = said.split_once("watch it at http://")?.1.split_once(' ')?;
        address.parse().ok()
    })
}

fn connect(address: SocketAddr) -> Option<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, Duration::from_secs(5)).ok()?;
    stream.set_read_timeout(Some(LONG)).ok()?;
    stream.set_write_timeout(Some(LONG)).ok()?;
    Some(stream)
}

/// Sends a request; returns everything that is received until the connection is closed, or `None` if it fails.
fn exchange(address: SocketAddr, request: &str) -> Option<String> {
    let mut stream = connect(address)?;
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).ok()?;
    String::from_utf8(answer).ok().filter(|answer| !answer.is_empty())
}

/// Returns the status and the text of an answer; `None` without an answer.
fn get(address: SocketAddr, path: &str) -> Option<(u16, String)> {
    let answer = exchange(address, &format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"))?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
}

/// Clients that use as many resources as they can.
struct Attack {
    over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    open: Arc<AtomicU64>,
    /// Length of the longest header that was accepted, in bytes.
    longest: Arc<AtomicU64>,
}

impl Attack {
    fn on(address: SocketAddr) -> Attack {
        let mut attack =
            Attack { over: Arc::default(), threads: Vec::new(), open: Arc::default(), longest: Arc::default() };
        let get = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: {address}\r\n\r\n");
        attack.hold(address, size("HTTP_IDLE", 2_000) as usize, String::new());
        attack.hold(address, size("HTTP_STREAMS", 100) as usize, get("/views/totals/changes"));
        attack.hold(address, 20, get("/views/totals"));
        attack.hold(address, 20, get("/metrics").repeat(50));
        attack.hold(address, 50, String::from("GET /status HTTP/1.1\r\nHo"));
        attack.hold(address, 20, format!("GET /status HTTP/1.1\r\nHost: {address}\r\nContent-Length: 1000000\r\n\r\n"));
        attack.endless_headers(address);
        attack
    }

    /// Keeps `count` connections open: each sends a text and reads nothing. A connection that is closed is opened
    /// again.
    fn hold(&mut self, address: SocketAddr, count: usize, text: String) {
        let (over, open) = (Arc::clone(&self.over), Arc::clone(&self.open));
        self.threads.push(std::thread::spawn(move || {
            let mut held = Vec::new();
            let begin = || {
                let mut stream = connect(address)?;
                // A connection that is refused is detected below.
                let _ = stream.write_all(text.as_bytes());
                stream.set_nonblocking(true).ok()?;
                open.fetch_add(1, Ordering::Relaxed);
                Some(stream)
            };
            while held.len() < count && !over.load(Ordering::Relaxed) {
                held.extend(begin());
            }
            let mut next = 0;
            while !over.load(Ordering::Relaxed) {
                let is_closed = |mut stream: &TcpStream| match stream.read(&mut [0; 1]) {
                    Ok(read) => read == 0,
                    Err(why) => why.kind() != std::io::ErrorKind::WouldBlock,
                };
                if is_closed(&held[next])
                    && let Some(stream) = begin()
                {
                    held[next] = stream;
                }
                next = (next + 1) % held.len();
                std::thread::sleep(Duration::from_millis(5));
            }
        }));
    }

    /// Sends headers of up to 1 GiB, again and again.
    fn endless_headers(&mut self, address: SocketAddr) {
        let (over, longest) = (Arc::clone(&self.over), Arc::clone(&self.longest));
        self.threads.push(std::thread::spawn(move || {
            let piece = "x".repeat(64 << 10);
            while !over.load(Ordering::Relaxed) {
                let Some(mut stream) = connect(address) else { continue };
                let mut sent = 0;
                while sent < 1 << 30 && stream.write_all(if sent == 0 { b"GET /" } else { piece.as_bytes() }).is_ok() {
                    sent += piece.len() as u64;
                }
                longest.fetch_max(sent, Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(100));
            }
        }));
    }

    /// Sends proper requests meanwhile: all are answered, also in bursts of ten at once. Returns the slowest response
    /// time.
    fn ask_properly(&self, address: SocketAddr) -> Duration {
        let mut slowest = Duration::ZERO;
        for _ in 0..5 {
            for (path, expected) in [("/healthz", "ok\n"), ("/readyz", "ok\n"), ("/", "/status")] {
                let begun = Instant::now();
                let (status, text) = get(address, path).unwrap_or_else(|| panic!("{path} is not answered"));
                assert!(status == 200 && text.contains(expected), "{path}: {status} {text}");
                slowest = slowest.max(begun.elapsed());
            }
            let mut burst = format!("GET /healthz HTTP/1.1\r\nHost: {address}\r\n\r\n").repeat(9);
            write!(burst, "GET /healthz HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").unwrap();
            let answers = exchange(address, &burst).expect("a burst is answered");
            assert_eq!(answers.matches("HTTP/1.1 200 OK").count(), 10, "{answers}");
        }
        slowest
    }
}

impl Drop for Attack {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().unwrap();
        }
    }
}

/// Measurements of one run of a job.
#[derive(Debug)]
struct Measured {
    /// Time until all its results were there.
    took: Duration,
    /// Time from SIGTERM to its end.
    end: Duration,
    /// Peak memory, in KiB.
    memory: u64,
    /// Number of descriptors when everything was read.
    descriptors: usize,
    results: Vec<u8>,
}

fn measure(folder: &Path, records: u64, name: &str, is_attacked: bool) -> Measured {
    let (input, out, state) = (folder.join("in.csv"), folder.join(format!("{name}.csv")), folder.join(name));
    let line = format!(
        "ulimit -n {DESCRIPTORS}; exec {TIDEGATE} {TOTALS} --csv {} --out {} --state {} --http 127.0.0.1:0 -w 2 --progress off",
        input.display(),
        out.display(),
        state.display()
    );
    let mut job = start_with("sh", ["-c", &line], |_| {});
    let begun = Instant::now();
    let address = address(&mut job);
    let attack = is_attacked.then(|| Attack::on(address));
    // The rows of the windows that the watermark has passed at the end of the input, and the header.
    let closed = (records - ACCOUNTS / 5 - 1) / ACCOUNTS * ACCOUNTS;
    let expected = closed as usize + 1;
    let results = job.wait_until("all results", |_| {
        let length = fs::metadata(&out).ok()?.len();
        std::thread::sleep(Duration::from_millis(20));
        // Lines are counted when nothing has been written since the last look.
        let results = (fs::metadata(&out).ok()?.len() == length).then(|| fs::read(&out).ok())??;
        (results.iter().filter(|byte| **byte == b'\n').count() >= expected).then_some(results)
    });
    let took = begun.elapsed();
    if let Some(attack) = &attack {
        while attack.open.load(Ordering::Relaxed) < 2_200.min(size("HTTP_IDLE", 2_000)) {
            assert!(begun.elapsed() < LONG, "clients cannot connect");
            std::thread::sleep(Duration::from_millis(20));
        }
        let slowest = attack.ask_properly(address);
        println!("{name}: the slowest proper answer took {slowest:?}");
        assert!(slowest < Duration::from_secs(20), "{slowest:?}");
    }
    let pid = job.id();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let memory = peak.trim().trim_end_matches(" kB").parse().unwrap();
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    let ends = Instant::now();
    job.signal(Signal::SIGTERM);
    let ended = job.end();
    let end = ends.elapsed();
    if let Some(attack) = &attack {
        let longest = attack.longest.load(Ordering::Relaxed);
        println!("{name}: of a header of 1 GiB {longest} bytes were taken");
        assert!(longest < 64 << 20, "{longest} bytes of a header were taken");
    }
    check_ended(&ended);
    Measured { took, end, memory, descriptors, results }
}

fn check_ended(ended: &ProgramOutput) {
    ended.code(143);
    assert!(!ended.stderr.contains("oo many open files"), "{}", ended.stderr);
}

#[test]
fn a_job_is_as_fast_and_ends_as_soon_while_clients_do_what_they_like() {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
    let (folder, records) = (tempfile::tempdir().unwrap(), size("HTTP_RECORDS", 150_000));
    write_records(&folder.path().join("in.csv"), records);
    let alone = measure(folder.path(), records, "alone", false);
    let beset = measure(folder.path(), records, "beset", true);
    for (name, Measured { took, end, memory, descriptors, results }) in [("alone", &alone), ("beset", &beset)] {
        let rate = records as f64 / took.as_secs_f64();
        println!(
            "{name}: {rate:.0} records/s, end after {end:?}, {} MiB at most, {descriptors} descriptors, {} bytes of results",
            memory >> 10,
            results.len()
        );
    }
    assert_eq!(alone.results.len(), beset.results.len());
    let sorted = |results: &[u8]| {
        let mut lines: Vec<_> = results.split(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
        lines.sort();
        lines
    };
    assert!(sorted(&alone.results) == sorted(&beset.results), "results differ");
    // Clients and the job share the machine here, and so do other tests.
    assert!(beset.took < 3 * alone.took + Duration::from_secs(5), "{:?} instead of {:?}", beset.took, alone.took);
    assert!(beset.end < 2 * alone.end + Duration::from_secs(2), "{:?} instead of {:?}", beset.end, alone.end);
    let more = beset.memory.saturating_sub(alone.memory) >> 10;
    assert!(more < 192, "clients cost {more} MiB");
    let limit = DESCRIPTORS as usize / 4 + alone.descriptors + 64;
    assert!(beset.descriptors <= limit, "{} descriptors, {limit} are expected at most", beset.descriptors);
}

#[test]
fn a_job_tells_how_it_is_in_the_ways_of_http() {
    let folder = tempfile::tempdir().unwrap();
    write_records(&folder.path().join("in.csv"), 2 * ACCOUNTS);
    let here = folder.path().display();
    let line = format!("--csv {here}/in.csv --out {here}/out.csv --http localhost:0 --http-host jobs.example");
    let mut job = start(TOTALS, line.split(' '));
    let address = address(&mut job);
    job.wait_until("readiness", |_| get(address, "/readyz").filter(|(status, text)| *status == 200 && text == "ok\n"));
    for (request, status, says) in [
        ("GET /healthz HTTP/1.1\r\nHost: localhost:1", 200, "ok\n"),
        ("GET /healthz HTTP/1.1\r\nHost: jobs.example", 200, "ok\n"),
        ("GET /healthz HTTP/1.0", 200, "ok\n"),
        ("GET /views/totals HTTP/1.1\r\nHost: evil.example", 421, "--http-host"),
        ("GET /wherefore HTTP/1.1\r\nHost: localhost", 404, "/readyz"),
        ("DELETE /status HTTP/1.1\r\nHost: localhost", 405, "allow: GET, HEAD"),
        ("POST /status HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5", 405, "allow: GET, HEAD"),
        ("GET /status HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked", 413, "body"),
        ("GET /views/nothing HTTP/1.1\r\nHost: localhost", 404, "there is `totals`"),
    ] {
        let answer = exchange(address, &format!("{request}\r\nConnection: close\r\n\r\n")).unwrap();
        assert!(answer.split(' ').nth(1) == Some(&status.to_string()), "{request}: {answer}");
        assert!(answer.contains(says), "{request}: {answer}");
    }
    let head =
        exchange(address, "HEAD /views/totals HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200") && head.ends_with("\r\n\r\n"), "{head}");
    // `why` accepts an address in all its forms.
    for place in [address.to_string(), format!("http://{address}"), format!("http://{address}/")] {
        let said = run(TIDEGATE, ["why", &place]);
        assert!(said.status.code().is_some_and(|code| code <= 1) && !said.stdout().is_empty(), "{}", said.stderr);
    }
    check_contains(run(TIDEGATE, ["why", "https://127.0.0.1:1"]).error(2), &["not https"]);
    let figures = get(address, "/metrics").unwrap().1;
    for figure in ["tidegate_source_records_total", "tidegate_source_bytes_total", "tidegate_source_watermark_seconds"]
    {
        let line = figures.lines().find(|line| line.starts_with(&format!("{figure}{{")));
        let value: f64 =
            line.unwrap_or_else(|| panic!("no {figure}: {figures}")).rsplit_once(' ').unwrap().1.parse().unwrap();
        assert!(value > 0.0, "{figure} is {value}");
    }
    job.signal(Signal::SIGTERM);
    job.end().code(143);
}

/// A gate at which records wait until it is opened.
#[derive(Default)]
struct HttpGate(Mutex<bool>, Condvar);

impl HttpGate {
    fn pass(&self) {
        drop(self.1.wait_while(self.0.lock().unwrap(), |open| !*open).unwrap());
    }

    fn open(&self) {
        *self.0.lock().unwrap() = true;
        self.1.notify_all();
    }
}

#[test]
fn a_job_is_ready_when_its_views_answer_and_not_before() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("in.csv");
    fs::write(&path, "account,at_ms\na,1000\nb,2000\n").unwrap();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let at = SocketAddr::from(([127, 0, 0, 1], port));
    let door = Arc::<HttpGate>::default();
    let job = Job::new("door").http(&at.to_string());
    let stop = job.stopper();
    let own = Arc::clone(&door);
    let running = std::thread::spawn(move || {
        let input = csv::Source::new(&path).event_time(|row: &(String, i64)| row.1);
        job.run(move |flow| {
            let door = Arc::clone(&own);
            let rows = flow.read("rows", &input).inspect(move |_| door.pass());
            let windows = rows.key_by(|row| row.0.clone()).window(Window::tumbling(Duration::from_secs(10)));
            windows
                .aggregate("counts", tidegate::stream::aggregate::Each::count)
                .on_change()
                .map(|row| (row.key, row.value))
                .view("counts");
        })
    });
    let mut unready = 0;
    let begun = Instant::now();
    while unready < 5 {
        if let Some((status, text)) = get(at, "/readyz") {
            assert_eq!(status, 503, "{text}");
            unready += 1;
        }
        assert!(begun.elapsed() < LONG, "nobody answers");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(get(at, "/views/counts").unwrap().0, 503);
    door.open();
    while get(at, "/readyz").is_none_or(|(status, _)| status != 200) {
        assert!(begun.elapsed() < LONG, "it does not become ready: {:?}", get(at, "/readyz"));
        std::thread::sleep(Duration::from_millis(20));
    }
    let (status, rows) = get(at, "/views/counts?key=a").unwrap();
    assert_eq!((status, rows.contains(r#""row":["a",1],"diff":1"#)), (200, true), "{rows}");
    stop.stop();
    running.join().unwrap().unwrap();
    assert!(get(at, "/readyz").is_none());
}
