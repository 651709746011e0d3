//! Clients of a job's HTTP server do not affect the job: not its rate, its memory, its descriptors or its shutdown.
//!
//! A server inside a job is an attack surface: anyone who can connect could hold descriptors, memory and threads of the
//! job, and keep it from ending. The real program runs with 1,024 descriptors, once without and once with all such
//! clients at a time; both runs are measured, and the figures printed. `HTTP_RECORDS`, `HTTP_IDLE` and `HTTP_STREAMS`
//! increase the load.
#![cfg(feature = "http")]
#![expect(clippy::unwrap_used, reason = "a panic fails the test")]

#[path = "common/ports.rs"]
mod ports;
#[path = "common/run.rs"]
mod run;

use std::fmt::Write as _;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use ports::free_port;
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
    // It says which certificates it is to trust before it asks.
    check_contains(run(TIDEGATE, ["why", "https://127.0.0.1:1"]).error(2), &["--ca-file"]);
    let figures = get(address, "/metrics").unwrap().1;
    for figure in ["tidegate_source_records_total", "tidegate_source_bytes_total", "tidegate_source_watermark_seconds"]
    {
        let line = figures.lines().find(|line| line.starts_with(&format!("{figure}{{")));
        let value: f64 =
            line.unwrap_or_else(|| panic!("no {figure}: {figures}")).rsplit_once(' ').unwrap().1.parse().unwrap();
        assert!(value > 0.0, "{figure} is {value}");
    }
    // Of the two windows the watermark has closed the first; reports come a few times a second.
    job.wait_until("an open window", |_| {
        let figures = get(address, "/metrics")?.1;
        let line = figures.lines().find(|line| line.starts_with("tidegate_step_open_windows{"))?;
        (line.contains("step=\"totals\"") && line.ends_with(" 1")).then_some(())
    });
    job.signal(Signal::SIGTERM);
    job.end().code(143);
}

const TOKEN: &str = "correct-horse-battery-staple";

/// Writes a file that only its owner can read.
fn write_private(path: &Path, text: &[u8]) {
    let mut options = fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600).open(path).unwrap().write_all(text).unwrap();
}

/// Sends a request with a token.
fn get_with(address: SocketAddr, path: &str, token: &str) -> (u16, String) {
    let head = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {token}\r\n");
    let answer = exchange(address, &format!("{head}Connection: close\r\n\r\n")).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

/// The token opens what the job holds, to requests and to `tidegate why`, and is itself nowhere to be read.
#[test]
fn a_job_with_a_token_answers_who_has_it() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path().display();
    write_records(&folder.path().join("in.csv"), 2 * ACCOUNTS);
    write_private(&folder.path().join("token"), format!("{TOKEN}\n").as_bytes());
    write_private(&folder.path().join("other"), b"incorrect-horse-battery-staple\n");
    let line = format!(
        "--csv {here}/in.csv --out {here}/out.csv --state {here}/state --http 127.0.0.1:0 --http-token-file {here}/token"
    );
    let mut job = start_with(TOTALS, line.split(' '), |command| {
        command.env("TIDEGATE_LOG", "trace");
    });
    let address = address(&mut job);
    job.wait_until("readiness", |_| get(address, "/readyz").filter(|(status, _)| *status == 200));
    let mut answers = String::new();
    for path in ["/status", "/why", "/graph", "/history", "/metrics", "/views", "/views/totals?key=account-000001", "/"]
    {
        let (status, refusal) = get(address, path).unwrap();
        assert_eq!(status, 401, "{path}: {refusal}");
        assert!(refusal.contains("Authorization: Bearer") && refusal.len() < 200, "{path}: {refusal}");
        let (status, answer) = get_with(address, path, TOKEN);
        assert_eq!(status, 200, "{path}: {answer}");
        answers += &answer;
        answers += &refusal;
    }
    for guesses in 1..=2 {
        assert_eq!(get_with(address, "/status", "incorrect-horse-battery-staple").0, 401);
        let figures = get_with(address, "/metrics", TOKEN).1;
        let counted = figures.lines().find(|line| line.starts_with("tidegate_http_wrong_tokens_total{"));
        assert!(counted.is_some_and(|line| line.ends_with(&format!(" {guesses}"))), "{counted:?}");
    }
    assert!(answers.contains("account-000001"), "{answers}");
    assert_eq!(get(address, "/healthz").unwrap(), (200, String::from("ok\n")));
    assert_eq!(get(address, "/page/main.js").unwrap().0, 200);
    let why = |place: &str, file: &str| {
        let file = folder.path().join(file);
        run(TIDEGATE, ["why", place, "--json", "--token-file", file.to_str().unwrap()])
    };
    let state = format!("{here}/state");
    for place in [&address.to_string(), &state] {
        let asked = why(place, "token");
        assert!(asked.status.code().is_some_and(|code| code <= 1), "{place}: {}", asked.stderr);
        // Asked, and not read from the state, which would be noted.
        assert!(asked.stdout().contains("summary") && asked.stderr.is_empty(), "{place}: {}", asked.stderr);
    }
    check_contains(why(&address.to_string(), "other").error(1), &["another token", &address.to_string()]);
    check_contains(run(TIDEGATE, ["why", &address.to_string()]).error(1), &["asks for a token", "--token-file"]);
    // An address that only the state names may be anybody's, unless it is of this machine.
    let recorded = folder.path().join("state/WATCHED_AT");
    let own = fs::read(&recorded).unwrap();
    fs::write(&recorded, "https://192.0.2.1:8080").unwrap();
    let told = why(&state, "token");
    check_contains(&told.stderr, &["the token is not sent", "192.0.2.1:8080", "name it instead of the state"]);
    assert!(told.stdout().contains("summary"), "{}", told.stderr);
    fs::write(&recorded, own).unwrap();
    // The next token needs no restart, and a file that is emptied by mistake takes none away.
    let change = |text: &str| {
        // By a rename: an empty file in between would be logged.
        write_private(&folder.path().join("new"), text.as_bytes());
        fs::rename(folder.path().join("new"), folder.path().join("token")).unwrap();
    };
    change("the-next-horse-battery-staple");
    job.wait_until("the next token", |_| {
        Some(get_with(address, "/status", "the-next-horse-battery-staple")).filter(|(status, _)| *status == 200)
    });
    assert_eq!(get_with(address, "/status", TOKEN).0, 401);
    change("");
    job.wait_until("a warning", |job| {
        assert_eq!(get_with(address, "/status", "the-next-horse-battery-staple").0, 200);
        job.stderr().contains("the file is empty").then_some(())
    });
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(2_500) {
        assert_eq!(get_with(address, "/status", "the-next-horse-battery-staple").0, 200);
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(job.stderr().matches("the file is empty").count(), 1, "{}", job.stderr());
    change(TOKEN);
    job.wait_until("the first token", |_| {
        Some(get_with(address, "/status", TOKEN)).filter(|(status, _)| *status == 200)
    });
    // Who cannot ask is told what the state says.
    let told = run(TIDEGATE, ["why", &state]);
    assert!(told.stderr.contains("--token-file") && !told.stdout().is_empty(), "{}", told.stderr);
    job.signal(Signal::SIGTERM);
    let ended = job.end();
    ended.code(143);
    assert!(!answers.contains(TOKEN) && !ended.stderr.contains(TOKEN), "the token is told: {}", ended.stderr);
    for file in walk(&folder.path().join("state")) {
        let held = fs::read(&file).unwrap();
        assert!(!held.windows(TOKEN.len()).any(|part| part == TOKEN.as_bytes()), "{} has the token", file.display());
    }
}

/// Returns all files in a folder and those below it.
fn walk(folder: &Path) -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] }).collect()
}

#[test]
fn processes_of_up_ask_for_the_token_that_they_are_given() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path().display();
    write_records(&folder.path().join("in.csv"), 1000);
    write_private(&folder.path().join("token"), TOKEN.as_bytes());
    let line = format!(
        "up -n 2 -- {TOTALS} --csv {here}/in.csv --out {here}/out.csv --http 127.0.0.1:0 --http-token-file {here}/token"
    );
    let mut up = start(TIDEGATE, line.split(' '));
    let addresses = up.wait_until("two addresses", |running| {
        let said = running.stderr();
        let found = said.split("watch it at http://").skip(1).filter_map(|rest| rest.split(' ').next()?.parse().ok());
        Some(found.collect::<Vec<SocketAddr>>()).filter(|found| found.len() == 2)
    });
    for address in addresses {
        assert_eq!(get(address, "/status").unwrap().0, 401);
        assert_eq!(get_with(address, "/status", TOKEN).0, 200);
    }
    up.signal(Signal::SIGTERM);
    up.end().code(143);
}

/// Nothing of the job has happened when it is refused.
#[test]
fn a_job_that_anybody_could_ask_is_refused_unless_that_is_wanted() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path().display();
    write_records(&folder.path().join("in.csv"), 1000);
    write_private(&folder.path().join("token"), TOKEN.as_bytes());
    fs::write(folder.path().join("empty"), "\n").unwrap();
    let with = |flags: &str| {
        let line = format!("--csv {here}/in.csv --out {here}/out.csv --state {here}/state {flags}");
        run(TOTALS, line.split(' '))
    };
    for flags in ["--http 0.0.0.0:0", "--http 192.0.2.1:0"] {
        check_contains(with(flags).error(2), &["other machines", "--http-token-file", "--http-open", "127.0.0.1"]);
        assert!(!folder.path().join("out.csv").exists() && !folder.path().join("state").exists(), "{flags}");
    }
    check_contains(with(&format!("--http 127.0.0.1:0 --http-token-file {here}/empty")).error(2), &["empty", "umask"]);
    check_contains(with(&format!("--http 127.0.0.1:0 --http-token-file {here}/none")).error(2), &["none"]);
    with(&format!("--http 127.0.0.1:0 --http-open --http-token-file {here}/token")).code(2);
    with("--http-open").code(2);
    assert!(!folder.path().join("out.csv").exists());
    // An address that no machine has: it is not refused, and cannot be listened at.
    for flags in ["--http-open", &format!("--http-token-file {here}/token")] {
        check_contains(with(&format!("--http 192.0.2.1:0 {flags}")).error(1), &["cannot serve HTTP", "192.0.2.1"]);
    }
}

/// A file that others may read is taken, with a warning that says what to do.
#[test]
fn a_token_that_others_may_read_is_warned_about() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path().display();
    write_records(&folder.path().join("in.csv"), 1000);
    write_private(&folder.path().join("token"), TOKEN.as_bytes());
    for (mode, warns) in [(0o600, false), (0o640, true), (0o604, true)] {
        fs::set_permissions(folder.path().join("token"), fs::Permissions::from_mode(mode)).unwrap();
        let line = format!(
            "--csv {here}/in.csv --out {here}/{mode}.csv --until-end --http 127.0.0.1:0 --http-token-file {here}/token"
        );
        let ended = run(TOTALS, line.split(' '));
        ended.code(0);
        assert_eq!(ended.stderr.contains("chmod 600"), warns, "{mode:o}: {}", ended.stderr);
    }
}

/// Writes `cert.pem`, for 127.0.0.1, and its `key.pem`.
fn write_certificate(folder: &Path) {
    use openssl::asn1::Asn1Time;
    use openssl::x509::{X509, X509NameBuilder, extension::SubjectAlternativeName};
    let key = openssl::pkey::PKey::from_rsa(openssl::rsa::Rsa::generate(2048).unwrap()).unwrap();
    let mut name = X509NameBuilder::new().unwrap();
    name.append_entry_by_text("CN", "a job").unwrap();
    let name = name.build();
    let mut made = X509::builder().unwrap();
    made.set_version(2).unwrap();
    made.set_subject_name(&name).unwrap();
    made.set_issuer_name(&name).unwrap();
    made.set_not_before(&Asn1Time::days_from_now(0).unwrap()).unwrap();
    made.set_not_after(&Asn1Time::days_from_now(2).unwrap()).unwrap();
    made.set_pubkey(&key).unwrap();
    let alternative = SubjectAlternativeName::new().ip("127.0.0.1").build(&made.x509v3_context(None, None)).unwrap();
    made.append_extension(alternative).unwrap();
    made.sign(&key, openssl::hash::MessageDigest::sha256()).unwrap();
    fs::write(folder.join("cert.pem"), made.build().to_pem().unwrap()).unwrap();
    write_private(&folder.join("key.pem"), &key.private_key_to_pem_pkcs8().unwrap());
}

#[test]
#[cfg(feature = "https")]
fn a_job_with_a_certificate_answers_encrypted() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path().display();
    write_records(&folder.path().join("in.csv"), 1000);
    write_private(&folder.path().join("token"), TOKEN.as_bytes());
    write_certificate(folder.path());
    let files = format!("--http-cert {here}/cert.pem --http-key {here}/key.pem");
    let line = format!("--csv {here}/in.csv --out {here}/out.csv --state {here}/state --http 127.0.0.1:0");
    let line = format!("{line} --http-token-file {here}/token {files}");
    let mut job = start(TOTALS, line.split(' '));
    let address: SocketAddr = job.wait_until("the address", |running| {
        running.stderr().split_once("watch it at https://")?.1.split_once(' ')?.0.parse().ok()
    });
    let why = |line: &str| run(TIDEGATE, format!("why {line}").split(' '));
    let with = format!("--token-file {here}/token --ca-file {here}/cert.pem");
    for place in [format!("https://{address}"), format!("{here}/state")] {
        let asked = why(&format!("{place} --json {with}"));
        assert!(asked.status.code().is_some_and(|code| code <= 1) && asked.stderr.is_empty(), "{}", asked.stderr);
        assert!(asked.stdout().contains("summary"), "{}", asked.stdout());
    }
    check_contains(why(&format!("https://{address} --ca-file {here}/cert.pem")).error(1), &["asks for a token"]);
    check_contains(why(&format!("https://{address}")).error(2), &["--ca-file"]);
    why(&format!("http://{address} {with}")).code(1);
    job.signal(Signal::SIGTERM);
    let ended = job.end();
    ended.code(143);
    assert!(!ended.stderr.contains("chmod 600"), "{}", ended.stderr);
    // Without its key the certificate is refused, before anything is read.
    let wrong = format!("--csv {here}/in.csv --out {here}/new.csv --http 127.0.0.1:0 --http-cert {here}/cert.pem");
    run(TOTALS, wrong.split(' ')).code(2);
    let wrong = format!("{wrong} --http-key {here}/token");
    check_contains(run(TOTALS, wrong.split(' ')).error(2), &["private key", "token"]);
    assert!(!folder.path().join("new.csv").exists());
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
    let at = SocketAddr::from(([127, 0, 0, 1], free_port()));
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
